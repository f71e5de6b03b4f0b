"""Every system call on mpiboot's folders that can fail, fails once: submit and list say what, where and what to do."""

import errno
import io
import itertools
import os
import sys
from pathlib import Path

import pytest

from mpiboot.batch import registry
from mpiboot.batch.job_state import JobState
from mpiboot.cli.main import main
from mpiboot.client import find, submit
from mpiboot.protocol.job_directory import JobDirectory

CALLS = [
    *(
        (os, name)
        for name in ("open", "mkdir", "stat", "lstat", "scandir", "unlink", "chmod", "rename", "replace")
    ),
    (io, "open"),
]
ERRORS = [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.ESTALE]


class Queue:
    """A batch system that takes every job, and has forgotten the old ones."""

    name = "slurm"
    facts = registry.facts("slurm")
    passed_options = ()

    def submit_command(self, *arguments, **options):
        return ["sbatch"]

    def submit(self, command, environ):
        return "12"

    def check(self, command, environ):
        pass

    def job_key(self, job_id):
        return f"slurm-c-{job_id}"

    def job_id_of_key(self, key):
        return key.removeprefix("slurm-c-")

    def job_id_of(self, text):
        return text

    def jobs(self):
        return []

    def states(self, job_ids):
        return {job_id: JobState(job_id, "", "ended", "FAILED") for job_id in job_ids}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path))
    JobDirectory.create(tmp_path, "slurm-c-7")  # of an ended job, with files to clear
    monkeypatch.setattr(submit, "choose", lambda name: Queue())
    monkeypatch.setattr(find, "available", lambda: {"slurm": Queue()})
    monkeypatch.setattr(submit, "check_source", lambda *_: None)
    monkeypatch.setattr(submit.prefix_checks, "check_mpi", lambda *_: None)
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [["submit", "--no-stage"], ["list"]], ids=lambda arguments: arguments[0]
)
@pytest.mark.parametrize(("module", "name"), CALLS, ids=[f"{m.__name__}.{name}" for m, name in CALLS])
def test_a_call_that_fails(home, monkeypatch, capsys, arguments, module, name):
    arguments = [*arguments, "--env", sys.prefix] if arguments[0] == "submit" else arguments
    call = getattr(module, name)
    for k in itertools.count():
        failed = []
        calls = itertools.count()

        def failing(path, *args, _k=k, _calls=calls, _failed=failed, **options):
            if (
                isinstance(path, (str, os.PathLike))
                and str(path).startswith(str(home))
                and next(_calls) == _k
            ):
                number = ERRORS[_k % len(ERRORS)]
                _failed.append(path)
                raise OSError(number, os.strerror(number), str(path))
            return call(path, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing)
            status = main(arguments)
        said = capsys.readouterr()
        if not failed:
            break
        assert status in (0, 1, 2)
        assert "Traceback" not in said.err and "should not happen" not in said.err, said.err
        if status:
            assert str(home) in said.err and said.out == "", said
            assert len(said.err.splitlines()) == 1, said.err
    assert Path(home, "jobs").is_dir()
