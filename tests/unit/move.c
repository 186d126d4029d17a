/* move.c: open connections that go on to another worker with all they have: kept input, unsent
 * output, pauses, ends and timeouts; and moves that come to nothing. */
#include "../seam.h"

#include "rig.h"

#define WORKERS 3

static struct {
    atomic_ulong moves;
    atomic_ulong refused;
    _Atomic(netsrv_id) id; /* of the last connection that was opened or moved */
    atomic_uint worker;
    atomic_int tell;
} seen;

static void forget_all(void) {
    atomic_store(&seen.moves, 0);
    atomic_store(&seen.refused, 0);
    atomic_store(&seen.id, 0);
}

static void note(netsrv_conn *c) {
    CHECK(netsrv_find(netsrv_get_server(c), netsrv_get_id(c)) == c);
    atomic_store(&seen.worker, netsrv_get_worker(c));
    atomic_store(&seen.id, netsrv_get_id(c));
}

static void on_open(netsrv_conn *c) {
    rig_on_open(c);
    netsrv_set_data(c, &seen);
    note(c);
}

static void on_move(netsrv_conn *c) {
    CHECK(netsrv_get_data(c) == &seen);
    note(c);
    atomic_fetch_add(&seen.moves, 1);
}

static void go_on(netsrv_conn *c) {
    const netsrv_result result = netsrv_move(c, (netsrv_get_worker(c) + 1) % WORKERS);
    CHECK(result == NETSRV_OK || result == NETSRV_STOPPED);
    atomic_fetch_add(&seen.refused, result == NETSRV_STOPPED);
}

/* Moves with every call, before or after its answer. */
static size_t echo_and_move(netsrv_conn *c, const void *data, size_t n) {
    atomic_fetch_add(&rig_seen.bytes, n);
    if (n % 2 == 0) {
        go_on(c);
    }
    netsrv_send(c, data, n);
    if (n % 2 != 0) {
        go_on(c);
    }
    return n;
}

static netsrv_config move_config(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, WORKERS);
    cfg.on_open = on_open;
    cfg.on_move = on_move;
    cfg.accept = NETSRV_ACCEPT_SINGLE;
    cfg.place = NETSRV_PLACE_ROUND_ROBIN;
    forget_all();
    return cfg;
}

/* A posted function: the connection that was seen last goes to worker `tell`. */
static void move_seen(netsrv_server *s, unsigned worker, void *arg) {
    netsrv_conn *c = netsrv_find(s, atomic_load(&seen.id));
    (void)worker;
    if (c != NULL) {
        *(netsrv_result *)arg = netsrv_move(c, (unsigned)atomic_load(&seen.tell));
    }
}

static netsrv_result move_to(netsrv_server *s, unsigned to) {
    netsrv_result result = NETSRV_RESULT_COUNT;
    const unsigned long before = atomic_load(&seen.moves);
    atomic_store(&seen.tell, (int)to);
    REQUIRE(netsrv_post(s, atomic_load(&seen.worker), move_seen, &result) == NETSRV_OK);
    rig_poke(s);
    if (result == NETSRV_OK) {
        CHECK_WITHIN(5000, atomic_load(&seen.moves) == before + 1);
    }
    return result;
}

/* ---- moved ----------------------------------------------------------------------------------- */

static void from_worker_to_worker(netsrv_backend b) {
    netsrv_config cfg = move_config(b);
    cfg.max_conns = 1;
    cfg.max_conns_per_address = 1;
    netsrv_server *s = rig_start(&cfg);
    const int client = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(client, "one") && peer_gets(client, "one"));
    for (unsigned i = 1; i <= 6; i++) {
        const netsrv_id old = atomic_load(&seen.id);
        const unsigned to = (atomic_load(&seen.worker) + 1) % WORKERS;
        CHECK_EQ(move_to(s, to), NETSRV_OK);
        CHECK_EQ(atomic_load(&seen.worker), to);
        CHECK(atomic_load(&seen.id) != old);
        CHECK_EQ(netsrv_send_to(s, old, "lost", 4), NETSRV_OK); /* a stale id: silence */
        CHECK_EQ(netsrv_send_to(s, atomic_load(&seen.id), "found", 5), NETSRV_OK);
        CHECK(peer_gets(client, "found"));
        CHECK(peer_say(client, "two") && peer_gets(client, "two"));
        CHECK_WITHIN(5000, rig_total(s).live == 1);
        CHECK_EQ(rig_total(s).moved, i);
        CHECK_EQ(rig_total(s).travelling, 0);
    }
    close(client);
    CHECK_WITHIN(5000, rig_closes() == 1 && rig_total(s).live == 0);
    CHECK_EQ(rig_opens(), 1);
    CHECK(peer_served(netsrv_get_port(s, 0))); /* its place under the limits is free */
    rig_stop(s, 1000);
}

static void with_every_message(netsrv_backend b, const char *more) {
    netsrv_config cfg = move_config(b);
    char text[32];
    cfg.on_data = echo_and_move;
    seam_reset(11);
    SEAM_SET(disturb, true);
    SEAM_SET(permute, true);
    netsrv_server *s = rig_start(&cfg);
    int client[4];
    for (int i = 0; i < 4; i++) {
        client[i] = peer_connect(netsrv_get_port(s, 0));
    }
    for (int round = 0; round < 60; round++) {
        for (int i = 0; i < 4; i++) {
            snprintf(text, sizeof text, "%d of %d%s", round, i, more);
            CHECK(peer_say(client[i], text));
        }
        for (int i = 0; i < 4; i++) {
            snprintf(text, sizeof text, "%d of %d%s", round, i, more);
            CHECK(peer_gets(client[i], text));
        }
    }
    CHECK_WITHIN(5000, atomic_load(&seen.moves) >= 4 * 60);
    for (int i = 0; i < 4; i++) {
        close(client[i]);
    }
    CHECK_WITHIN(5000, rig_closes() == 4);
    rig_stop(s, 1000);
    seam_reset(0);
}

typedef struct stream {
    int fd;
    unsigned seed;
} stream;

#define STREAM_BYTES 400000

static void *send_stream(void *arg) {
    const stream *me = arg;
    unsigned char *bytes = malloc(STREAM_BYTES);
    REQUIRE(bytes != NULL);
    peer_fill(bytes, STREAM_BYTES, me->seed);
    CHECK(peer_send(me->fd, bytes, STREAM_BYTES));
    shutdown(me->fd, SHUT_WR);
    free(bytes);
    return NULL;
}

/* Bytes in both directions all the while, in short pieces, with a move for each. */
static void in_full_flow(netsrv_backend b) {
    netsrv_config cfg = move_config(b);
    pthread_t thread;
    unsigned char *want = malloc(STREAM_BYTES);
    unsigned char *have = malloc(STREAM_BYTES);
    cfg.on_data = echo_and_move;
    cfg.high_mark_bytes = 20000;
    cfg.recv_buffer_bytes = 4096; /* of which there are many in the stream */
    seam_reset(3);
    SEAM_SET(send_clip, 3000);
    SEAM_SET(recv_clip, 5000);
    netsrv_server *s = rig_start(&cfg);
    stream me = { peer_connect(netsrv_get_port(s, 0)), 9 };
    peer_fill(want, STREAM_BYTES, me.seed);
    REQUIRE(pthread_create(&thread, NULL, send_stream, &me) == 0);
    const size_t got = peer_recv(me.fd, have, STREAM_BYTES);
    CHECK_MEM(have, got, want, STREAM_BYTES);
    CHECK_EQ(peer_end(me.fd), PEER_FIN);
    pthread_join(thread, NULL);
    CHECK_GE(atomic_load(&seen.moves), 20);
    close(me.fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_PEER), 1);
    rig_stop(s, 1000);
    seam_reset(0);
    free(want);
    free(have);
}

/* ---- with what it has ------------------------------------------------------------------------ */

static size_t whole_only(netsrv_conn *c, const void *data, size_t n) {
    if (n < 10) {
        atomic_store(&rig_seen.bytes, n);
        return 0;
    }
    netsrv_send(c, data, n / 10 * 10);
    return n / 10 * 10;
}

static void with_kept_input(netsrv_backend b) {
    netsrv_config cfg = move_config(b);
    cfg.on_data = whole_only;
    netsrv_server *s = rig_start(&cfg);
    const int client = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(client, "01234"));
    CHECK_WITHIN(5000, atomic_load(&rig_seen.bytes) == 5);
    CHECK_EQ(move_to(s, (atomic_load(&seen.worker) + 1) % WORKERS), NETSRV_OK);
    CHECK(peer_say(client, "567890123456789"));
    CHECK(peer_gets(client, "01234567890123456789"));
    close(client);
    rig_stop(s, 1000);
}

#define QUEUED 900000

static size_t answer_much(netsrv_conn *c, const void *data, size_t n) {
    static unsigned char bytes[QUEUED];
    (void)data;
    peer_fill(bytes, QUEUED, 4);
    netsrv_send(c, bytes, QUEUED);
    return n;
}

static void open_small(netsrv_conn *c) {
    const int bytes = 4096;
    setsockopt(netsrv_get_fd(c), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    on_open(c);
}

static void with_unsent_output(netsrv_backend b) {
    netsrv_config cfg = move_config(b);
    cfg.on_open = open_small;
    static unsigned char have[QUEUED];
    static unsigned char want[QUEUED];
    cfg.on_data = answer_much;
    netsrv_server *s = rig_start(&cfg);
    const int client = peer_connect_small(netsrv_get_port(s, 0));
    CHECK(peer_say(client, "go"));
    CHECK_WITHIN(5000, rig_total(s).queued_bytes > QUEUED / 4);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(move_to(s, (atomic_load(&seen.worker) + 1) % WORKERS), NETSRV_OK);
    }
    CHECK_EQ(netsrv_send_to(s, atomic_load(&seen.id), "the end", 7), NETSRV_OK);
    peer_fill(want, QUEUED, 4);
    CHECK_EQ(peer_recv(client, have, QUEUED), QUEUED);
    CHECK_MEM(have, QUEUED, want, QUEUED);
    CHECK(peer_gets(client, "the end"));
    CHECK_WITHIN(5000, atomic_load(&rig_seen.drains) == 1);
    CHECK_WITHIN(5000, rig_total(s).queued_bytes == 0);
    close(client);
    rig_stop(s, 1000);
}

static size_t echo_and_pause(netsrv_conn *c, const void *data, size_t n) {
    netsrv_send(c, data, n);
    netsrv_pause(c);
    return n;
}

static void resume_seen(netsrv_server *s, unsigned worker, void *arg) {
    netsrv_conn *c = netsrv_find(s, atomic_load(&seen.id));
    (void)worker;
    (void)arg;
    REQUIRE(c != NULL);
    netsrv_resume(c);
}

/* It stays paused; its end is noticed all the same. */
static void while_paused(netsrv_backend b) {
    netsrv_config cfg = move_config(b);
    cfg.on_data = echo_and_pause;
    netsrv_server *s = rig_start(&cfg);
    const int client = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(client, "x") && peer_gets(client, "x"));
    CHECK_EQ(move_to(s, (atomic_load(&seen.worker) + 1) % WORKERS), NETSRV_OK);
    CHECK(peer_say(client, "y"));
    CHECK(peer_silent(client, 20));
    CHECK_EQ(netsrv_post(s, atomic_load(&seen.worker), resume_seen, NULL), NETSRV_OK);
    CHECK(peer_gets(client, "y"));
    CHECK_EQ(move_to(s, (atomic_load(&seen.worker) + 1) % WORKERS), NETSRV_OK);
    peer_reset(client);
    CHECK_WITHIN(5000, rig_closes() == 1);
    rig_stop(s, 1000);
}

static void line_and_move(netsrv_conn *c, const void *data, size_t n) {
    netsrv_send(c, data, n);
    netsrv_send(c, ";", 1);
    go_on(c);
}

/* The lines of one segment, each on another worker; the last without its end. */
static void lines(netsrv_backend b) {
    netsrv_config cfg = move_config(b);
    cfg.framing = NETSRV_FRAMING_LINE;
    cfg.on_frame = line_and_move;
    netsrv_server *s = rig_start(&cfg);
    const int client = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(client, "one\ntwo\n\nfour\nfi"));
    CHECK(peer_gets(client, "one;two;;four;"));
    CHECK_WITHIN(5000, atomic_load(&seen.moves) == 4);
    CHECK(peer_say(client, "ve\nsix"));
    shutdown(client, SHUT_WR);
    CHECK(peer_gets(client, "five;six;"));
    CHECK_EQ(peer_end(client), PEER_FIN);
    close(client);
    CHECK_WITHIN(5000, rig_closes() == 1);
    rig_stop(s, 1000);
}

static void move_at_eof(netsrv_conn *c) {
    rig_on_eof(c);
    go_on(c);
}

static void answer_where_it_arrives(netsrv_conn *c) {
    on_move(c);
    netsrv_send(c, "goodbye", 7);
    netsrv_close(c);
}

static void after_half_close(netsrv_backend b) {
    netsrv_config cfg = move_config(b);
    cfg.on_eof = move_at_eof;
    cfg.on_move = answer_where_it_arrives;
    cfg.eof_policy = NETSRV_EOF_KEEP;
    netsrv_server *s = rig_start(&cfg);
    const int client = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(client, "x"));
    shutdown(client, SHUT_WR);
    CHECK(peer_gets(client, "xgoodbye"));
    CHECK_EQ(peer_end(client), PEER_FIN);
    close(client);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(atomic_load(&rig_seen.eofs), 1);
    rig_stop(s, 1000);
}

static void idle_timeout_goes_along(netsrv_backend b) {
    netsrv_config cfg = move_config(b);
    cfg.idle_timeout_ms = 15000;
    seam_reset(0);
    seam_hold_clock();
    netsrv_server *s = rig_start(&cfg);
    const int client = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(client, "x") && peer_gets(client, "x"));
    CHECK_EQ(move_to(s, (atomic_load(&seen.worker) + 1) % WORKERS), NETSRV_OK);
    rig_pass_time(s, 14998);
    CHECK_EQ(rig_closes(), 0);
    rig_pass_time(s, 15000);
    CHECK_EQ(peer_end(client), PEER_FIN);
    close(client);
    CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_IDLE) == 1);
    rig_stop(s, 1000);
    seam_reset(0);
}

/* ---- not moved ------------------------------------------------------------------------------- */

static size_t move_and_end(netsrv_conn *c, const void *data, size_t n) {
    const char first = ((const char *)data)[0];
    CHECK_EQ(netsrv_move(c, WORKERS), NETSRV_BAD_ARGUMENT);
    if (first == 'h') {
        CHECK_EQ(netsrv_move(c, netsrv_get_worker(c)), NETSRV_OK);
        return rig_on_data(c, data, n);
    }
    go_on(c);
    netsrv_send(c, data, n);
    if (first == 'c') {
        netsrv_close(c);
    } else {
        netsrv_abort(c);
    }
    CHECK_EQ(netsrv_move(c, 0), NETSRV_GONE);
    return n;
}

static void ended_instead(netsrv_backend b) {
    netsrv_config cfg = move_config(b);
    cfg.on_data = move_and_end;
    netsrv_server *s = rig_start(&cfg);
    const int closed = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(closed, "close") && peer_gets(closed, "close"));
    CHECK_EQ(peer_end(closed), PEER_FIN);
    close(closed);
    const int aborted = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(aborted, "abort"));
    CHECK_EQ(peer_end(aborted), ECONNRESET);
    close(aborted);
    CHECK_WITHIN(5000, rig_closes() == 2);
    CHECK_EQ(atomic_load(&seen.moves), 0);
    const int here = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(here, "here") && peer_gets(here, "here"));
    CHECK_WITHIN(5000, atomic_load(&seen.moves) == 1);
    CHECK(peer_say(here, "hold") && peer_gets(here, "hold"));
    CHECK_EQ(rig_total(s).moved, 0);
    close(here);
    rig_stop(s, 1000);
}

static void dialing_here(netsrv_server *s, unsigned worker, void *done) {
    netsrv_conn *c = NULL;
    char address[NETSRV_ADDRESS_MAX];
    REQUIRE(netsrv_get_address(s, 0, address, sizeof address) == NETSRV_OK);
    const netsrv_target to = { .address = address };
    CHECK_EQ(netsrv_dial(s, &to, &c), NETSRV_OK);
    CHECK_EQ(netsrv_move(c, worker), NETSRV_BAD_STATE);
    netsrv_abort(c);
    netsrv_set_data(c, &seen);
    atomic_fetch_add((atomic_ulong *)done, 1);
}

static void not_while_dialing(netsrv_backend b) {
    netsrv_config cfg = move_config(b);
    atomic_ulong done = 0;
    cfg.on_close = NULL;
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(netsrv_post(s, 0, dialing_here, &done), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&done) == 1);
    netsrv_stop(s, 1000);
    CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(20000)), NETSRV_OK);
    CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
}

static size_t cannot_move(netsrv_conn *c, const void *data, size_t n) {
    CHECK_EQ(netsrv_move(c, 0), NETSRV_UNAVAILABLE);
    netsrv_send(c, data, n);
    return n;
}

static void not_with_handler_threads(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, WORKERS);
    cfg.handler_threads = 2;
    cfg.on_data = cannot_move;
    netsrv_server *s = rig_start(&cfg);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    rig_stop(s, 1000);
}

/* ---- failing calls, and a stop --------------------------------------------------------------- */

enum { NO_FAILURE, MEMORY_HERE, MEMORY_THERE, POLLER };
static atomic_int fail_call;
static atomic_uint fail_on; /* the worker */

static int fail_once(const char *name, unsigned long nth) {
    (void)nth;
    const char *call = atomic_load(&fail_call) == POLLER ? "epoll_ctl_del" : "alloc";
    if (atomic_load(&fail_call) == NO_FAILURE || strcmp(name, call) != 0 || netsrv__self == NULL ||
        netsrv__self->index != atomic_load(&fail_on)) {
        return 0;
    }
    atomic_store(&fail_call, NO_FAILURE);
    return ENOMEM;
}

static size_t move_and_fail(netsrv_conn *c, const void *data, size_t n) {
    netsrv_send(c, data, n);
    go_on(c);
    if (((const char *)data)[0] >= '0' && ((const char *)data)[0] <= '9') {
        const int which = ((const char *)data)[0] - '0';
        const unsigned here = netsrv_get_worker(c);
        atomic_store(&fail_on, which == MEMORY_THERE ? (here + 1) % WORKERS : here);
        atomic_store(&fail_call, which);
    }
    return n;
}

static void fails(netsrv_backend b, int which) {
    netsrv_config cfg = move_config(b);
    cfg.on_data = move_and_fail;
    const char text[] = { (char)('0' + which), '\0' };
    seam_reset(0);
    SEAM_SET(decider, fail_once);
    netsrv_server *s = rig_start(&cfg);
    const int client = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(client, text) && peer_gets(client, text));
    if (which == MEMORY_HERE) {
        CHECK_WITHIN(5000, atomic_load(&seen.moves) == 1); /* it stayed */
        CHECK_EQ(rig_total(s).moved, 0);
        CHECK(peer_say(client, "y") && peer_gets(client, "y"));
        CHECK_WITHIN(5000, rig_total(s).moved == 1);
    } else {
        peer_end(client);
        CHECK_WITHIN(5000, rig_closes() == 1);
        CHECK_EQ(rig_reason(which == POLLER ? NETSRV_CLOSE_ERROR : NETSRV_CLOSE_NO_MEMORY), 1);
        CHECK_EQ(atomic_load(&seen.moves), 0);
    }
    CHECK_EQ(atomic_load(&fail_call), NO_FAILURE);
    close(client);
    CHECK_WITHIN(5000, rig_total(s).live == 0);
    rig_stop(s, 1000);
    seam_reset(0);
}

/* Moves while the workers leave one after the other: nobody is lost, nobody holds up the end. */
static void across_a_stop(netsrv_backend b, uint32_t grace_ms) {
    netsrv_config cfg = move_config(b);
    int client[20];
    cfg.on_data = echo_and_move;
    seam_reset(5);
    SEAM_SET(disturb, true);
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < 20; i++) {
        client[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(client[i], "first"));
    }
    for (int i = 0; i < 20; i++) {
        CHECK(peer_gets(client[i], "first"));
        CHECK(peer_say(client[i], i % 3 == 0 ? "second" : "third"));
    }
    netsrv_stop(s, grace_ms);
    for (int i = 0; i < 20; i++) {
        close(client[i]);
    }
    rig_end(s);
    seam_reset(0);
}

static void greet_and_go(netsrv_conn *c) {
    on_open(c);
    CHECK_EQ(netsrv_send(c, "hello", 5), NETSRV_OK);
    go_on(c);
}

/* Before it has read anything, and with its greeting on the way out. */
static void from_the_beginning(netsrv_backend b) {
    netsrv_config cfg = move_config(b);
    cfg.on_open = greet_and_go;
    netsrv_server *s = rig_start(&cfg);
    const int client = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_gets(client, "hello"));
    CHECK(peer_say(client, "there") && peer_gets(client, "there"));
    CHECK_EQ(atomic_load(&seen.moves), 1);
    close(client);
    rig_stop(s, 1000);
}

#define FULL_BYTES 65536
static unsigned char full_bytes[FULL_BYTES];
static atomic_int full_turns;

/* A posted function: some turns later, it goes. */
static void go_in_time(netsrv_server *s, unsigned worker, void *arg) {
    netsrv_conn *c = netsrv_find(s, atomic_load(&seen.id));
    if (atomic_fetch_sub(&full_turns, 1) > 0) {
        CHECK_EQ(netsrv_post(s, worker, go_in_time, arg), NETSRV_OK);
    } else if (c != NULL) {
        go_on(c);
    }
}

static size_t fill_and_go(netsrv_conn *c, const void *data, size_t n) {
    const int bytes = 4096;
    (void)data;
    setsockopt(netsrv_get_fd(c), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    CHECK_EQ(netsrv_send(c, full_bytes, sizeof full_bytes), NETSRV_OK);
    netsrv_flush(c);
    CHECK_EQ(netsrv_post(netsrv_get_server(c), netsrv_get_worker(c), go_in_time, NULL), NETSRV_OK);
    return n;
}

/* At the moment at which a send is under way that finds the socket full, and around it. */
static void into_a_full_socket(netsrv_backend b) {
    static unsigned char back[FULL_BYTES];
    netsrv_config cfg = move_config(b);
    cfg.on_data = fill_and_go;
    cfg.high_mark_bytes = 2 * FULL_BYTES;
    peer_fill(full_bytes, sizeof full_bytes, 3);
    netsrv_server *s = rig_start(&cfg);
    for (int turns = 0; turns < 5; turns++) {
        const unsigned long before = atomic_load(&seen.moves);
        const int client = peer_connect_small(netsrv_get_port(s, 0));
        atomic_store(&full_turns, turns);
        CHECK(peer_say(client, "go"));
        CHECK_WITHIN(10000, atomic_load(&seen.moves) == before + 1);
        CHECK_EQ(peer_recv(client, back, sizeof back), sizeof back);
        CHECK(memcmp(full_bytes, back, sizeof back) == 0);
        close(client);
    }
    rig_stop(s, 1000);
}

static atomic_bool busy_worker;

static void keep_busy(netsrv_server *s, unsigned worker, void *done) {
    rig_nothing(s, worker, done);
    CHECK_WITHIN(10000, !atomic_load(&busy_worker));
}

static size_t consume_and_go(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    go_on(c);
    return n;
}

/* The reset is there when the input is looked at that lets it go: it ends as reset all the same. */
static void after_a_reset(netsrv_backend b) {
    netsrv_config cfg = move_config(b);
    atomic_ulong begun = 0;
    cfg.on_data = consume_and_go;
    netsrv_server *s = rig_start(&cfg);
    const int client = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(10000, rig_opens() == 1);
    rig_poke(s);
    atomic_store(&busy_worker, true);
    CHECK_EQ(netsrv_post(s, atomic_load(&seen.worker), keep_busy, &begun), NETSRV_OK);
    CHECK_WITHIN(10000, atomic_load(&begun) == 1);
    CHECK(peer_say(client, "go"));
    peer_reset(client);
    atomic_store(&busy_worker, false);
    CHECK_WITHIN(10000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_ERROR), 1);
    CHECK_EQ(atomic_load(&rig_seen.last_errno), ECONNRESET);
    CHECK_EQ(atomic_load(&rig_seen.eofs), 0);
    rig_stop(s, 1000);
}

static size_t refuse_and_go(netsrv_conn *c, const void *data, size_t n) {
    if (atomic_load(&seen.moves) == 0) {
        seam_fail_next("ring_entry", ENOBUFS, 2);
    }
    go_on(c);
    netsrv_send(c, data, n);
    return n;
}

/* The kernel takes no more requests at first: what cannot be asked for now is asked for later. */
static void refused_at_first(netsrv_backend b) {
    netsrv_config cfg = move_config(b);
    cfg.on_data = refuse_and_go;
    seam_reset(0);
    netsrv_server *s = rig_start(&cfg);
    const int client = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(client, "one") && peer_gets(client, "one"));
    CHECK_WITHIN(10000, atomic_load(&seen.moves) == 1);
    CHECK(peer_say(client, "two") && peer_gets(client, "two"));
    CHECK_WITHIN(10000, atomic_load(&seen.moves) == 2);
    close(client);
    rig_stop(s, 1000);
    seam_reset(0);
}

static void all(netsrv_backend b) {
    CASE("from worker to worker", from_worker_to_worker(b));
    CASE("with every message, before and after the answer", with_every_message(b, ""));
    CASE("with every message, the other way", with_every_message(b, "!"));
    CASE("in full flow", in_full_flow(b));
    CASE("with kept input", with_kept_input(b));
    CASE("with unsent output", with_unsent_output(b));
    CASE("while paused", while_paused(b));
    CASE("from the beginning", from_the_beginning(b));
    CASE("into a full socket", into_a_full_socket(b));
    CASE("after a reset", after_a_reset(b));
    CASE("the request to let go is refused", refused_at_first(b));
    CASE("lines", lines(b));
    CASE("after a half-close", after_half_close(b));
    CASE("the idle timeout goes along", idle_timeout_goes_along(b));
    CASE("ended instead", ended_instead(b));
    CASE("not while dialing", not_while_dialing(b));
    CASE("not with handler threads", not_with_handler_threads(b));
    CASE("no memory here", fails(b, MEMORY_HERE));
    CASE("no memory there", fails(b, MEMORY_THERE));
    if (b == NETSRV_BACKEND_EPOLL) {
        CASE("the poller fails", fails(b, POLLER));
    }
    CASE("across a stop", across_a_stop(b, 3000));
    CASE("across a sudden stop", across_a_stop(b, 0));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
