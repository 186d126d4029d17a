/* watch.c: descriptors of the program's on a worker's loop: told as long as they are ready, silent
 * once they are given up, whatever the program does with its own number. */
#include "../seam.h"

#include "rig.h"

#define MANY 300

/* ---- calls on a worker's thread, from this one ----------------------------------------------- */

typedef struct errand {
    void (*run)(netsrv_server *s, void *arg);
    void *arg;
    atomic_bool done;
} errand;

static void run_errand(netsrv_server *s, unsigned worker, void *arg) {
    errand *e = arg;
    (void)worker;
    e->run(s, e->arg);
    atomic_store(&e->done, true);
}

static void on_worker(netsrv_server *s, unsigned worker, void (*run)(netsrv_server *, void *),
                      void *arg) {
    errand e = { .run = run, .arg = arg };
    REQUIRE(netsrv_post(s, worker, run_errand, &e) == NETSRV_OK);
    CHECK_WITHIN(10000, atomic_load(&e.done));
    REQUIRE(atomic_load(&e.done));
}

/* ---- a watched pipe -------------------------------------------------------------------------- */

typedef struct bell {
    int ends[2];
    int fd; /* which end is watched */
    unsigned mask;
    netsrv_watch_fn *fn;
    netsrv_watch_id id;
    netsrv_result result;
    struct bell *other;
    const char *fails; /* the next call of that name, on the worker */
    int with;
    atomic_ulong rings;
    atomic_uint ready; /* of the last ring */
    char took[64];
} bell;

static void bell_make(bell *b, netsrv_watch_fn *fn) {
    memset(b, 0, sizeof *b);
    REQUIRE(port_pipe(b->ends) == 0);
    fcntl(b->ends[0], F_SETFL, O_NONBLOCK);
    fcntl(b->ends[1], F_SETFL, O_NONBLOCK);
    b->fd = b->ends[0];
    b->mask = NETSRV_READABLE;
    b->fn = fn;
}

static void bell_discard(bell *b) {
    for (int i = 0; i < 2; i++) {
        if (b->ends[i] >= 0) {
            close(b->ends[i]);
        }
    }
}

static void bell_ring(bell *b, const char *text) {
    CHECK_EQ(write(b->ends[1], text, strlen(text)), (long long)strlen(text));
}

static void bell_fail(const bell *b) {
    if (b->fails != NULL) {
        seam_fail_next(b->fails, b->with, 1);
    }
}

static void bell_watch(netsrv_server *s, void *arg) {
    bell *b = arg;
    bell_fail(b);
    b->result = netsrv_watch(s, b->fd, b->mask, b->fn, b, &b->id);
}

static void bell_change(netsrv_server *s, void *arg) {
    bell *b = arg;
    bell_fail(b);
    b->result = netsrv_watch_change(s, b->id, b->mask);
}

static void bell_unwatch(netsrv_server *s, void *arg) {
    bell *b = arg;
    bell_fail(b);
    b->result = netsrv_unwatch(s, b->id);
}

static void bell_expect(netsrv_server *s, void (*run)(netsrv_server *, void *), bell *b,
                        netsrv_result result) {
    on_worker(s, 0, run, b);
    CHECK_EQ(b->result, result);
}

/* One byte at a time, so that a poller that tells each arrival once would leave some behind. */
static void take_one(netsrv_server *s, unsigned worker, int fd, unsigned ready, void *arg) {
    bell *b = arg;
    CHECK(s != NULL && worker == 0);
    CHECK_EQ(fd, b->fd);
    const unsigned long n = atomic_load(&b->rings);
    CHECK_EQ(read(fd, &b->took[n % sizeof b->took], 1), 1);
    atomic_store(&b->ready, ready);
    atomic_fetch_add(&b->rings, 1);
}

static void count_only(netsrv_server *s, unsigned worker, int fd, unsigned ready, void *arg) {
    bell *b = arg;
    (void)s;
    (void)worker;
    (void)fd;
    atomic_store(&b->ready, ready);
    atomic_fetch_add(&b->rings, 1);
}

static void told_while_ready(netsrv_backend backend) {
    const netsrv_config cfg = rig_config(backend, 2);
    netsrv_server *s = rig_start(&cfg);
    bell b;
    bell_make(&b, take_one);
    bell_expect(s, bell_watch, &b, NETSRV_OK);
    CHECK(b.id != 0);
    bell_ring(&b, "abc");
    CHECK_WITHIN(5000, atomic_load(&b.rings) == 3);
    CHECK_EQ(atomic_load(&b.ready), NETSRV_READABLE);
    bell_ring(&b, "d");
    CHECK_WITHIN(5000, atomic_load(&b.rings) == 4);
    CHECK_MEM(b.took, 4, "abcd", 4);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    bell_expect(s, bell_unwatch, &b, NETSRV_OK);
    bell_expect(s, bell_unwatch, &b, NETSRV_GONE);
    bell_expect(s, bell_change, &b, NETSRV_GONE);
    bell_ring(&b, "e");
    rig_poke(s);
    rig_poke(s);
    CHECK_EQ(atomic_load(&b.rings), 4);
    rig_stop(s, 1000);
    bell_discard(&b);
}

/* Interest that is taken back and given again, in both directions, on a socket pair. */
static void masks(netsrv_backend backend) {
    const netsrv_config cfg = rig_config(backend, 1);
    netsrv_server *s = rig_start(&cfg);
    bell b;
    bell_make(&b, count_only);
    close(b.ends[0]);
    close(b.ends[1]);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, b.ends) == 0);
    b.fd = b.ends[0];
    b.mask = 0;
    bell_expect(s, bell_watch, &b, NETSRV_OK);
    bell_ring(&b, "x");
    CHECK(rig_rests(30));
    CHECK_EQ(atomic_load(&b.rings), 0);
    b.mask = NETSRV_READABLE;
    bell_expect(s, bell_change, &b, NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&b.rings) > 3);
    CHECK_EQ(atomic_load(&b.ready), NETSRV_READABLE);
    b.mask = NETSRV_WRITABLE;
    bell_expect(s, bell_change, &b, NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&b.ready) == NETSRV_WRITABLE);
    b.mask = NETSRV_READABLE | NETSRV_WRITABLE;
    bell_expect(s, bell_change, &b, NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&b.ready) == (NETSRV_READABLE | NETSRV_WRITABLE));
    b.mask = 0;
    bell_expect(s, bell_change, &b, NETSRV_OK);
    CHECK(rig_rests(30));
    b.mask = NETSRV_HUNG_UP;
    bell_expect(s, bell_change, &b, NETSRV_BAD_ARGUMENT);
    rig_stop(s, 1000);
    bell_discard(&b);
}

/* ---- refused --------------------------------------------------------------------------------- */

static void refused_here(netsrv_server *s, void *arg) {
    bell *b = arg;
    const int file = port_scratch();
    const int directory = open("/", O_RDONLY | O_CLOEXEC);
    const int closed = dup(file);
    close(closed);
    b->id = 1;
    CHECK_EQ(netsrv_watch(s, file, NETSRV_READABLE, take_one, b, &b->id), NETSRV_UNAVAILABLE);
    CHECK_EQ(netsrv_watch(s, directory, NETSRV_READABLE, take_one, b, NULL), NETSRV_UNAVAILABLE);
    CHECK_EQ(netsrv_watch(s, closed, NETSRV_READABLE, take_one, b, NULL), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_watch(s, -1, NETSRV_READABLE, take_one, b, NULL), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_watch(s, b->fd, NETSRV_READABLE, NULL, b, NULL), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_watch(s, b->fd, 2, take_one, b, NULL), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_unwatch(s, 0), NETSRV_GONE);
    CHECK_EQ(netsrv_unwatch(s, UINT64_C(7) << 32), NETSRV_GONE);
    CHECK_EQ(netsrv_unwatch(s, UINT64_C(7) << 32 | 5), NETSRV_GONE);
    CHECK_EQ(netsrv_unwatch(s, UINT64_MAX), NETSRV_GONE);
    close(file);
    close(directory);
}

static void refused(netsrv_backend backend) {
    const netsrv_config cfg = rig_config(backend, 2);
    netsrv_server *s = rig_start(&cfg);
    bell b;
    bell_make(&b, take_one);
    on_worker(s, 0, refused_here, &b);
    CHECK_EQ(netsrv_watch(s, b.fd, NETSRV_READABLE, take_one, &b, NULL), NETSRV_BAD_THREAD);
    bell_expect(s, bell_watch, &b, NETSRV_OK);
    CHECK_EQ(netsrv_unwatch(s, b.id), NETSRV_BAD_THREAD);
    on_worker(s, 1, bell_unwatch, &b);
    CHECK_EQ(b.result, NETSRV_BAD_THREAD);
    bell_ring(&b, "x");
    CHECK_WITHIN(5000, atomic_load(&b.rings) == 1);
    rig_stop(s, 1000);
    bell_discard(&b);
}

/* A server's worker is no worker of another one. */
static void other_server(netsrv_server *s, void *arg) {
    (void)s;
    CHECK_EQ(netsrv_watch(arg, 0, NETSRV_READABLE, take_one, NULL, NULL), NETSRV_BAD_THREAD);
}

static void two_servers(netsrv_backend backend) {
    const netsrv_config cfg = rig_config(backend, 1);
    netsrv_server *one = rig_start(&cfg);
    netsrv_server *two = rig_start(&cfg);
    on_worker(one, 0, other_server, two);
    rig_stop(one, 1000);
    rig_stop(two, 1000);
}

/* ---- stale events ---------------------------------------------------------------------------- */

static void give_up_other(netsrv_server *s, unsigned worker, int fd, unsigned ready, void *arg) {
    bell *b = arg;
    count_only(s, worker, fd, ready, arg);
    CHECK_EQ(netsrv_unwatch(s, b->other->id), NETSRV_OK);
    CHECK_EQ(netsrv_unwatch(s, b->id), NETSRV_OK);
    /* A new one takes no event of the old ones, wherever its slot is. */
    b->fd = b->ends[1];
    b->mask = 0;
    b->fn = count_only;
    bell_watch(s, b);
    CHECK_EQ(b->result, NETSRV_OK);
}

static void ring_both(netsrv_server *s, void *arg) {
    bell *b = arg;
    (void)s;
    bell_ring(b, "x");
    bell_ring(b->other, "x");
}

/* Both are ready in one batch, and whichever comes first gives up both. */
static void given_up_in_the_batch(netsrv_backend backend) {
    const netsrv_config cfg = rig_config(backend, 1);
    netsrv_server *s = rig_start(&cfg);
    bell b[2];
    for (int i = 0; i < 2; i++) {
        bell_make(&b[i], give_up_other);
        b[i].other = &b[1 - i];
        bell_expect(s, bell_watch, &b[i], NETSRV_OK);
    }
    on_worker(s, 0, ring_both, &b[0]);
    CHECK_WITHIN(5000, atomic_load(&b[0].rings) + atomic_load(&b[1].rings) == 1);
    rig_poke(s);
    rig_poke(s);
    CHECK_EQ(atomic_load(&b[0].rings) + atomic_load(&b[1].rings), 1);
    rig_stop(s, 1000);
    bell_discard(&b[0]);
    bell_discard(&b[1]);
}

/* The program closes its number while it is watched; a client's connection gets that number. */
static void closed_by_its_owner(netsrv_backend backend) {
    const netsrv_config cfg = rig_config(backend, 1);
    netsrv_server *s = rig_start(&cfg);
    bell b;
    const int client = peer_socket(check_scaled(PEER_DEADLINE_MS));
    bell_make(&b, count_only);
    bell_expect(s, bell_watch, &b, NETSRV_OK);
    close(b.ends[0]);
    b.ends[0] = -1;
    CHECK_EQ(peer_reach(client, netsrv_get_port(s, 0)), client);
    CHECK(peer_say(client, "one") && peer_gets(client, "one"));
    CHECK_EQ(fcntl(b.fd, F_GETFD), FD_CLOEXEC); /* the connection's, the lowest number free */
    CHECK_EQ(atomic_load(&b.rings), 0);
    bell_expect(s, bell_unwatch, &b, NETSRV_OK);
    CHECK(peer_say(client, "two") && peer_gets(client, "two"));
    close(client);
    CHECK_WITHIN(5000, rig_closes() == 1);
    rig_stop(s, 1000);
    bell_discard(&b);
}

/* The same, and the file has something to tell for ever: to its watch, and to nobody else. */
static void closed_while_ready(netsrv_backend backend) {
    const netsrv_config cfg = rig_config(backend, 1);
    netsrv_server *s = rig_start(&cfg);
    bell b;
    bell_make(&b, count_only);
    bell_expect(s, bell_watch, &b, NETSRV_OK);
    bell_ring(&b, "x");
    CHECK_WITHIN(5000, atomic_load(&b.rings) > 0);
    close(b.ends[0]);
    b.ends[0] = -1;
    CHECK(peer_served(netsrv_get_port(s, 0)));
    bell_expect(s, bell_unwatch, &b, NETSRV_OK);
    const unsigned long rings = atomic_load(&b.rings);
    rig_poke(s);
    rig_poke(s);
    CHECK_EQ(atomic_load(&b.rings), rings);
    CHECK(rig_rests(30));
    rig_stop(s, 1000);
    bell_discard(&b);
}

/* ---- the end of a descriptor ----------------------------------------------------------------- */

static void rest_at_end(netsrv_server *s, unsigned worker, int fd, unsigned ready, void *arg) {
    bell *b = arg;
    char byte;
    count_only(s, worker, fd, ready, arg);
    if (read(fd, &byte, 1) == 0) {
        CHECK_EQ(netsrv_watch_change(s, b->id, 0), NETSRV_OK);
    }
}

static void hang_up(netsrv_backend backend) {
    const netsrv_config cfg = rig_config(backend, 1);
    netsrv_server *s = rig_start(&cfg);
    bell b;
    bell_make(&b, rest_at_end);
    bell_expect(s, bell_watch, &b, NETSRV_OK);
    close(b.ends[1]);
    b.ends[1] = -1;
    CHECK_WITHIN(5000, atomic_load(&b.rings) == 1);
    CHECK((atomic_load(&b.ready) & NETSRV_READABLE) != 0);
    CHECK(rig_rests(30));
    CHECK_EQ(atomic_load(&b.rings), 1);
    rig_stop(s, 1000);
    bell_discard(&b);
}

static void writer_hears_hang_up(netsrv_backend backend) {
    const netsrv_config cfg = rig_config(backend, 1);
    char full[4096];
    netsrv_server *s = rig_start(&cfg);
    bell b;
    bell_make(&b, count_only);
    memset(full, 'x', sizeof full);
    while (write(b.ends[1], full, sizeof full) > 0) {
    }
    b.fd = b.ends[1];
    b.mask = NETSRV_WRITABLE;
    bell_expect(s, bell_watch, &b, NETSRV_OK);
    rig_poke(s);
    CHECK_EQ(atomic_load(&b.rings), 0);
    close(b.ends[0]);
    b.ends[0] = -1;
    CHECK_WITHIN(5000, atomic_load(&b.rings) > 0);
    CHECK_EQ(atomic_load(&b.ready), NETSRV_WRITABLE | NETSRV_HUNG_UP);
    bell_expect(s, bell_unwatch, &b, NETSRV_OK);
    rig_stop(s, 1000);
    bell_discard(&b);
}

static void close_and_reopen(netsrv_server *s, unsigned worker, int fd, unsigned ready,
                             void *arg) {
    bell *b = arg;
    (void)fd;
    count_only(s, worker, fd, ready, arg);
    CHECK_EQ(netsrv_unwatch(s, b->id), NETSRV_OK);
    bell_discard(b);
    REQUIRE(port_pipe(b->ends) == 0); /* the same numbers */
    bell_watch(s, b);
    CHECK_EQ(b->result, NETSRV_OK);
    if (atomic_load(&b->rings) < 100) {
        bell_ring(b, "again");
    }
}

static void ring_here(netsrv_server *s, void *arg) {
    (void)s;
    bell_ring(arg, "x");
}

static void reopened_in_its_callback(netsrv_backend backend) {
    const netsrv_config cfg = rig_config(backend, 1);
    netsrv_server *s = rig_start(&cfg);
    bell b;
    bell_make(&b, close_and_reopen);
    bell_expect(s, bell_watch, &b, NETSRV_OK);
    on_worker(s, 0, ring_here, &b);
    CHECK_WITHIN(5000, atomic_load(&b.rings) == 100);
    rig_poke(s);
    CHECK_EQ(atomic_load(&b.rings), 100);
    rig_stop(s, 1000);
    bell_discard(&b);
}

/* ---- many, twice, across the life of a server ------------------------------------------------ */

static void many(netsrv_backend backend) {
    static bell b[MANY];
    const netsrv_config cfg = rig_config(backend, 1);
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < MANY; i++) {
        bell_make(&b[i], take_one);
        bell_expect(s, bell_watch, &b[i], NETSRV_OK);
    }
    for (int round = 1; round <= 2; round++) {
        for (int i = 0; i < MANY; i++) {
            bell_ring(&b[i], "x");
        }
        for (int i = 0; i < MANY; i++) {
            CHECK_WITHIN(5000, atomic_load(&b[i].rings) == (unsigned long)round);
        }
        for (int i = 0; i < MANY; i += 2) {
            bell_expect(s, bell_unwatch, &b[i], NETSRV_OK);
        }
        for (int i = 0; i < MANY; i += 2) {
            bell_expect(s, bell_watch, &b[i], NETSRV_OK);
        }
    }
    rig_stop(s, 1000);
    for (int i = 0; i < MANY; i++) {
        bell_discard(&b[i]);
    }
}

static void twice(netsrv_backend backend) {
    const netsrv_config cfg = rig_config(backend, 1);
    netsrv_server *s = rig_start(&cfg);
    bell a;
    bell b;
    bell_make(&a, count_only);
    bell_make(&b, count_only);
    b.fd = a.fd;
    bell_expect(s, bell_watch, &a, NETSRV_OK);
    bell_expect(s, bell_watch, &b, NETSRV_OK);
    CHECK(a.id != b.id);
    bell_ring(&a, "x");
    CHECK_WITHIN(5000, atomic_load(&a.rings) > 0 && atomic_load(&b.rings) > 0);
    bell_expect(s, bell_unwatch, &a, NETSRV_OK);
    const unsigned long before = atomic_load(&b.rings);
    CHECK_WITHIN(5000, atomic_load(&b.rings) > before);
    rig_stop(s, 1000);
    bell_discard(&a);
    bell_discard(&b);
}

static bell life;

static void watch_at_start(netsrv_server *s, unsigned worker) {
    if (worker == 0) {
        bell_watch(s, &life);
    }
}

static void unwatch_at_stop(netsrv_server *s, unsigned worker) {
    if (worker == 0) {
        bell_unwatch(s, &life);
    }
}

/* Watched from the first callback of a worker to its last; the next life knows nothing of it. */
static void from_start_to_stop(netsrv_backend backend) {
    netsrv_config cfg = rig_config(backend, 2);
    cfg.on_worker_start = watch_at_start;
    cfg.on_worker_stop = unwatch_at_stop;
    bell_make(&life, take_one);
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(life.result, NETSRV_OK);
    bell_ring(&life, "x");
    CHECK_WITHIN(5000, atomic_load(&life.rings) == 1);
    const netsrv_watch_id first = life.id;
    netsrv_stop(s, 1000);
    CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(20000)), NETSRV_OK);
    CHECK_EQ(life.result, NETSRV_OK);
    REQUIRE(netsrv_start(s, NULL) == NETSRV_OK);
    CHECK(life.id != first);
    bell_ring(&life, "y");
    CHECK_WITHIN(5000, atomic_load(&life.rings) == 2);
    const netsrv_watch_id second = life.id;
    life.id = first;
    bell_expect(s, bell_unwatch, &life, NETSRV_GONE);
    life.id = second;
    rig_stop(s, 1000);
    CHECK_EQ(life.result, NETSRV_OK);
    bell_discard(&life);
}

/* One that is ready all the time delays neither the clients nor the stop. */
static void busy_at_stop(netsrv_backend backend, uint32_t grace_ms) {
    const netsrv_config cfg = rig_config(backend, 1);
    netsrv_server *s = rig_start(&cfg);
    bell b;
    bell_make(&b, count_only);
    b.fd = b.ends[1];
    b.mask = NETSRV_WRITABLE;
    bell_expect(s, bell_watch, &b, NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&b.rings) > 10);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    rig_stop(s, grace_ms);
    bell_discard(&b);
}

/* ---- next to connections --------------------------------------------------------------------- */

static _Atomic(netsrv_id) told_id;

static void tell_id(netsrv_conn *c) {
    atomic_store(&told_id, netsrv_get_id(c));
    rig_on_open(c);
}

static void pass_on(netsrv_server *s, unsigned worker, int fd, unsigned ready, void *arg) {
    char text[64];
    const ssize_t n = read(fd, text, sizeof text);
    (void)worker;
    (void)ready;
    (void)arg;
    CHECK(n > 0);
    CHECK_EQ(netsrv_send_to(s, atomic_load(&told_id), text, (size_t)n), NETSRV_OK);
}

static void sends_to_a_connection(netsrv_backend backend) {
    netsrv_config cfg = rig_config(backend, 1);
    cfg.on_open = tell_id;
    atomic_store(&told_id, 0);
    netsrv_server *s = rig_start(&cfg);
    bell b;
    bell_make(&b, pass_on);
    bell_expect(s, bell_watch, &b, NETSRV_OK);
    const int client = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(client, "hi") && peer_gets(client, "hi"));
    bell_ring(&b, "from the pipe");
    CHECK(peer_gets(client, "from the pipe"));
    close(client);
    rig_stop(s, 1000);
    bell_discard(&b);
}

static unsigned pick_second(netsrv_server *s, const netsrv_peer *peer, unsigned accepting) {
    (void)s;
    (void)peer;
    (void)accepting;
    return 1;
}

/* A worker without clients is there for the program as long as another one serves some: a channel
 * of commands that died with the first drained worker could not say "stop". */
static void served_while_others_are(netsrv_backend backend) {
    netsrv_config cfg = rig_config(backend, 2);
    cfg.accept = NETSRV_ACCEPT_SINGLE;
    cfg.place = NETSRV_PLACE_CUSTOM;
    cfg.pick = pick_second;
    netsrv_server *s = rig_start(&cfg);
    bell b;
    bell_make(&b, take_one);
    bell_expect(s, bell_watch, &b, NETSRV_OK);
    const int client = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(client, "hi") && peer_gets(client, "hi"));
    netsrv_drain(s);
    CHECK(rig_rests(50));
    bell_ring(&b, "x");
    CHECK_WITHIN(5000, atomic_load(&b.rings) == 1);
    bell_expect(s, bell_change, &b, NETSRV_OK);
    CHECK(peer_say(client, "more") && peer_gets(client, "more"));
    close(client);
    rig_end(s);
    bell_discard(&b);
}

/* ---- failing calls --------------------------------------------------------------------------- */

static const char *registering(netsrv_backend backend) {
    return backend == NETSRV_BACKEND_KQUEUE ? "kevent_change" : "epoll_ctl";
}

/* `run`, during which a call fails once. */
static void fails(netsrv_server *s, void (*run)(netsrv_server *, void *), bell *b, int err,
                  netsrv_result result) {
    b->with = err;
    bell_expect(s, run, b, result);
    seam_fail_stop();
    b->fails = NULL;
}

static void watch_fails(netsrv_server *s, bell *b, const char *call, int err,
                        netsrv_result result) {
    b->fails = call;
    fails(s, bell_watch, b, err, result);
    CHECK_EQ(b->id, 0);
}

static void cannot_register(netsrv_backend backend) {
    const netsrv_config cfg = rig_config(backend, 1);
    seam_reset(0);
    netsrv_server *s = rig_start(&cfg);
    bell b;
    bell_make(&b, take_one);
    watch_fails(s, &b, "alloc", ENOMEM, NETSRV_NO_MEMORY);
    watch_fails(s, &b, "fcntl", EMFILE, NETSRV_SYSTEM);
    if (backend != NETSRV_BACKEND_POLL) {
        watch_fails(s, &b, registering(backend), ENOSPC, NETSRV_SYSTEM);
        watch_fails(s, &b, registering(backend), EPERM, NETSRV_UNAVAILABLE);
    }
    bell_expect(s, bell_watch, &b, NETSRV_OK);
    if (backend != NETSRV_BACKEND_POLL) {
        b.mask = NETSRV_WRITABLE | NETSRV_READABLE;
        b.fails = registering(backend);
        fails(s, bell_change, &b, ENOMEM, NETSRV_NO_MEMORY);
        bell_ring(&b, "x");
        rig_poke(s);
        rig_poke(s);
        CHECK_EQ(atomic_load(&b.rings), 0);
        b.mask = NETSRV_READABLE;
        bell_expect(s, bell_change, &b, NETSRV_OK);
        CHECK_WITHIN(5000, atomic_load(&b.rings) == 1);
    }
    rig_stop(s, 1000);
    bell_discard(&b);
    seam_reset(0);
}

/* What the poller does not let go of is not told to the program, nor reported for ever. */
static void cannot_forget(netsrv_backend backend) {
    const netsrv_config cfg = rig_config(backend, 1);
    const char *call = backend == NETSRV_BACKEND_KQUEUE ? "kevent_change" : "epoll_ctl_del";
    if (backend == NETSRV_BACKEND_POLL) {
        SKIP("forgetting cannot fail");
        return;
    }
    seam_reset(0);
    netsrv_server *s = rig_start(&cfg);
    bell b;
    bell_make(&b, count_only);
    bell_expect(s, bell_watch, &b, NETSRV_OK);
    const int fds = check_count_fds();
    b.fails = call;
    fails(s, bell_unwatch, &b, EINVAL, NETSRV_OK);
    CHECK_EQ(check_count_fds(), fds);
    bell_ring(&b, "x");
    CHECK_WITHIN(5000, check_count_fds() == fds - 1);
    CHECK_EQ(atomic_load(&b.rings), 0);
    bell_expect(s, bell_unwatch, &b, NETSRV_GONE);
    rig_stop(s, 1000);
    bell_discard(&b);
    seam_reset(0);
}

static void all(netsrv_backend b) {
    CASE("told while ready", told_while_ready(b));
    CASE("masks", masks(b));
    CASE("refused", refused(b));
    CASE("two servers", two_servers(b));
    CASE("given up in the batch", given_up_in_the_batch(b));
    CASE("closed by its owner", closed_by_its_owner(b));
    CASE("closed while ready", closed_while_ready(b));
    CASE("hang-up", hang_up(b));
    CASE("a writer hears of a hang-up", writer_hears_hang_up(b));
    CASE("reopened in its callback", reopened_in_its_callback(b));
    CASE("many", many(b));
    CASE("twice", twice(b));
    CASE("from start to stop", from_start_to_stop(b));
    CASE("busy at a stop", busy_at_stop(b, 1000));
    CASE("busy at a sudden stop", busy_at_stop(b, 0));
    CASE("sends to a connection", sends_to_a_connection(b));
    CASE("served while others are", served_while_others_are(b));
    CASE("cannot register", cannot_register(b));
    CASE("cannot forget", cannot_forget(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
