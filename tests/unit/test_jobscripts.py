"""The job scripts: one per batch system, alike but for their directives."""

import subprocess
from pathlib import Path

import pytest

from mpiboot.batch import registry

SCRIPTS = Path(__file__).resolve().parents[2] / "jobscripts"
COMMON = "# From here to the end, all job scripts are the same"


def test_each_batch_system_has_a_script():
    assert {script.stem for script in SCRIPTS.glob("*.sh")} == set(registry.NAMES)


def test_all_scripts_find_the_environment_alike():
    ends = {script.read_text().partition(COMMON)[2] for script in SCRIPTS.glob("*.sh")}
    assert len(ends) == 1 and "exec " in ends.pop()


@pytest.mark.parametrize("name", registry.NAMES)
@pytest.mark.parametrize(
    ("arguments", "environ", "status", "said"),
    [
        (["--env", "{there}", "-x"], {}, 0, "-I -m mpiboot boot --batch-system {name} --env {there} -x"),
        (["--env=~/my env"], {"HOME": "{there}/.."}, 0, "boot --batch-system {name} --env=~/my env"),
        (["--env={there}"], {"CONDA_PREFIX": "/gone"}, 0, "-I -m mpiboot boot --batch-system {name} --env={there}"),
        (["--", "c", "--env", "/gone"], {"VIRTUAL_ENV": "{there}"}, 0, "boot --batch-system {name} -- c --env /gone"),
        ([], {"CONDA_PREFIX": "{there}"}, 0, "-I -m mpiboot boot --batch-system {name}"),
        ([], {"VIRTUAL_ENV": "{there}", "CONDA_PREFIX": "/c", "PATH": "{there}/bin:/c/bin:/bin"}, 0, "boot"),
        ([], {"VIRTUAL_ENV": "/v", "CONDA_PREFIX": "{there}", "PATH": "{there}/bin:/v/bin:/bin"}, 0, "boot"),
        ([], {"VIRTUAL_ENV": "/v", "CONDA_PREFIX": "{there}", "PATH": "/bin:{there}/bin"}, 0, "boot"),
        ([], {"VIRTUAL_ENV": "{there}", "CONDA_PREFIX": "/c", "PATH": "/bin:{there}/bin"}, 0, "boot"),
        ([], {"VIRTUAL_ENV": "{there}", "CONDA_PREFIX": "/c"}, 0, "boot"),
        ([], {"CONDA_PREFIX": "{there}", "MPIBOOT_SETUP": "set -eu"}, 0, "boot --batch-system {name}"),
        (["--env={there}"], {"MPIBOOT_SETUP": "set -eu"}, 0, "boot --batch-system {name} --env={there}"),
        ([], {}, 2, "no environment is active on"),
        ([], {"MPIBOOT_SETUP": "set -eu"}, 2, "no environment is active on"),
        (["--env"], {"MPIBOOT_SETUP": "set -eu"}, 2, "no environment is active on"),
        (["--env", "/no where"], {}, 2, "mpiboot: /no where/bin/python is not an executable file on"),
    ],
)  # fmt: skip
def test_script(tmp_path, name, arguments, environ, status, said):
    there = tmp_path / "my env"
    (there / "bin").mkdir(parents=True)
    python = there / "bin/python"
    python.write_text('#!/bin/bash\necho "$*"\n')
    python.chmod(0o755)

    def fill(text):
        return text.format(there=there, name=name)

    done = subprocess.run(
        ["bash", SCRIPTS / f"{name}.sh", *map(fill, arguments)],
        env={"PATH": "/usr/bin:/bin", **{key: fill(value) for key, value in environ.items()}},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert fill(said) in (done.stderr if status else done.stdout)
    if status:
        assert done.stderr.splitlines()[-1].startswith("Add --env PREFIX after the script's name")
