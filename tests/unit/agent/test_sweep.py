"""What the agent finds of a job on its node: processes, and shared memory that nobody uses."""

import multiprocessing
import os
import secrets
import signal
import subprocess
import time
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from mpiboot.agent import sweep
from mpiboot.protocol.variables import JOB_KEY_VARIABLE

SHARED_MEMORY = Path("/dev/shm")
JOB_VARIABLES = {"slurm": "SLURM_JOB_ID"}


def test_a_jobs_processes_are_found_by_its_mark_and_ended():
    ours, other = (
        subprocess.Popen(["/bin/sleep", "600"], env={JOB_KEY_VARIABLE: key})
        for key in ("slurm-c-7", "slurm-c-8")
    )
    try:
        assert sweep.leftovers("slurm-c-7", JOB_VARIABLES) == {ours.pid}
        sweep.end_leftovers("slurm-c-7", JOB_VARIABLES, 0.0)
        assert ours.wait(10) == -signal.SIGTERM
        assert other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        ({JOB_KEY_VARIABLE: "slurm-c-7", "SLURM_JOB_ID": "7"}, "slurm-c-7"),
        (
            {JOB_KEY_VARIABLE: "slurm-my-c-7"},
            "slurm-my-c-7",
        ),  # a launcher that passes on nothing of the batch system
        # A job that a task has submitted.
        ({JOB_KEY_VARIABLE: "slurm-c-7", "SLURM_JOB_ID": "17"}, None),
        ({JOB_KEY_VARIABLE: "slurm-c-17", "SLURM_JOB_ID": "7"}, None),
        # A job on this machine that a task has submitted.
        ({JOB_KEY_VARIABLE: "local-n1-5-99", "SLURM_JOB_ID": "7"}, "local-n1-5-99"),
        ({"SLURM_JOB_ID": "7"}, None),
    ],
)
def test_which_job_a_process_belongs_to(environ, key):
    assert sweep.job_key(environ, JOB_VARIABLES) == key


def test_a_job_that_a_task_has_submitted_is_left_alone():
    nested = subprocess.Popen(["/bin/sleep", "600"], env={JOB_KEY_VARIABLE: "slurm-c-7", "SLURM_JOB_ID": "8"})
    try:
        sweep.end_leftovers("slurm-c-7", JOB_VARIABLES, 0.0)
        assert nested.poll() is None
    finally:
        nested.kill()
        nested.wait()


@pytest.fixture
def orphan():
    """A semaphore whose maker was killed before it had its name (glibc's sem_open.c)."""
    path = SHARED_MEMORY / f"sem.{secrets.token_hex(3)}"
    path.touch(mode=0o600)
    yield path
    path.unlink(missing_ok=True)


def test_what_nobody_uses_goes(orphan):
    began = time.time()
    mine = SHARED_MEMORY / f"{secrets.token_hex(3)}-of-mine"
    mine.touch()
    used = shared_memory.SharedMemory(create=True, size=8)
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    with orphan.open() as opened:
        sweep.remove_shared_memory(began)
        assert orphan.exists()
        opened.close()
    sweep.remove_shared_memory(began + 60)
    assert orphan.exists()
    sweep.remove_shared_memory(began)
    try:
        assert not orphan.exists()
        assert mine.exists()
        assert (SHARED_MEMORY / used.name).exists()
        assert (SHARED_MEMORY / f"sem.{semaphore._semlock.name.lstrip('/')}").exists()
    finally:
        mine.unlink()
        used.close()
        used.unlink()


def test_both_names_of_a_semaphore_go(orphan):
    """Whoever was killed while it named one leaves two."""
    named = SHARED_MEMORY / f"sem.mp-{secrets.token_hex(4)}"
    named.hardlink_to(orphan)
    sweep.remove_shared_memory(orphan.stat().st_mtime)
    assert not (orphan.exists() or named.exists())


def test_what_goes_meanwhile_is_no_error(orphan, monkeypatch):
    """Others use the folder too: what it lists may be gone when it is looked at."""
    gone = SHARED_MEMORY / "psm_gone"
    monkeypatch.setattr(Path, "iterdir", lambda self: [gone, orphan] if self == SHARED_MEMORY else [])
    sweep.remove_shared_memory(0.0)
    assert not orphan.exists()


def test_a_killed_process_that_takes_its_time_to_die_keeps_nothing(orphan):
    began = time.time()
    pid = os.fork()
    if not pid:
        handle = orphan.open()
        signal.pause()
        os._exit(int(handle.closed))
    try:
        file = (orphan.stat().st_dev, orphan.stat().st_ino)
        while file not in sweep.used_shared_memory(()):
            pass
        sweep.remove_shared_memory(began)
        assert orphan.exists()
        sweep.remove_shared_memory(began, dying=[pid])
        assert not orphan.exists()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
