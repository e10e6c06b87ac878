"""``python -m demo [--mib 1024]``: two hosts meet, a domain moves with the real xl, and a man in the middle tries his luck.

Plain TLS stands beside it, to show what he can do where nothing else is in his way.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from demo import plain_tls
from demo.attackers import ByteFlipper, CertificateAuthority, TlsMan
from demo.network import Network, make_network
from demo.show import heading, out, run_on_terminal, said, table, typed
from tests.pair import Host, command
from tests.xl.build import build
from tests.xl.fetch import ToolstackMissingError
from tests.xl.hosts import running_copies
from tests.xl.stream import StreamSpec, make_stream

SMALL_MIB = 64  # the guest that shows that certificates of the CA work as long as nobody is in between


class DemoFailedError(Exception):
    """Something did not go as it must."""


@dataclass
class Demo:
    """Two hosts that have daemons running, and what is found out."""

    network: Network
    folder: Path
    mib: int
    rows: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the folders of both hosts."""
        for name in ("hv1", "hv2"):
            (self.folder / name).mkdir()
        self.source = Host(self.folder / "hv1", "hv1", address=self.network.source_address)
        self.destination = Host(self.folder / "hv2", "hv2", address=self.network.destination_address)

    def close(self) -> None:
        """End the daemons and what they have started."""
        self.source.close()
        self.destination.close()

    # ---- steps

    def meet(self) -> None:
        """Pre-handshake."""
        heading("1. The hosts meet: one token, carried over by hand, makes a shared link key")
        with self.network.inside("hv1"):
            self.source.ctl("init")
        with self.network.inside("hv2"):
            self.destination.ctl("init")
            self.destination.start_daemons()
            typed("hv2", "xensecurectl invite")
            token = self.destination.invite()
        said(token)
        typed("hv1", f"xensecurectl join {token[:12]}…")
        with self.network.inside("hv1"):
            said(self.source.ctl("join", token).stdout)

    def move(self) -> None:
        """The migration, and what it did."""
        heading(f"2. A guest of {self.mib} MiB moves; xl, its stream and xensecure are the real ones")
        stream = make_stream(self.folder / "stream", StreamSpec(mib=self.mib, seed=1, passes=2))
        self.source.xen.create_domain("web1", stream)
        start = time.monotonic()
        status, text = self._migrate("web1")
        seconds = time.monotonic() - start
        if status != 0 or running_copies("web1", self.source.xen, self.destination.xen) != [self.destination.xen]:
            raise DemoFailedError(f"web1 did not move (status {status})\n{self.logs()}")
        with stream.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if self.destination.xen.digest("web1") != digest:
            raise DemoFailedError("what arrived is not what was sent")
        found = re.search(r"moved to hv2: (.*) in .* \((.*)\), (.*)", text)
        speed, details = (found[2], found[3]) if found else ("?", "?")
        size = stream.stat().st_size / 2**20
        self.rows += [
            ("moved", f"web1, {size:.0f} MiB of stream, from hv1 to hv2 in {seconds:.1f} s; it runs on hv2 and nowhere else"),
            ("speed", f"{speed}, reading, encrypting, restoring and checking together"),
            ("paused", f"{self._paused() * 1000:.0f} ms between the guest's stop on hv1 and its start on hv2"),
            ("keys", f"{details}, the link key mixed in"),
            ("SHA-256", f"{digest[:16]}… on both hosts"),
        ]
        # The guest goes back to where it was, for the next step, without being moved.
        self.destination.xen.destroy("web1")

    def _paused(self) -> float:
        """Seconds in which the guest ran nowhere, as the toolstacks' books have it."""
        return self.destination.xen.calls("libxl_domain_unpause")[-1].time - self.source.xen.calls("suspended")[-1].time

    def flip(self) -> None:
        """A man in the middle changes a byte in mid-stream."""
        heading("3. A man in the middle passes everything on, and changes one bit on the way")
        self.source.xen.create_domain("web2", self.folder / "stream")
        with self.network.intercept(self.destination.port) as (listener, options):
            listener.settimeout(30)
            man = ByteFlipper(self.network, listener, self.destination.port, position=self.mib << 19)
            man.start()
            status, _ = self._migrate("web2", options)
            man.join(10)
        if not man.flipped or man.failure:
            raise DemoFailedError(f"the man in the middle did not get to it: {man.failure or man.passed}")
        self._require_stayed("web2", status)
        self._show_log("xensecured", "hv1 (")
        got = "nothing in it was readable" if not man.readable else "PARTS OF IT WERE READABLE"
        self.rows.append(("changed bit, xensecure", f"refused after {man.passed >> 20} MiB; web2 goes on running on hv1; {got}"))

    def impersonate(self) -> None:
        """A man in the middle with certificates that both hosts trust: against plain TLS, and against xensecure."""
        heading("4. A man in the middle holds the CA that both hosts trust, and speaks TLS with each as the other")
        ca = CertificateAuthority(self.folder / "ca")
        small = make_stream(self.folder / "small", StreamSpec(mib=SMALL_MIB, seed=2))
        out("  with a transport of plain TLS, both certificates verified:")
        self._impersonate_plain(ca, small)
        self._use_ca(ca)
        out("  with xensecure, the same CA, and nobody in between:")
        self.source.xen.create_domain("web4", small)
        status, _ = self._migrate("web4")
        if status != 0 or running_copies("web4", self.source.xen, self.destination.xen) != [self.destination.xen]:
            raise DemoFailedError(f"web4 did not move (status {status})\n{self.logs()}")
        out("  with xensecure and the man in the middle:")
        self.source.xen.create_domain("web5", small)
        with self._man_with(ca, self.destination.port) as (man, _, options):
            status, _ = self._migrate("web5", options)
            man.join(10)
        if not (man.source_believed and man.destination_believed):
            raise DemoFailedError(f"the man in the middle did not get through TLS, so this shows nothing: {man.failure}")
        self._require_stayed("web5", status)
        self._show_log("xensecure-launcher", "SECURITY")
        said = f"he got through TLS on both sides, read {man.read} bytes (hello and proof) and no byte of web5"
        self.rows.append(("rogue CA, xensecure", f"refused: {said}; it goes on running on hv1"))

    def _impersonate_plain(self, ca: CertificateAuthority, stream: Path) -> None:
        """The control: he must succeed where only TLS is in his way."""
        self.source.xen.create_domain("web3", stream)
        here, there = ca.issue("hv1"), ca.issue("hv2")
        with self.network.inside("hv2"):
            server = socket.create_server((self.destination.address, 0))
        port = server.getsockname()[1]
        tls = plain_tls.context(ssl.PROTOCOL_TLS_SERVER, str(there.certificate), str(there.key), str(there.ca))
        receiver = plain_tls.Receiver(server, tls, str(self.destination.xen.xl_wrapper()))
        with server, self._man_with(ca, port) as (man, listener, _):
            receiver.start()
            where = f"{self.destination.address} {listener.getsockname()[1]}"
            transport = f"{sys.executable} {plain_tls.__file__} {here.certificate} {here.key} {here.ca} {where}"
            typed("hv1", "xl migrate -s 'plain-tls …' web3 hv2")
            with self.network.inside("hv1"):
                status, _ = run_on_terminal(self.source.xen, "migrate", "-s", transport, "web3", "hv2")
            receiver.join(10)
            man.join(10)
        if status != 0 or not man.changed or self.destination.xen.digest("web3") == hashlib.sha256(stream.read_bytes()).hexdigest():
            raise DemoFailedError(f"the man in the middle fails against plain TLS too (status {status}), so this shows nothing: {man.failure}")
        words = f"web3 moved; he read all {man.read >> 20} MiB of it and changed a byte of its memory, and nobody noticed"
        out(f"    {words}")
        self.rows.append(("rogue CA, plain TLS", words))

    def _use_ca(self, ca: CertificateAuthority) -> None:
        """Both hosts trust the site's CA from now on, and have certificates of it."""
        for host in (self.source, self.destination):
            files = ca.issue(host.name)
            host.configure(f'[trust]\nmode = "ca"\nca = "{files.ca}"\ncertificate = "{files.certificate}"\nkey = "{files.key}"\n')
        with self.network.inside("hv2"):
            self.destination.stop_daemons()
            self.destination.start_daemons()

    @contextlib.contextmanager
    def _man_with(self, ca: CertificateAuthority, port: int) -> Iterator[tuple[TlsMan, socket.socket, str]]:
        """The man with the CA, between hv1 and a port of hv2; his socket, and what leads xensecure to it."""
        with self.network.intercept(port) as (listener, options):
            listener.settimeout(30)
            man = TlsMan(self.network, listener, port, ca=ca, change_at=SMALL_MIB << 19)
            man.start()
            yield man, listener, options

    # ---- means

    def _migrate(self, domain: str, options: str = "") -> tuple[int, str]:
        transport = " ".join(("xensecure", options)).strip()
        typed("hv1", f"xl migrate -s {transport if ' ' not in transport else repr(transport)} {domain} hv2")
        words = f"{command('xensecure')} -F {self.source.config} {options}".strip()
        with self.network.inside("hv1"):
            return run_on_terminal(self.source.xen, "migrate", "-s", words, domain, "hv2")

    def _require_stayed(self, domain: str, status: int) -> None:
        if status == 0 or running_copies(domain, self.source.xen, self.destination.xen) != [self.source.xen]:
            raise DemoFailedError(f"{domain} is not running on hv1 alone (status {status})\n{self.logs()}")

    def _show_log(self, daemon: str, word: str) -> None:
        """The last line of a daemon's log that has the word in it."""
        out(f"  hv2's log, {daemon}:")
        said([line for line in self.destination.log(daemon).splitlines() if word in line][-1])

    def logs(self) -> str:
        """What the daemons have said."""
        return self.destination.log("xensecured") + self.destination.log("xensecure-launcher")


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="xensecure-demo-"))
    try:
        folder.chmod(0o755)  # the receivers' user has to reach the launcher's socket
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stop(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _show(mib: int) -> None:
    started = time.monotonic()
    build()  # with the network that this machine has
    with _folder() as folder, make_network() as network:
        demo = Demo(network, folder, mib)
        try:
            out(f"Two hosts, hv1 and hv2, on {network.words}.")
            demo.meet()
            demo.move()
            demo.flip()
            demo.impersonate()
        except AssertionError as error:  # of tests/pair.py, which starts and asks the daemons
            raise DemoFailedError(f"{error}\n{demo.logs()}") from None
        finally:
            demo.close()
        table("Report", [*demo.rows, ("in all", f"{time.monotonic() - started:.0f} s")])
        out("\nThe same with a live guest on two real Xen hosts, in QEMU: make xen-demo")


def main() -> int:
    """Run it all; 1 if anything did not go as it must."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the guest (default 1024)")
    chosen = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        _show(chosen.mib)
    except (DemoFailedError, ToolstackMissingError) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ndemo: interrupted; everything it started has been ended\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
