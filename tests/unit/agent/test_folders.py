import os
import subprocess
import sys

import pytest

from mpiboot.agent import folders, sweep
from mpiboot.common.processes import host_identity
from mpiboot.errors import StageError
from mpiboot.protocol.variables import JOB_KEY_VARIABLE


@pytest.fixture
def job_folder(tmp_path):
    def make(key, began):
        folder = tmp_path / key
        folder.mkdir()
        (folder / folders.LOCK_NAME).touch()
        os.utime(folder / folders.LOCK_NAME, times=(began, began))
        return folder

    return make


def test_what_may_be_another_jobs_goes_with_the_last_job(tmp_path, job_folder, monkeypatch):
    shared = tmp_path / "shm"
    shared.mkdir()
    monkeypatch.setattr(sweep, "SHARED_MEMORY", shared)
    monkeypatch.setattr(sweep, "TEMPORARY", shared)
    # Other tests run jobs on this machine at the same time.
    processes = sweep.marked_processes
    for module in (folders, sweep):
        monkeypatch.setattr(
            module,
            "marked_processes",
            lambda _: [(pid, key) for pid, key in processes({}) if key in ("first", "last")],
        )
    (shared / "psm_abc").touch()
    (shared / "sm_segment.n1").touch()
    (shared / "hydra_hwloc_xmlfile_Ab3dEf").touch()
    (shared / "theirs").touch()
    now = (shared / "theirs").stat().st_mtime
    first, last = job_folder("first", now - 10), job_folder("last", now + 10)
    with subprocess.Popen(["sleep", "60"], env={JOB_KEY_VARIABLE: "last"}) as process:
        folders.clean(first, {}, 0.0)
        assert process.poll() is None
        assert sorted(path.name for path in shared.iterdir()) == [
            "hydra_hwloc_xmlfile_Ab3dEf",
            "psm_abc",
            "theirs",
        ]
        folders.clean(last, {}, 0.0)
        assert process.poll() is not None
    assert [path.name for path in shared.iterdir()] == ["theirs"]


def test_a_file_without_a_name(tmp_path):
    descriptor = folders.nameless_file(tmp_path, "request")
    assert list(tmp_path.iterdir()) == []
    os.write(descriptor, b"abc")
    assert os.pread(descriptor, 9, 0) == b"abc"
    os.close(descriptor)


# An agent that holds the folder of the job `key`, until its input ends.
AGENT = """
import sys
from pathlib import Path
from mpiboot.agent import folders
print(folders.make_job_folder(Path(sys.argv[1]), "key", {}), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def earlier_agent(tmp_path):
    command = [sys.executable, "-c", AGENT, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process


def test_a_requeued_job_waits_for_the_agent_of_its_earlier_run(tmp_path, earlier_agent, monkeypatch):
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        earlier_agent.communicate()

    monkeypatch.setattr(folders.time, "sleep", sleep)
    folder = folders.make_job_folder(tmp_path, "key", {})
    assert folders.lock_folder(folder) is None
    assert (waited, (folder / folders.LOCK_NAME).read_text()) == (
        [folders.PREDECESSOR_POLL_S],
        f"{host_identity()} {os.getpid()}",
    )


def test_an_agent_of_the_earlier_run_that_does_not_end_is_named(tmp_path, earlier_agent, monkeypatch):
    monkeypatch.setattr(folders, "PREDECESSOR_S", 0.0)
    words = rf"an agent of this job's earlier run \(process {earlier_agent.pid}\) has not ended"
    with pytest.raises(StageError, match=words):
        folders.make_job_folder(tmp_path, "key", {})


def test_a_staging_root_that_several_nodes_share_is_refused(tmp_path, earlier_agent, monkeypatch):
    monkeypatch.setattr(folders, "host_identity", lambda: "another-host")
    with pytest.raises(StageError, match=r"another node of this job uses .* on a shared file system"):
        folders.make_job_folder(tmp_path, "key", {})
