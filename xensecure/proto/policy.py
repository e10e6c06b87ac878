"""The admission policy: whether a domain may come, by its configuration alone. Pure; ``proto/domainkeys.py`` says which keys may have what.

A key that is not named there is refused, so that one which only a newer Xen knows does not slip through.
"""

from __future__ import annotations

import ipaddress
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from . import limits
from .domain import needed_memory, ordinary_memory
from .domainkeys import CONFIGURATION, Rule, Shape
from .errors import Reason, RefusedError
from .messages import printable

SCRIPT_FOLDER = "/etc/xen/scripts/"  # libxl_disk.c and libxl_nic.c: a script's name without "/" is one in there
# libxl_bootloader.c looks for a name without "/" in Xen's own folder; the paths are those of Debian, Fedora and Xen's own "make install".
BOOTLOADERS = ("pygrub", "/usr/bin/pygrub", "/usr/lib/xen-*/bin/pygrub", "/usr/lib/xen/bin/pygrub", "/usr/libexec/xen/bin/pygrub")
# What a script does is another's to know: of those that come with Xen, vif-route and vif-nat make routes of dom0's of what a peer says.
SCRIPTS = tuple(f"{SCRIPT_FOLDER}{name}" for name in ("block*", "vif-bridge", "vif-openvswitch"))
_EVERYTHING = ("*",)


@dataclass(frozen=True)
class Policy:
    """What a peer may send. ``memory`` in MiB, of one domain, as ``vcpus``; ``domains``: that arrive from it at once; 0: as many as there are.

    Patterns of paths are matched folder by folder; one that ends in "/" stands for all that is below. ``allow`` and ``forbid``: KEY or
    KEY=PATTERN, a key with all that is in it. ``peer``, ``own``: whose section of the configuration this is, and what it says itself.
    """

    check: str = "on"
    send: bool = True
    names: tuple[str, ...] = _EVERYTHING
    memory: int = 0
    vcpus: int = 0
    domains: int = 0
    free_memory: str = "on"
    disks: tuple[str, ...] = _EVERYTHING
    bridges: tuple[str, ...] = _EVERYTHING
    kernels: tuple[str, ...] = _EVERYTHING
    device_models: tuple[str, ...] = ()
    bootloaders: tuple[str, ...] = BOOTLOADERS
    scripts: tuple[str, ...] = SCRIPTS
    allow: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    peer: str = ""
    own: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def looks(self) -> bool:
        """Whether configurations are looked at at all."""
        return self.check == "on"

    def where(self, key: str) -> str:
        """The key as the configuration has it, for people."""
        return f"[policy.peer.{self.peer}] {key}" if key in self.own else f"[policy] {key}"


class PolicyRefusedError(RefusedError):
    """A domain that may not come. ``key``: of its configuration; ``value``: what stands there, for people; ``rule``: which one forbids it."""

    def __init__(self, key: str, value: str, rule: str) -> None:
        super().__init__(f"{key} = {value} is refused by the destination's policy: {rule}", Reason.NOT_ALLOWED)
        self.key, self.value, self.rule = key, value, rule


def judge(policy: Policy, configuration: Mapping[str, Any]) -> None:
    """PolicyRefusedError unless a domain of that configuration may come."""
    if policy.looks:
        _Judge(policy).domain(configuration)


@dataclass(frozen=True)
class _Place:
    """Where in the configuration: ``name`` for rules, ``shown`` for people, who want to know which disk it is."""

    name: str = ""
    shown: str = ""

    def key(self, key: str) -> _Place:
        dot = "." if self.name else ""
        return _Place(f"{self.name}{dot}{key}", f"{self.shown}{dot}{key}")

    def item(self, index: int) -> _Place:
        return _Place(self.name, f"{self.shown}[{index}]")


class _Judge:
    """Walks through a configuration and its shape together."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def _refuse(self, place: _Place, value: Any, rule: str) -> PolicyRefusedError:
        return PolicyRefusedError(place.shown, shown_value(value), rule)

    def domain(self, configuration: Mapping[str, Any]) -> None:
        """The whole. A name must be there, for xl takes a domain without one."""
        created = configuration.get("c_info")
        if not isinstance(created, dict) or created.get("name") is None:
            raise self._refuse(_Place("c_info.name", "c_info.name"), None, "a domain has a name")
        self.object(configuration, CONFIGURATION, _Place())
        self._memory(configuration)

    def _memory(self, configuration: Mapping[str, Any]) -> None:
        """``memory`` bounds the whole, shadow memory and all, and leaves room for as much of that as libxl itself adds."""
        most = self._policy.memory
        need = needed_memory(configuration)
        if most and need > ordinary_memory(configuration, most):
            value = f"{need} MiB with all that belongs to the domain"
            raise PolicyRefusedError("b_info", value, f"at most {most} MiB, and what libxl adds to that ({self._policy.where('memory')})")

    def object(self, value: Any, keys: Mapping[str, Shape], place: _Place) -> None:
        """Every key of an object."""
        if not isinstance(value, Mapping):
            raise self._refuse(place, value, "an object belongs there")
        for key, inner in value.items():
            self._key(inner, keys.get(key), place.key(printable(key)), value)
        if keys.get("bridge") is Rule.BRIDGE and value.get("bridge") is None:
            self._bridge_of_libxl(place.key("bridge"))

    def _key(self, value: Any, shape: Shape | None, place: _Place, holder: Mapping[str, Any]) -> None:
        self._must_not_be_forbidden(value, place)
        if self._allows(value, place):
            self._anything(value, place)
        elif shape is None:
            raise self._refuse(place, value, f"no key that an ordinary domain has; {self._policy.where('allow')} can let it pass")
        elif value is not None:  # libxl takes null for a key that is not there
            self._value(value, shape, place, holder)

    def _bridge_of_libxl(self, place: _Place) -> None:
        """A network card that names no bridge gets libxl's default one."""
        bridges = self._policy.bridges
        if "*" not in bridges and not self._allows(None, place):
            raise self._refuse(place, None, f"{_not_among(self._policy, 'bridges', bridges)}, and a network card without a bridge gets xl's own")

    def _must_not_be_forbidden(self, value: Any, place: _Place) -> None:
        if any(_names(entry, place.name, value, any, _hits) for entry in self._policy.forbid):
            raise self._refuse(place, value, f"{self._policy.where('forbid')} has it")

    def _allows(self, value: Any, place: _Place) -> bool:
        return any(_names(entry, place.name, value, all, _passes) for entry in self._policy.allow)

    def _anything(self, value: Any, place: _Place) -> None:
        """What has no shape, by the policy's list or by ``allow``: ``forbid`` is the stronger, and looks into it all the same."""
        texts = value if isinstance(value, Mapping) else [value]
        if not all(text.isprintable() for text in texts if isinstance(text, str)):
            raise self._refuse(place, value, "it has characters that cannot be printed")
        if isinstance(value, Mapping):
            for key, inner in value.items():
                where = place.key(printable(key))
                self._must_not_be_forbidden(inner, where)
                self._anything(inner, where)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                self._anything(item, place.item(index))

    def _value(self, value: Any, shape: Shape, place: _Place, holder: Mapping[str, Any]) -> None:
        if isinstance(shape, list):
            if not isinstance(value, list):
                raise self._refuse(place, value, "a list belongs there")
            for index, item in enumerate(value):
                self._value(item, shape[0], place.item(index), holder)
        elif isinstance(shape, Mapping):
            self.object(value, shape, place)
        elif isinstance(shape, frozenset):
            word = value.lower() if isinstance(value, str) else value
            if not isinstance(word, (str, int)) or isinstance(word, bool) or word not in shape:
                words = " or ".join(sorted(map(str, shape)))
                raise self._refuse(place, value, f"without {self._policy.where('allow')} it may be {words}")
        elif shape is Rule.ANY:
            self._anything(value, place)
        else:
            problem = _RULES[shape](value, self._policy, holder)
            if problem:
                raise self._refuse(place, value, problem)


def shown_value(value: Any) -> str:
    """A value for people: one line of bounded length."""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except ValueError:  # a number of more digits than Python writes
        text = "?"
    text = printable(text)
    return repr(text if len(text) <= limits.POLICY_VALUE_MAX else f"{text[: limits.POLICY_VALUE_MAX]}…")


def _names(entry: str, name: str, value: Any, quantifier: Callable[[Iterable[bool]], bool], matches: Callable[[str, str], bool]) -> bool:
    """Whether an entry of ``allow`` or ``forbid`` is about that key, and that value: of a list, all values or any of them."""
    key, equals, pattern = entry.partition("=")
    if not fnmatchcase(name, key):
        return False
    values = value if isinstance(value, list) else [value]
    return not equals or quantifier(isinstance(item, (str, int)) and matches(pattern, _as_text(item)) for item in values)


def _passes(pattern: str, text: str) -> bool:
    """For ``allow``: a path folder by folder, and only as a path is plainly written."""
    return _matches(pattern, text) and _is_plain(text) if text.startswith("/") else fnmatchcase(text, pattern)


def _hits(pattern: str, text: str) -> bool:
    """For ``forbid``: in any case of letters, as libxl reads them, and however a path is written."""
    pattern, text = pattern.casefold(), text.casefold()
    plain = posixpath.normpath(f"/{text.lstrip('/')}") if text.startswith("/") else text
    return any(fnmatchcase(written, pattern) or _matches(pattern, written) for written in (text, plain))


def _as_text(value: str | int) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# ---- the rules: "", or why the value may not be


def _flag(value: Any, _policy: Policy, _holder: Mapping[str, Any]) -> str:
    return "" if isinstance(value, bool) or value in ("True", "False", "<default>") else "no flag"


def _unset(value: Any, policy: Policy, holder: Mapping[str, Any]) -> str:
    if value is True or value == "True":
        return f"without {policy.where('allow')} it may not be set"
    return _flag(value, policy, holder)


def _number(value: Any, _policy: Policy, _holder: Mapping[str, Any]) -> str:
    fits = isinstance(value, int) and not isinstance(value, bool) and -(1 << 31) <= value < 1 << 64
    return "" if fits else "no number of libxl's"


_WORD = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.:+-]{0,127})?")
_WORDS = re.compile(r"[A-Za-z0-9_.:+/ ,%-]{0,512}")


def _word(value: Any, _policy: Policy, _holder: Mapping[str, Any]) -> str:
    return "" if isinstance(value, str) and _WORD.fullmatch(value) else "letters, digits, '.', '_', ':', '+' and '-' only"


def _words(value: Any, _policy: Policy, _holder: Mapping[str, Any]) -> str:
    return "" if isinstance(value, str) and _WORDS.fullmatch(value) else "words and addresses only"


_ADDRESS = re.compile(r"[0-9A-Fa-f.:]+(/32|/128)?")


def _addresses(value: Any, _policy: Policy, _holder: Mapping[str, Any]) -> str:
    """Each a host's own: a script may make a route of a network."""
    fits = isinstance(value, str) and (value == "" or all(map(_is_host, value.split(" "))))
    return "" if fits else "IP addresses only, spaces between, and no networks"


def _is_host(text: str) -> bool:
    try:
        return _ADDRESS.fullmatch(text) is not None and ipaddress.ip_network(text).num_addresses == 1
    except ValueError:
        return False


def _text(value: Any, _policy: Policy, _holder: Mapping[str, Any]) -> str:
    return "" if isinstance(value, str) and value.isprintable() else "no line of text"


def _here(value: Any, policy: Policy, _holder: Mapping[str, Any]) -> str:
    return "" if value == 0 and not isinstance(value, bool) else f"without {policy.where('allow')} domain 0 alone may have a device's other end"


def _listen(value: Any, _policy: Policy, _holder: Mapping[str, Any]) -> str:
    """ADDRESS, ADDRESS:DISPLAY or [ADDRESS]:DISPLAY: QEMU takes other texts for a socket's path, or for more options."""
    text = value if isinstance(value, str) else "?"
    address, _, display = text.rpartition(":")
    with_display = re.fullmatch(r"[0-9]{1,5}", display) is not None and _is_ip(address)
    return "" if text in ("", "localhost") or _is_ip(text) or with_display else "an IP address only, and a display's number behind it"


def _is_ip(text: str) -> bool:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return False
    return "%" not in bare  # a scope may be any text


# xl takes digits for a domain's number, shows "(null)" for no name, and itself names dom0 and a domain on its way.
_TAKEN = re.compile(r"\d+|Domain-0|\(null\)|.*--(incoming|migratedaway)")


def _name(value: Any, policy: Policy, _holder: Mapping[str, Any]) -> str:
    if not isinstance(value, str) or not value.isprintable() or re.search("[/,]", value) or value[:1] in ("", "-", ".") or value != value.strip():
        return "no name of a domain"  # xl and QEMU write log files of that name, and QEMU has it in an option
    if len(value.encode()) > limits.DOMAIN_NAME_MAX:
        return f"a name of at most {limits.DOMAIN_NAME_MAX} bytes"
    if _TAKEN.fullmatch(value):
        return "a name that xl would take for something else"
    return "" if any(fnmatchcase(value, pattern) for pattern in policy.names) else _not_among(policy, "names", policy.names)


def _memory(value: Any, policy: Policy, holder: Mapping[str, Any]) -> str:
    problem = _number(value, policy, holder)
    if not problem and policy.memory and value > policy.memory << 10:
        return f"at most {policy.memory} MiB ({policy.where('memory')})"
    return problem


def _vcpus(value: Any, policy: Policy, holder: Mapping[str, Any]) -> str:
    problem = _number(value, policy, holder)
    return f"at most {policy.vcpus} ({policy.where('vcpus')})" if not problem and policy.vcpus and value > policy.vcpus else problem


_PARTS = re.compile("[, ]")  # between the words of a target: block-iscsi takes both


def _disk(value: Any, policy: Policy, holder: Mapping[str, Any]) -> str:
    """A path; where a script makes the disk, what that script takes."""
    if value == "":
        return ""  # an empty drive
    if isinstance(value, str) and not value.startswith("/") and holder.get("script"):
        return _target(value, policy)
    if isinstance(value, str) and "," in value:
        return "a comma would begin an option of QEMU's"
    return _path(value, policy, "disks", policy.disks)


def _target(value: str, policy: Policy) -> str:
    """Words between commas and spaces: of one that stands twice a script would take the last, which the operator has perhaps not named."""
    words = [word.partition("=")[0] for word in _PARTS.split(value)]
    if not value.isprintable() or ".." in re.split("[/,=: ]", value):
        return "no line of text without '..'"
    if len(set(words)) < len(words):
        return "a word stands twice"
    return "" if any(_matches(pattern, value) for pattern in policy.disks) else _not_among(policy, "disks", policy.disks)


def _kernel(value: Any, policy: Policy, _holder: Mapping[str, Any]) -> str:
    return "" if value == "" else _path(value, policy, "kernels", policy.kernels)


def _device_model(value: Any, policy: Policy, _holder: Mapping[str, Any]) -> str:
    return _path(value, policy, "device_models", policy.device_models)


def _bootloader(value: Any, policy: Policy, _holder: Mapping[str, Any]) -> str:
    if isinstance(value, str) and "/" not in value and value in policy.bootloaders:
        return ""
    return _path(value, policy, "bootloaders", policy.bootloaders)


def _script(value: Any, policy: Policy, _holder: Mapping[str, Any]) -> str:
    inside = isinstance(value, str) and value and "/" not in value
    return "" if value == "" else _path(SCRIPT_FOLDER + value if inside else value, policy, "scripts", policy.scripts)


def _bridge(value: Any, policy: Policy, holder: Mapping[str, Any]) -> str:
    problem = _word(value, policy, holder)
    return problem or ("" if any(fnmatchcase(value, pattern) for pattern in policy.bridges) else _not_among(policy, "bridges", policy.bridges))


def _path(value: Any, policy: Policy, key: str, patterns: tuple[str, ...]) -> str:
    if not isinstance(value, str) or not value.isprintable():
        return "no path"
    if not any(_matches(pattern, value) for pattern in patterns):
        return _not_among(policy, key, patterns)
    return "" if _is_plain(value) else "no absolute path without '..' and doubled '/'"


def _is_plain(value: str) -> bool:
    # normpath() leaves two slashes at the beginning alone.
    return value.startswith("/") and not value.startswith("//") and posixpath.normpath(value) == value


def _matches(pattern: str, value: str) -> bool:
    """A path by its folders, one after the other, what is no path word by word; "*" is everything."""
    if pattern == "*":
        return True
    if not value.startswith("/"):
        words, wanted = _PARTS.split(value), _PARTS.split(pattern)
        return len(words) == len(wanted) and all(map(fnmatchcase, words, wanted))
    parts, wanted = value.split("/"), pattern.split("/")
    if wanted[-1] == "":
        wanted.pop()
        if len(parts) <= len(wanted):
            return False
        parts = parts[: len(wanted)]
    return len(parts) == len(wanted) and all(fnmatchcase(part, want) for part, want in zip(parts, wanted, strict=True))


def _not_among(policy: Policy, key: str, patterns: tuple[str, ...]) -> str:
    listed = ", ".join(patterns)
    listed = listed if len(listed) <= limits.POLICY_VALUE_MAX else f"{listed[: limits.POLICY_VALUE_MAX]}…"
    return f"{policy.where(key)} has {listed}" if patterns else f"{policy.where(key)} has none"


_RULES: Mapping[Rule, Callable[[Any, Policy, Mapping[str, Any]], str]] = {
    Rule.FLAG: _flag,
    Rule.UNSET: _unset,
    Rule.NUMBER: _number,
    Rule.WORD: _word,
    Rule.WORDS: _words,
    Rule.ADDRESSES: _addresses,
    Rule.TEXT: _text,
    Rule.HERE: _here,
    Rule.LISTEN: _listen,
    Rule.NAME: _name,
    Rule.MEMORY: _memory,
    Rule.VCPUS: _vcpus,
    Rule.DISK: _disk,
    Rule.BRIDGE: _bridge,
    Rule.KERNEL: _kernel,
    Rule.BOOTLOADER: _bootloader,
    Rule.SCRIPT: _script,
    Rule.DEVICE_MODEL: _device_model,
}
