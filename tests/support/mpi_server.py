"""Run by mpiexec: merges what it is asked to, with as many of its ranks as it is asked to.

Each line of its standard input is a JSON object: ``shards``, ``bank``, ``ranks``, ``way``, ``verify``. The first rank
answers with one: the bank's digest, or the error. Chunks and blocks are of a few bytes, so that small shards have every
edge that large ones have.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["H5PY_ALWAYS_USE_MPI"] = "1"

from mpi4py import MPI
from small import shrink

from rose_hpc.errors import RoseHpcError
from rose_hpc.experience.mpio import merge_in_ranks


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Merge in the first so many ranks; the others of the program have nothing to do with it."""
    everyone = MPI.COMM_WORLD
    comm = everyone.Split(everyone.rank < request["ranks"], everyone.rank)
    try:
        if everyone.rank >= request["ranks"]:
            return {}
        info = merge_in_ranks(
            request["shards"], request["bank"], way=request["way"], verify=request["verify"], comm=comm
        )
        return {} if info is None else {"digest": info.digest}
    except RoseHpcError as error:
        return {"error": str(error)}
    finally:
        comm.Free()


def main() -> None:
    """Until the standard input ends."""
    shrink()
    comm = MPI.COMM_WORLD
    while line := comm.bcast(sys.stdin.readline() if comm.rank == 0 else None):
        found = answer(json.loads(line))
        if comm.rank == 0:
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
