# Loaded by every test file: starting and stopping the command, waiting for conditions, reading its
# numbers, and the list of arrangements. Everything waits with a deadline; nothing waits longer than
# it must.

# Loaded as well by scripts outside bats; this file stands in tests/.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
B=$ROOT/.build
VARIANT=${VARIANT:-}
BUILT=$B${VARIANT:+/$VARIANT}
NETSRV_BIN=${NETSRV_BIN:-$BUILT/netsrv-debug}
CLIENT=$B/client
JSON=$B/json
# Where servers listen: an address of this test alone, where all of 127/8 is the loopback. A client
# that comes late to a port that was freed meets no other test's server.
HOST=127.0.0.1
if [[ $OSTYPE == linux* ]]; then
    HOST=127.$((1 + $$ / 256 % 250)).$(($$ % 256)).77
fi
# Seconds that any one wait may take; more on a machine that is CHECK_SCALE times slower.
DEADLINE=${DEADLINE:-$((20 * ${CHECK_SCALE:-1}))}

export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:exitcode=99
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=0:exitcode=99

# Prints why, then fails.
fail() {
    printf '%s\n' "$*" >&2
    return 1
}

# not COMMAND...: fails if it succeeds. A plain ! would do nothing: errexit leaves it alone.
not() {
    if "$@"; then
        fail "holds, and should not: $*"
    fi
}

# until_true COMMAND...: tries until it succeeds or the deadline is over.
until_true() {
    local end=$((SECONDS + DEADLINE))
    until "$@"; do
        if ((SECONDS >= end)); then
            fail "not within $DEADLINE s: $*"
            return 1
        fi
        sleep 0.02
    done
}

# ---- the server --------------------------------------------------------------------------------

# new_dir NAME: an empty directory of this test.
new_dir() {
    mktemp -d "${BATS_TEST_TMPDIR:-$BATS_FILE_TMPDIR}/$1.XXXXXX"
}

# spawn COMMAND...: runs it in a directory of its own, $DIR, with out, err, pid and (at the end) rc.
# The process has default signal dispositions and is in a process group of its own.
spawn() {
    DIR=$(new_dir run)
    (
        set -m
        exec 3>&- 4>&- 9>&-
        "$@" </dev/null >"$DIR/out" 2>"$DIR/err" &
        echo $! >"$DIR/pid.new"
        mv "$DIR/pid.new" "$DIR/pid"
        set +m
        code=0
        wait "$(cat "$DIR/pid")" || code=$?
        echo $code >"$DIR/rc.new"
        mv "$DIR/rc.new" "$DIR/rc"
    ) </dev/null >/dev/null 2>&1 3>&- 4>&- &
    until_true test -s "$DIR/pid"
    PID=$(cat "$DIR/pid")
    SPAWNED+=("$DIR")
}
SPAWNED=()

ended() { test -s "$1/rc"; }

# exit_code DIR: waits for the end.
exit_code() {
    until_true ended "$1" && cat "$1/rc"
}

# wait_ready DIR: until the port file is there; fails with the program's words if it ends before.
listening() { test -s "$1/port" || ended "$1"; }
wait_ready() {
    until_true listening "$1" || return 1
    if [ ! -s "$1/port" ]; then
        fail "did not start (exit $(cat "$1/rc")): $(cat "$1/err")"
    fi
}

# server MODE OPTIONS...: starts the command on a free port and waits until it listens.
# Sets DIR, PID, PORT and ADDR.
server() {
    local mode=$1
    shift
    local file
    file=$(new_dir port)/port
    spawn "$NETSRV_BIN" "$mode" -l "${LISTEN:-$HOST:0}" --port-file "$file" --json "$@"
    ln -s "$file" "$DIR/port"
    wait_ready "$DIR" || return 1
    PORT=$(head -n 1 "$DIR/port")
    case ${LISTEN:-} in
    '') ADDR=$HOST:$PORT ;;
    unix:*) ADDR=$LISTEN ;;
    '*'*) ADDR=127.0.0.1:$PORT ;;
    *) ADDR=${LISTEN%:*}:$PORT ;;
    esac
}

# frozen: stops the server's threads, so that what clients do meanwhile waits in the kernel.
stopped_now() { grep -q '^State:.*T (stopped)' "/proc/$PID/status"; }
freeze() { kill -STOP "$PID" && until_true stopped_now; }
thaw() { kill -CONT "$PID"; }

# clean DIR: no sanitizer or assertion spoke on stderr.
clean() {
    if grep -E -q 'Sanitizer|runtime error|ssertion' "$1/err"; then
        fail "stderr is not clean: $(cat "$1/err")"
    fi
}

# stop [DIR]: a graceful stop; the exit code must be 0 and stderr clean.
stop() {
    local dir=${1:-$DIR}
    if ! ended "$dir"; then
        kill -TERM "$(cat "$dir/pid")" 2>/dev/null || true
    fi
    stopped "$dir"
}

# stopped [DIR]: the same where the signal was sent before; a second one would mean "at once".
stopped() {
    local dir=${1:-$DIR} code
    code=$(exit_code "$dir") || return 1
    clean "$dir" || return 1
    if [ "$code" != 0 ]; then
        fail "exit $code: $(tail -n 5 "$dir/err")"
    fi
}

# Ends what a failed test left behind; called by every teardown.
reap() {
    local dir
    for dir in "${SPAWNED[@]}"; do
        if [ -s "$dir/pid" ] && ! ended "$dir"; then
            kill -KILL "$(cat "$dir/pid")" 2>/dev/null || true
            until_true ended "$dir" || true
        fi
    done
    SPAWNED=()
}

teardown() { reap; }

# ---- clients -----------------------------------------------------------------------------------

client() { "$CLIENT" "$@"; }

# hold N [OPTIONS] -- STEP...: N clients in the background that run the steps and then stay until
# let_go. Sets HOLD_DIR.
hold() {
    local count=$1 options=()
    shift
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    HOLD_DIR=$(new_dir hold)
    mkfifo "$HOLD_DIR/gate"
    (
        exec 3>&- 4>&- 9>&-
        code=0
        "$CLIENT" -n "$count" "${options[@]}" "$ADDR" "$@" <"$HOLD_DIR/gate" \
            >"$HOLD_DIR/out" 2>"$HOLD_DIR/err" || code=$?
        echo $code >"$HOLD_DIR/rc.new"
        mv "$HOLD_DIR/rc.new" "$HOLD_DIR/rc"
    ) </dev/null >/dev/null 2>&1 3>&- 4>&- &
    exec 9>"$HOLD_DIR/gate"
    until_true held "$HOLD_DIR"
    if ! grep -q '^held' "$HOLD_DIR/out"; then
        fail "clients did not get there: $(cat "$HOLD_DIR/err")"
    fi
}

held() { ended "$1" || grep -q '^held' "$1/out"; }

# open_gate: lets them go on and does not wait.
open_gate() {
    echo >&9
    exec 9>&-
}

# let_go: opens the gate and waits for the end; fails as the clients did.
let_go() {
    local code
    open_gate
    code=$(exit_code "$HOLD_DIR") || return 1
    if [ "$code" != 0 ]; then
        fail "clients: $(cat "$HOLD_DIR/err")"
    fi
}

# ---- numbers -----------------------------------------------------------------------------------

# Whole lines: a long one is written in pieces.
stats_lines() { grep -c '"event":"stats".*]}$' "$DIR/err" || true; }
more_stats() { [ "$(stats_lines)" -gt "$1" ]; }

# stats PATH [PID]: one number, or one a line where PATH has a star, asked for by SIGUSR1 now.
stats() {
    local before
    before=$(stats_lines)
    kill -USR1 "$PID"
    until_true more_stats "$before" || return 1
    grep '"event":"stats"' "$DIR/err" | tail -n 1 | "$JSON" "$1"
}

stats_are() { [ "$(stats "$1" | paste -s -d ' ')" = "$2" ]; }

# all_closed: no connection is left, and what was opened was closed.
all_closed() {
    stats_are live 0 && [ "$(stats opened)" = "$(stats closed)" ]
}

# sums of a list of numbers on stdin
sum() { awk '{ s += $1 } END { print s + 0 }'; }
max() { sort -n | tail -n 1; }
min() { sort -n | head -n 1; }

# tasks PID: the directories of its threads, as they were made: their numbers rise, and begin again
# at pid_max. ThreadSanitizer has one of its own, which ticks; it is the first that was made.
tasks() {
    local all
    all=$(ls "/proc/$1/task" 2>/dev/null |
        awk -v pid="$1" -v max="$(</proc/sys/kernel/pid_max)" '{ print ($1 + max - pid) % max, $1 }' |
        sort -n | sed "s|.* |/proc/$1/task/|")
    case $VARIANT in
    *tsan*) sed 2d <<<"$all" ;;
    *) echo "$all" ;;
    esac
}

# Nanoseconds that all threads of PID have run. The kernel's own account, so no tool is needed.
cpu_ns() {
    sed 's|$|/schedstat|' <<<"$(tasks "$1")" | xargs cat 2>/dev/null |
        awk '{ s += $1 } END { print s + 0 }'
}

# How often the threads of PID went to sleep and were woken.
switches() {
    sed 's|$|/status|' <<<"$(tasks "$1")" | xargs cat 2>/dev/null |
        awk '/ctxt_switches/ { s += $2 } END { print s + 0 }'
}

# The window of one measurement.
window() { sleep "${1:-0.2}"; }

idle_now() {
    local before
    before=$(switches "$1")
    window
    [ "$(switches "$1")" = "$before" ]
}

# quiet PID: within the deadline there is a window in which no thread was awake at all.
quiet() { until_true idle_now "$1"; }

cheap_now() {
    local before after
    before=$(cpu_ns "$1")
    window 0.5
    after=$(cpu_ns "$1")
    LAST_CPU_NS=$((after - before))
    ((LAST_CPU_NS < 5000000))
}

# cheap PID: within the deadline there is half a second in which all threads together took less than
# 1 % of a CPU.
cheap() { until_true cheap_now "$1" || fail "took $LAST_CPU_NS ns in half a second"; }

descriptors() { ls /proc/"$1"/fd | wc -l; }

# ---- arrangements ------------------------------------------------------------------------------

ACCEPTS=(single acceptor shared exclusive edge reuseport)
PLACES=(keep round_robin least two_choices peer_hash)

# possible BACKEND ACCEPT PLACE: whether four workers can be arranged so.
possible() {
    case $1-$2-$3 in
    *-single-keep | *-acceptor-keep) return 1 ;;
    poll-exclusive-* | poll-edge-* | kqueue-exclusive-* | io_uring-edge-*) return 1 ;;
    *) return 0 ;;
    esac
}

# shares BACKEND: whether several threads may use its pollers.
shares() { [ "$1" != poll ] && [ "$1" != io_uring ]; }

# The backends that this build serves with, asked from the command itself.
backends() {
    local b dir
    for b in io_uring epoll kqueue poll; do
        dir=$(mktemp -d)
        timeout -k 5 20 "$NETSRV_BIN" line --commands -b "$b" -l "unix:$dir/s" --ready-fd 7 \
            7>"$dir/ready" >/dev/null 2>&1 &
        local pid=$! end=$((SECONDS + 10))
        while ((SECONDS < end)) && kill -0 $pid 2>/dev/null && [ ! -s "$dir/ready" ]; do
            sleep 0.02
        done
        if [ -s "$dir/ready" ]; then
            echo $b
        fi
        kill $pid 2>/dev/null || true
        wait $pid 2>/dev/null || true
        rm -rf "$dir"
    done
}

# arrange_acceptor BACKEND PLACE TRANSFER: its triggers and numbers of threads.
arrange_acceptor() {
    local trigger n
    for trigger in level edge oneshot; do
        for n in 1 4; do
            if ! shares "$1" && [ $trigger-$n != level-1 ]; then
                continue
            fi
            echo "-b $1 -a acceptor -p $2 --transfer $3 --trigger $trigger --acceptors $n -w 4"
        done
    done
}

# arrangements: the options of every arrangement, one a line.
arrangements() {
    local b a p t
    for b in "$@"; do
        echo "-b $b -a single -p keep -w 1"
        echo "-b $b -a single -p keep -w 1 -t 3"
        echo "-b $b -a shared -p own_thread -w 2"
        for a in "${ACCEPTS[@]}"; do
            for p in "${PLACES[@]}"; do
                possible $b $a $p || continue
                for t in mailbox direct; do
                    if [ $t = direct ] && { ! shares $b || [ $p = keep ]; }; then
                        continue
                    fi
                    if [ $a = acceptor ]; then
                        arrange_acceptor $b $p $t
                    else
                        echo "-b $b -a $a -p $p --transfer $t -w 4"
                    fi
                done
            done
        done
    done
}

# quick_arrangements: every way to accept and place, with the transfers and an acceptor's triggers and
# numbers in turn. On io_uring, shared is the same as exclusive.
quick_arrangements() {
    arrangements "$@" | awk '
        /-b io_uring -a shared -p [^o]/ { next }
        !/--transfer/ { print; next }
        /-b (poll|io_uring)/ { print; next }
        { pair = $0; sub(/ --transfer.*/, "", pair)
          if (pair != last) { last = pair; i = 0; turn++ }
          if (!/-p keep/ && /--transfer direct/ != turn % 2) { next }
          if (!/-a acceptor/ || i++ == turn % 6) { print } }'
}

# few_arrangements: enough to pass through every part of the code.
few_arrangements() {
    arrangements "$@" | grep -E -e '-a single -p keep|-a single -p least.*direct|exclusive -p (keep|round)' \
        -e 'own_thread|oneshot --acceptors 4|-p peer_hash .*edge --acceptors 4|reuseport -p (keep|two)|poll -a shared -p least' |
        grep -E -v -e 'acceptor -p (least|two).*mailbox|acceptor -p (round|peer).*direct'
}
