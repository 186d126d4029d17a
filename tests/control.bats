# The control channel: a FIFO on the loop of worker 0.

source "${BATS_TEST_FILENAME%/*}/helper.bash"

# controlled MODE OPTIONS...: a server with a FIFO that it makes, $CTL.
controlled() {
    CTL=$(new_dir ctl)/fifo
    server "$@" --control "$CTL"
}

says() { grep -q -- "$1" "$DIR/err"; }
said() { [ "$(grep -c -- "$1" "$DIR/err")" = "$2" ]; }
tell() { printf "$@" >"$CTL"; }

@test "every backend obeys, also while writers come and go" {
    local b
    for b in $(backends); do
        controlled echo -w 2 -b "$b"
        for i in {1..20}; do
            tell 'log debug\n'
            until_true said 'control: the log level is set' "$i"
        done
        quiet "$PID"
        client -q "$ADDR" C Shi F Rhi E
        stop
        [ ! -e "$CTL" ]
    done
}

@test "the FIFO: removed if made, kept if it was there, for the owner alone" {
    controlled echo
    [ "$(stat -c %a "$CTL")" = 600 ]
    stop
    [ ! -e "$CTL" ]
    mkfifo "$CTL"
    server echo --control "$CTL"
    tell 'stop\n'
    [ "$(exit_code "$DIR")" = 0 ]
    [ -p "$CTL" ]
}

@test "what is no FIFO is refused and left as it is" {
    local file code
    file=$(new_dir ctl)/file
    echo precious >"$file"
    for path in "$file" /nonexistent/fifo "${file%/*}"; do
        spawn "$NETSRV_BIN" echo -l "$HOST:0" --control "$path"
        code=$(exit_code "$DIR")
        [ "$code" = 1 ]
        grep -q -e '--control: .*give the path of a FIFO' "$DIR/err"
    done
    [ "$(cat "$file")" = precious ]
    # Made, but the server does not start: removed again.
    server echo
    spawn "$NETSRV_BIN" echo -l "$ADDR" --control "$file.fifo"
    [ "$(exit_code "$DIR")" = 1 ]
    [ ! -e "$file.fifo" ]
}

@test "stats: on standard error, and into a file" {
    local out
    controlled echo -w 2
    out=$(new_dir out)/stats
    hold 3 -- C Shello Rhello U F E
    tell 'stats\n'
    until_true says '"event":"stats"'
    tell 'stats %s\n' "$out"
    until_true test -s "$out"
    [ "$("$JSON" live <"$out")" = 3 ]
    [ "$("$JSON" 'workers.*.opened' <"$out" | sum)" = 3 ]
    let_go
    tell 'stats /nonexistent/x\nstats /dev/null\n'
    until_true said 'control: stats: .*give a path' 2
    [ -c /dev/null ]
    stop
}

@test "pause and resume: who comes meanwhile waits, who is there is served" {
    controlled echo -w 2 -a shared
    hold 2 -- C Sa Ra U Sb Rb F E
    tell 'pause\n'
    until_true says 'control: accepting is paused'
    until_true stats_are pauses 2
    "$CLIENT" -q -d 15000 "$ADDR" C Slate Rlate F E &
    let_go
    kill -0 $!
    tell 'resume\n'
    wait $!
    stop
}

@test "drain: ends when the last client has left" {
    controlled echo -w 2
    hold 2 -- C Sa Ra U Sb Rb F E
    tell 'drain\n'
    until_true says 'control: drains'
    refused() { ! "$CLIENT" -q "$ADDR" C Sx Rx 2>/dev/null; }
    until_true refused
    quiet "$PID"
    not ended "$DIR"
    let_go
    [ "$(exit_code "$DIR")" = 0 ]
    clean "$DIR"
}

@test "stop, also after drain, whichever worker has the client" {
    controlled echo -w 4
    hold 1 -- C Sa Ra U E
    tell 'drain\n'
    until_true says 'control: drains'
    quiet "$PID"
    tell 'stop\n'
    until_true says 'control: stops'
    let_go
    [ "$(exit_code "$DIR")" = 0 ]
    clean "$DIR"
}

@test "log LEVEL" {
    controlled echo --max-conns-per-ip 1
    tell 'log debug\n'
    until_true says 'control: the log level is set'
    hold 1 -- C Sa Ra U F E
    client -q "$ADDR" C T
    until_true says 'debug: refused'
    let_go
    tell 'log error\nlog loud\n'
    until_true says "control: log: 'loud': not one of error"
    said 'control: the log level is set' 1
    stop
}

@test "garbage gets one line each and nothing else" {
    controlled echo
    tell 'nonsense\n\n  \nstop now\nlog\n  pause  \r\n\x01\x02\x7f\n\0stop\n'
    until_true said 'control: .*not understood' 5
    says 'control: accepting is paused'
    until_true said 'control: ' 6
    head -c 300000 /dev/zero >"$CTL"
    until_true says 'control: a line longer than 1023 bytes'
    tell 'stop\nresume\n'
    until_true says 'control: accepting is resumed'
    said 'a line longer' 1
    client -q "$ADDR" C Shi F Rhi E
    stop
}

@test "a command in pieces, many in one write, a writer that stays" {
    controlled echo
    exec 8>"$CTL"
    printf 'pau' >&8
    printf 'se\nre' >&8
    until_true said 'control: accepting is paused' 1
    printf 'sume\npause\nresume\n' >&8
    until_true said 'control: accepting is resumed' 2
    exec 8>&-
    stop
}

@test "quiet: only what went wrong" {
    CTL=$(new_dir ctl)/fifo
    server echo -q --control "$CTL"
    tell 'pause\nresume\nnonsense\n'
    until_true says 'control: .*not understood'
    said 'control: ' 1
    stop
}
