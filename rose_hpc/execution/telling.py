"""What a supervisor tells its driver over a connection that may break: outcomes are kept until they have been heard.

ZeroMQ brings a broken connection back by itself, and says nothing of the messages that were under way. So the two ends
compare what they know: with every beat the supervisor says which attempts it has, the driver says which outcomes it
has heard, and either sends again what the other should know and does not. Each attempt is begun once all the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from rose_hpc.execution.frames import pack

#: Slurm ends every process of a job at once: this long a rank that failed may be the first sign of that
DOUBT_S = 1.5
#: the driver says every few seconds what it has heard; after so long it is told again
UNHEARD_S = 8.0
#: so many attempts are remembered to have been begun, should their order come once more
_REMEMBERED = 10_000


class Telling:
    """The supervisor's side: reports that wait, and outcomes that the driver has not confirmed."""

    def __init__(self) -> None:
        self._news: list[tuple[float, Mapping[str, Any], bytes]] = []
        self._unheard: dict[str, tuple[float, bytes]] = {}
        self._begun: dict[str, None] = {}  # in the order they came

    def add(self, message: Mapping[str, Any], payload: bytes) -> None:
        """A report of the supervisor's."""
        if message["op"] == "sent-back":
            self._begun.pop(message["id"], None)
        self._news.append((time.monotonic(), message, payload))

    def is_new(self, identifier: str) -> bool:
        """Whether this attempt was not ordered before; asked once for each order."""
        if identifier in self._begun:
            return False
        self._begun[identifier] = None
        if len(self._begun) > _REMEMBERED:
            del self._begun[next(iter(self._begun))]
        return True

    def ready(self) -> bytes:
        """What can be told now."""
        told = [entry for entry in self._news if not _doubtful(*entry)]
        if not told:
            return b""
        self._news = [entry for entry in self._news if entry not in told] if len(told) < len(self._news) else []
        now, parts = time.monotonic(), []
        for _, message, payload in told:
            parts.append(pack(message, payload))
            if message["op"] == "done":
                self._unheard[message["outcome"]["id"]] = (now, parts[-1])
        return b"".join(parts)

    def heard(self, identifiers: Iterable[str]) -> None:
        """The driver knows how these ended."""
        for identifier in identifiers:
            self._unheard.pop(identifier, None)

    def beat(self, running: Iterable[str], behind: Iterable[str] = ()) -> bytes:
        """That we live and what we have, and once more what the driver should have heard long ago.

        Args:
            running: attempts under way.
            behind: those that stand behind these.
        """
        now = time.monotonic()
        waiting = (report["outcome"]["id"] for _, report, _ in self._news if report["op"] == "done")
        facts = {"running": [*running, *waiting], "known": [*self._unheard, *behind]}
        parts = [pack({"op": "beat", **facts})]
        for identifier, (since, data) in self._unheard.items():
            if now - since > UNHEARD_S:
                self._unheard[identifier] = (now, data)
                parts.append(data)
        return b"".join(parts)


def _doubtful(since: float, report: Mapping[str, Any], _value: bytes) -> bool:
    """Whether an attempt may have ended because everything here is being ended, of which we shall hear any moment."""
    reason = (report.get("outcome") or {}).get("reason")
    return reason in ("signal", "exit", "error") and time.monotonic() - since < DOUBT_S
