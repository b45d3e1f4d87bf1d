"""Messages between driver, supervisor and host: a JSON object, and bytes that may go with it.

On the wire: two unsigned 32-bit lengths in network order (JSON, payload), then both. A message of ZeroMQ is any number
of them. Pickled functions and values travel only so: over socket pairs made by the parent for its own child, and over
ZeroMQ's authenticated connections.
"""

from __future__ import annotations

import json
import socket
import struct
from collections import deque
from collections.abc import Mapping
from typing import Any

_LENGTHS = struct.Struct("!II")
_as_json = json.JSONEncoder(check_circular=False).encode
_of_json = json.JSONDecoder().raw_decode
#: a payload is smaller
MOST_BYTES = 2**31
_AT_ONCE = 1 << 16

Frame = tuple[dict[str, Any], bytes]


def pack(message: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """The bytes of one frame."""
    body = _as_json(message).encode()
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

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """Take what was read; return the frames that are now whole."""
        self._buffer += data
        frames: list[Frame] = []
        start = 0
        while len(self._buffer) - start >= _LENGTHS.size:
            body, payload = _LENGTHS.unpack_from(self._buffer, start)
            middle = start + _LENGTHS.size + body
            if len(self._buffer) < middle + payload:
                break
            message, _ = _of_json(self._buffer[start + _LENGTHS.size : middle].decode())
            start = middle + payload
            frames.append((message, bytes(memoryview(self._buffer)[middle:start]) if payload else b""))
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


class Receiver:
    """The frames of a blocking socket, one after the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._unpacker = Unpacker()
        self._frames: deque[Frame] = deque()
        self._room = memoryview(bytearray(_AT_ONCE))

    def next(self) -> Frame | None:
        """The next one, waited for; None when the peer is gone."""
        while not self._frames:
            if not (size := self._socket.recv_into(self._room)):
                return None
            self._frames.extend(self._unpacker.feed(self._room[:size]))
        return self._frames.popleft()
