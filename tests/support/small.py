"""Chunks and blocks of a few bytes, so that small shards have every edge that large ones have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CHUNK = 64


def shrink(set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Do it, for this process or, with ``monkeypatch.setattr``, for a test."""
    from rose_hpc.experience import batches, copying, digest, plan, tally

    for module in (digest, plan, tally, copying):
        set_attribute(module, "CHUNK", CHUNK)
    set_attribute(copying, "BUFFER", 24)
    set_attribute(copying.SpanWriter, "block", 24)
    set_attribute(batches, "_SMALL", 8)
    set_attribute(batches, "_WAITING", 30)
    set_attribute(plan, "_MOST", 300)
