"""Debian's own xendomains, unchanged, empties a host with `XENDOMAINS_MIGRATE="--live -s xensecure hv2"`."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.pair import BIN, Pair, wait_for
from tests.xl.hosts import Point

SCRIPT = Path(__file__).with_name("xl") / "xendomains.sh"
UNSHARE = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)))
# What docs/operations.md puts into /etc/default/xendomains: the setting, and what brings it into the order that xl wants.
SETTING, ORDER = re.findall(r'^(?:XENDOMAINS_MIGRATE=|xen\(\) ).*$', (SCRIPT.parents[2] / "docs/operations.md").read_text("utf-8"), re.MULTILINE)
REFUSE_WEB2 = '#!/bin/sh\n[ "$XENSECURE_DOMAIN" != web2 ] || { echo "web2 is not wanted"; exit 1; }\n'


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    """A mount namespace with an overlay in it must be allowed here."""
    probe = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/a && mount -t overlay overlay -o ro,lowerdir=/mnt/a:/usr/sbin /mnt"
    done = subprocess.run([*UNSHARE, "sh", "-c", probe], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")


@pytest.fixture
def pair(lasting: Pair, stream: Path) -> Pair:
    """Two hosts without a past; on the source itself, web1 and web2."""
    lasting.reset()
    lasting.source.xen.create_dom0()
    for name in ("web1", "web2"):
        lasting.source.xen.create_domain(name, stream)
    return lasting


def stop(pair: Pair, folder: Path, *, seconds: int = 300, order: str = ORDER) -> subprocess.Popen[str]:
    """Start `/etc/init.d/xendomains stop` on the source; ``seconds``: XENDOMAINS_STOP_MAXWAIT."""
    for name in ("etc/default", "proc", "bin"):
        (folder / name).mkdir(parents=True)
    (folder / "etc/default/xendomains").write_text(f"{SETTING}\n{order}\nXENDOMAINS_SAVE=\nXENDOMAINS_STOP_MAXWAIT={seconds}\n")
    (folder / "bin/xl").symlink_to(pair.source.xen.xl_wrapper())
    environment = {**pair.source.environment(), "PATH": f"{folder / 'bin'}:{BIN}:/usr/sbin:/usr/bin:/sbin:/bin"}
    words = [*UNSHARE, str(SCRIPT), str(pair.source.xen.toolstack.root), str(folder), "stop"]
    return subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    """What it has said, when it has ended well."""
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0, said
    return said


def test_all_domains_leave(pair: Pair, tmp_path: Path) -> None:
    """One after the other all domains arrive, live, and this host itself stays."""
    said = ended(stop(pair, tmp_path))
    assert pair.source.xen.domains() == {"Domain-0": "running"}, said
    assert pair.destination.xen.domains() == {"web1": "running", "web2": "running"}
    assert [call.arguments["live"] for call in pair.source.xen.calls("libxl_domain_suspend")] == ["1", "1"]
    for number in (1, 2):
        assert f"Migrating Xen domain web{number} ({number})" in said
    assert "fail" not in said


def test_the_setting_alone(pair: Pair, tmp_path: Path) -> None:
    """Behind the domain, where the script puts them, xl takes no options: it has `ssh --live` run, and every domain stays as it was."""
    ended(stop(pair, tmp_path, seconds=0, order=""))
    assert pair.source.xen.domains() == {"Domain-0": "running", "web1": "running", "web2": "running"}
    assert pair.destination.journal() == []


def test_a_refused_domain(pair: Pair, tmp_path: Path) -> None:
    """A domain that the destination refuses runs on here, and why stands in the script's output; the others arrive."""
    pair.destination.add_hook("pre-receive", "10-choosy", REFUSE_WEB2)
    said = ended(stop(pair, tmp_path, seconds=1))
    assert pair.source.xen.domains() == {"Domain-0": "running", "web2": "running"}
    assert pair.destination.xen.running() == ["web1"]
    assert "web2 is not wanted" in said


def test_longer_than_it_waits_for(pair: Pair, tmp_path: Path) -> None:
    """Past XENDOMAINS_STOP_MAXWAIT Debian's script sends SIGINT to the shell around xl, which ignores it, and waits on: the domain arrives."""
    pair.destination.xen.set_hold(Point.READY)
    process = stop(pair, tmp_path, seconds=1)
    pair.destination.xen.wait_held(Point.READY)
    time.sleep(3.5)
    assert process.poll() is None
    assert pair.source.xen.domains()["web1"] == "suspended"
    pair.destination.xen.release(Point.READY)
    ended(process)
    assert sorted(pair.destination.xen.running()) == ["web1", "web2"]
    wait_for(lambda: pair.source.xen.domains() == {"Domain-0": "running"}, "all to have left")
