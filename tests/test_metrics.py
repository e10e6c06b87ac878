"""Metrics: OpenMetrics text that its own parser takes, numbers that are what happened, and a dashboard and alerts that ask for nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as older_form

from tests.pair import Host, Pair, children, transports, wait_for
from tests.test_docs import code, rows, section, text
from tests.xl.hosts import Point
from tests.xl.stream import StreamSpec, make_stream
from xensecure import __version__
from xensecure.link import journal
from xensecure.link.config import Config
from xensecure.link.counters import read_counts
from xensecure.link.events import Event, Events
from xensecure.link.journal import Journal
from xensecure.link.openmetrics import metric_names, render, renew
from xensecure.link.roles import Role

ROOT = Path(__file__).resolve().parent.parent
MONITORING = ROOT / "packaging/monitoring"
Samples = dict[tuple[str, str], float]


def parsed(document: str) -> Samples:
    """Every sample by name and labels, as OpenMetrics' parser reads them; the parser that node_exporter's is like reads the same."""
    found = {}
    for family in openmetrics.text_string_to_metric_families(document):
        assert family.type in ("counter", "gauge")
        assert family.documentation
        for sample in family.samples:
            found[(sample.name, ",".join(sample.labels.values()))] = float(sample.value)
    older = {(sample.name, ",".join(sample.labels.values())): sample.value for family in older_form(document) for sample in family.samples}
    assert older == found
    return found


def metrics(host: Host) -> Samples:
    """What `xensecurectl metrics` prints."""
    return parsed(host.ctl("metrics").stdout)


def changed(before: Samples, after: Samples) -> Samples:
    """Counters that have grown, and by how much; none may have shrunk."""
    grown = {key: after[key] - before.get(key, 0) for key in after if key[0].endswith("_total")}
    assert all(number >= 0 for number in grown.values())
    return {(name.removeprefix("xensecure_").removesuffix("_total"), labels): number for (name, labels), number in grown.items() if number}


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four MiB."""
    return make_stream(tmp_path_factory.mktemp("stream") / "web1.stream", StreamSpec(4, seed=3))


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two hosts that write their metrics into files."""
    folder = tmp_path_factory.mktemp("metrics")
    extra = [f'[log]\nevents = "off"\nmetrics = "{folder / name}.prom"\n' for name in ("hv1", "hv2")]
    with Pair(source_extra=extra[0], destination_extra=extra[1]) as made:
        yield made


def prom(host: Host) -> Path:
    """The file that node_exporter reads."""
    found = re.search(r'metrics = "(.*)"', host.config.read_text())
    assert found
    return Path(found[1])


def test_a_new_host_counts_from_zero(tmp_path: Path) -> None:
    """Every counter is there before anything has happened, so that its first increase is one to be seen."""
    host = Host(tmp_path, "hv1")
    host.ctl("init")
    found = metrics(host)
    assert {name for name, _ in found} == set(metric_names()) - {
        "xensecure_last_migration_bytes_per_second",
        "xensecure_last_migration_timestamp_seconds",
    }
    assert {number for (name, _), number in found.items() if name != "xensecure_build_info"} == {0.0}
    assert found[("xensecure_build_info", __version__)] == 1
    assert ("xensecure_authentication_failures_total", "destination,wrong_proof") in found


def test_a_migration_is_counted(pair: Pair, stream: Path) -> None:
    """By outcome at both hosts, with its bytes, seconds and rate; the file has it as soon as the session has ended."""
    before = [metrics(host) for host in (pair.source, pair.destination)]
    assert pair.migrate("web1", "-e").wait().status == 0
    pair.destination.last_end()
    for host, role, old in zip((pair.source, pair.destination), ("source", "destination"), before, strict=True):
        key = ("xensecure_migrations_total", f"{role},success")
        wait_for(lambda host=host, key=key, old=old: parsed(prom(host).read_text())[key] > old[key], "the count")  # type: ignore[misc]
        found = metrics(host)
        grown = changed(old, found)
        assert grown.pop(("migrations", f"{role},success")) == 1
        end = host.last_end()
        assert grown.pop(("stream_bytes", role)) == end["bytes"] > stream.stat().st_size
        assert grown.pop(("migration_seconds", role)) == pytest.approx(end["seconds"], abs=0.5)
        assert grown == {}
        assert found[("xensecure_last_migration_bytes_per_second", role)] > 1000
        assert prom(host).stat().st_mode & 0o777 == 0o644 & ~_umask()
        assert parsed(prom(host).read_text())[("xensecure_sessions", f"{role},running")] == 0


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_what_runs_is_a_gauge(pair: Pair) -> None:
    """While a domain is on its way both files say that one runs; a session that was killed is one whose outcome nobody knows."""
    pair.destination.xen.set_hold(Point.READY)
    running = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.READY)
    for host, role in ((pair.source, "source"), (pair.destination, "destination")):
        wait_for(lambda host=host, role=role: parsed(prom(host).read_text())[("xensecure_sessions", f"{role},running")] == 1, "it runs")  # type: ignore[misc]
    (transport,) = transports(running.pid)
    os.kill(transport, signal.SIGKILL)
    assert running.wait().status != 0
    found = metrics(pair.source)
    assert found[("xensecure_sessions", "source,running")] == 0
    assert found[("xensecure_unresolved_sessions", "source")] == 1
    # Nobody has told the file: that is what the timer is for.
    assert parsed(prom(pair.source).read_text())[("xensecure_sessions", "source,running")] == 1
    pair.source.ctl("metrics", "--write")
    assert parsed(prom(pair.source).read_text())[("xensecure_unresolved_sessions", "source")] == 1
    pair.destination.xen.release(Point.READY)
    pair.destination.last_end()


def test_failures_are_counted_by_cause(pair: Pair) -> None:
    """A stranger by cause at both hosts, a refusal by reason, a hook that fails by point."""
    before = [metrics(host) for host in (pair.source, pair.destination)]
    pair.destination.add_hook("pre-receive", "no", "#!/bin/sh\nexit 1\n")
    pair.source.add_hook("failed", "broken", "#!/bin/sh\nexit 3\n")
    assert pair.migrate("web1").wait().status != 0
    pair.destination.last_end()
    wait_for(lambda: ("hook_failures", "source,failed") in changed(before[0], metrics(pair.source)), "the hook's end")
    pair.destination.ctl("forget", "hv1")
    assert pair.migrate("web1").wait().status != 0
    stranger = ("authentication_failures", "destination,unknown_key")
    wait_for(lambda: stranger in changed(before[1], metrics(pair.destination)), "the launcher's count, which comes after its answer")
    grown = [changed(old, metrics(host)) for host, old in zip((pair.source, pair.destination), before, strict=True)]
    for role, counts in zip(("source", "destination"), grown, strict=True):
        counts.pop(("stream_bytes", role), None)
        counts.pop(("migration_seconds", role))
    assert grown[0] == {
        ("migrations", "source,failed"): 2,
        ("refusals", "source,not_allowed"): 1,
        ("hook_failures", "source,failed"): grown[0][("hook_failures", "source,failed")],
        ("authentication_failures", "source,not_accepted"): 1,
    }
    assert grown[1] == {
        ("migrations", "destination,failed"): 1,
        ("refusals", "destination,not_allowed"): 1,
        stranger: 1,
    }
    pair.source.ctl("forget", "hv2")
    pair.source.ctl("join", pair.destination.invite())


# ---- the counters


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A host without a past."""
    (tmp_path / "state").mkdir(mode=0o700)
    return replace(Config(path="", name="hv1"), state=tmp_path / "state", run=tmp_path / "run", events="off", metrics=str(tmp_path / "x.prom"))


def test_counters_outlive_the_journal(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """No counter shrinks when the journal is rotated, twice."""
    monkeypatch.setattr(journal, "ROTATE_BYTES", 1000)
    written = Journal(config.state, Role.SOURCE)
    before: Samples = {}
    for number in range(20):
        session = number.to_bytes(16, "big")
        written.append(session, "start", peer="hv2", address="", request=[], boot="")
        written.append(session, "end", outcome="moved", state="reported", status=0, bytes=100, seconds=1.0)
        Events(config, "xensecure", "source").emit(Event.SESSION_ENDED, outcome="success", bytes=100, seconds=1.0)
        found = parsed(render(config))
        changed(before, found)
        before = found
    assert len(list(config.state.glob("journal.jsonl*"))) == 2
    assert before[("xensecure_stream_bytes_total", "source")] == 2000
    assert before[("xensecure_migrations_total", "source,success")] == 20


def test_a_lie_does_not_stay(config: Config) -> None:
    """What no line carries in that time is not counted: a receiver that was taken over could spoil the counter for good."""
    events = Events(config, "xensecure-launcher", "destination")
    events.emit(Event.SESSION_ENDED, outcome="failed", bytes=2**64 - 1, seconds=2.0)
    events.emit(Event.SESSION_ENDED, outcome="success", bytes=1000, seconds=1.0)
    assert parsed(render(config))[("xensecure_stream_bytes_total", "destination")] == 2e11 + 1000


def test_processes_count_at_once(config: Config) -> None:
    """Eight processes that count the same lose none, and whoever reads the file meanwhile finds it whole."""
    processes = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            told = Events(config, "xensecure", "source")
            for _ in range(25):
                told.emit(Event.LINK_LOST, cause="reset")
                renew(config, 0.0)
            os._exit(0)
        processes.append(child)
    while any(child in children(os.getpid()) for child in processes):
        if Path(config.metrics).exists():
            parsed(Path(config.metrics).read_text())
    assert [os.waitpid(child, 0)[1] for child in processes] == [0] * 8
    assert read_counts(config.state)["links_lost"][("source",)] == 200
    assert [path.name for path in config.state.glob(".*.tmp")] == []


def test_a_damaged_file_counts_from_zero(config: Config) -> None:
    """Prometheus takes that for a restart; nothing fails."""
    for content in ("", "[]", "{", '{"links_lost": 3}', '{"links_lost": {"source": "x", "a,b": 1}}', "[" * 100000):
        (config.state / "counters.json").write_text(content)
        (config.state / "counters.json").chmod(0o600)
        Events(config, "xensecure", "source").emit(Event.LINK_LOST, cause="reset")
        assert read_counts(config.state)["links_lost"][("source",)] == 1


def test_what_cannot_be_written_is_said_once(config: Config, capfd: pytest.CaptureFixture[str]) -> None:
    """A folder for the metrics that is not there fails nothing."""
    told = Events(replace(config, metrics=str(config.state / "no/x.prom")), "xensecure", "source")
    for _ in range(3):
        told.emit(Event.SESSION_ENDED, outcome="success", bytes=1, seconds=1.0)
    (line,) = capfd.readouterr().err.splitlines()
    assert "metrics are not renewed, see [log] metrics" in line
    assert read_counts(config.state)["migrations"][("source", "success")] == 3


def test_strangers_do_not_renew_the_file_all_the_time(config: Config) -> None:
    """What whoever knocks at the port can cause renews the file every ten seconds at most; a session's end does at once."""
    told = Events(config, "xensecure-launcher", "destination")
    told.emit(Event.AUTHENTICATION_FAILED, cause="unknown_key")
    first = Path(config.metrics).stat()
    told.emit(Event.AUTHENTICATION_FAILED, cause="unknown_key")
    assert os.path.samestat(first, Path(config.metrics).stat())
    os.utime(config.metrics, (0, 0))
    told.emit(Event.AUTHENTICATION_FAILED, cause="unknown_key")
    assert parsed(Path(config.metrics).read_text())[("xensecure_authentication_failures_total", "destination,unknown_key")] == 3
    told.emit(Event.SESSION_ENDED, outcome="failed", bytes=0, seconds=0.1)
    assert parsed(Path(config.metrics).read_text())[("xensecure_migrations_total", "destination,failed")] == 1


def test_labels_are_escaped(config: Config) -> None:
    """Whatever a later release calls a cause, the text stays one that can be read."""
    Events(config, "xensecure", "source").emit(Event.REFUSED, cause='a"b\\c')
    assert parsed(render(config))[("xensecure_refusals_total", 'source,a"b\\c')] == 1


# ---- what asks for them


def queries() -> dict[str, list[str]]:
    """Every expression of the dashboard and of the alert rules."""
    dashboard = json.loads((MONITORING / "xensecure-dashboard.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    panels += [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    rules = re.findall(r"^ +expr: (.+)$", (MONITORING / "xensecure-rules.yml").read_text(), re.MULTILINE)
    return {"dashboard": panels, "rules": rules}


def test_dashboard_and_alerts_ask_for_what_is_there() -> None:
    """Every metric that they name exists, and the dashboard shows every one."""
    found = queries()
    asked = {name: {each for query in each_queries for each in re.findall(r"xensecure_\w+", query)} for name, each_queries in found.items()}
    assert len(found["rules"]) == (MONITORING / "xensecure-rules.yml").read_text().count("- alert:") > 5
    assert asked["rules"] <= set(metric_names())
    assert asked["dashboard"] == set(metric_names())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not there")
def test_promtool_takes_the_rules() -> None:
    """Prometheus' own tool finds nothing wrong with them."""
    subprocess.run(["promtool", "check", "rules", str(MONITORING / "xensecure-rules.yml")], check=True, capture_output=True)


def test_the_page_has_every_metric() -> None:
    """docs/events.md has each metric with its labels."""
    listed = {code(cell)[0] for cell, *_ in rows(section(text("docs/events.md"), "## Metrics"))}
    assert listed == set(metric_names())
