"""System calls that fail on demand: building failing_calls.c, and saying which call of this process is to fail how."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ONCE, FROM_THEN_ON, DONE_ALL_THE_SAME, SHORT = range(4)
CHANGES, READS, CLOSES, MOVES = 1, 2, 4, 8


@dataclass(frozen=True)
class Fault:
    """What happens to a call.

    Attributes:
        error: the errno.
        mode: only that call fails; all from then on; that call is carried out and fails; or moves half of its bytes.
        kinds: of calls that are counted.
    """

    error: int
    mode: int
    kinds: int

    def __str__(self) -> str:
        how = ("once", "from then on", "done all the same", "half of it")[self.mode]
        return f"{errno.errorcode.get(self.error, 'short')} {how}"


_CHANGING = CHANGES | CLOSES
#: a full disk shows when something is changed; a lost device or server in every call
_KINDS = {
    errno.ENOSPC: _CHANGING,
    errno.EDQUOT: _CHANGING,
    errno.EROFS: _CHANGING,
    errno.EIO: _CHANGING | READS,
    errno.ESTALE: _CHANGING | READS,
}
FAILURES = [Fault(e, mode, kinds) for e, kinds in _KINDS.items() for mode in (ONCE, FROM_THEN_ON)]
FAILURES += [Fault(e, DONE_ALL_THE_SAME, _CHANGING) for e in (errno.EIO, errno.ESTALE)]
#: these are no failures: who calls must go on
HICCUPS = [Fault(0, SHORT, MOVES), Fault(errno.EINTR, ONCE, MOVES)]


def build(folder: Path) -> Path:
    """Compile the library."""
    library = folder / "failing_calls.so"
    source = Path(__file__).with_suffix(".c")
    compiler = shutil.which("cc") or shutil.which("gcc") or "cc"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", library, source, "-ldl"], check=True)
    return library


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)  # preloaded: its functions are the process's own
    library.arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_uint]
    library.what_failed.restype = ctypes.c_char_p
    return library


def arm(folder: Path, at: int, fault: Fault) -> None:
    """Have call number ``at`` (from 1) below ``folder`` fail; 0: count only."""
    _library().arm(os.fsencode(folder), at, fault.error, fault.mode, fault.kinds)


def disarm() -> int:
    """No call fails any more; how many were counted."""
    return int(_library().disarm())


def what_failed() -> str:
    """The first call that failed since :func:`arm`, and on what."""
    return os.fsdecode(_library().what_failed())


def variable(folder: Path, at: int, fault: Fault) -> dict[str, str]:
    """The same for a child's environment."""
    return {"FAILING_CALLS": f"{at}:{fault.error}:{fault.mode}:{fault.kinds}:{folder}"}
