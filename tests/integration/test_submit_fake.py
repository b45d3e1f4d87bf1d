"""Submitting, and what follows, against a scripted Slurm: what a real one cannot be made to do."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import projects
import pytest

from rose_hpc import rundir
from rose_hpc.config_models import Slurm
from rose_hpc.errors import RoseHpcError
from rose_hpc.journal import Journal
from rose_hpc.ownership import Ownership
from rose_hpc.rundir import RunDir
from rose_hpc.slurm import cancel as cancelling
from rose_hpc.slurm import submit as submitting
from rose_hpc.slurm import watch as watching
from rose_hpc.slurm.commands import SlurmAwayError, SlurmError
from rose_hpc.slurm.records import read_records

COMMANDS = Path(__file__).parents[1] / "support" / "fake_slurm"
TIMED_OUT = {"returncode": 1, "stderr": "sbatch: error: Batch job submission failed: Socket timed out on send/recv\n"}
AWAY = {"returncode": 1, "stderr": "slurm_load_jobs error: Unable to contact slurm controller\n", "do": False}
REFUSED = {"returncode": 1, "stderr": "sbatch: error: invalid partition specified: x\n", "do": False}


class Fake:
    """The scripted Slurm's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def script(self, **answers: list[dict[str, Any]]) -> None:
        """What commands answer instead of working; ``any_`` stands for all that are not named."""
        named = {"*" if command == "any_" else command: given for command, given in answers.items()}
        (self.folder / "script.json").write_text(json.dumps(named))

    @property
    def jobs(self) -> dict[str, dict[str, str]]:
        path = self.folder / "jobs.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def set(self, job: str, **facts: str) -> None:
        jobs = self.jobs
        jobs.setdefault(job, {"comment": "", "nodes": "1", "folder": "/", "uid": str(os.getuid()), "reason": "None"})
        jobs[job].update(facts)
        (self.folder / "jobs.json").write_text(json.dumps(jobs))

    def calls(self, command: str) -> list[dict[str, Any]]:
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if call["command"] == command]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """The scripted Slurm on PATH, before any real one; looks for a lost job follow each other at once."""
    folder = tmp_path / "fake"
    folder.mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("FAKE_PYTHON", sys.executable)
    monkeypatch.setenv("PATH", f"{COMMANDS}:{os.environ['PATH']}")
    monkeypatch.setattr(submitting, "_LOOKS_S", (0.0, 0.0))
    return Fake(folder)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create("toy", tmp_path / "a 'run' of 5%j")


def submit(run: RunDir, **settings: Any) -> list[str]:
    plan = submitting.plan_jobs(run, Slurm(**settings), run.path, "toy")
    return [record.job for record in submitting.submit(run, plan)]


def config(folder: Path) -> Path:
    return projects.write_project(folder, **projects.LIGHT)


# -- submitting, exactly once ------------------------------------------------------------------------------------------


def test_a_chain_is_submitted_job_after_job(slurm, run):
    """Each job of a chain waits for the one before it, and each has a record with its own token."""
    assert submit(run, chain=3, nodes=2) == ["101", "102", "103"]
    waits = [[word for word in call["arguments"] if "dependency" in word] for call in slurm.calls("sbatch")]
    assert waits == [[], ["--dependency=afterany:101"], ["--dependency=afterany:102"]]
    records = read_records(run)
    assert [(record.job, record.nodes, record.after) for record in records] == [
        *[("101", 2, ""), ("102", 2, "101"), ("103", 2, "102")]
    ]
    assert [record.token for record in records] == [slurm.jobs[record.job]["comment"] for record in records]


def test_a_time_out_that_submitted_is_found_by_its_token(slurm, run):
    """When sbatch times out and the job is in the queue, it is that job, and sbatch is not called again."""
    slurm.script(sbatch=[TIMED_OUT])
    assert submit(run) == ["101"]
    assert len(slurm.calls("sbatch")) == len(slurm.jobs) == 1


def test_a_time_out_that_did_not_submit_is_tried_again(slurm, run):
    """When sbatch times out and the queue has no such job, it is submitted once more, under the same token."""
    slurm.script(sbatch=[{**TIMED_OUT, "do": False}, {"do": True, "stdout": "101\n"}])
    assert submit(run) == ["101"]
    first, second = (call["arguments"] for call in slurm.calls("sbatch"))
    assert first == second
    assert len(slurm.jobs) == 1


def test_an_sbatch_that_hangs_is_a_time_out(slurm, run, monkeypatch):
    """An sbatch that never answers is ended, and its job is found."""
    monkeypatch.setattr(submitting, "SUBMIT_TIMEOUT_S", 1.0)
    slurm.script(sbatch=[{"sleep_s": 60}])
    assert submit(run) == ["101"]


def test_a_job_that_left_the_queue_is_found_in_accounting(slurm, run):
    """A job that sbatch did not tell of, and that has left the queue already, is found by its folder in sacct."""
    (slurm.folder / "accounted.json").write_text(json.dumps({"140": {"folder": str(run.path)}}))
    slurm.script(sbatch=[{**TIMED_OUT, "do": False}])
    assert submit(run) == ["140"]


def test_not_knowing_is_said_and_found_out_later(slurm, run):
    """When Slurm does not answer at all, the token is kept, nothing is tried again, and the job is adopted later."""
    slurm.script(sbatch=[TIMED_OUT], any_=[AWAY])
    with pytest.raises(SlurmAwayError, match=r"not known yet.*rose-hpc:"):
        submit(run)
    assert len(slurm.calls("sbatch")) == 1
    assert [record.job for record in read_records(run)] == [""]
    slurm.script()
    assert [record.job for record in submitting.adopt(run)] == ["101"]
    assert [record.job for record in read_records(run)] == ["101"]


def test_a_submitter_that_was_killed_left_its_token(slurm, run):
    """What was submitted by a command that died before it heard so is shown by status, and can be cancelled."""
    submit(run)
    (run.slurm / "101.json").rename(run.slurm / "submitting-x.json")
    text = (run.slurm / "submitting-x.json").read_text().replace('"job": "101"', '"job": ""')
    (run.slurm / "submitting-x.json").write_text(text)
    done = projects.rose_hpc("status", run.path, "--json")
    assert (json.loads(done.stdout)["state"], json.loads(done.stdout)["jobs"]) == ("pending", ["101"])
    assert cancelling.cancel(run).jobs == ("101",)


def test_a_controller_that_refuses_connections_submitted_nothing(slurm, run):
    """Where nothing could be sent nothing was submitted: it is said so, and no token stays."""
    down = {
        "returncode": 1,
        "stderr": "sbatch: error: Unable to contact slurm controller (connect failure)\n",
        "do": False,
    }
    slurm.script(any_=[down])
    with pytest.raises(SlurmError, match="nothing was submitted"):
        submit(run)
    assert read_records(run) == []


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("Invalid account or account/partition combination specified", "slurm.account"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "slurm.walltime_min"),
        ("Invalid qos specification", "slurm.qos"),
        ("Requested node configuration is not available", "slurm.nodes"),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", "slurm.chain"),
        ("something new", "[slurm]"),
    ],
)
def test_a_refusal_has_slurms_words_and_ours(slurm, run, words, hint):
    """A refused job is one line: what Slurm said, and the key to change; it is not tried again."""
    slurm.script(sbatch=[{"returncode": 1, "stderr": f"sbatch: error: {words}\n", "do": False}])
    with pytest.raises(SlurmError) as refused:
        submit(run)
    assert words in str(refused.value)
    assert hint in refused.value.hint
    assert len(slurm.calls("sbatch")) == 1


# -- the command line --------------------------------------------------------------------------------------------------


def test_dry_run_shows_what_is_run_and_does_nothing(slurm, folder):
    """--dry-run prints the argv and the script that submitting then uses, and leaves no trace."""
    path = config(folder)
    shown = projects.rose_hpc("submit", path, "--run-dir", "r", "--dry-run", "--json", cwd=folder)
    plan = json.loads(shown.stdout)
    assert not (folder / "r").exists()
    assert slurm.calls("sbatch") == []
    text = projects.rose_hpc("submit", path, "--run-dir", "r", "--dry-run", cwd=folder).stdout
    assert text.startswith("sbatch --parsable")
    assert Path(plan["script"]).read_text() in text
    done = projects.rose_hpc("submit", path, "--run-dir", "r", cwd=folder)
    assert done.stdout.splitlines()[-1] == str(folder / "r")
    given = slurm.calls("sbatch")[0]["arguments"]
    without_token = [[word for word in words if "--comment" not in word] for words in (plan["argv"][0][1:], given)]
    assert without_token[0] == without_token[1]


def test_hostile_variables_do_not_reach_slurm(slurm, folder):
    """SBATCH_*, SQUEUE_* and SLURM_* of the user's shell change nothing, and neither does a surrounding run."""
    hostile = {
        "SBATCH_PARTITION": "x",
        "SQUEUE_FORMAT": "%z",
        "SLURM_TIME_FORMAT": "relative",
        "ROSE_HPC_STAGE": "update",
    }
    done = projects.rose_hpc("submit", config(folder), "--run-dir", "r", cwd=folder, **hostile, SLURM_CONF="/kept")
    assert done.returncode == 0, done.stderr
    projects.rose_hpc("status", "r", cwd=folder, **hostile)
    for command in ("sbatch", "squeue"):
        environment = slurm.calls(command)[0]["environment"]
        assert not environment.keys() & hostile.keys()
    assert slurm.calls("sbatch")[0]["environment"]["SLURM_CONF"] == "/kept"


def test_a_refused_run_leaves_nothing_behind(slurm, folder):
    """When Slurm refuses, the error is one line, and the run directory that was made for it is gone again."""
    slurm.script(sbatch=[REFUSED])
    done = projects.rose_hpc("submit", config(folder), "--run-dir", "r", cwd=folder)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "rose-hpc: error: Slurm refused the job: invalid partition specified: x; "
        "set slurm.partition; `rose-hpc doctor` lists the partitions"
    ]
    assert not (folder / "r").exists()


def sets(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config.toml", "--run-dir", "a\nb"], "newline in its path"),
        (["config.toml", "--run-dir", "a\\b"], "backslash in its path"),
        (["config.toml", "--set", "slurm.walltime_min=soon"], "slurm.walltime_min: must be a number"),
        (["config.toml", *sets("slurm.mem_gb=8", "update.mem_gb_per_rank=9")], "9 GB of memory, and there are 8 on a"),
        (["config.toml", *sets("slurm.gpus_per_node=1", "update.gpus_per_rank=2")], "2 GPUs, and there are 1 on a"),
        (["config.toml", "extra"], "unexpected argument 'extra'"),
        (["config.toml", "--config", "frontir"], "no site profile 'frontir'"),
        (["train.py"], "train.py: no such file"),
        (["none.toml"], "none.toml: no such file"),
        (["environment.py", "--seed", "3"], "keeps its own seed"),
    ],
)
def test_bad_input_is_refused_before_submitting(slurm, folder, arguments, message):
    """What cannot work is one line and exit code 2, no call of sbatch, and no run directory."""
    config(folder)
    done = projects.rose_hpc("submit", *arguments, cwd=folder)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert message in done.stderr
    assert slurm.calls("sbatch") == []
    assert {path.name for path in folder.iterdir()} == {"config.toml", "environment.py", "update.py", "check.py"}


def test_no_slurm_names_run(folder, tmp_path, monkeypatch):
    """On a machine without Slurm submit says so and names `run`; status and the dry run work."""
    monkeypatch.setenv("PATH", str(tmp_path))
    path = config(folder)
    done = projects.rose_hpc("submit", path, cwd=folder)
    assert done.returncode == 2
    assert done.stderr == (
        "rose-hpc: error: there is no Slurm on this machine (no sbatch); `rose-hpc run CONFIG` runs it here\n"
    )
    assert projects.rose_hpc("submit", path, "--dry-run", cwd=folder).returncode == 0
    assert projects.rose_hpc("status", cwd=folder).returncode == 0


def test_a_program_is_submitted_with_its_arguments(slurm, folder):
    """A Python program's run knows how to start it, and keeps the profile its next jobs are made from."""
    (folder / "train.py").write_text("")
    (folder / "site.toml").write_text('[slurm]\nnodes = 2\npartition = "p"\n')
    asked = ("--config", "site.toml", "--set", "slurm.nodes=3", "--run-dir", "r", "--", "--rate", "a b")
    done = projects.rose_hpc("submit", "train.py", *asked, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert {"--nodes=3", "--partition=p", "--job-name=train"} <= set(slurm.calls("sbatch")[0]["arguments"])
    facts = json.loads((folder / "r/slurm/program.json").read_text())
    assert facts == {"argv": [str(folder / "train.py"), "--rate", "a b"], "cwd": str(folder)}


# -- status, cancel, resume, watch -------------------------------------------------------------------------------------


def test_one_query_serves_all_runs(slurm, folder):
    """status of many runs asks squeue once, whatever their number of jobs; of finished runs alone, not at all."""
    for name in ("a", "b", "c"):
        submit(rundir.create(name, folder / "runs" / name), chain=2)
    done = projects.rose_hpc("status", cwd=folder)
    assert done.stdout.count("pending (Resources)") == 3
    assert len(slurm.calls("squeue")) == 1
    for name in ("a", "b", "c"):
        journal = Journal(folder / "runs" / name / "journal.jsonl")
        journal.append("end", state="converged", reason="")
        journal.close()
    assert projects.rose_hpc("status", cwd=folder).stdout.count("converged") == 3
    assert len(slurm.calls("squeue")) == 1


def test_status_without_an_answer_is_from_the_files(slurm, run):
    """While slurmctld is away status works, exit 0, with Slurm's words and what the files say."""
    submit(run)
    slurm.script(any_=[AWAY])
    done = projects.rose_hpc("status", run.path)
    assert done.returncode == 0
    assert "state:       pending" in done.stdout
    assert "Unable to contact slurm controller; this is from the files" in done.stdout


def test_a_job_that_vanished_is_no_success(slurm, run):
    """A job that left the queue without its driver ever beginning is told as such, and where to look."""
    submit(run)
    (slurm.folder / "jobs.json").unlink()
    done = projects.rose_hpc("status", run.path)
    assert "state:       stopped" in done.stdout
    assert "job 101 ended before its driver began" in done.stdout


def test_cancel_ends_this_runs_jobs_and_nothing_else(slurm, run):
    """Every job of the run is cancelled, by ids whose comments are ours; another job under such an id is spared."""
    submit(run, chain=2)
    slurm.set("102", comment="somebody else's by now")
    slurm.set("300", state="RUNNING")
    assert cancelling.cancel(run).jobs == ("101",)
    assert [call["arguments"] for call in slurm.calls("scancel")] == [["101"]]
    assert (slurm.jobs["102"]["state"], slurm.jobs["300"]["state"]) == ("PENDING", "RUNNING")
    assert cancelling.cancel(run).jobs == ()


def test_cancel_waits_until_they_are_gone(slurm, run, monkeypatch):
    """A job that does not go is told after a bounded time, with the state it hangs in."""
    monkeypatch.setattr(cancelling, "_JOB_GONE_S", 0.5)
    submit(run)
    slurm.set("101", after_scancel="COMPLETING")
    with pytest.raises(SlurmError, match="101 is COMPLETING"):
        cancelling.cancel(run)


def test_cancel_without_an_answer_cancels_nothing(slurm, run):
    """While Slurm is away cancel says that nothing was cancelled, and fails."""
    submit(run)
    slurm.script(any_=[AWAY])
    with pytest.raises(SlurmAwayError, match=r"nothing of .* was cancelled"):
        cancelling.cancel(run)


def test_a_job_of_another_user_is_not_ours_to_cancel(slurm, run):
    """A run that a colleague submitted is refused by name, before anything is cancelled."""
    submit(run)
    path = run.slurm / "101.json"
    facts = {**json.loads(path.read_text()), "user": "alice", "uid": 4242}
    path.write_text(json.dumps(facts))
    slurm.set("101", uid="4242")
    done = projects.rose_hpc("cancel", run.path)
    assert done.returncode == 2
    assert "job 101" in done.stderr
    assert "alice's, not yours" in done.stderr
    assert slurm.calls("scancel") == []


def test_resume_submits_a_new_job(slurm, folder):
    """A submitted run that stopped goes on in a new job, changed as asked; while one is queued, none is added."""
    done = projects.rose_hpc("submit", config(folder), "--run-dir", "r", cwd=folder)
    assert done.returncode == 0, done.stderr
    again = projects.rose_hpc("resume", "r", cwd=folder)
    assert again.returncode == 1
    assert "job 101" in again.stderr
    assert "PENDING already" in again.stderr
    slurm.set("101", state="CANCELLED")
    again = projects.rose_hpc("resume", "r", "--set", "slurm.nodes=4", "--set", "check.threshold=9", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "--nodes=4" in slurm.calls("sbatch")[1]["arguments"]
    here = projects.rose_hpc("resume", "r", "--here", cwd=folder)
    assert here.returncode == 3
    assert projects.records(folder / "r", "check") == []
    assert len(projects.records(folder / "r", "checkpoint")) == 9


def test_a_job_of_a_chain_that_comes_too_late_does_nothing(slurm, folder):
    """When the run has ended before a job's turn, the job ends at once with the run's exit code."""
    projects.rose_hpc("submit", config(folder), "--run-dir", "r", "--set", "slurm.chain=2", cwd=folder)
    job = {"ROSE_HPC_ENGINE": "embedded"}
    assert projects.rose_hpc("resume", "--here", "r", cwd=folder, SLURM_JOB_ID="101", **job).returncode == 0
    before = projects.records(folder / "r")
    done = projects.rose_hpc("resume", "--here", "r", cwd=folder, SLURM_JOB_ID="102", **job)
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    assert projects.records(folder / "r") == before
    assert [record["engine"] for record in before if record["kind"] == "job"] == ["embedded"]


def test_a_chain_does_not_fail_for_ever(slurm, folder):
    """A failed run is tried once more by the next job; when that completes nothing either, the jobs left do nothing."""
    path = config(folder)
    (folder / "update.py").write_text("raise SystemExit('no luck')")
    projects.rose_hpc("submit", path, "--run-dir", "r", "--set", "slurm.chain=4", cwd=folder)
    job = {"ROSE_HPC_ENGINE": "embedded"}
    for number in ("101", "102"):
        assert projects.rose_hpc("resume", "--here", "r", cwd=folder, SLURM_JOB_ID=number, **job).returncode == 1
    before = projects.records(folder / "r")
    done = projects.rose_hpc("resume", "--here", "r", cwd=folder, SLURM_JOB_ID="103", **job)
    assert done.returncode == 1
    assert "ended twice without completing anything in between: the update failed in iteration 0" in done.stdout
    assert projects.records(folder / "r") == before
    (folder / "update.py").write_text("")
    by_hand = projects.rose_hpc("resume", "--here", "r", cwd=folder, **job)
    assert by_hand.returncode == 0, by_hand.stderr


@pytest.mark.parametrize(
    ("requeue", "chain", "words"),
    [
        (0, 1, "warning: this site will not requeue job 101; set slurm.chain to go on in further jobs"),
        (0, 2, "warning: this site will not requeue job 101; the jobs after it go on"),
        (1, 2, ""),
    ],
)
def test_a_site_that_does_not_requeue_is_told_of(slurm, folder, requeue, chain, words):
    """Where the site takes requeueing out of what was asked for, submitting says so; the jobs are submitted."""
    slurm.script(scontrol=[{"stdout": f"JobId=101 JobName=light Requeue={requeue} Restarts=0\n"}])
    sets = ("--set", "slurm.requeue=true", "--set", f"slurm.chain={chain}")
    done = projects.rose_hpc("submit", config(folder), "--run-dir", "r", *sets, cwd=folder)
    assert done.returncode == 0
    assert done.stderr.strip() == words
    assert len(slurm.jobs) == chain


def test_a_held_job_is_told_of(slurm, run):
    """A job that is held is pending, and status says how it goes on, and how the chain does without it."""
    submit(run, chain=2)
    slurm.set("101", state="PENDING", reason="JobHeldAdmin")
    done = projects.rose_hpc("status", run.path)
    assert "state:       pending" in done.stdout
    assert "`scontrol release 101` lets it go on, `scancel 101` lets job 102 of the chain go on instead" in done.stdout


def test_what_was_changed_for_a_job_is_on_record(slurm, folder):
    """Changes made when resuming in a new job are in the journal of the driver that goes on."""
    projects.rose_hpc("submit", config(folder), "--run-dir", "r", cwd=folder)
    job = {"ROSE_HPC_ENGINE": "embedded"}
    projects.rose_hpc("resume", "--here", "r", cwd=folder, SLURM_JOB_ID="101", **job)
    slurm.set("101", state="COMPLETED")
    done = projects.rose_hpc("resume", "r", "--set", "check.threshold=2.5", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = projects.rose_hpc("resume", "--here", "r", cwd=folder, SLURM_JOB_ID="102", **job)
    assert done.returncode == 0, done.stderr
    (extended,) = projects.records(folder / "r", "extend")
    assert (extended["changes"], extended["threshold"]) == (["check.threshold=2.5"], 2.5)


def test_watch_asks_once_a_minute_at_most(slurm, run, monkeypatch, capsys):
    """While a job waits watch looks at the files often and at Slurm once; it ends when the run has ended."""
    looks = 0

    def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 20:  # the job runs, and ends
            journal = Journal(run.journal)
            journal.append("run", name="toy", environments=[], seed=1, max_iterations=1)
            journal.append("job", job="101")
            journal.append("end", state="max_iterations", reason="1 iteration")
            journal.close()

    submit(run)
    monkeypatch.setattr(watching.time, "sleep", sleep)

    kinds: list[str] = []

    class Observer:
        def started(self, *_: object) -> None: ...
        def warned(self, text: str) -> None: ...
        def recorded(self, record: Any, _: object) -> None:
            kinds.append(record["kind"])

    said: list[str] = []
    assert watching.Watch(run, Observer(), said.append).follow().state == "max_iterations"
    assert kinds == ["run", "job", "end"]
    assert said == ["job 101: PENDING (Resources), 1 node"]
    assert len(slurm.calls("squeue")) == 1


def test_watch_has_the_runs_exit_code(slurm, folder):
    """watch of a run that is over ends at once, with the exit code that run gave."""
    done = projects.rose_hpc("run", config(folder), "--run-dir", "r", "--max-iterations", "1", cwd=folder)
    assert done.returncode == 3
    watched = projects.rose_hpc("watch", "r", cwd=folder)
    assert watched.returncode == 3
    assert "iteration 0: MODEL_REWARD 1" in watched.stdout
    assert slurm.calls("squeue") == []


def test_cancel_ends_a_driver_on_this_machine(slurm, folder):
    """A run that was started here ends as by Ctrl-C, and can be resumed."""
    slow = {**projects.LIGHT, "environment": "import time\nopen('up', 'w')\ntime.sleep(99)"}
    path = projects.write_project(folder, **slow)
    driver = projects.start("run", path, "--run-dir", "r", cwd=folder)
    projects.wait_for((folder / "up").exists)
    done = projects.rose_hpc("cancel", "r", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"ended its driver, process {driver.pid}\n"
    driver.communicate(timeout=30)
    assert driver.returncode == 130
    assert projects.records(folder / "r", "end")[0]["state"] == "stopped"


def test_a_driver_on_another_host_is_not_ended(slurm, run):
    """A driver elsewhere, in no job of ours, is named and left alone."""
    ownership = Ownership(run)
    facts = json.loads(run.owner.read_text()) | {"host": "login9", "heartbeat": time.time()}
    os.pwrite(ownership._file, json.dumps(facts).ljust(511).encode() + b"\n", 0)
    with pytest.raises(RoseHpcError, match="on login9; cancel it on that host"):
        cancelling.cancel(run)


def test_logs_of_a_job(slurm, run):
    """logs --job prints what the job printed, refuses a job that is not the run's, and says when there is nothing."""
    submit(run)
    empty = projects.rose_hpc("logs", run.path, "--job", "101")
    assert (empty.returncode, "printed nothing yet" in empty.stderr) == (2, True)
    (run.slurm / "101.out").write_text("hello from the job\n")
    assert projects.rose_hpc("logs", run.path, "--job", "101").stdout == "hello from the job\n"
    foreign = projects.rose_hpc("logs", run.path, "--job", "7")
    assert (foreign.returncode, "is not one of" in foreign.stderr) == (2, True)


def test_following_a_job_ends_when_it_is_gone(slurm, run):
    """logs -f of a job that is over prints all of it and ends."""
    submit(run)
    (run.slurm / "101.out").write_text("died early\n")
    slurm.set("101", state="FAILED")
    done = projects.rose_hpc("logs", run.path, "--job", "101", "-f", timeout=30)
    assert done.returncode == 0
    assert "died early" in done.stdout


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_doctor_on_a_cluster(slurm, folder):
    """With a sound Slurm there is no fault, and version, partitions and limits are told."""
    done = projects.rose_hpc("doctor", cwd=folder)
    assert done.returncode == 0, done.stdout
    for words in ("Slurm 23.11.4", "main (the default): up, at most 1:00:00", "gpu:a100:4", "locks: flock works"):
        assert words in done.stdout
    checks = json.loads(projects.rose_hpc("doctor", "--json", cwd=folder).stdout)
    assert {check["level"] for check in checks} <= {"ok", "warning"}


def test_doctor_without_a_controller(slurm, folder):
    """A controller that does not answer is a fault, exit 1, with what goes on meanwhile."""
    slurm.script(scontrol=[AWAY])
    done = projects.rose_hpc("doctor", cwd=folder)
    assert done.returncode == 1
    assert "controller: does not answer" in done.stdout


def test_doctor_without_slurm(folder, tmp_path, monkeypatch):
    """Without Slurm doctor checks the rest, and says what to do; that is no fault."""
    monkeypatch.setenv("PATH", str(tmp_path))
    done = projects.rose_hpc("doctor", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert "slurm: not here: sbatch" in done.stdout


@pytest.mark.parametrize("command", ["submit", "status", "watch", "logs", "cancel", "resume", "doctor"])
def test_help_has_an_example(command):
    """Every command of the login node explains itself with an example."""
    done = projects.rose_hpc(command, "--help")
    assert done.returncode == 0
    assert "Example:" in done.stdout


def test_login_commands_import_nothing_heavy(slurm, run):
    """status, cancel, logs and watch load no numpy, h5py, radical.* or pydantic."""
    submit(run)
    (run.slurm / "101.out").write_text("x\n")
    code = (
        "import sys; from rose_hpc.cli import cli; cli.main(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    )
    for arguments in (["status", str(run.path)], ["logs", str(run.path), "--job", "101"], ["cancel", str(run.path)]):
        done = projects.subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=True
        )
        loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
        assert not loaded & {"numpy", "h5py", "radical", "pydantic", "asyncio"}, arguments


def test_the_fake_is_complete():
    """Every command that doctor looks for is there to be run."""
    for name in ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo", "srun"):
        assert shutil.which(name, path=str(COMMANDS)), name
