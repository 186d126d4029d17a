/* netsrv.h - 0.1.0 - a multicore TCP server in one header, libc only
   public domain or MIT-0, at your choice; see the end of this file

   In exactly one C file, before any other include:

       #define NETSRV_IMPLEMENTATION
       #include "netsrv.h"

   Everywhere else just include it. Compile with -std=c11 (or newer) and -pthread.


   QUICK START

       #define NETSRV_IMPLEMENTATION
       #include "netsrv.h"

       #include <err.h>

       static size_t echo(netsrv_conn *c, const void *data, size_t n) {
           netsrv_send(c, data, n);
           return n;
       }

       int main(void) {
           netsrv_config cfg = {.listen = {"127.0.0.1:7000"}, .on_data = echo};
           netsrv_error error;
           if (netsrv_run(&cfg, &error) != NETSRV_OK) { errx(1, "%s", error.text); }
       }

   That serves on every CPU. Fill in more fields of netsrv_config as you need them; zero always
   means the default. The same program runs under every backend and every arrangement below.


   CONTENTS

       The manual: guide, threading, limits, testing, platforms (this comment)
       The declarations: C99 and C++11
       The implementation: C11, sections in call order. A section calls only what stands above it;
       to find one, search for its tag.

       [config]   switches with defaults, the platform as 0/1 macros, includes
       [types]    every internal struct and enum, the three table types
       [log]      texts of results, the one log function, error reports
       [mem]      the program's allocator
       [util]     lists, numbers, a keyed hash
       [sys]      one shim for each system call
       [net]      addresses as text, listening sockets, socket options, errno classes
       [pulse]    which callback a thread is in, for others to see
       [slab]     the connections of one worker: slot + generation
       [out]      unsent bytes in chunks
       [timer]    deadlines on a hierarchical wheel
       [mailbox]  messages from any thread to one worker, and how it is woken
       [frame]    where a line or frame ends
       [conn]     the connection: states, input, output
       [share]    one buffer for many connections
       [accept]   limits, placing, handing over, pausing
       [watch]    the program's own descriptors on a worker's loop
       [resolve]  names to addresses, on threads of their own
       [dial]     connections to others
       [epoll]    readiness poller of Linux
       [kqueue]   readiness poller of macOS and the BSDs
       [poll]     readiness poller of every POSIX system
       [ready]    turns readiness into results, once for every poller
       [ring]     io_uring without a library
       [uring]    the completion backend over io_uring
       [backend]  the backends of this build, best first
       [place]    which worker gets a connection
       [jobs]     callbacks on other threads: lending a connection and taking it back
       [lookout]  the thread that notices a callback that does not return
       [worker]   the turn, the mail, the phases of leaving, the thread
       [server]   start, stop, join; undoing everything in reverse
       [defaults] default values, validation, choices
       [public]   the functions of the declarations

       To understand the whole, read netsrv__worker_turn in [worker], then follow one message down:
       netsrv__ready_wait, netsrv__ready_recv, netsrv__conn_on_recv, netsrv_send.


   WHO ACCEPTS (netsrv_config.accept)

       auto       single for one worker, exclusive for more (acceptor where the kernel lacks it).
       single     worker 0 has the listener in its own loop. The plain event-driven server; with
                  more workers it hands connections over, and its own load delays accepting.
       acceptor   threads of their own that do nothing but accept and hand over (`acceptors`, one
                  poller for all of them). Accepting goes on however busy the workers are. `trigger`
                  says how the listener is armed: level (default), edge, or oneshot (one thread
                  inside accept at a time, for one extra system call per wake-up).
       shared     one listening socket in every worker's poller. Every connection wakes every idle
                  worker, and all but one find nothing: the thundering herd. It shows in `wasted`
                  and in context switches. For comparison, and for systems that have nothing
                  better.
       exclusive  the same, and the kernel wakes one (EPOLLEXCLUSIVE, Linux 4.5). It prefers the
                  worker that registered first, so each registers again after some accepts; under
                  light load the first still gets more, which place = two_choices evens out.
       edge       the same as shared, edge-triggered: drained until nothing is left, in steps of
                  accepts_per_turn. Every new connection still wakes every idle worker.
       reuseport  a socket for each worker on the same port; the kernel spreads by a hash of the
                  addresses. The least work for each connection, and no look at the load: even only
                  for many short connections. What waits in the queue of a busy worker waits for it.
                  Refused where the option exists but does not spread (macOS, OpenBSD, NetBSD).
                  A second server on the port is an error unless share_port is set. steer_by_cpu
                  chooses the worker by the CPU that received the handshake.

       Which one? `auto`. For very many short connections measure reuseport. If handlers are long
       and new clients must never wait for them, acceptor.

   WHO GETS IT (netsrv_config.place)

       auto         keep for one worker and for reuseport, else two_choices.
       keep         whoever accepted it. No hand-over.
       round_robin  one after the other. Even in numbers: most minus fewest is at most 1.
       least        fewest connections, including those on their way.
       two_choices  the lighter of two at random: nearly as even, and cheaper with many workers.
       peer_hash    by the client's address (keyed, so that clients cannot choose): the same client,
                    the same worker. Unix sockets have no address and go round.
       own_thread   a thread for each connection: see HANDLERS THAT BLOCK. Its bytes move on a
                    worker's loop, chosen as by auto.
       custom       your function `pick`.

       A worker whose turn has taken longer than stall_ms is passed over while others are free
       (but not by keep, peer_hash and custom). Counters move before the connection does.

   HOW IT TRAVELS (netsrv_config.transfer)

       mailbox  a message to the worker, and one wake-up for each change from empty to not empty.
                A full mailbox: the accepting worker keeps the connection itself (`kept_full`).
       direct   the accepting thread registers the descriptor in the other worker's poller, which
                wakes it. Legal, and sometimes faster; the accepting thread must not and does not
                touch it afterwards. The other worker learns of it at once, not with the first byte.

       Pairs that cannot work are refused by netsrv_create with a text that names the remedy:
       keep with acceptor (its threads serve nobody), keep with single and more than one worker
       (all others would idle), exclusive with any backend but epoll and io_uring, and with backends
       poll and io_uring: edge, acceptors above 1, trigger edge or oneshot, and direct, which all
       need a poller that several threads may use.

   BACKENDS (netsrv_config.backend)

       epoll on Linux, kqueue on macOS and the BSDs, poll everywhere; auto takes the first that
       works. With NETSRV_LIBKQUEUE, kqueue on Linux as well, after epoll. netsrv_get_choice tells
       what was asked, taken, and why.

       io_uring (Linux 6.1 and newer) is used only if asked for by name. The same callbacks in the
       same order; requests are submitted and answers taken in one system call a turn, and input
       lies in a pool of 1 MiB for each worker, of which an idle connection holds nothing. A turn
       may bring twice bytes_per_turn from a connection before a pause or the high mark takes
       effect, and 256 KiB more the first time; where the kernel cannot bound what it delivers for
       one request (before 6.17), twice the pool's size the first time. exclusive and shared are the
       same: a lasting request for connections on each worker. At a limit, connections that the
       kernel has accepted already are held until there is a place, so that clients wait as they
       would in the backlog. A listener's request keeps to the limit of descriptors of the time when
       it was made. Refused by name, with the reason, where the kernel does not have it or a sandbox
       forbids it; a sandbox that kills the process instead cannot be asked. NETSRV_NO_IO_URING in
       the environment (set, and not "0") switches it off, and so does the macro of that name at
       compile time.

       Measured on Linux 6.18 over loopback, client and server on one processor, CPU per operation
       beside a bare epoll loop of recv(2) and send(2): 0.96 with 50 and with 1000 connections of 64
       bytes, 0.98 with 16 messages under way, 0.91 for a short connection, 1.03 with 4 KB and 1.05
       to 1.10 with 16 KiB, where the bytes themselves cost most. Nine tenths of the time are TCP's
       in either. auto would prefer it where it is no worse than the epoll backend with 50
       connections, with 1000, and for short ones. On processors of their own, two runs of nine
       rounds gave, beside the same loop: with 50, 0.95 and 0.98 (epoll 0.98 and 1.01); with 1000,
       0.94 and 1.06 (0.94 and 1.02); short ones, 0.80 and 0.91 (0.99 and 1.02). With 1000 it was
       worse in one of them, so auto stays with epoll.

   THREADS

       A connection lives on one worker, from on_open to on_close. Its callbacks run there, one at
       a time; no lock is needed for what belongs to one connection or one worker.

       From a callback you may call everything marked "callback: yes", also for the connection
       itself and for others on the same worker. Calls only record what you want: a connection that
       you close in its own callback is closed after the callback, and on_close follows once.

       From any other thread use an id (netsrv_get_id): netsrv_send_to, netsrv_close_id,
       netsrv_abort_id, netsrv_resume_id, netsrv_post, netsrv_post_all. An id that names a closed
       connection is harmless for ever.

       What a worker has of its own (a cache, a database connection) is made in on_worker_start,
       ended in on_worker_stop, and found through netsrv_get_worker_data: no lock, no thread-local
       variable.

       A handler that blocks delays the other connections of its worker. New ones go elsewhere. If
       yours block, read on there: HANDLERS THAT BLOCK.

       Threads of the server have all signals blocked; the library installs no handler, touches no
       disposition (not even SIGPIPE's), prints nothing, and never exits. Several servers may live
       in one process. After fork, the child must not call into the server; it may exec or exit.
       Every descriptor is close-on-exec.


   HANDLERS THAT BLOCK

       handler_threads = N runs the callbacks of connections (on_open, on_data, on_frame, on_drain,
       on_eof, on_close) on N threads beside the workers, which then only move bytes. The callbacks
       stay as they are: those of one connection run one at a time and in order, on any of the
       threads; one that takes four seconds delays nobody but its own connection, as long as fewer
       than N are that slow at once. Take as many threads as slow requests may be under way. (Where
       callbacks are short, one thread takes several, which is cheaper than to wake others. What
       stands behind a long one then is given to another thread after a millisecond.)

       place = own_thread is the simple model: the first callback of a connection takes a thread,
       an idle one or a new one, and all its callbacks run there until on_close has returned. So
       they may keep things in thread-local variables, and no number of slow connections delays
       another. handler_threads is the bound; connections beyond it wait as at max_conns, or, if
       max_conns is larger, are open and wait for a thread. One that cannot be created is waited
       for in the same way, and tried for again. Idle threads end after handler_idle_ms, but for
       one.

       With both, these differ from callbacks on the worker:

       - `c` belongs to the callback that was given it, and to no other thread in between: use it
         inside only, everywhere else the id. netsrv_find knows it in its own callbacks only, so a
         pause that one of them has set is lifted from elsewhere by netsrv_resume_id.
       - What a callback sends and asks for is recorded and takes effect, in order, when it
         returns. One that replies in parts calls netsrv_flush between them; that also says
         whether the client is still there.
       - Meanwhile, and while it waits for a thread, the connection reads no more than one buffer
         ahead, and idle_timeout_ms rests.
       - NETSRV_HIGH looks at what this callback has sent; on_drain may also come without it.
       - A connection that ends while a callback runs is closed to the peer at once; a reset, on
         Linux alone, and elsewhere with the callback's end. on_close follows after the callback,
         and the descriptor keeps its number until then.
       - With framing, a callback thread shows lines of one connection for a millisecond; then it
         is at the end of the queue, behind all others.

       on_worker_start, on_worker_stop and netsrv_post stay on the workers. So do timers, foreign
       descriptors and the beginning of outgoing connections: callbacks that run elsewhere are told
       BAD_THREAD and post to a worker. A stop leaves callbacks the time it was given. Then the
       connections are reset, callbacks that have not begun are dropped, and those that run are
       waited for: a thread cannot be ended from outside. All else has ended by then.
       netsrv_wait_for tells a program that will not wait for ever; it can only exit.

       netsrv_offload is for one piece of work in a handler that else runs on its worker: a lookup,
       a hash. It runs on a thread of its own kind, and `done` back on the worker; a connection that
       has ended gets nothing, nor does the next one in its place.

       Which handler is it? With stuck_ms, a callback that takes longer is told to on_log (WARN)
       while it still runs, and again when it returns, and counted in `stuck` of its worker:

           worker 1: on_data of connection 4294967297 (127.0.0.1:5000) has been running for 1001 ms
           worker 1: on_data of connection 4294967297 (127.0.0.1:5000) took 4000 ms

       Everything that is called on a thread of the server is told of: also split, timers, posted
       functions, watches, broadcasts with their filters, pick, release, the start and stop of
       workers, and what runs on handler and offload threads, which are told by their number. A
       thread of its own watches all others, so it works with one worker, and when all are stuck;
       the first line comes from that thread, the second from the one that was stuck. It wakes up
       once in stuck_ms, and a callback costs about 400 instructions more: off unless asked
       for. It is never early, and late only by what it takes to wake a thread. New connections go
       elsewhere in any case, after stall_ms.

       Which? Handlers that compute or answer from memory: on the workers. Some that call a slow
       database: handler_threads. Code written for one client, or libraries that want a thread of
       their own: own_thread. One slow step among quick ones: netsrv_offload. A pool costs about 2
       microseconds of CPU a message; a thread for each connection, which is woken for each
       message, ten and more.

   INPUT

       on_data returns how many bytes it has consumed. The rest is kept and shown again, together
       with what follows. At the peer's end, what it left lying is dropped.

       With framing, on_frame is called for each piece:

       line       LF or CR LF ends it, every other byte (also NUL) is its own
       delimiter  ends with the same 1 to 16 bytes
       fixed      has frame_bytes
       length     its length stands at its beginning: length_bytes, length_offset, length_little,
                  length_counts_all, keep_header
       custom     your function `split` says how long it is

       The rest of the input, up to the end of the piece, waits in memory. A piece longer than
       input_max_bytes closes the connection with LINE_TOO_LONG, for length and custom as soon as
       that is known: the bytes are not waited for. A length smaller than what it counts closes it
       with BAD_FRAME. At the peer's end an unfinished last line (or piece before a delimiter) is
       shown all the same; an unfinished piece of the other kinds is dropped.

       netsrv_pause stops reading, and the kernel then stops the peer. A reset is noticed all the
       same. Out-of-band data is ignored.

   OUTPUT

       netsrv_send never comes back short. A reply to bytes that lie in the buffer shown by the
       callback (an echo, a forwarded part) is sent from there and copied only if the kernel does
       not take it; other replies of one callback are gathered and leave in one call. 16 KiB or more
       for another connection, whose queue is empty, go out at once and uncopied, as in a proxy.

       netsrv_sendv sends several pieces, netsrv_send_owned memory that the program gives away and
       gets back through a function, netsrv_send_file a part of a file. All of them keep their
       order. On Linux, what stands before a file leaves in one packet with its beginning
       (MSG_MORE). To gather over several callbacks: netsrv_cork, which just does not send.

       The same bytes for many: netsrv_buffer_create copies them once, netsrv_broadcast and
       netsrv_send_buffer queue references. A broadcast is one message to each worker, without a
       lock that all share; each worker walks its own connections, in one turn.

       Above high_mark_bytes of queued output netsrv_send says NETSRV_HIGH, reading from that peer
       stops, and on_drain follows when the queue has fallen to low_mark_bytes. A peer that never
       reads can thus hold the high mark and little more, and write_timeout_ms ends it.

   MOVING A CONNECTION

       netsrv_move sends an open connection to another worker, with all it has: input that was kept,
       output that is not sent yet, marks and timeouts, callbacks and user pointer. Nothing is lost,
       nothing changes its order, and the peer notices nothing. Where it has arrived, on_move is
       called before anything else is; `c` is another pointer then and its id another id. The old id
       is gone, like that of a closed connection: what others send to it meanwhile is lost, so tell
       them the new one in on_move. A broadcast that is on its way at the same time may miss the
       connection, or reach it twice.

       The move begins when the callback has returned or at the end of the turn; no input is shown
       from the call on, and `c` may be used until the callback returns. If it cannot be done after
       all (no memory, or the other worker is leaving), on_move is called all the same, on the old
       worker: netsrv_get_worker tells. If the connection ends first, there is no on_move, only
       on_close. No move begins after netsrv_stop, nor any with handler_threads (UNAVAILABLE): there
       the workers only dispatch, and no connection gains by another one.

       Work that it has given with netsrv_offload stays with the old worker, where `done` says GONE;
       what has not begun by then is left out.

   THE END OF A CONNECTION

       netsrv_close    sends what is queued (flush_timeout_ms), then FIN, then reads and discards
                       what the peer still sends until it finishes (linger_timeout_ms,
                       linger_max_bytes). Without this lingering close the kernel answers unread
                       input with a reset, which destroys what the peer has not read yet.
       netsrv_shutdown sends FIN and goes on reading; when the peer finishes as well, it is over.
       netsrv_abort    resets.

       When the peer finishes first, eof_policy decides: send what is queued and close (default), or
       keep the sending direction open until the program closes.

       on_close tells the first reason. A close that could not send all it had is an error or a
       write timeout.

   FOREIGN DESCRIPTORS

       netsrv_watch puts a descriptor of the program's (a FIFO, a signalfd or inotify, the socket of
       a database client) on the loop of the worker that calls it: best in on_worker_start, or by
       netsrv_post. Its function runs on that worker between the callbacks of connections, and is
       called again as long as the descriptor is ready (level-triggered). After netsrv_unwatch it is
       not called any more, also if the kernel has reported it already.

       A watch holds a duplicate. So it makes no difference to anybody else when the program closes
       its own number first: no other descriptor that gets this number is taken for it, or lost with
       it. But the file stays open, and is reported, until netsrv_unwatch: unwatch, then close.

       A hang-up goes on for as long as it is watched: answer NETSRV_HUNG_UP, or a read of 0 bytes,
       with netsrv_unwatch, or with netsrv_watch_change to 0 until there is a reason to look again.
       (A FIFO that is opened for reading and writing never hangs up.)

       Watches do not keep a server from stopping. They are served until the last connection of the
       server has ended or the time of the stop is over, and are gone after on_worker_stop.

   TIMERS

       netsrv_timer_start calls a function of the program's on the same worker: once, or again and
       again. The timer is a struct of the program's, usually a part of what it is for, so that
       setting and stopping allocate nothing; both cost the same with one timer set and with a
       million. A call is never early, and late by the turn that is under way; no more than 1024 are
       made in a turn, the rest in the next, so that many at once do not hold up the connections.
       Calls of the same millisecond come in no particular order.

       A call may set and stop any timer of its worker, itself included, also one that is due in the
       same turn: one that was stopped is not called. A timer that is called once is free from its
       call on; a repeated one is set for its next time before it is called.

       Timers hold up no stop. They are called as long as watches are; what is still set then is
       taken back without a call, before on_worker_stop.

   OUTGOING CONNECTIONS

       netsrv_dial makes a connection to somebody else, on the worker that calls it: in a callback,
       a posted function, or on_worker_start. It is a connection like those that were accepted, with
       the server's callbacks or, given `handlers`, with callbacks of its own; `data` is its user
       pointer from the beginning. What is sent before on_open waits, up to the same marks and
       limits, so a proxy may dial and forward in one callback. netsrv_close before on_open calls it
       off.

       on_close follows in any case, exactly once, also without on_open: ERROR with the errno of the
       last address tried (ECONNREFUSED ...), NOT_RESOLVED, DIAL_TIMEOUT, or STOP. Nothing is called
       before netsrv_dial has returned; if it has failed by then, sending says GONE.

       Numeric addresses and unix paths need no look-up. Names go to getaddrinfo(3) on at most 4
       threads of their own, which exist while there are names to resolve; the addresses are tried
       one after the other. The C library cannot be interrupted: after a stop, netsrv_wait waits for
       a look-up that has begun, though its connection is gone long since.

       Dialed connections count in the numbers and in the placement, but not in max_conns,
       max_conns_per_address and max_accepts_per_second. At a stop they are treated as the others
       are, and one that is not open yet has half a second. Others can be dialed until the last
       connection that was accepted has ended; then netsrv_dial says STOPPED, so that a connection
       which dials itself again in on_close holds up no stop.

   STOP

       netsrv_stop returns at once; netsrv_wait waits for the end. In between: every thread
       unwatches its listeners; connections whose handshake is done are accepted and served; the
       listeners are closed when the last thread has left them; each connection is closed as soon
       as nothing is under way on it (a line received in part, output queued, or paused); one from
       which nothing has arrived yet has half a second to speak. Each close lingers as
       netsrv_close does, up to 2 seconds for a client that keeps its end open. When grace_ms is
       over, what is left is reset. A second call may shorten the time.

       netsrv_drain closes the listeners in the same way and then lets every connection live as long
       as it wants; the server ends with the last one, or by a netsrv_stop.

       A thread that is held up in a callback leaves its listener only afterwards. The others close
       their connections meanwhile, but clients that connect in that time wait.

       Connections are lost in two ways: a handshake that completes between the last accept and
       the close of the listener is reset by the kernel, and so is one for which there is no
       descriptor or no place under max_conns left. With reuseport and share_port the kernel
       goes on giving connections to this server until that moment; to restart without a loss,
       hand the same listening socket on ("fd:N", "systemd:name"): a socket that others hold is
       not shut down by a stop. Who waits in it then is served; who comes later is theirs.


   LIMITS, AND WHAT HAPPENS AT EACH

       max_conns               overflow = wait: listeners pause until a connection ends, clients
                               wait in the backlog; reject: accepted and reset (`refused`).
                               Exact at any number of threads.
       max_conns_per_address   accepted and reset (`refused`). IPv6 counts the /64.
       max_accepts_per_second  listeners pause until the second is over.
       descriptors, memory     listeners pause, and try again when a connection ends here and every
                               100 ms; one log line a second at most.
       input_max_bytes         the connection closes with LINE_TOO_LONG or INPUT_FULL. With framing,
                               the length of a line or frame without what ends it or tells
                               its length.
       high_mark_bytes         reading stops until low_mark_bytes.
       queue_max_bytes         the connection is reset with QUEUE_FULL, netsrv_send says so.
       server_queue_max_bytes  the same with SERVER_FULL. Counts the memory of all queued output and
                               all kept input.
       1024 names to resolve   the next one's on_close says ERROR, EAGAIN.
       offload_max_count       netsrv_offload says QUEUE_FULL.
       jobs_max_count          callbacks wait on their worker, whose connections stop being read.
       handler_threads         with own_thread: connections wait for a thread, see max_conns.
       mailbox_max_count       connections stay where they are; netsrv_send_to and the like say
                               QUEUE_FULL and have done nothing.
       linger_max_bytes        the connection closes, with a reset if more input is waiting.
       4,194,304 connections   of one worker: dropped, counted in no_memory.
       NETSRV_LISTEN_MAX, NETSRV_WORKERS_MAX, NETSRV_ACCEPTORS_MAX, NETSRV_HANDLERS_MAX: refused by
       netsrv_create.

       Timeouts are never early. idle_timeout_ms counts from the last byte in either direction, so
       a peer that sends a byte now and then is not idle; bound such peers by input_max_bytes, or
       close them from a timer. The wheel costs nothing for each byte.

   MEMORY

       An idle connection needs 216 bytes (64-bit) and no buffer. A worker has one receive buffer
       (recv_buffer_bytes), a reply buffer of 64 KiB from the first gathered reply on, and two
       wheels of timers (6 KiB each). Slots are kept for reuse until the stop.

   NUMBERS

       netsrv_get_stats for each thread, netsrv_get_total for the sums, at any time, without
       stopping anybody. netsrv_imbalance: the fullest worker in percent of the mean.

   BATCHES

       events_per_wait, accepts_per_turn and bytes_per_turn bound what one source may take before
       the others have their turn (a batch of tiny lines is a batch: count on a callback for each of
       65,536 empty lines). "How many sockets at once?" hardly matters: on Linux over
       loopback, one worker, medians of nine rounds, accepts_per_turn from 1 to 64 stayed within
       3 % of CPU per short connection, and events_per_wait from 16 to 1024 within the noise of
       10 %. The small defaults are for fairness. What matters is the receive buffer: 16 KiB cost
       1.7 times the CPU of 64 KiB with a stream of 16 KiB messages, 256 KiB saved 5 % more.


   OPTIONS BY MACRO (define before the include that has NETSRV_IMPLEMENTATION)

       NETSRV_STATIC     everything static: a private copy in one file
       NETSRV_DEBUG      internal assertions, by NETSRV_ASSERT(x), default assert(3)
       NETSRV_LIBKQUEUE  backend kqueue on Linux, by libkqueue: for tests of that backend
       NETSRV_NO_IO_URING  without the backend io_uring
       NETSRV_SEAM_...   for tests, below

   TESTING

       Every fallible system call and every allocation passes a macro that is nothing by default:

       NETSRV_SEAM_FAULT(name)             0, or an errno with which the call "name" shall fail
       NETSRV_SEAM_CLIP(name, n)           a length for "recv" or "send", 1 to n; a "ring"'s size
       NETSRV_SEAM_EVENTS(events, n, size) may permute, repeat or drop events; the new count (not
                                           with io_uring, whose completions are no hints)
       NETSRV_SEAM_CLOCK_MS(real)          the monotonic clock that timeouts see
       NETSRV_SEAM_POINT(name)             a point where threads meet, to disturb the schedule
       NETSRV_SEAM_KQUEUE                  a header, in quotes, in place of <sys/event.h>

   PLATFORMS

       How each was checked: run = the whole suite, on that system. Emulated = unit programs and an
       echo server under user-mode emulation of the processor. Compiled = header, command, examples
       and unit programs built and linked against the system's own headers, warnings as errors;
       nothing was run there. `make cross` does the last two.

           Linux x86_64                              epoll, poll    run (glibc); in part (musl)
           Linux i386                                epoll, poll    run in part (glibc)
           Linux aarch64, riscv64, armv7, s390x      epoll, poll    emulated (musl), compiled
           FreeBSD x86_64, aarch64, armv7            kqueue, poll   compiled
           NetBSD x86_64, aarch64, i386              kqueue, poll   compiled
           OpenBSD x86_64, aarch64                   kqueue, poll   compiled
           macOS x86_64, aarch64                     kqueue, poll   compiled
           DragonFly and other POSIX systems         as written     not checked

       The logic of the kqueue backend was checked in two more ways: every scenario of the suite was
       run on Linux through libkqueue, and a unit program plays kevent(2) with the orders of events
       that the systems' manuals and sources describe (scripted).

       What is missing where, and what is done instead:

           exclusive    Linux only. Elsewhere refused; auto takes acceptor with two_choices.
           reuseport    Linux, FreeBSD 12 (SO_REUSEPORT_LB), DragonFly. Refused on macOS, OpenBSD
                        and NetBSD, where one socket of the port gets everything.
           steer_by_cpu, pin_workers, defer_accept_s, abstract unix names: Linux only.
           "*:PORT"     IPv4 alone where a socket cannot take both (OpenBSD).
           wake-ups     eventfd on Linux, a pipe elsewhere. A worker on a kqueue is woken by
                        EVFILT_USER, if that works when it is tried (not before FreeBSD 8.1, NetBSD
                        10, OpenBSD 7.8); a stop always takes the pipe, since netsrv_stop may be
                        called in a signal handler and kevent(2) is not known to be safe there.
           accept4      accept and fcntl on macOS: a fork between the two inherits the descriptor.
           SIGPIPE      MSG_NOSIGNAL, and SO_NOSIGPIPE where accept4 is missing (macOS).
           keepalive_s  the system's idle time where the option does not exist (OpenBSD) or accepted
                        sockets do not inherit it (macOS).
           udata        With pointers of 32 bits a kqueue event carries 7 of the 32 bits of the
                        generation: enough, as a connection's place is reused after the batch, and
                        its filters are deleted before its descriptor is closed.
*/

/* Before any system header: what the implementation asks of them. */
#if defined(NETSRV_IMPLEMENTATION) && defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1
#endif
#if defined(NETSRV_IMPLEMENTATION) && defined(__NetBSD__) && !defined(_NETBSD_SOURCE)
#define _NETBSD_SOURCE 1
#endif

#ifndef NETSRV_H
#define NETSRV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* NETSRV_API goes before every public function. Define NETSRV_STATIC before the include for a
 * private build: everything becomes static in the one file that holds the implementation. */
#ifndef NETSRV_API
#ifdef NETSRV_STATIC
#define NETSRV_API static inline
#else
#define NETSRV_API extern
#endif
#endif

#define NETSRV_VERSION "0.1.0"

/* ---- limits that are fixed at compile time ------------------------------------------------- */

#define NETSRV_LISTEN_MAX    16      /* listening addresses of one server */
#define NETSRV_WORKERS_MAX   1024    /* worker threads of one server */
#define NETSRV_ACCEPTORS_MAX 64      /* acceptor threads of one server */
#define NETSRV_HANDLERS_MAX  16384   /* handler threads of one server */
#define NETSRV_ADDRESS_MAX   128     /* bytes that hold the text of any address, with its NUL */
#define NETSRV_DELIMITER_MAX 16      /* bytes of a delimiter */
#define NETSRV_ERROR_MAX     256     /* bytes that hold the text of an error, with its NUL */

/* What `split` answers to input that no frame begins with. */
#define NETSRV_SPLIT_BAD     SIZE_MAX

/* "Off" for a limit or a timeout. Zero never means off: it means the default. */
#define NETSRV_OFF           UINT32_MAX

/* ---- results ------------------------------------------------------------------------------- */

/* What a call says. Success is 0; NETSRV_HIGH is a success with advice; the rest are failures. */
#define NETSRV_RESULTS(X)                                                                          \
    X(OK, "success")                                                                               \
    X(HIGH, "queued, and now above the high mark: send no more until on_drain")                    \
    X(GONE, "the connection is closed or closing")                                                 \
    X(QUEUE_FULL, "a queue is at its limit")                                                       \
    X(STOPPED, "the server is not running")                                                        \
    X(TIMED_OUT, "the time is over")                                                               \
    X(BAD_CONFIG, "a field of the configuration is wrong")                                         \
    X(BAD_ADDRESS, "an address is not understood")                                                 \
    X(BAD_ARGUMENT, "an argument is wrong")                                                        \
    X(BAD_THREAD, "not allowed on this thread")                                                    \
    X(BAD_STATE, "not allowed in the server's present state")                                      \
    X(UNAVAILABLE, "not available on this system")                                                 \
    X(NO_MEMORY, "out of memory")                                                                  \
    X(SYSTEM, "a system call failed")                                                              \
    X(CANCELLED, "cancelled by the program")

typedef enum netsrv_result {
#define NETSRV_X(name, text) NETSRV_##name,
    NETSRV_RESULTS(NETSRV_X)
#undef NETSRV_X
    NETSRV_RESULT_COUNT /* how many there are; no result itself */
} netsrv_result;

/* Why a connection ended, as told to on_close. */
#define NETSRV_CLOSES(X)                                                                           \
    X(LOCAL, "closed by the program")                                                              \
    X(PEER, "closed by the peer")                                                                  \
    X(ABORT, "aborted by the program")                                                             \
    X(ERROR, "connection error")                                                                   \
    X(IDLE, "idle timeout")                                                                        \
    X(WRITE_TIMEOUT, "write timeout: the peer does not read")                                      \
    X(LINE_TOO_LONG, "a line or frame longer than input_max_bytes")                                \
    X(BAD_FRAME, "a frame whose length makes no sense")                                            \
    X(INPUT_FULL, "more unconsumed input than input_max_bytes")                                    \
    X(QUEUE_FULL, "more queued output than queue_max_bytes")                                       \
    X(SERVER_FULL, "more queued and kept bytes in the server than server_queue_max_bytes")         \
    X(NO_MEMORY, "out of memory")                                                                  \
    X(FILE_SHORT, "a file that was being sent ended before the length that was asked for")         \
    X(STOP, "the server stops")                                                                    \
    X(NOT_RESOLVED, "dialed: the name has no address")                                             \
    X(DIAL_TIMEOUT, "dialed: no connection in time")

typedef enum netsrv_close_reason {
#define NETSRV_X(name, text) NETSRV_CLOSE_##name,
    NETSRV_CLOSES(NETSRV_X)
#undef NETSRV_X
    NETSRV_CLOSE_COUNT /* how many there are; no reason itself */
} netsrv_close_reason;

/* What went wrong at create, start or run: the result, the errno if a system call failed (else 0),
 * and one line that says what, where, why and what to do. */
typedef struct netsrv_error {
    netsrv_result result;       /* NETSRV_OK if nothing failed */
    int sys_errno;              /* errno of the system call that failed, or 0 */
    char text[NETSRV_ERROR_MAX]; /* one line without newline; empty if nothing failed */
} netsrv_error;

/* ---- choices (the manual says which to take when) ------------------------------------------- */

/* The event backend. */
#define NETSRV_BACKENDS(X) X(AUTO, "auto") X(IO_URING, "io_uring") X(EPOLL, "epoll") \
    X(KQUEUE, "kqueue") X(POLL, "poll")
/* Who accepts. */
#define NETSRV_ACCEPTS(X) X(AUTO, "auto") X(SINGLE, "single") X(ACCEPTOR, "acceptor") \
    X(SHARED, "shared") X(EXCLUSIVE, "exclusive") X(EDGE, "edge") X(REUSEPORT, "reuseport")
/* How the listener is armed in the shared poller of `acceptor`. */
#define NETSRV_TRIGGERS(X) X(AUTO, "auto") X(LEVEL, "level") X(EDGE, "edge") X(ONESHOT, "oneshot")
/* Which worker gets the connection. */
#define NETSRV_PLACES(X) X(AUTO, "auto") X(KEEP, "keep") X(ROUND_ROBIN, "round_robin") \
    X(LEAST, "least") X(TWO_CHOICES, "two_choices") X(PEER_HASH, "peer_hash")                      \
    X(OWN_THREAD, "own_thread") X(CUSTOM, "custom")
/* How the connection travels to a worker that did not accept it. */
#define NETSRV_TRANSFERS(X) X(AUTO, "auto") X(MAILBOX, "mailbox") X(DIRECT, "direct")
/* How bytes become calls: on_data as they come, or on_frame for each line or frame. */
#define NETSRV_FRAMINGS(X) X(NONE, "none") X(LINE, "line") X(DELIMITER, "delimiter") \
    X(FIXED, "fixed") X(LENGTH, "length") X(CUSTOM, "custom")

#define NETSRV_X_BACKEND(name, text)  NETSRV_BACKEND_##name,
#define NETSRV_X_ACCEPT(name, text)   NETSRV_ACCEPT_##name,
#define NETSRV_X_TRIGGER(name, text)  NETSRV_TRIGGER_##name,
#define NETSRV_X_PLACE(name, text)    NETSRV_PLACE_##name,
#define NETSRV_X_TRANSFER(name, text) NETSRV_TRANSFER_##name,
#define NETSRV_X_FRAMING(name, text)  NETSRV_FRAMING_##name,
typedef enum netsrv_backend {
    NETSRV_BACKENDS(NETSRV_X_BACKEND) NETSRV_BACKEND_COUNT
} netsrv_backend;
typedef enum netsrv_accept {
    NETSRV_ACCEPTS(NETSRV_X_ACCEPT) NETSRV_ACCEPT_COUNT
} netsrv_accept;
typedef enum netsrv_trigger {
    NETSRV_TRIGGERS(NETSRV_X_TRIGGER) NETSRV_TRIGGER_COUNT
} netsrv_trigger;
typedef enum netsrv_place {
    NETSRV_PLACES(NETSRV_X_PLACE) NETSRV_PLACE_COUNT
} netsrv_place;
typedef enum netsrv_transfer {
    NETSRV_TRANSFERS(NETSRV_X_TRANSFER) NETSRV_TRANSFER_COUNT
} netsrv_transfer;
typedef enum netsrv_framing {
    NETSRV_FRAMINGS(NETSRV_X_FRAMING) NETSRV_FRAMING_COUNT
} netsrv_framing;

/* A switch whose default is not always off. */
typedef enum netsrv_switch {
    NETSRV_DEFAULT, /* what the field's comment says */
    NETSRV_ENABLE,
    NETSRV_DISABLE
} netsrv_switch;

/* What happens when max_conns is reached. */
typedef enum netsrv_overflow {
    NETSRV_OVERFLOW_WAIT,  /* default: stop accepting; clients wait in the backlog */
    NETSRV_OVERFLOW_REJECT /* accept and reset, so that the client knows at once */
} netsrv_overflow;

/* What happens after the peer has finished sending (half-close). */
typedef enum netsrv_eof_policy {
    NETSRV_EOF_CLOSE, /* default: send what is queued, then close */
    NETSRV_EOF_KEEP   /* keep sending; the program closes the connection */
} netsrv_eof_policy;

typedef enum netsrv_log_level {
    NETSRV_LOG_ERROR, /* something the program asked for did not happen */
    NETSRV_LOG_WARN,  /* a limit was met, a resource ran out, a choice was replaced */
    NETSRV_LOG_INFO,  /* listening, stopping */
    NETSRV_LOG_DEBUG  /* refused connections and the like */
} netsrv_log_level;

/* ---- objects -------------------------------------------------------------------------------- */

typedef struct netsrv_server netsrv_server; /* opaque; created and destroyed by the program */
typedef struct netsrv_conn netsrv_conn;     /* opaque; valid on its worker until on_close returns */
typedef struct netsrv_buffer netsrv_buffer; /* opaque; bytes that many connections send */

/* Names a connection anywhere and for ever: worker, slot and generation. Never 0, never reused. */
typedef uint64_t netsrv_id;

/* The same for a watched descriptor. */
typedef uint64_t netsrv_watch_id;

/* What a watched descriptor is ready for. */
#define NETSRV_READABLE 0x01u
#define NETSRV_WRITABLE 0x04u
#define NETSRV_HUNG_UP  0x10u /* told in any case, together with all that was asked for: the end, or
                                 an error that the next read or write will tell */

/* Called on the worker that watches `fd`, as long as it is ready. */
typedef void netsrv_watch_fn(netsrv_server *s, unsigned worker, int fd, unsigned ready, void *arg);

/* What the library keeps in objects of the program's. All zero at first; not for the program. */
typedef struct netsrv_link {
    struct netsrv_link *next; /* circular; NULL = on no list */
    struct netsrv_link *prev;
} netsrv_link;

typedef struct netsrv_deadline {
    netsrv_link link;
    uint64_t deadline_ms;
} netsrv_deadline;

/* A timer of one worker, to be embedded in whatever it belongs to: netsrv_timer t = {.fn = f}.
 * 56 bytes (32 with 32-bit pointers). Its memory must stay where it is while the timer is set. */
typedef struct netsrv_timer {
    void (*fn)(netsrv_server *s, unsigned worker, struct netsrv_timer *t); /* when it is due */
    void *arg;          /* the program's */
    netsrv_deadline at; /* the library's, and all that follows */
    void *owner;
    uint32_t period_ms;
} netsrv_timer;

/* A piece of what netsrv_sendv sends. */
typedef struct netsrv_span {
    const void *data;
    size_t bytes;
} netsrv_span;

/* A client, as the `pick` function sees it before the connection is open. */
typedef struct netsrv_peer {
    int family;              /* AF_INET, AF_INET6, AF_UNIX, or 0 if not known */
    uint16_t port;           /* host byte order; 0 for AF_UNIX */
    uint8_t address[16];     /* network byte order; 4 bytes used for AF_INET */
    unsigned listener;       /* index of the listening address in the configuration */
} netsrv_peer;

/* ---- configuration -------------------------------------------------------------------------- */

/* Every field's zero means its default. Strings are copied; the struct may die after the call.
 * Bytes, milliseconds and counts are in the names. Callbacks run on the worker that owns the
 * connection, one at a time per worker, and may call any function marked "callback: yes". With
 * handler_threads or place = OWN_THREAD, those of connections run elsewhere: one at a time per
 * connection, and "owner" means there. */
typedef struct netsrv_config {

    /* Where to listen. "127.0.0.1:7000", "[::1]:7000", "*:7000" or ":7000" (IPv6 and IPv4),
     * "unix:/path", "unix:@name" (abstract, Linux), "fd:3" (an inherited listener), or
     * "systemd:name". Port 0 asks for any free port. Default: "127.0.0.1:7000". The first NULL ends
     * the list. */
    const char *listen[NETSRV_LISTEN_MAX];

    /* Callbacks; each may be NULL. */
    void (*on_open)(netsrv_conn *c);  /* accepted; may send, close, set the user pointer */
    /* Bytes came. Returns how many were consumed; the rest is kept and shown again together with
     * what follows. `data` is valid until the return only. Needed unless framing is set. */
    size_t (*on_data)(netsrv_conn *c, const void *data, size_t n);
    /* One line or frame, with framing. */
    void (*on_frame)(netsrv_conn *c, const void *data, size_t n);
    /* framing = CUSTOM: how many bytes the frame has that these n > 0 bytes begin with. 0: cannot
     * be told yet. More than n: called again when they are there. NETSRV_SPLIT_BAD closes. */
    size_t (*split)(netsrv_conn *c, const void *data, size_t n);
    /* The queue fell to the low mark after NETSRV_HIGH; kept input is shown again after this. */
    void (*on_drain)(netsrv_conn *c);
    void (*on_eof)(netsrv_conn *c);   /* the peer finished sending; then eof_policy applies */
    void (*on_move)(netsrv_conn *c);  /* netsrv_move is done: new pointer, new id, new worker */
    /* The end, exactly once for each on_open, and for each netsrv_dial that could not be opened:
     * reason, and errno for NETSRV_CLOSE_ERROR (else 0). Sending is refused; `c` is gone after the
     * return. */
    void (*on_close)(netsrv_conn *c, netsrv_close_reason reason, int sys_errno);
    void (*on_worker_start)(netsrv_server *s, unsigned worker); /* first call on its thread */
    void (*on_worker_stop)(netsrv_server *s, unsigned worker);  /* last call on its thread */
    /* One line without newline. Any thread, also inside create and start. Default: silence. */
    void (*on_log)(void *user, netsrv_log_level level, const char *text);
    /* place = CUSTOM: returns the worker, 0 to workers - 1, for a new client. Runs on the accepting
     * thread, possibly on several at once. Any other value counts as `accepting` if that is a
     * worker, else as worker 0. */
    unsigned (*pick)(netsrv_server *s, const netsrv_peer *peer, unsigned accepting);
    void *user;                       /* netsrv_user(); first argument of on_log and alloc */

    /* Threads and the two axes of accept distribution. */
    unsigned workers; /* 1 to NETSRV_WORKERS_MAX; default: CPUs this process may use */
    netsrv_backend backend;           /* default: the best that this system offers */
    netsrv_accept accept;             /* default: single for one worker, else exclusive if the
                                         system has it, else acceptor */
    unsigned acceptors;               /* accept = ACCEPTOR: 1 to NETSRV_ACCEPTORS_MAX; default 1 */
    netsrv_trigger trigger;           /* accept = ACCEPTOR: default level */
    netsrv_place place;               /* default: keep for one worker and for reuseport, else
                                         two_choices */
    netsrv_transfer transfer;         /* default: mailbox */
    netsrv_switch share_port;         /* accept = REUSEPORT: let other servers bind the same port;
                                         default: no, a second start fails with EADDRINUSE */
    netsrv_switch steer_by_cpu;       /* accept = REUSEPORT: worker = receiving CPU modulo workers,
                                         by a classic BPF program (Linux); default: no */
    netsrv_switch pin_workers; /* each worker on one CPU of those allowed (Linux); default no */
    uint32_t stall_ms;                /* a worker whose turn takes longer gets no new connections
                                         while others are free; default 250; NETSRV_OFF */
    uint32_t stuck_ms;                /* a callback that takes longer is told to on_log while it
                                         still runs, and counted; below 2^31; default NETSRV_OFF,
                                         as it takes a thread that wakes up as often */

    /* Where callbacks of connections run. */
    unsigned handler_threads;         /* so many threads run them instead of the workers, which then
                                         only move bytes; default: none. With place = OWN_THREAD: at
                                         most so many, one for each connection; default 1000 */
    uint32_t handler_stack_bytes;     /* stack of each such thread; default 1 MiB */
    uint32_t handler_idle_ms;         /* place = OWN_THREAD: a thread without a connection ends
                                         after this; default 10,000; NETSRV_OFF */
    uint32_t jobs_max_count;          /* callbacks that wait for a handler thread; default 4096 */
    unsigned offload_threads;         /* for netsrv_offload: started when needed, ended after
                                         handler_idle_ms; up to NETSRV_HANDLERS_MAX; default 4 */
    uint32_t offload_max_count;       /* pieces of work of one worker under way; default 1024 */

    /* Bytes to calls. */
    netsrv_framing framing;           /* default: none */
    netsrv_switch keep_line_end; /* LINE, DELIMITER: on_frame sees what ends it; default: no */
    const char *delimiter;            /* DELIMITER: what ends a frame, at most
                                         NETSRV_DELIMITER_MAX bytes */
    uint32_t delimiter_bytes;         /* DELIMITER: its length; default: strlen(delimiter) */
    uint32_t frame_bytes;             /* FIXED: what each frame has */
    uint32_t length_bytes;            /* LENGTH: size of the length, 1, 2, 4 or 8; default 4 */
    uint32_t length_offset;           /* LENGTH: bytes in front of it, up to 255; default 0 */
    netsrv_switch length_little;      /* LENGTH: lowest byte first; default: highest first */
    netsrv_switch length_counts_all;  /* LENGTH: counts itself and what is in front of it as well;
                                         default: only what follows */
    netsrv_switch keep_header;        /* LENGTH: on_frame sees the frame from its first byte on;
                                         default: what follows the length */
    netsrv_eof_policy eof_policy;     /* default: flush, then close */

    /* Limits. The manual's table says what happens at each. */
    uint32_t max_conns;               /* live connections of the server; default 1,000,000, or
                                         handler_threads with place = OWN_THREAD */
    netsrv_overflow overflow;         /* at max_conns; default: wait */
    uint32_t max_conns_per_address;   /* live connections of one IPv4 address or IPv6 /64;
                                         default NETSRV_OFF */
    uint32_t max_accepts_per_second;  /* of the server; default NETSRV_OFF */
    uint32_t input_max_bytes;         /* unconsumed input, and longest line or frame without what
                                         ends it or tells its length; default 1 MiB */
    uint32_t high_mark_bytes;         /* queued output that stops reading; default 256 KiB, or half
                                         of a smaller queue_max_bytes */
    uint32_t low_mark_bytes; /* queued output that resumes; default a quarter of the high */
    uint32_t queue_max_bytes;         /* queued output of one connection; default 16 MiB */
    uint64_t server_queue_max_bytes;  /* memory of all queued output and kept input; default 1 GiB;
                                         NETSRV_OFF */
    uint32_t mailbox_max_count;       /* messages waiting for one worker; default 4096 */

    /* Timeouts, never early, at most a few milliseconds late on an idle machine. */
    uint32_t idle_timeout_ms;         /* no byte in either direction; default NETSRV_OFF */
    uint32_t write_timeout_ms;        /* output queued and none accepted; default NETSRV_OFF */
    uint32_t flush_timeout_ms;        /* netsrv_close: time for queued output, and with a file in
                                         it for the next progress; default 10,000 */
    uint32_t linger_timeout_ms;       /* after that: time for the peer to finish; default 2,000;
                                         NETSRV_OFF closes without waiting */
    uint32_t linger_max_bytes;        /* input discarded meanwhile; default 1 MiB */

    /* Socket options. */
    uint32_t backlog_count;           /* listen(2); default 4096 (the system clips it) */
    netsrv_switch nodelay;            /* TCP_NODELAY; default: yes */
    uint32_t keepalive_s;             /* TCP keep-alive after this idle time; default NETSRV_OFF */
    uint32_t defer_accept_s;          /* TCP_DEFER_ACCEPT (Linux); default NETSRV_OFF */
    uint32_t fast_open_count;         /* TCP_FASTOPEN queue; default NETSRV_OFF */

    /* Batches: how much one source may take before the others have their turn. */
    uint32_t events_per_wait;         /* 1 to 4096; default 256 */
    uint32_t accepts_per_turn;        /* per listener; default 8 */
    uint32_t bytes_per_turn;          /* read from one connection; default: recv_buffer_bytes */
    uint32_t recv_buffer_bytes;       /* one buffer a worker, 4096 to 16 MiB; default 64 KiB */

    /* Memory. alloc(user, NULL, 0, n) allocates, alloc(user, p, old, n) resizes, and
     * alloc(user, p, old, 0) frees. Aligned as malloc's. Any thread, several at once.
     * Default: the C library's. */
    void *(*alloc)(void *user, void *ptr, size_t old_bytes, size_t new_bytes);
} netsrv_config;

/* ---- outgoing connections -------------------------------------------------------------------- */

/* The callbacks of a dialed connection; each may be NULL, but for one of the first two. */
typedef struct netsrv_handlers {
    /* Bytes as they come, or pieces by the server's framing. */
    size_t (*on_data)(netsrv_conn *c, const void *data, size_t n);
    void (*on_frame)(netsrv_conn *c, const void *data, size_t n);
    void (*on_open)(netsrv_conn *c);  /* connected */
    void (*on_drain)(netsrv_conn *c);
    void (*on_eof)(netsrv_conn *c);
    void (*on_move)(netsrv_conn *c);
    void (*on_close)(netsrv_conn *c, netsrv_close_reason reason, int sys_errno);
    netsrv_eof_policy eof_policy;     /* default: flush, then close */
} netsrv_handlers;

/* Whom to dial, and how. Zero means the default. */
typedef struct netsrv_target {
    /* "127.0.0.1:80", "[::1]:80", "example.org:80", "unix:/path", "unix:@name". Copied. */
    const char *address;
    const netsrv_handlers *handlers;  /* lives as long as the connection; default: the server's */
    void *data;                       /* netsrv_get_data() */
    uint32_t timeout_ms;              /* until it is open; default 10,000; NETSRV_OFF */
} netsrv_target;

/* ---- numbers --------------------------------------------------------------------------------- */

/* Counters of one worker or acceptor thread, or sums over all. Each is written by one thread
 * only and may be read by any at any time; a snapshot is not taken at one instant. */
#define NETSRV_STATS(X)                                                                            \
    X(accepted, "connections that this thread accepted")                                           \
    X(received, "connections that came from another thread")                                       \
    X(given, "connections handed to another worker")                                               \
    X(moved, "open connections that went on to another worker")                                    \
    X(kept_full, "kept because the chosen worker's mailbox was full")                              \
    X(opened, "connections opened here")                                                           \
    X(closed, "connections closed here")                                                           \
    X(dialed, "outgoing connections begun")                                                        \
    X(undialed, "of these, never opened: refused, not resolved, timed out or called off")          \
    X(wasted, "wake-ups by a listener that had nothing left to accept")                            \
    X(refused, "accepted and refused: a limit was met")                                            \
    X(no_memory, "connections dropped for lack of memory")                                         \
    X(accept_errors, "accept failed for one connection")                                           \
    X(pauses, "times a listener was paused: descriptors, memory, max_conns or rate")               \
    X(turns, "turns of the loop")                                                                  \
    X(wakes, "wake-ups by another thread")                                                         \
    X(stale, "late events that met no connection")                                                 \
    X(bytes_in, "bytes received")                                                                  \
    X(bytes_out, "bytes sent")                                                                     \
    X(jobs, "callbacks that ran on handler threads")                                               \
    X(jobs_wait_us, "microseconds that they waited for a thread")                                  \
    X(jobs_run_us, "microseconds that they ran")                                                   \
    X(longest_job_us, "the longest of them in microseconds; in a sum the longest of all")          \
    X(stuck, "callbacks that took longer than stuck_ms")                                           \
    X(longest_turn_us, "longest turn in microseconds; in a sum the longest of all")

typedef struct netsrv_stats {
#define NETSRV_X(name, text) uint64_t name;
    NETSRV_STATS(NETSRV_X)
#undef NETSRV_X
    uint64_t live;          /* connections open now */
    uint64_t travelling;    /* handed over to this worker and not arrived yet */
    uint64_t queued_bytes;  /* memory of queued output and kept input; of the server, everywhere */
    uint64_t jobs_waiting;  /* callbacks that wait for a handler thread; of the whole server */
} netsrv_stats;

/* One decision of netsrv_create: what was asked, what was taken and why. */
typedef struct netsrv_choice {
    const char *field; /* "backend", "accept", "place", "transfer" */
    const char *asked; /* the name in the configuration, e.g. "auto" */
    const char *taken; /* the name that is used */
    const char *why;   /* one sentence */
} netsrv_choice;

/* Counters of one connection. */
typedef struct netsrv_conn_stats {
    uint64_t bytes_in;      /* received */
    uint64_t bytes_out;     /* accepted by the kernel */
    uint64_t queued_bytes;  /* waiting in memory, and in files that are being sent */
} netsrv_conn_stats;

/* ---- life of a server ----------------------------------------------------------------------- */

/* Checks the configuration, binds and listens; starts no thread. `error` may be NULL. On failure
 * *server is NULL, nothing is left behind, and the same text goes to on_log. A NULL cfg
 * means all defaults.
 * thread: any   callback: yes */
NETSRV_API netsrv_result netsrv_create(netsrv_server **server, const netsrv_config *cfg,
                                       netsrv_error *error);

/* Starts all threads; returns when every worker serves, or leaves none behind. After netsrv_wait a
 * server may be started again and binds the same ports. STOPPED if netsrv_stop came first.
 * thread: any but the server's own, one at a time   callback: no */
NETSRV_API netsrv_result netsrv_start(netsrv_server *s, netsrv_error *error);

/* Asks the server to stop and returns at once: no new connections, those whose handshake is done
 * are still served, idle ones are closed, busy ones have `grace_ms` to finish and are then aborted.
 * Again with a shorter time: the earlier deadline counts; 0 aborts at once. Never fails.
 * thread: any, and async-signal-safe   callback: yes */
NETSRV_API void netsrv_stop(netsrv_server *s, uint32_t grace_ms);

/* The same without an end to the patience: no new connections, the listeners are closed, those that
 * are there stay until their client or the program closes them, and with the last one the server
 * has ended. A netsrv_stop meanwhile sets a time.
 * thread: any, and async-signal-safe   callback: yes */
NETSRV_API void netsrv_drain(netsrv_server *s);

/* Accepts no more until netsrv_resume_accept: clients wait in the backlog, everybody else is
 * served. Each thread does it in its next turn. A start accepts again.
 * thread: any, and async-signal-safe   callback: yes */
NETSRV_API void netsrv_pause_accept(netsrv_server *s);
NETSRV_API void netsrv_resume_accept(netsrv_server *s);

/* Waits until all threads have ended. OK also if none was started.
 * thread: any but the server's own (BAD_THREAD)   callback: no */
NETSRV_API netsrv_result netsrv_wait(netsrv_server *s);

/* The same for at most timeout_ms; TIMED_OUT if threads still run.
 * thread: any but the server's own (BAD_THREAD)   callback: no */
NETSRV_API netsrv_result netsrv_wait_for(netsrv_server *s, uint32_t timeout_ms);

/* Stops at once if still running, waits, closes everything, frees. NULL is fine.
 * thread: any but the server's own (BAD_THREAD, and nothing is done)   callback: no */
NETSRV_API netsrv_result netsrv_destroy(netsrv_server *s);

/* create, start, wait, destroy. Ends when a callback or a signal handler calls netsrv_stop.
 * thread: any   callback: no */
NETSRV_API netsrv_result netsrv_run(const netsrv_config *cfg, netsrv_error *error);

/* ---- questions about a server ---------------------------------------------------------------- */

/* The configuration with every default filled in; lives as long as the server.
 * thread: any   callback: yes */
NETSRV_API const netsrv_config *netsrv_get_config(const netsrv_server *s);

/* Decision number i (from 0). False when there is none.
 * thread: any   callback: yes */
NETSRV_API bool netsrv_get_choice(const netsrv_server *s, unsigned i, netsrv_choice *choice);

/* The address of listener i (from 0) with its real port, as text. BAD_ARGUMENT if there is none or
 * the buffer is too small (NETSRV_ADDRESS_MAX always suffices).
 * thread: any   callback: yes */
NETSRV_API netsrv_result netsrv_get_address(const netsrv_server *s, unsigned i, char *text,
                                            size_t n);

/* The real port of listener i; 0 if it has none.
 * thread: any   callback: yes */
NETSRV_API uint16_t netsrv_get_port(const netsrv_server *s, unsigned i);

/* The user pointer of the configuration.
 * thread: any   callback: yes */
NETSRV_API void *netsrv_user(const netsrv_server *s);

/* True from netsrv_stop or netsrv_drain until the end.
 * thread: any   callback: yes */
NETSRV_API bool netsrv_stopping(const netsrv_server *s);

/* Counters of thread i: workers first, then acceptors. Bytes are added up at the end of a turn.
 * BAD_ARGUMENT beyond the last.
 * thread: any   callback: yes */
NETSRV_API netsrv_result netsrv_get_stats(const netsrv_server *s, unsigned i, netsrv_stats *stats);

/* Their sums.
 * thread: any   callback: yes */
NETSRV_API void netsrv_get_total(const netsrv_server *s, netsrv_stats *stats);

/* Imbalance: live connections of the fullest worker in percent of the mean. 100 is even; 0 without
 * connections.
 * thread: any   callback: yes */
NETSRV_API unsigned netsrv_imbalance(const netsrv_server *s);

/* ---- connections: owner thread only ---------------------------------------------------------- */

/* Queues a copy of n bytes, or sends them straight from the receive buffer if they lie in it. Never
 * short. HIGH: queued, but send no more until on_drain. GONE: closing or closed. QUEUE_FULL or
 * NO_MEMORY: not queued, and the connection ends with that reason, so that no stream has a hole.
 * thread: owner   callback: yes (in on_close: GONE) */
NETSRV_API netsrv_result netsrv_send(netsrv_conn *c, const void *data, size_t n);

/* The same for several pieces: all of them, in this order, or none.
 * thread: owner   callback: yes (in on_close: GONE) */
NETSRV_API netsrv_result netsrv_sendv(netsrv_conn *c, const netsrv_span *spans, size_t count);

/* Sends memory of the program's without a copy. It must not change until release(arg) is called,
 * exactly once, whatever becomes of it: refused (then before the return), copied because it is
 * small (likewise), sent, or dropped at the end of the connection (then at the end of a turn, on
 * the thread that owns the connection; any call is allowed in it). For memory from malloc,
 * release is free and arg is data. NULL: nobody needs to know. Results as netsrv_send.
 * thread: owner   callback: yes (in on_close: GONE) */
NETSRV_API netsrv_result netsrv_send_owned(netsrv_conn *c, const void *data, size_t n,
                                           void (*release)(void *arg), void *arg);

/* Sends n bytes of a file from `offset` on, in order with everything else, by sendfile(2) where
 * that works and by pread(2) elsewhere. The descriptor must stay open until release(arg), which is
 * called as above. The bytes count for the marks, but not for queue_max_bytes. A file that turns
 * out shorter ends the connection with FILE_SHORT, one that cannot be read with ERROR; both by a
 * reset, so that the peer does not take a part for the whole. BAD_ARGUMENT: more bytes than half of
 * what a size_t can count, or behind more than a quarter of that in the queue.
 * thread: owner   callback: yes (in on_close: GONE) */
NETSRV_API netsrv_result netsrv_send_file(netsrv_conn *c, int fd, uint64_t offset, uint64_t n,
                                          void (*release)(void *arg), void *arg);

/* Holds back what is sent until netsrv_uncork, netsrv_shutdown or netsrv_close, until it is above
 * the high mark, or until the server stops; what waits for the peer already goes on. For a reply
 * that comes about in several callbacks; what one callback sends leaves together anyway.
 * thread: owner   callback: yes */
NETSRV_API void netsrv_cork(netsrv_conn *c);
NETSRV_API void netsrv_uncork(netsrv_conn *c);

/* Sends now what was sent so far, for a callback that replies in parts and takes long; without it,
 * all leaves when the callback returns. HIGH: above the high mark, go on in on_drain. GONE: the
 * connection is closed or closing, perhaps by the peer while this callback ran.
 * thread: owner   callback: yes */
NETSRV_API netsrv_result netsrv_flush(netsrv_conn *c);

/* Stops and resumes reading from the peer. Kept input is shown again after the resume. From
 * elsewhere: netsrv_resume_id.
 * thread: owner   callback: yes */
NETSRV_API void netsrv_pause(netsrv_conn *c);
NETSRV_API void netsrv_resume(netsrv_conn *c);

/* Sends FIN after what is queued and goes on reading. Sending afterwards is refused with GONE.
 * thread: owner   callback: yes */
NETSRV_API void netsrv_shutdown(netsrv_conn *c);

/* Closes in order: no more input is shown, what is queued is sent, then FIN, then what the peer
 * still sends is discarded until it finishes (a lingering close), all within the timeouts.
 * thread: owner   callback: yes */
NETSRV_API void netsrv_close(netsrv_conn *c);

/* Closes at once with RST; what is queued is lost.
 * thread: owner   callback: yes */
NETSRV_API void netsrv_abort(netsrv_conn *c);

/* The program's pointer of this connection; NULL at first.
 * thread: owner   callback: yes */
NETSRV_API void netsrv_set_data(netsrv_conn *c, void *data);
NETSRV_API void *netsrv_get_data(const netsrv_conn *c);

/* Replaces idle_timeout_ms for this connection; NETSRV_OFF ends it; 0 restores the server's.
 * thread: owner   callback: yes */
NETSRV_API void netsrv_set_idle_timeout(netsrv_conn *c, uint32_t timeout_ms);

/* Address of the peer and of this end as text, "127.0.0.1:5000", "[::1]:5000" or "unix"; an IPv4
 * client of a dual-stack listener is shown as IPv4. Returns `text`.
 * thread: owner   callback: yes */
NETSRV_API const char *netsrv_peer_text(const netsrv_conn *c, char *text, size_t n);
NETSRV_API const char *netsrv_local_text(const netsrv_conn *c, char *text, size_t n);

/* The name of this connection for other threads; the worker that owns it; its server; the index of
 * its listener (NETSRV_LISTEN_MAX if it was dialed); its descriptor (for getsockopt and the like;
 * never close it; -1 before it is connected); its counters.
 * thread: owner   callback: yes */
NETSRV_API netsrv_id netsrv_get_id(const netsrv_conn *c);
NETSRV_API unsigned netsrv_get_worker(const netsrv_conn *c);
NETSRV_API netsrv_server *netsrv_get_server(const netsrv_conn *c);
NETSRV_API unsigned netsrv_get_listener(const netsrv_conn *c);
NETSRV_API int netsrv_get_fd(const netsrv_conn *c);
NETSRV_API void netsrv_get_conn_stats(const netsrv_conn *c, netsrv_conn_stats *stats);

/* ---- work on another thread ------------------------------------------------------------------ */

#define NETSRV_ORDERED 1u /* netsrv_offload: after what this connection gave with it before */

typedef uint64_t netsrv_task; /* names one piece of work, for ever. Never 0 */

/* Runs work(arg) on a thread for that, then done(c, arg, result) on the worker: OK with the
 * connection; GONE with NULL when it is closed or closing, or has moved; CANCELLED. Called exactly
 * once, so that it may free arg; work that has not begun by then is left out. Several run side by
 * side, those with NETSRV_ORDERED in `flags` one after the other. `task` may be NULL. QUEUE_FULL at
 * offload_max_count (or 65,535 of one connection), GONE if c is closing, SYSTEM if there is no
 * thread: then neither is called. BAD_THREAD in callbacks that run beside the workers: those may
 * take their time themselves.
 * thread: owner, on a worker   callback: yes */
NETSRV_API netsrv_result netsrv_offload(netsrv_conn *c, void (*work)(void *arg),
                                        void (*done)(netsrv_conn *c, void *arg,
                                                     netsrv_result result),
                                        void *arg, unsigned flags, netsrv_task *task);

/* done will say CANCELLED: at once if work has not begun, else when it returns. GONE: it is over.
 * thread: the worker that gave it (else BAD_THREAD)   callback: yes */
NETSRV_API netsrv_result netsrv_cancel(netsrv_server *s, netsrv_task task);

/* ---- timers of a worker ---------------------------------------------------------------------- */

/* Sets a timer of the calling worker: t->fn is called once after delay_ms, never early, and with
 * period_ms != 0 again every period_ms, counted from the first time; times that a busy worker
 * missed are left out. A timer that is set already is set anew. BAD_ARGUMENT without fn, BAD_THREAD
 * on any other thread than a worker's (one that is set belongs to the worker that set it), STOPPED
 * from on_worker_stop on.
 * thread: a worker's   callback: yes, also in the timer's own */
NETSRV_API netsrv_result netsrv_timer_start(netsrv_server *s, netsrv_timer *t, uint32_t delay_ms,
                                            uint32_t period_ms);

/* Takes it back: from here on it is not called, even if it is due already, and its memory is the
 * program's again. Does nothing if it is not set. Whether it is set (a timer that is called once is
 * not, from its call on).
 * thread: the worker that set it   callback: yes, also in the timer's own */
NETSRV_API void netsrv_timer_stop(netsrv_timer *t);
NETSRV_API bool netsrv_timer_is_set(const netsrv_timer *t);

/* Moves the connection to another worker, or to its own; on_move follows. GONE: closing or closed.
 * BAD_STATE: dialed and not open yet. BAD_ARGUMENT: no such worker. STOPPED: the server stops.
 * UNAVAILABLE: with handler_threads, where workers run no callbacks and hardly differ.
 * thread: owner   callback: yes */
NETSRV_API netsrv_result netsrv_move(netsrv_conn *c, unsigned worker);

/* Begins a connection on this worker. *c is the connection, not open yet; `c` may be NULL.
 * BAD_THREAD: not a worker of this server; netsrv_post leads to one. BAD_ADDRESS: not understood.
 * BAD_ARGUMENT: handlers without on_data, and without on_frame or framing. STOPPED: the server
 * stops, and has no client left.
 * Everything else is told to on_close.
 * thread: a worker   callback: yes */
NETSRV_API netsrv_result netsrv_dial(netsrv_server *s, const netsrv_target *target,
                                     netsrv_conn **c);

/* ---- from any thread ------------------------------------------------------------------------- */

/* Sends a copy to a connection named by id. OK means handed to its worker (or queued, if this is
 * the owner's thread); a connection that ends meanwhile is a silent "gone". GONE: known to be gone.
 * QUEUE_FULL: the worker's mailbox is full; nothing was sent. Order is kept per sending thread.
 * Calls nothing of the program's, so it may be used under the program's own locks.
 * thread: any   callback: yes */
NETSRV_API netsrv_result netsrv_send_to(netsrv_server *s, netsrv_id id, const void *data, size_t n);

/* Bytes to be sent to many connections, in memory once. A copy of n bytes, or, with data = NULL,
 * room for them, to be filled through netsrv_buffer_data before the first is sent and not changed
 * after that. Counts for server_queue_max_bytes while it exists; NULL without memory or at that
 * limit.
 * The caller holds one reference, each queue that the buffer is in another; the last one that is
 * released frees it. Release yours before netsrv_destroy.
 * thread: any   callback: yes */
NETSRV_API netsrv_buffer *netsrv_buffer_create(netsrv_server *s, const void *data, size_t n);
NETSRV_API void *netsrv_buffer_data(netsrv_buffer *b);
NETSRV_API void netsrv_buffer_retain(netsrv_buffer *b);
NETSRV_API void netsrv_buffer_release(netsrv_buffer *b);

/* As netsrv_send, without a copy (a short one behind queued output is copied all the same).
 * thread: owner   callback: yes (in on_close: GONE) */
NETSRV_API netsrv_result netsrv_send_buffer(netsrv_conn *c, netsrv_buffer *b);

/* As netsrv_send_to, likewise.
 * thread: any   callback: yes */
NETSRV_API netsrv_result netsrv_send_buffer_to(netsrv_server *s, netsrv_id id, netsrv_buffer *b);

/* To every open connection for which filter(c, arg) is true; NULL: to all. The filter runs on the
 * worker of each connection, on several at once; it may look at the connection's data, at
 * netsrv_get_conn_stats to pass over one that does not keep up, and call what a callback may. A
 * connection for which a limit is met ends as by netsrv_send. All workers take part or, with
 * QUEUE_FULL, STOPPED or NO_MEMORY, none. release(arg), if not NULL, is called exactly once: by the
 * worker that is the last, or before the return if it fails. Broadcasts and sends of one thread
 * keep their order. Connections that are being dialed take part. With handler threads the filter
 * may run while one of them has the connection: let it look at atomic data only.
 * thread: any   callback: yes */
NETSRV_API netsrv_result netsrv_broadcast(netsrv_server *s, netsrv_buffer *b,
                                          bool (*filter)(netsrv_conn *c, void *arg),
                                          void (*release)(void *arg), void *arg);

/* netsrv_close and netsrv_abort by id.
 * thread: any   callback: yes */
NETSRV_API netsrv_result netsrv_close_id(netsrv_server *s, netsrv_id id);
NETSRV_API netsrv_result netsrv_abort_id(netsrv_server *s, netsrv_id id);

/* netsrv_resume by id, for whoever has what a paused connection waits for. One that a callback just
 * pauses, on a handler thread, is resumed when that returns: so it may be called from the moment on
 * at which the callback has told others what it waits for. Results as netsrv_send_to.
 * thread: any   callback: yes */
NETSRV_API netsrv_result netsrv_resume_id(netsrv_server *s, netsrv_id id);

/* Runs fn(server, worker, arg) on a worker's thread. Never merged, never lost once OK was returned.
 * STOPPED before the start and after the end, and at the end of a stop.
 * thread: any   callback: yes */
NETSRV_API netsrv_result netsrv_post(netsrv_server *s, unsigned worker,
                                     void (*fn)(netsrv_server *s, unsigned worker, void *arg),
                                     void *arg);

/* The same on every worker, or on none: QUEUE_FULL if one mailbox is full, STOPPED if one worker
 * has ended.
 * thread: any   callback: yes */
NETSRV_API netsrv_result netsrv_post_all(netsrv_server *s,
                                         void (*fn)(netsrv_server *s, unsigned worker, void *arg),
                                         void *arg);

/* The program's pointer of one worker, NULL at first, kept over a restart. BAD_ARGUMENT, and NULL,
 * if there is no such worker. There is no lock: once threads run, it is for that worker's own.
 * thread: the worker's; any while none runs   callback: yes */
NETSRV_API netsrv_result netsrv_set_worker_data(netsrv_server *s, unsigned worker, void *data);
NETSRV_API void *netsrv_get_worker_data(const netsrv_server *s, unsigned worker);

/* The connection behind an id, if the calling thread owns it and it is open; else NULL. With
 * handler_threads: only in callbacks of that connection itself.
 * thread: any (NULL on a foreign one)   callback: yes */
NETSRV_API netsrv_conn *netsrv_find(netsrv_server *s, netsrv_id id);

/* ---- foreign descriptors: on a worker's thread ----------------------------------------------- */

/* Calls fn on this worker as long as `fd` is ready for what `mask` asks: NETSRV_READABLE,
 * NETSRV_WRITABLE, both, or 0 (nothing for now). The descriptor stays the program's, a duplicate is
 * held until netsrv_unwatch; it should be non-blocking. `watch` may be NULL. BAD_ARGUMENT: not an
 * open descriptor. UNAVAILABLE: always ready, and not to be waited for, as a regular file is.
 * BAD_THREAD: not a worker of this server; netsrv_post leads to one. SYSTEM: errno says why.
 * thread: a worker   callback: yes */
NETSRV_API netsrv_result netsrv_watch(netsrv_server *s, int fd, unsigned mask, netsrv_watch_fn *fn,
                                      void *arg, netsrv_watch_id *watch);

/* Replaces the mask. After a failure nothing is reported until the next change. GONE: not watched
 * any more.
 * thread: the worker that watches (else BAD_THREAD)   callback: yes */
NETSRV_API netsrv_result netsrv_watch_change(netsrv_server *s, netsrv_watch_id watch,
                                             unsigned mask);

/* From now on fn is not called any more. GONE: that was so already.
 * thread: the worker that watches (else BAD_THREAD)   callback: yes */
NETSRV_API netsrv_result netsrv_unwatch(netsrv_server *s, netsrv_watch_id watch);

/* ---- names ----------------------------------------------------------------------------------- */

/* Texts of results and reasons, and names of choices by number. NULL beyond the last, so that
 * `for (i = 0; (name = netsrv_accept_name(i)) != NULL; i++)` walks all.
 * thread: any   callback: yes */
NETSRV_API const char *netsrv_result_text(int result);
NETSRV_API const char *netsrv_close_text(int reason);
NETSRV_API const char *netsrv_backend_name(int backend);
NETSRV_API const char *netsrv_accept_name(int accept);
NETSRV_API const char *netsrv_trigger_name(int trigger);
NETSRV_API const char *netsrv_place_name(int place);
NETSRV_API const char *netsrv_transfer_name(int transfer);

#ifdef __cplusplus
}
#endif
#endif /* NETSRV_H */

#ifdef NETSRV_IMPLEMENTATION
#ifndef NETSRV__IMPLEMENTED
#define NETSRV__IMPLEMENTED

/* ========================================================================== *
 *  [config] Switches with defaults, the platform as 0/1 macros, includes
 *  uses:   -
 *  thread: -
 * ========================================================================== */

#ifdef __cplusplus
#error "netsrv.h: the implementation is C11; compile it in one .c file (C++ may include the rest)"
#endif
#if !defined(__STDC_VERSION__) || __STDC_VERSION__ < 201112L || defined(__STDC_NO_ATOMICS__)
#error "netsrv.h: the implementation needs C11 with atomics (-std=c11 or newer)"
#endif

#if defined(__linux__)
#define NETSRV__LINUX 1
#else
#define NETSRV__LINUX 0
#endif
#if defined(__APPLE__)
#define NETSRV__APPLE 1
#else
#define NETSRV__APPLE 0
#endif
#if defined(__FreeBSD__)
#define NETSRV__FREEBSD 1
#else
#define NETSRV__FREEBSD 0
#endif
#if defined(__NetBSD__)
#define NETSRV__NETBSD 1
#else
#define NETSRV__NETBSD 0
#endif
#if NETSRV__APPLE || NETSRV__FREEBSD || NETSRV__NETBSD || defined(__OpenBSD__) ||                  \
    defined(__DragonFly__)
#define NETSRV__BSD 1
#else
#define NETSRV__BSD 0
#endif

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#if NETSRV__LINUX
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#ifndef EPOLLEXCLUSIVE
#define EPOLLEXCLUSIVE (1u << 28)
#endif
#ifndef SO_ATTACH_REUSEPORT_CBPF
#define SO_ATTACH_REUSEPORT_CBPF 51
#endif
#if !defined(CPU_SETSIZE) || !defined(F_DUPFD_CLOEXEC) || !defined(SOCK_NONBLOCK)
#error "netsrv.h: include netsrv.h with NETSRV_IMPLEMENTATION before any system header"
#endif
#endif
#if defined(NETSRV_SEAM_KQUEUE)
#include NETSRV_SEAM_KQUEUE
#elif NETSRV__BSD || defined(NETSRV_LIBKQUEUE)
#include <sys/event.h>
#endif

#define NETSRV__HAS_EPOLL NETSRV__LINUX
#if NETSRV__LINUX && !defined(NETSRV_NO_IO_URING) && !defined(__alpha__)
#define NETSRV__HAS_IO_URING 1
#define NETSRV__SYS_RING_SETUP 425 /* the C library's headers may be older than the kernel */
#define NETSRV__SYS_RING_ENTER 426
#define NETSRV__SYS_RING_REGISTER 427
#else
#define NETSRV__HAS_IO_URING 0
#endif
#define NETSRV__HAS_COMPLETIONS NETSRV__HAS_IO_URING
#ifndef NETSRV__PREFERS_IO_URING /* by auto, over epoll: see BACKENDS for what was measured */
#define NETSRV__PREFERS_IO_URING 0
#endif
#define NETSRV__HAS_EVENTFD NETSRV__LINUX
#if defined(EVFILT_READ) && defined(EV_RECEIPT) && defined(EV_DISPATCH)
#define NETSRV__HAS_KQUEUE 1
#else
#define NETSRV__HAS_KQUEUE 0 /* one without receipts cannot say which change failed */
#endif
/* What has another type on each system: for an event's fields, and the count of a list. */
#if NETSRV__NETBSD
#define NETSRV__KQ_COUNT(n) ((size_t)(n))
#define NETSRV__KQ_FILTER(x) ((uint32_t)(x))
#define NETSRV__KQ_FLAGS(x) ((uint32_t)(x))
#else
#define NETSRV__KQ_COUNT(n) ((int)(n))
#define NETSRV__KQ_FILTER(x) ((short)(x))
#define NETSRV__KQ_FLAGS(x) ((unsigned short)(x))
#endif
#if NETSRV__NETBSD && __NetBSD_Version__ < 1000000000
#define NETSRV__KQ_UDATA(x) ((intptr_t)(x))
#else
#define NETSRV__KQ_UDATA(x) ((void *)(uintptr_t)(x))
#endif
#if defined(SOCK_NONBLOCK) && !NETSRV__APPLE
#define NETSRV__HAS_ACCEPT4 1
#else
#define NETSRV__HAS_ACCEPT4 0
#endif
#if NETSRV__LINUX || defined(__DragonFly__)
#define NETSRV__REUSEPORT SO_REUSEPORT
#elif NETSRV__FREEBSD && defined(SO_REUSEPORT_LB)
#define NETSRV__REUSEPORT SO_REUSEPORT_LB
#else
#define NETSRV__REUSEPORT 0 /* exists elsewhere, but does not spread connections */
#endif
#if NETSRV__APPLE
#define NETSRV__KEEPIDLE TCP_KEEPALIVE
#elif defined(TCP_KEEPIDLE)
#define NETSRV__KEEPIDLE TCP_KEEPIDLE
#else
#define NETSRV__KEEPIDLE 0
#endif
/* sendfile(2) has three shapes; elsewhere a file is read and sent. */
#if NETSRV__LINUX
#include <sys/sendfile.h>
#endif
#if NETSRV__LINUX || NETSRV__APPLE || NETSRV__FREEBSD || defined(__DragonFly__)
#define NETSRV__HAS_SENDFILE 1
#else
#define NETSRV__HAS_SENDFILE 0
#endif
#if NETSRV__LINUX
#define NETSRV__MORE MSG_MORE
#else
#define NETSRV__MORE 0
#endif
/* Whether the option may be set on a socket that is bound already, and counts from then on. */
#define NETSRV__REUSEPORT_LATE NETSRV__LINUX
#ifdef MSG_NOSIGNAL
#define NETSRV__NOSIGNAL MSG_NOSIGNAL
#else
#define NETSRV__NOSIGNAL 0
#endif

/* Assertions are for those who change this file or suspect it: -DNETSRV_DEBUG. */
#ifndef NETSRV_ASSERT
#ifdef NETSRV_DEBUG
#include <assert.h>
#define NETSRV_ASSERT(x) assert(x)
#else
#define NETSRV_ASSERT(x) ((void)0)
#endif
#endif

/* The seam of test builds; the manual's chapter on testing explains each. */
#ifndef NETSRV_SEAM_FAULT
#define NETSRV_SEAM_FAULT(name) 0
#endif
#ifndef NETSRV_SEAM_CLIP
#define NETSRV_SEAM_CLIP(name, n) (n)
#endif
#ifndef NETSRV_SEAM_EVENTS
#define NETSRV_SEAM_EVENTS(events, n, size) (n)
#endif
#ifndef NETSRV_SEAM_CLOCK_MS
#define NETSRV_SEAM_CLOCK_MS(real) (real)
#endif
#ifndef NETSRV_SEAM_POINT
#define NETSRV_SEAM_POINT(name) ((void)0)
#endif

#if defined(__GNUC__)
#define NETSRV__LIKELY(x) __builtin_expect(!!(x), 1)
#define NETSRV__HOT inline __attribute__((always_inline)) /* once per message */
#define NETSRV__COLD __attribute__((noinline))            /* keeps its weight out of the former */
#define NETSRV__PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define NETSRV__LIKELY(x) (x)
#define NETSRV__HOT inline
#define NETSRV__COLD
#define NETSRV__PRINTF(f, a)
#endif

/* The C library's send and recv are cancellation points, which cost more instructions than all of
 * netsrv's own work on a message; our threads are never cancelled. Not under a sanitizer, which
 * must see the calls, and not on 32 bits, where old kernels lack the numbers. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define NETSRV__SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define NETSRV__SANITIZED 1
#endif
#endif
#ifndef NETSRV__SANITIZED
#define NETSRV__SANITIZED 0
#endif
#if NETSRV__LINUX && defined(__LP64__) && defined(SYS_sendto) && defined(SYS_recvfrom) && \
    !NETSRV__SANITIZED
#define NETSRV__PLAIN_CALLS 1
#else
#define NETSRV__PLAIN_CALLS 0
#endif

/* Memory that nobody may read at present. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define NETSRV__POISON(at, n) ASAN_POISON_MEMORY_REGION(at, n)
#define NETSRV__UNPOISON(at, n) ASAN_UNPOISON_MEMORY_REGION(at, n)
#elif defined(NETSRV_DEBUG)
#define NETSRV__POISON(at, n) memset(at, 0xdb, n)
#define NETSRV__UNPOISON(at, n) ((void)0)
#else
#define NETSRV__POISON(at, n) ((void)0)
#define NETSRV__UNPOISON(at, n) ((void)0)
#endif

#define NETSRV__CACHE_LINE 64
#define NETSRV__SLAB_CHUNK 64          /* connections allocated at once */
#define NETSRV__SLAB_MAX (1u << 22)    /* slots of one worker, as many as an id can name */
#define NETSRV__REPLY_BYTES 65536      /* replies gathered during one callback */
#define NETSRV__REPLY_FLUSH 32768      /* ... and sent between two frames from here on */
#define NETSRV__SEND_NOW 16384         /* as much at once is worth a call of its own */
#define NETSRV__OUT_MIN 4096           /* smallest and largest chunk for small sends */
#define NETSRV__OUT_MAX 65536
#define NETSRV__OUT_IOV 16             /* chunks given to one sendmsg */
#define NETSRV__SHARE_MIN 256          /* shorter ones take less memory as a copy */
#define NETSRV__OUT_ROUNDS 4           /* sendmsg calls for one connection and settle */
#define NETSRV__FILE_PIECE (1u << 20)  /* of a file for one sendfile */
#define NETSRV__ROTATE 16 /* accepts after which an exclusive listener is re-registered */
#define NETSRV__ACCEPT_FAILURES 16     /* in a row: more than clients that left too early */
#define NETSRV__RETRY_MS 100           /* a paused listener tries again; a missing thread */
#define NETSRV__FRESH_MS 500           /* at a stop: time for a first byte */
#define NETSRV__LONG_TURN_MS 4 /* a longer turn corrects its time stamps; more with many slots */
#define NETSRV__WHEEL_BITS 6
#define NETSRV__WHEEL_SLOTS (1u << NETSRV__WHEEL_BITS)
#define NETSRV__WHEEL_LEVELS 6         /* 64^6 milliseconds: two years */
#define NETSRV__RESOLVERS 4            /* threads that look names up, at most */
#define NETSRV__LOOKUPS 1024           /* names that wait for them */
#define NETSRV__TARGETS 8              /* addresses of one name that are tried */
#define NETSRV__JOB_SHORT_US 50u       /* a job that costs no more than waking a thread for it */
#define NETSRV__JOB_PATIENCE_US 200u   /* for which a queue of short ones is left to one thread */
#define NETSRV__JOB_LONG_US 1000u      /* longer ones count as this */
#define NETSRV__JOB_REPLY 960          /* room that goes with each job for what it answers */
#define NETSRV__SLICE_US 1000          /* lines shown by one job: then it is the others' turn */

#define NETSRV__DRAIN 2                /* a stop without a deadline */
#define NETSRV__STOP_TURNS 16          /* turns that a stop leaves for input already there */
#define NETSRV__UNSEEN_TURNS 64        /* turns that timeouts leave for it */
#define NETSRV__TIMERS_PER_TURN 1024   /* calls of the program's timers before the others' turn */

/* ========================================================================== *
 *  [types] Every internal struct and enum, the three table types
 *  uses:   -
 *  thread: named at each struct
 * ========================================================================== */

typedef struct netsrv__worker netsrv__worker;
typedef struct netsrv__group netsrv__group;
typedef struct netsrv__job netsrv__job;
typedef struct netsrv__pool netsrv__pool;
typedef struct netsrv__hand netsrv__hand;
typedef struct netsrv__uring netsrv__uring;
typedef struct netsrv__lookout netsrv__lookout;

/* Counters are 64 bits wide where that needs no lock. */
#if ATOMIC_LLONG_LOCK_FREE == 2
typedef _Atomic uint64_t netsrv__counter;
#else
typedef _Atomic size_t netsrv__counter;
#endif

typedef netsrv_link netsrv__link;

/* ---- tokens: what the kernel gives back with an event ---- */

enum { /* the low three bits of a token */
    NETSRV__TOKEN_CONN,     /* generation << 32 | slot << 3                     */
    NETSRV__TOKEN_LISTENER, /* index of the gate << 3                           */
    NETSRV__TOKEN_WAKE,     /* nothing else                                     */
    NETSRV__TOKEN_ARRIVAL,  /* pointer to a netsrv__arrival                     */
    NETSRV__TOKEN_WATCH     /* generation << 32 | slot << 3                     */
};
#define NETSRV__TOKEN_MASK 7u
#define NETSRV__TOKEN_WOKEN (UINT64_C(1) << 3 | NETSRV__TOKEN_WAKE) /* ... by the queue itself */

enum { /* event masks and interest; the low bits have the values of poll(2) and epoll(7) */
    NETSRV__IN = 0x001,
    NETSRV__OUT = 0x004,
    NETSRV__ERR = 0x008,
    NETSRV__HUP = 0x010,
    NETSRV__KEEP = 0x100, /* registered, if only for errors; interest 0 = not registered */
    NETSRV__EDGE = 0x200,
    NETSRV__ONESHOT = 0x400,
    NETSRV__EXCLUSIVE = 0x800,
    NETSRV__ERRNO_SHIFT = 16 /* with ERR: the errno, where the poller tells it; else 0 */
};
_Static_assert(POLLIN == NETSRV__IN && POLLOUT == NETSRV__OUT && POLLERR == NETSRV__ERR &&
               POLLHUP == NETSRV__HUP, "poll masks are used as they are");
_Static_assert(NETSRV_READABLE == NETSRV__IN && NETSRV_WRITABLE == NETSRV__OUT &&
               NETSRV_HUNG_UP == NETSRV__HUP, "and so are those of watches");

typedef struct netsrv__event {
    uint64_t token;
    uint32_t mask;
} netsrv__event;

/* ---- io_uring: the kernel's structures, as every kernel since 6.1 knows them ---- */

#if NETSRV__HAS_IO_URING

typedef struct netsrv__ring_params {
    uint32_t sq_entries;
    uint32_t cq_entries;
    uint32_t flags;
    uint32_t thread_cpu;
    uint32_t thread_idle;
    uint32_t features;
    uint32_t wq_fd;
    uint32_t zero[3];
    struct {
        uint32_t head;
        uint32_t tail;
        uint32_t mask;
        uint32_t entries;
        uint32_t flags;
        uint32_t dropped;
        uint32_t array;
        uint32_t zero;
        uint64_t user;
    } sq;
    struct {
        uint32_t head;
        uint32_t tail;
        uint32_t mask;
        uint32_t entries;
        uint32_t overflow;
        uint32_t cqes;
        uint32_t flags;
        uint32_t zero;
        uint64_t user;
    } cq;
} netsrv__ring_params;
_Static_assert(sizeof(netsrv__ring_params) == 120 && offsetof(netsrv__ring_params, sq) == 40 &&
               offsetof(netsrv__ring_params, cq) == 80, "struct io_uring_params");

typedef struct netsrv__sqe {
    uint8_t opcode;
    uint8_t flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off;
    uint64_t addr;
    uint32_t len;
    uint32_t op_flags;
    uint64_t token;
    uint16_t group;
    uint16_t personality;
    uint32_t file_index;
    uint64_t addr3;
    uint64_t zero;
} netsrv__sqe;
_Static_assert(sizeof(netsrv__sqe) == 64 && offsetof(netsrv__sqe, token) == 32 &&
               offsetof(netsrv__sqe, group) == 40, "struct io_uring_sqe");

typedef struct netsrv__cqe {
    uint64_t token;
    int32_t res;
    uint32_t flags;
} netsrv__cqe;
_Static_assert(sizeof(netsrv__cqe) == 16, "struct io_uring_cqe");

typedef struct netsrv__ring_buf { /* of the first, `zero` is the tail of the whole */
    uint64_t addr;
    uint32_t len;
    uint16_t id;
    uint16_t zero;
} netsrv__ring_buf;
_Static_assert(sizeof(netsrv__ring_buf) == 16, "struct io_uring_buf");

typedef struct netsrv__ring_buf_reg {
    uint64_t addr;
    uint32_t entries;
    uint16_t group;
    uint16_t flags;
    uint64_t zero[3];
} netsrv__ring_buf_reg;
_Static_assert(sizeof(netsrv__ring_buf_reg) == 40, "struct io_uring_buf_reg");

typedef struct netsrv__ring_time {
    int64_t s;
    int64_t ns;
} netsrv__ring_time;

typedef struct netsrv__ring_arg {
    uint64_t sigmask;
    uint32_t sigmask_bytes;
    uint32_t min_wait_us;
    uint64_t time;
} netsrv__ring_arg;
_Static_assert(sizeof(netsrv__ring_arg) == 24, "struct io_uring_getevents_arg");

typedef struct netsrv__ring_cancel {
    uint64_t token;
    int32_t fd;
    uint32_t flags;
    netsrv__ring_time timeout;
    uint64_t zero[4];
} netsrv__ring_cancel;
_Static_assert(sizeof(netsrv__ring_cancel) == 64, "struct io_uring_sync_cancel_reg");

typedef struct netsrv__ring_update {
    uint32_t offset;
    uint32_t zero;
    uint64_t data;
} netsrv__ring_update;

enum {
    NETSRV__RING_CQSIZE = 1 << 3, /* setup */
    NETSRV__RING_CLAMP = 1 << 4,
    NETSRV__RING_ATTACH = 1 << 5,
    NETSRV__RING_SUBMIT_ALL = 1 << 7,
    NETSRV__RING_SINGLE_ISSUER = 1 << 12,
    NETSRV__RING_DEFER_TASKRUN = 1 << 13,
    NETSRV__RING_NO_SQARRAY = 1 << 16,
    NETSRV__RING_SINGLE_MMAP = 1 << 0, /* features */
    NETSRV__RING_NODROP = 1 << 1,
    NETSRV__RING_SUBMIT_STABLE = 1 << 2,
    NETSRV__RING_EXT_ARG_FEATURE = 1 << 8,
    NETSRV__RING_CQE_SKIP = 1 << 11,
    NETSRV__RING_GETEVENTS = 1 << 0, /* enter */
    NETSRV__RING_EXT_ARG = 1 << 3,
    NETSRV__RING_REGISTERED = 1 << 4,
    NETSRV__RING_OVERFLOW = 1 << 1, /* what the kernel says of the submission queue */
    NETSRV__RING_REG_RING_FD = 20,  /* register */
    NETSRV__RING_UNREG_RING_FD = 21,
    NETSRV__RING_REG_BUFS = 22,
    NETSRV__RING_UNREG_BUFS = 23,
    NETSRV__RING_SYNC_CANCEL = 24,
    NETSRV__RING_SYNC_MSG = 31,
    NETSRV__RING_BUF_INC = 2,
    NETSRV__RING_NOP = 0, /* operations */
    NETSRV__RING_POLL = 6,
    NETSRV__RING_SENDMSG = 9,
    NETSRV__RING_ACCEPT = 13,
    NETSRV__RING_CANCEL = 14,
    NETSRV__RING_SEND = 26,
    NETSRV__RING_RECV = 27,
    NETSRV__RING_MSG = 40,
    NETSRV__RING_SQE_BUFFER = 1 << 5, /* of an entry */
    NETSRV__RING_SQE_QUIET = 1 << 6,
    NETSRV__RING_ACCEPT_MULTI = 1 << 0,
    NETSRV__RING_POLL_FIRST = 1 << 0,
    NETSRV__RING_RECV_MULTI = 1 << 1,
    NETSRV__RING_POLL_MULTI = 1 << 0,
    NETSRV__RING_CANCEL_ALL = 1 << 0,
    NETSRV__RING_CANCEL_ANY = 1 << 2,
    NETSRV__RING_CQE_BUFFER = 1 << 0, /* of a completion */
    NETSRV__RING_CQE_MORE = 1 << 1,
    NETSRV__RING_CQE_BUF_MORE = 1 << 4,
    NETSRV__RING_CQE_SHIFT = 16
};
#define NETSRV__RING_SQES_OFFSET UINT64_C(0x10000000)

#endif /* NETSRV__HAS_IO_URING */

/* ---- small parts ---- */

typedef struct netsrv__addr {
    uint16_t family; /* AF_INET, AF_INET6, AF_UNIX, 0, NETSRV__ADDR_UNASKED */
    uint16_t port;   /* host order */
    uint32_t scope;
    uint8_t ip[16];
} netsrv__addr;
#define NETSRV__ADDR_UNASKED UINT16_MAX /* the socket knows it, for as long as it is open */

/* A connection between accept and open: by value in a mailbox, by pointer in a poller. */
typedef struct netsrv__arrival {
    netsrv__link link; /* given directly: on the other worker's list until it is there */
    int fd;
    unsigned listener;
    uint32_t addr_slot; /* place in the table of addresses, or NETSRV__NO_SLOT */
    bool registered;    /* came through this worker's poller, under a token of its own */
    netsrv__addr peer;
} netsrv__arrival;
#define NETSRV__NO_SLOT UINT32_MAX

/* Unsent bytes: a list of chunks. */
typedef enum netsrv__chunk_kind {
    NETSRV__CHUNK_COPY,  /* in `bytes`; has room for more if cap > end        */
    NETSRV__CHUNK_OWNED, /* the program's memory                              */
    NETSRV__CHUNK_SHARED, /* a reference to the buffer `arg`                  */
    NETSRV__CHUNK_FILE   /* no memory: a range of a file, where 0 is `offset` */
} netsrv__chunk_kind;

typedef struct netsrv__chunk {
    struct netsrv__chunk *next;
    unsigned char *data; /* what begin and end count from; NULL for a file */
    size_t cap;          /* of `bytes`; 0 unless COPY */
    size_t begin;
    size_t end;
    uint64_t offset;
    void (*release)(void *arg); /* OWNED, FILE: or NULL */
    void *arg;
    int fd;
    uint8_t kind;    /* netsrv__chunk_kind */
    bool by_reading; /* FILE: sendfile(2) does not do it */
    unsigned char bytes[];
} netsrv__chunk;

typedef struct netsrv__out {
    netsrv__chunk *head;
    netsrv__chunk *tail;
    size_t bytes;
} netsrv__out;

/* Input that the program has not consumed. */
typedef struct netsrv__input {
    size_t cap;
    size_t begin;
    size_t end;
    size_t scanned; /* from begin: bytes that hold no end, or that a frame needs to be looked at */
    unsigned char bytes[];
} netsrv__input;

typedef netsrv_deadline netsrv__timer;

typedef struct netsrv__wheel {
    uint64_t now_ms; /* everything up to here has been returned */
    size_t count;
    uint64_t used[NETSRV__WHEEL_LEVELS]; /* a bit for each slot that is not empty */
    netsrv__link slots[NETSRV__WHEEL_LEVELS][NETSRV__WHEEL_SLOTS];
} netsrv__wheel;

typedef struct netsrv__wake {
    int read_fd;
    int write_fd; /* the same for an eventfd */
    atomic_int queue_fd; /* a kqueue that knows this object, while one is open; or -1 */
} netsrv__wake;

/* ---- connection: owner thread only ---- */

/* FREE -> DIALING -> OPEN -> HALF -> DRAINING -> LINGERING -> CLOSING -> DEAD -> FREE, any of which
 * but the last three may be skipped. One setter, netsrv__conn_set_state, knows what is allowed. */
typedef enum netsrv__state {
    NETSRV__FREE,      /* slot unused; the generation counts                              */
    NETSRV__DIALING,   /* no descriptor yet: [dial] has it, or is looking for an address  */
    NETSRV__OPEN,      /* receiving and sending                                           */
    NETSRV__HALF,      /* the peer has finished sending                                   */
    NETSRV__DRAINING,  /* closed by us: queued output goes out, input is discarded        */
    NETSRV__LINGERING, /* FIN sent: input is discarded until the peer finishes            */
    NETSRV__CLOSING,   /* the next settle detaches it from the backend                    */
    NETSRV__DEAD,      /* told to the program; released at the end of the turn            */
    NETSRV__STATE_COUNT
} netsrv__state;

enum { /* netsrv_conn.flags */
    NETSRV__DIRTY = 0x0001,     /* on the worker's dirty list                                  */
    NETSRV__PAUSED = 0x0002,    /* netsrv_pause                                                */
    NETSRV__HIGH_MARK = 0x0004, /* HIGH was returned, on_drain is owed                         */
    NETSRV__BLOCKED = 0x0008,   /* the kernel takes no more output; the backend will report    */
    NETSRV__FIN_WANTED = 0x0010,
    NETSRV__FIN_SENT = 0x0020,
    NETSRV__RECV_ON = 0x0040,   /* the backend reports input                                   */
    NETSRV__RESET = 0x0080,     /* close with RST                                              */
    NETSRV__PEER_DONE = 0x0100, /* FIN seen                                                    */
    NETSRV__FOREIGN = 0x0200,   /* registered under an arrival's token                         */
    NETSRV__FRESH = 0x0400,     /* nothing received yet                                        */
    NETSRV__RESHOW = 0x0800,    /* kept input may be shown again                               */
    NETSRV__STOPPING = 0x1000,  /* close as soon as nothing is under way                       */
    NETSRV__DEAF = 0x2000,      /* hung up while nothing is wanted: out of the poller          */
    NETSRV__BROKEN = 0x4000,    /* the socket failed; there is nothing to shut down            */
    NETSRV__PLAIN = 0x8000,     /* open, settled, nothing kept or queued: the fast path        */
    NETSRV__CORKED = 0x10000,   /* netsrv_cork                                                 */
    NETSRV__DIALED = 0x20000,   /* not accepted: counts in no limit of the listeners           */
    NETSRV__MOVING = 0x40000,   /* netsrv_move: to be detached, or being detached              */
    NETSRV__DETACHING = 0x80000, /* ... the backend has been told                              */
    NETSRV__ARRIVED = 0x100000, /* on_move is owed                                             */
    NETSRV__MOVED = 0x200000,   /* this is what it has left behind                             */
    NETSRV__OBSERVED = 0x400000 /* its callbacks are noted: never on the fast path             */
};
/* What does not travel: it belongs to the old worker's lists, or to its backend. */
#define NETSRV__LEFT_BEHIND                                                                        \
    (NETSRV__DIRTY | NETSRV__BLOCKED | NETSRV__RECV_ON | NETSRV__FOREIGN | NETSRV__STOPPING |      \
     NETSRV__DEAF | NETSRV__PLAIN | NETSRV__MOVING | NETSRV__DETACHING)
/* With RECV_ON and none of these, a settle has nothing to do. */
#define NETSRV__UNSETTLED                                                                          \
    (NETSRV__DIRTY | NETSRV__PAUSED | NETSRV__HIGH_MARK | NETSRV__BLOCKED | NETSRV__FIN_WANTED |   \
     NETSRV__FRESH | NETSRV__RESHOW | NETSRV__STOPPING | NETSRV__CORKED | NETSRV__MOVING |         \
     NETSRV__ARRIVED | NETSRV__OBSERVED)

struct netsrv_conn {
    netsrv__worker *worker;
    const netsrv_handlers *on;
    int fd;
    uint32_t gen;
    uint32_t slot;
    uint32_t flags;
    uint16_t state; /* netsrv__state */
    uint16_t move_to;
    uint32_t parked_next; /* of the completion backend: slot + 1, or 0 */
    netsrv__out out;
    netsrv__input *input;
    uint64_t bytes_in;
    uint64_t bytes_out;
    uint64_t active_ms;  /* last byte in either direction          */
    uint64_t stalled_ms; /* output blocked and no progress since   */
    uint64_t limit_ms;   /* end of the present state, or 0         */
    netsrv__timer timer;
    netsrv_conn *dirty_next;
    netsrv_conn *grave_next; /* also the slab's free list */
    void *data;
    netsrv__job *job;   /* callbacks run on other threads; else NULL */
    uint32_t sending;   /* bytes that the backend took and has not sent; 0 with readiness */
    uint32_t idle_ms;
    uint32_t discarded; /* input thrown away since the close */
    uint32_t addr_slot;
    uint16_t sys_errno;
    uint16_t works;    /* given with netsrv_offload, and not done */
    uint16_t interest; /* of the backend: what it waits for */
    uint8_t reason; /* netsrv_close_reason, or NETSRV_CLOSE_COUNT while none is known */
    uint8_t listener;
    netsrv__addr peer;
};

/* ---- watched descriptors: owner thread only ---- */

typedef struct netsrv__watch {
    netsrv_watch_fn *fn; /* NULL: given up, and the backend has not let go of it  */
    void *arg;
    int fd;            /* a duplicate: its number is nobody else's while we hold it */
    int told_fd;       /* as the program calls it                                   */
    uint32_t gen;      /* 0 = the slot is free                                      */
    uint32_t next;     /* slot + 1, on a list of free ones                          */
    uint16_t wanted;   /* NETSRV__IN, NETSRV__OUT, or 0 = nothing                   */
    uint16_t interest; /* of the backend                                            */
} netsrv__watch;

typedef struct netsrv__watches {
    netsrv__watch *at; /* moves when it grows: name a watch by its token */
    uint32_t count;
    uint32_t cap;
    uint32_t free; /* slot + 1 */
    uint32_t left; /* the same, given up in this turn */
} netsrv__watches;

/* ---- a connection that is being dialed: its worker's, or for a while a resolver's ---- */

typedef struct netsrv__dial {
    netsrv__link link; /* of the worker, or of the names to resolve */
    netsrv__worker *worker;
    netsrv_id id;         /* of the connection, which may be gone */
    uint64_t deadline_ms; /* nobody wants the address after this */
    void (*resolved)(netsrv_server *s, unsigned worker, void *dial);
    int fd; /* on its way to targets[at - 1]; or -1 */
    netsrv_watch_id watch;
    int sys_errno; /* why the last attempt failed; 0 = there was none */
    unsigned at;   /* the next target */
    unsigned count;
    socklen_t lengths[NETSRV__TARGETS];
    struct sockaddr_storage targets[NETSRV__TARGETS];
    char host[NETSRV_ADDRESS_MAX];
    char port[8];
} netsrv__dial;

/* Under the server's lock. */
typedef struct netsrv__resolver {
    netsrv__link queue;
    unsigned queued;
    struct {
        pthread_t thread;
        bool running;
        bool joinable;
    } slots[NETSRV__RESOLVERS];
} netsrv__resolver;

/* ---- one for many: any thread ---- */

struct netsrv_buffer {
    netsrv_server *srv;
    atomic_size_t refs;
    size_t n;
    unsigned char bytes[];
};

typedef struct netsrv__broadcast {
    netsrv_buffer *buffer;
    bool (*filter)(netsrv_conn *c, void *arg);
    void (*release)(void *arg);
    void *arg;
    atomic_uint left; /* workers that have not been through it */
} netsrv__broadcast;

/* ---- callbacks on other threads ---- */

enum { /* callbacks that a connection is owed; the lowest comes first */
    NETSRV__CALL_OPEN = 1,
    NETSRV__CALL_DRAIN = 2,
    NETSRV__CALL_INPUT = 4,
    NETSRV__CALL_EOF = 8,
    NETSRV__CALL_CLOSE = 16
};

/* What waits for a thread, runs there, and is reported to its owner. */
typedef struct netsrv__item {
    netsrv__hand *hand; /* place = OWN_THREAD: the connection's own. Under the pool's lock */
    struct netsrv__item *next; /* in the pool's queue, then among the owner's reports */
    struct netsrv__item *taken_next; /* owner: among the reports that it took */
    netsrv__worker *owner;
    uint64_t queued_us;
    uint64_t begun_us;
    uint64_t ended_us;
    bool is_work;  /* a netsrv__work; else a netsrv__job */
    bool reported; /* under the owner's mailbox lock, and the next one */
    bool finished;
    bool taken_finished; /* owner */
} netsrv__item;

/* What netsrv_offload was given. */
typedef struct netsrv__work {
    netsrv__item item;
    netsrv__link link; /* owner: all that are not done, oldest first; and all below */
    netsrv_task task;
    netsrv_id id;
    bool ordered;
    bool posted;
    bool revoked;        /* netsrv_cancel */
    atomic_bool skipped; /* nobody wants it: not begun if there is time */
    void (*work)(void *arg);
    void (*done)(netsrv_conn *c, void *arg, netsrv_result result);
    void *arg;
} netsrv__work;

/* One callback after the other of one connection. Its thread works on `face`, an image of the
 * connection on which calls record what they want; the owner brings that to the connection. */
struct netsrv__job {
    netsrv__item item;
    netsrv_conn *conn;
    netsrv__job *ready_next;
    netsrv__out taken_parts; /* owner */
    uint8_t owed;            /* owner: NETSRV__CALL_... */
    bool lent;               /* owner: posted and not back                              */
    bool listed;             /* owner: on the worker's list of those that want a thread */
    bool held;               /* owner: ... and there was no room for it                 */
    bool resumed;            /* owner: while it was lent                                */
    uint8_t call;            /* the callback that runs */
    bool skipped;            /* ... or not, as the connection had ended */
    netsrv__out parts;       /* under the owner's mailbox lock: what netsrv_flush sent */
    atomic_bool gone;        /* no use sending any more */
    _Atomic size_t backlog;  /* bytes that the owner has not sent */
    netsrv_conn face;        /* while lent: of the thread; else of the owner. What `c` points to */
};

/* ---- messages: any thread to a worker ---- */

typedef enum netsrv__msg_kind {
    NETSRV__MSG_ARRIVAL,
    NETSRV__MSG_SEND,
    NETSRV__MSG_SHARE,
    NETSRV__MSG_BROADCAST,
    NETSRV__MSG_CLOSE,
    NETSRV__MSG_ABORT,
    NETSRV__MSG_RESUME,
    NETSRV__MSG_MOVE,
    NETSRV__MSG_CALL
} netsrv__msg_kind;

typedef struct netsrv__msg {
    netsrv__msg_kind kind;
    netsrv_id id; /* SEND, SHARE, CLOSE, ABORT, RESUME */
    union {
        netsrv__arrival arrival;
        netsrv__chunk *chunk; /* SEND: owned by the message */
        netsrv_buffer *buffer; /* SHARE: a reference */
        netsrv_conn *traveller; /* MOVE: owned by the message */
        netsrv__broadcast *broadcast; /* BROADCAST: likewise */
        struct {
            void (*fn)(netsrv_server *s, unsigned worker, void *arg);
            void *arg;
        } call;
    } as;
} netsrv__msg;

typedef struct netsrv__mailbox {
    pthread_mutex_t lock;
    netsrv__msg *filling; /* under the lock */
    size_t count;
    size_t cap;
    size_t promised; /* messages that will come: they count for the limit, and nobody leaves */
    bool open;
    netsrv__link given;    /* arrivals that are in the owner's poller */
    netsrv__item *reports; /* under the lock: oldest first */
    netsrv__item *reports_tail;
    atomic_bool waiting;   /* messages or reports; a hint without the lock */
    netsrv__msg *draining; /* owner */
    size_t draining_cap;
} netsrv__mailbox;

/* ---- listeners ---- */

typedef enum netsrv__listen_kind {
    NETSRV__LISTEN_TCP,
    NETSRV__LISTEN_UNIX,
    NETSRV__LISTEN_ADOPTED /* fd:N or systemd:name; others may hold the same socket */
} netsrv__listen_kind;

typedef struct netsrv__listener {
    netsrv__listen_kind kind;
    int adopted_fd; /* ADOPTED: the program's own, never closed here */
    bool any;       /* "*": IPv6 and IPv4 */
    char spec[NETSRV_ADDRESS_MAX]; /* as in the configuration */
    bool bound_path; /* UNIX: path_dev, path_ino name the file that is ours */
    socklen_t sa_len;
    struct sockaddr_storage sa;
    dev_t path_dev;
    ino_t path_ino;
    unsigned fd_count; /* sockets: 1, or one for each worker */
    int *fds;
    char text[NETSRV_ADDRESS_MAX];
} netsrv__listener;

typedef enum netsrv__gate_state {
    NETSRV__GATE_OFF,
    NETSRV__GATE_ARMED,
    NETSRV__GATE_PAUSED
} netsrv__gate_state;

/* A listener as one group sees it. Under the group's lock, except `fd` and `interest`. */
typedef struct netsrv__gate {
    int fd;
    uint16_t interest; /* how it is armed */
    netsrv__gate_state state;
    unsigned accepts; /* since the last rotation */
} netsrv__gate;

/* ---- tables: the only cycles ---- */

enum { /* netsrv__io_ops.can */
    NETSRV__CAN_EDGE = 1,
    NETSRV__CAN_ONESHOT = 2,
    NETSRV__CAN_EXCLUSIVE = 4,
    NETSRV__CAN_SHARE = 8, /* several threads may wait on one poller                    */
    NETSRV__CAN_GIVE = 16, /* a thread may register a descriptor in another's poller    */
    NETSRV__CAN_WAKE = 32  /* the queue itself can be woken, without a descriptor       */
};

typedef struct netsrv__poller_ops netsrv__poller_ops;

/* A backend, seen from the core. All calls on the thread of `w`; errors as errno, 0 = fine. In the
 * life of a worker: open, then listen_start, recv_start ... in any order, wait again and again,
 * close. Results come up by name: netsrv__accept_batch or netsrv__accept_offer; of connections
 * netsrv__conn_on_recv, _on_end, _on_replied, _on_unsent, _on_returned, _on_blocked, _on_writable,
 * _on_sent and _on_detached; of foreign descriptors netsrv__watch_on_event. A backend calls no
 * callback of the program and changes no connection's state. */
typedef struct netsrv__io_ops {
    const char *name;
    netsrv_backend backend;
    unsigned can;
    bool by_name; /* auto does not take it */
    const netsrv__poller_ops *poller; /* of readiness; else for foreign descriptors, or NULL */
    int (*probe)(unsigned *can);      /* does it work on this system? takes back what does not */
    const char *(*why)(int sys_errno); /* what a failed probe means */
    int (*open)(netsrv__worker *w);   /* may be called again after a failure or a close */
    void (*close)(netsrv__worker *w); /* accepts a half-open one */
    int (*listen_start)(netsrv__worker *w, unsigned gate);
    void (*listen_stop)(netsrv__worker *w, unsigned gate);
    /* After the last listen_stop, while all threads can be given something: what the kernel has
     * accepted on its own comes up now. */
    void (*listen_end)(netsrv__worker *w);
    int (*recv_start)(netsrv__worker *w, netsrv_conn *c);
    int (*recv_stop)(netsrv__worker *w, netsrv_conn *c); /* errors and hang-ups go on */
    /* Sends data, which is not queued. The part that cannot go comes back through
     * netsrv__conn_on_unsent before the return, or later, in front of what was queued since,
     * through netsrv__conn_on_returned. */
    void (*reply)(netsrv__worker *w, netsrv_conn *c, const void *data, size_t n);
    void (*send)(netsrv__worker *w, netsrv_conn *c); /* progress on c->out */
    /* Ends in one netsrv__conn_on_detached, now or in a later batch. May be called again in
     * between. */
    void (*detach)(netsrv__worker *w, netsrv_conn *c);
    /* Registers an arrival in another worker's poller and forgets it; with CAN_GIVE only. */
    int (*give)(netsrv__worker *to, netsrv__arrival *arrival);
    void (*forget)(netsrv__worker *w, int fd); /* a given one that is not wanted any more */
    /* Brings the kernel to what watch->wanted says (0: forget it), and netsrv__watch_on_event is
     * called in each wait in which watch->fd is ready for it, has hung up, or has failed. 0 or
     * errno. `watch` may move after the return: netsrv__watch_token names it for ever. */
    int (*watch)(netsrv__worker *w, netsrv__watch *watch);
    void (*wait)(netsrv__worker *w, int timeout_ms); /* one batch of results */
} netsrv__io_ops;

/* A readiness poller; knows nothing about connections. */
struct netsrv__poller_ops {
    size_t raw_bytes; /* scratch memory that wait needs for each event */
    int (*open)(netsrv_server *srv, netsrv__group *g);
    void (*close)(netsrv_server *srv, netsrv__group *g);
    int (*set)(netsrv__group *g, int fd, uint64_t token, unsigned from, unsigned to);
    int (*wait)(netsrv__worker *w, int timeout_ms); /* fills w->own.events; count or -1 */
};

/* Which worker gets a connection. Any accepting thread, several at once. */
typedef struct netsrv__place_ops {
    netsrv_place place;
    unsigned (*pick)(netsrv_server *srv, netsrv__worker *self, const netsrv__arrival *a);
} netsrv__place_ops;

/* ---- callbacks that take too long ---- */

/* What a thread calls of the program's, as it is named in a report. */
#define NETSRV__ACTS(X)                                                                            \
    X(OPEN, "on_open") X(DATA, "on_data") X(FRAME, "on_frame") X(SPLIT, "split")                   \
    X(DRAIN, "on_drain") X(EOF, "on_eof") X(MOVE, "on_move") X(CLOSE, "on_close")                  \
    X(WORK, "work") X(DONE, "done") X(TIMER, "a timer") X(POST, "a posted function")               \
    X(WATCH, "a watch") X(BROADCAST, "a broadcast") X(RELEASE, "release") X(PICK, "pick")          \
    X(START, "on_worker_start") X(STOP, "on_worker_stop")

typedef enum netsrv__act {
#define NETSRV_X(name, text) NETSRV__ACT_##name,
    NETSRV__ACTS(NETSRV_X)
#undef NETSRV_X
    NETSRV__ACT_COUNT
} netsrv__act;

typedef struct netsrv__scene {
    netsrv_id id; /* of the connection, or 0; of a WATCH the descriptor */
    netsrv__addr peer;
    uint32_t begun_ms;
    uint16_t act;
    uint16_t worker;
} netsrv__scene;
#define NETSRV__SCENE_WORDS (sizeof(netsrv__scene) / sizeof(uint32_t))
_Static_assert(sizeof(netsrv__scene) % sizeof(uint32_t) == 0, "it is copied by words");

/* Which call a thread is in: written by that thread at both ends of the call, read by the lookout
 * at any time. */
typedef struct netsrv__pulse {
    bool on;         /* set before the thread starts, as are the next two */
    const char *who; /* "worker" ... */
    unsigned number;
    uint32_t beat;   /* of the last call; even */
    _Atomic uint32_t state; /* beat of the call that runs, or 0; plus 1: it has been reported */
    _Atomic uint32_t words[NETSRV__SCENE_WORDS]; /* a netsrv__scene */
} netsrv__pulse;

/* ---- threads ---- */

enum { /* what a paused listener waits for */
    NETSRV__PAUSED_FULL = 1,     /* a connection to end, or a reserved place to be given back */
    NETSRV__PAUSED_RESOURCE = 2, /* a connection to end, or time                              */
    NETSRV__PAUSED_RATE = 4,     /* time                                                      */
    NETSRV__PAUSED_PROGRAM = 8   /* netsrv_resume_accept                                      */
};

/* The threads that wait on one poller: one worker, or all acceptors. */
struct netsrv__group {
    netsrv__wake wake; /* from create to destroy */
    unsigned members;
    int poller_fd; /* epoll, kqueue */
    void *poller;  /* poll */
    pthread_mutex_t lock;
    netsrv__gate gates[NETSRV_LISTEN_MAX];
    unsigned gate_count;
    _Atomic unsigned paused; /* why some gate is paused: NETSRV__PAUSED_..., or 0 */
    atomic_bool nudged; /* ... and something became free */
    _Atomic unsigned opened; /* members that hold the poller */
};

typedef struct netsrv__counters {
#define NETSRV_X(name, text) netsrv__counter name;
    NETSRV_STATS(NETSRV_X)
#undef NETSRV_X
} netsrv__counters;

typedef enum netsrv__phase {
    NETSRV__RUNNING,
    NETSRV__QUIET,   /* its listeners are unwatched                                    */
    NETSRV__LEAVING, /* connections close as soon as nothing is under way on them       */
    NETSRV__FORCED   /* time over; everything is being aborted                         */
} netsrv__phase;

typedef struct netsrv__slab {
    netsrv_conn **chunks;
    unsigned chunk_count;
    unsigned chunk_cap;
    netsrv_conn *free;
    size_t live;
} netsrv__slab;

struct netsrv__worker {
    /* Set before the thread starts, read-only afterwards. */
    netsrv_server *srv;
    const netsrv_config *cfg;
    const netsrv__io_ops *io;
    netsrv__group *group;
    netsrv__pool *pool; /* runs the callbacks of its connections; or NULL */
    unsigned index; /* workers first, then acceptors */
    bool serves;    /* false for an acceptor */
    int cpu;        /* to pin to, or -1 */
    pthread_t thread;
    void *data;     /* the program's */
    uint64_t next_task; /* this thread only, from one life to the next */
    uint32_t first_gen; /* of new slots; grows from one life of the thread to the next */
    uint32_t watch_gen; /* of the last watch */

    struct { /* this thread only */
        /* what every message touches */
        unsigned char *recv_buffer;
        size_t recv_bytes;
        netsrv_conn *current;       /* the program is in a callback of this connection */
        const unsigned char *lent;  /* what it was shown */
        size_t lent_bytes;
        const unsigned char *reply; /* what it answered: part of `lent`, or in reply_buffer */
        size_t reply_bytes;
        unsigned char *reply_buffer; /* NULL until needed */
        uint64_t now_ms;
        size_t recv_room; /* at most bytes_per_turn */
        uint64_t bytes_in; /* not yet published */
        uint64_t bytes_out;
        netsrv__slab slab;
        netsrv__uring *uring; /* the completion backend's */
        netsrv__event *events;
        void *raw_events;
        int event_count; /* of the last wait; -1 = it was interrupted */
        uint32_t undrained; /* edge-triggered gates that were left before EAGAIN, a bit each */
        netsrv_conn *dirty;
        netsrv_conn *dead;
        netsrv__chunk *spent; /* done with, and the program is to be told */
        netsrv__job *ready; /* those that want a thread, oldest first */
        netsrv__job *ready_tail;
        size_t ready_count;
        netsrv__link works; /* given away and not done */
        size_t work_count;
        uint64_t slice_us; /* of a handler thread: when its job makes room for others */
        netsrv__wheel wheel;
        netsrv__watches watches;
        netsrv__link dials;  /* that have a descriptor */
        bool dials_stale;    /* the connection of some has ended */
        uint64_t retry_ms;   /* paused gates try again then; 0 = none */
        uint64_t grow_ms;    /* ... and threads that could not be created */
        uint64_t look_ms;    /* whether jobs wait in vain; 0 = nothing to look at */
        size_t lent_count;   /* jobs posted and not back */
        uint64_t turn_ms;    /* when this turn began */
        uint64_t turn_us;
        uint64_t random;
        netsrv__phase phase;
        unsigned stop_turns;
        unsigned unseen_turns; /* in a row that did not see all input there was */
        bool idle; /* the server stops, and nothing is left here */
        unsigned accept_failures; /* in a row */
        bool opened; /* io->open succeeded */
        bool timers_over; /* no timer of the program's is set any more */
        netsrv__wheel timers; /* the program's */
        netsrv__link due;     /* ... whose time has come, and whose call has not */
    } own;

    /* Any thread. */
    char pad_before_shared[NETSRV__CACHE_LINE];
    netsrv__mailbox mailbox;
    _Atomic uint32_t load;       /* connections here and on the way here */
    _Atomic uint32_t busy_since; /* time stamp of the turn, or 0 while waiting */
    char pad_before_count[NETSRV__CACHE_LINE];
    netsrv__counters count; /* written by this thread */
    netsrv__counter open_now;
    netsrv__pulse pulse;
    char pad_after[NETSRV__CACHE_LINE];
};

/* A thread for jobs. To the functions of [conn] it is a worker with one connection: the job's. */
struct netsrv__hand {
    netsrv__worker self;
    netsrv__pool *pool;
    pthread_t thread;
    netsrv__link link;       /* among all of the pool; under its lock, and all below */
    netsrv__hand *idle_next; /* among those that are idle, then among those that have ended */
    netsrv__item *item;      /* for this thread alone */
    bool bound;              /* it is some connection's own */
    bool called;
    uint64_t now_us; /* when it last looked at the clock; this thread only, and the next one */
    uint64_t ran_us; /* its last job */
    pthread_cond_t wake;
};

struct netsrv__pool {
    netsrv_server *srv;
    unsigned size;
    size_t max; /* of count */
    bool lazy;  /* threads come when there is something to do, and go when there is not */
    bool own; /* each connection has a thread; else any thread takes the oldest job */
    pthread_mutex_t lock; /* all below */
    netsrv__link all;
    unsigned threads;
    unsigned numbered; /* of all that there ever were */
    unsigned starting; /* of them: created, and have not looked for a job yet */
    netsrv__hand *idle;  /* the last to become idle first: its memory is still in the cache */
    netsrv__hand *ended; /* to be joined */
    netsrv__item *head;
    netsrv__item *tail;
    size_t count; /* posted and not taken */
    netsrv__hand *last;  /* took the last job, and has not become idle since; or NULL */
    uint64_t taken_us;   /* ... at this time */
    uint64_t eighths_us; /* what jobs take: a moving average, times eight */
    bool waking;  /* one was called and does not run yet; it will call the next */
    bool held;    /* some worker waits for room */
    bool closing;
};

/* To others it is one of the server's threads, which serves nobody. */
struct netsrv__lookout {
    netsrv__worker self;
    pthread_t thread;
    pthread_cond_t wake;
    pthread_mutex_t lock; /* all below, and the order of reports: none ends before it began */
    bool running;
    bool leaving;
};

/* A start in steps, each for all threads: nobody hands anything to a worker that is not open. */
typedef enum netsrv__step {
    NETSRV__STEP_WAIT,
    NETSRV__STEP_OPEN,
    NETSRV__STEP_SERVE,
    NETSRV__STEP_CANCEL
} netsrv__step;

/* What max_conns_per_address and max_accepts_per_second need to know. Under its lock. */
typedef struct netsrv__addr_entry {
    uint8_t key[16];
    uint32_t count;
    uint32_t next; /* in the bucket, or in the free list */
} netsrv__addr_entry;

typedef struct netsrv__limits {
    pthread_mutex_t lock;
    uint64_t window_ms; /* start of the present second */
    uint32_t window_count;
    netsrv__addr_entry *entries;
    uint32_t entry_count;
    uint32_t entry_cap;
    uint32_t free;
    uint32_t *buckets;
    uint32_t bucket_count; /* power of two */
} netsrv__limits;

struct netsrv_server {
    netsrv_config cfg;
    netsrv_handlers handlers; /* of accepted connections */
    netsrv_choice choices[4];
    char why[4][96];
    unsigned choice_count;
    char delimiter[NETSRV_DELIMITER_MAX]; /* cfg.delimiter points here */
    const netsrv__io_ops *io;
    unsigned can; /* of io, on this system */
    const netsrv__place_ops *place;
    netsrv__listener listeners[NETSRV_LISTEN_MAX];
    unsigned listener_count;
    netsrv__worker *workers; /* workers, then acceptors */
    unsigned thread_count;
    netsrv__group *groups; /* one for each worker, then one for all acceptors */
    unsigned group_count;
    unsigned groups_made; /* what an undo has to undo */
    unsigned boxes_made;
    bool locks_made;
    uint64_t seed[2];

    pthread_mutex_t lock; /* the fields up to the blank line */
    pthread_cond_t changed;
    unsigned ready;     /* threads that have reported from their start */
    unsigned alive;     /* threads that have not ended */
    unsigned joinable;  /* threads created and not joined */
    netsrv__step step;  /* what the threads shall do */
    bool started;       /* between netsrv_start and the end of netsrv_wait */
    netsrv_error start_error;
    netsrv__resolver resolver;

    netsrv__limits limits;
    netsrv__pool *pool; /* NULL: the workers run the callbacks */
    netsrv__pool *offload;
    netsrv__lookout *lookout; /* NULL without stuck_ms */

    char pad_before_shared[NETSRV__CACHE_LINE];
    _Atomic uint32_t live;       /* accepted and not released, all threads */
    _Atomic uint32_t turn;       /* round robin */
    _Atomic uint32_t paused;     /* groups with a paused gate */
    _Atomic size_t queued;       /* bytes of all output chunks */
    _Atomic uint32_t logged_ms;  /* last log line about a pause */
    _Atomic uint32_t stop_at;    /* 0, or the server stops: deadline, low bits of the clock (odd),
                                    or NETSRV__DRAIN */
    atomic_bool halted;          /* netsrv_pause_accept */
    _Atomic unsigned unquiet;    /* groups' members that may still accept */
    atomic_bool swept;           /* listeners are closed */
    _Atomic unsigned busy;       /* workers that are not idle, and moves under way */
};

/* The worker whose thread this is; NULL on the program's own threads. */
static _Thread_local netsrv__worker *netsrv__self;

#define NETSRV__ASSERT_OWNER(w) NETSRV_ASSERT(netsrv__self == (w))

/* A counter has one writer, so that no locked instruction is needed. */
#define NETSRV__COUNT(w, name, n)                                                                  \
    atomic_store_explicit(&(w)->count.name,                                                        \
                          atomic_load_explicit(&(w)->count.name, memory_order_relaxed) + (n),      \
                          memory_order_relaxed)

/* ========================================================================== *
 *  [log] Texts of results, the one log function, error reports
 *  uses:   -
 *  thread: any
 * ========================================================================== */

static const char *const netsrv__log_results[] = {
#define NETSRV_X(name, text) text,
    NETSRV_RESULTS(NETSRV_X)
#undef NETSRV_X
};
static const char *const netsrv__log_closes[] = {
#define NETSRV_X(name, text) text,
    NETSRV_CLOSES(NETSRV_X)
#undef NETSRV_X
};
_Static_assert(sizeof netsrv__log_closes / sizeof *netsrv__log_closes == NETSRV_CLOSE_COUNT,
               "one text for each reason");

NETSRV__PRINTF(3, 4)
static void netsrv__log_line(const netsrv_config *cfg, netsrv_log_level level, const char *format,
                             ...) {
    char text[NETSRV_ERROR_MAX + NETSRV_ADDRESS_MAX];
    va_list args;
    if (cfg->on_log == NULL) {
        return;
    }
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    cfg->on_log(cfg->user, level, text);
}

/* Fills an error report and returns its result, so that a failure is one statement. */
NETSRV__PRINTF(4, 5)
static netsrv_result netsrv__log_error(netsrv_error *error, netsrv_result result, int sys_errno,
                                       const char *format, ...) {
    va_list args;
    error->result = result;
    error->sys_errno = sys_errno;
    va_start(args, format);
    vsnprintf(error->text, sizeof error->text, format, args);
    va_end(args);
    return result;
}

/* ========================================================================== *
 *  [mem] The program's allocator
 *  uses:   -
 *  thread: any
 * ========================================================================== */

static void *netsrv__mem_default(void *user, void *ptr, size_t old_bytes, size_t new_bytes) {
    (void)user;
    (void)old_bytes;
    if (new_bytes == 0) {
        free(ptr);
        return NULL;
    }
    return realloc(ptr, new_bytes);
}

static void *netsrv__mem_alloc(const netsrv_config *cfg, size_t bytes) {
    if (NETSRV_SEAM_FAULT("alloc") != 0) {
        return NULL;
    }
    return cfg->alloc(cfg->user, NULL, 0, bytes);
}

static void *netsrv__mem_zeroed(const netsrv_config *cfg, size_t count, size_t bytes) {
    if (bytes != 0 && count > SIZE_MAX / bytes) {
        return NULL;
    }
    void *ptr = netsrv__mem_alloc(cfg, count * bytes);
    if (ptr != NULL) {
        memset(ptr, 0, count * bytes);
    }
    return ptr;
}

static void *netsrv__mem_resize(const netsrv_config *cfg, void *ptr, size_t old, size_t bytes) {
    if (NETSRV_SEAM_FAULT("alloc") != 0) {
        return NULL;
    }
    return cfg->alloc(cfg->user, ptr, old, bytes);
}

static void netsrv__mem_free(const netsrv_config *cfg, void *ptr, size_t bytes) {
    if (ptr != NULL) {
        cfg->alloc(cfg->user, ptr, bytes, 0);
    }
}

/* ========================================================================== *
 *  [util] Lists, numbers, a keyed hash
 *  uses:   -
 *  thread: any
 * ========================================================================== */

static void netsrv__util_list_init(netsrv__link *head) {
    head->next = head;
    head->prev = head;
}

static void netsrv__util_list_append(netsrv__link *head, netsrv__link *node) {
    node->prev = head->prev;
    node->next = head;
    head->prev->next = node;
    head->prev = node;
}

static void netsrv__util_list_remove(netsrv__link *node) {
    node->prev->next = node->next;
    node->next->prev = node->prev;
    node->next = NULL;
    node->prev = NULL;
}

static size_t netsrv__util_min(size_t a, size_t b) {
    return a < b ? a : b;
}

static size_t netsrv__util_max(size_t a, size_t b) {
    return a > b ? a : b;
}

/* Index of the lowest bit; x is not 0. */
static unsigned netsrv__util_lowest_bit(uint64_t x) {
    unsigned n = 0;
    NETSRV_ASSERT(x != 0);
    for (unsigned step = 32; step != 0; step /= 2) {
        const uint64_t low = (UINT64_C(1) << step) - 1;
        if ((x & low) == 0) {
            x >>= step;
            n += step;
        }
    }
    return n;
}

static uint64_t netsrv__util_rotate(uint64_t x, unsigned n) {
    return (x << n) | (x >> (64 - n));
}

/* xorshift64*: for choices that an attacker gains nothing by guessing. The state is not 0. */
static uint32_t netsrv__util_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return (uint32_t)((x * UINT64_C(2685821657736338717)) >> 32);
}

static void netsrv__util_sip_round(uint64_t v[4]) {
    v[0] += v[1];
    v[1] = netsrv__util_rotate(v[1], 13) ^ v[0];
    v[0] = netsrv__util_rotate(v[0], 32);
    v[2] += v[3];
    v[3] = netsrv__util_rotate(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = netsrv__util_rotate(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = netsrv__util_rotate(v[1], 17) ^ v[2];
    v[2] = netsrv__util_rotate(v[2], 32);
}

/* SipHash-1-3 (Aumasson and Bernstein, 2012) of exactly 16 bytes: clients choose their addresses,
 * so the hash that places them has a key. */
static uint64_t netsrv__util_hash16(const uint64_t key[2], const uint8_t bytes[16]) {
    uint64_t v[4] = {key[0] ^ UINT64_C(0x736f6d6570736575), key[1] ^ UINT64_C(0x646f72616e646f6d),
                     key[0] ^ UINT64_C(0x6c7967656e657261), key[1] ^ UINT64_C(0x7465646279746573)};
    uint64_t words[3] = {0, 0, UINT64_C(16) << 56};
    for (unsigned i = 0; i < 16; i++) {
        words[i / 8] |= (uint64_t)bytes[i] << (8 * (i % 8));
    }
    for (unsigned i = 0; i < 3; i++) {
        v[3] ^= words[i];
        netsrv__util_sip_round(v);
        v[0] ^= words[i];
    }
    v[2] ^= 0xff;
    for (unsigned i = 0; i < 3; i++) {
        netsrv__util_sip_round(v);
    }
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* ========================================================================== *
 *  [sys] One shim for each system call; the only place that makes them
 *  uses:   -
 *  thread: any
 * ========================================================================== */

/* Test builds may fail any call here; otherwise this compiles to nothing. */
#define NETSRV__FAIL_POINT(name, failure)                                                          \
    do {                                                                                           \
        const int netsrv__fault = NETSRV_SEAM_FAULT(name);                                         \
        if (netsrv__fault != 0) {                                                                  \
            errno = netsrv__fault;                                                                 \
            return failure;                                                                        \
        }                                                                                          \
    } while (0)

/* The monotonic clock: wall-clock changes must not move a timeout. */
static uint64_t netsrv__sys_now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static uint64_t netsrv__sys_now_ms(void) {
    return NETSRV_SEAM_CLOCK_MS(netsrv__sys_now_us() / 1000u);
}

/* close(2) is never repeated after EINTR: on Linux the descriptor is gone, and its number may
 * belong to somebody else by then. */
static int netsrv__sys_close(int fd) {
    const int r = close(fd);
    NETSRV__FAIL_POINT("close", -1);
    return r;
}

static int netsrv__sys_fd_flags(int fd) {
    NETSRV__FAIL_POINT("fcntl", -1);
    const int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
        return -1;
    }
    return fcntl(fd, F_SETFD, FD_CLOEXEC);
}

/* A descriptor that is non-blocking and closed on exec, or -1; a failure closes fd. */
static int netsrv__sys_prepared(int fd) {
    if (fd >= 0 && netsrv__sys_fd_flags(fd) != 0) {
        const int saved = errno;
        netsrv__sys_close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

static int netsrv__sys_duplicate(int fd) {
    NETSRV__FAIL_POINT("fcntl", -1);
    return fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

/* 1 for a file or directory, which is always ready; 0 for everything else; -1 and errno. */
static int netsrv__sys_is_file(int fd) {
    struct stat st;
    NETSRV__FAIL_POINT("fstat", -1);
    if (fstat(fd, &st) != 0) {
        return -1;
    }
    return S_ISREG(st.st_mode) || S_ISDIR(st.st_mode) ? 1 : 0;
}

static int netsrv__sys_setsockopt(int fd, int level, int name, const void *value, socklen_t n) {
    NETSRV__FAIL_POINT("setsockopt", -1);
    return setsockopt(fd, level, name, value, n);
}

static int netsrv__sys_set_int(int fd, int level, int name, int value) {
    return netsrv__sys_setsockopt(fd, level, name, &value, sizeof value);
}

static int netsrv__sys_getsockopt(int fd, int level, int name, int *value) {
    socklen_t n = sizeof *value;
    NETSRV__FAIL_POINT("getsockopt", -1);
    return getsockopt(fd, level, name, value, &n);
}

static int netsrv__sys_socket(int family) {
    NETSRV__FAIL_POINT("socket", -1);
#if NETSRV__HAS_ACCEPT4
    const int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
#else
    const int fd = netsrv__sys_prepared(socket(family, SOCK_STREAM, 0));
#endif
#ifdef SO_NOSIGPIPE
    if (fd >= 0) {
        netsrv__sys_set_int(fd, SOL_SOCKET, SO_NOSIGPIPE, 1);
    }
#endif
    return fd;
}

static int netsrv__sys_bind(int fd, const struct sockaddr_storage *sa, socklen_t n) {
    NETSRV__FAIL_POINT("bind", -1);
    return bind(fd, (const struct sockaddr *)sa, n);
}

static int netsrv__sys_listen(int fd, int backlog) {
    NETSRV__FAIL_POINT("listen", -1);
    return listen(fd, backlog);
}

static int netsrv__sys_connect(int fd, const struct sockaddr_storage *sa, socklen_t n) {
    NETSRV__FAIL_POINT("connect", -1);
    return connect(fd, (const struct sockaddr *)sa, n);
}

/* On Linux, connecting to nowhere resets a TCP connection at once, also while a child process holds
 * a duplicate; elsewhere it fails, and the close that follows resets. */
static void netsrv__sys_disconnect(int fd) {
    struct sockaddr_storage nowhere;
    memset(&nowhere, 0, sizeof nowhere);
    nowhere.ss_family = AF_UNSPEC;
    netsrv__sys_connect(fd, &nowhere, sizeof nowhere.ss_family);
}

/* Addresses of a name, at most cap; -1 if it has none, or if that cannot be found out. */
static int netsrv__sys_resolve(const char *host, const char *port, struct sockaddr_storage *to,
                               socklen_t *lengths, unsigned cap) {
    struct addrinfo hints;
    struct addrinfo *list = NULL;
    unsigned n = 0;
    NETSRV_SEAM_POINT("resolve");
    NETSRV__FAIL_POINT("getaddrinfo", -1);
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICSERV;
    if (getaddrinfo(host, port, &hints, &list) != 0) {
        return -1;
    }
    for (const struct addrinfo *a = list; a != NULL && n < cap; a = a->ai_next) {
        if (a->ai_addrlen <= sizeof *to) {
            memset(&to[n], 0, sizeof *to);
            memcpy(&to[n], a->ai_addr, a->ai_addrlen);
            lengths[n++] = a->ai_addrlen;
        }
    }
    freeaddrinfo(list);
    return n != 0 ? (int)n : -1;
}

/* Whether a socket is connected. */
static int netsrv__sys_peer(int fd) {
    struct sockaddr_storage sa;
    socklen_t n = sizeof sa;
    NETSRV__FAIL_POINT("getpeername", -1);
    return getpeername(fd, (struct sockaddr *)&sa, &n);
}

static int netsrv__sys_local(int fd, struct sockaddr_storage *sa, socklen_t *n) {
    NETSRV__FAIL_POINT("getsockname", -1);
    return getsockname(fd, (struct sockaddr *)sa, n);
}

#if NETSRV__HAS_COMPLETIONS
/* Of a connection that the peer has reset, Linux tells the address only to those who name its
 * exact length. */
static int netsrv__sys_peer_of_reset(int fd, struct sockaddr_storage *sa) {
#ifdef SO_PEERNAME
    const socklen_t lengths[] = {sizeof(struct sockaddr_in6), sizeof(struct sockaddr_in)};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        socklen_t n = lengths[i];
        if (getsockopt(fd, SOL_SOCKET, SO_PEERNAME, sa, &n) == 0) {
            return 0;
        }
    }
#endif
    (void)fd;
    (void)sa;
    errno = ENOTCONN;
    return -1;
}

static int netsrv__sys_peer_addr(int fd, struct sockaddr_storage *sa, socklen_t *n) {
    NETSRV__FAIL_POINT("getpeername_accepted", -1);
    const int result = getpeername(fd, (struct sockaddr *)sa, n);
    return result != 0 && errno == ENOTCONN ? netsrv__sys_peer_of_reset(fd, sa) : result;
}
#endif

/* accept(2) with both flags; the fall-back sets them on systems and sandboxes without accept4. */
static int netsrv__sys_accept4(int fd, struct sockaddr_storage *sa, socklen_t *n) {
    NETSRV__FAIL_POINT("accept4", -1);
#if NETSRV__HAS_ACCEPT4
    return accept4(fd, (struct sockaddr *)sa, n, SOCK_NONBLOCK | SOCK_CLOEXEC);
#else
    (void)fd;
    (void)sa;
    (void)n;
    errno = ENOSYS;
    return -1;
#endif
}

#if NETSRV__HAS_COMPLETIONS
/* What the kernel accepted on its own, which may fail all the same in a test build. */
static int netsrv__sys_accepted(int fd) {
    const int fault = NETSRV_SEAM_FAULT("accept4");
    if (fault != 0 && fault != ENOSYS) {
        errno = fault;
        return -1;
    }
    return fd;
}
#endif

static int netsrv__sys_accept_plain(int fd, struct sockaddr_storage *sa, socklen_t *n) {
    NETSRV__FAIL_POINT("accept", -1);
    const int accepted = netsrv__sys_prepared(accept(fd, (struct sockaddr *)sa, n));
#ifdef SO_NOSIGPIPE
    if (accepted >= 0) {
        netsrv__sys_set_int(accepted, SOL_SOCKET, SO_NOSIGPIPE, 1);
    }
#endif
    return accepted;
}

static int netsrv__sys_accept(int fd, struct sockaddr_storage *sa, socklen_t *n) {
    const socklen_t room = *n;
    const int accepted = netsrv__sys_accept4(fd, sa, n);
    if (accepted >= 0 || errno != ENOSYS) {
        return accepted;
    }
    *n = room;
    return netsrv__sys_accept_plain(fd, sa, n);
}

static NETSRV__HOT ssize_t netsrv__sys_recv(int fd, void *data, size_t n) {
    NETSRV__FAIL_POINT("recv", -1);
#if NETSRV__PLAIN_CALLS
    return syscall(SYS_recvfrom, fd, data, NETSRV_SEAM_CLIP("recv", n), 0, NULL, NULL);
#else
    return recv(fd, data, NETSRV_SEAM_CLIP("recv", n), 0);
#endif
}

/* macOS says EPROTOTYPE while the peer's reset is being worked in, and would say so again. */
static NETSRV__HOT ssize_t netsrv__sys_sent(ssize_t n) {
#if NETSRV__APPLE
    if (n < 0 && errno == EPROTOTYPE) {
        errno = ECONNRESET;
    }
#endif
    return n;
}

static NETSRV__HOT ssize_t netsrv__sys_send(int fd, const void *data, size_t n) {
    NETSRV__FAIL_POINT("send", -1);
#if NETSRV__PLAIN_CALLS
    return syscall(SYS_sendto, fd, data, NETSRV_SEAM_CLIP("send", n), NETSRV__NOSIGNAL, NULL, 0);
#else
    return netsrv__sys_sent(send(fd, data, NETSRV_SEAM_CLIP("send", n), NETSRV__NOSIGNAL));
#endif
}

/* sendmsg, because writev(2) cannot be told to spare the process a SIGPIPE. `more` says that
 * something follows at once. */
static ssize_t netsrv__sys_sendv(int fd, struct iovec *iov, int count, bool more) {
    struct msghdr m;
    NETSRV__FAIL_POINT("send", -1);
    const size_t clipped = NETSRV_SEAM_CLIP("send", iov[0].iov_len);
    if (clipped < iov[0].iov_len) {
        iov[0].iov_len = clipped;
        count = 1;
        more = false;
    }
    memset(&m, 0, sizeof m);
    m.msg_iov = iov;
    m.msg_iovlen = (unsigned char)count; /* at most NETSRV__OUT_IOV; its type differs by system */
    return netsrv__sys_sent(sendmsg(fd, &m, NETSRV__NOSIGNAL | (more ? NETSRV__MORE : 0)));
}

/* A part of a file into a socket; 0 at the file's end. No flag spares the process a SIGPIPE, but
 * our threads have it blocked. */
static ssize_t netsrv__sys_sendfile(int fd, int file, uint64_t offset, size_t n) {
    NETSRV__FAIL_POINT("sendfile", -1);
    n = NETSRV_SEAM_CLIP("send", n);
#if NETSRV__LINUX
    off_t at = (off_t)offset;
    return sendfile(fd, file, &at, n);
#elif NETSRV__APPLE
    off_t sent = (off_t)n;
    const int r = sendfile(file, fd, (off_t)offset, &sent, NULL, 0);
    return r == 0 || sent > 0 ? (ssize_t)sent : -1;
#elif NETSRV__HAS_SENDFILE
    off_t sent = 0;
    const int r = sendfile(file, fd, (off_t)offset, n, NULL, &sent, 0);
    return r == 0 || sent > 0 ? (ssize_t)sent : -1;
#else
    (void)fd;
    (void)file;
    (void)offset;
    (void)n;
    errno = ENOSYS;
    return -1;
#endif
}

static ssize_t netsrv__sys_pread(int fd, void *data, size_t n, uint64_t offset) {
    NETSRV__FAIL_POINT("pread", -1);
    return pread(fd, data, NETSRV_SEAM_CLIP("send", n), (off_t)offset);
}

static int netsrv__sys_shutdown(int fd, int how) {
    NETSRV__FAIL_POINT("shutdown", -1);
    return shutdown(fd, how);
}

/* Pending error of a socket; 0 if there is none or it cannot be had. */
static int netsrv__sys_socket_error(int fd) {
    int value = 0;
    if (netsrv__sys_getsockopt(fd, SOL_SOCKET, SO_ERROR, &value) != 0) {
        return 0;
    }
    return value;
}

static int netsrv__sys_unlink(const char *path) {
    NETSRV__FAIL_POINT("unlink", -1);
    return unlink(path);
}

static int netsrv__sys_lstat(const char *path, struct stat *st) {
    NETSRV__FAIL_POINT("lstat", -1);
    return lstat(path, st);
}

static int netsrv__sys_poll(struct pollfd *fds, size_t n, int timeout_ms) {
    NETSRV__FAIL_POINT("poll", -1);
    return poll(fds, (nfds_t)n, timeout_ms);
}

#if NETSRV__HAS_EPOLL
static int netsrv__sys_epoll_create(void) {
    NETSRV__FAIL_POINT("epoll_create1", -1);
    return epoll_create1(EPOLL_CLOEXEC);
}

static int netsrv__sys_epoll_ctl(int ep, int op, int fd, struct epoll_event *event) {
    NETSRV__FAIL_POINT(op == EPOLL_CTL_DEL ? "epoll_ctl_del" : "epoll_ctl", -1);
    return epoll_ctl(ep, op, fd, event);
}

static int netsrv__sys_epoll_wait(int ep, struct epoll_event *events, int n, int timeout_ms) {
    NETSRV__FAIL_POINT("epoll_wait", -1);
    return epoll_wait(ep, events, n, timeout_ms);
}
#endif

#if NETSRV__HAS_IO_URING
static int netsrv__sys_ring_setup(unsigned entries, netsrv__ring_params *params) {
    NETSRV__FAIL_POINT("io_uring_setup", -1);
    return (int)syscall(NETSRV__SYS_RING_SETUP, entries, params);
}

/* The last two: NULL and 0, or an argument with its size. */
static int netsrv__sys_ring_enter(int fd, unsigned submit, unsigned wait_for, unsigned flags,
                                  const void *arg, size_t arg_bytes) {
    NETSRV__FAIL_POINT("io_uring_enter", -1);
    return (int)syscall(NETSRV__SYS_RING_ENTER, fd, submit, wait_for, flags, arg, arg_bytes);
}

static int netsrv__sys_ring_register(int fd, unsigned what, const void *arg, unsigned count) {
    NETSRV__FAIL_POINT("io_uring_register", -1);
    return (int)syscall(NETSRV__SYS_RING_REGISTER, fd, what, arg, count);
}

/* NULL on failure. */
static void *netsrv__sys_ring_map(int fd, size_t bytes, uint64_t offset) {
    NETSRV__FAIL_POINT("mmap", NULL);
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
                    (off_t)offset);
    return at != MAP_FAILED ? at : NULL;
}

static void netsrv__sys_ring_unmap(void *at, size_t bytes) {
    if (at != NULL) {
        munmap(at, bytes);
    }
}

/* Whether the kernel takes output now. */
static bool netsrv__sys_has_room(int fd) {
    struct pollfd one = {fd, POLLOUT, 0};
    return poll(&one, 1, 0) > 0;
}

static size_t netsrv__sys_page_bytes(void) {
    const long n = sysconf(_SC_PAGESIZE);
    return n > 0 ? (size_t)n : 4096;
}

/* Whether the environment switches something off: set, not empty, and not "0". */
static bool netsrv__sys_env_set(const char *name) {
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0' && strcmp(value, "0") != 0;
}
#endif

#if NETSRV__HAS_KQUEUE
/* Only closed on exec: O_NONBLOCK means nothing to a queue, and some refuse to have it set. */
static int netsrv__sys_kqueue(void) {
    NETSRV__FAIL_POINT("kqueue", -1);
    const int kq = kqueue();
    if (kq >= 0 && fcntl(kq, F_SETFD, FD_CLOEXEC) != 0) {
        const int saved = errno;
        netsrv__sys_close(kq);
        errno = saved;
        return -1;
    }
    return kq;
}

static struct kevent netsrv__sys_kevent(uintptr_t ident, int filter, unsigned flags,
                                        uint64_t token) {
    struct kevent change;
    memset(&change, 0, sizeof change);
    change.ident = ident;
    change.filter = NETSRV__KQ_FILTER(filter);
    change.flags = NETSRV__KQ_FLAGS(flags);
    change.udata = NETSRV__KQ_UDATA(token);
    return change;
}

/* Applies changes. With EV_RECEIPT in them, receipts take their place: how many there are, or -1.
 * Without it there is no room for events, lest those that are pending are taken for receipts. */
static int netsrv__sys_kevent_change(int kq, struct kevent *list, int n) {
    const struct timespec now = {0, 0};
    const int room = (list[0].flags & EV_RECEIPT) != 0 ? n : 0;
    NETSRV__FAIL_POINT("kevent_change", -1);
    return kevent(kq, list, NETSRV__KQ_COUNT(n), list, NETSRV__KQ_COUNT(room), &now);
}

static int netsrv__sys_kevent_wait(int kq, struct kevent *events, int n, int timeout_ms) {
    const struct timespec t = {timeout_ms / 1000, (long)(timeout_ms % 1000) * 1000000};
    NETSRV__FAIL_POINT("kevent_wait", -1);
    return kevent(kq, NULL, 0, events, NETSRV__KQ_COUNT(n), timeout_ms < 0 ? NULL : &t);
}
#endif

/* Makes `kq` know a wake-up object, or wakes who waits on it; -1 where queues cannot do that.
 * Either way the token counts: waking replaces it. */
static int netsrv__sys_kqueue_user(int kq, const void *ident, bool trigger) {
#if NETSRV__HAS_KQUEUE && defined(EVFILT_USER)
    struct kevent change = netsrv__sys_kevent((uintptr_t)ident, EVFILT_USER,
                                              trigger ? 0 : EV_ADD | EV_CLEAR,
                                              NETSRV__TOKEN_WOKEN);
    change.fflags = trigger ? NOTE_TRIGGER : 0;
    NETSRV__FAIL_POINT("kevent_user", -1);
    return kevent(kq, &change, 1, NULL, 0, NULL);
#else
    (void)kq;
    (void)ident;
    (void)trigger;
    errno = ENOSYS;
    return -1;
#endif
}

static int netsrv__sys_eventfd(void) {
    NETSRV__FAIL_POINT("eventfd", -1);
#if NETSRV__HAS_EVENTFD
    return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
#else
    errno = ENOSYS;
    return -1;
#endif
}

static int netsrv__sys_pipe(int fds[2]) {
    NETSRV__FAIL_POINT("pipe", -1);
    if (pipe(fds) != 0) {
        return -1;
    }
    if (netsrv__sys_fd_flags(fds[0]) != 0 || netsrv__sys_fd_flags(fds[1]) != 0) {
        const int saved = errno;
        netsrv__sys_close(fds[0]);
        netsrv__sys_close(fds[1]);
        errno = saved;
        return -1;
    }
    return 0;
}

static ssize_t netsrv__sys_read(int fd, void *data, size_t n) {
    NETSRV__FAIL_POINT("read", -1);
    return read(fd, data, n);
}

static ssize_t netsrv__sys_write(int fd, const void *data, size_t n) {
    NETSRV__FAIL_POINT("write", -1);
    return write(fd, data, n);
}

/* All signals stay with the program's own threads. Without stack_bytes: the system's size. */
static int netsrv__sys_thread_create(pthread_t *thread, size_t stack_bytes, void *(*body)(void *),
                                     void *arg) {
    sigset_t all;
    sigset_t before;
    pthread_attr_t attr;
    int error = NETSRV_SEAM_FAULT("pthread_create");
    error = error != 0 ? error : pthread_attr_init(&attr);
    if (error != 0) {
        return error;
    }
    if (stack_bytes != 0) {
        error = pthread_attr_setstacksize(&attr, stack_bytes);
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = error != 0 ? error : pthread_create(thread, &attr, body, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return error;
}

static void netsrv__sys_thread_name(const char *name) {
#if NETSRV__LINUX
    pthread_setname_np(pthread_self(), name);
#else
    (void)name;
#endif
}

/* CPU number `nth` (modulo their count) of those that this process may use; -1 if unknown. */
static int netsrv__sys_nth_cpu(unsigned nth) {
#if NETSRV__LINUX
    cpu_set_t set;
    CPU_ZERO(&set);
    NETSRV__FAIL_POINT("sched_getaffinity", -1);
    if (sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) == 0) {
        return -1;
    }
    unsigned left = nth % (unsigned)CPU_COUNT(&set);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET((size_t)cpu, &set) && left-- == 0) {
            return cpu;
        }
    }
#else
    (void)nth;
#endif
    return -1;
}

static unsigned netsrv__sys_cpu_count(void) {
#if NETSRV__LINUX
    cpu_set_t set;
    CPU_ZERO(&set);
    NETSRV__FAIL_POINT("sched_getaffinity", 1);
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) {
        return (unsigned)CPU_COUNT(&set);
    }
#endif
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (unsigned)n : 1;
}

static int netsrv__sys_pin(int cpu) {
#if NETSRV__LINUX
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    NETSRV__FAIL_POINT("sched_setaffinity", -1);
    return sched_setaffinity(0, sizeof set, &set);
#else
    (void)cpu;
    errno = ENOSYS;
    return -1;
#endif
}

/* Waits on a condition; false after timeout_ms. The condition's clock is the monotonic one where
 * that can be had. */
static void netsrv__sys_cond_init(pthread_cond_t *cond) {
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
#if !NETSRV__APPLE
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
#endif
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

static bool netsrv__sys_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t until_us) {
    struct timespec t;
    const uint64_t now = netsrv__sys_now_us();
    if (now >= until_us) {
        return false;
    }
#if NETSRV__APPLE
    t.tv_sec = (time_t)((until_us - now) / 1000000u);
    t.tv_nsec = (long)((until_us - now) % 1000000u) * 1000;
    pthread_cond_timedwait_relative_np(cond, lock, &t);
#else
    t.tv_sec = (time_t)(until_us / 1000000u);
    t.tv_nsec = (long)(until_us % 1000000u) * 1000;
    pthread_cond_timedwait(cond, lock, &t);
#endif
    return true;
}

static void netsrv__sys_nap(void) {
    const struct timespec t = {0, 100 * 1000 * 1000};
    nanosleep(&t, NULL);
}

/* Seeds; if the kernel has none to give, clock and address must do. */
static void netsrv__sys_random(uint64_t seed[2]) {
    seed[0] = netsrv__sys_now_us() * UINT64_C(0x9e3779b97f4a7c15) + 1;
    seed[1] = (uint64_t)(uintptr_t)seed ^ ((uint64_t)getpid() << 32);
#if NETSRV__LINUX
    if (NETSRV_SEAM_FAULT("getrandom") == 0 && getrandom(seed, 16, GRND_NONBLOCK) == 16) {
        return;
    }
#elif defined(__APPLE__) || defined(__FreeBSD__) || defined(__OpenBSD__) || defined(__NetBSD__) || \
    defined(__DragonFly__)
    arc4random_buf(seed, 16);
#endif
}

/* ========================================================================== *
 *  [net] Addresses as text, listening sockets, socket options, errno classes
 *  uses:   log sys util
 *  thread: any; listeners before the threads start and after they ended
 * ========================================================================== */

/* ---- addresses ---- */

static netsrv__addr netsrv__net_addr(const struct sockaddr_storage *sa) {
    netsrv__addr a;
    memset(&a, 0, sizeof a);
    a.family = (uint16_t)sa->ss_family;
    if (sa->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)sa;
        a.port = ntohs(in->sin_port);
        memcpy(a.ip, &in->sin_addr, 4);
        return a;
    }
    if (sa->ss_family != AF_INET6) {
        return a;
    }
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;
    a.port = ntohs(in6->sin6_port);
    if (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr)) {
        /* An IPv4 client of a dual-stack listener is the same client everywhere else. */
        a.family = AF_INET;
        memcpy(a.ip, in6->sin6_addr.s6_addr + 12, 4);
        return a;
    }
    a.scope = in6->sin6_scope_id;
    memcpy(a.ip, &in6->sin6_addr, 16);
    return a;
}

#if NETSRV__HAS_COMPLETIONS
/* Of a connection that was accepted without its address. False if nothing can be said of it. */
static bool netsrv__net_peer(int fd, netsrv__addr *peer) {
    struct sockaddr_storage sa;
    socklen_t n = sizeof sa;
    sa.ss_family = AF_UNSPEC;
    if (netsrv__sys_peer_addr(fd, &sa, &n) != 0) {
        if (errno != ENOTCONN) {
            return false;
        }
        sa.ss_family = AF_UNSPEC;
    }
    *peer = netsrv__net_addr(&sa);
    return true;
}

/* What is known of a peer, or what its socket knows. */
static netsrv__addr netsrv__net_peer_of(int fd, const netsrv__addr *known) {
    netsrv__addr a = *known;
    if (a.family == NETSRV__ADDR_UNASKED && !netsrv__net_peer(fd, &a)) {
        a.family = AF_UNSPEC;
    }
    return a;
}
#else
static netsrv__addr netsrv__net_peer_of(int fd, const netsrv__addr *known) {
    (void)fd;
    return *known;
}
#endif

static const char *netsrv__net_text(const netsrv__addr *a, char *text, size_t n) {
    char ip[INET6_ADDRSTRLEN] = "";
    char scope[IF_NAMESIZE + 1] = "";
    if (a->family == AF_INET) {
        inet_ntop(AF_INET, a->ip, ip, sizeof ip);
        snprintf(text, n, "%s:%u", ip, (unsigned)a->port);
        return text;
    }
    if (a->family != AF_INET6) {
        snprintf(text, n, "%s", a->family == AF_UNIX ? "unix" : "unknown");
        return text;
    }
    inet_ntop(AF_INET6, a->ip, ip, sizeof ip);
    if (a->scope != 0 && if_indextoname(a->scope, scope + 1) != NULL) {
        scope[0] = '%';
    }
    snprintf(text, n, "[%s%s]:%u", ip, scope, (unsigned)a->port);
    return text;
}

/* "0" to "65535" and nothing else. */
static bool netsrv__net_port(const char *text, uint16_t *port) {
    unsigned value = 0;
    if (*text == '\0') {
        return false;
    }
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9') {
            return false;
        }
        value = value * 10 + (unsigned)(*text - '0');
        if (value > 65535) {
            return false;
        }
    }
    *port = (uint16_t)value;
    return true;
}

static bool netsrv__net_parse_v6(netsrv__listener *ln, char *host, uint16_t port) {
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&ln->sa;
    char *scope = strchr(host, '%');
    if (scope != NULL) {
        *scope++ = '\0';
        in6->sin6_scope_id = if_nametoindex(scope);
        if (in6->sin6_scope_id == 0) {
            return false;
        }
    }
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(port);
    ln->sa_len = sizeof *in6;
    return inet_pton(AF_INET6, host, &in6->sin6_addr) == 1;
}

static bool netsrv__net_parse_v4(netsrv__listener *ln, const char *host, uint16_t port) {
    struct sockaddr_in *in = (struct sockaddr_in *)&ln->sa;
    in->sin_family = AF_INET;
    in->sin_port = htons(port);
    ln->sa_len = sizeof *in;
    return inet_pton(AF_INET, host, &in->sin_addr) == 1;
}

/* "*:port" and ":port", "1.2.3.4:port", "[v6]:port" or "[v6%scope]:port". NULL or what is wrong. */
static const char *netsrv__net_parse_tcp(netsrv__listener *ln, const char *spec) {
    char host[NETSRV_ADDRESS_MAX];
    uint16_t port = 0;
    const char *colon = strrchr(spec, ':');
    if (colon == NULL || !netsrv__net_port(colon + 1, &port)) {
        return "expected ADDRESS:PORT with a port from 0 to 65535";
    }
    const size_t n = (size_t)(colon - spec);
    memcpy(host, spec, n);
    host[n] = '\0';
    if (n == 0 || strcmp(host, "*") == 0) {
        char any[] = "::";
        ln->any = true;
        netsrv__net_parse_v6(ln, any, port);
        return NULL;
    }
    if (host[0] == '[' && host[n - 1] == ']') {
        host[n - 1] = '\0';
        return netsrv__net_parse_v6(ln, host + 1, port) ? NULL : "not an IPv6 address";
    }
    if (strchr(host, ':') != NULL) {
        return "an IPv6 address needs brackets, as in [::1]:7000";
    }
    if (!netsrv__net_parse_v4(ln, host, port)) {
        return "not an IPv4 address (names are not resolved; use 127.0.0.1 for localhost)";
    }
    return NULL;
}

/* "/path", or "@name" in Linux' abstract space. */
static const char *netsrv__net_parse_unix(netsrv__listener *ln, const char *path) {
    struct sockaddr_un *un = (struct sockaddr_un *)&ln->sa;
    const size_t n = strlen(path);
    if (n < 2 && (n == 0 || path[0] == '@')) {
        return "the name of the unix socket is empty";
    }
    if (n >= sizeof un->sun_path) {
        return "the name of the unix socket is too long";
    }
    ln->kind = NETSRV__LISTEN_UNIX;
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, path, n + 1);
    ln->sa_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + 1);
    if (path[0] == '@') {
        un->sun_path[0] = '\0';
        ln->sa_len--;
        return NETSRV__LINUX ? NULL : "abstract unix sockets exist on Linux only";
    }
    return NULL;
}

/* sd_listen_fds(3): descriptors from 3 on, for the process LISTEN_PID names. -1 if there is none of
 * that name; an empty name takes the first. */
static int netsrv__net_systemd_fd(const char *name) {
    const char *pid = getenv("LISTEN_PID");
    const char *fds = getenv("LISTEN_FDS");
    const char *names = getenv("LISTEN_FDNAMES");
    if (pid == NULL || fds == NULL || strtol(pid, NULL, 10) != (long)getpid()) {
        return -1;
    }
    const long said = strtol(fds, NULL, 10);
    const int count = said < 4096 ? (int)said : 4096;
    for (int i = 0; i < count; i++) {
        const char *here = names != NULL ? names : "unknown";
        const size_t n = strcspn(here, ":");
        if (*name == '\0' || (strlen(name) == n && memcmp(name, here, n) == 0)) {
            return 3 + i;
        }
        if (names != NULL) {
            names += names[n] == ':' ? n + 1 : n;
        }
    }
    return -1;
}

static const char *netsrv__net_parse_adopted(netsrv__listener *ln, int fd) {
    int listening = 0;
    ln->kind = NETSRV__LISTEN_ADOPTED;
    ln->adopted_fd = fd;
    if (netsrv__sys_getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening) != 0) {
        return errno == EBADF      ? "the descriptor is not open"
               : errno == ENOTSOCK ? "the descriptor is not a socket"
                                   : strerror(errno);
    }
    errno = 0;
    return listening != 0 ? NULL : "the descriptor is not a listening socket";
}

static const char *netsrv__net_parse_fd(netsrv__listener *ln, const char *text) {
    uint16_t fd = 0;
    if (!netsrv__net_port(text, &fd)) {
        return "expected fd:NUMBER";
    }
    return netsrv__net_parse_adopted(ln, fd);
}

static const char *netsrv__net_parse_systemd(netsrv__listener *ln, const char *name) {
    const int fd = netsrv__net_systemd_fd(name);
    if (fd < 0) {
        return "no descriptor of that name was passed (LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES)";
    }
    return netsrv__net_parse_adopted(ln, fd);
}

/* NULL, or what is wrong with the address. */
static const char *netsrv__net_parse(netsrv__listener *ln, const char *spec) {
    if (strlen(spec) >= NETSRV_ADDRESS_MAX) {
        return "the address is too long";
    }
    snprintf(ln->text, sizeof ln->text, "%s", spec);
    if (strncmp(spec, "unix:", 5) == 0) {
        return netsrv__net_parse_unix(ln, spec + 5);
    }
    if (strncmp(spec, "fd:", 3) == 0) {
        return netsrv__net_parse_fd(ln, spec + 3);
    }
    if (strncmp(spec, "systemd:", 8) == 0) {
        return netsrv__net_parse_systemd(ln, spec + 8);
    }
    return netsrv__net_parse_tcp(ln, spec);
}

/* The same for somebody to connect to; *name if it needs a look-up. */
static const char *netsrv__net_parse_target(netsrv__listener *to, const char *spec, bool *name) {
    uint16_t port = 0;
    const char *colon = strrchr(spec, ':');
    *name = false;
    if (strlen(spec) >= NETSRV_ADDRESS_MAX) {
        return "the address is too long";
    }
    if (strncmp(spec, "unix:", 5) == 0) {
        return netsrv__net_parse_unix(to, spec + 5);
    }
    if (colon == NULL || colon == spec || !netsrv__net_port(colon + 1, &port) || port == 0) {
        return "expected HOST:PORT with a port from 1 to 65535";
    }
    const char *wrong = netsrv__net_parse_tcp(to, spec);
    if (wrong == NULL) {
        return to->any ? "expected HOST:PORT" : NULL;
    }
    *name = spec + strcspn(spec, "[]*:%") == colon;
    return *name ? NULL : wrong;
}

/* ---- listening sockets ---- */

/* Options that fail are not worth refusing service for. Linux and the BSDs hand them on to accepted
 * sockets, so that none costs a call per connection. */
static void netsrv__net_tune_any(const netsrv_config *cfg, int fd) {
    if (cfg->nodelay != NETSRV_DISABLE) {
        netsrv__sys_set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    }
    if (cfg->keepalive_s != NETSRV_OFF) {
        netsrv__sys_set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
        netsrv__sys_set_int(fd, IPPROTO_TCP, NETSRV__KEEPIDLE, (int)cfg->keepalive_s);
    }
}

static void netsrv__net_tune(const netsrv_config *cfg, int fd) {
    netsrv__net_tune_any(cfg, fd);
#ifdef TCP_DEFER_ACCEPT
    if (cfg->defer_accept_s != NETSRV_OFF) {
        netsrv__sys_set_int(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, (int)cfg->defer_accept_s);
    }
#endif
#ifdef TCP_FASTOPEN
    if (cfg->fast_open_count != NETSRV_OFF) {
        netsrv__sys_set_int(fd, IPPROTO_TCP, TCP_FASTOPEN, (int)cfg->fast_open_count);
    }
#endif
}

/* An IPv6 socket that takes IPv4 as well; EAFNOSUPPORT where there is none (OpenBSD has no such
 * sockets, other systems may be built without IPv6). */
static int netsrv__net_socket_any(void) {
    const int fd = netsrv__sys_socket(AF_INET6);
    if (fd >= 0 && netsrv__sys_set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0) != 0) {
        netsrv__sys_close(fd);
        errno = EAFNOSUPPORT;
        return -1;
    }
    return fd;
}

/* A socket for the address; "*" falls back to IPv4. */
static int netsrv__net_socket(netsrv__listener *ln) {
    if (!ln->any || ln->sa.ss_family != AF_INET6) {
        return netsrv__sys_socket(ln->sa.ss_family);
    }
    const int fd = netsrv__net_socket_any();
    if (fd < 0 && errno == EAFNOSUPPORT) {
        const uint16_t port = ntohs(((struct sockaddr_in6 *)&ln->sa)->sin6_port);
        memset(&ln->sa, 0, sizeof ln->sa);
        netsrv__net_parse_v4(ln, "0.0.0.0", port);
        return netsrv__sys_socket(AF_INET);
    }
    return fd;
}

static uint16_t netsrv__net_listener_port(const netsrv__listener *ln) {
    const netsrv__addr a = netsrv__net_addr(&ln->sa);
    return a.port;
}

/* Whether the port can be bound by a socket that does not share: 0, or -1 and EADDRINUSE. For port
 * 0 there is nothing to find out. */
static int netsrv__net_try_port(const netsrv__listener *ln) {
    if (netsrv__net_listener_port(ln) == 0) {
        return 0;
    }
    const int fd = netsrv__sys_socket(ln->sa.ss_family);
    if (fd < 0) {
        return -1;
    }
    netsrv__sys_set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    const int r = netsrv__sys_bind(fd, &ln->sa, ln->sa_len);
    const int saved = errno;
    netsrv__sys_close(fd);
    errno = saved;
    return r;
}

/* SO_REUSEPORT on the first socket only after its bind: so that bind still fails where another
 * server has the port, and the sockets that follow may join it all the same. Where that comes too
 * late to share in the spreading (FreeBSD), a socket that is closed again tries the port before. */
static int netsrv__net_bind_tcp(const netsrv_config *cfg, netsrv__listener *ln, int fd,
                                bool first) {
    const bool spread = cfg->accept == NETSRV_ACCEPT_REUSEPORT;
    const bool alone = spread && first && cfg->share_port != NETSRV_ENABLE;
    const bool early = spread && (!alone || !NETSRV__REUSEPORT_LATE);
    if (alone && early && netsrv__net_try_port(ln) != 0) {
        return -1;
    }
    netsrv__sys_set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (ln->sa.ss_family == AF_INET6 && !ln->any &&
        netsrv__sys_set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1) != 0) {
        return -1;
    }
    if (early && netsrv__sys_set_int(fd, SOL_SOCKET, NETSRV__REUSEPORT, 1) != 0) {
        return -1;
    }
    if (netsrv__sys_bind(fd, &ln->sa, ln->sa_len) != 0) {
        return -1;
    }
    if (spread && !early && netsrv__sys_set_int(fd, SOL_SOCKET, NETSRV__REUSEPORT, 1) != 0) {
        return -1;
    }
    netsrv__net_tune(cfg, fd);
    return 0;
}

/* A socket file that nobody listens on any more may be replaced. */
static bool netsrv__net_stale_path(const netsrv__listener *ln) {
    struct stat st;
    const char *path = ((const struct sockaddr_un *)&ln->sa)->sun_path;
    if (path[0] == '\0' || netsrv__sys_lstat(path, &st) != 0 || !S_ISSOCK(st.st_mode)) {
        return false;
    }
    const int fd = netsrv__sys_socket(AF_UNIX);
    if (fd < 0) {
        return false;
    }
    const bool refused = netsrv__sys_connect(fd, &ln->sa, ln->sa_len) != 0 && errno == ECONNREFUSED;
    netsrv__sys_close(fd);
    return refused;
}

static int netsrv__net_bind_unix(netsrv__listener *ln, int fd) {
    struct stat st;
    const char *path = ((const struct sockaddr_un *)&ln->sa)->sun_path;
    int r = netsrv__sys_bind(fd, &ln->sa, ln->sa_len);
    if (r != 0 && errno == EADDRINUSE) {
        const bool stale = netsrv__net_stale_path(ln) && netsrv__sys_unlink(path) == 0;
        errno = EADDRINUSE;
        r = stale ? netsrv__sys_bind(fd, &ln->sa, ln->sa_len) : -1;
    }
    if (r == 0 && path[0] != '\0' && netsrv__sys_lstat(path, &st) == 0) {
        ln->path_dev = st.st_dev;
        ln->path_ino = st.st_ino;
        ln->bound_path = true;
    }
    return r;
}

static int netsrv__net_open_one(const netsrv_config *cfg, netsrv__listener *ln, bool first) {
    int fd;
    if (ln->kind == NETSRV__LISTEN_ADOPTED) {
        fd = netsrv__sys_prepared(netsrv__sys_duplicate(ln->adopted_fd));
        if (fd >= 0) {
            netsrv__net_tune(cfg, fd);
        }
        return fd;
    }
    fd = netsrv__net_socket(ln);
    if (fd < 0) {
        return -1;
    }
    const int r = ln->kind == NETSRV__LISTEN_UNIX ? netsrv__net_bind_unix(ln, fd)
                                                  : netsrv__net_bind_tcp(cfg, ln, fd, first);
    const int backlog = (int)netsrv__util_min(cfg->backlog_count, INT_MAX);
    if (r != 0 || netsrv__sys_listen(fd, backlog) != 0) {
        const int saved = errno;
        netsrv__sys_close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

/* After the bind: the real port, for the next sockets, for a restart and for the user. Nothing is
 * written that is known already: others may be reading it. */
static int netsrv__net_learn(netsrv__listener *ln, int fd) {
    struct sockaddr_storage sa;
    socklen_t n = sizeof sa;
    memset(&sa, 0, sizeof sa);
    if (ln->kind == NETSRV__LISTEN_UNIX) {
        return 0;
    }
    if (netsrv__sys_local(fd, &sa, &n) != 0) {
        return -1;
    }
    if ((sa.ss_family != AF_INET && sa.ss_family != AF_INET6) ||
        (n == ln->sa_len && memcmp(&sa, &ln->sa, n) == 0)) {
        return 0;
    }
    ln->sa = sa;
    ln->sa_len = n;
    const netsrv__addr a = netsrv__net_addr(&sa);
    if (ln->any) {
        snprintf(ln->text, sizeof ln->text, "*:%u", (unsigned)a.port);
    } else {
        netsrv__net_text(&a, ln->text, sizeof ln->text);
    }
    return 0;
}

/* Steers by the CPU that received the handshake: socket number = CPU modulo sockets, in the order
 * of listen(2). The program is two instructions and a return; see bpf(2) and socket(7). */
static int netsrv__net_steer(int fd, unsigned sockets) {
#if NETSRV__LINUX
    struct instruction {
        uint16_t code;
        uint8_t jt;
        uint8_t jf;
        uint32_t k;
    } code[] = {
        {0x20, 0, 0, 0xfffff000u + 36}, /* A = CPU (SKF_AD_OFF + SKF_AD_CPU) */
        {0x94, 0, 0, sockets},          /* A = A % sockets                   */
        {0x16, 0, 0, 0},                /* return A                          */
    };
    struct {
        uint16_t n;
        struct instruction *code;
    } program = {3, code};
    return netsrv__sys_setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program,
                                  sizeof program);
#else
    (void)fd;
    (void)sockets;
    errno = ENOPROTOOPT;
    return -1;
#endif
}

/* Closes what is open; the path of a unix socket goes only if it is still ours. */
static void netsrv__net_close_listener(netsrv__listener *ln) {
    struct stat st;
    const char *path = ((const struct sockaddr_un *)&ln->sa)->sun_path;
    if (ln->bound_path && netsrv__sys_lstat(path, &st) == 0 && st.st_dev == ln->path_dev &&
        st.st_ino == ln->path_ino) {
        netsrv__sys_unlink(path);
    }
    ln->bound_path = false;
    for (unsigned i = 0; i < ln->fd_count; i++) {
        if (ln->fds[i] >= 0) {
            netsrv__sys_close(ln->fds[i]);
            ln->fds[i] = -1;
        }
    }
}

static const char *netsrv__net_remedy(int sys_errno) {
    switch (sys_errno) {
    case EADDRINUSE:
        return "; another server has it: stop that one, or take another port (0 finds a free one)";
    case EACCES:
    case EPERM:
        return "; take a port above 1023, or a path you may write to";
    case ENOENT:
    case ENOTDIR:
        return "; make the directory first";
    case EADDRNOTAVAIL:
        return "; this machine has no such address";
    case EMFILE:
    case ENFILE:
        return "; raise the limit of open descriptors";
    case EAFNOSUPPORT:
        return "; this system does not have that kind of address";
    default:
        return "";
    }
}

/* All sockets of a listener, or none and an error. */
static netsrv_result netsrv__net_open_listener(const netsrv_config *cfg, netsrv__listener *ln,
                                               netsrv_error *error) {
    for (unsigned i = 0; i < ln->fd_count; i++) {
        ln->fds[i] = netsrv__net_open_one(cfg, ln, i == 0);
        if (ln->fds[i] < 0 || (i == 0 && netsrv__net_learn(ln, ln->fds[0]) != 0)) {
            const int saved = errno;
            netsrv__net_close_listener(ln);
            return netsrv__log_error(error, NETSRV_SYSTEM, saved, "cannot listen on %s: %s%s",
                                     ln->text, strerror(saved), netsrv__net_remedy(saved));
        }
    }
    if (cfg->accept == NETSRV_ACCEPT_REUSEPORT && cfg->steer_by_cpu == NETSRV_ENABLE &&
        netsrv__net_steer(ln->fds[0], ln->fd_count) != 0) {
        const int saved = errno;
        netsrv__net_close_listener(ln);
        return netsrv__log_error(error, NETSRV_SYSTEM, saved,
                                 "steer_by_cpu on %s: %s; leave it off on this system", ln->text,
                                 strerror(saved));
    }
    return NETSRV_OK;
}

/* ---- errno of accept ---- */

typedef enum netsrv__net_verdict {
    NETSRV__ACCEPT_DRAINED,  /* nothing left                             */
    NETSRV__ACCEPT_RETRY,    /* that client is gone, the next may be fine */
    NETSRV__ACCEPT_RESOURCE, /* no descriptors or memory: pause           */
    NETSRV__ACCEPT_BROKEN    /* the listener itself                       */
} netsrv__net_verdict;

/* accept(2): Linux also reports errors that are already pending on the new socket. */
static netsrv__net_verdict netsrv__net_accept_verdict(int sys_errno) {
    switch (sys_errno) {
    case EAGAIN:
#if EWOULDBLOCK != EAGAIN
    case EWOULDBLOCK:
#endif
        return NETSRV__ACCEPT_DRAINED;
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
        return NETSRV__ACCEPT_RESOURCE;
    case EBADF:
    case EINVAL:
    case ENOTSOCK:
    case EFAULT:
    case ENOSYS:
        return NETSRV__ACCEPT_BROKEN;
    default:
        return NETSRV__ACCEPT_RETRY;
    }
}

/* ========================================================================== *
 *  [pulse] Which callback a thread is in, for others to see
 *  uses:   log sys net
 *  thread: begin, end = that of `w`; stuck, text = any
 * ========================================================================== */

/* Written without a lock: a call has a number, the state, that is given out after everything else
 * is written, and taken back before any of it changes. Whoever reads in between and can then mark
 * the same number as reported has read what belongs to it, and the end of the call will find the
 * mark. A call inside another (a connection opens in a watch of the library's own) takes its
 * place. */

static const char *const netsrv__pulse_acts[] = {
#define NETSRV_X(name, text) text,
    NETSRV__ACTS(NETSRV_X)
#undef NETSRV_X
};

NETSRV__COLD
static void netsrv__pulse_note(netsrv__worker *w, netsrv__act act, netsrv_id id,
                               const netsrv__addr *peer) {
    netsrv__pulse *p = &w->pulse;
    netsrv__scene scene;
    uint32_t words[NETSRV__SCENE_WORDS];
    memset(&scene, 0, sizeof scene);
    scene.id = id;
    if (peer != NULL) {
        scene.peer = *peer;
    }
    scene.begun_ms = (uint32_t)netsrv__sys_now_ms();
    scene.act = (uint16_t)act;
    scene.worker = (uint16_t)w->index;
    memcpy(words, &scene, sizeof words);
    for (size_t i = 0; i < NETSRV__SCENE_WORDS; i++) {
        atomic_store_explicit(&p->words[i], words[i], memory_order_relaxed);
    }
    p->beat = p->beat + 2 != 0 ? p->beat + 2 : 2;
    atomic_store_explicit(&p->state, p->beat, memory_order_release);
}

/* Before a call of the program's. */
static NETSRV__HOT void netsrv__pulse_begin(netsrv__worker *w, netsrv__act act, netsrv_id id,
                                            const netsrv__addr *peer) {
    if (!NETSRV__LIKELY(!w->pulse.on)) {
        netsrv__pulse_note(w, act, id, peer);
    }
}

static void netsrv__pulse_read(netsrv__pulse *p, netsrv__scene *scene) {
    uint32_t words[NETSRV__SCENE_WORDS];
    for (size_t i = 0; i < NETSRV__SCENE_WORDS; i++) {
        words[i] = atomic_load_explicit(&p->words[i], memory_order_relaxed);
    }
    memcpy(scene, words, sizeof *scene);
}

/* "worker 1: on_data of connection 4294967297 (127.0.0.1:5000)" */
static void netsrv__pulse_text(const netsrv__pulse *p, const netsrv__scene *scene, char *text,
                               size_t n) {
    char peer[NETSRV_ADDRESS_MAX];
    char whose[NETSRV_ADDRESS_MAX + 64] = "";
    const unsigned long long id = scene->id;
    if (scene->act == NETSRV__ACT_WATCH) {
        snprintf(whose, sizeof whose, " of descriptor %llu", id);
    } else if (scene->peer.family != 0) {
        snprintf(whose, sizeof whose, " of connection %llu (%s)", id,
                 netsrv__net_text(&scene->peer, peer, sizeof peer));
    } else if (id != 0) {
        snprintf(whose, sizeof whose, " of connection %llu", id);
    }
    snprintf(text, n, "%s %u: %s%s", p->who, p->number, netsrv__pulse_acts[scene->act], whose);
}

/* Whether the call that runs has taken longer than `stuck_ms`, and nobody has said so: from then on
 * the caller has to. Else *left is lowered to the time that it still has. */
static bool netsrv__pulse_stuck(netsrv__pulse *p, uint32_t stuck_ms, netsrv__scene *scene,
                                uint32_t *left) {
    uint32_t state = atomic_load_explicit(&p->state, memory_order_acquire);
    if (state == 0 || (state & 1u) != 0) {
        return false;
    }
    netsrv__pulse_read(p, scene);
    const uint32_t age = (uint32_t)netsrv__sys_now_ms() - scene->begun_ms;
    if (age <= stuck_ms) { /* equal may be early by the rounding of the clock */
        *left = *left < stuck_ms + 1 - age ? *left : stuck_ms + 1 - age;
        return false;
    }
    return age <= INT32_MAX && atomic_compare_exchange_strong(&p->state, &state, state | 1u);
}

/* It was reported; the lock keeps the lines in order. */
static void netsrv__pulse_report_end(netsrv__worker *w) {
    netsrv__scene scene;
    char text[2 * NETSRV_ADDRESS_MAX];
    netsrv__pulse_read(&w->pulse, &scene);
    const uint32_t took_ms = (uint32_t)netsrv__sys_now_ms() - scene.begun_ms;
    netsrv__pulse_text(&w->pulse, &scene, text, sizeof text);
    pthread_mutex_lock(&w->srv->lookout->lock);
    netsrv__log_line(w->cfg, NETSRV_LOG_WARN, "%s took %lu ms", text, (unsigned long)took_ms);
    pthread_mutex_unlock(&w->srv->lookout->lock);
}

NETSRV__COLD
static void netsrv__pulse_over(netsrv__worker *w) {
    if ((atomic_exchange(&w->pulse.state, 0) & 1u) != 0) {
        netsrv__pulse_report_end(w);
    }
}

static NETSRV__HOT void netsrv__pulse_end(netsrv__worker *w) {
    if (!NETSRV__LIKELY(!w->pulse.on)) {
        netsrv__pulse_over(w);
    }
}

/* ========================================================================== *
 *  [slab] The connections of one worker: slot + generation, stale names are harmless
 *  uses:   mem
 *  thread: owner
 * ========================================================================== */

static netsrv_conn *netsrv__slab_at(const netsrv__slab *slab, uint32_t slot) {
    return &slab->chunks[slot / NETSRV__SLAB_CHUNK][slot % NETSRV__SLAB_CHUNK];
}

static bool netsrv__slab_widen(netsrv__slab *slab, const netsrv_config *cfg) {
    const unsigned cap = slab->chunk_cap == 0 ? 16 : slab->chunk_cap * 2;
    netsrv_conn **chunks = netsrv__mem_resize(cfg, slab->chunks,
                                              slab->chunk_cap * sizeof *slab->chunks,
                                              cap * sizeof *slab->chunks);
    if (chunks == NULL) {
        return false;
    }
    slab->chunks = chunks;
    slab->chunk_cap = cap;
    return true;
}

static bool netsrv__slab_grow(netsrv__slab *slab, netsrv__worker *w) {
    const netsrv_config *cfg = w->cfg;
    if (slab->chunk_count * NETSRV__SLAB_CHUNK >= NETSRV__SLAB_MAX) {
        return false;
    }
    if (slab->chunk_count == slab->chunk_cap && !netsrv__slab_widen(slab, cfg)) {
        return false;
    }
    netsrv_conn *chunk = netsrv__mem_zeroed(cfg, NETSRV__SLAB_CHUNK, sizeof *chunk);
    if (chunk == NULL) {
        return false;
    }
    for (unsigned i = NETSRV__SLAB_CHUNK; i-- > 0;) {
        chunk[i].worker = w;
        chunk[i].gen = w->first_gen;
        chunk[i].slot = slab->chunk_count * NETSRV__SLAB_CHUNK + i;
        chunk[i].grave_next = slab->free;
        slab->free = &chunk[i];
    }
    slab->chunks[slab->chunk_count++] = chunk;
    return true;
}

/* A connection whose fields but worker, slot and generation are zero; NULL without memory. */
static netsrv_conn *netsrv__slab_alloc(netsrv__slab *slab, netsrv__worker *w) {
    if (slab->free == NULL && !netsrv__slab_grow(slab, w)) {
        return NULL;
    }
    netsrv_conn *c = slab->free;
    slab->free = c->grave_next;
    c->grave_next = NULL;
    slab->live++;
    NETSRV_ASSERT(c->state == NETSRV__FREE);
    return c;
}

/* From here on, the old id and the old token name nobody. */
static void netsrv__slab_free(netsrv__slab *slab, netsrv_conn *c) {
    netsrv__worker *w = c->worker;
    const uint32_t slot = c->slot;
    const uint32_t gen = c->gen + 1 != 0 ? c->gen + 1 : 1;
    NETSRV_ASSERT(slab->live > 0);
    memset(c, 0, sizeof *c);
    c->worker = w;
    c->slot = slot;
    c->gen = gen;
    c->grave_next = slab->free;
    slab->free = c;
    slab->live--;
}

/* NULL unless the connection of that generation exists. */
static netsrv_conn *netsrv__slab_find(const netsrv__slab *slab, uint32_t slot, uint32_t gen) {
    if (slot >= slab->chunk_count * NETSRV__SLAB_CHUNK) {
        return NULL;
    }
    netsrv_conn *c = netsrv__slab_at(slab, slot);
    return c->gen == gen && c->state != NETSRV__FREE ? c : NULL;
}

/* The slots of a later life begin above all generations of this one: ids are never used again. */
static uint32_t netsrv__slab_next_gen(const netsrv__slab *slab, uint32_t first) {
    uint32_t next = first;
    for (uint32_t slot = 0; slot < slab->chunk_count * NETSRV__SLAB_CHUNK; slot++) {
        const uint32_t gen = netsrv__slab_at(slab, slot)->gen;
        next = gen > next ? gen : next;
    }
    return next;
}

static void netsrv__slab_discard(netsrv__slab *slab, const netsrv_config *cfg) {
    for (unsigned i = 0; i < slab->chunk_count; i++) {
        netsrv__mem_free(cfg, slab->chunks[i], NETSRV__SLAB_CHUNK * sizeof(netsrv_conn));
    }
    netsrv__mem_free(cfg, slab->chunks, slab->chunk_cap * sizeof *slab->chunks);
    memset(slab, 0, sizeof *slab);
}

/* ========================================================================== *
 *  [out] Unsent bytes in chunks; what the server may hold in memory
 *  uses:   mem util pulse
 *  thread: owner; chunk_new and chunk_free any
 * ========================================================================== */

/* Memory under server_queue_max_bytes; false at the limit. */
static bool netsrv__out_reserve(netsrv_server *srv, size_t bytes) {
    const uint64_t max = srv->cfg.server_queue_max_bytes;
    const size_t before = atomic_fetch_add_explicit(&srv->queued, bytes, memory_order_relaxed);
    if (max == NETSRV_OFF || (uint64_t)before + bytes <= max) {
        return true;
    }
    atomic_fetch_sub_explicit(&srv->queued, bytes, memory_order_relaxed);
    return false;
}

static void netsrv__out_unreserve(netsrv_server *srv, size_t bytes) {
    atomic_fetch_sub_explicit(&srv->queued, bytes, memory_order_relaxed);
}

/* NULL without memory, or with *full set when the server's limit is met. */
static netsrv__chunk *netsrv__out_chunk_new(netsrv_server *srv, size_t cap, bool *full) {
    netsrv__chunk *chunk;
    *full = cap > SIZE_MAX - sizeof *chunk || !netsrv__out_reserve(srv, sizeof *chunk + cap);
    if (*full) {
        return NULL;
    }
    chunk = netsrv__mem_alloc(&srv->cfg, sizeof *chunk + cap);
    if (chunk == NULL) {
        netsrv__out_unreserve(srv, sizeof *chunk + cap);
        return NULL;
    }
    memset(chunk, 0, sizeof *chunk);
    chunk->cap = cap;
    chunk->data = chunk->bytes;
    return chunk;
}

static void netsrv__out_buffer_drop(netsrv_buffer *b) {
    netsrv_server *srv = b->srv;
    const size_t bytes = sizeof *b + b->n;
    if (atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) == 1) {
        netsrv__out_unreserve(srv, bytes);
        netsrv__mem_free(&srv->cfg, b, bytes);
    }
}

/* Through with a chunk. The program hears of its own memory at the end of the turn: here, the queue
 * that the chunk came from is being changed. */
static void netsrv__out_chunk_free(netsrv_server *srv, netsrv__chunk *chunk) {
    const size_t bytes = sizeof *chunk + chunk->cap;
    if (chunk->release != NULL) {
        chunk->next = netsrv__self->own.spent;
        netsrv__self->own.spent = chunk;
        return;
    }
    if (chunk->kind == NETSRV__CHUNK_SHARED) {
        netsrv__out_buffer_drop(chunk->arg);
    }
    netsrv__out_unreserve(srv, bytes);
    netsrv__mem_free(&srv->cfg, chunk, bytes);
}

NETSRV__COLD
static void netsrv__out_release_all(netsrv__worker *w) {
    while (w->own.spent != NULL) {
        netsrv__chunk *chunk = w->own.spent;
        void (*release)(void *arg) = chunk->release;
        void *arg = chunk->arg;
        w->own.spent = chunk->next;
        chunk->release = NULL;
        netsrv__out_chunk_free(w->srv, chunk);
        netsrv__pulse_begin(w, NETSRV__ACT_RELEASE, 0, NULL);
        release(arg);
        netsrv__pulse_end(w);
    }
}

/* Tells the program of everything it has back; what that ends comes back in the next turn. */
static NETSRV__HOT void netsrv__out_release_spent(netsrv__worker *w) {
    if (w->own.spent != NULL) {
        netsrv__out_release_all(w);
    }
}

static void netsrv__out_link(netsrv__out *out, netsrv__chunk *chunk) {
    if (out->tail == NULL) {
        out->head = chunk;
    } else {
        out->tail->next = chunk;
    }
    out->tail = chunk;
    out->bytes += chunk->end - chunk->begin;
}

static size_t netsrv__out_room(const netsrv__out *out) {
    const netsrv__chunk *tail = out->tail;
    return tail != NULL && tail->kind == NETSRV__CHUNK_COPY ? tail->cap - tail->end : 0;
}

/* As much as fits into the last chunk. */
static size_t netsrv__out_fill(netsrv__out *out, const void *data, size_t n) {
    netsrv__chunk *tail = out->tail;
    n = netsrv__util_min(n, netsrv__out_room(out));
    if (n == 0) {
        return 0;
    }
    memcpy(tail->bytes + tail->end, data, n);
    tail->end += n;
    out->bytes += n;
    return n;
}

/* All or nothing; false as netsrv__out_chunk_new. Chunks grow with the queue, so that few small
 * sends cost little memory and many cost few allocations. */
static bool netsrv__out_append(netsrv_server *srv, netsrv__out *out, const void *data, size_t n,
                               bool *full) {
    const size_t room = netsrv__out_room(out);
    netsrv__chunk *chunk = NULL;
    *full = false;
    if (n > room) {
        const size_t want = netsrv__util_max(n - room, NETSRV__OUT_MIN);
        const size_t usual = netsrv__util_min(out->bytes, NETSRV__OUT_MAX);
        chunk = netsrv__out_chunk_new(srv, netsrv__util_max(want, usual), full);
        if (chunk == NULL) {
            return false;
        }
    }
    const size_t filled = netsrv__out_fill(out, data, n);
    if (chunk != NULL) {
        memcpy(chunk->bytes, (const unsigned char *)data + filled, n - filled);
        chunk->end = n - filled;
        netsrv__out_link(out, chunk);
    }
    return true;
}

#if NETSRV__HAS_COMPLETIONS
/* A copy in front of everything; false as netsrv__out_chunk_new. */
static bool netsrv__out_prepend(netsrv_server *srv, netsrv__out *out, const void *data, size_t n,
                                bool *full) {
    netsrv__chunk *chunk = netsrv__out_chunk_new(srv, n, full);
    if (chunk == NULL) {
        return false;
    }
    memcpy(chunk->bytes, data, n);
    chunk->end = n;
    chunk->next = out->head;
    out->head = chunk;
    out->tail = out->tail != NULL ? out->tail : chunk;
    out->bytes += n;
    return true;
}
#endif

/* Takes the chunk over. Small ones are copied together, or many of them would hold far more memory
 * than the bytes that the limits count. */
static void netsrv__out_adopt(netsrv_server *srv, netsrv__out *out, netsrv__chunk *chunk) {
    const size_t n = chunk->end - chunk->begin;
    bool full = false;
    if (n < NETSRV__OUT_MIN / 4 &&
        netsrv__out_append(srv, out, chunk->bytes + chunk->begin, n, &full)) {
        netsrv__out_chunk_free(srv, chunk);
        return;
    }
    netsrv__out_link(out, chunk);
}

/* Queues what is not copied; false as netsrv__out_chunk_new. */
static bool netsrv__out_refer(netsrv_server *srv, netsrv__out *out, const netsrv__chunk *what,
                              bool *full) {
    netsrv__chunk *chunk = netsrv__out_chunk_new(srv, 0, full);
    if (chunk == NULL) {
        return false;
    }
    *chunk = *what;
    netsrv__out_link(out, chunk);
    return true;
}

/* Moves everything to the end of another queue. */
static void netsrv__out_move(netsrv__out *to, netsrv__out *from) {
    if (from->head == NULL) {
        return;
    }
    if (to->tail == NULL) {
        to->head = from->head;
    } else {
        to->tail->next = from->head;
    }
    to->tail = from->tail;
    to->bytes += from->bytes;
    memset(from, 0, sizeof *from);
}

/* What comes next in memory, up to the first file: for a backend to send. */
static int netsrv__out_iov(const netsrv__out *out, struct iovec *iov, int cap) {
    int n = 0;
    for (netsrv__chunk *k = out->head; k != NULL && k->data != NULL && n < cap; k = k->next) {
        iov[n].iov_base = k->data + k->begin;
        iov[n].iov_len = k->end - k->begin;
        n++;
    }
    return n;
}

/* The chunk behind `count` others, if it is a file; else NULL. With 0: a file comes next, and must
 * be sent, or loaded, before netsrv__out_iov has anything to show. */
static netsrv__chunk *netsrv__out_file(const netsrv__out *out, int count) {
    netsrv__chunk *k = out->head;
    while (k != NULL && count-- > 0) {
        k = k->next;
    }
    return k != NULL && k->kind == NETSRV__CHUNK_FILE ? k : NULL;
}

/* Unsent bytes that take memory. */
static size_t netsrv__out_memory(const netsrv__out *out) {
    size_t bytes = out->bytes;
    for (const netsrv__chunk *k = out->head; k != NULL; k = k->next) {
        bytes -= k->kind == NETSRV__CHUNK_FILE ? k->end - k->begin : 0;
    }
    return bytes;
}

/* Puts what was read of the file that comes next in front of it: so many bytes fewer are its. */
static void netsrv__out_loaded(netsrv_server *srv, netsrv__out *out, netsrv__chunk *chunk) {
    netsrv__chunk *file = out->head;
    file->begin += chunk->end;
    chunk->next = file;
    out->head = chunk;
    if (file->begin == file->end) {
        chunk->next = file->next;
        out->tail = out->tail == file ? chunk : out->tail;
        netsrv__out_chunk_free(srv, file);
    }
}

static void netsrv__out_consume(netsrv_server *srv, netsrv__out *out, size_t n) {
    NETSRV_ASSERT(n <= out->bytes);
    out->bytes -= n;
    while (out->head != NULL && n >= out->head->end - out->head->begin) {
        netsrv__chunk *done = out->head;
        n -= done->end - done->begin;
        out->head = done->next;
        netsrv__out_chunk_free(srv, done);
    }
    if (out->head == NULL) {
        out->tail = NULL;
        return;
    }
    out->head->begin += n;
}

static void netsrv__out_discard(netsrv_server *srv, netsrv__out *out) {
    while (out->head != NULL) {
        netsrv__chunk *done = out->head;
        out->head = done->next;
        netsrv__out_chunk_free(srv, done);
    }
    out->tail = NULL;
    out->bytes = 0;
}

/* ========================================================================== *
 *  [timer] Deadlines on a hierarchical wheel (Varghese and Lauck, 1987)
 *  uses:   sys util pulse
 *  thread: owner
 * ========================================================================== */

/* Level k has 64 slots of 64^k milliseconds. A timer sits on the lowest level whose slots can still
 * tell it from `now`, and moves down when its slot is reached: start and stop are O(1), and a
 * million armed timers cost nothing until they are due. */

static void netsrv__timer_init(netsrv__wheel *wheel, uint64_t now_ms) {
    memset(wheel, 0, sizeof *wheel);
    wheel->now_ms = now_ms;
    for (unsigned level = 0; level < NETSRV__WHEEL_LEVELS; level++) {
        for (unsigned slot = 0; slot < NETSRV__WHEEL_SLOTS; slot++) {
            netsrv__util_list_init(&wheel->slots[level][slot]);
        }
    }
}

static unsigned netsrv__timer_level(uint64_t now_ms, uint64_t deadline_ms) {
    const uint64_t differ = now_ms ^ deadline_ms;
    unsigned level = 0;
    while (level + 1 < NETSRV__WHEEL_LEVELS &&
           (differ >> ((level + 1) * NETSRV__WHEEL_BITS)) != 0) {
        level++;
    }
    return level;
}

static unsigned netsrv__timer_slot(unsigned level, uint64_t time_ms) {
    return (unsigned)(time_ms >> (level * NETSRV__WHEEL_BITS)) & (NETSRV__WHEEL_SLOTS - 1);
}

static bool netsrv__timer_armed(const netsrv__timer *t) {
    return t->link.next != NULL;
}

/* A deadline that has passed is put to the next millisecond; one beyond the wheel comes back
 * early from it and is put in again by whoever takes expired timers. */
static void netsrv__timer_start(netsrv__wheel *wheel, netsrv__timer *t, uint64_t deadline_ms) {
    const uint64_t span = UINT64_C(1) << (NETSRV__WHEEL_LEVELS * NETSRV__WHEEL_BITS);
    uint64_t at = deadline_ms > wheel->now_ms ? deadline_ms : wheel->now_ms + 1;
    NETSRV_ASSERT(!netsrv__timer_armed(t));
    t->deadline_ms = deadline_ms;
    if (at - wheel->now_ms >= span / 2) {
        at = wheel->now_ms + span / 2;
    }
    const unsigned level = netsrv__timer_level(wheel->now_ms, at);
    const unsigned slot = netsrv__timer_slot(level, at);
    netsrv__util_list_append(&wheel->slots[level][slot], &t->link);
    wheel->used[level] |= UINT64_C(1) << slot;
    wheel->count++;
}

static void netsrv__timer_stop(netsrv__wheel *wheel, netsrv__timer *t) {
    if (!netsrv__timer_armed(t)) {
        return;
    }
    netsrv__util_list_remove(&t->link);
    wheel->count--;
}

/* The first moment, after `now`, at which a slot of the level may hold something. */
static uint64_t netsrv__timer_next_on(netsrv__wheel *wheel, unsigned level) {
    const unsigned shift = level * NETSRV__WHEEL_BITS;
    const unsigned here = netsrv__timer_slot(level, wheel->now_ms);
    for (;;) {
        if (wheel->used[level] == 0) {
            return UINT64_MAX;
        }
        /* Rotated so that bit 0 is the slot after this one. */
        const unsigned turn = (here + 1) % NETSRV__WHEEL_SLOTS;
        const uint64_t bits = turn == 0 ? wheel->used[level]
                                        : netsrv__util_rotate(wheel->used[level], 64 - turn);
        const unsigned ahead = netsrv__util_lowest_bit(bits) + 1;
        const unsigned slot = (here + ahead) % NETSRV__WHEEL_SLOTS;
        const netsrv__link *head = &wheel->slots[level][slot];
        if (head->next != head) {
            return ((wheel->now_ms >> shift) + ahead) << shift;
        }
        wheel->used[level] &= ~(UINT64_C(1) << slot);
    }
}

/* When the wheel wants to be looked at again; UINT64_MAX if it is empty. */
static uint64_t netsrv__timer_next(netsrv__wheel *wheel) {
    uint64_t first = UINT64_MAX;
    if (wheel->count == 0) {
        return first;
    }
    for (unsigned level = 0; level < NETSRV__WHEEL_LEVELS; level++) {
        const uint64_t at = netsrv__timer_next_on(wheel, level);
        first = at < first ? at : first;
    }
    return first;
}

/* Moves the timers of a slot that was reached: to `expired` if due, else to a lower level. */
static void netsrv__timer_spill(netsrv__wheel *wheel, unsigned level, netsrv__link *expired) {
    const unsigned slot = netsrv__timer_slot(level, wheel->now_ms);
    netsrv__link *head = &wheel->slots[level][slot];
    netsrv__link *node = head->next;
    netsrv__util_list_init(head);
    wheel->used[level] &= ~(UINT64_C(1) << slot);
    while (node != head) {
        netsrv__link *next = node->next;
        netsrv__timer *t = (netsrv__timer *)(void *)((char *)node - offsetof(netsrv__timer, link));
        t->link.next = NULL;
        t->link.prev = NULL;
        wheel->count--;
        if (level == 0 || t->deadline_ms <= wheel->now_ms) {
            netsrv__util_list_append(expired, &t->link);
            wheel->count++; /* until somebody stops it */
        } else {
            netsrv__timer_start(wheel, t, t->deadline_ms);
        }
        node = next;
    }
}

/* Advances to now_ms; due timers move to `expired`, still counted: netsrv__timer_stop takes each
 * off that list again. */
static void netsrv__timer_advance(netsrv__wheel *wheel, uint64_t now_ms, netsrv__link *expired) {
    for (;;) {
        const uint64_t at = netsrv__timer_next(wheel);
        if (at > now_ms) {
            break;
        }
        wheel->now_ms = at;
        for (unsigned level = NETSRV__WHEEL_LEVELS; level-- > 0;) {
            const uint64_t below = (UINT64_C(1) << (level * NETSRV__WHEEL_BITS)) - 1;
            if ((at & below) == 0) {
                netsrv__timer_spill(wheel, level, expired);
            }
        }
    }
    if (now_ms > wheel->now_ms) {
        wheel->now_ms = now_ms;
    }
}

static netsrv_timer *netsrv__timer_of_link(netsrv__link *link) {
    return (netsrv_timer *)(void *)((char *)link - offsetof(netsrv_timer, at.link));
}

/* The present is asked for, since a callback may have taken seconds since the turn began; the
 * rounding of the clock must not make the timer early. */
static void netsrv__timer_set(netsrv__worker *w, netsrv_timer *t, uint32_t delay_ms,
                              uint32_t period_ms) {
    netsrv__wheel *wheel = &w->own.timers;
    const uint64_t now = netsrv__sys_now_ms();
    netsrv__timer_stop(wheel, &t->at);
    if (wheel->count == 0 && now > wheel->now_ms) {
        wheel->now_ms = now; /* an empty one stands still */
    }
    t->owner = w;
    t->period_ms = period_ms;
    netsrv__timer_start(wheel, &t->at, now + delay_ms + 1);
}

/* The next time of a repeated one: a multiple of its period from the first, so that it does not
 * drift, and in the future, so that a pause is not followed by a burst. */
static uint64_t netsrv__timer_again(const netsrv_timer *t, uint64_t now_ms) {
    const uint64_t late = now_ms > t->at.deadline_ms ? now_ms - t->at.deadline_ms : 0;
    return t->at.deadline_ms + (late / t->period_ms + 1) * t->period_ms;
}

/* Calls what is due. What a callback sets is due in the next millisecond at the earliest, and what
 * it stops is on the list of due ones no more. */
static void netsrv__timer_run(netsrv__worker *w) {
    netsrv__wheel *wheel = &w->own.timers;
    if (wheel->count == 0) {
        return;
    }
    netsrv__timer_advance(wheel, w->own.now_ms, &w->own.due);
    for (unsigned i = 0; i < NETSRV__TIMERS_PER_TURN && w->own.due.next != &w->own.due; i++) {
        netsrv_timer *t = netsrv__timer_of_link(w->own.due.next);
        netsrv__timer_stop(wheel, &t->at);
        if (t->period_ms != 0) {
            netsrv__timer_start(wheel, &t->at, netsrv__timer_again(t, w->own.now_ms));
        }
        netsrv__pulse_begin(w, NETSRV__ACT_TIMER, 0, NULL);
        t->fn(w->srv, w->index, t);
        netsrv__pulse_end(w);
    }
}

/* At the end of the thread: none is set any more, and none will be. */
static void netsrv__timer_clear(netsrv__worker *w) {
    netsrv__wheel *wheel = &w->own.timers;
    w->own.timers_over = true;
    for (unsigned i = 0; i < NETSRV__WHEEL_LEVELS * NETSRV__WHEEL_SLOTS; i++) {
        netsrv__link *slot = &wheel->slots[i / NETSRV__WHEEL_SLOTS][i % NETSRV__WHEEL_SLOTS];
        while (slot->next != slot) {
            netsrv__timer_stop(wheel, &netsrv__timer_of_link(slot->next)->at);
        }
    }
    while (w->own.due.next != &w->own.due) {
        netsrv__timer_stop(wheel, &netsrv__timer_of_link(w->own.due.next)->at);
    }
}

/* Every backend calls this right after its kernel wait: the turn begins here. */
static void netsrv__timer_woke(netsrv__worker *w) {
    w->own.turn_us = netsrv__sys_now_us();
    w->own.now_ms = NETSRV_SEAM_CLOCK_MS(w->own.turn_us / 1000u);
    w->own.turn_ms = w->own.now_ms;
    atomic_store_explicit(&w->busy_since, (uint32_t)w->own.now_ms | 1u, memory_order_relaxed);
}

/* ========================================================================== *
 *  [mailbox] Messages from any thread to one worker, and how it is woken
 *  uses:   mem util sys
 *  thread: post, wake_signal, wake_all = any; the rest = owner
 * ========================================================================== */

static int netsrv__mailbox_wake_open(netsrv__wake *wake) {
    int fds[2];
    atomic_store(&wake->queue_fd, -1);
    wake->read_fd = netsrv__sys_eventfd();
    wake->write_fd = wake->read_fd;
    if (wake->read_fd >= 0 || errno != ENOSYS) {
        return wake->read_fd >= 0 ? 0 : -1;
    }
    if (netsrv__sys_pipe(fds) != 0) {
        return -1;
    }
    wake->read_fd = fds[0];
    wake->write_fd = fds[1];
    return 0;
}

static void netsrv__mailbox_wake_close(netsrv__wake *wake) {
    if (wake->read_fd >= 0) {
        netsrv__sys_close(wake->read_fd);
    }
    if (wake->write_fd >= 0 && wake->write_fd != wake->read_fd) {
        netsrv__sys_close(wake->write_fd);
    }
    wake->read_fd = -1;
    wake->write_fd = -1;
}

/* Also in signal handlers. A full pipe or eventfd means that a wake-up is pending already. */
static void netsrv__mailbox_wake_signal(const netsrv__wake *wake) {
    const uint64_t one = 1;
    for (int tries = 0; tries < 100; tries++) {
        NETSRV_SEAM_POINT("wake");
        if (netsrv__sys_write(wake->write_fd, &one, sizeof one) >= 0 || errno == EAGAIN) {
            return;
        }
    }
}

/* Every thread of the server. Also in signal handlers. */
static void netsrv__mailbox_wake_all(netsrv_server *srv) {
    for (unsigned i = 0; i < srv->group_count; i++) {
        netsrv__mailbox_wake_signal(&srv->groups[i].wake);
    }
}

/* The short way where the worker waits on a kqueue that can be woken: one call instead of a write
 * and a read. Not for signal handlers, in which kevent(2) is not known to be safe. The queue may be
 * closed meanwhile, and its number belong to another one by then, which does not know this object:
 * then, too, the descriptor is there until the server's end. */
static void netsrv__mailbox_wake(netsrv__wake *wake) {
    const int kq = atomic_load_explicit(&wake->queue_fd, memory_order_acquire);
    NETSRV_SEAM_POINT("wake");
    if (kq < 0 || netsrv__sys_kqueue_user(kq, wake, true) != 0) {
        netsrv__mailbox_wake_signal(wake);
    }
}

static void netsrv__mailbox_wake_drain(const netsrv__wake *wake) {
    uint64_t buffer[16];
    while (netsrv__sys_read(wake->read_fd, buffer, sizeof buffer) == (ssize_t)sizeof buffer) {
    }
}

static bool netsrv__mailbox_grow(netsrv__mailbox *box, const netsrv_config *cfg) {
    const size_t cap = box->cap == 0 ? 64 : box->cap * 2;
    netsrv__msg *bigger = netsrv__mem_resize(cfg, box->filling, box->cap * sizeof *bigger,
                                             cap * sizeof *bigger);
    if (bigger == NULL) {
        return false;
    }
    box->filling = bigger;
    box->cap = cap;
    return true;
}

static netsrv_result netsrv__mailbox_append(netsrv__mailbox *box, const netsrv_config *cfg,
                                            const netsrv__msg *msg, bool force) {
    if (!box->open) {
        return NETSRV_STOPPED;
    }
    if (!force && box->count + box->promised >= cfg->mailbox_max_count) {
        return NETSRV_QUEUE_FULL;
    }
    if (box->count + box->promised >= box->cap && !netsrv__mailbox_grow(box, cfg)) {
        return NETSRV_NO_MEMORY;
    }
    box->filling[box->count++] = *msg;
    atomic_store_explicit(&box->waiting, true, memory_order_relaxed);
    return NETSRV_OK;
}

/* One wake-up for each change from empty to not empty. `force` ignores the limit: for an acceptor,
 * which cannot keep a connection itself. */
static netsrv_result netsrv__mailbox_post(netsrv__worker *to, const netsrv__msg *msg, bool force) {
    netsrv__mailbox *box = &to->mailbox;
    NETSRV_SEAM_POINT("post");
    pthread_mutex_lock(&box->lock);
    const bool empty = box->count == 0;
    const netsrv_result result = netsrv__mailbox_append(box, to->cfg, msg, force);
    pthread_mutex_unlock(&box->lock);
    NETSRV_SEAM_POINT("posted");
    if (result == NETSRV_OK && empty) {
        /* The owner sees this message, or the wake-up, or both: never neither. */
        netsrv__mailbox_wake(&to->group->wake);
    }
    return result;
}

/* Room for one message more, if there is to be one. */
static netsrv_result netsrv__mailbox_promise(netsrv__worker *to) {
    netsrv__mailbox *box = &to->mailbox;
    netsrv_result result = NETSRV_OK;
    NETSRV_SEAM_POINT("post");
    pthread_mutex_lock(&box->lock);
    if (!box->open) {
        result = NETSRV_STOPPED;
    } else if (box->count + box->promised >= to->cfg->mailbox_max_count) {
        result = NETSRV_QUEUE_FULL;
    } else if (box->count + box->promised >= box->cap && !netsrv__mailbox_grow(box, to->cfg)) {
        result = NETSRV_NO_MEMORY;
    } else {
        box->promised++;
    }
    pthread_mutex_unlock(&box->lock);
    return result;
}

/* Makes a promise true, also where the box was shut meanwhile, or takes it back (NULL). Either way
 * the owner is woken: it may be waiting for this to leave. */
static void netsrv__mailbox_keep_promise(netsrv__worker *to, const netsrv__msg *msg) {
    netsrv__mailbox *box = &to->mailbox;
    NETSRV_SEAM_POINT("posted");
    pthread_mutex_lock(&box->lock);
    box->promised--;
    if (msg != NULL) {
        NETSRV_ASSERT(box->count < box->cap);
        box->filling[box->count++] = *msg;
        atomic_store_explicit(&box->waiting, true, memory_order_relaxed);
    }
    pthread_mutex_unlock(&box->lock);
    netsrv__mailbox_wake(&to->group->wake);
}

/* To all of them or to none. No two boxes are locked at once. */
static netsrv_result netsrv__mailbox_post_all(netsrv__worker *workers, unsigned count,
                                              const netsrv__msg *msg) {
    netsrv_result result = NETSRV_OK;
    unsigned promised = 0;
    while (promised < count && result == NETSRV_OK) {
        result = netsrv__mailbox_promise(&workers[promised]);
        promised += result == NETSRV_OK ? 1 : 0;
    }
    msg = result == NETSRV_OK ? msg : NULL;
    for (unsigned i = 0; i < promised; i++) {
        netsrv__mailbox_keep_promise(&workers[i], msg);
    }
    return result;
}

/* An item tells its owner that it has finished, or has something for it. Never refused: a report
 * needs no memory. */
static void netsrv__mailbox_report(netsrv__item *item, bool finished) {
    netsrv__mailbox *box = &item->owner->mailbox;
    netsrv__wake *wake = &item->owner->group->wake;
    NETSRV_SEAM_POINT("report");
    pthread_mutex_lock(&box->lock);
    const bool empty = box->reports == NULL;
    item->finished = finished;
    if (!item->reported) {
        item->reported = true;
        item->next = NULL;
        *(empty ? &box->reports : &box->reports_tail->next) = item;
        box->reports_tail = item;
    }
    atomic_store_explicit(&box->waiting, true, memory_order_relaxed);
    pthread_mutex_unlock(&box->lock);
    if (empty) {
        netsrv__mailbox_wake(wake);
    }
}

/* Under the lock. The chain goes by taken_next: whoever has more to report may append again. */
static netsrv__item *netsrv__mailbox_take_reports(netsrv__mailbox *box) {
    netsrv__item *first = box->reports;
    for (netsrv__item *item = first; item != NULL; item = item->next) {
        item->taken_next = item->next;
        item->taken_finished = item->finished;
        item->reported = false;
    }
    box->reports = NULL;
    box->reports_tail = NULL;
    return first;
}

/* The array that is to be filled next has room for what is promised. */
static bool netsrv__mailbox_fit(netsrv__mailbox *box, const netsrv_config *cfg) {
    const size_t cap = box->cap;
    if (box->draining_cap >= box->promised) {
        return true;
    }
    netsrv__msg *wider = netsrv__mem_resize(cfg, box->draining,
                                            box->draining_cap * sizeof *wider,
                                            cap * sizeof *wider);
    if (wider == NULL) {
        return false;
    }
    box->draining = wider;
    box->draining_cap = cap;
    return true;
}

/* Takes everything out; the messages are valid until the next call. A message that is missed by
 * the look without the lock comes with a wake-up; so does one that has to wait for memory, since
 * there is a promise then. */
static size_t netsrv__mailbox_take(netsrv__mailbox *box, const netsrv_config *cfg,
                                   netsrv__msg **msgs, netsrv__item **reports) {
    *reports = NULL;
    if (!atomic_load_explicit(&box->waiting, memory_order_relaxed)) {
        return 0;
    }
    pthread_mutex_lock(&box->lock);
    *reports = netsrv__mailbox_take_reports(box);
    if (!netsrv__mailbox_fit(box, cfg)) {
        pthread_mutex_unlock(&box->lock);
        return 0;
    }
    netsrv__msg *taken = box->filling;
    const size_t cap = box->cap;
    const size_t count = box->count;
    if (count != 0) {
        box->filling = box->draining;
        box->cap = box->draining_cap;
        box->draining = taken;
        box->draining_cap = cap;
        box->count = 0;
    }
    atomic_store_explicit(&box->waiting, false, memory_order_relaxed);
    pthread_mutex_unlock(&box->lock);
    *msgs = box->draining;
    return count;
}

/* Registers an arrival in the owner's poller and notes it, so that a stop can find it without the
 * poller. Both under the lock: the owner finds it registered, or not at all. */
static int netsrv__mailbox_give(netsrv__worker *to, netsrv__arrival *arrival) {
    pthread_mutex_lock(&to->mailbox.lock);
    netsrv__util_list_append(&to->mailbox.given, &arrival->link);
    const int error = to->io->give(to, arrival);
    if (error != 0) {
        netsrv__util_list_remove(&arrival->link);
    }
    pthread_mutex_unlock(&to->mailbox.lock);
    return error;
}

static void netsrv__mailbox_drop_given(netsrv__mailbox *box, netsrv__arrival *arrival) {
    pthread_mutex_lock(&box->lock);
    netsrv__util_list_remove(&arrival->link);
    pthread_mutex_unlock(&box->lock);
}

/* NULL when there is none. */
static netsrv__arrival *netsrv__mailbox_take_given(netsrv__mailbox *box) {
    netsrv__arrival *arrival = NULL;
    pthread_mutex_lock(&box->lock);
    if (box->given.next != &box->given) {
        arrival = (netsrv__arrival *)(void *)((char *)box->given.next -
                                              offsetof(netsrv__arrival, link));
        netsrv__util_list_remove(&arrival->link);
    }
    pthread_mutex_unlock(&box->lock);
    return arrival;
}

/* Refuses later posts; true if nothing is inside or promised. What is, is still to be taken. */
static bool netsrv__mailbox_shut(netsrv__mailbox *box) {
    pthread_mutex_lock(&box->lock);
    box->open = false;
    const bool empty = box->count + box->promised == 0;
    pthread_mutex_unlock(&box->lock);
    return empty;
}

static void netsrv__mailbox_reopen(netsrv__mailbox *box) {
    pthread_mutex_lock(&box->lock);
    box->open = true;
    pthread_mutex_unlock(&box->lock);
}

static void netsrv__mailbox_discard(netsrv__mailbox *box, const netsrv_config *cfg) {
    netsrv__mem_free(cfg, box->filling, box->cap * sizeof *box->filling);
    netsrv__mem_free(cfg, box->draining, box->draining_cap * sizeof *box->draining);
    pthread_mutex_destroy(&box->lock);
}

/* ========================================================================== *
 *  [frame] Where a line or frame ends
 *  uses:   -
 *  thread: any
 * ========================================================================== */

typedef enum netsrv__frame_found {
    NETSRV__FRAME_LINE,    /* *line bytes, then *end bytes of line end */
    NETSRV__FRAME_MORE,    /* no line end yet                          */
    NETSRV__FRAME_TOO_LONG, /* longer than max                         */
    NETSRV__FRAME_BAD      /* no frame at all                          */
} netsrv__frame_found;

/* One that was found: on_frame sees n bytes at `begin`, and `end` bytes are done with. With MORE,
 * `end` is what to go on from: see netsrv__input.scanned. */
typedef struct netsrv__frame {
    size_t begin;
    size_t n;
    size_t end;
} netsrv__frame;

/* LF ends a line, CR LF as well; every other byte is the line's. `scanned` bytes are known to hold
 * no LF, so that a line which trickles in is not searched again from its start. */
static netsrv__frame_found netsrv__frame_line(const unsigned char *data, size_t n, size_t scanned,
                                              size_t max, size_t *line, size_t *end) {
    const unsigned char *lf = n > scanned ? memchr(data + scanned, '\n', n - scanned) : NULL;
    if (lf == NULL) {
        const size_t held = n > 0 && data[n - 1] == '\r' ? n - 1 : n;
        return held > max ? NETSRV__FRAME_TOO_LONG : NETSRV__FRAME_MORE;
    }
    *line = (size_t)(lf - data);
    *end = 1;
    if (*line > 0 && data[*line - 1] == '\r') {
        *line -= 1;
        *end = 2;
    }
    return *line > max ? NETSRV__FRAME_TOO_LONG : NETSRV__FRAME_LINE;
}

static netsrv__frame_found netsrv__frame_next_line(const netsrv_config *cfg,
                                                   const unsigned char *data, size_t n,
                                                   size_t scanned, netsrv__frame *f) {
    size_t line = 0;
    size_t end = 0;
    const netsrv__frame_found found = netsrv__frame_line(data, n, scanned, cfg->input_max_bytes,
                                                         &line, &end);
    f->n = cfg->keep_line_end == NETSRV_ENABLE ? line + end : line;
    f->end = found == NETSRV__FRAME_MORE ? n : line + end;
    return found;
}

/* The first delimiter at or behind `from`; n if there is none. */
static size_t netsrv__frame_search(const netsrv_config *cfg, const unsigned char *data, size_t n,
                                   size_t from) {
    const size_t d = cfg->delimiter_bytes;
    while (n >= d && from <= n - d) {
        const unsigned char *at = memchr(data + from, cfg->delimiter[0], n - d - from + 1);
        if (at == NULL) {
            return n;
        }
        if (memcmp(at, cfg->delimiter, d) == 0) {
            return (size_t)(at - data);
        }
        from = (size_t)(at - data) + 1;
    }
    return n;
}

static netsrv__frame_found netsrv__frame_delimited(const netsrv_config *cfg,
                                                   const unsigned char *data, size_t n,
                                                   size_t scanned, netsrv__frame *f) {
    const size_t d = cfg->delimiter_bytes;
    const size_t at = netsrv__frame_search(cfg, data, n, scanned);
    f->n = cfg->keep_line_end == NETSRV_ENABLE ? at + d : at;
    f->end = at + d;
    if (at == n) {
        f->end = n >= d ? n - d + 1 : 0; /* the rest may be the beginning of a delimiter */
        return f->end > cfg->input_max_bytes ? NETSRV__FRAME_TOO_LONG : NETSRV__FRAME_MORE;
    }
    return at > cfg->input_max_bytes ? NETSRV__FRAME_TOO_LONG : NETSRV__FRAME_LINE;
}

static uint64_t netsrv__frame_length(const netsrv_config *cfg, const unsigned char *at) {
    const uint32_t bytes = cfg->length_bytes;
    uint64_t value = 0;
    for (uint32_t i = 0; i < bytes; i++) {
        value = value << 8 | at[cfg->length_little == NETSRV_ENABLE ? bytes - 1 - i : i];
    }
    return value;
}

static netsrv__frame_found netsrv__frame_prefixed(const netsrv_config *cfg,
                                                  const unsigned char *data, size_t n,
                                                  netsrv__frame *f) {
    const size_t header = (size_t)cfg->length_offset + cfg->length_bytes;
    f->end = header;
    if (n < header) {
        return NETSRV__FRAME_MORE;
    }
    uint64_t value = netsrv__frame_length(cfg, data + cfg->length_offset);
    if (cfg->length_counts_all == NETSRV_ENABLE) {
        if (value < header) {
            return NETSRV__FRAME_BAD;
        }
        value -= header;
    }
    if (value > cfg->input_max_bytes) {
        return NETSRV__FRAME_TOO_LONG;
    }
    f->end = header + (size_t)value;
    f->begin = cfg->keep_header == NETSRV_ENABLE ? 0 : header;
    f->n = f->end - f->begin;
    return n < f->end ? NETSRV__FRAME_MORE : NETSRV__FRAME_LINE;
}

/* Every framing that asks nobody. */
static netsrv__frame_found netsrv__frame_next(const netsrv_config *cfg, const unsigned char *data,
                                              size_t n, size_t scanned, netsrv__frame *f) {
    memset(f, 0, sizeof *f);
    switch (cfg->framing) {
    case NETSRV_FRAMING_DELIMITER:
        return netsrv__frame_delimited(cfg, data, n, scanned, f);
    case NETSRV_FRAMING_FIXED:
        f->n = cfg->frame_bytes;
        f->end = cfg->frame_bytes;
        return n < f->end ? NETSRV__FRAME_MORE : NETSRV__FRAME_LINE;
    case NETSRV_FRAMING_LENGTH:
        return netsrv__frame_prefixed(cfg, data, n, f);
    default:
        return netsrv__frame_next_line(cfg, data, n, scanned, f);
    }
}

/* ========================================================================== *
 *  [conn] The connection: states, input to the program, output to the backend
 *  uses:   mem util sys pulse slab out timer mailbox frame
 *  thread: owner
 * ========================================================================== */

#define NETSRV__MAY(state) (1u << (state))
static const uint16_t netsrv__conn_steps[NETSRV__STATE_COUNT] = {
    [NETSRV__FREE] = NETSRV__MAY(NETSRV__OPEN) | NETSRV__MAY(NETSRV__DIALING),
    [NETSRV__DIALING] = NETSRV__MAY(NETSRV__OPEN) | NETSRV__MAY(NETSRV__CLOSING),
    [NETSRV__OPEN] = NETSRV__MAY(NETSRV__HALF) | NETSRV__MAY(NETSRV__DRAINING) |
                     NETSRV__MAY(NETSRV__CLOSING) | NETSRV__MAY(NETSRV__DEAD),
    [NETSRV__HALF] = NETSRV__MAY(NETSRV__DRAINING) | NETSRV__MAY(NETSRV__CLOSING) |
                     NETSRV__MAY(NETSRV__DEAD), /* these two by a move */
    [NETSRV__DRAINING] = NETSRV__MAY(NETSRV__LINGERING) | NETSRV__MAY(NETSRV__CLOSING),
    [NETSRV__LINGERING] = NETSRV__MAY(NETSRV__CLOSING),
    [NETSRV__CLOSING] = NETSRV__MAY(NETSRV__DEAD),
    [NETSRV__DEAD] = 0, /* the slab makes it FREE */
};

static void netsrv__conn_set_state(netsrv_conn *c, netsrv__state state) {
    NETSRV_ASSERT((netsrv__conn_steps[c->state] & NETSRV__MAY(state)) != 0);
    c->state = (uint16_t)state;
}

static netsrv_id netsrv__conn_id(const netsrv_conn *c) {
    return (netsrv_id)c->gen << 32 | (netsrv_id)c->worker->index << 22 | c->slot;
}

static uint64_t netsrv__conn_token(const netsrv_conn *c) {
    return (uint64_t)c->gen << 32 | (uint64_t)c->slot << 3 | NETSRV__TOKEN_CONN;
}

/* Before one of its callbacks; netsrv__pulse_end comes after it. */
static void netsrv__conn_note(netsrv__worker *w, const netsrv_conn *c, netsrv__act act) {
    netsrv__pulse_begin(w, act, netsrv__conn_id(c), &c->peer);
}

/* NULL for a late event: the connection of that generation is gone. */
static NETSRV__HOT netsrv_conn *netsrv__conn_of_token(netsrv__worker *w, uint64_t token) {
    netsrv_conn *c = netsrv__slab_at(&w->own.slab, (uint32_t)token >> 3);
    return NETSRV__LIKELY(c->gen == (uint32_t)(token >> 32)) ? c : NULL;
}

static netsrv_conn *netsrv__conn_of_id(netsrv__worker *w, netsrv_id id) {
    return netsrv__slab_find(&w->own.slab, (uint32_t)id & (NETSRV__SLAB_MAX - 1),
                             (uint32_t)(id >> 32));
}

/* Whatever is recorded on a connection ends here, and with it the fast path until it is settled. */
static void netsrv__conn_mark_dirty(netsrv__worker *w, netsrv_conn *c) {
    c->flags &= ~(uint32_t)NETSRV__PLAIN;
    if ((c->flags & NETSRV__DIRTY) == 0) {
        c->flags |= NETSRV__DIRTY;
        c->dirty_next = w->own.dirty;
        w->own.dirty = c;
    }
}

/* With callbacks on other threads: one of them is due. It is posted at the end of the turn, or
 * when the one that runs is back. */
static void netsrv__conn_owe(netsrv__worker *w, netsrv_conn *c, unsigned call) {
    netsrv__job *job = c->job;
    job->owed |= (uint8_t)call;
    if (job->lent || job->listed) {
        return;
    }
    job->listed = true;
    job->ready_next = NULL;
    if (w->own.ready == NULL) {
        w->own.ready = job;
    } else {
        w->own.ready_tail->ready_next = job;
    }
    w->own.ready_tail = job;
    w->own.ready_count++;
}

static bool netsrv__conn_lent(const netsrv_conn *c) {
    return c->job != NULL && c->job->lent;
}

/* ... or waits for one, perhaps behind a full queue. */
static bool netsrv__conn_waits(const netsrv_conn *c) {
    return c->job != NULL && (c->job->lent || c->job->listed);
}

/* A callback runs on another thread, or is due to. */
static bool netsrv__conn_has_job(const netsrv_conn *c) {
    return c->job != NULL && (c->job->lent || c->job->owed != 0);
}

/* The first reason is the one that the program is told. */
static void netsrv__conn_note_reason(netsrv_conn *c, netsrv_close_reason reason, int sys_errno) {
    if (c->reason == NETSRV_CLOSE_COUNT) {
        c->reason = (uint8_t)reason;
        c->sys_errno = (uint16_t)sys_errno;
    }
}

/* Nothing that the present callback sends may point into its input any more: order, or a state in
 * which sending is refused, sends it the long way. */
static void netsrv__conn_stop_lending(netsrv__worker *w, const netsrv_conn *c) {
    if (w->own.current == c) {
        w->own.lent_bytes = 0;
    }
}

/* The end, without waiting for anything: the next settle detaches it. */
static void netsrv__conn_end(netsrv__worker *w, netsrv_conn *c, netsrv_close_reason reason,
                             int sys_errno) {
    NETSRV__ASSERT_OWNER(w);
    if (c->state >= NETSRV__CLOSING) {
        return;
    }
    netsrv__conn_note_reason(c, reason, sys_errno);
    netsrv__conn_stop_lending(w, c);
    netsrv__conn_set_state(c, NETSRV__CLOSING);
    netsrv__conn_mark_dirty(w, c);
}

static void netsrv__conn_reset(netsrv__worker *w, netsrv_conn *c, netsrv_close_reason reason) {
    if (c->state < NETSRV__CLOSING) {
        c->flags |= NETSRV__RESET;
    }
    netsrv__conn_end(w, c, reason, 0);
}

/* The socket reported an error. A close that had data left to send did not succeed, and the program
 * is told so. */
static void netsrv__conn_fail(netsrv__worker *w, netsrv_conn *c, int sys_errno) {
    if (c->state == NETSRV__DRAINING && c->out.bytes + c->sending != 0) {
        c->reason = NETSRV_CLOSE_COUNT;
    }
    c->flags |= NETSRV__BROKEN;
    netsrv__conn_end(w, c, NETSRV_CLOSE_ERROR, sys_errno);
}

/* A callback that runs on another thread may be about to pause it for what is there already: it is
 * resumed when that is back. */
static void netsrv__conn_resume(netsrv__worker *w, netsrv_conn *c) {
    if (netsrv__conn_lent(c)) {
        c->job->resumed = true;
    } else if ((c->flags & NETSRV__PAUSED) != 0) {
        c->flags &= ~(uint32_t)NETSRV__PAUSED;
        c->flags |= NETSRV__RESHOW;
        netsrv__conn_mark_dirty(w, c);
    }
}

/* The orderly end: flush, FIN, linger. */
static void netsrv__conn_close(netsrv__worker *w, netsrv_conn *c, netsrv_close_reason reason) {
    NETSRV__ASSERT_OWNER(w);
    if (c->state == NETSRV__DIALING) {
        netsrv__conn_end(w, c, reason, 0);
    }
    if (c->state > NETSRV__HALF) {
        return;
    }
    netsrv__conn_note_reason(c, reason, 0);
    netsrv__conn_stop_lending(w, c);
    netsrv__conn_set_state(c, NETSRV__DRAINING);
    c->flags &= ~(uint32_t)(NETSRV__PAUSED | NETSRV__HIGH_MARK | NETSRV__RESHOW | NETSRV__CORKED);
    c->limit_ms = 0;
    netsrv__conn_mark_dirty(w, c);
}

/* ---- output ---- */

static bool netsrv__conn_can_send(const netsrv_conn *c) {
    return c->state != NETSRV__FREE && c->state <= NETSRV__HALF &&
           (c->flags & NETSRV__FIN_WANTED) == 0;
}

/* HIGH when the queue has passed the mark; on_drain is owed from then on. */
static NETSRV__HOT netsrv_result netsrv__conn_mark_high(netsrv__worker *w, netsrv_conn *c,
                                                        size_t queued) {
    if (NETSRV__LIKELY(queued + c->sending <= w->cfg->high_mark_bytes)) {
        return NETSRV_OK;
    }
    c->flags |= NETSRV__HIGH_MARK;
    c->flags &= ~(uint32_t)NETSRV__PLAIN;
    return NETSRV_HIGH;
}

/* Copies to the queue. A connection that cannot have its bytes ends: a stream has no holes. */
NETSRV__COLD
static netsrv_result netsrv__conn_append(netsrv__worker *w, netsrv_conn *c, const void *data,
                                         size_t n) {
    bool full = false;
    if (c->state >= NETSRV__CLOSING) {
        return NETSRV_GONE;
    }
    if (netsrv__out_append(w->srv, &c->out, data, n, &full)) {
        netsrv__conn_stop_lending(w, c);
        netsrv__conn_mark_dirty(w, c);
        return NETSRV_OK;
    }
    netsrv__conn_reset(w, c, full ? NETSRV_CLOSE_SERVER_FULL : NETSRV_CLOSE_NO_MEMORY);
    return full ? NETSRV_QUEUE_FULL : NETSRV_NO_MEMORY;
}

/* The reply that a callback gave: sent from where it lies, and only what the backend hands back
 * through netsrv__conn_on_unsent is copied. */
static void netsrv__conn_flush_reply(netsrv__worker *w, netsrv_conn *c) {
    const size_t n = w->own.reply_bytes;
    if (n == 0) {
        return;
    }
    w->own.reply_bytes = 0;
    if (NETSRV__LIKELY(c->out.bytes == 0 &&
                       (c->flags & (NETSRV__BLOCKED | NETSRV__RESET | NETSRV__BROKEN |
                                    NETSRV__CORKED)) == 0)) {
        w->io->reply(w, c, w->own.reply, n);
        return;
    }
    netsrv__conn_append(w, c, w->own.reply, n);
}

/* A part of what the program was shown, right behind what it has sent of it already. */
static NETSRV__HOT bool netsrv__conn_lend(netsrv__worker *w, const unsigned char *data, size_t n) {
    const uintptr_t at = (uintptr_t)data - (uintptr_t)w->own.lent;
    if (at >= w->own.lent_bytes || n > w->own.lent_bytes - at) {
        return false;
    }
    if (w->own.reply_bytes == 0) {
        w->own.reply = data;
        w->own.reply_bytes = n;
        return true;
    }
    if (w->own.reply == w->own.reply_buffer || w->own.reply + w->own.reply_bytes != data) {
        return false;
    }
    w->own.reply_bytes += n;
    return true;
}

/* Gathers small replies of one callback, so that they leave in one call. */
static bool netsrv__conn_gather(netsrv__worker *w, const void *data, size_t n) {
    const size_t held = w->own.reply_bytes;
    if (n > NETSRV__REPLY_BYTES || held > NETSRV__REPLY_BYTES - n) {
        return false;
    }
    if (w->own.reply_buffer == NULL) {
        w->own.reply_buffer = netsrv__mem_alloc(w->cfg, NETSRV__REPLY_BYTES);
        if (w->own.reply_buffer == NULL) {
            return false;
        }
    }
    if (held != 0 && w->own.reply != w->own.reply_buffer) {
        memcpy(w->own.reply_buffer, w->own.reply, held);
    }
    w->own.reply = w->own.reply_buffer;
    memcpy(w->own.reply_buffer + held, data, n);
    w->own.reply_bytes = held + n;
    return true;
}

static size_t netsrv__conn_queued(const netsrv__worker *w, const netsrv_conn *c) {
    return c->out.bytes + (w->own.current == c ? w->own.reply_bytes : 0);
}

/* The reply so far goes to the queue first, to keep the order. */
static netsrv_result netsrv__conn_spill(netsrv__worker *w, netsrv_conn *c) {
    const size_t n = w->own.current == c ? w->own.reply_bytes : 0;
    if (n == 0) {
        return NETSRV_OK;
    }
    w->own.reply_bytes = 0;
    return netsrv__conn_append(w, c, w->own.reply, n);
}

static netsrv_result netsrv__conn_admit_output(netsrv__worker *w, netsrv_conn *c, size_t n) {
    const size_t max = w->cfg->queue_max_bytes;
    size_t queued = netsrv__conn_queued(w, c);
    if (queued > max || n > max - queued) {
        queued -= c->out.bytes - netsrv__out_memory(&c->out); /* files wait where they are */
    }
    if (queued <= max && n <= max - queued) {
        return NETSRV_OK;
    }
    netsrv__conn_reset(w, c, NETSRV_CLOSE_QUEUE_FULL);
    return NETSRV_QUEUE_FULL;
}

/* Whether much may be sent without a copy: nobody is before it, and no callback of the connection
 * itself is gathering what it answers. */
static bool netsrv__conn_is_clear(const netsrv__worker *w, const netsrv_conn *c) {
    return w->own.current != c && c->state >= NETSRV__OPEN && c->out.bytes + c->sending == 0 &&
           (c->flags & (NETSRV__BLOCKED | NETSRV__RESET | NETSRV__BROKEN | NETSRV__CORKED)) == 0;
}

/* From where it lies, as a proxy passes it on; what the kernel does not take is copied. A failure
 * is recorded like any other, and the program is told by on_close. */
static netsrv_result netsrv__conn_send_now(netsrv__worker *w, netsrv_conn *c, const void *data,
                                           size_t n) {
    c->active_ms = w->own.now_ms;
    w->io->reply(w, c, data, n);
    if (c->state < NETSRV__CLOSING) {
        return netsrv__conn_mark_high(w, c, c->out.bytes);
    }
    switch (c->reason) {
    case NETSRV_CLOSE_ERROR:
        return NETSRV_GONE;
    case NETSRV_CLOSE_NO_MEMORY:
        return NETSRV_NO_MEMORY;
    default:
        return NETSRV_QUEUE_FULL;
    }
}

/* netsrv_send for everything that is not lent: refuses, copies, or sends at once. */
NETSRV__COLD
static netsrv_result netsrv__conn_queue(netsrv__worker *w, netsrv_conn *c, const void *data,
                                        size_t n) {
    if (!netsrv__conn_can_send(c)) {
        return NETSRV_GONE;
    }
    netsrv_result result = netsrv__conn_admit_output(w, c, n);
    if (result != NETSRV_OK || n == 0) {
        return result;
    }
    if (w->own.current == c && c->out.bytes == 0 && netsrv__conn_gather(w, data, n)) {
        return netsrv__conn_mark_high(w, c, w->own.reply_bytes);
    }
    if (n >= NETSRV__SEND_NOW && netsrv__conn_is_clear(w, c)) {
        return netsrv__conn_send_now(w, c, data, n);
    }
    result = netsrv__conn_spill(w, c);
    if (result == NETSRV_OK) {
        result = netsrv__conn_append(w, c, data, n);
    }
    return result == NETSRV_OK ? netsrv__conn_mark_high(w, c, c->out.bytes) : result;
}

/* Queues what is not copied, behind what was. `memory`: bytes that count for queue_max_bytes. */
static netsrv_result netsrv__conn_refer(netsrv__worker *w, netsrv_conn *c,
                                        const netsrv__chunk *what, size_t memory) {
    bool full = false;
    if (!netsrv__conn_can_send(c)) {
        return NETSRV_GONE;
    }
    netsrv_result result = netsrv__conn_admit_output(w, c, memory);
    if (result == NETSRV_OK) {
        result = netsrv__conn_spill(w, c);
    }
    if (result != NETSRV_OK) {
        return result;
    }
    if (!netsrv__out_refer(w->srv, &c->out, what, &full)) {
        netsrv__conn_reset(w, c, full ? NETSRV_CLOSE_SERVER_FULL : NETSRV_CLOSE_NO_MEMORY);
        return full ? NETSRV_QUEUE_FULL : NETSRV_NO_MEMORY;
    }
    netsrv__conn_stop_lending(w, c);
    netsrv__conn_mark_dirty(w, c);
    return netsrv__conn_mark_high(w, c, c->out.bytes);
}

/* The file that is being sent ends too early (0) or cannot be read. */
static void netsrv__conn_file_failed(netsrv__worker *w, netsrv_conn *c, int sys_errno) {
    c->reason = NETSRV_CLOSE_COUNT; /* if it was closed, this was left to send */
    c->flags |= NETSRV__RESET;
    netsrv__conn_end(w, c, sys_errno != 0 ? NETSRV_CLOSE_ERROR : NETSRV_CLOSE_FILE_SHORT,
                     sys_errno);
}

static ssize_t netsrv__conn_read_file(const netsrv__chunk *file, void *data, size_t n) {
    ssize_t got;
    do {
        got = netsrv__sys_pread(file->fd, data, n, file->offset + file->begin);
    } while (got < 0 && errno == EINTR);
    return got;
}

/* Reads a piece of the file that comes next, for a backend that sends from memory. False if the
 * connection had to end. */
static bool netsrv__conn_load_file(netsrv__worker *w, netsrv_conn *c) {
    const netsrv__chunk *file = c->out.head;
    const size_t n = netsrv__util_min(file->end - file->begin, NETSRV__OUT_MAX);
    bool full = false;
    netsrv__chunk *chunk = netsrv__out_chunk_new(w->srv, n, &full);
    if (chunk == NULL) {
        netsrv__conn_reset(w, c, full ? NETSRV_CLOSE_SERVER_FULL : NETSRV_CLOSE_NO_MEMORY);
        return false;
    }
    const ssize_t got = netsrv__conn_read_file(file, chunk->bytes, n);
    if (got <= 0) {
        netsrv__conn_file_failed(w, c, got < 0 ? errno : 0);
        netsrv__out_chunk_free(w->srv, chunk);
        return false;
    }
    chunk->end = (size_t)got;
    netsrv__out_loaded(w->srv, &c->out, chunk);
    return true;
}

/* Sends a chunk that came from another thread; it is used or freed. */
static void netsrv__conn_send_chunk(netsrv__worker *w, netsrv_conn *c, netsrv__chunk *chunk) {
    if (!netsrv__conn_can_send(c) ||
        netsrv__conn_admit_output(w, c, chunk->end - chunk->begin) != NETSRV_OK) {
        netsrv__out_chunk_free(w->srv, chunk);
        return;
    }
    netsrv__out_adopt(w->srv, &c->out, chunk);
    netsrv__conn_mark_high(w, c, c->out.bytes);
    netsrv__conn_mark_dirty(w, c);
}

/* ---- results of the backend about output ---- */

/* Bytes of a reply, which never were in the queue. */
static NETSRV__HOT void netsrv__conn_on_replied(netsrv__worker *w, netsrv_conn *c, size_t n) {
    w->own.bytes_out += n;
    c->bytes_out += n;
}

/* The part of a reply that the kernel did not take. */
static void netsrv__conn_on_unsent(netsrv__worker *w, netsrv_conn *c, const unsigned char *data,
                                   size_t n) {
    if (n > w->cfg->queue_max_bytes) {
        netsrv__conn_reset(w, c, NETSRV_CLOSE_QUEUE_FULL);
        return;
    }
    netsrv__conn_append(w, c, data, n);
}

#if NETSRV__HAS_COMPLETIONS
/* The same of a reply that had been taken: it goes in front of what was queued since. */
static void netsrv__conn_on_returned(netsrv__worker *w, netsrv_conn *c, const unsigned char *data,
                                     size_t n) {
    bool full = false;
    if (c->out.bytes + n > w->cfg->queue_max_bytes) {
        netsrv__conn_reset(w, c, NETSRV_CLOSE_QUEUE_FULL);
        return;
    }
    if (netsrv__out_prepend(w->srv, &c->out, data, n, &full)) {
        netsrv__conn_stop_lending(w, c);
        netsrv__conn_mark_dirty(w, c);
        return;
    }
    netsrv__conn_reset(w, c, full ? NETSRV_CLOSE_SERVER_FULL : NETSRV_CLOSE_NO_MEMORY);
}
#endif

static void netsrv__conn_on_sent(netsrv__worker *w, netsrv_conn *c, size_t n, int sys_errno) {
    NETSRV__ASSERT_OWNER(w);
    if (sys_errno != 0) {
        netsrv__conn_fail(w, c, sys_errno);
        return;
    }
    netsrv__out_consume(w->srv, &c->out, n);
    if (c->state == NETSRV__DRAINING && netsrv__out_file(&c->out, 0) != NULL) {
        c->limit_ms = 0; /* however long a file takes: counted from here again */
    }
    netsrv__conn_on_replied(w, c, n);
    c->active_ms = w->own.now_ms;
    c->stalled_ms = w->own.now_ms;
}

static void netsrv__conn_on_blocked(netsrv__worker *w, netsrv_conn *c) {
    if ((c->flags & NETSRV__BLOCKED) == 0) {
        c->flags |= NETSRV__BLOCKED;
        c->flags &= ~(uint32_t)NETSRV__PLAIN;
        c->stalled_ms = w->own.now_ms;
    }
}

/* ---- deadlines ---- */

/* The rounding of the clock must not make a timeout early; see also netsrv__conn_restamp. */
static uint64_t netsrv__conn_after(uint64_t since_ms, uint32_t timeout_ms) {
    return since_ms + timeout_ms + 1;
}

/* A turn shorter than this leaves its stamps as they are, and deadlines allow for it. Grows with
 * the number of slots, so that correcting stays cheap beside the turn. */
static uint64_t netsrv__conn_long_turn_ms(const netsrv__worker *w) {
    return NETSRV__LONG_TURN_MS + w->own.slab.chunk_count / 256;
}

static uint64_t netsrv__conn_idle_deadline(const netsrv__worker *w, const netsrv_conn *c) {
    if (c->idle_ms == NETSRV_OFF || c->state < NETSRV__OPEN || c->state > NETSRV__HALF ||
        netsrv__conn_waits(c)) {
        return UINT64_MAX;
    }
    return netsrv__conn_after(c->active_ms + netsrv__conn_long_turn_ms(w), c->idle_ms);
}

static uint64_t netsrv__conn_write_deadline(const netsrv__worker *w, const netsrv_conn *c) {
    if (w->cfg->write_timeout_ms == NETSRV_OFF || (c->flags & NETSRV__BLOCKED) == 0) {
        return UINT64_MAX;
    }
    return netsrv__conn_after(c->stalled_ms + netsrv__conn_long_turn_ms(w),
                              w->cfg->write_timeout_ms);
}

static uint64_t netsrv__conn_deadline(const netsrv__worker *w, const netsrv_conn *c) {
    const uint64_t idle = netsrv__conn_idle_deadline(w, c);
    const uint64_t write = netsrv__conn_write_deadline(w, c);
    const uint64_t limit = c->limit_ms != 0 ? c->limit_ms : UINT64_MAX;
    const uint64_t first = idle < write ? idle : write;
    return first < limit ? first : limit;
}

/* Keeps the timer at or before the next deadline. Bytes move deadlines away, and that costs
 * nothing: the timer finds out when it expires. */
static void netsrv__conn_arm(netsrv__worker *w, netsrv_conn *c) {
    const uint64_t deadline = netsrv__conn_deadline(w, c);
    if (netsrv__timer_armed(&c->timer) && c->timer.deadline_ms <= deadline) {
        return;
    }
    netsrv__timer_stop(&w->own.wheel, &c->timer);
    if (deadline != UINT64_MAX) {
        netsrv__timer_start(&w->own.wheel, &c->timer, deadline);
    }
}

/* A limit in the present state, counted from the real present: `now` is the turn's beginning, and
 * a callback may have taken seconds since. */
static void netsrv__conn_limit(netsrv_conn *c, uint32_t timeout_ms) {
    c->limit_ms = 0;
    if (timeout_ms != NETSRV_OFF) {
        c->limit_ms = netsrv__conn_after(netsrv__sys_now_ms(), timeout_ms);
    }
}

/* At a stop: time for a first byte, or to get connected. */
static void netsrv__conn_limit_fresh(netsrv_conn *c) {
    const uint64_t before = c->limit_ms;
    netsrv__conn_limit(c, NETSRV__FRESH_MS);
    c->limit_ms = before != 0 && before < c->limit_ms ? before : c->limit_ms;
}

static void netsrv__conn_limit_reached(netsrv__worker *w, netsrv_conn *c) {
    c->limit_ms = 0;
    if (c->state == NETSRV__DIALING) {
        const bool stopping = (c->flags & NETSRV__STOPPING) != 0;
        netsrv__conn_end(w, c, stopping ? NETSRV_CLOSE_STOP : NETSRV_CLOSE_DIAL_TIMEOUT, 0);
    } else if (c->state == NETSRV__DRAINING) {
        c->reason = NETSRV_CLOSE_COUNT; /* the close did not succeed, and the program is told so */
        netsrv__conn_reset(w, c, NETSRV_CLOSE_WRITE_TIMEOUT);
    } else if (c->state == NETSRV__LINGERING) {
        netsrv__conn_end(w, c, NETSRV_CLOSE_LOCAL, 0);
    } else if (netsrv__conn_has_job(c) || c->works != 0) {
        c->flags &= ~(uint32_t)NETSRV__FRESH; /* on_open is slow: it has the time of the stop */
    } else {
        netsrv__conn_close(w, c, NETSRV_CLOSE_STOP);
    }
}

static void netsrv__conn_on_timer(netsrv__worker *w, netsrv_conn *c) {
    const uint64_t now = w->own.now_ms;
    if (c->limit_ms != 0 && now >= c->limit_ms) {
        netsrv__conn_limit_reached(w, c);
    } else if (now >= netsrv__conn_write_deadline(w, c)) {
        netsrv__conn_reset(w, c, NETSRV_CLOSE_WRITE_TIMEOUT);
    } else if (now >= netsrv__conn_idle_deadline(w, c)) {
        netsrv__conn_close(w, c, NETSRV_CLOSE_IDLE);
    }
    if (c->state < NETSRV__CLOSING) {
        netsrv__conn_arm(w, c);
    }
}

/* After a long turn: what was stamped with its beginning may have happened at its end. */
static void netsrv__conn_restamp(netsrv__worker *w, uint64_t from_ms, uint64_t to_ms) {
    const netsrv__slab *slab = &w->own.slab;
    for (uint32_t slot = 0; slot < slab->chunk_count * NETSRV__SLAB_CHUNK; slot++) {
        netsrv_conn *c = netsrv__slab_at(slab, slot);
        c->active_ms = c->active_ms == from_ms ? to_ms : c->active_ms;
        c->stalled_ms = c->stalled_ms == from_ms ? to_ms : c->stalled_ms;
    }
}

/* ---- the end ---- */

static void netsrv__conn_drop_input(netsrv__worker *w, netsrv_conn *c) {
    if (c->input != NULL) {
        const size_t bytes = sizeof *c->input + c->input->cap;
        netsrv__out_unreserve(w->srv, bytes);
        netsrv__mem_free(w->cfg, c->input, bytes);
        c->input = NULL;
    }
}

/* What the peer shall see of the end. */
static void netsrv__conn_cut(netsrv_conn *c) {
    const struct linger now = {1, 0};
    if (c->fd < 0) {
        return;
    }
    if ((c->flags & NETSRV__RESET) != 0) {
        netsrv__sys_setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        netsrv__sys_disconnect(c->fd);
    } else if ((c->flags & (NETSRV__FIN_SENT | NETSRV__BROKEN)) == 0) {
        /* close alone sends no FIN while a child process holds a duplicate. */
        netsrv__sys_shutdown(c->fd, SHUT_RDWR);
    }
}

/* The program knows: the descriptor is closed, and the turn's end releases the connection. */
static void netsrv__conn_lay_out(netsrv__worker *w, netsrv_conn *c) {
    if (c->fd >= 0) {
        netsrv__sys_close(c->fd);
        c->fd = -1;
        NETSRV__COUNT(w, closed, 1);
    } else {
        NETSRV__COUNT(w, undialed, 1);
        w->own.dials_stale = true;
    }
    netsrv__mem_free(w->cfg, c->job, sizeof *c->job);
    c->job = NULL;
    c->grave_next = w->own.dead;
    w->own.dead = c;
}

/* Work for a connection that has ended need not begin. */
static void netsrv__conn_forget_works(netsrv__worker *w, const netsrv_conn *c) {
    const netsrv__link *head = &w->own.works;
    if (c->works == 0) {
        return;
    }
    for (netsrv__link *node = head->next; node != head; node = node->next) {
        netsrv__work *x = (netsrv__work *)(void *)((char *)node - offsetof(netsrv__work, link));
        if (x->id == netsrv__conn_id(c)) {
            atomic_store_explicit(&x->skipped, true, memory_order_relaxed);
        }
    }
}

/* on_close comes after the callback that runs elsewhere, and the descriptor keeps its number until
 * then. A connection that on_open never saw is not told of either. */
static void netsrv__conn_tell_close(netsrv__worker *w, netsrv_conn *c) {
    netsrv__job *job = c->job;
    const bool known = (job->owed & NETSRV__CALL_OPEN) == 0 || (c->flags & NETSRV__DIALED) != 0;
    atomic_store_explicit(&job->gone, true, memory_order_relaxed);
    job->owed = 0;
    if (known) {
        netsrv__conn_owe(w, c, NETSRV__CALL_CLOSE);
    } else if (!job->lent && !job->listed) {
        netsrv__conn_lay_out(w, c);
    }
}

/* A copy that travels, and the message that brings it. Counts it there before it is there. One that
 * has shut its mailbox may have waited for it: it is woken to see that nothing comes. */
static bool netsrv__conn_send_off(netsrv__worker *w, netsrv_conn *c) {
    netsrv__worker *to = &w->srv->workers[c->move_to];
    netsrv__msg msg;
    netsrv_conn *traveller = netsrv__mem_alloc(w->cfg, sizeof *traveller);
    if (traveller == NULL) {
        return false;
    }
    *traveller = *c;
    traveller->flags = c->flags & ~(uint32_t)NETSRV__LEFT_BEHIND;
    traveller->flags |= NETSRV__ARRIVED | NETSRV__RESHOW; /* some was not shown here any more */
    traveller->dirty_next = NULL;
    traveller->works = 0;
    memset(&msg, 0, sizeof msg);
    msg.kind = NETSRV__MSG_MOVE;
    msg.as.traveller = traveller;
    atomic_fetch_add(&w->srv->busy, 1);
    atomic_fetch_add(&to->load, 1);
    if (netsrv__mailbox_post(to, &msg, true) != NETSRV_OK) {
        atomic_fetch_sub(&to->load, 1);
        atomic_fetch_sub(&w->srv->busy, 1);
        netsrv__mailbox_wake(&to->group->wake);
        netsrv__mem_free(w->cfg, traveller, sizeof *traveller);
        return false;
    }
    return true;
}

/* It does not go after all: the next settle shows it to the backend again. */
static void netsrv__conn_stay(netsrv__worker *w, netsrv_conn *c) {
    c->flags &= ~(uint32_t)(NETSRV__LEFT_BEHIND & ~(NETSRV__DIRTY | NETSRV__STOPPING));
    c->flags |= NETSRV__ARRIVED | NETSRV__RESHOW;
    netsrv__conn_mark_dirty(w, c);
}

/* From the moment of the message on, another thread has all that the connection owned. */
static void netsrv__conn_move(netsrv__worker *w, netsrv_conn *c) {
    if (c->state > NETSRV__HALF || !netsrv__conn_send_off(w, c)) {
        netsrv__conn_stay(w, c);
        return;
    }
    NETSRV__COUNT(w, moved, 1);
    netsrv__conn_forget_works(w, c);
    memset(&c->out, 0, sizeof c->out);
    c->input = NULL;
    c->fd = -1;
    c->flags = (c->flags & NETSRV__DIRTY) | NETSRV__MOVED;
    netsrv__conn_set_state(c, NETSRV__DEAD);
    c->grave_next = w->own.dead;
    w->own.dead = c;
}

/* The backend holds nothing of `c` any more: the program is told, the descriptor closed. */
static void netsrv__conn_on_detached(netsrv__worker *w, netsrv_conn *c) {
    NETSRV__ASSERT_OWNER(w);
    netsrv__timer_stop(&w->own.wheel, &c->timer);
    if ((c->flags & NETSRV__MOVING) != 0 && c->state < NETSRV__CLOSING) {
        netsrv__conn_move(w, c);
        return;
    }
    netsrv__conn_set_state(c, NETSRV__DEAD);
    netsrv__conn_forget_works(w, c);
    if (c->job == NULL && c->on->on_close != NULL) {
        netsrv__conn_note(w, c, NETSRV__ACT_CLOSE);
        c->on->on_close(c, (netsrv_close_reason)c->reason, c->sys_errno);
        netsrv__pulse_end(w);
    }
    netsrv__out_discard(w->srv, &c->out);
    netsrv__conn_drop_input(w, c);
    netsrv__conn_cut(c);
    if (c->job != NULL) {
        netsrv__conn_tell_close(w, c);
    } else {
        netsrv__conn_lay_out(w, c);
    }
}

/* ---- settle: what was recorded becomes so ---- */

/* FIN is out. The peer may still be sending: a close now would answer with a reset, which destroys
 * what it has not read yet (RFC 1122, 4.2.2.13). */
static void netsrv__conn_linger(netsrv__worker *w, netsrv_conn *c) {
    if ((c->flags & NETSRV__PEER_DONE) != 0 || w->cfg->linger_timeout_ms == NETSRV_OFF) {
        netsrv__conn_end(w, c, NETSRV_CLOSE_LOCAL, 0);
        return;
    }
    if ((c->flags & NETSRV__FIN_SENT) == 0) {
        c->flags |= NETSRV__FIN_SENT;
        if (netsrv__sys_shutdown(c->fd, SHUT_WR) != 0) {
            netsrv__conn_fail(w, c, errno);
            return;
        }
    }
    netsrv__conn_set_state(c, NETSRV__LINGERING);
    netsrv__conn_limit(c, w->cfg->linger_timeout_ms);
}

static void netsrv__conn_send_fin(netsrv__worker *w, netsrv_conn *c) {
    c->flags |= NETSRV__FIN_SENT;
    if (netsrv__sys_shutdown(c->fd, SHUT_WR) != 0) {
        netsrv__conn_fail(w, c, errno);
    }
}

/* At a stop: nothing received in part, nothing to send, and it had its chance to speak. */
static bool netsrv__conn_quiet(const netsrv_conn *c) {
    return c->state <= NETSRV__HALF && c->out.bytes + c->sending == 0 && c->input == NULL &&
           (c->flags & (NETSRV__FRESH | NETSRV__PAUSED)) == 0 &&
           !netsrv__conn_has_job(c) && c->works == 0;
}

static void netsrv__conn_step_close(netsrv__worker *w, netsrv_conn *c) {
    if ((c->flags & NETSRV__STOPPING) != 0 && netsrv__conn_quiet(c)) {
        netsrv__conn_close(w, c, NETSRV_CLOSE_STOP);
    }
    if (c->state == NETSRV__DRAINING || c->state == NETSRV__LINGERING) {
        netsrv__conn_drop_input(w, c);
    }
    if (c->out.bytes + c->sending != 0) {
        if (c->state == NETSRV__DRAINING && c->limit_ms == 0) {
            netsrv__conn_limit(c, w->cfg->flush_timeout_ms);
        }
        return;
    }
    if (c->state == NETSRV__DRAINING) {
        netsrv__conn_linger(w, c);
        return;
    }
    if ((c->flags & (NETSRV__FIN_WANTED | NETSRV__FIN_SENT)) == NETSRV__FIN_WANTED) {
        netsrv__conn_send_fin(w, c);
    }
    if (c->state == NETSRV__HALF && (c->flags & NETSRV__FIN_SENT) != 0) {
        netsrv__conn_end(w, c, NETSRV_CLOSE_PEER, 0);
    }
}

/* Before a callback: where a reply may point to. */
static NETSRV__HOT void netsrv__conn_enter(netsrv__worker *w, netsrv_conn *c, const void *data,
                                           size_t n) {
    NETSRV_ASSERT(w->own.current == NULL && w->own.reply_bytes == 0);
    w->own.current = c;
    w->own.lent = data;
    w->own.lent_bytes = n;
}

static void netsrv__conn_leave(netsrv__worker *w, netsrv_conn *c) {
    netsrv__conn_flush_reply(w, c);
    w->own.current = NULL;
}

/* A callback that is shown no input. */
static void netsrv__conn_call(netsrv__worker *w, netsrv_conn *c, netsrv__act act,
                              void (*fn)(netsrv_conn *c)) {
    netsrv__conn_enter(w, c, NULL, 0);
    netsrv__conn_note(w, c, act);
    fn(c);
    netsrv__pulse_end(w);
    netsrv__conn_leave(w, c);
}

/* ---- input ---- */

static bool netsrv__conn_wants_input(const netsrv_conn *c) {
    return c->state == NETSRV__OPEN &&
           (c->flags & (NETSRV__PAUSED | NETSRV__HIGH_MARK | NETSRV__MOVING)) == 0;
}

/* The program's own framing. */
static netsrv__frame_found netsrv__conn_split(netsrv__worker *w, netsrv_conn *c,
                                              const unsigned char *data, size_t n,
                                              netsrv__frame *f) {
    const size_t max = w->cfg->input_max_bytes;
    netsrv__conn_note(w, c, NETSRV__ACT_SPLIT);
    const size_t length = w->cfg->split(c, data, n);
    netsrv__pulse_end(w);
    memset(f, 0, sizeof *f);
    f->n = length;
    f->end = length;
    if (c->state != NETSRV__OPEN) {
        return NETSRV__FRAME_MORE; /* it has ended the connection */
    }
    if (length == NETSRV_SPLIT_BAD) {
        return NETSRV__FRAME_BAD;
    }
    if (length > max || (length == 0 && n > max)) {
        return NETSRV__FRAME_TOO_LONG;
    }
    return length == 0 || length > n ? NETSRV__FRAME_MORE : NETSRV__FRAME_LINE;
}

/* The frame that these bytes begin with. Of those that need a certain number of bytes to be told,
 * none is looked at before they are there. */
static netsrv__frame_found netsrv__conn_find_frame(netsrv__worker *w, netsrv_conn *c,
                                                   const unsigned char *data, size_t n,
                                                   size_t scanned, netsrv__frame *f) {
    const netsrv_framing framing = w->cfg->framing;
    if (framing >= NETSRV_FRAMING_FIXED && n < scanned) {
        f->end = scanned;
        return NETSRV__FRAME_MORE;
    }
    if (framing == NETSRV_FRAMING_CUSTOM) {
        return netsrv__conn_split(w, c, data, n, f);
    }
    return netsrv__frame_next(w->cfg, data, n, scanned, f);
}

/* On a handler thread: whether the other connections have waited long enough. */
static bool netsrv__conn_yields(const netsrv__worker *w, netsrv_conn *c) {
    if (w->own.slice_us == 0 || netsrv__sys_now_us() < w->own.slice_us) {
        return false;
    }
    c->flags |= NETSRV__RESHOW;
    return true;
}

NETSRV__COLD
static size_t netsrv__conn_show_frames(netsrv__worker *w, netsrv_conn *c,
                                       const unsigned char *data, size_t n, size_t *scanned) {
    size_t at = 0;
    while (at < n && netsrv__conn_wants_input(c)) {
        netsrv__frame f;
        const netsrv__frame_found found = netsrv__conn_find_frame(w, c, data + at, n - at,
                                                                  *scanned, &f);
        *scanned = 0;
        if (found == NETSRV__FRAME_MORE) {
            *scanned = f.end;
            break;
        }
        if (found != NETSRV__FRAME_LINE) {
            netsrv__conn_close(w, c, found == NETSRV__FRAME_BAD ? NETSRV_CLOSE_BAD_FRAME
                                                                : NETSRV_CLOSE_LINE_TOO_LONG);
            break;
        }
        netsrv__conn_note(w, c, NETSRV__ACT_FRAME);
        c->on->on_frame(c, data + at + f.begin, f.n);
        netsrv__pulse_end(w);
        at += f.end;
        if (w->own.reply_bytes >= NETSRV__REPLY_FLUSH) {
            netsrv__conn_flush_reply(w, c);
        }
        if (netsrv__conn_yields(w, c)) {
            break;
        }
    }
    return at;
}

/* Shows input to the program; returns how much of it is done with. */
static size_t netsrv__conn_show(netsrv__worker *w, netsrv_conn *c, const unsigned char *data,
                                size_t n, size_t *scanned) {
    const bool lends = c->out.bytes == 0 && (c->flags & NETSRV__FIN_WANTED) == 0;
    size_t used;
    if (!netsrv__conn_wants_input(c)) {
        return 0; /* paused by somebody else earlier in this batch */
    }
    netsrv__conn_enter(w, c, data, lends ? n : 0);
    if (c->on->on_data == NULL) {
        used = netsrv__conn_show_frames(w, c, data, n, scanned);
    } else {
        netsrv__conn_note(w, c, NETSRV__ACT_DATA);
        used = netsrv__util_min(c->on->on_data(c, data, n), n);
        netsrv__pulse_end(w);
    }
    netsrv__conn_leave(w, c);
    return used;
}

static bool netsrv__conn_widen_input(netsrv__worker *w, netsrv_conn *c, size_t need) {
    netsrv__input *old = c->input;
    const size_t old_bytes = old != NULL ? sizeof *old + old->cap : 0;
    const size_t cap = netsrv__util_max(need, old != NULL ? old->cap * 2 : 256);
    const size_t more = sizeof *old + cap - old_bytes;
    if (!netsrv__out_reserve(w->srv, more)) {
        netsrv__conn_reset(w, c, NETSRV_CLOSE_SERVER_FULL);
        return false;
    }
    netsrv__input *in = netsrv__mem_resize(w->cfg, old, old_bytes, sizeof *in + cap);
    if (in == NULL) {
        netsrv__out_unreserve(w->srv, more);
        netsrv__conn_reset(w, c, NETSRV_CLOSE_NO_MEMORY);
        return false;
    }
    if (old == NULL) {
        memset(in, 0, sizeof *in);
    }
    in->cap = cap;
    c->input = in;
    return true;
}

/* Appends to the kept input. False if the connection had to end. */
NETSRV__COLD
static bool netsrv__conn_keep(netsrv__worker *w, netsrv_conn *c, const void *data, size_t n) {
    netsrv__input *in = c->input;
    const size_t held = in != NULL ? in->end - in->begin : 0;
    if (in != NULL && in->begin != 0) {
        memmove(in->bytes, in->bytes + in->begin, held);
        in->begin = 0;
        in->end = held;
    }
    if ((in == NULL || in->cap - held < n) && !netsrv__conn_widen_input(w, c, held + n)) {
        return false;
    }
    memcpy(c->input->bytes + held, data, n);
    c->input->end = held + n;
    return true;
}

/* Unframed input that the program leaves lying is limited; a line's length is seen to above. */
static void netsrv__conn_limit_input(netsrv__worker *w, netsrv_conn *c) {
    if (netsrv__conn_wants_input(c) && c->input != NULL &&
        c->input->end - c->input->begin > w->cfg->input_max_bytes && c->on->on_data != NULL) {
        netsrv__conn_close(w, c, NETSRV_CLOSE_INPUT_FULL);
    }
}

static void netsrv__conn_show_kept(netsrv__worker *w, netsrv_conn *c) {
    netsrv__input *in = c->input;
    const size_t used = netsrv__conn_show(w, c, in->bytes + in->begin, in->end - in->begin,
                                          &in->scanned);
    in->begin += used;
    if (in->begin == in->end) {
        netsrv__conn_drop_input(w, c);
    }
    netsrv__conn_limit_input(w, c);
}

/* Keeps what the program has not consumed of new input, or shows it together with what was kept. */
static void netsrv__conn_input(netsrv__worker *w, netsrv_conn *c, const unsigned char *data,
                               size_t n) {
    size_t scanned = 0;
    size_t used = 0;
    if (c->job != NULL) {
        if (netsrv__conn_keep(w, c, data, n)) {
            netsrv__conn_owe(w, c, NETSRV__CALL_INPUT);
        }
        return;
    }
    if (c->input != NULL) {
        if (netsrv__conn_keep(w, c, data, n)) {
            netsrv__conn_show_kept(w, c);
        }
        return;
    }
    used = netsrv__conn_show(w, c, data, n, &scanned);
    if (used < n && c->state == NETSRV__OPEN && netsrv__conn_keep(w, c, data + used, n - used)) {
        c->input->scanned = scanned;
        netsrv__conn_limit_input(w, c);
    }
}

/* What might have become the end of a line is a part of this one, which may be too long by that. */
static void netsrv__conn_show_last(netsrv__worker *w, netsrv_conn *c) {
    const netsrv__input *in = c->input;
    const size_t n = in->end - in->begin;
    if (n > w->cfg->input_max_bytes) {
        netsrv__conn_close(w, c, NETSRV_CLOSE_LINE_TOO_LONG);
        return;
    }
    netsrv__conn_enter(w, c, NULL, 0);
    netsrv__conn_note(w, c, NETSRV__ACT_FRAME);
    c->on->on_frame(c, in->bytes + in->begin, n);
    netsrv__pulse_end(w);
    netsrv__conn_leave(w, c);
}

/* The peer has finished. What would be a line if its end came is shown as one; a frame that needs
 * more bytes than there are is none. */
static void netsrv__conn_eof(netsrv__worker *w, netsrv_conn *c) {
    netsrv__conn_set_state(c, NETSRV__HALF);
    if (c->input != NULL && c->on->on_data == NULL && w->cfg->framing < NETSRV_FRAMING_FIXED) {
        netsrv__conn_show_last(w, c);
    }
    netsrv__conn_drop_input(w, c);
    if (c->on->on_eof != NULL && c->state == NETSRV__HALF) {
        netsrv__conn_call(w, c, NETSRV__ACT_EOF, c->on->on_eof);
    }
    if (c->on->eof_policy == NETSRV_EOF_CLOSE) {
        netsrv__conn_close(w, c, NETSRV_CLOSE_PEER);
    }
}

/* Input after our close. The peer may send only so much of it. */
static void netsrv__conn_discard(netsrv__worker *w, netsrv_conn *c, size_t n) {
    const uint32_t left = w->cfg->linger_max_bytes - c->discarded;
    c->discarded = n < left ? c->discarded + (uint32_t)n : w->cfg->linger_max_bytes;
    if (c->state == NETSRV__LINGERING && c->discarded >= w->cfg->linger_max_bytes) {
        netsrv__conn_end(w, c, NETSRV_CLOSE_LOCAL, 0);
    }
}

/* ---- settle, continued: what calls the program comes after input ---- */

/* Before any other callback on the new worker. */
static void netsrv__conn_tell_move(netsrv__worker *w, netsrv_conn *c) {
    c->flags &= ~(uint32_t)NETSRV__ARRIVED;
    netsrv__conn_mark_dirty(w, c);
    if (c->on->on_move != NULL && c->state <= NETSRV__HALF) {
        netsrv__conn_call(w, c, NETSRV__ACT_MOVE, c->on->on_move);
    }
}

static void netsrv__conn_drained(netsrv__worker *w, netsrv_conn *c) {
    if (c->on->on_drain == NULL) {
        return;
    }
    if (c->job != NULL) {
        netsrv__conn_owe(w, c, NETSRV__CALL_DRAIN);
        return;
    }
    netsrv__conn_call(w, c, NETSRV__ACT_DRAIN, c->on->on_drain);
}

static void netsrv__conn_reshow(netsrv__worker *w, netsrv_conn *c) {
    if (c->job != NULL) {
        netsrv__conn_owe(w, c, NETSRV__CALL_INPUT);
    } else if (c->input != NULL) {
        netsrv__conn_mark_dirty(w, c);
        netsrv__conn_show_kept(w, c);
    }
}

static void netsrv__conn_step_program(netsrv__worker *w, netsrv_conn *c) {
    if ((c->flags & NETSRV__HIGH_MARK) != 0 && c->state <= NETSRV__HALF &&
        c->out.bytes + c->sending <= w->cfg->low_mark_bytes) {
        c->flags &= ~(uint32_t)NETSRV__HIGH_MARK;
        c->flags |= NETSRV__RESHOW;
        /* What on_drain sends waits for the next round, or a fast reader would hold the turn. */
        netsrv__conn_mark_dirty(w, c);
        c->active_ms = w->own.now_ms;
        netsrv__conn_drained(w, c);
    }
    if ((c->flags & NETSRV__RESHOW) != 0 && netsrv__conn_wants_input(c)) {
        c->flags &= ~(uint32_t)NETSRV__RESHOW;
        netsrv__conn_reshow(w, c);
    }
}

/* With callbacks on other threads, reading goes on beside one until there is input for the next:
 * a client that waits for its answer costs no change of interest. */
static bool netsrv__conn_job_reads(const netsrv_conn *c) {
    const bool busy = c->job->lent || c->job->held;
    return (c->flags & NETSRV__PEER_DONE) == 0 && (c->input == NULL || !busy);
}

static bool netsrv__conn_wants_recv(const netsrv__worker *w, const netsrv_conn *c) {
    if (c->state == NETSRV__DRAINING || c->state == NETSRV__LINGERING) {
        return (c->flags & NETSRV__PEER_DONE) == 0 && c->discarded < w->cfg->linger_max_bytes;
    }
    return netsrv__conn_wants_input(c) && (c->job == NULL || netsrv__conn_job_reads(c));
}

static void netsrv__conn_step_recv(netsrv__worker *w, netsrv_conn *c) {
    const bool wanted = netsrv__conn_wants_recv(w, c);
    const bool on = (c->flags & NETSRV__RECV_ON) != 0;
    if (wanted == on) {
        return;
    }
    c->flags ^= NETSRV__RECV_ON;
    const int error = wanted ? w->io->recv_start(w, c) : w->io->recv_stop(w, c);
    if (error != 0) {
        netsrv__conn_end(w, c, NETSRV_CLOSE_ERROR, error);
    }
}

/* The state in which most messages find a connection. */
static bool netsrv__conn_is_plain(const netsrv_conn *c) {
    return c->state == NETSRV__OPEN && c->job == NULL && c->input == NULL && c->out.bytes == 0 &&
           (c->flags & (NETSRV__UNSETTLED | NETSRV__RECV_ON)) == NETSRV__RECV_ON &&
           c->on->on_data != NULL;
}

/* Paused: its end must be noticed all the same. */
static void netsrv__conn_attach_paused(netsrv__worker *w, netsrv_conn *c) {
    if (c->state < NETSRV__CLOSING && (c->flags & (NETSRV__RECV_ON | NETSRV__DETACHING)) == 0) {
        const int error = w->io->recv_stop(w, c);
        if (error != 0) {
            netsrv__conn_end(w, c, NETSRV_CLOSE_ERROR, error);
        }
    }
}

/* On its way from here: the backend lets go of it. True if there is nothing else to do. */
static bool netsrv__conn_step_move(netsrv__worker *w, netsrv_conn *c) {
    const bool first = (c->flags & NETSRV__DETACHING) == 0;
    if (first && c->state > NETSRV__HALF) {
        c->flags &= ~(uint32_t)NETSRV__MOVING; /* closed meanwhile: it ends here */
        return false;
    }
    c->flags |= NETSRV__DETACHING;
    c->flags &= ~(uint32_t)NETSRV__RECV_ON;
    w->io->detach(w, c); /* again, if it could not be asked for */
    return true; /* netsrv__conn_on_detached goes on, also with a connection that ended */
}

/* No backend has it yet. */
static void netsrv__conn_settle_unopened(netsrv__worker *w, netsrv_conn *c) {
    if (c->state == NETSRV__DIALING) {
        netsrv__conn_arm(w, c);
        return;
    }
    NETSRV_ASSERT(c->state == NETSRV__CLOSING);
    netsrv__conn_on_detached(w, c);
}

/* Whether there is something to send that may be sent now. */
static bool netsrv__conn_may_send(const netsrv__worker *w, const netsrv_conn *c) {
    const uint32_t lifts = NETSRV__HIGH_MARK | NETSRV__STOPPING;
    const bool held = (c->flags & (NETSRV__CORKED | lifts)) == NETSRV__CORKED &&
                      c->out.bytes <= w->cfg->high_mark_bytes;
    return c->state >= NETSRV__OPEN && c->state < NETSRV__CLOSING && c->out.bytes != 0 && !held &&
           (c->flags & NETSRV__BLOCKED) == 0;
}

/* netsrv_flush: what was gathered goes to the backend now. */
static netsrv_result netsrv__conn_flush(netsrv__worker *w, netsrv_conn *c) {
    if (w->own.current == c) {
        netsrv__conn_flush_reply(w, c);
    }
    if (netsrv__conn_may_send(w, c)) {
        w->io->send(w, c);
    }
    if (c->state > NETSRV__HALF) {
        return NETSRV_GONE;
    }
    return (c->flags & NETSRV__HIGH_MARK) != 0 ? NETSRV_HIGH : NETSRV_OK;
}

/* What netsrv_flush on the other thread wants to know. */
static void netsrv__conn_publish(netsrv_conn *c) {
    atomic_store_explicit(&c->job->backlog, c->out.bytes + c->sending, memory_order_relaxed);
    atomic_store_explicit(&c->job->gone, c->state > NETSRV__HALF, memory_order_relaxed);
}

/* After each callback of a connection, and once a turn for what became dirty otherwise. */
NETSRV__COLD
static void netsrv__conn_settle(netsrv__worker *w, netsrv_conn *c) {
    if (c->state == NETSRV__DEAD || c->state == NETSRV__FREE) {
        return;
    }
    if (c->fd < 0) {
        netsrv__conn_settle_unopened(w, c);
        return;
    }
    if ((c->flags & NETSRV__MOVING) != 0 && netsrv__conn_step_move(w, c)) {
        return;
    }
    const bool arrived = (c->flags & NETSRV__ARRIVED) != 0;
    if (arrived) {
        netsrv__conn_tell_move(w, c);
    }
    if (netsrv__conn_may_send(w, c)) {
        w->io->send(w, c);
    }
    if (c->state < NETSRV__CLOSING) {
        netsrv__conn_step_close(w, c);
    }
    if (c->state == NETSRV__CLOSING) {
        c->flags &= ~(uint32_t)NETSRV__RECV_ON;
        w->io->detach(w, c);
        return;
    }
    netsrv__conn_step_program(w, c);
    if (c->state < NETSRV__CLOSING) {
        netsrv__conn_step_recv(w, c);
    }
    if (arrived) {
        netsrv__conn_attach_paused(w, c);
    }
    if (c->state < NETSRV__CLOSING) {
        netsrv__conn_arm(w, c);
    }
    if (netsrv__conn_lent(c)) {
        netsrv__conn_publish(c);
    }
    c->flags &= ~(uint32_t)NETSRV__PLAIN;
    c->flags |= netsrv__conn_is_plain(c) ? (uint32_t)NETSRV__PLAIN : 0u;
}

/* Everything that became dirty outside its own callback. What becomes dirty meanwhile gets one more
 * round; the rest waits for the next turn, which will not sleep. */
static void netsrv__conn_settle_dirty(netsrv__worker *w) {
    for (int round = 0; round < 2 && w->own.dirty != NULL; round++) {
        netsrv_conn *c = w->own.dirty;
        w->own.dirty = NULL;
        while (c != NULL) {
            netsrv_conn *next = c->dirty_next;
            c->dirty_next = NULL;
            c->flags &= ~(uint32_t)NETSRV__DIRTY;
            netsrv__conn_settle(w, c);
            c = next;
        }
    }
}

/* ---- results of the backend about input ---- */

NETSRV__COLD
static void netsrv__conn_on_recv_slow(netsrv__worker *w, netsrv_conn *c, const void *data,
                                      size_t n) {
    if (c->state == NETSRV__OPEN) {
        c->flags &= ~(uint32_t)NETSRV__FRESH;
        c->limit_ms = 0; /* at a stop it was the time for this */
        netsrv__conn_input(w, c, data, n);
    } else if (c->state == NETSRV__DRAINING || c->state == NETSRV__LINGERING) {
        netsrv__conn_discard(w, c, n);
    } else {
        return; /* Ended earlier in this batch: late results end here and nowhere else. */
    }
    netsrv__conn_settle(w, c);
}

/* The callback of a plain connection did more than consume and answer. */
NETSRV__COLD
static void netsrv__conn_recv_rest(netsrv__worker *w, netsrv_conn *c, const unsigned char *data,
                                   size_t n, size_t used) {
    netsrv__conn_leave(w, c);
    used = netsrv__util_min(used, n);
    if (used < n && c->state == NETSRV__OPEN && netsrv__conn_keep(w, c, data + used, n - used)) {
        netsrv__conn_limit_input(w, c);
    }
    netsrv__conn_settle(w, c);
}

/* n bytes, which are lent until the return. A plain connection that stays plain and consumes all
 * needs no settling: its reply goes out, and that is all. */
static NETSRV__HOT void netsrv__conn_on_recv(netsrv__worker *w, netsrv_conn *c,
                                             const unsigned char *data, size_t n) {
    NETSRV__ASSERT_OWNER(w);
    w->own.bytes_in += n;
    c->bytes_in += n;
    c->active_ms = w->own.now_ms;
    if (!NETSRV__LIKELY((c->flags & NETSRV__PLAIN) != 0)) {
        netsrv__conn_on_recv_slow(w, c, data, n);
        return;
    }
    NETSRV_ASSERT(netsrv__conn_is_plain(c));
    netsrv__conn_enter(w, c, data, n);
    const size_t used = c->on->on_data(c, data, n);
    if (!NETSRV__LIKELY(used == n && (c->flags & NETSRV__PLAIN) != 0)) {
        netsrv__conn_recv_rest(w, c, data, n, used);
        return;
    }
    w->own.current = NULL;
    if (w->own.reply_bytes != 0) {
        const size_t reply_bytes = w->own.reply_bytes;
        w->own.reply_bytes = 0;
        w->io->reply(w, c, w->own.reply, reply_bytes);
    }
}

/* The peer's end (0) or an error. */
NETSRV__COLD
static void netsrv__conn_on_end(netsrv__worker *w, netsrv_conn *c, int sys_errno) {
    NETSRV__ASSERT_OWNER(w);
    if (c->state >= NETSRV__CLOSING || c->state == NETSRV__FREE) {
        return;
    }
    if (sys_errno != 0) {
        netsrv__conn_fail(w, c, sys_errno);
    } else if ((c->flags & NETSRV__MOVING) == 0) { /* else the other worker will find it */
        c->flags |= NETSRV__PEER_DONE;
        if (c->state == NETSRV__OPEN && c->job != NULL) {
            netsrv__conn_owe(w, c, NETSRV__CALL_EOF);
        } else if (c->state == NETSRV__OPEN) {
            netsrv__conn_eof(w, c);
        } else if (c->state == NETSRV__LINGERING) {
            netsrv__conn_end(w, c, NETSRV_CLOSE_LOCAL, 0);
        }
    }
    netsrv__conn_settle(w, c);
}

/* The kernel takes output again, also of a corked connection: what has begun to leave goes on, or
 * on_drain, which may be what uncorks it, would never come. */
static void netsrv__conn_on_writable(netsrv__worker *w, netsrv_conn *c) {
    NETSRV__ASSERT_OWNER(w);
    c->flags &= ~(uint32_t)NETSRV__BLOCKED;
    if ((c->flags & NETSRV__CORKED) != 0 && c->state < NETSRV__CLOSING) {
        w->io->send(w, c);
    }
    netsrv__conn_settle(w, c);
}

/* ---- the beginning ---- */

/* One whose callbacks run on other threads has a job. */
static bool netsrv__conn_add_job(netsrv__worker *w, netsrv_conn *c) {
    c->job = netsrv__mem_zeroed(w->cfg, 1, sizeof *c->job);
    if (c->job == NULL) {
        return false;
    }
    c->job->item.owner = w;
    c->job->conn = c;
    return true;
}

static netsrv_conn *netsrv__conn_new(netsrv__worker *w, const netsrv_handlers *on) {
    netsrv_conn *c = netsrv__slab_alloc(&w->own.slab, w);
    NETSRV__ASSERT_OWNER(w);
    if (c == NULL) {
        return NULL;
    }
    if (w->pool != NULL && !netsrv__conn_add_job(w, c)) {
        netsrv__slab_free(&w->own.slab, c);
        return NULL;
    }
    c->on = on;
    c->fd = -1;
    c->flags = w->pulse.on ? (uint32_t)NETSRV__OBSERVED : 0u;
    c->reason = NETSRV_CLOSE_COUNT;
    c->idle_ms = w->cfg->idle_timeout_ms;
    atomic_store_explicit(&w->open_now, w->own.slab.live, memory_order_relaxed);
    return c;
}

static void netsrv__conn_greet(netsrv__worker *w, netsrv_conn *c) {
    if (c->on->on_open == NULL) {
        return;
    }
    if (c->job != NULL) {
        netsrv__conn_owe(w, c, NETSRV__CALL_OPEN);
        return;
    }
    netsrv__conn_call(w, c, NETSRV__ACT_OPEN, c->on->on_open);
}

/* The program is told, and what it wants becomes so. */
static void netsrv__conn_begin(netsrv__worker *w, netsrv_conn *c) {
    c->active_ms = w->own.now_ms;
    c->flags |= NETSRV__FRESH;
    netsrv__conn_set_state(c, NETSRV__OPEN);
    NETSRV__COUNT(w, opened, 1);
    netsrv__conn_greet(w, c);
    if (w->own.phase >= NETSRV__LEAVING && c->state == NETSRV__OPEN) {
        c->flags |= NETSRV__STOPPING;
        netsrv__conn_limit_fresh(c);
    }
    netsrv__conn_settle(w, c);
    netsrv__conn_attach_paused(w, c);
}

/* There is no memory where it has arrived: the program is told, as of any end. */
static void netsrv__conn_strand(netsrv__worker *w, netsrv_conn *c) {
    c->worker = w;
    c->gen = 0;
    c->flags |= NETSRV__RESET | NETSRV__DIRTY; /* on no list, and to be put on none */
    netsrv__conn_set_state(c, NETSRV__DEAD);
    if (c->on->on_close != NULL) {
        netsrv__conn_note(w, c, NETSRV__ACT_CLOSE);
        c->on->on_close(c, NETSRV_CLOSE_NO_MEMORY, 0);
        netsrv__pulse_end(w);
    }
    netsrv__out_discard(w->srv, &c->out);
    netsrv__conn_drop_input(w, c);
    netsrv__conn_cut(c);
    netsrv__sys_close(c->fd);
    NETSRV__COUNT(w, closed, 1);
}

/* From another worker. False if there is no place for it: it has ended. */
static bool netsrv__conn_arrive(netsrv__worker *w, netsrv_conn *traveller) {
    netsrv_conn *c = netsrv__slab_alloc(&w->own.slab, w);
    NETSRV__ASSERT_OWNER(w);
    if (c == NULL) {
        netsrv__conn_strand(w, traveller);
        return false;
    }
    traveller->worker = w;
    traveller->gen = c->gen;
    traveller->slot = c->slot;
    *c = *traveller;
    c->interest = 0;
    atomic_store_explicit(&w->open_now, w->own.slab.live, memory_order_relaxed);
    if (w->own.phase >= NETSRV__LEAVING) {
        c->flags |= NETSRV__STOPPING;
        if ((c->flags & NETSRV__FRESH) != 0) {
            netsrv__conn_limit_fresh(c);
        }
    }
    if (w->own.phase == NETSRV__FORCED) {
        netsrv__conn_reset(w, c, NETSRV_CLOSE_STOP);
    }
    netsrv__conn_settle(w, c);
    return true;
}

/* False, and the descriptor is the caller's still, if there is no memory. */
static bool netsrv__conn_open(netsrv__worker *w, const netsrv__arrival *a) {
    netsrv_conn *c = netsrv__conn_new(w, &w->srv->handlers);
    if (c == NULL) {
        return false;
    }
    c->fd = a->fd;
    c->peer = a->peer;
    c->listener = (uint8_t)a->listener;
    c->addr_slot = a->addr_slot;
    c->flags |= a->registered ? NETSRV__FOREIGN : 0u;
    netsrv__conn_begin(w, c);
    return true;
}

/* One that has no descriptor yet; NULL without memory. What the program sends meanwhile waits. */
static netsrv_conn *netsrv__conn_dial(netsrv__worker *w, const netsrv_handlers *on,
                                      uint32_t timeout_ms) {
    netsrv_conn *c = netsrv__conn_new(w, on);
    if (c == NULL) {
        return NULL;
    }
    c->listener = NETSRV_LISTEN_MAX;
    c->addr_slot = NETSRV__NO_SLOT;
    c->flags |= NETSRV__DIALED;
    netsrv__conn_set_state(c, NETSRV__DIALING);
    netsrv__conn_limit(c, timeout_ms);
    if (w->own.phase >= NETSRV__LEAVING) {
        c->flags |= NETSRV__STOPPING;
        netsrv__conn_limit_fresh(c);
    }
    netsrv__conn_mark_dirty(w, c);
    return c;
}

static void netsrv__conn_connected(netsrv__worker *w, netsrv_conn *c, int fd,
                                   const netsrv__addr *peer) {
    c->fd = fd;
    c->peer = *peer;
    c->limit_ms = 0;
    netsrv__conn_begin(w, c);
}

/* ========================================================================== *
 *  [share] One buffer for many connections: references in their queues
 *  uses:   mem pulse slab out mailbox conn
 *  thread: buffer, post = any; the rest = owner
 * ========================================================================== */

static netsrv_buffer *netsrv__share_buffer(netsrv_server *srv, const void *data, size_t n) {
    netsrv_buffer *b;
    if (n > SIZE_MAX / 2 - sizeof *b || !netsrv__out_reserve(srv, sizeof *b + n)) {
        return NULL;
    }
    b = netsrv__mem_alloc(&srv->cfg, sizeof *b + n);
    if (b == NULL) {
        netsrv__out_unreserve(srv, sizeof *b + n);
        return NULL;
    }
    b->srv = srv;
    b->n = n;
    atomic_init(&b->refs, 1);
    if (data != NULL) {
        memcpy(b->bytes, data, n);
    }
    return b;
}

static void netsrv__share_retain(netsrv_buffer *b) {
    atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
}

/* Many short ones as references would hold far more memory than the bytes that the limits count. */
static netsrv_result netsrv__share_send(netsrv__worker *w, netsrv_conn *c, netsrv_buffer *b) {
    if (b->n == 0 || (b->n < NETSRV__SHARE_MIN && netsrv__conn_queued(w, c) != 0)) {
        return netsrv__conn_queue(w, c, b->bytes, b->n);
    }
    const netsrv__chunk what = {.kind = NETSRV__CHUNK_SHARED, .data = b->bytes, .end = b->n,
                                .arg = b};
    netsrv__share_retain(b);
    const netsrv_result result = netsrv__conn_refer(w, c, &what, b->n);
    if (result > NETSRV_HIGH) {
        netsrv__out_buffer_drop(b);
    }
    return result;
}

/* A reference that came from another thread; c is NULL if its connection is gone. */
static void netsrv__share_on_message(netsrv__worker *w, netsrv_conn *c, netsrv_buffer *b) {
    if (c != NULL) {
        netsrv__share_send(w, c, b);
    }
    netsrv__out_buffer_drop(b);
}

/* The last one ends it. */
static void netsrv__share_through(netsrv_server *srv, netsrv__broadcast *bc, unsigned workers) {
    void (*release)(void *arg) = bc->release;
    void *arg = bc->arg;
    if (atomic_fetch_sub(&bc->left, workers) != workers) {
        return;
    }
    netsrv__out_buffer_drop(bc->buffer);
    netsrv__mem_free(&srv->cfg, bc, sizeof *bc);
    if (release != NULL) {
        release(arg);
    }
}

static void netsrv__share_on_broadcast(netsrv__worker *w, netsrv__broadcast *bc) {
    const netsrv__slab *slab = &w->own.slab;
    netsrv__pulse_begin(w, NETSRV__ACT_BROADCAST, 0, NULL);
    for (uint32_t slot = 0; slot < slab->chunk_count * NETSRV__SLAB_CHUNK; slot++) {
        netsrv_conn *c = netsrv__slab_at(slab, slot);
        if (netsrv__conn_can_send(c) && (bc->filter == NULL || bc->filter(c, bc->arg))) {
            netsrv__share_send(w, c, bc->buffer);
        }
    }
    netsrv__share_through(w->srv, bc, 1);
    netsrv__pulse_end(w);
}

/* A message to every worker; if it fails, `release` is left to the caller. */
static netsrv_result netsrv__share_post(netsrv_server *srv, netsrv_buffer *b,
                                        bool (*filter)(netsrv_conn *c, void *arg),
                                        void (*release)(void *arg), void *arg) {
    netsrv__msg msg;
    netsrv__broadcast *bc = netsrv__mem_alloc(&srv->cfg, sizeof *bc);
    if (bc == NULL) {
        return NETSRV_NO_MEMORY;
    }
    bc->buffer = b;
    bc->filter = filter;
    bc->release = release;
    bc->arg = arg;
    atomic_init(&bc->left, srv->cfg.workers);
    memset(&msg, 0, sizeof msg);
    msg.kind = NETSRV__MSG_BROADCAST;
    msg.as.broadcast = bc;
    netsrv__share_retain(b);
    const netsrv_result result = netsrv__mailbox_post_all(srv->workers, srv->cfg.workers, &msg);
    if (result != NETSRV_OK) {
        bc->release = NULL;
        netsrv__share_through(srv, bc, srv->cfg.workers);
    }
    return result;
}

/* ========================================================================== *
 *  [accept] From a descriptor to a worker: limits, placing, handing over, pausing
 *  uses:   log mem util sys net mailbox conn
 *  thread: the accepting one; nudge = any
 * ========================================================================== */

/* ---- limits ---- */

/* An IPv6 client owns at least a /64, so its limit counts that. */
static void netsrv__accept_address_key(const netsrv__addr *a, uint8_t key[16]) {
    memset(key, 0, 16);
    memcpy(key, a->ip, a->family == AF_INET ? 4 : 8);
    key[15] = (uint8_t)(a->family == AF_INET ? 4 : 6);
}

static uint32_t *netsrv__accept_bucket(netsrv_server *srv, const uint8_t key[16]) {
    const uint64_t hash = netsrv__util_hash16(srv->seed, key);
    return &srv->limits.buckets[hash & (srv->limits.bucket_count - 1)];
}

/* Doubles the table; entries keep their numbers, which connections remember. */
static bool netsrv__accept_widen_table(netsrv_server *srv) {
    netsrv__limits *t = &srv->limits;
    const uint32_t cap = t->entry_cap == 0 ? 64 : t->entry_cap * 2;
    uint32_t *buckets = netsrv__mem_alloc(&srv->cfg, cap * sizeof *buckets);
    netsrv__addr_entry *entries = NULL;
    if (buckets != NULL) {
        entries = netsrv__mem_resize(&srv->cfg, t->entries, t->entry_cap * sizeof *entries,
                                     cap * sizeof *entries);
    }
    if (entries == NULL) {
        netsrv__mem_free(&srv->cfg, buckets, cap * sizeof *buckets);
        return false;
    }
    netsrv__mem_free(&srv->cfg, t->buckets, t->bucket_count * sizeof *buckets);
    memset(buckets, 0xff, cap * sizeof *buckets);
    t->buckets = buckets;
    t->bucket_count = cap;
    t->entries = entries;
    t->entry_cap = cap;
    for (uint32_t i = 0; i < t->entry_count; i++) {
        uint32_t *bucket = netsrv__accept_bucket(srv, entries[i].key);
        entries[i].next = *bucket;
        *bucket = i;
    }
    return true;
}

static uint32_t netsrv__accept_new_entry(netsrv_server *srv, const uint8_t key[16]) {
    netsrv__limits *t = &srv->limits;
    uint32_t slot = t->free;
    if (slot != NETSRV__NO_SLOT) {
        t->free = t->entries[slot].next;
    } else {
        if (t->entry_count == t->entry_cap && !netsrv__accept_widen_table(srv)) {
            return NETSRV__NO_SLOT;
        }
        slot = t->entry_count++;
    }
    uint32_t *bucket = netsrv__accept_bucket(srv, key);
    memcpy(t->entries[slot].key, key, 16);
    t->entries[slot].count = 0;
    t->entries[slot].next = *bucket;
    *bucket = slot;
    return slot;
}

static uint32_t netsrv__accept_entry(netsrv_server *srv, const uint8_t key[16]) {
    const netsrv__limits *t = &srv->limits;
    uint32_t slot = t->bucket_count != 0 ? *netsrv__accept_bucket(srv, key) : NETSRV__NO_SLOT;
    while (slot != NETSRV__NO_SLOT && memcmp(t->entries[slot].key, key, 16) != 0) {
        slot = t->entries[slot].next;
    }
    return slot != NETSRV__NO_SLOT ? slot : netsrv__accept_new_entry(srv, key);
}

/* False if the client's address has its limit already. Unix sockets have no address. */
static bool netsrv__accept_admit_address(netsrv_server *srv, netsrv__arrival *a) {
    uint8_t key[16];
    a->addr_slot = NETSRV__NO_SLOT;
    if (srv->cfg.max_conns_per_address == NETSRV_OFF ||
        (a->peer.family != AF_INET && a->peer.family != AF_INET6)) {
        return true;
    }
    netsrv__accept_address_key(&a->peer, key);
    pthread_mutex_lock(&srv->limits.lock);
    const uint32_t slot = netsrv__accept_entry(srv, key);
    const bool fine = slot != NETSRV__NO_SLOT &&
                      srv->limits.entries[slot].count < srv->cfg.max_conns_per_address;
    if (fine) {
        srv->limits.entries[slot].count++;
        a->addr_slot = slot;
    }
    pthread_mutex_unlock(&srv->limits.lock);
    return fine;
}

static void netsrv__accept_unlink_entry(netsrv_server *srv, uint32_t slot) {
    netsrv__limits *t = &srv->limits;
    uint32_t *link = netsrv__accept_bucket(srv, t->entries[slot].key);
    while (*link != slot) {
        link = &t->entries[*link].next;
    }
    *link = t->entries[slot].next;
    t->entries[slot].next = t->free;
    t->free = slot;
}

static void netsrv__accept_release_address(netsrv_server *srv, uint32_t slot) {
    if (slot == NETSRV__NO_SLOT) {
        return;
    }
    pthread_mutex_lock(&srv->limits.lock);
    if (--srv->limits.entries[slot].count == 0) {
        netsrv__accept_unlink_entry(srv, slot);
    }
    pthread_mutex_unlock(&srv->limits.lock);
}

/* A place under max_conns. */
static bool netsrv__accept_reserve(netsrv_server *srv) {
    uint32_t live = atomic_load(&srv->live);
    while (live < srv->cfg.max_conns) {
        if (atomic_compare_exchange_weak(&srv->live, &live, live + 1)) {
            return true;
        }
    }
    return false;
}

/* 0 if one more connection may be accepted now, else the milliseconds to wait. */
static uint32_t netsrv__accept_rate_wait(netsrv__worker *w) {
    netsrv_server *srv = w->srv;
    uint32_t wait_ms = 0;
    if (srv->cfg.max_accepts_per_second == NETSRV_OFF) {
        return 0;
    }
    const uint64_t now = netsrv__sys_now_ms();
    pthread_mutex_lock(&srv->limits.lock);
    if (now - srv->limits.window_ms >= 1000) {
        srv->limits.window_ms = now;
        srv->limits.window_count = 0;
    }
    if (srv->limits.window_count < srv->cfg.max_accepts_per_second) {
        srv->limits.window_count++;
    } else {
        wait_ms = (uint32_t)(srv->limits.window_ms + 1000 - now);
    }
    pthread_mutex_unlock(&srv->limits.lock);
    return wait_ms;
}

/* The accept found nobody. */
static void netsrv__accept_rate_refund(netsrv__worker *w) {
    if (w->cfg->max_accepts_per_second != NETSRV_OFF) {
        pthread_mutex_lock(&w->srv->limits.lock);
        w->srv->limits.window_count -= w->srv->limits.window_count != 0 ? 1 : 0;
        pthread_mutex_unlock(&w->srv->limits.lock);
    }
}

/* ---- pausing a listener ---- */

/* Something became free: wakes whoever has a listener that waits for that. */
static void netsrv__accept_nudge(netsrv_server *srv, unsigned waiting) {
    if (atomic_load(&srv->paused) == 0) {
        return;
    }
    for (unsigned i = 0; i < srv->group_count; i++) {
        netsrv__group *g = &srv->groups[i];
        if ((atomic_load(&g->paused) & waiting) != 0 && !atomic_exchange(&g->nudged, true)) {
            netsrv__mailbox_wake_signal(&g->wake);
        }
    }
}

static void netsrv__accept_release(netsrv_server *srv, uint32_t addr_slot) {
    netsrv__accept_release_address(srv, addr_slot);
    atomic_fetch_sub(&srv->live, 1);
    netsrv__accept_nudge(srv, NETSRV__PAUSED_FULL | NETSRV__PAUSED_RESOURCE);
}

/* A place that was not used. No descriptor has become free: to nudge those who wait for one would
 * have paused threads wake each other for ever. */
static void netsrv__accept_return(netsrv_server *srv) {
    atomic_fetch_sub(&srv->live, 1);
    netsrv__accept_nudge(srv, NETSRV__PAUSED_FULL);
}

/* True for one caller a second: what repeats is logged no more often. */
static bool netsrv__accept_may_log(netsrv_server *srv) {
    const uint32_t now = (uint32_t)netsrv__sys_now_ms() | 1u;
    uint32_t last = atomic_load(&srv->logged_ms);
    if (last != 0 && now - last < 1000) {
        return false;
    }
    return atomic_compare_exchange_strong(&srv->logged_ms, &last, now);
}

static void netsrv__accept_log_pause(netsrv__worker *w, unsigned gate, int sys_errno,
                                     unsigned waiting) {
    const char *why = waiting == NETSRV__PAUSED_PROGRAM ? "the program asked for it"
                      : waiting == NETSRV__PAUSED_RATE  ? "max_accepts_per_second is reached"
                                                        : "max_conns is reached";
    if (netsrv__accept_may_log(w->srv)) {
        netsrv__log_line(w->cfg, NETSRV_LOG_WARN, "accepting on %s pauses: %s%s",
                         w->srv->listeners[gate].text, sys_errno != 0 ? strerror(sys_errno) : why,
                         netsrv__net_remedy(sys_errno));
    }
}

/* Level-triggered listeners would spin, edge-triggered ones would be forgotten. Resumed by a nudge,
 * and after retry_ms where nobody may come to nudge (0: somebody will). */
static void netsrv__accept_pause(netsrv__worker *w, unsigned gate, uint32_t retry_ms,
                                 int sys_errno, unsigned waiting) {
    netsrv__group *g = w->group;
    pthread_mutex_lock(&g->lock);
    const bool armed = g->gates[gate].state == NETSRV__GATE_ARMED;
    if (armed) {
        w->io->listen_stop(w, gate);
        g->gates[gate].state = NETSRV__GATE_PAUSED;
        if (atomic_fetch_or(&g->paused, waiting) == 0) {
            atomic_fetch_add(&w->srv->paused, 1);
        }
    }
    pthread_mutex_unlock(&g->lock);
    w->own.undrained &= ~(1u << gate);
    if (!armed) {
        return; /* another thread of the group did it, or the server stops */
    }
    NETSRV__COUNT(w, pauses, 1);
    netsrv__accept_log_pause(w, gate, sys_errno, waiting);
    const uint64_t at = netsrv__sys_now_ms() + retry_ms;
    if (retry_ms != 0 && (w->own.retry_ms == 0 || at < w->own.retry_ms)) {
        w->own.retry_ms = at;
    }
}

static bool netsrv__accept_full(const netsrv_server *srv) {
    return srv->cfg.overflow == NETSRV_OVERFLOW_WAIT &&
           atomic_load(&srv->live) >= srv->cfg.max_conns;
}

static void netsrv__accept_pause_full(netsrv__worker *w, unsigned gate) {
    netsrv__accept_pause(w, gate, 0, 0, NETSRV__PAUSED_FULL);
    if (!netsrv__accept_full(w->srv)) {
        /* The last one left between the look and the pause, and nudged nobody. */
        w->own.retry_ms = netsrv__sys_now_ms();
    }
}

static void netsrv__accept_resume(netsrv__worker *w) {
    netsrv__group *g = w->group;
    bool all = true;
    if (atomic_load(&w->srv->halted)) {
        return;
    }
    if (netsrv__accept_full(w->srv)) {
        atomic_fetch_or(&g->paused, NETSRV__PAUSED_FULL); /* whatever it was before */
        w->own.retry_ms = netsrv__accept_full(w->srv) ? 0 : netsrv__sys_now_ms();
        return;
    }
    pthread_mutex_lock(&g->lock);
    for (unsigned i = 0; i < g->gate_count; i++) {
        if (g->gates[i].state != NETSRV__GATE_PAUSED) {
            continue;
        }
        if (w->io->listen_start(w, i) == 0) {
            g->gates[i].state = NETSRV__GATE_ARMED;
        } else {
            all = false;
        }
    }
    if (all && atomic_exchange(&g->paused, 0) != 0) {
        atomic_fetch_sub(&w->srv->paused, 1);
    }
    pthread_mutex_unlock(&g->lock);
    w->own.retry_ms = all ? 0 : netsrv__sys_now_ms() + NETSRV__RETRY_MS;
}

/* The program wants no more connections. Those that are paused already wait for it as well. */
static void netsrv__accept_halt(netsrv__worker *w) {
    netsrv__group *g = w->group;
    if (w->own.phase != NETSRV__RUNNING || g->gate_count == 0 ||
        (atomic_load(&g->paused) & NETSRV__PAUSED_PROGRAM) != 0) {
        return;
    }
    for (unsigned i = 0; i < g->gate_count; i++) {
        netsrv__accept_pause(w, i, 0, 0, NETSRV__PAUSED_PROGRAM);
    }
    pthread_mutex_lock(&g->lock);
    if (atomic_fetch_or(&g->paused, NETSRV__PAUSED_PROGRAM) == 0) {
        atomic_fetch_add(&w->srv->paused, 1);
    }
    pthread_mutex_unlock(&g->lock);
    if (!atomic_load(&w->srv->halted)) {
        w->own.retry_ms = netsrv__sys_now_ms(); /* taken back before there was anything to nudge */
    }
}

/* Once a turn. */
static void netsrv__accept_check_paused(netsrv__worker *w) {
    netsrv__group *g = w->group;
    if (!NETSRV__LIKELY(!atomic_load_explicit(&w->srv->halted, memory_order_relaxed))) {
        netsrv__accept_halt(w);
    }
    if (atomic_load_explicit(&g->paused, memory_order_relaxed) == 0) {
        w->own.retry_ms = 0;
        return;
    }
    const bool due = w->own.retry_ms != 0 && w->own.now_ms >= w->own.retry_ms;
    if (atomic_exchange(&g->nudged, false) || due) {
        w->own.retry_ms = 0;
        netsrv__accept_resume(w);
    }
}

/* ---- placing ---- */

static void netsrv__accept_log_refused(netsrv__worker *w, int fd, const netsrv__addr *peer,
                                       const char *why) {
    char text[NETSRV_ADDRESS_MAX];
    NETSRV__COUNT(w, refused, 1);
    if (w->cfg->on_log != NULL) {
        const netsrv__addr a = netsrv__net_peer_of(fd, peer);
        netsrv__log_line(w->cfg, NETSRV_LOG_DEBUG, "refused %s: %s",
                         netsrv__net_text(&a, text, sizeof text), why);
    }
}

/* With a reset, so that the client knows at once and the port is free at once. */
static void netsrv__accept_refuse(int fd) {
    const struct linger now = {1, 0};
    netsrv__sys_setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    netsrv__sys_close(fd);
}

/* A connection that is not going to be one: everything taken for it is given back. */
static void netsrv__accept_drop(netsrv__worker *w, const netsrv__arrival *a) {
    netsrv__accept_refuse(a->fd);
    atomic_fetch_sub(&w->load, 1);
    netsrv__accept_release(w->srv, a->addr_slot);
}

/* Too late to be served if the stop's time is over. */
static bool netsrv__accept_open(netsrv__worker *w, const netsrv__arrival *a) {
    if (w->own.phase == NETSRV__FORCED) {
        netsrv__accept_log_refused(w, a->fd, &a->peer, "the server stops");
        return false;
    }
    if (!netsrv__conn_open(w, a)) {
        NETSRV__COUNT(w, no_memory, 1);
        return false;
    }
    return true;
}

static void netsrv__accept_open_here(netsrv__worker *w, const netsrv__arrival *a) {
    if (!netsrv__accept_open(w, a)) {
        netsrv__accept_drop(w, a);
    }
}

/* Registers the descriptor in the other worker's poller. From then on neither it nor the arrival is
 * ours: the other thread may have closed and freed both before this one runs again. */
static bool netsrv__accept_give(netsrv__worker *w, netsrv__worker *to, const netsrv__arrival *a) {
    netsrv__arrival *copy = netsrv__mem_alloc(w->cfg, sizeof *copy);
    if (copy == NULL) {
        return false;
    }
    *copy = *a;
    copy->registered = true;
    if (netsrv__mailbox_give(to, copy) != 0) {
        netsrv__mem_free(w->cfg, copy, sizeof *copy);
        return false;
    }
    return true;
}

static bool netsrv__accept_hand_over(netsrv__worker *w, netsrv__worker *to,
                                     const netsrv__arrival *a, bool force) {
    netsrv__msg msg;
    if (w->cfg->transfer == NETSRV_TRANSFER_DIRECT && netsrv__accept_give(w, to, a)) {
        return true;
    }
    memset(&msg, 0, sizeof msg);
    msg.kind = NETSRV__MSG_ARRIVAL;
    msg.as.arrival = *a;
    return netsrv__mailbox_post(to, &msg, force) == NETSRV_OK;
}

/* Counts the connection where it goes before it goes there, so that a burst does not see an empty
 * worker twice. A full mailbox: it stays here; an acceptor, which has no "here", overfills it. */
static void netsrv__accept_place(netsrv__worker *w, const netsrv__arrival *a) {
    netsrv_server *srv = w->srv;
    const bool stopping = atomic_load_explicit(&srv->stop_at, memory_order_relaxed) != 0;
    netsrv__worker *to = w;
    if (!stopping || !w->serves) {
        to = &srv->workers[srv->place->pick(srv, w, a)];
    }
    atomic_fetch_add(&to->load, 1);
    if (to == w) {
        netsrv__accept_open_here(w, a);
        return;
    }
    if (netsrv__accept_hand_over(w, to, a, !w->serves)) {
        NETSRV__COUNT(w, given, 1);
        return;
    }
    if (!w->serves) {
        NETSRV__COUNT(w, no_memory, 1);
        netsrv__accept_drop(to, a);
        return;
    }
    atomic_fetch_sub(&to->load, 1);
    atomic_fetch_add(&w->load, 1);
    NETSRV__COUNT(w, kept_full, 1);
    netsrv__accept_open_here(w, a);
}

/* A descriptor whose place under max_conns is reserved. */
static void netsrv__accept_on_fd(netsrv__worker *w, unsigned gate, int fd,
                                 const netsrv__addr *peer) {
    netsrv__arrival a;
    NETSRV__COUNT(w, accepted, 1);
    memset(&a, 0, sizeof a);
    a.fd = fd;
    a.listener = gate;
    a.peer = *peer;
    if (!netsrv__accept_admit_address(w->srv, &a)) {
        netsrv__accept_log_refused(w, fd, peer, "max_conns_per_address is reached");
        netsrv__accept_refuse(fd);
        netsrv__accept_release(w->srv, NETSRV__NO_SLOT);
        return;
    }
    netsrv__accept_place(w, &a);
}

/* ---- accepting ---- */

typedef enum netsrv__accept_end {
    NETSRV__BATCH_DRAINED, /* nothing was left               */
    NETSRV__BATCH_LIMIT,   /* there may be more              */
    NETSRV__BATCH_PAUSED   /* and there will be no event now */
} netsrv__accept_end;

static netsrv__accept_end netsrv__accept_failed(netsrv__worker *w, unsigned gate, int sys_errno) {
    switch (netsrv__net_accept_verdict(sys_errno)) {
    case NETSRV__ACCEPT_DRAINED:
        return NETSRV__BATCH_DRAINED;
    case NETSRV__ACCEPT_RETRY:
        NETSRV__COUNT(w, accept_errors, 1);
        if (++w->own.accept_failures < NETSRV__ACCEPT_FAILURES) {
            return NETSRV__BATCH_LIMIT;
        }
        w->own.accept_failures = 0;
        netsrv__accept_pause(w, gate, NETSRV__RETRY_MS, sys_errno, NETSRV__PAUSED_RESOURCE);
        return NETSRV__BATCH_PAUSED;
    case NETSRV__ACCEPT_RESOURCE:
        netsrv__accept_pause(w, gate, NETSRV__RETRY_MS, sys_errno, NETSRV__PAUSED_RESOURCE);
        return NETSRV__BATCH_PAUSED;
    case NETSRV__ACCEPT_BROKEN:
    default:
        netsrv__accept_pause(w, gate, 10 * NETSRV__RETRY_MS, sys_errno, NETSRV__PAUSED_RESOURCE);
        return NETSRV__BATCH_PAUSED;
    }
}

static void netsrv__accept_new(netsrv__worker *w, unsigned gate, int fd, const netsrv__addr *peer,
                               bool reserved) {
    w->own.accept_failures = 0;
    if (!reserved && !netsrv__accept_reserve(w->srv)) {
        NETSRV__COUNT(w, accepted, 1);
        netsrv__accept_log_refused(w, fd, peer, "max_conns is reached");
        netsrv__accept_refuse(fd);
        return;
    }
    netsrv__accept_on_fd(w, gate, fd, peer);
}

/* One accept(2). LIMIT means that it is worth another. */
static netsrv__accept_end netsrv__accept_one(netsrv__worker *w, unsigned gate, int listen_fd,
                                             bool reserved) {
    struct sockaddr_storage sa;
    socklen_t n = sizeof sa;
    sa.ss_family = AF_UNSPEC; /* an unnamed unix client leaves it as it is on some systems */
    const int fd = netsrv__sys_accept(listen_fd, &sa, &n);
    if (fd < 0) {
        const int saved = errno;
        if (reserved) {
            netsrv__accept_return(w->srv);
        }
        return netsrv__accept_failed(w, gate, saved);
    }
    const netsrv__addr peer = netsrv__net_addr(&sa);
    netsrv__accept_new(w, gate, fd, &peer, reserved);
    return NETSRV__BATCH_LIMIT;
}

/* Whether the next accept may be made; if not, the listener is paused. Where clients wait at
 * max_conns, the place is taken before the accept; where they are refused, after it, or threads
 * that find nobody to accept would hold places against one that does. */
static bool netsrv__accept_may(netsrv__worker *w, unsigned gate, bool *reserved) {
    *reserved = w->cfg->overflow == NETSRV_OVERFLOW_WAIT;
    if (*reserved && !netsrv__accept_reserve(w->srv)) {
        netsrv__accept_pause_full(w, gate);
        return false;
    }
    const uint32_t wait_ms = netsrv__accept_rate_wait(w);
    if (wait_ms == 0) {
        return true;
    }
    if (*reserved) {
        netsrv__accept_return(w->srv);
    }
    netsrv__accept_pause(w, gate, wait_ms, 0, NETSRV__PAUSED_RATE);
    return false;
}

/* Accepts until nothing is left, or accepts_per_turn. */
static netsrv__accept_end netsrv__accept_batch(netsrv__worker *w, unsigned gate) {
    netsrv__accept_end end = NETSRV__BATCH_LIMIT;
    NETSRV__ASSERT_OWNER(w);
    for (uint32_t i = 0; i < w->cfg->accepts_per_turn && end == NETSRV__BATCH_LIMIT; i++) {
        bool reserved;
        if (!netsrv__accept_may(w, gate, &reserved)) {
            return NETSRV__BATCH_PAUSED;
        }
        end = netsrv__accept_one(w, gate, w->group->gates[gate].fd, reserved);
        if (end != NETSRV__BATCH_LIMIT) {
            netsrv__accept_rate_refund(w);
        }
    }
    return end;
}

#if NETSRV__HAS_COMPLETIONS
static void netsrv__accept_give_up(netsrv__worker *w, bool reserved) {
    if (reserved) {
        netsrv__accept_return(w->srv);
    }
    netsrv__accept_rate_refund(w);
}

/* The address of one that the kernel accepted on its own: now if the server has a use for it, or
 * if callbacks elsewhere may ask when the socket is disconnected already. The program can ask the
 * socket itself. False if nothing can be said of it. */
static bool netsrv__accept_peer(const netsrv_server *srv, int fd, netsrv__addr *peer) {
    if (srv->cfg.max_conns_per_address != NETSRV_OFF || srv->cfg.stuck_ms != NETSRV_OFF ||
        srv->pool != NULL || srv->cfg.place == NETSRV_PLACE_PEER_HASH ||
        srv->cfg.place == NETSRV_PLACE_CUSTOM) {
        return netsrv__net_peer(fd, peer);
    }
    memset(peer, 0, sizeof *peer);
    peer->family = NETSRV__ADDR_UNASKED;
    return true;
}

/* One that the kernel accepted on its own. False if the listener is paused instead: later, then. */
static bool netsrv__accept_offer(netsrv__worker *w, unsigned gate, int fd) {
    netsrv__addr peer;
    bool reserved;
    NETSRV__ASSERT_OWNER(w);
    if (!netsrv__accept_may(w, gate, &reserved)) {
        return false;
    }
    if (netsrv__sys_accepted(fd) < 0) {
        const int saved = errno;
        netsrv__accept_give_up(w, reserved);
        netsrv__accept_failed(w, gate, saved);
        return false;
    }
    if (!netsrv__accept_peer(w->srv, fd, &peer)) { /* no limit could be kept for it */
        NETSRV__COUNT(w, accept_errors, 1);
        netsrv__accept_give_up(w, reserved);
        netsrv__accept_refuse(fd);
        return true;
    }
    netsrv__accept_new(w, gate, fd, &peer, reserved);
    return true;
}

/* The same at a stop, at which nothing is paused. */
static void netsrv__accept_late(netsrv__worker *w, unsigned gate, int fd) {
    netsrv__addr peer;
    if (netsrv__sys_accepted(fd) < 0 || !netsrv__accept_peer(w->srv, fd, &peer)) {
        NETSRV__COUNT(w, accept_errors, 1);
        netsrv__accept_refuse(fd);
        return;
    }
    netsrv__accept_new(w, gate, fd, &peer, false);
}
#endif

/* At a stop: every connection whose handshake is done is taken and served. Nobody else here watches
 * the sockets any more. Those that other processes hold, too: where a kernel wakes only one of
 * those who wait, it may have been us, and the others would be woken for the next one only. */
static void netsrv__accept_sweep(netsrv__worker *w) {
    netsrv_server *srv = w->srv;
    for (unsigned i = 0; i < srv->listener_count; i++) {
        const netsrv__listener *ln = &srv->listeners[i];
        for (unsigned k = 0; k < ln->fd_count; k++) {
            /* No more than can have been waiting, or an endless stream would hold up the stop. */
            uint64_t left = (uint64_t)srv->cfg.backlog_count + 64;
            netsrv__accept_end end = NETSRV__BATCH_LIMIT;
            while (end == NETSRV__BATCH_LIMIT && left-- > 0 && netsrv__accept_reserve(srv)) {
                end = netsrv__accept_one(w, i, ln->fds[k], true);
            }
        }
    }
}

/* ---- on the other worker ---- */

/* When the time of a stop is over: arrivals that its poller has not reported are not waited for. */
static void netsrv__accept_drop_given(netsrv__worker *w) {
    netsrv__arrival *a;
    while ((a = netsrv__mailbox_take_given(&w->mailbox)) != NULL) {
        netsrv__accept_log_refused(w, a->fd, &a->peer, "the server stops");
        w->io->forget(w, a->fd);
        netsrv__accept_drop(w, a);
        netsrv__mem_free(w->cfg, a, sizeof *a);
    }
}

static void netsrv__accept_on_message(netsrv__worker *w, const netsrv__arrival *a) {
    NETSRV__COUNT(w, received, 1);
    netsrv__accept_open_here(w, a);
}

/* ========================================================================== *
 *  [watch] The program's own descriptors on a worker's loop
 *  uses:   mem sys pulse
 *  thread: owner
 * ========================================================================== */

static uint64_t netsrv__watch_token(const netsrv__worker *w, const netsrv__watch *x) {
    const uint64_t slot = (uint64_t)(x - w->own.watches.at);
    return (uint64_t)x->gen << 32 | slot << 3 | NETSRV__TOKEN_WATCH;
}

static netsrv_watch_id netsrv__watch_id(const netsrv__worker *w, const netsrv__watch *x) {
    const uint64_t slot = (uint64_t)(x - w->own.watches.at);
    return (uint64_t)x->gen << 32 | (uint64_t)w->index << 22 | slot;
}

/* NULL if there is none of that generation. */
static netsrv__watch *netsrv__watch_find(netsrv__worker *w, uint32_t slot, uint32_t gen) {
    netsrv__watch *x = slot < w->own.watches.count ? &w->own.watches.at[slot] : NULL;
    return x != NULL && x->gen == gen && gen != 0 ? x : NULL;
}

static netsrv__watch *netsrv__watch_of_id(netsrv__worker *w, netsrv_watch_id id) {
    netsrv__watch *x = netsrv__watch_find(w, (uint32_t)id & (NETSRV__SLAB_MAX - 1),
                                          (uint32_t)(id >> 32));
    return x != NULL && x->fn != NULL ? x : NULL;
}

static bool netsrv__watch_grow(netsrv__worker *w) {
    netsrv__watches *all = &w->own.watches;
    const uint32_t cap = all->cap == 0 ? 8 : all->cap * 2;
    if (cap > NETSRV__SLAB_MAX) {
        return false;
    }
    netsrv__watch *at = netsrv__mem_resize(w->cfg, all->at, all->cap * sizeof *at,
                                           cap * sizeof *at);
    if (at == NULL) {
        return false;
    }
    all->at = at;
    all->cap = cap;
    return true;
}

/* A slot with a generation of its own and nothing else; NULL without memory. */
static netsrv__watch *netsrv__watch_new(netsrv__worker *w) {
    netsrv__watches *all = &w->own.watches;
    const uint32_t slot = all->free != 0 ? all->free - 1 : all->count;
    if (slot == all->cap && !netsrv__watch_grow(w)) {
        return NULL;
    }
    netsrv__watch *x = &all->at[slot];
    if (slot == all->count) {
        all->count++;
    } else {
        all->free = x->next;
    }
    memset(x, 0, sizeof *x);
    w->watch_gen += w->watch_gen + 1 != 0 ? 1 : 2;
    x->gen = w->watch_gen;
    return x;
}

/* The slot is free after this turn. */
static void netsrv__watch_free(netsrv__worker *w, netsrv__watch *x) {
    x->gen = 0;
    x->next = w->own.watches.left;
    w->own.watches.left = (uint32_t)(x - w->own.watches.at) + 1;
}

/* Lets go of it in the backend, then of the duplicate: an item of a poller outlives the descriptor
 * by which it was made as long as the program has the file open. If the backend does not let go,
 * the next event tries again. */
static int netsrv__watch_drop(netsrv__worker *w, netsrv__watch *x) {
    x->fn = NULL;
    x->wanted = 0;
    const int error = w->io->watch(w, x);
    if (error == 0) {
        netsrv__sys_close(x->fd);
        netsrv__watch_free(w, x);
    }
    return error;
}

/* Watches `fd`, which is ours from now on, also if this fails; *id is 0 then. 0 or errno. */
static int netsrv__watch_add(netsrv__worker *w, int fd, netsrv__watch settings,
                             netsrv_watch_id *id) {
    netsrv__watch *x = netsrv__watch_new(w);
    *id = 0;
    if (x == NULL) {
        netsrv__sys_close(fd);
        return ENOMEM;
    }
    settings.gen = x->gen;
    settings.fd = fd;
    *x = settings;
    const int error = w->io->watch(w, x);
    if (error != 0) {
        netsrv__watch_drop(w, x);
        return error;
    }
    *id = netsrv__watch_id(w, x);
    return 0;
}

/* For a descriptor that lives on: nothing of it is left here, nor, if 0 is returned, in the
 * backend; else the caller closes it. */
static int netsrv__watch_release(netsrv__worker *w, netsrv__watch *x) {
    x->fn = NULL;
    x->wanted = 0;
    const int error = w->io->watch(w, x);
    netsrv__watch_free(w, x);
    return error;
}

static int netsrv__watch_change(netsrv__worker *w, netsrv__watch *x, unsigned mask) {
    x->wanted = (uint16_t)mask;
    return w->io->watch(w, x);
}

/* Backends report here; the table may have grown or shrunk when the program returns. */
static void netsrv__watch_on_event(netsrv__worker *w, uint64_t token, uint32_t mask) {
    netsrv__watch *x = netsrv__watch_find(w, (uint32_t)token >> 3, (uint32_t)(token >> 32));
    NETSRV__ASSERT_OWNER(w);
    if (x == NULL) {
        NETSRV__COUNT(w, stale, 1);
        return;
    }
    if (x->fn == NULL) {
        netsrv__watch_drop(w, x);
        return;
    }
    if (x->wanted == 0) {
        w->io->watch(w, x); /* late, or the backend did not obey */
        return;
    }
    unsigned ready = mask & x->wanted;
    if ((mask & ~(uint32_t)(NETSRV__IN | NETSRV__OUT)) != 0) {
        ready = x->wanted | NETSRV_HUNG_UP;
    }
    if (ready != 0) {
        netsrv__pulse_begin(w, NETSRV__ACT_WATCH, (netsrv_id)x->told_fd, NULL);
        x->fn(w->srv, w->index, x->told_fd, ready, x->arg);
        netsrv__pulse_end(w);
    }
}

/* At the end of a turn: slots may be used again when no event of the batch can name them. */
static void netsrv__watch_bury(netsrv__worker *w) {
    netsrv__watches *all = &w->own.watches;
    while (all->left != 0) {
        netsrv__watch *x = &all->at[all->left - 1];
        const uint32_t next = x->next;
        x->next = all->free;
        all->free = all->left;
        all->left = next;
    }
}

/* At the end of the thread. */
static void netsrv__watch_discard(netsrv__worker *w) {
    netsrv__watches *all = &w->own.watches;
    for (uint32_t slot = 0; slot < all->count; slot++) {
        netsrv__watch *x = &all->at[slot];
        if (x->gen != 0 && netsrv__watch_drop(w, x) != 0) {
            netsrv__sys_close(x->fd); /* the poller itself is closed next */
        }
    }
    netsrv__mem_free(w->cfg, all->at, all->cap * sizeof *all->at);
    memset(all, 0, sizeof *all);
}

/* ========================================================================== *
 *  [resolve] Names to addresses, on threads of their own
 *  uses:   mem util sys mailbox
 *  thread: start = owner; main = a resolver's
 * ========================================================================== */

/* The next name; NULL when there is none, and this thread's end is reported. */
static netsrv__dial *netsrv__resolve_next(netsrv_server *srv, unsigned slot) {
    netsrv__resolver *r = &srv->resolver;
    netsrv__dial *d = NULL;
    pthread_mutex_lock(&srv->lock);
    if (r->queued != 0) {
        d = (netsrv__dial *)(void *)((char *)r->queue.next - offsetof(netsrv__dial, link));
        netsrv__util_list_remove(&d->link);
        r->queued--;
    } else {
        r->slots[slot].running = false;
        srv->alive--;
        pthread_cond_broadcast(&srv->changed);
    }
    pthread_mutex_unlock(&srv->lock);
    return d;
}

/* Back to the worker; not if it has left, or nobody waits for the address any more. */
static void netsrv__resolve_one(netsrv_server *srv, netsrv__dial *d) {
    netsrv__worker *w = d->worker;
    netsrv__msg msg;
    const uint32_t stop_at = atomic_load(&srv->stop_at);
    const bool stopping = stop_at != 0 && stop_at != NETSRV__DRAIN;
    if (netsrv__sys_now_ms() < d->deadline_ms && !stopping) {
        const int n = netsrv__sys_resolve(d->host, d->port, d->targets, d->lengths,
                                          NETSRV__TARGETS);
        d->count = n > 0 ? (unsigned)n : 0;
    }
    memset(&msg, 0, sizeof msg);
    msg.kind = NETSRV__MSG_CALL;
    msg.as.call.fn = d->resolved;
    msg.as.call.arg = d;
    if (netsrv__mailbox_post(w, &msg, true) != NETSRV_OK) {
        netsrv__mem_free(w->cfg, d, sizeof *d);
    }
}

typedef struct netsrv__resolve_job {
    netsrv_server *srv;
    unsigned slot;
} netsrv__resolve_job;

static void *netsrv__resolve_main(void *arg) {
    const netsrv__resolve_job job = *(netsrv__resolve_job *)arg;
    netsrv__dial *d;
    netsrv__mem_free(&job.srv->cfg, arg, sizeof job);
    netsrv__sys_thread_name("netsrv-names");
    while ((d = netsrv__resolve_next(job.srv, job.slot)) != NULL) {
        netsrv__resolve_one(job.srv, d);
    }
    return NULL;
}

/* One more thread. 0 or errno. Under the lock. */
static int netsrv__resolve_spawn(netsrv_server *srv, unsigned slot) {
    netsrv__resolver *r = &srv->resolver;
    netsrv__resolve_job *job = netsrv__mem_alloc(&srv->cfg, sizeof *job);
    if (job == NULL) {
        return ENOMEM;
    }
    if (r->slots[slot].joinable) {
        pthread_join(r->slots[slot].thread, NULL); /* has reported its end */
        r->slots[slot].joinable = false;
    }
    job->srv = srv;
    job->slot = slot;
    const int error = netsrv__sys_thread_create(&r->slots[slot].thread, 0,
                                                netsrv__resolve_main, job);
    if (error != 0) {
        netsrv__mem_free(&srv->cfg, job, sizeof *job);
        return error;
    }
    r->slots[slot].running = true;
    r->slots[slot].joinable = true;
    srv->alive++;
    return 0;
}

/* Under the lock: a thread for what waits, while there may be more. An error counts only if nobody
 * else will come to take the name. */
static int netsrv__resolve_staff(netsrv_server *srv) {
    unsigned running = 0;
    unsigned free = NETSRV__RESOLVERS;
    for (unsigned i = 0; i < NETSRV__RESOLVERS; i++) {
        running += srv->resolver.slots[i].running;
        free = srv->resolver.slots[i].running ? free : i;
    }
    const int error = free < NETSRV__RESOLVERS ? netsrv__resolve_spawn(srv, free) : 0;
    return running != 0 ? 0 : error;
}

/* Takes the dial over; it comes back through d->resolved. 0, EAGAIN: too many wait; or errno. */
static int netsrv__resolve_start(netsrv_server *srv, netsrv__dial *d) {
    netsrv__resolver *r = &srv->resolver;
    int error = EAGAIN;
    pthread_mutex_lock(&srv->lock);
    if (r->queued < NETSRV__LOOKUPS) {
        error = netsrv__resolve_staff(srv);
    }
    if (error == 0) {
        netsrv__util_list_append(&r->queue, &d->link);
        r->queued++;
    }
    pthread_mutex_unlock(&srv->lock);
    return error;
}

/* ========================================================================== *
 *  [dial] Connections to others
 *  uses:   mem util sys net conn watch resolve
 *  thread: owner
 * ========================================================================== */

/* The connection that waits for it, or NULL. */
static netsrv_conn *netsrv__dial_conn(netsrv__worker *w, const netsrv__dial *d) {
    netsrv_conn *c = netsrv__conn_of_id(w, d->id);
    return c != NULL && c->state == NETSRV__DIALING ? c : NULL;
}

/* Takes the descriptor out of the loop and gives it back; -1 if that did not work, and it is
 * closed. */
static int netsrv__dial_take_fd(netsrv__worker *w, netsrv__dial *d) {
    const int fd = d->fd;
    netsrv__watch *x = netsrv__watch_of_id(w, d->watch);
    const int error = x != NULL ? netsrv__watch_release(w, x) : 0;
    d->fd = -1;
    d->watch = 0;
    if (error != 0) {
        d->sys_errno = error;
        netsrv__sys_close(fd);
        return -1;
    }
    return fd;
}

/* Closes and frees. */
static void netsrv__dial_end(netsrv__worker *w, netsrv__dial *d) {
    const int fd = d->fd >= 0 ? netsrv__dial_take_fd(w, d) : -1;
    if (fd >= 0) {
        netsrv__sys_close(fd);
    }
    if (d->link.next != NULL) {
        netsrv__util_list_remove(&d->link);
    }
    netsrv__mem_free(w->cfg, d, sizeof *d);
}

/* A port of this machine on which nobody listens may be given to the very socket that dials it. */
static bool netsrv__dial_reached_itself(int fd, const netsrv__addr *peer) {
    struct sockaddr_storage sa;
    socklen_t n = sizeof sa;
    if (peer->port == 0 || netsrv__sys_local(fd, &sa, &n) != 0) {
        return false;
    }
    const netsrv__addr self = netsrv__net_addr(&sa);
    return self.family == peer->family && self.port == peer->port &&
           memcmp(self.ip, peer->ip, sizeof self.ip) == 0;
}

/* A socket on its way; -1 and errno. One that is through at once is told by the loop as well. */
static int netsrv__dial_connect(netsrv__worker *w, const struct sockaddr_storage *sa,
                                socklen_t n) {
    const int fd = netsrv__sys_socket(sa->ss_family);
    if (fd < 0) {
        return -1;
    }
    if (sa->ss_family != AF_UNIX) {
        netsrv__net_tune_any(w->cfg, fd);
    }
    if (netsrv__sys_connect(fd, sa, n) != 0 && errno != EINPROGRESS && errno != EINTR) {
        const int saved = errno;
        netsrv__sys_close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

/* The next address that can be tried. False when none is left. */
static bool netsrv__dial_next(netsrv__worker *w, netsrv__dial *d, netsrv_watch_fn *fn) {
    netsrv__watch settings;
    memset(&settings, 0, sizeof settings);
    settings.fn = fn;
    settings.arg = d;
    settings.wanted = NETSRV__OUT;
    while (d->at < d->count) {
        const unsigned at = d->at++;
        const int fd = netsrv__dial_connect(w, &d->targets[at], d->lengths[at]);
        d->sys_errno = fd < 0 ? errno : netsrv__watch_add(w, fd, settings, &d->watch);
        if (d->sys_errno == 0) {
            d->fd = fd;
            return true;
        }
    }
    return false;
}

/* No address at a stop may mean that none was looked for. */
static void netsrv__dial_failed(netsrv__worker *w, netsrv_conn *c, const netsrv__dial *d) {
    const uint32_t stop_at = atomic_load(&w->srv->stop_at);
    const bool stopping = stop_at != 0 && stop_at != NETSRV__DRAIN;
    const netsrv_close_reason none = stopping ? NETSRV_CLOSE_STOP : NETSRV_CLOSE_NOT_RESOLVED;
    netsrv__conn_end(w, c, d->sys_errno != 0 ? NETSRV_CLOSE_ERROR : none, d->sys_errno);
}

/* Why it is not connected; 0 if it is. A poller may have taken the errno from the socket. */
static int netsrv__dial_error(int fd, unsigned ready) {
    const int error = netsrv__sys_socket_error(fd);
    if (error == 0 && (ready & NETSRV_HUNG_UP) != 0 && netsrv__sys_peer(fd) != 0) {
        return ECONNREFUSED;
    }
    return error;
}

/* Writable: connected, or refused. */
static void netsrv__dial_on_ready(netsrv_server *s, unsigned worker, int fd, unsigned ready,
                                  void *arg) {
    netsrv__worker *w = &s->workers[worker];
    netsrv__dial *d = arg;
    netsrv_conn *c = netsrv__dial_conn(w, d);
    (void)fd;
    const netsrv__addr peer = netsrv__net_addr(&d->targets[d->at - 1]);
    const int connected = netsrv__dial_take_fd(w, d);
    if (connected >= 0) {
        d->sys_errno = netsrv__dial_error(connected, ready);
    }
    if (c != NULL && d->sys_errno == 0 && !netsrv__dial_reached_itself(connected, &peer)) {
        netsrv__dial_end(w, d);
        netsrv__conn_connected(w, c, connected, &peer);
        return;
    }
    if (connected >= 0) {
        netsrv__sys_close(connected);
    }
    d->sys_errno = d->sys_errno != 0 ? d->sys_errno : ECONNREFUSED;
    if (c != NULL && netsrv__dial_next(w, d, netsrv__dial_on_ready)) {
        return;
    }
    if (c != NULL) {
        netsrv__dial_failed(w, c, d);
    }
    netsrv__dial_end(w, d);
}

/* With its addresses, or none. */
static void netsrv__dial_on_resolved(netsrv_server *s, unsigned worker, void *arg) {
    netsrv__worker *w = &s->workers[worker];
    netsrv__dial *d = arg;
    netsrv_conn *c = netsrv__dial_conn(w, d);
    if (c != NULL && netsrv__dial_next(w, d, netsrv__dial_on_ready)) {
        netsrv__util_list_append(&w->own.dials, &d->link);
        return;
    }
    if (c != NULL) {
        netsrv__dial_failed(w, c, d);
    }
    netsrv__dial_end(w, d);
}

/* What is to be dialed; NULL without memory. */
static netsrv__dial *netsrv__dial_new(netsrv__worker *w, const netsrv__listener *to,
                                      const char *spec, bool name) {
    netsrv__dial *d = netsrv__mem_zeroed(w->cfg, 1, sizeof *d);
    if (d == NULL) {
        return NULL;
    }
    d->worker = w;
    d->fd = -1;
    d->resolved = netsrv__dial_on_resolved;
    if (name) {
        const char *colon = strrchr(spec, ':');
        memcpy(d->host, spec, (size_t)(colon - spec));
        snprintf(d->port, sizeof d->port, "%s", colon + 1);
    } else {
        d->count = 1;
        d->targets[0] = to->sa;
        d->lengths[0] = to->sa_len;
    }
    return d;
}

/* Begins; what fails from here on is told to on_close. */
static void netsrv__dial_start(netsrv__worker *w, netsrv_conn *c, netsrv__dial *d) {
    d->id = netsrv__conn_id(c);
    d->deadline_ms = c->limit_ms != 0 ? c->limit_ms : UINT64_MAX;
    c->peer = netsrv__net_addr(&d->targets[0]);
    if (d->count != 0) {
        netsrv__dial_on_resolved(w->srv, w->index, d);
        return;
    }
    const int error = netsrv__resolve_start(w->srv, d);
    if (error != 0) {
        d->sys_errno = error;
        netsrv__dial_failed(w, c, d);
        netsrv__dial_end(w, d);
    }
}

/* The sockets of connections that have ended before they were open. */
static void netsrv__dial_sweep(netsrv__worker *w) {
    netsrv__link *at = w->own.dials.next;
    w->own.dials_stale = false;
    while (at != &w->own.dials) {
        netsrv__dial *d = (netsrv__dial *)(void *)((char *)at - offsetof(netsrv__dial, link));
        at = at->next;
        if (netsrv__dial_conn(w, d) == NULL) {
            netsrv__dial_end(w, d);
        }
    }
}

/* ========================================================================== *
 *  [epoll] Readiness poller of Linux
 *  uses:   sys mailbox
 *  thread: set = any; the rest = a member of the group
 * ========================================================================== */

#if NETSRV__HAS_EPOLL

/* EPOLLEXCLUSIVE came with Linux 4.5, and some that look like Linux lack it still. */
static bool netsrv__epoll_has_exclusive(int ep) {
    struct epoll_event event;
    netsrv__wake wake;
    if (netsrv__mailbox_wake_open(&wake) != 0) {
        return true; /* lack of descriptors says nothing about it */
    }
    memset(&event, 0, sizeof event);
    event.events = (uint32_t)EPOLLIN | (uint32_t)EPOLLEXCLUSIVE;
    const int r = netsrv__sys_epoll_ctl(ep, EPOLL_CTL_ADD, wake.read_fd, &event);
    const bool has = r == 0 || errno != EINVAL;
    netsrv__mailbox_wake_close(&wake);
    return has;
}

static int netsrv__epoll_probe(unsigned *can) {
    const int ep = netsrv__sys_epoll_create();
    if (ep < 0) {
        return errno;
    }
    if (!netsrv__epoll_has_exclusive(ep)) {
        *can &= ~(unsigned)NETSRV__CAN_EXCLUSIVE;
    }
    netsrv__sys_close(ep);
    return 0;
}

static int netsrv__epoll_open(netsrv_server *srv, netsrv__group *g) {
    (void)srv;
    g->poller_fd = netsrv__sys_epoll_create();
    return g->poller_fd >= 0 ? 0 : errno;
}

static void netsrv__epoll_close(netsrv_server *srv, netsrv__group *g) {
    (void)srv;
    if (g->poller_fd >= 0) {
        netsrv__sys_close(g->poller_fd);
        g->poller_fd = -1;
    }
}

static int netsrv__epoll_set(netsrv__group *g, int fd, uint64_t token, unsigned from,
                             unsigned to) {
    struct epoll_event event;
    const int op = from == 0 ? EPOLL_CTL_ADD : to == 0 ? EPOLL_CTL_DEL : EPOLL_CTL_MOD;
    memset(&event, 0, sizeof event);
    event.data.u64 = token;
    event.events = to & (NETSRV__IN | NETSRV__OUT);
    event.events |= (to & NETSRV__EDGE) != 0 ? (uint32_t)EPOLLET : 0;
    event.events |= (to & NETSRV__ONESHOT) != 0 ? (uint32_t)EPOLLONESHOT : 0;
    event.events |= (to & NETSRV__EXCLUSIVE) != 0 ? (uint32_t)EPOLLEXCLUSIVE : 0;
    return netsrv__sys_epoll_ctl(g->poller_fd, op, fd, &event) == 0 ? 0 : errno;
}

static int netsrv__epoll_wait(netsrv__worker *w, int timeout_ms) {
    const struct epoll_event *from = w->own.raw_events;
    netsrv__event *to = w->own.events;
    const int n = netsrv__sys_epoll_wait(w->group->poller_fd, w->own.raw_events,
                                         (int)w->cfg->events_per_wait, timeout_ms);
    for (int i = 0; i < n; i++) {
        to[i].token = from[i].data.u64;
        to[i].mask = from[i].events;
    }
    return n;
}

static const netsrv__poller_ops netsrv__epoll_poller = {
    .raw_bytes = sizeof(struct epoll_event),
    .open = netsrv__epoll_open,
    .close = netsrv__epoll_close,
    .set = netsrv__epoll_set,
    .wait = netsrv__epoll_wait,
};

#endif /* NETSRV__HAS_EPOLL */

/* ========================================================================== *
 *  [kqueue] Readiness poller of macOS and the BSDs
 *  uses:   sys slab
 *  thread: set = any; the rest = a member of the group
 * ========================================================================== */

#if NETSRV__HAS_KQUEUE

/* ---- names: an event brings back a pointer, and a token has 64 bits ---- */

#if UINTPTR_MAX > UINT32_MAX
static uint64_t netsrv__kqueue_fold(uint64_t token) {
    return token;
}

static uint64_t netsrv__kqueue_unfold(const netsrv__worker *w, uint64_t name) {
    (void)w;
    return name;
}
#else
/* Seven bits of the generation are left beside the slot, and suffice: a knote is deleted before its
 * descriptor is closed and takes its pending events along, and a slot is reused after the batch at
 * the earliest. So what is late is one generation late, never 128. */
#define NETSRV__KQUEUE_SLOT_BITS 25
_Static_assert((uint64_t)NETSRV__SLAB_MAX << 3 == UINT64_C(1) << NETSRV__KQUEUE_SLOT_BITS,
               "slot and kind fill the low bits of a name");

static uint64_t netsrv__kqueue_fold(uint64_t token) {
    const uint32_t gen = (uint32_t)(token >> 32);
    return (uint32_t)token | gen << NETSRV__KQUEUE_SLOT_BITS;
}

static uint64_t netsrv__kqueue_unfold(const netsrv__worker *w, uint64_t name) {
    const uint32_t low = (uint32_t)name & ((1u << NETSRV__KQUEUE_SLOT_BITS) - 1);
    const unsigned kind = (unsigned)name & NETSRV__TOKEN_MASK;
    if (kind != NETSRV__TOKEN_CONN && kind != NETSRV__TOKEN_WATCH) {
        return name;
    }
    const uint32_t gen = kind == NETSRV__TOKEN_WATCH
                             ? w->own.watches.at[low >> 3].gen
                             : netsrv__slab_at(&w->own.slab, low >> 3)->gen;
    const uint32_t late = (gen ^ (uint32_t)name >> NETSRV__KQUEUE_SLOT_BITS) & 127u;
    return (uint64_t)(late != 0 ? gen - 1 : gen) << 32 | low;
}
#endif

/* ---- the queue ---- */

/* Some systems define EVFILT_USER and cannot do it (NetBSD before 10, OpenBSD before 7.8), so it is
 * tried. */
static bool netsrv__kqueue_has_user(int kq) {
    struct kevent event = netsrv__sys_kevent(0, EVFILT_READ, 0, 0);
    return netsrv__sys_kqueue_user(kq, &event, false) == 0 &&
           netsrv__sys_kqueue_user(kq, &event, true) == 0 &&
           netsrv__sys_kevent_wait(kq, &event, 1, 0) == 1;
}

static int netsrv__kqueue_probe(unsigned *can) {
    const int kq = netsrv__sys_kqueue();
    if (kq < 0) {
        return errno;
    }
    if (!netsrv__kqueue_has_user(kq)) {
        *can &= ~(unsigned)NETSRV__CAN_WAKE;
    }
    netsrv__sys_close(kq);
    return 0;
}

static int netsrv__kqueue_open(netsrv_server *srv, netsrv__group *g) {
    g->poller_fd = netsrv__sys_kqueue();
    if (g->poller_fd < 0) {
        return errno;
    }
    if ((srv->can & NETSRV__CAN_WAKE) != 0 &&
        netsrv__sys_kqueue_user(g->poller_fd, &g->wake, false) == 0) {
        atomic_store_explicit(&g->wake.queue_fd, g->poller_fd, memory_order_release);
    }
    return 0;
}

static void netsrv__kqueue_close(netsrv_server *srv, netsrv__group *g) {
    (void)srv;
    atomic_store(&g->wake.queue_fd, -1);
    if (g->poller_fd >= 0) {
        netsrv__sys_close(g->poller_fd);
        g->poller_fd = -1;
    }
}

/* ---- interest ---- */

/* How the read filter is armed; 0 = not at all. With nothing armed, a queue is silent about a
 * reset: where neither input nor room for output is wanted, the filter stays as a sentinel that
 * speaks up once for each change. */
static unsigned netsrv__kqueue_read_flags(unsigned interest) {
    const unsigned wanted = interest & (NETSRV__IN | NETSRV__OUT);
    if (interest == 0 || wanted == NETSRV__OUT) {
        return 0;
    }
    if (wanted == 0 || (interest & NETSRV__EDGE) != 0) {
        return EV_ADD | EV_CLEAR;
    }
    return (interest & NETSRV__ONESHOT) != 0 ? EV_ADD | EV_DISPATCH : EV_ADD;
}

/* The same for the write filter. */
static unsigned netsrv__kqueue_write_flags(unsigned interest) {
    if ((interest & NETSRV__OUT) == 0) {
        return 0;
    }
    return (interest & NETSRV__ONESHOT) != 0 ? EV_ADD | EV_ONESHOT : EV_ADD;
}

/* The changes of one filter; how many. Adding once more would not change its flags, so it is
 * deleted first. The same flags again are those of a listener that was reported and is to be armed:
 * that is the only change of its list, and needs no receipt (libkqueue fails one that enables). */
static int netsrv__kqueue_change(struct kevent *list, struct kevent change, unsigned was,
                                 unsigned now) {
    int n = 0;
    if (was == now) {
        change.flags = NETSRV__KQ_FLAGS(EV_ENABLE);
        list[n] = change;
        return (now & EV_DISPATCH) != 0 ? 1 : 0;
    }
    if (was != 0) {
        change.flags = NETSRV__KQ_FLAGS(EV_DELETE | EV_RECEIPT);
        list[n++] = change;
    }
    if (now != 0) {
        change.flags = NETSRV__KQ_FLAGS(now | EV_RECEIPT);
        list[n++] = change;
    }
    return n;
}

/* Nothing is left in a list for later: by then the number may belong to another descriptor. A
 * change that was interrupted has been made. */
static int netsrv__kqueue_set(netsrv__group *g, int fd, uint64_t token, unsigned from,
                              unsigned to) {
    struct kevent list[4];
    const uint64_t name = netsrv__kqueue_fold(token);
    int n = netsrv__kqueue_change(list, netsrv__sys_kevent((uintptr_t)fd, EVFILT_READ, 0, name),
                                  netsrv__kqueue_read_flags(from), netsrv__kqueue_read_flags(to));
    n += netsrv__kqueue_change(list + n,
                               netsrv__sys_kevent((uintptr_t)fd, EVFILT_WRITE, 0, name),
                               netsrv__kqueue_write_flags(from), netsrv__kqueue_write_flags(to));
    const int receipts = n != 0 ? netsrv__sys_kevent_change(g->poller_fd, list, n) : 0;
    if (receipts < 0) {
        return errno == EINTR ? 0 : errno;
    }
    for (int i = 0; i < receipts; i++) {
        /* What is not there is deleted. */
        if ((list[i].flags & EV_ERROR) != 0 && list[i].data != 0 && list[i].data != ENOENT) {
            return (int)list[i].data;
        }
    }
    return 0;
}

/* ---- events ---- */

/* EV_EOF comes while input is still unread, and on the read filter it means the peer's FIN: input,
 * of which the end is the last. A hang-up, which ends both directions, shows in the errno, or where
 * there is something to write. */
static uint32_t netsrv__kqueue_mask(const struct kevent *k) {
    const bool reads = k->filter == NETSRV__KQ_FILTER(EVFILT_READ);
    const uint32_t mask = reads ? NETSRV__IN : NETSRV__OUT;
    if ((k->flags & EV_EOF) == 0) {
        return mask;
    }
    if (k->fflags != 0) {
        return mask | NETSRV__ERR | NETSRV__HUP | (uint32_t)k->fflags << NETSRV__ERRNO_SHIFT;
    }
    return reads ? mask : mask | NETSRV__HUP;
}

/* Adds to the events of the batch: both filters of a descriptor are one event. `seen` is a hash
 * table of their indices + 1, with size_mask + 1 places; returns the new count. */
static int netsrv__kqueue_merge(netsrv__event *events, int n, uint32_t *seen, uint32_t size_mask,
                                netsrv__event event) {
    uint32_t at = (uint32_t)(event.token * UINT64_C(0x9e3779b97f4a7c15) >> 32) & size_mask;
    while (seen[at] != 0 && events[seen[at] - 1].token != event.token) {
        at = (at + 1) & size_mask;
    }
    if (seen[at] == 0) {
        seen[at] = (uint32_t)n + 1;
        events[n] = event;
        return n + 1;
    }
    netsrv__event *first = &events[seen[at] - 1];
    const bool told = first->mask >> NETSRV__ERRNO_SHIFT != 0; /* two of them do not mix */
    first->mask |= told ? event.mask & ((1u << NETSRV__ERRNO_SHIFT) - 1) : event.mask;
    return n;
}

/* Both lists are scratch memory of netsrv__kqueue_poller.raw_bytes for each event. */
static int netsrv__kqueue_collect(netsrv__worker *w, const struct kevent *from, int count) {
    uint32_t *seen = (uint32_t *)((struct kevent *)w->own.raw_events + w->cfg->events_per_wait);
    uint32_t size = 2;
    int n = 0;
    while (size < 2 * (uint32_t)count) {
        size *= 2;
    }
    memset(seen, 0, size * sizeof *seen);
    for (int i = 0; i < count; i++) {
        const netsrv__event event = {
            netsrv__kqueue_unfold(w, (uint64_t)(uintptr_t)from[i].udata),
            netsrv__kqueue_mask(&from[i]),
        };
        if (event.token == NETSRV__TOKEN_WOKEN) {
            NETSRV__COUNT(w, wakes, 1); /* that was all: there is nothing to drain */
        } else {
            n = netsrv__kqueue_merge(w->own.events, n, seen, size - 1, event);
        }
    }
    return n;
}

static int netsrv__kqueue_wait(netsrv__worker *w, int timeout_ms) {
    const int n = netsrv__sys_kevent_wait(w->group->poller_fd, w->own.raw_events,
                                          (int)w->cfg->events_per_wait, timeout_ms);
    return n > 0 ? netsrv__kqueue_collect(w, w->own.raw_events, n) : n;
}

static const netsrv__poller_ops netsrv__kqueue_poller = {
    .raw_bytes = sizeof(struct kevent) + 4 * sizeof(uint32_t),
    .open = netsrv__kqueue_open,
    .close = netsrv__kqueue_close,
    .set = netsrv__kqueue_set,
    .wait = netsrv__kqueue_wait,
};

#endif /* NETSRV__HAS_KQUEUE */

/* ========================================================================== *
 *  [poll] Readiness poller of every POSIX system; also the reference for the others
 *  uses:   mem sys
 *  thread: the one member of the group
 * ========================================================================== */

typedef struct netsrv__pollset {
    const netsrv_config *cfg;
    struct pollfd *fds; /* dense */
    uint64_t *tokens;
    int *where; /* descriptor -> index in fds, or -1 */
    int count;
    int cap;
    int where_cap;
    int first; /* where the next scan begins, so that nobody is always last */
} netsrv__pollset;

static int netsrv__poll_probe(unsigned *can) {
    (void)can;
    return 0;
}

static int netsrv__poll_open(netsrv_server *srv, netsrv__group *g) {
    netsrv__pollset *p = netsrv__mem_zeroed(&srv->cfg, 1, sizeof *p);
    if (p == NULL) {
        return ENOMEM;
    }
    p->cfg = &srv->cfg;
    g->poller = p;
    return 0;
}

static void netsrv__poll_close(netsrv_server *srv, netsrv__group *g) {
    netsrv__pollset *p = g->poller;
    if (p == NULL) {
        return;
    }
    netsrv__mem_free(&srv->cfg, p->fds, (size_t)p->cap * sizeof *p->fds);
    netsrv__mem_free(&srv->cfg, p->tokens, (size_t)p->cap * sizeof *p->tokens);
    netsrv__mem_free(&srv->cfg, p->where, (size_t)p->where_cap * sizeof *p->where);
    netsrv__mem_free(&srv->cfg, p, sizeof *p);
    g->poller = NULL;
}

static bool netsrv__poll_widen(netsrv__pollset *p) {
    const size_t old = (size_t)p->cap;
    const size_t cap = old == 0 ? 64 : old * 2;
    struct pollfd *fds = netsrv__mem_alloc(p->cfg, cap * sizeof *fds);
    uint64_t *tokens = fds != NULL ? netsrv__mem_alloc(p->cfg, cap * sizeof *tokens) : NULL;
    if (tokens == NULL) {
        netsrv__mem_free(p->cfg, fds, cap * sizeof *fds);
        return false;
    }
    if (old != 0) {
        memcpy(fds, p->fds, old * sizeof *fds);
        memcpy(tokens, p->tokens, old * sizeof *tokens);
    }
    netsrv__mem_free(p->cfg, p->fds, old * sizeof *fds);
    netsrv__mem_free(p->cfg, p->tokens, old * sizeof *tokens);
    p->fds = fds;
    p->tokens = tokens;
    p->cap = (int)cap;
    return true;
}

static bool netsrv__poll_widen_where(netsrv__pollset *p, int fd) {
    const size_t old = (size_t)p->where_cap;
    size_t cap = old == 0 ? 64 : old;
    while (cap <= (size_t)fd) {
        cap *= 2;
    }
    int *where = netsrv__mem_resize(p->cfg, p->where, old * sizeof *where, cap * sizeof *where);
    if (where == NULL) {
        return false;
    }
    for (size_t i = old; i < cap; i++) {
        where[i] = -1;
    }
    p->where = where;
    p->where_cap = (int)cap;
    return true;
}

static int netsrv__poll_add(netsrv__pollset *p, int fd, uint64_t token, unsigned to) {
    if (fd >= p->where_cap && !netsrv__poll_widen_where(p, fd)) {
        return ENOMEM;
    }
    if (p->count == p->cap && !netsrv__poll_widen(p)) {
        return ENOMEM;
    }
    NETSRV_ASSERT(p->where[fd] < 0);
    p->where[fd] = p->count;
    p->tokens[p->count] = token;
    p->fds[p->count].fd = fd;
    p->fds[p->count].events = (short)(to & (NETSRV__IN | NETSRV__OUT));
    p->fds[p->count].revents = 0;
    p->count++;
    return 0;
}

static void netsrv__poll_remove(netsrv__pollset *p, int fd) {
    const int hole = p->where[fd];
    if (hole < 0) {
        return;
    }
    const int last = --p->count;
    p->where[fd] = -1;
    if (hole != last) {
        p->fds[hole] = p->fds[last];
        p->tokens[hole] = p->tokens[last];
        p->where[p->fds[hole].fd] = hole;
    }
}

static int netsrv__poll_set(netsrv__group *g, int fd, uint64_t token, unsigned from, unsigned to) {
    netsrv__pollset *p = g->poller;
    if (from == 0) {
        return netsrv__poll_add(p, fd, token, to);
    }
    if (to == 0) {
        netsrv__poll_remove(p, fd);
        return 0;
    }
    p->fds[p->where[fd]].events = (short)(to & (NETSRV__IN | NETSRV__OUT));
    p->tokens[p->where[fd]] = token;
    return 0;
}

static int netsrv__poll_wait(netsrv__worker *w, int timeout_ms) {
    netsrv__pollset *p = w->group->poller;
    const int cap = (int)w->cfg->events_per_wait;
    const int ready = netsrv__sys_poll(p->fds, (size_t)p->count, timeout_ms);
    int n = 0;
    if (ready <= 0) {
        return ready;
    }
    for (int i = 0; i < p->count && n < cap && n < ready; i++) {
        const int at = (p->first + i) % p->count;
        if (p->fds[at].revents != 0) {
            w->own.events[n].token = p->tokens[at];
            w->own.events[n].mask = (uint32_t)(uint16_t)p->fds[at].revents;
            n++;
            if (n == cap) {
                p->first = at + 1;
            }
        }
    }
    return n;
}

static const netsrv__poller_ops netsrv__poll_poller = {
    .raw_bytes = 0,
    .open = netsrv__poll_open,
    .close = netsrv__poll_close,
    .set = netsrv__poll_set,
    .wait = netsrv__poll_wait,
};

/* ========================================================================== *
 *  [ready] Turns readiness into results, once for every poller
 *  uses:   log mem util sys out timer mailbox conn accept watch
 *  thread: owner; give = any
 * ========================================================================== */

/* ---- set-up ---- */

static int netsrv__ready_open_poller(netsrv__worker *w) {
    netsrv__group *g = w->group;
    const netsrv__poller_ops *poller = w->io->poller;
    if (atomic_load(&g->opened) != 0) {
        return 0;
    }
    int error = poller->open(w->srv, g);
    if (error == 0) {
        error = poller->set(g, g->wake.read_fd, NETSRV__TOKEN_WAKE, 0, NETSRV__KEEP | NETSRV__IN);
        if (error != 0) {
            poller->close(w->srv, g);
        }
    }
    return error;
}

/* The first member of a group opens its poller. */
static int netsrv__ready_open(netsrv__worker *w) {
    const size_t cap = w->cfg->events_per_wait;
    const size_t raw_bytes = w->io->poller->raw_bytes;
    w->own.events = netsrv__mem_alloc(w->cfg, cap * sizeof *w->own.events);
    w->own.raw_events = raw_bytes != 0 ? netsrv__mem_alloc(w->cfg, cap * raw_bytes) : NULL;
    if (w->own.events == NULL || (raw_bytes != 0 && w->own.raw_events == NULL)) {
        return ENOMEM;
    }
    pthread_mutex_lock(&w->group->lock);
    const int error = netsrv__ready_open_poller(w);
    if (error == 0) {
        atomic_fetch_add(&w->group->opened, 1);
        w->own.opened = true;
    }
    pthread_mutex_unlock(&w->group->lock);
    return error;
}

/* The last one closes it. */
static void netsrv__ready_close(netsrv__worker *w) {
    const size_t cap = w->cfg->events_per_wait;
    pthread_mutex_lock(&w->group->lock);
    if (w->own.opened && atomic_fetch_sub(&w->group->opened, 1) == 1) {
        w->io->poller->close(w->srv, w->group);
    }
    pthread_mutex_unlock(&w->group->lock);
    w->own.opened = false;
    netsrv__mem_free(w->cfg, w->own.events, cap * sizeof *w->own.events);
    netsrv__mem_free(w->cfg, w->own.raw_events, cap * w->io->poller->raw_bytes);
    w->own.events = NULL;
    w->own.raw_events = NULL;
}

/* ---- listeners ---- */

static uint64_t netsrv__ready_gate_token(unsigned gate) {
    return (uint64_t)gate << 3 | NETSRV__TOKEN_LISTENER;
}

static int netsrv__ready_listen_start(netsrv__worker *w, unsigned gate) {
    const netsrv__gate *at = &w->group->gates[gate];
    return w->io->poller->set(w->group, at->fd, netsrv__ready_gate_token(gate), 0, at->interest);
}

static void netsrv__ready_listen_stop(netsrv__worker *w, unsigned gate) {
    const netsrv__gate *at = &w->group->gates[gate];
    w->io->poller->set(w->group, at->fd, netsrv__ready_gate_token(gate), at->interest, 0);
}

/* Nothing is accepted here without being asked for. */
static void netsrv__ready_listen_end(netsrv__worker *w) {
    (void)w;
}

/* A listener that cannot be armed again is paused, and tried again from there. */
static void netsrv__ready_gate_lost(netsrv__worker *w, unsigned gate, int error) {
    if (error != 0) {
        netsrv__accept_pause(w, gate, NETSRV__RETRY_MS, error, NETSRV__PAUSED_RESOURCE);
    }
}

/* EPOLLONESHOT: nobody hears of this listener until it is armed again. */
static void netsrv__ready_rearm(netsrv__worker *w, unsigned gate) {
    netsrv__group *g = w->group;
    const unsigned interest = g->gates[gate].interest;
    int error = 0;
    NETSRV_SEAM_POINT("rearm");
    pthread_mutex_lock(&g->lock);
    if (g->gates[gate].state == NETSRV__GATE_ARMED) {
        error = w->io->poller->set(g, g->gates[gate].fd, netsrv__ready_gate_token(gate), interest,
                                   interest);
    }
    pthread_mutex_unlock(&g->lock);
    netsrv__ready_gate_lost(w, gate, error);
}

/* EPOLLEXCLUSIVE wakes the worker that registered first. Registering again now and then sends this
 * one to the end of that line. */
static void netsrv__ready_rotate(netsrv__worker *w, unsigned gate) {
    netsrv__gate *at = &w->group->gates[gate];
    if (++at->accepts < NETSRV__ROTATE || at->state != NETSRV__GATE_ARMED) {
        return;
    }
    at->accepts = 0;
    netsrv__ready_listen_stop(w, gate);
    netsrv__ready_gate_lost(w, gate, netsrv__ready_listen_start(w, gate));
}

/* An event of a listener that is not armed: another thread of the group has just paused it, or the
 * poller did not let go of it. In that case it would be reported for ever: once more. */
static bool netsrv__ready_gate_armed(netsrv__worker *w, unsigned gate) {
    netsrv__group *g = w->group;
    pthread_mutex_lock(&g->lock);
    const bool armed = g->gates[gate].state == NETSRV__GATE_ARMED;
    if (!armed) {
        netsrv__ready_listen_stop(w, gate);
    }
    pthread_mutex_unlock(&g->lock);
    return armed;
}

static void netsrv__ready_listener(netsrv__worker *w, unsigned gate) {
    w->own.undrained &= ~(1u << gate);
    if (!netsrv__ready_gate_armed(w, gate)) {
        return;
    }
    const unsigned interest = w->group->gates[gate].interest;
    const uint64_t before = atomic_load_explicit(&w->count.accepted, memory_order_relaxed);
    const netsrv__accept_end end = netsrv__accept_batch(w, gate);
    const uint64_t after = atomic_load_explicit(&w->count.accepted, memory_order_relaxed);
    if (end == NETSRV__BATCH_DRAINED && before == after) {
        NETSRV__COUNT(w, wasted, 1);
    }
    if (end == NETSRV__BATCH_PAUSED) {
        return;
    }
    if ((interest & NETSRV__EDGE) != 0 && end == NETSRV__BATCH_LIMIT) {
        w->own.undrained |= 1u << gate; /* no event will say so again */
    }
    if ((interest & NETSRV__ONESHOT) != 0) {
        netsrv__ready_rearm(w, gate);
    }
    if ((interest & NETSRV__EXCLUSIVE) != 0 && before != after) {
        netsrv__ready_rotate(w, gate);
    }
}

/* ---- interest of a connection ---- */

/* How another thread registers a connection here: writable at once, so that it is opened before the
 * client says a word, and reported once, since the token is a pointer that is freed then. One
 * direction only: a kqueue takes changes one by one, and after the first this worker may be through
 * with the arrival. */
#define NETSRV__READY_GIVEN ((unsigned)(NETSRV__OUT | NETSRV__ONESHOT))

/* Brings the poller to what the connection wants. 0 or errno. */
static int netsrv__ready_update(netsrv__worker *w, netsrv_conn *c) {
    const bool foreign = (c->flags & NETSRV__FOREIGN) != 0;
    const unsigned from = foreign ? NETSRV__READY_GIVEN : c->interest;
    unsigned to = 0;
    to |= (c->flags & NETSRV__RECV_ON) != 0 ? (unsigned)NETSRV__IN : 0u;
    to |= (c->flags & NETSRV__BLOCKED) != 0 ? (unsigned)NETSRV__OUT : 0u;
    if (to != 0 || (c->flags & NETSRV__DEAF) == 0) {
        to |= NETSRV__KEEP;
        c->flags &= ~(uint32_t)NETSRV__DEAF;
    }
    if (to == c->interest && !foreign) {
        return 0;
    }
    const int error = w->io->poller->set(w->group, c->fd, netsrv__conn_token(c), from, to);
    if (error == 0) {
        c->interest = (uint16_t)to;
        c->flags &= ~(uint32_t)NETSRV__FOREIGN;
    }
    return error;
}

static void netsrv__ready_detach(netsrv__worker *w, netsrv_conn *c) {
    const bool foreign = (c->flags & NETSRV__FOREIGN) != 0;
    const unsigned from = foreign ? NETSRV__READY_GIVEN : c->interest;
    if (from != 0) {
        /* Before the close: an item outlives it while another process holds a duplicate. */
        const int error = w->io->poller->set(w->group, c->fd, netsrv__conn_token(c), from, 0);
        c->interest = error == 0 ? 0 : (uint16_t)from;
        c->flags &= ~(uint32_t)NETSRV__FOREIGN;
        if (error != 0) {
            netsrv__conn_end(w, c, NETSRV_CLOSE_ERROR, error); /* cannot move, then */
        }
    }
    netsrv__conn_on_detached(w, c);
}

/* ---- output ---- */

static bool netsrv__ready_would_block(int sys_errno) {
    return sys_errno == EAGAIN || sys_errno == EWOULDBLOCK || sys_errno == EINTR;
}

/* Brings the poller to what is wanted; where it cannot, the connection ends. */
static void netsrv__ready_watch(netsrv__worker *w, netsrv_conn *c) {
    const int error = netsrv__ready_update(w, c);
    if (error != 0) {
        netsrv__conn_end(w, c, NETSRV_CLOSE_ERROR, error);
    }
}

static void netsrv__ready_block(netsrv__worker *w, netsrv_conn *c) {
    netsrv__conn_on_blocked(w, c);
    netsrv__ready_watch(w, c);
}

NETSRV__COLD
static void netsrv__ready_reply_short(netsrv__worker *w, netsrv_conn *c,
                                      const unsigned char *data, size_t n, ssize_t sent) {
    if (sent < 0 && !netsrv__ready_would_block(errno)) {
        netsrv__conn_on_sent(w, c, 0, errno);
        return;
    }
    const size_t taken = sent > 0 ? (size_t)sent : 0;
    netsrv__conn_on_replied(w, c, taken);
    netsrv__ready_block(w, c);
    netsrv__conn_on_unsent(w, c, data + taken, n - taken);
}

static void netsrv__ready_reply(netsrv__worker *w, netsrv_conn *c, const void *data, size_t n) {
    const ssize_t sent = netsrv__sys_send(c->fd, data, n);
    if (NETSRV__LIKELY(sent == (ssize_t)n)) {
        netsrv__conn_on_replied(w, c, n);
        return;
    }
    netsrv__ready_reply_short(w, c, data, n, sent);
}

/* A piece of the file that comes next. Whatever sendfile has against it, reading and sending will
 * tell which of the two is at fault. False when the kernel takes no more now. */
static bool netsrv__ready_send_file(netsrv__worker *w, netsrv_conn *c, netsrv__chunk *file) {
    const size_t n = netsrv__util_min(file->end - file->begin, NETSRV__FILE_PIECE);
    const ssize_t sent = netsrv__sys_sendfile(c->fd, file->fd, file->offset + file->begin, n);
    if (sent == 0) {
        netsrv__conn_file_failed(w, c, 0);
        return false;
    }
    if (sent < 0 && !netsrv__ready_would_block(errno)) {
        file->by_reading = true;
        return true;
    }
    if (sent > 0) {
        netsrv__conn_on_sent(w, c, (size_t)sent, 0);
    }
    if (sent < (ssize_t)n) {
        netsrv__ready_block(w, c); /* if it is the end of the file, the next try will say so */
        return false;
    }
    return true;
}

/* False when the kernel takes no more now. */
static bool netsrv__ready_send_some(netsrv__worker *w, netsrv_conn *c) {
    struct iovec iov[NETSRV__OUT_IOV];
    netsrv__chunk *file = netsrv__out_file(&c->out, 0);
    if (file != NULL && !file->by_reading) {
        return netsrv__ready_send_file(w, c, file);
    }
    if (file != NULL && !netsrv__conn_load_file(w, c)) {
        return false;
    }
    const int count = netsrv__out_iov(&c->out, iov, NETSRV__OUT_IOV);
    size_t offered = 0;
    for (int i = 0; i < count; i++) {
        offered += iov[i].iov_len;
    }
    const bool more = netsrv__out_file(&c->out, count) != NULL;
    const ssize_t sent = netsrv__sys_sendv(c->fd, iov, count, more);
    if (sent < 0 && !netsrv__ready_would_block(errno)) {
        netsrv__conn_on_sent(w, c, 0, errno);
        return false;
    }
    if (sent > 0) {
        netsrv__conn_on_sent(w, c, (size_t)sent, 0);
    }
    if (sent < (ssize_t)offered) {
        netsrv__ready_block(w, c);
        return false;
    }
    return true;
}

static void netsrv__ready_send(netsrv__worker *w, netsrv_conn *c) {
    int rounds = 0;
    while (c->out.bytes != 0 && netsrv__ready_send_some(w, c)) {
        if (++rounds == NETSRV__OUT_ROUNDS && c->out.bytes != 0) {
            netsrv__ready_block(w, c); /* the others first: writable is reported at once */
            return;
        }
    }
    if (c->out.bytes == 0 && c->state < NETSRV__CLOSING) {
        netsrv__ready_watch(w, c);
    }
}

/* ---- events of a connection ---- */

/* An error or hang-up while no input is wanted. With both directions over and nothing to send, it
 * would be reported for ever: out of the poller until something is wanted again. */
static void netsrv__ready_hang_up(netsrv__worker *w, netsrv_conn *c, uint32_t mask) {
    const int error = netsrv__sys_socket_error(c->fd);
    if (error != 0 || (mask & NETSRV__ERR) != 0) {
        const int told = (int)(mask >> NETSRV__ERRNO_SHIFT);
        netsrv__conn_on_end(w, c, error != 0 ? error : told != 0 ? told : ECONNRESET);
        return;
    }
    c->flags |= NETSRV__DEAF;
    netsrv__ready_update(w, c);
}

/* The end, an error, or nothing after all. */
NETSRV__COLD
static void netsrv__ready_recv_none(netsrv__worker *w, netsrv_conn *c, ssize_t n, uint32_t mask) {
    const int saved = errno;
    if (n == 0) {
        /* To tell an errno, a poller may have taken it from the socket. */
        netsrv__conn_on_end(w, c, (int)(mask >> NETSRV__ERRNO_SHIFT));
    } else if (saved != EAGAIN && saved != EWOULDBLOCK && saved != EINTR) {
        netsrv__conn_on_end(w, c, saved);
    } else if ((mask & NETSRV__ERR) != 0 && saved != EINTR) {
        netsrv__ready_hang_up(w, c, mask);
    }
}

/* One full buffer after another, up to bytes_per_turn: then the others have their turn. */
NETSRV__COLD
static void netsrv__ready_recv_more(netsrv__worker *w, netsrv_conn *c, uint32_t mask) {
    size_t left = w->cfg->bytes_per_turn - w->own.recv_room;
    while (left != 0 && (c->flags & NETSRV__RECV_ON) != 0) {
        const size_t room = netsrv__util_min(w->own.recv_bytes, left);
        const ssize_t n = netsrv__sys_recv(c->fd, w->own.recv_buffer, room);
        if (n <= 0) {
            netsrv__ready_recv_none(w, c, n, mask);
            return;
        }
        netsrv__conn_on_recv(w, c, w->own.recv_buffer, (size_t)n);
        left = (size_t)n < room ? 0 : left - (size_t)n;
    }
}

static NETSRV__HOT void netsrv__ready_recv(netsrv__worker *w, netsrv_conn *c, uint32_t mask) {
    const size_t room = w->own.recv_room;
    const ssize_t n = netsrv__sys_recv(c->fd, w->own.recv_buffer, room);
    if (!NETSRV__LIKELY(n > 0)) {
        netsrv__ready_recv_none(w, c, n, mask);
        return;
    }
    netsrv__conn_on_recv(w, c, w->own.recv_buffer, (size_t)n);
    if (!NETSRV__LIKELY((size_t)n < room)) {
        netsrv__ready_recv_more(w, c, mask);
    }
}

/* It could not be taken out when it ended, and its descriptor lives as long as a callback thread
 * has it: it would be reported all the time. */
static void netsrv__ready_take_out(netsrv__worker *w, netsrv_conn *c) {
    if (c->interest != 0 &&
        w->io->poller->set(w->group, c->fd, netsrv__conn_token(c), c->interest, 0) == 0) {
        c->interest = 0;
    }
}

/* Everything but plain input. */
NETSRV__COLD
static void netsrv__ready_conn_other(netsrv__worker *w, netsrv_conn *c, uint32_t mask) {
    if ((mask & NETSRV__OUT) != 0 && (c->flags & NETSRV__BLOCKED) != 0) {
        netsrv__conn_on_writable(w, c);
    }
    if ((c->flags & NETSRV__RECV_ON) != 0) {
        if ((mask & ~(uint32_t)NETSRV__OUT) != 0) {
            netsrv__ready_recv(w, c, mask);
        }
        return;
    }
    if (c->state == NETSRV__DEAD) {
        netsrv__ready_take_out(w, c);
    } else if ((mask & (NETSRV__ERR | NETSRV__HUP)) != 0 && c->state != NETSRV__FREE &&
               c->state < NETSRV__CLOSING) {
        netsrv__ready_hang_up(w, c, mask);
    }
}

/* Input before anything that an end or error flag says: it may hold the last request. */
static NETSRV__HOT void netsrv__ready_conn(netsrv__worker *w, netsrv_conn *c, uint32_t mask) {
    if (NETSRV__LIKELY(mask == NETSRV__IN && (c->flags & NETSRV__RECV_ON) != 0)) {
        netsrv__ready_recv(w, c, mask);
        return;
    }
    netsrv__ready_conn_other(w, c, mask);
}

/* ---- everything else ---- */

static int netsrv__ready_give(netsrv__worker *to, netsrv__arrival *arrival) {
    NETSRV_SEAM_POINT("give");
    const uint64_t token = (uint64_t)(uintptr_t)arrival | NETSRV__TOKEN_ARRIVAL;
    return to->io->poller->set(to->group, arrival->fd, token, 0, NETSRV__READY_GIVEN);
}

static void netsrv__ready_forget(netsrv__worker *w, int fd) {
    w->io->poller->set(w->group, fd, 0, NETSRV__READY_GIVEN, 0);
}

static void netsrv__ready_arrival(netsrv__worker *w, netsrv__arrival *arrival) {
    netsrv__mailbox_drop_given(&w->mailbox, arrival); /* first: its neighbours write to its link */
    const netsrv__arrival a = *arrival;
    netsrv__mem_free(w->cfg, arrival, sizeof *arrival);
    NETSRV__COUNT(w, received, 1);
    if (!netsrv__accept_open(w, &a)) {
        netsrv__ready_forget(w, a.fd);
        netsrv__accept_drop(w, &a);
    }
}

/* A change that fails leaves nothing behind: a kqueue may have made a part of it. */
static int netsrv__ready_foreign(netsrv__worker *w, netsrv__watch *x) {
    const netsrv__poller_ops *poller = w->io->poller;
    const uint64_t token = netsrv__watch_token(w, x);
    const unsigned from = x->interest;
    const unsigned to = x->wanted != 0 ? NETSRV__KEEP | x->wanted : 0;
    const int error = from != to ? poller->set(w->group, x->fd, token, from, to) : 0;
    if (error == 0) {
        x->interest = (uint16_t)to;
    } else if (from != 0 && to != 0 && poller->set(w->group, x->fd, token, from | to, 0) == 0) {
        x->interest = 0;
    }
    return error;
}

/* At a stop, every member of a group must see its wake-up: it stays. */
static void netsrv__ready_wake(netsrv__worker *w) {
    NETSRV__COUNT(w, wakes, 1);
    if (w->group->members == 1 || atomic_load(&w->srv->stop_at) == 0) {
        netsrv__mailbox_wake_drain(&w->group->wake);
    }
}

NETSRV__COLD
static void netsrv__ready_dispatch_other(netsrv__worker *w, netsrv__event event) {
    const uint64_t value = event.token & ~(uint64_t)NETSRV__TOKEN_MASK;
    switch ((unsigned)event.token & NETSRV__TOKEN_MASK) {
    case NETSRV__TOKEN_LISTENER:
        netsrv__ready_listener(w, (unsigned)(value >> 3));
        break;
    case NETSRV__TOKEN_ARRIVAL:
        netsrv__ready_arrival(w, (netsrv__arrival *)(uintptr_t)value);
        break;
    case NETSRV__TOKEN_WATCH:
        netsrv__watch_on_event(w, event.token, event.mask);
        break;
    default:
        netsrv__ready_wake(w);
        break;
    }
}

static NETSRV__HOT void netsrv__ready_dispatch(netsrv__worker *w, netsrv__event event) {
    if (!NETSRV__LIKELY((event.token & NETSRV__TOKEN_MASK) == NETSRV__TOKEN_CONN)) {
        netsrv__ready_dispatch_other(w, event);
        return;
    }
    netsrv_conn *c = netsrv__conn_of_token(w, event.token);
    if (!NETSRV__LIKELY(c != NULL)) {
        NETSRV__COUNT(w, stale, 1);
        return;
    }
    netsrv__ready_conn(w, c, event.mask);
}

/* A poller that cannot wait any more must not make the thread spin. */
static void netsrv__ready_wait_failed(netsrv__worker *w, int sys_errno) {
    if (sys_errno == EINTR || sys_errno == EAGAIN) {
        w->own.event_count = -1;
        return;
    }
    w->own.event_count = 0;
    if (netsrv__accept_may_log(w->srv)) {
        netsrv__log_line(w->cfg, NETSRV_LOG_ERROR, "worker %u cannot wait for events: %s", w->index,
                         strerror(sys_errno));
    }
    netsrv__sys_nap();
}

static void netsrv__ready_wait(netsrv__worker *w, int timeout_ms) {
    const uint32_t undrained = w->own.undrained;
    const int n = w->io->poller->wait(w, undrained != 0 ? 0 : timeout_ms);
    const int saved = errno;
    netsrv__timer_woke(w);
    if (n < 0) {
        netsrv__ready_wait_failed(w, saved);
    } else {
        w->own.event_count =
            (int)NETSRV_SEAM_EVENTS(w->own.events, (size_t)n, sizeof *w->own.events);
    }
    for (int i = 0; i < w->own.event_count; i++) {
        netsrv__ready_dispatch(w, w->own.events[i]);
    }
    for (unsigned gate = 0; gate < w->group->gate_count; gate++) {
        if ((undrained & w->own.undrained & (1u << gate)) != 0) {
            netsrv__ready_listener(w, gate);
        }
    }
}

#define NETSRV__READY_OPS                                                                          \
    .open = netsrv__ready_open, .close = netsrv__ready_close,                                      \
    .listen_start = netsrv__ready_listen_start, .listen_stop = netsrv__ready_listen_stop,          \
    .listen_end = netsrv__ready_listen_end,                                                        \
    .recv_start = netsrv__ready_update, .recv_stop = netsrv__ready_update,                         \
    .reply = netsrv__ready_reply, .send = netsrv__ready_send, .detach = netsrv__ready_detach,      \
    .give = netsrv__ready_give, .forget = netsrv__ready_forget,                                    \
    .watch = netsrv__ready_foreign, .wait = netsrv__ready_wait

/* ========================================================================== *
 *  [ring] io_uring without a library: set-up by trying, submission, completions
 *  uses:   util sys
 *  thread: owner; probe = any
 * ========================================================================== */

#if NETSRV__HAS_IO_URING

#define NETSRV__RING_GROUP 0 /* of the buffers that input comes in */
#define NETSRV__RING_NEEDED                                                                        \
    ((uint32_t)(NETSRV__RING_CQSIZE | NETSRV__RING_CLAMP | NETSRV__RING_SUBMIT_ALL |               \
                NETSRV__RING_SINGLE_ISSUER | NETSRV__RING_DEFER_TASKRUN))

typedef _Atomic uint32_t netsrv__ring_word; /* shared with the kernel */
_Static_assert(sizeof(netsrv__ring_word) == 4, "the kernel's words are plain 32 bits");

typedef struct netsrv__ring {
    int fd; /* -1 = not open */
    int enter_fd; /* the same, or its number among the registered ones */
    unsigned enter_flags;
    uint32_t sq_tail;   /* entries filled up to here */
    uint32_t published; /* ... and shown to the kernel */
    uint32_t sq_mask;
    uint32_t cq_head;   /* completions taken up to here */
    uint32_t cq_mask;
    netsrv__ring_word *sq_head_at;
    netsrv__ring_word *sq_tail_at;
    netsrv__ring_word *sq_flags_at;
    netsrv__ring_word *cq_head_at;
    netsrv__ring_word *cq_tail_at;
    netsrv__ring_word *cq_lost_at; /* completions that there was no memory for */
    uint32_t cq_lost;              /* ... when we last looked */
    netsrv__sqe *sqes;
    netsrv__cqe *cqes;
    void *map;
    size_t map_bytes;
    void *sqe_map;
    size_t sqe_map_bytes;
} netsrv__ring;

/* The best that this kernel takes. What is asked for without a choice came with 6.1 at the latest,
 * and with it everything else that is used here without being tried. */
static int netsrv__ring_setup(netsrv__ring_params *p, unsigned entries, unsigned completions) {
    const uint32_t tries[] = {NETSRV__RING_NEEDED | NETSRV__RING_NO_SQARRAY, NETSRV__RING_NEEDED};
    int fd = -1;
    for (size_t i = 0; i < sizeof tries / sizeof *tries && fd < 0; i++) {
        memset(p, 0, sizeof *p);
        p->flags = tries[i];
        p->cq_entries = completions;
        fd = netsrv__sys_ring_setup(entries, p);
        if (fd < 0 && errno != EINVAL) {
            return -1;
        }
    }
    return fd;
}

static bool netsrv__ring_has_features(const netsrv__ring_params *p) {
    const uint32_t need = NETSRV__RING_SINGLE_MMAP | NETSRV__RING_NODROP |
                          NETSRV__RING_SUBMIT_STABLE | NETSRV__RING_EXT_ARG_FEATURE |
                          NETSRV__RING_CQE_SKIP;
    return (p->features & need) == need;
}

static netsrv__ring_word *netsrv__ring_word_at(const netsrv__ring *r, uint32_t offset) {
    return (netsrv__ring_word *)(void *)((char *)r->map + offset);
}

static void netsrv__ring_find_words(netsrv__ring *r, const netsrv__ring_params *p) {
    r->sq_head_at = netsrv__ring_word_at(r, p->sq.head);
    r->sq_tail_at = netsrv__ring_word_at(r, p->sq.tail);
    r->sq_flags_at = netsrv__ring_word_at(r, p->sq.flags);
    r->cq_head_at = netsrv__ring_word_at(r, p->cq.head);
    r->cq_tail_at = netsrv__ring_word_at(r, p->cq.tail);
    r->cq_lost_at = netsrv__ring_word_at(r, p->cq.overflow);
    r->sq_mask = p->sq_entries - 1;
    r->cq_mask = p->cq_entries - 1;
    r->cqes = (netsrv__cqe *)(void *)((char *)r->map + p->cq.cqes);
    r->sqes = r->sqe_map;
}

/* Where the kernel goes through an array of indices, entry i is always number i. */
static void netsrv__ring_fill_array(const netsrv__ring *r, const netsrv__ring_params *p) {
    uint32_t *array = (uint32_t *)(void *)((char *)r->map + p->sq.array);
    if ((p->flags & NETSRV__RING_NO_SQARRAY) != 0) {
        return;
    }
    for (uint32_t i = 0; i < p->sq_entries; i++) {
        array[i] = i;
    }
}

static bool netsrv__ring_map(netsrv__ring *r, const netsrv__ring_params *p) {
    const size_t sq_bytes = p->sq.array + p->sq_entries * sizeof(uint32_t);
    const size_t cq_bytes = p->cq.cqes + p->cq_entries * sizeof(netsrv__cqe);
    r->map_bytes = netsrv__util_max(sq_bytes, cq_bytes);
    r->sqe_map_bytes = p->sq_entries * sizeof(netsrv__sqe);
    r->map = netsrv__sys_ring_map(r->fd, r->map_bytes, 0);
    r->sqe_map = r->map != NULL ? netsrv__sys_ring_map(r->fd, r->sqe_map_bytes,
                                                       NETSRV__RING_SQES_OFFSET) : NULL;
    return r->sqe_map != NULL;
}

/* Takes a half-open one. What is registered would keep it until the thread ends. */
static void netsrv__ring_close(netsrv__ring *r) {
    netsrv__ring_update update = {(uint32_t)r->enter_fd, 0, 0};
    netsrv__sys_ring_unmap(r->map, r->map_bytes);
    netsrv__sys_ring_unmap(r->sqe_map, r->sqe_map_bytes);
    if (r->enter_flags != 0) {
        netsrv__sys_ring_register(r->fd, NETSRV__RING_UNREG_RING_FD, &update, 1);
    }
    if (r->fd >= 0) {
        netsrv__sys_close(r->fd);
    }
    memset(r, 0, sizeof *r);
    r->fd = -1;
}

/* The kernel then need not look the descriptor up at each entry. Fine without. */
static void netsrv__ring_register_fd(netsrv__ring *r) {
    netsrv__ring_update update = {UINT32_MAX, 0, (uint64_t)r->fd};
    if (netsrv__sys_ring_register(r->fd, NETSRV__RING_REG_RING_FD, &update, 1) == 1) {
        r->enter_fd = (int)update.offset;
        r->enter_flags = NETSRV__RING_REGISTERED;
    }
}

/* 0 or errno; EINVAL = a kernel before 6.1. Closed on exec. */
static int netsrv__ring_open(netsrv__ring *r, unsigned entries, unsigned completions) {
    netsrv__ring_params p;
    memset(r, 0, sizeof *r);
    r->fd = netsrv__ring_setup(&p, entries, completions);
    if (r->fd < 0) {
        return errno;
    }
    if (!netsrv__ring_has_features(&p)) {
        netsrv__ring_close(r);
        return EINVAL;
    }
    if (!netsrv__ring_map(r, &p)) {
        const int saved = errno;
        netsrv__ring_close(r);
        return saved;
    }
    netsrv__ring_find_words(r, &p);
    netsrv__ring_fill_array(r, &p);
    r->enter_fd = r->fd;
    netsrv__ring_register_fd(r);
    return 0;
}

/* Whether a ring can be had here; 0 or errno. The attempt fails on purpose, at sharing the threads
 * of no ring at all, which is looked at after everything else: a ring that was made and closed
 * again would interrupt a system call of this thread, the program's, some time later. */
static int netsrv__ring_probe(void) {
    netsrv__ring_params p;
    if (netsrv__sys_env_set("NETSRV_NO_IO_URING")) {
        return ECANCELED;
    }
    memset(&p, 0, sizeof p);
    p.flags = NETSRV__RING_NEEDED | NETSRV__RING_ATTACH;
    p.cq_entries = 16;
    p.wq_fd = UINT32_MAX;
    const int fd = netsrv__sys_ring_setup(8, &p);
    if (fd >= 0) {
        netsrv__sys_close(fd);
        return 0;
    }
    if (errno == ENXIO || errno == EBADF) {
        return 0;
    }
    return errno;
}

/* ---- submission and waiting ---- */

static uint32_t netsrv__ring_unsubmitted(const netsrv__ring *r) {
    return r->sq_tail - atomic_load_explicit(r->sq_head_at, memory_order_acquire);
}

static void netsrv__ring_publish(netsrv__ring *r) {
    atomic_store_explicit(r->sq_tail_at, r->sq_tail, memory_order_release);
    r->published = r->sq_tail;
}

/* Hands entries over without waiting. 0 or -1. */
static int netsrv__ring_submit(netsrv__ring *r) {
    int result = 0;
    netsrv__ring_publish(r);
    for (int tries = 0; tries < 100 && netsrv__ring_unsubmitted(r) != 0; tries++) {
        result = netsrv__sys_ring_enter(r->enter_fd, netsrv__ring_unsubmitted(r), 0,
                                        r->enter_flags, NULL, 0);
        if (result < 0 && errno != EINTR) {
            return -1;
        }
    }
    return netsrv__ring_unsubmitted(r) == 0 ? 0 : -1;
}

/* The next entry, all zero; NULL when the queue is full and the kernel takes nothing. */
static netsrv__sqe *netsrv__ring_next(netsrv__ring *r) {
    if (netsrv__ring_unsubmitted(r) > r->sq_mask) {
        netsrv__ring_submit(r);
        if (netsrv__ring_unsubmitted(r) > r->sq_mask) {
            return NULL;
        }
    }
    netsrv__sqe *sqe = &r->sqes[r->sq_tail++ & r->sq_mask];
    memset(sqe, 0, sizeof *sqe);
    return sqe;
}

static uint32_t netsrv__ring_waiting(const netsrv__ring *r) {
    return atomic_load_explicit(r->cq_tail_at, memory_order_acquire) - r->cq_head;
}

/* Whether completions were lost since the last call. EBADR of io_uring_enter(2) says so too, but
 * not together with a submission. */
static bool netsrv__ring_has_lost(netsrv__ring *r) {
    const uint32_t lost = atomic_load_explicit(r->cq_lost_at, memory_order_relaxed);
    const bool more = lost != r->cq_lost || NETSRV_SEAM_FAULT("ring_lost") != 0;
    r->cq_lost = lost;
    return more;
}

/* Submits and waits in one call: at most timeout_ms (-1 = without end) for a completion. -1 and
 * errno when that failed; a time-out is no failure. */
static int netsrv__ring_wait(netsrv__ring *r, int timeout_ms) {
    const netsrv__ring_time time = {timeout_ms / 1000, (int64_t)(timeout_ms % 1000) * 1000000};
    netsrv__ring_arg arg = {0, 0, 0, (uint64_t)(uintptr_t)&time};
    const unsigned flags = r->enter_flags | NETSRV__RING_GETEVENTS;
    const unsigned submit = netsrv__ring_unsubmitted(r);
    int result;
    netsrv__ring_publish(r);
    if (timeout_ms > 0) {
        result = netsrv__sys_ring_enter(r->enter_fd, submit, 1, flags | NETSRV__RING_EXT_ARG, &arg,
                                        sizeof arg);
    } else {
        result = netsrv__sys_ring_enter(r->enter_fd, submit, timeout_ms < 0 ? 1u : 0u, flags, NULL,
                                        0);
    }
    return result >= 0 || errno == ETIME || errno == EBUSY || errno == EBADR ? 0 : -1;
}

static void netsrv__ring_take(netsrv__ring *r, uint32_t count) {
    r->cq_head += count;
    atomic_store_explicit(r->cq_head_at, r->cq_head, memory_order_release);
}

/* Ends what is under way with that token, or everything, and returns when it has: 0 or errno. */
static int netsrv__ring_cancel_now(netsrv__ring *r, uint64_t token, unsigned flags) {
    netsrv__ring_cancel cancel;
    memset(&cancel, 0, sizeof cancel);
    cancel.token = token;
    cancel.flags = flags;
    cancel.timeout.s = -1;
    cancel.timeout.ns = -1;
    netsrv__ring_submit(r);
    return netsrv__sys_ring_register(r->fd, NETSRV__RING_SYNC_CANCEL, &cancel, 1) >= 0 ? 0 : errno;
}

/* Poll masks have their halves exchanged where the low byte comes last. */
static uint32_t netsrv__ring_poll_mask(uint32_t mask) {
    const union {
        uint16_t half[2];
        uint32_t whole;
    } one = {{1, 0}};
    return one.whole == 1 ? mask : mask << 16 | mask >> 16;
}

#endif /* NETSRV__HAS_IO_URING */

/* ========================================================================== *
 *  [uring] The completion backend over io_uring
 *  uses:   log mem util sys slab out timer mailbox conn accept watch epoll ready ring
 *  thread: owner
 * ========================================================================== */

#if NETSRV__HAS_IO_URING

/* Input comes by one lasting request for each connection, in buffers that the kernel takes from the
 * worker's pool: an idle connection holds none. A buffer is lent to the program for its callback,
 * and beyond that only to a reply that points into it. Replies never wait in the kernel: what it
 * does not take at once comes back and is queued, so that no peer can hold a buffer. One send is
 * under way on a connection at any time. A connection is detached when the last request on it has
 * been answered. */

enum { /* netsrv_conn.interest: what is under way in the kernel, and what is to come */
    NETSRV__URING_RECV = 0x01,
    NETSRV__URING_RECV_ENDS = 0x02, /* cancelled, not answered yet */
    NETSRV__URING_SEND = 0x04,      /* a reply, or queued output   */
    NETSRV__URING_POLL = 0x08,      /* lasting: room for output, errors while input is not wanted */
    NETSRV__URING_FULL = 0x10,      /* waits for room for output */
    NETSRV__URING_PARKED = 0x20,    /* wants input, and there was no buffer */
    NETSRV__URING_DETACHING = 0x40,
    NETSRV__URING_LIMITED = 0x80, /* the request for input has a limit, unknown to some kernels */
    NETSRV__URING_STOPPED = 0x100, /* input was not wanted once: less is asked for at a time */
    NETSRV__URING_ENDED = 0x200, /* the peer has finished or failed: input is asked for by pieces */
    NETSRV__URING_END = 0x400 /* waits for that */
};
#define NETSRV__URING_BUSY                                                                         \
    (NETSRV__URING_RECV | NETSRV__URING_SEND | NETSRV__URING_POLL | NETSRV__URING_END)

enum { /* tokens of completions; those below are the core's */
    NETSRV__URING_OF_RECV = NETSRV__TOKEN_CONN,
    NETSRV__URING_OF_ACCEPT = NETSRV__TOKEN_LISTENER,
    NETSRV__URING_OF_WAKE = NETSRV__TOKEN_WAKE,
    NETSRV__URING_OF_END = 3,   /* as of a connection */
    NETSRV__URING_OF_SEND = 4,  /* as of a connection */
    NETSRV__URING_OF_REPLY = 5, /* number of the first piece << 3 */
    NETSRV__URING_OF_POLL = 6,  /* as of a connection */
    NETSRV__URING_OF_NOTHING = 7
};

#define NETSRV__URING_FOREIGN (UINT64_C(1) << 3 | NETSRV__URING_OF_WAKE)
#define NETSRV__URING_ENTRIES 512
#define NETSRV__URING_COMPLETIONS 4096
#define NETSRV__URING_POOL_BYTES (1u << 20) /* of all buffers, at their usual size */
#define NETSRV__URING_FIRST_BYTES (256u << 10) /* of one connection, for one request */
#define NETSRV__URING_PIECES 1024           /* of replies under way */
#define NETSRV__URING_VECTORS 32            /* sends of several parts in one submission */
#define NETSRV__URING_STAGE_BYTES 131072    /* copies of replies that lie in no buffer; two of it */
#define NETSRV__URING_STAGED 0xfffe         /* or 0xffff: where a piece lies, if not in a buffer */
#define NETSRV__URING_NONE UINT16_MAX

typedef struct netsrv__uring_buf {
    uint32_t at;   /* consumed by the kernel up to here */
    uint16_t refs; /* pieces of it that are lent */
    bool ours;     /* the kernel is through with it */
} netsrv__uring_buf;

typedef struct netsrv__uring_piece {
    uint64_t conn; /* token of the connection */
    const unsigned char *data;
    uint32_t bytes;
    uint16_t where; /* its buffer, or NETSRV__URING_STAGED + half */
    uint16_t next;  /* of the same reply, or of the free ones */
} netsrv__uring_piece;

typedef struct netsrv__uring_stage {
    unsigned char *bytes; /* NULL until needed */
    size_t used;
    size_t refs;
} netsrv__uring_stage;

typedef struct netsrv__uring_gate {
    bool wanted; /* accepting is on                             */
    bool armed;  /* a request is under way                      */
    int *held;   /* accepted, while the listener was paused     */
    size_t held_count;
    size_t held_cap;
} netsrv__uring_gate;

typedef struct netsrv__uring_vector {
    struct msghdr head;
    struct iovec iov[NETSRV__OUT_IOV];
} netsrv__uring_vector;

struct netsrv__uring {
    netsrv__ring ring;
    /* buffers */
    netsrv__ring_buf *bufs_at; /* what the kernel takes from */
    unsigned char *pool;
    netsrv__uring_buf *bufs;
    uint32_t buf_count; /* power of two */
    uint32_t buf_shift; /* of their size */
    uint16_t buf_tail;
    uint32_t buf_ready; /* in the kernel's hands */
    void *pool_memory;
    size_t pool_memory_bytes;
    bool registered;
    bool incremental; /* the kernel fills a buffer by and by */
    bool recv_bounded;   /* the kernel ends a lasting request for input after so many bytes: */
    uint32_t recv_limit;
    uint32_t recv_first; /* ... of a connection whose input never had to stop */
    /* connections that wait for a buffer, first come first served */
    netsrv_conn *parked;
    netsrv_conn *parked_last;
    /* replies */
    netsrv__uring_piece *pieces;
    uint16_t piece_free;
    netsrv__uring_stage stages[2];
    unsigned stage;
    /* the reply that was put in last; while not submitted, it may grow */
    uint16_t last_piece;
    unsigned last_count;
    uint32_t last_entry;
    uint64_t last_conn;
    netsrv__uring_vector *vectors;
    unsigned vectors_used;
    uint32_t vectors_of; /* submission */
    /* listeners */
    netsrv__uring_gate gates[NETSRV_LISTEN_MAX];
    size_t held; /* in all gates */
    bool wake_watched;
    bool abandoned;
    bool broken; /* completions were lost, and not everything could be set up anew */
    unsigned failures; /* to enter the ring, in a row */
    bool foreign_watched;
};

/* ---- buffers ---- */

static unsigned char *netsrv__uring_buf_bytes(const netsrv__uring *u, uint32_t id) {
    return u->pool + ((size_t)id << u->buf_shift);
}

/* Hands a buffer to the kernel; it sees it with the next submission. */
static void netsrv__uring_buf_give(netsrv__uring *u, uint16_t id) {
    netsrv__ring_buf *entry = &u->bufs_at[u->buf_tail++ & (u->buf_count - 1)];
    entry->addr = (uint64_t)(uintptr_t)netsrv__uring_buf_bytes(u, id);
    entry->len = 1u << u->buf_shift;
    entry->id = id;
    u->bufs[id].at = 0;
    u->bufs[id].ours = false;
    u->buf_ready++;
    NETSRV__POISON(netsrv__uring_buf_bytes(u, id), (size_t)1 << u->buf_shift);
}

/* The tail lies where the first entry has room to spare. */
static void netsrv__uring_buf_publish(netsrv__uring *u) {
    _Atomic uint16_t *tail = (_Atomic uint16_t *)(void *)&u->bufs_at[0].zero;
    atomic_store_explicit(tail, u->buf_tail, memory_order_release);
}

static void netsrv__uring_buf_release(netsrv__uring *u, uint16_t id) {
    netsrv__uring_buf *b = &u->bufs[id];
    NETSRV_ASSERT(b->refs > 0);
    if (--b->refs == 0 && b->ours) {
        netsrv__uring_buf_give(u, id);
    }
}

/* The part of a buffer that a completion has filled; held until it is released. */
static unsigned char *netsrv__uring_buf_take(netsrv__uring *u, uint16_t id, uint32_t n,
                                             uint32_t flags) {
    netsrv__uring_buf *b = &u->bufs[id];
    unsigned char *data = netsrv__uring_buf_bytes(u, id) + b->at;
    NETSRV_ASSERT(id < u->buf_count && !b->ours && b->at + n <= 1u << u->buf_shift);
    NETSRV__UNPOISON(data, n);
    b->at += n;
    b->refs++;
    /* Told by its length: some kernels do not say "more" with an end of the stream, and go on. */
    b->ours = !u->incremental || b->at == 1u << u->buf_shift;
    NETSRV_ASSERT(n == 0 || !u->incremental ||
                  b->ours == ((flags & NETSRV__RING_CQE_BUF_MORE) == 0));
    (void)flags;
    u->buf_ready -= b->ours ? 1 : 0;
    return data;
}

static int netsrv__uring_register(netsrv__uring *u, unsigned flags) {
    netsrv__ring_buf_reg reg;
    memset(&reg, 0, sizeof reg);
    reg.addr = (uint64_t)(uintptr_t)u->bufs_at;
    reg.entries = u->buf_count;
    reg.group = NETSRV__RING_GROUP;
    reg.flags = (uint16_t)flags;
    return netsrv__sys_ring_register(u->ring.fd, NETSRV__RING_REG_BUFS, &reg, 1) >= 0 ? 0 : errno;
}

/* Sizes: where the kernel fills a buffer by and by, a few large ones serve everybody; else every
 * message takes one, and there are many small ones. */
static void netsrv__uring_size_pool(netsrv__uring *u, uint32_t usual_bytes) {
    const uint32_t most = u->incremental ? usual_bytes : 4096;
    u->buf_shift = 12;
    while ((2u << u->buf_shift) <= most) {
        u->buf_shift++;
    }
    u->buf_count = NETSRV__URING_POOL_BYTES >> u->buf_shift;
    u->buf_count = u->buf_count > 4 ? u->buf_count : 4;
}

/* One piece of memory: first what the kernel reads, at a page's beginning, then the buffers. */
static int netsrv__uring_make_pool(netsrv__worker *w, netsrv__uring *u) {
    const size_t page = netsrv__sys_page_bytes();
    const size_t entries = (u->buf_count * sizeof *u->bufs_at + page - 1) / page * page;
    const size_t pool = (size_t)u->buf_count << u->buf_shift;
    u->pool_memory_bytes = page + entries + pool;
    u->pool_memory = netsrv__mem_alloc(w->cfg, u->pool_memory_bytes);
    u->bufs = netsrv__mem_zeroed(w->cfg, u->buf_count, sizeof *u->bufs);
    if (u->pool_memory == NULL || u->bufs == NULL) {
        return ENOMEM;
    }
    const uintptr_t at = ((uintptr_t)u->pool_memory + page - 1) / page * page;
    u->bufs_at = (netsrv__ring_buf *)at;
    u->pool = (unsigned char *)at + entries;
    memset(u->bufs_at, 0, entries);
    return netsrv__uring_register(u, u->incremental ? NETSRV__RING_BUF_INC : 0);
}

static void netsrv__uring_free_pool(netsrv__worker *w, netsrv__uring *u) {
    if (u->pool != NULL) {
        NETSRV__UNPOISON(u->pool, (size_t)u->buf_count << u->buf_shift);
    }
    netsrv__mem_free(w->cfg, u->bufs, u->buf_count * sizeof *u->bufs);
    netsrv__mem_free(w->cfg, u->pool_memory, u->pool_memory_bytes);
    u->pool_memory = NULL;
    u->pool = NULL;
    u->bufs = NULL;
}

static void netsrv__uring_fill_pool(netsrv__uring *u) {
    memset(u->bufs, 0, u->buf_count * sizeof *u->bufs);
    u->registered = true;
    u->buf_tail = 0;
    u->buf_ready = 0;
    for (uint32_t id = 0; id < u->buf_count; id++) {
        netsrv__uring_buf_give(u, (uint16_t)id);
    }
    netsrv__uring_buf_publish(u);
}

static int netsrv__uring_open_pool(netsrv__worker *w, netsrv__uring *u) {
    u->incremental = true;
    netsrv__uring_size_pool(u, w->cfg->recv_buffer_bytes);
    int error = netsrv__uring_make_pool(w, u);
    if (error != 0 && error != ENOMEM) {
        netsrv__uring_free_pool(w, u);
        u->incremental = false;
        netsrv__uring_size_pool(u, w->cfg->recv_buffer_bytes);
        error = netsrv__uring_make_pool(w, u);
    }
    if (error != 0) {
        return error;
    }
    netsrv__uring_fill_pool(u);
    return 0;
}

/* All buffers anew, when no request is under way: it is not known which of them the kernel has. */
static int netsrv__uring_renew_pool(netsrv__uring *u) {
    netsrv__ring_buf_reg reg;
    memset(&reg, 0, sizeof reg);
    reg.group = NETSRV__RING_GROUP;
    if (u->registered &&
        netsrv__sys_ring_register(u->ring.fd, NETSRV__RING_UNREG_BUFS, &reg, 1) < 0) {
        return errno;
    }
    u->registered = false;
    const int error = netsrv__uring_register(u, u->incremental ? NETSRV__RING_BUF_INC : 0);
    if (error == 0) {
        netsrv__uring_fill_pool(u);
    }
    return error;
}

/* ---- pieces of replies ---- */

static void netsrv__uring_renew_pieces(netsrv__uring *u) {
    u->piece_free = NETSRV__URING_NONE;
    for (uint16_t i = NETSRV__URING_PIECES; i-- > 0;) {
        u->pieces[i].next = u->piece_free;
        u->piece_free = i;
    }
    for (int i = 0; i < 2; i++) {
        u->stages[i].used = 0;
        u->stages[i].refs = 0;
    }
    u->last_conn = UINT64_MAX;
    u->vectors_used = 0;
}

static int netsrv__uring_open_pieces(netsrv__worker *w, netsrv__uring *u) {
    u->pieces = netsrv__mem_zeroed(w->cfg, NETSRV__URING_PIECES, sizeof *u->pieces);
    u->vectors = netsrv__mem_zeroed(w->cfg, NETSRV__URING_VECTORS, sizeof *u->vectors);
    if (u->pieces == NULL || u->vectors == NULL) {
        return ENOMEM;
    }
    netsrv__uring_renew_pieces(u);
    return 0;
}

/* Room for a copy, or NULL. A half is used again when nothing in it is under way. */
static unsigned char *netsrv__uring_stage_room(netsrv__worker *w, netsrv__uring *u, size_t n) {
    netsrv__uring_stage *s = &u->stages[u->stage];
    if (NETSRV__URING_STAGE_BYTES - s->used < n) {
        u->stage ^= 1;
        s = &u->stages[u->stage];
    }
    if (s->bytes == NULL) {
        s->bytes = netsrv__mem_alloc(w->cfg, NETSRV__URING_STAGE_BYTES);
    }
    if (s->bytes == NULL || NETSRV__URING_STAGE_BYTES - s->used < n) {
        return NULL;
    }
    unsigned char *at = s->bytes + s->used;
    s->used += n;
    return at;
}

static void netsrv__uring_hold(netsrv__uring *u, uint16_t where) {
    if (where >= NETSRV__URING_STAGED) {
        u->stages[where - NETSRV__URING_STAGED].refs++;
    } else {
        u->bufs[where].refs++;
    }
}

static void netsrv__uring_let_go(netsrv__uring *u, uint16_t where) {
    if (where < NETSRV__URING_STAGED) {
        netsrv__uring_buf_release(u, where);
        return;
    }
    netsrv__uring_stage *s = &u->stages[where - NETSRV__URING_STAGED];
    s->used = --s->refs == 0 ? 0 : s->used;
}

/* Finds where the bytes lie, and copies those that lie in no buffer. NULL without room. */
static const unsigned char *netsrv__uring_place(netsrv__worker *w, netsrv__uring *u,
                                                const unsigned char *data, size_t n,
                                                uint16_t *where) {
    const uintptr_t at = (uintptr_t)data - (uintptr_t)u->pool;
    if (at < (uintptr_t)u->buf_count << u->buf_shift) {
        *where = (uint16_t)(at >> u->buf_shift);
        return data;
    }
    unsigned char *copy = n <= NETSRV__URING_STAGE_BYTES ? netsrv__uring_stage_room(w, u, n) : NULL;
    if (copy != NULL) {
        memcpy(copy, data, n);
    }
    *where = (uint16_t)(NETSRV__URING_STAGED + u->stage);
    return copy;
}

/* A piece that holds its bytes, or NONE. */
static uint16_t netsrv__uring_piece_new(netsrv__worker *w, netsrv__uring *u, netsrv_conn *c,
                                        const unsigned char *data, size_t n) {
    const uint16_t i = u->piece_free;
    if (i == NETSRV__URING_NONE) {
        return i;
    }
    netsrv__uring_piece *p = &u->pieces[i];
    p->data = netsrv__uring_place(w, u, data, n, &p->where);
    if (p->data == NULL) {
        return NETSRV__URING_NONE;
    }
    netsrv__uring_hold(u, p->where);
    u->piece_free = p->next;
    p->next = NETSRV__URING_NONE;
    p->conn = netsrv__conn_token(c);
    p->bytes = (uint32_t)n;
    return i;
}

static void netsrv__uring_piece_free(netsrv__uring *u, uint16_t i) {
    netsrv__uring_let_go(u, u->pieces[i].where);
    u->pieces[i].next = u->piece_free;
    u->piece_free = i;
}

/* ---- entries of connections ---- */

static netsrv__sqe *netsrv__uring_entry(netsrv__uring *u, int op, int fd, uint64_t token) {
    netsrv__sqe *sqe = NULL;
    if (NETSRV_SEAM_FAULT("ring_entry") == 0) {
        sqe = netsrv__ring_next(&u->ring);
    }
    if (sqe != NULL) {
        sqe->opcode = (uint8_t)op;
        sqe->fd = fd;
        sqe->token = token;
    }
    return sqe;
}

/* The same for a connection; what the token names in its low bits is exchanged. */
static netsrv__sqe *netsrv__uring_conn_entry(netsrv__uring *u, const netsrv_conn *c, int op,
                                             unsigned of) {
    return netsrv__uring_entry(u, op, c->fd, netsrv__conn_token(c) | of);
}

/* An end of the stream, or an error, right behind the last bytes may be lost to a lasting request
 * for input (seen on Linux 6.18; it looks as if two wake-ups were taken for one). So the end is
 * waited for as well. Asked for in front of the input: then it is told first, as a rule. */
static int netsrv__uring_arm_end(netsrv__uring *u, netsrv_conn *c) {
    if ((c->interest & (NETSRV__URING_END | NETSRV__URING_ENDED)) != 0) {
        return 0;
    }
    netsrv__sqe *sqe = netsrv__uring_conn_entry(u, c, NETSRV__RING_POLL, NETSRV__URING_OF_END);
    if (sqe == NULL) {
        return ENOBUFS;
    }
    sqe->op_flags = netsrv__ring_poll_mask(EPOLLRDHUP);
    c->interest |= NETSRV__URING_END;
    return 0;
}

/* Lasting, and with a limit. Where the kernel knows none (before 6.17), a peer may fill the buffers
 * beyond its high mark: once, for then it is asked for one buffer at a time. */
static int netsrv__uring_arm_recv(netsrv__uring *u, netsrv_conn *c) {
    const bool stopped = (c->interest & NETSRV__URING_STOPPED) != 0;
    const int error = netsrv__uring_arm_end(u, c);
    netsrv__sqe *sqe = NULL;
    if (error == 0) {
        sqe = netsrv__uring_conn_entry(u, c, NETSRV__RING_RECV, NETSRV__URING_OF_RECV);
    }
    if (sqe == NULL) {
        return ENOBUFS;
    }
    sqe->ioprio = NETSRV__RING_RECV_MULTI | NETSRV__RING_POLL_FIRST;
    sqe->flags = NETSRV__RING_SQE_BUFFER;
    sqe->group = NETSRV__RING_GROUP;
    c->interest |= NETSRV__URING_RECV;
    if ((c->interest & NETSRV__URING_ENDED) != 0 || (stopped && !u->recv_bounded)) {
        sqe->ioprio = NETSRV__RING_POLL_FIRST;
        sqe->len = u->recv_limit;
    } else if (u->recv_bounded) {
        sqe->file_index = stopped ? u->recv_limit : u->recv_first;
        sqe->len = u->recv_limit; /* at once: the last piece may exceed the limit by that */
        sqe->off = NETSRV_SEAM_FAULT("recv_limit") != 0; /* refused as a kernel before 6.17 does */
        c->interest |= NETSRV__URING_LIMITED;
    }
    return 0;
}

/* Reports changes, not states: a peer that has finished sending counts as an event for every other
 * way of waiting for room, and would be reported for ever. */
static int netsrv__uring_arm_poll(netsrv__uring *u, netsrv_conn *c) {
    if ((c->interest & (NETSRV__URING_POLL | NETSRV__URING_DETACHING)) != 0) {
        return 0;
    }
    netsrv__sqe *sqe = netsrv__uring_conn_entry(u, c, NETSRV__RING_POLL, NETSRV__URING_OF_POLL);
    if (sqe == NULL) {
        return ENOBUFS;
    }
    sqe->len = NETSRV__RING_POLL_MULTI;
    sqe->op_flags = netsrv__ring_poll_mask(NETSRV__OUT);
    c->interest |= NETSRV__URING_POLL;
    return 0;
}

/* Its own answer comes only if there was nothing to cancel, and is dropped. */
static bool netsrv__uring_cancel(netsrv__uring *u, uint64_t token) {
    netsrv__sqe *sqe = netsrv__uring_entry(u, NETSRV__RING_CANCEL, -1, NETSRV__URING_OF_NOTHING);
    if (sqe == NULL) {
        return false;
    }
    sqe->addr = token;
    sqe->flags = NETSRV__RING_SQE_QUIET;
    return true;
}

/* ---- waiting for a buffer ---- */

static netsrv_conn *netsrv__uring_parked_after(netsrv__worker *w, const netsrv_conn *c) {
    return c->parked_next != 0 ? netsrv__slab_at(&w->own.slab, c->parked_next - 1) : NULL;
}

static void netsrv__uring_park(netsrv__uring *u, netsrv_conn *c) {
    if ((c->interest & NETSRV__URING_PARKED) != 0) {
        return;
    }
    c->interest |= NETSRV__URING_PARKED;
    c->parked_next = 0;
    if (u->parked == NULL) {
        u->parked = c;
    } else {
        u->parked_last->parked_next = c->slot + 1;
    }
    u->parked_last = c;
}

static void netsrv__uring_unpark(netsrv__worker *w, netsrv__uring *u, netsrv_conn *c) {
    netsrv_conn *before = NULL;
    if ((c->interest & NETSRV__URING_PARKED) == 0) {
        return;
    }
    for (netsrv_conn *k = u->parked; k != c; k = netsrv__uring_parked_after(w, k)) {
        before = k;
    }
    if (before == NULL) {
        u->parked = netsrv__uring_parked_after(w, c);
    } else {
        before->parked_next = c->parked_next;
    }
    u->parked_last = u->parked_last == c ? before : u->parked_last;
    c->parked_next = 0;
    c->interest &= (uint16_t)~NETSRV__URING_PARKED;
}

/* As many as there are buffers; the others stay where they are. */
static void netsrv__uring_feed_parked(netsrv__worker *w, netsrv__uring *u) {
    for (uint32_t n = u->buf_ready; n != 0 && u->parked != NULL; n--) {
        netsrv_conn *c = u->parked;
        netsrv__uring_unpark(w, u, c);
        const int error = netsrv__uring_arm_recv(u, c);
        if (error != 0) {
            netsrv__conn_on_end(w, c, error);
        }
    }
}

/* ---- intentions of the core ---- */

/* One that is about to end is begun again when it has. */
static int netsrv__uring_recv_start(netsrv__worker *w, netsrv_conn *c) {
    if ((c->interest & (NETSRV__URING_RECV | NETSRV__URING_PARKED)) != 0) {
        return 0;
    }
    return netsrv__uring_arm_recv(w->own.uring, c);
}

static int netsrv__uring_recv_stop(netsrv__worker *w, netsrv_conn *c) {
    netsrv__uring *u = w->own.uring;
    c->interest |= NETSRV__URING_STOPPED;
    netsrv__uring_unpark(w, u, c);
    if ((c->interest & (NETSRV__URING_RECV | NETSRV__URING_RECV_ENDS)) == NETSRV__URING_RECV) {
        if (!netsrv__uring_cancel(u, netsrv__conn_token(c))) {
            return ENOBUFS;
        }
        c->interest |= NETSRV__URING_RECV_ENDS;
    }
    return netsrv__uring_arm_poll(u, c);
}

static bool netsrv__uring_unsubmitted(const netsrv__uring *u, uint32_t entry) {
    return (int32_t)(entry - u->ring.published) >= 0;
}

/* What several parts are described in, stable until they are submitted; NULL if all are taken. */
static netsrv__uring_vector *netsrv__uring_vector_new(netsrv__uring *u) {
    if (u->vectors_of != u->ring.published && netsrv__ring_unsubmitted(&u->ring) ==
                                                  u->ring.sq_tail - u->ring.published) {
        u->vectors_of = u->ring.published;
        u->vectors_used = 0;
    }
    if (u->vectors_used == NETSRV__URING_VECTORS) {
        return NULL;
    }
    netsrv__uring_vector *v = &u->vectors[u->vectors_used++];
    memset(&v->head, 0, sizeof v->head);
    v->head.msg_iov = v->iov;
    return v;
}

/* Another part for the send of one part in `sqe`, or of several. */
static bool netsrv__uring_add_part(netsrv__uring *u, netsrv__sqe *sqe, const void *data, size_t n) {
    netsrv__uring_vector *v = (netsrv__uring_vector *)(uintptr_t)sqe->addr;
    if (sqe->opcode == NETSRV__RING_SEND) {
        v = netsrv__uring_vector_new(u);
        if (v == NULL) {
            return false;
        }
        v->iov[0].iov_base = (void *)(uintptr_t)sqe->addr;
        v->iov[0].iov_len = sqe->len;
        v->head.msg_iovlen = 1;
        sqe->opcode = NETSRV__RING_SENDMSG;
        sqe->addr = (uint64_t)(uintptr_t)v;
        sqe->len = 1;
    }
    struct iovec *part = &v->iov[v->head.msg_iovlen++];
    part->iov_base = (void *)(uintptr_t)data;
    part->iov_len = n;
    return true;
}

/* The reply before this one has not left, and nothing came between: both leave in one send. */
static bool netsrv__uring_reply_more(netsrv__worker *w, netsrv__uring *u, netsrv_conn *c,
                                     const unsigned char *data, size_t n) {
    netsrv__uring_piece *last = &u->pieces[u->last_piece];
    netsrv__sqe *sqe = &u->ring.sqes[u->last_entry & u->ring.sq_mask];
    if (u->last_conn != netsrv__conn_token(c) || u->last_count == NETSRV__OUT_IOV ||
        !netsrv__uring_unsubmitted(u, u->last_entry)) {
        return false;
    }
    const uintptr_t at = (uintptr_t)data - (uintptr_t)u->pool;
    if (last->data + last->bytes == data && at >> u->buf_shift == last->where &&
        sqe->opcode == NETSRV__RING_SEND) {
        last->bytes += (uint32_t)n;
        sqe->len += (uint32_t)n;
        return true;
    }
    const uint16_t i = netsrv__uring_piece_new(w, u, c, data, n);
    if (i == NETSRV__URING_NONE) {
        return false;
    }
    if (!netsrv__uring_add_part(u, sqe, u->pieces[i].data, n)) {
        netsrv__uring_piece_free(u, i);
        return false;
    }
    u->pieces[u->last_piece].next = i;
    u->last_piece = i;
    u->last_count++;
    return true;
}

/* A first reply: one piece, one send, which does not wait. */
static bool netsrv__uring_reply_new(netsrv__worker *w, netsrv__uring *u, netsrv_conn *c,
                                    const unsigned char *data, size_t n) {
    const uint16_t i = netsrv__uring_piece_new(w, u, c, data, n);
    if (i == NETSRV__URING_NONE) {
        return false;
    }
    const uint64_t token = (uint64_t)i << 3 | NETSRV__URING_OF_REPLY;
    netsrv__sqe *sqe = netsrv__uring_entry(u, NETSRV__RING_SEND, c->fd, token);
    if (sqe == NULL) {
        netsrv__uring_piece_free(u, i);
        return false;
    }
    sqe->addr = (uint64_t)(uintptr_t)u->pieces[i].data;
    sqe->len = (uint32_t)NETSRV_SEAM_CLIP("send", n);
    sqe->op_flags = MSG_NOSIGNAL | MSG_DONTWAIT;
    c->interest |= NETSRV__URING_SEND;
    u->last_conn = sqe->len == n ? netsrv__conn_token(c) : UINT64_MAX;
    u->last_piece = i;
    u->last_count = 1;
    u->last_entry = u->ring.sq_tail - 1;
    return true;
}

static void netsrv__uring_reply(netsrv__worker *w, netsrv_conn *c, const void *data, size_t n) {
    netsrv__uring *u = w->own.uring;
    const int fault = NETSRV_SEAM_FAULT("send");
    bool taken = false;
    if (fault != 0 && fault != EAGAIN && fault != EINTR) {
        netsrv__conn_on_sent(w, c, 0, fault);
        return;
    }
    if (fault == 0 && n <= INT32_MAX) {
        taken = (c->interest & NETSRV__URING_SEND) != 0
                    ? c->sending != 0 && n <= INT32_MAX - c->sending &&
                          netsrv__uring_reply_more(w, u, c, data, n)
                    : netsrv__uring_reply_new(w, u, c, data, n);
    }
    if (!taken) {
        netsrv__conn_on_unsent(w, c, data, n);
        return;
    }
    c->sending += (uint32_t)n;
}

/* As much of the queue as goes into one send. */
static void netsrv__uring_fill_send(netsrv__uring *u, const netsrv_conn *c, netsrv__sqe *sqe) {
    const netsrv__chunk *k = c->out.head;
    const size_t n = netsrv__util_min(k->end - k->begin, INT32_MAX);
    int count = 1;
    sqe->addr = (uint64_t)(uintptr_t)(k->data + k->begin);
    sqe->len = (uint32_t)NETSRV_SEAM_CLIP("send", n);
    sqe->op_flags = MSG_NOSIGNAL | MSG_DONTWAIT;
    if (sqe->len != k->end - k->begin) {
        return;
    }
    for (k = k->next; k != NULL && k->data != NULL && count < NETSRV__OUT_IOV; k = k->next) {
        if (!netsrv__uring_add_part(u, sqe, k->data + k->begin, k->end - k->begin)) {
            return;
        }
        count++;
    }
    if (netsrv__out_file(&c->out, count) != NULL) {
        sqe->op_flags |= NETSRV__MORE;
    }
}

/* The kernel takes nothing now, and says so when it does again. */
static int netsrv__uring_await_room(netsrv__worker *w, netsrv_conn *c) {
    c->interest |= NETSRV__URING_FULL;
    netsrv__conn_on_blocked(w, c);
    return netsrv__uring_arm_poll(w->own.uring, c);
}

/* A piece of the file that comes next, directly. True if the core is to ask again, after the
 * others' turn. */
static bool netsrv__uring_send_file(netsrv__worker *w, netsrv_conn *c, netsrv__chunk *file) {
    const size_t n = netsrv__util_min(file->end - file->begin, NETSRV__FILE_PIECE);
    const ssize_t sent = netsrv__sys_sendfile(c->fd, file->fd, file->offset + file->begin, n);
    const int saved = errno;
    if (sent > 0) {
        netsrv__conn_on_sent(w, c, (size_t)sent, 0);
    } else if (sent == 0) {
        netsrv__conn_file_failed(w, c, 0);
        return false;
    } else if (saved == EAGAIN && !netsrv__sys_has_room(c->fd)) {
        const int error = netsrv__uring_await_room(w, c);
        if (error != 0) {
            netsrv__conn_on_sent(w, c, 0, error);
        }
        return false;
    } else if (saved != EINTR && saved != EAGAIN) {
        file->by_reading = true;
    }
    return c->out.bytes != 0;
}

/* Queued output: one send, or nothing but an answer after which the core asks again. */
static void netsrv__uring_begin_send(netsrv__worker *w, netsrv_conn *c, bool nothing, int fault) {
    netsrv__uring *u = w->own.uring;
    const int op = nothing ? NETSRV__RING_NOP : NETSRV__RING_SEND;
    netsrv__sqe *sqe = NULL;
    if (fault == 0) {
        sqe = netsrv__uring_conn_entry(u, c, op, NETSRV__URING_OF_SEND);
    }
    if (sqe == NULL) {
        netsrv__conn_on_sent(w, c, 0, fault != 0 ? fault : ENOBUFS);
        return;
    }
    c->interest |= NETSRV__URING_SEND;
    netsrv__conn_on_blocked(w, c);
    if (!nothing) {
        netsrv__uring_fill_send(u, c, sqe);
    }
}

static void netsrv__uring_send(netsrv__worker *w, netsrv_conn *c) {
    netsrv__chunk *file = netsrv__out_file(&c->out, 0);
    if (c->out.bytes == 0 || (c->interest & (NETSRV__URING_SEND | NETSRV__URING_FULL)) != 0) {
        return;
    }
    if (file != NULL && !file->by_reading) {
        if (netsrv__uring_send_file(w, c, file)) {
            netsrv__uring_begin_send(w, c, true, 0);
        }
        return;
    }
    if (file != NULL && !netsrv__conn_load_file(w, c)) {
        return;
    }
    const int fault = NETSRV_SEAM_FAULT("send");
    const bool later = fault == EAGAIN || fault == EINTR;
    netsrv__uring_begin_send(w, c, later, later ? 0 : fault);
}

/* True when nothing is under way any more, and the core was told. */
static bool netsrv__uring_detached(netsrv__worker *w, netsrv_conn *c) {
    if ((c->interest & NETSRV__URING_DETACHING) == 0) {
        return false;
    }
    if ((c->interest & NETSRV__URING_BUSY) == 0 && c->state != NETSRV__DEAD &&
        c->state != NETSRV__FREE) {
        c->interest = 0; /* one that was to move may stay */
        netsrv__conn_on_detached(w, c);
    }
    return true;
}

/* Each by its token, which the kernel finds at once: by their descriptor, it looks at every request
 * of the ring, 0.2 ms with 9000 connections. A send waits for nothing and ends by itself. */
static bool netsrv__uring_cancel_lasting(netsrv__uring *u, const netsrv_conn *c) {
    static const struct {
        unsigned interest;
        unsigned of;
    } lasting[] = {{NETSRV__URING_RECV, NETSRV__URING_OF_RECV},
                   {NETSRV__URING_POLL, NETSRV__URING_OF_POLL},
                   {NETSRV__URING_END, NETSRV__URING_OF_END}};
    for (size_t i = 0; i < sizeof lasting / sizeof *lasting; i++) {
        if ((c->interest & lasting[i].interest) != 0 &&
            !netsrv__uring_cancel(u, netsrv__conn_token(c) | lasting[i].of)) {
            return false;
        }
    }
    return true;
}

/* Closing the descriptor would end nothing: requests hold the socket. */
static void netsrv__uring_detach(netsrv__worker *w, netsrv_conn *c) {
    netsrv__uring *u = w->own.uring;
    const bool first = (c->interest & NETSRV__URING_DETACHING) == 0;
    c->interest |= NETSRV__URING_DETACHING;
    netsrv__uring_unpark(w, u, c);
    if (first && !netsrv__uring_cancel_lasting(u, c)) {
        c->interest &= (uint16_t)~NETSRV__URING_DETACHING;
        netsrv__conn_mark_dirty(w, c);
        return;
    }
    netsrv__uring_detached(w, c);
}

/* ---- listeners ---- */

static uint64_t netsrv__uring_gate_token(unsigned gate) {
    return (uint64_t)gate << 3 | NETSRV__URING_OF_ACCEPT;
}

static int netsrv__uring_arm_accept(netsrv__worker *w, unsigned gate) {
    netsrv__uring *u = w->own.uring;
    netsrv__sqe *sqe = netsrv__uring_entry(u, NETSRV__RING_ACCEPT, w->group->gates[gate].fd,
                                           netsrv__uring_gate_token(gate));
    if (sqe == NULL) {
        return ENOBUFS;
    }
    sqe->ioprio = NETSRV__RING_ACCEPT_MULTI;
    sqe->op_flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
    u->gates[gate].armed = true;
    return 0;
}

/* Those that are held come first. */
static int netsrv__uring_listen_start(netsrv__worker *w, unsigned gate) {
    netsrv__uring_gate *g = &w->own.uring->gates[gate];
    g->wanted = true;
    if (g->armed || g->held_count != 0) {
        return 0;
    }
    const int error = netsrv__uring_arm_accept(w, gate);
    g->wanted = error == 0;
    return error;
}

/* Returns when the kernel has let go of the listener, or it would listen beyond its close. */
static void netsrv__uring_listen_stop(netsrv__worker *w, unsigned gate) {
    netsrv__uring *u = w->own.uring;
    u->gates[gate].wanted = false;
    if (u->gates[gate].armed &&
        netsrv__ring_cancel_now(&u->ring, netsrv__uring_gate_token(gate), 0) != 0) {
        netsrv__uring_cancel(u, netsrv__uring_gate_token(gate));
    }
}

/* A request for connections that has ended is begun again, unless there is a reason not to. */
static void netsrv__uring_keep_accepting(netsrv__worker *w, unsigned gate) {
    netsrv__uring_gate *g = &w->own.uring->gates[gate];
    while (g->wanted && !g->armed && g->held_count == 0) {
        const int error = netsrv__uring_arm_accept(w, gate);
        if (error != 0) {
            netsrv__accept_failed(w, gate, error);
        }
    }
}

/* For later: the kernel has accepted it, and we may not yet. */
static void netsrv__uring_hold_fd(netsrv__worker *w, unsigned gate, int fd) {
    netsrv__uring *u = w->own.uring;
    netsrv__uring_gate *g = &u->gates[gate];
    if (g->held_count == g->held_cap) {
        const size_t cap = g->held_cap == 0 ? 64 : g->held_cap * 2;
        int *held = netsrv__mem_resize(w->cfg, g->held, g->held_cap * sizeof *held,
                                       cap * sizeof *held);
        if (held == NULL) {
            NETSRV__COUNT(w, no_memory, 1);
            netsrv__accept_refuse(fd);
            return;
        }
        g->held = held;
        g->held_cap = cap;
    }
    g->held[g->held_count++] = fd;
    u->held++;
}

static void netsrv__uring_on_fd(netsrv__worker *w, unsigned gate, int fd) {
    const netsrv__uring_gate *g = &w->own.uring->gates[gate];
    if (atomic_load_explicit(&w->srv->stop_at, memory_order_relaxed) != 0) {
        netsrv__accept_late(w, gate, fd);
    } else if (!g->wanted || g->held_count != 0 || !netsrv__accept_offer(w, gate, fd)) {
        netsrv__uring_hold_fd(w, gate, fd);
    }
}

/* First come, first served, until the listener is paused once more. */
static void netsrv__uring_serve_held(netsrv__worker *w, unsigned gate, bool stopping) {
    netsrv__uring *u = w->own.uring;
    netsrv__uring_gate *g = &u->gates[gate];
    size_t n = 0;
    while (n < g->held_count && (g->wanted || stopping)) {
        if (stopping) {
            netsrv__accept_late(w, gate, g->held[n]);
        } else if (!netsrv__accept_offer(w, gate, g->held[n])) {
            break;
        }
        n++;
    }
    memmove(g->held, g->held + n, (g->held_count - n) * sizeof *g->held);
    g->held_count -= n;
    u->held -= n;
    netsrv__uring_keep_accepting(w, gate);
}

static bool netsrv__uring_may_serve_held(const netsrv__uring *u) {
    for (unsigned gate = 0; u->held != 0 && gate < NETSRV_LISTEN_MAX; gate++) {
        if (u->gates[gate].held_count != 0 && u->gates[gate].wanted) {
            return true;
        }
    }
    return false;
}

static void netsrv__uring_serve_all_held(netsrv__worker *w, bool stopping) {
    for (unsigned gate = 0; gate < w->group->gate_count; gate++) {
        if (w->own.uring->gates[gate].held_count != 0) {
            netsrv__uring_serve_held(w, gate, stopping);
        }
    }
}

/* ---- completions ---- */

/* Always there: a connection lives until its last request is answered. */
static NETSRV__HOT netsrv_conn *netsrv__uring_conn_of(netsrv__worker *w, uint64_t token) {
    netsrv_conn *c = netsrv__slab_at(&w->own.slab, ((uint32_t)token >> 3));
    NETSRV_ASSERT(c->gen == (uint32_t)(token >> 32) && c->state != NETSRV__DEAD);
    return c;
}

static void netsrv__uring_recv_ended(netsrv__worker *w, netsrv_conn *c, int res) {
    netsrv__uring *u = w->own.uring;
    const bool limited = (c->interest & NETSRV__URING_LIMITED) != 0;
    const bool failed = res < 0 && res != -ECANCELED && res != -ENOBUFS && res != -EINTR &&
                        res != -EAGAIN && !(res == -EINVAL && limited);
    c->interest &= (uint16_t)~NETSRV__URING_LIMITED;
    if (failed) {
        netsrv__conn_on_end(w, c, -res); /* the socket tells it once, also one that is to move */
    }
    if (netsrv__uring_detached(w, c) || failed) {
        return;
    }
    if (res == -EINVAL && limited) {
        u->recv_bounded = false;
        res = -EINTR;
    }
    if (res == 0 && (c->flags & NETSRV__RECV_ON) == 0) {
        return; /* the end comes after what was kept: it will be there again */
    }
    if (res == 0) {
        netsrv__conn_on_end(w, c, 0);
        return;
    }
    if ((c->flags & NETSRV__RECV_ON) == 0 || (c->interest & NETSRV__URING_RECV) != 0) {
        return;
    }
    if (res == -ENOBUFS) {
        netsrv__uring_park(u, c);
        return;
    }
    const int error = netsrv__uring_arm_recv(u, c);
    if (error != 0) {
        netsrv__conn_on_end(w, c, error);
    }
}

/* All at once, except in test builds. */
static NETSRV__HOT void netsrv__uring_show(netsrv__worker *w, netsrv_conn *c,
                                           const unsigned char *data, size_t n) {
    const int fault = NETSRV_SEAM_FAULT("recv");
    if (fault != 0 && fault != EAGAIN && fault != EINTR) {
        netsrv__conn_on_end(w, c, fault);
        return;
    }
    while (n != 0 && c->state < NETSRV__CLOSING) {
        const size_t part = NETSRV_SEAM_CLIP("recv", n);
        netsrv__conn_on_recv(w, c, data, part);
        data += part;
        n -= part;
    }
}

static NETSRV__HOT void netsrv__uring_on_recv(netsrv__worker *w, netsrv_conn *c,
                                              const netsrv__cqe *cqe) {
    netsrv__uring *u = w->own.uring;
    const bool more = (cqe->flags & NETSRV__RING_CQE_MORE) != 0;
    if (!NETSRV__LIKELY(more)) {
        c->interest &= (uint16_t)~(NETSRV__URING_RECV | NETSRV__URING_RECV_ENDS);
    }
    if (NETSRV__LIKELY((cqe->flags & NETSRV__RING_CQE_BUFFER) != 0)) {
        const uint16_t id = (uint16_t)(cqe->flags >> NETSRV__RING_CQE_SHIFT);
        const uint32_t n = cqe->res > 0 ? (uint32_t)cqe->res : 0;
        const unsigned char *data = netsrv__uring_buf_take(u, id, n, cqe->flags);
        if (NETSRV__LIKELY(n != 0)) {
            netsrv__uring_show(w, c, data, n);
        }
        netsrv__uring_buf_release(u, id);
    }
    if (!NETSRV__LIKELY(more)) {
        netsrv__uring_recv_ended(w, c, cqe->res);
    }
}

/* A send has been answered: what comes next on this connection. */
static void netsrv__uring_send_ended(netsrv__worker *w, netsrv_conn *c) {
    c->interest &= (uint16_t)~NETSRV__URING_SEND;
    if (!netsrv__uring_detached(w, c)) {
        netsrv__conn_on_writable(w, c);
    }
}

static void netsrv__uring_on_send(netsrv__worker *w, netsrv_conn *c, int res) {
    const bool stays = c->state < NETSRV__CLOSING && (c->interest & NETSRV__URING_DETACHING) == 0;
    if (stays && res == -EAGAIN) {
        c->interest &= (uint16_t)~NETSRV__URING_SEND;
        res = -netsrv__uring_await_room(w, c);
        if (res == 0) {
            return;
        }
    }
    const bool none = res == -EINTR || res == -ECANCELED || res == -EAGAIN;
    if (c->state < NETSRV__CLOSING && res > 0) {
        netsrv__conn_on_sent(w, c, (size_t)res, 0);
    } else if (c->state < NETSRV__CLOSING && res < 0 && !none) {
        netsrv__conn_on_sent(w, c, 0, -res);
    }
    netsrv__uring_send_ended(w, c);
}

/* What the kernel did not take goes to the front of the queue: from the last piece to the first. */
static void netsrv__uring_return(netsrv__worker *w, netsrv_conn *c, uint16_t first, size_t sent) {
    netsrv__uring *u = w->own.uring;
    uint16_t order[NETSRV__OUT_IOV];
    unsigned count = 0;
    for (uint16_t i = first; i != NETSRV__URING_NONE; i = u->pieces[i].next) {
        order[count++] = i;
    }
    size_t before = c->sending;
    while (count-- > 0 && c->state < NETSRV__CLOSING) {
        const netsrv__uring_piece *p = &u->pieces[order[count]];
        before -= p->bytes;
        const size_t skip = sent > before ? netsrv__util_min(sent - before, p->bytes) : 0;
        if (skip < p->bytes) {
            netsrv__conn_on_returned(w, c, p->data + skip, p->bytes - skip);
        }
    }
}

NETSRV__COLD
static void netsrv__uring_reply_short(netsrv__worker *w, netsrv_conn *c, uint16_t first, int res) {
    const bool none = res == -EAGAIN || res == -EINTR || res == -ECANCELED;
    if (res < 0 && !none) {
        if (c->state < NETSRV__CLOSING) {
            netsrv__conn_on_sent(w, c, 0, -res);
        }
        return;
    }
    const size_t sent = res > 0 ? (size_t)res : 0;
    netsrv__conn_on_replied(w, c, sent);
    netsrv__uring_return(w, c, first, sent);
}

static NETSRV__HOT void netsrv__uring_on_reply(netsrv__worker *w, uint16_t first, int res) {
    netsrv__uring *u = w->own.uring;
    netsrv_conn *c = netsrv__uring_conn_of(w, u->pieces[first].conn);
    NETSRV_ASSERT(c->sending != 0);
    if (NETSRV__LIKELY(res == (int)c->sending)) {
        netsrv__conn_on_replied(w, c, c->sending);
    } else {
        netsrv__uring_reply_short(w, c, first, res);
    }
    c->sending = 0;
    for (uint16_t i = first; i != NETSRV__URING_NONE;) {
        const uint16_t next = u->pieces[i].next;
        netsrv__uring_piece_free(u, i);
        i = next;
    }
    if (NETSRV__LIKELY((c->flags & NETSRV__PLAIN) != 0)) {
        c->interest &= (uint16_t)~NETSRV__URING_SEND;
        return;
    }
    netsrv__uring_send_ended(w, c);
}

/* The poll has ended by itself, as any lasting request may. */
static void netsrv__uring_watch_again(netsrv__worker *w, netsrv_conn *c) {
    const bool needed = (c->interest & NETSRV__URING_FULL) != 0 ||
                        (c->flags & NETSRV__RECV_ON) == 0;
    const int error = needed ? netsrv__uring_arm_poll(w->own.uring, c) : 0;
    if (error != 0) {
        netsrv__conn_on_end(w, c, error);
    }
}

/* An error or hang-up while no input is wanted. With input wanted, that will tell. */
static bool netsrv__uring_hung_up(netsrv__worker *w, netsrv_conn *c, unsigned mask) {
    if ((mask & (NETSRV__ERR | NETSRV__HUP)) == 0 || (c->flags & NETSRV__RECV_ON) != 0) {
        return false;
    }
    const int error = netsrv__sys_socket_error(c->fd);
    if (error != 0 || (mask & NETSRV__ERR) != 0) {
        netsrv__conn_on_end(w, c, error != 0 ? error : ECONNRESET);
        return true;
    }
    return false;
}

static void netsrv__uring_on_poll(netsrv__worker *w, netsrv_conn *c, const netsrv__cqe *cqe) {
    const unsigned mask = cqe->res > 0 ? (unsigned)cqe->res : 0;
    const unsigned over = NETSRV__ERR | NETSRV__HUP;
    if ((cqe->flags & NETSRV__RING_CQE_MORE) == 0) {
        c->interest &= (uint16_t)~NETSRV__URING_POLL;
    }
    if (netsrv__uring_detached(w, c) || netsrv__uring_hung_up(w, c, mask)) {
        return;
    }
    if ((c->interest & NETSRV__URING_FULL) != 0 && (mask & (NETSRV__OUT | over)) != 0) {
        c->interest &= (uint16_t)~NETSRV__URING_FULL;
        netsrv__conn_on_writable(w, c);
    }
    if (c->state < NETSRV__CLOSING && cqe->res != -ECANCELED && (mask & over) == 0) {
        netsrv__uring_watch_again(w, c);
    }
}

/* The peer has finished, or failed: a request for input that missed it is made anew. */
static void netsrv__uring_on_peer_end(netsrv__worker *w, netsrv_conn *c) {
    const unsigned recv = NETSRV__URING_RECV | NETSRV__URING_RECV_ENDS;
    c->interest &= (uint16_t)~NETSRV__URING_END;
    c->interest |= NETSRV__URING_ENDED;
    if (netsrv__uring_detached(w, c) || (c->interest & recv) != NETSRV__URING_RECV) {
        return;
    }
    c->interest |= NETSRV__URING_RECV_ENDS;
    if (!netsrv__uring_cancel(w->own.uring, netsrv__conn_token(c))) {
        c->interest &= (uint16_t)~NETSRV__URING_RECV_ENDS;
        netsrv__conn_on_end(w, c, ENOBUFS);
    }
}

static void netsrv__uring_on_accept(netsrv__worker *w, unsigned gate, const netsrv__cqe *cqe) {
    netsrv__uring_gate *g = &w->own.uring->gates[gate];
    if ((cqe->flags & NETSRV__RING_CQE_MORE) == 0) {
        g->armed = false;
    }
    if (cqe->res >= 0) {
        netsrv__uring_on_fd(w, gate, cqe->res);
    } else if (cqe->res != -ECANCELED && g->wanted) {
        netsrv__accept_failed(w, gate, -cqe->res);
    }
    netsrv__uring_keep_accepting(w, gate);
}

static int netsrv__uring_watch_wake(netsrv__worker *w) {
    netsrv__uring *u = w->own.uring;
    netsrv__sqe *sqe = netsrv__uring_entry(u, NETSRV__RING_POLL, w->group->wake.read_fd,
                                           NETSRV__URING_OF_WAKE);
    if (sqe == NULL) {
        return ENOBUFS;
    }
    sqe->len = NETSRV__RING_POLL_MULTI;
    sqe->op_flags = netsrv__ring_poll_mask(NETSRV__IN);
    u->wake_watched = true;
    return 0;
}

static void netsrv__uring_on_wake(netsrv__worker *w, const netsrv__cqe *cqe) {
    NETSRV__COUNT(w, wakes, 1);
    netsrv__mailbox_wake_drain(&w->group->wake);
    w->own.uring->wake_watched = (cqe->flags & NETSRV__RING_CQE_MORE) != 0;
}

/* What fails for ever must not make the thread spin. */
static void netsrv__uring_rest(netsrv__worker *w, int sys_errno) {
    if (netsrv__accept_may_log(w->srv)) {
        netsrv__log_line(w->cfg, NETSRV_LOG_ERROR, "worker %u cannot wait for events: %s",
                         w->index, strerror(sys_errno));
    }
    netsrv__sys_nap();
}

/* ---- foreign descriptors ---- */

/* They are few and seldom ready: an epoll instance of their own has exactly what is asked of them,
 * and the ring watches that. */
static int netsrv__uring_open_foreign(netsrv__worker *w) {
    const size_t cap = w->cfg->events_per_wait;
    w->own.events = netsrv__mem_alloc(w->cfg, cap * sizeof *w->own.events);
    w->own.raw_events = netsrv__mem_alloc(w->cfg, cap * netsrv__epoll_poller.raw_bytes);
    if (w->own.events == NULL || w->own.raw_events == NULL) {
        return ENOMEM;
    }
    return netsrv__epoll_open(w->srv, w->group);
}

static void netsrv__uring_close_foreign(netsrv__worker *w) {
    const size_t cap = w->cfg->events_per_wait;
    netsrv__epoll_close(w->srv, w->group);
    netsrv__mem_free(w->cfg, w->own.events, cap * sizeof *w->own.events);
    netsrv__mem_free(w->cfg, w->own.raw_events, cap * netsrv__epoll_poller.raw_bytes);
    w->own.events = NULL;
    w->own.raw_events = NULL;
}

/* Looked at once: asked again after each look, it tells as long as anything is ready. */
static int netsrv__uring_watch_foreign(netsrv__worker *w) {
    netsrv__uring *u = w->own.uring;
    if (u->foreign_watched) {
        return 0;
    }
    netsrv__sqe *sqe = netsrv__uring_entry(u, NETSRV__RING_POLL, w->group->poller_fd,
                                           NETSRV__URING_FOREIGN);
    if (sqe == NULL) {
        return ENOBUFS;
    }
    sqe->op_flags = netsrv__ring_poll_mask(NETSRV__IN);
    u->foreign_watched = true;
    return 0;
}

static int netsrv__uring_watch(netsrv__worker *w, netsrv__watch *x) {
    const int error = netsrv__uring_watch_foreign(w);
    return error != 0 && x->wanted != 0 ? error : netsrv__ready_foreign(w, x);
}

static void netsrv__uring_on_foreign(netsrv__worker *w) {
    w->own.uring->foreign_watched = false;
    const int n = netsrv__epoll_wait(w, 0);
    if (n < 0 && errno != EINTR) {
        netsrv__uring_rest(w, errno);
    }
    for (int i = 0; i < n; i++) {
        const netsrv__event event = w->own.events[i];
        netsrv__watch_on_event(w, event.token, event.mask);
    }
}

NETSRV__COLD
static void netsrv__uring_dispatch_other(netsrv__worker *w, const netsrv__cqe *cqe) {
    switch ((unsigned)cqe->token & NETSRV__TOKEN_MASK) {
    case NETSRV__URING_OF_ACCEPT:
        netsrv__uring_on_accept(w, (unsigned)(cqe->token >> 3), cqe);
        break;
    case NETSRV__URING_OF_WAKE:
        if (cqe->token == NETSRV__URING_FOREIGN) {
            netsrv__uring_on_foreign(w);
        } else {
            netsrv__uring_on_wake(w, cqe);
        }
        break;
    case NETSRV__URING_OF_SEND:
        netsrv__uring_on_send(w, netsrv__uring_conn_of(w, cqe->token), cqe->res);
        break;
    case NETSRV__URING_OF_END:
        netsrv__uring_on_peer_end(w, netsrv__uring_conn_of(w, cqe->token));
        break;
    case NETSRV__URING_OF_POLL:
        netsrv__uring_on_poll(w, netsrv__uring_conn_of(w, cqe->token), cqe);
        break;
    default:
        break;
    }
}

static NETSRV__HOT void netsrv__uring_dispatch(netsrv__worker *w, const netsrv__cqe *cqe) {
    const unsigned of = (unsigned)cqe->token & NETSRV__TOKEN_MASK;
    if (NETSRV__LIKELY(of == NETSRV__URING_OF_RECV)) {
        netsrv__uring_on_recv(w, netsrv__uring_conn_of(w, cqe->token), cqe);
    } else if (NETSRV__LIKELY(of == NETSRV__URING_OF_REPLY)) {
        netsrv__uring_on_reply(w, (uint16_t)(cqe->token >> 3), cqe->res);
    } else {
        netsrv__uring_dispatch_other(w, cqe);
    }
}

/* ---- life and turn ---- */

static int netsrv__uring_probe(unsigned *can) {
    (void)can;
    return netsrv__ring_probe();
}

static const char *netsrv__uring_why(int sys_errno) {
    switch (sys_errno) {
    case ECANCELED:
        return "switched off by NETSRV_NO_IO_URING in the environment";
    case EPERM:
    case EACCES:
        return "not permitted (a seccomp filter, or kernel.io_uring_disabled)";
    case ENOSYS:
        return "this kernel does not have it, or a seccomp filter denies it";
    case EINVAL:
        return "it needs Linux 6.1 or newer";
    default:
        return strerror(sys_errno);
    }
}

/* A request anew costs as much as a message of 4 KiB; much input in advance costs memory. */
static uint32_t netsrv__uring_first_limit(uint32_t limit) {
    const size_t more = netsrv__util_min((size_t)limit * 4, NETSRV__URING_FIRST_BYTES);
    return (uint32_t)netsrv__util_max(limit, more);
}

static int netsrv__uring_open(netsrv__worker *w) {
    netsrv__uring *u = netsrv__mem_zeroed(w->cfg, 1, sizeof *u);
    if (u == NULL) {
        return ENOMEM;
    }
    w->own.uring = u;
    u->ring.fd = -1;
    u->recv_bounded = true;
    u->recv_limit = w->cfg->bytes_per_turn;
    u->recv_first = netsrv__uring_first_limit(u->recv_limit);
    const size_t entries = NETSRV_SEAM_CLIP("ring", NETSRV__URING_ENTRIES);
    const size_t completions = NETSRV_SEAM_CLIP("ring", NETSRV__URING_COMPLETIONS);
    int error = netsrv__ring_open(&u->ring, (unsigned)entries, (unsigned)completions);
    if (error == 0 && w->serves) {
        error = netsrv__uring_open_pieces(w, u);
        error = error != 0 ? error : netsrv__uring_open_pool(w, u);
        error = error != 0 ? error : netsrv__uring_open_foreign(w);
    }
    return error != 0 ? error : netsrv__uring_watch_wake(w);
}

/* Nobody looks at them any more. */
static void netsrv__uring_drop_completions(netsrv__ring *r) {
    for (uint32_t left = r->fd >= 0 ? netsrv__ring_waiting(r) : 0; left != 0; left--) {
        const netsrv__cqe *cqe = &r->cqes[r->cq_head & r->cq_mask];
        if ((cqe->token & NETSRV__TOKEN_MASK) == NETSRV__URING_OF_ACCEPT && cqe->res >= 0) {
            netsrv__accept_refuse(cqe->res);
        }
        netsrv__ring_take(r, 1);
    }
}

static void netsrv__uring_close_held(netsrv__worker *w) {
    for (unsigned gate = 0; gate < NETSRV_LISTEN_MAX; gate++) {
        netsrv__uring_gate *g = &w->own.uring->gates[gate];
        while (g->held_count != 0) {
            netsrv__accept_refuse(g->held[--g->held_count]);
        }
        netsrv__mem_free(w->cfg, g->held, g->held_cap * sizeof *g->held);
    }
}

/* All requests end, and with them what they hold. What has been triggered already is not found by a
 * cancel, and may go on once more: over when nothing has come several times. False if it could not
 * be brought about. */
static bool netsrv__uring_end_all(netsrv__uring *u) {
    int quiet = 0;
    int failed = 0;
    for (int tries = 0; tries < 1000 && quiet < 3 && failed < 3; tries++) {
        if (netsrv__ring_cancel_now(&u->ring, 0,
                                    NETSRV__RING_CANCEL_ANY | NETSRV__RING_CANCEL_ALL) != 0) {
            return false;
        }
        failed = netsrv__ring_wait(&u->ring, 0) != 0 ? failed + 1 : 0;
        const bool over = netsrv__ring_waiting(&u->ring) == 0 &&
                          netsrv__ring_unsubmitted(&u->ring) == 0;
        quiet = over ? quiet + 1 : 0;
        netsrv__uring_drop_completions(&u->ring);
    }
    return quiet == 3;
}

/* Every buffer, and every place for a reply, is back. */
static void netsrv__uring_assert_returned(const netsrv__uring *u) {
    NETSRV_ASSERT(u->parked == NULL && u->stages[0].refs == 0 && u->stages[1].refs == 0);
    for (uint32_t i = 0; u->registered && i < u->buf_count; i++) {
        NETSRV_ASSERT(u->bufs[i].refs == 0 && !u->bufs[i].ours);
    }
    (void)u;
}

static void netsrv__uring_close(netsrv__worker *w) {
    netsrv__uring *u = w->own.uring;
    if (u == NULL) {
        return;
    }
    if (!u->abandoned) {
        netsrv__uring_assert_returned(u);
    }
    if (u->ring.fd >= 0 && !u->abandoned && !netsrv__uring_end_all(u)) {
        u->failures++;
    }
    netsrv__uring_drop_completions(&u->ring);
    netsrv__uring_close_held(w);
    netsrv__uring_close_foreign(w);
    netsrv__ring_close(&u->ring);
    if (u->failures != 0) {
        netsrv__sys_nap(); /* the kernel ends by and by what we could not */
    }
    netsrv__uring_free_pool(w, u);
    netsrv__mem_free(w->cfg, u->pieces, NETSRV__URING_PIECES * sizeof *u->pieces);
    netsrv__mem_free(w->cfg, u->vectors, NETSRV__URING_VECTORS * sizeof *u->vectors);
    netsrv__mem_free(w->cfg, u->stages[0].bytes, NETSRV__URING_STAGE_BYTES);
    netsrv__mem_free(w->cfg, u->stages[1].bytes, NETSRV__URING_STAGE_BYTES);
    netsrv__mem_free(w->cfg, u, sizeof *u);
    w->own.uring = NULL;
}

/* What was under way is taken for ended. */
static void netsrv__uring_forget_requests(netsrv__worker *w) {
    const netsrv__slab *slab = &w->own.slab;
    for (uint32_t slot = 0; slot < slab->chunk_count * NETSRV__SLAB_CHUNK; slot++) {
        netsrv_conn *c = netsrv__slab_at(slab, slot);
        c->interest &= (uint16_t)~NETSRV__URING_BUSY;
        c->sending = 0;
        netsrv__uring_detached(w, c);
    }
}

/* The time of a stop is over, and the kernel answers no more: what is under way is ended by another
 * way. Nothing is asked of the ring from then on. */
static void netsrv__uring_abandon(netsrv__worker *w) {
    netsrv__uring *u = w->own.uring;
    netsrv__ring_cancel_now(&u->ring, 0, NETSRV__RING_CANCEL_ANY | NETSRV__RING_CANCEL_ALL);
    u->abandoned = true;
    netsrv__uring_forget_requests(w);
}

static void netsrv__uring_fail_conns(netsrv__worker *w, int sys_errno) {
    const netsrv__slab *slab = &w->own.slab;
    for (uint32_t slot = 0; slot < slab->chunk_count * NETSRV__SLAB_CHUNK; slot++) {
        netsrv_conn *c = netsrv__slab_at(slab, slot);
        if (c->state != NETSRV__FREE && c->state != NETSRV__DEAD) {
            netsrv__conn_fail(w, c, sys_errno);
        }
    }
}

static void netsrv__uring_renew_gates(netsrv__worker *w) {
    for (unsigned gate = 0; gate < w->group->gate_count; gate++) {
        w->own.uring->gates[gate].armed = false;
        netsrv__uring_keep_accepting(w, gate);
    }
}

/* Listeners, wake-ups and buffers; connections are closing. False if something is missing yet. */
static bool netsrv__uring_renew(netsrv__worker *w) {
    netsrv__uring *u = w->own.uring;
    if (!netsrv__uring_end_all(u)) {
        return false;
    }
    netsrv__uring_forget_requests(w);
    u->wake_watched = false;
    u->foreign_watched = false;
    netsrv__uring_renew_gates(w);
    if (!w->serves) {
        return true;
    }
    netsrv__uring_renew_pieces(u);
    return netsrv__uring_renew_pool(u) == 0;
}

/* The kernel had no memory for completions: bytes of any connection and answers to any request are
 * lost. Connections end, as a stream with a hole would be worse; all else is set up anew, in the
 * next turn again if that fails. */
static void netsrv__uring_recover(netsrv__worker *w) {
    netsrv__uring *u = w->own.uring;
    if (!u->broken) {
        netsrv__log_line(w->cfg, NETSRV_LOG_ERROR,
                         "worker %u: the kernel had no memory for completions and dropped some: "
                         "all connections of this worker are closed", w->index);
    }
    netsrv__uring_fail_conns(w, ENOBUFS);
    u->broken = !netsrv__uring_renew(w);
    if (u->broken) {
        netsrv__sys_nap();
    }
}

/* The ring could not be entered. */
static void netsrv__uring_wait_failed(netsrv__worker *w, int sys_errno) {
    if (sys_errno == EINTR || sys_errno == EAGAIN) {
        w->own.event_count = -1;
        return;
    }
    w->own.uring->failures++;
    if (w->own.phase == NETSRV__FORCED && w->own.uring->failures > 2) {
        netsrv__uring_abandon(w);
        return;
    }
    netsrv__uring_rest(w, sys_errno);
}

/* False if something could not be asked for, and must be tried again. */
static bool netsrv__uring_watch_all(netsrv__worker *w) {
    const netsrv__uring *u = w->own.uring;
    if (!u->wake_watched && netsrv__uring_watch_wake(w) != 0) {
        return false;
    }
    return w->group->poller_fd < 0 || netsrv__uring_watch_foreign(w) == 0;
}

/* One batch. */
static void netsrv__uring_dispatch_all(netsrv__worker *w) {
    netsrv__ring *r = &w->own.uring->ring;
    const uint32_t count = (uint32_t)netsrv__util_min(netsrv__ring_waiting(r),
                                                      w->cfg->events_per_wait);
    w->own.event_count = (int)count;
    for (uint32_t i = 0; i < count; i++) {
        const netsrv__cqe cqe = r->cqes[r->cq_head & r->cq_mask];
        netsrv__ring_take(r, 1);
        netsrv__uring_dispatch(w, &cqe);
    }
}

static void netsrv__uring_wait(netsrv__worker *w, int timeout_ms) {
    netsrv__uring *u = w->own.uring;
    if (u->abandoned) {
        netsrv__timer_woke(w);
        return;
    }
    if (w->serves) {
        netsrv__uring_feed_parked(w, u);
        netsrv__uring_buf_publish(u);
    }
    if (!netsrv__uring_watch_all(w) || netsrv__ring_waiting(&u->ring) != 0 ||
        netsrv__uring_may_serve_held(u) || u->broken) {
        timeout_ms = 0;
    }
    const int failed = netsrv__ring_wait(&u->ring, timeout_ms) != 0 ? errno : 0;
    netsrv__timer_woke(w);
    if (!NETSRV__LIKELY(!netsrv__ring_has_lost(&u->ring)) || u->broken) {
        netsrv__uring_recover(w);
        return;
    }
    netsrv__uring_dispatch_all(w);
    if (u->held != 0) {
        netsrv__uring_serve_all_held(w, false);
    }
    if (failed == 0) {
        u->failures = 0;
    } else if (w->own.event_count == 0) {
        netsrv__uring_wait_failed(w, failed);
    }
}

static bool netsrv__uring_accepts(const netsrv__worker *w) {
    for (unsigned gate = 0; gate < w->group->gate_count; gate++) {
        if (w->own.uring->gates[gate].armed) {
            return true;
        }
    }
    return false;
}

/* What the kernel had accepted before it let go of the listeners is placed while all threads can
 * still be given something. */
static void netsrv__uring_listen_end(netsrv__worker *w) {
    netsrv__uring_serve_all_held(w, true);
    w->own.uring->failures = 0;
    for (int tries = 0; tries < 1000 && w->own.uring->failures < 3; tries++) {
        if (!netsrv__uring_accepts(w)) {
            return;
        }
        netsrv__uring_wait(w, 0);
    }
}

#endif /* NETSRV__HAS_IO_URING */

/* ========================================================================== *
 *  [backend] The backends of this build, best first
 *  uses:   -
 *  thread: any
 * ========================================================================== */

static const netsrv__io_ops netsrv__backend_list[] = {
#if NETSRV__HAS_IO_URING
    {
        .name = "io_uring",
        .backend = NETSRV_BACKEND_IO_URING,
        .can = NETSRV__CAN_EXCLUSIVE,
        .by_name = !NETSRV__PREFERS_IO_URING,
        .poller = &netsrv__epoll_poller,
        .probe = netsrv__uring_probe,
        .why = netsrv__uring_why,
        .open = netsrv__uring_open,
        .close = netsrv__uring_close,
        .listen_start = netsrv__uring_listen_start,
        .listen_stop = netsrv__uring_listen_stop,
        .listen_end = netsrv__uring_listen_end,
        .recv_start = netsrv__uring_recv_start,
        .recv_stop = netsrv__uring_recv_stop,
        .reply = netsrv__uring_reply,
        .send = netsrv__uring_send,
        .detach = netsrv__uring_detach,
        .watch = netsrv__uring_watch,
        .wait = netsrv__uring_wait,
    },
#endif
#if NETSRV__HAS_EPOLL
    {
        .name = "epoll",
        .backend = NETSRV_BACKEND_EPOLL,
        .can = NETSRV__CAN_EDGE | NETSRV__CAN_ONESHOT | NETSRV__CAN_EXCLUSIVE |
               NETSRV__CAN_SHARE | NETSRV__CAN_GIVE,
        .poller = &netsrv__epoll_poller,
        .probe = netsrv__epoll_probe,
        NETSRV__READY_OPS,
    },
#endif
#if NETSRV__HAS_KQUEUE
    {
        .name = "kqueue",
        .backend = NETSRV_BACKEND_KQUEUE,
        .can = NETSRV__CAN_EDGE | NETSRV__CAN_ONESHOT | NETSRV__CAN_SHARE | NETSRV__CAN_GIVE |
               NETSRV__CAN_WAKE,
        .poller = &netsrv__kqueue_poller,
        .probe = netsrv__kqueue_probe,
        NETSRV__READY_OPS,
    },
#endif
    {
        .name = "poll",
        .backend = NETSRV_BACKEND_POLL,
        .can = 0,
        .poller = &netsrv__poll_poller,
        .probe = netsrv__poll_probe,
        NETSRV__READY_OPS,
    },
};
#define NETSRV__BACKENDS (sizeof netsrv__backend_list / sizeof *netsrv__backend_list)

/* NULL if it is not in this build. */
static const netsrv__io_ops *netsrv__backend_find(netsrv_backend backend) {
    for (size_t i = 0; i < NETSRV__BACKENDS; i++) {
        if (netsrv__backend_list[i].backend == backend) {
            return &netsrv__backend_list[i];
        }
    }
    return NULL;
}

/* ========================================================================== *
 *  [place] Which worker gets a connection
 *  uses:   util pulse
 *  thread: any accepting one
 * ========================================================================== */

static uint32_t netsrv__place_load(const netsrv_server *srv, unsigned i) {
    return atomic_load_explicit(&srv->workers[i].load, memory_order_relaxed);
}

/* Stuck in a callback for longer than stall_ms. */
static bool netsrv__place_stalled(const netsrv_server *srv, const netsrv__worker *self,
                                  unsigned i) {
    const netsrv__worker *w = &srv->workers[i];
    const uint32_t since = atomic_load_explicit(&w->busy_since, memory_order_relaxed);
    if (w == self || since == 0 || srv->cfg.stall_ms == NETSRV_OFF) {
        return false;
    }
    const uint32_t age = (uint32_t)self->own.now_ms - since;
    return age <= INT32_MAX && age > srv->cfg.stall_ms; /* beyond that, it began after our turn */
}

/* The first from i on that is not stuck; i itself if all are. */
static unsigned netsrv__place_free(const netsrv_server *srv, const netsrv__worker *self,
                                   unsigned i) {
    const unsigned n = srv->cfg.workers;
    for (unsigned k = 0; k < n; k++) {
        if (!netsrv__place_stalled(srv, self, (i + k) % n)) {
            return (i + k) % n;
        }
    }
    return i;
}

static unsigned netsrv__place_keep(netsrv_server *srv, netsrv__worker *self,
                                   const netsrv__arrival *a) {
    (void)srv;
    (void)a;
    return self->index;
}

static unsigned netsrv__place_round_robin(netsrv_server *srv, netsrv__worker *self,
                                          const netsrv__arrival *a) {
    (void)a;
    const uint32_t turn = atomic_fetch_add_explicit(&srv->turn, 1, memory_order_relaxed);
    return netsrv__place_free(srv, self, turn % srv->cfg.workers);
}

/* Begins at a rotating place, so that equal load is spread as well. */
static unsigned netsrv__place_least(netsrv_server *srv, netsrv__worker *self,
                                    const netsrv__arrival *a) {
    (void)a;
    const unsigned n = srv->cfg.workers;
    const uint32_t turn = atomic_fetch_add_explicit(&srv->turn, 1, memory_order_relaxed);
    unsigned best = netsrv__place_free(srv, self, turn % n);
    for (unsigned k = 1; k < n; k++) {
        const unsigned i = (turn % n + k) % n;
        if (netsrv__place_load(srv, i) < netsrv__place_load(srv, best) &&
            !netsrv__place_stalled(srv, self, i)) {
            best = i;
        }
    }
    return best;
}

/* The lighter of two at random (Azar and others, 1994): nearly as even as the least of all, and no
 * worker's counter is read by everybody. */
static unsigned netsrv__place_two_choices(netsrv_server *srv, netsrv__worker *self,
                                          const netsrv__arrival *a) {
    (void)a;
    const unsigned n = srv->cfg.workers;
    const unsigned first = netsrv__util_random(&self->own.random) % n;
    if (n == 1) {
        return first;
    }
    const unsigned step = 1 + netsrv__util_random(&self->own.random) % (n - 1);
    const unsigned one = netsrv__place_free(srv, self, first);
    const unsigned two = netsrv__place_free(srv, self, (first + step) % n);
    const uint32_t load_one = netsrv__place_load(srv, one);
    const uint32_t load_two = netsrv__place_load(srv, two);
    if (load_one == load_two) {
        return two == self->index && self->serves ? two : one;
    }
    return load_one < load_two ? one : two;
}

/* Also onto a stuck worker: the same client, the same worker is what was asked for. Unix sockets
 * have no address and go round. */
static unsigned netsrv__place_peer_hash(netsrv_server *srv, netsrv__worker *self,
                                        const netsrv__arrival *a) {
    if (a->peer.family != AF_INET && a->peer.family != AF_INET6) {
        return netsrv__place_round_robin(srv, self, a);
    }
    return (unsigned)(netsrv__util_hash16(srv->seed, a->peer.ip) % srv->cfg.workers);
}

static unsigned netsrv__place_custom(netsrv_server *srv, netsrv__worker *self,
                                     const netsrv__arrival *a) {
    netsrv_peer peer;
    memset(&peer, 0, sizeof peer);
    peer.family = a->peer.family;
    peer.port = a->peer.port;
    memcpy(peer.address, a->peer.ip, sizeof peer.address);
    peer.listener = a->listener;
    netsrv__pulse_begin(self, NETSRV__ACT_PICK, 0, NULL);
    const unsigned i = srv->cfg.pick(srv, &peer, self->index);
    netsrv__pulse_end(self);
    if (i < srv->cfg.workers) {
        return i;
    }
    return self->serves ? self->index : 0;
}

static const netsrv__place_ops netsrv__place_list[] = {
    {NETSRV_PLACE_KEEP, netsrv__place_keep},
    {NETSRV_PLACE_ROUND_ROBIN, netsrv__place_round_robin},
    {NETSRV_PLACE_LEAST, netsrv__place_least},
    {NETSRV_PLACE_TWO_CHOICES, netsrv__place_two_choices},
    {NETSRV_PLACE_PEER_HASH, netsrv__place_peer_hash},
    {NETSRV_PLACE_CUSTOM, netsrv__place_custom},
};

static const netsrv__place_ops *netsrv__place_find(netsrv_place place) {
    for (size_t i = 0; i < sizeof netsrv__place_list / sizeof *netsrv__place_list; i++) {
        if (netsrv__place_list[i].place == place) {
            return &netsrv__place_list[i];
        }
    }
    return NULL;
}

/* ========================================================================== *
 *  [jobs] Callbacks on other threads: lending a connection and taking it back
 *  uses:   log mem util sys pulse out mailbox conn accept
 *  thread: owner; run, hand = a handler thread; open, close = the program's
 * ========================================================================== */

/* A connection that is owed a callback is lent to a job: its kept input and an image of it, the
 * face, go to the queue, and a thread runs the callback on the face with the functions of [conn],
 * to which that thread is a worker of its own. What the callback wants gathers in the face as it
 * would in a connection: queued output, flags, the state. The job goes back to the owner, who
 * brings all that to the real one. The two threads never touch the same fields. */

/* ---- the pool ---- */

/* After the lock, so that the thread does not run into it, unless it may end of itself: without
 * the lock it could be gone by now. */
static void netsrv__jobs_wake_hand(const netsrv__pool *p, netsrv__hand *hand) {
    NETSRV_SEAM_POINT("call");
    if (hand != NULL && !p->lazy) {
        pthread_cond_signal(&hand->wake);
    }
}

/* Under the lock. */
static netsrv__hand *netsrv__jobs_pop_idle(netsrv__pool *p) {
    netsrv__hand *hand = p->idle;
    if (hand != NULL) {
        p->idle = hand->idle_next;
        hand->called = true;
    }
    return hand;
}

/* Takes a thread out of those that are idle, unless one is on its way already: that one will call
 * the next, so that a burst of short jobs does not wake everybody. Under the lock. */
static netsrv__hand *netsrv__jobs_call_hand(netsrv__pool *p) {
    if (p->head == NULL || p->waking || p->own) {
        return NULL;
    }
    netsrv__hand *hand = netsrv__jobs_pop_idle(p);
    p->waking = hand != NULL;
    if (p->waking && p->lazy) {
        pthread_cond_signal(&hand->wake);
    }
    return hand;
}

/* Clocks that were looked at on two threads: the second may be behind the first. */
static bool netsrv__jobs_overdue(uint64_t from_us, uint64_t to_us) {
    return to_us > from_us && to_us - from_us >= NETSRV__JOB_PATIENCE_US;
}

/* Waking a thread costs more than a short job. So where jobs are short, and whoever took the last
 * one did so a moment ago, it is left to take the next. Should its job be a long one for once, the
 * worker that has posted finds out. Under the lock. */
static bool netsrv__jobs_taken_soon(const netsrv__pool *p, uint64_t now_us) {
    return !p->lazy && p->last != NULL && p->eighths_us < 8 * NETSRV__JOB_SHORT_US &&
           !netsrv__jobs_overdue(p->taken_us, now_us);
}

/* How many of `wanted` jobs may be posted now. Less than that: the worker is woken when there is
 * room again. Where each connection has its thread, nobody waits for another's. */
static size_t netsrv__jobs_reserve(netsrv__pool *p, size_t wanted) {
    const size_t max = p->max;
    pthread_mutex_lock(&p->lock);
    const size_t room = max > p->count ? max - p->count : 0;
    const size_t granted = wanted < room || p->own ? wanted : room;
    p->count += granted;
    p->held = p->held || granted < wanted;
    pthread_mutex_unlock(&p->lock);
    return granted;
}

static void netsrv__jobs_enqueue(netsrv__pool *p, netsrv__item *item) {
    item->next = NULL;
    *(p->head == NULL ? &p->head : &p->tail->next) = item;
    p->tail = item;
}

/* place = OWN_THREAD: to the connection's thread, to an idle one that becomes it, or in line for
 * one. Under the lock. */
static void netsrv__jobs_give_own(netsrv__pool *p, netsrv__item *item) {
    netsrv__hand *hand = item->hand != NULL ? item->hand : netsrv__jobs_pop_idle(p);
    if (hand == NULL) {
        netsrv__jobs_enqueue(p, item);
        return;
    }
    item->hand = hand;
    hand->bound = true;
    hand->item = item;
    pthread_cond_signal(&hand->wake);
}

/* Whether those that were held may be woken. Under the lock. */
static bool netsrv__jobs_has_room(netsrv__pool *p) {
    const bool room = p->held && p->count <= p->max / 2;
    p->held = p->held && !room;
    return room;
}

static void netsrv__jobs_wake_workers(netsrv_server *srv) {
    for (unsigned i = 0; i < srv->cfg.workers; i++) {
        netsrv__mailbox_wake(&srv->groups[i].wake);
    }
}

/* Posts a chain for which there is room, and gives back the room that is left: another worker may
 * have been refused it. True if some of it may wait although a thread is idle. */
static bool netsrv__jobs_append(netsrv__pool *p, netsrv__item *first, size_t left,
                                uint64_t now_us) {
    pthread_mutex_lock(&p->lock);
    while (first != NULL) {
        netsrv__item *next = first->next;
        if (p->own) {
            netsrv__jobs_give_own(p, first);
        } else {
            netsrv__jobs_enqueue(p, first);
        }
        first = next;
    }
    p->count -= left;
    const bool room = netsrv__jobs_has_room(p);
    netsrv__hand *hand =
        netsrv__jobs_taken_soon(p, now_us) ? NULL : netsrv__jobs_call_hand(p);
    const bool alone = hand != NULL && p->head == p->tail;
    const bool look = p->head != NULL && p->idle != NULL && !alone;
    pthread_mutex_unlock(&p->lock);
    netsrv__jobs_wake_hand(p, hand);
    if (room) {
        netsrv__jobs_wake_workers(p->srv);
    }
    return look;
}

/* ---- on a handler thread ---- */

/* What the callback answered; it leaves when the owner has it. */
static void netsrv__jobs_reply(netsrv__worker *w, netsrv_conn *c, const void *data, size_t n) {
    netsrv__conn_on_unsent(w, c, data, n);
}

/* netsrv_flush: what the callback has sent so far goes ahead to the owner. */
static void netsrv__jobs_send(netsrv__worker *w, netsrv_conn *c) {
    netsrv__job *job = (netsrv__job *)(void *)((char *)c - offsetof(netsrv__job, face));
    const size_t n = c->out.bytes;
    const size_t before = atomic_fetch_add_explicit(&job->backlog, n, memory_order_relaxed);
    if (before + n > w->cfg->high_mark_bytes) {
        c->flags |= NETSRV__HIGH_MARK;
    }
    pthread_mutex_lock(&job->item.owner->mailbox.lock);
    netsrv__out_move(&job->parts, &c->out);
    pthread_mutex_unlock(&job->item.owner->mailbox.lock);
    netsrv__mailbox_report(&job->item, false);
}

static const netsrv__io_ops netsrv__jobs_io = {
    .name = "jobs",
    .reply = netsrv__jobs_reply,
    .send = netsrv__jobs_send,
};

/* netsrv_flush: a connection that has ended meanwhile ends for the callback, too. */
static void netsrv__jobs_look(netsrv__worker *w, netsrv_conn *c) {
    if (w->io != &netsrv__jobs_io || c->state > NETSRV__HALF) {
        return;
    }
    const netsrv__job *job = (netsrv__job *)(void *)((char *)c - offsetof(netsrv__job, face));
    if (atomic_load_explicit(&job->gone, memory_order_relaxed)) {
        netsrv__conn_close(w, c, NETSRV_CLOSE_PEER);
    }
}

/* Input that is used up goes back as well: memory is given back on the thread that took it, which
 * an allocator likes best. */
static void netsrv__jobs_show(netsrv__worker *w, netsrv_conn *c) {
    netsrv__input *in = c->input;
    in->begin += netsrv__conn_show(w, c, in->bytes + in->begin, in->end - in->begin, &in->scanned);
    netsrv__conn_limit_input(w, c);
}

static void netsrv__jobs_run_call(netsrv__worker *w, netsrv_conn *c, unsigned call) {
    switch (call) {
    case NETSRV__CALL_OPEN:
        netsrv__conn_call(w, c, NETSRV__ACT_OPEN, c->on->on_open);
        break;
    case NETSRV__CALL_DRAIN:
        netsrv__conn_call(w, c, NETSRV__ACT_DRAIN, c->on->on_drain);
        break;
    case NETSRV__CALL_INPUT:
        netsrv__jobs_show(w, c);
        break;
    case NETSRV__CALL_EOF:
        netsrv__conn_eof(w, c);
        break;
    default:
        if (c->on->on_close != NULL) {
            netsrv__conn_note(w, c, NETSRV__ACT_CLOSE);
            c->on->on_close(c, (netsrv_close_reason)c->reason, c->sys_errno);
            netsrv__pulse_end(w);
        }
        break;
    }
}

/* A connection that has ended meanwhile gets no callback any more but on_close. */
static void netsrv__jobs_run(netsrv__hand *hand, netsrv__job *job) {
    netsrv__worker *w = &hand->self;
    netsrv_conn *c = &job->face;
    NETSRV_SEAM_POINT("job");
    job->item.begun_us = netsrv__sys_now_us();
    w->index = job->item.owner->index;
    w->own.slice_us = job->item.begun_us + NETSRV__SLICE_US;
    c->worker = w;
    job->skipped = job->call != NETSRV__CALL_CLOSE &&
                   atomic_load_explicit(&job->gone, memory_order_relaxed) &&
                   !(job->call == NETSRV__CALL_OPEN && (c->flags & NETSRV__DIALED) != 0);
    if (!job->skipped) {
        netsrv__jobs_run_call(w, c, job->call);
    }
    netsrv__out_release_spent(w);
    w->own.dirty = NULL;
    job->item.ended_us = netsrv__sys_now_us();
    hand->now_us = job->item.ended_us;
    hand->ran_us = job->item.ended_us - job->item.begun_us;
}

static void netsrv__jobs_free_hand(netsrv__hand *hand) {
    const netsrv_config *cfg = hand->self.cfg;
    pthread_cond_destroy(&hand->wake);
    netsrv__mem_free(cfg, hand->self.own.reply_buffer, NETSRV__REPLY_BYTES);
    netsrv__mem_free(cfg, hand, sizeof *hand);
}

static void netsrv__jobs_join(netsrv__hand *hand) {
    while (hand != NULL) {
        netsrv__hand *next = hand->idle_next;
        pthread_join(hand->thread, NULL);
        netsrv__jobs_free_hand(hand);
        hand = next;
    }
}

/* Without anything to do for too long: out of the idle ones. The last thread stays, so that a
 * connection for which none can be created has one to wait for. Under the lock. */
static bool netsrv__jobs_retire(netsrv__pool *p, netsrv__hand *hand) {
    netsrv__hand **link = &p->idle;
    if (hand->called || p->threads == 1) {
        return false;
    }
    while (*link != hand) {
        link = &(*link)->idle_next;
    }
    *link = hand->idle_next;
    return true;
}

/* False when the time is over. Under the lock. */
static bool netsrv__jobs_idle(netsrv__pool *p, netsrv__hand *hand) {
    const uint32_t idle_ms = p->srv->cfg.handler_idle_ms;
    const bool ends = p->lazy && idle_ms != NETSRV_OFF;
    const uint64_t until_us = netsrv__sys_now_us() + (uint64_t)idle_ms * 1000u;
    hand->idle_next = p->idle;
    p->idle = hand;
    p->last = p->last == hand ? NULL : p->last;
    hand->called = false;
    while (!hand->called) {
        if (!ends || p->threads == 1) {
            pthread_cond_wait(&hand->wake, &p->lock);
        } else if (!netsrv__sys_cond_wait(&hand->wake, &p->lock, until_us) &&
                   netsrv__jobs_retire(p, hand)) {
            return false;
        }
    }
    p->waking = false;
    hand->now_us = netsrv__sys_now_us();
    return true;
}

/* The item that is this thread's, or the oldest; NULL if there is none. Under the lock. */
static netsrv__item *netsrv__jobs_take(netsrv__pool *p, netsrv__hand *hand) {
    netsrv__item *item = hand->item;
    if (item == NULL && p->head != NULL && !hand->bound) {
        item = p->head;
        p->head = item->next;
        hand->bound = p->own;
        item->hand = p->own ? hand : NULL;
    }
    hand->item = NULL;
    if (item != NULL) {
        p->count--;
        p->last = hand;
        p->taken_us = hand->now_us;
    }
    return item;
}

/* The next item, or NULL when the thread shall end. Under the lock. */
static netsrv__item *netsrv__jobs_next(netsrv__pool *p, netsrv__hand *hand) {
    netsrv__item *item;
    while ((item = netsrv__jobs_take(p, hand)) == NULL) {
        if (hand->bound) {
            pthread_cond_wait(&hand->wake, &p->lock);
        } else if (p->closing || !netsrv__jobs_idle(p, hand)) {
            return NULL;
        }
    }
    return item;
}

/* Whether a callback was a connection's last: its thread is free for another one. */
static bool netsrv__jobs_last(const netsrv__job *job) {
    return job->call == NETSRV__CALL_CLOSE || (job->call == NETSRV__CALL_OPEN && job->skipped);
}

/* Runs an item and reports it: from then on it is its owner's. True if its thread is free then for
 * another connection. */
static bool netsrv__jobs_run_item(netsrv__hand *hand, netsrv__item *item) {
    bool last = true;
    if (item->is_work) {
        netsrv__work *x = (netsrv__work *)(void *)item;
        if (!atomic_load_explicit(&x->skipped, memory_order_relaxed)) {
            hand->self.index = item->owner->index;
            netsrv__pulse_begin(&hand->self, NETSRV__ACT_WORK, x->id, NULL);
            x->work(x->arg);
            netsrv__pulse_end(&hand->self);
        }
    } else {
        netsrv__job *job = (netsrv__job *)(void *)item;
        netsrv__jobs_run(hand, job);
        last = netsrv__jobs_last(job);
    }
    netsrv__mailbox_report(item, true);
    return last;
}

/* Others are to come at once where jobs take long, or have waited for long. Under the lock. */
static netsrv__hand *netsrv__jobs_call_other(netsrv__pool *p, const netsrv__hand *hand,
                                             const netsrv__item *item) {
    const bool waited = netsrv__jobs_overdue(item->queued_us, hand->now_us);
    return waited || p->lazy || p->eighths_us >= 8 * NETSRV__JOB_SHORT_US
               ? netsrv__jobs_call_hand(p)
               : NULL;
}

/* One that takes for ever does not count for more than a few short ones can outweigh. */
static void netsrv__jobs_learn(netsrv__pool *p, uint64_t ran_us) {
    p->eighths_us -= p->eighths_us / 8;
    p->eighths_us += ran_us < NETSRV__JOB_LONG_US ? ran_us : NETSRV__JOB_LONG_US;
}

/* Takes and runs one item. Under the lock, which is given up meanwhile. */
static bool netsrv__jobs_step(netsrv__pool *p, netsrv__hand *hand) {
    netsrv__item *item = netsrv__jobs_next(p, hand);
    if (item == NULL) {
        return false;
    }
    const bool room = netsrv__jobs_has_room(p);
    netsrv__hand *other = netsrv__jobs_call_other(p, hand, item);
    pthread_mutex_unlock(&p->lock);
    netsrv__jobs_wake_hand(p, other);
    if (room) {
        netsrv__jobs_wake_workers(p->srv);
    }
    const bool last = netsrv__jobs_run_item(hand, item);
    pthread_mutex_lock(&p->lock);
    netsrv__jobs_learn(p, hand->ran_us);
    hand->bound = hand->bound && !last;
    return true;
}

static void *netsrv__jobs_hand_main(void *arg) {
    netsrv__hand *hand = arg;
    netsrv__pool *p = hand->pool;
    netsrv__hand *before = NULL;
    char name[16];
    netsrv__self = &hand->self;
    snprintf(name, sizeof name, "netsrv-%c%u", p == p->srv->offload ? 'o' : 'h',
             hand->self.pulse.number % 100000);
    netsrv__sys_thread_name(name);
    pthread_mutex_lock(&p->lock);
    p->starting--;
    while (netsrv__jobs_step(p, hand)) {
    }
    if (!p->closing) {
        netsrv__util_list_remove(&hand->link);
        p->threads--;
        before = p->ended;
        hand->idle_next = NULL;
        p->ended = hand;
    }
    pthread_mutex_unlock(&p->lock);
    netsrv__jobs_join(before);
    return NULL;
}

/* A claimed thread comes into being. 0 or an errno, and the claim is given up. */
static int netsrv__jobs_add_hand(netsrv__pool *p) {
    const netsrv_config *cfg = &p->srv->cfg;
    netsrv__hand *hand = netsrv__mem_zeroed(cfg, 1, sizeof *hand);
    int error = ENOMEM;
    if (hand != NULL) {
        hand->pool = p;
        hand->self.srv = p->srv;
        hand->self.cfg = cfg;
        hand->self.io = &netsrv__jobs_io;
        hand->self.pulse.on = cfg->stuck_ms != NETSRV_OFF;
        hand->self.pulse.who = p == p->srv->offload ? "offload thread" : "handler thread";
        netsrv__sys_cond_init(&hand->wake);
    }
    pthread_mutex_lock(&p->lock);
    if (hand != NULL) {
        hand->self.pulse.number = ++p->numbered;
        error = netsrv__sys_thread_create(&hand->thread, cfg->handler_stack_bytes,
                                          netsrv__jobs_hand_main, hand);
    }
    if (error == 0) {
        netsrv__util_list_append(&p->all, &hand->link);
    } else {
        p->threads--;
        p->starting--;
    }
    pthread_mutex_unlock(&p->lock);
    if (error != 0 && hand != NULL) {
        netsrv__jobs_free_hand(hand);
    }
    return error;
}

static size_t netsrv__jobs_waiting(netsrv__pool *p) {
    if (p == NULL) {
        return 0;
    }
    pthread_mutex_lock(&p->lock);
    const size_t n = p->count;
    pthread_mutex_unlock(&p->lock);
    return n;
}

/* Whether more items wait than threads will come to them: those that start, the one that has been
 * called, and those that it calls. Under the lock. */
static bool netsrv__jobs_lacks_threads(const netsrv__pool *p) {
    const netsrv__item *item = p->head;
    const netsrv__hand *hand = p->idle;
    for (unsigned coming = p->starting + (p->waking ? 1u : 0u); item != NULL && coming > 0;) {
        item = item->next;
        coming--;
    }
    while (item != NULL && hand != NULL) {
        item = item->next;
        hand = hand->idle_next;
    }
    return item != NULL;
}

/* Whether one more thread is to be created: of lazy ones only if it is needed. */
static bool netsrv__jobs_claim(netsrv__pool *p) {
    pthread_mutex_lock(&p->lock);
    const bool wanted = !p->lazy || p->threads == 0 || netsrv__jobs_lacks_threads(p);
    const bool claimed = p->threads < p->size && wanted;
    p->threads += claimed ? 1 : 0;
    p->starting += claimed ? 1 : 0;
    pthread_mutex_unlock(&p->lock);
    return claimed;
}

/* Threads that come when they are needed: as many as items that wait for one. What cannot be
 * created is waited for: the item gets the next thread that is free. False if there was one. */
static bool netsrv__jobs_grow(netsrv__pool *p) {
    int error = 0;
    while (p->lazy && error == 0 && netsrv__jobs_claim(p)) {
        error = netsrv__jobs_add_hand(p);
    }
    if (error != 0 && netsrv__accept_may_log(p->srv)) {
        netsrv__log_line(&p->srv->cfg, NETSRV_LOG_WARN,
                         "cannot create a handler thread: %s; what waits for it waits for another",
                         strerror(error));
    }
    return error == 0;
}

/* ---- the owner lends ---- */

/* The callback that is due, or 0. What has lost its sense is not owed any more. */
static unsigned netsrv__jobs_due(const netsrv_conn *c) {
    netsrv__job *job = c->job;
    const bool input = netsrv__conn_wants_input(c);
    if (c->state == NETSRV__DEAD) {
        return job->owed;
    }
    if (c->state > NETSRV__HALF) {
        job->owed &= NETSRV__CALL_OPEN; /* or on_close would be called for nobody */
        return 0;
    }
    if (c->input == NULL) {
        job->owed &= (uint8_t)~NETSRV__CALL_INPUT;
    }
    if ((job->owed & (NETSRV__CALL_OPEN | NETSRV__CALL_DRAIN)) != 0) {
        return job->owed & (0u - job->owed);
    }
    return input ? job->owed & (0u - job->owed) : 0;
}

/* Room for a short reply, so that the other thread needs no memory for it. */
static void netsrv__jobs_lend_room(netsrv_server *srv, netsrv__out *out) {
    bool full;
    netsrv__chunk *chunk = netsrv__out_chunk_new(srv, NETSRV__JOB_REPLY, &full);
    memset(out, 0, sizeof *out);
    if (chunk != NULL) {
        netsrv__out_link(out, chunk);
    }
}

#define NETSRV__FACE_FLAGS                                                                         \
    (NETSRV__PAUSED | NETSRV__CORKED | NETSRV__DIALED | NETSRV__FIN_WANTED | NETSRV__FIN_SENT |    \
     NETSRV__PEER_DONE | NETSRV__FRESH)

/* The face begins as the connection is, without output, and with its input if that is shown. */
static void netsrv__jobs_lend(netsrv__job *job, unsigned call) {
    netsrv_conn *c = job->conn;
    netsrv_conn *face = &job->face;
    job->owed &= (uint8_t)~call;
    job->call = (uint8_t)call;
    job->lent = true;
    job->held = false;
    job->resumed = false;
    *face = *c;
    face->job = NULL;
    face->flags = c->flags & (uint32_t)NETSRV__FACE_FLAGS;
    face->sending = (uint32_t)(c->out.bytes + c->sending);
    netsrv__jobs_lend_room(c->worker->srv, &face->out);
    if ((call & (NETSRV__CALL_INPUT | NETSRV__CALL_EOF)) != 0) {
        c->input = NULL;
    } else {
        face->input = NULL;
    }
    netsrv__conn_publish(c);
    job->item.next = NULL;
    c->worker->own.lent_count++;
}

static netsrv__job *netsrv__jobs_take_ready(netsrv__worker *w) {
    netsrv__job *job = w->own.ready;
    w->own.ready = job->ready_next;
    w->own.ready_count--;
    job->listed = false;
    return job;
}

/* Those for which there is no room stop reading and keep their place in the line. */
static void netsrv__jobs_hold(netsrv__worker *w) {
    for (netsrv__job *job = w->own.ready; job != NULL; job = job->ready_next) {
        if (!job->held) {
            job->held = true;
            netsrv__conn_mark_dirty(w, job->conn);
        }
    }
}

/* Listed, but the callback that was due is not any more: the connection may only have waited to be
 * forgotten. If not, its idle time, which rested, begins. */
static void netsrv__jobs_not_due(netsrv__worker *w, const netsrv__job *job) {
    netsrv_conn *c = job->conn;
    if (c->state == NETSRV__DEAD) {
        netsrv__conn_lay_out(w, c);
    } else if (c->state < NETSRV__CLOSING) {
        c->active_ms = w->own.now_ms;
        netsrv__conn_arm(w, c);
    }
}

/* A connection that got no thread of its own may have nobody to wait for: try again. */
static void netsrv__jobs_grow_or_wait(netsrv__worker *w) {
    const bool enough = netsrv__jobs_grow(w->pool);
    w->own.grow_ms = enough ? w->own.grow_ms : netsrv__sys_now_ms() + NETSRV__RETRY_MS;
}

/* Whether work waits that no thread runs for, but for those that other workers are about to create:
 * that may fail. */
static bool netsrv__jobs_forlorn(netsrv__pool *p) {
    pthread_mutex_lock(&p->lock);
    const bool forlorn = p->head != NULL && p->threads == p->starting;
    pthread_mutex_unlock(&p->lock);
    return forlorn;
}

/* The same for offloaded work. */
static void netsrv__jobs_grow_for_work(netsrv__worker *w) {
    netsrv__pool *p = w->srv->offload;
    if (!netsrv__jobs_grow(p) || netsrv__jobs_forlorn(p)) {
        w->own.grow_ms = netsrv__sys_now_ms() + NETSRV__RETRY_MS;
    }
}

/* Threads that could not be created, for what still waits for one. */
static void netsrv__jobs_grow_again(netsrv__worker *w) {
    w->own.grow_ms = 0;
    if (w->pool != NULL) {
        netsrv__jobs_grow_or_wait(w);
    }
    if (netsrv__jobs_waiting(w->srv->offload) != 0) {
        netsrv__jobs_grow_for_work(w);
    }
}

NETSRV__COLD
static void netsrv__jobs_post_all(netsrv__worker *w) {
    size_t room = netsrv__jobs_reserve(w->pool, w->own.ready_count);
    const uint64_t now_us = netsrv__sys_now_us();
    netsrv__item *first = NULL;
    netsrv__item **end = &first;
    while (w->own.ready != NULL && room > 0) {
        netsrv__job *job = netsrv__jobs_take_ready(w);
        const unsigned call = netsrv__jobs_due(job->conn);
        if (call == 0) {
            netsrv__jobs_not_due(w, job);
            continue;
        }
        netsrv__jobs_lend(job, call);
        job->item.queued_us = now_us;
        *end = &job->item;
        end = &job->item.next;
        room--;
    }
    const bool look = netsrv__jobs_append(w->pool, first, room, now_us);
    w->own.look_ms = look ? netsrv__sys_now_ms() + 1 : w->own.look_ms;
    netsrv__jobs_grow_or_wait(w);
    netsrv__jobs_hold(w);
}

/* Jobs that have waited for a whole millisecond, behind one that takes long, get another thread. */
static void netsrv__jobs_check_queue(netsrv__worker *w) {
    netsrv__pool *p = w->pool;
    pthread_mutex_lock(&p->lock);
    netsrv__hand *hand = netsrv__jobs_call_hand(p);
    const bool again = p->head != NULL && p->idle != NULL;
    pthread_mutex_unlock(&p->lock);
    netsrv__jobs_wake_hand(p, hand);
    w->own.look_ms = again ? netsrv__sys_now_ms() + 1 : 0;
}

/* Once a turn. */
static void netsrv__jobs_post_ready(netsrv__worker *w) {
    if (w->own.look_ms != 0 && w->own.now_ms >= w->own.look_ms) {
        netsrv__jobs_check_queue(w); /* before it is put off by what is posted now */
    }
    if (w->own.ready != NULL) {
        netsrv__jobs_post_all(w);
    }
    if (w->own.grow_ms != 0 && w->own.now_ms >= w->own.grow_ms) {
        netsrv__jobs_grow_again(w);
    }
}

/* ---- the owner takes back ---- */

/* The usual answer, a short one that nothing stands in front of, goes out from where it lies. */
static bool netsrv__jobs_replies(const netsrv_conn *c, const netsrv__out *out) {
    return c->out.bytes == 0 && out->bytes <= NETSRV__JOB_REPLY && out->head == out->tail &&
           out->head->kind == NETSRV__CHUNK_COPY &&
           (c->flags & (NETSRV__BLOCKED | NETSRV__BROKEN | NETSRV__CORKED)) == 0;
}

static void netsrv__jobs_take_chunks(netsrv__worker *w, netsrv_conn *c, netsrv__out *out) {
    while (out->head != NULL) {
        netsrv__chunk *chunk = out->head;
        out->head = chunk->next;
        chunk->next = NULL;
        if (chunk->begin == chunk->end) {
            netsrv__out_chunk_free(w->srv, chunk); /* the room that was lent, and not used */
        } else if (chunk->kind == NETSRV__CHUNK_COPY && c->out.head != NULL) {
            netsrv__out_adopt(w->srv, &c->out, chunk);
        } else {
            netsrv__out_link(&c->out, chunk);
        }
    }
    memset(out, 0, sizeof *out);
}

static void netsrv__jobs_take_output(netsrv__worker *w, netsrv_conn *c, netsrv__out *out) {
    if (out->bytes == 0 || c->state > NETSRV__HALF ||
        netsrv__conn_admit_output(w, c, netsrv__out_memory(out)) != NETSRV_OK) {
        netsrv__out_discard(w->srv, out);
    } else if (netsrv__jobs_replies(c, out)) {
        w->io->reply(w, c, out->head->bytes + out->head->begin, out->bytes);
        netsrv__out_discard(w->srv, out);
    } else {
        netsrv__jobs_take_chunks(w, c, out);
        netsrv__conn_mark_high(w, c, c->out.bytes);
    }
}

/* What was not consumed comes before what came meanwhile. */
static void netsrv__jobs_take_input(netsrv__worker *w, netsrv_conn *c, netsrv_conn *face) {
    netsrv__input *newer = c->input;
    if (face->input == NULL) {
        return;
    }
    if (face->input->begin == face->input->end) {
        netsrv__conn_drop_input(w, face);
        return;
    }
    c->input = face->input;
    face->input = NULL;
    if (newer != NULL) {
        const size_t bytes = sizeof *newer + newer->cap;
        netsrv__conn_keep(w, c, newer->bytes + newer->begin, newer->end - newer->begin);
        netsrv__out_unreserve(w->srv, bytes);
        netsrv__mem_free(w->cfg, newer, bytes);
    }
    if (c->state > NETSRV__HALF) {
        netsrv__conn_drop_input(w, c);
    }
}

/* What the callback wanted, in the order in which it has effect: output, then the state. */
static void netsrv__jobs_apply(netsrv__worker *w, netsrv_conn *c, const netsrv__job *job) {
    const netsrv_conn *face = &job->face;
    c->idle_ms = face->idle_ms;
    c->active_ms = w->own.now_ms;
    if (c->state > NETSRV__HALF && face->state < NETSRV__CLOSING) {
        return;
    }
    c->flags &= ~(uint32_t)(NETSRV__PAUSED | NETSRV__CORKED);
    c->flags |= face->flags & (NETSRV__PAUSED | NETSRV__CORKED | NETSRV__HIGH_MARK |
                               NETSRV__FIN_WANTED | NETSRV__RESHOW);
    if (job->resumed) {
        netsrv__conn_resume(w, c);
    }
    if (job->call == NETSRV__CALL_EOF && !job->skipped && c->state == NETSRV__OPEN) {
        netsrv__conn_set_state(c, NETSRV__HALF);
    }
    if (face->state >= NETSRV__CLOSING) {
        netsrv__conn_reset(w, c, (netsrv_close_reason)face->reason);
    } else if (face->state > NETSRV__HALF) {
        netsrv__conn_close(w, c, (netsrv_close_reason)face->reason);
    }
}

static void netsrv__jobs_count(netsrv__worker *w, const netsrv__item *item) {
    const uint64_t run_us = item->ended_us - item->begun_us;
    NETSRV__COUNT(w, jobs, 1);
    NETSRV__COUNT(w, jobs_wait_us, item->begun_us - item->queued_us);
    NETSRV__COUNT(w, jobs_run_us, run_us);
    if (run_us > atomic_load_explicit(&w->count.longest_job_us, memory_order_relaxed)) {
        atomic_store_explicit(&w->count.longest_job_us, run_us, memory_order_relaxed);
    }
}

static void netsrv__jobs_finish(netsrv__worker *w, netsrv__job *job) {
    netsrv_conn *c = job->conn;
    job->lent = false;
    w->own.look_ms = --w->own.lent_count == 0 ? 0 : w->own.look_ms;
    netsrv__jobs_count(w, &job->item);
    c->data = job->face.data;
    c->flags |= job->face.flags & NETSRV__CORKED;
    netsrv__jobs_take_output(w, c, &job->face.out);
    netsrv__jobs_take_input(w, c, &job->face);
    if (job->call == NETSRV__CALL_OPEN && job->skipped) {
        job->owed = c->state == NETSRV__DEAD ? 0 : NETSRV__CALL_OPEN; /* nobody was told of it */
    }
    if (c->state != NETSRV__DEAD) {
        netsrv__jobs_apply(w, c, job);
    }
    if (job->owed != 0) {
        netsrv__conn_owe(w, c, 0);
    } else if (c->state == NETSRV__DEAD) {
        netsrv__conn_lay_out(w, c);
    }
    netsrv__conn_settle(w, c);
}

/* ---- netsrv_offload ---- */

/* 0 or an errno: there is no thread, and none can be created. */
static int netsrv__jobs_post_work(netsrv__pool *p, netsrv__work *x) {
    int error = 0;
    pthread_mutex_lock(&p->lock);
    const bool none = p->threads == 0;
    pthread_mutex_unlock(&p->lock);
    if (none && netsrv__jobs_claim(p)) {
        error = netsrv__jobs_add_hand(p);
    }
    if (error != 0) {
        return error;
    }
    x->posted = true;
    x->item.next = NULL;
    netsrv__jobs_reserve(p, 1);
    netsrv__jobs_append(p, &x->item, 0, x->item.queued_us);
    netsrv__jobs_grow_for_work(x->item.owner);
    return 0;
}

/* The first of a connection's works in order, or of those that wait for their turn. */
static netsrv__work *netsrv__jobs_ordered(netsrv__worker *w, netsrv_id id, bool posted) {
    const netsrv__link *head = &w->own.works;
    for (netsrv__link *node = head->next; node != head; node = node->next) {
        netsrv__work *x = (netsrv__work *)(void *)((char *)node - offsetof(netsrv__work, link));
        if (x->ordered && x->id == id && x->posted == posted) {
            return x;
        }
    }
    return NULL;
}

static netsrv__work *netsrv__jobs_find_work(netsrv__worker *w, netsrv_task task) {
    const netsrv__link *head = &w->own.works;
    for (netsrv__link *node = head->next; node != head; node = node->next) {
        netsrv__work *x = (netsrv__work *)(void *)((char *)node - offsetof(netsrv__work, link));
        if (x->task == task) {
            return x;
        }
    }
    return NULL;
}

static netsrv_result netsrv__jobs_offload(netsrv__worker *w, netsrv_conn *c,
                                          const netsrv__work *what, netsrv_task *task) {
    if (w->own.work_count >= w->cfg->offload_max_count || c->works == UINT16_MAX) {
        return NETSRV_QUEUE_FULL;
    }
    netsrv__work *x = netsrv__mem_alloc(w->cfg, sizeof *x);
    if (x == NULL) {
        return NETSRV_NO_MEMORY;
    }
    *x = *what;
    x->item.owner = w;
    x->item.is_work = true;
    x->task = ++w->next_task * NETSRV_WORKERS_MAX + w->index;
    const bool waits = x->ordered && netsrv__jobs_ordered(w, x->id, true) != NULL;
    if (!waits && netsrv__jobs_post_work(w->srv->offload, x) != 0) {
        netsrv__mem_free(w->cfg, x, sizeof *x);
        return NETSRV_SYSTEM;
    }
    netsrv__util_list_append(&w->own.works, &x->link);
    w->own.work_count++;
    c->works++;
    *task = x->task;
    return NETSRV_OK;
}

/* Takes an item out of the queue; false if it is not there any more. */
static bool netsrv__jobs_unqueue(netsrv__pool *p, netsrv__item *item) {
    netsrv__item *before = NULL;
    pthread_mutex_lock(&p->lock);
    netsrv__item *at = p->head;
    while (at != NULL && at != item) {
        before = at;
        at = at->next;
    }
    if (at != NULL) {
        *(before == NULL ? &p->head : &before->next) = item->next;
        p->tail = p->tail == item ? before : p->tail;
        p->count--;
    }
    pthread_mutex_unlock(&p->lock);
    return at != NULL;
}

/* What has not begun is over; `done` learns it with the next mail. */
static void netsrv__jobs_cancel(netsrv__worker *w, netsrv__work *x) {
    const bool again = x->revoked;
    x->revoked = true;
    atomic_store_explicit(&x->skipped, true, memory_order_relaxed);
    if (again || (x->posted && !netsrv__jobs_unqueue(w->srv->offload, &x->item))) {
        return;
    }
    x->posted = true;
    netsrv__mailbox_report(&x->item, true);
}

/* Posting the next in order cannot fail: the last thread stays. */
static void netsrv__jobs_work_done(netsrv__worker *w, netsrv__work *x) {
    const netsrv__work done = *x;
    netsrv_conn *c = netsrv__conn_of_id(w, done.id);
    netsrv__util_list_remove(&x->link);
    w->own.work_count--;
    if (c != NULL) {
        c->works--;
    }
    netsrv__mem_free(w->cfg, x, sizeof *x);
    const bool turn = done.ordered && netsrv__jobs_ordered(w, done.id, true) == NULL;
    netsrv__work *next = turn ? netsrv__jobs_ordered(w, done.id, false) : NULL;
    if (next != NULL) {
        netsrv__jobs_post_work(w->srv->offload, next);
    }
    netsrv__pulse_begin(w, NETSRV__ACT_DONE, done.id, NULL);
    if (c == NULL || c->state > NETSRV__HALF) {
        done.done(NULL, done.arg, done.revoked ? NETSRV_CANCELLED : NETSRV_GONE);
        netsrv__pulse_end(w);
        return;
    }
    netsrv__conn_enter(w, c, NULL, 0);
    done.done(c, done.arg, done.revoked ? NETSRV_CANCELLED : NETSRV_OK);
    netsrv__pulse_end(w);
    netsrv__conn_leave(w, c);
    netsrv__conn_settle(w, c);
}

/* A job has come back, or sends ahead what its callback flushed; or a piece of work is done. */
static void netsrv__jobs_on_report(netsrv__worker *w, netsrv__item *item) {
    if (item->is_work) {
        netsrv__jobs_work_done(w, (netsrv__work *)(void *)item);
        return;
    }
    netsrv__job *job = (netsrv__job *)(void *)item;
    netsrv__out parts;
    pthread_mutex_lock(&w->mailbox.lock);
    parts = job->parts;
    memset(&job->parts, 0, sizeof job->parts);
    pthread_mutex_unlock(&w->mailbox.lock);
    netsrv__jobs_take_output(w, job->conn, &parts);
    if (item->taken_finished) {
        netsrv__jobs_finish(w, job);
    } else {
        netsrv__conn_settle(w, job->conn);
    }
}

/* ---- the pool's beginning and end ---- */

/* Ends the threads; no job is under way, and none has an owner any more. */
static void netsrv__jobs_close(netsrv__pool *p) {
    pthread_mutex_lock(&p->lock);
    netsrv__hand *hand;
    p->closing = true;
    while ((hand = netsrv__jobs_pop_idle(p)) != NULL) {
        pthread_cond_signal(&hand->wake);
    }
    netsrv__hand *ended = p->ended;
    p->ended = NULL;
    pthread_mutex_unlock(&p->lock);
    netsrv__jobs_join(ended);
    while (p->all.next != &p->all) {
        hand = (netsrv__hand *)(void *)((char *)p->all.next - offsetof(netsrv__hand, link));
        pthread_join(hand->thread, NULL);
        pthread_mutex_lock(&p->lock); /* the lookout sees it as long as it is there */
        netsrv__util_list_remove(&hand->link);
        pthread_mutex_unlock(&p->lock);
        netsrv__jobs_free_hand(hand);
    }
    p->threads = 0;
}

/* Starts all threads, or none. Those of connections come with them. */
static int netsrv__jobs_open(netsrv__pool *p) {
    const unsigned threads = p->lazy ? p->own : p->size;
    int error = 0;
    p->closing = false;
    p->waking = false;
    p->held = false;
    p->last = NULL;
    for (unsigned i = 0; i < threads && error == 0 && netsrv__jobs_claim(p); i++) {
        error = netsrv__jobs_add_hand(p);
    }
    if (error != 0) {
        netsrv__jobs_close(p);
    }
    return error;
}

static netsrv__pool *netsrv__jobs_create(netsrv_server *srv, bool offload) {
    const netsrv_config *cfg = &srv->cfg;
    netsrv__pool *p = netsrv__mem_zeroed(&srv->cfg, 1, sizeof *p);
    if (p == NULL) {
        return NULL;
    }
    if (pthread_mutex_init(&p->lock, NULL) != 0) {
        netsrv__mem_free(&srv->cfg, p, sizeof *p);
        return NULL;
    }
    netsrv__util_list_init(&p->all);
    p->srv = srv;
    p->size = offload ? cfg->offload_threads : cfg->handler_threads;
    p->max = offload ? SIZE_MAX : cfg->jobs_max_count;
    p->own = !offload && cfg->place == NETSRV_PLACE_OWN_THREAD;
    p->lazy = offload || p->own;
    return p;
}

static void netsrv__jobs_destroy(netsrv__pool *p, const netsrv_config *cfg) {
    if (p != NULL) {
        pthread_mutex_destroy(&p->lock);
        netsrv__mem_free(cfg, p, sizeof *p);
    }
}

/* ========================================================================== *
 *  [lookout] The thread that notices a callback that does not return
 *  uses:   log mem sys pulse
 *  thread: its own; create, open, close, destroy = the program's
 * ========================================================================== */

/* It sleeps until the oldest call that runs may be stuck, and as long as none can be: one that
 * begins now, for stuck_ms. So it is never late, and a call costs no wake-up. */

/* What was found, as text, since its thread may be gone when it is told. */
typedef struct netsrv__finding {
    netsrv__scene scene;
    char text[2 * NETSRV_ADDRESS_MAX];
} netsrv__finding;

static bool netsrv__lookout_at(const netsrv_server *srv, netsrv__pulse *p, netsrv__finding *f,
                               uint32_t *left_ms) {
    if (!netsrv__pulse_stuck(p, srv->cfg.stuck_ms, &f->scene, left_ms)) {
        return false;
    }
    netsrv__pulse_text(p, &f->scene, f->text, sizeof f->text);
    return true;
}

static bool netsrv__lookout_in_pool(const netsrv_server *srv, netsrv__pool *p, netsrv__finding *f,
                                    uint32_t *left_ms) {
    bool found = false;
    if (p == NULL) {
        return false;
    }
    pthread_mutex_lock(&p->lock);
    for (netsrv__link *node = p->all.next; node != &p->all && !found; node = node->next) {
        netsrv__hand *hand = (netsrv__hand *)(void *)((char *)node - offsetof(netsrv__hand, link));
        found = netsrv__lookout_at(srv, &hand->self.pulse, f, left_ms);
    }
    pthread_mutex_unlock(&p->lock);
    return found;
}

/* The next that is stuck, and how long none can be otherwise. */
static bool netsrv__lookout_find(netsrv_server *srv, netsrv__finding *f, uint32_t *left_ms) {
    *left_ms = srv->cfg.stuck_ms + 1;
    for (unsigned i = 0; i < srv->thread_count; i++) {
        if (netsrv__lookout_at(srv, &srv->workers[i].pulse, f, left_ms)) {
            return true;
        }
    }
    return netsrv__lookout_in_pool(srv, srv->pool, f, left_ms) ||
           netsrv__lookout_in_pool(srv, srv->offload, f, left_ms);
}

/* The counter is the worker's, and written here only. */
static void netsrv__lookout_tell(netsrv_server *srv, const netsrv__finding *f) {
    const uint32_t age_ms = (uint32_t)netsrv__sys_now_ms() - f->scene.begun_ms;
    NETSRV__COUNT(&srv->workers[f->scene.worker], stuck, 1);
    netsrv__log_line(&srv->cfg, NETSRV_LOG_WARN, "%s has been running for %lu ms", f->text,
                     (unsigned long)age_ms);
}

static void *netsrv__lookout_main(void *arg) {
    netsrv__lookout *l = arg;
    netsrv__finding f;
    netsrv__self = &l->self;
    netsrv__sys_thread_name("netsrv-look");
    pthread_mutex_lock(&l->lock);
    while (!l->leaving) {
        uint32_t left_ms;
        if (netsrv__lookout_find(l->self.srv, &f, &left_ms)) {
            netsrv__lookout_tell(l->self.srv, &f);
            continue;
        }
        netsrv__sys_cond_wait(&l->wake, &l->lock, netsrv__sys_now_us() + left_ms * UINT64_C(1000));
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* 0 or an errno. */
static int netsrv__lookout_open(netsrv__lookout *l) {
    l->leaving = false;
    const int error = netsrv__sys_thread_create(&l->thread, 0, netsrv__lookout_main, l);
    l->running = error == 0;
    return error;
}

/* After all other threads: it sees how each ends. */
static void netsrv__lookout_close(netsrv__lookout *l) {
    if (l == NULL || !l->running) {
        return;
    }
    pthread_mutex_lock(&l->lock);
    l->leaving = true;
    pthread_cond_signal(&l->wake);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->thread, NULL);
    l->running = false;
}

static netsrv__lookout *netsrv__lookout_create(netsrv_server *srv) {
    netsrv__lookout *l = netsrv__mem_zeroed(&srv->cfg, 1, sizeof *l);
    if (l == NULL) {
        return NULL;
    }
    if (pthread_mutex_init(&l->lock, NULL) != 0) {
        netsrv__mem_free(&srv->cfg, l, sizeof *l);
        return NULL;
    }
    netsrv__sys_cond_init(&l->wake);
    l->self.srv = srv;
    l->self.cfg = &srv->cfg;
    return l;
}

static void netsrv__lookout_destroy(netsrv__lookout *l, const netsrv_config *cfg) {
    if (l != NULL) {
        pthread_cond_destroy(&l->wake);
        pthread_mutex_destroy(&l->lock);
        netsrv__mem_free(cfg, l, sizeof *l);
    }
}

/* ========================================================================== *
 *  [worker] The turn, the mail, the phases of leaving, the thread
 *  uses:   log mem util sys net pulse slab out timer mailbox conn share accept watch dial jobs
 *  thread: owner
 * ========================================================================== */

/* ---- mail and timers ---- */

/* What a connection held in the limits, when its place is free. */
static void netsrv__worker_give_back(netsrv__worker *w, uint32_t flags, uint32_t addr_slot) {
    atomic_fetch_sub(&w->load, 1);
    if ((flags & NETSRV__DIALED) != 0) {
        netsrv__accept_nudge(w->srv, NETSRV__PAUSED_RESOURCE);
    } else if ((flags & NETSRV__MOVED) == 0) {
        netsrv__accept_release(w->srv, addr_slot);
    }
}

/* Nothing here and nothing on the way. They wait for each other's end: the last one says so. */
static void netsrv__worker_set_idle(netsrv__worker *w, bool idle) {
    netsrv_server *srv = w->srv;
    if (idle == w->own.idle) {
        return;
    }
    w->own.idle = idle;
    if (!idle) {
        atomic_fetch_add(&srv->busy, 1);
    } else if (atomic_fetch_sub(&srv->busy, 1) == 1) {
        netsrv__mailbox_wake_all(srv);
    }
}

static void netsrv__worker_receive(netsrv__worker *w, netsrv_conn *traveller) {
    netsrv__worker_set_idle(w, false);
    atomic_fetch_sub(&w->srv->busy, 1); /* it is here */
    if (!netsrv__conn_arrive(w, traveller)) {
        netsrv__worker_give_back(w, traveller->flags, traveller->addr_slot);
    }
    netsrv__mem_free(w->cfg, traveller, sizeof *traveller);
}

static void netsrv__worker_read_message(netsrv__worker *w, const netsrv__msg *msg) {
    netsrv_conn *c = msg->id != 0 ? netsrv__conn_of_id(w, msg->id) : NULL;
    switch (msg->kind) {
    case NETSRV__MSG_ARRIVAL:
        netsrv__accept_on_message(w, &msg->as.arrival);
        break;
    case NETSRV__MSG_SEND:
        if (c != NULL) {
            netsrv__conn_send_chunk(w, c, msg->as.chunk);
        } else {
            netsrv__out_chunk_free(w->srv, msg->as.chunk);
        }
        break;
    case NETSRV__MSG_SHARE:
        netsrv__share_on_message(w, c, msg->as.buffer);
        break;
    case NETSRV__MSG_BROADCAST:
        netsrv__share_on_broadcast(w, msg->as.broadcast);
        break;
    case NETSRV__MSG_CLOSE:
        if (c != NULL) {
            netsrv__conn_close(w, c, NETSRV_CLOSE_LOCAL);
        }
        break;
    case NETSRV__MSG_ABORT:
        if (c != NULL) {
            netsrv__conn_reset(w, c, NETSRV_CLOSE_ABORT);
        }
        break;
    case NETSRV__MSG_RESUME:
        if (c != NULL) {
            netsrv__conn_resume(w, c);
        }
        break;
    case NETSRV__MSG_MOVE:
        netsrv__worker_receive(w, msg->as.traveller);
        break;
    case NETSRV__MSG_CALL:
        netsrv__pulse_begin(w, NETSRV__ACT_POST, 0, NULL);
        msg->as.call.fn(w->srv, w->index, msg->as.call.arg);
        netsrv__pulse_end(w);
        break;
    }
}

static void netsrv__worker_read_mail(netsrv__worker *w) {
    netsrv__msg *msgs;
    netsrv__item *item;
    const size_t count = netsrv__mailbox_take(&w->mailbox, w->cfg, &msgs, &item);
    while (item != NULL) {
        netsrv__item *next = item->taken_next; /* the report may free it */
        netsrv__jobs_on_report(w, item);
        item = next;
    }
    for (size_t i = 0; i < count; i++) {
        netsrv__worker_read_message(w, &msgs[i]);
    }
}

/* Whether more input may be there than this turn was shown. After a halt of the whole machine every
 * timeout is over at once, and whoever had spoken in time must be heard first. Bounded: where there
 * is always more, timeouts come a little late. */
static bool netsrv__worker_input_unseen(netsrv__worker *w) {
    const int count = w->own.event_count;
    const bool unseen = count < 0 || count >= (int)w->cfg->events_per_wait;
    w->own.unseen_turns = unseen ? w->own.unseen_turns + 1 : 0;
    return unseen && w->own.unseen_turns < NETSRV__UNSEEN_TURNS;
}

static void netsrv__worker_run_timers(netsrv__worker *w) {
    netsrv__link expired;
    netsrv__timer_run(w);
    if (w->own.wheel.count == 0 || netsrv__worker_input_unseen(w)) {
        return;
    }
    netsrv__util_list_init(&expired);
    netsrv__timer_advance(&w->own.wheel, w->own.now_ms, &expired);
    while (expired.next != &expired) {
        char *node = (char *)expired.next;
        netsrv_conn *c = (netsrv_conn *)(void *)(node - offsetof(netsrv_conn, timer.link));
        netsrv__timer_stop(&w->own.wheel, &c->timer);
        netsrv__conn_on_timer(w, c);
    }
}

/* The one place that releases connections: nothing dies inside a batch. */
static void netsrv__worker_bury_dead(netsrv__worker *w) {
    netsrv_conn *c = w->own.dead;
    w->own.dead = NULL;
    while (c != NULL) {
        netsrv_conn *next = c->grave_next;
        if ((c->flags & NETSRV__DIRTY) != 0) {
            c->grave_next = w->own.dead; /* the dirty list still names it */
            w->own.dead = c;
        } else {
            const uint32_t addr_slot = c->addr_slot;
            const uint32_t flags = c->flags;
            netsrv__slab_free(&w->own.slab, c);
            netsrv__worker_give_back(w, flags, addr_slot);
            /* Last: who sees one less finds its place free. */
            atomic_store_explicit(&w->open_now, w->own.slab.live, memory_order_release);
        }
        c = next;
    }
}

/* How long the turn took; the clock for what follows, the next wait included. */
static void netsrv__worker_end_turn(netsrv__worker *w) {
    const uint64_t now_us = netsrv__sys_now_us();
    const uint64_t took_us = now_us - w->own.turn_us;
    w->own.now_ms = NETSRV_SEAM_CLOCK_MS(now_us / 1000u);
    NETSRV__COUNT(w, turns, 1);
    NETSRV__COUNT(w, bytes_in, w->own.bytes_in);
    NETSRV__COUNT(w, bytes_out, w->own.bytes_out);
    w->own.bytes_in = 0;
    w->own.bytes_out = 0;
    if (took_us > atomic_load_explicit(&w->count.longest_turn_us, memory_order_relaxed)) {
        atomic_store_explicit(&w->count.longest_turn_us, took_us, memory_order_relaxed);
    }
    if (w->own.wheel.count != 0 &&
        w->own.now_ms - w->own.turn_ms >= netsrv__conn_long_turn_ms(w)) {
        netsrv__conn_restamp(w, w->own.turn_ms, w->own.now_ms);
    }
}

/* ---- leaving ---- */

static bool netsrv__worker_time_over(const netsrv__worker *w) {
    const netsrv_server *srv = w->srv;
    const uint32_t at = atomic_load(&srv->stop_at);
    return at != 0 && at != NETSRV__DRAIN && (int32_t)((uint32_t)w->own.now_ms - at) >= 0;
}

static void netsrv__worker_close_listeners(netsrv_server *srv) {
    for (unsigned i = 0; i < srv->listener_count; i++) {
        netsrv__net_close_listener(&srv->listeners[i]);
    }
}

/* By the last thread that watched a listener: nobody else is inside accept any more. */
static void netsrv__worker_sweep(netsrv__worker *w) {
    netsrv_server *srv = w->srv;
    NETSRV_SEAM_POINT("sweep");
    netsrv__accept_sweep(w);
    netsrv__worker_close_listeners(srv);
    atomic_store(&srv->swept, true);
    netsrv__mailbox_wake_all(srv);
}

/* Unwatches the listeners and says so. */
static void netsrv__worker_quiesce(netsrv__worker *w) {
    netsrv__group *g = w->group;
    pthread_mutex_lock(&g->lock);
    for (unsigned i = 0; i < g->gate_count; i++) {
        if (g->gates[i].state == NETSRV__GATE_ARMED) {
            w->io->listen_stop(w, i);
        }
        g->gates[i].state = NETSRV__GATE_OFF;
    }
    if (atomic_exchange(&g->paused, 0) != 0) {
        atomic_fetch_sub(&w->srv->paused, 1);
    }
    pthread_mutex_unlock(&g->lock);
    w->own.undrained = 0;
    w->own.retry_ms = 0;
    w->own.phase = w->own.phase > NETSRV__QUIET ? w->own.phase : NETSRV__QUIET;
    w->io->listen_end(w);
    NETSRV_SEAM_POINT("quiet");
    if (atomic_fetch_sub(&w->srv->unquiet, 1) == 1) {
        netsrv__worker_sweep(w);
    }
    if (g->members > 1) {
        netsrv__mailbox_wake_signal(&g->wake); /* the next member of the group */
    }
}

/* Input that was there before the stop has been read: at least one batch since, and the last one
 * was not full. */
static bool netsrv__worker_input_seen(netsrv__worker *w) {
    if (w->own.event_count < 0) {
        return false;
    }
    const bool first = w->own.stop_turns++ == 0;
    const bool full = w->own.event_count >= (int)w->cfg->events_per_wait;
    return !first && (!full || w->own.stop_turns > NETSRV__STOP_TURNS);
}

/* From here on, a connection closes as soon as nothing is under way on it. */
static void netsrv__worker_leave(netsrv__worker *w) {
    const netsrv__slab *slab = &w->own.slab;
    w->own.phase = NETSRV__LEAVING;
    for (uint32_t slot = 0; slot < slab->chunk_count * NETSRV__SLAB_CHUNK; slot++) {
        netsrv_conn *c = netsrv__slab_at(slab, slot);
        if (c->state == NETSRV__FREE || c->state > NETSRV__HALF) {
            continue;
        }
        c->flags |= NETSRV__STOPPING;
        if ((c->flags & NETSRV__FRESH) != 0 || c->state == NETSRV__DIALING) {
            netsrv__conn_limit_fresh(c);
        }
        netsrv__conn_mark_dirty(w, c);
    }
}

static void netsrv__worker_force(netsrv__worker *w) {
    const netsrv__slab *slab = &w->own.slab;
    w->own.phase = NETSRV__FORCED;
    netsrv__mailbox_shut(&w->mailbox); /* or a call that posts itself again would go on for ever */
    for (uint32_t slot = 0; slot < slab->chunk_count * NETSRV__SLAB_CHUNK; slot++) {
        netsrv_conn *c = netsrv__slab_at(slab, slot);
        if (c->state != NETSRV__FREE) {
            netsrv__conn_reset(w, c, NETSRV_CLOSE_STOP);
        }
    }
}

/* Watches, timers and posted calls go on while anybody is served on any thread and there is time.
 * From now on, nothing will be sent here. */
static bool netsrv__worker_finished(netsrv__worker *w) {
    netsrv_server *srv = w->srv;
    netsrv__worker_set_idle(w, atomic_load(&srv->swept) && atomic_load(&w->load) == 0 &&
                                   w->own.slab.live == 0 && w->own.work_count == 0);
    return w->own.idle && (w->own.phase == NETSRV__FORCED || atomic_load(&srv->busy) == 0) &&
           netsrv__mailbox_shut(&w->mailbox);
}

/* False when the thread has nothing left to do. */
static bool netsrv__worker_step_phase(netsrv__worker *w) {
    netsrv_server *srv = w->srv;
    if (NETSRV__LIKELY(atomic_load_explicit(&srv->stop_at, memory_order_acquire) == 0)) {
        return true;
    }
    if (w->own.phase == NETSRV__RUNNING) {
        netsrv__worker_quiesce(w);
    }
    if (!w->serves) {
        return false;
    }
    if (w->own.phase == NETSRV__QUIET && atomic_load(&srv->stop_at) != NETSRV__DRAIN &&
        netsrv__worker_input_seen(w)) {
        netsrv__worker_leave(w);
    }
    if (w->own.phase < NETSRV__FORCED && netsrv__worker_time_over(w)) {
        netsrv__worker_force(w);
    }
    if (w->own.phase == NETSRV__FORCED) {
        netsrv__accept_drop_given(w);
    }
    return !netsrv__worker_finished(w);
}

/* ---- the turn ---- */

static int netsrv__worker_until(const netsrv__worker *w, uint64_t at_ms) {
    if (at_ms == UINT64_MAX) {
        return -1;
    }
    const uint64_t left = at_ms > w->own.now_ms ? at_ms - w->own.now_ms : 0;
    return left < INT_MAX ? (int)left : INT_MAX;
}

static uint64_t netsrv__worker_stop_deadline(const netsrv__worker *w) {
    const netsrv_server *srv = w->srv;
    const uint32_t stop_at = atomic_load(&srv->stop_at);
    if (w->own.phase == NETSRV__RUNNING || w->own.phase == NETSRV__FORCED || stop_at == 0 ||
        stop_at == NETSRV__DRAIN) {
        return UINT64_MAX;
    }
    const int32_t left = (int32_t)(stop_at - (uint32_t)w->own.now_ms);
    return w->own.now_ms + (uint64_t)(left > 0 ? left : 0);
}

/* How long the turn may sleep: not at all with work left over, for ever without timers. */
static int netsrv__worker_sleep_ms(netsrv__worker *w) {
    const bool draining = atomic_load_explicit(&w->srv->stop_at, memory_order_relaxed) ==
                          NETSRV__DRAIN;
    if (w->own.dirty != NULL || (w->own.phase == NETSRV__QUIET && !draining) ||
        w->own.due.next != &w->own.due) {
        return 0;
    }
    const uint64_t timer = netsrv__timer_next(&w->own.timers);
    uint64_t at = netsrv__timer_next(&w->own.wheel);
    at = timer < at ? timer : at;
    if (w->own.retry_ms != 0 && w->own.retry_ms < at) {
        at = w->own.retry_ms;
    }
    if (w->own.grow_ms != 0 && w->own.grow_ms < at) {
        at = w->own.grow_ms;
    }
    if (w->own.look_ms != 0 && w->own.look_ms < at) {
        at = w->own.look_ms;
    }
    const uint64_t stop = netsrv__worker_stop_deadline(w);
    return netsrv__worker_until(w, stop < at ? stop : at);
}

/* One turn. The backend's wait delivers a batch of results; all the rest happens once. False when
 * the thread may end. */
static bool netsrv__worker_turn(netsrv__worker *w) {
    const int timeout_ms = netsrv__worker_sleep_ms(w);
    atomic_store_explicit(&w->busy_since, 0, memory_order_relaxed);
    w->io->wait(w, timeout_ms);
    netsrv__worker_read_mail(w);
    netsrv__worker_run_timers(w);
    netsrv__accept_check_paused(w);
    netsrv__conn_settle_dirty(w);
    netsrv__out_release_spent(w);
    if (w->own.dials_stale) {
        netsrv__dial_sweep(w);
    }
    netsrv__jobs_post_ready(w);
    netsrv__worker_bury_dead(w);
    netsrv__watch_bury(w);
    netsrv__worker_end_turn(w);
    return netsrv__worker_step_phase(w);
}

/* ---- the thread ---- */

static int netsrv__worker_open(netsrv__worker *w) {
    memset(&w->own, 0, sizeof w->own);
    w->own.now_ms = netsrv__sys_now_ms();
    w->own.random = w->srv->seed[0] ^ ((uint64_t)(w->index + 1) * UINT64_C(0x9e3779b97f4a7c15));
    w->own.random += w->own.random == 0 ? 1 : 0;
    netsrv__timer_init(&w->own.wheel, w->own.now_ms);
    netsrv__util_list_init(&w->own.works);
    netsrv__timer_init(&w->own.timers, w->own.now_ms);
    netsrv__util_list_init(&w->own.due);
    netsrv__util_list_init(&w->own.dials);
    if (!w->serves) {
        return w->io->open(w);
    }
    w->own.recv_bytes = w->cfg->recv_buffer_bytes;
    w->own.recv_room = netsrv__util_min(w->own.recv_bytes, w->cfg->bytes_per_turn);
    w->own.recv_buffer = netsrv__mem_alloc(w->cfg, w->own.recv_bytes);
    if (w->own.recv_buffer == NULL) {
        return ENOMEM;
    }
    return w->io->open(w);
}

static void netsrv__worker_close(netsrv__worker *w) {
    NETSRV_ASSERT(w->own.slab.live == 0);
    NETSRV_ASSERT(w->own.dials.next == NULL || w->own.dials.next == &w->own.dials);
    netsrv__watch_discard(w);
    w->io->close(w);
    w->first_gen = netsrv__slab_next_gen(&w->own.slab, w->first_gen);
    netsrv__slab_discard(&w->own.slab, w->cfg);
    netsrv__mem_free(w->cfg, w->own.recv_buffer, w->own.recv_bytes);
    netsrv__mem_free(w->cfg, w->own.reply_buffer, NETSRV__REPLY_BYTES);
    w->own.recv_buffer = NULL;
    w->own.reply_buffer = NULL;
    atomic_store_explicit(&w->busy_since, 0, memory_order_relaxed);
}

/* Arms the listeners of the group; its first member does so for all. */
static int netsrv__worker_watch(netsrv__worker *w) {
    netsrv__group *g = w->group;
    int error = 0;
    pthread_mutex_lock(&g->lock);
    for (unsigned i = 0; i < g->gate_count && error == 0; i++) {
        if (g->gates[i].state == NETSRV__GATE_OFF) {
            error = w->io->listen_start(w, i);
            g->gates[i].state = error == 0 ? NETSRV__GATE_ARMED : NETSRV__GATE_OFF;
        }
    }
    pthread_mutex_unlock(&g->lock);
    return error;
}

/* Waits until the starter says `step`; false if it says that the start has failed. */
static bool netsrv__worker_await(netsrv_server *srv, netsrv__step step) {
    pthread_mutex_lock(&srv->lock);
    while (srv->step != NETSRV__STEP_CANCEL && srv->step < step) {
        pthread_cond_wait(&srv->changed, &srv->lock);
    }
    const bool go = srv->step != NETSRV__STEP_CANCEL;
    pthread_mutex_unlock(&srv->lock);
    return go;
}

static void netsrv__worker_report_ready(netsrv__worker *w, int error) {
    netsrv_server *srv = w->srv;
    pthread_mutex_lock(&srv->lock);
    srv->ready++;
    if (error != 0 && srv->start_error.result == NETSRV_OK) {
        netsrv__log_error(&srv->start_error,
                          error == ENOMEM ? NETSRV_NO_MEMORY : NETSRV_SYSTEM, error,
                          "cannot start worker %u on %s: %s", w->index, w->io->name,
                          strerror(error));
    }
    pthread_cond_broadcast(&srv->changed);
    pthread_mutex_unlock(&srv->lock);
}

static void netsrv__worker_report_end(netsrv_server *srv) {
    pthread_mutex_lock(&srv->lock);
    srv->alive--;
    pthread_cond_broadcast(&srv->changed);
    pthread_mutex_unlock(&srv->lock);
}

static void netsrv__worker_dress(const netsrv__worker *w) {
    char name[16];
    snprintf(name, sizeof name, "netsrv-%c%u", w->serves ? 'w' : 'a', w->index % 10000);
    netsrv__sys_thread_name(name);
    if (w->cpu >= 0 && netsrv__sys_pin(w->cpu) != 0) {
        netsrv__log_line(w->cfg, NETSRV_LOG_WARN, "worker %u cannot be pinned to CPU %d: %s",
                         w->index, w->cpu, strerror(errno));
    }
}

/* Serves until the stop. A listener that cannot be armed ends the start, and with it this loop. */
static void netsrv__worker_serve(netsrv__worker *w) {
    if (w->serves && w->cfg->on_worker_start != NULL) {
        netsrv__pulse_begin(w, NETSRV__ACT_START, 0, NULL);
        w->cfg->on_worker_start(w->srv, w->index);
        netsrv__pulse_end(w);
    }
    netsrv__worker_report_ready(w, netsrv__worker_watch(w));
    while (netsrv__worker_turn(w)) {
    }
    netsrv__timer_clear(w);
    w->own.phase = NETSRV__FORCED; /* nothing is to be begun any more */
    if (w->serves && w->cfg->on_worker_stop != NULL) {
        netsrv__pulse_begin(w, NETSRV__ACT_STOP, 0, NULL);
        w->cfg->on_worker_stop(w->srv, w->index);
        netsrv__pulse_end(w);
    }
}

static void *netsrv__worker_main(void *arg) {
    netsrv__worker *w = arg;
    netsrv_server *srv = w->srv;
    netsrv__self = w;
    netsrv__worker_dress(w);
    if (netsrv__worker_await(srv, NETSRV__STEP_OPEN)) {
        netsrv__worker_report_ready(w, netsrv__worker_open(w));
        if (netsrv__worker_await(srv, NETSRV__STEP_SERVE)) {
            netsrv__worker_serve(w);
        }
        netsrv__worker_close(w);
    }
    netsrv__worker_report_end(srv);
    return NULL;
}

/* ========================================================================== *
 *  [server] Making and undoing everything that a server is; start, stop, join
 *  uses:   log mem util sys net mailbox jobs lookout worker
 *  thread: the program's; stop = any, also a signal handler
 * ========================================================================== */

static unsigned netsrv__server_sockets(const netsrv_server *srv) {
    return srv->cfg.accept == NETSRV_ACCEPT_REUSEPORT ? srv->cfg.workers : 1;
}

static netsrv_result netsrv__server_parse(netsrv_server *srv, netsrv_error *error) {
    for (unsigned i = 0; i < NETSRV_LISTEN_MAX && srv->cfg.listen[i] != NULL; i++) {
        netsrv__listener *ln = &srv->listeners[i];
        errno = 0;
        const char *wrong = netsrv__net_parse(ln, srv->cfg.listen[i]);
        if (wrong != NULL) {
            const int failed = errno;
            const bool ours = failed == 0 || failed == EBADF || failed == ENOTSOCK;
            return netsrv__log_error(error, ours ? NETSRV_BAD_ADDRESS : NETSRV_SYSTEM, failed,
                                     "listen: \"%.120s\": %s", srv->cfg.listen[i], wrong);
        }
        snprintf(ln->spec, sizeof ln->spec, "%s", srv->cfg.listen[i]);
        srv->cfg.listen[i] = ln->spec;
        srv->listener_count++;
    }
    return NETSRV_OK;
}

static netsrv_result netsrv__server_alloc_sockets(netsrv_server *srv, netsrv_error *error) {
    const unsigned sockets = netsrv__server_sockets(srv);
    for (unsigned i = 0; i < srv->listener_count; i++) {
        netsrv__listener *ln = &srv->listeners[i];
        ln->fds = netsrv__mem_alloc(&srv->cfg, sockets * sizeof *ln->fds);
        if (ln->fds == NULL) {
            return netsrv__log_error(error, NETSRV_NO_MEMORY, ENOMEM, "out of memory");
        }
        ln->fd_count = sockets;
        for (unsigned k = 0; k < sockets; k++) {
            ln->fds[k] = -1;
        }
    }
    return NETSRV_OK;
}

/* Strings of the configuration may be gone after netsrv_create. */
static void netsrv__server_keep_delimiter(netsrv_server *srv) {
    if (srv->cfg.delimiter != NULL) {
        memcpy(srv->delimiter, srv->cfg.delimiter, srv->cfg.delimiter_bytes);
        srv->cfg.delimiter = srv->delimiter;
    }
}

/* With framing, accepted connections have no on_data: that is how the two are told apart. */
static void netsrv__server_set_handlers(netsrv_server *srv) {
    const netsrv_config *cfg = &srv->cfg;
    srv->handlers.on_open = cfg->on_open;
    srv->handlers.on_data = cfg->framing == NETSRV_FRAMING_NONE ? cfg->on_data : NULL;
    srv->handlers.on_frame = cfg->on_frame;
    srv->handlers.on_drain = cfg->on_drain;
    srv->handlers.on_eof = cfg->on_eof;
    srv->handlers.on_move = cfg->on_move;
    srv->handlers.on_close = cfg->on_close;
    srv->handlers.eof_policy = cfg->eof_policy;
}

/* All listeners, or none. Those still open stay. */
static netsrv_result netsrv__server_listen(netsrv_server *srv, netsrv_error *error) {
    for (unsigned i = 0; i < srv->listener_count; i++) {
        netsrv__listener *ln = &srv->listeners[i];
        if (ln->fds[0] >= 0) {
            continue;
        }
        const netsrv_result result = netsrv__net_open_listener(&srv->cfg, ln, error);
        if (result != NETSRV_OK) {
            netsrv__worker_close_listeners(srv);
            return result;
        }
        netsrv__log_line(&srv->cfg, NETSRV_LOG_INFO, "listening on %s", ln->text);
    }
    return NETSRV_OK;
}

/* ---- groups and workers ---- */

static unsigned netsrv__server_acceptors(const netsrv_server *srv) {
    return srv->cfg.accept == NETSRV_ACCEPT_ACCEPTOR ? srv->cfg.acceptors : 0;
}

static netsrv_result netsrv__server_init_group(netsrv_server *srv, unsigned i,
                                               netsrv_error *error) {
    netsrv__group *g = &srv->groups[i];
    g->poller_fd = -1;
    g->members = i < srv->cfg.workers ? 1 : srv->cfg.acceptors;
    if (netsrv__mailbox_wake_open(&g->wake) != 0) {
        const int saved = errno;
        return netsrv__log_error(error, NETSRV_SYSTEM, saved,
                                 "cannot make a wake-up descriptor for worker %u: %s%s", i,
                                 strerror(saved), netsrv__net_remedy(saved));
    }
    if (pthread_mutex_init(&g->lock, NULL) != 0) {
        netsrv__mailbox_wake_close(&g->wake);
        return netsrv__log_error(error, NETSRV_NO_MEMORY, ENOMEM, "out of memory");
    }
    srv->groups_made++;
    return NETSRV_OK;
}

static netsrv_result netsrv__server_init_worker(netsrv_server *srv, unsigned i,
                                                netsrv_error *error) {
    netsrv__worker *w = &srv->workers[i];
    w->srv = srv;
    w->cfg = &srv->cfg;
    w->io = srv->io;
    w->index = i;
    w->first_gen = 1;
    w->serves = i < srv->cfg.workers;
    w->group = &srv->groups[w->serves ? i : srv->cfg.workers];
    w->pool = w->serves ? srv->pool : NULL;
    w->pulse.on = srv->cfg.stuck_ms != NETSRV_OFF;
    w->pulse.who = w->serves ? "worker" : "acceptor";
    w->pulse.number = w->serves ? i : i - srv->cfg.workers;
    w->cpu = -1;
    if (w->serves && srv->cfg.pin_workers == NETSRV_ENABLE) {
        w->cpu = netsrv__sys_nth_cpu(i);
    }
    if (pthread_mutex_init(&w->mailbox.lock, NULL) != 0) {
        return netsrv__log_error(error, NETSRV_NO_MEMORY, ENOMEM, "out of memory");
    }
    netsrv__util_list_init(&w->mailbox.given);
    srv->boxes_made++;
    return NETSRV_OK;
}

static netsrv_result netsrv__server_init_threads(netsrv_server *srv, netsrv_error *error) {
    const unsigned acceptors = netsrv__server_acceptors(srv);
    netsrv_result result = NETSRV_OK;
    srv->group_count = srv->cfg.workers + (acceptors != 0 ? 1 : 0);
    srv->thread_count = srv->cfg.workers + acceptors;
    srv->pool = srv->cfg.handler_threads != 0 ? netsrv__jobs_create(srv, false) : NULL;
    srv->offload = netsrv__jobs_create(srv, true);
    srv->lookout = srv->cfg.stuck_ms != NETSRV_OFF ? netsrv__lookout_create(srv) : NULL;
    srv->groups = netsrv__mem_zeroed(&srv->cfg, srv->group_count, sizeof *srv->groups);
    srv->workers = netsrv__mem_zeroed(&srv->cfg, srv->thread_count, sizeof *srv->workers);
    if (srv->groups == NULL || srv->workers == NULL ||
        (srv->cfg.handler_threads != 0 && srv->pool == NULL) || srv->offload == NULL ||
        (srv->cfg.stuck_ms != NETSRV_OFF && srv->lookout == NULL)) {
        return netsrv__log_error(error, NETSRV_NO_MEMORY, ENOMEM, "out of memory");
    }
    for (unsigned i = 0; i < srv->group_count && result == NETSRV_OK; i++) {
        result = netsrv__server_init_group(srv, i, error);
    }
    for (unsigned i = 0; i < srv->thread_count && result == NETSRV_OK; i++) {
        result = netsrv__server_init_worker(srv, i, error);
    }
    return result;
}

static netsrv_result netsrv__server_init_locks(netsrv_server *srv, netsrv_error *error) {
    netsrv__sys_random(srv->seed);
    netsrv__util_list_init(&srv->resolver.queue);
    srv->limits.free = NETSRV__NO_SLOT;
    if (pthread_mutex_init(&srv->limits.lock, NULL) != 0) {
        return netsrv__log_error(error, NETSRV_NO_MEMORY, ENOMEM, "out of memory");
    }
    if (pthread_mutex_init(&srv->lock, NULL) != 0) {
        pthread_mutex_destroy(&srv->limits.lock);
        return netsrv__log_error(error, NETSRV_NO_MEMORY, ENOMEM, "out of memory");
    }
    netsrv__sys_cond_init(&srv->changed);
    srv->locks_made = true;
    return NETSRV_OK;
}

/* Undoes whatever was made, in reverse order. No thread exists. */
static void netsrv__server_free(netsrv_server *srv) {
    const netsrv_config cfg = srv->cfg;
    netsrv__limits *t = &srv->limits;
    netsrv__worker_close_listeners(srv);
    for (unsigned i = 0; i < srv->boxes_made; i++) {
        netsrv__mailbox_discard(&srv->workers[i].mailbox, &cfg);
    }
    for (unsigned i = 0; i < srv->groups_made; i++) {
        netsrv__mailbox_wake_close(&srv->groups[i].wake);
        pthread_mutex_destroy(&srv->groups[i].lock);
    }
    netsrv__jobs_destroy(srv->pool, &cfg);
    netsrv__jobs_destroy(srv->offload, &cfg);
    netsrv__lookout_destroy(srv->lookout, &cfg);
    netsrv__mem_free(&cfg, srv->workers, srv->thread_count * sizeof *srv->workers);
    netsrv__mem_free(&cfg, srv->groups, srv->group_count * sizeof *srv->groups);
    for (unsigned i = 0; i < srv->listener_count; i++) {
        netsrv__mem_free(&cfg, srv->listeners[i].fds,
                         srv->listeners[i].fd_count * sizeof *srv->listeners[i].fds);
    }
    netsrv__mem_free(&cfg, t->buckets, t->bucket_count * sizeof *t->buckets);
    netsrv__mem_free(&cfg, t->entries, t->entry_cap * sizeof *t->entries);
    if (srv->locks_made) {
        pthread_cond_destroy(&srv->changed);
        pthread_mutex_destroy(&srv->lock);
        pthread_mutex_destroy(&srv->limits.lock);
    }
    netsrv__mem_free(&cfg, srv, sizeof *srv);
}

/* ---- start ---- */

static uint16_t netsrv__server_interest(const netsrv_config *cfg) {
    const bool acceptor = cfg->accept == NETSRV_ACCEPT_ACCEPTOR;
    unsigned interest = NETSRV__KEEP | NETSRV__IN;
    if (cfg->accept == NETSRV_ACCEPT_EXCLUSIVE) {
        interest |= NETSRV__EXCLUSIVE;
    }
    if (cfg->accept == NETSRV_ACCEPT_EDGE || (acceptor && cfg->trigger == NETSRV_TRIGGER_EDGE)) {
        interest |= NETSRV__EDGE;
    }
    if (acceptor && cfg->trigger == NETSRV_TRIGGER_ONESHOT) {
        interest |= NETSRV__ONESHOT;
    }
    return (uint16_t)interest;
}

/* Whether the threads of group i watch the listeners. */
static bool netsrv__server_watches(const netsrv_server *srv, unsigned i) {
    switch (srv->cfg.accept) {
    case NETSRV_ACCEPT_SINGLE:
        return i == 0;
    case NETSRV_ACCEPT_ACCEPTOR:
        return i == srv->cfg.workers;
    default:
        return true;
    }
}

static void netsrv__server_set_gates(netsrv_server *srv) {
    const bool each = netsrv__server_sockets(srv) > 1;
    for (unsigned i = 0; i < srv->group_count; i++) {
        netsrv__group *g = &srv->groups[i];
        memset(g->gates, 0, sizeof g->gates);
        g->gate_count = netsrv__server_watches(srv, i) ? srv->listener_count : 0;
        for (unsigned k = 0; k < g->gate_count; k++) {
            g->gates[k].fd = srv->listeners[k].fds[each ? i : 0];
            g->gates[k].interest = netsrv__server_interest(&srv->cfg);
        }
        atomic_store(&g->paused, 0);
        atomic_store(&g->nudged, false);
    }
}

static void netsrv__server_reset(netsrv_server *srv) {
    netsrv__server_set_gates(srv);
    srv->ready = 0;
    srv->step = NETSRV__STEP_WAIT;
    memset(&srv->start_error, 0, sizeof srv->start_error);
    atomic_store(&srv->paused, 0);
    atomic_store(&srv->swept, false);
    atomic_store(&srv->halted, false);
    atomic_store(&srv->unquiet, srv->thread_count);
    atomic_store(&srv->busy, srv->cfg.workers);
}

/* Joins every thread that was created. Under the lock, which the threads do not take any more. */
static void netsrv__server_join(netsrv_server *srv) {
    for (unsigned i = 0; i < srv->joinable; i++) {
        pthread_join(srv->workers[i].thread, NULL);
    }
    for (unsigned i = 0; i < NETSRV__RESOLVERS; i++) {
        if (srv->resolver.slots[i].joinable) {
            pthread_join(srv->resolver.slots[i].thread, NULL);
            srv->resolver.slots[i].joinable = false;
        }
    }
    srv->joinable = 0;
    if (srv->pool != NULL) {
        netsrv__jobs_close(srv->pool);
    }
    netsrv__jobs_close(srv->offload);
    netsrv__lookout_close(srv->lookout);
    srv->started = false;
    for (unsigned i = 0; i < srv->group_count; i++) {
        netsrv__mailbox_wake_drain(&srv->groups[i].wake); /* later ones are for the next start */
    }
    atomic_store(&srv->stop_at, 0);
}

static void netsrv__server_say(netsrv_server *srv, netsrv__step step) {
    srv->ready = 0;
    srv->step = step;
    pthread_cond_broadcast(&srv->changed);
}

/* Until every thread has ended, then joins them. Under the lock. */
static void netsrv__server_await_end(netsrv_server *srv) {
    while (srv->alive != 0) {
        pthread_cond_wait(&srv->changed, &srv->lock);
    }
    netsrv__server_join(srv);
}

/* Ends threads that do not serve yet. */
static void netsrv__server_cancel(netsrv_server *srv) {
    netsrv__server_say(srv, NETSRV__STEP_CANCEL);
    netsrv__server_await_end(srv);
    netsrv__worker_close_listeners(srv);
}

static netsrv_result netsrv__server_create_hands(netsrv_server *srv, netsrv_error *error) {
    const int failed = srv->pool != NULL ? netsrv__jobs_open(srv->pool) : 0;
    netsrv__jobs_open(srv->offload); /* no thread yet */
    if (failed == 0) {
        return NETSRV_OK;
    }
    netsrv__server_cancel(srv);
    return netsrv__log_error(error, failed == ENOMEM ? NETSRV_NO_MEMORY : NETSRV_SYSTEM, failed,
                             "cannot create %u handler threads: %s; ask for fewer, or for a "
                             "smaller handler_stack_bytes",
                             srv->cfg.handler_threads, strerror(failed));
}

static netsrv_result netsrv__server_create_lookout(netsrv_server *srv, netsrv_error *error) {
    const int failed = srv->lookout != NULL ? netsrv__lookout_open(srv->lookout) : 0;
    if (failed == 0) {
        return NETSRV_OK;
    }
    netsrv__server_cancel(srv);
    return netsrv__log_error(error, NETSRV_SYSTEM, failed,
                             "cannot create the thread for stuck_ms: %s", strerror(failed));
}

static netsrv_result netsrv__server_create_threads(netsrv_server *srv, netsrv_error *error) {
    for (unsigned i = 0; i < srv->thread_count; i++) {
        netsrv__worker *w = &srv->workers[i];
        const int failed = netsrv__sys_thread_create(&w->thread, 0, netsrv__worker_main, w);
        if (failed != 0) {
            netsrv__server_cancel(srv);
            return netsrv__log_error(error, NETSRV_SYSTEM, failed,
                                     "cannot create thread %u of %u: %s; ask for fewer workers",
                                     i + 1, srv->thread_count, strerror(failed));
        }
        srv->joinable++;
        srv->alive++;
    }
    return NETSRV_OK;
}

/* A stop that came first goes on as it is. */
static void netsrv__server_drain(netsrv_server *srv) {
    uint32_t none = 0;
    atomic_compare_exchange_strong(&srv->stop_at, &none, NETSRV__DRAIN);
    netsrv__mailbox_wake_all(srv);
}

/* The deadline is the earliest that anybody asked for. */
static void netsrv__server_stop(netsrv_server *srv, uint32_t grace_ms) {
    const uint32_t longest = (uint32_t)INT32_MAX;
    const uint32_t now = (uint32_t)netsrv__sys_now_ms();
    const uint32_t at = (now + (grace_ms < longest ? grace_ms : longest)) | 1u;
    uint32_t set = atomic_load(&srv->stop_at);
    while (set == 0 || set == NETSRV__DRAIN || (int32_t)(at - set) < 0) {
        if (atomic_compare_exchange_weak(&srv->stop_at, &set, at)) {
            break;
        }
    }
    netsrv__mailbox_wake_all(srv);
}

/* One step of the start: until every thread has reported. */
static netsrv_result netsrv__server_take_step(netsrv_server *srv, netsrv__step step) {
    netsrv__server_say(srv, step);
    while (srv->ready < srv->thread_count) {
        pthread_cond_wait(&srv->changed, &srv->lock);
    }
    return srv->start_error.result;
}

/* Mail is taken from the second step on: the threads that will read it exist. */
static netsrv_result netsrv__server_launch(netsrv_server *srv, netsrv_error *error) {
    if (netsrv__server_take_step(srv, NETSRV__STEP_OPEN) != NETSRV_OK) {
        *error = srv->start_error;
        netsrv__server_cancel(srv);
        return error->result;
    }
    for (unsigned i = 0; i < srv->cfg.workers; i++) {
        netsrv__mailbox_reopen(&srv->workers[i].mailbox);
    }
    if (netsrv__server_take_step(srv, NETSRV__STEP_SERVE) != NETSRV_OK) {
        *error = srv->start_error;
        netsrv__server_stop(srv, 0);
        netsrv__server_await_end(srv);
    }
    return srv->start_error.result;
}

/* Under the lock. */
static netsrv_result netsrv__server_start(netsrv_server *srv, netsrv_error *error) {
    if (srv->started) {
        return netsrv__log_error(error, NETSRV_BAD_STATE, 0,
                                 "the server is running already; wait for its end first");
    }
    if (atomic_exchange(&srv->stop_at, 0) != 0) {
        return netsrv__log_error(error, NETSRV_STOPPED, 0,
                                 "the server was stopped before its start");
    }
    netsrv_result result = netsrv__server_listen(srv, error);
    if (result == NETSRV_OK) {
        netsrv__server_reset(srv);
        srv->started = true;
        result = netsrv__server_create_lookout(srv, error);
        result = result != NETSRV_OK ? result : netsrv__server_create_hands(srv, error);
        result = result != NETSRV_OK ? result : netsrv__server_create_threads(srv, error);
    }
    return result == NETSRV_OK ? netsrv__server_launch(srv, error) : result;
}

/* ---- wait ---- */

static bool netsrv__server_is_own_thread(const netsrv_server *srv) {
    return netsrv__self != NULL && netsrv__self->srv == srv;
}

static netsrv_result netsrv__server_wait(netsrv_server *srv, uint64_t until_us) {
    netsrv_result result = NETSRV_OK;
    if (netsrv__server_is_own_thread(srv)) {
        return NETSRV_BAD_THREAD;
    }
    pthread_mutex_lock(&srv->lock);
    while (srv->alive != 0 && result == NETSRV_OK) {
        if (until_us == UINT64_MAX) {
            pthread_cond_wait(&srv->changed, &srv->lock);
        } else if (!netsrv__sys_cond_wait(&srv->changed, &srv->lock, until_us)) {
            result = NETSRV_TIMED_OUT;
        }
    }
    if (result == NETSRV_OK && srv->started) {
        netsrv__server_join(srv);
    }
    pthread_mutex_unlock(&srv->lock);
    return result;
}

/* NULL if the id names no worker of this server. */
static netsrv__worker *netsrv__server_worker_of(netsrv_server *srv, netsrv_id id) {
    const unsigned index = (unsigned)(id >> 22) & (NETSRV_WORKERS_MAX - 1);
    return index < srv->cfg.workers && (id >> 32) != 0 ? &srv->workers[index] : NULL;
}

/* ========================================================================== *
 *  [defaults] Default values, validation, and the choices left to the library
 *  uses:   log sys backend place
 *  thread: the one that creates the server
 * ========================================================================== */

#define NETSRV__NAME(name, text) text,
static const char *const netsrv__defaults_backends[] = {NETSRV_BACKENDS(NETSRV__NAME)};
static const char *const netsrv__defaults_accepts[] = {NETSRV_ACCEPTS(NETSRV__NAME)};
static const char *const netsrv__defaults_triggers[] = {NETSRV_TRIGGERS(NETSRV__NAME)};
static const char *const netsrv__defaults_places[] = {NETSRV_PLACES(NETSRV__NAME)};
static const char *const netsrv__defaults_transfers[] = {NETSRV_TRANSFERS(NETSRV__NAME)};
#undef NETSRV__NAME

static const char *netsrv__defaults_name(const char *const *names, int count, int value) {
    return value >= 0 && value < count ? names[value] : NULL;
}

static uint32_t netsrv__defaults_or(uint32_t value, uint32_t fallback) {
    return value != 0 ? value : fallback;
}

/* The marks and bounds of the output queue, where one that was given bounds the others. */
static void netsrv__defaults_fill_queue(netsrv_config *c) {
    const uint64_t server = c->server_queue_max_bytes;
    const uint32_t room = server != 0 && server < (16u << 20) ? (uint32_t)server : 16u << 20;
    const uint32_t queue = c->high_mark_bytes > room ? c->high_mark_bytes : room;
    c->queue_max_bytes = netsrv__defaults_or(c->queue_max_bytes, queue);
    const uint32_t half = c->queue_max_bytes / 2 + 1;
    const uint32_t high = half < (256u << 10) ? half : 256u << 10;
    c->high_mark_bytes = netsrv__defaults_or(c->high_mark_bytes, high);
    c->low_mark_bytes = netsrv__defaults_or(c->low_mark_bytes, c->high_mark_bytes / 4);
    if (server == 0) {
        const uint64_t usual = UINT64_C(1) << 30;
        c->server_queue_max_bytes = usual > c->queue_max_bytes ? usual : c->queue_max_bytes;
    }
}

static netsrv_switch netsrv__defaults_no(netsrv_switch value) {
    return value != NETSRV_DEFAULT ? value : NETSRV_DISABLE;
}

static void netsrv__defaults_fill_framing(netsrv_config *c) {
    if (c->delimiter != NULL && c->delimiter_bytes == 0) {
        const size_t n = strlen(c->delimiter);
        c->delimiter_bytes = n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
    }
    if (c->framing == NETSRV_FRAMING_LENGTH) {
        c->length_bytes = netsrv__defaults_or(c->length_bytes, 4);
    }
    c->length_little = netsrv__defaults_no(c->length_little);
    c->length_counts_all = netsrv__defaults_no(c->length_counts_all);
    c->keep_header = netsrv__defaults_no(c->keep_header);
}

/* The one place where defaults are written, in the order of the declaration. Those of backend,
 * accept, trigger, place and transfer depend on the system: see netsrv__defaults_choose. */
static void netsrv__defaults_fill(netsrv_config *c) {
    c->listen[0] = c->listen[0] != NULL ? c->listen[0] : "127.0.0.1:7000";
    if (c->workers == 0) {
        const unsigned cpus = netsrv__sys_cpu_count();
        c->workers = cpus < NETSRV_WORKERS_MAX ? cpus : NETSRV_WORKERS_MAX;
    }
    c->share_port = c->share_port != NETSRV_DEFAULT ? c->share_port : NETSRV_DISABLE;
    c->steer_by_cpu = c->steer_by_cpu != NETSRV_DEFAULT ? c->steer_by_cpu : NETSRV_DISABLE;
    c->pin_workers = c->pin_workers != NETSRV_DEFAULT ? c->pin_workers : NETSRV_DISABLE;
    c->stall_ms = netsrv__defaults_or(c->stall_ms, 250);
    c->stuck_ms = netsrv__defaults_or(c->stuck_ms, NETSRV_OFF);
    if (c->place == NETSRV_PLACE_OWN_THREAD) {
        c->handler_threads = netsrv__defaults_or(c->handler_threads, 1000);
        c->max_conns = netsrv__defaults_or(c->max_conns, c->handler_threads);
    }
    c->handler_stack_bytes = netsrv__defaults_or(c->handler_stack_bytes, 1u << 20);
    c->handler_idle_ms = netsrv__defaults_or(c->handler_idle_ms, 10000);
    c->jobs_max_count = netsrv__defaults_or(c->jobs_max_count, 4096);
    c->offload_threads = netsrv__defaults_or(c->offload_threads, 4);
    c->offload_max_count = netsrv__defaults_or(c->offload_max_count, 1024);
    c->keep_line_end = c->keep_line_end != NETSRV_DEFAULT ? c->keep_line_end : NETSRV_DISABLE;
    netsrv__defaults_fill_framing(c);
    c->max_conns = netsrv__defaults_or(c->max_conns, 1000000);
    c->max_conns_per_address = netsrv__defaults_or(c->max_conns_per_address, NETSRV_OFF);
    c->max_accepts_per_second = netsrv__defaults_or(c->max_accepts_per_second, NETSRV_OFF);
    c->input_max_bytes = netsrv__defaults_or(c->input_max_bytes, 1u << 20);
    netsrv__defaults_fill_queue(c);
    c->mailbox_max_count = netsrv__defaults_or(c->mailbox_max_count, 4096);
    c->idle_timeout_ms = netsrv__defaults_or(c->idle_timeout_ms, NETSRV_OFF);
    c->write_timeout_ms = netsrv__defaults_or(c->write_timeout_ms, NETSRV_OFF);
    c->flush_timeout_ms = netsrv__defaults_or(c->flush_timeout_ms, 10000);
    c->linger_timeout_ms = netsrv__defaults_or(c->linger_timeout_ms, 2000);
    c->linger_max_bytes = netsrv__defaults_or(c->linger_max_bytes, 1u << 20);
    c->backlog_count = netsrv__defaults_or(c->backlog_count, 4096);
    c->nodelay = c->nodelay != NETSRV_DEFAULT ? c->nodelay : NETSRV_ENABLE;
    c->keepalive_s = netsrv__defaults_or(c->keepalive_s, NETSRV_OFF);
    c->defer_accept_s = netsrv__defaults_or(c->defer_accept_s, NETSRV_OFF);
    c->fast_open_count = netsrv__defaults_or(c->fast_open_count, NETSRV_OFF);
    c->events_per_wait = netsrv__defaults_or(c->events_per_wait, 256);
    c->accepts_per_turn = netsrv__defaults_or(c->accepts_per_turn, 8);
    c->recv_buffer_bytes = netsrv__defaults_or(c->recv_buffer_bytes, 65536);
    c->bytes_per_turn = netsrv__defaults_or(c->bytes_per_turn, c->recv_buffer_bytes);
    c->alloc = c->alloc != NULL ? c->alloc : netsrv__mem_default;
}

static netsrv_result netsrv__defaults_bad(netsrv_error *error, const char *field,
                                          const char *wrong) {
    return netsrv__log_error(error, NETSRV_BAD_CONFIG, 0, "%s: %s", field, wrong);
}

/* Numbers within their bounds, in the order of the declaration. */
static netsrv_result netsrv__defaults_check_numbers(const netsrv_config *c, netsrv_error *error) {
    const uint32_t any = UINT32_MAX;
    const struct {
        const char *field;
        uint32_t value;
        uint32_t max;
    } numbers[] = {
        {"workers", c->workers, NETSRV_WORKERS_MAX},
        {"acceptors", c->acceptors, NETSRV_ACCEPTORS_MAX},
        {"stall_ms", c->stall_ms, any},
        {"stuck_ms", c->stuck_ms == NETSRV_OFF ? 0 : c->stuck_ms, INT32_MAX},
        {"handler_threads", c->handler_threads, NETSRV_HANDLERS_MAX},
        {"handler_stack_bytes", c->handler_stack_bytes, 1u << 30},
        {"jobs_max_count", c->jobs_max_count, 1u << 24},
        {"offload_threads", c->offload_threads, NETSRV_HANDLERS_MAX},
        {"offload_max_count", c->offload_max_count, 1u << 24},
        {"max_conns", c->max_conns, any},
        {"max_conns_per_address", c->max_conns_per_address, any},
        {"max_accepts_per_second", c->max_accepts_per_second, any},
        {"delimiter_bytes", c->delimiter_bytes, NETSRV_DELIMITER_MAX},
        {"frame_bytes", c->frame_bytes, c->input_max_bytes},
        {"length_bytes", c->length_bytes, 8},
        {"length_offset", c->length_offset, 255},
        {"input_max_bytes", c->input_max_bytes, 1u << 30},
        {"high_mark_bytes", c->high_mark_bytes, 1u << 30},
        {"low_mark_bytes", c->low_mark_bytes, 1u << 30},
        {"queue_max_bytes", c->queue_max_bytes, 1u << 30},
        {"mailbox_max_count", c->mailbox_max_count, 1u << 24},
        {"linger_max_bytes", c->linger_max_bytes, 1u << 30},
        {"backlog_count", c->backlog_count, INT_MAX},
        {"keepalive_s", c->keepalive_s == NETSRV_OFF ? 0 : c->keepalive_s, 32767},
        {"defer_accept_s", c->defer_accept_s == NETSRV_OFF ? 0 : c->defer_accept_s, 32767},
        {"fast_open_count", c->fast_open_count == NETSRV_OFF ? 0 : c->fast_open_count, INT_MAX},
        {"events_per_wait", c->events_per_wait, 4096},
        {"accepts_per_turn", c->accepts_per_turn, 1u << 20},
        {"recv_buffer_bytes", c->recv_buffer_bytes, 16u << 20},
        {"bytes_per_turn", c->bytes_per_turn, 1u << 30},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (numbers[i].value > numbers[i].max) {
            return netsrv__log_error(error, NETSRV_BAD_CONFIG, 0,
                                     "%s: %lu is too much; at most %lu", numbers[i].field,
                                     (unsigned long)numbers[i].value,
                                     (unsigned long)numbers[i].max);
        }
    }
    return NETSRV_OK;
}

static netsrv_result netsrv__defaults_check_sizes(const netsrv_config *c, netsrv_error *error) {
    if (c->low_mark_bytes > c->high_mark_bytes) {
        return netsrv__defaults_bad(error, "low_mark_bytes", "is above high_mark_bytes");
    }
    if (c->high_mark_bytes > c->queue_max_bytes) {
        return netsrv__defaults_bad(error, "high_mark_bytes", "is above queue_max_bytes");
    }
    if (c->queue_max_bytes > c->server_queue_max_bytes) {
        return netsrv__defaults_bad(error, "queue_max_bytes", "is above server_queue_max_bytes");
    }
    if (c->handler_stack_bytes < 65536) {
        return netsrv__defaults_bad(error, "handler_stack_bytes", "is below 65536");
    }
    if (c->recv_buffer_bytes < 4096) {
        return netsrv__defaults_bad(error, "recv_buffer_bytes", "is below 4096");
    }
    return NETSRV_OK;
}

static netsrv_result netsrv__defaults_check_enums(const netsrv_config *c, netsrv_error *error) {
    const struct {
        const char *field;
        unsigned value;
        unsigned count;
    } enums[] = {
        {"backend", c->backend, NETSRV_BACKEND_COUNT},
        {"accept", c->accept, NETSRV_ACCEPT_COUNT},
        {"trigger", c->trigger, NETSRV_TRIGGER_COUNT},
        {"place", c->place, NETSRV_PLACE_COUNT},
        {"transfer", c->transfer, NETSRV_TRANSFER_COUNT},
        {"share_port", c->share_port, NETSRV_DISABLE + 1},
        {"steer_by_cpu", c->steer_by_cpu, NETSRV_DISABLE + 1},
        {"pin_workers", c->pin_workers, NETSRV_DISABLE + 1},
        {"framing", c->framing, NETSRV_FRAMING_COUNT},
        {"keep_line_end", c->keep_line_end, NETSRV_DISABLE + 1},
        {"length_little", c->length_little, NETSRV_DISABLE + 1},
        {"length_counts_all", c->length_counts_all, NETSRV_DISABLE + 1},
        {"keep_header", c->keep_header, NETSRV_DISABLE + 1},
        {"eof_policy", c->eof_policy, NETSRV_EOF_KEEP + 1},
        {"overflow", c->overflow, NETSRV_OVERFLOW_REJECT + 1},
        {"nodelay", c->nodelay, NETSRV_DISABLE + 1},
    };
    for (size_t i = 0; i < sizeof enums / sizeof *enums; i++) {
        if (enums[i].value >= enums[i].count) {
            return netsrv__defaults_bad(error, enums[i].field, "no such value");
        }
    }
    return NETSRV_OK;
}

/* What a framing needs. */
static netsrv_result netsrv__defaults_check_framing(const netsrv_config *c, netsrv_error *error) {
    const uint32_t size = c->length_bytes;
    if (c->framing == NETSRV_FRAMING_DELIMITER && c->delimiter_bytes == 0) {
        return netsrv__defaults_bad(error, "delimiter", "is needed with framing = delimiter");
    }
    if (c->framing == NETSRV_FRAMING_FIXED && c->frame_bytes == 0) {
        return netsrv__defaults_bad(error, "frame_bytes", "is needed with framing = fixed");
    }
    if (c->framing == NETSRV_FRAMING_CUSTOM && c->split == NULL) {
        return netsrv__defaults_bad(error, "split", "is needed with framing = custom");
    }
    if (c->framing == NETSRV_FRAMING_LENGTH && size != 1 && size != 2 && size != 4 && size != 8) {
        return netsrv__defaults_bad(error, "length_bytes", "is not 1, 2, 4 or 8");
    }
    return NETSRV_OK;
}

/* What would have no effect. */
static netsrv_result netsrv__defaults_check_unused(const netsrv_config *c, netsrv_error *error) {
    const netsrv_framing f = c->framing;
    const bool ended = f == NETSRV_FRAMING_LINE || f == NETSRV_FRAMING_DELIMITER;
    if (c->keep_line_end == NETSRV_ENABLE && !ended) {
        return netsrv__defaults_bad(error, "keep_line_end", "needs framing = line or delimiter");
    }
    if ((c->delimiter != NULL || c->delimiter_bytes != 0) && f != NETSRV_FRAMING_DELIMITER) {
        return netsrv__defaults_bad(error, "delimiter", "needs framing = delimiter");
    }
    if (c->frame_bytes != 0 && f != NETSRV_FRAMING_FIXED) {
        return netsrv__defaults_bad(error, "frame_bytes", "needs framing = fixed");
    }
    if (c->split != NULL && f != NETSRV_FRAMING_CUSTOM) {
        return netsrv__defaults_bad(error, "split", "needs framing = custom");
    }
    if ((c->length_bytes != 0 || c->length_offset != 0 || c->keep_header == NETSRV_ENABLE ||
         c->length_little == NETSRV_ENABLE || c->length_counts_all == NETSRV_ENABLE) &&
        f != NETSRV_FRAMING_LENGTH) {
        return netsrv__defaults_bad(error, "length_bytes and the like", "need framing = length");
    }
    return NETSRV_OK;
}

/* Fields that belong together. */
static netsrv_result netsrv__defaults_check_pairs(const netsrv_config *c, netsrv_error *error) {
    const bool acceptor = c->accept == NETSRV_ACCEPT_ACCEPTOR;
    const bool reuseport = c->accept == NETSRV_ACCEPT_REUSEPORT;
    if (c->framing == NETSRV_FRAMING_NONE && c->on_data == NULL) {
        return netsrv__defaults_bad(error, "on_data", "is needed unless framing is set");
    }
    if (c->framing != NETSRV_FRAMING_NONE && c->on_frame == NULL) {
        return netsrv__defaults_bad(error, "on_frame", "is needed with framing");
    }
    if (c->acceptors != 0 && !acceptor) {
        return netsrv__defaults_bad(error, "acceptors", "needs accept = acceptor");
    }
    if (c->trigger != NETSRV_TRIGGER_AUTO && !acceptor) {
        return netsrv__defaults_bad(error, "trigger",
                                    "needs accept = acceptor (for workers: accept = edge)");
    }
    if (c->share_port == NETSRV_ENABLE && !reuseport) {
        return netsrv__defaults_bad(error, "share_port", "needs accept = reuseport");
    }
    if (c->steer_by_cpu == NETSRV_ENABLE && !reuseport) {
        return netsrv__defaults_bad(error, "steer_by_cpu", "needs accept = reuseport");
    }
    if (c->place == NETSRV_PLACE_CUSTOM && c->pick == NULL) {
        return netsrv__defaults_bad(error, "place", "custom needs the function pick");
    }
    if (c->pick != NULL && c->place != NETSRV_PLACE_CUSTOM && c->place != NETSRV_PLACE_AUTO) {
        return netsrv__defaults_bad(error, "pick", "needs place = custom");
    }
    return NETSRV_OK;
}

static netsrv_result netsrv__defaults_check_system(const netsrv_config *c, netsrv_error *error) {
    if (!NETSRV__LINUX && (c->pin_workers == NETSRV_ENABLE || c->steer_by_cpu == NETSRV_ENABLE ||
                           c->defer_accept_s != NETSRV_OFF)) {
        return netsrv__defaults_bad(error, "pin_workers, steer_by_cpu, defer_accept_s",
                                    "exist on Linux only; leave them off");
    }
    return NETSRV_OK;
}

/* Names the first offending field. */
static netsrv_result netsrv__defaults_validate(const netsrv_config *c, netsrv_error *error) {
    netsrv_result result = netsrv__defaults_check_enums(c, error);
    result = result != NETSRV_OK ? result : netsrv__defaults_check_numbers(c, error);
    result = result != NETSRV_OK ? result : netsrv__defaults_check_sizes(c, error);
    result = result != NETSRV_OK ? result : netsrv__defaults_check_pairs(c, error);
    result = result != NETSRV_OK ? result : netsrv__defaults_check_framing(c, error);
    result = result != NETSRV_OK ? result : netsrv__defaults_check_unused(c, error);
    return result != NETSRV_OK ? result : netsrv__defaults_check_system(c, error);
}

/* ---- choices ---- */

NETSRV__PRINTF(5, 6)
static void netsrv__defaults_note(netsrv_server *srv, const char *field, const char *asked,
                                  const char *taken, const char *format, ...) {
    va_list args;
    char *why = srv->why[srv->choice_count];
    va_start(args, format);
    vsnprintf(why, sizeof srv->why[0], format, args);
    va_end(args);
    const netsrv_choice choice = {field, asked, taken, why};
    srv->choices[srv->choice_count++] = choice;
}

static const char *netsrv__defaults_why(const netsrv__io_ops *io, int sys_errno) {
    return io->why != NULL ? io->why(sys_errno) : strerror(sys_errno);
}

static netsrv_result netsrv__defaults_asked_backend(netsrv_server *srv, netsrv_error *error) {
    const netsrv_backend asked = srv->cfg.backend;
    const char *name = netsrv__defaults_backends[asked];
    srv->io = netsrv__backend_find(asked);
    if (srv->io == NULL) {
        return netsrv__log_error(error, NETSRV_UNAVAILABLE, 0,
                                 "backend: %s is not in this build; use auto", name);
    }
    srv->can = srv->io->can;
    const int failed = srv->io->probe(&srv->can);
    if (failed != 0) {
        return netsrv__log_error(error, NETSRV_UNAVAILABLE, failed,
                                 "backend: %s does not work here: %s; use auto", name,
                                 netsrv__defaults_why(srv->io, failed));
    }
    netsrv__defaults_note(srv, "backend", name, name, "as asked");
    return NETSRV_OK;
}

/* Why auto took what it took: the names may be NULL. */
static void netsrv__defaults_note_backend(netsrv_server *srv, const char *by_name,
                                          const char *failed_name, const char *failed_why) {
    if (failed_name != NULL) {
        netsrv__defaults_note(srv, "backend", "auto", srv->io->name, "%s does not work here: %s",
                              failed_name, failed_why);
        return;
    }
    netsrv__defaults_note(srv, "backend", "auto", srv->io->name, "the best of this build%s%s%s",
                          by_name != NULL ? "; " : "", by_name != NULL ? by_name : "",
                          by_name != NULL ? " only if asked for by name" : "");
}

/* The first that works. */
static netsrv_result netsrv__defaults_choose_backend(netsrv_server *srv, netsrv_error *error) {
    const char *by_name = NULL;
    const char *failed_name = NULL;
    const char *failed_why = "";
    int failed = 0;
    if (srv->cfg.backend != NETSRV_BACKEND_AUTO) {
        return netsrv__defaults_asked_backend(srv, error);
    }
    for (size_t i = 0; i < NETSRV__BACKENDS; i++) {
        const netsrv__io_ops *io = &netsrv__backend_list[i];
        if (io->by_name) {
            by_name = io->name;
            continue;
        }
        srv->can = io->can;
        const int r = io->probe(&srv->can);
        if (r != 0) {
            failed = r;
            failed_name = io->name;
            failed_why = netsrv__defaults_why(io, r);
            continue;
        }
        srv->io = io;
        srv->cfg.backend = io->backend;
        netsrv__defaults_note_backend(srv, by_name, failed_name, failed_why);
        return NETSRV_OK;
    }
    return netsrv__log_error(error, NETSRV_UNAVAILABLE, failed, "backend: none works here: %s",
                             failed_why);
}

static bool netsrv__defaults_can(const netsrv_server *srv, unsigned what) {
    return (srv->can & what) != 0;
}

static netsrv_result netsrv__defaults_refuse(netsrv_server *srv, netsrv_error *error,
                                             const char *what, const char *remedy) {
    return netsrv__log_error(error, NETSRV_UNAVAILABLE, 0, "%s is not possible with backend %s; %s",
                             what, srv->io->name, remedy);
}

static void netsrv__defaults_auto_accept(netsrv_server *srv) {
    netsrv_config *c = &srv->cfg;
    const char *why;
    if (c->workers == 1) {
        c->accept = NETSRV_ACCEPT_SINGLE;
        why = "there is one worker";
    } else if (netsrv__defaults_can(srv, NETSRV__CAN_EXCLUSIVE)) {
        c->accept = NETSRV_ACCEPT_EXCLUSIVE;
        why = "every worker accepts and one is woken for each connection";
    } else {
        c->accept = NETSRV_ACCEPT_ACCEPTOR;
        why = "the kernel here cannot wake one worker alone";
    }
    netsrv__defaults_note(srv, "accept", "auto", netsrv__defaults_accepts[c->accept], "%s", why);
}

static netsrv_result netsrv__defaults_check_acceptor(netsrv_server *srv, netsrv_error *error) {
    netsrv_config *c = &srv->cfg;
    c->acceptors = c->acceptors != 0 ? c->acceptors : 1;
    c->trigger = c->trigger != NETSRV_TRIGGER_AUTO ? c->trigger : NETSRV_TRIGGER_LEVEL;
    if (c->acceptors > 1 && !netsrv__defaults_can(srv, NETSRV__CAN_SHARE)) {
        return netsrv__defaults_refuse(srv, error, "acceptors above 1",
                                       "use acceptors = 1, or backend epoll");
    }
    if (c->trigger == NETSRV_TRIGGER_EDGE && !netsrv__defaults_can(srv, NETSRV__CAN_EDGE)) {
        return netsrv__defaults_refuse(srv, error, "trigger edge",
                                       "use trigger = level, or backend epoll");
    }
    if (c->trigger == NETSRV_TRIGGER_ONESHOT && !netsrv__defaults_can(srv, NETSRV__CAN_ONESHOT)) {
        return netsrv__defaults_refuse(srv, error, "trigger oneshot",
                                       "use trigger = level, or backend epoll");
    }
    return NETSRV_OK;
}

/* After the addresses are known: only sockets of our own can be many on one port. */
static netsrv_result netsrv__defaults_check_reuseport(netsrv_server *srv, netsrv_error *error) {
    if (NETSRV__REUSEPORT == 0) {
        return netsrv__log_error(error, NETSRV_UNAVAILABLE, 0,
                                 "accept: reuseport does not spread connections on this system; "
                                 "use acceptor");
    }
    for (unsigned i = 0; i < srv->listener_count; i++) {
        if (srv->listeners[i].kind != NETSRV__LISTEN_TCP) {
            return netsrv__log_error(error, NETSRV_BAD_CONFIG, 0,
                                     "accept: reuseport needs TCP addresses, and \"%s\" is none; "
                                     "use exclusive or acceptor",
                                     srv->listeners[i].spec);
        }
    }
    return NETSRV_OK;
}

static netsrv_result netsrv__defaults_choose_accept(netsrv_server *srv, netsrv_error *error) {
    netsrv_config *c = &srv->cfg;
    if (c->accept == NETSRV_ACCEPT_AUTO) {
        netsrv__defaults_auto_accept(srv);
    } else if (c->accept == NETSRV_ACCEPT_EXCLUSIVE &&
               (srv->io->can & ~srv->can & NETSRV__CAN_EXCLUSIVE) != 0) {
        c->accept = NETSRV_ACCEPT_SHARED;
        netsrv__defaults_note(srv, "accept", "exclusive", "shared",
                              "this kernel has no EPOLLEXCLUSIVE");
    } else {
        const char *name = netsrv__defaults_accepts[c->accept];
        netsrv__defaults_note(srv, "accept", name, name, "as asked");
    }
    switch (c->accept) {
    case NETSRV_ACCEPT_ACCEPTOR:
        return netsrv__defaults_check_acceptor(srv, error);
    case NETSRV_ACCEPT_REUSEPORT:
        return netsrv__defaults_check_reuseport(srv, error);
    case NETSRV_ACCEPT_EXCLUSIVE:
        if (!netsrv__defaults_can(srv, NETSRV__CAN_EXCLUSIVE)) {
            return netsrv__defaults_refuse(srv, error, "accept exclusive",
                                           "use accept = shared or acceptor, or backend epoll");
        }
        return NETSRV_OK;
    case NETSRV_ACCEPT_EDGE:
        if (!netsrv__defaults_can(srv, NETSRV__CAN_EDGE)) {
            return netsrv__defaults_refuse(srv, error, "accept edge",
                                           "use accept = shared or acceptor, or backend epoll");
        }
        return NETSRV_OK;
    default:
        return NETSRV_OK;
    }
}

/* Where nothing else is asked for, and for the loops of place = OWN_THREAD. */
static netsrv_place netsrv__defaults_usual_place(const netsrv_config *c) {
    const bool one = c->workers == 1 && c->accept != NETSRV_ACCEPT_ACCEPTOR;
    return one || c->accept == NETSRV_ACCEPT_REUSEPORT ? NETSRV_PLACE_KEEP
                                                       : NETSRV_PLACE_TWO_CHOICES;
}

static void netsrv__defaults_auto_place(netsrv_server *srv) {
    netsrv_config *c = &srv->cfg;
    const char *why;
    if (c->pick != NULL) {
        c->place = NETSRV_PLACE_CUSTOM;
        why = "pick is set";
    } else if (c->accept == NETSRV_ACCEPT_REUSEPORT) {
        c->place = NETSRV_PLACE_KEEP;
        why = "the kernel spreads over the workers' own sockets";
    } else if (c->workers == 1 && c->accept != NETSRV_ACCEPT_ACCEPTOR) {
        c->place = NETSRV_PLACE_KEEP;
        why = "there is one worker";
    } else {
        c->place = NETSRV_PLACE_TWO_CHOICES;
        why = "whoever accepts, the lighter of two workers gets it";
    }
    netsrv__defaults_note(srv, "place", "auto", netsrv__defaults_places[c->place], "%s", why);
}

static netsrv_result netsrv__defaults_choose_place(netsrv_server *srv, netsrv_error *error) {
    netsrv_config *c = &srv->cfg;
    const netsrv_place usual = netsrv__defaults_usual_place(c);
    if (c->place == NETSRV_PLACE_AUTO) {
        netsrv__defaults_auto_place(srv);
    } else if (c->place == NETSRV_PLACE_OWN_THREAD) {
        netsrv__defaults_note(srv, "place", "own_thread", "own_thread", "bytes move on loops: %s",
                              netsrv__defaults_places[usual]);
    } else {
        const char *name = netsrv__defaults_places[c->place];
        netsrv__defaults_note(srv, "place", name, name, "as asked");
    }
    srv->place = netsrv__place_find(c->place == NETSRV_PLACE_OWN_THREAD ? usual : c->place);
    if (c->place == NETSRV_PLACE_KEEP && c->accept == NETSRV_ACCEPT_ACCEPTOR) {
        return netsrv__log_error(error, NETSRV_BAD_CONFIG, 0,
                                 "place: keep is not possible with accept acceptor, whose threads "
                                 "serve nobody; use two_choices or round_robin");
    }
    if (c->place == NETSRV_PLACE_KEEP && c->accept == NETSRV_ACCEPT_SINGLE && c->workers > 1) {
        return netsrv__log_error(error, NETSRV_BAD_CONFIG, 0,
                                 "place: keep with accept single leaves every worker but one "
                                 "without work; use two_choices, or workers = 1");
    }
    return NETSRV_OK;
}

static netsrv_result netsrv__defaults_choose_transfer(netsrv_server *srv, netsrv_error *error) {
    netsrv_config *c = &srv->cfg;
    const char *asked = netsrv__defaults_transfers[c->transfer];
    if (c->transfer == NETSRV_TRANSFER_DIRECT && !netsrv__defaults_can(srv, NETSRV__CAN_GIVE)) {
        return netsrv__defaults_refuse(srv, error, "transfer direct",
                                       "use transfer = mailbox, or backend epoll");
    }
    const bool given = c->transfer != NETSRV_TRANSFER_AUTO;
    c->transfer = given ? c->transfer : NETSRV_TRANSFER_MAILBOX;
    netsrv__defaults_note(srv, "transfer", asked, netsrv__defaults_transfers[c->transfer], "%s",
                          given ? "as asked" : "works with every backend");
    return NETSRV_OK;
}

/* Replaces every "auto" and refuses by name what cannot work together. */
static netsrv_result netsrv__defaults_choose(netsrv_server *srv, netsrv_error *error) {
    netsrv_result result = netsrv__defaults_choose_backend(srv, error);
    result = result != NETSRV_OK ? result : netsrv__defaults_choose_accept(srv, error);
    result = result != NETSRV_OK ? result : netsrv__defaults_choose_place(srv, error);
    return result != NETSRV_OK ? result : netsrv__defaults_choose_transfer(srv, error);
}

/* ========================================================================== *
 *  [public] The functions of the declarations: check, then hand down
 *  uses:   log mem sys net out timer mailbox conn share accept watch dial jobs server defaults
 *  thread: as declared
 * ========================================================================== */

/* ---- life of a server ---- */

static netsrv_result netsrv__public_build(netsrv_server *srv, netsrv_error *error) {
    netsrv_result result = netsrv__defaults_validate(&srv->cfg, error);
    netsrv__server_set_handlers(srv);
    if (result == NETSRV_OK) {
        netsrv__server_keep_delimiter(srv);
    }
    result = result != NETSRV_OK ? result : netsrv__server_init_locks(srv, error);
    result = result != NETSRV_OK ? result : netsrv__server_parse(srv, error);
    result = result != NETSRV_OK ? result : netsrv__defaults_choose(srv, error);
    result = result != NETSRV_OK ? result : netsrv__server_alloc_sockets(srv, error);
    result = result != NETSRV_OK ? result : netsrv__server_init_threads(srv, error);
    return result != NETSRV_OK ? result : netsrv__server_listen(srv, error);
}

NETSRV_API netsrv_result netsrv_create(netsrv_server **server, const netsrv_config *cfg,
                                       netsrv_error *error) {
    netsrv_config filled;
    netsrv_error ignored;
    error = error != NULL ? error : &ignored;
    memset(error, 0, sizeof *error);
    if (server == NULL) {
        return netsrv__log_error(error, NETSRV_BAD_ARGUMENT, 0, "netsrv_create: server is NULL");
    }
    *server = NULL;
    memset(&filled, 0, sizeof filled);
    if (cfg != NULL) {
        filled = *cfg;
    }
    netsrv__defaults_fill(&filled);
    netsrv_server *srv = netsrv__mem_zeroed(&filled, 1, sizeof *srv);
    if (srv == NULL) {
        netsrv__log_error(error, NETSRV_NO_MEMORY, ENOMEM, "out of memory");
    } else {
        srv->cfg = filled;
        netsrv__public_build(srv, error);
    }
    if (error->result == NETSRV_OK) {
        *server = srv;
        return NETSRV_OK;
    }
    netsrv__log_line(&filled, NETSRV_LOG_ERROR, "%s", error->text);
    if (srv != NULL) {
        netsrv__server_free(srv);
    }
    return error->result;
}

NETSRV_API netsrv_result netsrv_start(netsrv_server *s, netsrv_error *error) {
    netsrv_error ignored;
    error = error != NULL ? error : &ignored;
    memset(error, 0, sizeof *error);
    if (netsrv__server_is_own_thread(s)) {
        return netsrv__log_error(error, NETSRV_BAD_THREAD, 0,
                                 "netsrv_start: not on a thread of the server");
    }
    pthread_mutex_lock(&s->lock);
    const netsrv_result result = netsrv__server_start(s, error);
    pthread_mutex_unlock(&s->lock);
    if (result != NETSRV_OK) {
        netsrv__log_line(&s->cfg, NETSRV_LOG_ERROR, "%s", error->text);
    }
    return result;
}

NETSRV_API void netsrv_stop(netsrv_server *s, uint32_t grace_ms) {
    const int saved = errno; /* in a signal handler it is somebody else's */
    netsrv__server_stop(s, grace_ms);
    errno = saved;
}

NETSRV_API void netsrv_drain(netsrv_server *s) {
    const int saved = errno;
    netsrv__server_drain(s);
    errno = saved;
}

NETSRV_API void netsrv_pause_accept(netsrv_server *s) {
    const int saved = errno;
    atomic_store(&s->halted, true);
    netsrv__mailbox_wake_all(s);
    errno = saved;
}

NETSRV_API void netsrv_resume_accept(netsrv_server *s) {
    const int saved = errno;
    atomic_store(&s->halted, false);
    netsrv__accept_nudge(s, NETSRV__PAUSED_PROGRAM);
    errno = saved;
}

NETSRV_API netsrv_result netsrv_wait(netsrv_server *s) {
    return netsrv__server_wait(s, UINT64_MAX);
}

NETSRV_API netsrv_result netsrv_wait_for(netsrv_server *s, uint32_t timeout_ms) {
    return netsrv__server_wait(s, netsrv__sys_now_us() + (uint64_t)timeout_ms * 1000u);
}

NETSRV_API netsrv_result netsrv_destroy(netsrv_server *s) {
    if (s == NULL) {
        return NETSRV_OK;
    }
    if (netsrv__server_is_own_thread(s)) {
        return NETSRV_BAD_THREAD;
    }
    netsrv__server_stop(s, 0);
    netsrv__server_wait(s, UINT64_MAX);
    netsrv__server_free(s);
    return NETSRV_OK;
}

NETSRV_API netsrv_result netsrv_run(const netsrv_config *cfg, netsrv_error *error) {
    netsrv_server *s = NULL;
    netsrv_result result = netsrv_create(&s, cfg, error);
    if (result != NETSRV_OK) {
        return result;
    }
    result = netsrv_start(s, error);
    if (result == NETSRV_OK) {
        netsrv_wait(s);
    }
    netsrv_destroy(s);
    return result == NETSRV_STOPPED ? NETSRV_OK : result;
}

/* ---- questions about a server ---- */

NETSRV_API const netsrv_config *netsrv_get_config(const netsrv_server *s) {
    return &s->cfg;
}

NETSRV_API bool netsrv_get_choice(const netsrv_server *s, unsigned i, netsrv_choice *choice) {
    if (i >= s->choice_count) {
        return false;
    }
    *choice = s->choices[i];
    return true;
}

NETSRV_API netsrv_result netsrv_get_address(const netsrv_server *s, unsigned i, char *text,
                                            size_t n) {
    if (i >= s->listener_count || strlen(s->listeners[i].text) >= n) {
        return NETSRV_BAD_ARGUMENT;
    }
    memcpy(text, s->listeners[i].text, strlen(s->listeners[i].text) + 1);
    return NETSRV_OK;
}

NETSRV_API uint16_t netsrv_get_port(const netsrv_server *s, unsigned i) {
    return i < s->listener_count ? netsrv__net_listener_port(&s->listeners[i]) : 0;
}

NETSRV_API void *netsrv_user(const netsrv_server *s) {
    return s->cfg.user;
}

NETSRV_API bool netsrv_stopping(const netsrv_server *s) {
    return atomic_load(&s->stop_at) != 0;
}

/* ---- numbers ---- */

NETSRV_API netsrv_result netsrv_get_stats(const netsrv_server *s, unsigned i,
                                          netsrv_stats *stats) {
    if (i >= s->thread_count) {
        return NETSRV_BAD_ARGUMENT;
    }
    const netsrv__worker *w = &s->workers[i];
#define NETSRV_X(name, text)                                                                       \
    stats->name = atomic_load_explicit(&w->count.name, memory_order_relaxed);
    NETSRV_STATS(NETSRV_X)
#undef NETSRV_X
    const uint64_t load = atomic_load_explicit(&w->load, memory_order_relaxed);
    stats->live = atomic_load_explicit(&w->open_now, memory_order_relaxed);
    stats->travelling = load > stats->live ? load - stats->live : 0;
    stats->queued_bytes = atomic_load_explicit(&s->queued, memory_order_relaxed);
    stats->jobs_waiting = netsrv__jobs_waiting(s->pool);
    return NETSRV_OK;
}

NETSRV_API void netsrv_get_total(const netsrv_server *s, netsrv_stats *stats) {
    netsrv_stats one;
    uint64_t longest = 0;
    uint64_t longest_job = 0;
    memset(stats, 0, sizeof *stats);
    for (unsigned i = 0; netsrv_get_stats(s, i, &one) == NETSRV_OK; i++) {
#define NETSRV_X(name, text) stats->name += one.name;
        NETSRV_STATS(NETSRV_X)
#undef NETSRV_X
        stats->live += one.live;
        stats->travelling += one.travelling;
        longest = one.longest_turn_us > longest ? one.longest_turn_us : longest;
        longest_job = one.longest_job_us > longest_job ? one.longest_job_us : longest_job;
    }
    stats->longest_turn_us = longest;
    stats->longest_job_us = longest_job;
    stats->jobs_waiting = netsrv__jobs_waiting(s->pool);
    stats->queued_bytes = atomic_load_explicit(&s->queued, memory_order_relaxed);
}

NETSRV_API unsigned netsrv_imbalance(const netsrv_server *s) {
    uint64_t most = 0;
    uint64_t sum = 0;
    for (unsigned i = 0; i < s->cfg.workers; i++) {
        const uint64_t n = atomic_load_explicit(&s->workers[i].open_now, memory_order_relaxed);
        most = n > most ? n : most;
        sum += n;
    }
    return sum != 0 ? (unsigned)(most * 100 * s->cfg.workers / sum) : 0;
}

/* ---- connections ---- */

NETSRV_API netsrv_result netsrv_send(netsrv_conn *c, const void *data, size_t n) {
    netsrv__worker *w = c->worker;
    NETSRV__ASSERT_OWNER(w);
    if (NETSRV__LIKELY(w->own.current == c) && netsrv__conn_lend(w, data, n)) {
        return netsrv__conn_mark_high(w, c, w->own.reply_bytes);
    }
    return netsrv__conn_queue(w, c, data, n);
}

NETSRV_API netsrv_result netsrv_sendv(netsrv_conn *c, const netsrv_span *spans, size_t count) {
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        total = spans[i].bytes <= SIZE_MAX - total ? total + spans[i].bytes : SIZE_MAX;
    }
    if (!netsrv__conn_can_send(c)) {
        return NETSRV_GONE;
    }
    netsrv_result result = netsrv__conn_admit_output(c->worker, c, total);
    for (size_t i = 0; i < count && result <= NETSRV_HIGH; i++) {
        if (spans[i].bytes != 0) {
            result = netsrv_send(c, spans[i].data, spans[i].bytes);
        }
    }
    return result;
}

/* What a call was given goes back at once if nothing keeps it. */
static netsrv_result netsrv__public_give_back(netsrv_result result, bool kept,
                                              void (*release)(void *arg), void *arg) {
    if (!kept && release != NULL) {
        release(arg);
    }
    return result;
}

NETSRV_API netsrv_result netsrv_send_owned(netsrv_conn *c, const void *data, size_t n,
                                           void (*release)(void *arg), void *arg) {
    NETSRV__ASSERT_OWNER(c->worker);
    if (n < NETSRV__OUT_MIN / 4) {
        return netsrv__public_give_back(netsrv_send(c, data, n), false, release, arg);
    }
    const netsrv__chunk what = {.kind = NETSRV__CHUNK_OWNED, .data = (unsigned char *)data,
                                .end = n, .release = release, .arg = arg};
    const netsrv_result result = netsrv__conn_refer(c->worker, c, &what, n);
    return netsrv__public_give_back(result, result <= NETSRV_HIGH, release, arg);
}

NETSRV_API netsrv_result netsrv_send_file(netsrv_conn *c, int fd, uint64_t offset, uint64_t n,
                                          void (*release)(void *arg), void *arg) {
    NETSRV__ASSERT_OWNER(c->worker);
    netsrv_result result = NETSRV_BAD_ARGUMENT;
    if (n == 0) {
        result = netsrv__conn_can_send(c) ? NETSRV_OK : NETSRV_GONE;
    } else if (n <= SIZE_MAX / 2 && c->out.bytes <= SIZE_MAX / 4 && offset <= INT64_MAX / 2 &&
               (uint64_t)(off_t)(offset + n) == offset + n) {
        const netsrv__chunk what = {.kind = NETSRV__CHUNK_FILE, .fd = fd, .offset = offset,
                                    .end = (size_t)n, .release = release, .arg = arg};
        result = netsrv__conn_refer(c->worker, c, &what, 0);
    }
    return netsrv__public_give_back(result, n != 0 && result <= NETSRV_HIGH, release, arg);
}

NETSRV_API void netsrv_cork(netsrv_conn *c) {
    NETSRV__ASSERT_OWNER(c->worker);
    if (netsrv__conn_can_send(c)) {
        c->flags |= NETSRV__CORKED;
        netsrv__conn_mark_dirty(c->worker, c);
    }
}

NETSRV_API void netsrv_uncork(netsrv_conn *c) {
    NETSRV__ASSERT_OWNER(c->worker);
    if ((c->flags & NETSRV__CORKED) != 0) {
        c->flags &= ~(uint32_t)NETSRV__CORKED;
        netsrv__conn_mark_dirty(c->worker, c);
    }
}

NETSRV_API netsrv_result netsrv_flush(netsrv_conn *c) {
    NETSRV__ASSERT_OWNER(c->worker);
    netsrv__jobs_look(c->worker, c);
    return netsrv__conn_flush(c->worker, c);
}

NETSRV_API void netsrv_pause(netsrv_conn *c) {
    NETSRV__ASSERT_OWNER(c->worker);
    if (c->state == NETSRV__OPEN || c->state == NETSRV__DIALING) {
        c->flags |= NETSRV__PAUSED;
        netsrv__conn_mark_dirty(c->worker, c);
    }
}

NETSRV_API void netsrv_resume(netsrv_conn *c) {
    NETSRV__ASSERT_OWNER(c->worker);
    netsrv__conn_resume(c->worker, c);
}

NETSRV_API void netsrv_shutdown(netsrv_conn *c) {
    NETSRV__ASSERT_OWNER(c->worker);
    if (netsrv__conn_can_send(c)) {
        c->flags |= NETSRV__FIN_WANTED;
        c->flags &= ~(uint32_t)NETSRV__CORKED;
        netsrv__conn_stop_lending(c->worker, c);
        netsrv__conn_mark_dirty(c->worker, c);
    }
}

NETSRV_API void netsrv_close(netsrv_conn *c) {
    netsrv__conn_close(c->worker, c, NETSRV_CLOSE_LOCAL);
}

NETSRV_API void netsrv_abort(netsrv_conn *c) {
    netsrv__conn_reset(c->worker, c, NETSRV_CLOSE_ABORT);
}

NETSRV_API void netsrv_set_data(netsrv_conn *c, void *data) {
    c->data = data;
}

NETSRV_API void *netsrv_get_data(const netsrv_conn *c) {
    return c->data;
}

NETSRV_API void netsrv_set_idle_timeout(netsrv_conn *c, uint32_t timeout_ms) {
    NETSRV__ASSERT_OWNER(c->worker);
    c->idle_ms = timeout_ms != 0 ? timeout_ms : c->worker->cfg->idle_timeout_ms;
    netsrv__conn_mark_dirty(c->worker, c); /* the settle arms the timer */
}

NETSRV_API const char *netsrv_peer_text(const netsrv_conn *c, char *text, size_t n) {
    const netsrv__addr a = netsrv__net_peer_of(c->fd, &c->peer);
    return netsrv__net_text(&a, text, n);
}

NETSRV_API const char *netsrv_local_text(const netsrv_conn *c, char *text, size_t n) {
    struct sockaddr_storage sa;
    socklen_t sa_len = sizeof sa;
    memset(&sa, 0, sizeof sa);
    if (c->fd >= 0 && netsrv__sys_local(c->fd, &sa, &sa_len) != 0) {
        sa.ss_family = AF_UNSPEC;
    }
    const netsrv__addr a = netsrv__net_addr(&sa);
    return netsrv__net_text(&a, text, n);
}

NETSRV_API netsrv_id netsrv_get_id(const netsrv_conn *c) {
    return netsrv__conn_id(c);
}

NETSRV_API unsigned netsrv_get_worker(const netsrv_conn *c) {
    return c->worker->index;
}

NETSRV_API netsrv_server *netsrv_get_server(const netsrv_conn *c) {
    return c->worker->srv;
}

NETSRV_API unsigned netsrv_get_listener(const netsrv_conn *c) {
    return c->listener;
}

NETSRV_API int netsrv_get_fd(const netsrv_conn *c) {
    return c->fd;
}

NETSRV_API void netsrv_get_conn_stats(const netsrv_conn *c, netsrv_conn_stats *stats) {
    stats->bytes_in = c->bytes_in;
    stats->bytes_out = c->bytes_out;
    stats->queued_bytes = netsrv__conn_queued(c->worker, c) + c->sending;
}

/* ---- work on another thread ---- */

NETSRV_API netsrv_result netsrv_offload(netsrv_conn *c, void (*work)(void *arg),
                                        void (*done)(netsrv_conn *c, void *arg,
                                                     netsrv_result result),
                                        void *arg, unsigned flags, netsrv_task *task) {
    netsrv_task ignored;
    netsrv__worker *w = netsrv__self;
    if (work == NULL || done == NULL || (flags & ~NETSRV_ORDERED) != 0) {
        return NETSRV_BAD_ARGUMENT;
    }
    if (w == NULL || !w->serves || c->worker != w) {
        return NETSRV_BAD_THREAD;
    }
    if (c->state > NETSRV__HALF) {
        return NETSRV_GONE;
    }
    const netsrv__work what = {.id = netsrv__conn_id(c), .ordered = (flags & NETSRV_ORDERED) != 0,
                               .work = work, .done = done, .arg = arg};
    return netsrv__jobs_offload(w, c, &what, task != NULL ? task : &ignored);
}

NETSRV_API netsrv_result netsrv_cancel(netsrv_server *s, netsrv_task task) {
    netsrv__worker *w = netsrv__self;
    if (w == NULL || w->srv != s || !w->serves || task % NETSRV_WORKERS_MAX != w->index) {
        return NETSRV_BAD_THREAD;
    }
    netsrv__work *x = netsrv__jobs_find_work(w, task);
    if (x == NULL) {
        return NETSRV_GONE;
    }
    netsrv__jobs_cancel(w, x);
    return NETSRV_OK;
}

/* ---- timers ---- */

NETSRV_API netsrv_result netsrv_timer_start(netsrv_server *s, netsrv_timer *t, uint32_t delay_ms,
                                            uint32_t period_ms) {
    netsrv__worker *w = netsrv__self;
    if (t->fn == NULL) {
        return NETSRV_BAD_ARGUMENT;
    }
    const bool set = netsrv__timer_armed(&t->at);
    if (w == NULL || w->srv != s || !w->serves || (set && t->owner != w)) {
        return NETSRV_BAD_THREAD;
    }
    if (w->own.timers_over) {
        return NETSRV_STOPPED;
    }
    netsrv__timer_set(w, t, delay_ms, period_ms);
    return NETSRV_OK;
}

NETSRV_API void netsrv_timer_stop(netsrv_timer *t) {
    netsrv__worker *w = t->owner;
    if (netsrv__timer_armed(&t->at)) {
        NETSRV__ASSERT_OWNER(w);
        netsrv__timer_stop(&w->own.timers, &t->at);
    }
}

NETSRV_API bool netsrv_timer_is_set(const netsrv_timer *t) {
    return netsrv__timer_armed(&t->at);
}

/* ---- from any thread ---- */

static netsrv_result netsrv__public_post(netsrv_server *s, netsrv_id id, netsrv__msg_kind kind,
                                         netsrv__chunk *chunk) {
    netsrv__worker *w = netsrv__server_worker_of(s, id);
    netsrv__msg msg;
    if (w == NULL) {
        return NETSRV_GONE;
    }
    memset(&msg, 0, sizeof msg);
    msg.kind = kind;
    msg.id = id;
    msg.as.chunk = chunk;
    return netsrv__mailbox_post(w, &msg, false);
}

static netsrv_result netsrv__public_send_far(netsrv_server *s, netsrv_id id, const void *data,
                                             size_t n) {
    bool full = false;
    netsrv__chunk *chunk = netsrv__out_chunk_new(s, n, &full);
    if (chunk == NULL) {
        return full ? NETSRV_QUEUE_FULL : NETSRV_NO_MEMORY;
    }
    memcpy(chunk->bytes, data, n);
    chunk->end = n;
    const netsrv_result result = netsrv__public_post(s, id, NETSRV__MSG_SEND, chunk);
    if (result != NETSRV_OK) {
        netsrv__out_chunk_free(s, chunk);
    }
    return result;
}

/* On a handler thread: the connection whose callback runs, if the id names it. */
static netsrv_conn *netsrv__public_mine(const netsrv_server *s, netsrv_id id) {
    const netsrv__worker *w = netsrv__self;
    netsrv_conn *c = w != NULL && w->srv == s && !w->serves ? w->own.current : NULL;
    return c != NULL && netsrv__conn_id(c) == id ? c : NULL;
}

NETSRV_API netsrv_result netsrv_send_to(netsrv_server *s, netsrv_id id, const void *data,
                                        size_t n) {
    netsrv__worker *w = netsrv__server_worker_of(s, id);
    netsrv_conn *mine = netsrv__public_mine(s, id);
    if (mine != NULL) {
        return netsrv_send(mine, data, n);
    }
    if (w == NULL) {
        return NETSRV_GONE;
    }
    if (netsrv__self == w) {
        netsrv_conn *c = netsrv__conn_of_id(w, id);
        return c != NULL ? netsrv_send(c, data, n) : NETSRV_GONE;
    }
    return n != 0 ? netsrv__public_send_far(s, id, data, n) : NETSRV_OK;
}

/* ---- buffers ---- */

NETSRV_API netsrv_buffer *netsrv_buffer_create(netsrv_server *s, const void *data, size_t n) {
    return netsrv__share_buffer(s, data, n);
}

NETSRV_API void *netsrv_buffer_data(netsrv_buffer *b) {
    return b->bytes;
}

NETSRV_API void netsrv_buffer_retain(netsrv_buffer *b) {
    netsrv__share_retain(b);
}

NETSRV_API void netsrv_buffer_release(netsrv_buffer *b) {
    netsrv__out_buffer_drop(b);
}

NETSRV_API netsrv_result netsrv_send_buffer(netsrv_conn *c, netsrv_buffer *b) {
    NETSRV__ASSERT_OWNER(c->worker);
    return netsrv__share_send(c->worker, c, b);
}

NETSRV_API netsrv_result netsrv_send_buffer_to(netsrv_server *s, netsrv_id id, netsrv_buffer *b) {
    netsrv__worker *w = netsrv__server_worker_of(s, id);
    netsrv_conn *mine = netsrv__public_mine(s, id);
    netsrv__msg msg;
    if (mine != NULL) {
        return netsrv__share_send(mine->worker, mine, b);
    }
    if (w == NULL) {
        return NETSRV_GONE;
    }
    if (netsrv__self == w) {
        netsrv_conn *c = netsrv__conn_of_id(w, id);
        return c != NULL ? netsrv__share_send(w, c, b) : NETSRV_GONE;
    }
    memset(&msg, 0, sizeof msg);
    msg.kind = NETSRV__MSG_SHARE;
    msg.id = id;
    msg.as.buffer = b;
    netsrv__share_retain(b);
    const netsrv_result result = netsrv__mailbox_post(w, &msg, false);
    if (result != NETSRV_OK) {
        netsrv__out_buffer_drop(b);
    }
    return result;
}

NETSRV_API netsrv_result netsrv_broadcast(netsrv_server *s, netsrv_buffer *b,
                                          bool (*filter)(netsrv_conn *c, void *arg),
                                          void (*release)(void *arg), void *arg) {
    const netsrv_result result = netsrv__share_post(s, b, filter, release, arg);
    return netsrv__public_give_back(result, result == NETSRV_OK, release, arg);
}

static netsrv_result netsrv__public_tell(netsrv_server *s, netsrv_id id, netsrv__msg_kind kind) {
    netsrv__worker *w = netsrv__server_worker_of(s, id);
    netsrv_conn *c = netsrv__public_mine(s, id);
    if (c == NULL && (w == NULL || netsrv__self != w)) {
        return netsrv__public_post(s, id, kind, NULL);
    }
    c = c != NULL ? c : netsrv__conn_of_id(w, id);
    if (c == NULL || c->state >= NETSRV__CLOSING) {
        return NETSRV_GONE;
    }
    switch (kind) {
    case NETSRV__MSG_CLOSE:
        netsrv_close(c);
        break;
    case NETSRV__MSG_ABORT:
        netsrv_abort(c);
        break;
    default:
        netsrv_resume(c);
        break;
    }
    return NETSRV_OK;
}

NETSRV_API netsrv_result netsrv_close_id(netsrv_server *s, netsrv_id id) {
    return netsrv__public_tell(s, id, NETSRV__MSG_CLOSE);
}

NETSRV_API netsrv_result netsrv_abort_id(netsrv_server *s, netsrv_id id) {
    return netsrv__public_tell(s, id, NETSRV__MSG_ABORT);
}

NETSRV_API netsrv_result netsrv_resume_id(netsrv_server *s, netsrv_id id) {
    return netsrv__public_tell(s, id, NETSRV__MSG_RESUME);
}

NETSRV_API netsrv_result netsrv_post(netsrv_server *s, unsigned worker,
                                     void (*fn)(netsrv_server *s, unsigned worker, void *arg),
                                     void *arg) {
    netsrv__msg msg;
    if (worker >= s->cfg.workers || fn == NULL) {
        return NETSRV_BAD_ARGUMENT;
    }
    memset(&msg, 0, sizeof msg);
    msg.kind = NETSRV__MSG_CALL;
    msg.as.call.fn = fn;
    msg.as.call.arg = arg;
    return netsrv__mailbox_post(&s->workers[worker], &msg, false);
}

NETSRV_API netsrv_result netsrv_post_all(netsrv_server *s,
                                         void (*fn)(netsrv_server *s, unsigned worker, void *arg),
                                         void *arg) {
    netsrv__msg msg;
    if (fn == NULL) {
        return NETSRV_BAD_ARGUMENT;
    }
    memset(&msg, 0, sizeof msg);
    msg.kind = NETSRV__MSG_CALL;
    msg.as.call.fn = fn;
    msg.as.call.arg = arg;
    return netsrv__mailbox_post_all(s->workers, s->cfg.workers, &msg);
}

NETSRV_API netsrv_result netsrv_set_worker_data(netsrv_server *s, unsigned worker, void *data) {
    if (worker >= s->cfg.workers) {
        return NETSRV_BAD_ARGUMENT;
    }
    s->workers[worker].data = data;
    return NETSRV_OK;
}

NETSRV_API void *netsrv_get_worker_data(const netsrv_server *s, unsigned worker) {
    return worker < s->cfg.workers ? s->workers[worker].data : NULL;
}

NETSRV_API netsrv_conn *netsrv_find(netsrv_server *s, netsrv_id id) {
    netsrv__worker *w = netsrv__server_worker_of(s, id);
    netsrv_conn *c = netsrv__public_mine(s, id);
    if (c == NULL && w != NULL && netsrv__self == w) {
        c = netsrv__conn_of_id(w, id);
        c = c != NULL && c->job == NULL ? c : NULL;
    }
    return c != NULL && c->state < NETSRV__CLOSING ? c : NULL;
}

/* ---- to another worker, and to others ---- */

NETSRV_API netsrv_result netsrv_move(netsrv_conn *c, unsigned worker) {
    netsrv__worker *w = c->worker;
    NETSRV__ASSERT_OWNER(w);
    if (w->srv->pool != NULL) {
        return NETSRV_UNAVAILABLE;
    }
    if (worker >= w->cfg->workers) {
        return NETSRV_BAD_ARGUMENT;
    }
    if (c->state == NETSRV__DIALING) {
        return NETSRV_BAD_STATE;
    }
    if (c->state != NETSRV__OPEN && c->state != NETSRV__HALF) {
        return NETSRV_GONE;
    }
    if (atomic_load(&w->srv->stop_at) != 0) {
        return NETSRV_STOPPED;
    }
    const bool here = worker == w->index && (c->flags & NETSRV__MOVING) == 0;
    c->move_to = (uint16_t)worker;
    c->flags |= here ? NETSRV__ARRIVED : NETSRV__MOVING;
    netsrv__conn_mark_dirty(w, c);
    return NETSRV_OK;
}

static bool netsrv__public_can_read(const netsrv_server *s, const netsrv_handlers *on) {
    return on->on_data != NULL ||
           (on->on_frame != NULL && s->cfg.framing != NETSRV_FRAMING_NONE);
}

static netsrv_result netsrv__public_begin_dial(netsrv__worker *w, netsrv__dial *d,
                                               const netsrv_handlers *on,
                                               const netsrv_target *target, netsrv_conn **c) {
    const uint32_t timeout_ms = target->timeout_ms != 0 ? target->timeout_ms : 10000;
    netsrv_conn *made = netsrv__conn_dial(w, on, timeout_ms);
    if (made == NULL) {
        netsrv__mem_free(w->cfg, d, sizeof *d);
        return NETSRV_NO_MEMORY;
    }
    made->data = target->data;
    atomic_fetch_add(&w->load, 1);
    NETSRV__COUNT(w, dialed, 1);
    netsrv__dial_start(w, made, d);
    if (c != NULL) {
        *c = made;
    }
    return NETSRV_OK;
}

/* At a stop, whoever is served may need others; when all have gone, and nobody comes any more, one
 * call after the other would hold the server for the whole of its time. */
static bool netsrv__public_may_dial(const netsrv__worker *w) {
    const netsrv_server *srv = w->srv;
    return w->own.phase != NETSRV__FORCED &&
           (atomic_load(&srv->stop_at) == 0 || !atomic_load(&srv->swept) ||
            atomic_load(&srv->live) != 0);
}

NETSRV_API netsrv_result netsrv_dial(netsrv_server *s, const netsrv_target *target,
                                     netsrv_conn **c) {
    netsrv__listener to;
    bool name = false;
    netsrv__worker *w = netsrv__self;
    if (w == NULL || w->srv != s || !w->serves) {
        return NETSRV_BAD_THREAD;
    }
    const netsrv_handlers *on = target->handlers != NULL ? target->handlers : &s->handlers;
    if (!netsrv__public_can_read(s, on)) {
        return NETSRV_BAD_ARGUMENT;
    }
    memset(&to, 0, sizeof to);
    if (target->address == NULL || netsrv__net_parse_target(&to, target->address, &name) != NULL) {
        return NETSRV_BAD_ADDRESS;
    }
    if (!netsrv__public_may_dial(w)) {
        return NETSRV_STOPPED;
    }
    netsrv__dial *d = netsrv__dial_new(w, &to, target->address, name);
    if (d == NULL) {
        return NETSRV_NO_MEMORY;
    }
    return netsrv__public_begin_dial(w, d, on, target, c);
}

/* ---- foreign descriptors ---- */

static bool netsrv__public_is_mask(unsigned mask) {
    return (mask & ~(NETSRV_READABLE | NETSRV_WRITABLE)) == 0;
}

/* What went wrong with a descriptor; SYSTEM leaves the errno. */
static netsrv_result netsrv__public_watched(int error) {
    errno = error != 0 ? error : errno;
    switch (error) {
    case 0:
        return NETSRV_OK;
    case EBADF:
        return NETSRV_BAD_ARGUMENT;
    case ENOMEM:
        return NETSRV_NO_MEMORY;
    case EPERM: /* epoll_ctl(2); the others are what kqueues say */
    case EINVAL:
    case ENODEV:
    case EOPNOTSUPP:
        return NETSRV_UNAVAILABLE;
    default:
        return NETSRV_SYSTEM;
    }
}

NETSRV_API netsrv_result netsrv_watch(netsrv_server *s, int fd, unsigned mask, netsrv_watch_fn *fn,
                                      void *arg, netsrv_watch_id *watch) {
    netsrv_watch_id ignored;
    netsrv__watch settings;
    netsrv__worker *w = netsrv__self;
    if (w == NULL || w->srv != s || !w->serves) {
        return NETSRV_BAD_THREAD;
    }
    if (fn == NULL || !netsrv__public_is_mask(mask)) {
        return NETSRV_BAD_ARGUMENT;
    }
    const int file = netsrv__sys_is_file(fd);
    if (file != 0) {
        return file > 0 ? NETSRV_UNAVAILABLE : netsrv__public_watched(errno);
    }
    const int own_fd = netsrv__sys_duplicate(fd);
    if (own_fd < 0) {
        return netsrv__public_watched(errno);
    }
    memset(&settings, 0, sizeof settings);
    settings.fn = fn;
    settings.arg = arg;
    settings.told_fd = fd;
    settings.wanted = (uint16_t)mask;
    return netsrv__public_watched(
        netsrv__watch_add(w, own_fd, settings, watch != NULL ? watch : &ignored));
}

/* The watch, or why there is none. */
static netsrv_result netsrv__public_find_watch(netsrv_server *s, netsrv_watch_id id,
                                               netsrv__watch **x) {
    netsrv__worker *w = netsrv__server_worker_of(s, id);
    *x = NULL;
    if (w != NULL && netsrv__self != w) {
        return NETSRV_BAD_THREAD;
    }
    *x = w != NULL ? netsrv__watch_of_id(w, id) : NULL;
    return *x != NULL ? NETSRV_OK : NETSRV_GONE;
}

NETSRV_API netsrv_result netsrv_watch_change(netsrv_server *s, netsrv_watch_id watch,
                                             unsigned mask) {
    netsrv__watch *x;
    if (!netsrv__public_is_mask(mask)) {
        return NETSRV_BAD_ARGUMENT;
    }
    const netsrv_result result = netsrv__public_find_watch(s, watch, &x);
    return result == NETSRV_OK ? netsrv__public_watched(netsrv__watch_change(netsrv__self, x, mask))
                               : result;
}

NETSRV_API netsrv_result netsrv_unwatch(netsrv_server *s, netsrv_watch_id watch) {
    netsrv__watch *x;
    const netsrv_result result = netsrv__public_find_watch(s, watch, &x);
    if (result == NETSRV_OK) {
        netsrv__watch_drop(netsrv__self, x);
    }
    return result;
}

/* ---- names ---- */

NETSRV_API const char *netsrv_result_text(int result) {
    return netsrv__defaults_name(netsrv__log_results, NETSRV_RESULT_COUNT, result);
}

NETSRV_API const char *netsrv_close_text(int reason) {
    return netsrv__defaults_name(netsrv__log_closes, NETSRV_CLOSE_COUNT, reason);
}

NETSRV_API const char *netsrv_backend_name(int backend) {
    return netsrv__defaults_name(netsrv__defaults_backends, NETSRV_BACKEND_COUNT, backend);
}

NETSRV_API const char *netsrv_accept_name(int accept) {
    return netsrv__defaults_name(netsrv__defaults_accepts, NETSRV_ACCEPT_COUNT, accept);
}

NETSRV_API const char *netsrv_trigger_name(int trigger) {
    return netsrv__defaults_name(netsrv__defaults_triggers, NETSRV_TRIGGER_COUNT, trigger);
}

NETSRV_API const char *netsrv_place_name(int place) {
    return netsrv__defaults_name(netsrv__defaults_places, NETSRV_PLACE_COUNT, place);
}

NETSRV_API const char *netsrv_transfer_name(int transfer) {
    return netsrv__defaults_name(netsrv__defaults_transfers, NETSRV_TRANSFER_COUNT, transfer);
}

#endif /* NETSRV__IMPLEMENTED */
#endif /* NETSRV_IMPLEMENTATION */

/* ---- licence --------------------------------------------------------------------------------- */

/* This software is available under two licences; choose the one you prefer.
 *
 * A: Public domain (www.unlicense.org). This is free and unencumbered software released into the
 * public domain. Anyone is free to copy, modify, publish, use, compile, sell, or distribute this
 * software, either in source code form or as a compiled binary, for any purpose, commercial or
 * non-commercial, and by any means. In jurisdictions that recognize copyright laws, the author or
 * authors of this software dedicate any and all copyright interest in the software to the public
 * domain. We make this dedication for the benefit of the public at large and to the detriment of
 * our heirs and successors. We intend this dedication to be an overt act of relinquishment in
 * perpetuity of all present and future rights to this software under copyright law.
 *
 * B: MIT No Attribution (MIT-0). Permission is hereby granted, free of charge, to any person
 * obtaining a copy of this software and associated documentation files (the "Software"), to deal in
 * the Software without restriction, including without limitation the rights to use, copy, modify,
 * merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons
 * to whom the Software is furnished to do so.
 *
 * In both cases: THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
 * IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR
 * PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY
 * CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING
 * FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE. */
