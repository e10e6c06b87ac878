"""The plan of the Ansible role: which pairs are made, renewed and ended, and by whom."""

from __future__ import annotations

import hashlib
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

from xensecure.link.keys import NAME_PATTERN
from xensecure.proto import limits

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


def pin(words: str) -> str:
    """A pin, the same for the same words."""
    return hashlib.sha256(words.encode()).hexdigest()


def key_id(words: str) -> str:
    """The id of a link key, the same for the same words."""
    return pin(words)[: 2 * limits.KEY_ID_LEN]


def entry(of: str, *keys: str, age: int = 0) -> dict[str, Any]:
    """What a host knows of another: the pin of that name, and the keys of these."""
    return {"pin": pin(of), "keys": [key_id(key) for key in keys], "age": age}


def host(name: str, *, pools: Iterable[str] = ("fleet",), damaged: Iterable[str] = (), **peers: dict[str, Any]) -> dict[str, Any]:
    """A host's variables after the survey."""
    survey = {"name": name, "pin": pin(name), "peers": peers, "damaged": list(damaged)}
    return {"xensecure_settled": {"name": name, "pools": list(pools)}, "xensecure_survey": survey}


def met(*names: str, age: int = 0) -> dict[str, dict[str, Any]]:
    """Hosts that know each other."""
    found = {}
    for name in names:
        peers = {other: entry(other, "-".join(sorted((name, other))), age=age) for other in names if other != name}
        found[name] = host(name, **peers)
    return found


def saying(variables: Mapping[str, Any], **words: object) -> dict[str, Any]:
    """A host's variables if its survey said this."""
    return {**variables, "xensecure_survey": {**variables["xensecure_survey"], **words}}


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
    fleet["hv1"]["xensecure_survey"]["peers"]["hv2"]["pin"] = pin("before")
    made = plan(fleet, fleet)
    assert made["hv1"]["forget"] == ["hv2"]
    assert made["hv1"]["join"] == ["hv2"]
    assert made["hv2"]["invite"] == ["hv1"]


def test_hosts_without_a_common_key_are_paired_again() -> None:
    """As after a backup was restored on one of them; neither has to forget the other for that."""
    fleet = met("hv1", "hv2")
    fleet["hv1"]["xensecure_survey"]["peers"]["hv2"]["keys"] = [key_id("older")]
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
    moved["b"]["xensecure_settled"]["pools"] = ["west"]
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
        (host("hv1"), host("HV1"), "both called HV1"),
        (host("hv1"), saying(host("hv2"), pin=pin("hv1")), "one identity, as if copied from one disk"),
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
            other: entry(other if right else "before", f"{key}{'-'.join(sorted((name, other)))}")
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
                of[one]["peers"][two] = entry(two, f"new{'-'.join(sorted((name, other)))}")


@given(fleets())
def test_every_fleet_comes_into_order(fleet: dict[str, dict[str, Any]]) -> None:
    """Whatever the hosts know before, after one run those with a common pool know each other and nobody else, and a second run does nothing."""
    carry_out(fleet, plan(fleet, fleet))
    assert nothing(plan(fleet, fleet))
    pools = {name: set(each["xensecure_settled"]["pools"]) for name, each in fleet.items()}
    for name, each in fleet.items():
        assert set(each["xensecure_survey"]["peers"]) == {other for other in fleet if other != name and pools[name] & pools[other]}


TEMPLATE = "{{ lookup('pipe', 'id') }}"
HOSTILE = [TEMPLATE, "{% raw %}", "--all", "../hv2", "", "a b", "hv2\n", "é", "a" * 231, 7, None, ["hv2"]]


@pytest.mark.parametrize("words", HOSTILE)
def test_host_puts_no_words_of_its_own_into_a_plan(words: Any) -> None:
    """A name, pin or key id that xensecure never has is refused and not repeated: ansible before 2.19 would run it as a template."""
    good = host("hv1", stranger=entry("stranger", "key"))
    known = good["xensecure_survey"]["peers"]["stranger"]
    answers = [
        {"name": words},
        {"damaged": [words]},
        {"peers": {"stranger": {**known, "pin": words}}},
        {"peers": {"stranger": {**known, "keys": [words]}}},
    ]
    if isinstance(words, str):
        answers += [{"peers": {words: known}}] + ([{"pin": words}] if words else [])
    assert plan(["hv1"], {"hv1": good})["hv1"]["forget"] == ["stranger"]
    for answer in answers:
        with pytest.raises(plan_module.AnsibleFilterError, match=r"^hv1 answers with names, pins or key ids that xensecure never has") as refused:
            plan(["hv1"], {"hv1": saying(good, **answer)})
        assert TEMPLATE not in str(refused.value)


NO_PEERS = [[], {"hv2": []}, *({"hv2": {**entry("hv2"), key: value}} for key, value in (("age", "1"), ("age", True), ("age", 0.5), ("keys", {})))]
NO_SURVEYS = ["{}", "[]", "null", '{"name":', "[" * 100_000, "9" * 5000]
NO_SURVEYS += [json.dumps({**host("hv1")["xensecure_survey"], "peers": peers}) for peers in NO_PEERS]


@pytest.mark.parametrize("text", NO_SURVEYS, ids=range(len(NO_SURVEYS)))
def test_survey_that_is_none(text: str) -> None:
    """Whatever else a host answers, the run ends with one line that names it."""
    variables = {"hv1": {**host("hv1"), "xensecure_survey": {"survey": text}}}
    with pytest.raises(plan_module.AnsibleFilterError, match=r"^hv1 answers"):
        plan_module.plan(["hv1"], variables)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_plan_has_names_and_nothing_else(words: Any) -> None:
    """Anything in the place of the peers is refused, or leaves names only."""
    try:
        made = plan(["hv1"], {"hv1": saying(host("hv1"), peers=words, damaged=words)})
    except plan_module.AnsibleFilterError:
        return
    assert all(NAME_PATTERN.fullmatch(name) for name in made["hv1"]["forget"])


def test_patterns_are_those_of_xensecure() -> None:
    """What the role lets pass is what xensecure prints."""
    assert plan_module.NAME.pattern == NAME_PATTERN.pattern
    assert plan_module.PIN.pattern == f"[0-9a-f]{{{2 * limits.PIN_LEN}}}"
    assert plan_module.KEY_ID.pattern == f"[0-9a-f]{{{2 * limits.KEY_ID_LEN}}}"


def test_pools_are_not_the_hosts_own_word() -> None:
    """A host of the laboratory that answers with the pool of the production meets nobody there."""
    lab = saying(host("lab1", pools=["lab"]), pools=["lab", "prod"])
    fleet = {"lab1": lab, "prod1": host("prod1", pools=["prod"])}
    assert nothing(plan(fleet, fleet))


def test_name_is_not_the_hosts_own_word() -> None:
    """A host that takes the name of another's peer makes nobody forget that peer: the run ends, with a line that says both names."""
    fleet = {"lab1": saying(host("lab1"), name="backup"), "prod1": host("prod1", backup=entry("backup", "key"))}
    with pytest.raises(plan_module.AnsibleFilterError, match="lab1 calls itself backup, and is lab1 by the inventory: set xensecure_name"):
        plan(fleet, fleet, keep=["backup"])
    fleet["lab1"]["xensecure_settled"]["name"] = "backup"  # now it is the inventory's
    assert plan(fleet, fleet)["prod1"]["forget"] == ["backup"]


@pytest.mark.parametrize("name", ["xensecure_pools", "xensecure_name", "xensecure_settled", "xensecure_keep"])
def test_facts_set_no_variables_of_the_role(name: str) -> None:
    """They are the host's own word, and outrank the inventory: neither before the run nor in its answers are they taken."""
    facts = {name: TEMPLATE}
    for variables in ({**host("hv2"), "ansible_facts": facts}, {"ansible_facts": facts}):
        with pytest.raises(plan_module.AnsibleFilterError, match="hv2 sets variables of this role by its facts"):
            plan(["hv1", "hv2"], {"hv1": host("hv1"), "hv2": variables})
    with pytest.raises(plan_module.AnsibleFilterError, match="hv2 sets variables of this role by its facts"):
        plan_module.settle({"pools": TEMPLATE}, "hv2", facts)
    assert plan_module.settle({"pools": ["lab"]}, "hv2", {"distribution": "Debian"}) == {"pools": ["lab"]}


CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB+/==\n-----END CERTIFICATE-----\n"


def test_what_is_carried_leaves_out_what_is_not_there() -> None:
    """A host whose step has failed or was skipped has nothing to give."""
    variables = {
        "a": {"xensecure_invited": {"tokens": {"x": "MIIB+/=="}}, "xensecure_prepared": {"certificate": CERTIFICATE}},
        "b": {"xensecure_invited": {"skipped": True}, "xensecure_prepared": {"certificate": ""}},
        "c": {},
    }
    assert plan_module.tokens(["a", "b", "c"], variables, "x") == {"a": "MIIB+/=="}
    assert plan_module.certificates(["a", "b", "c"], variables) == {"a": CERTIFICATE}


@pytest.mark.parametrize("words", [TEMPLATE, CERTIFICATE + TEMPLATE, f"MIIB{TEMPLATE}", "xs1:A", {"a": 1}, [TEMPLATE]])
def test_what_is_carried_is_nothing_else(words: object) -> None:
    """What a host gives for others is a certificate or a token, or the step stops with its name."""
    variables = {"a": {"xensecure_invited": {"tokens": {"x": words}}, "xensecure_prepared": {"certificate": words}}}
    for take in (lambda: plan_module.tokens(["a"], variables, "x"), lambda: plan_module.certificates(["a"], variables)):
        with pytest.raises(plan_module.AnsibleFilterError, match=r"^a answers with something else"):
            take()


def test_lines_of_failures_are_plain_text() -> None:
    """They are a host's own words, and stand in a task's message."""
    results = [{"failures": ["hv3: xensecurectl: no route (192.0.2.3)", TEMPLATE, "\x1b[2J", 7]}, {"skipped": True}, {"failures": "x" * 9999}]
    lines = plan_module.failures(results)
    assert lines == ["hv3: xensecurectl: no route (192.0.2.3)", "?? lookup('pipe', 'id') ??", "?[2J", "7", "x" * plan_module.LINE_MAX]
