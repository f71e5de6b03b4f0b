"""Find what the interpreter imports from outside of the environment: it is not packed.

Only `envpack.pack.packing` imports this module: the answer depends on the user's variables, not on the archive.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from envpack.pack.walk import listed

if TYPE_CHECKING:
    from envpack.pack.walk import Entry, Walk


def outside_warnings(walk: Walk) -> list[str]:
    """Return warnings that name the editable installs, and the other folders that the interpreter searches."""
    editable = {name: place for name, place in _editable(walk).items() if not walk.finds_in_copy(place)}
    warnings = []
    if editable:
        names = [f"{name} ({place})" for name, place in sorted(editable.items())]
        warnings.append(
            "editable installs are not packed; the nodes read their code from where it is, which is slow, and fails if "
            f"a node does not see that folder: {listed(names)}. To pack them, install them without -e"
        )
    known = {os.path.realpath(place) for place in editable.values()}
    folders = [
        f"{place} ({_origin(walk, place)})"
        for place in walk.interpreter.path
        if os.path.lexists(place) and not walk.finds_in_copy(place) and not _is_below(place, known)
    ]
    if folders:
        warnings.append(
            f"Python finds modules outside of {walk.prefix}, which are not packed; the nodes read them from where they "
            f"are, or lack them: {listed(folders)}. To pack them, install them into the environment"
        )
    return warnings


def _is_below(place: str, folders: set[str]) -> bool:
    """Tell whether a path is one of some folders, or lies in one of them: as `src` does in a project."""
    real = Path(os.path.realpath(place))
    return any(real.is_relative_to(folder) for folder in folders)


def _origin(walk: Walk, place: str) -> str:
    """Return why the interpreter searches a folder."""
    variable = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if os.path.abspath(place) in map(os.path.abspath, filter(None, variable)):  # noqa: PTH100
        return "PYTHONPATH"
    return "your own site-packages" if place == walk.interpreter.user_site else "a .pth file"


def _editable(walk: Walk) -> dict[str, str]:
    """Return the editable installs: name -> folder of the code."""
    places = dict(walk.interpreter.mappings)
    for entry in walk.entries:
        if entry.path.endswith(b".dist-info/direct_url.json"):
            name = os.fsdecode(entry.path).split("/")[-2].partition("-")[0]
            if place := _direct_url(entry):
                places[name] = place
        elif entry.path.endswith(b".egg-link"):
            lines = Path(os.fsdecode(entry.source)).read_text(errors="surrogateescape").splitlines()
            places[Path(os.fsdecode(entry.path)).stem] = next(iter(lines), "")
    return places


def _direct_url(entry: Entry) -> str:
    """Return the folder of an editable install, from its record (PEP 610); empty if it is none."""
    try:
        record = json.loads(Path(os.fsdecode(entry.source)).read_bytes())
        if not (record.get("dir_info") or {}).get("editable"):
            return ""
        return unquote(urlsplit(str(record.get("url", ""))).path)
    except (ValueError, AttributeError):
        return ""
