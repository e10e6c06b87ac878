/*
 * Follows xl's own protocol as it passes by (tools/xl/xl_migrate.c, xl_vmcontrol.c, xl.h):
 *
 *   channel 1  banner, 54 bytes        "xl migration receiver ready, send binary domain data.\n"       no NUL
 *   channel 0  header, 48 bytes        magic[32], u32 byte order, mandatory flags, optional flags, optional length
 *              optional data           u32 length of the configuration, the configuration (JSON)
 *              the domain              (of which only the records' headers are looked at: xlrecords.h)
 *   channel 1  ready, 34 bytes         "domain received, ready to unpause" NUL
 *   channel 0  GO, 44 bytes            "domain is yours, you are cleared to unpause" NUL
 *   channel 1  report, 39 + 1 bytes    "my copy unpause results are as follows" NUL, status byte
 *
 * It only looks: what it does not expect makes it stop looking at that channel, and changes nothing in the stream.
 */
#ifndef XS_XLPHASE_H
#define XS_XLPHASE_H

#include <stddef.h>
#include <stdint.h>

#include "engine.h"

struct xs_xlphase;

/* One that has seen nothing yet. NULL when there is no memory. */
struct xs_xlphase *xs_xlphase_new(void);

/* Wipe and free; NULL is fine. */
void xs_xlphase_free(struct xs_xlphase *x);

/* The next len bytes of a channel, in the stream's order. */
void xs_xlphase_feed(struct xs_xlphase *x, unsigned channel, const uint8_t *bytes, size_t len);

/* True while there are phases that xs_xlphase_next has not given out. */
int xs_xlphase_pending(const struct xs_xlphase *x);

/* The next phase to tell of, once each and in order; XS_PHASE_START when there is none. */
enum xs_phase xs_xlphase_next(struct xs_xlphase *x);

/* The phase last told of. */
enum xs_phase xs_xlphase_told(const struct xs_xlphase *x);

/* xl's status byte, or -1 before it was seen. */
int xs_xlphase_status(const struct xs_xlphase *x);

/* How far the domain's memory has passed. */
void xs_xlphase_memory(const struct xs_xlphase *x, struct xs_memory *out);

/* The domain's configuration (JSON, without its trailing NUL); *len 0 when there is none. */
const uint8_t *xs_xlphase_head(const struct xs_xlphase *x, size_t *len);

/* The bytes of channel 0 up to the configuration's end; 0 before it has come, or where it is too long to be kept. */
size_t xs_xlphase_head_end(const struct xs_xlphase *x);

#endif
