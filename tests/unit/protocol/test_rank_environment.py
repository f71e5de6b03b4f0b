from pathlib import Path

import pytest

from mpiboot.errors import StageError, UsageError
from mpiboot.protocol import rank_environment as environment

SOURCE, STAGED = Path("/home/a/env"), Path("/tmp/mpiboot-1/env-12")


def test_nothing_of_the_source_prefix_is_left():
    environ = {
        "PATH": "/home/a/env/bin:/usr/bin:/home/a/env2/bin::/home/a/env",
        "LD_LIBRARY_PATH": "/home/a/env/lib:/site/lib",
        "VIRTUAL_ENV": "/home/a/env",
        "CONDA_PREFIX": "/opt/conda",
        "PYTHONPATH": "/home/a/code:/home/a/env/share/code",
        "PYTHONHOME": "/home/a/env",
        "KEPT": "1",
    }
    assert environment.relocated(environ, SOURCE, STAGED) == {
        "PATH": "/tmp/mpiboot-1/env-12/bin:/usr/bin:/home/a/env2/bin",
        "LD_LIBRARY_PATH": "/tmp/mpiboot-1/env-12/lib:/site/lib",
        "PYTHONPATH": "/home/a/code:/tmp/mpiboot-1/env-12/share/code",
        "VIRTUAL_ENV": "/tmp/mpiboot-1/env-12",
        "PYTHONNOUSERSITE": "1",
        "KEPT": "1",
    }


def test_activation_sources_the_scripts_in_order(tmp_path):
    scripts = tmp_path / "etc/conda/activate.d"
    scripts.mkdir(parents=True)
    (scripts / "a.sh").write_text('echo noise; export GREETING="two\nlines"; [ -n "$UNSET" ] && true\n')
    (scripts / "b.sh").write_text('export GREETING="$GREETING of $CONDA_PREFIX"\n')
    environ = {"CONDA_PREFIX": str(tmp_path), "PATH": "/usr/bin:/bin"}
    found = environment.activation(tmp_path, environ, tmp_path)
    assert found["GREETING"] == f"two\nlines of {tmp_path}"


def test_activation_that_ends_the_shell_is_named(tmp_path):
    scripts = tmp_path / "etc/conda/activate.d"
    scripts.mkdir(parents=True)
    (scripts / "a.sh").write_text("echo no licence >&2; exit 3\n")
    with pytest.raises(StageError) as error:
        environment.activation(tmp_path, {"PATH": "/usr/bin:/bin"}, Path("/home/a/my env"))
    assert str(error.value) == (
        f"the scripts in {scripts} ended with status 3: no licence. "
        "Find the script that exits: conda activate '/home/a/my env'"
    )


def test_requested_variables():
    assert environment.requested_variables(["A=x=y", "B", "C="], {"B": "2"}) == {
        "A": "x=y",
        "B": "2",
        "C": "",
    }
    with pytest.raises(UsageError, match=r"--env-var B: B is not set\. Write --env-var NAME=VALUE$"):
        environment.requested_variables(["B"], {})
    with pytest.raises(UsageError, match="--env-var =x: the name is not set"):
        environment.requested_variables(["=x"], {})


def test_what_belongs_to_a_host_or_a_step_is_not_carried():
    environ = {"SLURM_PROCID": "0", "PMI_RANK": "0", "OMPI_X": "1", "HOSTNAME": "n1", "HOME": "/home/a"}
    assert environment.carried(environ, ("SLURM_",)) == {"HOME": "/home/a"}


def test_what_belongs_to_another_cluster_or_mpi_run_is_not_submitted():
    names = ("PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "HOME", "SBATCH_ACCOUNT", "MPIBOOT_JOB_KEY", "MPIBOOT_HOME")
    daskes = ("DASK_SCHEDULER_ADDRESS", "DASK_DISTRIBUTED__NANNY__PRELOAD", "DASK_DATAFRAME__SHUFFLE__METHOD")
    assert [name for name in (*names, *daskes) if not environment.of_another_job(name)] == [
        "HOME",
        "SBATCH_ACCOUNT",
        "MPIBOOT_HOME",
        "DASK_DATAFRAME__SHUFFLE__METHOD",
    ]


def test_what_a_login_would_have_set():
    assert environment.login_variables({"HOME": "/h", "USER": "u", "LOGNAME": "u", "PATH": "/bin"}) == {}
    assert set(environment.login_variables({"HOME": ""})) == {"HOME", "USER", "LOGNAME", "PATH"}


def rank_variables(environ, requested=None, **changes):
    settings = {
        "batch_prefixes": ("SLURM_",),
        "source": SOURCE,
        "prefix": STAGED,
        "job_directory": Path("/home/a/jobs/slurm-c-1"),
        "job_folder": Path("/tmp/mpiboot-1/.jobs/slurm-c-1"),
        "interface": "ib0",
        "idle_timeout_s": 600.0,
        "encrypted": True,
        "dashboard_tls": False,
        "dashboard_origins": None,
    }
    return environment.rank_variables(environ, requested or {}, **(settings | changes))


def test_the_whole_environment_of_a_rank():
    variables = rank_variables(
        {"PATH": "/home/a/env/bin:/usr/bin", "SLURM_PROCID": "0", "UCX_TLS": "all"}, {"A": "b"}
    )
    tls = {name: variables.pop(name) for name in list(variables) if "__TLS__" in name or "ENCRYPTION" in name}
    assert len(tls) == 8
    only_mpis = set(variables.pop("MPIBOOT_MPI_ONLY").split())
    assert only_mpis == {
        "OMPI_MCA_pml",
        "OMPI_MCA_btl",
        "OMPI_MCA_mpi_yield_when_idle",
        "UCX_NET_DEVICES",  # UCX_TLS is the user's
    }
    assert variables == {
        "PATH": "/tmp/mpiboot-1/env-12/bin:/usr/bin",
        "VIRTUAL_ENV": "/tmp/mpiboot-1/env-12",
        "PYTHONNOUSERSITE": "1",
        "TMPDIR": "/tmp/mpiboot-1/.jobs/slurm-c-1",
        "A": "b",
        "UCX_TLS": "all",
        "UCX_NET_DEVICES": "ib0",
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_btl": "^ofi,uct,openib,usnic",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "MPI4PY_RC_FINALIZE": "0",
        "MPIBOOT_JOB_KEY": "slurm-c-1",
        "MPIBOOT_JOB_DIRECTORY": "/home/a/jobs/slurm-c-1",
        "MPIBOOT_CONTROL_FOLDER": "/tmp/mpiboot-1/.jobs/slurm-c-1",
        "MPIBOOT_IDLE_TIMEOUT_S": "600",
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "10",
        "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "60s",
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "50s",
        "DASK_DISTRIBUTED__SCHEDULER__PRELOAD": "['mpiboot.preloads.secure', 'mpiboot.preloads.scheduler']",
        "DASK_DISTRIBUTED__NANNY__PRELOAD": "['mpiboot.preloads.secure', 'mpiboot.preloads.nanny']",
        "DASK_DISTRIBUTED__WORKER__PRELOAD": "['mpiboot.preloads.secure']",
    }


def test_a_user_s_settings_win_over_defaults_but_not_over_encryption():
    name = "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"
    requested = {"TMPDIR": "/scratch", name: "False", "DASK_DISTRIBUTED__WORKER__PRELOAD": "[]"}
    variables = rank_variables({"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5 min"}, requested)
    assert variables["TMPDIR"] == "/scratch"
    assert variables["DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL"] == "5 min"
    assert (variables[name], variables["DASK_DISTRIBUTED__WORKER__PRELOAD"]) == (
        "True",
        "['mpiboot.preloads.secure']",
    )


def test_a_job_without_encryption_that_never_idles_out():
    variables = rank_variables({}, interface=None, idle_timeout_s=None, encrypted=False)
    assert not [name for name in variables if "TLS" in name or "JOB_DIRECTORY" in name or "UCX" in name]
    assert variables["MPIBOOT_IDLE_TIMEOUT_S"] == ""
    assert variables["DASK_DISTRIBUTED__SCHEDULER__PRELOAD"] == "['mpiboot.preloads.scheduler']"
