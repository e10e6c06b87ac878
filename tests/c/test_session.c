/* The session core (F6 to F12): two of them connected in memory, no descriptors and no time. */
#include "harness.h"

#include "../../csrc/session.h"
#include "../../csrc/util.h"
#include "../../csrc/xlphase.h"

enum { WIRE = 8 << 20, FRAME_MAX = XS_HEADER_LEN + XS_PAYLOAD_MAX + XS_TAG_LEN };

struct side {
    struct xs_session *s;
    struct xs_link *link;
    uint64_t in[3], out[3];     /* test-stream bytes given to be sent, and delivered */
    uint8_t *wire;              /* sealed bytes on their way to the other side */
    size_t head, tail;
};

struct world {
    struct side side[2];
    uint64_t seed;
};

static void new_links(struct world *w)
{
    struct xs_link_keys k[2];

    for (int i = 0; i < 2; i++) {
        memset(k[i].send_key, 1 + i, 32);
        memset(k[i].receive_key, 2 - i, 32);
        memset(k[i].send_iv, 3 + i, 12);
        memset(k[i].receive_iv, 4 - i, 12);
        xs_link_free(w->side[i].link);
        w->side[i].link = xs_link_new(NULL, &k[i], 1000000);
        w->side[i].head = w->side[i].tail = 0;
        xs_session_attach(w->side[i].s, 0);
    }
}

static void open_world(struct world *w, uint32_t window, uint64_t seed)
{
    const uint32_t windows[3] = { window, window, window };

    memset(w, 0, sizeof(*w));
    w->seed = seed;
    for (int i = 0; i < 2; i++) {
        w->side[i].s = xs_session_new(i == 0 ? XS_SOURCE : XS_DESTINATION, windows, windows);
        w->side[i].wire = malloc(WIRE);
        CHECK(w->side[i].s != NULL && w->side[i].wire != NULL);
    }
    new_links(w);
}

static void close_world(struct world *w)
{
    for (int i = 0; i < 2; i++) {
        xs_session_free(w->side[i].s);
        xs_link_free(w->side[i].link);
        free(w->side[i].wire);
    }
}

/* Put up to n bytes of the test stream into a channel. */
static void give(struct world *w, int who, unsigned channel, size_t n)
{
    struct side *me = &w->side[who];
    size_t len;
    uint8_t *to;

    while (n > 0 && (to = xs_session_input(me->s, channel, &len)) != NULL) {
        len = xs_min(len, n);
        for (size_t i = 0; i < len; i++)
            to[i] = stream_byte(me->in[channel] + i + channel * 7);
        xs_session_input_commit(me->s, channel, len);
        me->in[channel] += len;
        n -= len;
    }
}

/* Seal at most n frames onto the wire, while it has room. */
static int seal(struct world *w, int who, int n)
{
    struct side *me = &w->side[who];
    struct xs_header h;
    const uint8_t *payload;
    int count = 0;

    while (count < n && me->tail + FRAME_MAX < WIRE && xs_session_next(me->s, 0, &h, &payload)) {
        CHECK(xs_link_seal(me->link, &h, payload, me->wire + me->tail) == XS_OK);
        me->tail += XS_HEADER_LEN + h.length + XS_TAG_LEN;
        count++;
    }
    return count;
}

/* The other side takes one frame off the wire. Returns its status, or 1 if none is whole among the first `visible` bytes. */
static int take(struct world *w, int from, size_t visible)
{
    struct side *me = &w->side[from], *peer = &w->side[1 - from];
    uint8_t *frame = me->wire + me->head, *place;
    struct xs_header h;
    size_t have = xs_min(visible, me->tail - me->head), len;
    int rc;

    if (have < XS_HEADER_LEN)
        return 1;
    if ((rc = xs_header_parse(frame, &h)) != XS_OK)
        return rc;
    len = XS_HEADER_LEN + h.length + XS_TAG_LEN;
    if (have < len)
        return 1;
    place = xs_session_place(peer->s, 0, &h);
    if (place == NULL)
        place = frame + XS_HEADER_LEN;
    rc = xs_link_open(peer->link, frame, &h, place);
    if (rc == XS_OK)
        rc = xs_session_take(peer->s, 0, &h, place);
    me->head += len;
    if (me->head == me->tail)
        me->head = me->tail = 0;
    return rc;
}

/* Deliver at most n bytes of a channel, and check them. */
static void deliver(struct world *w, int who, unsigned channel, size_t n)
{
    struct side *me = &w->side[who];
    const uint8_t *p;
    size_t len;

    while (n > 0 && (p = xs_session_output(me->s, channel, &len)) != NULL) {
        len = xs_min(len, n);
        for (size_t i = 0; i < len; i++)
            CHECK(p[i] == stream_byte(me->out[channel] + i + channel * 7));
        xs_session_delivered(me->s, channel, len);
        me->out[channel] += len;
        n -= len;
    }
}

static const int sender_of[3] = { 0, 1, 1 };

/* One random step; total: how much each channel carries. */
static void random_step(struct world *w, const uint64_t total[3])
{
    unsigned c = (unsigned)random_below(&w->seed, 3);
    int who = (int)random_below(&w->seed, 2);
    struct side *from = &w->side[sender_of[c]];
    size_t big = random_below(&w->seed, 8) == 0 ? 3 << 20 : 3000;

    switch (random_below(&w->seed, 6)) {
    case 0:
        give(w, sender_of[c], c, xs_min(random_below(&w->seed, big), (size_t)(total[c] - from->in[c])));
        if (from->in[c] == total[c])
            xs_session_input_end(from->s, c);
        break;
    case 1:
        seal(w, who, (int)random_below(&w->seed, 4));
        break;
    case 2:
    case 3:
        for (size_t n = random_below(&w->seed, 5); n > 0; n--)
            CHECK(take(w, who, random_below(&w->seed, 2 << 20)) >= 0);
        break;
    case 4:
        deliver(w, 1 - sender_of[c], c, random_below(&w->seed, big));
        break;
    case 5:
        if (random_below(&w->seed, 4) == 0)
            xs_session_ack_now(w->side[who].s);
        if (random_below(&w->seed, 20) == 0)
            xs_session_keepalive(w->side[who].s, 0);
        break;
    }
}

/* True once everything has been delivered and EXIT has come. */
static int finished(const struct world *w, const uint64_t total[3])
{
    for (unsigned c = 0; c < 3; c++)
        if (w->side[1 - sender_of[c]].out[c] != total[c])
            return 0;
    return xs_session_exited(w->side[0].s);
}

/* Random fragments, any interleaving, several windows; cuts: links lost on the way, after which a new link goes on. */
static void run_random(uint32_t window, uint64_t seed, int cuts)
{
    const uint64_t total[3] = { 3000000 + seed % 977, 150000, 40001 };
    struct world w;
    struct xs_stats st;

    open_world(&w, window, seed);
    for (int step = 0, exited = 0; !finished(&w, total); step++) {
        CHECK(step < 3000000);
        random_step(&w, total);
        if (!exited && w.side[1].out[0] == total[0]) {
            exited = 1;         /* xl there has read all and ends: nothing is acknowledged behind EXIT */
            CHECK(xs_session_exit(w.side[1].s, 0, 42) == XS_OK);
        }
        if (cuts > 0 && random_below(&w.seed, 400) == 0) {
            cuts--;
            new_links(&w);
        }
    }
    for (unsigned c = 0; c < 3; c++)
        CHECK(xs_session_output_over(w.side[1 - sender_of[c]].s, c) || c == 0);
    xs_session_stats(w.side[0].s, &st);
    CHECK(st.exit_kind == 0 && st.exit_value == 42 && st.delivered[1] == total[1] && st.channel_bytes[0] == total[0]);
    close_world(&w);
}

static void random_streams(void)
{
    for (uint64_t seed = 1; seed <= 6; seed++)
        run_random(seed % 3 == 0 ? 5000 : seed % 3 == 1 ? 1 << 20 : 64 << 20, seed, 0);
}

/* Links lost at any moment: every byte comes once and in order all the same. */
static void lost_links(void)
{
    for (uint64_t seed = 100; seed < 110; seed++)
        run_random(seed % 2 == 0 ? 70000 : 4 << 20, seed, 25);
}

/* Feed a frame, made by hand and sealed well, to a session. */
static int feed(struct xs_session *s, uint8_t type, uint8_t channel, uint32_t length, uint64_t offset)
{
    static const uint8_t payload[XS_PAYLOAD_MAX];
    const struct xs_header h = { .type = type, .channel = channel, .length = length, .offset = offset };

    return xs_session_take(s, 0, &h, payload);
}

struct step { uint8_t type, channel; uint32_t length; uint64_t offset; };

/* Feed steps to a fresh session of a role: all but the last are good, the last is refused. */
static void refuses(enum xs_role role, const struct step *step, int n)
{
    const uint32_t windows[3] = { 1000, 1000, 1000 };
    struct xs_session *s = xs_session_new(role, windows, windows);
    struct xs_header h;
    const uint8_t *payload;
    size_t len;
    unsigned own = role == XS_SOURCE ? 0 : 1;

    xs_session_attach(s, 0);
    xs_session_input(s, own, &len);
    xs_session_input_commit(s, own, 10);        /* ten bytes are sent: ACKs up to 10 are good */
    CHECK(xs_session_next(s, 0, &h, &payload) == 1 && h.type == XS_DATA && h.length == 10);
    for (int i = 0; i < n; i++)
        CHECK(feed(s, step[i].type, step[i].channel, step[i].length, step[i].offset)
              == (i == n - 1 ? XS_EPROTOCOL : XS_OK));
    xs_session_free(s);
}

#define REFUSES(role, ...)                                                                            \
    refuses(role, (const struct step[]){ __VA_ARGS__ },                                               \
            (int)(sizeof((const struct step[]){ __VA_ARGS__ }) / sizeof(struct step)))

/* Each rule of F6 to F11, broken by a peer who has the keys. */
static void rules(void)
{
    enum xs_role s = XS_SOURCE, d = XS_DESTINATION;

    REFUSES(d, { XS_DATA, 1, 1, 0 });                                   /* the destination's own channel */
    REFUSES(s, { XS_DATA, 0, 1, 0 });
    REFUSES(d, { XS_DATA, 0, 0, 0 });                                   /* empty */
    REFUSES(d, { XS_DATA, 0, 5, 0 }, { XS_DATA, 0, 5, 4 });             /* F6: again */
    REFUSES(d, { XS_DATA, 0, 5, 0 }, { XS_DATA, 0, 5, 6 });             /* F6: a gap */
    REFUSES(d, { XS_DATA, 0, 5, 0 }, { XS_DATA, 0, 5, UINT64_MAX });
    REFUSES(d, { XS_DATA, 0, 1000, 0 }, { XS_DATA, 0, 1, 1000 });       /* F8 */
    REFUSES(d, { XS_DATA, 0, 1001, 0 });
    REFUSES(d, { XS_ACK, 0, 0, 0 });                                    /* of what we do not send */
    REFUSES(d, { XS_ACK, 1, 0, 5 }, { XS_ACK, 1, 0, 5 }, { XS_ACK, 1, 0, 4 });  /* F7: back */
    REFUSES(d, { XS_ACK, 1, 0, 10 }, { XS_ACK, 1, 0, 11 });             /* F7: past what was sent */
    REFUSES(s, { XS_ACK, 0, 1, 0 });                                    /* with a payload */
    REFUSES(d, { XS_END, 1, 0, 0 });
    REFUSES(d, { XS_END, 0, 1, 0 });
    REFUSES(d, { XS_DATA, 0, 5, 0 }, { XS_END, 0, 0, 4 });              /* F11: not the length */
    REFUSES(d, { XS_DATA, 0, 5, 0 }, { XS_END, 0, 0, 6 });
    REFUSES(d, { XS_DATA, 0, 5, 0 }, { XS_END, 0, 0, 5 }, { XS_END, 0, 0, 5 });
    REFUSES(d, { XS_DATA, 0, 5, 0 }, { XS_END, 0, 0, 5 }, { XS_DATA, 0, 1, 5 });
    REFUSES(d, { XS_EXIT, 0, 2, 0 });                                   /* from the source */
    REFUSES(s, { XS_EXIT, 0, 2, 0 });                                   /* before END */
    REFUSES(s, { XS_END, 1, 0, 0 }, { XS_EXIT, 0, 2, 0 });
    REFUSES(s, { XS_END, 1, 0, 0 }, { XS_END, 2, 0, 0 }, { XS_EXIT, 0, 1, 0 });
    REFUSES(s, { XS_END, 1, 0, 0 }, { XS_END, 2, 0, 0 }, { XS_EXIT, 0, 3, 0 });
    REFUSES(s, { XS_END, 1, 0, 0 }, { XS_END, 2, 0, 0 }, { XS_EXIT, 1, 2, 0 });
    REFUSES(s, { XS_END, 1, 0, 0 }, { XS_END, 2, 0, 0 }, { XS_EXIT, 0, 2, 1 });
    REFUSES(s, { XS_END, 1, 0, 0 }, { XS_END, 2, 0, 0 }, { XS_EXIT, 0, 2, 0 }, { XS_KEEPALIVE, 0, 0, 0 });
    REFUSES(d, { XS_KEEPALIVE, 0, 0, 0 }, { XS_KEEPALIVE, 0, 1, 0 });
    REFUSES(d, { XS_KEEPALIVE, 1, 0, 0 });
    REFUSES(d, { XS_KEEPALIVE, 0, 0, 1 });
    REFUSES(d, { XS_ABORT, 0, 1, 0 });
    REFUSES(d, { XS_ABORT, 0, 2 + 1025, 0 });
    REFUSES(d, { XS_ABORT, 0, 2 + 1024, 0 }, { XS_KEEPALIVE, 0, 0, 0 });
    for (uint8_t type = 0; type < 16; type++)
        if (type < XS_DATA || (type > XS_KEEPALIVE && type != XS_ABORT)) {
            REFUSES(d, { type, 0, 0, 0 });
            REFUSES(s, { type, 0, 0, 0 });
        }
}

/* F11 from the sender's side: END behind the last byte, EXIT behind END on 1 and 2, nothing behind EXIT. */
static void ends(void)
{
    struct world w;
    struct xs_header h;
    const uint8_t *p;

    open_world(&w, 1 << 20, 1);
    give(&w, 1, 1, 5);
    CHECK(xs_session_exit(w.side[1].s, 3, 0) == XS_EARGUMENT && xs_session_exit(w.side[1].s, 0, 256) == XS_EARGUMENT);
    CHECK(xs_session_exit(w.side[0].s, 0, 0) == XS_EARGUMENT);
    CHECK(xs_session_exit(w.side[1].s, 1, 9) == XS_OK && xs_session_exit(w.side[1].s, 1, 9) == XS_EARGUMENT);
    xs_session_input_end(w.side[1].s, 1);
    CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.type == XS_DATA && h.channel == 1 && h.offset == 0 && h.length == 5);
    CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.type == XS_END && h.channel == 1 && h.offset == 5);
    CHECK(!xs_session_next(w.side[1].s, 0, &h, &p));
    xs_session_input_end(w.side[1].s, 2);
    CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.type == XS_END && h.channel == 2 && h.offset == 0);
    CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.type == XS_EXIT && h.length == 2 && p[0] == 1 && p[1] == 9);
    xs_session_keepalive(w.side[1].s, 0);
    CHECK(!xs_session_next(w.side[1].s, 0, &h, &p) && xs_session_exit_sent(w.side[1].s, 0));
    close_world(&w);
}

/* ABORT goes before everything, KEEPALIVE and ACK before data; nothing follows ABORT. */
static void priorities(void)
{
    struct world w;
    struct xs_header h;
    const uint8_t *p;
    uint8_t text[8];

    open_world(&w, 1 << 20, 1);
    give(&w, 0, 0, 100);
    seal(&w, 0, 9);
    CHECK(take(&w, 0, WIRE) == XS_OK);
    deliver(&w, 1, 0, 100);
    give(&w, 1, 1, 10);
    give(&w, 1, 2, 10);
    xs_session_ack_now(w.side[1].s);
    xs_session_keepalive(w.side[1].s, 0);
    CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.type == XS_KEEPALIVE);
    CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.type == XS_ACK && h.channel == 0 && h.offset == 100);
    CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.type == XS_DATA && h.channel == 1);
    CHECK(xs_session_abort(w.side[1].s, 8, (const uint8_t *)"stopped", 7) == XS_OK);
    CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.type == XS_ABORT && h.length == 9);
    CHECK(xs_session_take(w.side[0].s, 0, &h, p) == XS_OK && xs_session_aborted(w.side[0].s));
    CHECK(xs_session_text(w.side[0].s, text, sizeof(text)) == 7 && memcmp(text, "stopped", 7) == 0);
    CHECK(!xs_session_next(w.side[1].s, 0, &h, &p));
    close_world(&w);
}

/* F8: a sender never has more than a window of unacknowledged bytes, and ACKs come for the first byte and at a sixteenth of the window. */
static void windows(void)
{
    struct world w;
    struct xs_header h;
    const uint8_t *p;

    open_world(&w, 16000, 1);
    give(&w, 0, 0, 100000);
    CHECK(w.side[0].in[0] == 16000);
    seal(&w, 0, 9);
    CHECK(take(&w, 0, WIRE) == XS_OK);
    CHECK(!xs_session_next(w.side[1].s, 0, &h, &p));
    deliver(&w, 1, 0, 1);
    CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.type == XS_ACK && h.offset == 1);
    deliver(&w, 1, 0, 999);
    CHECK(!xs_session_next(w.side[1].s, 0, &h, &p) && !xs_session_ack_waits(w.side[1].s));
    deliver(&w, 1, 0, 1);
    CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.type == XS_ACK && h.offset == 1001);
    CHECK(xs_session_take(w.side[0].s, 0, &h, p) == XS_OK);
    give(&w, 0, 0, 100000);
    CHECK(w.side[0].in[0] == 17001);
    seal(&w, 0, 9);
    while (take(&w, 0, WIRE) == XS_OK)
        continue;
    deliver(&w, 1, 0, 15999);
    CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.offset == 17000);
    deliver(&w, 1, 0, 1);
    CHECK(!xs_session_next(w.side[1].s, 0, &h, &p) && xs_session_ack_waits(w.side[1].s));
    xs_session_ack_now(w.side[1].s);
    CHECK(!xs_session_ack_waits(w.side[1].s));
    CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.offset == 17001);
    close_world(&w);
}

/* Before the first acknowledgement a source takes two heads' worth of channel 0, whatever the window; and then the window. */
static void unjudged(void)
{
    enum { WINDOW = 16 << 20, FIRST = 2 * XS_XL_HEAD_MAX };
    struct world w;
    struct xs_header h;
    const uint8_t *p;

    open_world(&w, WINDOW, 1);
    give(&w, 0, 0, 2 * WINDOW);
    CHECK(w.side[0].in[0] >= FIRST && w.side[0].in[0] < FIRST + XS_CHUNK);
    seal(&w, 0, 99);
    while (take(&w, 0, WIRE) == XS_OK)
        continue;
    deliver(&w, 1, 0, 1);
    CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.type == XS_ACK && h.offset == 1);
    CHECK(xs_session_take(w.side[0].s, 0, &h, p) == XS_OK);
    give(&w, 0, 0, 2 * WINDOW);
    CHECK(w.side[0].in[0] == WINDOW + 1);
    close_world(&w);
}

/* What xl has been given by others counts as delivered: the head alone, once it is there whole, and before anything has been delivered. */
static void skipped_head(void)
{
    static const char json[] = "{}", more[] = "LibxlFmt";
    uint8_t head[48 + 4 + sizeof(json)] = "Xen saved domain, xl format\n \0 \r";
    struct world w;
    struct xs_header h;
    const uint8_t *p;
    size_t len;

    memcpy(head + 32, (const uint32_t[]){ 0x01020304, 3, 0, 4 + sizeof(json), sizeof(json) }, 20);
    memcpy(head + 52, json, sizeof(json));
    for (int early = 0; early < 2; early++) {
        open_world(&w, 1 << 20, 1);
        CHECK(xs_session_skip_head(w.side[1].s) == XS_EARGUMENT && xs_session_skip_head(w.side[0].s) == XS_EARGUMENT);
        memcpy(xs_session_input(w.side[0].s, 0, &len), head, sizeof(head));
        memcpy(xs_session_input(w.side[0].s, 0, &len) + sizeof(head), more, sizeof(more));
        xs_session_input_commit(w.side[0].s, 0, sizeof(head) + sizeof(more));
        CHECK(xs_xlphase_next(xs_session_phases(w.side[0].s)) == XS_PHASE_HEAD);
        CHECK(seal(&w, 0, 9) == 1 && take(&w, 0, WIRE) == XS_OK);
        CHECK(xs_xlphase_next(xs_session_phases(w.side[1].s)) == XS_PHASE_HEAD);
        CHECK(xs_session_skip_head(w.side[0].s) == XS_EARGUMENT);
        if (early) {
            xs_session_delivered(w.side[1].s, 0, 1);
            CHECK(xs_session_skip_head(w.side[1].s) == XS_EARGUMENT);
        } else {
            CHECK(xs_session_skip_head(w.side[1].s) == XS_OK && xs_session_skip_head(w.side[1].s) == XS_EARGUMENT);
            CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.type == XS_ACK && h.offset == sizeof(head));
            p = xs_session_output(w.side[1].s, 0, &len);
            CHECK(len == sizeof(more) && memcmp(p, more, sizeof(more)) == 0);
        }
        close_world(&w);
    }
}

/* A channel whose reader has gone is discarded and acknowledged, so that the session comes to its end. */
static void broken_output(void)
{
    struct world w;
    struct xs_header h;
    const uint8_t *p;
    struct xs_stats st;
    size_t len;

    open_world(&w, 1 << 20, 1);
    give(&w, 0, 0, 5000);
    seal(&w, 0, 9);
    CHECK(take(&w, 0, WIRE) == XS_OK);
    CHECK(xs_session_skip_head(w.side[1].s) == XS_EARGUMENT);
    xs_session_output_broken(w.side[1].s, 0);
    CHECK(xs_session_output(w.side[1].s, 0, &len) == NULL);
    CHECK(xs_session_skip_head(w.side[1].s) == XS_OK);
    give(&w, 0, 0, 900000);
    xs_session_input_end(w.side[0].s, 0);
    seal(&w, 0, 9);
    while (take(&w, 0, WIRE) == XS_OK)
        continue;
    CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.type == XS_ACK && h.offset == 905000);
    CHECK(xs_session_output_over(w.side[1].s, 0));
    xs_session_stats(w.side[1].s, &st);
    CHECK(st.sink_broken[0] && st.delivered[0] == 905000);
    close_world(&w);
}

/* A short session with every bit of its bytes flipped in turn: an error, and only whole frames before it are released. */
static void every_bit(void)
{
    static const size_t part[3] = { 20, 1, 30 };
    size_t total = 0, whole;

    for (size_t bit = 0; total == 0 || bit < total * 8; bit++) {
        struct world w;
        int rc;

        open_world(&w, 1 << 20, 1);
        for (int i = 0; i < 3; i++) {
            give(&w, 0, 0, part[i]);
            seal(&w, 0, 1);
        }
        xs_session_input_end(w.side[0].s, 0);
        seal(&w, 0, 1);
        total = w.side[0].tail;
        memset(w.side[0].wire + total, 0, FRAME_MAX);
        w.side[0].wire[bit / 8] ^= (uint8_t)(1U << bit % 8);
        w.side[0].tail = WIRE;          /* what follows is there, however long a flipped length says */
        while ((rc = take(&w, 0, WIRE)) == XS_OK)
            continue;
        CHECK(rc == XS_ETAG || rc == XS_EHEADER);
        deliver(&w, 1, 0, WIRE);
        whole = bit / 8 < 52 ? 0 : bit / 8 < 85 ? 20 : bit / 8 < 147 ? 21 : 51;
        CHECK(w.side[1].out[0] == whole && !xs_session_output_over(w.side[1].s, 0));
        close_world(&w);
    }
}

int main(void)
{
    RUN(random_streams);
    RUN(lost_links);
    RUN(rules);
    RUN(ends);
    RUN(priorities);
    RUN(windows);
    RUN(unjudged);
    RUN(skipped_head);
    RUN(broken_output);
    RUN(every_bit);
    return 0;
}
