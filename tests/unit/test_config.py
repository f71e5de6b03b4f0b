import pytest

from mpiboot import config
from mpiboot.errors import UsageError


def test_later_layers_win_and_none_is_not_given():
    merged = config.merge({"nodes": 2, "interface": "ib0"}, {"nodes": "4"}, {"interface": None})
    assert (merged.nodes, merged.interface) == (4, "ib0")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("nodes", "0", "--nodes: '0' is not a count"),
        ("nodes", "-1", "--nodes: '-1' is not a count"),
        ("workers_per_node", "two", "--workers-per-node: 'two' is not a count"),
        ("mem", "lots", "--mem: 'lots' is not a size"),
        ("time", "1 hour", "--time: '1 hour' is not a walltime"),
        ("idle_timeout", "never", "--idle-timeout: 'never' is not a time"),
        ("mpi", "lam", "--mpi: 'lam' is none of auto, openmpi"),
        ("batch_system", "condor", "--batch-system: 'condor' is none of"),
    ],
)
def test_bad_values_are_named(name, value, message):
    with pytest.raises(UsageError, match=message):
        config.merge({name: value})


def test_unknown_option_lists_the_valid_ones():
    with pytest.raises(
        UsageError, match=r"unknown option 'node' \(did you mean nodes\?\); valid: batch_system, env"
    ):
        config.merge({"node": 2})


def test_boot_reads_what_submit_writes():
    asked = config.merge(
        {
            "env": "/home/a b/env'x",
            "interface": "ib0",
            "workers_per_node": 3,
            "mem": "10G",
            "idle_timeout": "1 h",
            "env_var": ["TOKEN=secret", "HOME"],
            "no_stage": True,
        },
        command=["python", "a.py", "--", "-x"],
    )
    arguments = config.boot_arguments(asked)
    assert arguments == [
        *("--env", "/home/a b/env'x", "--workers-per-node", "3", "--mem", "10485760K", "--interface", "ib0"),
        *("--no-stage", "--idle-timeout", "3600", "--env-var=TOKEN", "--env-var=HOME"),
        *("--", "python", "a.py", "--", "-x"),
    ]
    read = config.parse_boot_arguments(arguments, {})
    assert (read.env, read.mem, read.idle_timeout) == (asked.env, asked.mem, asked.idle_timeout)
    assert (read.no_stage, read.env_var, read.command) == (True, ("TOKEN", "HOME"), asked.command)


def test_boot_takes_the_command_line_before_the_environment():
    environ = {
        "DASK_MPIBOOT__INTERFACE": "eth1",
        "MPIBOOT_STAGE_ROOT": "/scratch",
        "DASK_MPIBOOT__MPI": "mpich",
    }
    read = config.parse_boot_arguments(["--interface", "ib0"], environ)
    assert (read.interface, read.stage_root, read.mpi) == ("ib0", "/scratch", "mpich")


def test_nothing_in_the_environment_turns_encryption_off():
    assert config.parse_boot_arguments([], {"DASK_MPIBOOT__INSECURE": "true"}).insecure is False


def test_unknown_boot_option_is_refused():
    with pytest.raises(UsageError, match="unrecognized arguments: --nodez"):
        config.parse_boot_arguments(["--nodez", "3"], {})
