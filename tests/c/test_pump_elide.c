/* Elided frames (F14, F15) through the pumps: content and offsets are as without, and what has no right form releases nothing. */
#define _GNU_SOURCE
#include "rig.h"

#include "../../csrc/elide.h"
#include "../../csrc/fifo.h"
#include "../../csrc/util.h"

enum { PAGE = 4096, STREAM = 3000001, ODD = 333, WINDOW = 1 << 20 };

/* A stream of pages at odd offsets, about two in three of them zero. */
static uint8_t content(uint64_t offset)
{
    return offset < ODD || (offset - ODD) / PAGE % 7 % 3 == 1 ? (uint8_t)(1 + stream_byte(offset) % 255) : 0;
}

/* Move the stream from the source's pipe to the destination's; returns the bytes that the source has put on the line. */
static uint64_t move(struct rig *r, uint64_t from, uint64_t to)
{
    static uint8_t block[50000], got[1 << 16];
    uint64_t in = from, out = from;

    while (out < to) {
        size_t len = xs_min(sizeof(block), (size_t)(to - in));
        ssize_t n;

        for (size_t i = 0; i < len; i++)
            block[i] = content(in + i);
        n = len > 0 ? write(r->xl_in[0][1], block, len) : 0;
        CHECK(n >= 0 || errno == EAGAIN);
        in += n > 0 ? (uint64_t)n : 0;
        run(r, 0, 0), run(r, 1, 0);
        while ((n = read(r->xl_in[1][0], got, sizeof(got))) > 0) {
            for (ssize_t i = 0; i < n; i++)
                CHECK(got[i] == content(out + (uint64_t)i));
            out += (uint64_t)n;
        }
    }
    settle(r);
    CHECK(stats_of(r, 0).channel_bytes[0] == to && stats_of(r, 0).delivered[0] == to && stats_of(r, 1).delivered[0] == to);
    return stats_of(r, 0).link_sent;
}

/* The same bytes arrive with elision and without; with it a third of them are on the line, without it all. */
static void whole_stream(void)
{
    for (rig_elide = 0; rig_elide < 2; rig_elide++) {
        uint64_t sent;
        struct rig r;

        open_rig(&r, WINDOW, 0, 0);
        attach(&r);
        sent = move(&r, 0, STREAM);
        CHECK(rig_elide ? sent < STREAM / 2 : sent > STREAM);
        close_fd(&r.xl_in[0][1]);
        settle(&r);
        CHECK(r.inputs_ended == 1);
        finish(&r, 0);
        close_rig(&r);
    }
    rig_elide = 1;
}

/* A link that is lost behind elided frames: the next one sends anew, cut elsewhere, and every byte comes once. */
static void second_link(void)
{
    static uint8_t zeros[60000];
    struct rig r;
    uint8_t got[4096];
    uint64_t read_back = 0;
    ssize_t n;

    open_rig(&r, WINDOW, 0, 0);
    attach(&r);
    put(r.xl_in[0][1], (const char *)zeros, sizeof(zeros));
    run(&r, 0, 0), run(&r, 0, 0);               /* the frame is out, no ACK has come */
    run(&r, 1, 0);
    put(r.xl_in[0][1], "tail", 4);
    CHECK(shutdown(r.socket[0], SHUT_RDWR) == 0);
    settle(&r);
    CHECK(r.last[0] == XS_EV_LOST && r.last[1] == XS_EV_LOST);
    close_fd(&r.socket[0]), close_fd(&r.socket[1]);
    attach(&r);
    settle(&r);
    while ((n = read(r.xl_in[1][0], got, sizeof(got))) > 0 || stats_of(&r, 1).delivered[0] > read_back) {
        for (ssize_t i = 0; i < n; i++)
            CHECK(got[i] == (read_back + (uint64_t)i < sizeof(zeros) ? 0 : (uint8_t)"tail"[read_back + (uint64_t)i - sizeof(zeros)]));
        read_back += n > 0 ? (uint64_t)n : 0;
        settle(&r);
    }
    CHECK(read_back == sizeof(zeros) + 4);
    close_rig(&r);
}

/* Seal an elided frame with that payload, as only somebody with the keys can, and send it. */
static void send_payload(struct rig *r, const uint8_t *payload, size_t len, uint64_t offset)
{
    const struct xs_header h = { .type = XS_DATA, .flags = XS_ELIDED, .length = (uint32_t)len, .offset = offset };
    uint8_t frame[XS_HEADER_LEN + 64 + XS_TAG_LEN];

    CHECK(len <= 64 && xs_link_seal(r->peer, &h, payload, frame) == XS_OK);
    put(r->socket[0], (const char *)frame, XS_HEADER_LEN + len + XS_TAG_LEN);
}

/* Two pieces: zeros and literals of the first, zeros of the second. */
static size_t two_pieces(uint8_t *out, uint32_t zeros, uint32_t literals, uint32_t more)
{
    xs_store32(out, zeros);
    xs_store32(out + 4, literals);
    memset(out + 8, 'x', 5);
    xs_store32(out + 13, more);
    xs_store32(out + 17, 0);
    return 21;
}

/* A well-sealed frame whose payload has not the one form, or whose content breaks F6, is a fault, and nothing of it is released. */
static void malformed(void)
{
    static const struct { uint32_t zeros, literals, more; size_t cut; uint64_t offset; int lost; } c[] = {
        { 64, 5, 100, 0, 64, XS_LOST_CLOSED },                          /* the good one */
        { 63, 5, 100, 0, 64, XS_LOST_PROTOCOL },
        { 64, 5, 0, 0, 64, XS_LOST_PROTOCOL },
        { 64, 6, 100, 0, 64, XS_LOST_PROTOCOL },
        { 64, 4, 100, 0, 64, XS_LOST_PROTOCOL },
        { 64, UINT32_MAX, 100, 0, 64, XS_LOST_PROTOCOL },
        { 64, 5, 100, 1, 64, XS_LOST_PROTOCOL },
        { 64, 5, 100, 8, 64, XS_LOST_CLOSED },                          /* one piece, and good */
        { 64, 5, 100, 9, 64, XS_LOST_PROTOCOL },
        { 64, 5, 100, 21, 64, XS_LOST_PROTOCOL },                       /* empty */
        { 64, 5, UINT32_MAX, 0, 64, XS_LOST_PROTOCOL },
        { 64, 5, XS_PAYLOAD_MAX - 68, 0, 64, XS_LOST_PROTOCOL },        /* more than a frame may stand for */
        { 64, 5, 100, 0, 65, XS_LOST_PROTOCOL },                        /* F6: a gap, and again */
        { 64, 5, 100, 0, 0, XS_LOST_PROTOCOL },
    };

    for (size_t i = 0; i < sizeof(c) / sizeof(c[0]); i++) {
        uint8_t payload[64], first[8] = { 0 }, got[4096];
        size_t want = c[i].lost != XS_LOST_CLOSED ? 0 : c[i].cut == 8 ? 69 : 169;
        struct rig r;

        half_rig(&r, 0);
        first[3] = 64;
        send_payload(&r, first, 8, 0);
        send_payload(&r, payload, two_pieces(payload, c[i].zeros, c[i].literals, c[i].more) - c[i].cut, c[i].offset);
        CHECK(shutdown(r.socket[0], SHUT_WR) == 0);
        CHECK(run(&r, 1, 1000) == XS_EV_LOST && stats_of(&r, 1).lost == c[i].lost);
        CHECK(stats_of(&r, 1).channel_bytes[0] == 64 + want);
        CHECK(read(r.xl_in[1][0], got, sizeof(got)) == (ssize_t)(64 + want));
        close_rig(&r);
    }
}

/* F8 is about content: a frame that goes a byte past the window is a fault, one that fills it is none. */
static void window(void)
{
    for (int beyond = 0; beyond < 2; beyond++) {
        uint8_t payload[64] = { 0 };
        struct rig r;

        half_rig(&r, 0);
        CHECK(fcntl(r.xl_in[1][0], F_SETPIPE_SZ, PAGE) == PAGE);
        xs_store32(payload, WINDOW);
        send_payload(&r, payload, 8, 0);
        CHECK(run(&r, 1, 0) == XS_EV_TIMEOUT && stats_of(&r, 1).delivered[0] == PAGE);
        xs_store32(payload, PAGE + (uint32_t)beyond);
        send_payload(&r, payload, 8, WINDOW);
        run(&r, 1, 0);
        CHECK(stats_of(&r, 1).channel_bytes[0] == (beyond ? WINDOW : WINDOW + PAGE));
        CHECK(stats_of(&r, 1).lost == (beyond ? XS_LOST_PROTOCOL : XS_LOST_NOT));
        close_rig(&r);
    }
}

/* A frame that lies across chunks, one that fills the window, and one for a reader who has gone. */
static void places(void)
{
    for (int broken = 0; broken < 2; broken++) {
        uint8_t payload[64] = { 0 }, *got = malloc(WINDOW);
        size_t at = 0;
        struct rig r;

        half_rig(&r, 0);
        if (broken)
            close_fd(&r.xl_in[1][0]);
        xs_store32(payload, XS_CHUNK - 3);
        xs_store32(payload + 4, 1);
        payload[8] = 1;
        send_payload(&r, payload, 9, 0);
        xs_store32(payload, WINDOW - XS_CHUNK + 1);
        send_payload(&r, payload, 9, XS_CHUNK - 2);
        while (at < WINDOW && run(&r, 1, 0) == XS_EV_TIMEOUT && stats_of(&r, 1).delivered[0] < WINDOW) {
            ssize_t n = broken ? 0 : read(r.xl_in[1][0], got + at, WINDOW - at);

            at += n > 0 ? (size_t)n : 0;
        }
        CHECK(stats_of(&r, 1).channel_bytes[0] == WINDOW && stats_of(&r, 1).lost == XS_LOST_NOT);
        CHECK(stats_of(&r, 1).sink_broken[0] == broken);
        while (!broken && at < WINDOW) {
            ssize_t n = read(r.xl_in[1][0], got + at, WINDOW - at);

            CHECK(n > 0);
            at += (size_t)n;
        }
        for (size_t i = 0; i < at; i++)
            CHECK(got[i] == (i == XS_CHUNK - 3 || i == WINDOW - 1));
        free(got);
        close_rig(&r);
    }
}

/* Any bit of an elided frame flipped, its flag's too, fails as in any other; nothing is released. */
static void every_bit(void)
{
    uint8_t payload[64], frame[XS_HEADER_LEN + 21 + XS_TAG_LEN], got[64];
    const struct xs_header h = { .type = XS_DATA, .flags = XS_ELIDED, .length = 21 };

    for (size_t bit = 0; bit < sizeof(frame) * 8; bit++) {
        struct rig r;
        int lost;

        half_rig(&r, 0);
        two_pieces(payload, 64, 5, 64);
        CHECK(xs_link_seal(r.peer, &h, payload, frame) == XS_OK);
        frame[bit / 8] ^= (uint8_t)(1U << bit % 8);
        put(r.socket[0], (const char *)frame, sizeof(frame));
        CHECK(shutdown(r.socket[0], SHUT_WR) == 0);
        CHECK(run(&r, 1, 1000) == XS_EV_LOST);
        lost = stats_of(&r, 1).lost;
        CHECK(lost == XS_LOST_TAG || (lost == XS_LOST_HEADER && bit < 64) || (lost == XS_LOST_CLOSED && bit / 8 >= 4 && bit / 8 < 8));
        CHECK(stats_of(&r, 1).channel_bytes[0] == 0 && read(r.xl_in[1][0], got, sizeof(got)) < 0);
        close_rig(&r);
    }
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    RUN(whole_stream);
    RUN(second_link);
    RUN(malformed);
    RUN(window);
    RUN(places);
    RUN(every_bit);
    return 0;
}
