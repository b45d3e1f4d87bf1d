"""What status says of a run, from its files alone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from rose_hpc import rundir
from rose_hpc.errors import RunError
from rose_hpc.journal import Journal
from rose_hpc.ownership import Ownership
from rose_hpc.rundir import RunDir
from rose_hpc.standing import describe, standing, table

FACTS = {
    **{"name": "toy", "seed": 7, "environments": ["a", "b"], "max_iterations": 9},
    **{"metric": "MODEL_REWARD", "operator": ">", "threshold": 200.0},
}
#: contract: `status RUN --json` has at least these
CONTRACT = {"run", "state", "iteration", "reward", "threshold", "jobs", "policy", "best_policy"}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create("toy", tmp_path / "it's a run")


def write(run: RunDir, *records: tuple[str, dict]) -> None:
    journal = Journal(run.journal)
    for kind, fields in records:
        journal.append(kind, **fields)
    journal.close()


def iteration(run: RunDir, number: int, reward: float) -> list[tuple[str, dict]]:
    """A complete iteration: its records, and its policy."""
    run.policy(number).mkdir(parents=True)
    stages = {"collect": {}, "merge": {"rows": 10, "digest": "d"}, "update": {}, "check": {"reward": reward}}
    return [
        ("rank", {"iteration": number, "environment": "a", "rows": 10, "nan_rewards": 1}),
        *(("stage", {"iteration": number, "stage": stage, **fields}) for stage, fields in stages.items()),
        ("checkpoint", {"iteration": number}),
    ]


def test_the_facts_of_the_contract(run):
    """Iterations done, reward, threshold, jobs and policies are there, and all of it is plain JSON."""
    jobs = [("job", {"job": None, "epoch": 0}), ("job", {"job": "17", "epoch": 1})]
    write(run, ("run", FACTS), jobs[0], *iteration(run, 0, 150.0), jobs[1], *iteration(run, 1, 120.0))
    facts = standing(run)
    assert facts.keys() >= CONTRACT
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert (facts["run"], facts["state"], facts["iteration"]) == (str(run.path), "stopped", 2)
    assert (facts["reward"], facts["best_reward"], facts["threshold"]) == (120.0, 150.0, 200.0)
    assert (facts["jobs"], facts["drivers"], facts["rows"], facts["nan_rewards"]) == (["17"], 2, 20, 2)
    assert (facts["policy"], facts["best_policy"]) == (str(run.policy(1)), str(run.policy(0)))


def test_a_run_that_has_just_been_made(run):
    """Before its first record a run stands at nothing, and can be described."""
    facts = standing(run)
    assert (facts["state"], facts["iteration"], facts["reward"], facts["policy"]) == ("stopped", 0, None, None)
    assert "none yet" in describe(facts)
    assert "never" in table([facts])


def test_a_driver_that_lives_makes_it_running(run):
    """While its driver lives a run is running, and the stage it is in is known; killed or gone, it is stopped."""
    write(run, ("run", FACTS), ("job", {"job": None}), *iteration(run, 0, 1.0)[:2])
    ownership = Ownership(run)
    facts = standing(run)
    assert (facts["state"], facts["stage"]) == ("running", "merge")
    assert facts["owner"]["epoch"] == 0
    ownership.release()
    facts = standing(run)
    assert (facts["state"], facts["stage"], facts["owner"]) == ("stopped", None, None)


@pytest.mark.parametrize("state", ["converged", "max_iterations", "failed", "stopped"])
def test_how_a_run_ended_is_its_state(run, state):
    """The end's record says how and why; a driver that came after it has not ended."""
    write(run, ("run", FACTS), ("job", {}), ("end", {"state": state, "reason": "because"}))
    facts = standing(run)
    assert (facts["state"], facts["reason"]) == (state, "because")
    assert f"{state}: because" in describe(facts)
    write(run, ("job", {}))
    assert (standing(run)["state"], standing(run)["reason"]) == ("stopped", None)


def test_a_policy_that_is_not_there_is_not_named(run):
    """What status names exists: a policy that retention or a user removed is none."""
    write(run, ("run", FACTS), *iteration(run, 0, 5.0), *iteration(run, 1, 9.0))
    run.policy(1).rmdir()
    facts = standing(run)
    assert (facts["policy"], facts["best_policy"]) == (None, None)


def test_the_best_policy_is_the_criterions(run):
    """Where less is asked for, the policy of the least reward is best; without a check it is the newest."""
    write(run, ("run", {**FACTS, "operator": "<"}), *iteration(run, 0, 5.0), *iteration(run, 1, 9.0))
    assert standing(run)["best_policy"] == str(run.policy(0))


def test_a_run_that_can_go_on_says_how(run):
    """A stopped or failed run's description ends with the command that resumes it, ready to be typed."""
    write(run, ("run", FACTS), ("end", {"state": "failed", "reason": "env_1 exited"}))
    assert describe(standing(run)).splitlines()[-1].endswith(run.command("resume"))
    write(run, ("job", {}), ("end", {"state": "converged", "reason": ""}))
    assert "resume" not in describe(standing(run))


def test_people_see_the_same_facts(run):
    """The description and the table have the reward, its criterion, rows, NaN rewards and jobs."""
    write(run, ("run", FACTS), ("job", {"job": "17"}), *iteration(run, 0, 150.0))
    text = describe(standing(run))
    for words in ("150 (until MODEL_REWARD > 200), best 150", "1 complete of at most 9", "10 rows from 2 environments"):
        assert words in text
    assert "1 rewards are NaN" in text
    assert "17" in text
    head, row = table([standing(run)]).splitlines()
    assert head.split() == ["RUN", "STATE", "ITERATION", "REWARD", "THRESHOLD", "UPDATED"]
    assert row.split()[-7:-3] == ["1", "150", ">", "200"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (-100, "0 s"), (90, "2 min"), (7200, "2 h"), (2e5, "2 d")])
def test_ages_are_in_words(run, monkeypatch, seconds, text):
    """How long ago the last record was is said in one unit; a clock that runs ahead is now."""
    write(run, ("run", FACTS))
    now = time.time() + seconds
    facts = standing(run)
    facts["updated"] = now - seconds
    monkeypatch.setattr("rose_hpc.standing.time.time", lambda: now)
    assert f"{text} ago" in describe(facts)


def test_what_is_no_run_is_an_error(tmp_path):
    """A folder without a journal is refused."""
    with pytest.raises(RunError, match="is not a run"):
        standing(RunDir(tmp_path))
