"""What xensecure is not: a transport of plain TLS 1.3, both certificates verified, as stunnel would do it. The man in the middle's control.

As a program it is the source's side: plain_tls.py CERTIFICATE KEY CA ADDRESS PORT HOST xl migrate-receive
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import subprocess
import sys
import threading

_PIECE = 1 << 20


def context(side: int, certificate: str, key: str, ca: str) -> ssl.SSLContext:
    """TLS 1.3 that trusts the CA, demands a certificate of it, and shows one."""
    made = ssl.SSLContext(side)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.load_cert_chain(certificate, key)
    made.load_verify_locations(ca)
    made.check_hostname = side == ssl.PROTOCOL_TLS_CLIENT
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def carry(sock: ssl.SSLSocket, giver: int, taker: int) -> None:
    """Between a connection and two pipes, until one of those that give has ended."""
    poll = select.poll()
    for descriptor in (sock.fileno(), giver):
        poll.register(descriptor, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            data = os.read(giver, _PIECE) if descriptor == giver else sock.recv(_PIECE)
            if not data:
                return
            if descriptor == giver:
                sock.sendall(data)
            else:
                with open(taker, "wb", closefd=False) as pipe:
                    pipe.write(data)


class Receiver(threading.Thread):
    """The destination's side: takes one connection and runs xl for it."""

    def __init__(self, listener: socket.socket, tls: ssl.SSLContext, xl: str) -> None:
        super().__init__(daemon=True)
        self._listener = listener
        self._tls = tls
        self._xl = xl

    def run(self) -> None:
        """Serve."""
        connection, _ = self._listener.accept()
        connection.settimeout(20)
        with self._tls.wrap_socket(connection, server_side=True) as sock:
            xl = subprocess.Popen([self._xl, "migrate-receive"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            if xl.stdin is None or xl.stdout is None:
                return
            carry(sock, xl.stdout.fileno(), xl.stdin.fileno())
            xl.stdin.close()
            xl.wait()


def main() -> int:
    """The source's side."""
    certificate, key, ca, address, port, host = sys.argv[1:7]
    tls = context(ssl.PROTOCOL_TLS_CLIENT, certificate, key, ca)
    with tls.wrap_socket(socket.create_connection((address, int(port))), server_hostname=host) as sock:
        carry(sock, 0, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
