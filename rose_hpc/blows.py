"""What a drill does to a run: everything that happens to one on a cluster, sooner or later."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: in the environment of every process of a drill
VARIABLE = "ROSE_HPC_DRILL"


class Processes:
    """The processes of one driver on this host, found by their environment."""

    def __init__(self, driver: subprocess.Popen[bytes], token: str) -> None:
        self.driver = driver
        self._mark = f"{VARIABLE}={token}".encode()

    def all(self, word: bytes = b"") -> list[int]:
        """Those whose environment or command line has ``word`` in it; zombies do not count."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            except OSError:
                continue
            if self._mark in environment.split(b"\0") and word in environment + command and state != "Z":
                found.append(int(entry.name))
        return [pid for pid in found if pid != os.getpid()]

    def kill(self, word: bytes, number: signal.Signals = signal.SIGKILL, *, only_one: bool = True) -> None:
        """Kill one of them, or all; the driver where there is none."""
        pids = [pid for pid in self.all(word) if pid != self.driver.pid] or [self.driver.pid]
        for pid in pids[:1] if only_one else pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def signal(self, number: signal.Signals) -> None:
        """To the driver."""
        self.driver.send_signal(number)


@dataclass(frozen=True)
class Blow:
    """One thing that happens to a run.

    Attributes:
        name: what, in words.
        stage: during which it happens.
        strike: does it.
        survivable: whether the driver may go on.
    """

    name: str
    stage: str
    strike: Callable[[Processes], None]
    survivable: bool = False


def _kill_steps(processes: Processes) -> None:
    """End the steps of this Slurm job, as a lost node does; where there is no job, the supervisor."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        processes.kill(b"rose_hpc.execution.rank")
        return
    from rose_hpc.slurm.commands import call

    answer = call(("squeue", "--steps", f"--jobs={job}", "--noheader", "--format=%i"))
    steps = [step for step in answer.stdout.split() if step.rpartition(".")[2].isdigit()]
    for step in steps:
        call(("scancel", "--signal=KILL", step))


BLOWS = (
    Blow("an environment's process is killed", "collect", lambda p: p.kill(b"ROSE_HPC_STAGE=collect"), survivable=True),
    Blow("the driver is killed while it collects", "collect", lambda p: p.signal(signal.SIGKILL)),
    Blow("the driver is killed after collecting", "merge", lambda p: p.signal(signal.SIGKILL)),
    Blow("preemption: TERM", "collect", lambda p: p.signal(signal.SIGTERM)),
    Blow("the steps of the job are killed, as with a node", "collect", _kill_steps, survivable=True),
    Blow("walltime: USR2", "update", lambda p: p.signal(signal.SIGUSR2)),
    Blow("the driver is killed in the update", "update", lambda p: p.signal(signal.SIGKILL)),
    Blow("the pilot is killed", "collect", lambda p: p.kill(b"rose_hpc.execution.pilot_host"), survivable=True),
    Blow("everything is killed", "check", lambda p: p.kill(b"", only_one=False)),
)
