"""Altered files through inspect, import, merge and ExperienceBank.open: no crash, and nothing else is opened."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import corpus
import open_hostile
from cells import Cell, Part

#: files of one cell, and cells of the long form: 20,000 in all
_FILES, _CELLS = 500, 40


def cell(base: Path, seed: int) -> list[str]:
    """Make a corpus, and open it."""
    base.mkdir()
    corpus.write_corpus(base, seed, _FILES)
    counts, strangers = open_hostile.run(base, traced=True)
    violations = [f"something opened {path}" for path in sorted(strangers)]
    if sum(counts["inspected"].values()) != _FILES or sum(counts["imported"].values()) != _FILES:
        violations.append(f"not all of them were told of: {counts}")
    if not set(counts["left"]) <= {"bank.h5", "imported.h5"}:
        violations.append(f"left behind: {counts['left']}")
    # a bank whose list of episodes is forged is not whole, and its rows may be: a merge finds the episodes itself
    if not 0 < counts["merged"] <= counts["opened"] + _FILES // 100 < _FILES // 2:
        violations.append(f"too many, or none, are taken for whole: {counts}")
    shutil.rmtree(base)
    return violations


@contextmanager
def cells(folder: Path, long: bool) -> Iterator[Iterator[Cell]]:
    """Corpora from many seeds; the short form is `make test`'s own."""
    seeds = range(1, _CELLS + 1) if long else ()
    yield ((f"{_FILES} files, seed {seed}", lambda seed=seed: cell(folder / str(seed), seed)) for seed in seeds)


PART = Part(
    "files",
    "altered shards, banks and HDF5 files through inspect, import, merge and ExperienceBank.open (500 each trial)",
    cells,
)
