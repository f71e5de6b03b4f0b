"""`envpack verify`: read all of an archive, or of a staged prefix, and compare it with its index.

Damage that is found is remembered, so that the next `pack` or `stage` mends it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from envpack.archive.encoding import cannot_open, decode_index, read_index
from envpack.archive.index import Index, force_pack, show_path
from envpack.common.places import host_name
from envpack.errors import ArchiveError, CorruptArchiveError, StageFailedError
from envpack.stage import compare, marker, root
from envpack.stage.frames import Decoder
from envpack.stage.relocate import Relocation

if TYPE_CHECKING:
    from envpack.common.places import StrPath

# How many damaged files a message names.
_MOST_NAMES = 10


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
        The staged prefix is damaged: files are missing or differ, or there are others. The message names ten of them. Or
        something cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        with root.named_errors(path, "verify"):
            index = _verify_staged(path)
    else:
        try:
            index = read_index(path)
            _verify_archive(path, index)
        except CorruptArchiveError:
            from envpack.archive.damage import note_damage

            note_damage(path)
            raise
        except OSError as exc:
            raise cannot_open(path, exc) from exc
    return VerifyResult(path, index.pack_id, len(index) - len(index.folders), index.size_bytes)


def _verify_archive(path: Path, index: Index) -> None:
    files = iter(index.files)
    current = next(files, None)
    content = compare.Content(index, current) if current is not None else None
    decoder = Decoder(index)
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
                        force_pack(index),
                    )
                current = next(files, None)
                content = compare.Content(index, current) if current is not None else None
            at = end
    if current is not None:
        raise CorruptArchiveError(
            f"{path}: member {show_path(index.paths[current])} is not in the frames",
            force_pack(index),
        )


def _verify_staged(prefix: Path) -> Index:
    if not marker.is_staged_prefix(prefix):
        raise StageFailedError(
            f"{prefix} on {host_name()} is not a staged prefix: it has no marker",
            "Check the path, or stage the archive: envpack stage ARCHIVE",
        )
    about = marker.read_marker(prefix)
    staged_at = Path(str(about.get("prefix", prefix)))
    index_path = marker.index_path(prefix)
    try:
        index = decode_index(index_path.read_bytes(), index_path)
    except (OSError, ArchiveError) as exc:
        why = exc.problem if isinstance(exc, ArchiveError) else f"{index_path}: {exc.strerror}"
        raise StageFailedError(f"{prefix} on {host_name()}: {why}", _stage_again(staged_at, about)) from exc
    relocation = Relocation(index, staged_at)
    survey = compare.survey(prefix, index, relocation)
    damaged = {**compare.different_content(prefix, index, relocation), **survey.damaged}
    for i in index.folders:
        if (
            i not in damaged
            and stat.S_IMODE((prefix / os.fsdecode(index.paths[i])).lstat().st_mode)
            != 0o700 | (index.modes[i])
        ):
            damaged[i] = "has another mode"
    if not damaged:
        marker.forget_damaged(prefix)  # what was noted the last time: it has been put back by other means
    is_noted = not damaged or marker.note_damaged(prefix, (index.paths[i] for i in damaged))
    faults = [f"{show_path(index.paths[i])} {how}" for i, how in sorted(damaged.items())]
    faults += [f"{show_path(path)} is not the environment's" for path in survey.extra]
    if faults:
        named = "; ".join(faults[:_MOST_NAMES]) + ("; …" if len(faults) > _MOST_NAMES else "")
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise StageFailedError(
            f"{prefix} on {host_name()} has {count}: {named}",
            _stage_again(staged_at, about, force=not is_noted),
        )
    return index


def _stage_again(prefix: Path, about: dict[str, Any], *, force: bool = False) -> str:
    """Return the remedy for a damaged stage: the next stager puts back what is noted, or with `--force` what differs."""
    from shlex import quote

    archive = str(about.get("archive") or "")
    if not archive or not os.path.lexists(archive):
        archive = f'"$(envpack pack --prefix {quote(str(about.get("source") or "DIR"))})"'
    else:
        archive = quote(archive)
    root_folder = quote(str(prefix.parent.parent))
    return f"Stage the archive again: envpack stage {'--force ' * force}{archive} --root {root_folder}"
