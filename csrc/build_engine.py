"""Build the C engine as xensecure._engine (cffi, API mode, one file for every Python from 3.8 on).

setup.py names it: cffi_modules=["csrc/build_engine.py:ffibuilder"].
By hand, for the tests of a source tree: python csrc/build_engine.py --inplace DIR

libipsec-mb and libzstd are compiled in where the compiler finds them, and the engine then needs them wherever it runs. XENSECURE_IPSEC_MB=off and
XENSECURE_ZSTD=off leave them out, =on makes their absence an error.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

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
    "-pthread",
]
LDFLAGS = ["-pthread", "-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack"]


class Extra(NamedTuple):  # no dataclass: setuptools runs this file outside of any module
    """A library that the engine can do without: its names, and a program that asks of it what the engine does."""

    name: str
    switch: str
    macro: str
    library: str
    probe: str


EXTRAS = (
    # What csrc/aead_ipsecmb.c asks of the library: 1.2 and later have it.
    Extra(
        name="libipsec-mb",
        switch="XENSECURE_IPSEC_MB",
        macro="XS_WITH_IPSEC_MB",
        library="IPSec_MB",
        probe="""
#include <intel-ipsec-mb.h>
int main(void)
{
    IMB_MGR *mgr = alloc_mb_mgr(0);
    init_mb_mgr_auto(mgr, NULL);
    return (mgr->features & IMB_CPUFLAGS_AVX512_T2) == 0 && imb_get_errno(mgr) != 0 && mgr->gcm256_pre == NULL;
}
""",
    ),
    # csrc/compress.c: 1.4 and later have it.
    Extra(
        name="libzstd",
        switch="XENSECURE_ZSTD",
        macro="XS_WITH_ZSTD",
        library="zstd",
        probe="""
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>
int main(void)
{
    ZSTD_CCtx *packer = ZSTD_initStaticCCtx(NULL, ZSTD_estimateCCtxSize(1));
    ZSTD_DCtx *unpacker = ZSTD_initStaticDCtx(NULL, ZSTD_estimateDCtxSize());
    return ZSTD_isError(ZSTD_compress2(packer, NULL, 0, NULL, 0)) || ZSTD_isError(ZSTD_decompressDCtx(unpacker, NULL, 0, NULL, 0));
}
""",
    ),
)


def is_wanted(extra: Extra) -> bool:
    """Whether to compile a library in: the switch's word, or whether a program with it can be linked."""
    switch = os.environ.get(extra.switch, "auto")
    if switch not in ("auto", "on", "off"):
        sys.exit(f"{extra.switch}={switch}: on, off or auto is needed")
    if switch == "off":
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(extra.probe, encoding="utf-8")
        command = shlex.split(os.environ.get("CC", "cc"))
        for name in ("CPPFLAGS", "CFLAGS", "LDFLAGS"):
            command += shlex.split(os.environ.get(name, ""))
        command += [str(source), "-o", str(Path(folder, "probe")), f"-l{extra.library}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found, said = done.returncode == 0, done.stderr
        except OSError as error:
            found, said = False, f"{command[0]}: {error.strerror}"
    if switch == "on" and not found:
        sys.exit(f"{extra.switch}=on, but {extra.name} cannot be used:\n{said}")
    return found


def make_builder(folder: Path) -> FFI:
    """The builder, with csrc/ named as folder: relative for setuptools (which wants it so), absolute for cffi's own compile()."""
    builder = FFI()
    extras = [extra for extra in EXTRAS if is_wanted(extra)]
    builder.cdef((HERE / "engine.cdef").read_text(encoding="utf-8"))
    builder.set_source(
        "xensecure._engine",
        '#include "engine.h"',
        sources=[str(folder / path.name) for path in sorted(HERE.glob("*.c"))],
        depends=[str(folder / path.name) for path in sorted(HERE.glob("*.h"))],
        include_dirs=[str(folder)],
        define_macros=[(extra.macro, "1") for extra in extras],
        libraries=[*(extra.library for extra in extras), "crypto"],
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
