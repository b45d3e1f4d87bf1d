"""What a node is like, said in one line of JSON: ``python -m rose_hpc.slurm.probe FOLDER``, started by `doctor`.

FOLDER is on the file system that runs lie on; the file ``lock`` in it is locked by who asks.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def probe(folder: Path) -> dict[str, Any]:
    """Facts about this node and this rank; what cannot be found out is None."""
    return {
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "python": sys.version.split()[0],
        "interpreter": sys.executable,
        "time": time.time(),
        "shared": (folder / "lock").is_file(),
        "lock": _lock(folder / "lock"),
        "scratch": tempfile.gettempdir(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("ROCR_VISIBLE_DEVICES"),
        **libraries(),
    }


def libraries() -> dict[str, Any]:
    """Versions of what matters; ``h5py_mpi`` says whether this h5py writes with MPI (it need not)."""
    names = ("rose-hpc", "radical.pilot", "h5py", "numpy")
    facts: dict[str, Any] = {name: _version(name) for name in names}
    try:
        import h5py
    except (ImportError, OSError) as error:  # a wheel for another system fails with OSError
        return {**facts, "hdf5": None, "h5py_mpi": None, "h5py_error": str(error)}
    return {**facts, "hdf5": h5py.version.hdf5_version, "h5py_mpi": bool(h5py.get_config().mpi), "h5py_error": ""}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lock(path: Path) -> str:
    """``refused``: the lock that another node holds is seen here; ``taken``: it is not; or the error."""
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return "taken"
    except BlockingIOError:
        return "refused"
    except OSError as error:
        return error.strerror or str(error)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(Path(sys.argv[1]))) + "\n")
