"""Build the C engine as xensecure._engine (cffi, API mode, one file for every Python from 3.8 on).

setup.py names it: cffi_modules=["csrc/build_engine.py:ffibuilder"].
By hand, for the tests of a source tree: python csrc/build_engine.py --inplace DIR

libipsec-mb is compiled in where the compiler finds it, and the engine then needs it wherever it runs. XENSECURE_IPSEC_MB=off leaves it out,
=on makes its absence an error.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
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

SWITCH = "XENSECURE_IPSEC_MB"
# What csrc/aead_ipsecmb.c asks of the library: 1.2 and later have it.
PROBE = """
#include <intel-ipsec-mb.h>
int main(void)
{
    IMB_MGR *mgr = alloc_mb_mgr(0);
    init_mb_mgr_auto(mgr, NULL);
    return (mgr->features & IMB_CPUFLAGS_AVX512_T2) == 0 && imb_get_errno(mgr) != 0 && mgr->gcm256_pre == NULL;
}
"""


def has_ipsec_mb() -> bool:
    """Whether to compile libipsec-mb in: the switch's word, or whether a program with it can be linked."""
    switch = os.environ.get(SWITCH, "auto")
    if switch not in ("auto", "on", "off"):
        sys.exit(f"{SWITCH}={switch}: on, off or auto is needed")
    if switch == "off":
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(PROBE, encoding="utf-8")
        command = shlex.split(os.environ.get("CC", "cc"))
        for name in ("CPPFLAGS", "CFLAGS", "LDFLAGS"):
            command += shlex.split(os.environ.get(name, ""))
        command += [str(source), "-o", str(Path(folder, "probe")), "-lIPSec_MB"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found, said = done.returncode == 0, done.stderr
        except OSError as error:
            found, said = False, f"{command[0]}: {error.strerror}"
    if switch == "on" and not found:
        sys.exit(f"{SWITCH}=on, but libipsec-mb cannot be used:\n{said}")
    return found


def make_builder(folder: Path) -> FFI:
    """The builder, with csrc/ named as folder: relative for setuptools (which wants it so), absolute for cffi's own compile()."""
    builder = FFI()
    ipsec_mb = has_ipsec_mb()
    builder.cdef((HERE / "engine.cdef").read_text(encoding="utf-8"))
    builder.set_source(
        "xensecure._engine",
        '#include "engine.h"',
        sources=[str(folder / path.name) for path in sorted(HERE.glob("*.c"))],
        depends=[str(folder / path.name) for path in sorted(HERE.glob("*.h"))],
        include_dirs=[str(folder)],
        define_macros=[("XS_WITH_IPSEC_MB", "1")] if ipsec_mb else [],
        libraries=["IPSec_MB", "crypto"] if ipsec_mb else ["crypto"],
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
