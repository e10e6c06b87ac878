"""Where it is measured: loopback, and two network namespaces with a link of 1 Gbit/s between them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

from demo.network import Loopback, Namespaces, Network, NoNamespacesError

LOOPBACK, GIGABIT = "loopback", "1 Gbit/s"
RATE = "1gbit"
# burst: two of the largest packets that a veth pair passes on whole (64 KiB). limit: 4 ms of the link, a switch port's buffer.
_SHAPE = ("root", "tbf", "rate", RATE, "burst", "128kb", "limit", "512kb")


class NoLinkError(Exception):
    """This machine does not let us make a network of our own; the text says why."""


@contextlib.contextmanager
def loopback() -> Iterator[Network]:
    """Both ends on 127.0.0.1."""
    yield Loopback()


@contextlib.contextmanager
def gigabit() -> Iterator[Network]:
    """Both ends in namespaces of their own, each sending at most 1 Gbit/s; gone on leaving. NoLinkError where that is not allowed."""
    if os.geteuid() != 0:
        raise NoLinkError("only root can make network namespaces")
    with contextlib.ExitStack() as stack:
        try:
            network = stack.enter_context(Namespaces())
            for host in ("hv1", "hv2"):
                with network.inside(host):
                    subprocess.run(["tc", "qdisc", "add", "dev", "eth0", *_SHAPE], capture_output=True, check=True)
        except (NoNamespacesError, FileNotFoundError) as error:
            raise NoLinkError(str(error)) from None
        except subprocess.CalledProcessError as error:
            raise NoLinkError(f"tc: {error.stderr.decode(errors='replace').strip()}") from None
        yield network
