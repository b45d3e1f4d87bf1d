"""Files that nobody should trust: what HDF5 can do besides columns, altered, with the checksums that a forger gives."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.shard import ShardWriter

_FOOTER = struct.Struct("<4Q8s16s")
_NUMBERS = [0, 1, 0x7F, 0xFF, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**48, 2**63 - 1, 2**64 - 1]
#: what becomes of a word of JSON
_WORDS = [
    b"-1",
    b"0",
    b"1e999",
    b"9223372036854775807",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'""',
    b'"../secret"',
    b"[[[[[[[[",
]


# -- files to start from -----------------------------------------------------------------------------------------------


def shard(path: Path, rows: int = 12) -> Path:
    """A small shard with every kind of column."""
    rng = np.random.default_rng(0)
    with ShardWriter(path, fsync=False, attributes={"environment": "env_1", "parameters": {"a": 1}}) as writer:
        writer.extend(
            observations=rng.random((rows, 3)).astype(np.float32),
            rewards=rng.random(rows),
            terminations=np.arange(rows) % 5 == 4,
            codes=rng.integers(0, 9, (rows, 2), np.uint8),
        )
    return path


def originals(folder: Path) -> list[bytes]:
    """A shard, a bank, the same without their footers, and what plain HDF5 writes, old and new, with all we refuse."""
    folder.mkdir()
    sealed = shard(folder / "shard.h5")
    merge_shards([sealed], folder / "bank.h5")
    for name in ("shard", "bank"):
        (folder / f"{name}-unsealed.h5").write_bytes((folder / f"{name}.h5").read_bytes()[: -_FOOTER.size])
    for name, libver in (("old", "earliest"), ("new", "latest")):
        with h5py.File(folder / f"{name}.h5", "w", libver=libver) as file:
            write_everything(file, folder)
    with h5py.File(folder / "plain.h5", "w", libver="earliest") as file:
        write_plain(file)
    with h5py.File(folder / "paged.h5", "w", libver="v110", fs_strategy="page", fs_persist=True) as file:
        write_plain(file)
    with h5py.File(folder / "split", "w", driver="split", meta_ext=b"-meta.h5", raw_ext=b"-raw.h5") as file:
        write_plain(file)
    sealed_often = [folder / "shard.h5", folder / "bank.h5"] * 3  # which others than HDF5 parse
    return [path.read_bytes() for path in (*sorted(folder.glob("*.h5")), *sealed_often)]


def write_plain(file: h5py.File) -> None:
    """Columns as another program might write them."""
    file["rewards"], file["actions"] = np.arange(8.0), np.arange(8)
    file.attrs["note"] = "text of variable length"
    file.create_dataset("codes", data=np.arange(8, dtype="u1"), chunks=(4,), compression="gzip")


def write_everything(file: h5py.File, folder: Path) -> None:
    """Links, groups, virtual and external data, odd types, filters: a bit of all that HDF5 can do."""
    secret = str(folder.parent / "secret.h5")
    file["rewards"] = np.arange(8.0)
    file["outside"] = h5py.ExternalLink(secret, "/secret")
    file["soft"] = h5py.SoftLink("/rewards")
    file.create_group("deep/deeper")["loop"] = file["/"]
    layout = h5py.VirtualLayout(shape=(8,), dtype="f8")
    layout[:] = h5py.VirtualSource(secret, "secret", shape=(8,))
    file.create_virtual_dataset("virtual", layout)
    file.create_dataset("elsewhere", shape=(8,), dtype="u1", external=[(secret, 0, 8)])
    file.create_dataset("packed", data=np.arange(8), chunks=(4,), shuffle=True, fletcher32=True)
    file.create_dataset("ragged", shape=(2,), dtype=h5py.vlen_dtype(np.float64))
    file["types"] = np.dtype([("x", "f4"), ("y", "i2", (3,))])
    file["rewards"].attrs["pointer"] = file["rewards"].ref
    file.attrs.update({"format": "rose_hpc.experience", "format_version": 2, "texts": ["a", "b"]})


# -- altered -----------------------------------------------------------------------------------------------------------


def write_corpus(base: Path, seed: int, count: int) -> Path:
    """A folder of altered files, ``m``, beside a good shard, and a file that none of them may make anyone open."""
    sources = originals(base / "originals")
    with h5py.File(base / "secret.h5", "w") as file:
        file["secret"] = np.arange(8.0)
    shard(base / "good.h5")
    (base / "m").mkdir()
    made = mutations(sources, seed)
    for number in range(count):
        (base / "m" / f"{number:06d}.h5").write_bytes(next(made))
    return base / "m"


def mutations(sources: list[bytes], seed: int) -> Iterator[bytes]:
    """Endless altered copies: bits, bytes, numbers, blocks, cuts, parts of one file in another, words of headers."""
    rng = random.Random(seed)
    while True:
        data = bytearray(rng.choice(sources))
        for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
            _alter(data, sources, rng)
        if not data:
            data = bytearray(b"\x89")
        if rng.random() < 0.6:
            mend(data)
        yield bytes(data)


def _alter(data: bytearray, sources: list[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(data)) if data else 0
    match rng.randrange(8) if data else 5:
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            data[at] = rng.randrange(256)
        case 2:
            width = rng.choice([1, 2, 4, 8])
            data[at : at + width] = (rng.choice(_NUMBERS) % 256**width).to_bytes(width, "little")
        case 3:
            other = rng.choice(sources)
            start = rng.randrange(len(other))
            piece = other[start : start + rng.choice([4, 16, 64, 512])]
            data[at : at + len(piece)] = piece
        case 4:
            del data[at : at + rng.choice([1, 4, 8, 64])]
        case 5:
            data[at:at] = rng.randbytes(rng.choice([1, 4, 8, 64]))
        case 6:
            del data[max(at, 1) :]
        case 7:
            _alter_header(data, rng)


def _alter_header(data: bytearray, rng: random.Random) -> None:
    """One word of the JSON in a header becomes another; what follows keeps its place."""
    if (place := _header_of(data)) is None:
        return
    at, size = place
    words = list(re.finditer(rb'-?[0-9.]+|"[^"]*"|null|[{}\[\]]', data[at : at + size]))
    if words:
        word = rng.choice(words)
        text = bytes(data[at : at + word.start()]) + rng.choice(_WORDS) + bytes(data[at + word.end() : at + size])
        data[at : at + size] = text[:size].ljust(size)


def _header_of(data: bytearray) -> tuple[int, int] | None:
    """Where a footer says that the header lies."""
    if len(data) < _FOOTER.size:
        return None
    at, size, *_, magic, _ = _FOOTER.unpack(data[-_FOOTER.size :])
    return (at, size) if magic == b"RoseHpc\n" and at + size <= len(data) else None


# -- as a forger would -------------------------------------------------------------------------------------------------


def mend(data: bytearray) -> None:
    """Give every piece of metadata of HDF5's newer formats, and the footer, the checksum that it should have now."""
    if data[:8] == b"\x89HDF\r\n\x1a\n" and len(data) >= 48 and data[8] in (2, 3):
        data[44:48] = lookup3(bytes(data[:44])).to_bytes(4, "little")
    for mark, end_of in ((b"OCHK", _end_of_continuation), (b"OHDR", _end_of_header)):
        at = data.find(mark)
        while at >= 0:
            end = end_of(data, at)
            if end is not None and at < end <= len(data) - 4:
                data[end : end + 4] = lookup3(bytes(data[at:end])).to_bytes(4, "little")
            at = data.find(mark, at + 1)
    _sign(data)


def _sign(data: bytearray) -> None:
    """Give a footer the checksum of all that is in no column of its header."""
    if (place := _header_of(data)) is None:
        return
    end = len(data) - _FOOTER.size
    try:
        header = json.loads(data[place[0] : sum(place)])
        taken = sorted(_extent(column, header["rows"]) for column in header["columns"].values())
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return  # nobody would get so far as to look at the checksum
    checksum, reached = xxhash.xxh3_128(), 0
    for start, stop in [*taken, (end, end)]:
        checksum.update(bytes(data[reached : max(reached, min(start, end))]))
        reached = max(reached, stop)
    checksum.update(bytes(data[end:-16]))
    data[-16:] = checksum.digest()


def _extent(column: dict[str, Any], rows: int) -> tuple[int, int]:
    size = int(rows * np.dtype(column["dtype"]).itemsize * np.prod(column["shape"], dtype=int))
    return int(column["offset"]), int(column["offset"]) + size


def _end_of_header(data: bytearray, at: int) -> int | None:
    """Where the checksum of a version 2 object header's first chunk lies."""
    if at + 16 > len(data):
        return None
    flags = data[at + 5]
    head = at + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    return head + width + int.from_bytes(data[head : head + width], "little")


def _end_of_continuation(data: bytearray, at: int) -> int | None:
    """The same of a further chunk, whose place and length are in a message elsewhere."""
    message = data.find(at.to_bytes(8, "little"))
    return at + int.from_bytes(data[message + 8 : message + 16], "little") - 4 if message >= 0 else None


def lookup3(data: bytes) -> int:
    """Bob Jenkins' lookup3 (hashlittle), which HDF5 uses as checksum of metadata."""
    mask = 0xFFFFFFFF

    def rot(x: int, k: int) -> int:
        return ((x << k) | (x >> (32 - k))) & mask

    a = b = c = (0xDEADBEEF + len(data)) & mask
    at = 0
    while len(data) - at > 12:
        a, b, c = (
            (v + int.from_bytes(data[at + k : at + k + 4], "little")) & mask for v, k in ((a, 0), (b, 4), (c, 8))
        )
        for k1, k2, k3 in ((4, 6, 8), (16, 19, 4)):
            a = ((a - c) & mask) ^ rot(c, k1)
            c = (c + b) & mask
            b = ((b - a) & mask) ^ rot(a, k2)
            a = (a + c) & mask
            c = ((c - b) & mask) ^ rot(b, k3)
            b = (b + a) & mask
        at += 12
    rest = data[at:].ljust(12, b"\0")
    if at == len(data):
        return c
    a, b, c = ((v + int.from_bytes(rest[k : k + 4], "little")) & mask for v, k in ((a, 0), (b, 4), (c, 8)))
    for target, k in (("c", 14), ("a", 11), ("b", 25), ("c", 16), ("a", 4), ("b", 14), ("c", 24)):
        if target == "c":
            c = ((c ^ b) - rot(b, k)) & mask
        elif target == "a":
            a = ((a ^ c) - rot(c, k)) & mask
        else:
            b = ((b ^ a) - rot(a, k)) & mask
    return c
