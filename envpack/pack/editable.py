"""Find editable installs: packages whose code lies outside of the environment, and so is not packed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from envpack.pack.members import FILE, Member


def editable_warnings(prefix: Path, members: list[Member]) -> list[str]:
    """Return a warning that names the editable installs and where their code stays, if there are any."""
    found: dict[str, str] = {}
    for member in members:
        if member.kind != FILE or b"/site-packages/" not in member.path:
            continue
        path = os.fsdecode(member.path)
        if path.endswith(".dist-info/direct_url.json"):
            try:
                record = json.loads((prefix / path).read_bytes())
            except (OSError, ValueError):
                continue
            if (record.get("dir_info") or {}).get("editable"):
                package = Path(path).parent.name.partition("-")[0]
                found[package] = str(record.get("url", "")).removeprefix("file://")
        elif path.endswith(".egg-link"):
            found[Path(path).stem] = _first_line(prefix / path)
        elif path.endswith(".pth"):
            for line in _lines(prefix / path):
                if line.startswith("/") and not Path(line).is_relative_to(prefix):
                    found.setdefault(Path(path).name, line)
    if not found:
        return []
    listed = ", ".join(f"{package} ({where})" for package, where in sorted(found.items()))
    return [
        f"editable installs are not packed, their code is read from where it is: {listed}; on a node that is slow, "
        "and fails where the node does not see it; install them without -e to have them packed"
    ]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _first_line(path: Path) -> str:
    return next(iter(_lines(path)), "")
