import pytest

from envpack.errors import MalformedValueError
from mpiboot import config
from mpiboot.errors import UsageError
from mpiboot.kinds import (
    PORT,
    PORT_RANGE,
)
from mpiboot.option import FILE, PYTHON


def test_later_layers_win_and_none_is_not_given():
    merged = config.merge({"nodes": 2, "interface": "ib0"}, {"nodes": "4"}, {"interface": None})
    assert (merged.nodes, merged.interface) == (4, "ib0")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("nodes", "0", r"--nodes: '0' is not a count\. Write a whole number of at least 1"),
        ("nodes", [2], r"--nodes: \[2\] is not a count\. Write a whole number"),
        ("setup", 2, r"--setup: 2 is not a list\. Write a list of texts"),
        ("nodes", "-1", "--nodes: '-1' is not a count"),
        ("workers_per_node", "two", "--workers-per-node: 'two' is not a count"),
        ("mem", "lots", "--mem: 'lots' is not a size"),
        ("time", "1 hour", "--time: '1 hour' is not a walltime"),
        ("idle_timeout", "never", "--idle-timeout: 'never' is not a time"),
        *(
            (
                "env_var",
                f"{name}=1",
                rf"--env-var: mpiboot or the batch system sets {name} in each job\. Leave it out",
            )
            for name in (
                "PATH",
                "HOME",
                "CONDA_PREFIX",
                "VIRTUAL_ENV",
                "MPIBOOT_JOB_KEY",
                "SLURM_JOB_ID",
                "SLURM_CONF",
            )
        ),
        ("env_var", "PATH", r"--env-var: mpiboot or the batch system sets PATH in each job"),
        (
            "env_var",
            "MPIBOOT_HOME=/x",
            r"--env-var: MPIBOOT_HOME is mpiboot's own.* Set it in your shell: export MPIBOOT_H",
        ),
        ("env_var", "DASK_MPIBOOT__NODES=1", "--env-var: DASK_MPIBOOT__NODES is mpiboot's own"),
        ("env_var", "1=2", r"--env-var: '1' is not the name of a variable\. Write NAME or NAME=VALUE"),
        ("env_var", "A B=2", "--env-var: 'A B' is not the name of a variable"),
        ("env_var", "=2", "--env-var: '' is not the name of a variable"),
        ("env_var", "A=\0", "--env-var: the text holds a NUL character"),
        ("mpi", "lam", r"--mpi: 'lam' is unknown\. Write one of auto, openmpi"),
        *(
            (
                "dashboard_origins",
                origin,
                r"--dashboard-origins: .* is not the origin of a web page\. Write what",
            )
            for origin in ("*", "hub.example.org", "https://a/b", "https://*.a", "http://a:x", "ftp://a", [3])
        ),
        ("batch_system", "condor", r"--batch-system: 'condor' is unknown\. Write one of auto, slurm"),
    ],
)
def test_bad_values_are_named(name, value, message):
    with pytest.raises(UsageError, match=message):
        config.merge({name: value})


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (PORT, 8786, 8786),
        (PORT, "8786", 8786),
        (PORT, "80", "'80' is not a port that you may open. Write a number from 1024 to 65535"),
        (PORT, 65536, "65536 is not a port that you may open. Write a number from 1024 to 65535"),
        (PORT, True, "True is not a port that you may open. Write a number from 1024 to 65535"),
        (PORT, "any", "'any' is not a port that you may open. Write a number from 1024 to 65535"),
        (PORT_RANGE, "40000:40100", "40000:40100"),
        (PORT_RANGE, "40000:40000", "40000:40000"),
        (PORT_RANGE, "40000", "'40000' is not a range of ports. Write LOW:HIGH, such as 40000:40100"),
        (PORT_RANGE, "40001:40000", "'40001:40000' begins after its end. Write LOW:HIGH, such as 40000:40100"),
        (PORT_RANGE, "1:40000", "'1' is not a port that you may open. Write a number from 1024 to 65535"),
        (PORT_RANGE, "40000-40100", "'40000-40100' is not a range of ports. Write LOW:HIGH, such as 40000:40100"),
    ],
)  # fmt: skip
def test_ports(kind, value, expected):
    try:
        assert kind.parse(value) == expected
    except MalformedValueError as error:
        assert str(error) == expected


def test_origins_are_written_as_browsers_do():
    typed = ["https://Hub.Example.org/", "http://localhost:8888", "https://a:443, http://a:80"]
    expected = "https://hub.example.org http://localhost:8888 https://a http://a"
    assert config.merge({"dashboard_origins": " ".join(typed)}).dashboard_origins == expected
    assert config.merge({"dashboard_origins": expected.split()}).dashboard_origins == expected


def test_unknown_option_lists_the_valid_ones():
    with pytest.raises(
        UsageError, match=r"unknown option 'node' \(did you mean nodes\?\)\. Use one of: batch_system, env"
    ):
        config.check_names({"node": 2}, PYTHON)


@pytest.mark.parametrize(
    ("name", "place", "remedy"),
    [
        ("home", PYTHON, r"home cannot be set in a Python call\. Set MPIBOOT_HOME"),
        ("archive", PYTHON, r"archive cannot be set in a Python call\. Leave it out: "),
        (
            "insecure",
            FILE,
            r"insecure cannot be set in a configuration file\. Type --insecure each time",
        ),
    ],
)
def test_an_option_in_the_wrong_place_is_refused(name, place, remedy):
    with pytest.raises(UsageError, match=remedy):
        config.check_names([name], place)


def test_the_arguments_that_boot_gets():
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
    assert config.boot_arguments(asked) == [
        *(
            "--env=/home/a b/env'x",
            "--workers-per-node=3",
            "--mem=10485760K",
            "--interface=ib0",
            "--no-stage",
        ),
        *("--idle-timeout=3600", "--env-var=TOKEN", "--env-var=HOME", "--", "python", "a.py", "--", "-x"),
    ]


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
