/* The command line: one row of `option_rows` for each option, from which parsing, error texts and
 * help follow. Included once, by netsrv.c, after the services. */

#include "help.h"

typedef enum option_kind {
    FLAG,     /* no argument; stores `min` */
    NUMBER,   /* min to max */
    BYTES,    /* the same, with k, m, g */
    NAME,     /* one of the first `max` names of `names` */
    TEXT,     /* at least `min` characters */
    LISTEN,   /* one more listening address */
    TOPIC,    /* of --help */
    OFF = 16  /* may be added to NUMBER and BYTES: "off" is understood */
} option_kind;

typedef struct option_row {
    const char *name;
    char letter;           /* or 0 */
    const char *argument;  /* its name in the help; in brackets if it may be left out; or NULL */
    int kind;              /* option_kind */
    const char *field;     /* of command_line, with its place */
    size_t offset, size;
    uint64_t min, max;
    const char *(*names)(int);
    const char *topic;     /* where the help shows it */
    const char *text;
} option_row;

static const char *overflow_name(int i) {
    return i == NETSRV_OVERFLOW_WAIT ? "wait" : "reject";
}

static const char *eof_name(int i) {
    return i == NETSRV_EOF_CLOSE ? "close" : "keep";
}

#define AT(field)  #field, offsetof(command_line, field), sizeof(((command_line *)NULL)->field)
#define ATC(field) AT(config.field)
#define ON         NETSRV_ENABLE, 0, NULL
#define ANY        NETSRV_OFF - 1, NULL

static const option_row option_rows[] = {
    {"delay", 0, "MS", NUMBER, AT(delay_ms), 0, 3600000, NULL, "modes",
     "the handler of each request sleeps that long"},
    {"banner", 0, "TEXT", TEXT, AT(banner), 0, 0, NULL, "modes",
     "sent with a newline to each new client"},
    {"commands", 0, NULL, FLAG, AT(commands), 1, 0, NULL, "modes",
     "mode line obeys commands, see --help commands"},
    {"eof", 0, "NAME", NAME, ATC(eof_policy), 0, 2, eof_name, "modes",
     "client finished sending: close (default), keep"},

    {"listen", 'l', "ADDR", LISTEN, ATC(listen), 0, 0, NULL, "listen",
     "repeatable; default 127.0.0.1:7000"},
    {"backlog", 0, "N", NUMBER, ATC(backlog_count), 1, INT_MAX, NULL, "listen",
     "connections waiting for accept; default 4096"},
    {"keepalive", 0, "S", NUMBER | OFF, ATC(keepalive_s), 1, 32767, NULL, "listen",
     "TCP keep-alive after S seconds; default off"},
    {"defer-accept", 0, "S", NUMBER | OFF, ATC(defer_accept_s), 1, 32767, NULL, "listen",
     "wait S seconds for data (Linux); default off"},
    {"fast-open", 0, "N", NUMBER | OFF, ATC(fast_open_count), 1, INT_MAX, NULL, "listen",
     "TCP fast open, queue of N; default off"},
    {"nagle", 0, NULL, FLAG, ATC(nodelay), NETSRV_DISABLE, 0, NULL, "listen",
     "leave TCP_NODELAY unset"},

    {"workers", 'w', "N", NUMBER, ATC(workers), 1, NETSRV_WORKERS_MAX, NULL, "threads",
     "default: the CPUs this process may use"},
    {"backend", 'b', "NAME", NAME, ATC(backend), 0, NETSRV_BACKEND_COUNT, netsrv_backend_name,
     "threads",
     "auto (default) io_uring epoll kqueue poll"},
    {"pin", 0, NULL, FLAG, ATC(pin_workers), ON, "threads",
     "each worker on a CPU of its own (Linux)"},
    {"stall", 0, "MS", NUMBER | OFF, ATC(stall_ms), 1, ANY, "threads",
     "a worker held up longer gets no clients; 250"},
    {"stuck", 0, "MS", NUMBER | OFF, ATC(stuck_ms), 1, INT32_MAX, NULL, "threads",
     "a handler that runs longer is told; default off"},
    {"handler-threads", 't', "N", NUMBER, ATC(handler_threads), 1, NETSRV_HANDLERS_MAX, NULL,
     "threads", "handlers run on N threads beside the workers"},
    {"handler-stack", 0, "BYTES", BYTES, ATC(handler_stack_bytes), 65536, 1 << 30, NULL, "threads",
     "of each of them; default 1m"},
    {"handler-idle", 0, "MS", NUMBER | OFF, ATC(handler_idle_ms), 1, ANY, "threads",
     "own_thread: an idle one ends after; 10000"},
    {"jobs-max", 0, "N", NUMBER, ATC(jobs_max_count), 1, 1 << 24, NULL, "threads",
     "handlers waiting for one; default 4096"},
    {"offload-threads", 0, "N", NUMBER, ATC(offload_threads), 1, NETSRV_HANDLERS_MAX, NULL,
     "threads", "for /offload, made when needed; default 4"},
    {"offload-max", 0, "N", NUMBER, ATC(offload_max_count), 1, 1 << 24, NULL, "threads",
     "/offload under way on a worker; default 1024"},
    {"events-per-wait", 0, "N", NUMBER, ATC(events_per_wait), 1, 4096, NULL, "threads",
     "events taken at once; default 256"},
    {"recv-buffer", 0, "BYTES", BYTES, ATC(recv_buffer_bytes), 4096, 16 << 20, NULL, "threads",
     "one for each worker, 4k to 16m; default 64k"},
    {"bytes-per-turn", 0, "BYTES", BYTES, ATC(bytes_per_turn), 1, 1 << 30, NULL, "threads",
     "read from one client at a time; --recv-buffer"},

    {"accept", 'a', "NAME", NAME, ATC(accept), 0, NETSRV_ACCEPT_COUNT, netsrv_accept_name,
     "accept", "one of these"},
    {"acceptors", 0, "N", NUMBER, ATC(acceptors), 1, NETSRV_ACCEPTORS_MAX, NULL, "accept",
     "threads of acceptor; default 1"},
    {"trigger", 0, "NAME", NAME, ATC(trigger), 0, NETSRV_TRIGGER_COUNT, netsrv_trigger_name,
     "accept", "of acceptor: level (default) edge oneshot"},
    {"share-port", 0, NULL, FLAG, ATC(share_port), ON, "accept",
     "reuseport: others may take the port as well"},
    {"steer-by-cpu", 0, NULL, FLAG, ATC(steer_by_cpu), ON, "accept",
     "reuseport: worker by receiving CPU (Linux)"},
    {"accepts-per-turn", 0, "N", NUMBER, ATC(accepts_per_turn), 1, 1 << 20, NULL, "accept",
     "from one listener at a time; default 8"},

    {"place", 'p', "NAME", NAME, ATC(place), 0, NETSRV_PLACE_CUSTOM, netsrv_place_name, "place",
     "one of these"},
    {"transfer", 0, "NAME", NAME, ATC(transfer), 0, NETSRV_TRANSFER_COUNT, netsrv_transfer_name,
     "place", "to the other worker: mailbox (default) direct"},
    {"mailbox-max", 0, "N", NUMBER, ATC(mailbox_max_count), 1, 1 << 24, NULL, "place",
     "messages waiting for a worker; default 4096"},

    {"max-conns", 0, "N", NUMBER | OFF, ATC(max_conns), 1, ANY, "limits",
     "connections; default 1000000"},
    {"overflow", 0, "NAME", NAME, ATC(overflow), 0, 2, overflow_name, "limits",
     "more than that: wait (default), reject"},
    {"max-conns-per-ip", 0, "N", NUMBER | OFF, ATC(max_conns_per_address), 1, ANY, "limits",
     "of an IPv4 address or IPv6 /64; default off"},
    {"max-accepts-per-second", 0, "N", NUMBER | OFF, ATC(max_accepts_per_second), 1, ANY, "limits",
     "default off"},
    {"max-line", 0, "BYTES", BYTES, ATC(input_max_bytes), 1, 1 << 30, NULL, "limits",
     "longest line without its end; default 1m"},
    {"high-mark", 0, "BYTES", BYTES, ATC(high_mark_bytes), 1, 1 << 30, NULL, "limits",
     "queued output that stops reading; default 256k"},
    {"low-mark", 0, "BYTES", BYTES, ATC(low_mark_bytes), 1, 1 << 30, NULL, "limits",
     "and resumes it; default a quarter of the high"},
    {"queue-max", 0, "BYTES", BYTES, ATC(queue_max_bytes), 1, 1 << 30, NULL, "limits",
     "queued output of a connection; default 16m"},
    {"server-queue-max", 0, "BYTES", BYTES | OFF, ATC(server_queue_max_bytes), 1,
     UINT64_C(1) << 40, NULL, "limits", "queued output of all; default 1g"},

    {"idle-timeout", 0, "MS", NUMBER | OFF, ATC(idle_timeout_ms), 1, ANY, "timeouts",
     "no byte in either direction; default off"},
    {"write-timeout", 0, "MS", NUMBER | OFF, ATC(write_timeout_ms), 1, ANY, "timeouts",
     "the client takes no output; default off"},
    {"flush-timeout", 0, "MS", NUMBER, ATC(flush_timeout_ms), 1, ANY, "timeouts",
     "close: to send what is queued; default 10000"},
    {"linger-timeout", 0, "MS", NUMBER | OFF, ATC(linger_timeout_ms), 1, ANY, "timeouts",
     "then: for the client to finish; default 2000"},
    {"linger-max", 0, "BYTES", BYTES, ATC(linger_max_bytes), 1, 1 << 30, NULL, "timeouts",
     "input dropped meanwhile; default 1m"},
    {"grace", 0, "MS", NUMBER | OFF, AT(grace_ms), 0, ANY, "timeouts",
     "stop: for busy clients to finish; default 5000"},

    {"port-file", 0, "PATH", TEXT, AT(port_file), 1, 0, NULL, "output",
     "real port, a line per listener, once listening"},
    {"ready-fd", 0, "N", NUMBER, AT(ready_fd), 1, INT_MAX, NULL, "output",
     "\"ready ADDR\" on descriptor N, which is closed"},
    {"control", 0, "PATH", TEXT, AT(control), 1, 0, NULL, "output",
     "a FIFO to write commands to, see --help control"},
    {"stats", 0, "[=SECONDS]", NUMBER, AT(stats_s), 1, 86400, NULL, "output",
     "counters every second or SECONDS, and at end"},
    {"json", 0, NULL, FLAG, AT(json), 1, 0, NULL, "output",
     "counters as one JSON object a line"},
    {"quiet", 'q', NULL, FLAG, AT(log_level), NETSRV_LOG_ERROR, 0, NULL, "output",
     "errors only"},
    {"verbose", 'v', NULL, FLAG, AT(log_level), NETSRV_LOG_DEBUG, 0, NULL, "output",
     "also what was chosen and why, and the log"},
    {"help", 'h', "[=TOPIC]", TOPIC, AT(help), 1, 0, NULL, "output",
     "this help"},
    {"version", 0, NULL, FLAG, AT(version), 1, 0, NULL, "output",
     "prints the version"},
};

/* ---- one option ------------------------------------------------------------------------------ */

static void option_store(command_line *o, const option_row *row, uint64_t value) {
    char *field = (char *)o + row->offset;
    uint32_t value32 = (uint32_t)value;
    if (row->size == sizeof value) {
        memcpy(field, &value, sizeof value);
        return;
    }
    assert(row->size == sizeof value32 && value32 == value);
    memcpy(field, &value32, sizeof value32);
}

static void option_number(command_line *o, const option_row *row, const char *text) {
    bool bytes = (row->kind & ~OFF) == BYTES;
    bool off = (row->kind & OFF) != 0;
    uint64_t value = row->min;
    if (off && strcmp(text, "off") == 0) {
        value = NETSRV_OFF;
    } else if (!parse_number(text, bytes, row->min, row->max, &value)) {
        REFUSE("--%s: '%.60s': not a number%s from %" PRIu64 " to %" PRIu64 "%s%s; see 'netsrv "
               "--help %s'", row->name, text, bytes ? " of bytes" : "", row->min, row->max,
               bytes ? " (k, m, g are understood)" : "", off ? " or \"off\"" : "", row->topic);
    }
    option_store(o, row, value);
}

static void option_name(command_line *o, const option_row *row, const char *text) {
    char names[200] = "";
    for (int i = 0; i < (int)row->max; i++) {
        if (strcmp(text, row->names(i)) == 0) {
            option_store(o, row, (uint64_t)i);
            return;
        }
        strcat(strcat(names, i > 0 ? ", " : ""), row->names(i));
    }
    REFUSE("--%s: '%.60s': not one of %s; see 'netsrv --help %s'", row->name, text, names,
           row->topic);
}

static void option_text(command_line *o, const option_row *row, const char *text) {
    if (strlen(text) < row->min) {
        REFUSE("--%s: '': empty; see 'netsrv --help %s'", row->name, row->topic);
    }
    memcpy((char *)o + row->offset, &text, sizeof text);
}

static void option_listen(command_line *o, const char *text) {
    if (o->listeners == NETSRV_LISTEN_MAX) {
        REFUSE("--listen: '%.60s': one address too many; at most %d are allowed", text,
               NETSRV_LISTEN_MAX);
    }
    o->config.listen[o->listeners++] = text;
}

/* `text` is NULL for a flag, and where an optional argument was left out. */
static void option_apply(command_line *o, const option_row *row, const char *text) {
    switch (row->kind & ~OFF) {
    case NAME:
        option_name(o, row, text);
        break;
    case TEXT:
        option_text(o, row, text);
        break;
    case LISTEN:
        option_listen(o, text);
        break;
    case TOPIC:
        o->help = 1;
        o->topic = text;
        break;
    default:
        if (text == NULL) {
            option_store(o, row, row->min);
        } else {
            option_number(o, row, text);
        }
        break;
    }
}

/* ---- all of them ----------------------------------------------------------------------------- */

enum { LONG_FIRST = 256 }; /* getopt_long returns LONG_FIRST + row for a long option */

static const option_row *option_by_value(int value) {
    for (size_t i = 0; i < COUNT_OF(option_rows); i++) {
        if (value == LONG_FIRST + (int)i || (value != 0 && value == option_rows[i].letter)) {
            return &option_rows[i];
        }
    }
    return NULL;
}

/* What getopt_long wants to know: the option string ":w:qv" and the list of long ones. */
static void getopt_tables(char *letters, struct option *longs) {
    *letters++ = ':';
    for (size_t i = 0; i < COUNT_OF(option_rows); i++) {
        const option_row *row = &option_rows[i];
        bool optional = row->argument != NULL && row->argument[0] == '[';
        bool required = row->argument != NULL && !optional;
        longs[i].name = row->name;
        longs[i].has_arg = required ? required_argument : no_argument;
        longs[i].has_arg = optional ? optional_argument : longs[i].has_arg;
        longs[i].val = LONG_FIRST + (int)i;
        if (row->letter != 0) {
            *letters++ = row->letter;
            *letters = ':';
            letters += required;
        }
    }
    *letters = '\0';
}

static size_t common_prefix(const char *a, const char *b) {
    size_t n = 0;
    while (a[n] != '\0' && a[n] == b[n]) {
        n++;
    }
    return n;
}

/* Names the option that begins most like it, if at least three letters do. */
static void refuse_long_option(const char *typed) {
    const option_row *nearest = NULL;
    size_t best = 2;
    size_t length = strcspn(typed, "=");
    for (size_t i = 0; i < COUNT_OF(option_rows); i++) {
        size_t n = common_prefix(typed + 2, option_rows[i].name);
        nearest = n > best ? &option_rows[i] : nearest;
        best = n > best ? n : best;
    }
    REFUSE("%.*s: unknown option%s%s%s; 'netsrv --help options' lists all",
           (int)(length < 60 ? length : 60), typed, nearest ? ", did you mean --" : "",
           nearest ? nearest->name : "", nearest ? "?" : "");
}

/* `found` is '?' (unknown, or an argument where none belongs) or ':' (no argument). */
static void refuse_option(int found, const char *typed) {
    const option_row *row = option_by_value(optopt);
    if (optopt == 0) {
        refuse_long_option(typed);
    }
    if (row == NULL) {
        REFUSE("-%c: unknown option; 'netsrv --help options' lists all", optopt);
    }
    REFUSE("--%s: %s%s; see 'netsrv --help %s'", row->name,
           found == ':' ? row->argument : "takes no", found == ':' ? " is missing" : " argument",
           row->topic);
}

/* getopt_long takes "--max-c" for "--max-conns"; a script that relies on it would break when
 * another option of that beginning comes, so whole names only. */
static void refuse_abbreviation(const option_row *row, char **argv) {
    const char *typed = argv[optind - 1] == optarg ? argv[optind - 2] : argv[optind - 1];
    if (strcspn(typed + 2, "=") != strlen(row->name)) {
        refuse_long_option(typed);
    }
}

static void parse_options(command_line *o, int argc, char **argv) {
    char letters[2 * COUNT_OF(option_rows) + 2];
    struct option longs[COUNT_OF(option_rows) + 1] = {{0}};
    int found;
    getopt_tables(letters, longs);
    opterr = 0;
    while ((found = getopt_long(argc, argv, letters, longs, NULL)) != -1) {
        if (found == '?' || found == ':') {
            refuse_option(found, argv[optind - 1]);
        }
        const option_row *row = option_by_value(found);
        if (found >= LONG_FIRST) {
            refuse_abbreviation(row, argv);
        }
        option_apply(o, row, optarg);
    }
}

/* What no single option can know; `words` are the arguments that are not options. */
static const mode *check_options(const command_line *o, int count, char **words) {
    static const char known[] = "known are echo, line, discard, chargen, daytime";
    const mode *m = count > 0 ? mode_by_name(words[0]) : NULL;
    if (m == NULL) {
        REFUSE("mode: '%.60s': %s; %s; see 'netsrv --help'", count > 0 ? words[0] : "",
               count > 0 ? "unknown" : "missing", known);
    }
    if (count > 1) {
        REFUSE("'%.60s': unexpected after mode %s; see 'netsrv --help'", words[1], m->name);
    }
    if (o->commands && m->on_frame == NULL) {
        REFUSE("--commands: not in mode %s; it belongs to mode line", m->name);
    }
    const bool offloads = o->config.offload_threads != 0 || o->config.offload_max_count != 0;
    const bool elsewhere =
        o->config.handler_threads != 0 || o->config.place == NETSRV_PLACE_OWN_THREAD;
    if (offloads && (!o->commands || elsewhere)) {
        REFUSE("--%s: nothing is offloaded %s; see /offload in 'netsrv --help commands'",
               o->config.offload_threads != 0 ? "offload-threads" : "offload-max",
               elsewhere ? "with handler threads" : "without --commands");
    }
    if (o->ready_fd == STDERR_FILENO) {
        REFUSE("--ready-fd: '2': is where messages go; give another descriptor");
    }
    if (o->ready_fd != 0 && fcntl((int)o->ready_fd, F_GETFD) < 0) {
        REFUSE("--ready-fd: '%u': is not open; give a descriptor that you opened", o->ready_fd);
    }
    return m;
}

/* The library names the field that is wrong; whoever gave options wants to know which one. */
static void complain_error(const netsrv_error *error) {
    const size_t length = strcspn(error->text, ":");
    for (size_t i = 0; i < COUNT_OF(option_rows); i++) {
        const option_row *row = &option_rows[i];
        const char *field = strchr(row->field, '.');
        if (field != NULL && strlen(field + 1) == length &&
            strncmp(field + 1, error->text, length) == 0) {
            complain("--%s%s; see 'netsrv --help %s'", row->name, error->text + length, row->topic);
            return;
        }
    }
    complain("%s", error->text);
}

/* ---- help ------------------------------------------------------------------------------------ */

static void help_option(const option_row *row) {
    char left[48];
    const char *argument = row->argument == NULL ? "" : row->argument;
    snprintf(left, sizeof left, "  %c%c%c --%s%s%s", row->letter ? '-' : ' ',
             row->letter ? row->letter : ' ', row->letter ? ',' : ' ', row->name,
             argument[0] == '[' || argument[0] == '\0' ? "" : " ", argument);
    printf("%-33s%s\n", left, row->text);
}

static void help_all_options(void) {
    int column = 80;
    for (size_t i = 0; i < COUNT_OF(option_rows); i++) {
        int width = (int)strlen(option_rows[i].name) + 4;
        bool wrap = column + width > 80;
        printf("%s  --%s", wrap && i > 0 ? "\n" : "", option_rows[i].name);
        column = wrap ? width : column + width;
    }
    printf("\n\nLetters: -l --listen, -w --workers, -t --handler-threads, -b --backend,\n"
           "-a --accept, -p --place, -q --quiet, -v --verbose, -h --help. The last one\n"
           "counts when one is repeated, except --listen. \"netsrv --help TOPIC\" and\n"
           "netsrv(1) explain them.\n");
}

static void help_topic_print(const char *name) {
    for (size_t i = 0; i < COUNT_OF(help_topics); i++) {
        if (strcmp(help_topics[i].name, name) != 0) {
            continue;
        }
        fputs(help_topics[i].text, stdout);
        for (size_t k = 0; k < COUNT_OF(option_rows); k++) {
            if (strcmp(option_rows[k].topic, name) == 0) {
                help_option(&option_rows[k]);
            }
        }
        return;
    }
    REFUSE("--help: '%.60s': no such topic; known are modes, commands, listen, threads, "
           "accept, place, limits, timeouts, output, control, options", name);
}

static int help_print(const char *topic) {
    if (topic == NULL) {
        fputs(help_main, stdout);
    } else if (strcmp(topic, "options") == 0) {
        help_all_options();
    } else {
        help_topic_print(mode_by_name(topic) != NULL ? "modes" : topic);
    }
    if (fflush(stdout) != 0) {
        complain("--help: standard output: %s", strerror(errno));
        return EXIT_FAILED;
    }
    return EXIT_OK;
}

