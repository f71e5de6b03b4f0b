"""`envpack verify`: read all of an archive, or of a staged prefix, and compare it with its index."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from envpack.archive.encoding import decode_index, read_index
from envpack.archive.index import DIGEST_BYTES, Index, digest, remove_and_pack_again, show_path
from envpack.common.places import host_name
from envpack.errors import CorruptArchiveError, StageFailedError
from envpack.stage import extract, marker
from envpack.stage.relocate import Relocation

if TYPE_CHECKING:
    from envpack.common.places import StrPath


class VerifyResult(NamedTuple):
    """What was verified.

    Attributes
    ----------
    path : Path
        The archive or staged prefix.
    pack_id : str
        Its pack id.
    files : int
        Number of files and links.
    size_bytes : int
        Bytes of all files, as packed.
    """

    path: Path
    pack_id: str
    files: int
    size_bytes: int


def verify(path: StrPath) -> VerifyResult:
    """Read all of an archive, or of a staged prefix, and compare it with its index.

    Parameters
    ----------
    path : str or os.PathLike
        The archive, or the staged prefix's folder.

    Raises
    ------
    ArchiveError
        The archive is damaged; the message names the first such member.
    StageFailedError
        The staged prefix is damaged; the message names the first file that is missing or differs.
    """
    path = Path(path)
    if path.is_dir():
        index = _staged_index(path)
        _verify_staged(path, index)
    else:
        index = read_index(path)
        _verify_archive(path, index)
    return VerifyResult(path, index.pack_id, len(index) - len(index.folders), index.size_bytes)


class _Content:
    """Computes a member's digest from its bytes as they come; of a large file, it is the digest of its parts' digests."""

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


def _verify_archive(path: Path, index: Index) -> None:
    files = iter(index.files)
    current = next(files, None)
    content = _Content(index, current) if current is not None else None
    decoder = extract.Decoder(index)
    at = 0
    with path.open("rb") as archive:
        for frame, size in enumerate(index.frame_sizes):
            data = decoder.decoded(frame, archive.read(size))
            end = at + len(data)
            while current is not None and content is not None and index.offsets[current] <= end:
                start = index.offsets[current]
                stop = start + index.sizes[current]
                content.update(data[max(start, at) - at : min(stop, end) - at])
                if stop > end:
                    break
                if not content.is_good():
                    raise CorruptArchiveError(
                        f"{path}: member {show_path(index.paths[current])} differs from its checksum",
                        remove_and_pack_again(index),
                    )
                current = next(files, None)
                content = _Content(index, current) if current is not None else None
            at = end
    if current is not None:
        raise CorruptArchiveError(
            f"{path}: member {show_path(index.paths[current])} is not in the frames",
            remove_and_pack_again(index),
        )


def _staged_index(prefix: Path) -> Index:
    if not marker.is_staged_prefix(prefix):
        raise StageFailedError(
            f"{prefix} on {host_name()} is not a staged prefix: it has no marker",
            "Check the path, or stage the archive",
        )
    path = marker.index_path(prefix)
    try:
        return decode_index(path.read_bytes(), path)
    except OSError as exc:
        raise StageFailedError(
            f"{path} on {host_name()} cannot be read: {exc.strerror}", _stage_again(prefix)
        ) from exc


def _verify_staged(prefix: Path, index: Index) -> None:
    staged_at = Path(str(marker.read_marker(prefix).get("prefix", prefix)))
    relocation = Relocation(index, staged_at)
    compiled = {os.fsencode(pyc) for _, pyc in index.meta.get("compile") or []}
    for i, path in enumerate(index.paths):
        target = prefix / os.fsdecode(path)
        try:
            info = target.lstat()
        except OSError as exc:
            raise _differs(prefix, path, "is missing") from exc
        if i in index.symlinks:
            link = os.fsencode(target.readlink()) if stat.S_ISLNK(info.st_mode) else b""
            if link != relocation.links.get(i, index.links[i]):
                raise _differs(prefix, path, "points elsewhere")
        elif i in index.folders:
            if not stat.S_ISDIR(info.st_mode):
                raise _differs(prefix, path, "is not a folder")
        elif not stat.S_ISREG(info.st_mode):
            raise _differs(prefix, path, "is not a file")
        elif i in index.files and path not in compiled:
            _verify_file(prefix, target, index, i, relocation)


def _verify_file(prefix: Path, target: Path, index: Index, i: int, relocation: Relocation) -> None:
    """Compare a file with its packed bytes; where it was relocated, with the bytes that stood there before."""
    path = index.paths[i]
    content = _Content(index, i)
    at = 0
    with target.open("rb") as file:
        for start, end, put, was in relocation.edits.get(i, []):
            _update(content, file, start - at)
            if file.read(len(put)) != put:
                raise _differs(prefix, path, "does not name this prefix")
            content.update(was)
            at = end
        _update(content, file, None)
    if not content.is_good():
        raise _differs(prefix, path, "has another content")


def _update(content: _Content, file: BinaryIO, size: int | None) -> None:
    while size is None or size > 0:
        chunk = file.read(1 << 20 if size is None else min(size, 1 << 20))
        if not chunk:
            return
        content.update(chunk)
        size = None if size is None else size - len(chunk)


def _differs(prefix: Path, path: bytes, how: str) -> StageFailedError:
    return StageFailedError(f"{prefix} on {host_name()}: {show_path(path)} {how}", _stage_again(prefix))


def _stage_again(prefix: Path) -> str:
    from shlex import quote

    # While it is there, staging could use it again: the warm check compares sizes, not content.
    return f"When no job uses it, remove it and stage the archive again: rm -rf {quote(str(prefix))}"
