"""The one thing that may be started at a destination: ``xl migrate-receive``, as a typed request.

Source of the flags: xen.git tools/xl/xl_migrate.c (main_migrate_receive), xl_cmdtable.c, xl.c; docs/protocol.md, ReceiveRequest.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from . import limits
from .errors import ProtocolError, UsageError
from .wire import Reader, push_text, push_uint


class Flag(enum.IntFlag):
    """Switches of ``xl`` and ``xl migrate-receive``, by their bit on the wire."""

    CARRIAGE_RETURNS = 1  # xl -t
    TIMESTAMPS = 2  # xl -T
    NO_MONITOR = 4  # -e: leave no daemon behind
    DEBUG = 8  # -d
    PAUSED = 16  # -p
    REMUS = 32  # -r
    COLO = 64  # --colo
    USERSPACE_COLO_PROXY = 128  # --userspace-colo-proxy


NO_FLAGS = Flag(0)
_GLOBAL = {"-t": Flag.CARRIAGE_RETURNS, "-T": Flag.TIMESTAMPS}
_RECEIVE = {
    "-e": Flag.NO_MONITOR,
    "-d": Flag.DEBUG,
    "-p": Flag.PAUSED,
    "-r": Flag.REMUS,
    "--colo": Flag.COLO,
    "--userspace-colo-proxy": Flag.USERSPACE_COLO_PROXY,
}
_SCRIPT_OPTION = "--coloft-script"
_ALL_FLAGS = sum(Flag)


@dataclass(frozen=True)
class ReceiveRequest:
    """One receive: its switches, how many ``-v``, and COLO's script ("" for none)."""

    flags: Flag = NO_FLAGS
    verbosity: int = 0
    coloft_script: str = ""

    @property
    def checkpointed(self) -> bool:
        """Whether checkpoints follow without end (Remus, COLO), so that buffers must be small."""
        return bool(self.flags & (Flag.REMUS | Flag.COLO))

    def push(self) -> bytes:
        """The request on the wire."""
        return push_uint(self.flags, 2) + push_uint(self.verbosity, 1) + push_text(self.coloft_script, 1)

    @classmethod
    def pull(cls, reader: Reader) -> ReceiveRequest:
        """Read a request; raises ProtocolError for a flag or value that version 1 does not name."""
        flags = reader.pull_uint(2)
        verbosity = reader.pull_uint(1)
        script = reader.pull_text(1)
        if flags & ~_ALL_FLAGS:
            raise ProtocolError(f"receive request with unknown flags {flags & ~_ALL_FLAGS:#x}")
        if verbosity > limits.VERBOSITY_MAX:
            raise ProtocolError(f"receive request with {verbosity} times -v, at most {limits.VERBOSITY_MAX} are allowed")
        return cls(flags=Flag(flags), verbosity=verbosity, coloft_script=script)

    @classmethod
    def from_command(cls, command: Sequence[str]) -> ReceiveRequest:
        """The request that ``xl [-t] [-T] [-v…] migrate-receive …`` stands for; UsageError for anything else."""
        words = list(command)
        if not words or words.pop(0) != "xl":
            raise _not_a_receive(command)
        flags = Flag(0)
        verbosity = 0
        while words and words[0] != "migrate-receive":
            word = words.pop(0)
            if word in _GLOBAL:
                flags |= _GLOBAL[word]
            elif word.startswith("-v") and set(word[1:]) == {"v"}:
                verbosity += len(word) - 1
            else:
                raise _not_a_receive(command)
        if not words:
            raise _not_a_receive(command)
        if verbosity > limits.VERBOSITY_MAX:
            raise UsageError(f"{verbosity} times -v for the remote xl; at most {limits.VERBOSITY_MAX} are allowed")
        receive_flags, script = _receive_options(words[1:], command)
        return cls(flags=flags | receive_flags, verbosity=verbosity, coloft_script=script)

    def arguments(self) -> list[str]:
        """What follows ``xl`` on the destination's command line."""
        words = [word for word, flag in _GLOBAL.items() if self.flags & flag]
        if self.verbosity:
            words.append("-" + "v" * self.verbosity)
        words.append("migrate-receive")
        words += [word for word, flag in _RECEIVE.items() if self.flags & flag]
        if self.coloft_script:
            words += [_SCRIPT_OPTION, self.coloft_script]
        return words


def _receive_options(words: list[str], command: Sequence[str]) -> tuple[Flag, str]:
    flags = Flag(0)
    script = ""
    while words:
        word = words.pop(0)
        if word in _RECEIVE:
            flags |= _RECEIVE[word]
        elif word == _SCRIPT_OPTION and words and not script:
            script = words.pop(0)
            if not script.startswith("/") or not script.isprintable() or len(script.encode()) > limits.PATH_MAX:
                raise UsageError(f"{_SCRIPT_OPTION} takes an absolute path of at most {limits.PATH_MAX} bytes")
        else:
            raise _not_a_receive(command)
    return flags, script


def _not_a_receive(command: Sequence[str]) -> UsageError:
    shown = " ".join(command)[:200] or "(nothing)"
    return UsageError(f"only 'xl [-t] [-T] [-v] migrate-receive [options]' can be run on a peer, not: {shown!r}; use ssh for other commands")
