"""Processes that were stopped (SIGSTOP), and so would never end by themselves."""

from __future__ import annotations

from pathlib import Path


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, or one that it has started. One that a debugger holds is not."""
    waiting = [pid]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        try:
            if (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "T":
                return True
            for thread in (process / "task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
        except OSError:
            continue  # it has just ended, or this kernel does not tell
    return False
