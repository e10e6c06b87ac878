/*
 * The pump: one thread, one poll. It returns to Python for every decision that is not a byte's.
 */
#include "pump_private.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <linux/sockios.h>

enum {
    /* ms: how long the destination reads on after EXIT without a sign of the source (F13). The source closes at once when it has EXIT;
     * what is waited for is one round trip and the retransmissions of one lost segment (RFC 6298: 1 s, then 2 s). */
    CLOSING_MS = 5000,
    NO_EVENT = INT_MIN
};

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
    pump->options = *options;
    pump->socket = -1;
    pump->session = xs_session_new(options->role == XS_SOURCE ? XS_SOURCE : XS_DESTINATION, options->send_window,
                                   options->receive_window);
    pump->out = xs_pages_new(OUT_SIZE);
    pump->in = xs_pages_new(IN_SIZE);
    pump->content = xs_pages_new(CONTENT_SIZE);         /* no memory before it is written to */
    pump->packer = xs_packer_new(options->elide, options->compress);
    if (pump->session == NULL || pump->out == NULL || pump->in == NULL || pump->content == NULL || pump->packer == NULL) {
        xs_pump_free(pump);
        return NULL;
    }
    xs_pump_channels_init(pump);
    xs_pump_limit(pump, options->bwlimit);
    return pump;
}

/* Wipe the queues; free the link it holds; close no descriptor. NULL is fine. */
void xs_pump_free(struct xs_pump *pump)
{
    if (pump == NULL)
        return;
    xs_link_free(pump->link);
    xs_session_free(pump->session);
    xs_pages_free(pump->out, OUT_SIZE);
    xs_pages_free(pump->in, IN_SIZE);
    xs_pages_free(pump->content, CONTENT_SIZE);
    xs_packer_free(pump->packer);
    xs_wipe(pump, sizeof(*pump));
    free(pump);
}

/*
 * Give the pump a connection: its keys (the pump owns the link from now on) and its non-blocking socket. Returns XS_OK or XS_EARGUMENT: the
 * caller keeps the link then.
 */
int xs_pump_attach(struct xs_pump *pump, struct xs_link *link, int socket_fd)
{
    int on = 1;

    if (link == NULL || socket_fd < 0 || pump->lost == XS_LOST_ABORT || pump->discarding
        || (pump->state != PUMP_IDLE && (pump->state != PUMP_OVER || pump->last_event != XS_EV_LOST)))
        return XS_EARGUMENT;
    xs_link_free(pump->link);
    pump->link = link;
    pump->socket = socket_fd;
    /* F9: what has been read is sent at once, and xl's GO is 44 bytes. No TCP (in tests): no Nagle either. */
    (void)setsockopt(socket_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    pump->out_len = pump->out_done = 0;         /* the rest of a frame of the lost link */
    pump->in_start = pump->in_end = 0;
    pump->write_errno = 0;
    pump->lost = XS_LOST_NOT;
    pump->system_errno = 0;
    pump->last_sent = pump->last_received = xs_pump_now();
    xs_session_attach(pump->session, 0);
    pump->state = PUMP_LIVE;
    return XS_OK;
}

/* The last event of a link: it is told again by every further run. */
static int over(struct xs_pump *pump, int event)
{
    pump->state = PUMP_OVER;
    pump->last_event = event;
    return event;
}

/* The event that is due, or NO_EVENT. */
static int due_event(struct xs_pump *pump)
{
    struct xs_session *s = pump->session;

    if (pump->state == PUMP_OVER)
        return pump->last_event;
    if (xs_xlphase_next(xs_session_phases(s)) != XS_PHASE_START)
        return XS_EV_PHASE;
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
    if (xs_pump_undelivered(pump))
        return NO_EVENT;
    if (xs_session_exited(s))
        return over(pump, XS_EV_ENDED);
    if (pump->state == PUMP_DRAINING)
        return over(pump, xs_session_aborted(s) ? XS_EV_ABORTED : XS_EV_LOST);
    return NO_EVENT;
}

/* True while the socket is to be read: not after EXIT, and not while frames that have been read wait behind an event. */
static int wants_socket(const struct xs_pump *pump)
{
    return (pump->state == PUMP_LIVE && !xs_session_exited(pump->session)) || pump->state == PUMP_CLOSING;
}

/* Bytes that the kernel still holds of ours; 0 where it cannot say. */
static int unsent_bytes(const struct xs_pump *pump)
{
    int unsent = 0;

    return ioctl(pump->socket, SIOCOUTQ, &unsent) == 0 ? unsent : 0;
}

/* EXIT is out: shut the sending side and wait for the source's (F13). */
static void start_closing(struct xs_pump *pump)
{
    if (pump->state != PUMP_LIVE || !xs_session_exit_sent(pump->session) || pump->out_done < pump->out_len)
        return;
    (void)shutdown(pump->socket, SHUT_WR);
    pump->state = PUMP_CLOSING;
    pump->closing_until = xs_pump_now() + CLOSING_MS;
    pump->closing_unsent = unsent_bytes(pump);
}

/* After EXIT: is the source gone, or does it at least still take what the kernel holds for it? Ends the session when neither. */
static void watch_closing(struct xs_pump *pump, int readable, int64_t now)
{
    int unsent;

    if (readable && xs_pump_discard(pump)) {
        if (errno == 0)
            (void)over(pump, XS_EV_ENDED);
        else
            xs_pump_lose(pump, XS_LOST_RESET, errno);   /* EXIT may not have come through */
        return;
    }
    if (now < pump->closing_until)
        return;
    /* On a slow line the socket's buffer holds seconds of data before EXIT: the source is there as long as that shrinks. */
    unsent = unsent_bytes(pump);
    if (unsent > 0 && unsent < pump->closing_unsent) {
        pump->closing_unsent = unsent;
        pump->closing_until = now + CLOSING_MS;
        return;
    }
    (void)over(pump, XS_EV_ENDED);
}

/* The earlier of two times, where 0 ms of an option mean never. */
static int64_t sooner(int64_t until, int64_t since, uint32_t ms)
{
    int64_t then = since + (int64_t)ms;

    return ms != 0 && then < until ? then : until;
}

/* How long poll may wait, in ms: until the caller's deadline, a KEEPALIVE, silence, DATA's pace, or the end of closing. */
static int poll_time(const struct xs_pump *pump, int64_t now, int64_t deadline)
{
    int64_t until = deadline, left;

    if (pump->state == PUMP_LIVE && !xs_session_exited(pump->session)) {
        if (pump->write_errno != 0)
            return 0;           /* nothing to wait for but what has come already */
        if (!pump->send_blocked)        /* what is in the socket's way is the frame that says we are alive */
            until = sooner(until, pump->last_sent, pump->options.keepalive_ms);
        until = sooner(until, pump->last_received, pump->options.silence_ms);
        if (pump->held_until != 0 && !pump->send_blocked && pump->held_until < until)
            until = pump->held_until;
    } else if (pump->state == PUMP_CLOSING && pump->closing_until < until) {
        until = pump->closing_until;
    }
    left = until == INT64_MAX ? -1 : until - now;
    if (left < 0)
        return until == INT64_MAX ? -1 : 0;
    return left > INT_MAX ? INT_MAX : (int)left;
}

/* KEEPALIVE and silence (F10). heard: bytes came in this turn, so that a pause of ours is not taken for the peer's. */
static void watch_time(struct xs_pump *pump, int heard)
{
    const struct xs_pump_options *o = &pump->options;
    int64_t now = xs_pump_now();

    if (pump->state != PUMP_LIVE || xs_session_exited(pump->session))
        return;
    if (o->silence_ms != 0 && !heard && now - pump->last_received >= o->silence_ms)
        xs_pump_lose(pump, XS_LOST_SILENCE, 0);
    else if (o->keepalive_ms != 0 && !pump->send_blocked && now - pump->last_sent >= o->keepalive_ms)
        xs_session_keepalive(pump->session);
}

/* Wait for what may go on. poll's result; slots: 0 socket, 1 wake_fd, 2 to 4 the channels. */
static int wait_ready(struct xs_pump *pump, struct pollfd slot[static 2 + XS_CHANNELS], int64_t deadline, int *ack_waits)
{
    int64_t now = xs_pump_now();
    int n;

    memset(slot, 0, (2 + XS_CHANNELS) * sizeof(slot[0]));
    slot[0].fd = wants_socket(pump) ? pump->socket : -1;
    slot[0].events = (short)(POLLIN | (pump->send_blocked && pump->state == PUMP_LIVE ? POLLOUT : 0));
    slot[1].fd = pump->options.wake_fd;
    slot[1].events = POLLIN;
    for (unsigned c = 0; c < XS_CHANNELS; c++) {
        slot[2 + c].events = xs_pump_channel_wants(pump, c);
        slot[2 + c].fd = slot[2 + c].events != 0 ? pump->options.channel_fd[c] : -1;
    }
    /* An ACK below a sixteenth of the window waits until nothing else is to be done, and no part of a frame has come. */
    *ack_waits = pump->state == PUMP_LIVE && pump->in_start == pump->in_end && xs_session_ack_waits(pump->session);
    n = poll(slot, 2 + XS_CHANNELS, *ack_waits ? 0 : poll_time(pump, now, deadline));
    if (n < 0 && errno == EINTR)
        pump->woken = 1;
    else if (n < 0) {
        pump->system_errno = errno;
        pump->failed = XS_ESYSTEM;
    }
    return n;
}

/* One turn: send, wait, read, deliver. */
static void turn(struct xs_pump *pump, int64_t deadline)
{
    struct pollfd slot[2 + XS_CHANNELS];
    int n, ack_waits, heard = 0;

    if (pump->state == PUMP_LIVE && !xs_session_exited(pump->session)) {
        xs_pump_flush(pump);
        start_closing(pump);
    }
    n = wait_ready(pump, slot, deadline, &ack_waits);
    if (n < 0)
        return;
    if (slot[1].revents != 0)
        pump->woken = 1;
    if (pump->state == PUMP_CLOSING)
        watch_closing(pump, slot[0].revents != 0, xs_pump_now());
    else if (wants_socket(pump) && ((slot[0].revents & ~POLLOUT) != 0 || pump->write_errno != 0))
        heard = xs_pump_receive(pump);
    for (unsigned c = 0; c < XS_CHANNELS; c++)
        if (slot[2 + c].revents != 0 && xs_pump_channel_wants(pump, c) != 0)    /* the link may be lost since */
            xs_pump_channel_ready(pump, c);
    if (n == 0 && ack_waits)
        xs_session_ack_now(pump->session);
    watch_time(pump, heard);
}

/* Run until something happens. timeout_ms < 0: no time-out. Returns an enum xs_event (>= 0) or an enum xs_status (< 0). */
int xs_pump_run(struct xs_pump *pump, int timeout_ms)
{
    int64_t deadline = timeout_ms < 0 ? INT64_MAX : xs_pump_now() + timeout_ms;
    int event;

    if (pump->state == PUMP_IDLE)
        return XS_EARGUMENT;
    for (int turned = 0;; turned = 1) {
        /* Frames that waited behind the last event come before the socket is read again; nothing is delivered before its event is told. */
        event = due_event(pump);
        if (event == NO_EVENT) {
            xs_pump_deliver(pump);
            xs_pump_frames(pump);
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

/* A snapshot of the statistics. */
void xs_pump_stats(const struct xs_pump *pump, struct xs_stats *out)
{
    memset(out, 0, sizeof(*out));
    xs_session_stats(pump->session, out);
    out->link_sent = pump->link_sent;
    out->link_received = pump->link_received;
    out->frames_sent = pump->frames_sent;
    out->frames_received = pump->frames_received;
    out->lost = pump->lost;
    out->system_errno = pump->system_errno;
}

/* The domain's configuration: up to size bytes into out; returns its whole length. */
size_t xs_pump_head(const struct xs_pump *pump, uint8_t *out, size_t size)
{
    size_t len;
    const uint8_t *head = xs_xlphase_head(xs_session_phases(pump->session), &len);

    if (len > 0 && size > 0)
        memcpy(out, head, xs_min(len, size));
    return len;
}

/* The text of the ABORT received: up to size bytes; returns its length. */
size_t xs_pump_text(const struct xs_pump *pump, uint8_t *out, size_t size)
{
    return xs_session_text(pump->session, out, size);
}

/* Destination: xl has ended. EXIT is sent once both outputs have ended. XS_OK or XS_EARGUMENT. */
int xs_pump_exit(struct xs_pump *pump, int kind, int value)
{
    return xs_session_exit(pump->session, kind, value);
}

/* Take the given channel's input as ended, as if its descriptor had. XS_OK or XS_EARGUMENT. */
int xs_pump_end_input(struct xs_pump *pump, int channel)
{
    if (channel < 0 || channel >= XS_CHANNELS || !xs_session_sends(pump->session, (unsigned)channel))
        return XS_EARGUMENT;
    xs_session_input_end(pump->session, (unsigned)channel);
    pump->options.channel_fd[channel] = -1;
    return XS_OK;
}

/* Wait until the socket is ready or the time is over. Returns what poll does. */
static int wait_socket(const struct xs_pump *pump, short events, int64_t deadline)
{
    struct pollfd slot = { .fd = pump->socket, .events = events };
    int64_t left;
    int n;

    do {        /* on EINTR as well: the deadline bounds how long Python's signal handlers wait */
        left = deadline - xs_pump_now();
        n = left <= 0 ? 0 : poll(&slot, 1, left > INT_MAX ? INT_MAX : (int)left);
    } while (n < 0 && errno == EINTR);
    return n;
}

/* Send ABORT as the next frame and push it out, waiting at most timeout_ms. XS_OK, XS_EARGUMENT or XS_ESYSTEM. */
int xs_pump_abort(struct xs_pump *pump, int reason, const uint8_t *text, size_t len, int timeout_ms)
{
    int64_t deadline = xs_pump_now() + timeout_ms;
    int sent;

    if (pump->state == PUMP_IDLE || xs_session_exited(pump->session)
        || xs_session_abort(pump->session, reason, text, len) != XS_OK)
        return XS_EARGUMENT;
    xs_pump_flush(pump);
    while (pump->write_errno == 0 && pump->out_done < pump->out_len && wait_socket(pump, POLLOUT, deadline) > 0)
        xs_pump_flush(pump);
    sent = pump->write_errno == 0 && pump->out_done == pump->out_len;
    (void)shutdown(pump->socket, SHUT_WR);
    while (sent && wait_socket(pump, POLLIN, deadline) > 0 && !xs_pump_discard(pump))
        continue;
    xs_pump_lose(pump, XS_LOST_ABORT, 0);
    if (!sent)
        pump->system_errno = pump->write_errno != 0 ? pump->write_errno : ETIMEDOUT;
    return sent ? XS_OK : XS_ESYSTEM;
}
