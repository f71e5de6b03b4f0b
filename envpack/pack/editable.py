"""Find editable installs: their code lies outside of the environment, so it is not packed.

Only `envpack.pack.archive_writer` imports this module.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from envpack.pack.members import FILE, Member


def editable_warnings(prefix: Path, members: list[Member]) -> list[str]:
    """Return a warning that names the editable installs and the places of their code; no warning if there are none."""
    places: dict[str, str] = {}
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
                places[package] = str(record.get("url", "")).removeprefix("file://")
        elif path.endswith(".egg-link"):
            places[Path(path).stem] = _first_line(prefix / path)
        elif path.endswith(".pth"):
            for line in _lines(prefix / path):
                if line.startswith("/") and not Path(line).is_relative_to(prefix):
                    places.setdefault(Path(path).name, line)
    if not places:
        return []
    listed = ", ".join(f"{package} ({where})" for package, where in sorted(places.items()))
    return [
        "editable installs are not packed; the nodes read their code from where it is, which is slow, and fails if a "
        f"node does not see that folder: {listed}. To pack them, install them without -e"
    ]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _first_line(path: Path) -> str:
    return next(iter(_lines(path)), "")
