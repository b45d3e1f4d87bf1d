"""Walltime: margins before the end, what is not begun any more, and clocks that are set."""

from __future__ import annotations

import math

import pytest

from rose_hpc.errors import UsageError
from rose_hpc.slurm.allocation import driver_end
from rose_hpc.walltime import HAND_OVER_S, SEAL_S, Walltime


class Clock:
    """A wall clock and a monotonic one, which may part."""

    def __init__(self) -> None:
        self.wall, self.steady = 1e9, 50.0

    def walltime(self, left_s: float | None) -> Walltime:
        end = None if left_s is None else self.wall + left_s
        return Walltime(end, clock=lambda: self.wall, monotonic=lambda: self.steady)

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


def test_tasks_are_told_an_earlier_end_than_the_hand_over():
    """Before the end there is time to hand over, and before that, time to seal what ended by itself."""
    clock = Clock()
    walltime = clock.walltime(3600)
    assert walltime.deadline == clock.wall + 3600 - HAND_OVER_S - SEAL_S
    assert walltime.left_s == 3600 - HAND_OVER_S
    clock.passes(600)
    assert walltime.left_s == 3000 - HAND_OVER_S


def test_a_short_job_keeps_most_of_its_time():
    """The margins take a fifth of it at most, and an end that has passed leaves nothing."""
    clock = Clock()
    walltime = clock.walltime(10)
    assert walltime.deadline is not None
    assert walltime.deadline - clock.wall == pytest.approx(8)
    assert walltime.left_s > 8
    assert clock.walltime(-5).left_s == 0


def test_no_end_refuses_nothing():
    """Without an end everything is begun, however long it takes; until somebody says that nothing shall be."""
    walltime = Clock().walltime(None)
    walltime.worked = True
    assert (walltime.deadline, walltime.left_s, walltime.refusal("it", 1e9)) == (None, math.inf, "")
    walltime.told = "told"
    assert walltime.refusal("it", None) == "told"


def test_what_cannot_end_is_not_begun():
    """What takes longer than there is time left is refused with the figures; what fits, or nobody knows, is begun."""
    clock = Clock()
    walltime = clock.walltime(1000)
    walltime.worked = True
    clock.passes(900)
    assert walltime.refusal("the merge", 85 - 0.1) == ""
    assert walltime.refusal("the merge", None) == ""
    assert walltime.refusal("the merge", 86) == (
        "the walltime is nearly over: the merge takes about 86 s, and 85 s are left"
    )
    clock.passes(90)
    assert walltime.refusal("the merge", None) == "the walltime is nearly over: there is no time left for the merge"


def test_the_first_work_of_a_job_is_always_begun():
    """Nobody later would have more time: a job that has done nothing yet begins whatever comes."""
    walltime = Clock().walltime(100)
    assert walltime.refusal("it", 1e6) == ""
    walltime.worked = True
    assert walltime.refusal("it", 1e6) != ""


def test_a_clock_that_is_set_moves_nothing():
    """An hour forward or back on the wall clock leaves the time that is left as it was."""
    clock = Clock()
    walltime = clock.walltime(1000)
    for step in (3600, -7200):
        clock.wall += step
        assert walltime.left_s == 1000 - HAND_OVER_S


def test_an_end_that_moves():
    """A walltime that was changed counts from now on."""
    clock = Clock()
    walltime = clock.walltime(1000)
    walltime.ends(clock.wall + 200)
    assert walltime.left_s == 200 - HAND_OVER_S


def test_the_earliest_end_counts():
    """Engine, job, and what a batch system other than Slurm, or a surrounding task, tells in ROSE_HPC_DEADLINE."""
    assert driver_end(None, {}) is None
    assert driver_end(5.0, {"ROSE_HPC_DEADLINE": "7"}) == 5.0
    assert driver_end(None, {"ROSE_HPC_DEADLINE": "7"}) == 7.0
    assert driver_end(None, {"SLURM_JOB_END_TIME": "9", "ROSE_HPC_DEADLINE": "12"}) == 9.0
    with pytest.raises(UsageError, match="ROSE_HPC_DEADLINE is 'soon'"):
        driver_end(None, {"ROSE_HPC_DEADLINE": "soon"})
