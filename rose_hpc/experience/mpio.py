"""Merging by the ranks of an MPI program: ``mpiexec -n 4 python -m rose_hpc.experience.mpio SHARD... --output BANK``.

For where h5py is built with MPI, and so knows the file system's own way to be written by many at once. Every rank
copies a part as large as any other's, whatever the shards are like, through HDF5 (``mpio``) or as spans (``nodes``,
which needs mpi4py, but no h5py with MPI). Nothing but opening and closing the file is collective: columns are
contiguous, so a rank writes what it has when it has it, and one that has nothing writes nothing. A collective write
would wait for it for ever (h5py#965).

``--part BANK`` has the ranks fill a bank that somebody else has begun, and will finish.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("H5PY_ALWAYS_USE_MPI", "1")  # Debian has two, and takes the other for a program of one rank

import h5py
import numpy as np

from rose_hpc.errors import RoseHpcError, UsageError
from rose_hpc.experience.files import publishing
from rose_hpc.experience.merge import Draft, read_shards, refuse_itself
from rose_hpc.experience.parts import Parts
from rose_hpc.experience.ranks import Ranks, in_ranks
from rose_hpc.experience.schema import ShardInfo, plain_attributes

Way = Literal["mpio", "nodes"]

#: what a rank hands over to HDF5 at once
_BLOCK = 4 * 1024 * 1024


def merge_in_ranks(
    paths: Sequence[str | Path | ShardInfo],
    bank_path: str | Path,
    *,
    way: Way = "mpio",
    verify: bool = True,
    fsync: bool = False,
    attributes: Mapping[str, Any] | None = None,
    read: Callable[[Sequence[Any]], list[ShardInfo]] = read_shards,
    comm: Any = None,
) -> ShardInfo | None:
    """As :func:`rose_hpc.merge_shards`, called by all ranks of ``comm``; the bank is the same.

    Args:
        paths: of the shards; only the first rank looks at this, and at ``attributes``.
        bank_path: the bank, on a file system that all ranks see.
        way: through HDF5 (``mpio``), or as spans (``nodes``).
        verify: compare every shard with its digests, and digest the bank.
        fsync: bring the bank to the disk before it appears.
        attributes: of the bank.
        read: how the first rank finds out about the shards.
        comm: mpi4py's communicator; None: all ranks of the program.

    Returns:
        the bank, in the first rank; None in the others.

    Raises:
        ExperienceError: in all ranks, whichever it was that failed.
        UsageError: h5py has no MPI here, or there is no mpi4py.
    """
    bank = Path(bank_path)
    ranks = Ranks(bank, comm)
    writer, known = _writer(way, ranks.comm), plain_attributes(attributes)
    shards = ranks.first(lambda: refuse_itself(bank, read(paths))) or []
    with publishing(bank, fsync=fsync) if ranks.is_first else nullcontext(bank) as scratch:
        parts = Parts(Path(ranks.comm.bcast(str(scratch))))
        try:
            ranks.first(lambda: parts.begin(shards, late="iteration" in known))
            _fill(ranks, parts, verify, fsync, writer)
            size = ranks.comm.size
            info = ranks.first(lambda: parts.finish(size, verify=verify, workers=1, fsync=fsync, attributes=known))
        finally:
            if ranks.is_first:
                parts.clear()
    return replace(info, path=bank) if info is not None else None


def _fill(ranks: Ranks, parts: Parts, verify: bool, fsync: bool, writer: Any) -> None:
    """Fill the parts of all ranks. Opening the file is collective: first each looks whether it can."""
    draft = ranks.all(parts.draft)
    number, count = ranks.comm.rank, ranks.comm.size
    ranks.all(lambda: parts.copy(draft, number, count, verify=verify, workers=1, fsync=fsync, writer=writer))


def _writer(way: Way, comm: Any) -> Any:
    """What the ranks write with; None: what parts of a merge write with anyway."""
    if way == "nodes":
        return None
    if not h5py.get_config().mpi:
        raise UsageError(
            f"h5py {h5py.__version__} of {sys.executable} is built without MPI",
            hint="use one that is (Debian's python3-h5py-mpi), or --way nodes",
        )
    return partial(hdf5_writer, comm=comm)


@contextmanager
def hdf5_writer(draft: Draft, comm: Any) -> Iterator[Hdf5Writer]:
    """What writes rows through HDF5, in all ranks at once: opening and closing are collective."""
    with h5py.File(draft.path, "r+", driver="mpio", comm=comm) as file:
        yield Hdf5Writer(file, draft)


class Hdf5Writer:
    """Writes whole rows, as bytes of the type they have in the file: nothing is converted.

    Args:
        file: open for MPI.
        draft: of the bank.
    """

    block = _BLOCK
    copies = False

    def __init__(self, file: h5py.File, draft: Draft) -> None:
        self._columns = draft.columns
        self._datasets = {name: h5py.h5d.open(file.id, name.encode()) for name in draft.columns}

    def unit(self, column: str) -> int:
        """Bytes of a row."""
        return self._columns[column].row_bytes

    def write(self, column: str, view: memoryview, at: int) -> None:
        """Write rows. Not collectively: the other ranks need not know."""
        dataset, shape = self._datasets[column], self._columns[column].shape
        row, rows = at // self.unit(column), len(view) // self.unit(column)
        there = dataset.get_space()
        there.select_hyperslab((row, *[0] * len(shape)), (rows, *shape))
        here = h5py.h5s.create_simple((rows, *shape))
        dataset.write(here, there, np.frombuffer(view, np.uint8), mtype=dataset.get_type())

    def gather(self, column: str, views: Sequence[memoryview], at: int) -> None:
        """Write several stretches of rows, one after another."""
        for view in views:
            self.write(column, view, at)
            at += len(view)

    def copy(self, source: int, offset: int, column: str, at: int, size: int) -> bool:
        """HDF5 copies nothing from other files that it has not read."""
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Merge; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m rose_hpc.experience.mpio", description=__doc__.split("\n")[0])
    parser.add_argument("shards", nargs="*", type=Path, help="the shards, in this order")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, help="the bank to write")
    what.add_argument("--part", type=Path, help="a bank that is begun: fill it")
    parser.add_argument("--way", choices=["mpio", "nodes"], default="mpio", help="through HDF5, or as spans")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the shards with their digests")
    options = parser.parse_args(argv)
    try:
        in_ranks(lambda: _run(options))
    except RoseHpcError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _run(options: argparse.Namespace) -> None:
    verify = not options.no_verify
    if options.part is not None:
        ranks = Ranks(options.part)
        _fill(ranks, Parts(options.part), verify, True, _writer(options.way, ranks.comm))
        return
    info = merge_in_ranks(options.shards, options.output, way=options.way, verify=verify)
    if info is not None:
        sys.stdout.write(f"{info.path}: {info.rows} rows, {info.bytes} bytes, digest {info.digest}\n")


if __name__ == "__main__":
    sys.exit(main())
