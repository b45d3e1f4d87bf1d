"""Leaves none of a program's descendants behind, nor the allocation it has acquired:
``python pilot_reaper.py GRACE_S DRIVER_PID KEEP_FD RELEASE program ...``.

radical.pilot starts some twenty processes that detach themselves from their parents, and a driver that is SIGKILLed
can end none of them. This small process can: it is a *child subreaper*, so the kernel hands it every descendant whose
parent has gone, whatever session or name that one has given itself, and no process of anybody else's. It watches the
driver, its parent (not a pipe from it, of which a forked child of the driver would hold the other end too); when that
ends, or the program does, it ends all of them. SIGTERM ends them at once. RELEASE, a command as a JSON list, is carried
out in the end, unless it is empty.

Standard library only, so that it starts in a few milliseconds and stays at 10 MB. Linux.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_REAP_EVERY_MS = 1000
_KILL_TIMEOUT_S = 10.0
_RELEASE_TIMEOUT_S = 30.0
_RELEASE_AGAIN_S = (2, 10, 30)  # while the batch system does not answer


def descendants(pid: int) -> list[int]:
    """Return the process ids of all living descendants of ``pid``."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if fields[0] not in "ZX":
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _reap() -> bool:
    """Collect every child that has ended, adopted ones included; return whether there are others."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def kill_descendants(timeout_s: float = _KILL_TIMEOUT_S) -> None:
    """SIGKILL all descendants of this process until there are none, for at most ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while _reap() and time.monotonic() < deadline:
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)  # the kernel takes a moment to end and hand over what was killed


def _wait(program: int, driver: int | None, timeout_s: float | None = None) -> bool:
    """Wait until ``program`` has ended: True; or until ``driver`` or the time has: False. Both are pidfds."""
    poll = select.poll()
    poll.register(program, select.POLLIN)
    if driver is not None:
        poll.register(driver, select.POLLIN)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while deadline is None or time.monotonic() < deadline:
        ready = {fd for fd, _ in poll.poll(_REAP_EVERY_MS if deadline is None else 100)}
        if program in ready:
            return True
        if driver in ready:
            return False
        if deadline is None:
            _reap()
    return False


def _release(command: list[str]) -> None:
    for wait_s in (0, *_RELEASE_AGAIN_S) if command else ():
        time.sleep(wait_s)
        try:
            if subprocess.run(command, stdin=subprocess.DEVNULL, timeout=_RELEASE_TIMEOUT_S).returncode == 0:
                return
        except (OSError, subprocess.TimeoutExpired) as error:
            sys.stderr.write(f"{command[0]}: {error}\n")


def main(argv: list[str]) -> int:
    """Run the program, then end what is left of it; see the module's docstring."""
    grace_s, driver_pid, keep_fd, release, command = float(argv[0]), int(argv[1]), int(argv[2]), argv[3], argv[4:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.stderr.write("this kernel has no child subreapers: processes may stay behind\n")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the finally below
    driver = os.pidfd_open(os.getppid())
    if os.getppid() != driver_pid:
        return 1  # it went before it could be watched
    try:
        program = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(keep_fd,))
        os.close(keep_fd)  # the program's alone: its end must be seen by the driver
        pidfd = os.pidfd_open(program.pid)
        if not _wait(pidfd, driver):
            _wait(pidfd, None, grace_s)  # the program has seen the driver go too, and is closing
    finally:
        kill_descendants()  # first, so that nobody acquires anything more
        _release(json.loads(release))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
