/* stuck.c: callbacks that take longer than stuck_ms are reported while they run and at their end,
 * by the right name, wherever they run. */
#include "../seam.h"

#include "rig.h"

#define STUCK_MS 20

/* ---- what was reported ----------------------------------------------------------------------- */

static atomic_ulong begun; /* lines of each kind */
static atomic_ulong ended;

static void on_log(void *user, netsrv_log_level level, const char *text) {
    if (strstr(text, " has been running for ") != NULL) {
        CHECK_EQ(level, NETSRV_LOG_WARN);
        atomic_fetch_add(&begun, 1);
    } else if (strstr(text, " took ") != NULL) {
        CHECK_EQ(level, NETSRV_LOG_WARN);
        atomic_fetch_add(&ended, 1);
    }
    rig_log(user, level, text);
}

/* Both lines about something, the second later; the times are what they can be. */
static bool told(const char *what) {
    char line[300];
    unsigned long running_ms = 0;
    unsigned long took_ms = 0;
    snprintf(line, sizeof line, "%s has been running for ", what);
    pthread_mutex_lock(&rig_log_book.lock);
    const char *first = strstr(rig_log_book.text, line);
    if (first != NULL) {
        running_ms = strtoul(first + strlen(line), NULL, 10);
    }
    snprintf(line, sizeof line, "%s took ", what);
    const char *second = first != NULL ? strstr(first, line) : NULL;
    if (second != NULL) {
        took_ms = strtoul(second + strlen(line), NULL, 10);
    }
    pthread_mutex_unlock(&rig_log_book.lock);
    return first != NULL && second != NULL && running_ms > STUCK_MS && took_ms >= running_ms;
}

static bool told_begun(const char *what) {
    char line[300];
    snprintf(line, sizeof line, "%s has been running for ", what);
    return rig_log_has(line);
}

/* In a callback: until it is reported, and no longer. */
static void dwell(const char *what) {
    CHECK_WITHIN(20000, told_begun(what));
}

static void name_conn(netsrv_id id, int peer_fd, const char *what, char *text, size_t n) {
    struct sockaddr_in a;
    socklen_t len = sizeof a;
    REQUIRE(getsockname(peer_fd, (struct sockaddr *)&a, &len) == 0);
    snprintf(text, n, "%s of connection %llu (127.0.0.1:%u)", what, (unsigned long long)id,
             (unsigned)ntohs(a.sin_port));
}

static netsrv_config stuck_config(netsrv_backend b, unsigned workers) {
    netsrv_config cfg = rig_config(b, workers);
    cfg.on_log = on_log;
    cfg.stuck_ms = STUCK_MS;
    cfg.linger_timeout_ms = 50;
    atomic_store(&begun, 0);
    atomic_store(&ended, 0);
    return cfg;
}

/* Each is told to have begun and ended, and counted. On a busy machine there may be others than
 * those that were meant: a callback may have to wait for a processor. */
static void end_with(netsrv_server *s, unsigned long reports) {
    netsrv_stop(s, 1000);
    CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(20000)), NETSRV_OK);
    CHECK_GE(atomic_load(&begun), reports);
    CHECK_EQ(atomic_load(&ended), atomic_load(&begun));
    CHECK_EQ(rig_total(s).stuck, atomic_load(&begun));
    rig_check_ended(s);
    CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
}

/* ---- one after the other --------------------------------------------------------------------- */

static _Atomic netsrv_id last_id;
static atomic_int waiting;
static atomic_int gate_open;

static void note_id(netsrv_conn *c) {
    atomic_store(&last_id, netsrv_get_id(c));
    rig_on_open(c);
}

/* "w" waits at the gate, "c" and "a" end the connection before that. */
static size_t gated_data(netsrv_conn *c, const void *data, size_t n) {
    if (memchr(data, 'c', n) != NULL) {
        netsrv_close(c);
    }
    if (memchr(data, 'a', n) != NULL) {
        netsrv_abort(c);
    }
    if (memchr(data, 'q', n) == NULL) {
        atomic_fetch_add(&waiting, 1);
        WAIT_FOR(20000, atomic_load(&gate_open) != 0);
        atomic_fetch_sub(&waiting, 1);
    }
    return rig_on_data(c, data, n);
}

static void gate_close(void) {
    atomic_store(&gate_open, 0);
    atomic_store(&waiting, 0);
}

/* Places are used again: each report names the connection that it is about, also one that has been
 * closed by that very callback. */
static void by_name(netsrv_backend b, unsigned handler_threads) {
    netsrv_config cfg = stuck_config(b, 1);
    static const char *const says[] = { "w", "c", "w", "a", "w" };
    char text[200];
    cfg.on_open = note_id;
    cfg.on_data = gated_data;
    cfg.handler_threads = handler_threads;
    netsrv_server *s = rig_start(&cfg);
    for (unsigned i = 0; i < 5; i++) {
        const int fd = peer_connect(netsrv_get_port(s, 0));
        gate_close();
        CHECK(peer_say(fd, "q") && peer_gets(fd, "q"));
        CHECK(peer_say(fd, says[i]));
        name_conn(atomic_load(&last_id), fd,
                  handler_threads != 0 ? "handler thread 1: on_data" : "worker 0: on_data", text,
                  sizeof text);
        CHECK_WITHIN(10000, told_begun(text));
        CHECK_EQ(atomic_load(&waiting), 1);
        CHECK_GE(rig_total(s).stuck, i + 1);
        CHECK(!told(text));
        atomic_store(&gate_open, 1);
        CHECK_WITHIN(10000, told(text));
        close(fd);
        CHECK_WITHIN(10000, rig_closes() == i + 1 && rig_total(s).live == 0);
    }
    end_with(s, 5);
}

/* ---- whatever is called ---------------------------------------------------------------------- */

static struct {
    atomic_bool armed;
    atomic_bool begin;
    netsrv_timer timer;
    int pipe[2];
    netsrv_watch_id watch;
} all;

static void dwell_of(netsrv_conn *c, const char *what) {
    char text[200];
    char peer[NETSRV_ADDRESS_MAX];
    snprintf(text, sizeof text, "worker %u: %s of connection %llu (%s)", netsrv_get_worker(c),
             what, (unsigned long long)netsrv_get_id(c), netsrv_peer_text(c, peer, sizeof peer));
    dwell(text);
}

static void all_start(netsrv_server *s, unsigned worker) {
    (void)s;
    (void)worker;
    dwell("worker 0: on_worker_start");
}

static void all_stop(netsrv_server *s, unsigned worker) {
    (void)s;
    (void)worker;
    dwell("worker 0: on_worker_stop");
}

static void all_open(netsrv_conn *c) {
    rig_on_open(c);
    dwell_of(c, "on_open");
}

static size_t all_split(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    if (!atomic_exchange(&all.armed, true)) {
        dwell_of(c, "split");
    }
    return n;
}

static void all_released(void *arg) {
    (void)arg;
    dwell("worker 0: release");
}

static void all_frame(netsrv_conn *c, const void *data, size_t n) {
    static const char bytes[20000];
    (void)data;
    (void)n;
    dwell_of(c, "on_frame");
    CHECK_EQ(netsrv_send_owned(c, bytes, sizeof bytes, all_released, NULL), NETSRV_HIGH);
}

static void all_drain(netsrv_conn *c) {
    dwell_of(c, "on_drain");
}

static void all_move(netsrv_conn *c) {
    dwell_of(c, "on_move");
}

static void all_eof(netsrv_conn *c) {
    rig_on_eof(c);
    dwell_of(c, "on_eof");
}

static void all_close(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    rig_on_close(c, reason, sys_errno);
    dwell_of(c, "on_close");
}

static void all_timer(netsrv_server *s, unsigned worker, netsrv_timer *t) {
    (void)s;
    (void)worker;
    (void)t;
    dwell("worker 0: a timer");
}

static void all_watch(netsrv_server *s, unsigned worker, int fd, unsigned ready, void *arg) {
    char text[100];
    (void)worker;
    (void)ready;
    (void)arg;
    snprintf(text, sizeof text, "worker 0: a watch of descriptor %d", fd);
    dwell(text);
    CHECK_EQ(netsrv_unwatch(s, all.watch), NETSRV_OK);
}

static void all_work(void *arg) {
    char text[100];
    (void)arg;
    snprintf(text, sizeof text, "offload thread 1: work of connection %llu",
             (unsigned long long)atomic_load(&last_id));
    dwell(text);
}

static void all_done(netsrv_conn *c, void *arg, netsrv_result result) {
    char text[100];
    (void)arg;
    CHECK_EQ(result, NETSRV_OK);
    snprintf(text, sizeof text, "worker 0: done of connection %llu",
             (unsigned long long)netsrv_get_id(c));
    dwell(text);
    CHECK_EQ(netsrv_move(c, 0), NETSRV_OK);
}

static bool all_filter(netsrv_conn *c, void *arg) {
    (void)arg;
    dwell("worker 0: a broadcast");
    atomic_store(&last_id, netsrv_get_id(c));
    return false;
}

static void all_posted(netsrv_server *s, unsigned worker, void *arg) {
    (void)worker;
    (void)arg;
    dwell("worker 0: a posted function");
    all.timer.fn = all_timer;
    CHECK_EQ(netsrv_timer_start(s, &all.timer, 0, 0), NETSRV_OK);
    CHECK_EQ(netsrv_watch(s, all.pipe[0], NETSRV_READABLE, all_watch, NULL, &all.watch),
             NETSRV_OK);
    CHECK_EQ(netsrv_offload(netsrv_find(s, atomic_load(&last_id)), all_work, all_done, NULL, 0,
                            NULL), NETSRV_OK);
}

static unsigned all_pick(netsrv_server *s, const netsrv_peer *peer, unsigned accepting) {
    (void)s;
    (void)peer;
    (void)accepting;
    dwell("acceptor 0: pick");
    return 0;
}

static void whatever_is_called(netsrv_backend b) {
    netsrv_config cfg = stuck_config(b, 1);
    cfg.accept = NETSRV_ACCEPT_ACCEPTOR;
    cfg.place = NETSRV_PLACE_CUSTOM;
    cfg.pick = all_pick;
    cfg.framing = NETSRV_FRAMING_CUSTOM;
    cfg.split = all_split;
    cfg.on_data = NULL;
    cfg.on_worker_start = all_start;
    cfg.on_worker_stop = all_stop;
    cfg.on_open = all_open;
    cfg.on_frame = all_frame;
    cfg.on_drain = all_drain;
    cfg.on_move = all_move;
    cfg.on_eof = all_eof;
    cfg.on_close = all_close;
    cfg.high_mark_bytes = 10000;
    memset(&all, 0, sizeof all);
    REQUIRE(port_pipe(all.pipe) == 0);
    REQUIRE(write(all.pipe[1], "x", 1) == 1);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "x"));
    CHECK_EQ(peer_skip(fd, 20000), 20000);
    netsrv_buffer *buffer = netsrv_buffer_create(s, "x", 1);
    CHECK_EQ(netsrv_broadcast(s, buffer, all_filter, NULL, NULL), NETSRV_OK);
    netsrv_buffer_release(buffer);
    CHECK_WITHIN(20000, rig_log_has("worker 0: a broadcast took "));
    CHECK_EQ(netsrv_post(s, 0, all_posted, NULL), NETSRV_OK);
    CHECK_WITHIN(20000, rig_log_has("worker 0: a timer took "));
    CHECK_WITHIN(20000, rig_log_has("worker 0: a watch of descriptor "));
    CHECK_WITHIN(20000, rig_log_has("worker 0: on_move of connection "));
    shutdown(fd, SHUT_WR);
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    CHECK_WITHIN(20000, rig_closes() == 1 && rig_total(s).live == 0);
    end_with(s, 17);
    close(all.pipe[0]);
    close(all.pipe[1]);
}

/* ---- several at once, elsewhere, and at a stop ----------------------------------------------- */

/* Two of three workers: both are told, and everybody else is served by the third. For the workers,
 * time is made to pass: the third may have to wait for a processor, but not that long. */
static void two_at_once(netsrv_backend b) {
    netsrv_config cfg = stuck_config(b, 3);
    netsrv_stats stats;
    int held = 0;
    int fd[2];
    int more[20];
    cfg.accept = NETSRV_ACCEPT_ACCEPTOR;
    cfg.place = NETSRV_PLACE_LEAST;
    cfg.stall_ms = 30000;
    cfg.on_data = gated_data;
    gate_close();
    seam_reset(0);
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < 2; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd[i], "w"));
        CHECK_WITHIN(10000, atomic_load(&waiting) == i + 1);
    }
    SEAM_SET(clock_ms, 60000);
    for (int i = 0; i < 20; i++) {
        more[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(more[i], "q") && peer_gets(more[i], "q"));
    }
    for (unsigned i = 0; i < 3; i++) {
        char worker[40];
        netsrv_get_stats(s, i, &stats);
        snprintf(worker, sizeof worker, "worker %u: on_data of connection", i);
        CHECK(stats.live == 20 || stats.live == 1);
        held += stats.live == 1;
        CHECK_WITHIN(10000, stats.live == 20 || rig_log_has(worker));
    }
    CHECK_EQ(held, 2);
    atomic_store(&gate_open, 1);
    for (int i = 0; i < 20; i++) {
        close(more[i]);
    }
    for (int i = 0; i < 2; i++) {
        CHECK(peer_gets(fd[i], "w"));
        close(fd[i]);
    }
    end_with(s, 2);
    seam_reset(0);
}

/* Callbacks on threads of connections: which of them. */
static void on_own_threads(netsrv_backend b) {
    netsrv_config cfg = stuck_config(b, 1);
    int fd[3];
    cfg.place = NETSRV_PLACE_OWN_THREAD;
    cfg.on_data = gated_data;
    gate_close();
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < 3; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd[i], "w"));
        CHECK_WITHIN(10000, atomic_load(&waiting) == i + 1);
    }
    CHECK_WITHIN(10000, rig_log_has("handler thread 1: on_data of connection"));
    CHECK_WITHIN(10000, rig_log_has("handler thread 2: on_data of connection"));
    CHECK_WITHIN(10000, rig_log_has("handler thread 3: on_data of connection"));
    atomic_store(&gate_open, 1);
    for (int i = 0; i < 3; i++) {
        CHECK(peer_gets(fd[i], "w"));
        close(fd[i]);
    }
    end_with(s, 3);
}

/* Its time is over, and it goes on; the report comes all the same, and again after a restart. */
static void stop_while_stuck(netsrv_backend b, unsigned handler_threads) {
    netsrv_config cfg = stuck_config(b, 2);
    char text[200];
    cfg.on_open = note_id;
    cfg.on_data = gated_data;
    cfg.handler_threads = handler_threads;
    netsrv_server *s = rig_start(&cfg);
    for (unsigned life = 1; life <= 2; life++) {
        const int fd = peer_connect(netsrv_get_port(s, 0));
        gate_close();
        CHECK(peer_say(fd, "w"));
        CHECK_WITHIN(10000, atomic_load(&waiting) == 1);
        netsrv_stop(s, 0);
        name_conn(atomic_load(&last_id), fd, "on_data", text, sizeof text);
        CHECK_WITHIN(10000, told_begun(text));
        CHECK_EQ(netsrv_wait_for(s, 10), NETSRV_TIMED_OUT);
        atomic_store(&gate_open, 1);
        CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(20000)), NETSRV_OK);
        CHECK(told(text));
        close(fd);
        CHECK_EQ(netsrv_start(s, NULL), NETSRV_OK);
    }
    end_with(s, 2);
}

/* ---- what is not reported -------------------------------------------------------------------- */

static void off_says_nothing(netsrv_backend b) {
    netsrv_config cfg = stuck_config(b, 1);
    cfg.stuck_ms = 0;
    cfg.on_data = gated_data;
    gate_close();
    const int threads = check_count_threads();
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(netsrv_get_config(s)->stuck_ms, NETSRV_OFF);
    CHECK(check_count_threads() <= threads + 1);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "w"));
    CHECK_WITHIN(10000, atomic_load(&waiting) == 1);
    CHECK(peer_silent(fd, 3 * STUCK_MS));
    atomic_store(&gate_open, 1);
    CHECK(peer_gets(fd, "w"));
    close(fd);
    end_with(s, 0);
    CHECK_EQ(atomic_load(&begun), 0);
}

/* Many short ones in one long turn: each line is a call of its own, with its own time. */
static void count_lines(netsrv_conn *c, const void *line, size_t n) {
    static _Atomic uint32_t last;
    const netsrv__pulse *p = &netsrv__self->pulse;
    CHECK(atomic_load(&p->state) == p->beat && p->beat != atomic_load(&last));
    atomic_store(&last, p->beat);
    netsrv_send(c, line, n);
}

static void short_ones(netsrv_backend b) {
    netsrv_config cfg = stuck_config(b, 1);
    char lines[400];
    cfg.stuck_ms = 60000;
    cfg.framing = NETSRV_FRAMING_LINE;
    cfg.on_frame = count_lines;
    for (size_t i = 0; i < sizeof lines; i += 2) {
        memcpy(lines + i, "x\n", 2);
    }
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_send(fd, lines, sizeof lines));
    CHECK_EQ(peer_skip(fd, sizeof lines / 2), sizeof lines / 2);
    close(fd);
    end_with(s, 0);
    CHECK_EQ(atomic_load(&begun), 0);
}

/* When a call is stuck, by the clock; it is found once, and the next one has its time before it. */
static void when_it_is(void) {
    static netsrv__worker w;
    netsrv__scene scene;
    seam_reset(0);
    w.pulse.on = true;
    for (int round = 0; round < 3; round++) {
        uint32_t left = 1000000;
        CHECK(!netsrv__pulse_stuck(&w.pulse, 100000, &scene, &left));
        CHECK_EQ(left, 1000000);
        netsrv__pulse_begin(&w, NETSRV__ACT_WATCH, 77, NULL);
        SEAM_ADD(clock_ms, 40000);
        CHECK(!netsrv__pulse_stuck(&w.pulse, 100000, &scene, &left));
        CHECK(left <= 60001 && left > 1);
        CHECK(scene.id == 77 && scene.act == NETSRV__ACT_WATCH);
        SEAM_ADD(clock_ms, left);
        CHECK(netsrv__pulse_stuck(&w.pulse, 100000, &scene, &left));
        CHECK(!netsrv__pulse_stuck(&w.pulse, 100000, &scene, &left));
        CHECK_EQ(atomic_exchange(&w.pulse.state, 0) & 1u, 1);
    }
    /* Numbered around the end of the numbers, and begun before the clock's low bits turn. */
    w.pulse.beat = UINT32_MAX - 1;
    netsrv__pulse_begin(&w, NETSRV__ACT_TIMER, 0, NULL);
    CHECK_EQ(w.pulse.beat, 2);
    uint32_t left = 1000000;
    SEAM_ADD(clock_ms, UINT32_MAX - 1000u);
    CHECK(!netsrv__pulse_stuck(&w.pulse, 100000, &scene, &left));
    CHECK_EQ(left, 1000000);
    seam_reset(0);
}

/* ---- races ----------------------------------------------------------------------------------- */

/* Around the bound: whoever is told to have begun is told to have ended, and is counted. */
static size_t about_the_bound(netsrv_conn *c, const void *data, size_t n) {
    const struct timespec t = { 0, 1000000 + (long)seam_draw(3000000) };
    nanosleep(&t, NULL);
    return rig_on_data(c, data, n);
}

static void *talk(void *port) {
    for (int i = 0; i < 6; i++) {
        const int fd = peer_connect(*(const uint16_t *)port);
        for (int k = 0; k < 8; k++) {
            CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
        }
        close(fd);
    }
    return NULL;
}

static void around_the_bound(netsrv_backend b, unsigned handler_threads) {
    netsrv_config cfg = stuck_config(b, 2);
    pthread_t t[4];
    cfg.stuck_ms = 2;
    cfg.on_data = about_the_bound;
    cfg.handler_threads = handler_threads;
    seam_reset(5);
    SEAM_SET(disturb, true);
    netsrv_server *s = rig_start(&cfg);
    uint16_t port = netsrv_get_port(s, 0);
    for (int i = 0; i < 4; i++) {
        REQUIRE(pthread_create(&t[i], NULL, talk, &port) == 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
    }
    end_with(s, 0);
    seam_reset(0);
}

/* Threads come and go under the eyes of the one that looks all the time. */
static void lives(netsrv_backend b) {
    netsrv_config cfg = stuck_config(b, 1);
    cfg.stuck_ms = 1;
    cfg.handler_threads = 6;
    netsrv_server *s = rig_start(&cfg);
    for (int life = 0; life < 20; life++) {
        CHECK(peer_served(netsrv_get_port(s, 0)));
        netsrv_stop(s, 1000);
        CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(20000)), NETSRV_OK);
        CHECK_EQ(netsrv_start(s, NULL), NETSRV_OK);
    }
    end_with(s, 0);
}

static void no_thread(netsrv_backend b) {
    const netsrv_config cfg = stuck_config(b, 2);
    netsrv_server *s = NULL;
    netsrv_error error;
    seam_reset(0);
    REQUIRE(netsrv_create(&s, &cfg, &error) == NETSRV_OK);
    seam_fail((seam_plan){ "pthread_create", 1, EAGAIN, 1 });
    CHECK_EQ(netsrv_start(s, &error), NETSRV_SYSTEM);
    CHECK_HAS(error.text, "stuck_ms");
    CHECK_EQ(netsrv_start(s, &error), NETSRV_OK);
    CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
    seam_reset(0);
}

static void cases(netsrv_backend b) {
    CASE("by name, places used again", by_name(b, 0));
    CASE("by name, handler threads", by_name(b, 1));
    CASE("whatever is called", whatever_is_called(b));
    CASE("two at once, and who is served", two_at_once(b));
    CASE("threads of connections", on_own_threads(b));
    CASE("a stop while stuck", stop_while_stuck(b, 0));
    CASE("a stop while stuck, handler threads", stop_while_stuck(b, 2));
    CASE("off says nothing", off_says_nothing(b));
    CASE("many short ones", short_ones(b));
    CASE("around the bound", around_the_bound(b, 0));
    CASE("around the bound, handler threads", around_the_bound(b, 3));
    CASE("started and stopped", lives(b));
    CASE("no thread for it", no_thread(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    CASE("when a call is stuck", when_it_is());
    rig_each_backend(cases);
    return check_end();
}
