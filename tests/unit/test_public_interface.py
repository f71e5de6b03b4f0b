"""What `import mpiboot` gives: names, docstrings, signatures, types and completion."""

import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import jedi
import pytest

import mpiboot
from mpiboot import config, errors
from mpiboot.client.options import JobOptions
from mpiboot.kinds import COUNT, DURATION, FLAG, PATH, PORT, SIZE
from mpiboot.option import PYTHON

CHECKOUT = Path(__file__).resolve().parents[2]
ERRORS = [name for name, value in vars(errors).items() if getattr(value, "__module__", "") == errors.__name__]
OPTIONS = {option.name: option for option in config.options_in(PYTHON)}
PROGRAM = """
import mpiboot

job = mpiboot.submit(nodes=2, interface="ib0", idle_timeout="1 h", env_var=["HOME"], command=["python", "a.py"])
job_id: str = job.job_id
try:
    client = mpiboot.connect(job, timeout=60)
except mpiboot.DeadlineError as error:
    print(error.exit_status)
cluster = mpiboot.MPICluster(nodes=2, quiet=True)
"""


def test_the_package_shows_what_there_is_to_use_and_nothing_else():
    assert dir(mpiboot) == sorted([*ERRORS, "Job", "MPICluster", "connect", "submit", "__version__"])
    assert set(mpiboot.__all__) == set(dir(mpiboot)) - {"__version__"}
    assert [name for name in mpiboot.__all__ if not inspect.getdoc(getattr(mpiboot, name))] == []


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_exported_and_in_the_tree_and_has_a_docstring_of_its_own(name):
    error = getattr(errors, name)
    assert getattr(mpiboot, name) is error
    assert f"{name} " in errors.__doc__.replace("\n", " ")
    assert error.__dict__["__doc__"]


def test_importing_the_package_imports_no_dependency():
    code = (
        "import sys, mpiboot; print(*{'dask', 'distributed', 'click', 'mpiboot.client'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "\n"


def test_the_types_are_those_of_the_options():
    types = {
        COUNT: int,
        PORT: int,
        FLAG: bool,
        SIZE: str | int,
        DURATION: str | float,
        PATH: str | PathLike[str],
    }
    expected = {
        name: Sequence[str]
        if option.repeatable
        else types.get(option.kind, str) | (None if option.default is None else types.get(option.kind, str))
        for name, option in OPTIONS.items()
    }
    assert typing.get_type_hints(JobOptions) == {**expected, "command": Sequence[str]}


@pytest.mark.parametrize("target", ["submit", "MPICluster"])
def test_every_option_is_in_the_signature_and_in_the_help(target):
    parameters = inspect.signature(getattr(mpiboot, target)).parameters
    documentation = inspect.getdoc(getattr(mpiboot, target))
    for name, option in OPTIONS.items():
        assert parameters[name].default == option.default
        assert f"\n{name} : " in documentation
    assert "\nidle_timeout : str or float, default '30 min'\n    End the job after " in documentation
    assert (
        "\nworkers_per_node : int, optional\n    Workers on each node. Default: one per 4 CPUs, or per "
        in documentation
    )
    assert "\n\nRaises\n------\n" in documentation and "**options" not in documentation


def test_the_help_of_connect_has_every_parameter():
    documentation = inspect.getdoc(mpiboot.connect)
    for parameter in inspect.signature(mpiboot.connect).parameters:
        assert f"\n{parameter} : " in documentation


def test_a_job_has_the_parameters_of_connect():
    def parameters(function, *without):
        return [
            (each.name, each.default)
            for each in inspect.signature(function).parameters.values()
            if each.name not in without
        ]

    expected = parameters(mpiboot.connect, "job", "scheduler_file")
    assert parameters(mpiboot.Job.client, "self") == expected


@pytest.mark.parametrize("target", ["Job", "MPICluster"])
def test_every_public_method_has_a_docstring(target):
    members = vars(getattr(mpiboot, target)).items()
    assert [name for name, value in members if not name.startswith("_") and not inspect.getdoc(value)] == []


@pytest.mark.parametrize("target", ["submit", "MPICluster"])
def test_a_notebook_completes_options(target):
    completions = jedi.Interpreter(f"mpiboot.{target}(no", [{"mpiboot": mpiboot}]).complete()
    assert {"nodes=", "no_stage="} <= {completion.name_with_symbols for completion in completions}


def test_a_type_checker_knows_the_options(tmp_path):
    pytest.importorskip("mypy", reason="pip install --group lint")
    (tmp_path / "right.py").write_text(PROGRAM)
    (tmp_path / "unknown.py").write_text(PROGRAM.replace("nodes=2", "nodez=2"))
    (tmp_path / "wrong.py").write_text(PROGRAM.replace("nodes=2", "nodes='two'"))
    mypy = [sys.executable, "-m", "mypy", "--config-file", str(CHECKOUT / "setup.cfg"), "."]
    shown = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True).stdout
    errors = re.findall(r"^(\w+).py:(\d+): error: .*(nodez|nodes)", shown, re.MULTILINE)
    assert sorted(errors) == [
        ("unknown", "10", "nodes"),
        ("unknown", "4", "nodes"),
        ("wrong", "10", "nodes"),
        ("wrong", "4", "nodes"),
    ], shown
    assert shown.endswith("Found 4 errors in 2 files (checked 3 source files)\n")
