"""``xensecurectl doctor``: what this host has, and whether it could receive a domain right now."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from OpenSSL import SSL

from .. import __version__
from ..link import hardening, store
from ..link.config import WILDCARDS, Config
from ..link.connection import Deadline, Target, Wire, connect, run_handshake
from ..link.engine import compiled_backends, find_backend
from ..link.identity import load_credentials
from ..link.peers import Peers
from ..proto import limits
from ..proto.errors import StateError, XensecureError
from ..proto.handshake import SourceHandshake, State
from ..proto.messages import Purpose, SourceHello
from ..proto.tls import offered_groups

_LISTENING = 0x10000  # __SO_ACCEPTCON, in the flags of /proc/net/unix (proc(5))
_HERE = {"::": "::1", "0.0.0.0": "127.0.0.1"}  # noqa: S104 - where a host that listens everywhere answers itself


def examine(config: Config) -> tuple[list[str], list[str]]:
    """What there is, a line each; and what is wrong, a line each with its remedy."""
    found, problems = [], []
    for check in _CHECKS:
        try:
            found.append(check(config))
        except XensecureError as error:
            problems.append(str(error))
    return found, problems


def _version(_config: Config) -> str:
    return f"xensecure {__version__}"


def _tls(_config: Config) -> str:
    return f"TLS: {SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode()}; groups {', '.join(offered_groups())}"


def _backends(_config: Config) -> str:
    return f"cipher backends built in: {', '.join(compiled_backends())}; the best on this CPU: {find_backend()}"


def _cipher(config: Config) -> str:
    return f"cipher in use: {find_backend(config.cipher)} ([engine] cipher = {config.cipher!r})"


def _configuration(config: Config) -> str:
    return f"configuration: {config.path}{'' if Path(config.path).exists() else ' (not there: defaults)'}"


def _identity(config: Config) -> str:
    return f"identity: {config.name}, pin {load_credentials(config).pin.hex()}"


def _state(config: Config) -> str:
    folders = [config.state, *(config.state / name for name in ("peers", "invitations"))]
    modes = []
    for folder in folders:
        store.require_private(folder)
        with contextlib.suppress(OSError):
            modes.append(f"{folder.name} {stat.S_IMODE(folder.stat().st_mode):04o}")
    peers = Peers(config)
    peers.require_private()
    if damaged := peers.damaged():
        raise StateError(damaged[0])
    if config.state.exists():
        with peers.locked():
            probe = config.state / "doctor"
            store.write_secret(probe, b"written to see whether there is room\n")
            store.remove(probe)
    return f"state: {config.state} ({', '.join(modes) or 'not there'}); peers: {len(peers.all())}"


def _receiving(config: Config) -> str:
    """What the launcher needs to start a receive."""
    if not os.access(config.xl, os.X_OK):
        raise StateError(f"{config.xl} cannot be run: no domain can arrive; set [receive] xl")
    user = f", receivers of user {hardening.find_user(config.user).pw_name}" if os.geteuid() == 0 else ""
    return f"xl: {config.xl}{user}"


def _launcher(config: Config) -> str:
    """Looked up, not connected to: the launcher would take us for an intruder."""
    path = config.launcher_socket
    for line in Path("/proc/net/unix").read_text("utf-8", "replace").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == str(path) and int(fields[3], 16) & _LISTENING:
            return f"launcher: listens on {path}"
    raise StateError(f"{path}: no launcher listens there; where domains are to arrive: systemctl start xensecure-launcher.socket")


def _port(config: Config) -> str:
    """A key exchange with ourselves, as far as anybody gets without a link key: port, receiver, its TLS key, and its launcher's challenge."""
    credentials = load_credentials(config)
    pin, names = (None, (config.name, *config.listen)) if config.trust == "ca" else (credentials.pin, ())
    hello = SourceHello(purpose=Purpose.MIGRATE, key_id=secrets.token_bytes(limits.KEY_ID_LEN))
    handshake = SourceHandshake(credentials=credentials, hello=hello, expected_pin=pin, accepted_names=names)
    deadline = Deadline(config.defaults.connect_timeout)
    addresses = tuple(_HERE[address] if address in WILDCARDS else address for address in config.listen)
    with contextlib.closing(connect(Target(addresses=addresses, port=config.port), deadline)) as sock:
        handshake.start()
        run_handshake(Wire(sock, deadline), handshake, State.WAIT_LINK_KEY)
    return f"port {config.port}: a receiver and its launcher answer, by {handshake.tls.group_name}"


_CHECKS: tuple[Callable[[Config], str], ...] = (_version, _tls, _backends, _cipher, _configuration, _identity, _state, _receiving, _launcher, _port)
