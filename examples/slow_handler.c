/* slow_handler.c: a handler that takes four seconds, and three ways not to let others wait for it.
 *
 *     slow_handler pool 127.0.0.1:7000       callbacks run on a pool of threads
 *     slow_handler own 127.0.0.1:7000        each connection has a thread
 *     slow_handler offload 127.0.0.1:7000    one slow step leaves the worker, the rest stays
 *     slow_handler worker 127.0.0.1:7000     as it should not be: the handler blocks its worker,
 *                                            and the server says so after a second (stuck_ms)
 *
 * A line "slow" is answered after four seconds (or after SECONDS, the third argument), any other at
 * once. Try both at the same time, from two terminals:
 *
 *     echo slow | nc -N 127.0.0.1 7000
 *     echo quick | nc -N 127.0.0.1 7000
 *
 * What to take: pool, if some requests are slow and you know how many at once. own, if the code was
 * written for one client, or needs a thread to itself. offload, if handlers are quick but for one
 * step, which can be cut out: it costs nothing as long as it is not used. */

#define NETSRV_IMPLEMENTATION
#include "netsrv.h"

#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct timespec slowness = {4, 0};

/* Stands for the database that is slow today. */
static void slow_step(void *answer) {
    nanosleep(&slowness, NULL);
    memcpy(answer, "done\n", sizeof "done\n");
}

static bool is_slow(const void *line, size_t n) {
    return n == 4 && memcmp(line, "slow", 4) == 0;
}

/* ---- pool, own: the handler just takes its time ---------------------------------------------- */

static void blocking_line(netsrv_conn *c, const void *line, size_t n) {
    char answer[16] = "quick\n";
    if (is_slow(line, n)) {
        slow_step(answer);
    }
    netsrv_send(c, answer, strlen(answer));
}

/* ---- offload: the slow step runs elsewhere, its result comes back ---------------------------- */

/* `c` is NULL if the client has gone meanwhile; the memory is given back either way. */
static void answer_is_there(netsrv_conn *c, void *answer, netsrv_result result) {
    if (result == NETSRV_OK) {
        netsrv_send(c, answer, strlen(answer));
        netsrv_resume(c);
    }
    free(answer);
}

/* The pause keeps the answers of one client in the order of its questions. */
static void offloading_line(netsrv_conn *c, const void *line, size_t n) {
    if (!is_slow(line, n)) {
        netsrv_send(c, "quick\n", 6);
        return;
    }
    char *answer = calloc(1, 16);
    const netsrv_result result =
        answer != NULL ? netsrv_offload(c, slow_step, answer_is_there, answer, 0, NULL)
                       : NETSRV_NO_MEMORY;
    if (result == NETSRV_OK) {
        netsrv_pause(c);
        return;
    }
    free(answer); /* NETSRV_QUEUE_FULL: too many at once */
    netsrv_send(c, "busy\n", 5);
}

/* On any thread: here on the one that watches over the others, and then on that which was slow. */
static void print_log(void *user, netsrv_log_level level, const char *text) {
    (void)user;
    if (level <= NETSRV_LOG_WARN) {
        fprintf(stderr, "%s\n", text);
    }
}

int main(int argc, char **argv) {
    const char *way = argc > 1 ? argv[1] : "pool";
    netsrv_config cfg = {
        .listen = {argc > 2 ? argv[2] : "127.0.0.1:7000"},
        .framing = NETSRV_FRAMING_LINE,
        .on_frame = blocking_line,
        .workers = 1,
        .on_log = print_log,
    };
    netsrv_error error;
    if (argc > 3) {
        slowness.tv_sec = atoi(argv[3]);
    }
    if (strcmp(way, "pool") == 0) {
        cfg.handler_threads = 16;
    } else if (strcmp(way, "own") == 0) {
        cfg.place = NETSRV_PLACE_OWN_THREAD;
    } else if (strcmp(way, "offload") == 0) {
        cfg.on_frame = offloading_line;
        cfg.offload_threads = 16;
    } else if (strcmp(way, "worker") == 0) {
        cfg.stuck_ms = 1000;
    } else {
        errx(2, "usage: slow_handler pool|own|offload|worker [ADDRESS [SECONDS]]");
    }
    if (netsrv_run(&cfg, &error) != NETSRV_OK) {
        errx(1, "%s", error.text);
    }
}
