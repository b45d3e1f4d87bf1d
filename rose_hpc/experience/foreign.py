"""Files nobody trusts, parsed in a child process: what HDF5 does with them, crashing included, stays there.

``python -m rose_hpc.experience.foreign`` is that child. It limits its own memory, time and files before it loads HDF5,
reads one request from its standard input, and answers with one line per file.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rose_hpc import errors
from rose_hpc.errors import DamagedError, ExperienceError, FormatError, RoseHpcError
from rose_hpc.experience.files import publishing
from rose_hpc.experience.schema import ShardInfo
from rose_hpc.refusals import cause_of, next_step

#: what the child finds in its environment besides ours: no plugins of HDF5, which looks into their folder for whatever
#: it cannot open (and does so with them turned off, too), and no threads that nobody needs
_NO_PLUGINS = {"HDF5_PLUGIN_PRELOAD": "::", "HDF5_PLUGIN_PATH": "/dev/null"}
#: characters of what a file says of itself: the description of a bank of a hundred thousand shards has ten million
_MOST_ANSWERED = 64 * 1024 * 1024
_ENVIRONMENT = {**_NO_PLUGINS, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Limits:
    """What a child may use.

    Attributes:
        memory_mb: address space.
        seconds: of the clock, for everything it was asked for.
        file_mb: the largest file it may write; 0 where it has none to write.
    """

    memory_mb: int = 4096
    seconds: int = 60
    file_mb: int = 0


def read_foreign(paths: Sequence[str | Path], limits: Limits | None = None) -> list[ShardInfo]:
    """What files say of themselves, as :func:`rose_hpc.experience.format.examine` has it.

    Raises:
        FormatError, SchemaError, DamagedError: as ``examine`` does; a DamagedError also for a file that HDF5 crashed
            on or was not done with in time. All damaged files are named at once.
    """
    limits = limits or Limits(seconds=60 + len(paths) // 10)
    waiting, infos = [Path(path) for path in paths], []
    damaged: list[DamagedError] = []
    while waiting:
        answers, end = _ask({"op": "info", "paths": [str(path) for path in waiting]}, limits)
        for answer in answers:
            path = waiting.pop(0)
            try:
                infos.append(ShardInfo.from_json(_value(answer)))
            except DamagedError as error:
                damaged.append(error)
            except (KeyError, TypeError, ValueError) as error:
                if isinstance(error, RoseHpcError):
                    raise
                damaged.append(_unparsable(path, "its description does not parse"))
        if waiting and end:
            damaged.append(_unparsable(waiting.pop(0), end))
    if damaged:
        raise DamagedError(
            "; ".join(error.message for error in damaged),
            paths=[path for error in damaged for path in error.paths],
            hint=damaged[0].hint,
        )
    return infos


def import_foreign(source: Path, output: Path, attributes: Mapping[str, Any] | None = None) -> ShardInfo:
    """Make a shard of an HDF5 file with columns at its root, or of a Minari dataset. The source is never changed.

    Raises:
        ExperienceError: as sealing and :func:`rose_hpc.experience.exchange.import_minari` do; a DamagedError also for a
            file that HDF5 crashed on.
    """
    limits = Limits(seconds=3600, file_mb=1024 * 1024)
    with publishing(output, fsync=True) as scratch, _folder_beside(output) as folder:
        made = Path(folder) / output.name  # whatever else the child leaves when it crashes goes with the folder
        request = {"op": "import", "paths": [str(source)], "output": str(made), "attributes": dict(attributes or {})}
        answers, end = _ask(request, limits)
        if not answers:
            raise _unparsable(source, end or "the parser said nothing")
        try:
            info = ShardInfo.from_json(_value(answers[0]))
        except ExperienceError as error:  # people know the output, not where it was made
            error.message = error.message.replace(str(made), str(output))
            raise
        made.rename(scratch)
    return replace(info, path=output, shard_names=(output.stem,))


def _folder_beside(path: Path) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", ignore_cleanup_errors=True
    )


def _unparsable(path: Path, what: str) -> DamagedError:
    return DamagedError(f"{path} is damaged: {what}", paths=[str(path)], hint="it was parsed in a process of its own")


def _value(answer: dict[str, Any]) -> Any:
    """What the child found, or the error that it raised."""
    if "value" in answer:
        return answer["value"]
    kind = getattr(errors, str(answer.get("error")), ExperienceError)
    if not issubclass(kind, ExperienceError):
        kind = ExperienceError
    more = {"paths": answer.get("paths", ())} if kind is DamagedError else {}
    raise kind(str(answer.get("message")), hint=str(answer.get("hint") or ""), **more)


def _ask(request: dict[str, Any], limits: Limits) -> tuple[list[dict[str, Any]], str]:
    """The child's answers, in order, and how it ended; empty when it answered all."""
    request = {**request, "memory_mb": limits.memory_mb, "seconds": limits.seconds, "file_mb": limits.file_mb}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "rose_hpc.experience.foreign"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # HDF5 and the allocator's last words; the answers say what matters
        env={**os.environ, **_ENVIRONMENT},
    ) as child:
        late = False
        try:
            output, _ = child.communicate(json.dumps(request).encode(), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            late = True
            child.kill()
            output, _ = child.communicate()
    answers = [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith(b"\n")]
    if len(answers) == len(request["paths"]):
        return answers, ""
    if late or child.returncode == -signal.SIGXCPU:
        return answers, f"it was not parsed within {limits.seconds} s"
    code = child.returncode
    how = signal.Signals(-code).name if code < 0 else f"exit {code}"
    return answers, f"parsing it ended with {how}"


# -- the child ---------------------------------------------------------------------------------------------------------


def _limit(request: dict[str, Any]) -> None:
    """Limits hold from here on, for everything that is loaded too."""
    wanted = {
        resource.RLIMIT_AS: request["memory_mb"] * 2**20,
        resource.RLIMIT_CPU: request["seconds"],
        resource.RLIMIT_FSIZE: request["file_mb"] * 2**20,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _answer(request: dict[str, Any], path: str) -> dict[str, Any]:
    from rose_hpc.experience.format import examine

    try:
        info = _import(request, Path(path)) if request["op"] == "import" else examine(path)
        return {"value": info.to_json()}
    except ExperienceError as error:
        facts = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
        return {**facts, "paths": list(error.paths) if isinstance(error, DamagedError) else []}
    except OSError as error:
        return {**_damaged(path, f"the parser was refused what it needs: {cause_of(error)}"), "hint": next_step(error)}
    except (MemoryError, RecursionError, OverflowError) as error:
        return _damaged(path, f"parsing it was more than it may be ({type(error).__name__})")


def _damaged(path: str, what: str) -> dict[str, Any]:
    return {"error": "DamagedError", "message": f"{path} is damaged: {what}", "hint": "", "paths": [path]}


def _import(request: dict[str, Any], source: Path) -> ShardInfo:
    from rose_hpc.experience import exchange
    from rose_hpc.experience.shard import seal

    output = Path(request["output"])
    if folder := exchange.find_minari(source):
        return exchange.import_minari(folder, output, request["attributes"])
    if not source.is_file():
        raise FormatError(f"{source} is neither a file nor a Minari dataset", hint="name an HDF5 file, or its folder")
    shutil.copyfile(source, output)
    try:
        return seal(output, attributes=request["attributes"], fsync=False)
    except ExperienceError as error:  # people know the source, not the copy
        error.message = error.message.replace(str(output), str(source))
        raise


def main() -> None:
    """Answer one request."""
    request = json.loads(sys.stdin.buffer.read())
    _limit(request)
    for path in request["paths"]:
        text = json.dumps(_answer(request, path))
        if len(text) > _MOST_ANSWERED:  # the caller would have to hold it
            text = json.dumps(_damaged(path, f"it says more of itself than {_MOST_ANSWERED:,} characters"))
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
