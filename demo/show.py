"""What the demonstration prints: commands as they would be typed, the real programs' words, and the report."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios

from tests.xl.hosts import XenHost

_INDENT = "    "
_TERMINAL = sys.stdout.isatty()


def out(text: str = "", end: str = "\n") -> None:
    """Print at once."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def heading(text: str) -> None:
    """A step's title."""
    out(f"\n\033[1m{text}\033[0m" if _TERMINAL else f"\n{text}")


def typed(host: str, command: str) -> None:
    """A command as a person would type it on that host."""
    out(f"  {host}# {command}")


def said(text: str) -> None:
    """What a program printed."""
    for line in text.strip().splitlines():
        out(f"{_INDENT}{line if len(line) < 170 else line[:100] + '…'}")


def run_on_terminal(xen: XenHost, *arguments: str, seconds: float = 120) -> tuple[int, str]:
    """Run the host's real xl on a terminal of its own, and pass on what it shows there; its exit status and all that it said."""
    master, slave = pty.openpty()
    settings = termios.tcgetattr(slave)
    settings[1] &= ~termios.OPOST  # lines end as the programs end them
    termios.tcsetattr(slave, termios.TCSANOW, settings)
    process = subprocess.Popen(
        [str(xen.toolstack.xl), *arguments],
        env={**os.environ, **xen.xl_env()},
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        text = _pass_on(master)
        return process.wait(seconds), text
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)


def _pass_on(master: int) -> str:
    text = rest = ""
    while True:
        try:
            piece = os.read(master, 4096).decode(errors="replace")
        except OSError:  # EIO: nobody has the terminal open any more
            break
        text += piece
        rest = _print_whole(rest + piece)
    _print_whole(f"{rest}\n")
    return text


def _print_whole(text: str) -> str:
    """Print the lines that are whole, a progress line too; returns the rest. Without a terminal a progress line is a line as any."""
    *whole, rest = re.split(r"(?<=[\r\n])", text)
    for line in whole:
        ending = line[-1] if _TERMINAL else "\n"
        if line.strip() or (_TERMINAL and ending == "\r"):
            out(f"{_INDENT}{line[:-1] if _TERMINAL else line.rstrip()}", end=ending)
    return rest


def table(title: str, rows: list[tuple[str, str]]) -> None:
    """The report."""
    width = max(len(name) for name, _ in rows)
    heading(title)
    for name, value in rows:
        out(f"  {name.ljust(width)}  {value}")
