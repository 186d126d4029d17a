/* drain.c: accepting that is paused and resumed, and a stop that waits for every connection. */
#include "../seam.h"

#include "rig.h"

static netsrv_config drain_config(netsrv_backend b, int accept) {
    netsrv_config cfg = rig_config(b, 2);
    cfg.accept = (netsrv_accept)accept;
    seam_reset(1);
    return cfg;
}

static bool paused_everywhere(netsrv_server *s, unsigned long gates) {
    return rig_total(s).pauses == gates;
}

static unsigned gates_of(int accept) {
    return accept == NETSRV_ACCEPT_SINGLE || accept == NETSRV_ACCEPT_ACCEPTOR ? 1 : 2;
}

/* ---- pausing --------------------------------------------------------------------------------- */

/* Those who come meanwhile wait, those who are there are served. */
static void pause_and_resume(netsrv_backend b, int accept) {
    const netsrv_config cfg = drain_config(b, accept);
    netsrv_server *s = rig_start(&cfg);
    const uint16_t port = netsrv_get_port(s, 0);
    const int there = peer_connect(port);
    CHECK(peer_say(there, "a") && peer_gets(there, "a"));
    for (unsigned long i = 1; i <= 3; i++) {
        netsrv_pause_accept(s);
        netsrv_pause_accept(s);
        CHECK_WITHIN(5000, paused_everywhere(s, i * gates_of(accept)));
        const int late = peer_connect(port);
        CHECK(peer_say(late, "b") && peer_silent(late, 40));
        CHECK(peer_say(there, "c") && peer_gets(there, "c"));
        netsrv_resume_accept(s);
        CHECK(peer_gets(late, "b"));
        CHECK(peer_served(port));
        rig_poke(s); /* each listener accepts again: only then does another pause count */
        rig_poke(s);
        close(late);
    }
    netsrv_resume_accept(s);
    CHECK(peer_served(port));
    close(there);
    rig_stop(s, 1000);
}

/* At max_conns as well, in whatever order the two are lifted. */
static void paused_and_full(netsrv_backend b, bool resume_first) {
    netsrv_config cfg = drain_config(b, NETSRV_ACCEPT_SHARED);
    cfg.max_conns = 1;
    netsrv_server *s = rig_start(&cfg);
    const uint16_t port = netsrv_get_port(s, 0);
    const int only = peer_connect(port);
    CHECK(peer_say(only, "a") && peer_gets(only, "a"));
    const int late = peer_connect(port);
    CHECK(peer_say(late, "b"));
    netsrv_pause_accept(s);
    CHECK_WITHIN(5000, paused_everywhere(s, 2));
    rig_poke(s);
    if (resume_first) {
        netsrv_resume_accept(s);
        CHECK(peer_silent(late, 40));
        close(only);
    } else {
        close(only);
        CHECK_WITHIN(5000, rig_closes() == 1);
        CHECK(peer_silent(late, 40));
        netsrv_resume_accept(s);
    }
    CHECK(peer_gets(late, "b"));
    close(late);
    CHECK(peer_served(port));
    rig_stop(s, 1000);
}

static atomic_bool over;

static void *flip(void *arg) {
    while (!atomic_load(&over)) {
        netsrv_pause_accept(arg);
        netsrv_resume_accept(arg);
    }
    return NULL;
}

/* However fast the two follow each other, the last one counts. */
static void flipped(netsrv_backend b) {
    const netsrv_config cfg = drain_config(b, NETSRV_ACCEPT_SHARED);
    pthread_t t;
    atomic_store(&over, false);
    netsrv_server *s = rig_start(&cfg);
    SEAM_SET(disturb, true);
    pthread_create(&t, NULL, flip, s);
    for (int i = 0; i < 30; i++) {
        CHECK(peer_served(netsrv_get_port(s, 0)));
    }
    atomic_store(&over, true);
    pthread_join(t, NULL);
    for (int i = 0; i < 5; i++) {
        CHECK(peer_served(netsrv_get_port(s, 0)));
    }
    rig_stop(s, 1000);
    seam_reset(0);
}

/* A stop serves who waits; a second life accepts. */
static void paused_and_stopped(netsrv_backend b) {
    const netsrv_config cfg = drain_config(b, NETSRV_ACCEPT_SINGLE);
    netsrv_server *s = rig_start(&cfg);
    netsrv_pause_accept(s);
    CHECK_WITHIN(5000, paused_everywhere(s, 1));
    const int late = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(late, "b") && peer_silent(late, 40));
    netsrv_stop(s, 5000);
    CHECK(peer_gets(late, "b"));
    CHECK_EQ(peer_end(late), PEER_FIN);
    close(late);
    CHECK_EQ(netsrv_wait(s), NETSRV_OK);
    CHECK_EQ(netsrv_start(s, NULL), NETSRV_OK);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    rig_stop(s, 1000);
}

/* ---- draining -------------------------------------------------------------------------------- */

/* Not again and again without a pause: who gets in makes the queue longer that the server takes to
 * its end before it closes the port. */
static bool refused(uint16_t port) {
    const int fd = peer_connect_from(0, port, 1000);
    const bool no = fd < 0;
    if (fd >= 0) {
        close(fd);
        poll(NULL, 0, 20);
    }
    return no;
}

/* Nobody new; who is there stays, also idle, and costs nothing; the end comes with the last. */
static void drain(netsrv_backend b, int accept) {
    const netsrv_config cfg = drain_config(b, accept);
    netsrv_server *s = rig_start(&cfg);
    const uint16_t port = netsrv_get_port(s, 0);
    int fd[4];
    for (int i = 0; i < 4; i++) {
        fd[i] = peer_connect(port);
        CHECK(peer_say(fd[i], "a") && peer_gets(fd[i], "a"));
    }
    netsrv_drain(s);
    CHECK_WITHIN(5000, refused(port));
    CHECK(netsrv_stopping(s));
    CHECK(rig_rests(50));
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(netsrv_wait_for(s, 20), NETSRV_TIMED_OUT);
        CHECK(peer_say(fd[i], "b") && peer_gets(fd[i], "b"));
        close(fd[i]);
    }
    rig_end(s);
}

static void drain_then_stop(netsrv_backend b) {
    const netsrv_config cfg = drain_config(b, NETSRV_ACCEPT_SINGLE);
    netsrv_server *s = rig_start(&cfg);
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, "a") && peer_gets(fd, "a"));
    netsrv_drain(s);
    netsrv_drain(s);
    CHECK_EQ(netsrv_wait_for(s, 50), NETSRV_TIMED_OUT);
    netsrv_stop(s, 5000);
    netsrv_drain(s); /* too late */
    CHECK_EQ(peer_end(fd), PEER_FIN);
    close(fd);
    CHECK_EQ(netsrv_wait(s), NETSRV_OK);
    CHECK_EQ(netsrv_start(s, NULL), NETSRV_OK);
    CHECK(peer_served(netsrv_get_port(s, 0)));
    netsrv_drain(s);
    rig_end(s);
    CHECK_EQ(rig_reason(NETSRV_CLOSE_STOP), 1);
}

static void *drain_at_once(void *arg) {
    netsrv_drain(arg);
    return NULL;
}

static void drained_empty(netsrv_backend b) {
    const netsrv_config cfg = drain_config(b, NETSRV_ACCEPT_ACCEPTOR);
    for (int i = 0; i < 20; i++) {
        pthread_t t;
        netsrv_server *s = rig_start(&cfg);
        pthread_create(&t, NULL, drain_at_once, s);
        CHECK_EQ(netsrv_wait_for(s, (uint32_t)check_scaled(5000)), NETSRV_OK);
        pthread_join(t, NULL);
        CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
    }
    netsrv_server *s = NULL;
    CHECK_EQ(netsrv_create(&s, &cfg, NULL), NETSRV_OK);
    netsrv_drain(s);
    CHECK_EQ(netsrv_start(s, NULL), NETSRV_STOPPED);
    CHECK_EQ(netsrv_destroy(s), NETSRV_OK);
}

static void all(netsrv_backend b) {
    for (int a = NETSRV_ACCEPT_SINGLE; a < NETSRV_ACCEPT_REUSEPORT; a++) {
        if (rig_accepts(b, a)) {
            CASE("pause and resume", pause_and_resume(b, a));
            CASE("drain", drain(b, a));
        }
    }
    CASE("paused and full", paused_and_full(b, true));
    CASE("full and paused", paused_and_full(b, false));
    CASE("flipped", flipped(b));
    CASE("paused and stopped", paused_and_stopped(b));
    CASE("drained, then stopped", drain_then_stop(b));
    CASE("drained empty", drained_empty(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
