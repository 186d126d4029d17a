# The command line: help, errors and exit codes, output for people and for machines.

source "${BATS_TEST_FILENAME%/*}/helper.bash"

# wrong WORD ARGUMENTS...: exit 2, nothing on stdout, one line on stderr that has the word.
wrong() {
    local word=$1 code
    shift
    spawn "$NETSRV_BIN" "$@"
    code=$(exit_code "$DIR")
    cat "$DIR/err"
    [ "$code" = 2 ] || fail "exit $code: $*"
    [ ! -s "$DIR/out" ] || fail "output: $*"
    [ "$(wc -l <"$DIR/err")" = 1 ] || fail "not one line: $*"
    grep -q -i -- "$word" "$DIR/err" || fail "no '$word': $*"
}

@test "no mode, an unknown mode, one word too many" {
    wrong usage
    wrong nosuch nosuch
    wrong mode -w 2
    wrong extra echo extra
    wrong '?' $'e\ncho'
}

@test "unknown options" {
    wrong nosuch echo --nosuch
    wrong max-conns echo --max-con 5
    wrong '-Z' echo -Z
    wrong handler-thread echo --handler-thread 4
    wrong control echo --control
    wrong '-y' echo -y 4
    wrong custom echo -p custom
}

@test "missing and superfluous values" {
    wrong workers echo -w
    wrong listen echo --listen
    wrong share-port echo --share-port=yes
}

@test "names that are none" {
    wrong 'backend.*select' echo -b select
    wrong 'accept.*many' echo -a many
    wrong 'place.*random' echo -p random
    wrong 'transfer.*pigeon' echo --transfer pigeon
    wrong 'trigger.*hair' echo --trigger hair
    wrong 'overflow' echo --overflow drown
    wrong "accept: ''" echo -a ''
}

@test "numbers out of range, and what only looks like a number" {
    local bad
    wrong 'workers.*1.*1024' echo -w 0
    wrong 'workers.*1.*1024' echo -w 5000
    for bad in -1 +1 1.5 1e3 0x10 ' 1' '1 ' '' 18446744073709551616 99999999999999999999 one; do
        wrong workers echo -w "$bad"
        wrong max-conns echo --max-conns "$bad"
        wrong idle-timeout echo --idle-timeout "$bad"
        wrong max-line echo --max-line "$bad"
    done
    wrong acceptors echo -a acceptor --acceptors 0
    wrong acceptors echo -a acceptor --acceptors 65
    wrong recv-buffer echo --recv-buffer 100
    wrong max-line echo --max-line 0
    wrong max-line echo --max-line 5x
    wrong max-line echo --max-line 4g
    wrong ready-fd echo --ready-fd 0
    wrong stats echo --stats=0
}

@test "options that exclude each other or have no effect: named, with the remedy" {
    local text
    wrong 'mark' echo --high-mark 1k --low-mark 2k
    wrong 'queue' echo --high-mark 64k --queue-max 32k
    wrong 'acceptor' echo -a exclusive -w 2 --acceptors 3
    wrong 'trigger' echo -a exclusive -w 2 --trigger edge
    wrong 'share' echo -a exclusive -w 2 --share-port
    wrong 'steer' echo -a exclusive -w 2 --steer-by-cpu
    wrong 'commands' echo --commands
    wrong 'keep' echo -a single -p keep -w 4
    wrong 'keep' echo -a acceptor -p keep -w 4
}

@test "hostile arguments: one line, exit 2" {
    local long
    long=$(printf 'A%.0s' {1..60000})
    wrong listen echo -l "$long"
    wrong workers echo -w "$long"
    wrong "mode" "$long"
    wrong unknown echo "--$long"
    wrong accept echo -a "$(printf '%%s%%n%%x')"
    wrong listen echo $(for _ in {1..17}; do printf -- '-l 127.0.0.1:0 '; done)
}

@test "--help: the main screen and each topic fit 24 lines of 80 columns" {
    local topic
    "$NETSRV_BIN" --help >"$BATS_TEST_TMPDIR/help"
    "$NETSRV_BIN" -h | cmp - "$BATS_TEST_TMPDIR/help"
    grep -q '^usage: netsrv' "$BATS_TEST_TMPDIR/help"
    for topic in $(sed -n 's/^topics: //p' "$BATS_TEST_TMPDIR/help") ''; do
        "$NETSRV_BIN" --help $topic >"$BATS_TEST_TMPDIR/topic"
        awk -v t="$topic" 'length > 80 { print t ": too wide: " $0; bad = 1 }
             END { if (NR > 24 || NR < 3) { print t ": " NR " lines"; bad = 1 } exit bad }' \
            "$BATS_TEST_TMPDIR/topic"
    done
    wrong topic --help nosuch
}

@test "every option that the help shows is understood, and is in the manual page" {
    local option topic
    for topic in modes listen threads accept place limits timeouts output; do
        "$NETSRV_BIN" --help $topic
    done | grep -o -E '^ +(-[a-z], )?--[a-z-]+' | grep -o -E -- '--[a-z-]+' | sort -u \
        >"$BATS_TEST_TMPDIR/options"
    [ "$(wc -l <"$BATS_TEST_TMPDIR/options")" -gt 30 ]
    while read -r option; do
        grep -q -x -E "\.It (Fl [a-z] .*, )?Fl Fl ${option#--}( .*)?" "$ROOT/cli/netsrv.1" ||
            fail "$option: not in the page"
        "$NETSRV_BIN" --help options | grep -q -F -e " $option" || fail "$option: not in the list"
    done <"$BATS_TEST_TMPDIR/options"
}

@test "--version prints the version of the header" {
    [ "$("$NETSRV_BIN" --version)" = "netsrv $(sed -n 's/^#define NETSRV_VERSION *"\(.*\)"/\1/p' \
        "$ROOT/netsrv.h")" ]
}

@test "output that cannot be written is an error" {
    [ -w /dev/full ] || skip "no /dev/full here"
    run "$NETSRV_BIN" --help >/dev/null
    [ "$status" = 0 ]
    if "$NETSRV_BIN" --help >/dev/full 2>/dev/null; then
        fail "--help"
    fi
    if "$NETSRV_BIN" --version >/dev/full 2>/dev/null; then
        fail "--version"
    fi
}

@test "the first line says where it listens and how" {
    server echo -w 3 -b epoll -a exclusive -p least
    [ "$(head -n 1 "$DIR/err")" = \
        "netsrv: listening on $ADDR (backend=epoll, accept=exclusive, place=least, workers=3)" ]
    [ ! -s "$DIR/out" ]
    stop
}

@test "-q is silent, -v says what was chosen and why" {
    server echo -w 2 -q
    client -q "$ADDR" C Sx Rx F E
    stop
    [ ! -s "$DIR/err" ]
    server echo -w 2 -v
    local field
    for field in backend accept place transfer; do
        grep -q "$field: asked auto, taken [a-z_]*: ." "$DIR/err"
    done
    stop
}

@test "--port-file appears whole, when clients can already connect" {
    local i
    for i in 1 2 3 4 5; do
        server echo -w 2
        client -q "$ADDR" C Sx Rx F E
        [ "$(cat "$DIR/port")" = "$PORT" ]
        [ "$(ls -A "$(dirname "$(readlink "$DIR/port")")")" = port ]
        stop
    done
}

@test "--port-file that cannot be written: exit 1, one line, nothing left" {
    spawn "$NETSRV_BIN" echo -q -l "$HOST:0" --port-file /no/such/dir/port
    [ "$(exit_code "$DIR")" = 1 ]
    grep -q '/no/such/dir/port' "$DIR/err"
    [ "$(wc -l <"$DIR/err")" = 1 ]
    clean "$DIR"
}

@test "--ready-fd: one line with the address, then the end of it" {
    local dir
    dir=$(new_dir ready)
    mkfifo "$dir/fifo"
    spawn bash -c 'exec 7>"$1"; shift; exec "$@"' - "$dir/fifo" "$NETSRV_BIN" echo -l "$HOST:0" \
        --ready-fd 7 -w 2
    # cat ends when the server has closed its end.
    timeout "$DEADLINE" cat "$dir/fifo" >"$dir/text"
    grep -E -q "^ready $HOST:[0-9]+\$" "$dir/text"
    client -q "$(sed 's/ready //' "$dir/text")" C Sx Rx F E
    stop
    wrong ready-fd echo --ready-fd 9
}

@test "--json: every line of numbers is valid JSON and has all counters" {
    local name
    server echo -w 2 -a acceptor --acceptors 2 --stats
    client -q -n 20 "$ADDR" C Sx Rx F E
    until_true all_closed
    more() { [ "$(stats_lines)" -ge 3 ]; }
    until_true more
    stop
    grep '^{' "$DIR/err" | "$JSON"
    grep '^{' "$DIR/err" | "$JSON" event | grep -q -x stats
    for name in uptime_ms live imbalance $(sed -n '/define NETSRV_STATS/,/^$/s/^ *X(\([a-z_]*\),.*/\1/p' \
        "$ROOT/netsrv.h"); do
        grep '^{' "$DIR/err" | "$JSON" "$name" >/dev/null || fail "$name"
    done
    [ "$(grep '^{' "$DIR/err" | "$JSON" 'workers.*.worker' | paste -s -d ' ')" = '0 1' ]
    [ "$(grep '^{' "$DIR/err" | "$JSON" 'acceptors.*.acceptor' | paste -s -d ' ')" = '0 1' ]
    [ "$(grep '^{' "$DIR/err" | "$JSON" accepted)" = 20 ]
    [ "$(grep '^{' "$DIR/err" | "$JSON" bytes_in)" = 20 ]
    [ "$(grep '^{' "$DIR/err" | "$JSON" bytes_out)" = 20 ]
}

@test "--stats and SIGUSR1 for people" {
    local file
    file=$(new_dir port)/port
    spawn "$NETSRV_BIN" echo -l "$HOST:0" --port-file "$file" -w 2
    until_true test -s "$file"
    client -q -n 3 "$HOST:$(cat "$file")" C Sx Rx F E
    kill -USR1 "$PID"
    both() { grep -q 'worker 0: ' "$DIR/err" && grep -q 'worker 1: ' "$DIR/err"; }
    until_true both
    grep -q -E '^netsrv: stats: .*accepted=3' "$DIR/err"
    stop
}

@test "numbers do not run away: what was opened is closed, bytes in are bytes out" {
    local b
    for b in epoll poll; do
        server echo -b $b -w 3
        client -q -n 50 "$ADDR" C D:12345 F E
        until_true all_closed
        [ "$(stats bytes_in)" = $((50 * 12345)) ]
        [ "$(stats bytes_out)" = $((50 * 12345)) ]
        [ "$(stats 'workers.*.bytes_in' | sum)" = $((50 * 12345)) ]
        stop
    done
}

@test "closed standard descriptors do no harm" {
    local file
    file=$(new_dir port)/port
    spawn bash -c 'exec 0<&- 1>&-; exec "$@"' - "$NETSRV_BIN" echo -l "$HOST:0" --port-file "$file" -w 1
    until_true test -s "$file"
    client -q "$HOST:$(cat "$file")" C Sx Rx F E
    stop
    file=$(new_dir port)/port
    spawn bash -c 'exec 2>&-; exec "$@"' - "$NETSRV_BIN" echo -l "$HOST:0" --port-file "$file" -w 1
    until_true test -s "$file"
    kill -USR1 "$PID"
    client -q "$HOST:$(cat "$file")" C Sx Rx F E
    stop
}

# Whoever read our messages is gone: the next message must not end the server.
@test "a reader of stderr that goes away does not end the server" {
    local file
    file=$(new_dir port)/port
    mkfifo "$BATS_TEST_TMPDIR/fifo"
    spawn bash -c 'exec 2>"$1"; shift; exec "$@"' - "$BATS_TEST_TMPDIR/fifo" "$NETSRV_BIN" echo \
        -l "$HOST:0" --port-file "$file" -w 1
    head -n 1 "$BATS_TEST_TMPDIR/fifo" >/dev/null
    until_true test -s "$file"
    kill -USR1 "$PID"
    client -q "$HOST:$(cat "$file")" C Sx Rx F E
    kill -TERM "$PID"
    [ "$(exit_code "$DIR")" = 0 ]
}
