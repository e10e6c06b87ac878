/*
 * Compressed payloads (F17, F18). Input: a byte; 0 modulo 4: the rest is a payload that came. 1: the same behind good first bytes that claim a length
 * of the input's. 2: a content, to be packed and unpacked. 3: the same, and what was packed is changed in some places on its way.
 */
#include "fuzz.h"

#include "../../csrc/compress.h"

/* F18's first bytes once more: the length of the content, or 0. */
static size_t expected(const uint8_t *p, size_t len)
{
    size_t content;

    if (len < 9 || memcmp(p, "\x28\xb5\x2f\xfd", 4) != 0)
        return 0;
    if (p[4] == 0x20)
        content = p[5];
    else if (p[4] == 0x60)
        content = 256 + (p[5] | (size_t)p[6] << 8);
    else if (p[4] == 0xa0)
        content = p[5] | (size_t)p[6] << 8 | (size_t)p[7] << 16 | (size_t)p[8] << 24;
    else
        return 0;
    if (p[4] == 0xa0 && content < 65536 + 256)
        return 0;               /* in as few bytes as it fits */
    return content > len && content <= 1 << 20 ? content : 0;
}

/* A payload of a peer's; twice, for a context is used again. */
static void came(struct xs_compress *c, const uint8_t *bytes, size_t len)
{
    uint8_t *payload = exactly(bytes, len), *out, *again;
    size_t content = xs_compress_measure(payload, len);
    int rc;

    CHECK(content == expected(payload, len));
    if (content > 0) {
        out = malloc(content), again = malloc(content);
        rc = xs_compress_unpack(c, payload, len, out, content);
        CHECK(rc == XS_OK || rc == XS_EPROTOCOL);
        CHECK(xs_compress_unpack(c, payload, len, again, content) == rc);
        CHECK(rc != XS_OK || memcmp(out, again, content) == 0);
        free(out);
        free(again);
    }
    free(payload);
}

static void with_head(struct xs_compress *c, struct input *in)
{
    uint8_t payload[4096] = { 0x28, 0xb5, 0x2f, 0xfd };
    size_t content = take16(in), at = 5, len = sizeof(payload) - 16;
    const uint8_t *rest;

    content <<= take8(in) % 6;
    payload[4] = content < 256 ? 0x20 : content < 65536 + 256 ? 0x60 : 0xa0;
    if (payload[4] == 0x60)
        content -= 256;
    for (int n = payload[4] == 0x20 ? 1 : payload[4] == 0x60 ? 2 : 4; n > 0; n--, content >>= 8)
        payload[at++] = (uint8_t)content;
    rest = take_bytes(in, &len);
    memcpy(payload + at, rest, len);
    came(c, payload, at + len);
}

static void goes(struct xs_compress *c, struct input *in, int changed)
{
    uint8_t places[8] = { 0 };
    size_t size = in->left * 4, packed;
    uint8_t *content, *payload, *back;

    for (size_t i = 0; changed && i < sizeof(places); i++)
        places[i] = take8(in);
    if (size == 0 || size > 1 << 16)
        return;
    content = malloc(size), payload = malloc(size), back = malloc(size);
    for (size_t i = 0; i < size; i++)
        content[i] = in->left > 0 ? in->at[i % in->left] : 0;
    packed = xs_compress_pack(c, content, size, payload);
    if (packed > 0) {
        CHECK(packed <= size - size / 16 && xs_compress_measure(payload, packed) == size);
        CHECK(xs_compress_unpack(c, payload, packed, back, size) == XS_OK && memcmp(back, content, size) == 0);
        for (size_t i = 0; changed && i < sizeof(places); i += 2)
            payload[places[i] % packed] ^= places[i + 1];
        if (changed)
            came(c, payload, packed);
    }
    free(content);
    free(payload);
    free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct xs_compress *c;
    struct input in = { data, size };
    uint8_t how = take8(&in) % 4;

    if (!xs_zstd_built_in())
        return 0;
    if (c == NULL)
        c = xs_compress_new();  /* a session's life long */
    if (how == 0)
        came(c, in.at, in.left);
    else if (how == 1)
        with_head(c, &in);
    else
        goes(c, &in, how == 3);
    return 0;
}
