/* activate [-k] ADDRESS PORT_FILE COMMAND...: opens a listening socket as descriptor 3, writes its
 * port, sets LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES=web as a service manager does, and runs the
 * command. With -k it keeps the socket itself: when the command has ended it serves one more client
 * with "still here\n" and ends as the command did. ADDRESS: an IPv4 port on 127.0.0.1, 0 for any.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LISTENER = 3, WAIT_MS = 20000 };

static void must(bool ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(2);
    }
}

static void open_listener(const char *port, const char *port_file) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    socklen_t n = sizeof in;
    char temporary[4096];
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    must(fd >= 0, "socket");
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    must(bind(fd, (struct sockaddr *)&in, sizeof in) == 0, "bind");
    must(listen(fd, 128) == 0, "listen");
    must(getsockname(fd, (struct sockaddr *)&in, &n) == 0, "getsockname");
    must(fd == LISTENER || dup2(fd, LISTENER) == LISTENER, "dup2");
    if (fd != LISTENER) {
        close(fd);
    }
    snprintf(temporary, sizeof temporary, "%s.new", port_file);
    FILE *file = fopen(temporary, "w");
    must(file != NULL, temporary);
    fprintf(file, "%u\n", (unsigned)ntohs(in.sin_port));
    must(fclose(file) == 0 && rename(temporary, port_file) == 0, port_file);
}

static void run(char **command) {
    char pid[32];
    snprintf(pid, sizeof pid, "%ld", (long)getpid());
    setenv("LISTEN_FDS", "1", 1);
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDNAMES", "web", 1);
    execvp(command[0], command);
    must(false, command[0]);
}

static void serve_one(void) {
    struct pollfd p = {.fd = LISTENER, .events = POLLIN, .revents = 0};
    must(poll(&p, 1, WAIT_MS) == 1, "no client");
    const int fd = accept(LISTENER, NULL, NULL);
    must(fd >= 0, "accept");
    must(write(fd, "still here\n", 11) == 11, "write");
    close(fd);
}

int main(int argc, char **argv) {
    int status;
    const bool keep = argc > 1 && strcmp(argv[1], "-k") == 0;
    argv += keep;
    argc -= keep;
    if (argc < 4) {
        fputs("usage: activate [-k] PORT PORT_FILE COMMAND...\n", stderr);
        return 2;
    }
    open_listener(argv[1], argv[2]);
    const pid_t child = keep ? fork() : 0;
    must(child >= 0, "fork");
    if (child == 0) {
        run(argv + 3);
    }
    printf("%ld\n", (long)child);
    fflush(stdout);
    must(waitpid(child, &status, 0) == child, "waitpid");
    puts("ended");
    fflush(stdout);
    serve_one();
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
