/*
 * The session: the three channels of one domain, what frame to send next and what a received one means (docs/protocol.md, F6 to F12).
 * No I/O and no time: the pump, a simulator or a fuzzer gives it bytes and frames and takes bytes and frames.
 *
 * Links are lanes here (section 6): which one a frame comes from or goes to is a parameter. A lane may be lost and another attached; what is
 * not acknowledged is then sent anew, and what comes twice is taken once.
 *
 * Nothing here locks. The pump's threads hold its lock around every call, but not while they seal what xs_session_next gave or open into what
 * xs_session_place gave: until xs_session_sealed and xs_session_take (or xs_session_lost) these bytes stay where they are.
 *
 * Frames here have their content whole: whether it is elided or compressed on its way (F14, F17) is between the pumps.
 */
#ifndef XS_SESSION_H
#define XS_SESSION_H

#include <stddef.h>
#include <stdint.h>

#include "engine.h"
#include "stripes.h"

enum {
    XS_TEXT_MAX = 1024          /* bytes of ABORT's text: docs/protocol.md, section 4 */
};

struct xs_session;

/* send_window, receive_window: as in xs_pump_options. NULL when there is no memory. */
struct xs_session *xs_session_new(enum xs_role role, const uint32_t send_window[static XS_CHANNELS],
                                  const uint32_t receive_window[static XS_CHANNELS]);
void xs_session_free(struct xs_session *s);     /* wipes; NULL is fine */

/* True if this side sends the channel. */
int xs_session_sends(const struct xs_session *s, unsigned channel);

/* A new lane, below XS_LANES_MAX; if there was one of that number, it is lost. The first, and one in the place of the last, leads. */
void xs_session_attach(struct xs_session *s, unsigned lane);

/* A lane is lost: what it had is for the others, or for the next one (J6). */
void xs_session_lost(struct xs_session *s, unsigned lane);

/* A lane makes no progress any more (or does again): while others do, they get its stripes, and it none (J6). 1 if that has changed something. */
int xs_session_stall(struct xs_session *s, unsigned lane, int stalled);

/* How many lanes there are. */
unsigned xs_session_lanes(const struct xs_session *s);

/* ---- bytes in, to be sent (channels this side sends) ---- */

/* Room for *len bytes of input. NULL, and *len 0, when the window is used up, the destination has not judged yet or the input has ended. */
uint8_t *xs_session_input(struct xs_session *s, unsigned channel, size_t *len);

/* len bytes of input have been put there. */
void xs_session_input_commit(struct xs_session *s, unsigned channel, size_t len);

/* The input has ended: END follows its last byte (F11). */
void xs_session_input_end(struct xs_session *s, unsigned channel);

/* True once the input has ended. */
int xs_session_input_ended(const struct xs_session *s, unsigned channel);

/* How many bytes of input wait for a frame, for the first time or anew. */
size_t xs_session_unsent(const struct xs_session *s, unsigned channel);

/* ---- frames out ---- */

/* The next frame for a lane: 1, with its header and its payload (which stays until xs_session_sealed), or 0 when there is none. It counts as sent. */
int xs_session_next(struct xs_session *s, unsigned lane, struct xs_header *header, const uint8_t **payload);

/* The payload that was given out last to a lane is needed no more. */
void xs_session_sealed(struct xs_session *s, unsigned lane);

/* Whether xs_session_next would give the lane a frame: XS_OFFER_ANY if any other lane would get the same. */
enum xs_offer xs_session_offer(const struct xs_session *s, unsigned lane);

/* Hold back DATA of channel 0, and no other frame, until it is said otherwise. */
void xs_session_hold(struct xs_session *s, int hold);

/* Send a KEEPALIVE over a lane, before any data (F10). */
void xs_session_keepalive(struct xs_session *s, unsigned lane);

/* True if bytes are delivered but not acknowledged, and nothing waits to be delivered on their channel. */
int xs_session_ack_waits(const struct xs_session *s);

/* Nothing else is to be done: acknowledge what xs_session_ack_waits speaks of. */
void xs_session_ack_now(struct xs_session *s);

/* Destination: xl has ended; EXIT follows once END is sent on channels 1 and 2 (F11). Returns XS_OK or XS_EARGUMENT. */
int xs_session_exit(struct xs_session *s, int kind, int value);

/* True once EXIT has been given out over that lane by xs_session_next. */
int xs_session_exit_sent(const struct xs_session *s, unsigned lane);

/* The next frame is ABORT, and the last, on every lane. Returns XS_OK or XS_EARGUMENT. */
int xs_session_abort(struct xs_session *s, int reason, const uint8_t *text, size_t len);

/* ---- frames in ---- */

/* Where the payload of a DATA frame that is about to be opened may go straight: NULL if it needs another place and a copy. */
uint8_t *xs_session_place(struct xs_session *s, unsigned lane, const struct xs_header *header);

/* True while another lane opens a frame into the place where this one belongs: wait until that has been taken, then ask and take. */
int xs_session_contended(const struct xs_session *s, unsigned lane, const struct xs_header *header);

/* Take a frame that has been opened; payload may be what xs_session_place gave. XS_OK, XS_EPROTOCOL (F5: the link ends) or XS_ENOMEM. */
int xs_session_take(struct xs_session *s, unsigned lane, const struct xs_header *header, const uint8_t *payload);

/* ---- bytes out, to be delivered (channels the peer sends) ---- */

/* The next *len bytes to deliver; NULL when there are none, or while a phase waits to be told of. */
const uint8_t *xs_session_output(const struct xs_session *s, unsigned channel, size_t *len);

/* len bytes have been written into the receiving process's pipe (F7). */
void xs_session_delivered(struct xs_session *s, unsigned channel, size_t len);

/* Destination: xl has been given the head of channel 0 by somebody else; it counts as delivered. XS_OK, also where nobody reads that channel any
 * more; or XS_EARGUMENT unless it has come and none of it has been delivered. */
int xs_session_skip_head(struct xs_session *s);

/* Nobody reads a channel any more: what is held and what comes is discarded, and acknowledged as if it were delivered. */
void xs_session_output_broken(struct xs_session *s, unsigned channel);

/* True once END has come on a channel and everything is delivered. */
int xs_session_output_over(const struct xs_session *s, unsigned channel);

/* ---- what has happened ---- */

struct xs_xlphase *xs_session_phases(const struct xs_session *s);

/* True once EXIT (ABORT) has come. */
int xs_session_exited(const struct xs_session *s);
int xs_session_aborted(const struct xs_session *s);

/* The parts of the statistics that the session knows. */
void xs_session_stats(const struct xs_session *s, struct xs_stats *out);

/* The text of the ABORT received: up to size bytes; returns its length. */
size_t xs_session_text(const struct xs_session *s, uint8_t *out, size_t size);

#endif
