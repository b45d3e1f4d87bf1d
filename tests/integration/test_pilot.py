"""The pilot engine against a real radical.pilot on this machine; one pilot serves most tests."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from radical.asyncflow import WorkflowEngine

from rose_hpc import RadicalExecutionBackend
from rose_hpc.errors import EngineError, TaskError, UsageError
from rose_hpc.execution.pilot_reaper import descendants
from rose_hpc.execution.pilot_resources import PilotPlan, plan_pilot
from rose_hpc.execution.pilot_task_plan import plan_task

needs_pilot = pytest.mark.skipif(
    importlib.util.find_spec("radical.pilot") is None, reason="optional extra: radical.pilot"
)
CORES = len(os.sched_getaffinity(0))


def plan(**resources: Any) -> PilotPlan:
    """A plan on a host of four cores."""
    return plan_pilot({"runtime": 30, **resources}, host_cores=4, folder=Path("/scratch/user"))


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Return as soon as ``condition`` holds; fail if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


# What is asked for: no pilot needed


def test_a_local_pilot_takes_the_cores_that_are_there() -> None:
    """The seed's resources, which name no cores, mean all cores of this host."""
    assert plan(resource="local.localhost").cores == 4
    assert plan(cores=3).cores == 3


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"core": 3}, "did you mean 'cores'"),
        ({"runtime": 0}, "'runtime' is 0"),
        ({"runtime": -5}, "'runtime' is -5"),
        ({"runtime": None}, "'runtime' is missing"),
        ({"runtime": "30"}, "wrong type"),
        ({"cores": True}, "wrong type"),
        ({"cores": 2, "nodes": 1}, "both 'cores' and 'nodes'"),
        ({"resource": "localhost"}, "site.machine"),
        ({"resource": "nersc.perlmutter"}, "add 'nodes' or 'cores'"),
        ({"sandbox": "/scratch/a'; echo foo"}, "give 'sandbox' a folder"),
        ({"start_timeout_s": float("inf")}, "finite"),
    ],
)
def test_senseless_resources_are_refused_with_a_hint(resources: dict[str, Any], words: str) -> None:
    """Each resource that cannot be meant is a UsageError that says what to change."""
    with pytest.raises(UsageError, match=words):
        plan(**resources)


def test_a_pilot_elsewhere_keeps_its_files_where_its_nodes_see_them() -> None:
    """Away from this host the sandbox is in the working folder, never in the home or in /tmp."""
    assert plan(resource="nersc.perlmutter", nodes=2).sandbox == Path("/scratch/user/.rose-hpc-pilot")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"ranks": 0}, "ranks=0"),
        ({"cores_per_rank": "2"}, "cores_per_rank='2'"),
        ({"ranks": 4, "cores_per_rank": 2}, "4 ranks of 2 cores = 8; the pilot has 4"),
        ({"environment": {"A B": "1"}}, "'A B'"),
    ],
)
def test_tasks_that_can_never_run_are_refused(kwargs: dict[str, Any], words: str) -> None:
    """What a task asks for is checked before the pilot gets it, and the arithmetic is shown."""
    task = {"uid": "task.1", "executable": "true", "task_backend_specific_kwargs": kwargs}
    with pytest.raises(UsageError, match=words):
        plan_task(task, pilot=plan(), environ={}, folder=Path("/scratch"))


# One pilot for the rest

#: the value of a variable of the driver's environment; GNU make sets one that looks like its beginning
NOT_FOR_A_SHELL = """${-*-it-*-} $(touch executed) `touch executed` "a" 'b' back\\slash, $HOME\nand "another line\\"""


class Shared:
    """A pilot and an engine on an event loop of their own, since tests come and go."""

    def __init__(self, work_dir: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.backend = RadicalExecutionBackend({"runtime": 30, "resource": "local.localhost"})
        self.flow = self.wait(self._start(work_dir))

    async def _start(self, work_dir: Path) -> WorkflowEngine:
        return await WorkflowEngine.create(await self.backend, work_dir=str(work_dir))

    async def task(self, command: str, **description: Any) -> str:
        """Run one executable task and return its output."""

        async def step(*_: Any, **__: Any) -> str:
            return command

        result: str = await self.flow.executable_task(step)(task_description=description)
        return result

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.spawn(coroutine).result(120)

    def close(self) -> None:
        self.wait(self.flow.shutdown())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def pilot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """The seed's pilot, started once."""
    places = [Path.home(), Path.cwd()]
    before = [{path.name for path in place.iterdir()} for place in places]
    others = set(descendants(os.getpid()))  # other tests' clusters
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOT_FOR_A_SHELL", NOT_FOR_A_SHELL)
        shared = Shared(tmp_path_factory.mktemp("work"))
    yield shared
    shared.close()
    shutil.rmtree(shared.backend.sandbox or "", ignore_errors=True)  # kept when the last test has ended the pilot badly
    assert set(descendants(os.getpid())) <= others, "the shut down pilot left processes behind"
    written = {
        name
        for place, old in zip(places, before, strict=True)
        for name in {path.name for path in place.iterdir()} - old
    }
    assert not {name for name in written if "radical" in name or "psij" in name or name.startswith("rp.")}


@needs_pilot
@pytest.mark.pilot
class TestPilot:
    """In the order of the file: the last test ends the pilot."""

    def test_the_seeds_resources_start_a_pilot(self, pilot: Shared) -> None:
        """A resource without cores gives an active pilot, not one that fails in silence."""
        assert pilot.backend.state() == "ACTIVE"

    def test_a_task_gets_its_words_as_they_are(self, pilot: Shared) -> None:
        """No shell sees a word of a command: dollars, backticks, quotes and newlines arrive."""
        command = """printf '%s|' '$HOME' '`id`' 'a "b"' 'back\\slash' "it's" 'two\nlines' '' '*'"""
        output = pilot.wait(pilot.task(command, environment={"X": "$(id)"}))
        assert output == '$HOME|`id`|a "b"|back\\slash|it\'s|two\nlines||*|'

    def test_a_task_runs_in_the_drivers_folder_with_its_environment(self, pilot: Shared, tmp_path: Path) -> None:
        """Folder, HOME and PATH are the driver's unless the task says otherwise."""
        show = """sh -c 'printf "%s\n" "$PWD" "$HOME" "$PATH" "$X" "$OMP_NUM_THREADS"'"""
        assert pilot.wait(pilot.task(show)).splitlines() == [
            *(str(Path.cwd()), os.environ["HOME"], os.environ["PATH"], "", "1")
        ]
        folder = tmp_path / "a'; echo foo"
        folder.mkdir()
        lines = pilot.wait(pilot.task(show, cwd=str(folder), environment={"X": "`id`"})).splitlines()
        assert [lines[0], lines[3]] == [str(folder), "`id`"]

    def test_the_drivers_variables_are_not_executed(self, pilot: Shared) -> None:
        """Whatever is in them, the pilot starts, and a task finds them as they are."""
        assert pilot.wait(pilot.task("""sh -c 'printf "%s" "$NOT_FOR_A_SHELL"'""")) == NOT_FOR_A_SHELL
        assert pilot.backend.sandbox is not None
        assert not list(pilot.backend.sandbox.rglob("executed"))

    def test_long_output_is_cut_to_its_end(self, pilot: Shared) -> None:
        """Output comes whole up to 64 KiB, of which radical.pilot alone gives 1 KiB; beyond, its end does."""
        some, much = pilot.wait(self._both(pilot, "seq 1 9000", "seq 1 90000"))
        assert some.split() == [str(i) for i in range(1, 9001)]
        lines = much.split()
        assert len(much) <= 64 * 1024
        assert lines == [str(i) for i in range(int(lines[0]), 90001)]

    @staticmethod
    async def _both(pilot: Shared, one: str, other: str) -> list[str]:
        return await asyncio.gather(pilot.task(one), pilot.task(other))

    def test_a_failed_task_says_why_and_where(self, pilot: Shared) -> None:
        """The error names the task, its exit code, its last words and the folder with the rest."""
        with pytest.raises(TaskError, match=r"'step' exited with code 3: out of fuel; see /.*task\.\d+"):
            pilot.wait(pilot.task("sh -c 'echo starting >&2; echo out of fuel >&2; exit 3'"))

    def test_a_program_that_is_not_there_is_named(self, pilot: Shared) -> None:
        """A command that cannot be found fails with its name."""
        with pytest.raises(TaskError, match="no-such-program"):
            pilot.wait(pilot.task("no-such-program --now"))

    @pytest.mark.skipif(CORES < 2, reason="two ranks need two cores")
    def test_the_end_of_one_rank_leaves_the_others_running(self, pilot: Shared, tmp_path: Path) -> None:
        """Both ranks run at once; the one that outlives the failed other finishes its work; the task has failed."""
        script = tmp_path / "rank.sh"
        script.write_text(
            f"cd {tmp_path}; touch up.$RP_RANK; until test -e up.0 -a -e up.1; do sleep 0.05; done\n"
            "if test $RP_RANK = 0; then touch gone; exit 7; fi\n"
            "until test -e gone; do sleep 0.05; done; touch finished.$RP_RANK.of.$RP_RANKS\n"
        )
        with pytest.raises(TaskError, match="exited with code 7"):
            pilot.wait(pilot.task(f"sh {script}", ranks=2))
        assert (tmp_path / "finished.1.of.2").exists()

    def test_a_function_task_runs_in_the_pilot(self, pilot: Shared) -> None:
        """A function is called in a process of the allocation, and its value comes back."""

        async def function(x: int) -> tuple[int, int]:
            return x + 1, os.getpid()

        async def call() -> Any:
            return await pilot.flow.function_task(function)(41)

        value, pid = pilot.wait(call())
        assert value == 42
        assert pid != os.getpid()
        assert pid in descendants(os.getpid())

    def test_a_cancelled_task_ends_its_processes(self, pilot: Shared, tmp_path: Path) -> None:
        """After the cancellation is reported, the task's process is gone."""
        marker = tmp_path / "pid"

        async def step(*_: Any) -> str:
            return f"""sh -c 'echo $$ > {marker}.new; mv {marker}.new {marker}; exec sleep 300'"""

        async def cancel() -> int:
            future = pilot.flow.executable_task(step)()
            while not marker.exists():
                await asyncio.sleep(0.05)
            future.cancel()
            with pytest.raises(asyncio.CancelledError):
                await future
            return int(marker.read_text())

        pid = pilot.wait(cancel())
        wait_until(lambda: pid not in descendants(os.getpid()), 10)

    def test_the_end_of_the_pilot_fails_everything_at_once(self, pilot: Shared, tmp_path: Path) -> None:
        """When the agent dies, running tasks fail with an EngineError that names the sandbox; so do all later ones."""
        marker = tmp_path / "running"
        running = pilot.spawn(pilot.task(f"sh -c 'touch {marker}; exec sleep 300'"))
        wait_until(marker.exists)
        agents = [pid for pid in descendants(os.getpid()) if command_line(pid).startswith("rp.agent.0")]
        assert agents
        for pid in agents:
            os.kill(pid, signal.SIGKILL)
        gone = "(ended as FAILED|no supervisor of the pilot is left)"  # whichever is heard of first
        with pytest.raises(EngineError, match=f"{gone}.*see {pilot.backend.sandbox}"):
            running.result(60)
        with pytest.raises(EngineError, match=gone):
            pilot.wait(pilot.task("true"))


def command_line(pid: int) -> str:
    """The command line of a process, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@needs_pilot
@pytest.mark.pilot
def test_a_pilot_that_does_not_start_in_time_is_an_error(tmp_path: Path) -> None:
    """The wait for a pilot is bounded, says how far it came, and leaves no process."""

    async def start() -> None:
        await RadicalExecutionBackend({"runtime": 5, "start_timeout_s": 2, "sandbox": tmp_path})

    before = set(descendants(os.getpid()))
    with pytest.raises(EngineError, match=f"not active after 2 s.*; see {tmp_path}"):
        asyncio.run(start())
    assert set(descendants(os.getpid())) <= before


@needs_pilot
@pytest.mark.pilot
def test_a_resource_that_is_unknown_is_named(tmp_path: Path) -> None:
    """What radical.pilot says about the resource reaches the user, at once."""

    async def start() -> None:
        await RadicalExecutionBackend({"runtime": 5, "access_schema": "no-such-schema", "sandbox": tmp_path})

    with pytest.raises(EngineError, match="no-such-schema"):
        asyncio.run(start())


DRIVER = """
import asyncio, sys
from radical.asyncflow import WorkflowEngine
from rose_hpc import RadicalExecutionBackend

async def main(marker, folder):
    backend = await RadicalExecutionBackend({"runtime": 5, "sandbox": folder})
    flow = await WorkflowEngine.create(backend, work_dir=folder)

    @flow.executable_task
    async def step(): return f"setsid --wait sh -c 'touch {marker}; exec sleep 300'"

    await step()

asyncio.run(main(*sys.argv[1:]))
"""


@needs_pilot
@pytest.mark.pilot
def test_a_killed_driver_leaves_no_process(tmp_path: Path) -> None:
    """SIGKILL of the driver ends radical.pilot, its agent, and a task that put itself into a session of its own."""
    marker, script = tmp_path / "running", tmp_path / "driver.py"
    script.write_text(DRIVER)
    with subprocess.Popen([sys.executable, str(script), str(marker), str(tmp_path)]) as driver:
        try:
            wait_until(lambda: marker.exists() or driver.poll() is not None, 120)
            family = {pid: start_time(pid) for pid in descendants(driver.pid)}
            assert any("sleep" in command_line(pid) for pid in family)
        finally:
            driver.kill()
    wait_until(lambda: not [pid for pid, started in family.items() if start_time(pid) == started], 30)


def start_time(pid: int) -> str:
    """When a process started, which with its id names it; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        return ""
