"""How much failing and lateness a run puts up with: plain rules, the same for configurations and programs."""

from __future__ import annotations

from dataclasses import dataclass

from rose_hpc.errors import UsageError

#: doubled waits between tries grow no longer than this
_MOST_BACKOFF_S = 300.0


def again_s(failures: int, retries: int, backoff_s: float) -> float | None:
    """The seconds to wait before the next try, after so many failures; None: there is none."""
    if failures > retries:
        return None
    return float(min(backoff_s * 2 ** min(failures - 1, 30), max(_MOST_BACKOFF_S, backoff_s)))


@dataclass(frozen=True)
class Patience:
    """With how little a merge goes on, and what becomes of those it goes on without; see ``[merge]``.

    Attributes:
        min_environments: how many are enough; None: all.
        deadline_s: seconds after which the others are waited for no longer; None: until they have ended or failed.
        max_policy_lag: how many iterations late a shard may be taken.
        max_misses: iterations in a row that an environment may be missing for having failed, before the run stops.
    """

    min_environments: int | None = None
    deadline_s: float | None = None
    max_policy_lag: int = 0
    max_misses: int = 3

    def check(self, environments: int) -> None:
        """Refuse what makes no sense for so many environments.

        Raises:
            UsageError: it names the key.
        """
        enough = self.min_environments
        if enough is not None and enough > environments:
            raise UsageError(f"min_environments is {enough}, and there are {environments}", hint="ask for fewer")
        if self.deadline_s is not None and enough is None:
            raise UsageError("deadline_s needs min_environments", hint="say how many environments are enough by then")
        if self.max_policy_lag and self.deadline_s is None:
            raise UsageError("max_policy_lag needs deadline_s", hint="without a deadline no environment is late")
