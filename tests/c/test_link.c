/* Frames: known answers, headers, nonces, ratchet, and every way a frame may be wrong (F1 to F5). */
#include "harness.h"

#include "../../csrc/aead.h"
#include "../../csrc/util.h"

static const char *backend;     /* the one that is being tested */

enum { FRAME_MAX = XS_HEADER_LEN + XS_PAYLOAD_MAX + XS_TAG_LEN };

static struct xs_link_keys test_keys(int mirrored)
{
    struct xs_link_keys k;

    memset(&k, 0, sizeof(k));
    for (uint8_t i = 0; i < 32; i++) {
        k.send_key[i] = (uint8_t)(mirrored ? 0x80 + i : i);
        k.receive_key[i] = (uint8_t)(mirrored ? i : 0x80 + i);
    }
    for (uint8_t i = 0; i < 12; i++) {
        k.send_iv[i] = (uint8_t)(mirrored ? 0xc0 + i : 0x40 + i);
        k.receive_iv[i] = (uint8_t)(mirrored ? 0x40 + i : 0xc0 + i);
    }
    return k;
}

static void pair(struct xs_link *end[2], uint64_t ratchet_blocks)
{
    for (int i = 0; i < 2; i++) {
        struct xs_link_keys k = test_keys(i);

        end[i] = xs_link_new(backend, &k, ratchet_blocks);
        CHECK(end[i] != NULL);
    }
}

static void unpair(struct xs_link *end[2])
{
    xs_link_free(end[0]);
    xs_link_free(end[1]);
}

/* The first frame of a link is AES-256-GCM under IV XOR 0, the second under IV XOR 1, with the header as additional data. */
static void frames_are_gcm(void)
{
    const struct xs_aead_ops *ops = xs_aead_find(backend);
    struct xs_link_keys k = test_keys(0);
    struct xs_aead *aead = ops->create(XS_AEAD_SEAL, k.send_key);
    struct xs_link *link = xs_link_new(backend, &k, 1ULL << 32);
    const struct xs_header h = { .type = XS_DATA, .channel = 2, .length = 5, .offset = 0x0102030405060708 };
    const uint8_t bytes[16] = { 4, 2, 0, 0, 0, 0, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8 };
    uint8_t frame[16 + 5 + 16], body[5], tag[16];

    for (uint8_t n = 0; n < 2; n++) {
        uint8_t nonce[12];

        memcpy(nonce, k.send_iv, 12);
        nonce[11] ^= n;
        CHECK(xs_link_seal(link, &h, (const uint8_t *)"hello", frame) == XS_OK);
        CHECK(ops->seal(aead, nonce, bytes, 16, (const uint8_t *)"hello", 5, body, tag) == XS_OK);
        CHECK(memcmp(frame, bytes, 16) == 0 && memcmp(frame + 16, body, 5) == 0 && memcmp(frame + 21, tag, 16) == 0);
    }
    CHECK(strcmp(xs_link_backend(link), backend) == 0);
    CHECK(xs_link_new("none", &k, 1) == NULL);
    xs_link_free(NULL);
    xs_link_free(link);
    ops->free(aead);
}

/* F2: each field of a header that is out of its range is refused, and each in range is not. */
static void headers(void)
{
    uint8_t bytes[16];
    struct xs_header h;

    for (unsigned type = 0; type < 256; type++) {
        memset(bytes, 0, sizeof(bytes));
        bytes[0] = (uint8_t)type;
        CHECK(xs_header_parse(bytes, &h) == ((type >= 1 && type <= 9) || type == 12 ? XS_OK : XS_EHEADER));
    }
    for (unsigned field = 1; field < 4; field++)
        for (unsigned v = 0; v < 256; v++) {
            int flag = field == 2 && ((v & ~(unsigned)XS_AGAIN) == XS_ELIDED || (v & ~(unsigned)XS_AGAIN) == XS_COMPRESSED || v == XS_AGAIN);

            memset(bytes, 0, sizeof(bytes));
            bytes[0] = XS_DATA;
            bytes[field] = (uint8_t)v;
            CHECK(xs_header_parse(bytes, &h) == (v == 0 || (field == 1 && v < 3) || flag ? XS_OK : XS_EHEADER));
            CHECK(h.flags == (flag ? v : 0));
        }
    for (unsigned flag = 1; flag <= 6; flag++)       /* flags are for DATA, one of them for channel 0, and two of them not together */
        for (unsigned type = 0; type < 256; type++)
            for (unsigned channel = 0; channel < 3; channel++) {
                int fits = type == XS_DATA && ((flag & XS_COMPRESSED) == 0 || (channel == 0 && (flag & XS_ELIDED) == 0));

                memset(bytes, 0, sizeof(bytes));
                bytes[0] = (uint8_t)type;
                bytes[1] = (uint8_t)channel;
                bytes[2] = (uint8_t)flag;
                CHECK(xs_header_parse(bytes, &h) == (fits ? XS_OK : XS_EHEADER));
            }
    memset(bytes, 0xff, sizeof(bytes));
    memcpy(bytes, (const uint8_t[]){ XS_DATA, 0, 0, 0, 0, 0x10, 0, 0 }, 8);
    CHECK(xs_header_parse(bytes, &h) == XS_OK && h.length == 1 << 20 && h.offset == UINT64_MAX);
    bytes[7] = 1;
    CHECK(xs_header_parse(bytes, &h) == XS_EHEADER && h.length == 0 && h.offset == 0);
}

/* What the peer would refuse is not sealed, and uses up no nonce. */
static void own_mistakes(void)
{
    struct xs_link *end[2];
    struct xs_header h = { .type = XS_KEEPALIVE }, got;
    uint8_t frame[64];

    pair(end, 1ULL << 32);
    h.channel = 3;
    CHECK(xs_link_seal(end[0], &h, NULL, frame) == XS_EARGUMENT);
    h.channel = 0;
    h.length = XS_PAYLOAD_MAX + 1;
    CHECK(xs_link_seal(end[0], &h, NULL, frame) == XS_EARGUMENT);
    h.length = 0;
    h.flags = XS_ELIDED;
    CHECK(xs_link_seal(end[0], &h, NULL, frame) == XS_EARGUMENT);
    h.flags = 0;
    CHECK(xs_link_seal(end[0], &h, NULL, frame) == XS_OK);
    CHECK(xs_link_open(end[1], frame, &got, NULL) == XS_OK && got.type == XS_KEEPALIVE);
    unpair(end);
}

/* Every size opens to what was sealed, in another place and in the frame's own. */
static void round_trips(void)
{
    static const uint32_t sizes[] = { 0, 1, 15, 16, 17, 4095, 4096, 4097, 65536, XS_PAYLOAD_MAX - 1, XS_PAYLOAD_MAX };
    static uint8_t frame[FRAME_MAX], plain[XS_PAYLOAD_MAX], out[XS_PAYLOAD_MAX];
    struct xs_link *end[2];

    pair(end, 1ULL << 32);
    for (size_t i = 0; i < sizeof(plain); i++)
        plain[i] = stream_byte(i);
    for (size_t n = 0; n < sizeof(sizes) / sizeof(sizes[0]); n++)
        for (int own = 0; own < 2; own++) {
            struct xs_header h = { .type = XS_DATA, .channel = 1, .flags = (uint8_t)own, .length = sizes[n], .offset = 77 }, got;
            uint8_t *to = own ? frame + 16 : out;

            CHECK(xs_link_seal(end[n % 2], &h, plain, frame) == XS_OK);
            CHECK(xs_link_open(end[1 - n % 2], frame, &got, to) == XS_OK);
            CHECK(got.type == h.type && got.channel == 1 && got.flags == own && got.length == sizes[n] && got.offset == 77);
            CHECK(memcmp(to, plain, sizes[n]) == 0);
        }
    unpair(end);
}

/* Seal n KEEPALIVE-sized frames at once, to be opened in another order. */
static void seal_some(struct xs_link *link, uint8_t frames[][36], int n)
{
    for (int i = 0; i < n; i++) {
        struct xs_header h = { .type = XS_DATA, .length = 4, .offset = (uint64_t)i * 4 };

        CHECK(xs_link_seal(link, &h, (const uint8_t *)"abcd", frames[i]) == XS_OK);
    }
}

/* F3: a frame reflected, replayed, lost or moved fails its tag; then the link opens nothing more, and nothing of the peer's is left. */
static void order(void)
{
    static const int orders[][2] = { { 1, 0 }, { 0, 0 }, { 0, 2 } };
    struct xs_link *end[2];
    struct xs_header got;
    uint8_t frames[3][36], out[4], zero[4] = { 0 };

    for (size_t n = 0; n < 3; n++) {
        int first = orders[n][0] == 0 ? XS_OK : XS_ETAG;

        pair(end, 1ULL << 32);
        seal_some(end[0], frames, 3);
        CHECK(xs_link_open(end[1], frames[orders[n][0]], &got, out) == first);
        memset(out, 0xee, 4);
        CHECK(xs_link_open(end[1], frames[orders[n][1]], &got, out) == XS_ETAG);
        CHECK(got.type == 0 && got.length == 0);
        CHECK(first != XS_OK || memcmp(out, zero, 4) == 0);
        CHECK(xs_link_open(end[1], frames[1], &got, out) == XS_ETAG);   /* the right one by now, and too late */
        unpair(end);
    }
    pair(end, 1ULL << 32);
    seal_some(end[0], frames, 1);
    CHECK(xs_link_open(end[0], frames[0], &got, out) == XS_ETAG);       /* reflected */
    unpair(end);
}

/* Any bit of a frame changed is an error, and the place to open it to holds zeros. */
static void every_bit(void)
{
    uint8_t frames[1][36], out[XS_PAYLOAD_MAX], zero[4] = { 0 };
    static uint8_t big[FRAME_MAX];      /* a flipped length may name more than was sealed */

    for (size_t bit = 0; bit < sizeof(frames) * 8; bit++) {
        struct xs_link *end[2];
        struct xs_header got;
        int rc;

        pair(end, 1ULL << 32);
        seal_some(end[0], frames, 1);
        memset(big, 0, sizeof(big));
        memcpy(big, frames[0], 36);
        big[bit / 8] ^= (uint8_t)(1U << bit % 8);
        memset(out, 0, 4);
        rc = xs_link_open(end[1], big, &got, out);
        CHECK(rc == XS_ETAG || (rc == XS_EHEADER && bit < 64));
        CHECK(memcmp(out, zero, 4) == 0 && got.type == 0);
        memset(big, 0, sizeof(big));
        memcpy(big, frames[0], 36);
        CHECK(xs_link_open(end[1], big, &got, out) == XS_ETAG);
        unpair(end);
    }
}

/* F4: the key changes before the frame that would pass the limit, at exactly that frame, on both sides alike. */
static void ratchet(void)
{
    const struct xs_aead_ops *ops = xs_aead_find(backend);
    struct xs_link_keys k = test_keys(0);
    uint8_t key[32], other[16], frame[16 + 32 + 16], nonce[12], out[32];
    const uint8_t plain[32] = { 1 };
    struct xs_link *end[2];
    struct xs_header got;

    /* 32 bytes are 2 + 3 blocks: a limit of 10 lets exactly two frames through a key, one of 9 only one. */
    for (uint64_t limit = 9; limit <= 10; limit++) {
        pair(end, limit);
        memcpy(key, k.send_key, 32);
        for (uint8_t n = 0; n < 7; n++) {
            struct xs_header h = { .type = XS_DATA, .length = 32, .offset = n };
            struct xs_aead *aead;

            if (n > 0 && (limit == 9 || n % 2 == 0))
                CHECK(xs_ratchet(key, "xensecure/1 ratchet") == XS_OK);
            memcpy(nonce, k.send_iv, 12);
            nonce[11] ^= n;                     /* IV and counter go on */
            CHECK(xs_link_seal(end[0], &h, plain, frame) == XS_OK);
            aead = ops->create(XS_AEAD_SEAL, key);
            CHECK(ops->seal(aead, nonce, frame, 16, plain, 32, out, other) == XS_OK);
            CHECK(memcmp(out, frame + 16, 32) == 0 && memcmp(other, frame + 48, 16) == 0);
            ops->free(aead);
            CHECK(xs_link_open(end[1], frame, &got, out) == XS_OK && memcmp(out, plain, 32) == 0);
        }
        unpair(end);
    }
}

/* HKDF-Expand of one block is one HMAC; this value is from Python: hmac.new(bytes(range(32)), b"\x13xensecure/1 ratchet\x01", "sha256"). */
static void ratchet_known(void)
{
    uint8_t key[32], want[32];

    for (uint8_t i = 0; i < 32; i++)
        key[i] = i;
    unhex("68f28058803b250a8a7f6017feca30dd46d4f8f02c6441857241594f6f46da06", want);
    CHECK(xs_ratchet(key, "xensecure/1 ratchet") == XS_OK && memcmp(key, want, 32) == 0);
}

int main(void)
{
    const char *name;

    for (size_t i = 0; (name = xs_backend_name(i)) != NULL; i++) {
        backend = xs_backend_find(name);
        printf("  %s%s\n", name, backend == NULL ? ": skipped, this CPU cannot run it" : "");
        if (backend == NULL)
            continue;
        RUN(frames_are_gcm);
        RUN(headers);
        RUN(own_mistakes);
        RUN(round_trips);
        RUN(order);
        RUN(every_bit);
        RUN(ratchet);
    }
    RUN(ratchet_known);
    return 0;
}
