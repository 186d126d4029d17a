/* control_fifo: a foreign descriptor on a worker's loop. A FIFO is watched next to the sockets, and
 * each line that is written to it goes to every client on every worker, copied into memory once.
 *
 *     control_fifo FIFO [ADDRESS [PORT-FILE]]      (the FIFO is made, and removed at the end)
 *     nc 127.0.0.1 7000                            then, elsewhere:  echo hello > FIFO
 *
 * The line "quit" ends the program when the clients have what was sent. */

#define NETSRV_IMPLEMENTATION
#include "../netsrv.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Touched by worker 0 alone. A longer line is sent in parts. */
static struct {
    int fd;
    int writer; /* ours, so that the last writer's leaving is no end of file */
    size_t used;
    char line[4096];
} fifo = {.fd = -1, .writer = -1};

static void obey(netsrv_server *s) {
    if (fifo.used == 5 && memcmp(fifo.line, "quit\n", 5) == 0) {
        netsrv_stop(s, 2000);
        return;
    }
    netsrv_buffer *buffer = netsrv_buffer_create(s, fifo.line, fifo.used);
    if (buffer == NULL || netsrv_broadcast(s, buffer, NULL, NULL, NULL) != NETSRV_OK) {
        fprintf(stderr, "control_fifo: a line is lost\n");
    }
    if (buffer != NULL) {
        netsrv_buffer_release(buffer); /* the queues of the clients have references of their own */
    }
}

/* Called again as long as there is something to read. */
static void on_readable(netsrv_server *s, unsigned worker, int fd, unsigned ready, void *arg) {
    char bytes[4096];
    (void)worker;
    (void)ready;
    (void)arg;
    const ssize_t n = read(fd, bytes, sizeof bytes);
    for (ssize_t i = 0; i < n; i++) {
        fifo.line[fifo.used++] = bytes[i];
        if (bytes[i] == '\n' || fifo.used == sizeof fifo.line) {
            obey(s);
            fifo.used = 0;
        }
    }
}

/* The watch ends with the worker. */
static void on_worker_start(netsrv_server *s, unsigned worker) {
    if (worker == 0 &&
        netsrv_watch(s, fifo.fd, NETSRV_READABLE, on_readable, NULL, NULL) != NETSRV_OK) {
        fprintf(stderr, "control_fifo: the FIFO cannot be watched\n");
        netsrv_stop(s, 0);
    }
}

static size_t on_data(netsrv_conn *c, const void *data, size_t n) {
    (void)c;
    (void)data;
    return n; /* clients listen; what they say is dropped */
}

static netsrv_server *server;

static void on_signal(int number) {
    (void)number;
    netsrv_stop(server, 2000);
}

static bool open_fifo(const char *path) {
    if (mkfifo(path, 0600) != 0) {
        return false;
    }
    fifo.fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    fifo.writer = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    return fifo.fd >= 0 && fifo.writer >= 0;
}

static bool write_port(const char *path) {
    FILE *f = fopen(path, "w");
    return f != NULL && fprintf(f, "%u\n", (unsigned)netsrv_get_port(server, 0)) > 0 &&
           fclose(f) == 0;
}

static int serve(const netsrv_config *cfg, const char *port_file) {
    netsrv_error error;
    int code = 1;
    if (netsrv_create(&server, cfg, &error) != NETSRV_OK) {
        fprintf(stderr, "control_fifo: %s\n", error.text);
        return code;
    }
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    if (netsrv_start(server, &error) != NETSRV_OK) {
        fprintf(stderr, "control_fifo: %s\n", error.text);
    } else if (port_file != NULL && !write_port(port_file)) {
        perror(port_file);
    } else {
        netsrv_wait(server);
        code = 0;
    }
    signal(SIGINT, SIG_DFL); /* A late signal must not find a server that is gone. */
    signal(SIGTERM, SIG_DFL);
    netsrv_destroy(server);
    return code;
}

int main(int argc, char **argv) {
    const netsrv_config cfg = {.listen = {argc > 2 ? argv[2] : "127.0.0.1:7000"},
                               .on_worker_start = on_worker_start,
                               .on_data = on_data};
    if (argc < 2 || !open_fifo(argv[1])) {
        fprintf(stderr, "usage: control_fifo FIFO [ADDRESS [PORT-FILE]]: %s\n",
                argc < 2 ? "no FIFO given" : strerror(errno));
        return 2;
    }
    const int code = serve(&cfg, argc > 3 ? argv[3] : NULL);
    unlink(argv[1]);
    return code;
}
