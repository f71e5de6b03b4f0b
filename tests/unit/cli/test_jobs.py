import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mpiboot.batch.job_state import JobState
from mpiboot.client import gc
from mpiboot.errors import BatchError, DeadlineError
from mpiboot.protocol.job_directory import JobDirectory


def test_no_job_is_no_output_for_programs(run, monkeypatch):
    monkeypatch.setattr("mpiboot.client.find.live_jobs", list)
    assert run("list", "--json") == (0, "[]\n", "")
    assert run("list") == (0, "", "no mpiboot job is pending or running\n")
    monkeypatch.setattr("mpiboot.client.past.past_jobs", lambda live: [])
    assert run("list", "--all") == (
        0,
        "",
        "no mpiboot job is pending or running, or has ended in the last 7 days\n",
    )


def test_list_all_shows_how_jobs_ended(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    live = [(Job("7", []), JobState("7", "flights", "running", "RUNNING", nodes="n[1-2]"))]
    ended = [
        (Job("6", []), JobState("6", "flights", "ended", "FAILED", "out of room", end=time.time() - 7200))
    ]
    monkeypatch.setattr("mpiboot.client.find.live_jobs", lambda: live)
    monkeypatch.setattr("mpiboot.client.past.past_jobs", lambda keys: ended if keys == {"7"} else [])
    assert run("list", "--all")[:2] == (
        0,
        "JOB  NAME     STATE    TIME           NODES, OR WHY IT WAITS OR ENDED\n"
        "6    flights  FAILED   2 h 0 min ago  out of room\n"
        "7    flights  RUNNING                 n[1-2]\n",
    )
    assert [(job["job_id"], job["phase"]) for job in json.loads(run("list", "--all", "--json")[1])] == [
        ("6", "ended"),
        ("7", "running"),
    ]


def test_logs_of_a_job_that_could_not_write_its_output(run, monkeypatch):
    state = JobState("7", "", "ended", "FAILED", "JobLaunchFailure", nodes="node1")
    job = SimpleNamespace(
        job_id="7",
        logs=lambda tail: "",
        ask=lambda: state,
        why_no_log=lambda state: ("It left no log. Perhaps it could not write", "Submit it elsewhere"),
    )
    monkeypatch.setattr("mpiboot.client.find.find_job", lambda name: job)
    said = "job 7 has no logs: FAILED (JobLaunchFailure)\n"
    assert run("logs", "7") == (
        0,
        "",
        f"{said}It left no log. Perhaps it could not write\nSubmit it elsewhere\n",
    )


class Batch:
    name = "stand-in"


class Job:
    """A job that ends when it is asked to."""

    batch = Batch()

    def __init__(self, name, asked):
        self.job_id = name[-1]  # a name and an id may mean the same job
        self.directory = JobDirectory(Path(self.job_id))
        self.asked = asked

    def request_stop(self):
        self.asked.append(self.job_id)

    def wait_for_stop(self):
        assert len(self.asked) > 1, "the first is waited for when all have been asked"
        if self.job_id == "3":
            raise DeadlineError("job 3 is still RUNNING after 45.0 s", "See why: mpiboot status 3")
        return JobState(self.job_id, "", "ended", "COMPLETED", "stopped")


@pytest.mark.parametrize(
    ("names", "status", "err"),
    [
        (("1", "2"), 0, ["job 1: COMPLETED (stopped)", "job 2: COMPLETED (stopped)"]),
        (("1", "job-1", "2", "1"), 0, ["job 1: COMPLETED (stopped)", "job 2: COMPLETED (stopped)"]),
        (
            ("9", "1", "3", "2"),
            1,
            [
                "mpiboot: 9: there is no job 9 here. See the live ones: mpiboot list",
                "job 1: COMPLETED (stopped)",
                "mpiboot: job 3: job 3 is still RUNNING after 45.0 s. See why: mpiboot status 3",
                "job 2: COMPLETED (stopped)",
            ],
        ),
    ],
    ids=["both", "twice", "two-fail"],
)
def test_stop_attempts_every_job(run, monkeypatch, names, status, err):
    asked = []

    def find_job(name):
        if name == "9":
            raise BatchError("there is no job 9 here", "See the live ones: mpiboot list")
        return Job(name, asked)

    monkeypatch.setattr("mpiboot.client.find.find_job", find_job)
    assert run("stop", *names) == (status, "", "".join(f"{line}\n" for line in err))


def test_gc_prints_what_it_removed(run, monkeypatch):
    removals = [
        gc.Removal(Path("/h/logs/slurm-1.out"), 2048, "job 1, ended 2 h 0 min ago"),
        gc.Removal(Path("/h/jobs/slurm-c-1"), 10, "job 1, ended 2 h 0 min ago", "Read-only file system"),
        gc.Removal(Path("/h/packs/a.tar.zst"), 3 * 1024**3, "archive"),
    ]
    asked = []

    def remove(older_than_s, *, dry_run):
        asked.append((older_than_s, dry_run))
        return iter(removals)

    monkeypatch.setattr(gc, "gc", remove)
    shown = (
        "    2 KiB  /h/logs/slurm-1.out (job 1, ended 2 h 0 min ago)\n"
        "    3 GiB  /h/packs/a.tar.zst (archive)\n"
    )
    failure = "mpiboot: /h/jobs/slurm-c-1 could not be removed: Read-only file system\n"
    assert run("gc") == (1, shown, f"{failure}3 GiB removed\n")
    del removals[1:]
    assert run("gc", "--dry-run", "--older-than", "7d")[::2] == (0, "2 KiB would be removed\n")
    assert asked == [(0.0, False), (7 * 86400.0, True)]
    status, _, err = run("gc", "--older-than", "x")
    assert (status, err.partition(". ")[0]) == (2, "mpiboot: --older-than: 'x' is not a time")
