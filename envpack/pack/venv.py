"""A venv's files: a walk of our own, as conda-pack refuses what conda did not make."""

from __future__ import annotations

import os
from pathlib import Path

from envpack.archive.index import OWN_FOLDER
from envpack.common.mounts import file_system, is_shared
from envpack.pack.members import Member, from_stat


def collect(prefix: Path) -> tuple[list[Member], list[str]]:
    """Return a venv's members, and warnings."""
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
    found = []
    if skipped:
        found.append(f"left out, as neither file, folder nor link: {', '.join(sorted(skipped)[:5])}")
    found += _base_warnings(prefix)
    return members, found


def _base_warnings(prefix: Path) -> list[str]:
    found = []
    settings = read_settings(prefix)
    base = base_interpreter(prefix)
    if base is None:
        found.append(f"{prefix / 'bin' / 'python'} does not exist: is the base interpreter gone?")
    elif os.path.commonpath([base, prefix.resolve()]) != os.fspath(prefix.resolve()):
        kind, mount = file_system(base)
        if is_shared(kind):
            found.append(
                f"the base interpreter {base} is not packed and lies on a shared file system ({kind} at {mount}): "
                "each start on a node reads it from there; a conda environment, or a base that is on the nodes, "
                "avoids it"
            )
    if settings.get("include-system-site-packages", "").lower() == "true":
        found.append(
            "the venv was made with --system-site-packages: the base interpreter's packages are not packed, and "
            "are read from where they are"
        )
    return found


def read_settings(prefix: Path) -> dict[str, str]:
    """Return a pyvenv.cfg's settings, by lower-case name."""
    settings = {}
    text = (prefix / "pyvenv.cfg").read_text(encoding="utf-8", errors="surrogateescape")
    for line in text.splitlines():
        key, found, value = line.partition("=")
        if found:
            settings[key.strip().lower()] = value.strip()
    return settings


def base_interpreter(prefix: Path) -> Path | None:
    """Return the real file that a venv's `bin/python` runs, None where it is gone."""
    try:
        python = (prefix / "bin" / "python").resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    if prefix.resolve() in python.parents:
        # A copy (`venv --copies`): it still needs its base's standard library.
        home = read_settings(prefix).get("home")
        return Path(home, "python3").resolve() if home else python
    return python
