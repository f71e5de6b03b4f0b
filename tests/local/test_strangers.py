"""Strangers hold connections to every port of a real job: they neither exhaust a rank nor keep the owner out."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import holder
import pytest
from waiting import wait_until

import mpiboot
from mpiboot.protocol.secrets import read_token

DESCRIPTORS = 1024  # the limit of most clusters; the strangers want three times as many
HOLD_S = 25.0
OWNER_S = 10.0
SUBMIT = "mpiboot submit --batch-system local --workers-per-node 1 --cpus-per-worker 1 --no-stage --mem 1G"


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    if not shutil.which("mpirun", path=str(Path(sys.executable).parent)):
        pytest.skip("no mpirun in this environment")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path_factory.mktemp("home")))
        monkeypatch.setenv("MPIBOOT_BATCH_SYSTEM", "local")
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        submitted = subprocess.run(
            ["bash", "-c", f"ulimit -n {DESCRIPTORS}; exec {SUBMIT}"],
            capture_output=True,
            text=True,
            check=True,
        )
        job_id = submitted.stdout.split()[-1]
        try:
            wait_until((job_directory(job_id) / "endpoint.json").exists, "cluster", 60)
            yield job_id
        finally:
            subprocess.run(["mpiboot", "stop", job_id], capture_output=True, check=True)


def job_directory(job_id):
    return Path(os.environ["MPIBOOT_HOME"], "jobs", f"local-{job_id}")


def ports_and_processes(client):
    """Return HOST:PORT and process id of each listening socket of the ranks, by its name."""
    info = client.scheduler_info()
    [(address, worker)] = info["workers"].items()
    scheduler = client.run_on_scheduler(os.getpid)
    own = client.run(os.getpid)[address]
    nanny = client.run(os.getpid, nanny=True)[address]
    return {
        "scheduler": (info["address"].split("//")[1], scheduler),
        "dashboard": (f"{worker['host']}:{info['services']['dashboard']}", scheduler),
        "worker": (address.split("//")[1], own),
        "worker's pages": (f"{worker['host']}:{worker['services']['dashboard']}", own),
        "nanny": (worker["nanny"].split("//")[1], nanny),
    }


def open_files(process):
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def test_a_thousand_handshakes_at_once_get_in_while_strangers_hold(job):
    """A thousand workers, as many at once as there are descriptors for."""
    from distributed import Security
    from distributed.comm import connect

    from mpiboot.protocol.secrets import client_security_arguments

    directory = job_directory(job)
    arguments = Security(**client_security_arguments(directory)).get_connection_args("client")
    with mpiboot.connect(job) as client:
        target = client.scheduler_info()["address"]
        scheduler = client.run_on_scheduler(os.getpid)
    host, _, port = target.split("//")[1].rpartition(":")

    async def work():
        holding = asyncio.ensure_future(
            holder.hold(host, int(port), "hello", connections=500, seconds=60, again=True, source="127.0.0.2")
        )
        while open_files(scheduler) < DESCRIPTORS // 8:
            await asyncio.sleep(0.1)
        for _ in range(4):
            comms = await asyncio.gather(*(connect(target, timeout=30, **arguments) for _ in range(250)))
            for comm in comms:
                comm.abort()
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)

    asyncio.run(work())


def listening_ports(process):
    """Return the TCP ports on which a process listens."""
    inodes = set()
    for one in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(one.readlink()))
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()
    ]
    return {
        int(line[1].rpartition(":")[2], 16)
        for line in lines
        if f"socket:[{line[9]}]" in inodes and line[3] == "0A"
    }


def test_a_rank_that_has_started_listens_on_no_port_of_mpi(job):
    with mpiboot.connect(job) as client:
        ports = ports_and_processes(client)
    own = {process: set() for _, process in ports.values()}
    for target, process in ports.values():
        own[process].add(int(target.rpartition(":")[2]))
    wait_until(
        lambda: {process: listening_ports(process) for process in own} == own,
        f"ports {own}",
        20,
        lambda: {process: listening_ports(process) for process in own},
    )


@pytest.mark.parametrize("mode", ["silent", "half-head", "hello"])
def test_holders_keep_nobody_out(job, mode):
    with mpiboot.connect(job) as client:
        ports = ports_and_processes(client)
        directory = job_directory(job)
        before = {process: open_files(process) for _, process in ports.values()}
        command = [
            *[sys.executable, holder.__file__, "--mode", mode, "--seconds", str(HOLD_S)],
            *["--connections", str(3 * DESCRIPTORS // len(ports))],
            *[target for target, _ in ports.values()],
        ]
        most = dict(before)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as strangers:
            while strangers.poll() is None:
                since = time.monotonic()
                with mpiboot.connect(job) as another:
                    assert another.submit(sum, [1, 2], pure=False).result(OWNER_S) == 3
                assert client.submit(sum, [1, 2], pure=False).result(OWNER_S) == 3
                for port in ("dashboard", "worker's pages"):
                    request = urllib.request.Request(
                        f"http://{ports[port][0]}/health",
                        headers={"Authorization": f"Bearer {read_token(directory)}"},
                    )
                    with urllib.request.urlopen(request, timeout=OWNER_S) as response:
                        assert response.status == 200
                assert time.monotonic() - since < OWNER_S
                most = {process: max(most[process], open_files(process)) for process in before}
            figures = [json.loads(line) for line in strangers.stdout]
    for process, files in most.items():
        assert files - before[process] < DESCRIPTORS // 3, (most, before)
    for figure in figures:
        assert figure["opened"] == 3 * DESCRIPTORS // len(ports)
        assert figure["closed"] == figure["opened"], figure
    log = (directory / "ranks.log").read_text()
    assert log.count("TLS handshake failed") < 200  # of thousands
    assert "Traceback" not in log
