/* Says hello over HTTP/1.1: keep-alive, pipelining, HEAD, HTTP/1.0 (one answer, then the end), and
 * the errors that a client can provoke. It shows on_data with a message that arrives in any pieces.
 *
 *     http_hello [ADDRESS [PORT_FILE]]        then, elsewhere:  curl -i http://127.0.0.1:8080/
 *
 * There is one page, "/". Request bodies are not read: the answer to a request that announces one
 * closes the connection, so the body is never mistaken for the next request.
 */
#define NETSRV_IMPLEMENTATION
#include "../netsrv.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define HEAD_MAX_BYTES  8192  /* request line and header fields */
#define IDLE_TIMEOUT_MS 30000
#define GRACE_MS        2000

/* ---- answers -------------------------------------------------------------------------------- */

#define STATUSES(X)                                                                                \
    X(OK, "200 OK", "", "Hello, world!\n")                                                         \
    X(BAD, "400 Bad Request", "", "This is not HTTP.\n")                                           \
    X(NOT_FOUND, "404 Not Found", "", "There is nothing here.\n")                                  \
    X(BAD_METHOD, "405 Method Not Allowed", "Allow: GET, HEAD\r\n", "Only GET and HEAD.\n")        \
    X(TOO_LARGE, "431 Request Header Fields Too Large", "", "That is too long for me.\n")

enum status {
#define STATUS_NAME(name, line, fields, body) STATUS_##name,
    STATUSES(STATUS_NAME)
    STATUS_COUNT
};

typedef struct answer {
    char text[256];
    size_t head_bytes; /* all that HEAD gets */
    size_t bytes;
} answer;

/* [closing] Written once before the first thread starts and only read since, so without a lock. */
static answer answers[STATUS_COUNT][2];

static void write_answer(answer *a, const char *line, const char *fields, const char *body,
                         bool closing) {
    const int head = snprintf(a->text, sizeof a->text,
                              "HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n"
                              "%s%s\r\n",
                              line, strlen(body), fields, closing ? "Connection: close\r\n" : "");
    a->head_bytes = (size_t)head;
    a->bytes = a->head_bytes + strlen(body);
    memcpy(a->text + head, body, strlen(body));
}

static void write_answers(void) {
#define WRITE_ANSWER(name, line, fields, body)                                                     \
    write_answer(&answers[STATUS_##name][false], line, fields, body, false);                       \
    write_answer(&answers[STATUS_##name][true], line, fields, body, true);
    STATUSES(WRITE_ANSWER)
}

/* ---- requests ------------------------------------------------------------------------------- */

/* A piece of the receive buffer. It is not a string: there is no NUL behind it. */
typedef struct text {
    const char *ptr;
    size_t n;
} text;

typedef struct request {
    enum status status;
    bool head;        /* HEAD: the same header fields as for GET, and no body */
    bool http_1_0;
    bool close;       /* after the answer */
    unsigned hosts;   /* HTTP/1.1 demands exactly one Host */
} request;

static bool is(text t, const char *word) {
    return t.n == strlen(word) && memcmp(t.ptr, word, t.n) == 0;
}

/* The names of header fields and the options of Connection are the same in either case. */
static bool is_nocase(text t, const char *word) {
    return t.n == strlen(word) && strncasecmp(t.ptr, word, t.n) == 0;
}

/* Takes what stands before the next `end` off the front of *rest; all of it if there is none. */
static text take_until(text *rest, char end) {
    const char *at = rest->n == 0 ? NULL : memchr(rest->ptr, end, rest->n);
    const size_t n = at == NULL ? rest->n : (size_t)(at - rest->ptr);
    const size_t skip = at == NULL ? n : n + 1;
    const text taken = {rest->ptr, n};
    rest->ptr += skip;
    rest->n -= skip;
    return taken;
}

static text take_line(text *rest) {
    text line = take_until(rest, '\n');
    if (line.n > 0 && line.ptr[line.n - 1] == '\r') {
        line.n--;
    }
    return line;
}

static text trim(text t) {
    while (t.n > 0 && (t.ptr[0] == ' ' || t.ptr[0] == '\t')) {
        t.ptr++;
        t.n--;
    }
    while (t.n > 0 && (t.ptr[t.n - 1] == ' ' || t.ptr[t.n - 1] == '\t')) {
        t.n--;
    }
    return t;
}

static void read_request_line(request *r, text line) {
    const text method = take_until(&line, ' ');
    text target = take_until(&line, ' ');
    const text path = take_until(&target, '?');
    r->head = is(method, "HEAD");
    r->http_1_0 = is(line, "HTTP/1.0");
    if (method.n == 0 || path.n == 0 || (!r->http_1_0 && !is(line, "HTTP/1.1"))) {
        r->status = STATUS_BAD;
    } else if (!r->head && !is(method, "GET")) {
        r->status = STATUS_BAD_METHOD;
    } else if (!is(path, "/")) {
        r->status = STATUS_NOT_FOUND;
    }
}

static void read_connection_options(request *r, text options) {
    while (options.n > 0) {
        r->close |= is_nocase(trim(take_until(&options, ',')), "close");
    }
}

static void read_field(request *r, text line) {
    const bool has_colon = memchr(line.ptr, ':', line.n) != NULL;
    const text name = take_until(&line, ':');
    /* Space around a field's name is where two servers may read two different requests. */
    if (!has_colon || name.n == 0 || trim(name).n != name.n) {
        r->status = STATUS_BAD;
    } else if (is_nocase(name, "Host")) {
        r->hosts++;
    } else if (is_nocase(name, "Connection")) {
        read_connection_options(r, line);
    } else if (is_nocase(name, "Content-Length")) {
        r->close |= !is(trim(line), "0");
    } else if (is_nocase(name, "Transfer-Encoding")) {
        r->close = true;
    }
}

static request read_request(text head) {
    request r = {.status = STATUS_OK};
    read_request_line(&r, take_line(&head));
    for (text line = take_line(&head); line.n > 0; line = take_line(&head)) {
        read_field(&r, line);
    }
    if (r.hosts > 1 || (r.hosts == 0 && !r.http_1_0)) {
        r.status = STATUS_BAD;
    }
    /* After something that is not HTTP nobody knows where the next request begins. */
    r.close |= r.http_1_0 || r.status == STATUS_BAD;
    return r;
}

/* Bytes up to and with the empty line that ends the head; 0 while it has not all arrived. */
static size_t head_length(const char *data, size_t n) {
    const char *end = data + n;
    const char *at = memchr(data, '\n', n);
    while (at != NULL && at + 1 < end) {
        const char *next = at + 1;
        if (*next == '\r' && next + 1 < end) {
            next++;
        }
        if (*next == '\n') {
            return (size_t)(next + 1 - data);
        }
        at = memchr(at + 1, '\n', (size_t)(end - at) - 1);
    }
    return 0;
}

/* ---- callbacks ------------------------------------------------------------------------------ */

static void send_answer(netsrv_conn *c, enum status status, bool head, bool closing) {
    const answer *a = &answers[status][closing];
    netsrv_send(c, a->text, head ? a->head_bytes : a->bytes);
    if (closing) {
        netsrv_close(c);
    }
}

/* Answers one request. Returns its length; 0 while it is not complete; n if it is the last. */
static size_t serve_request(netsrv_conn *c, const char *data, size_t n) {
    if (data[0] == '\r' || data[0] == '\n') {
        return 1; /* Some clients end a request with an empty line too many. */
    }
    const size_t length = head_length(data, n < HEAD_MAX_BYTES ? n : HEAD_MAX_BYTES);
    if (length == 0 && n < HEAD_MAX_BYTES) {
        return 0;
    }
    if (length == 0) {
        send_answer(c, STATUS_TOO_LARGE, false, true);
        return n;
    }
    const request r = read_request((text){data, length});
    send_answer(c, r.status, r.head, r.close);
    return r.close ? n : length;
}

/* What is not consumed comes again with the bytes that follow, so a request may be cut anywhere
 * and needs no state here. Several in one piece are answered in one go: pipelining. */
static size_t on_data(netsrv_conn *c, const void *data, size_t n) {
    const char *bytes = data;
    size_t done = 0;
    while (done < n) {
        const size_t length = serve_request(c, bytes + done, n - done);
        if (length == 0) {
            break;
        }
        done += length;
    }
    return done;
}

/* ---- start and stop ------------------------------------------------------------------------- */

static netsrv_server *server; /* set before the signal handler that needs it is installed */

static void on_signal(int number) {
    (void)number;
    netsrv_stop(server, GRACE_MS); /* One of the few calls that a signal handler may make. */
}

static void set_signals(void (*handler)(int)) {
    signal(SIGINT, handler);
    signal(SIGTERM, handler);
}

/* Port 0 in the address asks for any free port; the file tells a script which one it became. */
static void announce(const char *port_file) {
    char address[NETSRV_ADDRESS_MAX];
    netsrv_get_address(server, 0, address, sizeof address);
    fprintf(stderr, "http_hello: listening on %s\n", address);
    if (port_file == NULL) {
        return;
    }
    FILE *file = fopen(port_file, "w");
    if (file == NULL) {
        perror(port_file);
        return;
    }
    fprintf(file, "%u\n", (unsigned)netsrv_get_port(server, 0));
    fclose(file);
}

static int serve(const netsrv_config *cfg, const char *port_file) {
    netsrv_error error;
    if (netsrv_create(&server, cfg, &error) != NETSRV_OK) {
        fprintf(stderr, "http_hello: %s\n", error.text);
        return 1;
    }
    set_signals(on_signal);
    const netsrv_result result = netsrv_start(server, &error);
    if (result == NETSRV_OK) {
        announce(port_file);
        netsrv_wait(server);
    } else if (result != NETSRV_STOPPED) {
        fprintf(stderr, "http_hello: %s\n", error.text);
    }
    set_signals(SIG_DFL); /* A late signal must not find a server that is gone. */
    netsrv_destroy(server);
    return result == NETSRV_OK || result == NETSRV_STOPPED ? 0 : 1;
}

int main(int argc, char **argv) {
    const netsrv_config cfg = {
        .listen = {argc > 1 ? argv[1] : "127.0.0.1:8080"},
        .on_data = on_data,
        .idle_timeout_ms = IDLE_TIMEOUT_MS,
    };
    write_answers();
    return serve(&cfg, argc > 2 ? argv[2] : NULL);
}
