"""mpiboot and envpack run on a Python that was built against an old glibc, as conda-forge's and uv's are."""

import ast
import importlib
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import oldglibc
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
ABSENT = {
    f"{module}.{name}"
    for builtin, names in oldglibc.ABSENT.items()
    for module in (builtin, oldglibc.PUBLIC.get(builtin, builtin))
    for name in names
}
# Each has another way without it.
HANDLED = {"mpiboot/agent/program_start.py": {"posix.memfd_create"}}


def used_names(source: str) -> Iterator[str]:
    """Yield every `module.name` that a module's source uses."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            yield ".".join(ast.unparse(word).strip("'") for word in node.args[:2])


@pytest.mark.parametrize("room", ["mpiboot", "envpack"])
def test_no_module_uses_what_that_python_lacks(room):
    used = {
        str(path.relative_to(CHECKOUT)): names
        for path in (CHECKOUT / room).rglob("*.py")
        if (names := ABSENT.intersection(used_names(path.read_text())))
    }
    assert used == {path: names for path, names in HANDLED.items() if path.startswith(room)}


@pytest.mark.parametrize(
    "source", ["os.memfd_create('x')", "from os import O_TMPFILE", "getattr(os, 'RWF_SYNC')"]
)
def test_each_way_to_use_a_name_is_seen(source):
    assert ABSENT.intersection(used_names(source))


def test_the_names_are_taken_out_of_the_interpreter_itself(tmp_path):
    for module in ("posix", "fcntl", "_socket"):
        origin = importlib.import_module(module).__spec__.origin
        library = Path(sys._base_executable if origin in ("built-in", None) else origin).resolve()
        shared = Path(sysconfig.get_config_var("LIBDIR"), str(sysconfig.get_config_var("INSTSONAME")))
        # Debian's executable has the shared library's contents, and does not need it.
        if origin == "built-in" and shared.is_file():
            library = shared
        copy = shutil.copy(library, tmp_path)
        oldglibc.take_out(Path(copy))
        before, after = library.read_bytes(), Path(copy).read_bytes()
        start, end = oldglibc.constants(before)
        assert (before[:start], before[end:]) == (after[:start], after[end:])
        names = [
            name.encode()
            for name in oldglibc.ABSENT[module]
            if hasattr(importlib.import_module(module), name)
        ]
        assert names
        assert [name for name in names if re.search(rb"\b%s\0" % name, after[start:end])] == []
