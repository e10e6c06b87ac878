/* What Python asks of a pump and tells it between two runs; the end by ABORT. */
#include "pump_private.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#include <sys/socket.h>

/* A snapshot of the statistics. */
void xs_pump_stats(struct xs_pump *pump, struct xs_stats *out)
{
    memset(out, 0, sizeof(*out));
    xs_pump_lock(pump);
    xs_session_stats(pump->session, out);
    out->link_sent = pump->link_sent;
    out->link_received = pump->link_received;
    out->frames_sent = pump->frames_sent;
    out->frames_received = pump->frames_received;
    out->lost = pump->lost;
    out->system_errno = pump->system_errno;
    out->lanes = (int32_t)xs_session_lanes(pump->session);
    out->lane_socket = pump->lane_socket;
    out->lane_lost = pump->lane_lost;
    out->lane_errno = pump->lane_errno;
    xs_pump_unlock(pump);
}

/* The domain's configuration: up to size bytes into out; returns its whole length. */
size_t xs_pump_head(struct xs_pump *pump, uint8_t *out, size_t size)
{
    const uint8_t *head;
    size_t len;

    xs_pump_lock(pump);
    head = xs_xlphase_head(xs_session_phases(pump->session), &len);
    if (len > 0 && size > 0)
        memcpy(out, head, xs_min(len, size));
    xs_pump_unlock(pump);
    return len;
}

/* Destination: xl has been given the head of channel 0 by somebody else; it counts as delivered. XS_OK or XS_EARGUMENT. */
int xs_pump_skip_head(struct xs_pump *pump)
{
    int rc;

    xs_pump_lock(pump);
    rc = xs_session_skip_head(pump->session);
    xs_pump_stir(pump);
    xs_pump_unlock(pump);
    return rc;
}

/* The text of the ABORT received: up to size bytes; returns its length. */
size_t xs_pump_text(struct xs_pump *pump, uint8_t *out, size_t size)
{
    size_t len;

    xs_pump_lock(pump);
    len = xs_session_text(pump->session, out, size);
    xs_pump_unlock(pump);
    return len;
}

/* Destination: xl has ended. EXIT is sent once both outputs have ended. XS_OK or XS_EARGUMENT. */
int xs_pump_exit(struct xs_pump *pump, int kind, int value)
{
    int rc;

    xs_pump_lock(pump);
    rc = xs_session_exit(pump->session, kind, value);
    xs_pump_stir(pump);
    xs_pump_unlock(pump);
    return rc;
}

/* Take the given channel's input as ended, as if its descriptor had. XS_OK or XS_EARGUMENT. */
int xs_pump_end_input(struct xs_pump *pump, int channel)
{
    if (channel < 0 || channel >= XS_CHANNELS || !xs_session_sends(pump->session, (unsigned)channel))
        return XS_EARGUMENT;
    xs_pump_lock(pump);
    xs_session_input_end(pump->session, (unsigned)channel);
    pump->options.channel_fd[channel] = -1;
    xs_pump_stir(pump);
    xs_pump_unlock(pump);
    return XS_OK;
}

/* A lane over which ABORT can go: one that lives, or the last one that was lost. */
static int can_abort(const struct xs_lane *lane)
{
    return lane->state == LANE_LIVE || (lane->state == LANE_LOST && lane == lane->pump->last && lane->pump->state != PUMP_LIVE);
}

/* Wait until one of the sockets is ready or the time is over. Returns what poll does; on EINTR it waits on: the deadline bounds how long
 * Python's signal handlers wait. */
static int wait_sockets(struct pollfd slot[static XS_LANES_MAX], int64_t deadline)
{
    int n;

    do
        n = poll(slot, XS_LANES_MAX, xs_pump_wait(deadline, xs_pump_now()));
    while (n < 0 && errno == EINTR && xs_pump_now() < deadline);
    return n;
}

/* Push ABORT out over every lane that can, until a time. Returns over how many it went whole; slot has their sockets then. */
static int push_aborts(struct xs_pump *pump, struct pollfd slot[static XS_LANES_MAX], int64_t deadline)
{
    int sent, left;

    do {
        sent = left = 0;
        for (unsigned l = 0; l < XS_LANES_MAX; l++) {
            struct xs_lane *lane = &pump->lane[l];

            slot[l] = (struct pollfd){ .fd = -1, .events = POLLOUT };
            if (!can_abort(lane))
                continue;
            xs_lane_flush(lane);
            if (lane->write_errno == 0 && lane->out_done == lane->out_len)
                sent++;
            else if (lane->write_errno == 0)
                slot[l].fd = lane->socket, left++;
            else
                pump->system_errno = lane->write_errno;
        }
    } while (left > 0 && wait_sockets(slot, deadline) > 0);
    if (left > 0)
        pump->system_errno = ETIMEDOUT;
    return sent;
}

/* Shut the sending sides and read on until the peer has closed: a close with unread bytes would reset the connection under the ABORT. */
static void drain_aborts(struct xs_pump *pump, struct pollfd slot[static XS_LANES_MAX], int64_t deadline)
{
    for (unsigned l = 0; l < XS_LANES_MAX; l++) {
        struct xs_lane *lane = &pump->lane[l];

        slot[l] = (struct pollfd){ .fd = -1, .events = POLLIN };
        if (!can_abort(lane))
            continue;
        (void)shutdown(lane->socket, SHUT_WR);
        if (lane->write_errno == 0 && lane->out_done == lane->out_len)
            slot[l].fd = lane->socket;
    }
    for (int left = 1; left > 0 && wait_sockets(slot, deadline) > 0;) {
        left = 0;
        for (unsigned l = 0; l < XS_LANES_MAX; l++) {
            if (slot[l].fd >= 0 && slot[l].revents != 0 && xs_lane_discard(&pump->lane[l]))
                slot[l].fd = -1;
            left += slot[l].fd >= 0;
        }
    }
}

/* xs_pump_abort, with the lock held. */
static int abort_all(struct xs_pump *pump, int reason, const uint8_t *text, size_t len, int timeout_ms)
{
    int64_t deadline = xs_pump_now() + timeout_ms;
    struct pollfd slot[XS_LANES_MAX];
    int sent;

    if (pump->state == PUMP_IDLE || xs_session_exited(pump->session)
        || xs_session_abort(pump->session, reason, text, len) != XS_OK)
        return XS_EARGUMENT;
    xs_pump_stop(pump);
    for (unsigned l = 0; l < XS_LANES_MAX; l++)
        if (can_abort(&pump->lane[l]) && pump->lane[l].state == LANE_LOST)
            xs_session_attach(pump->session, l);        /* one last frame goes out where none is believed any more */
    sent = push_aborts(pump, slot, deadline);
    drain_aborts(pump, slot, deadline);
    for (unsigned l = 0; l < XS_LANES_MAX; l++) {
        pump->lane[l].quiet = 1;
        xs_lane_lose(&pump->lane[l], XS_LOST_ABORT, 0);
    }
    pump->state = PUMP_DRAINING;
    pump->lost = XS_LOST_ABORT;
    return sent > 0 ? XS_OK : XS_ESYSTEM;
}

/* Send ABORT as the next frame of every lane and push it out, waiting at most timeout_ms. XS_OK, XS_EARGUMENT or XS_ESYSTEM. */
int xs_pump_abort(struct xs_pump *pump, int reason, const uint8_t *text, size_t len, int timeout_ms)
{
    int rc;

    xs_pump_lock(pump);
    rc = abort_all(pump, reason, text, len, timeout_ms);
    xs_pump_unlock(pump);
    return rc;
}
