"""``rose-hpc inspect --check``: files against their digests, runs against their journals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from rose_hpc import checkpoint, publishing, rundir
from rose_hpc.cli import options
from rose_hpc.errors import DamagedError, ExperienceError, RunError
from rose_hpc.journal import read_journal
from rose_hpc.progress import Progress
from rose_hpc.rundir import RunDir


@dataclass(frozen=True)
class Verdict:
    """What checking one file, or one journal, found.

    Attributes:
        file: its path.
        ok: whether it is what was written and, in a run, what was recorded.
        message: why not; or what was checked.
    """

    file: str
    ok: bool
    message: str


def run(path: Path | None, *, as_json: bool) -> int:
    """Check a file, a run, or (None) all runs; the exit code, 1 when anything is not as it should be."""
    found = []
    for verdict in _verdicts(path):
        found.append(verdict)
        if not as_json:
            word = "ok     " if verdict.ok else "DAMAGED" if Path(verdict.file).exists() else "MISSING"
            click.echo(f"{word}  {verdict.file}: {verdict.message}")
    if as_json:
        options.print_json([asdict(verdict) for verdict in found])
    elif not found:
        click.echo("nothing to check")
    return 0 if all(verdict.ok for verdict in found) else 1


def _verdicts(path: Path | None) -> Iterator[Verdict]:
    if path is None:
        for each in rundir.find_all():
            yield from _check_run(each)
    elif path.is_dir():
        yield from _check_run(rundir.find(path))
    else:
        yield _check_file(path, None)


def _check_run(run: RunDir) -> Iterator[Verdict]:
    """The journal, and every shard, bank and policy of it that is still there; then the same of its learners."""
    try:
        records = read_journal(run.journal)
        progress = Progress.of(records)
        checkpoint.check_known(run, progress)
    except RunError as error:
        yield Verdict(str(run.journal), False, error.message)
        return
    yield Verdict(str(run.journal), True, f"{len(records)} records")
    wanted = {run.bank(k): r["digest"] for k, r in progress.merges.items() if progress.has_bank(k)}
    ranks = [r for r in records if r["kind"] == "rank" and r.get("digest")]
    wanted |= {run.shard(r["iteration"], r["environment"]): r["digest"] for r in ranks}
    for path in sorted(wanted):
        if path.exists():  # retention drops banks and shards
            yield _check_file(path, wanted[path])
    for k, record in sorted(progress.updates.items()):
        for folder, name in ((run.policy(k), "policy"), (run.state(k), "state")):
            if folder.exists() and record.get(name):
                yield _check_tree(folder, record[name]["digest"])
    for path in checkpoint.needed(run, progress, progress.iteration, int(progress.run.get("window", 1))):
        if not path.exists():
            yield Verdict(str(path), False, "it is gone, and the run goes on from it")
    for learner in run.learners:
        yield from _check_run(learner)


def _check_file(path: Path, recorded: str | None) -> Verdict:
    from rose_hpc.experience.check import verify
    from rose_hpc.experience.foreign import read_foreign

    try:
        info = read_foreign([path])[0]
        if recorded is not None and info.digest not in (None, recorded):
            raise DamagedError(f"{path} is not the file that was recorded")
        verify(info)
    except ExperienceError as error:
        return Verdict(str(path), False, error.message.removeprefix(f"{path} is damaged: "))
    unknown = [name for name, column in info.columns.items() if column.digest is None]
    note = f", but no digest of {', '.join(unknown)}" if unknown else ""
    return Verdict(str(path), True, f"a {info.kind} of {info.rows:,} rows{note}")


def _check_tree(folder: Path, recorded: str) -> Verdict:
    try:
        facts = publishing.tree_facts(folder)
    except (RunError, OSError) as error:
        return Verdict(str(folder), False, str(error))
    ok = facts["digest"] == recorded
    return Verdict(str(folder), ok, f"{facts['files']} files" if ok else "it is not the folder that was recorded")
