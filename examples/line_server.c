/* A server that speaks in lines. It shows framing, state per connection, back-pressure, and a stop
 * that lets clients finish.
 *
 *     line_server [ADDRESS [PORT_FILE]]        then, elsewhere:  nc 127.0.0.1 7001
 *
 *     count N      sends the numbers 1 to N, one a line, however many and however slow the reader
 *     quit         says goodbye and closes
 *     other text   comes back with the number of the line in front
 */
#define NETSRV_IMPLEMENTATION
#include "../netsrv.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_MAX_BYTES 8192
#define GRACE_MS       5000

/* What we know about one client. Only the worker that owns the connection touches it, so it needs
 * no lock. */
typedef struct client {
    uint64_t lines; /* received so far */
    uint64_t next;  /* the number that a running count sends next */
    uint64_t last;  /* the number that ends it; no count runs while next > last */
} client;

static void say(netsrv_conn *c, const char *text) {
    netsrv_send(c, text, strlen(text));
}

static void on_open(netsrv_conn *c) {
    client *me = calloc(1, sizeof *me);
    if (me == NULL) {
        netsrv_abort(c);
        return;
    }
    me->next = 1;
    netsrv_set_data(c, me);
}

/* Sends numbers until all are out or the queue is above its high mark. A million numbers for a
 * slow reader must not become a million lines in memory: on_drain goes on where this stopped. */
static void send_numbers(netsrv_conn *c, client *me) {
    netsrv_result result = NETSRV_OK;
    while (me->next <= me->last && result == NETSRV_OK) {
        char text[32];
        const int n = snprintf(text, sizeof text, "%" PRIu64 "\n", me->next++);
        result = netsrv_send(c, text, (size_t)n);
    }
    if (me->next > me->last) {
        netsrv_resume(c);
    }
}

static void start_count(netsrv_conn *c, client *me, uint64_t last) {
    me->next = 1;
    me->last = last;
    /* Answers come in the order of the questions: the next line waits for the end of this count. */
    netsrv_pause(c);
    send_numbers(c, me);
}

/* Reads "count N". The line is not a string: it has no NUL at its end, and may have some inside. */
static bool parse_count(const char *line, size_t n, uint64_t *last) {
    static const char word[] = "count ";
    const size_t skip = sizeof word - 1;
    if (n <= skip || n > skip + 18 || memcmp(line, word, skip) != 0) {
        return false;
    }
    *last = 0;
    for (size_t i = skip; i < n; i++) {
        if (line[i] < '0' || line[i] > '9') {
            return false;
        }
        *last = *last * 10 + (uint64_t)(line[i] - '0');
    }
    return true;
}

static void send_numbered(netsrv_conn *c, const client *me, const char *line, size_t n) {
    char number[32];
    const int digits = snprintf(number, sizeof number, "%" PRIu64 " ", me->lines);
    netsrv_send(c, number, (size_t)digits);
    netsrv_send(c, line, n);
    netsrv_send(c, "\n", 1);
}

static void on_frame(netsrv_conn *c, const void *data, size_t n) {
    const char *line = data;
    client *me = netsrv_get_data(c);
    uint64_t last = 0;
    me->lines++;
    if (parse_count(line, n, &last)) {
        start_count(c, me, last);
    } else if (n == 4 && memcmp(line, "quit", 4) == 0) {
        say(c, "bye\n");
        netsrv_close(c);
    } else {
        send_numbered(c, me, line, n);
    }
}

static void on_drain(netsrv_conn *c) {
    client *me = netsrv_get_data(c);
    if (me->next <= me->last) {
        send_numbers(c, me);
    }
}

static void on_close(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    (void)reason;
    (void)sys_errno;
    free(netsrv_get_data(c));
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
    fprintf(stderr, "line_server: listening on %s\n", address);
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
        fprintf(stderr, "line_server: %s\n", error.text);
        return 1;
    }
    set_signals(on_signal);
    const netsrv_result result = netsrv_start(server, &error);
    if (result == NETSRV_OK) {
        announce(port_file);
        netsrv_wait(server);
    } else if (result != NETSRV_STOPPED) {
        fprintf(stderr, "line_server: %s\n", error.text);
    }
    set_signals(SIG_DFL); /* A late signal must not find a server that is gone. */
    netsrv_destroy(server);
    return result == NETSRV_OK || result == NETSRV_STOPPED ? 0 : 1;
}

int main(int argc, char **argv) {
    const netsrv_config cfg = {
        .listen = {argc > 1 ? argv[1] : "127.0.0.1:7001"},
        .on_open = on_open,
        .on_frame = on_frame,
        .on_drain = on_drain,
        .on_close = on_close,
        .framing = NETSRV_FRAMING_LINE,
        .input_max_bytes = LINE_MAX_BYTES,
    };
    return serve(&cfg, argc > 2 ? argv[2] : NULL);
}
