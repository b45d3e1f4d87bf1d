"""The driver's view of one supervisor, however it is reached: attempts in, outcomes out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.child import GRACE_S
from rose_hpc.execution.frames import pack

log = logging.getLogger(__name__)

#: an attempt that its supervisor does not name in so many reports in a row has not reached it
_UNKNOWN = 3
#: and in so many never will
_MOST_UNKNOWN = 9

#: who has no more to do than this is told of more at once
_FEW = 2

#: the reason of an attempt that was not begun, and is to be ordered again
SENT_BACK = "sent back"

OnStart = Callable[[], None]
Answer = tuple[Outcome, bytes]


@dataclass
class _Pending:
    """An attempt that somebody waits for.

    Attributes:
        order: the message that begins it.
        unknown: in how many reports in a row the supervisor did not have it.
    """

    answer: asyncio.Future[Answer]
    on_start: OnStart | None
    order: bytes
    cancelled: bool = False
    unknown: int = 0

    def started(self) -> None:
        """It runs, as one learns from any of several messages."""
        on_start, self.on_start = self.on_start, None
        if on_start is not None:
            on_start()


class Client:
    """Keeps who waits for which attempt; subclasses carry the messages.

    Attributes:
        node: the host it is on, as Slurm names it; empty where there is only one.
        gone: set once the supervisor is lost.
        groups: the process groups of the attempts under way, by attempt.
        many: so many orders do not wait for more.
    """

    node = ""
    many: float = float("inf")

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.groups: dict[str, int] = {}
        self._pending: dict[str, _Pending] = {}
        self._outbox: list[tuple[str, bytes]] = []  # what was posted, each with the attempt it begins, if it does

    def __str__(self) -> str:
        return self.node  # among nodes with equally many free cores, the first by name is taken

    def _write(self, data: bytes) -> bool:
        """Send what :func:`rose_hpc.execution.frames.pack` made; whether there is a connection."""
        raise NotImplementedError

    def post(self, message: Mapping[str, Any], payload: bytes = b"") -> None:
        """Send a message, together with all others that are posted in this turn of the event loop."""
        self._post(pack(message, payload))

    def _post(self, data: bytes, begins: str = "") -> None:
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append((begins, data))
        if len(self._outbox) >= self.many:
            self._flush()

    def _flush(self) -> None:
        posted, self._outbox = self._outbox, []
        if posted and not self._write(posted[0][1] if len(posted) == 1 else b"".join(data for _, data in posted)):
            for identifier, _ in posted:
                self.lose_one(identifier, "its node could not be reached")

    async def run(
        self, attempt: Attempt, payload: bytes = b"", on_start: OnStart | None = None, lane: int = 0
    ) -> Answer:
        """Carry out an attempt; cancelling this ends the attempt first (TERM, and KILL 3 s later).

        Args:
            attempt, payload, on_start: as for :meth:`rose_hpc.execution.backend.AttemptBackend.run`.
            lane: attempts of the same one follow each other; 0: it begins at once.

        Returns:
            as there; with the reason SENT_BACK it was not begun, because the one before it in its lane takes long.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        order = pack({"op": "run", "attempt": attempt.to_json(), "lane": lane}, payload)
        self._pending[attempt.id] = _Pending(answer, on_start, order)
        self._post(order, begins=attempt.id)
        if len(self._pending) <= _FEW:
            self._flush()
        try:
            return await answer
        except asyncio.CancelledError:
            if attempt.id in self._pending:
                ended: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
                self._pending[attempt.id] = _Pending(ended, None, b"", cancelled=True)
                self.post({"op": "cancel", "id": attempt.id})
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([ended], timeout=GRACE_S + 1)
            raise

    def lose_one(self, identifier: str, why: str) -> None:
        """An attempt that did not reach its supervisor: tell who waits."""
        entry = self._pending.pop(identifier, None)
        if entry is not None and not entry.answer.done():
            entry.answer.set_result((Outcome(identifier, ok=False, reason="lost", message=f"was lost: {why}"), b""))

    def handle(self, message: Mapping[str, Any], payload: bytes) -> None:
        """One message of the supervisor."""
        if message["op"] == "started":
            self.groups[message["id"]] = message["pid"]
            if (entry := self._pending.get(message["id"])) is not None:
                entry.started()
        elif message["op"] == "sent-back":
            if (entry := self._pending.pop(message["id"], None)) is not None and not entry.answer.done():
                entry.answer.set_result((Outcome(message["id"], ok=False, reason=SENT_BACK), b""))
        elif message["op"] == "done":
            outcome = Outcome.from_json(message["outcome"])
            self.groups.pop(outcome.id, None)
            entry = self._pending.pop(outcome.id, None)
            if entry is not None and not entry.answer.done():
                entry.started()  # what begins and ends in one moment is told of once
                entry.answer.set_result((outcome, payload))

    def compare(self, running: Collection[str], known: Collection[str]) -> None:
        """Hold what we wait for against what the supervisor says it has, and send again what was lost on the way.

        Args:
            running: attempts it carries out, though it may be known by now that they have ended.
            known: those that stand behind others, and those whose outcomes it is not sure that we have heard.
        """
        for identifier in running:
            entry = self._pending.get(identifier)
            if entry is not None and not entry.cancelled:
                entry.started()
            else:  # a cancel that it has had does no harm
                self.post({"op": "cancel", "id": identifier})
        known = {*running, *known}
        for identifier, entry in list(self._pending.items()):
            entry.unknown = 0 if identifier in known else entry.unknown + 1
            if entry.unknown < _UNKNOWN:  # its order may be on its way
                continue
            if entry.cancelled or entry.unknown > _MOST_UNKNOWN:
                self.lose_one(identifier, "its node does not know of it")
            else:
                log.info("%s does not know of %s: ordered again", self.node, identifier)
                self._post(entry.order, begins=identifier)

    def lose(self, why: str) -> None:
        """The supervisor is gone: tell everyone who waits."""
        self.gone.set()
        pending, self._pending = self._pending, {}
        self.groups.clear()
        for identifier, entry in pending.items():
            if not entry.answer.done():
                lost = Outcome(identifier, ok=False, reason="lost", message=f"was lost: {why}", node=self.node)
                entry.answer.set_result((lost, b""))
