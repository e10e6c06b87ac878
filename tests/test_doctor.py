"""``xensecurectl doctor``: a host where all is well, and each thing that can be wrong with one."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pair import Host, Pair
from xensecure import __version__
from xensecure.link.engine import compiled_backends, find_backend
from xensecure.proto.tls import GROUPS, offered_groups


@pytest.fixture(scope="module")
def well() -> Iterator[Pair]:
    """Two hosts that have met, the second with its daemons."""
    with Pair() as made:
        yield made


def problems(host: Host) -> list[str]:
    """What doctor finds wrong, without its name in front."""
    lines = host.ctl("doctor", status=4).stderr.splitlines()
    assert all(line.startswith("xensecurectl: ") for line in lines)
    return [line.removeprefix("xensecurectl: ") for line in lines]


def restart_launcher(host: Host) -> None:
    """End it and start it anew."""
    launcher = host.processes["xensecure-launcher"]
    launcher.terminate()
    launcher.wait(20)
    host.start_until_ready("xensecure-launcher")


def test_all_is_well(well: Pair) -> None:
    """A host with its daemons: every line is there, nothing on stderr, status 0, and nobody is alarmed."""
    host = well.destination
    done = host.ctl("doctor")
    assert done.stderr == ""
    said = done.stdout
    assert said.startswith(f"xensecure {__version__}\nTLS: OpenSSL ")
    assert f"groups {', '.join(offered_groups())}\n" in said
    assert f"cipher backends built in: {', '.join(compiled_backends())}; the best on this CPU: {find_backend()}\n" in said
    assert f"cipher in use: {find_backend()} ([engine] cipher = 'auto')\n" in said
    assert f"configuration: {host.config}\n" in said
    assert re.search(r"^identity: hv2, pin [0-9a-f]{64}$", said, re.MULTILINE)
    assert f"state: {host.state} (state 0700, peers 0700, invitations 0700); peers: 1\n" in said
    assert f"launcher: listens on {host.folder / 'run/launcher.sock'}\n" in said
    assert re.search(rf"^port {host.port}: a receiver and its launcher answer, by ({'|'.join(GROUPS.values())})$", said, re.MULTILINE)
    assert "SECURITY" not in host.log("xensecured") + host.log("xensecure-launcher")


def test_no_daemons(well: Pair) -> None:
    """A host without daemons: launcher and port, a line each, and the rest is said all the same."""
    launcher, port = problems(well.source)
    assert "no launcher listens there" in launcher
    assert port.startswith(f"cannot connect to port {well.source.port}")
    assert "identity: hv1" in well.source.ctl("doctor", status=4).stdout


def other_config(host: Host, folder: Path, *changes: tuple[str, str], extra: str = "") -> str:
    """Another configuration for a host, like its own but for some words; returns its path."""
    text = host.config.read_text() + extra
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "other.toml"
    path.write_text(text)
    path.chmod(0o644)
    return str(path)


def test_folder_of_a_log(well: Pair, tmp_path: Path) -> None:
    """A file in [log] whose folder is missing is named, by doctor and by what writes it."""
    where = tmp_path / "none/metrics.prom"
    config = other_config(well.destination, tmp_path, extra=f'\n[log]\nmetrics = "{where}"\n')
    said = well.destination.ctl("--config", config, "doctor", status=1).stderr
    assert f"warning: [log] metrics: {where} cannot be written: {where.parent} is not there; install -d -m 755 {where.parent}" in said
    said = well.destination.ctl("--config", config, "metrics", "--write", status=5).stderr
    assert said == f"xensecurectl: {where}: No such file or directory; see [log] metrics\n"


def test_launcher_elsewhere(well: Pair, tmp_path: Path) -> None:
    """A launcher's socket that nobody serves is named, whatever answers on the port."""
    config = other_config(well.destination, tmp_path, ('/run"', '/elsewhere"'))
    done = well.destination.ctl("--config", config, "doctor", status=4)
    assert done.stderr.startswith(f"xensecurectl: {well.destination.folder / 'elsewhere/launcher.sock'}: no launcher listens there")
    assert len(done.stderr.splitlines()) == 1


def test_launcher_with_an_older_configuration(well: Pair) -> None:
    """What was changed since the launcher has started is named, with what to do, unless it is for sources alone."""
    host = well.destination
    before = host.config.read_text()
    try:
        host.config.write_text(f"{before}[host.hv1]\nbwlimit = '1G'\n")
        assert host.ctl("doctor").stderr == ""
        host.config.write_text(f"{before}[policy]\nvcpus = 2\n")
        words = f"{host.config} has changed, or xensecure was upgraded, since the launcher has begun: it goes by what it found then"
        said = f"xensecurectl: warning: {words}; systemctl restart xensecure-launcher (sessions go on)\n"
        assert host.ctl("doctor", status=1).stderr == said
        restart_launcher(host)
        assert host.ctl("doctor").stderr == ""
        host.config.write_text(before)
        assert host.ctl("doctor", status=1).stderr == said
    finally:
        host.config.write_text(before)
        restart_launcher(host)


def test_launcher_gone(new_pair: Pair) -> None:
    """A receiver whose launcher has gone does not come as far as its challenge: both lines say so."""
    launcher = new_pair.destination.processes.pop("xensecure-launcher")
    launcher.terminate()
    launcher.wait(20)
    socket_line, port_line = problems(new_pair.destination)
    assert "no launcher listens there" in socket_line
    assert "is xensecure-launcher running?" in port_line


@pytest.mark.parametrize(
    ("old", "new", "kind", "words"),
    [
        pytest.param(
            'user = "nobody"',
            'user = "xsnobody"',
            "user",
            "there is no user 'xsnobody' for the receivers",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root changes users"),
        ),
        ("xen/xl", "xen/lx", "xl", "cannot be run: no domain can arrive; set [receive] xl"),
    ],
)
def test_receiving(well: Pair, tmp_path: Path, old: str, new: str, kind: str, words: str) -> None:
    """No user for the receivers, no xl: an error each, of its own kind."""
    done = well.destination.ctl("--config", other_config(well.destination, tmp_path, (old, new)), "doctor", "--json", status=4)
    (finding,) = json.loads(done.stdout)["findings"]
    assert finding["kind"] == kind
    assert words in f"{finding['text']}; {finding['remedy']}"
    assert done.stderr == ""


def test_section_of_nobody(well: Pair, tmp_path: Path) -> None:
    """A section for a host that is not known is a note; one by another name or an address of a peer is none."""
    sections = '[host.hv9]\nport = 1\n[host.moon]\npeer = "hv1"\n[host.mars]\naddress = "127.0.0.1"\n[policy.peer.hv8]\n[policy.peer.hv1]\n'
    done = well.destination.ctl("--config", other_config(well.destination, tmp_path, extra=sections), "doctor")
    assert [line.split()[1:3] for line in done.stderr.splitlines()] == [["note:", "[host.hv9]"], ["note:", "[policy.peer.hv8]"]]


def _other_identity(host: Host) -> None:
    for name in ("identity.key", "identity.crt"):
        (host.state / name).unlink()
    host.ctl("init")


BREAKS: list[tuple[Callable[[Host], object], str]] = [
    (lambda host: host.state.chmod(0o755), "others can enter this folder (mode 0755); chmod 700 it"),
    (lambda host: (host.state / "peers").chmod(0o750), "others can enter this folder (mode 0750); chmod 700 it"),
    (lambda host: (host.state / "identity.key").chmod(0o640), "others can read this secret (mode 0640)"),
    (lambda host: next((host.state / "peers").glob("*.peer")).chmod(0o644), "others can read this secret (mode 0644)"),
    (lambda host: (host.state / "identity.crt").unlink(), "no such file; run 'xensecurectl init'"),
]


@pytest.mark.parametrize(("spoil", "words"), BREAKS)
def test_state(new_pair: Pair, spoil: Callable[[Host], object], words: str) -> None:
    """Modes and files of the state folder that are wrong, each with its remedy."""
    spoil(new_pair.source)
    assert any(words in line for line in problems(new_pair.source))


def test_receiver_of_another_identity(new_pair: Pair) -> None:
    """A receiver that still runs under the identity of before is told from this host."""
    _other_identity(new_pair.destination)
    assert any("another key than the peer we know" in line for line in problems(new_pair.destination))


def test_port_of_somebody_else(well: Pair, tmp_path: Path) -> None:
    """Another program on the port is no receiver, and is not waited for longer than connect_timeout."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = (f"port = {well.source.port}", f"port = {other.getsockname()[1]}")
        config = other_config(well.source, tmp_path, port, ("[defaults]\n", "[defaults]\nconnect_timeout = 1\n"))
        done = well.source.ctl("--config", config, "doctor", status=4)
    assert "the peer did not answer in time" in done.stderr


def test_cipher_that_is_not_there(well: Pair, tmp_path: Path) -> None:
    """A cipher that the configuration forces and that is not to be had is a problem; the backends are listed all the same."""
    config = other_config(well.source, tmp_path, extra='[engine]\ncipher = "ipsec-mb"\n')
    done = well.source.ctl("--config", config, "doctor", status=4)
    assert "cipher backends built in: " in done.stdout
    if "ipsec-mb" in compiled_backends():
        assert "cipher in use: ipsec-mb" in done.stdout or "this CPU lacks the instructions" in done.stderr
    else:
        assert "this build of xensecure does not have it; set it to 'auto'" in done.stderr


def test_groups_are_those_that_openssl_offers() -> None:
    """The groups of T2 that this OpenSSL has, in its order: X25519 and P-256 always."""
    offered = offered_groups()
    assert offered[-2:] == ("X25519", "secp256r1")
    assert set(offered) <= set(GROUPS.values())
