"""Mutated and forged files: no crash of whoever opens them, and no other file opened.

``STORE_MUTATIONS=20000 pytest tests/faults/test_store_hostile.py`` is the long form; the short one is seeded, too.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from rose_hpc.errors import DamagedError, ExperienceError, FormatError, SchemaError
from rose_hpc.experience.episodes import returns_of
from rose_hpc.experience.foreign import Limits, read_foreign
from rose_hpc.experience.format import read_info
from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.shard import ShardWriter

MUTATIONS = int(os.environ.get("STORE_MUTATIONS", "400"))
SEED = int(os.environ.get("STORE_SEED", "0"))


# -- the corpus --------------------------------------------------------------------------------------------------------


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
    """Files to start from: a shard, a bank, and what plain HDF5 writes, old and new, with all that we refuse."""
    folder.mkdir()
    sealed = shard(folder / "shard.h5")
    merge_shards([sealed], folder / "bank.h5")
    for name, libver in (("old", "earliest"), ("new", "latest")):
        with h5py.File(folder / f"{name}.h5", "w", libver=libver) as file:
            write_everything(file, folder)
    with h5py.File(folder / "plain.h5", "w", libver="earliest") as file:
        file["rewards"], file["actions"] = np.arange(8.0), np.arange(8)
        file.attrs["note"] = "text of variable length"
        file.create_dataset("codes", data=np.arange(8, dtype="u1"), chunks=(4,), compression="gzip")
    return [path.read_bytes() for path in sorted(folder.glob("*.h5"))]


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
    file.attrs.update({"format": "rose_hpc.experience", "format_version": 1, "texts": ["a", "b"]})


def mutations(sources: list[bytes], seed: int) -> Iterator[bytes]:
    """Endless altered copies: bits, bytes, numbers, blocks, cuts, and parts of one file in another."""
    rng = random.Random(seed)
    numbers = [0, 1, 0x7F, 0xFF, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**48, 2**63 - 1, 2**64 - 1]
    while True:
        data = bytearray(rng.choice(sources))
        for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
            at = rng.randrange(len(data))
            match rng.randrange(7):
                case 0:
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    data[at] = rng.randrange(256)
                case 2:
                    width = rng.choice([1, 2, 4, 8])
                    data[at : at + width] = (rng.choice(numbers) % 256**width).to_bytes(width, "little")
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
            if not data:
                data = bytearray(b"\x89")
        if rng.random() < 0.5:
            mend(data)
        yield bytes(data)


def mend(data: bytearray) -> None:
    """Give every piece of metadata of HDF5's newer formats the checksum that it should have now, as a forger would."""
    if data[:8] == b"\x89HDF\r\n\x1a\n" and len(data) >= 48 and data[8] in (2, 3):
        data[44:48] = lookup3(bytes(data[:44])).to_bytes(4, "little")
    for mark, end_of in ((b"OCHK", _end_of_continuation), (b"OHDR", _end_of_header)):
        at = data.find(mark)
        while at >= 0:
            end = end_of(data, at)
            if end is not None and at < end <= len(data) - 4:
                data[end : end + 4] = lookup3(bytes(data[at:end])).to_bytes(4, "little")
            at = data.find(mark, at + 1)


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


def test_the_corpus_forges_checksums_that_hdf5_accepts(tmp_path: Path) -> None:
    """A header that was altered and mended is read: half of the corpus gets past HDF5's own checksums."""
    data = bytearray(shard(tmp_path / "a.h5").read_bytes())
    at = data.index(b"env_1")
    data[at : at + 5] = b"env_X"
    (tmp_path / "broken.h5").write_bytes(data)
    mend(data)
    (tmp_path / "mended.h5").write_bytes(data)
    with h5py.File(tmp_path / "mended.h5") as file:
        assert "env_X" in str(file.attrs["environment"])
    with pytest.raises((OSError, KeyError)), h5py.File(tmp_path / "broken.h5") as file:
        print(dict(file.attrs))


# -- the corpus, opened ------------------------------------------------------------------------------------------------

_NO_PLUGINS = {**os.environ, "HDF5_PLUGIN_PRELOAD": "::", "HDF5_PLUGIN_PATH": "/dev/null"}
#: opens every file of a folder as a caller would; what is left when it ends is what a crash would have prevented
_HARNESS = """
import json, os, sys
from pathlib import Path
from rose_hpc.errors import ExperienceError
from rose_hpc.experience.bank import ExperienceBank
from rose_hpc.experience.check import verify
from rose_hpc.experience.format import read_info
from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.summary import episodes_of, parts_of

folder, good, bank = map(Path, sys.argv[1:4])

def look(path):
    info = read_info(path)
    episodes = episodes_of(info)
    parts_of(info, episodes)
    with ExperienceBank.open(path) as opened:
        if len(opened):
            opened.sample(4, rng=0)
    verify(info)

def attempt(function, *arguments):
    try:
        function(*arguments)
    except ExperienceError as error:
        assert "\\n" not in str(error)
        return 0
    return 1

attempt(look, good)  # everything that is imported late is now here
attempt(merge_shards, [good], bank)
opened = merged = 0
paths = sorted(folder.iterdir())
open(folder / paths[0].name).close()  # the mark: from here on, nothing but these files may be opened
for path in paths:
    opened += attempt(look, path)
    merged += attempt(merge_shards, [good, path], bank)
print(json.dumps([len(paths), opened, merged]))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``m`` of mutated files, beside a good shard, and a file that none of them may make us open."""
    base = tmp_path_factory.mktemp("corpus")
    sources = originals(base / "originals")
    with h5py.File(base / "secret.h5", "w") as file:
        file["secret"] = np.arange(8.0)
    shard(base / "good.h5")
    (base / "m").mkdir()
    made = mutations(sources, SEED)
    for number in range(MUTATIONS):
        (base / "m" / f"{number:06d}.h5").write_bytes(next(made))
    return base


def harness(base: Path, *prefix: str) -> tuple[int, int, int]:
    """How many files there were, how many opened, and how many merged.

    HDF5 looks into its own plugin folder for whatever it cannot open; it is told not to, as it is in our child.
    """
    command = [*prefix, sys.executable, "-c", _HARNESS, base / "m", base / "good.h5", base / "bank.h5"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=170 + MUTATIONS, check=False, env=_NO_PLUGINS
    )
    assert done.returncode == 0, done.stderr[-2000:]
    files, opened, merged = json.loads(done.stdout)
    return files, opened, merged


@pytest.mark.timeout(300 + MUTATIONS)
def test_no_mutated_file_crashes_who_opens_or_merges_it(corpus: Path) -> None:
    """Opening, sampling, verifying and merging each mutated file is a result or a one-line error of ours."""
    files, opened, merged = harness(corpus)
    assert files == MUTATIONS
    assert 0 < merged <= opened < files


@pytest.mark.timeout(300 + 2 * MUTATIONS)
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_no_mutated_file_makes_us_open_another(corpus: Path, tmp_path: Path) -> None:
    """As the kernel sees it: after the first of them, only these files, the good shard and the bank are opened."""
    log = tmp_path / "opened"
    calls = "trace=open,openat,openat2,creat"
    harness(corpus, "strace", "-f", "-qq", "-s", "4096", "-e", calls, "-e", "signal=none", "-o", str(log))
    lines = log.read_text(errors="replace").splitlines()
    first = next(k for k, line in enumerate(lines) if str(corpus / "m") in line and "O_RDONLY|O_CLOEXEC)" in line)
    later = [line.split('"')[1] for line in lines[first:] if '"' in line]
    allowed = (str(corpus / "m"), str(corpus / "good.h5"), str(corpus / "bank.h5"), str(corpus / ".bank.h5"))
    python = (sys.prefix, sys.base_prefix)  # which loads what it needs when it needs it
    strangers = {path for path in later if not path.startswith((*allowed, *python, "/proc/", "/sys/", "/dev/"))}
    assert len(later) > MUTATIONS
    assert not strangers


def test_inspecting_the_corpus_names_every_bad_file(corpus: Path) -> None:
    """Parsed in a child, all damaged files are named at once, and the others are read like at home."""
    fine, bad = [], set()
    paths = sorted((corpus / "m").iterdir())
    for path in paths:
        try:
            fine.append(read_info(path))
        except DamagedError:
            bad.add(str(path))
        except ExperienceError:
            bad.discard(str(path))
    known = [str(info.path) for info in fine]
    with pytest.raises(DamagedError) as caught:
        read_foreign([path for path in paths if str(path) in bad | set(known)])
    assert set(caught.value.paths) == bad
    assert read_foreign(known) == fine


def test_every_byte_of_a_small_shard_counts(tmp_path: Path) -> None:
    """Whichever byte is flipped, the shard is refused by name, or what is merged is what was written."""
    path = tmp_path / "a.h5"
    with ShardWriter(path, fsync=False) as writer:
        writer.extend(rewards=np.arange(3.0), terminations=np.array([False, True, True]))
    whole, expected = path.read_bytes(), merge_shards([path], tmp_path / "bank.h5").digest
    named = refused = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            assert merge_shards([path], tmp_path / "bank.h5", workers=1).digest == expected, at
        except (DamagedError, FormatError, SchemaError) as error:
            named += str(path) in str(error)
            refused += 1
    assert named == refused > len(whole) // 2
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises((DamagedError, FormatError), match=r"a\.h5"):
            read_info(path)


# -- the child ---------------------------------------------------------------------------------------------------------

#: makes HDF5 misbehave in the child, for files whose names say how
_MISBEHAVE = """
import os, signal, time
from rose_hpc.experience import format
real = format.examine
def examine(path):
    if "crash" in str(path):
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in str(path):
        while True: pass
    if "gorge" in str(path):
        bytearray(10**12)
    if "write" in str(path):
        open(str(path) + ".written", "wb", buffering=0).write(b"x" * 100)
    return real(path)
format.examine = examine
"""


@pytest.fixture
def misbehaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of good shards, some with ominous names."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_MISBEHAVE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    for name in ("good", "crash", "hang", "gorge", "write", "last"):
        shard(tmp_path / f"{name}.h5")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [("crash", "SIGSEGV"), ("hang", "not parsed within 8 s"), ("gorge", "MemoryError"), ("write", "OSError")],
)
def test_what_a_file_does_to_its_parser_stays_there(misbehaving: Path, name: str, text: str) -> None:
    """A crash, an endless loop, a flood of memory and a write of the parser each name their file, and hurt no other."""
    paths = [misbehaving / f"{each}.h5" for each in ("good", name, "last")]
    with pytest.raises(DamagedError, match=rf"{name}\.h5 is damaged: .*({text})") as caught:
        read_foreign(paths, Limits(seconds=8) if name == "hang" else None)
    assert caught.value.paths == (str(paths[1]),)
    assert [info.rows for info in read_foreign([paths[0], paths[2]])] == [12, 12]


def test_the_command_line_survives_its_files(misbehaving: Path) -> None:
    """inspect and merge of a file that crashes HDF5 are one line and exit 1; the bank does not appear."""
    for arguments in (["inspect"], ["merge", "--output", misbehaving / "bank.h5", misbehaving / "good.h5"]):
        command = [sys.executable, "-m", "rose_hpc", *arguments, misbehaving / "crash.h5"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "crash.h5 is damaged: parsing it ended with SIGSEGV" in done.stderr
    assert not (misbehaving / "bank.h5").exists()


def test_a_forged_shard_tells_no_lies_about_returns(tmp_path: Path) -> None:
    """A bank's kept list of episodes that is not that of its rows is found, whatever checksums it was given."""
    bank = merge_shards([shard(tmp_path / "a.h5")], tmp_path / "bank.h5")
    with h5py.File(bank.path, "r+") as file:
        file.attrs["episode_returns"] = np.zeros(3)
    with pytest.raises(DamagedError):
        returns_of(read_info(bank.path))
