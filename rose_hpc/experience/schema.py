"""What shards and banks consist of, as data: columns, their names, and what is known of a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rose_hpc.errors import SchemaError
from rose_hpc.experience.digest import content_digest
from rose_hpc.experience.stats import Stats

#: one transition's names (Gymnasium's) -> the columns they fill
SINGULAR = {
    "observation": "observations",
    "action": "actions",
    "reward": "rewards",
    "next_observation": "next_observations",
    "terminated": "terminations",
    "truncated": "truncations",
}
#: the columns' own order; any others follow, by name
STANDARD = tuple(SINGULAR.values())
REWARDS = "rewards"
FLAGS = ("terminations", "truncations")
#: attributes of a file with a meaning of their own
ATTRIBUTES = ("run", "iteration", "environment", "seed", "parameters")
#: attributes that the format itself uses
RESERVED = (
    *("format", "format_version", "kind", "rows", "header", "statistics", "shard_offsets", "shard_names"),
    *("episode_starts", "episode_returns", "episode_ended"),
)

#: what a column may consist of -> bytes of an element
ITEM_BYTES = {
    **{name: np.dtype(name).itemsize for name in ("bool", "int8", "uint8", "float16", "float32", "float64")},
    **{f"{kind}{8 * size}": size for kind in ("int", "uint") for size in (2, 4, 8)},
    **{f">{kind}{size}": size for kind in "iuf" for size in (2, 4, 8)},
}

Plain = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a file.

    Attributes:
        dtype: NumPy's name of it, as ``float32`` (little-endian) or ``>f4``.
        shape: of one row.
        offset: where its first byte lies in the file; 0 when it has none.
        digest: see :mod:`rose_hpc.experience.digest`; None where nobody has computed it.
        stats: None likewise.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int = 0
    digest: str | None = None
    stats: Stats | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)

    def describe(self) -> str:
        """Dtype and shape, for people: ``float32(4,)``."""
        return f"{self.dtype}{self.shape}" if self.shape else self.dtype

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        stats = self.stats.to_json() if self.stats else None
        facts = {"dtype": self.dtype, "shape": list(self.shape), "offset": self.offset, "digest": self.digest}
        return {**facts, "stats": stats}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Column:
        """The inverse of :meth:`to_json`."""
        shape = tuple(int(n) for n in data["shape"])
        stats = Stats.from_json(data["stats"], shape) if data["stats"] else None
        return Column(str(data["dtype"]), shape, int(data["offset"]), data["digest"], stats)


@dataclass(frozen=True)
class ShardInfo:
    """What is known of a shard or bank without reading its rows.

    Attributes:
        path: where it is.
        kind: ``shard`` or ``bank``.
        rows: the length of every column.
        bytes: the file's size.
        columns: in canonical order (:data:`STANDARD`, then by name).
        attributes: those of :data:`ATTRIBUTES` that are known, and any further plain ones; ``parameters`` is a dict.
        shard_offsets: where each shard's rows start, and the end of the last; ``(0, rows)`` for a shard.
        shard_names: of the shards, in order; the file's own stem for a shard.
        episodes: the digest of the list of episodes that a bank keeps; None where it keeps none.
    """

    path: Path
    kind: str
    rows: int
    bytes: int
    columns: dict[str, Column]
    attributes: dict[str, Any] = field(default_factory=dict)
    shard_offsets: tuple[int, ...] = ()
    shard_names: tuple[str, ...] = ()
    episodes: str | None = None

    @property
    def digest(self) -> str | None:
        """The digest of the content: names, dtypes, shapes and bytes of the columns; None where one has no digest."""
        facts = {}
        for name, column in self.columns.items():
            if column.digest is None:
                return None
            facts[name] = (column.dtype, column.shape, column.digest)
        return content_digest(self.rows, facts)

    @property
    def data_bytes(self) -> int:
        """Bytes of all rows."""
        return self.rows * sum(column.row_bytes for column in self.columns.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data, that can travel in a message; ``digest`` is in it for the reader's convenience."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "rows": self.rows,
            "bytes": self.bytes,
            "digest": self.digest,
            "columns": {name: column.to_json() for name, column in self.columns.items()},
            "attributes": self.attributes,
            "shard_offsets": list(self.shard_offsets),
            "shard_names": list(self.shard_names),
            "episodes": self.episodes,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ShardInfo:
        """The inverse of :meth:`to_json`."""
        return ShardInfo(
            path=Path(data["path"]),
            kind=str(data["kind"]),
            rows=int(data["rows"]),
            bytes=int(data["bytes"]),
            columns={name: Column.from_json(column) for name, column in data["columns"].items()},
            attributes=dict(data["attributes"]),
            shard_offsets=tuple(data["shard_offsets"]),
            shard_names=tuple(data["shard_names"]),
            episodes=data.get("episodes"),
        )


def in_order(columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns in their canonical order."""
    first = [name for name in STANDARD if name in columns]
    return {name: columns[name] for name in (*first, *sorted(set(columns) - set(STANDARD)))}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """``float32``, or ``>f4`` where the bytes are in the other order."""
    return dtype.str if dtype.str.startswith(">") else dtype.name


def check_dtype(name: str, dtype: np.dtype[Any]) -> None:
    """Refuse what no column may consist of.

    Raises:
        SchemaError: naming the column.
    """
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise SchemaError(
            f"column '{name}' would have dtype {dtype}",
            hint="columns are bool, integers or floats of up to 64 bits; store other things as numbers",
        )


def type_reason(name: str, dtype: str) -> str | None:
    """Why a column of that name cannot be of that dtype; None if it can."""
    if name == REWARDS and dtype.lstrip(">")[0] != "f":
        return f"is {dtype}, not floating"
    if name in FLAGS and dtype != "bool":
        return f"is {dtype}, not bool"
    return None


def check_name(name: str) -> None:
    """Refuse what cannot be a column's name at a file's root.

    Raises:
        SchemaError: naming it.
    """
    if not name or "/" in name or "\0" in name or name == ".":
        raise SchemaError(f"a column cannot be named {name!r}", hint="use a word without '/'")


def difference(expected: Mapping[str, Column], found: Mapping[str, Column]) -> str:
    """How two sets of columns differ, in words; empty when they do not."""
    if [(n, c.dtype, c.shape) for n, c in expected.items()] == [(n, c.dtype, c.shape) for n, c in found.items()]:
        return ""
    parts = [f"no column '{name}'" for name in expected if name not in found]
    parts += [f"an unexpected column '{name}'" for name in found if name not in expected]
    both = [(name, column, found[name]) for name, column in expected.items() if name in found]
    parts += [
        f"'{name}' as {theirs.describe()} instead of {ours.describe()}"
        for name, ours, theirs in both
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape)
    ]
    return ", ".join(parts)


def plain_attributes(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Attributes as they are stored: plain values as they are, mappings as they come back from JSON; None is left out.

    Raises:
        SchemaError: for a value that is neither.
    """
    result: dict[str, Any] = {}
    for name, value in (attributes or {}).items():
        if isinstance(value, np.generic):
            value = value.item()
        if name in RESERVED:
            raise SchemaError(f"attribute '{name}' is the format's own", hint="give it another name")
        if isinstance(value, Mapping) and name == "parameters":
            try:
                result[name] = json.loads(json.dumps(dict(value)))
            except (TypeError, ValueError) as error:
                raise SchemaError(f"attribute 'parameters' cannot be JSON: {error}") from error
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise SchemaError(f"attribute '{name}' is an integer beyond 64 bits", hint="store it as text")
        elif isinstance(value, str) and "\0" in value:
            raise SchemaError(f"attribute '{name}' has a null character", hint="use printable text")
        elif isinstance(value, Plain):
            result[name] = value
        elif value is not None:
            raise SchemaError(f"attribute '{name}' is a {type(value).__name__}", hint="use text, a number or a bool")
    return result


def renamed(columns: Mapping[str, Column], **changes: Mapping[str, Any]) -> dict[str, Column]:
    """The columns with some of their fields replaced: ``renamed(columns, offset={name: value, ...})``."""
    return {
        name: replace(column, **{key: values[name] for key, values in changes.items()})
        for name, column in columns.items()
    }
