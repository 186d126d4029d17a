/* jobs.c: callbacks on handler threads, from a pool and one for each connection. */
#include "../seam.h"

#include "rig.h"

typedef enum where { POOL, OWN } where;

static const char *const where_names[] = { "pool", "own thread" };

static netsrv_config job_config(netsrv_backend b, where at, unsigned threads) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.handler_threads = threads;
    cfg.handler_stack_bytes = 256 << 10;
    cfg.linger_timeout_ms = 50;
    if (at == OWN) {
        cfg.place = NETSRV_PLACE_OWN_THREAD;
    }
    return cfg;
}

/* ---- a gate in front of a handler ------------------------------------------------------------ */

static atomic_int gate_open;
static atomic_int gate_waiting;

static void gate_close(void) {
    atomic_store(&gate_open, 0);
    atomic_store(&gate_waiting, 0);
}

static void gate_pass(void) {
    atomic_fetch_add(&gate_waiting, 1);
    WAIT_FOR(20000, atomic_load(&gate_open) != 0);
    atomic_fetch_sub(&gate_waiting, 1);
}

/* "w" waits at the gate; every byte is answered. */
static size_t gated_data(netsrv_conn *c, const void *data, size_t n) {
    if (memchr(data, 'w', n) != NULL) {
        gate_pass();
    }
    return rig_on_data(c, data, n);
}

/* ---- which thread, how many at once, in which order ------------------------------------------ */

typedef struct visit {
    atomic_bool inside;
    netsrv_conn *c;
    netsrv_id id;
    pthread_t thread;
    int opened;
    int ended;
    unsigned char next;
} visit;

static pthread_t loops[2];
static atomic_bool stay_on_one_thread;

static void note_loop(netsrv_server *s, unsigned worker) {
    (void)s;
    loops[worker] = pthread_self();
}

static visit *enter_visit(netsrv_conn *c) {
    visit *v = netsrv_get_data(c);
    REQUIRE(v != NULL);
    CHECK(!atomic_exchange(&v->inside, true));
    CHECK(v->c == c && v->id == netsrv_get_id(c));
    CHECK(!pthread_equal(pthread_self(), loops[0]) && !pthread_equal(pthread_self(), loops[1]));
    CHECK(!atomic_load(&stay_on_one_thread) || pthread_equal(pthread_self(), v->thread));
    CHECK_LE(netsrv_get_worker(c), 1);
    return v;
}

static void leave_visit(visit *v) {
    atomic_store(&v->inside, false);
}

static void visit_open(netsrv_conn *c) {
    visit *v = calloc(1, sizeof *v);
    REQUIRE(v != NULL);
    v->c = c;
    v->id = netsrv_get_id(c);
    v->thread = pthread_self();
    v->opened = 1;
    netsrv_set_data(c, v);
    CHECK(netsrv_find(netsrv_get_server(c), v->id) == c);
    rig_on_open(c);
}

static size_t visit_data(netsrv_conn *c, const void *data, size_t n) {
    visit *v = enter_visit(c);
    const unsigned char *at = data;
    const size_t used = n - n % 3;
    CHECK(v->opened == 1 && v->ended == 0);
    for (size_t i = 0; i < used; i++) {
        if (at[i] != v->next++) {
            CHECK_FAIL("input out of order");
            break;
        }
    }
    rig_on_data(c, data, used);
    leave_visit(v);
    return used;
}

static void visit_eof(netsrv_conn *c) {
    visit *v = enter_visit(c);
    CHECK_EQ(v->ended++, 0);
    rig_on_eof(c);
    leave_visit(v);
}

static void visit_close(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    visit *v = enter_visit(c);
    rig_on_close(c, reason, sys_errno);
    CHECK(netsrv_find(netsrv_get_server(c), v->id) == NULL);
    free(v);
}

static netsrv_config visit_config(netsrv_backend b, where at, unsigned threads) {
    netsrv_config cfg = job_config(b, at, threads);
    cfg.on_worker_start = note_loop;
    cfg.on_open = visit_open;
    cfg.on_data = visit_data;
    cfg.on_eof = visit_eof;
    cfg.on_close = visit_close;
    atomic_store(&stay_on_one_thread, at == OWN);
    return cfg;
}

#define TALKERS 6
#define ROUNDS  120
#define PIECE   600 /* a multiple of 3: all of it is consumed in the end */

static void *talk(void *port) {
    unsigned char out[PIECE];
    unsigned char in[PIECE];
    const int fd = peer_connect(*(const uint16_t *)port);
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned i = 0; i < PIECE; i++) {
            out[i] = (unsigned char)(round * PIECE + i);
        }
        if (!CHECK(peer_send(fd, out, 100) && peer_send(fd, out + 100, PIECE - 100)) ||
            !CHECK(peer_recv(fd, in, PIECE) == PIECE) || !CHECK(memcmp(in, out, PIECE) == 0)) {
            break;
        }
    }
    shutdown(fd, SHUT_WR);
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    return NULL;
}

static void in_order_one_at_a_time(netsrv_backend b, where at) {
    const netsrv_config cfg = visit_config(b, at, at == POOL ? 4 : TALKERS);
    pthread_t t[TALKERS];
    seam_reset(11);
    SEAM_SET(disturb, true);
    SEAM_SET(recv_clip, 400);
    netsrv_server *s = rig_start(&cfg);
    uint16_t port = netsrv_get_port(s, 0);
    for (int i = 0; i < TALKERS; i++) {
        REQUIRE(pthread_create(&t[i], NULL, talk, &port) == 0);
    }
    for (int i = 0; i < TALKERS; i++) {
        pthread_join(t[i], NULL);
    }
    CHECK_WITHIN(5000, rig_closes() == TALKERS);
    CHECK_EQ(atomic_load(&rig_seen.eofs), TALKERS);
    /* The last callback is counted a moment after it has returned. */
    CHECK_WITHIN(5000, rig_total(s).jobs >= TALKERS * (ROUNDS + 3));
    const netsrv_stats total = rig_total(s);
    CHECK_EQ(total.jobs_waiting, 0);
    CHECK_GE(total.jobs_run_us, total.longest_job_us);
    rig_stop(s, 1000);
    seam_reset(0);
}

/* ---- a handler that takes long --------------------------------------------------------------- */

static void delays_nobody_else(netsrv_backend b, where at) {
    netsrv_config cfg = job_config(b, at, 4);
    cfg.on_data = gated_data;
    gate_close();
    netsrv_server *s = rig_start(&cfg);
    const uint16_t port = netsrv_get_port(s, 0);
    const int slow[2] = { peer_connect(port), peer_connect(port) };
    CHECK(peer_say(slow[0], "w") && peer_say(slow[1], "w"));
    CHECK_WITHIN(5000, atomic_load(&gate_waiting) == 2);
    for (int i = 0; i < 30; i++) {
        CHECK(peer_served(port));
    }
    CHECK(peer_say(slow[0], "more"));
    CHECK(peer_silent(slow[0], 20));
    atomic_store(&gate_open, 1);
    CHECK(peer_gets(slow[0], "wmore") && peer_gets(slow[1], "w"));
    close(slow[0]);
    close(slow[1]);
    CHECK_WITHIN(5000, rig_total(s).longest_job_us >= 20000);
    rig_stop(s, 1000);
}

/* What the client sends meanwhile stays in the kernel, but for one buffer. */
static void reads_no_more_meanwhile(netsrv_backend b, where at) {
    netsrv_config cfg = job_config(b, at, 2);
    static char flood[400000];
    cfg.on_data = gated_data;
    cfg.recv_buffer_bytes = 4096;
    cfg.idle_timeout_ms = 100;
    gate_close();
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "w"));
    CHECK_WITHIN(5000, atomic_load(&gate_waiting) == 1);
    CHECK(peer_send(fd, flood, sizeof flood));
    CHECK_WITHIN(5000, rig_total(s).bytes_in > 1);
    CHECK(rig_rests(250));
    CHECK_LE(rig_total(s).bytes_in,
             1 + (b == NETSRV_BACKEND_IO_URING ? rig_uring_turn(netsrv_get_config(s)) : 4 * 4096));
    CHECK_EQ(rig_closes(), 0);
    atomic_store(&gate_open, 1);
    CHECK_EQ(peer_skip(fd, sizeof flood + 1), sizeof flood + 1);
    CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_IDLE) == 1);
    close(fd);
    rig_stop(s, 1000);
}

/* on_close comes after the callback that runs, once, and the descriptor keeps its number. */
static void ends_meanwhile(netsrv_backend b, where at, int how) {
    netsrv_config cfg = job_config(b, at, 2);
    netsrv_id id = 0;
    cfg.on_data = gated_data;
    gate_close();
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "w"));
    CHECK_WITHIN(5000, atomic_load(&gate_waiting) == 1);
    for (unsigned w = 0; w < 2; w++) {
        id = rig_total(s).live == 1 ? (netsrv_id)1 << 32 | (netsrv_id)w << 22 : 0;
        if (how == 1) {
            CHECK_EQ(netsrv_abort_id(s, id), NETSRV_OK);
        } else if (how == 2) {
            CHECK_EQ(netsrv_close_id(s, id), NETSRV_OK);
        }
    }
    if (how == 0) {
        peer_reset(fd);
    } else {
        CHECK(peer_end(fd) != PEER_STUCK);
    }
    rig_poke(s);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(atomic_load(&gate_waiting), 1);
    atomic_store(&gate_open, 1);
    CHECK_WITHIN(5000, rig_closes() == 2);
    if (how != 0) {
        close(fd);
    }
    rig_stop(s, 1000);
}

static void ends_each_way(netsrv_backend b, where at) {
    for (int how = 0; how < 3; how++) {
        ends_meanwhile(b, at, how);
    }
}

/* ---- stop ------------------------------------------------------------------------------------ */

static void stop_waits_for_it(netsrv_backend b, where at) {
    netsrv_config cfg = job_config(b, at, 2);
    cfg.on_data = gated_data;
    gate_close();
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "w"));
    CHECK_WITHIN(5000, atomic_load(&gate_waiting) == 1);
    netsrv_stop(s, 20000);
    CHECK_EQ(netsrv_wait_for(s, 50), NETSRV_TIMED_OUT);
    atomic_store(&gate_open, 1);
    CHECK(peer_gets(fd, "w"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    rig_end(s);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_STOP), 1);
}

static void slow_greeting(netsrv_conn *c) {
    rig_on_open(c);
    gate_pass();
    netsrv_send(c, "hello", 5);
}

/* A client that has not spoken, as on_open still works on what it shall be told. */
static void stop_waits_for_on_open(netsrv_backend b, where at) {
    netsrv_config cfg = job_config(b, at, 2);
    cfg.on_open = slow_greeting;
    gate_close();
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, atomic_load(&gate_waiting) == 1);
    netsrv_stop(s, 20000);
    CHECK(peer_silent(fd, 3 * NETSRV__FRESH_MS / 2));
    atomic_store(&gate_open, 1);
    CHECK(peer_gets(fd, "hello"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    rig_end(s);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_STOP), 1);
}

/* The time is over: every connection is cut, jobs that wait are not begun, and the one that runs is
 * waited for. A program that will not wait knows that it may not free anything. */
static void stop_cannot_end_it(netsrv_backend b, where at) {
    netsrv_config cfg = job_config(b, at, at == POOL ? 1 : 8);
    int fd[6];
    cfg.on_open = NULL;
    cfg.on_close = NULL;
    cfg.on_data = gated_data;
    gate_close();
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < 6; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd[i], at == POOL || i == 0 ? "w" : "x"));
    }
    CHECK_WITHIN(5000, rig_total(s).live == 6 && atomic_load(&gate_waiting) == 1);
    netsrv_stop(s, 0);
    for (int i = 0; i < 6; i++) {
        CHECK(peer_end(fd[i]) != PEER_STUCK);
        close(fd[i]);
    }
    CHECK_EQ(netsrv_wait_for(s, 100), NETSRV_TIMED_OUT);
    CHECK(rig_rests(200));
    CHECK_EQ(atomic_load(&gate_waiting), 1);
    atomic_store(&gate_open, 1);
    rig_end(s);
    CHECK_LE(atomic_load(&rig_seen.bytes), at == POOL ? 1 : 6);
}

static void starts_again(netsrv_backend b, where at) {
    const netsrv_config cfg = job_config(b, at, 3);
    netsrv_server *s = rig_start(&cfg);
    for (int life = 0; life < 3; life++) {
        CHECK(peer_served(netsrv_get_port(s, 0)));
        netsrv_stop(s, 1000);
        CHECK_EQ(netsrv_wait(s), NETSRV_OK);
        rig_check_ended(s);
        CHECK_EQ(netsrv_start(s, NULL), NETSRV_OK);
    }
    rig_stop(s, 0);
}

/* ---- the queue ------------------------------------------------------------------------------- */

#define CROWD 12

/* Beyond jobs_max_count, connections wait, and all are served in the end. */
static void full_queue(netsrv_backend b) {
    netsrv_config cfg = job_config(b, POOL, 1);
    int fd[CROWD];
    cfg.on_data = gated_data;
    cfg.jobs_max_count = 2;
    gate_close();
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < CROWD; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
    }
    CHECK_WITHIN(5000, rig_opens() == CROWD);
    for (int i = 0; i < CROWD; i++) {
        CHECK(peer_say(fd[i], "w"));
    }
    CHECK_WITHIN(5000, atomic_load(&gate_waiting) == 1 && rig_total(s).bytes_in == CROWD);
    CHECK_WITHIN(5000, rig_total(s).jobs_waiting == 2);
    CHECK(rig_rests(200));
    CHECK_EQ(rig_total(s).jobs_waiting, 2);
    atomic_store(&gate_open, 1);
    for (int i = 0; i < CROWD; i++) {
        CHECK(peer_gets(fd[i], "w"));
        close(fd[i]);
    }
    CHECK_WITHIN(5000, rig_closes() == CROWD);
    rig_stop(s, 1000);
}

static void send_far(netsrv_server *s, netsrv_id id, size_t n) {
    static char bytes[65536];
    for (size_t sent = 0; sent < n; sent += sizeof bytes) {
        CHECK_EQ(netsrv_send_to(s, id, bytes, sizeof bytes), NETSRV_OK);
    }
    rig_poke(s);
}

/* One that waits for room in the queue is not idle, however long that takes; nor is one that then
 * has nothing to wait for, as it is above the high mark. */
static void held_is_not_idle(netsrv_backend b, bool overtaken) {
    netsrv_config cfg = job_config(b, POOL, 1);
    int fd[3];
    cfg.on_data = gated_data;
    cfg.workers = 1;
    cfg.jobs_max_count = 1;
    cfg.idle_timeout_ms = 20000;
    gate_close();
    seam_reset(0);
    seam_hold_clock();
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < 3; i++) {
        fd[i] = peer_connect_small(netsrv_get_port(s, 0));
        CHECK_WITHIN(5000, rig_opens() == (unsigned)i + 1);
    }
    for (int i = 0; i < 3; i++) {
        CHECK(peer_say(fd[i], i < 2 ? "w" : "x"));
        CHECK_WITHIN(5000, atomic_load(&gate_waiting) == 1 && rig_total(s).bytes_in > (unsigned)i);
        rig_poke(s);
    }
    for (unsigned slot = 0; overtaken && slot < 3; slot++) {
        send_far(s, (netsrv_id)1 << 32 | slot, 8u << 20);
    }
    rig_pass_time(s, 30000);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_IDLE), 0);
    atomic_store(&gate_open, 1);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(peer_skip(fd[i], overtaken ? (8u << 20) + 1 : 1), overtaken ? (8u << 20) + 1 : 1);
    }
    CHECK_EQ(rig_closes(), 0);
    rig_pass_time(s, 30000);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(peer_end(fd[i]), PEER_FIN);
        close(fd[i]);
    }
    CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_IDLE) == 3);
    rig_stop(s, 1000);
    seam_reset(0);
}

/* Room that one worker asked for and did not need is another's, who is woken. */
static void room_given_back(void) {
    netsrv_config cfg = job_config(NETSRV_BACKEND_AUTO, POOL, 1);
    netsrv_server *s = NULL;
    struct pollfd p = { -1, POLLIN, 0 };
    cfg.jobs_max_count = 1;
    REQUIRE(netsrv_create(&s, &cfg, NULL) == NETSRV_OK);
    p.fd = s->groups[1].wake.read_fd;
    CHECK_EQ(netsrv__jobs_reserve(s->pool, 1), 1);
    CHECK_EQ(netsrv__jobs_reserve(s->pool, 1), 0);
    CHECK_EQ(poll(&p, 1, 0), 0);
    netsrv__jobs_append(s->pool, NULL, 1, 0);
    CHECK_EQ(poll(&p, 1, 0), 1);
    netsrv_destroy(s);
}

/* While one thread takes short jobs, a job more is left to it; else an idle one is called. */
static void called_when_needed(void) {
    const netsrv_config cfg = job_config(NETSRV_BACKEND_AUTO, POOL, 2);
    netsrv_server *s = NULL;
    netsrv__hand busy = { .called = false };
    netsrv__hand idle = { .called = false };
    netsrv__item item = { .queued_us = 1000000 };
    REQUIRE(netsrv_create(&s, &cfg, NULL) == NETSRV_OK);
    netsrv__pool *p = s->pool;
    REQUIRE(pthread_cond_init(&idle.wake, NULL) == 0);
    for (int why = 0; why < 5; why++) {
        p->head = NULL;
        p->waking = false;
        p->idle = &idle;
        p->last = why == 1 ? NULL : &busy;                     /* nobody is at it */
        p->taken_us = item.queued_us - (why == 2 ? 2000 : 10); /* for too long */
        p->taken_us += why == 4 ? 20 : 0; /* taken after the job was stamped: no reason */
        p->eighths_us = why == 3 ? 8 * NETSRV__JOB_SHORT_US : 8 * 5;    /* jobs are long */
        idle.called = false;
        p->count = 1;
        item.next = NULL;
        CHECK_EQ(netsrv__jobs_append(p, &item, 0, item.queued_us), why == 0 || why == 4);
        CHECK_EQ(idle.called, why != 0 && why != 4);
    }
    p->head = NULL;
    p->idle = NULL;
    p->last = NULL;
    pthread_cond_destroy(&idle.wake);
    netsrv_destroy(s);
}

static atomic_int loop_held;

static void hold_loop(netsrv_server *s, unsigned worker, void *arg) {
    (void)s;
    (void)worker;
    (void)arg;
    atomic_store(&loop_held, 1);
    WAIT_FOR(20000, atomic_load(&loop_held) == 2);
}

/* All in one batch, the long one in front, after many short ones: those behind it are served, in
 * the queue or where they wait for room in it. */
static void behind_a_long_one(netsrv_backend b, uint32_t jobs_max_count) {
    netsrv_config cfg = job_config(b, POOL, 3);
    int fd[CROWD];
    cfg.workers = 1;
    cfg.jobs_max_count = jobs_max_count;
    cfg.on_data = gated_data;
    gate_close();
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < CROWD; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd[i], "short") && peer_gets(fd[i], "short"));
    }
    for (int round = 0; round < 3; round++) {
        atomic_store(&loop_held, 0);
        CHECK_EQ(netsrv_post(s, 0, hold_loop, NULL), NETSRV_OK);
        CHECK_WITHIN(5000, atomic_load(&loop_held) == 1);
        for (int i = 0; i < CROWD; i++) {
            CHECK(peer_say(fd[i], i == 0 && round == 1 ? "w" : "x"));
        }
        atomic_store(&loop_held, 2);
        for (int i = round == 0 ? 0 : 1; i < CROWD; i++) {
            CHECK(peer_gets(fd[i], "x"));
        }
    }
    CHECK_WITHIN(5000, atomic_load(&gate_waiting) == 1);
    atomic_store(&gate_open, 1);
    CHECK(peer_gets(fd[0], "wx"));
    for (int i = 0; i < CROWD; i++) {
        close(fd[i]);
    }
    rig_stop(s, 1000);
}

static atomic_ulong chatter;
static atomic_ulong chatter_before; /* the last of the others */

static void slow_line(netsrv_conn *c, const void *line, size_t n) {
    const struct timespec t = { 0, 2000000 };
    if (n > 1) {
        atomic_store(&chatter_before, atomic_load(&chatter));
    } else if (atomic_fetch_add(&chatter, 1) == 0) {
        gate_pass();
    } else {
        nanosleep(&t, NULL);
    }
    netsrv_send(c, line, n);
}

/* A client with many slow requests in one packet has its turn, and then the others, who came in the
 * middle of the first of these requests, have theirs. */
static void chatty_one_shares(netsrv_backend b) {
    netsrv_config cfg = job_config(b, POOL, 1);
    char lines[1200];
    int quick[5];
    cfg.framing = NETSRV_FRAMING_LINE;
    cfg.on_frame = slow_line;
    gate_close();
    atomic_store(&chatter, 0);
    memset(lines, '\n', sizeof lines);
    for (size_t i = 0; i < sizeof lines; i += 2) {
        lines[i] = 'x';
    }
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    for (int i = 0; i < 5; i++) {
        quick[i] = peer_connect(netsrv_get_port(s, 0));
    }
    CHECK_WITHIN(5000, rig_opens() == 6);
    CHECK(peer_send(fd, lines, sizeof lines));
    CHECK_WITHIN(5000, atomic_load(&gate_waiting) == 1);
    for (int i = 0; i < 5; i++) {
        CHECK(peer_say(quick[i], "hello\n"));
    }
    CHECK_WITHIN(5000, rig_total(s).jobs_waiting == 5);
    atomic_store(&gate_open, 1);
    for (int i = 0; i < 5; i++) {
        CHECK(peer_gets(quick[i], "hello"));
        close(quick[i]);
    }
    CHECK_LE(atomic_load(&chatter_before), 500);
    CHECK_EQ(peer_skip(fd, sizeof lines / 2), sizeof lines / 2);
    close(fd);
    rig_stop(s, 1000);
}

/* ---- calls inside ---------------------------------------------------------------------------- */

static atomic_int flushed;
static atomic_bool peer_leaves;

static size_t reply_in_parts(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    netsrv_send(c, "one", 3);
    CHECK_EQ(netsrv_flush(c), NETSRV_OK);
    gate_pass();
    netsrv_send(c, "two", 3);
    if (atomic_load(&peer_leaves)) {
        WAIT_FOR(5000, netsrv_flush(c) == NETSRV_GONE);
    }
    atomic_store(&flushed, (int)netsrv_flush(c) + 1);
    netsrv_send_to(netsrv_get_server(c), netsrv_get_id(c), "three", 5);
    netsrv_close(c);
    CHECK_EQ(netsrv_send(c, "four", 4), NETSRV_GONE);
    return n;
}

static void flush_sends_ahead(netsrv_backend b, where at) {
    netsrv_config cfg = job_config(b, at, 1);
    cfg.on_data = reply_in_parts;
    for (int leaves = 0; leaves < 2; leaves++) {
        gate_close();
        atomic_store(&flushed, 0);
        atomic_store(&peer_leaves, leaves == 1);
        netsrv_server *s = rig_start(&cfg);
        const int fd = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd, "go"));
        CHECK(peer_gets(fd, "one"));
        CHECK_WITHIN(5000, atomic_load(&gate_waiting) == 1);
        if (leaves == 1) {
            peer_reset(fd);
        }
        atomic_store(&gate_open, 1);
        if (leaves == 0) {
            CHECK(peer_gets(fd, "twothree"));
            CHECK_EQ(peer_end(fd), PEER_FIN);
            close(fd);
        }
        CHECK_WITHIN(5000, rig_closes() == 1);
        CHECK_EQ(atomic_load(&flushed) - 1, leaves == 0 ? NETSRV_OK : NETSRV_GONE);
        rig_stop(s, 1000);
    }
}

static atomic_int looked;

/* Sends nothing and asks whether anybody is there. */
static size_t look_after(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    CHECK_EQ(netsrv_flush(c), NETSRV_OK);
    atomic_fetch_add(&gate_waiting, 1);
    WAIT_FOR(5000, netsrv_flush(c) == NETSRV_GONE);
    atomic_store(&looked, netsrv_flush(c) == NETSRV_GONE ? 1 : 2);
    return n;
}

static void flush_sees_the_end(netsrv_backend b, where at) {
    netsrv_config cfg = job_config(b, at, 1);
    cfg.on_data = look_after;
    gate_close();
    atomic_store(&looked, 0);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "go"));
    CHECK_WITHIN(5000, atomic_load(&gate_waiting) == 1);
    peer_reset(fd);
    CHECK_WITHIN(10000, atomic_load(&looked) != 0);
    CHECK_EQ(atomic_load(&looked), 1);
    rig_stop(s, 1000);
}

/* What a callback sends to its own connection by id keeps its place. */
static size_t reply_by_id(netsrv_conn *c, const void *data, size_t n) {
    netsrv_server *s = netsrv_get_server(c);
    netsrv_buffer *buffer = netsrv_buffer_create(s, "two", 3);
    (void)data;
    REQUIRE(buffer != NULL);
    netsrv_send(c, "one", 3);
    CHECK_EQ(netsrv_send_buffer_to(s, netsrv_get_id(c), buffer), NETSRV_OK);
    netsrv_send(c, "three", 5);
    netsrv_close(c);
    CHECK_EQ(netsrv_send_buffer_to(s, netsrv_get_id(c), buffer), NETSRV_GONE);
    netsrv_buffer_release(buffer);
    return n;
}

static void buffers_in_order(netsrv_backend b, where at) {
    netsrv_config cfg = job_config(b, at, 1);
    cfg.on_data = reply_by_id;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "go"));
    CHECK(peer_gets(fd, "onetwothree"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    rig_stop(s, 1000);
}

#define FLOOD 3000000

/* Until HIGH, then again from on_drain; the place is the user pointer. */
static void flood(netsrv_conn *c) {
    uintptr_t at = (uintptr_t)netsrv_get_data(c);
    netsrv_result result = NETSRV_OK;
    static const char bytes[10000];
    while (at < FLOOD && result == NETSRV_OK) {
        result = netsrv_send(c, bytes, sizeof bytes);
        CHECK(result == NETSRV_OK || result == NETSRV_HIGH);
        at += sizeof bytes;
        result = result == NETSRV_OK ? netsrv_flush(c) : result;
    }
    netsrv_set_data(c, (void *)at);
    if (at >= FLOOD) {
        netsrv_close(c);
    }
}

static void flood_drain(netsrv_conn *c) {
    rig_on_drain(c);
    flood(c);
}

/* With a socket that takes little: an unbounded one may hold megabytes, and nothing is queued. */
static void flood_small(netsrv_conn *c) {
    const int bytes = 65536;
    CHECK_EQ(setsockopt(netsrv_get_fd(c), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes), 0);
    flood(c);
}

static void back_pressure(netsrv_backend b, where at) {
    netsrv_config cfg = job_config(b, at, 1);
    cfg.on_open = flood_small;
    cfg.on_drain = flood_drain;
    cfg.high_mark_bytes = 100000;
    netsrv_server *s = rig_start(&cfg);
    atomic_store(&rig_seen.opens, 1);
    const int fd = peer_connect_small(netsrv_get_port(s, 0));
    CHECK_WITHIN(20000, rig_total(s).queued_bytes > 20000); /* above the low mark at rest */
    CHECK(!peer_silent(fd, (int)check_scaled(10000)));
    CHECK_LE(rig_total(s).queued_bytes, 400000);
    CHECK_EQ(peer_skip(fd, FLOOD), FLOOD);
    CHECK_EQ(peer_end(fd), PEER_FIN);
    CHECK_GE(atomic_load(&rig_seen.drains), 1);
    close(fd);
    rig_stop(s, 1000);
}

static size_t pause_first(netsrv_conn *c, const void *data, size_t n) {
    const char *at = data;
    if (netsrv_get_data(c) == NULL) {
        netsrv_set_data(c, c);
        netsrv_pause(c);
        netsrv_send(c, "paused", 6);
        return 1;
    }
    return rig_on_data(c, at, n);
}

static void wake_up(netsrv_server *s, unsigned worker, void *arg) {
    (void)worker;
    const netsrv_id *id = arg;
    CHECK(netsrv_find(s, *id) == NULL);
}

/* A pause holds from within, input that came meanwhile is kept, and the end of the peer as well,
 * until it is lifted by id. */
static void pause_and_the_end(netsrv_backend b, where at) {
    netsrv_config cfg = job_config(b, at, 1);
    netsrv_id id = (netsrv_id)1 << 32;
    cfg.on_data = pause_first;
    cfg.workers = 1;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "abc"));
    CHECK(peer_gets(fd, "paused"));
    CHECK(peer_say(fd, "def"));
    shutdown(fd, SHUT_WR);
    CHECK(peer_silent(fd, 30));
    CHECK_EQ(netsrv_post(s, 0, wake_up, &id), NETSRV_OK);
    rig_poke(s);
    CHECK_EQ(rig_closes(), 0);
    CHECK_EQ(atomic_load(&rig_seen.eofs), 0);
    CHECK_EQ(netsrv_resume_id(s, id), NETSRV_OK);
    CHECK(peer_gets(fd, "bcdef"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(atomic_load(&rig_seen.eofs), 1);
    CHECK(netsrv_resume_id(s, id) == NETSRV_OK && netsrv_resume_id(s, 0) == NETSRV_GONE);
    rig_stop(s, 0);
}

/* Whoever is told by a callback what it waits for may have it before the callback returns. */
static size_t pause_and_wait(netsrv_conn *c, const void *data, size_t n) {
    if (memchr(data, 'p', n) == NULL) {
        return rig_on_data(c, data, n);
    }
    netsrv_pause(c);
    if (memchr(data, 'i', n) != NULL) { /* what was asked for from within comes first */
        CHECK_EQ(netsrv_resume_id(netsrv_get_server(c), netsrv_get_id(c)), NETSRV_OK);
        netsrv_pause(c);
    }
    gate_pass();
    return n;
}

static void resumed_before_it_pauses(netsrv_backend b, where at) {
    netsrv_config cfg = job_config(b, at, 1);
    const netsrv_id id = (netsrv_id)1 << 32;
    cfg.on_data = pause_and_wait;
    cfg.workers = 1;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    for (int round = 0; round < 3; round++) {
        gate_close();
        CHECK(peer_say(fd, round == 1 ? "pi" : "p"));
        CHECK_WITHIN(5000, atomic_load(&gate_waiting) == 1);
        CHECK(peer_say(fd, "more"));
        CHECK_EQ(netsrv_resume_id(s, id), NETSRV_OK);
        rig_poke(s);
        atomic_store(&gate_open, 1);
        CHECK(peer_gets(fd, "more"));
    }
    gate_close();
    CHECK(peer_say(fd, "p"));
    CHECK_WITHIN(5000, atomic_load(&gate_waiting) == 1);
    atomic_store(&gate_open, 1);
    CHECK(peer_say(fd, "more") && peer_silent(fd, 30));
    close(fd);
    rig_stop(s, 0);
}

/* ---- send, then abort ------------------------------------------------------------------------ */

static size_t send_and_abort(netsrv_conn *c, const void *data, size_t n) {
    static char bytes[100000];
    static const size_t sizes[] = { 1, 500, 2000, 20000, 70000, 100000 };
    const char how = *(const char *)data;
    memset(bytes, 'x', sizeof bytes);
    const size_t k = sizes[(unsigned char)how % 6];
    if (how < 'g') {
        netsrv_send(c, bytes, k);
    } else if (how < 'm') {
        netsrv_send_owned(c, bytes, k, NULL, NULL);
    } else if (how < 's') {
        netsrv_send(c, bytes, k / 2);
        netsrv_send_owned(c, bytes, k / 2, NULL, NULL);
        netsrv_send(c, bytes, 1);
    } else {
        netsrv_buffer *b = netsrv_buffer_create(netsrv_get_server(c), bytes, k);
        netsrv_send(c, data, n);
        netsrv_send_buffer(c, b);
        netsrv_buffer_release(b);
    }
    if (n == 2) {
        netsrv_close(c);
    }
    netsrv_abort(c);
    return n;
}

/* What one callback sends and then aborts is never sent, wherever the callback runs. */
static void sent_and_aborted(netsrv_backend b, int threads, netsrv_place place) {
    netsrv_config cfg = rig_config(b, 1);
    char bin[100];
    cfg.on_data = send_and_abort;
    cfg.handler_threads = (unsigned)threads;
    cfg.place = place;
    netsrv_server *s = rig_start(&cfg);
    for (char how = 'a'; how <= 'x'; how++) {
        for (size_t n = 1; n <= 2; n++) {
            const char out[2] = { how, how };
            int end = 0;
            const int fd = peer_connect(netsrv_get_port(s, 0));
            CHECK(peer_send(fd, out, n));
            CHECK_EQ(peer_recv_end(fd, bin, sizeof bin, &end), 0);
            CHECK_EQ(end, ECONNRESET);
            close(fd);
        }
    }
    CHECK_WITHIN(5000, rig_closes() == 48);
    CHECK_EQ(rig_total(s).bytes_out, 0);
    rig_stop(s, 1000);
}

static void last_line(netsrv_conn *c, const void *line, size_t n) {
    netsrv_send(c, line, n);
    netsrv_send(c, ";", 1);
}

static void lines_and_the_end(netsrv_backend b, where at) {
    netsrv_config cfg = job_config(b, at, 2);
    cfg.framing = NETSRV_FRAMING_LINE;
    cfg.on_frame = last_line;
    cfg.input_max_bytes = 100;
    netsrv_server *s = rig_start(&cfg);
    const uint16_t port = netsrv_get_port(s, 0);
    int fd = peer_connect(port);
    CHECK(peer_say(fd, "one\r\ntwo\nthr"));
    CHECK(peer_gets(fd, "one;two;"));
    CHECK(peer_say(fd, "ee"));
    shutdown(fd, SHUT_WR);
    CHECK(peer_gets(fd, "three;"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_PEER) == 1);
    CHECK_EQ(atomic_load(&rig_seen.eofs), 1);
    char longer[200];
    memset(longer, 'x', sizeof longer);
    fd = peer_connect(port);
    CHECK(peer_send(fd, longer, sizeof longer));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_LINE_TOO_LONG) == 1);
    rig_stop(s, 1000);
}

/* ---- threads --------------------------------------------------------------------------------- */

/* One for each connection up to the bound, used again, and ended when there is nothing to do. */
static void own_threads(netsrv_backend b) {
    netsrv_config cfg = job_config(b, OWN, 3);
    int fd[4];
    cfg.handler_idle_ms = 60;
    netsrv_server *s = rig_start(&cfg);
    const uint16_t port = netsrv_get_port(s, 0);
    const int before = check_count_threads();
    CHECK_EQ(netsrv_get_config(s)->max_conns, 3);
    for (int i = 0; i < 4; i++) {
        fd[i] = peer_connect(port);
        CHECK(peer_say(fd[i], "x"));
    }
    for (int i = 0; i < 3; i++) {
        CHECK(peer_gets(fd[i], "x"));
    }
    CHECK(peer_silent(fd[3], 50));
    CHECK_EQ(check_count_threads(), before + 2);
    close(fd[0]);
    CHECK(peer_gets(fd[3], "x"));
    for (int i = 1; i < 4; i++) {
        close(fd[i]);
    }
    CHECK_WITHIN(5000, check_count_threads() == before);
    for (int i = 0; i < 3; i++) {
        CHECK(peer_served(port));
    }
    rig_stop(s, 1000);
}

static int first_answered(const int *fd, int n) {
    struct pollfd p[8];
    for (int i = 0; i < n; i++) {
        p[i] = (struct pollfd){ fd[i], POLLIN, 0 };
    }
    if (poll(p, (nfds_t)n, (int)check_scaled(5000)) <= 0) {
        return -1;
    }
    for (int i = 0; i < n; i++) {
        if (p[i].revents != 0) {
            return i;
        }
    }
    return -1;
}

/* More connections than threads are allowed: they wait for one that ends. */
static void more_than_threads(netsrv_backend b, bool fails) {
    netsrv_config cfg = job_config(b, OWN, fails ? 100 : 2);
    int fd[6];
    cfg.max_conns = 100;
    netsrv_server *s = rig_start(&cfg);
    seam_reset(0);
    if (fails) {
        seam_fail_next("pthread_create", EAGAIN, SEAM_FOREVER);
    }
    for (int i = 0; i < 6; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd[i], "x"));
    }
    for (int served = 0; served < 6; served++) {
        const int k = first_answered(fd, 6);
        if (!CHECK(k >= 0)) {
            break;
        }
        CHECK(peer_gets(fd[k], "x"));
        close(fd[k]);
        fd[k] = -1;
    }
    CHECK_WITHIN(5000, rig_closes() == 6);
    seam_fail_stop();
    CHECK(!fails || rig_log_has("cannot create a handler thread"));
    rig_stop(s, 1000);
}

/* Nobody speaks and nobody leaves: a thread that could not be created is tried for again. */
static void one_failure(netsrv_backend b) {
    const netsrv_config cfg = job_config(b, OWN, 3);
    netsrv_server *s = rig_start(&cfg);
    seam_reset(0);
    const int first = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(first, "x") && peer_gets(first, "x"));
    seam_fail_next("pthread_create", EAGAIN, 2);
    const int second = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(second, "x") && peer_gets(second, "x"));
    seam_fail_stop();
    close(first);
    close(second);
    rig_stop(s, 1000);
    seam_reset(0);
}

static void no_threads(netsrv_backend b, where at) {
    const netsrv_config cfg = job_config(b, at, 3);
    for (unsigned long nth = 1; nth <= 3; nth++) {
        netsrv_server *s = NULL;
        netsrv_error error;
        seam_reset(0);
        REQUIRE(netsrv_create(&s, &cfg, &error) == NETSRV_OK);
        seam_fail((seam_plan){ "pthread_create", nth, EAGAIN, 1 });
        CHECK_EQ(netsrv_start(s, &error), NETSRV_SYSTEM);
        CHECK_HAS(error.text, "cannot create");
        seam_fail_stop();
        CHECK_EQ(netsrv_start(s, &error), NETSRV_OK);
        CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
    }
    seam_reset(0);
}

static const char *label(const char *name, where at) {
    static char text[100];
    snprintf(text, sizeof text, "%s, %s", name, where_names[at]);
    return text;
}

static void cases(netsrv_backend b) {
    for (where at = POOL; at <= OWN; at++) {
        CASE(label("one at a time, in order", at), in_order_one_at_a_time(b, at));
        CASE(label("a slow one delays nobody else", at), delays_nobody_else(b, at));
        CASE(label("reading stops meanwhile", at), reads_no_more_meanwhile(b, at));
        CASE(label("the connection ends meanwhile", at), ends_each_way(b, at));
        CASE(label("a stop waits for it", at), stop_waits_for_it(b, at));
        CASE(label("a stop waits for on_open", at), stop_waits_for_on_open(b, at));
        CASE(label("a stop cannot end it", at), stop_cannot_end_it(b, at));
        CASE(label("stopped and started", at), starts_again(b, at));
        CASE(label("flush sends ahead", at), flush_sends_ahead(b, at));
        CASE(label("flush sees the end", at), flush_sees_the_end(b, at));
        CASE(label("buffers in order", at), buffers_in_order(b, at));
        CASE(label("back-pressure", at), back_pressure(b, at));
        CASE(label("paused from within", at), pause_and_the_end(b, at));
        CASE(label("resumed before it pauses", at), resumed_before_it_pauses(b, at));
        CASE(label("lines and the end", at), lines_and_the_end(b, at));
        CASE(label("threads that cannot be created", at), no_threads(b, at));
    }
    CASE("sent and aborted, on a worker", sent_and_aborted(b, 0, NETSRV_PLACE_AUTO));
    CASE("sent and aborted, pool", sent_and_aborted(b, 2, NETSRV_PLACE_AUTO));
    CASE("sent and aborted, own threads", sent_and_aborted(b, 9, NETSRV_PLACE_OWN_THREAD));
    CASE("a full queue", full_queue(b));
    CASE("held is not idle", held_is_not_idle(b, false));
    CASE("held, then nothing to wait for", held_is_not_idle(b, true));
    CASE("short ones behind a long one", behind_a_long_one(b, 0));
    CASE("short ones behind a long one, a full queue", behind_a_long_one(b, 2));
    CASE("a chatty client shares", chatty_one_shares(b));
    CASE("threads of connections", own_threads(b));
    CASE("more connections than threads", more_than_threads(b, false));
    CASE("no more threads", more_than_threads(b, true));
    CASE("a thread that cannot be created at first", one_failure(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    CASE("room that is given back", room_given_back());
    CASE("a thread is called when it is needed", called_when_needed());
    rig_each_backend(cases);
    return check_end();
}
