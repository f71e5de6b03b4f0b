"""The agents' program: one file, and what an agent opens besides it."""

import asyncio
import importlib.util
import json
import marshal
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from envpack.common.elf import Library
from mpiboot.boot import agent_program
from mpiboot.boot.agent_program import extension_content, find, module_entry, write_agent_program

# What an agent and its children import, at their start and later.
IMPORTED = (
    "mpiboot.agent.agent",
    "mpiboot.agent.stage_child",
    "envpack.stage.staging",
    "mpiboot.protocol.events",
)
# Python opens these before it runs a program: every version; 3.10, which has few frozen modules; 3.13, for `-c`.
OPENED_BY_PYTHON = {"encodings", "encodings.aliases", "encodings.utf_8", "abc", "codecs", "io", "linecache"}
# Run as `-c`: installs the program's importer, imports modules, and reports what was opened or listed, which modules
# Python searched for, and how each module was loaded.
REPORT = """
import marshal, sys
seen = []
sys.addaudithook(lambda event, values: event in ("open", "os.listdir", "os.scandir") and seen.append(str(values[0])))
program = {"__name__": "program"}
with open(sys.argv[1], "rb") as file:
    exec(marshal.loads(file.read()[16:]), program)
program["install"]()
searched = []
class Recorder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        searched.append(name)
sys.meta_path.insert(-1, Recorder)
del seen[:]
for name in sys.argv[2:]:
    try:
        __import__(name)
    except ModuleNotFoundError:
        pass
opened = seen[:]
import json
loaders = {}
for name, module in list(sys.modules.items()):
    loader = getattr(getattr(module, "__spec__", None), "loader", None)
    loaders[name] = getattr(loader, "__name__", type(loader).__name__)
print(json.dumps({"opened": opened, "searched": searched, "loaders": loaders}))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("job") / "agent.pyc"
    write_agent_program(path)
    return path


def run_isolated(*arguments, **options):
    command = [sys.executable, "-I", "-S", "-B", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", **options)


def report(program, *names):
    done = run_isolated("-c", REPORT, program, *names)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def test_an_agent_opens_nothing_but_its_program(program):
    """Add modules that this test names to STANDARD_LIBRARY."""
    found = report(program, *IMPORTED)
    from_files = {name for name, loader in found["loaders"].items() if loader == "SourceFileLoader"}
    assert (found["searched"], from_files - OPENED_BY_PYTHON, found["opened"]) == ([], set(), [])
    assert found["loaders"]["mpiboot.agent.agent"] == found["loaders"]["ssl"] == "ProgramImporter"


def test_a_module_that_the_program_lacks_is_imported_from_where_it_is(program):
    found = report(program, "sched")
    assert (found["searched"], found["loaders"]["sched"]) == (["sched"], "SourceFileLoader")


def test_a_module_that_python_lacks_is_not_searched_for(program):
    found = report(program, "msvcrt")
    assert "msvcrt" not in found["loaders"]
    assert (found["searched"], found["opened"]) == ([], [])


def test_the_program_runs_the_agent(program, tmp_path):
    tmp_path.chmod(0o700)
    done = run_isolated(program, tmp_path)
    assert done.returncode == 1
    assert "the agent on" in done.stderr and "channel.json" in done.stderr


def test_the_program_runs_the_child_that_stages(program):
    done = run_isolated(program, "--stage", input="{}")
    assert "stage_node() missing" in json.loads(done.stdout)["error"]


def test_the_file_is_private_and_nothing_is_left_beside_it(program):
    assert stat.S_IMODE(program.stat().st_mode) == 0o600
    assert list(program.parent.iterdir()) == [program]


def test_modules_know_their_files(program):
    """The agent's tracebacks show source lines, and packages find what is not in the program."""
    show = f"{REPORT}\nimport asyncio\nprint(asyncio.__file__, asyncio.__path__)"
    done = run_isolated("-c", show, program)
    assert done.stdout.splitlines()[-1] == f"{asyncio.__file__} {asyncio.__path__}"


def cached(source):
    path = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
    path.parent.mkdir(exist_ok=True)
    return path


def compiled(source, text, magic=importlib.util.MAGIC_NUMBER):
    """Return a `.pyc` that is valid for `source`, with the code of `text`."""
    status = source.stat()
    header = magic + struct.pack("<III", 0, int(status.st_mtime), status.st_size)
    return header + marshal.dumps(compile(text, str(source), "exec"))


DAMAGES = {
    "none": (lambda source: compiled(source, "value = 'pyc'"), "pyc"),
    "missing": (None, "source"),
    "empty": (lambda source: b"", "source"),
    "cut short": (lambda source: compiled(source, "value = 'pyc'")[:-5], "source"),
    "another version's": (lambda source: compiled(source, "value = 'pyc'", b"\x00\x00\r\n"), "source"),
    "of an older source": (
        lambda source: compiled(source, "value = 'pyc'")[:8] + b"\1" * 8 + compiled(source, "0")[16:],
        "source",
    ),
    "rubbish": (lambda source: compiled(source, "value = 'pyc'")[:16] + b"rubbish", "source"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_code_is_that_of_the_source(damage, tmp_path, monkeypatch):
    make, expected = DAMAGES[damage]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = tmp_path / f"module_{list(DAMAGES).index(damage)}.py"
    source.write_text("value = 'source'")
    if make:
        cached(source).write_bytes(make(source))
    origin, kind, code = module_entry(source.stem)
    namespace = {}
    exec(marshal.loads(code), namespace)
    assert (origin, kind, namespace["value"]) == (str(source), "module", expected)


EXTENSION = Path(find("_socket").origin) if find("_socket").has_location else None


@pytest.mark.skipif(EXTENSION is None, reason="this Python has its extension modules built in")
def test_an_extension_module_is_loaded_from_memory(program):
    show = f"{REPORT}\nprint(sys.modules['_socket'].__file__)\nprint(open('/proc/self/maps').read())"
    done = run_isolated("-c", show, program, "socket", "select")
    assert done.returncode == 0, done.stderr
    _, file, *maps = done.stdout.splitlines()
    assert file == str(EXTENSION)
    assert any("memfd:_socket" in line for line in maps) and not any("lib-dynload" in line for line in maps)


@pytest.mark.skipif(EXTENSION is None, reason="this Python has its extension modules built in")
def test_an_extension_module_is_loaded_from_its_file_where_memory_files_are_forbidden(program):
    forbid = "import posix\nposix.memfd_create = lambda name: posix.open('/nowhere', 0)\n"
    done = run_isolated("-c", f"{forbid}{REPORT}\nprint(open('/proc/self/maps').read())", program, "socket")
    assert done.returncode == 0, done.stderr
    assert str(EXTENSION) in done.stdout and "memfd" not in done.stdout


@pytest.mark.skipif(EXTENSION is None, reason="this Python has its extension modules built in")
def test_the_loaded_part_of_an_extension_module_is_in_the_program():
    """What debuggers read is not."""
    content = extension_content(EXTENSION)
    assert 0 < len(content) <= EXTENSION.stat().st_size and EXTENSION.read_bytes().startswith(content)


@pytest.mark.parametrize(
    ("needed", "run_paths", "size", "expected"),
    [
        ([b"libc.so.6", b"libssl.so.3"], [b"$ORIGIN/../.."], 2, b""),
        ([b"libc.so.6", b"ld-linux-x86-64.so.2"], [b"$ORIGIN/../.."], 2, b"12"),
        ([b"libc.so.6", b"libssl.so.3"], [b"/opt/lib"], 2, b"12"),
        ([b"libc.so.6", b"libssl.so.3"], [], 4, b"1234"),
        ([b"libc.so.6"], [], agent_program.EXTENSION_BYTES_MAX + 1, b""),
        (None, [], 2, b""),
        ([b"libc.so.6"], [], 0, b""),
    ],
)
def test_a_module_that_finds_libraries_by_its_place_is_loaded_from_there(
    needed, run_paths, size, expected, tmp_path, monkeypatch
):
    """So is a large one, and what is no library."""
    library = None if needed is None else Library(needed, [(0, path) for path in run_paths], size)
    monkeypatch.setattr(agent_program, "read_library", lambda _: library)
    monkeypatch.setattr(agent_program, "loaded_bytes", lambda _: size)
    file = tmp_path / "_ssl.so"
    file.write_bytes(b"1234")
    assert extension_content(file) == expected


def test_kinds_of_modules():
    assert module_entry("sys") is None
    assert module_entry("msvcrt") == ("", "absent", b"")
    assert module_entry("bz2") == ("", "absent", b"")
    assert module_entry("asyncio")[1] == "package"
    assert module_entry("zstandard.backend_c") == (find("zstandard.backend_c").origin, "extension", b"")


def test_finding_a_module_does_not_import_it():
    assert find("wsgiref.util").name == "wsgiref.util"
    assert not {"wsgiref", "wsgiref.util"} & set(sys.modules)


def test_all_own_modules_of_the_node_are_in_the_program():
    names = agent_program.module_names()
    assert {"mpiboot.protocol.channel", "mpiboot.agent.agent", "envpack.stage.staging"} <= set(names)
    assert len(names) == len(set(names))
