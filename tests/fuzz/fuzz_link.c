/*
 * Frames off the wire (F1 to F4): arbitrary bytes as a header and as a frame, and well-sealed frames of which one is changed.
 *
 * Input: a byte; even: the rest is one frame as it came. Odd: frames to seal (type, channel, flags, length, offset, payload), and where the
 * byte says so one bit of each is flipped on its way.
 */
#include "fuzz.h"

enum { FRAMES = 8, RATCHET = 40 };

/* Bound to be refused (F2), said once more and otherwise. */
static int is_header(const uint8_t b[static XS_HEADER_LEN])
{
    int data = b[0] == XS_DATA;
    int flags = b[2] == 0 || (data && (b[2] == 1 || b[2] == 2 || b[2] == 3)) || (data && b[1] == 0 && (b[2] == 4 || b[2] == 6));

    return ((b[0] >= 1 && b[0] <= 9) || b[0] == 12) && b[1] <= 2 && flags && b[3] == 0 && xs_load32(b + 4) <= 1 << 20;
}

static struct xs_link *link_of(int role)
{
    struct xs_link_keys k;

    memset(k.send_key, 1 + role, sizeof(k.send_key));
    memset(k.receive_key, 2 - role, sizeof(k.receive_key));
    memset(k.send_iv, 3 + role, sizeof(k.send_iv));
    memset(k.receive_iv, 4 - role, sizeof(k.receive_iv));
    return xs_link_new("libcrypto", &k, RATCHET);
}

/* One frame as it came: nobody could seal it. */
static void arbitrary(struct input *in)
{
    uint8_t head[XS_HEADER_LEN] = { 0 }, *frame, *out;
    struct xs_header h;
    struct xs_link *link;
    size_t len;
    int rc;

    memcpy(head, in->at, xs_min(in->left, sizeof(head)));
    rc = xs_header_parse(head, &h);
    CHECK((rc == XS_OK) == is_header(head));
    CHECK(rc == XS_OK || (rc == XS_EHEADER && h.length == 0 && h.type == 0));
    len = rc == XS_OK ? h.length : 0;
    if (rc == XS_OK && in->left < XS_HEADER_LEN + len + XS_TAG_LEN)
        return;                 /* the pump waits for the rest */
    frame = in->left >= XS_HEADER_LEN ? exactly(in->at, in->left) : exactly(head, sizeof(head));
    out = malloc(len > 0 ? len : 1);
    memset(out, 0xa5, len > 0 ? len : 1);
    link = link_of(0);
    CHECK(xs_link_open(link, frame, &h, out) == (rc == XS_OK ? XS_ETAG : XS_EHEADER));
    for (size_t i = 0; i < len; i++)
        CHECK(out[i] == 0);     /* F2 */
    CHECK(xs_link_open(link, frame, &h, out) == XS_ETAG);       /* F5 */
    xs_link_free(link);
    free(out);
    free(frame);
}

static struct xs_header read_header(struct input *in)
{
    struct xs_header h;

    memset(&h, 0, sizeof(h));
    h.type = take8(in);
    h.channel = take8(in);
    h.flags = take8(in);
    h.length = take8(in);
    h.offset = take64(in);
    return h;
}

/* Frames of somebody who has the keys. */
static void sealed(struct input *in, int flips)
{
    struct xs_link *from = link_of(0), *to = link_of(1);
    int dead = 0;

    for (int n = 0; n < FRAMES && in->left > 0; n++) {
        struct xs_header h = read_header(in), got;
        size_t have = h.length, whole = XS_HEADER_LEN + h.length + XS_TAG_LEN, at = flips ? take16(in) % (whole * 8) : 0;
        uint8_t payload[UINT8_MAX + 1] = { 0 }, *frame = malloc(whole), *out = malloc(have + 1);
        const uint8_t *bytes = take_bytes(in, &have);
        int rc;

        memcpy(payload, bytes, have);
        rc = xs_link_seal(from, &h, payload, frame);
        if (rc == XS_OK) {
            int flip = flips && (at & 7) != 0;          /* some go through unharmed */

            if (flip)
                frame[at / 8] ^= (uint8_t)(1 << at % 8);
            /* A length that was changed is another frame's end: the pump would wait for it. */
            if (flip && at / 8 >= 4 && at / 8 < 8) {
                CHECK(xs_header_parse(frame, &got) == XS_EHEADER || got.length != h.length);
                frame[at / 8] ^= (uint8_t)(1 << at % 8);
                flip = 0;
            }
            rc = xs_link_open(to, frame, &got, out);
            dead = dead || flip;
            CHECK((rc == XS_OK) == !dead);
            if (!dead)
                CHECK(memcmp(&got, &h, offsetof(struct xs_header, flags) + 1) == 0 && got.length == h.length && got.offset == h.offset
                      && memcmp(out, payload, h.length) == 0);
        } else {
            CHECK(rc == XS_EARGUMENT);          /* what a peer would refuse is not sent */
        }
        free(frame);
        free(out);
    }
    xs_link_free(from);
    xs_link_free(to);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };
    uint8_t how = take8(&in);

    if ((how & 1) == 0)
        arbitrary(&in);
    else
        sealed(&in, how >> 1 & 1);
    return 0;
}
