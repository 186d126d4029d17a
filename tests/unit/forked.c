/* forked.c: a child process of the host holds duplicates of every descriptor. */
#include "../seam.h"

#include "rig.h"

#include <sys/wait.h>

#define CONNS 20

typedef struct holder {
    pid_t pid;
    int end_fd; /* closing it ends the child */
} holder;

/* A child that does nothing but hold what it inherited. */
static holder fork_holder(void) {
    holder h;
    int ends[2];
    char byte = 0;
    REQUIRE(pipe(ends) == 0);
    h.pid = fork();
    REQUIRE(h.pid >= 0);
    if (h.pid == 0) {
        close(ends[1]);
        alarm(120);
        while (read(ends[0], &byte, 1) < 0 && errno == EINTR) {
        }
        _exit(0);
    }
    close(ends[0]);
    h.end_fd = ends[1];
    return h;
}

static void end_holder(holder h) {
    int status = 0;
    close(h.end_fd);
    CHECK_EQ(waitpid(h.pid, &status, 0), h.pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static size_t close_on_data(netsrv_conn *c, const void *data, size_t n) {
    if (((const char *)data)[0] == 'c') {
        netsrv_close(c);
        return n;
    }
    return rig_on_data(c, data, n);
}

static void open_all(netsrv_server *s, int *fd) {
    for (int i = 0; i < CONNS; i++) {
        fd[i] = peer_connect(netsrv_get_port(s, 0));
        CHECK(peer_say(fd[i], "x") && peer_gets(fd[i], "x"));
    }
}

/* The holder holds the clients' ends as well: what it holds must not matter to the server, so the
 * clients send FIN by shutdown, as one would across machines. */
static void server_closes(netsrv_backend b) {
    int fd[CONNS];
    netsrv_config cfg = rig_config(b, 2);
    cfg.on_data = close_on_data;
    cfg.linger_timeout_ms = 60000; /* the FIN does not wait for its end */
    netsrv_server *s = rig_start(&cfg);
    open_all(s, fd);
    const holder h = fork_holder();
    for (int i = 0; i < CONNS; i++) {
        peer_say(fd[i], "close");
        CHECK_EQ(peer_end(fd[i]), PEER_FIN);
        shutdown(fd[i], SHUT_WR);
    }
    CHECK_WITHIN(5000, rig_total(s).live == 0);
    const uint64_t turns = rig_total(s).turns;
    for (int i = 0; i < CONNS; i++) {
        send(fd[i], "to nobody", 9, MSG_NOSIGNAL);
    }
    CHECK(poll(NULL, 0, 200) == 0);
    CHECK(rig_rests(100));
    CHECK_LE(rig_total(s).turns - turns, 10);
    CHECK_EQ(rig_closes(), CONNS);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    for (int i = 0; i < CONNS; i++) {
        close(fd[i]);
    }
    rig_stop(s, 1000);
    end_holder(h);
}

/* New connections get the old numbers: the dead ones' events must not reach them. */
static void numbers_are_reused(netsrv_backend b) {
    int old[CONNS];
    int fresh[CONNS];
    netsrv_config cfg = rig_config(b, 1);
    cfg.on_data = close_on_data;
    netsrv_server *s = rig_start(&cfg);
    open_all(s, old);
    const holder h = fork_holder();
    for (int i = 0; i < CONNS; i++) {
        peer_say(old[i], "close");
        CHECK_EQ(peer_end(old[i]), PEER_FIN);
        shutdown(old[i], SHUT_WR);
    }
    CHECK_WITHIN(5000, rig_total(s).live == 0);
    open_all(s, fresh);
    for (int i = 0; i < CONNS; i++) {
        send(old[i], "stale", 5, MSG_NOSIGNAL);
        close(old[i]);
    }
    for (int i = 0; i < CONNS; i++) {
        CHECK(peer_say(fresh[i], "fresh") && peer_gets(fresh[i], "fresh"));
        CHECK(peer_silent(fresh[i], 0));
        close(fresh[i]);
    }
    rig_stop(s, 1000);
    end_holder(h);
}

/* Stop with everything duplicated: ends in time, and the clients see the end. */
static void stop_while_held(netsrv_backend b) {
    int fd[CONNS];
    const netsrv_config cfg = rig_config(b, 2);
    netsrv_server *s = rig_start(&cfg);
    open_all(s, fd);
    const holder h = fork_holder();
    netsrv_stop(s, (uint32_t)check_scaled(60000));
    for (int i = 0; i < CONNS; i++) {
        CHECK_EQ(peer_end(fd[i]), PEER_FIN);
        shutdown(fd[i], SHUT_WR);
    }
    rig_end(s);
    for (int i = 0; i < CONNS; i++) {
        close(fd[i]);
    }
    end_holder(h);
}

/* Nothing survives an exec. */
static void nothing_after_exec(netsrv_backend b) {
    int ends[2];
    char list[4096] = "";
    netsrv_config cfg = rig_config(b, 3);
    char name[60];
    snprintf(name, sizeof name, "unix:@netsrv-forked-test.%ld", (long)getpid());
    cfg.listen[1] = name;
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "x") && peer_gets(fd, "x"));
    REQUIRE(port_pipe(ends) == 0);
    const pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        dup2(ends[1], 1);
        static const char list_fds[] = "for f in /proc/$$/fd/*; do readlink $f; done; true";
        execl("/bin/sh", "sh", "-c", list_fds, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    size_t n = 0;
    ssize_t k = 0;
    while ((k = read(ends[0], list + n, sizeof list - 1 - n)) > 0) {
        n += (size_t)k;
    }
    close(ends[0]);
    int status = 0;
    waitpid(pid, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(strstr(list, "eventpoll") == NULL);
    CHECK(strstr(list, "eventfd") == NULL);
    CHECK(strstr(list, "socket:") == NULL);
    close(fd);
    rig_stop(s, 1000);
}

static void all(netsrv_backend b) {
    CASE("the server closes, a child holds", server_closes(b));
    CASE("descriptor numbers are reused", numbers_are_reused(b));
    CASE("stop while a child holds", stop_while_held(b));
    CASE("nothing survives an exec", nothing_after_exec(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
