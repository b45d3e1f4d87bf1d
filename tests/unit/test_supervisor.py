"""The supervisor: every attempt has exactly one end, and it says what happened."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from rose_hpc.execution import child as child_module
from rose_hpc.execution import supervisor as supervisor_module
from rose_hpc.execution.attempt import VALUE_BYTES, Attempt, Outcome
from rose_hpc.execution.calls import Packer
from rose_hpc.execution.supervisor import Supervisor
from rose_hpc.experience.format import read_info
from rose_hpc.experience.shard import ShardWriter

PATIENCE_S = 60.0  # for conditions on a busy machine; never waited for when all is well

UNTIL_GO = "until test -e go; do sleep 0.02; done"


class Bench:
    """A supervisor in this process, and what it reported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.supervisor = Supervisor(self._report)
        self.reports: list[dict[str, Any]] = []
        self.outcomes: dict[str, Outcome] = {}
        self.values: dict[str, bytes] = {}
        self.on_started: Callable[[dict[str, Any]], None] = lambda message: None

    def _report(self, message: dict[str, Any], payload: bytes) -> None:
        self.reports.append(message)
        if message["op"] == "started":
            self.on_started(message)
        elif message["op"] == "done":
            outcome = Outcome.from_json(message["outcome"])
            assert outcome.id not in self.outcomes, "an attempt ends once"
            self.outcomes[outcome.id], self.values[outcome.id] = outcome, payload

    def attempt(self, identifier: str, script: str = "", **options: Any) -> Attempt:
        defaults = {
            "kind": "command",
            "argv": ("/bin/sh", "-c", script),
            "cwd": str(self.folder),
            "log": str(self.folder / f"{identifier}.log"),
        }
        return Attempt(id=identifier, **{**defaults, **options})

    def start(self, attempt: Attempt, payload: bytes = b"", lane: int = 0) -> None:
        self.supervisor.handle({"op": "run", "attempt": attempt.to_json(), "lane": lane}, payload)

    def until(self, condition: Callable[[], bool]) -> None:
        """Let it work until ``condition`` holds."""
        end = time.monotonic() + PATIENCE_S

        def look() -> None:
            assert time.monotonic() < end, f"it did not come to pass; reported: {self.reports}"
            self.supervisor.done = condition()

        self.supervisor.done = condition()
        self.supervisor.run(look, 0.01)

    def end_of(self, attempt: Attempt, payload: bytes = b"") -> Outcome:
        self.start(attempt, payload)
        self.until(lambda: attempt.id in self.outcomes)
        return self.outcomes[attempt.id]

    def log(self, identifier: str) -> str:
        return (self.folder / f"{identifier}.log").read_text()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.supervisor.kill_everything()
    for child in list(bench.supervisor.children):
        child.reap()
    for host in [*bench.supervisor.hosts, *filter(None, [bench.supervisor.service])]:
        host.socket.close()
    bench.supervisor.selector.close()


def test_a_command_that_ends_well(bench):
    """Its output is its value and in its log; where and how long it ran is known; it was reported to start."""
    bench.on_started = lambda message: (bench.folder / "go").touch()
    outcome = bench.end_of(bench.attempt("a", f'echo "in $PWD"; {UNTIL_GO}; echo 3.5'))
    assert (outcome.ok, outcome.reason, outcome.exit_code) == (True, "", 0)
    assert outcome.stdout == f"in {bench.folder}\n3.5\n" == bench.log("a")
    assert (outcome.node, outcome.seconds >= 0) == (bench.supervisor.node, True)
    assert [message["op"] for message in bench.reports] == ["started", "done"]


def test_attempts_of_a_lane_follow_each_other(bench):
    """The second begins when the first has ended, and of several that end at once is told at once."""
    bench.start(bench.attempt("a", f"echo a >> order; {UNTIL_GO}"), lane=1)
    bench.start(bench.attempt("b", "echo b >> order"), lane=1)
    bench.start(bench.attempt("c", "echo c >> order"), lane=1)
    bench.end_of(bench.attempt("other", "true"))
    bench.until((bench.folder / "order").exists)
    assert (bench.folder / "order").read_text() == "a\n"
    assert list(bench.supervisor.behind) == ["b", "c"]
    (bench.folder / "go").touch()
    bench.until(lambda: "c" in bench.outcomes)
    assert (bench.folder / "order").read_text() == "a\nb\nc\n"
    assert all(outcome.ok for outcome in bench.outcomes.values())


def test_whatever_becomes_of_the_first_the_next_begins(bench):
    """A lane goes on after what fails, what cannot be started, and what is cancelled while it stands or runs."""
    bench.start(bench.attempt("runs", "exec sleep 999"), lane=1)
    for name, script in (("stands", "true"), ("fails", "exit 3"), ("last", "echo last")):
        bench.start(bench.attempt(name, script), lane=1)
    bench.start(bench.attempt("no program", argv=("/no/such/program",)), lane=1)
    bench.start(bench.attempt("no log", "true", log="/no/such/folder/log"), lane=1)
    bench.start(bench.attempt("after all", "echo 1"), lane=1)
    bench.supervisor.handle({"op": "cancel", "id": "stands"}, b"")
    bench.supervisor.handle({"op": "cancel", "id": "runs"}, b"")
    bench.until(lambda: "after all" in bench.outcomes)
    reasons = {name: outcome.reason for name, outcome in bench.outcomes.items()}
    assert reasons == {
        "stands": "cancelled",
        "runs": "cancelled",
        "fails": "exit",
        "last": "",
        "no program": "spawn",
        "no log": "spawn",
        "after all": "",
    }
    assert bench.supervisor.behind.count == 0


def test_who_stands_for_long_is_sent_back(bench):
    """An attempt behind one that takes long is sent back, and can be ordered again."""
    bench.start(bench.attempt("long", UNTIL_GO), lane=1)
    bench.start(bench.attempt("behind", "echo 1"), lane=1)
    bench.until(lambda: any(message["op"] == "sent-back" for message in bench.reports))
    assert not {"long", "behind"} & bench.outcomes.keys()
    assert bench.end_of(bench.attempt("behind", "echo 1")).ok
    (bench.folder / "go").touch()
    bench.until(lambda: "long" in bench.outcomes)


@pytest.mark.parametrize(
    ("script", "reason", "message", "code"),
    [
        ("echo so >&2; exit 3", "exit", "exited with code 3", 3),
        ("echo so >&2; kill -SEGV $$", "signal", "was killed by SIGSEGV", -11),
    ],
)
def test_a_command_that_fails(bench, script, reason, message, code):
    """Exit code or signal, the last lines, and a note at the end of its log."""
    outcome = bench.end_of(bench.attempt("a", script))
    assert (outcome.ok, outcome.reason, outcome.message, outcome.exit_code) == (False, reason, message, code)
    assert outcome.tail == "so"
    assert f"[rose-hpc] a: {message} after " in bench.log("a")


@pytest.mark.parametrize(
    "options", [{"argv": ("/no/such/program",)}, {"cwd": "/no/such/folder"}, {"argv": ("/bin/echo", "\0")}]
)
def test_a_command_that_cannot_be_started(bench, options):
    """What cannot be started is named, and ends as any other attempt does."""
    outcome = bench.end_of(bench.attempt("a", **options))
    assert (outcome.ok, outcome.reason) == (False, "spawn")
    assert "could not be started" in outcome.message


def test_a_log_that_cannot_be_written(bench):
    """Without a log nothing is started, and the reason is given."""
    outcome = bench.end_of(bench.attempt("a", "touch ran", log="/no/such/folder/a.log"))
    assert (outcome.ok, outcome.reason) == (False, "spawn")
    assert "/no/such/folder/a.log" in outcome.message
    assert not (bench.folder / "ran").exists()


def test_a_timeout_names_itself(bench):
    """A command that runs longer than its timeout_s is ended, with that as the reason."""
    outcome = bench.end_of(bench.attempt("a", "echo begun; exec sleep 60", timeout_s=0.2))
    assert (outcome.reason, outcome.message) == ("timeout", "ran longer than its timeout_s of 0.2")
    assert outcome.exit_code == -signal.SIGTERM


def test_a_task_knows_its_deadline_and_inherits_no_task(bench, monkeypatch):
    """ROSE_HPC_DEADLINE is the nearer of the stage's and its own; other ROSE_HPC_* come from the attempt alone."""
    monkeypatch.setenv("ROSE_HPC_SHARD", "of an outer run")
    monkeypatch.setenv("ROSE_HPC_DEADLINE", "1")
    script = 'echo "${ROSE_HPC_SHARD-none} $ROSE_HPC_STAGE $ROSE_HPC_DEADLINE"'
    before = time.time()
    own = bench.end_of(bench.attempt("own", script, env={"ROSE_HPC_STAGE": "update"}, timeout_s=100))
    shard, stage, deadline = own.stdout.split()
    assert (shard, stage) == ("none", "update")
    assert before + 99 < float(deadline) < time.time() + 100.001
    nearer = bench.end_of(bench.attempt("nearer", script, env={"ROSE_HPC_DEADLINE": "5"}, timeout_s=100))
    assert nearer.stdout.split() == ["none", "5.000"]


@pytest.mark.parametrize("whom", ["$$", "$!"], ids=["itself", "what it started"])
def test_a_stopped_command_is_found_and_ended(bench, monkeypatch, whom):
    """A command that is stopped, or waits for one that is, would never end: it is ended, and that is the reason."""
    monkeypatch.setattr(supervisor_module, "STOPPED_LOOK_S", 0.05)
    outcome = bench.end_of(bench.attempt("a", f"sleep 300 & kill -STOP {whom}; wait"))
    assert (outcome.ok, outcome.reason) == (False, "stopped")
    assert outcome.message.startswith("had been stopped (SIGSTOP) for ")


def test_a_command_that_goes_on_was_not_stopped(bench, monkeypatch):
    """One that is stopped for less long than is allowed ends as it likes."""
    monkeypatch.setattr(supervisor_module, "STOPPED_LOOK_S", 0.05)
    monkeypatch.setattr(supervisor_module, "STOPPED_LOOKS", 10**6)
    script = "(sleep 0.3; kill -CONT $$) & kill -STOP $$; echo on"
    outcome = bench.end_of(bench.attempt("a", script))
    assert (outcome.ok, outcome.stdout) == (True, "on\n")


def test_endless_output_is_bounded(bench, monkeypatch):
    """Who prints without end fills no disk and no memory, keeps nobody else waiting, and is ended on time."""
    monkeypatch.setattr(child_module, "LOG_BYTES", 1 << 20)
    bench.start(bench.attempt("endless", "exec yes 0123456789", timeout_s=2))
    beside = bench.end_of(bench.attempt("beside", "echo here"))
    assert (beside.ok, "endless" in bench.outcomes) == (True, False)
    bench.until(lambda: "endless" in bench.outcomes)
    outcome = bench.outcomes["endless"]
    assert outcome.reason == "timeout"
    assert len(bench.log("endless")) < (1 << 20) + 200
    assert "[rose-hpc] this log is full" in bench.log("endless")
    assert len(outcome.stdout) <= VALUE_BYTES


def test_a_command_without_memory_says_so(bench):
    """What an allocation that fails says is the end of the log; one that is killed for it is asked about memory."""
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29)); print('so far'); bytes(1 << 30)"
    )
    outcome = bench.end_of(bench.attempt("a", argv=(sys.executable, "-S", "-c", script)))
    assert (outcome.reason, outcome.exit_code) == ("exit", 1)
    assert outcome.tail.endswith("MemoryError")
    killed = bench.end_of(bench.attempt("b", "kill -KILL $$"))
    assert (killed.reason, killed.exit_code) == ("signal", -9)
    assert killed.message.endswith(" MiB: was there no memory left?")


def test_a_cancelled_command_ends(bench):
    """Cancelling ends the command and what it started; cancelling what has ended, or never was, does nothing."""
    bench.on_started = lambda message: bench.supervisor.handle({"op": "cancel", "id": "a"}, b"")
    outcome = bench.end_of(bench.attempt("a", "sleep 60 & sleep 60"))
    assert (outcome.ok, outcome.reason) == (False, "cancelled")
    for identifier in ("a", "never"):
        bench.supervisor.handle({"op": "cancel", "id": identifier}, b"")


def test_attempts_run_side_by_side(bench):
    """Several commands run at once: each of these two ends only when it has met the other."""
    script = "touch $0; while [ ! -e $1 ]; do sleep 0.01; done"
    for one, other in (("a", "b"), ("b", "a")):
        bench.start(bench.attempt(one, argv=("/bin/sh", "-c", script, f"{one}.here", f"{other}.here")))
    bench.until(lambda: len(bench.outcomes) == 2)
    assert all(outcome.ok for outcome in bench.outcomes.values())


def test_an_unknown_message_is_an_error(bench):
    """A driver of another version is not misunderstood in silence."""
    with pytest.raises(ValueError, match="unknown message 'dance'"):
        bench.supervisor.handle({"op": "dance"}, b"")


# -- functions ---------------------------------------------------------------------------------------------------------


def payload(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bytes:
    return Packer().pack((function, args, kwargs))


def function(bench: Bench, identifier: str, **options: Any) -> Attempt:
    return bench.attempt(identifier, kind="function", argv=(), **options)


def test_functions_are_called_in_a_resident_process(bench):
    """Values, output and errors of functions come back, async ones too, one after the other from one process."""

    def pid_and(value: int) -> tuple[int, int]:
        print("called with", value)
        return os.getpid(), value

    async def later(value: int) -> tuple[int, int]:
        return os.getpid(), value

    def wrong() -> None:
        raise KeyError("weights")

    first = bench.end_of(function(bench, "first"), payload(pid_and, 1))
    second = bench.end_of(function(bench, "second"), payload(later, value=2))
    values = [cloudpickle.loads(bench.values[name]) for name in ("first", "second")]
    assert (first.ok, second.ok, bench.log("first")) == (True, True, "called with 1\n")
    assert [value for _, value in values] == [1, 2]
    assert values[0][0] == values[1][0] != os.getpid()
    failed = bench.end_of(function(bench, "third"), payload(wrong))
    assert (failed.reason, failed.message, bench.values["third"]) == ("error", "raised KeyError: 'weights'", b"")
    assert "in wrong" in bench.log("third"), "the traceback is in the log"


def test_a_function_that_crashes_its_process(bench):
    """A function that takes its process with it is that attempt's failure; the next finds a new process."""

    def crash() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    crashed = bench.end_of(function(bench, "a"), payload(crash))
    assert (crashed.ok, crashed.reason) == (False, "signal")
    assert crashed.message.startswith("was killed by SIGKILL, having used ")
    assert bench.end_of(function(bench, "b"), payload(len, "abc")).ok
    assert cloudpickle.loads(bench.values["b"]) == 3


def test_a_function_that_hangs_is_ended(bench):
    """A function's timeout_s holds for it alone."""
    hanging = bench.end_of(function(bench, "a", timeout_s=0.5), payload(time.sleep, 60))
    assert hanging.reason == "timeout"
    assert bench.end_of(function(bench, "b", timeout_s=60), payload(len, "ab")).ok


def test_a_value_that_cannot_be_sent_back_is_named(bench):
    """Its type and why, instead of a dead process; the process stays for the next call."""
    lock = bench.end_of(function(bench, "a"), payload(threading.Lock))
    assert lock.message.startswith("returned a lock that cannot be sent back (TypeError: cannot pickle"), lock.message
    bad = bench.end_of(function(bench, "b"), b"no pickle")
    assert bad.message.startswith("cannot be called here: it does not unpickle (UnpicklingError"), bad.message
    assert bench.end_of(function(bench, "c"), payload(os.getpid)).ok
    assert len(bench.supervisor.hosts) == 1


def test_a_function_may_do_to_its_output_what_it_likes(bench):
    """Nothing it prints, closes or replaces reaches the line on which its value travels."""

    def noisy(how: str) -> str:
        os.write(1, b"{}" * 50_000)
        sys.stderr.write("to stderr\n")
        if how == "closes":
            sys.stdout.close()
        elif how == "replaces":
            sys.stdout = None  # type: ignore[assignment]  # as programs do
        return how

    for how in ("prints", "closes", "replaces"):
        outcome = bench.end_of(function(bench, how), payload(noisy, how))
        assert (outcome.ok, cloudpickle.loads(bench.values[how])) == (True, how), outcome.message
    assert bench.log("prints").count("{}") == 50_000
    assert "to stderr" in bench.log("closes")


def test_memory_is_measured_by_call_and_limited(bench):
    """The most a call held is its own; a process that holds too much afterwards is replaced, on record in the log."""

    def hold(mb: int, *, leak: bool) -> int:
        block = bytearray(mb * 2**20)
        if leak:
            sys.modules["__main__"].__dict__.setdefault("leaked", []).append(block)
        return os.getpid()

    def call(identifier: str, mb: int, *, leak: bool = False) -> tuple[float, int]:
        outcome = bench.end_of(function(bench, identifier, max_rss_gb=0.15), payload(hold, mb, leak=leak))
        assert outcome.ok, outcome.message
        return outcome.max_rss_mb or 0.0, cloudpickle.loads(bench.values[identifier])

    large, first = call("large", 300)
    small, second = call("small", 0)
    assert large > 300 > 150 > small, "a peak belongs to its own call"
    _, third = call("leak", 200, leak=True)
    after, fourth = call("after", 0)
    assert first == second == third != fourth
    assert after < 150
    assert "more than max_rss_gb = 0.15: the next call begins in a fresh one" in bench.log("leak")
    assert not (bench.folder / "large.log").exists(), "a function that says nothing leaves no log"


# -- shards and banks --------------------------------------------------------------------------------------------------


def write(path: Path, rows: int) -> Path:
    with ShardWriter(path, fsync=False) as shard:
        shard.extend(observations=np.ones((rows, 2), np.float32), rewards=np.arange(rows, dtype=np.float32))
    return path


def sealed(bench: Bench, identifier: str, script: str, *, required: bool = True) -> Attempt:
    shard = bench.folder / f"{identifier}.h5"
    return bench.attempt(
        identifier,
        script,
        env={"ROSE_HPC_SHARD": str(shard), "ROSE_HPC_ENVIRONMENT": identifier},
        seal=required,
    )


def test_a_shard_is_sealed_and_a_bank_merged(bench):
    """What a command left is sealed, what was sealed is merged, in one resident process, and their facts come back."""
    write(bench.folder / "given.h5", 5)
    infos = []
    for name in ("a", "b"):
        outcome = bench.end_of(sealed(bench, name, 'cp given.h5 "$ROSE_HPC_SHARD"'))
        assert (outcome.ok, outcome.info["rows"]) == (True, 5), outcome.message
        infos.append(outcome.info)
    arguments = {
        "shards": {str(bench.folder / f"{name}.h5"): info["digest"] for name, info in zip("ab", infos, strict=True)},
        "bank": str(bench.folder / "bank.h5"),
        "verify": True,
        "workers": 1,
        "fsync": True,
        "phase": "whole",
        "way": "threads",
        "attributes": {},
    }
    merged = bench.end_of(Attempt(id="merge", kind="merge", merge=arguments))
    assert (merged.ok, merged.info["rows"]) == (True, 10), merged.message
    assert read_info(bench.folder / "bank.h5").digest == merged.info["digest"]


@pytest.mark.parametrize(
    ("script", "required", "ok", "message"),
    [
        ("true", True, False, "wrote no shard to $ROSE_HPC_SHARD"),
        ("true", False, True, ""),
        ('echo nonsense > "$ROSE_HPC_SHARD"', True, False, "a.h5"),
        ('cp given.h5 "$ROSE_HPC_SHARD"; exit 1', True, False, "exited with code 1"),
    ],
    ids=["none", "none, allowed", "not a shard", "a shard, and a failure"],
)
def test_what_is_no_acceptable_shard(bench, script, required, ok, message):
    """No shard where one must be, a file that is none, or one left by a command that failed: never sealed."""
    write(bench.folder / "given.h5", 5)
    outcome = bench.end_of(sealed(bench, "a", script, required=required))
    assert (outcome.ok, outcome.info) == (ok, None)
    assert message in outcome.message
    assert outcome.reason in ("", "shard", "exit")
