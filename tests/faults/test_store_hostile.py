"""Mutated and forged files: no crash of whoever opens them, and no other file opened.

``make torture PARTS=files`` is the long form; the short one is seeded, too.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import open_hostile
import pytest
from corpus import mend, shard, write_corpus

from rose_hpc.errors import DamagedError, ExperienceError, FormatError, SchemaError
from rose_hpc.experience import foreign
from rose_hpc.experience.episodes import returns_of
from rose_hpc.experience.foreign import Limits, read_foreign
from rose_hpc.experience.format import examine, read_info
from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.shard import ShardWriter

MUTATIONS = int(os.environ.get("STORE_MUTATIONS", "300"))
SEED = int(os.environ.get("STORE_SEED", "0"))


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


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus; see :func:`corpus.write_corpus`."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, SEED, MUTATIONS)
    return folder


@pytest.mark.timeout(600 + 2 * MUTATIONS)
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_no_altered_file_crashes_its_reader_or_opens_another(base: Path) -> None:
    """Opened, sampled, verified, merged, inspected, imported: each a result or a line, and nothing else is opened."""
    counts, strangers = open_hostile.run(base, traced=True)
    assert not strangers
    assert counts["files"] == MUTATIONS
    assert 0 < counts["opened"] < MUTATIONS // 2
    assert 0 < counts["merged"] <= counts["opened"] + MUTATIONS // 100  # banks whose list of episodes alone is forged
    assert sum(counts["inspected"].values()) == sum(counts["imported"].values()) == MUTATIONS
    assert counts["inspected"]["fine"] > 0
    assert counts["inspected"]["DamagedError"] > MUTATIONS // 4
    assert set(counts["left"]) <= {"bank.h5", "imported.h5"}


def test_the_command_line_says_one_line(base: Path, tmp_path: Path) -> None:
    """inspect and merge of some of them: exit 0 or 1, one line of error at most, and no bank of a bad shard."""
    for path in random.Random(SEED).sample(sorted((base / "m").iterdir()), 3):
        bank = tmp_path / "bank.h5"
        for arguments in (["inspect", path], ["merge", base / "good.h5", path, "--output", bank]):
            command = [sys.executable, "-m", "rose_hpc", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode in (0, 1), done.stderr
            assert done.stderr.count("\n") == (done.returncode != 0), done.stderr
        assert bank.exists() == (done.returncode == 0)
        bank.unlink(missing_ok=True)


def test_inspecting_the_corpus_names_every_bad_file(base: Path) -> None:
    """Parsed in a child, all damaged files are named at once, and the others are read like at home."""
    fine, bad = [], set()
    for path in sorted((base / "m").iterdir()):
        try:
            fine.append(examine(path))
        except DamagedError:
            bad.add(path)
        except ExperienceError:
            pass
    known = [info.path for info in fine]
    with pytest.raises(DamagedError) as caught:
        read_foreign(sorted([*bad, *known]))
    assert set(caught.value.paths) == set(map(str, bad))
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
    [("crash", "SIGSEGV"), ("hang", "not parsed within 8 s"), ("gorge", "MemoryError"), ("write", "File too large")],
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


def test_a_file_that_says_too_much_is_not_listened_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file says of itself comes to the caller only if it is of a size that a description can have."""
    info = read_foreign([shard(tmp_path / "a.h5")])[0]
    with ShardWriter(tmp_path / "b.h5", attributes={"note": "x" * 10_000}) as writer:
        writer.extend(rewards=np.zeros(3))
    limits = {"memory_mb": 4096, "seconds": 60, "file_mb": 0}
    request = {"op": "info", "paths": [str(tmp_path / "b.h5"), str(info.path)], **limits}
    said: list[str] = []
    monkeypatch.setattr(foreign, "_MOST_ANSWERED", 10_000)
    monkeypatch.setattr(foreign, "_limit", lambda request: None)
    monkeypatch.setattr(foreign.sys, "stdin", SimpleNamespace(buffer=io.BytesIO(json.dumps(request).encode())))
    monkeypatch.setattr(foreign.sys, "stdout", SimpleNamespace(write=said.append, flush=lambda: None))
    foreign.main()
    monkeypatch.undo()
    first, second = map(json.loads, said)
    assert "b.h5 is damaged: it says more of itself than 10,000 characters" in first["message"]
    assert second["value"]["rows"] == info.rows


def test_a_forged_shard_tells_no_lies_about_returns(tmp_path: Path) -> None:
    """A bank's kept list of episodes that is not that of its rows is found, whatever checksums it was given."""
    bank = merge_shards([shard(tmp_path / "a.h5")], tmp_path / "bank.h5")
    with h5py.File(bank.path, "r+") as file:
        file.attrs["episode_returns"] = np.zeros(3)
    with pytest.raises(DamagedError):
        returns_of(read_info(bank.path))
