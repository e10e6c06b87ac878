"""Which files of hooks.d are hooks, and whom they must belong to; and how one of them is run."""

from __future__ import annotations

import io
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.xl.records import StreamReader
from xensecure.link.config import Config
from xensecure.link.hooks import Facts, Point, Role, ask, find_hooks, tell
from xensecure.proto import limits
from xensecure.proto.domain import configuration
from xensecure.proto.errors import HookError, ProtocolError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, which root alone can")
NOBODY = 65534
FACTS = Facts(role=Role.SOURCE, host="hv1", peer="hv2", domain="web1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty hooks.d with its points, in folders that are nobody else's."""
    hooks = tmp_path / "hooks.d"
    for point in Point:
        (hooks / point).mkdir(parents=True)
    for path in (tmp_path, hooks, *hooks.iterdir()):
        path.chmod(0o755)
    return hooks


def add(folder: Path, name: str, script: str = "#!/bin/sh\n", mode: int = 0o755) -> Path:
    """A hook for pre-send."""
    path = folder / Point.PRE_SEND / name
    path.write_text(script)
    path.chmod(mode)
    return path


def names(folder: Path) -> list[str]:
    """The names of the hooks that are found."""
    return [path.name for path in find_hooks(folder, Point.PRE_SEND)]


def config(folder: Path, timeout: int = 10) -> Config:
    """A configuration with these hooks."""
    return Config(path="", name="hv1", hooks=folder, hook_timeout=timeout)


# ---- which files are hooks


def test_order_and_names(folder: Path) -> None:
    """Executable regular files in the order of their bytes; what editors and package managers leave, hidden files and folders are passed over."""
    for name in ("20-b", "100-a", "Z", "a.sh", "_x", "10_c"):
        add(folder, name)
    left_behind = ("a.sh~", "a.bak", "a.orig", "a.dpkg-dist", "a.dpkg-old", "a.ucf-old", "a.rpmnew", "a.rpmsave", "a.rpmorig")
    for name in (*left_behind, ".hidden", "a b", "ä", "a+b", "#a#"):
        add(folder, name)
    add(folder, "README", mode=0o644)
    (folder / Point.PRE_SEND / "folder").mkdir()
    os.mkfifo(folder / Point.PRE_SEND / "fifo", 0o700)
    assert names(folder) == ["100-a", "10_c", "20-b", "Z", "_x", "a.sh"]


@pytest.mark.parametrize("missing", ["hooks.d", "point"])
def test_no_folder_no_hooks(folder: Path, missing: str) -> None:
    """A folder that is not there has no hooks, and that is no error."""
    (folder / Point.PRE_SEND).rmdir()
    assert find_hooks(folder if missing == "point" else folder / "none", Point.PRE_SEND) == ()


# ---- whom they must belong to


def link_out(folder: Path) -> Path:
    """A hook that is a link to a file in a folder that others can write to."""
    outside = folder.parent / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    target = outside / "hook"
    target.write_text("#!/bin/sh\n")
    target.chmod(0o755)
    (folder / Point.PRE_SEND / "linked").symlink_to(target)
    return outside


def link_through(folder: Path) -> Path:
    """A hook that is a link to a link that others can change."""
    outside = link_out(folder)
    good = folder.parent / "good"
    good.write_text("#!/bin/sh\n")
    good.chmod(0o755)
    (outside / "hook").unlink()
    (outside / "hook").symlink_to(good)
    return outside


def sticky_point(folder: Path) -> Path:
    """A folder where everybody may put hooks."""
    (folder / Point.PRE_SEND).chmod(0o1777)
    return folder / Point.PRE_SEND


def writable(part: str, mode: int) -> Callable[[Path], Path]:
    """Somebody else can write to a part of the way."""

    def change(folder: Path) -> Path:
        paths = {"hook": add(folder, "10-hook"), "point": folder / Point.PRE_SEND, "folder": folder, "parent": folder.parent}
        paths[part].chmod(mode)
        return paths[part]

    return change


UNSAFE = {
    **{f"{part} {mode:o}": writable(part, mode) for part in ("hook", "point", "folder", "parent") for mode in (0o777, 0o775, 0o757)},
    "a link out": link_out,
    "a link through": link_through,
    "a sticky point": sticky_point,
}


@pytest.mark.parametrize("case", UNSAFE)
def test_what_others_can_write(folder: Path, case: str) -> None:
    """A hook, a folder on the way to it, or on the way that a link takes, that others can write to: all is refused, and the path is named."""
    path = UNSAFE[case](folder)
    with pytest.raises(HookError, match="others can write to it") as caught:
        find_hooks(folder, Point.PRE_SEND)
    assert str(caught.value).startswith(f"{path}: ")


def test_point_that_others_may_have_removed(folder: Path) -> None:
    """A hooks.d that others can write to is refused also where it lacks the point."""
    (folder / Point.PRE_SEND).rmdir()
    folder.chmod(0o777)
    with pytest.raises(HookError, match="others can write to it"):
        find_hooks(folder, Point.PRE_SEND)


@needs_root
@pytest.mark.parametrize("part", ["hook", "point", "folder", "parent", "link"])
def test_what_belongs_to_another(folder: Path, part: str) -> None:
    """The same for what belongs to another user, a link included."""
    hook = add(folder, "10-hook")
    link = folder / Point.PRE_SEND / "20-link"
    link.symlink_to(hook)
    path = {"hook": hook, "point": hook.parent, "folder": folder, "parent": folder.parent, "link": link}[part]
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(HookError, match=f"belongs to user {NOBODY}") as caught:
        find_hooks(folder, Point.PRE_SEND)
    assert str(caught.value).startswith(f"{path}: ")


def test_links_that_stay_ours(folder: Path) -> None:
    """A link to a file that is as safe as the folder is a hook: a sample where its package has put it."""
    target = folder.parent / "sample"
    target.write_text("#!/bin/sh\n")
    target.chmod(0o755)
    (folder / Point.PRE_SEND / "10-absolute").symlink_to(target)
    (folder / Point.PRE_SEND / "20-relative").symlink_to("../../sample")
    assert names(folder) == ["10-absolute", "20-relative"]


@pytest.mark.parametrize("target", ["nowhere", "10-loop"])
def test_links_to_nowhere(folder: Path, target: str) -> None:
    """A link that leads nowhere was meant to be a hook: that it is none must not go unseen."""
    (folder / Point.PRE_SEND / "10-loop").symlink_to(target)
    with pytest.raises(HookError, match=r"10-loop: .*; hooks that cannot be read are not passed over"):
        find_hooks(folder, Point.PRE_SEND)


# ---- how one is run


def refusal(folder: Path, timeout: int = 10) -> str:
    """Why pre-send's hooks say no."""
    with pytest.raises(HookError) as caught:
        ask(config(folder, timeout), Point.PRE_SEND, FACTS, "xensecure")
    return str(caught.value)


REFUSALS = {
    "exit 1": "refused by hook pre-send/no: exit status 1",
    "kill -9 $$": "refused by hook pre-send/no: killed by SIGKILL",
    "echo one; echo two >&2; exit 7": "refused by hook pre-send/no: two",
    "printf 'last line without an end'; exit 1": "refused by hook pre-send/no: last line without an end",
    "printf 'words\\n\\n   \\n'; exit 1": "refused by hook pre-send/no: words",
    "printf 'a\\033[2Jb\\n'; exit 1": "refused by hook pre-send/no: a?[2Jb",
}


@pytest.mark.parametrize("script", REFUSALS)
def test_refusal(folder: Path, script: str) -> None:
    """The last line that a hook has written is its reason; its end is, if there is none."""
    add(folder, "no", f"#!/bin/sh\n{script}\n")
    assert refusal(folder) == REFUSALS[script]


def test_first_refusal_ends_it(folder: Path) -> None:
    """What comes behind the hook that says no is not run."""
    add(folder, "10-no", "#!/bin/sh\nexit 1\n")
    add(folder, "20-never", f"#!/bin/sh\ntouch {folder}/ran\n")
    assert "10-no" in refusal(folder)
    assert not (folder / "ran").exists()


def test_no_program(folder: Path) -> None:
    """A file that cannot be run says no."""
    add(folder, "no", "not a program")
    (folder / Point.PRE_SEND / "no").write_bytes(b"\0\1\2")
    assert refusal(folder).startswith("refused by hook pre-send/no: it cannot be run: ")


def test_hook_that_never_stops_writing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its time is up all the same, its lines are cut, and only so many are kept."""
    add(folder, "no", "#!/bin/sh\nexec yes $(head -c 2000 /dev/zero | tr '\\0' x)\n")
    assert refusal(folder, timeout=1).startswith("refused by hook pre-send/no: xxx")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) <= limits.HOOK_LINES_MAX + 1
    assert max(map(len, lines)) < 2 * limits.HOOK_LINE_MAX


def test_hook_that_leaves_a_child(folder: Path) -> None:
    """A child that keeps the hook's output open is not waited for."""
    add(folder, "yes", "#!/bin/sh\nsleep 5 &\necho done\n")
    ask(config(folder, 3), Point.PRE_SEND, FACTS, "xensecure")


def test_hook_that_does_not_read(folder: Path) -> None:
    """Nor is a hook that reads nothing of a megabyte."""
    facts = Facts(role=Role.DESTINATION, host="hv2", configuration={"x": "y" * limits.CONFIGURATION_MAX})
    add(folder, "yes")
    ask(config(folder), Point.PRE_SEND, facts, "xensecure")


def test_told_hooks_all_run(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """After a migration one hook that fails does not keep the others from running."""
    for name in ("10-no", "20-no"):
        add(folder, name, "#!/bin/sh\necho words\nexit 1\n")
    tell(config(folder), Point.PRE_SEND, FACTS, "xensecure")
    assert capfd.readouterr().err.splitlines() == [
        "xensecure: pre-send/10-no: words",
        "xensecure: hook pre-send/10-no has failed: exit status 1",
        "xensecure: pre-send/20-no: words",
        "xensecure: hook pre-send/20-no has failed: exit status 1",
    ]


# ---- what they are shown


@pytest.mark.parametrize(
    "head",
    [
        *(b"", b"[]", b"5", b"{", b'{"a": 1} x', b'{"a": 1}\0{"b": 2}', b'{"a": "\xff"}'),
        *(b'{"a": 1, "a": 2}', b'{"c": {"a": 1, "b": 2, "a": 1}}', b'{"a": NaN}', b'{"a": 1e999}', b'{"a": ' + b"9" * 5000 + b"}"),
        *(b"[" * 100_000, b'{"a":' * 32 + b"{}" + b"}" * 32),
    ],
    ids=lambda head: head[:20].decode("latin-1"),
)
def test_configuration_that_two_would_read_differently(head: bytes) -> None:
    """A configuration that is no object, or has a key twice, or is no JSON to all, is none."""
    with pytest.raises(ProtocolError, match="malformed configuration"):
        configuration(head)


def test_configuration_of_a_guest() -> None:
    """What xl has written of a real guest is read, and so is what is as deep as may be."""
    recorded = io.BytesIO(lzma.decompress((Path(__file__).with_name("data") / "migrate-pv-small.up.xz").read_bytes()))
    found = configuration(StreamReader(recorded).xl_header().rstrip("\0").encode())
    assert found["c_info"]["name"] == "g128"
    configuration(b'{"a":' * 31 + b"{}" + b"}" * 31)
