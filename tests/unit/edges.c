/* edges.c: what servers get wrong at the edges of the protocol. */
#include "../seam.h"

#include "rig.h"

static void small_send_buffer(netsrv_conn *c) {
    const int bytes = 4096;
    setsockopt(netsrv_get_fd(c), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    rig_on_open(c);
}

/* ---- closing --------------------------------------------------------------------------------- */

static size_t reply_and_close(netsrv_conn *c, const void *data, size_t n) {
    static char reply[50000];
    (void)data;
    (void)n;
    memset(reply, 'r', sizeof reply);
    netsrv_send(c, reply, sizeof reply);
    netsrv_close(c);
    return 0;
}

/* A reply must not be destroyed by the reset that unread input provokes. */
static void unread_input(netsrv_backend b) {
    static char unread[100000];
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = reply_and_close;
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < 20; i++) {
        const int fd = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_send(fd, unread, sizeof unread));
        CHECK_EQ(peer_skip(fd, 50000), 50000);
        CHECK_EQ(peer_end(fd), PEER_FIN);
        peer_send(fd, unread, 1000);
        close(fd);
    }
    CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_LOCAL) == 20);
    rig_stop(s, 0);
}

static void data_and_fin_together(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < 50; i++) {
        const int fd = peer_connect(netsrv_get_port(s, 0));
        const int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_CORK, &on, sizeof on);
        peer_say(fd, "x\n");
        shutdown(fd, SHUT_WR);
        CHECK(peer_gets(fd, "x\n"));
        CHECK_EQ(peer_end(fd), PEER_FIN);
        close(fd);
    }
    CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_PEER) == 50);
    rig_stop(s, 0);
}

/* Data, then a reset: the data may be shown, and there is one end. */
static void data_and_reset(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    netsrv_server *s = rig_start(&cfg);
    for (unsigned i = 1; i <= 50; i++) {
        const int fd = peer_connect(netsrv_get_port(s, 0));
        peer_say(fd, "x\n");
        peer_reset(fd);
        CHECK_WITHIN(5000, rig_closes() == i && rig_opens() == i);
    }
    CHECK_EQ(rig_reason(NETSRV_CLOSE_ERROR), 50);
    rig_stop(s, 0);
}

static void big_reply_at_eof(netsrv_conn *c) {
    static char bytes[1000000];
    rig_on_eof(c);
    for (int i = 0; i < 10; i++) {
        netsrv_send(c, bytes, sizeof bytes);
    }
}

/* After a half-close ten megabytes go out slowly: no byte lost, and no spin meanwhile. */
static void slow_reply_after_half_close(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_eof = big_reply_at_eof;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    shutdown(fd, SHUT_WR);
    CHECK_WITHIN(5000, atomic_load(&rig_seen.eofs) == 1);
    CHECK(rig_rests(200));
    CHECK_EQ(peer_skip(fd, 10000000), 10000000);
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_PEER) == 1);
    rig_stop(s, 0);
}

/* ---- resets while nobody reads --------------------------------------------------------------- */

static void pause_at_open(netsrv_conn *c) {
    rig_on_open(c);
    netsrv_pause(c);
}

static void reset_while_paused(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_open = pause_at_open;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 1);
    CHECK(rig_rests(100));
    peer_reset(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_ERROR), 1);
    CHECK_EQ(atomic_load(&rig_seen.last_errno), ECONNRESET);
    rig_stop(s, 0);
}

/* With unread data before the reset: the connection is paused, so that the data stays unread. */
static void reset_while_paused_with_data(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_open = pause_at_open;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 1);
    peer_say(fd, "unread");
    CHECK(rig_rests(100));
    peer_reset(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_ERROR), 1);
    CHECK_EQ(atomic_load(&rig_seen.bytes), 0);
    rig_stop(s, 0);
}

/* A paused connection whose peer is done, then gone: no processor time until the resume. */
static void eof_while_paused(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_open = pause_at_open;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 1);
    peer_say(fd, "unread");
    shutdown(fd, SHUT_WR);
    CHECK(rig_rests(200));
    close(fd);
    CHECK(rig_rests(100));
    rig_stop(s, 0);
}

static void big_at_eof(netsrv_conn *c) {
    static char bytes[200000];
    rig_on_eof(c);
    netsrv_send(c, bytes, sizeof bytes);
}

/* The peer has half-closed, output waits, then a reset: one end, no spin. */
static void reset_with_output_waiting(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_open = small_send_buffer;
    cfg.on_eof = big_at_eof;
    cfg.eof_policy = NETSRV_EOF_KEEP;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect_small(netsrv_get_port(s, 0));
    shutdown(fd, SHUT_WR);
    CHECK_WITHIN(5000, atomic_load(&rig_seen.eofs) == 1);
    CHECK(rig_rests(100));
    peer_reset(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_ERROR), 1);
    CHECK(rig_rests(100));
    rig_stop(s, 0);
}

/* ---- writing to nobody ----------------------------------------------------------------------- */

static void write_for_ever(netsrv_conn *c) {
    static char bytes[100000];
    rig_on_drain(c);
    netsrv_send(c, bytes, sizeof bytes);
}

static size_t write_first(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    write_for_ever(c);
    return n;
}

/* SIGPIPE keeps its default: it would end this process. */
static void no_sigpipe(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    struct sigaction act;
    sigaction(SIGPIPE, NULL, &act);
    CHECK(act.sa_handler == SIG_DFL);
    cfg.on_data = write_first;
    cfg.on_drain = write_for_ever;
    cfg.high_mark_bytes = 50000;
    netsrv_server *s = rig_start(&cfg);
    for (unsigned i = 1; i <= 50; i++) {
        const int fd = peer_connect(netsrv_get_port(s, 0));
        peer_say(fd, "x");
        peer_skip(fd, 1000 * i);
        if (i % 2 == 0) {
            close(fd);
        } else {
            peer_reset(fd);
        }
        CHECK_WITHIN(5000, rig_closes() == i);
    }
    rig_stop(s, 0);
}

static void urgent_byte(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "a") && peer_gets(fd, "a"));
    CHECK_EQ(send(fd, "!", 1, MSG_OOB), 1);
    CHECK(rig_rests(150));
    CHECK(peer_say(fd, "b") && peer_gets(fd, "b"));
    close(fd);
    rig_stop(s, 0);
}

/* ---- slow readers ---------------------------------------------------------------------------- */

#define SLOW 60

/* Everybody wants much and reads nothing: memory stays near the high marks. */
static void slow_readers(netsrv_backend b) {
    int fd[SLOW];
    netsrv_config cfg = rig_config(b, 2);
    cfg.on_open = small_send_buffer;
    cfg.on_data = write_first;
    cfg.on_drain = write_for_ever;
    cfg.high_mark_bytes = 50000;
    netsrv_server *s = rig_start(&cfg);
    const long before = check_alloc_bytes();
    for (int i = 0; i < SLOW; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        peer_say(fd[i], "x");
    }
    CHECK_WITHIN(5000, rig_total(s).queued_bytes > 0 && rig_opens() == SLOW);
    CHECK(rig_rests(200));
    /* What is left at the low mark, and one more, both whole. */
    CHECK_LE(rig_total(s).queued_bytes, SLOW * 2 * 100200ul);
    CHECK_LE(check_alloc_bytes() - before, SLOW * 300000l);
    CHECK(peer_skip(fd[7], 3000000) == 3000000);
    CHECK_LE(check_alloc_bytes() - before, SLOW * 300000l);
    for (int i = 0; i < SLOW; i++) {
        close(fd[i]);
    }
    CHECK_WITHIN(5000, rig_closes() == SLOW);
    CHECK_WITHIN(5000, rig_total(s).queued_bytes == 0);
    rig_stop(s, 0);
}

static int every_second_send(const char *name, unsigned long nth) {
    return strcmp(name, "send") == 0 && nth % 2 == 0 ? EAGAIN : 0;
}

/* The kernel takes one byte, then would block, then one byte. */
static void byte_by_byte_out(netsrv_backend b) {
    static unsigned char bytes[5000];
    unsigned char back[sizeof bytes];
    const netsrv_config cfg = rig_config(b, 1);
    peer_fill(bytes, sizeof bytes, 2);
    SEAM_SET(send_clip, 1);
    SEAM_SET(clip_exactly, true);
    SEAM_SET(decider, every_second_send);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_send(fd, bytes, sizeof bytes);
    CHECK_EQ(peer_recv(fd, back, sizeof back), sizeof back);
    CHECK_MEM(back, sizeof back, bytes, sizeof bytes);
    close(fd);
    rig_stop(s, 0);
    seam_reset(0);
}

static void all(netsrv_backend b) {
    CASE("unread input does not destroy the reply", unread_input(b));
    CASE("data and FIN in one segment", data_and_fin_together(b));
    CASE("data, then a reset", data_and_reset(b));
    CASE("a slow reply after a half-close", slow_reply_after_half_close(b));
    CASE("a reset while paused", reset_while_paused(b));
    CASE("a reset while paused, with data", reset_while_paused_with_data(b));
    CASE("the peer ends while paused", eof_while_paused(b));
    CASE("a reset with output waiting", reset_with_output_waiting(b));
    CASE("no SIGPIPE", no_sigpipe(b));
    CASE("an urgent byte", urgent_byte(b));
    CASE("slow readers", slow_readers(b));
    CASE("one byte at a time out", byte_by_byte_out(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
