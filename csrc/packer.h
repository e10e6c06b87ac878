/*
 * What becomes of a DATA frame's content on its way, between session and link: nothing, elided (F14), or compressed (F17); and back. One for
 * each direction's frames of one connection; it knows the time, and neither descriptors nor frames.
 */
#ifndef XS_PACKER_H
#define XS_PACKER_H

#include <stddef.h>
#include <stdint.h>

#include "engine.h"

struct xs_packer;

/* elide: leave zero runs out of what is sent. compress: enum xs_compression; with XS_COMPRESS_OFF nothing compressed is taken either. NULL when
 * there is no memory. */
struct xs_packer *xs_packer_new(int elide, int compress);
void xs_packer_free(struct xs_packer *p);       /* wipes; NULL is fine */

/*
 * Make a frame's content shorter where that is wanted and pays: header becomes that of the payload, which is returned. It lies at body, where it is
 * to be sealed; content that stays as it is stays where it is.
 */
const uint8_t *xs_packer_pack(struct xs_packer *p, struct xs_header *header, const uint8_t *content, uint8_t *body);

/* Whether the link holds us up: there is something to send, and it takes nothing (or bwlimit lets nothing go). Said at every change, or more often. */
void xs_packer_blocked(struct xs_packer *p, int blocked);

/* How long the content is of a payload that was opened; 0 when F15 or F18 refuses it. */
size_t xs_packer_measure(const struct xs_packer *p, const struct xs_header *header, const uint8_t *payload);

/* That content, content bytes, into out. XS_OK, XS_EPROTOCOL (then what is in out means nothing) or XS_ENOMEM. */
int xs_packer_unpack(struct xs_packer *p, const struct xs_header *header, const uint8_t *payload, uint8_t *out, size_t content);

#endif
