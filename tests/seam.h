/* seam.h: netsrv.h built with a driver behind its test seam. Include it first, in one file.
 *
 * The driver can count every fallible call by name, fail the n-th of all or of one name with a
 * given errno (once, a few times, or from then on), shorten recv and send, shuffle and repeat the
 * events of a batch, hold and move the clock, and disturb the schedule. Everything random comes
 * from one seed. Its counters are relaxed atomics, so that it adds no order between threads that
 * the library lacks. */
#ifndef SEAM_H
#define SEAM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define SEAM_NAMES_MAX  64
#define SEAM_EVENT_MAX  32   /* bytes of the largest poller event */
#define SEAM_FOREVER    (-1)

/* What to do to calls; set by seam_plan before the threads that it concerns. */
typedef struct seam_plan {
    const char *name;      /* which call; NULL: any */
    unsigned long nth;     /* the first to fail, counted from 1; 0: none */
    int err;               /* what it fails with */
    long times;            /* how often that name fails from there: 1, n, or SEAM_FOREVER */
} seam_plan;

/* Decides about one call itself: 0 or an errno. */
typedef int (*seam_decider)(const char *name, unsigned long nth);

static struct {
    _Atomic(const char *) names[SEAM_NAMES_MAX];
    atomic_ulong counts[SEAM_NAMES_MAX];
    atomic_ulong total;

    atomic_ulong plan_nth;
    _Atomic(const char *) plan_name;
    atomic_int plan_err;
    atomic_long plan_left;
    atomic_ulong fired;
    _Atomic(const char *) fired_name;
    _Atomic(seam_decider) decider;

    atomic_ulong recv_clip; /* 0: off; else 1 to this many bytes */
    atomic_ulong send_clip;
    atomic_bool clip_exactly; /* always that many instead of a random number up to it */
    atomic_ulong recv_first; /* clips the next recv alone, then is 0 */
    atomic_ulong ring_size;  /* entries of a ring, of both its halves; 0: as the library has it */

    atomic_bool permute;
    atomic_bool repeat;
    _Atomic uint64_t clock_ms;
    _Atomic uint64_t held_ms; /* 0: time goes by */
    atomic_bool disturb;
    atomic_ulong points;
    _Atomic(void (*)(const char *name)) at_point;
    atomic_ulong seed;
    atomic_ulong draws;

    atomic_ulong wire; /* the order that a socket makes, where a sanitizer sees no call on it */
} seam;

#define SEAM_GET(field) atomic_load_explicit(&seam.field, memory_order_relaxed)
#define SEAM_SET(field, value) atomic_store_explicit(&seam.field, (value), memory_order_relaxed)
#define SEAM_ADD(field, n) atomic_fetch_add_explicit(&seam.field, (n), memory_order_relaxed)

/* ---- chance ---------------------------------------------------------------------------------- */

static inline uint64_t seam_mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* A number below `n`. The same seed gives the same sequence of draws over all threads. */
static inline unsigned long seam_draw(unsigned long n) {
    return (unsigned long)(seam_mix(SEAM_GET(seed) * 0x10001u + SEAM_ADD(draws, 1)) % n);
}

/* ---- counting and failing calls -------------------------------------------------------------- */

static inline int seam_index(const char *name) {
    for (int i = 0; i < SEAM_NAMES_MAX; i++) {
        const char *have = atomic_load_explicit(&seam.names[i], memory_order_relaxed);
        if (have == NULL &&
            atomic_compare_exchange_strong_explicit(&seam.names[i], &have, name,
                                                    memory_order_relaxed, memory_order_relaxed)) {
            return i;
        }
        if (have == name || strcmp(have, name) == 0) {
            return i;
        }
    }
    return SEAM_NAMES_MAX - 1;
}

static inline unsigned long seam_count(const char *name) {
    return SEAM_GET(counts[seam_index(name)]);
}

static inline int seam_fire(const char *name) {
    const char *none = NULL;
    atomic_compare_exchange_strong_explicit(&seam.fired_name, &none, name, memory_order_relaxed,
                                            memory_order_relaxed);
    SEAM_ADD(fired, 1);
    return SEAM_GET(plan_err);
}

/* Once the n-th call has failed, `plan_left` more of its name do; negative means all. */
static inline int seam_planned(const char *name, unsigned long overall, unsigned long nth) {
    const unsigned long wanted = SEAM_GET(plan_nth);
    if (wanted == 0) {
        return 0;
    }
    const char *only = SEAM_GET(plan_name);
    const char *fired = SEAM_GET(fired_name);
    if (fired == NULL) {
        const bool this_name = only != NULL && strcmp(only, name) == 0;
        const bool hit = only == NULL ? overall == wanted : this_name && nth == wanted;
        return hit ? seam_fire(name) : 0;
    }
    if (strcmp(fired, name) != 0) {
        return 0;
    }
    /* Never below 0 by two threads at once: that would mean for ever. */
    long left = SEAM_GET(plan_left);
    while (left > 0 && !atomic_compare_exchange_weak_explicit(
                           &seam.plan_left, &left, left - 1, memory_order_relaxed,
                           memory_order_relaxed)) {
    }
    return left != 0 ? seam_fire(name) : 0;
}

/* What was done before bytes left one end was done before they came to the other: ThreadSanitizer
 * knows that of recv and send, but not of completions. */
static inline void seam_cross_wire(void) {
    atomic_fetch_add_explicit(&seam.wire, 1, memory_order_acq_rel);
}

static inline bool seam_is_wire(const char *name) {
    static const char *const names[] = { "recv", "send", "accept4", "shutdown", "close" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) {
            return true;
        }
    }
    return false;
}

static inline int seam_fault(const char *name) {
    const unsigned long nth = SEAM_ADD(counts[seam_index(name)], 1) + 1;
    const unsigned long overall = SEAM_ADD(total, 1) + 1;
    if (seam_is_wire(name)) {
        seam_cross_wire();
    }
    const seam_decider decide = SEAM_GET(decider);
    return decide != NULL ? decide(name, nth) : seam_planned(name, overall, nth);
}

/* ---- shortening, shuffling, time, schedule --------------------------------------------------- */

static inline size_t seam_shorter(size_t n, unsigned long most) {
    if (most == 0 || n <= 1) {
        return n;
    }
    const size_t k = SEAM_GET(clip_exactly) ? most : 1 + seam_draw(most);
    return k < n ? k : n;
}

static inline size_t seam_clip(const char *name, size_t n) {
    if (strcmp(name, "ring") == 0) {
        return SEAM_GET(ring_size) != 0 ? SEAM_GET(ring_size) : n;
    }
    if (name[0] == 's') {
        return seam_shorter(n, SEAM_GET(send_clip));
    }
    const unsigned long first = atomic_exchange_explicit(&seam.recv_first, 0, memory_order_relaxed);
    if (first > 0) {
        return first < n ? first : n;
    }
    return seam_shorter(n, SEAM_GET(recv_clip));
}

static inline void seam_swap(unsigned char *a, unsigned char *b, size_t size) {
    unsigned char t[SEAM_EVENT_MAX];
    memcpy(t, a, size);
    memmove(a, b, size);
    memcpy(b, t, size);
}

/* An event starts with its token, whose low three bits are 0 for a connection. */
static inline bool seam_of_conn(const unsigned char *event) {
    uint64_t token;
    memcpy(&token, event, sizeof token);
    return (token & 7u) == 0;
}

/* A repeated event takes the place of another one, which a level-triggered poller reports again.
 * Only among connections: what is armed for one report is reported once by every kernel. */
static inline size_t seam_events(void *events, size_t n, size_t size) {
    unsigned char *at = events;
    if (n < 2 || size > SEAM_EVENT_MAX) {
        return n;
    }
    if (SEAM_GET(permute)) {
        for (size_t i = n - 1; i > 0; i--) {
            seam_swap(at + i * size, at + seam_draw(i + 1) * size, size);
        }
    }
    const unsigned char *again = at + seam_draw(n - 1) * size;
    if (SEAM_GET(repeat) && seam_draw(2) == 0 && seam_of_conn(again) &&
        seam_of_conn(at + (n - 1) * size)) {
        memcpy(at + (n - 1) * size, again, size);
    }
    return n;
}

static inline uint64_t seam_clock(uint64_t real_ms) {
    const uint64_t held_ms = SEAM_GET(held_ms);
    return (held_ms != 0 ? held_ms : real_ms) + SEAM_GET(clock_ms);
}

static inline void seam_point(const char *name) {
    void (*const at_point)(const char *) = SEAM_GET(at_point);
    SEAM_ADD(points, 1);
    if (at_point != NULL) {
        at_point(name);
    }
    if (!SEAM_GET(disturb)) {
        return;
    }
    const unsigned long choice = seam_draw(8);
    if (choice < 2) {
        sched_yield();
        return;
    }
    for (volatile unsigned long i = choice < 5 ? seam_draw(400) : 0; i > 0; i--) {
    }
}

/* ---- setting it up --------------------------------------------------------------------------- */

/* Everything off, all counts zero. Only while no server runs. */
static inline void seam_reset(uint64_t seed) {
    for (int i = 0; i < SEAM_NAMES_MAX; i++) {
        SEAM_SET(counts[i], 0);
    }
    SEAM_SET(total, 0);
    SEAM_SET(plan_nth, 0);
    SEAM_SET(fired, 0);
    SEAM_SET(fired_name, NULL);
    SEAM_SET(decider, NULL);
    SEAM_SET(recv_clip, 0);
    SEAM_SET(send_clip, 0);
    SEAM_SET(clip_exactly, false);
    SEAM_SET(recv_first, 0);
    SEAM_SET(ring_size, 0);
    SEAM_SET(permute, false);
    SEAM_SET(repeat, false);
    SEAM_SET(clock_ms, 0);
    SEAM_SET(held_ms, 0);
    SEAM_SET(disturb, false);
    SEAM_SET(points, 0);
    SEAM_SET(at_point, NULL);
    SEAM_SET(draws, 0);
    SEAM_SET(seed, (unsigned long)seed);
}

/* From now on, time passes by SEAM_ADD(clock_ms) alone, however long a machine takes for anything.
 * Only while no server runs, or its threads might see time go back. */
static inline void seam_hold_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    SEAM_SET(held_ms, (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u);
}

/* The n-th counts from the last seam_reset. */
static inline void seam_fail(seam_plan plan) {
    SEAM_SET(plan_nth, 0);
    SEAM_SET(fired, 0);
    SEAM_SET(fired_name, NULL);
    SEAM_SET(plan_name, plan.name);
    SEAM_SET(plan_err, plan.err);
    SEAM_SET(plan_left, plan.times < 0 ? -1 : plan.times - 1);
    SEAM_SET(plan_nth, plan.nth);
}

/* The next `times` calls of that name. */
static inline void seam_fail_next(const char *name, int err, long times) {
    seam_fail((seam_plan){ name, seam_count(name) + 1, err, times });
}

static inline void seam_fail_stop(void) {
    SEAM_SET(plan_nth, 0);
}

#define NETSRV_SEAM_FAULT(name)           seam_fault(name)
#define NETSRV_SEAM_CLIP(name, n)         seam_clip((name), (n))
#define NETSRV_SEAM_EVENTS(ev, n, size)   seam_events((ev), (n), (size))
#define NETSRV_SEAM_CLOCK_MS(real)        seam_clock(real)
#define NETSRV_SEAM_POINT(name)           seam_point(name)

#ifndef NETSRV_DEBUG
#define NETSRV_DEBUG
#endif
#define NETSRV_IMPLEMENTATION
#include "../netsrv.h"

#endif /* SEAM_H */
