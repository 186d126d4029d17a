/* torture.c: every fallible call of every scenario fails once, and from then on.
 *
 * A scenario is a server with its clients in one child process. It first runs without faults and
 * counts its calls; each counted call is a site. Then it runs again for chosen sites with each
 * errno that the call's man page lists, in two modes: once, and from then on (EINTR and the like:
 * a storm of them). After each run the child must have ended by itself in time, with the
 * descriptors and threads of before, all memory returned, no processor time burnt, no wrong byte
 * delivered, no more connections cut than the fault explains, and any failure to start described.
 *
 * Every third run is rough besides: reads and writes come short, events out of order and twice,
 * and threads are disturbed where they meet.
 *
 *     torture [--full] [--seed=N] [--seconds=N] [--jobs=N] [-v] [--scenario=[NAME][/BACKEND]]
 *             [--name=CALL --nth=N --errno=NAME --mode=once|always --rough=SEED]
 *
 * A finding prints the options that replay it. Options may also stand in the variable TORTURE. */
#include "../seam.h"

#include "rig.h"

#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define ERRNOS_MAX   24
#define PLANS_MAX    400000
#define JOBS_MAX     16
#define TEXT_MAX     2000
#define STORM        50    /* how often an errno that asks for a repetition comes in a row */
#define STRICT_MS    6000  /* a client that must be served waits so long */
#define LOOSE_MS     60    /* one that need not */
#define LOOSE_ALL_MS 300   /* all waits together of a run where nobody need be served */
#define STOP_MS      8000  /* from netsrv_stop to the end of the last thread */
#define HANG_MS      40000 /* for a whole run */
#define SAID_BYTES   4096  /* printed of what a child said */
#define FINDINGS_PRINTED 50

/* ---- which calls fail with what -------------------------------------------------------------- */

enum {
    FREE = 1,    /* once: no connection may be cut by it */
    SERVES = 2,  /* from then on: everybody must be served all the same */
    STARTS = 4,  /* a server must start in spite of it */
    ONCE = 8,    /* from then on would contradict the call's meaning */
    REPEAT = 16, /* "from then on" is a storm that ends: the errno asks for a repetition */
    FATAL = 32,  /* a server may give up by itself, with a logged error */
    LEVEL = 64,  /* contradicts an edge-triggered listener */
    CUTS = 128   /* ends all connections of a worker */
};

typedef struct kind {
    const char *name;
    unsigned flags;
    int errnos[ERRNOS_MAX]; /* ended by 0 */
} kind;

static const kind kinds[] = {
    { "accept4", FREE | ONCE | LEVEL, { EAGAIN } },
    { "accept4", FREE | STARTS | REPEAT, { EINTR } },
    { "accept4", FREE,
      { ECONNABORTED, EPROTO, EPERM, ENETDOWN, ENOPROTOOPT, EHOSTDOWN, ENONET, EHOSTUNREACH,
        EOPNOTSUPP, ENETUNREACH, ETIMEDOUT, ENOSR, ESOCKTNOSUPPORT, EPROTONOSUPPORT } },
    { "accept4", FREE, { EMFILE, ENFILE, ENOBUFS, ENOMEM } },
    { "accept4", FREE | SERVES | STARTS, { ENOSYS } },
    { "accept4", FATAL, { EBADF, EINVAL, ENOTSOCK, EFAULT } },
    { "accept", FREE | ONCE | LEVEL, { EAGAIN } },
    { "accept", FREE, { ECONNABORTED, EMFILE, ENOMEM } },
    { "recv", FREE | ONCE, { EAGAIN } },
    { "recv", FREE | REPEAT, { EINTR } },
    { "recv", 0,
      { ECONNRESET, ENOMEM, ETIMEDOUT, ECONNREFUSED, EHOSTUNREACH, EBADF, EFAULT, EINVAL, ENOTCONN,
        ENOTSOCK } },
    { "send", FREE | ONCE, { EAGAIN } },
    { "send", FREE | REPEAT, { EINTR } },
    { "send", 0,
      { ECONNRESET, EPIPE, ENOBUFS, ENOMEM, ETIMEDOUT, EHOSTUNREACH, EACCES, EALREADY, EBADF,
        EDESTADDRREQ, EFAULT, EINVAL, EISCONN, EMSGSIZE, ENOTCONN, ENOTSOCK, EOPNOTSUPP } },
    { "sendfile", FREE | ONCE, { EAGAIN } },
    { "sendfile", FREE | REPEAT, { EINTR } },
    { "sendfile", FREE | SERVES,
      { EINVAL, ENOSYS, EIO, ENOMEM, EBADF, EFAULT, EOVERFLOW, ESPIPE } },
    { "pread", FREE | REPEAT, { EINTR } },
    { "pread", 0, { EIO, EBADF, EISDIR, ESPIPE, EINVAL, EFAULT, EOVERFLOW, ENXIO } },
    { "epoll_ctl", 0, { ENOMEM, ENOSPC, EBADF, EEXIST, EINVAL, ELOOP, ENOENT, EPERM } },
    { "epoll_ctl_del", ONCE, { EBADF, EINVAL, ENOENT, EPERM } },
    { "epoll_wait", FREE | STARTS | REPEAT, { EINTR } },
    { "epoll_wait", FATAL, { EBADF, EFAULT, EINVAL } },
    { "io_uring_setup", 0, { EPERM, ENOSYS, ENOMEM, EMFILE, EINVAL, EFAULT } },
    { "io_uring_enter", FREE | STARTS | REPEAT, { EINTR, EAGAIN, EBUSY, EBADR } },
    { "io_uring_enter", FATAL, { EBADF, EFAULT, EINVAL } },
    { "io_uring_register", 0, { EINVAL, ENOMEM, EBADF } },
    { "ring_lost", ONCE | CUTS, { ENOMEM } },
    { "ring_entry", ONCE, { ENOBUFS } }, /* for ever: none of what is asked could be asked */
    { "recv_limit", FREE | SERVES, { EINVAL } },
    /* Not ENOTCONN: it means a dead one, which is served until that shows. */
    { "getpeername_accepted", 0, { EBADF, EFAULT, EINVAL, ENOBUFS, ENOTSOCK } },
    { "mmap", 0, { ENOMEM, EAGAIN, EINVAL } },
    { "kqueue", 0, { EMFILE, ENFILE, ENOMEM } },
    { "kevent_change", 0, { ENOMEM, EBADF, EACCES, EINVAL } },
    { "kevent_wait", FREE | STARTS | REPEAT, { EINTR } },
    { "kevent_wait", FATAL, { EBADF, EFAULT, EINVAL } },
    { "kevent_user", FREE | SERVES | STARTS, { ENOENT, EINVAL, EBADF, ENOSYS } },
    { "poll", FREE | STARTS | REPEAT, { EINTR } },
    { "poll", FREE | FATAL, { ENOMEM } },
    { "poll", FATAL, { EFAULT, EINVAL } },
    { "read", FREE | STARTS | REPEAT, { EINTR } },
    { "read", FREE | ONCE, { EAGAIN, EIO } },
    { "write", FREE | STARTS | REPEAT, { EINTR } },
    { "close", FREE | SERVES | STARTS, { EINTR, EIO, ENOSPC, EDQUOT } },
    { "shutdown", 0, { ENOTCONN, EBADF, EINVAL, ENOTSOCK } },
    { "setsockopt", FREE | SERVES, { EBADF, EFAULT, EINVAL, ENOPROTOOPT, ENOTSOCK, ENOMEM } },
    { "getsockopt", 0, { EBADF, EFAULT, EINVAL, ENOPROTOOPT, ENOTSOCK } },
    { "getsockname", 0, { EBADF, EFAULT, EINVAL, ENOBUFS, ENOTSOCK } },
    { "getpeername", 0, { EBADF, EFAULT, EINVAL, ENOBUFS, ENOTCONN, ENOTSOCK } },
    { "fcntl", 0, { EBADF, EINVAL, EPERM, EACCES, EMFILE } },
    { "fstat", FREE, { EBADF, ENOMEM, EOVERFLOW } },
    { "getaddrinfo", 0, { ENOMEM, EIO } },
    { "socket", 0,
      { EACCES, EAFNOSUPPORT, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPROTONOSUPPORT } },
    { "bind", 0,
      { EACCES, EADDRINUSE, EBADF, EINVAL, ENOTSOCK, EADDRNOTAVAIL, EFAULT, ELOOP, ENAMETOOLONG,
        ENOENT, ENOMEM, ENOTDIR, EROFS } },
    { "listen", 0, { EADDRINUSE, EBADF, ENOTSOCK, EOPNOTSUPP } },
    { "connect", 0,
      { ECONNREFUSED, ENOENT, EACCES, EPERM, EAGAIN, EINTR, ETIMEDOUT, EPROTOTYPE, EINPROGRESS } },
    { "epoll_create1", 0, { EINVAL, EMFILE, ENFILE, ENOMEM, ENOSYS } },
    { "eventfd", 0, { EINVAL, EMFILE, ENFILE, ENODEV, ENOMEM } },
    { "eventfd", FREE | SERVES | STARTS, { ENOSYS } },
    { "pipe2", 0, { EMFILE, ENFILE, EFAULT, EINVAL, ENOSYS } },
    { "pipe", 0, { EMFILE, ENFILE, EFAULT } },
    { "unlink", 0,
      { EACCES, EBUSY, EIO, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, EPERM, EROFS } },
    { "lstat", 0, { EACCES, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, EOVERFLOW } },
    { "getrandom", FREE | SERVES | STARTS, { EAGAIN, EFAULT, EINTR, EINVAL, ENOSYS } },
    { "sched_getaffinity", FREE | SERVES | STARTS, { EFAULT, EINVAL, ESRCH, EPERM, ENOSYS } },
    { "sched_setaffinity", FREE | SERVES | STARTS, { EFAULT, EINVAL, ESRCH, EPERM, ENOSYS } },
    { "pthread_create", 0, { EAGAIN, EINVAL, EPERM } },
    { "alloc", 0, { ENOMEM } },
    { NULL, 0, { EIO, EINVAL, ENOMEM } }, /* a call that this table does not know */
};
#define KINDS ((int)(sizeof kinds / sizeof kinds[0]))

#define NAMED(e) { e, #e }
static const struct {
    int err;
    const char *name;
} errno_names[] = {
    NAMED(EACCES), NAMED(EADDRINUSE), NAMED(EADDRNOTAVAIL), NAMED(EAFNOSUPPORT), NAMED(EAGAIN),
    NAMED(EALREADY), NAMED(EBADF), NAMED(EBADR), NAMED(EBUSY), NAMED(ECONNABORTED),
    NAMED(ECONNREFUSED), NAMED(ECONNRESET), NAMED(EDESTADDRREQ), NAMED(EDQUOT), NAMED(EEXIST),
    NAMED(EFAULT), NAMED(EHOSTDOWN), NAMED(EHOSTUNREACH), NAMED(EINPROGRESS), NAMED(EINTR),
    NAMED(EINVAL), NAMED(EIO), NAMED(EISCONN), NAMED(EISDIR), NAMED(ELOOP), NAMED(EMFILE),
    NAMED(EMSGSIZE), NAMED(ENAMETOOLONG), NAMED(ENETDOWN), NAMED(ENETUNREACH), NAMED(ENFILE),
    NAMED(ENOBUFS), NAMED(ENODEV), NAMED(ENOENT), NAMED(ENOMEM), NAMED(ENONET), NAMED(ENOPROTOOPT),
    NAMED(ENOSPC), NAMED(ENOSR), NAMED(ENOSYS), NAMED(ENOTCONN), NAMED(ENOTDIR), NAMED(ENOTSOCK),
    NAMED(EOPNOTSUPP), NAMED(EOVERFLOW), NAMED(EPERM), NAMED(EPIPE), NAMED(EPROTO),
    NAMED(EPROTONOSUPPORT), NAMED(EPROTOTYPE), NAMED(EROFS), NAMED(ESOCKTNOSUPPORT), NAMED(ESRCH),
    NAMED(ETIMEDOUT), NAMED(ESPIPE), NAMED(ENXIO),
};
#define ERRNO_NAMES (sizeof errno_names / sizeof errno_names[0])

static const char *errno_name(int err) {
    for (size_t i = 0; i < ERRNO_NAMES; i++) {
        if (errno_names[i].err == err) {
            return errno_names[i].name;
        }
    }
    return "E?";
}

static int errno_number(const char *name) {
    for (size_t i = 0; i < ERRNO_NAMES; i++) {
        if (strcmp(errno_names[i].name, name) == 0) {
            return errno_names[i].err;
        }
    }
    return 0;
}

/* ---- plans, runs, results -------------------------------------------------------------------- */

typedef struct plan {
    int scenario;
    netsrv_backend backend;
    const char *name; /* NULL: the run without faults */
    unsigned nth;
    int err;
    unsigned flags;
    bool always;
    unsigned rough; /* a seed: short reads and writes, events shuffled, odd schedules; 0: none */
    unsigned long usual_calls; /* of the run without faults */
} plan;

/* What a child tells: shared memory, so that it survives the child's death. */
typedef struct report {
    bool done;
    unsigned findings;
    char text[TEXT_MAX];
    unsigned long fired;
    uint64_t cpu_us;
    uint64_t wall_ms;
    unsigned long calls;
    const char *names[SEAM_NAMES_MAX];
    unsigned long counts[SEAM_NAMES_MAX];
} report;

typedef struct run {
    const plan *plan;
    report *out;
    netsrv_config cfg;
    netsrv_server *s;
    uint16_t port;
    const char *unix_name;
    uint64_t began_ms;
    unsigned cut;
    unsigned stuck;
    int cut_by; /* of the last one: an errno, or PEER_STUCK or PEER_FIN */
    bool refused; /* the server did not start, and said why */
} run;

typedef struct client {
    int fd;
    bool cut;
} client;

static void problem(run *r, const char *format, ...) {
    const size_t used = strlen(r->out->text);
    va_list args;
    va_start(args, format);
    vsnprintf(r->out->text + used, TEXT_MAX - used, format, args);
    va_end(args);
    r->out->findings++;
}

/* True if everybody must be served in this run. */
static bool strict(const run *r) {
    const plan *p = r->plan;
    return !p->always || (p->flags & (SERVES | REPEAT)) != 0;
}

static unsigned cuts_allowed(const run *r) {
    const plan *p = r->plan;
    if (p->name == NULL || (p->flags & FREE) != 0) {
        return 0;
    }
    return (p->flags & CUTS) != 0 ? UINT_MAX : 1;
}

static uint64_t patience_ms(const run *r) {
    if (strict(r)) {
        return check_scaled(STRICT_MS);
    }
    const uint64_t spent = check_now_ms() - r->began_ms;
    const uint64_t all = check_scaled(LOOSE_ALL_MS);
    return spent >= all ? 1 : check_scaled(LOOSE_MS);
}

#define AWAIT(r, cond) WAIT_FOR(patience_ms(r) / check_state.scale + 1, cond)

/* ---- clients --------------------------------------------------------------------------------- */

static void lost(run *r, client *c, int end) {
    if (c->cut) {
        return;
    }
    c->cut = true;
    r->cut++;
    r->stuck += end == PEER_STUCK;
    r->cut_by = end;
}

static client dial(run *r) {
    client c = { -1, false };
    c.fd = r->unix_name != NULL ? peer_connect_unix(r->unix_name)
                                : peer_connect_from(0, r->port, patience_ms(r));
    if (c.fd < 0) {
        lost(r, &c, errno);
    }
    return c;
}

/* A client that takes little: its receive buffer is small from the handshake on. */
static client dial_small(run *r) {
    const int bytes = 2048;
    const int fd = peer_socket(patience_ms(r));
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    client c = { peer_reach(fd, r->port), false };
    if (c.fd < 0) {
        lost(r, &c, errno);
    }
    return c;
}

static void say(run *r, client *c, const void *data, size_t n) {
    if (c->fd >= 0 && !peer_send(c->fd, data, n)) {
        lost(r, c, errno);
    }
}

/* What comes must be what is expected, up to where the connection is cut. */
static void hear(run *r, client *c, const void *data, size_t n) {
    static unsigned char have[1 << 20];
    int end = 0;
    if (c->fd < 0 || c->cut) { /* what comes after a gap is compared with nothing */
        return;
    }
    peer_deadline(c->fd, patience_ms(r));
    const size_t got = peer_recv_end(c->fd, have, n, &end);
    if (memcmp(have, data, got) != 0) {
        problem(r, "wrong bytes delivered: %.*s; ", (int)got, (const char *)have);
    }
    if (got < n) {
        lost(r, c, end);
    }
}

static void say_text(run *r, client *c, const char *text) {
    say(r, c, text, strlen(text));
}

static void hear_text(run *r, client *c, const char *text) {
    hear(r, c, text, strlen(text));
}

/* The server ends the stream: with FIN, nothing more coming, or in any way if `how` is not FIN. */
static void hear_end(run *r, client *c, int how) {
    char more[1];
    int end = 0;
    if (c->fd < 0 || c->cut) {
        return;
    }
    peer_deadline(c->fd, patience_ms(r));
    if (how != PEER_FIN) {
        end = peer_end(c->fd);
    } else if (peer_recv_end(c->fd, more, sizeof more, &end) != 0) {
        problem(r, "bytes after the expected end; ");
    }
    if (end == PEER_STUCK || (how == PEER_FIN && end != PEER_FIN)) {
        lost(r, c, end);
    }
}

static void hang_up(client *c) {
    if (c->fd >= 0) {
        close(c->fd);
        c->fd = -1;
    }
}

static void half_close(client *c) {
    if (c->fd >= 0) {
        shutdown(c->fd, SHUT_WR);
    }
}

static void speak(run *r, client *c, const char *text) {
    say_text(r, c, text);
    hear_text(r, c, text);
}

/* `n` bytes there and back, differing by seed. */
static void speak_much(run *r, client *c, size_t n, unsigned seed) {
    static unsigned char bytes[1 << 18];
    peer_fill(bytes, n, seed);
    say(r, c, bytes, n);
    hear(r, c, bytes, n);
}

/* ---- the server of a run --------------------------------------------------------------------- */

static void check_refusal(run *r, const char *what, netsrv_result result, const netsrv_error *e) {
    const plan *p = r->plan;
    r->refused = true;
    if (SEAM_GET(fired) == 0) {
        problem(r, "%s failed without a fault: %s; ", what, e->text);
        return;
    }
    if ((p->flags & (STARTS | FREE)) != 0 && strcmp(p->name, "setsockopt") != 0) {
        problem(r, "%s fails though it need not: %s; ", what, e->text);
    }
    if (e->result != result || e->text[0] == '\0') {
        problem(r, "%s fails without saying why; ", what);
    }
    const bool memory = strcmp(p->name, "alloc") == 0;
    if (memory ? result != NETSRV_NO_MEMORY : e->sys_errno != p->err) {
        problem(r, "%s reports result %d with errno %d: %s; ", what, (int)result, e->sys_errno,
                e->text);
    }
}

static bool create(run *r) {
    netsrv_error e;
    memset(&e, 0x55, sizeof e);
    const netsrv_result result = netsrv_create(&r->s, &r->cfg, &e);
    if (result != NETSRV_OK) {
        if (r->s != NULL) {
            problem(r, "netsrv_create failed and left a server; ");
        }
        check_refusal(r, "netsrv_create", result, &e);
        return false;
    }
    r->port = netsrv_get_port(r->s, 0);
    return true;
}

/* A ring that cannot be entered any more is ended by the kernel in its own time, and with it what
 * it held of a listener. */
static bool still_listens(const run *r, netsrv_result result, const netsrv_error *e) {
    return result != NETSRV_OK && e->sys_errno == EADDRINUSE && r->plan->name != NULL &&
           strcmp(r->plan->name, "io_uring_enter") == 0;
}

static bool start(run *r) {
    netsrv_error e;
    memset(&e, 0x55, sizeof e);
    netsrv_result result = netsrv_start(r->s, &e);
    if (still_listens(r, result, &e)) {
        WAIT_FOR(STRICT_MS, !still_listens(r, result = netsrv_start(r->s, &e), &e));
    }
    if (result != NETSRV_OK) {
        check_refusal(r, "netsrv_start", result, &e);
        return false;
    }
    const uint16_t port = netsrv_get_port(r->s, 0);
    if (r->unix_name == NULL && port == 0) {
        problem(r, "started, but without a port; ");
    }
    r->port = port;
    return true;
}

/* True once all threads have ended; anything else is fatal for the run. */
static void wait_ended(run *r) {
    if (netsrv_wait_for(r->s, (uint32_t)check_scaled(STOP_MS)) == NETSRV_OK) {
        return;
    }
    problem(r, "netsrv_stop is not obeyed; ");
    r->out->done = true;
    _exit(0);
}

static bool gave_up(run *r) {
    return netsrv_wait_for(r->s, 0) == NETSRV_OK;
}

/* ---- scenarios: configurations and what clients do ------------------------------------------- */

static void small_buffers(netsrv_conn *c) {
    const int bytes = 4096;
    setsockopt(netsrv_get_fd(c), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    rig_on_open(c);
}

static void do_speak(run *r) {
    client c = dial(r);
    speak(r, &c, "probe\n");
    hang_up(&c);
}

static void do_many(run *r) {
    client c[4];
    for (unsigned i = 0; i < 4; i++) {
        c[i] = dial(r);
        speak(r, &c[i], "first\n");
    }
    for (unsigned i = 0; i < 4; i++) {
        speak_much(r, &c[i], 3000, i);
    }
    half_close(&c[0]);
    hear_end(r, &c[0], PEER_FIN);
    for (unsigned i = 0; i < 4; i++) {
        hang_up(&c[i]);
    }
}

static void cfg_echo(netsrv_config *cfg) {
    cfg->on_open = small_buffers;
}

static void do_echo(run *r) {
    client a = dial(r);
    client b = dial(r);
    speak(r, &a, "a");
    speak_much(r, &b, 120000, 5);
    speak(r, &a, "again");
    half_close(&a);
    hear_end(r, &a, PEER_FIN);
    hang_up(&a);
    hang_up(&b);
}

static void line_back(netsrv_conn *c, const void *data, size_t n) {
    netsrv_send(c, data, n);
    netsrv_send(c, "\n", 1);
}

static void cfg_line(netsrv_config *cfg) {
    cfg->on_data = NULL;
    cfg->on_frame = line_back;
    cfg->framing = NETSRV_FRAMING_LINE;
    cfg->input_max_bytes = 100;
}

static void do_line(run *r) {
    client c = dial(r);
    say_text(r, &c, "one\r\ntwo\n\nth");
    hear_text(r, &c, "one\ntwo\n\n");
    say_text(r, &c, "ree\nlast");
    half_close(&c);
    hear_text(r, &c, "three\nlast\n");
    hear_end(r, &c, PEER_FIN);
    hang_up(&c);
}

static void do_long_line(run *r) {
    char line[200];
    memset(line, 'x', sizeof line);
    client c = dial(r);
    say(r, &c, line, sizeof line);
    hear_end(r, &c, ECONNRESET);
    hang_up(&c);
}

static void reply_after_eof(netsrv_conn *c) {
    static unsigned char bytes[60000];
    unsigned char mine[1000];
    for (size_t i = 0; i < sizeof bytes; i += sizeof mine) {
        memset(mine, (int)(i / sizeof mine), sizeof mine);
        netsrv_send(c, mine, sizeof mine);
    }
    netsrv_close(c);
}

static void cfg_half_close(netsrv_config *cfg) {
    cfg->on_open = small_buffers;
    cfg->on_eof = reply_after_eof;
    cfg->eof_policy = NETSRV_EOF_KEEP;
}

static void do_half_close(run *r) {
    unsigned char expected[60000];
    for (size_t i = 0; i < sizeof expected; i++) {
        expected[i] = (unsigned char)(i / 1000);
    }
    client c = dial(r);
    speak(r, &c, "hello");
    half_close(&c);
    hear(r, &c, expected, sizeof expected);
    hear_end(r, &c, PEER_FIN);
    hang_up(&c);
}

static void cfg_idle(netsrv_config *cfg) {
    cfg->idle_timeout_ms = 30;
}

/* On a busy machine the time may be over before the client has spoken. */
static void do_idle(run *r) {
    client c = dial(r);
    if (c.fd >= 0) {
        peer_send(c.fd, "soon idle", 9);
    }
    hear_end(r, &c, ECONNRESET);
    hang_up(&c);
}

static size_t send_much(netsrv_conn *c, const void *data, size_t n) {
    static const char bytes[64 * 1024];
    if (((const char *)data)[0] == 'p') {
        return rig_on_data(c, data, n);
    }
    netsrv_send(c, bytes, sizeof bytes);
    return n;
}

static void cfg_write_timeout(netsrv_config *cfg) {
    cfg->on_open = small_buffers;
    cfg->on_data = send_much;
    cfg->write_timeout_ms = 40;
}

/* The server would not have it from the start. */
static bool was_refused(const run *r, const client *c) {
    struct pollfd one = { c->fd, 0, 0 };
    const netsrv_stats total = rig_total(r->s);
    return c->fd < 0 || total.no_memory > 0 ||
           (total.accepted == 0 && poll(&one, 1, 0) > 0 &&
            (one.revents & (POLLERR | POLLHUP)) != 0);
}

/* The client never reads, so that the server ends it. */
static void do_not_read(run *r) {
    client c = dial_small(r);
    for (int i = 0; i < 20 && c.fd >= 0; i++) {
        peer_send(c.fd, "m", 1);
    }
    /* Not rig_closes: who is not told of the beginning is not told of the end. */
    AWAIT(r, rig_total(r->s).closed > 0 || was_refused(r, &c));
    if (rig_total(r->s).closed == 0) {
        lost(r, &c, was_refused(r, &c) ? ECONNRESET : PEER_STUCK);
    }
    hang_up(&c);
}

static void cfg_queue_max(netsrv_config *cfg) {
    cfg->on_open = small_buffers;
    cfg->on_data = send_much;
    cfg->high_mark_bytes = 4000;
    cfg->queue_max_bytes = 20000;
}

static void cfg_wait_for_place(netsrv_config *cfg) {
    cfg->max_conns = 2;
}

static void do_wait_for_place(run *r) {
    client a = dial(r);
    client b = dial(r);
    speak(r, &a, "a");
    speak(r, &b, "b");
    client c = dial(r);
    say_text(r, &c, "waits");
    hang_up(&a);
    hear_text(r, &c, "waits");
    hang_up(&b);
    hang_up(&c);
    AWAIT(r, rig_opens() == rig_closes());
}

static void cfg_reject(netsrv_config *cfg) {
    cfg->max_conns = 1;
    cfg->overflow = NETSRV_OVERFLOW_REJECT;
    cfg->max_conns_per_address = 5;
}

/* Those who are in are there still, as far as one can know: a worker whose connections all end
 * ends them behind the client's back. */
static bool still_full(const run *r) {
    return r->cut == 0 && (r->plan->flags & CUTS) == 0;
}

/* One too many: reset, maybe so early that connect(2) says so. */
static void be_refused(run *r) {
    client c = { peer_connect_from(0, r->port, patience_ms(r)), false };
    if (c.fd < 0 && errno != ECONNRESET) {
        lost(r, &c, errno);
    }
    if (still_full(r)) { /* else there is a place */
        hear_end(r, &c, ECONNRESET);
    }
    hang_up(&c);
}

static void do_reject(run *r) {
    client a = dial(r);
    speak(r, &a, "the only one");
    be_refused(r);
    hang_up(&a);
    AWAIT(r, rig_opens() == rig_closes());
}

static void cfg_per_address(netsrv_config *cfg) {
    cfg->max_conns_per_address = 2;
}

static void do_per_address(run *r) {
    client a = dial(r);
    client b = dial(r);
    speak(r, &a, "one");
    speak(r, &b, "two");
    be_refused(r);
    hang_up(&a);
    hang_up(&b);
    AWAIT(r, rig_opens() == rig_closes());
}

static void cfg_mailbox(netsrv_config *cfg) {
    cfg->workers = 3;
    cfg->accept = NETSRV_ACCEPT_ACCEPTOR;
    cfg->place = NETSRV_PLACE_ROUND_ROBIN;
    cfg->transfer = NETSRV_TRANSFER_MAILBOX;
}

static void cfg_direct(netsrv_config *cfg) {
    cfg_mailbox(cfg);
    cfg->transfer = NETSRV_TRANSFER_DIRECT;
}

static void cfg_group_oneshot(netsrv_config *cfg) {
    cfg_mailbox(cfg);
    cfg->acceptors = 2;
    cfg->trigger = NETSRV_TRIGGER_ONESHOT;
    cfg->place = NETSRV_PLACE_LEAST;
}

static void cfg_group_edge(netsrv_config *cfg) {
    cfg_mailbox(cfg);
    cfg->acceptors = 2;
    cfg->trigger = NETSRV_TRIGGER_EDGE;
    cfg->place = NETSRV_PLACE_PEER_HASH;
}

static void cfg_single(netsrv_config *cfg) {
    cfg->workers = 3;
    cfg->accept = NETSRV_ACCEPT_SINGLE;
    cfg->place = NETSRV_PLACE_LEAST;
}

static void cfg_shared(netsrv_config *cfg) {
    cfg->accept = NETSRV_ACCEPT_SHARED;
    cfg->place = NETSRV_PLACE_KEEP;
}

static void cfg_exclusive(netsrv_config *cfg) {
    cfg->accept = NETSRV_ACCEPT_EXCLUSIVE;
    cfg->place = NETSRV_PLACE_TWO_CHOICES;
}

static void cfg_edge(netsrv_config *cfg) {
    cfg->accept = NETSRV_ACCEPT_EDGE;
    cfg->place = NETSRV_PLACE_TWO_CHOICES;
    cfg->accepts_per_turn = 1;
}

static void cfg_reuseport(netsrv_config *cfg) {
    cfg->accept = NETSRV_ACCEPT_REUSEPORT;
    cfg->steer_by_cpu = NETSRV_ENABLE;
}

static void cfg_many_limits(netsrv_config *cfg) {
    cfg->listen[0] = "*:0";
    cfg->listen[1] = rig_any_port();
    cfg->keepalive_s = 60;
    cfg->fast_open_count = 16;
    cfg->max_accepts_per_second = 1000;
    cfg->pin_workers = NETSRV_ENABLE;
    cfg->idle_timeout_ms = 60000;
    cfg->write_timeout_ms = 60000;
}

static void do_graceful_stop(run *r) {
    static unsigned char bytes[120000];
    peer_fill(bytes, sizeof bytes, 3);
    client idle = dial(r);
    speak(r, &idle, "idle");
    client busy = dial(r);
    say(r, &busy, bytes, sizeof bytes);
    hear(r, &busy, bytes, 1000);
    /* What the server has not received when it stops may be cut off. */
    AWAIT(r, busy.cut || rig_total(r->s).bytes_in >= sizeof bytes + strlen("idle"));
    netsrv_stop(r->s, 3000);
    hear(r, &busy, bytes + 1000, sizeof bytes - 1000);
    hear_end(r, &idle, PEER_FIN);
    hear_end(r, &busy, PEER_FIN);
    hang_up(&idle);
    hang_up(&busy);
}

static void cfg_graceful_stop(netsrv_config *cfg) {
    cfg->on_open = small_buffers;
    cfg->high_mark_bytes = 1 << 20;
}

static size_t quit_on_q(netsrv_conn *c, const void *data, size_t n) {
    if (((const char *)data)[0] == 'q') {
        netsrv_stop(netsrv_get_server(c), 1000);
    }
    return rig_on_data(c, data, n);
}

static void cfg_quit(netsrv_config *cfg) {
    cfg->on_data = quit_on_q;
}

static void do_quit(run *r) {
    client c = dial(r);
    speak(r, &c, "quit");
    hear_end(r, &c, PEER_FIN);
    hang_up(&c);
}

static void do_restart(run *r) {
    do_speak(r);
    netsrv_stop(r->s, 0);
    wait_ended(r);
    if (start(r)) {
        do_speak(r);
    }
}

static char unix_path[64];

static void cfg_unix(netsrv_config *cfg) {
    static char listen_path[80];
    snprintf(unix_path, sizeof unix_path, "/tmp/netsrv-torture.%ld", (long)getpid());
    snprintf(listen_path, sizeof listen_path, "unix:%s", unix_path);
    cfg->listen[0] = listen_path;
}

static void cfg_abstract(netsrv_config *cfg) {
    static char listen_name[80];
    snprintf(unix_path, sizeof unix_path, "@netsrv-torture.%ld", (long)getpid());
    snprintf(listen_name, sizeof listen_name, "unix:%s", unix_path);
    cfg->listen[0] = listen_name;
}

static atomic_ullong across_id;

static void tell_id(netsrv_conn *c) {
    atomic_store(&across_id, netsrv_get_id(c));
    rig_on_open(c);
}

static void cfg_across(netsrv_config *cfg) {
    cfg->on_open = tell_id;
    cfg->workers = 3;
    cfg->accept = NETSRV_ACCEPT_SINGLE;
    cfg->place = NETSRV_PLACE_ROUND_ROBIN;
}

/* A refusal is an answer: the caller knows, and asks again. */
static void insist(run *r, client *c, netsrv_result (*ask)(netsrv_server *s, netsrv_id id)) {
    netsrv_result result = NETSRV_GONE;
    for (int i = 0; i < 3 && result != NETSRV_OK; i++) {
        result = ask(r->s, atomic_load(&across_id));
    }
    if (result >= NETSRV_BAD_CONFIG && result <= NETSRV_BAD_STATE) {
        problem(r, "a call across threads answers %s; ", netsrv_result_text((int)result));
    }
    if (result != NETSRV_OK) {
        lost(r, c, ECONNRESET);
    }
}

static netsrv_result ask_send(netsrv_server *s, netsrv_id id) {
    return netsrv_send_to(s, id, "from afar", 9);
}

static void do_across(run *r) {
    atomic_ulong posted = 0;
    atomic_store(&across_id, 0);
    client c = dial(r);
    speak(r, &c, "here");
    if (!c.cut) {
        insist(r, &c, ask_send);
    }
    if (!c.cut) {
        hear_text(r, &c, "from afar");
    }
    if (!c.cut) {
        insist(r, &c, netsrv_close_id);
        hear_end(r, &c, PEER_FIN);
    }
    hang_up(&c);
    unsigned long expected = 0;
    for (unsigned i = 0; i < 3; i++) {
        expected += netsrv_post(r->s, i, rig_nothing, &posted) == NETSRV_OK;
    }
    AWAIT(r, atomic_load(&posted) == expected);
    if (atomic_load(&posted) != expected && strict(r)) {
        problem(r, "a posted call never ran; ");
    }
    netsrv_stop(r->s, 0);
    wait_ended(r);
    if (atomic_load(&posted) != expected) {
        problem(r, "a posted call was lost; ");
    }
}

/* A pipe on the loop of worker 0, whose bytes go to the client. */
static struct {
    int ends[2];
    netsrv_id client; /* the bytes are for no later one */
    netsrv_watch_id id;
    atomic_int result; /* of the last netsrv_watch; -1 while it is awaited */
} pipe_line;

static void pass_on(netsrv_server *s, unsigned worker, int fd, unsigned ready, void *arg) {
    char text[64];
    (void)worker;
    (void)ready;
    (void)arg;
    const ssize_t n = read(fd, text, sizeof text);
    if (n > 0) {
        netsrv_send_to(s, pipe_line.client, text, (size_t)n);
    } else {
        netsrv_unwatch(s, pipe_line.id);
    }
}

static void watch_pipe(netsrv_server *s, unsigned worker, void *arg) {
    (void)worker;
    (void)arg;
    const netsrv_result result = netsrv_watch(s, pipe_line.ends[0], NETSRV_READABLE, pass_on, NULL,
                                              &pipe_line.id);
    atomic_store(&pipe_line.result, (int)result);
}

/* True once the pipe is watched: a refusal is an answer, and the program asks again. */
static bool watched(run *r) {
    int result = -1;
    for (int i = 0; i < 4 && result != NETSRV_OK; i++) {
        atomic_store(&pipe_line.result, -1);
        if (netsrv_post(r->s, 0, watch_pipe, NULL) == NETSRV_OK) {
            AWAIT(r, atomic_load(&pipe_line.result) >= 0);
        }
        result = atomic_load(&pipe_line.result);
        if (result == NETSRV_BAD_THREAD) {
            problem(r, "netsrv_watch answers %s; ", netsrv_result_text(result));
        }
    }
    return result == NETSRV_OK;
}

static void cfg_watch(netsrv_config *cfg) {
    cfg->on_open = tell_id;
    cfg->workers = 1;
    REQUIRE(port_pipe(pipe_line.ends) == 0);
    fcntl(pipe_line.ends[0], F_SETFL, O_NONBLOCK);
}

static void close_pipe_line(void) {
    for (int i = 0; i < 2; i++) {
        if (pipe_line.ends[i] > 0) {
            close(pipe_line.ends[i]);
            pipe_line.ends[i] = 0;
        }
    }
}

static void do_watch(run *r) {
    client c = dial(r);
    speak(r, &c, "here");
    pipe_line.client = atomic_load(&across_id);
    if (!c.cut && watched(r)) {
        if (write(pipe_line.ends[1], "through the pipe", 16) == 16) {
            hear_text(r, &c, "through the pipe");
        }
    } else {
        lost(r, &c, ECONNRESET);
    }
    close(pipe_line.ends[1]); /* given up when its end is read, or by the stop */
    pipe_line.ends[1] = 0;
    hang_up(&c);
}

/* A front on the first listener, which dials an echo on the second for each client. */
static const char *echo_host;

typedef struct pair {
    netsrv_id client;
    netsrv_id echo;
} pair;

static size_t back_to_client(netsrv_conn *c, const void *data, size_t n) {
    const pair *p = netsrv_get_data(c);
    netsrv_send_to(netsrv_get_server(c), p->client, data, n);
    return n;
}

static void cut_client(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    const pair *p = netsrv_get_data(c);
    CHECK((reason == NETSRV_CLOSE_ERROR) == (sys_errno != 0));
    netsrv_abort_id(netsrv_get_server(c), p->client);
}

static const netsrv_handlers to_echo = { .on_data = back_to_client, .on_close = cut_client };

static void dial_echo(netsrv_conn *c) {
    static pair pairs[64];
    static unsigned used;
    char address[NETSRV_ADDRESS_MAX];
    netsrv_conn *echo = NULL;
    netsrv_server *s = netsrv_get_server(c);
    rig_on_open(c);
    if (netsrv_get_listener(c) != 0) {
        return;
    }
    pair *p = &pairs[used++ % 64];
    snprintf(address, sizeof address, "%s:%u", echo_host, (unsigned)netsrv_get_port(s, 1));
    const netsrv_target to = { .address = address, .handlers = &to_echo, .data = p };
    if (netsrv_dial(s, &to, &echo) != NETSRV_OK) {
        netsrv_abort(c);
        return;
    }
    p->client = netsrv_get_id(c);
    p->echo = netsrv_get_id(echo);
    netsrv_set_data(c, p);
}

static size_t front_data(netsrv_conn *c, const void *data, size_t n) {
    const pair *p = netsrv_get_data(c);
    if (netsrv_get_listener(c) != 0) {
        return rig_on_data(c, data, n);
    }
    netsrv_send_to(netsrv_get_server(c), p->echo, data, n);
    return n;
}

static void front_close(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    const pair *p = netsrv_get_data(c);
    rig_on_close(c, reason, sys_errno);
    if (p != NULL) {
        netsrv_abort_id(netsrv_get_server(c), p->echo);
    }
}

static void cfg_dial(netsrv_config *cfg) {
    echo_host = rig_host();
    cfg->listen[1] = rig_any_port();
    cfg->workers = 1;
    cfg->on_open = dial_echo;
    cfg->on_data = front_data;
    cfg->on_close = front_close;
}

static void cfg_dial_name(netsrv_config *cfg) {
    cfg_dial(cfg);
    echo_host = "localhost";
    cfg->listen[1] = "127.0.0.1:0"; /* what the name means */
}

static void do_dial(run *r) {
    client a = dial(r);
    client b = dial(r);
    speak(r, &a, "through the front");
    speak_much(r, &b, 30000, 6);
    hang_up(&a);
    hang_up(&b);
    AWAIT(r, rig_opens() == rig_closes());
}

/* Each message is answered on another worker. */
static size_t echo_and_move(netsrv_conn *c, const void *data, size_t n) {
    netsrv_send(c, data, n);
    netsrv_move(c, (netsrv_get_worker(c) + 1) % 3);
    return n;
}

static void cfg_move(netsrv_config *cfg) {
    cfg->on_data = echo_and_move;
    cfg->workers = 3;
}

static void resume_by_id(netsrv_server *s, unsigned worker, void *arg) {
    (void)worker;
    (void)arg;
    netsrv_conn *c = netsrv_find(s, atomic_load(&across_id));
    if (c != NULL) {
        netsrv_resume(c);
    }
}

static size_t pause_at_p(netsrv_conn *c, const void *data, size_t n) {
    const char first = ((const char *)data)[0];
    rig_on_data(c, data, first == '!' ? 1 : n);
    if (first == '!') {
        netsrv_pause(c);
    }
    return first == '!' ? 1 : n;
}

static void cfg_pause(netsrv_config *cfg) {
    cfg->on_open = tell_id;
    cfg->on_data = pause_at_p;
    cfg->workers = 1;
}

static void do_pause(run *r) {
    client c = dial(r);
    say_text(r, &c, "!kept");
    hear_text(r, &c, "!");
    for (int i = 0; i < 3 && netsrv_post(r->s, 0, resume_by_id, NULL) != NETSRV_OK; i++) {
    }
    hear_text(r, &c, "kept");
    hang_up(&c);
}

static size_t bye(netsrv_conn *c, const void *data, size_t n) {
    if (((const char *)data)[0] == 'p') {
        return rig_on_data(c, data, n);
    }
    netsrv_send(c, "bye", 3);
    netsrv_close(c);
    return 0;
}

static void cfg_linger(netsrv_config *cfg) {
    cfg->on_data = bye;
}

static void do_linger(run *r) {
    static const char unread[100000] = "x";
    client c = dial(r);
    say(r, &c, unread, sizeof unread);
    hear_text(r, &c, "bye");
    hear_end(r, &c, PEER_FIN);
    hang_up(&c);
}

static size_t abort_at_a(netsrv_conn *c, const void *data, size_t n) {
    if (((const char *)data)[0] == 'a') {
        netsrv_abort(c);
        return n;
    }
    return rig_on_data(c, data, n);
}

static void cfg_abort(netsrv_config *cfg) {
    cfg->on_data = abort_at_a;
}

static void do_abort(run *r) {
    client c = dial(r);
    say_text(r, &c, "abort");
    hear_end(r, &c, ECONNRESET);
    hang_up(&c);
    client d = dial(r);
    speak(r, &d, "reset by us");
    peer_reset(d.fd);
    AWAIT(r, rig_closes() == rig_opens());
}

static void more_on_drain(netsrv_conn *c) {
    static const char bytes[20000];
    rig_on_drain(c);
    if (atomic_load(&rig_seen.drains) < 3) {
        netsrv_send(c, bytes, sizeof bytes);
    }
}

static void cfg_drain(netsrv_config *cfg) {
    cfg_queue_max(cfg);
    cfg->queue_max_bytes = 1 << 20;
    cfg->on_drain = more_on_drain;
}

static void do_drain(run *r) {
    static const unsigned char zeros[64 * 1024 + 2 * 20000];
    client c = dial(r);
    say_text(r, &c, "m");
    hear(r, &c, zeros, sizeof zeros);
    hang_up(&c);
}

/* Copied, owned, from a file, and all of it in order. */
#define PIECE 30000
static unsigned char piece[PIECE];
static int piece_fd = -1;

static size_t send_pieces(netsrv_conn *c, const void *data, size_t n) {
    if (((const char *)data)[0] == 'p') {
        return rig_on_data(c, data, n);
    }
    void *mine = malloc(PIECE);
    REQUIRE(mine != NULL);
    memcpy(mine, piece, PIECE);
    netsrv_send(c, piece, 100);
    netsrv_send_owned(c, mine, PIECE, free, mine);
    netsrv_send_file(c, piece_fd, 50, PIECE - 50, NULL, NULL);
    netsrv_send(c, piece, 50);
    return n;
}

static void make_piece(void) {
    char path[] = "/tmp/netsrv-torture.XXXXXX";
    piece_fd = mkstemp(path);
    peer_fill(piece, PIECE, 9);
    REQUIRE(unlink(path) == 0 && pwrite(piece_fd, piece, PIECE, 0) == PIECE);
}

static void cfg_pieces(netsrv_config *cfg) {
    cfg->on_open = small_buffers;
    cfg->on_data = send_pieces;
}

static void do_pieces(run *r) {
    static unsigned char expected[100 + PIECE + PIECE];
    memcpy(expected, piece, 100);
    memcpy(expected + 100, piece, PIECE);
    memcpy(expected + 100 + PIECE, piece + 50, PIECE - 50);
    memcpy(expected + 100 + 2 * PIECE - 50, piece, 50);
    client c = dial(r);
    for (int i = 0; i < 3; i++) {
        say_text(r, &c, "m");
        hear(r, &c, expected, sizeof expected);
    }
    hang_up(&c);
}

/* The same bytes for all, on every worker; refused on all of them or on none. */
static void do_broadcast(run *r) {
    static const char text[5000] = "broadcast";
    client c[4];
    netsrv_result result = NETSRV_NO_MEMORY;
    for (unsigned i = 0; i < 4; i++) {
        c[i] = dial(r);
        speak(r, &c[i], "here");
    }
    for (int i = 0; i < 3 && result != NETSRV_OK; i++) {
        netsrv_buffer *b = netsrv_buffer_create(r->s, text, sizeof text);
        if (b != NULL) {
            result = netsrv_broadcast(r->s, b, NULL, NULL, NULL);
            netsrv_buffer_release(b);
        }
    }
    for (unsigned i = 0; i < 4; i++) {
        if (result == NETSRV_OK) {
            hear(r, &c[i], text, sizeof text);
        }
        hang_up(&c[i]);
    }
    if (result != NETSRV_OK && strict(r)) {
        problem(r, "a broadcast answers %s; ", netsrv_result_text((int)result));
    }
}

/* ---- callbacks on handler threads ------------------------------------------------------------ */

static atomic_int handler_in;    /* a handler has begun what takes long */
static atomic_int handler_leave; /* and may end it */

static void open_gate(run *r) {
    (void)r;
    atomic_store(&handler_leave, 1);
}

/* A client that says "wait" has a handler that takes as long as the test wants. */
static void pass_gate(const void *data, size_t n) {
    if (n == 4 && memcmp(data, "wait", 4) == 0) {
        atomic_fetch_add(&handler_in, 1);
        WAIT_FOR(STRICT_MS, atomic_load(&handler_leave) != 0);
    }
}

static size_t slow_data(netsrv_conn *c, const void *data, size_t n) {
    pass_gate(data, n);
    return rig_on_data(c, data, n);
}

static void cfg_slow(netsrv_config *cfg) {
    cfg->on_open = tell_id;
    cfg->on_data = slow_data;
    cfg->workers = 2;
}

/* Others are served meanwhile, and it is served in the end. */
static void do_slow(run *r) {
    client slow = dial(r);
    client other = dial(r);
    say_text(r, &slow, "wait");
    AWAIT(r, atomic_load(&handler_in) > 0);
    speak(r, &other, "quick");
    speak_much(r, &other, 5000, 2);
    open_gate(r);
    hear_text(r, &slow, "wait");
    speak(r, &slow, "again");
    hang_up(&slow);
    hang_up(&other);
    AWAIT(r, rig_opens() == rig_closes());
}

/* By the peer, by id in order, and by id with a reset: its place goes to another one meanwhile. */
static void end_meanwhile(run *r, client *c, int how) {
    const netsrv_id id = atomic_load(&across_id);
    if (how == 0) {
        peer_reset(c->fd);
        c->fd = -1;
    } else if (how == 1) {
        netsrv_close_id(r->s, id);
    } else {
        netsrv_abort_id(r->s, id);
    }
}

static void do_end_meanwhile(run *r) {
    for (int how = 0; how < 3; how++) {
        atomic_store(&handler_in, 0);
        atomic_store(&handler_leave, 0);
        client c = dial(r);
        say_text(r, &c, "wait");
        AWAIT(r, atomic_load(&handler_in) > 0);
        if (c.fd >= 0) {
            end_meanwhile(r, &c, how);
        }
        client next = dial(r);
        speak(r, &next, "next");
        open_gate(r);
        speak(r, &next, "and on");
        hang_up(&next);
        hang_up(&c);
    }
    AWAIT(r, rig_opens() == rig_closes());
}

static void do_stop_meanwhile(run *r) {
    client idle = dial(r);
    speak(r, &idle, "idle");
    client c = dial(r);
    say_text(r, &c, "wait");
    AWAIT(r, atomic_load(&handler_in) > 0);
    netsrv_stop(r->s, 3000);
    hear_end(r, &idle, PEER_FIN);
    open_gate(r);
    hear_text(r, &c, "wait");
    hear_end(r, &c, PEER_FIN);
    hang_up(&c);
    hang_up(&idle);
}

/* A connection with a callback under way is reset in place, by connecting it to nowhere; where that
 * fails it is reset by its close, when the callback has returned. */
static bool cannot_reset(const run *r) {
    return r->plan->name != NULL && strcmp(r->plan->name, "connect") == 0;
}

/* The time is over at once; what runs is waited for, what waits is dropped. */
static void do_force_meanwhile(run *r) {
    client c[4];
    for (unsigned i = 0; i < 4; i++) {
        c[i] = dial(r);
        say_text(r, &c[i], "wait");
    }
    AWAIT(r, atomic_load(&handler_in) > 0);
    netsrv_stop(r->s, 0);
    if (cannot_reset(r)) {
        open_gate(r);
    }
    for (unsigned i = 0; i < 4; i++) {
        hear_end(r, &c[i], ECONNRESET);
        hang_up(&c[i]);
    }
    open_gate(r);
}

/* One thread and a queue of one: most callbacks wait on their workers. */
static void cfg_full_jobs(netsrv_config *cfg) {
    cfg->workers = 3;
    cfg->handler_threads = 1;
    cfg->jobs_max_count = 1;
    cfg->place = NETSRV_PLACE_ROUND_ROBIN;
    cfg->accept = NETSRV_ACCEPT_SINGLE;
}

static void do_full_jobs(run *r) {
    client c[6];
    for (unsigned i = 0; i < 6; i++) {
        c[i] = dial(r);
    }
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 6; i++) {
            say_text(r, &c[i], "in line\n");
        }
        for (unsigned i = 0; i < 6; i++) {
            hear_text(r, &c[i], "in line\n");
        }
    }
    for (unsigned i = 0; i < 6; i++) {
        hang_up(&c[i]);
    }
    AWAIT(r, rig_opens() == rig_closes());
}

static size_t in_parts(netsrv_conn *c, const void *data, size_t n) {
    const unsigned char *at = data;
    for (size_t i = 0; i < n; i += 1000) {
        const size_t left = n - i < 1000 ? n - i : 1000;
        rig_on_data(c, at + i, left);
        netsrv_flush(c);
    }
    return n;
}

static void cfg_in_parts(netsrv_config *cfg) {
    cfg->on_open = small_buffers;
    cfg->on_data = in_parts;
}

/* Threads that come and go. */
static void cfg_short_idle(netsrv_config *cfg) {
    cfg->handler_idle_ms = 1;
}

/* More connections than threads: the next one has its turn when one has left. */
static void cfg_few_threads(netsrv_config *cfg) {
    cfg->workers = 1;
    cfg->handler_threads = 2;
    cfg->max_conns = 100;
}

static void do_take_turns(run *r) {
    client c[5];
    for (unsigned i = 0; i < 5; i++) {
        c[i] = dial(r);
        say_text(r, &c[i], "my turn");
    }
    for (unsigned i = 0; i < 5; i++) {
        hear_text(r, &c[i], "my turn");
        hang_up(&c[i]);
    }
    AWAIT(r, rig_opens() == rig_closes());
}

/* A connection of our own, to our second listener, with its callbacks on handler threads. */
static atomic_int dialed_ends;

static void greet_dialed(netsrv_conn *c) {
    netsrv_send(c, "to ourselves", 12);
}

static size_t heard_dialed(netsrv_conn *c, const void *data, size_t n) {
    if (n < 12) {
        return 0;
    }
    if (memcmp(data, "to ourselves", 12) == 0) {
        netsrv_close(c);
    }
    return n;
}

static void end_dialed(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    (void)c;
    CHECK((reason == NETSRV_CLOSE_ERROR) == (sys_errno != 0));
    atomic_store(&dialed_ends, reason == NETSRV_CLOSE_LOCAL ? 1 : 2);
}

static void dial_ourselves(netsrv_server *s, unsigned worker, void *arg) {
    static const netsrv_handlers on = { .on_open = greet_dialed, .on_data = heard_dialed,
                                        .on_close = end_dialed };
    char address[NETSRV_ADDRESS_MAX];
    (void)worker;
    (void)arg;
    snprintf(address, sizeof address, "%s:%u", echo_host, (unsigned)netsrv_get_port(s, 1));
    const netsrv_target to = { .address = address, .handlers = &on };
    if (netsrv_dial(s, &to, NULL) != NETSRV_OK) {
        atomic_store(&dialed_ends, 2);
    }
}

static void cfg_dial_jobs(netsrv_config *cfg) {
    echo_host = rig_host();
    cfg->listen[1] = rig_any_port();
}

/* What may be asked for again is: once refused is one cut. */
static void do_dial_jobs(run *r) {
    atomic_store(&dialed_ends, 0);
    if (netsrv_post(r->s, 0, dial_ourselves, NULL) != NETSRV_OK) {
        atomic_store(&dialed_ends, 2);
    }
    AWAIT(r, atomic_load(&dialed_ends) != 0);
    client none = { -1, false };
    if (atomic_load(&dialed_ends) != 1) {
        lost(r, &none, atomic_load(&dialed_ends) == 0 ? PEER_STUCK : ECONNRESET);
    }
}

/* ---- work on other threads ------------------------------------------------------------------- */

/* Bytes that come back by way of another thread. From the server's allocator, so that one whose
 * `done` is never called is found. */
typedef struct errand {
    netsrv_server *server;
    size_t n;
    char first;
    unsigned char bytes[];
} errand;

static atomic_int errands_given;
static atomic_int errands_done;
static netsrv_id full_ids[8]; /* one worker only: connections that wait for room */
static unsigned full_count;

static void errand_free(errand *e) {
    check_alloc(NULL, e, sizeof *e + e->n, 0);
}

static void errand_work(void *arg) {
    errand *e = arg;
    e->first ^= 0x55;
    pass_gate(e->bytes, e->n);
}

static void wake_full(netsrv_server *s) {
    while (full_count > 0) {
        netsrv_conn *c = netsrv_find(s, full_ids[--full_count]);
        if (c != NULL) {
            netsrv_resume(c);
        }
    }
}

static void errand_done(netsrv_conn *c, void *arg, netsrv_result result) {
    errand *e = arg;
    atomic_fetch_add(&errands_done, 1);
    CHECK((c == NULL) == (result == NETSRV_GONE) || result == NETSRV_CANCELLED);
    if (result == NETSRV_OK) {
        CHECK(e->first == (char)(e->bytes[0] ^ 0x55)); /* the work has run */
        netsrv_send(c, e->bytes, e->n);
    } else if (result == NETSRV_CANCELLED && c != NULL) {
        netsrv_send(c, "cancelled", 9);
    }
    wake_full(e->server);
    errand_free(e);
}

/* All of a connection in order. At the bound it waits, with its input kept. */
static size_t by_errand(netsrv_conn *c, const void *data, size_t n) {
    netsrv_task task = 0;
    errand *e = check_alloc(NULL, NULL, 0, sizeof *e + n);
    REQUIRE(e != NULL);
    e->server = netsrv_get_server(c);
    e->n = n;
    memcpy(e->bytes, data, n);
    e->first = (char)e->bytes[0];
    const netsrv_result result =
        netsrv_offload(c, errand_work, errand_done, e, NETSRV_ORDERED, &task);
    if (result == NETSRV_OK) {
        atomic_fetch_add(&errands_given, 1);
        if (n == 6 && memcmp(data, "cancel", 6) == 0) {
            CHECK_EQ(netsrv_cancel(netsrv_get_server(c), task), NETSRV_OK);
        }
        return n;
    }
    errand_free(e);
    if (result == NETSRV_QUEUE_FULL && full_count < 8) {
        full_ids[full_count++] = netsrv_get_id(c);
        netsrv_pause(c);
        return 0;
    }
    CHECK(result == NETSRV_NO_MEMORY || result == NETSRV_SYSTEM);
    netsrv_abort(c);
    return n;
}

static void cfg_offload(netsrv_config *cfg) {
    cfg->on_open = tell_id;
    cfg->on_data = by_errand;
    cfg->workers = 1;
    cfg->offload_threads = 2;
    cfg->handler_idle_ms = 1;
}

static void cfg_offload_full(netsrv_config *cfg) {
    cfg_offload(cfg);
    cfg->offload_max_count = 1;
    cfg->handler_idle_ms = 0;
}

static void do_offload(run *r) {
    client c[3];
    for (unsigned i = 0; i < 3; i++) {
        c[i] = dial(r);
        say_text(r, &c[i], "errand\n");
    }
    for (unsigned i = 0; i < 3; i++) {
        hear_text(r, &c[i], "errand\n");
        speak_much(r, &c[i], 9000, i);
    }
    for (unsigned i = 0; i < 3; i++) {
        hang_up(&c[i]);
    }
}

/* The first is under way, so that the second is taken back before it begins. */
static void do_cancel(run *r) {
    client c = dial(r);
    client d = dial(r);
    say_text(r, &c, "wait");
    say_text(r, &d, "cancel");
    hear_text(r, &d, "cancelled");
    open_gate(r);
    hear_text(r, &c, "wait");
    speak(r, &d, "on");
    hang_up(&c);
    hang_up(&d);
}

/* What the gone connection had given tells nobody, not even the next one in its place. */
static void do_end_offload(run *r) {
    client c = dial(r);
    say_text(r, &c, "wait");
    AWAIT(r, atomic_load(&handler_in) > 0);
    if (c.fd >= 0) {
        say_text(r, &c, "behind it");
        peer_reset(c.fd);
        c.fd = -1;
        AWAIT(r, rig_closes() == rig_opens());
    }
    client next = dial(r);
    speak(r, &next, "next");
    open_gate(r);
    speak(r, &next, "and on");
    hang_up(&next);
}

/* A listener that the program inherited: ours in the child itself. */
static int inherited_fd = -1;

static void cfg_inherited(netsrv_config *cfg) {
    static char listen_fd[16];
    const struct sockaddr_in a = peer_loopback(1, 0);
    inherited_fd = socket(AF_INET, SOCK_STREAM, 0);
    REQUIRE(bind(inherited_fd, (const struct sockaddr *)&a, sizeof a) == 0);
    REQUIRE(listen(inherited_fd, 16) == 0);
    snprintf(listen_fd, sizeof listen_fd, "fd:%d", inherited_fd);
    cfg->listen[0] = listen_fd;
}

enum {
    EXCLUSIVE = 1,
    BY_UNIX = 2,
    EDGES = 4,
    NO_PROBE = 8,
    NOT_POLL = 16,
    POOL = 32, /* callbacks on handler threads */
    OWN = 64   /* ... each connection on its own */
};

static const struct scenario {
    const char *name;
    void (*config)(netsrv_config *cfg);
    void (*exchange)(run *r);
    unsigned flags;
} scenarios[] = {
    { "start", NULL, do_speak, 0 },
    { "echo", cfg_echo, do_echo, 0 },
    { "line", cfg_line, do_line, 0 },
    { "long_line", cfg_line, do_long_line, 0 },
    { "half_close", cfg_half_close, do_half_close, 0 },
    { "idle", cfg_idle, do_idle, NO_PROBE },
    { "write_timeout", cfg_write_timeout, do_not_read, 0 },
    { "queue_max", cfg_queue_max, do_not_read, 0 },
    { "drain", cfg_drain, do_drain, NO_PROBE },
    { "wait_for_place", cfg_wait_for_place, do_wait_for_place, 0 },
    { "reject", cfg_reject, do_reject, NO_PROBE },
    { "per_address", cfg_per_address, do_per_address, NO_PROBE },
    { "mailbox", cfg_mailbox, do_many, 0 },
    { "direct", cfg_direct, do_many, NOT_POLL },
    { "group_oneshot", cfg_group_oneshot, do_many, NOT_POLL },
    { "group_edge", cfg_group_edge, do_many, NOT_POLL | EDGES },
    { "single", cfg_single, do_many, 0 },
    { "shared", cfg_shared, do_many, 0 },
    { "exclusive", cfg_exclusive, do_many, EXCLUSIVE },
    { "edge", cfg_edge, do_many, NOT_POLL | EDGES },
    { "reuseport", cfg_reuseport, do_many, 0 },
    { "many_limits", cfg_many_limits, do_speak, 0 },
    { "graceful_stop", cfg_graceful_stop, do_graceful_stop, NO_PROBE },
    { "quit", cfg_quit, do_quit, NO_PROBE },
    { "restart", NULL, do_restart, 0 },
    { "unix", cfg_unix, do_many, BY_UNIX },
    { "abstract", cfg_abstract, do_speak, BY_UNIX },
    { "across", cfg_across, do_across, NO_PROBE },
    { "watch", cfg_watch, do_watch, 0 },
    { "move", cfg_move, do_many, 0 },
    { "dial", cfg_dial, do_dial, 0 },
    { "dial_name", cfg_dial_name, do_dial, 0 },
    { "pause", cfg_pause, do_pause, 0 },
    { "linger", cfg_linger, do_linger, 0 },
    { "abort", cfg_abort, do_abort, 0 },
    { "inherited", cfg_inherited, do_speak, 0 },
    { "pieces", cfg_pieces, do_pieces, 0 },
    { "broadcast", cfg_single, do_broadcast, 0 },
    { "pool", cfg_mailbox, do_many, POOL },
    { "pool_echo", cfg_echo, do_echo, POOL },
    { "pool_line", cfg_line, do_line, POOL },
    { "pool_long_line", cfg_line, do_long_line, POOL },
    { "pool_half_close", cfg_half_close, do_half_close, POOL },
    { "pool_drain", cfg_drain, do_drain, POOL | NO_PROBE },
    { "pool_write_timeout", cfg_write_timeout, do_not_read, POOL },
    { "pool_queue_max", cfg_queue_max, do_not_read, POOL },
    { "pool_quit", cfg_quit, do_quit, POOL | NO_PROBE },
    { "pool_restart", NULL, do_restart, POOL },
    { "pool_across", cfg_across, do_across, POOL | NO_PROBE },
    { "pool_linger", cfg_linger, do_linger, POOL },
    { "pool_abort", cfg_abort, do_abort, POOL },
    { "pool_pieces", cfg_pieces, do_pieces, POOL },
    { "pool_broadcast", cfg_single, do_broadcast, POOL },
    { "pool_in_parts", cfg_in_parts, do_echo, POOL },
    { "pool_full", cfg_full_jobs, do_full_jobs, 0 },
    { "pool_slow", cfg_slow, do_slow, POOL },
    { "pool_end_meanwhile", cfg_slow, do_end_meanwhile, POOL },
    { "pool_stop_meanwhile", cfg_slow, do_stop_meanwhile, POOL | NO_PROBE },
    { "pool_force_meanwhile", cfg_slow, do_force_meanwhile, POOL | NO_PROBE },
    { "pool_dial", cfg_dial_jobs, do_dial_jobs, POOL },
    { "own", cfg_mailbox, do_many, OWN },
    { "own_echo", cfg_echo, do_echo, OWN },
    { "own_half_close", cfg_half_close, do_half_close, OWN },
    { "own_restart", cfg_short_idle, do_restart, OWN },
    { "own_in_parts", cfg_in_parts, do_echo, OWN },
    { "own_slow", cfg_slow, do_slow, OWN },
    { "own_end_meanwhile", cfg_slow, do_end_meanwhile, OWN },
    { "own_stop_meanwhile", cfg_slow, do_stop_meanwhile, OWN | NO_PROBE },
    { "own_force_meanwhile", cfg_slow, do_force_meanwhile, OWN | NO_PROBE },
    { "own_take_turns", cfg_few_threads, do_take_turns, OWN },
    { "own_dial", cfg_dial_jobs, do_dial_jobs, OWN },
    { "offload", cfg_offload, do_offload, 0 },
    { "offload_full", cfg_offload_full, do_offload, 0 },
    { "offload_cancel", cfg_offload, do_cancel, 0 },
    { "offload_end", cfg_offload, do_end_offload, 0 },
    { "offload_stop", cfg_offload, do_stop_meanwhile, NO_PROBE },
    { "offload_force", cfg_offload, do_force_meanwhile, NO_PROBE },
};
#define SCENARIOS ((int)(sizeof scenarios / sizeof scenarios[0]))

/* ---- one run, inside its child --------------------------------------------------------------- */

/* After a fault that is over, a new client must find the server whole. */
static void probe(run *r) {
    const unsigned cut_before = r->cut;
    if (SEAM_GET(fired) == 0 && r->plan->name != NULL) {
        return;
    }
    seam_fail_stop();
    do_speak(r);
    if (r->cut > cut_before) {
        problem(r, "a client after the fault is not served; ");
    }
}

static void judge_service(run *r) {
    const unsigned fired = (unsigned)SEAM_GET(fired);
    const unsigned allowed = fired == 0 ? 0 : cuts_allowed(r);
    if (r->refused || !strict(r)) {
        return;
    }
    if (r->stuck > 0) {
        problem(r, "%u clients wait in vain; ", r->stuck);
    }
    if (r->cut > allowed) {
        problem(r, "%u connections cut instead of at most %u, the last by %d; ", r->cut, allowed,
                r->cut_by);
    }
}

/* A server that gave up must have been allowed to, and have said so. */
static bool judge_giving_up(run *r) {
    if (r->refused || !gave_up(r)) {
        return false;
    }
    if ((r->plan->flags & FATAL) == 0 && SEAM_GET(fired) > 0 && strict(r)) {
        problem(r, "the server gave up; ");
    }
    if (rig_log_lines(NETSRV_LOG_ERROR) == 0) {
        problem(r, "the server gave up without a word; ");
    }
    return true;
}

static void serve(run *r) {
    const struct scenario *sc = &scenarios[r->plan->scenario];
    sc->exchange(r);
    if (r->refused || (sc->flags & NO_PROBE) != 0) {
        judge_service(r);
        return;
    }
    if (judge_giving_up(r)) {
        return;
    }
    if (strict(r)) {
        probe(r);
    }
    judge_service(r);
}

static void finish(run *r) {
    if (r->s == NULL) {
        return;
    }
    netsrv_stop(r->s, 0);
    wait_ended(r);
    rig_check_ended(r->s);
    if (netsrv_destroy(r->s) != NETSRV_OK) {
        problem(r, "netsrv_destroy fails; ");
    }
}

static void judge_leaks(run *r, int fds, int threads) {
    WAIT_FOR(10000, check_count_threads() <= threads);
    if (check_count_threads() != threads) {
        problem(r, "%d threads left; ", check_count_threads() - threads);
    }
#ifdef NETSRV_LIBKQUEUE
    WAIT_FOR(10000, check_count_fds() == fds); /* its thread closes them when it gets to it */
#endif
    if (check_count_fds() != fds) {
        problem(r, "%d descriptors left; ", check_count_fds() - fds);
    }
    if (check_alloc_blocks() != 0) {
        problem(r, "%ld blocks of %ld bytes left; ", check_alloc_blocks(), check_alloc_bytes());
    }
    if (atomic_load(&check_state.failures) > 0) {
        problem(r, "a check failed; ");
    }
}

static void judge_works(run *r) {
    const int given = atomic_load(&errands_given);
    const int told = atomic_load(&errands_done);
    if (given != told) {
        problem(r, "%d pieces of work were given, and %d told their end; ", given, told);
    }
}

/* A waiting process burns nothing and calls nothing; the scenarios themselves need a few
 * milliseconds. The calls tell even where processors are scarce; short reads and writes
 * make many more of them. */
static void judge_spin(run *r) {
    const uint64_t allowed_us = check_scaled(250000 + 400 * r->out->wall_ms);
    const unsigned long usual = r->plan->usual_calls;
    const unsigned long allowed = r->plan->rough != 0 ? 50 * usual + 5000 : 4 * usual + 1500;
    if (r->plan->name != NULL && usual > 0 && r->out->calls > allowed) {
        problem(r, "spins: %lu calls in %llu ms instead of about %lu; ", r->out->calls,
                (unsigned long long)r->out->wall_ms, usual);
    }
    if (r->out->cpu_us > allowed_us) {
        problem(r, "spins: %llu ms of processor time in %llu ms; ",
                (unsigned long long)r->out->cpu_us / 1000, (unsigned long long)r->out->wall_ms);
    }
}

static void tell_calls(report *out) {
    out->fired = SEAM_GET(fired);
    out->calls = SEAM_GET(total);
    for (int i = 0; i < SEAM_NAMES_MAX; i++) {
        out->names[i] = SEAM_GET(names[i]);
        out->counts[i] = SEAM_GET(counts[i]);
    }
}

static void prepare(run *r) {
    const struct scenario *sc = &scenarios[r->plan->scenario];
    r->cfg = rig_config(r->plan->backend, 2);
    r->cfg.linger_timeout_ms = 300;
    if (sc->config != NULL) {
        sc->config(&r->cfg);
    }
    if ((sc->flags & (POOL | OWN)) != 0) {
        r->cfg.handler_stack_bytes = 256 << 10;
        r->cfg.handler_threads = r->cfg.handler_threads != 0 ? r->cfg.handler_threads : 4;
    }
    if ((sc->flags & OWN) != 0) {
        r->cfg.place = NETSRV_PLACE_OWN_THREAD;
        r->cfg.stuck_ms = 1; /* told or not, and counted: it changes nothing */
    }
    r->unix_name = (sc->flags & BY_UNIX) != 0 ? unix_path : NULL;
}

/* Nothing of this is a fault. Pieces stay longer than what a handler must see whole. */
static void roughen(unsigned seed) {
    SEAM_SET(seed, seed);
    SEAM_SET(clip_exactly, true);
    SEAM_SET(recv_clip, 500 + seam_draw(3000));
    SEAM_SET(send_clip, 500 + seam_draw(3000));
    SEAM_SET(permute, true);
    SEAM_SET(repeat, true);
    SEAM_SET(disturb, true);
}

/* The processor time counts from the first fault on, so that a slow start is no spin. */
static void play(const plan *p, report *out, uint64_t seed) {
    run r = { .plan = p, .out = out };
    check_state.case_name = scenarios[p->scenario].name;
    seam_reset(seed);
    rig_settle_libkqueue();
    const int fds = check_count_fds();
    const int threads = check_count_threads();
    prepare(&r);
    if (p->name != NULL) {
        const long times = !p->always ? 1 : (p->flags & REPEAT) != 0 ? STORM : SEAM_FOREVER;
        seam_fail((seam_plan){ p->name, p->nth, p->err, times });
    }
    if (p->rough != 0) {
        roughen(p->rough);
    }
    r.began_ms = check_now_ms();
    const uint64_t cpu_before = check_cpu_us();
    if (create(&r) && start(&r)) {
        serve(&r);
    }
    out->wall_ms = check_now_ms() - r.began_ms;
    out->cpu_us = check_cpu_us() - cpu_before;
    open_gate(&r);
    finish(&r);
    seam_fail_stop();
    judge_works(&r);
    if (inherited_fd >= 0) {
        close(inherited_fd);
    }
    close_pipe_line();
    if (r.unix_name != NULL && r.unix_name[0] == '/') {
        unlink(r.unix_name);
    }
    tell_calls(out);
    judge_leaks(&r, fds, threads);
    judge_spin(&r);
    if (out->findings > 0) {
        fputs(rig_log_book.text, stderr);
    }
    out->done = true;
}

/* ---- the parent: children side by side ------------------------------------------------------- */

typedef struct job {
    pid_t pid; /* 0: free */
    plan plan;
    uint64_t began_ms;
    int err_fd; /* what the child says on stderr */
} job;

static struct {
    uint64_t seed;
    unsigned jobs;
    bool full;
    bool verbose;
    uint64_t seconds;
    const char *only; /* NAME, NAME/BACKEND, or /BACKEND */
    plan replay;
    bool replaying;

    job job[JOBS_MAX];
    report *results; /* one for each job, shared with the children */
    plan *plans;
    unsigned long plan_count;
    unsigned long sites;
    unsigned long sampled;
    unsigned long runs;
    unsigned long reached;
    unsigned long findings;
    uint64_t began_ms;
} torture = { .seed = 1 };

static void describe(const plan *p, char *text, size_t n) {
    const int used = snprintf(text, n, "--seed=%llu --scenario=%s/%s",
                              (unsigned long long)torture.seed, scenarios[p->scenario].name,
                              netsrv_backend_name((int)p->backend));
    if (p->name != NULL && used > 0 && (size_t)used < n) {
        snprintf(text + used, n - (size_t)used,
                 " --name=%s --nth=%u --errno=%s --mode=%s --rough=%u", p->name, p->nth,
                 errno_name(p->err), p->always ? "always" : "once", p->rough);
    }
}

static void print_finding(const job *j, const report *out, const char *how) {
    char replay[256];
    char said[SAID_BYTES] = "";
    describe(&j->plan, replay, sizeof replay);
    if (++torture.findings > FINDINGS_PRINTED) {
        return;
    }
    const ssize_t n = pread(j->err_fd, said, sizeof said - 1, 0);
    said[n > 0 ? n : 0] = '\0';
    printf("FINDING %s%s\n# replay: torture %s\n%s", how, out->text, replay, said);
}

static void judge_child(const job *j, int status) {
    const report *out = &torture.results[j - torture.job];
    char how[64] = "";
    torture.runs++;
    torture.reached += out->fired > 0;
    if (WIFSIGNALED(status)) {
        snprintf(how, sizeof how, "died of signal %d; ", WTERMSIG(status));
    } else if (WEXITSTATUS(status) != 0) {
        snprintf(how, sizeof how, "exited with %d; ", WEXITSTATUS(status));
    } else if (!out->done) {
        snprintf(how, sizeof how, "ended early; ");
    }
    if (how[0] != '\0' || out->findings > 0) {
        print_finding(j, out, how);
    }
}

static void launch(job *j, const plan *p) {
    report *out = &torture.results[j - torture.job];
    memset(out, 0, sizeof *out);
    j->plan = *p;
    j->began_ms = check_now_ms();
    if (ftruncate(j->err_fd, 0) != 0) {
        perror("ftruncate");
    }
    fflush(stdout);
    j->pid = fork();
    REQUIRE(j->pid >= 0);
    if (j->pid > 0) {
        return;
    }
    lseek(j->err_fd, 0, SEEK_SET);
    dup2(j->err_fd, STDERR_FILENO);
    play(p, out, torture.seed);
    exit(0);
}

static void reap(job *j) {
    int status = 0;
    const pid_t pid = waitpid(j->pid, &status, WNOHANG);
    if (pid == j->pid) {
        judge_child(j, status);
        j->pid = 0;
        return;
    }
    if (check_now_ms() - j->began_ms <= check_scaled(HANG_MS)) {
        return;
    }
    kill(j->pid, SIGKILL);
    waitpid(j->pid, &status, 0);
    print_finding(j, &torture.results[j - torture.job], "hangs; ");
    torture.runs++;
    j->pid = 0;
}

static unsigned reap_all(void) {
    unsigned busy = 0;
    for (unsigned i = 0; i < torture.jobs; i++) {
        if (torture.job[i].pid > 0) {
            reap(&torture.job[i]);
        }
        busy += torture.job[i].pid > 0;
    }
    return busy;
}

static job *free_job(void) {
    for (;;) {
        reap_all();
        for (unsigned i = 0; i < torture.jobs; i++) {
            if (torture.job[i].pid == 0) {
                return &torture.job[i];
            }
        }
        check_nap();
    }
}

static void drain_jobs(void) {
    while (reap_all() > 0) {
        check_nap();
    }
}

/* ---- which sites, which errnos --------------------------------------------------------------- */

/* Every third run is a rough one. */
static void add_plan(const plan *p) {
    const unsigned long rough = seam_draw(3) == 0 ? 1 + seam_draw(1000000) : 0;
    if (torture.plan_count < PLANS_MAX) {
        torture.plans[torture.plan_count] = *p;
        torture.plans[torture.plan_count++].rough = (unsigned)rough;
    }
}

static void plan_errnos(plan p, const kind *k) {
    const bool edges = (scenarios[p.scenario].flags & EDGES) != 0;
    if (edges && (k->flags & LEVEL) != 0) {
        return;
    }
    p.flags = k->flags;
    for (int i = 0; i < ERRNOS_MAX && k->errnos[i] != 0; i++) {
        p.err = k->errnos[i];
        p.always = false;
        add_plan(&p);
        if ((k->flags & ONCE) == 0) {
            p.always = true;
            add_plan(&p);
        }
    }
}

static void plan_kinds(const plan *p) {
    bool known = false;
    for (int i = 0; i < KINDS; i++) {
        const bool same = kinds[i].name != NULL && strcmp(kinds[i].name, p->name) == 0;
        if (kinds[i].name == NULL ? !known : same) {
            plan_errnos(*p, &kinds[i]);
        }
        known = known || same;
    }
}

/* The first few calls of a name differ most; of the later ones a sample is enough. */
static void plan_name(plan p, unsigned long count) {
    const unsigned long first = torture.full ? 6 : 3;
    const unsigned long later = torture.full ? 4 : 1;
    for (unsigned long n = 1; n <= count && n <= first; n++) {
        p.nth = (unsigned)n;
        plan_kinds(&p);
        torture.sampled++;
    }
    for (unsigned long i = 0; i < later && count > first; i++) {
        p.nth = (unsigned)(first + 1 + seam_draw(count - first));
        plan_kinds(&p);
        torture.sampled++;
    }
}

static void plan_scenario(const plan *p, const report *counted) {
    for (int i = 0; i < SEAM_NAMES_MAX; i++) {
        plan q = *p;
        if (counted->names[i] == NULL || counted->counts[i] == 0) {
            continue;
        }
        q.name = counted->names[i];
        q.usual_calls = counted->calls;
        torture.sites += counted->counts[i];
        plan_name(q, counted->counts[i]);
        if (torture.verbose) {
            printf("  %-14s %-6s %-18s %lu\n", scenarios[p->scenario].name,
                   netsrv_backend_name((int)p->backend), q.name, counted->counts[i]);
        }
    }
}

static bool wanted(const plan *p) {
    char name[64];
    if (torture.only == NULL) {
        return true;
    }
    snprintf(name, sizeof name, "%s/%s", scenarios[p->scenario].name,
             netsrv_backend_name((int)p->backend));
    const size_t n = strlen(torture.only);
    const char *from = torture.only[0] == '/' ? strchr(name, '/') : name;
    return strncmp(from, torture.only, n) == 0 && (from[n] == '\0' || from[n] == '/');
}

static void count_scenario(const plan *p) {
    job *j = &torture.job[0];
    launch(j, p);
    drain_jobs();
    plan_scenario(p, &torture.results[0]);
}

static void each_scenario(void (*visit)(const plan *p)) {
    for (int i = 0; i < SCENARIOS; i++) {
        for (size_t b = 0; b < RIG_BACKENDS; b++) {
            const plan p = { .scenario = i, .backend = rig_backends[b] };
            const unsigned flags = scenarios[i].flags;
            const bool fits =
                ((flags & EXCLUSIVE) == 0 || rig_accepts(p.backend, NETSRV_ACCEPT_EXCLUSIVE)) &&
                ((flags & NOT_POLL) == 0 || rig_shares(p.backend));
            if (fits && wanted(&p)) {
                visit(&p);
            }
        }
    }
}

static void shuffle_plans(void) {
    for (unsigned long i = torture.plan_count; i > 1; i--) {
        const unsigned long j = seam_draw(i);
        const plan t = torture.plans[i - 1];
        torture.plans[i - 1] = torture.plans[j];
        torture.plans[j] = t;
    }
}

static void run_plans(void) {
    const uint64_t end_ms = torture.began_ms + torture.seconds * 1000;
    for (unsigned long i = 0; i < torture.plan_count && check_now_ms() < end_ms; i++) {
        launch(free_job(), &torture.plans[i]);
    }
    drain_jobs();
}

/* ---- replay and options ---------------------------------------------------------------------- */

static void replay(const plan *p) {
    plan q = torture.replay;
    q.scenario = p->scenario;
    q.backend = p->backend;
    for (int i = 0; i < KINDS; i++) {
        for (int e = 0; kinds[i].name != NULL && kinds[i].errnos[e] != 0; e++) {
            if (strcmp(kinds[i].name, q.name) == 0 && kinds[i].errnos[e] == q.err) {
                q.flags = kinds[i].flags;
            }
        }
    }
    launch(&torture.job[0], &q);
    drain_jobs();
    const report *out = &torture.results[0];
    printf("fired %lu times, %lu calls, %llu ms, %llu ms of processor time\n", out->fired,
           out->calls, (unsigned long long)out->wall_ms, (unsigned long long)out->cpu_us / 1000);
}

static const char *value_of(const char *arg, const char *option) {
    const size_t n = strlen(option);
    return strncmp(arg, option, n) == 0 ? arg + n : NULL;
}

static bool read_replay(const char *arg) {
    plan *p = &torture.replay;
    const char *v;
    if ((v = value_of(arg, "--name=")) != NULL) {
        p->name = v;
    } else if ((v = value_of(arg, "--nth=")) != NULL) {
        p->nth = (unsigned)strtoul(v, NULL, 10);
    } else if ((v = value_of(arg, "--errno=")) != NULL) {
        p->err = errno_number(v);
    } else if ((v = value_of(arg, "--mode=")) != NULL) {
        p->always = strcmp(v, "always") == 0;
    } else if ((v = value_of(arg, "--rough=")) != NULL) {
        p->rough = (unsigned)strtoul(v, NULL, 10);
    } else {
        return false;
    }
    return true;
}

static bool read_option(const char *arg) {
    const char *v;
    if (strcmp(arg, "--full") == 0) {
        torture.full = true;
    } else if (strcmp(arg, "-v") == 0) {
        torture.verbose = true;
    } else if ((v = value_of(arg, "--seed=")) != NULL) {
        torture.seed = strtoull(v, NULL, 10);
    } else if ((v = value_of(arg, "--seconds=")) != NULL) {
        torture.seconds = strtoull(v, NULL, 10);
    } else if ((v = value_of(arg, "--jobs=")) != NULL) {
        torture.jobs = (unsigned)strtoul(v, NULL, 10);
    } else if ((v = value_of(arg, "--scenario=")) != NULL) {
        torture.only = v;
    } else {
        return read_replay(arg);
    }
    return true;
}

static bool read_known_option(const char *arg) {
    if (read_option(arg)) {
        return true;
    }
    fprintf(stderr, "torture: unknown option %s\n", arg);
    return false;
}

/* Before those of the command line, which thus win. */
static bool read_environment(void) {
    const char *text = getenv("TORTURE");
    static char copy[512]; /* options point into it */
    char *rest = NULL;
    snprintf(copy, sizeof copy, "%s", text != NULL ? text : "");
    for (char *word = strtok_r(copy, " ", &rest); word != NULL; word = strtok_r(NULL, " ", &rest)) {
        if (!read_known_option(word)) {
            return false;
        }
    }
    return true;
}

static bool read_options(int argc, char **argv) {
    if (!read_environment()) {
        return false;
    }
    for (int i = 1; i < argc; i++) {
        if (!read_known_option(argv[i])) {
            return false;
        }
    }
    torture.replaying = torture.replay.name != NULL;
    torture.jobs = torture.jobs < 1 ? 8 : torture.jobs > JOBS_MAX ? JOBS_MAX : torture.jobs;
    if (torture.seconds == 0) {
        torture.seconds = torture.full ? 420 : 40;
    }
    return true;
}

static void open_books(void) {
    const size_t bytes = sizeof(report) * JOBS_MAX;
    torture.results =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(torture.results != MAP_FAILED);
    torture.plans = calloc(PLANS_MAX, sizeof *torture.plans);
    REQUIRE(torture.plans != NULL);
    for (unsigned i = 0; i < torture.jobs; i++) {
        torture.job[i].err_fd = port_scratch();
        REQUIRE(torture.job[i].err_fd >= 0);
    }
}

int main(int argc, char **argv) {
    check_begin(1, argv);
    if (!read_options(argc, argv)) {
        return 2;
    }
    open_books();
    make_piece();
    torture.began_ms = check_now_ms();
    if (torture.replaying) {
        each_scenario(replay);
        return torture.findings > 0;
    }
    seam_reset(torture.seed);
    each_scenario(count_scenario);
    shuffle_plans();
    run_plans();
    if (torture.findings > FINDINGS_PRINTED) {
        printf("... and %lu findings more\n", torture.findings - FINDINGS_PRINTED);
    }
    printf("%lu sites, %lu sampled, %lu runs for %lu plans, %lu met their fault, %lu findings "
           "(seed %llu, %llu s)\n",
           torture.sites, torture.sampled, torture.runs, torture.plan_count, torture.reached,
           torture.findings, (unsigned long long)torture.seed,
           (unsigned long long)(check_now_ms() - torture.began_ms) / 1000);
    return torture.findings > 0;
}
