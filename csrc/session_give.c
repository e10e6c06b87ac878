/* The sending half of the session: which frame goes next over which lane (F6 to F11, J5, J6). */
#include "session_private.h"

/* DATA of xl's standard output first: its messages are what both sides wait for; then standard error, then the domain. */
static const unsigned data_order[XS_CHANNELS] = { 1, 2, 0 };

/* Fill a header in; 1, so that the callers below read as "this is the next frame". */
static int give(struct xs_header *header, enum xs_type type, unsigned channel, size_t length, uint64_t offset)
{
    header->type = (uint8_t)type;
    header->channel = (uint8_t)channel;
    header->flags = 0;
    header->length = (uint32_t)length;
    header->offset = offset;
    return 1;
}

/* The first byte, which a source waits for before it lets a guest stop; then a sixteenth of the window: sixteen ACKs a window keep the sender from
 * ever waiting for one, and cost 32 bytes each. */
static int ack_due(const struct incoming *i)
{
    uint64_t waiting = xs_fifo_base(i->fifo) - i->told;

    return i->ack_now || (waiting > 0 && (i->told == 0 || waiting >= i->window / 16));
}

/* The next ACK (F7). */
static int next_ack(struct xs_session *s, struct xs_header *header)
{
    for (unsigned c = 0; c < XS_CHANNELS; c++) {
        struct incoming *i = &s->in[c];

        if (i->fifo == NULL || !ack_due(i))
            continue;
        i->ack_now = 0;
        i->told = xs_fifo_base(i->fifo);
        return give(header, XS_ACK, c, 0, i->told);
    }
    return 0;
}

/* True if END of a channel is due: all of it has been given out. */
static int end_due(const struct outgoing *o)
{
    return o->fifo != NULL && o->ended && !o->end_sent && xs_stripes_unsent(o->stripes) == 0;
}

/* True if EXIT is due. */
static int exit_due(const struct xs_session *s)
{
    return s->exit_set && !s->exit_sent && s->out[1].end_sent && s->out[2].end_sent;
}

/* The next END or EXIT (F11). */
static int next_end(struct xs_session *s, struct xs_header *header, const uint8_t **payload)
{
    for (unsigned c = 0; c < XS_CHANNELS; c++) {
        if (!end_due(&s->out[c]))
            continue;
        s->out[c].end_sent = 1;
        return give(header, XS_END, c, 0, xs_fifo_tail(s->out[c].fifo));
    }
    if (exit_due(s)) {
        s->exit_sent = 1;
        *payload = s->control;
        return give(header, XS_EXIT, 0, s->control_len, 0);
    }
    return 0;
}

/* True if DATA of a channel may go over a lane now: channel 0 over all that have not stalled, unless it is held back, the others over the leading one. */
static int goes_over(const struct xs_session *s, unsigned channel, unsigned lane)
{
    return s->out[channel].fifo != NULL && (channel == 0 ? !s->hold && !s->lane[lane].stalled : lane == s->leader);
}

/* The next DATA (F6, J5). The queue is never longer than the window, so that all it holds may be sent (F8). */
static int next_data(struct xs_session *s, unsigned lane, struct xs_header *header, const uint8_t **payload)
{
    for (unsigned n = 0; n < XS_CHANNELS; n++) {
        unsigned c = data_order[n];
        struct xs_piece piece;
        size_t len;

        if (!goes_over(s, c, lane) || !xs_stripes_give(s->out[c].stripes, lane, &piece))
            continue;
        *payload = xs_fifo_slice(s->out[c].fifo, piece.offset, &len);
        s->lane[lane].sealing = 1;
        s->lane[lane].sealing_channel = c;
        s->lane[lane].sealing_offset = piece.offset;
        (void)give(header, XS_DATA, c, piece.len, piece.offset);
        header->flags = piece.again ? XS_AGAIN : 0;
        return 1;
    }
    return 0;
}

/* True if the last frame has been given out: ABORT over that lane, or EXIT. */
static int silent(const struct xs_session *s, unsigned lane)
{
    return !s->lane[lane].there || s->lane[lane].abort_sent || s->exit_sent;
}

/*
 * The next frame for a lane: 1, with its header and its payload (which stays until xs_session_sealed), or 0 when there is none. It counts
 * as sent. What a peer waits for comes before what fills the line: ABORT, KEEPALIVE, ACK, END and EXIT, DATA. No input goes out before
 * the phase that it brings has been told of.
 */
int xs_session_next(struct xs_session *s, unsigned lane, struct xs_header *header, const uint8_t **payload)
{
    *payload = NULL;
    if (lane >= XS_LANES_MAX || silent(s, lane))
        return 0;
    xs_session_sealed(s, lane);
    if (s->abort_set) {
        s->lane[lane].abort_sent = 1;
        *payload = s->control;
        return give(header, XS_ABORT, 0, s->control_len, 0);
    }
    if ((s->keepalive & 1U << lane) != 0) {
        s->keepalive &= ~(1U << lane);
        return give(header, XS_KEEPALIVE, 0, 0, 0);
    }
    if (lane == s->leader && next_ack(s, header))
        return 1;
    if (xs_xlphase_pending(s->phases))
        return 0;
    return (lane == s->leader && next_end(s, header, payload)) || next_data(s, lane, header, payload);
}

/* Whether xs_session_next would give the lane a frame: XS_OFFER_ANY if any other lane would get the same. */
enum xs_offer xs_session_offer(const struct xs_session *s, unsigned lane)
{
    int held = xs_xlphase_pending(s->phases);
    enum xs_offer best = XS_OFFER_NONE;

    if (silent(s, lane))
        return XS_OFFER_NONE;
    if (s->abort_set || (s->keepalive & 1U << lane) != 0 || (lane == s->leader && !held && exit_due(s)))
        return XS_OFFER_OWN;
    for (unsigned c = 0; c < XS_CHANNELS; c++) {
        enum xs_offer offer = goes_over(s, c, lane) && !held ? xs_stripes_offer(s->out[c].stripes, lane) : XS_OFFER_NONE;

        if (lane == s->leader && ((s->in[c].fifo != NULL && ack_due(&s->in[c])) || (!held && end_due(&s->out[c]))
                                  || (c != 0 && offer != XS_OFFER_NONE)))
            return XS_OFFER_OWN;
        if (offer > best)
            best = offer;
    }
    return best;
}

/* Hold back DATA of channel 0, and no other frame, until it is said otherwise. */
void xs_session_hold(struct xs_session *s, int hold)
{
    s->hold = hold;
}

/* Send a KEEPALIVE over a lane, before any data (F10). */
void xs_session_keepalive(struct xs_session *s, unsigned lane)
{
    s->keepalive |= 1U << lane;
}

/* True once EXIT has been given out over that lane by xs_session_next. */
int xs_session_exit_sent(const struct xs_session *s, unsigned lane)
{
    return s->exit_sent && lane == s->leader;
}
