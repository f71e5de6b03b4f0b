"""Write one archive: an environment's members, compressed into frames, and the index.

Only `envpack.pack.packing` imports this module.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envpack.archive import relocations
from envpack.archive.encoding import content_id, encode_index
from envpack.archive.index import FRAME_BYTES, Index, digest, show_path
from envpack.common import elf as common_elf
from envpack.common.locks import try_lock
from envpack.pack import elf as pack_elf
from envpack.pack import scan
from envpack.pack.frame_writer import FrameWriter
from envpack.pack.members import DIRECTORY, FILE, HARDLINK, SYMLINK, Member
from envpack.pack.pyc import Compiler
from envpack.pack.walk import listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from envpack.pack.collect import Collected
    from envpack.pack.older import OlderArchive


def write_archive(
    collected: Collected,
    prefix: Path,
    folder: Path,
    output: Path | None,
    *,
    meta: dict[str, Any],
    jobs: int,
    older: OlderArchive | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[Path, Index, int]:
    """Write an archive under a temporary name, then give it its own.

    Parameters
    ----------
    collected : Collected
        The environment's members, and what is known of them.
    prefix : Path
        The environment's root folder.
    folder : Path
        The folder of the archive.
    output : Path or None
        The archive's path (None: `<name>-<pack id>.tar.zst` in the folder).
    meta : dict
        For the index: the environment's `name`, `kind` and state, and zstd's `level`.
    jobs : int
        Number of threads.
    older : OlderArchive or None
        The archive from which unchanged frames are copied.
    progress : callable or None
        Called as `progress(done_bytes, total_bytes)`, of uncompressed bytes.

    Returns
    -------
    tuple[Path, Index, int]
        The archive, its index, and the number of frames that were copied.

    Raises
    ------
    BrokenEnvironmentError
        A file changed while it was packed.
    OSError
        A file of the environment cannot be read, or the archive cannot be written.
    """
    began_at = time.time()
    fd, temporary = _temporary_file(folder)
    try:
        with (
            os.fdopen(fd, "wb") as file,
            Compiler(prefix, collected, jobs, folder, older) as compiler,
        ):
            total = sum(member.size for member in collected.members)
            frames = FrameWriter(
                file, meta["level"], jobs, collected.scanner, older, _counted(progress, total)
            )
            members: list[Member] = []
            frames.write(_appending(compiler.members(), members))
            file.flush()
            with ThreadPoolExecutor(1) as thread:  # the index needs no disk
                syncing = thread.submit(os.fsync, fd)
                frames.finish(members)
                index = _index(members, frames)
                index.meta = {**meta, "made_at": began_at} | _meta(
                    collected, compiler.pyc_paths, members, frames
                )
                index.meta["pack_id"] = content_id(index)
                encoded = encode_index(index)
            syncing.result()
            file.write(encoded)
            file.flush()
            os.fsync(fd)
            # While it is locked: another pack could remove it.
            path = output or folder / f"{index.name}-{index.pack_id[:16]}.tar.zst"
            Path(temporary).replace(path)
    finally:
        with contextlib.suppress(OSError):
            Path(temporary).unlink(missing_ok=True)
    return path, index, sum(frame.copied for frame in frames.frames)


def _temporary_file(folder: Path) -> tuple[int, str]:
    """Make a file and lock it: once this process ends, another pack may remove it."""
    while True:
        fd, path = tempfile.mkstemp(prefix=".envpack-", suffix=".tmp", dir=folder)
        try:
            if try_lock(fd, path):
                return fd, path
        except OSError:
            return fd, path  # no locks here: nobody removes it
        os.close(fd)  # another pack was faster, and has removed it


def rules(collected: Collected) -> str:
    """Return what `envpack.pack.older` calls `rules`."""
    modules = (scan, pack_elf, common_elf, relocations)
    code = [Path(str(module.__file__)).read_bytes() for module in modules]
    names = (collected.placeholders, collected.scanner.base_packages)
    return digest(b"".join(code) + repr(names).encode()).hex()


def _index(members: list[Member], frames: FrameWriter) -> Index:
    index = Index()
    index.paths = [member.path for member in members]
    kinds = [member.kind for member in members]
    index.set_counts(
        kinds.count(DIRECTORY),
        kinds.count(FILE),
        kinds.count(HARDLINK),
        kinds.count(SYMLINK),
        sum(member.bytecode for member in members),
    )
    index.modes = array("H", (member.mode for member in members))
    index.mtimes_ns = array("q", (0 if member.kind == DIRECTORY else member.mtime_ns for member in members))
    index.sizes = array("Q", (member.size if member.kind == FILE else 0 for member in members))
    index.offsets = array("Q", (member.offset for member in members))
    index.digests = b"".join(member.digest for member in members)
    index.links = {number: member.link for number, member in enumerate(members) if member.link}
    index.frame_sizes = array("I", (frame.packed_size for frame in frames.frames))
    index.frame_raw_sizes = array("I", (frame.raw_size for frame in frames.frames))
    index.frame_checks = array("I", (frame.check for frame in frames.frames))
    index.frame_keys = b"".join(frame.key for frame in frames.frames)
    return index


def _meta(
    collected: Collected, pyc_paths: Iterable[tuple[bytes, bytes]], members: list[Member], frames: FrameWriter
) -> dict[str, Any]:
    """Return what the index says of relocations, bytecode, warnings, and of copying from this archive."""
    relocated = {member.path: number for number, member in enumerate(members) if member.record}
    return {
        "part_bytes": FRAME_BYTES,
        "placeholders": [[os.fsdecode(old), os.fsdecode(new)] for old, new in collected.placeholders],
        "relocations": [[number, *members[number].record] for number in relocated.values()],
        "compile": [
            [relocated[source], os.fsdecode(pyc)] for source, pyc in pyc_paths if source in relocated
        ],
        "python": collected.python,
        "warnings": [*collected.warnings, *collected.scanner.warnings(), *_edited(members)],
        "copying": {
            "rules": rules(collected),
            "sources": b"".join(frame.sources for frame in frames.frames).hex(),
            "packed": b"".join(frame.packed_digest for frame in frames.frames).hex(),
            "edited": [os.fsdecode(member.path) for member in members if member.edited],
            "rigid": sorted(map(os.fsdecode, collected.scanner.rigid)),
        },
    }


def _edited(members: Iterable[Member]) -> list[str]:
    """Return the warning about files that differ from what conda installed."""
    paths = sorted(show_path(member.path) for member in members if member.edited and not member.bytecode)
    if not paths:
        return []
    return [
        f"{len(paths)} files differ from their conda packages; they are packed as they are: {listed(paths)}"
    ]


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
