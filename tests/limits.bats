# One test for each limit: what happens there, and that nothing is lost when it is over.

source "${BATS_TEST_FILENAME%/*}/helper.bash"

# every_accept COMMAND...: with the options of each way of accepting appended.
every_accept() {
    local a
    for a in "${ACCEPTS[@]}"; do
        echo "epoll $a"
        "$@" -b epoll -a $a -p round_robin -w 2
    done
    for a in single acceptor shared reuseport; do
        echo "poll $a"
        "$@" -b poll -a $a -p round_robin -w 2
    done
}

waits_for_place() {
    server echo --max-conns "$LIMIT" "$@"
    hold "$LIMIT" -- C Shello Rhello U F E
    client -q -n 20 -d 60000 "$ADDR" C Shello Rhello F E 2>"$BATS_TEST_TMPDIR/late" &
    local late=$!
    quiet "$PID"
    [ "$(stats live)" = "$LIMIT" ]
    let_go
    wait $late || fail "$(cat "$BATS_TEST_TMPDIR/late")"
    until_true all_closed
    stop
}

@test "--max-conns: further clients wait, without a wake-up, and are served when others leave" {
    LIMIT=5 every_accept waits_for_place
}

@test "--max-conns 1 is one at a time" {
    LIMIT=1 every_accept waits_for_place
}

# The workers' numbers are of different moments, in which a connection may have ended on one and the
# next one begun on another: none of them is ever above the limit, their sum may be.
@test "--max-conns: never more, whoever races for it" {
    server echo --max-conns 10 -a shared -w 4 -p round_robin -b epoll
    client -q -n 500 -p 50 -d 20000 "$ADDR" C Sx Rx F E &
    local pid=$! worst=0 live
    while kill -0 $pid 2>/dev/null; do
        live=$(stats 'workers.*.live' | max)
        worst=$((live > worst ? live : worst))
    done
    wait $pid
    echo "at most $worst live on a worker"
    ((worst <= 10))
    stop
}

rejects() {
    server echo --max-conns 3 --overflow reject "$@"
    hold 3 -- C Shello Rhello U F E
    client -q -n 10 "$ADDR" C T
    until_true stats_are refused 10
    let_go
    until_true all_closed
    client -q "$ADDR" C Sx Rx F E
    stop
}

@test "--max-conns with --overflow reject: a reset at once, and service again afterwards" {
    every_accept rejects
}

@test "--max-conns-per-ip: refused above it, others are not, and again when one leaves" {
    local options
    for options in '-a single -w 1' '-a exclusive -w 4' '-b poll -a reuseport -w 2'; do
        server echo --max-conns-per-ip 3 $options
        hold 3 -b 127.0.0.2 -- C Shello Rhello U F E
        client -q -n 5 -b 127.0.0.2 "$ADDR" C T
        client -q -n 3 -b 127.0.0.3 "$ADDR" C Sx Rx F E
        let_go
        until_true all_closed
        client -q -n 3 -b 127.0.0.2 "$ADDR" C Sx Rx F E
        stop
    done
}

@test "--max-conns-per-ip: many addresses at once" {
    server echo --max-conns-per-ip 2 -w 4
    hold 98 -b 127.0.0.2-50 -- C Shello Rhello U F E
    client -q -n 49 -b 127.0.0.2-50 "$ADDR" C T
    let_go
    until_true all_closed
    client -q -n 98 -b 127.0.0.2-50 "$ADDR" C Sx Rx F E
    stop
}

# At most a second's worth comes at once, so 90 clients at 30 a second need 2 s; never sooner.
@test "--max-accepts-per-second: nobody is lost, and the rate is kept" {
    local options from
    for options in '-a single -w 1' '-a exclusive -w 2' '-b poll -a acceptor -w 2'; do
        server echo --max-accepts-per-second 30 $options
        from=$(date +%s%N)
        client -q -n 90 -d 20000 "$ADDR" C Sx Rx F E
        [ $((($(date +%s%N) - from) / 1000000)) -ge 1900 ]
        stop
    done
}

@test "--max-line: a line as long as the limit passes, one byte more closes" {
    local fits over
    fits=$(printf 'x%.0s' {1..100})
    over=${fits}y
    for options in '-b epoll' '-b poll'; do
        server line --max-line 100 $options
        client -q "$ADDR" C "S$fits\n" "R$fits\n" "S$fits\r\n" "R$fits\r\n" F E
        client -q "$ADDR" C "S$fits" F "R$fits" E
        client -q "$ADDR" C "S$over\n" Z
        client -q "$ADDR" C "S$over" Z
        client -q "$ADDR" C "Shello\n" "Rhello\n" "S$over\n" Z
        # Whoever shares the server is not concerned.
        client -q "$ADDR" C "Shello\n" "Rhello\n" F E
        stop
    done
}

memory_kb() { awk '/^VmRSS/ { print $2 }' "/proc/$1/status"; }

@test "--max-line: an endless line does not take memory" {
    server line --max-line 4k -w 1
    client -q "$ADDR" C Shello F Rhello E
    hold 20 -- C "S$(printf 'x%.0s' {1..3000})" U X
    local before
    before=$(memory_kb "$PID")
    client -q -n 50 -c 4096 "$ADDR" C "S$(printf 'x%.0s' {1..5000})" Z
    [ -n "$VARIANT" ] || (($(memory_kb "$PID") - before < 2048))
    let_go
    stop
}

# 100 clients that read nothing of an endless stream: each queues up to the high mark and one more
# piece of the pattern. What counts is the memory of the pieces, at most twice that.
@test "--high-mark: clients that never read cost bounded memory and no CPU" {
    local piece=$((95 * 74)) queued b
    for b in epoll poll; do
        server chargen -b $b -w 2 --high-mark 64k
        hold 100 -- V:4096 C W U X
        quiet "$PID"
        queued=$(stats queued_bytes)
        echo "queued: $queued"
        ((queued <= 2 * 100 * (65536 + piece)))
        ((queued > 0))
        let_go
        until_true all_closed
        stats_are queued_bytes 0
        stop
    done
}

@test "--high-mark: an echo stops reading from a client that does not read" {
    local b
    for b in epoll poll; do
        server echo -b $b -w 1 --high-mark 64k
        hold 10 -- V:4096 C Y:50000000 U X
        quiet "$PID"
        (($(stats queued_bytes) <= 2 * 10 * (65536 + 65536)))
        client -q "$ADDR" C D:300000 F E
        let_go
        until_true all_closed
        stop
    done
}

# The pattern of chargen is sent in pieces of 7030 bytes until the high mark, so with a mark that is
# nearly the limit the last piece is one too many.
@test "--queue-max: the connection above it is closed, others are not" {
    server chargen -w 1 --high-mark 1m --queue-max 1m
    client -q -n 3 "$ADDR" C T
    until_true all_closed
    stop
    server chargen -w 1 --high-mark 1m --queue-max 1100k
    client -q -n 3 "$ADDR" C M:3000000 K
    stop
    server line --commands -w 1 --high-mark 64k --queue-max 128k
    client -q "$ADDR" C 'S/send 5000000\n' M:5000001 F E
    stop
}

@test "--server-queue-max: what all connections queue together is bounded" {
    server chargen -w 2 --high-mark 256k --queue-max 512k --server-queue-max 2m
    hold 50 -- V:4096 c P:300 U X
    local queued
    queued=$(stats queued_bytes)
    echo "queued: $queued, live: $(stats live)"
    ((queued <= 2 * 1024 * 1024 + 65536))
    let_go
    until_true all_closed
    client -q "$ADDR" C M:1000000 K
    stop
}

# A full table of descriptors: 32 for everything. Whoever is in is served; the rest waits, costs
# nothing, and is served as soon as somebody leaves.
full_table() {
    local limit=$1 late log
    shift
    local file
    file=$(new_dir port)/port
    spawn bash -c 'ulimit -n "$1" && shift && exec "$@"' - "$limit" "$NETSRV_BIN" echo \
        -l "$HOST:0" --port-file "$file" --json "$@"
    ln -s "$file" "$DIR/port"
    wait_ready "$DIR"
    PORT=$(cat "$DIR/port") ADDR=$HOST:$PORT
    hold 100 -d 30000 -- C Shello P:1 U Rhello F E
    cheap "$PID"
    echo "pauses: $(stats pauses), live: $(stats live), $LAST_CPU_NS ns in half a second"
    [ "$(stats pauses)" -gt 0 ]
    [ "$(stats live)" -lt 100 ]
    log=$(wc -l <"$DIR/err")
    ((log < 20)) || fail "$log lines on stderr: $(head -n 5 "$DIR/err")"
    let_go
    until_true all_closed
    [ "$(stats opened)" = 100 ]
    stop
}

@test "full descriptor table: no CPU, no flood of messages, everybody served in the end (epoll)" {
    local a
    for a in "${ACCEPTS[@]}"; do
        echo "$a"
        full_table 40 -b epoll -a $a -p round_robin -w 2
    done
}

@test "full descriptor table: no CPU, no flood of messages, everybody served in the end (poll)" {
    local a
    for a in single acceptor shared reuseport; do
        echo "$a"
        full_table 40 -b poll -a $a -p round_robin -w 2
    done
}

# The same from the point of view of those who wait: they are served as soon as others leave, not
# when some timer looks again. 1 s is for slow machines.
@test "full descriptor table: who waits is served when others leave" {
    local file
    file=$(new_dir port)/port
    spawn bash -c 'ulimit -n 64 && exec "$@"' - "$NETSRV_BIN" echo -l "$HOST:0" --port-file "$file" \
        --json -b epoll -a exclusive -p keep -w 2
    ln -s "$file" "$DIR/port"
    wait_ready "$DIR"
    PORT=$(cat "$DIR/port") ADDR=$HOST:$PORT
    paused() { [ "$(stats pauses)" -gt 0 ]; }
    hold 80 -- C Shello U F M
    until_true paused
    client -q -n 10 -d 20000 "$ADDR" C Shello Rhello F E &
    local late=$!
    let_go
    wait $late
    until_true all_closed
    stop
}
