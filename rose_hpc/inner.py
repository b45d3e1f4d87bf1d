"""Async generators that others iterate: they end with those, and not beside them."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import TypeVar

T = TypeVar("T")


class Inner(AsyncIterator[T]):
    """An async generator that an event loop does not know of.

    At its end an event loop closes every generator that it has seen, all at once: an inner one while the outer one is
    closing it, which fails, and is told to people.
    """

    def __init__(self, source: AsyncGenerator[T, None]) -> None:
        self._source = source
        self._begun = False

    def __anext__(self) -> Awaitable[T]:
        if self._begun:
            return self._source.__anext__()
        self._begun, hooks = True, sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(None, None)  # as it is first iterated, a generator tells of itself
        try:
            return self._source.__anext__()
        finally:
            sys.set_asyncgen_hooks(*hooks)

    def aclose(self) -> Awaitable[None]:
        """As of a generator."""
        return self._source.aclose()
