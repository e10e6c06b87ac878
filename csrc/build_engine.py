"""Build the C engine as xensecure._engine (cffi, API mode, one file for every Python from 3.8 on).

setup.py names it: cffi_modules=["csrc/build_engine.py:ffibuilder"].
By hand, for the tests of a source tree: python csrc/build_engine.py --inplace DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent

CFLAGS = [
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    # A cdef that drifts from engine.h is only a warning to gcc 12.
    "-Werror=incompatible-pointer-types",
    "-Werror=implicit-function-declaration",
    # cffi's own generated code leaves these to be said.
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
    "-fstack-protector-strong",
    "-U_FORTIFY_SOURCE",
    "-D_FORTIFY_SOURCE=2",
    "-fvisibility=hidden",
]
LDFLAGS = ["-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack"]


def make_builder(folder: Path) -> FFI:
    """The builder, with csrc/ named as folder: relative for setuptools (which wants it so), absolute for cffi's own compile()."""
    builder = FFI()
    builder.cdef((HERE / "engine.cdef").read_text(encoding="utf-8"))
    builder.set_source(
        "xensecure._engine",
        '#include "engine.h"',
        sources=[str(folder / path.name) for path in sorted(HERE.glob("*.c"))],
        depends=[str(folder / path.name) for path in sorted(HERE.glob("*.h"))],
        include_dirs=[str(folder)],
        libraries=["crypto"],
        extra_compile_args=CFLAGS,
        extra_link_args=LDFLAGS,
        py_limited_api=True,
    )
    return builder


ffibuilder = make_builder(Path("csrc"))


def main() -> None:
    """Build into DIR/xensecure/."""
    parser = argparse.ArgumentParser(description="build the engine without installing it")
    parser.add_argument("--inplace", metavar="DIR", type=Path, required=True, help="xensecure/_engine.abi3.so goes below")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    options.inplace.mkdir(parents=True, exist_ok=True)
    print(make_builder(HERE).compile(tmpdir=str(options.inplace), verbose=options.verbose))


if __name__ == "__main__":
    main()
