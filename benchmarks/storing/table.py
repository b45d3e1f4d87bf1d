"""The table that a benchmark prints, row by row as it is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Table:
    """Rows with their goals.

    Attributes:
        met, missed: what the rows with a goal were about.
    """

    met: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def head(self) -> None:
        """Print the titles."""
        print(f"{'':<52}{'rose_hpc':>16}  {'beside it':<40}{'ratio':>9}  goal")

    def title(self, text: str) -> None:
        """Print what the next rows have in common."""
        print(f"\n{text}")

    def row(
        self, what: str, ours: str, rival: str = "", ratio: str = "", goal: str = "", met: bool | None = None
    ) -> None:
        """Print one row; ``met`` is None where there is no goal."""
        verdict = "" if met is None else "   met" if met else "   MISSED"
        print(f"  {what:<50}{ours:>16}  {rival:<40}{ratio:>9}  {goal}{verdict}", flush=True)
        if met is not None:
            (self.met if met else self.missed).append(what)

    def faster(self, what: str, ours: float, rival: float, name: str, at_least: float | None) -> None:
        """A row of seconds beside a rival's: its time over ours."""
        goal = (f">= {at_least:g}x", rival / ours >= at_least) if at_least is not None else ("", None)
        self.row(what, duration(ours), f"{name}: {duration(rival)}", f"{rival / ours:.2f}x", *goal)

    def end(self) -> None:
        """Print how many goals were met."""
        print(f"\n{len(self.met)} of {len(self.met) + len(self.missed)} goals met")
        for what in self.missed:
            print(f"  missed: {what}")


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds:.3f} s"


def seconds(function: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turns(
    ways: Mapping[str, Callable[[], Any]], rounds: int, before: Callable[[], Any] = lambda: None
) -> dict[str, float]:
    """The least seconds of each way: what is more is the machine's other business.

    For fairness they take turns, and every other round goes the other way around: a disk that was written to by one is
    slower for the next.

    Args:
        ways: what is measured.
        rounds: of all ways.
        before: what is done before each, and not counted.
    """
    taken = dict.fromkeys(ways, float("inf"))
    order = list(ways.items())
    for _ in range(rounds):
        for name, way in order:
            before()
            taken[name] = min(taken[name], seconds(way))
        order.reverse()
    return taken
