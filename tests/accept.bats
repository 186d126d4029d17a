# What each way of accepting is known for, shown and not assumed.

source "${BATS_TEST_FILENAME%/*}/helper.bash"

# cost_of ACCEPT: WAKES, how often threads woke up for 200 clients one after the other, and WASTED,
# how often a worker came to the listener and found nobody. The kernel sends a thread back to sleep
# by itself if another was quicker, so the first number has the truth and the second a part of it.
cost_of() {
    server echo -b epoll -a "$1" -p keep -w 4 && quiet "$PID" || return 1
    WAKES=$(switches "$PID")
    client -q -n 200 -i 4 "$ADDR" C Sx Rx P:50 K || return 1
    WAKES=$(($(switches "$PID") - WAKES))
    WASTED=$(stats wasted)
    until_true all_closed && stop
}

exclusive_is_cheaper() {
    local wakes
    cost_of shared || return 1
    wakes=$WAKES
    cost_of exclusive || return 1
    echo "200 clients: shared $wakes wake-ups, exclusive $WAKES, of these seen as wasted $WASTED"
    ((WAKES * 3 <= wakes * 2 && WASTED <= 10))
}

# Where other programs keep the workers from running, clients meet in the queue, and one wake-up is
# for several: then once more.
@test "shared wastes wake-ups with spaced clients and 4 workers, exclusive does not" {
    DEADLINE=60 until_true exclusive_is_cheaper
}

# With two clients at once and 4 workers that all wake up, some find the place empty; how many is a
# matter of the scheduler, so it has a few seconds to happen.
@test "shared: the counter shows wasted wake-ups" {
    server echo -b epoll -a shared -p keep -w 4
    some_wasted() {
        client -q -n 1000 -p 2 "$ADDR" C K
        [ "$(stats wasted)" -gt 0 ]
    }
    until_true some_wasted
    stop
}

@test "exclusive rotates: with spaced clients every worker gets some" {
    DEADLINE=60 until_true everybody_gets_some
}

everybody_gets_some() {
    local accepted
    server echo -b epoll -a exclusive -p keep -w 4 && hold 200 -i 6 -- C Shello Rhello U F E || return 1
    accepted=$(stats 'workers.*.accepted')
    echo "accepted: $(paste -s -d ' ' <<<"$accepted")"
    let_go && stop && [ "$(min <<<"$accepted")" -ge 10 ]
}

# burst_of N OPTIONS: the clients connect while the server stands still, so that one wake-up and one
# edge has to do for all of them. No other client comes to help.
burst_of() {
    local n=$1
    shift
    server echo "$@" --accepts-per-turn 4
    freeze
    hold "$n" -d 30000 -- C Shello U Rhello F E
    thaw
    let_go
    until_true all_closed
    [ "$(stats accepted)" = "$n" ]
    stop
}

@test "edge strands nobody of a burst that waited in the queue" {
    burst_of 3000 -b epoll -a edge -p keep -w 4
}

@test "acceptor with trigger edge strands nobody of a burst that waited in the queue" {
    burst_of 3000 -b epoll -a acceptor --trigger edge --acceptors 4 -w 4
    burst_of 3000 -b epoll -a acceptor --trigger edge --acceptors 1 -w 4
}

@test "acceptor with trigger oneshot strands nobody of a burst that waited in the queue" {
    burst_of 3000 -b epoll -a acceptor --trigger oneshot --acceptors 4 -w 4
}

# ten_thousand OPTIONS: more than the queue holds, all at once.
ten_thousand() {
    local n=9500 DEADLINE=$((60 * ${CHECK_SCALE:-1}))
    if (($(ulimit -Hn) < 10000)); then
        skip "only $(ulimit -Hn) descriptors a process"
    fi
    server echo "$@" --accepts-per-turn 4
    hold $n -d 60000 -- C Shello Rhello U F E
    [ "$(stats live)" = $n ]
    let_go
    until_true all_closed
    [ "$(stats accepted)" = $n ]
    stop
}

@test "edge: 10,000 connections at once, none stranded" {
    ten_thousand -b epoll -a edge -p keep -w 4
}

@test "acceptor with trigger edge: 10,000 connections at once, none stranded" {
    ten_thousand -b epoll -a acceptor --trigger edge --acceptors 2 -w 4
}

@test "acceptor with trigger oneshot and 4 threads: none accepted twice, none lost" {
    server echo -b epoll -a acceptor --trigger oneshot --acceptors 4 -w 4
    client -q -n 4000 -p 100 "$ADDR" C Sx Rx F E
    until_true all_closed
    [ "$(stats accepted)" = 4000 ]
    [ "$(stats opened)" = 4000 ]
    [ "$(stats 'acceptors.*.accepted' | sum)" = 4000 ]
    stop
}

@test "acceptor: the workers accept nothing themselves" {
    local b
    for b in epoll poll; do
        server echo -b $b -a acceptor -w 3
        client -q -n 60 "$ADDR" C Sx Rx F E
        [ "$(stats 'workers.*.accepted' | sum)" = 0 ]
        [ "$(stats 'workers.*.received' | sum)" = 60 ]
        [ "$(stats 'acceptors.*.accepted' | sum)" = 60 ]
        stop
    done
}

@test "single: worker 0 accepts for all" {
    server echo -a single -p round_robin -w 3 --stall off
    client -q -n 60 "$ADDR" C Sx Rx F E
    [ "$(stats 'workers.0.accepted')" = 60 ]
    [ "$(stats 'workers.*.opened' | paste -s -d ' ')" = '20 20 20' ]
    stop
}

@test "keep: who accepts serves" {
    local a
    for a in shared exclusive edge reuseport; do
        server echo -b epoll -a $a -p keep -w 4
        client -q -n 200 "$ADDR" C Sx Rx F E
        [ "$(stats 'workers.*.accepted')" = "$(stats 'workers.*.opened')" ]
        [ "$(stats given)" = 0 ]
        stop
    done
}

@test "reuseport: the kernel spreads clients over the workers" {
    local b
    for b in epoll poll; do
        server echo -b $b -a reuseport -w 4
        hold 400 -- C Shello Rhello U F E
        echo "accepted: $(stats 'workers.*.accepted' | paste -s -d ' ')"
        [ "$(stats 'workers.*.accepted' | min)" -ge 40 ]
        let_go
        stop
    done
}

@test "reuseport: a second start on the same port fails, as for every other way" {
    local a port
    for a in reuseport exclusive; do
        server echo -a $a -w 2
        port=$PORT
        first=$DIR
        spawn "$NETSRV_BIN" echo -a $a -w 2 -l "$HOST:$port"
        [ "$(exit_code "$DIR")" = 1 ]
        grep -q -i "$HOST:$port.*in use" "$DIR/err"
        [ "$(wc -l <"$DIR/err")" = 1 ]
        stop "$first"
    done
}

@test "reuseport: with --share-port two servers have the port, and both serve" {
    local first first_pid second second_pid
    server echo -a reuseport -w 2 --share-port
    first=$DIR first_pid=$PID
    LISTEN=$ADDR server echo -a reuseport -w 2 --share-port
    second=$DIR second_pid=$PID
    client -q -n 200 "$ADDR" C Sx Rx F E
    DIR=$first PID=$first_pid
    [ "$(stats accepted)" -gt 0 ]
    DIR=$second PID=$second_pid
    [ "$(stats accepted)" -gt 0 ]
    stop "$first"
    stop "$second"
}

@test "reuseport: --share-port does not open the port to a server without it" {
    local first
    server echo -a reuseport -w 2 --share-port
    first=$DIR
    spawn "$NETSRV_BIN" echo -a reuseport -w 2 -l "$ADDR"
    [ "$(exit_code "$DIR")" = 1 ]
    stop "$first"
}

# The kernel gives a connection to one of the sockets of the port when its handshake begins. When
# one of two servers stops, what waits in its own queue is served; the other one has the rest.
@test "reuseport: of two servers on a port one stops under load and no client that was in loses" {
    local first second
    server echo -a reuseport -w 2 --share-port
    first=$DIR
    LISTEN=$ADDR server echo -a reuseport -w 2 --share-port
    second=$DIR
    client -q -n 3000 -p 40 -k "$(cat "$first/pid")" -a 800 "$ADDR" C 'Shello\n' 'Rhello\n' F E
    stopped "$first"
    client -q -n 200 "$ADDR" C Sx Rx F E
    stop "$second"
}

@test "reuseport with --steer-by-cpu: the CPU of the client chooses the worker" {
    command -v taskset >/dev/null || skip "no taskset here"
    taskset -c 1 true 2>/dev/null || skip "one CPU only"
    server echo -b epoll -a reuseport -w 2 --steer-by-cpu
    taskset -c 1 "$CLIENT" -q -n 50 "$ADDR" C Sx Rx F E
    echo "accepted: $(stats 'workers.*.accepted' | paste -s -d ' ')"
    [ "$(stats workers.1.accepted)" = 50 ]
    taskset -c 0 "$CLIENT" -q -n 50 "$ADDR" C Sx Rx F E
    [ "$(stats workers.0.accepted)" = 50 ]
    stop
}

# A steering program that names no socket must not lose clients: more CPUs than workers, and fewer.
@test "reuseport with --steer-by-cpu serves with any number of workers" {
    local w
    for w in 1 2 3 5; do
        server echo -b epoll -a reuseport -w $w --steer-by-cpu
        client -q -n 60 "$ADDR" C Sx Rx F E
        stop
    done
}

@test "auto: what is taken is printed, and serves" {
    server echo -w 4
    grep -E "^netsrv: listening on $HOST"':[0-9]+ \(backend=[a-z_]+, accept=[a-z]+, place=[a-z_]+, workers=4\)$' \
        "$DIR/err"
    not grep -q '=auto' "$DIR/err"
    client -q -n 50 "$ADDR" C Sx Rx F E
    stop
    server echo -w 1
    grep -q 'accept=single, place=keep, workers=1' "$DIR/err"
    stop
}

# bad_pair WORD OPTIONS...: refused with one line that has the word and names a remedy.
bad_pair() {
    local word=$1
    shift
    spawn "$NETSRV_BIN" echo -l "$HOST:0" "$@"
    local code
    code=$(exit_code "$DIR")
    cat "$DIR/err"
    { [ "$code" = 1 ] || [ "$code" = 2 ]; } && [ "$(wc -l <"$DIR/err")" = 1 ] &&
        grep -q -- "$word" "$DIR/err"
}

@test "every pair that cannot work is refused by name, with what to do instead" {
    local b a p
    for b in epoll poll; do
        for a in "${ACCEPTS[@]}"; do
            for p in "${PLACES[@]}"; do
                if ! possible $b $a $p; then
                    bad_pair "$a" -b $b -a $a -p $p -w 4 || fail "$b $a $p"
                fi
            done
        done
    done
    bad_pair direct -b poll -a shared -p least --transfer direct -w 4
    bad_pair trigger -b poll -a acceptor --trigger edge -w 4
    bad_pair trigger -b poll -a acceptor --trigger oneshot -w 4
    bad_pair acceptors -b poll -a acceptor --acceptors 2 -w 4
}

@test "backends that are not here are refused by name" {
    local b
    for b in io_uring kqueue; do
        if backends | grep -q -x $b; then
            continue
        fi
        bad_pair $b -b $b
    done
}

@test "every way of accepting also has the client that leaves before it is accepted" {
    local a
    for a in "${ACCEPTS[@]}"; do
        server echo -b epoll -a $a -p round_robin -w 4
        freeze
        client -q -n 50 "$ADDR" C X
        client -q -n 50 "$ADDR" C Shello X
        client -q -n 50 "$ADDR" C Shello F K
        thaw
        client -q "$ADDR" C Sx Rx F E
        until_true all_closed
        stop
    done
}
