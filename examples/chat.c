/* A chat room: each line goes to everybody. It shows how to reach a connection from any thread: by
 * its id, which is a plain number and stays harmless when the connection is gone.
 *
 *     chat [ADDRESS [PORT_FILE]]        then, in several terminals:  nc 127.0.0.1 7002
 */
#define NETSRV_IMPLEMENTATION
#include "../netsrv.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MAX_BYTES 24
#define LINE_MAX_BYTES 1000
#define GRACE_MS       2000

/* One client, touched by the worker that owns its connection and by nobody else. */
typedef struct client {
    char name[NAME_MAX_BYTES + 1]; /* empty until the client has told it */
} client;

/* Everybody in the room. All workers use it, hence the lock. It holds ids and no pointers: an id
 * can be kept, copied and used late, a netsrv_conn belongs to its worker. */
static struct {
    pthread_mutex_t lock;
    netsrv_id *ids;
    size_t count;
    size_t room;
} everybody = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- the room ------------------------------------------------------------------------------- */

static bool enter(netsrv_id id) {
    bool entered = true;
    pthread_mutex_lock(&everybody.lock);
    if (everybody.count == everybody.room) {
        const size_t room = everybody.room == 0 ? 64 : 2 * everybody.room;
        netsrv_id *ids = realloc(everybody.ids, room * sizeof *ids);
        entered = ids != NULL;
        everybody.ids = entered ? ids : everybody.ids;
        everybody.room = entered ? room : everybody.room;
    }
    if (entered) {
        everybody.ids[everybody.count++] = id;
    }
    pthread_mutex_unlock(&everybody.lock);
    return entered;
}

static void leave(netsrv_id id) {
    pthread_mutex_lock(&everybody.lock);
    for (size_t i = 0; i < everybody.count; i++) {
        if (everybody.ids[i] == id) {
            everybody.ids[i] = everybody.ids[--everybody.count];
            break;
        }
    }
    pthread_mutex_unlock(&everybody.lock);
}

/* Sends to everybody, whatever worker they live on, and forgets who is gone. Holding the lock
 * meanwhile is safe: netsrv_send_to only queues, it neither waits nor runs a callback. A worker
 * that is so busy that its mailbox is full misses this text; the sender never waits for it. */
static void tell_everybody(netsrv_server *s, const char *text, size_t n) {
    pthread_mutex_lock(&everybody.lock);
    size_t i = 0;
    while (i < everybody.count) {
        if (netsrv_send_to(s, everybody.ids[i], text, n) == NETSRV_GONE) {
            everybody.ids[i] = everybody.ids[--everybody.count];
        } else {
            i++;
        }
    }
    pthread_mutex_unlock(&everybody.lock);
}

/* ---- one client ----------------------------------------------------------------------------- */

static void say(netsrv_conn *c, const char *text) {
    netsrv_send(c, text, strlen(text));
}

static void tell_about(netsrv_conn *c, const char *what) {
    const client *me = netsrv_get_data(c);
    char text[NAME_MAX_BYTES + 32];
    const int n = snprintf(text, sizeof text, "* %s %s\n", me->name, what);
    tell_everybody(netsrv_get_server(c), text, (size_t)n);
}

/* Terminals obey control bytes, and nobody shall write to the terminals of others with them. */
static bool is_printable(char byte) {
    const unsigned char b = (unsigned char)byte;
    return b >= 0x20 && b != 0x7f;
}

static bool is_name(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (!is_printable(text[i]) || text[i] == ' ') {
            return false;
        }
    }
    return n >= 1 && n <= NAME_MAX_BYTES;
}

static void join(netsrv_conn *c, client *me, const char *name, size_t n) {
    if (!is_name(name, n)) {
        say(c, "* A name is one word of 1 to 24 bytes. What is your name?\n");
        return;
    }
    memcpy(me->name, name, n);
    if (!enter(netsrv_get_id(c))) {
        netsrv_abort(c);
        return;
    }
    tell_about(c, "joined");
}

static void speak(netsrv_conn *c, const client *me, const char *line, size_t n) {
    char text[NAME_MAX_BYTES + LINE_MAX_BYTES + 8];
    size_t length = (size_t)snprintf(text, sizeof text, "%s: ", me->name);
    for (size_t i = 0; i < n; i++) {
        text[length++] = is_printable(line[i]) || line[i] == '\t' ? line[i] : '?';
    }
    text[length++] = '\n';
    tell_everybody(netsrv_get_server(c), text, length);
}

/* ---- callbacks ------------------------------------------------------------------------------ */

static void on_open(netsrv_conn *c) {
    client *me = calloc(1, sizeof *me);
    if (me == NULL) {
        netsrv_abort(c);
        return;
    }
    netsrv_set_data(c, me);
    say(c, "* What is your name?\n");
}

static void on_frame(netsrv_conn *c, const void *data, size_t n) {
    client *me = netsrv_get_data(c);
    if (me->name[0] == '\0') {
        join(c, me, data, n);
    } else if (n == 5 && memcmp(data, "/quit", 5) == 0) {
        netsrv_close(c);
    } else {
        speak(c, me, data, n);
    }
}

static void on_close(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    (void)sys_errno;
    client *me = netsrv_get_data(c);
    if (me != NULL && me->name[0] != '\0') {
        leave(netsrv_get_id(c));
        /* When the server stops, everybody leaves: no need to tell each to each. */
        if (reason != NETSRV_CLOSE_STOP) {
            tell_about(c, "left");
        }
    }
    free(me);
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
    fprintf(stderr, "chat: listening on %s\n", address);
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
        fprintf(stderr, "chat: %s\n", error.text);
        return 1;
    }
    set_signals(on_signal);
    const netsrv_result result = netsrv_start(server, &error);
    if (result == NETSRV_OK) {
        announce(port_file);
        netsrv_wait(server);
    } else if (result != NETSRV_STOPPED) {
        fprintf(stderr, "chat: %s\n", error.text);
    }
    set_signals(SIG_DFL); /* A late signal must not find a server that is gone. */
    netsrv_destroy(server);
    return result == NETSRV_OK || result == NETSRV_STOPPED ? 0 : 1;
}

int main(int argc, char **argv) {
    const netsrv_config cfg = {
        .listen = {argc > 1 ? argv[1] : "127.0.0.1:7002"},
        .on_open = on_open,
        .on_frame = on_frame,
        .on_close = on_close,
        .framing = NETSRV_FRAMING_LINE,
        .input_max_bytes = LINE_MAX_BYTES,
        .queue_max_bytes = 1024 * 1024, /* Who does not read for that long has to leave. */
        .high_mark_bytes = 128 * 1024,
        .mailbox_max_count = 65536,     /* One line to a thousand clients is a thousand messages. */
    };
    const int status = serve(&cfg, argc > 2 ? argv[2] : NULL);
    free(everybody.ids);
    return status;
}
