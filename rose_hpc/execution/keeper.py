"""The keeper: ends what a supervisor has started when the supervisor itself is killed, and so can end nothing.

It is a fork of the supervisor from before it did anything, in a session of its own, and waits at a pipe that ends with
the supervisor. Whatever the supervisor starts carries a mark in its environment; what still carries it then is killed.
The kernel could do that (a parent's death signal), but only for a process that asks for it between fork and exec; a
supervisor that need not run any code there starts a command in a third of the time.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

#: in the environment of all that a supervisor starts: the marks of it, and of the supervisors it runs under itself
VARIABLE = "_ROSE_HPC_KEEPER"
#: between two looks; what was between fork and exec at the first has its own environment at the second
_PAUSE_S = 0.05
#: how long it kills before it leaves the rest to the kernel
_PATIENCE_S = 5.0


def folder_of(mark: str, environ: Mapping[str, str]) -> Path:
    """The folder on this node's own disk of the supervisor with that mark; it may not be there."""
    places = (environ.get("SLURM_TMPDIR"), environ.get("TMPDIR"), "/tmp")  # noqa: S108 - a name nobody can guess
    able = (place for place in places if place and os.access(place, os.W_OK | os.X_OK))
    return Path(next(able, "/tmp"), f"rose-hpc-{mark}")  # noqa: S108


def remove(folder: Path) -> None:
    """Remove a folder of ours on this node, as far as that can be."""
    if folder.exists():
        from shutil import rmtree  # here: a rank is smaller without it

        rmtree(folder, ignore_errors=True)


def start() -> None:
    """Have all processes that this one will start killed should this one be. Call it before anything else is done."""
    mark = uuid.uuid4().hex
    waiting, _held = os.pipe()  # held open by this process alone, until its end
    if (child := os.fork()) == 0:
        if os.fork() == 0:  # nobody's child, so that this process need not know it from its own
            _keep(waiting, mark)
        os._exit(0)
    os.waitpid(child, 0)
    os.close(waiting)
    os.environ[VARIABLE] = ":".join(filter(None, (os.environ.get(VARIABLE), mark)))


def _keep(waiting: int, mark: str) -> None:
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.dup2(waiting, 3)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):  # one of them may be the line to the driver
            os.dup2(null, fd)
        for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            with suppress(OSError):  # the listing's own is closed by now
                os.close(fd) if fd > 3 else None
        os.chdir("/")
        while os.read(3, 1):
            pass
        _kill_marked(mark.encode())
        remove(folder_of(mark, os.environ))
    finally:
        os._exit(0)


def _kill_marked(mark: bytes) -> None:
    end, seen_none = time.monotonic() + _PATIENCE_S, 0
    while seen_none < 2 and time.monotonic() < end:
        marked = [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _carries(entry, mark)]
        for pid in marked:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        seen_none = 0 if marked else seen_none + 1
        time.sleep(_PAUSE_S)


def _carries(process: Path, mark: bytes) -> bool:
    try:
        return mark in (process / "environ").read_bytes()  # a zombie has none
    except OSError:
        return False
