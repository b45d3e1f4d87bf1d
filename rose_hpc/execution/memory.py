"""How much memory this process holds, as Linux tells it; None where it does not."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Let :func:`peak_mb` speak of what comes from now on; where that is refused, it speaks of all there was."""
    with suppress(OSError):
        _CLEAR.write_text("5")


def peak_mb() -> float | None:
    """The most it held, MiB."""
    return _read("VmHWM")


def now_mb() -> float | None:
    """What it holds, MiB."""
    return _read("VmRSS")


def _read(name: str) -> float | None:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return round(int(found[1]) / 1024, 1) if found else None
