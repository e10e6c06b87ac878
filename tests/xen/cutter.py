"""Cuts the link between the two hosts when `lab-at` asks for it: ``python -m tests.xen.cutter COUNT SECONDS``, inside the lab's namespace.

The cut comes when COUNT of them have asked, so that it hits as many migrations at the same moment, and lasts SECONDS. Nobody is told: what the hosts
send each other is dropped on the bridge, each other's answers to ARP too; the lab itself still reaches both. "cut" and "up" come to stdout.
"""

from __future__ import annotations

import socket
import sys
import time

from tests.xen.hosts import CUTTER, together

_PATIENCE_SECONDS = 300


def main() -> None:
    """One cut."""
    count, seconds = int(sys.argv[1]), float(sys.argv[2])
    with socket.create_server(CUTTER) as listener:
        listener.settimeout(_PATIENCE_SECONDS)
        print("ready", flush=True)
        asking = []
        while len(asking) < count:
            asking.append(listener.accept()[0])
            print("asked", flush=True)
        try:
            together(cut=True)
            print("cut", flush=True)
            for one in asking:
                one.sendall(b"\n")
                one.close()
            time.sleep(seconds)
        finally:
            together()
        print("up", flush=True)


if __name__ == "__main__":
    main()
