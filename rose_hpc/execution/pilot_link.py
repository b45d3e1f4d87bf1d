"""The driver's end of the line to radical.pilot: starts reaper and host, speaks to the host, ends both."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rose_hpc.execution.pilot_resources import PilotPlan, host_environment

CLOSE_TIMEOUT_S = 30.0  #: closing takes radical.pilot 4 to 15 s
_GRACE_S = 10.0  # and this long it has to cancel what runs elsewhere, when the driver has gone without closing
_LINE_LIMIT = 2**22  # a task's two 64 KiB tails, escaped as JSON, fit
_HERE = Path(__file__).parent


class Link:
    """The reaper, and the line to the host below it."""

    def __init__(self, reaper: asyncio.subprocess.Process, streams: tuple[Any, asyncio.StreamWriter]) -> None:
        self._reaper = reaper
        self._reader, self._writer = streams
        self._listener: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, plan: PilotPlan, sandbox: Path, heard: Callable[[dict[str, Any] | None], None]) -> Link:
        """Start reaper and host; ``heard`` gets each message of the host, and None at its end."""
        ours, theirs = socket.socketpair()
        grace_s = 0.0 if plan.forks or plan.release else _GRACE_S
        with theirs, (sandbox / "host.log").open("ab") as log:
            reaper = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_HERE / "pilot_reaper.py"), str(grace_s), str(os.getpid())),
                *(str(theirs.fileno()), json.dumps(plan.release)),
                *(sys.executable, "-P", str(_HERE / "pilot_host.py"), str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=sandbox,
                env=host_environment(plan, sandbox, os.environ),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a Ctrl-C in the terminal is the driver's to handle
            )
        link = cls(reaper, await asyncio.open_connection(sock=ours, limit=_LINE_LIMIT))
        link._listener = asyncio.create_task(link._listen(heard))
        fields = {**dataclasses.asdict(plan), "sandbox": str(sandbox), "user_home": str(Path.home())}
        link.tell("start", **fields)
        return link

    async def _listen(self, heard: Callable[[dict[str, Any] | None], None]) -> None:
        with suppress(ConnectionError):
            while line := await self._reader.readline():
                heard(json.loads(line))
        heard(None)

    def tell(self, op: str, **fields: Any) -> None:
        """Send one message to the host; to one that has gone, it is lost, and ``heard`` has said so."""
        self._writer.write(json.dumps({"op": op, **fields}).encode() + b"\n")

    async def close(self, grace_s: float) -> None:
        """Have the host close within ``grace_s``; then, or if that is 0, have all processes killed."""
        if self._listener is not None:
            self._listener.cancel()
        if grace_s:
            self.tell("close")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._reaper.wait(), grace_s)
        if self._reaper.returncode is None:
            with suppress(ProcessLookupError):
                self._reaper.terminate()  # its answer is to kill everything below it
            with suppress(TimeoutError):
                await asyncio.wait_for(self._reaper.wait(), CLOSE_TIMEOUT_S / 2)
        self._writer.close()
