"""Programs of several MPI ranks, by Debian's Python: its h5py has MPI, which PyPI's has not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PYTHON = "/usr/bin/python3"
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120.0


def missing() -> str:
    """Why there is no MPI here; empty when there is."""
    probe = "import mpi4py, xxhash, click; from h5py import _debian_h5py_mpi"
    if not shutil.which("mpiexec"):
        return "needs openmpi-bin"
    if not Path(PYTHON).exists() or subprocess.run([PYTHON, "-c", probe], capture_output=True, check=False).returncode:
        return "needs python3-h5py-mpi, python3-mpi4py, python3-xxhash and python3-click of Debian"
    return ""


def environment() -> dict[str, str]:
    """In which Debian's Python finds our sources, and nothing else of ours."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OMPI_", "PMIX_"))}
    env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    env |= {"OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}  # more ranks than cores
    # in a container, ranks may not read each other's memory, and say so on their standard error
    env |= {"OMPI_MCA_btl_vader_single_copy_mechanism": "none", "PMIX_MCA_gds": "hash"}
    return {**env, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}", "PYTHONDONTWRITEBYTECODE": "1"}


def argv(ranks: int, *arguments: str) -> list[str]:
    """The command line of so many ranks; without mpiexec for 0."""
    return [*(["mpiexec", "-n", str(ranks)] if ranks else []), PYTHON, *arguments]


def run(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Debian's Python with these arguments in so many ranks."""
    return subprocess.run(
        argv(ranks, *arguments), env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


class Server:
    """``mpi_server.py``, which answers one request after another."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **request: Any) -> dict[str, Any]:
        """Its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the ranks have ended"
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def serving(ranks: int) -> Iterator[Server]:
    """A server of so many ranks, which have all ended well afterwards."""
    script = Path(__file__).with_name("mpi_server.py")
    with subprocess.Popen(
        argv(ranks, str(script)), env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Server(process)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()
