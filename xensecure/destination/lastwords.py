"""What xl at the destination writes when no receiver is there any more to read it: a report that the source cannot hear is known here alone."""

from __future__ import annotations

from ..proto import xlwords

PIECE = 1 << 16  # bytes that are read at once, and kept: xl's report and GO are some hundred


class LastWords:
    """The end of xl's standard output, as the launcher reads it."""

    def __init__(self) -> None:
        self._bytes = b""

    def add(self, piece: bytes) -> int | None:
        """What has been read; returns the status of xl's report, once that is there."""
        self._bytes = (self._bytes + piece)[-PIECE:]
        _, found, status = self._bytes.partition(xlwords.REPORT)  # the status byte follows; 0: the domain runs here
        return status[0] if found and status else None

    def rest(self) -> int | None:
        """The status of a report whose words a receiver had read: xl writes words and status in two pieces, and GO behind a failure's."""
        words = self._bytes.removesuffix(xlwords.GO)
        failed = words != self._bytes
        return words[-1] if words and xlwords.REPORT.endswith(words[:-1]) and failed == (words[-1] != 0) else None
