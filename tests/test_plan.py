"""Which domain goes where and when: the plan alone, without processes."""

from __future__ import annotations

import random

import pytest

from xensecure.cli.plan import Guest, Move, Plan, Room, bytes_needed

GIB = 1 << 30


def guests(*sizes: int) -> list[Guest]:
    """Domains a, b, c … of so many GiB."""
    return [Guest(chr(ord("a") + number), size * GIB) for number, size in enumerate(sizes)]


def rooms(**free: int) -> list[Room]:
    """Destinations with so many GiB free."""
    return [Room(host, size * GIB) for host, size in free.items()]


def started(plan: Plan) -> list[tuple[str, str]]:
    """Everything that begins now: domain and destination."""
    begun = []
    while (move := plan.next()) is not None:
        begun.append((move.guest.name, move.host))
    return begun


def test_need_is_libxls() -> None:
    """A domain needs its memory, a MiB a VCPU, 8 KiB a MiB of memory, and 2 MiB: what libxl asks for."""
    assert bytes_needed(1024 << 20, 4) == (1024 + 4 + 8 + 2) << 20


def test_the_emptiest_takes_the_next() -> None:
    """The largest domain goes to the destination with most free memory, and so on with what is left then."""
    plan = Plan(guests(2, 6, 3), rooms(hv2=8, hv3=10), at_once=9)
    assert {move.guest.name: move.host for move in plan.waiting} == {"b": "hv3", "c": "hv2", "a": "hv2"}
    assert plan.free == {"hv2": 3 * GIB, "hv3": 4 * GIB}
    assert [name for name, _ in started(plan)] == ["a", "b", "c"]


def test_a_tight_fit_is_found() -> None:
    """Where spreading the domains out leaves one without room, filling the destinations up is tried."""
    plan = Plan(guests(5, 6, 5), rooms(hv2=10, hv3=6))
    assert not plan.unplaced
    assert {move.guest.name: move.host for move in plan.waiting} == {"b": "hv3", "a": "hv2", "c": "hv2"}


def test_what_does_not_fit_is_named() -> None:
    """A domain without room is told, in the order given, and nothing of it waits."""
    plan = Plan(guests(9, 1, 20), rooms(hv2=8))
    assert [guest.name for guest in plan.unplaced] == ["a", "c"]
    assert [move.guest.name for move in plan.waiting] == ["b"]
    assert [guest.name for guest in Plan(guests(1), []).unplaced] == ["a"]


def test_one_to_each_destination_by_default() -> None:
    """Without -j each destination restores one domain at a time."""
    plan = Plan(guests(1, 1, 1, 1, 1), rooms(hv2=50, hv3=40))
    first = started(plan)
    assert [host for _, host in first] == ["hv2"]  # all fit on the emptier one best
    plan = Plan(guests(10, 10, 10, 10), rooms(hv2=50, hv3=45))
    assert sorted(host for _, host in started(plan)) == ["hv2", "hv3"]
    assert started(plan) == []
    move = next(move for move in plan.running if move.host == "hv3")
    plan.ended(move)
    assert [host for _, host in started(plan)] == ["hv3"]


@pytest.mark.parametrize(("at_once", "most"), [(1, {"hv2": 1}), (3, {"hv2": 2, "hv3": 1}), (4, {"hv2": 2, "hv3": 2}), (9, {"hv2": 3, "hv3": 3})])
def test_at_once_is_for_all_and_shared_out(at_once: int, most: dict[str, int]) -> None:
    """-j counts all migrations; no destination has more than its part, rounded up."""
    plan = Plan(guests(*[10] * 6), rooms(hv2=100, hv3=95), at_once=at_once)
    begun = [host for _, host in started(plan)]
    assert len(begun) == min(at_once, 6)
    assert {host: begun.count(host) for host in set(begun)} == most


def test_a_destination_is_not_asked_for_more_than_it_takes() -> None:
    """Migrations that arrive there already leave room for fewer of ours."""
    plan = Plan(guests(1, 1, 1), [Room("hv2", 9 * GIB, sessions=2)], at_once=3)
    assert len(started(plan)) == 2


def test_a_failed_one_is_tried_elsewhere_once() -> None:
    """A domain that stays here is tried on the emptiest other destination that has room, at the end of the queue, and never a third time."""
    plan = Plan(guests(5, 1), rooms(hv2=10, hv3=6, hv4=8), at_once=1)
    first = plan.next()
    assert first == Move(guests(5)[0], "hv2")
    again = plan.failed(first)
    assert again is not None
    assert (again.host, again.before) == ("hv4", "hv2")
    assert plan.free["hv2"] >= 9 * GIB
    assert [move.guest.name for move in plan.waiting] == ["b", "a"]
    plan.ended(plan.next() or first)
    assert plan.next() == again
    assert plan.failed(again) is None


def test_a_failed_one_with_nowhere_to_go() -> None:
    """With one destination, or no room on the others, a failure is final."""
    for there in (rooms(hv2=9), rooms(hv2=9, hv3=4)):
        plan = Plan(guests(5), there)
        move = plan.next()
        assert move is not None
        assert plan.failed(move) is None
        assert plan.next() is None


def test_a_lost_destination() -> None:
    """What waits for a destination that is gone goes to the others as far as there is room; the rest is told, and it gets nothing more."""
    plan = Plan(guests(4, 4, 4, 3), rooms(hv2=8, hv3=11), at_once=1)
    lost = [move for move in plan.waiting if move.host == "hv2"]
    assert len(lost) == 2
    homeless = plan.lose("hv2")
    assert len(homeless) + sum(move.host == "hv3" for move in plan.waiting) == 4
    assert all(move.host == "hv3" for move in plan.waiting)
    assert "hv2" not in plan.free
    assert plan.free["hv3"] >= 0
    assert len(plan.lose("hv3")) == 3
    assert (plan.waiting, plan.next()) == ([], None)


def test_a_plan_is_never_stuck_nor_over_its_bounds() -> None:
    """Whatever ends well, fails or is lost: every domain begins at most twice, on two destinations, within memory and number, and the plan ends."""
    seeded = random.Random(7)
    for _ in range(200):
        there = [Room(f"hv{number}", seeded.randrange(30) * GIB, seeded.randrange(1, 4)) for number in range(seeded.randrange(1, 5))]
        all_guests = guests(*(seeded.randrange(1, 9) for _ in range(seeded.randrange(12))))
        plan = Plan(all_guests, there, at_once=seeded.randrange(6))
        tried: dict[str, list[str]] = {guest.name: [] for guest in all_guests}
        homeless: list[Move] = []
        while plan.running or plan.waiting:
            while (move := plan.next()) is not None:
                tried[move.guest.name].append(move.host)
            assert plan.running
            for room in there:
                assert sum(move.host == room.host for move in plan.running) <= room.sessions
            assert all(free >= 0 for free in plan.free.values())
            move = seeded.choice(plan.running)
            if seeded.random() < 0.1:
                homeless += plan.lose(move.host)
            if seeded.random() < 0.5:
                plan.ended(move)
            else:
                plan.failed(move)
        untried = {guest.name for guest in plan.unplaced} | {move.guest.name for move in homeless}
        for name, hosts in tried.items():
            assert len(hosts) == len(set(hosts)) <= 2
            assert hosts or name in untried
