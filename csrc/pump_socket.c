/* The pump's side towards the network: whole frames out of the socket and into it. */
#include "pump_private.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

/* The link is lost; the first reason stays. */
void xs_pump_lose(struct xs_pump *pump, enum xs_lost why, int error)
{
    if (pump->state != PUMP_LIVE && pump->state != PUMP_CLOSING)
        return;
    pump->state = PUMP_DRAINING;
    pump->lost = (int)why;
    if (error != 0)
        pump->system_errno = error;
}

/* A frame could not be opened or taken (F5). */
static void lose_by_status(struct xs_pump *pump, int status)
{
    switch ((enum xs_status)status) {
    case XS_OK:
        break;
    case XS_EHEADER:
        xs_pump_lose(pump, XS_LOST_HEADER, 0);
        break;
    case XS_ETAG:
        xs_pump_lose(pump, XS_LOST_TAG, 0);
        break;
    case XS_EPROTOCOL:
        xs_pump_lose(pump, XS_LOST_PROTOCOL, 0);
        break;
    case XS_ENOMEM:
        xs_pump_lose(pump, XS_LOST_SYSTEM, ENOMEM);
        break;
    case XS_ECRYPTO:
    case XS_ESYSTEM:
    case XS_EARGUMENT:
        xs_pump_lose(pump, XS_LOST_SYSTEM, EIO);        /* libcrypto has no errno */
        break;
    }
}

/*
 * How long the frame at in_start is in all, once its header is there; only that header's 16 bytes before. 0: a header that F2 refuses.
 */
static size_t frame_len(const struct xs_pump *pump, struct xs_header *header)
{
    if (pump->in_end - pump->in_start < XS_HEADER_LEN)
        return XS_HEADER_LEN;
    if (xs_header_parse(pump->in + pump->in_start, header) != XS_OK)
        return 0;
    return XS_HEADER_LEN + (size_t)header->length + XS_TAG_LEN;
}

/*
 * Make the content again of an elided or compressed frame that has been opened at payload (F14 to F18): header becomes that of the content, which
 * is at *content. Returns XS_OK, XS_EPROTOCOL or XS_ENOMEM.
 */
static int expand(struct xs_pump *pump, struct xs_header *header, const uint8_t *payload, const uint8_t **content)
{
    const struct xs_header packed = *header;
    size_t len = xs_packer_measure(pump->packer, &packed, payload);
    uint8_t *place;

    if (len == 0)
        return XS_EPROTOCOL;
    header->flags = 0;
    header->length = (uint32_t)len;
    place = xs_session_place(pump->session, header);
    if (place == NULL)
        place = pump->content;
    *content = place;
    return xs_packer_unpack(pump->packer, &packed, payload, place, len);
}

/* Open and take the frame at in_start. DATA goes straight into its queue where it fits, else over the frame's own place. */
static void take_frame(struct xs_pump *pump, const struct xs_header *seen)
{
    uint8_t *frame = pump->in + pump->in_start;
    uint8_t *place = seen->flags == 0 ? xs_session_place(pump->session, seen) : NULL;
    const uint8_t *content;
    struct xs_header header;
    int rc;

    if (place == NULL)
        place = frame + XS_HEADER_LEN;
    content = place;
    rc = xs_link_open(pump->link, frame, &header, place);
    if (rc == XS_OK) {
        pump->frames_received++;
        if (header.flags != 0)
            rc = expand(pump, &header, place, &content);
    }
    if (rc == XS_OK)
        rc = xs_session_take(pump->session, 0, &header, content);
    lose_by_status(pump, rc);
    if (rc == XS_OK && xs_session_aborted(pump->session))
        pump->state = PUMP_DRAINING;
}

/* Open and take the whole frames that have been read, until one raises an event. */
void xs_pump_frames(struct xs_pump *pump)
{
    struct xs_header header;
    size_t len;

    while (pump->state == PUMP_LIVE && !xs_session_exited(pump->session)) {
        len = frame_len(pump, &header);
        if (len == 0) {
            xs_pump_lose(pump, XS_LOST_HEADER, 0);
            return;
        }
        if (len == XS_HEADER_LEN || pump->in_end - pump->in_start < len)
            return;
        take_frame(pump, &header);
        pump->in_start += len;
        if (xs_xlphase_pending(xs_session_phases(pump->session)))
            return;     /* Python hears of a phase before its bytes are delivered */
        xs_pump_deliver(pump);
    }
}

/* Read once from the socket. Returns 1 if bytes came, 0 if not. */
int xs_pump_receive(struct xs_pump *pump)
{
    struct xs_header header;
    size_t have = pump->in_end - pump->in_start;
    size_t len = frame_len(pump, &header);
    ssize_t n;

    if (len == 0 || len <= have)
        return 0;               /* xs_pump_frames has to look first */
    /* At most READ_AHEAD bytes, or one frame that came in parts, are moved. */
    if (pump->in_start > 0)
        memmove(pump->in, pump->in + pump->in_start, have);
    pump->in_start = 0;
    pump->in_end = have;
    n = recv(pump->socket, pump->in + have, len - have + READ_AHEAD, 0);
    if (n > 0) {
        pump->in_end += (size_t)n;
        pump->link_received += (uint64_t)n;
        pump->last_received = xs_pump_now();
        return 1;
    }
    if (n == 0) {
        /* F12: FIN is never success. Where sending had failed before, that is the better word for it. */
        xs_pump_lose(pump, pump->write_errno != 0 ? XS_LOST_RESET : XS_LOST_CLOSED, pump->write_errno);
    } else if (errno == EINTR) {
        pump->woken = 1;
    } else if (errno != EAGAIN) {
        xs_pump_lose(pump, XS_LOST_RESET, errno);
    } else if (pump->write_errno != 0) {
        xs_pump_lose(pump, XS_LOST_RESET, pump->write_errno);
    }
    return 0;
}

/* Send the rest of the sealed frame. Returns 1 when it is out, 0 when the socket takes no more or has failed. */
static int push(struct xs_pump *pump)
{
    while (pump->out_done < pump->out_len) {
        ssize_t n = send(pump->socket, pump->out + pump->out_done, pump->out_len - pump->out_done, MSG_NOSIGNAL);

        if (n >= 0) {
            pump->out_done += (size_t)n;
            pump->link_sent += (uint64_t)n;
            continue;
        }
        pump->send_blocked = errno == EAGAIN;
        if (errno == EINTR)
            pump->woken = 1;
        else if (errno != EAGAIN)
            pump->write_errno = errno;  /* what had come before is still to be read: xs_pump_receive ends the link */
        return 0;
    }
    return 1;
}

enum { NS = 1000000 };          /* in a ms */

/* Change bwlimit, from the next frame on. */
void xs_pump_limit(struct xs_pump *pump, uint64_t bwlimit)
{
    xs_pace_set(&pump->pace, bwlimit, xs_pump_now() * NS);
}

/* Hold DATA of channel 0 back until bwlimit lets it go; nothing else waits for it. */
static void hold_data(struct xs_pump *pump)
{
    size_t unsent = xs_session_unsent(pump->session, 0);
    int64_t now, when;

    pump->held_until = 0;
    if (pump->pace.rate != 0 && unsent > 0) {
        now = xs_pump_now() * NS;
        when = xs_pace_when(&pump->pace, unsent, now);
        if (when > now)
            pump->held_until = (when + NS - 1) / NS;
    }
    xs_session_hold(pump->session, pump->held_until != 0);
}

/* Make the next frame and seal it. Returns 1, or 0 when there is none, or it failed. */
static int next_frame(struct xs_pump *pump)
{
    struct xs_header header;
    const uint8_t *payload;
    int rc;

    hold_data(pump);
    if (!xs_session_next(pump->session, 0, &header, &payload))
        return 0;
    payload = xs_packer_pack(pump->packer, &header, payload, pump->out + XS_HEADER_LEN);
    rc = xs_link_seal(pump->link, &header, payload, pump->out);
    if (rc != XS_OK) {
        pump->write_errno = EIO;
        lose_by_status(pump, rc);
        return 0;
    }
    pump->out_len = XS_HEADER_LEN + (size_t)header.length + XS_TAG_LEN;
    pump->out_done = 0;
    pump->frames_sent++;
    pump->last_sent = xs_pump_now();
    if (header.type == XS_DATA && header.channel == 0)
        xs_pace_sent(&pump->pace, pump->out_len, pump->last_sent * NS);
    return 1;
}

/* Seal and send frames while the socket takes them. */
void xs_pump_flush(struct xs_pump *pump)
{
    xs_packer_blocked(pump->packer, 0);
    pump->send_blocked = 0;
    while (pump->write_errno == 0 && push(pump) && next_frame(pump))
        continue;
    xs_packer_blocked(pump->packer, pump->send_blocked || pump->held_until != 0);
}

/* Read and discard what comes. Returns 1 at the peer's FIN or a failure (errno; 0 with FIN), else 0. */
int xs_pump_discard(struct xs_pump *pump)
{
    ssize_t n = recv(pump->socket, pump->in, IN_SIZE, 0);

    if (n > 0) {
        pump->link_received += (uint64_t)n;
        return 0;
    }
    if (n == 0) {
        errno = 0;
        return 1;
    }
    if (errno == EINTR)
        pump->woken = 1;
    return errno != EINTR && errno != EAGAIN;
}
