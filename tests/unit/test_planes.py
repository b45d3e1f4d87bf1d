"""Imports go one way: what the login node, the loop and the ranks may load, read from the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import rose_hpc

ROOT = Path(rose_hpc.__file__).parent
#: scripts that are shipped for users, who run them by path: no modules of ours
NOT_OURS = {"templates", "configs", "jobscripts", "examples"}
HEAVY = {"numpy", "h5py", "radical", "pydantic", "torch", "gymnasium"}
#: what the login node's commands are made of (resume and run go on to become a driver; only their first part counts)
LOGIN = (
    "rose_hpc",
    "rose_hpc.__main__",
    "rose_hpc.cli",
    *(f"rose_hpc.cli.{name}" for name in ("options", "status", "logs", "resume", "run", "init", "inspect", "merge")),
    *(
        f"rose_hpc.{name}"
        for name in (
            "errors",
            "rundir",
            "publishing",
            "ownership",
            "journal",
            "progress",
            "standing",
            "seeds",
            "resources",
        )
    ),
    "rose_hpc.report.view",
    *(f"rose_hpc.cli.{name}" for name in ("submit", "watch", "cancel", "doctor")),
    *(f"rose_hpc.slurm.{name}" for name in ("commands", "queue", "records", "view", "watch", "cancel", "submit")),
    *(f"rose_hpc.slurm.{name}" for name in ("setup", "options", "program", "doctor", "probe")),
)
#: what a rank starts with: it imports what its work needs when it needs it
RANK = tuple(
    f"rose_hpc.execution.{name}" for name in ("rank", "supervisor", "keeper", "child", "frames", "attempt", "host")
)
LOOP = tuple(
    f"rose_hpc.{name}"
    for name in (
        "loop",
        "stages",
        "collect",
        "accepting",
        "tries",
        "walltime",
        "session",
        "attempts",
        "driver",
        "progress",
    )
)


def files() -> dict[str, Path]:
    """Our modules by name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] not in NOT_OURS:
            found[".".join(("rose_hpc", *(part for part in parts if part != "__init__")))] = path
    return found


FILES = files()
# at once, before any test: where a finalizer parses too (a traceback of an asyncio task), Python 3.11 loses its place
TREES = {module: ast.parse(path.read_bytes()) for module, path in FILES.items()}


def type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(node: ast.AST, everywhere: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that run with the module; ``everywhere``: in functions too; never those for types only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif type_checking(child):
            for branch in child.orelse:  # type: ignore[attr-defined]  # an If, as just seen
                yield from statements(branch, everywhere)
        elif everywhere or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(child, everywhere)


@cache
def imports(module: str, everywhere: bool = False) -> frozenset[str]:
    """The full names of what a module of ours imports: modules of ours as such, others as they are written."""
    found = set()
    for statement in statements(TREES[module], everywhere):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        else:
            assert not statement.level, f"{module}: relative imports are not used here"
            inner = {f"{statement.module}.{alias.name}" for alias in statement.names}
            # `from package import module` loads both; where the package is ours we know which names are modules
            found |= {name for name in inner if name in FILES or tops({name}) != {"rose_hpc"}} | {str(statement.module)}
    return frozenset(found)


def loads(module: str) -> set[str]:
    """Everything that is loaded with a module of ours, the packages around each included."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [name.rpartition(".")[0]] if "." in name else []
            waiting += imports(name) if name in FILES else []
    return seen


def tops(modules: set[str] | frozenset[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def inside(modules: set[str] | frozenset[str], *packages: str) -> set[str]:
    """Those of ``modules`` that are one of our ``packages``, or in one."""
    return {m for m in modules if any(f"{m}.".startswith(f"rose_hpc.{package}.") for package in packages)}


def importers(what: str) -> set[str]:
    """Modules of ours that import ``what`` or something in it, wherever in their code."""
    return {module for module in FILES if any(f"{name}.".startswith(f"{what}.") for name in imports(module, True))}


def test_the_source_is_what_is_read():
    """The rules below are about something: the modules they name are there."""
    assert set(LOGIN) | set(RANK) | set(LOOP) <= FILES.keys()
    assert "numpy" in tops(loads("rose_hpc.experience.bank"))
    assert {"radical", "radical.asyncflow"} & imports("rose_hpc.driver", True)


@pytest.mark.parametrize("module", LOGIN)
def test_the_login_node_loads_nothing_heavy(module):
    """What answers on a login node loads no numpy, h5py, radical or pydantic, nor anything that does."""
    assert not tops(loads(module)) & HEAVY


def test_the_login_node_loads_nothing_heavy_indeed():
    """The same, as the interpreter sees it: what is loaded when the login node's modules are."""
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(*sys.modules)"
    modules = [module for module in LOGIN if not module.endswith("__main__")]
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=True)
    assert not tops(set(done.stdout.split())) & (HEAVY | {"rich", "xxhash", "asyncio"})


@pytest.mark.parametrize("module", RANK)
def test_a_rank_starts_light(module):
    """A thousand ranks start with neither numpy, h5py nor radical: each imports what its work needs."""
    assert not tops(loads(module)) & HEAVY


def test_ranks_and_experience_know_no_scheduler_and_no_loop():
    """Ranks and the data plane import nothing of Slurm, the command line, the loop or its learners, wherever."""
    for module in (*RANK, *inside(set(FILES), "experience"), "rose_hpc.task"):
        known = imports(module, True)
        assert not inside(known, "slurm", "cli", "loop", "stages", "session", "learners", "driver", "report"), module


def test_experience_stands_alone():
    """The data plane serves outside a run: of the rest it imports errors only, and where tests end it."""
    shared = {"rose_hpc", "rose_hpc.errors", "rose_hpc.refusals", "rose_hpc.failpoints"}
    for module in inside(set(FILES), "experience"):
        ours = {name for name in imports(module, True) if tops({name}) == {"rose_hpc"}}
        assert ours - inside(ours, "experience") <= shared, module


def test_the_loop_never_opens_experience():
    """Reducing is a worker's work: no module of the loop imports the data plane, h5py or numpy, wherever."""
    for module in LOOP:
        assert not inside(imports(module, True), "experience"), module
        assert not tops(imports(module, True)) & {"numpy", "h5py"}, module


def test_only_the_pilot_imports_radical_pilot():
    """RP patches and starts what it likes when imported: one family of modules knows it, and never by the way."""
    for package in ("radical.pilot", "radical.utils"):
        assert all(module.startswith("rose_hpc.execution.pilot") for module in importers(package)), package
    assert importers("radical.pilot")


def test_nothing_imports_the_command_line():
    """The library knows no command line; the command line is a layer over it."""
    outside = {m for m in importers("rose_hpc.cli") if not inside({m}, "cli")}
    assert outside <= {"rose_hpc.__main__"}


def test_there_is_no_import_cycle():
    """Modules can be read, and loaded, one after the other."""
    # a package's own __init__ is loaded around every module in it: what counts is what each module asks for
    graph = {module: {name for name in imports(module) if name in FILES and name != module} for module in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_nothing_is_unpickled_from_disk():
    """Pickles travel over our own sockets only: no module imports pickle, and only those at sockets cloudpickle."""
    assert importers("pickle") | importers("shelve") | importers("marshal") | importers("joblib") == set()
    assert all(inside({module}, "execution") for module in importers("cloudpickle"))
