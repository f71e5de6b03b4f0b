import subprocess
from pathlib import Path

import pytest

from mpiboot import config as configuration
from mpiboot.batch.local.submission import Local, name_of
from mpiboot.errors import UsageError


@pytest.mark.parametrize(
    ("key", "job_id"),
    [
        ("local-login-12-345", "login-12-345"),
        ("local-login-2-12-345", None),  # of the host login-2, which may share this home
        ("slurm-login-12-345", None),
        ("local-login", None),
    ],
)
def test_only_this_hosts_local_jobs_can_be_asked(key, job_id, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "login")
    assert Local().job_id_of_key(key) == job_id


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"nodes": 2}, "--nodes 2: the local batch system has one node"),
        ({"mem": "9000G"}, "--mem 8.79 TiB: this"),
        ({"partition": "multiple"}, "--partition multiple: this machine has no batch system but its own"),
        ({"account": "physics"}, "--account physics: this machine has no batch system but its own"),
    ],
)
def test_what_this_machine_does_not_have_is_refused(options, problem):
    with pytest.raises(UsageError, match=problem):
        Local().submit_command(configuration.merge(options), Path("local.sh"), [], environ={})


@pytest.mark.parametrize(
    ("options", "name"),
    [({"job_name": "my flights"}, "my flights"), ({}, "mpiboot"), ({"env": "/e"}, "mpiboot")],
)
def test_a_jobs_name_is_in_its_arguments(options, name):
    """The command of batch mode may have an option of that name."""
    config = configuration.merge(options, command=["python", "--job-name=x"])
    arguments = configuration.boot_arguments(config)
    argv = ["sh", "-c", "echo; read line", "sh", *arguments]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()  # before, the kernel may not show the new arguments yet
        assert name_of(process.pid) == name
        process.communicate()
    assert name_of(process.pid) == "mpiboot"  # it has ended
