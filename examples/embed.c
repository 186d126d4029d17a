/* Two servers inside a program that has something else to do: a simulation that can be asked how
 * far it is, over TCP and over a unix socket. It shows a private build of the library, the
 * program's own allocator and log, and that a server starts, stops and starts again at will and
 * leaves nothing behind.
 *
 *     embed        asks itself, prints what happens, and ends with 0 if all was as it should be
 */
#define NETSRV_STATIC /* Private: nothing of the library is visible outside this file. */
#define NETSRV_IMPLEMENTATION
#include "../netsrv.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define GRACE_MS       2000
#define ANSWER_TIMEOUT 5 /* seconds */

/* ---- the program's own work ----------------------------------------------------------------- */

static atomic_uint_fast64_t steps_done; /* read by the servers' threads */

static void run_simulation(unsigned steps) {
    for (unsigned i = 0; i < steps; i++) {
        atomic_fetch_add(&steps_done, 1);
    }
}

/* ---- one server ----------------------------------------------------------------------------- */

/* What the program knows about one of its servers; netsrv_user() leads back to it. */
typedef struct service {
    const char *name;
    netsrv_server *server;
    atomic_size_t bytes_in_use;
    atomic_uint_fast64_t allocations;
    atomic_uint_fast64_t questions;
} service;

/* The library says how large the old block was, so an allocator needs no headers to keep count.
 * Several threads call it at once. */
static void *count_alloc(void *user, void *ptr, size_t old_bytes, size_t new_bytes) {
    service *me = user;
    if (new_bytes == 0) {
        free(ptr);
        atomic_fetch_sub(&me->bytes_in_use, old_bytes);
        return NULL;
    }
    void *fresh = realloc(ptr, new_bytes);
    if (fresh != NULL) {
        atomic_fetch_add(&me->bytes_in_use, new_bytes);
        atomic_fetch_sub(&me->bytes_in_use, old_bytes);
        atomic_fetch_add(&me->allocations, 1);
    }
    return fresh;
}

static void on_log(void *user, netsrv_log_level level, const char *text) {
    static const char *const levels[] = {"error", "warning", "info", "debug"};
    const service *me = user;
    if (level <= NETSRV_LOG_INFO) {
        printf("  [%s] %s: %s\n", me->name, levels[level], text);
    }
}

/* Any line is taken for the question how far the simulation is. */
static void on_frame(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    (void)n;
    service *me = netsrv_user(netsrv_get_server(c));
    atomic_fetch_add(&me->questions, 1);
    char text[32];
    const int length = snprintf(text, sizeof text, "step %" PRIuFAST64 "\n", steps_done);
    netsrv_send(c, text, (size_t)length);
}

static bool open_service(service *me, const char *address) {
    const netsrv_config cfg = {
        .listen = {address},
        .framing = NETSRV_FRAMING_LINE,
        .on_frame = on_frame,
        .on_log = on_log,
        .alloc = count_alloc,
        .user = me,
        .workers = 2,
    };
    return netsrv_create(&me->server, &cfg, NULL) == NETSRV_OK; /* on_log has told what failed. */
}

static bool start_service(service *me) {
    return netsrv_start(me->server, NULL) == NETSRV_OK;
}

static void stop_service(service *me) {
    netsrv_stop(me->server, GRACE_MS);
    netsrv_wait(me->server);
}

static void print_service(const service *me) {
    netsrv_stats total;
    netsrv_get_total(me->server, &total);
    printf("  [%s] %" PRIu64 " connections, %" PRIu64 " bytes in, %" PRIu64 " bytes out, %zu bytes "
           "of memory in use\n",
           me->name, total.opened, total.bytes_in, total.bytes_out, me->bytes_in_use);
}

/* True if the server gave back all memory that it ever took. */
static bool close_service(service *me) {
    netsrv_destroy(me->server);
    printf("  [%s] %" PRIuFAST64 " questions, %" PRIuFAST64 " allocations, %zu bytes left\n",
           me->name, me->questions, me->allocations, me->bytes_in_use);
    return me->bytes_in_use == 0;
}

/* ---- a client: plain blocking sockets, as any other program would use them ------------------- */

static int connect_tcp(uint16_t port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static int connect_unix(const char *path) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    snprintf(to.sun_path, sizeof to.sun_path, "%s", path);
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Sends one line and reads one. TCP may deliver the answer in pieces. */
static bool ask(int fd, char *answer, size_t room) {
    const struct timeval patience = {.tv_sec = ANSWER_TIMEOUT};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (write(fd, "how far?\n", 9) != 9) {
        return false;
    }
    size_t n = 0;
    while (n < room - 1) {
        const ssize_t got = read(fd, answer + n, room - 1 - n);
        if (got <= 0) {
            return false;
        }
        n += (size_t)got;
        if (answer[n - 1] == '\n') {
            answer[n - 1] = '\0';
            return true;
        }
    }
    return false;
}

static bool ask_and_print(const char *name, int fd) {
    char answer[64];
    const bool answered = fd >= 0 && ask(fd, answer, sizeof answer);
    printf("  asked over %s: %s\n", name, answered ? answer : "no answer");
    if (fd >= 0) {
        close(fd);
    }
    return answered;
}

/* ---- the program ---------------------------------------------------------------------------- */

/* One life of both servers: start, work and answer at the same time, stop. */
static bool run_once(service *tcp, service *local, const char *path) {
    if (!start_service(tcp) || !start_service(local)) {
        return false;
    }
    bool good = true;
    for (int i = 0; i < 3; i++) {
        run_simulation(1000);
        good &= ask_and_print("TCP", connect_tcp(netsrv_get_port(tcp->server, 0)));
        good &= ask_and_print("the unix socket", connect_unix(path));
    }
    stop_service(tcp);
    stop_service(local);
    print_service(tcp);
    print_service(local);
    return good;
}

static bool run_twice(const char *path) {
    char address[NETSRV_ADDRESS_MAX];
    snprintf(address, sizeof address, "unix:%s", path);
    service tcp = {.name = "tcp"};
    service local = {.name = "unix"};
    bool good = open_service(&tcp, "127.0.0.1:0") && open_service(&local, address);
    for (int life = 1; life <= 2 && good; life++) {
        printf("life %d\n", life);
        good = run_once(&tcp, &local, path);
    }
    printf("the end\n");
    const bool tcp_clean = close_service(&tcp);
    const bool local_clean = close_service(&local);
    return good && tcp_clean && local_clean;
}

int main(void) {
    char directory[] = "/tmp/embed.XXXXXX";
    if (mkdtemp(directory) == NULL) {
        perror(directory);
        return 1;
    }
    char path[64];
    snprintf(path, sizeof path, "%s/socket", directory);
    const bool good = run_twice(path);
    /* This fails if the server has left its socket there. */
    const bool clean = rmdir(directory) == 0;
    printf("%s\n", good && clean ? "all is back as it was" : "something went wrong");
    return good && clean ? 0 : 1;
}
