"""How many cores there are for us."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores that this process may use (its affinity, which Slurm and containers set)."""
    return len(os.sched_getaffinity(0))
