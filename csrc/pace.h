/*
 * bwlimit: how fast DATA of channel 0 may go. A token bucket as a time at which the next frame may leave. No I/O and no clock: times are arguments,
 * in ns.
 */
#ifndef XS_PACE_H
#define XS_PACE_H

#include <stddef.h>
#include <stdint.h>

struct xs_pace {
    uint64_t rate;              /* bytes a second; 0: no limit */
    int64_t due;                /* when what has been sent is paid for */
    size_t overdrawn;           /* bytes of small frames that have gone since before that */
};

/* Change the limit. What has been sent stays paid for, or not, at the old one for XS_PACE_BURST at most. */
void xs_pace_set(struct xs_pace *p, uint64_t rate, int64_t now);

/* When a frame of so many bytes may leave: now, or later. */
int64_t xs_pace_when(const struct xs_pace *p, size_t bytes, int64_t now);

/* A frame of so many bytes leaves. */
void xs_pace_sent(struct xs_pace *p, size_t bytes, int64_t now);

#endif
