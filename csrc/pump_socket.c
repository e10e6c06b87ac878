/* A lane's side towards the network: whole frames out of the socket and into it. Called with the lock held, which is given back meanwhile. */
#include "pump_private.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

/* A frame could not be opened or taken (F5). */
static void lose_by_status(struct xs_lane *lane, int status)
{
    switch ((enum xs_status)status) {
    case XS_OK:
        break;
    case XS_EHEADER:
        xs_lane_lose(lane, XS_LOST_HEADER, 0);
        break;
    case XS_ETAG:
        xs_lane_lose(lane, XS_LOST_TAG, 0);
        break;
    case XS_EPROTOCOL:
        xs_lane_lose(lane, XS_LOST_PROTOCOL, 0);
        break;
    case XS_ENOMEM:
        xs_lane_lose(lane, XS_LOST_SYSTEM, ENOMEM);
        break;
    case XS_ECRYPTO:
    case XS_ESYSTEM:
    case XS_EARGUMENT:
        xs_lane_lose(lane, XS_LOST_SYSTEM, EIO);        /* libcrypto has no errno */
        break;
    }
}

/*
 * How long the frame at in_start is in all, once its header is there; only that header's 16 bytes before. 0: a header that F2 refuses.
 */
static size_t frame_len(const struct xs_lane *lane, struct xs_header *header)
{
    if (lane->in_end - lane->in_start < XS_HEADER_LEN)
        return XS_HEADER_LEN;
    if (xs_header_parse(lane->in + lane->in_start, header) != XS_OK)
        return 0;
    return XS_HEADER_LEN + (size_t)header->length + XS_TAG_LEN;
}

/* Wait while another lane's thread opens a frame into the place where this one belongs: an AEAD pass at most. */
static void await_place(struct xs_lane *lane, const struct xs_header *header)
{
    while (xs_lane_reads(lane) && !lane->pump->stop && xs_session_contended(lane->pump->session, lane->number, header))
        (void)pthread_cond_wait(&lane->pump->taken, &lane->pump->lock);
}

/*
 * Make the content again of an elided or compressed frame that has been opened at payload (F14 to F18): header becomes that of the content, which
 * is at *content. Returns XS_OK, XS_EPROTOCOL or XS_ENOMEM.
 */
static int expand(struct xs_lane *lane, struct xs_header *header, const uint8_t *payload, const uint8_t **content)
{
    struct xs_pump *pump = lane->pump;
    const struct xs_header packed = *header;
    uint8_t *place;
    size_t len;
    int rc;

    xs_pump_unlock(pump);
    len = xs_packer_measure(lane->packer, &packed, payload);
    xs_pump_lock(pump);
    if (len == 0)
        return XS_EPROTOCOL;
    header->flags &= XS_AGAIN;
    header->length = (uint32_t)len;
    place = xs_session_place(pump->session, lane->number, header);
    if (place == NULL)
        place = lane->content;
    xs_pump_unlock(pump);
    rc = xs_packer_unpack(lane->packer, &packed, payload, place, len);
    xs_pump_lock(pump);
    *content = place;
    return rc;
}

/*
 * Open the frame at in_start: *header and *content are then those of what it brings. DATA goes straight into its queue where it fits, else
 * over the frame's own place.
 */
static int open_frame(struct xs_lane *lane, const struct xs_header *seen, struct xs_header *header, const uint8_t **content)
{
    struct xs_pump *pump = lane->pump;
    uint8_t *frame = lane->in + lane->in_start;
    uint8_t *place = (seen->flags & ~XS_AGAIN) == 0 ? xs_session_place(pump->session, lane->number, seen) : NULL;
    int rc;

    if (place == NULL)
        place = frame + XS_HEADER_LEN;
    *content = place;
    xs_pump_unlock(pump);
    rc = xs_link_open(lane->link, frame, header, place);
    xs_pump_lock(pump);
    if (rc != XS_OK)
        return rc;
    pump->frames_received++;
    return (header->flags & ~XS_AGAIN) != 0 ? expand(lane, header, place, content) : XS_OK;
}

/* Open and take the frame at in_start. */
static void take_frame(struct xs_lane *lane, const struct xs_header *seen)
{
    struct xs_pump *pump = lane->pump;
    const uint8_t *content;
    struct xs_header header;
    int rc = open_frame(lane, seen, &header, &content);

    if (rc == XS_OK)
        await_place(lane, &header);
    if (!xs_lane_reads(lane))
        return;                 /* another lane has brought EXIT or ABORT meanwhile */
    if (rc == XS_OK)
        rc = xs_session_take(pump->session, lane->number, &header, content);
    (void)pthread_cond_broadcast(&pump->taken);
    lose_by_status(lane, rc);
    if (rc == XS_OK && xs_session_aborted(pump->session))
        pump->state = PUMP_DRAINING;
    if (rc == XS_OK && header.type != XS_KEEPALIVE)
        xs_pump_rouse(pump);
}

/* Open and take the whole frames that have been read, until the session is over. */
void xs_lane_frames(struct xs_lane *lane)
{
    struct xs_header header;
    size_t len;

    while (lane->state == LANE_LIVE && xs_lane_reads(lane)) {
        len = frame_len(lane, &header);
        if (len == 0) {
            xs_lane_lose(lane, XS_LOST_HEADER, 0);
            return;
        }
        if (len == XS_HEADER_LEN || lane->in_end - lane->in_start < len)
            return;
        take_frame(lane, &header);
        lane->in_start += len;
        if (!lane->threaded)
            xs_pump_deliver(lane->pump);
    }
}

/* What a read that failed means. */
static void receive_failed(struct xs_lane *lane, ssize_t n, int error)
{
    if (n == 0) {
        /* F12: FIN is never success. Where sending had failed before, that is the better word for it. */
        xs_lane_lose(lane, lane->write_errno != 0 ? XS_LOST_RESET : XS_LOST_CLOSED, lane->write_errno);
    } else if (error == EINTR) {
        lane->pump->woken = 1;
    } else if (error != EAGAIN) {
        xs_lane_lose(lane, XS_LOST_RESET, error);
    } else if (lane->write_errno != 0) {
        xs_lane_lose(lane, XS_LOST_RESET, lane->write_errno);
    }
}

/* Read once from the socket. Returns 1 if bytes came, 0 if not. */
int xs_lane_receive(struct xs_lane *lane)
{
    struct xs_pump *pump = lane->pump;
    struct xs_header header;
    size_t have = lane->in_end - lane->in_start;
    size_t len = frame_len(lane, &header);
    ssize_t n;
    int error;

    if (len == 0 || len <= have)
        return 0;               /* xs_lane_frames has to look first */
    xs_pump_unlock(pump);
    /* At most READ_AHEAD bytes, or one frame that came in parts, are moved. */
    if (lane->in_start > 0)
        memmove(lane->in, lane->in + lane->in_start, have);
    n = recv(lane->socket, lane->in + have, len - have + READ_AHEAD, 0);
    error = errno;
    xs_pump_lock(pump);
    lane->in_start = 0;
    lane->in_end = have;
    if (n <= 0) {
        receive_failed(lane, n, error);
        return 0;
    }
    lane->in_end += (size_t)n;
    pump->link_received += (uint64_t)n;
    lane->last_received = xs_pump_now();
    return 1;
}

/* Send the rest of the sealed frame. Returns 1 when it is out, 0 when the socket takes no more or has failed. */
static int push(struct xs_lane *lane)
{
    struct xs_pump *pump = lane->pump;
    size_t before = lane->out_done;
    int error = 0;

    if (lane->out_done == lane->out_len)
        return 1;
    xs_lane_sends(lane);
    xs_pump_unlock(pump);
    while (lane->out_done < lane->out_len) {
        ssize_t n = send(lane->socket, lane->out + lane->out_done, lane->out_len - lane->out_done, MSG_NOSIGNAL);

        if (n < 0) {
            error = errno;
            break;
        }
        lane->out_done += (size_t)n;
    }
    xs_pump_lock(pump);
    pump->link_sent += lane->out_done - before;
    lane->sent += lane->out_done - before;
    lane->send_blocked = error == EAGAIN;
    if (error == EINTR)
        pump->woken = 1;
    else if (error != EAGAIN)
        lane->write_errno = error;      /* what had come before is still to be read: xs_lane_receive ends the lane */
    return error == 0;
}

enum { NS = 1000000 };          /* in a ms */

/* Change bwlimit, from the next frame on. */
void xs_pump_limit(struct xs_pump *pump, uint64_t bwlimit)
{
    xs_pump_lock(pump);
    xs_pace_set(&pump->pace, bwlimit, xs_pump_now() * NS);
    xs_pump_stir(pump);
    xs_pump_unlock(pump);
}

/* Hold DATA of channel 0 back until bwlimit lets it go; nothing else waits for it. */
void xs_pump_hold(struct xs_pump *pump)
{
    size_t unsent;
    int64_t now, when;

    pump->held_until = 0;
    if (pump->pace.rate != 0 && (unsent = xs_session_unsent(pump->session, 0)) > 0) {
        now = xs_pump_now() * NS;
        when = xs_pace_when(&pump->pace, unsent, now);
        if (when > now)
            pump->held_until = (when + NS - 1) / NS;
    }
    xs_session_hold(pump->session, pump->held_until != 0);
}

/* Seal a frame that the session has given. Returns 1, or 0 if that failed: the lane is lost. */
static int seal(struct xs_lane *lane, struct xs_header *header, const uint8_t *payload)
{
    struct xs_pump *pump = lane->pump;
    int rc;

    xs_pump_unlock(pump);
    payload = xs_packer_pack(lane->packer, header, payload, lane->out + XS_HEADER_LEN);
    rc = xs_link_seal(lane->link, header, payload, lane->out);
    xs_pump_lock(pump);
    xs_session_sealed(pump->session, lane->number);
    if (rc != XS_OK) {
        lane->write_errno = EIO;
        lose_by_status(lane, rc);
        return 0;
    }
    lane->out_len = XS_HEADER_LEN + (size_t)header->length + XS_TAG_LEN;
    lane->out_done = 0;
    pump->frames_sent++;
    lane->last_sent = xs_pump_now();
    if (header->type == XS_DATA && header->channel == 0)
        xs_pace_sent(&pump->pace, lane->out_len, lane->last_sent * NS);
    return 1;
}

/* Make the next frame and seal it. Returns 1, or 0 when there is none, or it failed. */
static int next_frame(struct xs_lane *lane)
{
    struct xs_pump *pump = lane->pump;
    struct xs_header header;
    const uint8_t *payload;

    xs_pump_hold(pump);
    if (!xs_session_next(pump->session, lane->number, &header, &payload))
        return 0;
    if (header.type == XS_DATA && lane->threaded) {
        xs_pump_stir(pump);             /* the next stripe is for another lane, while this one is busy */
        if (pump->held)
            xs_pump_rouse(pump);
    }
    return seal(lane, &header, payload);
}

/* Seal and send frames while the socket takes them. */
void xs_lane_flush(struct xs_lane *lane)
{
    xs_packer_blocked(lane->packer, 0);
    lane->send_blocked = 0;
    while (lane->write_errno == 0 && push(lane) && next_frame(lane))
        continue;
    xs_packer_blocked(lane->packer, lane->send_blocked || lane->pump->held_until != 0);
}

/* Read and discard what comes. Returns 1 at the peer's FIN or a failure (errno; 0 with FIN), else 0. */
int xs_lane_discard(struct xs_lane *lane)
{
    struct xs_pump *pump = lane->pump;
    ssize_t n;
    int error;

    xs_pump_unlock(pump);
    n = recv(lane->socket, lane->in, IN_SIZE, 0);
    error = n < 0 ? errno : 0;
    xs_pump_lock(pump);
    if (n > 0) {
        pump->link_received += (uint64_t)n;
        return 0;
    }
    if (error == EINTR)
        pump->woken = 1;
    errno = error;
    return error != EINTR && error != EAGAIN;
}
