"""The rounds of `benchmarks/loop.py` on Parsl, Ray and Dask, in a virtual environment of the rivals' own.

python rivals.py RIVAL KIND ROUNDS ENVIRONMENTS ...    the last line is JSON: start, and the seconds of rounds by size

RIVAL is parsl, ray, ray-tasks or dask; KIND is functions or commands (`/bin/true`). A round is ENVIRONMENTS at once, an
update that gets their values, and a check that gets the update's. Each rival has as many workers as there are cores;
Ray's actors are as many as the environments, up to MOST_ACTORS, which is what it is fastest with. Nothing is recorded.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

BEGAN = float(os.environ.get("BENCHMARK_BEGAN") or time.time())
CORES = len(os.sched_getaffinity(0))
MOST_ACTORS = 8


# Parsl wants functions that import what they need themselves.


def environment(number: int) -> Any:
    """A trivial environment: when it stepped, for the first is what the start is measured to."""
    import time

    return [number, time.time()]


def update(*values: Any) -> Any:
    """A trivial update, of all values."""
    return [len(values), min(value[1] for value in values)]


def check(updated: Any) -> Any:
    """A trivial check."""
    return updated


def true(*_values: Any) -> Any:
    """A trivial command."""
    import subprocess
    import time

    now = time.time()
    return [subprocess.run(["/bin/true"], check=True).returncode, now]


def timed(once: Callable[[int], Any], rounds: int, sizes: list[int]) -> dict[str, Any]:
    """Seconds of each round, by size, and from the start to the first step of an environment."""
    result: dict[str, Any] = {"seconds": {}}
    for size in sizes:
        first = once(size)
        result.setdefault("start", (first[1] if isinstance(first, list) else time.time()) - BEGAN)
        once(size)
        seconds = []
        for _ in range(max(3, rounds * sizes[0] // size)):
            began = time.perf_counter()
            once(size)
            seconds.append(time.perf_counter() - began)
        result["seconds"][size] = seconds
    return result


def parsl_rounds(kind: str, rounds: int, sizes: list[int]) -> dict[str, Any]:
    """Parsl's high-throughput executor, with python or bash apps."""
    import parsl
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    executor = HighThroughputExecutor(
        address="127.0.0.1", max_workers_per_node=CORES, provider=LocalProvider(init_blocks=1, max_blocks=1)
    )
    parsl.load(parsl.Config(executors=[executor], run_dir=tempfile.mkdtemp(), strategy="none"))

    def bash(*_values: Any) -> str:
        return "/bin/true"

    parts = (environment, update, check) if kind == "functions" else (bash, bash, bash)
    app = parsl.python_app if kind == "functions" else parsl.bash_app
    env, upd, chk = (app(part) for part in parts)

    def once(size: int) -> Any:
        futures = [env(n) for n in range(size)]
        return chk(upd(*[future.result() for future in futures]).result()).result()

    try:
        return timed(once, rounds, sizes)
    finally:
        parsl.dfk().cleanup()


def ray_rounds(kind: str, rounds: int, sizes: list[int], *, actors: bool) -> dict[str, Any]:
    """Ray: resident actors, or tasks."""
    import ray

    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    parts = (environment, update, check) if kind == "functions" else (true, true, true)

    class Rank:
        def run(self, part: int, *values: Any) -> Any:
            return parts[part](*values)

    if actors:
        rank = ray.remote(num_cpus=0)(Rank)
        ranks = [rank.remote() for _ in range(min(sizes[0], MOST_ACTORS))]

        def call(number: int, part: int, *values: Any) -> Any:
            return ranks[number % len(ranks)].run.remote(part, *values)
    else:
        tasks = [ray.remote(num_cpus=1)(part) for part in parts]

        def call(number: int, part: int, *values: Any) -> Any:
            return tasks[part].remote(*values)

    def once(size: int) -> Any:
        values = ray.get([call(n, 0, n) for n in range(size)])
        return ray.get(call(0, 2, ray.get(call(0, 1, *values))))

    try:
        return timed(once, rounds, sizes)
    finally:
        ray.shutdown()


def dask_rounds(kind: str, rounds: int, sizes: list[int]) -> dict[str, Any]:
    """Dask's distributed scheduler, with a process for each core."""
    from distributed import Client

    parts = (environment, update, check) if kind == "functions" else (true, true, true)
    folder = tempfile.mkdtemp()
    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": None, "local_directory": folder}
    with Client(n_workers=CORES, **options) as client:

        def once(size: int) -> Any:
            values = client.gather(client.map(parts[0], range(size), pure=False))
            updated = client.submit(parts[1], *values, pure=False).result()
            return client.submit(parts[2], updated, pure=False).result()

        return timed(once, rounds, sizes)


def main() -> None:
    rival, kind, rounds, *sizes = sys.argv[1:]
    how = int(rounds), [int(size) for size in sizes]
    if rival == "parsl":
        result = parsl_rounds(kind, *how)
    elif rival == "dask":
        result = dask_rounds(kind, *how)
    else:
        result = ray_rounds(kind, *how, actors=rival == "ray")
    print("\n" + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
