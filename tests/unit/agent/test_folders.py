import os
import subprocess

import pytest

from mpiboot.agent import folders, sweep
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
            lambda: [(pid, key) for pid, key in processes() if key in ("first", "last")],
        )
    (shared / "psm_abc").touch()
    (shared / "sm_segment.n1").touch()
    (shared / "hydra_hwloc_xmlfile_Ab3dEf").touch()
    (shared / "theirs").touch()
    now = (shared / "theirs").stat().st_mtime
    first, last = job_folder("first", now - 10), job_folder("last", now + 10)
    with subprocess.Popen(["sleep", "60"], env={JOB_KEY_VARIABLE: "last"}) as process:
        folders.clean(first, 0.0)
        assert process.poll() is None
        assert sorted(path.name for path in shared.iterdir()) == [
            "hydra_hwloc_xmlfile_Ab3dEf",
            "psm_abc",
            "theirs",
        ]
        folders.clean(last, 0.0)
        assert process.poll() is not None
    assert [path.name for path in shared.iterdir()] == ["theirs"]


def test_a_file_without_a_name(tmp_path):
    descriptor = folders.nameless_file(tmp_path, "request")
    assert list(tmp_path.iterdir()) == []
    os.write(descriptor, b"abc")
    assert os.pread(descriptor, 9, 0) == b"abc"
    os.close(descriptor)
