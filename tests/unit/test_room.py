"""What could never start is refused beforehand, with the arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

from rose_hpc import machine
from rose_hpc.errors import UsageError
from rose_hpc.room import Room, check_fits
from rose_hpc.workflow import Environment, Resources, Work, Workflow

WORK = Work(argv=("true",))


def workflow(*names: str, update: Work = WORK, work: Work = WORK, **settings: object) -> Workflow:
    environments = tuple(Environment(name, work) for name in names)
    return Workflow("test", Path("/"), environments, update, max_iterations=1, **settings)


def taking(**resources: float) -> Work:
    return Work(argv=("true",), resources=Resources(**resources))


def test_work_that_could_never_start_is_refused():
    """More cores than there are, or several ranks, are refused before anything runs, with the arithmetic."""
    wide = taking(cores_per_rank=3)
    with pytest.raises(UsageError, match=r"update asks for 3 cores, and there are 2;"):
        check_fits(workflow("a", update=wide), Room(2))
    check_fits(workflow("a", update=wide), Room(3))
    check_fits(workflow("a", update=wide, max_concurrent=1), Room(2))
    with pytest.raises(UsageError, match="environment a asks for 2 ranks"):
        check_fits(workflow("a", work=taking(ranks=2)), Room(8))


@pytest.mark.parametrize(
    ("resources", "room", "words"),
    [
        ({"mem_gb_per_rank": 16.5}, Room(4, memory_gb=15.6), "16.5 GB of memory, and there are 15.6;"),
        ({"mem_gb_per_rank": 16.5}, Room(4, 3, memory_gb=16), "16.5 GB of memory, and there are 16 on a node"),
        ({"gpus_per_rank": 2}, Room(4, 3, gpus=1), "2 GPUs, and there are 1 on a node"),
        ({"gpus_per_rank": 0.5}, Room(4, 3, gpus=0), "0.5 GPUs, and there are 0 on a node"),
    ],
)
def test_memory_and_gpus_count_where_they_are_known(resources, room, words):
    """Of them, too, no task may ask for more than a node has; what nobody knows is not counted."""
    with pytest.raises(UsageError, match=f"environment a asks for {words}"):
        check_fits(workflow("a", work=taking(**resources)), room)
    check_fits(workflow("a", work=taking(**resources)), Room(room.cores, room.nodes))


def test_ranks_over_several_nodes_have_their_memory():
    """Where a node has cores for more ranks than it has memory for, memory says how many it holds."""
    program = workflow("a", work=taking(ranks=6, mem_gb_per_rank=10))
    check_fits(program, Room(4, 3, memory_gb=20))
    with pytest.raises(UsageError, match="1 cores and 10 GB; 2 nodes of 4 cores and 20 GB hold 2 x 2 = 4"):
        check_fits(program, Room(4, 2, memory_gb=20))


def test_more_environments_than_fit_are_refused_where_waves_are_off():
    """With ``loop.waves = false`` the arithmetic is shown, whether environments are alike or not."""
    names = ("a", "b", "c", "d", "e")
    with pytest.raises(UsageError, match=r"5 environments take 5 x 1 = 5 cores at once, and there are 4"):
        check_fits(workflow(*names, waves=False), Room(2, 2))
    check_fits(workflow(*names, waves=False), Room(2, 3))
    check_fits(workflow(*names, waves=False), Room(5))
    check_fits(workflow(*names), Room(2, 2))
    large = taking(mem_gb_per_rank=4)
    with pytest.raises(UsageError, match=r"5 environments take 5 x 4 = 20 GB of memory at once, and there are 16"):
        check_fits(workflow(*names, work=large, waves=False), Room(8, memory_gb=16))


@pytest.mark.parametrize(
    ("environ", "group", "limit_gb"),
    [
        ({}, "max", 4),
        ({}, str(3 * 2**30), 3),
        ({"SLURM_MEM_PER_NODE": "2048"}, str(3 * 2**30), 2),
        ({"SLURM_MEM_PER_NODE": "0"}, "max", 4),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "3"}, "max", 1.5),
        ({"SLURM_MEM_PER_CPU": "512"}, "max", 4),
    ],
)
@pytest.mark.parametrize("line", ["0::/jobs/7", "9:cpu,memory:/jobs/7"])
def test_memory_is_the_least_that_anybody_says(monkeypatch, tmp_path, environ, group, limit_gb, line):
    """Of the machine, the control groups around us (of either version), and Slurm."""
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    monkeypatch.setattr(machine, "_GROUPS", groups)
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemFree: 1 kB\nMemTotal: {4 * 2**20} kB\n")
    (proc / "self" / "cgroup").write_text(f"4:devices:/elsewhere\n{line}\n")
    root, name = (groups, "memory.max") if line.startswith("0:") else (groups / "memory", "memory.limit_in_bytes")
    (root / "jobs" / "7").mkdir(parents=True)
    (root / "jobs" / name).write_text(f"{group}\n")
    (root / "jobs" / "7" / name).write_text("max\n")
    assert machine.available_memory_gb(environ, proc) == pytest.approx(limit_gb)
    assert machine.available_memory_gb({}, tmp_path / "nowhere") == float("inf")
