"""The benchmark's own arithmetic, programs and page; nothing here depends on how fast the machine is."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import bars, docs, instructions, model, plot, report
from bench.build import build_programs
from bench.measure import Carried, carry, time_to_banner
from bench.networks import GIGABIT, LOOPBACK, loopback
from bench.peers import Bare
from bench.results import AUTO, COMPRESSED, OURS, PLAIN, SSH, UNCOMPRESSED, Results, Series
from bench.transports import Place
from bench.workloads import SMALL, find_streams, quarter, random_pages, recorded, unpack

GIB = 2**30


def run_of(seconds: float = 1.0, *, cpu: float = 1.0, memory: int = 80 << 20, mib: float = 1024) -> Carried:
    """A run, its CPU seconds shared equally."""
    return Carried(mib, seconds, cpu / 2, cpu / 2, memory, memory, 0.1)


def results_of(ours: float = 1.0, plain: float = 1.5) -> Results:
    """A whole round; ``ours``, ``plain``: seconds a run."""
    fast_ssh = "ssh, fast"
    first = {OURS: ours, SSH: 4.0, fast_ssh: 3.0, PLAIN: plain}
    series = [
        Series(LOOPBACK, "random pages", real=False, runs={name: [run_of(s, cpu=s), run_of(s, cpu=s)] for name, s in first.items()}),
        Series(LOOPBACK, "guest", real=True, runs={OURS: [run_of(ours)], PLAIN: [run_of(plain)]}),
        Series(GIGABIT, "guest", real=True, runs={UNCOMPRESSED: [run_of(6)], COMPRESSED: [run_of(3)], PLAIN: [run_of(10)]}),
    ]
    settings = [Series(LOOPBACK, "guest", real=True, runs={UNCOMPRESSED: [run_of(), run_of()], AUTO: [run_of(1.01), run_of(1.02)]})]
    growth = [run_of(cpu=1, mib=1024), run_of(16, cpu=16, mib=16384)]
    starts = {OURS: [0.3, 0.3], SSH: [0.3, 0.4]}
    return Results(
        machine="a machine.",
        date="2026-01-01",
        starts=starts,
        series=series,
        settings=settings,
        growth=growth,
        layers={"read pipe": 0.1, "seal libcrypto": 0.2},
        encrypted=[OURS, SSH, fast_ssh],
        fastest_ssh=fast_ssh,
        notes=["a <remark>"],
    )


def verdicts(results: Results) -> dict[str, bool | None]:
    """Each bar's verdict."""
    return {bar.what: bar.met for bar in bars.judge(results)}


def test_ratios_are_paired() -> None:
    """A ratio compares runs that stood beside each other, so that a machine that slows down in between changes nothing."""
    series = Series(LOOPBACK, "x", real=False, runs={"a": [run_of(1), run_of(10), run_of(100)], "b": [run_of(2), run_of(20), run_of(200)]})
    assert series.ratio("a", "b", lambda run: run.rate) == pytest.approx(2.0)


def test_all_bars_are_met_by_what_meets_them() -> None:
    """A round in which everything is as demanded meets every bar."""
    found = verdicts(results_of())
    assert set(found.values()) == {True}
    assert len(found) == 11


def test_bars_are_missed_one_by_one() -> None:
    """What is too slow, too large or starts too late misses its bar."""
    assert list(verdicts(results_of(ours=2.0)).values()).count(False) >= 4
    results = results_of()
    results.growth[1] = run_of(16, memory=170 << 20, mib=16384)
    results.starts[OURS] = [0.5, 0.5]
    missed = [what for what, met in verdicts(results).items() if met is False]
    assert [what.split(",")[0] for what in missed] == ["exec to xl's banner", "memory held", "memory held for 16 GiB of stream"]


def test_link_bar_asks_for_no_more_than_the_zeros_give() -> None:
    """Without compression a stream with few zeros has to be as fast as the rest of it lets it, and a slower one misses the bar all the same."""
    for least, time, met in ((0.5, 7.0, True), (0.5, 7.2, False), (0.71, 7.2, True), (0.71, 7.4, False)):
        results = results_of()
        results.series[2].least = least
        results.series[2].runs[UNCOMPRESSED] = [run_of(time)]
        found = [bar for bar in bars.judge(results) if "without compression" in bar.what]
        assert [bar.met for bar in found] == [met]
        assert ("no zeros" in found[0].what) == (least > 0.7)


def test_auto_must_not_be_slower() -> None:
    """A round in which compress = auto takes 5 % longer misses its bar, and no other."""
    results = results_of()
    results.settings[0].runs[AUTO] = [run_of(1.05), run_of(1.05)]
    assert [what for what, met in verdicts(results).items() if not met] == ["guest, loopback: rate with compress auto, times that with off"]


def test_zeros_are_counted(tmp_path: Path) -> None:
    """What is left of a stream without its runs of 64 zeros and more, each of which still costs 8 bytes."""
    path = tmp_path / "stream"
    path.write_bytes(b"x" * 100 + bytes(63) + b"x" + bytes(64) + b"x" * 772)
    assert recorded(path, 0).least == pytest.approx((1000 - 64 + 8) / 1000)
    assert quarter(random_pages(64)) == random_pages(16)
    assert random_pages(64).least == 1.0


def test_what_was_not_measured_is_not_judged() -> None:
    """A peer that is missing, a stream that is only a sample, a round without anything: not judged, and not failed."""
    results = results_of()
    results.series[0].runs.pop(PLAIN)
    results.series[1].real = False
    found = verdicts(results)
    assert found["random pages: rate, times plain TCP's"] is None
    assert found["guest, loopback: rate, times plain TCP's"] is None
    assert set(verdicts(Results("", "")).values()) == {None}


def test_results_survive_their_file(tmp_path: Path) -> None:
    """What is loaded is what was saved."""
    results = results_of()
    results.save(tmp_path / "build" / "bench.json")
    assert Results.load(tmp_path / "build" / "bench.json") == results


def test_report_and_picture_name_everything() -> None:
    """Every transport stands in the tables and in the picture, and every bar and remark in the report."""
    results = results_of()
    text, picture = report.markdown(results, bars.judge(results)), plot.svg(results)
    for name in results.series[0].runs:
        assert f"| {name} " in text
        assert f">{name}</text>" in picture
    assert text.count("| yes |") >= 9
    assert "- a <remark>" in text


def test_model_sums_up_passes() -> None:
    """Without writes one pass and nothing left to send; with writes a geometric series of six passes, the last with the guest stopped."""
    costs = model.Costs(source=0.5, destination=0.25, pipe=0.1)
    still = model.cost_of(costs, model.Move(size=GIB, dirty=0, link=1e12))
    assert (still.bound, still.rate, still.seconds, still.stopped) == ("CPU", 2 * GIB, pytest.approx(0.5), 0)
    busy = model.cost_of(costs, model.Move(size=64 * GIB, dirty=GIB, link=1e12))
    assert busy.seconds == pytest.approx(32 * (1 + 0.5 + 0.25 + 0.125 + 0.0625 + 0.03125))
    assert busy.stopped == pytest.approx(1.0)
    assert busy.cpu == pytest.approx(busy.stream / GIB * 0.75)


@pytest.mark.parametrize(
    ("move", "bound"),
    [
        (model.Move(GIB, 0, 1e9), "link"),
        (model.Move(GIB, 0, 1e11), "CPU"),
        (model.Move(GIB, 0, 1e12, lanes=64), "pipe"),
        (model.Move(GIB, 0, 1e9, zero=1.0), "CPU"),
    ],
)
def test_model_knows_the_bound(move: model.Move, bound: str) -> None:
    """A slow link, one core, or the one pipe that many connections share."""
    assert model.rate_of(model.Costs(0.5, 0.5, 0.1), move)[1] == bound


def test_page_has_its_markers() -> None:
    """docs/performance.md has both generated sections, and what stands around them stays."""
    page = docs.PAGE.read_text("utf-8")
    for name in ("measured", "computed"):
        changed = docs.put(page, name, "new\n")
        assert f"<!-- {name}: begin -->\nnew\n<!-- {name}: end -->" in changed
        assert docs.put(changed, name, "") == docs.put(page, name, "")
    with pytest.raises(ValueError, match="no markers"):
        docs.put(page, "nothing", "")


def test_callgrind_is_read_without_what_is_called() -> None:
    """Costs count where they arise; a call's own line, which has the callee's, does not."""
    text = """\
ob=(1) /tmp/instructions
fn=(1) run
10 5
+2 7
cob=(2) /lib/libc.so.6
cfn=(2) memcpy
calls=3 0
12 1000
* 4

ob=(2)
fn=(2)
0 1000
"""
    assert dict(instructions.by_object(text.splitlines())) == {"instructions": 16, "libc.so.6": 1000}


# ---- the programs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Loopback, and programs.c."""
    folder = tmp_path_factory.mktemp("bench")
    with loopback() as network:
        yield Place(network, folder, build_programs(folder))


def test_bare_pump_carries(place: Place) -> None:
    """A run counts every byte, of random pages and of a stream that is written several times."""
    pump = Bare(place)
    try:
        assert time_to_banner(pump) > 0
        stream = unpack(SMALL, place.folder)
        repeated = recorded(stream, 1)
        assert repeated.size == stream.stat().st_size * int(repeated.arguments[1]) >= 1 << 20
        for workload in (random_pages(8), repeated):
            run = carry(pump, workload, place.programs, watched=False)
            assert run.mib == workload.size / 2**20
            assert run.seconds > 0
    finally:
        pump.close()


def test_stream_is_written_as_it_is(place: Place) -> None:
    """``programs write FILE TIMES`` gives the file's bytes, also those behind the last whole record."""
    path = place.folder / "stream"
    path.write_bytes(random.Random(1).randbytes((5 << 20) + 123))
    with subprocess.Popen([place.programs, "write", path, "2"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == path.read_bytes() * 2


def test_streams_that_are_named_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were given; else the recorded ones, the largest first; else the small one of the repository."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_streams([Path("one")]) == [Path("one")]
    assert find_streams([]) == [SMALL]
    streams = tmp_path / "xensecure" / "streams"
    streams.mkdir(parents=True)
    for name, size in (("pv-g1", 1), ("pv-work", 2)):
        (streams / f"{name}.up.zst").write_bytes(bytes(size))
    assert [path.name for path in find_streams([])] == ["pv-work.up.zst", "pv-g1.up.zst"]


def test_every_target_is_described() -> None:
    """The page names the commands that its figures come from."""
    page = docs.PAGE.read_text("utf-8")
    makefile = (docs.PAGE.parent.parent / "Makefile").read_text("utf-8")
    for target in re.findall(r"`make (bench[a-z-]*)", page):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
