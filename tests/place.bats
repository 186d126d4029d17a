# Who gets a connection, and how evenly: 1000 long-lived connections for each way of placing.

source "${BATS_TEST_FILENAME%/*}/helper.bash"

# spread OPTIONS: 1000 clients stay; LIVE holds the connections of each worker. Without stall, since
# a busy machine may well keep a worker from running for that long.
spread() {
    server echo -w 4 --stall off "$@"
    hold 1000 -p 1000 -- C Shello Rhello U F E
    LIVE=$(stats 'workers.*.live')
    echo "$* -> $(paste -s -d ' ' <<<"$LIVE"), imbalance $(stats imbalance) %"
    [ "$(sum <<<"$LIVE")" = 1000 ]
    let_go
    until_true all_closed
    stop
}

# for_accepts PLACE CHECK: under every way of accepting that can hand over.
for_accepts() {
    local a
    for a in single acceptor shared exclusive edge reuseport; do
        spread -b epoll -a $a -p "$1"
        "$2" || fail "$a $1: $(paste -s -d ' ' <<<"$LIVE")"
    done
    spread -b poll -a single -p "$1"
    "$2"
    spread -b epoll -a acceptor --acceptors 4 -p "$1" --transfer direct
    "$2"
}

at_most_one_apart() { (($(max <<<"$LIVE") - $(min <<<"$LIVE") <= 1)); }
at_most_five_apart() { (($(max <<<"$LIVE") - $(min <<<"$LIVE") <= 1 + 4)); }
at_most_mean_plus_five() { (($(max <<<"$LIVE") <= 250 + 5)); }

@test "round_robin: max - min is at most 1" {
    for_accepts round_robin at_most_one_apart
}

@test "least: max - min is at most 1 + workers" {
    for_accepts least at_most_five_apart
}

@test "two_choices: max is at most mean + 5" {
    for_accepts two_choices at_most_mean_plus_five
}

# worker_of FILE: the worker that each client named, in the order of the clients.
worker_of() {
    sed -n 's/^\([0-9]*\): C S[0-9]* L"\([0-9]*\)\\n".*/\1 \2/p' "$1" |
        awk '{ for (i = 0; i < $1; i++) print $2 }'
}

@test "peer_hash: an address has one worker, whoever accepts, and 49 of them spread" {
    local options
    for options in '-a single' '-a acceptor --acceptors 2' '-a exclusive' '-a reuseport' \
        '-b poll -a shared' '-a acceptor --transfer direct'; do
        server line --commands -w 4 -p peer_hash $options
        client -n 490 -b 127.0.0.2-50 "$ADDR" C 'S/worker\n' L F E >"$BATS_TEST_TMPDIR/t"
        worker_of "$BATS_TEST_TMPDIR/t" >"$BATS_TEST_TMPDIR/w"
        [ "$(wc -l <"$BATS_TEST_TMPDIR/w")" = 490 ]
        # Each address, ten times: one worker.
        awk '{ a = (NR - 1) % 49; if (a in w && w[a] != $1) { print "address", a; exit 1 } w[a] = $1 }' \
            "$BATS_TEST_TMPDIR/w"
        sort "$BATS_TEST_TMPDIR/w" | uniq -c
        [ "$(sort -u "$BATS_TEST_TMPDIR/w" | wc -l)" = 4 ]
        stop
    done
}

@test "mailbox and direct give the same transcript" {
    local t out
    for t in mailbox direct; do
        server echo -b epoll -a acceptor -p round_robin -w 3 --transfer $t
        {
            client -n 30 "$ADDR" C 'Sa\n' 'Ra\n' D:20000 Sbye Rbye F E
            client -n 30 "$ADDR" C H:50000 E
            client -n 5 "$ADDR" C F E
            client -n 30 "$ADDR" C Sx F Rx E
        } >"$BATS_TEST_TMPDIR/$t"
        [ "$(stats received)" = 95 ]
        stop
    done
    cmp "$BATS_TEST_TMPDIR/mailbox" "$BATS_TEST_TMPDIR/direct"
}

# A worker that is held up by its handler gets nobody while others are free.
@test "a stalled worker gets no new connections" {
    local p t
    for p in round_robin least two_choices; do
        for t in mailbox direct; do
            server line --commands -b epoll -a acceptor -w 2 -p $p --transfer $t --stall 50
            hold 1 -- C 'S/worker\n' L 'S/sleep 600000\n' U 'Rok\n' F E
            until_true stalled
            kill -KILL "$PID"
            exec 9>&-
            reap
        done
    done
}

# All newcomers are answered although the sleeper's worker cannot answer. Not the first ones, who come
# before it is known to be stalled, nor when the other one has had to wait for a processor.
stalled() { "$CLIENT" -q -d 1000 -n 40 "$ADDR" C 'Sa\n' 'Ra\n' F E 2>/dev/null; }

@test "a full mailbox loses nobody" {
    server echo -b epoll -a acceptor -w 2 -p round_robin --mailbox-max 1
    freeze
    hold 1000 -- C Shello U Rhello F E
    thaw
    let_go
    until_true all_closed
    [ "$(stats opened)" = 1000 ]
    stop
    server echo -b epoll -a exclusive -w 4 -p round_robin --mailbox-max 1
    freeze
    hold 1000 -- C Shello U Rhello F E
    thaw
    let_go
    until_true all_closed
    echo "kept because of a full mailbox: $(stats kept_full)"
    [ "$(stats opened)" = 1000 ]
    stop
}

# The client ends while its connection still travels: counted once, closed once.
@test "a client that is gone before its worker has it leaves no trace in the numbers" {
    local t
    for t in mailbox direct; do
        server echo -b epoll -a acceptor -p least -w 4 --transfer $t
        client -q -n 3000 -p 100 "$ADDR" C X
        client -q -n 1000 -p 100 "$ADDR" C K
        until_true all_closed
        until_true stats_are travelling 0
        until_true stats_are 'workers.*.live' '0 0 0 0'
        stop
    done
}
