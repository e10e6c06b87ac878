#include "packer.h"

#include <stdlib.h>
#include <time.h>

#include "compress.h"
#include "elide.h"
#include "util.h"
#include "weigh.h"

struct xs_packer {
    int elide, compress;
    struct xs_compress *zstd;
    struct xs_weigh weigh;
    int64_t blocked_since;      /* ns; 0: the link takes what there is */
};

/* CLOCK_MONOTONIC in ns. */
static int64_t now_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* elide: leave zero runs out of what is sent. compress: enum xs_compression. NULL when there is no memory. */
struct xs_packer *xs_packer_new(int elide, int compress)
{
    struct xs_packer *p = calloc(1, sizeof(*p));

    if (p == NULL)
        return NULL;
    p->elide = elide;
    p->compress = compress;
    p->zstd = xs_compress_new();
    if (p->zstd == NULL) {
        xs_packer_free(p);
        return NULL;
    }
    xs_weigh_init(&p->weigh, now_ns());
    return p;
}

/* Wipe and free; NULL is fine. */
void xs_packer_free(struct xs_packer *p)
{
    if (p == NULL)
        return;
    xs_compress_free(p->zstd);
    free(p);
}

/* Is the compressor to be asked for this frame? */
static int wants_compressor(struct xs_packer *p, int64_t start)
{
    switch ((enum xs_compression)p->compress) {
    case XS_COMPRESS_OFF:
        return 0;
    case XS_COMPRESS_AUTO:
        return xs_weigh_choose(&p->weigh, start);
    case XS_COMPRESS_ZSTD:
        return 1;
    }
    return 0;
}

/*
 * Make a frame's content shorter where that is wanted and pays: header becomes that of the payload, which is returned. It lies at body, where it is
 * to be sealed; content that stays as it is stays where it is.
 */
const uint8_t *xs_packer_pack(struct xs_packer *p, struct xs_header *header, const uint8_t *content, uint8_t *body)
{
    size_t whole = header->length, len = 0;
    int64_t start, packing = 0;
    int asked;

    if (header->type != XS_DATA)
        return content;
    start = p->compress == XS_COMPRESS_AUTO ? now_ns() : 0;
    asked = header->channel == 0 && whole >= XS_COMPRESS_MIN && wants_compressor(p, start);
    if (asked) {
        len = xs_compress_pack(p->zstd, content, whole, body);
        header->flags |= len > 0 ? XS_COMPRESSED : 0;
        packing = p->compress == XS_COMPRESS_AUTO ? now_ns() - start : 0;
    }
    /* What does not shrink by all that zstd knows has no zeros worth leaving out. */
    if (len == 0 && p->elide && !asked) {
        len = xs_elide_pack(content, whole, body);
        header->flags |= len > 0 ? XS_ELIDED : 0;
    }
    if (len > 0)
        header->length = (uint32_t)len;
    if (p->compress == XS_COMPRESS_AUTO)
        xs_weigh_made(&p->weigh, asked, packing, whole, header->length);
    return len > 0 ? body : content;
}

/* Whether the link holds us up. */
void xs_packer_blocked(struct xs_packer *p, int blocked)
{
    int64_t now;

    if (p->compress != XS_COMPRESS_AUTO || (!blocked && p->blocked_since == 0))
        return;
    now = now_ns();
    if (p->blocked_since != 0)
        xs_weigh_blocked(&p->weigh, p->blocked_since, now);
    p->blocked_since = blocked ? now : 0;
}

/* How long the content is of a payload that was opened; 0 when F15 or F18 refuses it. */
size_t xs_packer_measure(const struct xs_packer *p, const struct xs_header *header, const uint8_t *payload)
{
    if (header->flags & XS_ELIDED)
        return xs_elide_measure(payload, header->length);
    return p->compress == XS_COMPRESS_OFF ? 0 : xs_compress_measure(payload, header->length);
}

/* That content, content bytes, into out. XS_OK, XS_EPROTOCOL (then what is in out means nothing) or XS_ENOMEM. */
int xs_packer_unpack(struct xs_packer *p, const struct xs_header *header, const uint8_t *payload, uint8_t *out, size_t content)
{
    if (!(header->flags & XS_ELIDED))
        return xs_compress_unpack(p->zstd, payload, header->length, out, content);
    xs_elide_unpack(payload, header->length, out);
    return XS_OK;
}
