/* frames.c: framing by delimiter, fixed size, length and a function of the program's: against a
 * simple reference, however the stream is cut; limits, nonsense, and the end in the middle. */
#include "../seam.h"

#include "rig.h"

#define STREAM_MAX 3000
#define LOOKS      20000

/* ---- the reference: looks at the whole stream ------------------------------------------------ */

/* What on_frame must be told, as lines of "length:bytes"; `end` says why it stops. */
typedef struct told {
    char text[4 * STREAM_MAX];
    size_t used;
    netsrv__frame_found end; /* MORE: at the end of the stream */
} told;

static void tell(told *t, const unsigned char *data, size_t n) {
    t->used += (size_t)snprintf(t->text + t->used, 16, "%zu:", n);
    if (n != 0) {
        memcpy(t->text + t->used, data, n);
    }
    t->used += n;
}

static size_t reference_delimited(const netsrv_config *c, const unsigned char *data, size_t n,
                                  told *t) {
    for (size_t i = 0; i + c->delimiter_bytes <= n; i++) {
        if (memcmp(data + i, c->delimiter, c->delimiter_bytes) != 0) {
            continue;
        }
        if (i > c->input_max_bytes) {
            break;
        }
        tell(t, data, c->keep_line_end == NETSRV_ENABLE ? i + c->delimiter_bytes : i);
        return i + c->delimiter_bytes;
    }
    t->end = n > c->input_max_bytes + c->delimiter_bytes - 1 ? NETSRV__FRAME_TOO_LONG
                                                             : NETSRV__FRAME_MORE;
    return 0;
}

static size_t reference_prefixed(const netsrv_config *c, const unsigned char *data, size_t n,
                                 told *t) {
    const size_t header = c->length_offset + c->length_bytes;
    uint64_t length = 0;
    if (n < header) {
        return 0;
    }
    for (uint32_t i = 0; i < c->length_bytes; i++) {
        const uint32_t power = c->length_little == NETSRV_ENABLE ? i : c->length_bytes - 1 - i;
        length += (uint64_t)data[c->length_offset + i] << (8 * power);
    }
    if (c->length_counts_all == NETSRV_ENABLE && length < header) {
        t->end = NETSRV__FRAME_BAD;
        return 0;
    }
    length -= c->length_counts_all == NETSRV_ENABLE ? header : 0;
    if (length > c->input_max_bytes) {
        t->end = NETSRV__FRAME_TOO_LONG;
        return 0;
    }
    if (n - header < length) {
        return 0;
    }
    const size_t from = c->keep_header == NETSRV_ENABLE ? 0 : header;
    tell(t, data + from, header + (size_t)length - from);
    return header + (size_t)length;
}

/* A digit, and so many bytes; 'x' is nonsense; '+' and a digit means ten times as many. */
static size_t split_digits(netsrv_conn *c, const void *data, size_t n) {
    const unsigned char *at = data;
    CHECK(n > 0);
    (void)c;
    if (at[0] == '+') {
        return n < 2 ? 0 : at[1] < '0' || at[1] > '9' ? NETSRV_SPLIT_BAD : 10u * (at[1] - '0') + 2u;
    }
    return at[0] < '0' || at[0] > '9' ? NETSRV_SPLIT_BAD : at[0] - '0' + 1u;
}

static size_t reference_custom(const netsrv_config *c, const unsigned char *data, size_t n,
                               told *t) {
    const size_t length = split_digits(NULL, data, n);
    if (length == NETSRV_SPLIT_BAD || length > c->input_max_bytes) {
        t->end = length == NETSRV_SPLIT_BAD ? NETSRV__FRAME_BAD : NETSRV__FRAME_TOO_LONG;
    } else if (length != 0 && length <= n) {
        tell(t, data, length);
        return length;
    }
    return 0;
}

static size_t reference_fixed(const netsrv_config *c, const unsigned char *data, size_t n,
                              told *t) {
    if (n >= c->frame_bytes) {
        tell(t, data, c->frame_bytes);
        return c->frame_bytes;
    }
    return 0;
}

/* The last one needs no delimiter. */
static void tell_last(const netsrv_config *c, const unsigned char *data, size_t n, told *t) {
    if (n > c->input_max_bytes) {
        t->end = NETSRV__FRAME_TOO_LONG;
    } else {
        tell(t, data, n);
    }
}

static void reference(const netsrv_config *c, const unsigned char *data, size_t n, told *t) {
    size_t at = 0;
    size_t step = 1;
    t->used = 0;
    t->end = NETSRV__FRAME_MORE;
    while (at < n && step != 0) {
        switch (c->framing) {
        case NETSRV_FRAMING_DELIMITER: step = reference_delimited(c, data + at, n - at, t); break;
        case NETSRV_FRAMING_FIXED: step = reference_fixed(c, data + at, n - at, t); break;
        case NETSRV_FRAMING_LENGTH: step = reference_prefixed(c, data + at, n - at, t); break;
        default: step = reference_custom(c, data + at, n - at, t); break;
        }
        at += step;
    }
    if (c->framing == NETSRV_FRAMING_DELIMITER && t->end == NETSRV__FRAME_MORE && at < n) {
        tell_last(c, data + at, n - at, t);
    }
}

/* ---- streams and framings -------------------------------------------------------------------- */

static uint64_t chance;

static size_t draw(size_t n) {
    chance = seam_mix(chance);
    return (size_t)(chance % n);
}

static netsrv_config draw_framing(netsrv_framing framing) {
    static const uint32_t sizes[] = { 1, 2, 4, 8 };
    static const char *const delimiters[] = { ";", "\r\n", "aab", "aaaa", "abab" };
    netsrv_config c = { .framing = framing, .input_max_bytes = (uint32_t)(20 + draw(60)) };
    switch (framing) {
    case NETSRV_FRAMING_DELIMITER:
        c.delimiter = delimiters[draw(5)];
        c.delimiter_bytes = (uint32_t)strlen(c.delimiter);
        c.keep_line_end = (netsrv_switch)draw(3);
        break;
    case NETSRV_FRAMING_FIXED:
        c.frame_bytes = (uint32_t)(1 + draw(c.input_max_bytes));
        break;
    case NETSRV_FRAMING_LENGTH:
        c.length_bytes = sizes[draw(4)];
        c.length_offset = (uint32_t)draw(4);
        c.length_little = (netsrv_switch)draw(3);
        c.length_counts_all = (netsrv_switch)draw(3);
        c.keep_header = (netsrv_switch)draw(3);
        break;
    default:
        c.split = split_digits;
        break;
    }
    return c;
}

/* Mostly sense, so that streams go on for a while. */
static size_t draw_prefixed(const netsrv_config *c, unsigned char *at) {
    const size_t header = c->length_offset + c->length_bytes;
    const size_t body = draw(40) == 0 ? draw(256) : draw(c->input_max_bytes + 1);
    const bool counts_all = c->length_counts_all == NETSRV_ENABLE;
    const size_t value = draw(60) == 0 ? draw(256) : body + (counts_all ? header : 0);
    for (uint32_t i = 0; i < c->length_bytes; i++) {
        const uint32_t power = c->length_little == NETSRV_ENABLE ? i : c->length_bytes - 1 - i;
        at[c->length_offset + i] = (unsigned char)((uint64_t)value >> (8 * power));
    }
    return header + body;
}

static size_t draw_stream(const netsrv_config *c, unsigned char *to) {
    static const char letters[] = "aaaaaab;\r\n\r\nxab012345678901234567890123456789+";
    const size_t n = draw(400);
    for (size_t i = 0; i < STREAM_MAX; i++) {
        to[i] = (unsigned char)letters[draw(sizeof letters - 1)];
    }
    if (c->framing == NETSRV_FRAMING_CUSTOM) {
        for (size_t i = 0; i < n; i++) {
            to[i] = (unsigned char)(draw(90) == 0 ? 'x' : draw(9) == 0 ? '+' : '0' + draw(10));
        }
    }
    size_t at = 0;
    while (c->framing == NETSRV_FRAMING_LENGTH && at < n) {
        at += draw_prefixed(c, to + at);
    }
    return n;
}

/* ---- a server -------------------------------------------------------------------------------- */

static told heard;

static void hear_frame(netsrv_conn *c, const void *data, size_t n) {
    (void)c;
    tell(&heard, data, n);
}

static netsrv_close_reason expected_reason(const told *t) {
    return t->end == NETSRV__FRAME_MORE ? NETSRV_CLOSE_PEER
           : t->end == NETSRV__FRAME_BAD ? NETSRV_CLOSE_BAD_FRAME
                                         : NETSRV_CLOSE_LINE_TOO_LONG;
}

static netsrv_config serving(netsrv_backend b, const netsrv_config *framing) {
    netsrv_config cfg = rig_config(b, 1);
    cfg.framing = framing->framing;
    cfg.keep_line_end = framing->keep_line_end;
    cfg.delimiter = framing->delimiter;
    cfg.delimiter_bytes = framing->delimiter_bytes;
    cfg.frame_bytes = framing->frame_bytes;
    cfg.length_bytes = framing->length_bytes;
    cfg.length_offset = framing->length_offset;
    cfg.length_little = framing->length_little;
    cfg.length_counts_all = framing->length_counts_all;
    cfg.keep_header = framing->keep_header;
    cfg.split = framing->split;
    cfg.input_max_bytes = framing->input_max_bytes;
    cfg.on_data = NULL;
    cfg.on_frame = hear_frame;
    cfg.linger_timeout_ms = NETSRV_OFF;
    return cfg;
}

/* Random framings and streams, received in parts of at most `clip` bytes. */
static void through_a_server(netsrv_backend b, netsrv_framing framing, unsigned long clip) {
    static unsigned char stream[STREAM_MAX + 600];
    static told expected;
    for (int round = 0; round < 12; round++) {
        chance = seam_mix((uint64_t)round * 64 + (uint64_t)framing * 8 + clip);
        const netsrv_config f = draw_framing(framing);
        const netsrv_config cfg = serving(b, &f);
        seam_reset((uint64_t)round);
        SEAM_SET(recv_clip, clip);
        netsrv_server *s = rig_start(&cfg);
        for (unsigned long i = 1; i <= 6; i++) {
            const size_t n = draw_stream(&f, stream);
            reference(&f, stream, n, &expected);
            heard.used = 0;
            const int fd = peer_connect(netsrv_get_port(s, 0));
            peer_send(fd, stream, n);
            shutdown(fd, SHUT_WR);
            peer_end(fd);
            close(fd);
            CHECK_WITHIN(5000, rig_closes() == i);
            CHECK_MEM(heard.text, heard.used, expected.text, expected.used);
            CHECK_GE(rig_reason(expected_reason(&expected)), 1);
        }
        rig_stop(s, 0);
    }
    seam_reset(0);
}

/* ---- the function alone: every cut, and many looks ------------------------------------------- */

/* As a connection does it: what is left is kept, and shown again with what follows. */
static void feed(const netsrv_config *c, const unsigned char *data, const size_t *cuts,
                 size_t count, told *t) {
    size_t begin = 0;
    size_t scanned = 0;
    t->used = 0;
    t->end = NETSRV__FRAME_MORE;
    for (size_t i = 0; i < count; i++) {
        while (begin < cuts[i] && t->end == NETSRV__FRAME_MORE) {
            netsrv__frame f;
            if (c->framing >= NETSRV_FRAMING_FIXED && cuts[i] - begin < scanned) {
                break;
            }
            const netsrv__frame_found found =
                netsrv__frame_next(c, data + begin, cuts[i] - begin, scanned, &f);
            scanned = found == NETSRV__FRAME_MORE ? f.end : 0;
            if (found == NETSRV__FRAME_MORE) {
                break;
            }
            t->end = found == NETSRV__FRAME_LINE ? NETSRV__FRAME_MORE : found;
            if (found == NETSRV__FRAME_LINE) {
                tell(t, data + begin + f.begin, f.n);
                begin += f.end;
            }
        }
    }
    const size_t n = cuts[count - 1];
    if (c->framing == NETSRV_FRAMING_DELIMITER && t->end == NETSRV__FRAME_MORE && begin < n) {
        tell_last(c, data + begin, n - begin, t);
    }
}

static void compare(const told *a, const told *b) {
    CHECK_EQ(a->end, b->end);
    CHECK_MEM(a->text, a->used, b->text, b->used);
}

static void every_cut(netsrv_framing framing) {
    static unsigned char stream[STREAM_MAX + 600];
    static told expected;
    static told have;
    size_t cuts[STREAM_MAX];
    for (int round = 0; round < 60; round++) {
        chance = (uint64_t)round + 100u * (uint64_t)framing;
        const netsrv_config c = draw_framing(framing);
        const size_t n = 1 + draw_stream(&c, stream) % 150;
        reference(&c, stream, n, &expected);
        for (size_t cut = 0; cut <= n; cut++) {
            const size_t two[] = { cut, n };
            feed(&c, stream, two, 2, &have);
            compare(&have, &expected);
            cuts[cut] = cut;
        }
        feed(&c, stream, cuts, n + 1, &have); /* byte by byte */
        compare(&have, &expected);
    }
}

static void many_looks(netsrv_framing framing) {
    static unsigned char stream[STREAM_MAX + 600];
    static told expected;
    static told have;
    size_t cuts[STREAM_MAX + 1];
    for (uint64_t round = 0; round < LOOKS / 4; round++) {
        chance = round * 7919u + (uint64_t)framing;
        const netsrv_config c = draw_framing(framing);
        const size_t n = 1 + draw_stream(&c, stream);
        const size_t step = 1 + draw(40);
        size_t count = 0;
        for (size_t at = draw(step); at < n; at += 1 + draw(step)) {
            cuts[count++] = at;
        }
        cuts[count++] = n;
        reference(&c, stream, n, &expected);
        feed(&c, stream, cuts, count, &have);
        compare(&have, &expected);
    }
}

/* ---- limits, exactly ------------------------------------------------------------------------- */

static netsrv_close_reason ends_with(netsrv_backend b, const netsrv_config *f, const void *data,
                                     size_t n) {
    const netsrv_config cfg = serving(b, f);
    netsrv_server *s = rig_start(&cfg);
    heard.used = 0;
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_send(fd, data, n));
    CHECK_WITHIN(5000, rig_total(s).bytes_in == n);
    rig_poke(s);
    rig_poke(s);
    const bool ended = rig_closes() != 0;
    shutdown(fd, SHUT_WR);
    CHECK_WITHIN(5000, rig_closes() == 1);
    netsrv_close_reason reason = NETSRV_CLOSE_LOCAL;
    while (rig_reason(reason) == 0) {
        reason++;
    }
    CHECK_EQ(ended, reason != NETSRV_CLOSE_PEER); /* without waiting for more */
    close(fd);
    rig_stop(s, 0);
    return reason;
}

static void limits(netsrv_backend b) {
    const netsrv_config delimited = { .framing = NETSRV_FRAMING_DELIMITER, .delimiter = "\0;",
                                      .delimiter_bytes = 2, .input_max_bytes = 5 };
    CHECK_EQ(ends_with(b, &delimited, "12345\0;", 7), NETSRV_CLOSE_PEER);
    CHECK_MEM(heard.text, heard.used, "5:12345", 7);
    CHECK_EQ(ends_with(b, &delimited, "1234\0", 5), NETSRV_CLOSE_PEER);
    CHECK_MEM(heard.text, heard.used, "5:1234\0", 7);
    CHECK_EQ(ends_with(b, &delimited, "123456\0;", 8), NETSRV_CLOSE_LINE_TOO_LONG);
    CHECK_EQ(ends_with(b, &delimited, "1234567", 7), NETSRV_CLOSE_LINE_TOO_LONG);
    const netsrv_config prefixed = { .framing = NETSRV_FRAMING_LENGTH, .length_bytes = 8,
                                     .input_max_bytes = 5 };
    CHECK_EQ(ends_with(b, &prefixed, "\0\0\0\0\0\0\0\5" "12345", 13), NETSRV_CLOSE_PEER);
    CHECK_MEM(heard.text, heard.used, "5:12345", 7);
    CHECK_EQ(ends_with(b, &prefixed, "\0\0\0\0\0\0\0\0", 8), NETSRV_CLOSE_PEER);
    CHECK_MEM(heard.text, heard.used, "0:", 2);
    CHECK_EQ(ends_with(b, &prefixed, "\0\0\0\0\0\0\0\5" "1234", 12), NETSRV_CLOSE_PEER);
    CHECK_EQ(heard.used, 0);
    CHECK_EQ(ends_with(b, &prefixed, "\0\0\0\0\0\0\0\6", 8), NETSRV_CLOSE_LINE_TOO_LONG);
    CHECK_EQ(ends_with(b, &prefixed, "\377\377\377\377\377\377\377\377", 8),
             NETSRV_CLOSE_LINE_TOO_LONG);
    const netsrv_config all_counted = { .framing = NETSRV_FRAMING_LENGTH, .length_bytes = 2,
                                        .length_offset = 1, .input_max_bytes = 5,
                                        .length_counts_all = NETSRV_ENABLE };
    CHECK_EQ(ends_with(b, &all_counted, "t\0\3", 3), NETSRV_CLOSE_PEER);
    CHECK_MEM(heard.text, heard.used, "0:", 2);
    CHECK_EQ(ends_with(b, &all_counted, "t\0\2", 3), NETSRV_CLOSE_BAD_FRAME);
    const netsrv_config custom = { .framing = NETSRV_FRAMING_CUSTOM, .split = split_digits,
                                   .input_max_bytes = 8 };
    CHECK_EQ(ends_with(b, &custom, "7abcdefg", 8), NETSRV_CLOSE_PEER);
    CHECK_MEM(heard.text, heard.used, "8:7abcdefg", 10);
    CHECK_EQ(ends_with(b, &custom, "8", 1), NETSRV_CLOSE_LINE_TOO_LONG);
    CHECK_EQ(ends_with(b, &custom, "1ax", 3), NETSRV_CLOSE_BAD_FRAME);
}

static size_t never_knows(netsrv_conn *c, const void *data, size_t n) {
    (void)c;
    CHECK(data != NULL && n > 0);
    return 0;
}

static void never_known(netsrv_backend b) {
    const netsrv_config custom = { .framing = NETSRV_FRAMING_CUSTOM, .split = never_knows,
                                   .input_max_bytes = 8 };
    CHECK_EQ(ends_with(b, &custom, "12345678", 8), NETSRV_CLOSE_PEER);
    CHECK_EQ(ends_with(b, &custom, "123456789", 9), NETSRV_CLOSE_LINE_TOO_LONG);
}

/* At the end of the stream, what might have become a delimiter is a part of the last frame. */
static void too_long_at_the_end(netsrv_backend b, netsrv_framing framing, const char *stream,
                                netsrv_close_reason reason) {
    const netsrv_config f = { .framing = framing, .input_max_bytes = 5,
                              .delimiter = framing == NETSRV_FRAMING_DELIMITER ? "\r\n" : NULL,
                              .delimiter_bytes = framing == NETSRV_FRAMING_DELIMITER ? 2 : 0 };
    const netsrv_config cfg = serving(b, &f);
    netsrv_server *s = rig_start(&cfg);
    heard.used = 0;
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, stream));
    shutdown(fd, SHUT_WR);
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(reason), 1);
    CHECK_EQ(heard.used != 0, reason == NETSRV_CLOSE_PEER);
    close(fd);
    rig_stop(s, 0);
}

/* A connection that `split` ends has no frames any more. */
static size_t split_and_end(netsrv_conn *c, const void *data, size_t n) {
    const char how = *(const char *)data;
    (void)n;
    if (how == 'c') {
        netsrv_close(c);
    } else if (how == 'a') {
        netsrv_abort(c);
    }
    return 1;
}

static void split_ends(netsrv_backend b, const char *stream, netsrv_close_reason reason) {
    const netsrv_config f = { .framing = NETSRV_FRAMING_CUSTOM, .split = split_and_end };
    const netsrv_config cfg = serving(b, &f);
    netsrv_server *s = rig_start(&cfg);
    heard.used = 0;
    const int fd = peer_connect(netsrv_get_port(s, 0));
    CHECK(peer_say(fd, stream));
    CHECK_WITHIN(5000, rig_closes() == 1);
    CHECK_EQ(rig_reason(reason), 1);
    CHECK_MEM(heard.text, heard.used, "1:x", 3);
    close(fd);
    rig_stop(s, 0);
}

/* ---- what is refused ------------------------------------------------------------------------- */

static void refuse(netsrv_config f, const char *field) {
    netsrv_config cfg = serving(NETSRV_BACKEND_AUTO, &f);
    netsrv_server *s = NULL;
    netsrv_error error;
    CHECK_EQ(netsrv_create(&s, &cfg, &error), NETSRV_BAD_CONFIG);
    CHECK_HAS(error.text, field);
    CHECK(s == NULL);
}

static void refused(void) {
    const netsrv_framing length = NETSRV_FRAMING_LENGTH;
    refuse((netsrv_config){ .framing = NETSRV_FRAMING_DELIMITER }, "delimiter");
    refuse((netsrv_config){ .framing = NETSRV_FRAMING_DELIMITER, .delimiter = "" }, "delimiter");
    refuse((netsrv_config){ .framing = NETSRV_FRAMING_DELIMITER,
                            .delimiter = "12345678901234567" }, "delimiter_bytes");
    refuse((netsrv_config){ .framing = NETSRV_FRAMING_FIXED }, "frame_bytes");
    refuse((netsrv_config){ .framing = NETSRV_FRAMING_FIXED, .frame_bytes = 11,
                            .input_max_bytes = 10 }, "frame_bytes");
    refuse((netsrv_config){ .framing = NETSRV_FRAMING_CUSTOM }, "split");
    refuse((netsrv_config){ .framing = length, .length_bytes = 3 }, "length_bytes");
    refuse((netsrv_config){ .framing = length, .length_offset = 256 }, "length_offset");
    refuse((netsrv_config){ .framing = length, .length_little = 3 }, "length_little");
    refuse((netsrv_config){ .framing = NETSRV_FRAMING_LINE, .delimiter = ";" }, "delimiter");
    refuse((netsrv_config){ .framing = NETSRV_FRAMING_LINE, .frame_bytes = 1 }, "frame_bytes");
    refuse((netsrv_config){ .framing = NETSRV_FRAMING_LINE, .length_offset = 1 }, "length");
    refuse((netsrv_config){ .framing = NETSRV_FRAMING_LINE, .split = split_digits }, "split");
    refuse((netsrv_config){ .framing = length, .keep_line_end = NETSRV_ENABLE }, "keep_line_end");
}

static void each_framing(netsrv_backend b) {
    for (int f = NETSRV_FRAMING_DELIMITER; f <= NETSRV_FRAMING_CUSTOM; f++) {
        through_a_server(b, (netsrv_framing)f, 0);
        through_a_server(b, (netsrv_framing)f, 1);
        through_a_server(b, (netsrv_framing)f, 30);
    }
}

static void all(netsrv_backend b) {
    CASE("through a server", each_framing(b));
    CASE("limits", limits(b));
    CASE("a length that is never known", never_known(b));
    for (netsrv_framing f = NETSRV_FRAMING_LINE; f <= NETSRV_FRAMING_DELIMITER; f++) {
        CASE("as long as may be, at the end",
             too_long_at_the_end(b, f, "1234\r", NETSRV_CLOSE_PEER));
        CASE("too long at the end",
             too_long_at_the_end(b, f, "12345\r", NETSRV_CLOSE_LINE_TOO_LONG));
    }
    CASE("split closes", split_ends(b, "xcy", NETSRV_CLOSE_LOCAL));
    CASE("split aborts", split_ends(b, "xay", NETSRV_CLOSE_ABORT));
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    for (int f = NETSRV_FRAMING_DELIMITER; f <= NETSRV_FRAMING_LENGTH; f++) {
        CASE("every cut", every_cut((netsrv_framing)f));
        CASE("many looks", many_looks((netsrv_framing)f));
    }
    CASE("refused", refused());
    rig_each_backend(all);
    return check_end();
}
