"""``xensecurectl doctor``, this host: what it has, and whether it could send or receive a domain right now."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from OpenSSL import SSL, crypto

from .. import __version__
from ..destination.launcher import goes_by_older
from ..link import hardening, store
from ..link.config import WILDCARDS, Config
from ..link.connection import Deadline, Target, Wire, connect, run_handshake
from ..link.engine import compiled_backends, find_backend, measure_cipher
from ..link.hooks import Point, find_hooks
from ..link.identity import load_credentials
from ..link.peers import Peer, Peers
from ..link.xl import XenInfo, xl_info
from ..proto import limits
from ..proto.errors import StateError
from ..proto.handshake import SourceHandshake, State
from ..proto.messages import Purpose, SourceHello
from ..proto.tls import offered_groups
from .findings import Examination

_LISTENING = 0x10000  # __SO_ACCEPTCON, in the flags of /proc/net/unix (proc(5))
_HERE = {"::": "::1", "0.0.0.0": "127.0.0.1"}  # noqa: S104 - where a host that listens everywhere answers itself
_MEASURED_SECONDS = 0.1  # some hundred frames: exact to a few per cent
_SLOW_CIPHER = 1e9  # bytes a second: 10 Gbit/s less its own headers; every CPU with AES instructions seals more
_DAY = 86400  # seconds
_SENDING = (Point.PRE_SEND, Point.POST_SEND, Point.FAILED)
_RUN_INIT = "run 'xensecurectl init' as root"


def examine_sender(found: Examination, config: Config) -> None:
    """What a host needs to send: itself, its configuration, state and hooks."""
    found.fact("version", f"xensecure {__version__}", __version__)
    _tls(found)
    _cipher(found, config)
    there = Path(config.path).exists()
    found.fact("configuration", f"configuration: {config.path}{'' if there else ' (not there: defaults)'}", {"path": config.path, "exists": there})
    with found.check("identity", _RUN_INIT):
        _identity(found, config)
    with found.check("state", "look at the folder's owner, mode and free space"):
        _state(found, config)
    _log(found, config)


def examine_receiver(found: Examination, config: Config) -> None:
    """What it needs beside that for a domain to arrive."""
    with found.check("xl", "set [receive] xl"):
        _xl(found, config)
    with found.check("launcher", "systemctl start xensecure-launcher.socket"):
        _launcher(found, config)
    if not found.has("identity"):  # without one of its own there is nothing to meet the port with, and that is said already
        with found.check("port", "systemctl status xensecured.socket"):
            _port(found, config)


def examine_hooks(found: Examination, config: Config, *, sending: bool) -> None:
    """The operator's hooks, of the points that matter: what cannot be trusted refuses, or is not run."""
    for point in _SENDING if sending else Point:
        with found.check("hooks", "chown root and chmod go-w it and the folders above it"):
            find_hooks(config.hooks, point)


def examine_key(found: Examination, peer: Peer, now: float) -> None:
    """The link key with a peer: its age, and a renewal that was never finished. ``now``: seconds since 1970."""
    made = peer.rotated or peer.since
    days = int(max(0.0, now - made) // _DAY)
    generation = peer.keys[0].generation
    text = f"link key with {peer.name}: generation {generation}, {days} d old"
    found.fact("key", text, {"peer": peer.name, "generation": generation, "made": made})
    if days >= limits.LINK_KEY_AGE_DAYS:
        found.find("key-age", f"the link key with {peer.name} is {days} days old", f"xensecurectl rotate {peer.name}")
    if len(peer.keys) > 1:
        text = f"a new link key with {peer.name} was made and has not been used yet"
        found.find("key-renewal", text, f"xensecurectl rotate {peer.name} finishes it")


def examine_peers(found: Examination, config: Config) -> None:
    """The link keys with all peers, and sections of the configuration that are for none of them."""
    if found.has("state"):
        return
    with found.check("state", "restore it"):
        peers = Peers(config)
        for peer in peers.all():
            examine_key(found, peer, time.time())
        for host, options in config.hosts.items():
            if not any(peers.find(name) for name in (options.peer or host, *options.address)):
                text = f"[host.{host}] of {config.path} is for no host that this one has met"
                found.find("configuration", text, "is the name mistyped? It is what follows the domain in 'xl migrate', or else pair with it")
        for name in config.peer_policies:
            if peers.get(name) is None:
                text = f"[policy.peer.{name}] of {config.path} is for no host that this one has met"
                found.find("configuration", text, "is the name mistyped? 'xensecurectl peers' has those that count, or else pair with it")


def _tls(found: Examination) -> None:
    library, groups = SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode(), offered_groups()
    found.fact("tls", f"TLS: {library}; groups {', '.join(groups)}", {"library": library, "groups": groups})


def _cipher(found: Examination, config: Config) -> None:
    built, best = compiled_backends(), find_backend()
    found.fact("ciphers", f"cipher backends built in: {', '.join(built)}; the best on this CPU: {best}", {"built": built, "best": best})
    with found.check("cipher", "set [engine] cipher to 'auto'"):
        used = find_backend(config.cipher)
        found.fact("cipher", f"cipher in use: {used} ([engine] cipher = {config.cipher!r})", used)
        speed = measure_cipher(config.cipher, _MEASURED_SECONDS)
        found.fact("cipher-speed", f"cipher speed: {speed / 1e9:.1f} GB/s on one core", int(speed))
        if speed < _SLOW_CIPHER:
            remedy = "take a CPU with AES instructions, or let this virtual machine see those that its host has"
            found.find("cipher-slow", f"this host encrypts {speed / 1e9:.2f} GB/s, less than a line of 10 Gbit/s carries", remedy)


def _identity(found: Examination, config: Config) -> None:
    pin = load_credentials(config).pin.hex()
    found.fact("identity", f"identity: {config.name}, pin {pin}", {"name": config.name, "pin": pin, "trust": config.trust})
    if config.trust == "ca":
        examine_certificate(found, load_credentials(config).certificate, time.time())


def examine_certificate(found: Examination, certificate: crypto.X509, now: float) -> None:
    """CA mode: the dates of this host's certificate. ``now``: seconds since 1970."""
    begins, ends = (_moment(written) for written in (certificate.get_notBefore(), certificate.get_notAfter()))
    shown = [datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") for moment in (begins, ends)]
    found.fact("certificate", f"certificate: valid from {shown[0]} to {shown[1]}", {"not_before": int(begins), "not_after": int(ends)})
    if now < begins:
        found.find("certificate", f"this host's certificate is valid from {shown[0]} on", "set this host's clock, or wait")
    elif now >= ends:
        found.find("certificate", f"this host's certificate has expired on {shown[1]}", "have the CA make a new one: [trust] certificate")
    elif now >= ends - limits.CERTIFICATE_LEFT_DAYS * _DAY:
        found.find("certificate-expires", f"this host's certificate expires on {shown[1]}", "have the CA make a new one: [trust] certificate")


def _moment(written: bytes | None) -> float:
    """A date as OpenSSL gives it, YYYYMMDDhhmmssZ, in seconds since 1970."""
    return datetime.strptime((written or b"").decode("ascii"), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _state(found: Examination, config: Config) -> None:
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
    number = len(peers.all())
    text = f"state: {config.state} ({', '.join(modes) or 'not there'}); peers: {number}"
    found.fact("state", text, {"path": str(config.state), "peers": number})


def _log(found: Examination, config: Config) -> None:
    """The folders of the files in [log]: nobody else makes them."""
    for key, where in (("events", config.events), ("metrics", config.metrics)):
        folder = Path(where).parent
        if where.startswith("/") and not (folder.is_dir() and os.access(folder, os.W_OK)):
            text = f"[log] {key}: {where} cannot be written: {folder} {'is not writable' if folder.exists() else 'is not there'}"
            found.find("log", text, f"install -d -m 755 {folder}")


def _xl(found: Examination, config: Config) -> None:
    """What the launcher needs to start a receive: the program, the receivers' user, and a Xen that answers."""
    if not os.access(config.xl, os.X_OK):
        raise StateError(f"{config.xl} cannot be run: no domain can arrive; set [receive] xl")
    user = ""
    with found.check("user", "see Install in docs/operations.md"):
        user = f", receivers of user {hardening.find_user(config.user).pw_name}" if os.geteuid() == 0 else ""
    found.fact("xl", f"xl: {config.xl}{user}", config.xl)
    examine_xen(found, config)


def examine_xen(found: Examination, config: Config) -> XenInfo:
    """The hypervisor here; SystemFailure if xl does not say."""
    info = xl_info(config)
    text = f"Xen: {info.version}, {info.cpus} CPUs, {info.memory_free >> 20} of {info.memory_total >> 20} MiB free"
    found.fact("xen", text, asdict(info))
    return info


def _launcher(found: Examination, config: Config) -> None:
    """Looked up, not connected to: the launcher would take us for an intruder."""
    path = config.launcher_socket
    for line in Path("/proc/net/unix").read_text("utf-8", "replace").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == str(path) and int(fields[3], 16) & _LISTENING:
            found.fact("launcher", f"launcher: listens on {path}", str(path))
            if goes_by_older(config):
                text = f"{config.path} has changed, or xensecure was upgraded, since the launcher has begun: it goes by what it found then"
                found.find("launcher-configuration", text, "systemctl restart xensecure-launcher (sessions go on)")
            return
    raise StateError(f"{path}: no launcher listens there; where domains are to arrive: systemctl start xensecure-launcher.socket")


def _port(found: Examination, config: Config) -> None:
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
    group = handshake.tls.group_name
    text = f"port {config.port}: a receiver and its launcher answer, by {group}"
    found.fact("port", text, {"port": config.port, "group": group})
