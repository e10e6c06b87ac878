"""The one call of libxl's that xl 4.17 has no command for: let a suspended domain run again.

libxl.h and xentoollog.h of Xen 4.14 to 4.20 have these prototypes:

    int libxl_ctx_alloc(libxl_ctx **pctx, int version, unsigned flags, xentoollog_logger *lg);
    int libxl_ctx_free(libxl_ctx *ctx);
    int libxl_name_to_domid(libxl_ctx *ctx, const char *name, uint32_t *domid);
    int libxl_domain_resume(libxl_ctx *ctx, uint32_t domid, int suspend_cancel, const libxl_asyncop_how *ao_how);
    xentoollog_logger_stdiostream *xtl_createlogger_stdiostream(FILE *f, xentoollog_level min_level, unsigned flags);
    void xtl_logger_destroy(struct xentoollog_logger *logger);
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from ..proto.errors import SystemFailure

_VERSION = 0  # LIBXL_VERSION
_WARN = 7  # XTL_WARN of xentoollog.h: its lines go to stderr
_COOPERATIVE = 1  # suspend_cancel: the guest sees its suspension fail and goes on, as xl_migrate.c has it
_STEM = "libxenlight.so."
_FOLDERS = ("usr/lib", "usr/lib/*", "usr/lib64", "usr/local/lib", "usr/local/lib64", "usr/local/lib/*", "usr/lib/xen-*/lib")


def resume_domain(name: str) -> None:
    """Let a suspended domain run again; SystemFailure if libxl cannot be used, or fails."""
    library = _load()
    with _as_the_shell_has_it(), _context(library) as context:
        domid = ctypes.c_uint32()
        if library.libxl_name_to_domid(context, name.encode(), ctypes.byref(domid)) != 0:
            raise SystemFailure(f"libxl does not know a domain {name!r}")
        status = library.libxl_domain_resume(context, domid, _COOPERATIVE, None)
        if status != 0:
            raise SystemFailure(f"libxl_domain_resume of {name!r} failed with {status}; it is suspended as before, and can be tried again")


@contextlib.contextmanager
def _as_the_shell_has_it() -> Iterator[None]:
    """Let ^C end us while libxl waits for the guest: Python would hear of it only afterwards."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _context(library: ctypes.CDLL) -> Iterator[ctypes.c_void_p]:
    toollog = library if hasattr(library, "xtl_createlogger_stdiostream") else _open("libxentoollog.so.1")
    toollog.xtl_createlogger_stdiostream.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint)
    toollog.xtl_createlogger_stdiostream.restype = ctypes.c_void_p
    toollog.xtl_logger_destroy.argtypes = (ctypes.c_void_p,)
    toollog.xtl_logger_destroy.restype = None
    stderr = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
    logger = ctypes.c_void_p(toollog.xtl_createlogger_stdiostream(stderr, _WARN, 0))
    context = ctypes.c_void_p()
    try:
        if not logger or library.libxl_ctx_alloc(ctypes.byref(context), _VERSION, 0, logger) != 0:
            raise SystemFailure("libxl cannot be used; is this the first domain of a Xen host, and are you root?")
        yield context
    finally:
        library.libxl_ctx_free(context)
        toollog.xtl_logger_destroy(logger)


def _load() -> ctypes.CDLL:
    library = _open(_find())
    pointer = ctypes.c_void_p
    prototypes = {
        "libxl_ctx_alloc": (ctypes.POINTER(pointer), ctypes.c_int, ctypes.c_uint, pointer),
        "libxl_ctx_free": (pointer,),
        "libxl_name_to_domid": (pointer, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint32)),
        "libxl_domain_resume": (pointer, ctypes.c_uint32, ctypes.c_int, pointer),
    }
    for name, arguments in prototypes.items():
        function = getattr(library, name, None)
        if function is None:
            raise SystemFailure(f"libxl has no {name}: {library._name}")
        function.argtypes, function.restype = arguments, ctypes.c_int
    return library


def _open(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise SystemFailure(f"{name} cannot be loaded ({error}); is Xen's libxl installed?") from None


def _find() -> str:
    """The library of the Xen that runs. Its structures are its release's own: another one's must not be taken."""
    found = _installed()
    version = _running_version()
    if version:
        return found.get(version, f"{_STEM}{version}")
    if len(found) == 1:
        return next(iter(found.values()))
    which = f"those of {', '.join(sorted(found))} are installed" if found else "none is installed"
    raise SystemFailure(f"the libxl of the running Xen cannot be told: /sys/hypervisor does not say which Xen that is, and {which}")


def _running_version() -> str:
    folder = Path("/sys/hypervisor/version")
    with contextlib.suppress(OSError):
        return f"{(folder / 'major').read_text().strip()}.{(folder / 'minor').read_text().strip()}"
    return ""


def _installed() -> dict[str, str]:
    """Path of each release's library: where the dynamic loader is told to look first, then where packages and builds put it."""
    told = [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder.startswith("/")]
    usual = [folder for pattern in _FOLDERS for folder in sorted(Path("/").glob(pattern))]
    found: dict[str, str] = {}
    for path in (path for folder in (*told, *usual) for path in sorted(folder.glob(f"{_STEM}*"))):
        version = path.name.removeprefix(_STEM)
        if re.fullmatch(r"[0-9]+\.[0-9]+", version):
            found.setdefault(version, str(path))
    return found
