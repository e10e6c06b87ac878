"""Attacks on xensecure's own parts that the test suite makes already: they are run and named here, and not made twice."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
_SECONDS = 900


@dataclass(frozen=True)
class Cited:
    """A row: what the attacker does, what comes of it, and the tests that show it."""

    title: str
    outcome: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """How a row's tests ended."""

    title: str
    outcome: str
    tests: tuple[str, ...]
    passed: bool
    words: str


ROWS = (
    Cited(
        "control: rogue root, protocol spoken, link key known to him",
        "**falls**: memory read and changed",
        ("test_attack_mitm.py::test_rogue_root_succeeds_where_the_link_key_contributes_nothing",),
    ),
    Cited(
        "rogue root, protocol spoken, proofs passed on or guessed",
        "holds: no byte read, no receive",
        ("test_attack_mitm.py::test_rogue_root_fails_against_the_link_key", "test_attack_mitm.py::test_pins_stop_him_before_anything_is_said"),
    ),
    Cited(
        "frames doubled, dropped, moved, cut and pasted, of another session",
        "holds: the link ends, nothing is delivered",
        (
            "test_attack_replay.py::test_frames_out_of_order_are_refused",
            "test_attack_replay.py::test_frames_of_another_direction_or_session_are_refused",
            "test_attack_replay.py::test_frames_cannot_be_cut_and_pasted",
            "test_attack_replay.py::test_session_with_moved_frames_fails",
        ),
    ),
    Cited(
        "frames of another lane, stripes exchanged between lanes",
        "holds: the link ends, nothing is delivered",
        ("test_attack_lanes.py::test_frame_of_another_connection", "test_attack_lanes.py::test_stripes_swapped"),
    ),
    Cited(
        "proofs and hellos replayed or reflected; the source led to itself",
        "holds: refused",
        (
            "test_attack_replay.py::test_recorded_source_is_no_source",
            "test_attack_replay.py::test_recorded_destination_is_no_destination",
            "test_attack_replay.py::test_reflected_source_is_no_destination",
            "test_attack_replay.py::test_source_led_to_itself",
            "test_attack_replay.py::test_reflected_frames_end_the_session",
            "test_attack_replay.py::test_proof_serves_one_challenge",
        ),
    ),
    Cited(
        "any bit of the key exchange or of a frame flipped; either cut short anywhere",
        "holds: never confirmed, never a success",
        (
            "test_attack_bits.py::test_flipped_bit_in_the_key_exchange",
            "test_attack_bits.py::test_key_exchange_cut_short",
            "test_attack_bits.py::test_flipped_bit_in_the_frames",
            "test_attack_bits.py::test_session_cut_short",
        ),
    ),
    Cited(
        "a token that was used, has expired, was guessed or withdrawn, or is another's",
        "holds: refused",
        (
            "test_pairing.py::test_unusable_tokens",
            "test_pairing.py::test_withdrawn_token",
            "test_attack_keys.py::test_token_secret_is_needed_to_join",
        ),
    ),
    Cited(
        "a TLS key or a link key stolen, another peer's, or guessed",
        "holds: refused, and all refusals look alike",
        ("test_attack_keys.py::test_what_the_attacker_has_is_not_enough", "test_attack_keys.py::test_all_failures_look_alike_on_the_wire"),
    ),
    Cited(
        "an old link key after `rotate`, and any after `forget`",
        "holds: refused",
        ("test_pairing.py::test_rotate", "test_pairing.py::test_forget"),
    ),
    Cited(
        "another peer's session resumed, joined, or asked about",
        "holds: answered as one that never was",
        ("test_resume.py::test_sessions_of_others",),
    ),
    Cited("a proof of a rotation withheld", "holds: both hosts keep a common key", ("test_attack_rotation.py",)),
    Cited(
        "64 connections of garbage and 64 silent ones from one address",
        "holds: another host's migration arrives",
        ("test_receiver_sockets.py::test_garbage_stops_nothing", "test_receiver_sockets.py::test_eight_strangers_an_address"),
    ),
    Cited(
        "a receiver taken over: reads keys, gains privileges",
        "holds: no link key in its memory, no privileges",
        (
            "test_receiver.py::test_receiver_knows_no_link_key",
            "test_receiver.py::test_search_finds_a_link_key",
            "test_receiver.py::test_receiver_has_no_privileges",
        ),
    ),
    Cited(
        "a receiver taken over: forges a peer, starts another program, talks nonsense to the launcher",
        "holds: nothing is started",
        (
            "test_attack_launcher.py::test_proof_is_good_for_its_own_connection_alone",
            "test_attack_launcher.py::test_stale_challenge_is_refused",
            "test_attack_launcher.py::test_nonsense_before_authenticating_ends_the_keeper",
            "test_attack_launcher.py::test_nonsense_after_authenticating_starts_nothing",
            "test_attack_launcher.py::test_xl_has_no_input_before_the_yes",
        ),
    ),
    Cited(
        "a receiver taken over: gets at another session",
        "holds: refused",
        ("test_attack_lanes.py::test_another_session_than_the_source_named", "test_attack_lanes.py::test_door_is_roots"),
    ),
)


def run(rows: tuple[Cited, ...] = ROWS) -> list[Result]:
    """Run the tests of every row, each test once."""
    wanted = list(dict.fromkeys(f"tests/{test}" for row in rows for test in row.tests))
    words = [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=short", "-p", "no:cacheprovider", *wanted]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS, check=False)
    ended = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) (?:\[\d+\] )?(\S+)", done.stdout, re.MULTILINE)
    return [_result(row, ended) for row in rows]


def _result(row: Cited, ended: list[tuple[str, str]]) -> Result:
    count = 0
    for test in row.tests:
        own = [outcome for outcome, name in ended if name == f"tests/{test}" or name.startswith((f"tests/{test}[", f"tests/{test}::"))]
        if not own or set(own) != {"PASSED"}:
            return Result(row.title, row.outcome, row.tests, passed=False, words=f"{test}: {', '.join(sorted(set(own))) or 'did not run'}")
        count += len(own)
    return Result(row.title, row.outcome, row.tests, passed=True, words=f"{count} passed")
