/* json: checks that every line of stdin is one JSON value, and prints what stands at a path of the
 * last line. `json workers.*.accepted` prints one value a line; without a path only the check is
 * made. Exit: 0 valid (and found), 1 not valid or not found, 2 wrong usage.
 */
#define _POSIX_C_SOURCE 200809L
#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

enum { DEPTH_MAX = 16, KEY_MAX = 64 };

static struct {
    const char *line, *at;
    const char *wanted; /* the path to print, or NULL */
    unsigned found;
    int depth;
    char keys[DEPTH_MAX][KEY_MAX];
} g;

static void bad(const char *what) {
    fprintf(stderr, "json: %s at column %td: %s\n", what, g.at - g.line + 1, g.line);
    exit(1);
}

static void skip_space(void) {
    while (*g.at == ' ' || *g.at == '\t' || *g.at == '\r' || *g.at == '\n') {
        g.at++;
    }
}

static void expect(char ch) {
    if (*g.at != ch) {
        bad("something else expected");
    }
    g.at++;
}

static bool path_matches(void) {
    const char *want = g.wanted;
    for (int i = 0; i < g.depth; i++) {
        const size_t n = strcspn(want, ".");
        const bool any = n == 1 && *want == '*';
        if (n == 0 || (!any && (strlen(g.keys[i]) != n || memcmp(g.keys[i], want, n) != 0))) {
            return false;
        }
        want += n;
        want += *want == '.';
    }
    return *want == '\0';
}

static void parse_escape(void) {
    g.at++;
    if (*g.at != 'u') {
        if (*g.at == '\0' || strchr("\"\\/bfnrt", *g.at) == NULL) {
            bad("bad escape");
        }
        g.at++;
        return;
    }
    g.at++;
    for (int i = 0; i < 4; i++) {
        if (!isxdigit((unsigned char)*g.at)) {
            bad("bad \\u escape");
        }
        g.at++;
    }
}

static void parse_string(void) {
    expect('"');
    while (*g.at != '"') {
        if ((unsigned char)*g.at < 0x20) {
            bad("raw control character or end in a string");
        }
        if (*g.at == '\\') {
            parse_escape();
        } else {
            g.at++;
        }
    }
    g.at++;
}

static void parse_digits(void) {
    if (!isdigit((unsigned char)*g.at)) {
        bad("digit expected");
    }
    while (isdigit((unsigned char)*g.at)) {
        g.at++;
    }
}

static void parse_number(void) {
    g.at += *g.at == '-';
    if (*g.at == '0' && isdigit((unsigned char)g.at[1])) {
        bad("leading zero");
    }
    parse_digits();
    if (*g.at == '.') {
        g.at++;
        parse_digits();
    }
    if (*g.at == 'e' || *g.at == 'E') {
        g.at++;
        g.at += *g.at == '+' || *g.at == '-';
        parse_digits();
    }
}

static void parse_word(const char *word) {
    if (strncmp(g.at, word, strlen(word)) != 0) {
        bad("value expected");
    }
    g.at += strlen(word);
}

static void parse_scalar(void) {
    const char *from = g.at;
    switch (*g.at) {
    case '"': parse_string(); break;
    case 't': parse_word("true"); break;
    case 'f': parse_word("false"); break;
    case 'n': parse_word("null"); break;
    default: parse_number(); break;
    }
    if (g.wanted != NULL && path_matches()) {
        const bool quoted = *from == '"';
        printf("%.*s\n", (int)(g.at - from) - 2 * quoted, from + quoted);
        g.found++;
    }
}

static void parse_key(void) {
    const char *from = g.at + 1;
    parse_string();
    snprintf(g.keys[g.depth - 1], KEY_MAX, "%.*s", (int)(g.at - from - 1), from);
    skip_space();
    expect(':');
    skip_space();
}

/* Before member number `index`: its separator and, in an object, its key. */
static void parse_member_start(unsigned index, bool in_object) {
    if (index > 0) {
        expect(',');
        skip_space();
    }
    snprintf(g.keys[g.depth - 1], KEY_MAX, "%u", index);
    if (in_object) {
        parse_key();
    }
}

static void parse_value(void) {
    const char close = *g.at == '{' ? '}' : *g.at == '[' ? ']' : '\0';
    if (close == '\0') {
        parse_scalar();
        return;
    }
    g.at++;
    if (g.depth++ == DEPTH_MAX) {
        bad("nested too deep");
    }
    skip_space();
    for (unsigned i = 0; *g.at != close; i++) {
        parse_member_start(i, close == '}');
        parse_value();
        skip_space();
    }
    g.at++;
    g.depth--;
}

static void check_line(const char *line, const char *wanted) {
    g.line = line;
    g.at = line;
    g.depth = 0;
    g.wanted = wanted;
    skip_space();
    parse_value();
    skip_space();
    if (*g.at != '\0') {
        bad("more after the value");
    }
}

int main(int argc, char **argv) {
    char *line = NULL, *last = NULL;
    size_t cap = 0;
    if (argc > 2) {
        fputs("usage: json [PATH] <LINES\n", stderr);
        return 2;
    }
    while (getline(&line, &cap, stdin) > 0) {
        line[strcspn(line, "\n")] = '\0';
        check_line(line, NULL);
        free(last);
        last = line;
        line = NULL;
        cap = 0;
    }
    if (last == NULL) {
        fputs("json: no line\n", stderr);
        return 1;
    }
    if (argc == 2) {
        check_line(last, argv[1]);
    }
    return argc == 2 && g.found == 0 ? 1 : 0;
}
