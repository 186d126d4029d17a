# The examples: each one built, run and used, by our own client and by foreign ones where they are.

source "${BATS_TEST_FILENAME%/*}/helper.bash"

# The echo example prints nothing and has no port file; it gets a unix path.
@test "echo: at most 12 lines of code, and echoes" {
    local n
    n=$(grep -c -v -E '^ *$|^ *(/?\*)' "$ROOT/examples/echo.c")
    echo "$n lines"
    ((n <= 12))
    ADDR=unix:$(new_dir u)/sock
    spawn "$BUILT/examples/echo" "$ADDR"
    until_true test -S "${ADDR#unix:}"
    client -q -n 50 -d 15000 "$ADDR" C D:20000 F E
    kill -TERM "$PID"
    exit_code "$DIR"
    clean "$DIR"
}

# example NAME: on a free port, with a port file.
example() {
    local file
    file=$(new_dir port)/port
    spawn "$BUILT/examples/$1" "$HOST:0" "$file"
    ln -s "$file" "$DIR/port"
    wait_ready "$DIR"
    PORT=$(head -n 1 "$DIR/port")
    ADDR=$HOST:$PORT
}

@test "line_server: numbers lines, counts for slow readers, says goodbye" {
    example line_server
    client "$ADDR" C 'Shello\nworld\n' L L 'Scount 3\n' L L L 'Squit\n' L Z
    client -q -c 8192 "$ADDR" V:4096 C 'Scount 200000\n' M:1288895 'Squit\n' M F
    stop
}

@test "chat: a line goes to everybody, on whatever worker" {
    example chat
    local ask='R* What is your name?\n'
    hold 1 -- C "$ask" 'Sben\n' 'R* ben joined\n' U 'R* anna joined\nanna: hello\n* anna left\n' \
        'Sgood night\n' 'Rben: good night\n' 'S/quit\n' M
    client -q "$ADDR" C "$ask" 'Sanna\n' 'R* anna joined\n' 'Shello\n' 'Ranna: hello\n' 'S/quit\n' M
    let_go
    hold 100 -- C "$ask" 'Sx\n' W U M
    client -q "$ADDR" C "$ask" 'Sy\n' L 'Shello\n' 'S/quit\n' M
    kill -TERM "$PID"
    let_go
    stopped
}

@test "http_hello: our client: keep-alive, pipelining, HEAD, errors" {
    example http_hello
    local get='GET / HTTP/1.1\r\nHost: x\r\n\r\n'
    client -q "$ADDR" C "S$get" L M:10 K
    client -q "$ADDR" C "S$get$get${get}GET / HTTP/1.0\r\n\r\n" G Z >"$BATS_TEST_TMPDIR/four"
    [ "$(grep -c '^HTTP/1.[01] 200 OK' "$BATS_TEST_TMPDIR/four")" = 4 ]
    client -q "$ADDR" C 'SGET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n' G Z |
        grep -q '^HTTP/1.[01] 404'
    client -q "$ADDR" C 'Snonsense\r\n\r\n' G Z | grep -q '^HTTP/1.[01] 400'
    client -q "$ADDR" C 'SGET / HT' P:20 'STP/1.1\r\nHo' P:20 'Sst: x\r\nConnection: close\r\n\r' P:20 \
        'S\n' G Z | grep -q '^HTTP/1.[01] 200'
    stop
}

@test "http_hello: curl" {
    command -v curl >/dev/null || skip "no curl here"
    example http_hello
    [ "$(curl -s -S "http://$ADDR/")" = 'Hello, world!' ]
    [ "$(curl -s -S "http://$ADDR/" "http://$ADDR/" "http://$ADDR/" | wc -l)" = 3 ]
    curl -s -S -I "http://$ADDR/" | grep -q '200 OK'
    [ "$(curl -s -o "$BATS_TEST_TMPDIR/body" -w '%{http_code}' "http://$ADDR/no")" = 404 ]
    [ "$(curl -s -0 -S "http://$ADDR/")" = 'Hello, world!' ]
    stop
}

@test "http_hello: wrk" {
    command -v wrk >/dev/null || skip "no wrk here"
    example http_hello
    wrk -t 2 -c 50 -d 1s "http://$ADDR/" >"$BATS_TEST_TMPDIR/wrk"
    cat "$BATS_TEST_TMPDIR/wrk"
    grep -q -E '[1-9][0-9]* requests in' "$BATS_TEST_TMPDIR/wrk"
    not grep -q -E 'Socket errors|Non-2xx' "$BATS_TEST_TMPDIR/wrk"
    stop
}

@test "resp_cache: our client" {
    example resp_cache
    client -q "$ADDR" C 'SPING\r\n' 'R+PONG\r\n' \
        'S*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\na\r\nb\x00\r\n' 'R+OK\r\n' \
        'S*2\r\n$3\r\nGET\r\n$1\r\nk\r\n' 'R$5\r\na\r\nb\x00\r\n' \
        'S*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n' 'R:1\r\n:2\r\n' \
        'S*2\r\n$3\r\nDEL\r\n$1\r\nk\r\n' 'R:1\r\n' 'S*2\r\n$3\r\nGET\r\n$1\r\nk\r\n' 'R$-1\r\n' F Z
    client -q -n 50 "$ADDR" C [:20 'S*1\r\n$4\r\nPING\r\n' 'R+PONG\r\n' ] F Z
    stop
}

@test "resp_cache: redis-cli" {
    command -v redis-cli >/dev/null || skip "no redis-cli here"
    example resp_cache
    cli() { redis-cli -h "$HOST" -p "$PORT" "$@"; }
    [ "$(cli ping)" = PONG ]
    [ "$(cli echo hello)" = hello ]
    [ "$(cli set greeting 'hello world')" = OK ]
    [ "$(cli get greeting)" = 'hello world' ]
    [ "$(cli incr n)" = 1 ]
    [ "$(cli incr n)" = 2 ]
    [ "$(cli del greeting n)" = 2 ]
    [ -z "$(cli get greeting)" ]
    cli config get save >/dev/null
    cli command >/dev/null
    [ "$(printf 'ping\nset a 1\nget a\n' | cli | paste -s -d ' ')" = 'PONG OK 1' ]
    stop
}

@test "resp_cache: redis-benchmark with pipelining" {
    command -v redis-benchmark >/dev/null || skip "no redis-benchmark here"
    example resp_cache
    timeout 60 redis-benchmark -h "$HOST" -p "$PORT" -t ping,set,get -n 20000 -P 16 -q \
        >"$BATS_TEST_TMPDIR/bench" 2>&1
    cat "$BATS_TEST_TMPDIR/bench"
    [ "$(tr '\r' '\n' <"$BATS_TEST_TMPDIR/bench" | grep -c 'requests per second')" -ge 4 ]
    stop
}

@test "timers: replies later, counts clients, and ends one that says nothing" {
    example timers
    client "$ADDR" C 'Sin 120 later\nin 1 soon\n' 'Rsoon\n' 'Rlater\n' 'Snonsense\n' 'Rsay: in MS TEXT\n' F Z
    client -q "$ADDR" C 'Sin 80 after the end\n' F 'Rafter the end\n' E
    client -q "$ADDR" C 'Sin 60000 never\n' X
    until_true grep -q '^worker 0: 0 clients$' "$DIR/err"
    hold 1 -- C 'Sin 1 x\n' L U F Z
    until_true grep -q '^worker [0-9]*: 1 clients$' "$DIR/err"
    let_go
    client -q -d 15000 "$ADDR" C 'Rtoo slow\n' E
    stop
}

# through TARGET: the proxy before it; ADDR is its address.
through() {
    local file
    file=$(new_dir port)/port
    spawn "$BUILT/examples/proxy" "$HOST:0" "$1" "$file"
    ln -s "$file" "$DIR/port"
    wait_ready "$DIR"
    PORT=$(head -n 1 "$DIR/port")
    ADDR=$HOST:$PORT
}

@test "proxy: byte-exact both ways, half-close, resets, readers that do not read" {
    local echo_pid echo_dir before
    LISTEN=127.0.0.1:0 server echo # what the name means
    echo_pid=$PID echo_dir=$DIR
    through "localhost:$PORT"
    client -q "$ADDR" C 'Shi\n' F 'Rhi\n' E
    client -q -n 100 -p 30 -d 20000 "$ADDR" C D:20000 F E
    client -q -d 20000 "$ADDR" C D:5000000 F E
    client -q -n 3 -d 20000 "$ADDR" C H:1000000 E
    client -q -n 2 -c 4096 "$ADDR" V:4096 C H:200000 E
    client -q -n 20 "$ADDR" C Shello Rhello X
    before=$(ps -o rss= -p "$PID")
    hold 1 -- C Y:20000000 U X
    (($(ps -o rss= -p "$PID") - before < 12000)) || fail "a reader that does not read fills the proxy"
    client -q -n 10 "$ADDR" C D:20000 F E
    let_go
    stop
    PID=$echo_pid DIR=$echo_dir
    until_true all_closed
    stop
}

@test "proxy: a target that refuses, and one that goes away" {
    local proxy_pid proxy_dir gone
    server echo
    gone=$DIR
    through "$HOST:$PORT"
    hold 1 -- C Shello Rhello U M
    stop "$gone"
    let_go
    client -q -n 5 "$ADDR" c Z
    stop
}

@test "proxy: curl, socat and redis-benchmark through it" {
    local any=no
    if command -v curl >/dev/null; then
        any=yes
        example http_hello
        local web=$DIR
        through "$ADDR"
        [ "$(curl -s -m 10 "http://$ADDR/" "http://$ADDR/" | grep -c -i hello)" = 2 ]
        stop
        stop "$web"
    fi
    if command -v redis-benchmark >/dev/null; then
        any=yes
        example resp_cache
        local cache=$DIR
        through "$ADDR"
        timeout 30 redis-benchmark -h "$HOST" -p "$PORT" -q -n 2000 -c 20 -P 8 -d 3000 -t set,get |
            tr '\r' '\n' | grep -q 'GET: .*requests per second'
        stop
        stop "$cache"
    fi
    if command -v socat >/dev/null; then
        any=yes
        server echo
        local echo_dir=$DIR
        through "$HOST:$PORT"
        [ "$(printf 'hi\n' | timeout "$DEADLINE" socat -t 5 - "TCP:$ADDR")" = hi ]
        stop
        stop "$echo_dir"
    fi
    [ $any = yes ] || skip "no curl, redis-benchmark or socat here"
}

@test "slow_handler: three ways not to wait for another's slow request" {
    local way
    for way in pool own offload; do
        ADDR=unix:$(new_dir u)/sock
        spawn "$BUILT/examples/slow_handler" $way "$ADDR" 600
        until_true test -S "${ADDR#unix:}"
        hold 1 -- C 'Sslow\nquick\n' U K
        client -q -n 10 "$ADDR" C 'Squick\n' 'Rquick\n' F E
        let_go
        reap
        ADDR=unix:$(new_dir u)/sock
        spawn "$BUILT/examples/slow_handler" $way "$ADDR" 1
        until_true test -S "${ADDR#unix:}"
        client -q "$ADDR" C 'Sslow\nquick\n' 'Rdone\nquick\n' F E
        kill -TERM "$PID"
        exit_code "$DIR"
        clean "$DIR"
    done
}

@test "slow_handler: on a worker, and the server says so" {
    ADDR=unix:$(new_dir u)/sock
    spawn "$BUILT/examples/slow_handler" worker "$ADDR" 2
    until_true test -S "${ADDR#unix:}"
    told() {
        client -q "$ADDR" C 'Sslow\n' 'Rdone\n' F E
        grep -q '^worker 0: on_frame of connection .* took ' "$DIR/err"
    }
    until_true told
    grep -q '^worker 0: on_frame of connection .* has been running for ' "$DIR/err"
    kill -TERM "$PID"
    exit_code "$DIR"
}

@test "control_fifo: a line for the FIFO goes to every client; quit ends" {
    local fifo file
    fifo=$(new_dir fifo)/fifo
    file=$(new_dir port)/port
    spawn "$BUILT/examples/control_fifo" "$fifo" "$HOST:0" "$file"
    ln -s "$file" "$DIR/port"
    wait_ready "$DIR"
    ADDR=$HOST:$(head -n 1 "$DIR/port")
    hold 20 -- C Sx U 'Rhello\nagain\n' E
    sent() { grep -q 'held' "$HOLD_DIR/out"; }
    until_true sent
    printf 'hello\n' >"$fifo"
    printf 'aga' >"$fifo"
    printf 'in\n' >"$fifo"
    open_gate
    printf 'quit\n' >"$fifo"
    [ "$(exit_code "$DIR")" = 0 ]
    [ "$(exit_code "$HOLD_DIR")" = 0 ] || fail "$(cat "$HOLD_DIR/err")"
    [ ! -e "$fifo" ]
    clean "$DIR"
}

@test "embed: asks itself and ends with 0" {
    spawn "$BUILT/examples/embed"
    [ "$(exit_code "$DIR")" = 0 ] || fail "$(cat "$DIR/out" "$DIR/err")"
    clean "$DIR"
}

@test "the command and nc" {
    command -v nc >/dev/null || skip "no nc here"
    local b
    for b in epoll poll; do
        server echo -b $b
        [ "$(printf 'hi\n' | timeout "$DEADLINE" nc -N "$HOST" "$PORT")" = hi ] ||
            [ "$(printf 'hi\n' | timeout "$DEADLINE" nc -q 5 "$HOST" "$PORT")" = hi ]
        stop
    done
}

@test "the command and socat" {
    command -v socat >/dev/null || skip "no socat here"
    local path
    head -c 3000000 /dev/urandom >"$BATS_TEST_TMPDIR/data"
    server echo -w 2
    socat -t 10 - "TCP:$HOST:$PORT" <"$BATS_TEST_TMPDIR/data" | cmp - "$BATS_TEST_TMPDIR/data"
    stop
    path=$(new_dir u)/sock
    LISTEN=unix:$path server echo -w 2
    socat -t 10 - "UNIX-CONNECT:$path" <"$BATS_TEST_TMPDIR/data" | cmp - "$BATS_TEST_TMPDIR/data"
    stop
}
