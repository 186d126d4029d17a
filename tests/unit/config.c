/* config.c: defaults, what validation refuses and how it says so, extreme numbers, addresses. */
#include "../seam.h"

#include "rig.h"

#include <limits.h>
#include <sys/stat.h>

/* Creates with `cfg`; NULL if refused, with *error filled. */
static netsrv_server *try_create(const netsrv_config *cfg, netsrv_error *error) {
    netsrv_server *s = (netsrv_server *)(void *)error; /* must become NULL on failure */
    memset(error, 0x55, sizeof *error);
    const netsrv_result result = netsrv_create(&s, cfg, error);
    CHECK_EQ(result, error->result);
    CHECK(memchr(error->text, '\0', sizeof error->text) != NULL);
    CHECK_EQ(result == NETSRV_OK, s != NULL);
    CHECK_EQ(result == NETSRV_OK, error->text[0] == '\0');
    CHECK(strchr(error->text, '\n') == NULL);
    return s;
}

static void refused(const netsrv_config *cfg, netsrv_result result, const char *field) {
    netsrv_error error;
    netsrv_server *s = try_create(cfg, &error);
    if (!CHECK(s == NULL)) {
        fprintf(stderr, "  should have been refused for %s\n", field);
        netsrv_destroy(s);
        return;
    }
    CHECK_EQ(error.result, result);
    if (!CHECK_HAS(error.text, field)) {
        fprintf(stderr, "  instead of a text about %s\n", field);
    }
}

/* ---- names ----------------------------------------------------------------------------------- */

static void walk(const char *(*name)(int), int count) {
    for (int i = 0; i < count; i++) {
        CHECK(name(i) != NULL && name(i)[0] != '\0');
        for (int j = 0; j < i; j++) {
            CHECK(strcmp(name(i), name(j)) != 0);
        }
    }
    CHECK(name(count) == NULL);
    CHECK(name(-1) == NULL);
    CHECK(name(INT_MAX) == NULL);
    CHECK(name(INT_MIN) == NULL);
}

static void names(void) {
    walk(netsrv_result_text, NETSRV_RESULT_COUNT);
    walk(netsrv_close_text, NETSRV_CLOSE_COUNT);
    walk(netsrv_backend_name, NETSRV_BACKEND_COUNT);
    walk(netsrv_accept_name, NETSRV_ACCEPT_COUNT);
    walk(netsrv_trigger_name, NETSRV_TRIGGER_COUNT);
    walk(netsrv_place_name, NETSRV_PLACE_COUNT);
    walk(netsrv_transfer_name, NETSRV_TRANSFER_COUNT);
    CHECK_STR(netsrv_backend_name(NETSRV_BACKEND_EPOLL), "epoll");
    CHECK_STR(netsrv_place_name(NETSRV_PLACE_TWO_CHOICES), "two_choices");
    CHECK_STR(netsrv_result_text(NETSRV_OK), "success");
}

/* ---- defaults -------------------------------------------------------------------------------- */

static void check_number_defaults(const netsrv_config *d) {
    CHECK_EQ(d->stall_ms, 250);
    CHECK_EQ(d->stuck_ms, NETSRV_OFF);
    CHECK_EQ(d->max_conns, 1000000);
    CHECK_EQ(d->max_conns_per_address, NETSRV_OFF);
    CHECK_EQ(d->max_accepts_per_second, NETSRV_OFF);
    CHECK_EQ(d->input_max_bytes, 1024 * 1024);
    CHECK_EQ(d->high_mark_bytes, 256 * 1024);
    CHECK_EQ(d->low_mark_bytes, 64 * 1024);
    CHECK_EQ(d->queue_max_bytes, 16 * 1024 * 1024);
    CHECK_EQ(d->server_queue_max_bytes, 1024 * 1024 * 1024);
    CHECK_EQ(d->mailbox_max_count, 4096);
    CHECK_EQ(d->idle_timeout_ms, NETSRV_OFF);
    CHECK_EQ(d->write_timeout_ms, NETSRV_OFF);
    CHECK_EQ(d->flush_timeout_ms, 10000);
    CHECK_EQ(d->linger_timeout_ms, 2000);
    CHECK_EQ(d->linger_max_bytes, 1024 * 1024);
    CHECK_EQ(d->backlog_count, 4096);
    CHECK_EQ(d->keepalive_s, NETSRV_OFF);
    CHECK_EQ(d->defer_accept_s, NETSRV_OFF);
    CHECK_EQ(d->fast_open_count, NETSRV_OFF);
    CHECK_EQ(d->events_per_wait, 256);
    CHECK_EQ(d->accepts_per_turn, 8);
    CHECK_EQ(d->recv_buffer_bytes, 64 * 1024);
    CHECK_EQ(d->bytes_per_turn, d->recv_buffer_bytes);
}

static void check_switch_defaults(const netsrv_config *d) {
    CHECK_EQ(d->nodelay, NETSRV_ENABLE);
    CHECK_EQ(d->share_port, NETSRV_DISABLE);
    CHECK_EQ(d->steer_by_cpu, NETSRV_DISABLE);
    CHECK_EQ(d->pin_workers, NETSRV_DISABLE);
    CHECK_EQ(d->keep_line_end, NETSRV_DISABLE);
    CHECK_EQ(d->overflow, NETSRV_OVERFLOW_WAIT);
    CHECK_EQ(d->eof_policy, NETSRV_EOF_CLOSE);
    CHECK_EQ(d->framing, NETSRV_FRAMING_NONE);
    CHECK_EQ(d->transfer, NETSRV_TRANSFER_MAILBOX);
}

static void defaults(void) {
    netsrv_error error;
    netsrv_config cfg = { .on_data = rig_on_data, .listen = { "127.0.0.1:0" }, .user = &error };
    netsrv_server *s = try_create(&cfg, &error);
    REQUIRE(s != NULL);
    const netsrv_config *d = netsrv_get_config(s);
    CHECK_EQ(d->workers, port_cpus());
    CHECK_EQ(d->backend, NETSRV_BACKEND_EPOLL);
    CHECK(d->on_data == rig_on_data);
    CHECK(netsrv_user(s) == &error);
    check_number_defaults(d);
    check_switch_defaults(d);
    CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
}

static void resolved(netsrv_config cfg, netsrv_accept accept, netsrv_place place) {
    netsrv_error error;
    netsrv_server *s = try_create(&cfg, &error);
    REQUIRE(s != NULL);
    CHECK_EQ(netsrv_get_config(s)->accept, accept);
    CHECK_EQ(netsrv_get_config(s)->place, place);
    netsrv_destroy(s);
}

static void automatic_choices(void) {
    netsrv_config cfg = rig_config(NETSRV_BACKEND_EPOLL, 1);
    resolved(cfg, NETSRV_ACCEPT_SINGLE, NETSRV_PLACE_KEEP);
    cfg.workers = 3;
    resolved(cfg, NETSRV_ACCEPT_EXCLUSIVE, NETSRV_PLACE_TWO_CHOICES);
    cfg.backend = NETSRV_BACKEND_POLL;
    resolved(cfg, NETSRV_ACCEPT_ACCEPTOR, NETSRV_PLACE_TWO_CHOICES);
    cfg.backend = NETSRV_BACKEND_AUTO;
    cfg.accept = NETSRV_ACCEPT_REUSEPORT;
    resolved(cfg, NETSRV_ACCEPT_REUSEPORT, NETSRV_PLACE_KEEP);
}

static void choices_are_told(void) {
    static const char *const fields[] = { "backend", "accept", "place", "transfer" };
    netsrv_error error;
    netsrv_config cfg = rig_config(NETSRV_BACKEND_AUTO, 2);
    netsrv_server *s = try_create(&cfg, &error);
    REQUIRE(s != NULL);
    unsigned told = 0;
    netsrv_choice choice;
    for (unsigned i = 0; netsrv_get_choice(s, i, &choice); i++) {
        CHECK(choice.asked != NULL && choice.taken != NULL && choice.why != NULL);
        CHECK(choice.why[0] != '\0' && strcmp(choice.taken, "auto") != 0);
        for (unsigned f = 0; f < 4; f++) {
            told |= strcmp(choice.field, fields[f]) == 0 ? 1u << f : 0u;
        }
    }
    CHECK_EQ(told, 15);
    CHECK(!netsrv_get_choice(s, UINT_MAX, &choice));
    netsrv_destroy(s);
}

/* ---- what is refused ------------------------------------------------------------------------- */

static void refused_enums(void) {
    netsrv_config good = rig_config(NETSRV_BACKEND_EPOLL, 2);
    netsrv_config bad;
#define REFUSED_ENUM(field, type)                                                                  \
    for (unsigned v = 77; v != 0; v = v == 77 ? UINT_MAX : 0) {                                    \
        bad = good;                                                                                \
        bad.field = (type)v;                                                                       \
        refused(&bad, NETSRV_BAD_CONFIG, #field);                                                  \
    }
    REFUSED_ENUM(backend, netsrv_backend)
    REFUSED_ENUM(accept, netsrv_accept)
    REFUSED_ENUM(trigger, netsrv_trigger)
    REFUSED_ENUM(place, netsrv_place)
    REFUSED_ENUM(transfer, netsrv_transfer)
    REFUSED_ENUM(share_port, netsrv_switch)
    REFUSED_ENUM(steer_by_cpu, netsrv_switch)
    REFUSED_ENUM(pin_workers, netsrv_switch)
    REFUSED_ENUM(framing, netsrv_framing)
    REFUSED_ENUM(keep_line_end, netsrv_switch)
    REFUSED_ENUM(eof_policy, netsrv_eof_policy)
    REFUSED_ENUM(overflow, netsrv_overflow)
    REFUSED_ENUM(nodelay, netsrv_switch)
#undef REFUSED_ENUM
}

static void refused_ranges(void) {
    const netsrv_config good = rig_config(NETSRV_BACKEND_EPOLL, 2);
    netsrv_config bad;
#define REFUSED(field, value)                                                                      \
    bad = good;                                                                                    \
    bad.field = (value);                                                                           \
    refused(&bad, NETSRV_BAD_CONFIG, #field)
    REFUSED(workers, NETSRV_WORKERS_MAX + 1);
    REFUSED(workers, UINT_MAX);
    REFUSED(events_per_wait, 4097);
    REFUSED(events_per_wait, UINT32_MAX);
    REFUSED(recv_buffer_bytes, 4095);
    REFUSED(recv_buffer_bytes, 16u * 1024 * 1024 + 1);
    REFUSED(recv_buffer_bytes, UINT32_MAX);
    REFUSED(on_data, NULL);
#undef REFUSED
    bad = good;
    bad.listen[0] = "";
    refused(&bad, NETSRV_BAD_ADDRESS, "listen");
    bad = good;
    bad.accept = NETSRV_ACCEPT_ACCEPTOR;
    bad.acceptors = NETSRV_ACCEPTORS_MAX + 1;
    refused(&bad, NETSRV_BAD_CONFIG, "acceptors");
    bad = good;
    bad.place = NETSRV_PLACE_CUSTOM;
    refused(&bad, NETSRV_BAD_CONFIG, "pick");
    bad = good;
    bad.framing = NETSRV_FRAMING_LINE;
    refused(&bad, NETSRV_BAD_CONFIG, "on_frame");
}

static void refused_contradictions(void) {
    const netsrv_config good = rig_config(NETSRV_BACKEND_EPOLL, 2);
    netsrv_config bad = good;
    bad.low_mark_bytes = bad.high_mark_bytes = 1000;
    bad.low_mark_bytes++;
    refused(&bad, NETSRV_BAD_CONFIG, "low_mark_bytes");
    bad = good;
    bad.high_mark_bytes = 2000;
    bad.queue_max_bytes = 1000;
    refused(&bad, NETSRV_BAD_CONFIG, "queue_max_bytes");
}

static void first_offender(void) {
    netsrv_config bad = rig_config(NETSRV_BACKEND_EPOLL, 2);
    bad.events_per_wait = 5000;
    bad.recv_buffer_bytes = 1;
    refused(&bad, NETSRV_BAD_CONFIG, "events_per_wait");
    bad.workers = 5000;
    refused(&bad, NETSRV_BAD_CONFIG, "workers");
}

static void refused_backends(void) {
#if defined(__linux__) && !defined(NETSRV_LIBKQUEUE)
    netsrv_config absent = rig_config(NETSRV_BACKEND_KQUEUE, 2);
    refused(&absent, NETSRV_UNAVAILABLE, "kqueue");
#endif
    netsrv_config cfg = rig_config(NETSRV_BACKEND_IO_URING, 2);
    setenv("NETSRV_NO_IO_URING", "1", 1);
    refused(&cfg, NETSRV_UNAVAILABLE, "io_uring");
    unsetenv("NETSRV_NO_IO_URING");
}

/* ---- every backend x accept x place x trigger x transfer ------------------------------------- */

static unsigned pick_first(netsrv_server *s, const netsrv_peer *peer, unsigned accepting) {
    (void)s;
    (void)peer;
    (void)accepting;
    return 0;
}

/* The field that must be named, or NULL if the combination works. "?" leaves it open. */
static const char *expected_refusal(const netsrv_config *c) {
    const bool alone = !rig_shares(c->backend);
    const bool acceptor = c->accept == NETSRV_ACCEPT_ACCEPTOR;
    if (!acceptor && (c->acceptors > 0 || c->trigger != NETSRV_TRIGGER_AUTO)) {
        return "?";
    }
    if (c->accept == NETSRV_ACCEPT_AUTO && c->place == NETSRV_PLACE_KEEP) {
        return "?";
    }
    if (!rig_accepts(c->backend, (int)c->accept)) {
        return "accept";
    }
    if (alone && c->acceptors > 1) {
        return "acceptors";
    }
    if (alone && c->trigger > NETSRV_TRIGGER_LEVEL) {
        return "trigger";
    }
    if (acceptor && c->place == NETSRV_PLACE_KEEP) {
        return "place";
    }
    if (c->accept == NETSRV_ACCEPT_SINGLE && c->place == NETSRV_PLACE_KEEP && c->workers > 1) {
        return "place";
    }
    return alone && c->transfer == NETSRV_TRANSFER_DIRECT ? "transfer" : NULL;
}

static void print_combination(const netsrv_config *c, const char *text) {
    fprintf(stderr, "  backend=%s accept=%s place=%s trigger=%s transfer=%s workers=%u "
            "acceptors=%u: %s\n", netsrv_backend_name((int)c->backend),
            netsrv_accept_name((int)c->accept),
            netsrv_place_name((int)c->place), netsrv_trigger_name((int)c->trigger),
            netsrv_transfer_name((int)c->transfer), c->workers, c->acceptors, text);
}

/* A refusal names the field and says what to use instead: it is longer than the field's name. */
static void check_combination(const netsrv_config *c) {
    netsrv_error error;
    const char *field = expected_refusal(c);
    netsrv_server *s = try_create(c, &error);
    const bool named = field != NULL && strstr(error.text, field) != NULL;
    bool good = s != NULL ? field == NULL : named && strlen(error.text) > 30;
    if (field != NULL && field[0] == '?') {
        good = s != NULL || strlen(error.text) > 30;
    }
    if (!CHECK(good)) {
        print_combination(c, s != NULL ? "accepted" : error.text);
    }
    netsrv_destroy(s);
}

static void combinations_of(netsrv_config *c) {
    for (int place = 0; place < NETSRV_PLACE_COUNT; place++) {
        for (int trigger = 0; trigger < NETSRV_TRIGGER_COUNT; trigger++) {
            for (int transfer = 0; transfer < NETSRV_TRANSFER_COUNT; transfer++) {
                c->place = (netsrv_place)place;
                c->pick = place == NETSRV_PLACE_CUSTOM ? pick_first : NULL;
                c->trigger = (netsrv_trigger)trigger;
                c->transfer = (netsrv_transfer)transfer;
                check_combination(c);
            }
        }
    }
}

static void combinations(netsrv_backend backend) {
    netsrv_config c = rig_config(backend, 1);
    for (int accept = 0; accept < NETSRV_ACCEPT_COUNT; accept++) {
        for (c.workers = 1; c.workers <= 3; c.workers += 2) {
            for (c.acceptors = 0; c.acceptors <= 2; c.acceptors++) {
                c.accept = (netsrv_accept)accept;
                combinations_of(&c);
            }
        }
    }
}

/* ---- extreme numbers ------------------------------------------------------------------------- */

typedef struct number {
    const char *name;
    size_t offset;
    size_t bytes;
} number;

#define NUMBER(field)                                                                              \
    { #field, offsetof(netsrv_config, field), sizeof(((netsrv_config *)0)->field) }
static const number numbers[] = {
    NUMBER(workers), NUMBER(acceptors), NUMBER(stall_ms), NUMBER(stuck_ms),
    NUMBER(max_conns), NUMBER(max_conns_per_address), NUMBER(max_accepts_per_second),
    NUMBER(input_max_bytes),
    NUMBER(high_mark_bytes), NUMBER(low_mark_bytes), NUMBER(queue_max_bytes),
    NUMBER(server_queue_max_bytes), NUMBER(mailbox_max_count), NUMBER(idle_timeout_ms),
    NUMBER(write_timeout_ms), NUMBER(flush_timeout_ms), NUMBER(linger_timeout_ms),
    NUMBER(linger_max_bytes), NUMBER(backlog_count), NUMBER(keepalive_s), NUMBER(defer_accept_s),
    NUMBER(fast_open_count), NUMBER(events_per_wait), NUMBER(accepts_per_turn),
    NUMBER(bytes_per_turn), NUMBER(recv_buffer_bytes),
};
#define NUMBERS (sizeof numbers / sizeof numbers[0])

static void put_number(netsrv_config *cfg, const number *n, uint64_t value) {
    char *at = (char *)cfg + n->offset;
    const uint32_t small = (uint32_t)value;
    memcpy(at, n->bytes == 8 ? (const void *)&value : (const void *)&small, n->bytes);
}

/* Serves one client whose stream is short; an idle timeout of 1 ms may cut even that. */
static void serve_one(netsrv_server *s, const number *n) {
    netsrv_error error;
    if (!CHECK_EQ(netsrv_start(s, &error), NETSRV_OK)) {
        fprintf(stderr, "  %s: %s\n", n->name, error.text);
        return;
    }
    const int fd = peer_connect(netsrv_get_port(s, 0));
    const bool served = peer_say(fd, "x") && peer_gets(fd, "x");
    const bool may_miss = strstr(n->name, "timeout_ms") != NULL;
    if (!CHECK(served || may_miss)) {
        fprintf(stderr, "  not served with %s\n", n->name);
    }
    close(fd);
    netsrv_stop(s, 0);
    CHECK_EQ(netsrv_wait(s), NETSRV_OK);
}

/* Works or is refused by name, or by the name of the field that it contradicts. */
static void extreme(const number *n, uint64_t value) {
    netsrv_error error;
    netsrv_config cfg = rig_config(NETSRV_BACKEND_EPOLL, 1);
    cfg.accept = strcmp(n->name, "acceptors") == 0 ? NETSRV_ACCEPT_ACCEPTOR : NETSRV_ACCEPT_AUTO;
    put_number(&cfg, n, value);
    netsrv_server *s = try_create(&cfg, &error);
    if (s == NULL) {
        const bool named = strstr(error.text, n->name) != NULL;
        const bool marks = strstr(n->name, "mark") != NULL || strstr(n->name, "queue") != NULL;
        if (!CHECK(error.result == NETSRV_BAD_CONFIG &&
                   (named || (marks && strstr(error.text, "_bytes") != NULL)))) {
            fprintf(stderr, "  %s = %llu: %s\n", n->name, (unsigned long long)value, error.text);
        }
        return;
    }
    if (strcmp(n->name, "workers") != 0 || value < 100) {
        serve_one(s, n);
    }
    netsrv_destroy(s);
}

static void extremes(void) {
    static const uint64_t values[] = {
        0, 1, INT_MAX, (uint64_t)INT_MAX + 1, UINT32_MAX - 1, UINT32_MAX
    };
    for (size_t i = 0; i < NUMBERS; i++) {
        for (size_t v = 0; v < sizeof values / sizeof values[0]; v++) {
            extreme(&numbers[i], values[v]);
        }
        if (numbers[i].bytes == 8) {
            extreme(&numbers[i], (uint64_t)UINT32_MAX + 1);
            extreme(&numbers[i], UINT64_MAX);
        }
    }
}

/* ---- addresses ------------------------------------------------------------------------------- */

static void bad_addresses(void) {
    static const char *const bad[] = {
        "", ":", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1",
        "127.0.0.1:7x", "127.0.0.1:+7", "127.0.0.1: 7", " 127.0.0.1:7", "127.0.0.1:0x10",
        "127.0.0.1:99999999999999999999", "256.0.0.1:0", "1.2.3:0", "1.2.3.4.5:0", "[::1", "[::1]",
        "[::1]:", "[::1]x:0", "[]:0", "[::g]:0", "::1:0", "[127.0.0.1]:0", "*:", "*", "*:70000",
        "unix:", "unix:@", "fd:", "fd:-1", "fd:x", "fd:3x", "fd:99999999999", "systemd:",
        "tcp:127.0.0.1:0", "127.0.0.1:0 ",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        netsrv_error error;
        netsrv_config cfg = rig_config(NETSRV_BACKEND_EPOLL, 1);
        cfg.listen[0] = bad[i];
        netsrv_server *s = try_create(&cfg, &error);
        if (!CHECK(s == NULL) || !CHECK_HAS(error.text, bad[i]) ||
            !CHECK(error.result == NETSRV_BAD_ADDRESS || error.result == NETSRV_BAD_CONFIG)) {
            fprintf(stderr, "  address \"%s\": %s\n", bad[i], error.text);
        }
        netsrv_destroy(s);
    }
}

static void long_addresses(void) {
    static char path[70000] = "unix:/tmp/";
    memset(path + 10, 'x', sizeof path - 11);
    netsrv_config cfg = rig_config(NETSRV_BACKEND_EPOLL, 1);
    cfg.listen[0] = path;
    refused(&cfg, NETSRV_BAD_ADDRESS, "unix:/tmp/xxx");
    memcpy(path, "[::1]:", 6);
    refused(&cfg, NETSRV_BAD_ADDRESS, "");
    memcpy(path, "unix:@xxxx", 10);
    refused(&cfg, NETSRV_BAD_ADDRESS, "unix:@xxx");
}

/* The error of a system call: its errno, the address and what went wrong. */
static void fails_to_listen(const char *address, int err) {
    netsrv_error error;
    netsrv_config cfg = rig_config(NETSRV_BACKEND_EPOLL, 2);
    cfg.listen[0] = address;
    netsrv_server *s = try_create(&cfg, &error);
    if (!CHECK(s == NULL)) {
        netsrv_destroy(s);
        return;
    }
    CHECK_EQ(error.result, NETSRV_SYSTEM);
    CHECK_EQ(error.sys_errno, err);
    CHECK_HAS(error.text, address);
    CHECK_HAS(error.text, strerror(err));
}

static void listen_errors(void) {
    netsrv_error error;
    char taken[NETSRV_ADDRESS_MAX];
    netsrv_config cfg = rig_config(NETSRV_BACKEND_EPOLL, 1);
    netsrv_server *s = try_create(&cfg, &error);
    REQUIRE(s != NULL);
    CHECK_EQ(netsrv_get_address(s, 0, taken, sizeof taken), NETSRV_OK);
    fails_to_listen(taken, EADDRINUSE);
    fails_to_listen("192.0.2.1:0", EADDRNOTAVAIL);
    fails_to_listen("unix:/nonexistent-directory/s", ENOENT);
    netsrv_destroy(s);
}

static void bad_descriptors(void) {
    char text[32];
    netsrv_config cfg = rig_config(NETSRV_BACKEND_EPOLL, 1);
    cfg.listen[0] = "fd:9999";
    refused(&cfg, NETSRV_BAD_ADDRESS, "fd:9999");
    const int no_socket = open("/dev/null", O_RDWR | O_CLOEXEC);
    snprintf(text, sizeof text, "fd:%d", no_socket);
    cfg.listen[0] = text;
    netsrv_error error;
    CHECK(try_create(&cfg, &error) == NULL);
    CHECK_HAS(error.text, text);
    CHECK(fcntl(no_socket, F_GETFD) != -1);
    close(no_socket);
    const int unbound = socket(AF_INET, SOCK_STREAM, 0);
    snprintf(text, sizeof text, "fd:%d", unbound);
    CHECK(try_create(&cfg, &error) == NULL);
    CHECK_HAS(error.text, text);
    CHECK(fcntl(unbound, F_GETFD) != -1);
    close(unbound);
}

static void address_texts(void) {
    char text[NETSRV_ADDRESS_MAX];
    char expected[NETSRV_ADDRESS_MAX];
    char name[60];
    netsrv_config cfg = rig_config(NETSRV_BACKEND_EPOLL, 1);
    snprintf(name, sizeof name, "unix:@netsrv-config-test.%ld", (long)getpid());
    cfg.listen[1] = name;
    cfg.listen[2] = rig_any_port();
    netsrv_server *s = rig_start(&cfg);
    snprintf(expected, sizeof expected, "%s:%u", rig_host(), netsrv_get_port(s, 0));
    CHECK_EQ(netsrv_get_address(s, 0, text, sizeof text), NETSRV_OK);
    CHECK_STR(text, expected);
    CHECK_EQ(netsrv_get_address(s, 1, text, sizeof text), NETSRV_OK);
    CHECK_STR(text, name);
    CHECK_EQ(netsrv_get_port(s, 1), 0);
    CHECK_NE(netsrv_get_port(s, 0), netsrv_get_port(s, 2));
    CHECK_EQ(netsrv_get_address(s, 3, text, sizeof text), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_get_address(s, UINT_MAX, text, sizeof text), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_get_address(s, 0, text, 5), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_get_address(s, 0, text, 0), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_get_address(s, 0, text, strlen(expected)), NETSRV_BAD_ARGUMENT);
    CHECK_EQ(netsrv_get_address(s, 0, text, strlen(expected) + 1), NETSRV_OK);
    CHECK_EQ(netsrv_get_port(s, 99), 0);
    CHECK(peer_served(netsrv_get_port(s, 2)));
    rig_stop(s, 0);
}

static void sixteen_listeners(void) {
    netsrv_config cfg = rig_config(NETSRV_BACKEND_EPOLL, 2);
    for (unsigned i = 0; i < NETSRV_LISTEN_MAX; i++) {
        cfg.listen[i] = rig_any_port();
    }
    netsrv_server *s = rig_start(&cfg);
    for (unsigned i = 0; i < NETSRV_LISTEN_MAX; i++) {
        CHECK(peer_served(netsrv_get_port(s, i)));
    }
    CHECK_EQ(netsrv_get_port(s, NETSRV_LISTEN_MAX), 0);
    rig_stop(s, 0);
}

static void one_bad_listener_of_many(void) {
    netsrv_config cfg = rig_config(NETSRV_BACKEND_EPOLL, 2);
    cfg.listen[1] = "unix:/tmp/netsrv-config-test.sock";
    cfg.listen[2] = "127.0.0.1:nonsense";
    refused(&cfg, NETSRV_BAD_ADDRESS, "nonsense");
    CHECK(access("/tmp/netsrv-config-test.sock", F_OK) != 0);
}

/* ---- unix sockets ---------------------------------------------------------------------------- */

static char sock_path[64];
static char sock_listen[80];

static netsrv_config unix_config(void) {
    netsrv_config cfg = rig_config(NETSRV_BACKEND_EPOLL, 1);
    snprintf(sock_path, sizeof sock_path, "/tmp/netsrv-config.%ld", (long)getpid());
    snprintf(sock_listen, sizeof sock_listen, "unix:%s", sock_path);
    cfg.listen[0] = sock_listen;
    return cfg;
}

static void unix_path_is_removed(void) {
    const netsrv_config cfg = unix_config();
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect_unix(sock_path);
    CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
    close(fd);
    refused(&cfg, NETSRV_SYSTEM, sock_path);
    const int again = peer_connect_unix(sock_path);
    CHECK(peer_say(again, "still") && peer_gets(again, "still"));
    close(again);
    rig_stop(s, 0);
    CHECK(access(sock_path, F_OK) != 0);
}

static void stale_unix_path(void) {
    const netsrv_config cfg = unix_config();
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    memcpy(a.sun_path, sock_path, strlen(sock_path));
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    REQUIRE(bind(fd, (const struct sockaddr *)&a, sizeof a) == 0);
    close(fd); /* the path stays: nobody answers there */
    netsrv_server *s = rig_start(&cfg);
    const int peer = peer_connect_unix(sock_path);
    CHECK(peer_say(peer, "x") && peer_gets(peer, "x"));
    close(peer);
    rig_stop(s, 0);
    CHECK(access(sock_path, F_OK) != 0);
}

static void foreign_file_stays(void) {
    const netsrv_config cfg = unix_config();
    struct stat st;
    const int fd = open(sock_path, O_CREAT | O_WRONLY, 0600);
    REQUIRE(fd >= 0);
    close(fd);
    refused(&cfg, NETSRV_SYSTEM, sock_path);
    CHECK(stat(sock_path, &st) == 0 && S_ISREG(st.st_mode));
    unlink(sock_path);
}

/* Somebody else's socket that took the place of ours must survive our end. */
static void replaced_path_stays(void) {
    const netsrv_config cfg = unix_config();
    netsrv_server *s = rig_start(&cfg);
    struct stat st;
    unlink(sock_path);
    const int fd = open(sock_path, O_CREAT | O_WRONLY, 0600);
    REQUIRE(fd >= 0);
    close(fd);
    rig_stop(s, 0);
    CHECK(stat(sock_path, &st) == 0);
    unlink(sock_path);
}

/* ---- everything that is NULL ----------------------------------------------------------------- */

static void nulls(void) {
    netsrv_server *s = NULL;
    netsrv_config cfg = rig_config(NETSRV_BACKEND_EPOLL, 1);
    CHECK_EQ(netsrv_create(&s, &cfg, NULL), NETSRV_OK);
    CHECK_EQ(netsrv_start(s, NULL), NETSRV_OK);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
    CHECK_EQ(netsrv_destroy(NULL), NETSRV_OK);
    cfg.workers = 5000;
    CHECK_EQ(netsrv_create(&s, &cfg, NULL), NETSRV_BAD_CONFIG);
    CHECK(s == NULL);
    CHECK_EQ(netsrv_run(&cfg, NULL), NETSRV_BAD_CONFIG);
    CHECK_EQ(netsrv_create(NULL, &cfg, NULL), NETSRV_BAD_ARGUMENT);
}

/* Strings and struct may die after netsrv_create. */
static void config_is_copied(void) {
    char *address = strdup(rig_any_port());
    netsrv_config *cfg = malloc(sizeof *cfg);
    netsrv_error error;
    *cfg = rig_config(NETSRV_BACKEND_EPOLL, 1);
    cfg->listen[0] = address;
    netsrv_server *s = try_create(cfg, &error);
    REQUIRE(s != NULL);
    memset(cfg, 0xDD, sizeof *cfg);
    memset(address, 0xDD, strlen(address));
    free(cfg);
    free(address);
    CHECK_EQ(netsrv_start(s, &error), NETSRV_OK);
    CHECK_STR(netsrv_get_config(s)->listen[0], rig_any_port());
    CHECK(peer_served(netsrv_get_port(s, 0)));
    netsrv_destroy(s);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    CASE("names of everything", names());
    CASE("defaults", defaults());
    CASE("automatic choices", automatic_choices());
    CASE("choices are told", choices_are_told());
    CASE("unknown enum values", refused_enums());
    CASE("numbers out of range", refused_ranges());
    CASE("contradictions", refused_contradictions());
    CASE("the first offender is named", first_offender());
    CASE("backends of other systems", refused_backends());
    CASE("combinations on epoll", combinations(NETSRV_BACKEND_EPOLL));
    CASE("combinations on poll", combinations(NETSRV_BACKEND_POLL));
    if (rig_has(NETSRV_BACKEND_IO_URING)) {
        CASE("combinations on io_uring", combinations(NETSRV_BACKEND_IO_URING));
    }
    CASE("extreme numbers", extremes());
    CASE("bad addresses", bad_addresses());
    CASE("long addresses", long_addresses());
    CASE("listen errors", listen_errors());
    CASE("bad descriptors", bad_descriptors());
    CASE("address texts", address_texts());
    CASE("sixteen listeners", sixteen_listeners());
    CASE("one bad listener of many", one_bad_listener_of_many());
    CASE("a unix path is removed at the end", unix_path_is_removed());
    CASE("a stale unix path is replaced", stale_unix_path());
    CASE("a foreign file at a unix path stays", foreign_file_stays());
    CASE("a replaced unix path stays", replaced_path_stays());
    CASE("NULL where it is allowed", nulls());
    CASE("the configuration is copied", config_is_copied());
    return check_end();
}
