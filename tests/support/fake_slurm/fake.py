"""A scripted Slurm: what `sbatch`, `squeue` and the others in this folder do, from files in ``$FAKE_SLURM``.

- ``script.json``: command -> a list of answers, used up one by one, the last one for ever; "*": for every command.
  Each has any of ``stdout, stderr, returncode, sleep_s``, and ``do`` (default true): whether the command is carried out
  all the same (an sbatch that times out may have submitted). Without an answer the command works.
  ``works``: the command works this time. ``late_s``: squeue shows the job so much later, by the file ``clock``.
- ``jobs.json``: the jobs. ``calls.jsonl``: every call, with what of the environment is Slurm's.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

HOME = Path(os.environ["FAKE_SLURM"])
ANSWERED_BY_SCRIPT = {"stdout": "", "stderr": "", "returncode": 0, "sleep_s": 0.0}


def main(command: str, arguments: list[str]) -> int:
    with open(HOME / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        note(command, arguments)
        answer = scripted(command)
        done = {"sbatch": sbatch, "squeue": squeue, "scancel": scancel, "sacct": sacct}.get(command, told)
        if answer is None or answer.get("works"):
            return done(arguments)
        if answer.get("do", True):
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                done(arguments)
            if answer.get("late_s"):
                hide_newest(answer["late_s"])
    answer = {**ANSWERED_BY_SCRIPT, **answer}
    time.sleep(answer["sleep_s"])
    sys.stdout.write(answer["stdout"])
    sys.stderr.write(answer["stderr"])
    return int(answer["returncode"])


def note(command: str, arguments: list[str]) -> None:
    ours = {k: v for k, v in os.environ.items() if k.startswith(("SLURM", "SBATCH", "SQUEUE", "SACCT", "ROSE_HPC"))}
    with open(HOME / "calls.jsonl", "a") as file:
        file.write(json.dumps({"command": command, "arguments": arguments, "environment": ours}) + "\n")


def scripted(command: str) -> dict[str, Any] | None:
    script = read("script.json", {})
    key = command if command in script else "*"
    answers = script.get(key)
    if not answers:
        return None
    answer = answers.pop(0) if len(answers) > 1 else answers[0]
    write("script.json", script)
    return answer


def read(name: str, default: Any) -> Any:
    path = HOME / name
    return json.loads(path.read_text()) if path.exists() else default


def write(name: str, value: Any) -> None:
    (HOME / name).write_text(json.dumps(value, indent=1))


def option(arguments: list[str], name: str) -> str:
    return next((word.partition("=")[2] for word in arguments if word.startswith(f"--{name}=")), "")


def sbatch(arguments: list[str]) -> int:
    jobs = read("jobs.json", {})
    number = str(max(map(int, jobs), default=100) + 1)
    jobs[number] = {
        "state": "PENDING",
        "reason": "Dependency" if option(arguments, "dependency") else "Resources",
        "comment": option(arguments, "comment"),
        "nodes": option(arguments, "nodes") or "1",
        "folder": option(arguments, "chdir"),
        "uid": str(os.getuid()),
    }
    write("jobs.json", jobs)
    print(number)
    return 0


def hide_newest(seconds: float) -> None:
    jobs = read("jobs.json", {})
    jobs[max(jobs, key=int)]["shown_at"] = read("clock", 0.0) + seconds
    write("jobs.json", jobs)


def shown() -> dict[str, Any]:
    """The jobs that a busy controller speaks of by now."""
    return {
        number: job for number, job in read("jobs.json", {}).items() if job.get("shown_at", 0) <= read("clock", 0.0)
    }


def squeue(arguments: list[str]) -> int:
    users = option(arguments, "user").split(",")
    for number, job in shown().items():
        if job["uid"] in users:
            values = {"A": number, "T": job["state"], "r": job["reason"], "k": job["comment"], "D": job["nodes"]}
            values |= {"M": job.get("used", "0:00"), "L": job.get("left", "30:00"), "C": "2", "N": "", "S": "N/A"}
            print("|".join(values[word.strip("%")] for word in option(arguments, "format").split("|")))
    return 0


def scancel(arguments: list[str]) -> int:
    jobs = read("jobs.json", {})
    for number in arguments:
        jobs[number]["state"] = jobs[number].get("after_scancel", "CANCELLED")
    write("jobs.json", jobs)
    return 0


def sacct(arguments: list[str]) -> int:
    for number, job in (shown() | read("accounted.json", {})).items():
        print("|".join((number, job["folder"], job.get("accounted_comment", ""))))
    return 0


def told(arguments: list[str]) -> int:
    """`scontrol` and `sinfo`."""
    texts = {
        ("ping",): "Slurmctld(primary) at head is UP\n",
        ("show", "config"): "JobRequeue              = 1\nKillWait                = 30 sec\n",
        ("--version",): "slurm 23.11.4\n",
    }
    sys.stdout.write(texts.get(tuple(arguments), "main*|up|1:00:00|4|64|256000|gpu:a100:4\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
