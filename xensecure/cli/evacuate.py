"""``xensecurectl evacuate``: move this host's domains to others, several at once."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..link.config import Config, HostOptions, with_option
from ..link.domains import AWAY, INCOMING, Listed, list_table, own_name
from ..link.identity import load_credentials
from ..link.keys import is_address
from ..link.peers import Peers
from ..link.say import say
from ..link.xl import no_domain
from ..proto.errors import LinkError, PeerError, Reason, RefusedError, StateError, UsageError
from ..proto.hostreport import HostReport
from ..proto.memory import duration, size
from ..proto.messages import printable
from ..proto.tls import Credentials
from ..source.check import check_destination
from ..source.establish import find_route
from .board import Board
from .common import out
from .evacuation import Ended, Evacuation, Logs, Result, reason_to_stay
from .plan import Guest, Plan, Room, bytes_needed
from .status import NEEDS_OPERATOR, Inquiry

PROGRAM = "xensecurectl"
_INTERRUPTED = 130  # exit status: 128 + SIGINT, as of a command that ends at once


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The command's options."""
    command.add_argument("--to", required=True, type=_hosts, metavar="HOST[,HOST]", help="where to, as 'xl migrate' would be given it")
    command.add_argument("-j", dest="jobs", type=_number, default=0, metavar="N", help="migrations at once (default: one to each destination)")
    command.add_argument("--dry-run", action="store_true", help="say what would be moved where, and move nothing")
    command.add_argument("-p", dest="paused", action="store_true", help="leave the domains paused there, as 'xl migrate -p'")
    command.add_argument("--live", action="store_true", help="as 'xl migrate --live', which is what it does anyway")
    command.add_argument("-o", dest="option", action="append", default=[], metavar="KEY=VALUE", help="passed to xensecure with -o")
    command.add_argument("domain", nargs="*", metavar="DOMAIN", help="which domains, in this order (default: all but this host itself)")


def _hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(text.split(","))
    for host in hosts:
        if not is_address(host):
            raise argparse.ArgumentTypeError(f"{host!r} is no host's name or address")
    return hosts


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) < 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of migrations at once")
    return int(text)


def evacuate(config: Config, chosen: argparse.Namespace) -> int:
    """The command; 0 if all that was to be moved has been, 1 if something has not, 130 if that is because it was stopped."""
    logs = Logs(config)
    if chosen.dry_run:
        plan, left = _prepare(config, chosen, logs)
        _show(plan)
        return NEEDS_OPERATOR if left or plan.unplaced else 0
    with logs.alone():
        start = time.monotonic()
        plan, left = _prepare(config, chosen, logs)
        if plan.unplaced:
            say(PROGRAM, "nothing was moved: name the domains that are to go, or more hosts with --to")
            return NEEDS_OPERATOR
        work = Evacuation(config, plan, logs, command=partial(_command, config, chosen), check=_checker(config, chosen), board=Board(PROGRAM))
        ended = [*(Ended(listed.name, Result.LEFT) for listed in left), *work.run()]
    _summarize(ended, time.monotonic() - start)
    if all(each.result is Result.MOVED for each in ended):
        return 0
    return _INTERRUPTED if work.stopped else NEEDS_OPERATOR


def _prepare(config: Config, chosen: argparse.Namespace, logs: Logs) -> tuple[Plan, list[Listed]]:
    """The plan, and the domains that are left alone; what stands in the way of either is said."""
    _require_peers(config, chosen)
    inquiry = Inquiry(config)
    going: list[Listed] = []
    left: list[Listed] = []
    for listed in _wanted(list_table(config), inquiry, chosen.domain):
        why = reason_to_stay(inquiry, listed, logs)
        if why:
            say(PROGRAM, f"{listed.name or 'a domain without a name'} is left alone: {why}")
        (left if why else going).append(listed)
    guests = [Guest(listed.name, bytes_needed(listed.memory, listed.vcpus)) for listed in going]
    plan = Plan(guests, _rooms(config, chosen) if guests else [], at_once=chosen.jobs)
    for guest in plan.unplaced:
        rooms = ", ".join(f"{host}: {size(free)}" for host, free in plan.free.items())
        say(PROGRAM, f"no room for {guest.name}, which needs {size(guest.need)}; beside the others there is ({rooms})")
    return plan, left


def _wanted(listed: Sequence[Listed], inquiry: Inquiry, names: Sequence[str]) -> list[Listed]:
    """The lines of the domains that were named, in their order; or all but this host's own, whose id is 0."""
    if not names:
        return [each for each in listed if each.id != 0]
    found: dict[int, Listed] = {}
    for name in dict.fromkeys(map(own_name, names)):
        its = [each for each in listed if each.name in (name, f"{name}{AWAY}", f"{name}{INCOMING}")]
        if any(each.id == 0 for each in its):
            raise UsageError(f"{printable(name)} is this host itself")
        if not its and not _has_gone(inquiry, name):
            raise no_domain(name)
        found.update({each.id: each for each in its})
    return list(found.values())


def _has_gone(inquiry: Inquiry, name: str) -> bool:
    """Whether it has been moved before, by an evacuation that was interrupted for one."""
    verdict = inquiry.verdict(name)
    gone = verdict.well and verdict.host != inquiry.host
    if gone:
        out(verdict.words)
    return gone


# ---- destinations


def _options(config: Config, chosen: argparse.Namespace, host: str) -> HostOptions:
    options = config.options_for(host)
    for assignment in chosen.option:
        options = with_option(options, assignment)
    return options


def _require_peers(config: Config, chosen: argparse.Namespace) -> None:
    """StateError for a host that is not known here, UsageError for one that was named twice."""
    peers = Peers(config)
    met: dict[str, str] = {}
    for host in chosen.to:
        name = find_route(config, peers, host, _options(config, chosen, host)).peer.name
        if name in met:
            raise UsageError(f"--to names {name} twice ({met[name]}, {host})")
        met[name] = host


def _checker(config: Config, chosen: argparse.Namespace) -> partial[HostReport]:
    return partial(_check, config, chosen, load_credentials(config))


def _check(config: Config, chosen: argparse.Namespace, credentials: Credentials, host: str) -> HostReport:
    """How that destination is; RefusedError if nothing can arrive there now."""
    report = check_destination(config, credentials, host, _options(config, chosen, host))
    if report.faults:
        raise RefusedError(f"nothing can arrive there: {report.faults[0]}", Reason.LOCAL_FAULT)
    if report.sessions >= report.sessions_max:
        raise RefusedError(f"{report.sessions} migrations are arriving there already", Reason.TOO_MANY)
    return report


def _rooms(config: Config, chosen: argparse.Namespace) -> list[Room]:
    """What each destination has to give; one of several that cannot be asked, or takes nothing, is left out and named."""
    check = _checker(config, chosen)
    rooms: list[Room] = []
    for host in chosen.to:
        try:
            report = check(host)
        except (PeerError, LinkError) as error:
            if len(chosen.to) == 1:
                raise
            say(PROGRAM, f"{host} is left out: {error}")
            continue
        sessions = report.sessions_max - report.sessions
        rooms.append(Room(host, report.memory_free, sessions))
    if not rooms:
        raise StateError("no destination is left; nothing was moved")
    return rooms


def _command(config: Config, chosen: argparse.Namespace, domain: str, host: str) -> list[str]:
    """The words of xl."""
    beside = Path(sys.argv[0]).absolute().with_name("xensecure")
    transport = [str(beside) if beside.exists() else "xensecure"]
    if Path(config.path).exists():
        transport += ["-F", str(Path(config.path).absolute())]
    transport += [word for assignment in chosen.option for word in ("-o", assignment)]
    switches = [*(["--live"] if chosen.live else []), *(["-p"] if chosen.paused else [])]
    return [config.xl, "migrate", *switches, "-s", shlex.join(transport), domain, host]


# ---- what is said


def _show(plan: Plan) -> None:
    for move in plan.waiting:
        out(f"{printable(move.guest.name)}: to {move.host}, {size(move.guest.need)}")
    for host, free in plan.free.items():
        out(f"{host}: {size(free)} free after that")


def _summarize(ended: Sequence[Ended], seconds: float) -> None:
    by_result = {result: [each for each in ended if each.result is result] for result in Result}
    moved = by_result.pop(Result.MOVED)
    hosts = ", ".join(f"{count} to {host}" for host, count in sorted(Counter(each.host for each in moved).items()))
    figures = f" ({hosts}): {size(sum(each.bytes for each in moved))} in {duration(seconds)}" if moved else ""
    out(f"{len(moved)} of {len(ended)} domains moved{figures}")
    for result, those in by_result.items():
        if those:
            out(f"{result.value}: {', '.join(printable(each.name) or 'a domain without a name' for each in those)}")
