/* What the command serves: one row of `modes` for each service, and the commands of mode line.
 * Included once, by netsrv.c, after the counters. */

typedef struct mode {
    const char *name;
    void (*on_open)(netsrv_conn *c);
    size_t (*on_data)(netsrv_conn *c, const void *data, size_t n);
    void (*on_frame)(netsrv_conn *c, const void *data, size_t n); /* set: the mode wants lines */
    void (*on_drain)(netsrv_conn *c);
} mode;

static const command_line *options_of(netsrv_conn *c) {
    return netsrv_user(netsrv_get_server(c));
}

static void sleep_ms(uint64_t ms) {
    struct timespec t = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    while (ms > 0 && nanosleep(&t, &t) != 0 && errno == EINTR) {
    }
}

/* The pattern of chargen repeats after 95 lines. */
enum { CHARGEN_FIRST = ' ', CHARGEN_LINES = 95, CHARGEN_COLUMNS = 72 };
static char chargen_round[CHARGEN_LINES][CHARGEN_COLUMNS + 2];
static char send_letters[16384];

static void services_prepare(void) {
    memset(send_letters, 'x', sizeof send_letters);
    for (int line = 0; line < CHARGEN_LINES; line++) {
        char *row = chargen_round[line];
        for (int i = 0; i < CHARGEN_COLUMNS; i++) {
            row[i] = (char)(CHARGEN_FIRST + (line + i) % CHARGEN_LINES);
        }
        row[CHARGEN_COLUMNS] = '\r';
        row[CHARGEN_COLUMNS + 1] = '\n';
    }
}

static void greet(netsrv_conn *c) {
    const command_line *o = options_of(c);
    if (o->banner != NULL) {
        netsrv_send(c, o->banner, strlen(o->banner));
        netsrv_send(c, "\n", 1);
    }
}

static size_t echo_data(netsrv_conn *c, const void *data, size_t n) {
    sleep_ms(options_of(c)->delay_ms);
    netsrv_send(c, data, n);
    return n;
}

static size_t discard_data(netsrv_conn *c, const void *data, size_t n) {
    (void)data;
    sleep_ms(options_of(c)->delay_ms);
    return n;
}

/* How much to send at once without a look at the result: what fits between the high mark, which
 * says stop, and the end of the queue, which ends the connection. */
static size_t piece_max(netsrv_conn *c) {
    const netsrv_config *config = netsrv_get_config(netsrv_get_server(c));
    const size_t room = config->queue_max_bytes - config->high_mark_bytes;
    return room > 0 && room < sizeof send_letters ? room : sizeof send_letters;
}

/* Until the high mark, and then again from on_drain; the place in the round is the user pointer. */
static void chargen_more(netsrv_conn *c) {
    const char *round = chargen_round[0];
    const size_t most = piece_max(c);
    uintptr_t at = (uintptr_t)netsrv_get_data(c);
    netsrv_result result = NETSRV_OK;
    while (result == NETSRV_OK) {
        const size_t left = sizeof chargen_round - at;
        const size_t n = left < most ? left : most;
        result = netsrv_send(c, round + at, n);
        at = (at + n) % sizeof chargen_round;
    }
    netsrv_set_data(c, (void *)at);
}

static void chargen_open(netsrv_conn *c) {
    greet(c);
    sleep_ms(options_of(c)->delay_ms);
    chargen_more(c);
}

static void daytime_open(netsrv_conn *c) {
    char text[100];
    struct tm tm;
    greet(c);
    sleep_ms(options_of(c)->delay_ms);
    time_t now = time(NULL);
    localtime_r(&now, &tm);
    netsrv_send(c, text, strftime(text, sizeof text, "%A, %B %d, %Y %H:%M:%S-%Z\r\n", &tm));
    netsrv_close(c);
}

/* ---- commands of mode line ------------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static void reply(netsrv_conn *c, const char *format, ...) {
    char text[SUMMARY_MAX + 8];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    netsrv_send(c, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

/* What /send still owes, with its newline, is kept in the user pointer: nothing to allocate and
 * nothing to free. Reading pauses meanwhile, so that later answers stay behind this one. */
static void send_more(netsrv_conn *c) {
    const size_t most = piece_max(c);
    uintptr_t owed = (uintptr_t)netsrv_get_data(c);
    netsrv_result result = NETSRV_OK;
    if (owed == 0) {
        return;
    }
    while (owed > 0 && result == NETSRV_OK) {
        const size_t letters = owed - 1 < most ? owed - 1 : most;
        result = letters > 0 ? netsrv_send(c, send_letters, letters) : netsrv_send(c, "\n", 1);
        owed -= letters > 0 ? letters : 1;
    }
    netsrv_set_data(c, (void *)owed);
    if (owed > 0) {
        netsrv_pause(c);
    } else {
        netsrv_resume(c);
    }
}

typedef enum line_command {
    SLEEP, OFFLOAD, WORKER, ID, PEER, CLOSE, ABORT, SEND, STATS, QUIT, UNKNOWN
} line_command;

static const struct {
    const char *name;
    uint64_t max; /* of its number; 0: it takes none */
} line_commands[] = {
    [SLEEP] = {"/sleep", 3600000}, [OFFLOAD] = {"/offload", 3600000}, [WORKER] = {"/worker", 0},
    [ID] = {"/id", 0},             [PEER] = {"/peer", 0},             [CLOSE] = {"/close", 0},
    [ABORT] = {"/abort", 0},       [SEND] = {"/send", 4000000000},    [STATS] = {"/stats", 0},
    [QUIT] = {"/quit", 0},
};

/* The milliseconds are the argument itself: nothing to allocate and nothing to free. */
static void offload_work(void *arg) {
    sleep_ms((uintptr_t)arg);
}

static void offload_done(netsrv_conn *c, void *arg, netsrv_result result) {
    (void)arg;
    if (result == NETSRV_OK) {
        reply(c, "ok\n");
    }
}

static void offload(netsrv_conn *c, uint64_t ms) {
    void *arg = (void *)(uintptr_t)ms;
    const netsrv_result result = netsrv_offload(c, offload_work, offload_done, arg, 0, NULL);
    if (result != NETSRV_OK) {
        reply(c, "error: /offload: %s\n", netsrv_result_text((int)result));
    }
}

static void line_command_run(netsrv_conn *c, line_command command, uint64_t number) {
    char text[SUMMARY_MAX];
    switch (command) {
    case SLEEP:
        sleep_ms(number);
        reply(c, "ok\n");
        break;
    case OFFLOAD:
        offload(c, number);
        break;
    case WORKER:
        reply(c, "%u\n", netsrv_get_worker(c));
        break;
    case ID:
        reply(c, "%" PRIu64 "\n", netsrv_get_id(c));
        break;
    case PEER:
        reply(c, "%s\n", netsrv_peer_text(c, text, sizeof text));
        break;
    case CLOSE:
        netsrv_close(c);
        break;
    case ABORT:
        netsrv_abort(c);
        break;
    case SEND:
        netsrv_set_data(c, (void *)(uintptr_t)(number + 1));
        send_more(c);
        break;
    case STATS:
        counters_summary(netsrv_get_server(c), text);
        reply(c, options_of(c)->json ? "{%s}\n" : "%s\n", text);
        break;
    case QUIT:
        netsrv_stop(netsrv_get_server(c), options_of(c)->grace_ms);
        break;
    case UNKNOWN:
        reply(c, "error: unknown command; known are /sleep MS, /offload MS, /worker, /id, "
                 "/peer, /close, /abort, /send N, /stats, /quit\n");
        break;
    }
}

/* `line` is a string that begins with a slash. */
static void obey(netsrv_conn *c, char *line) {
    char *argument = strchr(line, ' ');
    line_command i = SLEEP;
    uint64_t number = 0;
    if (argument != NULL) {
        *argument++ = '\0';
    }
    while (i < UNKNOWN && strcmp(line, line_commands[i].name) != 0) {
        i++;
    }
    uint64_t max = i == UNKNOWN ? 0 : line_commands[i].max;
    if (max > 0 && (argument == NULL || !parse_number(argument, false, 0, max, &number))) {
        reply(c, "error: %s needs a number from 0 to %" PRIu64 "\n", line, max);
    } else if (max == 0 && argument != NULL && i != UNKNOWN) {
        reply(c, "error: %s takes no argument\n", line);
    } else {
        line_command_run(c, i, number);
    }
}

static void line_frame(netsrv_conn *c, const void *data, size_t n) {
    const command_line *o = options_of(c);
    const char *line = data;
    char text[64];
    size_t length = n;
    sleep_ms(o->delay_ms);
    if (!o->commands || n == 0 || line[0] != '/') {
        netsrv_send(c, data, n);
        return;
    }
    length -= line[length - 1] == '\n';
    length -= line[length - 1] == '\r';
    if (length >= sizeof text || memchr(line, '\0', length) != NULL) {
        length = 1; /* too long for any command, or not text: "/" is unknown as well */
    }
    memcpy(text, line, length);
    text[length] = '\0';
    obey(c, text);
}

/* ---- the table ------------------------------------------------------------------------------- */

static const mode modes[] = {
    {"echo", greet, echo_data, NULL, NULL},
    {"line", greet, NULL, line_frame, send_more},
    {"discard", greet, discard_data, NULL, NULL},
    {"chargen", chargen_open, discard_data, NULL, chargen_more},
    {"daytime", daytime_open, discard_data, NULL, NULL},
};

static const mode *mode_by_name(const char *name) {
    for (size_t i = 0; i < COUNT_OF(modes); i++) {
        if (strcmp(modes[i].name, name) == 0) {
            return &modes[i];
        }
    }
    return NULL;
}
