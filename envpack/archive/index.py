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

# envpack's own folder in a staged prefix, with the marker and a copy of the index.
OWN_FOLDER = b".envpack"
# A frame of this size stays in the cache of the core that decodes and writes it. Faster than 4 MB, for a few more bytes.
FRAME_BYTES = 1 << 20
DIGEST_BYTES = 16
# The remedy for a file that has no good index: packing makes it anew.
PACK_AGAIN = "Pack the environment again: envpack pack --prefix DIR"


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """Return the first 16 bytes of the sha256 of some data: enough to name content, at half the size."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def frame_check(packed: bytes | bytearray | memoryview) -> int:
    """Return a checksum of a frame's head and of its last bytes, which are zstd's checksum of its content (RFC 8878).

    To hash the whole frame would cost a node a tenth of the staging time, and half of it if its CPU has no instructions
    for sha256.
    """
    return zlib.crc32(packed[-4:], zlib.crc32(packed[:32]))


class Index:
    """What an archive holds: one column per property, with one entry per member, in the order of the tar stream.

    Columns instead of a record per member let a node parse 25,000 members in a few milliseconds.

    Attributes
    ----------
    path : Path or None
        The archive, for messages.
    raw : bytes
        The skippable frame that this index was read from.
    meta : dict
        `name`, `kind` ("conda" or "venv"), `prefix`, `python`, `placeholders`, `relocations`, `compile`, …
        `placeholders` are pairs: a text, and the suffix; the staged prefix with the suffix replaces the text.
    paths : list[bytes]
        The members' paths, relative to the prefix.
    folders, files, hardlinks, symlinks : range
        Member numbers: all folders come first, then all files, and so on. There are no other kinds.
    bytecode : range
        The last ones of `files`: `.pyc` files that follow from their source, found or made by packing. They are no
        part of the pack id, so an archive keeps its id if they are compiled anew.
    modes : array
        Permission bits.
    mtimes_ns : array
        Modification times, in nanoseconds since 1970; 0 for folders.
    sizes : array
        Bytes of a file's content as packed; 0 for other members.
    offsets : array
        Where a file's content starts in the uncompressed tar stream, in bytes.
    digests : bytes
        For each member 16 bytes: the digest of the file's content as packed. If the file has more than `part_bytes`
        bytes, it is the digest of its parts' digests.
    links : dict[int, bytes]
        Member number -> the target of a symlink, or the path of the file that a hard link shares.
    frame_sizes, frame_raw_sizes : array
        Bytes of each frame, compressed and uncompressed.
    frame_checks : array
        `frame_check` of each frame.
    frame_keys : bytes
        For each frame 16 bytes that name its uncompressed content: the digest of its pieces' tar headers and digests.
    """

    __slots__ = (
        "bytecode", "digests", "files", "folders", "frame_checks", "frame_keys", "frame_raw_sizes", "frame_sizes",
        "hardlinks", "links", "meta", "modes", "mtimes_ns", "offsets", "path", "paths", "raw", "sizes", "symlinks",
    )  # fmt: skip

    def __init__(self) -> None:
        self.path: Path | None = None
        self.raw = b""
        self.meta: dict[str, Any] = {}
        self.paths: list[bytes] = []
        self.folders = self.files = self.bytecode = self.hardlinks = self.symlinks = range(0)
        self.modes = array("H")
        self.mtimes_ns = array("q")
        self.sizes = array("Q")
        self.offsets = array("Q")
        self.digests = b""
        self.links: dict[int, bytes] = {}
        self.frame_sizes = array("I")
        self.frame_raw_sizes = array("I")
        self.frame_checks = array("I")
        self.frame_keys = b""

    def __len__(self) -> int:
        return len(self.paths)

    def set_counts(self, folders: int, files: int, hardlinks: int, symlinks: int, bytecode: int = 0) -> None:
        """Set the ranges of member numbers from the numbers of members; `bytecode` of the files are such."""
        ends = [
            0,
            folders,
            folders + files,
            folders + files + hardlinks,
            folders + files + hardlinks + symlinks,
        ]
        self.folders, self.files, self.hardlinks, self.symlinks = map(range, ends, ends[1:])
        self.bytecode = range(max(self.files.start, self.files.stop - bytecode), self.files.stop)

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """The parameters of `set_counts`."""
        return (
            len(self.folders), len(self.files), len(self.hardlinks), len(self.symlinks), len(self.bytecode),
        )  # fmt: skip

    @property
    def pack_id(self) -> str:
        """64 hexadecimal digits that name the content."""
        return str(self.meta["pack_id"])

    @property
    def name(self) -> str:
        """The environment's name, safe as part of a file name."""
        return str(self.meta["name"])

    @property
    def kind(self) -> str:
        """Either "conda" or "venv"."""
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
        """Bytes of all frames: what a stager reads besides the index."""
        return sum(self.frame_sizes)

    def digest_of(self, member: int) -> bytes:
        """Return a member's entry in `digests`."""
        return self.digests[member * DIGEST_BYTES : (member + 1) * DIGEST_BYTES]

    def key_of(self, frame: int) -> bytes:
        """Return a frame's entry in `frame_keys`."""
        return self.frame_keys[frame * DIGEST_BYTES : (frame + 1) * DIGEST_BYTES]

    def frame_starts(self) -> list[int]:
        """Return the offset in the archive of each frame, and last that of the index."""
        starts = [0]
        for size in self.frame_sizes:
            starts.append(starts[-1] + size)
        return starts


def force_pack(index: Index) -> str:
    """Return the remedy for an archive with damaged frames and a good index."""
    from shlex import quote

    path = index.path
    # Not below a home, so the user has named it; nor a batch system's copy.
    is_named = path is not None and path.name.endswith(".tar.zst") and path.parent.parent.name != "packs"
    output = f" --output {quote(str(path))}" if is_named else ""
    return f"Pack the environment again: envpack pack --force --prefix {quote(index.prefix)}{output}"


def show_path(path: bytes) -> str:
    """Return a member's path for a message: readable, on one line, whatever its bytes."""
    text = os.fsdecode(path)
    return text if text.isprintable() else ascii(text)
