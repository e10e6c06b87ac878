"""A TLS server of the attacker's that speaks as he likes it: an old version, another group, another ALPN; behind it his own xl."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.attack.certificates import Pem
from tests.attack.places import XL_WORDS
from tests.attack.segment import ATTACKER, Segment

_PIECE = 1 << 16


@dataclass(frozen=True)
class Speech:
    """What he will speak and nothing else; ``alpn``: "" for none."""

    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    group: str = ""
    alpn: str = "xensecure/1"


class Door:
    """Takes connections on a port of the attacker's; each that gets through TLS is given to the receiving script."""

    def __init__(self, segment: Segment, port: int, pem: Pem, speech: Speech, script: Path) -> None:
        self._segment = segment
        self._script = script
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pem.certificate, pem.key)
        self._context.minimum_version = self._context.maximum_version = speech.version
        if speech.group:
            self._context.set_ecdh_curve(speech.group)
        if speech.alpn:
            self._context.set_alpn_protocols([speech.alpn])
        self.tried = 0  # connections
        self.spoken: set[str] = set()  # TLS versions of handshakes that were completed
        self.heard = 0  # bytes that came inside TLS
        self.failures: list[str] = []
        with segment.inside(ATTACKER):
            self._listener = socket.create_server(("", port))
        self._listener.settimeout(0.2)
        self.busy = False
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over = True
        self._thread.join(20)
        self._listener.close()

    def _run(self) -> None:
        self._segment.enter(ATTACKER)
        while not self._over:
            with contextlib.suppress(TimeoutError):
                sock, _ = self._listener.accept()
                self.tried += 1
                self.busy = True
                self._serve(sock)
                self.busy = False

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(10)
        try:
            with sock, self._context.wrap_socket(sock, server_side=True) as tls:
                self.spoken.add(str(tls.version()))
                self._give(tls)
        except (ssl.SSLError, OSError) as error:
            self.failures.append(str(error))

    def _give(self, tls: ssl.SSLSocket) -> None:
        words = [str(self._script), *XL_WORDS]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            self._carry(tls, process.stdin.fileno(), process.stdout.fileno())
        finally:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.stdout.close()
            process.wait()

    def _carry(self, tls: ssl.SSLSocket, taker: int, giver: int) -> None:
        with open(taker, "wb", buffering=0, closefd=False) as pipe, open(giver, "rb", buffering=0, closefd=False) as answers:
            while not self._over:
                ready = {tls.fileno()} if tls.pending() else set(select.select([tls.fileno(), giver], [], [], 0.2)[0])
                for one in ready:
                    data = answers.read(_PIECE) if one == giver else tls.recv(_PIECE)
                    if not data:
                        return
                    if one != giver:
                        self.heard += len(data)
                        rest = memoryview(data)
                        while rest:
                            rest = rest[pipe.write(rest) :]
                    else:
                        tls.sendall(data)
