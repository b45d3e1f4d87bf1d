"""Small work with files: in the event loop while it is quick, in a thread when it was not."""

from __future__ import annotations

import asyncio
import threading

import pytest

from rose_hpc import quick
from rose_hpc.quick import Quick


def where() -> int | None:
    """The thread."""
    return threading.get_ident()


def fail() -> None:
    raise OSError("the disk is full")


def test_what_was_quick_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time nobody knows; then as the last time was. Each piece of work is known by itself."""

    async def main() -> list[bool]:
        work, here = Quick(), where()
        monkeypatch.setattr(quick, "QUICK_S", float("inf"))
        first, second = await work.run(where) == here, await work.run(where) == here
        monkeypatch.setattr(quick, "QUICK_S", 0.0)
        return [first, second, await work.run(where) == here]

    assert asyncio.run(main()) == [False, True, False]


@pytest.mark.parametrize("quick_s", [0.0, float("inf")])
def test_errors_come_through(quick_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it runs, its error is the caller's."""
    monkeypatch.setattr(quick, "QUICK_S", quick_s)

    async def main() -> None:
        work = Quick()
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is full"):
                await work.run(fail)

    asyncio.run(main())
