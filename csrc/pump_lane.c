/* A lane's life: what it waits for, its signs of life (F10), its loss (J6) and its end (F13). */
#include "pump_private.h"

#include <errno.h>
#include <poll.h>

#include <sys/ioctl.h>
#include <sys/socket.h>
#include <linux/sockios.h>

enum {
    /* ms: how long the destination reads on after EXIT without a sign of the source (F13). The source closes at once when it has EXIT;
     * what is waited for is one round trip and the retransmissions of one lost segment (RFC 6298: 1 s, then 2 s). */
    CLOSING_MS = 5000
};

/* True while a lane sends and is sent frames. */
static int live(const struct xs_lane *lane)
{
    return lane->state == LANE_LIVE && lane->pump->state == PUMP_LIVE && !xs_session_exited(lane->pump->session);
}

/* True while a lane is to be read: until EXIT or ABORT has come, or it is lost. */
int xs_lane_reads(const struct xs_lane *lane)
{
    return live(lane) || (lane->state == LANE_CLOSING && lane->pump->state == PUMP_LIVE);
}

/* True if EXIT has been given out: the source then closes every lane, in whatever order. */
static int exit_given(const struct xs_pump *pump)
{
    for (unsigned l = 0; l < XS_LANES_MAX; l++)
        if (xs_session_exit_sent(pump->session, l))
            return 1;
    return 0;
}

/* The lane is lost; the first reason stays. With the last one the link is. */
void xs_lane_lose(struct xs_lane *lane, enum xs_lost why, int error)
{
    struct xs_pump *pump = lane->pump;

    if ((lane->state != LANE_LIVE && lane->state != LANE_CLOSING) || pump->state != PUMP_LIVE)
        return;
    lane->quiet = lane->quiet || (lane->state == LANE_LIVE && exit_given(pump));
    lane->state = LANE_LOST;
    lane->lost = (int)why;
    lane->system_errno = error;
    pump->last = lane;
    xs_session_lost(pump->session, lane->number);
    (void)pthread_cond_broadcast(&pump->taken);
    if (xs_session_lanes(pump->session) > 0) {
        (void)shutdown(lane->socket, SHUT_RDWR);        /* so that the peer hands over what it had given it */
        xs_pump_stir(pump);
    } else {
        pump->state = PUMP_LOST;
        pump->lost = (int)why;
        if (error != 0)
            pump->system_errno = error;
    }
    xs_pump_rouse(pump);
}

/* Bytes that the kernel still holds of ours; 0 where it cannot say. */
int xs_lane_unsent(const struct xs_lane *lane)
{
    int unsent = 0;

    return ioctl(lane->socket, SIOCOUTQ, &unsent) == 0 ? unsent : 0;
}

/* EXIT is out: shut the sending side and wait for the source's (F13). */
static void start_closing(struct xs_lane *lane)
{
    if (!live(lane) || !xs_session_exit_sent(lane->pump->session, lane->number) || lane->out_done < lane->out_len)
        return;
    (void)shutdown(lane->socket, SHUT_WR);
    lane->state = LANE_CLOSING;
    lane->closing_until = xs_pump_now() + CLOSING_MS;
    lane->closing_unsent = xs_lane_unsent(lane);
}

/* Send what there is to send; after EXIT shut the sending side. */
void xs_lane_send(struct xs_lane *lane)
{
    if (!live(lane))
        return;
    xs_lane_flush(lane);
    start_closing(lane);
}

/* After EXIT: is the source gone, or does it at least still take what the kernel holds for it? Ends the session when neither. */
static void watch_closing(struct xs_lane *lane, int readable)
{
    int64_t now = xs_pump_now();
    int unsent;

    if (readable && xs_lane_discard(lane)) {
        if (errno == 0)
            (void)xs_pump_over(lane->pump, XS_EV_ENDED);
        else
            xs_lane_lose(lane, XS_LOST_RESET, errno);   /* EXIT may not have come through */
        return;
    }
    if (now < lane->closing_until)
        return;
    /* On a slow line the socket's buffer holds seconds of data before EXIT: the source is there as long as that shrinks. */
    unsent = xs_lane_unsent(lane);
    if (unsent > 0 && unsent < lane->closing_unsent) {
        lane->closing_unsent = unsent;
        lane->closing_until = now + CLOSING_MS;
        return;
    }
    (void)xs_pump_over(lane->pump, XS_EV_ENDED);
}

/* KEEPALIVE and silence (F10). heard: bytes came in this turn, so that a pause of ours is not taken for the peer's. */
static void watch_time(struct xs_lane *lane, int heard)
{
    const struct xs_pump_options *o = &lane->pump->options;
    int64_t now = xs_pump_now();

    if (!live(lane))
        return;
    if (o->silence_ms != 0 && !heard && now - lane->last_received >= o->silence_ms)
        xs_lane_lose(lane, XS_LOST_SILENCE, 0);
    else if (o->keepalive_ms != 0 && !lane->send_blocked && now - lane->last_sent >= o->keepalive_ms) {
        xs_session_keepalive(lane->pump->session, lane->number);
        lane->last_sent = now;  /* nothing goes out behind another lane's EXIT: ask again in time, and not at once */
    }
    if (live(lane))
        xs_lane_watch_stall(lane);
}

/* The events that its socket waits for. */
short xs_lane_wants(const struct xs_lane *lane)
{
    if (!xs_lane_reads(lane))
        return 0;
    return (short)(POLLIN | (lane->send_blocked && live(lane) ? POLLOUT : 0));
}

/* The earlier of two times, where 0 ms of an option mean never. */
static int64_t sooner(int64_t until, int64_t since, uint32_t ms)
{
    int64_t then = since + (int64_t)ms;

    return ms != 0 && then < until ? then : until;
}

/* The earlier of until and the time (ms) at which the lane has something to do by itself. */
int64_t xs_lane_time(const struct xs_lane *lane, int64_t until)
{
    const struct xs_pump_options *o = &lane->pump->options;

    if (lane->state == LANE_CLOSING)
        return lane->closing_until < until ? lane->closing_until : until;
    if (!live(lane))
        return until;
    if (lane->write_errno != 0)
        return INT64_MIN;       /* nothing to wait for but what has come already */
    if (!lane->send_blocked)    /* what is in the socket's way is the frame that says we are alive */
        until = sooner(until, lane->last_sent, o->keepalive_ms);
    if (lane->pump->held_until != 0 && !lane->send_blocked && lane->pump->held_until < until)
        until = lane->pump->held_until;
    return sooner(xs_lane_stall_time(lane, until), lane->last_received, o->silence_ms);
}

/* What poll is to wait until a time: ms, -1 for ever. */
int xs_pump_wait(int64_t until, int64_t now)
{
    if (until == INT64_MAX)
        return -1;
    if (until <= now)
        return 0;
    return until - now > INT_MAX ? INT_MAX : (int)(until - now);
}

/* After poll: read if there is something, and look at the time. */
void xs_lane_ready(struct xs_lane *lane, short revents)
{
    int heard = 0;

    if (lane->state == LANE_CLOSING) {
        watch_closing(lane, revents != 0);
        return;
    }
    if (xs_lane_reads(lane) && ((revents & ~POLLOUT) != 0 || lane->write_errno != 0))
        heard = xs_lane_receive(lane);
    watch_time(lane, heard);
}
