#include "compress.h"

#include <stdlib.h>

#include "engine.h"
#include "util.h"

enum {
    MAGIC_LEN = 4,
    /* Below a sixteenth the receiver's work costs more than what 10 Gbit/s win by it. */
    WORTH = 16,
    /* Content sizes as RFC 8878 section 3.1.1.1.4 writes them: in one byte, in two less this much, in four. */
    SHORT_BASE = 256,
    LONG_FIRST = SHORT_BASE + (1 << 16)
};

static const uint8_t magic[MAGIC_LEN] = { 0x28, 0xb5, 0x2f, 0xfd };     /* RFC 8878 section 3.1.1 */

/* A little-endian number of n bytes, as Zstandard has them. */
static size_t little(const uint8_t *p, size_t n)
{
    size_t v = 0;

    while (n-- > 0)
        v = v << 8 | p[n];
    return v;
}

/* How long the content is that a payload says it stands for; 0 when F18 refuses the payload for its first bytes. */
size_t xs_compress_measure(const uint8_t *payload, size_t len)
{
    size_t content = 0;

    for (size_t i = 0; i < MAGIC_LEN; i++)
        if (len < MAGIC_LEN + 1 + 4 || payload[i] != magic[i])
            return 0;
    /* The descriptor: a single segment, so that the window is the content; its length in 1, 2 or 4 bytes; no checksum, no dictionary. */
    switch (payload[MAGIC_LEN]) {
    case 0x20:
        content = little(payload + MAGIC_LEN + 1, 1);
        break;
    case 0x60:
        content = little(payload + MAGIC_LEN + 1, 2) + SHORT_BASE;
        break;
    case 0xa0:
        content = little(payload + MAGIC_LEN + 1, 4);
        if (content < LONG_FIRST)
            return 0;
        break;
    }
    return content > len && content <= XS_PAYLOAD_MAX ? content : 0;
}

#ifdef XS_WITH_ZSTD

/* For contexts in memory of our own: bounded from the start, out of core dumps, wiped at the end. zstd.h calls this part experimental and
 * exports it all the same; it has been as it is here since 1.3. */
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

/*
 * By tests/c/bench_compress.c, a recorded guest of 128 MiB (two cores of an AMD EPYC, frames of 512 KiB): level 1 600 MB/s and 27.6 % of it is sent,
 * -1 710 and 29.1, -3 680 and 31.1, -5 710 and 32.8. The fast levels win next to no speed, for it is memory and Huffman coding that take the time.
 */
#ifndef XS_ZSTD_LEVEL
#define XS_ZSTD_LEVEL 1
#endif

struct xs_compress {
    void *packing, *unpacking;  /* memory of the contexts */
    size_t packing_len, unpacking_len;
    ZSTD_CCtx *packer;
    ZSTD_DCtx *unpacker;
};

/* Room for one compressor and one decompressor, which takes memory when it is first used. NULL when there is no memory. */
struct xs_compress *xs_compress_new(void)
{
    return calloc(1, sizeof(struct xs_compress));
}

/* Wipe and free; NULL is fine. */
void xs_compress_free(struct xs_compress *c)
{
    if (c == NULL)
        return;
    xs_pages_free(c->packing, c->packing_len);
    xs_pages_free(c->unpacking, c->unpacking_len);
    free(c);
}

/* The compressor, made when it is first wanted. NULL when there is no memory. */
static ZSTD_CCtx *packer(struct xs_compress *c)
{
    ZSTD_CCtx *ctx;

    if (c->packer != NULL)
        return c->packer;
    c->packing_len = ZSTD_estimateCCtxSize(XS_ZSTD_LEVEL);
    if (c->packing == NULL && (c->packing = xs_pages_new(c->packing_len)) == NULL)
        return NULL;
    ctx = ZSTD_initStaticCCtx(c->packing, c->packing_len);
    /* Reset: in 1.5 a context of this kind begins without the library's defaults, which write the content's length. */
    if (ctx == NULL || ZSTD_isError(ZSTD_CCtx_reset(ctx, ZSTD_reset_session_and_parameters))
        || ZSTD_isError(ZSTD_CCtx_setParameter(ctx, ZSTD_c_compressionLevel, XS_ZSTD_LEVEL)))
        return NULL;
    return c->packer = ctx;
}

/* The decompressor, likewise. */
static ZSTD_DCtx *unpacker(struct xs_compress *c)
{
    if (c->unpacker != NULL)
        return c->unpacker;
    c->unpacking_len = ZSTD_estimateDCtxSize();
    if (c->unpacking == NULL && (c->unpacking = xs_pages_new(c->unpacking_len)) == NULL)
        return NULL;
    return c->unpacker = ZSTD_initStaticDCtx(c->unpacking, c->unpacking_len);
}

/*
 * The payload that stands for content, into out, which has room for len bytes. Returns its length, at most fifteen sixteenths of len; 0 when the
 * content is to be sent otherwise.
 */
size_t xs_compress_pack(struct xs_compress *c, const uint8_t *content, size_t len, uint8_t *out)
{
    ZSTD_CCtx *ctx = len < XS_COMPRESS_MIN ? NULL : packer(c);
    size_t packed;

    if (ctx == NULL)
        return 0;
    packed = ZSTD_compress2(ctx, out, len - len / WORTH, content, len);
    /* What the receiver would refuse is not sent, whatever the library's release makes of its parameters. */
    if (ZSTD_isError(packed) || xs_compress_measure(out, packed) != len)
        return 0;
    return packed;
}

/* The content of a payload, content bytes as xs_compress_measure has said, into out. XS_OK, XS_EPROTOCOL or XS_ENOMEM. */
int xs_compress_unpack(struct xs_compress *c, const uint8_t *payload, size_t len, uint8_t *out, size_t content)
{
    ZSTD_DCtx *ctx = unpacker(c);

    if (ctx == NULL)
        return XS_ENOMEM;
    /* One frame and nothing behind it: by itself the library takes several, and frames to be skipped between them. */
    if (ZSTD_findFrameCompressedSize(payload, len) != len)
        return XS_EPROTOCOL;
    return ZSTD_decompressDCtx(ctx, out, content, payload, len) == content ? XS_OK : XS_EPROTOCOL;
}

/* True if libzstd was there when this was built. */
int xs_zstd_built_in(void)
{
    return 1;
}

#else

struct xs_compress {
    int unused;
};

struct xs_compress *xs_compress_new(void)
{
    return calloc(1, sizeof(struct xs_compress));
}

void xs_compress_free(struct xs_compress *c)
{
    free(c);
}

size_t xs_compress_pack(struct xs_compress *c, const uint8_t *content, size_t len, uint8_t *out)
{
    (void)c, (void)content, (void)len, (void)out;
    return 0;
}

int xs_compress_unpack(struct xs_compress *c, const uint8_t *payload, size_t len, uint8_t *out, size_t content)
{
    (void)c, (void)payload, (void)len, (void)out, (void)content;
    return XS_EPROTOCOL;
}

int xs_zstd_built_in(void)
{
    return 0;
}

#endif
