"""Writes docs/configuration.md from the models: the one place where keys, defaults and their meaning stand.

python docs/make_configuration.py > docs/configuration.md
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rose_hpc.config_types import Model

Model.model_config["use_attribute_docstrings"] = True  # read from the source, which takes a while: here alone

from rose_hpc.config_environments import Environments, ListedEnvironment, Resources, Stage  # noqa: E402
from rose_hpc.config_models import Check, Config, Loop, Merge, Pilot, Retention, Slurm  # noqa: E402
from rose_hpc.config_sweep import ListedLearner, Sweep  # noqa: E402

TABLES: list[tuple[str, str, Any, set[str]]] = [
    ("", "the top of the file", Config, set()),
    ("[environments]", "where experience comes from", Environments, set(Resources.model_fields)),
    (
        "[[environments.list]]",
        "environments one by one, instead of a grid",
        ListedEnvironment,
        set(Resources.model_fields),
    ),
    ("[update]", "makes the next policy", Stage, set(Resources.model_fields)),
    ("[check]", "says when to stop", Check, set(Resources.model_fields)),
    ("any stage", "what a task of it takes", Resources, set()),
    ("[sweep]", "several learners in one run ([population.md](population.md))", Sweep, set()),
    ("[[sweep.list]]", "learners one by one, instead of a grid", ListedLearner, set()),
    ("[loop]", "limits", Loop, set()),
    ("[merge]", "from shards to banks", Merge, set()),
    ("[retention]", "what stays on disk", Retention, set()),
    ("[pilot]", "RADICAL-Pilot's settings", Pilot, set()),
    ("[slurm]", "what a job asks of Slurm", Slurm, set()),
]


def page() -> str:
    """The page, from the models."""
    lines = [
        "# Configuration",
        "",
        "TOML; paths are relative to the file's folder. An unknown key is an error, with a suggestion.",
        "`--set key=value` on the command line changes any of them, e.g. `--set loop.max_iterations=5`.",
        "Made from the models by `docs/make_configuration.py`.",
    ]
    for title, meaning, model, left_out in TABLES:
        lines += [
            "",
            f"## {title + ': ' if title else ''}{meaning}",
            "",
            "| key | default | meaning |",
            "|---|---|---|",
        ]
        for name, field in model.model_fields.items():
            if name in left_out or isinstance(field.default, (Loop, Merge, Retention, Pilot, Slurm)):
                continue
            if name in ("environments", "update", "check", "sweep"):
                continue
            text = (field.description or "").replace("\n", " ").replace("|", "\\|")
            lines.append(f"| `{field.alias or name}` | {_default(field)} | {text} |")
    return "\n".join(lines) + "\n"


def _default(field: Any) -> str:
    if field.is_required() and field.annotation is Path:
        return "the file's folder"
    if field.is_required():
        return "the metric's own" if field.description and "the metric's own" in field.description else "needed"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}):
        return "-"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value!r}`".replace("'", '"')


if __name__ == "__main__":
    sys.stdout.write(page())
