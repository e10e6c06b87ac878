"""The protocol without I/O: bytes in, events out; no socket, file, clock or thread (docs/protocol.md)."""
