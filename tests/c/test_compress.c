/* Compressed payloads (F17, F18), and what is none: by themselves, then through the pumps. Without libzstd only what holds without it. */
#define _GNU_SOURCE
#include "rig.h"

#include "../../csrc/compress.h"
#include "../../csrc/fifo.h"
#include "../../csrc/util.h"

enum { STREAM = 3000001, WINDOW = 1 << 20 };

/* Text that shrinks to a third or so, from a seed. */
static void fill(uint8_t *out, size_t len, uint64_t seed)
{
    static const char *words[] = { "page", "table", "kernel", "of", "memory", "and", "  ", "0x" };

    for (size_t at = 0; at < len;) {
        const char *word = words[random_below(&seed, 8)];

        for (; *word != '\0' && at < len; word++)
            out[at++] = (uint8_t)*word;
        if (at < len)
            out[at++] = (uint8_t)random64(&seed);
    }
}

/* Every length comes back as it was; what does not shrink, or is short, is left alone. */
static void round_trips(void)
{
    static uint8_t content[XS_PAYLOAD_MAX], packed[XS_PAYLOAD_MAX], back[XS_PAYLOAD_MAX];
    static const size_t sizes[] = { 1, 255, 511, 512, 513, 65535, 65536, 65791, 65792, 65793, XS_CHUNK - 1, XS_CHUNK };
    struct xs_compress *c = xs_compress_new();
    uint64_t seed = 1;

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        size_t n;

        fill(content, sizes[i], i);
        n = xs_compress_pack(c, content, sizes[i], packed);
        if (sizes[i] < XS_COMPRESS_MIN || !xs_zstd_built_in()) {
            CHECK(n == 0);
            continue;
        }
        CHECK(n > 0 && n <= sizes[i] - sizes[i] / 16 && xs_compress_measure(packed, n) == sizes[i]);
        CHECK(xs_compress_unpack(c, packed, n, back, sizes[i]) == XS_OK && memcmp(content, back, sizes[i]) == 0);
    }
    for (size_t i = 0; i < XS_CHUNK; i++)
        content[i] = (uint8_t)random64(&seed);
    CHECK(xs_compress_pack(c, content, XS_CHUNK, packed) == 0);
    memset(content, 0, XS_CHUNK / 32);          /* half of the sixteenth that it takes */
    CHECK(xs_compress_pack(c, content, XS_CHUNK, packed) == 0);
    xs_compress_free(c);
}

/* The first bytes decide: one kind of header, and a length between the payload's own and 1 MiB, written the short way. */
static void headers(void)
{
    static const struct { uint8_t bytes[9]; size_t len, content; } c[] = {
        { { 0x28, 0xb5, 0x2f, 0xfd, 0x20, 200, 0, 0, 0 }, 9, 200 },
        { { 0x28, 0xb5, 0x2f, 0xfd, 0x60, 0xff, 0xff, 0, 0 }, 9, 65791 },
        { { 0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 1, 0 }, 9, 0 },                 /* 65536 fits two bytes */
        { { 0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 1, 1, 0 }, 9, 65792 },
        { { 0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0x10, 0 }, 9, 1 << 20 },
        { { 0x28, 0xb5, 0x2f, 0xfd, 0xa0, 1, 0, 0x10, 0 }, 9, 0 },              /* more than 1 MiB */
        { { 0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0xff, 0xff, 0xff, 0xff }, 9, 0 },
        { { 0x28, 0xb5, 0x2f, 0xfd, 0x20, 9, 0, 0, 0 }, 9, 0 },                 /* not shorter than the payload */
        { { 0x28, 0xb5, 0x2f, 0xfd, 0x20, 200, 0, 0, 0 }, 8, 0 },
        { { 0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 16, 0, 0 }, 9, 0 },                /* eight bytes of length */
        { { 0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0, 0, 0 }, 9, 0 },              /* a window instead of a length */
        { { 0x28, 0xb5, 0x2f, 0xfd, 0x40, 0xff, 0, 16, 0 }, 9, 0 },             /* a huge window and a length */
        { { 0x28, 0xb5, 0x2f, 0xfd, 0x24, 200, 0, 0, 0 }, 9, 0 },               /* a checksum */
        { { 0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 200, 0, 0 }, 9, 0 },               /* a dictionary */
        { { 0x28, 0xb5, 0x2f, 0xfd, 0x28, 200, 0, 0, 0 }, 9, 0 },               /* reserved and unused bits */
        { { 0x28, 0xb5, 0x2f, 0xfd, 0x30, 200, 0, 0, 0 }, 9, 0 },
        { { 0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0 }, 9, 0 },                    /* a frame to be skipped */
        { { 0x27, 0xb5, 0x2f, 0xfd, 0x20, 200, 0, 0, 0 }, 9, 0 },               /* the format of 0.7 */
    };

    for (size_t i = 0; i < sizeof(c) / sizeof(c[0]); i++)
        CHECK(xs_compress_measure(c[i].bytes, c[i].len) == c[i].content);
    CHECK(xs_compress_measure(NULL, 0) == 0);
}

/* The payload of 1000 bytes of text, in a buffer that ends with it. */
static uint8_t *packed_text(struct xs_compress *c, size_t *len)
{
    uint8_t content[1000], out[1000], *copy;

    fill(content, sizeof(content), 7);
    *len = xs_compress_pack(c, content, sizeof(content), out);
    CHECK(*len > 0 && (copy = malloc(*len)) != NULL);
    memcpy(copy, out, *len);
    return copy;
}

/* Whatever is done to a payload, it is refused or makes as many bytes as it says: never more, never fewer. */
static void damage(void)
{
    struct xs_compress *c = xs_compress_new();
    size_t len;
    uint8_t *payload = packed_text(c, &len);
    unsigned refused = 0;

    for (size_t bit = 0; bit < 8 * len; bit++) {
        size_t content;

        payload[bit / 8] ^= (uint8_t)(1U << bit % 8);
        content = xs_compress_measure(payload, len);
        if (content > 0) {
            uint8_t *out = malloc(content);     /* so that ASan sees the first byte beyond */

            CHECK(out != NULL);
            refused += xs_compress_unpack(c, payload, len, out, content) != XS_OK;
            free(out);
        }
        payload[bit / 8] ^= (uint8_t)(1U << bit % 8);
    }
    CHECK(refused > 100);
    for (size_t cut = 1; cut < len; cut++) {
        uint8_t out[1000];

        CHECK(xs_compress_measure(payload, len - cut) != 1000 || xs_compress_unpack(c, payload, len - cut, out, 1000) == XS_EPROTOCOL);
    }
    free(payload);
    xs_compress_free(c);
}

/* Move the stream from the source's pipe to the destination's; returns the bytes that the source has put on the line. */
static uint64_t move(struct rig *r, const uint8_t *stream, size_t len)
{
    static uint8_t got[1 << 16];
    size_t in = 0, out = 0;

    while (out < len) {
        ssize_t n = in < len ? write(r->xl_in[0][1], stream + in, xs_min(50000, len - in)) : 0;

        CHECK(n >= 0 || errno == EAGAIN);
        in += n > 0 ? (size_t)n : 0;
        run(r, 0, 0), run(r, 1, 0);
        while ((n = read(r->xl_in[1][0], got, sizeof(got))) > 0) {
            CHECK(memcmp(got, stream + out, (size_t)n) == 0);
            out += (size_t)n;
        }
    }
    settle(r);
    return stats_of(r, 0).link_sent;
}

/* The same bytes arrive with compression and without; with it half of them are on the line, or fewer. */
static void whole_stream(void)
{
    uint8_t *stream = malloc(STREAM);

    CHECK(stream != NULL);
    fill(stream, STREAM, 3);
    for (rig_compress = XS_COMPRESS_OFF; rig_compress <= XS_COMPRESS_ZSTD; rig_compress++) {
        struct rig r;
        uint64_t sent;

        open_rig(&r, WINDOW, 0, 0);
        attach(&r);
        sent = move(&r, stream, STREAM);
        if (rig_compress == XS_COMPRESS_OFF)
            CHECK(sent > STREAM);
        else if (rig_compress == XS_COMPRESS_ZSTD && xs_zstd_built_in())
            CHECK(sent < STREAM / 3 * 2);
        close_fd(&r.xl_in[0][1]);
        settle(&r);
        CHECK(r.inputs_ended == 1);
        finish(&r, 0);
        close_rig(&r);
    }
    rig_compress = XS_COMPRESS_ZSTD;
    free(stream);
}

/* Seal a compressed frame with that payload, as only somebody with the keys can, and send it. */
static void send_payload(struct rig *r, const uint8_t *payload, size_t len, uint64_t offset)
{
    const struct xs_header h = { .type = XS_DATA, .flags = XS_COMPRESSED, .length = (uint32_t)len, .offset = offset };
    uint8_t frame[XS_HEADER_LEN + 4096 + XS_TAG_LEN];

    CHECK(len <= 4096 && xs_link_seal(r->peer, &h, payload, frame) == XS_OK);
    put(r->socket[0], (const char *)frame, XS_HEADER_LEN + len + XS_TAG_LEN);
}

/* What becomes of one payload behind 10 bytes that were delivered: the reason for which the link is lost. Nothing of a bad one is released. */
static int outcome(const uint8_t *payload, size_t len, uint64_t offset, size_t released)
{
    static uint8_t got[1 << 20];
    const struct xs_header first = { .type = XS_DATA, .length = 10 };
    uint8_t frame[XS_HEADER_LEN + 10 + XS_TAG_LEN];
    struct rig r;
    int lost;

    half_rig(&r, 0);
    CHECK(xs_link_seal(r.peer, &first, (const uint8_t *)"0123456789", frame) == XS_OK);
    put(r.socket[0], (const char *)frame, sizeof(frame));
    send_payload(&r, payload, len, offset);
    CHECK(shutdown(r.socket[0], SHUT_WR) == 0);
    CHECK(run(&r, 1, 1000) == XS_EV_LOST);
    lost = stats_of(&r, 1).lost;
    CHECK(stats_of(&r, 1).channel_bytes[0] == 10 + released);
    CHECK(read(r.xl_in[1][0], got, sizeof(got)) == (ssize_t)(10 + released));
    close_rig(&r);
    return lost;
}

/* A well-sealed frame with a payload of another form, or whose content breaks F6 or F8, is a fault, and nothing of it is released. */
static void malformed(void)
{
    static const uint8_t skip[] = { 0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0 };
    /* A block of one byte repeated 1000 times (RLE): 14 bytes; the length stands in bytes 5 and 6, the block's header in 7 to 9. */
    static const uint8_t rle[] = { 0x28, 0xb5, 0x2f, 0xfd, 0x60, 0xe8, 0x02, 0x43, 0x1f, 0x00, 'x' };
    struct xs_compress *c = xs_compress_new();
    uint8_t p[4096];
    size_t len;
    uint8_t *good = packed_text(c, &len);

    CHECK(outcome(good, len, 10, 1000) == XS_LOST_CLOSED);
    CHECK(outcome(rle, sizeof(rle), 10, 1000) == XS_LOST_CLOSED);
    CHECK(outcome(good, len, 11, 0) == XS_LOST_PROTOCOL);       /* F6: a gap, and again */
    CHECK(outcome(good, len, 0, 0) == XS_LOST_PROTOCOL);
    CHECK(outcome(good, len - 1, 10, 0) == XS_LOST_PROTOCOL);
    memcpy(p, good, len);
    p[len] = 0;
    CHECK(outcome(p, len + 1, 10, 0) == XS_LOST_PROTOCOL);      /* something behind it */
    memcpy(p + len, skip, sizeof(skip));
    CHECK(outcome(p, len + sizeof(skip), 10, 0) == XS_LOST_PROTOCOL);
    memcpy(p, skip, sizeof(skip));
    memcpy(p + sizeof(skip), good, len);
    CHECK(outcome(p, len + sizeof(skip), 10, 0) == XS_LOST_PROTOCOL);
    memcpy(p, rle, sizeof(rle));
    memcpy(p + sizeof(rle), rle, sizeof(rle));
    CHECK(outcome(p, 2 * sizeof(rle), 10, 0) == XS_LOST_PROTOCOL);      /* two frames */
    for (int lie = -1; lie <= 1; lie += 2) {                    /* more or less than it says */
        memcpy(p, rle, sizeof(rle));
        p[5] = (uint8_t)(p[5] + lie);
        CHECK(outcome(p, sizeof(rle), 10, 0) == XS_LOST_PROTOCOL);
        memcpy(p, good, len);
        p[5] = (uint8_t)(p[5] + lie);
        CHECK(outcome(p, len, 10, 0) == XS_LOST_PROTOCOL);
    }
    memcpy(p, rle, sizeof(rle));
    memcpy(p + 7, (const uint8_t[]){ 0x03 | 0x80, 0xff, 0xff }, 3);     /* a block of 2 MiB, or of the reserved kind */
    CHECK(outcome(p, sizeof(rle), 10, 0) == XS_LOST_PROTOCOL);
    p[7] = 0x07;
    CHECK(outcome(p, sizeof(rle), 10, 0) == XS_LOST_PROTOCOL);
    p[0] ^= 1;
    CHECK(outcome(p, sizeof(rle), 10, 0) == XS_LOST_PROTOCOL);
    CHECK(outcome(p, 0, 10, 0) == XS_LOST_PROTOCOL);
    CHECK(outcome(p, 4096, 10, 0) == XS_LOST_PROTOCOL);
    memset(p, 'x', 20);
    CHECK(outcome(p, 20, 10, 0) == XS_LOST_PROTOCOL);
    free(good);
    xs_compress_free(c);
}

/* F8 is about content: a frame of 1 MiB that fills the window is taken, and not a byte more. 41 bytes on the line make that MiB. */
static void bomb(void)
{
    uint8_t p[64] = { 0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0x10, 0 };
    size_t len = 9;

    for (int block = 0; block < 8; block++) {   /* 128 KiB each, the most that a block may have */
        uint32_t h = (128U << 10) << 3 | 1U << 1 | (block == 7);

        p[len++] = (uint8_t)h, p[len++] = (uint8_t)(h >> 8), p[len++] = (uint8_t)(h >> 16), p[len++] = 'x';
    }
    for (int more = 0; more < 2; more++) {
        struct rig r;

        half_rig(&r, 0);
        CHECK(fcntl(r.xl_in[1][0], F_SETPIPE_SZ, 4096) == 4096);
        send_payload(&r, p, len, 0);
        if (more)
            send_payload(&r, p, len, WINDOW);
        (void)run(&r, 1, 0);
        CHECK(stats_of(&r, 1).channel_bytes[0] == WINDOW && stats_of(&r, 1).lost == (more ? XS_LOST_PROTOCOL : XS_LOST_NOT));
        close_rig(&r);
    }
    p[7] = 0x20;        /* and one that says 2 MiB */
    CHECK(outcome(p, len, 10, 0) == XS_LOST_PROTOCOL);
}

/* Compressed frames that nobody has agreed on are a fault. */
static void not_agreed(void)
{
    struct xs_compress *c = xs_compress_new();
    size_t len;
    uint8_t *good = packed_text(c, &len);

    rig_compress = XS_COMPRESS_OFF;
    CHECK(outcome(good, len, 10, 0) == XS_LOST_PROTOCOL);
    rig_compress = XS_COMPRESS_ZSTD;
    free(good);
    xs_compress_free(c);
}

/* A reader who has gone: content is still checked, and skipped. */
static void broken_reader(void)
{
    struct xs_compress *c = xs_compress_new();
    struct rig r;
    size_t len;
    uint8_t *good = packed_text(c, &len);

    half_rig(&r, 0);
    close_fd(&r.xl_in[1][0]);
    for (uint64_t at = 0; at < 5000; at += 1000) {
        send_payload(&r, good, len, at);
        run(&r, 1, 0);
    }
    CHECK(stats_of(&r, 1).delivered[0] == 5000 && stats_of(&r, 1).lost == XS_LOST_NOT && stats_of(&r, 1).sink_broken[0]);
    close_rig(&r);
    free(good);
    xs_compress_free(c);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    RUN(round_trips);
    RUN(headers);
    RUN(whole_stream);
    if (xs_zstd_built_in()) {
        RUN(damage);
        RUN(malformed);
        RUN(bomb);
        RUN(not_agreed);
        RUN(broken_reader);
    }
    return 0;
}
