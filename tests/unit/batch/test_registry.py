from importlib.resources import files

import pytest

from mpiboot.batch import registry
from mpiboot.errors import BatchError


def test_variables_of_a_job_are_told_from_those_of_a_site():
    names = ("SLURM_JOB_ID", "SLURM_CONF", "SBATCH_ACCOUNT", "HOME")
    assert [name for name in names if registry.describes_a_job(name)] == ["SLURM_JOB_ID"]


def test_a_batch_system_that_is_not_here(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(registry.available()) == ["local"]
    assert registry.choose("auto").name == "local"
    with pytest.raises(
        BatchError, match=r"^--batch-system slurm: sbatch is not on the PATH .* use --batch-system local$"
    ):
        registry.choose("slurm")


def test_every_batch_system_has_a_job_script_and_all_that_the_client_uses():
    for name in registry.NAMES:
        assert registry.facts(name).name == registry.batch_system(name).name == name
        assert (files("mpiboot.jobscripts") / registry.facts(name).job_script).is_file()
