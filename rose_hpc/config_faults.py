"""What pydantic found wrong with a configuration, said in one line: which key, what, and what to write instead."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rose_hpc.commands import suggest
from rose_hpc.config_models import Config
from rose_hpc.toml_lines import KeyPath, TomlLines

#: What pydantic calls the types of Python, in the words of a TOML file.
_WORDS = {
    "a valid boolean": "true or false",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a text in quotes",
    "a valid tuple": "a list",
    "a valid dictionary": "a table",
}


def describe(error: ValidationError, raw: Mapping[str, Any], lines: TomlLines) -> tuple[KeyPath, str, str]:
    """The fault that stands first in the file: its key, what is wrong, and a hint (may be "").

    Args:
        error: what validating ``raw`` raised.
        raw: the file as parsed.
        lines: where its keys stand.
    """
    faults: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        faults.setdefault(_key(detail, raw), []).append(detail)
    # What is missing comes last: it is often there under a misspelt name, and that is the fault to tell.
    key = min(faults, key=lambda path: (faults[path][0]["type"] == "missing", lines.line(path) or 0))
    message, hint = _explain(key, faults[key])
    if len(faults) > 1:
        message += f" (and {len(faults) - 1} more)"
    return key, message, hint


def _key(detail: ErrorDetails, raw: Mapping[str, Any]) -> KeyPath:
    """The location pydantic gives, without the names of union members, which are no keys of the file."""
    key: list[str | int] = []
    value: Any = raw
    for part in (*detail["loc"], *detail.get("ctx", {}).get("key", ())):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, (list, tuple)) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            break
        key.append(part)
    return tuple(key)


def _explain(key: KeyPath, details: list[ErrorDetails]) -> tuple[str, str]:
    first = details[0]
    if first["type"] == "extra_forbidden":
        return "unknown key", _suggest_key(key)
    if first["type"] == "missing":
        is_table = bool(_known_keys(key))
        return "is missing", f"add [{key[-1]}]" if is_table else f"add {key[-1]} = ... to {_table(key[:-1])}"
    if first["type"] == "fault":
        return first["msg"], ""
    if first["type"] == "value_error":
        text = first["msg"].removeprefix("Value error, ")
        return f"{text}, not {_shown(first['input'])}" if text.startswith("must ") else text, ""
    if first["type"] in ("too_short", "dict_too_short", "tuple_too_short"):
        return "is empty", "give at least one"
    said = dict.fromkeys(_requirement(detail["msg"]) for detail in details)
    return f"must be {' or '.join(said)}, not {_shown(first['input'])}", ""


def _requirement(message: str) -> str:
    text = message.removeprefix("Input should be ")
    return _WORDS.get(text, text.replace("greater than or equal to", "at least"))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    return repr(list(value) if isinstance(value, tuple) else value)


def _suggest_key(key: KeyPath) -> str:
    """The known key nearest to an unknown one: in the same table, or of the same name in another table."""
    name = str(key[-1])
    here = _known_keys(key[:-1])
    if hint := suggest(name, here):
        return hint
    for table in _known_keys(()):
        if name in _known_keys((table,)):
            return f"did you mean {f'{table}.{name}'!r}?"
    return f"known in {_table(key[:-1])}: {', '.join(here)}"


def _table(key: KeyPath) -> str:
    names = ".".join(part for part in key if isinstance(part, str))
    return f"[{names}]" if names else "the file's top"


def _known_keys(key: KeyPath) -> list[str]:
    model: type[BaseModel] | None = Config
    for part in key:
        if model is not None and isinstance(part, str):
            fields = {field.alias or name: field for name, field in model.model_fields.items()}
            model = _model_in(fields[part].annotation) if part in fields else None
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model an annotation holds, if any: itself, or a member of a union, tuple or Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, typing.get_args(annotation))), None)
