"""``xensecurectl policy check``: what the admission policy, here or at another host, would say to a domain. Nothing is started, nobody is told."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from ..destination.admission import judge_domain
from ..destination.memory import known_room
from ..link.config import Config
from ..link.identity import load_credentials
from ..link.peers import Peers
from ..link.say import say
from ..link.xl import domain_configuration, run_xl
from ..proto.domain import configuration, domain_name
from ..proto.errors import ProtocolError, Reason, RefusedError, StateError, SystemFailure, UsageError
from ..proto.messages import printable
from ..source.check import check_destination
from .common import out

PROGRAM = "xensecurectl"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """What follows ``xensecurectl policy``."""
    command.add_argument("check", choices=["check"], help="whether a domain may come, and if not, by which rule")
    command.add_argument("domain", metavar="FILE|DOMAIN", help="a file in xl.cfg(5)'s format (a path, or one that is there), or a domain here")
    place = command.add_mutually_exclusive_group()
    place.add_argument("--to", metavar="HOST", help="ask that host (default: this host's own policy)")
    place.add_argument("--from", dest="sender", default="", metavar="PEER", help="as if that peer sent it here (default: one without a section)")


def policy(config: Config, chosen: argparse.Namespace) -> int:
    """The command; RefusedError with key, value and rule if the domain would be refused."""
    head = _head_of(config, chosen.domain)
    name = domain_name(head)
    if chosen.to is None:
        if chosen.sender and chosen.sender not in config.peer_policies and Peers(config).find(chosen.sender) is None:
            raise StateError(f"no peer {printable(chosen.sender)!r} is known here; 'xensecurectl peers' lists them")
        rules = config.policy_for(chosen.sender)
        judge_domain(config, chosen.sender, head, known_room(config) if rules.looks and rules.free_memory == "on" else None)
        out(f"{name} may come" if rules.looks else f"{name} may come: {rules.where('check')} is off, and nothing was looked at")
        return 0
    report = check_destination(config, load_credentials(config), chosen.to, config.options_for(chosen.to), head)
    for fault in report.faults:
        say(PROGRAM, f"{chosen.to}: {fault}")
    if report.refusal:
        raise RefusedError(f"{chosen.to}: {report.refusal}", Reason.NOT_ALLOWED)
    out(f"{name} may go to {chosen.to}")
    return 0


def _head_of(config: Config, domain: str) -> bytes:
    """The configuration of a domain or of a file, as xl would send it: libxl's JSON."""
    if not os.path.isfile(domain):  # noqa: PTH113 - False also of what cannot be looked at, where Path.is_file() raises
        if "/" not in domain:
            return json.dumps(domain_configuration(config, domain)).encode()
        raise UsageError(f"{printable(domain)}: no file that can be read; give one in xl.cfg(5)'s format, or a domain's name")
    text = run_xl(config, "create", "-q", "-n", str(Path(domain).absolute()))  # parsed by xl, and nothing made of it
    head = text[text.find("{") :].strip().encode()
    try:
        configuration(head)
    except ProtocolError:
        raise SystemFailure(f"'xl create -n {domain}' prints no JSON; is output_format in /etc/xen/xl.conf \"json\"?") from None
    return head
