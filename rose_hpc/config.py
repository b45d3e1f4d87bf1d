"""Configuration files: TOML in, frozen models out, every fault as one line with file, line and key.

What may stand in the file is said by the models (`rose_hpc.config_models`); what is done with them, elsewhere.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tomli_w
from pydantic import ValidationError

from rose_hpc import named
from rose_hpc.commands import fill, suggest
from rose_hpc.config_environments import EnvironmentConfig, Stage
from rose_hpc.config_faults import describe
from rose_hpc.config_models import Config
from rose_hpc.errors import ConfigError
from rose_hpc.toml_lines import KeyPath, TomlLines, locate

__all__ = ["Config", "EnvironmentConfig", "Stage", "check_scripts", "dump_config", "fill", "load_config", "unnamed"]

_SET_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_INTERPRETER = re.compile(r"python[0-9.]*")


def load_config(
    path: Path, *, sets: Sequence[str] = (), seed: int | None = None, max_iterations: int | None = None
) -> Config:
    """Read a configuration file and apply what the command line overrides.

    Args:
        path: the TOML file.
        sets: ``key=value`` with a dotted key, e.g. ``loop.max_iterations=5``; the value is read as TOML, or taken as
            a string when it is not. The later of two wins.
        seed: overrides ``seed``; None leaves it.
        max_iterations: overrides ``loop.max_iterations``; None leaves it.

    Raises:
        ConfigError: one line with file, line, key, what is wrong and a suggestion.
    """
    raw, lines = read_toml(path)
    overridden: dict[KeyPath, str] = {}
    for assignment in sets:
        overridden[assign(raw, assignment)] = f"--set {assignment}"
    if seed is not None:
        overridden[assign(raw, f"seed={seed}")] = f"--seed {seed}"
    if max_iterations is not None:
        overridden[assign(raw, f"loop.max_iterations={max_iterations}")] = f"--max-iterations {max_iterations}"
    folder = path.absolute().parent.resolve()
    base = raw.get("base", "")
    try:
        return Config.model_validate({**raw, "base": folder / base if isinstance(base, str) else base})
    except ValidationError as error:
        key, message, hint = describe(error, raw, lines)
        raise ConfigError(f"{where_of(path, lines, key, overridden)}: {message}", hint=hint) from None


def dump_config(config: Config) -> str:
    """The configuration as TOML, defaults and base folder written out; `load_config` reads an equal one back."""
    return tomli_w.dumps(config.model_dump(mode="json", by_alias=True, exclude_none=True))


def check_scripts(config: Config, path: Path | None = None) -> None:
    """Refuse a configuration whose tasks cannot start: a program, Python script or function that is not there.

    Args:
        config: what to check.
        path: its file, for the line in the error; the error names only the key without it.

    Raises:
        ConfigError: names the first such key, and what was looked for.
    """
    if not config.base.is_dir():
        _refuse(path, ("base",), f"there is no folder {config.base}", "it is where tasks run")
    seen: set[object] = set()  # a grid of a thousand environments asks the file system once
    values = {"update": len(config.environments.resolve()), "check": 1}
    first, *others = config.learners
    tasks = config.tasks
    several = [entry for entry in tasks if entry[0][0] != "environments"]
    for learner, (table, task, own) in (*((first, e) for e in tasks), *((o, e) for o in others for e in several)):
        if task.function is not None:
            function = named.Named(task.function, str(config.base), own, learner.parameters)
            what: object = (function.name, tuple(own), tuple(learner.parameters))
            if what not in seen:
                _check_function(path, (*table, "function"), function, values.get(str(table[0]), 0))
        else:
            what = names = _names(task.argv_with({**learner.parameters, **own}))
            if what not in seen:
                _check_script(config, path, (*table, "command"), *names)
        seen.add(what)


def unnamed(config: Config) -> list[str]:
    """The learners' parameters that no command has a placeholder for, and no function a keyword, as far as can be seen.

    It may be a slip of the pen; tasks find them in ``ROSE_HPC_PARAMETERS`` all the same.
    """
    values = {"update": len(config.environments.resolve()), "check": 1}
    left = dict(config.learners[0].parameters)
    for command, function, table, own in {
        (t.command, t.function, table[0], tuple(own)) for table, t, own in config.tasks
    }:
        if command is not None:
            left = {key: value for key, value in left.items() if f"{{{key}}}" not in command}
        elif function is not None:
            called = named.Named(function, str(config.base), dict.fromkeys(own), config.learners[0].parameters)
            taken = named.check(called, values.get(str(table), 0))
            left = {key: value for key, value in left.items() if taken is not None and key not in taken}
    return sorted(left)


def _check_function(path: Path | None, key: KeyPath, function: named.Named, values: int) -> None:
    try:
        named.check(function, values)
    except ConfigError as error:
        _refuse(path, key, error.message, error.hint)


def _check_script(config: Config, path: Path | None, key: KeyPath, program: str, script: str = "") -> None:
    if _find_program(program, config.base) is None:
        if "/" in program and (config.base / program).is_file():
            _refuse(path, key, f"program {program!r} is not executable", f"chmod +x {config.base / program}")
        _refuse(path, key, f"program {program!r} not found", _beside(config.base, program))
    if script and not (config.base / script).is_file():
        _refuse(path, key, f"no script {script!r} in {config.base}", _beside(config.base, script))


def read_toml(path: Path) -> tuple[dict[str, Any], TomlLines]:
    """A TOML file as it stands, and where in it everything is.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", hint="'rose-hpc init DIR' writes a project to start from") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder", hint=f"name the file, e.g. {path / 'config.toml'}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text", hint="save the file as UTF-8") from None
    text = text.replace("\r\n", "\n")
    lines = locate(text)
    try:
        return tomllib.loads(text), lines
    except tomllib.TOMLDecodeError as error:
        _refuse_syntax(path, text, lines, str(error))


def _refuse_syntax(path: Path, text: str, lines: TomlLines, message: str) -> NoReturn:
    match = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)", message)
    number = int(match.group(1)) if match and match.group(1) else text.count("\n") + 1
    if lines.duplicate and lines.duplicate[2] <= number:
        key, first, second = lines.duplicate
        raise ConfigError(f"{path}:{second}: {_dotted(key)}: is there twice, first in line {first}", hint="remove one")
    source = text.split("\n")[number - 1].strip()
    what = message[: match.start()] if match else message
    hint = 'text needs quotes, e.g. name = "cartpole"' if what == "Invalid value" else ""
    raise ConfigError(f"{path}:{number}: not TOML: {what[:1].lower()}{what[1:]} in {source!r}", hint=hint)


def assign(raw: dict[str, Any], assignment: str) -> KeyPath:
    """Apply one ``key=value`` to the parsed file, in place; returns the key."""
    key, equals, text = (part.strip() for part in assignment.partition("="))
    if not equals or not _SET_KEY.fullmatch(key):
        raise ConfigError(f"--set {assignment}: not of the form key=value", hint="e.g. --set loop.max_iterations=5")
    *tables, last = key.split(".")
    table = raw
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {assignment}: {name!r} is not a table", hint="set it as a whole, or in the file")
    table[last] = _read_value(text)
    return (*tables, last)


def _read_value(text: str) -> Any:
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return read["value"] if len(read) == 1 else text


def where_of(path: Path, lines: TomlLines, key: KeyPath, overridden: Mapping[KeyPath, str]) -> str:
    """How an error names a key: file, line and key, or the option that overrode it."""
    for start, option in overridden.items():
        if key[: len(start)] == start:
            return f"{option}: {_dotted(key)}"
    line = lines.line(key)
    place = str(path) if line is None else f"{path}:{line}"
    return f"{place}: {_dotted(key)}" if key else place


def _dotted(key: Iterable[str | int]) -> str:
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _names(argv: Sequence[str]) -> tuple[str, ...]:
    """The program of a command, and the script if the program is a Python interpreter that is given one."""
    program, *rest = argv
    words = iter(rest if _INTERPRETER.fullmatch(Path(program).name) else ())
    for word in words:
        if word[:2] in ("-W", "-X"):
            if len(word) == 2:
                next(words, None)  # its value
        elif not word.startswith("-"):
            return (program, word) if word.endswith(".py") else (program,)
        elif word == "-" or word.startswith("--") or {"c", "m"} & set(word):  # no script, perhaps
            break
    return (program,)


def _find_program(program: str, base: Path) -> str | None:
    return shutil.which(base / program if "/" in program else program)


def _beside(base: Path, name: str) -> str:
    """A suggestion from what lies in the folder where the file was looked for."""
    folder = (base / name).parent
    if (base / name).is_file():
        return f"write ./{name}: a bare name is looked for on PATH"
    there = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return suggest(Path(name).name, there) or "paths count from the configuration file's folder"


def _refuse(path: Path | None, key: KeyPath, message: str, hint: str) -> NoReturn:
    where = _dotted(key) if path is None else where_of(path, read_toml(path)[1], key, {})
    raise ConfigError(f"{where}: {message}", hint=hint)
