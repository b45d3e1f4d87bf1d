"""Checks of a machine before a run is trusted to it, each ok, warning or fault, with what to do."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rose_hpc.slurm.commands import Answer, available, call, clean_environment

Level = Literal["ok", "warning", "fault"]

#: versions of Slurm that the options used here were tried with, or read in the release notes of
_OLDEST, _NEWEST = (20, 11), (25, 11)
#: file systems that other nodes see, as /proc/mounts calls them
_SHARED = (
    "nfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "wekafs",
    "pvfs2",
    "orangefs",
    "panfs",
    "afs",
    "glusterfs",
    "9p",
    "daos",
)
_LOCAL = ("ext", "xfs", "btrfs", "zfs", "tmpfs", "overlay")
_COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun")


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, what was found, and what to do about it ("" where all is well)."""

    level: Level
    name: str
    found: str
    advice: str = ""


def examine(runs: Path) -> Iterator[Check]:
    """Everything that can be seen from this machine without a job.

    Args:
        runs: the folder that runs are made in.
    """
    yield from _python()
    yield _file_system(runs)
    yield _locking(runs)
    yield _variables(os.environ)
    missing = [name for name in _COMMANDS if not available(name)]
    if missing:
        yield Check(
            "warning",
            "slurm",
            f"not here: {', '.join(missing)} not found",
            "`rose-hpc run` works without it; to submit, go to a login node of the cluster",
        )
        return
    yield from _slurm()


def _slurm() -> Iterator[Check]:
    yield check_version(call(("sinfo", "--version")))
    ping = call(("scontrol", "ping"))
    if not ping.ok or "UP" not in ping.stdout:
        advice = "wait, or ask the site; `status`, `watch` and `logs` go on from files meanwhile"
        yield Check("fault", "controller", f"does not answer: {' '.join(ping.words.split())}", advice)
        return
    yield Check("ok", "controller", " ".join(ping.stdout.split()))
    yield from check_partitions(call(("sinfo", "--noheader", "--format=%P|%a|%l|%D|%c|%m|%G")))
    yield check_accounting(call(("sacct", "-X", "--noheader", "--format=JobID")) if available("sacct") else None)
    yield from check_settings(call(("scontrol", "show", "config")))


def check_version(answer: Answer) -> Check:
    """Of Slurm."""
    match = re.search(r"(\d+)\.(\d+)[.\d]*", answer.stdout)
    if match is None:
        return Check("warning", "version", f"Slurm does not tell its version: {answer.words}")
    version = int(match[1]), int(match[2])
    if not _OLDEST <= version <= _NEWEST:
        return Check(
            "warning", "version", f"Slurm {match[0]}", "this was made for 20.11 to 25.11; try a small run first"
        )
    return Check("ok", "version", f"Slurm {match[0]}")


def check_partitions(answer: Answer) -> Iterator[Check]:
    """One line each, with its limits."""
    rows = [line.split("|") for line in answer.stdout.splitlines()]
    partitions: dict[str, list[list[str]]] = {}
    for row in rows:
        if len(row) == 7:
            partitions.setdefault(row[0], []).append(row)
    if not partitions:
        yield Check("fault", "partitions", f"none: {answer.words}", "ask the site which ones you may use")
    for name, kinds in partitions.items():
        up = any(row[1] == "up" for row in kinds)
        nodes = ", ".join(
            f"{row[3]} nodes of {row[4]} cores and {row[5]} MB" + (f" and {row[6]}" if row[6] != "(null)" else "")
            for row in kinds
        )
        default = " (the default)" if name.endswith("*") else ""
        found = f"{name.rstrip('*')}{default}: {kinds[0][1]}, at most {kinds[0][2]}, {nodes}"
        yield Check("ok" if up else "warning", "partition", found, "" if up else "its jobs will wait until it is up")


def check_accounting(answer: Answer | None) -> Check:
    """Whether sacct knows of ended jobs; nothing here depends on it."""
    if answer is not None and answer.ok:
        return Check("ok", "accounting", "sacct answers")
    why = "there is no sacct" if answer is None else answer.words
    return Check("ok", "accounting", f"{why}; runs keep their own records of how they ended")


def check_settings(answer: Answer) -> Iterator[Check]:
    """Requeue and signals."""
    settings = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", answer.stdout, re.MULTILINE))
    if settings.get("JobRequeue") == "1":
        yield Check("ok", "requeue", "allowed; [slurm] chain is still the quicker way to go on")
    else:
        yield Check("warning", "requeue", "not the site's default", "use [slurm] chain to go on after the walltime")
    wait = re.match(r"\d+", settings.get("KillWait", ""))
    if wait and int(wait[0]) < 10:
        advice = "what is running then is done again"
        yield Check("warning", "signals", f"{settings['KillWait']} between TERM and KILL: a driver needs 5 s", advice)
    else:
        yield Check("ok", "signals", f"{settings.get('KillWait', 'not known how long')} between TERM and KILL")


# -- this machine ------------------------------------------------------------------------------------------------------


def _python() -> Iterator[Check]:
    yield Check("ok", "python", f"{sys.version.split()[0]}, {sys.executable}")
    code = "import json; from rose_hpc.slurm.probe import libraries; print(json.dumps(libraries()))"
    try:  # in a process of its own, for a broken h5py may do anything
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        facts = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        yield Check("fault", "packages", "cannot be looked at", "install rose_hpc again: pip install rose-hpc")
        return
    yield from check_libraries(facts)


def check_libraries(facts: Mapping[str, Any]) -> Iterator[Check]:
    """h5py, radical.pilot and their versions."""
    if facts["hdf5"] is None:
        advice = "pip install h5py, in the environment that jobs use"
        yield Check("fault", "h5py", f"cannot be imported: {facts['h5py_error']}", advice)
    else:
        mpi = "with MPI" if facts["h5py_mpi"] else "without MPI, which merging does not need"
        yield Check("ok", "h5py", f"{facts['h5py']} on HDF5 {facts['hdf5']}, {mpi}")
    if facts["radical.pilot"] is None:
        advice = "pip install radical.pilot, or use --engine embedded on one node"
        yield Check("fault", "radical.pilot", "is not installed", advice)
    else:
        yield Check("ok", "radical.pilot", str(facts["radical.pilot"]))


def _file_system(runs: Path) -> Check:
    kind = file_system_of(runs, Path("/proc/mounts").read_text(errors="replace"))
    where = f"{runs.absolute()} is on {kind or 'an unknown file system'}"
    if kind.startswith(_SHARED):
        return Check("ok", "runs", where)
    if kind.startswith(_LOCAL):
        advice = "if other nodes do not see it, give --run-dir, or set ROSE_HPC_RUNS, to a folder that all nodes share"
        return Check("warning", "runs", f"{where}, which may be this machine's own", advice)
    return Check("warning", "runs", where, "make sure that all nodes see it: `rose-hpc doctor --nodes 2`")


def file_system_of(path: Path, mounts: str) -> str:
    """The type of the file system ``path`` is on, by the longest mount point above it; "" if none is known."""
    best, kind = "", ""
    real = f"{os.path.realpath(path)}/"
    for line in mounts.splitlines():
        _, point, of, *_ = (*line.split(), "", "", "")
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), point)
        if real.startswith(point.rstrip("/") + "/") and len(point) >= len(best):
            best, kind = point, of
    return kind


def _locking(runs: Path) -> Check:
    folder = next((p for p in (runs, *runs.absolute().parents) if p.is_dir()), Path())
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as held, open(held.name, "rb") as second:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return Check("ok", "locks", f"flock works in {folder.absolute()}")
    except OSError as error:
        advice = "make runs on a file system that you can write to, and that can lock"
        return Check("fault", "locks", f"in {folder.absolute()}: {error.strerror}", advice)
    return Check("warning", "locks", "flock has no effect there", "never start two drivers of a run within a minute")


def _variables(environ: Mapping[str, str]) -> Check:
    ignored = sorted(set(environ) - set(clean_environment(environ)))
    if ignored:
        return Check("ok", "variables", f"ignored by our calls of Slurm: {', '.join(ignored)}")
    return Check("ok", "variables", "none that would change what Slurm's commands do")


# -- the nodes ---------------------------------------------------------------------------------------------------------


def examine_nodes(srun: Sequence[str], nodes: int, runs: Path, wait_s: float) -> Iterator[Check]:
    """What ``nodes`` nodes see, by a small step of one rank each.

    Args:
        srun: options of srun for partition, account and the like.
        nodes: how many.
        runs: the folder that runs are made in; it is made if it is not there.
        wait_s: how long the nodes may be waited for.
    """
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=runs) as folder, open(Path(folder, "lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        argv = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--time=00:02:00", *srun]
        answer = call([*argv, sys.executable, "-P", "-m", "rose_hpc.slurm.probe", str(Path(folder).absolute())], wait_s)
    facts = []
    for line in answer.stdout.splitlines():
        try:
            facts.append(json.loads(line))
        except ValueError:  # a message of the site's prologue
            continue
    if not answer.ok or len(facts) != nodes:
        advice = "name --partition and --account as [slurm] does; jobs that wait longer than --wait are given up"
        yield Check("fault", "nodes", f"{len(facts)} of {nodes} answered: {answer.words}", advice)
        return
    yield Check("ok", "nodes", ", ".join(sorted(fact["host"] for fact in facts)))
    yield from check_nodes(facts)


def check_nodes(facts: Sequence[Mapping[str, Any]]) -> Iterator[Check]:
    """Whether the nodes are alike, and see what they must."""
    for key in ("python", "interpreter", "rose-hpc", "radical.pilot", "h5py", "hdf5"):
        values = {str(fact[key]): str(fact["host"]) for fact in facts}
        if len(values) > 1:
            told = ", ".join(f"{value} on {host}" for value, host in sorted(values.items()))
            yield Check("fault", key, f"differs: {told}", "use one environment that all nodes share: [slurm] venv")
    blind = [str(fact["host"]) for fact in facts if not fact["shared"]]
    if blind:
        advice = "make runs where all nodes see them: --run-dir, or ROSE_HPC_RUNS"
        yield Check("fault", "shared runs", f"not seen by {', '.join(blind)}", advice)
    else:
        yield Check("ok", "shared runs", "all nodes see the folder of runs")
        yield _check_locks(facts)
    gpus = sorted({str(fact["gpus"]) for fact in facts if fact["gpus"]})
    yield Check("ok", "gpus", f"a rank sees {' or '.join(gpus)}" if gpus else "a rank of this test sees none")
    yield Check("ok", "scratch", f"node-local files go to {', '.join(sorted({str(f['scratch']) for f in facts}))}")


def _check_locks(facts: Sequence[Mapping[str, Any]]) -> Check:
    if all(fact["lock"] == "refused" for fact in facts):
        return Check("ok", "locks across nodes", "a lock taken here is seen there")
    told = ", ".join(f"{fact['lock']} on {fact['host']}" for fact in facts if fact["lock"] != "refused")
    return Check(
        "warning",
        "locks across nodes",
        f"a lock taken here is not seen there ({told})",
        "drivers then know of each other by heartbeat: never start two of a run within a minute",
    )
