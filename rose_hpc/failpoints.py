"""Named points at which a process can be made to die: how "nothing is lost" is tested, again and again.

The code says ``failpoints.hit("shard-published")`` between two steps that a crash may come between. Without
``ROSE_HPC_FAILPOINT`` in the process's environment when it starts, that is a call of an empty function. With it:

- ``NAME``, ``NAME:COUNT`` or ``NAME:COUNT:SIGNAL``: the process that comes to that point for the COUNT-th time (the
  first by default) sends itself SIGNAL (``KILL`` by default; ``STOP`` holds it there). If
  ``ROSE_HPC_FAILPOINT_MARK`` names a file, that file is made first, and where it exists nobody dies: one death in all,
  however many processes have the variable.
- ``NAME:1:WAIT``: whoever comes to that point makes that file, and waits there until FILE.go is beside it.
- ``?``: nobody dies, and the names go to the file of ``ROSE_HPC_FAILPOINT_MARK``, a line for each time.

Every name is used in one place of the code; the fault campaign (``tests/faults``) dies at each, and fails for a point
that is never come to.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping

Hit = Callable[[str], None]

VARIABLE = "ROSE_HPC_FAILPOINT"
MARK_VARIABLE = "ROSE_HPC_FAILPOINT_MARK"


def armed(environment: Mapping[str, str]) -> Hit:
    """What :func:`hit` is in such an environment."""
    name, mark = environment.get(VARIABLE, ""), environment.get(MARK_VARIABLE, "")
    if not name:
        return _nothing
    if name == "?":
        return _noting(mark)
    return _waiting(name.partition(":")[0], mark) if name.endswith(":WAIT") else _dying(name, mark)


def _nothing(name: str) -> None:
    """Come to the point ``name``."""


def _noting(path: str) -> Hit:
    def hit(name: str) -> None:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.write(file, f"{name}\n".encode())
        os.close(file)

    return hit


def _waiting(wanted: str, mark: str) -> Hit:
    def hit(name: str) -> None:
        if name == wanted:
            _first(mark)
            while not os.access(f"{mark}.go", os.F_OK):
                time.sleep(0.02)

    return hit


def _dying(spec: str, mark: str) -> Hit:
    wanted, count, kind = [*spec.split(":"), "", ""][:3]
    left, number, lock = int(count or 1), signal.Signals[f"SIG{kind or 'KILL'}"], threading.Lock()

    def hit(name: str) -> None:
        nonlocal left
        if name != wanted:
            return
        with lock:
            left -= 1
            if left != 0 or (mark and not _first(mark)):
                return
        os.kill(os.getpid(), number)
        while number == signal.SIGKILL:
            time.sleep(1)  # another thread may take the signal: no step further until it does

    return hit


def _first(mark: str) -> bool:
    try:
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    except FileExistsError:
        return False
    return True


hit: Hit = armed(os.environ)
