"""The run directory: every file name of a run, how one is made, and how they are found."""

from __future__ import annotations

import os
import re
import shlex
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from rose_hpc import failpoints
from rose_hpc.errors import RunError, UsageError
from rose_hpc.publishing import fsync_path, make_folder, write_file
from rose_hpc.refusals import cause_of, next_step

_LEARNER = re.compile(r"learner-(\d+)")


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

    @cached_property
    def logs(self) -> Path:
        """The outputs of ranks and stages."""
        return self.path / "logs"

    @property
    def slurm(self) -> Path:
        """What the login node and Slurm leave."""
        return self.path / "slurm"

    @cached_property
    def scratch(self) -> Path:
        """What is not published; emptied by the next driver."""
        return self.path / "scratch"

    def iteration(self, number: int) -> Path:
        """The folder of an iteration."""
        return self.path / f"iter-{number:04d}"

    def shard(self, iteration: int, environment: str) -> Path:
        """A published shard."""
        return _shards(self, iteration) / f"{environment}.h5"

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
        return self.logs / log_name(iteration, stage, environment)

    def learner(self, number: int) -> RunDir:
        """The folder of one of several learners: a run directory in this one."""
        return RunDir(self.path / f"learner-{number}")

    @property
    def learners(self) -> list[RunDir]:
        """The learners that have begun, by number."""
        found = (RunDir(path.parent) for path in self.path.glob("learner-*/journal.jsonl"))
        return sorted((run for run in found if _LEARNER.fullmatch(run.name)), key=lambda run: run.number)

    @property
    def number(self) -> int:
        """Which learner this is, by its name; 0 for a run as such."""
        match = _LEARNER.fullmatch(self.name)
        return int(match[1]) if match else 0

    @cached_property
    def within(self) -> RunDir | None:
        """The run of which this is a learner, if it is one."""
        around = RunDir(self.path.parent)
        return around if _LEARNER.fullmatch(self.name) and around.journal.is_file() else None

    def command(self, verb: str) -> str:
        """What to type, in whatever folder, whatever characters the path has; a learner goes on with its run."""
        if self.within is not None and verb in ("resume", "cancel", "watch"):
            return self.within.command(verb)
        return f"rose-hpc {verb} {shlex.quote(str(self.path))}"

    def relative(self, path: Path) -> str:
        """A path as the journal names it."""
        return str(path.relative_to(self.path))


@lru_cache(maxsize=16)  # a thousand are asked for in a row
def _shards(run: RunDir, iteration: int) -> Path:
    return run.iteration(iteration) / "shards"


def log_name(iteration: int, stage: str, environment: str) -> str:
    """What the log of a rank or stage is called; the latter has no environment."""
    return f"iter-{iteration:04d}-{stage}{'-' if environment else ''}{environment}.log"


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


def create(
    name: str,
    run_dir: Path | None = None,
    config: bytes | None = None,
    fill: Callable[[RunDir], bytes] = lambda run: b"",
) -> RunDir:
    """Make the directory of a new run: ``<runs>/<name>-<4 hex digits>``, or ``run_dir`` itself.

    The configuration is there before the journal that makes it a run: killed in between, it is no run yet.

    Args:
        name: what its directory is called.
        run_dir: the directory itself.
        config: its configuration.
        fill: puts in what else there is from the beginning, and gives the journal.

    Raises:
        UsageError: when ``run_dir`` has something in it.
        RunError: when it cannot be made.
    """
    try:
        for _ in range(100):
            path = check_path(run_dir or runs_folder() / f"{name}-{uuid.uuid4().hex[:4]}")
            if run_dir is None and path.exists():
                continue
            make_folder(path)
            failpoints.hit("run-folder-made")
            run = RunDir(path)
            if not _begun_by_us(run):
                hint = run.command("resume") if run.journal.exists() else "choose another --run-dir"
                raise UsageError(f"{path} is not empty", hint=hint)
            for folder in (run.logs, run.slurm, run.scratch):
                folder.mkdir(exist_ok=True)
            failpoints.hit("run-subfolders-made")
            if config is not None:
                write_file(run.config, config)
            failpoints.hit("run-config-written")
            if journal := fill(run):
                write_file(run.journal, journal)
            else:
                run.journal.touch()
            fsync_path(path)
            failpoints.hit("run-journal-made")
            return run
    except OSError as error:
        what = f"cannot make the run directory {error.filename}: {cause_of(error)}"
        raise RunError(what, hint=next_step(error)) from error
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
    for candidate in (path, runs_folder() / path):
        if (candidate / "config.toml").is_file() and (candidate / "scratch").is_dir():
            raise RunError(
                f"{candidate} was a run, and its journal.jsonl is gone",
                hint="bring that back from a copy: without it nobody knows what has happened; nothing was changed",
            )
    raise RunError(
        f"{path} is not a run (no journal.jsonl in it)", hint="`rose-hpc status` lists the runs that are there"
    )


def find_whole(path: Path) -> RunDir:
    """The same, for what is done to a run as a whole.

    Raises:
        RunError: when there is none.
        UsageError: when it is a learner of a run.
    """
    run = find(path)
    if run.within is not None:
        raise UsageError(f"{run.path} is one learner of a run", hint=f"name the whole, {run.within.path}")
    return run


def find_all(folder: Path | None = None) -> list[RunDir]:
    """Every run in the runs folder, by name."""
    folder = folder or runs_folder()
    return [RunDir(check_path(path.parent)) for path in sorted(folder.glob("*/journal.jsonl"))]
