"""Builds the stub toolstack libraries that the real xl runs with.

What each library must export, and under which version, is read from xl
itself. What the stubs don't implement is generated as a function that says
its name and ends xl.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.xl.fetch import ToolstackMissingError, cache_root, fetch, locked, xl_binary

SOURCES = Path(__file__).with_name("toolstack")
FLAGS = ("-O2", "-g", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wl,-z,defs")


class BuildError(Exception):
    """The stubs don't compile: a mistake in them, and no reason to skip a test."""


@dataclass(frozen=True)
class StubLibrary:
    """One library of the toolstack: how its symbols begin and what it is made of."""

    stem: str
    prefix: str
    sources: tuple[str, ...]
    libraries: tuple[str, ...] = ()


STUBS = (
    StubLibrary(
        "libxenlight",
        "libxl_",
        ("books.c", "domain.c", "helper.c", "info.c", "plumbing.c", "receive.c", "send.c"),
        ("-lcrypto",),
    ),
    StubLibrary("libxlutil", "xlu_", ("books.c", "xlutil.c")),
    StubLibrary("libxentoollog", "xtl_", ("toollog.c",)),
)

MISSING_HEAD = """\
#include <stdio.h>
#include <unistd.h>
#define MISSING(name) void name(void); void name(void) { missing(#name); }
static inline void missing(const char *name)
{
    fprintf(stderr, "stub toolstack: xl called %s, which is no part of it\\n", name);
    _exit(127);
}
"""


@dataclass(frozen=True)
class Toolstack:
    """The unpacked packages and the folder of libraries to run their xl with."""

    root: Path
    libraries: Path

    @property
    def xl(self) -> Path:
        """The real xl."""
        return xl_binary(self.root)


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ToolstackMissingError(
            f"{command[0]} is not here: install gcc, binutils and libssl-dev"
        ) from None
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def _wanted(xl: Path) -> dict[str, str]:
    """Symbols that xl takes from other libraries, and their versions."""
    text = _output("nm", "-D", "--undefined-only", "--with-symbol-versions", str(xl))
    return dict(re.findall(r"\bU (\w+)@+(\S+)$", text, re.MULTILINE))


def _sonames(xl: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.+)\]", _output("readelf", "-d", str(xl)))


def _write_missing(stub: StubLibrary, wanted: dict[str, str], into: Path) -> Path:
    implemented = "".join((SOURCES / name).read_text() for name in stub.sources)
    defined = set(re.findall(rf"\b({stub.prefix}\w+)\(", implemented))
    names = sorted(name for name in wanted if name.startswith(stub.prefix))
    lines = [f"MISSING({name})" for name in names if name not in defined]
    path = into / f"{stub.stem}-missing.c"
    path.write_text(MISSING_HEAD + "\n".join(lines) + "\n")
    return path


def _write_versions(stub: StubLibrary, wanted: dict[str, str], into: Path) -> Path:
    versions = {version for name, version in wanted.items() if name.startswith(stub.prefix)}
    if len(versions) != 1:
        raise BuildError(f"xl wants {stub.stem} in the versions {sorted(versions)}")
    path = into / f"{stub.stem}.map"
    path.write_text(f"{versions.pop()} {{ global: {stub.prefix}*; local: *; }};\n")
    return path


def _compile(stub: StubLibrary, root: Path, into: Path) -> None:
    xl = xl_binary(root)
    wanted = _wanted(xl)
    soname = next(name for name in _sonames(xl) if name.startswith(stub.stem + ".so"))
    _output(
        *("gcc", *FLAGS, "-isystem", f"{root}/usr/include", f"-Wl,-soname,{soname}"),
        f"-Wl,--version-script={_write_versions(stub, wanted, into)}",
        *("-o", str(into / soname)),
        *(str(SOURCES / name) for name in stub.sources),
        *(str(_write_missing(stub, wanted, into)), *stub.libraries),
    )


def _fill(root: Path, into: Path) -> None:
    for stub in STUBS:
        _compile(stub, root, into)
    for library in root.glob("usr/lib/*/libyajl.so.2"):
        shutil.copy(library, into)


def _key(root: Path) -> str:
    digest = hashlib.sha256(root.name.encode())
    for path in (*sorted(SOURCES.iterdir()), Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build() -> Toolstack:
    """Return the toolstack, and fetch and compile it first if need be.

    Raises:
        ToolstackMissingError: a package or the compiler is not to be had.
        BuildError: the stubs don't compile.

    """
    root = fetch()
    target = cache_root() / f"stubs-{_key(root)}"
    if not target.is_dir():
        with locked("build"):
            if not target.is_dir():
                _build_into(root, target)
    return Toolstack(root=root, libraries=target)


def _build_into(root: Path, target: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix="build-", dir=cache_root()))
    try:
        _fill(root, scratch)
        scratch.chmod(0o755)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
