/* Session, resumption and final handshake: docs/protocol.md, section 7, for spin. What is checked, what is left out and why: README.md beside this.
 *
 * The numbers (S1, F7, ...) are the steps of docs/protocol.md. The words W_... are for spin's -D: each makes the protocol wrong in one way, and
 * checks.py demands that spin then finds what comes of it. */

/* ---- bounds */

#ifndef LOSSES
#define LOSSES 1        /* links lost: cut, or given up by one side that hears nothing; attempts to connect that come to nothing are of them */
#endif
#ifndef KILLS
#define KILLS 1         /* of: receiver, keeper or xl at the destination killed, the destination's power cut */
#endif
#ifndef TERMS
#define TERMS 1         /* SIGTERM to the source's xensecure */
#endif
#ifndef FAILS
#define FAILS 1         /* xl at the destination cannot unpause the domain */
#endif
#define LINKS 3         /* at once: the session's, one that its destination still believes in, an attempt to connect */
#define QUEUE 2         /* frames in flight, each way of each link */

/* ---- what xl says; one unit stands for any number of bytes */

/* Channel 0: unit 0 is the domain, 1 and 2 are the halves of GO, for a loss may come between any two bytes of it. */
#define GO 1
#define ALL 3
/* Channel 1. */
#define READY 1         /* "domain received, ready to unpause" */
#define STARTED 2       /* the report, with status 0 */
#define NOT_STARTED 3   /* the report, with another status: CLEAR follows when xl has destroyed its copy */
#define CLEAR 4         /* GO sent back: "sender may resume" */

/* ---- frames, a byte each */

#define DATA 0          /* + the unit: on channel 0 its number, on channel 1 what it says */
#define RESUME 10       /* + what has been delivered of channel 1: the source's first ACK (J6) */
#define ACCEPT 20       /* + what has been delivered of channel 0: the destination's first ACK (J6) */
#define OUTCOME 30      /* + the state */
#define EXIT 40
#define ABORT 41
/* States of an OUTCOME. */
#define GOING_ON 0
#define REPORTED_0 1
#define REPORTED_N 2    /* with a status that is not 0 */
#define NOT_CLEARED 3
#define CLEARED 4

/* ---- the domain */

#define RUNNING 1
#define PAUSED 2        /* at the source: suspended; at the destination: built, and not started */
#define GONE 3
byte src = PAUSED, dst = GONE;          /* what is sent while it runs is no different to the protocol */
bool was_started;                       /* the destination's xl has reported status 0 */
bool has_run;                           /* at the destination, and may have written to its disk */

/* ---- faults */

byte losses = LOSSES, kills = KILLS, terms = TERMS, fails = FAILS;      /* that may yet come */
byte killed;                            /* how many came of those under KILLS */
bool power_failed, is_on = true;        /* the destination's power */

/* ---- requirements, by the names that spin prints when one does not hold */

bool two_running, stale_copy, lost_domain, false_report, end_after_go, disorder, died_of_report, hangs, undecided;
#define never_two_running()     two_running = (src == RUNNING && dst == RUNNING); assert(!two_running)
#define never_stale_copy()      stale_copy = has_run; assert(!stale_copy)
#define never_lost_domain()     lost_domain = (src == GONE && dst != RUNNING && !power_failed); assert(!lost_domain)

byte frame;     /* lives for one step */

#include "link.pml"
#include "source.pml"
#include "destination.pml"
#include "world.pml"
