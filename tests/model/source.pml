/* The source: xl, and xensecure in ssh's place. */

/* ---- xl's pipes */

bool said_go;
byte words[3];          /* what xensecure has written into xl's input */
byte given;             /* how many of them */
bool input_ended;       /* xensecure has gone */
bool xl_over, undefined;        /* "Domain state is now undefined": an operator's now */
bool end_is_allowed;    /* S8: final_window has passed, an operator has ended it, or there is no answer that xl could be given */

/* ---- xensecure */

bool has_go;            /* read from xl */
bool is_sent;           /* GO, whole, over whatever lanes */
byte next;              /* the next unit for the present link (J6) */
byte link = 0;          /* section 6's only lane */
byte attempt = NONE;    /* a RESUME that has no answer yet */
bool awaits_go;         /* all is over, but xl is about to say GO, and is to be told so then */
bool over;
#ifdef W_GO_WHOLE_OVER_ONE_LANE
bool moved;             /* between the halves of GO */
#endif

#define HAS_READY       (given > 0 && words[0] == READY)
#define HAS_STATUS      (given > 1)
#define HAS_REPORT      (given == 2 && words[1] == STARTED || given == 3)
#define HAS_REFUSAL     (given > 0 && words[0] == NOT_STARTED)

/* xl_migrate.c, migrate_domain. It has no time-out. */
proctype xl_source()
{
    if
    :: atomic { HAS_READY -> said_go = true }           /* in one write; after it there is no way back of its own */
    :: (given > 0 && !HAS_READY || given == 0 && input_ended) -> goto resumes
    fi;
    if
    :: given > 1 -> skip
    :: given == 1 && input_ended -> goto gives_up
    fi;
    if
    :: atomic { words[1] == STARTED ->
            false_report = !was_started; assert(!false_report);         /* S8 */
            src = GONE; never_lost_domain() };
        goto ends
    :: words[1] != STARTED && given == 3 -> goto resumes
    :: words[1] != STARTED && given == 2 && input_ended -> goto gives_up
    fi;
resumes:
    atomic { src = RUNNING; never_two_running(); never_stale_copy() };
    goto ends;
gives_up:
    atomic { end_after_go = (!end_is_allowed || HAS_STATUS); assert(!end_after_go); undefined = true };         /* S8 */
ends:
    xl_over = true
}

inline loses_links()
{
    source_closes(link); link = NONE; next = 0;
    source_closes(attempt); attempt = NONE
}

inline source_ends()
{
    loses_links();
    over = true; input_ended = true; awaits_go = false; has_go = false; is_sent = false
}

inline gives(word)
{
    words[given] = word; given++
}

/* S9: write what xl has not yet got of the report and that status into its pipe. */
inline replay(status)
{
    if
    :: given == 1 && status == STARTED -> gives(STARTED)
    :: given == 1 && status == NOT_STARTED -> gives(NOT_STARTED); gives(CLEAR)
    :: given == 2 && words[1] == NOT_STARTED -> false_report = (status == STARTED); assert(!false_report); gives(CLEAR)
    :: HAS_REPORT -> skip
    fi;
    source_ends()
}

/* All is over, and GO has not gone out whole. The end, for an xl that still resumes by itself (S10); NOT CLEARED's words for one that has said GO
 * (S8, S9), and for one that has "ready" as soon as it says it. */
inline ends_uncleared()
{
    if
    :: !HAS_READY || HAS_REPORT -> source_ends()
    :: HAS_READY && !HAS_REPORT && has_go -> replay(NOT_STARTED)
#ifdef W_END_BETWEEN_READY_AND_GO
    :: HAS_READY && !HAS_REPORT && !has_go -> source_ends()
#else
    :: HAS_READY && !HAS_REPORT && !has_go -> loses_links(); awaits_go = true
#endif
    fi
}

/* The end that S8 allows. Where xl has got a status that is not 0, the rest is known: the domain does not run there. */
inline ends_cleared()
{
    if
#ifndef W_STATUS_WITHOUT_CLEAR
    :: given == 2 && words[1] == NOT_STARTED -> replay(NOT_STARTED)
    :: !(given == 2 && words[1] == NOT_STARTED) ->
#else
    :: true ->
#endif
        end_is_allowed = true; source_ends()
    fi
}

inline takes(frame)
{
    if
    :: frame < RESUME -> gives(frame)           /* F6, F7: nothing comes twice, for RESUME has said what is there */
    :: frame == ABORT && (!is_sent || HAS_REPORT) -> ends_uncleared()
#ifdef W_ABORT_IS_THE_END
    :: frame == ABORT && is_sent && !HAS_REPORT -> source_ends()
#else
    :: frame == ABORT && is_sent && !HAS_REPORT -> loses_links()        /* S8: what became of GO is for the journal there to say */
#endif
    :: frame == EXIT && (HAS_REPORT || HAS_REFUSAL) -> source_ends()    /* F12 */
    :: frame == EXIT && !HAS_REPORT && !HAS_REFUSAL && !is_sent -> ends_uncleared()
#ifdef W_EXIT_IS_THE_END
    :: frame == EXIT && !HAS_REPORT && !HAS_REFUSAL && is_sent -> source_ends()
#else
    :: frame == EXIT && !HAS_REPORT && !HAS_REFUSAL && is_sent -> loses_links()         /* xl there was killed: S9 says what may be told */
#endif
    fi
}

inline takes_answer(frame)
{
    if
    :: frame >= ACCEPT && frame < OUTCOME ->            /* S4 */
        link = attempt; attempt = NONE;
        next = frame - ACCEPT
#ifdef W_GO_WHOLE_OVER_ONE_LANE
        ; moved = true
#endif
    :: frame == OUTCOME + GOING_ON -> loses_links()     /* S9: ask again */
    :: frame > OUTCOME + GOING_ON && frame < EXIT && !is_sent ->        /* S10 */
        false_report = (frame == OUTCOME + REPORTED_0); assert(!false_report);
        ends_uncleared()
    :: frame == OUTCOME + REPORTED_0 && is_sent -> replay(STARTED)      /* S9 */
    :: frame == OUTCOME + REPORTED_N && is_sent -> replay(NOT_STARTED)
    :: frame == OUTCOME + NOT_CLEARED && is_sent -> replay(NOT_STARTED)
    :: frame == OUTCOME + CLEARED && is_sent -> ends_cleared()
    fi
}

inline sends_next()
{
    source_sends(link, DATA + next);
#ifdef W_GO_WHOLE_OVER_ONE_LANE
    if :: next == GO -> moved = false :: else fi;
    if :: next == ALL - 1 && !moved -> is_sent = true :: else fi;
#else
    if :: next == ALL - 1 -> is_sent = true :: else fi;
#endif
    next++
}

#define WAITS           (!over && !awaits_go && link == NONE && !HAS_REPORT)
#define CAN_CONNECT     (WAITS && attempt == NONE && is_on)

inline connects(new)
{
    carries[new] = true; source_end[new] = true; destination_end[new] = PENDING;
    attempt = new;
    up[new]!(RESUME + given)
}

proctype source()
{
    do
    :: over -> break
    :: d_step { !over && said_go && !has_go -> has_go = true }          /* S1: with a link and without */
    :: d_step { awaits_go && has_go -> replay(NOT_STARTED) }
    :: d_step { link != NONE && (next < GO || has_go && next < ALL) && nfull(up[link]) -> sends_next() }         /* F9, J6 */
    :: d_step { link != NONE && nempty(down[link]) -> down[link]?frame; takes(frame); frame = 0 }
    :: d_step { source_sees_loss(link) -> loses_links() }
    :: d_step { link != NONE && losses > 0 -> losses--; loses_links() }         /* F10: silence; what is in flight may arrive yet */
    /* S2 */
    :: d_step { CAN_CONNECT && is_free(0) -> connects(0) }
    :: d_step { CAN_CONNECT && !is_free(0) && is_free(1) -> connects(1) }
    :: d_step { CAN_CONNECT && !is_free(0) && !is_free(1) && is_free(2) -> connects(2) }
    :: d_step { attempt != NONE && nempty(down[attempt]) -> down[attempt]?frame; takes_answer(frame); frame = 0 }
    :: d_step { source_sees_loss(attempt) -> loses_links() }
    :: d_step { attempt != NONE && losses > 0 -> losses--; loses_links() }      /* it took too long */
    /* xl needs no more: there is nothing to wait for. */
    :: d_step { !over && (HAS_REPORT && link == NONE || xl_over) -> source_ends() }
#ifndef LIVE
    :: d_step { WAITS && !is_sent -> ends_uncleared() }         /* S2, S8: resume_window has passed */
    :: d_step { WAITS && is_sent -> ends_cleared() }            /* S8: final_window has passed */
    :: d_step { !over && terms > 0 && !is_sent ->               /* S8: SIGTERM */
        terms--;
        if :: link != NONE && len(up[link]) < QUEUE -> source_sends(link, ABORT) :: else fi;
        ends_uncleared() }
    :: d_step { !over && terms > 0 && is_sent -> terms--; ends_cleared() }
#endif
#ifdef W_END_AFTER_GO
    :: d_step { WAITS && is_sent -> source_ends() }             /* resume_window has passed */
#endif
#ifdef W_STATUS_IS_ENOUGH
    :: d_step { WAITS && HAS_STATUS -> source_ends() }
#endif
#ifdef W_NOT_CLEARED_AFTER_GO
    :: d_step { WAITS && is_sent && !HAS_STATUS -> replay(NOT_STARTED) }        /* the same */
#endif
    od
}
