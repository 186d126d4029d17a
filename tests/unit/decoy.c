/* decoy.c: a descriptor that is closed twice hits somebody else's. Threads of the host open and
 * close descriptors of their own all the time and look whether they are still theirs, while
 * connections come and go and every kind of call between accept and close fails now and then. */
#include "../seam.h"

#include "rig.h"

#include <sys/stat.h>

#define DECOYS  3
#define CLIENTS 3

static atomic_bool over;
static atomic_ulong looks;
static atomic_ulong victims;

/* A pipe is told from any other by its inode number. */
static bool still_ours(const int *ends, ino_t ino) {
    struct stat a;
    struct stat b;
    return fstat(ends[0], &a) == 0 && fstat(ends[1], &b) == 0 && a.st_ino == ino && b.st_ino == ino;
}

static void look_once(void) {
    struct stat st;
    int ends[2];
    if (pipe(ends) != 0) {
        return;
    }
    fstat(ends[0], &st);
    for (int i = 0; i < 3; i++) {
        sched_yield();
        if (!still_ours(ends, st.st_ino)) {
            atomic_fetch_add(&victims, 1);
        }
    }
    if (close(ends[0]) != 0 || close(ends[1]) != 0) {
        atomic_fetch_add(&victims, 1);
    }
    atomic_fetch_add(&looks, 1);
}

static void *decoy(void *arg) {
    (void)arg;
    while (!atomic_load(&over)) {
        look_once();
    }
    return NULL;
}

/* Fails one call in six of those that stand between accept and close. */
static int fail_some(const char *name, unsigned long nth) {
    static const struct {
        const char *name;
        int err;
    } often[] = {
        { "epoll_ctl", ENOSPC }, { "setsockopt", EINVAL }, { "fcntl", EBADF }, { "alloc", ENOMEM },
        { "recv", ECONNRESET }, { "send", EPIPE }, { "close", EINTR }, { "shutdown", ENOTCONN },
        { "getpeername", ENOTCONN }, { "getsockname", ENOBUFS }, { "accept4", ECONNABORTED },
        { "accept4", EMFILE },
    };
    (void)nth;
    if (seam_draw(6) != 0) {
        return 0;
    }
    const size_t at = seam_draw(sizeof often / sizeof often[0]);
    for (size_t i = 0; i < sizeof often / sizeof often[0]; i++) {
        const size_t k = (at + i) % (sizeof often / sizeof often[0]);
        if (strcmp(often[k].name, name) == 0) {
            return often[k].err;
        }
    }
    return 0;
}

static size_t by_turns(netsrv_conn *c, const void *data, size_t n) {
    static atomic_ulong turn;
    rig_on_data(c, data, n);
    if (n > 1) {
        return n; /* the question whether everything still works */
    }
    switch (atomic_fetch_add(&turn, 1) % 4) {
    case 0: netsrv_close(c); break;
    case 1: netsrv_abort(c); break;
    case 2: netsrv_shutdown(c); break;
    default: break;
    }
    return n;
}

static void *client(void *arg) {
    const uint16_t port = *(const uint16_t *)arg;
    for (unsigned i = 0; !atomic_load(&over); i++) {
        char byte = 0;
        const int fd = peer_connect_from(0, port, 20);
        if (fd < 0) {
            continue;
        }
        peer_say(fd, "x");
        peer_recv(fd, &byte, 1);
        if (i % 3 == 0) {
            peer_reset(fd);
        } else {
            close(fd);
        }
    }
    return NULL;
}

static void decoys(netsrv_config cfg, uint64_t ms) {
    pthread_t t[DECOYS];
    pthread_t u[CLIENTS];
    cfg.on_data = by_turns;
    cfg.linger_timeout_ms = 20;
    cfg.on_log = NULL;
    seam_reset(check_now_ms());
    atomic_store(&over, false);
    atomic_store(&looks, 0);
    atomic_store(&victims, 0);
    netsrv_server *s = rig_start(&cfg);
    uint16_t port = netsrv_get_port(s, 0);
    SEAM_SET(disturb, true);
    SEAM_SET(decider, fail_some);
    for (int i = 0; i < DECOYS; i++) {
        pthread_create(&t[i], NULL, decoy, NULL);
    }
    for (int i = 0; i < CLIENTS; i++) {
        pthread_create(&u[i], NULL, client, &port);
    }
    const uint64_t end = check_now_ms() + ms;
    CHECK_WITHIN(20000, check_now_ms() >= end && atomic_load(&looks) >= 100);
    atomic_store(&over, true);
    for (int i = 0; i < DECOYS; i++) {
        pthread_join(t[i], NULL);
    }
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(u[i], NULL);
    }
    CHECK_EQ(atomic_load(&victims), 0);
    printf("    %lu looks, %lu connections\n", atomic_load(&looks), rig_opens());
    SEAM_SET(decider, NULL);
    CHECK(peer_served(port));
    rig_stop(s, 0);
    seam_reset(0);
}

static void by_accept(netsrv_backend b) {
    for (int accept = NETSRV_ACCEPT_SINGLE; accept < NETSRV_ACCEPT_COUNT; accept++) {
        netsrv_config cfg = rig_config(b, 2);
        if (!rig_accepts(b, accept)) {
            continue;
        }
        cfg.accept = (netsrv_accept)accept;
        cfg.place = NETSRV_PLACE_ROUND_ROBIN;
        decoys(cfg, 400);
    }
}

static void by_direct(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    if (!rig_shares(b)) {
        SKIP("cannot register in another worker's poller");
        return;
    }
    cfg.accept = NETSRV_ACCEPT_ACCEPTOR;
    cfg.acceptors = 2;
    cfg.transfer = NETSRV_TRANSFER_DIRECT;
    decoys(cfg, 600);
}

/* Start and stop are the other places where descriptors are closed in a hurry. */
static void by_cycles(netsrv_backend b) {
    pthread_t t[DECOYS];
    seam_reset(check_now_ms());
    atomic_store(&over, false);
    atomic_store(&victims, 0);
    for (int i = 0; i < DECOYS; i++) {
        pthread_create(&t[i], NULL, decoy, NULL);
    }
    for (int i = 0; i < 150; i++) {
        netsrv_server *s = NULL;
        netsrv_config cfg = rig_config(b, 2);
        cfg.accept = (netsrv_accept)(1 + i % 3);
        cfg.place = NETSRV_PLACE_ROUND_ROBIN;
        SEAM_SET(decider, i % 2 == 0 ? fail_some : NULL);
        if (netsrv_create(&s, &cfg, NULL) == NETSRV_OK && netsrv_start(s, NULL) == NETSRV_OK) {
            const int fd = peer_connect_from(0, netsrv_get_port(s, 0), 20);
            close(fd);
        }
        netsrv_destroy(s);
    }
    SEAM_SET(decider, NULL);
    atomic_store(&over, true);
    for (int i = 0; i < DECOYS; i++) {
        pthread_join(t[i], NULL);
    }
    CHECK_EQ(atomic_load(&victims), 0);
    seam_reset(0);
}

static void all(netsrv_backend b) {
    CASE("connections by every accept", by_accept(b));
    CASE("connections by direct transfer", by_direct(b));
    CASE("start and stop", by_cycles(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
