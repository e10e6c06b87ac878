/* What the files of the pump share; nobody else includes this. */
#ifndef XS_PUMP_PRIVATE_H
#define XS_PUMP_PRIVATE_H

#include "fifo.h"
#include "pace.h"
#include "packer.h"
#include "session.h"
#include "util.h"
#include "xlphase.h"

/*
 * Bytes of room behind a frame's end in the receive buffer: how far one read may go beyond the frame it completes. Many small frames then
 * come with one system call, and never more than this is moved to the buffer's start afterwards.
 */
#define READ_AHEAD ((size_t)64 << 10)

/* The longest frame, and what one read may bring behind it. */
#define IN_SIZE (XS_HEADER_LEN + (size_t)XS_PAYLOAD_MAX + XS_TAG_LEN + READ_AHEAD)

/* The longest frame that we send: DATA of a chunk. */
#define OUT_SIZE (XS_HEADER_LEN + XS_CHUNK + XS_TAG_LEN)

/* The longest content of an elided or compressed frame. */
#define CONTENT_SIZE ((size_t)XS_PAYLOAD_MAX)

enum pump_state {
    PUMP_IDLE,                  /* no link yet */
    PUMP_LIVE,
    PUMP_CLOSING,               /* destination: EXIT is sent; reading on until the source closes (F13) */
    PUMP_DRAINING,              /* the link is lost or the peer sent ABORT: what had arrived is being delivered */
    PUMP_OVER                   /* the last event has been told */
};

struct xs_pump {
    struct xs_pump_options options;     /* channel_fd: -1 once it has ended, broken, or been given back */
    struct xs_session *session;
    enum pump_state state;
    int last_event;             /* what PUMP_OVER tells again */

    struct xs_link *link;
    int socket;
    int write_errno;            /* sending has failed: what the peer had sent is still read */
    int send_blocked;           /* the socket took less than the frame: wait for POLLOUT */

    uint8_t *out;               /* the sealed frame that is being sent */
    size_t out_len, out_done;
    uint8_t *content;           /* of an elided or compressed frame that does not go straight into its queue */
    struct xs_packer *packer;
    struct xs_pace pace;
    int64_t held_until;         /* ms: DATA of channel 0 waits for its pace; 0 when it does not */
    uint8_t *in;                /* what has been read and not opened; a frame always starts at in_start */
    size_t in_start, in_end;

    int nonblocking[XS_CHANNELS];       /* the descriptor had O_NONBLOCK from its owner */
    int sink_blocked[XS_CHANNELS];      /* ... and took less than there was */

    int outputs_told, input_told;
    int discarding;             /* input has been thrown away: no further link can go on with it */
    int woken;                  /* a system call said EINTR */
    int failed;                 /* a status for xs_pump_run to return */
    int64_t last_sent, last_received;   /* ms */
    int64_t closing_until;      /* ms */
    int closing_unsent;         /* bytes the kernel still held of ours (SIOCOUTQ) */

    uint64_t link_sent, link_received, frames_sent, frames_received;
    int lost, system_errno;
};

/* CLOCK_MONOTONIC in ms. */
int64_t xs_pump_now(void);

/* ---- pump_socket.c ---- */

/* The link is lost; the first reason stays. */
void xs_pump_lose(struct xs_pump *pump, enum xs_lost why, int error);

/* Open and take the whole frames that have been read, until one raises an event. */
void xs_pump_frames(struct xs_pump *pump);

/* Read once from the socket. Returns 1 if bytes came, 0 if not. */
int xs_pump_receive(struct xs_pump *pump);

/* Seal and send frames while the socket takes them. */
void xs_pump_flush(struct xs_pump *pump);

/* Read and discard what comes. Returns 1 at the peer's FIN or a failure (errno; 0 with FIN), else 0. */
int xs_pump_discard(struct xs_pump *pump);

/* ---- pump_channel.c ---- */

/* Look at the channels' descriptors once: O_NONBLOCK, pipe size. */
void xs_pump_channels_init(struct xs_pump *pump);

/* The events (POLLIN, POLLOUT, 0) that a channel's descriptor waits for. */
short xs_pump_channel_wants(const struct xs_pump *pump, unsigned channel);

/* A channel's descriptor is ready: read once, or write. */
void xs_pump_channel_ready(struct xs_pump *pump, unsigned channel);

/* Write what can be written without asking poll. */
void xs_pump_deliver(struct xs_pump *pump);

/* True while bytes wait to be delivered. */
int xs_pump_undelivered(const struct xs_pump *pump);

#endif
