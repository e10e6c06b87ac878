"""`xensecurectl` and how all four commands meet a bad configuration."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import command
from tests.pairing_forks import ForkedHost, ForkedPair
from xensecure.link.peers import Peers
from xensecure.proto.keyschedule import invitation_key
from xensecure.proto.token import Token

RECEIVE = ("hv2", "xl", "migrate-receive")


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkedPair]:
    """Two hosts that have met."""
    with ForkedPair() as made:
        yield made


@pytest.fixture
def host(tmp_path: Path) -> ForkedHost:
    """A host with an identity and no daemons."""
    return ForkedHost(tmp_path / "hv1", "hv1")


def _run(*words: str, config: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"XENSECURE_CONFIG": str(config)} if config else {}
    return subprocess.run([command(words[0]), *words[1:]], env=environment, input=stdin, capture_output=True, text=True, timeout=20, check=False)


def _lines(host: ForkedHost, *arguments: str, status: int = 0) -> list[str]:
    """What xensecurectl says, stdout and stderr together."""
    assert host.ctl(*arguments) == status, host.log("xensecurectl")
    return host.log("xensecurectl").splitlines()


# ---- a configuration that cannot be used


COMMANDS = [
    (("xensecurectl", "peers"), 3),
    (("xensecured", "--listen"), 3),
    (("xensecure-launcher",), 3),
    (("xensecure", *RECEIVE), 255),
]


@pytest.mark.parametrize(("words", "status"), COMMANDS)
@pytest.mark.parametrize("how", ["unknown key", "open", "missing"])
def test_no_start(tmp_path: Path, words: tuple[str, ...], status: int, how: str) -> None:
    """Every command ends at once with its status, one line on stderr that names file and line, and nothing on stdout."""
    path = tmp_path / "x.toml"
    if how != "missing":
        path.write_text("[paths]\n\nstat = '/x'\n")
        path.chmod(0o666 if how == "open" else 0o644)
    said = {
        "unknown key": f"{path}:3: unknown key 'stat' in [paths]; did you mean 'state'?",
        "open": f"{path}:1: others can write to it (mode 0666); chmod go-w it, for it names what root runs",
        "missing": f"{path}: no such file; name the configuration with --config or XENSECURE_CONFIG",
    }
    for done in (_run(*words, config=path), _run(words[0], "--config", str(path), *words[1:])):
        assert done.returncode == status
        assert done.stdout == ""
        assert done.stderr == f"{words[0]}: {said[how]}\n"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("xensecured", "--listen"), 4),
        (("xensecure-launcher",), 4),
        (("xensecurectl", "invite", "--address", "127.0.0.1"), 4),
        (("xensecurectl", "show"), 4),
    ],
)
def test_open_key(host: ForkedHost, words: tuple[str, ...], status: int) -> None:
    """A key that others can read stops every command that needs it, in one line that names it."""
    (host.state / "identity.key").chmod(0o644)
    done = _run(*words, config=host.path)
    assert (done.returncode, done.stdout) == (status, "")
    assert len(done.stderr.splitlines()) == 1
    assert f"{host.state}/identity.key:1: others can read this secret (mode 0644)" in done.stderr


# ---- commands


def test_before_init(tmp_path: Path) -> None:
    """Before `init` every command says to run it."""
    host = ForkedHost(tmp_path / "hv1", "hv1")
    for path in sorted(host.state.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    host.state.rmdir()
    for words in (("invite", "--address", "127.0.0.1"), ("show",), ("join", ForkedHost(tmp_path / "hv2", "hv2").token())):
        (line,) = _lines(host, *words, status=4)
        assert "run 'xensecurectl init'" in line
    assert _lines(host, "peers") == ["no peers yet; 'xensecurectl invite' on one host, 'xensecurectl join TOKEN' on the other"]
    first = _lines(host, "init")
    again = _lines(host, "init")
    assert "new identity" in first[0]
    assert "there already" in again[0]
    assert first[1] == again[1]


@pytest.mark.parametrize(
    ("ttl", "seconds"), [("1", 1), ("600", 600), ("600s", 600), ("30m", 1800), ("2h", 7200), ("1d", 86400), ("7d", 604800), ("604800", 604800)]
)
def test_ttl(host: ForkedHost, ttl: str, seconds: int) -> None:
    """`--ttl` takes seconds, or a number with s, m, h or d, and the token says the same as what is stored."""
    token = Token.decode(_lines(host, "invite", "--address", "127.0.0.1", "--ttl", ttl)[0])
    (stored,) = host.peers.invitations()
    assert stored.expiry == token.expiry
    assert 0 <= stored.expiry - int((host.state / "invitations").stat().st_mtime) - seconds + 1 <= 2


@pytest.mark.parametrize("ttl", ["0", "-1", "8d", "604801", "1w", "1.5h", "", "m", "1 h", "٣", "9999999999"])
def test_wrong_ttl(host: ForkedHost, ttl: str) -> None:
    """Anything else is a usage error in one line, and no invitation."""
    (line,) = _lines(host, "invite", "--address", "127.0.0.1", f"--ttl={ttl}", status=2)
    assert "--ttl" in line
    assert "at most 7 days" in line
    assert not host.peers.invitations()


def test_addresses_in_token(host: ForkedHost) -> None:
    """`--address` may be repeated and given as IPv4, IPv6 or name; without it the addresses of [listen] are taken."""
    words = [word for address in ("192.0.2.1", "2001:DB8::1", "hv1.example.org") for word in ("--address", address)]
    assert Token.decode(_lines(host, "invite", *words)[0]).contact.addresses == ("192.0.2.1", "2001:db8::1", "hv1.example.org")
    assert Token.decode(_lines(host, "invite")[0]).contact.addresses == ("127.0.0.1",)
    for wrong in ("a b", "", "-x", "x" * 254, "a;b"):
        assert "no address and no host name" in _lines(host, "invite", f"--address={wrong}", status=2)[-1]
    many = [f"--address=192.0.2.{number}" for number in range(9)]
    assert "at most 8" in _lines(host, "invite", *many, status=2)[-1]


def test_token_from_standard_input(forks: ForkedPair) -> None:
    """`join -` reads the token from standard input, so that no process list shows it; one that is empty is no token."""
    forks.set_back("fresh")
    done = _run("xensecurectl", "join", "-", config=forks.first.path, stdin=f"  {forks.second.token().upper()} \nmore\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hv1 and hv2 (127.0.0.1, port ")
    done = _run("xensecurectl", "join", "-", config=forks.first.path)
    assert (done.returncode, done.stdout) == (13, "")


def test_every_slip_is_found(host: ForkedHost) -> None:
    """A token with any one character changed, left out or doubled is refused; capitals and spaces around it are not."""
    token = host.token()
    assert Token.decode(f" {token.upper()}\n") == Token.decode(token)
    alphabet = "abcdefghijklmnopqrstuvwxyz234567018=-: \u017f\u212a"
    for at, right in enumerate(token):
        changed = [token[:at] + wrong + token[at + 1 :] for wrong in alphabet if wrong != right]
        for text in (*changed, token[:at] + token[at + 1 :], token[:at] + right + token[at:], token[:at]):
            if text.strip().lower() != token:
                with pytest.raises(Exception, match="token") as caught:
                    Token.decode(text)
                assert caught.value.exit_code == 13  # type: ignore[attr-defined]


def test_peers_and_show(forks: ForkedPair) -> None:
    """`peers` and `show` tell names, addresses, pins and generations, in words and as JSON."""
    forks.set_back("met")
    peer = forks.peer_of(forks.first)
    (line,) = _lines(forks.first, "peers")
    assert line.split()[:4] == ["hv2", "127.0.0.1", "port", str(forks.second.port)]
    (listed,) = json.loads(_lines(forks.first, "peers", "--json")[0])
    assert json.loads(_lines(forks.first, "show", "HV2", "--json")[0]) == listed
    assert listed["pin"] == peer.pin.hex()
    assert listed["keys"] == [{"generation": 1, "id": peer.keys[0].id.hex()}]
    own = json.loads(_lines(forks.second, "show", "--json")[0])
    assert (own["name"], own["pin"], own["port"]) == ("hv2", peer.pin.hex(), forks.second.port)
    assert f"pin: {peer.pin.hex()}" in _lines(forks.first, "show", "127.0.0.1")
    assert "'xensecurectl peers' lists them" in _lines(forks.first, "show", "hv9", status=4)[0]
    assert "no link key for 'hv9'" in _lines(forks.first, "rotate", "hv9", status=4)[0]
    assert "no peer 'hv9'" in _lines(forks.first, "forget", "hv9", status=4)[0]
    assert "run 'xensecurectl forget hv1' there too" in _lines(forks.first, "forget", "127.0.0.1")[0]
    assert json.loads(_lines(forks.first, "peers", "--json")[0]) == []


def test_no_secret_is_shown(forks: ForkedPair) -> None:
    """No output and no log has a link key, an invitation's key or a token's secret; the state folder has no secret of a token."""
    forks.set_back("fresh")
    token = Token.decode(_lines(forks.second, "invite")[0])
    secrets = [token.secret, invitation_key(token.secret)]
    said = ["\n".join(_lines(forks.first, "join", token.encode()))]
    for words in (("rotate", "hv2"), ("peers",), ("peers", "--json"), ("show",), ("show", "hv2"), ("show", "hv2", "--json")):
        secrets += [key.key for peer in forks.first.peers.all() for key in peer.keys]
        said.append("\n".join(_lines(forks.first, *words)))
    said += [host.log(name) for host in forks.hosts for name in ("launcher", "receiver")]
    assert len(secrets) == 8
    shown = "\n".join(said).lower()
    for secret in secrets:
        for text in (secret.hex(), base64.b32encode(secret).decode().rstrip("="), base64.b64encode(secret).decode().rstrip("="), repr(secret)[2:-1]):
            assert text.lower() not in shown
    for host in forks.hosts:
        content = b"".join(path.read_bytes() for path in host.state.rglob("*") if path.is_file())
        assert token.secret not in content
        assert token.secret.hex().encode() not in content
        assert base64.b32encode(token.secret).lower()[:20] not in content.lower()


def test_secrets_are_hidden_from_debuggers(forks: ForkedPair) -> None:
    """What holds a secret does not show it when it is printed in a log by mistake."""
    forks.set_back("met")
    token = Token.decode(forks.second.token())
    peers = Peers(forks.second.config)
    shown = repr([token, *peers.all(), *peers.invitations()])
    for secret in (token.secret, *(key.key for peer in peers.all() for key in peer.keys), *(invitation.key for invitation in peers.invitations())):
        assert repr(secret)[2:-1] not in shown
