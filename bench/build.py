"""The benchmark's C programs, built."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
ENGINE = HERE.parent / "csrc"
OUT = HERE.parent / "build"
_WARNINGS = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]


def _cc(*words: str) -> None:
    subprocess.run([*shlex.split(os.environ.get("CC", "cc")), *_WARNINGS, *words], check=True)


def build_programs(folder: Path) -> Path:
    """programs.c: both ends of a transport."""
    programs = folder / "programs"
    _cc(str(HERE / "programs.c"), "-o", str(programs))
    return programs


def build_with_engine(name: str, folder: Path) -> Path:
    """A program of this folder and the whole engine, with every cipher backend that this machine can compile."""
    program = folder / name
    sources = [str(path) for path in sorted(ENGINE.glob("*.c"))]
    _cc(str(HERE / f"{name}.c"), *sources, "-o", str(program), *_ipsec_mb(), "-lcrypto", "-lpthread")
    return program


def _ipsec_mb() -> list[str]:
    """What libipsec-mb needs, where the engine can use it and its header is here (as tests/c/run.sh has it)."""
    probe = [*shlex.split(os.environ.get("CC", "cc")), "-E", "-"]
    found = subprocess.run(probe, input=b"#include <intel-ipsec-mb.h>\n", capture_output=True, check=False).returncode == 0
    return ["-DXS_WITH_IPSEC_MB", "-lIPSec_MB"] if found and (ENGINE / "aead_ipsecmb.c").exists() else []
