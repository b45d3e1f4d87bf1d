"""The driver's view of one supervisor, however it is reached: attempts in, outcomes out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from rose_hpc.errors import EngineError
from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.child import GRACE_S

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

    def __str__(self) -> str:
        return self.node  # among nodes with equally many free cores, the first by name is taken

    async def _send(self, message: Mapping[str, Any], payload: bytes = b"") -> None:
        raise NotImplementedError

    async def run(self, attempt: Attempt, payload: bytes = b"", on_start: OnStart | None = None) -> Answer:
        """Carry out an attempt; cancelling this ends the attempt first (TERM, and KILL 3 s later)."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[attempt.id] = (answer, on_start)
        try:
            await self._send({"op": "run", "attempt": attempt.to_json()}, payload)
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            await self._send({"op": "cancel", "id": attempt.id})
            with suppress(asyncio.CancelledError, TimeoutError, EngineError):
                await asyncio.wait_for(asyncio.shield(answer), GRACE_S + 1)
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
