"""xl's report at the destination, which it writes in two pieces (xl_migrate.c): what is read by a receiver that ends between them is not lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.pair import Pair, wait_for
from tests.xl.records import GO_MESSAGE, pack_xl_header
from tests.xl.stream import make_config

_BANNER = "xl migration receiver ready, send binary domain data.\\n"
_READY = "domain received, ready to unpause"
_REPORT = "my copy unpause results are as follows"


def two_pieces(folder: Path, stream: Path) -> Path:
    """An xl that takes that stream, and waits between the two pieces of its report until the file ``go on`` is there."""
    size = stream.stat().st_size
    head = len(pack_xl_header(make_config("web1", mib=max(1, size >> 20))))
    path = folder / "xl"
    path.write_text(
        f"""#!/bin/sh
printf '{_BANNER}'
head -c {head + size} >/dev/null
printf '{_READY}\\0'
head -c {len(GO_MESSAGE)} >/dev/null
printf '{_REPORT}\\0'
touch {folder}/said
until [ -e {folder}/go-on ]; do sleep 0.05; done
printf '\\0'
"""
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("resume_window", [0, 30])
def test_receiver_ends_within_the_report(tmp_path: Path, stream: Path, resume_window: int) -> None:
    """A receiver killed between the two pieces has read the words; the launcher reads the status, and that is what the source gets."""
    with Pair(xl=two_pieces(tmp_path, stream), resume_window=resume_window) as pair:
        pair.source.xen.create_domain("web1", stream)
        running = pair.migrate("web1", "-e")
        wait_for((tmp_path / "said").exists, "the report's words")
        wait_for(lambda: "Giving target permission" in running.stderr(), "GO")
        time.sleep(0.5)  # the receiver reads them at once
        os.kill(pair.destination.session().receiver, signal.SIGKILL)
        (tmp_path / "go-on").touch()
        outcome = running.wait(30)
        assert outcome.status == 0, outcome.stderr
        assert pair.destination.last_end()["state"] == "reported"
