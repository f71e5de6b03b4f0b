"""The fixtures of all tests: conda environments, a Slurm of several nodes, its users."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from condaenv import cached_env
from disturb import leave_nothing, slurm_settings
from slurmcluster import Minicluster, report_sections, why_no_cluster
from user import User

UP = pytest.StashKey[Minicluster]()


@pytest.fixture(scope="session")
def conda_env_small() -> Path:
    """A real conda environment with a few pip packages (console scripts, an extension module). Tests must not change
    it."""
    return cached_env(["pygments", "psutil"])


@pytest.fixture(scope="session")
def minicluster(request: pytest.FixtureRequest) -> Iterator[Minicluster]:
    """A cluster of three nodes, one for each process of the test run.

    alice's environment `cluster.env` has mpiboot, Open MPI, and what the demo and the notebook need.
    """
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
    """The prefix, on the cluster, of an environment with MPICH instead of Open MPI."""
    return minicluster.add_env("env-mpich", ["mpich", "demo"])


@pytest.fixture(scope="module")
def alice(minicluster: Minicluster) -> Iterator[User]:
    """The cluster's ordinary user, who has no job when a module's tests begin."""
    user = User(minicluster)
    user.cancels_all()
    yield user
    user.cancels_all()


@pytest.fixture
def second(minicluster: Minicluster) -> User:
    """A user who has no rights on anything of alice's."""
    return User(minicluster, "second")


@pytest.fixture
def leaves_nothing(alice: User) -> Iterator[None]:
    """After each test, ends what a failed one has left of alice's jobs."""
    yield
    leave_nothing(alice)


@pytest.fixture(scope="module")
def patient_slurm(minicluster: Minicluster) -> Iterator[None]:
    """As on most sites: Slurm waits five minutes for a node that does not answer, longer than mpiboot does."""
    with slurm_settings(minicluster, SlurmdTimeout=300):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """Show with a failed cluster test what the jobs, boot and Slurm said."""
    report = yield
    cluster = item.config.stash.get(UP, None)
    if report.failed and cluster is not None and "cluster" in item.keywords:
        report.sections.extend(report_sections(cluster))
    return report
