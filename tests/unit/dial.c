/* dial.c: connections to others: opened, refused, not resolved, too late, called off, stopped; and
 * what is sent before they are open. The C library's getaddrinfo is played here. */
#include "../seam.h"

#include "rig.h"

#include <netdb.h>

/* ---- names ----------------------------------------------------------------------------------- */

static struct {
    atomic_int gate; /* 1: look-ups of "slow" wait for 2 */
    atomic_ulong asked;
    atomic_ulong inside;
    atomic_ulong most; /* at once */
} names;

static struct addrinfo *new_address(const char *ip, const char *port, struct addrinfo *next) {
    struct addrinfo *a = calloc(1, sizeof *a + sizeof(struct sockaddr_in));
    REQUIRE(a != NULL);
    struct sockaddr_in *in = (struct sockaddr_in *)(void *)(a + 1);
    in->sin_family = AF_INET;
    in->sin_port = htons((uint16_t)strtol(port, NULL, 10));
    inet_pton(AF_INET, ip, &in->sin_addr);
    a->ai_family = AF_INET;
    a->ai_addr = (struct sockaddr *)in;
    a->ai_addrlen = sizeof *in;
    a->ai_next = next;
    return a;
}

/* "here", "second" (nobody at its first address), "slow"; every other name has no address. */
int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                struct addrinfo **list) {
    CHECK(hints != NULL && hints->ai_socktype == SOCK_STREAM);
    atomic_fetch_add(&names.asked, 1);
    const unsigned long inside = atomic_fetch_add(&names.inside, 1) + 1;
    if (inside > atomic_load(&names.most)) {
        atomic_store(&names.most, inside);
    }
    if (strcmp(host, "slow") == 0) {
        WAIT_FOR(20000, atomic_load(&names.gate) != 1);
    }
    atomic_fetch_sub(&names.inside, 1);
    if (strcmp(host, "nowhere") == 0) {
        return EAI_NONAME;
    }
    *list = new_address(rig_host(), port, NULL);
    if (strcmp(host, "second") == 0) {
        *list = new_address("127.0.0.77", port, *list);
    }
    return 0;
}

void freeaddrinfo(struct addrinfo *list) {
    while (list != NULL) {
        struct addrinfo *next = list->ai_next;
        free(list);
        list = next;
    }
}

/* ---- one call -------------------------------------------------------------------------------- */

typedef struct call {
    char address[NETSRV_ADDRESS_MAX];
    const char *first; /* sent before it is open */
    uint32_t timeout_ms;
    bool shut;   /* FIN after `first` */
    bool paused; /* until netsrv_resume */
    bool close_at_once;
    bool flush;
    netsrv_result result;
    netsrv_id id;
    atomic_bool done; /* netsrv_dial has returned */
    atomic_ulong opens;
    atomic_ulong closes;
    atomic_int reason;
    atomic_int sys_errno;
    atomic_ulong got;
    char text[256];
} call;

static void on_open(netsrv_conn *c) {
    call *me = netsrv_get_data(c);
    char text[NETSRV_ADDRESS_MAX];
    const size_t host = strlen(rig_host());
    CHECK(atomic_load(&me->done));
    CHECK_EQ(netsrv_get_id(c), me->id);
    CHECK_EQ(netsrv_get_listener(c), NETSRV_LISTEN_MAX);
    CHECK(netsrv_get_fd(c) >= 0);
    CHECK(netsrv_find(netsrv_get_server(c), me->id) == c);
    netsrv_peer_text(c, text, sizeof text);
    CHECK((strncmp(text, rig_host(), host) == 0 && text[host] == ':') ||
          strcmp(text, "unix") == 0);
    atomic_fetch_add(&me->opens, 1);
}

static size_t on_data(netsrv_conn *c, const void *data, size_t n) {
    call *me = netsrv_get_data(c);
    const unsigned long at = atomic_load(&me->got);
    CHECK_EQ(atomic_load(&me->opens), 1);
    CHECK(at + n < sizeof me->text);
    memcpy(me->text + at, data, n);
    atomic_fetch_add(&me->got, n);
    return n;
}

static void on_close(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    call *me = netsrv_get_data(c);
    CHECK(atomic_load(&me->done));
    CHECK_EQ(netsrv_send(c, "x", 1), NETSRV_GONE);
    CHECK_EQ(reason == NETSRV_CLOSE_ERROR, sys_errno != 0);
    atomic_store(&me->reason, (int)reason);
    atomic_store(&me->sys_errno, sys_errno);
    atomic_fetch_add(&me->closes, 1);
}

static const netsrv_handlers handlers = {
    .on_open = on_open, .on_data = on_data, .on_close = on_close
};

/* On a worker. */
static void make_call(netsrv_server *s, unsigned worker, void *arg) {
    call *me = arg;
    netsrv_conn *c = NULL;
    const netsrv_target to = { me->address, &handlers, me, me->timeout_ms };
    me->result = netsrv_dial(s, &to, &c);
    if (me->result == NETSRV_OK) {
        me->id = netsrv_get_id(c);
        CHECK_EQ(netsrv_get_worker(c), worker);
        CHECK_EQ(netsrv_get_fd(c), -1);
        /* What fails at once has ended by now, though nobody has been told. */
        const bool there = netsrv_find(s, me->id) == c;
        if (me->first != NULL) {
            CHECK_EQ(netsrv_send(c, me->first, strlen(me->first)),
                     there ? NETSRV_OK : NETSRV_GONE);
            CHECK_EQ(netsrv_flush(c), there ? NETSRV_OK : NETSRV_GONE);
        }
        if (me->flush) {
            CHECK_EQ(netsrv_flush(c), NETSRV_OK);
        }
        if (me->shut) {
            netsrv_shutdown(c);
            CHECK_EQ(netsrv_send(c, "x", 1), NETSRV_GONE);
        }
        if (me->paused) {
            netsrv_pause(c);
        }
        if (me->close_at_once) {
            netsrv_close(c);
        }
    }
    atomic_store(&me->done, true);
}

/* A path has no port: 0. */
static void set_address(call *me, const char *host, unsigned port) {
    const int n = snprintf(me->address, sizeof me->address, "%s", host);
    if (port != 0) {
        snprintf(me->address + n, sizeof me->address - (size_t)n, ":%u", port);
    }
}

static void begin(netsrv_server *s, call *me, const char *host, unsigned port) {
    set_address(me, host, port);
    REQUIRE(netsrv_post(s, 0, make_call, me) == NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&me->done));
}

static void expect_end(call *me, netsrv_close_reason reason, int sys_errno) {
    CHECK_WITHIN(10000, atomic_load(&me->done));
    CHECK_EQ(me->result, NETSRV_OK);
    CHECK_WITHIN(10000, atomic_load(&me->closes) == 1);
    CHECK_STR(netsrv_close_text(atomic_load(&me->reason)), netsrv_close_text((int)reason));
    CHECK_EQ(atomic_load(&me->sys_errno), sys_errno);
}

static void expect_echo(call *me, const char *text) {
    CHECK_WITHIN(10000, atomic_load(&me->got) == strlen(text));
    CHECK_MEM(me->text, atomic_load(&me->got), text, strlen(text));
}

/* A port on which nobody listens: bound by a socket that stays until the end. */
static int dead_port(uint16_t *port) {
    struct sockaddr_in a = peer_loopback(1, 0);
    socklen_t n = sizeof a;
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(bind(fd, (struct sockaddr *)&a, sizeof a) == 0);
    REQUIRE(getsockname(fd, (struct sockaddr *)&a, &n) == 0);
    *port = ntohs(a.sin_port);
    return fd;
}

/* ---- opened ---------------------------------------------------------------------------------- */

static void check_numbers(netsrv_server *s, unsigned long dialed, unsigned long undialed) {
    CHECK_EQ(rig_total(s).dialed, dialed);
    CHECK_WITHIN(5000, rig_total(s).undialed == undialed);
}

/* A server that waits for its connections goes on dialing for them. */
static void during_a_drain(netsrv_backend b, const char *address) {
    const netsrv_config cfg = rig_config(b, 1);
    netsrv_server *s = rig_start(&cfg);
    const int last = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(last, "a") && peer_gets(last, "a"));
    uint16_t port;
    const int target = dead_port(&port);
    REQUIRE(listen(target, 5) == 0);
    netsrv_drain(s);
    call me = { .first = "still there" };
    begin(s, &me, address, port);
    CHECK_WITHIN(5000, atomic_load(&me.opens) + atomic_load(&me.closes) > 0);
    CHECK_EQ(atomic_load(&me.opens), 1);
    close(target);
    CHECK_WITHIN(5000, atomic_load(&me.closes) == 1);
    close(last);
    CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(10000)), NETSRV_OK);
    rig_stop(s, 0);
}

static void opened(netsrv_backend b, const char *address) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.max_conns = 1; /* the echo server's side only */
    cfg.max_conns_per_address = 1;
    netsrv_server *s = rig_start(&cfg);
    call me = { .first = "before it is open" };
    begin(s, &me, address, netsrv_get_port(s, 0));
    expect_echo(&me, "before it is open");
    CHECK_EQ(atomic_load(&me.opens), 1);
    CHECK_EQ(rig_total(s).live, 2);
    CHECK_EQ(netsrv_close_id(s, me.id), NETSRV_OK);
    expect_end(&me, NETSRV_CLOSE_LOCAL, 0);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_WITHIN(5000, rig_total(s).live == 0);
    check_numbers(s, 1, 0);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    netsrv_stop(s, 1000);
    rig_end(s);
}

static void unix_path(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    char where[80];
    snprintf(where, sizeof where, "unix:/tmp/netsrv-dial.%ld", (long)getpid());
    cfg.listen[0] = where;
    netsrv_server *s = rig_start(&cfg);
    call me = { .first = "by path" };
    begin(s, &me, where, 0);
    expect_echo(&me, "by path");
    netsrv_stop(s, 1000);
    expect_end(&me, NETSRV_CLOSE_STOP, 0);
    rig_end(s);
}

/* A flush and a FIN before there was a connection; paused from the beginning. */
static void recorded_before_open(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    netsrv_server *s = rig_start(&cfg);
    call shut = { .first = "all", .shut = true, .flush = true };
    call paused = { .first = "later", .paused = true };
    begin(s, &shut, rig_host(), netsrv_get_port(s, 0));
    expect_echo(&shut, "all");
    expect_end(&shut, NETSRV_CLOSE_PEER, 0);
    begin(s, &paused, rig_host(), netsrv_get_port(s, 0));
    CHECK_WITHIN(5000, rig_total(s).bytes_out == 2 * 3 + 2 * 5);
    rig_poke(s);
    CHECK_EQ(atomic_load(&paused.got), 0);
    CHECK_EQ(netsrv_abort_id(s, paused.id), NETSRV_OK);
    expect_end(&paused, NETSRV_CLOSE_ABORT, 0);
    rig_stop(s, 1000);
}

static void line_back(netsrv_conn *c, const void *data, size_t n) {
    netsrv_send(c, data, n);
    netsrv_send(c, "\n", 1);
}

/* Callbacks of its own, and the server's: here they see lines. */
static void own_callbacks(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.framing = NETSRV_FRAMING_LINE;
    cfg.on_frame = line_back;
    netsrv_server *s = rig_start(&cfg);
    call raw = { .first = "one\ntwo\nthr" };
    begin(s, &raw, rig_host(), netsrv_get_port(s, 0));
    expect_echo(&raw, "one\ntwo\n");
    CHECK_EQ(rig_opens(), 1);
    netsrv_close_id(s, raw.id);
    expect_end(&raw, NETSRV_CLOSE_LOCAL, 0);
    CHECK_WITHIN(5000, rig_closes() == 1);
    rig_stop(s, 1000);
}

/* ---- not opened ------------------------------------------------------------------------------ */

static void refused(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 1);
    netsrv_server *s = rig_start(&cfg);
    uint16_t port;
    const int holder = dead_port(&port);
    call me = { .first = "lost" };
    begin(s, &me, rig_host(), port);
    expect_end(&me, NETSRV_CLOSE_ERROR, ECONNREFUSED);
    CHECK_EQ(atomic_load(&me.opens), 0);
    call none = { 0 };
    begin(s, &none, "unix:/nonexistent/netsrv", 0);
    expect_end(&none, NETSRV_CLOSE_ERROR, ENOENT);
    check_numbers(s, 2, 2);
    CHECK_WITHIN(5000, rig_total(s).live == 0);
    CHECK_EQ(netsrv_send_to(s, me.id, "x", 1), NETSRV_OK); /* a stale id: silence */
    rig_poke(s);
    close(holder);
    rig_stop(s, 1000);
}

static void wrong_here(netsrv_server *s, unsigned worker, void *arg) {
    const char *wrong[] = { "",        "127.0.0.1", "127.0.0.1:0", ":80",  "*:80", "a:b",
                            "[::1]80", "::1:80",    "unix:",       "[x]:1", NULL,   "host:70000" };
    const netsrv_handlers deaf = { 0 };
    const netsrv_handlers framed = { .on_frame = line_back };
    netsrv_target to = { 0 };
    (void)worker;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        to.address = wrong[i];
        CHECK_EQ(netsrv_dial(s, &to, NULL), NETSRV_BAD_ADDRESS);
    }
    to.address = "127.0.0.1:1";
    to.handlers = &deaf;
    CHECK_EQ(netsrv_dial(s, &to, NULL), NETSRV_BAD_ARGUMENT);
    to.handlers = &framed;
    CHECK_EQ(netsrv_dial(s, &to, NULL), NETSRV_BAD_ARGUMENT);
    atomic_fetch_add((atomic_ulong *)arg, 1);
}

static void wrong_arguments(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 1);
    const netsrv_target to = { .address = "127.0.0.1:1" };
    atomic_ulong done = 0;
    netsrv_server *s = rig_start(&cfg);
    CHECK_EQ(netsrv_dial(s, &to, NULL), NETSRV_BAD_THREAD);
    CHECK_EQ(netsrv_post(s, 0, wrong_here, &done), NETSRV_OK);
    CHECK_WITHIN(5000, atomic_load(&done) == 1);
    check_numbers(s, 0, 0);
    rig_stop(s, 1000);
}

static void resolved(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 1);
    netsrv_server *s = rig_start(&cfg);
    call here = { .first = "by name" };
    call second = { .first = "at the second address" };
    call nowhere = { .first = "lost" };
    begin(s, &here, "here", netsrv_get_port(s, 0));
    expect_echo(&here, "by name");
    begin(s, &second, "second", netsrv_get_port(s, 0));
    expect_echo(&second, "at the second address");
    begin(s, &nowhere, "nowhere", netsrv_get_port(s, 0));
    expect_end(&nowhere, NETSRV_CLOSE_NOT_RESOLVED, 0);
    check_numbers(s, 3, 1);
    netsrv_stop(s, 1000);
    expect_end(&here, NETSRV_CLOSE_STOP, 0);
    expect_end(&second, NETSRV_CLOSE_STOP, 0);
    rig_end(s);
}

/* A look-up that takes its time delays nobody; its connection times out, and the late address
 * meets nobody. No more threads than are allowed, and none is left. */
static void slow_names(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 1);
    static call many[12];
    memset(many, 0, sizeof many);
    atomic_store(&names.gate, 1);
    atomic_store(&names.most, 0);
    const int threads = check_count_threads();
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < 12; i++) {
        many[i].timeout_ms = 40;
        begin(s, &many[i], "slow", netsrv_get_port(s, 0));
    }
    CHECK(peer_served(netsrv_get_port(s, 0)));
    for (int i = 0; i < 12; i++) {
        expect_end(&many[i], NETSRV_CLOSE_DIAL_TIMEOUT, 0);
        CHECK_EQ(atomic_load(&many[i].opens), 0);
    }
    CHECK_LE(atomic_load(&names.most), NETSRV__RESOLVERS);
    atomic_store(&names.gate, 2);
    CHECK_WITHIN(5000, check_count_threads() <= threads + 1);
    call again = { .first = "after all" };
    begin(s, &again, "slow", netsrv_get_port(s, 0));
    expect_echo(&again, "after all");
    CHECK_EQ(atomic_load(&many[0].closes), 1);
    rig_stop(s, 0);
    atomic_store(&names.gate, 0);
}

/* Somebody whose queue of connections is full does not answer. */
static int full_listener(uint16_t *port, int fill[8]) {
    struct sockaddr_in a = peer_loopback(1, 0);
    socklen_t n = sizeof a;
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(bind(fd, (struct sockaddr *)&a, sizeof a) == 0 && listen(fd, 0) == 0);
    REQUIRE(getsockname(fd, (struct sockaddr *)&a, &n) == 0);
    *port = ntohs(a.sin_port);
    for (int i = 0; i < 8; i++) {
        fill[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        fcntl(fill[i], F_SETFL, O_NONBLOCK);
        (void)!connect(fill[i], (struct sockaddr *)&a, sizeof a);
    }
    return fd;
}

static void full_discard(int fd, const int fill[8]) {
    close(fd);
    for (int i = 0; i < 8; i++) {
        close(fill[i]);
    }
}

static void timed_out(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 1);
    uint16_t port;
    int fill[8];
    const int fd = full_listener(&port, fill);
    netsrv_server *s = rig_start(&cfg);
    const int fds = check_count_fds();
    call me = { .first = "x", .timeout_ms = 50 };
    const uint64_t began = check_now_ms();
    begin(s, &me, rig_host(), port);
    expect_end(&me, NETSRV_CLOSE_DIAL_TIMEOUT, 0);
    CHECK_GE(check_now_ms() - began, 50);
    CHECK_WITHIN(5000, check_count_fds() == fds);
    full_discard(fd, fill);
    rig_stop(s, 1000);
}

/* In the same callback, and when it is on its way. */
static void called_off(netsrv_backend b) {
    const netsrv_config cfg = rig_config(b, 1);
    uint16_t port;
    int fill[8];
    const int fd = full_listener(&port, fill);
    netsrv_server *s = rig_start(&cfg);
    const int fds = check_count_fds();
    call once = { .first = "x", .close_at_once = true };
    begin(s, &once, rig_host(), netsrv_get_port(s, 0));
    expect_end(&once, NETSRV_CLOSE_LOCAL, 0);
    call name = { .first = "x", .close_at_once = true };
    begin(s, &name, "here", netsrv_get_port(s, 0));
    expect_end(&name, NETSRV_CLOSE_LOCAL, 0);
    call way = { .first = "x" };
    begin(s, &way, rig_host(), port);
    CHECK_EQ(netsrv_close_id(s, way.id), NETSRV_OK);
    expect_end(&way, NETSRV_CLOSE_LOCAL, 0);
    call reset = { .first = "x" };
    begin(s, &reset, rig_host(), port);
    CHECK_EQ(netsrv_abort_id(s, reset.id), NETSRV_OK);
    expect_end(&reset, NETSRV_CLOSE_ABORT, 0);
    CHECK_WITHIN(5000, rig_total(s).live == 0);
    CHECK_WITHIN(5000, check_count_fds() == fds);
    check_numbers(s, 4, 4);
    CHECK_EQ(rig_total(s).queued_bytes, 0);
    full_discard(fd, fill);
    rig_stop(s, 1000);
}

/* ---- at a stop ------------------------------------------------------------------------------- */

/* What is on its way at a stop has half a second, or nothing. */
static void stopped(netsrv_backend b, uint32_t grace_ms) {
    const netsrv_config cfg = rig_config(b, 1);
    uint16_t port;
    int fill[8];
    const int fd = full_listener(&port, fill);
    netsrv_server *s = rig_start(&cfg);
    call way = { .first = "x" };
    call name = { .first = "x" };
    begin(s, &way, rig_host(), port);
    atomic_store(&names.gate, 1);
    begin(s, &name, "slow", port);
    CHECK_WITHIN(5000, atomic_load(&names.inside) == 1);
    netsrv_stop(s, grace_ms);
    expect_end(&way, NETSRV_CLOSE_STOP, 0);
    expect_end(&name, NETSRV_CLOSE_STOP, 0);
    CHECK_EQ(netsrv_wait_for(s, 10), NETSRV_TIMED_OUT); /* for the look-up */
    atomic_store(&names.gate, 2);
    full_discard(fd, fill);
    rig_end(s);
    atomic_store(&names.gate, 0);
}

static call last;

static void dial_at_stop(netsrv_server *s, unsigned worker) {
    make_call(s, worker, &last);
}

static void too_late(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_worker_stop = dial_at_stop;
    memset(&last, 0, sizeof last);
    snprintf(last.address, sizeof last.address, "127.0.0.1:1");
    netsrv_server *s = rig_start(&cfg);
    rig_stop(s, 1000);
    CHECK_EQ(last.result, NETSRV_STOPPED);
}

/* A connection that is always there: whenever it ends, it is dialed again. */
static struct {
    netsrv_target to;
    char address[NETSRV_ADDRESS_MAX];
    atomic_ulong opens;
    atomic_int refused;
} upstream;

static void dial_upstream(netsrv_server *s, unsigned worker, void *arg) {
    (void)worker;
    (void)arg;
    const netsrv_result result = netsrv_dial(s, &upstream.to, NULL);
    CHECK(result == NETSRV_OK || result == NETSRV_STOPPED);
    if (result != NETSRV_OK) {
        atomic_store(&upstream.refused, (int)result);
    }
}

static void upstream_open(netsrv_conn *c) {
    (void)c;
    atomic_fetch_add(&upstream.opens, 1);
}

static void upstream_close(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    netsrv_server *s = netsrv_get_server(c);
    (void)reason;
    (void)sys_errno;
    if (netsrv_get_config(s)->handler_threads != 0) {
        CHECK_EQ(netsrv_dial(s, &upstream.to, NULL), NETSRV_BAD_THREAD);
        const netsrv_result result = netsrv_post(s, 0, dial_upstream, NULL);
        CHECK(result == NETSRV_OK || result == NETSRV_STOPPED);
        if (result != NETSRV_OK) {
            atomic_store(&upstream.refused, (int)result);
        }
    } else {
        dial_upstream(s, 0, NULL);
    }
}

static const netsrv_handlers upstream_handlers = {
    .on_open = upstream_open, .on_data = on_data, .on_close = upstream_close
};

/* A stop ends it with the last client, long before the time is over. */
static void always_there(netsrv_backend b, unsigned handler_threads) {
    netsrv_config cfg = rig_config(b, 1);
    uint16_t port;
    const int target = dead_port(&port);
    REQUIRE(listen(target, 50) == 0);
    cfg.handler_threads = handler_threads;
    cfg.linger_timeout_ms = 1;
    memset(&upstream, 0, sizeof upstream);
    snprintf(upstream.address, sizeof upstream.address, "%s:%u", rig_host(), port);
    upstream.to.address = upstream.address;
    upstream.to.handlers = &upstream_handlers;
    netsrv_server *s = rig_start(&cfg);
    const int client = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(client, "x") && peer_gets(client, "x"));
    REQUIRE(netsrv_post(s, 0, dial_upstream, NULL) == NETSRV_OK);
    for (unsigned i = 1; i <= 3; i++) {
        CHECK_WITHIN(10000, atomic_load(&upstream.opens) == i);
        const int fd = accept(target, NULL, NULL);
        CHECK(fd >= 0);
        peer_reset(fd);
    }
    CHECK_WITHIN(10000, atomic_load(&upstream.opens) == 4);
    netsrv_stop(s, 600000);
    CHECK_EQ(peer_end(client), PEER_FIN);
    close(client);
    CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(20000)), NETSRV_OK);
    CHECK_EQ(atomic_load(&upstream.refused), NETSRV_STOPPED);
    close(target);
    rig_stop(s, 0);
}

/* ---- many, and failing calls ----------------------------------------------------------------- */

#define CALLS 200

static void many(netsrv_backend b) {
    static call calls[CALLS];
    const netsrv_config cfg = rig_config(b, 2);
    uint16_t dead;
    const int holder = dead_port(&dead);
    memset(calls, 0, sizeof calls);
    netsrv_server *s = rig_start(&cfg);
    for (int i = 0; i < CALLS; i++) {
        calls[i].first = i % 3 == 2 ? NULL : "hello";
        calls[i].close_at_once = i % 7 == 6;
        set_address(&calls[i], i % 4 == 0 ? "here" : rig_host(),
                    i % 5 == 4 ? dead : netsrv_get_port(s, 0));
        REQUIRE(netsrv_post(s, (unsigned)i % 2, make_call, &calls[i]) == NETSRV_OK);
    }
    for (int i = 0; i < CALLS; i++) {
        const bool refuses = i % 5 == 4 || i % 7 == 6;
        CHECK_WITHIN(10000, atomic_load(&calls[i].opens) + atomic_load(&calls[i].closes) > 0);
        CHECK_EQ(atomic_load(&calls[i].opens), !refuses);
        if (!refuses && calls[i].first != NULL) {
            expect_echo(&calls[i], "hello");
        }
    }
    netsrv_stop(s, 3000);
    close(holder);
    CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(20000)), NETSRV_OK);
    for (int i = 0; i < CALLS; i++) {
        CHECK_EQ(atomic_load(&calls[i].closes), 1);
    }
    rig_end(s);
}

/* A server of its own for each: no late connection takes the fault. */
static void fails(netsrv_backend b, const char *name, int err, netsrv_close_reason reason) {
    const netsrv_config cfg = rig_config(b, 1);
    call me = { .first = "x" };
    seam_reset(0);
    netsrv_server *s = rig_start(&cfg);
    set_address(&me, "here", netsrv_get_port(s, 0));
    seam_fail_next(name, err, 1);
    REQUIRE(netsrv_post(s, 0, make_call, &me) == NETSRV_OK);
    expect_end(&me, reason, reason == NETSRV_CLOSE_ERROR ? err : 0);
    CHECK_GE(SEAM_GET(fired), 1);
    seam_fail_stop();
    CHECK(peer_served(netsrv_get_port(s, 0)));
    rig_stop(s, 1000);
    seam_reset(0);
}

static void failing_calls(netsrv_backend b) {
    fails(b, "socket", EMFILE, NETSRV_CLOSE_ERROR);
    fails(b, "connect", ENETUNREACH, NETSRV_CLOSE_ERROR);
    fails(b, "getaddrinfo", ENOMEM, NETSRV_CLOSE_NOT_RESOLVED);
    fails(b, "pthread_create", EAGAIN, NETSRV_CLOSE_ERROR);
    if (b == NETSRV_BACKEND_EPOLL) {
        fails(b, "epoll_ctl", ENOSPC, NETSRV_CLOSE_ERROR);
        fails(b, "epoll_ctl_del", ENOENT, NETSRV_CLOSE_ERROR);
    }
}

static void all(netsrv_backend b) {
    CASE("opened", opened(b, rig_host()));
    CASE("opened by name", opened(b, "here"));
    CASE("during a drain", during_a_drain(b, rig_host()));
    CASE("by name during a drain", during_a_drain(b, "here"));
    CASE("a unix path", unix_path(b));
    CASE("recorded before it is open", recorded_before_open(b));
    CASE("callbacks of its own", own_callbacks(b));
    CASE("refused", refused(b));
    CASE("wrong arguments", wrong_arguments(b));
    CASE("resolved", resolved(b));
    CASE("slow names", slow_names(b));
    CASE("timed out", timed_out(b));
    CASE("called off", called_off(b));
    CASE("stopped", stopped(b, 3000));
    CASE("stopped at once", stopped(b, 0));
    CASE("too late", too_late(b));
    CASE("dialed again and again", always_there(b, 0));
    CASE("dialed again and again, handler threads", always_there(b, 1));
    CASE("many", many(b));
    CASE("failing calls", failing_calls(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
