"""Turn a walk into members: what is relocated in each file, and by which names. Only `envpack.pack` imports this."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.common.elf import read_library
from envpack.pack import conda
from envpack.pack.base_interpreter import BASE_FOLDER, BASE_KEYS, read_settings
from envpack.pack.members import FILE, SYMLINK, Member, from_stat
from envpack.pack.names import foreign_interpreters, names_of, script_texts
from envpack.pack.scan import Scanner
from envpack.pack.walk import listed

if TYPE_CHECKING:
    from collections.abc import Callable

    from envpack.pack.conda import Managed
    from envpack.pack.walk import Entry, Walk


@dataclass
class Collected:
    """An environment, ready to be packed.

    Attributes
    ----------
    members : list[Member]
        All files, folders and links, in any order.
    scanner : Scanner
        Makes their relocation records.
    libraries : list[bytes]
        Folders in the archive whose `.py` files are compiled.
    python : dict or None
        `version`, `cache_tag` and `magic` of the interpreter; None if it does not run.
    warnings : list[str]
        Messages for the user; not the walk's.
    """

    members: list[Member]
    scanner: Scanner
    libraries: list[bytes]
    python: dict[str, object] | None
    warnings: list[str]
    excludes: Callable[[bytes], bool]

    @property
    def placeholders(self) -> list[tuple[bytes, bytes]]:
        """The texts that staging replaces, and what follows the staged prefix in their place."""
        return self.scanner.placeholders


def collect(walk: Walk) -> Collected:
    """Return the members of an environment, and what is needed to pack them.

    Raises
    ------
    BrokenEnvironmentError
        conda's records cannot be read.
    """
    records = conda.read_records(walk.prefix)
    missing = _missing(walk, records)
    if walk.base is not None:
        in_base = conda.read_records(walk.base.prefix)
        records |= {BASE_FOLDER + b"/" + path: managed for path, managed in in_base.items()}
    members = [_member(entry, records.get(entry.path)) for entry in walk.entries]
    if walk.kind == "conda":
        members += conda.activation_members(walk.paths)
    interpreter = walk.interpreter
    folders = [interpreter.stdlib, interpreter.platstdlib, interpreter.purelib, interpreter.platlib]
    if walk.base is not None:
        folders += map(os.fspath, walk.base.site_folders)
    libraries = dict.fromkeys(member for folder in folders if (member := walk.member(folder)))
    texts = script_texts(walk)
    scanner = Scanner(
        *_placeholders(walk, names_of(walk, texts)),
        base_packages=walk.base is not None and bool(walk.base.site_folders),
    )
    foreign = foreign_interpreters(texts, [old for old, _ in scanner.placeholders])
    return Collected(
        members,
        scanner,
        list(libraries),
        interpreter.python,
        [*missing, *_library_warning(walk), *foreign],
        walk.excludes,
    )


def _member(entry: Entry, managed: Managed | None) -> Member:
    info = entry.info
    if entry.link is not None:
        return Member(entry.path, SYMLINK, 0o777, info.st_mtime_ns, link=entry.link, relocation="unknown")
    member = from_stat(entry.path, entry.source, info)
    if member.kind != FILE:
        return member
    if managed is not None:
        member.relocation = managed.relocation
        member.rooms, member.package_digests = managed.rooms, managed.digests
    elif entry.path == b"pyvenv.cfg":
        member.relocation = "settings"
    elif not (entry.path.startswith(b"conda-meta/") and entry.path.endswith((b".json", b"/history"))):
        # conda's records stay as they are: nothing runs them.
        member.relocation = "unknown"
    return member


def _missing(walk: Walk, records: dict[bytes, Managed]) -> list[str]:
    """Return a warning that names the files of conda packages that the prefix lacks."""
    top = os.fsencode(walk.prefix)
    missing = [
        f"{os.fsdecode(path)} ({records[path].package})"
        for path in sorted(records.keys() - walk.paths)
        if not os.path.lexists(top + b"/" + path)
    ]
    if not missing:
        return []
    return [
        f"{len(missing)} files of conda packages are missing in {walk.prefix}; it was packed without them: "
        f"{listed(missing)}"
    ]


def _library_warning(walk: Walk) -> list[str]:
    """Return a warning if the base interpreter finds a library of its own only by `LD_LIBRARY_PATH` or the like."""
    program = walk.interpreter.base_executable
    try:
        library = read_library(Path(program).read_bytes()) if walk.base is not None else None
    except OSError:
        library = None
    if library is None:
        return []
    folder = os.fsencode(os.path.dirname(program))  # noqa: PTH120
    searched = [
        entry.replace(b"${ORIGIN}", folder).replace(b"$ORIGIN", folder)
        for _, value in library.run_paths
        for entry in value.split(b":")
    ]
    own = [name for name in library.needed if name.startswith((b"libpython", b"libpypy"))]
    lost = [
        os.fsdecode(name)
        for name in own
        if not any(os.path.lexists(entry + b"/" + name) for entry in searched)
    ]
    if not lost:
        return []
    return [
        f"{program} needs {listed(lost)}, and has no run path to it, so the nodes load it from where their dynamic "
        "linker finds it"
    ]


def _placeholders(
    walk: Walk, own_names: list[bytes]
) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
    """Return the parameters of `Scanner`."""
    names = [(name, b"") for name in own_names]
    base = walk.base
    suffix = b"/" + BASE_FOLDER
    if base is not None and not base.is_system:
        names += [(name, suffix) for name in base.names(walk.prefix)]
    # As scripts hold a quote in a shell's single quotes.
    names += [(name.replace(b"'", b"'\"'\"'"), suffix) for name, suffix in names if b"'" in name]
    if base is None:
        return names, []
    settings = []
    for key, value in sorted(read_settings(walk.prefix).items()):
        if key not in BASE_KEYS or not os.path.isabs(value):  # noqa: PTH117
            continue
        if any(Path(value).is_relative_to(os.fsdecode(name)) for name, _ in names):
            continue
        member = walk.member(value)
        if member is None and key == "home":
            # As for a venv that was made from another venv.
            member = walk.member(os.path.dirname(walk.interpreter.base_executable))  # noqa: PTH120
        elif member is None:
            member = walk.member(
                walk.interpreter.base_executable if "executable" in key else os.fspath(base.prefix)
            )
        if member is not None:
            settings.append((os.fsencode(value), b"/" + member))
    return names, settings
