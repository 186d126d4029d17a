# Handlers beside the workers: whoever is slow delays only itself.

source "${BATS_TEST_FILENAME%/*}/helper.bash"

# A client in whose handler the server sleeps, and others that must not notice.
one_sleeps() {
    server line --commands -w 1 "$@"
    hold 1 -- C 'S/sleep 600000\n' U 'Rok\n' F E
    until_true stats_are bytes_in 14
    client -q -n 20 -d 20000 "$ADDR" C 'Shello\n' 'Rhello\n' F E
    kill -KILL "$PID"
    exec 9>&-
    reap
}

@test "a handler that sleeps delays nobody else: on a pool" { one_sleeps -t 2; }
@test "a handler that sleeps delays nobody else: own threads" { one_sleeps -p own_thread; }

@test "slow handlers run side by side" {
    server echo -w 1 -t 10 --delay 3000
    local began=$SECONDS
    client -q -n 10 -d 60000 "$ADDR" C Shello Rhello F E
    ((SECONDS - began < 25)) # 30 s, if they did not
    [ "$(stats jobs)" -ge 10 ]
    [ "$(stats longest_job_us)" -ge 2990000 ]
    stop
}

@test "the bound on own threads is a bound on clients" {
    server echo -w 1 -p own_thread -t 3
    hold 3 -- C Shello Rhello U F E
    client -q "$ADDR" C Shello N:250 K
    let_go
    client -q "$ADDR" C Shello Rhello F E
    stop
}

@test "every mode serves from a pool and from own threads" {
    local options
    for options in '-t 2' '-p own_thread'; do
        server line --commands -w 1 $options
        client -q "$ADDR" C 'S/worker\n/send 300000\nbye\n' 'R0\n' M:300001 'Rbye\n' F E
        client -q "$ADDR" C 'S/peer\n/id\n/close\n' M
        stop
        server daytime $options
        [ -n "$(timeout "$DEADLINE" bash -c "exec 5<>/dev/tcp/$HOST/$PORT; cat <&5")" ]
        stop
        server chargen $options
        timeout "$DEADLINE" bash -c "exec 5<>/dev/tcp/$HOST/$PORT; head -c 3000000 <&5" | wc -c | grep -qx 3000000
        stop
        server discard $options
        client -q "$ADDR" C s:100000 F E
        stop
    done
}

# One thread and room for two: the third is refused, and what follows is answered before the first
# is over.
@test "line --commands: /offload holds nobody up" {
    server line --commands -w 1 --offload-threads 1 --offload-max 2
    client "$ADDR" C 'S/offload 300\n/offload 1\n/offload 1\nafter\n' L 'Rafter\nok\nok\n' F E |
        grep -F 'L"error: /offload: '
    client -q "$ADDR" C 'S/offload 10\n' 'Rok\n' F E
    stop
    server line --commands -w 1 -t 1
    client "$ADDR" C 'S/offload 1\n' L F E | grep -F 'L"error: /offload: '
    stop
}

@test "a handler that takes long is told, where it runs" {
    local options where
    # Whoever looks may come too late for one on a busy machine, not always.
    told() {
        client -q "$ADDR" C 'S/sleep 300\nbye\n' 'Rok\nbye\n' F E
        grep -q "warning: $where: on_frame of connection .* took " "$DIR/err"
    }
    for options in '' '-t 1' '-p own_thread'; do
        where='worker 0'
        [ -z "$options" ] || where='handler thread 1'
        server line --commands -w 1 --stuck 100 $options
        until_true told
        grep -q "warning: $where: on_frame of connection .* has been running for [0-9]* ms" "$DIR/err"
        [ "$(stats stuck)" -ge 1 ]
        stop
    done
}

@test "what does not fit is refused by name" {
    local options
    for options in 'echo --offload-threads 2' 'line --offload-max 2' \
        'line --commands -t 1 --offload-threads 2' 'line --commands -p own_thread --offload-max 2'; do
        run "$NETSRV_BIN" $options
        [ "$status" = 2 ]
        [[ $output == *--offload-* ]]
    done
    run "$NETSRV_BIN" echo -t 0
    [ "$status" = 2 ]
    [[ $output == *--handler-threads* ]]
    run "$NETSRV_BIN" echo -t 2 --handler-stack 1k
    [ "$status" = 2 ]
    [[ $output == *--handler-stack* ]]
}
