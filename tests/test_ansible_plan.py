"""The plan of the Ansible role: which pairs are made, renewed and ended, and by whom."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROLE = Path(__file__).resolve().parent.parent / "packaging/ansible/roles/xensecure"


def load() -> ModuleType:
    """The role's filters, as ansible loads them: from their file."""
    spec = importlib.util.spec_from_file_location("xensecure_plan", ROLE / "filter_plugins/xensecure_plan.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


plan_module = load()


def as_said(fleet: Mapping[str, Any]) -> dict[str, Any]:
    """Hosts' variables as ansible has them: a survey is a text."""
    return {
        name: {**each, "xensecure_survey": {"survey": json.dumps(each["xensecure_survey"])}} if "xensecure_survey" in each else each
        for name, each in fleet.items()
    }


def plan(group: Iterable[str], fleet: Mapping[str, Any], **options: object) -> dict[str, dict[str, list[str]]]:
    """The plan for hosts by their variables."""
    found: dict[str, dict[str, list[str]]] = plan_module.plan(group, as_said(fleet), **options)
    return found



def entry(pin: str, *keys: str, age: int = 0) -> dict[str, Any]:
    """What a host knows of another."""
    return {"pin": pin, "keys": list(keys), "age": age}


def host(name: str, *, pools: Iterable[str] = ("fleet",), damaged: Iterable[str] = (), **peers: dict[str, Any]) -> dict[str, Any]:
    """A host's variables after the survey."""
    return {"xensecure_survey": {"name": name, "pin": f"pin-{name}", "pools": list(pools), "peers": peers, "damaged": list(damaged)}}


def met(*names: str, age: int = 0) -> dict[str, dict[str, Any]]:
    """Hosts that know each other."""
    found = {}
    for name in names:
        peers = {other: entry(f"pin-{other}", "-".join(sorted((name, other))), age=age) for other in names if other != name}
        found[name] = host(name, **peers)
    return found


def nothing(made: dict[str, dict[str, list[str]]]) -> bool:
    """Whether nobody has anything to do."""
    return not any(names for each in made.values() for names in each.values())


def test_new_hosts_meet_each_with_each() -> None:
    """Every pair is made once, and both of its hosts know their part."""
    fleet = {name: host(name) for name in ("hv1", "hv2", "hv3", "hv4", "hv5")}
    made = plan(fleet, fleet)
    pairs = [frozenset((name, other)) for name, each in made.items() for other in each["join"]]
    assert len(pairs) == len(set(pairs)) == 10
    assert sorted((other, name) for name, each in made.items() for other in each["invite"]) == sorted(
        (name, other) for name, each in made.items() for other in each["join"]
    )


@pytest.mark.parametrize("count", [2, 3, 10, 51, 200])
def test_work_is_even(count: int) -> None:
    """No host joins more than half of the others, and no two hosts start with the same one."""
    fleet = {f"hv{number:03}": host(f"hv{number:03}") for number in range(count)}
    made = plan(fleet, fleet)
    assert max(len(each["join"]) for each in made.values()) <= count // 2
    assert max(Counter(each["join"][0] for each in made.values() if each["join"]).values()) == 1
    assert sum(len(each["join"]) for each in made.values()) == count * (count - 1) // 2


def test_fleet_that_has_met_does_nothing() -> None:
    """A second run finds nothing to do, however old the keys are."""
    fleet = met("hv1", "hv2", "hv3", age=10**9)
    assert nothing(plan(fleet, fleet))


def test_host_that_has_left_is_forgotten() -> None:
    """By all that remain; not where strangers are to stay, and not where it is kept by name."""
    fleet = met("hv1", "hv2", "hv3")
    made = plan(["hv1", "hv2"], fleet)
    assert {name: each["forget"] for name, each in made.items()} == {"hv1": ["hv3"], "hv2": ["hv3"]}
    assert nothing(plan(["hv1", "hv2"], fleet, strangers=False))
    assert nothing(plan(["hv1", "hv2"], fleet, keep=["hv3"]))


def test_host_that_cannot_be_asked_is_not_forgotten() -> None:
    """A member that is switched off, or outside of --limit, stays as it is; its name is the inventory's."""
    fleet = met("hv1", "hv2", "hv3")
    away = {**fleet, "machine3": {"xensecure_name": "hv3"}}
    assert nothing(plan(["hv1", "hv2", "machine3"], away))
    assert "machine3" not in plan(["hv1", "hv2", "machine3"], away, rotate=True)


def test_reinstalled_host() -> None:
    """A host with another TLS key under the same name is forgotten by those who knew the old one, and paired again."""
    fleet = {**met("hv1", "hv2"), "hv2": host("hv2")}
    fleet["hv1"]["xensecure_survey"]["peers"]["hv2"]["pin"] = "pin of before"
    made = plan(fleet, fleet)
    assert made["hv1"]["forget"] == ["hv2"]
    assert made["hv1"]["join"] == ["hv2"]
    assert made["hv2"]["invite"] == ["hv1"]


def test_hosts_without_a_common_key_are_paired_again() -> None:
    """As after a backup was restored on one of them; neither has to forget the other for that."""
    fleet = met("hv1", "hv2")
    fleet["hv1"]["xensecure_survey"]["peers"]["hv2"]["keys"] = ["older"]
    made = plan(fleet, fleet)
    assert made == {
        "hv1": {"forget": [], "join": ["hv2"], "invite": [], "rotate": []},
        "hv2": {"forget": [], "join": [], "invite": ["hv1"], "rotate": []},
    }


def test_damaged_file_is_replaced() -> None:
    """What cannot be read is removed, and the pair made anew."""
    fleet = {**met("hv1", "hv2"), "hv2": host("hv2", damaged=["hv1"])}
    made = plan(fleet, fleet)
    assert made["hv2"]["forget"] == ["hv1"]
    assert made["hv1"]["join"] == ["hv2"]


def test_pools() -> None:
    """Hosts meet those alone with which they have a pool in common; one that changes its pool is forgotten in the old one."""
    fleet = {"a": host("a", pools=["east"]), "b": host("b", pools=["east", "west"]), "c": host("c", pools=["west"])}
    made = plan(fleet, fleet)
    assert {frozenset((name, other)) for name, each in made.items() for other in each["join"]} == {frozenset("ab"), frozenset("bc")}
    moved = met("a", "b")
    moved["b"]["xensecure_survey"]["pools"] = ["west"]
    assert plan(moved, moved) == {
        "a": {"forget": ["b"], "join": [], "invite": [], "rotate": []},
        "b": {"forget": ["a"], "join": [], "invite": [], "rotate": []},
    }


def test_rotation() -> None:
    """On request every pair's key is renewed, by age those that are older; by one of the two hosts."""
    fleet = met("hv1", "hv2", "hv3", age=3 * 86400)
    asked = plan(fleet, fleet, rotate=True)
    assert sorted((name, other) for name, each in asked.items() for other in each["rotate"]) == [("hv1", "hv2"), ("hv2", "hv3"), ("hv3", "hv1")]
    assert plan(fleet, fleet, rotate_days=2.5) == asked
    assert nothing(plan(fleet, fleet, rotate_days=3.5))
    new = {**fleet, "hv4": host("hv4")}
    assert all("hv4" not in each["rotate"] for each in plan(new, new, rotate=True).values())


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (host("hv1"), {"xensecure_survey": {**host("HV1")["xensecure_survey"], "pin": "another"}}, "both called HV1"),
        (host("hv1"), {"xensecure_survey": {**host("hv2")["xensecure_survey"], "pin": "pin-hv1"}}, "one identity, as if copied from one disk"),
    ],
)
def test_hosts_that_cannot_be_told_apart(first: dict[str, Any], second: dict[str, Any], words: str) -> None:
    """Two hosts with one name or one TLS key stop the run before anything is changed."""
    with pytest.raises(plan_module.AnsibleFilterError, match=words):
        plan(["x", "y"], {"x": first, "y": second})


NAMES = [f"hv{number}" for number in range(7)]


@st.composite
def fleets(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """Hosts of some pools, who know some of each other, rightly and wrongly, and strangers."""
    count = draw(st.integers(1, len(NAMES)))
    found = {}
    for name in NAMES[:count]:
        known = draw(st.dictionaries(st.sampled_from([*NAMES, "stranger"]), st.tuples(st.booleans(), st.sampled_from("kq")), max_size=6))
        known.pop(name, None)
        peers = {
            other: entry(f"pin-{other}" if right else "pin of before", f"{key}{'-'.join(sorted((name, other)))}")
            for other, (right, key) in known.items()
        }
        damaged = draw(st.sets(st.sampled_from(NAMES), max_size=1)) - {name, *peers}
        found[name] = host(name, pools=draw(st.sets(st.sampled_from("AB"), min_size=1)), damaged=damaged, **peers)
    return found


def carry_out(fleet: dict[str, dict[str, Any]], made: dict[str, dict[str, list[str]]]) -> None:
    """What the role's steps make of a plan: forget, then join; xensecurectl refuses another host under a name that is known."""
    of = {name: each["xensecure_survey"] for name, each in fleet.items()}
    for name, each in made.items():
        for other in each["forget"]:
            of[name]["peers"].pop(other, None)
        of[name]["damaged"] = [other for other in of[name]["damaged"] if other not in each["forget"]]
    for name, each in made.items():
        for other in each["join"]:
            for one, two in ((name, other), (other, name)):
                assert of[one]["peers"].get(two, {"pin": of[two]["pin"]})["pin"] == of[two]["pin"]
                assert two not in of[one]["damaged"]
                of[one]["peers"][two] = entry(of[two]["pin"], f"new{'-'.join(sorted((name, other)))}")


@given(fleets())
def test_every_fleet_comes_into_order(fleet: dict[str, dict[str, Any]]) -> None:
    """Whatever the hosts know before, after one run those with a common pool know each other and nobody else, and a second run does nothing."""
    carry_out(fleet, plan(fleet, fleet))
    assert nothing(plan(fleet, fleet))
    pools = {name: set(each["xensecure_survey"]["pools"]) for name, each in fleet.items()}
    for name, each in fleet.items():
        assert set(each["xensecure_survey"]["peers"]) == {other for other in fleet if other != name and pools[name] & pools[other]}


def test_collect_leaves_out_what_is_not_there() -> None:
    """A host whose step has failed or was skipped has nothing to give."""
    variables = {"a": {"step": {"tokens": {"x": "1"}}}, "b": {"step": {"skipped": True}}, "c": {}}
    assert plan_module.collect(["a", "b", "c"], variables, "step", "tokens", "x") == {"a": "1"}
