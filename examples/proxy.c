/* A TCP proxy: each client is connected to a target, and bytes go both ways. It shows outgoing
 * connections, back-pressure from one socket to another, and ends that are passed on one direction
 * at a time.
 *
 *     proxy ADDRESS TARGET [PORT_FILE]
 *     proxy 127.0.0.1:7002 example.org:80      then:  curl -H 'Host: example.org' 127.0.0.1:7002
 */
#define NETSRV_IMPLEMENTATION
#include "../netsrv.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#define GRACE_MS        5000
#define DIAL_TIMEOUT_MS 5000

/* Two connections, each of which has the pair as its data. Both live on the worker that accepted
 * the first and dialed the second, so that either may be used in callbacks of the other. */
typedef struct pair {
    netsrv_conn *client;
    netsrv_conn *server; /* NULL once it is closed, as is `client` */
} pair;

static const char *target;

static netsrv_conn *other_side(netsrv_conn *c) {
    const pair *both = netsrv_get_data(c);
    return c == both->client ? both->server : both->client;
}

/* What is sent is queued in whole, always. Above the high mark of the receiver the sender is not
 * read any more, so that a fast one fills its own socket and not our memory. */
static size_t on_data(netsrv_conn *c, const void *data, size_t n) {
    netsrv_conn *to = other_side(c);
    if (to != NULL && netsrv_send(to, data, n) == NETSRV_HIGH) {
        netsrv_pause(c);
    }
    return n;
}

static void on_drain(netsrv_conn *c) {
    netsrv_conn *from = other_side(c);
    if (from != NULL) {
        netsrv_resume(from);
    }
}

/* One direction is over; the other goes on until its own end. */
static void on_eof(netsrv_conn *c) {
    netsrv_conn *to = other_side(c);
    if (to != NULL) {
        netsrv_shutdown(to);
    }
}

/* An orderly end is passed on in order, after what is still queued; a broken connection breaks the
 * other, so that nobody takes half an answer for a whole one. */
static void on_close(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    pair *both = netsrv_get_data(c);
    (void)sys_errno;
    if (both == NULL) {
        return;
    }
    netsrv_conn *rest = other_side(c);
    if (c == both->client) {
        both->client = NULL;
    } else {
        both->server = NULL;
    }
    if (rest == NULL) {
        free(both);
    } else if (reason == NETSRV_CLOSE_PEER || reason == NETSRV_CLOSE_LOCAL ||
               reason == NETSRV_CLOSE_STOP) {
        netsrv_close(rest);
    } else {
        netsrv_abort(rest);
    }
}

static const netsrv_handlers to_server = {
    .on_data = on_data,
    .on_drain = on_drain,
    .on_eof = on_eof,
    .on_close = on_close,
    .eof_policy = NETSRV_EOF_KEEP,
};

/* What the client says meanwhile is sent as soon as the target has answered. */
static void on_open(netsrv_conn *c) {
    pair *both = calloc(1, sizeof *both);
    const netsrv_target to = {
        .address = target, .handlers = &to_server, .data = both, .timeout_ms = DIAL_TIMEOUT_MS
    };
    if (both == NULL || netsrv_dial(netsrv_get_server(c), &to, &both->server) != NETSRV_OK) {
        free(both);
        netsrv_abort(c);
        return;
    }
    both->client = c;
    netsrv_set_data(c, both);
}

/* ---- the process ----------------------------------------------------------------------------- */

static netsrv_server *server;

static void on_signal(int sig) {
    (void)sig;
    netsrv_stop(server, GRACE_MS);
}

static void on_log(void *user, netsrv_log_level level, const char *text) {
    (void)user;
    if (level <= NETSRV_LOG_INFO) {
        fprintf(stderr, "proxy: %s\n", text);
    }
}

/* Scripts that asked for port 0 read here which one it became. */
static void write_port(const char *path) {
    FILE *f = fopen(path, "w");
    if (f != NULL) {
        fprintf(f, "%u\n", (unsigned)netsrv_get_port(server, 0));
        fclose(f);
    }
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: proxy ADDRESS TARGET [PORT_FILE]\n");
        return 2;
    }
    target = argv[2];
    const netsrv_config cfg = {
        .listen = {argv[1]},
        .on_open = on_open,
        .on_data = on_data,
        .on_drain = on_drain,
        .on_eof = on_eof,
        .on_close = on_close,
        .on_log = on_log,
        .eof_policy = NETSRV_EOF_KEEP,
    };
    if (netsrv_create(&server, &cfg, NULL) != NETSRV_OK) {
        return 1;
    }
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    if (netsrv_start(server, NULL) == NETSRV_OK) {
        if (argc > 3) {
            write_port(argv[3]);
        }
        netsrv_wait(server);
    }
    signal(SIGINT, SIG_DFL); /* a late one must not find a server that is gone */
    signal(SIGTERM, SIG_DFL);
    netsrv_destroy(server);
    return 0;
}
