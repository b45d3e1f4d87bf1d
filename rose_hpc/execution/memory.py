"""How much memory this process holds, as Linux tells it; None where it does not.

The files stay open: a function's call is asked for its memory every time, and opening them would cost more than that.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache

_BYTES = 8192


def forget_peak() -> None:
    """Let the peak speak of what comes from now on; where that is refused, it speaks of all there was."""
    if (file := _opened("clear_refs", os.O_WRONLY)) is not None:
        with suppress(OSError):
            os.pwrite(file, b"5", 0)


def peak_and_now_mb() -> tuple[float | None, float | None]:
    """The most it held, and what it holds, MiB."""
    if (file := _opened("status", os.O_RDONLY)) is None:
        return None, None
    try:
        text = os.pread(file, _BYTES, 0)
    except OSError:
        return None, None
    return _read(text, b"VmHWM:"), _read(text, b"VmRSS:")


@cache
def _opened(name: str, flags: int) -> int | None:
    try:
        return os.open(f"/proc/self/{name}", flags | os.O_CLOEXEC)
    except OSError:
        return None


def _read(text: bytes, name: bytes) -> float | None:
    start = text.find(name) + len(name)
    return round(int(text[start : text.index(b"kB", start)]) / 1024, 1) if start >= len(name) else None
