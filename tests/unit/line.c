/* line.c: bytes to lines, however they are cut. */
#include "../seam.h"

#include "rig.h"

#define TRACE_BYTES 8192

/* Frames as text: each as "LENGTH:bytes;", then "E" for on_eof. */
static struct {
    char text[TRACE_BYTES];
    size_t used;
    atomic_ulong frames;
} trace;

static void trace_add(const void *data, size_t n) {
    REQUIRE(trace.used + n + 16 < TRACE_BYTES);
    trace.used += (size_t)snprintf(trace.text + trace.used, 16, "%zu:", n);
    memcpy(trace.text + trace.used, data, n);
    trace.used += n;
    trace.text[trace.used++] = ';';
}

static void trace_frame(netsrv_conn *c, const void *data, size_t n) {
    (void)c;
    trace_add(data, n);
    atomic_fetch_add(&trace.frames, 1);
}

static void trace_eof(netsrv_conn *c) {
    trace.text[trace.used++] = 'E';
    rig_on_eof(c);
}

static netsrv_config line_config(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = NULL;
    cfg.on_frame = trace_frame;
    cfg.on_eof = trace_eof;
    cfg.framing = NETSRV_FRAMING_LINE;
    memset(&trace, 0, sizeof trace);
    return cfg;
}

static void expect_trace(const char *expected, size_t n) {
    if (!CHECK_MEM(trace.text, trace.used, expected, n)) {
        fprintf(stderr, "  got \"%.*s\"\n", (int)trace.used, trace.text);
    }
}

/* One client says `text` and finishes; the server has seen all of it on return. */
static void one_client(netsrv_server *s, const char *text, size_t n) {
    const unsigned long closes = rig_closes();
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_send(fd, text, n);
    shutdown(fd, SHUT_WR);
    CHECK_NE(peer_end(fd), PEER_STUCK);
    close(fd);
    CHECK_WITHIN(5000, rig_closes() == closes + 1);
}

static const char sample[] = "ab\r\n\ncd\n\r\n\n\r\r\ne\rf\n\xff\0\xfe\ng\r\nlast";
static const char sample_lines[] = "2:ab;0:;2:cd;0:;0:;1:\r;3:e\rf;3:\xff\0\xfe;1:g;4:last;E";
static const char sample_ends[] = "4:ab\r\n;1:\n;3:cd\n;2:\r\n;1:\n;3:\r\r\n;4:e\rf\n;"
                                  "4:\xff\0\xfe\n;3:g\r\n;4:last;E";

static void split_everywhere(netsrv_backend b, bool keep) {
    netsrv_config cfg = line_config(b);
    cfg.keep_line_end = keep ? NETSRV_ENABLE : NETSRV_DISABLE;
    netsrv_server *s = rig_start(&cfg);
    for (unsigned long k = 0; k < sizeof sample; k++) {
        memset(&trace, 0, sizeof trace);
        SEAM_SET(recv_first, k);
        one_client(s, sample, sizeof sample - 1);
        expect_trace(keep ? sample_ends : sample_lines,
                     keep ? sizeof sample_ends - 1 : sizeof sample_lines - 1);
    }
    rig_stop(s, 0);
    seam_reset(0);
}

static void byte_by_byte(netsrv_backend b) {
    const netsrv_config cfg = line_config(b);
    netsrv_server *s = rig_start(&cfg);
    for (unsigned long k = 1; k <= 5; k++) {
        seam_reset(k);
        SEAM_SET(recv_clip, k);
        SEAM_SET(clip_exactly, true);
        memset(&trace, 0, sizeof trace);
        one_client(s, sample, sizeof sample - 1);
        expect_trace(sample_lines, sizeof sample_lines - 1);
    }
    seam_reset(0);
    rig_stop(s, 0);
}

/* The pieces are segments of their own, each taken by the server before the next is sent. */
static void real_segments(netsrv_backend b) {
    const netsrv_config cfg = line_config(b);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    for (size_t i = 0; i < sizeof sample - 1; i++) {
        peer_send(fd, sample + i, 1);
        CHECK_WITHIN(5000, rig_total(s).bytes_in == i + 1);
    }
    shutdown(fd, SHUT_WR);
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    expect_trace(sample_lines, sizeof sample_lines - 1);
    rig_stop(s, 0);
}

/* ---- the limit ------------------------------------------------------------------------------- */

#define LIMIT 100

/* `n` bytes of line, then `tail`. True if it came as a line, false if the connection was ended. */
static bool long_line(netsrv_server *s, size_t n, const char *tail) {
    char text[4 * LIMIT];
    const unsigned long lines = atomic_load(&trace.frames);
    memset(text, 'x', n);
    memcpy(text + n, tail, strlen(tail));
    memset(trace.text, 0, sizeof trace.text);
    trace.used = 0;
    one_client(s, text, n + strlen(tail));
    return atomic_load(&trace.frames) > lines;
}

static void limit_of(netsrv_backend b, unsigned long clip, bool keep) {
    netsrv_config cfg = line_config(b);
    cfg.input_max_bytes = LIMIT;
    cfg.linger_timeout_ms = 100;
    cfg.keep_line_end = keep ? NETSRV_ENABLE : NETSRV_DISABLE;
    SEAM_SET(recv_clip, clip);
    SEAM_SET(clip_exactly, true);
    netsrv_server *s = rig_start(&cfg);
    CHECK(long_line(s, LIMIT - 1, "\n"));
    CHECK(long_line(s, LIMIT, "\n"));
    CHECK(long_line(s, LIMIT, "\r\n"));
    CHECK(long_line(s, LIMIT, ""));
    CHECK(long_line(s, LIMIT - 1, "\r"));
    CHECK_EQ(rig_reason(NETSRV_CLOSE_LINE_TOO_LONG), 0);
    CHECK(!long_line(s, LIMIT + 1, "\n"));
    CHECK_EQ(rig_reason(NETSRV_CLOSE_LINE_TOO_LONG), 1);
    CHECK(!long_line(s, LIMIT + 1, "\r\n"));
    CHECK(!long_line(s, LIMIT, "\rx\n"));
    CHECK(!long_line(s, LIMIT, "\r\r\n"));
    CHECK(!long_line(s, LIMIT + 1, ""));
    CHECK(!long_line(s, 2 * LIMIT, ""));
    CHECK_EQ(rig_reason(NETSRV_CLOSE_LINE_TOO_LONG), 6);
    CHECK(long_line(s, 3, "\n"));
    rig_stop(s, 0);
    seam_reset(0);
}

/* Lines before the one that is too long are delivered. */
static void good_lines_first(netsrv_backend b) {
    char text[3 * LIMIT] = "one\ntwo\n";
    netsrv_config cfg = line_config(b);
    cfg.input_max_bytes = LIMIT;
    cfg.linger_timeout_ms = 100;
    memset(text + 8, 'x', sizeof text - 8);
    netsrv_server *s = rig_start(&cfg);
    one_client(s, text, sizeof text);
    expect_trace("3:one;3:two;", 12);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_LINE_TOO_LONG), 1);
    CHECK_EQ(atomic_load(&rig_seen.eofs), 0);
    rig_stop(s, 0);
}

/* A client that never ends its line holds no more than the limit. */
static void endless_line(netsrv_backend b) {
    static char bytes[1 << 20];
    netsrv_config cfg = line_config(b);
    cfg.linger_timeout_ms = 100;
    memset(bytes, 'x', sizeof bytes);
    netsrv_server *s = rig_start(&cfg);
    const long before = check_alloc_bytes();
    const int fd = peer_connect(netsrv_get_port(s, 0));
    while (peer_send(fd, bytes, sizeof bytes)) {
    }
    CHECK_WITHIN(5000, rig_closes() == 1);
    close(fd);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_LINE_TOO_LONG), 1);
    CHECK_LE(atomic_load(&check_memory.peak_bytes) - before, 5 * 1024 * 1024);
    rig_stop(s, 0);
}

/* ---- many lines ------------------------------------------------------------------------------ */

static atomic_ulong empty_lines;
static atomic_ulong echoed_at; /* how many empty lines had been shown when the other was served */

static void count_or_echo(netsrv_conn *c, const void *data, size_t n) {
    if (n == 0) {
        atomic_fetch_add(&empty_lines, 1);
        return;
    }
    unsigned long none = 0;
    atomic_compare_exchange_strong(&echoed_at, &none, atomic_load(&empty_lines) + 1);
    netsrv_send(c, data, n);
}

static void *send_empty_lines(void *arg) {
    static char lines[1000000];
    memset(lines, '\n', sizeof lines);
    CHECK(peer_send(*(int *)arg, lines, sizeof lines));
    return NULL;
}

/* A million callbacks without recursion, and another client is served between them. */
static void empty_lines_are_fair(netsrv_backend b) {
    netsrv_config cfg = line_config(b);
    pthread_t t;
    cfg.on_frame = count_or_echo;
    cfg.on_eof = rig_on_eof;
    atomic_store(&empty_lines, 0);
    atomic_store(&echoed_at, 0);
    netsrv_server *s = rig_start(&cfg);
    int many = peer_connect(netsrv_get_port(s, 0));
    const int other = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 2);
    pthread_create(&t, NULL, send_empty_lines, &many);
    CHECK_WITHIN(5000, atomic_load(&empty_lines) > 0);
    CHECK(peer_say(other, "other\n") && peer_gets(other, "other"));
    pthread_join(t, NULL);
    CHECK_WITHIN(10000, atomic_load(&empty_lines) == 1000000);
    CHECK_LE(atomic_load(&echoed_at), 1000000);
    close(many);
    close(other);
    rig_stop(s, 1000);
}

static atomic_ulong lines_after;

static void close_at_third(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    (void)n;
    if (atomic_fetch_add(&lines_after, 1) == 2) {
        netsrv_close(c);
    }
}

/* No line is shown after a close, though many lie in the same buffer. */
static void close_stops_lines(netsrv_backend b) {
    netsrv_config cfg = line_config(b);
    cfg.on_frame = close_at_third;
    cfg.on_eof = rig_on_eof;
    atomic_store(&lines_after, 0);
    netsrv_server *s = rig_start(&cfg);
    one_client(s, "1\n2\n3\n4\n5\n", 10);
    CHECK_EQ(atomic_load(&lines_after), 3);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_LOCAL), 1);
    rig_stop(s, 0);
}

static netsrv_id paused_id;

static void pause_each(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    (void)n;
    paused_id = netsrv_get_id(c);
    netsrv_pause(c);
    atomic_fetch_add(&lines_after, 1);
}

static void resume_line(netsrv_server *s, unsigned worker, void *arg) {
    (void)worker;
    (void)arg;
    netsrv_conn *c = netsrv_find(s, paused_id);
    if (c != NULL) { /* the last line comes with the peer's end, and closes */
        netsrv_resume(c);
    }
}

/* A pause holds back the lines that are already there; each resume shows the next. */
static void pause_holds_lines(netsrv_backend b) {
    netsrv_config cfg = line_config(b);
    cfg.on_frame = pause_each;
    cfg.on_eof = rig_on_eof;
    atomic_store(&lines_after, 0);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_say(fd, "1\n2\n3\nlast");
    shutdown(fd, SHUT_WR);
    for (unsigned long i = 1; i <= 4; i++) {
        CHECK_WITHIN(5000, atomic_load(&lines_after) == i);
        rig_poke(s);
        CHECK_EQ(atomic_load(&lines_after), i);
        CHECK_EQ(netsrv_post(s, 0, resume_line, NULL), NETSRV_OK);
    }
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(atomic_load(&rig_seen.eofs), 1);
    rig_stop(s, 0);
}

/* A line that was cut short by a reset is no line. */
static void reset_delivers_no_rest(netsrv_backend b) {
    const netsrv_config cfg = line_config(b);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_say(fd, "whole\npart");
    CHECK_WITHIN(5000, rig_total(s).bytes_in == 10);
    peer_reset(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    expect_trace("5:whole;", 8);
    rig_stop(s, 0);
}

static void all(netsrv_backend b) {
    CASE("split at every byte", split_everywhere(b, false));
    CASE("split at every byte, ends kept", split_everywhere(b, true));
    CASE("byte by byte", byte_by_byte(b));
    CASE("real segments", real_segments(b));
    CASE("the limit", limit_of(b, 0, false));
    CASE("the limit, byte by byte", limit_of(b, 1, false));
    CASE("the limit, ends kept", limit_of(b, 0, true));
    CASE("the limit, ends kept, byte by byte", limit_of(b, 1, true));
    CASE("good lines before a long one", good_lines_first(b));
    CASE("an endless line", endless_line(b));
    CASE("a million empty lines", empty_lines_are_fair(b));
    CASE("close stops the lines", close_stops_lines(b));
    CASE("pause holds the lines", pause_holds_lines(b));
    CASE("a reset delivers no rest", reset_delivers_no_rest(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
