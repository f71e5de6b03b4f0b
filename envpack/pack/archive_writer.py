"""Write one archive: collect an environment's members, compress them into frames, and end with the index."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.archive.encoding import content_id, encode_index
from envpack.archive.index import DIGEST_BYTES, FRAME_BYTES, Index
from envpack.common.locks import try_lock
from envpack.errors import EnvpackError
from envpack.pack import conda as condaenv
from envpack.pack import venv
from envpack.pack.editable import editable_warnings
from envpack.pack.frame_writer import FrameWriter
from envpack.pack.members import DIRECTORY, FILE, HARDLINK, SYMLINK, Member, arrange
from envpack.pack.names import names_of
from envpack.pack.pyc import Compiler
from envpack.pack.scan import Scanner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class ArchiveWriter:
    """Writes the archive of one environment.

    Parameters
    ----------
    prefix : Path
        The environment's root folder.
    kind : str
        "conda" or "venv".
    name : str
        The environment's name, from `store.safe_name`.
    level : int
        zstd's compression level.
    jobs : int
        Number of threads.
    progress : callable, optional
        Called as `progress(done_bytes, total_bytes)`, of uncompressed bytes.
    """

    def __init__(
        self,
        prefix: Path,
        kind: str,
        name: str,
        level: int,
        jobs: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._prefix = prefix
        self._kind = kind
        self._name = name
        self._level = level
        self._jobs = jobs
        self._progress = progress

    def write(self, folder: Path, output: Path | None, state: dict[str, str]) -> tuple[Path, Index]:
        """Write an archive under a temporary name, then give it its own.

        Parameters
        ----------
        folder : Path
            The folder of the archive.
        output : Path or None
            The archive's path (None: `<name>-<pack id>.tar.zst` in the folder).
        state : dict[str, str]
            The environment's state, from `store.environment_state`, to be kept in the index.

        Raises
        ------
        BrokenEnvironmentError
            The environment cannot be packed.
        EnvpackError
            The archive cannot be written.
        """
        collect = condaenv.collect if self._kind == "conda" else venv.collect
        collected, warnings = collect(self._prefix)
        members = arrange(collected, _folder_modes(self._prefix, collected))
        scanner = Scanner(names_of(self._prefix, members))
        fd, temporary = tempfile.mkstemp(prefix=".envpack-", suffix=".tmp", dir=folder)
        try:
            with os.fdopen(fd, "wb") as file, Compiler(self._prefix, members, self._jobs) as compiler:
                with contextlib.suppress(OSError):
                    try_lock(
                        file.fileno(), temporary
                    )  # until this process ends: then another pack may remove it
                total = sum(member.size for member in members)
                frames = FrameWriter(file, self._level, self._jobs, scanner, _counted(self._progress, total))
                written: list[Member] = []
                frames.write(_appending(compiler.members(), written))
                frames.finish(written)
                index = self._index(written, scanner, frames, compiler)
                index.meta["warnings"] = [
                    *warnings,
                    *compiler.warnings,
                    *editable_warnings(self._prefix, members),
                ]
                index.meta.update(state)
                index.meta["pack_id"] = content_id(index)
                file.write(encode_index(index))
                file.flush()
                os.fsync(file.fileno())
                path = output or folder / f"{self._name}-{index.pack_id[:16]}.tar.zst"
                Path(temporary).replace(path)
        except OSError as exc:
            raise EnvpackError(
                f"cannot write an archive in {folder}: {exc}", "Make room there, or choose another --output"
            ) from exc
        finally:
            Path(temporary).unlink(missing_ok=True)
        return path, index

    def _index(
        self, members: list[Member], scanner: Scanner, frames: FrameWriter, compiler: Compiler
    ) -> Index:
        index = Index()
        index.paths = [member.path for member in members]
        kinds = [member.kind for member in members]
        index.set_counts(*(kinds.count(kind) for kind in (DIRECTORY, FILE, HARDLINK, SYMLINK)))
        index.modes = array("H", (member.mode for member in members))
        index.mtimes_ns = array(
            "q", (0 if member.kind == DIRECTORY else member.mtime_ns for member in members)
        )
        index.sizes = array("Q", (member.size if member.kind == FILE else 0 for member in members))
        index.offsets = array("Q", (member.offset for member in members))
        index.digests = b"".join(member.digest for member in members)
        index.links = {number: member.link for number, member in enumerate(members) if member.link}
        index.frame_sizes = array("I", frames.sizes)
        index.frame_raw_sizes = array("I", frames.raw_sizes)
        index.frame_checks = array("I", frames.checks)
        index.frame_keys = bytes(len(frames.checks) * DIGEST_BYTES)
        relocated = {member.path: number for number, member in enumerate(members) if member.record}
        index.meta = {
            "name": self._name,
            "level": self._level,
            "part_bytes": FRAME_BYTES,
            "placeholders": [[os.fsdecode(value), ""] for value in scanner.placeholders],
            "relocations": [[number, *members[number].record] for number in relocated.values()],
            "compile": [
                [relocated[source], os.fsdecode(pyc)]
                for source, pyc in compiler.pyc_paths
                if source in relocated
            ],
            "python": compiler.python,
            "made_at": time.time(),
        }
        index.meta["kind"] = self._kind
        return index


def _appending(members: Iterator[Member], written: list[Member]) -> Iterator[Member]:
    """Yield members, and append each to a list."""
    for member in members:
        written.append(member)
        yield member


def _counted(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None] | None:
    """Return a function that adds up bytes and reports the sum."""
    if progress is None:
        return None
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        progress(min(done, total), total)

    return add


def _folder_modes(prefix: Path, members: list[Member]) -> dict[bytes, int]:
    """Return the permission bits of all parent folders of members, by path."""
    top = os.fsencode(prefix)
    modes: dict[bytes, int] = {}
    for member in members:
        parent = member.path.rpartition(b"/")[0]
        while parent and parent not in modes:
            try:
                modes[parent] = os.lstat(top + b"/" + parent).st_mode & 0o777
            except OSError:
                modes[parent] = 0o755
            parent = parent.rpartition(b"/")[0]
    return modes
