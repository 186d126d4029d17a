/* conn.c: one connection: every call in every callback, marks and limits, kept input, the end. */
#include "../seam.h"

#include "rig.h"

/* ---- every call in every callback ------------------------------------------------------------ */

enum { ON_OPEN, ON_DATA, ON_FRAME, ON_DRAIN, ON_EOF, ON_CLOSE, CALLBACKS };
static const char *const callback_names[] = { "open", "data", "frame", "drain", "eof", "close" };

enum {
    SEND, CLOSE, ABORT, SHUTDOWN, PAUSE, RESUME, CLOSE_OTHER, ABORT_OTHER, SEND_OTHER, EVERYTHING,
    CALLS
};
static const char *const call_names[] = {
    "send", "close", "abort", "shutdown", "pause", "resume", "close other", "abort other",
    "send other", "everything"
};

/* Connection 0 is the one whose callback calls; connection 1 is the other one. */
static struct {
    int callback;
    int call;
    netsrv_conn *conn[2];
    unsigned opened;
    atomic_ulong fired;
    atomic_int reason[2];
    atomic_int closes[2];
} cell;

static void call_for_other(int call, netsrv_conn *other) {
    if (other == NULL) {
        return;
    }
    if (call == CLOSE_OTHER) {
        netsrv_close(other);
    } else if (call == ABORT_OTHER) {
        netsrv_abort(other);
    } else if (call == SEND_OTHER) {
        CHECK_EQ(netsrv_send(other, "o", 1), NETSRV_OK);
    }
}

static void call_one(netsrv_conn *c, int call, bool closing) {
    switch (call) {
    case SEND: CHECK_EQ(netsrv_send(c, "s", 1) == NETSRV_GONE, closing); break;
    case CLOSE: netsrv_close(c); break;
    case ABORT: netsrv_abort(c); break;
    case SHUTDOWN: netsrv_shutdown(c); break;
    case PAUSE: netsrv_pause(c); break;
    case RESUME: netsrv_resume(c); break;
    default: call_for_other(call, cell.conn[1]); break;
    }
}

static void call_everything(netsrv_conn *c) {
    netsrv_conn_stats stats;
    char text[NETSRV_ADDRESS_MAX];
    netsrv_pause(c);
    netsrv_send(c, "e", 1);
    netsrv_resume(c);
    netsrv_shutdown(c);
    CHECK_EQ(netsrv_send(c, "f", 1), NETSRV_GONE);
    netsrv_close(c);
    netsrv_close(c);
    netsrv_abort(c);
    netsrv_abort(c);
    netsrv_close(c);
    netsrv_pause(c);
    netsrv_resume(c);
    netsrv_set_idle_timeout(c, 5);
    netsrv_get_conn_stats(c, &stats);
    CHECK_EQ(netsrv_send(c, "g", 1), NETSRV_GONE);
    CHECK(netsrv_peer_text(c, text, sizeof text) == text);
    CHECK(netsrv_local_text(c, text, sizeof text) == text);
    CHECK_EQ(netsrv_close_id(netsrv_get_server(c), netsrv_get_id(c)) == NETSRV_BAD_ARGUMENT, false);
}

static void act(netsrv_conn *c, int callback) {
    if (callback != cell.callback || c != cell.conn[0]) {
        return;
    }
    if (atomic_fetch_add(&cell.fired, 1) > 0) {
        return;
    }
    if (cell.call == EVERYTHING) {
        call_everything(c);
        return;
    }
    call_one(c, cell.call, callback == ON_CLOSE);
}

static void cell_open(netsrv_conn *c) {
    const int bytes = 4096;
    setsockopt(netsrv_get_fd(c), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    /* The other one opens first, so that it is there when connection 0 acts. */
    const unsigned i = cell.opened++ == 0 ? 1 : 0;
    netsrv_set_data(c, &cell.conn[i]);
    cell.conn[i] = c;
    rig_on_open(c);
    act(c, ON_OPEN);
}

static size_t cell_data(netsrv_conn *c, const void *data, size_t n) {
    static const char much[300000];
    if (((const char *)data)[0] == 'm') {
        CHECK_EQ(netsrv_send(c, much, sizeof much), NETSRV_HIGH);
    }
    act(c, ON_DATA);
    return n;
}

static void cell_frame(netsrv_conn *c, const void *data, size_t n) {
    CHECK_MEM(data, n, "line", 4);
    act(c, ON_FRAME);
}

static void cell_drain(netsrv_conn *c) {
    rig_on_drain(c);
    act(c, ON_DRAIN);
}

static void cell_eof(netsrv_conn *c) {
    rig_on_eof(c);
    act(c, ON_EOF);
}

static void cell_close(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    const int i = netsrv_get_data(c) == &cell.conn[0] ? 0 : 1;
    rig_on_close(c, reason, sys_errno);
    act(c, ON_CLOSE);
    cell.conn[i] = NULL;
    atomic_store(&cell.reason[i], (int)reason);
    atomic_fetch_add(&cell.closes[i], 1);
}

static void provoke(int callback, int fd) {
    switch (callback) {
    case ON_DATA: peer_say(fd, "data"); break;
    case ON_FRAME: peer_say(fd, "line\r\n"); break;
    case ON_DRAIN:
        peer_say(fd, "m");
        peer_skip(fd, 300000);
        break;
    case ON_EOF: shutdown(fd, SHUT_WR); break;
    case ON_CLOSE: shutdown(fd, SHUT_WR); break;
    default: break;
    }
}

/* The reason that connection 0 must end with, when its client goes after the call; -1: open. */
static int expected_reason(int callback, int call) {
    if (callback == ON_CLOSE || callback == ON_EOF) {
        return -1;
    }
    /* The first call decides, though a later abort may hasten the end. */
    if (call == CLOSE || call == EVERYTHING) {
        return NETSRV_CLOSE_LOCAL;
    }
    return call == ABORT ? NETSRV_CLOSE_ABORT : -1;
}

static void check_cell(void) {
    const int expected = expected_reason(cell.callback, cell.call);
    CHECK(expected < 0 || atomic_load(&cell.reason[0]) == expected);
    CHECK_EQ(atomic_load(&cell.closes[0]), 1);
    CHECK_EQ(atomic_load(&cell.closes[1]), 1);
    CHECK_GE(atomic_load(&cell.fired), 1);
    if (cell.call == CLOSE_OTHER) {
        CHECK_EQ(atomic_load(&cell.reason[1]), NETSRV_CLOSE_LOCAL);
    } else if (cell.call == ABORT_OTHER) {
        CHECK_EQ(atomic_load(&cell.reason[1]), NETSRV_CLOSE_ABORT);
    }
}

static void one_cell(netsrv_backend b, int callback, int call) {
    char name[80];
    const unsigned long failures = atomic_load(&check_state.failures);
    netsrv_config cfg = rig_config(b, 1);
    memset(&cell, 0, sizeof cell);
    cell.callback = callback;
    cell.call = call;
    cfg.on_open = cell_open;
    cfg.on_data = callback == ON_FRAME ? NULL : cell_data;
    cfg.on_frame = callback == ON_FRAME ? cell_frame : NULL;
    cfg.framing = callback == ON_FRAME ? NETSRV_FRAMING_LINE : NETSRV_FRAMING_NONE;
    cfg.on_drain = cell_drain;
    cfg.on_eof = cell_eof;
    cfg.on_close = cell_close;
    cfg.linger_timeout_ms = 100;
    netsrv_server *s = rig_start(&cfg);
    const int other = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 1);
    const int a = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 2);
    provoke(callback, a);
    CHECK_WITHIN(5000, atomic_load(&cell.fired) > 0);
    if (call == SEND_OTHER) {
        CHECK(peer_gets(other, "o"));
    }
    close(a);
    close(other);
    if (call != PAUSE) {
        CHECK_WITHIN(5000, rig_closes() == 2);
    }
    rig_stop(s, 0);
    check_cell();
    if (atomic_load(&check_state.failures) > failures) {
        snprintf(name, sizeof name, "  %s in on_%s", call_names[call], callback_names[callback]);
        fprintf(stderr, "%s\n", name);
    }
}

static void every_call_in(netsrv_backend b, int callback) {
    for (int call = 0; call < CALLS; call++) {
        one_cell(b, callback, call);
    }
}

/* ---- the queue and its marks ----------------------------------------------------------------- */

static struct {
    atomic_ulong highs;   /* crossings of the high mark that netsrv_send reported */
    atomic_ulong sent;
    atomic_ulong max_queued;
    bool above;
} marks;

static void fill_to_high(netsrv_conn *c) {
    static char chunk[4096];
    netsrv_result result = NETSRV_OK;
    for (int i = 0; result == NETSRV_OK && i < 100000; i++) {
        result = netsrv_send(c, chunk, sizeof chunk);
        CHECK(result == NETSRV_OK || result == NETSRV_HIGH);
        atomic_fetch_add(&marks.sent, sizeof chunk);
    }
    CHECK_EQ(result, NETSRV_HIGH);
    atomic_fetch_add(&marks.highs, 1);
    marks.above = true;
}

static size_t fill_on_data(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    fill_to_high(c);
    return n;
}

static void fill_on_drain(netsrv_conn *c) {
    netsrv_conn_stats stats;
    netsrv_get_conn_stats(c, &stats);
    CHECK(marks.above);
    CHECK_LE(stats.queued_bytes, 16 * 1024);
    marks.above = false;
    rig_on_drain(c);
    if (atomic_load(&rig_seen.drains) < 20) {
        fill_to_high(c);
    }
}

static void drain_once_per_crossing(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = fill_on_data;
    cfg.on_drain = fill_on_drain;
    cfg.high_mark_bytes = 64 * 1024;
    cfg.low_mark_bytes = 16 * 1024;
    memset(&marks, 0, sizeof marks);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_say(fd, "go");
    CHECK_WITHIN(5000, atomic_load(&marks.highs) >= 1);
    uint64_t received = 0;
    while (received < atomic_load(&marks.sent)) {
        const size_t k = peer_skip(fd, 4096);
        received += k;
        if (!CHECK(k == 4096)) {
            break;
        }
        /* All that was sent is here: either more comes, or that was the last drain. */
        WAIT_FOR(5000, received < atomic_load(&marks.sent) || atomic_load(&rig_seen.drains) == 20);
    }
    CHECK_EQ(atomic_load(&rig_seen.drains), 20);
    CHECK_EQ(atomic_load(&marks.highs), 20);
    CHECK_EQ(received, atomic_load(&marks.sent));
    close(fd);
    rig_stop(s, 1000);
}

/* The HIGH of each further send above the mark is advice again, but there is one drain. */
static size_t overfill_on_data(netsrv_conn *c, const void *data, size_t n) {
    static char chunk[8192];
    (void)data;
    for (int i = 0; i < 1000; i++) {
        const netsrv_result result = netsrv_send(c, chunk, sizeof chunk);
        CHECK(result == NETSRV_OK || result == NETSRV_HIGH);
        marks.highs += result == NETSRV_HIGH;
    }
    return n;
}

static void one_drain_for_many_highs(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = overfill_on_data;
    cfg.high_mark_bytes = 10000;
    memset(&marks, 0, sizeof marks);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_say(fd, "go");
    CHECK_EQ(peer_skip(fd, 8192u * 1000), 8192u * 1000);
    CHECK_WITHIN(5000, atomic_load(&rig_seen.drains) == 1);
    CHECK(peer_silent(fd, 20));
    CHECK_EQ(atomic_load(&rig_seen.drains), 1);
    CHECK_GE(atomic_load(&marks.highs), 2);
    close(fd);
    rig_stop(s, 1000);
}

/* An echo whose client does not read stops reading as well: the queue stays near the high mark. */
static void high_mark_stops_reading(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.high_mark_bytes = 100000;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    static unsigned char bytes[1 << 16];
    uint64_t sent = 0;
    uint64_t most = 0;
    peer_fill(bytes, sizeof bytes, 1);
    peer_deadline(fd, check_scaled(300));
    while (sent < (64u << 20)) {
        const ssize_t k = send(fd, bytes + sent % sizeof bytes, sizeof bytes - sent % sizeof bytes,
                               MSG_NOSIGNAL);
        const uint64_t queued = rig_total(s).queued_bytes;
        most = queued > most ? queued : most;
        if (k <= 0) {
            break;
        }
        sent += (uint64_t)k;
    }
    CHECK_LE(sent, (64u << 20) - 1);
    const netsrv_config *known = netsrv_get_config(s);
    const size_t turn = b == NETSRV_BACKEND_IO_URING ? rig_uring_turn(known)
                                                     : known->recv_buffer_bytes;
    /* Memory counts: the oldest chunk may have left in part, and the youngest have room. */
    CHECK_LE(most, 100000 + turn + 2 * (size_t)NETSRV__OUT_MAX);
    CHECK_LE(check_alloc_bytes(), 4 * 1024 * 1024);
    peer_deadline(fd, check_scaled(PEER_DEADLINE_MS));
    uint64_t same = 0;
    unsigned char back[1 << 16];
    while (same < sent) {
        const size_t at = same % sizeof bytes;
        size_t want = sizeof bytes - at;
        want = want < sent - same ? want : (size_t)(sent - same);
        if (peer_recv(fd, back, want) != want || memcmp(back, bytes + at, want) != 0) {
            break;
        }
        same += want;
    }
    CHECK_EQ(same, sent);
    close(fd);
    rig_stop(s, 1000);
}

static atomic_int last_result;

static size_t send_to_the_limit(netsrv_conn *c, const void *data, size_t n) {
    static char chunk[10000];
    (void)data;
    netsrv_result result = NETSRV_OK;
    for (int i = 0; i < 3000 && (result == NETSRV_OK || result == NETSRV_HIGH); i++) {
        result = netsrv_send(c, chunk, sizeof chunk);
    }
    atomic_store(&last_result, (int)result);
    CHECK_EQ(netsrv_send(c, "x", 1), NETSRV_GONE);
    return n;
}

static void queue_limit(netsrv_backend b, uint64_t server_max) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = send_to_the_limit;
    cfg.high_mark_bytes = 50000;
    cfg.queue_max_bytes = 100000;
    cfg.server_queue_max_bytes = server_max;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_say(fd, "go");
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(atomic_load(&last_result), NETSRV_QUEUE_FULL);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_QUEUE_FULL) + rig_reason(NETSRV_CLOSE_SERVER_FULL), 1);
    CHECK(server_max != NETSRV_OFF || rig_reason(NETSRV_CLOSE_QUEUE_FULL) == 1);
    CHECK_NE(peer_end(fd), PEER_STUCK);
    close(fd);
    rig_stop(s, 0);
}

/* Each of many connections keeps below its own limit; together they exceed the server's. */
static size_t send_a_share(netsrv_conn *c, const void *data, size_t n) {
    static char chunk[90000];
    (void)data;
    CHECK_NE(netsrv_send(c, chunk, sizeof chunk), NETSRV_GONE);
    return n;
}

static void small_send_buffer(netsrv_conn *c) {
    const int bytes = 4096;
    setsockopt(netsrv_get_fd(c), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    rig_on_open(c);
}

static void server_queue_limit(netsrv_backend b) {
    enum { N = 10 };
    netsrv_config cfg = rig_config(b, 2);
    cfg.on_open = small_send_buffer;
    cfg.on_data = send_a_share;
    cfg.high_mark_bytes = 50000;
    cfg.queue_max_bytes = 200000;
    cfg.server_queue_max_bytes = 200000;
    netsrv_server *s = rig_start(&cfg);
    int fd[N];
    for (int i = 0; i < N; i++) {
        fd[i] = peer_connect_small(netsrv_get_port(s, 0));
        peer_say(fd[i], "go");
    }
    CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_SERVER_FULL) >= 1 &&
                           rig_opens() == N);
    CHECK_LE(rig_total(s).queued_bytes, 200000 + 2 * 90000);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_QUEUE_FULL), 0);
    for (int i = 0; i < N; i++) {
        close(fd[i]);
    }
    rig_stop(s, 0);
}

/* ---- input that is kept ---------------------------------------------------------------------- */

static struct {
    char shown[4096];
    size_t consumed;
    size_t step;      /* bytes consumed of each showing; 0: none */
    atomic_ulong calls;
    atomic_ulong bytes;
    bool pausing;
} input;

static size_t consume_part(netsrv_conn *c, const void *data, size_t n) {
    const size_t k = n < input.step ? n : input.step;
    CHECK_LE(input.consumed + n, sizeof input.shown);
    memcpy(input.shown + input.consumed, data, n);
    input.consumed += k;
    atomic_store(&input.bytes, input.consumed);
    atomic_fetch_add(&input.calls, 1);
    if (input.pausing) {
        netsrv_pause(c);
    }
    return k;
}

static void consume_in_parts(netsrv_backend b) {
    static const char text[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    for (size_t step = 1; step <= 7; step += 2) {
        netsrv_config cfg = rig_config(b, 1);
        cfg.on_data = consume_part;
        memset(&input, 0, sizeof input);
        input.step = step;
        netsrv_server *s = rig_start(&cfg);
        const int fd = peer_connect(netsrv_get_port(s, 0));
        for (size_t i = 0; i < sizeof text - 1; i++) {
            const unsigned long calls = atomic_load(&input.calls);
            peer_send(fd, text + i, 1);
            CHECK_WITHIN(5000, atomic_load(&input.calls) > calls);
        }
        CHECK_WITHIN(5000, atomic_load(&input.bytes) == sizeof text - 1);
        close(fd);
        rig_stop(s, 1000);
        CHECK_MEM(input.shown, input.consumed, text, sizeof text - 1);
    }
}

/* Nothing consumed: the same bytes are shown again, with what follows, up to the limit. */
static void input_limit(netsrv_backend b) {
    char bytes[2000];
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = consume_part;
    cfg.input_max_bytes = 1000;
    cfg.linger_timeout_ms = NETSRV_OFF;
    memset(&input, 0, sizeof input);
    memset(bytes, 'i', sizeof bytes);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    for (int i = 0; i < 10; i++) {
        const unsigned long calls = atomic_load(&input.calls);
        peer_send(fd, bytes, 100);
        CHECK_WITHIN(5000, atomic_load(&input.calls) > calls);
        CHECK_MEM(input.shown, (size_t)(i + 1) * 100, bytes, (size_t)(i + 1) * 100);
    }
    CHECK_EQ(rig_closes(), 0);
    peer_send(fd, bytes, 1);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_INPUT_FULL), 1);
    CHECK_NE(peer_end(fd), PEER_STUCK);
    close(fd);
    rig_stop(s, 0);
}

static netsrv_id kept_id;

static void keep_id(netsrv_conn *c) {
    kept_id = netsrv_get_id(c);
    rig_on_open(c);
}

static void resume_kept(netsrv_server *s, unsigned worker, void *arg) {
    (void)worker;
    (void)arg;
    netsrv_conn *c = netsrv_find(s, kept_id);
    if (CHECK(c != NULL)) {
        netsrv_resume(c);
    }
}

/* Each showing pauses; each resume shows what was kept, without anything new from the peer. */
static void pause_with_kept_input(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_open = keep_id;
    cfg.on_data = consume_part;
    memset(&input, 0, sizeof input);
    input.step = 2;
    input.pausing = true;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_say(fd, "abcdefgh");
    for (unsigned i = 1; i <= 4; i++) {
        CHECK_WITHIN(5000, atomic_load(&input.calls) == i);
        rig_poke(s);
        rig_poke(s);
        CHECK_EQ(atomic_load(&input.calls), i);
        CHECK_EQ(netsrv_post(s, 0, resume_kept, NULL), NETSRV_OK);
    }
    rig_poke(s);
    CHECK_EQ(atomic_load(&input.calls), 4);
    CHECK_MEM(input.shown, input.consumed, "abcdefgh", 8);
    peer_say(fd, "ij");
    CHECK_WITHIN(5000, atomic_load(&input.calls) == 5);
    close(fd);
    rig_stop(s, 0);
}

/* A paused connection takes no bytes: the peer's writes get stuck in the kernel's buffers. */
static void pause_stops_reading(netsrv_backend b) {
    static char bytes[1 << 16];
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_open = keep_id;
    cfg.on_data = consume_part;
    memset(&input, 0, sizeof input);
    input.step = 1;
    input.pausing = true;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_say(fd, "x");
    CHECK_WITHIN(5000, atomic_load(&input.calls) == 1);
    peer_deadline(fd, check_scaled(100));
    while (peer_send(fd, bytes, sizeof bytes)) {
    }
    CHECK_LE(rig_total(s).bytes_in, 1 + netsrv_get_config(s)->recv_buffer_bytes);
    CHECK(peer_silent(fd, 200));
    CHECK(rig_rests(100));
    close(fd);
    rig_stop(s, 0);
}

/* ---- half-close ------------------------------------------------------------------------------ */

static void half_close_default(netsrv_backend b) {
    static unsigned char bytes[200000];
    static unsigned char back[sizeof bytes];
    netsrv_config cfg = rig_config(b, 1);
    peer_fill(bytes, sizeof bytes, 9);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_send(fd, bytes, sizeof bytes);
    shutdown(fd, SHUT_WR);
    CHECK_EQ(peer_recv(fd, back, sizeof back), sizeof back);
    CHECK_MEM(back, sizeof back, bytes, sizeof bytes);
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_PEER), 1);
    CHECK_EQ(atomic_load(&rig_seen.eofs), 1);
    rig_stop(s, 0);
}

static void send_late(netsrv_server *s, unsigned worker, void *arg) {
    (void)worker;
    netsrv_conn *c = netsrv_find(s, kept_id);
    if (CHECK(c != NULL)) {
        CHECK_EQ(netsrv_send(c, "late", 4), NETSRV_OK);
        if (arg != NULL) {
            netsrv_close(c);
        }
    }
}

static void half_close_kept(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.eof_policy = NETSRV_EOF_KEEP;
    cfg.on_open = keep_id;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_say(fd, "early");
    shutdown(fd, SHUT_WR);
    CHECK(peer_gets(fd, "early"));
    CHECK_WITHIN(5000, atomic_load(&rig_seen.eofs) == 1);
    CHECK(peer_silent(fd, 100));
    CHECK(rig_rests(100));
    CHECK_EQ(netsrv_post(s, 0, send_late, NULL), NETSRV_OK);
    CHECK(peer_gets(fd, "late"));
    CHECK_EQ(rig_closes(), 0);
    CHECK_EQ(netsrv_post(s, 0, send_late, s), NETSRV_OK);
    CHECK(peer_gets(fd, "late"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(atomic_load(&rig_seen.eofs), 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_LOCAL), 1);
    rig_stop(s, 0);
}

static size_t shutdown_then_read(netsrv_conn *c, const void *data, size_t n) {
    if (atomic_fetch_add(&rig_seen.bytes, n) == 0) {
        CHECK_EQ(netsrv_send(c, data, n), NETSRV_OK);
        netsrv_shutdown(c);
        netsrv_shutdown(c);
    }
    CHECK_EQ(netsrv_send(c, "no", 2), NETSRV_GONE);
    return n;
}

static void shutdown_keeps_reading(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = shutdown_then_read;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_say(fd, "last words");
    CHECK(peer_gets(fd, "last words"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    peer_say(fd, "12345");
    CHECK_WITHIN(5000, atomic_load(&rig_seen.bytes) == 15);
    CHECK_EQ(rig_closes(), 0);
    close(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_PEER), 1);
    rig_stop(s, 0);
}

/* ---- the end: reason and errno --------------------------------------------------------------- */

static size_t obey(netsrv_conn *c, const void *data, size_t n) {
    switch (((const char *)data)[0]) {
    case 'c': netsrv_close(c); break;
    case 'a': netsrv_abort(c); break;
    default: rig_on_data(c, data, n); break;
    }
    return n;
}

/* The client says `word`, then ends by `reset` or close once the server has taken the word. */
static int end_of(netsrv_server *s, const char *word, bool reset) {
    const unsigned long closes = rig_closes();
    const int fd = peer_connect(netsrv_get_port(s, 0));
    int end = PEER_FIN;
    peer_say(fd, word);
    if (word[0] == 'e') {
        CHECK(peer_gets(fd, word));
    } else {
        end = peer_end(fd);
    }
    if (reset) {
        peer_reset(fd);
    } else {
        close(fd);
    }
    CHECK_WITHIN(5000, rig_closes() == closes + 1);
    return end;
}

static void reasons(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = obey;
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(end_of(s, "echo", false), PEER_FIN);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_PEER), 1);
    end_of(s, "echo", true);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_ERROR), 1);
    CHECK_EQ(atomic_load(&rig_seen.last_errno), ECONNRESET);
    CHECK_EQ(end_of(s, "close", false), PEER_FIN);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_LOCAL), 1);
    CHECK_EQ(end_of(s, "abort", false), ECONNRESET);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_ABORT), 1);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "echo") && peer_gets(fd, "echo"));
    netsrv_stop(s, 1000);
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    rig_end(s);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_STOP), 1);
    CHECK_EQ(rig_closes(), 5);
}

static void silent_client(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = rig_start(&cfg);
    for (unsigned i = 1; i <= 20; i++) {
        close(peer_connect(netsrv_get_port(s, 0)));
        CHECK_WITHIN(5000, rig_closes() == i);
    }
    CHECK_EQ(rig_opens(), 20);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_PEER), 20);
    rig_stop(s, 0);
}

/* One allocation fails: one connection ends for it, the other lives on. */
static void no_memory_for_one(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_open = small_send_buffer;
    cfg.on_data = send_a_share;
    netsrv_server *s = rig_start(&cfg);
    const int a = peer_connect(netsrv_get_port(s, 0));
    const int other = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 2);
    rig_poke(s); /* whatever opening takes is there */
    seam_fail_next("alloc", ENOMEM, 1);
    peer_say(a, "x");
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(SEAM_GET(fired), 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_NO_MEMORY), 1);
    seam_fail_stop();
    peer_say(other, "x");
    CHECK_EQ(peer_skip(other, 90000), 90000);
    close(a);
    close(other);
    rig_stop(s, 0);
    seam_reset(0);
}

/* ---- questions ------------------------------------------------------------------------------- */

static void name_at_close(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    char text[NETSRV_ADDRESS_MAX];
    CHECK(strncmp(netsrv_peer_text(c, text, sizeof text), "127.0.0.1:", 10) == 0);
    rig_on_close(c, reason, sys_errno);
}

/* The socket of a connection that was reset tells its peer's address to few who ask. */
static void name_of_reset(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.listen[1] = "*:0";
    cfg.on_close = name_at_close;
    netsrv_server *s = rig_start(&cfg);
    for (unsigned i = 0; i < 2; i++) {
        const int fd = peer_connect(netsrv_get_port(s, i));
        CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
        peer_reset(fd);
        CHECK_WITHIN(5000, rig_closes() == i + 1);
    }
    rig_stop(s, 0);
}

static atomic_bool asked;

static void ask_everything(netsrv_conn *c) {
    char text[NETSRV_ADDRESS_MAX];
    char expected[NETSRV_ADDRESS_MAX];
    char small[4] = "zzz";
    netsrv_conn_stats stats;
    rig_on_open(c);
    CHECK(netsrv_get_data(c) == NULL);
    netsrv_set_data(c, &asked);
    CHECK(netsrv_get_data(c) == &asked);
    CHECK_NE(netsrv_get_id(c), 0);
    CHECK(netsrv_find(netsrv_get_server(c), netsrv_get_id(c)) == c);
    CHECK(netsrv_find(netsrv_get_server(c), 0) == NULL);
    CHECK_EQ(netsrv_get_listener(c), 1);
    CHECK_EQ(netsrv_get_worker(c), 0);
    CHECK(fcntl(netsrv_get_fd(c), F_GETFD) & FD_CLOEXEC);
    CHECK(fcntl(netsrv_get_fd(c), F_GETFL) & O_NONBLOCK);
    CHECK(strncmp(netsrv_peer_text(c, text, sizeof text), "127.0.0.1:", 10) == 0);
    snprintf(expected, sizeof expected, "%s:%u", rig_host(),
             netsrv_get_port(netsrv_get_server(c), 1));
    CHECK_STR(netsrv_local_text(c, text, sizeof text), expected);
    CHECK(netsrv_peer_text(c, small, sizeof small) == small);
    CHECK_LE(strlen(small), 3);
    netsrv_get_conn_stats(c, &stats);
    CHECK_EQ(stats.bytes_in + stats.bytes_out + stats.queued_bytes, 0);
    atomic_store(&asked, true);
}

static void questions(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.listen[1] = "*:0";
    cfg.on_open = ask_everything;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 1));
    CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
    CHECK(atomic_load(&asked));
    CHECK_WITHIN(5000, rig_total(s).bytes_out == 1);
    const netsrv_stats total = rig_total(s);
    CHECK_EQ(total.live, 1);
    CHECK_EQ(total.bytes_in, 1);
    CHECK_EQ(total.bytes_out, 1);
    CHECK_EQ(total.opened, 1);
    CHECK_EQ(netsrv_imbalance(s), 100);
    close(fd);
    CHECK_WITHIN(5000, rig_total(s).live == 0);
    CHECK_EQ(netsrv_imbalance(s), 0);
    netsrv_stats stats;
    CHECK_EQ(netsrv_get_stats(s, 0, &stats), NETSRV_OK);
    CHECK_EQ(netsrv_get_stats(s, 1000, &stats), NETSRV_BAD_ARGUMENT);
    rig_stop(s, 0);
}

static size_t send_nothing(netsrv_conn *c, const void *data, size_t n) {
    CHECK_EQ(netsrv_send(c, data, 0), NETSRV_OK);
    CHECK_EQ(netsrv_send(c, NULL, 0), NETSRV_OK);
    return rig_on_data(c, data, n);
}

/* Replies from the receive buffer, from a copy and from both in turn keep their order. */
static size_t send_mixed(netsrv_conn *c, const void *data, size_t n) {
    const char *at = data;
    for (size_t i = 0; i < n; i++) {
        char copy = at[i];
        CHECK_EQ(netsrv_send(c, at + i, 1), NETSRV_OK);
        CHECK_EQ(netsrv_send(c, &copy, 1), NETSRV_OK);
        copy = '?';
    }
    return n;
}

static void sends(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = send_nothing;
    netsrv_server *s = rig_start(&cfg);
    int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
    close(fd);
    rig_stop(s, 0);
    cfg.on_data = send_mixed;
    s = rig_start(&cfg);
    fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "abc") && peer_gets(fd, "aabbcc"));
    close(fd);
    rig_stop(s, 0);
}

/* Every length and place of a reply, with the kernel taking odd amounts. */
static void clipped_echo(netsrv_backend b) {
    static unsigned char bytes[50000];
    static unsigned char back[sizeof bytes];
    const netsrv_config cfg = rig_config(b, 1);
    peer_fill(bytes, sizeof bytes, 4);
    for (unsigned long clip = 1; clip <= 1000; clip *= 10) {
        seam_reset(clip);
        SEAM_SET(recv_clip, clip * 7);
        SEAM_SET(send_clip, clip);
        const size_t n = clip == 1 ? 3000 : sizeof bytes;
        netsrv_server *s = rig_start(&cfg);
        const int fd = peer_connect(netsrv_get_port(s, 0));
        peer_send(fd, bytes, n);
        CHECK_EQ(peer_recv(fd, back, n), n);
        CHECK_MEM(back, n, bytes, n);
        close(fd);
        rig_stop(s, 1000);
    }
    seam_reset(0);
}

static void all(netsrv_backend b) {
    CASE("every call in on_open", every_call_in(b, ON_OPEN));
    CASE("every call in on_data", every_call_in(b, ON_DATA));
    CASE("every call in on_frame", every_call_in(b, ON_FRAME));
    CASE("every call in on_drain", every_call_in(b, ON_DRAIN));
    CASE("every call in on_eof", every_call_in(b, ON_EOF));
    CASE("every call in on_close", every_call_in(b, ON_CLOSE));
    CASE("one drain per crossing", drain_once_per_crossing(b));
    CASE("one drain for many highs", one_drain_for_many_highs(b));
    CASE("the high mark stops reading", high_mark_stops_reading(b));
    CASE("limit of a connection's queue", queue_limit(b, NETSRV_OFF));
    CASE("limit of both queues", queue_limit(b, 100000));
    CASE("limit of the server's queue", server_queue_limit(b));
    CASE("input consumed in parts", consume_in_parts(b));
    CASE("limit of the kept input", input_limit(b));
    CASE("pause with kept input", pause_with_kept_input(b));
    CASE("pause stops reading", pause_stops_reading(b));
    CASE("half-close, then the end", half_close_default(b));
    CASE("half-close kept open", half_close_kept(b));
    CASE("shutdown keeps reading", shutdown_keeps_reading(b));
    CASE("reasons", reasons(b));
    CASE("a client that says nothing", silent_client(b));
    CASE("no memory for one", no_memory_for_one(b));
    CASE("questions", questions(b));
    CASE("the name of one that was reset", name_of_reset(b));
    CASE("sends", sends(b));
    CASE("short reads and writes", clipped_echo(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
