/* Faults, the operator, and the end of all. */

/* Its receiver sees it. No journal would know of a GO that came now; one that is noted goes on. */
inline keeper_dies()
{
    keeper = false;
    if
    :: receiver && !noted && !told_end ->
        if :: lane != NONE && len(down[lane]) < QUEUE -> destination_sends(lane, ABORT) :: else fi;
        finishes()
    :: else
    fi
}

/* The destination's power is cut: its copy is gone, and of the journal what was not yet on the disk. */
inline power_cut()
{
    is_on = false; power_failed = true; killed++;
    receiver_ends();
    keeper = false;
    xl_ended = true; dst = GONE;
    if :: journal_go == WRITTEN -> journal_go = 0 :: else fi;
    cut(0); destination_closes(0);
    cut(1); destination_closes(1);
    cut(2); destination_closes(2)
}

/* S11: a source whose xl was left without an answer is asked for the state of its domain; what follows is an operator's doing. */
#define HAS_TO_ASK      (undefined && src == PAUSED && is_on && !operator_looks)
bool operator_looks;    /* at both hosts: nobody knows what became of the domain */

inline acts(answer)
{
    if
    :: answer == GOING_ON -> skip
    :: answer == REPORTED_0 -> src = GONE; never_lost_domain()
    :: answer == REPORTED_N || answer == NOT_CLEARED -> src = RUNNING; never_two_running(); never_stale_copy()
    :: answer == CLEARED -> operator_looks = true
    fi
}

/* Nothing more will happen, and no fault is left: is all as it should be? */
inline last_judgement()
{
    hangs = !(over && xl_over && xl_ended && !receiver && !keeper);
    assert(!hangs);
    undecided = !(src == GONE && (dst == RUNNING || power_failed)
               || src == RUNNING && (dst == GONE || dst == PAUSED && killed > 0)
               || src == PAUSED && operator_looks && killed > 0);
#ifndef W_JOURNAL_FIRST         /* whose worse fault is looked for */
    assert(!undecided)
#else
    skip
#endif
}

proctype world()
{
    byte answer, asks;

end: do
    :: d_step { losses > 0 && carries[0] -> losses--; cut(0) }
    :: d_step { losses > 0 && carries[1] -> losses--; cut(1) }
    :: d_step { losses > 0 && carries[2] -> losses--; cut(2) }
    :: d_step { kills > 0 && receiver -> kills--; killed++; receiver_ends() }
    :: d_step { kills > 0 && keeper -> kills--; killed++; keeper_dies() }
    :: d_step { kills > 0 && !xl_ended -> kills--; killed++; xl_ended = true; xl_killed = true }
    :: d_step { kills > 0 && is_on -> kills--; power_cut() }
    :: d_step { !is_on -> is_on = true }
    /* No more faults, so that no wait is excused by one that might. */
    :: d_step { losses + kills + terms + fails > 0 -> losses = 0; kills = 0; terms = 0; fails = 0 }
#ifdef W_JOURNAL_FIRST
    :: d_step { HAS_TO_ASK && asks == 0 -> looks_into_journal(answer); asks = 1 }
    :: d_step { HAS_TO_ASK && asks == 1 ->
        if :: keeper -> answer = GOING_ON :: else fi;
#else
    :: d_step { HAS_TO_ASK && asks == 0 -> answer = (keeper -> GOING_ON : CLEARED); asks = 1 }
    :: d_step { HAS_TO_ASK && asks == 1 ->
        if :: answer != GOING_ON -> looks_into_journal(answer) :: else fi;
#endif
        acts(answer); asks = 0; answer = 0 }
    :: timeout -> d_step { last_judgement() }; break
    od
}

init
{
    atomic {
        source_end[0] = true; destination_end[0] = LANE; carries[0] = true;
        run xl_source(); run source();
        run receiver_process(); run keeper_process(); run xl_destination(); run launcher();
        run world()
    }
}

/* Whatever happens, all comes to an end. */
ltl ends { <> (over && xl_over && xl_ended && !receiver && !keeper) }

#ifdef LIVE
/* Links are lost and nothing else happens: the migration succeeds. */
ltl succeeds { <> (src == GONE && dst == RUNNING) }
#endif
