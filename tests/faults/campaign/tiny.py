"""A tiny deterministic training, made to be killed: every row bears a mark that no other row has.

Its scripts are plain Python without packages, so that one takes milliseconds. An environment marks its rows with a
hash of its seed and of the policy it was given; the update hashes all marks of its window together with the policy
and state it had; the check's number is made of the policy. So anything lost, doubled, altered or out of order, in any
iteration, changes everything after it.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROWS = 4

_ENVIRONMENT = """
    import hashlib, os, pathlib, time
    given = os.environ
    scratch, end = pathlib.Path(given["ROSE_HPC_RUN"], "scratch"), time.monotonic() + 3
    while STREAMS and given["ROSE_HPC_ENVIRONMENT"] == "env_1" and time.monotonic() < end:
        if list(scratch.glob("*.parts/shards-*.json")):
            break  # the other shard is in the bank
        time.sleep(0.005)
    try:
        os.unlink(given.get("TORTURE_FAIL", "/nowhere"))
    except FileNotFoundError:
        pass
    else:
        raise SystemExit("it fails once")
    policy = pathlib.Path(given["ROSE_HPC_POLICY"], "weights").read_bytes() if "ROSE_HPC_POLICY" in given else b""
    shard = bytearray(pathlib.Path(__file__).with_name("template.h5").read_bytes())
    start = shard.index(b"<" + 30 * b"-" + b">")
    for row in range(ROWS):
        words = b"%s %d %s" % (given["ROSE_HPC_SEED"].encode(), row, policy)
        mark = hashlib.blake2b(words, digest_size=15).hexdigest().encode()
        shard[start + 32 * row : start + 32 * row + 32] = b"<" + mark + b">"
    pathlib.Path(given["ROSE_HPC_SHARD"]).write_bytes(shard)
    print("marked", mark.decode())
""".replace("ROWS", str(ROWS))
_UPDATE = """
    import hashlib, json, os, pathlib, re
    policy, state = pathlib.Path(os.environ["ROSE_HPC_POLICY"]), pathlib.Path(os.environ["ROSE_HPC_STATE"])
    banks = [pathlib.Path(bank).read_bytes() for bank in json.loads(os.environ["ROSE_HPC_BANKS"])]
    marks = [mark for bank in banks for mark in re.findall(rb"<[0-9a-f]{30}>", bank)]
    assert len(set(marks)) == len(marks), "a row is there twice"
    weights, count = policy / "weights", state / "deep" / "count"
    before = weights.read_bytes() if weights.exists() else b""
    count.parent.mkdir(exist_ok=True)
    done = int(count.read_text()) if count.exists() else 0
    assert done == int(os.environ["ROSE_HPC_ITERATION"]), "the state is not that of the iteration before"
    count.write_text(str(done + 1))
    words = b"%d %s %s %s" % (done, before, b"".join(marks), os.environ["ROSE_HPC_SEED"].encode())
    weights.write_bytes(hashlib.blake2b(words).hexdigest().encode())
    (policy / f"rows-{done}").write_text(str(len(marks)))
    print("updated")
"""
_CHECK = """
    import os, pathlib
    weights = pathlib.Path(os.environ["ROSE_HPC_POLICY"], "weights").read_text()
    print(int(os.environ["ROSE_HPC_ITERATION"]) + int(weights[:8], 16) / 2**33)
"""
_CONFIG = """
    name = "tiny"
    seed = {seed}
    [environments]
    command = "{{python}} -S -E environment.py {{number}}"
    timeout_s = 60
    [environments.grid]
    number = {numbers}
    [update]
    command = "{{python}} -S -E update.py"
    timeout_s = 60
    [check]
    command = "{{python}} -S -E check.py"
    threshold = 99
    timeout_s = 60
    [loop]
    max_iterations = {iterations}
    max_concurrent = 4
    local_policy_mb = {local_policy_mb}
    [merge]
    window = {window}
    way = "{way}"
    [retention]
    policies = {policies}
    shards = {shards}
    {sweep}
"""
_PROGRAM = """\
import asyncio, pathlib, shlex, sys
import numpy as np
from radical.asyncflow import LocalExecutionBackend, WorkflowEngine
import rose_hpc
from rose_hpc import LearnerConfig, CLASS, TaskConfig

here = pathlib.Path(__file__).parent

def line(script, *args):
    return shlex.join([sys.executable, "-S", "-E", str(here / script), *map(str, args)])

async def main():
    asyncflow = await WorkflowEngine.create(await BACKEND)
    learner = CLASS(asyncflow, seed=SEED, window=WINDOW)
    try:
TASKS
        async for state in learner.start(max_iter=ITERATIONS, **MANY):
            print(state.iteration, state.metric_value, flush=True)
            whose = {"learner_id": state.learner_id} if MANY else {}
            learner.set_next_config(LearnerConfig(environment=TaskConfig(args=(state.iteration + 1,))), **whose)
    finally:
        await asyncflow.shutdown()

asyncio.run(main())
"""
_BACKEND = "rose_hpc.EmbeddedExecutionBackend(max_concurrent=4)"
_COMMANDS = """\
        for number in range(ENVIRONMENTS):
            @learner.environment_task(name=f"env_{number}")
            async def environment(*args, number=number):
                return line("environment.py", number, *args)

        @learner.update_task
        async def update(*args):
            return line("update.py")

        @learner.as_stop_criterion(metric_name="reward", threshold=99, operator=">")
        async def check(*args):
            return line("check.py")
"""
_FUNCTIONS = """\
        for number in range(ENVIRONMENTS):
            @learner.environment_task(name=f"env_{number}", as_executable=False)
            def collect(told=0):
                COLLECT

        @learner.update_task(as_executable=False)
        def update(*values):
            UPDATE

        @learner.as_stop_criterion(metric_name="reward", threshold=99, operator=">", as_executable=False)
        def check(updated):
            CHECK
"""
#: a configuration names its functions, which stand in a module beside it
_MODULE = """\
import numpy as np
import rose_hpc

def collect(number):
    told = 10 * number
    COLLECT

def update(*values):
    UPDATE

def check(updated):
    CHECK
"""
_BODIES = {
    "COLLECT": f"""
        task = rose_hpc.current_task()
        weights = (task.policy / "weights").read_bytes() if task.policy else b""
        with task.shard() as shard:
            for row in range({ROWS}):
                shard.append(observation=task.rng.random(3), reward=float(told), action=sum(weights) % 251)
        return {{"told": told, "drawn": float(task.rng.random())}}
    """,
    "UPDATE": """
        task = rose_hpc.current_task()
        bank, state = task.bank(), task.state / "count"
        done = int(state.read_text()) if state.exists() else 0
        assert done == task.iteration, "the state is not that of the iteration before"
        state.write_text(str(done + 1))
        observations = np.asarray(bank["observations"])
        assert len(np.unique(observations, axis=0)) == len(observations), "a row is there twice"
        before = (task.policy / "weights").read_text() if (task.policy / "weights").exists() else ""
        text = repr((len(before), observations.sum(0).tolist(), np.asarray(bank["actions"]).tolist(), values))
        (task.policy / "weights").write_text(text + str(task.rng.random()))
        return {"sum": float(observations.sum())}
    """,
    "CHECK": """return rose_hpc.current_task().iteration + updated["sum"] / 1e6""",
}


def _filled(text: str) -> str:
    """The functions' bodies in their places."""
    lines = []
    for line in text.splitlines():
        margin, name = line[: len(line) - len(line.lstrip())], line.strip()
        lines.append(textwrap.indent(textwrap.dedent(_BODIES[name]).strip(), margin) if name in _BODIES else line)
    return "\n".join(lines) + "\n"


Form = Literal["config", "named", "commands", "functions", "foreign"]


@dataclass(frozen=True)
class Tiny:
    """One shape of the training; equal shapes are equal trainings.

    Attributes:
        form: a configuration, of commands or (``named``) of functions in resident processes; or a Python program whose
            tasks are commands or functions; ``foreign``: commands, on an engine that is not ours.
        environments, iterations, window: how much.
        policies, shards: retention (a configuration's alone).
        learners: how many there are side by side, of a configuration or of a program with one environment.
        way: of merging; with ``stream`` the first environment of a configuration waits until the second is in the bank.
        local_policy_mb: size from which a policy is copied to the node; 0: never (a configuration's alone).
    """

    form: Form = "config"
    environments: int = 2
    iterations: int = 3
    window: int = 1
    policies: int | Literal["all"] = "all"
    shards: bool = False
    learners: int = 1
    way: str = "auto"
    local_policy_mb: float = 0
    seed: int = 11

    def write(self, folder: Path) -> Path:
        """Write its files; the configuration, or the program."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("environment", _ENVIRONMENT), ("update", _UPDATE), ("check", _CHECK)):
            text = text.replace("STREAMS", str(self.way == "stream"))
            (folder / f"{name}.py").write_text(textwrap.dedent(text))
        _write_template(folder / "template.h5")
        target = folder / ("config.toml" if self.is_config else "program.py")
        target.write_text(self._config() if self.is_config else self._program())
        (folder / "steps.py").write_text(_filled(_MODULE))
        return target

    @property
    def is_config(self) -> bool:
        """Whether ``rose-hpc run`` takes it."""
        return self.form in ("config", "named")

    def _config(self) -> str:
        text = _CONFIG.format(
            seed=self.seed,
            numbers=list(range(self.environments)),
            iterations=self.iterations,
            window=self.window,
            way=self.way,
            local_policy_mb=self.local_policy_mb,
            policies='"all"' if self.policies == "all" else self.policies,
            shards=str(self.shards).lower(),
            sweep=f"[sweep]\n    repeat = {self.learners}" if self.learners > 1 else "",
        )
        if self.form == "named":
            for script, name in (("environment", "collect"), ("update", "update"), ("check", "check")):
                text = re.sub(rf'command = ".* {script}\.py.*"', f'function = "steps:{name}"', text)
        return textwrap.dedent(text)

    def _program(self) -> str:
        text = _PROGRAM.replace("TASKS", _filled(_FUNCTIONS) if self.form == "functions" else _COMMANDS)
        text = text.replace("BACKEND", "LocalExecutionBackend()" if self.form == "foreign" else _BACKEND)
        several = self.learners > 1
        text = text.replace("CLASS", "ParallelReinforcementLearner" if several else "ParallelExperience")
        text = text.replace("MANY", repr({"parallel_learners": self.learners} if several else {}))
        for name in ("environments", "iterations", "window", "seed"):
            text = text.replace(name.upper(), str(getattr(self, name)))
        return text


def _write_template(path: Path) -> None:
    """A file that a simulator in another language might leave: columns, and nothing else."""
    import h5py
    import numpy as np

    with h5py.File(path, "w") as file:
        mark = np.frombuffer(b"<" + 30 * b"-" + b">", np.uint8)
        file["observations"] = np.tile(mark, (ROWS, 1))
        file["rewards"] = np.arange(ROWS, dtype=np.float32)
        file["terminations"] = np.arange(ROWS) == ROWS - 1
        file["truncations"] = np.zeros(ROWS, bool)
