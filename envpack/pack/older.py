"""An older archive of an environment: what has not changed is copied from it, and not read, compressed or compiled again.

Packing keeps what it needs for this in the index, in `meta["copying"]`:

    rules     names the code that finds relocations, and the placeholders: if they differ, no frame is copied unread
    sources   for each frame 16 bytes that name its members and, by `lstat` results, the files that they were read from
    packed    for each frame the digest of its compressed bytes
    edited    the paths of the members that differ from their conda package
    rigid     the paths of the libraries with run paths that cannot be relocated

A frame is copied unread on the same grounds as a whole archive is reused (`envpack.pack.fingerprint`); but not if a file
of it changed just before it was packed: it may have changed again, within one step of the file system's clock.

Only `envpack.pack` imports this module.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import zstandard

from envpack.archive.encoding import cannot_open, read_index_fd
from envpack.archive.index import DIGEST_BYTES, FRAME_BYTES, PACK_AGAIN, digest
from envpack.errors import CorruptArchiveError

if TYPE_CHECKING:
    from pathlib import Path

    from envpack.archive.index import Index
    from envpack.archive.relocations import Record
    from envpack.pack.members import Member
    from envpack.pack.scan import Scanner

# The longest step of a file system's clock: that of FAT.
CLOCK_STEP_S = 2.0
_NOTHING: dict[str, Any] = {"rules": "", "sources": "", "packed": "", "edited": [], "rigid": []}


class OlderArchive:
    """An older archive of the environment that is being packed.

    Parameters
    ----------
    path : Path
        The archive.
    rules : str
        The value that `rules` has for the archive that is being packed.
    known : Index or None
        The archive's index, if it was read before and the archive has not been replaced since.

    Attributes
    ----------
    path : Path
        The archive.
    index : Index
        Its index.

    Raises
    ------
    ArchiveError
        It cannot be read.
    """

    def __init__(self, path: Path, rules: str, known: Index | None) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise cannot_open(path, exc) from exc
        try:
            self.index = index = read_index_fd(self._fd, path, known)
        except BaseException:
            self.close()
            raise
        copying = _NOTHING | index.meta.get("copying", {})
        self._sources = _numbers(bytes.fromhex(copying["sources"])) if copying["rules"] == rules else {}
        self._settled_ns = int((index.meta["made_at"] - CLOCK_STEP_S) * 1e9)
        self._packed = bytes.fromhex(copying["packed"])
        self._edited = set(map(os.fsencode, copying["edited"]))
        self._rigid = set(map(os.fsencode, copying["rigid"]))
        self._keys = _numbers(index.frame_keys) if self._packed else {}
        self._starts = index.frame_starts()
        self._raw_starts = [0, *accumulate(index.frame_raw_sizes)]
        self._members = {path: member for member, path in enumerate(index.paths)}
        self._records: dict[int, Record] = {member: record for member, *record in index.meta["relocations"]}
        self._decoded = (-1, b"")

    def close(self) -> None:
        """Close the archive."""
        os.close(self._fd)

    def frame_of_sources(self, sources: bytes, newest_ns: int) -> int | None:
        """Return the frame that was made from these sources; None if there is none.

        Parameters
        ----------
        sources : bytes
            16 bytes that name them.
        newest_ns : int
            When the last of them changed, in nanoseconds since 1970.
        """
        return self._sources.get(sources) if newest_ns < self._settled_ns else None

    def frame_of_content(self, key: bytes) -> int | None:
        """Return the frame that has this entry in `frame_keys`; None if there is none."""
        return self._keys.get(key)

    def packed(self, frame: int) -> bytes:
        """Return the compressed bytes of a frame.

        Raises
        ------
        CorruptArchiveError
            They are damaged.
        """
        try:
            packed = os.pread(self._fd, self.index.frame_sizes[frame], self._starts[frame])
        except OSError as exc:
            raise CorruptArchiveError(f"{self.path}: cannot read frame {frame}: {exc}", PACK_AGAIN) from exc
        if digest(packed) != self.packed_digest(frame):
            raise CorruptArchiveError(f"{self.path}: frame {frame} is damaged", PACK_AGAIN)
        return packed

    def packed_digest(self, frame: int) -> bytes:
        """Return the digest of the compressed bytes of a frame."""
        return self._packed[frame * DIGEST_BYTES : (frame + 1) * DIGEST_BYTES]

    def restore(self, member: Member, scanner: Scanner) -> None:
        """Set what packing finds out of a member whose frame is copied unread."""
        number = self._members[member.path]
        member.digest = self.index.digest_of(number)
        member.record = self._records.get(number, [])
        member.edited = member.path in self._edited
        if member.path in self._rigid:
            scanner.rigid.append(member.path)

    def bytecode(self, pyc: bytes, source: bytes, source_digest: bytes) -> int | None:
        """Return the member that is the `.pyc` file of a source with this digest; None if `content` does not have it."""
        member, its_source = self._members.get(pyc), self._members.get(source)
        if member is None or its_source is None or member not in self.index.bytecode:
            return None
        same = self.index.digest_of(its_source) == source_digest
        return member if same and self.index.sizes[member] <= FRAME_BYTES else None

    def content(self, member: int) -> bytes:
        """Return the content of a file that lies in one frame.

        Raises
        ------
        CorruptArchiveError
            The frame is damaged.
        """
        start = self.index.offsets[member]
        frame = bisect_right(self._raw_starts, start) - 1
        if self._decoded[0] != frame:
            decoder = zstandard.ZstdDecompressor()
            self._decoded = frame, decoder.decompress(self.packed(frame))
        at = start - self._raw_starts[frame]
        return self._decoded[1][at : at + self.index.sizes[member]]


def _numbers(names: bytes) -> dict[bytes, int]:
    """Return the number of each name of 16 bytes."""
    return {names[at : at + DIGEST_BYTES]: at // DIGEST_BYTES for at in range(0, len(names), DIGEST_BYTES)}
