"""Whether what runs has room in what there is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rose_hpc.errors import UsageError
from rose_hpc.machine import Shape
from rose_hpc.workflow import Resources, Workflow

#: what is counted: the key that asks for it, and what it is called
_KINDS = {
    "cores": ("cores_per_rank", "cores"),
    "memory_mb": ("mem_gb_per_rank", "GB of memory"),
    "gpus": ("gpus_per_rank", "GPUs"),
}


@dataclass(frozen=True)
class Room:
    """What there is to run in: ``nodes`` nodes that are alike; None: an embedded engine."""

    node: Shape
    nodes: int | None = None


def check_fits(workflow: Workflow, room: Room) -> None:
    """Refuse work that could never start there.

    Raises:
        UsageError: it names the work, with the arithmetic.
    """
    for name, work in workflow.works.items():
        r = work.resources
        if r.ranks > 1 and work.is_function:
            raise UsageError(f"{name} asks for {r.ranks} ranks: a function runs in one", hint="make it a program")
        if r.ranks > 1 and room.nodes is None:
            raise UsageError(
                f"{name} asks for {r.ranks} ranks: the embedded engine runs programs of one rank",
                hint="start MPI in its command, with cores_per_rank for its cores, or use the pilot",
            )
        if workflow.max_concurrent is None or room.nodes is not None:
            _check_rank(name, r, room)
        if r.ranks > 1 and room.nodes is not None:
            _check_ranks(name, r, room, room.nodes)

    if not workflow.waves:
        _check_waves(workflow, room)


def rank_shape(r: Resources) -> Shape:
    """What one rank takes."""
    return Shape(r.cores_per_rank, r.mem_mb_per_rank, r.gpus_per_rank)


def _check_rank(name: str, r: Resources, room: Room) -> None:
    """One rank fits on a node."""
    rank = rank_shape(r)
    for what, (key, unit) in _KINDS.items():
        if getattr(rank, what) > getattr(room.node, what):
            larger = "ask for larger nodes" if room.nodes else f"set loop.max_concurrent to share {unit.split()[-1]}"
            raise UsageError(
                f"{name} asks for {_said(rank, what, asked=True)}{' a rank' if r.ranks > 1 else ''}, and there are "
                f"{_said(room.node, what).split()[0]}{'' if room.nodes is None else ' on a node'}",
                hint=f"lower its {key}, or {larger}",
            )


def _said(shape: Shape, *kinds: str, asked: bool = False) -> str:
    """What a shape has of some kinds; what is asked for is rounded up, so that it never looks like what there is."""
    known = {what: getattr(shape, what) / (1024 if what == "memory_mb" else 1) for what in kinds}
    whole = math.ceil if asked else math.floor
    return " and ".join(f"{whole(amount * 100) / 100:g} {_KINDS[what][1]}" for what, amount in known.items())


def _check_waves(workflow: Workflow, room: Room) -> None:
    """All environments at once, or not at all."""
    resources = [e.work.resources for e in workflow.environments]
    nodes = room.nodes or 1
    there = Shape(room.node.cores * nodes, room.node.memory_mb * nodes)
    for what, needed in (("cores", [r.cores for r in resources]), ("memory_mb", [r.mem_mb for r in resources])):
        if sum(needed) > getattr(there, what):
            numbers = [_said(Shape(**{what: each}), what, asked=True).split()[0] for each in needed[:20]]
            each = f"{len(needed)} x {numbers[0]}" if len(set(needed)) == 1 else " + ".join(numbers)
            whole = _said(Shape(**{what: sum(needed)}), what, asked=True)
            raise UsageError(
                f"{len(needed)} environments take {each} = {whole} at once, "
                f"and there are {_said(there, what).split()[0]}",
                hint="ask for more nodes, or let them run in waves (loop.waves = true)",
            )


def _check_ranks(name: str, r: Resources, room: Room, nodes: int) -> None:
    """Ranks that one node cannot hold get whole nodes."""
    rank, each = rank_shape(r), room.node.holds(rank_shape(r))
    if r.ranks > each * nodes:
        counted = [what for what in _KINDS if getattr(rank, what) and getattr(room.node, what) < math.inf]
        raise UsageError(
            f"{name} asks for {r.ranks} ranks of {_said(rank, *counted, asked=True)}; "
            f"{nodes} nodes of {_said(room.node, *counted)} hold {nodes} x {each} = {nodes * each}",
            hint="lower its ranks, or ask for more nodes",
        )
