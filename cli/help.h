/* Texts of `netsrv --help`. Each topic fits a screen of 24 lines and 80 columns together with the
 * options of that topic, which are printed below it from the option table. */

static const char help_main[] =
    "usage: netsrv MODE [options]\n"
    "A multicore TCP server for testing from a shell.\n"
    "\n"
    "  echo      sends back what it receives (RFC 862)\n"
    "  line      sends back complete lines; with --commands it obeys some\n"
    "  discard   receives and drops (RFC 863)\n"
    "  chargen   sends a pattern of characters without end (RFC 864)\n"
    "  daytime   sends date and time and closes (RFC 867)\n"
    "\n"
    "  -l, --listen ADDR    repeatable; default 127.0.0.1:7000, port 0: any free one\n"
    "  -w, --workers N      worker threads; default: the CPUs this process may use\n"
    "  -b, --backend NAME   how to wait for events\n"
    "  -a, --accept NAME    who accepts       -p, --place NAME   which worker serves\n"
    "  -q, -v, --version    quiet, verbose    -h, --help TOPIC   a screen about it\n"
    "\n"
    "topics: modes commands listen threads accept place limits timeouts output\n"
    "        control options\n"
    "\n"
    "  netsrv echo -w 4 -l '*:7000'              all addresses, four workers\n"
    "  netsrv line --commands -l 127.0.0.1:0     some free port, which it prints\n"
    "  printf 'hi\\n' | nc -N 127.0.0.1 7000      a client\n"
    "\n"
    "Ctrl-C or SIGTERM stops when clients are served; a second one stops at once.\n";

typedef struct help_topic {
    const char *name;
    const char *text;
} help_topic;

static const help_topic help_topics[] = {
    {"modes",
     "  echo      sends back what it receives (RFC 862)\n"
     "  line      sends back complete lines with their ends, LF or CRLF; a last line\n"
     "            without an end is sent back when the client has finished\n"
     "  discard   receives and drops (RFC 863)\n"
     "  chargen   sends lines of 72 printable characters, each shifted by one, as\n"
     "            fast as the client reads, and drops what it receives (RFC 864)\n"
     "  daytime   sends the local date and time as one line and closes (RFC 867)\n\n"},
    {"commands",
     "With --commands, mode line obeys a line that begins with a slash:\n\n"
     "  /sleep MS    holds the handler up for MS milliseconds, then answers \"ok\"\n"
     "  /offload MS  the same on another thread, while later lines are answered\n"
     "  /worker      answers the number of the worker that serves this client\n"
     "  /id          answers the number of the connection\n"
     "  /peer        answers the client's address\n"
     "  /close       closes in order: what is queued is sent first\n"
     "  /abort       closes with a reset\n"
     "  /send N      answers N times the letter x and a newline\n"
     "  /stats       answers the counters of the server, with --json as JSON\n"
     "  /quit        stops the server as SIGTERM does\n\n"
     "Any other such line is answered with one that begins with \"error:\".\n"},
    {"listen",
     "  127.0.0.1:7000  [::1]:7000   one address; port 0 takes any free port\n"
     "  *:7000                       all addresses, IPv6 and IPv4\n"
     "  unix:/path  unix:@name       a unix socket; @name is abstract (Linux)\n"
     "  fd:3  systemd:NAME           a listening socket inherited from the parent\n\n"},
    {"threads",
     "Each worker runs one event loop; a connection stays with its worker.\n"
     "Handlers run there, or with -t on threads beside them; what is given to /offload\n"
     "(see --help commands) on others.\n"
     "Backends: auto takes the best of io_uring epoll kqueue poll that is here.\n\n"},
    {"accept",
     "  auto       the best of these for this system and number of workers\n"
     "  single     worker 0 accepts for all\n"
     "  acceptor   threads of their own accept, --acceptors N of them\n"
     "  shared     every worker waits on the one listener, all of them wake up\n"
     "  exclusive  the same, but only one wakes up (Linux)\n"
     "  edge       the same, edge-triggered\n"
     "  reuseport  a listener for each worker, the kernel distributes\n\n"},
    {"place",
     "  auto         keep for one worker and for reuseport, else two_choices\n"
     "  keep         whoever accepted the client serves it\n"
     "  round_robin  one after the other\n"
     "  least        the worker with the fewest connections\n"
     "  two_choices  the lighter one of two\n"
     "  peer_hash    the same client address goes to the same worker\n"
     "  own_thread   a thread for each client, see --help threads\n\n"},
    {"limits", "BYTES may end in k, m or g (powers of 1024). \"off\" takes a limit away.\n\n"},
    {"timeouts", "All in milliseconds; \"off\" takes a timeout away.\n\n"},
    {"control",
     "With --control PATH the server obeys what is written to that FIFO, a command a\n"
     "line. It is made if it is not there, and then removed at the end.\n\n"
     "  stats        prints the counters, as SIGUSR1 does\n"
     "  stats PATH   writes them to that file\n"
     "  pause        accepts no more clients; they wait\n"
     "  resume       accepts again\n"
     "  drain        accepts no more clients, and ends when the last one has left\n"
     "  stop         stops as SIGTERM does\n"
     "  log LEVEL    prints what is as grave: error, warning, info or debug\n\n"
     "  netsrv echo --control /tmp/ctl &   echo stats > /tmp/ctl\n\n"
     "Each is answered by a line on standard error; so is what is not understood.\n"},
    {"output",
     "SIGUSR1 prints the counters in any case. SIGINT and SIGTERM stop, see --grace.\n"
     "Exit status: 0 stopped, 1 could not start or failed, 2 wrong usage, 130 or 143\n"
     "stopped at once by a second SIGINT or SIGTERM.\n\n"},
};
