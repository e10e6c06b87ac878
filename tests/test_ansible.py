"""The Ansible role, run by ansible-playbook over ssh against machines made of namespaces."""

from __future__ import annotations

import base64
import tomllib
from collections.abc import Iterator
from itertools import combinations, permutations
from pathlib import Path

import pytest

from tests.fleet.hosts import Fleet, Played, why_not
from xensecure.link.config import Config
from xensecure.link.peers import Peers
from xensecure.proto.token import Token

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

FIRST = ("hv1", "hv2", "hv3")
THEN = ("hv1", "hv3", "hv4")  # hv2 leaves, hv4 comes


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Four machines, of which three are the fleet at first."""
    with Fleet(4) as made:
        yield made


@pytest.fixture(scope="module")
def first(fleet: Fleet) -> Played:
    """The first run, with all that ansible says at -vvv."""
    config = {"receive": {"sessions": 8}, "defaults": {"bwlimit": "500M"}, "host": {"hv9.example.org": {"lanes": 4, "address": ["192.0.2.9"]}}}
    played = fleet.play(FIRST, "-vvv", xensecure_config=config)
    assert played.status == 0, played.output[-20000:]
    return played


@pytest.fixture(scope="module")
def second(fleet: Fleet, first: Played) -> Played:
    """The run after it, with another group, new keys for pairs of any age, and everything that ansible can be made to say."""
    assert first.status == 0
    loud = {"ANSIBLE_DEBUG": "1", "ANSIBLE_PIPELINING": "0", "ANSIBLE_KEEP_REMOTE_FILES": "1"}
    played = fleet.play(THEN, "-vvvvv", "--diff", environment=loud, xensecure_no_log=False, xensecure_rotate_days=1e-9)
    assert played.status == 0, played.output[-20000:]
    return played


def link_keys(fleet: Fleet, names: tuple[str, ...]) -> dict[tuple[str, str], list[bytes]]:
    """The link keys that each host has for each other."""
    found = {}
    for name in names:
        for peer in Peers(Config(path="", state=fleet[name].path("/var/lib/xensecure"))).all():
            found[name, peer.name] = [bytes(key.key) for key in peer.keys]
    return found


def assert_paired(fleet: Fleet, names: tuple[str, ...]) -> None:
    """Each knows each other and nobody else, with one and the same key."""
    keys = link_keys(fleet, names)
    assert set(keys) == set(permutations(names, 2))
    assert all(keys[one, two] == keys[two, one] and len(keys[one, two]) == 1 for one, two in combinations(names, 2))


def test_fleet_is_paired(fleet: Fleet, first: Played) -> None:
    """After one run every pair shares a key of its own, over which each can prove itself to the other."""
    assert set(first.recap) == set(FIRST)
    assert_paired(fleet, FIRST)
    assert len({key for keys in link_keys(fleet, FIRST).values() for key in keys}) == 3
    for one, two in permutations(FIRST, 2):
        assert "share a new link key" in fleet[one].ctl("rotate", two)


def test_configuration(fleet: Fleet, first: Played) -> None:
    """The file holds what the variables say, and xensecurectl goes by it."""
    path = fleet["hv1"].path("/etc/xensecure/xensecure.toml")
    assert path.stat().st_mode & 0o777 == 0o644
    assert tomllib.loads(path.read_text()) == {
        "identity": {"name": "hv1"},
        "listen": {"port": 8003, "addresses": ["192.0.2.1"]},
        "receive": {"sessions": 8},
        "defaults": {"bwlimit": "500M"},
        "host": {"hv9.example.org": {"lanes": 4, "address": ["192.0.2.9"]}},
    }
    assert "addresses: 192.0.2.1\n" in fleet["hv1"].ctl("show")


def test_wrong_configuration_is_not_written(fleet: Fleet, first: Played) -> None:
    """A mistake stops the run with xensecure's own words, and the file of before stays."""
    path = fleet["hv1"].path("/etc/xensecure/xensecure.toml")
    before = path.read_bytes()
    played = fleet.play(["hv1"], xensecure_config={"receive": {"sesions": 8}})
    assert played.status != 0
    assert "unknown key 'sesions'" in played.output
    assert path.read_bytes() == before


def test_again_changes_nothing(fleet: Fleet, first: Played) -> None:
    """A second run finds everything in order, and asks each host over one ssh connection."""
    config = {"receive": {"sessions": 8}, "defaults": {"bwlimit": "500M"}, "host": {"hv9.example.org": {"lanes": 4, "address": ["192.0.2.9"]}}}
    logs = {name: len(fleet[name].log()) for name in FIRST}
    again = fleet.play(FIRST, xensecure_config=config)
    assert again.changed == dict.fromkeys(FIRST, 0)
    assert {name: fleet[name].log()[logs[name] :].count("Accepted publickey") for name in FIRST} == dict.fromkeys(FIRST, 1)


def test_host_is_added_and_removed(fleet: Fleet, second: Played) -> None:
    """The new one shares a key with each; the one that left is known to nobody and gets in nowhere."""
    assert set(second.recap) == set(THEN)
    assert_paired(fleet, THEN)
    for name in ("hv1", "hv3"):
        assert "does not accept our proof" in fleet["hv2"].run("sh", "-c", f"{fleet.folder}/xensecurectl rotate {name} 2>&1 || true")
    for one, two in permutations(THEN, 2):
        fleet[one].ctl("rotate", two)


def test_keys_are_rotated_by_age(fleet: Fleet, second: Played) -> None:
    """The one pair that stayed has renewed its key, once."""
    calls = [line for name in THEN for line in fleet[name].path("/root/arguments").read_text().splitlines()]
    assert [line for line in calls if line.startswith("rotate")] in (["rotate hv1"], ["rotate hv3"])


def spellings(secret: bytes) -> set[bytes]:
    """A secret as it might stand in a log."""
    return {secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"=")[:-1], base64.b32encode(secret).rstrip(b"=")[:-1].lower()}


def test_no_secret_is_seen(fleet: Fleet, first: Played, second: Played) -> None:
    """No token and no link key in what ansible prints, logs and leaves on controller and hosts, in the daemons' and sshd's logs, in any argument."""
    tokens = [line for name in (*FIRST, "hv4") for line in fleet[name].path("/root/tokens").read_text().splitlines()]
    assert len(tokens) == len(set(tokens)) == 3 + 2
    secrets = {spelling for token in tokens for spelling in (token.encode(), base64.b64encode(token.encode())[:-4])}
    secrets |= {spelling for token in tokens for spelling in spellings(Token.decode(token).secret)}
    secrets |= {spelling for keys in link_keys(fleet, THEN).values() for key in keys for spelling in spellings(key)}
    seen = {"the first run": first.output.encode(), "the second run": second.output.encode()}
    seen |= {str(path): path.read_bytes() for path in fleet.folder.rglob("*") if path.is_file() and path.name not in ("host", "user")}
    for name in (*FIRST, "hv4"):
        machine = fleet[name]
        left = [machine.path("/root/arguments"), *machine.path("/var/log").glob("xensecure*"), *remote_files(machine.path("/root/.ansible"))]
        seen |= {f"{name}: {path}": path.read_bytes() for path in left}
    assert any(b"AnsiballZ" in path.encode() for path in seen), "nothing was kept on the hosts"
    assert b"ansible-playbook" in seen["the second run"]
    assert [where for where, content in seen.items() if any(secret in content for secret in secrets)] == []
    assert not [where for where, content in seen.items() if b"xs1:" in content and not where.endswith(("xensecurectl", ".py"))]


def remote_files(folder: Path) -> list[Path]:
    """What ansible has left on a host."""
    return [path for path in folder.rglob("*") if path.is_file()]


def test_pair_that_fails_is_named(fleet: Fleet, second: Played) -> None:
    """Where a host cannot be joined the run fails with the pair and xensecure's own words; the other pairs have new keys, as was asked for."""
    before = {name: fleet[name].peers()["hv4"]["keys"][-1]["generation"] for name in ("hv1", "hv3")}
    fleet["hv1"].ctl("forget", "hv3")
    fleet["hv3"].run("sh", "-c", "kill $(cat /run/xensecured.pid)")
    played = fleet.play(THEN, "-e", "xensecure_rotate=true")
    assert {name: recap.failed for name, recap in played.recap.items()} == {"hv1": 1, "hv3": 0, "hv4": 0}
    assert "hv3: xensecurectl: cannot connect to port 8003 (192.0.2.3: Connection refused)" in played.output
    assert "xs1:" not in played.output
    assert {name: fleet[name].peers()["hv4"]["keys"][-1]["generation"] for name in before} == {name: number + 1 for name, number in before.items()}


def test_nothing_is_left_for_tokens(fleet: Fleet, first: Played, second: Played) -> None:
    """The key to which tokens were encrypted is gone."""
    assert not [name for name in (*FIRST, "hv4") if fleet[name].path("/var/lib/xensecure/ansible.key").exists()]


def test_nothing_is_left_for_tokens_where_a_run_breaks_off(fleet: Fleet, second: Played) -> None:
    """The key goes as well where the steps after it fail as a whole, and one that an older run has left goes with the next survey."""
    if "hv3" in fleet["hv1"].peers():
        fleet["hv1"].ctl("forget", "hv3")
    left = fleet["hv4"].path("/var/lib/xensecure/ansible.key")
    left.write_text("of a run that was killed")
    played = fleet.play(THEN, xensecure_jobs="none")  # hv1 makes a key, hv3 cannot invite, hv1 cannot join
    assert {name: recap.failed for name, recap in played.recap.items()} == {"hv1": 1, "hv3": 1, "hv4": 0}
    assert "Remove the key for tokens" in played.output
    assert not [name for name in THEN if fleet[name].path("/var/lib/xensecure/ansible.key").exists()]
