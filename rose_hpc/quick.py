"""Small work with files in the event loop itself, where that is quicker than handing it to a thread and back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: what took longer the last time is a thread's the next time
QUICK_S = 0.003


class Quick:
    """Runs what is mostly the same work again and again: here while it is quick, else in a thread, so that it stops
    nobody.
    """

    def __init__(self) -> None:
        self._took_s: dict[str, float] = {}

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The value of ``function``."""
        name, began = function.__qualname__, time.monotonic()
        try:
            if self._took_s.get(name, math.inf) < QUICK_S:
                return function(*args, **kwargs)
            return await asyncio.to_thread(function, *args, **kwargs)
        finally:
            self._took_s[name] = time.monotonic() - began
