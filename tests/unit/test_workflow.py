"""What a run consists of: refused before it starts when it could not run, or never end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rose_hpc.config import load_config
from rose_hpc.errors import UsageError
from rose_hpc.named import takes
from rose_hpc.workflow import (
    Criterion,
    Environment,
    Work,
    Workflow,
    check_name,
    from_config,
)

WORK = Work(argv=("true",))


def workflow(*names: str, work: Work = WORK, update: Work = WORK, **options) -> Workflow:
    options = {"max_iterations": 3, **options}
    return Workflow("toy", Path("/"), tuple(Environment(name, work) for name in names), update, **options)


@pytest.mark.parametrize("name", ["a", "env_1", "A.b-c_9", "...", "x" * 64])
def test_names_of_the_contract_are_taken(name):
    """Names that are files' names everywhere are environments' names."""
    check_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "x" * 65, "a b", "a/b", "a\n", "é", "a'b", "$HOME"])
def test_other_names_are_refused(name):
    """A name that could leave its folder, or hurt a shell or a file system, is refused, and shown."""
    with pytest.raises(UsageError, match="must be 1 to 64 of A-Z a-z 0-9"):
        check_name(name)


@pytest.mark.parametrize("names", [("env", "env"), ("env", "ENV"), ("a", "b", "A")])
def test_names_are_unique_without_regard_to_case(names):
    """Two environments whose shards would be one file on some disks are refused, both named."""
    with pytest.raises(UsageError, match=f"two environments are named '{names[0]}' and '{names[-1]}'"):
        workflow(*names)


def test_a_workflow_needs_an_environment():
    """Without a source of experience there is no run."""
    with pytest.raises(UsageError, match="there is no environment"):
        workflow()


@pytest.mark.parametrize("limit", [None, 0])
def test_a_workflow_that_would_never_end_is_refused(limit):
    """One of a criterion and a limit must be there; either alone is enough."""
    with pytest.raises(UsageError, match="this would never end"):
        workflow("a", max_iterations=limit)
    workflow("a", max_iterations=limit, criterion=Criterion(WORK, "MODEL_REWARD", ">", 1.0))
    workflow("a", max_iterations=1)


def test_every_work_has_a_name():
    """What is planned or refused is called by its stage, environments by their names, in their order."""
    flow = workflow("b", "a", criterion=Criterion(WORK, "MODEL_REWARD", ">", 1.0))
    assert list(flow.works) == ["environment b", "environment a", "update", "check"]
    assert list(workflow("a").works) == ["environment a", "update"]


@pytest.mark.parametrize(
    ("operator", "below", "at", "above"),
    [(">", 0, 0, 1), (">=", 0, 1, 1), ("<", 1, 0, 0), ("<=", 1, 1, 0), ("==", 0, 1, 0), ("=", 0, 1, 0)],
)
def test_a_criterion_compares_as_it_says(operator, below, at, above):
    """Every operator of ROSE is met below, at and above the threshold exactly where it says."""
    criterion = Criterion(WORK, "custom", operator, 2.0)
    assert [criterion.met(value) for value in (1.9, 2.0, 2.1)] == [bool(below), bool(at), bool(above)]
    assert not criterion.met(float("nan"))


def test_functions_that_cannot_take_their_values_are_known():
    """Before an hour of collecting has passed it is known whether the update takes what it will be given."""
    assert takes(lambda *values: None, 3, {})
    assert takes(lambda a, b=1, *, rate: None, 1, {"rate": 1})
    assert not takes(lambda a: None, 2, {})
    assert not takes(lambda a: None, 1, {"rate": 1})
    assert takes(dict.update, 99, {"nobody": "can tell"}), "a builtin without a signature is let through"


def test_a_commands_line_is_split_as_a_shell_splits_it():
    """A program's task gives one line; it becomes arguments, quotes respected, and no shell sees it."""

    async def line(path: str, *, rate: float) -> str:
        return f"python '{path}/a b.py' --rate={rate} '$HOME' ';' "

    argv = asyncio.run(Work(make_command=line).command("/x", rate=0.5))
    assert argv == ("python", "/x/a b.py", "--rate=0.5", "$HOME", ";")
    assert asyncio.run(WORK.command()) == ("true",)


@pytest.mark.parametrize("value", [None, 3, "", "   ", b"true", ["true"]])
def test_what_is_no_command_line_is_refused(value):
    """A task that returns something else is named, with the way to register a function."""

    async def my_task() -> object:
        return value

    with pytest.raises(UsageError, match=r"my_task returned .* not a command line; .*as_executable=False"):
        asyncio.run(Work(make_command=my_task).command())


def test_a_configuration_fills_the_same_workflow(tmp_path):
    """Commands, parameters, limits and the criterion of a TOML file arrive in the workflow as they were written."""
    for name in ("env.py", "update.py", "check.py"):
        (tmp_path / name).touch()
    (tmp_path / "config.toml").write_text(
        """
        name = "toy"
        [environments]
        command = "{python} env.py {epsilon}"
        timeout_s = 60
        shard = false
        [environments.grid]
        epsilon = [0.1, 0.2]
        [update]
        command = "{python} update.py"
        cores_per_rank = 2
        [check]
        command = "{python} check.py"
        threshold = 7
        [merge]
        window = 4
        [retention]
        policies = 2
        """
    )
    flow = from_config(load_config(tmp_path / "config.toml"))
    assert [(e.name, e.parameters, e.work.argv[1:], e.work.timeout_s) for e in flow.environments] == [
        ("env_1", {"epsilon": 0.1}, ("env.py", "0.1"), 60),
        ("env_2", {"epsilon": 0.2}, ("env.py", "0.2"), 60),
    ]
    assert [e.shard for e in flow.environments] == [None, None]
    assert (flow.cwd, flow.window, flow.retention.policies, flow.update.resources.cores) == (tmp_path, 4, 2, 2)
    assert (flow.criterion.metric, flow.criterion.operator, flow.criterion.threshold) == ("MODEL_REWARD", ">", 7)
