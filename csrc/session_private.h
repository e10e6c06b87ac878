/* What session.c and session_take.c share; nobody else includes this. */
#ifndef XS_SESSION_PRIVATE_H
#define XS_SESSION_PRIVATE_H

#include "fifo.h"
#include "session.h"
#include "util.h"
#include "xlphase.h"

enum { CONTROL_MAX = 2 /* reason */ + XS_TEXT_MAX };

struct outgoing {               /* a channel that this side sends */
    struct xs_fifo *fifo;       /* base: acknowledged; cursor: sent on this link */
    uint64_t high;              /* sent on any link: what an ACK may not pass (F7) */
    int ended;                  /* the input's end has been read */
    int end_sent;               /* on this link */
};

struct incoming {               /* a channel that the peer sends */
    struct xs_fifo *fifo;       /* base: delivered; tail: received */
    size_t window;              /* what the peer was told, bytes */
    uint64_t expect;            /* where the next DATA of this link starts (F6): the tail, or less on a link that sends anew */
    uint64_t told;              /* the offset last acknowledged */
    int ack_now;
    int end_seen;               /* its offset is then the tail */
    int end_here;               /* ... and it has come on this link */
    int broken;                 /* nobody takes what is delivered */
};

struct xs_session {
    enum xs_role role;
    struct xs_pool *pool;
    struct outgoing out[XS_CHANNELS];   /* fifo NULL where the peer sends */
    struct incoming in[XS_CHANNELS];    /* fifo NULL where this side sends */
    struct xs_xlphase *phases;

    int keepalive;              /* to be sent */
    int hold;                   /* DATA of channel 0 is held back */
    int exit_set, exit_sent;    /* destination */
    int abort_set, abort_sent;
    uint8_t control[CONTROL_MAX];       /* payload of the EXIT or ABORT to be sent */
    size_t control_len;

    int exit_kind, exit_value;  /* sent or received; -1 before */
    int aborted;                /* received */
    int reason;
    uint8_t text[XS_TEXT_MAX];
    size_t text_len;
};

#endif
