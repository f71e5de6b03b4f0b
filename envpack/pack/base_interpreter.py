"""What a venv takes from its base interpreter, so that both can be packed together.

Only `envpack.pack` imports this module.
"""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.common import prefix as prefixes
from envpack.common.elf import read_library

if TYPE_CHECKING:
    from collections.abc import Callable

    from envpack.pack.interpreter import Interpreter

# The folder of the packed base interpreter in the archive and in a staged prefix.
BASE_FOLDER = os.fsencode(prefixes.BASE_FOLDER)
# Of these, only what Python needs is packed: the nodes have their own.
SYSTEM_PREFIXES = ("/", "/usr", "/usr/local")
# What Python opens at run time outside of bin and lib: certificates, time zones, terminals.
_SHARED = ("ssl", "share/zoneinfo", "share/terminfo")
_IN_BIN = ("python*", "pypy*", "libpypy*")
# Static libraries, and the bytecode of `python -O`, which a relocated source would make stale.
_UNUSED = (b".a", b".opt-1.pyc", b".opt-2.pyc")
_TESTS = frozenset((b"test", b"tests", b"idle_test"))
# The values in a pyvenv.cfg that name the base interpreter (PEP 405; virtualenv adds the last ones).
BASE_KEYS = ("home", "executable", "base-executable", "base-prefix", "base-exec-prefix")


def read_settings(prefix: Path) -> dict[str, str]:
    """Return the settings in a `pyvenv.cfg`, by lower-case name; none if it cannot be read."""
    settings = {}
    try:
        text = (prefix / "pyvenv.cfg").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            settings[key.strip().lower()] = value.strip()
    return settings


class BaseInterpreter:
    """The base interpreter of a venv, and which of its files are packed.

    Parameters
    ----------
    prefix : Path
        The venv's root folder.
    interpreter : Interpreter
        The venv's interpreter.

    Attributes
    ----------
    prefix : Path
        The base interpreter's prefix, with symlinks followed.
    is_system : bool
        It is a part of the operating system; then only its executable and its libraries of Python code are packed.
    site_folders : list[Path]
        Its folders of packages that the venv uses (`--system-site-packages`).
    """

    def __init__(self, prefix: Path, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        self.prefix = Path(os.path.realpath(interpreter.base_prefix))
        self.is_system = os.fspath(self.prefix) in SYSTEM_PREFIXES
        venv = Path(os.path.realpath(prefix))
        self.site_folders = [
            path
            for path in map(Path, dict.fromkeys(map(os.path.realpath, interpreter.site_folders)))
            if path.is_dir() and path.is_relative_to(self.prefix) and not path.is_relative_to(venv)
        ]

    def roots(self) -> list[bytes]:
        """Return the files and folders to pack, relative to the prefix; what `keeps` refuses is not packed."""
        wanted = [Path(self._interpreter.base_executable)]
        wanted += map(Path, (self._interpreter.stdlib, self._interpreter.platstdlib))
        wanted += self.site_folders
        if self.is_system:
            wanted += self._needed_libraries()
            python = self._interpreter.base_executable
            wanted += [path for path in self.prefix.glob("bin/python*") if os.path.realpath(path) == python]
        else:
            wanted += [self.prefix / name for name in ("lib", "lib64", *_SHARED)]
            wanted += [path for pattern in _IN_BIN for path in self.prefix.glob(f"bin/{pattern}")]
        inside = {
            os.path.relpath(real, self.prefix)
            for real in (path if path.is_symlink() else Path(os.path.realpath(path)) for path in wanted)
            if os.path.lexists(real) and real.is_relative_to(self.prefix)
        }
        # Not those that lie in others.
        return sorted(
            os.fsencode(name)
            for name in inside
            if not any(os.fspath(parent) in inside for parent in Path(name).parents)
        )

    def keeps(self) -> Callable[[bytes], bool]:
        """Return a function that tells whether a path below a root, relative to the prefix, is packed."""
        sites = {os.fsencode(path.relative_to(self.prefix)) for path in self.site_folders}
        libraries = tuple(
            os.fsencode(os.path.relpath(os.path.realpath(path), self.prefix)) + b"/"
            for path in {self._interpreter.stdlib, self._interpreter.platstdlib}
        )

        def keep(path: bytes) -> bool:
            name = path.rpartition(b"/")[2]
            if name in (b"site-packages", b"dist-packages"):
                return path in sites
            if path.startswith(libraries) and (name in _TESTS or name.startswith(b"config-")):
                return any(path.startswith(site + b"/") for site in sites)
            return not name.endswith(_UNUSED)

        return keep

    def _needed_libraries(self) -> list[Path]:
        """Return the files of `libpython` that the executable needs, from the folder that the interpreter names."""
        try:
            library = read_library(Path(self._interpreter.base_executable).read_bytes())
        except OSError:
            return []
        folder = Path(self._interpreter.libdir)
        names = [os.fsdecode(name) for name in library.needed] if library else []
        links = [folder / name for name in names if fnmatchcase(name, "libpython*")]
        return [path for link in links for path in (link, Path(os.path.realpath(link)))]

    def names(self, prefix: Path) -> list[bytes]:
        """Return all names of the base interpreter's prefix: the real one first, then as the venv has it."""
        names = [os.fspath(self.prefix), self._interpreter.base_prefix]
        for key, value in read_settings(prefix).items():
            if key in BASE_KEYS and os.path.isabs(value):  # noqa: PTH117
                names += [value, os.path.dirname(value), os.path.dirname(os.path.dirname(value))]  # noqa: PTH120
        return list(
            dict.fromkeys(os.fsencode(name) for name in names if Path(os.path.realpath(name)) == self.prefix)
        )
