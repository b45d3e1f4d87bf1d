"""Functions that a configuration names: found and checked without importing, called with their parameters."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rose_hpc.errors import CallError, ConfigError
from rose_hpc.named import Named, check, check_name

SOURCE = """
import sys
imported = []
def environment(scale): return {"scale": scale}
def update(*values, rate=0.1): return [rate, *values]
def every(*values, **parameters): return parameters
def needs(*values, rate): return rate
async def later(value): return value
def exits(): sys.exit("enough")
class Model:
    def __init__(self): pass
if sys.version_info >= (3,):
    def conditional(anything): return 1
CONSTANT, other = 3, 4
def returns(what): return eval(what)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a module of a name that nothing else has; what was imported from it is forgotten."""
    (tmp_path / "named_walk.py").write_text(SOURCE)
    (tmp_path / "named_broken.py").write_text("import no_such_library\ndef update(): pass\n")
    (tmp_path / "named_syntax.py").write_text("x = 1\ndef update(:\n")
    (tmp_path / "named_package").mkdir()
    (tmp_path / "named_package" / "inner.py").write_text("def f(): return 'inner'\n")
    (tmp_path / "named_package" / "__init__.py").write_text("raise RuntimeError('a package was imported')\n")
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def named(folder: Path, name: str, **parameters: dict[str, object]) -> Named:
    return Named(name if ":" in name else f"named_walk:{name}", str(folder), **parameters)


def test_a_function_gets_its_own_parameters_and_takes_what_is_offered(folder: Path) -> None:
    """Its own it must take; of what is offered, what it has a name for; any with ``**parameters``."""
    offered = {"rate": 0.5, "width": 3}
    assert named(folder, "environment", own={"scale": 2}, offered=offered)() == {"scale": 2}
    assert named(folder, "update", offered=offered)(1, None) == [0.5, 1, None]
    assert named(folder, "every", own={"a": 1}, offered=offered)() == {**offered, "a": 1}
    assert asyncio.run(named(folder, "later")((1, 2))) == [1, 2], "as a record holds it"
    assert str(named(folder, "environment", own={"scale": "x"})) == "named_walk:environment(scale='x')"


@pytest.mark.parametrize(
    ("text", "value"),
    [("(1, 2.5)", [1, 2.5]), ("None", None), ("{'a': [True]}", {"a": [True]}), ("'x' * 1000", "x" * 1000)],
)
def test_values_are_what_a_record_holds(folder: Path, text: str, value: object) -> None:
    """What a record gives back on a resume is what the first run passed on."""
    assert named(folder, "returns", own={"what": text})() == value


def test_numbers_of_numpy_are_numbers(folder: Path) -> None:
    """A reward that numpy computed needs no conversion."""
    value = named(folder, "returns", own={"what": "{'a': __import__('numpy').float32(0.5)}"})()
    assert value == {"a": 0.5}
    assert type(value["a"]) is float
    assert not isinstance(np.float32(0.5), float), "or this test says nothing"


REFUSED = {
    "array": ("__import__('numpy').zeros(3)", "returned a ndarray that no record can hold .*leave the rest in a shard"),
    "lock": ("__import__('threading').Lock()", "returned a lock that no record can hold"),
    "nan": ("float('nan')", "returned a float that no record can hold .*finite numbers"),
    "large": ("'x' * 70000", "returned 70,002 characters, and a record holds 65,536"),
    "itself": ("(lambda a: (a.append(a), a)[1])([])", "returned a list that no record can hold"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_values_that_no_record_holds_are_named(folder: Path, text: str, message: str) -> None:
    """The value's type, why, and where such things go instead."""
    with pytest.raises(CallError, match=message):
        named(folder, "returns", own={"what": text})()


UNCALLABLE = {
    "named_walk:updat": "has no 'updat'; did you mean 'update'",
    "named_walk:CONSTANT": "named_walk:CONSTANT is a int",
    "named_broken:update": "importing named_broken raised ModuleNotFoundError: No module named 'no_such_library'",
    "no_such_module:f": "importing no_such_module raised ModuleNotFoundError",
    "named_syntax:update": "importing named_syntax raised SyntaxError",
    "named_package.inner:f": "importing named_package.inner raised RuntimeError: a package was imported",
    "named_walk:environment": "does not take that; write `def environment\\(\\)`",
}


@pytest.mark.parametrize(("name", "message"), UNCALLABLE.items())
def test_what_cannot_be_called_is_named(folder: Path, name: str, message: str) -> None:
    """In the rank's own words, which go on from "it": cannot be called, and why."""
    with pytest.raises(CallError, match=f"^cannot be called: .*{message}"):
        named(folder, name)()


def test_checking_imports_nothing(folder: Path) -> None:
    """What is right passes, from the source alone: not even the package around a module is imported."""
    before = set(sys.modules)
    check(named(folder, "environment", own={"scale": 1}), 0)
    check(named(folder, "update", offered={"rate": 1, "width": 2}), 5)
    check(named(folder, "later"), 1)
    check(named(folder, "Model"), 0)
    check(named(folder, "conditional"), 7)  # which of its definitions holds is not known
    check(named(folder, "CONSTANT"), 1)
    check(named(folder, "named_package.inner:f"), 0)
    check(named(folder, "numpy:mean"), 1)  # installed elsewhere
    assert not {name for name in set(sys.modules) - before if name.startswith("named_")}


CHECKED = {
    "named_wal:f": (0, {}, "no module 'named_wal' in .*; did you mean 'named_walk'"),
    "named_walk:updates": (0, {}, "named_walk.py has no 'updates'; did you mean 'update'"),
    "named_syntax:update": (0, {}, "named_syntax.py:2: invalid syntax"),
    "named_walk:later": (3, {}, "called with 3 values and does not take that; write `def later\\(\\*values\\)`"),
    "named_walk:environment": (0, {"scal": 1}, "called with scal=... and does not .*`def environment\\(scal\\)`"),
    "named_walk:needs": (2, {}, "named_walk:needs needs rate, and there is no such parameter"),
    "named_package.outer:f": (0, {}, "no module 'named_package.outer'"),
}


@pytest.mark.parametrize(("name", "case"), CHECKED.items())
def test_what_the_source_tells_is_found_at_once(folder: Path, name: str, case: tuple[int, dict, str]) -> None:
    """Before an hour of collecting has passed: modules, names and parameters that are not there."""
    count, own, message = case
    with pytest.raises(ConfigError, match=message):
        check(named(folder, name, own=own), count)


@pytest.mark.parametrize("text", ["walk", "walk:", ":f", "walk.f", "../walk:f", "walk:f()", "wa lk:f", "walk:a.b"])
def test_the_form_of_a_name(text: str) -> None:
    """Anything but module:function is refused."""
    with pytest.raises(ValueError, match="must be of the form"):
        check_name(text)


def test_a_module_of_pythons_own_is_refused() -> None:
    """``queue:f`` would be Python's queue, whatever lies in the folder."""
    with pytest.raises(ValueError, match="'queue', which is a module of Python's own"):
        check_name("queue:f")
    assert check_name(f"{os.path.__name__}_x:f")
