/* netsrv: the command. It parses options, fills a netsrv_config, runs the server, and reports.
 * All networking is in netsrv.h. */

#define NETSRV_IMPLEMENTATION
#include "../netsrv.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_SIGNAL = 128 };

/* Everything that the command line says. Numbers and flags are uint32_t so that the option table
 * can store them in one way. */
typedef struct command_line {
    netsrv_config config;
    unsigned listeners;     /* how many --listen */
    uint32_t commands;      /* flag: line mode obeys commands */
    uint32_t delay_ms;
    uint32_t grace_ms;
    uint32_t stats_s;       /* 0: no periodic line */
    uint32_t json;          /* flag */
    uint32_t log_level;     /* netsrv_log_level: the most talkative that is printed */
    uint32_t ready_fd;      /* 0: none */
    uint32_t version;       /* flag */
    uint32_t help;          /* flag */
    const char *topic;      /* of --help, or NULL */
    const char *banner;     /* or NULL */
    const char *port_file;  /* or NULL */
    const char *control;    /* path of a FIFO, or NULL */
    uint64_t started_ms;
} command_line;

/* ---- util ------------------------------------------------------------------------------------ */

static uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* One line on stderr, whatever bytes the arguments hold. */
__attribute__((format(printf, 1, 2))) static void complain(const char *format, ...) {
    char text[640];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *p = text; *p != '\0'; p++) {
        *p = (unsigned char)*p < ' ' || *p == 127 ? '?' : *p;
    }
    fprintf(stderr, "netsrv: %s\n", text);
}

/* The same for wrong usage, and the end. */
#define REFUSE(...) (complain(__VA_ARGS__), exit(EXIT_USAGE))

/* Decimal digits only, so that no sign, blank or rest slips through; k, m, g where `bytes`. */
static bool parse_number(const char *text, bool bytes, uint64_t min, uint64_t max,
                         uint64_t *value) {
    static const char suffixes[] = "kmg";
    uint64_t v = 0;
    const char *p = text;
    for (; *p >= '0' && *p <= '9'; p++) {
        unsigned digit = (unsigned)(*p - '0');
        if (v > (UINT64_MAX - digit) / 10) {
            return false;
        }
        v = v * 10 + digit;
    }
    if (p == text) {
        return false;
    }
    const char *suffix = bytes && *p != '\0' ? strchr(suffixes, *p | 0x20) : NULL;
    if (suffix != NULL) {
        unsigned shift = 10 * (unsigned)(suffix - suffixes + 1);
        if (v > UINT64_MAX >> shift) {
            return false;
        }
        v <<= shift;
        p++;
    }
    *value = v;
    return *p == '\0' && v >= min && v <= max;
}

/* ---- counters -------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t offset;
} counters[] = {
    {"live", offsetof(netsrv_stats, live)},
#define NETSRV_X(name, text) {#name, offsetof(netsrv_stats, name)},
    NETSRV_STATS(NETSRV_X)
#undef NETSRV_X
    {"travelling", offsetof(netsrv_stats, travelling)},
    {"queued_bytes", offsetof(netsrv_stats, queued_bytes)},
    {"jobs_waiting", offsetof(netsrv_stats, jobs_waiting)},
};

/* Bytes that hold every counter with its name and 20 digits, and the summary of a server. */
enum { COUNTERS_MAX = 1600, SUMMARY_MAX = COUNTERS_MAX + 100 };

/* JSON has all counters; for people those that are zero are left out, except the first. */
static void counters_format(const netsrv_stats *stats, bool json, char text[COUNTERS_MAX]) {
    size_t used = 0;
    for (size_t i = 0; i < COUNT_OF(counters); i++) {
        uint64_t value;
        memcpy(&value, (const char *)stats + counters[i].offset, sizeof value);
        if (!json && value == 0 && i > 0) {
            continue;
        }
        int n = snprintf(text + used, COUNTERS_MAX - used, json ? "%s\"%s\":%" PRIu64
                                                                : "%s%s=%" PRIu64,
                         i == 0 ? "" : json ? "," : " ", counters[i].name, value);
        used += n > 0 && (size_t)n < COUNTERS_MAX - used ? (size_t)n : 0;
    }
}

/* The sums over all threads, without braces and newline. */
static void counters_summary(netsrv_server *s, char text[SUMMARY_MAX]) {
    netsrv_stats total;
    char sums[COUNTERS_MAX];
    const command_line *o = netsrv_user(s);
    netsrv_get_total(s, &total);
    counters_format(&total, o->json, sums);
    snprintf(text, SUMMARY_MAX,
             o->json ? "\"event\":\"stats\",\"uptime_ms\":%" PRIu64 ",%s,\"imbalance\":%u"
                     : "stats: uptime_ms=%" PRIu64 " %s imbalance=%u%%",
             now_ms() - o->started_ms, sums, netsrv_imbalance(s));
}

/* One line or JSON object for each thread from `first` to before `end`. */
static void report_threads(netsrv_server *s, FILE *to, const char *what, unsigned first,
                           unsigned end) {
    const command_line *o = netsrv_user(s);
    char text[COUNTERS_MAX];
    netsrv_stats stats;
    for (unsigned i = first; i < end && netsrv_get_stats(s, i, &stats) == NETSRV_OK; i++) {
        counters_format(&stats, o->json, text);
        if (o->json) {
            fprintf(to, "%s{\"%s\":%u,%s}", i == first ? "" : ",", what, i - first, text);
        } else {
            fprintf(to, "netsrv: %s %u: %s\n", what, i - first, text);
        }
    }
}

static void report_to(netsrv_server *s, FILE *to, bool each_thread) {
    const command_line *o = netsrv_user(s);
    unsigned workers = netsrv_get_config(s)->workers;
    unsigned threads = each_thread || o->json ? UINT_MAX : 0;
    char text[SUMMARY_MAX];
    counters_summary(s, text);
    fprintf(to, o->json ? "{%s,\"workers\":[" : "netsrv: %s\n", text);
    report_threads(s, to, "worker", 0, threads < workers ? threads : workers);
    fputs(o->json ? "],\"acceptors\":[" : "", to);
    report_threads(s, to, "acceptor", workers, threads);
    fputs(o->json ? "]}\n" : "", to);
}

/* The lock keeps log lines of other threads out of a line that is printed in pieces. */
static void report(netsrv_server *s, bool each_thread) {
    flockfile(stderr);
    report_to(s, stderr, each_thread);
    funlockfile(stderr);
}

/* ---- files ----------------------------------------------------------------------------------- */

static bool file_write(const char *path, netsrv_server *s, void (*print)(netsrv_server *, FILE *)) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w");
    if (file == NULL) {
        return false;
    }
    print(s, file);
    return fclose(file) == 0;
}

/* Whoever waits for the file never sees half of it: it is renamed into its place. 0 or an errno. */
static int file_replace(const char *path, netsrv_server *s,
                        void (*print)(netsrv_server *, FILE *)) {
    struct stat st;
    char temporary[4096];
    int n = snprintf(temporary, sizeof temporary, "%s.%ld.tmp", path, (long)getpid());
    if (n >= (int)sizeof temporary) {
        return ENAMETOOLONG;
    }
    if (lstat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        return EEXIST; /* renaming over a device or a directory helps nobody */
    }
    unlink(temporary);
    if (file_write(temporary, s, print) && rename(temporary, path) == 0) {
        return 0;
    }
    int saved_errno = errno;
    unlink(temporary);
    return saved_errno;
}

static atomic_uint log_level; /* at first as the options say */

#include "services.h"
#include "options.h"
#include "control.h"

/* ---- signals --------------------------------------------------------------------------------- */

static volatile sig_atomic_t stop_signals;   /* how many SIGINT and SIGTERM came */
static volatile sig_atomic_t stop_signal;    /* the last of them */
static volatile sig_atomic_t report_signals; /* 1: SIGUSR1 came */
static atomic_uint workers_ended;
static atomic_bool running;
static int wake_pipe[2] = {-1, -1}; /* carries no meaning, it only ends the poll in wait_for_news */

static void wake_main(void) {
    ssize_t ignored = write(wake_pipe[1], "", 1);
    (void)ignored;
}

static void on_signal(int number) {
    int saved_errno = errno;
    if (number == SIGUSR1) {
        report_signals = 1;
    } else {
        stop_signals = stop_signals < 2 ? stop_signals + 1 : 2;
        stop_signal = number;
    }
    wake_main();
    errno = saved_errno;
}

static void on_worker_stop(netsrv_server *s, unsigned worker) {
    (void)s;
    (void)worker;
    atomic_fetch_add(&workers_ended, 1);
    wake_main();
}

/* Before the server runs, errors are told by complain_error and addresses by announce. */
static void on_log(void *user, netsrv_log_level level, const char *text) {
    (void)user;
    bool heard = level == NETSRV_LOG_WARN || atomic_load(&running);
    if (heard && (unsigned)level <= atomic_load(&log_level)) {
        fprintf(stderr, "netsrv: %s: %s\n", log_levels[level], text);
    }
}

/* SIGPIPE would end the server when nobody reads stderr any more. */
static void signals_install(void) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGUSR1};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigset_t set;
    sigemptyset(&set);
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        sigaddset(&set, numbers[i]);
        sigaction(numbers[i], &action, NULL);
    }
    signal(SIGPIPE, SIG_IGN);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static bool wake_pipe_open(void) {
    if (pipe(wake_pipe) != 0) {
        complain("start: pipe: %s; close descriptors or raise the limit", strerror(errno));
        return false;
    }
    for (int i = 0; i < 2; i++) {
        fcntl(wake_pipe[i], F_SETFD, FD_CLOEXEC);
        fcntl(wake_pipe[i], F_SETFL, O_NONBLOCK);
    }
    return true;
}

/* A closed descriptor 0, 1 or 2 would be taken by a socket, and messages would go to a client. */
static void standard_descriptors_fill(void) {
    int fd;
    do {
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    close(fd);
}

static void descriptor_limit_raise(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void announce(netsrv_server *s) {
    const command_line *o = netsrv_user(s);
    const netsrv_config *config = netsrv_get_config(s);
    char address[NETSRV_ADDRESS_MAX];
    netsrv_choice choice;
    for (unsigned i = 0; o->log_level > NETSRV_LOG_ERROR &&
                         netsrv_get_address(s, i, address, sizeof address) == NETSRV_OK; i++) {
        fprintf(stderr, "netsrv: listening on %s (backend=%s, accept=%s, place=%s, workers=%u)\n",
                address, netsrv_backend_name((int)config->backend),
                netsrv_accept_name((int)config->accept), netsrv_place_name((int)config->place),
                config->workers);
    }
    for (unsigned i = 0; o->log_level >= NETSRV_LOG_INFO && netsrv_get_choice(s, i, &choice); i++) {
        fprintf(stderr, "netsrv: %s: asked %s, taken %s: %s\n", choice.field, choice.asked,
                choice.taken, choice.why);
    }
}

static void ports_print(netsrv_server *s, FILE *file) {
    char address[NETSRV_ADDRESS_MAX];
    for (unsigned i = 0; netsrv_get_address(s, i, address, sizeof address) == NETSRV_OK; i++) {
        fprintf(file, "%u\n", (unsigned)netsrv_get_port(s, i));
    }
}

static bool port_file_write(netsrv_server *s) {
    const command_line *o = netsrv_user(s);
    const int error = file_replace(o->port_file, s, ports_print);
    if (error != 0) {
        complain("--port-file: '%.400s': %s; give a path where a file can be written",
                 o->port_file, strerror(error));
    }
    return error == 0;
}

static bool ready_write(netsrv_server *s) {
    const command_line *o = netsrv_user(s);
    int fd = (int)o->ready_fd;
    char address[NETSRV_ADDRESS_MAX];
    char text[NETSRV_LISTEN_MAX * NETSRV_ADDRESS_MAX + 8] = "ready";
    for (unsigned i = 0; netsrv_get_address(s, i, address, sizeof address) == NETSRV_OK; i++) {
        strcat(strcat(text, " "), address);
    }
    strcat(text, "\n");
    bool ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (!ok) {
        complain("--ready-fd: '%d': %s; give a descriptor that can be written", fd,
                 strerror(errno));
    }
    close(fd);
    return ok;
}

/* Sleeps until a signal, the end of a worker, or `deadline` (0: none). */
static void wait_for_news(uint64_t deadline) {
    char bytes[64];
    struct pollfd p = {.fd = wake_pipe[0], .events = POLLIN};
    uint64_t now = now_ms();
    uint64_t left = deadline > now ? deadline - now : 0;
    poll(&p, 1, deadline == 0 ? -1 : left < INT_MAX ? (int)left : INT_MAX);
    while (read(wake_pipe[0], bytes, sizeof bytes) == (ssize_t)sizeof bytes) {
    }
}

/* The second signal does not wait for a handler that hangs. */
static int end_at_once(netsrv_server *s) {
    netsrv_stop(s, 0);
    if (netsrv_wait_for(s, 1000) == NETSRV_TIMED_OUT) {
        _exit(EXIT_SIGNAL + (int)stop_signal);
    }
    return EXIT_SIGNAL + (int)stop_signal;
}

/* Until all workers have ended: by a signal, or by /quit. What came before the first wait, even
 * before there was a pipe, is seen as well. */
static int serve(netsrv_server *s) {
    const command_line *o = netsrv_user(s);
    unsigned workers = netsrv_get_config(s)->workers;
    uint64_t interval = (uint64_t)o->stats_s * 1000;
    uint64_t next_report = interval == 0 ? 0 : now_ms() + interval;
    while (atomic_load(&workers_ended) < workers) {
        if (stop_signals > 1) {
            return end_at_once(s);
        }
        if (stop_signals == 1) {
            netsrv_stop(s, o->grace_ms);
        }
        if (report_signals) {
            report_signals = 0;
            report(s, true);
        }
        if (interval != 0 && now_ms() >= next_report) {
            next_report = now_ms() + interval;
            report(s, false);
        }
        wait_for_news(next_report);
    }
    netsrv_wait(s);
    if (interval != 0) {
        report(s, false);
    }
    return EXIT_OK;
}

static int start_and_serve(netsrv_server *s) {
    command_line *o = netsrv_user(s);
    netsrv_error error;
    if (!wake_pipe_open()) {
        return EXIT_FAILED;
    }
    if (o->control != NULL && !control_open(o->control)) {
        return EXIT_FAILED;
    }
    o->started_ms = now_ms();
    if (netsrv_start(s, &error) != NETSRV_OK) {
        complain_error(&error);
        return EXIT_FAILED;
    }
    atomic_store(&running, true);
    announce(s);
    if (o->port_file != NULL && !port_file_write(s)) {
        return EXIT_FAILED;
    }
    if (o->ready_fd != 0 && !ready_write(s)) {
        return EXIT_FAILED;
    }
    return serve(s);
}

static int run(command_line *o, const mode *m) {
    netsrv_server *s;
    netsrv_error error;
    netsrv_config *config = &o->config;
    atomic_store(&log_level, o->log_level);
    config->user = o;
    config->on_log = on_log;
    config->on_worker_start = o->control != NULL ? control_start : NULL;
    config->on_worker_stop = on_worker_stop;
    config->on_open = m->on_open;
    config->on_data = m->on_data;
    config->on_frame = m->on_frame;
    config->on_drain = m->on_drain;
    config->framing = m->on_frame != NULL ? NETSRV_FRAMING_LINE : NETSRV_FRAMING_NONE;
    config->keep_line_end = m->on_frame != NULL ? NETSRV_ENABLE : NETSRV_DEFAULT;
    if (netsrv_create(&s, config, &error) != NETSRV_OK) {
        complain_error(&error);
        bool usage = error.result == NETSRV_BAD_CONFIG || error.result == NETSRV_BAD_ADDRESS;
        return usage ? EXIT_USAGE : EXIT_FAILED;
    }
    int status = start_and_serve(s);
    netsrv_destroy(s);
    control_close(o->control);
    return control.failed ? EXIT_FAILED : status;
}

int main(int argc, char **argv) {
    static command_line o = {.grace_ms = 5000, .log_level = NETSRV_LOG_WARN};
    standard_descriptors_fill();
    if (argc < 2) {
        fprintf(stderr, "usage: netsrv echo|line|discard|chargen|daytime [options]; "
                        "see 'netsrv --help'\n");
        return EXIT_USAGE;
    }
    parse_options(&o, argc, argv);
    if (o.help) {
        return help_print(o.topic == NULL && optind < argc ? argv[argc - 1] : o.topic);
    }
    if (o.version) {
        return printf("netsrv %s\n", NETSRV_VERSION) < 0 || fflush(stdout) != 0;
    }
    const mode *m = check_options(&o, argc - optind, argv + optind);
    descriptor_limit_raise();
    signals_install();
    services_prepare();
    return run(&o, m);
}
