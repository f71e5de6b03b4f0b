"""Stage an archive on this node: from a file that the node can read, or from a stream that brings it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envpack.archive.encoding import decode_index, read_index_fd
from envpack.common.places import host_name
from envpack.errors import NotAnArchiveError
from envpack.stage.stager import Stager

if TYPE_CHECKING:
    from collections.abc import Callable

    from envpack.common.places import StrPath
    from envpack.stage.stager import StageResult


def stage(
    archive: StrPath,
    root_folder: StrPath | None = None,
    *,
    jobs: int | None = None,
    expected_pack_id: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    transport: str = "direct",
) -> StageResult:
    """Stage an archive on this node, reading it from where it is.

    Parameters
    ----------
    archive : str or os.PathLike
        From `envpack.pack.pack`.
    root_folder : str or os.PathLike, optional
        The staging root (default MPIBOOT_STAGE_ROOT, then /tmp).
    jobs : int, optional
        Processes that decode and write, 32 at most (default: the CPUs this process may use).
    expected_pack_id : str, optional
        Refuse any other archive.
    progress : callable, optional
        Called as `progress(done_bytes, total_bytes)`, of uncompressed bytes, from any thread.
    transport : str
        For the result: the name of the transport that brought the archive to the node.

    Returns
    -------
    StageResult
        Its `reused` is true where the node had it, every file present and of its size.

    Raises
    ------
    EnvpackError
        A named one (`envpack.errors`); nothing is then left under the staged prefix's name.
    """
    path = Path(archive)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise NotAnArchiveError(f"cannot open the archive {path} on {host_name()}: {exc.strerror}") from exc
    try:
        index = read_index_fd(fd, path)
        with Stager(
            index,
            root_folder,
            jobs=jobs,
            expected_pack_id=expected_pack_id,
            progress=progress,
            transport=transport,
        ) as stager:
            stager.read(fd)
            return stager.finish()
    finally:
        os.close(fd)


def stage_stream(
    index_bytes: bytes, name: StrPath, root_folder: StrPath | None = None, **options: Any
) -> Stager:
    """Return a `Stager` for an archive that arrives as a stream, its index first.

    Parameters
    ----------
    index_bytes : bytes
        The archive's skippable frame: `read_index(path).raw`.
    name : str or os.PathLike
        The archive's path, for messages.
    root_folder : str or os.PathLike, optional
        The staging root.
    **options
        As for `Stager`.
    """
    return Stager(decode_index(index_bytes, Path(name)), root_folder, **options)
