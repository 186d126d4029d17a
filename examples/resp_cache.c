/* A cache that speaks RESP, the protocol of Redis, so that its clients can be used unchanged. It
 * shows a table that all workers share, and a parser for messages that arrive in any pieces.
 *
 *     resp_cache [ADDRESS [PORT_FILE]]        then, elsewhere:
 *     redis-cli -p 6380 set greeting hello
 *     redis-benchmark -p 6380 -t ping,set,get -P 16
 *
 * Commands: PING, ECHO, SET, GET, DEL, EXISTS, INCR, CONFIG GET, COMMAND, QUIT. Keys and values are
 * any bytes. All entries together have at most CACHE_MAX_BYTES; a SET beyond that is refused.
 */
#define NETSRV_IMPLEMENTATION
#include "../netsrv.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define CACHE_MAX_BYTES   ((size_t)64 * 1024 * 1024)
#define COMMAND_MAX_BYTES ((size_t)1024 * 1024) /* one command with all its arguments */
#define BULK_MAX_BYTES    ((size_t)512 * 1024)  /* one argument */
#define INLINE_MAX_BYTES  ((size_t)64 * 1024)   /* a command typed as one line */
#define COUNT_MAX_BYTES   ((size_t)32)          /* the line of a "*3" or "$5" */
#define ARGS_MAX          1024
#define SHARDS            64
#define BUCKETS           4096 /* of each shard */
#define GRACE_MS          2000

/* Some bytes of the receive buffer or of an entry. No NUL stands behind them. */
typedef struct slice {
    const char *ptr;
    size_t n;
} slice;

/* ---- the table ------------------------------------------------------------------------------ */

typedef struct entry {
    struct entry *next;
    size_t key_bytes;
    size_t value_bytes;
    char bytes[]; /* the key, then the value */
} entry;

/* One lock for the whole table would make the workers wait for each other. With a lock for each of
 * many shards two workers rarely want the same one. */
typedef struct shard {
    pthread_mutex_t lock;
    entry *buckets[BUCKETS];
} shard;

static shard shards[SHARDS];
static atomic_size_t cache_bytes; /* of all entries; never above CACHE_MAX_BYTES */

static void init_table(void) {
    for (size_t i = 0; i < SHARDS; i++) {
        pthread_mutex_init(&shards[i].lock, NULL);
    }
}

static void free_table(void) {
    for (size_t i = 0; i < SHARDS * BUCKETS; i++) {
        entry *e = shards[i / BUCKETS].buckets[i % BUCKETS];
        while (e != NULL) {
            entry *next = e->next;
            free(e);
            e = next;
        }
    }
}

/* FNV-1a with a final mix. A cache that strangers can reach needs a hash with a secret key, else
 * they can choose keys that all meet in one bucket. */
static uint64_t hash(slice key) {
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < key.n; i++) {
        h = (h ^ (unsigned char)key.ptr[i]) * 1099511628211u;
    }
    return h ^ (h >> 32);
}

static bool is_key(const entry *e, slice key) {
    return e->key_bytes == key.n && memcmp(e->bytes, key.ptr, key.n) == 0;
}

static slice value_of(const entry *e) {
    return (slice){e->bytes + e->key_bytes, e->value_bytes};
}

static size_t size_of(const entry *e) {
    return sizeof *e + e->key_bytes + e->value_bytes;
}

/* Locks the shard of a key and finds the link that leads to its entry. The link holds NULL if
 * there is no such key, and is then the place for a new entry. */
static entry **lock_key(slice key, shard **locked) {
    const uint64_t h = hash(key);
    shard *s = &shards[h % SHARDS];
    pthread_mutex_lock(&s->lock);
    entry **link = &s->buckets[h / SHARDS % BUCKETS];
    while (*link != NULL && !is_key(*link, key)) {
        link = &(*link)->next;
    }
    *locked = s;
    return link;
}

static void unlock(shard *s) {
    pthread_mutex_unlock(&s->lock);
}

static void free_entry(entry *e) {
    atomic_fetch_sub(&cache_bytes, size_of(e));
    free(e);
}

/* NULL if the cache is full. The sum is raised before the check: with the check first, two workers
 * could both find room for one. */
static entry *new_entry(slice key, slice value) {
    const size_t size = sizeof(entry) + key.n + value.n;
    const size_t before = atomic_fetch_add(&cache_bytes, size);
    entry *e = before + size > CACHE_MAX_BYTES ? NULL : malloc(size);
    if (e == NULL) {
        atomic_fetch_sub(&cache_bytes, size);
        return NULL;
    }
    e->next = NULL;
    e->key_bytes = key.n;
    e->value_bytes = value.n;
    memcpy(e->bytes, key.ptr, key.n);
    memcpy(e->bytes + key.n, value.ptr, value.n);
    return e;
}

/* Replaces what the link leads to, if anything. False, and no change, if the cache is full. */
static bool put(entry **link, slice key, slice value) {
    entry *old = *link;
    entry *e = new_entry(key, value);
    if (e == NULL) {
        return false;
    }
    e->next = old == NULL ? NULL : old->next;
    *link = e;
    if (old != NULL) {
        free_entry(old);
    }
    return true;
}

/* ---- replies -------------------------------------------------------------------------------- */

/* One command on its way. */
typedef struct call {
    netsrv_conn *c;
    const slice *args; /* args[0] is the name of the command */
    size_t count;
    bool high;         /* the client takes its replies slower than it asks: see on_data */
    bool quit;         /* this was the last command */
} call;

static void reply(call *k, const char *data, size_t n) {
    if (netsrv_send(k->c, data, n) == NETSRV_HIGH) {
        k->high = true;
    }
}

static void reply_text(call *k, const char *text) {
    reply(k, text, strlen(text));
}

static void reply_number(call *k, int64_t number) {
    char text[32];
    const int n = snprintf(text, sizeof text, ":%" PRId64 "\r\n", number);
    reply(k, text, (size_t)n);
}

static void reply_array(call *k, size_t count) {
    char text[32];
    const int n = snprintf(text, sizeof text, "*%zu\r\n", count);
    reply(k, text, (size_t)n);
}

static void reply_bulk(call *k, slice s) {
    char text[32];
    const int n = snprintf(text, sizeof text, "$%zu\r\n", s.n);
    reply(k, text, (size_t)n);
    reply(k, s.ptr, s.n);
    reply(k, "\r\n", 2);
}

static void reply_string(call *k, const char *text) {
    reply_bulk(k, (slice){text, strlen(text)});
}

static void reply_full(call *k) {
    reply_text(k, "-OOM command not allowed: the cache is full\r\n");
}

/* `what` comes from the client: a line end in it would make two replies out of one. */
static void reply_error_about(call *k, const char *before, slice what, const char *after) {
    char name[64];
    size_t n = 0;
    while (n < what.n && n < sizeof name - 1) {
        const char byte = what.ptr[n];
        name[n++] = byte >= ' ' && byte <= '~' ? byte : '?';
    }
    name[n] = '\0';
    char text[160];
    const int length = snprintf(text, sizeof text, "-ERR %s '%s'%s\r\n", before, name, after);
    reply(k, text, (size_t)length);
}

/* ---- commands ------------------------------------------------------------------------------- */

static bool is_word(slice s, const char *word) {
    return s.n == strlen(word) && strncasecmp(s.ptr, word, s.n) == 0;
}

static void do_ping(call *k) {
    if (k->count == 1) {
        reply_text(k, "+PONG\r\n");
    } else {
        reply_bulk(k, k->args[1]);
    }
}

static void do_echo(call *k) {
    reply_bulk(k, k->args[1]);
}

static void do_set(call *k) {
    shard *s = NULL;
    entry **link = lock_key(k->args[1], &s);
    const bool stored = put(link, k->args[1], k->args[2]);
    unlock(s);
    if (stored) {
        reply_text(k, "+OK\r\n");
    } else {
        reply_full(k);
    }
}

/* The reply is made under the lock, since another worker may free the entry right after it. That
 * is short: netsrv_send copies and never waits for the client. */
static void do_get(call *k) {
    shard *s = NULL;
    const entry *e = *lock_key(k->args[1], &s);
    if (e == NULL) {
        reply_text(k, "$-1\r\n");
    } else {
        reply_bulk(k, value_of(e));
    }
    unlock(s);
}

static bool delete_key(slice key) {
    shard *s = NULL;
    entry **link = lock_key(key, &s);
    entry *e = *link;
    if (e != NULL) {
        *link = e->next;
        free_entry(e);
    }
    unlock(s);
    return e != NULL;
}

static bool has_key(slice key) {
    shard *s = NULL;
    const bool has = *lock_key(key, &s) != NULL;
    unlock(s);
    return has;
}

static void count_keys(call *k, bool (*test)(slice key)) {
    int64_t count = 0;
    for (size_t i = 1; i < k->count; i++) {
        count += test(k->args[i]) ? 1 : 0;
    }
    reply_number(k, count);
}

static void do_del(call *k) {
    count_keys(k, delete_key);
}

static void do_exists(call *k) {
    count_keys(k, has_key);
}

/* Reads all of s as a number. strtoll would also take spaces, and needs a NUL at the end. */
static bool read_number(slice s, int64_t *number) {
    char text[24];
    const size_t sign = s.n > 0 && s.ptr[0] == '-' ? 1 : 0;
    if (s.n <= sign || s.n >= sizeof text || s.ptr[sign] < '0' || s.ptr[sign] > '9') {
        return false;
    }
    memcpy(text, s.ptr, s.n);
    text[s.n] = '\0';
    char *end = NULL;
    errno = 0;
    *number = strtoll(text, &end, 10);
    return errno == 0 && end == text + s.n;
}

/* Returns the reply to an error, or NULL. */
static const char *increment(entry **link, slice key, int64_t *number) {
    *number = 0;
    if (*link != NULL && !read_number(value_of(*link), number)) {
        return "-ERR value is not an integer or out of range\r\n";
    }
    if (*number == INT64_MAX) {
        return "-ERR increment or decrement would overflow\r\n";
    }
    char text[32];
    const int n = snprintf(text, sizeof text, "%" PRId64, ++*number);
    const bool stored = put(link, key, (slice){text, (size_t)n});
    return stored ? NULL : "-OOM command not allowed: the cache is full\r\n";
}

static void do_incr(call *k) {
    shard *s = NULL;
    int64_t number = 0;
    entry **link = lock_key(k->args[1], &s);
    const char *error = increment(link, k->args[1], &number);
    unlock(s);
    if (error == NULL) {
        reply_number(k, number);
    } else {
        reply_text(k, error);
    }
}

/* Enough for redis-benchmark, which asks how the server saves its data: not at all. */
static void do_config(call *k) {
    static const char *const settings[][2] = {{"save", ""}, {"appendonly", "no"}};
    if (!is_word(k->args[1], "GET")) {
        reply_error_about(k, "unknown subcommand", k->args[1], "");
        return;
    }
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        if (is_word(k->args[2], settings[i][0])) {
            reply_array(k, 2);
            reply_string(k, settings[i][0]);
            reply_string(k, settings[i][1]);
            return;
        }
    }
    reply_array(k, 0);
}

/* redis-cli asks for the list of commands to help its user; without one it helps less. */
static void do_command(call *k) {
    reply_array(k, 0);
}

static void do_quit(call *k) {
    reply_text(k, "+OK\r\n");
    k->quit = true;
}

static const struct command {
    const char *name;
    size_t args_min; /* with the name itself */
    size_t args_max;
    void (*run)(call *k);
} commands[] = {
    {"GET", 2, 2, do_get},
    {"SET", 3, 3, do_set},
    {"PING", 1, 2, do_ping},
    {"INCR", 2, 2, do_incr},
    {"DEL", 2, ARGS_MAX, do_del},
    {"EXISTS", 2, ARGS_MAX, do_exists},
    {"ECHO", 2, 2, do_echo},
    {"CONFIG", 3, 3, do_config},
    {"COMMAND", 1, ARGS_MAX, do_command},
    {"QUIT", 1, ARGS_MAX, do_quit},
};

static void run_command(call *k) {
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        const struct command *command = &commands[i];
        if (!is_word(k->args[0], command->name)) {
            continue;
        }
        if (k->count < command->args_min || k->count > command->args_max) {
            reply_error_about(k, "wrong number of arguments for", k->args[0], " command");
        } else {
            command->run(k);
        }
        return;
    }
    reply_error_about(k, "unknown command", k->args[0], "");
}

/* ---- the protocol --------------------------------------------------------------------------- */

/* Reads one command from the front of the input. `error` is set when it is not RESP. */
typedef struct parser {
    const char *data;
    size_t n;
    size_t at;         /* how far the parser came */
    const char *error;
    size_t count;
    slice args[ARGS_MAX];
} parser;

/* Takes a line of at most max bytes. False if it has not all arrived, or is too long. */
static bool take_line(parser *p, size_t max, slice *line) {
    const char *start = p->data + p->at;
    const size_t left = p->n - p->at;
    const char *end = left == 0 ? NULL : memchr(start, '\n', left < max ? left : max);
    if (end == NULL) {
        p->error = left >= max ? "too big line" : NULL;
        return false;
    }
    *line = (slice){start, (size_t)(end - start)};
    p->at += line->n + 1;
    if (line->n > 0 && line->ptr[line->n - 1] == '\r') {
        line->n--;
    }
    return true;
}

/* Takes a line such as "*3" or "$5": a mark and a number of at most max. */
static bool take_count(parser *p, const char *error, int64_t max, int64_t *count) {
    slice line;
    if (!take_line(p, COUNT_MAX_BYTES, &line)) {
        return false;
    }
    if (!read_number((slice){line.ptr + 1, line.n - 1}, count) || *count > max) {
        p->error = error;
        return false;
    }
    return true;
}

static bool take_bulk(parser *p, slice *bulk) {
    int64_t length = 0;
    if (p->at < p->n && p->data[p->at] != '$') {
        p->error = "expected '$'";
        return false;
    }
    if (!take_count(p, "invalid bulk length", (int64_t)BULK_MAX_BYTES, &length)) {
        return false;
    }
    if (length < 0 || p->at + (size_t)length + 2 > COMMAND_MAX_BYTES) {
        p->error = "invalid bulk length";
        return false;
    }
    if (p->n - p->at < (size_t)length + 2) {
        return false;
    }
    *bulk = (slice){p->data + p->at, (size_t)length};
    p->at += bulk->n + 2;
    if (memcmp(bulk->ptr + bulk->n, "\r\n", 2) != 0) {
        p->error = "expected a line end after the bulk";
    }
    return p->error == NULL;
}

static bool parse_array(parser *p) {
    int64_t count = 0;
    if (!take_count(p, "invalid multibulk length", ARGS_MAX, &count)) {
        return false;
    }
    while ((int64_t)p->count < count) {
        if (!take_bulk(p, &p->args[p->count])) {
            return false;
        }
        p->count++;
    }
    return true;
}

/* A command as a person types it: words in one line. */
static bool parse_inline(parser *p) {
    slice line;
    if (!take_line(p, INLINE_MAX_BYTES, &line)) {
        return false;
    }
    size_t i = 0;
    while (i < line.n) {
        const size_t start = i;
        while (i < line.n && line.ptr[i] != ' ') {
            i++;
        }
        if (i > start && p->count == ARGS_MAX) {
            p->error = "too many arguments";
            return false;
        }
        if (i > start) {
            p->args[p->count++] = (slice){line.ptr + start, i - start};
        }
        i++;
    }
    return true;
}

/* True if a whole command was there; it is empty after an empty line. */
static bool parse(parser *p, const char *data, size_t n) {
    p->data = data;
    p->n = n;
    p->at = 0;
    p->error = NULL;
    p->count = 0;
    return data[0] == '*' ? parse_array(p) : parse_inline(p);
}

/* ---- callbacks ------------------------------------------------------------------------------ */

static void refuse(netsrv_conn *c, const char *error) {
    char text[80];
    const int n = snprintf(text, sizeof text, "-ERR Protocol error: %s\r\n", error);
    netsrv_send(c, text, (size_t)n);
    netsrv_close(c);
}

/* Runs every command that has arrived as a whole; the rest comes again with the bytes that follow.
 * A client that asks for more than it reads must not fill our memory with replies: above the high
 * mark its commands stay unconsumed until on_drain. */
static size_t on_data(netsrv_conn *c, const void *data, size_t n) {
    const char *bytes = data;
    size_t done = 0;
    parser p;
    while (done < n && parse(&p, bytes + done, n - done)) {
        done += p.at;
        call k = {.c = c, .args = p.args, .count = p.count};
        if (k.count > 0) {
            run_command(&k);
        }
        if (k.quit) {
            netsrv_close(c);
            return n;
        }
        if (k.high) {
            netsrv_pause(c);
            return done;
        }
    }
    if (done < n && p.error != NULL) {
        refuse(c, p.error);
        return n;
    }
    return done;
}

static void on_drain(netsrv_conn *c) {
    netsrv_resume(c);
}

/* ---- start and stop ------------------------------------------------------------------------- */

static netsrv_server *server; /* set before the signal handler that needs it is installed */

static void on_signal(int number) {
    (void)number;
    netsrv_stop(server, GRACE_MS); /* One of the few calls that a signal handler may make. */
}

static void set_signals(void (*handler)(int)) {
    signal(SIGINT, handler);
    signal(SIGTERM, handler);
}

/* Port 0 in the address asks for any free port; the file tells a script which one it became. */
static void announce(const char *port_file) {
    char address[NETSRV_ADDRESS_MAX];
    netsrv_get_address(server, 0, address, sizeof address);
    fprintf(stderr, "resp_cache: listening on %s\n", address);
    if (port_file == NULL) {
        return;
    }
    FILE *file = fopen(port_file, "w");
    if (file == NULL) {
        perror(port_file);
        return;
    }
    fprintf(file, "%u\n", (unsigned)netsrv_get_port(server, 0));
    fclose(file);
}

static int serve(const netsrv_config *cfg, const char *port_file) {
    netsrv_error error;
    if (netsrv_create(&server, cfg, &error) != NETSRV_OK) {
        fprintf(stderr, "resp_cache: %s\n", error.text);
        return 1;
    }
    set_signals(on_signal);
    const netsrv_result result = netsrv_start(server, &error);
    if (result == NETSRV_OK) {
        announce(port_file);
        netsrv_wait(server);
    } else if (result != NETSRV_STOPPED) {
        fprintf(stderr, "resp_cache: %s\n", error.text);
    }
    set_signals(SIG_DFL); /* A late signal must not find a server that is gone. */
    netsrv_destroy(server);
    return result == NETSRV_OK || result == NETSRV_STOPPED ? 0 : 1;
}

int main(int argc, char **argv) {
    const netsrv_config cfg = {
        .listen = {argc > 1 ? argv[1] : "127.0.0.1:6380"},
        .on_data = on_data,
        .on_drain = on_drain,
        .input_max_bytes = COMMAND_MAX_BYTES,
    };
    init_table();
    const int status = serve(&cfg, argc > 2 ? argv[2] : NULL);
    free_table();
    return status;
}
