/*
 * The session under a peer who has the keys (F6 to F12, J5 to J7): up to four lanes, frames of any kind in any order, opened straight into the queues and
 * taken later, lanes lost and attached, readers slow or gone; and our own frames between them.
 *
 * Every byte of a channel follows from its place, so that whatever is delivered or given out can be checked; what was opened and then failed its tag is
 * other bytes, which must never come out.
 *
 * Input: a byte for role, windows and whether the streams carry xl's words; then operations.
 */
#include "fuzz.h"

#include "../../csrc/fifo.h"
#include "../../csrc/session.h"
#include "../../csrc/xlphase.h"

enum { LANES = 4, PAYLOAD = 3 * XS_CHUNK };

struct world {
    struct xs_session *s;
    int words;
    unsigned there;             /* lanes: a bit each */
    struct coming {             /* a frame that is being opened */
        int busy;
        struct xs_header header;
        uint8_t *place, *own;   /* its place in the queue, or memory of its own */
    } coming[LANES];
    struct going {              /* a payload that is being sealed */
        int busy;
        struct xs_header header;
        const uint8_t *payload;
    } going[LANES];
    uint64_t given[3], delivered[3], told[3];
    int ended[3], broken[3], end_given[3];
    int exit_given;
};

/* xl's words at the head of both streams: a header with a configuration and GO; banner, "ready", a report. */
static const char up[] = "Xen saved domain, xl format\n \0 \r\1\2\3\4\0\0\0\1\0\0\0\0\0\0\0\7\0\0\0\3{}\ndomain is yours, you are cleared to unpause";
static const char down[] = "xl migration receiver ready, send binary domain data.\ndomain received, ready to unpause\0"
                           "my copy unpause results are as follows";

static uint8_t byte_at(const struct world *w, unsigned channel, uint64_t offset)
{
    if (w->words && channel == 0 && offset < sizeof(up))
        return (uint8_t)up[offset];
    if (w->words && channel == 1 && offset < sizeof(down))
        return (uint8_t)down[offset];
    return (uint8_t)(stream_byte(offset) + channel * 7);
}

static void fill(const struct world *w, uint8_t *to, unsigned channel, uint64_t offset, size_t len, uint8_t change)
{
    for (size_t i = 0; i < len; i++)
        to[i] = byte_at(w, channel, offset + i) ^ change;
}

static void check(const struct world *w, const uint8_t *bytes, unsigned channel, uint64_t offset, size_t len)
{
    for (size_t i = 0; i < len; i++)
        CHECK(bytes[i] == byte_at(w, channel, offset + i));
}

static void lose(struct world *w, unsigned lane)
{
    xs_session_lost(w->s, lane);
    free(w->coming[lane].own);
    w->coming[lane] = (struct coming){ 0 };
    w->going[lane] = (struct going){ 0 };
    w->there &= ~(1U << lane);
}

/* A place in a channel: near what has come or gone, at a stripe, or anywhere. */
static uint64_t read_offset(const struct world *w, struct input *in, unsigned channel)
{
    struct xs_stats st;
    uint8_t how = take8(in);

    memset(&st, 0, sizeof(st));
    xs_session_stats(w->s, &st);
    switch (how % 4) {
    case 0:
        return st.channel_bytes[channel];
    case 1:
        return st.channel_bytes[channel] + (uint64_t)(int64_t)(int8_t)take8(in);
    case 2:
        return (st.delivered[channel] / XS_CHUNK + how / 4 % 16) * XS_CHUNK + (how / 64 == 3 ? 0 : take16(in) % XS_CHUNK);
    default:
        return how / 4 == 63 ? take64(in) : st.delivered[channel] + take16(in);
    }
}

/* A header such as xs_header_parse lets through, and the pump hands on. */
static struct xs_header read_header(const struct world *w, struct input *in)
{
    static const uint8_t types[16] = { XS_DATA, XS_DATA, XS_DATA, XS_DATA, XS_DATA, XS_DATA, XS_ACK, XS_ACK, XS_ACK, XS_END, XS_END,
                                       XS_EXIT, XS_ABORT, XS_KEEPALIVE, XS_OPEN, XS_OUTCOME };
    uint8_t how = take8(in);
    struct xs_header h = { .type = types[how % 16], .channel = how / 16 % 3, .flags = how / 64 == 3 ? XS_AGAIN : 0 };

    if (h.type != XS_DATA)
        h.flags = 0;
    h.offset = h.type == XS_DATA || h.type == XS_ACK || h.type == XS_END ? read_offset(w, in, h.channel) : 0;
    if (h.type == XS_DATA)
        h.length = take16(in) % PAYLOAD;
    else if (h.type == XS_EXIT)
        h.length = 2;
    else if (h.type == XS_ABORT)
        h.length = take16(in) % (XS_TEXT_MAX + 4);
    else if (how / 64 == 2)
        h.length = take8(in);
    return h;
}

/* A frame has come over a lane, and is opened: as in pump_socket.c, without the lock. What is in its place before its tag is checked is anything. */
static void open_frame(struct world *w, struct input *in, unsigned lane)
{
    struct coming *c = &w->coming[lane];

    if ((w->there & 1U << lane) == 0 || c->busy)
        return;
    c->header = read_header(w, in);
    c->busy = 1;
    c->place = xs_session_place(w->s, lane, &c->header);
    if (c->place == NULL)
        c->place = c->own = malloc(c->header.length > 0 ? c->header.length : 1);
    fill(w, c->place, c->header.channel, c->header.offset, c->header.length, 0xff);
}

/* Its tag is checked. Returns 0 when the session is over. */
static int take_frame(struct world *w, struct input *in, unsigned lane)
{
    struct coming *c = &w->coming[lane];
    uint8_t how = take8(in);
    int rc;

    if (!c->busy)
        return 1;
    if (how == 0xff) {
        lose(w, lane);          /* it did not hold */
        return 1;
    }
    fill(w, c->place, c->header.channel, c->header.offset, c->header.length, 0);
    if (c->header.type == XS_EXIT)
        c->place[0] = how % 4;
    if (xs_session_contended(w->s, lane, &c->header))
        return 1;               /* wait */
    rc = xs_session_take(w->s, lane, &c->header, c->place);
    CHECK(rc == XS_OK || rc == XS_EPROTOCOL);
    free(c->own);
    *c = (struct coming){ 0 };
    if (rc != XS_OK)
        lose(w, lane);
    return !xs_session_exited(w->s) && !xs_session_aborted(w->s);
}

static void deliver(struct world *w, struct input *in, unsigned channel)
{
    size_t most = take16(in), len;
    const uint8_t *bytes;

    while (xs_xlphase_next(xs_session_phases(w->s)) != XS_PHASE_START)
        continue;
    bytes = xs_session_output(w->s, channel, &len);
    if (bytes == NULL || w->broken[channel])
        return;
    len = xs_min(len, most);
    check(w, bytes, channel, w->delivered[channel], len);
    xs_session_delivered(w->s, channel, len);
    w->delivered[channel] += len;
}

static void give(struct world *w, struct input *in, unsigned channel)
{
    size_t most = take16(in) % 1024, len;
    uint8_t *to = xs_session_input(w->s, channel, &len);

    if (to == NULL)
        return;
    len = xs_min(len, most);
    fill(w, to, channel, w->given[channel], len, 0);
    xs_session_input_commit(w->s, channel, len);
    w->given[channel] += len;
}

/* Is this a frame that the other side could take? */
static void check_given(struct world *w, const struct xs_header *h, const uint8_t *payload)
{
    unsigned c = h->channel;

    switch ((enum xs_type)h->type) {
    case XS_DATA:
        CHECK(h->length > 0 && h->length <= XS_CHUNK && h->offset + h->length <= w->given[c]);
        check(w, payload, c, h->offset, h->length);
        break;
    case XS_ACK:
        CHECK(h->length == 0 && (w->broken[c] || h->offset <= w->delivered[c]));
        break;
    case XS_END:
        CHECK(h->length == 0 && w->ended[c] && h->offset == w->given[c]);
        w->end_given[c] = 1;
        break;
    case XS_EXIT:
        CHECK(h->length == 2 && w->end_given[1] && w->end_given[2]);
        w->exit_given = 1;
        break;
    case XS_KEEPALIVE:
    case XS_ABORT:
        break;
    case XS_OPEN:
    case XS_ACCEPT:
    case XS_REFUSE:
    case XS_OUTCOME:
        CHECK(0);
    }
}

/* The next frame for a lane, which is then sealed. */
static void next(struct world *w, unsigned lane)
{
    struct going *g = &w->going[lane];
    enum xs_offer offer = xs_session_offer(w->s, lane);

    if ((w->there & 1U << lane) == 0 || g->busy)
        return;
    CHECK(xs_session_next(w->s, lane, &g->header, &g->payload) == (offer != XS_OFFER_NONE));
    if (offer == XS_OFFER_NONE)
        return;
    check_given(w, &g->header, g->payload);
    g->busy = 1;
}

static void sealed(struct world *w, unsigned lane)
{
    struct going *g = &w->going[lane];

    if (!g->busy)
        return;
    if (g->header.type == XS_DATA)      /* it has stayed where it was */
        check(w, g->payload, g->header.channel, g->header.offset, g->header.length);
    xs_session_sealed(w->s, lane);
    g->busy = 0;
}

/* Words of this side's own. */
static void word(struct world *w, uint8_t how, unsigned channel, unsigned lane)
{
    static const uint8_t text[XS_TEXT_MAX];

    switch (how % 8) {
    case 0:
    case 1:
        xs_session_input_end(w->s, channel);
        w->ended[channel] = xs_session_input_ended(w->s, channel);
        break;
    case 2:
        xs_session_ack_now(w->s);
        break;
    case 3:
        xs_session_keepalive(w->s, lane);
        break;
    case 4:
        xs_session_hold(w->s, how / 8 % 2);
        break;
    case 5:
        xs_session_output_broken(w->s, channel);
        w->broken[channel] = 1;
        break;
    case 6:
        (void)xs_session_exit(w->s, how / 8 % 4, how);
        break;
    case 7:
        if (how / 8 == 31)
            (void)xs_session_abort(w->s, 1, text, how);
        break;
    }
}

/* What holds at any time. */
static void check_always(struct world *w, size_t window)
{
    struct xs_stats st;
    uint8_t text[8];

    memset(&st, 0, sizeof(st));
    xs_session_stats(w->s, &st);
    for (unsigned c = 0; c < XS_CHANNELS; c++) {
        int sends = xs_session_sends(w->s, c);

        CHECK(st.delivered[c] <= st.channel_bytes[c] && st.delivered[c] >= w->told[c]);
        CHECK(st.channel_bytes[c] - st.delivered[c] <= window);
        CHECK(sends ? st.taken[c] == w->given[c] && st.channel_bytes[c] <= w->given[c] : w->broken[c] || st.delivered[c] == w->delivered[c]);
        CHECK(!xs_session_output_over(w->s, c) || st.delivered[c] == st.channel_bytes[c]);
        w->told[c] = st.delivered[c];
    }
    CHECK(xs_session_lanes(w->s) == (unsigned)__builtin_popcount(w->there));
    CHECK(xs_session_text(w->s, text, sizeof(text)) <= XS_TEXT_MAX);
}

static int step(struct world *w, struct input *in)
{
    uint8_t how = take8(in);
    unsigned lane = how / 16 % LANES, channel = how / 16 % 3;

    switch (how % 16) {
    case 0:
        if ((w->there & 1U << lane) != 0)
            lose(w, lane);
        xs_session_attach(w->s, lane);
        w->there |= 1U << lane;
        break;
    case 1:
        if (how / 64 == 3)
            lose(w, lane);
        break;
    case 2:
    case 3:
        deliver(w, in, channel);
        break;
    case 4:
    case 5:
        give(w, in, channel);
        break;
    case 6:
        next(w, lane);
        break;
    case 7:
        sealed(w, lane);
        break;
    case 8:
        next(w, lane);
        sealed(w, lane);
        break;
    case 9:
        word(w, take8(in), channel, lane);
        break;
    case 10:
    case 11:
        open_frame(w, in, lane);
        break;
    case 12:
        return take_frame(w, in, lane);
    default:
        open_frame(w, in, lane);
        return take_frame(w, in, lane);
    }
    return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t windows[4] = { 3 * XS_CHUNK, 100, 8 * XS_CHUNK, 2000 };
    struct input in = { data, size };
    uint8_t how = take8(&in);
    uint32_t window = windows[how / 2 % 4];
    const uint32_t all[3] = { window, window, window };
    struct world w = { .s = xs_session_new(how & 1 ? XS_SOURCE : XS_DESTINATION, all, all), .words = how / 8 % 2, .there = 1 };

    CHECK(w.s != NULL);
    xs_session_attach(w.s, 0);
    while (in.left > 0) {
        int going_on = step(&w, &in);

        check_always(&w, window);
        if (!going_on)
            break;
    }
    for (unsigned l = 0; l < LANES; l++)
        free(w.coming[l].own);
    xs_session_free(w.s);
    return 0;
}
