"""Functions that a configuration names: ``"module:callable"``, looked for in the configuration's folder first.

The driver never imports them: it checks what the source says (:func:`check`), and sends their names. The resident
process that calls one imports it once, and keeps it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, ClassVar

from rose_hpc.commands import suggest
from rose_hpc.errors import CallError, ConfigError
from rose_hpc.execution.attempt import VALUE_BYTES
from rose_hpc.refusals import words_of

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)
_ELSEWHERE = "leave the rest in a shard, task.policy or task.state"


@dataclass(frozen=True)
class Named:
    """A callable by its name; calling it imports it, in whatever process that happens.

    Attributes:
        name: ``module:callable``.
        folder: where the module is looked for first.
        own: keywords it is called with.
        offered: keywords it is called with where it takes them.
    """

    name: str
    folder: str
    own: Mapping[str, Any] = field(default_factory=dict)
    offered: Mapping[str, Any] = field(default_factory=dict)
    #: for :mod:`rose_hpc.execution.calls`
    is_constant: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.own.items())})"

    @property
    def file(self) -> str:
        """The file its module most likely is, from the folder."""
        return self.name.partition(":")[0].replace(".", "/") + ".py"

    def __call__(self, *values: Any) -> Any:
        """Its value, as a record holds it: tuples are lists, numbers of numpy are numbers.

        Raises:
            CallError: it cannot be imported or called so, or returned what no record can hold.
        """
        function = _load(self.name, self.folder)
        keywords = {**_taken(function, self.offered), **self.own}
        if not takes(function, len(values), keywords):
            raise CallError(f"cannot be called: {unfit(function, self.name, len(values), keywords)}")
        value = function(*values, **keywords)
        return _awaited(value) if inspect.isawaitable(value) else _plain(value)


async def _awaited(value: Awaitable[Any]) -> Any:
    return _plain(await value)


def _plain(value: Any) -> Any:
    try:
        text = json.dumps(value, allow_nan=False, default=_number)
    except (TypeError, ValueError, RecursionError) as error:
        what = type(value).__name__
        raise CallError(
            f"returned a {what} that no record can hold ({error}): return finite numbers, text, lists and dicts, "
            f"and {_ELSEWHERE}"
        ) from error
    if len(text.encode()) > VALUE_BYTES:
        raise CallError(f"returned {len(text):,} characters, and a record holds {VALUE_BYTES:,}: {_ELSEWHERE}")
    return json.loads(text)


def _number(value: Any) -> Any:
    """A number of numpy or torch as one of Python."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a {type(value).__name__} is not plain data")


def _load(name: str, folder: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if folder not in sys.path:
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:
        raise CallError(f"cannot be called: importing {module_name} raised {words_of(error)}") from error
    try:
        function = getattr(module, attribute)
    except AttributeError:
        hint = suggest(attribute, vars(module)) or f"it is {getattr(module, '__file__', 'not a file')}"
        raise CallError(f"cannot be called: {module_name} has no {attribute!r}; {hint}") from None
    if not callable(function):
        raise CallError(f"cannot be called: {name} is a {type(function).__name__}")
    return function  # type: ignore[no-any-return]  # callable, as has just been seen


def takes(function: Callable[..., Any], count: int, keywords: Mapping[str, Any]) -> bool:
    """Whether ``function`` can be called with ``count`` values and ``keywords``; True where nobody can tell."""
    try:
        inspect.signature(function).bind(*range(count), **keywords)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _taken(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``offered`` that ``function`` has a name for, or a place."""
    try:
        known = inspect.signature(function).parameters.values()
    except ValueError:  # written in C, and says nothing
        return {}
    if any(each.kind is each.VAR_KEYWORD for each in known):
        return dict(offered)
    names = {each.name for each in known if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)}
    return {key: value for key, value in offered.items() if key in names}


def unfit(function: Callable[..., Any], name: str, count: int, keywords: Mapping[str, Any]) -> str:
    """Why a function that :func:`takes` something else cannot be called, and how it should be written."""
    wants = inspect.signature(function).parameters.values()
    needed = [each.name for each in wants if each.kind is each.KEYWORD_ONLY and each.default is each.empty]
    if missing := [key for key in needed if key not in keywords]:
        return f"{name} needs {', '.join(missing)}, and there is no such parameter"
    given = [f"{count} value{'s' * (count != 1)}"] * bool(count) + [f"{key}=..." for key in keywords]
    wanted = [("value" if count == 1 else "*values")] * bool(count) + list(keywords)
    return (
        f"{name} is called with {', '.join(given) or 'nothing'} and does not take that; "
        f"write `def {name.partition(':')[2]}({', '.join(wanted)})`"
    )


# -- from its source alone ---------------------------------------------------------------------------------------------


def check_name(text: str) -> str:
    """``text``, if it has the form of a name.

    Raises:
        ValueError: it has not.
    """
    if not _NAME.fullmatch(text):
        raise ValueError('must be of the form "module:function", e.g. "walk:environment"')
    if (top := text.partition(":")[0].partition(".")[0]) in sys.stdlib_module_names:
        raise ValueError(f"must not be in {top!r}, which is a module of Python's own; rename your file")
    return text


def check(named: Named, count: int) -> set[str] | None:
    """Refuse a function that is not there, or that cannot be called with ``count`` values and its keywords.

    Nothing is imported, so that it is safe and quick on a login node; what only running can tell is not found here.

    Returns:
        which of what is offered it takes; None where only running can tell.

    Raises:
        ConfigError: what is wrong with it.
    """
    module_name, _, attribute = named.name.partition(":")
    spec = _find(module_name, named.folder)
    if spec is None:
        there = [path.stem for path in Path(named.folder).glob("*.py")]
        hint = suggest(module_name, there) or "modules are looked for in the configuration file's folder"
        raise ConfigError(f"there is no module {module_name!r} in {named.folder}, and none is installed", hint=hint)
    if not spec.origin or not spec.origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ConfigError(f"{spec.origin}{line}: {getattr(error, 'msg', error)}") from None
    known = dict(_defined(tree.body))
    if attribute not in known:
        if "*" in known or "__getattr__" in known:
            return None
        raise ConfigError(f"{spec.origin} has no {attribute!r}", hint=suggest(attribute, known) or "define it there")
    function = known[attribute]
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or function.decorator_list:
        return None
    stub = _stub(function)
    taken = _taken(stub, named.offered)
    if not takes(stub, count, keywords := {**taken, **named.own}):
        raise ConfigError(unfit(stub, named.name, count, keywords))
    return set(taken)


def _find(module: str, folder: str) -> ModuleSpec | None:
    """Where a module would come from; the packages around it are not imported."""
    top, *others = module.split(".")
    spec = PathFinder.find_spec(top, [folder])
    if spec is None or spec.loader is None:  # a mere folder of that name hides no installed module
        try:
            spec = importlib.util.find_spec(top) or spec
        except ValueError:
            return spec
    name = top
    for part in others:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec


def _defined(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """The names a module has, with the statements that make them; those in its ``if`` and ``try`` too."""
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield statement.name, statement
            case ast.Import() | ast.ImportFrom():
                for alias in statement.names:
                    yield alias.asname or alias.name.partition(".")[0], statement
            case ast.If() | ast.Try() | ast.With() | ast.For() | ast.While():
                inner = [getattr(statement, part, []) for part in ("body", "orelse", "finalbody")]
                inner += [handler.body for handler in getattr(statement, "handlers", [])]
                for part in inner:
                    # defined under a condition: which of them it will be is not known
                    yield from ((name, statement) for name, _ in _defined(part))
            case _:
                for node in ast.walk(statement):
                    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                        yield node.id, statement


def _stub(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Callable[..., Any]:
    """A function of the same parameters that does nothing; of the user's code none is executed."""
    a = function.args
    none = ast.Constant(None)
    bare = {key: [ast.arg(each.arg) for each in getattr(a, key)] for key in ("posonlyargs", "args", "kwonlyargs")}
    arguments = ast.arguments(
        **bare,
        vararg=ast.arg(a.vararg.arg) if a.vararg else None,
        kwarg=ast.arg(a.kwarg.arg) if a.kwarg else None,
        defaults=[none for _ in a.defaults],
        kw_defaults=[None if each is None else none for each in a.kw_defaults],
    )
    tree = ast.fix_missing_locations(ast.Expression(ast.Lambda(arguments, none)))
    stub: Callable[..., Any] = eval(compile(tree, "<signature>", "eval"))  # noqa: S307 - a lambda without the user's code
    return stub
