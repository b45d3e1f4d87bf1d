"""Every system call of publishing, sealing, merging and of the journal fails, in every way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import failing_calls
from cells import Cell, Part
from failing_calls import FAILURES, HICCUPS
from fault_scenarios import SCENARIOS, run

#: the share of the calls that fail in the short form
_SHORT = 0.02


@contextmanager
def cells(folder: Path, long: bool) -> Iterator[Iterator[Cell]]:
    """Each scenario in each way to fail: on call N = 1, 2, ... until none fails; the short form on some of them."""
    library = failing_calls.build(folder)

    def cell(name: str, fault: str) -> list[str]:
        (found,) = run(library, folder, [name], share=1.0 if long else _SHORT, fault=fault)
        return found.violations

    def each() -> Iterator[Cell]:
        for name in SCENARIOS:
            for fault in map(str, (*FAILURES, *HICCUPS)):
                yield f"{name}, {fault}", lambda name=name, fault=fault: cell(name, fault)

    yield each()


PART = Part(
    "syscalls",
    "ENOSPC, EDQUOT, EIO, EROFS, ESTALE on call N = 1, 2, ... of publish, journal and merge; short reads and writes",
    cells,
)
