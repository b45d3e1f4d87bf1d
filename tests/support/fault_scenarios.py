"""What may be interrupted by a failing system call: how things were, what is done, and how things may be afterwards.

Run as a script with ``LD_PRELOAD=failing_calls.so``, see :func:`run`: calls fail in every way, and each time the old
state or the new one must be there.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
from failing_calls import FAILURES, HICCUPS, Fault, arm, disarm, what_failed

from rose_hpc import publishing
from rose_hpc.errors import RoseHpcError
from rose_hpc.experience import buffers
from rose_hpc.experience.check import verify
from rose_hpc.experience.exchange import export_minari
from rose_hpc.experience.format import read_info
from rose_hpc.experience.merge import merge_shards
from rose_hpc.experience.parts import Parts
from rose_hpc.experience.shard import ShardWriter, seal
from rose_hpc.journal import Journal, read_journal


@dataclass(frozen=True)
class Scenario:
    """One thing that is done to files.

    Attributes:
        prepare: brings a folder into the old state.
        act: does it.
        again: what somebody else does each time before it.
        look: what is there: ``old`` or ``new``; an AssertionError for anything else.
    """

    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    look: Callable[[Path], str]
    again: Callable[[Path], None] = lambda folder: None


def visible(folder: Path) -> set[str]:
    """What a folder holds but for scratch: names that begin with a dot and end with .tmp are nobody's."""
    return {path.name for path in folder.iterdir() if not (path.name.startswith(".") and path.name.endswith(".tmp"))}


def one_of(found: object, old: object, new: object) -> str:
    """Which of the two it is."""
    assert found in (old, new), f"neither the old state nor the new: {found}"
    return "old" if found == old else "new"


# -- shards and banks --------------------------------------------------------------------------------------------------


def columns(value: float, rows: int = 7) -> dict[str, np.ndarray]:
    """Rows that are easily told from others."""
    ended = np.arange(rows) % 3 == 2
    observations, rewards = np.full((rows, 3), value, np.float32), np.arange(rows) * value
    return {"observations": observations, "rewards": rewards, "terminations": ended}


def write_shard(path: Path, value: float, rows: int = 7) -> None:
    with ShardWriter(path, attributes={"environment": path.stem, "iteration": 0}) as writer:
        writer.extend(**columns(value, rows))


def mean_of(path: Path) -> float | None:
    """The value that a shard's or bank's observations have, every byte verified; None without a file."""
    if not path.exists():
        return None
    info = read_info(path)
    verify(info)
    return float(info.columns["observations"].stats.mean[0])


def shard(old: bool) -> Scenario:
    def prepare(folder: Path) -> None:
        if old:
            write_shard(folder / "a.h5", 1.0)

    def look(folder: Path) -> str:
        assert visible(folder) <= {"a.h5"}
        return one_of(mean_of(folder / "a.h5"), 1.0 if old else None, 2.0)

    return Scenario(prepare, lambda folder: write_shard(folder / "a.h5", 2.0), look)


def spilled_shard() -> Scenario:
    """One whose rows do not fit into the memory they may take."""

    def act(folder: Path) -> None:
        writer = ShardWriter(folder / "a.h5")
        writer._store = buffers.Store(folder, limit=0)
        with writer:
            writer.extend(**columns(2.0))

    def look(folder: Path) -> str:
        assert visible(folder) <= {"a.h5"}
        return one_of(mean_of(folder / "a.h5"), None, 2.0)

    return Scenario(lambda folder: None, act, look)


def write_foreign(path: Path, **options: object) -> None:
    """As another program would."""
    with h5py.File(path, "w") as file:
        for name, array in columns(2.0).items():
            file.create_dataset(name, data=array.astype("i1") if array.dtype == bool else array, **options)


def sealed() -> Scenario:
    """A foreign file becomes a shard. It is a rank's scratch: half sealed it is no shard, and the rank runs again."""

    def again(folder: Path) -> None:
        with h5py.File(folder / "a.h5", "w") as file:
            file.update(columns(2.0))

    def look(folder: Path) -> str:
        assert visible(folder) <= {"a.h5"}
        try:
            return one_of(mean_of(folder / "a.h5"), None, 2.0)
        except RoseHpcError:
            return "old"  # not a shard: whoever sealed it was told that it is none

    return Scenario(lambda folder: None, lambda folder: seal(folder / "a.h5", attributes={"seed": 1}), look, again)


def rewritten() -> Scenario:
    """A foreign file that sealing has to write anew."""

    def prepare(folder: Path) -> None:
        write_foreign(folder / "a.h5", chunks=True)

    def look(folder: Path) -> str:
        assert visible(folder) <= {"a.h5"}
        with h5py.File(folder / "a.h5") as file:
            if file["rewards"].chunks:
                assert (file["observations"][()] == 2.0).all()
                return "old"
        return one_of(mean_of(folder / "a.h5"), None, 2.0)

    return Scenario(prepare, lambda folder: seal(folder / "a.h5", attributes={"seed": 1}), look)


def bank(old: bool, check: bool, fsync: bool = True, workers: int = 1) -> Scenario:
    def prepare(folder: Path) -> None:
        for name, rows in (("a", 7), ("b", 0), ("c", 5)):
            write_shard(folder / f"{name}.h5", 2.0, rows)
        if old:
            write_shard(folder / "old.h5", 1.0)
            merge_shards([folder / "old.h5"], folder / "bank.h5")
            (folder / "old.h5").unlink()

    def act(folder: Path) -> None:
        paths = [folder / f"{name}.h5" for name in "abc"]
        merge_shards(paths, folder / "bank.h5", verify=check, fsync=fsync, workers=workers)

    def look(folder: Path) -> str:
        assert visible(folder) - {"bank.h5"} == {"a.h5", "b.h5", "c.h5"}
        assert [mean_of(folder / name) for name in ("a.h5", "c.h5")] == [2.0, 2.0]
        return one_of(mean_of(folder / "bank.h5"), 1.0 if old else None, 2.0)

    return Scenario(prepare, act, look)


def bank_in_parts() -> Scenario:
    """The bank of a merge by several processes, which is an attempt's: until all has ended well it is none."""

    def prepare(folder: Path) -> None:
        for name, rows in (("a", 7), ("b", 0), ("c", 5)):
            write_shard(folder / f"{name}.h5", 2.0, rows)

    def again(folder: Path) -> None:
        (folder / "bank.h5").unlink(missing_ok=True)  # the next attempt has a name of its own
        shutil.rmtree(folder / "bank.h5.parts", ignore_errors=True)

    def act(folder: Path) -> None:
        parts = Parts(folder / "bank.h5")
        parts.begin([read_info(folder / f"{name}.h5") for name in "abc"])
        for part in range(2):
            parts.copy(parts.draft(), part, 2, verify=True, workers=1, fsync=True)
        parts.finish(2, verify=True, workers=1, fsync=True, attributes={})

    def look(folder: Path) -> str:
        try:
            return one_of(mean_of(folder / "bank.h5"), None, 2.0)
        except RoseHpcError:
            return "old"

    return Scenario(prepare, act, look, again)


def exported() -> Scenario:
    """A Minari dataset of a bank."""

    def prepare(folder: Path) -> None:
        with ShardWriter(folder / "a.h5") as writer:
            data = columns(2.0)
            following = data["observations"]
            writer.extend(**data, actions=np.arange(7), next_observations=following, truncations=np.zeros(7, bool))

    def look(folder: Path) -> str:
        found = visible(folder) - {"a.h5"}
        assert found <= {"toy-v0"}
        if found:
            with h5py.File(folder / "toy-v0" / "data" / "main_data.hdf5") as file:
                groups = [file[f"episode_{number}"] for number in range(3)]
                assert [group.attrs["total_steps"] for group in groups] == [3, 3, 1]
                assert np.concatenate([group["rewards"][()] for group in groups]).tolist() == [0, 2, 4, 6, 8, 10, 12]
                assert all((group["observations"][()] == 2.0).all() for group in groups)
            facts = json.loads((folder / "toy-v0" / "data" / "metadata.json").read_text())
            assert facts["total_steps"] == 7
        return "new" if found else "old"

    def act(folder: Path) -> None:
        export_minari([folder / "a.h5"], folder / "toy-v0")

    def again(folder: Path) -> None:
        shutil.rmtree(folder / "toy-v0", ignore_errors=True)  # which would be refused: nothing is overwritten

    return Scenario(prepare, act, look, again)


# -- the run directory -------------------------------------------------------------------------------------------------


def file() -> Scenario:
    """A small file of ours is replaced."""

    def look(folder: Path) -> str:
        assert visible(folder) == {"config.toml"}
        return one_of((folder / "config.toml").read_bytes(), b"old" * 9, b"new" * 999)

    def prepare(folder: Path) -> None:
        (folder / "config.toml").write_bytes(b"old" * 9)

    return Scenario(prepare, lambda folder: publishing.write_file(folder / "config.toml", b"new" * 999), look)


def published() -> Scenario:
    """A file that its writer has closed and synced gets its name, in a folder that is new, too."""

    def again(folder: Path) -> None:
        (folder / "scratch").mkdir(exist_ok=True)
        (folder / "scratch" / "a").write_bytes(b"new")

    def act(folder: Path) -> None:
        publishing.publish(folder / "scratch" / "a", folder / "iter-0000" / "shards" / "a.h5")

    def look(folder: Path) -> str:
        target = folder / "iter-0000" / "shards" / "a.h5"
        scratch = folder / "scratch" / "a"
        assert (target.exists(), scratch.exists()) in ((True, False), (False, True))
        assert (target if target.exists() else scratch).read_bytes() == b"new"
        return "new" if target.exists() else "old"

    return Scenario(lambda folder: None, act, look, again)


def _tree(folder: Path, text: str) -> None:
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / "policy.txt").write_text(text)
    (folder / "deep" / "more.bin").write_bytes(text.encode() * 1000)
    os.link(folder / "policy.txt", folder / "deep" / "linked")


def _read_tree(folder: Path) -> dict[str, bytes] | None:
    if not folder.exists():
        return None
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tree(old: bool) -> Scenario:
    """A policy is published; where one is already, no record named it."""

    def prepare(folder: Path) -> None:
        (folder / "iter-0000").mkdir()
        (folder / "scratch").mkdir()
        if old:
            _tree(folder / "iter-0000" / "policy", "old")

    def again(folder: Path) -> None:
        publishing.remove(folder / "scratch" / "1.policy")
        _tree(folder / "scratch" / "1.policy", "new")

    def act(folder: Path) -> None:
        publishing.publish_tree(folder / "scratch" / "1.policy", folder / "iter-0000" / "policy")

    def look(folder: Path) -> str:
        assert visible(folder / "iter-0000") <= {"policy"}
        found = _read_tree(folder / "iter-0000" / "policy")
        names = ("deep/linked", "deep/more.bin", "policy.txt")
        states = {t: dict(zip(names, (t.encode(), t.encode() * 1000, t.encode()), strict=True)) for t in ("old", "new")}
        if found is None:
            return "old"  # what no record named may be gone: it has not happened
        return one_of(found, states["old"], states["new"])

    return Scenario(prepare, act, look, again)


def copied() -> Scenario:
    """An update's private copy of the policy before: the original is never touched."""

    def prepare(folder: Path) -> None:
        _tree(folder / "scratch-of-it", "new")
        publishing.publish_tree(folder / "scratch-of-it", folder / "policy")

    def act(folder: Path) -> None:
        publishing.copy_tree(folder / "policy", folder / "copy")

    def look(folder: Path) -> str:
        original = _read_tree(folder / "policy")
        assert original == {"deep/linked": b"new", "deep/more.bin": b"new" * 1000, "policy.txt": b"new"}
        return "new" if _read_tree(folder / "copy") == original else "old"

    return Scenario(prepare, act, look, lambda folder: publishing.remove(folder / "copy"))


# -- the journal -------------------------------------------------------------------------------------------------------


def journal() -> Scenario:
    """A torn line is cut off, three records are appended, and they are brought to the disk."""

    def prepare(folder: Path) -> None:
        book = Journal(folder / "journal.jsonl")
        book.append("run", name="toy")
        book.close()
        with open(folder / "journal.jsonl", "ab") as out:
            out.write(b'{"seq":1,"time":1,"kin')

    def act(folder: Path) -> None:
        book = Journal(folder / "journal.jsonl")
        try:
            for number in range(3):
                book.append("rank", number=number, text="x" * 100)
            book.sync()
        finally:
            book.close()

    def look(folder: Path) -> str:
        records = read_journal(folder / "journal.jsonl")
        numbers = [record.get("number") for record in records]
        assert records[0]["name"] == "toy"
        assert numbers[0] is None
        return "new" if numbers[-3:] == [0, 1, 2] else "old"

    return Scenario(prepare, act, look)


SCENARIOS = {
    "file": file(),
    "publish": published(),
    "tree": tree(old=False),
    "tree over another": tree(old=True),
    "copy of a tree": copied(),
    "journal": journal(),
    "shard": shard(old=False),
    "shard over another": shard(old=True),
    "spilled shard": spilled_shard(),
    "seal": sealed(),
    "seal anew": rewritten(),
    "bank": bank(old=False, check=True),
    "bank over another": bank(old=True, check=True),
    "bank unverified": bank(old=True, check=False),
    "bank without fsync": bank(old=False, check=True, fsync=False),
    "bank by threads": bank(old=False, check=True, workers=3),
    "bank in parts": bank_in_parts(),
    "export": exported(),
}


# -- the campaign ------------------------------------------------------------------------------------------------------


def open_files() -> int:
    """How many descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def attempt(scenario: Scenario, folder: Path, at: int, fault: Fault) -> Exception | None:
    """Do it once, with call ``at`` failing; what was raised."""
    template = folder.with_name("template")
    if not template.exists():
        template.mkdir()
        scenario.prepare(template)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)
    scenario.again(folder)
    arm(folder, at, fault)
    try:
        scenario.act(folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is judged later
        return error
    finally:
        disarm()
    return None


def judge(scenario: Scenario, folder: Path, fault: Fault, error: Exception | None) -> None:
    """Hold an attempt to what is promised.

    Raises:
        AssertionError: naming what is not so.
    """
    state = scenario.look(folder)
    if error is None:
        assert state == "new", "it said that all was well, and the old state is there"
    else:
        assert fault not in HICCUPS, f"not a failure, and yet: {error!r}"
        assert isinstance(error, RoseHpcError), f"not an error of ours: {error!r}"
        assert "\n" not in str(error)
        told = os.strerror(fault.error) in error.message or "can't retrieve stat info" in error.message  # HDF5's words
        assert told, f"no cause: {error}"
        assert error.hint, f"no next step: {error}"
    scenario.again(folder)
    scenario.act(folder)
    assert scenario.look(folder) == "new", "going on afterwards does not bring the new state"


def tries(scenario: Scenario, folder: Path, fault: Fault) -> Iterator[tuple[int, Exception | None]]:
    """Every call in turn fails this way, until none does: which one it was, and what was raised."""
    at = 1
    while True:
        tried = [attempt(scenario, folder, at, fault)]
        if not what_failed():
            return
        yield at, tried.pop()  # not kept here: its frames hold files
        at += 1


def some_tries(
    scenario: Scenario, folder: Path, fault: Fault, rng: random.Random, share: float
) -> Iterator[tuple[int, Exception | None]]:
    """Likewise, for this share of the calls, at least one."""
    attempt(scenario, folder, 0, fault)
    calls = disarm()
    for at in sorted(rng.sample(range(1, calls + 1), min(calls, max(1, round(calls * share))))):
        yield at, attempt(scenario, folder, at, fault)


@dataclass(frozen=True)
class Found:
    """What came of a scenario: how many calls it makes, how many were made to fail, and what was not as promised."""

    name: str
    calls: int
    tried: int
    violations: list[str]


def campaign(name: str, folder: Path, faults: Sequence[Fault], seed: int, share: float) -> Found:
    """Have a share of a scenario's calls fail in these ways, and judge."""
    scenario, violations, tried, most, rng = SCENARIOS[name], [], 0, 0, random.Random(f"{seed} {name}")
    if error := attempt(scenario, folder, 0, FAILURES[0]):  # whatever is imported late is here now
        raise error
    assert scenario.look(folder) == "new"
    before = open_files()
    for fault in faults:
        chosen = tries(scenario, folder, fault) if share >= 1 else some_tries(scenario, folder, fault, rng, share)
        for at, error in chosen:
            failed, tried, most = what_failed().replace(str(folder), ""), tried + 1, max(most, at)
            try:
                judge(scenario, folder, fault, error)
                error = None  # its frames hold files
                gc.collect()
                assert open_files() == before, "a file was left open"
            except Exception as violation:  # noqa: BLE001 - all of them are told
                violations.append(f"{name}: {fault}, call {at}, {failed}: {type(violation).__name__}: {violation}")
                before = open_files()
    return Found(name, most, tried, violations)


def run(
    library: Path, folder: Path, names: Sequence[str], *, seed: int = 0, share: float = 1.0, fault: str = ""
) -> list[Found]:
    """Campaigns in a process with the library; all faults, or the one of that text.

    Raises:
        RuntimeError: the process did not come to its end.
    """
    command = [sys.executable, __file__, folder, str(seed), str(share), fault, *names]
    done = subprocess.run(
        command, env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"exit {done.returncode}: {done.stderr[-2000:]}")
    return [Found(**json.loads(line)) for line in done.stdout.splitlines()]


def main(folder: str, seed: str, share: str, fault: str, *names: str) -> None:
    faults = [each for each in (*FAILURES, *HICCUPS) if fault in ("", str(each))]
    for name in names or SCENARIOS:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            found = campaign(name, Path(work) / "work", faults, int(seed), float(share))
            print(json.dumps(asdict(found)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
