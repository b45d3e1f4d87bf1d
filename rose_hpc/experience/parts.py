"""A merge that several processes carry out, on several nodes if need be: spans need no lock, and no MPI.

One process begins, each fills its part of the bank, one finishes. What they tell each other lies in a folder beside the
bank: a plan, and what each part found. Whoever starts them sees to the order; the bank is not the bank before the end.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from rose_hpc.errors import ExperienceError
from rose_hpc.experience.copying import Writer
from rose_hpc.experience.files import fsync_path, opened
from rose_hpc.experience.merge import Draft, begin, copy, digest_rest, finish, span_writer
from rose_hpc.experience.plan import MergePlan, plan_spans
from rose_hpc.experience.schema import ShardInfo, renamed
from rose_hpc.experience.tally import Tally
from rose_hpc.refusals import named


class Parts:
    """The merge of one bank.

    Args:
        bank: a path that nobody else uses: the bank is incomplete until :meth:`finish` has ended.
    """

    def __init__(self, bank: Path) -> None:
        self.bank = bank
        self.folder = bank.with_name(f"{bank.name}.parts")

    def begin(self, shards: Sequence[ShardInfo], *, late: bool = False) -> MergePlan:
        """Make the bank, and write down what is to be done.

        Args:
            shards: what is to be merged.
            late: they may be of different iterations.

        Raises:
            SchemaError, ExperienceError: as :func:`rose_hpc.experience.plan.plan_spans` does; also when it cannot be
                made, or there is no space for it.
        """
        plan = plan_spans(shards, late=late)
        with self.named():
            self.make(plan)
        return plan

    def make(self, plan: MergePlan) -> None:
        """Make the bank of a plan, and write the plan down.

        Raises:
            OSError, ExperienceError: it cannot be made, or there is no space for it.
        """
        draft = begin(self.bank, plan)
        self.folder.mkdir()
        offsets = {name: column.offset for name, column in draft.columns.items()}
        self.write("plan", {"plan": plan.to_json(), "offsets": offsets})

    def draft(self) -> Draft:
        """What is to be done.

        Raises:
            ExperienceError: the bank, or what was written down, is not to be had.
        """
        with self.named(), opened(self.bank, os.O_WRONLY):
            data = self.read("plan")
        plan = MergePlan.from_json(data["plan"])
        return Draft(self.bank, plan, renamed(plan.columns, offset=data["offsets"]))

    def copy(
        self,
        draft: Draft,
        part: int,
        parts: int,
        *,
        verify: bool,
        workers: int,
        fsync: bool,
        writer: Callable[[Draft], AbstractContextManager[Writer]] | None = None,
    ) -> None:
        """Fill part number ``part`` (from 0) of so many, and write down what was found.

        Args:
            draft: what is to be done.
            part, parts: which part, of how many.
            verify: whether shards are compared with their digests.
            workers: threads that copy.
            fsync: whether the bank is to be on the disk afterwards.
            writer: what writes; None: bytes go to their offsets.

        Raises:
            ExperienceError: the bank cannot be written, or not be read back.
        """
        began = time.monotonic()
        with self.named():
            tally = Tally(draft.plan, verify)
            copy(draft, tally, workers, part, parts, writer or partial(span_writer, sync=fsync))
            if fsync:
                fsync_path(self.bank)  # from here: other nodes do not see what this one has not sent
            facts = {"node": os.environ.get("SLURMD_NODENAME") or socket.gethostname()}
            self.write(f"part-{part}", {**facts, "seconds": time.monotonic() - began, "tally": tally.to_json()})

    def finish(
        self, parts: int, *, verify: bool, workers: int, fsync: bool, attributes: Mapping[str, Any]
    ) -> ShardInfo:
        """Put together what the parts have found, and have the bank say what it is.

        Raises:
            DamagedError: naming all shards that are not what was written, whoever has found it.
            ExperienceError: the bank cannot be read or written.
        """
        with self.named():
            draft = self.draft()
            tally = Tally(draft.plan, verify)
            for part in range(parts):
                tally.add(self.read(f"part-{part}")["tally"])
            if not tally.damage:
                digest_rest(draft, tally, workers)
            info = finish(draft, tally, attributes, workers)
            if fsync:
                fsync_path(self.bank)
        return info

    def report(self, parts: int) -> list[tuple[str, float]]:
        """Node and seconds of every part."""
        return [(facts["node"], facts["seconds"]) for part in range(parts) for facts in [self.read(f"part-{part}")]]

    def clear(self) -> None:
        """Remove what they told each other."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def named(self) -> AbstractContextManager[None]:
        """What the system refuses here is an error that names the bank."""
        return named(ExperienceError, f"cannot write {self.bank}")

    def write(self, name: str, data: Mapping[str, Any]) -> None:
        """Tell the others something: they see all of it or nothing."""
        path = self.folder / f"{name}.json"
        scratch = path.with_suffix(".tmp")
        with open(scratch, "w") as file:
            json.dump(data, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(path)

    def read(self, name: str) -> Any:
        """What was told under that name."""
        return json.loads((self.folder / f"{name}.json").read_bytes())

    def names(self, first: str) -> list[str]:
        """Under which names, of those that begin so, something was told."""
        return sorted(path.stem for path in self.folder.glob(f"{first}*.json"))
