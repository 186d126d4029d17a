/* rig.h: a server under test with counting callbacks, and blocking clients with deadlines.
 * Include it after seam.h (or after netsrv.h). */
#ifndef RIG_H
#define RIG_H

#include "check.h"
#include "port.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/utsname.h>

#define PEER_DEADLINE_MS 10000

/* ---- order and rest -------------------------------------------------------------------------- */

static inline void rig_cross_wire(void) {
#ifdef SEAM_H
    seam_cross_wire();
#endif
}

#ifdef SEAM_H
/* The process comes to rest: what is still being done may be finished first, a spin never is. Calls
 * tell it on a slow machine as well; processor time is there for a spin without any. */
static inline bool rig_rests(int ms) {
    for (int i = 0; i < 20; i++) {
        const unsigned long calls = SEAM_GET(total);
        if (check_cpu_percent(ms) < 70 && SEAM_GET(total) - calls <= 20 + (unsigned long)ms / 10) {
            return true;
        }
    }
    return false;
}
#endif

/* ---- a log that can be asked ----------------------------------------------------------------- */

#define RIG_LOG_BYTES 65536

static struct {
    pthread_mutex_t lock;
    char text[RIG_LOG_BYTES];
    size_t used;
    unsigned long lines[NETSRV_LOG_DEBUG + 1];
} rig_log_book = { .lock = PTHREAD_MUTEX_INITIALIZER };

static inline void rig_log(void *user, netsrv_log_level level, const char *text) {
    (void)user;
    pthread_mutex_lock(&rig_log_book.lock);
    CHECK(level <= NETSRV_LOG_DEBUG);
    CHECK(text != NULL && strchr(text, '\n') == NULL);
    rig_log_book.lines[level]++;
    const size_t room = RIG_LOG_BYTES - rig_log_book.used;
    char *at = rig_log_book.text + rig_log_book.used;
    const int n = snprintf(at, room, "%d %s\n", (int)level, text);
    if (n > 0 && (size_t)n < room) {
        rig_log_book.used += (size_t)n;
    }
    pthread_mutex_unlock(&rig_log_book.lock);
}

static inline void rig_log_clear(void) {
    pthread_mutex_lock(&rig_log_book.lock);
    memset(rig_log_book.text, 0, sizeof rig_log_book.text);
    memset(rig_log_book.lines, 0, sizeof rig_log_book.lines);
    rig_log_book.used = 0;
    pthread_mutex_unlock(&rig_log_book.lock);
}

static inline bool rig_log_has(const char *text) {
    pthread_mutex_lock(&rig_log_book.lock);
    const bool has = strstr(rig_log_book.text, text) != NULL;
    pthread_mutex_unlock(&rig_log_book.lock);
    return has;
}

static inline unsigned long rig_log_lines(netsrv_log_level level) {
    pthread_mutex_lock(&rig_log_book.lock);
    const unsigned long n = rig_log_book.lines[level];
    pthread_mutex_unlock(&rig_log_book.lock);
    return n;
}

/* ---- callbacks that count -------------------------------------------------------------------- */

static struct {
    atomic_ulong opens;
    atomic_ulong closes;
    atomic_ulong eofs;
    atomic_ulong drains;
    atomic_ulong bytes;
    atomic_ulong reasons[NETSRV_CLOSE_COUNT];
    atomic_int last_errno;
} rig_seen;

static inline void rig_seen_clear(void) {
    atomic_store(&rig_seen.opens, 0);
    atomic_store(&rig_seen.closes, 0);
    atomic_store(&rig_seen.eofs, 0);
    atomic_store(&rig_seen.drains, 0);
    atomic_store(&rig_seen.bytes, 0);
    for (int i = 0; i < NETSRV_CLOSE_COUNT; i++) {
        atomic_store(&rig_seen.reasons[i], 0);
    }
    atomic_store(&rig_seen.last_errno, 0);
}

static inline void rig_on_open(netsrv_conn *c) {
    (void)c;
    atomic_fetch_add(&rig_seen.opens, 1);
}

static inline size_t rig_on_data(netsrv_conn *c, const void *data, size_t n) {
    atomic_fetch_add(&rig_seen.bytes, n);
    netsrv_send(c, data, n);
    return n;
}

static inline void rig_on_eof(netsrv_conn *c) {
    (void)c;
    atomic_fetch_add(&rig_seen.eofs, 1);
}

static inline void rig_on_drain(netsrv_conn *c) {
    (void)c;
    atomic_fetch_add(&rig_seen.drains, 1);
}

static inline void rig_on_close(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    CHECK((unsigned)reason < NETSRV_CLOSE_COUNT);
    CHECK((reason == NETSRV_CLOSE_ERROR) == (sys_errno != 0));
    CHECK_EQ(netsrv_send(c, "x", 1), NETSRV_GONE);
    atomic_fetch_add(&rig_seen.reasons[reason], 1);
    atomic_store(&rig_seen.last_errno, sys_errno);
    atomic_fetch_add(&rig_seen.closes, 1);
}

static inline unsigned long rig_reason(netsrv_close_reason reason) {
    return atomic_load(&rig_seen.reasons[reason]);
}

static inline unsigned long rig_closes(void) {
    return atomic_load(&rig_seen.closes);
}

static inline unsigned long rig_opens(void) {
    return atomic_load(&rig_seen.opens);
}

/* ---- the server ------------------------------------------------------------------------------ */

/* The network 127.A.B.0 of this process, where all of 127/8 is the loopback: who comes late to a
 * port that was freed meets no other test's server, and no other test takes a port meanwhile. */
static inline uint32_t rig_network(void) {
#ifdef __linux__
    static _Atomic uint32_t network; /* a forked child keeps its parent's */
    uint32_t none = 0;
    atomic_compare_exchange_strong(&network, &none, 256 * (1 + (uint32_t)getpid() % 65000));
    return 0x7f000000u + atomic_load(&network);
#else
    return 0x7f000000u;
#endif
}

/* Where the servers of this process listen. */
static inline const char *rig_host(void) {
    static _Thread_local char text[INET_ADDRSTRLEN];
    const struct in_addr a = { htonl(rig_network() + 1) };
    return inet_ntop(AF_INET, &a, text, sizeof text);
}

static inline const char *rig_any_port(void) {
    static _Thread_local char text[INET_ADDRSTRLEN + 2];
    snprintf(text, sizeof text, "%s:0", rig_host());
    return text;
}

/* An echo server on a free port of the loopback; tests change what they are about. */
static inline netsrv_config rig_config(netsrv_backend backend, unsigned workers) {
    netsrv_config cfg = { 0 };
    cfg.listen[0] = rig_any_port();
    cfg.on_open = rig_on_open;
    cfg.on_data = rig_on_data;
    cfg.on_eof = rig_on_eof;
    cfg.on_drain = rig_on_drain;
    cfg.on_close = rig_on_close;
    cfg.on_log = rig_log;
    cfg.alloc = check_alloc;
    cfg.backend = backend;
    cfg.workers = workers;
    return cfg;
}

static inline netsrv_server *rig_start(const netsrv_config *cfg) {
    netsrv_server *s = NULL;
    netsrv_error error;
    rig_seen_clear();
    rig_log_clear();
    if (netsrv_create(&s, cfg, &error) != NETSRV_OK) {
        fprintf(stderr, "netsrv_create: %s\n", error.text);
    }
    REQUIRE(s != NULL);
    if (netsrv_start(s, &error) != NETSRV_OK) {
        fprintf(stderr, "netsrv_start: %s\n", error.text);
    }
    REQUIRE(error.result == NETSRV_OK);
    return s;
}

/* After the end nothing is live, travelling or queued, and whatever was opened was closed. */
static inline void rig_check_ended(netsrv_server *s) {
    netsrv_stats total;
    netsrv_get_total(s, &total);
    CHECK_EQ(total.live, 0);
    CHECK_EQ(total.travelling, 0);
    CHECK_EQ(total.queued_bytes, 0);
    CHECK_EQ(total.opened, total.closed);
    CHECK_EQ(rig_opens(), rig_closes());
}

static inline void rig_end(netsrv_server *s) {
    CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(20000)), NETSRV_OK);
    rig_check_ended(s);
    CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
}

static inline void rig_stop(netsrv_server *s, uint32_t grace_ms) {
    netsrv_stop(s, grace_ms);
    rig_end(s);
}

static inline netsrv_stats rig_total(netsrv_server *s) {
    netsrv_stats total;
    netsrv_get_total(s, &total);
    return total;
}

static inline void rig_nothing(netsrv_server *s, unsigned worker, void *done) {
    (void)s;
    (void)worker;
    atomic_fetch_add((atomic_ulong *)done, 1);
}

/* Lets every worker take a turn, so that it looks at the clock. */
static inline void rig_poke(netsrv_server *s) {
    atomic_ulong done = 0;
    const unsigned n = netsrv_get_config(s)->workers;
    for (unsigned i = 0; i < n; i++) {
        CHECK_EQ(netsrv_post(s, i, rig_nothing, &done), NETSRV_OK);
    }
    CHECK_WITHIN(10000, atomic_load(&done) == n);
}

/* Moves the clock, and lets every worker look at it. No turn may take the move for its own length:
 * what was stamped with its beginning would count from its end. So the clock ticks once before, and
 * two pokes see the end of all turns that began until then. */
static inline void rig_pass_time(netsrv_server *s, unsigned long ms) {
    SEAM_ADD(clock_ms, 1);
    rig_poke(s);
    rig_poke(s);
    SEAM_ADD(clock_ms, ms);
    rig_poke(s);
    rig_poke(s);
}

/* ---- blocking clients ------------------------------------------------------------------------ */

enum { PEER_FIN = 0, PEER_STUCK = -1 }; /* how a stream ended, else an errno */

static inline void peer_deadline(int fd, uint64_t ms) {
    const struct timeval t = { (time_t)(ms / 1000), (suseconds_t)(ms % 1000 * 1000) };
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
}

static inline struct sockaddr_in peer_loopback(uint8_t last, uint16_t port) {
    struct sockaddr_in a;
    memset(&a, 0, sizeof a);
    a.sin_family = AF_INET;
    a.sin_port = htons(port);
    a.sin_addr.s_addr = htonl(rig_network() + last);
    return a;
}

static inline int peer_socket(uint64_t deadline_ms) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int one = 1;
    if (fd >= 0) {
        peer_deadline(fd, deadline_ms);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    return fd;
}

/* The descriptor, or -1 and it is closed. */
static inline int peer_reach(int fd, uint16_t port) {
    const struct sockaddr_in target = peer_loopback(1, port);
    rig_cross_wire();
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&target, sizeof target) != 0) {
        const int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

/* From `from` of our network, or from any address if that is 0. -1 if it did not work. */
static inline int peer_connect_from(uint8_t from, uint16_t port, uint64_t deadline_ms) {
    const struct sockaddr_in source = peer_loopback(from, 0);
    const int fd = peer_socket(deadline_ms);
    if (fd >= 0 && from != 0 && bind(fd, (const struct sockaddr *)&source, sizeof source) != 0) {
        close(fd);
        return -1;
    }
    return peer_reach(fd, port);
}

static inline int peer_connect(uint16_t port) {
    const int fd = peer_connect_from(0, port, check_scaled(PEER_DEADLINE_MS));
    CHECK(fd >= 0);
    return fd;
}

/* A client that takes little: its receive buffer is small from the handshake on. */
static inline int peer_connect_small(uint16_t port) {
    const int bytes = 2048;
    int fd = peer_socket(check_scaled(PEER_DEADLINE_MS));
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    fd = peer_reach(fd, port);
    CHECK(fd >= 0);
    return fd;
}

/* "/path" or "@name". */
static inline int peer_connect_unix(const char *where) {
    struct sockaddr_un a;
    memset(&a, 0, sizeof a);
    a.sun_family = AF_UNIX;
    const size_t n = strlen(where);
    REQUIRE(n < sizeof a.sun_path);
    memcpy(a.sun_path, where, n);
    if (where[0] == '@') {
        a.sun_path[0] = '\0';
    }
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    peer_deadline(fd, check_scaled(PEER_DEADLINE_MS));
    const socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
    rig_cross_wire();
    if (connect(fd, (const struct sockaddr *)&a, len) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static inline bool peer_send(int fd, const void *data, size_t n) {
    const char *at = data;
    rig_cross_wire();
    while (n > 0) {
        const ssize_t k = send(fd, at, n, MSG_NOSIGNAL);
        if (k < 0 && errno == EINTR) {
            continue;
        }
        if (k <= 0) {
            return false;
        }
        at += k;
        n -= (size_t)k;
    }
    return true;
}

static inline bool peer_say(int fd, const char *text) {
    return peer_send(fd, text, strlen(text));
}

/* Reads until n bytes, the end, an error or the deadline; *end says which, if fewer came. */
static inline size_t peer_recv_end(int fd, void *data, size_t n, int *end) {
    char *at = data;
    size_t have = 0;
    while (have < n) {
        const ssize_t k = recv(fd, at + have, n - have, 0);
        if (k < 0 && errno == EINTR) {
            continue;
        }
        if (k <= 0) {
            *end = k == 0 ? PEER_FIN : errno == EAGAIN ? PEER_STUCK : errno;
            rig_cross_wire();
            return have;
        }
        have += (size_t)k;
    }
    rig_cross_wire();
    return have;
}

static inline size_t peer_recv(int fd, void *data, size_t n) {
    int end = 0;
    return peer_recv_end(fd, data, n, &end);
}

static inline bool peer_gets(int fd, const char *text) {
    char have[4096];
    const size_t n = strlen(text);
    return n <= sizeof have && peer_recv(fd, have, n) == n && memcmp(have, text, n) == 0;
}

/* Discards what comes and tells how the stream ends. */
static inline int peer_end(int fd) {
    static _Thread_local char bin[65536];
    int end = PEER_STUCK;
    while (peer_recv_end(fd, bin, sizeof bin, &end) == sizeof bin) {
    }
    return end;
}

/* Discards n bytes of the stream; how many came. */
static inline size_t peer_skip(int fd, size_t n) {
    static _Thread_local char bin[65536];
    size_t have = 0;
    while (have < n) {
        const size_t want = n - have < sizeof bin ? n - have : sizeof bin;
        const size_t k = peer_recv(fd, bin, want);
        have += k;
        if (k < want) {
            break;
        }
    }
    return have;
}

static inline void peer_reset(int fd) {
    const struct linger now = { 1, 0 };
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

/* True if nothing can be read within `ms`. */
static inline bool peer_silent(int fd, int ms) {
    struct pollfd p = { fd, POLLIN, 0 };
    return poll(&p, 1, ms) == 0;
}

/* Bytes that differ with position and seed. */
static inline void peer_fill(unsigned char *at, size_t n, unsigned seed) {
    for (size_t i = 0; i < n; i++) {
        at[i] = (unsigned char)((i * 31u + i / 251u + seed * 17u) & 0xffu);
    }
}

/* A short round trip over a fresh connection. */
static inline bool peer_served(uint16_t port) {
    const int fd = peer_connect(port);
    const bool ok = fd >= 0 && peer_say(fd, "served?") && peer_gets(fd, "served?");
    close(fd);
    return ok;
}

static const netsrv_backend rig_backends[] = {
#ifdef __linux__
    NETSRV_BACKEND_EPOLL,
    NETSRV_BACKEND_IO_URING,
#endif
#if !defined(__linux__) || defined(NETSRV_LIBKQUEUE)
    NETSRV_BACKEND_KQUEUE,
#endif
    NETSRV_BACKEND_POLL,
};
#define RIG_BACKENDS (sizeof rig_backends / sizeof rig_backends[0])

/* libkqueue has a thread and descriptors of its own while there is any queue: no leak of the
 * library's. One queue stays, so that they are there from the beginning. */
static inline void rig_settle_libkqueue(void) {
#ifdef NETSRV_LIBKQUEUE
    static int queue = -1;
    queue = queue >= 0 ? queue : kqueue();
#endif
}

/* Whether the backend can accept that way. */
static inline bool rig_accepts(netsrv_backend b, int accept) {
    switch (accept) {
    case NETSRV_ACCEPT_EXCLUSIVE:
        return b == NETSRV_BACKEND_EPOLL || b == NETSRV_BACKEND_IO_URING;
    case NETSRV_ACCEPT_EDGE:
        return b != NETSRV_BACKEND_POLL && b != NETSRV_BACKEND_IO_URING;
    default:
        return true;
    }
}

/* Whether its pollers live in the kernel as something that several threads may use: several
 * acceptors, triggers, transfer direct. */
static inline bool rig_shares(netsrv_backend b) {
    return b != NETSRV_BACKEND_POLL && b != NETSRV_BACKEND_IO_URING;
}

/* Whether this system has it; io_uring may be forbidden. */
static inline bool rig_has(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    netsrv_server *s = NULL;
    netsrv_error error;
    cfg.on_log = NULL;
    const netsrv_result result = netsrv_create(&s, &cfg, &error);
    CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
    return b != NETSRV_BACKEND_IO_URING || result != NETSRV_UNAVAILABLE;
}

/* The most that io_uring brings from one connection beyond what is wanted: kernels before 6.17
 * cannot bound it the first time, and may fill all buffers (1 MiB, or four large ones) twice. */
static inline size_t rig_uring_turn(const netsrv_config *cfg) {
    struct utsname os;
    int major = 0;
    int minor = 0;
    if (uname(&os) == 0 && sscanf(os.release, "%d.%d", &major, &minor) == 2 &&
        (major > 6 || (major == 6 && minor >= 17))) {
        const size_t turn = cfg->bytes_per_turn > 0 ? cfg->bytes_per_turn : cfg->recv_buffer_bytes;
        const size_t first = turn < 64 << 10 ? 4 * turn : 256 << 10;
        return turn + (turn > first ? turn : first);
    }
    return cfg->recv_buffer_bytes > 256 << 10 ? 8 * cfg->recv_buffer_bytes : 2 << 20;
}

/* CHECK_BACKENDS="epoll io_uring" in the environment leaves out all others. */
static inline bool rig_wanted(const char *name) {
    const char *wanted = getenv("CHECK_BACKENDS");
    return wanted == NULL || strstr(wanted, name) != NULL;
}

/* Runs a program's cases once for each backend. */
static inline void rig_each_backend(void (*cases)(netsrv_backend backend)) {
    rig_settle_libkqueue();
    for (size_t i = 0; i < RIG_BACKENDS; i++) {
        check_state.variant = netsrv_backend_name((int)rig_backends[i]);
        if (!rig_wanted(check_state.variant)) {
            continue;
        }
#ifdef NETSRV_LIBKQUEUE
        const int fds = check_count_fds();
        const bool has = rig_has(rig_backends[i]);
        WAIT_FOR(10000, check_count_fds() == fds); /* its thread closes those of the probe */
#else
        const bool has = rig_has(rig_backends[i]);
#endif
        if (has) {
            cases(rig_backends[i]);
        } else {
            printf("not checked: backend %s, which this system refuses\n", check_state.variant);
        }
    }
    check_state.variant = "";
}

#endif /* RIG_H */
