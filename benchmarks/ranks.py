"""A thousand ranks on a real Slurm of this machine: examples/plain with as many environments, until it converges.

python benchmarks/ranks.py [--nodes 64] [--ranks 1024] [--functions] [--keep DIR]

Needs root and the Debian packages of Slurm; one job, a slurmd for each pretended node, an environment in plain Python
for each rank, all of them at once. While it runs, /proc is looked at twice a second.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import slurm_cluster  # noqa: E402 - from a folder that is not installed

PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20
TICKS = os.sysconf("SC_CLK_TCK")
#: Slurm's commands that ask or order anything
ASKED = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo", "sacct")
CONFIG = """
name = "ranks"
seed = 0
[environments]
{work}
timeout_s = 600
[environments.grid]
copy = {copies}
[update]
command = "{{python}} update.py"
[check]
command = "{{python}} check.py"
metric = "MEAN_RETURN"
threshold = {threshold}
[loop]
max_iterations = 12
"""
COUNTED = """#!/bin/sh
echo {name} >> {log}
exec {command} "$@"
"""


@dataclass
class Seen:
    """What /proc told of a kind of processes.

    Attributes:
        most: how many there were at once.
        resident: the largest resident set of one, MB.
        own: of that, what it shares with nobody, MB.
        cpu: seconds of the process that took most.
    """

    most: int = 0
    resident: float = 0.0
    own: float = 0.0
    cpu: float = 0.0


@dataclass
class Watch:
    """Looks at the processes of a run's job, which have ``variable`` in their environment."""

    variable: bytes
    seen: dict[str, Seen] = field(default_factory=lambda: defaultdict(Seen))
    memory_gb: float = 0.0

    def look(self) -> None:
        """Once."""
        now: dict[str, int] = defaultdict(int)
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                kind = kind_of((entry / "cmdline").read_bytes())
                if not kind or self.variable not in (entry / "environ").read_bytes():
                    continue
                resident, shared = map(int, (entry / "statm").read_text().split()[1:3])
                ticks = sum(map(int, (entry / "stat").read_text().rsplit(")", 1)[1].split()[11:13]))
            except (OSError, ValueError):
                continue
            now[kind] += 1
            seen = self.seen[kind]
            seen.resident, seen.own = max(
                (seen.resident, seen.own), (resident * PAGE_MB, (resident - shared) * PAGE_MB)
            )
            seen.cpu = max(seen.cpu, ticks / TICKS)
        for kind, count in now.items():
            self.seen[kind].most = max(self.seen[kind].most, count)
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        used = int(lines["MemTotal"].split()[0]) - int(lines["MemAvailable"].split()[0])
        self.memory_gb = max(self.memory_gb, used / 2**20)


def kind_of(command_line: bytes) -> str:
    """Of a process of ours; nothing for others."""
    words = command_line.decode(errors="replace").split("\0")
    line = " ".join(words)
    if "environment.py" in words:
        return "rank (command)"
    if "rose_hpc.execution.host" in line:
        return "service host" if "--service" in words else "rank (resident process)"
    if "rose_hpc.execution.supervisor" in line:
        return "supervisor"
    return "driver" if "-m rose_hpc run" in line else ""


def project(folder: Path, ranks: int, threshold: float, *, functions: bool) -> None:
    """examples/plain, with as many environments."""
    shutil.copytree(ROOT / "examples" / "plain", folder, dirs_exist_ok=True)
    python = os.path.realpath(sys.executable)  # no shim, and no site-packages: it is started very often
    work = (
        'function = "environment:play_copy"\nshard = true' if functions else f'command = "{python} -S environment.py"'
    )
    if functions:
        with open(folder / "environment.py", "a") as file:
            file.write("\n\ndef play_copy(copy):\n    play()\n")
    text = CONFIG.format(work=work, copies=list(range(ranks)), threshold=threshold)
    (folder / "config.toml").write_text(text)


def counted(folder: Path, cluster: slurm_cluster.SlurmCluster) -> Path:
    """Slurm's commands, each call of which leaves a line."""
    commands = folder / "commands"
    commands.mkdir()
    for name in ASKED:
        if found := shutil.which(name, path=cluster.env["PATH"]):
            text = COUNTED.format(name=name, log=shlex.quote(str(folder / "asked")), command=shlex.quote(found))
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
    return commands


def run(options: argparse.Namespace, folder: Path) -> None:
    """Submit, watch, and print what it took."""
    each = options.ranks // options.nodes
    project(folder, options.ranks, options.threshold, functions=options.functions)
    with slurm_cluster.running(nodes=options.nodes, cpus=each, memory=100 * each + 2000) as cluster:
        watch = Watch(f"SLURM_CONF={cluster.conf}".encode())
        path = f"{counted(folder, cluster)}:{Path(sys.executable).parent}"
        job = f"""#!/bin/bash
export PATH={shlex.quote(path)}:$PATH
exec {shlex.quote(sys.executable)} -m rose_hpc run config.toml --engine pilot --run-dir run
"""
        (folder / "job.sh").write_text(job)
        layout = [f"--nodes={options.nodes}", f"--ntasks-per-node={each}", "--time=50", "--exclusive"]
        told = cluster.call(
            "sbatch", "--parsable", f"--chdir={folder}", *layout, "--output=job.out", str(folder / "job.sh")
        )
        if told.returncode:
            raise SystemExit(told.stderr)
        began, end = time.monotonic(), time.monotonic() + options.patience
        while cluster.jobs() and time.monotonic() < end:
            for _ in range(6):
                watch.look()
                time.sleep(0.5)
        seconds = time.monotonic() - began
        if cluster.jobs():
            cluster.cancel_all()
            print(f"not done after {options.patience} s")
    tell(folder, options, watch, seconds)


def tell(folder: Path, options: argparse.Namespace, watch: Watch, seconds: float) -> None:
    """Print the figures."""
    said = (folder / "job.out").read_text()
    print(said[-3000:])
    records = [json.loads(line) for line in (folder / "run/journal.jsonl").read_text().splitlines()]
    ranks = [record for record in records if record["kind"] == "rank"]
    closed = [record for record in records if record["kind"] == "checkpoint"]
    iterations = len(closed)
    spans = [b["time"] - a["time"] for a, b in itertools.pairwise(closed)]
    per: dict[str, Any] = {
        "ranks, nodes they ran on": f"{options.ranks}, {len({record['node'] for record in ranks})}",
        "iterations, and how it ended": f"{iterations}, {records[-1].get('state') or records[-1]['kind']}",
        "the whole job": f"{seconds:.0f} s",
        "an iteration (median, the first not counted)": f"{statistics.median(spans):.1f} s" if spans else "-",
        "memory of the machine in use, at most": f"{watch.memory_gb:.1f} GB",
        "journal": f"{(folder / 'run/journal.jsonl').stat().st_size / max(1, len(ranks)):.0f} B a rank and iteration",
        "files of the run directory, at its end": sum(len(names) for _, _, names in os.walk(folder / "run")),
        "Slurm's commands, by our driver and pilot": asked(folder),
    }
    if "driver" in watch.seen:
        cost = watch.seen["driver"].cpu / max(1, len(ranks)) * 1e6
        per["driver's CPU, its start included"] = (
            f"{watch.seen['driver'].cpu:.1f} s; {cost:.0f} us a rank and iteration"
        )
    for what, value in per.items():
        print(f"  {what:<48}{value}")
    for kind, seen in sorted(watch.seen.items()):
        print(f"  {kind:<26}{seen.most:6d} at once   {seen.resident:6.1f} MB resident, {seen.own:5.1f} MB of its own")


def asked(folder: Path) -> str:
    """How often which was called."""
    lines = (folder / "asked").read_text().split() if (folder / "asked").exists() else []
    return ", ".join(f"{name} {lines.count(name)}" for name in sorted(set(lines))) or "none"


def main() -> None:
    """One run, its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--ranks", type=int, default=1024, help="in all; as many on each node")
    parser.add_argument("--functions", action="store_true", help="in resident processes instead of one each")
    parser.add_argument("--threshold", type=float, default=475.0)
    parser.add_argument("--patience", type=int, default=1500, help="seconds")
    parser.add_argument("--keep", type=Path, help="an empty folder for the run, which stays")
    options = parser.parse_args()
    if reason := slurm_cluster.missing():
        print(f"benchmarks/ranks.py: skipped: {reason}")
        return
    if options.keep:
        options.keep.mkdir(parents=True)
        run(options, options.keep.absolute())
        return
    with tempfile.TemporaryDirectory() as name:
        run(options, Path(name))


if __name__ == "__main__":
    main()
