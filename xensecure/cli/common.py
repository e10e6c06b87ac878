"""What the four commands share: errors become one line and an exit status."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import NoReturn

from .. import __version__
from ..link.say import say
from ..proto.errors import UsageError, XensecureError


def run(program: str, main: Callable[[], int], *, failure_status: int | None = None) -> int:
    """Run a command's body; every error becomes one line on stderr and an exit status (``failure_status``, or the error's own)."""
    try:
        return main()
    except XensecureError as error:
        say(program, str(error))
        return failure_status or error.exit_code
    except KeyboardInterrupt:
        say(program, "interrupted")
        return failure_status or 130  # 128 + SIGINT, as shells report it
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads our output any more: not even Python's flush at exit should
        return failure_status or 1
    except OSError as error:
        say(program, f"{error.filename or 'system'}: {error.strerror}")
        return failure_status or 5  # as SystemFailure
    except Exception as error:  # no traceback reaches an operator
        if os.environ.get("XENSECURE_TRACEBACK"):
            raise
        say(program, f"internal error, please report: {type(error).__name__}: {error}; XENSECURE_TRACEBACK=1 shows where")
        return failure_status or 70  # EX_SOFTWARE of sysexits(3)


def out(text: str) -> None:
    """One line on stdout, all of it or an error."""
    data = memoryview(f"{text}\n".encode())
    while data:
        data = data[os.write(1, data) :]


class _Parser(argparse.ArgumentParser):
    """argparse with one line for a wrong command line, as for every other error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """An argument parser with what every command has."""
    made = _Parser(prog=program, description=description, allow_abbrev=False)
    made.add_argument("--config", metavar="FILE", help="the configuration file (default: $XENSECURE_CONFIG, or /etc/xensecure/xensecure.toml)")
    made.add_argument("--version", action="version", version=f"xensecure {__version__}")
    return made
