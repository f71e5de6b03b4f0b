"""The frames of an archive: read from an open file, which is complete or still arriving, checked and decoded.

The extractor and `verify` import this module. It imports `envpack.archive` and `envpack.common`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import zstandard

from envpack.archive.index import Index, digest, force_pack, frame_check, show_path
from envpack.common.places import host_name
from envpack.errors import CorruptArchiveError, StageFailedError

if TYPE_CHECKING:
    from envpack.stage.arrival import Arrival


class FrameFile:
    """Frames of an open archive, read by the thread or process that writes them.

    Parameters
    ----------
    fd : int
        The open file.
    index : Index
        The archive's index.
    start : int, bytes, default 0
        Offset of the first frame in the file.
    arrival : Arrival, optional
        Given if the file is still arriving: wait for each frame.
    """

    def __init__(self, fd: int, index: Index, start: int = 0, arrival: Arrival | None = None) -> None:
        self._fd = fd
        self._index = index
        self._starts = [start + at for at in index.frame_starts()]
        self._arrival = arrival

    def read(self, frame: int, buffer: memoryview, ahead: int) -> memoryview:
        """Read one frame into `buffer`; ask the kernel for the frames up to `ahead`, exclusive, as they are next.

        Raises
        ------
        CorruptArchiveError
            The file ends before the frame does.
        StageFailedError
            The file cannot be read, or does not arrive.
        """
        start = self._starts[frame]
        if self._arrival:
            self._arrival.wait(self._starts[frame + 1])
        # A slow file system then fetches the next frames while this one is decoded and written.
        os.posix_fadvise(self._fd, start, self._starts[ahead] - start, os.POSIX_FADV_WILLNEED)
        size = self._index.frame_sizes[frame]
        data = buffer[:size]
        done = 0
        try:
            while done < size:
                more = os.preadv(self._fd, [data[done:]], start + done)
                if not more:
                    raise CorruptArchiveError(
                        f"{self._index.path} was cut short while {host_name()} read it, in frame {frame}",
                        force_pack(self._index),
                    )
                done += more
        except OSError as exc:
            raise StageFailedError(
                f"cannot read {self._index.path} on {host_name()}: {exc.strerror}", "Submit the job again"
            ) from exc
        return data


class Decoder:
    """Decodes and checks one frame after another, always into the same memory."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._buffer = memoryview(bytearray(max(index.frame_raw_sizes, default=0)))
        self._zstd = zstandard.ZstdDecompressor()

    def decoded(self, frame: int, packed: bytes | bytearray | memoryview) -> memoryview:
        """Return a frame's content, valid until the next call.

        Raises
        ------
        CorruptArchiveError
            The frame differs from its checksum.
        """
        index = self._index
        data = self._buffer[: index.frame_raw_sizes[frame]]
        try:
            whole = zstandard.frame_content_size(packed) == len(data)
            if not whole or frame_check(packed) != index.frame_checks[frame]:
                raise _corrupt(index, frame, packed)
            # Into a buffer that has room for all of it, zstd decodes in one go, and checks its checksum.
            done = self._zstd.stream_reader(packed).readinto(data) if data else 0
        except zstandard.ZstdError as exc:
            raise _corrupt(index, frame, packed) from exc
        if done != len(data):
            raise _corrupt(index, frame, packed)
        return data


def _corrupt(index: Index, frame: int, packed: bytes | bytearray | memoryview) -> CorruptArchiveError:
    """Return the error for a damaged frame; it names the first member whose content differs from its checksum."""
    start = sum(index.frame_raw_sizes[:frame])
    end = start + index.frame_raw_sizes[frame]
    data = _decode_start(packed, end - start)
    members = []
    for i in index.files:
        offset = index.offsets[i]
        if offset < end and offset + index.sizes[i] > start:
            members.append(i)
    bad = next((i for i in members if not _is_good(index, i, start, data, end - start)), None)
    if bad is not None:
        where = f"member {show_path(index.paths[bad])}"
    elif members:
        where = f"a header near member {show_path(index.paths[members[0]])}"
    else:
        where = "headers"
    return CorruptArchiveError(
        f"{index.path} is damaged: {where} (frame {frame} of {len(index.frame_sizes)}, byte "
        f"{sum(index.frame_sizes[:frame])}) differs from its checksum, as read on {host_name()}",
        force_pack(index),
    )


def _is_good(index: Index, i: int, start: int, data: bytes, size: int) -> bool:
    offset = index.offsets[i] - start
    if offset < 0 or offset + index.sizes[i] > size:
        # A part of a file that spans frames: it fills this one.
        return False
    return digest(data[offset : offset + index.sizes[i]]) == index.digest_of(i)


def _decode_start(packed: bytes | bytearray | memoryview, size: int) -> bytes:
    """Decode a damaged frame up to the damage."""
    decoder = zstandard.ZstdDecompressor().decompressobj()
    decoded = bytearray()
    view = memoryview(packed)
    try:
        for at in range(0, len(view), 4096):
            decoded += decoder.decompress(view[at : at + 4096])
            if len(decoded) > size:
                break
    except zstandard.ZstdError:
        pass
    return bytes(decoded)
