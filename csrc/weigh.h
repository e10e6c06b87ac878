/*
 * Whether compressing pays just now: compress = "auto". No I/O and no clock: times are arguments, in ns.
 *
 *             the link holds us up, and compressed it would carry more
 *    PLAIN ---------------------------------------------------------> PACKED
 *      ^                                                               |  ^
 *      |  plain was faster                   the compressor holds us up|  | plain was not faster
 *      +------------------------------ TRIAL <-------------------------+  |
 *                                        +--------------------------------+
 *
 * In PLAIN a few frames are compressed to know what it would bring, for at most a hundredth of the time, and only where the link holds us up.
 * In PACKED nothing else tells how fast the link would be without; so a trial, of some 10 ms a second, and only where the compressor holds us up.
 */
#ifndef XS_WEIGH_H
#define XS_WEIGH_H

#include <stddef.h>
#include <stdint.h>

enum xs_weigh_state { XS_WEIGH_PLAIN, XS_WEIGH_PACKED, XS_WEIGH_TRIAL };

/* What has happened in a stretch of time. */
struct xs_weigh_tally {
    int64_t start;
    int64_t blocked;            /* the link took nothing (or bwlimit let nothing go), while there was something */
    int64_t packing;            /* spent in the compressor */
    uint64_t content, wire;     /* bytes of the frames made, before and after */
};

struct xs_weigh {
    enum xs_weigh_state state;
    struct xs_weigh_tally tally;        /* of the present window, or of the trial */
    struct xs_weigh_tally longer;       /* in PACKED: of several windows, up to the present one */
    int64_t began;              /* the state */
    int64_t full_since;         /* in a trial: when the link was first full; 0 before */
    int64_t credit;             /* ns that may be spent on looking, in PLAIN */
    int looking;                /* the last window was held up by the link */
    double packed_rate;         /* bytes of content a ns in the last window before a trial */
    int64_t next_trial;
    double share, time;         /* of compressed frames: bytes on the line and ns, a byte of content; 0 while not known */
};

void xs_weigh_init(struct xs_weigh *w, int64_t now);

/* Is the next frame, of so many bytes of content, to be compressed? */
int xs_weigh_choose(struct xs_weigh *w, int64_t now);

/* A frame was made: whether the compressor was asked, and for how long; bytes of its content and on the line. */
void xs_weigh_made(struct xs_weigh *w, int asked, int64_t packing, size_t content, size_t wire);

/* The link has taken nothing from then until now, although there was something to send. */
void xs_weigh_blocked(struct xs_weigh *w, int64_t from, int64_t now);

#endif
