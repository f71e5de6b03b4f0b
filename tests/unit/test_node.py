"""What the agent finds of a job on its node: processes, and shared memory that nobody uses."""

import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from mpiboot import node

SHARED_MEMORY = Path("/dev/shm")


# Ends its children, so it is a process of its own. The child is held between fork and exec: nobody writes the FIFO.
AGENT = """
import os, sys
sys.path[:0] = {path!r}
from mpiboot import adopt, node
pid = adopt.start({{"folder": "/", "descriptors": [], "lock": {lock!r}, "command": ["/bin/true"]}}, [])
found = pid in node.leftovers("slurm-c-7")
ended = []
node.end_leftovers("slurm-c-7", 0.0, lambda: ended or ended.extend(os.waitpid(pid, os.WNOHANG)[:1]))
os.path.exists(f"/proc/{{pid}}") and os.kill(pid, 9)
print(found, ended == [pid])
"""


def test_a_child_that_is_not_its_rank_yet_is_ended(tmp_path):
    os.mkfifo(tmp_path / "lock")
    script = AGENT.format(path=[*map(str, sys.path)], lock=str(tmp_path / "lock"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout == "True True\n", done.stderr


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
        node.remove_shared_memory(began)
        assert orphan.exists()
        opened.close()
    node.remove_shared_memory(began + 60)
    assert orphan.exists()
    node.remove_shared_memory(began)
    try:
        assert not orphan.exists()
        assert mine.exists()
        assert (SHARED_MEMORY / used.name).exists()
        assert (SHARED_MEMORY / f"sem.{semaphore._semlock.name.lstrip('/')}").exists()
    finally:
        mine.unlink()
        used.close()
        used.unlink()


def test_a_killed_process_that_takes_its_time_to_die_keeps_nothing(orphan):
    began = time.time()
    pid = os.fork()
    if not pid:
        handle = orphan.open()
        signal.pause()
        os._exit(int(handle.closed))
    try:
        file = (orphan.stat().st_dev, orphan.stat().st_ino)
        while file not in node.used_shared_memory(()):
            pass
        node.remove_shared_memory(began)
        assert orphan.exists()
        node.remove_shared_memory(began, dying=[pid])
        assert not orphan.exists()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
