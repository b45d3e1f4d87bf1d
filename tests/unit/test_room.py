"""What could never start is refused beforehand, with the arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

from rose_hpc import machine
from rose_hpc.errors import UsageError
from rose_hpc.machine import Shape
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
        check_fits(workflow("a", update=wide), Room(Shape(2)))
    check_fits(workflow("a", update=wide), Room(Shape(3)))
    check_fits(workflow("a", update=wide, max_concurrent=1), Room(Shape(2)))
    with pytest.raises(UsageError, match="environment a asks for 2 ranks"):
        check_fits(workflow("a", work=taking(ranks=2)), Room(Shape(8)))


@pytest.mark.parametrize(
    ("resources", "room", "words"),
    [
        ({"mem_gb_per_rank": 16.5}, Room(Shape(4, 15_974)), "16.5 GB of memory, and there are 15.59;"),
        ({"mem_gb_per_rank": 4.002}, Room(Shape(4, 4_096)), "4.01 GB of memory, and there are 4;"),
        ({"mem_gb_per_rank": 16.5}, Room(Shape(4, 16_384), 3), "16.5 GB of memory, and there are 16 on a node"),
        ({"gpus_per_rank": 2}, Room(Shape(4, gpus=1), 3), "2 GPUs, and there are 1 on a node"),
        ({"gpus_per_rank": 0.5}, Room(Shape(4, gpus=0), 3), "0.5 GPUs, and there are 0 on a node"),
    ],
)
def test_memory_and_gpus_count_where_they_are_known(resources, room, words):
    """Of them, too, no task may ask for more than a node has; what nobody knows is not counted."""
    with pytest.raises(UsageError, match=f"environment a asks for {words}"):
        check_fits(workflow("a", work=taking(**resources)), room)
    check_fits(workflow("a", work=taking(**resources)), Room(Shape(room.node.cores), room.nodes))


def test_ranks_over_several_nodes_have_their_memory():
    """Where a node has cores for more ranks than it has memory or GPUs for, these say how many it holds."""
    program = workflow("a", work=taking(ranks=6, mem_gb_per_rank=10))
    check_fits(program, Room(Shape(4, 20_480), 3))
    held = "ranks of 1 cores and 10 GB of memory; 2 nodes of 4 cores and 20 GB of memory hold 2 x 2 = 4"
    with pytest.raises(UsageError, match=held):
        check_fits(program, Room(Shape(4, 20_480), 2))
    with pytest.raises(UsageError, match="10 GB of memory a rank, and there are 9 on a node; lower its mem_gb"):
        check_fits(program, Room(Shape(4, 9_216), 6))
    check_fits(workflow("a", work=taking(ranks=20, mem_gb_per_rank=6.4)), Room(Shape(64, 65_536), 2))
    with pytest.raises(UsageError, match="4 ranks of 1 cores and 1 GPUs; 1 nodes of 8 cores and 2 GPUs hold 1 x 2 = 2"):
        check_fits(workflow("a", work=taking(ranks=4, gpus_per_rank=1)), Room(Shape(8, gpus=2), 1))


def test_more_environments_than_fit_are_refused_where_waves_are_off():
    """With ``loop.waves = false`` the arithmetic is shown, whether environments are alike or not."""
    names = ("a", "b", "c", "d", "e")
    with pytest.raises(UsageError, match=r"5 environments take 5 x 1 = 5 cores at once, and there are 4"):
        check_fits(workflow(*names, waves=False), Room(Shape(2), 2))
    check_fits(workflow(*names, waves=False), Room(Shape(2), 3))
    check_fits(workflow(*names, waves=False), Room(Shape(5)))
    check_fits(workflow(*names), Room(Shape(2), 2))
    large = taking(mem_gb_per_rank=4)
    with pytest.raises(UsageError, match=r"5 environments take 5 x 4 = 20 GB of memory at once, and there are 16"):
        check_fits(workflow(*names, work=large, waves=False), Room(Shape(8, 16_384)))


@pytest.mark.parametrize(
    ("environ", "group", "limit_mb"),
    [
        ({}, "max", 4096),
        ({}, str(3 * 2**30), 3072),
        ({"SLURM_MEM_PER_NODE": "2048"}, str(3 * 2**30), 2048),
        ({"SLURM_MEM_PER_NODE": "0"}, "max", 4096),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "3"}, "max", 1536),
        ({"SLURM_MEM_PER_CPU": "512"}, "max", 4096),
        ({"SLURM_MEM_PER_CPU": "0", "SLURM_CPUS_ON_NODE": "3"}, "max", 4096),
    ],
)
@pytest.mark.parametrize("line", ["0::/jobs/7", "9:cpu,memory:/jobs/7"])
def test_memory_is_the_least_that_anybody_says(monkeypatch, tmp_path, environ, group, limit_mb, line):
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
    assert machine.available_memory_mb(environ, proc) == limit_mb
    assert machine.available_memory_mb({}, tmp_path / "nowhere") == float("inf")
