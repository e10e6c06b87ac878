/* Several lanes a session (J5 to J8): two session cores connected in memory by up to eight of them, no descriptors, no time, no threads. */
#include "harness.h"

#include "../../csrc/fifo.h"
#include "../../csrc/session.h"
#include "../../csrc/util.h"
#include "../../csrc/xlphase.h"

enum { WIRE = 3 << 20, FRAME_MAX = XS_HEADER_LEN + XS_PAYLOAD_MAX + XS_TAG_LEN };

static const int sender_of[3] = { 0, 1, 1 };

struct way {                    /* one direction of a lane */
    struct xs_link *seals, *opens;
    uint8_t *wire;
    size_t head, tail;
    int cut;                    /* nothing more gets onto the wire */
};

struct side {
    struct xs_session *s;
    uint64_t in[3], out[3];     /* test-stream bytes given to be sent, and delivered */
    unsigned there;             /* the lanes that this side has, a bit each */
};

struct world {
    struct side side[2];
    struct way way[2][XS_LANES_MAX];    /* [who sends][lane] */
    uint64_t seed;
    unsigned again;             /* frames seen that were sent anew */
};

static void free_way(struct way *way)
{
    xs_link_free(way->seals);
    xs_link_free(way->opens);
    free(way->wire);
    memset(way, 0, sizeof(*way));
}

/* A lane between the two, with keys of its own. */
static void join(struct world *w, unsigned lane)
{
    for (int who = 0; who < 2; who++) {
        struct way *way = &w->way[who][lane];
        struct xs_link_keys k;

        free_way(way);
        memset(&k, 1 + who + 2 * (int)lane, sizeof(k));
        way->seals = xs_link_new(NULL, &k, 1000000);
        way->opens = xs_link_new(NULL, &k, 1000000);
        way->wire = malloc(WIRE);
        xs_session_attach(w->side[who].s, lane);
        w->side[who].there |= 1U << lane;
    }
}

static void open_world(struct world *w, uint32_t window, unsigned lanes, uint64_t seed)
{
    const uint32_t windows[3] = { window, window, window };

    memset(w, 0, sizeof(*w));
    w->seed = seed;
    for (int i = 0; i < 2; i++)
        w->side[i].s = xs_session_new(i == 0 ? XS_SOURCE : XS_DESTINATION, windows, windows);
    for (unsigned l = 0; l < lanes; l++)
        join(w, l);
}

static void close_world(struct world *w)
{
    for (int i = 0; i < 2; i++) {
        xs_session_free(w->side[i].s);
        for (unsigned l = 0; l < XS_LANES_MAX; l++)
            free_way(&w->way[i][l]);
    }
}

/* Put up to n bytes of the test stream into a channel. */
static void give(struct world *w, unsigned channel, size_t n)
{
    struct side *me = &w->side[sender_of[channel]];
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

/* Seal at most n frames onto a lane, while it has room. */
static int seal(struct world *w, int who, unsigned lane, int n)
{
    struct way *way = &w->way[who][lane];
    struct xs_header h;
    const uint8_t *payload;
    int count = 0;

    if ((w->side[who].there & 1U << lane) == 0)
        return 0;
    while (count < n && way->tail + FRAME_MAX < WIRE) {
        int offered = xs_session_offer(w->side[who].s, lane) != XS_OFFER_NONE;

        CHECK(xs_session_next(w->side[who].s, lane, &h, &payload) == offered);
        if (!offered)
            break;
        CHECK(xs_link_seal(way->seals, &h, payload, way->wire + way->tail) == XS_OK);
        xs_session_sealed(w->side[who].s, lane);
        w->again += h.flags == XS_AGAIN;
        if (!way->cut)
            way->tail += XS_HEADER_LEN + h.length + XS_TAG_LEN;
        count++;
    }
    return count;
}

/* The other side takes one frame off a lane. Returns its status, or 1 if none is whole. */
static int take(struct world *w, int from, unsigned lane)
{
    struct way *way = &w->way[from][lane];
    struct xs_session *s = w->side[1 - from].s;
    uint8_t *frame = way->wire + way->head, *place;
    size_t have = way->tail - way->head, len;
    struct xs_header h;
    int rc;

    if ((w->side[1 - from].there & 1U << lane) == 0 || have < XS_HEADER_LEN)
        return 1;
    CHECK(xs_header_parse(frame, &h) == XS_OK);
    len = XS_HEADER_LEN + h.length + XS_TAG_LEN;
    if (have < len)
        return 1;
    CHECK(!xs_session_contended(s, lane, &h));
    place = xs_session_place(s, lane, &h);
    if (place == NULL)
        place = frame + XS_HEADER_LEN;
    rc = xs_link_open(way->opens, frame, &h, place);
    if (rc == XS_OK)
        rc = xs_session_take(s, lane, &h, place);
    way->head += len;
    if (way->head == way->tail)
        way->head = way->tail = 0;
    return rc;
}

/* Deliver at most n bytes of a channel, and check them. */
static void deliver(struct world *w, unsigned channel, size_t n)
{
    struct side *me = &w->side[1 - sender_of[channel]];
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

/* A lane is cut: of what is on its way in either direction a part may still arrive. */
static void cut(struct world *w, unsigned lane)
{
    for (int who = 0; who < 2; who++) {
        struct way *way = &w->way[who][lane];

        way->tail = way->head + random_below(&w->seed, way->tail - way->head + 1);
        way->cut = 1;
    }
}

/* A side finds that a lane is cut, whether or not it has read all that came. */
static void notice(struct world *w, int who, unsigned lane)
{
    if (w->way[who][lane].cut && (w->side[who].there & 1U << lane) != 0) {
        w->side[who].there &= ~(1U << lane);
        xs_session_lost(w->side[who].s, lane);
    }
}

/* One random step. total: how much each channel carries. */
static void random_step(struct world *w, const uint64_t total[3])
{
    unsigned c = (unsigned)random_below(&w->seed, 3), lane = (unsigned)random_below(&w->seed, XS_LANES_MAX);
    int who = (int)random_below(&w->seed, 2);
    struct side *from = &w->side[sender_of[c]];
    size_t big = random_below(&w->seed, 3) == 0 ? 3 << 20 : 5000;

    switch (random_below(&w->seed, 6)) {
    case 0:
        give(w, c, xs_min(random_below(&w->seed, big), (size_t)(total[c] - from->in[c])));
        if (from->in[c] == total[c])
            xs_session_input_end(from->s, c);
        break;
    case 1:
        seal(w, who, lane, (int)random_below(&w->seed, 4));
        break;
    case 2:
    case 3:
        for (size_t n = random_below(&w->seed, 5); n > 0; n--)
            CHECK(take(w, who, lane) >= 0);
        break;
    case 4:
        deliver(w, c, random_below(&w->seed, big));
        break;
    case 5:
        if (random_below(&w->seed, 4) == 0)
            xs_session_ack_now(w->side[who].s);
        if (random_below(&w->seed, 20) == 0 && (w->side[who].there & 1U << lane) != 0)
            xs_session_keepalive(w->side[who].s, lane);
        if (random_below(&w->seed, 3) == 0)
            notice(w, who, lane);
        break;
    }
}

/* Random fragments over lanes of which now and then one is cut, and found to be by each end in its own time; the last ones too, if all is
 * set. Returns how many frames were sent anew. */
static unsigned run_random(uint32_t window, unsigned lanes, uint64_t seed, int cuts, int all)
{
    const uint64_t total[3] = { 9000000 + seed % 977, 150000, 40001 };
    int exited = 0, left = cuts;
    struct world w;
    struct xs_stats st;

    open_world(&w, window, lanes, seed);
    for (int step = 0; !xs_session_exited(w.side[0].s); step++) {
        unsigned lane = (unsigned)random_below(&w.seed, XS_LANES_MAX), both = w.side[0].there & w.side[1].there, none;

        CHECK(step < 3000000);
        random_step(&w, total);
        if (!exited && w.side[1].out[0] == total[0]) {
            exited = 1;
            CHECK(xs_session_exit(w.side[1].s, 0, 42) == XS_OK);
        }
        none = ~(w.side[0].there | w.side[1].there);
        if (left > 0 && random_below(&w.seed, 40) == 0 && (both & 1U << lane) != 0 && !w.way[0][lane].cut
            && (all || (both & ~(1U << lane) & (w.way[0][(lane + 1) % 8].cut ? 0U : ~0U)) != 0)) {
            left--;
            cut(&w, lane);
        }
        if (random_below(&w.seed, 40) == 0 && (none & 1U << lane) != 0 && lane < lanes)
            join(&w, lane);
    }
    for (unsigned c = 0; c < 3; c++)
        deliver(&w, c, 1 << 20);
    for (unsigned c = 0; c < 3; c++)
        CHECK(w.side[1 - sender_of[c]].out[c] == total[c]);
    xs_session_stats(w.side[0].s, &st);
    CHECK(st.exit_kind == 0 && st.exit_value == 42 && st.delivered[1] == total[1] && st.channel_bytes[0] == total[0]);
    CHECK(cuts > 0 || w.again == 0);
    close_world(&w);
    return w.again;
}

/* Any number of lanes, any interleaving, several windows: every byte once and in order. */
static void random_lanes(void)
{
    for (uint64_t seed = 1; seed <= 8; seed++)
        run_random(seed % 3 == 0 ? 70000 : seed % 3 == 1 ? 4 << 20 : 64 << 20, 2 + (unsigned)seed % 7, seed, 0, 0);
}

/* The same with lanes cut at any moment, at which either end may notice it first, and others made. */
static void lost_lanes(void)
{
    unsigned again = 0;

    for (uint64_t seed = 100; seed < 112; seed++)
        again += run_random(seed % 2 == 0 ? 700000 : 8 << 20, 2 + (unsigned)seed % 7, seed, 30, seed % 3 == 0);
    CHECK(again > 50);
}

/* Feed a frame, made by hand and sealed well, to a session. */
static int feed(struct xs_session *s, unsigned lane, struct xs_header h)
{
    static const uint8_t payload[XS_PAYLOAD_MAX];

    return xs_session_take(s, lane, &h, payload);
}

struct step {
    unsigned lane;
    uint8_t type, flags;
    uint32_t length;
    uint64_t offset;
    int rc;                     /* XS_OK, or what it must be refused with */
};

/* Feed steps to a destination with three lanes and a window of four stripes. */
static void run_steps(const struct step *step, int n)
{
    const uint32_t windows[3] = { 4 * XS_CHUNK, 1 << 20, 1 << 20 };
    struct xs_session *s = xs_session_new(XS_DESTINATION, windows, windows);

    for (unsigned l = 0; l < 3; l++)
        xs_session_attach(s, l);
    for (int i = 0; i < n; i++) {
        struct xs_header h = { .type = step[i].type, .flags = step[i].flags, .length = step[i].length, .offset = step[i].offset };

        CHECK(feed(s, step[i].lane, h) == step[i].rc);
    }
    xs_session_free(s);
}

#define STEPS(...)                                                                                    \
    run_steps((const struct step[]){ __VA_ARGS__ }, (int)(sizeof((const struct step[]){ __VA_ARGS__ }) / sizeof(struct step)))

/* J5 to J7, kept and broken by a peer who has the keys: holes, overlaps, stripes crossed, ends at the wrong place. */
static void rules(void)
{
    const uint32_t c = XS_CHUNK;
    const uint8_t d = XS_DATA, e = XS_END, a = XS_AGAIN;
    const int no = XS_EPROTOCOL;

    STEPS({ 0, d, 0, 5, 0, 0 }, { 1, d, 0, 5, c, 0 }, { 2, d, 0, c, 2 * c, 0 }, { 0, d, 0, c - 5, 5, 0 }, { 1, d, 0, c - 5, c + 5, 0 });
    STEPS({ 0, d, 0, 5, 1, no });                               /* a hole, in the first stripe and in another */
    STEPS({ 0, d, 0, 5, c + 1, no });
    STEPS({ 1, d, 0, 5, c, 0 }, { 1, d, 0, 5, c + 6, no });
    STEPS({ 0, d, 0, 5, 0, 0 }, { 1, d, 0, 5, 0, no });         /* twice, over the same lane or another */
    STEPS({ 1, d, 0, 5, c, 0 }, { 0, d, 0, 5, c, no });
    STEPS({ 1, d, 0, 5, c, 0 }, { 1, d, 0, 9, c + 4, no });
    STEPS({ 0, d, 0, c, c - 1, no });                           /* across two stripes */
    STEPS({ 0, d, 0, c, 0, 0 }, { 1, d, 0, c + 1, c, no });
    STEPS({ 0, d, 0, c, 4 * c - 1, no });                       /* F8 */
    STEPS({ 0, d, 0, c, 3 * c, 0 }, { 0, d, 0, 1, 4 * c, no });
    STEPS({ 0, d, 0, 1, UINT64_MAX, no });
    STEPS({ 0, d, a, 1, UINT64_MAX - 1, no });
    STEPS({ 0, d, 0, 9, 0, 0 }, { 1, d, a, 5, 0, 0 }, { 1, d, a, 5, 5, 0 }, { 1, d, 0, 5, 10, 0 });    /* again: what is known is discarded */
    STEPS({ 0, d, 0, 9, 0, 0 }, { 1, d, a, 5, 10, no });        /* ... and no hole either */
    STEPS({ 0, d, 0, 9, c, 0 }, { 1, d, a, c, c, 0 }, { 0, d, 0, 9, c + 9, 0 });        /* J6: the lost lane was overtaken */
    STEPS({ 0, d, 0, 9, c, 0 }, { 1, d, a, c, c, 0 }, { 1, d, 0, 9, c + 9, no });       /* ... which excuses nobody else */
    STEPS({ 0, d, 0, c, c, 0 }, { 1, e, 0, 0, c, no });         /* J7 */
    STEPS({ 0, d, 0, c, c, 0 }, { 1, e, 0, 0, 2 * c, 0 }, { 2, d, 0, 5, 2 * c, no });
    STEPS({ 1, e, 0, 0, 2 * c, 0 }, { 0, d, 0, c, c, 0 }, { 2, d, 0, c, 0, 0 });
    STEPS({ 1, e, 0, 0, 2 * c, 0 }, { 1, d, 0, c, c, no });     /* nothing new behind END over its own lane */
    STEPS({ 1, e, 0, 0, 2 * c, 0 }, { 1, d, a, c, c, 0 }, { 1, e, 0, 0, 2 * c, no });
    STEPS({ 1, e, 0, 0, 2 * c, 0 }, { 2, e, 0, 0, 2 * c, 0 });
    STEPS({ 1, e, 0, 0, 2 * c, 0 }, { 2, e, 0, 0, c, no });
    STEPS({ 1, e, 0, 0, 5 * c, no });
}

/* Nothing has ended, and no EXIT is good, before every byte below END's offset is there. */
static void ends(void)
{
    struct world w;

    open_world(&w, 4 << 20, 3, 1);
    give(&w, 0, 2 * XS_CHUNK);
    xs_session_input_end(w.side[0].s, 0);
    CHECK(seal(&w, 0, 1, 1) == 1 && seal(&w, 0, 0, 9) == 2);    /* the first stripe on lane 1, the second and END on lane 0 */
    CHECK(take(&w, 0, 0) == XS_OK && take(&w, 0, 0) == XS_OK);
    CHECK(!xs_session_output_over(w.side[1].s, 0));
    deliver(&w, 0, WIRE);
    CHECK(w.side[1].out[0] == 0);
    CHECK(take(&w, 0, 1) == XS_OK);
    deliver(&w, 0, WIRE);
    CHECK(w.side[1].out[0] == 2 * XS_CHUNK && xs_session_output_over(w.side[1].s, 0));
    for (unsigned c = 1; c < 3; c++)
        xs_session_input_end(w.side[1].s, c);
    CHECK(xs_session_exit(w.side[1].s, 0, 7) == XS_OK);
    xs_session_ack_now(w.side[1].s);
    CHECK(seal(&w, 1, 1, 9) == 0 && seal(&w, 1, 0, 9) == 4 && xs_session_exit_sent(w.side[1].s, 0));
    cut(&w, 0);
    w.way[1][0].tail = w.way[1][0].head;        /* none of it came */
    notice(&w, 1, 0);
    CHECK(seal(&w, 1, 2, 9) == 0 && seal(&w, 1, 1, 9) == 4 && xs_session_exit_sent(w.side[1].s, 1));
    while (take(&w, 1, 1) == XS_OK)
        CHECK(xs_session_exited(w.side[0].s) == (w.way[1][1].tail == 0));
    CHECK(xs_session_exited(w.side[0].s));
    close_world(&w);
}

/* ABORT goes over every lane; the first to come counts. */
static void aborts(void)
{
    struct world w;

    open_world(&w, 4 << 20, 3, 1);
    give(&w, 0, 3 * XS_CHUNK);
    CHECK(xs_session_abort(w.side[0].s, 8, (const uint8_t *)"stopped", 7) == XS_OK);
    for (unsigned l = 0; l < 3; l++)
        CHECK(seal(&w, 0, l, 9) == 1);
    CHECK(take(&w, 0, 2) == XS_OK && xs_session_aborted(w.side[1].s));
    close_world(&w);
}

/* What a lane still reads to seal it stays where it is, though a copy that came over a lost lane has been acknowledged. */
static void acknowledged_while_sealed(void)
{
    const uint32_t windows[3] = { 4 * XS_CHUNK, 1 << 20, 1 << 20 };
    struct xs_session *s = xs_session_new(XS_SOURCE, windows, windows);
    const uint8_t *first, *again;
    struct xs_header h;
    size_t len;

    xs_session_attach(s, 0);
    xs_session_attach(s, 1);
    memset(xs_session_input(s, 0, &len), 'a', XS_CHUNK);
    xs_session_input_commit(s, 0, XS_CHUNK);
    CHECK(xs_session_next(s, 0, &h, &first) && h.length == XS_CHUNK && h.flags == 0);
    xs_session_lost(s, 0);
    CHECK(xs_session_next(s, 1, &h, &again) && again == first && h.length == XS_CHUNK && h.flags == XS_AGAIN);
    CHECK(feed(s, 1, (struct xs_header){ .type = XS_ACK, .offset = XS_CHUNK }) == XS_OK);
    for (int i = 0; i < 3; i++) {
        uint8_t *to = xs_session_input(s, 0, &len);

        CHECK(to != NULL && to != again);
        memset(to, 'b', len);
        xs_session_input_commit(s, 0, len);
    }
    CHECK(xs_session_input(s, 0, &len) == NULL && again[0] == 'a' && again[XS_CHUNK - 1] == 'a');
    xs_session_sealed(s, 1);
    CHECK(xs_session_input(s, 0, &len) == again);
    xs_session_free(s);
}

/* A frame holds bytes that were sent before, or new ones, and never both (J6). */
static void again_and_new(void)
{
    struct world w;
    struct xs_header h;
    const uint8_t *p;

    open_world(&w, 4 << 20, 2, 1);
    give(&w, 0, 100);
    CHECK(seal(&w, 0, 0, 9) == 1);
    xs_session_lost(w.side[0].s, 0);
    give(&w, 0, 50);
    CHECK(xs_session_unsent(w.side[0].s, 0) == 150);
    CHECK(xs_session_next(w.side[0].s, 1, &h, &p) && h.flags == XS_AGAIN && h.offset == 0 && h.length == 100);
    CHECK(xs_session_next(w.side[0].s, 1, &h, &p) && h.flags == 0 && h.offset == 100 && h.length == 50);
    close_world(&w);
}

/* What brings a phase goes out, and is delivered, when the phase has been told of; signs of life do not wait. */
static void phases_first(void)
{
    static const char banner[] = "xl migration receiver ready, send binary domain data.\n";
    struct world w;
    struct xs_header h;
    const uint8_t *p;
    size_t len;

    open_world(&w, 4 << 20, 2, 1);
    memcpy(xs_session_input(w.side[1].s, 1, &len), banner, sizeof(banner) - 1);
    xs_session_input_commit(w.side[1].s, 1, sizeof(banner) - 1);
    xs_session_keepalive(w.side[1].s, 0);
    CHECK(xs_session_next(w.side[1].s, 0, &h, &p) && h.type == XS_KEEPALIVE);
    CHECK(xs_session_offer(w.side[1].s, 0) == XS_OFFER_NONE && !xs_session_next(w.side[1].s, 0, &h, &p));
    CHECK(xs_xlphase_next(xs_session_phases(w.side[1].s)) == XS_PHASE_BANNER);
    CHECK(seal(&w, 1, 0, 9) == 1 && take(&w, 1, 0) == XS_OK && xs_session_output(w.side[0].s, 1, &len) == NULL);
    CHECK(xs_xlphase_next(xs_session_phases(w.side[0].s)) == XS_PHASE_BANNER);
    CHECK(xs_session_output(w.side[0].s, 1, &len) != NULL && len == sizeof(banner) - 1);
    close_world(&w);
}

/* Two lanes with the same bytes: the second waits for the place in which the first is being opened, and what has come is never written over. */
static void one_place(void)
{
    const uint32_t windows[3] = { 4 * XS_CHUNK, 1 << 20, 1 << 20 };
    struct xs_session *s = xs_session_new(XS_DESTINATION, windows, windows);
    struct xs_header h = { .type = XS_DATA, .length = 100, .offset = XS_CHUNK };
    uint8_t *place, *second;

    for (unsigned l = 0; l < 3; l++)
        xs_session_attach(s, l);
    place = xs_session_place(s, 0, &h);
    CHECK(place != NULL && !xs_session_contended(s, 0, &h));
    h.flags = XS_AGAIN;
    CHECK(xs_session_contended(s, 1, &h) && xs_session_place(s, 1, &h) == NULL);
    h.offset = 0;
    CHECK(!xs_session_contended(s, 1, &h) && xs_session_place(s, 1, &h) != NULL);
    xs_session_lost(s, 1);
    h.flags = 0;
    h.offset = XS_CHUNK;
    CHECK(xs_session_take(s, 0, &h, place) == XS_OK && !xs_session_contended(s, 1, &h));
    CHECK(xs_session_place(s, 2, &h) == NULL);          /* forged, or sent twice: there is something there */
    h.offset += 100;
    second = xs_session_place(s, 2, &h);
    CHECK(second == place + 100);
    xs_session_free(s);
}

/* A peer cannot make a queue hold more than its window, whatever it leaves out. */
static void memory(void)
{
    const size_t chunks = 9;
    struct xs_pool *pool = xs_pool_new(xs_fifo_chunks((chunks - 2) * XS_CHUNK));
    struct xs_fifo *f = xs_fifo_new(pool, (chunks - 2) * XS_CHUNK);
    uint64_t seed = 3;
    size_t len;

    for (int i = 0; i < 10000; i++) {
        uint64_t offset = random_below(&seed, chunks * XS_CHUNK);
        uint8_t *place = xs_fifo_place(f, offset, &len);

        CHECK((place != NULL) == (offset < (chunks - 2) * XS_CHUNK));
        CHECK(len <= XS_CHUNK - offset % XS_CHUNK && xs_pool_mapped(pool) <= chunks);
    }
    xs_fifo_free(f);
    xs_pool_free(pool);
}

int main(void)
{
    RUN(random_lanes);
    RUN(lost_lanes);
    RUN(rules);
    RUN(ends);
    RUN(aborts);
    RUN(acknowledged_while_sealed);
    RUN(again_and_new);
    RUN(phases_first);
    RUN(one_place);
    RUN(memory);
    return 0;
}
