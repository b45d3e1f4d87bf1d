"""Disk use, told in a moment, however much there is."""

from __future__ import annotations

import pytest

from rose_hpc.disk import DiskUse, disk_use, in_words


def test_everything_is_counted(tmp_path):
    """Files in folders count once; links, and what they lead to, do not."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * 10_000)
    (tmp_path / "loop").symlink_to(tmp_path)
    use = disk_use(tmp_path)
    assert (use.files, use.complete) == (2, True)
    assert 10_000 <= use.bytes < 50_000


@pytest.mark.parametrize("limits", [{"most_files": 10}, {"most_s": 0.0}])
def test_the_count_is_bounded(tmp_path, limits):
    """A run of a million files costs no more than one of a few, and the answer says that there is more."""
    for number in range(50):
        (tmp_path / str(number)).touch()
    use = disk_use(tmp_path, **limits)
    assert use.files <= 10
    assert not use.complete


def test_what_is_gone_is_nothing(tmp_path):
    """A folder that was removed meanwhile is no error."""
    assert disk_use(tmp_path / "gone") == DiskUse(0, 0, complete=True)


def test_sizes_in_words():
    """Three digits and a unit."""
    assert [in_words(n) for n in (0, 999, 1000, 2_500_000, 7e9, 3e12, 5e15)] == [
        *("0 B", "999 B", "1 kB", "2.5 MB", "7 GB", "3 TB", "5e+03 TB")
    ]
