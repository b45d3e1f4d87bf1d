"""A real Slurm of several nodes on this machine, in a scratch folder of its own: for tests, and from the shell.

python tests/support/slurm_cluster.py --nodes 4 -- bash

Every daemon is a child of ours in the foreground, with ports, a munge key and a socket of its own, so several
clusters run side by side, and one is taken down by its own process ids. It needs root and the Debian packages
``slurmctld slurmd slurm-client munge``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "setpriv")
START_S = 60.0
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
#: the first node is n8: a job's nodes are `n[8-10]`, whose names have no zeros in front
FIRST = 8
#: a node's `RealMemory` in MB; jobs that ask for none share it
MEMORY_MB = 4000

_CONF = """\
ClusterName=rosehpc
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=5
EnforcePartLimits=ALL
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=5
MessageTimeout=4
MinJobAge=300
SlurmdTimeout=60
MaxNodeCount=1100
{extra}
NodeName={names} NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} RealMemory={memory}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 State=UP
PartitionName=short Nodes={first_node} MaxTime=2 State=UP
PartitionName=closed Nodes=ALL State=DOWN
PartitionName=paid Nodes=ALL AllowAccounts=physics State=UP
"""


def missing() -> str:
    """Why no cluster can be started here; empty when one can."""
    absent = [name for name in DAEMONS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"Slurm is not installed here ({', '.join(absent)} not found)"
    return "" if os.geteuid() == 0 else "a Slurm of one's own needs root"


@dataclass
class SlurmCluster:
    """One cluster: :meth:`start` brings it up, :meth:`stop` takes it down, :attr:`env` lets commands find it.

    Attributes:
        nodes, cpus: how many nodes, and cores of each (pretended ones).
        extra: further lines of slurm.conf.
    """

    nodes: int = 4
    cpus: int = 2
    memory: int = MEMORY_MB
    extra: str = ""
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp")))
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """The environment in which Slurm's commands mean this cluster."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SQUEUE"))}
        return {**inherited, "SLURM_CONF": str(self.conf), "PATH": _PATH}

    def start(self) -> None:
        """Bring munged, slurmctld and every slurmd up, and wait until all nodes are idle."""
        self.folder.chmod(0o755)
        for name in ("munge", "state"):
            (self.folder / name).mkdir(exist_ok=True)
        key = self.folder / "munge/key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        first = _free_ports(self.nodes + 1)
        self.conf.write_text(
            _CONF.format(
                host=socket.gethostname().split(".")[0],
                folder=self.folder,
                port=first,
                first=first + 1,
                last=first + self.nodes,
                names=f"n[{FIRST}-{FIRST + self.nodes - 1}]",
                first_node=f"n{FIRST}",
                cpus=self.cpus,
                memory=self.memory,
                extra=self.extra,
            )
        )
        try:
            self.start_munged()
            self.start_controller()
            for number in range(FIRST, FIRST + self.nodes):
                self.start_node(f"n{number}")
            self.wait_for(lambda: self.node_states().count("idle") == self.nodes, "all nodes idle")
        except BaseException:
            self.stop()
            raise

    def start_munged(self) -> None:
        folder = self.folder / "munge"
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        files = [f"--{option}={folder / name}" for option, name in names.items()]
        self._spawn("munged", "munged", "--foreground", "--force", *files)
        self.wait_for((folder / "socket").exists, "munged's socket")

    def start_controller(self) -> None:
        """Start slurmctld (again), and wait until it answers."""
        self._spawn("slurmctld", "slurmctld", "-D")
        self.wait_for(lambda: self.call("scontrol", "ping").returncode == 0, "slurmctld's answer")

    def stop_controller(self) -> None:
        """End slurmctld as its administrator would; jobs go on."""
        self._end("slurmctld")

    def start_node(self, name: str) -> None:
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        self._spawn(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """A node failure: its slurmd, and every process of a job on it, at once."""
        self.daemons.pop(name).kill()
        for pid in self.processes(f"SLURMD_NODENAME={name}"):
            _kill(pid)

    def lose_node(self, name: str) -> None:
        """The same, but nobody on it can tell the controller how anything ended: slurmd and its stepds go first."""
        jobs = self.processes(f"SLURMD_NODENAME={name}")
        stepds = {parent for parent in map(_parent, jobs) if parent and b"slurmstepd" in _command_line(parent)}
        daemon = self.daemons.pop(name)
        gone = {daemon.pid, *stepds, *jobs, *_descendants(stepds)}  # also those that hide their environment
        for number in (signal.SIGSTOP, signal.SIGKILL):  # none must see another die
            for pid in gone:
                _kill(pid, number)
        daemon.wait()

    def call(self, *argv: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """One of Slurm's commands, on this cluster."""
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=timeout, check=False)

    def node_states(self) -> list[str]:
        return self.call("sinfo", "-h", "-N", "-p", "main", "-o", "%t").stdout.split()

    def jobs(self) -> list[str]:
        """Ids of the jobs that are queued, running or completing."""
        return self.call("squeue", "-h", "-o", "%A").stdout.split()

    def cancel_all(self, seconds: float = 30) -> None:
        """Cancel every job, and wait until they are gone."""
        self.call("scancel", "--user=root")
        self.wait_for(lambda: not self.jobs(), "an empty queue", seconds)

    def processes(self, variable: str = "") -> list[int]:
        """Processes of jobs on this cluster (by SLURM_CONF in their environment), but for our own daemons."""
        ours = {daemon.pid for daemon in self.daemons.values()} | {os.getpid()}
        wanted = {f"SLURM_CONF={self.conf}".encode(), *([variable.encode()] if variable else [])}
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environ = set((entry / "environ").read_bytes().split(b"\0"))
            except OSError:
                continue
            if wanted <= environ and b"SLURM_JOB_ID" in {word.partition(b"=")[0] for word in environ}:
                found.append(int(entry.name))
        return [pid for pid in found if pid not in ours]

    def wait_for(self, what: Callable[[], Any], name: str, seconds: float = START_S) -> Any:
        """The first true answer of ``what``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if answer := what():
                return answer
            for daemon, process in self.daemons.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{daemon} ended with {process.returncode}: {self.last_words(daemon)}")
            time.sleep(0.1)
        raise TimeoutError(f"waited {seconds:g} s for {name}: {self.last_words('slurmctld')}")

    def last_words(self, daemon: str) -> str:
        output = self.folder / f"{daemon}.out"
        return output.read_text(errors="replace")[-2000:] if output.exists() else ""

    def stop(self) -> None:
        """Take it down: jobs, then daemons, then the folder; idempotent."""
        if {"slurmctld", "munged"} <= self.daemons.keys():
            try:
                self.cancel_all(15)
            except (TimeoutError, RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"slurm_cluster: {error}", file=sys.stderr)
        for name in sorted(self.daemons, key=lambda name: ("slurmctld", "munged").count(name)):
            self._end(name)
        for pid in self.processes():
            _kill(pid)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self, name: str, *argv: str) -> None:
        # setpriv: a cluster must not outlive the tests that started it, however those end
        with open(self.folder / f"{name}.out", "ab") as output:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "--", *argv],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _end(self, name: str) -> None:
        daemon = self.daemons.pop(name)
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _descendants(ancestors: set[int]) -> set[int]:
    parents = {int(entry.name): _parent(int(entry.name)) for entry in Path("/proc").glob("[0-9]*")}
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in ancestors | found} - found:
        found |= more
    return found


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _free_ports(count: int) -> int:
    """The first of ``count`` ports in a row that are free now, below the range of outgoing connections."""
    start = 10000 + os.getpid() * 37 % 18000
    for first in (*range(start, 30000 - count, count), *range(10000, start, count)):
        if all(map(_is_free, range(first, first + count))):
            return first
    raise RuntimeError(f"no {count} free ports in a row")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


@contextmanager
def running(**options: Any) -> Iterator[SlurmCluster]:
    """A cluster that is up, for as long as the block lasts."""
    cluster = SlurmCluster(**options)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run a command in a Slurm of its own.")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--cpus", type=int, default=2, help="cores of a node, pretended")
    parser.add_argument("--memory", type=int, default=MEMORY_MB, help="MB of a node, pretended")
    parser.add_argument("command", nargs="+", help="e.g. -- bash")
    options = parser.parse_args(arguments)
    if why := missing():
        print(f"slurm_cluster: {why}", file=sys.stderr)
        return 2
    with running(nodes=options.nodes, cpus=options.cpus, memory=options.memory) as cluster:
        return subprocess.call(options.command, env=cluster.env)


if __name__ == "__main__":
    sys.exit(main())
