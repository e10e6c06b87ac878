"""The source's session between "ready" and GO, in one process: what xl gets when a stop and GO come in one turn of the pump."""

from __future__ import annotations

import os
import socket
import threading
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from xensecure.link.config import HostOptions
from xensecure.link.engine import Compression, Link, Pump, PumpOptions, Side
from xensecure.proto import limits, xlwords
from xensecure.proto.errors import XensecureError
from xensecure.proto.handshake import LinkKeys
from xensecure.proto.keyschedule import DirectionKeys
from xensecure.proto.messages import Accept
from xensecure.source import session as module


def _keys(mine: int, other: int) -> LinkKeys:
    def direction(number: int) -> DirectionKeys:
        return DirectionKeys(key=bytes([number]) * 16 + bytes([number]) * 16, iv=bytes([number + 9]) * 6 + bytes([number + 9]) * 6)

    return LinkKeys(send=direction(mine), receive=direction(other))


def test_stop_and_go_in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM comes while Python looks at something else, and so does GO: the pump reads it, and tells of the stop first: xl gets its domain back."""
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.settimeout(0)
    here_in, xl_in = os.pipe()
    xl_out, here_out = os.pipe()
    there_in, there_in_write = os.pipe()
    there_out_read, there_out = os.pipe()
    there_err_read, _there_err = os.pipe()
    quiet, bell = os.pipe()
    wake, end = os.pipe()
    os.set_blocking(wake, False)
    monkeypatch.setattr(module, "_STDIN", here_in)
    monkeypatch.setattr(module, "_STDOUT", here_out)
    monkeypatch.setattr(module, "_GO_SECONDS", 3.0)
    destination = Pump(
        PumpOptions(
            side=Side.DESTINATION, channels=(there_in_write, there_out_read, there_err_read), wake=quiet,
            send_windows=(0, limits.BACK_WINDOW, limits.BACK_WINDOW), receive_windows=(1 << 20, 0, 0), keepalive=1, silence=60,
        )
    )
    destination.attach(Link(_keys(2, 1)), far.fileno())
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            destination.run(0.05)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    os.write(there_out, xlwords.BANNER + xlwords.READY)

    class Stop:
        asked = hung_up = asks_status = False

        def __init__(self) -> None:
            self.wake = wake

        def ring(self) -> None:
            os.write(end, b"\0")

        def drain(self) -> None:
            try:
                os.read(wake, 512)
            except BlockingIOError:
                return

    stop = Stop()
    got = bytearray()

    def look(*_: object, **__: object) -> None:
        """In the place of whatever Python does once a second."""
        if stop.asked or len(got) == len(xlwords.BANNER + xlwords.READY):
            return
        while len(got) < len(xlwords.BANNER + xlwords.READY):
            got.extend(os.read(xl_out, 4096))
        os.write(xl_in, xlwords.GO)
        stop.asked = True
        stop.ring()

    record = MagicMock(progress=look)
    progress = MagicMock(interval=0.2, domain="web1")
    options = HostOptions()
    job = SimpleNamespace(reread=lambda: options, options=options, request=SimpleNamespace(checkpointed=False))
    connection = SimpleNamespace(channel=SimpleNamespace(link=Link(_keys(1, 2)), sock=near, close=near.close))
    guard = MagicMock(stopped="", why_broken=lambda: "")
    makers = module.Makers(MagicMock(), MagicMock())
    session = module.Session(
        connection, Accept(bytes(16), 1 << 20), job, stop, progress, record, Compression.OFF, makers, guard  # type: ignore[arg-type]
    )
    try:
        ended: object = session.run()
    except XensecureError as error:
        ended = error
    over.set()
    server.join()
    destination.close()
    os.close(here_out)
    os.close(there_in_write)
    assert xlwords.GO not in os.read(there_in, 4096), "GO went out"
    assert os.read(xl_out, 4096) == xlwords.receivers_words(255)[len(got) :], ended
    _ = bell
