import dataclasses

import dask
import pytest
from standin import endpoint_of

from mpiboot.batch import registry
from mpiboot.batch.job_state import JobState
from mpiboot.client import show
from mpiboot.client.job import Job
from mpiboot.errors import BatchError, UsageError
from mpiboot.protocol.endpoint import Endpoint


def test_the_dashboard_of_an_ended_job_is_not_waited_for(two, monkeypatch):
    job = two[0][0]
    monkeypatch.setattr(job, "ask", lambda **_: JobState("7", "flights", "ended", "COMPLETED", "stopped"))
    with pytest.raises(
        BatchError,
        match=r"job 7 has ended: COMPLETED \(stopped\); its dashboard is gone\. Read its",
    ):
        show.endpoint_of(job)


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (
            "60",
            [
                "JOB  NAME     STATE    LEFT  NODES, OR WHY IT WAITS",
                "7    flights  RUNNING        node[1-2]",
                "8    mpiboot  PENDING        Resources and much more that d…",
            ],
        ),
        (
            "40",
            [
                "JOB  STATE    LEFT  NODES, OR WHY IT WA…",
                "7    RUNNING        node[1-2]",
                "8    PENDING        Resources and much …",
            ],
        ),
        ("3", ["JOB  STATE    LEFT  NODES, OR WHY IT WA…"]),
    ],
)
def test_a_table_in_a_narrow_terminal(two, monkeypatch, columns, lines):
    monkeypatch.setenv("COLUMNS", columns)
    assert show.table(two).splitlines()[: len(lines)] == lines


def test_a_job_takes_one_line_whatever_its_name(two):
    job, state = two[0]
    named = dataclasses.replace(state, name="a\nb\x1b[2J", nodes="")
    assert show.table([(job, named)]).splitlines()[1:] == ["7    a b?[2J  RUNNING"]


def test_a_table_fits_80_columns(two, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = show.table(two).splitlines()
    assert lines[:2] == [
        "JOB  NAME     STATE    LEFT  NODES, OR WHY IT WAITS",
        "7    flights  RUNNING        node[1-2]",
    ]
    assert len(lines[2]) == 80 and lines[2].endswith("…")


@pytest.mark.parametrize(
    ("address", "n_workers", "head", "connect"),
    [
        ("tls://n1:1", 3, "3 workers", 'mpiboot.connect("7")'),
        ("tls://n1:1", None, "3 workers", 'mpiboot.connect("7")'),
        ("tls://n1:1", 1, "1 of 3 workers", 'mpiboot.connect("7")'),
        ("tcp://n1:1", 3, "3 workers", 'mpiboot.connect("7", insecure=True)'),
    ],
)
def test_what_a_user_needs_when_the_workers_are_there(
    two, monkeypatch, cluster, address, n_workers, head, connect
):
    monkeypatch.setattr(show, "endpoint_of", lambda job: endpoint_of(cluster, n_workers=3, address=address))
    lines = show.ready(two[0][0], "gate", with_token=False, n_workers=n_workers).splitlines()
    assert lines[0] == f"job 7 is ready: {head}, 1 cores, 1 node(s)"
    assert lines[2] == f"  connect    client = {connect}"


def test_the_status_of_a_job_that_could_not_write_its_output(commands, tmp_path):
    """With the remedy of `connect` and `logs`."""
    commands(squeue="true", scontrol="echo 'ClusterName = big'")
    job = Job("7", registry.batch_system("slurm"))
    state = JobState("7", "", "ended", "FAILED", "JobLaunchFailure", nodes="node1")
    lines = show.status(job, state).splitlines()
    assert lines == ["job 7: FAILED (JobLaunchFailure)", *job.why_no_log(state)]
    assert "export MPIBOOT_HOME=FOLDER" in lines[-1]


def test_links_and_the_ssh_line(two, monkeypatch):
    job = two[0][0]
    endpoint = Endpoint(
        **{
            "job_id": "7",
            "job_key": "k",
            "nonce": "n",
            "restart_count": 0,
            "scheduler_id": "s",
            "n_workers": 2,
        },
        **{
            "n_threads": 1,
            "memory_bytes": 1,
            "nodes": ["n1"],
            "interface": "ib0",
            "addresses": {"ib0": "10.0.0.1"},
            "prefix": "/p",
        },
        **{"source_prefix": "/p", "end_time": None, "published": 1.0},
        address="tls://10.0.0.1:1",
        dashboard="http://10.0.0.1:8787/status",
    )
    tls = job.directory.path / "tls"
    tls.mkdir(parents=True, mode=0o700)
    (tls / "token").touch(mode=0o600)
    (tls / "token").write_text("a secret of 16 or more")
    monkeypatch.setattr(show.getpass, "getuser", lambda: "me")
    assert show.link(job, endpoint, with_token=False) == "http://10.0.0.1:8787/status"
    assert (
        show.link(job, endpoint, with_token=True, host="localhost")
        == "http://localhost:8787/status?token=a+secret+of+16+or+more"
    )
    monkeypatch.setenv("PORTAL", "https://ondemand.example.org")
    with dask.config.set({"distributed.dashboard.link": "{PORTAL}/rnode/{host}/{port}/status"}):
        assert (
            show.link(job, endpoint, with_token=True)
            == "https://ondemand.example.org/rnode/10.0.0.1/8787/status?token=a+secret+of+16+or+more"
        )
    with (
        dask.config.set({"distributed.dashboard.link": "/hub/{NOBODY_SETS}/{port}"}),
        pytest.raises(UsageError, match=r"link '/hub/\{NOBODY_SETS\}/\{port\}' .* 'NOBODY_SETS' is unknown"),
    ):
        show.link(job, endpoint, with_token=False)
    with (
        dask.config.set({"distributed.dashboard.link": "/hub/{host.name}"}),
        pytest.raises(UsageError, match="'str' object has no attribute 'name' is unknown"),
    ):
        show.link(job, endpoint, with_token=False)
    assert show.tunnel(endpoint, "gate.example.org") == "ssh -N -L 8787:10.0.0.1:8787 me@gate.example.org"
    assert show.tunnel(endpoint, "you@gate") == "ssh -N -L 8787:10.0.0.1:8787 you@gate"

    def nobody():
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr(show.getpass, "getuser", nobody)
    assert show.tunnel(endpoint, "gate") == "ssh -N -L 8787:10.0.0.1:8787 gate"


def test_what_a_job_has_lost_is_said_once():
    exit = {
        "time": 0.0,
        "event": "worker-exit",
        "host": "n1",
        "rank": 3,
        "address": "a",
        "how": "because of its memory",
        "done": "another starts",
    }
    lost = {"time": 1.0, "event": "lost-worker", "host": "n1", "rank": 3, "address": "a"}
    node = {"time": 2.0, "event": "lost-node", "host": "n2"}
    lines = show.faults([exit, lost, {**lost, "time": 20.0}, {"time": 2.0, "event": "worker"}, node])
    assert [line[9:] for line in lines] == [
        "n1 rank 3: the worker ended because of its memory; another starts",
        "n1 rank 3: the worker is lost",
        "n2: no worker is left on this node",
    ]
    assert show.faults([node] * 7)[0] == "the last 5 of 7 faults:"
