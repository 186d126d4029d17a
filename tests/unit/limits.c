/* limits.c: failing accepts, too few descriptors, limits on connections; signals as well. */
#include "../seam.h"

#include "rig.h"

#include <sys/resource.h>

/* ---- accept ---------------------------------------------------------------------------------- */

static void accept_errors(netsrv_backend b) {
    static const int errnos[] = {
        ECONNABORTED, EPROTO, EPERM, ENETDOWN, EHOSTUNREACH, EOPNOTSUPP, ENOPROTOOPT, ENETUNREACH,
        EINTR,
    };
    for (size_t i = 0; i < sizeof errnos / sizeof errnos[0]; i++) {
        const netsrv_config cfg = rig_config(b, 2);
        netsrv_server *s = rig_start(&cfg);
        seam_fail_next("accept4", errnos[i], 20);
        if (!CHECK(peer_served(netsrv_get_port(s, 0))) || !CHECK(!netsrv_stopping(s))) {
            fprintf(stderr, "  after %s\n", strerror(errnos[i]));
        }
        CHECK_GE(SEAM_GET(fired), 1);
        seam_fail_stop();
        rig_stop(s, 0);
        seam_reset(0);
    }
}

/* While accept keeps failing for lack of something, the server waits: no spin, no chatter. */
static void accept_shortage(netsrv_backend b) {
    static const int errnos[] = { EMFILE, ENFILE, ENOBUFS, ENOMEM };
    for (size_t i = 0; i < sizeof errnos / sizeof errnos[0]; i++) {
        const netsrv_config cfg = rig_config(b, 2);
        netsrv_server *s = rig_start(&cfg);
        seam_fail_next("accept4", errnos[i], SEAM_FOREVER);
        const int fd = peer_connect(netsrv_get_port(s, 0));
        CHECK_WITHIN(5000, SEAM_GET(fired) > 0);
        CHECK(rig_rests(300));
        CHECK_LE(SEAM_GET(fired), 1000);
        CHECK_LE(rig_log_lines(NETSRV_LOG_WARN) + rig_log_lines(NETSRV_LOG_ERROR), 8);
        CHECK_GE(rig_total(s).pauses, 1);
        seam_fail_stop();
        CHECK(peer_say(fd, "at last") && peer_gets(fd, "at last"));
        close(fd);
        rig_stop(s, 0);
        seam_reset(0);
    }
}

static void reset_before_accept(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < 200; i++) {
        peer_reset(peer_connect(netsrv_get_port(s, 0)));
    }
    CHECK(peer_served(netsrv_get_port(s, 0)));
    CHECK_WITHIN(5000, rig_closes() == rig_opens());
    rig_stop(s, 0);
}

#define CROWD 40
#define FILLERS 256

/* No descriptor is free: clients wait in the backlog at no cost, and are served when others leave.
 * Four are left to the server. The limit is there before it starts: with some backends, a request
 * for connections keeps to the limit of its beginning. */
static void out_of_descriptors(netsrv_backend b, netsrv_accept accept) {
    struct rlimit old;
    struct rlimit few;
    int fd[CROWD];
    int fillers[FILLERS];
    netsrv_config cfg = rig_config(b, 2);
    cfg.accept = accept;
    cfg.place = NETSRV_PLACE_ROUND_ROBIN;
    const int highest = dup(0);
    close(highest);
    getrlimit(RLIMIT_NOFILE, &old);
    few = old;
    few.rlim_cur = (rlim_t)(highest + CROWD + FILLERS / 2);
    setrlimit(RLIMIT_NOFILE, &few);
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < CROWD; i++) {
        fd[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        peer_deadline(fd[i], check_scaled(PEER_DEADLINE_MS));
    }
    int filled = 0;
    while (filled < FILLERS && (fillers[filled] = dup(0)) >= 0) {
        filled++;
    }
    for (int i = 0; i < 4; i++) {
        close(fillers[--filled]);
    }
    const struct sockaddr_in target = peer_loopback(1, netsrv_get_port(s, 0));
    for (int i = 0; i < CROWD; i++) {
        CHECK(connect(fd[i], (const struct sockaddr *)&target, sizeof target) == 0);
        CHECK(peer_say(fd[i], "x"));
    }
    CHECK_WITHIN(5000, rig_opens() == 4 && rig_total(s).pauses > 0);
    CHECK(rig_rests(300));
    CHECK_EQ(rig_opens(), 4);
    CHECK_LE(rig_log_lines(NETSRV_LOG_WARN) + rig_log_lines(NETSRV_LOG_ERROR), 8);
    for (int i = 0; i < CROWD; i++) {
        CHECK(peer_gets(fd[i], "x"));
        shutdown(fd[i], SHUT_WR);
        CHECK_EQ(peer_end(fd[i]), PEER_FIN);
    }
    setrlimit(RLIMIT_NOFILE, &old);
    while (filled > 0) {
        close(fillers[--filled]);
    }
    for (int i = 0; i < CROWD; i++) {
        close(fd[i]);
    }
    CHECK_WITHIN(5000, rig_closes() == CROWD);
    rig_stop(s, 0);
}

static void out_of_descriptors_each(netsrv_backend b) {
    for (int accept = NETSRV_ACCEPT_SINGLE; accept <= NETSRV_ACCEPT_EDGE; accept++) {
        if (rig_accepts(b, accept)) {
            out_of_descriptors(b, (netsrv_accept)accept);
        }
    }
}

/* ---- limits on connections ------------------------------------------------------------------- */

static atomic_uint most_live;

static void count_live(netsrv_conn *c) {
    rig_on_open(c);
    const unsigned live = (unsigned)(rig_opens() - rig_closes());
    unsigned most = atomic_load(&most_live);
    while (live > most && !atomic_compare_exchange_weak(&most_live, &most, live)) {
    }
}

/* `limit` are served, the others wait; all leave at once, and the next are served. */
static void max_conns(netsrv_backend b, netsrv_accept accept, unsigned limit) {
    int fd[CROWD];
    netsrv_config cfg = rig_config(b, 3);
    cfg.accept = accept;
    cfg.place = NETSRV_PLACE_ROUND_ROBIN;
    cfg.max_conns = limit;
    cfg.on_open = count_live;
    atomic_store(&most_live, 0);
    netsrv_server *s = rig_start(&cfg);
    for (int round = 0; round < 3; round++) {
        const unsigned long before = rig_opens();
        for (int i = 0; i < CROWD; i++) {
            fd[i] = peer_connect(netsrv_get_port(s, 0));
            CHECK(peer_say(fd[i], "x"));
        }
        CHECK_WITHIN(5000, rig_opens() == before + limit);
        CHECK(rig_rests(50));
        CHECK_EQ(rig_opens(), before + limit);
        for (int i = 0; i < CROWD; i++) {
            shutdown(fd[i], SHUT_WR);
        }
        for (int i = 0; i < CROWD; i++) {
            CHECK(peer_gets(fd[i], "x"));
            close(fd[i]);
        }
        CHECK_WITHIN(5000, rig_closes() == before + CROWD);
    }
    CHECK_LE(atomic_load(&most_live), limit);
    rig_stop(s, 0);
}

static void max_conns_each(netsrv_backend b) {
    for (int accept = NETSRV_ACCEPT_SINGLE; accept < NETSRV_ACCEPT_COUNT; accept++) {
        if (rig_accepts(b, accept)) {
            max_conns(b, (netsrv_accept)accept, 1);
            max_conns(b, (netsrv_accept)accept, 7);
        }
    }
}

static void max_conns_reject(netsrv_backend b) {
    int fd[10];
    netsrv_config cfg = rig_config(b, 2);
    cfg.max_conns = 3;
    cfg.overflow = NETSRV_OVERFLOW_REJECT;
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < 10; i++) {
        /* The reset may be faster than the end of the connecting. */
        fd[i] = peer_connect_from(0, netsrv_get_port(s, 0), check_scaled(PEER_DEADLINE_MS));
        const bool served = fd[i] >= 0 && peer_say(fd[i], "x") && peer_gets(fd[i], "x");
        CHECK_EQ(served, i < 3);
    }
    CHECK_WITHIN(5000, rig_total(s).refused == 7);
    CHECK_EQ(rig_opens(), 3);
    for (int i = 0; i < 10; i++) {
        close(fd[i]);
    }
    CHECK_WITHIN(5000, rig_total(s).live == 0);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    rig_stop(s, 0);
}

static void max_per_address(netsrv_backend b) {
    int fd[12];
    netsrv_config cfg = rig_config(b, 2);
    cfg.max_conns_per_address = 3;
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < 12; i++) {
        fd[i] = peer_connect_from((uint8_t)(2 + i % 3), netsrv_get_port(s, 0), check_scaled(5000));
        const bool served = peer_say(fd[i], "x") && peer_gets(fd[i], "x");
        CHECK_EQ(served, i < 9);
    }
    close(fd[0]);
    CHECK_WITHIN(5000, rig_total(s).live == 8);
    const int again = peer_connect_from(2, netsrv_get_port(s, 0), check_scaled(5000));
    CHECK(peer_say(again, "x") && peer_gets(again, "x"));
    close(again);
    for (int i = 1; i < 12; i++) {
        close(fd[i]);
    }
    CHECK_WITHIN(5000, rig_closes() == rig_opens());
    CHECK_WITHIN(5000, rig_total(s).refused == 3);
    rig_stop(s, 0);
}

/* Many addresses come and go: their counts go with them. */
static void addresses_are_forgotten(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.max_conns_per_address = 1;
    netsrv_server *s = rig_start(&cfg);
    long bytes = 0;
    for (unsigned round = 0; round < 4; round++) {
        for (unsigned last = 2; last < 202; last++) {
            const int fd = peer_connect_from((uint8_t)last, netsrv_get_port(s, 0),
                                             check_scaled(5000));
            CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
            close(fd);
            CHECK_WITHIN(5000, rig_closes() == round * 200 + last - 1 && rig_total(s).live == 0);
        }
        rig_poke(s); /* what is freed at the end of a turn has been */
        rig_poke(s);
        CHECK(round == 0 || check_alloc_bytes() <= bytes);
        bytes = check_alloc_bytes();
    }
    CHECK_EQ(rig_total(s).refused, 0);
    rig_stop(s, 0);
}

/* Ten a second: the first may come at once, the rest not before their time. */
static void accept_rate(netsrv_backend b) {
    int fd[25];
    netsrv_config cfg = rig_config(b, 2);
    cfg.max_accepts_per_second = 10;
    netsrv_server *s = rig_start(&cfg);
    const uint64_t began = check_now_ms();
    for (int i = 0; i < 25; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd[i], "x"));
    }
    for (int i = 0; i < 25; i++) {
        CHECK(peer_gets(fd[i], "x"));
        close(fd[i]);
    }
    CHECK_GE(check_now_ms() - began, 1000);
    rig_stop(s, 0);
}

/* ---- signals --------------------------------------------------------------------------------- */

static atomic_bool over;
static atomic_ulong signals;

static void on_usr2(int sig) {
    (void)sig;
    atomic_fetch_add_explicit(&signals, 1, memory_order_relaxed);
}

static pthread_t worker_thread[3];
static atomic_bool short_idle;

static void note_worker(netsrv_server *s, unsigned worker) {
    (void)s;
    worker_thread[worker] = pthread_self();
}

static void open_idle(netsrv_conn *c) {
    rig_on_open(c);
    if (atomic_load(&short_idle)) {
        netsrv_set_idle_timeout(c, 300);
    }
}

static void *disturber(void *arg) {
    (void)arg;
    while (!atomic_load(&over)) {
        for (int i = 0; i < 3; i++) {
            pthread_kill(worker_thread[i], SIGUSR2);
        }
        check_nap();
    }
    return NULL;
}

/* Signals of the host are for the host's threads: they do not interrupt the server's. */
static void signals_stay_with_the_host(netsrv_backend b) {
    static unsigned char bytes[100000];
    static unsigned char back[sizeof bytes];
    const struct sigaction act = { .sa_handler = on_usr2 };
    netsrv_config cfg = rig_config(b, 3);
    pthread_t t;
    sigaction(SIGUSR2, &act, NULL);
    cfg.on_worker_start = note_worker;
    cfg.place = NETSRV_PLACE_ROUND_ROBIN;
    cfg.on_open = open_idle;
    atomic_store(&short_idle, false);
    atomic_store(&over, false);
    netsrv_server *s = rig_start(&cfg);
    pthread_create(&t, NULL, disturber, NULL);
    peer_fill(bytes, sizeof bytes, 8);
    for (int i = 0; i < 20; i++) {
        const int fd = peer_connect(netsrv_get_port(s, 0));
        peer_send(fd, bytes, sizeof bytes);
        CHECK_EQ(peer_recv(fd, back, sizeof back), sizeof back);
        CHECK(memcmp(back, bytes, sizeof back) == 0);
        close(fd);
    }
    atomic_store(&short_idle, true);
    const uint64_t began = check_now_ms();
    const int idle = peer_connect(netsrv_get_port(s, 0));
    CHECK_NE(peer_end(idle), PEER_STUCK);
    CHECK_GE(check_now_ms() - began, 300);
    close(idle);
    atomic_store(&over, true);
    pthread_join(t, NULL);
    CHECK_EQ(atomic_load(&signals), 0);
    rig_stop(s, 0);
    signal(SIGUSR2, SIG_DFL);
}

static void all(netsrv_backend b) {
    CASE("accept errors", accept_errors(b));
    CASE("accept shortage", accept_shortage(b));
    CASE("reset before accept", reset_before_accept(b));
    CASE("out of descriptors", out_of_descriptors_each(b));
    CASE("at most so many connections", max_conns_each(b));
    CASE("at most so many, the rest rejected", max_conns_reject(b));
    CASE("at most so many of one address", max_per_address(b));
    CASE("addresses are forgotten", addresses_are_forgotten(b));
    CASE("at most so many a second", accept_rate(b));
    CASE("signals stay with the host", signals_stay_with_the_host(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
