/* The control channel: commands, one a line, from a FIFO on the loop of worker 0. Included once, by
 * netsrv.c, after the options. */

enum { CONTROL_LINE_MAX = 1024 };

static const char *const log_levels[] = {"error", "warning", "info", "debug"};

/* Written by the main thread before the start and after the end, in between by worker 0 alone. */
static struct {
    int fd;
    int writer; /* kept open, so that the last writer's leaving is no end */
    bool made;  /* the FIFO is ours to remove: */
    dev_t dev;
    ino_t ino;
    bool failed;   /* it could not be watched */
    bool skipping; /* the rest of a line that was too long */
    size_t used;
    char line[CONTROL_LINE_MAX];
} control = {.fd = -1, .writer = -1};

/* ---- commands -------------------------------------------------------------------------------- */

static void control_say(const char *text) {
    if (atomic_load(&log_level) > NETSRV_LOG_ERROR) {
        complain("control: %s", text);
    }
}

static void control_print_stats(netsrv_server *s, FILE *file) {
    report_to(s, file, true);
}

static void control_stats(netsrv_server *s, const char *path) {
    const int error = path == NULL ? 0 : file_replace(path, s, control_print_stats);
    if (path == NULL) {
        report(s, true);
    } else if (error == 0) {
        control_say("stats are written");
    } else {
        complain("control: stats: '%.400s': %s; give a path where a file can be written", path,
                 strerror(error));
    }
}

static void control_drain(netsrv_server *s, const char *argument) {
    (void)argument;
    control_say("drains");
    netsrv_drain(s);
}

static void control_stop(netsrv_server *s, const char *argument) {
    const command_line *o = netsrv_user(s);
    (void)argument;
    control_say("stops");
    netsrv_stop(s, o->grace_ms);
}

static void control_pause(netsrv_server *s, const char *argument) {
    (void)argument;
    netsrv_pause_accept(s);
    control_say("accepting is paused");
}

static void control_resume(netsrv_server *s, const char *argument) {
    (void)argument;
    netsrv_resume_accept(s);
    control_say("accepting is resumed");
}

static void control_log(netsrv_server *s, const char *level) {
    (void)s;
    for (unsigned i = 0; i < COUNT_OF(log_levels); i++) {
        if (strcmp(level, log_levels[i]) == 0) {
            atomic_store(&log_level, i);
            control_say("the log level is set");
            return;
        }
    }
    complain("control: log: '%.60s': not one of error, warning, info, debug", level);
}

static const struct {
    const char *name;
    void (*run)(netsrv_server *s, const char *argument);
    int arguments; /* 0: none, 1: one, -1: perhaps one */
} control_commands[] = {
    {"stats", control_stats, -1}, {"drain", control_drain, 0}, {"stop", control_stop, 0},
    {"pause", control_pause, 0},  {"resume", control_resume, 0}, {"log", control_log, 1},
};

/* `line` is a string without its end. */
static void control_obey(netsrv_server *s, char *line) {
    char *name = line + strspn(line, " \t");
    size_t length = strlen(name);
    while (length > 0 && strchr(" \t\r", name[length - 1]) != NULL) {
        name[--length] = '\0';
    }
    char *argument = strchr(name, ' ');
    if (length == 0) {
        return;
    }
    if (argument != NULL) {
        *argument++ = '\0';
        argument += strspn(argument, " \t");
    }
    for (size_t i = 0; i < COUNT_OF(control_commands); i++) {
        const int wanted = control_commands[i].arguments;
        if (strcmp(name, control_commands[i].name) == 0 &&
            (wanted < 0 || wanted == (argument != NULL))) {
            control_commands[i].run(s, argument);
            return;
        }
    }
    complain("control: '%.60s': not understood; known are stats [PATH], drain, stop, pause, "
             "resume, log LEVEL", name);
}

/* ---- the FIFO -------------------------------------------------------------------------------- */

static void control_end_line(netsrv_server *s) {
    control.line[control.used] = '\0';
    if (!control.skipping) {
        control_obey(s, control.line);
    }
    control.used = 0;
    control.skipping = false;
}

static void control_feed(netsrv_server *s, char byte) {
    if (byte == '\n') {
        control_end_line(s);
    } else if (control.used < CONTROL_LINE_MAX - 1) {
        control.line[control.used++] = byte != '\0' ? byte : '?';
    } else if (!control.skipping) {
        control.skipping = true;
        complain("control: a line longer than %d bytes; passed over", CONTROL_LINE_MAX - 1);
    }
}

/* A piece in each turn of the worker, however much there is. */
static void control_read(netsrv_server *s, unsigned worker, int fd, unsigned ready, void *arg) {
    char bytes[4096];
    (void)worker;
    (void)ready;
    (void)arg;
    const ssize_t n = read(fd, bytes, sizeof bytes);
    for (ssize_t i = 0; i < n; i++) {
        control_feed(s, bytes[i]);
    }
}

/* on_worker_start. */
static void control_start(netsrv_server *s, unsigned worker) {
    if (worker != 0) {
        return;
    }
    const netsrv_result result = netsrv_watch(s, control.fd, NETSRV_READABLE, control_read, NULL,
                                              NULL);
    if (result != NETSRV_OK) {
        complain("--control: cannot be watched: %s", netsrv_result_text((int)result));
        control.failed = true;
        netsrv_stop(s, 0);
    }
}

/* False with errno. A file that is no FIFO is left as it is. */
static bool control_open_both(const char *path) {
    struct stat st;
    control.made = mkfifo(path, 0600) == 0;
    if (!control.made && errno != EEXIST) {
        return false;
    }
    control.fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (control.fd < 0 || fstat(control.fd, &st) != 0) {
        return false;
    }
    if (!S_ISFIFO(st.st_mode)) {
        errno = EEXIST;
        return false;
    }
    control.dev = st.st_dev;
    control.ino = st.st_ino;
    control.writer = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    return control.writer >= 0;
}

static bool control_open(const char *path) {
    if (control_open_both(path)) {
        return true;
    }
    complain("--control: '%.400s': %s; give the path of a FIFO, or one where none is yet", path,
             strerror(errno));
    return false;
}

/* Also after a failure. Somebody else's FIFO of that name stays. */
static void control_close(const char *path) {
    struct stat st;
    if (control.made && lstat(path, &st) == 0 && S_ISFIFO(st.st_mode) &&
        st.st_dev == control.dev && st.st_ino == control.ino) {
        unlink(path);
    }
    if (control.fd >= 0) {
        close(control.fd);
    }
    if (control.writer >= 0) {
        close(control.writer);
    }
}
