/*
 * The pump: one poll, in the caller's thread. It returns to Python for every decision that is not a byte's.
 */
#include "pump_private.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

enum { NO_EVENT = INT_MIN };

/* CLOCK_MONOTONIC in ms. */
int64_t xs_pump_now(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* A pump without a link. NULL when there is no memory. */
struct xs_pump *xs_pump_new(const struct xs_pump_options *options)
{
    struct xs_pump *pump = calloc(1, sizeof(*pump));

    if (pump == NULL)
        return NULL;
    if (xs_pump_threads_init(pump) != XS_OK) {
        free(pump);
        return NULL;
    }
    pump->options = *options;
    for (unsigned l = 0; l < XS_LANES_MAX; l++) {
        pump->lane[l].pump = pump;
        pump->lane[l].number = l;
        pump->lane[l].socket = -1;
    }
    pump->lane_socket = -1;
    pump->session = xs_session_new(options->role == XS_SOURCE ? XS_SOURCE : XS_DESTINATION, options->send_window,
                                   options->receive_window);
    if (pump->session == NULL) {
        xs_pump_free(pump);
        return NULL;
    }
    xs_pump_channels_init(pump);
    xs_pump_limit(pump, options->bwlimit);
    return pump;
}

/* A lane is over: end its thread, wipe and free what it had. Its number is free again. */
static void lane_free(struct xs_lane *lane)
{
    xs_lane_join(lane);
    if (lane->pump->own == lane)
        lane->pump->own = NULL;
    xs_link_free(lane->link);
    xs_pages_free(lane->out, OUT_SIZE);
    xs_pages_free(lane->in, IN_SIZE);
    xs_pages_free(lane->content, CONTENT_SIZE);
    xs_packer_free(lane->packer);
    *lane = (struct xs_lane){ .pump = lane->pump, .number = lane->number, .socket = -1, .wake = -1 };
}

/* End the threads; wipe the queues; free the links; close no descriptor. NULL is fine. */
void xs_pump_free(struct xs_pump *pump)
{
    if (pump == NULL)
        return;
    xs_pump_lock(pump);
    xs_pump_stop(pump);
    for (unsigned l = 0; l < XS_LANES_MAX; l++)
        lane_free(&pump->lane[l]);
    xs_pump_unlock(pump);
    xs_session_free(pump->session);
    xs_pump_threads_free(pump);
    xs_wipe(pump, sizeof(*pump));
    free(pump);
}

/* A lane for one more connection; NULL when there can be none now. */
static struct xs_lane *free_lane(struct xs_pump *pump)
{
    if (pump->state == PUMP_DRAINING || pump->state == PUMP_OVER || xs_session_exited(pump->session))
        return NULL;
    if (pump->state == PUMP_LOST)
        for (unsigned l = 0; l < XS_LANES_MAX; l++)
            lane_free(&pump->lane[l]);
    for (unsigned l = 0; l < XS_LANES_MAX; l++)
        if (pump->lane[l].state == LANE_NONE)
            return &pump->lane[l];
    return NULL;
}

/* Make a lane of a connection. Returns XS_OK or XS_ENOMEM. */
static int lane_init(struct xs_lane *lane, struct xs_link *link, int socket_fd)
{
    int on = 1;

    lane->out = xs_pages_new(OUT_SIZE);
    lane->in = xs_pages_new(IN_SIZE);
    lane->content = xs_pages_new(CONTENT_SIZE);         /* no memory before it is written to */
    lane->packer = xs_packer_new(lane->pump->options.elide, lane->pump->options.compress);
    if (lane->out == NULL || lane->in == NULL || lane->content == NULL || lane->packer == NULL) {
        lane_free(lane);
        return XS_ENOMEM;
    }
    lane->link = link;
    lane->socket = socket_fd;
    /* F9: what has been read is sent at once, and xl's GO is 44 bytes. No TCP (in tests): no Nagle either. */
    (void)setsockopt(socket_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    lane->last_sent = lane->last_received = xs_pump_now();
    lane->state = LANE_LIVE;
    return XS_OK;
}

/*
 * A lane is one of several: what its socket takes and has not sent is held to a stripe, so that a slow one takes no more of the stream than it
 * carries (tcp(7), TCP_NOTSENT_LOWAT; what is in flight does not count). By tests/c/bench_pump.c, on loopback, that costs nothing that shows.
 */
static void share(const struct xs_lane *lane)
{
    int bytes = (int)XS_CHUNK;

    (void)setsockopt(lane->socket, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &bytes, sizeof(bytes));
}

/* Start the threads that more than one lane need. Where the system gives none to the first, the caller's thread goes on with it. */
static int start_threads(struct xs_pump *pump, struct xs_lane *lane)
{
    int rc = xs_lane_start(lane);

    share(lane);
    if (pump->own != NULL)
        share(pump->own);
    if (rc == XS_OK && pump->own != NULL && xs_lane_start(pump->own) == XS_OK)
        pump->own = NULL;
    return rc;
}

/* xs_pump_attach, with the lock held. */
static int attach(struct xs_pump *pump, struct xs_link *link, int socket_fd)
{
    struct xs_lane *lane = link == NULL || socket_fd < 0 ? NULL : free_lane(pump);
    int rc;

    if (lane == NULL)
        return XS_EARGUMENT;
    rc = lane_init(lane, link, socket_fd);
    if (rc != XS_OK)
        return rc;
    xs_session_attach(pump->session, lane->number);
    if (pump->state == PUMP_LIVE) {
        rc = start_threads(pump, lane);
        if (rc != XS_OK) {
            lane->link = NULL;
            xs_session_lost(pump->session, lane->number);
            lane_free(lane);
        }
        return rc;
    }
    pump->own = lane;
    pump->lost = XS_LOST_NOT;
    pump->lost_told = 0;
    pump->system_errno = 0;
    pump->state = PUMP_LIVE;
    return XS_OK;
}

/*
 * Give the pump a connection: its keys (the pump owns the link from now on) and its non-blocking socket. Returns XS_OK or an error: the
 * caller keeps the link then.
 */
int xs_pump_attach(struct xs_pump *pump, struct xs_link *link, int socket_fd)
{
    int rc;

    xs_pump_lock(pump);
    rc = attach(pump, link, socket_fd);
    xs_pump_unlock(pump);
    return rc;
}

/* All links are lost, and nothing is told of them. XS_OK, or XS_EARGUMENT where no further link would be taken. */
int xs_pump_drop(struct xs_pump *pump)
{
    int rc = XS_EARGUMENT;

    xs_pump_lock(pump);
    for (unsigned l = 0; l < XS_LANES_MAX; l++)
        xs_lane_lose(&pump->lane[l], XS_LOST_REPLACED, 0);
    if (pump->state == PUMP_LOST) {
        pump->lost_told = 1;
        rc = XS_OK;
    }
    xs_pump_unlock(pump);
    return rc;
}

/* The last event of the session: it is told again by every further run. */
int xs_pump_over(struct xs_pump *pump, int event)
{
    pump->state = PUMP_OVER;
    pump->last_event = event;
    xs_pump_rouse(pump);
    return event;
}

/* A lane that was lost while others live, and is to be told of: it is taken down. Returns 1, or 0 when there is none. */
static int lost_lane(struct xs_pump *pump)
{
    for (unsigned l = 0; l < XS_LANES_MAX; l++) {
        struct xs_lane *lane = &pump->lane[l];

        if (lane->state != LANE_LOST || lane->quiet || (lane == pump->last && pump->state != PUMP_LIVE))
            continue;
        pump->lane_socket = lane->socket;
        pump->lane_lost = lane->lost;
        pump->lane_errno = lane->system_errno;
        lane_free(lane);
        return 1;
    }
    return 0;
}

/* The event that is due, or NO_EVENT. */
static int due_event(struct xs_pump *pump)
{
    struct xs_session *s = pump->session;

    if (pump->state == PUMP_OVER)
        return pump->last_event;
    if (xs_xlphase_next(xs_session_phases(s)) != XS_PHASE_START)
        return XS_EV_PHASE;
    if (lost_lane(pump))
        return XS_EV_LANE_LOST;
    if (pump->options.role == XS_DESTINATION) {
        if (!pump->input_told && xs_session_output_over(s, 0)) {
            pump->input_told = 1;
            pump->options.channel_fd[0] = -1;   /* from here on it is its owner's alone */
            return XS_EV_INPUT_ENDED;
        }
        if (!pump->outputs_told && xs_session_input_ended(s, 1) && xs_session_input_ended(s, 2)) {
            pump->outputs_told = 1;
            return XS_EV_OUTPUTS_ENDED;
        }
    }
    if (pump->state == PUMP_LOST && !pump->lost_told) {
        pump->lost_told = 1;
        return XS_EV_LOST;
    }
    if (xs_pump_undelivered(pump))
        return NO_EVENT;
    if (xs_session_exited(s))
        return xs_pump_over(pump, XS_EV_ENDED);
    if (pump->state == PUMP_DRAINING)
        return xs_pump_over(pump, xs_session_aborted(s) ? XS_EV_ABORTED : XS_EV_LOST);
    return NO_EVENT;
}

/* True if an ACK below a sixteenth of the window may go: nothing else is to be done, and no part of a frame has come. */
static int ack_waits(const struct xs_pump *pump)
{
    if (pump->state != PUMP_LIVE || !xs_session_ack_waits(pump->session))
        return 0;
    for (unsigned l = 0; l < XS_LANES_MAX; l++)
        if (pump->lane[l].in_start != pump->lane[l].in_end)
            return 0;
    return 1;
}

enum { SLOT_SOCKET, SLOT_WAKE_FD, SLOT_WAKE, SLOT_CHANNEL, SLOTS = SLOT_CHANNEL + XS_CHANNELS };

/* What to wait for. */
static void fill_slots(struct xs_pump *pump, struct pollfd slot[static SLOTS])
{
    memset(slot, 0, SLOTS * sizeof(slot[0]));
    slot[SLOT_SOCKET].events = pump->own != NULL ? xs_lane_wants(pump->own) : 0;
    slot[SLOT_SOCKET].fd = slot[SLOT_SOCKET].events != 0 ? pump->own->socket : -1;
    slot[SLOT_WAKE_FD].fd = pump->options.wake_fd;
    slot[SLOT_WAKE].fd = pump->wake;
    slot[SLOT_WAKE_FD].events = slot[SLOT_WAKE].events = POLLIN;
    pump->held = 0;
    for (unsigned c = 0; c < XS_CHANNELS; c++) {
        struct pollfd *channel = &slot[SLOT_CHANNEL + c];

        channel->events = xs_pump_channel_wants(pump, c);
        channel->fd = channel->events != 0 ? pump->options.channel_fd[c] : -1;
        pump->held = pump->held || (channel->events == 0 && xs_session_sends(pump->session, c));
    }
}

/* Wait for what may go on. poll's result. */
static int wait_ready(struct xs_pump *pump, struct pollfd slot[static SLOTS], int64_t deadline)
{
    int acks = ack_waits(pump), n, error;
    int64_t until = pump->own != NULL ? xs_lane_time(pump->own, deadline) : deadline;
    int timeout;

    if (pump->own == NULL && pump->held_until != 0 && pump->held_until < until)
        until = pump->held_until;       /* one of the lanes then has something to send */
    timeout = acks ? 0 : xs_pump_wait(until, xs_pump_now());
    fill_slots(pump, slot);
    pump->asleep = timeout != 0;
    xs_pump_unlock(pump);
    n = poll(slot, SLOTS, timeout);
    error = errno;
    xs_pump_lock(pump);
    pump->asleep = 0;
    if (slot[SLOT_WAKE].revents != 0)
        xs_pump_hush(pump);
    if (n < 0 && error == EINTR) {
        pump->woken = 1;
    } else if (n < 0) {
        pump->system_errno = error;
        pump->failed = XS_ESYSTEM;
    } else if (n == 0 && acks) {
        xs_session_ack_now(pump->session);
        xs_pump_stir(pump);
    }
    return n;
}

/* One turn: send, wait, read, deliver. */
static void turn(struct xs_pump *pump, int64_t deadline)
{
    struct pollfd slot[SLOTS];

    if (pump->own != NULL)
        xs_lane_send(pump->own);
    if (wait_ready(pump, slot, deadline) < 0)
        return;
    if (slot[SLOT_WAKE_FD].revents != 0)
        pump->woken = 1;
    if (pump->own != NULL)
        xs_lane_ready(pump->own, slot[SLOT_SOCKET].revents);
    for (unsigned c = 0; c < XS_CHANNELS; c++)
        if (slot[SLOT_CHANNEL + c].revents != 0 && xs_pump_channel_wants(pump, c) != 0)         /* the link may be lost since */
            xs_pump_channel_ready(pump, c);
    xs_pump_stir(pump);
}

/* xs_pump_run, with the lock held. */
static int run(struct xs_pump *pump, int timeout_ms)
{
    int64_t deadline = timeout_ms < 0 ? INT64_MAX : xs_pump_now() + timeout_ms;
    int event;

    for (int turned = 0;; turned = 1) {
        /* Frames that waited behind the last event come before the socket is read again; nothing is delivered before its event is told. */
        event = due_event(pump);
        if (event == NO_EVENT) {
            xs_pump_deliver(pump);
            if (pump->own != NULL)
                xs_lane_frames(pump->own);
            xs_pump_stir(pump);
            event = due_event(pump);
        }
        if (event != NO_EVENT)
            return event;
        if (turned && deadline != INT64_MAX && xs_pump_now() >= deadline)
            return XS_EV_TIMEOUT;
        turn(pump, deadline);
        if (pump->failed != XS_OK) {
            event = pump->failed;
            pump->failed = XS_OK;
            return event;
        }
        if (pump->woken) {
            pump->woken = 0;
            return XS_EV_WOKEN;
        }
    }
}

/* Run until something happens. timeout_ms < 0: no time-out. Returns an enum xs_event (>= 0) or an enum xs_status (< 0). */
int xs_pump_run(struct xs_pump *pump, int timeout_ms)
{
    int rc;

    xs_pump_lock(pump);
    rc = pump->state == PUMP_IDLE ? XS_EARGUMENT : run(pump, timeout_ms);
    xs_pump_unlock(pump);
    return rc;
}
