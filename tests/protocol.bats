# The edges of the protocol, on each backend: ends, resets, lines.

source "${BATS_TEST_FILENAME%/*}/helper.bash"

with_backends() {
    for O in '-b epoll -a exclusive -w 2' '-b poll -a single -p round_robin -w 2'; do
        echo "with $O"
        "$@"
    done
}

data_with_end() {
    server echo $O
    client -q -n 200 "$ADDR" C 'Sx\n' F 'Rx\n' E
    client -q -n 10 "$ADDR" C s:60000 F r:60000 E
    stop
}

@test "bytes that come together with the FIN are answered" {
    with_backends data_with_end
}

paused_reset() {
    server echo $O --high-mark 32k
    hold 5 -- V:4096 C Y:50000000 U X
    quiet "$PID"
    let_go
    until_true all_closed
    quiet "$PID"
    stop
}

@test "a reset is noticed while reading is paused, and nothing spins before or after" {
    with_backends paused_reset
}

half_closed_reset() {
    server line --commands $O --high-mark 32k
    hold 5 -- V:4096 C 'S/send 9000000\n' F W U X
    quiet "$PID"
    let_go
    until_true all_closed
    quiet "$PID"
    stop
}

@test "a reset is noticed on a half-closed connection with output waiting, and nothing spins" {
    with_backends half_closed_reset
}

slow_half_close() {
    server line --commands $O
    client -q -c 8192 "$ADDR" V:8192 C 'S/send 3000000\n' F [:30 M:100000 P:5 ] M:1 E
    stop
}

@test "after a half-close a long reply arrives whole, to a slow reader" {
    with_backends slow_half_close
}

# It may take more than the timeout's time until the client looks: then it looks again.
stays() { client -q "$ADDR" C 'Shello\n' F 'Rhello\n' N:200 Z A:500; }

eof_keep() {
    server line --commands $O --eof keep --idle-timeout 500
    until_true stays
    stop
}

@test "--eof keep: the connection stays after the client's FIN until a timeout or the program ends it" {
    with_backends eof_keep
}

lines() {
    server line $O
    client -q "$ADDR" C 'Sa\nbb\nccc\n' 'Ra\nbb\nccc\n' F E
    client -q "$ADDR" C Sab N:30 Scd N:30 'Se\nf' 'Rabcde\n' N:30 'Sg\n' 'Rfg\n' F E
    client -q "$ADDR" C 'Sab\r' N:30 'S\ncd\r\n' 'Rab\r\ncd\r\n' F E
    client -q "$ADDR" C 'S\n\n\r\n\n' 'R\n\n\r\n\n' F E
    client -q "$ADDR" C 'Sa\rb\n' 'Ra\rb\n' F E
    client -q "$ADDR" C 'S\x00\xff\x00\n\xff' F 'R\x00\xff\x00\n\xff' E
    client -q "$ADDR" C 'Slast' F 'Rlast' E
    client -q "$ADDR" C 'Sone\nlast\r' F 'Rone\nlast\r' E
    client -q "$ADDR" C F E
    stop
}

@test "lines: several in a segment, one in several, CR and LF apart, NUL and 0xFF, last without end" {
    with_backends lines
}

many_lines() {
    local thousand
    thousand=$(printf '\\n%.0s' {1..1000})
    server line $O
    client -q -n 4 -l "$ADDR" C H:600000 E &
    local streams=$!
    client -q "$ADDR" C [:100 "S$thousand" "R$thousand" ] F E
    wait $streams
    client -q -n 4 -l -c 3 "$ADDR" C H:1000 E
    stop
}

@test "lines: many, in any chunks, and 100,000 empty ones" {
    with_backends many_lines
}

slow_line() {
    server line $O
    client -q -n 20 "$ADDR" C [:20 Sx P:20 ] N:1 'S\n' 'Rxxxxxxxxxxxxxxxxxxxx\n' F E &
    local slow=$!
    client -q -n 50 "$ADDR" C [:10 'Shello\n' 'Rhello\n' ] F E
    wait $slow
    stop
}

@test "a client that sends byte by byte delays nobody" {
    with_backends slow_line
}

pipeline() {
    server line $O --bytes-per-turn 4k
    local many
    many=$(printf 'x\\n%.0s' {1..2000})
    client -q -n 3 "$ADDR" C [:20 "S$many" "R$many" ] F E &
    local busy=$!
    client -q -n 20 "$ADDR" C [:20 'Shello\n' 'Rhello\n' ] F E
    wait $busy
    stop
}

@test "a long pipeline of short lines shares its worker" {
    with_backends pipeline
}

commands() {
    server line --commands $O
    client "$ADDR" C 'S/worker\n' L 'S/id\n' L 'S/peer\n' L 'Splain\n' 'Rplain\n' F E |
        grep -E 'L"[01]\\n" S4 L"[1-9][0-9]*\\n" S6 L"127.0.0.1:[0-9]+\\n" S6'
    client -q "$ADDR" C 'S/send 5\n' 'Rxxxxx\n' 'S/sleep 1\n' 'Rok\n' F E
    client -q "$ADDR" C 'Sbefore\n/close\nafter\n' 'Rbefore\n' E
    client -q "$ADDR" C 'S/abort\n' T
    client "$ADDR" C 'S/nonsense\n' L 'S/send x\n' L 'S/send\n' L F E >"$BATS_TEST_TMPDIR/t"
    [ "$(grep -o 'L"error:' "$BATS_TEST_TMPDIR/t" | wc -l)" = 3 ]
    client -q -n 5 "$ADDR" C 'S/send 1000000\n' M:1000001 'Sdone\n' 'Rdone\n' F E
    [ "$(client -q "$ADDR" C 'S/stats\n' F G | "$JSON" live)" = 1 ]
    stop
}

@test "line --commands: each command" {
    with_backends commands
}

@test "echo, line, discard, chargen, daytime" {
    server discard -w 1
    client -q -n 5 "$ADDR" C s:200000 F E
    stop
    server chargen -w 1
    client -q "$ADDR" C G:14060 K >"$BATS_TEST_TMPDIR/chargen"
    # Two whole rounds of the pattern: 95 lines of 72 characters, each one shifted by one.
    awk 'BEGIN { for (i = 0; i < 190; i++) { for (k = 0; k < 72; k++) printf "%c", 32 + (i + k) % 95
                 printf "\r\n" } }' >"$BATS_TEST_TMPDIR/pattern"
    cmp "$BATS_TEST_TMPDIR/chargen" "$BATS_TEST_TMPDIR/pattern"
    stop
    server daytime -w 1
    client -q "$ADDR" C G E | grep -q -E "20[0-9][0-9] [0-9:]{8}"
    client -q -n 50 "$ADDR" C W M E
    stop
}

@test "--banner greets, --delay delays" {
    server echo -w 1 --banner 'hello there' --delay 150
    client -q "$ADDR" C 'Rhello there\n' Sx Rx A:150 F E
    stop
    server line -w 2 -a acceptor -p round_robin --banner hi --delay 5
    client -q -n 20 "$ADDR" C 'Rhi\n' 'Sa\nb\n' 'Ra\nb\n' F E
    stop
}

@test "--defer-accept and --fast-open and --keepalive and --nagle serve" {
    server echo -w 2 --defer-accept 1 --keepalive 10 --nagle
    client -q -n 20 "$ADDR" C Sx Rx F E
    client -q -n 5 "$ADDR" C F E
    stop
    server echo -w 2 --fast-open 16 --pin --events-per-wait 1 --recv-buffer 4k
    client -q -n 50 "$ADDR" C D:30000 F E
    stop
}

# Threads that handle nothing must not be woken by the load of others.
@test "an idle server makes no system call (strace)" {
    command -v strace >/dev/null || skip "no strace here; the count of wake-ups is checked everywhere"
    strace -o /dev/null true 2>/dev/null || skip "strace may not trace here"
    [ -z "$VARIANT" ] || skip "not with a sanitizer, which has threads of its own"
    local b tracer
    for b in $(backends | grep -v kqueue); do
        server echo -b $b -w 4
        hold 20 -- C Shello Rhello U F E
        quiet "$PID"
        strace -f -qq -o "$BATS_TEST_TMPDIR/trace" -p "$PID" 3>&- &
        tracer=$!
        traced() { grep -q "^TracerPid:[[:space:]]*[1-9]" "/proc/$PID/status"; }
        until_true traced
        window 1
        kill -INT $tracer
        wait $tracer || true
        # What was begun before the tracer came is shown as unfinished or resumed: one a thread.
        if grep -v -E 'unfinished|resumed|restart_syscall|detached' "$BATS_TEST_TMPDIR/trace" |
            grep -v -E '(epoll_wait|epoll_pwait|poll|ppoll|futex|pause|read)\(.*( = \?|<detached)' | grep .; then
            fail "system calls of an idle server"
        fi
        let_go
        stop
    done
}
