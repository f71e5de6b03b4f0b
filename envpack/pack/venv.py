"""Collect a venv's files by a walk, as conda-pack refuses them. Only `envpack.pack` imports this module."""

from __future__ import annotations

import os
from pathlib import Path

from envpack.archive.index import OWN_FOLDER
from envpack.common.mounts import file_system, is_shared
from envpack.pack.members import Member, from_stat, omitted


def collect(prefix: Path) -> tuple[list[Member], list[str]]:
    """Return a venv's members, and warnings for the user."""
    top = os.fsencode(prefix)
    members: list[Member] = []
    skipped: list[str] = []
    stack = [b""]
    while stack:
        folder = stack.pop()
        with os.scandir(os.path.join(top, folder)) as entries:  # noqa: PTH118
            for entry in entries:
                path = folder + b"/" + entry.name if folder else entry.name
                if path == OWN_FOLDER:
                    continue
                member = from_stat(path, entry.path, entry.stat(follow_symlinks=False), "unknown")
                if member is None:
                    skipped.append(os.fsdecode(path))
                    continue
                members.append(member)
                if entry.is_dir(follow_symlinks=False):
                    stack.append(path)
    messages = [omitted(skipped)] if skipped else []
    return members, messages + _base_warnings(prefix)


def _base_warnings(prefix: Path) -> list[str]:
    messages = []
    settings = read_settings(prefix)
    base = base_interpreter(prefix)
    if base is None:
        messages.append(f"{prefix / 'bin' / 'python'} does not exist; was its base interpreter removed?")
    elif os.path.commonpath([base, prefix.resolve()]) != os.fspath(prefix.resolve()):
        kind, mount = file_system(base)
        if is_shared(kind):
            messages.append(
                f"the base interpreter {base} is not packed and lies on a shared file system ({kind} at {mount}), so "
                "each start on a node reads it from there; use a conda environment, or a venv whose base interpreter "
                "is on the nodes"
            )
    if settings.get("include-system-site-packages", "").lower() == "true":
        messages.append(
            "the venv was made with --system-site-packages: the base interpreter's packages are not packed; the nodes "
            "read them from where they are installed"
        )
    return messages


def read_settings(prefix: Path) -> dict[str, str]:
    """Return the settings in a `pyvenv.cfg`, by lower-case name."""
    settings = {}
    text = (prefix / "pyvenv.cfg").read_text(encoding="utf-8", errors="surrogateescape")
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            settings[key.strip().lower()] = value.strip()
    return settings


def base_interpreter(prefix: Path) -> Path | None:
    """Return the file that a venv's `bin/python` runs, with all symlinks followed; None if there is none."""
    try:
        python = (prefix / "bin" / "python").resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    if prefix.resolve() in python.parents:
        # A copy (`venv --copies`) still needs the standard library of its base.
        home = read_settings(prefix).get("home")
        return Path(home, "python3").resolve() if home else python
    return python
