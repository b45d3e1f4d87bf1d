"""A new run from an old one's checkpoint: what it needs to go on is copied, and its journal begins with the history."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rose_hpc import failpoints, publishing, rundir
from rose_hpc.checkpoint import check_known, checkpoints, needed
from rose_hpc.errors import RunError, UsageError
from rose_hpc.journal import encode, read_journal
from rose_hpc.progress import Progress
from rose_hpc.rundir import RunDir

Record = Mapping[str, Any]

#: of `slurm/`, what says how the run is submitted and its program started
_HOW = ("program.json", "site.toml")


def branch(source: RunDir, iteration: int, run_dir: Path, window: int | None = None) -> RunDir:
    """Make a run that goes on at ``iteration`` as ``source`` did: the same seed, policy, state, window and rewards.

    Unchanged, it does the same again. The source is only read, and may be driven meanwhile.

    Args:
        source: a run.
        iteration: the first that is done anew; those before it are taken over.
        run_dir: the new run's directory.
        window: iterations whose banks the next update sees; None: as the source's.

    Raises:
        UsageError: there is no such checkpoint any more; it names those that are there.
        RunError: what was copied is not what was committed.
    """
    records = read_journal(source.journal)
    progress = Progress.of(records)
    if not progress.run:
        raise UsageError(f"{source.path} has not begun yet", hint="there is nothing to branch from")
    if "learners" in progress.run or source.within is not None:
        raise UsageError(f"{source.path} is of several learners", hint="only a run of one can be branched")
    check_known(source, progress)
    window = window or int(progress.run.get("window", 1))
    if iteration not in (able := checkpoints(source, progress, window)):
        there = ", ".join(map(_range, _ranges(able)))
        raise UsageError(
            f"{source.path} cannot be branched at iteration {iteration}: its policy, its state or a bank of its window "
            "is not there",
            hint=f"choose one of {there}; `[retention]` says what is kept",
        )
    config = source.config.read_bytes() if source.config.exists() else None
    history = _history(records, iteration, source)

    def fill(run: RunDir) -> bytes:
        _copy(source, run, progress, iteration, window)
        failpoints.hit("branch-copied")
        return b"".join(encode({**record, "seq": seq}) for seq, record in enumerate(history))

    return rundir.create(source.name, run_dir, config, fill)


def _copy(source: RunDir, run: RunDir, progress: Progress, iteration: int, window: int) -> None:
    """Copy what is needed, and the best policy so far, each held against its digest."""
    files = needed(source, progress, iteration, window)
    best = progress.best(before=iteration)
    if best is not None and source.policy(best[0]).exists():
        files[source.policy(best[0])] = progress.updates[best[0]]["policy"]["digest"]
    for path, digest in files.items():
        scratch, target = run.scratch / "branch", run.path / source.relative(path)
        try:
            if path.is_dir():
                publishing.copy_tree(path, scratch)
                found = publishing.publish_tree(scratch, target)["digest"]
            else:
                publishing.copy_file(path, scratch)
                publishing.fsync_path(scratch)
                publishing.publish(scratch, target)
                found = _verified(target)
        except FileNotFoundError as error:
            raise RunError(f"{error.filename} was removed while it was copied", hint="branch anew") from error
        if found != digest:
            raise RunError(f"{path} is not what was committed", hint="bring it back from a copy, or branch elsewhere")
        failpoints.hit("branch-file-copied")
    for name in _HOW:
        if (source.slurm / name).exists():
            shutil.copyfile(source.slurm / name, run.slurm / name)


def _verified(bank: Path) -> str | None:
    """The digest of a bank, every byte of which is held against it."""
    from rose_hpc.experience.check import verify
    from rose_hpc.experience.format import read_info

    info = read_info(bank)
    verify(info)
    return info.digest


def _history(records: Sequence[Record], iteration: int, source: RunDir) -> list[dict[str, Any]]:
    """The records of a branch: what the run is, where it comes from, and its iterations so far as they ended."""
    progress, kept = Progress(), []
    for record in records:
        if record["kind"] == "checkpoint" and record["iteration"] < iteration:
            config = [] if progress.next_config is None else [progress.next_config]
            ended = [*progress.ranks.values(), *progress.stages.values(), *config, record]
            kept += sorted(ended, key=lambda each: int(each["seq"]))
        progress.apply(record)
    first = {key: value for key, value in progress.run.items() if key != "changes"}
    origin = {"run": str(source.path), "iteration": iteration}
    run = {**first, "seq": 0, "time": records[0]["time"], "kind": "run", "branch": origin}
    scripts = {"seq": 1, "time": records[-1]["time"], "kind": "scripts", "digests": progress.scripts}
    return [run, *([scripts] if progress.scripts else []), *map(dict, kept)]


def _ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _range(ends: tuple[int, int]) -> str:
    first, last = ends
    return str(first) if first == last else f"{first}-{last}"
