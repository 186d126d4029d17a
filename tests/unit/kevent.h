/* kevent.h: kqueue(2) and kevent(2) for the tests, where there are none: a table of knotes, looked
 * at with poll(2), that behaves as the BSDs' manuals say. It takes the place of <sys/event.h>
 * (define NETSRV_SEAM_KQUEUE as "tests/unit/kevent.h"). A test can play a system's peculiarities,
 * put events of its own before the real ones, and ask what was changed. Definitions are this file's
 * own. */
#ifndef KEVENT_H
#define KEVENT_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#ifdef __NetBSD__
typedef uint32_t fake_filter;
typedef uint32_t fake_flags;
typedef size_t fake_count;
#else
typedef short fake_filter;
typedef unsigned short fake_flags;
typedef int fake_count;
#endif

struct kevent {
    uintptr_t ident;
    fake_filter filter;
    fake_flags flags;
    uint32_t fflags;
    int64_t data;
    void *udata;
};

#define EVFILT_READ  (-1)
#define EVFILT_WRITE (-2)
#define EVFILT_USER  (-11)
#define EV_ADD       0x0001
#define EV_DELETE    0x0002
#define EV_ENABLE    0x0004
#define EV_ONESHOT   0x0010
#define EV_CLEAR     0x0020
#define EV_RECEIPT   0x0040
#define EV_DISPATCH  0x0080
#define EV_ERROR     0x4000
#define EV_EOF       0x8000
#define NOTE_TRIGGER 0x01000000u

#ifndef POLLRDHUP
#define POLLRDHUP 0
#endif

#define FAKE_KNOTES_MAX 1024
#define FAKE_LOG_MAX    256
#define FAKE_SCRIPT_MAX 16

typedef enum fake_user {
    FAKE_USER_WORKS,
    FAKE_USER_MISSING, /* NetBSD 9: EVFILT_USER is refused              */
    FAKE_USER_BROKEN   /* it is taken, and never reports anything       */
} fake_user;

typedef struct fake_knote {
    int kq;
    struct kevent kev;
    bool disabled;
    bool fired;    /* EVFILT_USER: triggered                       */
    int64_t told;  /* EV_CLEAR: the state that was last reported   */
} fake_knote;

static struct {
    pthread_mutex_t lock;
    fake_knote knotes[FAKE_KNOTES_MAX];
    int count;
    struct kevent log[FAKE_LOG_MAX]; /* changes, as they were asked for */
    int logged;
    struct kevent script[FAKE_SCRIPT_MAX]; /* events of the next batch, before the real ones */
    int scripted;

    /* what is played */
    fake_user user;
    bool writes_first;     /* a descriptor's write event before its read event */
    int fail_errno;        /* the next change of fail_filter fails with it     */
    int fail_filter;
    int interrupt_changes; /* so many calls are interrupted after their changes */
    int interrupt_waits;

    /* what happened */
    unsigned long waits;
    unsigned long triggers;
    unsigned long lost; /* descriptors closed with a knote on them */
} fake = { .lock = PTHREAD_MUTEX_INITIALIZER };

static inline void fake_reset(void) {
    pthread_mutex_lock(&fake.lock);
    fake.logged = 0;
    fake.scripted = 0;
    fake.user = FAKE_USER_WORKS;
    fake.writes_first = false;
    fake.fail_errno = 0;
    fake.interrupt_changes = 0;
    fake.interrupt_waits = 0;
    fake.waits = 0;
    fake.triggers = 0;
    fake.lost = 0;
    pthread_mutex_unlock(&fake.lock);
}

/* A descriptor of its own, so that it can be closed; what an earlier one of the number knew goes.
 * */
static inline int kqueue(void) {
    const int kq = open("/dev/null", O_RDWR);
    pthread_mutex_lock(&fake.lock);
    for (int i = fake.count; i-- > 0;) {
        if (fake.knotes[i].kq == kq) {
            fake.knotes[i] = fake.knotes[--fake.count];
        }
    }
    pthread_mutex_unlock(&fake.lock);
    return kq;
}

/* ---- changes --------------------------------------------------------------------------------- */

static inline fake_knote *fake_find(int kq, const struct kevent *kev) {
    for (int i = 0; i < fake.count; i++) {
        fake_knote *k = &fake.knotes[i];
        if (k->kq == kq && k->kev.ident == kev->ident && k->kev.filter == kev->filter) {
            return k;
        }
    }
    return NULL;
}

static inline int fake_add(int kq, const struct kevent *kev) {
    const bool user = kev->filter == (fake_filter)EVFILT_USER;
    if (user && fake.user == FAKE_USER_MISSING) {
        return EINVAL;
    }
    if (!user && fcntl((int)kev->ident, F_GETFD) < 0) {
        return EBADF;
    }
    if (fake.count == FAKE_KNOTES_MAX) {
        return ENOMEM;
    }
    fake.knotes[fake.count++] = (fake_knote){ .kq = kq, .kev = *kev, .told = -1 };
    return 0;
}

/* On a knote that is there: its flags stay what they were, its udata does not. */
static inline void fake_modify(fake_knote *k, const struct kevent *kev) {
    k->kev.udata = kev->udata;
    if ((kev->flags & EV_ENABLE) != 0) {
        k->disabled = false;
    }
    if ((kev->fflags & NOTE_TRIGGER) != 0) {
        fake.triggers++;
        k->fired = fake.user == FAKE_USER_WORKS;
    }
}

static inline int fake_change(int kq, const struct kevent *kev) {
    if (fake.logged < FAKE_LOG_MAX) {
        fake.log[fake.logged++] = *kev;
    }
    if (fake.fail_errno != 0 && kev->filter == (fake_filter)fake.fail_filter) {
        const int failed = fake.fail_errno;
        fake.fail_errno = 0;
        return failed;
    }
    fake_knote *k = fake_find(kq, kev);
    if (k == NULL) {
        return (kev->flags & EV_ADD) != 0 ? fake_add(kq, kev) : ENOENT;
    }
    if ((kev->flags & EV_DELETE) != 0) {
        *k = fake.knotes[--fake.count];
        return 0;
    }
    fake_modify(k, kev);
    return 0;
}

/* The number of receipts; -1 if one failed for which there is no room. */
static inline int fake_changes(int kq, const struct kevent *changes, fake_count n,
                               struct kevent *events, fake_count room) {
    fake_count receipts = 0;
    for (fake_count i = 0; i < n; i++) {
        struct kevent kev = changes[i]; /* both lists may be the same */
        const int failed = fake_change(kq, &kev);
        if (failed == 0 && (kev.flags & EV_RECEIPT) == 0) {
            continue;
        }
        if (receipts == room) {
            errno = failed;
            return failed != 0 ? -1 : (int)receipts;
        }
        kev.flags = EV_ERROR;
        kev.data = failed;
        events[receipts++] = kev;
    }
    if (n > 0 && fake.interrupt_changes > 0) {
        fake.interrupt_changes--;
        errno = EINTR;
        return -1;
    }
    return (int)receipts;
}

/* ---- events ---------------------------------------------------------------------------------- */

/* What a knote has to say: 0 for nothing, else a number that differs from state to state. */
static inline int64_t fake_state(const fake_knote *k, struct kevent *event) {
    const bool reads = k->kev.filter == (fake_filter)EVFILT_READ;
    struct pollfd p = { .fd = (int)k->kev.ident, .events = reads ? POLLIN | POLLRDHUP : POLLOUT };
    int unread = 0;
    if (poll(&p, 1, 0) <= 0) {
        return 0;
    }
    if ((p.revents & POLLNVAL) != 0) {
        fake.lost++;
        return 0;
    }
    if (reads && ioctl(p.fd, FIONREAD, &unread) == 0) {
        event->data = unread;
    }
    if ((p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0) {
        event->flags = (fake_flags)(event->flags | EV_EOF);
    }
    if ((p.revents & POLLERR) != 0) {
        event->fflags = ECONNRESET;
    }
    return (int64_t)unread << 16 | p.revents;
}

/* Whether the knote is reported now; then it is as it is after a report. */
static inline bool fake_report(fake_knote *k, struct kevent *event) {
    *event = k->kev;
    if (k->kev.filter == (fake_filter)EVFILT_USER) {
        const bool fired = k->fired;
        k->fired = false;
        return fired;
    }
    const int64_t state = k->disabled ? 0 : fake_state(k, event);
    const bool again = (k->kev.flags & EV_CLEAR) != 0 && state == k->told;
    k->told = state;
    if (state == 0 || again) {
        return false;
    }
    k->disabled = (k->kev.flags & EV_DISPATCH) != 0;
    return true;
}

static inline fake_count fake_collect(int kq, struct kevent *events, fake_count room) {
    fake_count n = 0;
    while (n < room && fake.scripted > 0) {
        events[n++] = fake.script[--fake.scripted];
    }
    for (int j = 0; j < fake.count && n < room; j++) {
        const int i = fake.writes_first ? fake.count - 1 - j : j;
        fake_knote *k = &fake.knotes[i];
        if (k->kq == kq && fake_report(k, &events[n])) {
            const bool once = (events[n++].flags & EV_ONESHOT) != 0;
            if (once) {
                *k = fake.knotes[--fake.count];
                j--;
            }
        }
    }
    return n;
}

static inline bool fake_interrupted(void) {
    if (fake.interrupt_waits == 0) {
        return false;
    }
    fake.interrupt_waits--;
    return true;
}

static inline int64_t fake_now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Looks every half millisecond, so that it needs no wake-up of its own. */
static inline int fake_wait(int kq, struct kevent *events, fake_count room, int64_t until_us) {
    const struct timespec pause = { 0, 500000 };
    for (;;) {
        pthread_mutex_lock(&fake.lock);
        fake.waits++;
        const bool interrupted = fake_interrupted();
        const fake_count n = interrupted ? 0 : fake_collect(kq, events, room);
        pthread_mutex_unlock(&fake.lock);
        if (interrupted) {
            errno = EINTR;
            return -1;
        }
        if (n > 0 || fake_now_us() >= until_us) {
            return (int)n;
        }
        nanosleep(&pause, NULL);
    }
}

static inline int kevent(int kq, const struct kevent *changes, fake_count change_count,
                         struct kevent *events, fake_count room, const struct timespec *timeout) {
    pthread_mutex_lock(&fake.lock);
    const int receipts = fake_changes(kq, changes, change_count, events, room);
    pthread_mutex_unlock(&fake.lock);
    if (receipts != 0 || room == 0) {
        return receipts;
    }
    int64_t until_us = INT64_MAX;
    if (timeout != NULL) {
        until_us = fake_now_us() + (int64_t)timeout->tv_sec * 1000000 + timeout->tv_nsec / 1000;
    }
    return fake_wait(kq, events, room, until_us);
}

#endif /* KEVENT_H */
