import json
import os
from pathlib import Path

import pytest

from mpiboot.common.patterns import matches
from mpiboot.errors import UsageError
from mpiboot.protocol import rank_environment as environment
from mpiboot.protocol.environment_table import EnvironmentTable

SOURCE, STAGED = Path("/home/a/env"), Path("/tmp/mpiboot-1/env-12")


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


def test_what_belongs_to_another_cluster_or_mpi_run_is_not_submitted():
    names = ("PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "HOME", "SBATCH_ACCOUNT", "MPIBOOT_JOB_KEY", "MPIBOOT_HOME")
    daskes = ("DASK_SCHEDULER_ADDRESS", "DASK_DISTRIBUTED__NANNY__PRELOAD", "DASK_DATAFRAME__SHUFFLE__METHOD")
    assert [name for name in (*names, *daskes) if not environment.of_another_job(name)] == [
        "HOME",
        "SBATCH_ACCOUNT",
        "MPIBOOT_HOME",
        "DASK_DISTRIBUTED__NANNY__PRELOAD",
        "DASK_DATAFRAME__SHUFFLE__METHOD",
    ]


def test_what_a_login_would_have_set():
    assert environment.login_variables({"HOME": "/h", "USER": "u", "LOGNAME": "u", "PATH": "/bin"}) == {}
    assert set(environment.login_variables({"HOME": ""})) == {"HOME", "USER", "LOGNAME", "PATH"}


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {"HOME": "/", "USER": str(os.getuid()), "LOGNAME": str(os.getuid()), "PATH": os.defpath}),
        ({"HOME": "/h", "USER": "u", "PATH": "/bin"}, {"LOGNAME": "u"}),
    ],
)
def test_a_user_whom_the_host_does_not_know(monkeypatch, given, added):
    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert environment.login_variables(given) == added


def rank_variables(environ, requested=None, **changes):
    settings = {
        "table": EnvironmentTable(("BATCH_",), ("BATCH_CONF",)),
        "mpi_only": ["BATCH_STEP*"],
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
        {"PATH": "/home/a/env/bin:/usr/bin", "BATCH_JOB": "1", "UCX_TLS": "all"}, {"A": "b"}
    )
    tls = {name: variables.pop(name) for name in list(variables) if "__TLS__" in name or "ENCRYPTION" in name}
    assert len(tls) == 8
    only_mpis = set(variables.pop("MPIBOOT_MPI_ONLY").split())
    assert only_mpis == {
        "OMPI_MCA_pml",
        "OMPI_MCA_btl",
        "OMPI_MCA_mpi_yield_when_idle",
        "UCX_NET_DEVICES",  # UCX_TLS is the user's
        "MPIBOOT_DASK_SETTINGS",
        "BATCH_STEP*",
    }
    assert json.loads(variables.pop("MPIBOOT_DASK_SETTINGS")) == {
        "preload": {
            "scheduler": ["mpiboot.preloads.secure", "mpiboot.preloads.scheduler"],
            "nanny": ["mpiboot.preloads.secure", "mpiboot.preloads.nanny"],
            "worker": ["mpiboot.preloads.secure"],
        },
        "defaults": {
            "distributed.scheduler.allowed-failures": 10,
            "distributed.scheduler.worker-ttl": "60s",
            "distributed.comm.timeouts.tcp": "50s",
        },
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
    }


def test_a_user_s_settings_win_over_defaults_but_not_over_encryption():
    name = "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"
    requested = {"TMPDIR": "/scratch", name: "False", "DASK_DISTRIBUTED__WORKER__PRELOAD": "mine"}
    variables = rank_variables({"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5 min"}, requested)
    assert variables["TMPDIR"] == "/scratch"
    assert variables["DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL"] == "5 min"
    assert (variables[name], variables["DASK_DISTRIBUTED__WORKER__PRELOAD"]) == ("True", "mine")


def test_other_spellings_of_a_setting_do_not_weaken_encryption():
    """Dask reads them all, and the last one counts."""
    spellings = {
        "DASK_distributed__comm__require_encryption": "False",
        "DASK_DISTRIBUTED__COMM__REQUIRE-ENCRYPTION": "False",
        "DASK_Distributed__Comm__TLS__CA-File": "/theirs",
        "DASK_DISTRIBUTED__comm__COMPRESSION": "lz4",
    }
    for variables in (rank_variables(spellings), rank_variables({}, spellings)):
        assert variables["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] == "True"
        assert spellings.keys() & variables.keys() == {"DASK_DISTRIBUTED__comm__COMPRESSION"}


def test_a_job_without_encryption_that_never_idles_out():
    variables = rank_variables({}, interface=None, idle_timeout_s=None, encrypted=False)
    assert not [name for name in variables if "TLS" in name or "JOB_DIRECTORY" in name or "UCX" in name]
    assert variables["MPIBOOT_IDLE_TIMEOUT_S"] == ""
    assert json.loads(variables["MPIBOOT_DASK_SETTINGS"])["preload"] == {
        "scheduler": ["mpiboot.preloads.scheduler"],
        "nanny": ["mpiboot.preloads.nanny"],
        "worker": [],
    }


# A variable of each row of the table, and what becomes of it.
FATES = {
    "MPIBOOT_STAGE_ROOT": ("/scratch", "/scratch"),
    "MPIBOOT_SCHEDULER_FILE": ("/home/a/of-another-job", None),
    "MPIBOOT_JOB_KEY": ("slurm-c-99", "slurm-c-1"),
    "TMPDIR": ("/tmp/of-a-prolog", "/tmp/mpiboot-1/.jobs/slurm-c-1"),
    "VIRTUAL_ENV": ("/home/a/env", "/tmp/mpiboot-1/env-12"),
    "CONDA_PREFIX": ("/opt/conda", None),
    "CONDA_PREFIX_1": ("/opt/conda/envs/x", None),
    "CONDA_PROMPT_MODIFIER": ("(base) ", None),
    "CONDA_EXE": ("/opt/conda/bin/conda", "/opt/conda/bin/conda"),
    "CONDA_SHLVL": ("2", None),
    "DASK_DISTRIBUTED__COMM__TLS__CIPHERS": ("X", None),
    "DASK_SCHEDULER_ADDRESS": ("tls://other:1", None),
    "DASK_CONFIG": ("/home/a/env/etc/dask", "/tmp/mpiboot-1/env-12/etc/dask"),
    "DASK_DISTRIBUTED__SCHEDULER__PRELOAD": ("mine.py", "mine.py"),
    "MPI4PY_RC_FINALIZE": ("1", "0"),
    "MPI4PY_RC_INITIALIZE": ("0", None),
    "SSLKEYLOGFILE": ("/home/a/keys.log", None),
    "UCX_TLS": ("all", "all"),
    "CUDA_VISIBLE_DEVICES": ("0", None),
    "CUDA_MPS_PIPE_DIRECTORY": ("/tmp/mps", None),
    "TEMP": ("/tmp/of-a-prolog", None),
    "BATCH_NODENAME": ("n1", None),
    "BATCH_CONF": ("/etc/batch.conf", "/etc/batch.conf"),
    "PMIX_MCA_psec": ("native", None),
    "OMPI_COMM_WORLD_RANK": ("0", None),
    "HOSTNAME": ("n1", None),
    "SSH_AUTH_SOCK": ("/tmp/s", None),
    "XDG_RUNTIME_DIR": ("/run/user/1", None),
    "XDG_CACHE_HOME": ("/scratch/cache", "/scratch/cache"),
    "XDG_DATA_DIRS": ("/home/a/env/share:/usr/share", "/tmp/mpiboot-1/env-12/share:/usr/share"),
    "NOTIFY_SOCKET": ("/run/n", None),
    "PYTHONHOME": ("/home/a/env", None),
    "PYTHONPATH": ("/home/a/code:/home/a/env/code", "/home/a/code:/tmp/mpiboot-1/env-12/code"),
    "CFLAGS": ("-O2 -I/home/a/env/include", "-O2 -I/tmp/mpiboot-1/env-12/include"),
    "PATH": (
        "/home/a/env/bin::/usr/bin:/home/a/env2/bin",
        "/tmp/mpiboot-1/env-12/bin:/usr/bin:/home/a/env2/bin",
    ),
    "LANG": ("C.UTF-8", "C.UTF-8"),
}


def test_what_becomes_of_the_variables_of_each_row():
    environ = {name: value for name, (value, _) in FATES.items()}
    variables = rank_variables(environ)
    assert {name: variables.get(name) for name in FATES} == {
        name: found for name, (_, found) in FATES.items()
    }
    table = EnvironmentTable(("BATCH_",), ("BATCH_CONF",))
    rows = [rule for rule in table.rules if not any(matches(name, rule.patterns) for name in FATES)]
    assert rows == []


def test_env_var_has_precedence_over_every_row():
    requested = {
        "CUDA_VISIBLE_DEVICES": "1",
        "TMPDIR": "/scratch",
        "HOSTNAME": "x",
        "DATA": "/home/a/env/share",
    }
    variables = rank_variables({}, requested)
    assert {name: variables[name] for name in requested} == {
        **requested,
        "DATA": "/tmp/mpiboot-1/env-12/share",
    }


def test_the_command_gets_a_tasks_environment_on_the_first_node():
    variables = {
        "A": "1",
        "MPIBOOT_MPI_ONLY": "MPI_ONE BATCH_STEP*",
        "MPI_ONE": "x",
        "CUDA_VISIBLE_DEVICES": "3",
    }
    own = {"CUDA_VISIBLE_DEVICES": "0", "BATCH_JOB": "7", "BATCH_STEP_ID": "1"}
    assert environment.task_environment(variables, own) == {
        "A": "1",
        "CUDA_VISIBLE_DEVICES": "3",
        "BATCH_JOB": "7",
        "BATCH_STEP_ID": "1",
    }
