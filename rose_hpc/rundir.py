"""The run directory: every file name of a run, how files are published into it, and who owns it.

A file or folder is *published* by writing it under a scratch name, bringing it to the disk, and renaming it; the
record in the journal follows. Scratch names carry the attempt's id, so an attempt that outlived its driver can never
overwrite its repetition.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import socket
import stat
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rose_hpc.errors import OwnedError, RunError, UsageError

#: the owner writes its heartbeat this often
HEARTBEAT_S = 5.0
#: a heartbeat older than this is a dead owner's (contract)
HEARTBEAT_MAX_AGE_S = 60.0
_CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True)
class RunDir:
    """The names of the files of one run; ``path`` is absolute."""

    path: Path

    @property
    def name(self) -> str:
        """What people call the run."""
        return self.path.name

    @property
    def config(self) -> Path:
        """The configuration as it runs."""
        return self.path / "config.toml"

    @property
    def journal(self) -> Path:
        """The truth."""
        return self.path / "journal.jsonl"

    @property
    def owner(self) -> Path:
        """Who drives the run, since when, and its last heartbeat; locked while it is driven."""
        return self.path / "owner.json"

    @property
    def logs(self) -> Path:
        """The outputs of ranks and stages."""
        return self.path / "logs"

    @property
    def slurm(self) -> Path:
        """What the login node and Slurm leave."""
        return self.path / "slurm"

    @property
    def scratch(self) -> Path:
        """What is not published; emptied by the next driver."""
        return self.path / "scratch"

    def iteration(self, number: int) -> Path:
        """The folder of an iteration."""
        return self.path / f"iter-{number:04d}"

    def shard(self, iteration: int, environment: str) -> Path:
        """A published shard."""
        return self.iteration(iteration) / "shards" / f"{environment}.h5"

    def bank(self, iteration: int) -> Path:
        """A published bank."""
        return self.iteration(iteration) / "bank.h5"

    def policy(self, iteration: int) -> Path:
        """A published policy."""
        return self.iteration(iteration) / "policy"

    def state(self, iteration: int) -> Path:
        """What else that update kept."""
        return self.iteration(iteration) / "state"

    def log(self, iteration: int, stage: str, environment: str = "") -> Path:
        """The log of a rank or stage; attempts follow each other in it."""
        parts = (f"iter-{iteration:04d}", stage, environment)
        return self.logs / ("-".join(part for part in parts if part) + ".log")

    def command(self, verb: str) -> str:
        """What to type, in whatever folder, whatever characters the path has."""
        return f"rose-hpc {verb} {shlex.quote(str(self.path))}"

    def relative(self, path: Path) -> str:
        """A path as the journal names it."""
        return str(path.relative_to(self.path))


def runs_folder() -> Path:
    """Where runs are made and looked for: ``$ROSE_HPC_RUNS``, else ``./runs``."""
    return Path(os.environ.get("ROSE_HPC_RUNS") or "runs")


def check_path(path: Path) -> Path:
    """The absolute form of a run's path.

    Raises:
        UsageError: for a newline, which no line of Slurm's or ours could carry.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the user's own links
    if "\n" in str(path):
        raise UsageError(f"the run directory {str(path)!r} has a newline in its path", hint="choose another --run-dir")
    return path


def create(name: str, run_dir: Path | None = None, config: bytes | None = None) -> RunDir:
    """Make the directory of a new run, with an empty journal: ``<runs>/<name>-<4 hex digits>``, or ``run_dir`` itself.

    The configuration is there before the journal that makes it a run: killed in between, it is no run yet.

    Raises:
        UsageError: when ``run_dir`` has something in it.
        RunError: when it cannot be made.
    """
    try:
        for _ in range(100):
            path = check_path(run_dir or runs_folder() / f"{name}-{uuid.uuid4().hex[:4]}")
            if run_dir is None and path.exists():
                continue
            path.mkdir(parents=True, exist_ok=True)
            run = RunDir(path)
            if not _begun_by_us(run):
                hint = run.command("resume") if run.journal.exists() else "choose another --run-dir"
                raise UsageError(f"{path} is not empty", hint=hint)
            for folder in (run.logs, run.slurm, run.scratch):
                folder.mkdir(exist_ok=True)
            if config is not None:
                write_file(run.config, config)
            run.journal.touch()
            return run
    except OSError as error:
        raise RunError(f"cannot make the run directory {error.filename}: {error.strerror}") from error
    raise RunError(f"{runs_folder()} is full of runs of this name", hint="give --run-dir")


def _begun_by_us(run: RunDir) -> bool:
    """Whether a folder is empty, or what :func:`create` leaves when it is killed before there is a journal."""
    folders = (run.logs, run.slurm, run.scratch)
    left = [p for p in run.path.iterdir() if p not in (*folders, run.config) and not p.name.startswith(".config.toml.")]
    return not left and not any(any(folder.iterdir()) for folder in folders if folder.is_dir())


def find(path: Path) -> RunDir:
    """The run at ``path``, or of that name in the runs folder.

    Raises:
        RunError: when there is none.
    """
    for candidate in (path, runs_folder() / path):
        if (candidate / "journal.jsonl").is_file():
            return RunDir(check_path(candidate))
    raise RunError(
        f"{path} is not a run (no journal.jsonl in it)", hint="`rose-hpc status` lists the runs that are there"
    )


def find_all(folder: Path | None = None) -> list[RunDir]:
    """Every run in the runs folder, by name."""
    folder = folder or runs_folder()
    return [RunDir(check_path(path.parent)) for path in sorted(folder.glob("*/journal.jsonl"))]


# -- publishing --------------------------------------------------------------------------------------------------------


def fsync_path(path: Path) -> None:
    """Bring a file or folder to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(scratch: Path, target: Path) -> None:
    """Give a file that is already on the disk (its writer has synced it) its published name."""
    scratch.rename(target)
    fsync_path(target.parent)


def write_file(target: Path, data: bytes) -> None:
    """Publish a small file of ours."""
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with open(scratch, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    publish(scratch, target)


def publish_tree(scratch: Path, target: Path) -> dict[str, Any]:
    """Publish a folder: its files are synced and made read-only (they are committed), then the folder is renamed.

    Returns:
        ``{"digest": ..., "files": ..., "bytes": ...}``; the digest covers names and contents.
    """
    facts = tree_facts(scratch, seal=True)
    if target.exists():  # published by an attempt whose record was never written: it has not happened
        shutil.rmtree(target)
    publish(scratch, target)
    return facts


def tree_facts(folder: Path, *, seal: bool = False) -> dict[str, Any]:
    """Digest (xxh3-128 over sorted names and contents), number of files and bytes of a folder."""
    import xxhash  # here, because the login node's commands import this module too

    total = xxhash.xxh3_128()
    files = size = 0
    if folder.is_symlink() or not folder.is_dir():
        raise RunError(f"{folder} is a folder no more", hint="a task may change what is in it, and must leave it there")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise RunError(
                f"{path} is neither a file nor a folder", hint="keep only plain files in the policy and state"
            )
        if path.is_dir():
            continue
        content = xxhash.xxh3_128()
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                content.update(chunk)
                size += len(chunk)
            if seal:
                os.fsync(file.fileno())
        if seal:
            if path.stat().st_nlink > 1:  # a file outside would stay the committed one
                _unlink_from_others(path)
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
        total.update(os.fsencode(path.relative_to(folder)) + f"\0{content.hexdigest()}\n".encode())
        files += 1
    if seal:
        for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
            fsync_path(path)
    return {"digest": total.hexdigest(), "files": files, "bytes": size}


def _unlink_from_others(path: Path) -> None:
    copy = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.copy2(path, copy)
    fsync_path(copy)
    copy.rename(path)


def copy_tree(source: Path | None, target: Path) -> None:
    """A private, writable copy of a published folder (an empty one for None).

    Never hard links: a change in place would alter the committed file.
    """
    target.mkdir(parents=True)
    if source is None:
        return
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
        else:
            shutil.copyfile(path, copy)
            copy.chmod(stat.S_IMODE(path.stat().st_mode) | 0o200)


def remove(path: Path) -> None:
    """Remove a file or folder that is there or not."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# -- owning ------------------------------------------------------------------------------------------------------------


class Ownership:
    """The lock of a run, held by the one driver it may have; a dead owner's is taken over under a new epoch.

    Raises:
        OwnedError: when another driver lives; it names host, pid and job.
    """

    def __init__(self, run: RunDir) -> None:
        self.run = run
        try:
            self._file = os.open(run.owner, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunError(f"cannot own {run.path}: {error.strerror}", hint="is it yours to write to?") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise _owned(run, read_owner(run) or {}) from None
        before = read_owner(run) or {}  # under the lock, so that no epoch is given twice
        elsewhere = before.get("host") != socket.gethostname()
        if before.get("pid") and elsewhere and not _is_stale(before):  # file systems whose locks do not cross nodes
            os.close(self._file)
            raise _owned(run, before)
        self._facts: dict[str, Any] = {
            "epoch": int(before.get("epoch", -1)) + 1,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "since": round(time.time(), 3),
        }
        self._write()

    @property
    def epoch(self) -> int:
        """Which driver of the run this is; every one has a higher epoch than those before it."""
        return int(self._facts["epoch"])

    def follow(self, epoch: int) -> None:
        """Make sure that ours is a later epoch than ``epoch``, should the file that said so have been lost."""
        if self.epoch <= epoch:
            self._facts["epoch"] = epoch + 1
            self._write()

    def beat(self) -> None:
        """Say that the owner lives.

        Raises:
            OwnedError: when the run was taken over meanwhile, as from a driver that was suspended for too long.
        """
        now = read_owner(self.run) or {}
        if int(now.get("epoch", -1)) > self.epoch:
            raise _owned(self.run, now)
        self._write()

    def _write(self) -> None:
        # One write of constant length, so that a reader never sees half of it
        text = json.dumps({**self._facts, "heartbeat": round(time.time(), 3)})
        os.pwrite(self._file, text.ljust(511).encode() + b"\n", 0)

    def release(self) -> None:
        """Let go of the run; idempotent."""
        if self._file >= 0:
            self._facts["pid"] = None
            try:
                with suppress(OwnedError, OSError):  # taken over, or not writable: the lock is let go of all the same
                    self.beat()
            finally:
                os.close(self._file)
                self._file = -1


def read_owner(run: RunDir) -> dict[str, Any] | None:
    """The owner's file: ``epoch, host, pid`` (None once it let go), ``job, since, heartbeat``; None without one."""
    try:
        facts = json.loads(run.owner.read_bytes())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def owner_lives(run: RunDir) -> bool:
    """Whether a driver of this run is alive: its heartbeat is fresh and, on this host, its process is there."""
    facts = read_owner(run)
    if not facts or not facts.get("pid") or _is_stale(facts):
        return False
    return facts["host"] != socket.gethostname() or _process_lives(int(facts["pid"]))


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_stale(facts: dict[str, Any]) -> bool:
    return bool(time.time() - float(facts.get("heartbeat", 0)) > HEARTBEAT_MAX_AGE_S)


def _owned(run: RunDir, facts: dict[str, Any]) -> OwnedError:
    job = f", job {facts['job']}" if facts.get("job") else ""
    return OwnedError(
        f"{run.path} is driven by process {facts.get('pid')} on {facts.get('host')}{job}",
        hint=f"watch it with `{run.command('status')}`",
    )
