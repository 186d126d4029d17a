/* leaf.c: the leaf sections by themselves: slab, out queue, timer wheel, mailbox, line frames.
 * Each against a simple model or a table. */
#include "../seam.h"

#include "rig.h"

/* A server that was made but not started: what the internal functions need around them. */
static netsrv_server *made(unsigned workers) {
    netsrv_server *s = NULL;
    netsrv_config cfg = rig_config(NETSRV_BACKEND_EPOLL, workers);
    cfg.server_queue_max_bytes = 1000000;
    REQUIRE(netsrv_create(&s, &cfg, NULL) == NETSRV_OK);
    return s;
}

/* ---- [frame] --------------------------------------------------------------------------------- */

static void frame(void) {
    static const struct {
        const char *data;
        size_t n;
        size_t max;
        netsrv__frame_found found;
        size_t line;
        size_t end;
    } table[] = {
        { "", 0, 5, NETSRV__FRAME_MORE, 0, 0 },
        { "\n", 1, 5, NETSRV__FRAME_LINE, 0, 1 },
        { "\r\n", 2, 5, NETSRV__FRAME_LINE, 0, 2 },
        { "a\nb", 3, 5, NETSRV__FRAME_LINE, 1, 1 },
        { "a\r\r\n", 4, 5, NETSRV__FRAME_LINE, 2, 2 },
        { "a\0\xff\n", 4, 5, NETSRV__FRAME_LINE, 3, 1 },
        { "abcde\n", 6, 5, NETSRV__FRAME_LINE, 5, 1 },
        { "abcde\r\n", 7, 5, NETSRV__FRAME_LINE, 5, 2 },
        { "abcdef\n", 7, 5, NETSRV__FRAME_TOO_LONG, 0, 0 },
        { "abcde\r", 6, 5, NETSRV__FRAME_MORE, 0, 0 },
        { "abcde", 5, 5, NETSRV__FRAME_MORE, 0, 0 },
        { "abcdef", 6, 5, NETSRV__FRAME_TOO_LONG, 0, 0 },
        { "abcde\r\r", 7, 5, NETSRV__FRAME_TOO_LONG, 0, 0 },
        { "\r", 1, 0, NETSRV__FRAME_MORE, 0, 0 },
        { "x", 1, 0, NETSRV__FRAME_TOO_LONG, 0, 0 },
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        size_t line = 0;
        size_t end = 0;
        const netsrv__frame_found found =
            netsrv__frame_line((const unsigned char *)table[i].data, table[i].n, 0, table[i].max,
                               &line, &end);
        CHECK_EQ(found, table[i].found);
        CHECK(found != NETSRV__FRAME_LINE || (line == table[i].line && end == table[i].end));
    }
}

/* Random bytes cut anywhere give the same lines as one straight search. */
static void frame_scanned(void) {
    unsigned char data[64];
    for (unsigned round = 0; round < 20000; round++) {
        size_t line[2] = { 0, 0 };
        size_t end[2] = { 0, 0 };
        const size_t n = 1 + seam_draw(sizeof data);
        for (size_t i = 0; i < n; i++) {
            data[i] = (unsigned char)"ab\r\n"[seam_draw(round % 7 == 0 ? 4 : 3)];
        }
        const unsigned char *lf = memchr(data, '\n', n);
        const size_t known = lf != NULL ? (size_t)(lf - data) : n;
        const size_t scanned = known > 0 ? seam_draw(known) : 0;
        const netsrv__frame_found a = netsrv__frame_line(data, n, 0, 60, &line[0], &end[0]);
        const netsrv__frame_found b = netsrv__frame_line(data, n, scanned, 60, &line[1], &end[1]);
        if (a != b || line[0] != line[1] || end[0] != end[1]) {
            CHECK_FAIL("the same line, wherever the search begins");
            return;
        }
    }
    CHECK(true);
}

/* ---- [out] ----------------------------------------------------------------------------------- */

static size_t out_read(const netsrv__out *out, unsigned char *to) {
    size_t n = 0;
    for (const netsrv__chunk *k = out->head; k != NULL; k = k->next) {
        CHECK(k->begin < k->end && k->end <= k->cap);
        memcpy(to + n, k->bytes + k->begin, k->end - k->begin);
        n += k->end - k->begin;
    }
    CHECK_EQ(n, out->bytes);
    return n;
}

static void out_step(netsrv_server *s, netsrv__out *out, unsigned char *model, size_t *have) {
    static unsigned char bytes[5000];
    unsigned char have_out[40000];
    const size_t n = seam_draw(5) == 0 ? 1 + seam_draw(sizeof bytes - 1) : 1 + seam_draw(50);
    bool full = false;
    if (seam_draw(2) == 0 && *have + n < 30000) {
        peer_fill(bytes, n, (unsigned)seam_draw(1000));
        CHECK(netsrv__out_append(s, out, bytes, n, &full) && !full);
        memcpy(model + *have, bytes, n);
        *have += n;
    } else if (*have > 0) {
        const size_t gone = n < *have ? n : *have;
        netsrv__out_consume(s, out, gone);
        memmove(model, model + gone, *have - gone);
        *have -= gone;
    }
    CHECK_EQ(out->bytes, *have);
    CHECK(out_read(out, have_out) == *have && memcmp(have_out, model, *have) == 0);
    CHECK((out->head == NULL) == (*have == 0));
}

static void out_queue(void) {
    netsrv_server *s = made(1);
    netsrv__out out = { 0 };
    static unsigned char model[40000];
    size_t have = 0;
    seam_reset(11);
    for (int i = 0; i < 20000; i++) {
        out_step(s, &out, model, &have);
    }
    netsrv__out_discard(s, &out);
    CHECK_EQ(out.bytes, 0);
    CHECK_EQ(atomic_load(&s->queued), 0);
    netsrv_destroy(s);
    seam_reset(0);
}

/* At the server's limit and without memory: nothing is added, nothing is lost. */
static void out_refuses(void) {
    netsrv_server *s = made(1);
    netsrv__out out = { 0 };
    static unsigned char big[1000001];
    bool full = false;
    CHECK(!netsrv__out_append(s, &out, big, sizeof big, &full) && full);
    CHECK_EQ(atomic_load(&s->queued), 0);
    seam_fail_next("alloc", ENOMEM, 1);
    CHECK(!netsrv__out_append(s, &out, big, 100, &full) && !full);
    CHECK_EQ(atomic_load(&s->queued), 0);
    CHECK(netsrv__out_append(s, &out, big, 100, &full));
    CHECK_EQ(out.bytes, 100);
    netsrv__out_discard(s, &out);
    netsrv_destroy(s);
    seam_reset(0);
}

/* ---- [timer] --------------------------------------------------------------------------------- */

#define TIMERS 500

static netsrv__timer timers[TIMERS];
static bool armed[TIMERS];

static uint64_t random_delay(void) {
    return 1 + (seam_mix(seam_draw(1u << 30)) >> (28 + seam_draw(36)));
}

/* Expired are exactly the armed ones whose deadline has come. */
static void check_expired(netsrv__wheel *wheel, netsrv__link *expired, uint64_t now) {
    while (expired->next != expired) {
        netsrv__timer *t =
            (netsrv__timer *)(void *)((char *)expired->next - offsetof(netsrv__timer, link));
        const long i = t - timers;
        CHECK(i >= 0 && i < TIMERS && armed[i]);
        netsrv__timer_stop(wheel, t);
        if (t->deadline_ms > now) {
            netsrv__timer_start(wheel, t, t->deadline_ms);
            CHECK_GE(t->deadline_ms - now, UINT64_C(1) << 34);
            continue;
        }
        armed[i] = false;
    }
    for (int i = 0; i < TIMERS; i++) {
        if (armed[i] && timers[i].deadline_ms <= now) {
            CHECK_FAIL("a timer is late");
            armed[i] = false;
        }
    }
}

static void timer_step(netsrv__wheel *wheel, uint64_t *now) {
    netsrv__link expired;
    for (int k = 0; k < 5; k++) {
        const unsigned long i = seam_draw(TIMERS);
        netsrv__timer_stop(wheel, &timers[i]);
        armed[i] = seam_draw(3) != 0;
        if (armed[i]) {
            netsrv__timer_start(wheel, &timers[i], *now + random_delay());
        }
    }
    const uint64_t next = netsrv__timer_next(wheel);
    CHECK(next > wheel->now_ms);
    for (int i = 0; i < TIMERS; i++) {
        if (armed[i] && timers[i].deadline_ms < next && timers[i].deadline_ms > wheel->now_ms) {
            CHECK_FAIL("the wheel wants to be looked at too late");
        }
    }
    *now += seam_draw(4) == 0 ? random_delay() : seam_draw(100);
    netsrv__util_list_init(&expired);
    netsrv__timer_advance(wheel, *now, &expired);
    check_expired(wheel, &expired, *now);
}

static void timer_wheel(void) {
    static netsrv__wheel wheel;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        uint64_t now = seam_mix(seed) >> (10 + seed * 2);
        seam_reset(seed);
        memset(timers, 0, sizeof timers);
        memset(armed, 0, sizeof armed);
        netsrv__timer_init(&wheel, now);
        for (int i = 0; i < 300; i++) {
            timer_step(&wheel, &now);
        }
        for (int i = 0; i < TIMERS; i++) {
            netsrv__timer_stop(&wheel, &timers[i]);
        }
        CHECK_EQ(wheel.count, 0);
        CHECK(netsrv__timer_next(&wheel) == UINT64_MAX);
    }
    seam_reset(0);
}

/* ---- [slab] ---------------------------------------------------------------------------------- */

#define SLOTS 300

static void slab(void) {
    netsrv_server *s = made(1);
    netsrv__worker *w = &s->workers[0];
    netsrv__slab *sl = &w->own.slab;
    netsrv_conn *live[SLOTS] = { NULL };
    uint32_t gen[SLOTS] = { 0 };
    seam_reset(3);
    for (int i = 0; i < 20000; i++) {
        const unsigned long k = seam_draw(SLOTS);
        if (live[k] != NULL) {
            const uint32_t slot = live[k]->slot;
            CHECK(netsrv__slab_find(sl, slot, gen[k]) == live[k]);
            netsrv__slab_free(sl, live[k]);
            CHECK(netsrv__slab_find(sl, slot, gen[k]) == NULL);
            live[k] = NULL;
            continue;
        }
        live[k] = netsrv__slab_alloc(sl, w);
        REQUIRE(live[k] != NULL);
        gen[k] = live[k]->gen;
        live[k]->state = NETSRV__OPEN;
        CHECK_NE(netsrv__conn_id(live[k]), 0);
    }
    for (int k = 0; k < SLOTS; k++) {
        if (live[k] != NULL) {
            netsrv__slab_free(sl, live[k]);
        }
    }
    CHECK_EQ(sl->live, 0);
    CHECK(netsrv__slab_find(sl, NETSRV__SLAB_MAX - 1, 1) == NULL);
    netsrv__slab_discard(sl, &s->cfg);
    netsrv_destroy(s);
    seam_reset(0);
}

/* ---- [mailbox] ------------------------------------------------------------------------------- */

static void mailbox_order(void) {
    netsrv_server *s = made(1);
    netsrv__worker *w = &s->workers[0];
    uintptr_t posted = 0;
    uintptr_t taken = 0;
    netsrv__mailbox_reopen(&w->mailbox);
    for (int round = 0; round < 200; round++) {
        for (unsigned long n = seam_draw(300); n > 0; n--) {
            netsrv__msg msg;
            memset(&msg, 0, sizeof msg);
            msg.kind = NETSRV__MSG_CALL;
            msg.as.call.arg = (void *)++posted;
            CHECK_EQ(netsrv__mailbox_post(w, &msg, false), NETSRV_OK);
        }
        netsrv__msg *msgs = NULL;
        netsrv__item *reports = NULL;
        const size_t count = netsrv__mailbox_take(&w->mailbox, w->cfg, &msgs, &reports);
        CHECK(reports == NULL);
        for (size_t i = 0; i < count; i++) {
            CHECK((uintptr_t)msgs[i].as.call.arg == ++taken);
        }
        CHECK_EQ(taken, posted);
    }
    CHECK(netsrv__mailbox_shut(&w->mailbox));
    netsrv__msg msg;
    memset(&msg, 0, sizeof msg);
    CHECK_EQ(netsrv__mailbox_post(w, &msg, true), NETSRV_STOPPED);
    netsrv_destroy(s);
}

static void mailbox_limits(void) {
    netsrv_server *s = made(1);
    netsrv__worker *w = &s->workers[0];
    netsrv__msg *msgs = NULL;
    netsrv__item *reports;
    netsrv__msg msg;
    memset(&msg, 0, sizeof msg);
    netsrv__mailbox_reopen(&w->mailbox);
    for (unsigned i = 0; i < s->cfg.mailbox_max_count; i++) {
        CHECK_EQ(netsrv__mailbox_post(w, &msg, false), NETSRV_OK);
    }
    CHECK_EQ(netsrv__mailbox_post(w, &msg, false), NETSRV_QUEUE_FULL);
    seam_fail_next("alloc", ENOMEM, SEAM_FOREVER);
    CHECK_EQ(netsrv__mailbox_post(w, &msg, true), NETSRV_NO_MEMORY);
    seam_fail_stop();
    CHECK(!netsrv__mailbox_shut(&w->mailbox));
    CHECK_EQ(netsrv__mailbox_take(&w->mailbox, w->cfg, &msgs, &reports), s->cfg.mailbox_max_count);
    CHECK_EQ(netsrv__mailbox_take(&w->mailbox, w->cfg, &msgs, &reports), 0);
    CHECK(netsrv__mailbox_shut(&w->mailbox));
    netsrv_destroy(s);
    seam_reset(0);
}

/* ---- [util] ---------------------------------------------------------------------------------- */

static void bits(void) {
    for (unsigned i = 0; i < 64; i++) {
        const uint64_t one = UINT64_C(1) << i;
        CHECK_EQ(netsrv__util_lowest_bit(one), i);
        CHECK_EQ(netsrv__util_lowest_bit(one | UINT64_C(1) << 63), i);
        if (i > 0) {
            CHECK(netsrv__util_rotate(one, i) == UINT64_C(1) << (2 * i % 64));
        }
    }
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    CASE("frame: a table", frame());
    CASE("frame: wherever the search begins", frame_scanned());
    CASE("out: against a model", out_queue());
    CASE("out: refusals", out_refuses());
    CASE("timer: against a model", timer_wheel());
    CASE("slab: names of the dead", slab());
    CASE("mailbox: order", mailbox_order());
    CASE("mailbox: limits", mailbox_limits());
    CASE("util: bits", bits());
    return check_end();
}
