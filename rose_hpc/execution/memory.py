"""How much memory this process holds, as Linux tells it; None where it does not."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Let the peak speak of what comes from now on; where that is refused, it speaks of all there was."""
    with suppress(OSError):
        _CLEAR.write_text("5")


def peak_and_now_mb() -> tuple[float | None, float | None]:
    """The most it held, and what it holds, MiB."""
    try:
        text = _STATUS.read_text()
    except OSError:
        return None, None
    return _read(text, "VmHWM:"), _read(text, "VmRSS:")


def _read(text: str, name: str) -> float | None:
    words = text.partition(name)[2].split(maxsplit=1)
    return round(int(words[0]) / 1024, 1) if words else None
