"""The configuration file: /etc/xensecure/xensecure.toml, or the one that --config or XENSECURE_CONFIG names.

``SCHEMA`` is the whole truth about what may stand in it; docs/operations.md and the sample configuration are tested against it.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import socket
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..proto import limits
from ..proto.errors import ConfigurationError, UsageError
from ..proto.policy import Policy
from .keys import (
    ADDRESS_PATTERN,
    NAME_PATTERN,
    RUN_MAX,
    Key,
    absolute,
    absolute_or,
    absolute_path,
    absolute_patterns,
    absolutes,
    addresses,
    between,
    boolean,
    domain_keys,
    final_window,
    interface,
    ip,
    ips,
    mebibytes,
    most,
    one_of,
    patterns,
    peer_name,
    rate,
    run_path,
    user_name,
)

DEFAULT_PATH = "/etc/xensecure/xensecure.toml"
ENVIRONMENT = "XENSECURE_CONFIG"

WILDCARDS = ("::", "0.0.0.0")  # noqa: S104 - a receiver is there to be reached; who may send is proved, not addressed

_NEED_NAME = "letters, digits, '.', '_' and '-' only"


@dataclass(frozen=True)
class HostOptions:
    """How to reach one host, and how to behave meanwhile; each can be set in [host.NAME], on the command line, and most in [defaults]."""

    peer: str = ""
    address: tuple[str, ...] = ()
    port: int = 0
    bind: str = ""
    family: str = "any"
    quiet: bool = False
    verbose: int = 0
    connect_timeout: int = int(limits.HANDSHAKE_SECONDS)
    keepalive: int = int(limits.KEEPALIVE_SECONDS)
    silence: int = int(limits.SILENCE_SECONDS)
    resume_window: int = int(limits.RESUME_SECONDS)
    final_window: int = int(limits.FINAL_SECONDS)
    elide: str = "on"
    compress: str = "off"
    bwlimit: int = 0  # bytes a second; 0: none
    lanes: int = 1
    neighbour: str = "report"
    interface: str = ""


@dataclass(frozen=True)
class Config:
    """The configuration, with defaults where the file says nothing."""

    path: str
    state: Path = Path("/var/lib/xensecure")
    run: Path = Path("/run/xensecure")
    hooks: Path = Path("/etc/xensecure/hooks.d")
    name: str = ""
    trust: str = "pin"
    ca: str = ""
    certificate: str = ""
    key: str = ""
    listen: tuple[str, ...] = WILDCARDS
    port: int = limits.PORT
    xl: str = "/usr/sbin/xl"
    user: str = "_xensecure"
    sessions: int = limits.SESSIONS_MAX
    coloft_scripts: tuple[str, ...] = ()
    window: int = limits.WINDOW
    lanes: int = limits.LANES_MAX
    cipher: str = "auto"
    hook_timeout: int = int(limits.HOOK_SECONDS)
    policy: Policy = field(default_factory=Policy)
    peer_policies: Mapping[str, Policy] = field(default_factory=dict)
    events: str = "journal"
    metrics: str = "off"
    defaults: HostOptions = field(default_factory=HostOptions)
    hosts: Mapping[str, HostOptions] = field(default_factory=dict)

    @property
    def launcher_socket(self) -> Path:
        """Where launcher and receivers meet."""
        return self.run / "launcher.sock"

    @property
    def launcher_digest(self) -> str:
        """SHA-256, in hexadecimal, of all that a launcher goes by: the release, and every key but a source's, a listener's and the file's name."""
        others: dict[str, Any] = {"path": "", "listen": (), "port": 0, "defaults": HostOptions(), "hosts": {}}
        peers = dict(sorted(self.peer_policies.items()))
        return hashlib.sha256(f"{__version__} {replace(self, **others, peer_policies=peers)!r}".encode()).hexdigest()

    def options_for(self, host: str) -> HostOptions:
        """The options for a host as it was named (in any case, as in ssh_config and DNS), before the command line's."""
        return self.hosts.get(host) or self.hosts.get(host.lower(), self.defaults)

    def policy_for(self, peer: str) -> Policy:
        """What a peer, by the name under which it was paired, may send here; "" for one that has no section of its own."""
        return self.peer_policies.get(peer, self.policy)


_RATE_WORDS = "'off' or bytes a second: 65536 or more, as a number or with K, M or G for KiB, MiB or GiB ('800M')"
_LANES = Key("lanes", f"1 to {limits.LANES_MAX}", between(1, limits.LANES_MAX))
_PORT = Key("port", "a port, 1 to 65535", between(1, 65535))

HOST_KEYS: dict[str, Key] = {
    "peer": Key("peer", f"the peer's name: {_NEED_NAME}", peer_name),
    "address": Key("address", "an IP address or a name without a port, or a list of up to 8", addresses),
    "port": _PORT,
    "bind": Key("bind", "an IP address of this host", ip),
    "family": Key("family", "'any', 'inet' or 'inet6'", one_of("any", "inet", "inet6")),
    "quiet": Key("quiet", "true or false", boolean),
    "verbose": Key("verbose", "0 to 3", between(0, 3)),
    "connect_timeout": Key("connect_timeout", "seconds, 1 to 600", between(1, 600)),
    "keepalive": Key("keepalive", "seconds, 1 to 3600", between(1, 3600)),
    "silence": Key("silence", "seconds, 2 to 86400", between(2, 86400)),
    "resume_window": Key("resume_window", "seconds, 0 to 86400", between(0, 86400)),
    "final_window": Key("final_window", "seconds, 1 or more, or 'endless'", final_window),
    "elide": Key("elide", "'on' or 'off'", one_of("on", "off")),
    "compress": Key("compress", "'off', 'auto' or 'zstd'", one_of("off", "auto", "zstd")),
    "bwlimit": Key("bwlimit", _RATE_WORDS, rate),
    "lanes": _LANES,
    "neighbour": Key("neighbour", "'report', 'refuse' or 'off'", one_of("report", "refuse", "off")),
    "interface": Key("interface", "a network interface's name, or '' for any", interface),
}

_ON_OFF = Key("", "'on' or 'off'", one_of("on", "off"))
_DOMAIN_KEYS = "a list of KEY or KEY=PATTERN, KEY as in libxl's JSON ('b_info.kernel')"

POLICY_KEYS: dict[str, Key] = {
    "check": replace(_ON_OFF, target="check"),
    "send": Key("send", "true or false", boolean),
    "names": Key("names", "a list of patterns", patterns),
    "memory": Key("memory", "'off' or MiB of one domain, as a number or with G or T ('64G')", mebibytes),
    "vcpus": Key("vcpus", f"'off' or 1 to {limits.POLICY_VCPUS_MAX}", most(limits.POLICY_VCPUS_MAX)),
    "domains": Key("domains", f"'off' or 1 to {limits.POLICY_DOMAINS_MAX}", most(limits.POLICY_DOMAINS_MAX)),
    "free_memory": replace(_ON_OFF, target="free_memory"),
    "disks": Key("disks", "a list of patterns", patterns),
    "bridges": Key("bridges", "a list of patterns", patterns),
    "kernels": Key("kernels", "a list of patterns", patterns),
    "device_models": Key("device_models", "a list of absolute paths or patterns", absolute_patterns),
    "bootloaders": Key("bootloaders", "a list of patterns", patterns),
    "scripts": Key("scripts", "a list of absolute paths or patterns", absolute_patterns),
    "allow": Key("allow", _DOMAIN_KEYS, domain_keys),
    "forbid": Key("forbid", _DOMAIN_KEYS, domain_keys),
}

SCHEMA: dict[str, dict[str, Key]] = {
    "paths": {
        "state": Key("state", "an absolute path", absolute_path),
        "run": Key("run", f"an absolute path of at most {RUN_MAX} bytes (a socket's path is short)", run_path),
        "hooks": Key("hooks", "an absolute path", absolute_path),
    },
    "identity": {"name": Key("name", f"this host's name: {_NEED_NAME}", peer_name)},
    "trust": {
        "mode": Key("trust", "'pin' or 'ca'", one_of("pin", "ca")),
        "ca": Key("ca", "an absolute path (PEM)", absolute),
        "certificate": Key("certificate", "an absolute path (PEM)", absolute),
        "key": Key("key", "an absolute path (PEM)", absolute),
    },
    "listen": {
        "addresses": Key("listen", "an IP address, or a list of up to 8", ips),
        "port": _PORT,
    },
    "receive": {
        "xl": Key("xl", "an absolute path", absolute),
        "user": Key("user", "a user's name", user_name),
        "sessions": Key("sessions", "1 to 4096", between(1, 4096)),
        "coloft_scripts": Key("coloft_scripts", "a list of absolute paths", absolutes),
        "window": Key("window", "bytes, 65536 to 67108864", between(limits.WINDOW_MIN, limits.WINDOW)),
        "lanes": _LANES,
    },
    "engine": {"cipher": Key("cipher", "'auto', 'libcrypto' or 'ipsec-mb'", one_of("auto", "libcrypto", "ipsec-mb"))},
    "hooks": {"timeout": Key("hook_timeout", "seconds, 1 to 600", between(1, 600))},
    "log": {
        "events": Key("events", "'journal', 'off' or an absolute path", absolute_or("journal", "off")),
        "metrics": Key("metrics", "'off' or an absolute path", absolute_or("off")),
    },
    "policy": POLICY_KEYS,
    # Which host and where it is cannot be the same for all.
    "defaults": {name: key for name, key in HOST_KEYS.items() if name not in ("peer", "address")},
}


def config_path(option: str | None) -> tuple[str, bool]:
    """The file to read, and whether somebody asked for it (then it must exist)."""
    named = option or os.environ.get(ENVIRONMENT)
    return (named, True) if named else (DEFAULT_PATH, False)


def load_config(option: str | None = None) -> Config:
    """Read and check the configuration; ConfigurationError with file and line if anything is wrong."""
    path, required = config_path(option)
    try:
        with open(path, "rb") as stream:
            status = os.fstat(stream.fileno())
            data = stream.read()
    except FileNotFoundError:
        if required:
            raise ConfigurationError(f"{path}: no such file; name the configuration with --config or {ENVIRONMENT}") from None
        return _complete(Config(path=path))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    _check_status(path, status)
    try:
        text = data.decode("utf-8-sig")  # editors on other systems put a byte order mark in front
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}:{1 + data.count(10, 0, error.start)}: not UTF-8 text; save the file as UTF-8") from None
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{_toml_place(path, text, str(error))}; see xensecure(1) for the format") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets in thousands
        raise ConfigurationError(f"{path}: a value is too long or too deep for any key; see xensecure(1) for the format") from None
    return _complete(_Reading(path, text).config(tables))


def _check_status(path: str, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISREG(status.st_mode) and status.st_uid not in (0, os.geteuid()):
        raise ConfigurationError(f"{path}:1: belongs to user {status.st_uid}; chown it to root or to whoever runs this, for it names what root runs")
    if mode & 0o022:
        raise ConfigurationError(f"{path}:1: others can write to it (mode {mode:04o}); chmod go-w it, for it names what root runs")


def _toml_place(path: str, text: str, problem: str) -> str:
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", problem)
    if found is None:
        return f"{path}: {problem}"
    return f"{path}:{found[2] or len(text.rstrip().split(chr(10)))}: {found[1]}"


def _complete(config: Config) -> Config:
    """Fill in what follows from the rest, and check what hangs together."""
    if not config.name:
        name = socket.gethostname()
        if not NAME_PATTERN.fullmatch(name):
            raise ConfigurationError(f"{config.path}: this host's name {name!r} cannot be used; set [identity] name ({_NEED_NAME})")
        config = replace(config, name=name)
    return config


class _Reading:
    """One file being turned into a Config; knows at which line a key stands."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._lines = text.replace("\r\n", "\n").split("\n")

    def _error(self, where: tuple[str, ...], problem: str) -> ConfigurationError:
        return ConfigurationError(f"{self._path}:{self._line_of(where)}: {problem}")

    def _line_of(self, where: tuple[str, ...]) -> int:
        """The line of the statement that first names a table or key, in whichever of TOML's ways: that with which the file begins to have it."""
        start = 1
        for number in range(1, len(self._lines) + 1):
            try:
                node: Any = tomllib.loads("\n".join(self._lines[:number]))
            except tomllib.TOMLDecodeError:
                continue  # in the middle of a statement of several lines
            for name in where:
                node = node.get(name) if isinstance(node, dict) else None
            if node is not None:
                break
            start = number + 1
        return start

    def config(self, tables: dict[str, Any]) -> Config:
        """The Config; ConfigurationError at the first thing that is wrong."""
        values: dict[str, Any] = {}
        for section, content in tables.items():
            if section == "host" or (section == "policy" and isinstance(content, dict)):
                continue
            keys = SCHEMA.get(section)
            if keys is None or not isinstance(content, dict):
                known = ", ".join(f"[{name}]" for name in SCHEMA)
                kind = "section" if isinstance(content, dict) else "key outside a section:"
                raise self._error((section,), f"unknown {kind} '{section}'; known are {known}, [policy.peer.NAME] and [host.NAME]")
            read = self._section((section,), content, keys)
            if section == "defaults":
                values["defaults"] = self._host_options((section,), HostOptions(), read)
            else:
                values.update(read)
        values["policy"], values["peer_policies"] = self._policies(tables.get("policy", {}))
        values["hosts"] = self._hosts(tables.get("host", {}), values.get("defaults", HostOptions()))
        config = Config(path=self._path, **values)
        if config.trust == "ca" and not (config.ca and config.certificate and config.key):
            raise self._error(("trust", "mode"), "mode = \"ca\" needs 'ca', 'certificate' and 'key' in [trust] as well")
        return config

    def _policies(self, content: dict[str, Any]) -> tuple[Policy, dict[str, Policy]]:
        """That for all, and those of peers that have a section of their own, which says what is different for them."""
        for_all = Policy(**self._section(("policy",), {key: value for key, value in content.items() if key != "peer"}, POLICY_KEYS))
        tables = content.get("peer", {})
        if not isinstance(tables, dict):
            raise self._error(("policy", "peer"), "peers are written as sections: [policy.peer.NAME]")
        peers = {}
        for name, keys in tables.items():
            table = ("policy", "peer", name)
            if not isinstance(keys, dict):
                raise self._error(table, f"'{name}' belongs in a peer's section: [policy.peer.NAME]")
            if not NAME_PATTERN.fullmatch(name):
                raise self._error(table, f"{name!r} is no peer's name: {_NEED_NAME}")
            read = self._section(table, keys, POLICY_KEYS)
            peers[name] = replace(for_all, **read, peer=name, own=frozenset(read))
        return for_all, peers

    def _hosts(self, tables: Any, defaults: HostOptions) -> dict[str, HostOptions]:
        if not isinstance(tables, dict):
            raise self._error(("host",), "hosts are written as sections: [host.NAME]")
        hosts = {}
        for name, content in tables.items():
            table = ("host", name)
            if not isinstance(content, dict):
                raise self._error(table, f"'{name}' belongs in a host's section: [host.NAME]")
            if not ADDRESS_PATTERN.fullmatch(name):
                raise self._error(table, f"{name!r} is no host's name or address, as 'xl migrate' would be given it")
            hosts[name] = self._host_options(table, defaults, self._section(table, content, HOST_KEYS))
        return hosts

    def _host_options(self, table: tuple[str, ...], base: HostOptions, read: dict[str, Any]) -> HostOptions:
        options = replace(base, **read)
        if options.keepalive >= options.silence:
            key = next((name for name in ("keepalive", "silence") if name in read), "keepalive")
            raise self._error((*table, key), f"'keepalive' ({options.keepalive} s) must be less than 'silence' ({options.silence} s)")
        return options

    def _section(self, table: tuple[str, ...], content: dict[str, Any], keys: dict[str, Key]) -> dict[str, Any]:
        values = {}
        for key, value in content.items():
            known = keys.get(key)
            if known is None:
                raise self._error((*table, key), self._unknown(table, key, value, keys))
            try:
                values[known.target] = known.convert(value)
            except ValueError:
                raise self._error((*table, key), f"'{key}' must be {known.words}") from None
        return values

    def _unknown(self, table: tuple[str, ...], key: str, value: Any, keys: dict[str, Key]) -> str:
        """What to say of a key that is not known: a dotted host name that wants quotes, a key in the wrong section, a slip of the hand."""
        if isinstance(value, dict) and table[0] in ("host", "policy") and len(table) > 1:
            name = [table[-1], key]
            while len(value) == 1 and isinstance(deeper := next(iter(value.values())), dict):
                name.append(next(iter(value)))
                value = deeper
            return f"a host's name with dots is written in quotes: [{'.'.join(table[:-1])}.\"{'.'.join(name)}\"]"
        homes = [f"[{name}]" for name, others in SCHEMA.items() if key in others] or (["[host.NAME]"] if key in HOST_KEYS else [])
        near = difflib.get_close_matches(key, keys, n=1)
        if homes:
            hint = f"it belongs in {' or '.join(homes)}"
        elif near:
            hint = f"did you mean '{near[0]}'?"
        else:
            hint = f"known are {', '.join(keys)}"
        return f"unknown key '{key}' in [{'.'.join(table)}]; {hint}"


def with_option(options: HostOptions, assignment: str) -> HostOptions:
    """The options after ``-o KEY=VALUE``; UsageError if it means nothing."""
    name, equals, text = assignment.partition("=")
    known = HOST_KEYS.get(name.strip())
    if not equals or known is None:
        raise UsageError(f"-o {assignment!r}: KEY=VALUE with one of {', '.join(HOST_KEYS)} is needed")
    try:
        return replace(options, **{known.target: known.convert(_value(text.strip()))})
    except ValueError:
        raise UsageError(f"-o {assignment!r}: '{name.strip()}' must be {known.words}") from None


def _value(text: str) -> Any:
    """A value from the command line: a TOML value, or else plain text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
