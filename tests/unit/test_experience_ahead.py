"""Headers of many files, read while those after them are fetched."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest
from shards import write_all

from rose_hpc.errors import DamagedError, FormatError
from rose_hpc.experience import ahead
from rose_hpc.experience.ahead import read_each
from rose_hpc.experience.header import START_BYTES, read_info
from rose_hpc.experience.merge import read_shards


def open_files() -> set[str]:
    """The descriptors of this process."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_each_says_what_it_says_alone(tmp_path: Path) -> None:
    """In the order that was asked for, more files than are fetched ahead; nothing stays open."""
    paths = write_all(tmp_path, list(range(40)))
    before = open_files()
    assert [read() for read in read_each(paths)] == [read_info(path) for path in paths]
    assert open_files() == before


def test_what_cannot_be_read_is_said_in_its_turn(tmp_path: Path) -> None:
    """Neither the files before it nor those after it are touched by that."""
    paths = write_all(tmp_path, [1, 2, 3, 4, 5])
    paths[1].unlink()
    os.truncate(paths[3], 3000)
    found = {}
    for path, read in zip(paths, read_each(paths), strict=True):
        try:
            found[path] = read().rows
        except (FormatError, DamagedError) as error:
            found[path] = type(error)
    assert list(found.values()) == [1, FormatError, 3, DamagedError, 5]
    with pytest.raises(DamagedError) as raised:
        read_shards(paths)
    assert set(raised.value.paths) == {str(paths[1]), str(paths[3])}


def test_who_stops_early_leaves_nothing_open(tmp_path: Path) -> None:
    """What was fetched for later is closed."""
    paths = write_all(tmp_path, [1] * 30)
    before = open_files()
    each = read_each(paths)
    assert [read().rows for read in islice(each, 3)] == [1, 1, 1]
    each.close()  # type: ignore[attr-defined]  # a generator
    assert open_files() == before


def test_small_files_are_fetched_whole_but_not_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is larger than a few megabytes, or comes after a gigabyte of others, has only its header fetched."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(ahead, "fetch", lambda fd, offset, size: asked.append((offset, size)))
    paths = write_all(tmp_path, [2000, 2000, 200_000, 2000])
    sizes = [path.stat().st_size for path in paths]
    monkeypatch.setattr(ahead, "_MOST", 2 * sizes[0] - 1)
    assert [read().rows for read in read_each(paths)] == [2000, 2000, 200_000, 2000]
    assert asked[:2] == [(0, sizes[0]), (0, sizes[1])]
    assert [offset + size for offset, size in asked[2:]] == [START_BYTES, sizes[2], START_BYTES, sizes[3]]
