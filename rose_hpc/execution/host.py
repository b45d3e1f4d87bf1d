"""The host: a resident Python process that calls users' functions, or seals and merges for the supervisor.

``python -m rose_hpc.execution.host FD`` answers requests, one at a time, over the socket FD it inherited from its
supervisor. What is pickled comes over that socket alone. It ends when the socket ends. With ``--service`` it imports
the data plane at once, so that the first shard does not wait for it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rose_hpc import failpoints
from rose_hpc.errors import CallError, DamagedError, FormatError, RoseHpcError
from rose_hpc.execution import memory
from rose_hpc.execution.attempt import READ_ONCE, TASK_VARIABLES
from rose_hpc.execution.frames import MOST_BYTES, Receiver, pack
from rose_hpc.refusals import words_of

if TYPE_CHECKING:
    from rose_hpc.execution.calls import Unpacker

Answer = tuple[dict[str, Any], bytes]

_KEYS = {name: name.encode() for name in TASK_VARIABLES}
_BEGAN_WITH = {name: os.environ[name] for name in READ_ONCE if name in os.environ}


def call(message: Mapping[str, Any], payload: bytes) -> Answer:
    """Call the function in ``payload``; the answer's payload is its value."""
    import cloudpickle  # here: a host that only seals and merges needs none

    for entry in message.get("path", ()):
        if entry not in sys.path:
            sys.path.append(entry)
    _set_variables(message["env"])
    os.chdir(message["cwd"])
    failpoints.hit("function-received")
    try:
        function, args, kwargs = _unpacker().unpack(payload)
    except Exception as error:
        raise CallError(f"cannot be called here: it does not unpickle ({words_of(error)})") from error
    value = run_function(function, args, kwargs)
    failpoints.hit("function-returned")
    try:
        pickled = cloudpickle.dumps(value)
    except Exception as error:
        what = f"{type(value).__name__} that cannot be sent back ({words_of(error)})"
        raise CallError(f"returned a {what}: leave it in a file") from error
    if len(pickled) >= MOST_BYTES:
        raise CallError(f"returned {len(pickled):,} bytes, which is too large to send back: leave it in a file")
    return {"ok": True}, pickled


def _set_variables(variables: Mapping[str, str]) -> None:
    """A task's variables, and none of another's; those that are the same already are left alone."""
    now = os.environ._data  # type: ignore[attr-defined]  # as bytes: os.environ itself takes longer than many a task
    for name, key in _KEYS.items():
        if name not in variables and key in now:
            del os.environ[name]
    for name, value in {**_BEGAN_WITH, **variables}.items():
        if now.get(name.encode()) != os.fsencode(value):
            os.environ[name] = value


@cache
def _unpacker() -> Unpacker:
    from rose_hpc.execution.calls import Unpacker

    return Unpacker()


def run_function(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The value of a function or of a coroutine function."""
    value = function(*args, **kwargs)
    return _result(value) if inspect.isawaitable(value) else value


def _result(value: Awaitable[Any]) -> Any:
    import asyncio  # here: a rank is smaller without it

    async def awaited() -> Any:
        return await value

    return asyncio.run(awaited())


def seal(message: Mapping[str, Any]) -> Answer:
    """Seal the shard a task left."""
    from rose_hpc.experience import shard

    failpoints.hit("seal-begun")
    info = shard.seal(message["shard"], attributes=message["attributes"], fsync=True)
    failpoints.hit("sealed")
    return {"ok": True, "info": info.to_json()}, b""


def merge(message: Mapping[str, Any]) -> Answer:
    """Reduce shards to a bank, if they are the ones that were recorded; or do one part of that."""
    from rose_hpc.experience.merge import merge_shards
    from rose_hpc.experience.parts import Parts
    from rose_hpc.experience.stream import Stream

    began, bank, phase = time.monotonic(), Path(message["bank"]), message["phase"]
    attributes, workers = message["attributes"], message["workers"]
    parts, number, count = Parts(bank), message.get("part", 0), message.get("parts", 1)
    stream = Stream(bank, verify=message["verify"], fsync=message["fsync"])
    how = {"verify": message["verify"], "workers": workers, "fsync": message["fsync"]}
    if phase == "begin":
        plan = parts.begin(_recorded(message["shards"]), late="iteration" in attributes)
        sys.stdout.write(f"{len(plan.sources)} shards, {plan.rows} rows, {plan.bytes} bytes to copy\n")
        return {"ok": True, "info": None}, b""
    if phase == "copy":
        parts.copy(parts.draft(), number, count, **how)
        return {"ok": True, "info": None}, b""
    if phase == "stream":
        stream.copy(message["rows"], dict(zip(message["numbers"], _recorded(message["shards"]), strict=True)), workers)
        seconds = time.monotonic() - began
        sys.stdout.write(f"{len(message['numbers'])} of {len(message['rows'])} shards, {seconds:.3f} s\n")
        return {"ok": True, "info": None}, b""
    if phase == "finish":
        info = parts.finish(count, attributes=attributes, **how)
        for node, seconds in parts.report(count):
            sys.stdout.write(f"{node}: its part in {seconds:.3f} s\n")
    elif phase == "stream-end":
        info = stream.finish(_recorded(message["shards"]), attributes, workers)
    else:
        info = merge_shards(_recorded(message["shards"]), bank, attributes=attributes, **how)
    return _merged(message, info, time.monotonic() - began)


def _merged(message: Mapping[str, Any], info: Any, seconds: float) -> Answer:
    from rose_hpc.experience.episodes import returns_of

    sys.stdout.write(f"{message['way']}: {info.rows} rows, {info.bytes} bytes, {seconds:.3f} s\n")
    return {"ok": True, "info": info.to_json() | {"returns": returns_of(info)}}, b""


def fetch(message: Mapping[str, Any]) -> Answer:
    """Copy a policy to this node."""
    from rose_hpc.execution import nearby

    return {"ok": True, "info": nearby.fetch(message)}, b""


def _recorded(shards: Mapping[str, str]) -> list[Any]:
    """What the shards say of themselves, which the merge then holds their bytes against.

    Raises:
        DamagedError: naming all that are not there, not readable, or other shards than those of ``shards``' digests.
    """
    from rose_hpc.experience.format import read_info

    infos, errors = [], {}
    for path, digest in shards.items():
        try:
            infos.append(info := read_info(path))
            if info.digest != digest:
                errors[path] = f"{path} is not the shard that was recorded"
        except (DamagedError, FormatError) as error:
            errors[path] = error.message
    if errors:
        raise DamagedError("; ".join(errors.values()), paths=list(errors), hint="nothing was merged")
    return infos


def answer(message: Mapping[str, Any], payload: bytes) -> Answer:
    """Do what was asked; every failure is an answer."""
    operation = message["op"]
    try:
        if operation == "function":
            return call(message, payload)
        return {"seal": seal, "merge": merge, "fetch": fetch}[operation](message)
    except CallError as error:
        traceback.print_exception(error)  # into the attempt's log
        return {"ok": False, "reason": "error", "message": error.message}, b""
    except (RoseHpcError, OSError) as error:
        if operation == "function":
            return _raised(error)
        if operation == "seal":
            return {"ok": False, "reason": "shard", "message": f"left a shard that cannot be used: {error}"}, b""
        reason, paths = ("damaged", list(error.paths)) if isinstance(error, DamagedError) else ("merge", [])
        return {"ok": False, "reason": reason, "message": str(error), "paths": paths}, b""
    except SystemExit as error:
        return {"ok": False, "reason": "error", "message": f"called sys.exit({error.code!r})"}, b""
    except BaseException as error:  # noqa: BLE001 - whatever a user's function raises is its answer
        return _raised(error)


def _raised(error: BaseException) -> Answer:
    traceback.print_exception(error)  # into the attempt's log
    return {"ok": False, "reason": "error", "message": f"raised {words_of(error)}"}, b""


def main(fd: int, service: bool) -> None:
    """Answer until the supervisor is gone."""
    control = socket.socket(fileno=fd)
    if service:
        importlib.import_module("rose_hpc.experience.merge")
    receiver = Receiver(control)
    while (frame := receiver.next()) is not None:
        memory.forget_peak()
        message, payload = answer(*frame)
        message["max_rss_mb"], message["rss_mb"] = memory.peak_and_now_mb()
        with suppress(AttributeError, ValueError, OSError):  # a function may have closed or replaced them
            sys.stdout.flush()
            sys.stderr.flush()
        control.sendall(pack(message, payload))


if __name__ == "__main__":
    main(int(sys.argv[1]), "--service" in sys.argv[2:])
