# make                  the command and the examples, in .build/
# make run ARGS='…'     build and run the command
# make test             the quick suite: a few minutes
# make check-all        everything else: sanitizers, compilers, torture, soak
# make cross            builds for other systems and processors, runs what can be emulated
# make kernels          the tests on other Linux kernels, emulated (needs qemu-system-x86_64)
# make install          header, command, man page, pkg-config file (PREFIX, DESTDIR)
# make uninstall clean

PREFIX    ?= /usr/local
DESTDIR   ?=
BINDIR    ?= $(PREFIX)/bin
INCDIR    ?= $(PREFIX)/include
MANDIR    ?= $(PREFIX)/share/man
PCDIR     ?= $(PREFIX)/share/pkgconfig
INSTALL   ?= install
CFLAGS    ?= -O2 -Wall -Wextra
ARGS      ?= echo

B         := .build
LANGUAGE  := -std=c11 -pthread
VERSION    = $(shell sed -n 's/^\#define NETSRV_VERSION *"\(.*\)"/\1/p' netsrv.h)
HEADERS   := netsrv.h $(wildcard cli/*.h tests/*.h tests/unit/*.h)
EXAMPLES  := $(patsubst examples/%.c,%,$(wildcard examples/*.c))
UNITS     := $(patsubst tests/unit/%.c,%,$(wildcard tests/unit/*.c))
STRICT    := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror
DEBUG     := -g -O1 -DNETSRV_DEBUG -fno-omit-frame-pointer

# What is tested (never what is installed) has kqueue on Linux as well, where libkqueue is found.
ifeq ($(shell uname -s; pkg-config --exists libkqueue 2>/dev/null && echo found),Linux found)
DEBUG     += -DNETSRV_LIBKQUEUE $(shell pkg-config --cflags libkqueue)
KQUEUE    := $(shell pkg-config --libs libkqueue) \
             -Wl,-rpath,$(shell pkg-config --variable=libdir libkqueue)
endif

.PHONY: all run test check-all cross kernels install uninstall clean tools debug units
.DELETE_ON_ERROR:

all: $(B)/netsrv $(EXAMPLES:%=$(B)/examples/%)

run: $(B)/netsrv
	@$(B)/netsrv $(ARGS)

$(B)/netsrv: cli/netsrv.c $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(LANGUAGE) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

$(B)/examples/%: examples/%.c $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(LANGUAGE) -I. $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

# ---- tests ---------------------------------------------------------------------------------------

tools: $(B)/client $(B)/json $(B)/activate
debug: $(B)/netsrv-debug
units: $(UNITS:%=$(B)/unit/%)

$(B)/client $(B)/json $(B)/activate: $(B)/%: tests/%.c
	@mkdir -p $(@D)
	$(CC) -std=c11 -O2 $(STRICT) -o $@ $<

$(B)/netsrv-debug: cli/netsrv.c $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(LANGUAGE) $(DEBUG) $(STRICT) -o $@ $< $(KQUEUE)

$(B)/unit/%: tests/unit/%.c $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(LANGUAGE) $(DEBUG) $(STRICT) -o $@ $< $(KQUEUE)

# A variant is the command, the examples and the unit programs built another way:
# make variant NAME=asan VCC=gcc VFLAGS='…'. The compiler's flags are part of the recipe only, so a
# changed flag needs `make clean`.
V = $(B)/$(NAME)
.PHONY: variant
variant: $(V)/netsrv-debug $(EXAMPLES:%=$(V)/examples/%) $(UNITS:%=$(V)/unit/%)

$(B)/%/netsrv-debug: cli/netsrv.c $(HEADERS)
	@mkdir -p $(@D)
	$(VCC) $(LANGUAGE) -DNETSRV_DEBUG $(VFLAGS) -o $@ $<

$(V)/unit/%: tests/unit/%.c $(HEADERS)
	@mkdir -p $(@D)
	$(VCC) $(LANGUAGE) -DNETSRV_DEBUG $(VFLAGS) -o $@ $<

$(V)/examples/%: examples/%.c $(HEADERS)
	@mkdir -p $(@D)
	$(VCC) $(LANGUAGE) -I. -DNETSRV_DEBUG $(VFLAGS) -o $@ $<

test:
	@tests/check quick

check-all:
	@tests/check all

# A cross compiler with the other systems' headers is fetched into .build/ on demand.
cross: tools
	@tests/cross

# Kernels are fetched into .build/ from where apt gets its packages.
kernels: tools debug units
	@tests/kernels

# ---- installing ----------------------------------------------------------------------------------

install: $(B)/netsrv
	$(INSTALL) -d '$(DESTDIR)$(INCDIR)' '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(MANDIR)/man1' \
	    '$(DESTDIR)$(PCDIR)'
	$(INSTALL) -m 644 netsrv.h '$(DESTDIR)$(INCDIR)/netsrv.h'
	$(INSTALL) -m 755 $(B)/netsrv '$(DESTDIR)$(BINDIR)/netsrv'
	$(INSTALL) -m 644 cli/netsrv.1 '$(DESTDIR)$(MANDIR)/man1/netsrv.1'
	sed -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@INCDIR@|$(INCDIR)|g' -e 's|@VERSION@|$(VERSION)|g' \
	    cli/netsrv.pc.in > $(B)/netsrv.pc
	$(INSTALL) -m 644 $(B)/netsrv.pc '$(DESTDIR)$(PCDIR)/netsrv.pc'

uninstall:
	rm -f '$(DESTDIR)$(INCDIR)/netsrv.h' '$(DESTDIR)$(BINDIR)/netsrv' \
	    '$(DESTDIR)$(MANDIR)/man1/netsrv.1' '$(DESTDIR)$(PCDIR)/netsrv.pc'

clean:
	rm -rf $(B)
