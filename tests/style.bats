# The mechanical rules of how the code is written. tests/style.awk finds what breaks them.

source "${BATS_TEST_FILENAME%/*}/helper.bash"

# rule CHECK FILE...: no breach in any of them.
rule() {
    local check=$1 file
    shift
    for file in "$@"; do
        awk -v check="$check" -f "$ROOT/tests/style.awk" "$file"
    done >"$BATS_TEST_TMPDIR/breaches"
    cat "$BATS_TEST_TMPDIR/breaches"
    ! grep -q -v '^report:' "$BATS_TEST_TMPDIR/breaches"
}

setup() {
    cd "$ROOT"
    C_FILES=(netsrv.h cli/*.[ch] examples/*.c tests/*.[ch] tests/unit/*.[ch])
}

@test "the contents list has the sections in their order; each has its uses: and thread: lines" {
    rule contents netsrv.h
}

@test "a section calls only what its uses: line names, and only upwards" {
    rule uses netsrv.h
}

@test "a private function's second word is its section" {
    rule names netsrv.h
}

@test "no function is declared before it is defined" {
    rule forward "${C_FILES[@]}"
}

@test "no preprocessor conditional inside a function outside [config], [sys] and [net]" {
    rule conditionals netsrv.h
}

@test "at most 100 columns, no tabs, no blanks at the end of a line" {
    rule columns "${C_FILES[@]}"
    ! grep -n -P '\t| +$' "${C_FILES[@]}"
}

@test "functions are short: median, nine in ten, longest" {
    rule lengths netsrv.h
    rule lengths "${C_FILES[@]}"
}

@test "nesting is at most 3" {
    rule nesting "${C_FILES[@]}"
}

@test "system calls and allocation only in [sys] and [mem]" {
    rule syscalls netsrv.h
}

@test "the library prints nothing and does not exit" {
    rule printing netsrv.h
}

@test "nothing is left to do" {
    rule todo "${C_FILES[@]}"
}

@test "above each public declaration stands who may call it, and whether from a callback" {
    rule threads netsrv.h
}

# The state of a connection has one setter; the program's allocator has one place.
@test "the state of a connection is set in one place" {
    [ "$(grep -c -E -- '->state = ' netsrv.h)" -le 2 ] || {
        grep -n -E -- '->state = ' netsrv.h
        false
    }
}

@test "the core does not ask for a backend's name" {
    awk '/^ \*  \[conn\]/ { core = 1 } /^ \*  \[epoll\]/ { core = 0 }
         core && /EPOLL|KQUEUE|IO_URING|BACKEND_POLL|netsrv__(epoll|poll|kqueue|uring)_/ {
             print FILENAME ":" FNR ": " $0; bad = 1 } END { exit bad }' netsrv.h
}

# Behind it, or in the comment that ends in the line before it.
@test "every field of the configuration is explained" {
    awk '/^typedef struct netsrv_config \{/ { inside = 1; next } inside && /^\}/ { exit bad }
         inside && /;/ && !/\/\*/ && /^    [a-z]/ && !above { print FNR ": " $0; bad = 1 }
         inside { above = /\*\/ *$/ && !/;.*\/\*/ }' netsrv.h
}

@test "shell files are clean (shellcheck)" {
    command -v shellcheck >/dev/null || skip "no shellcheck here"
    shellcheck -s bash -S warning -e SC1090,SC1091,SC2034,SC2046 tests/run tests/check tests/cross tests/matrix \
        tests/need tests/soak tests/helper.bash tests/scenarios.bash .ci/run
}
