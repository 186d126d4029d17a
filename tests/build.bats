# The header in every way of being compiled, and what `make install` leaves.

source "${BATS_TEST_FILENAME%/*}/helper.bash"

WARNINGS='-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror'

setup() {
    T=$BATS_TEST_TMPDIR
    cp "$ROOT/netsrv.h" "$T/"
    printf '#include "netsrv.h"\nint main(void) { return NETSRV_OK; }\n' >"$T/declarations.c"
    cp "$T/declarations.c" "$T/declarations.cc"
    printf '#define NETSRV_IMPLEMENTATION\n#include "netsrv.h"\n' >"$T/implementation.c"
    cat >"$T/user.c" <<'END'
#include "netsrv.h"
static size_t on_data(netsrv_conn *c, const void *data, size_t n) { netsrv_send(c, data, n); return n; }
int main(void) {
    netsrv_config cfg = {.listen = {"127.0.0.1:0"}, .on_data = on_data, .workers = 2};
    netsrv_server *s;
    if (netsrv_create(&s, &cfg, NULL) != NETSRV_OK || netsrv_start(s, NULL) != NETSRV_OK) { return 1; }
    netsrv_stop(s, 0);
    return netsrv_wait(s) != NETSRV_OK || netsrv_destroy(s) != NETSRV_OK;
}
END
}

need() { command -v "$1" >/dev/null || skip "no $1 here"; }

# A compiler may be there and still be unable to build for another machine or library.
builds() {
    echo 'int main(void) { return 0; }' >"$T/empty.c"
    "$@" -pthread -o "$T/empty" "$T/empty.c" 2>/dev/null || skip "$* builds nothing here"
}

declarations() {
    local standard
    need "$1"
    for standard in c99 c11 c17; do
        $1 -std=$standard $WARNINGS -fsyntax-only "$T/declarations.c"
    done
}

@test "declarations alone as C99, C11 and C17 (gcc)" { declarations gcc; }
@test "declarations alone as C99, C11 and C17 (clang)" { declarations clang; }

declarations_cpp() {
    local standard
    need "$1"
    for standard in c++11 c++17 c++20; do
        $1 -std=$standard $WARNINGS -fsyntax-only "$T/declarations.cc"
    done
}

@test "declarations alone as C++11, C++17 and C++20 (g++)" { declarations_cpp g++; }
@test "declarations alone as C++11, C++17 and C++20 (clang++)" { declarations_cpp clang++; }

# As a user of the library compiles it, optimised and not, with and without assertions.
implementation() {
    local flags compiler=$1
    need "$compiler"
    shift
    builds "$compiler" "$@"
    for flags in '-O0 -DNETSRV_DEBUG' '-O2 -D_FORTIFY_SOURCE=2' '-O2 -DNDEBUG -std=gnu17'; do
        $compiler "$@" -std=c11 -pthread $WARNINGS $flags -c -o "$T/implementation.o" \
            "$T/implementation.c" || fail "$compiler $flags"
    done
    $compiler "$@" -std=c11 -pthread $WARNINGS -O2 -DNETSRV_STATIC -Wno-unused-function -c \
        -o "$T/static.o" "$T/implementation.c"
}

@test "implementation without warnings (gcc)" { implementation gcc; }
@test "implementation without warnings (clang)" { implementation clang; }
@test "implementation without warnings, 32 bit (gcc -m32)" { implementation gcc -m32; }
@test "implementation without warnings (musl-gcc)" { implementation musl-gcc; }

@test "implementation after a system header: works, or says at once what to do" {
    printf '#include <stdio.h>\n#define NETSRV_IMPLEMENTATION\n#include "netsrv.h"\n' >"$T/late.c"
    if ! "${CC:-cc}" -std=c11 -pthread -O1 -c -o "$T/late.o" "$T/late.c" 2>"$T/errors"; then
        grep -q '#error' "$T/errors" || fail "$(head -n 5 "$T/errors")"
    fi
}

@test "the implementation is not for C99 and says so" {
    not "${CC:-cc}" -std=c99 -fsyntax-only "$T/implementation.c" 2>"$T/errors"
    grep -q '#error' "$T/errors"
    grep -q -i 'C11' "$T/errors"
}

two_units() {
    local out=$T/two-units
    "$@" -std=c11 -pthread -g -DNETSRV_DEBUG -c -o "$T/implementation.o" "$T/implementation.c"
    "$@" -std=c11 -pthread -g -c -o "$T/user.o" "$T/user.c"
    "$@" -pthread -o "$out" "$T/user.o" "$T/implementation.o"
    timeout "$DEADLINE" "$out"
}

@test "two translation units, linked and run" { two_units "${CC:-cc}"; }

@test "two translation units, linked and run (gcc -m32)" {
    builds gcc -m32
    two_units gcc -m32
}

@test "two translation units, linked and run (musl-gcc)" {
    need musl-gcc
    two_units musl-gcc
}

@test "the header included twice, and the implementation in the middle" {
    printf '#include "netsrv.h"\n#include "netsrv.h"\n' >"$T/twice.c"
    "${CC:-cc}" -std=c11 $WARNINGS -c -o "$T/twice.o" "$T/twice.c"
    printf '#define _GNU_SOURCE\n#include "netsrv.h"\n#define NETSRV_IMPLEMENTATION\n#include "netsrv.h"\n' \
        >"$T/both.c"
    "${CC:-cc}" -std=c11 -pthread $WARNINGS -c -o "$T/both.o" "$T/both.c"
}

@test "NETSRV_STATIC: two private copies in one program" {
    printf '#define NETSRV_STATIC\n#define NETSRV_IMPLEMENTATION\n#include "netsrv.h"\n%s\n' \
        'int one(void) { netsrv_server *s; return netsrv_create(&s, 0, 0) == NETSRV_OK && netsrv_destroy(s); }' \
        >"$T/one.c"
    sed -e 's/int one/int two/' "$T/one.c" >"$T/two.c"
    echo 'int one(void); int two(void); int main(void) { return 0 * (one() + two()); }' >"$T/main.c"
    "${CC:-cc}" -std=c11 -pthread -o "$T/static" "$T/one.c" "$T/two.c" "$T/main.c"
    "${CC:-cc}" -std=c11 -pthread -c -o "$T/one.o" "$T/one.c"
    need nm
    [ "$(nm --defined-only -g "$T/one.o" | awk '{ print $3 }')" = one ]
}

@test "NETSRV_NO_IO_URING: the backend is not there, and asking for it says so" {
    "${CC:-cc}" -std=c11 -pthread $WARNINGS -DNETSRV_NO_IO_URING -o "$T/without" "$ROOT/cli/netsrv.c"
    nm "$T/without" >"$T/names"
    not grep -q 'netsrv__u\?ring_' "$T/names"
    "$T/without" --version
    if timeout "$DEADLINE" "$T/without" echo -l 127.0.0.1:0 -b io_uring 2>"$T/said"; then
        fail 'it has io_uring'
    fi
    grep -q 'io_uring is not in this build' "$T/said"
}

@test "nothing is exported but netsrv_*, and nothing global is written to" {
    need nm
    "${CC:-cc}" -std=c11 -pthread -O2 -fno-pic -c -o "$T/implementation.o" "$T/implementation.c"
    nm --defined-only -g "$T/implementation.o" | awk '{ print $3 }' >"$T/names"
    [ "$(wc -l <"$T/names")" -gt 40 ]
    not grep -v '^netsrv_[a-z]' "$T/names"
    not grep '^netsrv__' "$T/names"
    # No process-global state: no variable that can be written to, except one for each thread.
    nm -f sysv "$T/implementation.o" | awk -F '|' '$3 ~ /[bBdDcC]/ && $4 !~ /TLS/' >"$T/variables"
    [ ! -s "$T/variables" ] || fail "$(cat "$T/variables")"
}

@test "every function that is declared is there" {
    need nm
    "${CC:-cc}" -std=c11 -pthread -O2 -c -o "$T/implementation.o" "$T/implementation.c"
    nm --defined-only -g "$T/implementation.o" | awk '{ print $3 }' | sort >"$T/names"
    sed -n '/ifndef NETSRV_H/,/endif.*NETSRV_H/p' "$ROOT/netsrv.h" | tr '\n' ' ' |
        grep -o 'NETSRV_API [a-z][^;(]*(' | grep -o 'netsrv_[a-z_0-9]*(' | tr -d '(' | sort -u >"$T/declared"
    [ "$(wc -l <"$T/declared")" -gt 40 ]
    diff "$T/declared" "$T/names"
}

@test "make install, a program built with what it left, make uninstall" {
    local dest=$T/dest name
    make -s -C "$ROOT" install DESTDIR="$dest" PREFIX=/opt/x
    (cd "$dest" && find . -type f | sort) >"$T/files"
    diff - "$T/files" <<'END'
./opt/x/bin/netsrv
./opt/x/include/netsrv.h
./opt/x/share/man/man1/netsrv.1
./opt/x/share/pkgconfig/netsrv.pc
END
    [ "$("$dest/opt/x/bin/netsrv" --version)" = "netsrv $(sed -n \
        's/^#define NETSRV_VERSION *"\(.*\)"/\1/p' "$ROOT/netsrv.h")" ]
    not grep '@' "$dest/opt/x/share/pkgconfig/netsrv.pc"
    rm "$T/netsrv.h"
    if command -v pkg-config >/dev/null; then
        export PKG_CONFIG_PATH=$dest/opt/x/share/pkgconfig PKG_CONFIG_SYSROOT_DIR=$dest
        [ "$(pkg-config --modversion netsrv)" = "$("$dest/opt/x/bin/netsrv" --version | cut -d ' ' -f 2)" ]
        "${CC:-cc}" -std=c11 $(pkg-config --cflags netsrv) -o "$T/program" "$T/user.c" "$T/implementation.c" \
            $(pkg-config --libs netsrv)
        timeout "$DEADLINE" "$T/program"
    else
        "${CC:-cc}" -std=c11 -pthread -I"$dest/opt/x/include" -o "$T/program" "$T/user.c" "$T/implementation.c"
        timeout "$DEADLINE" "$T/program"
    fi
    make -s -C "$ROOT" uninstall DESTDIR="$dest" PREFIX=/opt/x
    [ -z "$(find "$dest" -type f)" ]
}

@test "make run builds and runs the command" {
    [ "$(make -s -C "$ROOT" run ARGS=--version)" = "$("$NETSRV_BIN" --version)" ]
}

@test "the manual page formats without a warning" {
    if command -v mandoc >/dev/null; then
        mandoc -T lint -W warning "$ROOT/cli/netsrv.1"
    elif command -v groff >/dev/null; then
        [ -z "$(groff -man -ww -z "$ROOT/cli/netsrv.1" 2>&1)" ]
    else
        skip "neither mandoc nor groff here"
    fi
}

@test "the top level holds what it should" {
    (cd "$ROOT" && ls) >"$T/top"
    diff - "$T/top" <<'END'
LICENSE
Makefile
README.md
cli
examples
netsrv.h
tests
END
}
