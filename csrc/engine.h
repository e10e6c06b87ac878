/*
 * The engine's public face: what Python (xensecure/link/engine.py, through cffi) and the C tests use.
 * docs/protocol.md is the specification; F-numbers below are its steps.
 *
 * Three layers, each using only the one above it in this list:
 *   link     the keys of one connection: seal and open frames            (no I/O)
 *   session  the three channels of one domain: queues, windows, phases   (no I/O)
 *   pump     descriptors, polling, time, threads
 *
 * A pump is one thread's: none of its functions may be called while another runs.
 */
#ifndef XS_ENGINE_H
#define XS_ENGINE_H

#include <stddef.h>
#include <stdint.h>

enum {
    XS_HEADER_LEN = 16,
    XS_TAG_LEN = 16,
    XS_KEY_LEN = 32,
    XS_IV_LEN = 12,
    XS_PAYLOAD_MAX = 1 << 20,   /* F2 */
    XS_CHANNELS = 3,
    XS_LANES_MAX = 8,           /* links a session at once: docs/protocol.md, section 6 */
    XS_XL_HEAD_MAX = 1 << 20    /* largest domain configuration (JSON) kept for Python, bytes */
};

enum xs_status {                /* negative results of every function below */
    XS_OK = 0,
    XS_ENOMEM = -1,
    XS_ECRYPTO = -2,            /* the cryptographic library failed for a reason that is not the peer's */
    XS_EHEADER = -3,            /* a header that F2 refuses */
    XS_ETAG = -4,               /* the tag does not hold: damaged, moved, replayed or forged */
    XS_EPROTOCOL = -5,          /* a well-sealed frame that breaks F6 to F12 */
    XS_ESYSTEM = -6,            /* a system call failed; errno is in the statistics */
    XS_EARGUMENT = -7           /* our own mistake */
};

enum xs_type {
    XS_OPEN = 1, XS_ACCEPT, XS_REFUSE, XS_DATA, XS_ACK, XS_END, XS_EXIT, XS_KEEPALIVE,
    XS_OUTCOME, XS_ABORT = 12
};

enum xs_flag {                  /* of DATA */
    XS_ELIDED = 1,              /* its zero runs are left out (F14) */
    XS_AGAIN = 2,               /* bytes that were sent before, on a lane that was lost or had stalled (J6) */
    XS_COMPRESSED = 4           /* on channel 0, and not with XS_ELIDED: it is compressed (F17) */
};

enum xs_role { XS_SOURCE = 0, XS_DESTINATION = 1 };

struct xs_header {
    uint8_t type;
    uint8_t channel;
    uint8_t flags;              /* enum xs_flag; 0 but with XS_DATA */
    uint32_t length;            /* of the payload, bytes */
    uint64_t offset;
};

/* ---- link ---------------------------------------------------------------------------------- */

struct xs_link;

struct xs_link_keys {           /* both directions of one connection, C5 */
    uint8_t send_key[32], send_iv[12];
    uint8_t receive_key[32], receive_iv[12];
};

/* Overwrite len bytes at p in a way that the compiler keeps. */
void xs_wipe(void *p, size_t len);

/*
 * A link with its keys, which the caller then wipes. backend: "libcrypto", "ipsec-mb" or NULL for the best there is.
 * ratchet_blocks: AES blocks a key may process (F4). NULL when memory or the backend is lacking.
 */
struct xs_link *xs_link_new(const char *backend, const struct xs_link_keys *keys, uint64_t ratchet_blocks);
void xs_link_free(struct xs_link *link);        /* wipes; NULL is fine */
const char *xs_link_backend(const struct xs_link *link);

/* True if libzstd was there when this was built: without it compressed frames can neither be made nor taken. */
int xs_zstd_built_in(void);

/* The name of the i-th backend that is compiled in; NULL behind the last. */
const char *xs_backend_name(size_t i);

/* The backend that a link with that name would use (NULL: the best there is); NULL when it is not compiled in or this CPU cannot run it. */
const char *xs_backend_find(const char *name);

/* Seal one frame into out (XS_HEADER_LEN + header->length + XS_TAG_LEN bytes). Returns XS_OK or an error. */
int xs_link_seal(struct xs_link *link, const struct xs_header *header, const uint8_t *payload, uint8_t *out);

/* Read and check the 16 bytes of a header (F2): no tag has been checked yet. Returns XS_OK or XS_EHEADER. */
int xs_header_parse(const uint8_t bytes[16], struct xs_header *header);

/* Open the frame that starts at frame (header, body, tag) into out (header's length bytes; may be the body's own
 * place). On any error out holds nothing of the peer's. */
int xs_link_open(struct xs_link *link, const uint8_t *frame, struct xs_header *header, uint8_t *out);

/* ---- session and pump ------------------------------------------------------------------------ */

struct xs_pump;

enum xs_phase {                 /* how far xl's own protocol has come, as seen passing by (xl_migrate.c) */
    XS_PHASE_START = 0,
    XS_PHASE_BANNER,            /* receiver's banner */
    XS_PHASE_HEAD,              /* the sender's header and the domain's configuration */
    XS_PHASE_READY,             /* "domain received, ready to unpause" */
    XS_PHASE_GO,                /* "domain is yours, you are cleared to unpause" */
    XS_PHASE_REPORT             /* "my copy unpause results are as follows" and the status byte */
};

enum xs_event {                 /* results of xs_pump_run */
    XS_EV_TIMEOUT = 0,          /* timeout_ms has passed: time for a progress line */
    XS_EV_WOKEN,                /* wake_fd is readable, or a signal came */
    XS_EV_PHASE,                /* a new phase: raised when its bytes arrive, before they are delivered */
    XS_EV_LOST,                 /* the last link is lost: stats.lost says why. Said once; further runs deliver what had arrived and read
                                   input as far as the windows allow, until xs_pump_attach (S1). After xs_pump_abort: what had arrived
                                   has been delivered, and further runs say so again at once */
    XS_EV_ABORTED,              /* the peer sent ABORT: stats.reason, xs_pump_text; what had arrived has been delivered. Also again at once */
    XS_EV_OUTPUTS_ENDED,        /* destination: xl's stdout and stderr have ended and been read to their end */
    XS_EV_INPUT_ENDED,          /* destination: channel 0 has ended and all of it is in xl's pipe: close channel_fd[0] now, so that
                                   xl sees the end; the pump has forgotten that descriptor. Once a session */
    XS_EV_LANE_LOST,            /* a link is lost while others live, and the session goes on: stats.lane_lost, lane_errno; the pump has forgotten
                                   the socket, which is stats.lane_socket */
    XS_EV_ENDED                 /* the session has ended well (F12); stats.exit_kind, exit_value */
};

enum xs_compression {
    XS_COMPRESS_OFF = 0,        /* compressed frames are a fault when they come */
    XS_COMPRESS_AUTO,           /* frames are compressed while that makes the stream faster */
    XS_COMPRESS_ZSTD            /* every frame of channel 0 that shrinks enough is compressed */
};

enum xs_lost {
    XS_LOST_NOT = 0, XS_LOST_CLOSED /* FIN before the end */, XS_LOST_RESET, XS_LOST_SILENCE,
    XS_LOST_HEADER, XS_LOST_TAG, XS_LOST_PROTOCOL, XS_LOST_SYSTEM,
    XS_LOST_ABORT,              /* we sent ABORT ourselves */
    XS_LOST_REPLACED            /* xs_pump_drop */
};

struct xs_pump_options {
    int role;                   /* enum xs_role */
    int channel_fd[3];          /* source: 0 is read, 1 and 2 written; destination: the reverse; the pump closes none of them, and sets
                                   O_NONBLOCK on none: one that has it at xs_pump_new is written as much as it takes, one that has not (it may be
                                   shared with other processes) at most PIPE_BUF bytes at a time */
    int wake_fd;                /* nor is this one closed: readable means "return to Python" (signal.set_wakeup_fd); -1 for none */
    uint32_t send_window[3];    /* F8, bytes: for the channels this side sends: what the peer has room for */
    uint32_t receive_window[3]; /* ... and what this side has told the peer */
    int elide;                  /* leave zero runs out of what is sent (F14); what comes is taken either way */
    int compress;               /* enum xs_compression: of what is sent; anything but XS_COMPRESS_OFF where F17 is agreed on */
    uint64_t bwlimit;           /* bytes a second that DATA of channel 0 may take on the line; 0: as many as it can */
    uint32_t keepalive_ms;      /* F10; 0: never */
    uint32_t silence_ms;        /* counts from the last byte that came, of whatever kind: one frame may take long on a slow link */
};

struct xs_memory {              /* how far the domain's memory has passed, by the headers of libxc's records (csrc/xlrecords.h) */
    uint32_t pass_number;       /* of the pass it is sent in, from 1; 0: no page yet, or nothing that could be followed */
    uint64_t pass_bytes;        /* contents of pages in this pass */
    uint64_t frame, frame_max;  /* where the present record starts, a pass being in the order of frames; and the highest that one has started at */
};

struct xs_stats {               /* a snapshot */
    uint64_t channel_bytes[3];  /* stream bytes sent (channels this side sends) or received, END not counted */
    uint64_t taken[3];          /* ... and of those this side sends, what has been read from the descriptor */
    uint64_t delivered[3];      /* acknowledged by the peer, or written here */
    uint64_t link_sent, link_received;  /* bytes on the socket, headers and tags included */
    uint64_t frames_sent, frames_received;
    int32_t phase;              /* enum xs_phase: the one of the last XS_EV_PHASE */
    int32_t report_status;      /* xl's status byte, 0 to 255; -1 before it was seen */
    int32_t lost;               /* enum xs_lost */
    int32_t system_errno;       /* with XS_LOST_RESET, XS_LOST_SYSTEM, XS_ESYSTEM and, if nothing else failed since, sink_broken */
    int32_t reason;             /* of ABORT */
    int32_t exit_kind, exit_value;      /* -1 before EXIT */
    int32_t sink_broken[3];     /* the reader of a channel that we deliver has gone: what comes is discarded */
    int32_t lanes;              /* links that live */
    int32_t lane_socket;        /* of the last XS_EV_LANE_LOST: its descriptor, -1 before */
    int32_t lane_lost, lane_errno;      /* ... and why: enum xs_lost */
    struct xs_memory memory;
};

struct xs_pump *xs_pump_new(const struct xs_pump_options *options);
void xs_pump_free(struct xs_pump *pump);        /* wipes the queues; frees the link it holds; closes no descriptor */

/* Give the pump a connection: its keys (the pump owns the link from now on) and its non-blocking socket (which it does not close,
 * and does not touch any more once it has said XS_EV_LOST, but for xs_pump_abort, or XS_EV_LANE_LOST for that one). Up to XS_LANES_MAX at
 * once; from the second on each is served by a thread of its own. With the last link lost the session goes on over it with what is not yet
 * acknowledged (S4).
 * Returns XS_OK, or an error (no more links now, or memory or threads are lacking): the caller keeps the link then. */
int xs_pump_attach(struct xs_pump *pump, struct xs_link *link, int socket_fd);

/* The peer has given all links up (S4): they are lost, and nothing is told of them; the caller closes their sockets and attaches another.
 * XS_OK, or XS_EARGUMENT where no further link would be taken. */
int xs_pump_drop(struct xs_pump *pump);

/* Run until something happens. timeout_ms < 0: no time-out. Returns an enum xs_event (>= 0) or an enum xs_status (< 0):
 * XS_EARGUMENT without a link, XS_ESYSTEM when poll or the reading of a channel fails (which is not its end). */
int xs_pump_run(struct xs_pump *pump, int timeout_ms);

void xs_pump_stats(struct xs_pump *pump, struct xs_stats *out);

/* The domain's configuration (JSON, without its trailing NUL) as it passed on channel 0, once the phase is XS_PHASE_HEAD: up to size
 * bytes into out; returns its whole length (0: none seen, or longer than XS_XL_HEAD_MAX). */
size_t xs_pump_head(struct xs_pump *pump, uint8_t *out, size_t size);

/* Destination: xl has been given the head of channel 0 (all up to the configuration's end) by somebody else; it counts as delivered. XS_OK, also
 * where nobody reads that channel any more; or XS_EARGUMENT unless it has come whole and none of it has been delivered. */
int xs_pump_skip_head(struct xs_pump *pump);

/* The text of the ABORT received: up to size bytes; returns its length. */
size_t xs_pump_text(struct xs_pump *pump, uint8_t *out, size_t size);

/* Destination: xl has ended. EXIT is sent once both outputs have ended; XS_EV_ENDED follows when the peer has closed, or 5 s after
 * the last sign of it (F13). XS_OK or XS_EARGUMENT. */
int xs_pump_exit(struct xs_pump *pump, int kind, int value);

/* Change bwlimit, from the next frame on. */
void xs_pump_limit(struct xs_pump *pump, uint64_t bwlimit);

/* Take the given channel's input as ended, as if its descriptor had (for a child that keeps xl's stdout open). XS_OK or XS_EARGUMENT. */
int xs_pump_end_input(struct xs_pump *pump, int channel);

/* Send ABORT as the next frame of every link, push it out, shut the sending side and read on until the peer has closed (a close with unread bytes
 * would reset the connection under the ABORT): at most timeout_ms in all. Also after XS_EV_LOST, as long as the socket is open. The
 * link is over then. XS_OK once ABORT has been handed to the kernel, or an error. */
int xs_pump_abort(struct xs_pump *pump, int reason, const uint8_t *text, size_t len, int timeout_ms);

#endif
