"""What two runs of the same training must have in common, however often one of them was killed: read from journals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rose_hpc.journal import read_journal
from rose_hpc.progress import Progress
from rose_hpc.publishing import tree_facts
from rose_hpc.rundir import RunDir

#: of a record, what says what came of it (not when, where, and how long it took)
_FACTS = {
    "merge": ("digest", "rows", "skipped", "returns"),
    "update": ("policy", "state", "value"),
    "check": ("reward", "value"),
}
_WORDS = {"merge": "the bank", "update": "policy and state", "check": "the reward"}

Essence = dict[tuple[int, str], Any]


def essence(run: RunDir) -> Essence:
    """What came of every iteration that is complete, by iteration and stage; the last record of each counts."""
    found: Essence = {}
    progress = Progress()
    for record in read_journal(run.journal):
        if record["kind"] == "checkpoint":
            for stage, of in progress.stages.items():
                if stage in _FACTS:
                    found[record["iteration"], stage] = {key: of.get(key) for key in _FACTS[stage]}
        progress.apply(record)
    return found


def differences(ours: Essence, others: Essence) -> list[str]:
    """Where two runs part, in words; empty where they are the same training."""
    return list(_differences(ours, others))


def _differences(ours: Essence, others: Essence) -> Iterator[str]:
    for place in sorted(ours.keys() | others.keys()):
        iteration, stage = place
        if place not in ours:
            yield f"iteration {iteration} has no {stage}"
        elif place not in others:
            yield f"iteration {iteration} has a {stage} that the other has not"
        elif ours[place] != others[place]:
            yield f"{_WORDS[stage]} of iteration {iteration} differs"


def damages(run: RunDir) -> list[str]:
    """What was committed, is still there, and is not what was recorded; what is needed to go on and is gone."""
    progress = Progress.of(read_journal(run.journal))
    found = []
    for k, update in progress.updates.items():
        for path, name in ((run.policy(k), "policy"), (run.state(k), "state")):
            if path.exists() and tree_facts(path)["digest"] != update[name]["digest"]:
                found.append(f"{run.relative(path)} is not what was recorded")
            elif not path.exists() and k == progress.iteration - 1:
                found.append(f"{run.relative(path)} is gone")
    for k, merge in progress.merges.items():
        if progress.has_bank(k) and run.bank(k).exists() and not _is(run.bank(k), merge["digest"]):
            found.append(f"{run.relative(run.bank(k))} is not what was recorded")
    return found


def _is(bank: Path, digest: str | None) -> bool:
    from rose_hpc.errors import ExperienceError
    from rose_hpc.experience.check import verify
    from rose_hpc.experience.format import read_info

    try:
        info = read_info(bank)
        verify(info)
    except ExperienceError:
        return False
    return info.digest in (None, digest)
