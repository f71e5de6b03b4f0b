import shlex

import pytest

from mpiboot import config as configuration
from mpiboot.batch import registry
from mpiboot.client import submit
from mpiboot.errors import BatchError, UsageError


def test_a_dry_run_hands_values_on_in_front_of_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(submit.prefix_checks, "check_environment", lambda *_, **__: [])
    monkeypatch.setattr(submit, "choose", registry.batch_system)
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path / "a b"))
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("MPIBOOT_REQUIRE_CLUSTER", raising=False)
    config = configuration.merge(
        {"batch_system": "slurm", "env": "/e", "env_var": ["A=b 'c'", "PATH"], "no_stage": True},
        command=["x", "y z"],
    )
    words = shlex.split(submit.show_submission(config))
    assert words[:4] == ["A=b 'c'", "env", "-u", "SLURM_JOB_ID"]
    assert words[words.index("sbatch") + 1] == "--parsable"
    script = next(i for i, word in enumerate(words) if word.endswith("jobscripts/slurm.sh"))
    assert words[script + 1 :] == [
        *("--env=/e", "--no-stage", "--env-var=A", "--env-var=PATH", f"--home={tmp_path / 'a b'}"),
        *("--", "x", "y z"),
    ]


def test_a_refusal_comes_with_the_partitions_limits_and_before_packing(commands, monkeypatch, tmp_path):
    commands(
        sbatch='[ "$1" = --test-only ] && echo "allocation failure: Node count specification invalid" >&2; exit 1',
        scontrol="echo 'PartitionName=p Default=YES MaxNodes=2 MaxTime=1:00:00 MinNodes=0 State=UP TotalNodes=9'",
    )
    for name in ("check_environment", "check_mpi"):
        monkeypatch.setattr(submit.prefix_checks, name, lambda *_, **__: [])
    monkeypatch.setattr("envpack.pack.packing.unchanged_archive", lambda prefix: None)
    monkeypatch.setattr(submit, "pack_source", lambda *_: pytest.fail("it was packed"))
    with pytest.raises(BatchError) as error:
        submit.submit_config(configuration.merge({"env": str(tmp_path), "batch_system": "slurm"}))
    assert str(error.value) == (
        "sbatch: allocation failure: Node count specification invalid\n"
        "The partitions here:\n  p: Default=YES MaxNodes=2 TotalNodes=9 MaxTime=1:00:00\n"
        "Change the options that it names; see: mpiboot submit --help"
    )


def test_a_home_that_cannot_be_made_is_named_with_the_remedy(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path / "file"))
    config = configuration.merge({"env": "/e", "batch_system": "slurm"})
    with pytest.raises(UsageError) as error:
        submit.submit_command(config, registry.batch_system("slurm"), tmp_path / "job.sh")
    assert str(error.value) == (
        f"the folder {tmp_path}/file/logs could not be made: Not a directory. "
        "Set MPIBOOT_HOME to a folder on the shared file system that you can write"
    )
