"""Merging on a file system that lets files share blocks: an XFS of our own, in a file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from shards import concatenated_digest, write_all

from rose_hpc.experience.check import verify
from rose_hpc.experience.format import read_info
from rose_hpc.experience.merge import merge_shards

COMMANDS = ("mkfs.xfs", "mount", "umount", "filefrag")


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """Mounted for the test; who may not mount, or has no such file system, skips it."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in COMMANDS if shutil.which(name, path=path) is None]
    if absent or os.geteuid() != 0:
        pytest.skip(f"optional extra: an XFS of one's own ({', '.join(absent) or 'needs root'})")
    image, folder = tmp_path / "image", tmp_path / "mounted"
    image.touch()
    os.truncate(image, 320 * 2**20)
    folder.mkdir()
    env = {**os.environ, "PATH": path}
    for command in (["mkfs.xfs", "-q", image], ["mount", "-o", "loop", image, folder]):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"optional extra: an XFS of one's own ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], env=env, check=True)


def shared_blocks(path: Path) -> int:
    """Blocks of a file that other files have too."""
    env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run(["filefrag", "-s", "-v", path], env=env, capture_output=True, text=True, check=True)
    extents = re.findall(r"^ *\d+: *\d+\.\. *\d+: *\d+\.\. *\d+: *(\d+):.*shared", done.stdout, re.MULTILINE)
    return sum(map(int, extents))


def test_blocks_are_shared_and_nothing_else_is_different(xfs: Path, tmp_path: Path) -> None:
    """Unverified, most of a bank is its shards' own blocks; verified, none; the bytes are the same."""
    shards = write_all(xfs, [4096, 8192, 4096, 100], width=64)
    for shard in shards:
        with open(shard, "rb") as file:
            os.fsync(file.fileno())
    blind, seen = merge_shards(shards, xfs / "blind.h5", verify=False), merge_shards(shards, xfs / "seen.h5")
    assert shared_blocks(xfs / "blind.h5") > 0.8 * blind.data_bytes / 4096
    assert shared_blocks(xfs / "seen.h5") == 0
    assert seen.digest == concatenated_digest(shards, tmp_path / "whole.h5")
    again = merge_shards([xfs / "blind.h5"], tmp_path / "again.h5")
    assert again.digest == seen.digest
    for shard in shards:
        verify(read_info(shard))


def test_what_is_shared_is_nobody_elses(xfs: Path) -> None:
    """A shard that is written to afterwards does not change the bank."""
    shards = write_all(xfs, [4096, 4096], width=64)
    bank = merge_shards(shards, xfs / "bank.h5", verify=False)
    before = bank.path.read_bytes()
    with open(shards[0], "r+b") as file:
        file.seek(100_000)
        file.write(b"\xff" * 100_000)
        file.flush()
        os.fsync(file.fileno())
    assert bank.path.read_bytes() == before
