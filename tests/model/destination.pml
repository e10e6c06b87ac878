/* The destination: xl, the receiver that feeds it, the keeper that started it, its journal, and the launcher whom a new connection meets.
 * What receiver and keeper say to each other comes at once: a word that is lost with one of them is as one that was not said. */

/* ---- xl's pipes */

byte written;           /* units that are in xl's input or through it */
bool stdin_open = true;
byte out[3];            /* what xl has said: channel 1 */
byte spoken, seen;      /* how many units, and how many of them receiver or keeper have read */
bool xl_ended, xl_killed;

/* ---- the receiver */

bool receiver = true;   /* lives */
bool gives_up;          /* it has ended xl's input, and reads xl's output to the end */
byte lane = 0;          /* section 6's only one */
byte got;               /* units that have come */
byte back;              /* the next unit of channel 1 for the present lane (J6) */
byte back_from[LINKS];  /* what the source has of it, as RESUME has said */
bool noted;             /* the keeper says that the journal has GO */
bool told_report, told_end;     /* the keeper is told of xl's report; it tells of xl's end */
bool said_exit;
#ifdef W_OLD_LANES
byte old_lane = NONE;
#endif

/* ---- keeper and journal */

bool keeper = true;     /* lives */
/* GO: nothing yet; on its way to the disk: who reads the journal sees it, and a power cut takes it; on the disk. Of the rest, only the last. */
#define WRITTEN 1
#define DURABLE 2
byte journal_go, journal_report;
byte journal_end;       /* as GOING_ON until it has ended */

/* ---- xl */

inline says(word)
{
    if
    :: receiver || keeper -> out[spoken] = word; spoken++
    :: else -> died_of_report = (killed == 0); assert(!died_of_report); xl_ended = true          /* EPIPE: its copy stays */
    fi
}

inline destroys()
{
    dst = GONE; never_lost_domain()
}

#define IN(at)  (!xl_ended && state == at)

/* xl_migrate.c, migrate_receive. It has no time-out. */
proctype xl_destination()
{
    byte state = GO;    /* the unit that it reads next is behind this one; then what it does: */
#define STARTS 5
#define REPORTS 6
#define DESTROYS 7

    do
    :: xl_ended -> break
    :: d_step { IN(GO) && written >= GO -> dst = PAUSED; state = ALL; says(READY) }
    :: d_step { IN(ALL) && written == ALL -> state = STARTS }
    :: d_step { !xl_ended && state <= ALL && written < state && !stdin_open -> state = DESTROYS; says(NOT_STARTED) }
    :: d_step { IN(STARTS) -> dst = RUNNING; has_run = true; never_two_running(); state = REPORTS }
    :: d_step { IN(STARTS) && fails > 0 -> fails--; state = DESTROYS; says(NOT_STARTED) }
    :: d_step { IN(REPORTS) -> was_started = true; says(STARTED); xl_ended = true }
    :: d_step { IN(DESTROYS) -> destroys(); says(CLEAR); xl_ended = true }
    od
}

/* ---- the receiver */

inline loses_lane()
{
    destination_closes(lane); lane = NONE; said_exit = false; back = 0
}

inline receiver_ends()
{
    loses_lane();
#ifdef W_OLD_LANES
    destination_closes(old_lane); old_lane = NONE;
#endif
    receiver = false; stdin_open = false; gives_up = false; got = 0; noted = false; told_report = false
}

#define IS_REPORT(word) (word == STARTED || word == NOT_STARTED)

/* S7. Before GO nobody has a use for it. */
inline tells_report()
{
    if :: keeper && seen > 1 && IS_REPORT(out[1]) -> journal_report = out[1] :: else fi;
    told_report = true
}

/* S6: xl sees the end of its input, and its output is read to the end: by the keeper, or by the receiver where that was killed. */
inline finishes()
{
    tells_report();
    if
    :: keeper -> receiver_ends()
    :: !keeper -> loses_lane(); gives_up = true; stdin_open = false
    fi
}

/* S4: every lane that it still has is lost, and the new one is the only one. */
inline resumes_over(new)
{
#ifdef W_OLD_LANES
    destination_closes(old_lane); old_lane = lane;
#else
    destination_closes(lane);
#endif
    lane = new; destination_end[new] = LANE; said_exit = false;
    destination_sends(lane, ACCEPT + written);          /* J6 */
    back = back_from[new]; back_from[new] = 0
}

inline takes_unit(frame)
{
    if
    :: frame == got -> got++; if :: got < ALL -> written = got :: else fi
    :: frame < got -> skip                              /* J6: it is known already */
    :: frame > got -> disorder = true; assert(!disorder)
    fi
}

#define WORKS           (receiver && !gives_up)
#ifdef W_GO_BEFORE_JOURNAL
#define MAY_CLEAR       true
#else
#define MAY_CLEAR       noted
#endif
#define HAS_SAID_ALL    (KNOWS_END && given == spoken)         /* and it is acknowledged */
#define KNOWS_END       (told_end || !keeper && xl_ended)

proctype receiver_process()
{
    do
    :: !receiver -> break
    :: d_step { WORKS && lane != NONE && nempty(up[lane]) -> up[lane]?frame;
        if
        :: frame < ALL -> takes_unit(frame)
        :: frame == ABORT -> finishes()
        fi;
        frame = 0 }
#ifdef W_OLD_LANES
    :: d_step { WORKS && old_lane != NONE && nempty(up[old_lane]) -> up[old_lane]?frame; disorder = (frame != got); assert(!disorder); got++; frame = 0 }
#endif
    /* S7 */
    :: d_step { WORKS && got == ALL && keeper && journal_go == 0 -> journal_go = WRITTEN }
    :: d_step { WORKS && got == ALL && written < ALL && MAY_CLEAR -> written = ALL }
    /* What xl says is read, told, and passed on; after its end and all that, the exit status (F11). */
    :: d_step { receiver && seen < spoken -> seen++ }
    :: d_step { WORKS && keeper && seen > 1 && !told_report && IS_REPORT(out[1]) -> tells_report() }
    :: d_step { WORKS && lane != NONE && back < seen && nfull(down[lane]) -> destination_sends(lane, DATA + out[back]); back++ }
    :: d_step { WORKS && lane != NONE && KNOWS_END && seen == spoken && back == seen && !said_exit && nfull(down[lane]) ->
        said_exit = true; destination_sends(lane, EXIT) }
    :: d_step { WORKS && destination_sees_loss(lane) -> loses_lane() }
    :: d_step { WORKS && lane != NONE && losses > 0 -> losses--; loses_lane() }         /* F10: silence */
    :: d_step { WORKS && lane == NONE && HAS_SAID_ALL -> finishes() }        /* F13, S6: the source has all that xl said */
#ifndef LIVE
    :: d_step { WORKS && lane == NONE -> finishes() }   /* S6: the window has passed */
#endif
#ifdef W_NO_WAIT_THERE
    :: d_step { WORKS && lane == NONE -> finishes() }
#endif
    :: d_step { receiver && gives_up && xl_ended && seen == spoken -> receiver_ends() }
    od
}

/* ---- the keeper */

inline writes_end()
{
    if
    :: journal_report == STARTED && !xl_killed -> journal_end = REPORTED_0
    :: journal_report == NOT_STARTED -> journal_end = REPORTED_N
    :: (journal_report == 0 || journal_report == STARTED && xl_killed) && journal_go != 0 -> journal_end = CLEARED
    :: journal_report == 0 && journal_go == 0 -> journal_end = NOT_CLEARED
    fi
}

proctype keeper_process()
{
    do
    :: !keeper -> break
    /* S7 */
    :: d_step { keeper && journal_go == WRITTEN -> journal_go = DURABLE }
#ifdef W_NOTED_BEFORE_FSYNC
    :: d_step { keeper && journal_go == WRITTEN && receiver && !noted -> noted = true }
#endif
    :: d_step { keeper && journal_go == DURABLE && receiver && !noted -> noted = true }
#ifdef W_NOBODY_READS_ON
    :: d_step { keeper && told_end && !receiver && seen < spoken -> seen = spoken }
#else
    /* S6: the receiver has ended, and xl's output is read all the same. */
    :: d_step { keeper && !receiver && seen < spoken ->
        if :: seen > 0 && journal_report == 0 && IS_REPORT(out[seen]) -> journal_report = out[seen] :: else fi;
        seen++ }
#endif
    :: d_step { keeper && xl_ended && !told_end ->
        told_end = true;
        if :: xl_killed && journal_go == 0 && dst == PAUSED -> destroys() :: else fi }  /* it tidies up after a killed xl */
    :: d_step { keeper && told_end && !receiver && journal_go != WRITTEN && seen == spoken -> writes_end(); keeper = false }
    od
}

/* ---- the launcher: S3 to S5, S11 */

/* What the journal says of a session that no keeper has any more. */
inline looks_into_journal(answer)
{
    if
    :: journal_end != GOING_ON -> answer = journal_end
    :: journal_end == GOING_ON && journal_report == NOT_STARTED -> answer = REPORTED_N
    :: journal_end == GOING_ON && journal_report == STARTED -> answer = (power_failed -> CLEARED : REPORTED_0)
    :: journal_end == GOING_ON && journal_report == 0 -> answer = (journal_go != 0 -> CLEARED : NOT_CLEARED)
    fi
}

#define COMES(new)      (is_on && visit == NONE && destination_end[new] == PENDING && nempty(up[new]))
#define FADES(new)      (destination_end[new] == PENDING && destination_sees_loss(new))
#define ASKS(at)        (visit != NONE && destination_end[visit] == VISITS && step == at)

/* S3, S4: it is handed to the receiver that has the session (J4). S5: or it is asked whether the session goes on, and only then read what the journal
 * has: what has ended by then is in it. */
inline judges(new)
{
    up[new]?frame;
    back_from[new] = frame - RESUME; frame = 0;
    if
#ifndef W_RESUMED_FOR_NOTHING
    :: keeper && WORKS && HAS_SAID_ALL -> loses_lane(); destination_closes(new); back_from[new] = 0       /* S6: there is nothing to go on with */
    :: keeper && WORKS && !HAS_SAID_ALL -> resumes_over(new)
#else
    :: keeper && WORKS -> resumes_over(new)
#endif
    :: !(keeper && WORKS) -> destination_end[new] = VISITS; back_from[new] = 0; visit = new; step = 1
    fi
}

proctype launcher()
{
    byte visit = NONE, step, answer;

end: do
    /* In any order: an attempt that the source has given up may be seen behind its next one. */
    :: d_step { COMES(0) -> judges(0) }
    :: d_step { COMES(1) -> judges(1) }
    :: d_step { COMES(2) -> judges(2) }
    :: d_step { FADES(0) -> destination_closes(0) }
    :: d_step { FADES(1) -> destination_closes(1) }
    :: d_step { FADES(2) -> destination_closes(2) }
#ifdef W_JOURNAL_FIRST
    :: d_step { ASKS(1) -> looks_into_journal(answer); step = 2 }
    :: d_step { ASKS(2) ->
        if :: keeper -> answer = GOING_ON :: else fi;
#else
    :: d_step { ASKS(1) -> answer = (keeper -> GOING_ON : CLEARED); step = 2 }
    :: d_step { ASKS(2) ->
        if :: answer != GOING_ON -> looks_into_journal(answer) :: else fi;
#endif
        destination_sends(visit, OUTCOME + answer); destination_closes(visit); visit = NONE; answer = 0; step = 0 }
    :: d_step { visit != NONE && destination_end[visit] != VISITS -> visit = NONE; answer = 0; step = 0 }       /* the power was cut */
    od
}
