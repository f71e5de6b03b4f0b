import os
import subprocess

import pytest

from mpiboot.agent import agent as node
from mpiboot.batch.allocation import Allocation, Node
from mpiboot.boot import agents as nodes

TWO = Allocation("slurm", "7", "slurm-c-7", (Node("n1", 8), Node("n2", 8)))
UNEQUAL = Allocation("slurm", "7", "slurm-c-7", (Node("n1", 8), Node("n2", 1)))


@pytest.mark.parametrize(("allocation", "cpus"), [(TWO, ("--cpus-per-task", "8")), (UNEQUAL, ())])
def test_one_agent_per_node_with_all_its_cpus(allocation, cpus):
    assert nodes.command(allocation, "/e/bin/python", {"root": "/tmp"}) == [
        *("srun", "--overlap", "--mem=0", "--export=ALL"),
        *("--nodes", "2", "--ntasks", "2", "--ntasks-per-node", "1", *cpus),
        *("--cpu-bind=none", "--kill-on-bad-exit=0", "--wait=0", "--no-kill"),
        *("/e/bin/python", "-I", "-m", "mpiboot.agent.agent", '{"root": "/tmp"}'),
    ]


def test_answers_and_banners():
    output = b'welcome\n{"node": "n1", "cpus": 8}\n{"node": "n2", "clean": true}\n{"node": "n1", "cl'
    assert nodes.parse_answers(output) == {"n1": {"cpus": 8}}
    assert nodes.cleaned(output) == {"n2"}


@pytest.fixture
def job_folder(tmp_path):
    def make(key, began):
        folder = tmp_path / key
        folder.mkdir()
        (folder / node.LOCK_NAME).touch()
        os.utime(folder / node.LOCK_NAME, times=(began, began))
        return folder

    return make


def test_blocks_that_may_be_another_jobs_go_with_the_last_job(tmp_path, job_folder, monkeypatch):
    shared = tmp_path / "shm"
    shared.mkdir()
    monkeypatch.setattr(node, "SHARED_MEMORY", shared)
    (shared / "psm_abc").touch()
    (shared / "sm_segment.n1").touch()
    (shared / "theirs").touch()
    now = (shared / "theirs").stat().st_mtime
    first, last = job_folder("first", now - 10), job_folder("last", now + 10)
    with subprocess.Popen(["sleep", "60"], env={node.JOB_KEY_VARIABLE: "last"}) as process:
        node.clean(first, 0.0)
        assert process.poll() is None
        assert sorted(path.name for path in shared.iterdir()) == ["psm_abc", "theirs"]
        node.clean(last, 0.0)
        assert process.poll() is not None
    assert [path.name for path in shared.iterdir()] == ["theirs"]
