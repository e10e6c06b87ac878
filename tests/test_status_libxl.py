"""Which libxl `xensecurectl resume` takes, and what it says where there is none; that it works is tested in test_status.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from xensecure.cli import libxl
from xensecure.proto.errors import SystemFailure


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of libraries."""
    monkeypatch.setattr(libxl, "_FOLDERS", ())
    monkeypatch.setattr(libxl, "_running_version", lambda: "")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}:relative")
    return tmp_path


def add(folder: Path, *names: str) -> None:
    """Libraries that are no libraries."""
    for name in names:
        (folder / name).write_text("")


def test_the_only_one_is_taken(folder: Path) -> None:
    """Where one release is installed, it is the one that runs; links of other forms do not count."""
    add(folder, "libxenlight.so", "libxenlight.so.4.17", "libxenlight.so.4.17.0", "libxenlight.so.x")
    assert libxl._find() == str(folder / "libxenlight.so.4.17")


def test_of_several_the_one_that_runs_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hypervisor says its release; without its word none is guessed."""
    add(folder, "libxenlight.so.4.17", "libxenlight.so.4.20")
    with pytest.raises(SystemFailure, match=r"cannot be told: .* those of 4\.17, 4\.20 are installed"):
        libxl._find()
    monkeypatch.setattr(libxl, "_running_version", lambda: "4.20")
    assert libxl._find() == str(folder / "libxenlight.so.4.20")
    monkeypatch.setattr(libxl, "_running_version", lambda: "4.21")
    with pytest.raises(SystemFailure, match=r"libxenlight\.so\.4\.21 cannot be loaded"):
        libxl.resume_domain("web1")


def test_none(folder: Path) -> None:
    """No Xen, no libxl: one line."""
    with pytest.raises(SystemFailure, match="none is installed"):
        libxl.resume_domain("web1")


def test_no_library(folder: Path) -> None:
    """A file that is none is told with the loader's words."""
    add(folder, "libxenlight.so.4.17")
    with pytest.raises(SystemFailure, match=r"libxenlight\.so\.4\.17 cannot be loaded \(.*\); is Xen's libxl installed\?"):
        libxl.resume_domain("web1")


def test_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library without the calls is not called."""
    monkeypatch.setattr(libxl, "_find", lambda: "libc.so.6")
    with pytest.raises(SystemFailure, match=r"libxl has no libxl_ctx_alloc: libc\.so\.6"):
        libxl.resume_domain("web1")
