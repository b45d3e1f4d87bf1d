"""What a driver does when it is told to end: at once (INT, TERM, HUP), or in order (USR2, Slurm's warning).

Handlers set flags and nothing else. Loops find them when the event loop turns: all loops of this process, for a
program may run several learners at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from rose_hpc.errors import Interrupted, RoseHpcError

if TYPE_CHECKING:
    from rose_hpc.loop import Loop
    from rose_hpc.population import Population
    from rose_hpc.rundir import RunDir

#: they end what runs
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Slurm sends it before the walltime: so many seconds (see rose_hpc.slurm.options), or up to a minute earlier
WARNING = signal.SIGUSR2
WARNED_S = 60.0
_TOLD = "told to hand over (SIGUSR2), as Slurm does before the walltime"
_loops: list[Loop | Population] = []
_told: list[signal.Signals] = []  # before there was a loop, as is what follows
_warned: list[int] = []
_asking: set[asyncio.Task[None]] = set()


def before_events() -> None:
    """Handle signals until there are events; asyncio then leaves SIGINT alone, which it would take for its own."""
    for number in ENDING:
        signal.signal(number, _interrupt_now)
    signal.signal(WARNING, _note_warning)


def _interrupt_now(number: int, _frame: object) -> NoReturn:
    raise Interrupted(f"interrupted by {signal.Signals(number).name} before anything was done")


def _note_warning(number: int, _frame: object) -> None:
    _warned.append(number)


def before_the_loop() -> None:
    """Let signals cancel this task until there is a loop: an exception of theirs might be raised where nobody is told.

    If it goes on nevertheless, the loop is interrupted as soon as it is there.
    """
    events, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in one
    _told.clear()

    def interrupt(number: signal.Signals) -> None:
        _told.append(number)
        task.cancel()

    for number in ENDING:
        events.add_signal_handler(number, interrupt, number)


def why_cancelled(run: RunDir) -> str:
    """In words, of a driver that had no loop yet."""
    return _interrupted(_told[0], run) if _told else "cancelled"


def _interrupted(number: signal.Signals, run: RunDir) -> str:
    return f"interrupted by {number.name}; go on with `{run.command('resume')}`"


@contextmanager
def interrupts(loop: Loop | Population) -> Iterator[None]:
    """Let signals interrupt the loop, or hand its run over; asyncflow's own handlers would cancel it without a record.

    A program's own handler for Slurm's warning is left alone.
    """
    first = not _loops
    _loops.append(loop)
    try:
        with suppress(RuntimeError, ValueError):  # not the main thread: its owner manages signals
            if first:
                _install(asyncio.get_running_loop())
        if _told:  # and whatever was cancelled then did not end
            _interrupt_all(_told[0])
        if _warned:
            _hand_over_all()
        yield
    finally:
        _loops.remove(loop)
        if not _loops:
            with suppress(RuntimeError):  # the event loop has ended, and its handlers with it
                _uninstall(asyncio.get_running_loop())


def _install(events: asyncio.AbstractEventLoop) -> None:
    for number in ENDING:
        events.add_signal_handler(number, _interrupt_all, number)
    if signal.getsignal(WARNING) in (signal.SIG_DFL, signal.SIG_IGN, _note_warning):
        events.add_signal_handler(WARNING, _hand_over_all)


def _uninstall(events: asyncio.AbstractEventLoop) -> None:
    for number in ENDING:
        events.remove_signal_handler(number)
    if events.remove_signal_handler(WARNING):
        signal.signal(WARNING, _note_warning)  # one that comes now must not end the process


def _interrupt_all(number: signal.Signals) -> None:
    for loop in list(_loops):
        loop.session.warn(f"{number.name}: ending what runs")
        loop.interrupt(_interrupted(number, loop.session.run))


def _hand_over_all() -> None:
    for loop in list(_loops):
        loop.session.warn("SIGUSR2: nothing more is begun")
        loop.hand_over(_TOLD)
    if "SLURM_JOB_ID" in os.environ:
        task = asyncio.get_running_loop().create_task(_ask_for_the_end())
        _asking.add(task)
        task.add_done_callback(_asking.discard)


async def _ask_for_the_end() -> None:
    """When the job ends may have changed: it is preempted, or its time limit is another."""
    from rose_hpc.slurm.allocation import job_end

    end = None
    with suppress(RoseHpcError, OSError, ValueError):
        end = await asyncio.to_thread(job_end, os.environ, changed=True)
    for loop in list(_loops):
        if end is not None or loop.walltime.deadline is None:
            loop.hand_over(_TOLD, end or time.time() + WARNED_S)
