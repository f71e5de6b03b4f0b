"""Names of environment variables stand in one list, so that a new one, or a misspelt one, is seen."""

import ast
import re
from pathlib import Path

import mpiboot

SOURCES = Path(mpiboot.__file__).parent
LIKE_A_VARIABLE = re.compile(r"_*[A-Z][A-Z0-9]*(_+[A-Za-z0-9]+)+_*")
ELSEWHERE = {
    "protocol/variables.py": "the list",
    "common/mpi.py": "prefixes of MPI's variables, which have a list of their own",
    "rank/stand_in.py": "imports nothing of mpiboot; PMI_FD",
    "rank/run_dask_mpi.py": "imports nothing of mpiboot; MPIBOOT_DASK_SETTINGS",
    "common/processes.py": "SC_PAGE_SIZE and SC_PHYS_PAGES of sysconf(3)",
    "protocol/listener.py": "SC_OPEN_MAX of sysconf(3)",
}


def strings_like_variables(source):
    return {
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and LIKE_A_VARIABLE.fullmatch(node.value)
    }


def test_no_name_of_a_variable_stands_outside_the_list():
    found = {}
    for path in SOURCES.rglob("*.py"):
        room = path.relative_to(SOURCES)
        if str(room) not in ELSEWHERE and room.parts[0] != "batch":  # batch systems' own
            found[str(room)] = strings_like_variables(path.read_text())
    assert {room: names for room, names in found.items() if names} == {}


def test_what_is_like_a_variable():
    source = (
        "'DASK_A__B', '__PYVENV_X__', 'OMPI_MCA_btl', f'{x}CA_FILE', 'SLURM_', 'HOME', 'set A_B', 'a_B', A_B"
    )
    assert strings_like_variables(source) == {"DASK_A__B", "__PYVENV_X__", "OMPI_MCA_btl", "CA_FILE"}
