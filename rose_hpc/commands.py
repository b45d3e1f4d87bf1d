"""Command lines as data: ``"{python} env.py --epsilon {epsilon}"`` becomes an argv, never a line for a shell."""

from __future__ import annotations

import difflib
import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rose_hpc.errors import ConfigError

#: The placeholder that always stands for the interpreter running us.
PYTHON = "python"

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def fill(command: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Split a command into arguments, then fill the placeholders of each, so that no value can become two arguments.

    Args:
        command: words and quotes as a shell would read them, without its variables, pipes and wildcards. ``{name}``
            is a placeholder, ``{python}`` the interpreter that runs us, ``{{`` and ``}}`` are braces.
        values: what the placeholders stand for: strings as they are, numbers by ``repr``, the rest as JSON.

    Raises:
        ConfigError: no words, an open quote, a lonely brace, or an unknown placeholder.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"command {command!r} cannot be split: {str(error).lower()}") from None
    if not words or not words[0]:
        raise ConfigError("the command is empty", hint='write one, e.g. "{python} environment.py"')
    known = {**values, PYTHON: sys.executable}
    return tuple(_fill_word(word, known) for word in words)


def suggest(word: str, known: Iterable[str]) -> str:
    """A "did you mean" for a misspelt word, or "" when nothing known is near it."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), list(names), n=1, cutoff=0.6)
    return f"did you mean {names[near[0]]!r}?" if near else ""


def _fill_word(word: str, known: Mapping[str, Any]) -> str:
    def replace(match: re.Match[str]) -> str:
        token, name = match.group(0), match.group(1)
        if token in ("{{", "}}"):
            return token[0]
        if name is None:
            raise ConfigError(f"a lonely {token!r} in {word!r}", hint=f"write {token * 2!r} for a brace as such")
        if name not in known:
            hint = suggest(name, known) or f"known here: {', '.join(sorted(known))}"
            raise ConfigError(f"unknown placeholder {{{name}}}", hint=hint)
        return _text(known[name])

    return _TOKEN.sub(replace, word)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)  # the shortest text that reads back as the same float
    return json.dumps(value)
