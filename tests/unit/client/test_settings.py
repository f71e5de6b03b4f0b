import datetime
import os
import re
import subprocess
import sys
from pathlib import Path

import dask.config
import numpy
import pytest

from mpiboot import config as configuration
from mpiboot.client import settings
from mpiboot.client.submit import job_variables
from mpiboot.errors import UsageError
from mpiboot.option import SUBMIT
from mpiboot.protocol.variables import SETUP_VARIABLE


def test_site_settings_are_the_lowest_layer(dask_files, monkeypatch, tmp_path):
    dask_files.write(
        "mpiboot:\n  partition: multiple\n  idle-timeout: 1 h\n  setup: module load x\n  nodes: 3\n  mem: 64G\n"
    )
    monkeypatch.setenv("DASK_MPIBOOT__NODES", "4")
    dask_files.read()
    config = settings.load_config({"partition": "other", "env": str(tmp_path)})
    assert (config.partition, config.idle_timeout, config.nodes, config.mem) == ("other", 3600, 4, 64 << 30)
    assert config.setup == ("module load x",)
    assert job_variables(config) == {SETUP_VARIABLE: "module load x"}
    assert "module" not in " ".join(configuration.boot_arguments(config))


def test_what_a_program_sets_comes_before_the_environment_and_after_arguments(dask_files, monkeypatch):
    dask_files.write("mpiboot: {nodes: 2, partition: a, mem: 1G, interface: ib0}")
    for name, value in {"NODES": "3", "PARTITION": "b", "MEM": "2G"}.items():
        monkeypatch.setenv(f"DASK_MPIBOOT__{name}", value)
    dask_files.read()
    with dask.config.set({"mpiboot.partition": "c", "mpiboot.mem": "3G"}):
        config = settings.load_config({"env": "/e", "mem": "4G"})
    assert (config.nodes, config.partition, config.mem, config.interface) == (3, "c", 4 << 30, "ib0")


def test_the_last_file_counts_whatever_the_spelling_of_its_keys(dask_files):
    dask_files.write("mpiboot: {idle-timeout: 1 h, partition: a, account: x}", "a.yaml")
    dask_files.write("mpiboot: {idle_timeout: 2 h, partition: null, account: }", "b.yml")
    config = settings.load_config({"env": "/e"})
    assert (config.idle_timeout, config.partition, config.account) == (7200, None, None)


QUOTES = "Write it in quotes: "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time: 12:00:00", f'time: YAML reads 12:00:00 as 43200. {QUOTES}time: "12:00:00"'),
        ("time: 1:30:00", f'time: YAML reads 1:30:00 as 5400. {QUOTES}time: "1:30:00"'),
        ("<<: {time: 1:30:00}", f'time: YAML reads 1:30:00 as 5400. {QUOTES}time: "1:30:00"'),
        ("time: 12:30", f'time: YAML reads 12:30 as 750. {QUOTES}time: "12:30"'),
        ("time: 030", f'time: YAML reads 030 as 24. {QUOTES}time: "030"'),
        ("time: 2026-11-27", "time: '2026-11-27' is not a walltime. Write minutes, H:MM:SS or D-HH:MM:SS"),
        ("account: 0123", f'account: YAML reads 0123 as 83. {QUOTES}account: "0123"'),
        ("account: 0x1F", f'account: YAML reads 0x1F as 31. {QUOTES}account: "0x1F"'),
        ("account: 1_000", f'account: YAML reads 1_000 as 1000. {QUOTES}account: "1_000"'),
        ("job_name: 1.0e+3", f'job_name: YAML reads 1.0e+3 as 1000.0. {QUOTES}job_name: "1.0e+3"'),
        ("job-name: 2026-11-27", f'job-name: YAML reads 2026-11-27 as 2026-11-27. {QUOTES}job-name: "2026-11-27"'),
        ("job-name: .nan", f'job-name: YAML reads .nan as nan. {QUOTES}job-name: ".nan"'),
        ("partition: no", f'partition: YAML reads no as False. {QUOTES}partition: "no"'),
        ("partition: On", f'partition: YAML reads On as True. {QUOTES}partition: "On"'),
        ("mpi: no", "mpi: 'no' is unknown. Write one of auto, openmpi, mpich, intelmpi, srun"),
        ("env: ~", f'env: YAML reads ~ as no value. {QUOTES}env: "~"'),
        ("env: envs/x", "env: 'envs/x' is a relative path, which means another file in each working directory. "
         "Write an absolute path, or one that begins with ~/"),
        ("job_script: $NONE/x", "job_script: '$NONE/x': the variable NONE is not set. Write the path without it"),
        ("partition: [a, b]", "partition: ['a', 'b'] is not a text. Write one text"),
        ("partition: {a: b}", "partition: a mapping is not a text. Write one text"),
        ('partition: ""', "partition: the text is empty. Leave the option out for its default"),
        ("nodes: 2.0", "nodes: '2.0' is not a count. Write a whole number of at least 1"),
        ("nodes: 012", f'nodes: YAML reads 012 as 10. {QUOTES}nodes: "012"'),
        ("nodes: 0x10", "nodes: '0x10' is not a count. Write a whole number of at least 1"),
        ("nodes: yes", "nodes: 'yes' is not a count. Write a whole number of at least 1"),
        ("nodes: -1", "nodes: '-1' is not a count. Write a whole number of at least 1"),
        ("nodes: 99999999999999999999", "nodes: '99999999999999999999' is not a count. Write a whole number of"),
        ("nodes: 2000000", "nodes: '2000000' is too many. Write a whole number up to 1000000"),
        ("nodes: .inf", "nodes: '.inf' is not a count. Write a whole number of at least 1"),
        ("idle_timeout: .inf", "idle_timeout: '.inf' is not a time. Write 90, '90 s', '30 min', '2 h' or '7 d'"),
        ("idle_timeout: 1:30", "idle_timeout: '1:30' is not a time. Write 90, '90 s', '30 min', '2 h' or '7 d'"),
        ("mem: true", "mem: 'true' is not a size. Write 800M, 16G or 1.5T"),
        ("no_stage: 1", "no_stage: '1' is not a flag. Write true or false"),
        ("setup: 012", f'setup: YAML reads 012 as 10. {QUOTES}setup: "012"'),
        ("setup: {a: b}", "setup: a mapping is not a list. Write a list of texts"),
        ("batch_arg: [--qos=a, 012]", f'batch_arg: YAML reads 012 as 10. {QUOTES}"012"'),
        ("batch_arg: [null]", f'batch_arg: YAML reads null as None. {QUOTES}"null"'),
        ("env_var: [A: 1]", "env_var: a mapping is not a text. Write one text"),
        ("env_var: [1=2]", "env_var: '1' is not the name of a variable. Write NAME or NAME=VALUE"),
        ("partitoin: x", "unknown option 'partitoin' (did you mean partition?). Use one of: "),
        ("Partition: x", "unknown option 'Partition' (did you mean partition?). Use one of: "),
        ("1e: x", "unknown option '1e'. Use one of: "),
        ("insecure: true", "insecure cannot be set in a configuration file. Type --insecure each time"),
    ],
)  # fmt: skip
def test_a_wrong_value_in_a_file_is_named_with_the_remedy(dask_files, text, message):
    dask_files.write("mpiboot: {nodes: 1}", "a.yaml")
    file = dask_files.write(f"mpiboot:\n  {text}\n")
    with pytest.raises(UsageError) as error:
        settings.load_config({"env": "/e"})
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mpiboot: [nodes]", "what `mpiboot:` holds is not a mapping of keys to values. Write one option a line below"),
        ("mpiboot: no", "what `mpiboot:` holds is not a mapping of keys to values. Write one option a line below"),
        ("MPIboot: {nodes: 2}", "the key MPIboot is unknown. Write mpiboot"),
        ("mpi-boot: {nodes: 2}", "the key mpi-boot is unknown. Write mpiboot"),
        ("mpiboot: {nodes: 2, nodes: 3}", "nodes stands twice, and YAML reads the last one alone. Remove one"),
        ("mpiboot: {nodes: 2}\nmpiboot: {mem: 3}", "mpiboot stands twice, and YAML reads the last one alone. Remove"),
        ("mpiboot: {idle-timeout: 1, idle_timeout: 2}", "idle-timeout and idle_timeout are the same option. Remove one"),
    ],
)  # fmt: skip
def test_a_wrong_section_is_named(dask_files, text, message):
    file = dask_files.write(text)
    with pytest.raises(UsageError) as error:
        settings.load_config({"env": "/e"})
    assert str(error.value).startswith(f"{file}: {message}")


def test_values_that_yaml_leaves_alone(dask_files, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    dask_files.write(
        "mpiboot:\n  nodes: 3\n  mem: 1500.5\n  time: 30\n  idle_timeout: 90\n  no_stage: on\n  account: '0123'\n"
        "  ssh_host: 123\n  job_name: 1e3\n  partition: null\n  env: ~/x\n  env_var: [N=08, FLAG=no]\n"
        "  setup: |\n    a\n    b\n"
    )
    config = settings.load_config({})
    assert (config.nodes, config.mem, config.time, config.idle_timeout) == (3, 3001 << 19, "30", 90.0)
    assert (config.no_stage, config.account, config.job_name, config.partition) == (True, "0123", "1e3", None)
    assert config.ssh_host == "123"
    assert (config.env, config.env_var, config.setup) == ("/home/me/x", ("N=08", "FLAG=no"), ("a\nb\n",))


@pytest.mark.parametrize(
    "text", ["0123", "1e3", "True", "None", "[a]", "null", "{}", "'x'", "-x", " y ", "0x10", "$A"]
)
def test_the_exact_text_of_a_variable_survives(dask_files, monkeypatch, text):
    """Dask makes Python values of them."""
    dask_files.write("mpiboot: {account: file, job_name: file}")
    monkeypatch.setenv("DASK_MPIBOOT__ACCOUNT", text)
    monkeypatch.setenv("DASK_mpiboot__Job_Name", text)
    dask_files.read()
    config = settings.load_config({"env": "/e"})
    assert (config.account, config.job_name) == (text, text)


def test_an_empty_variable_is_none(dask_files, monkeypatch):
    dask_files.write("mpiboot: {account: file}")
    monkeypatch.setenv("DASK_MPIBOOT__ACCOUNT", "")
    monkeypatch.setenv("DASK_MPIBOOT__NODES", "")
    dask_files.read()
    config = settings.load_config({"env": "/e"})
    assert (config.account, config.nodes) == ("file", 1)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("DASK_MPIBOOT__NODES", "None", "DASK_MPIBOOT__NODES: 'None' is not a count. Write a whole number of"),
        ("DASK_MPIBOOT__NODES", "2.0", "DASK_MPIBOOT__NODES: '2.0' is not a count. Write a whole number of"),
        ("DASK_MPIBOOT__ENV", "x", "DASK_MPIBOOT__ENV: 'x' is a relative path, which means another file in"),
        ("MPIBOOT_STAGE_ROOT", "x", "MPIBOOT_STAGE_ROOT: 'x' is a relative path, which means another file in"),
        ("DASK_MPIBOOT__NODEZ", "2", "DASK_MPIBOOT__NODEZ: unknown option 'nodez' (did you mean nodes?). Use"),
        ("DASK_MPIBOOT_NODES", "2", "DASK_MPIBOOT_NODES has one underscore between MPIBOOT and NODES, so Dask "
         "does not find it. Write DASK_MPIBOOT__NODES"),
        ("DASK_MPIBOOT__INSECURE", "True", "DASK_MPIBOOT__INSECURE: insecure cannot be set in the environment. Type "),
        ("DASK_MPIBOOT__ENV_VAR", "A", "DASK_MPIBOOT__ENV_VAR: env_var cannot be set in the environment. Set it in a "),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_named(dask_files, monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    dask_files.read()
    with pytest.raises(UsageError) as error:
        settings.load_config({"env": "/e"})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": "two"}, "nodes: 'two' is not a count. Write a whole number of at least 1"),
        ({"nodes": True}, "nodes: True is not a count. Write a whole number of at least 1"),
        ({"nodes": 2.0}, "nodes: 2.0 is not a count. Write a whole number of at least 1"),
        ({"nodes": numpy.float64(2)}, "nodes: np.float64(2.0) is not a count. Write a whole number of at least 1"),
        ({"account": 83}, "account: 83 is not a text. Write it in quotes"),
        ({"partition": b"a"}, "partition: b'a' is not a text. Write it in quotes"),
        ({"job_name": datetime.date(2026, 11, 27)}, "job_name: datetime.date(2026, 11, 27) is not a text. Write it in"),
        ({"job_name": "a\0b"}, "job_name: the text holds a NUL character, which no argument can hold. Remove it"),
        ({"time": 30.0}, "time: 30.0 is not a text. Write it in quotes, such as '12:00:00'"),
        ({"time": True}, "time: True is not a text. Write it in quotes, such as '12:00:00'"),
        ({"time": 43200}, "time: 43200 is not a text. Write it in quotes, such as '12:00:00'"),
        ({"mem": float("nan")}, "mem: nan is not a size. Write 800M, 16G or 1.5T"),
        ({"mem": -1}, "mem: -1 is not a size. Write 800M, 16G or 1.5T"),
        ({"idle_timeout": float("inf")}, "idle_timeout: inf is not a time. Write 90, '90 s', '30 min', '2 h' or '7 d'"),
        ({"idle_timeout": True}, "idle_timeout: True is not a time. Write 90, '90 s', '30 min', '2 h' or '7 d'"),
        ({"no_stage": 1}, "no_stage: 1 is not a flag. Write true or false"),
        ({"env_var": {"A": "1"}}, "env_var: a mapping is not a list. Write a list of texts"),
        ({"setup": [3]}, "setup: 3 is not a text. Write it in quotes"),
        ({"mpi": ["srun"]}, "mpi: ['srun'] is unknown. Write one of auto, openmpi, mpich, intelmpi, srun"),
        ({"env": "~no-such-user/x"}, "env: '~no-such-user/x': there is no user 'no-such-user'. Write an absolute path"),
        ({"node": 2}, "unknown option 'node' (did you mean nodes?). Use one of: "),
        ({"home": "/x"}, "home cannot be set in a Python call. Set MPIBOOT_HOME"),
        ({"command": "python a.py"}, "command='python a.py' is not a list. Write a list of texts, such as "),
        ({"command": ["a", None]}, "command: None is not a text that can be an argument. Write a list of "),
        ({"command": ["a", "\0"]}, "command: '\\x00' is not a text that can be an argument. Write a list of "),
        ({"command": [""]}, "command: the name of the program is empty. Write a list of texts, such as "),
    ],
)  # fmt: skip
def test_a_wrong_argument_of_a_call_is_named(dask_files, options, message):
    with pytest.raises(UsageError) as error:
        settings.load_config({"env": "/e", **options})
    assert str(error.value).startswith(message)


def test_the_same_types_are_refused_from_dask_config_set(dask_files):
    for key, value, message in (
        ("time", 43200, "dask.config: time: 43200 is not a text. Write it in quotes, such as '12:00:00'"),
        ("account", 83, "dask.config: account: 83 is not a text. Write it in quotes"),
        ("job-name", None, None),
        ("nodes", True, "dask.config: nodes: True is not a count. Write a whole number of at least 1"),
        ("nodez", 2, "dask.config: unknown option 'nodez' (did you mean nodes?). Use one of: "),
        (
            "insecure",
            True,
            "dask.config: insecure cannot be set in a configuration file. Type --insecure",
        ),
    ):
        with dask.config.set({f"mpiboot.{key}": value}):
            if message is None:
                assert settings.load_config({"env": "/e"}).job_name == "mpiboot"
                continue
            with pytest.raises(UsageError) as error:
                settings.load_config({"env": "/e"})
            assert str(error.value).startswith(message)


def test_numbers_and_paths_of_libraries_are_taken(dask_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = settings.load_config(
        {
            "nodes": numpy.int64(3), "mem": numpy.int32(640), "idle_timeout": numpy.float32(1.5),
            "no_stage": numpy.bool_(True), "env": Path("e"), "job_name": numpy.str_("x"), "env_var": ("A=1",),
            "command": [Path("/p"), 3],
        }
    )  # fmt: skip
    assert (config.nodes, config.mem, config.idle_timeout) == (3, 640 << 20, 1.5)
    assert (config.no_stage, config.env, config.job_name) == (True, str(tmp_path / "e"), "x")
    assert (config.env_var, config.command) == (("A=1",), ("/p", "3"))


def test_an_empty_argument_is_no_default(dask_files):
    """As of an unset variable in a script: `--env "$PREFIX"`."""
    with pytest.raises(
        UsageError, match=r"^--env: the text is empty\. Leave the option out for its default$"
    ):
        settings.load_config({"env": ""}, SUBMIT)


@pytest.mark.parametrize("name", ["home", "archive"])
def test_boots_own_options_are_refused(name):
    with pytest.raises(UsageError, match=rf"{name} cannot be set in a Python call\. [SL]e"):
        settings.load_config({name: "/x"})


def test_more_workers_than_there_will_be_cannot_be_the_least():
    with pytest.raises(UsageError, match="--min-workers 9: the job has 8 workers at most"):
        settings.load_config({"nodes": 2, "workers_per_node": 4, "min_workers": 9})
    settings.load_config({"nodes": 2, "workers_per_node": 4, "min_workers": 8})


@pytest.mark.parametrize("command", [["submit", "--dry-run"], ["status", "1"], ["doctor"]])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "mpiboot:\n  nodes: 2\n interface: ib0\n",
            r"'{file}' is malformed.*line 3.*\. Correct that file\n$",
        ),
        (
            "mpiboot: {yes: 2}\n",
            "Dask cannot read its configuration files: .*Look there for a key that is no text",
        ),
    ],
)
def test_a_malformed_settings_file_is_told_in_a_line(tmp_path, command, text, message):
    (tmp_path / "mpiboot.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "mpiboot", *command],
        env={**os.environ, "DASK_CONFIG": str(tmp_path), "MPIBOOT_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert re.search(message.replace("{file}", f"{tmp_path}/mpiboot.yaml"), done.stderr)


def test_an_option_that_does_not_exist_is_refused_without_a_value_too():
    with pytest.raises(UsageError, match=r"unknown option 'nodez' \(did you mean nodes\?\)"):
        settings.load_config({"nodez": None})


def test_memory_that_is_too_little_for_any_worker_is_refused():
    with pytest.raises(UsageError) as error:
        settings.load_config({"mem": "200M", "workers_per_node": 4})
    assert str(error.value) == (
        "--mem 200 MiB is too little for 4 workers. Ask for 64 MiB and more for each, such as --mem 8G"
    )
    for options in (
        {"mem": "300M", "workers_per_node": 4},
        {"mem": "100M"},
        {"mem": 0, "workers_per_node": 4},
    ):
        settings.load_config(options)
