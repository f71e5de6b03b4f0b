"""The archive's format: GNU tar reads it, versions and damage are named, hostile members refused."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
from array import array
from pathlib import Path

import pytest
import zstandard
from envpack_trees import XY, make_venv, stages, tree

from envpack.archive import index as format_
from envpack.archive.encoding import content_id, encode_index, read_index
from envpack.archive.index import Index
from envpack.errors import (
    ArchiveError,
    ArchiveVersionError,
    CorruptArchiveError,
    HostileArchiveError,
    NotAnArchiveError,
    PrefixTooLongError,
)
from envpack.pack.base_interpreter import BASE_FOLDER
from envpack.pack.packing import pack
from envpack.stage.staging import stage
from envpack.stage.verify import verify


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("archive")
    prefix = make_venv(folder / "env")
    return prefix, pack(prefix, folder / "env.tar.zst").path


def test_tar_extracts_what_was_packed(packed: tuple[Path, Path], tmp_path: Path) -> None:
    prefix, archive = packed
    subprocess.run(["tar", "--zstd", "-xf", archive, "-C", tmp_path], check=True)
    extracted = {path: entry for path, entry in tree(tmp_path).items() if not path.startswith(BASE_FOLDER)}
    # A link into the base interpreter leads to the packed one.
    for link in set(tree(prefix)) & {b"bin/python", b"bin/python3", b"bin/" + XY.encode()}:
        assert (extracted.pop(link)[0], (tmp_path / os.fsdecode(link)).exists()) == ("link", True)
    assert extracted == {path: entry for path, entry in tree(prefix).items() if path in extracted}
    assert len(extracted) > 30
    # Hard links stay what they are.
    data = tmp_path / "lib" / next(tmp_path.glob("lib/python*")).name / "site-packages" / "demo" / "data"
    assert (data / "read-only").samefile(data / "second-name")


def test_the_frames_are_independent(packed: tuple[Path, Path]) -> None:
    _, archive = packed
    index = read_index(archive)
    data = archive.read_bytes()
    starts = index.frame_starts()
    assert starts[-1] + len(index.raw) == len(data)
    streams = [
        zstandard.ZstdDecompressor().decompress(data[start : start + size])
        for start, size in zip(starts, index.frame_sizes, strict=False)
    ]
    assert [len(stream) for stream in streams] == list(index.frame_raw_sizes)
    stream = b"".join(streams)
    for i in index.files:
        content = stream[index.offsets[i] : index.offsets[i] + index.sizes[i]]
        if not index.paths[i].startswith(BASE_FOLDER):
            assert content == (Path(index.prefix) / os.fsdecode(index.paths[i])).read_bytes()
        if len(content) <= index.meta["part_bytes"]:
            assert hashlib.sha256(content).digest()[:16] == index.digest_of(i)


def test_an_unknown_version_is_refused_by_name(packed: tuple[Path, Path], tmp_path: Path) -> None:
    data = bytearray(packed[1].read_bytes())
    data[-16:-12] = (7).to_bytes(4, "little")
    newer = tmp_path / "newer.tar.zst"
    newer.write_bytes(data)
    with pytest.raises(ArchiveVersionError, match=r"newer.tar.zst has archive version 7, .* reads version 2"):
        read_index(newer)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "does not end in an envpack index"), (b"x" * 5000, "does not end in an envpack index")],
)
def test_another_file_is_no_archive(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.tar.zst"
    path.write_bytes(content)
    with pytest.raises(NotAnArchiveError, match=message):
        read_index(path)
    with pytest.raises(NotAnArchiveError, match="cannot open"):
        read_index(tmp_path / "none")


def crafted(folder: Path, members: list[tuple[str, bytes, bytes]], **meta: object) -> Path:
    """Write an archive, right in every checksum, with members (kind, path, content or link's target)."""
    members = sorted(members, key=lambda member: "dfhl".index(member[0]))
    stream = b"".join(content for kind, _, content in members if kind == "f")
    frame = zstandard.ZstdCompressor().compress(stream)
    index = Index()
    index.paths = [path for _, path, _ in members]
    index.set_counts(*("".join(kind for kind, _, _ in members).count(kind) for kind in "dfhl"))
    index.modes = array("H", [0o644] * len(members))
    index.mtimes_ns = array("q", [0] * len(members))
    index.sizes = array("Q", [len(content) if kind == "f" else 0 for kind, _, content in members])
    offsets = [0]
    for size in index.sizes:
        offsets.append(offsets[-1] + size)
    index.offsets = array("Q", offsets[:-1])
    index.digests = b"".join(format_.digest(content) for _, _, content in members)
    index.links = {i: content for i, (kind, _, content) in enumerate(members) if kind in "lh"}
    index.frame_sizes = array("I", [len(frame)])
    index.frame_raw_sizes = array("I", [len(stream)])
    index.frame_checks = array("I", [format_.frame_check(frame)])
    index.frame_keys = bytes(16)
    index.meta = {
        "name": "env",
        "kind": "venv",
        "prefix": "/p",
        "placeholders": [],
        "relocations": [],
        "python": None,
    }
    index.meta |= {"compile": [], "part_bytes": 1 << 22, **meta}
    index.meta["pack_id"] = content_id(index)
    path = folder / "crafted.tar.zst"
    path.write_bytes(frame + encode_index(index))
    return path


def test_a_crafted_archive_stages_if_it_is_harmless(tmp_path: Path) -> None:
    path = crafted(
        tmp_path, [("d", b"bin", b""), ("f", b"bin/tool", b"text"), ("l", b"link", b"../elsewhere")]
    )
    assert (stage(path, tmp_path).prefix / "bin" / "tool").read_text() == "text"


HOSTILE: list[tuple[list[tuple[str, bytes, bytes]], str]] = [
    ([("f", b"../escape", b"x")], r"\.\./escape is absolute, climbs"),
    ([("d", b"..", b"")], r"\.\. is absolute, climbs"),
    ([("f", b"/etc/escape", b"x")], "/etc/escape is absolute"),
    ([("d", b"a", b""), ("f", b"a/../../escape", b"x")], "is absolute, climbs"),
    ([("f", b"/escape", b"x")], "/escape is absolute"),
    ([("d", b"/tmp", b""), ("f", b"/tmp/escape", b"x")], "/tmp is absolute"),
    ([("l", b"/tmp/escape", b"x")], "/tmp/escape is absolute"),
    ([("f", b"a//b", b"x")], "is absolute, climbs"),
    ([("f", b"", b"x")], "is absolute, climbs"),
    ([("f", b"a/", b"x")], "is absolute, climbs"),
    ([("l", b"a", b"/tmp"), ("f", b"a/escape", b"x")], "not a folder of the archive"),
    ([("f", b"a", b"x"), ("f", b"a/escape", b"x")], "not a folder of the archive"),
    ([("l", b"a", b"/etc/passwd"), ("f", b"a", b"x")], "occurs twice"),
    ([("d", b"a", b""), ("l", b"a", b"/tmp")], "occurs twice"),
    ([("h", b"a", b"/etc/passwd")], "names no file of the archive"),
    ([("l", b"a", b"/etc/passwd"), ("h", b"b", b"a")], "names no file of the archive"),
    ([("h", b"a", b"../escape")], "names no file of the archive"),
    ([("l", b"a", b"")], "names nothing"),
    ([("d", b".envpack", b"")], "is absolute, climbs"),
]


@pytest.mark.parametrize(("members", "message"), HOSTILE, ids=[f"{i}" for i in range(len(HOSTILE))])
def test_a_hostile_archive_is_refused(
    members: list[tuple[str, bytes, bytes]], message: str, tmp_path: Path
) -> None:
    path = crafted(tmp_path, members)
    with pytest.raises(HostileArchiveError, match=message):
        stage(path, tmp_path)
    assert stages(tmp_path) == []
    assert not (tmp_path / "escape").exists()


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "a/b", ".hidden", " a"])
def test_a_hostile_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(HostileArchiveError, match="cannot name an environment"):
        stage(crafted(tmp_path, [("f", b"a", b"x")], name=name), tmp_path)


def test_a_hostile_mode_is_refused(packed: tuple[Path, Path], tmp_path: Path) -> None:
    index = read_index(packed[1])
    index.modes[-1] = 0o4755
    path = rewritten(packed[1], index, tmp_path)
    with pytest.raises(HostileArchiveError, match="set-uid"):
        stage(path, tmp_path)


def rewritten(archive: Path, index: Index, folder: Path) -> Path:
    """Return a copy of an archive with another index, right in its checksums."""
    index.meta["pack_id"] = content_id(index)
    path = folder / "rewritten.tar.zst"
    path.write_bytes(archive.read_bytes()[: index.archive_bytes] + encode_index(index))
    return path


@pytest.mark.parametrize(
    "records",
    [
        [[0, "text", [0, 99], None]],
        [[10**9, "text", [0, 0], None]],
        [["x", "text", [0, 0], None]],
        [[0, "text", [5, 0, 2, 0], None]],
        [[0, "text", [10**12, 0], None]],
        [[0, "link", 0]],
        [[0, "binary"]],
        [[0, "binary", 0, 0, [1, 10**12]]],
        [[0, "bytes", [3]]],
        [7],
        7,
    ],
)
def test_senseless_records_are_refused(records: object, tmp_path: Path) -> None:
    content = b"x" * 400
    path = crafted(
        tmp_path, [("f", b"a", content)], placeholders=[["/" + "p" * 200, ""]], relocations=records
    )
    with pytest.raises(ArchiveError, match="contradict the index"):
        stage(path, tmp_path)
    assert stages(tmp_path) == []


@pytest.mark.parametrize(
    "meta",
    [
        {"name": 3},
        {"kind": None},
        {"prefix": []},
        {"part_bytes": 0},
        {"part_bytes": "x"},
        {"placeholders": None},
        {"placeholders": [3]},
        {"placeholders": [["/p", 3]]},
        {"placeholders": [["", ""]]},
        {"warnings": 3},
    ],
)
def test_a_senseless_index_is_refused(meta: dict[str, object], tmp_path: Path) -> None:
    path = crafted(tmp_path, [("f", b"a", b"x")], **meta)
    for use in (stage, verify):
        with pytest.raises(CorruptArchiveError, match="the index cannot be read"):
            use(path, tmp_path) if use is stage else use(path)


@pytest.mark.parametrize(
    ("compiled", "error"),
    [
        ([[0, "../escape.pyc"]], HostileArchiveError),
        ([[0, "/tmp/escape.pyc"]], HostileArchiveError),
        ([[0, "/escape.pyc"]], HostileArchiveError),
        ([[0, "link/escape.pyc"]], HostileArchiveError),
        ([[1, "a.pyc"]], HostileArchiveError),
        ([[0, "a.py"]], HostileArchiveError),
        ([[7, "a.pyc"]], CorruptArchiveError),
        ([[0, 3]], CorruptArchiveError),
        (3, CorruptArchiveError),
    ],
)
def test_bytecode_is_made_in_the_archives_folders_only(
    compiled: object, error: type[ArchiveError], tmp_path: Path
) -> None:
    members = [("f", b"a.py", b"x = 1"), ("l", b"link", b"..")]
    path = crafted(tmp_path, members, compile=compiled, python={"magic": "00"})
    with pytest.raises(error):
        stage(path, tmp_path)
    assert stages(tmp_path) == [] and not (tmp_path / "escape.pyc").exists()


def test_a_prefix_longer_than_the_placeholder(tmp_path: Path) -> None:
    content = b"\0/short/lib\0"
    path = crafted(
        tmp_path,
        [("f", b"a", content)],
        placeholders=[["/short", ""]],
        relocations=[[0, "binary", 0, 0, [11, 1]]],
    )
    with pytest.raises(
        PrefixTooLongError, match=r"has room for 6\. Choose a staging root with a shorter path"
    ):
        stage(path, tmp_path)
    assert stages(tmp_path) == []


@pytest.mark.parametrize("more", [-1, 1, 100_000])
def test_a_frame_of_another_size_than_the_index_says(
    more: int, packed: tuple[Path, Path], tmp_path: Path
) -> None:
    index = read_index(packed[1])
    index.frame_raw_sizes[-1] += more
    path = rewritten(packed[1], index, tmp_path)
    for use in (lambda: stage(path, tmp_path), lambda: verify(path)):
        with pytest.raises(CorruptArchiveError):
            use()
    assert stages(tmp_path) == []


def test_an_index_that_contradicts_itself(packed: tuple[Path, Path], tmp_path: Path) -> None:
    index = read_index(packed[1])
    other = copy.copy(index.meta)
    other["pack_id"] = "0" * 64
    index.meta = other
    path = tmp_path / "wrong.tar.zst"
    path.write_bytes(packed[1].read_bytes()[: index.archive_bytes] + encode_index(index))
    with pytest.raises(CorruptArchiveError, match="contradicts its own pack id"):
        read_index(path)


def test_the_index_is_json_and_columns(packed: tuple[Path, Path]) -> None:
    index = read_index(packed[1])
    assert index.name == "env" and index.kind == "venv" and index.prefix == os.fspath(packed[0])
    assert json.loads(json.dumps(index.meta)) == index.meta
    assert index.size_bytes == sum(index.sizes) and len(index) == len(index.paths) == sum(index.counts[:4])
