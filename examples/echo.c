/* A multicore echo server: everything that a client sends comes back.
 *
 *     echo [ADDRESS]        then, elsewhere:  nc 127.0.0.1 7000
 */
#define NETSRV_IMPLEMENTATION
#include "../netsrv.h"
#include <err.h>

static size_t echo(netsrv_conn *c, const void *data, size_t n) {
    netsrv_send(c, data, n);
    return n;
}

int main(int argc, char **argv) {
    netsrv_config cfg = {.listen = {argc > 1 ? argv[1] : "127.0.0.1:7000"}, .on_data = echo};
    netsrv_error error;
    if (netsrv_run(&cfg, &error) != NETSRV_OK) { errx(1, "%s", error.text); }
}
