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

    def kill(self, word: bytes, *, but: bytes = b"\n", only_one: bool = True) -> bool:
        """Kill one of those with ``word`` and without ``but``, or all of them; whether there was one on this host."""
        others = {*self.all(but), self.driver.pid}
        pids = [pid for pid in self.all(word) if pid not in others]
        for pid in pids[:1] if only_one else pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def signal(self, number: signal.Signals) -> bool:
        """To the driver."""
        self.driver.send_signal(number)
        return True


@dataclass(frozen=True)
class Blow:
    """One thing that happens to a run.

    Attributes:
        name: what, in words.
        stage: during which it happens.
        strike: does it; False where there was nothing to strike at on this host.
        survivable: whether the driver may go on.
    """

    name: str
    stage: str
    strike: Callable[[Processes], bool]
    survivable: bool = False


def _kill_rank(processes: Processes) -> bool:
    """An environment's command; where they are functions, all processes in which functions are called."""
    hosts = b"rose_hpc.execution.host"
    return processes.kill(b"ROSE_HPC_STAGE=collect") or processes.kill(hosts, but=b"--service", only_one=False)


def _kill_steps(processes: Processes) -> bool:
    """End the steps of this Slurm job, as a lost node does; where there is no job, the supervisor."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return processes.kill(_SUPERVISOR)
    from rose_hpc.slurm.commands import call

    answer = call(("squeue", "--steps", f"--jobs={job}", "--noheader", "--format=%i"))
    steps = [step for step in answer.stdout.split() if step.rpartition(".")[2].isdigit()]
    for step in steps:
        call(("scancel", "--signal=KILL", step))
    return bool(steps)


def _kill_pilot(processes: Processes) -> bool:
    """End the pilot's own process; where there is none, the supervisor."""
    return processes.kill(b"/pilot_host.py", but=b"/pilot_reaper.py") or processes.kill(_SUPERVISOR)


def _kill_everything(processes: Processes) -> bool:
    processes.kill(b"", only_one=False)
    return processes.signal(signal.SIGKILL)


_SUPERVISOR = b"rose_hpc.execution.rank"

BLOWS = (
    Blow("an environment's process is killed", "collect", _kill_rank, survivable=True),
    Blow("the driver is killed while it collects", "collect", lambda p: p.signal(signal.SIGKILL)),
    Blow("the driver is killed after collecting", "merge", lambda p: p.signal(signal.SIGKILL)),
    Blow("preemption: TERM", "collect", lambda p: p.signal(signal.SIGTERM)),
    Blow("the steps of the job are killed, as with a node", "collect", _kill_steps, survivable=True),
    Blow("walltime: USR2", "update", lambda p: p.signal(signal.SIGUSR2)),
    Blow("the driver is killed in the update", "update", lambda p: p.signal(signal.SIGKILL)),
    Blow("the pilot is killed", "collect", _kill_pilot, survivable=True),
    Blow("everything is killed", "check", _kill_everything),
)
