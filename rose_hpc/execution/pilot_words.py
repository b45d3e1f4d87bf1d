"""Why pilots and their tasks ended, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rose_hpc.errors import TaskError
from rose_hpc.execution.pilot_resources import PilotPlan


def why(plan: PilotPlan, message: Mapping[str, Any]) -> str:
    """Why a pilot has ended."""
    if message["state"] == "DONE":
        cause = f"it has ended; its runtime is {plan.runtime_min} min"
    else:
        cause = f"it ended as {message['state']}"
    return f"{cause}: {message['reason']}" if message["reason"] else cause


def last_words(sandbox: Path | None) -> str:
    """The last that its host wrote, with a colon before it; empty where it wrote nothing."""
    try:
        lines = (sandbox or Path()).joinpath("host.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    said = [line for line in lines if "rose_hpc.pilot_host pilot " not in line]  # not the states that it went through
    return f": {said[-1]}" if said else ""


def task_error(task: Mapping[str, Any], message: Mapping[str, Any]) -> TaskError:
    """The error of a task that failed, or was not run."""
    name = task.get("name") or task["uid"]
    lines = message["stderr"].strip().splitlines()
    said = lines[-1] if lines else message["reason"] if message["exit_code"] is None else ""
    code = "was not run" if message["exit_code"] is None else f"failed with exit code {message['exit_code']}"
    return TaskError(f"task {name!r} {code}{f': {said}' if said else ''}", hint=f"see {message['sandbox']}")
