/* The pump's side towards xl: the three channels' descriptors. Called with the lock held, which is given back while bytes are moved. */
#define _GNU_SOURCE
#include "pump_private.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

enum {
    /* Bytes: one frame, and eight times the default of 64 KiB, for fewer turns between xl's processes and us. 1 MiB has 0.9 to 1.0 of its rate: it holds
     * no more than is read at a time, and takes more of the cache. Refused near the user's limit of pipe pages: nothing depends on it. */
    PIPE_SIZE = XS_CHUNK,
    DISCARD = 64 << 10          /* bytes of one read of what is thrown away: a pipe of the usual size */
};

/* Look at the channels' descriptors once: O_NONBLOCK, pipe size. */
void xs_pump_channels_init(struct xs_pump *pump)
{
    for (unsigned c = 0; c < XS_CHANNELS; c++) {
        int fd = pump->options.channel_fd[c];
        int flags = fd < 0 ? -1 : fcntl(fd, F_GETFL);
        int size = fd < 0 ? -1 : fcntl(fd, F_GETPIPE_SZ);       /* -1 for what is no pipe */

        pump->nonblocking[c] = flags >= 0 && (flags & O_NONBLOCK) != 0;
        if (size >= 0 && size < PIPE_SIZE)
            (void)fcntl(fd, F_SETPIPE_SZ, PIPE_SIZE);
    }
}

/* True if input is to be read now. */
static int wants_input(const struct xs_pump *pump, unsigned channel)
{
    size_t unsent = xs_session_unsent(pump->session, channel);
    size_t len;

    if (xs_session_input_ended(pump->session, channel))
        return 0;
    switch (pump->state) {
    case PUMP_LIVE:
        /* Not more than a chunk ahead of each socket: what waits in xl's pipe is younger when it is sent, and what has just been read is
         * still in the cache when it is sealed. */
        if (unsent >= XS_CHUNK * xs_session_lanes(pump->session))
            return 0;
        break;
    case PUMP_LOST:
        /* Up to the window: what xl says now may be GO, and that must be known (S8). */
        break;
    case PUMP_DRAINING:
        /* xl there must not stop at a full pipe of its messages while it reads what we still deliver; the guest here need not hurry. */
        return pump->options.role == XS_DESTINATION;
    case PUMP_IDLE:
    case PUMP_OVER:
        return 0;
    }
    return xs_session_input(pump->session, channel, &len) != NULL;
}

/* The events (POLLIN, POLLOUT, 0) that a channel's descriptor waits for. */
short xs_pump_channel_wants(const struct xs_pump *pump, unsigned channel)
{
    size_t len;

    if (pump->options.channel_fd[channel] < 0)
        return 0;
    if (xs_session_sends(pump->session, channel))
        return wants_input(pump, channel) ? POLLIN : 0;
    return xs_session_output(pump->session, channel, &len) != NULL ? POLLOUT : 0;
}

/* The input has ended, or cannot be read. */
static void read_failed(struct xs_pump *pump, unsigned channel, ssize_t n, int error)
{
    if (n == 0) {
        xs_session_input_end(pump->session, channel);
        pump->options.channel_fd[channel] = -1;
    } else if (error == EINTR) {
        pump->woken = 1;
    } else if (error != EAGAIN) {
        /* An error is not the end of the input: END would tell the peer that the domain is whole. */
        pump->system_errno = error;
        pump->failed = XS_ESYSTEM;
    }
}

/* The window is used up and nobody is left to acknowledge: what xl says now has no reader. */
static void channel_discard(struct xs_pump *pump, unsigned channel)
{
    uint8_t piece[DISCARD];
    ssize_t n;

    n = read(pump->options.channel_fd[channel], piece, sizeof(piece));
    if (n <= 0)
        read_failed(pump, channel, n, errno);
}

/* Read once from a channel, after poll: the descriptor may block, and one read of what is there does not. */
static void channel_read(struct xs_pump *pump, unsigned channel)
{
    size_t len;
    uint8_t *to = xs_session_input(pump->session, channel, &len);
    ssize_t n;
    int error;

    if (to == NULL) {
        if (pump->state == PUMP_DRAINING)
            channel_discard(pump, channel);
        return;
    }
    xs_pump_unlock(pump);
    n = read(pump->options.channel_fd[channel], to, len);
    error = errno;
    xs_pump_lock(pump);
    if (n > 0)
        xs_session_input_commit(pump->session, channel, (size_t)n);
    else
        read_failed(pump, channel, n, error);
}

/* Write to a channel's descriptor: once if it may block, else as much as it takes. */
static void channel_write(struct xs_pump *pump, unsigned channel)
{
    const uint8_t *from;
    size_t len;
    ssize_t n;
    int error;

    while ((from = xs_session_output(pump->session, channel, &len)) != NULL) {
        xs_pump_unlock(pump);
        /* Up to PIPE_BUF bytes do not block after POLLOUT: pipe(7); a pipe is writable when a page of it is free. */
        n = write(pump->options.channel_fd[channel], from, pump->nonblocking[channel] ? len : xs_min(len, PIPE_BUF));
        error = errno;
        xs_pump_lock(pump);
        if (n > 0) {
            xs_session_delivered(pump->session, channel, (size_t)n);
            if (!pump->nonblocking[channel])
                return;
        } else if (n < 0 && error == EINTR) {
            pump->woken = 1;
            return;
        } else if (n == 0 || error == EAGAIN) {
            pump->sink_blocked[channel] = 1;
            return;
        } else {
            /* EPIPE: the reader has gone. Anything else (a full disk behind standard error) must not end the migration either. */
            if (error != EPIPE)
                pump->system_errno = error;
            xs_session_output_broken(pump->session, channel);
            return;
        }
    }
}

/* A channel's descriptor is ready: read once, or write. */
void xs_pump_channel_ready(struct xs_pump *pump, unsigned channel)
{
    pump->sink_blocked[channel] = 0;
    if (xs_session_sends(pump->session, channel))
        channel_read(pump, channel);
    else
        channel_write(pump, channel);
}

/* Write what can be written without asking poll. */
void xs_pump_deliver(struct xs_pump *pump)
{
    size_t len;

    for (unsigned c = 0; c < XS_CHANNELS; c++) {
        if (pump->options.channel_fd[c] < 0) {
            /* The owner gave none, or has it back: nobody reads. */
            if (xs_session_output(pump->session, c, &len) != NULL)
                xs_session_output_broken(pump->session, c);
        } else if (pump->nonblocking[c] && !pump->sink_blocked[c] && !xs_session_sends(pump->session, c)) {
            channel_write(pump, c);
        }
    }
}

/* True while bytes wait to be delivered. */
int xs_pump_undelivered(const struct xs_pump *pump)
{
    size_t len;

    for (unsigned c = 0; c < XS_CHANNELS; c++)
        if (xs_session_output(pump->session, c, &len) != NULL)
            return 1;
    return 0;
}
