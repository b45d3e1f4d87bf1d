"""Programs with ROSE's decorators: what they see, what they are told when something is wrong, and how they go on."""

from __future__ import annotations

import json
import os
import signal
import textwrap
from pathlib import Path

import programs
import projects
import pytest

COMMANDS = """
    pe = ParallelExperience(asyncflow, seed=3)

    @pe.environment_task(name="env_1")
    async def environment_1(*args):
        return f"{sys.executable} environment.py 2"

    @pe.environment_task(name="env_2")
    async def environment_2(*args):
        return f"{sys.executable} environment.py 3"

    @pe.update_task
    async def update(*args):
        assert [each.splitlines()[-1] for each in args] == ["wrote 2 rows as env_1", "wrote 3 rows as env_2"], args
        return f"{sys.executable} update.py"

    @pe.as_stop_criterion(metric_name="MODEL_REWARD", threshold=15, operator=GREATER_THAN_THRESHOLD)
    async def check_reward(*args):
        return f"{sys.executable} check.py"
"""
LEARN = """
    async for state in pe.start():
        tell(state)
"""


def functions(threshold: float) -> str:
    """The functions' program text."""
    return programs.FUNCTIONS.replace("THRESHOLD", str(threshold))


def test_a_program_of_commands(folder: Path) -> None:
    """The seed's shape: commands, their outputs as values, HDF5 shards merged, `learn()` gives the last state."""
    projects.write_project(folder)
    program = programs.write(folder, COMMANDS, "state = await pe.learn()\ntell(state)\nprint(pe.run.path)")
    done = programs.run(program)
    assert done.returncode == 0, done.stderr
    (state,) = programs.states(done)
    assert (state["iteration"], state["metric_value"], state["should_stop"]) == (1, 20.0, True)
    assert state["metric_history"] == [10.0, 20.0]
    run = programs.run_of(folder)
    assert done.stdout.splitlines()[-1] == str(run)
    assert run.name.startswith("program-")
    assert [r["rows"] for r in projects.records(run, "stage", stage="merge")] == [5, 5]
    assert projects.records(run, "end")[0]["state"] == "converged"
    facts = json.loads(projects.rose_hpc("status", run, "--json").stdout)
    assert (facts["state"], facts["seed"], facts["reward"]) == ("converged", 3, 20.0)
    refused = projects.rose_hpc("resume", run, "--max-iterations", 5)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)


def test_a_program_of_functions(folder: Path) -> None:
    """Values travel as in ROSE, dicts are in the state, a function may leave a shard, both kinds of def work."""
    done = programs.run(programs.write(folder, functions(1.5), LEARN))
    assert done.returncode == 0, done.stderr
    first, second = programs.states(done)
    assert (first["a"], first["loss"], first["checked"], first["metric_value"]) == (0, 1.0, 1.0, 1.0)
    assert (second["a"], second["loss"], second["checked"], second["metric_value"]) == (1, 0.5, 0.5, 2.0)
    assert (first["should_stop"], second["should_stop"]) == (False, True)
    run = programs.run_of(folder)
    assert {r["environment"]: r["rows"] for r in projects.records(run, "rank", iteration=1)} == {"a": 1, "b": 0}
    assert json.loads((run / "iter-0001" / "policy" / "weights").read_text()) != []


def test_the_decorated_function_stays_the_users(tmp_path: Path) -> None:
    """Decorators give back the function they were given, so that it can be called and tested."""
    check = """
    assert asyncio.iscoroutinefunction(b) and not asyncio.iscoroutinefunction(a)
    assert check.__name__ == "check" and update.__name__ == "update"
    assert pe.update_task(as_executable=False)(update) is update
    """
    done = programs.run(programs.write(tmp_path, functions(9), check))
    assert done.returncode == 0, done.stderr


FAILURES = {
    "sys.exit": ("sys.exit('enough')", "environment a failed in iteration 0: it called sys.exit('enough')"),
    "raise": ("raise LookupError('no such state')", "failed in iteration 0: it raised LookupError: no such state"),
    "segfault": (
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "environment a failed in iteration 0: it was killed by SIGSEGV",
    ),
    "os._exit": ("os._exit(9)", "environment a failed in iteration 0: it exited with code 9"),
    "hangs": (
        "import time; time.sleep(999)",
        "environment a failed in iteration 0: it ran longer than its timeout_s of 4",
    ),
    "unpicklable": (
        "import threading; return threading.Lock()",
        "it returned a lock that cannot be sent back (TypeError: cannot pickle",
    ),
}


@pytest.mark.parametrize(("statement", "what"), FAILURES.values(), ids=FAILURES)
def test_a_failing_function_is_named(statement: str, what: str, tmp_path: Path) -> None:
    """Whatever a function does, the driver lives, names it with its log, and the program can be resumed when mended."""
    body = functions(0.5)
    broken = body.replace(
        "task = rose_hpc", f"print('last words', flush=True); {statement}\n        task = rose_hpc", 1
    )
    if "sleep" in statement:
        broken = broken.replace('name="a", as_exec', 'name="a", timeout_s=4, as_exec')
    done = programs.run(programs.write(tmp_path, broken, "await pe.learn()"))
    assert done.returncode == 1
    assert what in done.stderr
    run = programs.run_of(tmp_path)
    log = run / "logs" / "iter-0000-collect-a.log"
    assert f"see {log}, then" in done.stderr
    assert "last words" in log.read_text()
    assert projects.records(run, "end")[0]["state"] == "failed"
    programs.write(tmp_path, functions(0.5), "await pe.learn()")
    resumed = projects.rose_hpc("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert f"warning: {tmp_path / 'program.py'} changed" in resumed.stderr


def test_what_cannot_be_sent_is_named(tmp_path: Path) -> None:
    """A function that holds on to something of this process alone is named, before it runs anywhere."""
    body = functions(0.5).replace("def update(from_a, from_b):", "def update(*values, engine=asyncflow):")
    done = programs.run(programs.write(tmp_path, body, "await pe.learn()"))
    assert done.returncode == 1
    assert "the update failed in iteration 0: it cannot be sent to a process of its own" in done.stderr


def test_leaving_the_loop_and_resuming(folder: Path) -> None:
    """`break` ends the run in order; rerun with ROSE_HPC_RUN it goes on, and no state is yielded twice."""
    body = functions(2.5)
    loop = """
    async for state in pe.start():
        tell(state)
        if state.iteration == 0 and once("broke"):
            break
    print("after the loop")
    """
    done = programs.run(programs.write(folder, body, loop))
    assert done.returncode == 0, done.stderr
    assert "after the loop" in done.stdout
    assert [state["iteration"] for state in programs.states(done)] == [0]
    run = programs.run_of(folder)
    assert projects.records(run, "end")[0]["state"] == "stopped"
    resumed = projects.rose_hpc("resume", run, cwd="/")
    assert resumed.returncode == 0, resumed.stderr
    assert [state["iteration"] for state in programs.states(resumed)] == [1, 2]
    assert projects.records(run, "end")[-1]["state"] == "converged"
    assert len(list((folder / "runs").iterdir())) == 1
    finished = projects.rose_hpc("resume", run)
    assert (finished.returncode, programs.states(finished)) == (0, [])


@pytest.mark.parametrize(("end", "code"), [('raise LookupError("mine")', 1), ("sys.exit(5)", 5)])
def test_a_state_whose_loop_body_failed_is_yielded_again(folder: Path, end: str, code: int) -> None:
    """What the body was to do with it may not have been done: the configuration it was to set comes into force."""
    loop = f"""
    async for state in pe.start():
        tell(state)
        if state.iteration == 1 and once("failed"):
            {end}
        pe.set_next_config(LearnerConfig(environment=TaskConfig(kwargs={{"scale": 2.0 + state.iteration}})))
    """
    done = programs.run(programs.without_cleaning_up(programs.write(folder, functions(2.5), loop)))
    assert done.returncode == code, done.stderr
    assert done.stderr.count("Traceback") == (code == 1), done.stderr
    resumed = projects.rose_hpc("resume", programs.run_of(folder))
    assert resumed.returncode == 0, resumed.stderr
    states = [(s["iteration"], s["scale"]) for run in (done, resumed) for s in programs.states(run)]
    assert states == [(0, 1.0), (1, 2.0), (1, 2.0), (2, 3.0)]


def test_the_seed_of_a_run_is_kept_and_another_is_told_of(tmp_path: Path) -> None:
    """A resumed run has its own, whatever the program says by then."""
    program = programs.write(tmp_path, functions(1.5), LEARN.replace("start()", "start(max_iter=1)"))
    assert programs.run(program).returncode == 0
    run = programs.run_of(tmp_path)
    programs.write(tmp_path, functions(1.5).replace("seed=5", "seed=6"), LEARN)
    resumed = projects.rose_hpc("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert "warning: the run keeps its seed 5: 6 would make another run" in resumed.stderr


def test_a_bare_rerun_is_a_new_run(tmp_path: Path) -> None:
    """Without ROSE_HPC_RUN a program makes a run of its own every time; `learn()` on a finished run gives its state."""
    program = programs.write(tmp_path, functions(0.5), "tell(await pe.learn())")
    for _ in range(2):
        assert programs.run(program).returncode == 0
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == 2
    again = programs.run(program, ROSE_HPC_RUN=str(runs[0]))
    assert [state["metric_value"] for state in programs.states(again)] == [1.0]


def test_stop_ends_the_loop_in_order(tmp_path: Path) -> None:
    """`stop()` inside the loop yields nothing more, and the program goes on after it."""
    loop = """
    async for state in pe.start():
        tell(state)
        pe.stop()
    print("after the loop")
    """
    done = programs.run(programs.write(tmp_path, functions(9), loop))
    assert done.returncode == 0, done.stderr
    assert [state["iteration"] for state in programs.states(done)] == [0]
    assert "after the loop" in done.stdout
    assert projects.records(programs.run_of(tmp_path), "end")[0]["state"] == "stopped"


def test_a_killed_program_goes_on_with_its_configuration(folder: Path) -> None:
    """What set_next_config set is a record: in force from the next iteration on, and after SIGKILL and resume too."""
    kills = 'if rose_hpc.current_task().iteration == 2 and once("killed"):\n            kill_the_driver()'
    body = functions(3.5).replace("await asyncio.sleep(0)", kills)
    loop = """
    start = LearnerConfig(environment=TaskConfig(kwargs={"scale": 0.5}))
    async for state in pe.start(initial_config=start):
        tell(state)
        if state.iteration == 1:
            pe.set_next_config(LearnerConfig(environment={2: TaskConfig(kwargs={"scale": 7.0}), -1: TaskConfig()}))
    """
    done = programs.run(programs.write(folder, body, loop))
    assert done.returncode == -signal.SIGKILL
    assert [(s["iteration"], s["scale"]) for s in programs.states(done)] == [(0, 0.5), (1, 0.5)]
    run = programs.run_of(folder)
    projects.wait_for(lambda: not projects.processes_of(folder), 10)
    resumed = projects.rose_hpc("resume", run, cwd="/")
    assert resumed.returncode == 0, resumed.stderr
    assert [(s["iteration"], s["scale"]) for s in programs.states(resumed)] == [(2, 7.0), (3, 1.0)]
    (recorded,) = projects.records(run, "config")
    assert (recorded["iteration"], recorded["config"]["environment"]["2"]["kwargs"]) == (1, {"scale": 7.0})


def test_a_configuration_must_be_json_like(tmp_path: Path) -> None:
    """A configuration that no record could hold is refused where it is set, with the name of the call."""
    loop = """
    async for state in pe.start():
        pe.set_next_config(LearnerConfig(update=TaskConfig(kwargs={"lock": object()})))
    """
    done = programs.run(programs.write(tmp_path, functions(9), loop))
    assert done.returncode == 1
    assert "UsageError: set_next_config: " in done.stderr


def test_values_that_no_record_holds_are_made_again(tmp_path: Path) -> None:
    """An iteration whose values were not JSON is done again after a kill, on record, with the same outcome."""
    body = functions(1.5).replace("return [rose_hpc.current_task().environment, 2]", 'return {"b", 2}')
    body = body.replace(
        'assert from_b == ["b", 2], from_b', 'assert from_b == {"b", 2}\n        once("killed") and kill_the_driver()'
    )
    program = programs.write(tmp_path, body, LEARN)
    killed = programs.run(program)
    assert killed.returncode == -signal.SIGKILL
    assert killed.stderr.count("warning: b returned a set that no record can hold: an iteration that is cut off") == 1
    run = programs.run_of(tmp_path)
    resumed = projects.rose_hpc("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert [r["iteration"] for r in projects.records(run, "redo")] == [0]
    assert [state["iteration"] for state in programs.states(resumed)] == [0, 1]
    (tmp_path / "runs").rename(tmp_path / "before")
    assert programs.run(program).returncode == 0
    assert projects.essence(programs.run_of(tmp_path)) == projects.essence(tmp_path / "before" / run.name)


def test_json_values_outlive_a_kill(tmp_path: Path) -> None:
    """Values that a record holds are passed on after a resume without running their task again."""
    body = functions(0.5).replace("task = rose_hpc", "open('ran', 'a').write('a')\n        task = rose_hpc", 1)
    body = body.replace(
        'assert from_b == ["b", 2], from_b', 'assert from_b == ["b", 2]\n        once("killed") and kill_the_driver()'
    )
    assert programs.run(programs.write(tmp_path, body, LEARN)).returncode == -signal.SIGKILL
    resumed = projects.rose_hpc("resume", programs.run_of(tmp_path))
    assert resumed.returncode == 0, resumed.stderr
    assert programs.states(resumed)[0]["loss"] == 1.0
    assert (tmp_path / "ran").read_text() == "a"


def test_the_sequential_learner_is_the_case_of_one(tmp_path: Path) -> None:
    """One environment, bare decorators, max_iter as limit, no criterion."""
    body = """
    learner = SequentialReinforcementLearner(asyncflow)

    @learner.environment_task
    async def environment(*args):
        return f"{sys.executable} environment.py 2"

    @learner.update_task
    async def update(*args):
        return f"{sys.executable} update.py"

    state = await learner.learn(max_iter=2)
    tell(state)
    """
    projects.write_project(tmp_path)
    done = programs.run(programs.write(tmp_path, body))
    assert done.returncode == 0, done.stderr
    assert programs.states(done)[0]["metric_value"] is None
    run = programs.run_of(tmp_path)
    assert projects.records(run, "end")[0]["state"] == "max_iterations"
    assert projects.records(run, "run")[0]["environments"] == ["env_1"]
    assert "env_2" not in (run / "journal.jsonl").read_text()


def test_trackers_follow_and_cannot_end_the_run(tmp_path: Path) -> None:
    """A tracker hears of the pipeline, every iteration and the end; one that fails is logged, and the run goes on."""
    top = """
    class Good(TrackerBase):
        def on_start(self, manifest):
            print("TRACK start", manifest.learner_type, sorted(manifest.tasks), manifest.criterion.threshold)
        def on_iteration(self, state):
            print("TRACK iteration", state.iteration, state.metric_value, state.loss)
        def on_stop(self, final_state, reason):
            print("TRACK stop", final_state.iteration, reason)

    class Bad(TrackerBase):
        def on_iteration(self, state):
            raise RuntimeError("the tracking server is down")
        on_stop = None
    """
    body = (
        functions(1.5)
        + "\n    for tracker in (Bad(), Good()):\n        pe.add_tracker(tracker)\n    await pe.learn()\n"
    )
    done = programs.run(programs.write(tmp_path, body, top=top))
    assert done.returncode == 0, done.stderr
    assert [line[6:] for line in done.stdout.splitlines() if line.startswith("TRACK ")] == [
        "start ParallelExperience ['environment.a', 'environment.b', 'update'] 1.5",
        "iteration 0 1.0 1.0",
        "iteration 1 2.0 0.5",
        "stop 1 criterion_met",
    ]
    assert "the tracker Bad failed; the run goes on" in done.stderr


TWO = """
    async def one(threshold):
        FUNCTIONS
        return await pe.learn()

    first, second = await asyncio.gather(one(0.5), one(1.5))
    tell(first)
    tell(second)
"""


def two(before_update_returns: str) -> str:
    """Two learners of one program, at once."""
    text = programs.FUNCTIONS.replace("THRESHOLD", "threshold").strip()
    text = text.replace('return {"loss"', before_update_returns + '\n        return {"loss"')
    return TWO.replace("FUNCTIONS", text.replace("\n", "\n    "))


def test_two_learners_of_one_program(tmp_path: Path) -> None:
    """The second has a run of its own inside the first's, with other seeds; resuming the program resumes both."""
    kills = 'threshold > 1 and task.iteration == 1 and once("killed") and kill_the_driver()'
    body = two(before_update_returns=kills)
    done = programs.run(programs.write(tmp_path, body))
    assert done.returncode == -signal.SIGKILL
    run = programs.run_of(tmp_path)
    resumed = projects.rose_hpc("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert [state["metric_value"] for state in programs.states(resumed)] == [1.0, 2.0]
    inner = run / "learner-1"
    assert [projects.records(each, "end")[-1]["state"] for each in (run, inner)] == ["converged", "converged"]
    banks = [projects.records(each, "stage", stage="merge", iteration=0)[0]["digest"] for each in (run, inner)]
    assert banks[0] != banks[1]


def test_a_signal_interrupts_all_learners(tmp_path: Path) -> None:
    """SIGTERM to a program with two learners ends both in order, exit code 130, and nothing is left."""
    body = two(before_update_returns='once(f"up-{threshold}"); import time; time.sleep(999)')
    programs.write(tmp_path, body)
    with projects.start(cwd=tmp_path, program="program.py") as driver:
        projects.wait_for(lambda: len(list(tmp_path.glob("up-*"))) == 2)
        driver.send_signal(signal.SIGTERM)
        _, errors = driver.communicate(timeout=15)
    assert driver.returncode == 130, errors
    run = programs.run_of(tmp_path)
    assert [projects.records(each, "end")[-1]["state"] for each in (run, run / "learner-1")] == ["stopped", "stopped"]
    projects.wait_for(lambda: not projects.processes_of(tmp_path), 10)


def test_a_signal_while_the_program_has_the_state(tmp_path: Path) -> None:
    """SIGTERM between iterations is not forgotten: the next one is not begun."""
    loop = """
    async for state in pe.start():
        tell(state)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.2)
    """
    done = programs.run(programs.write(tmp_path, functions(9), loop))
    assert done.returncode == 130, done.stderr
    run = programs.run_of(tmp_path)
    assert [state["iteration"] for state in programs.states(done)] == [0]
    assert not projects.records(run, "rank", iteration=1)
    assert projects.records(run, "end")[0]["state"] == "stopped"


SLIPS = {
    "duplicate": ("@pe.environment_task(name='A')\ndef c(): pass", "there is an environment 'A' already"),
    "bad name": ("@pe.environment_task(name='a/b')\ndef c(): pass", "the name 'a/b' must be"),
    "no update": ("pe._update = None\nawait pe.learn()", "no update is registered"),
    "no environment": (
        "pe = ParallelExperience(asyncflow)\npe.update_task(as_executable=False)(update)\nawait pe.learn(max_iter=1)",
        "there is no environment",
    ),
    "never-ending": ("pe._criterion = None\nawait pe.learn()", "this would never end"),
    "unknown option": ("@pe.update_task(cores=3)\nasync def u(): pass", "u: unknown option cores"),
    "not async": ("@pe.update_task\ndef u(): return 'true'", "u must be async"),
    "operator": ("pe.as_stop_criterion('X', 1, '=>')", "unknown operator '=>'"),
    "threshold": ("pe.as_stop_criterion('X', 'x')", "threshold is 'x'; give a number"),
    "seed": ("ParallelExperience(asyncflow, seed='x')", "seed is 'x'; give a whole number from 0"),
    "negative seed": ("ParallelExperience(asyncflow, seed=-5)", "seed is -5; give a whole number from 0"),
    "window": ("ParallelExperience(asyncflow, window=0)", "window is 0; give a whole number from 1"),
    "limit": ("await pe.learn(max_iter=-2)", "max_iter is -2; give a whole number from 0"),
    "configuration": ("await pe.learn(initial_config={})", "a configuration is a LearnerConfig, not a dict"),
    "next configuration": (
        "async for _ in pe.start(): pe.set_next_config({'update': 1})",
        "a configuration is a LearnerConfig, not a dict",
    ),
    "no engine": ("ParallelExperience(None)", "NoneType is not a WorkflowEngine"),
    "too few": (
        "@pe.update_task(as_executable=False)\ndef u(one): pass\nawait pe.learn()",
        "u is called with 2 values and does not take them; write `def u(*args)`",
    ),
    "no command": (
        "@pe.update_task\nasync def u(*args): return 7\nawait pe.learn()",
        "u returned 7, not a command line",
    ),
}


def test_slips_are_usage_errors(tmp_path: Path) -> None:
    """Each is a UsageError that says what to write instead; none of them waits for ever."""
    parts = []
    for number, (code, _) in enumerate(SLIPS.values()):
        slip = "\n".join((functions(0.5).strip("\n"), textwrap.indent(code, "    ")))
        parts.append(f"async def slip_{number}():\n{slip}\nawait catch(slip_{number}())")
    top = """
    async def catch(slip):
        try:
            await slip
            print("TOLD nothing")
        except rose_hpc.RoseHpcError as error:
            print("TOLD", type(error).__name__, error)
    """
    done = programs.run(programs.write(tmp_path, *parts, top=top))
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    for (name, (_, what)), line in zip(SLIPS.items(), told, strict=True):
        assert line.startswith("TOLD UsageError "), name
        assert what in line


def test_a_run_of_another_program_is_refused(tmp_path: Path) -> None:
    """ROSE_HPC_RUN of a run with other environments is an error, and that run stays as it is."""
    projects.write_project(tmp_path, **projects.LIGHT)
    assert projects.rose_hpc("run", "config.toml", "--run-dir", "r", cwd=tmp_path).returncode == 0
    before = (tmp_path / "r" / "journal.jsonl").read_bytes()
    done = programs.run(
        programs.write(tmp_path, functions(0.5), "await pe.learn()"), ROSE_HPC_RUN=os.fspath(tmp_path / "r")
    )
    assert done.returncode == 1
    assert "is a run with name light, not program" in done.stderr
    assert (tmp_path / "r" / "journal.jsonl").read_bytes() == before
