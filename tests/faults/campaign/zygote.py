"""Drivers in milliseconds: a process that has everything imported forks one for each start.

A start of ``rose-hpc`` costs a second of imports, and a campaign starts thousands. What is forked is the same code in a
process of its own: a session and process group of its own, its own environment, output into files; it reads its
failpoint anew. Supervisors, hosts and commands are started by it as ever, with exec.

As a script this is the process that forks: requests as JSON lines on stdin, ``{"pid": ...}`` and
``{"ended": pid, "code": ...}`` on stdout; when stdin ends it kills what it forked.
"""

from __future__ import annotations

import json
import os
import runpy
import selectors
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class Driver:
    """A driver that was forked.

    Attributes:
        pid: of the process, which leads a group of its own.
        code: its exit code, minus the signal's number for one that was killed; None while it runs.
    """

    def __init__(self, zygote: Zygote, pid: int, out: Path) -> None:
        self.pid = pid
        self.code: int | None = None
        self._zygote = zygote
        self._out = out

    def wait(self, seconds: float) -> int:
        """Its exit code.

        Raises:
            TimeoutError: it is still there.
        """
        end = time.monotonic() + seconds
        while self.code is None:
            if not self._zygote.listen(end - time.monotonic()):
                raise TimeoutError(f"driver {self.pid} has not ended in {seconds} s")
        return self.code

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        self._zygote.listen(0)
        return self.code

    def kill(self, number: int = signal.SIGKILL, *, group: bool = False) -> None:
        """A signal to it, or to its whole group."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, number)

    @property
    def stdout(self) -> str:
        """What it printed."""
        return self._out.with_suffix(".out").read_text()

    @property
    def stderr(self) -> str:
        """What it complained of."""
        return self._out.with_suffix(".err").read_text()


#: no trial's fault, and the end of all of them: it is no outcome of a cell
_GONE = "the process that forks drivers is gone: the campaign ends here"


class Zygote:
    """The forking process, from outside.

    Args:
        env: set in its environment, and so in that of all it forks.
    """

    def __init__(self, **env: str) -> None:
        self._drivers: dict[int, Driver] = {}
        self._forked: list[int] = []
        self._ended: dict[int, int] = {}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **env},
        )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._buffer = b""

    def start(self, argv: Sequence[object], cwd: Path, out: Path, env: Mapping[str, str], program: str = "") -> Driver:
        """Start ``rose-hpc ARGV``, or a Python ``program`` with these arguments; output to OUT.out, OUT.err."""
        for suffix in (".out", ".err"):
            out.with_suffix(suffix).touch()
        request = {"argv": list(map(str, argv)), "cwd": str(cwd), "out": str(out), "env": dict(env), "program": program}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SystemExit(_GONE) from None
        while not self._forked:
            if not self.listen(60):
                raise TimeoutError("the zygote does not answer")
        driver = Driver(self, self._forked.pop(), out)
        if driver.pid in self._ended:
            driver.code = self._ended.pop(driver.pid)
        else:
            self._drivers[driver.pid] = driver
        return driver

    def listen(self, seconds: float) -> bool:
        """Take what it says, waiting so long for it; whether it said anything."""
        if not self._selector.select(max(0.0, seconds)):
            return False
        assert self._process.stdout is not None
        data = os.read(self._process.stdout.fileno(), 65536)
        if not data:
            raise SystemExit(_GONE)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "pid" in said:
                self._forked.append(said["pid"])
            elif (driver := self._drivers.pop(said["ended"], None)) is not None:
                driver.code = said["code"]
            else:  # so quickly that nobody has heard of it yet
                self._ended[said["ended"]] = said["code"]
        return True

    def close(self) -> None:
        """End it and all it forked."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._selector.close()


# -- the process that forks --------------------------------------------------------------------------------------------


def serve() -> None:
    """Fork until stdin ends."""
    _import_everything()
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked"  # noqa: PTH208
    children: set[int] = set()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    buffer = b""
    while True:
        ready = {key.fd for key, _ in selector.select()}
        if wake_read in ready:
            os.read(wake_read, 4096)
            _reap(children)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                children.add(pid := _fork(json.loads(line)))
                _say({"pid": pid})
    for pid in children:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _import_everything() -> None:
    import cloudpickle  # noqa: F401
    import radical.asyncflow  # noqa: F401

    import rose_hpc
    from rose_hpc import driver, learners, loop, standing  # noqa: F401
    from rose_hpc.cli import resume, run, submit  # noqa: F401
    from rose_hpc.execution import local, select  # noqa: F401
    from rose_hpc.report import view  # noqa: F401
    from rose_hpc.slurm import submit as _submit  # noqa: F401

    for name in rose_hpc.__all__:
        getattr(rose_hpc, name)


def _say(what: Mapping[str, Any]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def _reap(children: set[int]) -> None:
    while children:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        children.discard(pid)
        _say({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _fork(request: Mapping[str, Any]) -> int:
    if pid := os.fork():
        return pid
    code = 70
    try:
        code = _become(request)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1 if error.code else 0
    except BaseException:  # noqa: BLE001 - as an interpreter ends
        traceback.print_exc()
        code = 1
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _become(request: Mapping[str, Any]) -> int:
    """Be what a new interpreter would be."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, suffix in ((1, ".out"), (2, ".err")):
        file = os.open(request["out"] + suffix, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, number)
    os.closerange(3, 64)  # the selector's and the pipe's, which are the zygote's
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    from rose_hpc import failpoints

    failpoints.hit = failpoints.armed(os.environ)
    if os.environ.get("TORTURE_LATER"):
        _be_later(float(os.environ["TORTURE_LATER"]))
    if node := os.environ.get("TORTURE_NODE"):
        _be_on(node)
    if request["program"]:
        sys.argv = [request["program"], *request["argv"]]
        sys.orig_argv = [sys.executable, *sys.argv]
        sys.path[0] = str(Path(request["program"]).parent)
        runpy.run_path(request["program"], run_name="__main__")
        return 0
    sys.argv = ["rose-hpc", *request["argv"]]
    sys.orig_argv = [sys.executable, "-m", "rose_hpc", *request["argv"]]
    from rose_hpc.cli import main

    main(request["argv"])
    return 0


def _be_later(seconds: float) -> None:
    """Submit so much later, and wait for nothing."""
    from rose_hpc.slurm import submit

    now = time.time
    submit.time = SimpleNamespace(time=lambda: now() + seconds, sleep=lambda _: None)  # type: ignore[assignment]


def _be_on(node: str) -> None:
    """Be on another machine, over a file system whose locks do not cross machines, with little patience."""
    from rose_hpc import ownership, session

    def lock(*_: object) -> None:
        """Have a lock that nobody else sees."""

    ownership.fcntl = SimpleNamespace(flock=lock, LOCK_EX=0, LOCK_NB=0)  # type: ignore[assignment]  # what it uses
    ownership.socket = SimpleNamespace(gethostname=lambda: node)  # type: ignore[assignment]  # likewise
    ownership.HEARTBEAT_MAX_AGE_S, ownership._WATCH_S, session.HEARTBEAT_S = 4.0, 3.0, 1.0


if __name__ == "__main__":
    serve()
