/* alarms.c: the program's timers: never early, once or again and again, set and stopped from
 * callbacks, a million of them, and what becomes of them at a stop. */
#include "../seam.h"

#include "rig.h"

/* ---- on a worker's thread -------------------------------------------------------------------- */

typedef struct errand {
    void (*fn)(netsrv_server *s);
    atomic_bool done;
} errand;

static void do_errand(netsrv_server *s, unsigned worker, void *arg) {
    errand *e = arg;
    (void)worker;
    e->fn(s);
    atomic_store(&e->done, true);
}

static void on_worker(netsrv_server *s, void (*fn)(netsrv_server *s)) {
    errand e = { .fn = fn };
    CHECK_EQ(netsrv_post(s, 0, do_errand, &e), NETSRV_OK);
    CHECK_WITHIN(20000, atomic_load(&e.done));
}

/* Moves the clock; the pokes make sure that no turn straddles the move. */
static void advance(netsrv_server *s, uint64_t ms) {
    rig_poke(s);
    rig_poke(s);
    SEAM_ADD(clock_ms, ms);
    rig_poke(s);
    rig_poke(s);
}

static netsrv_server *one_worker(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 1);
    seam_reset(1);
    return rig_start(&cfg);
}

/* Its clock is moved by `advance` alone. */
static netsrv_server *one_still_worker(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 1);
    seam_reset(1);
    seam_hold_clock();
    return rig_start(&cfg);
}

static void end(netsrv_server *s) {
    rig_stop(s, 0);
    seam_reset(0);
}

/* ---- once ------------------------------------------------------------------------------------ */

static netsrv_timer timer;
static atomic_ulong calls;
static uint64_t set_us;
static atomic_ullong late_us;

static void note_call(netsrv_server *s, unsigned worker, netsrv_timer *t) {
    CHECK(s != NULL && worker == 0 && t->arg == &calls);
    CHECK(t->period_ms != 0 || !netsrv_timer_is_set(t));
    atomic_store(&late_us, check_clock_us(CLOCK_MONOTONIC) - set_us);
    atomic_fetch_add(&calls, 1);
}

static void fresh_timer(void) {
    memset(&timer, 0, sizeof timer);
    timer.fn = note_call;
    timer.arg = &calls;
    atomic_store(&calls, 0);
}

static uint32_t delay;
static uint32_t period;

static void set_timer(netsrv_server *s) {
    set_us = check_clock_us(CLOCK_MONOTONIC);
    CHECK_EQ(netsrv_timer_start(s, &timer, delay, period), NETSRV_OK);
    CHECK(netsrv_timer_is_set(&timer));
}

static void once_by_real_clock(netsrv_backend b) {
    static const uint32_t delays[] = { 0, 1, 2, 9, 63, 64, 65, 130 };
    netsrv_server *s = one_worker(b);
    for (size_t i = 0; i < sizeof delays / sizeof delays[0]; i++) {
        fresh_timer();
        delay = delays[i];
        period = 0;
        on_worker(s, set_timer);
        CHECK_WITHIN(5000, atomic_load(&calls) == 1);
        CHECK_GE(atomic_load(&late_us), (uint64_t)delay * 1000);
    }
    end(s);
}

static void once_by_moved_clock(netsrv_backend b) {
    static const uint32_t delays[] = { 3000, 4096, 70000, 1u << 20, 1u << 26, UINT32_MAX };
    for (size_t i = 0; i < sizeof delays / sizeof delays[0]; i++) {
        netsrv_server *s = one_still_worker(b);
        fresh_timer();
        delay = delays[i];
        period = 0;
        on_worker(s, set_timer);
        advance(s, delay - 1);
        CHECK_EQ(atomic_load(&calls), 0);
        advance(s, 2);
        CHECK_WITHIN(5000, atomic_load(&calls) == 1);
        advance(s, UINT32_MAX);
        CHECK_EQ(atomic_load(&calls), 1);
        end(s);
    }
}

/* A callback that takes long does not make what it sets early. */
static void set_late_in_a_turn(netsrv_server *s) {
    const uint64_t until = check_now_ms() + 60;
    while (check_now_ms() < until) {
        check_nap();
    }
    set_timer(s);
}

static void long_turn(netsrv_backend b) {
    netsrv_server *s = one_worker(b);
    fresh_timer();
    delay = 40;
    period = 0;
    on_worker(s, set_late_in_a_turn);
    CHECK_WITHIN(5000, atomic_load(&calls) == 1);
    CHECK_GE(atomic_load(&late_us), 40000);
    end(s);
}

static void stop_timer(netsrv_server *s) {
    (void)s;
    netsrv_timer_stop(&timer);
    CHECK(!netsrv_timer_is_set(&timer));
    netsrv_timer_stop(&timer);
}

static void set_anew_and_stopped(netsrv_backend b) {
    netsrv_server *s = one_still_worker(b);
    fresh_timer();
    delay = 5000;
    period = 0;
    on_worker(s, set_timer);
    delay = 60000;
    on_worker(s, set_timer);
    advance(s, 30000);
    CHECK_EQ(atomic_load(&calls), 0);
    advance(s, 30001);
    CHECK_WITHIN(5000, atomic_load(&calls) == 1);
    on_worker(s, set_timer);
    on_worker(s, stop_timer);
    advance(s, 100000);
    CHECK_EQ(atomic_load(&calls), 1);
    end(s);
}

/* ---- again and again ------------------------------------------------------------------------- */

static void repeated(netsrv_backend b) {
    netsrv_server *s = one_still_worker(b);
    fresh_timer();
    delay = 10000;
    period = 20000;
    on_worker(s, set_timer);
    advance(s, 10001);
    CHECK_WITHIN(5000, atomic_load(&calls) == 1);
    for (unsigned long i = 2; i < 30; i++) {
        advance(s, 20000);
        CHECK_WITHIN(5000, atomic_load(&calls) == i);
    }
    /* Missed times are left out, and the rhythm stays. */
    advance(s, 95000);
    CHECK_WITHIN(5000, atomic_load(&calls) == 30);
    advance(s, 2500);
    CHECK_EQ(atomic_load(&calls), 30);
    advance(s, 2500);
    CHECK_WITHIN(5000, atomic_load(&calls) == 31);
    on_worker(s, stop_timer);
    advance(s, 100000);
    CHECK_EQ(atomic_load(&calls), 31);
    end(s);
}

static void fast_rhythm(netsrv_backend b) {
    netsrv_server *s = one_worker(b);
    fresh_timer();
    delay = 0;
    period = 1;
    on_worker(s, set_timer);
    CHECK_WITHIN(20000, atomic_load(&calls) >= 50);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    CHECK_GE(check_clock_us(CLOCK_MONOTONIC) - set_us, (atomic_load(&calls) - 2) * 1000);
    end(s);
}

/* ---- from callbacks -------------------------------------------------------------------------- */

static netsrv_timer pair[2];

static void stop_both(netsrv_server *s, unsigned worker, netsrv_timer *t) {
    (void)s;
    (void)worker;
    (void)t;
    atomic_fetch_add(&calls, 1);
    netsrv_timer_stop(&pair[0]);
    netsrv_timer_stop(&pair[1]);
}

static void set_pair(netsrv_server *s) {
    for (int i = 0; i < 2; i++) {
        pair[i] = (netsrv_timer){ .fn = stop_both };
        CHECK_EQ(netsrv_timer_start(s, &pair[i], 1000, i == 0 ? 1000 : 0), NETSRV_OK);
    }
}

/* Whichever is first takes both back, though both are due. */
static void stopped_in_the_same_batch(netsrv_backend b) {
    netsrv_server *s = one_still_worker(b);
    atomic_store(&calls, 0);
    on_worker(s, set_pair);
    advance(s, 5000);
    CHECK_EQ(atomic_load(&calls), 1);
    advance(s, 5000);
    CHECK_EQ(atomic_load(&calls), 1);
    end(s);
}

static void set_again(netsrv_server *s, unsigned worker, netsrv_timer *t) {
    (void)worker;
    if (atomic_fetch_add(&calls, 1) < 199) {
        CHECK_EQ(netsrv_timer_start(s, t, 0, 0), NETSRV_OK);
    }
}

static void set_chain(netsrv_server *s) {
    timer = (netsrv_timer){ .fn = set_again };
    CHECK_EQ(netsrv_timer_start(s, &timer, 0, 0), NETSRV_OK);
}

static void chain(netsrv_backend b) {
    netsrv_server *s = one_worker(b);
    atomic_store(&calls, 0);
    on_worker(s, set_chain);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    CHECK_WITHIN(20000, atomic_load(&calls) == 200);
    end(s);
}

static void free_itself(netsrv_server *s, unsigned worker, netsrv_timer *t) {
    (void)s;
    (void)worker;
    netsrv_timer_stop(t);
    free(t);
    atomic_fetch_add(&calls, 1);
}

static void set_free(netsrv_server *s) {
    for (uint32_t i = 0; i < 100; i++) {
        netsrv_timer *t = calloc(1, sizeof *t);
        REQUIRE(t != NULL);
        t->fn = free_itself;
        CHECK_EQ(netsrv_timer_start(s, t, i % 7, i % 2), NETSRV_OK);
    }
}

static void freed_in_its_call(netsrv_backend b) {
    netsrv_server *s = one_worker(b);
    atomic_store(&calls, 0);
    on_worker(s, set_free);
    CHECK_WITHIN(5000, atomic_load(&calls) == 100);
    end(s);
}

/* A connection that has a timer: what an idle timeout cannot do. */
static void close_slow(netsrv_server *s, unsigned worker, netsrv_timer *t) {
    (void)s;
    (void)worker;
    netsrv_send(t->arg, "too slow\n", 9);
    netsrv_close(t->arg);
}

static void open_with_timer(netsrv_conn *c) {
    rig_on_open(c);
    timer = (netsrv_timer){ .fn = close_slow, .arg = c };
    CHECK_EQ(netsrv_timer_start(netsrv_get_server(c), &timer, 20, 0), NETSRV_OK);
}

static void of_a_connection(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_open = open_with_timer;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_gets(fd, "too slow\n"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    rig_stop(s, 1000);
}

/* ---- many ------------------------------------------------------------------------------------ */

#define MANY 1000000u

static netsrv_timer *many;
static unsigned char *called;

static void note_many(netsrv_server *s, unsigned worker, netsrv_timer *t) {
    (void)s;
    (void)worker;
    const size_t i = (size_t)(t - many);
    CHECK(i % 2 == 1 && called[i] == 0);
    called[i] = 1;
    atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed);
}

/* Every second one is taken back. */
static void set_many(netsrv_server *s) {
    unsigned wrong = 0;
    for (uint32_t i = 0; i < MANY; i++) {
        many[i].fn = note_many;
        const uint32_t in = 400000 + (uint32_t)(seam_mix(i) % 86000000u);
        wrong += netsrv_timer_start(s, &many[i], in, 0) != NETSRV_OK;
    }
    for (uint32_t i = 0; i < MANY; i += 2) {
        netsrv_timer_stop(&many[i]);
    }
    CHECK_EQ(wrong, 0);
}

static void a_million(netsrv_backend b) {
    many = calloc(MANY, sizeof *many);
    called = calloc(MANY, 1);
    REQUIRE(many != NULL && called != NULL);
    netsrv_server *s = one_still_worker(b);
    atomic_store(&calls, 0);
    on_worker(s, set_many); /* O(1) each, or its deadline is over */
    const uint64_t turns = rig_total(s).turns;
    CHECK(peer_served(netsrv_get_port(s, 0)));
    CHECK_LE(rig_total(s).turns - turns, 30); /* they wake nobody until they are due */
    advance(s, 90000);
    CHECK_EQ(atomic_load(&calls), 0);
    SEAM_ADD(clock_ms, 86500000);
    rig_poke(s);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    CHECK_WITHIN(20000, atomic_load(&calls) == MANY / 2);
    CHECK_GE(rig_total(s).turns - turns, MANY / 2 / NETSRV__TIMERS_PER_TURN);
    end(s);
    free(many);
    free(called);
}

/* ---- the end, and what is refused ------------------------------------------------------------ */

static void never(netsrv_server *s, unsigned worker, netsrv_timer *t) {
    (void)s;
    (void)worker;
    (void)t;
    CHECK_FAIL("called");
}

static void set_far(netsrv_server *s, unsigned worker) {
    (void)worker;
    timer = (netsrv_timer){ .fn = never };
    CHECK_EQ(netsrv_timer_start(s, &timer, 3600000, 60000), NETSRV_OK);
}

static void check_taken_back(netsrv_server *s, unsigned worker) {
    (void)worker;
    CHECK(!netsrv_timer_is_set(&timer));
    CHECK_EQ(netsrv_timer_start(s, &timer, 0, 0), NETSRV_STOPPED);
    CHECK(!netsrv_timer_is_set(&timer));
    memset(&timer, 0xDD, sizeof timer);
}

/* They hold up no stop, are taken back at it, and a second life starts without them. */
static void taken_back_at_the_stop(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_worker_start = set_far;
    cfg.on_worker_stop = check_taken_back;
    netsrv_server *s = rig_start(&cfg);
    netsrv_stop(s, (uint32_t)check_scaled(60000));
    CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(20000)), NETSRV_OK);
    CHECK_EQ(netsrv_start(s, NULL), NETSRV_OK);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    rig_stop(s, 0);
}

static void line_seen(netsrv_conn *c, const void *data, size_t n) {
    (void)c;
    CHECK(data != NULL && n > 0);
}

/* A busy connection has its grace time, and timers run in it. */
static void called_while_stopping(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.framing = NETSRV_FRAMING_LINE;
    cfg.on_frame = line_seen;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "half a line"));
    CHECK_WITHIN(5000, rig_total(s).bytes_in == 11);
    fresh_timer();
    delay = 1;
    period = 1;
    on_worker(s, set_timer);
    netsrv_stop(s, 60000);
    const unsigned long before = atomic_load(&calls);
    CHECK_WITHIN(5000, atomic_load(&calls) > before + 5);
    CHECK(peer_say(fd, "\n"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    rig_end(s);
}

static atomic_bool refused;

static void refuse_there(netsrv_server *s, unsigned worker, void *arg) {
    (void)worker;
    CHECK_EQ(netsrv_timer_start(s, arg, 1, 0), NETSRV_BAD_THREAD);
    atomic_store(&refused, true);
}

static void refused_calls(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.on_worker_start = NULL;
    netsrv_server *s = rig_start(&cfg);
    netsrv_server *other = NULL;
    netsrv_timer without = { .arg = NULL };
    fresh_timer();
    CHECK_EQ(netsrv_timer_start(s, &without, 1, 0), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_timer_start(s, &timer, 1, 0), NETSRV_BAD_THREAD);
    CHECK_EQ(netsrv_create(&other, &cfg, NULL), NETSRV_OK);
    delay = 3600000;
    period = 0;
    on_worker(s, set_timer);
    CHECK_EQ(netsrv_post(s, 1, refuse_there, &timer), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&refused));
    CHECK_EQ(netsrv_destroy(other), NETSRV_OK);
    rig_stop(s, 0);
    CHECK(!netsrv_timer_is_set(&timer));
}

static void all(netsrv_backend b) {
    CASE("once, by the real clock", once_by_real_clock(b));
    CASE("once, by a moved clock", once_by_moved_clock(b));
    CASE("set late in a long turn", long_turn(b));
    CASE("set anew, and stopped", set_anew_and_stopped(b));
    CASE("again and again", repeated(b));
    CASE("a fast rhythm", fast_rhythm(b));
    CASE("stopped in the same batch", stopped_in_the_same_batch(b));
    CASE("set in its own call", chain(b));
    CASE("freed in its own call", freed_in_its_call(b));
    CASE("of a connection", of_a_connection(b));
    CASE("a million", a_million(b));
    CASE("taken back at a stop", taken_back_at_the_stop(b));
    CASE("called while the server stops", called_while_stopping(b));
    CASE("refused calls", refused_calls(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    CHECK_EQ(sizeof(netsrv_timer), sizeof(void *) == 8 ? 56 : 32);
    return check_end();
}
