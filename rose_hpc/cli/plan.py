"""``rose-hpc plan``."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rose_hpc.cli import options
from rose_hpc.named import Named
from rose_hpc.report.words import count, parameters
from rose_hpc.workflow import Environment, Work

if TYPE_CHECKING:
    from rose_hpc.config import Config


@click.command("plan")
@options.config
@options.sets
@options.as_json
def command(config: Path, sets: tuple[str, ...], as_json: bool) -> None:
    """Show exactly what a run of CONFIG would do here, and refuse the impossible.

    \b
    Example: rose-hpc plan configs/cartpole.toml --json
    """
    facts = plan(config, sets)
    options.print_json(facts) if as_json else click.echo(describe(facts))


def plan(path: Path, sets: tuple[str, ...] = ()) -> dict[str, Any]:
    """What would be done, as plain data.

    Raises:
        ConfigError, UsageError: it cannot be done, and why.
    """
    from rose_hpc import machine
    from rose_hpc.config import check_scripts, load_config
    from rose_hpc.room import Room, check_fits, rank_shape
    from rose_hpc.workflow import from_config

    config = load_config(path, sets=sets)
    check_scripts(config, path)
    workflow = from_config(config)
    here = machine.available()
    check_fits(workflow, Room(here))
    at_once = workflow.max_concurrent or min(here.holds(rank_shape(e.work.resources)) for e in workflow.environments)
    criterion = workflow.criterion
    stages: dict[str, Any] = {"update": _work(workflow.update)}
    if criterion is not None:
        stages["check"] = _work(criterion.work)
    return {
        "name": workflow.name,
        "seed": config.seed,
        "folder": str(workflow.cwd),
        **_swept(config),
        "engine": "embedded",
        "cores": here.cores,
        "memory_gb": None if math.isinf(here.memory_mb) else round(here.memory_mb / 1024, 2),
        "at_once": min(at_once, len(workflow.environments)),
        "waves": math.ceil(len(workflow.environments) / at_once),
        "environments": [_environment(e) for e in workflow.environments],
        **stages,
        "patience": asdict(workflow.patience),
        "window": workflow.window,
        "until": f"{criterion.metric} {criterion.operator} {criterion.threshold:g}" if criterion else None,
        "max_iterations": workflow.max_iterations,
        "retention": {
            "policies": workflow.retention.policies,
            "banks": workflow.retention.banks,
            "shards": workflow.retention.shards,
        },
    }


def _swept(config: Config) -> dict[str, Any]:
    """The learners of a sweep; None where there is none."""
    from rose_hpc.config import unnamed

    learners = [
        {"learner": number, "name": each.label(number), "parameters": each.parameters}
        for number, each in enumerate(config.learners)
    ]
    return {"learners": learners if config.sweep else None, "unnamed": unnamed(config)}


def _environment(e: Environment) -> dict[str, Any]:
    resources = e.work.resources
    return {
        "name": e.name,
        "parameters": dict(e.parameters),
        **_work(e.work),
        "cores": resources.cores,
        "mem_gb": resources.mem_mb / 1024,
        "shard": bool(e.shard),
    }


def _work(work: Work) -> dict[str, Any]:
    """What runs: a command as ``argv``, or a ``function`` by name."""
    function = work.function.name if isinstance(work.function, Named) else None
    return {"argv": list(work.argv), "function": function, "shown": str(work), **_limits(work)}


def _limits(work: Any) -> dict[str, Any]:
    return {"timeout_s": work.timeout_s, "retries": work.retries}


def describe(facts: dict[str, Any]) -> str:
    """The plan for people."""
    environments = facts["environments"]
    until = [facts["until"]] if facts["until"] else []
    if facts["max_iterations"]:
        until.append(count(facts["max_iterations"], "iteration"))
    seed = "chosen when the run is made" if facts["seed"] is None else facts["seed"]
    lines = [
        f"{facts['name']} (seed {seed}), until {' or '.join(until)}",
        f"commands run in {facts['folder']}",
        *(_learners(facts["learners"], facts["unnamed"]) if facts["learners"] else ()),
        "",
        f"1. collect: {count(len(environments), 'environment')}, {facts['at_once']} at once on {_room(facts)}"
        f" ({count(facts['waves'], 'wave')}){_patience(facts['patience'])}",
    ]
    lines += _few([f"     {_called(e)}: {e['shown']}{_limit(e)}" for e in environments])
    shards = any(e["shard"] or e["function"] for e in environments)
    merged = (
        "their shards, in this order, into iter-NNNN/bank.h5" if shards else "nothing, for none has to leave a shard"
    )
    lines.append(f"2. merge: {merged}")
    window = f" of the last {facts['window']} iterations" if facts["window"] > 1 else ""
    on = f", on the bank{window}" if shards else ""
    lines.append(f"3. update{on}: {facts['update']['shown']}{_limit(facts['update'])}")
    if "check" in facts:
        lines.append(f"4. check: {facts['check']['shown']}{_limit(facts['check'])}")
    keep = facts["retention"]
    lines += [
        "",
        f"kept: policies {keep['policies']}, banks {keep['banks']}, shards {'yes' if keep['shards'] else 'no'}",
    ]
    return "\n".join(lines)


def _room(facts: dict[str, Any]) -> str:
    """The cores, and the memory where somebody asks for some."""
    memory = f" and {facts['memory_gb']:.4g} GB" if any(e["mem_gb"] for e in facts["environments"]) else ""
    return f"{count(facts['cores'], 'core')}{memory}"


def _learners(learners: list[dict[str, Any]], unnamed: list[str]) -> list[str]:
    """The learners of a sweep; what follows them is of the first."""
    first = "; each does all of this, with its own parameters (shown: the first one's)"
    note = f"     no command or function names {', '.join(unnamed)}: it is in ROSE_HPC_PARAMETERS only"
    lines = _few([f"     {_called(each)}" for each in learners])
    return ["", f"{len(learners)} learners side by side{first}", *lines, *([note] if unnamed else ())]


def _few(lines: list[str]) -> list[str]:
    """Of many lines the first and the last."""
    return lines if len(lines) <= 20 else [*lines[:10], f"     ... {len(lines) - 15} more ...", *lines[-5:]]


def _called(facts: dict[str, Any]) -> str:
    values = parameters(facts["parameters"])
    return str(facts["name"]) + (f" ({values})" if values else "")


def _limit(facts: dict[str, Any]) -> str:
    limits = [
        *([f"at most {facts['timeout_s']:g} s"] if facts["timeout_s"] else []),
        *([f"tried again {_times(facts['retries'])}"] if facts["retries"] else []),
    ]
    return f"   ({', '.join(limits)})" if limits else ""


def _patience(facts: dict[str, Any]) -> str:
    if facts["min_environments"] is None:
        return ""
    when = f"after {facts['deadline_s']:g} s" if facts["deadline_s"] else "where others fail"
    return f"; {facts['min_environments']} are enough {when}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
