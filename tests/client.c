/* client: a scripted TCP client for the tests. Each argument after the address is one step, named
 * by one letter, mostly one system call; any number of connections run the same script side by side
 * on one thread. Every wait has a deadline. `client -h` prints the list of steps.
 *
 * stdout: transcripts, deterministic: no addresses, no times. stderr: failures, and times with -t.
 * Exit: 0 all expectations met, 1 one was not, 2 wrong usage.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    LOOPS_MAX = 4,
    CHUNK_MAX = 256 * 1024,
    LINE_CAP = 4096,
    FLOOD_QUIET_MS = 200,
    CONNECTS_PER_TURN = 256,
    TRANSCRIPT_MAX = 16 * 1024
};

static const char usage_text[] =
    "usage: client [options] ADDRESS STEP...\n"
    "\n"
    "  ADDRESS  127.0.0.1:7000  [::1]:7000  unix:/path  unix:@name\n"
    "\n"
    "  -n N     connections in all (1)         -p N     of these at once (all)\n"
    "  -i MS    time between two starts (0)    -d MS    deadline of every wait (10000),\n"
    "                                          times CHECK_SCALE of the environment\n"
    "  -b IP    bind to this IPv4 address; 127.0.0.2-50 takes one after the other\n"
    "  -c N     longest random chunk (262144)  -s SEED  of chunks and data (1)\n"
    "  -l       the stream is text in lines, not arbitrary bytes\n"
    "  -q       no transcript                  -t       times on stderr\n"
    "  -k PID   with -a: send SIGTERM to PID after that many connections ended; then start\n"
    "  -a N     no more, and excuse those that were not established at that moment\n"
    "\n"
    "  C        connect                        Q        connect must be refused\n"
    "  c        connect; a reset that comes at once is no failure (also before T and Z)\n"
    "  Stext    send text (\\n \\r \\t \\0 \\\\ \\xHH)   Rtext    receive exactly that text\n"
    "  s:N      send N bytes of the stream     r:N      receive and verify N bytes of it\n"
    "  D:N      both at once, random chunks    H:N      the same, FIN after the last byte sent\n"
    "  Y:N      send at most N bytes of the stream until the peer takes no more; read nothing\n"
    "  L        receive and print one line     G:N      receive and print N bytes raw (G: all)\n"
    "  M:N      receive N bytes and forget     M        receive all and forget\n"
    "  F        shutdown for writing           O        send one byte out of band\n"
    "  K        close                          X        reset\n"
    "  E        expect the end (FIN)           T        expect a reset\n"
    "  Z        expect an end of either kind   N:MS     expect nothing for so long\n"
    "  W        wait until readable            P:MS     pause\n"
    "  U        wait until stdin has a line or ends; prints `held N` once all are here\n"
    "  A:MS     at least so long since the start of this connection or the last A\n"
    "  B:MS     at most so long since then     V:N      receive buffer of N bytes (before C)\n"
    "  [:N ]    repeat what is between N times\n";

/* What a step says when it has done what it can for now. */
typedef enum step_result {
    DONE,
    WAIT_READ,
    WAIT_WRITE,
    WAIT_BOTH,
    WAIT_TIME,
    WAIT_GATE,
    FAIL
} step_result;

typedef struct action {
    char op;
    bool has_number;
    uint64_t number;
    char *text;
    size_t length;
    size_t partner; /* of [ and ]: index of the other */
} action;

typedef enum phase { NEW, RUNNING, ENDED, FAILED, EXCUSED } phase;

typedef struct conn {
    phase phase;
    step_result waits;
    bool fresh; /* the present step has not run yet */
    bool connecting;
    bool established; /* before the signal was sent */
    bool refused; /* a reset came before connect had ended: accepted, and reset at once */
    int fd;
    size_t step;
    unsigned index;
    uint64_t sent, received; /* of the present step */
    uint64_t out_at, in_at;  /* places in the stream */
    uint64_t deadline_ms, wake_ms, mark_ms;
    uint64_t random;
    unsigned depth;
    uint64_t loop_left[LOOPS_MAX];
    int receive_buffer;
    char *transcript;
    size_t transcript_length;
    char *failure;
} conn;

typedef struct options {
    unsigned count, parallel;
    uint64_t interval_ms, deadline_ms;
    size_t chunk_max;
    uint64_t seed;
    bool lines, quiet, times;
    pid_t kill_pid;
    unsigned kill_after;
    uint32_t bind_first, bind_count; /* host byte order; 0 = do not bind */
    struct sockaddr_storage address;
    socklen_t address_length;
    action *actions;
    size_t action_count;
} options;

static struct {
    options o;
    conn *conns;
    struct pollfd *polls;
    unsigned *poll_owner;
    unsigned started, ended, running, failed, excused, gated;
    bool gate_open, gate_told, killed;
    uint64_t next_start_ms, begin_ms;
    unsigned char send_buffer[CHUNK_MAX], receive_buffer[CHUNK_MAX], expected[CHUNK_MAX];
} g;

/* ---- small things ---------------------------------------------------------------------------- */

static void die(const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    fputs("client: ", stderr);
    vfprintf(stderr, format, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(2);
}

static void *must_alloc(void *old, size_t n) {
    void *p = realloc(old, n);
    if (p == NULL) {
        die("out of memory");
    }
    return p;
}

static uint64_t now_ms(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t parse_number(const char *text, const char *what) {
    char *end;
    errno = 0;
    const unsigned long long n = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || *text == '-') {
        die("%s: not a number: '%s'", what, text);
    }
    return n;
}

/* ---- addresses ------------------------------------------------------------------------------- */

static void address_unix(const char *path) {
    struct sockaddr_un *un = (struct sockaddr_un *)&g.o.address;
    const size_t n = strlen(path);
    if (n == 0 || n >= sizeof un->sun_path) {
        die("bad unix path '%s'", path);
    }
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, path, n);
    if (path[0] == '@') {
        un->sun_path[0] = '\0';
    }
    g.o.address_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
    if (path[0] != '@') {
        g.o.address_length++;
    }
}

static void address_ip(const char *text) {
    char host[128];
    const char *colon = strrchr(text, ':');
    if (colon == NULL || (size_t)(colon - text) >= sizeof host) {
        die("bad address '%s'", text);
    }
    snprintf(host, sizeof host, "%.*s", (int)(colon - text), text);
    const uint16_t port = (uint16_t)parse_number(colon + 1, "port");
    struct sockaddr_in *in = (struct sockaddr_in *)&g.o.address;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&g.o.address;
    size_t n = strlen(host);
    if (host[0] == '[' && host[n - 1] == ']') {
        host[n - 1] = '\0';
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons(port);
        if (inet_pton(AF_INET6, host + 1, &in6->sin6_addr) != 1) {
            die("bad address '%s'", text);
        }
        g.o.address_length = sizeof *in6;
        return;
    }
    in->sin_family = AF_INET;
    in->sin_port = htons(port);
    if (inet_pton(AF_INET, host, &in->sin_addr) != 1) {
        die("bad address '%s'", text);
    }
    g.o.address_length = sizeof *in;
}

static void address_parse(const char *text) {
    if (strncmp(text, "unix:", 5) == 0) {
        address_unix(text + 5);
    } else {
        address_ip(text);
    }
}

static void bind_parse(const char *text) {
    char first[64];
    struct in_addr in;
    const char *dash = strchr(text, '-');
    snprintf(first, sizeof first, "%.*s", dash != NULL ? (int)(dash - text) : 63, text);
    if (inet_pton(AF_INET, first, &in) != 1) {
        die("bad source address '%s'", text);
    }
    g.o.bind_first = ntohl(in.s_addr);
    g.o.bind_count = 1;
    if (dash != NULL) {
        const uint64_t last = parse_number(dash + 1, "last source address");
        if (last > 255 || last < (g.o.bind_first & 255u)) {
            die("bad source address '%s'", text);
        }
        g.o.bind_count = (uint32_t)last - (g.o.bind_first & 255u) + 1;
    }
}

/* ---- the stream: byte number `at` of connection `index` -------------------------------------- */

static unsigned char stream_byte(unsigned index, uint64_t at) {
    const uint64_t block = mix(g.o.seed ^ ((uint64_t)index << 40) ^ (at >> 3));
    const unsigned char byte = (unsigned char)(block >> ((at & 7u) * 8u));
    if (!g.o.lines) {
        return byte;
    }
    return byte < 6 ? '\n' : (unsigned char)('a' + byte % 26);
}

static void stream_fill(unsigned char *to, size_t n, unsigned index, uint64_t at) {
    for (size_t i = 0; i < n; i++) {
        to[i] = stream_byte(index, at + i);
    }
}

/* ---- transcript and failure ------------------------------------------------------------------ */

static void tell(conn *c, const char *format, ...) {
    char text[LINE_CAP + 64];
    if (g.o.quiet || c->transcript_length > TRANSCRIPT_MAX) {
        return;
    }
    va_list ap;
    va_start(ap, format);
    const int n = vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    const size_t length = n < (int)sizeof text ? (size_t)n : sizeof text - 1;
    c->transcript = must_alloc(c->transcript, c->transcript_length + length + 2);
    if (c->transcript_length > 0) {
        c->transcript[c->transcript_length++] = ' ';
    }
    memcpy(c->transcript + c->transcript_length, text, length + 1);
    c->transcript_length += length;
}

static void print_quoted(char *to, size_t cap, const unsigned char *data, size_t n) {
    size_t used = 0;
    for (size_t i = 0; i < n && used + 5 < cap; i++) {
        const unsigned char b = data[i];
        const char *named = b == '\n' ? "\\n" : b == '\r' ? "\\r" : b == '\\' ? "\\\\" : NULL;
        if (named != NULL) {
            used += (size_t)snprintf(to + used, cap - used, "%s", named);
        } else if (b < 32 || b > 126) {
            used += (size_t)snprintf(to + used, cap - used, "\\x%02x", b);
        } else {
            to[used++] = (char)b;
        }
    }
    to[used] = '\0';
}

static step_result fail(conn *c, const char *format, ...) {
    char text[1024];
    va_list ap;
    if (c->failure != NULL) {
        return FAIL;
    }
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    c->failure = must_alloc(NULL, strlen(text) + 1);
    memcpy(c->failure, text, strlen(text) + 1);
    return FAIL;
}

/* ---- system calls that a step needs ---------------------------------------------------------- */

static void shut(conn *c) {
    if (c->fd >= 0) {
        close(c->fd);
        c->fd = -1;
    }
}

/* One recv. Positive: bytes; 0: end; -1: nothing now; -2: failed, and told. */
static ssize_t take(conn *c, unsigned char *to, size_t n) {
    const ssize_t got = recv(c->fd, to, n, 0);
    if (got >= 0) {
        return got;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
        return -1;
    }
    fail(c, "recv: %s", strerror(errno));
    return -2;
}

static size_t random_chunk(conn *c, uint64_t left) {
    static const size_t tops[4] = {16, 1500, 16384, CHUNK_MAX};
    c->random = mix(c->random);
    size_t top = tops[c->random & 3u];
    top = top > g.o.chunk_max ? g.o.chunk_max : top;
    const size_t n = 1 + (size_t)((c->random >> 8) % top);
    return n > left ? (size_t)left : n;
}

/* Sends one chunk of the stream: DONE when `total` is reached. */
static step_result send_stream(conn *c, uint64_t total) {
    const size_t n = random_chunk(c, total - c->sent);
    if (n == 0) {
        return DONE;
    }
    stream_fill(g.send_buffer, n, c->index, c->out_at);
    const ssize_t put = send(c->fd, g.send_buffer, n, MSG_NOSIGNAL);
    if (put < 0) {
        return errno == EAGAIN || errno == EINTR ? WAIT_WRITE
                                                 : fail(c, "send: %s", strerror(errno));
    }
    c->sent += (uint64_t)put;
    c->out_at += (uint64_t)put;
    return c->sent == total ? DONE : WAIT_WRITE;
}

/* Receives one chunk of the stream and compares it. */
static step_result receive_stream(conn *c, uint64_t total) {
    const size_t n = random_chunk(c, total - c->received);
    if (n == 0) {
        return DONE;
    }
    const ssize_t got = take(c, g.receive_buffer, n);
    if (got == -1) {
        return WAIT_READ;
    }
    if (got <= 0) {
        return got < 0 ? FAIL : fail(c, "end after %llu of %llu bytes",
                                     (unsigned long long)c->received, (unsigned long long)total);
    }
    stream_fill(g.expected, (size_t)got, c->index, c->in_at);
    for (size_t i = 0; i < (size_t)got; i++) {
        if (g.expected[i] != g.receive_buffer[i]) {
            return fail(c, "byte %llu of the stream is wrong: %02x instead of %02x",
                        (unsigned long long)(c->in_at + i), g.receive_buffer[i], g.expected[i]);
        }
    }
    c->received += (uint64_t)got;
    c->in_at += (uint64_t)got;
    return c->received == total ? DONE : WAIT_READ;
}

/* ---- steps: one function for each letter ----------------------------------------------------- */

static void bind_source(conn *c) {
    struct sockaddr_in in;
    const int one = 1;
    memset(&in, 0, sizeof in);
    in.sin_family = AF_INET;
    in.sin_addr.s_addr = htonl(g.o.bind_first + c->index % g.o.bind_count);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(c->fd, (struct sockaddr *)&in, sizeof in) != 0) {
        fail(c, "bind to source %u: %s", c->index % g.o.bind_count, strerror(errno));
    }
}

/* Ends with 0, -1 for "wait", or an errno. */
static int connect_begin(conn *c) {
    const int one = 1;
    shut(c);
    c->fd = socket(g.o.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        return errno;
    }
    if (c->receive_buffer > 0) {
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &c->receive_buffer, sizeof c->receive_buffer);
    }
    if (g.o.address.ss_family != AF_UNIX) {
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    if (g.o.bind_count > 0) {
        bind_source(c);
    }
    if (connect(c->fd, (struct sockaddr *)&g.o.address, g.o.address_length) == 0) {
        return 0;
    }
    return errno == EINPROGRESS || errno == EINTR ? -1 : errno;
}

static int connect_result(conn *c) {
    int error = 0;
    socklen_t n = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &n);
    return error;
}

/* A unix listener with a full backlog says EAGAIN: try again a little later. */
static step_result connect_retry(conn *c) {
    shut(c);
    c->connecting = false;
    c->wake_ms = now_ms() + 5;
    return WAIT_TIME;
}

static step_result connect_step(conn *c, int *error) {
    *error = c->connecting ? connect_result(c) : connect_begin(c);
    if (*error == EAGAIN) {
        return connect_retry(c);
    }
    c->connecting = *error == -1;
    return c->connecting ? WAIT_WRITE : DONE;
}

static step_result step_connect(conn *c, const action *a) {
    int error;
    const step_result result = connect_step(c, &error);
    if (result != DONE) {
        return result;
    }
    const bool may = a->op == 'c' || a[1].op == 'T' || a[1].op == 'Z';
    c->refused = may && error == ECONNRESET;
    if (error != 0 && !c->refused) {
        return fail(c, "connect: %s", strerror(error));
    }
    c->established = c->established || !g.killed;
    tell(c, "C");
    return DONE;
}

static step_result step_refused(conn *c, const action *a) {
    int error;
    (void)a;
    const step_result result = connect_step(c, &error);
    if (result != DONE) {
        return result;
    }
    shut(c);
    if (error == 0) {
        return fail(c, "connect succeeded, refusal expected");
    }
    tell(c, "Q");
    return DONE;
}

static step_result step_send_text(conn *c, const action *a) {
    while (c->sent < a->length) {
        const ssize_t n = send(c->fd, a->text + c->sent, a->length - (size_t)c->sent, MSG_NOSIGNAL);
        if (n < 0) {
            return errno == EAGAIN ? WAIT_WRITE : fail(c, "send: %s", strerror(errno));
        }
        c->sent += (uint64_t)n;
    }
    tell(c, "S%zu", a->length);
    return DONE;
}

static step_result wrong_text(conn *c, const action *a, size_t n) {
    char want[256], got[256];
    print_quoted(want, sizeof want, (const unsigned char *)a->text, a->length);
    print_quoted(got, sizeof got, g.receive_buffer, n);
    return fail(c, "received \"%s\" at offset %llu of \"%s\"", got,
                (unsigned long long)c->received, want);
}

static step_result step_receive_text(conn *c, const action *a) {
    char shown[LINE_CAP];
    while (c->received < a->length) {
        const ssize_t n = take(c, g.receive_buffer, a->length - (size_t)c->received);
        if (n == -1) {
            return WAIT_READ;
        }
        if (n <= 0) {
            return n < 0 ? FAIL : fail(c, "end after %llu of %zu bytes of text",
                                       (unsigned long long)c->received, a->length);
        }
        if (memcmp(g.receive_buffer, a->text + c->received, (size_t)n) != 0) {
            return wrong_text(c, a, (size_t)n);
        }
        c->received += (uint64_t)n;
    }
    print_quoted(shown, sizeof shown, (const unsigned char *)a->text, a->length);
    tell(c, "R\"%s\"", shown);
    return DONE;
}

static step_result step_send_stream(conn *c, const action *a) {
    const step_result result = send_stream(c, a->number);
    if (result == DONE) {
        tell(c, "s:%llu", (unsigned long long)a->number);
    }
    return result;
}

static step_result step_receive_stream(conn *c, const action *a) {
    const step_result result = receive_stream(c, a->number);
    if (result == DONE) {
        tell(c, "r:%llu", (unsigned long long)a->number);
    }
    return result;
}

static step_result step_duplex(conn *c, const action *a) {
    const bool was_sending = c->sent < a->number;
    if (was_sending && send_stream(c, a->number) == FAIL) {
        return FAIL;
    }
    if (was_sending && c->sent == a->number && a->op == 'H') {
        shutdown(c->fd, SHUT_WR);
    }
    if (receive_stream(c, a->number) == FAIL) {
        return FAIL;
    }
    if (c->received == a->number && c->sent == a->number) {
        tell(c, "%c:%llu", a->op, (unsigned long long)a->number);
        return DONE;
    }
    return c->sent < a->number ? WAIT_BOTH : WAIT_READ;
}

/* How much fits depends on the kernel's buffers, so the amount is not part of the transcript. The
 * end is told by poll alone: a buffer that is nearly full still takes a few bytes at every try. */
static step_result step_flood(conn *c, const action *a) {
    const bool over = !c->fresh && now_ms() >= c->wake_ms;
    const step_result result = over ? DONE : send_stream(c, a->number);
    if (result == FAIL) {
        return FAIL;
    }
    if (result == DONE) {
        tell(c, "Y");
        return DONE;
    }
    c->wake_ms = now_ms() + FLOOD_QUIET_MS;
    return WAIT_WRITE;
}

static step_result step_line(conn *c, const action *a) {
    char line[LINE_CAP];
    (void)a;
    const ssize_t n = recv(c->fd, g.receive_buffer, LINE_CAP / 2, MSG_PEEK);
    if (n <= 0) {
        return n < 0 && (errno == EAGAIN || errno == EINTR) ? WAIT_READ
             : fail(c, "no line: %s", n == 0 ? "end" : strerror(errno));
    }
    const unsigned char *end = memchr(g.receive_buffer, '\n', (size_t)n);
    if (end == NULL) {
        c->wake_ms = now_ms() + 5;
        return n == LINE_CAP / 2 ? fail(c, "line too long") : WAIT_TIME;
    }
    const size_t length = (size_t)(end - g.receive_buffer) + 1;
    if (recv(c->fd, g.receive_buffer, length, 0) != (ssize_t)length) {
        return fail(c, "a peeked line went away");
    }
    print_quoted(line, sizeof line, g.receive_buffer, length);
    tell(c, "L\"%s\"", line);
    return DONE;
}

/* G prints what it receives, M forgets it. */
static step_result step_get(conn *c, const action *a) {
    while (!a->has_number || c->received < a->number) {
        const uint64_t left = a->has_number ? a->number - c->received : CHUNK_MAX;
        const ssize_t n = take(c, g.receive_buffer, left < CHUNK_MAX ? (size_t)left : CHUNK_MAX);
        if (n == -1) {
            return WAIT_READ;
        }
        if (n == 0 && !a->has_number) {
            break;
        }
        if (n <= 0) {
            return n < 0 ? FAIL : fail(c, "end after %llu bytes", (unsigned long long)c->received);
        }
        if (a->op == 'G') {
            fwrite(g.receive_buffer, 1, (size_t)n, stdout);
        }
        c->received += (uint64_t)n;
    }
    tell(c, a->has_number ? "%c:%llu" : "%c", a->op, (unsigned long long)c->received);
    return DONE;
}

static step_result step_shutdown(conn *c, const action *a) {
    (void)a;
    if (shutdown(c->fd, SHUT_WR) != 0) {
        return fail(c, "shutdown: %s", strerror(errno));
    }
    tell(c, "F");
    return DONE;
}

static step_result step_urgent(conn *c, const action *a) {
    (void)a;
    if (send(c->fd, "!", 1, MSG_OOB | MSG_NOSIGNAL) != 1) {
        return fail(c, "send out of band: %s", strerror(errno));
    }
    tell(c, "O");
    return DONE;
}

static step_result step_close(conn *c, const action *a) {
    const struct linger hard = {.l_onoff = 1, .l_linger = 0};
    if (a->op == 'X' && c->fd >= 0) {
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    }
    shut(c);
    tell(c, "%c", a->op);
    return DONE;
}

static bool is_reset(int error) {
    return error == ECONNRESET || error == EPIPE;
}

/* Any byte that still comes is a failure for E; T and Z look past what was already under way. */
static step_result step_end(conn *c, const action *a) {
    ssize_t n;
    if (c->refused) {
        tell(c, "%c", a->op);
        return DONE;
    }
    do {
        n = recv(c->fd, g.receive_buffer, CHUNK_MAX, 0);
    } while (n > 0 && a->op != 'E');
    if (n > 0) {
        return fail(c, "%zd bytes instead of the end", n);
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return WAIT_READ;
    }
    if (n < 0 && !is_reset(errno)) {
        return fail(c, "recv: %s", strerror(errno));
    }
    if (a->op == 'E' && n < 0) {
        return fail(c, "a reset instead of FIN");
    }
    if (a->op == 'T' && n == 0) {
        return fail(c, "FIN instead of a reset");
    }
    tell(c, "%c", a->op);
    return DONE;
}

static step_result step_nothing(conn *c, const action *a) {
    unsigned char byte;
    if (c->fresh) {
        c->wake_ms = now_ms() + a->number;
    }
    const ssize_t n = recv(c->fd, &byte, 1, MSG_PEEK);
    if (n >= 0 || (errno != EAGAIN && errno != EINTR)) {
        return fail(c, "%s where nothing was expected",
                    n > 0 ? "a byte" : n == 0 ? "FIN" : "reset");
    }
    if (now_ms() < c->wake_ms) {
        return WAIT_READ;
    }
    tell(c, "N");
    return DONE;
}

static step_result step_readable(conn *c, const action *a) {
    struct pollfd p = {.fd = c->fd, .events = POLLIN, .revents = 0};
    (void)a;
    if (poll(&p, 1, 0) == 0) {
        return WAIT_READ;
    }
    tell(c, "W");
    return DONE;
}

static step_result step_pause(conn *c, const action *a) {
    if (c->fresh) {
        c->wake_ms = now_ms() + a->number;
    }
    if (now_ms() < c->wake_ms) {
        return WAIT_TIME;
    }
    tell(c, "P");
    return DONE;
}

static step_result step_gate(conn *c, const action *a) {
    (void)a;
    if (c->fresh) {
        g.gated++;
    }
    if (!g.gate_open) {
        return WAIT_GATE;
    }
    g.gated--;
    tell(c, "U");
    return DONE;
}

static step_result step_at_least(conn *c, const action *a) {
    const uint64_t now = now_ms();
    if (now - c->mark_ms < a->number) {
        return fail(c, "after %llu ms already", (unsigned long long)(now - c->mark_ms));
    }
    c->mark_ms = now;
    tell(c, "A");
    return DONE;
}

static step_result step_at_most(conn *c, const action *a) {
    const uint64_t now = now_ms();
    if (now - c->mark_ms > a->number) {
        return fail(c, "only after %llu ms", (unsigned long long)(now - c->mark_ms));
    }
    tell(c, "B");
    return DONE;
}

static step_result step_buffer(conn *c, const action *a) {
    c->receive_buffer = (int)a->number;
    return DONE;
}

static step_result step_loop(conn *c, const action *a) {
    if (a->op == '[') {
        c->loop_left[c->depth++] = a->number;
        return DONE;
    }
    if (--c->loop_left[c->depth - 1] > 0) {
        c->step = a->partner;
    } else {
        c->depth--;
    }
    return DONE;
}

/* ---- the script ------------------------------------------------------------------------------ */

typedef enum wants { NOTHING, TEXT, NUMBER, MAYBE_NUMBER } wants;

static const struct step_kind {
    char op;
    wants wants;
    step_result (*run)(conn *c, const action *a);
} step_kinds[] = {
    {'C', NOTHING, step_connect},       {'c', NOTHING, step_connect},
    {'Q', NOTHING, step_refused},
    {'S', TEXT, step_send_text},        {'R', TEXT, step_receive_text},
    {'s', NUMBER, step_send_stream},    {'r', NUMBER, step_receive_stream},
    {'D', NUMBER, step_duplex},         {'H', NUMBER, step_duplex},
    {'Y', NUMBER, step_flood},          {'L', NOTHING, step_line},
    {'G', MAYBE_NUMBER, step_get},      {'M', MAYBE_NUMBER, step_get},
    {'F', NOTHING, step_shutdown},      {'O', NOTHING, step_urgent},
    {'K', NOTHING, step_close},         {'X', NOTHING, step_close},
    {'E', NOTHING, step_end},           {'T', NOTHING, step_end},
    {'Z', NOTHING, step_end},           {'N', NUMBER, step_nothing},
    {'W', NOTHING, step_readable},      {'P', NUMBER, step_pause},
    {'U', NOTHING, step_gate},          {'A', NUMBER, step_at_least},
    {'B', NUMBER, step_at_most},        {'V', NUMBER, step_buffer},
    {'[', NUMBER, step_loop},           {']', NOTHING, step_loop},
};

static const struct step_kind *step_kind(char op) {
    for (size_t i = 0; i < sizeof step_kinds / sizeof step_kinds[0]; i++) {
        if (step_kinds[i].op == op) {
            return &step_kinds[i];
        }
    }
    return NULL;
}

static char unescape_one(const char **from) {
    const char *p = *from;
    char hex[3] = {0, 0, 0};
    *from = p + 1;
    switch (*p) {
    case 'n': return '\n';
    case 'r': return '\r';
    case 't': return '\t';
    case '0': return '\0';
    case '\\': return '\\';
    case 'x':
        if (p[1] != '\0' && p[2] != '\0') {
            memcpy(hex, p + 1, 2);
            *from = p + 3;
            return (char)(unsigned char)strtoul(hex, NULL, 16);
        }
        break;
    default: break;
    }
    die("bad escape \\%c", *p);
    return 0;
}

static void action_text(action *a, const char *from) {
    a->text = must_alloc(NULL, strlen(from) + 1);
    while (*from != '\0') {
        char ch = *from++;
        if (ch == '\\') {
            ch = unescape_one(&from);
        }
        a->text[a->length++] = ch;
    }
}

static void action_parse(action *a, const char *arg) {
    const struct step_kind *kind = step_kind(arg[0]);
    if (kind == NULL) {
        die("unknown step '%s'", arg);
    }
    a->op = arg[0];
    if (kind->wants == TEXT) {
        action_text(a, arg + 1);
        return;
    }
    if (kind->wants == NOTHING || (kind->wants == MAYBE_NUMBER && arg[1] == '\0')) {
        if (arg[1] != '\0') {
            die("step %c takes nothing: '%s'", arg[0], arg);
        }
        return;
    }
    if (arg[1] != ':') {
        die("step %c:N needs a number: '%s'", arg[0], arg);
    }
    a->number = parse_number(arg + 2, arg);
    a->has_number = true;
}

static void script_parse(int argc, char **argv) {
    size_t open[LOOPS_MAX];
    size_t depth = 0;
    g.o.action_count = (size_t)argc;
    g.o.actions = must_alloc(NULL, sizeof(action) * ((size_t)argc + 1));
    memset(g.o.actions, 0, sizeof(action) * ((size_t)argc + 1)); /* one more, empty, ends it */
    for (size_t i = 0; i < (size_t)argc; i++) {
        action *a = &g.o.actions[i];
        action_parse(a, argv[i]);
        if (a->op == '[') {
            if (depth == LOOPS_MAX || a->number == 0) {
                die("loops: at most %d deep, at least once", LOOPS_MAX);
            }
            open[depth++] = i;
        } else if (a->op == ']') {
            if (depth == 0) {
                die("] without [");
            }
            a->partner = open[--depth];
        }
    }
    if (depth != 0) {
        die("[ without ]");
    }
}

/* ---- running one connection ------------------------------------------------------------------ */

static void conn_start(conn *c, unsigned index) {
    memset(c, 0, sizeof *c);
    c->phase = RUNNING;
    c->fd = -1;
    c->index = index;
    c->fresh = true;
    c->random = mix(g.o.seed * 1000003u + index);
    c->mark_ms = now_ms();
    c->deadline_ms = c->mark_ms + g.o.deadline_ms;
}

static void conn_finish(conn *c, phase how) {
    c->phase = how;
    shut(c);
    g.running--;
    g.ended++;
    g.failed += how == FAILED;
    g.excused += how == EXCUSED;
}

static void conn_fail(conn *c) {
    conn_finish(c, g.killed && !c->established ? EXCUSED : FAILED);
}

static void conn_next(conn *c) {
    c->step++;
    c->fresh = true;
    c->sent = 0;
    c->received = 0;
    c->connecting = false;
    c->deadline_ms = now_ms() + g.o.deadline_ms;
}

static bool needs_socket(char op) {
    return strchr("CcQPUABV[]KX", op) == NULL;
}

/* Runs steps until one has to wait. Progress of a long step moves its deadline. */
static void conn_run(conn *c) {
    while (c->step < g.o.action_count) {
        const action *a = &g.o.actions[c->step];
        const uint64_t before = c->sent + c->received;
        if (needs_socket(a->op) && c->fd < 0) {
            fail(c, "not connected");
            conn_fail(c);
            return;
        }
        c->waits = step_kind(a->op)->run(c, a);
        if (c->waits == FAIL) {
            conn_fail(c);
            return;
        }
        if (c->waits != DONE) {
            c->fresh = false;
            if (c->sent + c->received > before) {
                c->deadline_ms = now_ms() + g.o.deadline_ms;
            }
            return;
        }
        conn_next(c);
    }
    conn_finish(c, ENDED);
}

static bool step_is(const conn *c, const char *ops) {
    return strchr(ops, g.o.actions[c->step].op) != NULL;
}

static bool has_wake(const conn *c) {
    return c->waits == WAIT_TIME || step_is(c, "YN");
}

static void conn_check_time(conn *c, uint64_t now) {
    if (has_wake(c) && now >= c->wake_ms) {
        conn_run(c);
        return;
    }
    if (now >= c->deadline_ms && !step_is(c, "PUNY")) {
        fail(c, "nothing for %llu ms (sent %llu, received %llu in this step)",
             (unsigned long long)g.o.deadline_ms, (unsigned long long)c->sent,
             (unsigned long long)c->received);
        conn_fail(c);
    }
}

/* ---- running all ----------------------------------------------------------------------------- */

static bool may_start(uint64_t now) {
    return !g.killed && g.started < g.o.count && g.running < g.o.parallel && now >= g.next_start_ms;
}

static void start_some(void) {
    uint64_t now = now_ms();
    for (unsigned i = 0; i < CONNECTS_PER_TURN && may_start(now); i++) {
        conn *c = &g.conns[g.started];
        conn_start(c, g.started++);
        g.running++;
        g.next_start_ms = g.o.interval_ms > 0 ? now + g.o.interval_ms : 0;
        conn_run(c);
    }
}

static void kill_when_due(void) {
    if (g.o.kill_pid == 0 || g.killed || g.ended < g.o.kill_after) {
        return;
    }
    g.killed = true;
    kill(g.o.kill_pid, SIGTERM);
}

static void tell_gate(void) {
    const bool all_here = g.gated > 0 && g.gated == g.running && g.started == g.o.count;
    if (all_here && !g.gate_told) {
        g.gate_told = true;
        printf("held %u\n", g.gated);
        fflush(stdout);
    }
}

static short poll_events(const conn *c) {
    switch (c->waits) {
    case WAIT_READ: return POLLIN;
    case WAIT_WRITE: return POLLOUT;
    case WAIT_BOTH: return POLLIN | POLLOUT;
    default: return 0;
    }
}

static void sooner(uint64_t *at, uint64_t other) {
    *at = other < *at ? other : *at;
}

/* Fills g.polls; returns how many. Entry 0 is stdin while somebody waits at the gate. */
static nfds_t fill_polls(uint64_t *until) {
    nfds_t n = 0;
    g.polls[n].fd = g.gated > 0 && !g.gate_open ? STDIN_FILENO : -1;
    g.polls[n++].events = POLLIN;
    for (unsigned i = 0; i < g.started; i++) {
        const conn *c = &g.conns[i];
        if (c->phase != RUNNING) {
            continue;
        }
        if (has_wake(c)) {
            sooner(until, c->wake_ms);
        }
        if (!step_is(c, "PUNY")) {
            sooner(until, c->deadline_ms);
        }
        if (poll_events(c) != 0) {
            g.polls[n].fd = c->fd;
            g.polls[n].events = poll_events(c);
            g.poll_owner[n++] = i;
        }
    }
    return n;
}

static void open_gate(void) {
    char line[64];
    if (read(STDIN_FILENO, line, sizeof line) < 0 && errno == EINTR) {
        return;
    }
    g.gate_open = true;
    for (unsigned i = 0; i < g.started; i++) {
        if (g.conns[i].phase == RUNNING && g.conns[i].waits == WAIT_GATE) {
            conn_run(&g.conns[i]);
        }
    }
}

static void dispatch(nfds_t n) {
    if (g.polls[0].fd >= 0 && g.polls[0].revents != 0) {
        open_gate();
    }
    for (nfds_t i = 1; i < n; i++) {
        conn *c = &g.conns[g.poll_owner[i]];
        if (g.polls[i].revents != 0 && c->phase == RUNNING && c->fd == g.polls[i].fd) {
            conn_run(c);
        }
    }
    const uint64_t now = now_ms();
    for (unsigned i = 0; i < g.started; i++) {
        if (g.conns[i].phase == RUNNING) {
            conn_check_time(&g.conns[i], now);
        }
    }
}

static bool finished(void) {
    return g.running == 0 && (g.started == g.o.count || g.killed);
}

static void turn(void) {
    uint64_t until = UINT64_MAX;
    start_some();
    kill_when_due();
    tell_gate();
    if (finished()) {
        return;
    }
    const nfds_t n = fill_polls(&until);
    if (!g.killed && g.started < g.o.count && g.running < g.o.parallel) {
        sooner(&until, g.next_start_ms);
    }
    const uint64_t now = now_ms();
    int wait_ms = -1;
    if (until != UINT64_MAX) {
        wait_ms = until <= now ? 0 : (int)(until - now > 60000 ? 60000 : until - now);
    }
    if (poll(g.polls, n, wait_ms) >= 0) {
        dispatch(n);
    }
}

/* ---- report ---------------------------------------------------------------------------------- */

static bool same_transcript(const conn *a, const conn *b) {
    return a->phase == b->phase && a->transcript_length == b->transcript_length &&
           memcmp(a->transcript, b->transcript, a->transcript_length) == 0;
}

/* Equal transcripts that follow each other are one line with their number. */
static void print_transcripts(void) {
    unsigned i = 0;
    while (i < g.started) {
        unsigned same = 1;
        const conn *c = &g.conns[i];
        while (i + same < g.started && c->transcript != NULL &&
               g.conns[i + same].transcript != NULL && same_transcript(c, &g.conns[i + same])) {
            same++;
        }
        if (c->transcript != NULL && c->phase != EXCUSED) {
            printf("%u: %s\n", same, c->transcript);
        }
        i += same;
    }
}

static void print_failures(void) {
    unsigned shown = 0;
    for (unsigned i = 0; i < g.started && shown < 5; i++) {
        const conn *c = &g.conns[i];
        if (c->phase == FAILED) {
            const action *a = &g.o.actions[c->step];
            fprintf(stderr, "client: connection %u, step %zu (%c): %s\n", i, c->step + 1, a->op,
                    c->failure);
            shown++;
        }
    }
    if (g.failed > 0) {
        fprintf(stderr, "client: %u of %u connections failed\n", g.failed, g.started);
    }
}

static void print_times(void) {
    fprintf(stderr, "%u connections, %u ended, %u excused, %llu ms\n", g.started,
            g.ended - g.failed - g.excused, g.excused, (unsigned long long)(now_ms() - g.begin_ms));
}

/* ---- command line ---------------------------------------------------------------------------- */

static void option(int letter, const char *value) {
    switch (letter) {
    case 'n': g.o.count = (unsigned)parse_number(value, "-n"); break;
    case 'p': g.o.parallel = (unsigned)parse_number(value, "-p"); break;
    case 'i': g.o.interval_ms = parse_number(value, "-i"); break;
    case 'd': g.o.deadline_ms = parse_number(value, "-d"); break;
    case 'c': g.o.chunk_max = (size_t)parse_number(value, "-c"); break;
    case 's': g.o.seed = parse_number(value, "-s"); break;
    case 'k': g.o.kill_pid = (pid_t)parse_number(value, "-k"); break;
    case 'a': g.o.kill_after = (unsigned)parse_number(value, "-a"); break;
    case 'b': bind_parse(value); break;
    case 'l': g.o.lines = true; break;
    case 'q': g.o.quiet = true; break;
    case 't': g.o.times = true; break;
    case 'h': fputs(usage_text, stdout); exit(0);
    default: fputs(usage_text, stderr); exit(2);
    }
}

static void options_parse(int argc, char **argv) {
    const char *scale = getenv("CHECK_SCALE");
    int letter;
    g.o.count = 1;
    g.o.deadline_ms = 10000;
    g.o.chunk_max = CHUNK_MAX;
    g.o.seed = 1;
    while ((letter = getopt(argc, argv, "+n:p:i:d:b:c:s:k:a:lqth")) != -1) {
        option(letter, optarg);
    }
    g.o.deadline_ms *= scale != NULL ? parse_number(scale, "CHECK_SCALE") : 1;
    if (argc - optind < 2 || g.o.count == 0 || g.o.chunk_max == 0 || g.o.chunk_max > CHUNK_MAX) {
        fputs(usage_text, stderr);
        exit(2);
    }
    g.o.parallel = g.o.parallel == 0 ? g.o.count : g.o.parallel;
    address_parse(argv[optind]);
    script_parse(argc - optind - 1, argv + optind + 1);
}

static void raise_descriptors(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int main(int argc, char **argv) {
    options_parse(argc, argv);
    raise_descriptors();
    g.conns = must_alloc(NULL, sizeof(conn) * g.o.count);
    g.polls = must_alloc(NULL, sizeof(struct pollfd) * ((size_t)g.o.count + 1));
    g.poll_owner = must_alloc(NULL, sizeof(unsigned) * ((size_t)g.o.count + 1));
    g.begin_ms = now_ms();
    while (!finished()) {
        turn();
    }
    print_transcripts();
    print_failures();
    if (g.o.times) {
        print_times();
    }
    return g.failed > 0 ? 1 : 0;
}
