"""Writes columns of numbers as an HDF5 file with Python alone: no package is imported that Python does not bring.

For environments that run where h5py is not installed, or a thousand at a time, and should be small. The layout is
HDF5's oldest (superblock 0): a root group, and a contiguous dataset for each column. The names of its parts are those
of "HDF5 File Format Specification Version 3.0"; docs/format.md says what a shard has to have in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from math import prod
from struct import pack

Numbers = "array[float] | array[int]"
UNDEFINED = b"\xff" * 8
#: the root group's header lies behind the superblock, and its B-tree behind that
ROOT_AT, TREE_AT = 96, 136
#: a node of a B-tree, with its 32 children and 33 keys
TREE_BYTES = 24 + 8 * (32 + 33)
#: of an array's typecode: HDF5's class of the type, its size, and the rest of its description
TYPES = {
    "f": (1, 4, (0x20, 31), pack("<HHBBBBI", 0, 32, 23, 8, 0, 23, 127)),
    "d": (1, 8, (0x20, 63), pack("<HHBBBBI", 0, 64, 52, 11, 0, 52, 1023)),
    "b": (0, 1, (0x08, 0), pack("<HH", 0, 8)),
    "B": (0, 1, (0x00, 0), pack("<HH", 0, 8)),
    "i": (0, 4, (0x08, 0), pack("<HH", 0, 32)),
    "q": (0, 8, (0x08, 0), pack("<HH", 0, 64)),
}


def write(path: str | os.PathLike[str], columns: Mapping[str, tuple[Numbers, tuple[int, ...]]]) -> None:
    """Write a new file.

    Args:
        path: of the file.
        columns: by name: the numbers, row after row, and the shape of a row (``()`` for one number). An array's
            typecode says what they are: f, d (floats of 4 and 8 bytes), b, B, i, q (integers of 1, 1, 4 and 8).

    Raises:
        OSError: it cannot be written.
    """
    names = sorted(columns)  # as the symbol table has them
    room = max(8, len(names))
    heap, in_heap = bytes(8), []
    for name in names:
        in_heap.append(len(heap))
        heap += _padded(name.encode() + b"\0")
    heap_at = TREE_AT + TREE_BYTES
    table_at = heap_at + 32 + len(heap)
    at = first = table_at + 8 + 40 * room
    headers_at, contents = [], []
    for name in names:  # where numbers lie is not known yet, how long headers are is
        headers_at.append(at)
        at += len(_header(columns[name], 0))
    headers = b""
    for name in names:
        headers += _header(columns[name], at)
        contents.append(_padded(_little(columns[name][0]).tobytes()))
        at += len(contents[-1])
    group = pack("<QQ", TREE_AT, heap_at)
    superblock = b"\x89HDF\r\n\x1a\n" + pack("<8BHHIQ", 0, 0, 0, 0, 0, 8, 8, 0, -(-room // 2), 16, 0, 0)
    superblock += UNDEFINED + pack("<Q", at) + UNDEFINED + pack("<QQII16s", 0, ROOT_AT, 1, 0, group)
    tree = b"TREE" + pack("<BBH", 0, 0, 1) + UNDEFINED * 2 + pack("<QQQ", 0, table_at, in_heap[-1] if names else 0)
    table = b"SNOD" + pack("<BBH", 1, 0, len(names))
    for places in zip(in_heap, headers_at, strict=True):
        table += pack("<QQII16s", *places, 0, 0, b"")
    with open(path, "wb") as file:
        file.write(superblock + _object([(0x0011, group)]) + tree.ljust(TREE_BYTES, b"\0"))
        file.write(b"HEAP" + pack("<BBBBQQQ", 0, 0, 0, 0, len(heap), 1, heap_at + 32) + heap)
        file.write(table.ljust(first - table_at, b"\0") + headers + b"".join(contents))


def _little(numbers: Numbers) -> Numbers:
    """Little-endian, on any machine."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers


def _header(column: tuple[Numbers, tuple[int, ...]], at: int) -> bytes:
    """The object header of a dataset whose numbers lie at ``at``."""
    numbers, shape = column
    kind, size, bits, rest = TYPES[numbers.typecode]
    lengths = (len(numbers) // prod(shape), *shape)
    space = pack("<BBBBI", 1, len(lengths), 0, 0, 0) + b"".join(pack("<Q", n) for n in lengths)
    datatype = pack("<BBBBI", 0x10 | kind, *bits, 0, size) + rest
    fill = pack("<BBBB", 2, 1, 0, 0)
    layout = pack("<BB", 3, 1) + (pack("<Q", at) if numbers else UNDEFINED) + pack("<Q", len(numbers) * size)
    return _object([(0x0001, space), (0x0003, datatype), (0x0005, fill), (0x0008, layout)])


def _object(messages: list[tuple[int, bytes]]) -> bytes:
    """An object header (version 1)."""
    body = b""
    for kind, content in messages:
        content = _padded(content)
        body += pack("<HHBBBB", kind, len(content), 0, 0, 0, 0) + content
    return pack("<BBHIII", 1, 0, len(messages), 1, len(body), 0) + body


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 8)
