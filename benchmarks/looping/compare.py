"""Us and each rival in turn: the same trivial rounds on the same machine, and the ratios."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
#: what each rival is installed as, and how its rounds are called here
PACKAGES = {"parsl": "parsl", "ray": "ray", "dask": "dask[distributed]"}
NAMES = {"parsl": "Parsl HTEX", "ray": "Ray actors", "ray-tasks": "Ray tasks", "dask": "Dask distributed"}
CURVE = (5, 16, 64, 256, 1024)
PATIENCE_S = 300


@dataclass(frozen=True)
class Row:
    """A measure beside those it is compared with."""

    what: str
    ours: float
    others: dict[str, float]
    goal: float

    def __str__(self) -> str:
        others = "  ".join(f"{NAMES[name]} {value * 1e3:.1f}" for name, value in self.others.items())
        if not self.others:
            return f"{self.what:<44}{self.ours * 1e3:8.1f} ms   no rival could be measured"
        ratio = self.ours / min(self.others.values())
        verdict = "ok" if ratio <= self.goal else "MISSED"
        return f"{self.what:<44}{self.ours * 1e3:8.1f} ms   {others}   {ratio:.2f}x, goal {self.goal}x   {verdict}"


def rivals_python() -> Path:
    """The interpreter of the rivals' virtual environment, which is made the first time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "rose-hpc" / f"rivals-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin" / "python"
    if not python.exists():
        print("installing Parsl, Ray and Dask into a virtual environment of their own (once; this takes a minute)")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], cwd=HERE, check=True)
    return python


def installed(python: Path) -> list[str]:
    """The rivals that there are; those that cannot be installed are named, and left out."""
    there = []
    for name, package in PACKAGES.items():
        module = {"dask": "distributed"}.get(name, name)
        have = [str(python), "-c", f"import {module}"]
        get = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]
        for command in (have, get, have):
            done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
            if done.returncode == 0 and command is have:
                there.append(name)
                break
        else:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"{NAMES[name]} could not be installed: {reason}")
    return there


def run(python: Path, script: str, *arguments: object) -> dict[str, Any] | None:
    """What a script measured, in a process of its own; None when it failed, which is told in a line."""
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "BENCHMARK_BEGAN": f"{time.time():.3f}", "PATH": path, "PYTHONWARNINGS": "ignore"}
    command = [str(python), str(HERE / script), *map(str, arguments)]
    try:
        done = subprocess.run(
            command, cwd=HERE, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
    except subprocess.TimeoutExpired:
        print(f"{script} {' '.join(map(str, arguments))} did not end in {PATIENCE_S} s")
        return None
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        print(f"{script} {' '.join(map(str, arguments))} failed: {said}")
        return None
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


class Measured:
    """Rounds by who ran them and how many environments they had; starts; and the driver's processor time."""

    def __init__(self) -> None:
        self.rounds: dict[tuple[str, str, int], list[float]] = {}
        self.starts: dict[str, list[float]] = {}
        self.cpu_us: dict[int, float] = {}

    def add(self, who: str, kind: str, result: dict[str, Any] | None) -> None:
        """One more measurement."""
        if result is None:
            return
        for size, seconds in result["seconds"].items():
            self.rounds.setdefault((who, kind, int(size)), []).append(statistics.median(seconds))
        if kind == "functions":
            self.starts.setdefault(who, []).append(result["start"])
            self.cpu_us.update({int(size): value for size, value in result.get("cpu_us", {}).items()})

    def of(self, who: str, kind: str, size: int) -> float | None:
        """The median."""
        known = self.rounds.get((who, kind, size))
        return statistics.median(known) if known else None

    def row(self, what: str, kind: str, size: int, goal: float, rivals: list[str]) -> Row:
        """A line of the table."""
        others = {name: value for name in rivals if (value := self.of(name, kind, size)) is not None}
        return Row(what, self.of("ours", kind, size) or float("nan"), others, goal)


def measure(rivals: list[str], python: Path, *, quick: bool) -> Measured:
    """Everything, ours between each two of the rivals'."""
    measured, ours = Measured(), Path(sys.executable)
    rounds, repeats = (40, 1) if quick else (200, 3)
    for _ in range(repeats):
        for name in rivals:
            measured.add("ours", "functions", run(ours, "ours.py", "functions", rounds, 5, 64))
            measured.add(name, "functions", run(python, "rivals.py", name, "functions", rounds, 5, 64))
        if "ray" in rivals and not quick:
            measured.add("ray-tasks", "functions", run(python, "rivals.py", "ray-tasks", "functions", rounds, 5, 64))
        measured.add("ours", "commands", run(ours, "ours.py", "commands", rounds, 5))
        if "parsl" in rivals:
            measured.add("parsl", "commands", run(python, "rivals.py", "parsl", "commands", rounds // 2, 5))
        measured.add("ours", "shards", run(ours, "ours.py", "shards", rounds // 2, 5))
    if not rivals:
        measured.add("ours", "functions", run(ours, "ours.py", "functions", rounds, 5, 64))
    sizes = [size for size in CURVE if size not in (5, 64) and not (quick and size > 256)]
    measured.add("ours", "functions", run(ours, "ours.py", "functions", 8 * sizes[0], *sizes))
    return measured


def report(measured: Measured) -> None:
    """The table."""
    print("five trivial environments (or 64), update and check; a round, medians; as many workers as cores for all")
    rivals = ["parsl", "ray", "dask"]
    print(measured.row("resident functions, 5 + update + check", "functions", 5, 0.5, rivals))
    print(measured.row("resident commands (/bin/true)", "commands", 5, 0.8, ["parsl"]))
    print(measured.row("64 ranks, one round", "functions", 64, 0.5, ["parsl", "ray"]))
    if (tasks := measured.of("ray-tasks", "functions", 5)) is not None:
        print(f"{'(Ray tasks, 5 + update + check)':<44}{tasks * 1e3:8.1f} ms")
    if (shards := measured.of("ours", "shards", 5)) is not None:
        print(f"{'the same with a shard each, merged':<44}{shards * 1e3:8.1f} ms")
    starts = {name: statistics.median(values) for name, values in measured.starts.items()}
    verdict = "ok" if starts["ours"] <= 1.0 else "MISSED"
    others = "  ".join(f"{NAMES[name]} {value:.1f}" for name, value in starts.items() if name != "ours")
    print(f"{'start to first environment step':<44}{starts['ours']:8.2f} s    {others}   goal 1.0 s   {verdict}")
    print("environments   a round    each    driver's CPU each")
    for size in CURVE:
        if (seconds := measured.of("ours", "functions", size)) is not None:
            cpu = measured.cpu_us.get(size, float("nan"))
            print(f"{size:12d}{seconds * 1e3:8.1f} ms{seconds / size * 1e6:6.0f} us{cpu:14.0f} us")


def draw(measured: Measured, path: Path) -> None:
    """A round of functions over the number of environments: ours as a curve, rivals where they were measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for who, name in {"ours": "rose_hpc, journal on", **NAMES}.items():
        sizes = [size for size in CURVE if measured.of(who, "functions", size) is not None]
        times = [(measured.of(who, "functions", size) or 0.0) * 1e3 for size in sizes]
        if sizes:
            axes.plot(sizes, times, "o-" if who == "ours" else "s:", label=name)
    axes.set(xlabel="environments", ylabel="a round, ms", xscale="log", yscale="log")
    axes.set_title(f"trivial functions, update and check; {len(os.sched_getaffinity(0))} cores")
    axes.legend()
    figure.savefig(path)


def main(*, quick: bool, plot: Path | None = None) -> None:
    """Install the rivals, measure, and print the table."""
    python = rivals_python()
    measured = measure(installed(python), python, quick=quick)
    report(measured)
    if plot:
        draw(measured, plot)
