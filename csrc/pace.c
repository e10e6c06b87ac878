#include "pace.h"

/* ns: after a pause so much may go at once. Short beside what a switch's buffers or a neighbour's ping notices, long beside poll's millisecond. */
static const int64_t BURST = 100000000;

/*
 * Bytes: frames that small do not wait, as long as all those since the bucket was last in credit are no more. xl's READY and GO are 44 bytes and
 * stop the guest: they must not wait for what a frame of 512 KiB before them has cost.
 */
enum { SMALL = 4096 };

/* Change the limit. */
void xs_pace_set(struct xs_pace *p, uint64_t rate, int64_t now)
{
    p->rate = rate;
    if (p->due > now + BURST)
        p->due = now + BURST;   /* a debt at a low rate does not outlive it */
}

/* When a frame of so many bytes may leave: now, or later. */
int64_t xs_pace_when(const struct xs_pace *p, size_t bytes, int64_t now)
{
    if (p->rate == 0 || p->due <= now || bytes + p->overdrawn <= SMALL)
        return now;
    return p->due;
}

/* A frame of so many bytes leaves. */
void xs_pace_sent(struct xs_pace *p, size_t bytes, int64_t now)
{
    if (p->rate == 0)
        return;
    p->overdrawn = p->due <= now ? 0 : p->overdrawn + bytes;
    if (p->due < now - BURST)
        p->due = now - BURST;
    /* At most 2^21 bytes a frame: the product stays below 2^51. */
    p->due += (int64_t)((uint64_t)bytes * 1000000000 / p->rate);
}
