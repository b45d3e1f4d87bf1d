"""Publishing: how files and folders get the names that records speak of, so that a crash leaves all of one or nothing.

A file or folder is *published* by writing it under a scratch name, renaming it, and bringing it and its name to the
disk; the record in the journal follows. Scratch names carry the attempt's id, so an attempt that outlived its driver
can never overwrite its repetition.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from io import BufferedIOBase, RawIOBase
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
        try:
            fsync_path(path.parent)
        except OSError:
            with suppress(OSError):  # so that nobody takes it for made
                path.rmdir()
            raise


def publish(scratch: str | Path, target: Path) -> None:
    """Give a file that is already on the disk (its writer has synced it) its name, and bring that to the disk, too.

    Raises:
        RunError: when the system refuses. The old file or the new one is there then.
    """
    sync_all(name_all({str(scratch): target}))


def name_all(files: Mapping[str, Path] | Mapping[Path, Path]) -> list[Path]:
    """Give files or folders their published names. They are published once they and the names are on the disk.

    Args:
        files: the name each is to have, by the one it has.

    Returns:
        the folders that have the names, for :func:`sync_all`: once for all of them.

    Raises:
        RunError: when the system refuses. Of each the old file or the new one is there then.
    """
    folders = [Path(folder) for folder in dict.fromkeys(os.path.dirname(target) for target in files.values())]  # noqa: PTH120
    for folder in folders:
        with named(RunError, f"cannot make {folder}"):
            make_folder(folder)
    for scratch, target in files.items():
        failpoints.hit("publish-begun")
        with named(RunError, f"cannot publish {target}"):
            os.rename(scratch, target)  # noqa: PTH104 - Path.rename makes another Path, a thousand times
        failpoints.hit("publish-renamed")
    return folders


def sync_all(paths: Iterable[Path]) -> None:
    """Bring files, and the names that are in folders, to the disk.

    Raises:
        RunError: when the system refuses.
    """
    for path in paths:
        with named(RunError, f"cannot bring {path} to the disk"):
            fsync_path(path)
    failpoints.hit("publish-synced")


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
    """Publish a folder: its files become read-only (they are committed), and all of it is on the disk.

    Returns:
        ``{"digest": ..., "files": ..., "bytes": ...}``; the digest covers names and contents.

    Raises:
        RunError: when the system refuses, or something is in it that cannot be published.
    """
    (facts,), sync = name_trees({scratch: target})
    sync()
    return facts


def name_trees(folders: Mapping[Path, Path]) -> tuple[list[dict[str, Any]], Callable[[], None]]:
    """Make folders read-only and give them their published names.

    Args:
        folders: the name each is to have, by the one it has.

    Returns:
        what :func:`publish_tree` says of each, and what is to be called for them to be published: it brings all of it
        to the disk, or raises RunError.

    Raises:
        RunError: as :func:`publish_tree` does.
    """
    failpoints.hit("tree-unsealed")
    sealed = [_sealed(scratch) for scratch in folders]
    failpoints.hit("tree-sealed")
    aside: list[Path] = []
    for scratch, target in folders.items():
        with named(RunError, f"cannot replace {target}"):
            if _is_there(target):  # published by an attempt whose record was never written: it has not happened
                old = scratch.with_name(f"{scratch.name}.old")
                remove(old)
                target.rename(old)  # whole, for what is half removed must not be there under a published name
                aside.append(old)
                failpoints.hit("tree-removed")
    names = name_all(folders)
    inside = [target / path for target, (_, paths) in zip(folders.values(), sealed, strict=True) for path in paths]

    def sync() -> None:
        sync_all([*inside, *names])
        for old in aside:
            with suppress(RunError):  # the next driver clears what scratch is left
                remove(old)

    return [facts for facts, _ in sealed], sync


def _is_there(path: Path) -> bool:
    """Whether there is anything of that name; unlike ``os.path.lexists``, what the disk refuses to say is an error."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _sealed(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Facts of a folder, whose files are read-only now; what is in it: files, folders from within, itself.

    Of an empty one that is nothing: there is nothing of it but its name.
    """
    files: list[str] = []
    folders = ["."]

    def take(path: str, name: str) -> tuple[str, int]:
        files.append(name)
        return _read(path, name, seal=True)

    with named(RunError, f"cannot seal {folder}"):
        facts = _facts(folder, take, folders.append)
    return facts, [*files, *reversed(folders)] if files or len(folders) > 1 else []


def tree_facts(folder: Path) -> dict[str, Any]:
    """Digest (xxh3-128 over sorted names and contents), number of files and bytes of a folder.

    Args:
        folder: which.

    Raises:
        RunError: when it cannot be read, or something is in it that is neither file nor folder.
    """
    with named(RunError, f"cannot read {folder}"):
        return _facts(folder, _read)


def _facts(
    folder: Path, take: Callable[[str, str], tuple[str, int]], enter: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """What :func:`tree_facts` returns.

    Args:
        folder: of what.
        take: is given each file's path, and the same below the folder; returns its digest and its bytes.
        enter: is given the path below the folder of each folder in it.
    """
    import xxhash  # here, because the login node's commands import this module too

    if folder.is_symlink() or not folder.is_dir():
        raise RunError(f"{folder} is a folder no more", hint="a task may change what is in it, and must leave it there")
    total, top = xxhash.xxh3_128(), str(folder)
    files = size = 0
    for entry in _entries(top):
        name = entry.path[len(top) + 1 :]
        if entry.is_dir(follow_symlinks=False):
            enter(name)
            continue
        if not entry.is_file(follow_symlinks=False):
            raise RunError(
                f"{entry.path} is neither a file nor a folder", hint="keep only plain files in the policy and state"
            )
        digest, count = take(entry.path, name)
        total.update(os.fsencode(name) + f"\0{digest}\n".encode())
        files, size = files + 1, size + count
    return {"digest": total.hexdigest(), "files": files, "bytes": size}


def _read(path: str, name: str, *, seal: bool = False) -> tuple[str, int]:
    """Digest and bytes of a file; sealed, it is read-only then, and nobody else's."""
    with open(path, "rb", buffering=0) as file:
        found = _digest(file)
        if seal:
            _seal(path, file.fileno())
    return found


def _digest(file: RawIOBase | BufferedIOBase, copy: BufferedIOBase | None = None) -> tuple[str, int]:
    """Digest (xxh3-128) and bytes of an open file, which is copied if there is a ``copy``."""
    import xxhash

    content, size = xxhash.xxh3_128(), 0
    while chunk := file.read(_CHUNK):
        content.update(chunk)
        size += len(chunk)
        if copy is not None:
            copy.write(chunk)
    return content.hexdigest(), size


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Everything in a folder, in the order of its names; what is in folders of it, each behind its own."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(entry.path)


def _seal(path: str, file: int) -> None:
    """Make a file read-only; where it has other names, which are not ours, a file of its own first."""
    status = os.fstat(file)
    if status.st_nlink > 1:  # a file outside would stay the committed one
        _unlink_from_others(Path(path))
    os.chmod(path, stat.S_IMODE(status.st_mode) & ~0o222)  # noqa: PTH101 - a Path for each of many files is dear


def _unlink_from_others(path: Path) -> None:
    copy = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.copy2(path, copy)
    fsync_path(copy)
    copy.rename(path)


def copy_tree(source: Path | None, target: Path) -> dict[str, Any]:
    """A private, writable copy of a published folder (an empty one for None).

    Never hard links: a change in place would alter the committed file.

    Returns:
        what :func:`tree_facts` says of the copy.

    Raises:
        RunError: when the system refuses; half a copy may be left then.
    """

    def copy(path: str, name: str) -> tuple[str, int]:
        found = copy_file(path, f"{target}/{name}")
        failpoints.hit("copy-file-copied")
        return found

    with named(RunError, f"cannot make {target}, a copy of {source or 'nothing'}"):
        target.mkdir(parents=True)
        failpoints.hit("copy-begun")
        return _facts(target if source is None else source, copy, lambda name: (target / name).mkdir())


def copy_file(source: str | Path, target: str | Path) -> tuple[str, int]:
    """Copy a file's bytes; where the file system can, without moving them (a reflink). The copy can be written to.

    Returns:
        the copy's digest (xxh3-128) and bytes.
    """
    with open(source, "rb", buffering=0) as given, open(target, "w+b") as taken:
        try:
            fcntl.ioctl(taken, _FICLONE, given.fileno())
        except OSError:
            found = _digest(given, taken)
        else:
            found = _digest(taken)
        os.fchmod(taken.fileno(), stat.S_IMODE(os.fstat(given.fileno()).st_mode) | 0o200)
    return found


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
