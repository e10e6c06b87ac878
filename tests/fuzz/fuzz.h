/*
 * What the fuzz targets share. A target is LLVMFuzzerTestOneInput of libFuzzer; run.sh links it with that, or with replay.c.
 *
 * The engine under them is built with small chunks (XS_CHUNK), so that short inputs cross their borders, and its pages come from pages.c.
 */
#ifndef XS_FUZZ_H
#define XS_FUZZ_H

#include "../c/harness.h"

#include "../../csrc/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* An input that is read as numbers: 0 behind its end. */
struct input {
    const uint8_t *at;
    size_t left;
};

static inline uint8_t take8(struct input *in)
{
    if (in->left == 0)
        return 0;
    in->left--;
    return *in->at++;
}

static inline uint16_t take16(struct input *in)
{
    uint16_t high = take8(in);

    return (uint16_t)(high << 8 | take8(in));
}

static inline uint64_t take64(struct input *in)
{
    uint64_t v = 0;

    for (int i = 0; i < 8; i++)
        v = v << 8 | take8(in);
    return v;
}

/* The next len bytes, or as many as there are; *len becomes their number. */
static inline const uint8_t *take_bytes(struct input *in, size_t *len)
{
    const uint8_t *p = in->at;

    *len = xs_min(*len, in->left);
    in->at += *len;
    in->left -= *len;
    return p;
}

/* A copy in memory of its own, to the byte: ASan then sees every read beside it. */
static inline uint8_t *exactly(const uint8_t *bytes, size_t len)
{
    uint8_t *copy = calloc(1, len > 0 ? len : 1);

    CHECK(copy != NULL);
    if (len > 0)
        memcpy(copy, bytes, len);
    return copy;
}

#endif
