"""What is asked of a supervisor, and what it answers: plain data, the same for every engine.

One *attempt* is one try at a rank or stage. The driver makes it, a supervisor (:mod:`rose_hpc.execution.rank`)
carries it out beside the work, and the *outcome* is the supervisor's own end message, the only thing that says the
attempt succeeded. This module is imported by every rank: it stays free of anything heavy.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

#: the last bytes of a command's standard output that are kept as its value, and the most a journalled value may take
VALUE_BYTES = 64 * 1024

#: what a task finds in its environment (contract): never inherited from a task that we run in
TASK_VARIABLES = tuple(
    f"ROSE_HPC_{name}"
    for name in (
        *("RUN", "LEARNER", "ITERATION", "STAGE", "ENVIRONMENT", "PARAMETERS", "SEED", "SHARD"),
        *("BANK", "BANKS", "POLICY", "STATE", "DEADLINE"),
    )
)
#: attempts that took less than this the last times are brief; see :mod:`rose_hpc.execution.lanes`
BRIEF_S = 0.02

#: what numerical libraries ask for their number of threads
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
#: libraries read them when they are loaded: a process that calls functions is for those it began with
READ_ONCE = (*THREAD_VARIABLES, "CUDA_VISIBLE_DEVICES")


def thread_limits(cores: int) -> dict[str, str]:
    """The variables that hold a rank's libraries to its cores, for speed and for determinism."""
    return dict.fromkeys(THREAD_VARIABLES, str(cores))


def shard_attributes(variables: Mapping[str, str]) -> dict[str, Any]:
    """What a shard says of the task that wrote it: what that was told."""
    return {name: read(variables[key]) for name, (key, read) in _ATTRIBUTES.items() if key in variables}


_ATTRIBUTES: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "run": ("ROSE_HPC_RUN", os.path.basename),
    "iteration": ("ROSE_HPC_ITERATION", int),
    "environment": ("ROSE_HPC_ENVIRONMENT", str),
    "seed": ("ROSE_HPC_SEED", int),
    "parameters": ("ROSE_HPC_PARAMETERS", json.loads),
}


_NONE = object()


class _Plain:
    """To and from JSON objects; an unknown key is an error, as a peer of another version would send."""

    def to_json(self) -> dict[str, Any]:
        """What is not as by default, and as shallow as it may be: there are a thousand in a second."""
        defaults = type(self).__dict__  # where a dataclass has them
        return {key: value for key, value in vars(self).items() if value != defaults.get(key, _NONE)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        if unknown := data.keys() - cls.__dataclass_fields__.keys():  # type: ignore[attr-defined]  # only dataclasses
            raise ValueError(f"{cls.__name__}: unknown fields {sorted(unknown)}")
        return cls(**data)


@dataclass(frozen=True)
class Attempt(_Plain):
    """One try at a rank or stage.

    Attributes:
        id: unique within the run, for ever (iteration, stage, environment, driver's epoch, number).
        kind: ``command`` runs ``argv``; ``function`` calls what travels beside the attempt; ``merge`` reduces shards;
            ``fetch`` is a supervisor's own, and copies a policy to its node.
        argv: the command, argument by argument.
        cwd: the folder it runs in.
        env: what is set in its environment (``ROSE_HPC_*``), over the limits of its cores and the supervisor's own.
        log: the file that gets its output.
        timeout_s: seconds from the command's start to TERM (KILL follows 3 s later); None: no limit.
        brief: it took hardly more than a message the last times.
        max_rss_gb: memory above which the process that called a function is replaced; None: no limit.
        cores: how many cores it takes, of all its ranks.
        ranks: processes it is started as; more than one is an MPI program.
        gpus: how many GPUs it takes, of all its ranks; a fraction below 1 shares one.
        memory_mb: how much memory it takes, MB of all its ranks; 0: not said, so it is not counted.
        nodes: the nodes it has, where it was placed on more than cores: the hosts of an MPI program.
        avoid: nodes it is not placed on while there are others that could hold it.
        seal: whether there must be a shard at ``env["ROSE_HPC_SHARD"]``, to be sealed; None: there is none.
        policy: None, or ``digest`` and ``bytes`` of the folder at ``env["ROSE_HPC_POLICY"]``, which is large: the node
            is to have one copy of it, that is read instead (:mod:`rose_hpc.execution.nearby`).
        merge: None, or arguments of the reduction: ``shards`` (path: digest), ``bank``, ``verify``, ``fsync``,
            ``workers``, ``attributes``; which ``way`` it goes, and which ``phase`` of that this is (``whole``, or
            ``begin``, ``copy`` as one ``part`` of several ``parts``, and ``finish``: see
            :mod:`rose_hpc.execution.merging`; or ``stream``, of shards with these ``numbers`` in a bank of so many
            ``rows`` each, and ``stream-end``: see :mod:`rose_hpc.streaming`).
    """

    id: str
    kind: Literal["command", "function", "merge", "fetch"]
    argv: Sequence[str] = ()
    cwd: str = "."
    env: Mapping[str, str] = field(default_factory=dict)
    log: str = ""
    timeout_s: float | None = None
    brief: bool = False
    max_rss_gb: float | None = None
    cores: int = 1
    ranks: int = 1
    gpus: float = 0.0
    memory_mb: int = 0
    nodes: Sequence[str] = ()
    avoid: Sequence[str] = ()
    seal: bool | None = None
    policy: Mapping[str, Any] | None = None
    merge: Mapping[str, Any] | None = None

    def variables(self) -> dict[str, str]:
        """What its processes find: also the limits of its cores, and its timeout in ``ROSE_HPC_DEADLINE``, from now."""
        variables = {**thread_limits(self.cores // self.ranks), **self.env}
        if self.timeout_s is not None:
            known = float(variables.get("ROSE_HPC_DEADLINE", "inf"))
            variables["ROSE_HPC_DEADLINE"] = f"{min(known, time.time() + self.timeout_s):.3f}"
        return variables


@dataclass(frozen=True)
class Outcome(_Plain):
    """How an attempt ended, as its supervisor saw it.

    Attributes:
        id: the attempt's.
        ok: True only when everything asked for was done: exit 0, a sealed shard, a merged bank.
        reason: ``""`` when ok; else ``exit``, ``signal``, ``timeout``, ``cancelled``, ``spawn`` (could not be started),
            ``stopped`` (by SIGSTOP, and nobody let it go on),
            ``shard`` (missing or not acceptable), ``damaged`` (shards whose bytes changed; ``paths``), ``merge``,
            ``error`` (a function raised), ``lost`` (the supervisor itself is gone).
        message: one line for people.
        exit_code: of the command, where there was one; minus the signal's number when a signal ended it.
        seconds: from its start to its end.
        node: the host it ran on.
        stdout: the end of its standard output, at most VALUE_BYTES.
        tail: its last lines, of both streams.
        info: the sealed shard or merged bank (``ShardInfo.to_json()``), or None.
        paths: files the reason speaks of.
        max_rss_mb: the most memory its process used, MiB, where known.
        notice: what people should be told, though it may have gone well.
    """

    id: str
    ok: bool
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    seconds: float = 0.0
    node: str = ""
    stdout: str = ""
    tail: str = ""
    info: Mapping[str, Any] | None = None
    paths: Sequence[str] = ()
    max_rss_mb: float | None = None
    notice: str = ""
