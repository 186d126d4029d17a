# The one list of scenarios. Each function scenario_NAME runs against an echo server that is already
# there ($ADDR, $PID, $DIR) and leaves it serving, except scenario_zz_stop, which is the last.
# tests/matrix makes one file of tests of them for every arrangement.

all_scenarios() { declare -F | awk '$3 ~ /^scenario_/ { print $3 }' | sort; }

served() { client -q "$ADDR" C 'Shi\n' F 'Rhi\n' E; }

scenario_half_close() { served; }

scenario_200_clients_byte_exact() {
    client -q -n 200 "$ADDR" C [:4 D:3000 ] F E
}

scenario_burst_of_500() {
    client -q -n 500 -d 20000 "$ADDR" C Shello Rhello F E
}

scenario_large_echo_in_random_chunks() {
    client -q -d 20000 "$ADDR" C D:6000000 F E
}

scenario_large_half_close() {
    client -q -n 4 -d 20000 "$ADDR" C H:1500000 E
}

scenario_byte_by_byte() {
    client -q -n 20 "$ADDR" C [:10 Sa P:1 ] F Raaaaaaaaaa E
}

scenario_slow_reader_gets_all() {
    client -q -n 3 -c 4096 "$ADDR" V:4096 C H:200000 E
}

scenario_connect_and_leave() {
    client -q -n 300 -p 50 "$ADDR" C K
    served
}

scenario_churn() {
    client -q -n 600 -p 40 "$ADDR" C Sx Rx K
    served
}

scenario_reset_at_any_point() {
    local pids=() pid script bad=0
    for script in 'C X' 'C Shello X' 'C Shello Rhello X' 'C Y:3000000 X' 'C Shello F X' \
        'C s:70000 X' 'C D:100000 s:50000 X' 'C s:200 W X' 'C F X' 'C Shello F W X'; do
        client -q -n 10 "$ADDR" $script &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || bad=1
    done
    [ $bad = 0 ]
    served
    until_true all_closed
}

scenario_never_reading_client_delays_nobody() {
    hold 3 -- C Sx Rx Y:30000000 U X
    client -q -n 20 "$ADDR" C D:20000 F E
    let_go
}

scenario_out_of_band_byte() {
    client -q "$ADDR" C Sab O Scd Rabcd F E
    served
}

scenario_numbers_add_up() {
    local opened
    until_true all_closed
    opened=$(stats opened)
    hold 64 -- C Shello Rhello U F E
    stats_are live 64 || fail "live: $(stats live)"
    [ "$(stats 'workers.*.live' | sum)" = 64 ]
    [ "$(stats opened)" = $((opened + 64)) ]
    let_go
    until_true all_closed
    stats_are travelling 0
    stats_are queued_bytes 0
    [ "$(stats 'workers.*.opened' | sum)" = "$(stats accepted)" ]
    [ "$(stats given)" = "$(stats received)" ]
}

transcript() {
    client "$ADDR" C 'Shi\n' F 'Rhi\n' E
    client "$ADDR" C F E
    client "$ADDR" C 'Sone' Rone 'Stwo' Rtwo N:20 F E
    client "$ADDR" C 'S\x00\xff\r\n' 'R\x00\xff\r\n' F E
    client "$ADDR" C 'Sx\n' F 'Rx\n' E K C 'Sagain' Ragain F E
    client "$ADDR" C D:100000 F E
    client "$ADDR" C H:300000 E
    client -n 25 "$ADDR" C D:2000 Sbye Rbye F E
    client "$ADDR" C s:60000 F r:60000 E
    client "$ADDR" C Shello X C Shello Rhello F E
}

# The same bytes, in the same order, with the same end, whoever accepts and wherever it is served.
scenario_transcript_is_the_golden_one() {
    transcript >"$BATS_TEST_TMPDIR/transcript"
    diff -u "$ROOT/tests/transcript.golden" "$BATS_TEST_TMPDIR/transcript"
}

# Without timers nothing wakes a thread. The connections that linger must be gone first.
scenario_y_idle_makes_no_wakeup() {
    until_true all_closed
    quiet "$PID"
    hold 20 -- C Shello Rhello U F E
    quiet "$PID"
    let_go
}

# The server does not run while the clients connect, so their handshakes are complete and their
# connections in the queue when it is told to stop: each one is still to be served.
scenario_zz_stop_serves_who_is_connected() {
    freeze
    hold 200 -- C 'Shello\n' U 'Rhello\n' E
    kill -TERM "$PID"
    thaw
    let_go
    stopped
}
