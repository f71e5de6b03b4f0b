"""Take files from an older stage on the node, so that only what it does not have is read from the archive.

Only the stager imports this module.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.archive.encoding import decode_index
from envpack.archive.index import DIGEST_BYTES
from envpack.common.locks import open_folder, open_lock_file, try_lock
from envpack.errors import EnvpackError
from envpack.stage import compare, gc, marker, relocate, temporaries

if TYPE_CHECKING:
    from envpack.archive.index import Index
    from envpack.stage.extract import Extractor

# A file that is relocated anew is taken into memory.
_REBUILT_MAX_BYTES = 1 << 26


class OlderStage:
    """An older stage, and the files of an archive that it has. It is locked against removal and repair until `close`.

    Parameters
    ----------
    prefix : Path
        The older staged prefix.
    fds : list[int]
        Descriptors that hold its locks.
    index : Index
        Its index.
    new_index : Index
        The archive's index.
    new_relocation : Relocation
        The archive's edits for the prefix that is to be staged.

    Attributes
    ----------
    linked : list[int]
        Numbers, in the archive, of files that can be hard-linked: by the indexes, path, staged content, mode and time
        are the same. `put` omits those that lstat(2) shows to have changed.
    rebuilt : list[tuple[int, int]]
        Numbers, in the archive and in the older stage, of files of the same path and content as packed, that are
        relocated otherwise, or have another mode or time.
    """

    def __init__(
        self,
        prefix: Path,
        fds: list[int],
        index: Index,
        new_index: Index,
        new_relocation: relocate.Relocation,
    ) -> None:
        self.prefix = prefix
        self._fds = fds
        self._index = index
        self._relocation = relocate.Relocation(index, prefix)
        self.linked: list[int] = []
        self.rebuilt: list[tuple[int, int]] = []
        damaged = marker.damaged_paths(prefix)
        made_on_nodes = compare.compiled_paths(index) | compare.compiled_paths(new_index)
        numbers = {index.paths[i]: i for i in index.files if index.paths[i] not in damaged}
        edits, new_edits = self._relocation.edits, new_relocation.edits
        same_parts = index.meta["part_bytes"] == new_index.meta["part_bytes"]
        for i in new_index.files:
            path = new_index.paths[i]
            old = numbers.get(path)
            if old is None or new_index.sizes[i] != index.sizes[old] or path in made_on_nodes:
                continue
            at, at_old = i * DIGEST_BYTES, old * DIGEST_BYTES
            if (
                new_index.digests[at : at + DIGEST_BYTES] != index.digests[at_old : at_old + DIGEST_BYTES]
                or not same_parts
            ):
                continue
            if (
                new_index.mtimes_ns[i] == index.mtimes_ns[old]
                and new_index.modes[i] == index.modes[old]
                and new_edits.get(i) == edits.get(old)
            ):
                self.linked.append(i)
            elif index.sizes[old] <= _REBUILT_MAX_BYTES:
                self.rebuilt.append((i, old))

    def put(self, extractor: Extractor) -> tuple[set[int], int]:
        """Make the files that this stage still has, in the extractor's folder.

        Hot loop: one lstat(2) and one link(2) for each file.

        Returns
        -------
        tuple[set[int], int]
            The numbers of the files that were made, and how many of them are hard links.
        """
        made = set()
        expected = compare.expected_members(self.prefix, self._index, self._relocation)
        folders = self._folders()
        source_fd, target_fd, paths = self._fds[-1], extractor.root_fd, extractor.index.paths
        stat_, link = os.stat, os.link
        for i in self.linked:
            path = paths[i]
            if path.rpartition(b"/")[0] not in folders:
                continue
            try:
                info = stat_(path, dir_fd=source_fd, follow_symlinks=False)
                if (info.st_mode, info.st_size, info.st_mtime_ns) != expected[path]:
                    continue
                link(path, path, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
            except OSError as exc:
                # Whatever else is wrong with the older stage, the archive has the file.
                if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
            else:
                made.add(i)
        count = len(made)
        for i, old in self.rebuilt:
            content = self._packed(i, old, extractor.index)
            if content is not None:
                edits = extractor.relocation.edits.get(i, [])
                extractor.write_file(i, relocate.apply(content, edits), time.time_ns())
                made.add(i)
        return made, count

    def _folders(self) -> set[bytes]:
        """Return the folders that are still there; none that is reached through a symlink."""
        found = {b""}
        for i in self._index.folders:
            path = self._index.paths[i]
            with contextlib.suppress(OSError):
                info = os.stat(path, dir_fd=self._fds[-1], follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode) and path.rpartition(b"/")[0] in found:
                    found.add(path)
        return found

    def _packed(self, i: int, old: int, new_index: Index) -> bytes | None:
        """Return a file's content as it was packed; None if it is not as its index says."""
        try:
            with compare.open_file(self._index.paths[old], self.prefix) as file:
                content = b"".join(compare.packed_pieces(file, self._relocation.edits.get(old, [])))
        except (OSError, ValueError):
            return None
        check = compare.Content(new_index, i)
        check.update(content)
        return content if check.is_good() else None

    def close(self) -> None:
        """Release the locks."""
        while self._fds:
            os.close(self._fds.pop())


def find(prefix: Path, index: Index, relocation: relocate.Relocation) -> OlderStage | None:
    """Find the older stage to take files from: of the same name first, then the one that was used last.

    Parameters
    ----------
    prefix : Path
        The prefix that is to be staged.
    index : Index
        The archive's index.
    relocation : Relocation
        Its edits for that prefix.

    Returns
    -------
    OlderStage or None
        None if this user has no stage, from this boot of the node, that is whole enough, or others work on all of them.
    """
    found = [path for _, path in reversed(gc.stages(prefix.parent)) if path != prefix]
    for path in sorted(found, key=lambda path: path.name[:-17] != index.name):
        stage = _open(path, index, relocation)
        if stage is not None:
            return stage
    return None


def _open(path: Path, index: Index, relocation: relocate.Relocation) -> OlderStage | None:
    fds: list[int] = []
    stage = None
    lock = temporaries.stager_lock(path)
    try:
        # Nobody removes it then, nor puts files back while they are linked.
        fds.append(open_lock_file(lock))
        if not try_lock(fds[0], lock):
            return None
        fds.append(open_folder(path))
        if try_lock(fds[1], path, shared=True) and marker.is_trusted(path):
            own = decode_index(marker.index_path(path).read_bytes(), marker.index_path(path))
            stage = OlderStage(path, fds, own, index, relocation)
            if not stage.linked and not stage.rebuilt:
                stage = None
    except (OSError, EnvpackError):
        # It is damaged, or of another version.
        return None
    finally:
        if stage is None:
            for fd in fds:
                os.close(fd)
    return stage
