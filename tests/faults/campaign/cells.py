"""What the campaign is made of: parts of many cells, each of which is run once, and its outcome a line of a file."""

from __future__ import annotations

import json
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: one cell: its name within the part, and what runs it, giving the violations it found, in words
Cell = tuple[str, Callable[[], list[str]]]


@dataclass(frozen=True)
class Part:
    """A row of the campaign's table.

    Attributes:
        name: what to type.
        fault: what happens to the runs.
        cells: all cells of the long form (True) or of the short one, within a folder for its files.
    """

    name: str
    fault: str
    cells: Callable[[Path, bool], AbstractContextManager[Iterable[Cell]]]


@dataclass(frozen=True)
class Outcome:
    """One line of the results."""

    part: str
    cell: str
    violations: list[str]
    seconds: float
    commit: str = ""
    time: float = field(default_factory=lambda: round(time.time(), 1))


def run_cell(part: str, cell: Cell, commit: str = "") -> Outcome:
    """Run one cell; whatever it raises is a violation too."""
    name, work = cell
    began = time.monotonic()
    try:
        violations = work()
    except Exception as error:  # noqa: BLE001 - a trial that breaks down has not shown that the run survives
        violations = [f"{type(error).__name__}: {error}", traceback.format_exc(limit=-3)]
    return Outcome(part, name, violations, round(time.monotonic() - began, 2), commit)


def read_results(path: Path) -> list[Outcome]:
    """The outcomes so far, the last one of each cell; a torn last line is left out."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    last: dict[tuple[str, str], Outcome] = {}
    for line in lines:
        outcome = Outcome(**json.loads(line))
        last[outcome.part, outcome.cell] = outcome
    return list(last.values())


def run_part(
    part: Part, folder: Path, results: Path, *, long: bool, again: bool = False, share: tuple[int, int] = (1, 1)
) -> Iterator[Outcome]:
    """Run what of a part has no outcome yet (``again``: or one with violations), each written once it is known.

    Args:
        part: its cells.
        folder: where runs are made.
        results: the file of outcomes.
        long: the long form.
        again: try once more what was violated.
        share: (k, n): only every n-th cell, from the k-th on.

    Raises:
        RuntimeError: the long form of the part is of no cells.
    """
    done = {o.cell for o in read_results(results) if o.part == part.name and not (again and o.violations)}
    commit, count = head(), 0
    mine, others = share
    with part.cells(folder, long) as cells, open(results, "a") as file:
        for cell in cells:
            count += 1
            if cell[0] in done or count % others != mine % others:
                continue
            outcome = run_cell(part.name, cell, commit)
            file.write(json.dumps(asdict(outcome)) + "\n")
            file.flush()
            yield outcome
    if long and not count:
        raise RuntimeError(f"part {part.name} is empty")


def head() -> str:
    """The commit that is tested, with a + where the tree is not it."""
    told: list[Any] = [
        subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=Path(__file__).parent).stdout
        for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    ]
    return told[0].strip() + ("+" if told[1].strip() else "")
