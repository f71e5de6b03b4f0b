"""Stage an archive on this node: from a file that the node can read, or from one that is still arriving."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envpack.archive.encoding import cannot_open, decode_index, read_index_fd
from envpack.common.places import default_stage_root, user_folder
from envpack.errors import CorruptArchiveError
from envpack.stage import root
from envpack.stage.stager import Stager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envpack.archive.index import Index
    from envpack.common.places import StrPath
    from envpack.stage.arrival import Arrival
    from envpack.stage.stager import StageResult


def stage(
    archive: StrPath,
    root_folder: StrPath | None = None,
    *,
    jobs: int | None = None,
    expected_pack_id: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    transport: str = "direct",
    force: bool = False,
) -> StageResult:
    """Stage an archive on this node, from a file that the node can read.

    Parameters
    ----------
    archive : str or os.PathLike
        The archive, from `envpack.pack.packing.pack`.
    root_folder : str or os.PathLike, optional
        The staging root (default: MPIBOOT_STAGE_ROOT, then /tmp).
    jobs : int, optional
        Number of processes that decode and write, 32 at most (default: the CPUs that this process may use).
    expected_pack_id : str, optional
        Refuse an archive with another pack id.
    progress : callable, optional
        Called as `progress(done_bytes, total_bytes)`, of uncompressed bytes, from any thread.
    transport : str, default "direct"
        How the archive came to the node; passed on to the result.
    force : bool, default False
        Read every file of a stage that the node has, and put back those that differ.

    Returns
    -------
    StageResult
        Its `reused` is true if the node had the staged prefix already: every file was there with its size, time and mode,
        and no others.

    Raises
    ------
    EnvpackError
        One of `envpack.errors`. Nothing is then left under the staged prefix's name.
    """
    path = Path(archive)
    with _named_errors(path, root_folder):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise cannot_open(path, exc) from exc
        try:
            with Stager(
                read_index_fd(fd, path),
                root_folder,
                jobs=jobs,
                expected_pack_id=expected_pack_id,
                progress=progress,
                transport=transport,
                force=force,
            ) as stager:
                stager.read(fd)
                return stager.finish()
        finally:
            os.close(fd)


@contextlib.contextmanager
def _named_errors(archive: Path, root_folder: StrPath | None) -> Iterator[None]:
    """Name every `OSError`, and remember that an archive is damaged."""
    try:
        with root.named_errors(user_folder(root_folder or default_stage_root())):
            yield
    except CorruptArchiveError:
        from envpack.archive.damage import note_damage

        note_damage(archive)
        raise


def stage_arriving(
    arrival: Arrival,
    archive: StrPath,
    root_folder: StrPath | None = None,
    *,
    begin: Callable[[Index], None],
    **options: Any,
) -> StageResult:
    """Stage an archive on this node while it arrives.

    Parameters
    ----------
    arrival : Arrival
        The growing file.
    archive : str or os.PathLike
        The archive's path elsewhere, for messages.
    root_folder : str or os.PathLike, optional
        The staging root (default: MPIBOOT_STAGE_ROOT, then /tmp).
    begin : callable
        Called with the index as soon as that is checked.
    **options
        The keyword parameters of `Stager`.

    Raises
    ------
    EnvpackError
        As for `stage`.
    """
    path = Path(archive)
    with _named_errors(path, root_folder):
        index = decode_index(arrival.read_index(), path)
        begin(index)
        with Stager(index, root_folder, **options) as stager:
            stager.receive(arrival)
            return stager.finish()
