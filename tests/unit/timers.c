/* timers.c: idle, write, flush and linger timeouts: never early, by a moved clock and by the real
 * one; and a million settings that leave nothing behind. What ends a connection allows for turns
 * that are not stamped: NETSRV__LONG_TURN_MS more. */
#include "../seam.h"

#include "rig.h"

static void still_time(void) {
    seam_reset(1);
    seam_hold_clock();
}

/* A close at a timeout need not wait for the client to finish as well. */
static netsrv_config timer_config(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.linger_timeout_ms = NETSRV_OFF;
    return cfg;
}

static void small_send_buffer(netsrv_conn *c) {
    const int bytes = 4096;
    setsockopt(netsrv_get_fd(c), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    rig_on_open(c);
}

/* ---- idle ------------------------------------------------------------------------------------ */

static void idle_by_moved_clock(netsrv_backend b) {
    netsrv_config cfg = timer_config(b);
    cfg.idle_timeout_ms = 60000;
    still_time();
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 1);
    for (int i = 0; i < 10; i++) {
        rig_pass_time(s, 40000);
        CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
        CHECK_EQ(rig_closes(), 0);
    }
    rig_pass_time(s, 50000);
    CHECK_EQ(rig_closes(), 0);
    rig_pass_time(s, 10100);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_IDLE), 1);
    CHECK_NE(peer_end(fd), PEER_STUCK);
    close(fd);
    rig_stop(s, 0);
    seam_reset(0);
}

/* A jump over many turns of the wheel, forward, ends exactly those whose time is over. */
static void big_jump(netsrv_backend b) {
    static const unsigned long jumps[] = { 255, 256, 4096, 65536, 1u << 20, 1u << 24, 1u << 30 };
    for (size_t i = 0; i < sizeof jumps / sizeof jumps[0]; i++) {
        netsrv_config cfg = timer_config(b);
        cfg.idle_timeout_ms = (uint32_t)jumps[i] + 20000;
        still_time();
        netsrv_server *s = rig_start(&cfg);
        const int fd = peer_connect(netsrv_get_port(s, 0));
        CHECK_WITHIN(5000, rig_opens() == 1);
        rig_pass_time(s, jumps[i]);
        CHECK_EQ(rig_closes(), 0);
        rig_pass_time(s, 20100);
        CHECK_WITHIN(5000, rig_closes() == 1);
        CHECK_EQ(rig_reason(NETSRV_CLOSE_IDLE), 1);
        close(fd);
        rig_stop(s, 0);
    }
    seam_reset(0);
}

static void idle_by_real_clock(netsrv_backend b) {
    static const uint32_t timeouts[] = { 1, 2, 7, 30, 100, 270 };
    for (size_t i = 0; i < sizeof timeouts / sizeof timeouts[0]; i++) {
        netsrv_config cfg = rig_config(b, 1);
        cfg.idle_timeout_ms = timeouts[i];
        netsrv_server *s = rig_start(&cfg);
        const uint64_t began = check_clock_us(CLOCK_MONOTONIC);
        const int fd = peer_connect(netsrv_get_port(s, 0));
        CHECK_NE(peer_end(fd), PEER_STUCK);
        CHECK_GE(check_clock_us(CLOCK_MONOTONIC) - began, timeouts[i] * 1000u);
        close(fd);
        CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_IDLE) == 1);
        rig_stop(s, 0);
    }
}

#define SLEEPERS 30

static atomic_int held;

static void hold_worker(netsrv_server *s, unsigned worker, void *arg) {
    (void)s;
    (void)worker;
    (void)arg;
    atomic_store(&held, 1);
    WAIT_FOR(20000, atomic_load(&held) == 2);
}

/* After a halt of the whole machine everybody's time is over at once, and what had come in time
 * takes many batches: it is read first. */
static void input_before_timers(netsrv_backend b) {
    int fd[SLEEPERS];
    netsrv_config cfg = timer_config(b);
    cfg.idle_timeout_ms = 60000;
    cfg.events_per_wait = 2;
    atomic_store(&held, 0);
    still_time();
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < SLEEPERS; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd[i], "a") && peer_gets(fd[i], "a"));
    }
    rig_pass_time(s, 1000);
    CHECK_EQ(netsrv_post(s, 0, hold_worker, NULL), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&held) == 1);
    for (int i = 0; i < SLEEPERS; i++) {
        CHECK(peer_say(fd[i], "b"));
    }
    SEAM_ADD(clock_ms, 70000);
    atomic_store(&held, 2);
    for (int i = 0; i < SLEEPERS; i++) {
        CHECK(peer_gets(fd[i], "b"));
    }
    CHECK_EQ(rig_reason(NETSRV_CLOSE_IDLE), 0);
    rig_pass_time(s, 60100);
    CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_IDLE) == SLEEPERS);
    for (int i = 0; i < SLEEPERS; i++) {
        close(fd[i]);
    }
    rig_stop(s, 0);
    seam_reset(0);
}

static void set_by_word(netsrv_conn *c, char word) {
    switch (word) {
    case 'o': netsrv_set_idle_timeout(c, NETSRV_OFF); break;
    case 'l': netsrv_set_idle_timeout(c, 100000); break;
    case 's': netsrv_set_idle_timeout(c, 1000); break;
    case '0': netsrv_set_idle_timeout(c, 0); break;
    default: break;
    }
}

static size_t set_on_data(netsrv_conn *c, const void *data, size_t n) {
    set_by_word(c, ((const char *)data)[0]);
    return rig_on_data(c, data, n);
}

static void own_idle_timeout(netsrv_backend b) {
    netsrv_config cfg = timer_config(b);
    cfg.on_data = set_on_data;
    cfg.idle_timeout_ms = 20000;
    still_time();
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "off") && peer_gets(fd, "off"));
    rig_pass_time(s, 1000000);
    CHECK_EQ(rig_closes(), 0);
    CHECK(peer_say(fd, "long") && peer_gets(fd, "long"));
    rig_pass_time(s, 80000);
    CHECK_EQ(rig_closes(), 0);
    CHECK(peer_say(fd, "0") && peer_gets(fd, "0"));
    rig_pass_time(s, 10000);
    CHECK_EQ(rig_closes(), 0);
    rig_pass_time(s, 10100);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_IDLE), 1);
    close(fd);
    rig_stop(s, 0);
    seam_reset(0);
}

/* ---- write ----------------------------------------------------------------------------------- */

static size_t send_much(netsrv_conn *c, const void *data, size_t n) {
    static char bytes[100000];
    (void)data;
    netsrv_send(c, bytes, sizeof bytes);
    return n;
}

static void write_timeout(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_open = small_send_buffer;
    cfg.on_data = send_much;
    cfg.write_timeout_ms = 60000;
    still_time();
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect_small(netsrv_get_port(s, 0));
    rig_pass_time(s, 100000);
    CHECK_EQ(rig_closes(), 0);
    peer_say(fd, "x");
    CHECK_WITHIN(5000, rig_total(s).queued_bytes > 0);
    for (int i = 0; i < 5; i++) {
        rig_pass_time(s, 50000);
        CHECK_EQ(rig_closes(), 0);
        const uint64_t out = rig_total(s).bytes_out;
        CHECK_EQ(peer_skip(fd, 12000), 12000);
        CHECK_WITHIN(5000, rig_total(s).bytes_out > out);
    }
    rig_pass_time(s, 50000);
    CHECK_EQ(rig_closes(), 0);
    rig_pass_time(s, 10100);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_WRITE_TIMEOUT), 1);
    close(fd);
    rig_stop(s, 0);
    seam_reset(0);
}

static void write_timeout_by_real_clock(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_open = small_send_buffer;
    cfg.on_data = send_much;
    cfg.write_timeout_ms = 80;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect_small(netsrv_get_port(s, 0));
    const uint64_t began = check_now_ms();
    peer_say(fd, "x");
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_GE(check_now_ms() - began, 80);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_WRITE_TIMEOUT), 1);
    close(fd);
    rig_stop(s, 0);
}

/* ---- flush and linger ------------------------------------------------------------------------ */

static size_t send_and_close(netsrv_conn *c, const void *data, size_t n) {
    send_much(c, data, n);
    netsrv_close(c);
    return n;
}

static void flush_timeout(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_open = small_send_buffer;
    cfg.on_data = send_and_close;
    cfg.flush_timeout_ms = 30000;
    still_time();
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect_small(netsrv_get_port(s, 0));
    peer_say(fd, "x");
    CHECK_WITHIN(5000, rig_total(s).queued_bytes > 0);
    rig_pass_time(s, 20000);
    CHECK_EQ(rig_closes(), 0);
    rig_pass_time(s, 10100);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(peer_end(fd), ECONNRESET);
    close(fd);
    rig_stop(s, 0);
    seam_reset(0);
}

static size_t just_close(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    netsrv_send(c, "bye", 3);
    netsrv_close(c);
    return n;
}

/* After FIN the server waits for the peer's; then it gives up. */
static void linger_timeout(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = just_close;
    cfg.linger_timeout_ms = 30000;
    still_time();
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_say(fd, "x");
    CHECK(peer_gets(fd, "bye"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    rig_pass_time(s, 20000);
    CHECK_EQ(rig_total(s).live, 1);
    CHECK(peer_say(fd, "nobody listens"));
    rig_pass_time(s, 10100);
    CHECK_WITHIN(5000, rig_total(s).live == 0);
    CHECK_EQ(rig_closes(), 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_LOCAL), 1);
    close(fd);
    rig_stop(s, 0);
    seam_reset(0);
}

static void linger_limit(netsrv_backend b) {
    static char bytes[1 << 16];
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = just_close;
    cfg.linger_timeout_ms = 30000;
    cfg.linger_max_bytes = 100000;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_say(fd, "x");
    CHECK(peer_gets(fd, "bye"));
    while (peer_send(fd, bytes, sizeof bytes)) {
    }
    CHECK_WITHIN(5000, rig_total(s).live == 0);
    close(fd);
    rig_stop(s, 0);
}

static void no_linger(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = just_close;
    cfg.linger_timeout_ms = NETSRV_OFF;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_say(fd, "x");
    CHECK(peer_gets(fd, "bye"));
    CHECK_WITHIN(5000, rig_total(s).live == 0);
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    rig_stop(s, 0);
}

/* ---- many ------------------------------------------------------------------------------------ */

static size_t set_many(netsrv_conn *c, const void *data, size_t n) {
    for (int i = 0; i < 100000; i++) {
        netsrv_set_idle_timeout(c, 1 + (uint32_t)seam_draw(1u << (i % 31)));
    }
    netsrv_set_idle_timeout(c, NETSRV_OFF);
    return rig_on_data(c, data, n);
}

/* Set a million times in all, then closed or turned off: none fires afterwards. */
static void a_million_settings(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = set_many;
    seam_reset(3);
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < 10; i++) {
        const int fd = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
        if (i % 2 == 0) {
            rig_pass_time(s, 1u << 30);
            CHECK_EQ(rig_reason(NETSRV_CLOSE_IDLE), 0);
        }
        close(fd);
    }
    CHECK_WITHIN(5000, rig_closes() == 10);
    rig_pass_time(s, 1u << 30);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_IDLE), 0);
    rig_stop(s, 0);
    seam_reset(0);
}

#define CROWD 300

/* Random timeouts of many connections: after each step exactly those that are due have ended. */
static uint32_t crowd_due(int i) {
    return 20000 + (uint32_t)(seam_mix((uint64_t)i) % 400) * 10000;
}

static atomic_int crowd_opened;

static void set_crowd(netsrv_conn *c) {
    netsrv_set_idle_timeout(c, crowd_due(atomic_fetch_add(&crowd_opened, 1)));
    rig_on_open(c);
}

static unsigned crowd_before(unsigned long ms) {
    unsigned n = 0;
    for (int i = 0; i < CROWD; i++) {
        n += crowd_due(i) <= ms;
    }
    return n;
}

/* All due times are multiples of 10 s; the steps look 5 s after each. */
static void crowd(netsrv_backend b) {
    int fd[CROWD];
    netsrv_config cfg = timer_config(b);
    cfg.on_open = set_crowd;
    still_time();
    atomic_store(&crowd_opened, 0);
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < CROWD; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
    }
    CHECK_WITHIN(5000, rig_opens() == CROWD);
    rig_pass_time(s, 5000);
    for (unsigned long at = 5000; at < 4100000; at += 100000) {
        CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_IDLE) >= crowd_before(at));
        CHECK_EQ(rig_reason(NETSRV_CLOSE_IDLE), crowd_before(at));
        rig_pass_time(s, 100000);
    }
    CHECK_WITHIN(5000, rig_closes() == CROWD);
    for (int i = 0; i < CROWD; i++) {
        close(fd[i]);
    }
    rig_stop(s, 0);
    seam_reset(0);
}

/* No timer: no wake-up. */
static void idle_costs_nothing(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
    const uint64_t turns = rig_total(s).turns;
    CHECK(peer_silent(fd, 400));
    CHECK_LE(rig_total(s).turns - turns, 2);
    close(fd);
    rig_stop(s, 0);
}

static void all(netsrv_backend b) {
    CASE("idle, by a moved clock", idle_by_moved_clock(b));
    CASE("idle, by big jumps", big_jump(b));
    CASE("idle, by the real clock", idle_by_real_clock(b));
    CASE("input before timers", input_before_timers(b));
    CASE("an idle timeout of its own", own_idle_timeout(b));
    CASE("write", write_timeout(b));
    CASE("write, by the real clock", write_timeout_by_real_clock(b));
    CASE("flush", flush_timeout(b));
    CASE("linger", linger_timeout(b));
    CASE("linger no more than so many bytes", linger_limit(b));
    CASE("no linger", no_linger(b));
    CASE("a million settings", a_million_settings(b));
    CASE("a crowd of timeouts", crowd(b));
    CASE("idle costs nothing", idle_costs_nothing(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
