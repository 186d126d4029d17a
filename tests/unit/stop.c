/* stop.c: the end in order: what is under way is finished, what is idle goes, nothing is
 * forgotten, and nobody can hold the server beyond the grace time. */
#include "../seam.h"

#include "rig.h"

#define MANY 30

static void small_send_buffer(netsrv_conn *c) {
    const int bytes = 4096;
    setsockopt(netsrv_get_fd(c), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    rig_on_open(c);
}

static netsrv_config with_accept(netsrv_backend b, netsrv_accept accept) {
    netsrv_config cfg = rig_config(b, 3);
    cfg.accept = accept;
    cfg.place = accept == NETSRV_ACCEPT_REUSEPORT ? NETSRV_PLACE_KEEP : NETSRV_PLACE_ROUND_ROBIN;
    return cfg;
}

/* ---- replies under way ----------------------------------------------------------------------- */

static size_t big_reply(netsrv_conn *c, const void *data, size_t n) {
    static unsigned char bytes[200000];
    (void)data;
    peer_fill(bytes, sizeof bytes, 6);
    netsrv_send(c, bytes, sizeof bytes);
    return n;
}

static void replies_are_finished(netsrv_backend b) {
    static unsigned char expected[200000];
    static unsigned char have[200000];
    int fd[MANY];
    netsrv_config cfg = rig_config(b, 2);
    cfg.on_open = small_send_buffer;
    cfg.on_data = big_reply;
    peer_fill(expected, sizeof expected, 6);
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < MANY; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        peer_say(fd[i], "x");
        CHECK_EQ(peer_recv(fd[i], have, 100), 100);
    }
    netsrv_stop(s, (uint32_t)check_scaled(60000));
    for (int i = 0; i < MANY; i++) {
        CHECK_EQ(peer_recv(fd[i], have + 100, sizeof have - 100), sizeof have - 100);
        CHECK_MEM(have, sizeof have, expected, sizeof expected);
        CHECK_EQ(peer_end(fd[i]), PEER_FIN);
        close(fd[i]);
    }
    CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(20000)), NETSRV_OK);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_STOP), MANY);
    rig_end(s);
}

/* Where time stands still, what is to come with time does not come. */
static netsrv_server *start_out_of_time(const netsrv_config *cfg) {
    seam_reset(0);
    seam_hold_clock();
    return rig_start(cfg);
}

static void end_out_of_time(netsrv_server *s) {
    CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(20000)), NETSRV_OK);
    rig_end(s);
    seam_reset(0);
}

static void idle_ones_go_at_once(netsrv_backend b) {
    int fd[MANY];
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = start_out_of_time(&cfg);
    for (int i = 0; i < MANY; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd[i], "x") && peer_gets(fd[i], "x"));
    }
    netsrv_stop(s, 20000);
    for (int i = 0; i < MANY; i++) {
        CHECK_EQ(peer_end(fd[i]), PEER_FIN);
        close(fd[i]);
    }
    end_out_of_time(s);
}

/* Connected but silent so far: such a client gets a moment to speak, and no more than that. */
static void silent_ones_get_a_moment(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = start_out_of_time(&cfg);
    const int quick = peer_connect(netsrv_get_port(s, 0));
    const int silent = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 2);
    netsrv_stop(s, 20000);
    CHECK_WITHIN(5000, netsrv_stopping(s));
    CHECK(peer_say(quick, "just in time") && peer_gets(quick, "just in time"));
    CHECK_EQ(peer_end(quick), PEER_FIN);
    CHECK(peer_silent(silent, 20));
    /* Each worker counts from when it comes to it. */
    WAIT_FOR(10000, (SEAM_ADD(clock_ms, NETSRV__FRESH_MS), !peer_silent(silent, 20)));
    CHECK_EQ(peer_end(silent), PEER_FIN);
    close(quick);
    close(silent);
    end_out_of_time(s);
}

/* ---- who holds out --------------------------------------------------------------------------- */

static void never_reading(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.on_open = small_send_buffer;
    cfg.on_data = big_reply;
    netsrv_server *s = start_out_of_time(&cfg);
    const int fd = peer_connect_small(netsrv_get_port(s, 0));
    peer_say(fd, "x");
    CHECK_WITHIN(5000, rig_total(s).queued_bytes > 0);
    netsrv_stop(s, 300);
    CHECK_EQ(netsrv_wait_for(s, 20), NETSRV_TIMED_OUT);
    SEAM_ADD(clock_ms, 298);
    CHECK_EQ(netsrv_wait_for(s, 20), NETSRV_TIMED_OUT);
    SEAM_ADD(clock_ms, 3);
    end_out_of_time(s);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_STOP), 1);
    close(fd);
}

static void shorter_grace_counts(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.on_open = small_send_buffer;
    cfg.on_data = big_reply;
    netsrv_server *s = start_out_of_time(&cfg);
    const int fd = peer_connect_small(netsrv_get_port(s, 0));
    peer_say(fd, "x");
    CHECK_WITHIN(5000, rig_total(s).queued_bytes > 0);
    netsrv_stop(s, 60000);
    CHECK_EQ(netsrv_wait_for(s, 20), NETSRV_TIMED_OUT);
    netsrv_stop(s, 100);
    netsrv_stop(s, 60000);
    SEAM_ADD(clock_ms, 98);
    CHECK_EQ(netsrv_wait_for(s, 20), NETSRV_TIMED_OUT);
    SEAM_ADD(clock_ms, 3);
    end_out_of_time(s);
    close(fd);
}

static void at_once(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.on_open = small_send_buffer;
    cfg.on_data = big_reply;
    netsrv_server *s = start_out_of_time(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_say(fd, "x");
    CHECK_WITHIN(5000, rig_total(s).queued_bytes > 0);
    netsrv_stop(s, 60000);
    netsrv_stop(s, 0);
    SEAM_ADD(clock_ms, 1); /* an odd millisecond: 0 means none */
    end_out_of_time(s);
    CHECK_NE(peer_end(fd), PEER_STUCK);
    close(fd);
}

/* A client that lingers after our FIN must not hold the end either. */
static void lingering_peer(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.linger_timeout_ms = 60000;
    netsrv_server *s = start_out_of_time(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
    netsrv_stop(s, 300);
    CHECK_EQ(peer_end(fd), PEER_FIN);
    SEAM_ADD(clock_ms, 301);
    end_out_of_time(s);
    close(fd);
}

/* ---- what is on its way at the stop ---------------------------------------------------------- */

/* Their handshake is done and their question is sent: all are answered, on every way in. */
static void waiting_clients_are_served(netsrv_backend b, int accept) {
    enum { N = 60 };
    int fd[N];
    const netsrv_config cfg = with_accept(b, (netsrv_accept)accept);
    netsrv_server *s = rig_start(&cfg);
    unsigned served = 0;
    for (int i = 0; i < N; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd[i], "question"));
    }
    netsrv_stop(s, 30000);
    for (int i = 0; i < N; i++) {
        served += peer_gets(fd[i], "question");
        CHECK_EQ(peer_end(fd[i]), PEER_FIN);
        close(fd[i]);
    }
    if (!CHECK_EQ(served, N)) {
        fprintf(stderr, "  accept=%s\n", netsrv_accept_name(accept));
    }
    CHECK_EQ(rig_opens(), N);
    rig_end(s);
}

static void waiting_clients_each(netsrv_backend b) {
    for (int accept = NETSRV_ACCEPT_SINGLE; accept < NETSRV_ACCEPT_COUNT; accept++) {
        for (int i = 0; rig_accepts(b, accept) && i < 5; i++) {
            waiting_clients_are_served(b, accept);
        }
    }
}

/* After the stop nobody gets in: the port is closed, and free for the next start. */
static void nobody_gets_in(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = rig_start(&cfg);
    const uint16_t port = netsrv_get_port(s, 0);
    netsrv_stop(s, 1000);
    CHECK_EQ(netsrv_wait(s), NETSRV_OK);
    const int fd = peer_connect_from(0, port, check_scaled(1000));
    CHECK_EQ(fd, -1);
    CHECK_EQ(netsrv_start(s, NULL), NETSRV_OK);
    CHECK_EQ(netsrv_get_port(s, 0), port);
    CHECK(peer_served(port));
    rig_stop(s, 0);
}

/* An inherited listener belongs to others as well: it goes on listening after our end. */
static void inherited_listener_lives_on(netsrv_backend b) {
    char text[16];
    struct sockaddr_in a = peer_loopback(1, 0);
    socklen_t len = sizeof a;
    netsrv_config cfg = rig_config(b, 2);
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    REQUIRE(bind(fd, (const struct sockaddr *)&a, sizeof a) == 0 && listen(fd, 16) == 0);
    getsockname(fd, (struct sockaddr *)&a, &len);
    snprintf(text, sizeof text, "fd:%d", fd);
    cfg.listen[0] = text;
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(netsrv_get_port(s, 0), ntohs(a.sin_port));
    CHECK(peer_served(ntohs(a.sin_port)));
    rig_stop(s, 1000);
    const int client = peer_connect(ntohs(a.sin_port));
    const int accepted = accept(fd, NULL, NULL);
    CHECK_GE(accepted, 0);
    close(accepted);
    close(client);
    close(fd);
}

/* ---- a listener that is handed on ------------------------------------------------------------ */

#define KNOCKERS 3

static atomic_bool knocking;
static atomic_ulong knocks_answered;
static atomic_ulong knocks_lost;

static size_t plain_echo(netsrv_conn *c, const void *data, size_t n) {
    netsrv_send(c, data, n);
    return n;
}

/* Whoever was himself held up for as long as a stopping server waits for a first byte proves
 * nothing. */
static void *knock(void *arg) {
    const uint16_t port = *(const uint16_t *)arg;
    while (atomic_load(&knocking)) {
        const uint64_t began = check_now_ms();
        const int fd = peer_connect_from(0, port, check_scaled(PEER_DEADLINE_MS));
        const bool said = fd >= 0 && peer_say(fd, "knock");
        const bool in_time = check_now_ms() - began < NETSRV__FRESH_MS - 100;
        if (said && peer_gets(fd, "knock")) {
            atomic_fetch_add(&knocks_answered, 1);
        } else if (in_time) {
            atomic_fetch_add(&knocks_lost, 1);
        }
        if (fd >= 0) {
            peer_reset(fd);
        }
    }
    return NULL;
}

static netsrv_server *take_over(const netsrv_config *cfg, netsrv_server *from) {
    netsrv_server *s = NULL;
    REQUIRE(netsrv_create(&s, cfg, NULL) == NETSRV_OK && netsrv_start(s, NULL) == NETSRV_OK);
    const unsigned long answered = atomic_load(&knocks_answered);
    CHECK_WITHIN(10000, atomic_load(&knocks_answered) >= answered + 10);
    if (from != NULL) {
        netsrv_stop(from, 20000);
        CHECK_EQ(netsrv_wait_for(from, (uint32_t)check_scaled(20000)), NETSRV_OK);
        CHECK_EQ(netsrv_destroy(from), NETSRV_OK);
    }
    return s;
}

/* A restart: the next server begins on the same listener, and the one before stops, under load. */
static void handed_on(netsrv_backend b) {
    static const netsrv_accept accepts[] = { NETSRV_ACCEPT_AUTO, NETSRV_ACCEPT_ACCEPTOR,
                                             NETSRV_ACCEPT_SINGLE };
    char text[16];
    pthread_t t[KNOCKERS];
    struct sockaddr_in a = peer_loopback(1, 0);
    socklen_t len = sizeof a;
    netsrv_server *s = NULL;
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(bind(fd, (const struct sockaddr *)&a, sizeof a) == 0 && listen(fd, 64) == 0);
    getsockname(fd, (struct sockaddr *)&a, &len);
    uint16_t port = ntohs(a.sin_port);
    snprintf(text, sizeof text, "fd:%d", fd);
    netsrv_config cfg = { .listen = { text }, .on_data = plain_echo, .alloc = check_alloc,
                          .backend = b, .workers = 2 };
    atomic_store(&knocking, true);
    atomic_store(&knocks_lost, 0);
    for (int i = 0; i < KNOCKERS; i++) {
        REQUIRE(pthread_create(&t[i], NULL, knock, &port) == 0);
    }
    for (int life = 0; life < 9; life++) {
        cfg.accept = accepts[life % 3];
        s = take_over(&cfg, s);
    }
    atomic_store(&knocking, false);
    for (int i = 0; i < KNOCKERS; i++) {
        pthread_join(t[i], NULL);
    }
    CHECK_EQ(atomic_load(&knocks_lost), 0);
    netsrv_stop(s, 1000);
    CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(20000)), NETSRV_OK);
    CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
    close(fd);
}

/* ---- stop while the listener is paused ------------------------------------------------------- */

static void stop_while_paused(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = rig_start(&cfg);
    seam_fail_next("accept4", EMFILE, SEAM_FOREVER);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, SEAM_GET(fired) > 0);
    netsrv_stop(s, (uint32_t)check_scaled(60000));
    rig_end(s);
    seam_fail_stop();
    close(fd);
    seam_reset(0);
}

static void stop_while_full(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.max_conns = 1;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    const int waiting = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
    netsrv_stop(s, (uint32_t)check_scaled(60000));
    CHECK_NE(peer_end(fd), PEER_STUCK);
    close(fd);
    CHECK_NE(peer_end(waiting), PEER_STUCK);
    close(waiting);
    rig_end(s);
}

/* ---- one waits for all, and nobody for long -------------------------------------------------- */

static atomic_uint ended;
static atomic_bool stuck;
static atomic_bool released;

static void count_ended(netsrv_server *s, unsigned worker) {
    (void)s;
    (void)worker;
    atomic_fetch_add(&ended, 1);
}

static size_t sticks(netsrv_conn *c, const void *data, size_t n) {
    (void)c;
    (void)data;
    atomic_store(&stuck, true);
    CHECK_WITHIN(20000, atomic_load(&released));
    return n;
}

/* A handler that does not return holds its own worker; the others need not wait once the time is
 * over. */
static void others_end_though_one_is_stuck(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 3);
    cfg.handler_threads = 1;
    cfg.on_data = sticks;
    cfg.on_worker_stop = count_ended;
    atomic_store(&ended, 0);
    atomic_store(&stuck, false);
    atomic_store(&released, false);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "x"));
    CHECK_WITHIN(5000, atomic_load(&stuck));
    netsrv_stop(s, 0);
    CHECK_WITHIN(10000, atomic_load(&ended) == 2);
    atomic_store(&released, true);
    close(fd);
    rig_end(s);
    CHECK_EQ(atomic_load(&ended), 3);
}

/* All wait for the last one, which tells each of them once: not everybody everybody. */
static void few_wake_ups(netsrv_backend b) {
    const unsigned workers = 32;
    netsrv_config cfg = rig_config(b, workers);
    seam_reset(1);
    netsrv_server *s = rig_start(&cfg);
    const unsigned long before = seam_count("write");
    rig_stop(s, 1000);
    CHECK_GE(seam_count("write") - before, workers);
    CHECK_LE(seam_count("write") - before, 8 * workers);
    seam_reset(0);
}

/* ---- stop under load, over and over ---------------------------------------------------------- */

static atomic_bool over;
static atomic_int load_port;
static atomic_ulong answered;

static void one_question(uint16_t port) {
    const int fd = peer_connect_from(0, port, 2000);
    if (fd < 0) {
        return;
    }
    char back[3] = "";
    const bool asked = peer_say(fd, "ask");
    const size_t n = peer_recv(fd, back, 3);
    CHECK(n == 0 || memcmp(back, "ask", n) == 0);
    atomic_fetch_add(&answered, asked && n == 3);
    close(fd);
}

static void *load(void *arg) {
    (void)arg;
    while (!atomic_load(&over)) {
        const int port = atomic_load(&load_port);
        if (port == 0) {
            check_nap();
        } else {
            one_question((uint16_t)port);
        }
    }
    return NULL;
}

static void one_cycle(netsrv_backend b, unsigned i) {
    int accept = (int)(i % NETSRV_ACCEPT_COUNT);
    accept = rig_accepts(b, accept) ? accept : NETSRV_ACCEPT_SHARED;
    netsrv_config cfg = with_accept(b, (netsrv_accept)accept);
    cfg.transfer = accept == NETSRV_ACCEPT_ACCEPTOR && rig_shares(b) && i % 2 == 0
                       ? NETSRV_TRANSFER_DIRECT
                       : NETSRV_TRANSFER_MAILBOX;
    cfg.linger_timeout_ms = 50;
    netsrv_server *s = rig_start(&cfg);
    atomic_store(&load_port, netsrv_get_port(s, 0));
    const uint64_t until = check_now_ms() + seam_draw(8);
    while (check_now_ms() < until) {
        sched_yield();
    }
    atomic_store(&load_port, 0);
    rig_stop(s, i % 3 == 0 ? 0 : 300);
}

static void cycles(netsrv_backend b, unsigned n) {
    pthread_t t[3];
    const uint64_t seed = check_now_ms();
    const uint64_t end = check_now_ms() + check_scaled(1500);
    seam_reset(seed);
    SEAM_SET(disturb, true);
    atomic_store(&over, false);
    atomic_store(&answered, 0);
    for (int i = 0; i < 3; i++) {
        pthread_create(&t[i], NULL, load, NULL);
    }
    unsigned done = 0;
    while (done < n && (done < 3 || check_now_ms() < end)) {
        one_cycle(b, done++);
    }
    atomic_store(&over, true);
    for (int i = 0; i < 3; i++) {
        pthread_join(t[i], NULL);
    }
    printf("    %u cycles, %lu answers, seed %llu\n", done, atomic_load(&answered),
           (unsigned long long)seed);
    seam_reset(0);
}

/* Without clients: a thousand starts and stops, or as many as there is time for, each thread caught
 * wherever it happens to be. */
static void bare_cycles(netsrv_backend b) {
    const uint64_t end_ms = check_now_ms() + 15000;
    seam_reset(check_now_ms());
    SEAM_SET(disturb, true);
    for (unsigned i = 0; i < 1000 && (i < 50 || check_now_ms() < end_ms); i++) {
        int accept = (int)(i % NETSRV_ACCEPT_COUNT);
        accept = rig_accepts(b, accept) ? accept : NETSRV_ACCEPT_SINGLE;
        const netsrv_config cfg = with_accept(b, (netsrv_accept)accept);
        netsrv_server *s = rig_start(&cfg);
        rig_stop(s, i % 2 == 0 ? 0 : 1000);
    }
    seam_reset(0);
}

static void all(netsrv_backend b) {
    CASE("replies under way are finished", replies_are_finished(b));
    CASE("idle ones go at once", idle_ones_go_at_once(b));
    CASE("silent ones get a moment", silent_ones_get_a_moment(b));
    CASE("a client that never reads", never_reading(b));
    CASE("the shorter grace counts", shorter_grace_counts(b));
    CASE("at once", at_once(b));
    CASE("a client that lingers", lingering_peer(b));
    CASE("waiting clients are served", waiting_clients_each(b));
    CASE("nobody gets in afterwards", nobody_gets_in(b));
    CASE("an inherited listener lives on", inherited_listener_lives_on(b));
    CASE("an inherited listener is handed on under load", handed_on(b));
    CASE("stop while the listener is paused", stop_while_paused(b));
    CASE("stop while the server is full", stop_while_full(b));
    CASE("others end though one is stuck", others_end_though_one_is_stuck(b));
    CASE("few wake-ups", few_wake_ups(b));
    CASE("cycles under load", cycles(b, 500));
    CASE("a thousand bare cycles", bare_cycles(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
