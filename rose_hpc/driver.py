"""The driver of a configuration's run: from a run directory to its end, on the embedded engine."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rose_hpc import failpoints, publishing, rundir, signals
from rose_hpc.errors import EngineError, Interrupted, RunError, UsageError
from rose_hpc.journal import Bookmark, scan_journal
from rose_hpc.progress import Progress
from rose_hpc.refusals import named
from rose_hpc.rundir import RunDir
from rose_hpc.seeds import choose_seed

if TYPE_CHECKING:
    from rose_hpc.config import Config
    from rose_hpc.loop import Loop
    from rose_hpc.population import Population
    from rose_hpc.session import Observer, Session
    from rose_hpc.workflow import Workflow

#: the progress of what was read of a run's journal, and how far
Known = tuple[Progress, Bookmark]
#: first line of a run's config.toml: the file it came from
_ORIGIN = "# made from "

EXIT_CODES = {"converged": 0, "max_iterations": 3, "failed": 1, "stopped": 130}


def make_run(config: Config, run_dir: Path | None, source: Path | None = None) -> RunDir:
    """A new run directory with its configuration as it will run. Nothing heavy is imported for it.

    Args:
        config: the configuration.
        run_dir: the directory itself; None: a new one in the runs folder.
        source: the file it came from; a driver warns if that changes, since the run keeps its own copy.
    """
    from rose_hpc.config import dump_config

    if config.seed is None:
        config = config.model_copy(update={"seed": choose_seed()})
    origin = "" if source is None else f"{_ORIGIN}{source.absolute()}\n"
    return rundir.create(config.name, run_dir, (origin + dump_config(config)).encode())


def change_run(run: RunDir, sets: Sequence[str], max_iterations: int | None) -> list[str]:
    """Change the configuration of a run; what changed, for the record that it gets when the run goes on.

    Raises:
        ConfigError, UsageError: the change is refused, and nothing was written.
    """
    from rose_hpc.config import dump_config

    config, before = changed(run, sets, max_iterations)
    for each in (run.learners if config.sweep else [run]) if config.merge.window > before.merge.window else ():
        _check_window(each, config.merge.window)
    first = run.config.read_text().partition("\n")[0]
    origin = f"{first}\n" if first.startswith(_ORIGIN) else ""
    publishing.write_file(run.config, (origin + dump_config(config)).encode())
    failpoints.hit("run-changed")
    return [*sets, *([f"loop.max_iterations={max_iterations}"] if max_iterations else [])]


def changed(run: RunDir, sets: Sequence[str], max_iterations: int | None) -> tuple[Config, Config]:
    """The configuration of a run with these changes, and as it is.

    Raises:
        ConfigError, UsageError: it would be another run.
    """
    from rose_hpc.config import check_scripts, load_config

    before = load_config(run.config)
    config = load_config(run.config, sets=sets, max_iterations=max_iterations)
    if config.base != before.base:
        check_scripts(config)
    for what in ("name", "seed"):
        if getattr(config, what) != getattr(before, what):
            raise UsageError(f"a run keeps its {what}, {getattr(before, what)!r}", hint="start a new run with another")
    for old, new in itertools.zip_longest(before.environments.resolve(), config.environments.resolve()):
        if old is None or new is None or (old.name, old.parameters) != (new.name, new.parameters):
            which = (old or new).name
            raise UsageError(
                f"a run keeps its environments, and {which} would be another", hint="start a new run with others"
            )
    if config.learners != before.learners:
        raise UsageError("a run keeps its learners, and [sweep] would make others", hint="start a new run with others")
    return config, before


def _check_window(run: RunDir, window: int) -> None:
    """Refuse a window of banks that are no longer there."""
    progress = Progress.of(scan_journal(run.journal))
    needed = range(max(0, progress.iteration - window + 1), progress.iteration)
    if missing := [k for k in needed if progress.has_bank(k) and not run.bank(k).exists()]:
        raise UsageError(
            f"merge.window = {window} needs the banks of iterations {', '.join(map(str, missing))}, "
            "which retention has dropped",
            hint="start a new run with it",
        )


def drive_shown(run: RunDir, changes: Sequence[str] = (), engine: str = "auto", known: Known | None = None) -> int:
    """Drive the run with a display: live on a terminal, else lines, the last one the run directory. The exit code."""
    from rose_hpc.report.lines import Lines
    from rose_hpc.report.view import LiveView, PlainView

    lines = Lines(str(run.path), failures=False)

    if sys.stdout.isatty():
        from rich.console import Console

        with LiveView(Console(), lines) as view:
            code = drive(run, [view], changes, engine, known)
        Console().print(f"\n  status   {run.command('status')}\n  logs     {run.command('logs')}", highlight=False)
        return code
    try:
        return drive(run, [PlainView(sys.stdout, lines)], changes, engine, known)
    finally:
        print(run.path, flush=True)  # noqa: T201 - the last line (contract)


def drive(
    run: RunDir,
    observers: Sequence[Observer],
    changes: Sequence[str] = (),
    engine: str = "auto",
    known: Known | None = None,
) -> int:
    """Drive the run to its end.

    Args:
        run: the run.
        observers: who watches.
        changes: what :func:`change_run` changed.
        engine: ``auto``, ``embedded`` or ``pilot``.
        known: what was read of the journal already.

    Returns:
        the exit code of how it ended.

    Raises:
        RoseHpcError: it failed.
        Interrupted: it was told to stop.
    """
    logging.getLogger("radical.asyncflow").setLevel(logging.ERROR)  # it warns of every orderly end
    signals.before_events()
    collect_seldom()
    return asyncio.run(_drive(run, observers, changes, engine, known))


def collect_seldom() -> None:
    """Have Python look for garbage less often: what a driver drops is no cycle, and looking takes its time."""
    gc.set_threshold(20_000, 20, 50)


async def _drive(
    run: RunDir, observers: Sequence[Observer], changes: Sequence[str], engine: str, known: Known | None
) -> int:
    from rose_hpc import machine
    from rose_hpc.config import load_config
    from rose_hpc.execution.select import choose_engine, config_resources, make_backend
    from rose_hpc.room import Room, check_fits
    from rose_hpc.session import Session, clear_scratch
    from rose_hpc.settings import changes_of
    from rose_hpc.workflow import from_config

    signals.before_the_loop()
    config = load_config(run.config)
    workflow = from_config(config)
    if not config.base.is_dir():
        raise RunError(
            f"the folder of this run's scripts, {config.base}, is gone",
            hint=f"if it moved: `{run.command('resume')} --set base=FOLDER`",
        )
    session = Session(run, observers, known=known)
    try:
        clear_scratch(run)
        engine_name = choose_engine(engine)
        backend = make_backend(engine_name, config.loop.max_concurrent, config_resources(config))
        if engine_name == "embedded":
            check_fits(workflow, Room(machine.available()))
        elif backend.shape is not None:
            nodes, cores = backend.shape
            check_fits(workflow, Room(machine.Shape(cores, backend.memory_mb), nodes))
        settings = config.model_dump(mode="json", by_alias=True, exclude_none=True)
        facts = {**run_facts(workflow, config.seed), **_learners(config), "settings": settings}
        session.begin(facts, changes_of(session, settings, changes), engine_name)
        _check_origin(session)
        session.check_scripts(workflow.modules, workflow.cwd)
        asyncflow = await _start_engine(session, backend)
        with ExitStack() as stack:
            loop = _lead(session, config, asyncflow, engine_name, stack)
            done = loop.done
            stack.enter_context(signals.interrupts(loop))  # also while everything is shut down: not to be broken off
            try:
                async for _ in loop.iterations():
                    pass
            finally:
                await loop.aclose()
                await asyncflow.shutdown()
            if loop.done == done:
                hint = f"extend it with `{run.command('resume')} --max-iterations N` or `--set KEY=VALUE`"
                session.warn(f"nothing was left to do; {hint}")
        end = session.progress.end
        if end is None:
            raise RunError(f"{run.path} ended without a record", hint=run.command("resume"))
        return EXIT_CODES[end["state"]]
    finally:
        session.close()


def _learners(config: Config) -> dict[str, Any]:
    """What the run's record says of the learners of a sweep."""
    if config.sweep is None:
        return {}
    named = [{"name": each.label(number), "parameters": each.parameters} for number, each in enumerate(config.learners)]
    return {"learners": named}


def _lead(session: Session, config: Config, asyncflow: Any, engine: str, stack: ExitStack) -> Loop | Population:
    """What is driven: the one loop of the run, or those of its learners, whose sessions ``stack`` closes."""
    from rose_hpc.loop import Loop
    from rose_hpc.population import Population, open_learners
    from rose_hpc.workflow import from_config

    workflows = [from_config(config, each.parameters) for each in config.learners]
    if config.sweep is None:
        return Loop.of(session, workflows[0], asyncflow)
    facts = [
        {**run_facts(workflow, config.seed), "label": each.label(number), "parameters": each.parameters}
        for number, (workflow, each) in enumerate(zip(workflows, config.learners, strict=True))
    ]
    loops: list[Loop] = []
    for number, own in enumerate(open_learners(session, facts, engine, stack)):
        loops.append(Loop.of(own, workflows[number], asyncflow, learner=number, beside=loops[0] if loops else None))
    return Population(session, loops, [str(each["label"]) for each in facts])


def _check_origin(session: Session) -> None:
    """Say it when the file that the configuration came from has changed: people edit it, and wonder."""
    with named(RunError, f"cannot read {session.run.config}"):
        first = session.run.config.read_text().partition("\n")[0]
    path = Path(first.removeprefix(_ORIGIN))
    if first.startswith(_ORIGIN) and path.is_file() and session.note_file(path):
        session.warn(
            f"{path} has changed, and this run keeps its own copy, {session.run.config}; "
            f"change that with `{session.run.command('resume')} --set KEY=VALUE`"
        )


async def _start_engine(session: Session, backend: Any) -> Any:
    """The workflow engine; where it does not start, the run has ended, and its record says why."""
    try:
        failpoints.hit("engine-starting")
        await backend  # the supervisor starts while asyncflow is imported
        asyncflow = await _workflow_engine(backend, session.run)
        failpoints.hit("engine-started")
    except EngineError as error:
        session.record("end", state="failed", reason=str(error), iteration=session.progress.iteration)
        raise
    except asyncio.CancelledError:
        reason = signals.why_cancelled(session.run)
        session.record("end", state="stopped", reason=reason, iteration=session.progress.iteration)
        await backend.shutdown()
        raise Interrupted(reason) from None
    return asyncflow


async def _workflow_engine(backend: Any, run: RunDir) -> Any:
    from radical.asyncflow import WorkflowEngine

    class Engine(WorkflowEngine):  # type: ignore[misc]  # asyncflow has no types
        """Its handlers of signals would shut it down under our hands."""

        def _setup_signal_handlers(self) -> None:
            pass

    return await Engine.create(backend, work_dir=str(run.scratch))


def run_facts(workflow: Workflow, seed: int | None, source: str = "config") -> dict[str, Any]:
    """What the run record says; ``source`` is ``config`` or ``program``, which says how the run is resumed."""
    criterion = workflow.criterion
    return {
        "name": workflow.name,
        "source": source,
        "seed": seed,
        "argv": sys.orig_argv[1:],
        "interpreter": sys.executable,
        "cwd": os.getcwd(),  # noqa: PTH109 - as a plain string
        "environments": [e.name for e in workflow.environments],
        "max_iterations": workflow.max_iterations,
        "window": workflow.window,
        "metric": criterion.metric if criterion else None,
        "operator": criterion.operator if criterion else None,
        "threshold": criterion.threshold if criterion else None,
    }
