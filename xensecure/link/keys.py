"""The values that keys of the configuration can have: what makes of TOML's what the program uses, and what is said of a wrong one."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..proto import limits

# A peer's file has its name, and ".", ".peer" and ".xxxxxxxx.tmp" around it while it is written: 255 bytes at most (NAME_MAX of limits.h).
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,229}")
# An IP address (with a scope, as getaddrinfo(3) takes it) or a name that can be resolved; so nothing odd gets into tokens and logs.
ADDRESS_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}|[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,32})?")
# sun_path of unix(7) has 108 bytes, one of them for the end; what follows [paths] run is "/launcher.sock".
RUN_MAX = 107 - len("/launcher.sock")


@dataclass(frozen=True)
class Key:
    """One key of the file: which field it sets, its TOML type in words, and what makes of its value the field's (ValueError if wrong)."""

    target: str
    words: str
    convert: Callable[[Any], Any]


def text(value: Any) -> str:
    """Text of one line."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError
    return value


def absolute(value: Any) -> str:
    """An absolute path, as text."""
    if not text(value).startswith("/"):
        raise ValueError
    return str(value)


def absolute_or(*words: str) -> Callable[[Any], str]:
    """An absolute path, or one of these words."""
    return lambda value: str(value) if value in words else absolute(value)


def absolute_path(value: Any) -> Path:
    """An absolute path."""
    return Path(absolute(value))


def peer_name(value: Any) -> str:
    """A host's name that can be a file's."""
    if not NAME_PATTERN.fullmatch(text(value)):
        raise ValueError
    return str(value)


def texts(value: Any) -> tuple[str, ...]:
    """One text, or a list of up to ADDRESSES_MAX."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not 0 < len(values) <= limits.ADDRESSES_MAX:
        raise ValueError
    return tuple(text(item) for item in values)


def run_path(value: Any) -> Path:
    """An absolute path with room for a socket's name behind it."""
    if len(absolute(value).encode()) > RUN_MAX:
        raise ValueError
    return Path(value)


def interface(value: Any) -> str:
    """A network interface's name, or "" for any: IFNAMSIZ, and what dev_valid_name() of the kernel refuses."""
    if not re.fullmatch(r"[^/: ]{0,15}", text(value)):
        raise ValueError
    return str(value)


def user_name(value: Any) -> str:
    """A user's name."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?", text(value)):
        raise ValueError
    return str(value)


def is_address(name: str) -> bool:
    """Whether it can be a host's address: an IP address, or a name that may be resolved. Digits, dots and colons that are neither are a slip."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return bool(ADDRESS_PATTERN.fullmatch(name)) and not re.fullmatch(r"[0-9.:]+|.*(:|\.\.).*", name)
    return True


def addresses(value: Any) -> tuple[str, ...]:
    """One address or name of a host, or a list."""
    found = texts(value)
    if not all(is_address(address) for address in found):
        raise ValueError
    return found


def ip(value: Any) -> str:
    """An IP address."""
    return str(ipaddress.ip_address(text(value)))


def ips(value: Any) -> tuple[str, ...]:
    """One IP address, or a list."""
    return tuple(ip(item) for item in texts(value))


def absolutes(value: Any) -> tuple[str, ...]:
    """A list of absolute paths."""
    if not isinstance(value, list):
        raise ValueError
    return tuple(absolute(item) for item in value)


def patterns(value: Any) -> tuple[str, ...]:
    """One pattern, or a list of up to POLICY_PATTERNS_MAX; it may be empty."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or len(values) > limits.POLICY_PATTERNS_MAX or not all(text(item) for item in values):
        raise ValueError
    return tuple(values)


def absolute_patterns(value: Any) -> tuple[str, ...]:
    """The same, of absolute paths."""
    return tuple(absolute(item) for item in patterns(value))


def domain_keys(value: Any) -> tuple[str, ...]:
    """The same, of KEY or KEY=PATTERN."""
    found = patterns(value)
    if not all(re.fullmatch(r"[A-Za-z0-9_.*?-]+(=.*)?", item) for item in found):
        raise ValueError
    return found


def mebibytes(value: Any) -> int:
    """MiB as in xl.cfg: a number, or one with M, G or T behind it; or "off", which is 0."""
    found = re.fullmatch(r"([0-9]{1,9})([MGT])", value) if isinstance(value, str) else None
    if found:
        value = int(found[1]) << {"M": 0, "G": 10, "T": 20}[found[2]]
    return most(limits.POLICY_MEMORY_MAX)(value)


def most(greatest: int) -> Callable[[Any], int]:
    """A number up to this one; 0 or "off": none."""

    def convert(value: Any) -> int:
        return 0 if value == "off" else between(0, greatest)(value)

    return convert


def boolean(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError
    return value


def between(least: int, most: int) -> Callable[[Any], int]:
    """A number between these two."""
    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError
        return value

    return convert


def one_of(*words: str) -> Callable[[Any], str]:
    """One of these words."""
    def convert(value: Any) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return convert


def rate(value: Any) -> int:
    """Bytes a second: a number, one with K, M or G behind it, or "off"; 0 is none."""
    found = re.fullmatch(r"([0-9]{1,13})([KMG]?)", value) if isinstance(value, str) else None
    if found:
        value = int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]]
    if value in (0, "off") and not isinstance(value, (bool, float)):
        return 0
    return between(limits.BWLIMIT_MIN, limits.BWLIMIT_MAX)(value)


def final_window(value: Any) -> int:
    """Seconds, or "endless"."""
    return limits.ENDLESS_SECONDS if value == "endless" else between(1, limits.ENDLESS_SECONDS)(value)
