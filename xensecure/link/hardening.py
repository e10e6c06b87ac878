"""What a process does to itself before it holds a secret or reads a stranger's bytes."""

from __future__ import annotations

import ctypes
import os
import pwd
import resource

from ..proto.errors import ConfigurationError, SystemFailure

# linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

# A receiver needs the standard descriptors, its socket, the launcher's, three pipes, a wake pipe, a few of Python's own, and two for each of
# up to eight connections.
_RECEIVER_FILES = 64


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise SystemFailure(f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def hide_memory() -> None:
    """No core dump of this process, and no ptrace by other processes of its user. Nothing of this reaches programs it starts."""
    _prctl(_PR_SET_DUMPABLE, 0)


def no_core_dumps() -> None:
    """No core dumps of this process nor of any it starts; not for the launcher, whose xl is the administrator's to debug."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def drop_root(user: str) -> None:
    """Become ``user`` for good, if this process is root; its groups become that user's primary one alone."""
    if os.geteuid() != 0:
        return
    account = find_user(user)
    os.setgroups([])
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        return
    raise SystemFailure("root could be regained after it was dropped; refusing to go on")


def confine_receiver() -> None:
    """What systemd's unit does too, for a receiver started by hand: no new privileges, no core dumps, no ptrace, few files."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    no_core_dumps()
    hide_memory()
    resource.setrlimit(resource.RLIMIT_NOFILE, (_RECEIVER_FILES, _RECEIVER_FILES))


def find_user(user: str) -> pwd.struct_passwd:
    """The account of the receivers' user; ConfigurationError with the remedy if there is none."""
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise ConfigurationError(
            f"there is no user {user!r} for the receivers; make it with 'adduser --system --group {user}', or set [receive] user"
        ) from None
