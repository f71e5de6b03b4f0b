"""A node's copy of the archive while it arrives: it is checked frame by frame, staged, and passed on to other agents.

One thread writes the copy (`agent.tree`), so that neither decryption nor a slow disk blocks the agent. The agent's event
loop sends it to other agents. The copy is a file without a name on the job folder's file system, in the format of
`envpack.stage.arrival`; the kernel removes it when the agent and its staging child end, even if they are killed.

Only the agent imports this module. At its start it imports envpack.stage.arrival, but nothing else of the stager.
"""

import asyncio
import contextlib
import errno
import itertools
import json
import os
import queue
from bisect import bisect_right
from pathlib import Path

from envpack.archive.index import frame_check
from envpack.common.places import STAGE_ROOT_VARIABLE
from envpack.stage import arrival
from mpiboot.agent.folders import nameless_file
from mpiboot.agent.threads import in_thread, in_time
from mpiboot.protocol.channel import Connection
from mpiboot.protocol.channel_messages import ArchivePart, ArchiveRequest

# The most that one message carries, usually several frames. With 4 MiB, the sender uses a fifth more CPU time.
PART_BYTES = 1 << 20
# While nothing new arrives, the receiver gets an empty part this often.
NOTHING_NEW_S = 2.0
# How long the receiver may take to accept a part.
SEND_TIMEOUT_S = 300.0
# How long the staging child may take to start from a slow file system and to read the index. A receiver that waits for
# it accepts nothing meanwhile, so this must be less than SEND_TIMEOUT_S.
TABLE_TIMEOUT_S = 240.0
DISK_TIMEOUT_S = 600.0
STAGER_FAILED = "the process that stages the environment has failed"


class DamagedError(OSError):
    """The received bytes are not the archive's: take the rest from another source."""


class CopyError(Exception):
    """This node cannot keep a copy; another source would not help."""


class ArchiveCopy:
    """This node's copy of the archive.

    Parameters
    ----------
    folder : path
        The job's folder on the node.
    number : int
        Number of the `StageOrder`.
    stages : path
        The user's folder in the staging root. If there is no room for the copy, stages there go that nobody uses.

    Attributes
    ----------
    number : int
        Number of the `StageOrder`.
    descriptors : tuple of int
        For the staging child: the file, and the reading end of a pipe that is closed when nothing more arrives.
    size : int, bytes
        How much of the copy has arrived and passed the check.
    frames_start : int, bytes
        Offset of the first frame in the file; 0 until the index has arrived.
    is_whole : bool
        Whether the whole archive has arrived.
    failure : str or None
        Why nothing more arrives, unless the copy is whole.
    passed_by : list of str
        The sources that failed, each with the reason.
    evicted : list of str
        Names of the stages that were removed for want of room.
    """

    def __init__(self, folder: Path, number: int, stages: Path) -> None:
        self.number = number
        self._stages = stages
        self._file = nameless_file(folder, "archive-copy")
        pipe, end = os.pipe()
        self._ends = [end]  # empty once closed: the event loop and the filling thread may both close it
        self.descriptors = (self._file, pipe)
        self.size = 0
        self.frames_start = 0
        self.is_whole = False
        self.failure: str | None = None
        self.passed_by: list[str] = []
        self.evicted: list[str] = []
        self._unchecked = bytearray()
        self._table: queue.SimpleQueue[tuple[list[int], list[int]] | None] = queue.SimpleQueue()
        # Offsets at which the frames begin, then the end of the last one; and the frames' checksums.
        self._borders: list[int] = []
        self._checks: list[int] = []
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def learn(self, line: bytes) -> bool:
        """Read all frames' sizes and checksums from the staging child's first line; return False if it has none."""
        with contextlib.suppress(ValueError):
            if table := json.loads(line).get("frames"):
                self._table.put((table["sizes"], table["checks"]))
                return True
        self._table.put(None)
        return False

    def explain(self, error: str) -> str:
        """Return why staging failed: the staging child's error, or why the archive did not arrive."""
        why = error if self.failure in (None, STAGER_FAILED) else self.failure
        return f"{why} (passed by: {'; '.join(self.passed_by)})" if self.passed_by else str(why)

    def forget_unchecked(self) -> None:
        """Drop what has arrived but is unchecked; the next source starts after the last checked byte."""
        self._unchecked.clear()

    def take(self, data: bytes | memoryview) -> None:
        """Check the next bytes of the archive, and append them to the file.

        Raises
        ------
        DamagedError
            The bytes differ from their checksum.
        CopyError
            The file cannot be written, or the staging child did not report the checksums.
        """
        if self._unchecked or not self.frames_start:
            self._unchecked += data
            if len(self._unchecked) < self._needed():
                return
            data = bytes(self._unchecked)
            self._unchecked.clear()
        # Most parts begin and end where frames do, and are not copied.
        view = memoryview(data)
        if not self.frames_start:
            if not arrival.is_intact(view):
                raise DamagedError("the index differs from its checksum")
            end = arrival.HEAD.size + arrival.index_size(view)
            self._append(view[:end])
            self.frames_start = end
            view = view[end:]
        self._learn_borders()
        end = self._frames_end(view)
        self._append(view[:end])
        self._unchecked += view[end:]
        self.is_whole = self.size == self._borders[-1]

    def _needed(self) -> int:
        """Return how many bytes are needed for the next check: those of the index, or of the next frame."""
        if self._borders:
            frame = bisect_right(self._borders, self.size)
            return self._borders[min(frame, len(self._checks))] - self.size
        if len(self._unchecked) < arrival.HEAD.size:
            return arrival.HEAD.size
        try:
            return arrival.HEAD.size + arrival.index_size(self._unchecked)
        except ValueError as error:
            raise DamagedError(str(error)) from error

    def _learn_borders(self) -> None:
        """Wait until the staging child has reported the frames' sizes and checksums."""
        if not self._borders:
            try:
                table = self._table.get(timeout=TABLE_TIMEOUT_S)
            except queue.Empty:
                raise CopyError("the process that stages the environment does not read the index") from None
            if not table:
                raise CopyError(STAGER_FAILED)
            sizes, self._checks = table
            self._borders = list(itertools.accumulate(sizes, initial=self.frames_start))

    def _frames_end(self, view: memoryview) -> int:
        """Check the whole frames at the beginning of `view`; return the offset at which the last of them ends."""
        frame = bisect_right(self._borders, self.size) - 1
        end = 0
        while frame < len(self._checks):
            size = self._borders[frame + 1] - self._borders[frame]
            if end + size > len(view):
                break
            if frame_check(view[end : end + size]) != self._checks[frame]:
                raise DamagedError(f"frame {frame} of {len(self._checks)} differs from its checksum")
            end += size
            frame += 1
        return end

    def _append(self, data: memoryview) -> None:
        """Append checked bytes to the file; raise CopyError if that fails."""
        if not data:
            return
        if self.failure:
            raise CopyError(self.failure)
        try:
            self._write(data)
        except OSError as error:
            raise CopyError(
                f"cannot keep the archive below {self._stages}: {error.strerror}. Submit the job with "
                "--transport direct, which keeps no archive there, or "
                f"set {STAGE_ROOT_VARIABLE} to a folder with more room"
            ) from error
        if self.failure:
            # The event loop has freed the file meanwhile: stagers need not read all of the archive.
            os.ftruncate(self._file, 0)
        self.size += len(data)
        self._tell()

    def _write(self, data: memoryview) -> None:
        """Write data at the end of the file; if there is no room, remove the stages that nobody uses, and try again."""
        try:
            write_at(self._file, data, self.size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            from envpack.stage.gc import evict_all

            if not (evicted := evict_all(self._stages)):
                raise
            self.evicted += evicted
            self._write(data)

    def end(self, failure: str | None = None) -> None:
        """Let the staging child and other agents know that nothing more arrives, because of `failure` if it is given."""
        self.failure = self.failure or failure
        with contextlib.suppress(IndexError):
            os.close(self._ends.pop())
        self._tell()

    def free(self) -> None:
        """Free the file's space. The file stays open, because a thread may still read it."""
        self.end("all nodes have the environment")
        os.ftruncate(self._file, 0)

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the agent has ended
            self._loop.call_soon_threadsafe(self._tell_servers)

    def _tell_servers(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def serve(self, connection: Connection, request: ArchiveRequest) -> None:
        """Send another agent the copy as it arrives; return when all of it is sent, or this node's copy has failed.

        Raises
        ------
        OSError
            The connection is lost, or the other agent accepted nothing for SEND_TIMEOUT_S.
        """
        at = request.start
        while not self.failure and not (self.is_whole and at >= self.size):
            if at < self.size:
                size = self.part_end(at, min(self.size, at + PART_BYTES)) - at
                data = await in_thread(DISK_TIMEOUT_S, os.pread, self._file, size, at)
                at += len(data)
            else:
                data = b""
                with contextlib.suppress(TimeoutError):
                    await in_time(self._news.wait(), NOTHING_NEW_S)
                    continue
            await send_in_time(connection, data)

    def part_end(self, start: int, limit: int) -> int:
        """Return the end of a part that begins at `start`: the last end of a frame up to `limit`, or else `limit`."""
        border = bisect_right(self._borders, limit) - 1
        return self._borders[border] if border >= 0 and self._borders[border] > start else limit


async def send_in_time(connection: Connection, data: bytes) -> None:
    """Send a part; raise OSError if the other side does not accept it within SEND_TIMEOUT_S."""
    try:
        await in_time(connection.send(ArchivePart(), data), SEND_TIMEOUT_S)
    except TimeoutError as error:
        raise ConnectionError(f"nothing was accepted for {SEND_TIMEOUT_S:g} s") from error


def write_at(file: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at an offset in bytes."""
    while data:
        done = os.pwrite(file, data, offset)
        data, offset = data[done:], offset + done
