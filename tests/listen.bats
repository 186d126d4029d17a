# Addresses: every form of them, good and bad.

source "${BATS_TEST_FILENAME%/*}/helper.bash"

@test "unix path: serves, and the file is removed at the end" {
    local path b
    for b in epoll poll; do
        path=$(new_dir u)/sock
        LISTEN=unix:$path server echo -b $b -w 2
        [ -S "$path" ]
        client -q -n 100 "$ADDR" C D:5000 F E
        client -q "$ADDR" C H:500000 E
        stop
        [ ! -e "$path" ]
    done
}

@test "unix path: one that a dead server left is taken over" {
    local path
    path=$(new_dir u)/sock
    LISTEN=unix:$path server echo -w 1
    kill -KILL "$PID"
    until_true ended "$DIR"
    [ -S "$path" ]
    LISTEN=unix:$path server echo -w 1
    client -q "$ADDR" C Sx Rx F E
    stop
    [ ! -e "$path" ]
}

@test "unix path: one that a live server has is refused and left alone" {
    local path first
    path=$(new_dir u)/sock
    LISTEN=unix:$path server echo -w 1
    first=$DIR
    spawn "$NETSRV_BIN" echo -l "unix:$path"
    [ "$(exit_code "$DIR")" = 1 ]
    grep -q -F "$path" "$DIR/err"
    client -q "$ADDR" C Sx Rx F E
    stop "$first"
}

@test "unix path: a file that is no socket is refused and left alone" {
    local path
    path=$(new_dir u)/file
    echo precious >"$path"
    spawn "$NETSRV_BIN" echo -l "unix:$path"
    [ "$(exit_code "$DIR")" = 1 ]
    [ "$(cat "$path")" = precious ]
}

@test "unix path: replaced meanwhile by somebody else, it is not removed at the end" {
    local path
    path=$(new_dir u)/sock
    LISTEN=unix:$path server echo -w 1
    rm "$path"
    echo precious >"$path"
    stop
    [ "$(cat "$path")" = precious ]
}

@test "abstract unix name: serves, and a second server is refused" {
    local first name
    name=@netsrv-test-$$-$RANDOM
    LISTEN=unix:$name server echo -w 2
    first=$DIR
    client -q -n 50 "$ADDR" C D:5000 F E
    spawn "$NETSRV_BIN" echo -l "unix:$name"
    [ "$(exit_code "$DIR")" = 1 ]
    stop "$first"
    LISTEN=unix:$name server echo -w 2
    stop
}

has_ipv6() { [ -e /proc/net/if_inet6 ] && grep -q ' lo$' /proc/net/if_inet6; }

@test "*:0 serves IPv4 and IPv6, and shows an IPv4 client as IPv4" {
    has_ipv6 || skip "no IPv6 loopback here"
    LISTEN='*:0' server line --commands -w 2
    client -q "127.0.0.1:$PORT" C Sx F Rx E
    client -q "[::1]:$PORT" C Sx F Rx E
    client "127.0.0.1:$PORT" C 'S/peer\n' L F E | grep -q 'L"127.0.0.1:[0-9]*\\n"'
    client "[::1]:$PORT" C 'S/peer\n' L F E | grep -q 'L"\[::1\]:[0-9]*\\n"'
    stop
}

@test "[::1]:0 serves IPv6 alone" {
    has_ipv6 || skip "no IPv6 loopback here"
    LISTEN='[::1]:0' server echo -w 2
    client -q -n 20 "$ADDR" C Sx Rx F E
    client -q "127.0.0.1:$PORT" Q
    stop
}

@test "several listeners: a port for each in the port file, all of them serve" {
    local path a ports
    path=$(new_dir u)/sock
    for a in single acceptor shared exclusive edge reuseport; do
        if [ $a = reuseport ]; then
            server echo -l "$HOST:0" -l 127.0.0.2:0 -a $a -p least -w 2
            mapfile -t ports <"$DIR/port"
            client -q -n 10 "$HOST:${ports[1]}" C Sx Rx F E
            client -q -n 10 "127.0.0.2:${ports[2]}" C Sx Rx F E
            stop
            continue
        fi
        server echo -l "$HOST:0" -l 127.0.0.2:0 -l "unix:$path" -a $a -p least -w 2
        mapfile -t ports <"$DIR/port"
        [ ${#ports[@]} = 4 ]
        [ "${ports[3]}" = 0 ]
        client -q -n 10 "$HOST:${ports[0]}" C Sx Rx F E
        client -q -n 10 "$HOST:${ports[1]}" C Sx Rx F E
        client -q -n 10 "127.0.0.2:${ports[2]}" C Sx Rx F E
        client -q -n 10 "unix:$path" C Sx Rx F E
        [ "$(grep -c 'listening on' "$DIR/err")" = 4 ]
        stop
    done
}

@test "fd:3 takes an inherited listener, and leaves it alive for who shares it" {
    local file port a
    for a in single acceptor exclusive; do
        file=$(new_dir port)/port
        spawn "$B/activate" -k 0 "$file" "$NETSRV_BIN" echo -l fd:3 -a $a -p least -w 2
        until_true test -s "$file"
        port=$(cat "$file")
        client -q -n 50 "127.0.0.1:$port" C Sx Rx F E
        kill -TERM "$(cat "$DIR/out")"
        until_true grep -q ended "$DIR/out"
        # The socket is still there: the next client waits in it until its other owner accepts.
        client -q "127.0.0.1:$port" C 'Rstill here\n' E
        [ "$(exit_code "$DIR")" = 0 ]
        clean "$DIR"
    done
}

@test "systemd:web takes the listener of that name" {
    local file
    file=$(new_dir port)/port
    spawn "$B/activate" 0 "$file" "$NETSRV_BIN" echo -l systemd:web -w 2
    until_true test -s "$file"
    client -q -n 50 "127.0.0.1:$(cat "$file")" C Sx Rx F E
    stop
    spawn "$B/activate" 0 "$file" "$NETSRV_BIN" echo -l systemd:other -w 2
    [ "$(exit_code "$DIR")" != 0 ]
    grep -q other "$DIR/err"
}

# refused CODE WORD ADDRESS: exit code, one line, and it names the address.
refused() {
    spawn "$NETSRV_BIN" echo -l "$3"
    local code
    code=$(exit_code "$DIR")
    cat "$DIR/err"
    [ "$code" = "$1" ] || fail "$3: exit $code"
    [ "$(wc -l <"$DIR/err")" = 1 ] || fail "$3: more than a line"
    grep -q -i -E -- "$2" "$DIR/err" || fail "$3: no '$2'"
}

@test "addresses that are not understood: exit 2 and one line that names them" {
    local bad
    for bad in nonsense 127.0.0.1 127.0.0.1: 127.0.0.1:x 127.0.0.1:70000 127.0.0.1:-1 \
        300.0.0.1:7000 '[::1:7000' '[zz]:7000' ::1:7000 unix: unix:@ fd: fd:x fd:-1 systemd: '*' :; do
        refused 2 "${bad//[\[\]*]/.}" "$bad"
    done
    refused 2 'unix:' "unix:$(printf 'x%.0s' {1..200})"
    refused 2 127 "127.0.0.1:$(printf '0%.0s' {1..2000})7"
}

@test "a descriptor that is no listener: refused by name" {
    refused '[12]' 'fd:9' fd:9 || refused 1 'fd:9' fd:9 || refused 2 'fd:9' fd:9
    refused 1 'fd:0' fd:0 || refused 2 'fd:0' fd:0
}

@test "port in use, address not here, permission denied: exit 1 and one line with the reason" {
    local first
    server echo -w 1
    first=$DIR
    refused 1 "$ADDR.*in use" "$ADDR"
    stop "$first"
    refused 1 '192.0.2.1:7000.*(assign|available)' 192.0.2.1:7000
    refused 1 'unix:/no/such/dir/sock' unix:/no/such/dir/sock
    if [ "$(id -u)" != 0 ] || ! command -v setpriv >/dev/null; then
        skip "permission denied: not checked, needs root and setpriv"
    fi
    local dir
    dir=$(new_dir closed)
    chmod 700 "$dir"
    cp "$NETSRV_BIN" "$BATS_TEST_TMPDIR/netsrv"
    chmod 755 "$BATS_TEST_TMPDIR/netsrv"
    spawn setpriv --reuid 65534 --clear-groups --inh-caps=-all "$NETSRV_BIN" echo -l "unix:$dir/s"
    [ "$(exit_code "$DIR")" = 1 ]
    grep -q -i 'permission denied' "$DIR/err"
}
