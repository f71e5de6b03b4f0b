"""Facts about MPI that mpiboot relies on, with each MPI: `make test-mpi` starts several ranks, and each runs all tests.

mpiboot uses MPI to start the ranks, and to number them; it names rank 0, the scheduler, before mpi4py is imported.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpiboot.common.mpi import (
    LAUNCH_PREFIXES,
    PYPI_PACKAGES,
    WORKER_UNSET_PREFIXES,
    launcher_mpi,
    library_mpi,
)
from mpiboot.protocol import variables
from mpiboot.protocol.node import SCHEDULER_PID_NAME, report_scheduler

pytest.importorskip("mpi4py")
pytestmark = pytest.mark.mpi(min_size=2)

# Open MPI's wheel names its own libraries' folder; MPICH lets Fortran write at once.
HARMLESS = {"LD_LIBRARY_PATH", "GFORTRAN_UNBUFFERED_PRECONNECTED"}
SINGLE = "from mpi4py import MPI; print(MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size, MPI.Is_initialized())"


@pytest.fixture(scope="module")
def comm():
    from mpi4py import MPI

    return MPI.COMM_WORLD


def environment_at_start(pid):
    """Return the variables with which a process was started."""
    pairs = Path("/proc", str(pid), "environ").read_bytes().decode(errors="surrogateescape").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def launchers():
    """Return the process ids of this rank's ancestors that belong to an MPI, the launcher that was typed last."""
    pid, found = os.getppid(), []
    while pid > 1:
        if Path(f"/proc/{pid}/comm").read_text().startswith(("mpi", "prte", "hydra")):
            found.append(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def test_ranks_know_each_other_over_tcp_alone(comm):
    assert comm.allgather(comm.rank) == list(range(comm.size))
    assert len(set(comm.allgather(os.getpid()))) == comm.size


def test_the_rank_is_known_without_mpi4py(comm):
    name = next(name for name in (variables.PMIX_RANK, variables.PMI_RANK) if name in os.environ)
    assert os.environ[name] == str(comm.rank)


def test_rank_0_alone_reports_as_the_scheduler(comm, tmp_path):
    report_scheduler({**os.environ, variables.CONTROL_FOLDER_VARIABLE: str(tmp_path)}, 1234)
    reports = [path.name for path in tmp_path.iterdir()]
    assert reports == ([SCHEDULER_PID_NAME] if comm.rank == 0 else [])


def test_the_library_is_the_launchers(comm):
    from mpi4py import MPI

    launcher = Path(sys.executable).with_name("mpirun")
    version = subprocess.run([launcher, "--version"], capture_output=True, text=True, check=True).stdout
    assert launcher_mpi(version) == library_mpi(MPI.Get_library_version())
    assert launcher_mpi(version) in PYPI_PACKAGES


def test_all_that_a_launcher_adds_has_a_known_prefix():
    added = environment_at_start("self").keys() - environment_at_start(launchers()[-1]).keys()
    assert any(name.startswith(LAUNCH_PREFIXES) for name in added)
    unknown = [name for name in added - HARMLESS if not name.startswith(WORKER_UNSET_PREFIXES)]
    assert sorted(unknown) == []


def test_a_task_that_imports_mpi4py_is_no_rank(comm):
    """As a worker's nanny leaves the environment: without what a launcher has added."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(WORKER_UNSET_PREFIXES)}
    command = [sys.executable, "-c", SINGLE]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "1", "True"], done.stderr
