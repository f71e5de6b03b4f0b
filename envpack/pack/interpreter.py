"""Ask an environment's interpreter, once, where its files are and where it finds modules.

Only `envpack.pack` imports this module.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

# Variables that change what an interpreter is, or that make it do more than it is asked.
_CLEARED = (
    "PYTHONHOME", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "PYTHONINSPECT", "PYTHONPLATLIBDIR", "PYTHONPROFILEIMPORTTIME",
    "PYTHONVERBOSE", "PYTHONWARNINGS", "PYTHONSAFEPATH", "__PYVENV_LAUNCHER__",
)  # fmt: skip
TIMEOUT_S = 60.0

_QUERY = """
import importlib.util, json, os, site, sys, sysconfig
path = [name for name in sys.path if os.path.isabs(name)]
mappings = {}
for finder in sys.meta_path:
    module = sys.modules.get(getattr(finder, "__module__", None) or type(finder).__module__)
    mapping = getattr(module, "MAPPING", None)
    if isinstance(mapping, dict):
        mappings.update((str(name), str(place)) for name, place in mapping.items())
print()
print(json.dumps({
    "version": list(sys.version_info[:2]),
    "implementation": sys.implementation.name,
    "cache_tag": sys.implementation.cache_tag or "",
    "magic": importlib.util.MAGIC_NUMBER.hex(),
    "base_prefix": sys.base_prefix,
    "base_executable": os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable),
    "stdlib": sysconfig.get_path("stdlib"),
    "platstdlib": sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix}),
    "purelib": sysconfig.get_path("purelib"),
    "platlib": sysconfig.get_path("platlib"),
    "libdir": sysconfig.get_config_var("LIBDIR") or "",
    "path": path,
    "site_folders": site.getsitepackages(),
    "user_site": site.getusersitepackages() if site.ENABLE_USER_SITE else "",
    "mappings": mappings,
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """What the interpreter of an environment says of itself. All paths are absolute.

    Attributes
    ----------
    version : tuple[int, ...]
        Major and minor number; empty if the interpreter does not run, and the paths are a guess.
    implementation, cache_tag : str
        As in `sys.implementation`.
    magic : str
        The magic number of its bytecode, in hexadecimal digits.
    base_prefix : str
        `sys.base_prefix`.
    base_executable : str
        The program that runs, with symlinks followed.
    stdlib, platstdlib : str
        The standard library; `platstdlib` is another folder on few systems. In a venv, those of the base interpreter.
    purelib, platlib : str
        Where packages are installed.
    libdir : str
        The folder of `libpython`, if there is one.
    path : tuple[str, ...]
        `sys.path`, with `PYTHONPATH` and the user's site-packages.
    site_folders : tuple[str, ...]
        `site.getsitepackages()`.
    user_site : str
        The user's site-packages; empty if they are disabled.
    mappings : dict[str, str]
        Package -> folder, of the editable installs that setuptools' import hooks know.
    """

    version: tuple[int, ...] = ()
    implementation: str = ""
    cache_tag: str = ""
    magic: str = ""
    base_prefix: str = ""
    base_executable: str = ""
    stdlib: str = ""
    platstdlib: str = ""
    purelib: str = ""
    platlib: str = ""
    libdir: str = ""
    path: tuple[str, ...] = ()
    site_folders: tuple[str, ...] = ()
    user_site: str = ""
    mappings: dict[str, str] = field(default_factory=dict)

    @property
    def python(self) -> dict[str, object] | None:
        """What the index keeps: version, cache tag and magic number; None if the interpreter did not run."""
        if not self.version or not self.cache_tag:
            return None
        return {"version": list(self.version), "cache_tag": self.cache_tag, "magic": self.magic}


def ask(prefix: Path) -> Interpreter | None:
    """Return what `bin/python` of a prefix says; None if it does not run, or is older than Python 3.7.

    `PYTHONPATH` and the user's site-packages count, as they would for a program that the user starts.
    """
    environ = {name: value for name, value in os.environ.items() if name not in _CLEARED}
    try:
        done = subprocess.run(
            [prefix / "bin" / "python", "-B", "-c", _QUERY],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=True, env=environ, cwd="/",
        )  # fmt: skip
        # `sitecustomize` and the like may print, too.
        answer = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith(b'{"version"'))
    except BlockingIOError:
        raise  # this host has no process left for it: that says nothing of the interpreter
    except (OSError, ValueError, StopIteration, subprocess.SubprocessError):
        return None
    for key in ("version", "path", "site_folders"):
        answer[key] = tuple(answer[key])
    return Interpreter(**answer) if answer["version"] >= (3, 7) else None


def guess(prefix: Path, base: str) -> Interpreter:
    """Return the usual places, for an interpreter that does not run on this host.

    Parameters
    ----------
    prefix : Path
        The environment's root folder.
    base : str
        The base interpreter's prefix; of a conda environment, the prefix itself.
    """
    purelib = next(
        iter(sorted(prefix.glob("lib/py*3*/site-packages"))), prefix / "lib" / "python3" / "site-packages"
    )
    stdlib = Path(base, "lib", purelib.parent.name)
    python = Path(base, "bin", "python3")
    return Interpreter(
        base_prefix=base,
        base_executable=os.path.realpath(python),
        stdlib=os.fspath(stdlib),
        platstdlib=os.fspath(stdlib),
        purelib=os.fspath(purelib),
        platlib=os.fspath(purelib),
        libdir=os.path.join(base, "lib"),  # noqa: PTH118
    )
