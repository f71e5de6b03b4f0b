"""Walk an environment once: every file, folder and link that is packed, with links out of it followed.

Fingerprints and collection both use the result. Only `envpack.pack` imports this module.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from envpack.archive.index import OWN_FOLDER, show_path
from envpack.common.places import host_name
from envpack.errors import BrokenEnvironmentError
from envpack.pack import interpreter as interpreters
from envpack.pack.base_interpreter import BASE_FOLDER, BaseInterpreter, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from envpack.pack.interpreter import Interpreter

# Of a conda prefix, conda-pack omits these too: other environments, the package cache and the like.
OMITTED = frozenset(
    (b"pkgs", b"envs", b"conda-bld", b".conda_lock", b"users", b"conda-recipes", b".index", b".unionfs", b".nonadmin")
)  # fmt: skip
_CODE = re.compile(rb"\.(?:py|so|so\.[\d.]+)\Z|(?:\A|/)(?:[^/]*\.(?:dist-info|egg-info)|conda-meta)(?:/|\Z)")
_DETOUR = re.compile(
    rb"(?:\A|/)(?!\.\.(?:/|\Z))[^/]+/+(?:[^/]+/+)*\.\.(?:/|\Z)|\A/(?:.*/)?\.\.(?:/|\Z)", re.DOTALL
)
_NO_FILES = (b"/proc/", b"/sys/", b"/dev/")  # what lies there is no content
_LINKS_MAX = 40  # as the kernel: path_resolution(7)


class Entry(NamedTuple):
    """A file, a folder or a link that is packed.

    Attributes
    ----------
    path : bytes
        Its path in the archive, relative to the prefix.
    source : bytes
        Where it is; no symlink, unless a link is packed.
    info : os.stat_result
        `lstat(source)`.
    link : bytes or None
        The target of a link, as it is packed.
    """

    path: bytes
    source: bytes
    info: os.stat_result
    link: bytes | None


@dataclass
class Walk:
    """What an environment holds.

    Attributes
    ----------
    prefix : Path
        The environment's root folder.
    kind : str
        "conda" or "venv".
    interpreter : Interpreter
        What its interpreter says; `interpreter.python` is None if it does not run.
    base : BaseInterpreter or None
        The base interpreter that is packed with a venv.
    entries : list[Entry]
        What is packed, sorted by path. Entries in `.envpack-base/` belong to the base interpreter.
    paths : set[bytes]
        The paths of all entries, and the empty path of the prefix.
    roots : list of (bytes, bytes)
        The real path of the prefix, of the base interpreter, and of each followed folder, with its path in the archive.
    excluded : list[bytes]
        What globs exclude, sorted; of an excluded folder the folder alone.
    excluded_bytes : int
        The size of what is excluded.
    warnings : list[str]
        Messages for the user.
    exclude : re.Pattern or None
        Matches the paths, relative to the prefix, that are left out.
    """

    prefix: Path
    kind: str
    interpreter: Interpreter
    base: BaseInterpreter | None = None
    entries: list[Entry] = field(default_factory=list)
    paths: set[bytes] = field(default_factory=set)
    roots: list[tuple[bytes, bytes]] = field(default_factory=list)
    excluded: list[bytes] = field(default_factory=list)
    excluded_bytes: int = 0
    warnings: list[str] = field(default_factory=list)
    exclude: re.Pattern[str] | None = None

    def excludes(self, path: bytes) -> bool:
        """Tell whether a path in the archive is left out if something is there."""
        if self.exclude is None:
            return False
        in_base = path.removeprefix(BASE_FOLDER + b"/")
        return any(self.exclude.match(os.fsdecode(each)) for each in {path, in_base})

    def member(self, path: str) -> bytes | None:
        """Return the path in the archive of a file or folder of this host; None if it is not packed."""
        member = _member(self.roots, os.fsencode(os.path.realpath(path)))
        return member if member in self.paths else None

    def finds_in_copy(self, path: str) -> bool:
        """Tell whether the staged interpreter finds a folder of `sys.path` in the staged copy.

        It must be packed, and be named as a part of the prefix or of the base interpreter: other names are not relocated,
        even if a link in the prefix leads there.
        """
        tops = [self.prefix, Path(os.path.realpath(self.prefix))]
        tops += [self.base.prefix] if self.base is not None else []
        named = any(Path(each).is_relative_to(top) for each in (path, os.path.realpath(path)) for top in tops)
        return named and self.member(path) is not None


def walk_environment(prefix: Path, kind: str, exclude: Sequence[str] = ()) -> Walk:
    """Return what an environment holds, and what of its base interpreter is packed with it.

    A link whose target is packed too stays a link. Of a link to a file elsewhere, the content is packed. A link to a
    folder elsewhere is followed below `lib` and `bin`, and kept in other places. Dangling links are kept.

    Parameters
    ----------
    prefix : Path
        The environment's root folder, an absolute path.
    kind : str
        "conda" or "venv".
    exclude : sequence of str
        Globs, as in `fnmatch`, for paths relative to the prefix, or for absolute paths in it. A folder that matches is
        left out with its content.

    Raises
    ------
    BrokenEnvironmentError
        Files or folders cannot be read, something changed meanwhile, or the globs match what every environment needs.
    """
    return _Walker(prefix, kind, exclude).walk()


def listed(names: Sequence[str], most: int = 10) -> str:
    """Return names for a message: the first ones, and the number of the others."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} others" if len(names) > most else shown


class _Walker:
    def __init__(self, prefix: Path, kind: str, exclude: Sequence[str]) -> None:
        self._top = os.fsencode(prefix)
        asked = interpreters.ask(prefix)
        home = read_settings(prefix).get("home") if kind == "venv" else None
        base = os.path.dirname(home) if home else os.fspath(prefix)  # noqa: PTH120
        self._walk = Walk(prefix, kind, asked or interpreters.guess(prefix, base))
        if exclude:
            self._walk.exclude = re.compile("|".join(translate(_relative(glob, prefix)) for glob in exclude))
        self._omitted = OMITTED if kind == "conda" else frozenset()
        self._euid = os.geteuid()
        self._paths = self._walk.paths
        self._links: list[int] = []  # numbers of the entries that are links, until `_settle`
        self._excluded: set[bytes] = set()
        self._unreadable: list[str] = []
        self._special: list[bytes] = []
        self._special_modes: list[bytes] = []
        self._closed: list[bytes] = []
        self._followed: list[bytes] = []
        self._kept: list[bytes] = []
        self._roots = self._walk.roots
        self._real_folders: dict[bytes, bytes] = {}
        self._aliases: dict[bytes, bytes | None] = {}

    def walk(self) -> Walk:
        try:
            return self._collect()
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise changed(os.fsencode(exc.filename)) from exc

    def _collect(self) -> Walk:
        walk = self._walk
        base = BaseInterpreter(walk.prefix, walk.interpreter)
        if not base.prefix.is_relative_to(os.path.realpath(walk.prefix)) and base.prefix.is_dir():
            walk.base = base
        self._paths.add(b"")
        self._roots.append((os.path.realpath(self._top), b""))
        if walk.base is not None:
            self._roots.append((os.fsencode(walk.base.prefix), BASE_FOLDER))
        self._scan(self._top, b"")
        if needed := [path for path in (b"bin", b"bin/python", b"pyvenv.cfg") if path in self._excluded]:
            raise BrokenEnvironmentError(
                f"--exclude leaves out {os.fsdecode(needed[0])} of {walk.prefix}: nothing could run without it",
                "Exclude less",
            )
        if walk.base is not None:
            self._scan_base(walk.base)
        while self._links:
            numbers, self._links = self._links, []
            for number in sorted(numbers, key=lambda n: walk.entries[n].path):
                self._settle(number)
        if self._unreadable:
            raise BrokenEnvironmentError(
                f"cannot read {len(self._unreadable)} files or folders of {walk.prefix} on {host_name()}: "
                f"{listed(sorted(self._unreadable))}",
                "Make them readable, remove them, or leave them out: envpack pack --exclude GLOB",
            )
        walk.entries.sort(key=lambda entry: entry.path)
        walk.excluded = sorted(self._excluded)
        self._warn()
        return walk

    # ---- one lstat for each file

    def _scan(self, top: bytes, member: bytes, keep: Callable[[bytes], bool] | None = None) -> None:
        """Add all that a folder holds.

        Parameters
        ----------
        top : bytes
            The folder.
        member : bytes
            Its path in the archive.
        keep : callable, optional
            Tells of a path whether it is packed.
        """
        entries, paths, links = self._walk.entries, self._paths, self._links
        exclude, euid = self._walk.exclude, self._euid
        stack = [(top, member)]
        while stack:
            source, folder = stack.pop()
            start = folder + b"/" if folder else b""
            for found, info in self._read_folder(source):
                path = start + found.name
                mode = info.st_mode
                if not folder and (found.name == OWN_FOLDER or found.name in self._omitted):
                    continue
                if keep is not None and not keep(path):
                    continue
                if exclude is not None and self._is_excluded(path):
                    continue
                link = None
                if stat.S_ISREG(mode):
                    if mode & 0o7000:
                        self._special_modes.append(path)
                    if euid and mode & 0o444 != 0o444 and not (mode & 0o400 and info.st_uid == euid):
                        self._check_readable(found.path)
                elif stat.S_ISDIR(mode):
                    stack.append((found.path, path))
                    if mode & 0o7000:
                        self._special_modes.append(path)
                    if mode & 0o700 != 0o700:
                        self._closed.append(path)
                elif stat.S_ISLNK(mode):
                    links.append(len(entries))
                    link = os.readlink(found.path)  # noqa: PTH115
                else:
                    self._special.append(path)
                    continue
                paths.add(path)
                entries.append(Entry(path, found.path, info, link))

    def _read_folder(self, source: bytes) -> Iterator[tuple[os.DirEntry[bytes], os.stat_result]]:
        try:
            with os.scandir(source) as found:
                for entry in found:
                    yield entry, entry.stat(follow_symlinks=False)
        except PermissionError:
            self._unreadable.append(os.fsdecode(source))

    def _check_readable(self, source: bytes) -> None:
        if not os.access(source, os.R_OK, effective_ids=True):
            self._unreadable.append(os.fsdecode(source))

    def _is_excluded(self, path: bytes) -> bool:
        if not self._walk.excludes(path):
            return False
        self._excluded.add(path)
        return True

    def _scan_base(self, base: BaseInterpreter) -> None:
        """Add the base interpreter's files, but not those of a prefix that lies in it."""
        top = os.fsencode(base.prefix)
        inner = os.fsencode(os.path.relpath(os.path.realpath(self._walk.prefix), base.prefix))
        keep_path = base.keeps()

        def keep(path: bytes) -> bool:
            path = path[len(BASE_FOLDER) + 1 :]
            return path != inner and keep_path(path)

        for root in base.roots():
            self._add_parents(top, root)
            source, path = top + b"/" + root, BASE_FOLDER + b"/" + root
            if self._is_excluded(path):
                continue
            info = os.lstat(source)
            link = os.readlink(source) if stat.S_ISLNK(info.st_mode) else None  # noqa: PTH115
            if link is not None:
                self._links.append(len(self._walk.entries))
            self._paths.add(path)
            self._walk.entries.append(Entry(path, source, info, link))
            if stat.S_ISDIR(info.st_mode):
                self._scan(source, path, keep)

    def _add_parents(self, top: bytes, root: bytes) -> None:
        """Add the base interpreter's folder, and the folders in it that a root lies in."""
        folder = root
        while folder:
            folder = folder.rpartition(b"/")[0]
            path = BASE_FOLDER + b"/" + folder if folder else BASE_FOLDER
            if path not in self._paths:
                source = top + b"/" + folder
                self._paths.add(path)
                self._walk.entries.append(Entry(path, source, os.stat(source), None))  # noqa: PTH116

    # ---- links

    def _settle(self, number: int) -> None:
        """Decide what is packed of a link."""
        entry = self._walk.entries[number]
        target = entry.link
        assert target is not None
        root = self._root_of(entry.path)
        if target.startswith(b"/"):
            named = _member([(self._top, b""), *self._roots_for(entry.path)], target)
            inside = named is not None and root == b"" == self._root_of(named)
        else:
            named = os.path.normpath(os.path.join(os.path.dirname(entry.path), target))  # noqa: PTH118, PTH120
            named = b"" if named == b"." else named
            inside = not root or named == root or named.startswith(root + b"/")
            inside = inside and named != b".." and not named.startswith(b"../")
        # What `..` means behind a link cannot be told from the text.
        plain = not _DETOUR.search(target)
        if plain and named in self._paths and (inside or target.startswith(b"/")):
            if not inside:
                self._link_to(number, named)
            return
        try:
            real, info = self._resolved(entry.source)
        except PermissionError:
            self._unreadable.append(f"{os.fsdecode(entry.source)} (a link to {show_path(target)})")
            return
        except OSError:
            return  # it dangles, or is a loop
        member = self._member_of(real, entry.path)
        if member in self._paths:
            if not inside or not (plain or member == named):
                self._link_to(number, member)
        elif member is not None and self._was_excluded(member):
            return
        elif stat.S_ISREG(info.st_mode) and not (real + b"/").startswith(_NO_FILES):
            self._walk.entries[number] = Entry(entry.path, real, info, None)
            self._followed.append(entry.path)
            self._check_readable(real)
        elif stat.S_ISDIR(info.st_mode) and self._may_follow(entry.path, real):
            self._walk.entries[number] = Entry(entry.path, real, info, None)
            self._followed.append(entry.path)
            self._roots.append((real, entry.path))
            self._scan(real, entry.path)
        else:
            self._walk.entries[number] = entry._replace(link=target if target[:1] == b"/" else real)
            self._kept.append(entry.path)

    def _link_to(self, number: int, member: bytes) -> None:
        entry = self._walk.entries[number]
        link = os.path.relpath(b"/" + member, b"/" + entry.path.rpartition(b"/")[0])
        self._walk.entries[number] = entry._replace(link=link)

    def _root_of(self, path: bytes) -> bytes:
        """Return the path in the archive of what a path belongs to: a followed folder, the base, or the prefix."""
        found = b""
        for _, root in self._roots:
            if len(root) > len(found) and (path == root or path.startswith(root + b"/")):
                found = root
        return found

    def _was_excluded(self, path: bytes) -> bool:
        while path and path not in self._excluded:
            path = path.rpartition(b"/")[0]
        return path != b""

    def _may_follow(self, path: bytes, real: bytes) -> bool:
        """Tell whether a link to a folder outside is followed: never to a folder that holds what is packed."""
        first = path.removeprefix(BASE_FOLDER + b"/").partition(b"/")[0]
        own = [root for root, member in self._roots if member in (b"", BASE_FOLDER)]
        in_library = first.startswith(b"lib") or first == b"bin"
        return (
            in_library
            and not (real + b"/").startswith(_NO_FILES)
            and not any(_member([(real, b"")], root) is not None for root in own)
        )

    def _resolved(self, path: bytes) -> tuple[bytes, os.stat_result]:
        """Return what a link names in the end, and its `lstat` result. The folders of links are looked up once."""
        for _ in range(_LINKS_MAX):
            folder, _, name = path.rpartition(b"/")
            if name in (b"", b".", b".."):
                path = os.path.realpath(path, strict=True)
                return path, os.lstat(path)
            path = self._real_folder(folder or b"/").rstrip(b"/") + b"/" + name
            info = os.lstat(path)
            if not stat.S_ISLNK(info.st_mode):
                return path, info
            path = os.path.join(path.rpartition(b"/")[0] or b"/", os.readlink(path))  # noqa: PTH115, PTH118
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def _real_folder(self, folder: bytes) -> bytes:
        real = self._real_folders.get(folder)
        if real is None:
            real = self._real_folders[folder] = os.path.realpath(folder, strict=True)
        return real

    def _roots_for(self, path: bytes) -> list[tuple[bytes, bytes]]:
        """Return the folders that a link at a path may lead into and stay a link.

        They are the prefix, the base interpreter, and the followed folders that the link itself lies in: no link in
        those can be followed for ever. Of another followed folder, each link gets what it names.
        """
        return [
            (real, root)
            for real, root in self._roots
            if root in (b"", BASE_FOLDER) or path.startswith(root + b"/")
        ]

    def _member_of(self, real: bytes, path: bytes) -> bytes | None:
        """Return the path in the archive of what a link names; also if it names it through another mount of the prefix.

        Parameters
        ----------
        real : bytes
            What the link names, with symlinks followed.
        path : bytes
            The link's path in the archive.
        """
        member = _member(self._roots_for(path), real)
        if member is not None:
            return member
        folder, _, name = real.rpartition(b"/")
        if folder not in self._aliases:
            self._aliases[folder] = self._inside_alias(folder)
        above = self._aliases[folder]
        return None if above is None else b"/".join(filter(None, (above, name)))

    def _inside_alias(self, folder: bytes) -> bytes | None:
        top = os.stat(self._top)  # noqa: PTH116
        below: list[bytes] = []
        while folder:
            if os.path.samestat(os.stat(folder), top):  # noqa: PTH116
                return b"/".join(reversed(below))
            folder, _, name = folder.rpartition(b"/")
            below.append(name)
        return None

    # ---- what the user should know

    def _warn(self) -> None:
        walk, warnings = self._walk, self._walk.warnings
        python = walk.prefix / "bin" / "python"
        if walk.kind == "venv" and not python.exists():
            warnings.append(f"{python} does not exist; was its base interpreter removed?")
        if walk.interpreter.python is None and (walk.kind == "venv" or os.path.lexists(python)):
            warnings.append(
                f"{python} does not run on this host, so missing and stale .pyc files are not compiled"
            )
        here = sorted(name.decode() for name in self._omitted if os.path.lexists(self._top + b"/" + name))
        if here:
            warnings.append(
                f"not packed, as conda keeps no part of an environment in them: {', '.join(here)}"
            )
        if self._special:
            special = listed(sorted(map(show_path, self._special)))
            warnings.append(f"not packed, as neither file, folder nor link: {special}")
        if self._special_modes:
            names = listed(sorted(map(show_path, self._special_modes)))
            warnings.append(f"packed without their set-uid, set-gid or sticky bits: {names}")
        if self._closed:
            names = listed(sorted(map(show_path, self._closed)))
            warnings.append(f"the staged copies of these folders can be written to by their owner: {names}")
        self._followed = [path for path in self._followed if not path.startswith(BASE_FOLDER + b"/")]
        if self._followed:
            followed = listed(sorted(map(show_path, self._followed)), 3)
            warnings.append(
                f"{len(self._followed)} links lead out of {walk.prefix}; what they name was packed in their place: "
                f"{followed}"
            )
        if self._kept:
            kept = listed([f"{show_path(path)}" for path in sorted(self._kept)])
            warnings.append(
                f"{len(self._kept)} links to folders outside of {walk.prefix} were packed as links, so the nodes read "
                f"what they name from where it is: {kept}"
            )
        needed = [path for path in walk.excluded if self._measure_excluded(path)]
        if needed:
            warnings.append(
                f"{len(needed)} excluded files or folders hold code or metadata of installed packages: "
                f"{listed(list(map(show_path, needed)))}"
            )

    def _measure_excluded(self, path: bytes) -> bool:
        """Add up the size of what is excluded; tell whether it holds code or metadata."""
        code = _CODE.search(path) is not None
        top, base = self._top, self._walk.base
        if base is not None and path.startswith(BASE_FOLDER + b"/"):
            top, path = os.fsencode(base.prefix), path[len(BASE_FOLDER) + 1 :]
        stack = [top + b"/" + path]
        while stack:
            source = stack.pop()
            info = os.lstat(source)
            if stat.S_ISREG(info.st_mode):
                self._walk.excluded_bytes += info.st_size
            elif stat.S_ISDIR(info.st_mode):
                stack += [found.path for found, _ in self._read_folder(source)]
            code = code or _CODE.search(source[len(top) + 1 :]) is not None
        return code


def _relative(glob: str, prefix: Path) -> str:
    """Return a glob for paths relative to the prefix, from one that a user has typed."""
    return glob.removeprefix(f"{prefix}/").removeprefix("./").rstrip("/")


def changed(path: bytes) -> BrokenEnvironmentError:
    """Return the error for something that vanished or changed while the environment was walked or packed."""
    return BrokenEnvironmentError(
        f"{show_path(path)} changed while it was packed",
        "Pack again when nothing installs into the environment, or writes to it",
    )


def _member(roots: list[tuple[bytes, bytes]], path: bytes) -> bytes | None:
    """Return the path in the archive of an absolute path, by the first, or longest, root that it begins with."""
    best = None
    for root, member in roots:
        if (path == root or path.startswith(root.rstrip(b"/") + b"/")) and (
            best is None or len(root) > len(best[0])
        ):
            best = root, member
    if best is None:
        return None
    rest = path[len(best[0]) :].strip(b"/")
    return b"/".join(filter(None, (best[1], rest)))
