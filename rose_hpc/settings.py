"""A run's configuration as its journal holds it, and what of it was changed since, by command or by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rose_hpc.errors import RunError
from rose_hpc.session import Session

#: tables whose keys make another run of it
_KEPT = ("environments.grid.", "sweep.")


def changes_of(session: Session, settings: Mapping[str, Any], changes: Sequence[str]) -> list[str]:
    """What of the run's own configuration is another than when the run was last driven, ``key=value``.

    Args:
        session: the run's.
        settings: its configuration as it is now.
        changes: what was changed by command; where that is nothing, it was changed by hand, and people are told.

    Raises:
        RunError: it would be another run.
    """
    known = session.progress.run.get("settings")
    before, now = flattened(known or {}), flattened(settings)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if known is None or not changed:
        return list(changes)
    words = ", ".join(f"{key} is {now.get(key, 'gone')}, was {before.get(key, 'not there')}" for key in changed)
    if any(key in ("name", "seed") or key.startswith(_KEPT) for key in changed) or _listed(known) != _listed(settings):
        raise RunError(
            f"{session.run.config} was changed since the run was last driven: {words}",
            hint="a run keeps its name, seed and environments: change that back, or start a new run",
        )
    if changes:
        return list(changes)
    session.warn(f"{session.run.config} was changed since the run was last driven: {words}; it is used as it is now")
    return [f"{key}={now.get(key)}" for key in changed]


def flattened(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"loop": {"waves": True}}`` as ``{"loop.waves": True}``."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        found |= flattened(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def _listed(settings: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Names and parameters of environments that are listed one by one."""
    return [(each.get("name"), each.get("parameters")) for each in settings["environments"].get("list", ())]
