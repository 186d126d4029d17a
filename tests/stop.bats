# Stopping: by signal and by command, idle and under load, once and twice; nobody who was in loses.

source "${BATS_TEST_FILENAME%/*}/helper.bash"

@test "SIGTERM and SIGINT: idle clients see FIN, exit 0" {
    local s b
    for b in epoll poll; do
        for s in TERM INT; do
            server echo -b $b -w 2
            hold 20 -- C Shello Rhello U E
            kill -$s "$PID"
            [ "$(exit_code "$DIR")" = 0 ]
            clean "$DIR"
            let_go
        done
    done
}

# The client starts connections until the signal is sent, in the same thread: whichever of them was
# established then must get its whole reply and a FIN. Later ones may be refused.
under_load() {
    server echo "$@"
    client -q -n 100000 -p 50 -k "$PID" -a 500 "$ADDR" C 'Shello\n' 'Rhello\n' F E ||
        fail "$*: $(tail -n 3 "$DIR/err")"
    [ "$(exit_code "$DIR")" = 0 ]
    clean "$DIR"
}

@test "a stop under load loses no connection that was established (epoll)" {
    local a p
    for a in "${ACCEPTS[@]}"; do
        for p in keep round_robin; do
            if possible epoll $a $p; then
                under_load -b epoll -a $a -p $p -w 4
            fi
        done
    done
}

@test "a stop under load loses no connection that was established (poll)" {
    local a
    for a in single acceptor shared reuseport; do
        under_load -b poll -a $a -p round_robin -w 3
    done
}

@test "a stop under load loses no connection that was established (direct)" {
    under_load -b epoll -a acceptor --acceptors 4 -p two_choices --transfer direct -w 4
    under_load -b epoll -a exclusive -p round_robin --transfer direct -w 4
}

# Clients that go on talking see every reply up to the FIN and never a reset.
@test "a stop in the middle of conversations ends them with FIN, not with a reset" {
    local options
    for options in '-b epoll -a exclusive -w 4' '-b poll -a single -p least -w 2' '-a reuseport -w 2'; do
        server line $options
        hold 50 -- C 'Sone\n' 'Rone\n' U Z
        client -q -n 20 "$ADDR" C [:20 'Shello\n' 'Rhello\n' ] F E
        kill -TERM "$PID"
        open_gate
        [ "$(exit_code "$DIR")" = 0 ]
        [ "$(exit_code "$HOLD_DIR")" = 0 ]
        clean "$DIR"
    done
}

@test "a long reply under way when the stop comes arrives whole" {
    local b
    for b in epoll poll; do
        server line --commands -b $b -w 2 --grace 20000
        hold 4 -d 20000 -- V:16384 C 'S/send 3000000\n' W U M:3000001 E
        kill -TERM "$PID"
        until_true refuses
        let_go
        [ "$(exit_code "$DIR")" = 0 ]
        clean "$DIR"
    done
}

refuses() { "$CLIENT" -q "$ADDR" Q 2>/dev/null; }

@test "while it drains, new clients are refused at once" {
    server line --commands -w 2 --grace 20000
    hold 1 -- V:4096 C 'S/send 5000000\n' W U M:5000001 E
    kill -TERM "$PID"
    until_true refuses
    [ ! -s "$DIR/rc" ]
    let_go
    [ "$(exit_code "$DIR")" = 0 ]
}

# Half a second is theirs: they were in before the stop and just had not spoken yet.
@test "who is connected but has not spoken yet is still served after the stop" {
    local options
    for options in '-b epoll -a exclusive -w 2' '-b poll -a single -p round_robin -w 2'; do
        until_true served_late $options
    done
}

# Where the clients did not run for so long, that proves nothing.
served_late() {
    server echo "$@" && hold 20 -- C U Shello Rhello E && stats_are live 20 || return 1
    kill -TERM "$PID"
    let_go && stopped
}

@test "a second signal stops at once: exit 143 and 130" {
    local s code
    for s in TERM:143 INT:130; do
        server chargen -w 2 --grace 60000
        hold 2 -- V:4096 C W U X
        kill -TERM "$PID"
        until_true refuses
        kill -${s%:*} "$PID"
        code=$(exit_code "$DIR")
        echo "exit $code after ${s%:*}"
        [ "$code" = "${s#*:}" ]
        clean "$DIR"
        let_go
    done
}

@test "/quit stops as SIGTERM does" {
    server line --commands -w 2
    client -q "$ADDR" C 'S/quit\n' Z
    [ "$(exit_code "$DIR")" = 0 ]
    clean "$DIR"
}

@test "a signal at any moment of the start ends it cleanly" {
    local i code
    for i in 0 2 4 6 8 10 12 14 17 20; do
        spawn "$NETSRV_BIN" echo -l "$HOST:0" -w 4
        for _ in $(seq $((i * 20))); do :; done
        kill -TERM "$PID"
        code=$(exit_code "$DIR")
        # 143: before the handlers were installed.
        [ "$code" = 0 ] || [ "$code" = 143 ]
        clean "$DIR"
    done
}

@test "start and stop again and again on the same port" {
    local i
    server echo -w 2
    client -q -n 20 "$ADDR" C Sx Rx F E
    stop
    for i in 1 2 3 4 5 6 7 8 9 10; do
        LISTEN=$HOST:$PORT server echo -w 2
        client -q -n 20 "$ADDR" C Sx Rx K
        stop
    done
}

@test "a stop while the listener is paused is in time" {
    local file
    server echo --max-conns 2 -a exclusive -w 2
    hold 2 -- C Shello Rhello U Z
    client -q -d 20000 "$ADDR" C Shello Z &
    local waiting=$!
    quiet "$PID"
    kill -TERM "$PID"
    [ "$(exit_code "$DIR")" = 0 ]
    clean "$DIR"
    wait $waiting
    let_go
    file=$(new_dir port)/port
    spawn bash -c 'ulimit -n 32 && exec "$@"' - "$NETSRV_BIN" echo -l "$HOST:0" --port-file "$file" \
        --json -w 2 -a exclusive --grace 2000
    ln -s "$file" "$DIR/port"
    wait_ready "$DIR"
    ADDR=$HOST:$(cat "$DIR/port")
    paused() { [ "$(stats pauses)" -gt 0 ]; }
    hold 60 -- C Shello U Z
    until_true paused
    kill -TERM "$PID"
    [ "$(exit_code "$DIR")" = 0 ]
    clean "$DIR"
    let_go
}

@test "numbers of workers: 1, more than CPUs, 64, 256" {
    local w
    for w in 1 8 64 256; do
        server echo -w $w
        [ "$(stats 'workers.*.worker' | wc -l)" = $w ]
        client -q -n 100 "$ADDR" C Sx Rx F E
        stop
    done
}

@test "nothing is left behind: descriptors of a server that has served are those of a new one" {
    local b before
    as_before() { [ "$(descriptors "$PID")" = "$before" ]; }
    for b in epoll poll; do
        server echo -b $b -w 2
        before=$(descriptors "$PID")
        client -q -n 500 -p 100 "$ADDR" C Sx Rx F E
        client -q -n 300 -p 100 "$ADDR" C Sx X
        until_true all_closed
        until_true as_before
        stop
    done
}
