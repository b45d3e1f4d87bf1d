"""How long the driver has: what it tells its tasks, what it does not begin any more, and when it hands the run over.

The end is told once, as Unix seconds; from then on the driver counts by the monotonic clock, so that a clock that is
set does not move it. Before the end lie two margins: work must have ended by itself while there is time to seal and
publish what it leaves, and what still runs then is ended while there is time to record that.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: ranks take up to 4 s to end, and then the engine has to
HAND_OVER_S = 15.0
#: for sealing, publishing and recording what ended in time
SEAL_S = 10.0
#: of a short job, the margins take at most this part
_MOST = 0.2


class NoTimeError(Exception):
    """The run is to be handed over to the next driver; it says why."""


class Walltime:
    """One driver's.

    Args:
        end: when it must have ended (Unix seconds); None: it has no end, or nobody knows it.

    Attributes:
        worked: whether this driver has completed anything; until then nothing is refused for lack of time, for no
            later driver would have more.
        told: why nothing is begun any more, whatever the time; "" while nobody has said so.
    """

    def __init__(
        self,
        end: float | None,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self.worked = False
        self.told = ""
        self.deadline: float | None = None
        self._hand_over = float("inf")
        if end is not None:
            self.ends(end)

    def ends(self, end: float) -> None:
        """The end is known, or another than it was."""
        left = max(0.0, end - self._clock())
        share = min(1.0, _MOST * left / (HAND_OVER_S + SEAL_S))
        self.deadline = end - share * (HAND_OVER_S + SEAL_S)  # told to tasks
        self._hand_over = self._monotonic() + left - share * HAND_OVER_S

    @property
    def left_s(self) -> float:
        """Seconds until the run is handed over."""
        return self._hand_over - self._monotonic()

    def refusal(self, what: str, expected_s: float | None) -> str:
        """Why ``what`` is not begun; "" where it is.

        Args:
            what: in words.
            expected_s: how long it may take; None where nobody knows.
        """
        if self.told:
            return self.told
        left = self.left_s
        if not self.worked or (left > 0 and (expected_s is None or expected_s <= left)):
            return ""
        if expected_s is None or left <= 0:
            return f"the walltime is nearly over: there is no time left for {what}"
        return f"the walltime is nearly over: {what} takes about {expected_s:.3g} s, and {left:.3g} s are left"
