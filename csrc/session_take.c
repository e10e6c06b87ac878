/* The receiving half of the session: what each frame may be (F5 to F12, J5 to J7), and the delivery of what it brought. */
#include "session_private.h"

#include <string.h>

/* True if the peer sends the channel. */
static int peer_sends(const struct xs_session *s, unsigned channel)
{
    return channel < XS_CHANNELS && s->in[channel].fifo != NULL;
}

/* The slot of a stripe's count. */
static size_t *fill_of(const struct incoming *i, uint64_t offset)
{
    return &i->fill[offset / XS_CHUNK % i->slots];
}

/* True if a channel comes in stripes, in any order (J5). */
static int in_stripes(const struct xs_session *s, unsigned channel)
{
    return s->striped && channel == 0;
}

/* Up to where what DATA at that offset belongs to has come without a gap: its stripe, or the channel. */
static uint64_t come(const struct xs_session *s, unsigned channel, uint64_t offset)
{
    const struct incoming *i = &s->in[channel];
    uint64_t tail = xs_fifo_tail(i->fifo), start = offset - offset % XS_CHUNK;

    if (!in_stripes(s, channel) || start <= tail)
        return tail < start + XS_CHUNK || !in_stripes(s, channel) ? tail : start + XS_CHUNK;
    return start + *fill_of(i, offset);
}

/* May a DATA frame come now? XS_OK or XS_EPROTOCOL. */
static int check_data(const struct xs_session *s, unsigned lane, const struct xs_header *header)
{
    const struct incoming *i = &s->in[header->channel];
    int again = header->flags == XS_AGAIN;
    uint64_t end, known;

    if (!peer_sends(s, header->channel) || header->length == 0 || (again && s->attached < 2))
        return XS_EPROTOCOL;
    if (header->offset > xs_fifo_base(i->fifo) + i->window)
        return XS_EPROTOCOL;                    /* F8; and the sum below does not overflow */
    end = header->offset + header->length;
    if (end > xs_fifo_base(i->fifo) + i->window || (i->end_seen && end > i->end))
        return XS_EPROTOCOL;                    /* F8, F11, J7 */
    if (in_stripes(s, header->channel) && header->offset / XS_CHUNK != (end - 1) / XS_CHUNK)
        return XS_EPROTOCOL;                    /* J5 */
    known = come(s, header->channel, header->offset);
    if (header->offset > known)
        return XS_EPROTOCOL;                    /* F6: a gap */
    if (again)
        return XS_OK;
    if ((s->lane[lane].ends & 1U << header->channel) != 0)
        return XS_EPROTOCOL;                    /* F11 */
    /* F6: twice. What a lost lane still held may have been overtaken by what was sent again (J6). */
    return header->offset == known || (i->again & ~(1U << lane)) != 0 ? XS_OK : XS_EPROTOCOL;
}

/* True while another lane opens a frame into the place where this one belongs: wait until that has been taken, then ask and take. */
int xs_session_contended(const struct xs_session *s, unsigned lane, const struct xs_header *header)
{
    for (unsigned l = 0; l < XS_LANES_MAX; l++) {
        const struct lane *other = &s->lane[l];

        if (l != lane && other->placing && header->type == XS_DATA && other->placing_channel == header->channel
            && (!in_stripes(s, header->channel) || other->placing_offset / XS_CHUNK == header->offset / XS_CHUNK))
            return 1;
    }
    return 0;
}

/*
 * Where the payload of a DATA frame that is about to be opened may go straight: NULL if it needs another place and a copy. The header is
 * not authenticated yet: nothing is counted here, what has come is out of its reach, and what is opened there is released by
 * xs_session_take only.
 */
uint8_t *xs_session_place(struct xs_session *s, unsigned lane, const struct xs_header *header)
{
    struct incoming *i = &s->in[header->channel];
    struct lane *l = &s->lane[lane];
    uint8_t *place;
    size_t space;

    if (header->type != XS_DATA || check_data(s, lane, header) != XS_OK || i->broken
        || header->offset != come(s, header->channel, header->offset) || xs_session_contended(s, lane, header))
        return NULL;
    place = xs_fifo_place(i->fifo, header->offset, &space);
    if (space < header->length)
        return NULL;
    l->placing = 1;
    l->placing_channel = header->channel;
    l->placing_offset = header->offset;
    return place;
}

/* len bytes at the tail have come; bytes NULL: they were discarded before. */
static void forward(struct xs_session *s, unsigned channel, const uint8_t *bytes, size_t len)
{
    struct incoming *i = &s->in[channel];

    if (bytes != NULL)
        xs_xlphase_feed(s->phases, channel, bytes, len);
    if (i->broken)
        xs_fifo_skip(i->fifo, len);
    else
        xs_fifo_commit(i->fifo, len);
}

/* len bytes, in one chunk, have come at an offset: count them, and take what lies ready behind them. */
static void arrived(struct xs_session *s, unsigned channel, uint64_t offset, const uint8_t *bytes, size_t len)
{
    struct incoming *i = &s->in[channel];
    uint64_t tail = xs_fifo_tail(i->fifo);
    size_t ready, space;

    if (offset != tail) {
        *fill_of(i, offset) += len;
        return;
    }
    forward(s, channel, bytes, len);
    while ((tail = xs_fifo_tail(i->fifo)) % XS_CHUNK == 0 && (ready = *fill_of(i, tail)) > 0) {
        *fill_of(i, tail) = 0;
        forward(s, channel, i->broken ? NULL : xs_fifo_place(i->fifo, tail, &space), ready);
    }
}

/* Put what is new of a DATA frame where it belongs, but for what lies there already. Returns XS_OK or XS_ENOMEM. */
static int store(struct xs_session *s, unsigned channel, uint64_t offset, const uint8_t *bytes, size_t len)
{
    struct incoming *i = &s->in[channel];

    while (len > 0) {
        size_t space = XS_CHUNK - (size_t)(offset % XS_CHUNK), part = xs_min(space, len);

        if (!i->broken) {
            uint8_t *place = xs_fifo_place(i->fifo, offset, &space);

            if (place == NULL)
                return XS_ENOMEM;
            part = xs_min(space, len);
            if (place != bytes)
                memcpy(place, bytes, part);
        }
        arrived(s, channel, offset, bytes, part);
        offset += part;
        bytes += part;
        len -= part;
    }
    return XS_OK;
}

/* DATA: keep what is new of it. */
static int take_data(struct xs_session *s, unsigned lane, const struct xs_header *header, const uint8_t *payload)
{
    struct incoming *i = &s->in[header->channel];
    uint64_t end, known;

    if (check_data(s, lane, header) != XS_OK)
        return XS_EPROTOCOL;
    if (header->flags == XS_AGAIN)
        i->again |= 1U << lane;
    end = header->offset + header->length;
    known = come(s, header->channel, header->offset);
    if (end <= known)
        return XS_OK;
    if (i->top < end)
        i->top = end;
    return store(s, header->channel, known, payload + (known - header->offset), (size_t)(end - known));
}

/* ACK: never past what was sent, and never back but behind one that came over another lane (F7). */
static int take_ack(struct xs_session *s, unsigned lane, const struct xs_header *header)
{
    struct outgoing *o = &s->out[header->channel];
    uint64_t *last = &s->lane[lane].acked[header->channel];

    if (o->fifo == NULL || header->length != 0 || header->offset < *last || header->offset > xs_stripes_high(o->stripes))
        return XS_EPROTOCOL;
    *last = header->offset;
    xs_session_acknowledged(s, header->channel, header->offset);
    return XS_OK;
}

/* END: once a lane, and where the channel's bytes end (F11, J7). */
static int take_end(struct xs_session *s, unsigned lane, const struct xs_header *header)
{
    struct incoming *i = &s->in[header->channel];
    unsigned bit = 1U << header->channel;

    if (!peer_sends(s, header->channel) || header->length != 0 || (s->lane[lane].ends & bit) != 0
        || (i->end_seen && header->offset != i->end))
        return XS_EPROTOCOL;
    if (in_stripes(s, header->channel) ? header->offset < i->top || header->offset > xs_fifo_base(i->fifo) + i->window
                                       : header->offset != xs_fifo_tail(i->fifo))
        return XS_EPROTOCOL;
    s->lane[lane].ends |= bit;
    i->end_seen = 1;
    i->end = header->offset;
    return XS_OK;
}

/* True if END of a channel has come over a lane, and every byte before it. */
static int ended_over(const struct xs_session *s, unsigned lane, unsigned channel)
{
    return (s->lane[lane].ends & 1U << channel) != 0 && xs_fifo_tail(s->in[channel].fifo) == s->in[channel].end;
}

/* EXIT: from the destination, after END on both its channels (F11). */
static int take_exit(struct xs_session *s, unsigned lane, const struct xs_header *header, const uint8_t *payload)
{
    if (s->role != XS_SOURCE || header->length != 2 || header->channel != 0 || header->offset != 0
        || !ended_over(s, lane, 1) || !ended_over(s, lane, 2) || payload[0] > 2)
        return XS_EPROTOCOL;
    s->exit_kind = payload[0];
    s->exit_value = payload[1];
    return XS_OK;
}

/* ABORT: a reason and a text. */
static int take_abort(struct xs_session *s, const struct xs_header *header, const uint8_t *payload)
{
    if (header->length < 2 || header->length > CONTROL_MAX || header->channel != 0 || header->offset != 0)
        return XS_EPROTOCOL;
    s->aborted = 1;
    s->reason = xs_load16(payload);
    s->text_len = header->length - 2;
    memcpy(s->text, payload + 2, s->text_len);
    return XS_OK;
}

/* Take a frame that has been opened; payload may be what xs_session_place gave. XS_OK, XS_EPROTOCOL (F5: the link ends) or XS_ENOMEM. */
int xs_session_take(struct xs_session *s, unsigned lane, const struct xs_header *header, const uint8_t *payload)
{
    if (lane >= XS_LANES_MAX || header->channel >= XS_CHANNELS || (header->flags & ~XS_AGAIN) != 0)
        return XS_EARGUMENT;
    s->lane[lane].placing = 0;
    if (xs_session_exited(s) || s->aborted)
        return XS_EPROTOCOL;    /* EXIT and ABORT are the last */
    switch ((enum xs_type)header->type) {
    case XS_DATA:
        return take_data(s, lane, header, payload);
    case XS_ACK:
        return take_ack(s, lane, header);
    case XS_END:
        return take_end(s, lane, header);
    case XS_EXIT:
        return take_exit(s, lane, header, payload);
    case XS_KEEPALIVE:
        return header->length == 0 && header->channel == 0 && header->offset == 0 ? XS_OK : XS_EPROTOCOL;
    case XS_ABORT:
        return take_abort(s, header, payload);
    case XS_OPEN:       /* these three pass before the session begins */
    case XS_ACCEPT:
    case XS_REFUSE:
    case XS_OUTCOME:    /* and this one when it is over */
        return XS_EPROTOCOL;
    }
    return XS_EPROTOCOL;
}

/* The next *len bytes to deliver; NULL when there are none, or while a phase waits to be told of. */
const uint8_t *xs_session_output(const struct xs_session *s, unsigned channel, size_t *len)
{
    *len = 0;
    if (s->in[channel].fifo == NULL || xs_xlphase_pending(s->phases))
        return NULL;
    return xs_fifo_slice(s->in[channel].fifo, xs_fifo_base(s->in[channel].fifo), len);
}

/* len bytes have been written into the receiving process's pipe (F7). */
void xs_session_delivered(struct xs_session *s, unsigned channel, size_t len)
{
    struct xs_fifo *fifo = s->in[channel].fifo;

    xs_fifo_release(fifo, xs_fifo_base(fifo) + len);
}

/* Destination: xl has been given the head of channel 0 by somebody else; it counts as delivered. XS_OK, also where nobody reads that channel any
 * more; or XS_EARGUMENT unless it has come and none of it has been delivered. */
int xs_session_skip_head(struct xs_session *s)
{
    size_t end = xs_xlphase_head_end(s->phases);
    struct xs_fifo *fifo = s->in[0].fifo;

    if (s->in[0].broken)
        return XS_OK;           /* an xl that ends at once: its end can be seen before the word that it has the head */
    if (end == 0 || fifo == NULL || xs_fifo_base(fifo) != 0 || xs_fifo_tail(fifo) < end)
        return XS_EARGUMENT;
    xs_fifo_release(fifo, end);
    return XS_OK;
}

/* Nobody reads a channel any more: what is held and what comes is discarded, and acknowledged as if it were delivered. */
void xs_session_output_broken(struct xs_session *s, unsigned channel)
{
    struct incoming *i = &s->in[channel];

    if (i->fifo == NULL || i->broken)
        return;
    i->broken = 1;
    xs_fifo_skip(i->fifo, 0);
}

/* True once END has come on a channel and everything is delivered. */
int xs_session_output_over(const struct xs_session *s, unsigned channel)
{
    const struct incoming *i = &s->in[channel];

    return i->fifo != NULL && i->end_seen && xs_fifo_base(i->fifo) == i->end;
}

/* True once EXIT has come. */
int xs_session_exited(const struct xs_session *s)
{
    return s->role == XS_SOURCE && s->exit_kind >= 0;
}

/* True once ABORT has come. */
int xs_session_aborted(const struct xs_session *s)
{
    return s->aborted;
}

/* The text of the ABORT received: up to size bytes; returns its length. */
size_t xs_session_text(const struct xs_session *s, uint8_t *out, size_t size)
{
    if (size > 0)
        memcpy(out, s->text, xs_min(size, s->text_len));
    return s->text_len;
}
