# ruff: noqa: PTH115, PTH118, PTH208
"""Real venvs with difficult content, and trees compared byte by byte, for envpack's tests."""

from __future__ import annotations

import compileall
import os
import stat
import sys
import venv
from pathlib import Path

XY = f"python{sys.version_info.major}.{sys.version_info.minor}"
SITE = Path("lib", XY, "site-packages")
ODD_NAMES = [b"with blank", b"quo'te\"s", b"new\nline", b"not-utf8-\xff\xfe", b"-dash", "snow\u2603".encode()]


def make_venv(prefix: Path) -> Path:
    """Make a real venv with a package, a console script as pip writes it, links, and names that are hard to handle."""
    venv.create(prefix, symlinks=True)
    package = prefix / SITE / "demo"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("VALUE = 42\n")
    (package / "config.py").write_text(f"PREFIX = {str(prefix)!r}\n")
    (package / "data" / "empty").touch()
    (package / "data" / "read-only").write_text("mode 0444\n")
    (package / "data" / "read-only").chmod(0o444)
    for name in ODD_NAMES:
        Path(os.fsdecode(os.fsencode(package / "data") + b"/" + name)).write_bytes(b"odd " + name)
    os.link(package / "data" / "read-only", package / "data" / "second-name")
    (package / "data" / "relative").symlink_to("read-only")
    (package / "data" / "absolute").symlink_to(prefix / "pyvenv.cfg")
    (package / "data" / "hollow").mkdir()
    (package / "data" / "noise.bin").write_bytes(os.urandom(300_000) + b"\0")
    script = prefix / "bin" / "demo"
    line = f"#!{prefix}/bin/python"
    if " " in line:
        # As pip writes it: a first line knows no quotes.
        line = f"#!/bin/sh\n'''exec' \"{prefix}/bin/python\" \"$0\" \"$@\"\n' '''"
    script.write_text(f"{line}\nimport sys, demo\nprint(sys.prefix, demo.VALUE)\n")
    script.chmod(0o755)
    (prefix / SITE / "demo.pth").write_text(f"{prefix}/share\n")
    (prefix / "share").mkdir()
    compileall.compile_dir(package, quiet=1)
    return prefix


def tree(folder: Path) -> dict[bytes, tuple[object, ...]]:
    """Return the kind and content of everything below a folder, by path; for files also mode and time in seconds."""
    found: dict[bytes, tuple[object, ...]] = {}
    for root, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            path = os.path.join(root, name)
            info = os.lstat(path)
            key = os.path.relpath(path, os.fsencode(folder))
            if stat.S_ISLNK(info.st_mode):
                found[key] = ("link", os.readlink(path))
            elif stat.S_ISDIR(info.st_mode):
                found[key] = ("folder",)
            else:
                content = Path(os.fsdecode(path)).read_bytes()
                found[key] = ("file", content, stat.S_IMODE(info.st_mode), int(info.st_mtime))
    return found


def staged_tree(prefix: Path) -> dict[bytes, tuple[object, ...]]:
    """Return `tree` of a staged prefix, without the stager's own folder."""
    return {path: entry for path, entry in tree(prefix).items() if path.split(b"/")[0] != b".envpack"}


def stages(root: Path) -> list[str]:
    """Return the names in a staging root, without lock files."""
    folder = root / f"mpiboot-{os.geteuid()}"
    names = os.listdir(folder) if folder.exists() else []
    return sorted(name for name in names if not name.startswith(".lock-"))
