"""Whatever goes wrong in a script is named, with its log and its last lines, and leaves a run that goes on."""

from __future__ import annotations

import json
import re
import resource
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import projects
import pytest

#: `good` writes a sound shard; what `bad` does first is put where BREAK stands
ENVIRONMENT = """
import os, sys, time, signal, subprocess
with open("ran", "a") as file:
    file.write(os.environ["ROSE_HPC_ENVIRONMENT"] + os.environ["ROSE_HPC_ITERATION"] + " ")
import numpy as np
import rose_hpc

task = rose_hpc.current_task()
columns = {"observations": np.ones((3, 2), np.float32), "rewards": np.ones(3)}
print("these are my last words")
if task.environment == "bad":
    pass  # BREAK
with task.shard() as shard:
    shard.extend(**columns)
"""
CONFIG = """
name = "fragile"
seed = 3
[environments]
command = "{python} environment.py"
timeout_s = 60
[[environments.list]]
name = "good"
[[environments.list]]
name = "bad"
[update]
command = "{python} -S update.py"
[check]
command = "{python} -S check.py"
threshold = 0.5
[loop]
max_iterations = 3
"""


def project(folder: Path, broken: str = "pass", **files: str) -> Path:
    """The fragile project, with a statement for `bad`."""
    environment = ENVIRONMENT.replace("pass  # BREAK", broken)
    projects.write_project(folder, **{**projects.LIGHT, "environment": environment, "config": CONFIG, **files})
    return folder


def run(folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """Run it; the run directory has a name that no shell would survive."""
    return projects.rose_hpc("run", "config.toml", "--run-dir", folder / "r 'x'", *options, cwd=folder)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what went wrong."""
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("rose-hpc: error: ")]
    assert len(lines) == 1
    assert done.stderr.splitlines()[-1] == lines[0]
    assert "Traceback" not in lines[0]
    return lines[0]


def check_failure(folder: Path, done: subprocess.CompletedProcess[str], who: str, log: str, what: str) -> None:
    """The error names who failed and where, the log and the next step, and status repeats it."""
    line, path = error_of(done), folder / "r 'x'"
    assert line.startswith(f"rose-hpc: error: {who} failed in iteration 0: it ")
    assert re.search(what, line), line
    assert f"see {path / 'logs' / log}, then `rose-hpc resume {shlex.quote(str(path))}`" in line
    assert (path / "logs" / log).exists()
    assert done.stdout.splitlines()[-1] == str(path)
    facts = json.loads(projects.rose_hpc("status", path, "--json").stdout)
    assert facts["state"] == "failed"
    assert re.search(what, facts["reason"])
    assert not [each for each in (path / "scratch").rglob("*") if each.is_file()]


BROKEN = {
    "exits": ("sys.exit(3)", "exited with code 3"),
    "writes nothing": ("sys.exit(0)", r"wrote no shard to \$ROSE_HPC_SHARD"),
    "not a shard": ("open(os.environ['ROSE_HPC_SHARD'], 'w').write('x' * 9999); sys.exit(0)", "shard|HDF5"),
    "an empty file": ("open(os.environ['ROSE_HPC_SHARD'], 'w'); sys.exit(0)", "shard|HDF5|empty"),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
    "crashes": ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
    "raises": ("raise ValueError('out of range')", "exited with code 1"),
}


@pytest.mark.parametrize(("broken", "what"), BROKEN.values(), ids=BROKEN)
def test_a_broken_environment_is_named_and_the_run_goes_on(broken: str, what: str, tmp_path: Path) -> None:
    """It is named with its last lines; once mended, the run converges, saying what changed and repeating nothing."""
    folder = project(tmp_path, broken)
    done = run(folder)
    check_failure(folder, done, "environment bad", "iter-0000-collect-bad.log", what)
    assert "    these are my last words\n" in done.stderr
    project(folder)
    resumed = projects.rose_hpc("resume", folder / "r 'x'", cwd="/")
    assert resumed.returncode == 0, resumed.stderr
    assert f"warning: {folder / 'environment.py'} changed" in resumed.stdout
    assert (folder / "ran").read_text().split().count("good0") == 1


@pytest.mark.parametrize("first", ["good", "bad"])
def test_of_two_that_do_not_fit_both_run_again(first: str, tmp_path: Path) -> None:
    """The second of two environments with other columns is named, with both; whichever was wrong, mending it helps."""
    second = "bad" if first == "good" else "good"
    config = CONFIG.replace('"good"', "FIRST").replace('"bad"', f'"{second}"').replace("FIRST", f'"{first}"')
    folder = project(tmp_path, "columns['rewards'] = np.ones(3, np.float32)", config=config)
    line = error_of(run(folder, "--set", "loop.max_concurrent=1"))
    types = {"good": "float64", "bad": "float32"}
    assert f"environment {second} failed in iteration 0: it wrote column rewards as {types[second]}" in line
    assert f", unlike the {types[first]} of environment {first}; see " in line
    project(folder, config=config)
    resumed = projects.rose_hpc("resume", folder / "r 'x'")
    assert resumed.returncode == 0, resumed.stderr
    assert (folder / "ran").read_text().split() == [f"{first}0", f"{second}0"] * 2


def test_columns_are_held_against_the_banks_before(tmp_path: Path) -> None:
    """An environment that changes its columns between iterations is told which bank it does not fit."""
    environment = ENVIRONMENT.replace('if task.environment == "bad":', "if task.iteration == 1:")
    environment = environment.replace("pass  # BREAK", "columns['rewards'] = np.ones(3, np.float32)")
    folder = project(tmp_path, environment=environment)
    line = error_of(run(folder, "--set", "check.threshold=2.5"))
    assert (
        "failed in iteration 1: it wrote column rewards as float32, unlike the float64 of the bank of iteration 0"
        in line
    )


def test_a_shard_is_optional_when_the_configuration_says_so(tmp_path: Path) -> None:
    """With shard = false an environment may leave none; the others' shards are the bank."""
    folder = project(tmp_path, "sys.exit(0)")
    assert run(folder, "--set", "environments.shard=false").returncode == 0
    merged = projects.records(folder / "r 'x'", "stage", stage="merge")
    assert merged[0]["rows"] == 3


def test_nan_rewards_are_allowed_counted_and_shown(tmp_path: Path) -> None:
    """A run with NaN rewards goes on, and says how many there are."""
    folder = project(tmp_path, "columns['rewards'][1:] = float('nan')")
    assert run(folder).returncode == 0
    path = folder / "r 'x'"
    assert [r.get("nan_rewards") for r in projects.records(path, "rank", environment="bad")] == [2]
    assert json.loads(projects.rose_hpc("status", path, "--json").stdout)["nan_rewards"] == 2
    assert "2 rewards are NaN" in projects.rose_hpc("status", path).stdout


def test_a_timeout_ends_the_whole_group(tmp_path: Path) -> None:
    """TERM comes first, KILL for who ignores it; grandchildren end too, and the error says how long was allowed."""
    environment = """
        import os, signal, subprocess, sys, time
        name = os.environ["ROSE_HPC_ENVIRONMENT"]
        def on_term(number, frame):
            open(name + " got TERM", "w").close()
            if name == "good":
                sys.exit(0)
        signal.signal(signal.SIGTERM, on_term)
        subprocess.Popen([sys.executable, "-S", "-c", "import signal, time\\nsignal.signal(15, 1)\\ntime.sleep(999)"])
        print("these are my last words", flush=True)
        while True:
            time.sleep(999)
    """
    folder = project(tmp_path, environment=environment)
    done = run(folder, "--set", "environments.timeout_s=1")
    line = error_of(done)
    assert "ran longer than its timeout_s of 1" in line
    assert "these are my last words" in done.stderr
    attempts = {r["environment"]: r for r in projects.records(folder / "r 'x'", "attempt")}
    assert {name: r["reason"] for name, r in attempts.items()} == {"good": "timeout", "bad": "timeout"}
    assert attempts["bad"]["exit_code"] == -9
    assert (folder / "good got TERM").exists()
    assert (folder / "bad got TERM").exists()
    assert projects.processes_of(folder) == []


def test_a_hanging_update_is_ended_too(tmp_path: Path) -> None:
    """Timeouts are for every stage; what the update had changed is not published."""
    update = """
        import os, pathlib, time
        pathlib.Path(os.environ["ROSE_HPC_POLICY"], "half").touch()
        time.sleep(999)
    """
    folder = project(tmp_path, update=update)
    done = run(folder, "--set", "update.timeout_s=0.5")
    check_failure(folder, done, "the update", "iter-0000-update.log", "ran longer than its timeout_s of 0.5")
    assert not (folder / "r 'x'" / "iter-0000" / "policy").exists()


def test_megabytes_of_output_go_to_a_bounded_log(tmp_path: Path) -> None:
    """A program that prints for ever ends nothing; its log stays below 64 MiB, and its last lines are still known."""
    talk = "sys.stdout.write('y' * 79 + '\\n'); " * 20
    broken = f"exec('for _ in range(50_000):\\n    ' + {talk!r}); sys.stdout.write('z' * 2_000_000); sys.exit(4)"
    folder = project(tmp_path, broken)
    done = run(folder)
    assert "exited with code 4" in error_of(done)
    assert len(done.stderr) < 10_000
    size = (folder / "r 'x'" / "logs" / "iter-0000-collect-bad.log").stat().st_size
    assert 64 * 2**20 <= size < 64 * 2**20 + 1000


@pytest.mark.parametrize(
    ("check", "what"),
    [
        ("pass", "printed nothing"),
        ("print('nan')", "'nan' as its last line, which is not finite"),
        ("print('inf')", "'inf' as its last line, which is not finite"),
        ("print(3); print('all well')", "'all well' as its last line, which is not a number"),
        ("import sys; print('oh no', file=sys.stderr); sys.exit(7)", "exited with code 7"),
    ],
)
def test_a_check_must_print_its_number(check: str, what: str, tmp_path: Path) -> None:
    """Anything but a finite number on the last line is named; the policy is kept, and only the check done again."""
    folder = project(tmp_path, **{**projects.LIGHT, "check": check})
    check_failure(folder, run(folder), "the check", "iter-0000-check.log", what)
    project(folder, **projects.LIGHT)
    resumed = projects.rose_hpc("resume", folder / "r 'x'")
    assert resumed.returncode == 0, resumed.stderr
    assert len(projects.records(folder / "r 'x'", "stage", stage="update", iteration=0)) == 1


def test_a_failing_update_is_done_again_from_the_same_policy(tmp_path: Path) -> None:
    """What a failed update had changed is gone: its repetition starts from the last published policy."""
    update = """
        import os, pathlib, sys
        weights = pathlib.Path(os.environ["ROSE_HPC_POLICY"], "weights")
        weights.write_text((weights.read_text() if weights.exists() else "") + os.environ["ROSE_HPC_ITERATION"])
        if os.environ["ROSE_HPC_ITERATION"] == "1" and not os.path.exists("mended"):
            sys.exit("cannot converge")
    """
    folder = project(tmp_path, **{**projects.LIGHT, "update": update})
    done = run(folder)
    assert "the update failed in iteration 1: it exited with code 1" in error_of(done)
    assert "    cannot converge\n" in done.stderr
    (folder / "mended").touch()
    assert projects.rose_hpc("resume", folder / "r 'x'").returncode == 0
    assert (folder / "r 'x'" / "iter-0001" / "policy" / "weights").read_text() == "01"


def test_links_in_a_policy_are_refused(tmp_path: Path) -> None:
    """A policy is plain files: a link could leave the run, and is named."""
    update = "import os; os.symlink('/etc/hosts', os.environ['ROSE_HPC_POLICY'] + '/link')"
    folder = project(tmp_path, **{**projects.LIGHT, "update": update})
    assert "neither a file nor a folder; keep only plain files" in error_of(run(folder))
    assert not (folder / "r 'x'" / "iter-0000" / "policy").exists()


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A program that cannot be started is an error of its stage, with the reason of the system."""
    config = projects.LIGHT["config"].replace("{python} -S update.py", "no-such-program-anywhere --fast")
    folder = project(tmp_path, **{**projects.LIGHT, "config": config})
    done = run(folder)
    assert done.returncode in (1, 2)
    assert "no-such-program-anywhere" in done.stderr.splitlines()[-1]
    assert len(done.stderr.splitlines()) == 1


def test_the_first_failure_lets_the_others_end_and_starts_no_more(tmp_path: Path) -> None:
    """With one at a time, the first environment's failure keeps the second from starting."""
    folder = project(tmp_path, environment=ENVIRONMENT.replace('environment == "bad"', 'environment == "good"'))
    text = (folder / "environment.py").read_text().replace("pass  # BREAK", "sys.exit(5)")
    (folder / "environment.py").write_text(text)
    assert "environment good failed" in error_of(run(folder, "--set", "loop.max_concurrent=1"))
    assert (folder / "ran").read_text().split() == ["good0"]


# -- damaged shards ----------------------------------------------------------------------------------------------------

VANDAL = """
import os, pathlib
if not os.path.exists("spared"):
    pathlib.Path("spared").touch()
    victim = pathlib.Path(os.environ["ROSE_HPC_RUN"], "iter-0000", "shards", "good.h5")
    DAMAGE
"""
DAMAGES = {
    "cut short": "os.truncate(victim, victim.stat().st_size - 40)",
    "altered": "data = bytearray(victim.read_bytes()); k = data.index(MARK); data[k] ^= 1; victim.write_bytes(data)",
    "emptied": "victim.write_bytes(b'')",
    "overwritten": "victim.write_text('not a shard' * 999)",
    "removed": "victim.unlink()",
    "replaced": "with rose_hpc.ShardWriter(victim) as w: w.extend(**{k: v[:2] for k, v in columns.items()})",
}


def vandalised(folder: Path, damage: str) -> Path:
    """A project whose second environment damages the shard of the first, once."""
    code = textwrap.indent(VANDAL.replace("DAMAGE", damage), "    ").replace("    \n", "\n")
    code = code.replace("MARK", "np.ones((3, 2), np.float32).tobytes()")
    environment = ENVIRONMENT.replace("    pass  # BREAK", code)
    return project(folder, environment=environment)


@pytest.fixture(scope="module")
def spared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the run is when nothing is damaged."""
    folder = vandalised(tmp_path_factory.mktemp("spared"), "pass")
    assert run(folder, "--set", "loop.max_concurrent=1").returncode == 0
    return projects.essence(folder / "r 'x'")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_set_aside_and_made_again(damage: str, spared: dict[str, object], tmp_path: Path) -> None:
    """Found before merging, kept under another name, its environment alone run again: the same bank as undisturbed."""
    folder = vandalised(tmp_path, damage)
    done = run(folder, "--set", "loop.max_concurrent=1")
    assert done.returncode == 0, done.stderr
    path = folder / "r 'x'"
    assert projects.essence(path) == spared
    assert (folder / "ran").read_text().split() == ["good0", "bad0", "good0"]
    (record,) = projects.records(path, "damaged")
    assert record["environment"] == "good"
    if record["path"] is None:
        assert "the shard of good is gone" in done.stdout
    else:
        assert "was set aside as" in done.stdout
        assert (path / record["path"]).is_file()
        assert (path / record["path"]).parent == path / "iter-0000" / "shards"


# -- run directories ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["config.toml/run", "/proc/nowhere/run", "/proc/run"])
def test_a_place_that_cannot_be_written_is_one_line(place: str, tmp_path: Path) -> None:
    """No write access: one line that names the path, and nothing else happens."""
    folder = project(tmp_path)
    done = projects.rose_hpc("run", "config.toml", "--run-dir", place, cwd=folder)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert place.split("/")[-2] in done.stderr
    assert not (folder / "ran").exists()


def test_a_run_directory_with_something_in_it_is_refused(tmp_path: Path) -> None:
    """--run-dir must be new or empty; the files that are there stay, and a run says how to go on with it."""
    folder = project(tmp_path)
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("years of work")
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "full", cwd=folder)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "full is not empty" in done.stderr
    assert [path.name for path in (folder / "full").iterdir()] == ["thesis.txt"]


def test_a_newline_in_the_run_directory_is_refused(tmp_path: Path) -> None:
    """A newline is refused before anything is made; an empty folder with spaces and quotes is fine (all tests here)."""
    folder = project(tmp_path)
    done = projects.rose_hpc("run", "config.toml", "--run-dir", "two\nlines", cwd=folder)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "newline" in done.stderr
    assert not list(folder.glob("two*"))


def test_a_full_disk_publishes_nothing_half(tmp_path: Path) -> None:
    """A bank that cannot be written whole is one error line and no bank; with room, only the merge is repeated."""
    big = ENVIRONMENT.replace("(3, 2)", "(3000, 20)").replace("ones(3)", "ones(3000)")  # 264 kB a shard
    folder = project(tmp_path, environment=big)
    path = folder / "r 'x'"
    done = subprocess.run(
        [sys.executable, "-m", "rose_hpc", "run", "config.toml", "--run-dir", str(path)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)),
    )
    line = error_of(done)
    assert "File too large" in line
    assert "iter-0000-merge.log" in line or "bank" in line
    assert not (path / "iter-0000" / "bank.h5").exists()
    assert projects.rose_hpc("resume", path).returncode == 0
    assert (folder / "ran").read_text().split() in (["good0", "bad0"], ["bad0", "good0"])
    with h5py.File(path / "iter-0000" / "bank.h5") as bank:
        assert len(bank["rewards"]) == 6000


def test_failures_show_a_traceback_only_with_debug(tmp_path: Path) -> None:
    """--debug shows where an error came from, besides the same line."""
    done = projects.rose_hpc("--debug", "run", "nowhere.toml", cwd=tmp_path)
    assert "Traceback" in done.stderr
    plain = projects.rose_hpc("run", "nowhere.toml", cwd=tmp_path)
    assert len(plain.stderr.splitlines()) == 1
    assert done.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]
