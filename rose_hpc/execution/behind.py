"""What stands behind what at a supervisor: the attempts of a lane (:mod:`rose_hpc.execution.lanes`), in their order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from rose_hpc.execution.attempt import Attempt

#: who waits for longer behind another is sent back: that one is not brief
PATIENCE_S = 0.25

Order = tuple[Attempt, bytes]


@dataclass
class _Line:
    """One lane: since when its first has been running (monotonic), and who is behind."""

    since: float
    behind: deque[Order] = field(default_factory=deque)


class Behind:
    """All lanes of a supervisor in which somebody runs.

    Attributes:
        count: how many are behind somebody.
    """

    def __init__(self) -> None:
        self.count = 0
        self._lines: dict[int, _Line] = {}

    def __iter__(self) -> Iterator[str]:
        return (attempt.id for line in self._lines.values() for attempt, _ in line.behind)

    def stands(self, lane: int, attempt: Attempt, payload: bytes) -> bool:
        """Whether it stands behind another; it begins at once if not."""
        if not lane:
            return False
        line = self._lines.get(lane)
        if line is None:
            self._lines[lane] = _Line(time.monotonic())
            return False
        line.behind.append((attempt, payload))
        self.count += 1
        return True

    def next(self, lane: int) -> Order | None:
        """The first of a lane has ended: who is now."""
        line = self._lines.get(lane)
        if line is None or not line.behind:
            self._lines.pop(lane, None)
            return None
        line.since = time.monotonic()
        self.count -= 1
        return line.behind.popleft()

    def remove(self, identifier: str) -> bool:
        """Let one go that stands behind another; whether there was any."""
        for line in self._lines.values():
            for order in line.behind:
                if order[0].id == identifier:
                    line.behind.remove(order)
                    self.count -= 1
                    return True
        return False

    def due(self) -> float:
        """When somebody will have stood for too long (monotonic seconds)."""
        if not self.count:
            return float("inf")
        return min(line.since for line in self._lines.values() if line.behind) + PATIENCE_S

    def send_back(self) -> list[str]:
        """Let those go that have stood for too long."""
        late, now = [], time.monotonic()
        for line in self._lines.values():
            if line.behind and now - line.since >= PATIENCE_S:
                late += [attempt.id for attempt, _ in line.behind]
                line.behind.clear()
        self.count -= len(late)
        return late
