import contextlib
import os
import pwd
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from envpack_trees import make_venv

from envpack.archive.damage import note_damage
from envpack.common.locks import take_lock
from envpack.errors import PackFailedError
from envpack.pack.packing import pack
from envpack.pack.store import folder_for, leases
from mpiboot import config as configuration
from mpiboot.batch import registry
from mpiboot.client import submit
from mpiboot.errors import BatchError, SecurityError, UsageError


def test_a_dry_run_hands_values_on_in_front_of_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(submit.prefix_checks, "check_environment", lambda *_, **__: None)
    monkeypatch.setattr(submit, "choose", lambda name, to_show: registry.batch_system(name))
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path / "a b"))
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("MPIBOOT_REQUIRE_CLUSTER", raising=False)
    config = configuration.merge(
        {"batch_system": "slurm", "env": "/e", "env_var": ["A=b 'c'", "HOME"], "no_stage": True},
        command=["x", "y z"],
    )
    words = shlex.split(submit.show_submission(config))
    assert words[:4] == ["A=b 'c'", "env", "-u", "SLURM_JOB_ID"]
    assert words[words.index("sbatch") + 1] == "--parsable"
    script = next(i for i, word in enumerate(words) if word.endswith("jobscripts/slurm.sh"))
    assert words[script + 1 :] == [
        *("--env=/e", "--no-stage", "--env-var=A", "--env-var=HOME", f"--home={tmp_path / 'a b'}"),
        *("--", "x", "y z"),
    ]


def test_the_job_is_told_mpiboots_home_unless_it_finds_the_same(commands, monkeypatch, tmp_path):
    """Without the user's variables (SBATCH_EXPORT=NONE), HOME in the job is the user database's."""
    config = configuration.merge({"env": "/e", "batch_system": "slurm", "interface": "ib0"})
    usual = pwd.getpwuid(os.getuid()).pw_dir
    monkeypatch.delenv("MPIBOOT_HOME", raising=False)
    commands()
    told = {}
    for home in (usual, str(tmp_path)):
        monkeypatch.setenv("HOME", home)
        command = submit.submit_command(config, registry.batch_system("slurm"), Path("/s.sh"))
        told[home] = [word for word in command if word.startswith("--home")]
    assert told == {usual: [], str(tmp_path): [f"--home={tmp_path}/.mpiboot"]}


def test_a_refusal_comes_with_the_partitions_limits_and_before_packing(commands, monkeypatch, tmp_path):
    commands(
        sbatch='[ "$1" = --test-only ] && echo "allocation failure: Node count specification invalid" >&2; exit 1',
        scontrol="echo 'PartitionName=p Default=YES MaxNodes=2 MaxTime=1:00:00 MinNodes=0 State=UP TotalNodes=9'",
    )
    for name in ("check_environment", "check_mpi"):
        monkeypatch.setattr(submit.prefix_checks, name, lambda *_, **__: None)
    monkeypatch.setattr("envpack.pack.packing.unchanged_archive", lambda *_, **__: None)
    monkeypatch.setattr(submit, "pack_source", lambda *_: pytest.fail("it was packed"))
    with pytest.raises(BatchError) as error:
        submit.submit_config(configuration.merge({"env": str(tmp_path), "batch_system": "slurm"}))
    assert str(error.value) == (
        "sbatch: allocation failure: Node count specification invalid\n"
        "The partitions here:\n  p: Default=YES MaxNodes=2 TotalNodes=9 MaxTime=1:00:00\n"
        "Change the options that it names; see: mpiboot submit --help"
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"scheduler_port": 8786, "dashboard_port": 8786}, "--scheduler-port and --dashboard-port are both 8786"),
        ({"worker_port": "40000:40010"}, r"--worker-port 40000:40010 has 11 ports; 1 worker\(s\) on a node need 30"),
        ({"worker_port": "40000:40039", "workers_per_node": 8}, r"has 40 ports; 8 worker\(s\) on a node need 45"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("act", [submit.submit_config, submit.show_submission])
def test_ports_with_which_no_job_can_start(monkeypatch, act, options, problem):
    monkeypatch.setattr(submit, "choose", lambda name: pytest.fail("it was submitted"))
    with pytest.raises(UsageError, match=problem):
        act(configuration.merge(options))


@pytest.mark.parametrize("act", [submit.submit_config, submit.show_submission])
def test_a_home_that_cannot_be_made_is_named_with_the_remedy(monkeypatch, tmp_path, act):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError) as error:
        act(configuration.merge({"env": "/e", "batch_system": "local"}))
    assert str(error.value) == (
        f"the folder {tmp_path}/file/jobs could not be made: Not a directory. "
        "Set MPIBOOT_HOME to a folder on the shared file system that you can write"
    )


def test_a_home_that_boot_would_refuse_is_refused_before(monkeypatch, tmp_path):
    """As an earlier version made it under umask 0002."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o775)
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path / "home"))
    with pytest.raises(SecurityError) as error:
        submit.submit_config(configuration.merge({"env": "/e", "batch_system": "local"}))
    assert str(error.value) == (
        f"{tmp_path}/home/jobs cannot be trusted: {tmp_path}/home can be written by others (mode 0775). "
        f"If you trust what is in there: chmod go-w {tmp_path}/home"
    )


def test_a_home_whose_name_dask_does_not_understand_is_refused_before(monkeypatch, tmp_path):
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path / "two\nlines"))
    with pytest.raises(SecurityError) as error:
        submit.submit_config(configuration.merge({"env": "/e", "batch_system": "local"}))
    jobs = str(tmp_path / "two\nlines/jobs")
    assert str(error.value).startswith(f"the job directory {jobs!r} has a line break in its path")


def test_folders_that_the_user_trusts_are_named_to_the_job(monkeypatch):
    """They reach a job that gets no other variables, too (sbatch --export=NONE)."""
    monkeypatch.setenv("MPIBOOT_TRUSTED_FOLDERS", "/project")
    config = configuration.merge({"env_var": ["A=1"]})
    assert submit.job_variables(config) == {"A": "1", "MPIBOOT_TRUSTED_FOLDERS": "/project"}


class Queue:
    """A batch system that takes every job."""

    name = "queue"
    passed_options = ()

    def __init__(self):
        self.submitted = []

    def submit(self, command, environ):
        self.submitted.append(command)
        return str(len(self.submitted))

    def submit_command(self, config, script, arguments, **_):
        return arguments

    def check(self, command, environ):
        pass

    def job_key(self, job_id):
        return f"queue-c-{job_id}"

    def job_id_of_key(self, key):
        return None


@pytest.fixture
def queue(monkeypatch, tmp_path):
    queue = Queue()
    monkeypatch.setattr(submit, "choose", lambda name: queue)
    monkeypatch.setattr(submit, "job_script", lambda *_: contextlib.nullcontext(tmp_path / "job.sh"))
    for name in ("check_environment", "check_mpi"):
        monkeypatch.setattr(submit.prefix_checks, name, lambda *_, **__: None)
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path / "home"))
    return queue


def test_what_is_left_out_is_said_and_the_job_knows_it(queue, tmp_path):
    prefix = make_venv(tmp_path / "env")
    config = configuration.merge({"env": str(prefix), "pack_exclude": ["share", "*/demo/data/*"]})
    said = []
    submit.submit_config(config, say=said.append)
    [left_out] = [line for line in said if line.startswith("left out")]
    assert left_out.startswith("left out by --pack-exclude: ")
    assert "noise.bin" in left_out or "…" in left_out
    [arguments] = queue.submitted
    assert [each for each in arguments if "exclude" in each] == [
        "--pack-exclude=share",
        "--pack-exclude=*/demo/data/*",
    ]
    again = []
    submit.submit_config(config, say=again.append)
    assert left_out in again and again[-1] == f"environment {prefix}: unchanged since it was packed"


def test_packages_outside_of_the_environment_are_named(queue, tmp_path, monkeypatch):
    """As those of a module that sets PYTHONPATH: the job finds them where they are."""
    prefix = make_venv(tmp_path / "env")
    (tmp_path / "module/mpi4py").mkdir(parents=True)
    (tmp_path / "module/mpi4py/__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "module"))
    said = []
    submit.submit_config(configuration.merge({"env": str(prefix)}), say=said.append)
    [warning] = [" ".join(line.split()) for line in said if line.startswith("warning: ")]  # it is wrapped
    assert f"{tmp_path}/module" in warning and "not packed" in warning


def test_an_archive_that_was_found_damaged_is_packed_again(queue, tmp_path):
    """A node has marked it; the next submit mends it by itself."""
    prefix = make_venv(tmp_path / "env")
    config = configuration.merge({"env": str(prefix)})
    submit.submit_config(config)
    archive = pack(prefix).path
    good = archive.read_bytes()
    archive.write_bytes(good[:1000] + b"?" + good[1001:])
    note_damage(archive)
    said = []
    submit.submit_config(config, say=said.append)
    assert said[-1].startswith(f"environment {prefix}: packed in ")
    assert pack(prefix).reused and pack(prefix).path.read_bytes()[1000] == good[1000]


def test_a_submitted_job_keeps_its_archive(queue, tmp_path):
    prefix = make_venv(tmp_path / "env")
    submit.submit_config(configuration.merge({"env": str(prefix)}))
    [held] = leases(tmp_path / "home").values()
    assert [path.name for path in held] == [f"{pack(prefix).path.name}.lease-queue-c-1"]


def test_who_holds_up_the_packing_is_said(queue, tmp_path, monkeypatch):
    prefix = make_venv(tmp_path / "env")
    folder = folder_for(prefix, None)
    folder.mkdir(parents=True)
    monkeypatch.setattr("envpack.common.locks.SAY_AFTER_S", 0.0)
    held = [take_lock(folder / ".lock", 1.0, error=PackFailedError)]
    said = []

    def say(line):
        said.append(line)
        if line.startswith("waiting"):
            os.close(held.pop())

    submit.submit_config(configuration.merge({"env": str(prefix)}), say=say)
    [waiting] = [line for line in said if line.startswith("waiting")]
    assert f"process {os.getpid()} of " in waiting and f" on {os.uname().nodename}, since " in waiting
    assert said[-1].startswith(f"environment {prefix}: packed in ")


def test_each_warning_is_said_once(monkeypatch):
    result = SimpleNamespace(
        warnings=("a", "b", "a"), excluded=(), excluded_bytes=0, reused=False, seconds=1.0, path="/p"
    )
    monkeypatch.setattr("envpack.pack.packing.pack", lambda *_, **__: result)
    said = []
    submit.pack_source(configuration.merge({"env": "/e"}), said.append)
    assert said == ["warning: a", "warning: b", "environment /e: packed in 1.0 s"]


@pytest.mark.parametrize(
    ("program", "warned"),
    [("python", False), ("own", False), ("/bin/sh", False), ("4", True), ("./a b.py", True)],
)
def test_a_command_that_is_no_program_here_is_a_warning(queue, tmp_path, program, warned):
    """As in `submit --nodes 2 4`."""
    (tmp_path / "env/bin").mkdir(parents=True)
    (tmp_path / "env/bin/own").touch(mode=0o755)
    said = []
    config = configuration.merge({"env": str(tmp_path / "env")}, command=[program])
    submit.check_source(config, {"PATH": f"{Path(sys.executable).parent}:/bin"}, said.append)
    expected = f"warning: {shlex.quote(program)} is no program here; if it is none on the job's first node, the job fails"
    assert [" ".join(line.split()) for line in said] == [expected] * warned


def test_a_command_that_is_not_executable_is_a_warning(queue, tmp_path):
    script = tmp_path / "a.sh"
    script.touch(mode=0o644)
    said = []
    submit.check_source(configuration.merge({"env": sys.prefix}, command=[str(script)]), {}, said.append)
    assert " ".join(said[-1].split()) == (
        f"warning: {script} is not executable, so the job fails. Make it so: chmod +x {script}"
    )
