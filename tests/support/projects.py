"""Small projects for tests: scripts on the standard library and our own writers, and the commands that run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENVIRONMENT = """
    import sys
    import numpy as np
    import rose_hpc

    task = rose_hpc.current_task()
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with task.shard() as shard:
        for _ in range(rows):
            observation = task.rng.standard_normal(3).astype(np.float32)
            shard.append(
                observation=observation, action=int(task.rng.integers(4)), reward=1.0,
                next_observation=observation + 1, terminated=False, truncated=False,
            )
    print("wrote", rows, "rows as", task.environment)
"""
UPDATE = """
    import numpy as np
    import rose_hpc

    task = rose_hpc.current_task()
    file = task.policy / "weights.npz"
    before = np.load(file)["sum"] if file.exists() else np.zeros(3)
    bank = task.bank()
    batch = bank.sample(8, rng=task.rng)
    np.savez(file, sum=before + np.asarray(bank["observations"]).sum(axis=0) + batch["observations"].sum(axis=0))
    count = task.state / "count"
    count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
"""
CHECK = """
    import rose_hpc

    task = rose_hpc.current_task()
    print("checking")
    print(10 * int((task.state / "count").read_text()))
"""
CONFIG = """
    name = "toy"
    seed = 7
    [environments]
    command = "{python} environment.py {rows}"
    timeout_s = 60
    [environments.grid]
    rows = [10, 20, 30]
    [update]
    command = "{python} update.py"
    timeout_s = 60
    [check]
    command = "{python} check.py"
    threshold = 25
    timeout_s = 60
    [loop]
    max_iterations = 10
"""


def write_project(folder: Path, **files: str) -> Path:
    """Write the toy project, with some files (``environment``, ``update``, ``check``, ``config``) replaced."""
    texts = {"environment": ENVIRONMENT, "update": UPDATE, "check": CHECK, "config": CONFIG, **files}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        suffix = ".toml" if name == "config" else ".py"
        (folder / f"{name}{suffix}").write_text(textwrap.dedent(text))
    return folder / "config.toml"


def rose_hpc(
    *arguments: object, cwd: Path | None = None, timeout: float = 90, **env: str
) -> subprocess.CompletedProcess[str]:
    """The command line as a user calls it."""
    return subprocess.run(
        [sys.executable, "-m", "rose_hpc", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def records(run: Path, kind: str | None = None, **wanted: Any) -> list[dict[str, Any]]:
    """The journal's records of a kind, read as anybody would."""
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [r for r in lines if kind in (None, r["kind"]) and all(r.get(k) == v for k, v in wanted.items())]


def essence(run: Path) -> dict[str, Any]:
    """What must be equal between an undisturbed run and a resumed one: bank and policy digests, rewards, rows."""
    last: dict[tuple[int, str], Any] = {}
    for r in records(run, "stage"):
        if r["stage"] in ("merge", "update", "check"):
            kept = (r.get("digest"), r.get("rows"), (r.get("policy") or {}).get("digest"), r.get("reward"))
            last[r["iteration"], r["stage"]] = kept
    return {f"{iteration}:{stage}": kept for (iteration, stage), kept in sorted(last.items())}


def processes_of(path: Path) -> list[int]:
    """Processes whose environment, command line or working folder names ``path``; zombies do not count."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            text += str((entry / "cwd").readlink()).encode() + b"/"
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if str(path).encode() in text and state != "Z" and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


#: scripts without numpy, which are quick to start; the check prints its iteration + 1
LIGHT = {
    "environment": "import os; print('collected', os.environ['ROSE_HPC_ITERATION'])",
    "update": """
        import os, pathlib
        file = pathlib.Path(os.environ["ROSE_HPC_STATE"], "trace")
        before = file.read_text() if file.exists() else ""
        file.write_text(before + os.environ["ROSE_HPC_SEED"] + " ")
        pathlib.Path(os.environ["ROSE_HPC_POLICY"], "weights").write_text(os.environ["ROSE_HPC_ITERATION"])
    """,
    "check": "import os; print(int(os.environ['ROSE_HPC_ITERATION']) + 1)",
    "config": """
        name = "light"
        seed = 1
        [environments]
        command = "{python} -S environment.py"
        shard = false
        [update]
        command = "{python} -S update.py"
        [check]
        command = "{python} -S check.py"
        threshold = 1.5
        [loop]
        max_iterations = 9
    """,
}


class Driver(subprocess.Popen[str]):
    """A driver under way, which a test that ends does not leave behind."""

    def __exit__(self, *error: Any) -> None:
        if self.poll() is None:
            self.kill()
        super().__exit__(*error)


def start(*arguments: object, cwd: Path, program: str | None = None, **env: str) -> Driver:
    """The command line (or a Python ``program``) in a process group of its own, as a terminal's job is."""
    return Driver(
        [sys.executable, *([program] if program else ["-m", "rose_hpc"]), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true answer of ``what``; an error when there is none in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            answer = what()
        except (OSError, ValueError):  # not there yet, or half written
            answer = None
        if answer:
            return answer
        time.sleep(0.01)
    raise TimeoutError(f"nothing came of {what} in {seconds} s")


def run_program(program: Path, *arguments: object, timeout: float = 90, **env: str) -> subprocess.CompletedProcess[str]:
    """A Python program run by its user, in its own folder."""
    return subprocess.run(
        [sys.executable, program.name, *map(str, arguments)],
        cwd=program.parent,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
