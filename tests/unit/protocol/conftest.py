import pytest

from mpiboot.protocol.endpoint import Endpoint


@pytest.fixture
def endpoint():
    return Endpoint(
        job_id="1",
        job_key="slurm-c-1",
        nonce="n",
        restart_count=0,
        scheduler_id="Scheduler-1",
        address="tls://10.0.0.1:1",
        dashboard="http://10.0.0.1:2/status",
        n_workers=8,
        n_threads=1,
        memory_bytes=1,
        nodes=["n1"],
        interface="ib0",
        addresses={"ib0": "10.0.0.1"},
        prefix="/tmp/e",
        source_prefix="/home/e",
        end_time=None,
        published=1.0,
    )
