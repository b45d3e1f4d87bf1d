"""Opens a corpus (:func:`corpus.write_corpus`) in every way there is: ``python open_hostile.py FOLDER`` prints counts.

What is left when it ends is what a crash of the caller would have prevented.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rose_hpc.errors import ExperienceError
from rose_hpc.experience import foreign
from rose_hpc.experience.bank import ExperienceBank
from rose_hpc.experience.check import verify
from rose_hpc.experience.format import read_info
from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.summary import episodes_of, parts_of

#: folders of the system and of Python, which children need to start
SYSTEM = (
    "/proc/",
    "/sys/",
    "/dev/",
    "/usr/",
    "/lib",
    "/etc/ld.so.cache",
    "/etc/localtime",
    sys.prefix,
    sys.base_prefix,
)
#: HDF5 looks into its own plugin folder for whatever it cannot open; it is told not to, as it is in our child
NO_PLUGINS = {"HDF5_PLUGIN_PRELOAD": "::", "HDF5_PLUGIN_PATH": "/dev/null"}


def look(path: Path) -> None:
    """As an update that gets it, and as ``inspect --check`` would, but in this process."""
    info = read_info(path)
    episodes = episodes_of(info)
    parts_of(info, episodes)
    with ExperienceBank.open(path) as opened:
        if len(opened):
            opened.sample(4, rng=0)
    verify(info)


def merge(good: Path, path: Path, bank: Path) -> bool:
    """Whether any row of it comes into a bank."""
    return merge_shards([good, path], bank).rows > read_info(good).rows


def attempt(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether that goes well; not for an error of ours in one line; anything else ends this process."""
    try:
        return function(*arguments) is not False
    except ExperienceError as error:
        if "\n" in str(error):
            raise
        return False


def ask(operation: str, paths: list[Path], output: Path) -> Counter[str]:
    """What the child says of each: how often a value, which error, or its own end."""
    waiting, said = list(paths), Counter[str]()
    while waiting:
        request = {"op": operation, "paths": [str(path) for path in waiting], "output": str(output), "attributes": {}}
        answers, end = foreign._ask(request, foreign.Limits(seconds=60 + len(waiting), file_mb=64))
        said.update("fine" if "value" in answer else str(answer["error"]) for answer in answers)
        del waiting[: len(answers)]
        if waiting and end:
            said[re.sub(r"\d+ s", "N s", end)] += 1
            del waiting[0]
    return said


def main(base: Path) -> None:
    good, bank, output = base / "good.h5", base / "out" / "bank.h5", base / "out" / "imported.h5"
    paths = sorted((base / "m").iterdir())
    (base / "out").mkdir()
    attempt(look, good)  # everything that is imported late is now here
    attempt(merge_shards, [good], bank)
    ask("info", [good], output)
    open(base / "good.h5").close()  # the mark: from here on, nothing but these files may be opened
    opened = sum(attempt(look, path) for path in paths)
    merged = sum(attempt(merge, good, path, bank) for path in paths)
    inspected, imported = ask("info", paths, output), ask("import", paths, output)
    left = sorted(path.name for path in (base / "out").iterdir())
    print(json.dumps([len(paths), opened, merged, inspected, imported, left]))


def run(base: Path, traced: bool) -> tuple[dict[str, Any], set[str]]:
    """Run this as a process of its own; the counts, and what else was opened, as the kernel saw it.

    Raises:
        RuntimeError: it crashed.
        TimeoutExpired: it hangs.
    """
    log = base / "opened"
    calls = "trace=open,openat,openat2,creat,execve"
    strace = ["strace", "-f", "-qq", "-s", "4096", "-e", calls, "-e", "signal=none", "-o", str(log)] if traced else []
    command = [*strace, sys.executable, __file__, str(base)]
    env, patience = {**os.environ, **NO_PLUGINS}, 300 + sum(1 for _ in (base / "m").iterdir())
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=patience)
    if done.returncode != 0:
        raise RuntimeError(f"exit {done.returncode}: {done.stderr[-2000:]}")
    names = ("files", "opened", "merged", "inspected", "imported", "left")
    return dict(zip(names, json.loads(done.stdout), strict=True)), _strangers(base, log) if traced else set()


def _strangers(base: Path, log: Path) -> set[str]:
    lines = log.read_text(errors="replace").splitlines()
    mark = next(k for k, line in enumerate(lines) if f"{base}/good.h5" in line and "O_RDONLY|O_CLOEXEC)" in line)
    later = {line.split('"')[1] for line in lines[mark:] if line.count('"') >= 2}
    ours = tuple(str(base / name) for name in ("m", "good.h5", "out"))
    imported = tuple(path for path in sys.path if path)
    # Python asks `uname`, wherever the PATH has it, what machine this is
    return {path for path in later if not path.startswith((*ours, *SYSTEM, *imported)) and not path.endswith("/uname")}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
