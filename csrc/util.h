/*
 * Small things that every part of the engine uses: big-endian numbers, wiping, pages, the ratchet's HKDF.
 */
#ifndef XS_UTIL_H
#define XS_UTIL_H

#include <stddef.h>
#include <stdint.h>

#include "engine.h"

/* Load a big-endian number. */
static inline uint16_t xs_load16(const uint8_t *p)
{
    return (uint16_t)(((unsigned)p[0] << 8) | p[1]);
}

static inline uint32_t xs_load32(const uint8_t *p)
{
    return ((uint32_t)xs_load16(p) << 16) | xs_load16(p + 2);
}

static inline uint64_t xs_load64(const uint8_t *p)
{
    return ((uint64_t)xs_load32(p) << 32) | xs_load32(p + 4);
}

/* Store a big-endian number. */
static inline void xs_store16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static inline void xs_store32(uint8_t *p, uint32_t v)
{
    xs_store16(p, (uint16_t)(v >> 16));
    xs_store16(p + 2, (uint16_t)v);
}

static inline void xs_store64(uint8_t *p, uint64_t v)
{
    xs_store32(p, (uint32_t)(v >> 32));
    xs_store32(p + 4, (uint32_t)v);
}

/* The smaller of two sizes. */
static inline size_t xs_min(size_t a, size_t b)
{
    return a < b ? a : b;
}

/*
 * key := HKDF-Expand(key, vec8(label), 32) (RFC 5869, SHA-256), in place. Returns XS_OK or XS_ECRYPTO; the key is unchanged then.
 */
int xs_ratchet(uint8_t key[static XS_KEY_LEN], const char *label);

/* Whole pages for len bytes of the domain's, kept out of core dumps; zeroed. NULL when there is no memory. */
void *xs_pages_new(size_t len);

/* Wipe and give back what xs_pages_new(len) gave; NULL is fine. */
void xs_pages_free(void *p, size_t len);

#endif
