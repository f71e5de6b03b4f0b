"""An agent that ends, however it does, says why, or boot does; and a batch system that is away, which ends no agent."""

import re

import pytest
from disturb import (
    cut,
    is_cleaned,
    left_on,
    pids,
    restart_slurmctld,
    signal_all,
    slurm_settings,
    stopped,
)
from faults import boot
from undisturbed import SILENCE_S, STALL_S, TWO, assert_undisturbed, stops_in_time, submitted
from waiting import wait_until
from workload import Workload

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("leaves_nothing", "patient_slurm")]

AGENT = "[a]gent.pyc"


def lost_agent(job, node, timeout_s):
    """Wait for boot's word that it has lost a node's agent; return why."""
    (told,) = job.wait_for("lost-agent", timeout_s=timeout_s)
    assert told["host"] == f"node{node}"
    return told["detail"]


def goes_on(job, workload):
    """The job computes and stops as if nothing had been."""
    workload.goes_on_for(5)
    workload.ends_well()
    assert job.slurm_state() == "RUNNING"
    stops_in_time(job)


def test_a_killed_agent(minicluster, alice):
    """Boot misses it, and records its loss; the job goes on with the other nodes."""
    job = boot(alice, *TWO)
    workload = Workload(job, 4, lines=1)
    signal_all(minicluster, 2, "KILL", pids(minicluster, 2, AGENT))
    (silent,) = job.wait_for("agent-silent", timeout_s=10)
    assert silent["host"] == "node2" and silent["detail"]
    workload.goes_on_for(10)
    assert lost_agent(job, 2, SILENCE_S + 10)
    workload.goes_on_for(5)
    workload.ends_well()
    assert job.slurm_state() == "RUNNING"
    alice.stops(job.job_id)
    assert job.named("closed")[-1]["reason"] == "stopped"
    # Its files are swept by the next job on the node; of processes, nothing is left.
    wait_until(
        lambda: not any("process" in line for line in left_on(minicluster, 2)),
        "end of the processes",
        15,
        lambda: left_on(minicluster, 2),
    )
    stops_in_time(boot(alice, *TWO))


def test_an_agent_that_gets_sigterm(minicluster, alice):
    """It cleans its node and says so; the job goes on with the other nodes."""
    job = boot(alice, *TWO)
    workload = Workload(job, 4)
    signal_all(minicluster, 2, "TERM", pids(minicluster, 2, AGENT))
    assert re.search("SIGTERM|cancelled", lost_agent(job, 2, 20))
    is_cleaned(minicluster, 2, 10)
    workload.has_workers(2)
    assert (job.folder / "tls").is_dir()  # of the job that goes on
    goes_on(job, workload)


CONNECT = "import socket; s = socket.socket(socket.AF_UNIX); s.connect({address!r})"


def no_more_open_files(job, agent):
    """A connection comes, and the agent cannot accept it."""
    alice, address = job.user, f"/tmp/mpiboot-{job.user.uid}/.jobs/{job.folder.name}/agent.sock"
    alice.types("prlimit", "--pid", agent, "--nofile=8:", node=2)
    alice.types("/usr/bin/python3", "-c", CONNECT.format(address=address), node=2)


def no_job_folder(job, _agent):
    job.user.types("rm", "-rf", f"/tmp/mpiboot-{job.user.uid}/.jobs/{job.folder.name}", node=2)


def no_certificates(job, _agent):
    """They are not there when the agent dials again."""
    (job.folder / "tls").rename(job.folder / "tls-away")
    with cut(job.user.cluster, 2):
        job.wait_for("agent-silent", timeout_s=25)
    (job.folder / "tls-away").rename(job.folder / "tls")
    job.wait_for("agent-back", timeout_s=30)


@pytest.mark.parametrize("break_world", [no_more_open_files, no_job_folder, no_certificates])
def test_an_agent_whose_world_breaks(minicluster, alice, break_world):
    """It goes on, or ends with its clean-up and its words; the job goes on either way, and leaves nothing."""
    job = boot(alice, *TWO)
    workload = Workload(job, 4)
    (agent,) = pids(minicluster, 2, AGENT)
    break_world(job, agent)
    workload.goes_on_for(10)
    if agent not in pids(minicluster, 2, AGENT):
        assert lost_agent(job, 2, SILENCE_S + 10)
        is_cleaned(minicluster, 2, 10)
    goes_on(job, workload)


# Agents wait in it, until the test has exchanged their program.
PROLOG = """#!/bin/bash
ls /home/alice/.mpiboot/jobs/*-$SLURM_JOB_ID/agent.pyc >/dev/null 2>&1 || exit 0
touch /home/alice/waits-$SLURM_JOB_ID
until [ -e /home/alice/go-$SLURM_JOB_ID ]; do sleep 0.1; done
"""
OTHER_VERSION = """
import sys
from pathlib import Path
from mpiboot.boot import agent_program
code_of = agent_program.code_of
def of_another_version(spec):
    if spec.name == "mpiboot.common.version":
        return compile("VERSION = '9.8.7'", spec.origin, "exec")
    return code_of(spec)
agent_program.code_of = of_another_version
agent_program.write_agent_program(Path(sys.argv[1]))
"""


def test_agents_of_another_version(minicluster, alice):
    """As after an update of the environment between boot's start and theirs: the job ends, and names both."""
    prolog = minicluster.folder / "etc/slurm/waits.sh"
    prolog.write_text(PROLOG)
    prolog.chmod(0o755)
    with slurm_settings(minicluster, TaskProlog="/etc/slurm/waits.sh"):
        job = submitted(alice, *TWO)
        waits = alice.home / f"waits-{job.job_id}"
        wait_until(waits.exists, "start of an agent", 30, job.events)
        program = f"/home/alice/.mpiboot/jobs/{job.folder.name}/agent.pyc"
        alice.runs_python(OTHER_VERSION, program)
        alice.types("touch", f"go-{job.job_id}")
        closed = job.wait_for("closed", timeout_s=40)[-1]
    told = closed["reason"] + closed["detail"]
    for node in ("node1", "node2"):
        assert re.search(rf"{node}: .*{node}.* runs mpiboot 9\.8\.7, boot runs \d", told), told
    assert closed["exit_status"] == 1
    job.wait_ended()
    assert job.slurm_state() == "FAILED"


def test_slurmctld_is_away(minicluster, alice):
    """Stopped, and then killed and started again: the job does not notice."""
    job = boot(alice, *TWO)
    workload = Workload(job, 4)
    with stopped(minicluster, None, "^slurmctld", "root"):
        workload.goes_on_for(20)
    workload.goes_on_for(5)
    restart_slurmctld(minicluster, 5)
    workload.goes_on_for(5)
    assert workload.ends_well()["worst_s"] < STALL_S
    assert_undisturbed(job)
    stops_in_time(job)
