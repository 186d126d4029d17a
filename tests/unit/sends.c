/* sends.c: every way to send, in any mixture and in order: copied, in several pieces, owned, from a
 * file, corked; and what was given comes back exactly once, whatever happens. */
#include "../seam.h"

#include "rig.h"

/* ---- memory that is given away --------------------------------------------------------------- */

static atomic_ulong given;
static atomic_ulong returned;
static _Thread_local bool on_a_worker;

static void mark_thread(netsrv_server *s, unsigned worker) {
    (void)s;
    (void)worker;
    on_a_worker = true;
}

/* Freed, so that a second time is found by the allocator. */
static void take_back(void *arg) {
    CHECK(on_a_worker);
    free(arg);
    atomic_fetch_add(&returned, 1);
}

static netsrv_result give(netsrv_conn *c, const void *data, size_t n) {
    void *mine = malloc(n + 1);
    REQUIRE(mine != NULL);
    memcpy(mine, data, n);
    atomic_fetch_add(&given, 1);
    return netsrv_send_owned(c, mine, n, take_back, mine);
}

static void check_all_returned(void) {
    CHECK_EQ(atomic_load(&returned), atomic_load(&given));
}

/* ---- a file ---------------------------------------------------------------------------------- */

#define FILE_BYTES 3000000

static unsigned char content[FILE_BYTES];
static FILE *file;
static atomic_ulong files_done;

static void open_file(void) {
    file = tmpfile();
    REQUIRE(file != NULL);
    peer_fill(content, sizeof content, 1);
    REQUIRE(fwrite(content, 1, sizeof content, file) == sizeof content && fflush(file) == 0);
}

static void file_done(void *arg) {
    CHECK(arg == file && on_a_worker);
    atomic_fetch_add(&files_done, 1);
}

static netsrv_result give_file(netsrv_conn *c, size_t from, size_t n) {
    atomic_fetch_add(&given, 1);
    return netsrv_send_file(c, fileno(file), from, n, file_done, file);
}

/* ---- mixtures -------------------------------------------------------------------------------- */

#define STEPS 24

/* The seed of a mixture is the byte that the client sends; both ends derive the same bytes. */
typedef struct mixer {
    uint64_t seed;
    size_t at; /* in `content` */
} mixer;

static size_t draw(mixer *m, size_t n) {
    m->seed = seam_mix(m->seed);
    return (size_t)(m->seed % n);
}

static size_t draw_size(mixer *m) {
    static const size_t sizes[] = { 0, 1, 100, 1023, 1024, 1500, 9000, 40000 };
    return sizes[draw(m, sizeof sizes / sizeof sizes[0])];
}

static netsrv_result send_spans(netsrv_conn *c, const unsigned char *data, size_t n) {
    const netsrv_span spans[] = { { data, n / 3 }, { NULL, 0 }, { data + n / 3, n - n / 3 } };
    return netsrv_sendv(c, spans, 3);
}

static netsrv_result send_step(netsrv_conn *c, size_t way, size_t at, size_t n) {
    switch (way) {
    case 0: return netsrv_send(c, content + at, n);
    case 1: return send_spans(c, content + at, n);
    case 2: return give(c, content + at, n);
    default: return give_file(c, at, n);
    }
}

static size_t mix(netsrv_conn *c, const void *data, size_t n) {
    for (size_t i = 0; i < n; i++) {
        mixer m = { .seed = ((const unsigned char *)data)[i] };
        for (int step = 0; step < STEPS; step++) {
            const size_t way = draw(&m, 4);
            const size_t at = draw(&m, 2000000);
            const netsrv_result result = send_step(c, way, at, draw_size(&m));
            CHECK(result == NETSRV_OK || result == NETSRV_HIGH);
        }
    }
    return n;
}

static size_t expected_mixture(unsigned char seed, unsigned char *to) {
    mixer m = { .seed = seed };
    size_t used = 0;
    for (int step = 0; step < STEPS; step++) {
        draw(&m, 4);
        const size_t at = draw(&m, 2000000);
        const size_t n = draw_size(&m);
        memcpy(to + used, content + at, n);
        used += n;
    }
    return used;
}

static netsrv_config sends_config(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_worker_start = mark_thread;
    cfg.on_data = mix;
    cfg.queue_max_bytes = 64u << 20;
    atomic_store(&given, 0);
    atomic_store(&returned, 0);
    atomic_store(&files_done, 0);
    seam_reset(5);
    return cfg;
}

static int no_sendfile(const char *name, unsigned long nth) {
    (void)nth;
    return strcmp(name, "sendfile") == 0 ? EINVAL : 0;
}

/* `clip`: of each call, and so of each part of the queue. */
static void mixtures(netsrv_backend b, unsigned long clip, seam_decider decide, int seeds) {
    static unsigned char expected[STEPS * 40000];
    static unsigned char have[STEPS * 40000];
    const netsrv_config cfg = sends_config(b);
    SEAM_SET(send_clip, clip);
    SEAM_SET(decider, decide);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    for (int seed = 0; seed < seeds; seed++) {
        const unsigned char byte = (unsigned char)seed;
        const size_t n = expected_mixture(byte, expected);
        CHECK(peer_send(fd, &byte, 1));
        CHECK_MEM(have, peer_recv(fd, have, n), expected, n);
    }
    CHECK(peer_silent(fd, 20));
    CHECK(decide != NULL || seam_count("sendfile") > 0);
    CHECK(decide == NULL || seam_count("pread") > 0);
    close(fd);
    rig_stop(s, 1000);
    CHECK_EQ(atomic_load(&returned) + atomic_load(&files_done), atomic_load(&given));
    seam_reset(0);
}

/* Many at once, which the client reads afterwards: through marks and a full socket. */
static void mixtures_in_a_row(netsrv_backend b) {
    static unsigned char have[STEPS * 40000];
    static unsigned char expected[STEPS * 40000];
    unsigned char seeds[40];
    netsrv_config cfg = sends_config(b);
    cfg.high_mark_bytes = 30000;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect_small(netsrv_get_port(s, 0));
    for (size_t i = 0; i < sizeof seeds; i++) {
        seeds[i] = (unsigned char)(100 + i);
        CHECK(peer_send(fd, &seeds[i], 1));
    }
    for (size_t i = 0; i < sizeof seeds; i++) {
        const size_t n = expected_mixture(seeds[i], expected);
        CHECK_MEM(have, peer_recv(fd, have, n), expected, n);
    }
    close(fd);
    rig_stop(s, 1000);
    CHECK_GE(atomic_load(&rig_seen.drains), 1);
    CHECK_EQ(atomic_load(&returned) + atomic_load(&files_done), atomic_load(&given));
}

/* ---- what was given comes back --------------------------------------------------------------- */

static void give_in_close(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    const unsigned long before = atomic_load(&returned);
    CHECK_EQ(give(c, content, 5000), NETSRV_GONE);
    CHECK_EQ(give(c, content, 5), NETSRV_GONE);
    CHECK_EQ(atomic_load(&returned), before + 2);
    CHECK_EQ(give_file(c, 0, 5000), NETSRV_GONE);
    CHECK_EQ(give_file(c, 0, 0), NETSRV_GONE);
    rig_on_close(c, reason, sys_errno);
}

/* One letter each: how the connection ends with all of that in its queue. */
static size_t give_and_end(netsrv_conn *c, const void *data, size_t n) {
    const char how = *(const char *)data;
    for (int i = 0; i < 10; i++) {
        give(c, content, 400000);
        give_file(c, 0, 400000);
    }
    if (how == 'a') {
        netsrv_abort(c);
    } else if (how == 'c') {
        netsrv_close(c);
    } else if (how == 'q') {
        netsrv_stop(netsrv_get_server(c), 0);
    }
    return n;
}

static void comes_back(netsrv_backend b) {
    netsrv_config cfg = sends_config(b);
    cfg.on_data = give_and_end;
    cfg.on_close = give_in_close;
    cfg.flush_timeout_ms = 100;
    netsrv_server *s = rig_start(&cfg);
    const uint16_t port = netsrv_get_port(s, 0);
    unsigned long ended = 0;
    for (const char *how = "acrq"; *how != '\0'; how++) {
        const int fd = peer_connect_small(port);
        CHECK(peer_send(fd, how, 1));
        if (*how == 'r') {
            CHECK(peer_skip(fd, 1000) == 1000);
            peer_reset(fd);
            CHECK_WITHIN(5000, rig_closes() == ended + 1);
            ended++;
            continue;
        }
        CHECK_WITHIN(5000, rig_closes() == ended + 1);
        ended++;
        close(fd);
    }
    rig_end(s);
    CHECK_EQ(atomic_load(&files_done), 4 * 10 + 4 * 2);
    CHECK_EQ(atomic_load(&returned) + atomic_load(&files_done), atomic_load(&given));
}

static netsrv_conn *second;

static void end_second(void *arg) {
    free(arg);
    CHECK_EQ(netsrv_send(second, "bye", 3), NETSRV_OK);
    netsrv_close(second);
}

static size_t give_with_effect(netsrv_conn *c, const void *data, size_t n) {
    if (*(const char *)data == '2') {
        second = c;
        netsrv_send(c, data, n);
        return n;
    }
    char *mine = calloc(1, 5000);
    REQUIRE(mine != NULL);
    CHECK_EQ(netsrv_send_owned(c, mine, 5000, end_second, mine), NETSRV_OK);
    return n;
}

/* The function that takes it back may do what any callback may. */
static void comes_back_with_effect(netsrv_backend b) {
    netsrv_config cfg = sends_config(b);
    cfg.on_data = give_with_effect;
    netsrv_server *s = rig_start(&cfg);
    const int one = peer_connect(netsrv_get_port(s, 0));
    const int two = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(two, "2") && peer_gets(two, "2"));
    CHECK(peer_say(one, "1"));
    CHECK_EQ(peer_skip(one, 5000), 5000);
    CHECK(peer_gets(two, "bye"));
    CHECK_EQ(peer_end(two), PEER_FIN);
    close(one);
    close(two);
    rig_stop(s, 1000);
}

/* ---- limits ---------------------------------------------------------------------------------- */

static atomic_int last_result;

static size_t give_too_much(netsrv_conn *c, const void *data, size_t n) {
    const netsrv_span spans[] = { { content, 60000 }, { content, 60000 } };
    const netsrv_span endless[] = { { content, SIZE_MAX }, { content, 60000 } };
    const char how = *(const char *)data;
    netsrv_result result = NETSRV_OK;
    if (how == 'f') { /* a file is no memory */
        CHECK_EQ(give_file(c, 0, FILE_BYTES), NETSRV_HIGH);
        CHECK_EQ(give(c, content, 50000), NETSRV_HIGH);
        result = netsrv_send(c, content, 10);
    } else if (how == 'v') {
        result = netsrv_sendv(c, spans, 2);
    } else if (how == 'e') {
        result = netsrv_sendv(c, endless, 2);
    } else if (how == 'o') {
        result = give(c, content, 100001);
    } else {
        seam_fail_next("alloc", ENOMEM, 1);
        result = give(c, content, 5000);
    }
    atomic_store(&last_result, (int)result);
    return n;
}

static void *failing_alloc(void *user, void *ptr, size_t old_bytes, size_t new_bytes) {
    if (new_bytes != 0 && seam_fault("alloc") != 0) {
        return NULL;
    }
    return check_alloc(user, ptr, old_bytes, new_bytes);
}

static void limit(netsrv_backend b, char how, netsrv_result result, netsrv_close_reason reason) {
    netsrv_config cfg = sends_config(b);
    cfg.on_data = give_too_much;
    cfg.alloc = failing_alloc;
    cfg.high_mark_bytes = 20000;
    cfg.queue_max_bytes = 100000;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_send(fd, &how, 1));
    if (reason == NETSRV_CLOSE_COUNT) {
        CHECK_EQ(peer_skip(fd, FILE_BYTES + 50010), FILE_BYTES + 50010);
    } else {
        CHECK_EQ(peer_end(fd), ECONNRESET);
        CHECK_WITHIN(5000, rig_reason(reason) == 1);
    }
    CHECK_EQ(atomic_load(&last_result), result);
    close(fd);
    rig_stop(s, 1000);
    CHECK_EQ(atomic_load(&returned) + atomic_load(&files_done), atomic_load(&given));
}

static void limits(netsrv_backend b) {
    limit(b, 'f', NETSRV_HIGH, NETSRV_CLOSE_COUNT);
    limit(b, 'v', NETSRV_QUEUE_FULL, NETSRV_CLOSE_QUEUE_FULL);
    limit(b, 'e', NETSRV_QUEUE_FULL, NETSRV_CLOSE_QUEUE_FULL);
    limit(b, 'o', NETSRV_QUEUE_FULL, NETSRV_CLOSE_QUEUE_FULL);
    limit(b, 'm', NETSRV_NO_MEMORY, NETSRV_CLOSE_NO_MEMORY);
}

/* ---- files that are not what was said -------------------------------------------------------- */

static int bad_fd;
static atomic_ulong bad_done;

static void bad_file_done(void *arg) {
    CHECK(arg == NULL);
    atomic_fetch_add(&bad_done, 1);
}

static size_t give_bad_file(netsrv_conn *c, const void *data, size_t n) {
    netsrv_send(c, "head", 4);
    CHECK_EQ(netsrv_send_file(c, bad_fd, 0, 50000, bad_file_done, NULL), NETSRV_OK);
    CHECK_EQ(netsrv_send_file(c, bad_fd, 0, UINT64_MAX, bad_file_done, NULL), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_send_file(c, bad_fd, UINT64_MAX, 5, bad_file_done, NULL), NETSRV_BAD_ARGUMENT);
    if (*(const char *)data == 'c') {
        netsrv_close(c);
    }
    return n;
}

static void bad_file(netsrv_backend b, int fd, const char *how, netsrv_close_reason reason,
                     int sys_errno) {
    netsrv_config cfg = sends_config(b);
    cfg.on_data = give_bad_file;
    bad_fd = fd;
    atomic_store(&bad_done, 0);
    netsrv_server *s = rig_start(&cfg);
    const int client = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(client, how));
    CHECK_EQ(peer_end(client), ECONNRESET); /* a part is not taken for the whole */
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(reason), 1);
    CHECK_EQ(atomic_load(&rig_seen.last_errno), sys_errno);
    close(client);
    rig_stop(s, 1000);
    CHECK_EQ(atomic_load(&bad_done), 3);
}

static void bad_files(netsrv_backend b) {
    FILE *shorter = tmpfile();
    int pipes[2];
    const int directory = open("/", O_RDONLY | O_CLOEXEC);
    REQUIRE(shorter != NULL && pipe(pipes) == 0 && ftruncate(fileno(shorter), 49999) == 0);
    for (int i = 0; i < 2; i++) {
        const char *how = i == 0 ? "now" : "close";
        bad_file(b, fileno(shorter), how, NETSRV_CLOSE_FILE_SHORT, 0);
        bad_file(b, directory, how, NETSRV_CLOSE_ERROR, EISDIR);
        bad_file(b, 1000000, how, NETSRV_CLOSE_ERROR, EBADF);
        bad_file(b, pipes[0], how, NETSRV_CLOSE_ERROR, ESPIPE);
    }
    fclose(shorter);
    close(pipes[0]);
    close(pipes[1]);
    close(directory);
}

static int pread_fails(const char *name, unsigned long nth) {
    if (strcmp(name, "pread") == 0) {
        return nth == 2 ? EINTR : nth >= 5 ? EIO : 0;
    }
    return no_sendfile(name, nth);
}

static size_t give_whole_file(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    give_file(c, 0, FILE_BYTES);
    netsrv_close(c);
    return n;
}

static void read_error(netsrv_backend b) {
    netsrv_config cfg = sends_config(b);
    cfg.on_data = give_whole_file;
    SEAM_SET(decider, pread_fails);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "x"));
    CHECK_EQ(peer_end(fd), ECONNRESET);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_ERROR), 1);
    CHECK_EQ(atomic_load(&rig_seen.last_errno), EIO);
    close(fd);
    rig_stop(s, 1000);
    CHECK_EQ(atomic_load(&files_done), 1);
    seam_reset(0);
}

/* The time for the flush after a close counts from the last progress of a file. */
static void slow_reader_of_a_file(netsrv_backend b) {
    netsrv_config cfg = sends_config(b);
    cfg.on_data = give_whole_file;
    cfg.flush_timeout_ms = 60000;
    seam_hold_clock();
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect_small(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "x"));
    size_t have = 0;
    for (int i = 0; i < 12; i++) {
        have += peer_skip(fd, FILE_BYTES / 13);
        rig_poke(s);
        SEAM_ADD(clock_ms, 9000);
        rig_poke(s);
    }
    CHECK_EQ(have + peer_skip(fd, FILE_BYTES - have), FILE_BYTES);
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    rig_stop(s, 1000);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_LOCAL), 1);
    seam_reset(0);
}

/* What is queued can be counted, also where a size_t has 32 bits. */
static size_t queue_huge_files(netsrv_conn *c, const void *data, size_t n) {
    netsrv_conn_stats stats;
    uint64_t sum = 2;
    (void)data;
    for (int i = 0; i < 3; i++) {
        const netsrv_result result = netsrv_send_file(c, fileno(file), 0, INT32_MAX, NULL, NULL);
        CHECK(result == NETSRV_HIGH || (result == NETSRV_BAD_ARGUMENT && i != 0));
        sum += result == NETSRV_HIGH ? (uint64_t)INT32_MAX : 0;
    }
    CHECK_EQ(netsrv_send(c, "ab", 2), NETSRV_HIGH);
    netsrv_get_conn_stats(c, &stats);
    CHECK_EQ(stats.queued_bytes, sum);
    netsrv_abort(c);
    return n;
}

static void huge_files(netsrv_backend b) {
    netsrv_config cfg = sends_config(b);
    cfg.on_data = queue_huge_files;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "x"));
    CHECK_WITHIN(5000, rig_reason(NETSRV_CLOSE_ABORT) == 1);
    close(fd);
    rig_stop(s, 1000);
}

/* ---- cork ------------------------------------------------------------------------------------ */

static size_t corked(netsrv_conn *c, const void *data, size_t n) {
    const char *at = data;
    for (size_t i = 0; i < n; i++) {
        switch (at[i]) {
        case '[': netsrv_cork(c); break;
        case ']': netsrv_uncork(c); break;
        case '.': netsrv_close(c); break;
        case '|': netsrv_shutdown(c); break;
        case '*': give(c, content, 50000); break;
        default: netsrv_send(c, at + i, 1); break;
        }
    }
    return n;
}

static void cork(netsrv_backend b) {
    netsrv_config cfg = sends_config(b);
    cfg.on_data = corked;
    cfg.high_mark_bytes = 40000;
    netsrv_server *s = rig_start(&cfg);
    const uint16_t port = netsrv_get_port(s, 0);
    int fd = peer_connect(port);
    CHECK(peer_say(fd, "a[b") && peer_silent(fd, 60));
    CHECK(peer_say(fd, "c") && peer_silent(fd, 60));
    CHECK(peer_say(fd, "d]e") && peer_gets(fd, "abcde"));
    CHECK(peer_say(fd, "f") && peer_gets(fd, "f"));
    CHECK(peer_say(fd, "[g*") && peer_gets(fd, "g")); /* above the high mark */
    CHECK_EQ(peer_skip(fd, 50000), 50000);
    CHECK(peer_say(fd, "h") && peer_silent(fd, 60));
    CHECK(peer_say(fd, "|") && peer_gets(fd, "h"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    fd = peer_connect(port);
    CHECK(peer_say(fd, "[i") && peer_silent(fd, 60));
    CHECK(peer_say(fd, "j.") && peer_gets(fd, "ij"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    fd = peer_connect(port);
    CHECK(peer_say(fd, "[k") && peer_silent(fd, 60));
    shutdown(fd, SHUT_WR);
    CHECK(peer_gets(fd, "k"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    rig_stop(s, 1000);
    check_all_returned();
}

/* What the high mark has let out goes on until the low mark, however the kernel takes it: the
 * program, which waits for on_drain, is called, and nobody spins. */
static size_t cork_much(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    netsrv_cork(c);
    give(c, content, FILE_BYTES);
    CHECK_EQ(netsrv_send(c, "b", 1), NETSRV_HIGH);
    return n;
}

static void uncork_in_drain(netsrv_conn *c) {
    netsrv_send(c, "c", 1);
    netsrv_uncork(c);
    rig_on_drain(c);
}

static void cork_above_the_mark(netsrv_backend b) {
    netsrv_config cfg = sends_config(b);
    cfg.on_data = cork_much;
    cfg.on_drain = uncork_in_drain;
    cfg.high_mark_bytes = FILE_BYTES - 1;
    cfg.low_mark_bytes = 1;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect_small(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "x"));
    CHECK_EQ(peer_skip(fd, FILE_BYTES / 2), FILE_BYTES / 2);
    rig_poke(s);
    const uint64_t turns = rig_total(s).turns;
    poll(NULL, 0, 50);
    CHECK(rig_total(s).turns - turns < 1000);
    CHECK_EQ(peer_skip(fd, FILE_BYTES / 2), FILE_BYTES / 2);
    CHECK(peer_gets(fd, "bc"));
    close(fd);
    rig_stop(s, 1000);
    check_all_returned();
}

/* A stop sends what is held back, and does not wait for the program to go on. */
static void cork_at_a_stop(netsrv_backend b, unsigned handler_threads) {
    netsrv_config cfg = sends_config(b);
    cfg.on_data = corked;
    cfg.handler_threads = handler_threads;
    cfg.linger_timeout_ms = 50;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "[a") && peer_silent(fd, 60));
    netsrv_stop(s, 600000);
    CHECK(peer_gets(fd, "a"));
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    rig_end(s);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_STOP), 1);
}

static void all(netsrv_backend b) {
    CASE("mixtures", mixtures(b, 0, NULL, 200));
    CASE("mixtures without sendfile", mixtures(b, 0, no_sendfile, 100));
    CASE("mixtures in small parts", mixtures(b, 700, NULL, 20));
    CASE("mixtures in small parts, without sendfile", mixtures(b, 700, no_sendfile, 20));
    CASE("mixtures in a row", mixtures_in_a_row(b));
    CASE("what was given comes back", comes_back(b));
    CASE("comes back with effect", comes_back_with_effect(b));
    CASE("limits", limits(b));
    CASE("bad files", bad_files(b));
    CASE("a file that cannot be read", read_error(b));
    CASE("a slow reader of a file", slow_reader_of_a_file(b));
    CASE("huge files", huge_files(b));
    CASE("cork", cork(b));
    CASE("cork above the high mark", cork_above_the_mark(b));
    CASE("cork at a stop", cork_at_a_stop(b, 0));
    CASE("cork at a stop, handler threads", cork_at_a_stop(b, 2));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    open_file();
    rig_each_backend(all);
    fclose(file);
    return check_end();
}
