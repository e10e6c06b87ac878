"""Migrations with the engine's choices: zero runs elided or not, one cipher backend or the other; and an engine built without libipsec-mb."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.pair import Pair
from tests.xl.hosts import running_copies
from tests.xl.stream import StreamSpec, make_stream
from xensecure.link.engine import Link, compiled_backends, find_backend
from xensecure.proto.errors import ConfigurationError
from xensecure.proto.handshake import LinkKeys
from xensecure.proto.keyschedule import DirectionKeys

ROOT = Path(__file__).resolve().parent.parent


class Counter:
    """A line between the hosts that counts what goes up: a port of loopback that leads to another."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.up = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> int:
        """Wait for the end of the one connection; returns the bytes that went up."""
        self._thread.join(60)
        self._listener.close()
        return self.up

    def _run(self) -> None:
        near, _ = self._listener.accept()
        with near, socket.create_connection(("127.0.0.1", self._target)) as far:
            back = threading.Thread(target=self._carry, args=(far, near), daemon=True)
            back.start()
            self.up = self._carry(near, far)
            back.join(60)

    @staticmethod
    def _carry(start: socket.socket, end: socket.socket) -> int:
        count = 0
        with contextlib.suppress(OSError):
            while data := start.recv(1 << 18):
                end.sendall(data)
                count += len(data)
            end.shutdown(socket.SHUT_WR)
        return count


@pytest.fixture(scope="module")
def empty_guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest of 24 MiB, nine tenths of it zero pages."""
    return make_stream(tmp_path_factory.mktemp("stream") / "web1.stream", StreamSpec(mib=24, seed=8, zero_share=0.9))


def moved(pair: Pair, stream: Path, options: str = "") -> int:
    """Migrate web1; it must arrive byte for byte. Returns the bytes that went up on the line."""
    pair.source.xen.set_stream("web1", stream)
    counter = Counter(pair.destination.port)
    outcome = pair.migrate("web1", transport=f"-p {counter.port} {options}").wait(60)
    assert outcome.status == 0, outcome.stderr
    assert running_copies("web1", pair.source.xen, pair.destination.xen) == [pair.destination.xen]
    assert pair.destination.xen.digest("web1") == hashlib.sha256(stream.read_bytes()).hexdigest()
    return counter.close()


def test_zero_pages_stay_off_the_line(pair: Pair, empty_guest: Path) -> None:
    """A guest that is mostly empty arrives byte for byte, and a fifth of its stream or less is on the line."""
    assert moved(pair, empty_guest) < empty_guest.stat().st_size / 5


def test_elide_off(pair: Pair, empty_guest: Path) -> None:
    """With elide = "off" the same stream is on the line whole."""
    assert moved(pair, empty_guest, "-o elide=off") > empty_guest.stat().st_size


def test_full_guest_costs_nothing(pair: Pair, tmp_path: Path) -> None:
    """A guest without zero pages is on the line as it would be without eliding, but for a thousandth."""
    stream = make_stream(tmp_path / "stream", StreamSpec(mib=8, seed=2, zero_share=0.0))
    assert moved(pair, stream) < stream.stat().st_size * 1.001 + 20_000


BACKENDS = ("libcrypto", "ipsec-mb")


def require(backend: str) -> None:
    """Skip where a backend is not to be had."""
    try:
        find_backend(backend)
    except ConfigurationError as error:
        pytest.skip(str(error))


def cipher(backend: str) -> str:
    """TOML that forces a backend."""
    return f'[engine]\ncipher = "{backend}"\n'


@pytest.mark.parametrize("there", BACKENDS)
@pytest.mark.parametrize("here", BACKENDS)
def test_forced_cipher(here: str, there: str, empty_guest: Path) -> None:
    """Either backend at either end: the domain arrives whole, and the summary names the source's."""
    for backend in (here, there):
        require(backend)
    with Pair(source_extra=cipher(here), destination_extra=cipher(there)) as pair:
        pair.source.xen.create_domain("web1", empty_guest)
        outcome = pair.migrate("web1", transport="-v").wait(60)
        assert outcome.status == 0, outcome.stderr
        assert pair.destination.xen.digest("web1") == hashlib.sha256(empty_guest.read_bytes()).hexdigest()
        summary = next(line for line in outcome.stderr.splitlines() if "moved to hv2" in line)
        assert summary.endswith(f", {here}")
        assert f", {here})" in next(line for line in outcome.stderr.splitlines() if "connected to hv2" in line)


def test_cipher_that_is_not_compiled_in() -> None:
    """A backend that this build does not have is refused in one line, before anything else happens."""
    keys = DirectionKeys(key=bytes(32), iv=bytes(12))
    for use in (lambda: find_backend("rot13"), lambda: Link(LinkKeys(send=keys, receive=keys), cipher="rot13")):
        with pytest.raises(ConfigurationError, match=r"^\[engine\] cipher = 'rot13' cannot be used here: this build of xensecure does not have it"):
            use()


def test_auto_is_the_best() -> None:
    """Without a word of the configuration it is one of those compiled in, and the same for every link."""
    keys = DirectionKeys(key=bytes(32), iv=bytes(12))
    assert find_backend() in compiled_backends()
    assert Link(LinkKeys(send=keys, receive=keys)).backend == find_backend()


WITHOUT = """
import sys
import xensecure
xensecure.__path__.insert(0, sys.argv[1])
from xensecure.link import engine
from xensecure.proto.handshake import LinkKeys
from xensecure.proto.keyschedule import DirectionKeys
from xensecure.proto.messages import FrameType
assert engine.compiled_backends() == ["libcrypto"], engine.compiled_backends()
keys = LinkKeys(send=DirectionKeys(key=bytes(32), iv=bytes(12)), receive=DirectionKeys(key=bytes(32), iv=bytes(12)))
one, other = engine.Link(keys), engine.Link(keys)
assert one.backend == "libcrypto"
assert other.open(one.seal(FrameType.DATA, b"hello")).payload == b"hello"
try:
    engine.find_backend("ipsec-mb")
except engine.ConfigurationError as error:
    print(error)
"""


def build(folder: Path, switch: str) -> subprocess.CompletedProcess[str]:
    """Build the engine into a folder, with that value of the switch."""
    words = [sys.executable, str(ROOT / "csrc/build_engine.py"), "--inplace", str(folder)]
    return subprocess.run(words, env={**os.environ, "XENSECURE_IPSEC_MB": switch}, capture_output=True, text=True, check=False)


def test_engine_without_ipsec_mb(tmp_path: Path) -> None:
    """XENSECURE_IPSEC_MB=off gives an engine that needs no libipsec-mb, works, and refuses a configuration that forces it."""
    done = build(tmp_path, "off")
    assert done.returncode == 0, done.stderr
    words = [sys.executable, "-c", WITHOUT, str(tmp_path / "xensecure")]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout == "[engine] cipher = 'ipsec-mb' cannot be used here: this build of xensecure does not have it; set it to 'auto'\n"


def test_switch_that_means_nothing(tmp_path: Path) -> None:
    """Another value is refused in one line."""
    done = build(tmp_path, "yes")
    assert done.returncode != 0
    assert done.stderr == "XENSECURE_IPSEC_MB=yes: on, off or auto is needed\n"
