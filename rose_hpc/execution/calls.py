"""Calls of users' functions as bytes: what goes to a host, and what comes out there.

Pickling a function of a program by value costs more than calling it, so a function that has not changed is pickled
once, and a host that knows it does not unpickle it again. Whether it has changed is looked at every time, in
everything it refers to: its code, the variables of its closure and its module, and those of the functions among them.
Where one of these could change without our seeing it (a list, an object), it is pickled every time, as it is then.
What has ``is_constant`` never changes.

On the wire: a byte that says whether the host may keep the function, the length of its pickle in four, that pickle,
and the pickle of ``(args, kwargs)``, empty where there are none. It travels over our own sockets alone.
"""

from __future__ import annotations

import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle

Call = tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]

_HEAD = struct.Struct("!?I")
#: a host keeps so many functions, each of at most so many bytes
_KEPT, _KEPT_BYTES = 512, 64 * 1024


class _ChangingError(Exception):
    """Something that may change without our seeing it."""


class Packer:
    """The driver's side."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, Any, bytes]] = {}  # by id: the function itself, what it was, its pickle

    def pack(self, call: Call) -> bytes:
        """The bytes of a call.

        Raises:
            Exception: whatever pickling users' functions and values raises.
        """
        function, args, kwargs = call
        pickled, keeps = self._pickled(function)
        values = cloudpickle.dumps((args, kwargs)) if args or kwargs else b""
        return b"".join((_HEAD.pack(keeps, len(pickled)), pickled, values))

    def _pickled(self, function: Any) -> tuple[bytes, bool]:
        try:
            now = None if getattr(function, "is_constant", False) else _seen(function, {})
        except _ChangingError:
            return cloudpickle.dumps(function), False
        known = self._known.get(id(function))
        if known is None or known[1] != now:
            known = self._known[id(function)] = (function, now, cloudpickle.dumps(function))
        return known[2], len(known[2]) <= _KEPT_BYTES


class Unpacker:
    """A host's side."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Callable[..., Any]] = OrderedDict()

    def unpack(self, data: bytes) -> Call:
        """The call that :meth:`Packer.pack` made these bytes of; the same function for the same bytes, if it may be.

        Raises:
            Exception: whatever unpickling users' functions and values raises.
        """
        keeps, length = _HEAD.unpack_from(data)
        pickled, values = data[_HEAD.size : _HEAD.size + length], data[_HEAD.size + length :]
        function = self._known.get(pickled) if keeps else None
        if function is None:
            function = cloudpickle.loads(pickled)
            if keeps:
                self._known[pickled] = function
                if len(self._known) > _KEPT:
                    self._known.popitem(last=False)
        args, kwargs = cloudpickle.loads(values) if values else ((), {})
        return function, args, kwargs


def _seen(value: Any, known: dict[int, int]) -> Any:
    """What a value is: equal as long as its pickle would be.

    Args:
        value: a function, or what it refers to.
        known: functions that are being looked at, numbered: they may refer to themselves.

    Raises:
        _ChangingError: nobody can tell.
    """
    kind = type(value)
    if value is None or value is ... or kind in (bool, int, str, bytes):
        return kind, value
    if kind in (float, complex):
        return kind, repr(value)  # tells 0.0 from -0.0, and a NaN is itself
    if kind in (tuple, frozenset):
        return kind, [_seen(each, known) for each in value]
    if _is_named(value):
        return id(value), [value]  # held, so that nothing else gets its id
    if kind is not FunctionType:
        raise _ChangingError
    if id(value) in known:
        return kind, known[id(value)]
    known[id(value)] = len(known)
    code, around = value.__code__, value.__globals__
    used = [name for name in _names(code) if name in around]
    more = [tuple(pairs.items()) if pairs else None for pairs in (value.__kwdefaults__, vars(value))]
    cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    parts = [value.__defaults__, *more, *(around[name] for name in used), *cells]
    seen = [part if part is None else _seen(part, known) for part in parts]
    return code, value.__qualname__, value.__module__, used, seen


def _is_named(value: Any) -> bool:
    """Whether it is pickled as a name: a module, or what is found in a module under its own name."""
    if cloudpickle.list_registry_pickle_by_value():
        return False
    if isinstance(value, ModuleType):
        return value.__name__ != "__main__" and sys.modules.get(value.__name__) is value
    if not isinstance(value, FunctionType | BuiltinFunctionType | type) or value.__module__ in (None, "__main__"):
        return False
    return getattr(sys.modules.get(value.__module__), value.__qualname__, None) is value


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty one raises
    except ValueError:
        return False
    return True


@lru_cache(maxsize=4096)
def _names(code: CodeType) -> tuple[str, ...]:
    """The names that code and the code in it may look up in its module; more than it does, but none less."""
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    return tuple(dict.fromkeys((*code.co_names, *inner)))
