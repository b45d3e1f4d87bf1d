"""The kinds of values that a configuration holds, with what each refuses."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic import JsonValue as Json
from pydantic_core import PydanticCustomError

from rose_hpc.commands import PYTHON
from rose_hpc.named import check_name

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def as_path(value: Any) -> Any:
    return Path(value) if isinstance(value, str) else value


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise ValueError("must be 1 to 64 of A-Z a-z 0-9 _ . - (and not '.' or '..')")
    return name


def _check_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be one line of visible text")
    return text


def _check_option(text: str) -> str:
    if not text.startswith("--"):
        raise ValueError('must start with "--", e.g. "--comment=mine"')
    return text


def _check_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    for key, value in parameters.items():
        if not _PARAMETER.fullmatch(key) or key == PYTHON:
            raise ValueError(f"parameter {key!r} must be a word (letters, digits, _ -) other than '{PYTHON}'")
        if not _finite(value):
            raise ValueError(f"parameter {key!r} holds a number that is not finite")
    return parameters


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


Name = Annotated[str, AfterValidator(_check_name)]
FunctionName = Annotated[str, AfterValidator(check_name)]
Line = Annotated[str, AfterValidator(_check_line)]
Lines = Annotated[tuple[Line, ...], BeforeValidator(as_tuple)]
Option = Annotated[Line, AfterValidator(_check_option)]
Scalar = bool | int | float | str
Parameters = Annotated[dict[str, Json], AfterValidator(_check_parameters)]
GridValues = Annotated[tuple[Scalar, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Grid = Annotated[dict[str, GridValues], Field(min_length=1), AfterValidator(_check_parameters)]
Count = Annotated[int, Field(ge=1)]
Retries = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Minutes = Annotated[float, Field(gt=0)]
Gigabytes = Annotated[float, Field(gt=0)]
Operator = Literal[">", ">=", "<", "<=", "=="]


class Model(BaseModel):
    """Frozen, strict, without unknown keys or non-finite numbers."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        defer_build=True,
    )


def combined(grid: Mapping[str, Sequence[Any]] | None) -> list[dict[str, Any]]:
    """Every combination of a grid's values, the last key varying fastest; one without any of no grid."""
    grid = grid or {}
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def fault(text: str, *key: str | int) -> PydanticCustomError:
    """An error about a key below the model that found it; `rose_hpc.config` reads the key from the context."""
    return PydanticCustomError("fault", "{text}", {"text": text, "key": key})
