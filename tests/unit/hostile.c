/* Each case failed once: what a review with bad intent found. */
#include "../seam.h"
#include "rig.h"

#include <sys/wait.h>

/* ---- input that is left lying after a reply-less callback ---- */

/* Consumes only what ends in '.', and answers nothing until told. */
static size_t whole_sentences(netsrv_conn *c, const void *data, size_t n) {
    const char *text = data;
    if (text[n - 1] != '.') {
        return 0;
    }
    netsrv_send(c, data, n);
    return n;
}

static void kept_after_plain(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = whole_sentences;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    for (int i = 0; i < 3; i++) {
        CHECK(peer_say(fd, "whole.") && peer_gets(fd, "whole."));
    }
    CHECK(peer_say(fd, "be"));
    CHECK_WITHIN(5000, rig_total(s).bytes_in == 20);
    CHECK(peer_say(fd, "gin"));
    CHECK_WITHIN(5000, rig_total(s).bytes_in == 23);
    CHECK(peer_say(fd, "ning.") && peer_gets(fd, "beginning."));
    close(fd);
    rig_stop(s, 1000);
}

/* ---- pausing another connection whose event is in the same batch ---- */

static netsrv_conn *pair[2];
static atomic_uint pair_count;
static atomic_int paused_one;
static atomic_uint shown_while_paused;
static atomic_bool hold_loop;
static atomic_bool loop_held;

static void remember_pair(netsrv_conn *c) {
    rig_on_open(c);
    const unsigned i = atomic_fetch_add(&pair_count, 1);
    if (i < 2) {
        pair[i] = c;
    }
}

static size_t pause_the_other(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    const int me = c == pair[0] ? 0 : 1;
    if (atomic_load(&paused_one) == me) {
        atomic_fetch_add(&shown_while_paused, 1);
    } else if (atomic_load(&paused_one) < 0) {
        atomic_store(&paused_one, 1 - me);
        netsrv_pause(pair[1 - me]);
    }
    return n;
}

static void hold_here(netsrv_server *s, unsigned worker, void *arg) {
    (void)s;
    (void)worker;
    (void)arg;
    atomic_store(&loop_held, true);
    while (atomic_load(&hold_loop)) {
        check_nap();
    }
    atomic_store(&loop_held, false);
}

static void pause_in_a_batch(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    int fd[2];
    cfg.on_open = remember_pair;
    cfg.on_data = pause_the_other;
    atomic_store(&pair_count, 0);
    atomic_store(&paused_one, -1);
    atomic_store(&shown_while_paused, 0);
    atomic_store(&hold_loop, true);
    netsrv_server *s = rig_start(&cfg);
    for (unsigned i = 0; i < 2; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK_WITHIN(5000, rig_opens() == i + 1);
    }
    CHECK_EQ(netsrv_post(s, 0, hold_here, NULL), NETSRV_OK);
    CHECK(peer_say(fd[0], "1") && peer_say(fd[1], "2"));
    atomic_store(&hold_loop, false);
    CHECK_WITHIN(5000, rig_total(s).bytes_in >= 1);
    rig_poke(s);
    rig_poke(s);
    CHECK_EQ(atomic_load(&shown_while_paused), 0);
    close(fd[0]);
    close(fd[1]);
    rig_stop(s, 0);
}

/* ---- stops ---- */

static netsrv_server *restarting;
static atomic_bool stop_on_listen;

static void stop_when_listening(void *user, netsrv_log_level level, const char *text) {
    rig_log(user, level, text);
    if (atomic_load(&stop_on_listen) && strncmp(text, "listening", 9) == 0) {
        netsrv_stop(restarting, 0);
    }
}

/* An interrupted wait does not count as the look at the input that came before a stop. */
static void interrupted_at_a_stop(netsrv_backend b) {
    const char *const wait_name = b == NETSRV_BACKEND_POLL       ? "poll"
                                  : b == NETSRV_BACKEND_IO_URING ? "io_uring_enter"
                                                                 : "epoll_wait";
    netsrv_config cfg = rig_config(b, 1);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "a") && peer_gets(fd, "a"));
    atomic_store(&hold_loop, true);
    CHECK_EQ(netsrv_post(s, 0, hold_here, NULL), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&loop_held));
    CHECK(peer_say(fd, "b"));
    netsrv_stop(s, 30000);
    seam_fail_next(wait_name, EINTR, 5);
    atomic_store(&hold_loop, false);
    CHECK(peer_gets(fd, "b"));
    seam_fail_stop();
    close(fd);
    rig_stop(s, 0);
}

/* A stop that comes while netsrv_start is at work is not lost. */
static void stop_during_a_start(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.on_log = stop_when_listening;
    atomic_store(&stop_on_listen, false);
    netsrv_server *s = rig_start(&cfg);
    restarting = s;
    netsrv_stop(s, 0);
    CHECK_EQ(netsrv_wait(s), NETSRV_OK);
    atomic_store(&stop_on_listen, true);
    CHECK_EQ(netsrv_start(s, NULL), NETSRV_OK);
    rig_end(s);
}

/* A worker that is held up in a callback does not keep the others from closing in order. */
static void one_worker_held(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.accept = NETSRV_ACCEPT_SHARED;
    cfg.place = NETSRV_PLACE_ROUND_ROBIN;
    cfg.stall_ms = NETSRV_OFF;
    atomic_store(&hold_loop, true);
    netsrv_server *s = rig_start(&cfg);
    int fd[2];
    netsrv_stats one;
    for (unsigned i = 0; i < 2; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd[i], "x") && peer_gets(fd[i], "x"));
    }
    CHECK(netsrv_get_stats(s, 0, &one) == NETSRV_OK && one.live == 1);
    CHECK_EQ(netsrv_post(s, 1, hold_here, NULL), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&loop_held));
    netsrv_stop(s, 20000);
    /* One of the two is on the free worker, and gets its FIN while the other worker is held. */
    struct pollfd ends[2] = {{fd[0], POLLIN, 0}, {fd[1], POLLIN, 0}};
    CHECK_EQ(poll(ends, 2, (int)check_scaled(10000)), 1);
    const int free_one = ends[0].revents != 0 ? 0 : 1;
    CHECK_EQ(peer_end(fd[free_one]), PEER_FIN);
    atomic_store(&hold_loop, false);
    CHECK_EQ(peer_end(fd[1 - free_one]), PEER_FIN);
    close(fd[0]);
    close(fd[1]);
    rig_end(s);
}

static void post_again(netsrv_server *s, unsigned worker, void *arg) {
    netsrv_post(s, worker, post_again, arg);
}

/* A call that posts itself again does not use up the grace time of a server without clients. */
static void self_posting_call(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 1);
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(netsrv_post(s, 0, post_again, NULL), NETSRV_OK);
    netsrv_stop(s, NETSRV_OFF);
    CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(10000)), NETSRV_OK);
    rig_end(s);
}

/* ---- limits ---- */

/* Below max_conns nobody is refused, however many threads look at the listener at once. */
static void nobody_refused_below(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 4);
    cfg.accept = NETSRV_ACCEPT_SHARED;
    cfg.overflow = NETSRV_OVERFLOW_REJECT;
    cfg.max_conns = 2;
    netsrv_server *s = rig_start(&cfg);
    const int held = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(held, "x") && peer_gets(held, "x"));
    for (int i = 0; i < 150; i++) {
        CHECK_WITHIN(5000, rig_total(s).live == 1);
        CHECK(peer_served(netsrv_get_port(s, 0)));
    }
    CHECK_EQ(rig_total(s).refused, 0);
    close(held);
    rig_stop(s, 0);
}

static atomic_int accept_errno;

static int fail_accept(const char *name, unsigned long nth) {
    (void)nth;
    return strcmp(name, "accept4") == 0 ? atomic_load(&accept_errno) : 0;
}

/* accept(2) fails for ever while all but one place is taken: nobody wakes anybody for nothing. */
static void paused_do_not_wake_each_other(netsrv_backend b, int sys_errno) {
    netsrv_config cfg = rig_config(b, 8);
    cfg.accept = NETSRV_ACCEPT_SHARED;
    cfg.max_conns = 1;
    netsrv_server *s = rig_start(&cfg);
    atomic_store(&accept_errno, sys_errno);
    SEAM_SET(decider, fail_accept);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_total(s).pauses >= 1);
    const uint64_t before = rig_total(s).pauses;
    const uint64_t turns = rig_total(s).turns;
    const uint64_t began = check_now_ms();
    poll(NULL, 0, 1000);
    const uint64_t turns_after = rig_total(s).turns;
    const uint64_t after = rig_total(s).pauses;
    const uint64_t took_ms = check_now_ms() - began; /* more than that, where others are busy */
    CHECK_LE((turns_after - turns) * 1000, 8 * 100 * took_ms);
    CHECK_LE((after - before) * 1000, 8 * 50 * took_ms);
    atomic_store(&accept_errno, 0);
    CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
    close(fd);
    rig_stop(s, 0);
    seam_reset(0);
}

static void descriptors_gone(netsrv_backend b) {
    paused_do_not_wake_each_other(b, EMFILE);
}

static void accept_forbidden(netsrv_backend b) {
    paused_do_not_wake_each_other(b, EACCES);
}

/* A reply that is lent is bounded by queue_max_bytes as well. With completions, input of the same
 * turn may follow it before its fate is known, and is kept in memory that grows by doubling. */
static void lent_reply_is_bounded(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    static char big[4 << 20];
    cfg.queue_max_bytes = 100;
    cfg.recv_buffer_bytes = 1 << 20;
    const unsigned long kept = b == NETSRV_BACKEND_IO_URING ? 2 * rig_uring_turn(&cfg) : 0;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect_small(netsrv_get_port(s, 0));
    const uint64_t end = check_now_ms() + check_scaled(10000);
    while (rig_closes() == 0 && check_now_ms() < end) {
        const ssize_t sent = send(fd, big, sizeof big, MSG_NOSIGNAL | MSG_DONTWAIT);
        CHECK_LE(rig_total(s).queued_bytes, 8192 + kept);
        if (sent < 0) {
            check_nap();
        }
    }
    CHECK_WITHIN(10000, rig_reason(NETSRV_CLOSE_QUEUE_FULL) == 1);
    close(fd);
    rig_stop(s, 0);
}

static void ignore_frame(netsrv_conn *c, const void *data, size_t n) {
    (void)c;
    (void)data;
    (void)n;
}

/* Unfinished lines count in what the whole server may hold. */
static void unfinished_lines_are_bounded(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    static char half[300 << 10];
    enum { CLIENTS = 12 };
    int fd[CLIENTS];
    cfg.on_data = NULL;
    cfg.on_frame = ignore_frame;
    cfg.framing = NETSRV_FRAMING_LINE;
    cfg.server_queue_max_bytes = 2 << 20;
    memset(half, 'x', sizeof half);
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < CLIENTS; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        peer_send(fd[i], half, sizeof half);
    }
    CHECK_WITHIN(10000, rig_reason(NETSRV_CLOSE_SERVER_FULL) >= 1);
    /* What is refused is counted for a moment. */
    CHECK_WITHIN(5000, rig_total(s).queued_bytes <= 2 << 20);
    for (int i = 0; i < CLIENTS; i++) {
        close(fd[i]);
    }
    CHECK_WITHIN(10000, rig_total(s).live == 0);
    CHECK_EQ(rig_total(s).queued_bytes, 0);
    rig_stop(s, 0);
}

/* ---- a reset that a child's duplicate must not hold back ---- */

static size_t abort_at_once(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    netsrv_abort(c);
    return n;
}

static void abort_with_a_duplicate(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    int hold[2];
    cfg.on_data = abort_at_once;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 1);
    REQUIRE(pipe(hold) == 0);
    const pid_t child = fork();
    if (child == 0) {
        char byte;
        close(hold[1]);
        close(fd);
        _exit(read(hold[0], &byte, 1) == 0 ? 0 : 1);
    }
    close(hold[0]);
    CHECK(peer_say(fd, "x"));
    CHECK_EQ(peer_end(fd), ECONNRESET);
    close(hold[1]);
    CHECK_EQ(waitpid(child, NULL, 0), child);
    close(fd);
    rig_stop(s, 0);
}

static void all(netsrv_backend b) {
    CASE("kept input after a plain connection", kept_after_plain(b));
    CASE("pausing another one in the same batch", pause_in_a_batch(b));
    CASE("an interrupted wait at a stop", interrupted_at_a_stop(b));
    CASE("a stop during a start", stop_during_a_start(b));
    CASE("a stop with one worker held up", one_worker_held(b));
    CASE("a stop with a call that posts itself", self_posting_call(b));
    CASE("nobody is refused below the limit", nobody_refused_below(b));
    CASE("paused by EMFILE below the limit", descriptors_gone(b));
    CASE("accept is forbidden", accept_forbidden(b));
    CASE("a lent reply is bounded", lent_reply_is_bounded(b));
    CASE("unfinished lines are bounded", unfinished_lines_are_bounded(b));
    CASE("abort while a child holds a duplicate", abort_with_a_duplicate(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
