/* timers: a line server with the three usual timers. The first line must come within 5 seconds (an
 * idle timeout would let a client trickle); a client that says "in MS TEXT" gets the text back so
 * many milliseconds later; and each worker says once a second, on stderr, how many clients it has.
 *
 *     timers [ADDRESS [PORT-FILE]]        then: printf 'in 500 hello\n' | nc -N 127.0.0.1 7000 */

#define NETSRV_IMPLEMENTATION
#include "../netsrv.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_LINE_MS = 5000, REPORT_MS = 1000, DELAY_MAX_MS = 60000 };

/* A reply that is on its way: one allocation, in which the timer lies. */
typedef struct later {
    netsrv_timer timer;
    struct client *client;
    struct later *next;
    size_t n;
    char text[];
} later;

typedef struct client {
    netsrv_timer first_line;
    netsrv_conn *conn;
    bool finished;  /* says no more, and leaves with the last reply */
    later *replies; /* not sent yet: the connection's end takes them back */
} client;

/* One for each worker: found by netsrv_get_worker_data, touched by that worker alone. */
typedef struct worker_state {
    netsrv_timer report;
    unsigned clients;
} worker_state;

static worker_state *state_of(netsrv_conn *c) {
    return netsrv_get_worker_data(netsrv_get_server(c), netsrv_get_worker(c));
}

static void report(netsrv_server *s, unsigned worker, netsrv_timer *t) {
    (void)t;
    worker_state *w = netsrv_get_worker_data(s, worker);
    fprintf(stderr, "worker %u: %u clients\n", worker, w->clients);
}

static void on_worker_start(netsrv_server *s, unsigned worker) {
    worker_state *w = calloc(1, sizeof *w);
    if (w == NULL) {
        abort();
    }
    w->report.fn = report;
    netsrv_set_worker_data(s, worker, w);
    netsrv_timer_start(s, &w->report, REPORT_MS, REPORT_MS);
}

/* The report is not set any more. */
static void on_worker_stop(netsrv_server *s, unsigned worker) {
    free(netsrv_get_worker_data(s, worker));
    netsrv_set_worker_data(s, worker, NULL);
}

static void no_first_line(netsrv_server *s, unsigned worker, netsrv_timer *t) {
    static const char text[] = "too slow\n";
    client *me = t->arg;
    (void)s;
    (void)worker;
    netsrv_send(me->conn, text, sizeof text - 1);
    netsrv_close(me->conn);
}

static void on_open(netsrv_conn *c) {
    client *me = calloc(1, sizeof *me);
    state_of(c)->clients++;
    netsrv_set_data(c, me);
    if (me == NULL) {
        netsrv_abort(c);
        return;
    }
    me->conn = c;
    me->first_line.fn = no_first_line;
    me->first_line.arg = me;
    netsrv_timer_start(netsrv_get_server(c), &me->first_line, FIRST_LINE_MS, 0);
}

static void forget(later *l) {
    later **at = &l->client->replies;
    while (*at != l) {
        at = &(*at)->next;
    }
    *at = l->next;
    free(l);
}

static void send_now(netsrv_server *s, unsigned worker, netsrv_timer *t) {
    later *l = t->arg;
    (void)s;
    (void)worker;
    client *me = l->client;
    netsrv_send(me->conn, l->text, l->n);
    forget(l);
    if (me->finished && me->replies == NULL) {
        netsrv_close(me->conn);
    }
}

static void on_eof(netsrv_conn *c) {
    client *me = netsrv_get_data(c);
    me->finished = true;
    if (me->replies == NULL) {
        netsrv_close(c);
    }
}

static void send_later(client *me, unsigned long ms, const char *text, size_t n) {
    later *l = malloc(sizeof *l + n + 1);
    if (l == NULL) {
        netsrv_abort(me->conn);
        return;
    }
    *l = (later){.timer = {.fn = send_now, .arg = l}, .client = me, .n = n + 1};
    l->next = me->replies;
    memcpy(l->text, text, n);
    l->text[n] = '\n';
    me->replies = l;
    netsrv_timer_start(netsrv_get_server(me->conn), &l->timer, (uint32_t)ms, 0);
}

static void on_line(netsrv_conn *c, const void *data, size_t n) {
    static const char usage[] = "say: in MS TEXT\n";
    client *me = netsrv_get_data(c);
    char number[8] = "";
    const char *line = data;
    netsrv_timer_stop(&me->first_line);
    const char *blank = n > 3 ? memchr(line + 3, ' ', n - 3) : NULL;
    const size_t digits = blank != NULL ? (size_t)(blank - line) - 3 : 0;
    if (digits == 0 || digits >= sizeof number || memcmp(line, "in ", 3) != 0) {
        netsrv_send(c, usage, sizeof usage - 1);
        return;
    }
    memcpy(number, line + 3, digits);
    const unsigned long ms = strtoul(number, NULL, 10);
    send_later(me, ms < DELAY_MAX_MS ? ms : DELAY_MAX_MS, blank + 1, n - 4 - digits);
}

static void on_close(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    client *me = netsrv_get_data(c);
    (void)reason;
    (void)sys_errno;
    state_of(c)->clients--;
    while (me != NULL && me->replies != NULL) {
        netsrv_timer_stop(&me->replies->timer);
        forget(me->replies);
    }
    if (me != NULL) {
        netsrv_timer_stop(&me->first_line);
    }
    free(me);
}

static netsrv_server *server;

static void on_signal(int number) {
    (void)number;
    netsrv_stop(server, 2000);
}

static bool write_port(const char *path) {
    FILE *f = fopen(path, "w");
    return f != NULL && fprintf(f, "%u\n", netsrv_get_port(server, 0)) > 0 && fclose(f) == 0;
}

static int complain(const char *text) {
    fprintf(stderr, "timers: %s\n", text);
    return 1;
}

int main(int argc, char **argv) {
    const netsrv_config cfg = {.listen = {argc > 1 ? argv[1] : "127.0.0.1:7000"},
                         .on_worker_start = on_worker_start,
                         .on_worker_stop = on_worker_stop,
                         .on_open = on_open,
                         .on_frame = on_line,
                         .on_eof = on_eof,
                         .on_close = on_close,
                         .framing = NETSRV_FRAMING_LINE,
                         .eof_policy = NETSRV_EOF_KEEP};
    netsrv_error error;
    if (netsrv_create(&server, &cfg, &error) != NETSRV_OK) {
        return complain(error.text);
    }
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    if (netsrv_start(server, &error) != NETSRV_OK) {
        return complain(error.text);
    }
    if (argc > 2 && !write_port(argv[2])) {
        return complain("cannot write the port file");
    }
    netsrv_wait(server);
    netsrv_destroy(server);
    return 0;
}
