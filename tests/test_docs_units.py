"""The systemd units against what systemd and the code say."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from xensecure.link.config import Config
from xensecure.proto import limits

UNITS = Path(__file__).resolve().parent.parent / "packaging/systemd"
NAMES = ("xensecured.socket", "xensecured@.service", "xensecure-launcher.socket", "xensecure-launcher.service")
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not there")


def settings(name: str) -> dict[str, list[str]]:
    """A unit's settings, each with its values in order."""
    found = defaultdict(list)
    for line in (UNITS / name).read_text("utf-8").splitlines():
        if not line.startswith(("#", "[")) and "=" in line:
            key, _, value = line.partition("=")
            found[key].append(value)
    return found


def config(**values: object) -> Config:
    """The defaults."""
    return Config(path="", **values)  # type: ignore[arg-type]


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_systemd_understands_the_unit(name: str, tmp_path: Path) -> None:
    """systemd-analyze has nothing to say, but that the program and the manual are not installed here."""
    for unit in NAMES:
        shutil.copy(UNITS / unit, tmp_path)
    instance = tmp_path / name.replace("@.", "@1.")
    if not instance.exists():
        shutil.copy(UNITS / name, instance)
    done = subprocess.run([str(ANALYZE), "verify", "--man=no", str(instance)], capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith(("xensecure", str(tmp_path)))]
    assert [line for line in lines if "is not executable" not in line] == []


@needs_systemd
def test_receiver_is_confined() -> None:
    """systemd-analyze rates the receiver's exposure below 2 of 10."""
    words = [str(ANALYZE), "security", "--offline=true", "--threshold=20", str(UNITS / "xensecured@.service")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_receiver_cannot_see_the_link_keys() -> None:
    """Receivers are a dynamic user in the receivers' group, without capabilities; they get the TLS key and cannot see the link keys."""
    unit = settings("xensecured@.service")
    defaults = config()
    assert unit["DynamicUser"] == ["yes"]
    assert "User" not in unit
    assert unit["Group"] == [defaults.user]
    assert unit["CapabilityBoundingSet"] == [""]
    assert unit["NoNewPrivileges"] == ["yes"]
    assert unit["InaccessiblePaths"] == [f"-{defaults.state}"]
    assert unit["LoadCredential"] == [f"{name}:{defaults.state}/{name}" for name in ("identity.key", "identity.crt")]


def test_launcher_is_not_confined() -> None:
    """What xl starts, and xl itself, inherit nothing from the launcher's unit, and outlive its end."""
    unit = settings("xensecure-launcher.service")
    assert unit["KillMode"] == ["process"]
    assert "User" not in unit
    restricting = r"Protect|Private|Restrict|SystemCall|NoNew|Capability|Inaccessible|ReadOnly|Lock|Memory|Limit(?!NOFILE)|UMask"
    assert not [key for key in unit if re.match(restricting, key)]


def test_sockets_are_those_of_the_configuration() -> None:
    """Port, path, user and numbers of connections are the code's."""
    defaults = config()
    network, local = settings("xensecured.socket"), settings("xensecure-launcher.socket")
    assert network["ListenStream"] == [str(limits.PORT)]
    assert network["Accept"] == ["yes"]
    assert network["TriggerLimitIntervalSec"] == ["0"]
    assert int(network["MaxConnections"][0]) == limits.UNAUTHENTICATED_MAX + limits.SESSIONS_MAX
    assert int(network["MaxConnectionsPerSource"][0]) >= limits.UNAUTHENTICATED_PER_ADDRESS_MAX
    assert local["ListenSequentialPacket"] == [str(defaults.launcher_socket)]
    assert local["SocketGroup"] == [defaults.user]
    assert local["SocketMode"] == ["0660"]


def test_user_and_folders_are_those_of_the_configuration() -> None:
    """sysusers.d makes the receivers' user, tmpfiles.d the folders, state and log private."""
    defaults = config()
    assert f"u {defaults.user} " in (UNITS / "xensecure.sysusers").read_text("utf-8")
    lines = (UNITS / "xensecure.tmpfiles").read_text("utf-8").splitlines()
    assert f"d {defaults.run} 0755 root root -" in lines
    assert f"d {defaults.state} 0700 root root -" in lines
    assert "d /var/log/xensecure 0750 root root -" in lines
    assert "/var/log/xensecure/events.jsonl" in (UNITS.parents[1] / "docs/events.md").read_text("utf-8")
