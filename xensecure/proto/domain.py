"""What xensecure reads of a domain's configuration as xl sends it: its name, for people and journals; and the whole, for the operator's hooks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from . import limits
from .errors import ProtocolError
from .messages import printable

# libxl_internal.h
_HVM_EXTRA = 2  # MiB: LIBXL_HVM_EXTRA_MEMORY
_PV_EXTRA = 1  # MiB: LIBXL_PV_EXTRA_MEMORY
_HVM_MAX_VCPUS = 128  # public/hvm/hvm_info_table.h; a PV guest of more has no shadow memory to speak of


def domain_name(head: bytes) -> str:
    """The name in a domain's configuration (JSON, libxl's ``c_info.name``); "?" if it cannot be found there."""
    try:
        name = json.loads(head)["c_info"]["name"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "?"
    return printable(name.encode("utf-8", "replace")[: limits.DOMAIN_NAME_MAX].decode("utf-8", "ignore")) if isinstance(name, str) else "?"


def domain_memory(head: bytes) -> int:
    """Bytes of memory that a domain has by its configuration (JSON, libxl's ``b_info.target_memkb`` or ``max_memkb``); 0 if it does not say."""
    try:
        kilobytes = _target_kib(json.loads(head)["b_info"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
    return kilobytes << 10 if kilobytes <= limits.DOMAIN_MEMORY_MAX >> 10 else 0


def _target_kib(built: Any) -> int:
    """KiB that a domain gets at first, by its ``b_info``; 0 where that does not say: libxl's default stands as -1, null or not at all."""
    values = [built.get(key) for key in ("target_memkb", "max_memkb")] if isinstance(built, dict) else []
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0), 0)


def target_memory(configuration: Mapping[str, Any]) -> int:
    """Bytes of memory that a domain gets page by page as it arrives, by its configuration; what Xen needs for it besides is not in it."""
    return _target_kib(configuration.get("b_info")) << 10


def needed_memory(configuration: Mapping[str, Any]) -> int:
    """MiB that Xen must have free for a domain: libxl's own sum (libxl__domain_need_memory_calculate in libxl_mem.c).

    What is no number, or less than 0, counts for nothing: a policy's ``allow`` lets anything pass.
    """
    built, created = (configuration.get(key) for key in ("b_info", "c_info"))
    built = built if isinstance(built, dict) else {}
    kib = {key: value for key, value in built.items() if isinstance(value, int) and value >= 0}
    target = _target_kib(built)
    # libxl_get_required_shadow_memory()
    shadow = kib.get("shadow_memkb", 4 * (256 * kib.get("max_vcpus", 1) + 2 * (kib.get("max_memkb", target) // 1024)))
    need = target + shadow + kib.get("iommu_memkb", 0)
    if built.get("device_model_stubdomain") in (True, "True"):
        need += kib.get("stubdomain_memkb", 0) + kib.get("video_memkb", 0)
    is_pv = isinstance(created, dict) and str(created.get("type")).lower() == "pv"
    return -(-need // 1024) + (_PV_EXTRA if is_pv else _HVM_EXTRA)


def ordinary_memory(configuration: Mapping[str, Any], mib: int) -> int:
    """MiB that Xen must have free for a domain of that kind, with as many CPUs, that has ``mib`` MiB and asks for nothing besides."""
    built = configuration.get("b_info")
    vcpus = built.get("max_vcpus") if isinstance(built, dict) else None
    cpus = min(max(vcpus, 1), _HVM_MAX_VCPUS) if isinstance(vcpus, int) else 1
    return needed_memory({"c_info": configuration.get("c_info"), "b_info": {"max_memkb": mib << 10, "max_vcpus": cpus}})


def configuration(head: bytes) -> dict[str, Any]:
    """A domain's configuration as an object; ProtocolError for what two readers could understand differently.

    libxl takes the first of two equal keys and Python the last, and in C a text ends at its first NUL: a hook must not be shown another domain
    than xl is.
    """
    try:
        found = json.loads(head.decode("utf-8"), object_pairs_hook=_object, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"malformed configuration of a domain: {error}") from None
    if not isinstance(found, dict):
        raise ProtocolError("malformed configuration of a domain: no object")
    level: list[Any] = [found]
    for _ in range(limits.CONFIGURATION_DEPTH_MAX):
        if any(isinstance(value, str) and "\0" in value for value in level):
            raise ProtocolError("malformed configuration of a domain: a text has a NUL in it")
        level = [child for value in level for child in _children(value)]
    if level:
        raise ProtocolError("malformed configuration of a domain: too deep")
    return found


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key stands twice in an object")
    if not all(key.isprintable() for key in made):
        raise ValueError("a key has characters that cannot be printed")
    return made


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number")
    return number
