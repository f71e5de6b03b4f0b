"""Find where a file names the prefix that it is packed from, so that staging need not search.

The archived bytes are always the prefix's own. The rules are those of conda-unpack: in files of conda packages, what
conda has put in the place of a placeholder, and in all other files, text that names the source prefix. The staged tree
differs from conda-unpack's only in these points:

- First lines of scripts name the staged interpreter. conda-unpack leaves `#!/usr/bin/env python`, which would find the
  source prefix's interpreter in a job that was submitted from the activated environment.
- Edited files stay edited, and what conda keeps in `conda-meta` stays as it is.
- Other names of the source prefix (through a symlinked home, or as its scripts have it) are replaced too. A name that is
  only the beginning of a longer one stays (`/home/u/env` in `/home/u/env-project`), and one that is only the end of a
  longer one (`/env` in `/usr/bin/env`).
- Symlinks that name the source prefix point into the staged one. What links out of the prefix name is packed in their
  place, or they become links to where it is packed.
- Text in another encoding than UTF-8, and the first lines of zip applications, are relocated.
- All files called `bin/python*` are relocated; conda-unpack skips them.
- Libraries whose run path names the source prefix, as compilers make them, get a run path relative to themselves.
- The base interpreter of a venv is packed in `.envpack-base`, and named where the venv names what is packed of it.
- The prefix's own `bin/activate` and the like are kept; conda-pack replaces them. `bin/conda-unpack` and its helper are
  missing; `.envpack/`, envpack's own folder, is added.
- Missing and stale `.pyc` files are compiled, as are those of relocated sources.

Only `envpack.pack` imports this module.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.archive.index import show_path
from envpack.archive.relocations import binary_record, bytes_record, link_record, text_record
from envpack.common.mounts import file_system, is_shared
from envpack.pack.base_interpreter import BASE_FOLDER, BASE_KEYS
from envpack.pack.elf import folders_outside, relative_run_paths
from envpack.pack.walk import listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envpack.archive.relocations import Record
    from envpack.pack.members import Data, Member

# A path ends where no character follows that could continue a file's name.
_END = rb"(?![A-Za-z0-9_+~@%\x80-\xff-]|\.[A-Za-z0-9_])"
# The base interpreter's folder may be a home: outside of it, only these paths in it name what is packed of it.
_STOP = rb"(?![A-Za-z0-9_+~@%/\x80-\xff-]|\.[A-Za-z0-9_])"
_IN_BASE = (
    rb"(?=/(?:bin(?:/(?:python|pypy)|/?" + _STOP + rb")"
    rb"|(?:lib|lib64|ssl|share/(?:zoneinfo|terminfo))(?:/|" + _STOP + rb")))"
)
_NOT_ITS_PACKAGES = rb"(?!/lib(?:64)?/[^/\s]+/(?:site|dist)-packages(?![A-Za-z0-9_-]))"
# A path begins after a character that no file's name ends in, or after what stands directly before paths all the same: a
# compiler's option, an escaped character, `file://`, and the variables that move a whole tree.
_BEGIN = re.compile(
    rb"(?:\A|[^A-Za-z0-9_.+~%*?\\/)}\]\x80-\xff-]"
    rb"|(?:\A|[^A-Za-z0-9_.+/-])--?(?:[A-Za-z]|isystem|iquote|idirafter|include|imacros|iprefix|rpath|rpath-link)"
    rb"|(?:\A|[^\\])(?:\\\\)*\\(?:[abefnrtv]|x[0-9A-Fa-f]{2}|[0-7]{1,3})"
    rb"|(?:\A|[^:])://|:[?+-]|\xc2[\xa0-\xbf]|\xe2[\x80\x81][\x80-\xbf]|\xe3\x80[\x80-\xbf]"
    rb"|\$(?:DESTDIR|SYSROOT)|\$\((?:DESTDIR|SYSROOT)\)|\$\{(?:DESTDIR|SYSROOT)\})\Z"
)
_BEGIN_BYTES = 24
_SETTING = re.compile(rb"^[ \t]*([\w-]+)[ \t]*=[ \t]*(/[^\r\n]*)", re.MULTILINE)
_FIRST_LINE_BYTES = 4096


class Scanner:
    """Makes a member's relocation record from its content.

    Parameters
    ----------
    names : list[tuple[bytes, bytes]]
        All names of the source prefix and of its base interpreter, and what follows the staged prefix in their place.
    settings : list[tuple[bytes, bytes]], optional
        The same for texts that count only as values in a `pyvenv.cfg`.
    base_packages : bool, default False
        The base interpreter's folders of packages are packed, too.

    Attributes
    ----------
    placeholders : list[tuple[bytes, bytes]]
        Both lists; records name a text by its position here.
    rigid : list[bytes]
        Libraries that load others from folders that are not packed: their run path names the source prefix and has no
        room for a relative one, or leads to another folder on a shared file system.
    """

    def __init__(
        self,
        names: list[tuple[bytes, bytes]],
        settings: Sequence[tuple[bytes, bytes]] = (),
        *,
        base_packages: bool = False,
    ) -> None:
        self.base_packages = base_packages
        self.placeholders = list(dict.fromkeys([*names, *settings]))
        self.rigid: list[bytes] = []
        self._shared: dict[bytes, bool] = {}
        self._names = [old for old, _ in names]
        self._prefixes = [old for old, suffix in names if not suffix]
        self._numbers = {old: number for number, (old, _) in reversed(list(enumerate(self.placeholders)))}
        # The longest first, as one name may begin with another.
        longest = sorted(names, key=lambda name: len(name[0]), reverse=True)
        everywhere = [re.escape(old) + _END for old, _ in longest]
        in_base = _IN_BASE if base_packages else _NOT_ITS_PACKAGES + _IN_BASE
        outside_base = [re.escape(old) + (in_base if suffix else _END) for old, suffix in longest]
        self._pattern_in_base = re.compile(b"|".join(everywhere))
        self._pattern = re.compile(b"|".join(outside_base))
        self._places = [(old, suffix.lstrip(b"/")) for old, suffix in names]

    def texts(self, member: Member) -> list[bytes]:
        """Return the texts of which one is in a member's content if `record` returns one."""
        return [] if member.relocation == "none" else self._names

    def record(self, member: Member, data: Data) -> Record:
        """Return a file's relocation record; empty if it needs none. The member's `edited` must be set."""
        kind = member.relocation
        record = None
        self.check_run_paths(member, data)
        if kind == "settings":
            record = self._settings(data)
        elif kind != "none" and any(data.find(name) >= 0 for name in self._names):
            if kind == "managed" and member.package_digests and not member.edited:
                return []
            if kind == "text":
                record = self._text(data, list(self._matches(data, member.path, placed=True)))
            elif kind == "binary":
                record = self._binary(data, member.path, member.rooms)
            record = record or self._unknown(data, member.path)
        return record or []

    def check_run_paths(self, member: Member, data: Data) -> None:
        """Add a library that loads others from elsewhere to `rigid`; `record` does this, too."""
        if member.relocation == "unknown" and data[:4] == b"\x7fELF" and self._leads_outside(data):
            self.rigid.append(member.path)

    def link(self, target: bytes) -> Record | None:
        """Return the record of a symlink that names the source prefix.

        Those that name what is packed of the base interpreter are relative already; the others lead to it where it is.
        """
        for name in sorted(self._prefixes, key=len, reverse=True):
            if target == name or target.startswith(name + b"/"):
                return link_record(self._numbers[name])
        return None

    def warnings(self) -> list[str]:
        """Return a warning that names the libraries in `rigid`; call it when all records are made."""
        paths = sorted(set(self.rigid))
        if not paths:
            return []
        return [
            f"{len(paths)} libraries load others from folders that are not packed, as their run paths say, so the nodes "
            f"read those from there: {listed([show_path(path) for path in paths])}"
        ]

    def _leads_outside(self, data: Data) -> bool:
        """Tell whether a library loads others from a shared file system, but not from the prefix."""
        found = False
        for folder in folders_outside(data, self._names):
            if folder not in self._shared:
                self._shared[folder] = is_shared(file_system(Path(os.fsdecode(folder)))[0])
            found = found or self._shared[folder]
        return found

    def _matches(self, data: Data, path: bytes, placed: bool = False) -> Iterator[tuple[int, bytes]]:
        """Yield each place where a path begins with a name, and the name.

        Where conda has `placed` it, it may follow anything (`./` in Python's own `_sysconfigdata`); a name of several
        folders stands there by chance no more than at the beginning of a path.
        """
        pattern = self._pattern_in_base if path.startswith(BASE_FOLDER + b"/") else self._pattern
        for match in pattern.finditer(data):
            start, name = match.start(), match.group()
            if (placed and name.count(b"/") > 1) or _BEGIN.search(data[max(0, start - _BEGIN_BYTES) : start]):
                yield start, name

    def _binary(self, data: Data, path: bytes, rooms: Sequence[int]) -> Record | None:
        """Return the record of a file in which conda has put the prefix in the place of a longer placeholder.

        conda adds as many NUL bytes to a string as it becomes shorter: with a placeholder's length, they prove that the
        string may grow. If they do not, somebody else wrote the file.
        """
        begins = {start for start, _ in self._matches(data, path)}
        for name in self._names:
            strings = _strings(data, name)
            for length in sorted(set(rooms), reverse=True):
                if length >= len(name) and (spans := _proven(data, strings, begins, length - len(name))):
                    return binary_record(self._numbers[name], length - len(name), spans)
        return None

    def _unknown(self, data: Data, path: bytes) -> Record | None:
        """Return the record of any other file: its text, its first line or its run path may name the source prefix."""
        matches = list(self._matches(data, path))
        if matches and is_text(data):
            return self._text(data, matches)
        if data[:4] == b"\x7fELF":
            edits, fits = relative_run_paths(data, path, self._places)
            if not fits:
                self.rigid.append(path)
            return bytes_record(sorted(edits)) if edits else None
        first_line = _relocated_first_line(data, [name for _, name in matches])
        return text_record([], first_line) if first_line else None

    def _text(self, data: Data, matches: list[tuple[int, bytes]]) -> Record | None:
        if not matches:
            return None
        places = [(offset, self._numbers[name]) for offset, name in matches]
        return text_record(places, _relocated_first_line(data, [name for _, name in matches]))

    def _settings(self, data: Data) -> Record | None:
        """Return the record of a `pyvenv.cfg`."""
        places = {offset: self._numbers[name] for offset, name in self._matches(data, b"pyvenv.cfg")}
        for match in _SETTING.finditer(data):
            value = match.group(2)
            olds = [
                old
                for old, _ in self.placeholders
                if value == old or value.startswith(old.rstrip(b"/") + b"/")
            ]
            if olds and match.group(1).decode().lower() in BASE_KEYS:
                places[match.start(2)] = self._numbers[max(olds, key=len)]
        return text_record(sorted(places.items()), None) if places else None


def is_text(data: Data) -> bool:
    """Tell text from binary by conda-pack's rule (it is UTF-8), but without NUL bytes it is text in any encoding."""
    if data.find(b"\0") < 0:
        return True
    try:
        str(memoryview(data), "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _relocated_first_line(data: Data, names: list[bytes]) -> str | None:
    """Return a script's first line if it starts a program of one of these prefixes; else None."""
    if data[:2] != b"#!":
        return None
    line = data[:_FIRST_LINE_BYTES].partition(b"\n")[0].rstrip(b"\r")
    command = line[2:].lstrip(b" \t")
    if any(command.startswith(name + b"/") for name in names):
        return line.decode("latin-1")
    return None


def _strings(data: Data, name: bytes) -> list[list[int]]:
    """Return the strings that a name stands in: for each its end, a NUL byte, and the name's offsets."""
    strings: list[list[int]] = []
    at = data.find(name)
    while at >= 0:
        if strings and at < strings[-1][0]:
            strings[-1].append(at)
        elif (end := data.find(b"\0", at)) >= 0:
            strings.append([end, at])
        at = data.find(name, at + len(name))
    return strings


def _proven(data: Data, strings: list[list[int]], begins: set[int], room: int) -> list[list[int]]:
    """Return the strings that may grow, with the offsets of what may grow in them.

    Parameters
    ----------
    data : bytes or mmap
        The file's content.
    strings : list[list[int]]
        From `_strings`.
    begins : set[int]
        The offsets where a path begins with the name. The others count only if NUL bytes prove them, too.
    room : int
        Bytes that the name may grow by.

    Returns
    -------
    list[list[int]]
        Empty if a path that begins with the name may not grow.
    """
    spans = []
    for end, *starts in strings:
        paths = [start for start in starts if start in begins]
        for grown in ([starts] if room else []) + [paths]:
            size = 1 + room * len(grown)
            if grown and data[end : end + size] == bytes(size):
                spans.append([end, *grown])
                break
        else:
            if paths:
                return []
    return spans
