"""How a supervisor starts a program of several ranks: with srun over the nodes it was given, or mpiexec on this host.

The supervisors' own step holds all cores of the allocation, and gives them out; so a program's step overlaps it, and
nothing is bound: the pool has counted its cores, and no other attempt has them. Options are those that srun knows from
Slurm 20.11 to 25.11.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping

from rose_hpc.execution.attempt import Attempt

#: of Slurm's variables, what srun needs to find the job; all others would be options it was never given
KEPT = ("SLURM_CLUSTER_NAME", "SLURM_CONF", "SLURM_JOBID", "SLURM_JOB_ID", "SLURM_MPI_TYPE")


def launch(attempt: Attempt, environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command line and environment that start ``attempt.ranks`` processes of ``attempt.argv``.

    Args:
        attempt: with the nodes it was given.
        environ: the supervisor's environment, with what the attempt adds to it.

    Raises:
        FileNotFoundError: nothing here starts several ranks.
    """
    env = {name: value for name, value in environ.items() if not name.startswith("SLURM") or name in KEPT}
    path = environ.get("PATH")
    if "SLURM_PROCID" in environ and attempt.nodes and (srun := shutil.which("srun", path=path)):
        return [srun, *_step(attempt), *attempt.argv], env
    if mpiexec := shutil.which("mpiexec", path=path):
        if os.geteuid() == 0:  # Open MPI refuses root otherwise; containers know no other user
            env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return [mpiexec, "-n", str(attempt.ranks), *attempt.argv], env
    raise FileNotFoundError(f"its {attempt.ranks} ranks need srun or mpiexec, and neither is here")


def _step(attempt: Attempt) -> list[str]:
    count = len(attempt.nodes)
    return [
        f"--nodes={count}",
        f"--ntasks={attempt.ranks}",
        f"--ntasks-per-node={math.ceil(attempt.ranks / count)}",
        f"--cpus-per-task={attempt.cores // attempt.ranks}",
        f"--nodelist={','.join(attempt.nodes)}",
        *("--overlap", "--cpu-bind=none", "--mem=0", "--export=ALL"),
        "--kill-on-bad-exit=1",  # the ranks of one program need each other
    ]
