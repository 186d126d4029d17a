/* uring.c: what only the io_uring backend has: being refused, kernels that lack something, an empty
 * pool of buffers, more completions than the ring holds. */
#define NETSRV__PREFERS_IO_URING 1 /* so that auto has to say why it does without */
#include "../seam.h"

#include "rig.h"

#ifdef __linux__

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define RING NETSRV_BACKEND_IO_URING

/* ---- refused --------------------------------------------------------------------------------- */

static netsrv_result creates(netsrv_backend b, netsrv_error *error) {
    netsrv_config cfg = rig_config(b, 1);
    netsrv_server *s = NULL;
    const netsrv_result result = netsrv_create(&s, &cfg, error);
    CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
    return result;
}

/* Asked for by name, it is refused with the reason; auto takes epoll, for that reason. */
static void says(const char *why) {
    netsrv_config cfg = rig_config(NETSRV_BACKEND_AUTO, 1);
    netsrv_server *s = NULL;
    netsrv_error error;
    CHECK_EQ(creates(RING, &error), NETSRV_UNAVAILABLE);
    CHECK(strstr(error.text, "io_uring") != NULL);
    CHECK(strstr(error.text, why) != NULL);
    REQUIRE(netsrv_create(&s, &cfg, &error) == NETSRV_OK);
    netsrv_choice choice;
    REQUIRE(netsrv_get_choice(s, 0, &choice));
    CHECK_STR(choice.field, "backend");
    CHECK_STR(choice.taken, "epoll");
    CHECK(strstr(choice.why, "io_uring") != NULL);
    CHECK(strstr(choice.why, why) != NULL);
    CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
}

static void switched_off(void) {
    setenv("NETSRV_NO_IO_URING", "1", 1);
    says("NETSRV_NO_IO_URING");
    setenv("NETSRV_NO_IO_URING", "0", 1);
    if (rig_has(RING)) {
        netsrv_error error;
        CHECK_EQ(creates(RING, &error), NETSRV_OK);
    }
    unsetenv("NETSRV_NO_IO_URING");
}

static void refused_by_the_kernel(void) {
    const struct {
        int err;
        const char *why;
    } cases[] = {{EPERM, "seccomp"}, {ENOSYS, "kernel"}, {EINVAL, "6.1"}, {ENOMEM, "memory"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        seam_reset(0);
        seam_fail_next("io_uring_setup", cases[i].err, SEAM_FOREVER);
        says(cases[i].why);
        seam_fail_stop();
    }
    seam_reset(0);
}

/* In a child of its own, since a filter is for ever. */
static void forbid(int err) {
    struct sock_filter steps[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 425, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)err),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog filter = {sizeof steps / sizeof *steps, steps};
    REQUIRE(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    REQUIRE(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
}

static void forbidden(int err) {
    const pid_t pid = fork();
    if (pid == 0) {
        netsrv_config cfg = rig_config(NETSRV_BACKEND_AUTO, 1);
        forbid(err);
        says("seccomp");
        netsrv_server *s = rig_start(&cfg);
        CHECK(peer_served(netsrv_get_port(s, 0)));
        rig_stop(s, 1000);
        _exit(atomic_load(&check_state.failures) != 0);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    CHECK_EQ(status, 0);
}

/* ---- served ---------------------------------------------------------------------------------- */

static void *talk_out(void *arg) {
    const int *fds = arg;
    static unsigned char bytes[1 << 20];
    peer_fill(bytes, sizeof bytes, 9);
    peer_send(fds[0], bytes, sizeof bytes);
    shutdown(fds[0], SHUT_WR);
    return NULL;
}

/* A megabyte through the server, compared byte by byte. */
static void megabyte(uint16_t port) {
    static unsigned char want[1 << 20];
    static unsigned char have[1 << 20];
    pthread_t t;
    int fd = peer_connect(port);
    peer_fill(want, sizeof want, 9);
    pthread_create(&t, NULL, talk_out, &fd);
    CHECK_EQ(peer_recv(fd, have, sizeof have), sizeof have);
    CHECK(memcmp(want, have, sizeof have) == 0);
    CHECK_EQ(peer_end(fd), PEER_FIN);
    pthread_join(t, NULL);
    close(fd);
}

static int no_incremental(const char *name, unsigned long nth) {
    return strcmp(name, "io_uring_register") == 0 && nth == 2 ? EINVAL : 0;
}

static int no_register_but_buffers(const char *name, unsigned long nth) {
    return strcmp(name, "io_uring_register") == 0 && nth == 1 ? EINVAL : 0;
}

static int no_limit(const char *name, unsigned long nth) {
    (void)nth;
    return strcmp(name, "recv_limit") == 0 ? EINVAL : 0;
}

static void old_kernel(seam_decider lacks) {
    netsrv_config cfg = rig_config(RING, 1);
    seam_reset(0);
    SEAM_SET(decider, lacks);
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < 5; i++) {
        megabyte(netsrv_get_port(s, 0));
    }
    rig_stop(s, 1000);
    seam_reset(0);
}

static atomic_bool hold;
static atomic_bool held;

static void hold_worker(netsrv_server *s, unsigned worker, void *arg) {
    (void)s;
    (void)worker;
    (void)arg;
    atomic_store(&held, true);
    CHECK_WITHIN(10000, !atomic_load(&hold));
}

static void hold_on(netsrv_server *s) {
    atomic_store(&hold, true);
    atomic_store(&held, false);
    CHECK_EQ(netsrv_post(s, 0, hold_worker, NULL), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&held));
}

/* What the kernel does not know is learned from many refusals at once. */
static void all_at_once(seam_decider lacks) {
    int fd[30];
    netsrv_config cfg = rig_config(RING, 1);
    seam_reset(0);
    SEAM_SET(decider, lacks);
    netsrv_server *s = rig_start(&cfg);
    hold_on(s);
    for (int i = 0; i < 30; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd[i], "all at once"));
    }
    atomic_store(&hold, false);
    for (int i = 0; i < 30; i++) {
        CHECK(peer_gets(fd[i], "all at once"));
        close(fd[i]);
    }
    rig_stop(s, 1000);
    seam_reset(0);
}

/* Many more clients than there are buffers, or places for completions, speak while the worker is
 * busy: all are answered. */
static void crowd(seam_decider lacks, unsigned long ring_size, int clients) {
    static int fd[1200];
    static unsigned char bytes[6000];
    static unsigned char back[6000];
    netsrv_config cfg = rig_config(RING, 1);
    cfg.recv_buffer_bytes = 4096;
    seam_reset(0);
    SEAM_SET(decider, lacks);
    SEAM_SET(ring_size, ring_size);
    netsrv_server *s = rig_start(&cfg);
    CHECK_WITHIN(5000, seam_count("io_uring_enter") > 0);
    SEAM_SET(ring_size, 0);
    for (int i = 0; i < clients; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd[i], "a") && peer_gets(fd[i], "a"));
    }
    for (int round = 0; round < 3; round++) {
        hold_on(s);
        for (int i = 0; i < clients; i++) {
            peer_fill(bytes, sizeof bytes, (unsigned)i);
            CHECK(peer_send(fd[i], bytes, sizeof bytes));
        }
        atomic_store(&hold, false);
        for (int i = 0; i < clients; i++) {
            peer_fill(bytes, sizeof bytes, (unsigned)i);
            CHECK_EQ(peer_recv(fd[i], back, sizeof back), sizeof back);
            CHECK(memcmp(bytes, back, sizeof back) == 0);
        }
    }
    CHECK(rig_rests(200));
    for (int i = 0; i < clients; i++) {
        close(fd[i]);
    }
    rig_stop(s, 1000);
    seam_reset(0);
}

/* Requests that last are ended when completions find no place, or their limit is reached: none of
 * them stays so. Connections come and go all the while, and a stop finds them in every state. */
static void small_ring(unsigned grace_ms) {
    int fd[60];
    netsrv_config cfg = rig_config(RING, 2);
    cfg.recv_buffer_bytes = 4096;
    cfg.linger_timeout_ms = 100;
    seam_reset(5);
    SEAM_SET(ring_size, 8);
    netsrv_server *s = rig_start(&cfg);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 60; i++) {
            fd[i] = peer_connect(netsrv_get_port(s, 0));
            CHECK(peer_say(fd[i], "hello, "));
        }
        megabyte(netsrv_get_port(s, 0));
        for (int i = 0; i < 60; i++) {
            CHECK(peer_say(fd[i], "again"));
            CHECK(peer_gets(fd[i], "hello, again"));
        }
        for (int i = 0; i < 60; i++) {
            if (round < 2 || i % 3 == 0) {
                i % 2 == 0 ? peer_reset(fd[i]) : (void)close(fd[i]);
                fd[i] = -1;
            }
        }
    }
    rig_stop(s, grace_ms);
    for (int i = 0; i < 60; i++) {
        if (fd[i] >= 0) {
            close(fd[i]);
        }
    }
    seam_reset(0);
}

/* ---- lost completions ------------------------------------------------------------------------ */

static atomic_bool over;

/* Megabytes until the end; a connection that ends early has echoed no wrong byte. */
static void *exchange(void *arg) {
    const uint16_t port = *(const uint16_t *)arg;
    unsigned char want[3000];
    unsigned char have[sizeof want];
    peer_fill(want, sizeof want, 5);
    while (!atomic_load(&over)) {
        const int fd = peer_connect(port);
        for (int i = 0; i < 200; i++) {
            if (send(fd, want, sizeof want, MSG_NOSIGNAL) != (ssize_t)sizeof want) {
                break;
            }
            const size_t n = peer_recv(fd, have, sizeof have);
            CHECK(memcmp(want, have, n) == 0);
            if (n != sizeof have) {
                break;
            }
        }
        close(fd);
    }
    return NULL;
}

static atomic_bool lose;
static atomic_uint refuse; /* so many attempts to set up buffers */

static int loses(const char *name, unsigned long nth) {
    (void)nth;
    if (strcmp(name, "ring_lost") == 0) {
        return atomic_exchange(&lose, false) ? ENOMEM : 0;
    }
    if (strcmp(name, "io_uring_register") == 0 && atomic_load(&refuse) != 0) {
        atomic_fetch_sub(&refuse, 1);
        return ENOMEM;
    }
    return 0;
}

/* Again when it came to a worker that was still at the last loss. */
static bool lost_is_told(unsigned long before) {
    if (rig_log_lines(NETSRV_LOG_ERROR) > before) {
        return true;
    }
    atomic_store(&lose, true);
    return false;
}

/* The kernel drops completions, also when buffers cannot be set up anew at once: those connections
 * end, and everything else goes on. */
static void lost_completions(unsigned refusals) {
    const netsrv_config cfg = rig_config(RING, 2);
    pthread_t t[4];
    seam_reset(0);
    atomic_store(&over, false);
    atomic_store(&lose, false);
    atomic_store(&refuse, 0);
    netsrv_server *s = rig_start(&cfg);
    SEAM_SET(decider, loses);
    uint16_t port = netsrv_get_port(s, 0);
    for (int i = 0; i < 4; i++) {
        pthread_create(&t[i], NULL, exchange, &port);
    }
    for (int i = 0; i < 8; i++) {
        const unsigned long opens = rig_opens();
        CHECK_WITHIN(5000, rig_opens() > opens);
        const unsigned long told = rig_log_lines(NETSRV_LOG_ERROR);
        atomic_store(&refuse, refusals);
        CHECK_WITHIN(5000, lost_is_told(told));
        CHECK_WITHIN(5000, atomic_load(&refuse) == 0);
    }
    atomic_store(&lose, false);
    atomic_store(&over, true);
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
    }
    CHECK_WITHIN(5000, rig_opens() == rig_closes());
    SEAM_SET(decider, NULL);
    for (int i = 0; i < 5; i++) {
        megabyte(port);
    }
    rig_stop(s, 1000);
    seam_reset(0);
}

/* ---- a pause --------------------------------------------------------------------------------- */

static atomic_ullong paused_id;
static atomic_ullong shown;

static size_t pause_at_once(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    if (atomic_exchange(&paused_id, netsrv_get_id(c)) == 0) {
        netsrv_pause(c);
        return 0;
    }
    rig_on_data(c, data, n);
    atomic_fetch_add(&shown, n);
    return n;
}

static void resume(netsrv_server *s, unsigned worker, void *arg) {
    netsrv_conn *c = netsrv_find(s, atomic_load(&paused_id));
    (void)worker;
    (void)arg;
    if (c != NULL) {
        netsrv_resume(c);
    }
}

/* What comes after a pause is bounded, and all of it is there afterwards, in order. */
static void pause_is_bounded(seam_decider lacks) {
    static unsigned char back[1 << 20];
    static unsigned char want[1 << 20];
    netsrv_config cfg = rig_config(RING, 1);
    pthread_t t;
    cfg.on_data = pause_at_once;
    cfg.input_max_bytes = 16 << 20;
    atomic_store(&paused_id, 0);
    atomic_store(&shown, 0);
    seam_reset(0);
    SEAM_SET(decider, lacks);
    netsrv_server *s = rig_start(&cfg);
    const size_t turn = lacks == NULL ? rig_uring_turn(netsrv_get_config(s)) : 2 << 20;
    int fd = peer_connect(netsrv_get_port(s, 0));
    peer_fill(want, sizeof want, 9);
    pthread_create(&t, NULL, talk_out, &fd);
    CHECK_WITHIN(5000, atomic_load(&paused_id) != 0);
    CHECK(rig_rests(100));
    CHECK_LE(rig_total(s).bytes_in, turn);
    CHECK_EQ(netsrv_post(s, 0, resume, NULL), NETSRV_OK);
    CHECK_EQ(peer_recv(fd, back, sizeof back), sizeof back);
    CHECK(memcmp(back, want, sizeof back) == 0);
    CHECK_EQ(peer_end(fd), PEER_FIN);
    pthread_join(t, NULL);
    close(fd);
    CHECK_EQ(atomic_load(&shown), sizeof want);
    rig_stop(s, 1000);
    seam_reset(0);
}

static atomic_uint pauses;

static size_t take_and_pause(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    netsrv_pause(c);
    atomic_store(&paused_id, netsrv_get_id(c));
    atomic_fetch_add(&shown, n);
    atomic_fetch_add(&pauses, 1);
    return n;
}

/* From the second pause of a connection on, each is followed by two turns' bytes at most, on
 * every kernel. */
static void later_pauses(seam_decider lacks) {
    netsrv_config cfg = rig_config(RING, 1);
    pthread_t t;
    cfg.on_data = take_and_pause;
    cfg.bytes_per_turn = 20000;
    cfg.input_max_bytes = 16 << 20;
    atomic_store(&shown, 0);
    atomic_store(&pauses, 0);
    seam_reset(0);
    SEAM_SET(decider, lacks);
    netsrv_server *s = rig_start(&cfg);
    int fd = peer_connect(netsrv_get_port(s, 0));
    pthread_create(&t, NULL, talk_out, &fd);
    unsigned long long before = 0;
    for (unsigned i = 1; atomic_load(&shown) < 1 << 20; i++) {
        CHECK_WITHIN(5000, atomic_load(&pauses) >= i);
        rig_poke(s);
        CHECK(rig_rests(i < 4 ? 50 : 1));
        const unsigned long long now = rig_total(s).bytes_in;
        CHECK_LE(now - before, i == 1 ? 2 << 20 : 2 * cfg.bytes_per_turn);
        before = now;
        CHECK_EQ(netsrv_post(s, 0, resume, NULL), NETSRV_OK);
    }
    CHECK_EQ(netsrv_post(s, 0, resume, NULL), NETSRV_OK);
    CHECK_EQ(peer_end(fd), PEER_FIN);
    pthread_join(t, NULL);
    close(fd);
    CHECK_EQ(atomic_load(&shown), 1 << 20);
    rig_stop(s, 1000);
    seam_reset(0);
}

/* Those who never read hold no buffer: the others are served as ever. */
static void never_readers(void) {
    static char bytes[400000];
    int fd[100];
    netsrv_config cfg = rig_config(RING, 1);
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < 100; i++) {
        fd[i] = peer_connect_small(netsrv_get_port(s, 0));
        (void)!send(fd[i], bytes, sizeof bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    for (int i = 0; i < 20; i++) {
        megabyte(netsrv_get_port(s, 0));
    }
    for (int i = 0; i < 100; i++) {
        peer_reset(fd[i]);
    }
    rig_stop(s, 0);
}

static size_t answer_questions(netsrv_conn *c, const void *data, size_t n) {
    const char *last = (const char *)data + n - 1;
    if (*last == '?') {
        netsrv_send(c, data, n);
    }
    return n;
}

/* The end of the stream, or a reset, right behind the first bytes: at some of them the kernel takes
 * both for one event. None is forgotten, and a reset leaves no connection behind. */
static void ends_at_once(int family) {
    netsrv_config cfg = rig_config(RING, 1);
    char path[64];
    char spec[80];
    snprintf(path, sizeof path, "@netsrv-ends-%ld", (long)getpid());
    snprintf(spec, sizeof spec, "unix:%s", path);
    cfg.listen[1] = spec;
    cfg.on_data = answer_questions;
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < 200; i++) {
        const int fd = family == AF_UNIX ? peer_connect_unix(path)
                                         : peer_connect(netsrv_get_port(s, 0));
        if (i % 2 == 0) {
            CHECK(peer_say(fd, "the end"));
            peer_reset(fd);
            continue;
        }
        CHECK(peer_say(fd, "the end?"));
        CHECK_EQ(shutdown(fd, SHUT_WR), 0);
        CHECK(peer_gets(fd, "the end?"));
        CHECK_EQ(peer_end(fd), PEER_FIN);
        close(fd);
    }
    CHECK_WITHIN(10000, rig_total(s).accepted == 200 && rig_total(s).live == 0);
    rig_stop(s, 1000);
}

/* Both ends of a thousand connections are here. */
static void allow_descriptors(void) {
    struct rlimit limit;
    REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_cur < 4096) {
        limit.rlim_cur = limit.rlim_max < 4096 ? limit.rlim_max : 4096;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void served(void) {
    allow_descriptors();
    CASE("no incremental buffers", old_kernel(no_incremental));
    CASE("no registered ring", old_kernel(no_register_but_buffers));
    CASE("no limit for a request", old_kernel(no_limit));
    CASE("no limit for many requests", all_at_once(no_limit));
    CASE("more clients than small buffers", crowd(no_incremental, 0, 1000));
    CASE("more input than the pool", crowd(NULL, 0, 1000));
    CASE("more clients than completions", crowd(NULL, 8, 300));
    CASE("small rings, an orderly stop", small_ring(2000));
    CASE("small rings, a sudden stop", small_ring(0));
    CASE("what comes after a pause", pause_is_bounded(NULL));
    CASE("what comes after a pause, without a limit", pause_is_bounded(no_limit));
    CASE("lost completions", lost_completions(0));
    CASE("lost completions, and no new buffers", lost_completions(3));
    CASE("what comes after later pauses", later_pauses(NULL));
    CASE("what comes after later pauses, without a limit", later_pauses(no_limit));
    CASE("never-reading clients", never_readers());
    CASE("ends at once", ends_at_once(AF_INET));
    CASE("ends at once, on a Unix socket", ends_at_once(AF_UNIX));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    check_state.variant = "io_uring";
    CASE("switched off", switched_off());
    CASE("refused by the kernel", refused_by_the_kernel());
    if (rig_has(RING)) {
        CASE("forbidden", forbidden(EPERM));
        CASE("denied", forbidden(ENOSYS));
        served();
    } else {
        printf("not checked: this system refuses io_uring\n");
    }
    return check_end();
}

#else

int main(int argc, char **argv) {
    check_begin(argc, argv);
    CASE("io_uring", SKIP("Linux only"));
    return check_end();
}

#endif
