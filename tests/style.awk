# style.awk -v check=NAME FILE: prints what breaks one rule of the house; no output, no breach.
# Checks: contents uses names forward conditionals columns lengths nesting syscalls printing todo
# threads. It reads C as this project writes it: a function begins in the first column and ends with
# a closing brace there; a section begins with a banner that has ` *  [tag] `.

# What is left of a line without comments, strings and character constants.
function bare(line,    out, i, n, ch, two) {
    out = ""
    n = length(line)
    for (i = 1; i <= n; i++) {
        ch = substr(line, i, 1)
        two = substr(line, i, 2)
        if (in_comment) {
            if (two == "*/") { in_comment = 0; i++ }
        } else if (two == "/*") { in_comment = 1; i++ }
        else if (two == "//") { break }
        else if (ch == "\"" || ch == "'") { i = skip_quoted(line, i, n, ch); out = out ch ch }
        else { out = out ch }
    }
    return out
}

function skip_quoted(line, i, n, quote) {
    for (i++; i <= n && substr(line, i, 1) != quote; i++) {
        if (substr(line, i, 1) == "\\") { i++ }
    }
    return i
}

function breach(text) { printf "%s:%d: %s\n", FILENAME, FNR, text }

function count(text, what,    n) { n = gsub(what, "", text); return n }

# The name in front of the first parenthesis of a function's head.
function name_of(head) {
    sub(/[ ]*\(.*/, "", head)
    sub(/.*[ *]/, "", head)
    return head
}

function begin_function(head) {
    name = name_of(head)
    in_function = 1
    first_line = FNR
    depth = 1
    section_of[name] = section
    if (check == "names" && name ~ /^netsrv__/ && name !~ ("^netsrv__" section "_")) {
        breach(name " is in [" section "]")
    }
}

function end_function(    n) {
    in_function = 0
    n = FNR - first_line + 1
    lengths[++functions] = n
    if (n > 70 && check == "lengths") { breach(name " has " n " lines") }
}

function look_at_calls(code,    rest, called) {
    rest = code
    while (match(rest, /netsrv__[a-z0-9_]+[ ]*\(/)) {
        called = substr(rest, RSTART, RLENGTH)
        sub(/[ ]*\(/, "", called)
        calls[section, called] = FNR
        rest = substr(rest, RSTART + RLENGTH)
    }
}

function inside(code) {
    depth += count(code, "{") - count(code, "}")
    if (check == "nesting" && depth - 1 > 3 && code ~ /{/ && code !~ /= {|\) {.*},?$/) {
        breach(name ": nested " (depth - 1) " deep")
    }
    look_at_calls(code)
}

BEGIN {
    system_calls = "(socket|bind|listen|accept4?|connect|setsockopt|getsockopt|getsockname|getpeername|fcntl|" \
        "ioctl|epoll_create1?|epoll_ctl|epoll_p?wait|kqueue|kevent|p?poll|select|eventfd|pipe2?|read|write|" \
        "readv|writev|pread|pwrite|recv|recvmsg|recvfrom|send|sendmsg|sendto|sendfile|shutdown|close|dup[23]?|open|unlink|" \
        "l?stat|fstat|getrandom|mmap|munmap|fork|clock_gettime|malloc|calloc|realloc|free|" \
        "pthread_(create|kill|sigmask|setaffinity)[a-z_]*|sched_[a-z_]+|signal|sigaction|kill|nanosleep|usleep|sleep)"
}

{
    line = $0
    sub(/\r$/, "", line)
    if (check == "columns" && length(line) > 100) { breach(length(line) " columns") }
    if (check == "todo" && line ~ /TODO|FIXME|(^|[^X])XXX([^X]|$)/) { breach(line) }
    if (line ~ /^#define NETSRV_IMPLEMENTATION|^#ifdef NETSRV_IMPLEMENTATION/ && FNR > 100) { implementation = 1 }
}

# The contents list, in the manual.
FNR < 200 && /^       \[[a-z]+\] / && !section {
    match(line, /\[[a-z]+\]/)
    contents[++listed] = substr(line, RSTART + 1, RLENGTH - 2)
}

# A banner.
/^ \*  \[[a-z_]+\] / {
    match(line, /\[[a-z_]+\]/)
    section = substr(line, RSTART + 1, RLENGTH - 2)
    banners[++sections] = section
    place[section] = sections
    implementation = 1
}
/^ \*  uses: / {
    text = line
    sub(/^ \*  uses: */, "", text)
    uses[section] = " " text " "
}
/^ \*  thread: / { has_thread[section] = 1 }

# Above each public declaration stands who may call it and whether from a callback. Declarations
# that follow each other without an empty line share the comment.
check == "threads" && !implementation {
    if (line ~ /^$/) { told_thread = told_callback = 0 }
    if (line ~ /thread: /) { told_thread = 1 }
    if (line ~ /callback: /) { told_callback = 1 }
    if (line ~ /^NETSRV_API / && !(told_thread && told_callback)) { breach(line) }
}

{
    code = bare(line)
    if (in_function && line ~ /^}/) {
        end_function()
    } else if (in_function) {
        inside(code)
        if (check == "conditionals" && code ~ /^ *# *(if|elif|else)/ && section !~ /^(config|sys|net)$/) {
            breach(name ": " line)
        }
    } else if (line ~ /^[a-zA-Z]/ && line !~ /^(typedef|struct|enum|union|#|extern)/ && code ~ /\(/) {
        head = code
    } else if (head != "" && code != "") {
        head = head " " code
    }
    if (head != "" && code ~ /;[ ]*$/ && !in_function) {
        if (check == "forward" && head ~ /^static / && head ~ /\)[ ]*;$/ && head !~ /=/) { breach(head) }
        head = ""
    }
    if (head != "" && code ~ /{[ ]*$/ && !in_function) {
        if (head !~ /=/) { begin_function(head) }
        head = ""
    }
    if (check == "syscalls" && implementation && section != "sys" && section != "config" &&
        code ~ ("(^|[^a-zA-Z0-9_>.])" system_calls "[ ]*\\(")) {
        if (!(section == "mem" && code ~ /(malloc|calloc|realloc|free)[ ]*\(/)) { breach("[" section "] " line) }
    }
    if (check == "printing" && code ~ /(^|[^a-zA-Z0-9_])(printf|fprintf|puts|fputs|perror|exit|_exit|abort)[ ]*\(/) {
        breach(line)
    }
}

function check_contents(    i) {
    for (i = 1; i <= listed || i <= sections; i++) {
        if (contents[i] != banners[i]) { print "contents: " contents[i] ", banner: " banners[i] }
    }
    for (i = 1; i <= sections; i++) {
        if (!(banners[i] in uses)) { print "[" banners[i] "] has no uses: line" }
        if (!(banners[i] in has_thread)) { print "[" banners[i] "] has no thread: line" }
    }
}

function check_uses(    key, part, from, to, n, i, words) {
    for (key in calls) {
        split(key, part, SUBSEP)
        from = part[1]
        to = section_of[part[2]]
        if (to == "" || to == from) { continue }
        if (place[to] > place[from]) { print "line " calls[key] ": [" from "] calls down: " part[2] }
        if (index(uses[from], " " to " ") == 0) { print "line " calls[key] ": [" from "] calls " part[2] ", not in uses:" }
        used[from, to] = 1
    }
    for (from in uses) {
        n = split(uses[from], words, " ")
        for (i = 1; i <= n; i++) {
            if (words[i] != "-" && !((from, words[i]) in used)) { print "[" from "] uses: " words[i] ", but calls nothing of it" }
        }
    }
}

function check_lengths(    i, k, t) {
    for (i = 2; i <= functions; i++) {
        t = lengths[i]
        for (k = i - 1; k > 0 && lengths[k] > t; k--) { lengths[k + 1] = lengths[k] }
        lengths[k + 1] = t
    }
    printf "report: %d functions, median %d, 90%% within %d, longest %d lines\n", functions,
        lengths[int((functions + 1) / 2)], lengths[int(functions * 9 / 10)], lengths[functions]
    if (FILENAME ~ /netsrv.h$/ && (lengths[int((functions + 1) / 2)] > 15 || lengths[int(functions * 9 / 10)] > 40)) { print "too long" }
}

END {
    if (check == "contents") { check_contents() }
    if (check == "uses") { check_uses() }
    if (check == "lengths") { check_lengths() }
}
