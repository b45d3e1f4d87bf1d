"""Ends a job whose first node is lost: ``python -m rose_hpc.slurm.headless JOB``.

A job that was submitted with ``--no-kill`` outlives a lost node. If that is the node of its batch script, nothing is
left that could end it: its other nodes would be held until the walltime, and the next job of its chain would wait for
that. A supervisor that has lost its driver becomes this program.
"""

from __future__ import annotations

import random
import re
import sys
import time

from rose_hpc.slurm.commands import call

#: Slurm may take so long to see that a node is lost (SlurmdTimeout is 300 s by default)
_PATIENCE_S = 1200.0
#: between two questions
_LOOK_S = 60.0
#: the first one, so that not all supervisors ask at once
_FIRST_S = 10.0


def is_headless(job: str) -> bool | None:
    """Whether the job runs on without the node of its batch script; None once it runs no more, or nobody knows it."""
    told = call(("scontrol", "show", "job", "--oneliner", job)).stdout
    facts = {key: value for key, _, value in (word.partition("=") for word in told.split())}
    if facts.get("JobState") != "RUNNING" or not re.fullmatch(r"[\w.-]+", facts.get("BatchHost", "")):
        return None
    nodes = call(("scontrol", "show", "hostnames", facts.get("NodeList", ""))).stdout.split()
    return bool(nodes) and facts["BatchHost"] not in nodes


def main(job: str) -> int:
    """Wait until that can be said, for so long as Slurm may take; end the job if it is so."""
    end = time.monotonic() + _PATIENCE_S
    wait_s = random.uniform(0.0, _FIRST_S)
    while time.monotonic() + wait_s < end:
        time.sleep(wait_s)
        match is_headless(job):
            case None:
                break
            case True:
                return call(("scancel", job)).returncode or 0
        wait_s = _LOOK_S
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
