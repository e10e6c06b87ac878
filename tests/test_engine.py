"""The C engine against its Python twin, and the pump end to end from Python threads."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag

CSRC = Path(__file__).resolve().parent.parent / "csrc"


def load(name: str, path: Path) -> ModuleType:
    """The module in that file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


frames = load("twin_frames", Path(__file__).resolve().parent / "twin" / "frames.py")


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """xensecure._engine as installed; built into a temporary folder where it is not, or is older than its source."""
    with suppress(ImportError):
        installed = importlib.import_module("xensecure._engine")
        built = Path(str(installed.__file__)).stat().st_mtime
        if not CSRC.is_dir() or all(source.stat().st_mtime <= built for source in CSRC.iterdir()):
            return installed
    folder = tmp_path_factory.mktemp("engine")
    subprocess.run([sys.executable, str(CSRC / "build_engine.py"), "--inplace", str(folder)], check=True, stdout=subprocess.DEVNULL)
    (path,) = (folder / "xensecure").glob("_engine*.so")
    return load("_engine", path)


SOURCE_KEY, SOURCE_IV = bytes(range(32)), bytes(range(64, 76))
FRAME_TYPES = (*range(1, 10), 12)  # section 4
DESTINATION_KEY, DESTINATION_IV = bytes(range(128, 160)), bytes(range(192, 204))


class Link:
    """One end of a C link."""

    def __init__(self, engine: ModuleType, role: int, ratchet_blocks: int = 2**32, backend: str | None = None) -> None:
        self.ffi, self.lib = engine.ffi, engine.lib
        keys = self.ffi.new("struct xs_link_keys *")
        mine, its = (SOURCE_KEY, SOURCE_IV), (DESTINATION_KEY, DESTINATION_IV)
        if role == self.lib.XS_DESTINATION:
            mine, its = its, mine
        keys.send_key, keys.send_iv = mine
        keys.receive_key, keys.receive_iv = its
        self.link = self.lib.xs_link_new(backend.encode() if backend else self.ffi.NULL, keys, ratchet_blocks)
        assert self.link != self.ffi.NULL
        self.owned = True

    def release(self) -> Any:
        """Give the link away (to a pump)."""
        self.owned = False
        return self.link

    def __del__(self) -> None:
        if self.owned:
            self.lib.xs_link_free(self.link)

    def seal(self, kind: int, channel: int, offset: int, payload: bytes) -> bytes:
        """The frame's bytes."""
        header = self.ffi.new("struct xs_header *", {"type": kind, "channel": channel, "length": len(payload), "offset": offset})
        out = self.ffi.new("uint8_t[]", 32 + len(payload))
        assert self.lib.xs_link_seal(self.link, header, payload, out) == self.lib.XS_OK
        return bytes(self.ffi.buffer(out))

    def open(self, frame: bytes) -> tuple[int, int, int, int, bytes]:
        """(status, type, channel, offset, payload)."""
        header = self.ffi.new("struct xs_header *")
        out = self.ffi.new("uint8_t[]", max(1, len(frame) - 32))
        status = self.lib.xs_link_open(self.link, frame, header, out)
        return status, header.type, header.channel, header.offset, bytes(self.ffi.buffer(out))[: len(frame) - 32]


SIZES = [0, 1, 15, 16, 17, 4095, 4096, 4097, 65535, 262144, 524288, 2**20 - 1, 2**20]


BACKENDS = ["libcrypto", "ipsec-mb"]


def require(engine: ModuleType, backend: str) -> None:
    """Skip where a backend cannot run."""
    names = []
    while (name := engine.lib.xs_backend_name(len(names))) != engine.ffi.NULL:
        names.append(engine.ffi.string(name).decode())
    if backend not in names:
        pytest.skip(f"{backend} is not compiled in")
    if engine.lib.xs_backend_find(backend.encode()) == engine.ffi.NULL:
        pytest.skip(f"this CPU cannot run {backend}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ratchet_blocks", [2**32, 70000, 300, 4])
def test_same_frames(engine: ModuleType, ratchet_blocks: int, backend: str) -> None:
    """With either backend, the engine and the twin seal the same bytes, in both directions, across ratchets, and open each other's."""
    require(engine, backend)
    rng = random.Random(ratchet_blocks)
    ends = {role: Link(engine, role, ratchet_blocks, backend) for role in (engine.lib.XS_SOURCE, engine.lib.XS_DESTINATION)}
    for role, key, iv in (
        (engine.lib.XS_SOURCE, SOURCE_KEY, SOURCE_IV),
        (engine.lib.XS_DESTINATION, DESTINATION_KEY, DESTINATION_IV),
    ):
        sender, receiver = frames.Direction(key, iv, ratchet_blocks), frames.Direction(key, iv, ratchet_blocks)
        for size in SIZES + [rng.randrange(2**14) for _ in range(100)]:
            kind, channel, offset = rng.choice(FRAME_TYPES), rng.randrange(3), rng.randrange(2**64)
            payload = rng.randbytes(size)
            frame = ends[role].seal(kind, channel, offset, payload)
            assert frame == sender.seal(kind, channel, offset, payload)
            assert receiver.open(frame) == (kind, channel, offset, payload)
            assert ends[1 - role].open(frame) == (engine.lib.XS_OK, kind, channel, offset, payload)
        assert (sender.ratchets > 0) == (ratchet_blocks < 2**32)


@pytest.mark.parametrize("size", [16 * 61, 16 * 61 + 1])
def test_ratchet_boundary(engine: ModuleType, size: int) -> None:
    """A frame that just fills the limit keeps the key; one byte more is sealed under the next."""
    link, twin = Link(engine, engine.lib.XS_SOURCE, 128), frames.Direction(SOURCE_KEY, SOURCE_IV, 128)
    for length in (16 * 61, size):
        assert link.seal(4, 0, 0, bytes(length)) == twin.seal(4, 0, 0, bytes(length))
    assert twin.ratchets == (size > 16 * 61)


@pytest.mark.parametrize("ratchet_blocks", [2**32, 1000])
def test_backends_interoperate(engine: ModuleType, ratchet_blocks: int) -> None:
    """A frame of one backend is, byte for byte, that of the other, and opens there, whatever its size and across ratchets."""
    rng = random.Random(5)
    for backend in BACKENDS:
        require(engine, backend)
    source, destination = engine.lib.XS_SOURCE, engine.lib.XS_DESTINATION
    one, other = (Link(engine, source, ratchet_blocks, backend) for backend in BACKENDS)
    readers = [Link(engine, destination, ratchet_blocks, backend) for backend in BACKENDS]
    for size in [*range(70), *SIZES, *(rng.randrange(2**15) for _ in range(50))]:
        payload = rng.randbytes(size)
        frame = one.seal(4, 0, size, payload)
        assert frame == other.seal(4, 0, size, payload)
        for reader in readers:
            assert reader.open(frame) == (engine.lib.XS_OK, 4, 0, size, payload)


@pytest.mark.parametrize("backend", BACKENDS)
def test_changed_frames(engine: ModuleType, backend: str) -> None:
    """Engine and twin refuse the same changes, and the engine leaves zeros."""
    require(engine, backend)
    rng = random.Random(3)
    for _ in range(300):
        frame = bytearray(Link(engine, engine.lib.XS_SOURCE, backend=backend).seal(4, 1, 7, rng.randbytes(40)))
        frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
        length = int.from_bytes(frame[4:8], "big")
        with pytest.raises((InvalidTag, ValueError)):
            frames.Direction(SOURCE_KEY, SOURCE_IV).open(bytes(frame))
        if length > 40:
            continue  # the frame's bytes are not all there: the pump waits for them
        status, *header, payload = Link(engine, engine.lib.XS_DESTINATION, backend=backend).open(bytes(frame))
        assert status in {engine.lib.XS_ETAG, engine.lib.XS_EHEADER}
        assert header == [0, 0, 0]
        assert payload == bytes(40)


@dataclass
class Result:
    """How a pump's run ended."""

    event: int
    events: list[int]
    stats: Any


def run_pump(engine: ModuleType, pump: Any, on_event: Callable[[int], None]) -> Result:
    """Run a pump to its end."""
    lib, events = engine.lib, []
    while True:
        event = lib.xs_pump_run(pump, 1000)
        if event != lib.XS_EV_TIMEOUT:
            events.append(event)
            on_event(event)
        if event < 0 or event in {lib.XS_EV_LOST, lib.XS_EV_ABORTED, lib.XS_EV_ENDED}:
            stats = engine.ffi.new("struct xs_stats *")
            lib.xs_pump_stats(pump, stats)
            return Result(event, events, stats)


class Rig:
    """Two pumps in two threads, connected by a socket pair, with pipes in xl's place."""

    def __init__(self, engine: ModuleType, stack: ExitStack, window: int) -> None:
        lib = engine.lib
        self.engine = engine
        self.results: dict[int, Result] = {}
        self.sockets = socket.socketpair()
        self.pumps: list[Any] = []
        self.up, self.xl_in = os.pipe(), os.pipe()
        self.out, self.xl_out = os.pipe(), os.pipe()
        self.err, self.xl_err = os.pipe(), os.pipe()
        self.open_fds = {fd for pair in (self.up, self.xl_in, self.out, self.xl_out, self.err, self.xl_err) for fd in pair}
        os.set_blocking(self.xl_in[1], False)
        for role, fds in (
            (lib.XS_SOURCE, (self.up[0], self.out[1], self.err[1])),
            (lib.XS_DESTINATION, (self.xl_in[1], self.xl_out[0], self.xl_err[0])),
        ):
            options = engine.ffi.new(
                "struct xs_pump_options *",
                {
                    "role": role,
                    "channel_fd": fds,
                    "wake_fd": -1,
                    "send_window": [window] * 3,
                    "receive_window": [window] * 3,
                    "keepalive_ms": 200,
                    "silence_ms": 20000,
                },
            )
            pump = lib.xs_pump_new(options)
            stack.callback(lib.xs_pump_free, pump)
            self.sockets[role].settimeout(0)
            assert lib.xs_pump_attach(pump, Link(engine, role, 10**6).release(), self.sockets[role].fileno()) == lib.XS_OK
            self.pumps.append(pump)
        stack.callback(self.close_all)

    def close(self, fd: int) -> None:
        """Close a descriptor of the rig's, once."""
        self.open_fds.remove(fd)
        os.close(fd)

    def close_all(self) -> None:
        """Close what is left."""
        for fd in list(self.open_fds):
            self.close(fd)
        for end in self.sockets:
            end.close()

    def on_event(self, role: int, event: int) -> None:
        """What the owner of the pump has to do."""
        if event == self.engine.lib.XS_EV_INPUT_ENDED:
            self.close(self.xl_in[1])
        elif event == self.engine.lib.XS_EV_OUTPUTS_ENDED:
            assert self.engine.lib.xs_pump_exit(self.pumps[role], 0, 5) == self.engine.lib.XS_OK
        elif event == self.engine.lib.XS_EV_ENDED and role == self.engine.lib.XS_SOURCE:
            self.sockets[role].close()

    def run(self, role: int) -> None:
        """A thread's body."""
        self.results[role] = run_pump(self.engine, self.pumps[role], lambda event: self.on_event(role, event))


def write_pieces(fd: int, data: bytes, seed: int, done: Callable[[], None]) -> None:
    """Write all, in pieces of all sizes."""
    rng, view = random.Random(seed), memoryview(data)
    while view:
        size = rng.choice([1, 100, 4096, 65537, 2**20])
        view = view[os.write(fd, view[:size]) :]
    done()


def read_all(fd: int) -> Iterator[bytes]:
    """Read to the end."""
    while block := os.read(fd, 2**20):
        yield block


@pytest.mark.parametrize(("window", "seed"), [(2**16, 1), (2**20, 2), (64 * 2**20, 3)])
def test_whole_session(engine: ModuleType, window: int, seed: int) -> None:
    """A random domain of 24 MiB arrives as it was, outputs come back, and both ends say that the session ended well."""
    rng = random.Random(seed)
    domain, out, err = rng.randbytes(24 * 2**20 + seed), rng.randbytes(300_001), rng.randbytes(70_000)
    with ExitStack() as stack:
        rig = Rig(engine, stack, window)
        got: dict[str, str] = {}

        def read_into(name: str, fd: int) -> None:
            digest = hashlib.sha256()
            for block in read_all(fd):
                digest.update(block)
            got[name] = digest.hexdigest()

        def xl_receive() -> None:
            """The destination's xl: reads its input to the end while it writes, then closes its outputs."""
            writers = [
                threading.Thread(target=write_pieces, args=(rig.xl_out[1], out, seed, lambda: None)),
                threading.Thread(target=write_pieces, args=(rig.xl_err[1], err, seed, lambda: None)),
            ]
            for thread in writers:
                thread.start()
            read_into("domain", rig.xl_in[0])
            for thread in writers:
                thread.join()
            rig.close(rig.xl_out[1])
            rig.close(rig.xl_err[1])

        pumps = [threading.Thread(target=rig.run, args=(role,)) for role in (0, 1)]
        others = [
            threading.Thread(target=xl_receive),
            threading.Thread(target=write_pieces, args=(rig.up[1], domain, seed, lambda: rig.close(rig.up[1]))),
            threading.Thread(target=read_into, args=("out", rig.out[0])),
            threading.Thread(target=read_into, args=("err", rig.err[0])),
        ]
        for thread in pumps + others:
            thread.start()
        for thread in pumps:
            thread.join(60)
            assert not thread.is_alive()
        rig.close(rig.out[1])
        rig.close(rig.err[1])
        for thread in others:
            thread.join(60)
            assert not thread.is_alive()
        source, destination = rig.results[0], rig.results[1]
        lib = engine.lib
        assert got == {name: hashlib.sha256(data).hexdigest() for name, data in (("domain", domain), ("out", out), ("err", err))}
        assert source.event == destination.event == lib.XS_EV_ENDED
        assert (source.stats.exit_kind, source.stats.exit_value) == (0, 5)
        assert destination.events.count(lib.XS_EV_INPUT_ENDED) == 1
        assert list(source.stats.channel_bytes) == list(destination.stats.channel_bytes) == [len(domain), len(out), len(err)]
        assert source.stats.link_received == destination.stats.link_sent


@pytest.mark.parametrize("seed", range(8))
def test_damaged_link(engine: ModuleType, seed: int) -> None:
    """A man in the middle who flips one bit anywhere: the destination delivers a prefix of the domain, reports a fault, and never an end."""
    rng = random.Random(seed)
    domain = rng.randbytes(400_000)
    with ExitStack() as stack:
        rig = Rig(engine, stack, 2**20)
        lib = engine.lib
        middle = socket.socketpair()
        stack.callback(middle[0].close)
        stack.callback(middle[1].close)
        # The destination gets its bytes from the middle, the source's go there first.
        middle[1].settimeout(0)
        victim = lib.xs_pump_new(
            engine.ffi.new(
                "struct xs_pump_options *",
                {"role": 1, "channel_fd": [rig.xl_in[1], -1, -1], "wake_fd": -1, "receive_window": [2**20] * 3, "silence_ms": 5000},
            )
        )
        stack.callback(lib.xs_pump_free, victim)
        assert lib.xs_pump_attach(victim, Link(engine, 1, 10**6).release(), middle[1].fileno()) == lib.XS_OK
        os.write(rig.up[1], domain[:60000])
        for _ in range(5):
            assert lib.xs_pump_run(rig.pumps[0], 1) == lib.XS_EV_TIMEOUT
        sealed = bytearray(rig.sockets[1].recv(2**20))
        sealed[rng.randrange(len(sealed))] ^= 1 << rng.randrange(8)
        middle[0].sendall(sealed)
        middle[0].shutdown(socket.SHUT_WR)
        result = run_pump(engine, victim, lambda _event: None)
        rig.close(rig.xl_in[1])
        delivered = b"".join(read_all(rig.xl_in[0]))
        assert result.event == lib.XS_EV_LOST
        assert lib.XS_EV_INPUT_ENDED not in result.events
        assert domain.startswith(delivered)
        assert result.stats.lost in {lib.XS_LOST_TAG, lib.XS_LOST_HEADER, lib.XS_LOST_CLOSED}
        assert len(delivered) < 60000
