/* parity.c: one scripted client, every arrangement: the transcripts must be the same byte for byte,
 * the way the stream ends included. */
#include "../seam.h"

#include "rig.h"

#define TRANSCRIPT_MAX (1 << 20)

typedef struct transcript {
    size_t n;
    unsigned char bytes[TRANSCRIPT_MAX];
} transcript;

static transcript first;
static transcript now;

static void write_down(const void *data, size_t n) {
    REQUIRE(now.n + n <= TRANSCRIPT_MAX);
    memcpy(now.bytes + now.n, data, n);
    now.n += n;
}

static void write_end(const char *what, int end) {
    char text[80];
    const int n = snprintf(text, sizeof text, "[%s: %s]\n", what,
                           end == PEER_FIN     ? "FIN"
                           : end == PEER_STUCK ? "stuck"
                                               : strerror(end));
    write_down(text, (size_t)n);
}

/* ---- the server: lines that are commands ----------------------------------------------------- */

static void big_reply(netsrv_conn *c, size_t n) {
    unsigned char bytes[1000];
    for (size_t done = 0; done < n; done += sizeof bytes) {
        peer_fill(bytes, sizeof bytes, (unsigned)(done / sizeof bytes));
        netsrv_send(c, bytes, sizeof bytes);
    }
}

static void obey(netsrv_conn *c, const void *data, size_t n) {
    const char *line = data;
    if (n == 5 && memcmp(line, "close", 5) == 0) {
        netsrv_send(c, "bye\n", 4);
        netsrv_close(c);
    } else if (n == 5 && memcmp(line, "abort", 5) == 0) {
        netsrv_abort(c);
    } else if (n == 3 && memcmp(line, "big", 3) == 0) {
        big_reply(c, 300000);
    } else if (n == 4 && memcmp(line, "half", 4) == 0) {
        netsrv_send(c, "half\n", 5);
        netsrv_shutdown(c);
    } else {
        netsrv_send(c, line, n);
        netsrv_send(c, "\n", 1);
    }
}

/* ---- the client: what it says, then how it ends ---------------------------------------------- */

typedef struct script {
    const char *says;
    size_t hears;  /* bytes that must come */
    bool finishes; /* sends FIN after what it says */
    bool ended;    /* the server ends the stream, and how is written down */
} script;

static const script scripts[] = {
    { "one\r\ntwo\nthree\n", 14, false, false },
    { "a\nb\nc", 6, true, true },
    { "", 0, true, true },
    { "\n\n\r\n\n", 4, true, true },
    { "big\nsmall\n", 300006, true, true },
    { "x\nclose\nnever shown\n", 6, false, true },
    { "half\n", 5, true, true },
    { "abort\n", 0, false, true },
};
#define SCRIPTS (sizeof scripts / sizeof scripts[0])

static void play(netsrv_server *s, const script *sc) {
    static unsigned char heard[400000];
    const int fd = peer_connect(netsrv_get_port(s, 0));
    peer_say(fd, sc->says);
    if (sc->finishes) {
        shutdown(fd, SHUT_WR);
    }
    write_down(heard, peer_recv(fd, heard, sc->hears));
    if (sc->ended) {
        write_end(sc->says, peer_end(fd));
    }
    close(fd);
}

static void play_all(const netsrv_config *cfg) {
    now.n = 0;
    netsrv_server *s = rig_start(cfg);
    for (size_t i = 0; i < SCRIPTS; i++) {
        play(s, &scripts[i]);
    }
    CHECK_WITHIN(5000, rig_closes() == SCRIPTS && rig_opens() == SCRIPTS);
    rig_stop(s, 1000);
    if (first.n == 0) {
        memcpy(&first, &now, sizeof first);
    }
    if (!CHECK_MEM(now.bytes, now.n, first.bytes, first.n)) {
        fprintf(stderr, "  accept=%s place=%s transfer=%s workers=%u\n",
                netsrv_accept_name((int)cfg->accept), netsrv_place_name((int)cfg->place),
                netsrv_transfer_name((int)cfg->transfer), cfg->workers);
    }
}

static unsigned pick_next(netsrv_server *s, const netsrv_peer *peer, unsigned accepting) {
    static atomic_uint n;
    (void)peer;
    (void)accepting;
    return atomic_fetch_add(&n, 1) % netsrv_get_config(s)->workers;
}

static bool fits(const netsrv_config *c) {
    netsrv_server *s = NULL;
    const bool ok = netsrv_create(&s, c, NULL) == NETSRV_OK;
    netsrv_destroy(s);
    return ok;
}

static unsigned play_transfers(netsrv_config *cfg) {
    unsigned played = 0;
    for (int transfer = 1; transfer < NETSRV_TRANSFER_COUNT; transfer++) {
        cfg->transfer = (netsrv_transfer)transfer;
        if (fits(cfg)) {
            play_all(cfg);
            played++;
        }
    }
    return played;
}

static void every_arrangement(netsrv_backend b, unsigned workers) {
    netsrv_config cfg = rig_config(b, workers);
    unsigned played = 0;
    cfg.on_data = NULL;
    cfg.on_frame = obey;
    cfg.framing = NETSRV_FRAMING_LINE;
    for (int accept = 0; accept < NETSRV_ACCEPT_COUNT; accept++) {
        for (int place = 0; place < NETSRV_PLACE_COUNT; place++) {
            cfg.accept = (netsrv_accept)accept;
            cfg.place = (netsrv_place)place;
            cfg.pick = place == NETSRV_PLACE_CUSTOM ? pick_next : NULL;
            played += play_transfers(&cfg);
        }
    }
    CHECK_GE(played, 12);
    printf("    %u arrangements\n", played);
}

static void every_trigger(netsrv_backend b) {
    netsrv_config cfg = rig_config(b, 3);
    cfg.on_data = NULL;
    cfg.on_frame = obey;
    cfg.framing = NETSRV_FRAMING_LINE;
    cfg.accept = NETSRV_ACCEPT_ACCEPTOR;
    for (cfg.acceptors = 1; cfg.acceptors <= 4; cfg.acceptors += 3) {
        for (int trigger = 0; trigger < NETSRV_TRIGGER_COUNT; trigger++) {
            cfg.trigger = (netsrv_trigger)trigger;
            if (fits(&cfg)) {
                play_all(&cfg);
            }
        }
    }
}

static void clipped(netsrv_backend b) {
    for (unsigned long clip = 1; clip <= 64; clip *= 8) {
        netsrv_config cfg = rig_config(b, 2);
        cfg.on_data = NULL;
        cfg.on_frame = obey;
        cfg.framing = NETSRV_FRAMING_LINE;
        seam_reset(clip);
        SEAM_SET(recv_clip, clip);
        SEAM_SET(send_clip, clip * 50);
        play_all(&cfg);
    }
    seam_reset(0);
}

static void all(netsrv_backend b) {
    CASE("every arrangement, one worker", every_arrangement(b, 1));
    CASE("every arrangement, three workers", every_arrangement(b, 3));
    CASE("every trigger", every_trigger(b));
    CASE("short reads and writes", clipped(b));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    rig_each_backend(all);
    return check_end();
}
