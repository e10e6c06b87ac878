#include "session_private.h"

#include <stdlib.h>
#include <string.h>

/* DATA of xl's standard output first: its messages are what both sides wait for; then standard error, then the domain. */
static const unsigned data_order[XS_CHANNELS] = { 1, 2, 0 };

/* True if that role sends the channel: the source xl's input, the destination its outputs. */
static int role_sends(enum xs_role role, unsigned channel)
{
    return (channel == 0) == (role == XS_SOURCE);
}

/* send_window, receive_window: as in xs_pump_options. NULL when there is no memory. */
struct xs_session *xs_session_new(enum xs_role role, const uint32_t send_window[static XS_CHANNELS],
                                  const uint32_t receive_window[static XS_CHANNELS])
{
    struct xs_session *s = calloc(1, sizeof(*s));
    size_t chunks = 0;

    if (s == NULL)
        return NULL;
    s->role = role;
    s->exit_kind = s->exit_value = -1;
    for (unsigned c = 0; c < XS_CHANNELS; c++)
        chunks += xs_fifo_chunks(role_sends(role, c) ? send_window[c] : receive_window[c]);
    s->phases = xs_xlphase_new();
    s->pool = xs_pool_new(chunks);
    if (s->phases == NULL || s->pool == NULL)
        goto out;
    for (unsigned c = 0; c < XS_CHANNELS; c++) {
        size_t window = role_sends(role, c) ? send_window[c] : receive_window[c];
        struct xs_fifo *fifo = xs_fifo_new(s->pool, window);

        if (fifo == NULL)
            goto out;
        if (role_sends(role, c)) {
            s->out[c].fifo = fifo;
        } else {
            s->in[c].fifo = fifo;
            s->in[c].window = window;
        }
    }
    return s;

out:
    xs_session_free(s);
    return NULL;
}

/* Wipe and free a session; NULL is fine. */
void xs_session_free(struct xs_session *s)
{
    if (s == NULL)
        return;
    for (unsigned c = 0; c < XS_CHANNELS; c++) {
        xs_fifo_free(s->out[c].fifo);
        xs_fifo_free(s->in[c].fifo);
    }
    xs_pool_free(s->pool);
    xs_xlphase_free(s->phases);
    free(s);
}

/* True if this side sends the channel. */
int xs_session_sends(const struct xs_session *s, unsigned channel)
{
    return role_sends(s->role, channel);
}

/* A new link in the place of a lost one: send anew what is not acknowledged, and tell the peer what has been delivered. */
void xs_session_attach(struct xs_session *s, unsigned link)
{
    (void)link;         /* with one link a session all its state is the session's */
    for (unsigned c = 0; c < XS_CHANNELS; c++) {
        struct outgoing *o = &s->out[c];
        struct incoming *i = &s->in[c];

        if (o->fifo != NULL) {
            xs_fifo_seek(o->fifo, xs_fifo_base(o->fifo));
            o->end_sent = 0;
        } else {
            i->expect = 0;
            i->end_here = 0;
            i->ack_now = xs_fifo_base(i->fifo) > 0;
        }
    }
    s->exit_sent = 0;
    s->keepalive = 0;
}

/* Room for *len bytes of input. NULL, and *len 0, when the window is used up or the input has ended. */
uint8_t *xs_session_input(struct xs_session *s, unsigned channel, size_t *len)
{
    struct outgoing *o = &s->out[channel];

    *len = 0;
    if (o->fifo == NULL || o->ended)
        return NULL;
    return xs_fifo_space(o->fifo, len);
}

/* len bytes of input have been put there. */
void xs_session_input_commit(struct xs_session *s, unsigned channel, size_t len)
{
    struct outgoing *o = &s->out[channel];
    size_t space;
    const uint8_t *bytes = xs_fifo_space(o->fifo, &space);

    xs_xlphase_feed(s->phases, channel, bytes, len);
    xs_fifo_commit(o->fifo, len);
}

/* The input has ended: END follows its last byte (F11). */
void xs_session_input_end(struct xs_session *s, unsigned channel)
{
    if (s->out[channel].fifo != NULL)
        s->out[channel].ended = 1;
}

/* True once the input has ended. */
int xs_session_input_ended(const struct xs_session *s, unsigned channel)
{
    return s->out[channel].ended;
}

/* How many bytes of input wait for their first frame on this link. */
size_t xs_session_unsent(const struct xs_session *s, unsigned channel)
{
    const struct outgoing *o = &s->out[channel];

    return o->fifo == NULL ? 0 : (size_t)(xs_fifo_tail(o->fifo) - xs_fifo_cursor(o->fifo));
}

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

/* A sixteenth of the window: sixteen ACKs a window keep the sender from ever waiting for one, and cost 32 bytes each. */
static int ack_due(const struct incoming *i)
{
    uint64_t waiting = xs_fifo_base(i->fifo) - i->told;

    return i->ack_now || (waiting > 0 && waiting >= i->window / 16);
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

/* The next END or EXIT (F11). */
static int next_end(struct xs_session *s, struct xs_header *header, const uint8_t **payload)
{
    for (unsigned c = 0; c < XS_CHANNELS; c++) {
        struct outgoing *o = &s->out[c];

        if (o->fifo == NULL || !o->ended || o->end_sent || xs_fifo_cursor(o->fifo) != xs_fifo_tail(o->fifo))
            continue;
        o->end_sent = 1;
        return give(header, XS_END, c, 0, xs_fifo_tail(o->fifo));
    }
    if (s->exit_set && !s->exit_sent && s->out[1].end_sent && s->out[2].end_sent) {
        s->exit_sent = 1;
        *payload = s->control;
        return give(header, XS_EXIT, 0, s->control_len, 0);
    }
    return 0;
}

/* The next DATA (F6). The queue is never longer than the window, so that all it holds may be sent (F8). */
static int next_data(struct xs_session *s, struct xs_header *header, const uint8_t **payload)
{
    for (unsigned n = 0; n < XS_CHANNELS; n++) {
        struct outgoing *o = &s->out[data_order[n]];
        uint64_t offset;
        size_t len;

        if ((s->hold && data_order[n] == 0) || o->fifo == NULL || (*payload = xs_fifo_slice(o->fifo, &len)) == NULL)
            continue;
        offset = xs_fifo_cursor(o->fifo);
        xs_fifo_seek(o->fifo, offset + len);
        if (o->high < offset + len)
            o->high = offset + len;
        return give(header, XS_DATA, data_order[n], len, offset);
    }
    return 0;
}

/*
 * The next frame for a link: 1, with its header and its payload (which stays until the next call), or 0 when there is none. It counts
 * as sent. What a peer waits for comes before what fills the line: ABORT, KEEPALIVE, ACK, END and EXIT, DATA.
 */
int xs_session_next(struct xs_session *s, unsigned link, struct xs_header *header, const uint8_t **payload)
{
    *payload = NULL;
    if (link >= XS_LINKS || s->abort_sent || s->exit_sent)
        return 0;       /* ABORT and EXIT are the last */
    if (s->abort_set) {
        s->abort_sent = 1;
        *payload = s->control;
        return give(header, XS_ABORT, 0, s->control_len, 0);
    }
    if (s->keepalive) {
        s->keepalive = 0;
        return give(header, XS_KEEPALIVE, 0, 0, 0);
    }
    return next_ack(s, header) || next_end(s, header, payload) || next_data(s, header, payload);
}

/* Hold back DATA of channel 0, and no other frame, until it is said otherwise. */
void xs_session_hold(struct xs_session *s, int hold)
{
    s->hold = hold;
}

/* Send a KEEPALIVE before any data (F10). */
void xs_session_keepalive(struct xs_session *s)
{
    s->keepalive = 1;
}

/* True if bytes of that channel are delivered, no ACK of them is on its way, and none wait to be delivered. */
static int ack_waits(const struct incoming *i)
{
    return i->fifo != NULL && !i->ack_now && xs_fifo_base(i->fifo) > i->told && xs_fifo_base(i->fifo) == xs_fifo_tail(i->fifo);
}

/* True if bytes are delivered but not acknowledged, and nothing waits to be delivered on their channel. */
int xs_session_ack_waits(const struct xs_session *s)
{
    for (unsigned c = 0; c < XS_CHANNELS; c++)
        if (ack_waits(&s->in[c]))
            return 1;
    return 0;
}

/* Nothing else is to be done: acknowledge what xs_session_ack_waits speaks of. */
void xs_session_ack_now(struct xs_session *s)
{
    for (unsigned c = 0; c < XS_CHANNELS; c++)
        if (ack_waits(&s->in[c]))
            s->in[c].ack_now = 1;
}

/* Destination: xl has ended; EXIT follows once END is sent on channels 1 and 2 (F11). Returns XS_OK or XS_EARGUMENT. */
int xs_session_exit(struct xs_session *s, int kind, int value)
{
    if (s->role != XS_DESTINATION || s->exit_set || s->abort_set || kind < 0 || kind > 2 || value < 0 || value > UINT8_MAX)
        return XS_EARGUMENT;
    s->exit_set = 1;
    s->exit_kind = kind;
    s->exit_value = value;
    s->control[0] = (uint8_t)kind;
    s->control[1] = (uint8_t)value;
    s->control_len = 2;
    return XS_OK;
}

/* True once EXIT has been given out by xs_session_next. */
int xs_session_exit_sent(const struct xs_session *s)
{
    return s->exit_sent;
}

/* The next frame is ABORT, and the last. Returns XS_OK or XS_EARGUMENT. */
int xs_session_abort(struct xs_session *s, int reason, const uint8_t *text, size_t len)
{
    if (s->abort_set || s->exit_sent || reason < 0 || reason > UINT16_MAX || len > XS_TEXT_MAX)
        return XS_EARGUMENT;
    s->abort_set = 1;
    xs_store16(s->control, (uint16_t)reason);
    if (len > 0)
        memcpy(s->control + 2, text, len);
    s->control_len = 2 + len;
    return XS_OK;
}

/* What follows xl's own protocol. */
struct xs_xlphase *xs_session_phases(const struct xs_session *s)
{
    return s->phases;
}

/* The parts of the statistics that the session knows. */
void xs_session_stats(const struct xs_session *s, struct xs_stats *out)
{
    for (unsigned c = 0; c < XS_CHANNELS; c++) {
        const struct outgoing *o = &s->out[c];
        const struct incoming *i = &s->in[c];

        out->channel_bytes[c] = o->fifo != NULL ? o->high : xs_fifo_tail(i->fifo);
        out->delivered[c] = xs_fifo_base(o->fifo != NULL ? o->fifo : i->fifo);
        out->sink_broken[c] = i->broken;
    }
    out->phase = xs_xlphase_told(s->phases);
    out->report_status = xs_xlphase_status(s->phases);
    out->reason = s->reason;
    out->exit_kind = s->exit_kind;
    out->exit_value = s->exit_value;
}
