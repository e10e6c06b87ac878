/*
 * The engine in one process and in lockstep, for callgrind: a source's pump and a destination's, a socket pair between them, pipes in xl's
 * place, 64 MiB of a stream. No clock, scheduler or network has a say, so that the same code gives the same count.
 *
 *   instructions          prints how many bytes came out at the other end
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../csrc/engine.h"

enum {
    STREAM = 64 << 20,          /* bytes */
    POOL = 4 << 20,             /* bytes that the stream repeats */
    PAGE = 4096,
    RUN = 8 * PAGE,             /* pages of a kind stand together; every third run is zero, as of a guest's free memory */
    BACK_WINDOW = 256 << 10     /* bytes: channels 1 and 2 */
};

static uint8_t pool[POOL], sink[POOL];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Marsaglia's xorshift64: the same bytes in every run. */
static void fill(void)
{
    uint64_t x = 88172645463325252ULL;

    for (size_t at = 0; at < POOL; at += sizeof(x)) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        if (at / RUN % 3 != 0)
            memcpy(pool + at, &x, sizeof(x));
    }
}

static struct xs_pump *pump_of(int role, int socket, const int fd[3])
{
    struct xs_pump_options o = { .role = role, .wake_fd = -1 };
    struct xs_link_keys keys = { .send_key = { 1 }, .receive_key = { 1 } };
    struct xs_pump *pump;

    for (int c = 0; c < XS_CHANNELS; c++) {
        o.channel_fd[c] = fd[c];
        o.send_window[c] = o.receive_window[c] = c == 0 ? STREAM : BACK_WINDOW;
    }
    o.silence_ms = 3600 * 1000;
#if __has_include("../csrc/elide.h")
    o.elide = 1;
#endif
    pump = xs_pump_new(&o);
    if (pump == NULL || xs_pump_attach(pump, xs_link_new("libcrypto", &keys, 1ULL << 32), socket) != XS_OK)
        die("pump");
    return pump;
}

/* Let a pump do what it can; the count is of what happens in here (--toggle-collect). */
static void step(struct xs_pump *pump)
{
    int event = xs_pump_run(pump, 0);

    if (event < 0 || event == XS_EV_LOST || event == XS_EV_ABORTED)
        die("the link is lost");
}

static int nonblocking(int fd)
{
    if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0)
        die("fcntl");
    return fd;
}

/* Feed, step both, drain, until everything has come. */
static size_t carry(struct xs_pump *source, struct xs_pump *destination, int in, int out)
{
    size_t fed = 0, got = 0;
    ssize_t n;

    while (got < STREAM) {
        while (fed < STREAM && (n = write(in, pool + fed % POOL, POOL - fed % POOL)) > 0)
            fed += (size_t)n;
        step(source);
        step(destination);
        while ((n = read(out, sink, sizeof(sink))) > 0) {
            if (memcmp(sink, pool + got % POOL, (size_t)n < POOL - got % POOL ? (size_t)n : POOL - got % POOL) != 0)
                die("other bytes came out");
            got += (size_t)n;
        }
    }
    return got;
}

int main(void)
{
    int up[2], down[2], back[4][2], pair[2];
    struct xs_pump *source, *destination;

    fill();
    if (pipe(up) != 0 || pipe(down) != 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) != 0)
        die("pipe");
    for (int i = 0; i < 4; i++)
        if (pipe(back[i]) != 0)
            die("pipe");
    nonblocking(up[0]), nonblocking(up[1]), nonblocking(down[0]), nonblocking(down[1]);
    source = pump_of(XS_SOURCE, pair[0], (int[]){ up[0], back[0][1], back[1][1] });
    destination = pump_of(XS_DESTINATION, pair[1], (int[]){ down[1], back[2][0], back[3][0] });
    printf("%zu\n", carry(source, destination, up[1], down[0]));
    xs_pump_free(source);
    xs_pump_free(destination);
    return 0;
}
