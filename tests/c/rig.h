/* Two pumps, a socket pair between them and pipes in xl's place: what test_pump.c works on. Define _GNU_SOURCE before. */
#ifndef XS_RIG_H
#define XS_RIG_H

#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct rig {
    struct xs_pump *pump[2];
    struct xs_link *peer;       /* in the place of a pump: half_rig */
    int socket[2];
    int xl_in[2][2], xl_out[2][2], xl_err[2][2];        /* pipes of the source's and the destination's xl: read end, write end */
    int last[2];                /* the last event of each pump but TIMEOUT */
    unsigned phases[2];         /* a bit a phase event */
    int inputs_ended, outputs_ended;
};

static int rig_elide = 1;       /* does the source leave zero runs out? */
static int rig_compress;        /* enum xs_compression, of the source; the destination takes what comes */
static uint64_t rig_bwlimit;

static struct xs_link_keys keys_of(int role)
{
    struct xs_link_keys k;

    memset(k.send_key, 1 + role, 32);
    memset(k.receive_key, 2 - role, 32);
    memset(k.send_iv, 3 + role, 12);
    memset(k.receive_iv, 4 - role, 12);
    return k;
}

static struct xs_link *link_of(int role)
{
    struct xs_link_keys k = keys_of(role);

    return xs_link_new(NULL, &k, 1ULL << 32);
}

static void nonblocking(int fd)
{
    CHECK(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0);
}

static inline void attach(struct rig *r)
{
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, r->socket) == 0);
    for (int i = 0; i < 2; i++)
        if (r->pump[i] != NULL)
            CHECK(xs_pump_attach(r->pump[i], link_of(i), r->socket[i]) == XS_OK);
}

/* Pipes and pumps, not yet connected. The test's ends of the pipes do not block; the destination's xl stdin does not either (its owner's
 * doing), and the source's outputs do (xl's own). */
static void open_rig(struct rig *r, uint32_t window, uint32_t keepalive_ms, uint32_t silence_ms)
{
    memset(r, 0, sizeof(*r));
    r->last[0] = r->last[1] = -100;
    for (int i = 0; i < 2; i++)
        CHECK(pipe2(r->xl_in[i], O_CLOEXEC) == 0 && pipe2(r->xl_out[i], O_CLOEXEC) == 0
              && pipe2(r->xl_err[i], O_CLOEXEC) == 0);
    nonblocking(r->xl_in[0][1]), nonblocking(r->xl_out[0][0]), nonblocking(r->xl_err[0][0]);
    nonblocking(r->xl_in[1][0]), nonblocking(r->xl_in[1][1]);
    nonblocking(r->xl_out[1][1]), nonblocking(r->xl_err[1][1]);
    for (int i = 0; i < 2; i++) {
        int mine = i == XS_SOURCE ? 0 : 1;
        struct xs_pump_options o = {
            .role = i,
            .channel_fd = { r->xl_in[i][mine], r->xl_out[i][1 - mine], r->xl_err[i][1 - mine] },
            .wake_fd = -1,
            .elide = rig_elide && i == XS_SOURCE,
            .compress = rig_compress,
            .bwlimit = rig_bwlimit,
            .send_window = { window, window, window },
            .receive_window = { window, window, window },
            .keepalive_ms = keepalive_ms,
            .silence_ms = silence_ms,
        };

        r->pump[i] = xs_pump_new(&o);
        CHECK(r->pump[i] != NULL);
    }
}

/* A rig with a destination pump, and the test in the source's place. */
static inline void half_rig(struct rig *r, uint32_t silence_ms)
{
    open_rig(r, 1 << 20, 0, silence_ms);
    xs_pump_free(r->pump[0]);
    r->pump[0] = NULL;
    attach(r);
    r->peer = link_of(0);
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        CHECK(close(*fd) == 0);
    *fd = -1;
}

static void close_rig(struct rig *r)
{
    for (int i = 0; i < 2; i++) {
        xs_pump_free(r->pump[i]);
        close_fd(&r->socket[i]);
        for (int end = 0; end < 2; end++)
            close_fd(&r->xl_in[i][end]), close_fd(&r->xl_out[i][end]), close_fd(&r->xl_err[i][end]);
    }
    xs_link_free(r->peer);
}

static struct xs_stats stats_of(const struct rig *r, int i)
{
    struct xs_stats st;

    xs_pump_stats(r->pump[i], &st);
    return st;
}

/* Run a pump until it has nothing to do, or says something that ends it. Does what Python does at the events on the way. */
static int run(struct rig *r, int i, int timeout_ms)
{
    int event;

    while ((event = xs_pump_run(r->pump[i], timeout_ms)) != XS_EV_TIMEOUT) {
        r->last[i] = event;
        if (event == XS_EV_PHASE) {
            CHECK((r->phases[i] & 1U << stats_of(r, i).phase) == 0);
            r->phases[i] |= 1U << stats_of(r, i).phase;
        } else if (event == XS_EV_INPUT_ENDED) {
            r->inputs_ended++;
            close_fd(&r->xl_in[1][1]);
        } else if (event == XS_EV_OUTPUTS_ENDED) {
            r->outputs_ended++;
        } else {
            return event;
        }
    }
    return event;
}

/* Step both until neither has anything to do. */
static void settle(struct rig *r)
{
    for (int quiet = 0; quiet < 3;) {
        struct xs_stats before[2] = { stats_of(r, 0), stats_of(r, 1) }, after[2];

        run(r, 0, 0);
        run(r, 1, 0);
        after[0] = stats_of(r, 0), after[1] = stats_of(r, 1);
        quiet = memcmp(before, after, sizeof(before)) == 0 ? quiet + 1 : 0;
    }
}

static inline void put(int fd, const char *text, size_t len)
{
    CHECK(write(fd, text, len) == (ssize_t)len);
}

/* What is in a pipe now must be this. */
static inline void expect(int fd, const char *text, size_t len)
{
    char got[4096];
    ssize_t n = read(fd, got, sizeof(got));

    CHECK(n == (ssize_t)len ? memcmp(got, text, len) == 0 : n < 0 && len == 0 && errno == EAGAIN);
}

/* End the session well: xl there closes its outputs and exits. */
static inline void finish(struct rig *r, int value)
{
    close_fd(&r->xl_out[1][1]);
    close_fd(&r->xl_err[1][1]);
    settle(r);
    CHECK(r->outputs_ended == 1);
    CHECK(xs_pump_exit(r->pump[1], 0, value) == XS_OK);
    settle(r);
    CHECK(r->last[0] == XS_EV_ENDED && stats_of(r, 0).exit_kind == 0 && stats_of(r, 0).exit_value == value);
    close_fd(&r->socket[0]);
    settle(r);
    CHECK(r->last[1] == XS_EV_ENDED);
    CHECK(xs_pump_run(r->pump[0], 1000) == XS_EV_ENDED && xs_pump_run(r->pump[1], 1000) == XS_EV_ENDED);
}

#endif
