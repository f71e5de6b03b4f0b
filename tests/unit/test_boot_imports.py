"""What each process of a job imports at its start, as one list per process, so that a new import is seen.

Boot and the agents start from a slow shared file system, the agents on all nodes at once; stand-ins and fork servers
start from the staged prefix, a stand-in for each rank. The lists are in boot_imports.ini: whoever adds an import on
purpose adds it there; the fewer, the better, above all for agents.
"""

import ast
import configparser
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import mpiboot.rank

OWN = ("mpiboot", "envpack")
STAND_IN = Path(mpiboot.rank.__file__).with_name("stand_in.py")
EXPECTED = configparser.ConfigParser()
EXPECTED.read(Path(__file__).with_name("boot_imports.ini"))
STARTS = {
    "boot": "import mpiboot.boot.sequence, envpack.archive.index\nmpiboot.boot.certificates.make_pems(60.0, (), ())",
    "agent": "import mpiboot.agent.agent",
    "staging child": "import mpiboot.agent.stage_child, envpack.stage.stager",
    "stand-in": f"exec({STAND_IN.read_text()!r}, {{'__name__': 'stand_in'}})",
    "fork server": "import mpiboot.rank.fork_server",
}
SHOW = """
import sys
sys.path[:0] = {path!r}
before = set(sys.modules)
{start}
new = {{name: getattr(module, "__file__", None) for name, module in sys.modules.items() if name not in before}}
import json
print(json.dumps(new))
"""


class Imports(NamedTuple):
    """Modules of ours, modules of the standard library that those import themselves, and packages of others."""

    own: set[str]
    standard_library: set[str]
    packages: set[str]


def expected_imports(process):
    section = EXPECTED[process]
    return Imports(*(set(section[kind].split()) for kind in Imports._fields))


def direct_imports(file):
    """Names of the modules that a module imports when it is imported, as they stand in its source."""
    for statement in ast.parse(Path(file).read_text()).body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield statement.module


def imports_of(start):
    # -S: the .pth files of whatever environment the tests run in are not the job's.
    command = [sys.executable, "-I", "-S", "-c", SHOW.format(path=sys.path, start=start)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    files = json.loads(done.stdout)
    root = {name: name.partition(".")[0] for name in files}
    own = {name for name in files if root[name] in OWN}
    sources = [files[name] for name in own] or [STAND_IN]
    return Imports(
        own,
        {
            name
            for file in sources
            for name in direct_imports(file)
            if name.partition(".")[0] in sys.stdlib_module_names
        },
        {root[name] for name in files} - sys.stdlib_module_names - set(OWN),
    )


@pytest.mark.parametrize("process", STARTS)
def test_imports(process):
    found, expected = imports_of(STARTS[process]), expected_imports(process)
    added = {kind: sorted(getattr(found, kind) - getattr(expected, kind)) for kind in Imports._fields}
    gone = {kind: sorted(getattr(expected, kind) - getattr(found, kind)) for kind in Imports._fields}
    assert (added, gone) == ({kind: [] for kind in added}, {kind: [] for kind in gone})


def test_an_import_of_a_module_is_seen(tmp_path):
    """Those within functions and for type checking are not: they cost a start nothing."""
    source = tmp_path / "a.py"
    source.write_text(
        "import os.path, re\nfrom json import loads\nif x:\n    import typing\ndef f():\n    import csv\n"
    )
    assert list(direct_imports(source)) == ["os.path", "re", "json"]
