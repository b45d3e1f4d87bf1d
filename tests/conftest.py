"""What all tests share: helpers on the path, no inherited run, and skips that CI forbids."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent / "support"))

# a busy machine is no counter-example
settings.register_profile("rose_hpc", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rose_hpc")

#: a skip whose reason starts with one of these is an optional extra's, and allowed in CI too
OPTIONAL = ("optional extra:",)
NO_SKIP = os.environ.pop("ROSE_HPC_NO_SKIP", "") == "1"  # taken out, so that no run under test inherits it


@pytest.fixture(autouse=True)
def _outside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test inherits a run, a task or an allocation from whoever started it."""
    for name in list(os.environ):
        if name.startswith(("ROSE_HPC_", "SLURM_", "SBATCH_", "SQUEUE_")):
            monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder whose name no shell would survive."""
    path = tmp_path / 'it\'s a "run" $HOME; echo'
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """What pytest-xdist's processes are told by the one that starts them."""
    node.workerinput["no_skip"] = NO_SKIP


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """With ROSE_HPC_NO_SKIP=1 a skipped test is a failed one, but for optional extras."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]  # pluggy's Result
    no_skip = getattr(item.config, "workerinput", {}).get("no_skip", NO_SKIP)
    if report.skipped and no_skip and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if not reason.startswith(OPTIONAL):
            report.outcome = "failed"
            report.longrepr = f"skipped, and skipping is forbidden here: {reason}"
