"""Which engine a program gets when it does not say: :func:`execution_backend`."""

from __future__ import annotations

import os
from typing import Any


async def execution_backend(resources: dict[str, Any] | None = None) -> Any:
    """The pilot inside a Slurm job, the embedded engine elsewhere; ready to be given to ``WorkflowEngine.create``.

    Args:
        resources: for the pilot, as ``RadicalExecutionBackend`` takes them; inside a job they default to the
        allocation's.
    """
    if os.environ.get("SLURM_JOB_ID"):
        from rose_hpc.execution.pilot import RadicalExecutionBackend

        return await RadicalExecutionBackend(resources or {})
    from rose_hpc.execution.local import EmbeddedExecutionBackend

    return await EmbeddedExecutionBackend()
