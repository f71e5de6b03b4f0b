"""A damaged archive: an error that names the archive, and nothing under the staged prefix's name."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest
from envpack_trees import SITE, make_venv, stages

import envpack.pack.archive_writer
import envpack.pack.frame_writer
from envpack.archive.encoding import FOOTER_BYTES, read_index
from envpack.errors import ArchiveError, ArchiveVersionError, CorruptArchiveError, NotAnArchiveError
from envpack.pack.packing import pack
from envpack.stage.staging import stage
from envpack.stage.verify import verify


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("damage")
    prefix = make_venv(folder / "env")
    with pytest.MonkeyPatch.context() as patch:
        for module in (envpack.pack.frame_writer, envpack.pack.archive_writer):
            patch.setattr(module, "FRAME_BYTES", 1 << 15)
        return pack(prefix, folder / "env.tar.zst").path.read_bytes()


def refused(data: bytes, folder: Path) -> ArchiveError:
    """Stage damaged bytes; return the error, which must be a named one and leave nothing behind."""
    path = folder / "bad.tar.zst"
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match=re.escape(os.fspath(path))) as raised:
        stage(path, folder, jobs=2)
    assert stages(folder) == []
    with pytest.raises(ArchiveError, match=re.escape(os.fspath(path))):
        verify(path)
    return raised.value


def test_a_flipped_bit_anywhere(good: bytes, tmp_path: Path) -> None:
    index_start = read_index(write(good, tmp_path)).archive_bytes
    random.seed(2)
    places = [random.randrange(len(good)) for _ in range(160)]
    places += [random.randrange(index_start, len(good)) for _ in range(40)]
    places += [0, 3, 4, 5, index_start - 1, index_start, index_start + 4, index_start + 8, len(good) - 1]
    places += range(len(good) - FOOTER_BYTES, len(good), 7)
    for place in places:
        data = bytearray(good)
        data[place] ^= 1 << random.randrange(8)
        error = refused(bytes(data), tmp_path)
        if place < index_start:
            assert isinstance(error, CorruptArchiveError)
            assert re.search(r"member \S|headers", str(error)), str(error)


def write(data: bytes, folder: Path) -> Path:
    path = folder / "good.tar.zst"
    path.write_bytes(data)
    return path


def test_the_damaged_member_is_named(good: bytes, tmp_path: Path) -> None:
    """Frames of what does not compress hold their content as it is, so a flipped bit has a known place."""
    index = read_index(write(good, tmp_path))
    noise = os.fsencode(SITE / "demo" / "data" / "noise.bin")
    member = index.paths.index(noise)
    content = Path(index.prefix, os.fsdecode(noise)).read_bytes()
    for at in (20, 100_000, 299_000):
        place = good.index(content[at : at + 16])
        data = bytearray(good)
        data[place] ^= 4
        message = str(refused(bytes(data), tmp_path))
        assert "member lib/" in message and "demo/data/noise.bin (frame" in message, message
        assert f"of {len(index.frame_sizes)}, byte" in message
    assert index.sizes[member] == len(content)


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -5, -FOOTER_BYTES, -1000, 0.5])
def test_a_truncated_archive(keep: float, good: bytes, tmp_path: Path) -> None:
    end = int(len(good) * keep) if isinstance(keep, float) else keep
    assert isinstance(refused(good[:end], tmp_path), NotAnArchiveError)


def test_one_that_lost_some_bytes_in_the_middle(good: bytes, tmp_path: Path) -> None:
    error = refused(good[:5000] + good[5001:], tmp_path)
    assert isinstance(error, CorruptArchiveError) and "cut short, extended or damaged" in str(error)


def test_one_with_something_after_it(good: bytes, tmp_path: Path) -> None:
    assert isinstance(refused(good + b"\0", tmp_path), NotAnArchiveError)
    assert isinstance(refused(good + good, tmp_path), CorruptArchiveError)


def test_frames_in_another_order(good: bytes, tmp_path: Path) -> None:
    """Also where each is whole, and as large as the other: zstd alone would not notice."""
    index = read_index(write(good, tmp_path))
    starts = index.frame_starts()
    pieces = [good[start : start + size] for start, size in zip(starts, index.frame_sizes, strict=False)]
    sizes = [*zip(index.frame_sizes, index.frame_raw_sizes, strict=True)]
    first, second = [n for n, size in enumerate(sizes) if sizes.count(size) > 1][:2]
    pieces[first], pieces[second] = pieces[second], pieces[first]
    assert isinstance(refused(b"".join(pieces) + good[starts[-1] :], tmp_path), CorruptArchiveError)


def test_a_bit_that_zstd_does_not_use(good: bytes, tmp_path: Path) -> None:
    """RFC 8878, section 3.1.1.1.1.3: decoders ignore it."""
    data = bytearray(good)
    data[4] ^= 1 << 4
    assert isinstance(refused(bytes(data), tmp_path), CorruptArchiveError)


def test_a_version_to_come(good: bytes, tmp_path: Path) -> None:
    data = bytearray(good)
    data[-16] = 3
    assert isinstance(refused(bytes(data), tmp_path), ArchiveVersionError)


def test_one_that_changes_while_it_is_read(good: bytes, tmp_path: Path) -> None:
    """Cut short after its index was read: the stager holds the file open."""
    path = write(good, tmp_path)
    index = read_index(path)
    from envpack.stage.stager import Stager

    with path.open("rb") as file, Stager(index, tmp_path) as stager:
        os.truncate(path, index.archive_bytes // 2)
        with pytest.raises(CorruptArchiveError, match=r"was cut short while .* read it"):
            stager.read(file.fileno())
            stager.finish()
    assert stages(tmp_path) == []
