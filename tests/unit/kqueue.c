/* The kqueue backend on any system, over a kevent(2) that plays what the real ones do. */
#undef NETSRV_LIBKQUEUE
#define NETSRV_SEAM_KQUEUE "tests/unit/kevent.h"
#include "../seam.h"

#include "rig.h"

#define KQ NETSRV_BACKEND_KQUEUE

static struct kevent event_of(int filter, unsigned flags, uint32_t fflags, uint64_t token) {
    struct kevent e = netsrv__sys_kevent(7, filter, flags, token);
    e.fflags = fflags;
    return e;
}

/* ---- one event ------------------------------------------------------------------------------- */

static uint32_t mask_of(int filter, unsigned flags, uint32_t fflags) {
    const struct kevent e = event_of(filter, flags, fflags, 0);
    return netsrv__kqueue_mask(&e);
}

static void masks(void) {
    const uint32_t broken = NETSRV__ERR | NETSRV__HUP;
    CHECK_EQ(mask_of(EVFILT_READ, EV_ADD, 0), NETSRV__IN);
    CHECK_EQ(mask_of(EVFILT_WRITE, EV_ADD, 0), NETSRV__OUT);
    /* A FIN, with or without unread bytes before it, is for recv to find. */
    CHECK_EQ(mask_of(EVFILT_READ, EV_ADD | EV_EOF, 0), NETSRV__IN);
    CHECK_EQ(mask_of(EVFILT_READ, EV_ADD | EV_CLEAR | EV_EOF, 0), NETSRV__IN);
    CHECK_EQ(mask_of(EVFILT_READ, EV_ADD | EV_EOF, ECONNRESET),
             NETSRV__IN | broken | (uint32_t)ECONNRESET << NETSRV__ERRNO_SHIFT);
    CHECK_EQ(mask_of(EVFILT_WRITE, EV_ADD | EV_EOF, ETIMEDOUT),
             NETSRV__OUT | broken | (uint32_t)ETIMEDOUT << NETSRV__ERRNO_SHIFT);
    /* The other end of a unix socket was closed in order. */
    CHECK_EQ(mask_of(EVFILT_WRITE, EV_ADD | EV_EOF, 0), NETSRV__OUT | NETSRV__HUP);
}

/* ---- a batch of events ----------------------------------------------------------------------- */

#define BATCH_MAX 600

/* As much of a worker as collecting needs. */
static struct {
    netsrv__worker w;
    netsrv_config cfg;
    netsrv__event events[BATCH_MAX];
    struct kevent raw[BATCH_MAX];
    uint32_t seen[4 * BATCH_MAX];
} batch;

static int collect(const struct kevent *list, int n) {
    static _Alignas(16) unsigned char scratch[sizeof batch.raw + sizeof batch.seen];
    batch.cfg.events_per_wait = BATCH_MAX;
    batch.w.cfg = &batch.cfg;
    batch.w.own.events = batch.events;
    batch.w.own.raw_events = scratch;
    memcpy(scratch, list, (size_t)n * sizeof *list);
    return netsrv__kqueue_collect(&batch.w, (const struct kevent *)(const void *)scratch, n);
}

static uint64_t gate_token(unsigned i) {
    return (uint64_t)i << 3 | NETSRV__TOKEN_LISTENER;
}

static void merged(void) {
    const uint32_t reset = (uint32_t)ECONNRESET << NETSRV__ERRNO_SHIFT;
    const struct kevent list[] = {
        event_of(EVFILT_WRITE, EV_ADD, 0, gate_token(1)),
        event_of(EVFILT_READ, EV_ADD, 0, gate_token(2)),
        event_of(EVFILT_USER, EV_CLEAR, 0, NETSRV__TOKEN_WOKEN),
        event_of(EVFILT_READ, EV_ADD | EV_EOF, ECONNRESET, gate_token(1)),
        event_of(EVFILT_READ, EV_ADD | EV_EOF, ECONNRESET, gate_token(3)),
        event_of(EVFILT_WRITE, EV_ADD | EV_EOF, EPIPE, gate_token(3)),
    };
    REQUIRE(collect(list, 6) == 3);
    CHECK_EQ(batch.events[0].token, gate_token(1));
    CHECK_EQ(batch.events[0].mask,
             NETSRV__IN | NETSRV__OUT | NETSRV__ERR | NETSRV__HUP | reset);
    CHECK_EQ(batch.events[1].token, gate_token(2));
    CHECK_EQ(batch.events[1].mask, NETSRV__IN);
    CHECK_EQ(batch.events[2].mask,
             NETSRV__IN | NETSRV__OUT | NETSRV__ERR | NETSRV__HUP | reset);
    CHECK_EQ(atomic_load(&batch.w.count.wakes), 1);
}

static void many_merged(void) {
    for (unsigned i = 0; i < BATCH_MAX; i++) {
        const int filter = i < BATCH_MAX / 2 ? EVFILT_READ : EVFILT_WRITE;
        batch.raw[i] = event_of(filter, EV_ADD, 0, gate_token(i % (BATCH_MAX / 2)));
    }
    REQUIRE(collect(batch.raw, BATCH_MAX) == BATCH_MAX / 2);
    for (unsigned i = 0; i < BATCH_MAX / 2; i++) {
        CHECK_EQ(batch.events[i].token, gate_token(i));
        CHECK_EQ(batch.events[i].mask, NETSRV__IN | NETSRV__OUT);
    }
}

/* ---- changes --------------------------------------------------------------------------------- */

typedef struct change {
    int filter;
    unsigned flags;
} change;

static netsrv__group queue_group(void) {
    netsrv__group g;
    memset(&g, 0, sizeof g);
    g.poller_fd = kqueue();
    fake_reset();
    return g;
}

static void expect_changes(netsrv__group *g, int fd, unsigned from, unsigned to,
                           const change *wanted, int n) {
    fake.logged = 0;
    CHECK_EQ(netsrv__kqueue_set(g, fd, 16, from, to), 0);
    CHECK_EQ(fake.logged, n);
    for (int i = 0; i < n && i < fake.logged; i++) {
        CHECK_EQ(fake.log[i].filter, (fake_filter)wanted[i].filter);
        CHECK_EQ(fake.log[i].flags, (fake_flags)wanted[i].flags);
        CHECK_EQ(fake.log[i].ident, (uintptr_t)fd);
    }
}

#define EXPECT(from, to, ...)                                                                      \
    expect_changes(&g, 0, (from), (to), (const change[]){ __VA_ARGS__ },                           \
                   (int)(sizeof((const change[]){ __VA_ARGS__ }) / sizeof(change)))

/* The life of a connection: reading, output blocked, no input wanted, only the reset, and back. */
static void a_life(void) {
    const unsigned keep = NETSRV__KEEP;
    const unsigned in = keep | NETSRV__IN;
    const unsigned out = keep | NETSRV__OUT;
    netsrv__group g = queue_group();
    EXPECT(0, in, { EVFILT_READ, EV_ADD | EV_RECEIPT });
    EXPECT(in, in | out, { EVFILT_WRITE, EV_ADD | EV_RECEIPT });
    EXPECT(in | out, out, { EVFILT_READ, EV_DELETE | EV_RECEIPT });
    EXPECT(out, keep, { EVFILT_READ, EV_ADD | EV_CLEAR | EV_RECEIPT },
           { EVFILT_WRITE, EV_DELETE | EV_RECEIPT });
    EXPECT(keep, in, { EVFILT_READ, EV_DELETE | EV_RECEIPT },
           { EVFILT_READ, EV_ADD | EV_RECEIPT });
    EXPECT(in, 0, { EVFILT_READ, EV_DELETE | EV_RECEIPT });
    close(g.poller_fd);
}

static void a_listener(void) {
    const unsigned once = NETSRV__KEEP | NETSRV__IN | NETSRV__ONESHOT;
    const unsigned edge = NETSRV__KEEP | NETSRV__IN | NETSRV__EDGE;
    netsrv__group g = queue_group();
    EXPECT(0, once, { EVFILT_READ, EV_ADD | EV_DISPATCH | EV_RECEIPT });
    EXPECT(once, once, { EVFILT_READ, EV_ENABLE });
    EXPECT(once, 0, { EVFILT_READ, EV_DELETE | EV_RECEIPT });
    EXPECT(0, edge, { EVFILT_READ, EV_ADD | EV_CLEAR | EV_RECEIPT });
    close(g.poller_fd);
}

/* One direction, and reported once: after it, another thread may have freed what the token names.
 * */
static void a_gift(void) {
    netsrv__group g = queue_group();
    EXPECT(0, NETSRV__READY_GIVEN, { EVFILT_WRITE, EV_ADD | EV_ONESHOT | EV_RECEIPT });
    EXPECT(NETSRV__READY_GIVEN, NETSRV__KEEP | NETSRV__IN,
           { EVFILT_READ, EV_ADD | EV_RECEIPT }, { EVFILT_WRITE, EV_DELETE | EV_RECEIPT });
    close(g.poller_fd);
}

static void failed_changes(void) {
    const unsigned in = NETSRV__KEEP | NETSRV__IN;
    netsrv__group g = queue_group();
    fake.fail_errno = ENOMEM;
    fake.fail_filter = EVFILT_WRITE;
    CHECK_EQ(netsrv__kqueue_set(&g, 0, 16, 0, in | NETSRV__OUT), ENOMEM);
    CHECK_EQ(netsrv__kqueue_set(&g, 1000000, 16, 0, in), EBADF);
    /* Deleting what is not there is no failure, and does not keep the second from being deleted. */
    fake.logged = 0;
    CHECK_EQ(netsrv__kqueue_set(&g, 1, 16, in | NETSRV__OUT, 0), 0);
    CHECK_EQ(fake.logged, 2);
    /* Arming again what is not there is one: nobody would hear of that listener. */
    CHECK_EQ(netsrv__kqueue_set(&g, 1, 16, in | NETSRV__ONESHOT, in | NETSRV__ONESHOT), ENOENT);
    close(g.poller_fd);
}

/* The changes were applied: twice would be wrong, and so would an error. */
static void interrupted_change(void) {
    const unsigned in = NETSRV__KEEP | NETSRV__IN;
    netsrv__group g = queue_group();
    fake.interrupt_changes = 1;
    CHECK_EQ(netsrv__kqueue_set(&g, 0, 16, 0, in), 0);
    CHECK_EQ(fake.logged, 1);
    CHECK_EQ(netsrv__kqueue_set(&g, 0, 16, in, 0), 0);
    CHECK_EQ(fake.logged, 2);
    close(g.poller_fd);
}

/* ---- names ----------------------------------------------------------------------------------- */

/* With pointers of 32 bits, too, a late event of a slot's former connection is told from the new.
 * */
static void names(void) {
    static netsrv_conn chunk[NETSRV__SLAB_CHUNK];
    static netsrv_conn *chunks[1] = { chunk };
    batch.w.own.slab.chunks = chunks;
    batch.w.own.slab.chunk_count = 1;
    for (uint32_t gen = 1; gen < 70000; gen += 13) {
        const uint64_t token = (uint64_t)gen << 32 | 5u << 3 | NETSRV__TOKEN_CONN;
        chunk[5].gen = gen;
        chunk[5].slot = 5;
        const uint64_t name = netsrv__kqueue_fold(token);
        CHECK_EQ((uint64_t)(uintptr_t)NETSRV__KQ_UDATA(name), name);
        CHECK(netsrv__conn_of_token(&batch.w, netsrv__kqueue_unfold(&batch.w, name)) == &chunk[5]);
        chunk[5].gen = gen + 1;
        CHECK(netsrv__conn_of_token(&batch.w, netsrv__kqueue_unfold(&batch.w, name)) == NULL);
    }
    CHECK_EQ(netsrv__kqueue_unfold(&batch.w, netsrv__kqueue_fold(gate_token(3))), gate_token(3));
    memset(&batch.w.own.slab, 0, sizeof batch.w.own.slab);
}

/* ---- wake-ups -------------------------------------------------------------------------------- */

static void wakes(fake_user user, bool by_queue) {
    netsrv_config cfg = rig_config(KQ, 2);
    fake_reset();
    fake.user = user;
    netsrv_server *s = rig_start(&cfg);
    const unsigned long before = fake.triggers; /* the probe's own */
    for (int i = 0; i < 20; i++) {
        rig_poke(s);
    }
    CHECK((fake.triggers > before) == by_queue);
    CHECK(rig_total(s).wakes >= 20);
    rig_stop(s, 0);
    CHECK_EQ(fake.lost, 0);
}

/* From a signal handler only what is safe there is used: the descriptor. */
static void stop_by_descriptor(void) {
    netsrv_config cfg = rig_config(KQ, 2);
    fake_reset();
    netsrv_server *s = rig_start(&cfg);
    const unsigned long before = fake.triggers;
    netsrv_stop(s, 0);
    CHECK_EQ(fake.triggers, before);
    rig_end(s);
}

/* ---- connections ----------------------------------------------------------------------------- */

static struct {
    atomic_ulong at_eof; /* bytes before on_eof */
    netsrv_conn *first;
    _Atomic netsrv_id id;
} story;

static size_t story_data(netsrv_conn *c, const void *data, size_t n) {
    CHECK_EQ(atomic_load(&rig_seen.eofs), 0);
    return rig_on_data(c, data, n);
}

static void story_eof(netsrv_conn *c) {
    atomic_store(&story.at_eof, atomic_load(&rig_seen.bytes));
    rig_on_eof(c);
}

static void story_open(netsrv_conn *c) {
    atomic_store(&story.id, netsrv_get_id(c));
    rig_on_open(c);
}

static void story_open_paused(netsrv_conn *c) {
    story_open(c);
    netsrv_pause(c);
}

static netsrv_server *story_start(netsrv_config *cfg) {
    memset(&story, 0, sizeof story);
    fake_reset();
    return rig_start(cfg);
}

/* Five bytes and the FIN are announced by one event with EV_EOF, whichever filter comes first. */
static void eof_with_data(bool writes_first) {
    netsrv_config cfg = rig_config(KQ, 1);
    cfg.on_data = story_data;
    cfg.on_eof = story_eof;
    netsrv_server *s = story_start(&cfg);
    pthread_mutex_lock(&fake.lock);
    fake.writes_first = writes_first;
    pthread_mutex_unlock(&fake.lock);
    for (int i = 0; i < 20; i++) {
        rig_seen_clear();
        const int fd = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd, "bytes"));
        shutdown(fd, SHUT_WR);
        CHECK(peer_gets(fd, "bytes"));
        CHECK_EQ(peer_end(fd), PEER_FIN);
        close(fd);
        CHECK_WITHIN(5000, rig_closes() == 1);
        CHECK_EQ(atomic_load(&story.at_eof), 5);
        CHECK_EQ(rig_reason(NETSRV_CLOSE_PEER), 1);
    }
    rig_stop(s, 0);
    CHECK_EQ(fake.lost, 0);
}

/* Nothing is read: the sentinel tells once, and the connection is at rest until the reset. */
static void paused_then_reset(void) {
    netsrv_config cfg = rig_config(KQ, 1);
    cfg.on_open = story_open_paused;
    netsrv_server *s = story_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 1);
    CHECK(peer_say(fd, "unread"));
    shutdown(fd, SHUT_WR);
    CHECK_WITHIN(5000, rig_total(s).bytes_in == 0);
    const uint64_t before = rig_total(s).turns;
    CHECK(rig_rests(100));
    CHECK_LE(rig_total(s).turns - before, 4);
    CHECK_EQ(rig_closes(), 0);
    peer_reset(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_ERROR), 1);
    CHECK_EQ(atomic_load(&rig_seen.bytes), 0);
    rig_stop(s, 0);
    CHECK_EQ(fake.lost, 0);
}

static void script(int filter, unsigned flags, uint32_t fflags, uint64_t token) {
    pthread_mutex_lock(&fake.lock);
    fake.script[fake.scripted++] = event_of(filter, flags, fflags, netsrv__kqueue_fold(token));
    pthread_mutex_unlock(&fake.lock);
}

/* The token under which a connection's events come. */
static uint64_t token_of(netsrv_id id, uint32_t generations_ago) {
    const uint64_t gen = (id >> 32) - generations_ago;
    return gen << 32 | (id & (NETSRV__SLAB_MAX - 1)) << 3 | NETSRV__TOKEN_CONN;
}

/* A keep-alive that gave up: the errno is in fflags, and the socket itself may have lost it. */
static void errno_from_fflags(bool paused) {
    netsrv_config cfg = rig_config(KQ, 1);
    cfg.on_open = paused ? story_open_paused : story_open;
    netsrv_server *s = story_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 1);
    script(EVFILT_READ, EV_ADD | EV_EOF | (paused ? EV_CLEAR : 0), ETIMEDOUT,
           token_of(atomic_load(&story.id), 0));
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_ERROR), 1);
    CHECK_EQ(atomic_load(&rig_seen.last_errno), ETIMEDOUT);
    close(fd);
    rig_stop(s, 0);
}

/* Events of a connection that is gone, with everything they can say, meet the next one of its slot:
 * nobody hears of them. */
static void stale(void) {
    netsrv_config cfg = rig_config(KQ, 1);
    cfg.on_open = story_open;
    netsrv_server *s = story_start(&cfg);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    CHECK_WITHIN(5000, rig_closes() == 1);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 2);
    const uint64_t late = token_of(atomic_load(&story.id), 1);
    script(EVFILT_READ, EV_ADD | EV_EOF, ECONNRESET, late);
    script(EVFILT_WRITE, EV_ADD | EV_EOF, EPIPE, late);
    CHECK_WITHIN(5000, rig_total(s).stale == 1); /* both are one event */
    CHECK(peer_say(fd, "still here") && peer_gets(fd, "still here"));
    CHECK_EQ(rig_closes(), 1);
    close(fd);
    CHECK_WITHIN(5000, rig_closes() == 2);
    rig_stop(s, 0);
}

static size_t close_the_first(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    if (story.first != NULL && story.first != c) {
        netsrv_abort(story.first);
        story.first = NULL;
    }
    return n;
}

static void story_open_first(netsrv_conn *c) {
    story.first = story.first == NULL ? c : story.first;
    story_open(c);
}

/* In one batch: the second connection's input, whose callback closes the first, and then the
 * first's own. */
static void closed_within_a_batch(void) {
    netsrv_config cfg = rig_config(KQ, 1);
    cfg.on_open = story_open_first;
    cfg.on_data = close_the_first;
    netsrv_server *s = story_start(&cfg);
    const int one = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 1);
    const netsrv_id first = atomic_load(&story.id);
    const int two = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 2);
    pthread_mutex_lock(&fake.lock);
    CHECK(peer_say(two, "x"));
    fake.script[fake.scripted++] =
        event_of(EVFILT_READ, EV_ADD | EV_EOF, 0, netsrv__kqueue_fold(token_of(first, 0)));
    fake.script[fake.scripted++] =
        event_of(EVFILT_READ, EV_ADD, 0,
                 netsrv__kqueue_fold(token_of(atomic_load(&story.id), 0)));
    pthread_mutex_unlock(&fake.lock);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_ABORT), 1);
    close(one);
    close(two);
    CHECK_WITHIN(5000, rig_closes() == 2);
    rig_stop(s, 0);
    CHECK_EQ(fake.lost, 0);
}

/* The peer has half-closed, output waits, then a reset: EV_EOF on the write filter ends it. */
static void small_send_buffer(netsrv_conn *c) {
    static char bytes[400000];
    const int small = 4096;
    rig_on_open(c);
    setsockopt(netsrv_get_fd(c), SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    netsrv_send(c, bytes, sizeof bytes);
}

static void reset_behind_output(void) {
    netsrv_config cfg = rig_config(KQ, 1);
    cfg.on_open = small_send_buffer;
    cfg.eof_policy = NETSRV_EOF_KEEP;
    netsrv_server *s = story_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 1);
    shutdown(fd, SHUT_WR);
    CHECK(rig_rests(100));
    peer_reset(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_ERROR), 1);
    rig_stop(s, 0);
    CHECK_EQ(fake.lost, 0);
}

static void interrupted_waits(void) {
    netsrv_config cfg = rig_config(KQ, 2);
    netsrv_server *s = story_start(&cfg);
    pthread_mutex_lock(&fake.lock);
    fake.interrupt_waits = 50;
    fake.interrupt_changes = 5;
    pthread_mutex_unlock(&fake.lock);
    for (int i = 0; i < 20; i++) {
        CHECK(peer_served(netsrv_get_port(s, 0)));
    }
    rig_stop(s, 0);
    CHECK_EQ(fake.lost, 0);
}

/* ---- accepting ------------------------------------------------------------------------------- */

static void accept_by(netsrv_accept accept, netsrv_trigger trigger, netsrv_transfer transfer) {
    netsrv_config cfg = rig_config(KQ, 2);
    cfg.accept = accept;
    cfg.trigger = trigger;
    cfg.transfer = transfer;
    cfg.place = NETSRV_PLACE_ROUND_ROBIN;
    cfg.acceptors = accept == NETSRV_ACCEPT_ACCEPTOR ? 2 : 0;
    cfg.accepts_per_turn = 2;
    netsrv_server *s = story_start(&cfg);
    int fd[40];
    for (int i = 0; i < 40; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
    }
    for (int i = 0; i < 40; i++) {
        CHECK(peer_say(fd[i], "x") && peer_gets(fd[i], "x"));
        close(fd[i]);
    }
    CHECK_WITHIN(5000, rig_closes() == 40);
    rig_stop(s, 0);
    CHECK_EQ(fake.lost, 0);
}

static void choices(void) {
    netsrv_error error;
    netsrv_server *s = NULL;
    netsrv_config cfg = rig_config(KQ, 2);
    netsrv_choice accept = { 0 };
    fake_reset();
    fake.user = FAKE_USER_MISSING;
    cfg.accept = NETSRV_ACCEPT_EXCLUSIVE;
    CHECK_EQ(netsrv_create(&s, &cfg, &error), NETSRV_UNAVAILABLE);
    CHECK(strstr(error.text, "exclusive") != NULL && strstr(error.text, "acceptor") != NULL);
    cfg.accept = NETSRV_ACCEPT_AUTO;
    REQUIRE(netsrv_create(&s, &cfg, &error) == NETSRV_OK);
    CHECK(netsrv_get_choice(s, 1, &accept));
    CHECK_STR(accept.taken, "acceptor");
    CHECK_EQ(netsrv_get_config(s)->place, NETSRV_PLACE_TWO_CHOICES);
    netsrv_destroy(s);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    CASE("what an event says", masks());
    CASE("both filters are one event", merged());
    CASE("both filters are one event, in a full batch", many_merged());
    CASE("changes in the life of a connection", a_life());
    CASE("changes of a listener", a_listener());
    CASE("changes of a connection that is handed over", a_gift());
    CASE("errors in the receipts", failed_changes());
    CASE("interrupted after the changes were made", interrupted_change());
    CASE("names in a pointer", names());
    CASE("woken through the queue", wakes(FAKE_USER_WORKS, true));
    CASE("no EVFILT_USER", wakes(FAKE_USER_MISSING, false));
    CASE("an EVFILT_USER that does not work", wakes(FAKE_USER_BROKEN, false));
    CASE("a stop goes through the descriptor", stop_by_descriptor());
    CASE("EOF with data", eof_with_data(false));
    CASE("EOF with data, writable first", eof_with_data(true));
    CASE("paused, data, FIN, then a reset", paused_then_reset());
    CASE("an errno in fflags", errno_from_fflags(false));
    CASE("an errno in fflags, paused", errno_from_fflags(true));
    CASE("late events", stale());
    CASE("closed within a batch", closed_within_a_batch());
    CASE("a reset behind waiting output", reset_behind_output());
    CASE("interrupted waits and changes", interrupted_waits());
    CASE("accept: level", accept_by(NETSRV_ACCEPT_ACCEPTOR, NETSRV_TRIGGER_LEVEL,
                                    NETSRV_TRANSFER_MAILBOX));
    CASE("accept: oneshot, direct", accept_by(NETSRV_ACCEPT_ACCEPTOR, NETSRV_TRIGGER_ONESHOT,
                                              NETSRV_TRANSFER_DIRECT));
    CASE("accept: edge", accept_by(NETSRV_ACCEPT_EDGE, NETSRV_TRIGGER_AUTO,
                                   NETSRV_TRANSFER_MAILBOX));
    CASE("accept: shared, direct", accept_by(NETSRV_ACCEPT_SHARED, NETSRV_TRIGGER_AUTO,
                                             NETSRV_TRANSFER_DIRECT));
    CASE("what is refused and what is taken", choices());
    return check_end();
}
