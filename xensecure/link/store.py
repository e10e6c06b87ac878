"""Files that must survive a crash and that nobody else may read: written aside, synced, renamed; checked when read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from ..proto.errors import StateError

_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700
# A file of ours is some hundred bytes; more means that it is not ours.
_SIZE_MAX = 1 << 20
_LOCK_POLL_SECONDS = 0.02  # flock(2) has no time-out


def unusable(path: Path, error: OSError) -> StateError:
    """The error for a file or folder that the system does not let us use, with what helps where it is a matter of who we are."""
    remedy = "; run this as root, or as the user who owns it" if isinstance(error, PermissionError) else ""
    return StateError(f"{path}: {error.strerror}{remedy}")


def read_secret(path: Path, forbidden: int = 0o077) -> bytes:
    """The content of a file that only its owner may read; StateError if others may, FileNotFoundError if there is none.

    ``forbidden``: the mode bits that must not be set.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unusable(path, error) from None
    try:
        status = os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _SIZE_MAX:
            raise StateError(f"{path}: not a file of xensecure's; move it away")
        if status.st_uid not in (0, os.geteuid()):
            raise StateError(f"{path}:1: belongs to user {status.st_uid}, who could have put anything into it; restore it, or pair anew")
        if mode & forbidden:
            raise StateError(f"{path}:1: others can read this secret (mode {mode:04o}); chmod 600 it, and make a new one if they may have")
        return os.read(descriptor, _SIZE_MAX)
    finally:
        os.close(descriptor)


def write_secret(path: Path, content: bytes) -> None:
    """Put content into the file, all or nothing, also when the power fails meanwhile (mode 0600).

    The caller holds the state folder's lock, so what lies half-written in the file's folder was left by a crash, and goes.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        for stale in path.parent.glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
        try:
            write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        aside.rename(path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise StateError(f"{path}: cannot be written: {error.strerror}") from None


def write_all(descriptor: int, content: bytes) -> None:
    """Write it all: a disk that fills up takes a part first, and says so only the next time."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def remove(path: Path) -> None:
    """Remove a file, durably; no error if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames and removals in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a private folder (0700) with its parents, or check that it is private."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=_DIRECTORY_MODE)
    except OSError as error:
        raise unusable(path, error) from None
    require_private(path)


def require_private(path: Path) -> None:
    """StateError if a folder is not its owner's alone, or its owner is neither root nor us; no error if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise unusable(path, error) from None
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise StateError(f"{path}: others can enter this folder (mode {mode:04o}); chmod 700 it")
    if status.st_uid not in (0, os.geteuid()):
        raise StateError(f"{path}: belongs to user {status.st_uid}; chown it to root, and look whether its files are still yours")


def usable_files(folder: Path, suffix: str) -> list[Path]:
    """The finished files of a folder, sorted; what a crash left half-written starts with a dot and does not count."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == suffix and not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unusable(folder, error) from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder: read, change and write as one step among processes."""
    descriptor = _open_lock(folder / ".lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def lock_within(path: Path, seconds: float) -> int | None:
    """A descriptor that holds the lock of that file until it is closed or its process ends; None if somebody else holds it all the time."""
    descriptor = _open_lock(path)
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                os.close(descriptor)
                return None
            time.sleep(_LOCK_POLL_SECONDS)
        else:
            return descriptor


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
    except OSError as error:
        raise StateError(f"{path.parent}: {error.strerror}; run this as the user who owns it, after 'xensecurectl init'") from None
