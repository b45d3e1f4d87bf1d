"""Several learners in one run: from a program, and from ``[sweep]``; each on its own, all in one place."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import programs
import projects
import pytest

LEARNERS = """
    rl = ParallelReinforcementLearner(asyncflow, seed=4)

    @rl.environment_task(as_executable=False)
    def environment(*args, scale=1.0):
        task = rose_hpc.current_task()
        with task.shard() as shard:
            shard.append(observation=task.rng.random(2), reward=scale)
        return {"scale": scale, "learner": task.learner}

    @rl.update_task(as_executable=False)
    def update(value, rate=1.0):
        task = rose_hpc.current_task()
        FAIL
        file = task.policy / "weights"
        before = file.read_text() if file.exists() else ""
        file.write_text(before + repr(task.bank()["observations"].tolist()))
        return {"rate": rate}

    @rl.as_stop_criterion(metric_name="MODEL_REWARD", threshold=3, operator=">=", as_executable=False)
    def check(value):
        return (rose_hpc.current_task().iteration + 1) * value["rate"]

    rates = [LearnerConfig(update=TaskConfig(kwargs={"rate": rate})) for rate in (1.0, 1.5, 3.0)]
"""
START = """
    async for state in rl.start(max_iter=5, learner_configs=rates):
        tell(state)
"""


NAMES = ("learner-0", "learner-1", "learner-2")


def learners(fail: str = "pass") -> str:
    """The program's tasks, and what the update does before anything else."""
    return LEARNERS.replace("FAIL", fail)


def ends(run: Path) -> dict[str, list[str]]:
    """How the run and each of its learners ended, every time."""
    journals = {"": run, **{path.name: path for path in sorted(run.glob("learner-*"))}}
    return {name: [r["state"] for r in projects.records(path, "end")] for name, path in journals.items()}


def status(run: Path) -> dict[str, Any]:
    return dict(json.loads(projects.rose_hpc("status", run, "--json").stdout))


def told(done: subprocess.CompletedProcess[str]) -> list[tuple[Any, int, float]]:
    return [(s["learner_id"], s["iteration"], s["metric_value"]) for s in programs.states(done)]


def test_a_population_of_a_program(folder: Path) -> None:
    """States come as they are, with whose they are; each learner has arguments, seeds and a criterion of its own."""
    done = programs.run(programs.write(folder, learners(), START))
    assert done.returncode == 0, done.stderr
    by_learner = {each: [entry[1:] for entry in told(done) if entry[0] == each] for each in (0, 1, 2)}
    assert by_learner == {0: [(0, 1.0), (1, 2.0), (2, 3.0)], 1: [(0, 1.5), (1, 3.0)], 2: [(0, 3.0)]}
    assert {(s["learner_id"], s["learner"], s["rate"]) for s in programs.states(done)} == {
        (0, 0, 1.0),
        (1, 1, 1.5),
        (2, 2, 3.0),
    }  # fmt: skip - a table in one look
    run = programs.run_of(folder)
    assert ends(run) == {name: ["converged"] for name in ("", *NAMES)}
    digests = {projects.records(path, "stage", stage="merge")[0]["digest"] for path in run.glob("learner-*")}
    assert len(digests) == 3, "no two have the same experience"
    assert len({r["seed"] for path in run.glob("learner-*") for r in projects.records(path, "run")}) == 1
    assert "learner 2: converged: MODEL_REWARD 3 >= 3" in done.stderr
    again = projects.rose_hpc("resume", run)
    assert (again.returncode, told(again)) == (0, []), "nothing is left, and nothing is told twice"


def test_names_last_states_and_per_iteration_values(folder: Path) -> None:
    """Named learners; arguments by iteration with -1 for all others; ``learn`` gives the last state of each."""
    body = """
    by_iteration = LearnerConfig(update={0: TaskConfig(kwargs={"rate": 0.5}), -1: TaskConfig(kwargs={"rate": 1.5})})
    class Tracker(TrackerBase):
        def on_iteration(self, state): print("TRACK", state.learner_id, state.iteration, state.rate)
        def on_stop(self, state, reason): print("TRACK", reason)
    rl.add_tracker(Tracker())
    for state in await rl.learn(max_iter=2, learner_configs={"slow": by_iteration}, learner_names=["slow", "plain"]):
        tell(state)
    """
    done = programs.run(programs.write(folder, learners(), body))
    assert done.returncode == 0, done.stderr
    assert sorted(told(done)) == [("plain", 1, 2.0), ("slow", 1, 3.0)]
    lines = [line for line in done.stdout.splitlines() if line.startswith("TRACK")]
    assert sorted(lines[:-1]) == ["TRACK plain 0 1.0", "TRACK plain 1 1.0", "TRACK slow 0 0.5", "TRACK slow 1 1.5"]
    assert lines[-1] == "TRACK max_iter_reached"
    facts = status(programs.run_of(folder))
    assert [(each["name"], each["state"]) for each in facts["learners"]] == [
        ("slow", "converged"),
        ("plain", "max_iterations"),
    ]
    assert (facts["state"], facts["best_learner"], facts["best_reward"]) == ("max_iterations", 0, 3.0)


def test_a_learner_that_fails_stops_no_other(folder: Path) -> None:
    """Told at once and raised at the end, by name; the run has failed, and resumed it does what that one left."""
    fail = """
        if rate == 1.5 and task.iteration == 1:
            raise LookupError("no such rate")
        other = pathlib.Path(os.environ["ROSE_HPC_RUN"]).parent / "learner-1" / "journal.jsonl"
        end = time.monotonic() + 60
        while task.learner == 0 and task.iteration == 2 and '"kind":"end"' not in other.read_text():
            assert time.monotonic() < end
            time.sleep(0.01)
    """
    done = programs.run(programs.write(folder, learners(fail), START, top="import time"))
    assert done.returncode == 1
    assert [entry for entry in told(done) if entry[0] == 0] == [(0, 0, 1.0), (0, 1, 2.0), (0, 2, 3.0)]
    failure = "learner 1: the update failed in iteration 1: it raised LookupError: no such rate"
    assert f"TaskError: {failure}; see " in done.stderr
    assert f"warning: {failure}; the other learners go on" in done.stderr
    run = programs.run_of(folder)
    assert ends(run) == {
        "": ["failed"],
        "learner-0": ["converged"],
        "learner-1": ["failed"],
        "learner-2": ["converged"],
    }  # fmt: skip - a table in one look
    assert f"then `rose-hpc resume {shlex.quote(str(run))}`" in done.stderr, "the whole is resumed, not the learner"
    programs.write(folder, learners(), START)
    resumed = projects.rose_hpc("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert told(resumed) == [(1, 1, 3.0)]
    assert status(run)["state"] == "converged"


def test_a_killed_population_goes_on_where_every_learner_was(tmp_path: Path) -> None:
    """Killed at any moment, it ends as an undisturbed one: the same banks, policies and rewards of every learner."""
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
    assert programs.run(programs.write(tmp_path / "calm", learners(), START)).returncode == 0
    program = programs.write(tmp_path / "killed", learners(), START)
    seen = []
    run = None
    for point in ("session-begun:3", "checkpoint-recorded:2", "iteration-done:2"):
        done = programs.run(program, ROSE_HPC_FAILPOINT=point, **({"ROSE_HPC_RUN": str(run)} if run else {}))
        assert done.returncode == -signal.SIGKILL, done.stderr
        seen += told(done)
        run = programs.run_of(tmp_path / "killed")
        projects.wait_for(lambda: not projects.processes_of(tmp_path), 15)
    assert run is not None
    resumed = projects.rose_hpc("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    (calm,) = (tmp_path / "calm" / "runs").iterdir()
    for number in range(3):
        assert projects.essence(run / f"learner-{number}") == projects.essence(calm / f"learner-{number}")
    assert sorted({*seen, *told(resumed)}) == [
        (0, 0, 1.0),
        (0, 1, 2.0),
        (0, 2, 3.0),
        (1, 0, 1.5),
        (1, 1, 3.0),
        (2, 0, 3.0),
    ]  # fmt: skip - a table in one look


def test_a_program_that_breaks_down_ends_all_learners(folder: Path) -> None:
    """Its own error is all that is told; every learner has its end, and the state it broke down with comes again."""
    loop = """
    async for state in rl.start(max_iter=3, learner_configs=rates):
        tell(state)
        if state.learner_id == 1 and once("failed"):
            raise LookupError("mine")
    """
    done = programs.run(programs.without_cleaning_up(programs.write(folder, learners(), loop)))
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1, done.stderr
    assert done.stderr.splitlines()[-1] == "LookupError: mine"
    run = programs.run_of(folder)
    assert sorted(r["learner"] for r in projects.records(run, "learner")) == [0, 1, 2]
    assert all(len(of) == 1 for of in ends(run).values())
    resumed = projects.rose_hpc("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    again = [state for state in told(done) if state[0] == 1][-1]
    assert again in told(resumed)
    assert {(n, k) for n, k, _ in told(done) + told(resumed)} >= {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)}


def test_who_cannot_record_its_end_stops_no_other(folder: Path) -> None:
    """A program leaves, and one learner's disk refuses its record: the others have theirs, and the program is told."""
    refusing = """
    from contextlib import aclosing
    from rose_hpc.session import Session

    def refuse(session, kind, really=Session.record, **fields):
        if kind == "checkpoint" and session.run.path.name == "learner-0":
            raise rose_hpc.errors.RunError("no room")
        really(session, kind, **fields)

    Session.record = refuse
    """
    loop = """
    async with aclosing(rl.start(max_iter=5, learner_configs=rates)) as states:
        async for state in states:
            if state.learner_id == 0:
                break
    """
    done = programs.run(programs.write(folder, learners(), loop, top=refusing))
    assert done.returncode == 1
    assert "no room" in done.stderr.splitlines()[-1]
    run = programs.run_of(folder)
    assert sorted(r["learner"] for r in projects.records(run, "learner")) == [0, 1, 2]
    assert all(of and of[-1] in ("stopped", "failed", "converged") for of in ends(run).values()), ends(run)


def test_configurations_of_one_learner_and_of_all(folder: Path) -> None:
    """What is set for another learner holds from its next iteration on: at once a record, which a kill leaves."""
    waits = """
        awaited = {(0, 1): "go", (1, 1): "begun"}.get((task.learner, task.iteration))
        if awaited == "go":
            open("begun", "w").close()
        while awaited and not os.path.exists(awaited):
            time.sleep(0.01)
    """
    loop = """
    def scaled(scale):
        return LearnerConfig(environment=TaskConfig(kwargs={"scale": scale}))
    async for state in rl.start(max_iter=3, parallel_learners=2):
        tell(state)
        if state.learner_id == state.iteration == 0:
            rl.set_next_config(scaled(5.0))
        if state.learner_id == state.iteration == 1:  # the other one is in its iteration 1, and waits
            if once("killed"):
                rl.set_next_config(scaled(7.0), learner_id=0)
                os.kill(os.getpid(), signal.SIGKILL)
            open("go", "w").close()
        if state.iteration == 2:
            try:
                rl.set_next_config(scaled(9.0), learner_id=2)
            except rose_hpc.RoseHpcError as error:
                print("TOLD", error)
    """
    program = programs.write(folder, learners(waits), loop, top="import time")
    killed = programs.run(program)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = programs.run_of(folder)
    resumed = projects.rose_hpc("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    scales = {
        (s["learner_id"], s["iteration"]): s["scale"] for done in (killed, resumed) for s in programs.states(done)
    }
    assert [scales[0, k] for k in range(3)] == [1.0, 5.0, 7.0]
    assert scales[1, 2] == 5.0
    assert "TOLD there is no learner 2; there are 0, 1" in resumed.stdout


def test_leaving_a_population(folder: Path) -> None:
    """`break` ends all learners in order; what nobody saw is yielded when the run goes on, what was seen is not."""
    loop = """
    async for state in rl.start(max_iter=3, parallel_learners=3):
        tell(state)
        if once("left"):
            await asyncio.sleep(SLEEP)  # by now the others have states to tell, too
            break
    print("after the loop")
    """
    program = programs.write(folder, learners(), loop.replace("SLEEP", "2"))
    done = programs.run(program)
    assert (done.returncode, "after the loop" in done.stdout) == (0, True), done.stderr
    run = programs.run_of(folder)
    assert ends(run) == {name: ["stopped"] for name in ("", *NAMES)}
    first = told(done)
    assert len(first) == 1
    resumed = projects.rose_hpc("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert sorted(first + told(resumed)) == [(n, k, k + 1.0) for n in range(3) for k in range(3)]


SLIPS = {
    "one": ("parallel_learners=1", "1 learner is no population; use SequentialReinforcementLearner"),
    "length": ("parallel_learners=3, learner_configs=[None, None]", "there are 2 learner_configs for 3 learners"),
    "names": ("learner_names=['a', 'a']", "learner_names are ['a', 'a'], for 2 learners"),
    "unknown": ("learner_names=['a', 'b'], learner_configs={'c': None}", "learner_configs has 'c'; the learners are"),
    "count": ("parallel_learners=3, learner_names=['a', 'b']", "learner_names are ['a', 'b'], for 3 learners"),
}


def test_slips_are_usage_errors(folder: Path) -> None:
    """Each says what does not fit, before anything is made; ROSE's ValueErrors are ours too."""
    parts = [f"await catch(rl.learn({arguments}))" for arguments, _ in SLIPS.values()]
    top = """
    async def catch(slip):
        try:
            await slip
        except ValueError as error:
            print("TOLD", type(error).__name__, error)
    """
    done = programs.run(programs.write(folder, learners(), *parts, top=top))
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOLD UsageError ")]
    for (name, (_, what)), line in zip(SLIPS.items(), lines, strict=True):
        assert what in line, name
    assert not (folder / "runs").exists()


# -- [sweep] -----------------------------------------------------------------------------------------------------------

SWEEP = {
    **projects.LIGHT,
    "environment": "import os; print(os.environ['ROSE_HPC_PARAMETERS'], os.environ['ROSE_HPC_LEARNER'])",
    "check": """
        import os, json, sys
        parameters = json.loads(os.environ["ROSE_HPC_PARAMETERS"])
        assert float(sys.argv[1]) == parameters["rate"], sys.argv
        print((int(os.environ["ROSE_HPC_ITERATION"]) + 1) * parameters["rate"])
    """,
    "config": """
        name = "swept"
        seed = 1
        [environments]
        command = "{python} -S environment.py"
        shard = false
        [environments.grid]
        scale = [1, 2]
        [update]
        command = "{python} -S update.py"
        [check]
        command = "{python} -S check.py {rate}"
        threshold = 3
        operator = ">="
        [loop]
        max_iterations = 3
        [sweep.grid]
        rate = [1, 1.5, 0.5]
    """,
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three learners, of which one reaches max_iterations; its run directory."""
    folder = tmp_path_factory.mktemp("swept")
    projects.write_project(folder, **SWEEP)
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "r", cwd=folder)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[-2] == ("max_iterations: of 3 learners 2 converged, 1 reached max_iterations")
    return folder / "r"


def test_a_sweep_hands_its_parameters_on(swept: Path) -> None:
    """As placeholders and as JSON, beside the environment's own; every learner has its number and its seeds."""
    log = (swept / "learner-1" / "logs" / "iter-0000-collect-env_2.log").read_text()
    assert log == '{"rate": 1.5, "scale": 2} 1\n'
    traces = [(swept / f"learner-{k}" / "iter-0000" / "state" / "trace").read_text() for k in range(3)]
    assert len(set(traces)) == 3
    assert [
        [r["reward"] for r in projects.records(swept / f"learner-{k}", "stage", stage="check")] for k in range(3)
    ] == [[1.0, 2.0, 3.0], [1.5, 3.0], [0.5, 1.0, 1.5]]  # fmt: skip - a table in one look


def test_status_shows_every_learner_and_the_best(swept: Path) -> None:
    """The facts of the run are the best learner's; a line for each learner."""
    facts = status(swept)
    assert (facts["state"], facts["iteration"], facts["best_learner"], facts["reward"]) == ("max_iterations", 3, 0, 3.0)
    assert facts["best_policy"] == str(swept / "learner-0" / "iter-0002" / "policy")
    assert [(each["learner"], each["state"], each["iteration"], each["parameters"]) for each in facts["learners"]] == [
        (0, "converged", 3, {"rate": 1}),
        (1, "converged", 2, {"rate": 1.5}),
        (2, "max_iterations", 3, {"rate": 0.5}),
    ]  # fmt: skip - a table in one look
    shown = projects.rose_hpc("status", swept).stdout
    assert "best learner: 0 (rate=1)" in shown
    assert any(line.split()[:4] == ["*", "0", "rate=1", "converged"] for line in shown.splitlines())
    one = json.loads(projects.rose_hpc("status", swept / "learner-2", "--json").stdout)
    assert (one["state"], one["reward"]) == ("max_iterations", 1.5)


def test_the_other_commands_show_all_learners(swept: Path) -> None:
    """`logs`, `inspect --check`, `watch` take the run; `resume` and `cancel` of one learner name the whole."""
    logs = projects.rose_hpc("logs", swept, "--stage", "check").stdout
    assert [line for line in logs.splitlines() if line.startswith("==>")] == [
        f"==> learner-{k}/iter-{i:04d}-check.log <==" for k, i in ((0, 2), (1, 1), (2, 2))
    ]
    one = projects.rose_hpc("logs", swept, "--learner", 1, "--iteration", 0, "--environment", "env_1")
    assert one.stdout == '{"rate": 1.5, "scale": 1} 1\n'
    checked = projects.rose_hpc("inspect", swept, "--check").stdout
    assert checked.count("journal.jsonl") == 4
    assert "DAMAGED" not in checked
    watched = projects.rose_hpc("watch", swept)
    assert watched.returncode == 3
    assert "learner 1: iteration 1: MODEL_REWARD 3 " in watched.stdout
    for command in ("resume", "cancel"):
        refused = projects.rose_hpc(command, swept / "learner-1")
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
        assert f"is one learner of a run; name the whole, {swept}" in refused.stderr


def test_gc_and_branching_know_learners(swept: Path, tmp_path: Path) -> None:
    """`gc` looks at every learner, by the run's own [retention]; a population cannot be branched, which is said."""
    run = tmp_path / "r"
    shutil.copytree(swept, run)
    (run / "learner-2" / "scratch" / "left.h5").write_bytes(b"x" * 5000)
    config = run / "config.toml"
    config.write_text(config.read_text().replace('policies = "all"', "policies = 1"))
    removed = json.loads(projects.rose_hpc("gc", run, "--json").stdout)["removed"]
    assert {entry["path"] for entry in removed} == {
        "learner-2/scratch/left.h5",
        *(
            f"learner-{n}/iter-{k:04d}/{what}"
            for n, last in ((0, 2), (1, 1), (2, 2))
            for k in range(last)
            for what in ("policy", "state")
        ),
    }  # fmt: skip - a table in one look
    assert (run / "learner-0" / "iter-0002" / "policy").is_dir()
    for each in (run, run / "learner-1"):
        done = projects.rose_hpc("resume", each, "--from-iteration", 1, "--run-dir", tmp_path / "b")
        assert done.returncode == 2, done.stderr


def test_the_report_has_a_line_for_every_learner(swept: Path, tmp_path: Path) -> None:
    """Rewards, parameters and a table of all learners, and a page for each; elsewhere one page, without links."""
    assert projects.rose_hpc("report", swept).returncode == 0
    page = (swept / "report.html").read_text()
    for part in ('id="rewards-chart"', 'id="parameter-chart-0"', "learner 1 (rate=1.5)", 'id="table-learners"'):
        assert part in page, part
    assert page.count("/report.html") == 3
    assert 'id="reward-chart"' in (swept / "learner-2" / "report.html").read_text()
    assert projects.rose_hpc("report", swept, "--output", tmp_path / "page.html").returncode == 0
    assert "/report.html" not in (tmp_path / "page.html").read_text()


def test_plan_shows_the_learners(swept: Path) -> None:
    """How many there are, and the parameters of each."""
    facts = json.loads(projects.rose_hpc("plan", "config.toml", "--json", cwd=swept.parent).stdout)
    assert [each["parameters"]["rate"] for each in facts["learners"]] == [1, 1.5, 0.5]
    assert facts["check"]["argv"][-1] == "1"
    assert "3 learners side by side" in projects.rose_hpc("plan", "config.toml", cwd=swept.parent).stdout


def test_an_extended_sweep_goes_on_where_it_can(swept: Path, tmp_path: Path) -> None:
    """With a later limit only the learner that had reached it goes on; learners are kept as they are."""
    run = tmp_path / "r"
    shutil.copytree(swept, run)
    other = projects.rose_hpc("resume", run, "--set", "sweep.grid.rate=[1, 2, 3]")
    assert (other.returncode, "a run keeps its learners" in other.stderr) == (2, True)
    done = projects.rose_hpc("resume", run, "--max-iterations", 6)
    assert done.returncode == 0, done.stderr
    assert [each["iteration"] for each in status(run)["learners"]] == [3, 2, 6]


def test_a_failing_learner_of_a_sweep(tmp_path: Path) -> None:
    """Exit code 1, one line that names it; the others have converged, and resumed, mended, so has it."""
    breaks = {**SWEEP, "update": "import os; assert os.environ['ROSE_HPC_LEARNER'] != '1', 'rate too high'"}
    projects.write_project(tmp_path, **breaks)
    options = ("--run-dir", "r", "--max-iterations", 9)
    done = projects.rose_hpc("run", "config.toml", *options, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("rose-hpc: error: learner 1: the update failed in iteration 0: it ")
    assert "rate too high" in done.stderr
    run = tmp_path / "r"
    assert ends(run) == {
        "": ["failed"],
        "learner-0": ["converged"],
        "learner-1": ["failed"],
        "learner-2": ["converged"],
    }  # fmt: skip - a table in one look
    assert status(run)["learners"][1]["state"] == "failed"
    projects.write_project(tmp_path, **SWEEP)
    assert projects.rose_hpc("resume", run).returncode == 0
    assert status(run)["state"] == "converged"


def test_a_killed_or_interrupted_sweep_ends_as_an_undisturbed_one(tmp_path: Path, swept: Path) -> None:
    """SIGKILL, then SIGTERM (exit 130, everything stopped in order), then to the end: equal, learner by learner."""
    projects.write_project(tmp_path, **SWEEP)
    killed = projects.rose_hpc(
        "run", "config.toml", "--run-dir", "r", cwd=tmp_path, ROSE_HPC_FAILPOINT="checkpoint-recorded:2"
    )
    assert killed.returncode == -signal.SIGKILL
    projects.wait_for(lambda: not projects.processes_of(tmp_path), 15)
    run = tmp_path / "r"
    assert status(run)["state"] == "stopped"
    waits = "import pathlib, time; pathlib.Path('up').touch()\nwhile True: time.sleep(0.1)"
    projects.write_project(tmp_path, **{**SWEEP, "update": waits})
    with projects.start("resume", run, cwd=tmp_path) as driver:
        projects.wait_for((tmp_path / "up").exists)
        assert {each["state"] for each in status(run)["learners"]} <= {"running", "converged"}
        driver.send_signal(signal.SIGTERM)
        driver.communicate(timeout=30)
    assert driver.returncode == 130
    assert set(ends(run)[""]) == {"stopped"}
    projects.write_project(tmp_path, **SWEEP)
    done = projects.rose_hpc("resume", run)
    assert done.returncode == 3, done.stderr
    for number in range(3):
        assert projects.essence(run / f"learner-{number}") == projects.essence(swept / f"learner-{number}")


def test_the_example_converges(tmp_path: Path) -> None:
    """examples/population runs as it is: the sweep (two of its learners here), and the program that steers its own."""
    folder = tmp_path / "population"
    shutil.copytree(Path(__file__).parents[2] / "examples" / "population", folder)
    done = projects.rose_hpc("run", "config.toml", "--set", "sweep.grid.rate=[0.3, 1.0]", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = projects.run_program(folder / "run_me.py")
    assert done.returncode == 0, done.stderr
    assert "learner 0 goes on with rate 0.3 instead of 0.03" in done.stdout
