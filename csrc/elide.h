/*
 * Zero runs left out of a DATA frame, and put back (docs/protocol.md, F14 and F15). No I/O and no state: a frame's content in, its payload
 * out, and back.
 */
#ifndef XS_ELIDE_H
#define XS_ELIDE_H

#include <stddef.h>
#include <stdint.h>

enum {
    XS_ELIDE_PIECE = 4 /* zeros */ + 4 /* literals */,  /* bytes of a piece without its literals */
    XS_ELIDE_RUN_MIN = 64       /* bytes: eight times what a piece costs; F15 */
};

/*
 * The payload that stands for content, into out, which has room for len - 1 bytes. Returns its length, less than len; 0, with nothing
 * written, when its zeros are not worth it, and the content is to be sent as it is.
 */
size_t xs_elide_pack(const uint8_t *content, size_t len, uint8_t *out);

/* How long the content is that a payload stands for; 0 when F15 refuses the payload. */
size_t xs_elide_measure(const uint8_t *payload, size_t len);

/* The content of a payload that xs_elide_measure has found good: as many bytes as it said, into out. */
void xs_elide_unpack(const uint8_t *payload, size_t len, uint8_t *out);

#endif
