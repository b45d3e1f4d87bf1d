"""A real Slurm of four nodes for these tests, started once; every test finds it idle, and leaves it so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import slurm_cluster


@pytest.fixture(scope="session")
def _cluster() -> Iterator[slurm_cluster.SlurmCluster]:
    if why := slurm_cluster.missing():
        pytest.skip(why)
    with slurm_cluster.running(nodes=4, cpus=4) as cluster:
        yield cluster


@pytest.fixture
def cluster(
    _cluster: slurm_cluster.SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[slurm_cluster.SlurmCluster]:
    """The cluster, found by Slurm's commands as a login node finds its own."""
    monkeypatch.setenv("SLURM_CONF", str(_cluster.conf))
    monkeypatch.setenv("PATH", _cluster.env["PATH"])
    yield _cluster
    _cluster.cancel_all()
