/* life.c: create, start, stop, wait, destroy, from every thread and in every order. */
#include "../seam.h"

#include "rig.h"

static netsrv_server *the_server;
static atomic_int answer = -1;

/* ---- order of calls -------------------------------------------------------------------------- */

static void never_started(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = NULL;
    for (int stops = 0; stops < 3; stops++) {
        REQUIRE(netsrv_create(&s, &cfg, NULL) == NETSRV_OK);
        CHECK_NE(netsrv_get_port(s, 0), 0);
        CHECK(!netsrv_stopping(s));
        CHECK_EQ(netsrv_wait(s), NETSRV_OK);
        CHECK_EQ(netsrv_wait_for(s, 0), NETSRV_OK);
        CHECK_EQ(netsrv_post(s, 0, rig_nothing, NULL), NETSRV_STOPPED);
        const netsrv_result sent = netsrv_send_to(s, 1, "x", 1);
        CHECK(sent == NETSRV_GONE || sent == NETSRV_STOPPED);
        for (int i = 0; i < stops; i++) {
            netsrv_stop(s, 1000);
        }
        CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
    }
}

static void stop_before_start(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = NULL;
    netsrv_error error;
    REQUIRE(netsrv_create(&s, &cfg, NULL) == NETSRV_OK);
    netsrv_stop(s, 1000);
    CHECK(netsrv_stopping(s));
    CHECK_EQ(netsrv_start(s, &error), NETSRV_STOPPED);
    CHECK_EQ(error.result, NETSRV_STOPPED);
    CHECK_EQ(netsrv_wait(s), NETSRV_OK);
    CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
}

static void destroy_right_after_start(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 3);
    for (int i = 0; i < 20; i++) {
        netsrv_server *s = rig_start(&cfg);
        CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
    }
}

static void destroy_while_serving(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
    CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
    CHECK_NE(peer_end(fd), PEER_STUCK);
    CHECK_EQ(rig_opens(), 1);
    CHECK_EQ(rig_closes(), 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_STOP), 1);
    close(fd);
}

static void start_twice(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(netsrv_start(s, NULL), NETSRV_BAD_STATE);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    rig_stop(s, 1000);
}

static void start_again(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = rig_start(&cfg);
    const uint16_t port = netsrv_get_port(s, 0);
    for (int i = 0; i < 10; i++) {
        CHECK(!netsrv_stopping(s));
        CHECK_EQ(netsrv_get_port(s, 0), port);
        CHECK(peer_served(port));
        netsrv_stop(s, i % 2 == 0 ? 0 : 1000);
        CHECK_EQ(netsrv_wait(s), NETSRV_OK);
        REQUIRE(netsrv_start(s, NULL) == NETSRV_OK);
    }
    CHECK(peer_served(port));
    rig_stop(s, 1000);
}

static void wait_twice(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(netsrv_wait_for(s, 0), NETSRV_TIMED_OUT);
    const uint64_t before = check_now_ms();
    CHECK_EQ(netsrv_wait_for(s, 30), NETSRV_TIMED_OUT);
    CHECK_GE(check_now_ms() - before, 30);
    netsrv_stop(s, 1000);
    CHECK_EQ(netsrv_wait(s), NETSRV_OK);
    CHECK_EQ(netsrv_wait(s), NETSRV_OK);
    CHECK_EQ(netsrv_wait_for(s, 0), NETSRV_OK);
    CHECK_EQ(netsrv_post(s, 0, rig_nothing, NULL), NETSRV_STOPPED);
    CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
}

static void several_servers(netsrv_backend b) {
    enum { N = 5 };
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s[N];
    for (int i = 0; i < N; i++) {
        s[i] = rig_start(&cfg);
    }
    netsrv_stop(s[2], 0);
    CHECK_EQ(netsrv_wait(s[2]), NETSRV_OK);
    for (int i = 0; i < N; i++) {
        CHECK(i == 2 || peer_served(netsrv_get_port(s[i], 0)));
    }
    for (int i = N - 1; i >= 0; i--) {
        CHECK_EQ(netsrv_destroy(s[i]), NETSRV_OK);
    }
}

/* ---- who may stop ---------------------------------------------------------------------------- */

static void *stopper(void *s) {
    netsrv_stop(s, 1000);
    return NULL;
}

static void stop_from_threads(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    for (int round = 0; round < 20; round++) {
        netsrv_server *s = rig_start(&cfg);
        pthread_t t[2];
        pthread_create(&t[0], NULL, stopper, s);
        pthread_create(&t[1], NULL, stopper, s);
        CHECK_EQ(netsrv_wait(s), NETSRV_OK);
        pthread_join(t[0], NULL);
        pthread_join(t[1], NULL);
        rig_end(s);
    }
}

static void on_usr1(int sig) {
    (void)sig;
    netsrv_stop(the_server, 1000);
}

static void stop_from_signal(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    struct sigaction act = { .sa_handler = on_usr1 };
    struct sigaction old;
    sigaction(SIGUSR1, &act, &old);
    the_server = rig_start(&cfg);
    CHECK(peer_served(netsrv_get_port(the_server, 0)));
    kill(getpid(), SIGUSR1);
    rig_end(the_server);
    sigaction(SIGUSR1, &old, NULL);
}

/* A callback that stops; each test says which. */
enum { AT_START, AT_OPEN, AT_DATA, AT_EOF, AT_CLOSE, AT_POST, AT_LOG, PLACES };
static int stop_at;

static void stop_if(netsrv_server *s, int place) {
    if (place == stop_at) {
        netsrv_stop(s, 500);
    }
}

static void stop_on_start(netsrv_server *s, unsigned worker) {
    if (worker == 0) {
        stop_if(s, AT_START);
    }
}

static void stop_on_open(netsrv_conn *c) {
    rig_on_open(c);
    stop_if(netsrv_get_server(c), AT_OPEN);
}

static size_t stop_on_data(netsrv_conn *c, const void *data, size_t n) {
    stop_if(netsrv_get_server(c), AT_DATA);
    return rig_on_data(c, data, n);
}

static void stop_on_eof(netsrv_conn *c) {
    stop_if(netsrv_get_server(c), AT_EOF);
}

static void stop_on_close(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    stop_if(netsrv_get_server(c), AT_CLOSE);
    rig_on_close(c, reason, sys_errno);
}

static void stop_on_post(netsrv_server *s, unsigned worker, void *arg) {
    (void)worker;
    (void)arg;
    stop_if(s, AT_POST);
}

static void stop_on_log(void *user, netsrv_log_level level, const char *text) {
    rig_log(user, level, text);
    if (the_server != NULL) {
        stop_if(the_server, AT_LOG);
    }
}

static void stop_from_callbacks(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.on_worker_start = stop_on_start;
    cfg.on_open = stop_on_open;
    cfg.on_data = stop_on_data;
    cfg.on_eof = stop_on_eof;
    cfg.on_close = stop_on_close;
    for (stop_at = AT_START; stop_at < AT_LOG; stop_at++) {
        netsrv_server *s = NULL;
        rig_seen_clear();
        REQUIRE(netsrv_create(&s, &cfg, NULL) == NETSRV_OK);
        const netsrv_result started = netsrv_start(s, NULL);
        CHECK(started == NETSRV_OK || (stop_at == AT_START && started == NETSRV_STOPPED));
        if (stop_at == AT_POST) {
            CHECK_EQ(netsrv_post(s, 1, stop_on_post, NULL), NETSRV_OK);
        } else if (stop_at != AT_START) {
            const int fd = peer_connect(netsrv_get_port(s, 0));
            CHECK(peer_say(fd, "hi") && peer_gets(fd, "hi"));
            shutdown(fd, SHUT_WR);
            CHECK_EQ(peer_end(fd), PEER_FIN);
            close(fd);
        }
        rig_end(s);
    }
}

static void stop_from_log(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.on_log = stop_on_log;
    stop_at = AT_LOG;
    the_server = NULL;
    netsrv_server *s = rig_start(&cfg);
    the_server = s;
    netsrv_stop(s, 100);
    rig_end(s);
    the_server = NULL;
}

/* ---- what is not allowed on the server's own threads ----------------------------------------- */

static void try_all(netsrv_server *s, unsigned worker, void *arg) {
    netsrv_error error;
    (void)worker;
    (void)arg;
    CHECK_EQ(netsrv_wait(s), NETSRV_BAD_THREAD);
    CHECK_EQ(netsrv_wait_for(s, 10), NETSRV_BAD_THREAD);
    CHECK_EQ(netsrv_destroy(s), NETSRV_BAD_THREAD);
    CHECK_EQ(netsrv_start(s, &error), NETSRV_BAD_THREAD);
    CHECK_EQ(error.result, NETSRV_BAD_THREAD);
    atomic_store(&answer, 1);
}

static void bad_thread(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = rig_start(&cfg);
    atomic_store(&answer, 0);
    CHECK_EQ(netsrv_post(s, 1, try_all, NULL), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&answer) == 1);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    rig_stop(s, 1000);
}

/* A callback of one server may own another server. */
static void nested(netsrv_server *s, unsigned worker, void *arg) {
    const netsrv_config cfg = rig_config(*(netsrv_backend *)arg, 2);
    netsrv_server *inner = NULL;
    (void)s;
    (void)worker;
    CHECK_EQ(netsrv_create(&inner, &cfg, NULL), NETSRV_OK);
    CHECK_EQ(netsrv_start(inner, NULL), NETSRV_OK);
    CHECK(peer_served(netsrv_get_port(inner, 0)));
    CHECK_EQ(netsrv_destroy(inner), NETSRV_OK);
    atomic_store(&answer, 2);
}

static void server_in_server(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(netsrv_post(s, 0, nested, &b), NETSRV_OK);
    CHECK_WITHIN(10000, atomic_load(&answer) == 2);
    rig_stop(s, 1000);
}

/* ---- netsrv_run ------------------------------------------------------------------------------ */

static atomic_int run_port;

static void tell_port(netsrv_server *s, unsigned worker) {
    (void)worker;
    atomic_store(&run_port, netsrv_get_port(s, 0));
}

static void *run_client(void *arg) {
    (void)arg;
    CHECK_WITHIN(5000, atomic_load(&run_port) != 0);
    const int fd = peer_connect((uint16_t)atomic_load(&run_port));
    CHECK(peer_say(fd, "bye") && peer_gets(fd, "bye"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    return NULL;
}

static void run_ends_by_callback(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    netsrv_error error;
    pthread_t t;
    cfg.on_worker_start = tell_port;
    cfg.on_data = stop_on_data;
    stop_at = AT_DATA;
    atomic_store(&run_port, 0);
    pthread_create(&t, NULL, run_client, NULL);
    CHECK_EQ(netsrv_run(&cfg, &error), NETSRV_OK);
    CHECK_EQ(error.result, NETSRV_OK);
    CHECK_STR(error.text, "");
    pthread_join(t, NULL);
}

static void run_refuses(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    netsrv_error error;
    cfg.listen[0] = "nonsense";
    CHECK_EQ(netsrv_run(&cfg, &error), NETSRV_BAD_ADDRESS);
    CHECK_HAS(error.text, "nonsense");
}

/* ---- worker callbacks ------------------------------------------------------------------------ */

#define WORKERS 4
static pthread_t worker_thread[WORKERS];
static atomic_int worker_starts[WORKERS];
static atomic_int worker_stops[WORKERS];

static void on_worker_start(netsrv_server *s, unsigned worker) {
    CHECK(s != NULL && worker < WORKERS);
    worker_thread[worker] = pthread_self();
    atomic_fetch_add(&worker_starts[worker], 1);
}

static void on_worker_stop(netsrv_server *s, unsigned worker) {
    CHECK(s != NULL && worker < WORKERS);
    CHECK(pthread_equal(worker_thread[worker], pthread_self()));
    atomic_fetch_add(&worker_stops[worker], 1);
}

static size_t on_own_thread(netsrv_conn *c, const void *data, size_t n) {
    CHECK(pthread_equal(worker_thread[netsrv_get_worker(c)], pthread_self()));
    return rig_on_data(c, data, n);
}

static void worker_callbacks(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, WORKERS);
    cfg.on_worker_start = on_worker_start;
    cfg.on_worker_stop = on_worker_stop;
    cfg.on_data = on_own_thread;
    cfg.place = NETSRV_PLACE_ROUND_ROBIN;
    for (int i = 0; i < WORKERS; i++) {
        atomic_store(&worker_starts[i], 0);
        atomic_store(&worker_stops[i], 0);
    }
    netsrv_server *s = rig_start(&cfg);
    for (int round = 1; round <= 2; round++) {
        for (int i = 0; i < 2 * WORKERS; i++) {
            CHECK(peer_served(netsrv_get_port(s, 0)));
        }
        netsrv_stop(s, 1000);
        CHECK_EQ(netsrv_wait(s), NETSRV_OK);
        for (int i = 0; i < WORKERS; i++) {
            CHECK_EQ(atomic_load(&worker_starts[i]), round);
            CHECK_EQ(atomic_load(&worker_stops[i]), round);
        }
        if (round == 1) {
            REQUIRE(netsrv_start(s, NULL) == NETSRV_OK);
        }
    }
    rig_end(s);
}

/* ---- a thread that cannot be made ------------------------------------------------------------ */

static void thread_k_fails(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 4);
    netsrv_error error;
    cfg.accept = NETSRV_ACCEPT_ACCEPTOR;
    cfg.place = NETSRV_PLACE_LEAST;
    cfg.on_worker_start = on_worker_start;
    cfg.on_worker_stop = on_worker_stop;
    for (unsigned k = 1; k <= 5; k++) {
        netsrv_server *s = NULL;
        seam_reset(k);
        for (int i = 0; i < WORKERS; i++) {
            atomic_store(&worker_starts[i], 0);
            atomic_store(&worker_stops[i], 0);
        }
        REQUIRE(netsrv_create(&s, &cfg, NULL) == NETSRV_OK);
        seam_fail((seam_plan){ "pthread_create", k, EAGAIN, 1 });
        CHECK_EQ(netsrv_start(s, &error), NETSRV_SYSTEM);
        CHECK_EQ(error.sys_errno, EAGAIN);
        CHECK_HAS(error.text, "thread");
        WAIT_FOR(10000, check_count_threads() == check_state.threads_before);
        CHECK_EQ(check_count_threads(), check_state.threads_before);
        for (int i = 0; i < WORKERS; i++) {
            CHECK_EQ(atomic_load(&worker_starts[i]), atomic_load(&worker_stops[i]));
        }
        CHECK_EQ(netsrv_start(s, &error), NETSRV_OK);
        CHECK(peer_served(netsrv_get_port(s, 0)));
        netsrv_stop(s, 0);
        CHECK_EQ(netsrv_wait(s), NETSRV_OK);
        CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
    }
    seam_reset(0);
}

/* The host's signal mask and dispositions are its own business. */
static void signals_untouched(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    struct sigaction before[NSIG];
    sigset_t mask_before;
    for (int sig = 1; sig < NSIG; sig++) {
        memset(&before[sig], 0, sizeof before[sig]);
        sigaction(sig, NULL, &before[sig]);
    }
    pthread_sigmask(SIG_SETMASK, NULL, &mask_before);
    netsrv_server *s = rig_start(&cfg);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    for (int sig = 1; sig < NSIG; sig++) {
        struct sigaction now;
        memset(&now, 0, sizeof now);
        sigaction(sig, NULL, &now);
        CHECK(now.sa_handler == before[sig].sa_handler);
    }
    sigset_t mask_now;
    pthread_sigmask(SIG_SETMASK, NULL, &mask_now);
    for (int sig = 1; sig < NSIG; sig++) {
        CHECK_EQ(sigismember(&mask_now, sig), sigismember(&mask_before, sig));
    }
    rig_stop(s, 1000);
}

static void all(netsrv_backend b) {
    CASE("never started", never_started(b));
    CASE("stop before start", stop_before_start(b));
    CASE("destroy right after start", destroy_right_after_start(b));
    CASE("destroy while serving", destroy_while_serving(b));
    CASE("start twice", start_twice(b));
    CASE("start again", start_again(b));
    CASE("wait twice", wait_twice(b));
    CASE("several servers", several_servers(b));
    CASE("stop from two threads", stop_from_threads(b));
    CASE("stop from a signal handler", stop_from_signal(b));
    CASE("stop from every callback", stop_from_callbacks(b));
    CASE("stop from on_log", stop_from_log(b));
    CASE("not on the server's own threads", bad_thread(b));
    CASE("a server inside a server's callback", server_in_server(b));
    CASE("run ends by a callback", run_ends_by_callback(b));
    CASE("run refuses", run_refuses(b));
    CASE("worker callbacks", worker_callbacks(b));
    CASE("thread k cannot be made", thread_k_fails(b));
    CASE("signals are left alone", signals_untouched(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
