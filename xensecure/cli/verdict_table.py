"""Where a domain is, and what sets it right: a table of what its destination made of it and of what is seen on this host.

Everything that decides lives here and in :mod:`verdict`. No step of the table starts or resumes a domain that may run elsewhere: where that is
not known, the steps only look, and ``cases`` says what each thing that may be seen then means.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Fate(enum.Enum):
    """What the destination's xl made of the domain, as far as this host knows."""

    STARTED = enum.auto()  # it reported that the domain runs there
    NOT_STARTED = enum.auto()  # it reported that it could not start it, or was not cleared to: the domain has not run there
    FAILED_OVER = enum.auto()  # Remus: it started the last checkpoint
    UNDECIDED = enum.auto()  # it was, or may have been, cleared to start it
    GOING_ON = enum.auto()  # it has not ended there
    KEPT = enum.auto()  # xensecure was killed here before xl had let go of the domain
    NO_SESSION = enum.auto()  # no session of the domain is known here


class Picture(enum.Enum):
    """What this host's xl shows of the domain."""

    NOTHING = enum.auto()
    RESTARTED = enum.auto()  # nothing, and the host has been restarted since the session began
    RUNS = enum.auto()
    PAUSED = enum.auto()
    PAUSED_AS_ASKED = enum.auto()  # `xl migrate -p`
    SUSPENDED = enum.auto()
    ENDED = enum.auto()
    AWAY = enum.auto()  # NAME--migratedaway alone, suspended
    AWAY_OTHERWISE = enum.auto()  # NAME--migratedaway alone, in another state
    INCOMING = enum.auto()  # NAME--incoming alone
    RUNS_BESIDE_AWAY = enum.auto()  # NAME runs, and NAME--migratedaway is there too
    SEVERAL = enum.auto()  # other combinations
    UNSEEN = enum.auto()  # xl does not say


class Place(enum.StrEnum):
    """Which host holds the domain."""

    HERE = "here"
    THERE = "there"
    UNKNOWN = "unknown"


class Sure(enum.StrEnum):
    """How sure that is."""

    CERTAIN = "certain"  # by the word of the xl that started it or was not to, or seen with one's own eyes
    LIKELY = "likely"  # by what is seen, or not seen, on this host alone
    OPEN = "open"


@dataclass(frozen=True)
class Row:
    """One row of the table; the texts have places for ``name``, ``host`` and ``peer``. ``here``, ``there``: commands for either host."""

    place: Place
    sure: Sure
    words: str
    here: tuple[str, ...] = ()
    there: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    well: bool = False


_DESTROY_AWAY, _DESTROY_INCOMING = "xl destroy {name}--migratedaway", "xl destroy {name}--incoming"
_LOOK = ("xl list",)
_ASK = ("xensecurectl status {name}",)
_FROM_DISK = "start it from its disk, as after a power cut ('xl create')"

_IF_IT_RUNS_THERE = "{name} runs on {peer}: it has arrived. Here: xl destroy {name}--migratedaway"
_IF_PAUSED_THERE = (
    "{name} or {name}--incoming is paused on {peer}: xl was killed there, both copies are whole, and neither runs. Destroy one, then let the "
    "other run: 'xl unpause' there, or here 'xensecurectl resume {name} --force REASON'"
)
_IF_NOTHING_THERE = (
    "{peer} has neither, and status there says that {name} did not arrive: the copy here is all there is: xensecurectl resume {name} --force REASON"
)
_IF_RESTARTED_THERE = (
    "{peer} is switched off for certain, or was restarted since: the copy there is gone, but may have written to the disk: "
    f"destroy the copy here and {_FROM_DISK}"
)
_WHAT_IT_MEANS = (_IF_IT_RUNS_THERE, _IF_PAUSED_THERE, _IF_NOTHING_THERE, _IF_RESTARTED_THERE)
_IF_IT_RUNS_TWICE = "{name} runs on both: stop one of them at once ('xl destroy {name}'), the one whose work may be lost; then check its file systems"
_IF_AWAY_THERE = (
    "{name}--migratedaway is suspended on {peer} and {name} does not run there: both copies are whole. Destroy one, then let the other run: "
    "here 'xl unpause'"
)

_IF_STARTED_SINCE = "somebody has started {name} from its disk since, on whichever host: do not resume, destroy the copy here"

_HERE, _THERE, _UNKNOWN = Place.HERE, Place.THERE, Place.UNKNOWN
_CERTAIN, _LIKELY, _OPEN = Sure.CERTAIN, Sure.LIKELY, Sure.OPEN

_ELSEWHERE = "another way than xensecure"
_COMING = Row(_UNKNOWN, _OPEN, "{name} is arriving here again, or was left half-way, by " + _ELSEWHERE, there=_LOOK)
_TANGLED = Row(
    _UNKNOWN,
    _OPEN,
    "{name} is on {host} under several names at once: look at both hosts before anything is started",
    there=_LOOK,
    cases=("one of them is what you want to keep: destroy the others by their id",),
)

SOURCE: dict[tuple[Fate, Picture], Row] = {
    # It runs there: what is left here can only do harm.
    (Fate.STARTED, Picture.NOTHING): Row(_THERE, _CERTAIN, "{name} runs on {peer}", well=True),
    (Fate.STARTED, Picture.RESTARTED): Row(_THERE, _CERTAIN, "{name} runs on {peer}", well=True),
    (Fate.STARTED, Picture.UNSEEN): Row(_THERE, _CERTAIN, "{name} runs on {peer}", well=True),
    (Fate.STARTED, Picture.ENDED): Row(_THERE, _CERTAIN, "{name} runs on {peer}; what is left of it here has ended", well=True),
    (Fate.STARTED, Picture.AWAY): Row(_THERE, _CERTAIN, "{name} runs on {peer}; a suspended copy is left here", here=(_DESTROY_AWAY,)),
    (Fate.STARTED, Picture.AWAY_OTHERWISE): Row(
        _THERE, _CERTAIN, "{name} was started on {peer}, and a copy that should be suspended is not", here=(_DESTROY_AWAY,), there=_LOOK
    ),
    (Fate.STARTED, Picture.INCOMING): _COMING,
    (Fate.STARTED, Picture.SEVERAL): _TANGLED,
    **{
        (Fate.STARTED, picture): Row(
            _UNKNOWN,
            _OPEN,
            "{name} was started on {peer}, and is here as well: it came back by " + _ELSEWHERE + ", or it runs twice",
            there=_LOOK,
            cases=("{name} is not on {peer}: it came back, and is here alone", _IF_IT_RUNS_TWICE),
        )
        for picture in (Picture.RUNS, Picture.PAUSED, Picture.SUSPENDED, Picture.RUNS_BESIDE_AWAY)
    },
    # It has not run there: what is here is the domain.
    (Fate.NOT_STARTED, Picture.RUNS): Row(_HERE, _CERTAIN, "{name} runs on {host}; it has not moved", well=True),
    (Fate.NOT_STARTED, Picture.PAUSED): Row(_HERE, _CERTAIN, "{name} is on {host}, paused; it has not moved", here=("xl unpause {name}",)),
    **{
        (Fate.NOT_STARTED, picture): Row(
            _HERE, _CERTAIN, "{name} is on {host}, suspended, and does not run", here=("xensecurectl resume {name}",), cases=(_IF_STARTED_SINCE,)
        )
        for picture in (Picture.SUSPENDED, Picture.AWAY)
    },
    (Fate.NOT_STARTED, Picture.AWAY_OTHERWISE): Row(
        _HERE, _CERTAIN, "{name} is on {host} under the name that xl gave it", here=("xl rename {name}--migratedaway {name}", "xl list {name}")
    ),
    (Fate.NOT_STARTED, Picture.RUNS_BESIDE_AWAY): Row(
        _HERE, _CERTAIN, "{name} runs on {host}; a copy of before is left here", here=(_DESTROY_AWAY,)
    ),
    (Fate.NOT_STARTED, Picture.ENDED): Row(_HERE, _CERTAIN, "{name} is on {host}, and has shut down or crashed since", here=("xl list {name}",)),
    (Fate.NOT_STARTED, Picture.NOTHING): Row(
        _UNKNOWN, _OPEN, "{name} did not move to {peer}, and is not on {host} any more: it was shut down, destroyed or moved since", there=_LOOK
    ),
    (Fate.NOT_STARTED, Picture.RESTARTED): Row(
        _UNKNOWN,
        _LIKELY,
        "{name} did not move to {peer}, and {host} was restarted since: it runs nowhere, unless it was moved before that",
        there=_LOOK,
        cases=("{name} is on no host: " + _FROM_DISK,),
    ),
    (Fate.NOT_STARTED, Picture.INCOMING): _COMING,
    (Fate.NOT_STARTED, Picture.SEVERAL): _TANGLED,
    (Fate.NOT_STARTED, Picture.UNSEEN): Row(_HERE, _CERTAIN, "{name} is on {host}; it has not moved, and xl here does not say how it is", here=_LOOK),
    # The backup has taken over.
    (Fate.FAILED_OVER, Picture.NOTHING): Row(_THERE, _CERTAIN, "{peer} has taken {name} over", well=True),
    (Fate.FAILED_OVER, Picture.RESTARTED): Row(_THERE, _CERTAIN, "{peer} has taken {name} over", well=True),
    (Fate.FAILED_OVER, Picture.UNSEEN): Row(_THERE, _CERTAIN, "{peer} has taken {name} over; see that it does not run here", here=_LOOK),
    (Fate.FAILED_OVER, Picture.INCOMING): _COMING,
    (Fate.FAILED_OVER, Picture.SEVERAL): _TANGLED,
    **{
        (Fate.FAILED_OVER, picture): Row(
            _UNKNOWN, _OPEN, "{peer} has taken {name} over, and it runs here as well", there=_LOOK, cases=(_IF_IT_RUNS_TWICE,)
        )
        for picture in (Picture.RUNS, Picture.RUNS_BESIDE_AWAY)
    },
    **{
        (Fate.FAILED_OVER, picture): Row(_THERE, _CERTAIN, "{peer} has taken {name} over; a copy is left here", here=("xl destroy {name}",))
        for picture in (Picture.PAUSED, Picture.SUSPENDED, Picture.ENDED)
    },
    **{
        (Fate.FAILED_OVER, picture): Row(_THERE, _CERTAIN, "{peer} has taken {name} over; a copy is left here", here=(_DESTROY_AWAY,))
        for picture in (Picture.AWAY, Picture.AWAY_OTHERWISE)
    },
    # Nobody knows here whether it was started there.
    **{
        (Fate.UNDECIDED, picture): Row(
            _UNKNOWN, _OPEN, "{name} is on {host}, suspended; whether it runs on {peer} is not known", there=(*_LOOK, *_ASK), cases=_WHAT_IT_MEANS
        )
        for picture in (Picture.AWAY, Picture.SUSPENDED)
    },
    **{
        (Fate.UNDECIDED, picture): Row(
            _UNKNOWN,
            _OPEN,
            "{name} is on {host}; whether it was started on {peer} as well is not known",
            there=_LOOK,
            cases=("{name} is not on {peer}: it is here alone", _IF_IT_RUNS_TWICE),
        )
        for picture in (Picture.RUNS, Picture.PAUSED, Picture.AWAY_OTHERWISE, Picture.RUNS_BESIDE_AWAY)
    },
    (Fate.UNDECIDED, Picture.INCOMING): _COMING,
    (Fate.UNDECIDED, Picture.SEVERAL): _TANGLED,
    (Fate.UNDECIDED, Picture.UNSEEN): Row(
        _UNKNOWN, _OPEN, "whether {name} runs on {peer} is not known, and xl here does not say what is here", _LOOK, _LOOK, _WHAT_IT_MEANS
    ),
    **{
        (Fate.UNDECIDED, picture): Row(
            _UNKNOWN,
            _OPEN,
            "{name} is not on {host}; whether it runs on {peer} is not known",
            there=_LOOK,
            cases=("{name} runs on {peer}: it has arrived", f"{{name}} is on no host: {_FROM_DISK}"),
        )
        for picture in (Picture.NOTHING, Picture.RESTARTED, Picture.ENDED)
    },
    # Killed before xl had let go of it: it is still under its own name, which it loses before GO.
    (Fate.KEPT, Picture.RUNS): Row(_HERE, _LIKELY, "{name} runs on {host}; it was not let go of", well=True),
    (Fate.KEPT, Picture.PAUSED): Row(_HERE, _LIKELY, "{name} is on {host}, paused; it was not let go of", there=_LOOK),
}

_STARTED_AND_GONE = "{name} has arrived and run here, and is not here any more: it was shut down, destroyed or moved by " + _ELSEWHERE
_RESTARTED_SINCE = (
    "{name} was here, and {host} was restarted since",
    ("{name}--migratedaway is suspended on {peer}: the disk may have changed since; destroy it", f"{{name}} runs on no host: {_FROM_DISK}"),
)

DESTINATION: dict[tuple[Fate, Picture], Row] = {
    (Fate.STARTED, Picture.RUNS): Row(_HERE, _CERTAIN, "{name} runs on {host}", well=True),
    (Fate.STARTED, Picture.PAUSED_AS_ASKED): Row(_HERE, _CERTAIN, "{name} is on {host}, paused, as 'xl migrate -p' wants it", well=True),
    (Fate.STARTED, Picture.PAUSED): Row(
        _HERE, _CERTAIN, "{name} is on {host}, and was paused since", cases=("nobody has paused it on purpose: xl unpause {name}",)
    ),
    (Fate.STARTED, Picture.SUSPENDED): Row(
        _HERE, _LIKELY, "{name} has arrived here, and was suspended since: saved, or on its way", here=("xl list {name}",)
    ),
    (Fate.STARTED, Picture.ENDED): Row(_HERE, _CERTAIN, "{name} has arrived here, and has shut down or crashed since", here=("xl list {name}",)),
    (Fate.STARTED, Picture.UNSEEN): Row(_HERE, _CERTAIN, "{name} has arrived on {host}", well=True),
    (Fate.STARTED, Picture.NOTHING): Row(_UNKNOWN, _OPEN, _STARTED_AND_GONE, there=_LOOK),
    (Fate.STARTED, Picture.RESTARTED): Row(_UNKNOWN, _LIKELY, _RESTARTED_SINCE[0], there=_LOOK, cases=_RESTARTED_SINCE[1]),
    **{
        (Fate.STARTED, picture): Row(_UNKNOWN, _OPEN, "{name} has arrived here, and has gone on by " + _ELSEWHERE + ": ask the host that it went to")
        for picture in (Picture.AWAY, Picture.AWAY_OTHERWISE)
    },
    (Fate.STARTED, Picture.INCOMING): _COMING,
    (Fate.STARTED, Picture.RUNS_BESIDE_AWAY): Row(_HERE, _CERTAIN, "{name} runs on {host}; a copy of before is left here", here=(_DESTROY_AWAY,)),
    (Fate.STARTED, Picture.SEVERAL): _TANGLED,
    # It has not run here, by this session.
    (Fate.NOT_STARTED, Picture.NOTHING): Row(_THERE, _LIKELY, "{name} did not arrive here; it is on {peer}", well=True),
    (Fate.NOT_STARTED, Picture.RESTARTED): Row(_THERE, _LIKELY, "{name} did not arrive here; it is on {peer}", well=True),
    (Fate.NOT_STARTED, Picture.UNSEEN): Row(_THERE, _LIKELY, "{name} did not arrive here; it is on {peer}", well=True),
    (Fate.NOT_STARTED, Picture.INCOMING): Row(
        _THERE,
        _LIKELY,
        "{name} did not arrive here, it is on {peer}; what came of it was not cleared away",
        here=("pgrep -af migrate-receive",),
        cases=(f"no 'xl migrate-receive' runs: {_DESTROY_INCOMING}", "one runs: another migration of it is under way; wait for its end"),
    ),
    (Fate.NOT_STARTED, Picture.RUNS): Row(
        _HERE,
        _LIKELY,
        "{name} runs on {host}, though not by its last migration: it came by " + _ELSEWHERE,
        there=_LOOK,
        cases=("{name} is not on {peer}: all is well", _IF_IT_RUNS_TWICE),
    ),
    (Fate.NOT_STARTED, Picture.SEVERAL): _TANGLED,
    **{
        (Fate.NOT_STARTED, picture): Row(
            _UNKNOWN, _OPEN, "{name} did not arrive here by its last migration, and yet something of it is here", there=_ASK, here=_LOOK
        )
        for picture in (
            *(Picture.PAUSED, Picture.PAUSED_AS_ASKED, Picture.SUSPENDED, Picture.ENDED),
            *(Picture.AWAY, Picture.AWAY_OTHERWISE, Picture.RUNS_BESIDE_AWAY),
        )
    },
    (Fate.FAILED_OVER, Picture.RUNS): Row(
        _HERE, _CERTAIN, "{host} has taken {name} over; see that {peer} does not run it any more", there=_LOOK, cases=(_IF_IT_RUNS_TWICE,)
    ),
    (Fate.FAILED_OVER, Picture.UNSEEN): Row(_HERE, _CERTAIN, "{host} has taken {name} over; see that {peer} does not run it any more", there=_LOOK),
    (Fate.FAILED_OVER, Picture.RESTARTED): Row(_UNKNOWN, _OPEN, _RESTARTED_SINCE[0], there=_LOOK, cases=_RESTARTED_SINCE[1]),
    (Fate.FAILED_OVER, Picture.INCOMING): _COMING,
    (Fate.FAILED_OVER, Picture.SEVERAL): _TANGLED,
    **{
        (Fate.FAILED_OVER, picture): Row(_UNKNOWN, _OPEN, "{host} had taken {name} over, and it does not run here any more", there=_LOOK)
        for picture in (
            *(Picture.NOTHING, Picture.PAUSED, Picture.PAUSED_AS_ASKED, Picture.SUSPENDED, Picture.ENDED),
            *(Picture.AWAY, Picture.AWAY_OTHERWISE, Picture.RUNS_BESIDE_AWAY),
        )
    },
    # It was cleared to start, and its report was not seen.
    (Fate.UNDECIDED, Picture.RUNS): Row(
        _HERE,
        _CERTAIN,
        "{name} runs on {host}; {peer} may not know that, and keep a suspended copy",
        there=(*_LOOK, _DESTROY_AWAY),
        cases=(_IF_IT_RUNS_TWICE,),
    ),
    **{
        (Fate.UNDECIDED, picture): Row(
            _UNKNOWN,
            _OPEN,
            "{name} is on {host}, and does not run; whether {peer} runs it is not known",
            there=_LOOK,
            cases=("{name} runs on {peer}: it was brought back there; destroy what is here", _IF_AWAY_THERE),
        )
        for picture in (Picture.PAUSED, Picture.PAUSED_AS_ASKED, Picture.INCOMING)
    },
    (Fate.UNDECIDED, Picture.UNSEEN): Row(
        _UNKNOWN, _OPEN, "{name} was cleared to run on {host}, and xl does not say whether it does", here=_LOOK, there=_LOOK
    ),
    (Fate.UNDECIDED, Picture.RESTARTED): Row(_UNKNOWN, _OPEN, _RESTARTED_SINCE[0], there=_LOOK, cases=_RESTARTED_SINCE[1]),
    (Fate.UNDECIDED, Picture.SEVERAL): _TANGLED,
    **{
        (Fate.UNDECIDED, picture): Row(_UNKNOWN, _OPEN, "{name} was cleared to run on {host}, and does not run here", there=_LOOK, here=_LOOK)
        for picture in (
            *(Picture.NOTHING, Picture.SUSPENDED, Picture.ENDED),
            *(Picture.AWAY, Picture.AWAY_OTHERWISE, Picture.RUNS_BESIDE_AWAY),
        )
    },
}

# No session of it is known here: all there is to go by is what is seen.
ALONE: dict[Picture, Row] = {
    Picture.RUNS: Row(_HERE, _LIKELY, "{name} runs on {host}", well=True),
    Picture.PAUSED: Row(_HERE, _LIKELY, "{name} is on {host}, paused", well=True),
    Picture.PAUSED_AS_ASKED: Row(_HERE, _LIKELY, "{name} is on {host}, paused", well=True),
    Picture.SUSPENDED: Row(_UNKNOWN, _OPEN, "{name} is on {host}, suspended: saved, or on its way by " + _ELSEWHERE),
    Picture.ENDED: Row(_HERE, _LIKELY, "{name} is on {host}, and has shut down or crashed", here=("xl list {name}",)),
    Picture.AWAY: Row(_UNKNOWN, _OPEN, "{name} has left {host} by " + _ELSEWHERE + ", or the journal was lost: find where it went"),
    Picture.AWAY_OTHERWISE: Row(_UNKNOWN, _OPEN, "{name} is on {host} under the name that xl gives to what leaves: find where it went"),
    Picture.INCOMING: _COMING,
    Picture.RUNS_BESIDE_AWAY: _TANGLED,
    Picture.SEVERAL: _TANGLED,
    Picture.NOTHING: Row(_UNKNOWN, _OPEN, "{name} is not on {host}, nor has it been: ask the other hosts"),
    Picture.RESTARTED: Row(_UNKNOWN, _OPEN, "{name} is not on {host}, nor has it been: ask the other hosts"),
    Picture.UNSEEN: Row(_UNKNOWN, _OPEN, "no migration of {name} is known on {host}, and xl does not say what is here", here=_LOOK),
}
NOT_OVER = Row(_UNKNOWN, _OPEN, "{name} is on its way: its migration is not over on {peer}", here=_ASK)
