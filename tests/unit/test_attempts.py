"""Attempts: everything a task is given, decided once, the same whenever it is done again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rose_hpc import attempts
from rose_hpc.attempts import Place
from rose_hpc.execution.attempt import Attempt, Outcome, shard_attributes
from rose_hpc.execution.merging import Way
from rose_hpc.progress import Progress
from rose_hpc.rundir import RunDir
from rose_hpc.seeds import derive_seed
from rose_hpc.workflow import Criterion, Environment, Resources, Work, Workflow

RUN = RunDir(Path("/runs/it's a run"))
ENVIRONMENT = Environment("env_1", Work(argv=("env",), timeout_s=9.0, resources=Resources(1, 2)), {"epsilon": 0.1})
WORKFLOW = Workflow(
    "toy",
    Path("/project"),
    (ENVIRONMENT,),
    Work(argv=("update",)),
    Criterion(Work(argv=("check",)), "MODEL_REWARD", ">", 1.0),
    window=2,
)
THREADS = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}


def place(stage: str, iteration: int = 0, environment: str = "", epoch: int = 0, number: int = 1) -> Place:
    return Place(RUN, 7, 0, iteration, stage, environment, epoch, number)


def merged(*iterations: int, skipped: tuple[int, ...] = ()) -> Progress:
    """A run whose banks of these iterations are recorded."""
    progress = Progress()
    for k in sorted({*iterations, *skipped}):
        facts = {"skipped": "no shards"} if k in skipped else {"digest": "d"}
        progress.apply({"kind": "stage", "iteration": k, "stage": "merge", "rows": 1, **facts})
    return progress


NAMES = st.from_regex(r"\A[a-z0-9_.-]{1,12}\Z").filter(lambda name: name not in (".", ".."))
PLACES = st.one_of(
    st.tuples(st.just("collect"), st.integers(0, 3), NAMES, st.integers(0, 12), st.integers(1, 12)),
    st.tuples(
        st.sampled_from(["merge", "update", "check"]),
        *(st.integers(0, 3), st.just(""), st.integers(0, 12), st.integers(1, 12)),
    ),
)


@settings(deadline=None)
@given(st.lists(PLACES, unique=True, min_size=2, max_size=20))
def test_attempts_never_share_a_name(places):
    """No two tries of a run have one id or one scratch file, so that an orphan cannot overwrite its repetition."""
    made = [place(*where) for where in places]
    assert len({p.id for p in made}) == len(made)
    paths = [path for p in made for path in (Path(p.shard), p.policy, p.state)]
    assert len(set(paths)) == len(paths)
    assert all(path.parent == RUN.scratch and len(path.name) < 200 for path in paths)


def test_an_environment_is_given_what_the_contract_says():
    """An environment finds its place, parameters, seed and scratch shard, threads for its cores, and no policy yet."""
    attempt = attempts.collect(place("collect", 0, "env_1"), ENVIRONMENT, WORKFLOW.cwd, ("env", "0.1"))
    ours = {name: value for name, value in attempt.env.items() if name.startswith("ROSE_HPC_")}
    assert ours == {
        "ROSE_HPC_RUN": str(RUN.path),
        "ROSE_HPC_ITERATION": "0",
        "ROSE_HPC_STAGE": "collect",
        "ROSE_HPC_ENVIRONMENT": "env_1",
        "ROSE_HPC_PARAMETERS": '{"epsilon": 0.1}',
        "ROSE_HPC_SEED": str(derive_seed(7, 0, 0, "collect", "env_1")),
        "ROSE_HPC_SHARD": str(RUN.scratch / "0000-collect-env_1-0.1.h5"),
    }
    assert {attempt.variables()[name] for name in THREADS} == {"2"}
    assert (attempt.kind, attempt.argv, attempt.cwd) == ("command", ("env", "0.1"), "/project")
    assert (attempt.timeout_s, attempt.cores, attempt.log) == (9.0, 2, str(RUN.log(0, "collect", "env_1")))
    assert attempt.seal is True
    seed = derive_seed(7, 0, 0, "collect", "env_1")
    written = {"run": RUN.name, "iteration": 0, "environment": "env_1", "seed": seed, "parameters": {"epsilon": 0.1}}
    assert shard_attributes(attempt.env) == written


def test_a_later_environment_reads_the_previous_policy():
    """From the second iteration on, environments see the policy and state that the update before them published."""
    attempt = attempts.collect(place("collect", 3, "env_1"), ENVIRONMENT, WORKFLOW.cwd, ("env",))
    assert attempt.env["ROSE_HPC_POLICY"] == str(RUN.policy(2))
    assert attempt.env["ROSE_HPC_STATE"] == str(RUN.state(2))


@pytest.mark.parametrize(("shard", "required"), [(True, True), (None, False), (False, False)])
def test_only_a_shard_that_must_be_there_is_required(shard, required):
    """A command must leave a shard unless its configuration says otherwise; a function may."""
    environment = replace(ENVIRONMENT, shard=shard)
    attempt = attempts.collect(place("collect", 0, "env_1"), environment, WORKFLOW.cwd, ())
    assert attempt.seal is required


def test_the_update_changes_private_copies():
    """The update sees the window's banks, oldest first, and copies of policy and state that no other attempt has."""
    attempt = attempts.update(place("update", 4), WORKFLOW, merged(0, 1, 2, 3, 4), ("update",))
    assert json.loads(attempt.env["ROSE_HPC_BANKS"]) == [str(RUN.bank(3)), str(RUN.bank(4))]
    assert attempt.env["ROSE_HPC_BANK"] == str(RUN.bank(4))
    assert attempt.env["ROSE_HPC_POLICY"] == str(RUN.scratch / "0004-update-0.1.policy")
    assert attempt.env["ROSE_HPC_STATE"] == str(RUN.scratch / "0004-update-0.1.state")
    assert attempt.seal is None


def test_the_check_sees_this_iterations_policy():
    """The check reads what this iteration's update published, and the same banks."""
    attempt = attempts.check(place("check", 1), WORKFLOW, WORKFLOW.criterion.work, merged(0, 1), ("check",))
    assert attempt.env["ROSE_HPC_POLICY"] == str(RUN.policy(1))
    assert json.loads(attempt.env["ROSE_HPC_BANKS"]) == [str(RUN.bank(0)), str(RUN.bank(1))]
    assert "ROSE_HPC_SHARD" not in attempt.env


def test_iterations_without_a_bank_are_left_out():
    """Where merging was skipped there is no bank to name; older ones of the window are still seen."""
    attempt = attempts.update(place("update", 2), WORKFLOW, merged(1, skipped=(2,)), ("update",))
    assert json.loads(attempt.env["ROSE_HPC_BANKS"]) == [str(RUN.bank(1))]
    assert "ROSE_HPC_BANK" not in attempt.env
    attempt = attempts.update(place("update", 0), WORKFLOW, merged(skipped=(0,)), ("update",))
    assert attempt.env["ROSE_HPC_BANKS"] == "[]"


@settings(deadline=None)
@given(st.integers(0, 9), st.integers(1, 9), st.sets(st.integers(0, 9)))
def test_the_window_is_the_last_banks(iteration, size, banks):
    """The window holds the recorded banks of the last iterations, in order, never one of a later iteration."""
    seen = attempts.window(replace(WORKFLOW, window=size), merged(*banks), iteration)
    assert seen == [k for k in sorted(banks) if iteration - size < k <= iteration]


def test_a_repetition_differs_only_in_its_names():
    """An attempt done again, under any driver, has the same seed and environment but for its scratch names."""
    first, again = (
        attempts.collect(place("collect", 1, "env_1", epoch, number), ENVIRONMENT, WORKFLOW.cwd, ("env",))
        for epoch, number in ((0, 1), (3, 2))
    )
    assert first.id != again.id
    assert {k for k in first.env if first.env[k] != again.env[k]} == {"ROSE_HPC_SHARD"}
    assert replace(again, id=first.id, env=first.env) == first


def test_a_merge_is_in_the_order_of_the_configuration():
    """The reduction gets the shards, with their digests, in the order asked for, its scratch bank and its workers."""
    shards = {RUN.shard(0, name): f"digest of {name}" for name in ("b", "a")}
    attempt = attempts.merge(place("merge"), replace(WORKFLOW, verify=False), shards, Way(threads=3, cores=4))
    assert list(attempt.merge["shards"].items()) == [(str(path), digest) for path, digest in shards.items()]
    assert (attempt.merge["bank"], attempt.merge["verify"]) == (str(RUN.scratch / "0000-merge-0.1.h5"), False)
    assert (attempt.kind, attempt.cores, attempt.merge["workers"]) == ("merge", 4, 3)


def test_functions_are_called_not_executed():
    """A function's attempt says so, whatever its stage."""
    work = Work(function=len)
    attempt = attempts.update(place("update"), replace(WORKFLOW, update=work), merged(0), ())
    assert (attempt.kind, attempt.argv) == ("function", ())


def test_attempts_and_outcomes_travel_as_json():
    """What goes over a socket or through a file comes back equal, and another version's field is refused by name."""
    attempt = attempts.collect(place("collect", 1, "env_1"), ENVIRONMENT, WORKFLOW.cwd, ["env"])
    attempt = replace(attempt, argv=["env"], nodes=["n1"], avoid=["n2"])
    assert Attempt.from_json(json.loads(json.dumps(attempt.to_json()))) == attempt
    outcome = Outcome(attempt.id, ok=False, reason="exit", exit_code=3, paths=["/a"])
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome
    with pytest.raises(ValueError, match=r"Outcome: unknown fields \['colour'\]"):
        Outcome.from_json({**outcome.to_json(), "colour": 1})


@pytest.mark.parametrize(
    ("least_mb", "nodes", "size_mb", "copied"),
    [
        *[(None, 2, 64, True), (None, 2, 63, False), (None, 1, 5000, False)],
        *[(10, 1, 10, True), (10, 3, 9, False), (0, 3, 5000, False), (10, 0, 5000, False)],
    ],
)
def test_which_policies_are_copied_to_nodes(least_mb, nodes, size_mb, copied):
    """Large ones, on several nodes or where a size is given; never where no supervisors of ours are (0 nodes)."""
    progress = Progress()
    policy = {"digest": "d", "files": 1, "bytes": size_mb * 1_000_000}
    progress.apply({"kind": "stage", "iteration": 3, "stage": "update", "policy": policy, "state": policy})
    workflow = replace(WORKFLOW, local_policy_mb=least_mb)
    facts = attempts.policy_to_copy(workflow, progress, 4, nodes)
    assert facts == ({"digest": "d", "bytes": policy["bytes"]} if copied else None)
    assert attempts.policy_to_copy(workflow, progress, 0, nodes) is None  # there is none yet


def test_ranks_that_may_be_on_several_nodes_read_no_copy():
    """An MPI program's ranks find the policy in the run directory, whatever its size."""
    policy = {"digest": "d", "bytes": 1}
    several = replace(ENVIRONMENT, work=replace(ENVIRONMENT.work, resources=Resources(4, 1)))
    for environment, expected in ((ENVIRONMENT, policy), (several, None)):
        made = attempts.collect(place("collect", 1, "env_1"), environment, Path("/project"), ("env",), policy=policy)
        assert made.policy == expected
