#include "session_private.h"

#include <stdlib.h>
#include <string.h>

/* True if that role sends the channel: the source xl's input, the destination its outputs. */
static int role_sends(enum xs_role role, unsigned channel)
{
    return (channel == 0) == (role == XS_SOURCE);
}

/* Set a channel up. Returns XS_OK or XS_ENOMEM. */
static int channel_init(struct xs_session *s, unsigned channel, size_t window)
{
    struct xs_fifo *fifo = xs_fifo_new(s->pool, window);

    if (role_sends(s->role, channel)) {
        s->out[channel].fifo = fifo;
        s->out[channel].stripes = xs_stripes_new(window);
        return fifo != NULL && s->out[channel].stripes != NULL ? XS_OK : XS_ENOMEM;
    }
    s->in[channel].fifo = fifo;
    s->in[channel].window = window;
    s->in[channel].slots = xs_fifo_chunks(window);
    s->in[channel].fill = calloc(s->in[channel].slots, sizeof(s->in[channel].fill[0]));
    return fifo != NULL && s->in[channel].fill != NULL ? XS_OK : XS_ENOMEM;
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
    for (unsigned c = 0; c < XS_CHANNELS; c++)
        if (channel_init(s, c, role_sends(role, c) ? send_window[c] : receive_window[c]) != XS_OK)
            goto out;
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
        xs_stripes_free(s->out[c].stripes);
        xs_fifo_free(s->in[c].fifo);
        free(s->in[c].fill);
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

/* How many lanes there are. */
unsigned xs_session_lanes(const struct xs_session *s)
{
    unsigned n = 0;

    for (unsigned l = 0; l < XS_LANES_MAX; l++)
        n += s->lane[l].there != 0;
    return n;
}

/* A lane leads from now on: what the one before had said last is said anew (J6). */
static void lead(struct xs_session *s, unsigned lane)
{
    s->leader = lane;
    s->exit_sent = 0;
    for (unsigned c = 0; c < XS_CHANNELS; c++) {
        s->out[c].end_sent = 0;
        if (s->in[c].fifo != NULL)
            s->in[c].ack_now = xs_fifo_base(s->in[c].fifo) > 0;
    }
}

/* A new lane, below XS_LANES_MAX; if there was one of that number, it is lost. The first, and one in the place of the last, leads. */
void xs_session_attach(struct xs_session *s, unsigned lane)
{
    xs_session_lost(s, lane);
    if (xs_session_lanes(s) == 0)
        lead(s, lane);
    else
        s->striped = 1;
    s->lane[lane].there = 1;
    s->attached++;
}

/* Let the queue go as far as acknowledged, but not what a lane still reads to seal it: a copy that came over a lost lane may be acknowledged. */
static void let_go(struct outgoing *o, const struct xs_session *s, unsigned channel)
{
    uint64_t to = o->acked;

    for (unsigned l = 0; l < XS_LANES_MAX; l++)
        if (s->lane[l].sealing && s->lane[l].sealing_channel == channel && s->lane[l].sealing_offset < to)
            to = s->lane[l].sealing_offset;
    if (to > xs_fifo_base(o->fifo))
        xs_fifo_release(o->fifo, to);
}

/* Bytes before that offset have been acknowledged. */
void xs_session_acknowledged(struct xs_session *s, unsigned channel, uint64_t offset)
{
    struct outgoing *o = &s->out[channel];

    if (offset <= o->acked)
        return;
    o->acked = offset;
    xs_stripes_release(o->stripes, offset);
    let_go(o, s, channel);
}

/* The payload that was given out last to a lane is needed no more. */
void xs_session_sealed(struct xs_session *s, unsigned lane)
{
    struct lane *l = &s->lane[lane];

    if (!l->sealing)
        return;
    l->sealing = 0;
    let_go(&s->out[l->sealing_channel], s, l->sealing_channel);
}

/* A lane is lost: what it had is for the others, or for the next one (J6). */
void xs_session_lost(struct xs_session *s, unsigned lane)
{
    if (!s->lane[lane].there)
        return;
    xs_session_sealed(s, lane);
    memset(&s->lane[lane], 0, sizeof(s->lane[lane]));
    s->keepalive &= ~(1U << lane);
    for (unsigned c = 0; c < XS_CHANNELS; c++)
        if (s->out[c].fifo != NULL)
            xs_stripes_orphan(s->out[c].stripes, lane);
    for (unsigned l = 0; l < XS_LANES_MAX && lane == s->leader; l++)
        if (s->lane[l].there)
            lead(s, l);
}

/* True while a lane other than that one makes progress. */
static int another_goes_on(const struct xs_session *s, unsigned lane)
{
    for (unsigned l = 0; l < XS_LANES_MAX; l++)
        if (l != lane && s->lane[l].there && !s->lane[l].stalled)
            return 1;
    return 0;
}

/* A lane makes no progress any more (or does again): while others do, they get its stripes, and it none (J6). 1 if that has changed something. */
int xs_session_stall(struct xs_session *s, unsigned lane, int stalled)
{
    struct lane *l = &s->lane[lane];

    if (!l->there || l->stalled == stalled || (stalled && !another_goes_on(s, lane)))
        return 0;
    l->stalled = stalled;
    if (stalled && s->out[0].fifo != NULL)
        xs_stripes_orphan(s->out[0].stripes, lane);
    return 1;
}

/* The destination has acknowledged nothing yet: what it judges a domain by goes out, and not so much that the guest could have been
 * suspended for it. Its acknowledgement of the first byte says that the domain may come. */
static int is_unjudged(const struct outgoing *o)
{
    enum { UNJUDGED_MAX = 2 * XS_XL_HEAD_MAX /* bytes: the head, and its window's worth of what follows; no guest has so little memory */ };

    return o->acked == 0 && xs_fifo_tail(o->fifo) >= UNJUDGED_MAX;
}

/* Room for *len bytes of input. NULL, and *len 0, when the window is used up, the destination has not judged yet or the input has ended. */
uint8_t *xs_session_input(struct xs_session *s, unsigned channel, size_t *len)
{
    struct outgoing *o = &s->out[channel];

    *len = 0;
    if (o->fifo == NULL || o->ended || (channel == 0 && is_unjudged(o)))
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
    xs_stripes_extend(o->stripes, xs_fifo_tail(o->fifo));
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

/* How many bytes of input wait for a frame, for the first time or anew. */
size_t xs_session_unsent(const struct xs_session *s, unsigned channel)
{
    return s->out[channel].fifo == NULL ? 0 : xs_stripes_unsent(s->out[channel].stripes);
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

/* The next frame is ABORT, and the last, on every lane. Returns XS_OK or XS_EARGUMENT. */
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

        out->taken[c] = o->fifo != NULL ? xs_fifo_tail(o->fifo) : 0;
        out->channel_bytes[c] = o->fifo != NULL ? xs_stripes_high(o->stripes) : xs_fifo_tail(i->fifo);
        out->delivered[c] = o->fifo != NULL ? o->acked : xs_fifo_base(i->fifo);
        out->sink_broken[c] = i->broken;
    }
    out->phase = xs_xlphase_told(s->phases);
    out->report_status = xs_xlphase_status(s->phases);
    xs_xlphase_memory(s->phases, &out->memory);
    out->reason = s->reason;
    out->exit_kind = s->exit_kind;
    out->exit_value = s->exit_value;
}
