/* port.h: what the unit programs use of Linux, under the same names elsewhere, so that they are
 * built for every system. Include it after the system's headers. */
#ifndef PORT_H
#define PORT_H

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#include <sys/mman.h>
#endif

#ifndef SOCK_CLOEXEC
#define SOCK_CLOEXEC 0
#endif
#if !defined(TCP_CORK) && defined(TCP_NOPUSH)
#define TCP_CORK TCP_NOPUSH
#elif !defined(TCP_CORK)
#define TCP_CORK TCP_NODELAY /* whether the pieces meet in one segment is then up to chance */
#endif

/* Where a system lacks one of these, it cannot fail with it: something harmless takes its place. */
#ifndef ENONET
#define ENONET EHOSTDOWN
#endif
#ifndef EBADR
#define EBADR EBUSY
#endif
#ifndef ENOSR
#define ENOSR ENOBUFS
#endif

/* Both ends are closed on exec. */
static inline int port_pipe(int ends[2]) {
    if (pipe(ends) != 0) {
        return -1;
    }
    return fcntl(ends[0], F_SETFD, FD_CLOEXEC) == 0 && fcntl(ends[1], F_SETFD, FD_CLOEXEC) == 0 ? 0
                                                                                              : -1;
}

/* CPUs that this process may use. */
static inline unsigned port_cpus(void) {
#ifdef __linux__
    cpu_set_t set;
    CPU_ZERO(&set);
    return sched_getaffinity(0, sizeof set, &set) == 0 ? (unsigned)CPU_COUNT(&set) : 0;
#else
    return (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
#endif
}

/* A file without a name. */
static inline int port_scratch(void) {
#ifdef __linux__
    return memfd_create("scratch", MFD_CLOEXEC);
#else
    FILE *f = tmpfile();
    const int fd = f != NULL ? fcntl(fileno(f), F_DUPFD_CLOEXEC, 3) : -1;
    if (f != NULL) {
        fclose(f);
    }
    return fd;
#endif
}

#endif /* PORT_H */
