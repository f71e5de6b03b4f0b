# ruff: noqa: PTH110, PTH112, PTH113, PTH114, PTH115, PTH116, PTH118, PTH119, PTH120
"""Compare an environment with its staged copy, file by file, by rules of its own: it imports nothing of envpack.

For the tests of promise 9: content, mode, modification time, type and link target of each file are the environment's, or
what `conda-unpack` would make of them, or pack has named the file in a warning.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BASE = b".envpack-base"
ACTIVATION = {b"bin/activate", b"bin/deactivate", b"bin/activate.fish"}
# What is left out of a base interpreter: nothing imports it.
NOT_NEEDED = re.compile(rb"(^|/)(site-packages|dist-packages|tests?|idle_test|config-[^/]*|__pycache__)(/|$)")
LIBRARY = re.compile(rb"(\.envpack-base/)?lib[^/]*/python3[^/]*/")
NOT_BEFORE = rb"A-Za-z0-9_.~+@%/\x80-\xff-"
# A path begins after a character that cannot stand in one, after `-I` and `-L`, and in a URL.
BEGINS = rb"(?:(?<![" + NOT_BEFORE + rb"])|(?<=-[IL])|(?<=://))"
ENDS = rb"(?![A-Za-z0-9_+~@%\x80-\xff-]|\.[A-Za-z0-9_])"


@dataclass
class Trees:
    """An environment and its staged copy.

    Attributes
    ----------
    prefix, staged : Path
        Their root folders.
    seen_at : Path or None
        Where this process reads the environment, if that is not `prefix`.
    aliases : sequence of Path
        Other paths by which files of the environment may name it.
    base : Path or None
        The prefix of a venv's base interpreter.
    with_base_packages : bool
        The venv was made with --system-site-packages.
    warnings : sequence of str
        What pack has warned of.
    """

    prefix: Path
    staged: Path
    seen_at: Path | None = None
    aliases: Sequence[Path] = ()
    base: Path | None = None
    with_base_packages: bool = False
    warnings: Sequence[str] = ()
    _wrong: list[str] = field(default_factory=list)

    def differences(self) -> list[str]:
        """Return what is wrong with the staged copy: the path, and what differs from what it should be."""
        self._wrong = []
        self._warned = os.fsencode("\n".join(self.warnings))
        self._new = os.fsencode(self.staged)
        prefixes = [self.prefix, self.prefix.resolve(), *self.aliases]
        # A shell's word in single quotes holds a quote as '"'"'.
        self._names = [
            os.fsencode(path).replace(b"'", quote) for path in prefixes for quote in (b"'", b"'\"'\"'")
        ]
        self._replaced = dict.fromkeys(self._names, self._new)
        if self.base and self.base not in (Path("/usr"), Path("/usr/local")):
            self._replaced[os.fsencode(self.base)] = self._new + b"/" + BASE
        longest_first = sorted(self._replaced, key=len, reverse=True)
        names = b"(?:" + b"|".join(map(re.escape, longest_first)) + b")"
        self._pattern = re.compile(BEGINS + names + ENDS)
        self._top = os.fsencode(self.seen_at or self.prefix)
        self._recorded = self._recorded_files()
        expected = dict(walk(self._top, self._new))
        self._compare(self._top, expected)
        there = {
            path for path, _ in staged_paths(self._new) if path.split(b"/")[0] not in (b".envpack", BASE)
        }
        self._extra(there - expected.keys())
        if self.base:
            self._compare_base(os.fsencode(self.base))
        self._all_is_compiled()
        self._links_lead_nowhere_else()
        return self._wrong

    def _say(self, path: bytes, what: str) -> None:
        if path not in self._warned:
            self._wrong.append(f"{os.fsdecode(path)}: {what}")

    def _compare(self, top: bytes, expected: dict[bytes, bytes], lead: bytes = b"") -> None:
        for path, source in expected.items():
            target = os.path.join(self._new, lead, path)
            self._compare_one(lead + path, source, target, top)

    def _compare_one(self, path: bytes, source: bytes, target: bytes, top: bytes) -> None:
        try:
            new = os.lstat(target)
        except FileNotFoundError:
            self._say(path, "is missing")
            return
        old = os.lstat(source)
        if stat.S_ISLNK(old.st_mode):
            wanted = self._wanted_link(source, top)
            if wanted is not None:
                self._compare_link(path, target, new, wanted)
                return
            old = os.stat(source)
        if stat.S_IFMT(old.st_mode) != stat.S_IFMT(new.st_mode):
            self._say(path, f"has type {stat.S_IFMT(new.st_mode):o}, not {stat.S_IFMT(old.st_mode):o}")
            return
        # Folders are made writable, as the copy could not be removed otherwise.
        mode = stat.S_IMODE(old.st_mode) | (0o700 if stat.S_ISDIR(old.st_mode) else 0)
        if stat.S_IMODE(new.st_mode) != mode:
            self._say(path, f"has mode {stat.S_IMODE(new.st_mode):o}, not {mode:o}")
        if not stat.S_ISREG(old.st_mode):
            return
        if path.endswith(b".pyc") and b"__pycache__/" in path and self._source_of(target):
            self._compare_bytecode(path, target)
            return
        if new.st_mtime_ns != old.st_mtime_ns:
            self._say(path, f"has modification time {new.st_mtime_ns}, not {old.st_mtime_ns}")
        self._compare_content(path, source, target)

    def _compare_content(self, path: bytes, source: bytes, target: bytes) -> None:
        old, new = read(source), read(target)
        wanted = self._wanted_content(path, old)
        if new == wanted or (old[:4] == b"\x7fELF" and self._same_but_run_path(path, old, new)):
            return
        if path in self._recorded and new == self._all_replaced(old):
            return  # as conda-unpack leaves it: it knows that what is no path by itself was the placeholder
        at = next((i for i, (a, b) in enumerate(zip(new, wanted, strict=False)) if a != b), None)
        at = min(len(new), len(wanted)) if at is None else at
        here, there = new[max(0, at - 40) : at + 80], wanted[max(0, at - 40) : at + 80]
        self._say(path, f"differs at byte {at}: {here!r}, not {there!r}")

    def _wanted_content(self, path: bytes, old: bytes) -> bytes:
        def new_name(match: re.Match[bytes]) -> bytes:
            return self._replaced[match.group()]

        if path == b"pyvenv.cfg" and self.base:
            old = re.sub(rb"(?<= = )/[^\n ]*", self._in_base, old)
        if self._recorded.get(path) == "binary":
            return self._padded(old)
        if is_text(old):
            return self._pattern.sub(new_name, old)
        if old[:2] == b"#!":
            line, feed, rest = old.partition(b"\n")
            return self._pattern.sub(new_name, line) + feed + rest
        return old

    def _all_replaced(self, data: bytes) -> bytes:
        for name, new in self._replaced.items():
            data = data.replace(name, new)
        return data

    def _in_base(self, match: re.Match[bytes]) -> bytes:
        """Return where a path of the base interpreter is in the staged copy; other paths as they are."""
        folder, name = os.path.split(match.group())
        real = os.path.join(os.path.realpath(folder), name)
        base = os.path.realpath(os.fsencode(self.base or ""))
        if not is_below(real, base):
            return match.group()
        return os.path.normpath(os.path.join(self._new, BASE, os.path.relpath(real, base)))

    def _padded(self, old: bytes) -> bytes:
        """Return a binary as conda-unpack leaves it: each string has another prefix, and NULs to its old length."""
        name = self._names[0]

        def new_string(match: re.Match[bytes]) -> bytes:
            string = match.group(1).replace(name, self._new)
            # A longer prefix takes NULs that conda left there when it put its shorter one in.
            return string.ljust(len(match.group()), b"\0")

        return re.sub(b"(" + re.escape(name) + rb"[^\0]*)\0+", new_string, old)

    def _same_but_run_path(self, path: bytes, old: bytes, new: bytes) -> bool:
        """Tell whether a library differs in its run path only, and that leads into the staged copy."""
        if len(old) != len(new):
            return False
        changed = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
        start, end = changed[0], changed[-1] + 1
        while old[start - 1] and new[start - 1]:
            start -= 1
        while old[end] or new[end]:
            end += 1
        was, now = (data[start:end].rstrip(b"\0").split(b":") for data in (old, new))
        if len(was) != len(now):
            return False
        folder = os.path.dirname(os.path.join(self._new, path))
        for before, after in zip(was, now, strict=True):
            if before == after:
                continue
            wanted = self._pattern.sub(lambda match: self._replaced[match.group()], before)
            if os.path.normpath(after.replace(b"$ORIGIN", folder)) != os.path.normpath(wanted):
                return False
        return True

    def _source_of(self, pyc: bytes) -> bytes | None:
        folder, name = os.path.split(pyc)
        source = os.path.join(os.path.dirname(folder), name.split(b".")[0] + b".py")
        return source if os.path.exists(source) else None

    def _compare_bytecode(self, path: bytes, target: bytes) -> None:
        """A compiled file is valid for the staged source, whatever it was before."""
        source = self._source_of(target)
        assert source is not None
        data = read(target)
        head = data[:16]
        flags = int.from_bytes(head[4:8], "little")
        if flags == 0:
            info = os.stat(source)
            stamp = (int(info.st_mtime) & 0xFFFFFFFF).to_bytes(4, "little") + info.st_size.to_bytes(
                4, "little"
            )
            valid = head[8:] == stamp
        else:
            valid = head[8:] == importlib.util.source_hash(read(source))
        if not valid:
            self._say(path, "is stale")
        code = marshal.loads(data[16:])
        if os.path.basename(code.co_filename) != os.path.basename(os.fsdecode(source)):
            self._say(path, f"has the code of {code.co_filename}")

    def _all_is_compiled(self) -> None:
        """All sources in library folders have a `.pyc`, but those that cannot be compiled."""
        for path, target in staged_paths(self._new):
            if not path.endswith(b".py") or not LIBRARY.match(path):
                continue
            folder, name = os.path.split(target)
            pyc = os.path.join(
                folder, b"__pycache__", name[:-2] + sys.implementation.cache_tag.encode() + b".pyc"
            )
            if not os.path.exists(pyc) and compiles(target):
                self._say(path, "is not compiled")

    # ---- links

    def _wanted_link(self, source: bytes, top: bytes) -> bytes | None:
        """Return where the staged link leads, as an absolute path or literally; None if it is replaced by a copy."""
        target = os.readlink(source)
        relative = os.path.relpath(source, top)
        tops = self._names if top == self._top else [top]
        for name in tops:
            if target == name or target.startswith(name + b"/"):
                lead = b"" if top == self._top else BASE
                return os.path.normpath(os.path.join(self._new, lead, target[len(name) :].lstrip(b"/")))
        place = os.path.normpath(os.path.join(os.path.dirname(source), target))
        if is_below(place, top) and not target.startswith(b"/"):
            return target
        if not os.path.exists(source):
            return target
        base = os.fsencode(self.base) if self.base else None
        real = os.path.realpath(source)
        if base and is_below(real, os.path.realpath(base)):
            return os.path.join(self._new, BASE, os.path.relpath(real, os.path.realpath(base)))
        if os.path.isdir(source) and not is_followed(relative):
            self._must_be_warned_of(relative)
            return place
        return None

    def _must_be_warned_of(self, path: bytes) -> None:
        if path not in self._warned:
            self._wrong.append(f"{os.fsdecode(path)}: leads out of the prefix, and no warning names it")

    def _compare_link(self, path: bytes, target: bytes, info: os.stat_result, wanted: bytes) -> None:
        if not stat.S_ISLNK(info.st_mode):
            self._say(path, f"is not a link to {wanted!r}")
            return
        link = os.readlink(target)
        absolute = os.path.normpath(os.path.join(os.path.dirname(target), link))
        # A link into the base interpreter may take another way to the same file.
        same_base_file = (
            is_below(wanted, os.path.join(self._new, BASE)) and os.path.realpath(target) == wanted
        )
        if wanted not in (link, absolute) and not same_base_file:
            self._say(path, f"leads to {link!r}, not {wanted!r}")

    def _links_lead_nowhere_else(self) -> None:
        for path, target in staged_paths(self._new):
            if not os.path.islink(target) or is_below(os.path.realpath(target), os.path.realpath(self._new)):
                continue
            if os.path.exists(target):
                self._say(path, f"leads out of the staged copy: {os.readlink(target)!r}")

    # ---- what else is in the staged copy

    def _extra(self, paths: set[bytes]) -> None:
        for path in sorted(paths):
            target = os.path.join(self._new, path)
            if path in ACTIVATION and os.path.isdir(os.path.join(self._top, b"conda-meta")):
                continue
            if os.path.basename(path) == b"__pycache__" and os.path.isdir(target):
                continue
            if b"__pycache__/" in path and path.endswith(b".pyc") and self._source_of(target):
                self._compare_bytecode(path, target)
                continue
            self._say(path, "is not in the environment")

    def _compare_base(self, base: bytes) -> None:
        """The base interpreter's copy holds its files and no others, and all of the standard library."""
        lead = BASE + b"/"
        copied = {path[len(lead) :] for path, _ in staged_paths(self._new) if path.startswith(lead)}
        pycs = {path for path in copied if path.endswith(b".pyc") or path.endswith(b"__pycache__")}
        self._compare(base, {path: os.path.join(base, path) for path in copied - pycs}, lead)
        for path in pycs:
            if path.endswith(b".pyc") and self._source_of(os.path.join(self._new, lead + path)):
                self._compare_bytecode(lead + path, os.path.join(self._new, lead + path))
        for path in sorted(self._library_of(base) - copied):
            self._say(lead + path, "is missing")

    def _library_of(self, base: bytes) -> set[bytes]:
        found = set()
        for library in Path(os.fsdecode(base)).glob("lib*/python3.*/os.py"):
            if library.parent.is_symlink():
                continue
            top = os.fsencode(library.parent)
            for path, _ in walk(top, top):
                packages = re.match(rb"(site|dist)-packages/", path) and self.with_base_packages
                if path.endswith((b".py", b".so")) and (packages or not NOT_NEEDED.search(path)):
                    found.add(os.path.relpath(os.path.join(top, path), base))
        return found

    def _recorded_files(self) -> dict[bytes, str]:
        """Return which files conda says to hold its placeholder: path -> what they are, "text" or "binary"."""
        found = {}
        tops = {b"": self._top} | ({BASE + b"/": os.fsencode(self.base)} if self.base else {})
        for lead, top in tops.items():
            for record in Path(os.fsdecode(top), "conda-meta").glob("*.json"):
                for item in (json.loads(record.read_bytes()).get("paths_data") or {}).get("paths") or []:
                    path = os.fsencode(item["_path"])
                    if item.get("prefix_placeholder") and os.path.isfile(os.path.join(top, path)):
                        binary = b"\0" in read(os.path.join(top, path))
                        found[lead + path] = "binary" if binary else "text"
        return found


def walk(top: bytes, staged: bytes, lead: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
    """Yield all paths that a staged copy must have, and the path of each in the environment.

    A link out of the environment is followed as it was in the staged copy: to a folder below `lib` and `bin`.
    """
    with os.scandir(top + b"/" + lead if lead else top) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = lead + entry.name
            yield path, top + b"/" + path
            outside = entry.is_symlink() and not is_below(os.path.realpath(entry.path), os.path.realpath(top))
            followed = outside and is_followed(path) and not os.path.islink(os.path.join(staged, path))
            if entry.is_dir(follow_symlinks=followed):
                yield from walk(top, staged, path + b"/")


def staged_paths(top: bytes) -> Iterator[tuple[bytes, bytes]]:
    for root, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(root, name)
            yield os.path.relpath(path, top), path


def contents(top: Path) -> dict[bytes, tuple[bytes, int]]:
    """Return content and mode of all files and links below a folder, by path."""
    found = {}
    for path, place in staged_paths(os.fsencode(top)):
        if os.path.islink(place):
            found[path] = (os.readlink(place), 0)
        elif not os.path.isdir(place) and not path.startswith(b".envpack/"):
            found[path] = (read(place), os.stat(place).st_mode & 0o777)
    return found


def is_followed(path: bytes) -> bool:
    return re.match(rb"(lib[^/]*|bin)/", path) is not None


def is_below(path: bytes, folder: bytes) -> bool:
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


def is_text(data: bytes) -> bool:
    """Tell by conda-pack's rule: it is UTF-8. Without NUL bytes, another encoding is text, too."""
    if b"\0" not in data:
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def compiles(path: bytes) -> bool:
    try:
        compile(read(path), path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


def read(path: bytes) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read()
