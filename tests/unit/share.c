/* share.c: one buffer for many connections on all workers: exact, in order, in memory once, freed
 * after the last, and without surprises at limits, at a stop, and for those who are gone. */
#include "../seam.h"

#include "rig.h"

#define WORKERS 3
#define CLIENTS 60

static unsigned char content[200000];
static atomic_ulong released;
static atomic_uint next_tag;

static void count_release(void *arg) {
    CHECK(arg == content);
    atomic_fetch_add(&released, 1);
}

/* Tags go round: the user pointer says to which of four groups a connection belongs. */
static void tag(netsrv_conn *c) {
    netsrv_set_data(c, (void *)(uintptr_t)(atomic_fetch_add(&next_tag, 1) % 4));
    rig_on_open(c);
}

static size_t tell_tag(netsrv_conn *c, const void *data, size_t n) {
    const char digit = (char)('0' + (int)(uintptr_t)netsrv_get_data(c));
    (void)data;
    netsrv_send(c, &digit, 1);
    return n;
}

static bool in_group_two(netsrv_conn *c, void *arg) {
    CHECK(arg == content);
    return netsrv_get_data(c) == (void *)(uintptr_t)2;
}

static netsrv_config share_config(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, WORKERS);
    cfg.accept = NETSRV_ACCEPT_SINGLE;
    cfg.place = NETSRV_PLACE_ROUND_ROBIN;
    cfg.on_open = tag;
    cfg.on_data = tell_tag;
    peer_fill(content, sizeof content, 3);
    atomic_store(&released, 0);
    atomic_store(&next_tag, 0);
    seam_reset(1);
    return cfg;
}

static netsrv_result broadcast(netsrv_server *s, size_t n,
                               bool (*filter)(netsrv_conn *c, void *arg)) {
    netsrv_buffer *b = netsrv_buffer_create(s, content, n);
    REQUIRE(b != NULL);
    const netsrv_result result = netsrv_broadcast(s, b, filter, count_release, content);
    netsrv_buffer_release(b);
    return result;
}

/* ---- to all, and to some --------------------------------------------------------------------- */

static char open_client(uint16_t port, int *fd) {
    char digit = '?';
    *fd = peer_connect(port);
    CHECK(peer_say(*fd, "?") && peer_recv(*fd, &digit, 1) == 1);
    return digit;
}

static void to_all(netsrv_backend b) {
    static const size_t sizes[] = { 0, 1, 255, 256, 1024, 70000, 200000 };
    static unsigned char have[sizeof content];
    const netsrv_config cfg = share_config(b);
    netsrv_server *s = rig_start(&cfg);
    int fd[CLIENTS];
    char digit[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        digit[i] = open_client(netsrv_get_port(s, 0), &fd[i]);
    }
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        CHECK_EQ(broadcast(s, sizes[k], NULL), NETSRV_OK);
        CHECK_EQ(broadcast(s, 1000, in_group_two), NETSRV_OK);
        for (int i = 0; i < CLIENTS; i++) {
            CHECK_MEM(have, peer_recv(fd[i], have, sizes[k]), content, sizes[k]);
            CHECK(digit[i] != '2' || peer_recv(fd[i], have, 1000) == 1000);
            CHECK(digit[i] != '2' || memcmp(have, content, 1000) == 0);
        }
    }
    for (int i = 0; i < CLIENTS; i++) {
        CHECK(peer_silent(fd[i], 0));
        close(fd[i]);
    }
    CHECK_WITHIN(5000, atomic_load(&released) == 2 * sizeof sizes / sizeof sizes[0]);
    CHECK_WITHIN(5000, rig_total(s).live == 0);
    CHECK_EQ(rig_total(s).queued_bytes, 0);
    rig_stop(s, 1000);
}

/* ---- in memory once -------------------------------------------------------------------------- */

#define HOARDERS 60
#define BIG      100000

static void in_memory_once(netsrv_backend b) {
    netsrv_config cfg = share_config(b);
    static int fd[HOARDERS];
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < HOARDERS; i++) {
        open_client(netsrv_get_port(s, 0), &fd[i]);
    }
    const long before = check_alloc_bytes();
    for (int i = 0; i < 60; i++) {
        CHECK_EQ(broadcast(s, BIG, NULL), NETSRV_OK);
    }
    CHECK_WITHIN(20000, atomic_load(&released) == 60);
    const long grown = check_alloc_bytes() - before;
    CHECK_GE(grown, BIG);
    CHECK_LE(grown, 60L * BIG + 60L * HOARDERS * 200);
    CHECK_LE(rig_total(s).queued_bytes, 60L * BIG + 60L * HOARDERS * 200);
    for (int i = 0; i < HOARDERS; i++) {
        CHECK(i % 20 != 0 || peer_skip(fd[i], 60L * BIG) == 60L * BIG);
        close(fd[i]);
    }
    CHECK_WITHIN(5000, rig_total(s).queued_bytes == 0);
    rig_stop(s, 0);
}

/* ---- order ----------------------------------------------------------------------------------- */

static atomic_ullong some_id;

static void tell_id(netsrv_conn *c) {
    atomic_store(&some_id, netsrv_get_id(c));
    rig_on_open(c);
}

static void in_order(netsrv_backend b) {
    static unsigned char have[40000];
    netsrv_config cfg = share_config(b);
    cfg.on_open = tell_id;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 1);
    const netsrv_id id = atomic_load(&some_id);
    netsrv_buffer *twice = netsrv_buffer_create(s, NULL, 300);
    REQUIRE(twice != NULL);
    memset(netsrv_buffer_data(twice), 't', 300);
    for (int i = 0; i < 200; i++) {
        const size_t n = (size_t)(i * 191 % 9000);
        CHECK_EQ(netsrv_send_to(s, id, content, n), NETSRV_OK);
        CHECK_EQ(netsrv_send_buffer_to(s, id, twice), NETSRV_OK);
        CHECK_EQ(broadcast(s, n, NULL), NETSRV_OK);
        CHECK_MEM(have, peer_recv(fd, have, n), content, n);
        CHECK_EQ(peer_recv(fd, have, 300), 300);
        CHECK(have[0] == 't' && have[299] == 't');
        CHECK_MEM(have, peer_recv(fd, have, n), content, n);
    }
    close(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_WITHIN(5000, rig_total(s).live == 0);
    netsrv_send_buffer_to(s, id, twice); /* gone: nothing happens */
    CHECK_EQ(netsrv_send_buffer_to(s, 0, twice), NETSRV_GONE);
    netsrv_buffer_retain(twice);
    netsrv_buffer_release(twice);
    rig_poke(s);
    netsrv_buffer_release(twice);
    rig_stop(s, 1000);
}

/* Inside a callback, between replies of the other kinds. */
static netsrv_buffer *shared;

static size_t mix(netsrv_conn *c, const void *data, size_t n) {
    for (int i = 0; i < 5; i++) {
        CHECK(netsrv_send(c, data, n) <= NETSRV_HIGH);
        CHECK(netsrv_send_buffer(c, shared) <= NETSRV_HIGH);
    }
    return n;
}

static void refuse_buffer(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    CHECK_EQ(netsrv_send_buffer(c, shared), NETSRV_GONE);
    rig_on_close(c, reason, sys_errno);
}

static void in_a_callback(netsrv_backend b, size_t n) {
    static unsigned char have[sizeof content];
    netsrv_config cfg = share_config(b);
    cfg.on_data = mix;
    cfg.on_close = refuse_buffer;
    netsrv_server *s = rig_start(&cfg);
    shared = netsrv_buffer_create(s, content, n);
    REQUIRE(shared != NULL);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "ab"));
    for (int i = 0; i < 5; i++) {
        CHECK(peer_gets(fd, "ab"));
        CHECK_MEM(have, peer_recv(fd, have, n), content, n);
    }
    close(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    netsrv_buffer_release(shared);
    rig_stop(s, 1000);
}

/* ---- limits and refusals --------------------------------------------------------------------- */

static bool keeps_up(netsrv_conn *c, void *arg) {
    netsrv_conn_stats stats;
    CHECK(arg == content);
    netsrv_get_conn_stats(c, &stats);
    return stats.queued_bytes < 150000;
}

/* Who does not read is passed over by a filter, or ends at its limit; the others get everything. */
static void slow_reader(netsrv_backend b) {
    netsrv_config cfg = share_config(b);
    cfg.queue_max_bytes = 400000;
    netsrv_server *s = rig_start(&cfg);
    int fast = -1;
    open_client(netsrv_get_port(s, 0), &fast);
    const int slow = peer_connect_small(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 2);
    for (int i = 0; i < 100; i++) {
        CHECK_EQ(broadcast(s, sizeof content / 2, keeps_up), NETSRV_OK);
        CHECK_EQ(peer_skip(fast, sizeof content / 2), sizeof content / 2);
    }
    CHECK_EQ(rig_closes(), 0);
    for (int i = 0; i < 100; i++) {
        CHECK_EQ(broadcast(s, sizeof content / 2, NULL), NETSRV_OK);
        CHECK_EQ(peer_skip(fast, sizeof content / 2), sizeof content / 2);
    }
    CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_QUEUE_FULL) == 1);
    CHECK_EQ(rig_closes(), 1);
    close(slow);
    close(fast);
    rig_stop(s, 1000);
}

static void *failing_alloc(void *user, void *ptr, size_t old_bytes, size_t new_bytes) {
    if (new_bytes != 0 && seam_fault("alloc") != 0) {
        return NULL;
    }
    return check_alloc(user, ptr, old_bytes, new_bytes);
}

static void refused(netsrv_backend b) {
    netsrv_config cfg = share_config(b);
    netsrv_server *s = NULL;
    cfg.alloc = failing_alloc;
    cfg.server_queue_max_bytes = 1 << 20;
    cfg.queue_max_bytes = 1 << 20;
    rig_seen_clear();
    CHECK_EQ(netsrv_create(&s, &cfg, NULL), NETSRV_OK);
    CHECK(netsrv_buffer_create(s, NULL, 1 << 20) == NULL);
    CHECK(netsrv_buffer_create(s, NULL, SIZE_MAX) == NULL);
    seam_fail_next("alloc", ENOMEM, 1);
    CHECK(netsrv_buffer_create(s, content, 1000) == NULL);
    CHECK_EQ(broadcast(s, 1000, NULL), NETSRV_STOPPED);
    CHECK_EQ(atomic_load(&released), 1);
    CHECK_EQ(netsrv_start(s, NULL), NETSRV_OK);
    netsrv_buffer *buffer = netsrv_buffer_create(s, content, 1000);
    REQUIRE(buffer != NULL);
    for (long nth = 1; nth <= 4; nth++) { /* the message itself, and the mailbox of each worker */
        seam_fail((seam_plan){ "alloc", seam_count("alloc") + (unsigned long)nth, ENOMEM, 1 });
        CHECK_EQ(netsrv_broadcast(s, buffer, NULL, count_release, content), NETSRV_NO_MEMORY);
        CHECK_EQ(atomic_load(&released), 1 + nth);
    }
    seam_fail_stop();
    CHECK_EQ(netsrv_broadcast(s, buffer, NULL, count_release, content), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&released) == 6);
    netsrv_buffer_release(buffer);
    rig_stop(s, 1000);
    seam_reset(0);
}

/* ---- everything at once ---------------------------------------------------------------------- */

static atomic_bool over;

static void *come_and_go(void *arg) {
    const uint16_t port = *(const uint16_t *)arg;
    while (!atomic_load(&over)) {
        const int fd = peer_socket(2000);
        if (peer_reach(fd, port) >= 0) {
            peer_skip(fd, 5000);
            close(fd);
        }
    }
    return NULL;
}

static atomic_ulong asked;

static void *broadcast_on(void *arg) {
    for (int i = 0; !atomic_load(&over); i++) {
        const netsrv_result result = broadcast(arg, 3000, i % 2 == 0 ? in_group_two : NULL);
        CHECK(result == NETSRV_OK || result == NETSRV_QUEUE_FULL || result == NETSRV_STOPPED);
        atomic_fetch_add(&asked, 1);
    }
    return NULL;
}

static void across_a_stop(netsrv_backend b) {
    netsrv_config cfg = share_config(b);
    pthread_t t[4];
    cfg.mailbox_max_count = 64;
    atomic_store(&over, false);
    atomic_store(&asked, 0);
    SEAM_SET(disturb, true);
    netsrv_server *s = rig_start(&cfg);
    uint16_t port = netsrv_get_port(s, 0);
    for (int i = 0; i < 4; i++) {
        pthread_create(&t[i], NULL, i < 2 ? come_and_go : broadcast_on, i < 2 ? (void *)&port : s);
    }
    CHECK_WITHIN(20000, atomic_load(&asked) > 300 && rig_opens() > 20);
    netsrv_stop(s, 50);
    CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(20000)), NETSRV_OK);
    atomic_store(&over, true);
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
    }
    CHECK_EQ(atomic_load(&released), atomic_load(&asked));
    rig_stop(s, 0);
    seam_reset(0);
}

static void all(netsrv_backend b) {
    CASE("to all, and to a group", to_all(b));
    CASE("in memory once", in_memory_once(b));
    CASE("in order", in_order(b));
    CASE("in a callback, short", in_a_callback(b, 100));
    CASE("in a callback, long", in_a_callback(b, 50000));
    CASE("a slow reader", slow_reader(b));
    CASE("refused", refused(b));
    CASE("across a stop", across_a_stop(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
