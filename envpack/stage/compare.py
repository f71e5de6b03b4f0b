"""Compare a stage with its own index: all files by what lstat(2) says, or by their content.

The stager, `delta` and `verify` import this module. It imports `envpack.archive`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from envpack.archive.index import DIGEST_BYTES, OWN_FOLDER, Index, digest
from envpack.stage import marker

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from envpack.stage.relocate import Edit, Relocation

_CACHE = b"__pycache__"
_VAR_CACHE = b"var/cache/"


class Survey(NamedTuple):
    """What differs between a stage and its index, as far as lstat(2) tells.

    Attributes
    ----------
    damaged : dict[int, str]
        Member number -> what is wrong with it, as the end of a sentence.
    extra : list[bytes]
        Paths of files, folders and links that the index does not have, sorted.
    caches : list[bytes]
        Paths of files that the index does not have in the `__pycache__` of a source that it has. Python writes such
        files, and compilers as Numba do; each of them checks its source's time and size. What programs write to
        `var/cache`, as fontconfig does in conda environments, is in neither list.
    """

    damaged: dict[int, str]
    extra: list[bytes]
    caches: list[bytes]

    @property
    def is_clean(self) -> bool:
        """Whether the stage can be used as it is."""
        return not self.damaged and not self.extra


def survey(prefix: Path, index: Index, relocation: Relocation, noted: Collection[bytes] = ()) -> Survey:
    """Compare a stage with its index: kinds, sizes, modification times, modes, targets of links, and what is there.

    Parameters
    ----------
    prefix : Path
        The staged prefix, a folder.
    index : Index
        Its index.
    relocation : Relocation
        The index's edits for this prefix.
    noted : collection of bytes, optional
        Paths of members that `verify` has found damaged; they count as such.
    """
    seen, folders = _scan(os.fsencode(prefix), index)
    expected = expected_members(prefix, index, relocation)
    compiled = compiled_paths(index)
    damaged: dict[int, str] = {}
    # One comparison of two tables is faster than tens of thousands of single ones.
    if noted or not expected.items() <= seen.items():
        for i in range(index.files.start, len(index)):
            path = index.paths[i]
            if path in noted:
                damaged[i] = "was found damaged by envpack verify"
            elif path in expected and seen.get(path) != expected[path]:
                damaged[i] = _difference(seen.get(path), expected[path], path in folders)
    for i in index.folders:
        if index.paths[i] in noted or index.paths[i] not in folders:
            damaged[i] = "is missing, or is not a folder"
    extra: list[bytes] = []
    caches: list[bytes] = []
    known_folders = set(index.paths[: index.folders.stop])
    for path in seen.keys() - expected.keys() - compiled - known_folders:
        if not path.startswith(_VAR_CACHE):
            (caches if source_of(path, expected) else extra).append(path)
    for path in folders - known_folders - expected.keys():
        parent, _, name = path.rpartition(b"/")
        # Python makes this folder for the files that it writes.
        is_cache = name == _CACHE and parent in folders
        if not is_cache and not path.startswith(_VAR_CACHE) and not _VAR_CACHE.startswith(path + b"/"):
            extra.append(path)
    return Survey(damaged, sorted(extra), sorted(caches))


# Of a file its mode with its type, size and modification time; of a symlink its target.
Seen = tuple[int, int, int] | bytes


def _scan(top: bytes, index: Index) -> tuple[dict[bytes, Seen], set[bytes]]:
    """Return all files and links in the index's folders, and all folders there; never through a symlink."""
    seen: dict[bytes, Seen] = {}
    folders: set[bytes] = set()
    unknown = [b""]
    known = iter(index.paths[: index.folders.stop])
    known_set = set(index.paths[: index.folders.stop])
    while True:
        if unknown:
            folder = unknown.pop()
        else:
            following = next(known, None)
            if following is None:
                return seen, folders
            if following not in folders:
                continue
            folder = following
        lead = folder + b"/" if folder else b""
        try:
            scan = os.scandir(top + b"/" + folder if folder else top)
        except (PermissionError, FileNotFoundError):
            folders.discard(folder)
            continue
        with scan as entries:
            for entry in entries:
                path = lead + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if path != OWN_FOLDER:
                        folders.add(path)
                        if entry.name == _CACHE and path not in known_set:
                            unknown.append(path)
                    continue
                try:
                    if entry.is_symlink():
                        seen[path] = os.readlink(top + b"/" + path)  # noqa: PTH115
                    elif not entry.name.startswith(b".nfs"):
                        # An NFS client keeps what was removed while it was open under such a name.
                        info = entry.stat(follow_symlinks=False)
                        seen[path] = (info.st_mode, info.st_size, info.st_mtime_ns)
                except FileNotFoundError:
                    continue  # a process that uses the stage writes `.pyc` files under temporary names


def expected_members(prefix: Path, index: Index, relocation: Relocation) -> dict[bytes, Seen]:
    """Return what lstat(2) must tell of each file and link of a stage, by path; not of those that a node makes itself.

    Parameters
    ----------
    prefix, index, relocation : Path, Index, Relocation
        As for `survey`.
    """
    time_step_ns = int(marker.read_marker(prefix).get("time_step_ns", 1))
    files = slice(index.files.start, index.files.stop)
    times: Sequence[int] = index.mtimes_ns
    if time_step_ns > 1:
        times = [at // time_step_ns * time_step_ns for at in times]
    modes = [stat.S_IFREG | mode for mode in index.modes[files]]
    expected: dict[bytes, Seen] = dict(
        zip(
            index.paths[files],
            zip(modes, index.sizes[files], times[files], strict=True),
            strict=True,
        )
    )
    for i in relocation.edits:
        expected[index.paths[i]] = (
            stat.S_IFREG | index.modes[i],
            relocation.size(index, i),
            times[i],
        )
    for i in index.hardlinks:
        expected[index.paths[i]] = expected[index.links[i]]
    expected.update((index.paths[i], relocation.links.get(i, index.links[i])) for i in index.symlinks)
    # The node compiled these, or could not: Python does without them.
    for path in compiled_paths(index):
        expected.pop(path, None)
    return expected


def compiled_paths(index: Index) -> set[bytes]:
    """Return the paths of the `.pyc` files that a node makes itself."""
    return {os.fsencode(pyc) for _, pyc in index.meta.get("compile") or []}


def source_of(path: bytes, sources: Container[bytes]) -> bytes | None:
    """Return the source, one of `sources`, in whose `__pycache__` folder a file lies; None if there is none."""
    folder, _, name = path.rpartition(b"/")
    if folder.rpartition(b"/")[2] != _CACHE:
        return None
    while b"." in name:
        name = name.rpartition(b".")[0]
        source = folder.removesuffix(_CACHE) + name + b".py"
        if source in sources:
            return source
    return None


def _difference(seen: Seen | None, expected: Seen, is_folder: bool) -> str:
    if seen is None:
        return "is a folder" if is_folder else "is missing"
    if isinstance(expected, bytes):
        return "points elsewhere"
    if isinstance(seen, bytes) or not stat.S_ISREG(seen[0]):
        return "is not a file"
    if seen[1] != expected[1]:
        return f"has {seen[1]} bytes instead of {expected[1]}"
    return "has another modification time" if seen[2] != expected[2] else "has another mode"


def different_content(prefix: Path, index: Index, relocation: Relocation) -> dict[int, str]:
    """Read every file of a stage; return the numbers of those that differ from the index, and how.

    Parameters
    ----------
    prefix, index, relocation : Path, Index, Relocation
        As for `survey`.
    """
    differing = {}
    compiled = compiled_paths(index)
    numbers = {path: i for i, path in enumerate(index.paths)} if index.hardlinks else {}
    for i in (*index.files, *index.hardlinks):
        if index.paths[i] in compiled:
            continue
        original = numbers[index.links[i]] if i in index.hardlinks else i
        try:
            content = Content(index, original)
            with open_file(index.paths[i], prefix) as file:
                for piece in packed_pieces(file, relocation.edits.get(original, [])):
                    content.update(piece)
            if not content.is_good():
                differing[i] = "has another content"
        except ValueError:
            differing[i] = "has another content"
        except OSError as exc:
            differing[i] = f"cannot be read: {exc.strerror}"
    made = marker.read_marker(prefix).get("compiled", {})
    for i, pyc in index.meta.get("compile") or []:
        if pyc not in made:
            continue
        try:
            with open_file(os.fsencode(pyc), prefix) as file:
                is_good = digest(file.read()).hex() == made[pyc]
        except OSError as exc:
            is_good = exc.errno == errno.ENOENT  # Python does without it
        if not is_good:
            differing.setdefault(i, "has damaged bytecode")
    return differing


def open_file(path: bytes, folder: Path) -> BinaryIO:
    """Open a regular file below a folder for reading.

    Raises
    ------
    OSError
        It cannot be opened, or is something else.
    """
    whole = os.path.join(os.fsencode(folder), path)  # noqa: PTH118
    fd = os.open(whole, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return open(fd, "rb")  # noqa: PTH123
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file")


def packed_pieces(file: BinaryIO, edits: list[Edit]) -> Iterator[bytes]:
    """Return a staged file's content as it was packed: where it was relocated, with the bytes that stood there before.

    Raises
    ------
    ValueError
        The file does not name the staged prefix where it must.
    """
    at = 0
    for start, end, put, was in edits:
        yield from _read(file, start - at)
        if file.read(len(put)) != put:
            raise ValueError("relocated otherwise")
        yield was
        at = end
    yield from _read(file, None)


def _read(file: BinaryIO, size: int | None) -> Iterator[bytes]:
    while size is None or size > 0:
        chunk = file.read(1 << 20 if size is None else min(size, 1 << 20))
        if not chunk:
            return
        yield chunk
        size = None if size is None else size - len(chunk)


class Content:
    """Computes a file's digest from its bytes as they come; of a large file, it is the digest of its parts' digests."""

    def __init__(self, index: Index, member: int) -> None:
        self._part_bytes = int(index.meta["part_bytes"])
        self._is_large = index.sizes[member] > self._part_bytes
        self._expected = index.digest_of(member)
        self._parts = b""
        self._missing = self._part_bytes
        self._state = hashlib.sha256()

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        while self._is_large and len(view) >= self._missing:
            self._state.update(view[: self._missing])
            view = view[self._missing :]
            self._parts += self._state.digest()[:DIGEST_BYTES]
            self._state = hashlib.sha256()
            self._missing = self._part_bytes
        self._state.update(view)
        self._missing -= len(view)

    def is_good(self) -> bool:
        """Tell, after the last byte, whether the digest is the index's."""
        if not self._is_large:
            return self._state.digest()[:DIGEST_BYTES] == self._expected
        if self._missing < self._part_bytes:
            self._parts += self._state.digest()[:DIGEST_BYTES]
        return digest(self._parts) == self._expected
