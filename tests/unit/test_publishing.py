"""What is published into a run: whole, committed, and nobody else's."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rose_hpc import publishing, rundir
from rose_hpc.errors import RunError
from rose_hpc.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create("toy", tmp_path / "run")


def grow(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


FILES = {"weights.npz": b"w" * 1000, "layers/0.bin": b"\0\1", "layers/1.bin": b"", "a b'\"$": b"odd name"}


def test_a_published_folder_is_committed(run):
    """A published folder has its name, its content and its facts; its files are read-only, its scratch name is gone."""
    scratch = grow(run.scratch / "x.policy", FILES)
    run.iteration(0).mkdir()
    facts = publishing.publish_tree(scratch, run.policy(0))
    assert (facts["files"], facts["bytes"]) == (4, sum(map(len, FILES.values())))
    assert publishing.tree_facts(run.policy(0)) == facts
    assert not scratch.exists()
    for name, data in FILES.items():
        path = run.policy(0) / name
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o222 == 0


def test_publishing_again_replaces_what_has_no_record(run):
    """What an attempt published before its driver died is replaced as a whole by its repetition."""
    run.iteration(0).mkdir()
    publishing.publish_tree(grow(run.scratch / "1", {"old": b"1", "weights": b"1"}), run.policy(0))
    publishing.publish_tree(grow(run.scratch / "2", {"weights": b"2"}), run.policy(0))
    assert {path.name: path.read_bytes() for path in run.policy(0).iterdir()} == {"weights": b"2"}


def test_a_changed_copy_leaves_the_original(run):
    """The update's copy can be changed in place, truncated and added to; the committed policy stays as it was."""
    run.iteration(0).mkdir()
    script = {"run.sh": b"#!/bin/sh\n"}
    scratch = grow(run.scratch / "1", FILES | script)
    (scratch / "run.sh").chmod(0o755)
    facts = publishing.publish_tree(scratch, run.policy(0))
    publishing.copy_tree(run.policy(0), copy := run.scratch / "2")
    assert publishing.tree_facts(copy) == facts
    assert os.access(copy / "run.sh", os.X_OK)
    for path in copy.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o200
            with open(path, "r+b") as file:
                file.write(b"changed")
    (copy / "layers" / "new").touch()
    assert publishing.tree_facts(run.policy(0)) == facts


def test_a_copy_of_nothing_is_empty(run):
    """The first update finds an empty folder."""
    publishing.copy_tree(None, run.scratch / "first")
    assert list((run.scratch / "first").iterdir()) == []


@settings(deadline=None)
@given(st.permutations(sorted(FILES)), st.integers(0, 2**31))
def test_the_digest_is_of_names_and_contents(tmp_path_factory, order, mtime):
    """Neither the order in which files were made, nor their times, nor where the folder is, change the digest."""
    folder = grow(tmp_path_factory.mktemp("tree"), {name: FILES[name] for name in order})
    for name in order:
        os.utime(folder / name, (mtime, mtime))
    assert publishing.tree_facts(folder)["digest"] == "41e36955e4b0deeefb25e016a6397089"  # fixed: journals hold it
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "changed",
    [
        {**FILES, "layers/0.bin": b"\0\2"},
        {**FILES, "extra": b""},
        {name: data for name, data in FILES.items() if name != "layers/1.bin"},
        {("layers/2.bin" if name == "layers/1.bin" else name): data for name, data in FILES.items()},
        {("1.bin" if name == "layers/1.bin" else name): data for name, data in FILES.items()},
    ],
    ids=["content", "one more", "one less", "renamed", "moved"],
)
def test_any_change_changes_the_digest(tmp_path, changed):
    """Two folders have one digest only when they hold the same files."""
    before = publishing.tree_facts(grow(tmp_path / "a", FILES))
    assert publishing.tree_facts(grow(tmp_path / "b", changed))["digest"] != before["digest"]


def test_names_that_are_not_utf8_can_be_published(run):
    """A file name of any bytes is taken as it is."""
    scratch = grow(run.scratch / "x", {})
    (scratch / os.fsdecode(b"caf\xe9")).write_bytes(b"1")
    assert publishing.publish_tree(scratch, run.policy(0))["files"] == 1


def test_what_is_no_plain_file_is_refused(run, tmp_path):
    """Links and pipes in a policy are refused by name: what they lead to would not be committed."""
    for make in (lambda p: p.symlink_to("/etc/passwd"), lambda p: p.symlink_to("/tmp"), os.mkfifo):  # noqa: S108 - only a target
        scratch = grow(tmp_path / "scratch", FILES)
        make(scratch / "strange")
        with pytest.raises(RunError, match="strange is neither a file nor a folder; keep only plain files"):
            publishing.publish_tree(scratch, run.policy(0))
        assert not run.policy(0).exists()
        shutil.rmtree(scratch)


def test_a_folder_that_is_no_more_is_refused(run, tmp_path):
    """An update that removed its policy folder, or put a link in its place, is told so; nothing is published."""
    with pytest.raises(RunError, match="is a folder no more"):
        publishing.publish_tree(run.scratch / "gone", run.policy(0))
    (run.scratch / "link").symlink_to(grow(tmp_path / "outside", FILES))
    with pytest.raises(RunError, match="is a folder no more"):
        publishing.publish_tree(run.scratch / "link", run.policy(0))
    assert os.access(tmp_path / "outside" / "weights.npz", os.W_OK)


def test_a_file_is_replaced_as_a_whole(run):
    """A small file of ours has its old content or its new one, and no scratch name stays."""
    publishing.write_file(run.config, b"a = 1\n")
    publishing.write_file(run.config, b"b\n")
    assert run.config.read_bytes() == b"b\n"
    assert {path.name for path in run.path.iterdir()} == {"config.toml", "journal.jsonl", "logs", "scratch", "slurm"}


def test_remove_takes_files_folders_links_and_nothing(tmp_path):
    """Removing what is there, in whatever form, or not there; never what a link leads to."""
    kept = grow(tmp_path / "kept", FILES)
    (tmp_path / "link").symlink_to(kept)
    grow(tmp_path / "folder", FILES)
    (tmp_path / "file").touch()
    for name in ("link", "folder", "file", "nothing"):
        publishing.remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert len(list(kept.iterdir())) == 3


def test_a_committed_file_is_nobody_elses(run):
    """A hard link to a file outside is broken up when the folder is published."""
    outside = run.path / "outside"
    outside.write_text("before")
    scratch = run.scratch / "policy"
    scratch.mkdir()
    (scratch / "weights").hardlink_to(outside)
    run.iteration(0).mkdir()
    publishing.publish_tree(scratch, run.policy(0))
    outside.write_text("after")
    assert (run.policy(0) / "weights").read_text() == "before"


def test_many_files_wait_once_for_the_disk(run, monkeypatch):
    """A thousand shards have their names after one look at each folder, and new folders are on the disk too."""
    synced = []
    monkeypatch.setattr(publishing, "fsync_path", synced.append)
    files = {run.scratch / f"{n}.h5": run.shard(n % 2, f"env_{n}") for n in range(1000)}
    for scratch in files:
        scratch.write_text(scratch.name)
    publishing.sync_all(publishing.name_all(files))
    assert all(target.read_text() == scratch.name for scratch, target in files.items())
    assert not any(scratch.exists() for scratch in files)
    folders = [run.iteration(k) / "shards" for k in range(2)]
    assert sorted(synced) == sorted([*folders, *(folder.parent for folder in folders), run.path, run.path])


def test_a_folder_that_is_not_on_the_disk_is_made_anew(run, monkeypatch):
    """After a refusal it is not there, so that whoever needs it next brings it to the disk."""
    sync = publishing.fsync_path

    def refuse(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(publishing, "fsync_path", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        publishing.make_folder(run.iteration(3) / "shards")
    assert not run.iteration(3).exists()
    monkeypatch.setattr(publishing, "fsync_path", sync)
    publishing.make_folder(run.iteration(3) / "shards")
    assert (run.iteration(3) / "shards").is_dir()


def test_what_the_disk_refuses_to_say_is_no_absence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree over another, whose name cannot be looked up: told as what it is, and both are left."""
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    lstat = os.lstat

    def refusing(path: Any, **options: Any) -> os.stat_result:
        if path == old:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return lstat(path, **options)

    monkeypatch.setattr(os, "lstat", refusing)
    with pytest.raises(RunError, match=r"cannot replace .*old: Input/output error"):
        publishing.name_trees({new: old})
    monkeypatch.undo()
    assert [(folder / "file").read_text() for folder in (new, old)] == ["new", "old"]
