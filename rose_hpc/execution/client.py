"""The driver's view of one supervisor, however it is reached: attempts in, outcomes out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.child import GRACE_S
from rose_hpc.execution.frames import pack

OnStart = Callable[[], None]
Answer = tuple[Outcome, bytes]


class Client:
    """Keeps who waits for which attempt; subclasses carry the messages.

    Attributes:
        node: the host it is on, as Slurm names it; empty where there is only one.
        gone: set once the supervisor is lost.
        groups: the process groups of the attempts under way, by attempt.
    """

    node = ""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.groups: dict[str, int] = {}
        self._pending: dict[str, tuple[asyncio.Future[Answer], OnStart | None]] = {}
        self._outbox: list[tuple[str, bytes]] = []  # what was posted, each with the attempt it begins, if it does

    def __str__(self) -> str:
        return self.node  # among nodes with equally many free cores, the first by name is taken

    def _write(self, data: bytes) -> bool:
        """Send what :func:`rose_hpc.execution.frames.pack` made; whether there is a connection."""
        raise NotImplementedError

    def post(self, message: Mapping[str, Any], payload: bytes = b"") -> None:
        """Send a message, together with all others that are posted in this turn of the event loop."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        run = message["attempt"]["id"] if message["op"] == "run" else ""
        self._outbox.append((run, pack(message, payload)))

    def _flush(self) -> None:
        posted, self._outbox = self._outbox, []
        if not self._write(posted[0][1] if len(posted) == 1 else b"".join(data for _, data in posted)):
            for identifier, _ in posted:
                self.lose_one(identifier, "its node could not be reached")

    async def run(self, attempt: Attempt, payload: bytes = b"", on_start: OnStart | None = None) -> Answer:
        """Carry out an attempt; cancelling this ends the attempt first (TERM, and KILL 3 s later)."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.post({"op": "run", "attempt": attempt.to_json()}, payload)
        self._pending[attempt.id] = (answer, on_start)
        try:
            return await answer
        except asyncio.CancelledError:
            if attempt.id in self._pending:
                ended: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
                self._pending[attempt.id] = (ended, None)
                self.post({"op": "cancel", "id": attempt.id})
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([ended], timeout=GRACE_S + 1)
            raise

    def lose_one(self, identifier: str, why: str) -> None:
        """An attempt that did not reach its supervisor: tell who waits."""
        entry = self._pending.pop(identifier, None)
        if entry is not None and not entry[0].done():
            entry[0].set_result((Outcome(identifier, ok=False, reason="lost", message=f"was lost: {why}"), b""))

    def handle(self, message: Mapping[str, Any], payload: bytes) -> None:
        """One message of the supervisor."""
        if message["op"] == "started":
            self.groups[message["id"]] = message["pid"]
            if (entry := self._pending.get(message["id"])) is not None and entry[1] is not None:
                entry[1]()
        elif message["op"] == "done":
            outcome = Outcome.from_json(message["outcome"])
            self.groups.pop(outcome.id, None)
            entry = self._pending.pop(outcome.id, None)
            if entry is not None and not entry[0].done():
                entry[0].set_result((outcome, payload))

    def lose(self, why: str) -> None:
        """The supervisor is gone: tell everyone who waits."""
        self.gone.set()
        pending, self._pending = self._pending, {}
        self.groups.clear()
        for identifier, (answer, _) in pending.items():
            if not answer.done():
                lost = Outcome(identifier, ok=False, reason="lost", message=f"was lost: {why}", node=self.node)
                answer.set_result((lost, b""))
