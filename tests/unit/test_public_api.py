"""The public names: all there, lazily, and the same for programs and for type checkers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rose_hpc

SOURCE = Path(rose_hpc.__file__)
#: contract.md, "Python names" and what serves alone outside a run
CONTRACT = {
    *("RadicalExecutionBackend", "ParallelExperience", "SequentialReinforcementLearner", "execution_backend"),
    *("ShardWriter", "merge_shards", "ExperienceBank", "current_task", "GREATER_THAN_THRESHOLD"),
    *("LearnerConfig", "TaskConfig", "IterationState", "TrackerBase"),
}


@pytest.mark.parametrize("name", rose_hpc.__all__)
def test_every_public_name_is_there(name):
    """What is announced can be imported, and is what its own module defines."""
    value = getattr(rose_hpc, name)
    assert value is not None
    if isinstance(value, type) or callable(value):
        assert value.__module__ == f"rose_hpc.{rose_hpc._NAMES[name]}"
        assert value.__doc__


def test_the_contracts_names_are_public():
    """What users' programs import by contract is announced."""
    assert set(rose_hpc.__all__) >= CONTRACT
    assert len(set(rose_hpc.__all__)) == len(rose_hpc.__all__)


def test_type_checkers_see_the_same_names():
    """The imports for type checkers name the same things, from the same modules, as the lazy ones."""
    block = next(node for node in ast.parse(SOURCE.read_bytes()).body if isinstance(node, ast.If))
    assert isinstance(block.test, ast.Name)
    assert block.test.id == "TYPE_CHECKING"
    seen = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            assert alias.asname == alias.name, "only `import X as X` is exported to type checkers"
            seen[alias.name] = statement.module.removeprefix("rose_hpc.")
    assert seen == rose_hpc._NAMES


def test_importing_the_package_imports_nothing_else():
    """`import rose_hpc` loads no other module of ours, and no other package."""
    code = "import sys; before = set(sys.modules); import rose_hpc; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=SOURCE.parents[1], check=True
    )
    loaded = set(done.stdout.split())
    assert {name for name in loaded if name.startswith("rose_hpc")} == {"rose_hpc"}
    assert not {name.partition(".")[0] for name in loaded} - {"rose_hpc", *sys.stdlib_module_names}


def test_a_misspelt_name_is_an_error():
    """A name that is not public is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="module 'rose_hpc' has no attribute 'ParalelExperience'"):
        _ = rose_hpc.ParalelExperience
    assert dir(rose_hpc) == sorted(rose_hpc.__all__)


def test_names_from_rose_are_in_metrics():
    """rose_hpc.metrics is ROSE's: its operators are also at the top."""
    from rose_hpc import metrics

    operators = [name for name in rose_hpc.__all__ if name.endswith("_THRESHOLD")]
    assert len(operators) == 5
    assert all(getattr(rose_hpc, name) == getattr(metrics, name) for name in operators)
