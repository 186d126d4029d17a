/* check.h: assertions that print both values, named cases that end with leak checks, deadlines.
 *
 *     int main(int argc, char **argv) {
 *         check_begin(argc, argv);
 *         CASE("two and two", adds());
 *         return check_end();
 *     }
 *
 * A case is skipped unless its name contains the first argument. After a case the process must have
 * as many descriptors and threads as before, and check_alloc must have got everything back.
 * CHECK_SCALE=4 in the environment multiplies every deadline. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define CHECK_SANITIZER_SCALE 6
#elif defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define CHECK_SANITIZER_SCALE 3
#else
#define CHECK_SANITIZER_SCALE 1
#endif

#define CHECK_CASE_SECONDS 60

static struct {
    const char *case_name;
    const char *variant; /* printed before the case's name: a backend */
    const char *filter;
    unsigned scale;
    unsigned cases;
    atomic_ulong checks;
    atomic_ulong failures;
    int fds_before;
    int threads_before;
    uint64_t began_ms;
} check_state = { .case_name = "(no case)", .variant = "", .scale = 1 };

/* ---- time ------------------------------------------------------------------------------------ */

static inline uint64_t check_clock_us(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static inline uint64_t check_now_ms(void) {
    return check_clock_us(CLOCK_MONOTONIC) / 1000u;
}

/* Processor time of the whole process. */
static inline uint64_t check_cpu_us(void) {
    return check_clock_us(CLOCK_PROCESS_CPUTIME_ID);
}

static inline uint64_t check_scaled(uint64_t ms) {
    return ms * check_state.scale;
}

static inline void check_nap(void) {
    const struct timespec t = { 0, 200000 };
    nanosleep(&t, NULL);
}

/* Processor time of the process while `ms` go by, in percent of one processor. */
static inline uint64_t check_cpu_percent(int ms) {
    const uint64_t cpu = check_cpu_us();
    const uint64_t began = check_clock_us(CLOCK_MONOTONIC);
    poll(NULL, 0, ms);
    return (check_cpu_us() - cpu) * 100 / (check_clock_us(CLOCK_MONOTONIC) - began + 1);
}

/* ---- assertions ------------------------------------------------------------------------------ */

static inline bool check_record(bool ok) {
    atomic_fetch_add_explicit(&check_state.checks, 1, memory_order_relaxed);
    if (!ok) {
        atomic_fetch_add_explicit(&check_state.failures, 1, memory_order_relaxed);
    }
    return ok;
}

static inline bool check_true(bool ok, const char *text, const char *file, int line) {
    if (!check_record(ok)) {
        fprintf(stderr, "%s:%d: [%s %s] not true: %s\n", file, line, check_state.variant,
                check_state.case_name, text);
    }
    return ok;
}

static inline bool check_compare(long long a, const char *op, long long b) {
    switch (op[0]) {
    case '=': return a == b;
    case '!': return a != b;
    case '<': return a <= b;
    default: return a >= b;
    }
}

static inline bool check_number(long long a, const char *op, long long b, const char *text_a,
                                const char *text_b, const char *file, int line) {
    const bool ok = check_record(check_compare(a, op, b));
    if (!ok) {
        fprintf(stderr, "%s:%d: [%s %s] expected %s %s %s, but %lld is not %s %lld\n", file, line,
                check_state.variant, check_state.case_name, text_a, op, text_b, a, op, b);
    }
    return ok;
}

static inline bool check_text(const char *a, const char *b, bool part, const char *text_a,
                              const char *file, int line) {
    const bool there = a != NULL && b != NULL;
    const bool ok = there && (part ? strstr(a, b) != NULL : strcmp(a, b) == 0);
    if (!check_record(ok)) {
        fprintf(stderr, "%s:%d: [%s %s] expected %s to %s \"%s\", but it is \"%s\"\n", file, line,
                check_state.variant, check_state.case_name, text_a, part ? "contain" : "be",
                b ? b : "(null)", a ? a : "(null)");
    }
    return ok;
}

static inline bool check_bytes(const void *a, size_t na, const void *b, size_t nb,
                               const char *text_a, const char *file, int line) {
    const unsigned char *x = a;
    const unsigned char *y = b;
    const size_t n = na < nb ? na : nb;
    size_t at = 0;
    while (at < n && x[at] == y[at]) {
        at++;
    }
    const bool ok = na == nb && at == n;
    if (!check_record(ok)) {
        fprintf(stderr, "%s:%d: [%s %s] %s: %zu bytes instead of %zu, first difference at %zu\n",
                file, line, check_state.variant, check_state.case_name, text_a, na, nb, at);
    }
    return ok;
}

#define CHECK(cond) check_true((cond), #cond, __FILE__, __LINE__)
#define CHECK_FAIL(text) check_true(false, (text), __FILE__, __LINE__)
#define CHECK_NUMBER(a, op, b, ta, tb) \
    check_number((long long)(a), op, (long long)(b), ta, tb, __FILE__, __LINE__)
#define CHECK_EQ(a, b) CHECK_NUMBER(a, "==", b, #a, #b)
#define CHECK_NE(a, b) CHECK_NUMBER(a, "!=", b, #a, #b)
#define CHECK_LE(a, b) CHECK_NUMBER(a, "<=", b, #a, #b)
#define CHECK_GE(a, b) CHECK_NUMBER(a, ">=", b, #a, #b)
#define CHECK_STR(a, b) check_text((a), (b), false, #a, __FILE__, __LINE__)
#define CHECK_HAS(a, b) check_text((a), (b), true, #a, __FILE__, __LINE__)
#define CHECK_MEM(a, na, b, nb) check_bytes((a), (na), (b), (nb), #a, __FILE__, __LINE__)

/* Evaluates `cond` until it holds or `ms` scaled milliseconds are over. */
#define WAIT_FOR(ms, cond)                                                                         \
    do {                                                                                           \
        const uint64_t check_end_ms = check_now_ms() + check_scaled(ms);                           \
        while (!(cond) && check_now_ms() < check_end_ms) {                                         \
            check_nap();                                                                           \
        }                                                                                          \
    } while (0)

#define CHECK_WITHIN(ms, cond)                                                                     \
    do {                                                                                           \
        WAIT_FOR(ms, cond);                                                                        \
        check_true((cond), #cond " within " #ms " ms", __FILE__, __LINE__);                        \
    } while (0)

/* What the rest of the program stands on: without it there is no point in going on. */
#define REQUIRE(cond)                                                                              \
    do {                                                                                           \
        if (!CHECK(cond)) {                                                                        \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* ---- what a process holds -------------------------------------------------------------------- */

static inline int check_count_fds_by_scan(void) {
    int count = 0;
    for (int fd = 0; fd < 65536; fd++) {
        count += fcntl(fd, F_GETFD) != -1;
    }
    return count;
}

static inline int check_count_fds(void) {
    DIR *dir = opendir("/proc/self/fd");
    if (dir == NULL) {
        return check_count_fds_by_scan();
    }
    int count = 0;
    for (struct dirent *e = readdir(dir); e != NULL; e = readdir(dir)) {
        count += e->d_name[0] != '.';
    }
    closedir(dir);
    return count - 1; /* the directory itself */
}

/* Threads of this process, or -1 where the system does not tell. */
static inline int check_count_threads(void) {
    FILE *f = fopen("/proc/self/status", "r");
    if (f == NULL) {
        return -1;
    }
    char line[256];
    int count = -1;
    while (count < 0 && fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, "Threads:", 8) == 0) {
            count = (int)strtol(line + 8, NULL, 10);
        }
    }
    fclose(f);
    return count;
}

/* ---- an allocator that knows what is out ----------------------------------------------------- */

#define CHECK_ALLOC_MAGIC 0x6e65747372766d65u

typedef struct check_block {
    _Alignas(16) uint64_t magic; /* what follows is aligned as malloc aligns it */
    size_t bytes;
} check_block;

static struct {
    atomic_long blocks;
    atomic_long bytes;
    atomic_long peak_bytes;
    atomic_ulong calls;
} check_memory;

static inline void check_alloc_count(long blocks, long bytes) {
    atomic_fetch_add_explicit(&check_memory.blocks, blocks, memory_order_relaxed);
    const long now =
        atomic_fetch_add_explicit(&check_memory.bytes, bytes, memory_order_relaxed) + bytes;
    long peak = atomic_load_explicit(&check_memory.peak_bytes, memory_order_relaxed);
    while (now > peak &&
           !atomic_compare_exchange_weak_explicit(&check_memory.peak_bytes, &peak, now,
                                                  memory_order_relaxed, memory_order_relaxed)) {
    }
}

static inline void *check_alloc_new(size_t bytes) {
    check_block *b = malloc(sizeof *b + bytes);
    if (b == NULL) {
        return NULL;
    }
    b->magic = CHECK_ALLOC_MAGIC;
    b->bytes = bytes;
    memset(b + 1, 0xA5, bytes); /* so that nobody counts on zeros */
    check_alloc_count(1, (long)bytes);
    return b + 1;
}

static inline void check_alloc_free(void *ptr, size_t bytes) {
    check_block *b = (check_block *)ptr - 1;
    CHECK(b->magic == CHECK_ALLOC_MAGIC);
    CHECK_EQ(b->bytes, bytes);
    check_alloc_count(-1, -(long)b->bytes);
    memset(b, 0xDD, sizeof *b + b->bytes);
    free(b);
}

/* For netsrv_config.alloc. A resize always moves, and the old size must be the right one. */
static inline void *check_alloc(void *user, void *ptr, size_t old_bytes, size_t new_bytes) {
    (void)user;
    atomic_fetch_add_explicit(&check_memory.calls, 1, memory_order_relaxed);
    if (new_bytes == 0) {
        if (ptr != NULL) {
            check_alloc_free(ptr, old_bytes);
        }
        return NULL;
    }
    void *fresh = check_alloc_new(new_bytes);
    if (fresh == NULL || ptr == NULL) {
        return fresh;
    }
    memcpy(fresh, ptr, old_bytes < new_bytes ? old_bytes : new_bytes);
    check_alloc_free(ptr, old_bytes);
    return fresh;
}

static inline long check_alloc_blocks(void) {
    return atomic_load(&check_memory.blocks);
}

static inline long check_alloc_bytes(void) {
    return atomic_load(&check_memory.bytes);
}

/* ---- cases ----------------------------------------------------------------------------------- */

static inline void check_on_alarm(int sig) {
    static const char text[] = "the case does not end: ";
    (void)sig;
    ssize_t n = write(2, text, sizeof text - 1);
    n = write(2, check_state.case_name, strlen(check_state.case_name));
    n = write(2, "\n", 1);
    (void)n;
    _exit(124);
}

static inline void *check_no_work(void *arg) {
    return arg;
}

/* A sanitizer may start a thread of its own with the first thread; it shall not count as a leak. */
static inline void check_start_runtime(void) {
    pthread_t t;
    if (pthread_create(&t, NULL, check_no_work, NULL) == 0) {
        pthread_join(t, NULL);
    }
}

static inline void check_begin(int argc, char **argv) {
    const char *scale = getenv("CHECK_SCALE");
    const long factor = scale != NULL ? strtol(scale, NULL, 10) : 1;
    check_state.filter = argc > 1 ? argv[1] : NULL;
    check_state.scale = CHECK_SANITIZER_SCALE * (unsigned)(factor < 1 ? 1 : factor);
    signal(SIGALRM, check_on_alarm);
    check_start_runtime();
    setvbuf(stdout, NULL, _IOLBF, 0);
}

static inline bool check_case_begin(const char *name) {
    if (check_state.filter != NULL && strstr(name, check_state.filter) == NULL) {
        return false;
    }
    check_state.case_name = name;
    check_state.cases++;
    check_state.fds_before = check_count_fds();
    check_state.threads_before = check_count_threads();
    check_state.began_ms = check_now_ms();
    printf("  %s%s%s\n", check_state.variant, check_state.variant[0] != '\0' ? ": " : "", name);
    alarm((unsigned)check_scaled(CHECK_CASE_SECONDS));
    return true;
}

static inline void check_case_end(void) {
    /* A joined thread may still be on its way out of the kernel's list. */
    WAIT_FOR(10000, check_count_threads() <= check_state.threads_before);
    CHECK(check_count_threads() <= check_state.threads_before);
#ifdef NETSRV_LIBKQUEUE
    /* Its thread closes the descriptors of a closed queue when it gets to it. */
    WAIT_FOR(10000, check_count_fds() == check_state.fds_before);
#endif
    CHECK_EQ(check_count_fds(), check_state.fds_before);
    CHECK_EQ(check_alloc_blocks(), 0);
    CHECK_EQ(check_alloc_bytes(), 0);
    alarm(0);
    if (check_now_ms() - check_state.began_ms >= 1000) {
        printf("    %llu ms\n", (unsigned long long)(check_now_ms() - check_state.began_ms));
    }
    atomic_store(&check_memory.blocks, 0);
    atomic_store(&check_memory.bytes, 0);
    atomic_store(&check_memory.peak_bytes, 0);
}

#define CASE(name, call)                                                                           \
    do {                                                                                           \
        if (check_case_begin(name)) {                                                              \
            call;                                                                                  \
            check_case_end();                                                                      \
        }                                                                                          \
    } while (0)

#define SKIP(why) printf("    skipped: %s\n", (why))

static inline int check_end(void) {
    const unsigned long failures = atomic_load(&check_state.failures);
    if (failures > 0) {
        printf("%lu of them failed\n", failures);
    }
    printf("%lu checks\n", atomic_load(&check_state.checks));
    return failures > 0 || check_state.cases == 0;
}

#endif /* CHECK_H */
