/* The receiving half of the session: what each frame may be (F5 to F12), and the delivery of what it brought. */
#include "session_private.h"

#include <string.h>

/* True if the peer sends the channel. */
static int peer_sends(const struct xs_session *s, unsigned channel)
{
    return channel < XS_CHANNELS && s->in[channel].fifo != NULL;
}

/* May a DATA frame be what comes next on its channel? XS_OK or XS_EPROTOCOL. */
static int check_data(const struct xs_session *s, const struct xs_header *header)
{
    const struct incoming *i = &s->in[header->channel];
    uint64_t received, end;

    if (!peer_sends(s, header->channel) || header->length == 0)
        return XS_EPROTOCOL;
    received = xs_fifo_tail(i->fifo);
    /* F6. On a first link expect is what has been received: the next byte and no other. On a later one bytes may come again,
     * from where the peer knows them delivered, but none may be left out. */
    if (header->offset < i->expect || header->offset > received)
        return XS_EPROTOCOL;
    end = header->offset + header->length;      /* no overflow: the offset is below what has been received */
    if (i->end_here || (i->end_seen && end > received))
        return XS_EPROTOCOL;                    /* F11 */
    if (end > xs_fifo_base(i->fifo) + i->window)
        return XS_EPROTOCOL;                    /* F8 */
    return XS_OK;
}

/*
 * Where the payload of a DATA frame that is about to be opened may go straight: NULL if it needs another place and a copy. The header is
 * not authenticated yet: nothing is counted here, and what is opened there is released by xs_session_take only.
 */
uint8_t *xs_session_place(struct xs_session *s, const struct xs_header *header)
{
    struct incoming *i = &s->in[header->channel];
    uint8_t *place;
    size_t space;

    if (header->type != XS_DATA || check_data(s, header) != XS_OK || i->broken
        || header->offset != xs_fifo_tail(i->fifo))
        return NULL;
    place = xs_fifo_space(i->fifo, &space);
    return space >= header->length ? place : NULL;
}

/* DATA: append what is new of it. */
static int take_data(struct xs_session *s, const struct xs_header *header, const uint8_t *payload)
{
    struct incoming *i = &s->in[header->channel];
    size_t known, len, space;
    const uint8_t *place;
    uint64_t behind;

    if (check_data(s, header) != XS_OK)
        return XS_EPROTOCOL;
    behind = xs_fifo_tail(i->fifo) - header->offset;
    known = behind < header->length ? (size_t)behind : header->length;
    payload += known;
    len = header->length - known;
    i->expect = header->offset + header->length;
    if (len == 0)
        return XS_OK;
    xs_xlphase_feed(s->phases, header->channel, payload, len);
    if (i->broken) {
        xs_fifo_skip(i->fifo, len);
        return XS_OK;
    }
    place = xs_fifo_space(i->fifo, &space);
    if (place == payload) {
        xs_fifo_commit(i->fifo, len);
        return XS_OK;
    }
    return xs_fifo_append(i->fifo, payload, len);
}

/* ACK: never back, never past what was sent (F7). */
static int take_ack(struct xs_session *s, const struct xs_header *header)
{
    struct outgoing *o = &s->out[header->channel];

    if (o->fifo == NULL || header->length != 0
        || header->offset < xs_fifo_base(o->fifo) || header->offset > o->high)
        return XS_EPROTOCOL;
    xs_fifo_release(o->fifo, header->offset);
    return XS_OK;
}

/* END: once, and where the channel's bytes end (F11). */
static int take_end(struct xs_session *s, const struct xs_header *header)
{
    struct incoming *i = &s->in[header->channel];

    if (!peer_sends(s, header->channel) || header->length != 0 || i->end_here
        || header->offset != xs_fifo_tail(i->fifo))
        return XS_EPROTOCOL;
    i->end_seen = i->end_here = 1;
    return XS_OK;
}

/* EXIT: from the destination, after END on both its channels (F11). */
static int take_exit(struct xs_session *s, const struct xs_header *header, const uint8_t *payload)
{
    if (s->role != XS_SOURCE || header->length != 2 || header->channel != 0 || header->offset != 0
        || !s->in[1].end_here || !s->in[2].end_here || payload[0] > 2)
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
int xs_session_take(struct xs_session *s, unsigned link, const struct xs_header *header, const uint8_t *payload)
{
    if (link >= XS_LINKS || header->channel >= XS_CHANNELS || header->flags != 0)
        return XS_EARGUMENT;
    if (xs_session_exited(s) || s->aborted)
        return XS_EPROTOCOL;    /* EXIT and ABORT are the last */
    switch ((enum xs_type)header->type) {
    case XS_DATA:
        return take_data(s, header, payload);
    case XS_ACK:
        return take_ack(s, header);
    case XS_END:
        return take_end(s, header);
    case XS_EXIT:
        return take_exit(s, header, payload);
    case XS_KEEPALIVE:
        return header->length == 0 && header->channel == 0 && header->offset == 0 ? XS_OK : XS_EPROTOCOL;
    case XS_ABORT:
        return take_abort(s, header, payload);
    case XS_OPEN:       /* these three pass before the session begins */
    case XS_ACCEPT:
    case XS_REFUSE:
    case XS_RESUME:     /* and these are a fault in version 1 */
    case XS_JOIN:
    case XS_QUERY:
        return XS_EPROTOCOL;
    }
    return XS_EPROTOCOL;
}

/* The next *len bytes to deliver; NULL when there are none. */
const uint8_t *xs_session_output(const struct xs_session *s, unsigned channel, size_t *len)
{
    *len = 0;
    if (s->in[channel].fifo == NULL)
        return NULL;
    return xs_fifo_slice(s->in[channel].fifo, len);
}

/* len bytes have been written into the receiving process's pipe (F7). */
void xs_session_delivered(struct xs_session *s, unsigned channel, size_t len)
{
    struct xs_fifo *fifo = s->in[channel].fifo;

    xs_fifo_release(fifo, xs_fifo_base(fifo) + len);
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

    return i->fifo != NULL && i->end_seen && xs_fifo_base(i->fifo) == xs_fifo_tail(i->fifo);
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
