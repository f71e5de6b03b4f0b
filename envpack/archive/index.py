"""The index of an archive in memory: what the archive holds, and how its content is named and checked.

Any module may import this one; it imports nothing of envpack. `envpack.archive.encoding` reads and writes the index.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from array import array
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

# The stager's own folder in a staged prefix: its marker and a copy of the index.
OWN_FOLDER = b".envpack"
# Frames of this size stay in the cache of the core that decodes and writes them: faster than 4 MB, for a few more bytes.
FRAME_BYTES = 1 << 20
DIGEST_BYTES = 16


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """Return the first 16 bytes of sha256: enough to name content, half the index's size."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def frame_check(packed: bytes | bytearray | memoryview) -> int:
    """Return a checksum of a frame's head and of its last bytes, which are zstd's checksum of its content (RFC 8878).

    Hashing all of it would cost a node a tenth of its time, or half where its CPU has no instructions for that.
    """
    return zlib.crc32(packed[-4:], zlib.crc32(packed[:32]))


class Index:
    """What an archive holds: one column per property, one entry per member, in the order of the tar stream.

    Columns rather than a record per member: a node parses 25,000 members in a few milliseconds.

    Attributes
    ----------
    meta : dict
        `name`, `kind` ("conda" or "venv"), `prefix`, `python`, `placeholders`, `relocations`, `compile`, …
    paths : list[bytes]
        Relative to the prefix.
    folders, files, hardlinks, symlinks : range
        Member numbers: all folders come first, then all files, and so on. There are no other kinds.
    modes, mtimes_ns, sizes, offsets : array
        `offsets` are those of a file's content in the uncompressed tar stream.
    digests : bytes
        16 bytes per member, of the file's content as packed; of a file of more than `part_bytes`, of the digests of
        its parts.
    links : dict[int, bytes]
        Member number -> a symlink's target, or the path a hard link is another name of.
    frame_sizes, frame_raw_sizes : array
        Bytes per frame, compressed and not.
    frame_checks : array
        `frame_check` of each frame.
    """

    __slots__ = (
        "digests", "files", "folders", "frame_checks", "frame_raw_sizes", "frame_sizes", "hardlinks", "links",
        "meta", "modes", "mtimes_ns", "offsets", "path", "paths", "raw", "sizes", "symlinks",
    )  # fmt: skip

    def __init__(self) -> None:
        self.path: Path | None = None
        self.raw = b""
        self.meta: dict[str, Any] = {}
        self.paths: list[bytes] = []
        self.folders = self.files = self.hardlinks = self.symlinks = range(0)
        self.modes = array("H")
        self.mtimes_ns = array("q")
        self.sizes = array("Q")
        self.offsets = array("Q")
        self.digests = b""
        self.links: dict[int, bytes] = {}
        self.frame_sizes = array("I")
        self.frame_raw_sizes = array("I")
        self.frame_checks = array("I")

    def __len__(self) -> int:
        return len(self.paths)

    def set_counts(self, *counts: int) -> None:
        """Number the members: so many folders, files, hard links and symlinks."""
        ends = [sum(counts[:n]) for n in range(5)]
        self.folders, self.files, self.hardlinks, self.symlinks = map(range, ends, ends[1:])

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """How many folders, files, hard links and symlinks there are."""
        return len(self.folders), len(self.files), len(self.hardlinks), len(self.symlinks)

    @property
    def pack_id(self) -> str:
        return str(self.meta["pack_id"])

    @property
    def name(self) -> str:
        """The environment's name, safe as part of a file name."""
        return str(self.meta["name"])

    @property
    def kind(self) -> str:
        return str(self.meta["kind"])

    @property
    def prefix(self) -> str:
        """The prefix that was packed."""
        return str(self.meta["prefix"])

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, as packed."""
        return sum(self.sizes)

    @property
    def archive_bytes(self) -> int:
        """Bytes of all frames: what a stager has to read, but for the index."""
        return sum(self.frame_sizes)

    def digest_of(self, member: int) -> bytes:
        return self.digests[member * DIGEST_BYTES : (member + 1) * DIGEST_BYTES]

    def frame_starts(self) -> list[int]:
        """Return where each frame starts in the archive, and after the last one where the index does."""
        starts = [0]
        for size in self.frame_sizes:
            starts.append(starts[-1] + size)
        return starts


def show(path: bytes) -> str:
    """Return a member's path for a message: readable, on one line, whatever its bytes."""
    text = os.fsdecode(path)
    return text if text.isprintable() else ascii(text)
