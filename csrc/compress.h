/*
 * DATA payloads compressed with Zstandard, and back (docs/protocol.md, F17 and F18). No I/O: a frame's content in, its payload out, and back;
 * every frame by itself, so that nothing but memory is kept from one to the next.
 *
 * Built without libzstd, it measures all the same, and makes nothing.
 */
#ifndef XS_COMPRESS_H
#define XS_COMPRESS_H

#include <stddef.h>
#include <stdint.h>

enum {
    /* Bytes: less is sent as it is. xl's own messages and the headers of its records are shorter, and a frame costs 32 bytes anyway. */
    XS_COMPRESS_MIN = 512
};

struct xs_compress;

/* Room for one compressor and one decompressor, which takes memory when it is first used. NULL when there is no memory. */
struct xs_compress *xs_compress_new(void);

/* Wipe and free; NULL is fine. */
void xs_compress_free(struct xs_compress *c);

/*
 * The payload that stands for content, into out, which has room for len bytes. Returns its length, at most fifteen sixteenths of len; 0 when the
 * content does not shrink that far, is shorter than XS_COMPRESS_MIN, or memory or libzstd is lacking: it is to be sent otherwise.
 */
size_t xs_compress_pack(struct xs_compress *c, const uint8_t *content, size_t len, uint8_t *out);

/* How long the content is that a payload says it stands for; 0 when F18 refuses the payload for its first bytes. */
size_t xs_compress_measure(const uint8_t *payload, size_t len);

/*
 * The content of a payload, content bytes as xs_compress_measure has said, into out. Returns XS_OK; XS_EPROTOCOL when the payload stands for
 * anything else or is of another form (F18), and then what is in out means nothing; XS_ENOMEM.
 */
int xs_compress_unpack(struct xs_compress *c, const uint8_t *payload, size_t len, uint8_t *out, size_t content);

#endif
