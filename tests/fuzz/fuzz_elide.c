/*
 * Elided payloads (F14, F15). Input: a byte; even: the rest is a payload that came. Odd: it is a content to be packed, each byte of it standing for
 * a run: of that byte where it is odd or small, else of as many zeros.
 */
#include "fuzz.h"

#include "../../csrc/elide.h"

/* F15 once more, by the letter: the length of the content, or 0. */
static size_t expected(const uint8_t *p, size_t len)
{
    uint64_t content = 0;
    size_t at = 0;

    for (int first = 1; at < len; first = 0) {
        uint64_t zeros, literals;

        if (len - at < 8)
            return 0;
        zeros = xs_load32(p + at), literals = xs_load32(p + at + 4);
        at += 8;
        if (literals > len - at)
            return 0;
        if (zeros < 64 && !(first && zeros == 0))
            return 0;
        if (literals == 0 && at != len)
            return 0;
        if (literals > 0 && zeros > 0 && p[at] == 0)
            return 0;
        at += (size_t)literals;
        if (literals > 0 && at != len && p[at - 1] == 0)
            return 0;
        content += zeros + literals;
        if (content > XS_PAYLOAD_MAX)
            return 0;
    }
    return content > len ? (size_t)content : 0;
}

/* What is made of it: runs of zeros and literals, and nothing else. Contents lie at the buffer's end, behind which ASan watches. */
static uint8_t buffer[XS_PAYLOAD_MAX];

static void check(const uint8_t *out, const uint8_t *payload, size_t len)
{
    static const uint8_t none[XS_PAYLOAD_MAX];

    for (size_t at = 0; at < len;) {
        size_t zeros = xs_load32(payload + at), literals = xs_load32(payload + at + 4);

        CHECK(memcmp(out, none, zeros) == 0 && memcmp(out + zeros, payload + at + 8, literals) == 0);
        out += zeros + literals;
        at += 8 + literals;
    }
    CHECK(out == buffer + sizeof(buffer));
}

/* A payload of a peer's. */
static void came(const uint8_t *bytes, size_t len)
{
    uint8_t *payload = exactly(bytes, len), *out;
    size_t content = xs_elide_measure(payload, len);

    CHECK(content == expected(payload, len));
    if (content > 0) {
        out = buffer + sizeof(buffer) - content;
        memset(out, 0xa5, xs_min(content, 4096));
        xs_elide_unpack(payload, len, out);
        check(out, payload, len);
    }
    free(payload);
}

/* A content of our own. */
static void goes(const uint8_t *bytes, size_t len)
{
    size_t size = 0, packed;
    uint8_t *content, *payload, *back;

    for (size_t i = 0; i < len; i++)
        size += bytes[i] < 32 || bytes[i] % 2 == 1 ? 7 : (size_t)bytes[i] * 8;
    if (size == 0 || size > XS_PAYLOAD_MAX)
        return;
    content = calloc(1, size), payload = malloc(size);
    for (size_t i = 0, at = 0; i < len; i++) {
        int literal = bytes[i] < 32 || bytes[i] % 2 == 1;

        if (literal)
            memset(content + at, bytes[i], 7);
        at += literal ? 7 : (size_t)bytes[i] * 8;
    }
    packed = xs_elide_pack(content, size, payload);
    CHECK(packed < size);
    if (packed > 0) {
        uint8_t *there = exactly(payload, packed);

        CHECK(xs_elide_measure(there, packed) == size);
        back = malloc(size);
        xs_elide_unpack(there, packed, back);
        CHECK(memcmp(back, content, size) == 0);
        free(back);
        free(there);
    }
    free(payload);
    free(content);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 0 && (data[0] & 1) == 0)
        came(data + 1, size - 1);
    else if (size > 0)
        goes(data + 1, size - 1);
    return 0;
}
