"""What a run goes on from: the files that its next stage begins with, and the digests they were committed with."""

from __future__ import annotations

from pathlib import Path

from rose_hpc.errors import RoseHpcError, RunError
from rose_hpc.progress import Progress
from rose_hpc.publishing import tree_facts
from rose_hpc.rundir import RunDir

#: of the run directory and its journal; a later one may hold what this version would misread
FORMAT = 1


def check_known(run: RunDir, progress: Progress) -> None:
    """Refuse a run that a later version has made, or that has lost its records.

    Raises:
        RunError: it names both versions, or the journal.
    """
    if not progress.run and next(run.path.glob("iter-*"), None) is not None:
        raise RunError(
            f"{run.journal} does not say what the run is, though there are iterations: somebody has emptied it",
            hint="bring it back from a copy; nothing was changed",
        )
    known = progress.run.get("format", FORMAT)
    if known != FORMAT:
        raise RunError(
            f"{run.path} has format {known}, of rose-hpc {progress.run.get('version')}; this version knows {FORMAT}",
            hint="go on with that version; nothing was changed",
        )


def needed(run: RunDir, progress: Progress, iteration: int, window: int) -> dict[Path, str]:
    """What iteration ``iteration`` begins with: path and digest of the last policy and state, and of the window."""
    found = {}
    if iteration > 0:
        update = progress.updates[iteration - 1]
        found = {
            run.policy(iteration - 1): update["policy"]["digest"],
            run.state(iteration - 1): update["state"]["digest"],
        }
    for k in range(max(0, iteration - window + 1), iteration):
        if progress.has_bank(k):
            found[run.bank(k)] = progress.merges[k]["digest"]
    return found


def checkpoints(run: RunDir, progress: Progress, window: int) -> list[int]:
    """The iterations that could begin anew: what they begin with is still there."""
    return [k for k in range(progress.iteration + 1) if all(path.exists() for path in needed(run, progress, k, window))]


def check(run: RunDir, progress: Progress, window: int) -> None:
    """Refuse to go on from files that are gone, or are not what was committed. Of banks the header is read, no row.

    Raises:
        RunError: it names the file, what is the matter, and what can be done.
    """
    files = needed(run, progress, progress.iteration, window)
    if (merge := progress.stages.get("merge")) is not None and "skipped" not in merge:
        files[run.bank(progress.iteration)] = merge["digest"]
    if (update := progress.stages.get("update")) is not None:
        files = {path: digest for path, digest in files.items() if path.suffix == ".h5"}  # older policies are done with
        files[run.policy(progress.iteration)] = update["policy"]["digest"]
        files[run.state(progress.iteration)] = update["state"]["digest"]
    for path, digest in files.items():
        if not path.exists():
            raise _refusal(run, progress, window, f"{path} is gone, and the run goes on from it")
        if path.is_dir() and tree_facts(path)["digest"] != digest:
            what = f"{path} is not what the update of its iteration left: somebody has changed it"
            raise _refusal(run, progress, window, what)
        if path.is_file() and (why := _differs(path, digest)):
            what = f"{path} is not what the merge of its iteration left: {why}"
            raise _refusal(run, progress, window, what)


def _differs(bank: Path, digest: str) -> str | None:
    """Why a bank is not the one with that digest, if it is not."""
    from rose_hpc.experience.header import read_info  # here: few runs go on from banks, and status never does

    try:
        return None if read_info(bank).digest == digest else "it is another bank"
    except RoseHpcError as error:
        return error.message


def _refusal(run: RunDir, progress: Progress, window: int, what: str) -> RunError:
    able = [k for k in checkpoints(run, progress, window) if k < progress.iteration]
    back = f", or branch off with `{run.command('resume')} --from-iteration {able[-1]} --run-dir NEW`" if able else ""
    return RunError(what, hint=f"bring it back from a copy{back}")
