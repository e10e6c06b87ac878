/*
 * Which lane sends what of a channel (docs/protocol.md, J5 and J6): a table with one entry a stripe of the window. It knows offsets and no
 * bytes; those are in the channel's queue, whose chunks are the stripes.
 */
#ifndef XS_STRIPES_H
#define XS_STRIPES_H

#include <stddef.h>
#include <stdint.h>

#include "fifo.h"

struct xs_stripes;

/* What a lane is to send next. */
struct xs_piece {
    uint64_t offset;
    size_t len;                 /* never past the stripe's end */
    int again;                  /* all of it has been given out before, to a lane that was lost or had stalled */
};

/* What there is for a lane to send. */
enum xs_offer { XS_OFFER_NONE = 0, XS_OFFER_ANY /* a stripe that no lane has: any lane may take it */, XS_OFFER_OWN };

/* For a queue of that limit, bytes. NULL when there is no memory. */
struct xs_stripes *xs_stripes_new(size_t limit);
void xs_stripes_free(struct xs_stripes *stripes);       /* NULL is fine */

/* The bytes up to tail are there to be sent. */
void xs_stripes_extend(struct xs_stripes *stripes, uint64_t tail);

/* The bytes before offset are acknowledged. */
void xs_stripes_release(struct xs_stripes *stripes, uint64_t offset);

/* How far everything has been given out: what an ACK may not pass (F7). */
uint64_t xs_stripes_high(const struct xs_stripes *stripes);

/* How many bytes wait to be given out, for the first time or again. */
size_t xs_stripes_unsent(const struct xs_stripes *stripes);

/* Whether the lane would be given something now, and what. */
enum xs_offer xs_stripes_offer(const struct xs_stripes *stripes, unsigned lane);

/* Give the lane its next piece: 1, or 0 when there is none for it. It counts as sent. */
int xs_stripes_give(struct xs_stripes *stripes, unsigned lane, struct xs_piece *piece);

/* The lane is lost, or has stalled: what it was given and is not acknowledged is for the others. */
void xs_stripes_orphan(struct xs_stripes *stripes, unsigned lane);

#endif
