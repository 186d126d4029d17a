/* offload.c: pieces of work on other threads; what becomes of them when their connection ends. */
#include "../seam.h"

#include "rig.h"

static atomic_int gate_open;
static atomic_int begun;
static atomic_int finished; /* works */
static atomic_int told[NETSRV_RESULT_COUNT];
static _Atomic netsrv_task last_task;

typedef struct errand {
    char text[8];
    netsrv_id id;
    pthread_t worker;
    int ran;
} errand;

static void reset(bool open) {
    atomic_store(&gate_open, open);
    atomic_store(&begun, 0);
    atomic_store(&finished, 0);
    for (int i = 0; i < NETSRV_RESULT_COUNT; i++) {
        atomic_store(&told[i], 0);
    }
}

static void work(void *arg) {
    errand *e = arg;
    CHECK(!pthread_equal(pthread_self(), e->worker));
    atomic_fetch_add(&begun, 1);
    WAIT_FOR(20000, atomic_load(&gate_open) != 0);
    e->ran++;
    atomic_fetch_add(&finished, 1);
}

static void done(netsrv_conn *c, void *arg, netsrv_result result) {
    errand *e = arg;
    CHECK(pthread_equal(pthread_self(), e->worker));
    CHECK_EQ(c == NULL, result == NETSRV_GONE);
    if (result == NETSRV_OK) {
        CHECK_EQ(e->ran, 1);
        CHECK(netsrv_get_id(c) == e->id);
        netsrv_send(c, e->text, 1);
    }
    atomic_fetch_add(&told[result], 1);
    free(e);
}

/* One piece of work for each byte: capital letters in order. */
static size_t send_away(netsrv_conn *c, const void *data, size_t n) {
    const char *at = data;
    for (size_t i = 0; i < n; i++) {
        errand *e = calloc(1, sizeof *e);
        REQUIRE(e != NULL);
        e->text[0] = at[i];
        e->id = netsrv_get_id(c);
        e->worker = pthread_self();
        netsrv_task task = 0;
        const bool ordered = at[i] >= 'A' && at[i] <= 'Z';
        const netsrv_result result = netsrv_offload(c, work, done, e,
                                                    ordered ? NETSRV_ORDERED : 0, &task);
        atomic_store(&last_task, task);
        if (result != NETSRV_OK) {
            CHECK(result == NETSRV_QUEUE_FULL || result == NETSRV_SYSTEM ||
                  result == NETSRV_NO_MEMORY);
            netsrv_send(c, "!", 1);
            free(e);
        }
    }
    return n;
}

static netsrv_config offload_config(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = send_away;
    cfg.linger_timeout_ms = 50;
    cfg.handler_idle_ms = 60;
    cfg.offload_threads = 3;
    return cfg;
}

static void comes_back(netsrv_backend b) {
    const netsrv_config cfg = offload_config(b);
    char text[51];
    reset(true);
    netsrv_server *s = rig_start(&cfg);
    const int threads = check_count_threads();
    const int fd = peer_connect(netsrv_get_port(s, 0));
    for (int i = 0; i < 50; i++) {
        text[i] = (char)('A' + i % 26);
    }
    text[50] = '\0';
    CHECK(peer_say(fd, text) && peer_gets(fd, text));
    char back[26];
    CHECK(peer_say(fd, "abcdefghijklmnopqrstuvwxyz") && peer_recv(fd, back, 26) == 26);
    for (int i = 0; i < 26; i++) {
        CHECK(memchr(back, 'a' + i, 26) != NULL);
    }
    CHECK_WITHIN(5000, check_count_threads() == threads + 1);
    CHECK_EQ(atomic_load(&told[NETSRV_OK]), 76);
    close(fd);
    rig_stop(s, 1000);
}

static void side_by_side(netsrv_backend b) {
    const netsrv_config cfg = offload_config(b);
    reset(false);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "abAcB"));
    CHECK_WITHIN(5000, atomic_load(&begun) == 3);
    CHECK(peer_silent(fd, 20));
    CHECK_EQ(atomic_load(&begun), 3);
    atomic_store(&gate_open, 1);
    CHECK_EQ(peer_skip(fd, 5), 5);
    close(fd);
    rig_stop(s, 1000);
}

/* The connection ends while one runs and others wait: those are not begun, and `done` learns it. */
static void connection_gone(netsrv_backend b) {
    const netsrv_config cfg = offload_config(b);
    reset(false);
    netsrv_server *s = rig_start(&cfg);
    const uint16_t port = netsrv_get_port(s, 0);
    const int fd = peer_connect(port);
    CHECK(peer_say(fd, "ABCDEF"));
    CHECK_WITHIN(5000, atomic_load(&begun) == 1);
    peer_reset(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    const int next = peer_connect(port);
    CHECK_WITHIN(5000, rig_opens() == 2);
    atomic_store(&gate_open, 1);
    CHECK_WITHIN(5000, atomic_load(&told[NETSRV_GONE]) == 6);
    CHECK_EQ(atomic_load(&begun), 1);
    CHECK(peer_silent(next, 30));
    CHECK(peer_say(next, "x") && peer_gets(next, "x"));
    close(next);
    rig_stop(s, 1000);
}

static void cancel_last(netsrv_server *s, unsigned worker, void *arg) {
    (void)worker;
    CHECK_EQ(netsrv_cancel(s, last_task), NETSRV_OK);
    CHECK_EQ(netsrv_cancel(s, last_task + NETSRV_WORKERS_MAX), NETSRV_GONE);
    atomic_fetch_add((atomic_int *)arg, 1);
}

static void cancelled(netsrv_backend b) {
    const netsrv_config cfg = offload_config(b);
    atomic_int posts = 0;
    reset(false);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "AB"));
    CHECK_WITHIN(5000, atomic_load(&begun) == 1);
    CHECK_EQ(netsrv_cancel(s, last_task), NETSRV_BAD_THREAD);
    CHECK_EQ(netsrv_post(s, 0, cancel_last, &posts), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&posts) == 1);
    atomic_store(&gate_open, 1);
    CHECK_WITHIN(5000, atomic_load(&told[NETSRV_CANCELLED]) == 1);
    CHECK(peer_gets(fd, "A"));
    CHECK_EQ(atomic_load(&begun), 1);
    close(fd);
    rig_stop(s, 1000);
}

static void cancel_while_stuck(netsrv_server *s, unsigned worker, void *arg) {
    (void)worker;
    const netsrv_task *tasks = arg;
    for (int i = 1; i < 6; i++) {
        CHECK_EQ(netsrv_cancel(s, tasks[i]), NETSRV_OK);
        CHECK_EQ(netsrv_cancel(s, tasks[i]), NETSRV_OK); /* twice is once */
    }
}

static netsrv_task given[6];
static unsigned given_count;

/* 'a' and 'A' hold both threads, 'b' and 'c' wait for one, 'B' and 'C' for their turn. */
static size_t give_six(netsrv_conn *c, const void *data, size_t n) {
    const char *at = data;
    for (size_t i = 0; i < n; i++) {
        send_away(c, at + i, 1);
        given[given_count++ % 6] = atomic_load(&last_task);
    }
    return n;
}

/* With all threads stuck, what has not begun is told at once, and what has when it is over; order
 * is kept by those that come after it. */
static void cancelled_at_once(netsrv_backend b) {
    netsrv_config cfg = offload_config(b);
    cfg.on_data = give_six;
    cfg.offload_threads = 2;
    given_count = 0;
    reset(false);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "a"));
    CHECK_WITHIN(5000, atomic_load(&begun) == 1);
    CHECK(peer_say(fd, "AbBcC"));
    CHECK_WITHIN(5000, atomic_load(&begun) == 2);
    rig_poke(s);
    CHECK_EQ(netsrv_post(s, 0, cancel_while_stuck, given), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&told[NETSRV_CANCELLED]) == 4);
    CHECK(peer_say(fd, "DEF"));
    rig_poke(s);
    CHECK_EQ(atomic_load(&begun), 2);
    atomic_store(&gate_open, 1);
    CHECK_WITHIN(5000, atomic_load(&told[NETSRV_CANCELLED]) == 5);
    char back[4];
    CHECK_EQ(peer_recv(fd, back, 4), 4);
    CHECK_EQ(atomic_load(&begun), 5);
    char *const a = memchr(back, 'a', 4); /* it ends when it will */
    CHECK(a != NULL);
    if (a != NULL) {
        memmove(a, a + 1, (size_t)(back + 4 - (a + 1)));
        CHECK_MEM(back, 3, "DEF", 3);
    }
    close(fd);
    rig_stop(s, 1000);
}

static void at_the_bound(netsrv_backend b) {
    netsrv_config cfg = offload_config(b);
    cfg.offload_max_count = 4;
    reset(false);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "abcdef"));
    CHECK(peer_gets(fd, "!!"));
    atomic_store(&gate_open, 1);
    CHECK_EQ(peer_skip(fd, 4), 4);
    CHECK(peer_say(fd, "a") && peer_gets(fd, "a"));
    close(fd);
    rig_stop(s, 1000);
}

static void without_threads(netsrv_backend b) {
    const netsrv_config cfg = offload_config(b);
    reset(true);
    seam_reset(0);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    seam_fail_next("pthread_create", EAGAIN, SEAM_FOREVER);
    CHECK(peer_say(fd, "a") && peer_gets(fd, "!"));
    seam_fail_stop();
    CHECK(peer_say(fd, "a") && peer_gets(fd, "a"));
    close(fd);
    rig_stop(s, 1000);
}

static void stop_waits(netsrv_backend b, bool in_time) {
    const netsrv_config cfg = offload_config(b);
    reset(false);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "AB"));
    CHECK_WITHIN(5000, atomic_load(&begun) == 1);
    netsrv_stop(s, in_time ? 20000 : 0);
    CHECK_EQ(netsrv_wait_for(s, 60), NETSRV_TIMED_OUT);
    CHECK_WITHIN(5000, in_time || rig_closes() == 1);
    atomic_store(&gate_open, 1);
    if (in_time) {
        CHECK(peer_gets(fd, "AB"));
    }
    rig_end(s);
    close(fd);
    CHECK_EQ(atomic_load(&told[in_time ? NETSRV_OK : NETSRV_GONE]), 2);
    CHECK_EQ(atomic_load(&begun), in_time ? 2 : 1);
}

static atomic_int moves;

static size_t work_and_move(netsrv_conn *c, const void *data, size_t n) {
    if (netsrv_get_worker(c) == 1) {
        return rig_on_data(c, data, n);
    }
    if (memchr(data, '>', n) != NULL) {
        CHECK_EQ(netsrv_move(c, 1), NETSRV_OK);
        return n;
    }
    return send_away(c, data, n);
}

static void note_move(netsrv_conn *c) {
    CHECK_EQ(netsrv_get_worker(c), 1);
    atomic_fetch_add(&moves, 1);
}

static unsigned to_worker_0(netsrv_server *s, const netsrv_peer *peer, unsigned accepting) {
    (void)s;
    (void)peer;
    (void)accepting;
    return 0;
}

/* What a connection gave before it moved stays behind, and is gone; a stop where it is now does not
 * wait for that. */
static void moved(netsrv_backend b) {
    netsrv_config cfg = offload_config(b);
    cfg.workers = 2;
    cfg.on_data = work_and_move;
    cfg.on_move = note_move;
    cfg.pick = to_worker_0;
    cfg.place = NETSRV_PLACE_CUSTOM;
    reset(false);
    atomic_store(&moves, 0);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "ABCD"));
    CHECK_WITHIN(5000, atomic_load(&begun) == 1);
    CHECK(peer_say(fd, ">"));
    CHECK_WITHIN(5000, atomic_load(&moves) == 1);
    CHECK(peer_say(fd, "there") && peer_gets(fd, "there"));
    netsrv_stop(s, 600000);
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_STOP) == 1);
    CHECK_EQ(atomic_load(&told[NETSRV_GONE]), 0);
    atomic_store(&gate_open, 1);
    rig_end(s);
    CHECK_EQ(atomic_load(&told[NETSRV_GONE]), 4);
    CHECK_EQ(atomic_load(&begun), 1);
}

static size_t refused_data(netsrv_conn *c, const void *data, size_t n) {
    CHECK_EQ(netsrv_offload(c, work, done, NULL, 0, NULL), NETSRV_BAD_THREAD);
    return rig_on_data(c, data, n);
}

static size_t wrong_data(netsrv_conn *c, const void *data, size_t n) {
    CHECK_EQ(netsrv_offload(c, NULL, done, NULL, 0, NULL), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_offload(c, work, NULL, NULL, 0, NULL), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_offload(c, work, done, NULL, 2, NULL), NETSRV_BAD_ARGUMENT);
    rig_on_data(c, data, n);
    netsrv_close(c);
    CHECK_EQ(netsrv_offload(c, work, done, NULL, 0, NULL), NETSRV_GONE);
    return n;
}

static void refusals(netsrv_backend b) {
    netsrv_config cfg = offload_config(b);
    cfg.on_data = wrong_data;
    netsrv_server *s = rig_start(&cfg);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    rig_stop(s, 1000);
    cfg.on_data = refused_data;
    cfg.handler_threads = 1;
    s = rig_start(&cfg);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    rig_stop(s, 1000);
}

static netsrv_server *unstarted(void) {
    const netsrv_config cfg = offload_config(NETSRV_BACKEND_AUTO);
    netsrv_server *s = NULL;
    REQUIRE(netsrv_create(&s, &cfg, NULL) == NETSRV_OK);
    return s;
}

/* Those that are idle or on their way are enough for as many items, not for more. */
static void a_thread_each(void) {
    netsrv_server *s = unstarted();
    netsrv__pool *p = s->offload;
    netsrv__hand idle = { .called = false };
    netsrv__item items[4] = { { .is_work = true } };
    for (unsigned coming = 0; coming < 8; coming++) {
        p->idle = (coming & 1) != 0 ? &idle : NULL;
        p->waking = (coming & 2) != 0;
        const unsigned starting = coming >> 2;
        const unsigned enough = starting + ((coming & 1) != 0) + ((coming & 2) != 0);
        p->head = NULL;
        for (unsigned waiting = 1; waiting <= 4; waiting++) {
            items[waiting - 1].next = p->head;
            p->head = &items[waiting - 1];
            p->starting = starting;
            p->threads = 1;
            CHECK_EQ(netsrv__jobs_claim(p), waiting > enough);
        }
    }
    p->head = NULL;
    p->idle = NULL;
    p->waking = false;
    p->starting = 0;
    p->threads = 0;
    netsrv_destroy(s);
}

static atomic_int awake;

static void *wait_as_idle(void *arg) {
    netsrv__hand *hand = arg;
    pthread_mutex_lock(&hand->pool->lock);
    hand->pool->idle = hand;
    while (!hand->called) {
        pthread_cond_wait(&hand->wake, &hand->pool->lock);
    }
    pthread_mutex_unlock(&hand->pool->lock);
    atomic_store(&awake, 1);
    return NULL;
}

static bool is_idle(netsrv__pool *p) {
    pthread_mutex_lock(&p->lock);
    const bool idle = p->idle != NULL;
    pthread_mutex_unlock(&p->lock);
    return idle;
}

static void expect_awake(const char *name) {
    if (strcmp(name, "call") == 0) {
        CHECK_WITHIN(5000, atomic_load(&awake) == 1);
    }
}

/* A thread that may end of itself has its call before the lock is given up: it may be gone then. */
static void called_under_the_lock(void) {
    netsrv_server *s = unstarted();
    netsrv__pool *p = s->offload;
    netsrv__hand hand = { .pool = p };
    netsrv__item item = { .is_work = true };
    pthread_t thread;
    seam_reset(0);
    atomic_store(&awake, 0);
    REQUIRE(pthread_cond_init(&hand.wake, NULL) == 0);
    REQUIRE(pthread_create(&thread, NULL, wait_as_idle, &hand) == 0);
    CHECK_WITHIN(5000, is_idle(p));
    SEAM_SET(at_point, expect_awake);
    netsrv__jobs_append(p, &item, 0, item.queued_us);
    SEAM_SET(at_point, NULL);
    pthread_join(thread, NULL);
    pthread_cond_destroy(&hand.wake);
    p->head = NULL;
    p->waking = false;
    netsrv_destroy(s);
}

static _Thread_local int allocs_left; /* of the first worker: then it is held, and fails */
static atomic_int held;               /* 1: it is, 2: it may go on */

static int fail_held(const char *name, unsigned long nth) {
    (void)nth;
    if (strcmp(name, "alloc") != 0 || allocs_left == 0 || --allocs_left != 0) {
        return 0;
    }
    atomic_store(&held, 1);
    WAIT_FOR(20000, atomic_load(&held) == 2);
    return ENOMEM;
}

static size_t held_away(netsrv_conn *c, const void *data, size_t n) {
    allocs_left = netsrv_get_worker(c) == 0 ? 2 : 0;
    return send_away(c, data, n);
}

static unsigned in_turn(netsrv_server *s, const netsrv_peer *peer, unsigned accepting) {
    (void)s;
    (void)peer;
    (void)accepting;
    static atomic_uint next;
    return atomic_fetch_add(&next, 1) % 2;
}

/* The thread for which another worker's work waits cannot be created after all. */
static void nobody_comes(netsrv_backend b) {
    netsrv_config cfg = offload_config(b);
    cfg.workers = 2;
    cfg.on_data = held_away;
    cfg.pick = in_turn;
    cfg.place = NETSRV_PLACE_CUSTOM;
    reset(true);
    seam_reset(0);
    atomic_store(&held, 0);
    netsrv_server *s = rig_start(&cfg);
    const int first = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 1);
    const int second = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 2);
    SEAM_SET(decider, fail_held);
    CHECK(peer_say(first, "a"));
    CHECK_WITHIN(5000, atomic_load(&held) == 1);
    CHECK(peer_say(second, "b"));
    CHECK_WITHIN(5000, netsrv__jobs_waiting(s->offload) == 1);
    atomic_store(&held, 2);
    CHECK(peer_gets(first, "!"));
    CHECK(peer_gets(second, "b"));
    SEAM_SET(decider, NULL);
    close(first);
    close(second);
    rig_stop(s, 1000);
}

static void cases(netsrv_backend b) {
    CASE("work comes back, in order where asked", comes_back(b));
    CASE("side by side", side_by_side(b));
    CASE("the connection is gone", connection_gone(b));
    CASE("cancelled", cancelled(b));
    CASE("cancelled at once", cancelled_at_once(b));
    CASE("at the bound", at_the_bound(b));
    CASE("no thread", without_threads(b));
    CASE("no thread after all", nobody_comes(b));
    CASE("a stop waits for work", stop_waits(b, true));
    CASE("a stop cannot end work", stop_waits(b, false));
    CASE("moved meanwhile", moved(b));
    CASE("refused", refusals(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    CASE("a thread for each that waits", a_thread_each());
    CASE("a thread is called while it is sure to be there", called_under_the_lock());
    rig_each_backend(cases);
    return check_end();
}
