"""Reading and writing the integers and vectors of docs/protocol.md; strict: what is left over is an error."""

from __future__ import annotations

from .errors import ProtocolError


class Reader:
    """Takes fields off the front of a message.

    Every ``pull`` raises ProtocolError when the message is too short; ``finish`` when it is too long.
    """

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        self._data = memoryview(data)  # a view: what is pulled is the only copy, for some of it is secret
        self._at = 0
        self._what = what

    def fault(self, problem: str) -> ProtocolError:
        """An error that names the message."""
        return ProtocolError(f"malformed {self._what}: {problem}")

    def pull_bytes(self, length: int) -> bytes:
        """The next ``length`` bytes."""
        end = self._at + length
        if end > len(self._data):
            raise self.fault("it ends too early")
        piece = bytes(self._data[self._at : end])
        self._at = end
        return piece

    def pull_uint(self, size: int) -> int:
        """An unsigned big-endian integer of ``size`` bytes."""
        return int.from_bytes(self.pull_bytes(size), "big")

    def pull_vector(self, size: int) -> bytes:
        """Bytes behind their length, an integer of ``size`` bytes."""
        return self.pull_bytes(self.pull_uint(size))

    def pull_text(self, size: int) -> str:
        """A vector of UTF-8 without control characters: it ends up in logs and on terminals."""
        try:
            text = self.pull_vector(size).decode("utf-8")
        except UnicodeDecodeError:
            raise self.fault("text that is not UTF-8") from None
        if not text.isprintable():
            raise self.fault("text with control characters")
        return text

    def finish(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._data):
            raise self.fault(f"{len(self._data) - self._at} bytes too many")


def push_uint(value: int, size: int) -> bytes:
    """An unsigned big-endian integer of ``size`` bytes."""
    return value.to_bytes(size, "big")


def push_vector(data: bytes, size: int) -> bytes:
    """Bytes behind their length, an integer of ``size`` bytes."""
    return push_uint(len(data), size) + data


def push_text(text: str, size: int) -> bytes:
    """UTF-8 behind its length."""
    return push_vector(text.encode("utf-8"), size)


def push_texts(texts: tuple[str, ...]) -> bytes:
    """``u8 n`` and n short texts."""
    return push_uint(len(texts), 1) + b"".join(push_text(text, 1) for text in texts)


def pull_texts(reader: Reader, most: int) -> tuple[str, ...]:
    """What ``push_texts`` wrote, at most ``most`` of them."""
    count = reader.pull_uint(1)
    if count > most:
        raise reader.fault(f"{count} entries where {most} are allowed")
    return tuple(reader.pull_text(1) for _ in range(count))
