"""Calls as bytes: a function that has not changed is pickled once; one that has, however little, is never missed."""

from __future__ import annotations

import functools
import itertools
import json
import math
import types
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from rose_hpc.execution.calls import Packer, Unpacker
from rose_hpc.named import Named


def program(source: str, **variables: Any) -> dict[str, Any]:
    """The variables of a program after ``source``: its functions are pickled by value."""
    namespace: dict[str, Any] = {"__name__": "__main__", **variables}
    run(source, namespace)
    return namespace


def run(source: str, variables: dict[str, Any]) -> None:
    """Let a program of those variables go on."""
    exec(source, variables)  # noqa: S102 - functions of no module are what this is about


def result(packed: bytes) -> Any:
    """What a process that knows nothing yet makes of a call."""
    function, args, kwargs = Unpacker().unpack(packed)
    return function(*args, **kwargs)


CHANGES: dict[str, tuple[str, Any, Any]] = {
    "number": ("def f(): return x", 1, 2),
    "type of a number": ("def f(): return x", 1, 1.0),
    "bool": ("def f(): return x", 1, True),
    "sign of zero": ("def f(): return x", 0.0, -0.0),
    "text": ("def f(): return x", "a", "b"),
    "in a tuple": ("def f(): return x", (1, ("a", 2)), (1, ("a", 3))),
    "named function": ("def f(): return x", math.sin, math.cos),
    "module": ("def f(): return x", math, json),
    "inner function": ("def f():\n  def inner(): return x\n  return inner()", 1, 2),
    "comprehension": ("def f(): return [x for _ in range(2)]", 1, 2),
    "function that it calls": ("def g(): return x\ndef f(): return g()", 1, 2),
    "default": ("def f(y=0): return x", 1, 2),
}


@pytest.mark.parametrize(("source", "before", "after"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(source: str, before: Any, after: Any) -> None:
    """What the function refers to is sent as it is at every call; unchanged, the very same bytes are."""
    packer, variables = Packer(), program(source, x=before)
    first = packer.pack((variables["f"], (), {}))
    assert packer.pack((variables["f"], (), {}))[:5] == first[:5]
    assert packer._known[id(variables["f"])][2] is packer._pickled(variables["f"])[0]
    variables["x"] = after
    changed = packer.pack((variables["f"], (), {}))
    assert repr(result(changed)) == repr(variables["f"]())
    assert repr(result(changed)) != repr(result(first))


MUTATIONS: dict[str, tuple[str, str]] = {
    "list": ("x = [1]\ndef f(): return list(x)", "x.append(2)"),
    "dict in a tuple": ("x = ({},)\ndef f(): return dict(x[0])", "x[0]['a'] = 1"),
    "object": ("class X: pass\nx = X(); x.y = 1\ndef f(): return x.y", "x.y = 2"),
    "class": ("class X: y = 1\ndef f(): return X.y", "X.y = 2"),
    "closure": ("def make():\n  y = []\n  def f(): return list(y)\n  return f, y\nf, y = make()", "y.append(1)"),
    "default": ("def f(x=[1]): return list(x)", "f.__defaults__[0].append(2)"),
    "keyword default": ("def f(*, x=1): return x", "f.__kwdefaults__['x'] = 2"),
    "attribute": ("def f(): return 1\nf.x = 1\ndef g(): return f.x", "f.x = 2"),
    "code": ("def f(): return 1\ndef h(): return 2", "f.__code__ = h.__code__"),
    "variable of a closure": (
        "def make():\n  y = 1\n  def f(): return y\n  def change():\n    nonlocal y\n    y = 2\n  return f, change\n"
        "f, change = make()",
        "change()",
    ),
    "a variable that comes later": ("def f():\n  try: return x\n  except NameError: return None", "x = 1"),
}


@pytest.mark.parametrize(("source", "mutation"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_mutation_is_seen(source: str, mutation: str) -> None:
    """Nothing that changes in place, in the program, is sent as it was before."""
    packer, variables = Packer(), program(source)
    function = variables.get("g", variables["f"])
    before = result(packer.pack((function, (), {})))
    assert before == function()
    run(mutation, variables)
    assert result(packer.pack((function, (), {}))) == function() != before


def test_what_may_change_in_place_is_not_kept() -> None:
    """A list that a call has changed is as it was sent at the next one."""
    variables = program("x = []\ndef f():\n  x.append(1)\n  return list(x)")
    packed, host = Packer().pack((variables["f"], (), {})), Unpacker()
    for _ in range(2):
        function, _, _ = host.unpack(packed)
        assert function() == [1]


def test_a_host_keeps_what_it_knows() -> None:
    """A simulator that a function has made stays: the same bytes are the same function."""
    variables = program(
        "def f():\n  global simulator\n  simulator = globals().get('simulator', 0) + 1\n  return simulator"
    )
    packer, host = Packer(), Unpacker()
    for expected in (1, 2, 3):
        function, args, kwargs = host.unpack(packer.pack((variables["f"], (), {})))
        assert function(*args, **kwargs) == expected


def test_a_host_keeps_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand environments are no leak; neither are large functions, which are sent anew each time."""
    monkeypatch.setattr("rose_hpc.execution.calls._KEPT", 3)
    packer, host = Packer(), Unpacker()
    functions = [program(f"def f(): return {n}")["f"] for n in range(10)]
    for function in itertools.chain(functions, functions):
        called, _, _ = host.unpack(packer.pack((function, (), {})))
        assert called() == function()
        assert len(host._known) <= 3
    large = program("def f(): return len(x)", x="x" * 100_000)["f"]
    assert host.unpack(packer.pack((large, (), {})))[0]() == 100_000
    assert len(host._known) == 3


def test_recursion_ends() -> None:
    """Functions that refer to themselves and to each other are looked at once."""
    variables = program("def f(n=5): return g(n) if n else x\ndef g(n): return f(n - 1)", x=1)
    packer = Packer()
    assert result(packer.pack((variables["f"], (), {}))) == 1
    variables["x"] = 2
    assert result(packer.pack((variables["f"], (), {}))) == 2


@pytest.mark.parametrize("call", [(print, (), {}), (len, ([1, 2],), {}), (max, (1, 2), {"key": abs})])
def test_values_travel(call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]) -> None:
    """Arguments and keywords come out as they went in, and none as none."""
    assert Unpacker().unpack(Packer().pack(call)) == call


def test_other_callables_are_sent_each_time() -> None:
    """Partial functions and bound methods of a program may change, so they are pickled as they are."""
    packer = Packer()
    values = [1]
    partial = functools.partial(sum, values)
    assert result(packer.pack((partial, (), {}))) == 1
    values.append(2)
    assert result(packer.pack((partial, (), {}))) == 3
    assert result(packer.pack((values.copy, (), {}))) == [1, 2]


def test_named_functions_are_pickled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration's function never changes."""
    packer, named = Packer(), Named("json:dumps", "/", {"obj": [1]})
    first = packer.pack((named, (), {}))
    monkeypatch.setattr(cloudpickle, "dumps", None)
    assert packer.pack((named, (), {})) == first
    monkeypatch.undo()
    assert result(first) == "[1]"


def test_modules_that_were_made_by_hand_are_sent_each_time() -> None:
    """A module that no other process could import is pickled as it is."""
    module = types.ModuleType("worked_on")
    run("def f(): return 1", vars(module))
    variables = program("def f(): return module.f()", module=module)
    packer = Packer()
    assert result(packer.pack((variables["f"], (), {}))) == 1
    run("def f(): return 2", vars(module))
    assert result(packer.pack((variables["f"], (), {}))) == 2
