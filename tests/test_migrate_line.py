"""Migrations whose use of the line is told: compressed or not, between builds that can and cannot, and with a limit that changes meanwhile."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import Host, Pair, transports, wait_for
from tests.test_migrate_engine import moved
from tests.xl.hosts import Running, running_copies
from tests.xl.records import GO_MESSAGE, StreamReader
from tests.xl.stream import StreamSpec, make_stream
from xensecure.link.engine import compiled_features
from xensecure.proto.messages import Feature

ROOT = Path(__file__).resolve().parent.parent
needs_zstd = pytest.mark.skipif(Feature.ZSTD not in compiled_features(), reason="the engine was built without libzstd")


@pytest.fixture(scope="module")
def real_guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded stream of a real guest, in the form that an xl of the tests sends."""
    whole = io.BytesIO(lzma.decompress((ROOT / "tests/data/migrate-pv-small.up.xz").read_bytes()))
    StreamReader(whole).xl_header()
    path = tmp_path_factory.mktemp("stream") / "real"
    path.write_bytes(whole.read().removesuffix(GO_MESSAGE))
    return path


@pytest.fixture(scope="module")
def full_guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest of 8 MiB without a zero page, and nothing to compress."""
    return make_stream(tmp_path_factory.mktemp("stream") / "full", StreamSpec(mib=8, seed=5, zero_share=0.0))


@needs_zstd
def test_zstd_shortens_the_stream(pair: Pair, real_guest: Path) -> None:
    """With compress = "zstd" a real guest arrives byte for byte, and less is on the line than with its zeros left out alone."""
    elided = moved(pair, real_guest)
    pair.reset()
    pair.source.xen.create_domain("web1", real_guest)
    assert moved(pair, real_guest, "-o compress=zstd") < elided * 0.9


@needs_zstd
def test_auto(pair: Pair, full_guest: Path) -> None:
    """With compress = "auto" a domain arrives byte for byte, on a line too fast and too short for any compression to begin."""
    assert moved(pair, full_guest, "-o compress=auto -o elide=off") > full_guest.stat().st_size * 0.9


@needs_zstd
def test_auto_on_a_slow_line(pair: Pair, tmp_path: Path) -> None:
    """Where bwlimit makes the line a slow one, "auto" finds out, and the rest is compressed."""
    stream = make_stream(tmp_path / "stream", StreamSpec(mib=24, seed=8, zero_share=0.8))
    options = "-o elide=off -o bwlimit=16M"
    assert moved(pair, stream, f"{options} -o compress=auto") < stream.stat().st_size * 0.75


@needs_zstd
def test_summary_tells_the_line(pair: Pair, real_guest: Path) -> None:
    """The summary of a compressed migration says what was on the line."""
    pair.source.xen.set_stream("web1", real_guest)
    outcome = pair.migrate("web1", transport="-o compress=zstd").wait()
    assert outcome.status == 0
    assert " on the line), " in next(line for line in outcome.stderr.splitlines() if "moved to hv2" in line)


@pytest.fixture(scope="module")
def without_zstd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, in PYTHONPATH, gives every command an engine without libzstd."""
    folder = tmp_path_factory.mktemp("without")
    for path in (folder, *folder.parents[:3]):
        if path.stat().st_uid == os.geteuid() and path != Path(path.anchor):
            path.chmod(path.stat().st_mode | 0o055)
    words = [sys.executable, str(ROOT / "csrc/build_engine.py"), "--inplace", str(folder)]
    done = subprocess.run(words, env={**os.environ, "XENSECURE_ZSTD": "off"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "sitecustomize.py").write_text(f"import xensecure\nxensecure.__path__.insert(0, {str(folder / 'xensecure')!r})\n")
    return folder


def lacking(host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a host's commands the engine of that folder."""
    environment = {**host.environment(), "PYTHONPATH": str(folder)}
    monkeypatch.setattr(host, "environment", lambda: environment)


@needs_zstd
def test_destination_without_zstd(real_guest: Path, without_zstd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the destination's build has no libzstd, one line says so and the domain arrives without compression."""
    with Pair() as pair:
        lacking(pair.destination, without_zstd, monkeypatch)
        pair.destination.stop_daemons()
        pair.destination.start_daemons()
        pair.source.xen.create_domain("web1", real_guest)
        outcome = pair.migrate("web1", transport="-o compress=zstd").wait()
        assert outcome.status == 0, outcome.stderr
        line = "xensecure: compress = 'zstd' has no effect: hv2 cannot take compressed data: its xensecure was built without libzstd"
        assert outcome.stderr.splitlines().count(line) == 1
        assert " on the line" not in outcome.stderr
        assert pair.destination.xen.digest("web1") == hashlib.sha256(real_guest.read_bytes()).hexdigest()


def test_source_without_zstd(pair: Pair, real_guest: Path, without_zstd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where it is the source's."""
    pair.source.xen.set_stream("web1", real_guest)
    monkeypatch.setenv("PYTHONPATH", str(without_zstd))
    outcome = pair.migrate("web1", transport="-o compress=auto").wait()
    assert outcome.status == 0, outcome.stderr
    line = "xensecure: compress = 'auto' has no effect: this xensecure was built without libzstd"
    assert outcome.stderr.splitlines().count(line) == 1
    assert running_copies("web1", pair.source.xen, pair.destination.xen) == [pair.destination.xen]


def test_bwlimit(pair: Pair, full_guest: Path) -> None:
    """8 MiB with a limit of 4 MiB a second take about two seconds, by the arrival and not by a buffer."""
    start = time.monotonic()
    moved(pair, full_guest, "-o bwlimit=4M")
    assert 1.5 < time.monotonic() - start < 20


@pytest.fixture
def crawling(full_guest: Path) -> Iterator[tuple[Pair, Running, int]]:
    """A migration under a limit that would make it last two minutes, and its xensecure."""
    with Pair(source_extra='[defaults]\nbwlimit = "64K"') as pair:
        pair.source.xen.create_domain("web1", full_guest)
        running = pair.migrate("web1")
        wait_for(lambda: any(entry["event"] == "domain" for entry in pair.destination.journal()), "the stream's beginning")
        (transport,) = transports(running.pid)
        yield pair, running, transport


def test_sighup_changes_the_limit(crawling: tuple[Pair, Running, int]) -> None:
    """SIGHUP after an edit lifts the limit of a running migration; after an edit with a mistake it says so, and all stays."""
    pair, running, transport = crawling
    assert Path(f"/proc/{transport}/comm").read_text() == "xensecure\n"  # what "pkill -HUP -x xensecure" finds
    pair.source.configure('[defaults]\nbwlimit = "lots"')
    os.kill(transport, signal.SIGHUP)
    wait_for(lambda: "SIGHUP: " in running.stderr(), "a word of the mistake")
    assert re.search(rf"xensecure: SIGHUP: {re.escape(str(pair.source.config))}:\d+: 'bwlimit' must be 'off' or", running.stderr())
    assert "; bwlimit stays 64.0 KiB/s" in running.stderr()
    pair.source.configure('[defaults]\nbwlimit = "off"')
    os.kill(transport, signal.SIGHUP)
    outcome = running.wait(30)
    assert outcome.status == 0, outcome.stderr
    assert "xensecure: SIGHUP: bwlimit was 64.0 KiB/s and is off" in outcome.stderr
    assert running_copies("web1", pair.source.xen, pair.destination.xen) == [pair.destination.xen]


def test_command_line_is_stronger(pair: Pair, full_guest: Path) -> None:
    """A limit of the command line stays, whatever the file says when it is read again."""
    pair.source.xen.set_stream("web1", full_guest)
    running = pair.migrate("web1", transport="-o bwlimit=64K")
    wait_for(lambda: any(entry["event"] == "domain" for entry in pair.destination.journal()), "the stream's beginning")
    (transport,) = transports(running.pid)
    os.kill(transport, signal.SIGHUP)
    wait_for(lambda: "SIGHUP: bwlimit was 64.0 KiB/s and is 64.0 KiB/s" in running.stderr(), "its answer")
    os.kill(transport, signal.SIGTERM)
    assert running.wait(30).status != 0


def test_sighup_while_a_hook_runs(pair: Pair, full_guest: Path) -> None:
    """SIGHUP during pre-send ends nothing: the hook says yes in its time, and the limit is read again when the stream begins."""
    mark, go = (pair.source.folder / name for name in ("hook-runs", "hook-goes-on"))
    pair.source.add_hook("pre-send", "slow", f"#!/bin/sh\n: >{mark}\nwhile [ ! -e {go} ]; do sleep 0.05; done\n")
    pair.source.xen.set_stream("web1", full_guest)
    running = pair.migrate("web1")
    wait_for(mark.exists, "the hook")
    (transport,) = transports(running.pid)
    for _ in range(20):
        os.kill(transport, signal.SIGHUP)
        time.sleep(0.01)
    go.touch()
    outcome = running.wait(30)
    assert outcome.status == 0, outcome.stderr
    assert "xensecure: SIGHUP: bwlimit was off and is off" in outcome.stderr
