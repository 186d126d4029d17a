/* storm.c: short connections reuse slots and descriptors as fast as they can, while batches are
 * shuffled, events repeated, reads and writes cut and the schedule disturbed. Every connection
 * has a token of its own; nobody may ever meet another's. */
#include "../seam.h"

#include "rig.h"

#define CLIENTS  8
#define WORKERS  3

static atomic_bool over;
static atomic_ulong exchanges;
static atomic_uint next_token;

/* The server's side: the first message's token belongs to the connection until its end. */
static size_t same_token(netsrv_conn *c, const void *data, size_t n) {
    const char *at = data;
    size_t used = 0;
    while (n - used >= sizeof(uint32_t)) {
        uint32_t token;
        memcpy(&token, at + used, sizeof token);
        const uintptr_t mine = (uintptr_t)netsrv_get_data(c);
        CHECK(mine == 0 || mine == token);
        netsrv_set_data(c, (void *)(uintptr_t)token);
        netsrv_send(c, at + used, sizeof token);
        used += sizeof token;
    }
    return used;
}

static void token_ends(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    CHECK(netsrv_get_data(c) != (void *)1);
    netsrv_set_data(c, (void *)1);
    rig_on_close(c, reason, sys_errno);
}

static void token_begins(netsrv_conn *c) {
    CHECK(netsrv_get_data(c) == NULL);
    rig_on_open(c);
}

static bool exchange_token(int fd, uint32_t token) {
    uint32_t back = 0;
    if (!peer_send(fd, &token, sizeof token) || peer_recv(fd, &back, sizeof back) != sizeof back) {
        return false;
    }
    return CHECK_EQ(back, token);
}

static void one_life(uint16_t port, unsigned kind) {
    const uint32_t token = 2 + atomic_fetch_add(&next_token, 1);
    const int fd = peer_connect(port);
    const unsigned messages = 1 + kind % 3;
    for (unsigned i = 0; i < messages; i++) {
        CHECK(exchange_token(fd, token));
    }
    if (kind % 5 == 0) {
        peer_reset(fd);
    } else {
        close(fd);
    }
    atomic_fetch_add(&exchanges, 1);
}

static void *live(void *arg) {
    const uint16_t port = *(const uint16_t *)arg;
    for (unsigned i = 0; !atomic_load(&over); i++) {
        one_life(port, i);
    }
    return NULL;
}

static void storm(netsrv_config cfg, uint64_t seed, uint64_t ms, bool repeat) {
    pthread_t t[CLIENTS];
    cfg.on_open = token_begins;
    cfg.on_data = same_token;
    cfg.on_close = token_ends;
    seam_reset(seed);
    SEAM_SET(permute, true);
    SEAM_SET(repeat, repeat);
    SEAM_SET(disturb, true);
    SEAM_SET(recv_clip, 7);
    SEAM_SET(send_clip, 7);
    atomic_store(&over, false);
    atomic_store(&exchanges, 0);
    netsrv_server *s = rig_start(&cfg);
    uint16_t port = netsrv_get_port(s, 0);
    for (int i = 0; i < CLIENTS; i++) {
        pthread_create(&t[i], NULL, live, &port);
    }
    const uint64_t end = check_now_ms() + ms;
    CHECK_WITHIN(30000, check_now_ms() >= end && atomic_load(&exchanges) >= 200);
    atomic_store(&over, true);
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(t[i], NULL);
    }
    CHECK_WITHIN(10000, rig_opens() == rig_closes());
    rig_stop(s, 1000);
    printf("    %lu connections, %lu disturbed points, seed %llu\n", atomic_load(&exchanges),
           SEAM_GET(points), (unsigned long long)seed);
    seam_reset(0);
}

static void each_accept(netsrv_backend b) {
    for (int accept = NETSRV_ACCEPT_SINGLE; accept < NETSRV_ACCEPT_COUNT; accept++) {
        netsrv_config cfg = rig_config(b, WORKERS);
        if (!rig_accepts(b, accept)) {
            continue;
        }
        cfg.accept = (netsrv_accept)accept;
        cfg.place = NETSRV_PLACE_ROUND_ROBIN;
        printf("    accept %s\n", netsrv_accept_name(accept));
        storm(cfg, (uint64_t)accept, 350, true);
    }
}

static void direct(netsrv_backend b, bool repeat) {
    netsrv_config cfg = rig_config(b, WORKERS);
    if (!rig_shares(b)) {
        SKIP("cannot register in another worker's poller");
        return;
    }
    cfg.accept = NETSRV_ACCEPT_ACCEPTOR;
    cfg.acceptors = 2;
    cfg.trigger = NETSRV_TRIGGER_ONESHOT;
    cfg.transfer = NETSRV_TRANSFER_DIRECT;
    storm(cfg, 77, 600, repeat);
}

/* Small batches: an event of one connection is left over while another takes its descriptor. */
static void small_batches(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, WORKERS);
    cfg.events_per_wait = 2;
    cfg.mailbox_max_count = 2;
    cfg.place = NETSRV_PLACE_LEAST;
    storm(cfg, 99, 600, true);
}

static void all(netsrv_backend b) {
    CASE("every accept", each_accept(b));
    CASE("small batches", small_batches(b));
    CASE("direct transfer", direct(b, false));
    CASE("direct transfer, repeated events", direct(b, true));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
