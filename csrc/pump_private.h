/* What the files of the pump share; nobody else includes this. */
#ifndef XS_PUMP_PRIVATE_H
#define XS_PUMP_PRIVATE_H

#include <limits.h>
#include <pthread.h>

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
    PUMP_LOST,                  /* the last link is lost: xl is served as far as the windows allow */
    PUMP_DRAINING,              /* ABORT has been sent or received: what had arrived is being delivered */
    PUMP_OVER                   /* the last event has been told */
};

enum lane_state {
    LANE_NONE,
    LANE_LIVE,
    LANE_CLOSING,               /* destination: EXIT is sent over it; reading on until the source closes (F13) */
    LANE_LOST                   /* ... and not yet told, or the last one */
};

/*
 * One connection. Only the thread that serves it touches its buffers: its own, or with one lane the caller's of xs_pump_run. The rest is
 * under the pump's lock.
 */
struct xs_lane {
    struct xs_pump *pump;
    unsigned number;            /* the session's number for it */
    enum lane_state state;
    struct xs_link *link;
    int socket;
    int write_errno;            /* sending has failed: what the peer had sent is still read */
    int send_blocked;           /* the socket took less than the frame: wait for POLLOUT */

    uint8_t *out;               /* the sealed frame that is being sent */
    size_t out_len, out_done;
    uint8_t *in;                /* what has been read and not opened; a frame always starts at in_start */
    size_t in_start, in_end;
    uint8_t *content;           /* of an elided or compressed frame that does not go straight into its queue */
    struct xs_packer *packer;

    int64_t last_sent, last_received;   /* ms */
    int64_t closing_until;      /* ms */
    int closing_unsent;         /* bytes the kernel still held of ours (SIOCOUTQ) */
    uint64_t sent;              /* bytes that the socket has taken */
    int64_t looked;             /* ms: when it was last asked how much of that has been acknowledged; 0: there was nothing in flight */
    uint64_t acknowledged;      /* bytes, by the peer's TCP, then */
    int lost, system_errno;
    int quiet;                  /* its loss is no news: the session has ended well */

    int threaded;
    pthread_t thread;
    int wake;                   /* an eventfd; -1 without a thread */
    int asleep;                 /* its thread polls, or is about to */
};

struct xs_pump {
    struct xs_pump_options options;     /* channel_fd: -1 once it has ended, broken, or been given back */
    struct xs_session *session;
    enum pump_state state;
    int last_event;             /* what PUMP_OVER tells again */
    struct xs_lane lane[XS_LANES_MAX];
    struct xs_lane *own;        /* the one that the caller's thread serves; NULL if all have threads */
    struct xs_lane *last;       /* the one that was lost last */

    /* Held by every thread but while it polls, seals, opens, or is in a system call that moves bytes. */
    pthread_mutex_t lock;
    pthread_cond_t taken;       /* a frame that was being opened has been taken, or nobody waits for it any more */
    int wake;                   /* an eventfd for the caller's thread; -1 while no other is there */
    int asleep;
    int held;                   /* ... and did not ask for input, because enough waits to be sent or the window is used up */
    int stop;                   /* the lanes' threads are to end */

    struct xs_pace pace;        /* of all lanes together */
    int64_t held_until;         /* ms: DATA of channel 0 waits for its pace; 0 when it does not */

    int nonblocking[XS_CHANNELS];       /* the descriptor had O_NONBLOCK from its owner */
    int sink_blocked[XS_CHANNELS];      /* ... and took less than there was */

    int outputs_told, input_told;
    int lost_told;
    int woken;                  /* a system call said EINTR */
    int failed;                 /* a status for xs_pump_run to return */

    uint64_t link_sent, link_received, frames_sent, frames_received;
    int lost, system_errno;
    int lane_socket, lane_lost, lane_errno;     /* of the last XS_EV_LANE_LOST */
};

/* ---- pump.c ---- */

/* CLOCK_MONOTONIC in ms. */
int64_t xs_pump_now(void);

/* The last event of the session: it is told again by every further run. */
int xs_pump_over(struct xs_pump *pump, int event);

/* ---- pump_socket.c: one lane's frames ---- */

/* Open and take the whole frames that have been read, until the session is over. */
void xs_lane_frames(struct xs_lane *lane);

/* Read once from the socket. Returns 1 if bytes came, 0 if not. */
int xs_lane_receive(struct xs_lane *lane);

/* Hold DATA of channel 0 back until bwlimit lets it go; nothing else waits for it. */
void xs_pump_hold(struct xs_pump *pump);

/* Seal and send frames while the socket takes them. */
void xs_lane_flush(struct xs_lane *lane);

/* Read and discard what comes. Returns 1 at the peer's FIN or a failure (errno; 0 with FIN), else 0. */
int xs_lane_discard(struct xs_lane *lane);

/* ---- pump_lane.c: one lane's life ---- */

/* True while a lane is to be read: until EXIT or ABORT has come, or it is lost. */
int xs_lane_reads(const struct xs_lane *lane);

/* The lane is lost; the first reason stays. With the last one the link is. */
void xs_lane_lose(struct xs_lane *lane, enum xs_lost why, int error);

/* Send what there is to send; after EXIT shut the sending side. */
void xs_lane_send(struct xs_lane *lane);

/* The events that its socket waits for. */
short xs_lane_wants(const struct xs_lane *lane);

/* The earlier of until and the time (ms) at which the lane has something to do by itself. */
int64_t xs_lane_time(const struct xs_lane *lane, int64_t until);

/* After poll: read if there is something, and look at the time. */
void xs_lane_ready(struct xs_lane *lane, short revents);

/* Bytes that the kernel still holds of ours; 0 where it cannot say. */
int xs_lane_unsent(const struct xs_lane *lane);

/* What poll is to wait until a time: ms, -1 for ever. */
int xs_pump_wait(int64_t until, int64_t now);

/* ---- pump_stall.c: a lane whose peer's TCP is silent while others live ---- */

/* The lane's socket is about to take bytes: where none are in flight, count the time from now on. */
void xs_lane_sends(struct xs_lane *lane);

/* The earlier of until and the time (ms) at which the lane's socket is to be looked at. */
int64_t xs_lane_stall_time(const struct xs_lane *lane, int64_t until);

/* Look at the lane's socket, if it is time: does it stand still, or go on? */
void xs_lane_watch_stall(struct xs_lane *lane);

/* ---- pump_threads.c ---- */

/* Make locks, destroy them. Returns XS_OK or XS_ENOMEM. */
int xs_pump_threads_init(struct xs_pump *pump);
void xs_pump_threads_free(struct xs_pump *pump);

void xs_pump_lock(struct xs_pump *pump);
void xs_pump_unlock(struct xs_pump *pump);

/* Give a lane a thread. Returns XS_OK, or XS_ESYSTEM with errno. */
int xs_lane_start(struct xs_lane *lane);

/* Wait until a lane's thread, which has nothing more to do, has ended. */
void xs_lane_join(struct xs_lane *lane);

/* End all threads; their lanes stay as they are. */
void xs_pump_stop(struct xs_pump *pump);

/* Wake the threads of lanes that have something to send, and the caller's of xs_pump_run. */
void xs_pump_stir(struct xs_pump *pump);
void xs_pump_rouse(struct xs_pump *pump);
void xs_pump_hush(struct xs_pump *pump);

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
