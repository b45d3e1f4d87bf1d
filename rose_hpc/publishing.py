"""Publishing: how files and folders get the names that records speak of, so that a crash leaves all of one or nothing.

A file or folder is *published* by writing it under a scratch name, bringing it to the disk, and renaming it; the
record in the journal follows. Scratch names carry the attempt's id, so an attempt that outlived its driver can never
overwrite its repetition.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rose_hpc import failpoints
from rose_hpc.errors import RunError
from rose_hpc.refusals import named

_CHUNK = 4 * 1024 * 1024
#: Linux: share the blocks of another file (Btrfs, XFS, bcachefs, NFS 4.2)
_FICLONE = 0x40049409


def fsync_path(path: Path) -> None:
    """Bring a file or folder to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, each on the disk before anything is published in it."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        fsync_path(path.parent)


def publish(scratch: str | Path, target: Path) -> None:
    """Give a file that is already on the disk (its writer has synced it) its published name.

    Raises:
        RunError: when the system refuses. The old file or the new one is there then.
    """
    publish_all({Path(scratch): target})


def publish_all(files: Mapping[str, Path] | Mapping[Path, Path]) -> None:
    """Give files that are already on the disk their published names, and wait once for the names to be on it too.

    Args:
        files: the name each is to have, by the one it has.

    Raises:
        RunError: when the system refuses. Of each the old file or the new one is there then.
    """
    folders = {target.parent for target in files.values()}
    for folder in folders:
        with named(RunError, f"cannot make {folder}"):
            make_folder(folder)
    for scratch, target in files.items():
        failpoints.hit("publish-begun")
        with named(RunError, f"cannot publish {target}"):
            os.rename(scratch, target)  # noqa: PTH104 - Path.rename makes another Path, a thousand times
        failpoints.hit("publish-renamed")
    for folder in folders:
        with named(RunError, f"cannot bring {folder} to the disk"):
            fsync_path(folder)


def write_file(target: Path, data: bytes) -> None:
    """Publish a small file of ours.

    Raises:
        RunError: as :func:`publish` does; nothing is left of what was written.
    """
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    failpoints.hit("small-file-begun")
    try:
        with named(RunError, f"cannot write {target}"), open(scratch, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(scratch, target)
    except BaseException:
        with suppress(OSError):  # gone already, or as unwilling as what failed
            scratch.unlink()
        raise


def publish_tree(scratch: Path, target: Path) -> dict[str, Any]:
    """Publish a folder; see :func:`publish_trees`."""
    return publish_trees({scratch: target})[0]


def publish_trees(folders: Mapping[Path, Path]) -> list[dict[str, Any]]:
    """Publish folders: their files are synced and made read-only (they are committed), then the folders are renamed.

    Args:
        folders: the name each is to have, by the one it has.

    Returns:
        for each ``{"digest": ..., "files": ..., "bytes": ...}``; the digest covers names and contents.

    Raises:
        RunError: when the system refuses, or something is in one that cannot be published.
    """
    failpoints.hit("tree-unsealed")
    facts = [tree_facts(scratch, seal=True) for scratch in folders]
    failpoints.hit("tree-sealed")
    aside = {scratch.with_name(f"{scratch.name}.old"): target for scratch, target in folders.items()}
    for old, target in aside.items():
        with named(RunError, f"cannot replace {target}"):
            if target.exists():  # published by an attempt whose record was never written: it has not happened
                remove(old)
                target.rename(old)  # whole, for what is half removed must not be there under a published name
                failpoints.hit("tree-removed")
    publish_all(folders)
    for old in aside:
        with suppress(RunError):  # the next driver clears what scratch is left
            remove(old)
    return facts


def tree_facts(folder: Path, *, seal: bool = False) -> dict[str, Any]:
    """Digest (xxh3-128 over sorted names and contents), number of files and bytes of a folder.

    Args:
        folder: which.
        seal: also bring all of it to the disk, and make it read-only.

    Raises:
        RunError: when it cannot be read (or sealed), or something is in it that is neither file nor folder.
    """
    with named(RunError, f"cannot {'seal' if seal else 'read'} {folder}"):
        return _tree_facts(folder, seal)


def _tree_facts(folder: Path, seal: bool) -> dict[str, Any]:
    import xxhash  # here, because the login node's commands import this module too

    total = xxhash.xxh3_128()
    files = size = 0
    if folder.is_symlink() or not folder.is_dir():
        raise RunError(f"{folder} is a folder no more", hint="a task may change what is in it, and must leave it there")
    folders = [str(folder)]
    for entry in _entries(str(folder)):
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry.path)
            continue
        if not entry.is_file(follow_symlinks=False):
            raise RunError(
                f"{entry.path} is neither a file nor a folder", hint="keep only plain files in the policy and state"
            )
        content = xxhash.xxh3_128()
        with open(entry.path, "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                content.update(chunk)
                size += len(chunk)
            if seal:
                _seal(entry.path, file.fileno())
        name = os.path.relpath(entry.path, folder) if len(folders) > 1 else entry.name
        total.update(os.fsencode(name) + f"\0{content.hexdigest()}\n".encode())
        files += 1
    if seal and (files or len(folders) > 1):  # of an empty one there is nothing but its name, which its own folder has
        for path in (*folders[1:], folders[0]):
            fsync_path(Path(path))
    return {"digest": total.hexdigest(), "files": files, "bytes": size}


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Everything in a folder, in the order of its names; what is in folders of it, each behind its own."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(entry.path)


def _seal(path: str, file: int) -> None:
    """Bring a file to the disk, and make it read-only."""
    os.fsync(file)
    status = os.fstat(file)
    if status.st_nlink > 1:  # a file outside would stay the committed one
        _unlink_from_others(Path(path))
    os.chmod(path, stat.S_IMODE(status.st_mode) & ~0o222)  # noqa: PTH101 - a Path for each of many files is dear


def _unlink_from_others(path: Path) -> None:
    copy = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.copy2(path, copy)
    fsync_path(copy)
    copy.rename(path)


def copy_tree(source: Path | None, target: Path) -> None:
    """A private, writable copy of a published folder (an empty one for None).

    Never hard links: a change in place would alter the committed file.

    Raises:
        RunError: when the system refuses; half a copy may be left then.
    """
    with named(RunError, f"cannot make {target}, a copy of {source or 'nothing'}"):
        target.mkdir(parents=True)
        failpoints.hit("copy-begun")
        if source is None:
            return
        for path in sorted(source.rglob("*")):
            copy = target / path.relative_to(source)
            if path.is_dir():
                copy.mkdir()
            else:
                copy_file(path, copy)
                failpoints.hit("copy-file-copied")
                copy.chmod(stat.S_IMODE(path.stat().st_mode) | 0o200)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes; where the file system can, without moving them (a reflink)."""
    with open(source, "rb") as given, open(target, "wb") as taken:
        try:
            fcntl.ioctl(taken, _FICLONE, given.fileno())
        except OSError:
            shutil.copyfileobj(given, taken, _CHUNK)


def remove(path: str | Path) -> None:
    """Remove a file or folder that is there or not.

    Raises:
        RunError: when the system refuses.
    """
    path = Path(path)
    with named(RunError, f"cannot remove {path}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def drop(path: Path, scratch: Path) -> None:
    """Remove something committed, which may be gone already: at no moment is half of it there under its name.

    Raises:
        RunError: when the system refuses.
    """
    with named(RunError, f"cannot remove {path}"):
        try:
            path.unlink(missing_ok=True)
        except (IsADirectoryError, PermissionError):
            if not path.is_dir():
                raise
            aside = scratch / f"dropped-{path.parent.name}-{path.name}"
            remove(aside)
            path.rename(aside)
            failpoints.hit("folder-renamed-away")
            remove(aside)
