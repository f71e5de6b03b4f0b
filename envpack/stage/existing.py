"""The stage that a node has already: can it be used as it is, what does it lack, or must it be made anew?

Only the stager imports this module.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from envpack.archive.encoding import decode_index
from envpack.archive.index import show_path
from envpack.common.locks import open_folder, try_lock
from envpack.common.places import STAGE_ROOT_VARIABLE, host_name
from envpack.errors import ArchiveError, StageFailedError
from envpack.stage import compare, marker, temporaries
from envpack.stage.relocate import Relocation

if TYPE_CHECKING:
    from pathlib import Path

    from envpack.archive.index import Index


class Existing(NamedTuple):
    """A stage to be used.

    Attributes
    ----------
    fd : int
        Its folder; locked alone if something is to be changed and no process uses it.
    lacking : set[int]
        Numbers, in the archive, of the members to put back.
    foreign : list[bytes]
        Paths of what is to be taken out.
    """

    fd: int
    lacking: set[int]
    foreign: list[bytes]


def look(prefix: Path, index: Index, relocation: Relocation, *, force: bool) -> Existing | None:
    """Compare the stage that a node has with its own index, and with the archive's if something is wrong.

    Parameters
    ----------
    prefix : Path
        The staged prefix. The caller is its only stager.
    index : Index
        The archive's index.
    relocation : Relocation
        Its edits for this prefix.
    force : bool
        Read every file.

    Returns
    -------
    Existing or None
        None if the node has no stage, or had one that no process uses and that could not be trusted: it is removed.

    Raises
    ------
    StageFailedError
        Something is to be taken out of a stage that a process uses.
    """
    try:
        info = prefix.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(info.st_mode):
        # No process uses it as a prefix, and it lies in this user's own folder.
        prefix.unlink()
        return None
    if info.st_mode & 0o700 != 0o700:
        prefix.chmod(0o700)
    fd = open_folder(prefix)
    try:
        found = _look(prefix, fd, index, relocation, force)
    except BaseException:
        os.close(fd)
        raise
    if found is None:
        os.close(fd)
    return found


def _look(prefix: Path, fd: int, index: Index, relocation: Relocation, force: bool) -> Existing | None:
    lacking, survey = _compare(prefix, index, relocation, force)
    if lacking is not None and not lacking and not survey.extra:
        return Existing(fd, set(), [])
    if try_lock(fd, prefix):
        if lacking is None:
            temporaries.remove_tree(temporaries.put_aside(prefix))
            return None
    elif survey.extra:
        names = ", ".join(show_path(path) for path in survey.extra[:10])
        raise StageFailedError(
            f"{prefix} on {host_name()} has files that are not the environment's ({len(survey.extra)} in all), which "
            f"cannot be removed while a process uses it: {names}",
            f"End the jobs that use it, or choose another staging root: --root or {STAGE_ROOT_VARIABLE}",
        )
    if lacking is None:
        lacking = set(range(len(index)))
    made_here = compare.compiled_paths(index)
    names_of_lacking = {index.paths[i] for i in lacking}
    # They may come from a source that was changed, and cannot be told from good ones.
    stale = [path for path in survey.caches if compare.source_of(path, names_of_lacking)]
    return Existing(fd, {i for i in lacking if index.paths[i] not in made_here}, survey.extra + stale)


def _compare(
    prefix: Path, index: Index, relocation: Relocation, force: bool
) -> tuple[set[int] | None, compare.Survey]:
    """Return what is damaged, as numbers in the archive; None if the stage cannot be trusted at all."""

    def survey(index: Index, relocation: Relocation) -> compare.Survey:
        found = compare.survey(prefix, index, relocation, marker.damaged_paths(prefix))
        if force:
            found.damaged.update(compare.different_content(prefix, index, relocation))
        return found

    own = _own_index(prefix, index) if marker.is_trusted(prefix, index.pack_id) else None
    other_bytecode: set[int] = set()
    if own is not None and own is not index:
        # Packed at another time: the same content, perhaps other times and bytecode.
        found = survey(own, Relocation(own, prefix))
        if found.is_clean:
            return set(), found
        had = {own.paths[i]: own.digest_of(i) for i in own.bytecode}
        other_bytecode = {i for i in index.bytecode if had.get(index.paths[i]) != index.digest_of(i)}
    found = survey(index, relocation)
    return None if own is None else other_bytecode | found.damaged.keys(), found


def _own_index(prefix: Path, index: Index) -> Index | None:
    """Return the stage's own index, which is `index` if their bytes are equal; None if it cannot be read."""
    path = marker.index_path(prefix)
    try:
        raw = path.read_bytes()
        return index if raw == index.raw else decode_index(raw, path)
    except (OSError, ArchiveError):
        return None
