"""What ended jobs have left goes; what belongs to any other job stays."""

import os
import time

import pytest

from mpiboot.batch.job_state import JobState
from mpiboot.client import find, gc
from mpiboot.errors import BatchAwayError
from mpiboot.protocol.events import EventLog
from mpiboot.protocol.job_directory import JobDirectory

DAY = 86400.0


class Batch:
    """A batch system of the cluster `c`; `phases` has what it says of its jobs."""

    name = "standin"

    def __init__(self, **phases):
        self.phases = phases
        self.questions = []

    def job_key(self, job_id):
        return f"standin-c-{job_id}"

    def job_id_of_key(self, key):
        return key.removeprefix("standin-c-") if key.startswith("standin-c-") else None

    def job_id_of(self, text):
        return text if text[1:].isdigit() else None

    def states(self, job_ids):
        self.questions.append(sorted(job_ids))
        if self.phases.get("away"):
            raise BatchAwayError("the batch system is away", "Wait")
        return {job_id: JobState(job_id, "", self.phases.get(job_id, "unknown"), "X") for job_id in job_ids}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path))
    for name in ("jobs", "logs"):
        (tmp_path / name).mkdir(mode=0o700)
    return tmp_path


@pytest.fixture
def use(monkeypatch):
    def use(**phases):
        batch = Batch(**phases)
        for module in (find, gc):
            monkeypatch.setattr(module, "available", lambda: {batch.name: batch})
        return batch

    return use


def make(home, key, *, age_s=0.0, closed=True, log=""):
    """Make a job's directory and its log, last changed `age_s` seconds ago."""
    directory = JobDirectory.create(home, key)
    events = EventLog(directory.events)
    events.phase("stage")
    if closed:
        events.write("closed", reason="stopped", exit_status=0)
    events.close()
    files = [*directory.path.iterdir(), directory.path]
    if log:
        (home / "logs" / log).write_text("x" * 1000)
        files.append(home / "logs" / log)
    for path in files:
        os.utime(path, (time.time() - age_s, time.time() - age_s))
    return directory.path


def names(home):
    return sorted(path.name for folder in ("jobs", "logs") for path in (home / folder).iterdir())


def test_only_jobs_that_have_certainly_ended(home, use):
    use(j1="running", j2="pending", j3="ended", j4="ended", j5="ended")
    make(home, "standin-c-j1", log="standin-j1.out")
    make(home, "standin-c-j2", closed=False)  # requeued
    make(home, "standin-c-j3", log="standin-j3.out")
    make(home, "standin-c-j4", closed=False)  # its heartbeat changes: that of another cluster with this name?
    make(home, "standin-c-j5", closed=False, age_s=700)
    make(home, "standin-c-j6")  # the batch system has forgotten it
    make(home, "standin-c-j7", closed=False, age_s=DAY - 100)
    make(home, "standin-c-j8", closed=False, age_s=DAY + 100)
    make(home, "standin-other-j9", log="standin-j9.out")
    make(home, "elsewhere-c-j9")
    make(home, "standin-c-j9", log="standin-j9.out")  # whose log is it?
    (home / "logs/standin-j10.out").touch()  # cancelled while it was pending; or another cluster's
    (home / "logs/standin-j11.out").touch()
    os.utime(home / "logs/standin-j11.out", (1, 1))
    (home / "logs/notes.txt").touch()
    removed = list(gc.gc())
    assert sorted(each.path.name for each in removed) == [
        "standin-c-j3", "standin-c-j5", "standin-c-j6", "standin-c-j8", "standin-c-j9",
        "standin-j11.out", "standin-j3.out",
    ]  # fmt: skip
    assert names(home) == [
        "elsewhere-c-j9", "notes.txt", "standin-c-j1", "standin-c-j2", "standin-c-j4", "standin-c-j7",
        "standin-j1.out", "standin-j10.out", "standin-j9.out", "standin-other-j9",
    ]  # fmt: skip


def test_links_are_not_followed_and_what_others_own_stays(home, use, tmp_path_factory, monkeypatch):
    use()
    outside = tmp_path_factory.mktemp("outside")
    (outside / "precious").touch()
    (make(home, "standin-c-j1") / "link").symlink_to(outside)
    (home / "jobs/standin-c-j2").symlink_to(outside)
    (home / "logs/standin-j2.out").symlink_to(outside / "precious")
    os.utime(home / "logs/standin-j2.out", (1, 1), follow_symlinks=False)
    make(home, "standin-c-j3")
    if os.geteuid() == 0:
        os.chown(home / "jobs/standin-c-j3", 12345, 12345)
    else:
        monkeypatch.setattr(gc.os, "geteuid", lambda: -1)
    assert "standin-c-j3" not in [each.path.name for each in gc.gc()]
    assert names(home)[-3:] == ["standin-c-j2", "standin-c-j3", "standin-j2.out"]
    assert (outside / "precious").exists()


def test_what_is_removed_is_named_with_its_size_and_dry_run_removes_nothing(home, use):
    use()
    path = make(home, "standin-c-j1", age_s=3 * DAY, log="standin-j1.out")
    size = sum(file.stat().st_size for file in path.iterdir())
    make(home, "standin-c-j2", age_s=DAY)
    would = list(gc.gc(2 * DAY, dry_run=True))
    assert would == [
        gc.Removal(home / "logs/standin-j1.out", 1000, "job j1, ended 72 h 0 min ago"),
        gc.Removal(path, size, "job j1, ended 72 h 0 min ago"),
    ]
    assert len(names(home)) == 3
    assert list(gc.gc(2 * DAY)) == would
    assert names(home) == ["standin-c-j2"]


def test_a_batch_system_that_is_away_loses_nothing(home, use, caplog):
    use(away="away")
    make(home, "standin-c-j1")
    assert list(gc.gc()) == []
    assert names(home) == ["standin-c-j1"]
    assert caplog.messages == ["the batch system is away; what jobs of standin have left is kept"]


def test_archives_of_ended_jobs_go(home, use):
    from envpack.pack.store import lease

    use(j1="ended", j2="running")
    folder = home / "packs/env-0123456789ab"
    folder.mkdir(parents=True)
    paths = [folder / f"{n}.tar.zst" for n in range(3)]
    for n, path in enumerate(paths):
        path.write_bytes(b"x" * n)
        os.utime(path, (1000 - n, 1000 - n))
    lease(paths[1], "standin-c-j1")
    lease(paths[2], "standin-c-j2")
    assert list(gc.gc()) == [gc.Removal(paths[1], 1, "archive")]


def test_submit_keeps_a_bounded_number_of_ended_jobs(home, use, monkeypatch):
    monkeypatch.setattr(gc, "KEPT_JOBS", 3)
    batch = use(j5="running")
    gc.bound(batch)
    for n in range(1, 7):
        make(home, f"standin-c-j{n}", age_s=n * 100, log=f"standin-j{n}.out")
    make(home, "standin-c-j7", age_s=31 * DAY)
    gc.bound(batch)
    kept = [f"standin-c-j{n}" for n in (1, 2, 3, 5)] + [f"standin-j{n}.out" for n in (1, 2, 3, 5)]
    assert names(home) == sorted(kept)
    assert batch.questions == [["j4", "j5", "j6", "j7"]]  # nothing is asked about jobs that are kept anyway
    monkeypatch.setattr(gc, "KEPT_JOBS", 50)
    make(home, "standin-c-j8", age_s=31 * DAY)
    gc.bound(batch)
    assert names(home) == sorted(kept)
    batch.phases = {"away": "away"}
    monkeypatch.setattr(gc, "KEPT_JOBS", 0)
    gc.bound(batch)
    assert names(home) == sorted(kept)


def test_a_file_that_boot_replaces_does_not_hide_that_boot_lives(home, use):
    use()
    path = make(home, "standin-c-j1", closed=False, age_s=2 * DAY)
    (path / "heartbeat").touch()
    left = gc.Leftover(None, path, home / "logs/removed.out", None, time.time() - 2 * DAY)
    assert time.time() - gc._last_change(left) < 60
