"""What a destination tells a peer of itself: the answer to CHECK (docs/protocol.md, section 8)."""

from __future__ import annotations

from dataclasses import dataclass

from . import limits
from .messages import printable
from .wire import Reader, pull_texts, push_text, push_texts, push_uint


@dataclass(frozen=True)
class HostReport:
    """One host, as its keeper sees it at this moment. Memory is in bytes, ``clock`` in seconds since 1970 (UTC).

    ``memory_free``: what a domain could get, with what dom0 would give where xl balloons it.
    ``xen``: the hypervisor's version, "" where xl does not say; then memory and CPU's features are 0 and "" as well, and ``faults`` says why.
    ``cpu_features``, ``virtualization``: as ``xl info`` has them (hw_caps, virt_caps). ``sessions``: migrations that arrive just now.
    ``ciphers``: the AEAD backends of this build, ``cipher``: the one in use. ``faults``: what would keep any domain from arriving.
    ``refusal``: why the domain that was asked about would be refused; "" if it would not be, or none was asked about.
    """

    xensecure: str
    clock: int
    xen: str = ""
    memory_total: int = 0
    memory_free: int = 0
    cpus: int = 0
    cpu_vendor: str = ""
    cpu_model: str = ""
    cpu_features: str = ""
    virtualization: str = ""
    sessions: int = 0
    sessions_max: int = 0
    lanes: int = 1
    window: int = limits.WINDOW
    zstd: bool = False
    cipher: str = ""
    ciphers: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    refusal: str = ""

    def push(self) -> bytes:
        """The payload; texts past their limits are cut."""
        numbers = ((self.memory_total, 8), (self.memory_free, 8), (self.cpus, 4), (self.sessions, 4), (self.sessions_max, 4))
        bounds = ((self.lanes, 1), (self.window, 4), (self.zstd, 1))
        texts = (self.xensecure, self.xen, self.cpu_vendor, self.cpu_model, self.cpu_features, self.virtualization, self.cipher)
        return b"".join(
            (
                push_uint(self.clock, 8),
                *(push_uint(value, size) for value, size in (*numbers, *bounds)),
                *(push_text(_line(text), 1) for text in texts),
                push_texts(tuple(_line(text) for text in self.ciphers[: limits.CHECK_CIPHERS_MAX])),
                push_texts(tuple(_line(text) for text in self.faults[: limits.CHECK_FAULTS_MAX])),
                push_text(_line(self.refusal, limits.REASON_TEXT_MAX), 2),
            )
        )

    @classmethod
    def pull(cls, payload: bytes) -> HostReport:
        """Read the payload; ProtocolError for anything that ``push`` does not write."""
        reader = Reader(payload, "a host's report")
        clock, total, free = (reader.pull_uint(8) for _ in range(3))
        cpus, sessions, sessions_max = (reader.pull_uint(4) for _ in range(3))
        lanes, window, zstd = reader.pull_uint(1), reader.pull_uint(4), reader.pull_uint(1)
        xensecure, xen, vendor, model, features, virtualization, cipher = (reader.pull_text(1) for _ in range(7))
        report = cls(
            xensecure=xensecure,
            clock=clock,
            xen=xen,
            memory_total=total,
            memory_free=free,
            cpus=cpus,
            cpu_vendor=vendor,
            cpu_model=model,
            cpu_features=features,
            virtualization=virtualization,
            sessions=sessions,
            sessions_max=sessions_max,
            lanes=lanes,
            window=window,
            zstd=zstd == 1,
            cipher=cipher,
            ciphers=pull_texts(reader, limits.CHECK_CIPHERS_MAX),
            faults=pull_texts(reader, limits.CHECK_FAULTS_MAX),
            refusal=reader.pull_text(2),
        )
        reader.finish()
        if zstd > 1 or len(report.refusal.encode()) > limits.REASON_TEXT_MAX:
            raise reader.fault("a flag that is none, or a refusal that is too long")
        return report


def _line(text: str, most: int = limits.CHECK_TEXT_MAX) -> str:
    """One harmless line of at most so many bytes."""
    return printable(text).encode("utf-8", "replace")[:most].decode("utf-8", "ignore")
