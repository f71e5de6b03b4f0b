"""Find where a file names the prefix that it is packed from, so that staging need not search.

The rules are those of conda-pack and its conda-unpack: conda's records for the files of conda packages, and in all other
files, text that names the source prefix. The staged tree differs from conda-unpack's only in these points:

- First lines of scripts name the staged interpreter. conda-unpack leaves `#!/usr/bin/env python`, which would find the
  source prefix's interpreter in a job that was submitted from the activated environment.
- Other names of the source prefix (through a symlinked home, or as its scripts have it) are replaced too. A name that is
  only the beginning of a longer one stays (`/home/u/env` in `/home/u/env-project`).
- Symlinks that name the source prefix point into the staged one.
- Text in another encoding than UTF-8, and the first lines of zip applications, are relocated.
- `bin/python*-config` and the like are relocated; conda-unpack skips all files called `bin/python*`.
- Binaries of packages that the package cache no longer has are relocated too, by conda's records.
- Libraries whose run path names the source prefix, as conda's compilers make them, get a run path relative to themselves.
- `bin/conda-unpack` and its helper are missing; `.envpack/`, envpack's own folder, is added.
- Missing and stale `.pyc` files are compiled, as are those of relocated sources.

Only `envpack.pack` imports this module.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envpack.archive.relocations import binary_record, bytes_record, link_record, text_record
from envpack.pack.elf import relative_run_paths

if TYPE_CHECKING:
    from envpack.archive.relocations import Record
    from envpack.pack.members import Data

# A path ends where no character follows that could continue a file's name.
_BOUNDARY = rb"(?![A-Za-z0-9_+~@%\x80-\xff-]|\.[A-Za-z0-9_])"
_FIRST_LINE_BYTES = 4096


class Scanner:
    """Makes a member's relocation record from its content.

    Parameters
    ----------
    prefixes : list[bytes]
        All names of the source prefix, from `names_of`.

    Attributes
    ----------
    placeholders : list[bytes]
        The texts to be replaced; records name them by their position here.
    rigid : list[bytes]
        Libraries with a run path that names the source prefix and has no room for a relative one.
    """

    def __init__(self, prefixes: list[bytes]) -> None:
        self.placeholders: list[bytes] = list(prefixes)
        self.rigid: list[bytes] = []
        self._prefixes = list(prefixes)
        # The longest first, as one name may begin with another.
        names = sorted(prefixes, key=len, reverse=True)
        self._pattern = re.compile(b"(?:" + b"|".join(map(re.escape, names)) + b")" + _BOUNDARY)

    def placeholder(self, value: bytes) -> int:
        """Return the number of a placeholder; give it one if it has none."""
        if value not in self.placeholders:
            self.placeholders.append(value)
        return self.placeholders.index(value)

    def link(self, target: bytes) -> Record | None:
        """Return the record of a symlink that names the source prefix."""
        for prefix in sorted(self._prefixes, key=len, reverse=True):
            if target == prefix or target.startswith(prefix + b"/"):
                return link_record(self.placeholder(prefix))
        return None

    def text(self, data: Data, placeholder: bytes) -> Record | None:
        """Return the record of a text file that a conda package says holds its placeholder."""
        return self._text(data, [(m.start(), placeholder) for m in re.finditer(re.escape(placeholder), data)])

    def binary(self, data: Data, placeholder: bytes) -> Record | None:
        """Return the record of a binary that a conda package says holds its placeholder."""
        spans = []
        for match in re.finditer(re.escape(placeholder) + rb"[^\0]*?\0", data):
            end = match.end() - 1
            spans.append([end, *_find_all(data, placeholder, match.start(), end)])
        return binary_record(self.placeholder(placeholder), 0, spans) if spans else None

    def unknown(self, data: Data, path: bytes) -> Record | None:
        """Return the record of any other file: its text, its first line or its run path may name the source prefix."""
        if not any(data.find(prefix) >= 0 for prefix in self._prefixes):
            return None
        matches = [(m.start(), m.group()) for m in self._pattern.finditer(data)]
        if matches and is_text(data):
            return self._text(data, matches)
        if data[:4] == b"\x7fELF":
            edits, fits = relative_run_paths(data, path, self._prefixes)
            if not fits:
                self.rigid.append(path)
            return bytes_record(sorted(edits)) if edits else None
        first_line = _relocated_first_line(data, [prefix for _, prefix in matches])
        return text_record([], first_line) if first_line else None

    def _text(self, data: Data, matches: list[tuple[int, bytes]]) -> Record | None:
        if not matches:
            return None
        places = [(offset, self.placeholder(value)) for offset, value in matches]
        return text_record(places, _relocated_first_line(data, [value for _, value in matches]))


def is_text(data: Data) -> bool:
    """Tell text from binary by conda-pack's rule (it is UTF-8), but without NUL bytes it is text in any encoding."""
    if data.find(b"\0") < 0:
        return True
    try:
        str(memoryview(data), "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _relocated_first_line(data: Data, prefixes: list[bytes]) -> str | None:
    """Return a script's first line if it starts a program of one of these prefixes; else None."""
    if data[:2] != b"#!":
        return None
    line = data[:_FIRST_LINE_BYTES].partition(b"\n")[0].rstrip(b"\r")
    command = line[2:].lstrip(b" \t")
    if any(command.startswith(prefix + b"/") for prefix in prefixes):
        return line.decode("latin-1")
    return None


def _find_all(data: Data, value: bytes, start: int, end: int) -> list[int]:
    places = []
    at = data.find(value, start, end)
    while at >= 0:
        places.append(at)
        at = data.find(value, at + len(value), end)
    return places
