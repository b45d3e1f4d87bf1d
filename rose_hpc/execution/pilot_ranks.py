"""Starts the ranks of one task on this host: ``python pilot_ranks.py N program arguments...``.

Where nothing like srun or mpirun stands between the pilot and its tasks, this does. Each rank finds ``RP_RANK`` and
``RP_RANKS``, and its share of ``CUDA_VISIBLE_DEVICES``. The end of one rank leaves the others running; the exit code
is that of the first rank, in their order, that failed. Run by path and without ``site``: it needs no packages.
"""

from __future__ import annotations

import os
import subprocess
import sys


def _environment(rank: int, ranks: int) -> dict[str, str]:
    changed = {"RP_RANK": str(rank), "RP_RANKS": str(ranks)}
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    each = len(gpus) // ranks
    if each:
        changed["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[rank * each : (rank + 1) * each])
    return {**os.environ, **changed}


def main(argv: list[str]) -> int:
    """Run ``argv[1:]`` as ``int(argv[0])`` ranks and return the task's exit code."""
    ranks, command = int(argv[0]), argv[1:]
    try:
        started = [subprocess.Popen(command, env=_environment(rank, ranks)) for rank in range(ranks)]
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    codes = [process.wait() for process in started]
    failed = next((code for code in codes if code), 0)
    return failed if failed >= 0 else 128 - failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
