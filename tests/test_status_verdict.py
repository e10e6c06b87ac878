"""Where is my domain: the verdict on everything that can be known, and its rules for everything else."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from xensecure.cli.verdict import Case, Verdict, decide, needs_word, picture_of
from xensecure.cli.verdict_table import Picture, Sure
from xensecure.destination.outcome import recorded_outcome
from xensecure.link.domains import Listed, Seen, Sightings, own_name, parse_list, parse_table, sight
from xensecure.link.hooks import Role
from xensecure.link.journal import CLEARED, FAILED_OVER, GOING_ON, NOT_CLEARED, REPORTED, STATES, UNKNOWN, PeerWord, Record
from xensecure.proto.errors import SystemFailure
from xensecure.proto.messages import OutcomeState

BEGUN = Record(session="01" * 16, role=Role.SOURCE, peer="hv2", domain="web1", started=1e9, last=1e9 + 60)
ENDED = replace(BEGUN, ended=1e9 + 60, outcome="as it was")
ARRIVED_HERE = replace(ENDED, role=Role.DESTINATION, peer="hv1", go=True, state=REPORTED, report=0)
HERE, RUNS, AWAY, NOTHING = "hv1", Sightings(own=Seen.RUNNING), Sightings(away=Seen.SUSPENDED), Sightings()
INCOMING = Sightings(incoming=Seen.PAUSED)
SILENT = "cannot connect to port 8003 of hv2"


def word(state: str, status: int = 0) -> PeerWord:
    """What the other host says."""
    return PeerWord(state, status, "its text", 1e9 + 90)


def source(state: str = CLEARED, report: int | None = None, **fields: object) -> Record:
    """A session that this host has sent, and that has ended."""
    return replace(ENDED, state=state, report=report, **{"go": state in (CLEARED, REPORTED), **fields})  # type: ignore[arg-type]


def destination(state: str = CLEARED, report: int | None = None, **fields: object) -> Record:
    """One that has come here."""
    return replace(source(state, report, **fields), role=Role.DESTINATION, peer="hv1")


def verdict(record: Record | None, seen: Sightings | str, said: PeerWord | str | None = None, *, same_boot: bool = True) -> Verdict:
    """The verdict on web1: the source is hv1, the destination hv2."""
    host = "hv2" if record is not None and record.role is Role.DESTINATION else "hv1"
    return decide(Case(domain="web1", host=host, record=record, seen=seen, word=said, same_boot=same_boot))


def typed(found: Verdict) -> list[str]:
    """The steps as they are printed."""
    return [f"{step.host}# {step.command}" for step in found.steps]


DESTROY_AWAY = ["hv1# xl destroy web1--migratedaway"]
RESUME = ["hv1# xensecurectl resume web1"]
LOOK_THERE = ["hv2# xl list"]
ASK_THERE = [*LOOK_THERE, "hv2# xensecurectl status web1"]

# name: record, xl list here, the other host's word, same boot; then who holds it, how sure, what to type, whether all is well
TABLE = {
    "arrived": (source(REPORTED, 0), NOTHING, None, True, "hv2", Sure.CERTAIN, [], True),
    "arrived, host restarted": (source(REPORTED, 0), NOTHING, None, False, "hv2", Sure.CERTAIN, [], True),
    "arrived, no xl": (source(REPORTED, 0), "no xl", None, True, "hv2", Sure.CERTAIN, [], True),
    "arrived, copy left": (source(REPORTED, 0), AWAY, None, True, "hv2", Sure.CERTAIN, DESTROY_AWAY, False),
    "arrived, and runs here": (source(REPORTED, 0), RUNS, None, True, "unknown", Sure.OPEN, LOOK_THERE, False),
    "start failed, resumed": (source(REPORTED, 3), RUNS, None, True, "hv1", Sure.CERTAIN, [], True),
    "start failed, not resumed": (source(REPORTED, 3), AWAY, None, True, "hv1", Sure.CERTAIN, RESUME, False),
    "not cleared, runs": (source(NOT_CLEARED), RUNS, None, True, "hv1", Sure.CERTAIN, [], True),
    "not cleared, suspended": (source(NOT_CLEARED), AWAY, None, True, "hv1", Sure.CERTAIN, RESUME, False),
    "not cleared, suspended under its name": (source(NOT_CLEARED), Sightings(own=Seen.SUSPENDED), None, True, "hv1", Sure.CERTAIN, RESUME, False),
    "not cleared, paused": (source(NOT_CLEARED), Sightings(own=Seen.PAUSED), None, True, "hv1", Sure.CERTAIN, ["hv1# xl unpause web1"], False),
    "not cleared, gone": (source(NOT_CLEARED), NOTHING, None, True, "unknown", Sure.OPEN, LOOK_THERE, False),
    "not cleared, host restarted": (source(NOT_CLEARED), NOTHING, None, False, "unknown", Sure.LIKELY, LOOK_THERE, False),
    "not cleared, no xl": (source(NOT_CLEARED), "no xl", None, True, "hv1", Sure.CERTAIN, ["hv1# xl list"], False),
    "GO sent, hv2 silent": (source(), AWAY, SILENT, True, "unknown", Sure.OPEN, ASK_THERE, False),
    "GO sent, it runs there": (source(), AWAY, word(REPORTED, 0), True, "hv2", Sure.CERTAIN, DESTROY_AWAY, False),
    "GO sent, it failed there": (source(), AWAY, word(REPORTED, 3), True, "hv1", Sure.CERTAIN, RESUME, False),
    "GO sent, did not come": (source(), AWAY, word(NOT_CLEARED), True, "hv1", Sure.CERTAIN, RESUME, False),
    "GO came, xl killed there": (source(), AWAY, word(CLEARED), True, "unknown", Sure.OPEN, ASK_THERE, False),
    "GO sent, not over there": (source(), AWAY, word(GOING_ON), True, "unknown", Sure.OPEN, ["hv1# xensecurectl status web1"], False),
    "GO sent, hv2 knows nothing": (source(), AWAY, word(UNKNOWN), True, "unknown", Sure.OPEN, ASK_THERE, False),
    "GO sent, host restarted, hv2 silent": (source(), NOTHING, SILENT, False, "unknown", Sure.OPEN, LOOK_THERE, False),
    "GO sent, host restarted, it runs there": (source(), NOTHING, word(REPORTED, 0), False, "hv2", Sure.CERTAIN, [], True),
    "GO sent, host restarted, did not come": (source(), NOTHING, word(NOT_CLEARED), False, "unknown", Sure.LIKELY, LOOK_THERE, False),
    "GO sent, no xl, hv2 silent": (source(), "no xl", SILENT, True, "unknown", Sure.OPEN, [*LOOK_THERE, "hv1# xl list"], False),
    "GO sent, and runs here": (source(), RUNS, SILENT, True, "unknown", Sure.OPEN, LOOK_THERE, False),
    "killed before GO": (BEGUN, RUNS, SILENT, True, "hv1", Sure.LIKELY, [], True),
    "killed before GO, paused": (BEGUN, Sightings(own=Seen.PAUSED), SILENT, True, "hv1", Sure.LIKELY, LOOK_THERE, False),
    "killed, suspended": (BEGUN, AWAY, SILENT, True, "unknown", Sure.OPEN, ASK_THERE, False),
    "killed, suspended, did not come": (BEGUN, AWAY, word(NOT_CLEARED), True, "hv1", Sure.CERTAIN, RESUME, False),
    "killed, host restarted, runs again": (BEGUN, RUNS, SILENT, False, "unknown", Sure.OPEN, LOOK_THERE, False),
    "killed after GO, runs": (replace(BEGUN, go=True), RUNS, SILENT, True, "unknown", Sure.OPEN, LOOK_THERE, False),
    "killed after the report": (replace(BEGUN, go=True, report=0), AWAY, None, True, "hv2", Sure.CERTAIN, DESTROY_AWAY, False),
    "Remus ended, backup silent": (source(UNKNOWN), RUNS, SILENT, True, "unknown", Sure.OPEN, LOOK_THERE, False),
    "Remus failed over": (source(UNKNOWN), NOTHING, word(FAILED_OVER), False, "hv2", Sure.CERTAIN, [], True),
    "Remus failed over, both run": (source(UNKNOWN), RUNS, word(FAILED_OVER), True, "unknown", Sure.OPEN, LOOK_THERE, False),
    "Remus killed": (replace(BEGUN, request=("migrate-receive", "-r")), RUNS, SILENT, True, "unknown", Sure.OPEN, LOOK_THERE, False),
    "came, runs": (ARRIVED_HERE, RUNS, None, True, "hv2", Sure.CERTAIN, [], True),
    "came, paused since": (ARRIVED_HERE, Sightings(own=Seen.PAUSED), None, True, "hv2", Sure.CERTAIN, [], False),
    "came, paused as asked": (
        *(replace(ARRIVED_HERE, request=("migrate-receive", "-p")), Sightings(own=Seen.PAUSED), None, True),
        *("hv2", Sure.CERTAIN, [], True),
    ),
    "came, gone": (ARRIVED_HERE, NOTHING, None, True, "unknown", Sure.OPEN, ["hv1# xl list"], False),
    "came, host restarted": (ARRIVED_HERE, NOTHING, None, False, "unknown", Sure.LIKELY, ["hv1# xl list"], False),
    "came, left by ssh": (ARRIVED_HERE, AWAY, None, True, "unknown", Sure.OPEN, [], False),
    "did not come": (destination(NOT_CLEARED), NOTHING, None, True, "hv1", Sure.LIKELY, [], True),
    "did not come, copy left": (destination(NOT_CLEARED), INCOMING, None, True, "hv1", Sure.LIKELY, ["hv2# pgrep -af migrate-receive"], False),
    "did not come, runs": (destination(NOT_CLEARED), RUNS, None, True, "hv2", Sure.LIKELY, ["hv1# xl list"], False),
    "keeper killed before GO": (
        *(replace(BEGUN, role=Role.DESTINATION, peer="hv1"), INCOMING, None, True),
        *("hv1", Sure.LIKELY, ["hv2# pgrep -af migrate-receive"], False),
    ),
    "keeper killed after GO, paused": (
        *(replace(BEGUN, role=Role.DESTINATION, peer="hv1", go=True), INCOMING, None, True),
        *("unknown", Sure.OPEN, ["hv1# xl list"], False),
    ),
    "keeper killed, Remus": (
        *(replace(BEGUN, role=Role.DESTINATION, peer="hv1", request=("migrate-receive", "-r")), INCOMING, None, True),
        *("unknown", Sure.OPEN, ["hv1# xl list"], False),
    ),
    "cleared, report lost, runs": (destination(), RUNS, None, True, "hv2", Sure.CERTAIN, ["hv1# xl list", *DESTROY_AWAY], False),
    "cleared, xl killed, paused": (destination(), Sightings(own=Seen.PAUSED), None, True, "unknown", Sure.OPEN, ["hv1# xl list"], False),
    "cleared, host restarted": (destination(), NOTHING, None, False, "unknown", Sure.OPEN, ["hv1# xl list"], False),
    "cleared, no xl": (destination(), "no xl", None, True, "unknown", Sure.OPEN, ["hv1# xl list", "hv2# xl list"], False),
    "taken over": (destination(FAILED_OVER), RUNS, None, True, "hv2", Sure.CERTAIN, ["hv1# xl list"], False),
    "not by xensecure, runs": (None, RUNS, None, True, "hv1", Sure.LIKELY, [], True),
    "not by xensecure, copy left": (None, AWAY, None, True, "unknown", Sure.OPEN, [], False),
    "not by xensecure, half-way": (None, INCOMING, None, True, "unknown", Sure.OPEN, ["the other host# xl list"], False),
    "nothing known": (None, NOTHING, None, True, "unknown", Sure.OPEN, [], False),
}


@pytest.mark.parametrize("name", TABLE)
def test_verdicts(name: str) -> None:
    """Who holds the domain, how sure that is, what is to be typed, and whether anything is."""
    record, seen, said, same_boot, host, sure, steps, well = TABLE[name]
    found = verdict(record, seen, said, same_boot=same_boot)
    assert (found.host, found.sure, typed(found), found.well) == (host, sure, steps, well), found


# ---- every combination


def records() -> Iterator[Record | None]:
    """Every way in which a session can stand in the journal."""
    yield None
    for role, state, report, go, ended, request in itertools.product(
        Role, STATES, (None, 0, 3), (False, True), (0.0, 1e9 + 60), (("migrate-receive",), ("migrate-receive", "-p"), ("migrate-receive", "-r"))
    ):
        yield replace(BEGUN, role=role, state=state if ended else GOING_ON, report=report, go=go, ended=ended, request=request)


def sightings() -> Iterator[Sightings | str]:
    """Everything that xl may show."""
    yield "xl cannot be run"
    for own, incoming, away in itertools.product(Seen, repeat=3):
        yield Sightings(own, incoming, away)


WORDS: list[PeerWord | str | None] = [None, SILENT, word("nonsense"), word(REPORTED, 3), *(word(state) for state in STATES)]
STARTS = re.compile(r"xl (unpause|create|restore|resume)|xensecurectl resume")


@pytest.mark.parametrize("same_boot", [True, False])
def test_every_case_has_a_verdict_that_keeps_the_rules(same_boot: bool) -> None:
    """Whatever is known: there is a verdict; where all is well nothing is to be typed; nothing that may run elsewhere is started; and nothing
    that may be the only copy is destroyed.
    """
    for record, seen in itertools.product(set(records()), sightings()):
        for said in WORDS if record is not None and record.role is Role.SOURCE else [None]:
            found = verdict(record, seen, said, same_boot=same_boot)
            case = (record, seen, said, found)
            assert found.evidence, case
            assert not (found.well and found.steps), case
            assert found.host in ("hv1", "hv2", "unknown"), case
            assert (found.host == "unknown") or found.sure is not Sure.OPEN, case
            starts = [step for step in found.steps if STARTS.match(step.command)]
            destroys = [step for step in found.steps if "xl destroy" in step.command]
            ended_there = _not_started(record, said)
            assert not starts or (record is not None and record.role is Role.SOURCE and ended_there and found.sure is Sure.CERTAIN), case
            assert all(step.host == "hv1" for step in starts), case
            assert found.may_resume == any("xensecurectl resume" in step.command for step in found.steps), case
            # Destroyed is what is left of a domain that somebody has said, or is seen, to run.
            runs_here = isinstance(seen, Sightings) and seen.own is Seen.RUNNING
            assert not destroys or runs_here or found.sure is Sure.CERTAIN, case
            assert not destroys or runs_here or not ended_there, case


def _not_started(record: Record | None, said: PeerWord | str | None) -> bool:
    """Whether somebody who knows has said that the domain has not run at the destination."""

    def says(state: str, status: int) -> bool:
        return state == NOT_CLEARED or (state == REPORTED and status != 0)

    if record is None:
        return False
    if record.report is not None and (not record.ended or record.state == REPORTED):
        return record.report != 0
    if record.ended and record.state in (NOT_CLEARED, FAILED_OVER):
        return record.state == NOT_CLEARED
    return isinstance(said, PeerWord) and says(said.state, said.status)


@pytest.mark.parametrize("name", ["-x", "--help", "", "é", "../x"])
def test_a_name_that_is_none_is_not_typed(name: str) -> None:
    """A name that a command could take for something else stands in no command."""
    found = decide(Case(domain=name, host=HERE, record=replace(source(NOT_CLEARED), domain=name), seen=AWAY))
    assert found.steps == found.cases == ()
    assert "use its id" in found.evidence[-1]


def test_a_name_is_quoted() -> None:
    """A sender's word does no harm where it is pasted."""
    found = decide(Case(domain="a; reboot\n", host=HERE, record=replace(source(NOT_CLEARED), domain="x"), seen=AWAY))
    assert typed(found) == ["hv1# xensecurectl resume 'a; reboot?'"]


def test_evidence_names_its_sources() -> None:
    """Each line says who says it: the journal, xl, the other host, and that a host was restarted."""
    found = verdict(source(), AWAY, word(REPORTED, 3), same_boot=False)
    said_by = ("journal of hv1: ", "hv1 has been restarted since that session began", "xl list on hv1: ", "hv2 says, asked ")
    assert all(line.startswith(start) for line, start in zip(found.evidence, said_by, strict=True))
    assert "session 0101" in found.evidence[0]
    assert found.evidence[0].endswith(": as it was")
    assert found.evidence[2].endswith("web1--migratedaway suspended")
    assert found.evidence[3].endswith("xl there reported status 3 (its text)")
    assert "hv2 cannot be asked: " + SILENT in verdict(source(), AWAY, SILENT).evidence
    assert "has no end; last seen" in verdict(replace(BEGUN, go=True), AWAY).evidence[0]


def test_the_other_host_is_asked_where_it_helps() -> None:
    """A source asks about a GO whose report it has not, and about what was killed; a destination never does."""
    asked = [source(), source(UNKNOWN), source(GOING_ON), BEGUN, replace(BEGUN, go=True)]
    assert all(map(needs_word, asked))
    assert not any(map(needs_word, [source(REPORTED, 0), source(REPORTED, 1), source(NOT_CLEARED), replace(BEGUN, report=0), destination()]))


@pytest.mark.parametrize("request_words", [("migrate-receive", "-r"), ("migrate-receive", "--colo")])
def test_a_killed_backup_is_not_said_to_be_idle(request_words: tuple[str, ...]) -> None:
    """Under Remus and COLO no GO is needed for a start: of a keeper that was killed nobody can say that the domain has not run there."""
    record = replace(BEGUN, role=Role.DESTINATION, peer="hv1", request=request_words)
    assert recorded_outcome(record, "hv1").state is OutcomeState.CLEARED
    assert recorded_outcome(replace(record, request=("migrate-receive",)), "hv1").state is OutcomeState.NOT_CLEARED


# ---- xl list


LIST = """\
Name                                        ID   Mem VCPUs\tState\tTime(s)
Domain-0                                     0  2048     2     r-----      34.2
web1                                         3   512     1     -b----       1.0
web2--incoming                               4   512     1     --p---       0.0
web3--migratedaway                           5   511     1     ---ss-  123456.7
a name of spaces                             6   511     1     ------       0.1
a-name-that-is-longer-than-the-column-that-it-has   7   511     1     ---sc-       0.1
(null)                                       8     0     0     --ps-d       0.1
web9                                         9   511     1     ---s--       0.1
web10                                       10   511     1     ---s?-       0.1
"""


def test_xl_list_is_understood() -> None:
    """Names, however long, and the states that matter; crashed, dying and shut down are ended."""
    found = parse_list(LIST)
    assert list(found.values()) == [
        *(Seen.RUNNING, Seen.RUNNING, Seen.PAUSED, Seen.SUSPENDED, Seen.RUNNING),
        *(Seen.ENDED, Seen.ENDED, Seen.ENDED),
    ]
    assert list(found)[4:6] == ["a name of spaces", "a-name-that-is-longer-than-the-column-that-it-has"]
    assert sight(found, "web2") == Sightings(incoming=Seen.PAUSED)
    assert sight(found, "web3") == Sightings(away=Seen.SUSPENDED)
    assert sight(found, "web4") == Sightings()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        LIST.replace("Time(s)", "Time(s)   UUID"),
        LIST + "web11\n",
        LIST.replace("-b----", "-b---"),
        LIST.replace("-b----", "xb----"),
        LIST + LIST.splitlines()[2] + "\n",
        LIST.replace("     r-----", " warning r-----"),
        "libxl: error\n" + LIST,
    ],
)
def test_another_table_is_not_guessed_at(text: str) -> None:
    """What is not wholly understood is not gone by."""
    with pytest.raises(SystemFailure, match="'xl list' has"):
        parse_list(text)


def test_lines_of_xl_list() -> None:
    """Each line has the domain's id, memory and VCPUs; one without a name has none, and there may be several of those."""
    nameless = LIST.splitlines()[7]
    found = parse_table(f"{LIST}{nameless.replace('8', '9', 1)}\n")
    assert found[0] == Listed("Domain-0", 0, 2048 << 20, 2, Seen.RUNNING)
    assert [(each.id, each.seen) for each in found if not each.name] == [(8, Seen.ENDED), (9, Seen.ENDED)]


def test_names_of_the_way_are_one_domains() -> None:
    """Whichever name is given, it is the domain's own that is looked for."""
    assert {own_name(name) for name in ("web1", "web1--incoming", "web1--migratedaway")} == {"web1"}


@pytest.mark.parametrize(
    ("seen", "picture"),
    [
        (Sightings(Seen.RUNNING, Seen.ABSENT, Seen.SUSPENDED), Picture.RUNS_BESIDE_AWAY),
        (Sightings(Seen.PAUSED, Seen.ABSENT, Seen.SUSPENDED), Picture.SEVERAL),
        (Sightings(Seen.RUNNING, Seen.PAUSED, Seen.ABSENT), Picture.SEVERAL),
        (Sightings(away=Seen.PAUSED), Picture.AWAY_OTHERWISE),
        (Sightings(own=Seen.ENDED), Picture.ENDED),
    ],
)
def test_pictures(seen: Sightings, picture: Picture) -> None:
    """Several names at once are told apart."""
    assert picture_of(Case(domain="web1", host=HERE, record=None, seen=seen)) is picture
