"""Whether what runs has room in what there is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rose_hpc.errors import UsageError
from rose_hpc.workflow import Resources, Workflow


@dataclass(frozen=True)
class Room:
    """What there is to run in: ``nodes`` nodes (None: an embedded engine) with so much each; infinite: not known."""

    cores: float = math.inf
    nodes: int | None = None
    memory_gb: float = math.inf
    gpus: float = math.inf


def check_fits(workflow: Workflow, room: Room) -> None:
    """Refuse work that could never start there.

    Raises:
        UsageError: it names the work, with the arithmetic.
    """
    for name, work in workflow.works.items():
        r = work.resources
        if r.ranks > 1 and work.is_function:
            raise UsageError(f"{name} asks for {r.ranks} ranks: a function runs in one", hint="make it a program")
        if r.ranks > 1 and room.nodes is not None:
            _check_ranks(name, r, room, room.nodes)
        elif r.ranks > 1:
            raise UsageError(
                f"{name} asks for {r.ranks} ranks: the embedded engine runs programs of one rank",
                hint="start MPI in its command, with cores_per_rank for its cores, or use the pilot",
            )
        elif workflow.max_concurrent is None or room.nodes is not None:
            _check_task(name, r, room)

    if not workflow.waves:
        _check_waves(workflow, room)


def _check_task(name: str, r: Resources, room: Room) -> None:
    """A task of one rank fits on a node."""
    asked = (
        ("cores_per_rank", r.cores_per_rank, room.cores, "cores"),
        ("mem_gb_per_rank", r.mem_gb_per_rank or 0, room.memory_gb, "GB of memory"),
        ("gpus_per_rank", r.gpus_per_rank, room.gpus, "GPUs"),
    )
    for key, needed, there, what in asked:
        if needed > there:
            where = "" if room.nodes is None else " on a node"
            other = "ask for larger nodes" if room.nodes else f"set loop.max_concurrent to share {what.split()[-1]}"
            raise UsageError(
                f"{name} asks for {needed:g} {what}, and there are {there:.4g}{where}",
                hint=f"lower its {key}, or {other}",
            )


def _check_waves(workflow: Workflow, room: Room) -> None:
    """All environments at once, or not at all."""
    resources = [e.work.resources for e in workflow.environments]
    nodes = room.nodes or 1
    for needed, there, what in (
        ([r.cores for r in resources], room.cores * nodes, "cores"),
        ([r.mem_gb for r in resources], room.memory_gb * nodes, "GB of memory"),
    ):
        if sum(needed) > there:
            numbers = [f"{each:g}" for each in needed]
            each = f"{len(needed)} x {numbers[0]}" if len(set(needed)) == 1 else " + ".join(numbers[:20])
            raise UsageError(
                f"{len(needed)} environments take {each} = {sum(needed):g} {what} at once, and there are {there:.4g}",
                hint="ask for more nodes, or let them run in waves (loop.waves = true)",
            )


def _check_ranks(name: str, r: Resources, room: Room, nodes: int) -> None:
    """Ranks that one node cannot hold get whole nodes."""
    by_memory = room.memory_gb / r.mem_gb_per_rank if r.mem_gb_per_rank else math.inf
    most = min(room.cores / r.cores_per_rank, by_memory)
    if most < math.inf and r.ranks > (each := math.floor(most)) * nodes:
        asked = f"{r.cores_per_rank} cores" + (f" and {r.mem_gb_per_rank:g} GB" if by_memory < math.inf else "")
        known = ((room.cores, "cores"), (room.memory_gb if by_memory < math.inf else math.inf, "GB"))
        has = " and ".join(f"{amount:g} {what}" for amount, what in known if amount < math.inf)
        raise UsageError(
            f"{name} asks for {r.ranks} ranks of {asked}; {nodes} nodes of {has} hold "
            f"{nodes} x {each} = {nodes * each}",
            hint="lower its ranks, or ask for more nodes",
        )
