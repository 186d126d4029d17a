# Timeouts: never early (exact), and not never.

source "${BATS_TEST_FILENAME%/*}/helper.bash"

# with_backends COMMAND: for each of them, options in $O.
with_backends() {
    for O in '-b epoll -a exclusive -w 2' '-b poll -a single -p round_robin -w 2' '-b epoll -w 1'; do
        echo "with $O"
        "$@"
    done
}

# A client that a busy machine keeps from running for that long is idle indeed: it tries again.
talks() { client -q -n 5 "$ADDR" C P:150 Shello Rhello A:150 [:4 P:200 Sx Rx ] A:800 Z A:400; }

idle() {
    server echo --idle-timeout 400 $O
    client -q -n 5 "$ADDR" C Z A:400 &
    local silent=$!
    until_true talks
    wait $silent
    until_true all_closed
    quiet "$PID"
    stop
}

@test "--idle-timeout: never early, postponed by every byte, and nothing ticks afterwards" {
    with_backends idle
}

@test "--idle-timeout: many connections, many times" {
    talk() { client -q -n 500 "$ADDR" C Sx Rx Z A:300; }
    server echo --idle-timeout 300 -w 2
    until_true talk
    until_true all_closed
    [ "$(stats closed)" -ge 500 ]
    stop
}

@test "--idle-timeout: a client that only receives is not idle" {
    receives() { client -q -c 4096 "$ADDR" V:4096 C [:20 M:100000 P:60 ] K; }
    server chargen --idle-timeout 400 -w 1 --high-mark 16k
    until_true receives
    stop
}

# What counts is what the kernel accepts, which takes more when a third of its buffer is free, of 4 MB
# at most.
takes() { client -q -n 3 "$ADDR" V:65536 C [:12 M:1000000 P:100 ] K; }

write_timeout() {
    server chargen --write-timeout 500 $O
    client -q -n 3 "$ADDR" V:4096 C W P:100 A:0 P:400 K &
    local left=$!
    until_true takes
    wait $left
    until_true all_closed
    hold 3 -- V:4096 C W U X
    until_true all_closed
    let_go
    stop
}

@test "--write-timeout: ends who takes nothing, not who is slow" {
    with_backends write_timeout
}

# The clock of the server starts after that of the client, so its 600 ms end later than 600 ms here.
@test "--write-timeout: never early" {
    local from
    server chargen --write-timeout 600 -w 1 --linger-timeout off --flush-timeout 1
    from=$(date +%s%N)
    hold 1 -- V:4096 C U X
    until_true all_closed
    [ $((($(date +%s%N) - from) / 1000000)) -ge 600 ]
    let_go
    stop
}

# The reply is far larger than the buffers, the rest of the input is never read: a plain close would
# reset the connection and destroy the reply under way.
lingers() {
    server line --commands $O
    client -q -n 5 -d 15000 "$ADDR" C 'S/send 300000\n/close\n' s:50000 P:50 M:300001 E
    until_true all_closed
    stop
}

@test "a close with unread input lingers: the whole reply arrives, then FIN" {
    with_backends lingers
}

@test "--linger-timeout: a client that does not finish is not waited for much longer" {
    local from
    server line --commands -w 1 --linger-timeout 500
    from=$(date +%s%N)
    hold 3 -- C 'S/close\n' E U
    [ "$(stats live)" -le 3 ]
    until_true all_closed
    [ $((($(date +%s%N) - from) / 1000000)) -ge 500 ]
    let_go
    quiet "$PID"
    stop
}

@test "--linger-timeout off: closed at once" {
    server line --commands -w 1 --linger-timeout off
    hold 3 -- C 'S/close\n' E U
    until_true all_closed
    let_go
    stop
}

@test "--flush-timeout: who takes none of the queued output is not waited for for ever" {
    local from
    server line --commands -w 1 --flush-timeout 500 --linger-timeout off --high-mark 20m --queue-max 20m
    from=$(date +%s%N)
    hold 2 -- V:4096 C 'S/send 16000000\n/close\n' W U X
    until_true all_closed
    [ $((($(date +%s%N) - from) / 1000000)) -ge 500 ]
    let_go
    stop
}

@test "--grace: a client that never reads does not hold up the stop, nor is it cut early" {
    local from b
    for b in epoll poll; do
        server chargen -b $b -w 2 --grace 700
        hold 3 -- V:4096 C W U X
        from=$(date +%s%N)
        kill -TERM "$PID"
        [ "$(exit_code "$DIR")" = 0 ]
        [ $((($(date +%s%N) - from) / 1000000)) -ge 700 ]
        clean "$DIR"
        let_go
    done
}

@test "--grace 0: at once" {
    server chargen -w 2 --grace 0
    hold 3 -- V:4096 C W U Z
    kill -TERM "$PID"
    until_true ended "$DIR"
    [ "$(cat "$DIR/rc")" = 0 ]
    clean "$DIR"
    let_go
}
