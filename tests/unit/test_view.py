"""What people see of a run: plain lines in pipes, a live table on terminals."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rose_hpc.progress import Progress
from rose_hpc.report.lines import criterion_text, rate_text
from rose_hpc.report.view import LiveView, PlainView

RUN = {
    **{"kind": "run", "name": "toy", "seed": 7, "environments": ["env_1", "env_2"]},
    **{"metric": "MODEL_REWARD", "operator": ">", "threshold": 200.0, "max_iterations": 9},
}
JOB = {"kind": "job", "epoch": 0}
MERGE = {"kind": "stage", "iteration": 0, "stage": "merge", "rows": 12345, "bytes": 5_000_000, "seconds": 0.5}


def rank(environment: str, iteration: int = 0) -> dict:
    facts = {"rows": 5000, "bytes": 10, "seconds": 1.25}
    return {"kind": "rank", "iteration": iteration, "environment": environment, **facts}


def iteration(number: int, reward: float | None, **merge: object) -> list[dict]:
    check = {"kind": "stage", "iteration": number, "stage": "check", "reward": reward}
    return [
        *(rank(name, number) for name in RUN["environments"]),
        {"kind": "stage", "iteration": number, "stage": "collect"},
        {**MERGE, "iteration": number, **merge},
        {"kind": "stage", "iteration": number, "stage": "update"},
        *([check] if reward is not None else []),
        {"kind": "checkpoint", "iteration": number},
    ]


def tell(view: PlainView | LiveView, progress: Progress, *records: dict) -> None:
    """As a session does: first the progress, then the observer."""
    for record in records:
        progress.apply(record)
        view.recorded(record, progress)


def lines_of(*records: dict) -> list[str]:
    stream = io.StringIO()
    tell(PlainView(stream), Progress(), *records)
    return stream.getvalue().splitlines()


def screen(view: LiveView, width: int = 100) -> str:
    """What the terminal would show now."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(view.render())
    return console.file.getvalue()


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)


# -- lines -------------------------------------------------------------------------------------------------------------


def test_a_run_in_lines():
    """The start, every iteration with its reward and speed, and the end: one line each, and no others."""
    end = {"kind": "end", "state": "converged", "reason": "MODEL_REWARD 201 > 200", "iteration": 2}
    lines = lines_of(RUN, JOB, *iteration(0, 150.0), *iteration(1, 201.0), end)
    assert [line.rpartition(";")[0] or line for line in lines] == [
        "toy (seed 7) begins, until MODEL_REWARD > 200",
        "iteration 0: MODEL_REWARD 150  (12,345 rows, 5 MB at 10 MB/s",
        "iteration 1: MODEL_REWARD 201  (12,345 rows, 5 MB at 10 MB/s",
        "converged: MODEL_REWARD 201 > 200",
    ]


def test_a_resumed_run_says_where_it_goes_on():
    """A second driver's first line names the iteration that is next."""
    assert lines_of(RUN, JOB, *iteration(0, 1.0), JOB)[-1] == (
        "toy (seed 7) goes on at iteration 1, until MODEL_REWARD > 200"
    )


def test_a_run_without_criterion_or_shards():
    """Without a check there is no reward to show, without shards no speed: the line says what there is."""
    run = {**RUN, "metric": None}
    skipped = {"skipped": "no shards", "rows": 0, "bytes": 0}
    lines = lines_of(run, JOB, *iteration(0, None, **skipped))
    assert lines[0] == "toy (seed 7) begins, until 9 iterations"
    assert lines[1].startswith("iteration 0: (no shards; ")


def test_failures_and_warnings_are_lines():
    """What goes wrong is named by environment or stage; a warning says that it is one."""
    stream, progress = io.StringIO(), Progress()
    view = PlainView(stream)
    view.started(0, "collect", "env_1")
    failed = {"kind": "attempt", "iteration": 3, "stage": "collect", "message": "exited with code 2"}
    tell(view, progress, {**failed, "environment": "env_2"}, {**failed, "environment": "", "stage": "update"})
    view.warned("env.py changed")
    assert stream.getvalue().splitlines() == [
        "iteration 3: env_2 exited with code 2",
        "iteration 3: update exited with code 2",
        "warning: env.py changed",
    ]


def test_a_reader_that_is_gone_does_not_end_the_run():
    """`rose-hpc run ... | head` loses its reader; the run goes on."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    tell(PlainView(Gone()), Progress(), RUN, JOB)
    closed = io.StringIO()
    closed.close()
    tell(PlainView(closed), Progress(), RUN, JOB)


def test_a_merge_that_took_no_time_has_a_speed():
    """A speed is never a division by zero."""
    assert rate_text({**MERGE, "seconds": 0.0}).startswith("12,345 rows, 5 MB at ")
    assert criterion_text({"metric": "uq", "operator": "<=", "threshold": 1e-6}) == "uq <= 1e-06"


# -- live --------------------------------------------------------------------------------------------------------------


def test_the_live_view_before_there_is_anything(console):
    """Until the first record it says that it is starting."""
    assert screen(LiveView(console)).strip() == "starting"


def test_the_live_view_shows_where_the_run_stands(console):
    """Iteration, stage, reward against its threshold, rows and speed, and every environment with what it does."""
    view, progress = LiveView(console), Progress()
    tell(view, progress, RUN, JOB, *iteration(0, 150.0), *iteration(1, 120.5))
    view.started(2, "collect", "env_1")
    text = screen(view)
    assert "iteration 2  stage collect  MODEL_REWARD 120.5, best 150 (iteration 0)  until MODEL_REWARD > 200" in text
    assert "last merge: 12,345 rows, 5 MB at 10 MB/s; 24,690 rows in all" in text
    bars = {line.split()[0]: line for line in text.splitlines() if line.startswith("env_")}
    assert bars["env_1"].rstrip().endswith("s")
    assert bars["env_2"].rstrip().endswith("waits")
    tell(view, progress, rank("env_1", 2))
    assert "5,000 rows, 1.2 s" in screen(view)


def test_the_live_view_before_the_first_reward(console):
    """Without a reward it says so; without a merge it shows none."""
    view = LiveView(console)
    tell(view, Progress(), {**RUN, "metric": None, "operator": None, "threshold": None}, JOB)
    text = screen(view)
    assert "no reward yet  until 9 iterations" in text
    assert "last merge" not in text


def test_the_live_view_of_many_environments_fits_a_screen(console):
    """Of many environments the first have bars, the rest are counted."""
    names = [f"env_{k}" for k in range(1, 101)]
    view, progress = LiveView(console), Progress()
    tell(view, progress, {**RUN, "environments": names}, JOB, *(rank(name) for name in names[:40]))
    text = screen(view)
    assert "and 84 more" in text
    assert "40 of 100 done" in text
    assert len(text.splitlines()) < 24


def test_the_live_view_prints_the_lines_too(console):
    """Above the table stand the same lines as in a pipe, as they are: no brackets or colons are taken for markup."""
    view, progress = LiveView(console), Progress()
    failed = {"kind": "attempt", "iteration": 0, "stage": "collect", "environment": "env_1"}
    with view:
        tell(view, progress, RUN, JOB, {**failed, "message": "printed [red]env.py:100:[/red]"})
        view.warned("[bold] :x: changed")
    text = console.file.getvalue()
    for line in (
        "toy (seed 7) begins, until MODEL_REWARD > 200",
        "iteration 0: env_1 printed [red]env.py:100:[/red]",
        "warning: [bold] :x: changed",
    ):
        assert line in text


# -- several learners --------------------------------------------------------------------------------------------------

LEARNERS = [{"name": "slow", "parameters": {"rate": 0.1}}, {"name": "1", "parameters": {}}]
ENDED = {"kind": "learner", "learner": 0, "state": "converged", "reason": "MODEL_REWARD 201 > 200", "iteration": 1}


def test_several_learners_in_lines():
    """The run's beginning and end once; every iteration, failure and warning with the learner whose it is."""
    stream = io.StringIO()
    whole, progress = PlainView(stream), Progress()
    tell(whole, progress, {**RUN, "learners": LEARNERS}, JOB)
    learner = whole.learner("slow")
    tell(learner, Progress(), {**RUN, "label": "slow"}, JOB, *iteration(0, 201.0), {**ENDED, "kind": "end"})
    learner.warned("careful")
    tell(whole, progress, ENDED, {**ENDED, "kind": "end", "reason": "of 2 learners 2 converged"})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "toy (seed 7) begins with 2 learners, until MODEL_REWARD > 200"
    assert lines[1].startswith("learner slow: iteration 0: MODEL_REWARD 201 ")
    assert lines[2:] == [
        "learner slow: warning: careful",
        "learner slow (rate=0.1): converged: MODEL_REWARD 201 > 200",
        "converged: of 2 learners 2 converged",
    ]


def test_several_learners_in_place(console):
    """The live view has a row for each learner: iteration, stage, reward, best, rows; many are cut."""
    view, progress = LiveView(console), Progress()
    tell(view, progress, {**RUN, "learners": LEARNERS}, JOB)
    rows = {name: view.learner(name) for name in ("slow", "1")}
    tell(rows["slow"], Progress(), RUN, JOB, *iteration(0, 150.0), *iteration(1, 120.0))
    other = Progress()
    tell(rows["1"], other, RUN, JOB, *iteration(0, 1.0)[:3])
    shown = [line.split() for line in screen(view).splitlines()]
    assert ["slow", "(rate=0.1)", "2", "collect", "120", "150", "24,690"] in shown
    assert ["1", "0", "merge", "-", "-", "0"] in shown
    tell(rows["1"], other, {"kind": "end", "state": "failed", "reason": "x", "iteration": 0})
    assert ["1", "0", "failed", "-", "-", "0"] in [line.split() for line in screen(view).splitlines()]
    for number in range(60):
        view.learner(f"n{number}")
    assert "and 22 more" in screen(view)
