/* What session.c, session_give.c and session_take.c share; nobody else includes this. */
#ifndef XS_SESSION_PRIVATE_H
#define XS_SESSION_PRIVATE_H

#include "fifo.h"
#include "session.h"
#include "stripes.h"
#include "util.h"
#include "xlphase.h"

enum { CONTROL_MAX = 2 /* reason */ + XS_TEXT_MAX };

struct outgoing {               /* a channel that this side sends */
    struct xs_fifo *fifo;       /* base: acknowledged, but for what is being sealed */
    struct xs_stripes *stripes; /* what has been given out, and to which lane */
    uint64_t acked;
    int ended;                  /* the input's end has been read */
    int end_sent;               /* on the leading lane */
};

struct incoming {               /* a channel that the peer sends */
    struct xs_fifo *fifo;       /* base: delivered; tail: come without a gap */
    size_t *fill;               /* of the stripes behind the tail's: how much has come, from the stripe's start (J5) */
    size_t slots;
    size_t window;              /* what the peer was told, bytes */
    uint64_t top;               /* behind the last byte that has come */
    uint64_t told;              /* the offset last acknowledged */
    int ack_now;
    unsigned again;             /* the lanes over which frames have come that were sent before: a bit each (J6) */
    int end_seen;
    uint64_t end;               /* the channel's length then */
    int broken;                 /* nobody takes what is delivered */
};

struct lane {
    int there;
    int stalled;                /* nobody acknowledges what it sends: it gets no stripes */
    uint64_t acked[XS_CHANNELS];        /* by the last ACK that came over it */
    unsigned ends;              /* the channels whose END came over it: a bit each */
    int abort_sent;
    int sealing;                /* a payload has been given out and is being read */
    unsigned sealing_channel;
    uint64_t sealing_offset;
    int placing;                /* a frame is being opened into a queue */
    unsigned placing_channel;
    uint64_t placing_offset;
};

struct xs_session {
    enum xs_role role;
    struct xs_pool *pool;
    struct outgoing out[XS_CHANNELS];   /* fifo NULL where the peer sends */
    struct incoming in[XS_CHANNELS];    /* fifo NULL where this side sends */
    struct xs_xlphase *phases;

    struct lane lane[XS_LANES_MAX];
    unsigned leader;            /* the lane of all that is not striped: J5 */
    int attached;               /* how many there have been */
    int striped;                /* there have been two at once: from then on channel 0 comes in stripes */

    unsigned keepalive;         /* to be sent: a bit a lane */
    int hold;                   /* DATA of channel 0 is held back */
    int exit_set, exit_sent;    /* destination */
    int abort_set;
    uint8_t control[CONTROL_MAX];       /* payload of the EXIT or ABORT to be sent */
    size_t control_len;

    int exit_kind, exit_value;  /* sent or received; -1 before */
    int aborted;                /* received */
    int reason;
    uint8_t text[XS_TEXT_MAX];
    size_t text_len;
};

/* Bytes before that offset have been acknowledged. */
void xs_session_acknowledged(struct xs_session *s, unsigned channel, uint64_t offset);

#endif
