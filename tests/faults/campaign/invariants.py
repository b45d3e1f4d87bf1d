"""What must hold of a run after whatever happened to it; each answer is a list of violations, in words."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rose_hpc.errors import JournalError, RoseHpcError, RunError
from rose_hpc.experience.check import verify
from rose_hpc.experience.format import read_info
from rose_hpc.journal import read_journal
from rose_hpc.progress import Progress
from rose_hpc.publishing import tree_facts
from rose_hpc.rundir import RunDir


def committed(
    path: Path, before: list[dict[str, Any]], harmed: Mapping[Path, int]
) -> tuple[list[str], list[dict[str, Any]]]:
    """I1 in the middle of a run: no record of before is gone or changed, and what the records name is what they say.

    Args:
        path: the run directory.
        before: its records when it was last looked at.
        harmed: experience that is not as recorded, or not there, while it has no other size than this.
    """
    try:
        records = read_journal(path / "journal.jsonl")
    except JournalError as error:
        return [f"I1: {error.message}"], before
    except RunError:
        return (["I1: the journal is gone"] if before else []), before
    if records[: len(before)] != before:
        return ["I1: records that were there have gone or changed"], records
    found = []
    for part in parts(RunDir(path)):
        found += _files(part, read_journal(part.journal), harmed)
    return found, records


def parts(run: RunDir) -> list[RunDir]:
    """The learners of a run, or itself where there is one."""
    return run.learners or [run]


def _files(run: RunDir, records: list[dict[str, Any]], harmed: Mapping[Path, int]) -> list[str]:
    """Everything committed that is there is what was recorded, and what is needed is there."""
    progress = Progress.of(records)
    found = []
    for environment, record in progress.ranks.items():
        shard = run.shard(progress.iteration, environment)
        if shard in harmed and (not shard.exists() or shard.stat().st_size == harmed[shard]):
            continue
        if record["digest"] and "merge" not in progress.stages:
            found += _experience(shard, record["digest"], needed=True)
    newest = max(progress.updates, default=-1)
    for k, record in progress.merges.items():
        if progress.has_bank(k):
            found += _experience(run.bank(k), record["digest"], needed=k == max(progress.merges))
    for k, record in progress.updates.items():
        for folder, name in ((run.policy(k), "policy"), (run.state(k), "state")):
            if not folder.exists():
                found += [f"I1: {folder.name} of iteration {k} is gone"] if k == newest else []
            elif (facts := tree_facts(folder)) != record[name]:
                found.append(f"I1: {folder.name} of iteration {k} is {facts}, recorded was {record[name]}")
    return found


def _experience(path: Path, digest: str, *, needed: bool) -> list[str]:
    if not path.exists():
        return [f"I1: {path.name} is gone"] if needed else []
    try:
        info = read_info(path)
        verify(info)
    except (RoseHpcError, OSError) as error:
        return [f"I1: {error}"]
    return [] if info.digest == digest else [f"I1: {path.name} is another than was recorded"]


def essence(path: Path) -> dict[str, Any]:
    """What must be equal between an undisturbed run and any other of the same training (I3, I4)."""
    if len(learners := parts(RunDir(path))) == 1:
        return _essence(path)
    ended = Progress.of(read_journal(path / "journal.jsonl")).end or {}
    return {"end": ended.get("state"), **{learner.name: _essence(learner.path) for learner in learners}}


def _essence(path: Path) -> dict[str, Any]:
    progress = Progress.of(read_journal(path / "journal.jsonl"))
    of: dict[str, Any] = {"iteration": progress.iteration, "rewards": progress.rewards, "rows": progress.rows}
    of["banks"] = {k: (r.get("digest"), r.get("rows"), r.get("returns")) for k, r in sorted(progress.merges.items())}
    of["policies"] = {k: (r["policy"], r["state"]) for k, r in sorted(progress.updates.items())}
    of["end"] = (progress.end or {}).get("state")
    of["config"] = progress.config
    files = (file for folder in path.glob("iter-*") for file in folder.rglob("*"))  # but evidence, which always stays
    of["files"] = sorted(str(f.relative_to(path)) for f in files if ".h5.damaged-" not in f.name and f.name != "shards")
    return of


def differences(ours: dict[str, Any], undisturbed: dict[str, Any]) -> list[str]:
    """I4: where a run is another than the undisturbed one."""
    found = []
    for key, wanted in undisturbed.items():
        if ours[key] != wanted:
            found.append(f"I4: {key} {_short(ours[key])}, undisturbed {_short(wanted)}")
    return found


def left_over(path: Path) -> list[str]:
    """Of a run that has ended: nothing unpublished is left."""
    scratches = [run.scratch for run in {RunDir(path), *parts(RunDir(path))} if run.scratch.is_dir()]
    left = [entry.name for scratch in scratches for entry in scratch.iterdir()]
    temporary = [str(p.relative_to(path)) for p in path.rglob(".*.tmp")]
    return [f"I7: left behind: {', '.join(sorted(left + temporary))}"] if left or temporary else []


def complaint(code: int, stderr: str) -> list[str]:
    """I6: a failure is a non-zero exit and one line with its cause."""
    lines = [line for line in stderr.splitlines() if line and not line.startswith("    ")]
    if code in (0, 3, -9):
        return []
    if "Traceback (most recent call last):" in lines:
        return [f"I6: exit {code} with a traceback: {lines[-1] if lines else ''}"]
    if not lines or not lines[-1].startswith("rose-hpc: error: "):
        return [f"I6: exit {code} says {lines[-1:] or 'nothing'}"]
    return []


def processes(marker: str) -> list[int]:
    """Processes with ``marker`` in the environment they were started with; zombies do not count."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if marker.encode() in text and state != "Z" and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 300 else text[:300] + "..."
