"""``python -m tests.xen up | shell HOST [COMMAND…] | test [NAME…] | record | demo | down``: the lab from the command line."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from tests.xen import suite
from tests.xen.common import CACHE, ROOT, LabError, check_machine, say
from tests.xen.hosts import HOSTS, alone, down, up
from tests.xen.image import make_image
from tests.xen.packages import MODES, hypervisor, prepare_hypervisor
from tests.xen.record import record_all
from tests.xen.story import tell


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.xen", description="Two real Xen hosts on this machine, in QEMU.")
    commands = parser.add_subparsers(dest="command", required=True)
    booted = argparse.ArgumentParser(add_help=False)
    booted.add_argument("--xen", type=Path, metavar="FILE", help="a hypervisor of your own: xen.gz or xen")
    booted.add_argument("--tools", type=Path, metavar="DIR", help="tools of your own: the DESTDIR of a Xen tree's 'make install-tools'")
    booted.add_argument("--tree", type=Path, default=ROOT, metavar="DIR", help="the source tree that xensecure is installed from")
    booted.add_argument("--deb", type=Path, metavar="FILE", help="install xensecure from this package instead")
    booted.add_argument("--kvm", action="store_true", help="hardware help; needs nested virtualisation for PVH guests")
    up_ = commands.add_parser("up", parents=[booted], help="boot both hosts, anew if they run")
    test = commands.add_parser("test", parents=[booted], help="boot, run the tests, and take everything down")
    record = commands.add_parser("record", parents=[booted], help="boot, record the streams of guests that move, and take everything down")
    story = commands.add_parser("demo", parents=[booted], help="boot, show a guest that moves and an attack that fails, and take everything down")
    modes = "pv: Xen 4.17.5 and PV guests; pvh: Debian's current Xen and PVH guests"
    for command in (up_, record, story):
        command.add_argument("--mode", choices=MODES, default="pv", help=f"{modes} (default pv)")
    both = f"{modes} (default: all tests with pv, then those that a guest's kind matters for with pvh)"
    test.add_argument("--mode", choices=MODES, help=both)
    test.add_argument("--keep", action="store_true", help="leave the hosts up")
    test.add_argument("--reuse", action="store_true", help="take the hosts that are up, as they are")
    test.add_argument("--without", action="append", default=[], metavar="NAME", help="leave that one out; may be repeated")
    test.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(suite.NAMES)}")
    shell = commands.add_parser("shell", help="a shell on a host, or one command there")
    shell.add_argument("host", choices=sorted(HOSTS))
    shell.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    commands.add_parser("down", help="end everything")
    return parser.parse_args()


def _boot(chosen: argparse.Namespace, mode: str) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    image = make_image(chosen.tree.resolve(), chosen.deb, chosen.tools and chosen.tools.resolve())
    xen = hypervisor(mode)
    if chosen.xen:
        xen = CACHE / "xen-own"
        prepare_hypervisor(chosen.xen, xen)
    say("booting two hosts")
    up(image, xen, **({"accelerator": "kvm"} if chosen.kvm else {}))


def _test(chosen: argparse.Namespace) -> int:
    status = 0
    for mode in (chosen.mode,) if chosen.mode else MODES:
        names = chosen.names or ([] if mode == (chosen.mode or MODES[0]) else suite.WITH_EVERY_GUEST)
        with _booted(chosen, mode):
            status |= suite.run_all(mode, names, chosen.without)
    return status


@contextlib.contextmanager
def _booted(chosen: argparse.Namespace, mode: str) -> Iterator[None]:
    """Both hosts up, unless they are to be taken as they are; down afterwards, unless they are to be kept."""
    try:
        if not (getattr(chosen, "reuse", False) and all(host.pid() for host in HOSTS.values())):
            _boot(chosen, mode)
        yield
    finally:
        if not getattr(chosen, "keep", False):
            down()
            say("everything is down again")


def _show(chosen: argparse.Namespace) -> int:
    with _booted(chosen, chosen.mode):
        {"record": record_all, "demo": tell}[chosen.command](chosen.mode)
    return 0


def _main() -> int:
    chosen = _arguments()
    check_machine()
    if chosen.command == "shell":
        host = HOSTS[chosen.host]
        if not host.pid():
            raise LabError("the lab is not up: python -m tests.xen up")
        command = host.ssh(*chosen.words, tty=not chosen.words and sys.stdin.isatty())
        os.execvp(command[0], command)  # noqa: S606 - becomes ssh
    with alone():
        if chosen.command == "down":
            down()
        elif chosen.command == "up":
            _boot(chosen, chosen.mode)
            say("python -m tests.xen shell a; python -m tests.xen down")
        elif chosen.command == "test":
            return _test(chosen)
        else:
            return _show(chosen)
    return 0


def _stop(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def main() -> int:
    """The command."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)  # so that everything is taken down
    try:
        return _main()
    except LabError as error:
        sys.stderr.write(f"xen lab: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("xen lab: interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
