/* post.c: calls on a worker's thread: the right one, in order, all of them, also at the end. */
#include "../seam.h"

#include "rig.h"

#define THREADS 4
#define WORKERS 3
#define POSTS   5000

static pthread_t worker_thread[WORKERS];
static atomic_ulong ran;

static void note_thread(netsrv_server *s, unsigned worker) {
    (void)s;
    worker_thread[worker] = pthread_self();
}

static void on_right_thread(netsrv_server *s, unsigned worker, void *arg) {
    CHECK(s != NULL && worker < WORKERS && arg == &ran);
    CHECK(pthread_equal(worker_thread[worker], pthread_self()));
    atomic_fetch_add(&ran, 1);
}

static void right_worker(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, WORKERS);
    cfg.on_worker_start = note_thread;
    atomic_store(&ran, 0);
    netsrv_server *s = rig_start(&cfg);
    for (unsigned i = 0; i < 30; i++) {
        CHECK_EQ(netsrv_post(s, i % WORKERS, on_right_thread, &ran), NETSRV_OK);
    }
    CHECK_WITHIN(5000, atomic_load(&ran) == 30);
    CHECK_EQ(netsrv_post(s, WORKERS, on_right_thread, &ran), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_post(s, UINT32_MAX, on_right_thread, &ran), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_post(s, 0, NULL, &ran), NETSRV_BAD_ARGUMENT);
    rig_stop(s, 1000);
    CHECK_EQ(atomic_load(&ran), 30);
}

/* ---- order, and nothing lost or merged ------------------------------------------------------- */

typedef struct poster {
    netsrv_server *s;
    unsigned long wanted;
    unsigned long accepted;
    unsigned long next[WORKERS]; /* of the owner: what must come next */
} poster;

typedef struct letter {
    poster *from;
    unsigned long number;
} letter;

static void read_letter(netsrv_server *s, unsigned worker, void *arg) {
    letter *l = arg;
    (void)s;
    CHECK(l->number >= l->from->next[worker]);
    l->from->next[worker] = l->number + 1;
    atomic_fetch_add(&ran, 1);
    free(l);
}

static letter *new_letter(poster *from, unsigned long number) {
    letter *l = malloc(sizeof *l);
    REQUIRE(l != NULL);
    *l = (letter){ from, number };
    return l;
}

/* Until so many were accepted, or the server stops. */
static void *post_letters(void *arg) {
    poster *me = arg;
    netsrv_result result = NETSRV_OK;
    for (unsigned long i = 0; me->accepted < me->wanted && result != NETSRV_STOPPED; i++) {
        letter *l = new_letter(me, i);
        result = netsrv_post(me->s, (unsigned)(i % WORKERS), read_letter, l);
        if (result == NETSRV_OK) {
            me->accepted++;
            continue;
        }
        CHECK(result == NETSRV_QUEUE_FULL || result == NETSRV_STOPPED);
        free(l);
        check_nap();
    }
    return NULL;
}

/* With `stopping`, the stop comes between: what was accepted runs all the same. */
static void all_run_once(netsrv_backend b, bool stopping, uint32_t grace_ms) {
    netsrv_config cfg = rig_config(b, WORKERS);
    pthread_t t[THREADS];
    poster me[THREADS];
    cfg.mailbox_max_count = 32;
    memset(me, 0, sizeof me);
    atomic_store(&ran, 0);
    seam_reset(7);
    SEAM_SET(disturb, true);
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < THREADS; i++) {
        me[i].s = s;
        me[i].wanted = stopping ? ULONG_MAX : POSTS;
        pthread_create(&t[i], NULL, post_letters, &me[i]);
    }
    if (stopping) {
        CHECK_WITHIN(20000, atomic_load(&ran) > 100);
        netsrv_stop(s, grace_ms);
    }
    unsigned long accepted = 0;
    for (int i = 0; i < THREADS; i++) {
        pthread_join(t[i], NULL);
        accepted += me[i].accepted;
    }
    rig_stop(s, 1000);
    CHECK_EQ(atomic_load(&ran), accepted);
    seam_reset(0);
}

/* ---- a full mailbox -------------------------------------------------------------------------- */

static atomic_int gate;

static void wait_at_gate(netsrv_server *s, unsigned worker, void *arg) {
    (void)s;
    (void)worker;
    (void)arg;
    atomic_store(&gate, 1);
    CHECK_WITHIN(20000, atomic_load(&gate) == 2);
}

static void full_mailbox(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.mailbox_max_count = 10;
    atomic_store(&gate, 0);
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(netsrv_post(s, 1, wait_at_gate, NULL), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&gate) == 1);
    atomic_ulong done = 0;
    unsigned accepted = 0;
    netsrv_result result = NETSRV_OK;
    while (result == NETSRV_OK && accepted < 1000) {
        result = netsrv_post(s, 1, rig_nothing, &done);
        accepted += result == NETSRV_OK;
    }
    CHECK_EQ(result, NETSRV_QUEUE_FULL);
    CHECK_GE(accepted, 1);
    CHECK_LE(accepted, 11);
    CHECK_EQ(netsrv_post(s, 0, rig_nothing, &done), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&done) == 1);
    atomic_store(&gate, 2);
    CHECK_WITHIN(5000, atomic_load(&done) == accepted + 1);
    CHECK_EQ(netsrv_post(s, 1, rig_nothing, &done), NETSRV_OK);
    rig_stop(s, 1000);
    CHECK_EQ(atomic_load(&done), accepted + 2);
}

/* ---- posting from inside --------------------------------------------------------------------- */

static void post_again(netsrv_server *s, unsigned worker, void *arg) {
    const unsigned long n = atomic_fetch_add(&ran, 1);
    const unsigned next = (worker + (n % 2 == 0)) % WORKERS;
    if (n < 1000) {
        CHECK_EQ(netsrv_post(s, next, post_again, arg), NETSRV_OK);
    }
}

/* A chain of posts to oneself must not keep clients waiting. */
static void from_inside(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, WORKERS);
    atomic_store(&ran, 0);
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(netsrv_post(s, 0, post_again, NULL), NETSRV_OK);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    CHECK_WITHIN(20000, atomic_load(&ran) == 1001); /* that many wake-ups, one after the other */
    rig_stop(s, 1000);
}

static void post_for_ever(netsrv_server *s, unsigned worker, void *arg) {
    atomic_fetch_add(&ran, 1);
    const netsrv_result result = netsrv_post(s, worker, post_for_ever, arg);
    CHECK(result == NETSRV_OK || result == NETSRV_STOPPED);
}

/* Nor the end of the server. */
static void endless_chain(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 1);
    atomic_store(&ran, 0);
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(netsrv_post(s, 0, post_for_ever, NULL), NETSRV_OK);
    CHECK_WITHIN(20000, atomic_load(&ran) > 100);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    rig_stop(s, 1000);
}

static void post_at_stop(netsrv_server *s, unsigned worker) {
    const netsrv_result result = netsrv_post(s, worker, rig_nothing, &ran);
    CHECK(result == NETSRV_OK || result == NETSRV_STOPPED || result == NETSRV_QUEUE_FULL);
    atomic_fetch_add(&ran, result == NETSRV_OK ? 1000 : 0);
}

/* What is accepted in the last callback of a worker still runs. */
static void at_the_very_end(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.on_worker_stop = post_at_stop;
    atomic_store(&ran, 0);
    netsrv_server *s = rig_start(&cfg);
    rig_stop(s, 1000);
    CHECK_EQ(atomic_load(&ran) / 1000, atomic_load(&ran) % 1000);
}

/* ---- to all ---------------------------------------------------------------------------------- */

static atomic_ulong ran_on[WORKERS];

static void note_worker(netsrv_server *s, unsigned worker, void *arg) {
    CHECK(netsrv_get_worker_data(s, worker) == &ran_on[worker] && arg == &ran);
    atomic_fetch_add((atomic_ulong *)netsrv_get_worker_data(s, worker), 1);
}

static void give_data(netsrv_server *s, unsigned worker) {
    CHECK_EQ(netsrv_set_worker_data(s, worker, &ran_on[worker]), NETSRV_OK);
}

static void *post_to_all(void *arg) {
    poster *me = arg;
    netsrv_result result = NETSRV_OK;
    while (me->accepted < me->wanted && result != NETSRV_STOPPED) {
        result = netsrv_post_all(me->s, note_worker, &ran);
        CHECK(result == NETSRV_OK || result == NETSRV_QUEUE_FULL || result == NETSRV_STOPPED);
        me->accepted += result == NETSRV_OK;
        if (result != NETSRV_OK) {
            check_nap();
        }
    }
    return NULL;
}

/* What was accepted ran on each of them; what was refused, on none. */
static void to_all(netsrv_backend b, bool stopping) {
    netsrv_config cfg = rig_config(b, WORKERS);
    pthread_t t[THREADS];
    poster me[THREADS];
    unsigned long accepted = 0;
    cfg.mailbox_max_count = 16;
    cfg.on_worker_start = give_data;
    memset(me, 0, sizeof me);
    for (int i = 0; i < WORKERS; i++) {
        atomic_store(&ran_on[i], 0);
    }
    seam_reset(11);
    SEAM_SET(disturb, true);
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < THREADS; i++) {
        me[i].s = s;
        me[i].wanted = stopping ? ULONG_MAX : POSTS / 4;
        pthread_create(&t[i], NULL, post_to_all, &me[i]);
    }
    if (stopping) {
        CHECK_WITHIN(20000, atomic_load(&ran_on[1]) > 100);
        netsrv_stop(s, 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(t[i], NULL);
        accepted += me[i].accepted;
    }
    rig_stop(s, 1000);
    CHECK_GE(accepted, 100);
    for (int i = 0; i < WORKERS; i++) {
        CHECK_EQ(atomic_load(&ran_on[i]), accepted);
    }
    seam_reset(0);
}

static void to_all_refused(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = NULL;
    atomic_ulong done = 0;
    cfg.mailbox_max_count = 1;
    atomic_store(&gate, 0);
    CHECK_EQ(netsrv_create(&s, &cfg, NULL), NETSRV_OK);
    CHECK_EQ(netsrv_post_all(s, rig_nothing, &done), NETSRV_STOPPED);
    CHECK_EQ(netsrv_post_all(s, NULL, NULL), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_set_worker_data(s, 2, &done), NETSRV_BAD_ARGUMENT);
    CHECK(netsrv_get_worker_data(s, 1) == NULL && netsrv_get_worker_data(s, 2) == NULL);
    CHECK_EQ(netsrv_start(s, NULL), NETSRV_OK);
    CHECK_EQ(netsrv_post(s, 1, wait_at_gate, NULL), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&gate) == 1);
    CHECK_EQ(netsrv_post(s, 1, rig_nothing, &done), NETSRV_OK);
    for (int i = 0; i < 10; i++) {
        CHECK_EQ(netsrv_post_all(s, rig_nothing, &done), NETSRV_QUEUE_FULL);
    }
    atomic_store(&gate, 2);
    CHECK_WITHIN(5000, atomic_load(&done) == 1);
    netsrv_result result = NETSRV_QUEUE_FULL;
    WAIT_FOR(5000, (result = netsrv_post_all(s, rig_nothing, &done)) == NETSRV_OK);
    CHECK_EQ(result, NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&done) == 3);
    netsrv_stop(s, 1000);
    CHECK_EQ(netsrv_wait(s), NETSRV_OK);
    CHECK_EQ(netsrv_post_all(s, rig_nothing, &done), NETSRV_STOPPED);
    CHECK_EQ(atomic_load(&done), 3);
    CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
}

static void all(netsrv_backend b) {
    CASE("the right worker", right_worker(b));
    CASE("all run once, in order", all_run_once(b, false, 0));
    CASE("all run once across a stop", all_run_once(b, true, 1000));
    CASE("all run once across a sudden stop", all_run_once(b, true, 0));
    CASE("a full mailbox", full_mailbox(b));
    CASE("from inside", from_inside(b));
    CASE("at the very end", at_the_very_end(b));
    CASE("an endless chain", endless_chain(b));
    CASE("to all", to_all(b, false));
    CASE("to all across a stop", to_all(b, true));
    CASE("to all, refused", to_all_refused(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
