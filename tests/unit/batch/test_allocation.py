import os
import time

import pytest

from mpiboot.batch import allocation, registry
from mpiboot.batch.allocation import AllocationSystem
from mpiboot.common.processes import process_start
from mpiboot.errors import AllocationError


@pytest.mark.parametrize("name", registry.NAMES)
def test_each_batch_system_has_an_allocation(name):
    assert isinstance(allocation.system(name), AllocationSystem)


@pytest.mark.parametrize("batch_system", ["auto", "slurm"])
def test_outside_any_job(batch_system):
    message = (
        "this is no batch job: SLURM_JOB_ID is not set. Submit one: mpiboot submit; or by hand: "
        "mpiboot jobscript slurm > slurm.sh && sbatch slurm.sh"
    )
    with pytest.raises(AllocationError) as error:
        allocation.read_allocation({}, batch_system)
    assert str(error.value) == message


def test_a_local_job_names_this_process_for_good():
    job = allocation.read_allocation({}, "local")
    assert job.job_key == f"local-{job.job_id}"
    assert job.job_id.endswith(f"-{os.getpid()}-{process_start(os.getpid())}")
    assert [node.cpus for node in job.nodes] == [len(os.sched_getaffinity(0))]


def test_a_walltime_counts_where_no_batch_system_keeps_one():
    assert allocation.read_allocation({}, "local").end_time is None
    assert allocation.read_allocation({}, "local", "UNLIMITED").end_time is None
    assert allocation.read_allocation({}, "local", "10").end_time == pytest.approx(time.time() + 600, abs=5)


def test_variables_of_a_batch_job():
    environ = {"SLURM_JOB_ID": "1", "SLURM_CONF": "/c", "PATH": "/bin", "HOME": "/h"}
    assert allocation.batch_variables(environ) == {"SLURM_JOB_ID": "1", "SLURM_CONF": "/c"}
