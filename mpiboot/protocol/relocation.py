"""Paths into the source prefix, wherever they stand in the values of variables, become paths into the staged prefix.

`PROJ_DATA=/env/share/proj`, `CFLAGS=-I/env/include`, `X=file:///env/a:/env/b`: a path is replaced only where it begins
as a path does, and ends at a name's end. Boot imports this module; it imports only the standard library.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

# What comes before a path: the beginning, a separator, an option such as -I, or the beginning of a URL without a host.
_BEFORE = (
    r"""(?:(?<![^\s:;,="'`(\[{<>|&@!])(?:-[A-Za-z]+)?|(?<![\w.+-])[a-z][a-z0-9+.-]*://(?:localhost)?/?)"""
)
# A name goes on with these, so that /env is no part of /env-2.
_AFTER = r"(?![\w.+~@%-])"
# The rest of a path, up to a separator.
_REST = r"""(?P<rest>/[^\s:;,"'`)\]}>|&]*)?"""
_PATH = re.compile(r"""(?:~|/)[^\s:;,="'`(\[{<>|&@!]*""")
# Folders that hold no environment of a user, and that many paths share.
_NOT_ASKED = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev", "/run")


class Relocation:
    """Replaces the source prefix, under each of its names.

    Parameters
    ----------
    source, prefix : Path
        The source prefix, and the staged one; if they are the same, nothing is replaced.
    environ : mapping
        Variables that may name the source prefix otherwise: by a link, or another mount.
    """

    def __init__(self, source: Path, prefix: Path, environ: Mapping[str, str]) -> None:
        self.source, self.prefix = source, prefix
        names = {str(source), os.path.realpath(source), *other_names(source, environ)} - {str(prefix), "/"}
        home = environ.get("HOME")
        if home and source.is_relative_to(home) and source != Path(home):
            names.add(f"~/{source.relative_to(home)}")
        # The longest first: one may begin with another.
        self.names = [] if source == prefix else sorted(names, key=len, reverse=True)
        words = "|".join(map(re.escape, self.names))
        self._pattern = re.compile(f"({_BEFORE})({words}){_AFTER}{_REST}")

    def value(self, text: str) -> str:
        """Return a variable's value after relocation."""
        return self._pattern.sub(self._replace, text) if self.names else text

    def _replace(self, match: "re.Match[str]") -> str:
        before, _, rest = match.groups()
        staged, source = f"{self.prefix}{rest or ''}", f"{self.source}{rest or ''}"
        # What was not packed (--exclude, or written since) stays where it is.
        if rest and not os.path.lexists(staged) and os.path.lexists(source):
            return match.group()
        return f"{before}{staged}"


def other_names(source: Path, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield other paths of the source prefix in variables: those of a folder of its name, or with a `bin`."""
    try:
        identity = source.stat()
    except OSError:
        return
    last_names = {source.name, os.path.basename(os.path.realpath(source))}  # noqa: PTH119
    for folder in sorted(candidates(environ.values(), last_names)):
        try:
            stat = Path(folder).stat()
        except (OSError, ValueError):
            continue
        if (stat.st_dev, stat.st_ino) == (identity.st_dev, identity.st_ino):
            yield folder


def candidates(values: Iterable[str], last_names: set[str]) -> set[str]:
    """Return the folders in values that may be a prefix: each has one of `last_names`, or a `bin` is in it."""
    found = set()
    for value in values:
        for path in _PATH.findall(value):
            parts = os.path.normpath(path).split("/")
            for number, part in enumerate(parts[1:], 1):
                if part in last_names:
                    found.add("/".join(parts[: number + 1]))
                elif part == "bin":
                    found.add("/".join(parts[:number]))
    return {path for path in found if path.startswith("/") and not path.startswith(_NOT_ASKED)}
