/* ids.c: names of connections on other threads: stale, foreign, invented, and during churn. */
#include "../seam.h"

#include "rig.h"

#define THREADS   4
#define LIVE      4
#define STALE_MAX 4096

static atomic_ullong live_id[LIVE];
static atomic_ullong stale_id[STALE_MAX];
static atomic_ulong stale_next;
static atomic_ulong stale_count; /* that are there */
static atomic_bool over;

/* ---- stale ids ------------------------------------------------------------------------------- */

static void remember_stale(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    const unsigned long i = atomic_fetch_add(&stale_next, 1);
    atomic_store(&stale_id[i % STALE_MAX], netsrv_get_id(c));
    atomic_fetch_add(&stale_count, 1);
    rig_on_close(c, reason, sys_errno);
}

static netsrv_id some_stale(unsigned long i) {
    const unsigned long n = atomic_load(&stale_count);
    return atomic_load(&stale_id[i % (n < STALE_MAX ? n : STALE_MAX)]);
}

static bool harmless(netsrv_result result) {
    return result == NETSRV_OK || result == NETSRV_GONE || result == NETSRV_QUEUE_FULL;
}

static void *try_stale(void *arg) {
    netsrv_server *s = arg;
    for (unsigned long i = 0; i < 1000000 / THREADS; i++) {
        const netsrv_id id = some_stale(seam_draw(STALE_MAX));
        const int what = (int)(i % 16);
        const netsrv_result result = what == 0   ? netsrv_close_id(s, id)
                                     : what == 1 ? netsrv_abort_id(s, id)
                                     : what == 3 ? netsrv_resume_id(s, id)
                                                 : netsrv_send_to(s, id, "to the dead", 11);
        if (!harmless(result) || (what == 2 && netsrv_find(s, id) != NULL)) {
            CHECK_EQ(result, NETSRV_GONE);
            break;
        }
    }
    return NULL;
}

static void make_stale(netsrv_server *s, unsigned n) {
    const unsigned long before = atomic_load(&stale_count);
    for (unsigned i = 0; i < n; i++) {
        const int fd = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
        close(fd);
    }
    CHECK_WITHIN(10000, atomic_load(&stale_count) >= before + n);
}

/* The live connections sit in the slots of dead ones; a million tries must not touch them. */
static void stale_ids(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    pthread_t t[THREADS];
    int fd[LIVE];
    cfg.on_close = remember_stale;
    atomic_store(&stale_next, 0);
    atomic_store(&stale_count, 0);
    netsrv_server *s = rig_start(&cfg);
    make_stale(s, 200);
    for (int i = 0; i < LIVE; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd[i], "live") && peer_gets(fd[i], "live"));
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_create(&t[i], NULL, try_stale, s);
    }
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < LIVE; i++) {
            CHECK(peer_say(fd[i], "still") && peer_gets(fd[i], "still"));
        }
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(t[i], NULL);
    }
    for (int i = 0; i < LIVE; i++) {
        CHECK(peer_say(fd[i], "alive") && peer_gets(fd[i], "alive"));
        close(fd[i]);
    }
    rig_stop(s, 1000);
}

static void ids_never_repeat(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.on_close = remember_stale;
    atomic_store(&stale_next, 0);
    atomic_store(&stale_count, 0);
    netsrv_server *s = rig_start(&cfg);
    make_stale(s, 100);
    netsrv_stop(s, 0);
    CHECK_EQ(netsrv_wait(s), NETSRV_OK);
    REQUIRE(netsrv_start(s, NULL) == NETSRV_OK);
    make_stale(s, 200);
    unsigned repeated = 0;
    for (unsigned long i = 0; i < 200; i++) {
        CHECK_NE(atomic_load(&stale_id[i]), 0);
        for (unsigned long j = 0; j < i; j++) {
            repeated += atomic_load(&stale_id[i]) == atomic_load(&stale_id[j]);
        }
    }
    CHECK_EQ(repeated, 0);
    rig_stop(s, 0);
}

static void invented_ids(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
    seam_reset(5);
    for (int i = 0; i < 20000; i++) {
        const netsrv_id id = i == 0 ? 0 : i == 1 ? UINT64_MAX : seam_mix((uint64_t)i) >> (i % 60);
        const netsrv_result result = netsrv_send_to(s, id, "?", 1);
        CHECK(harmless(result) || result == NETSRV_BAD_ARGUMENT);
        CHECK(netsrv_find(s, id) == NULL);
    }
    CHECK(peer_say(fd, "y") && peer_gets(fd, "y"));
    close(fd);
    rig_stop(s, 1000);
}

/* ---- order for each sender ------------------------------------------------------------------- */

#define MESSAGES 400

static void publish_id(netsrv_conn *c) {
    const unsigned long i = rig_opens();
    if (i < LIVE) {
        atomic_store(&live_id[i], netsrv_get_id(c));
    }
    rig_on_open(c);
}

typedef struct sender {
    netsrv_server *s;
    int number;
} sender;

static void send_surely(netsrv_server *s, netsrv_id id, const char *text) {
    netsrv_result result = NETSRV_QUEUE_FULL;
    while (result == NETSRV_QUEUE_FULL) {
        result = netsrv_send_to(s, id, text, strlen(text));
        if (result == NETSRV_QUEUE_FULL) {
            sched_yield();
        }
    }
    CHECK(result == NETSRV_OK || result == NETSRV_HIGH);
}

static void *send_numbers(void *arg) {
    const sender *me = arg;
    for (int m = 0; m < MESSAGES; m++) {
        char text[32];
        snprintf(text, sizeof text, "%d %d\n", me->number, m);
        for (int i = 0; i < LIVE; i++) {
            send_surely(me->s, atomic_load(&live_id[i]), text);
        }
    }
    return NULL;
}

/* Every message of every sender arrives once, each sender's in its order. */
static void read_numbers(int fd) {
    char text[THREADS * MESSAGES * 12];
    int next[THREADS] = { 0 };
    size_t n = 0;
    int lines = 0;
    while (lines < THREADS * MESSAGES && n < sizeof text - 1) {
        if (peer_recv(fd, text + n, 1) != 1) {
            break;
        }
        lines += text[n++] == '\n';
    }
    text[n] = '\0';
    CHECK_EQ(lines, THREADS * MESSAGES);
    for (char *at = text; *at != '\0';) {
        const long who = strtol(at, &at, 10);
        const long m = strtol(at, &at, 10);
        if (!CHECK(who >= 0 && who < THREADS && *at == '\n') || !CHECK_EQ(m, next[who])) {
            return;
        }
        next[who]++;
        at++;
    }
}

static void order_per_sender(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    pthread_t t[THREADS];
    sender me[THREADS];
    int fd[LIVE];
    cfg.on_open = publish_id;
    cfg.mailbox_max_count = 64;
    SEAM_SET(disturb, true);
    netsrv_server *s = rig_start(&cfg);
    for (unsigned i = 0; i < LIVE; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK_WITHIN(5000, rig_opens() == i + 1);
    }
    for (int i = 0; i < THREADS; i++) {
        me[i] = (sender){ s, i };
        pthread_create(&t[i], NULL, send_numbers, &me[i]);
    }
    for (int i = 0; i < LIVE; i++) {
        read_numbers(fd[i]);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(t[i], NULL);
    }
    for (int i = 0; i < LIVE; i++) {
        close(fd[i]);
    }
    rig_stop(s, 1000);
    seam_reset(0);
}

/* ---- churn: what is sent to an id arrives there or nowhere ----------------------------------- */

#define CHURN_SLOTS 32
static atomic_ullong churn_id[CHURN_SLOTS];

static size_t first_word(netsrv_conn *c, const void *data, size_t n) {
    uint32_t token = 0;
    if (n < 4) {
        return 0;
    }
    memcpy(&token, data, 4);
    netsrv_set_data(c, (void *)(uintptr_t)token);
    atomic_store(&churn_id[token % CHURN_SLOTS], netsrv_get_id(c));
    netsrv_send(c, data, 4);
    return n;
}

/* Sends each id as its own text, so that a client can tell whether it was meant. */
static void *send_ids(void *arg) {
    netsrv_server *s = arg;
    for (unsigned long i = 0; !atomic_load(&over); i++) {
        const netsrv_id id = atomic_load(&churn_id[seam_draw(CHURN_SLOTS)]);
        if (id == 0) {
            continue;
        }
        const netsrv_result result =
            i % 64 == 63 ? netsrv_close_id(s, id) : netsrv_send_to(s, id, &id, sizeof id);
        CHECK(harmless(result));
    }
    return NULL;
}

/* All ids that one connection hears must be the same. */
static void hear_one_id(int fd) {
    netsrv_id first = 0;
    for (int i = 0; i < 8; i++) {
        netsrv_id id = 0;
        if (peer_recv(fd, &id, sizeof id) != sizeof id) {
            return;
        }
        first = i == 0 ? id : first;
        CHECK(id == first);
    }
}

static void churn(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 2);
    pthread_t t[THREADS];
    cfg.on_data = first_word;
    cfg.linger_timeout_ms = 100;
    atomic_store(&over, false);
    for (int i = 0; i < CHURN_SLOTS; i++) {
        atomic_store(&churn_id[i], 0);
    }
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < THREADS; i++) {
        pthread_create(&t[i], NULL, send_ids, s);
    }
    const uint64_t end = check_now_ms() + 1000;
    for (uint32_t token = 1; check_now_ms() < end; token++) {
        uint32_t back = 0;
        const int fd = peer_connect(netsrv_get_port(s, 0));
        peer_send(fd, &token, 4);
        if (peer_recv(fd, &back, 4) == 4) {
            CHECK_EQ(back, token);
            hear_one_id(fd);
        }
        close(fd);
    }
    atomic_store(&over, true);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(t[i], NULL);
    }
    rig_stop(s, 1000);
}

/* ---- by id on the owner's thread ------------------------------------------------------------- */

static size_t by_own_id(netsrv_conn *c, const void *data, size_t n) {
    netsrv_server *s = netsrv_get_server(c);
    const netsrv_id id = netsrv_get_id(c);
    CHECK_EQ(netsrv_send(c, "1", 1), NETSRV_OK);
    CHECK_EQ(netsrv_send_to(s, id, "2", 1), NETSRV_OK);
    CHECK_EQ(netsrv_send(c, "3", 1), NETSRV_OK);
    CHECK_EQ(netsrv_close_id(s, id), NETSRV_OK);
    CHECK_EQ(netsrv_send(c, "4", 1), NETSRV_GONE);
    CHECK_EQ(netsrv_send_to(s, id, "5", 1), NETSRV_GONE);
    (void)data;
    return n;
}

static void on_the_owner(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = by_own_id;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_say(fd, "go");
    CHECK(peer_gets(fd, "123"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_LOCAL), 1);
    rig_stop(s, 0);
}

static void abort_from_afar(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_open = publish_id;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_opens() == 1);
    CHECK(netsrv_find(s, atomic_load(&live_id[0])) == NULL);
    CHECK_EQ(netsrv_abort_id(s, atomic_load(&live_id[0])), NETSRV_OK);
    CHECK_EQ(peer_end(fd), ECONNRESET);
    close(fd);
    CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_ABORT) == 1);
    rig_stop(s, 0);
}

static size_t pause_after(netsrv_conn *c, const void *data, size_t n) {
    (void)n;
    netsrv_send(c, data, 1);
    netsrv_pause(c);
    return 1;
}

static void find_and_resume(netsrv_server *s, unsigned worker, void *arg) {
    netsrv_conn *c = netsrv_find(s, *(const netsrv_id *)arg);
    (void)worker;
    if (CHECK(c != NULL)) {
        netsrv_resume(c);
    }
}

static void resume_by_id(netsrv_server *s, unsigned worker, void *arg) {
    (void)worker;
    CHECK_EQ(netsrv_resume_id(s, *(const netsrv_id *)arg), NETSRV_OK);
}

/* Each resume shows one byte more: from another thread, and on the owner's in both ways. */
static void resumed(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_open = publish_id;
    cfg.on_data = pause_after;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "abcd") && peer_gets(fd, "a"));
    rig_poke(s);
    netsrv_id id = atomic_load(&live_id[0]);
    CHECK(peer_silent(fd, 20));
    CHECK_EQ(netsrv_resume_id(s, id), NETSRV_OK);
    CHECK(peer_gets(fd, "b"));
    CHECK_EQ(netsrv_post(s, 0, find_and_resume, &id), NETSRV_OK);
    CHECK(peer_gets(fd, "c"));
    CHECK_EQ(netsrv_post(s, 0, resume_by_id, &id), NETSRV_OK);
    CHECK(peer_gets(fd, "d"));
    rig_poke(s);
    close(fd);
    rig_stop(s, 0);
}

static void all(netsrv_backend b) {
    CASE("a million stale ids", stale_ids(b));
    CASE("ids never repeat", ids_never_repeat(b));
    CASE("invented ids", invented_ids(b));
    CASE("order for each sender", order_per_sender(b));
    CASE("churn", churn(b));
    CASE("by id on the owner's thread", on_the_owner(b));
    CASE("abort from afar", abort_from_afar(b));
    CASE("resumed", resumed(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
