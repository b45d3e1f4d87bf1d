"""On which line of a TOML file a key stands: what tomllib knows and does not tell, wanted for error messages."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field

KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})' r"|'''.*?'''(?:'{0,2})" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
#: Parts of a value: strings, comments, brackets, ends of lines, anything else.
_PIECE = re.compile(rf"(?:{_STRING.pattern})|#[^\n]*|[\[\]{{}}\n]|[^\[\]{{}}\n#\"']+", re.DOTALL)


@dataclass
class TomlLines:
    """Where keys stand in one file; lines count from 1."""

    lines: dict[KeyPath, int] = field(default_factory=dict)
    #: The first key found twice: its path, its first and its second line.
    duplicate: tuple[KeyPath, int, int] | None = None

    def line(self, path: KeyPath) -> int | None:
        """The line of a key; of the nearest table around it when the key is not there; None outside of any."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None


def locate(text: str) -> TomlLines:
    """Find the line of every key that is written with a header or with ``key = ``.

    Keys inside inline tables and arrays are not told apart: they get the line of the key that holds them. In a text
    that is not TOML, everything up to the first fault is found.
    """
    scan = _Scan(text)
    while scan.statement():
        pass
    return scan.found


class _Scan:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.table: KeyPath = ()
        self.headers: set[KeyPath] = set()
        self.counts: dict[KeyPath, int] = {}  # arrays of tables: how many elements so far
        self.found = TomlLines()

    def statement(self) -> bool:
        """Read one header or one ``key = value``; False at the end, and where the text is not TOML."""
        self.at = _end(_BLANK, self.text, self.at)
        if self.at >= len(self.text):
            return False
        line = self.text.count("\n", 0, self.at) + 1
        if self.text[self.at] == "[":
            return self._header(line)
        key = self._key()
        if not key or not self._take("="):
            return False
        path = self._inside_arrays(self.table, key)
        self._note(path, line, twice=path in self.found.lines)
        return self._skip_value()

    def _header(self, line: int) -> bool:
        double = self.text.startswith("[[", self.at)
        self.at += 2 if double else 1
        key = self._key()
        if not key or not self._take("]]" if double else "]"):
            return False
        path = self._inside_arrays((), key if not double else key[:-1])
        if double:
            array = (*path, key[-1])
            self._note(array, line)
            path = (*array, self.counts.get(array, 0))
            self.counts[array] = self.counts.get(array, 0) + 1
        self._note(path, line, twice=path in self.headers)
        self.headers.add(path)
        self.table = path
        return True

    def _inside_arrays(self, start: KeyPath, key: KeyPath) -> KeyPath:
        """The path with the index of the current element put in wherever it passes an array of tables."""
        path = start
        for part in key:
            path = (*path, part)
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
        return path

    def _note(self, path: KeyPath, line: int, *, twice: bool = False) -> None:
        if twice and self.found.duplicate is None:
            self.found.duplicate = (path, self.found.lines[path], line)
        for end in range(1, len(path) + 1):
            self.found.lines.setdefault(path[:end], line)

    def _key(self) -> KeyPath:
        """Read a dotted key; empty where there is none."""
        parts: list[str] = []
        while True:
            self.at = _end(_SPACE, self.text, self.at)
            if bare := _BARE.match(self.text, self.at):
                parts.append(bare.group())
            elif quoted := _STRING.match(self.text, self.at):
                parts.append(_unquote(quoted.group()))
            else:
                return ()
            self.at = (bare or quoted).end()  # type: ignore[union-attr]  # one of them matched
            if not self._take("."):
                return tuple(parts)

    def _take(self, token: str) -> bool:
        at = _end(_SPACE, self.text, self.at)
        if not self.text.startswith(token, at):
            return False
        self.at = at + len(token)
        return True

    def _skip_value(self) -> bool:
        depth = 0
        while self.at < len(self.text):
            piece = _PIECE.match(self.text, self.at)
            if piece is None:
                return False
            if piece.group() == "\n" and depth == 0:
                return True
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(piece.group(), 0)
            self.at = piece.end()
        return False


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _unquote(quoted: str) -> str:
    try:
        return str(tomllib.loads(f"key = {quoted}")["key"])
    except tomllib.TOMLDecodeError:
        return quoted
