"""``xensecurectl``: what an administrator does once, or now and then."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import re
import sys
import time
from collections.abc import Callable

from ..destination.invite import default_addresses, make_token
from ..link import hardening
from ..link.config import Config, load_config
from ..link.events import Event, Events
from ..link.identity import load_credentials, make_identity
from ..link.keys import is_address
from ..link.openmetrics import render, renew
from ..link.peers import Peer, Peers
from ..link.roles import Role
from ..link.say import say
from ..proto import limits
from ..proto.errors import AuthenticationError, StateError, SystemFailure, UsageError
from ..proto.token import Token
from ..source.pairing import fetch_token, join, rotate
from .common import out, parser, run
from .doctor import doctor
from .evacuate import add_arguments as add_evacuate_arguments
from .evacuate import evacuate
from .history import history
from .policy import add_arguments as add_policy_arguments
from .policy import policy
from .resume import resume
from .status import status

PROGRAM = "xensecurectl"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _init(config: Config, _chosen: argparse.Namespace) -> int:
    made = make_identity(config)
    pin = load_credentials(config).pin.hex()
    out(f"{config.name}: {'new identity' if made else 'identity was there already'} in {config.state}\npin {pin}")
    return 0


def _invite(config: Config, chosen: argparse.Namespace) -> int:
    if chosen.address and len(chosen.address) > limits.ADDRESSES_MAX:
        raise UsageError(f"--address is given {len(chosen.address)} times; a token has room for at most {limits.ADDRESSES_MAX} addresses")
    addresses = tuple(chosen.address) if chosen.address else default_addresses(config)
    token = make_token(config, ttl=_seconds(chosen.ttl), addresses=addresses)
    out(token.encode())
    until = _moment(token.expiry)
    say(PROGRAM, f"works once, until {until}; on the other host: xensecurectl join TOKEN (or '-' and paste it, so that it stands in no process list)")
    return 0


def _moment(seconds: int) -> str:
    """A point in time as people read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds)) if seconds else "never"


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    seconds = int(found[1]) * _UNITS[found[2] or "s"] if found else 0
    if not 0 < seconds <= limits.TOKEN_TTL_MAX_SECONDS:
        raise UsageError(f"--ttl {text!r}: give seconds, or a number with s, m, h or d, of at most 7 days")
    return seconds


def _withdraw(config: Config, _chosen: argparse.Namespace) -> int:
    peers = Peers(config)
    with peers.locked():
        count = peers.withdraw_open()
    out("1 token that nobody has used yet works no more" if count == 1 else f"{count} tokens that nobody has used yet work no more")
    return 0


def _join(config: Config, chosen: argparse.Namespace) -> int:
    text = chosen.token
    if text == "-":
        text = sys.stdin.readline()
    return _met(join(config, Token.decode(text)), config)


def _met(peer: Peer, config: Config) -> int:
    _events(config, peer).emit(Event.PAIRED)
    where = ", ".join(peer.contact.addresses)
    out(f"{config.name} and {peer.name} ({where}, port {peer.contact.port}) share a link key now; try: xl migrate -s xensecure DOMAIN {peer.name}")
    return 0


def _events(config: Config, peer: Peer) -> Events:
    events = Events(config, PROGRAM)
    events.knows(peer=peer.name, address=" ".join(peer.contact.addresses))
    return events


def _enroll(config: Config, chosen: argparse.Namespace) -> int:
    token = fetch_token(chosen.ssh, chosen.ssh_option or [], chosen.remote_command)
    return _met(join(config, token), config)


def _peers(config: Config, chosen: argparse.Namespace) -> int:
    stored = Peers(config)
    peers, damaged = stored.all(), stored.damaged()
    if chosen.json:
        out(json.dumps([_described(peer) for peer in peers]))
    elif not peers and not damaged:
        out("no peers yet; 'xensecurectl invite' on one host, 'xensecurectl join TOKEN' on the other")
    for peer in peers if not chosen.json else []:
        generation = "/".join(str(key.generation) for key in peer.keys)
        where = f"{','.join(peer.contact.addresses):30} port {peer.contact.port:<6}"
        out(f"{peer.name:20} {where} key generation {generation}, {_age(peer.rotated or peer.since)} old")
    return StateError.exit_code if damaged else 0


def _described(peer: Peer) -> dict[str, object]:
    """A peer without its secrets."""
    return {
        "name": peer.name,
        "addresses": list(peer.contact.addresses),
        "port": peer.contact.port,
        "pin": peer.pin.hex(),
        "keys": [{"generation": key.generation, "id": key.id.hex()} for key in peer.keys],
        "since": peer.since,
        "rotated": peer.rotated,
    }


def _age(moment: int) -> str:
    days, rest = divmod(max(0, int(time.time()) - moment), 86400)
    return f"{days} d" if days else f"{rest // 3600} h" if rest >= 3600 else f"{rest // 60} min"


def _show(config: Config, chosen: argparse.Namespace) -> int:
    if chosen.host is None:
        addresses: list[str] = []
        with contextlib.suppress(StateError):  # a host without one, or without the library that lists them
            addresses = list(default_addresses(config))
        contact = {"name": config.name, "port": config.port, "addresses": addresses}
        shown = {**contact, "pin": load_credentials(config).pin.hex(), "configuration": config.path, "state": str(config.state)}
    else:
        shown = _described(_known(config, chosen.host))
    if chosen.json:
        out(json.dumps(shown))
        return 0
    shown.update({name: _moment(moment) for name, moment in shown.items() if name in ("since", "rotated") and isinstance(moment, int)})
    for name, value in shown.items():
        out(f"{name}: {_plain(value)}")
    return 0


def _plain(value: object) -> str:
    if isinstance(value, list):
        return "none" if not value else ", ".join(_plain(item) for item in value)
    if isinstance(value, dict):
        return f"generation {value['generation']} (id {value['id']})"
    return str(value)


def _known(config: Config, host: str) -> Peer:
    peer = Peers(config).find(config.options_for(host).peer or host)
    if peer is None:
        raise StateError(f"no peer {host!r} is known here; 'xensecurectl peers' lists them")
    return peer


def _rotate(config: Config, chosen: argparse.Namespace) -> int:
    peer = rotate(config, chosen.host)
    _events(config, peer).emit(Event.ROTATED)
    out(f"{config.name} and {peer.name} share a new link key, generation {peer.keys[-1].generation}; the old one is gone on both hosts")
    return 0


def _forget(config: Config, chosen: argparse.Namespace) -> int:
    peers = Peers(config)
    # By its very name a peer goes without being read: its file may be damaged, and this the remedy.
    name = chosen.host if peers.has_file(chosen.host) else _known(config, chosen.host).name
    with peers.locked():
        peers.forget(name)
    Events(config, PROGRAM).emit(Event.FORGOTTEN, peer=name)
    out(f"{name} is forgotten here: nothing it sends is accepted any more; run 'xensecurectl forget {config.name}' there too")
    return 0


def _metrics(config: Config, chosen: argparse.Namespace) -> int:
    if not chosen.write:
        out(render(config).removesuffix("\n"))
    elif config.metrics == "off":
        raise UsageError("--write: set [log] metrics to the file first")
    else:
        try:
            renew(config, 0.0)
        except OSError as error:
            raise SystemFailure(f"{error.filename}: {error.strerror}; see [log] metrics") from None
    return 0


def _arguments() -> argparse.ArgumentParser:
    options = parser(PROGRAM, "Make hosts known to each other, and look after their link keys.")
    commands = options.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, body: Callable[[Config, argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(body=body)
        return command

    add("init", _init, "make this host's identity (TLS key and certificate) unless it is there")
    invite = add("invite", _invite, "print a token with which one other host may join, once")
    invite.add_argument("--ttl", default=str(limits.TOKEN_TTL_SECONDS), help="how long it works: 600, 30m, 2h (default 600 seconds)")
    where = "where this host answers (repeat for several; default: its own addresses)"
    invite.add_argument("--address", action="append", type=_address, metavar="ADDRESS", help=where)
    add("withdraw", _withdraw, "make every token of this host's that nobody has used yet worthless")
    joining = add("join", _join, "meet the host that printed the token")
    joining.add_argument("token", metavar="TOKEN", help="xs1:…, or '-' to read it from standard input")
    enroll = add("enroll", _enroll, "meet another host over the ssh trust that is there")
    enroll.add_argument("--ssh", required=True, metavar="[USER@]HOST", help="whom to ask for a token")
    enroll.add_argument("-o", "--ssh-option", action="append", metavar="OPTION", help="passed to ssh with -o")
    what = "what makes the token there (default: xensecurectl invite)"
    enroll.add_argument("--remote-command", default="xensecurectl invite", metavar="COMMAND", help=what)
    for name, body, text in (("peers", _peers, "list the hosts that this one has met"), ("show", _show, "show this host, or a peer")):
        command = add(name, body, text)
        command.add_argument("--json", action="store_true", help="for programs")
        if name == "show":
            command.add_argument("host", nargs="?", metavar="HOST", help="a peer's name or address")
    for name, body, text in (
        ("rotate", _rotate, "make and prove a new link key with a peer"),
        ("forget", _forget, "end the trust in a peer on this host"),
    ):
        add(name, body, text).add_argument("host", metavar="HOST", help="a peer's name or address")
    for name, body, text in (
        ("status", status, "say what runs, and where a domain is: on what evidence, and what sets it right"),
        ("history", history, "list the migrations of this host"),
    ):
        command = add(name, body, text)
        command.add_argument("domain", nargs="?", metavar="DOMAIN", help="a domain's name")
        command.add_argument("--json", action="store_true", help="for programs")
        if name == "history":
            command.add_argument("-n", dest="number", type=_count, default=20, metavar="N", help="the newest N (default 20; 0: all)")
    bring = add("resume", resume, "let a domain run again that a migration has left suspended here, if it runs nowhere else")
    bring.add_argument("domain", metavar="DOMAIN", help="the name that it had before")
    bring.add_argument("--force", metavar="REASON", help="why it is certain that it runs nowhere else, where this host cannot know")
    add_policy_arguments(add("policy", policy, "say whether the admission policy, here or at another host, would let a domain come"))
    add_evacuate_arguments(add("evacuate", evacuate, "move domains to other hosts, several at once: all that run here, or those named"))
    metrics = add("metrics", _metrics, "print what this host counts, as OpenMetrics text")
    metrics.add_argument("--write", action="store_true", help="renew the file of [log] metrics instead")
    examine = add("doctor", doctor, "say what this host has, and what stands in the way of receiving a domain, or of sending one to HOST")
    examine.add_argument("host", nargs="?", metavar="HOST", help="a peer's name or address: also ask it how it is, and look at the way there")
    examine.add_argument("--domain", metavar="DOMAIN", help="a domain here: also whether HOST would take it")
    examine.add_argument("--json", action="store_true", help="for programs")
    return options


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of migrations")
    return int(text)


def _address(text: str) -> str:
    """An address for a token: an IP address, or a name that the other host can resolve."""
    if not is_address(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no address and no host name")
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(text))
    return text


def main() -> int:
    """The command."""

    def body() -> int:
        chosen = _arguments().parse_args()
        hardening.no_core_dumps()
        hardening.hide_memory()
        config = load_config(chosen.config)
        try:
            done: int = chosen.body(config, chosen)
        except AuthenticationError as error:
            # Only what connects to a peer raises it: this host is the source of that connection.
            Events(config, PROGRAM, Role.SOURCE).emit(Event.AUTHENTICATION_FAILED, cause=error.cause, why=str(error))
            raise
        return done

    return run(PROGRAM, body)


