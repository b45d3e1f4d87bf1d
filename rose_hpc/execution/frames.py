"""Messages between driver, supervisor and host: a JSON object, and bytes that may go with it.

On the wire: two unsigned 32-bit lengths in network order (JSON, payload), then both. A message of ZeroMQ is any number
of them. Pickled functions and values travel only so: over socket pairs made by the parent for its own child, and over
ZeroMQ's authenticated connections.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

_LENGTHS = struct.Struct("!II")
#: a payload is smaller
MOST_BYTES = 2**31

Frame = tuple[dict[str, Any], bytes]


def pack(message: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """The bytes of one frame."""
    body = json.dumps(message).encode()
    if len(payload) >= MOST_BYTES:
        raise ValueError(f"a value of {len(payload)} bytes is too large to send; leave large data in files")
    return _LENGTHS.pack(len(body), len(payload)) + body + payload


class Unpacker:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def rest(self) -> int:
        """Bytes of a frame that is not whole."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """Take what was read; return the frames that are now whole."""
        self._buffer += data
        frames: list[Frame] = []
        start = 0
        while len(self._buffer) - start >= _LENGTHS.size:
            body, payload = _LENGTHS.unpack_from(self._buffer, start)
            middle = start + _LENGTHS.size + body
            if len(self._buffer) < middle + payload:
                break
            frames.append(
                (
                    json.loads(self._buffer[start + _LENGTHS.size : middle]),
                    bytes(self._buffer[middle : middle + payload]),
                )
            )
            start = middle + payload
        del self._buffer[:start]
        return frames


def unpack(data: bytes) -> list[Frame]:
    """The frames that ``data`` consists of.

    Raises:
        ValueError: it does not consist of whole frames.
    """
    unpacker = Unpacker()
    frames = unpacker.feed(data)
    if unpacker.rest:
        raise ValueError(f"{unpacker.rest} bytes are no whole frame")
    return frames


def receive(sock: socket.socket) -> Frame | None:
    """The next frame of a blocking socket; None when the peer is gone."""
    head = _exactly(sock, _LENGTHS.size)
    if head is None:
        return None
    body, payload = _LENGTHS.unpack(head)
    data = _exactly(sock, body + payload)
    if data is None:
        return None
    return json.loads(data[:body]), data[body:]


def _exactly(sock: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        n = sock.recv_into(view[got:])
        if n == 0:
            return None
        got += n
    return bytes(data)
