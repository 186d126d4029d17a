/* place.c: which worker gets the connection, by live counters; and that the counters are right. */
#include "../seam.h"

#include "rig.h"

#define WORKERS 4
#define MANY    200

static int held[MANY];

static void hold(netsrv_server *s, unsigned n) {
    for (unsigned i = 0; i < n; i++) {
        held[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK_WITHIN(5000, rig_opens() >= i + 1);
    }
}

static void release(unsigned n) {
    for (unsigned i = 0; i < n; i++) {
        close(held[i]);
    }
    CHECK_WITHIN(10000, rig_closes() == rig_opens());
}

static uint64_t live_of(netsrv_server *s, unsigned worker) {
    netsrv_stats stats;
    CHECK_EQ(netsrv_get_stats(s, worker, &stats), NETSRV_OK);
    return stats.live;
}

static void spread(netsrv_server *s, uint64_t *least, uint64_t *most) {
    *least = UINT64_MAX;
    *most = 0;
    for (unsigned i = 0; i < WORKERS; i++) {
        const uint64_t n = live_of(s, i);
        *least = n < *least ? n : *least;
        *most = n > *most ? n : *most;
    }
}

/* What was accepted was opened, what was given was received, and nothing is under way. A counter is
 * written by its own thread, perhaps a moment after the connection is there. */
static void check_books(netsrv_server *s, uint64_t connections) {
    CHECK_WITHIN(5000, rig_total(s).given == rig_total(s).received &&
                           rig_total(s).opened == connections &&
                           rig_total(s).accepted == connections &&
                           rig_total(s).live == connections - rig_total(s).closed);
    const netsrv_stats total = rig_total(s);
    CHECK_EQ(total.accepted, connections);
    CHECK_EQ(total.opened, connections);
    CHECK_EQ(total.given, total.received);
    CHECK_EQ(total.travelling, 0);
    CHECK_EQ(total.live, connections - total.closed);
}

static netsrv_config place_config(netsrv_backend b, netsrv_accept accept, netsrv_place place) {
    netsrv_config cfg = rig_config(b, WORKERS);
    cfg.accept = accept;
    cfg.place = place;
    cfg.stall_ms = NETSRV_OFF; /* a worker may have to wait for a processor */
    return cfg;
}

/* ---- each rule ------------------------------------------------------------------------------- */

static void even(netsrv_backend b, netsrv_accept accept, netsrv_place place, uint64_t slack) {
    const netsrv_config cfg = place_config(b, accept, place);
    netsrv_server *s = rig_start(&cfg);
    uint64_t least = 0;
    uint64_t most = 0;
    hold(s, MANY);
    spread(s, &least, &most);
    CHECK_LE(most - least, slack);
    CHECK_LE(most, MANY / WORKERS + slack);
    CHECK_GE(netsrv_imbalance(s), 100);
    check_books(s, MANY);
    release(MANY);
    check_books(s, MANY);
    rig_stop(s, 1000);
}

static void round_robin(netsrv_backend b) {
    even(b, NETSRV_ACCEPT_SINGLE, NETSRV_PLACE_ROUND_ROBIN, 1);
    even(b, NETSRV_ACCEPT_ACCEPTOR, NETSRV_PLACE_ROUND_ROBIN, 1);
}

static void least(netsrv_backend b) {
    even(b, NETSRV_ACCEPT_SINGLE, NETSRV_PLACE_LEAST, 1 + WORKERS);
    even(b, NETSRV_ACCEPT_ACCEPTOR, NETSRV_PLACE_LEAST, 1 + WORKERS);
    even(b, NETSRV_ACCEPT_SHARED, NETSRV_PLACE_LEAST, 1 + WORKERS);
}

static void two_choices(netsrv_backend b) {
    even(b, NETSRV_ACCEPT_ACCEPTOR, NETSRV_PLACE_TWO_CHOICES, 10);
    even(b, NETSRV_ACCEPT_SHARED, NETSRV_PLACE_TWO_CHOICES, 10);
}

/* The lighter worker gets the next: after one worker's clients have left, it is filled up first. */
static void least_refills(netsrv_backend b) {
    const netsrv_config cfg =
        place_config(b, NETSRV_ACCEPT_ACCEPTOR, NETSRV_PLACE_LEAST);
    netsrv_server *s = rig_start(&cfg);
    uint64_t fewest = 0;
    uint64_t most = 0;
    hold(s, 40);
    for (unsigned i = 0; i < 20; i++) {
        close(held[i]);
    }
    CHECK_WITHIN(5000, rig_closes() == 20 && rig_total(s).live == 20);
    for (unsigned i = 0; i < 20; i++) {
        held[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK_WITHIN(5000, rig_opens() == 41 + i);
    }
    spread(s, &fewest, &most);
    CHECK_LE(most - fewest, 1 + WORKERS);
    release(40);
    check_books(s, 60);
    rig_stop(s, 1000);
}

static unsigned worker_of_address[64];

static void note_address(netsrv_conn *c) {
    char text[NETSRV_ADDRESS_MAX];
    netsrv_peer_text(c, text, sizeof text);
    const unsigned last = (unsigned)atoi(strrchr(text, '.') + 1);
    const unsigned worker = netsrv_get_worker(c) + 1;
    CHECK(worker_of_address[last] == 0 || worker_of_address[last] == worker);
    worker_of_address[last] = worker;
    rig_on_open(c);
}

static void peer_hash(netsrv_backend b) {
    netsrv_config cfg = place_config(b, NETSRV_ACCEPT_ACCEPTOR, NETSRV_PLACE_PEER_HASH);
    unsigned used[WORKERS + 1] = { 0 };
    unsigned n = 0;
    cfg.on_open = note_address;
    memset(worker_of_address, 0, sizeof worker_of_address);
    netsrv_server *s = rig_start(&cfg);
    for (int round = 0; round < 3; round++) {
        for (uint8_t last = 2; last <= 50; last++) {
            held[n] = peer_connect_from(last, netsrv_get_port(s, 0), check_scaled(10000));
            CHECK(held[n] >= 0);
            n++;
            CHECK_WITHIN(5000, rig_opens() == n);
        }
    }
    for (unsigned last = 2; last <= 50; last++) {
        used[worker_of_address[last]]++;
    }
    CHECK_EQ(used[0], 0);
    for (unsigned i = 1; i <= WORKERS; i++) {
        CHECK_GE(used[i], 1);
    }
    release(n);
    check_books(s, n);
    rig_stop(s, 1000);
}

/* ---- custom ---------------------------------------------------------------------------------- */

static struct {
    atomic_uint answer;
    atomic_ulong calls;
    atomic_uint accepting;
    netsrv_peer last;
} picks;

static unsigned pick_told(netsrv_server *s, const netsrv_peer *peer, unsigned accepting) {
    CHECK(s != NULL);
    picks.last = *peer;
    atomic_store(&picks.accepting, accepting);
    atomic_fetch_add(&picks.calls, 1);
    return atomic_load(&picks.answer);
}

static atomic_uint opened_on;

static void note_worker(netsrv_conn *c) {
    atomic_store(&opened_on, netsrv_get_worker(c));
    rig_on_open(c);
}

static void custom(netsrv_backend b) {
    netsrv_config cfg = place_config(b, NETSRV_ACCEPT_SINGLE, NETSRV_PLACE_CUSTOM);
    cfg.pick = pick_told;
    cfg.on_open = note_worker;
    cfg.listen[1] = rig_any_port();
    atomic_store(&picks.calls, 0);
    netsrv_server *s = rig_start(&cfg);
    for (unsigned i = 0; i < 2 * WORKERS + 1; i++) {
        struct sockaddr_in own;
        socklen_t len = sizeof own;
        const unsigned answer = i < 2 * WORKERS ? i % WORKERS : 1000000;
        atomic_store(&picks.answer, answer);
        const int fd = peer_connect(netsrv_get_port(s, i & 1));
        CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
        CHECK_EQ(atomic_load(&picks.calls), i + 1);
        CHECK_EQ(atomic_load(&opened_on), answer < WORKERS ? answer : 0);
        CHECK_EQ(atomic_load(&picks.accepting), 0);
        getsockname(fd, (struct sockaddr *)&own, &len);
        CHECK_EQ(picks.last.family, AF_INET);
        CHECK_EQ(picks.last.port, ntohs(own.sin_port));
        CHECK_MEM(picks.last.address, 4, "\x7f\0\0\x01", 4);
        CHECK_EQ(picks.last.listener, i & 1);
        close(fd);
    }
    CHECK_WITHIN(5000, rig_closes() == 2 * WORKERS + 1);
    rig_stop(s, 1000);
}

/* A worker that answers nonsense from an acceptor thread counts as worker 0. */
static void custom_from_acceptor(netsrv_backend b) {
    netsrv_config cfg = place_config(b, NETSRV_ACCEPT_ACCEPTOR, NETSRV_PLACE_CUSTOM);
    cfg.pick = pick_told;
    cfg.on_open = note_worker;
    atomic_store(&picks.answer, UINT32_MAX);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
    CHECK_EQ(atomic_load(&opened_on), 0);
    CHECK_GE(atomic_load(&picks.accepting), WORKERS);
    close(fd);
    rig_stop(s, 1000);
}

/* ---- a worker that is stuck ------------------------------------------------------------------ */

static atomic_int gate;

static void wait_at_gate(netsrv_server *s, unsigned worker, void *arg) {
    (void)s;
    (void)worker;
    (void)arg;
    atomic_store(&gate, 1);
    CHECK_WITHIN(20000, atomic_load(&gate) == 2);
}

/* Worker 2 hangs in a callback: after stall_ms nobody is sent there, and nobody waits. Time is made
 * to pass, so much that no other worker can be taken for one that hangs as well. */
static void stuck_worker(netsrv_backend b, netsrv_place place) {
    netsrv_config cfg = place_config(b, NETSRV_ACCEPT_ACCEPTOR, place);
    cfg.stall_ms = 30000;
    atomic_store(&gate, 0);
    seam_reset(0);
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(netsrv_post(s, 2, wait_at_gate, NULL), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&gate) == 1);
    SEAM_SET(clock_ms, 60000);
    for (unsigned i = 0; i < 30; i++) {
        held[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(held[i], "x") && peer_gets(held[i], "x"));
    }
    CHECK_EQ(live_of(s, 2), 0);
    atomic_store(&gate, 2);
    rig_poke(s);
    if (place == NETSRV_PLACE_LEAST) {
        held[30] = peer_connect(netsrv_get_port(s, 0));
        CHECK_WITHIN(5000, live_of(s, 2) == 1);
        release(31);
    } else {
        release(30);
    }
    rig_stop(s, 1000);
    seam_reset(0);
}

/* A full mailbox: the accepting worker keeps what it cannot give. */
static void full_mailbox(netsrv_backend b) {
    netsrv_config cfg = place_config(b, NETSRV_ACCEPT_SINGLE, NETSRV_PLACE_CUSTOM);
    cfg.pick = pick_told;
    cfg.mailbox_max_count = 4;
    atomic_store(&gate, 0);
    atomic_store(&picks.answer, 2);
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(netsrv_post(s, 2, wait_at_gate, NULL), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&gate) == 1);
    for (unsigned i = 0; i < 20; i++) {
        held[i] = peer_connect(netsrv_get_port(s, 0));
    }
    CHECK_WITHIN(5000, rig_total(s).accepted == 20);
    CHECK_WITHIN(5000, live_of(s, 0) >= 15);
    CHECK_WITHIN(5000, rig_total(s).kept_full >= 15);
    atomic_store(&gate, 2);
    for (unsigned i = 0; i < 20; i++) {
        CHECK(peer_say(held[i], "x") && peer_gets(held[i], "x"));
    }
    release(20);
    check_books(s, 20);
    rig_stop(s, 1000);
}

/* A client that goes while its connection travels leaves no trace in the counters. */
static void gone_while_travelling(netsrv_backend b) {
    netsrv_config cfg = place_config(b, NETSRV_ACCEPT_SINGLE, NETSRV_PLACE_CUSTOM);
    cfg.pick = pick_told;
    atomic_store(&gate, 0);
    atomic_store(&picks.answer, 2);
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(netsrv_post(s, 2, wait_at_gate, NULL), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&gate) == 1);
    for (unsigned i = 0; i < 20; i++) {
        const int fd = peer_connect(netsrv_get_port(s, 0));
        if (i % 2 == 0) {
            peer_reset(fd);
        } else {
            close(fd);
        }
    }
    CHECK_WITHIN(5000, rig_total(s).accepted == 20);
    CHECK_WITHIN(5000, rig_total(s).travelling == 20);
    atomic_store(&gate, 2);
    CHECK_WITHIN(5000, rig_total(s).travelling == 0 && rig_total(s).live == 0);
    check_books(s, 20);
    rig_stop(s, 1000);
}

static void all(netsrv_backend b) {
    CASE("round robin", round_robin(b));
    CASE("least", least(b));
    CASE("two choices", two_choices(b));
    CASE("least refills", least_refills(b));
    CASE("peer hash", peer_hash(b));
    CASE("custom", custom(b));
    CASE("custom from an acceptor", custom_from_acceptor(b));
    CASE("a stuck worker, least", stuck_worker(b, NETSRV_PLACE_LEAST));
    CASE("a stuck worker, two choices", stuck_worker(b, NETSRV_PLACE_TWO_CHOICES));
    CASE("a stuck worker, round robin", stuck_worker(b, NETSRV_PLACE_ROUND_ROBIN));
    CASE("a full mailbox", full_mailbox(b));
    CASE("gone while travelling", gone_while_travelling(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
