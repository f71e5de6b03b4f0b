"""Bytecode: which `.pyc` files of an environment follow from their source, and compiling those that are missing or stale.

Only `envpack.pack.archive_writer` imports this module.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from bisect import insort
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from envpack.archive.bytecode import CHILD, HEADER_BYTES, header
from envpack.archive.index import digest
from envpack.pack.members import DIRECTORY, FILE, Member, arrange, order

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

    from envpack.pack.collect import Collected
    from envpack.pack.older import OlderArchive

_CACHE = b"/__pycache__/"
# Flags in the header: the file is valid while its source has a modification time and a size (PEP 552).
_TIMESTAMP = bytes(4)
_HASHED = (b"\1\0\0\0", b"\3\0\0\0")


class Compiler:
    """A context manager that adds `.pyc` files to the members of an archive, valid where they will be staged.

    Parameters
    ----------
    prefix : Path
        The environment's root folder.
    collected : Collected
        The environment's members, its interpreter, and the folders whose sources are compiled.
    jobs : int
        Number of processes that compile, and of threads that read.
    folder : Path
        Where temporary files are made.
    older : OlderArchive or None
        An archive that may have the bytecode.

    Attributes
    ----------
    pyc_paths : list[tuple[bytes, bytes]]
        Path of each source in the libraries, and of its `.pyc`. Relocated ones are compiled on the node.
    """

    def __init__(
        self,
        prefix: Path,
        collected: Collected,
        jobs: int,
        folder: Path,
        older: OlderArchive | None,
    ) -> None:
        python: dict[str, Any] | None = collected.python
        self._prefix = prefix
        self._excludes = collected.excludes
        self._python = python
        self._magic = bytes.fromhex(python["magic"]) if python else b""
        self._libraries = tuple(library + b"/" for library in collected.libraries)
        self._jobs = jobs
        self._folder = folder
        self._older = older if older and older.index.meta.get("python") == python else None
        self._children: list[subprocess.Popen[bytes]] = []
        self._requests: list[IO[bytes]] = []
        self.pyc_paths: list[tuple[bytes, bytes]] = []
        headers = _mark_bytecode(collected.members, jobs)
        self._members = arrange(collected.members)
        # Sorted as they are yielded: what a child compiles is read in the order in which it was asked for.
        self._to_make = dict(sorted(self._missing(headers).items())) if python else {}

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()
        for request in self._requests:
            request.close()

    def members(self) -> Iterator[Member]:
        """Yield folders, files, bytecode, links, in the archive's order."""
        older = {pyc: self._in_older(pyc, source) for pyc, source in self._to_make.items()}
        compiled = [source for pyc, source in self._to_make.items() if older[pyc] is None]
        self._start(compiled)
        outputs = {source.path: self._children[n % len(self._children)] for n, source in enumerate(compiled)}
        modes = {member.path: member.mode for member in self._members if member.kind == DIRECTORY}
        folders = {pyc.rpartition(b"/")[0] for pyc in self._to_make}
        # With the modes that Python gives them.
        new = [Member(path, DIRECTORY, modes[path.rpartition(b"/")[0]]) for path in folders - modes.keys()]
        made = [Member(pyc, FILE, bytecode=True) for pyc in self._to_make]
        members = [member for member in self._members if member.path not in self._to_make]
        for member in [*new, *made]:
            insort(members, member, key=order)
        for member in members:
            source = self._to_make.get(member.path)
            if source is None:
                yield member
                continue
            number, output = older[member.path], outputs.get(source.path)
            code = _read_code(output) if output else self._older_code(number)
            if code:
                data = header(self._magic, source.mtime_ns, source.size) + code
                yield Member(member.path, FILE, 0o644, source.mtime_ns, len(data), data=data, bytecode=True)

    def _missing(self, headers: dict[bytes, bytes]) -> dict[bytes, Member]:
        """Return the `.pyc` files to be made: path -> source."""
        assert self._python is not None
        tag = self._python["cache_tag"].encode()
        # A link or a file there keeps Python from writing bytecode, and packing from adding some.
        taken = {
            member.path
            for member in self._members
            if member.kind != DIRECTORY and member.path.endswith(_CACHE[:-1])
        }
        missing = {}
        for source in self._members:
            path = source.path
            if source.kind != FILE or not path.endswith(b".py") or not path.startswith(self._libraries):
                continue
            folder, _, name = path.rpartition(b"/")
            cache = folder + _CACHE[:-1]
            pyc = folder + _CACHE + name[:-2] + tag + b".pyc"
            if cache in taken or self._excludes(pyc) or self._excludes(cache):
                continue
            self.pyc_paths.append((path, pyc))
            start = headers.get(pyc, b"")
            hashed = start[:4] == self._magic and start[4:8] in _HASHED
            if not hashed and start != header(self._magic, source.mtime_ns, source.size):
                missing[pyc] = source
        return missing

    def _in_older(self, pyc: bytes, source: Member) -> int | None:
        """Return the number of the member of the older archive that is the bytecode of this source."""
        if self._older is None:
            return None
        try:
            with open(source.source, "rb") as file:  # noqa: PTH123
                return self._older.bytecode(pyc, source.path, digest(file.read()))
        except OSError:
            return None

    def _older_code(self, number: int | None) -> bytes:
        assert self._older is not None and number is not None
        return self._older.content(number)[HEADER_BYTES:]

    def _start(self, sources: list[Member]) -> None:
        """Start interpreters that compile every n-th source each; each waits until its output is read."""
        count = min(self._jobs, len(sources))
        for n in range(count):
            # Where the archive is written: a full file system is then the same error.
            request = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            self._requests.append(request)
            for source in sources[n::count]:
                name = os.path.join(os.fsencode(self._prefix), source.path)  # noqa: PTH118
                request.write(source.source + b"\0" + name + b"\0")
            request.seek(0)
            self._children.append(
                subprocess.Popen(
                    [self._prefix / "bin" / "python", "-I", "-S", "-B", "-c", CHILD],
                    stdin=request,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            )


def _read_code(child: subprocess.Popen[bytes]) -> bytes:
    """Return the next code that a child has compiled; no bytes if the source does not compile."""
    assert child.stdout is not None
    size = int.from_bytes(child.stdout.read(4), "little")
    code = child.stdout.read(size)
    return code if len(code) == size else b""


def _mark_bytecode(members: list[Member], jobs: int) -> dict[bytes, bytes]:
    """Mark the members that follow from their source: `.pyc` files with a modification time, whose source is a member.

    Returns
    -------
    dict[bytes, bytes]
        The path of each `.pyc` file in a `__pycache__` folder, and the first 16 bytes of it; no bytes if its source was
        edited after it was compiled, within the second that it names.
    """
    files = {member.path: member for member in members if member.kind == FILE}
    caches = [member for member in files.values() if member.path.endswith(b".pyc") and _CACHE in member.path]
    headers: dict[bytes, bytes] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for some in pool.map(_read_headers, (caches[n::jobs] for n in range(jobs))):
            headers.update(some)
    for member in caches:
        source = files.get(_source_of(member.path))
        if headers[member.path][4:8] == _TIMESTAMP and source is not None:
            member.bytecode = True
            if 0 < source.mtime_ns - member.mtime_ns < source.mtime_ns % 1_000_000_000:
                headers[member.path] = b""
    return headers


def _read_headers(members: list[Member]) -> dict[bytes, bytes]:
    headers = {}
    for member in members:
        try:
            fd = os.open(member.source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            headers[member.path] = b""  # whoever packs it names the error
            continue
        try:
            headers[member.path] = os.read(fd, HEADER_BYTES)
        finally:
            os.close(fd)
    return headers


def _source_of(pyc: bytes) -> bytes:
    """Return the path of a `.pyc` file's source: `a/__pycache__/b.TAG.pyc` or `b.TAG.opt-1.pyc` -> `a/b.py`."""
    folder, _, name = pyc.removesuffix(b".pyc").rpartition(_CACHE)
    stem, _, optimized = name.rpartition(b".")
    if optimized.startswith(b"opt-"):
        stem = stem.rpartition(b".")[0]
    return folder + b"/" + stem + b".py"
