"""Relocation: records made by the scanner, applied whole or in parts, give what a search would have given."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from envpack.archive.index import Index
from envpack.errors import PrefixTooLongError
from envpack.pack.scan import Scanner, is_text
from envpack.stage.relocate import Relocation, apply, apply_part, shebang

OLD = b"/home/u/env"
NEW = b"/tmp/mpiboot-1000/env-0123456789abcdef"
HOLDER = b"/opt/placeholder" + b"_" * 100


def relocated(data: bytes, record: list[object] | None, scanner: Scanner, new: bytes = NEW) -> bytes:
    """Return what a record makes of a file; in one go, and in parts of every size, which must agree."""
    if record is None:
        return data
    relocation = Relocation(index_of(data, record, scanner), os.fsdecode(new))
    edits = relocation.edits[0]
    whole = apply(memoryview(data), edits)
    assert len(whole) == relocation.size(index_of(data, record, scanner), 0)
    for size in {1, 2, 3, 7, len(data) // 2 + 1, len(data)}:
        assert in_parts(data, edits, size, len(whole)) == whole
    return whole


def index_of(data: bytes, record: list[object], scanner: Scanner) -> Index:
    index = Index()
    index.paths = [b"file"]
    index.set_counts(0, 1, 0, 0)
    index.sizes.append(len(data))
    index.meta = {
        "placeholders": [[os.fsdecode(value), ""] for value in scanner.placeholders],
        "relocations": [[0, *record]],
    }
    return index


def in_parts(data: bytes, edits: list[tuple[int, int, bytes, bytes]], size: int, final: int) -> bytes:
    """Write parts at their offsets, in a random order, as threads do."""
    out = bytearray(b"?" * final)
    starts = list(range(0, len(data), size))
    random.shuffle(starts)
    for start in starts:
        offset, piece = apply_part(start, memoryview(data)[start : start + size], edits)
        out[offset : offset + len(piece)] = piece
    assert len(out) == final
    return bytes(out)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"no prefix here", b"no prefix here"),
        (b"home = " + OLD, b"home = " + NEW),
        (OLD, NEW),
        (OLD + b"/lib:" + OLD + b"/lib64\n", NEW + b"/lib:" + NEW + b"/lib64\n"),
        (b"-I" + OLD + b"/include -L" + OLD + b"\n", b"-I" + NEW + b"/include -L" + NEW + b"\n"),
        (b"'" + OLD + b"'", b"'" + NEW + b"'"),
        (b"in " + OLD + b".", b"in " + NEW + b"."),
        # Another folder, whose name only begins the same.
        (OLD + b"-project/src\n", OLD + b"-project/src\n"),
        (OLD + b"2/bin " + OLD + b"/bin", OLD + b"2/bin " + NEW + b"/bin"),
        (OLD + b".old/bin", OLD + b".old/bin"),
        ("caf\u00e9 ".encode("latin-1") + OLD, "caf\u00e9 ".encode("latin-1") + NEW),
        # What is binary stays, whatever it names.
        (b"\xff\0" + OLD + b"\0", b"\xff\0" + OLD + b"\0"),
    ],
)
def test_text_that_names_the_source_prefix(data: bytes, expected: bytes) -> None:
    scanner = Scanner([OLD])
    assert relocated(data, scanner.unknown(data, b"file"), scanner) == expected


def test_all_names_of_the_source_prefix() -> None:
    scanner = Scanner([OLD, b"/gpfs/home/u/env", b"/home/u"])
    data = b"/gpfs/home/u/env/bin:/home/u/env/bin:/home/u/bin:/home/u2"
    expected = NEW + b"/bin:" + NEW + b"/bin:" + NEW + b"/bin:/home/u2"
    assert relocated(data, scanner.unknown(data, b"file"), scanner) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (HOLDER, NEW),
        (b"a" + HOLDER + b"b" + HOLDER + b"c", b"a" + NEW + b"b" + NEW + b"c"),
        # conda's placeholder is replaced wherever it stands.
        (HOLDER + b"suffix", NEW + b"suffix"),
    ],
)
def test_text_with_a_placeholder(data: bytes, expected: bytes) -> None:
    scanner = Scanner([OLD])
    assert relocated(data, scanner.text(data, HOLDER), scanner) == expected


def conda_binary_replace(data: bytes, placeholder: bytes, new: bytes) -> bytes:
    from conda_pack.prefixes import binary_replace

    replaced: bytes = binary_replace(data, placeholder, new)
    return replaced


@pytest.mark.parametrize(
    "data",
    [
        HOLDER + b"\0",
        b"\1" + HOLDER + b"/lib\0\0\2" + HOLDER + b"\0",
        HOLDER + b"/a:" + HOLDER + b"/b\0after\0",
        HOLDER + b" without its end",
        b"\0" + HOLDER + b"/lib\0" + HOLDER + b" without its end",
        b"\n" + HOLDER + b"\n\0",
    ],
)
def test_binaries_become_what_conda_makes_of_them(data: bytes) -> None:
    scanner = Scanner([OLD])
    expected = conda_binary_replace(data, HOLDER, NEW)
    assert len(expected) == len(data)
    assert relocated(data, scanner.binary(data, HOLDER), scanner) == expected


def test_random_binaries_become_what_conda_makes_of_them() -> None:
    random.seed(5)
    for _ in range(200):
        pieces = [HOLDER, b"\0", b"\0\0", b"lib", b"/", b":", b"\n", b"\xff", os.urandom(9)]
        data = b"".join(random.choices(pieces, k=random.randrange(1, 30)))
        scanner = Scanner([OLD])
        assert relocated(data, scanner.binary(data, HOLDER), scanner) == conda_binary_replace(
            data, HOLDER, NEW
        )


def test_a_binary_without_room() -> None:
    scanner = Scanner([OLD])
    data = HOLDER + b"\0"
    record = scanner.binary(data, HOLDER)
    assert record is not None
    index = index_of(data, record, scanner)
    Relocation(index, "/" + "x" * (len(HOLDER) - 1))
    with pytest.raises(PrefixTooLongError, match=f"has {len(HOLDER) + 1} bytes, .* room for {len(HOLDER)}"):
        Relocation(index, "/" + "x" * len(HOLDER))


def test_a_zip_application_gets_the_first_line_only() -> None:
    scanner = Scanner([OLD])
    data = b"#!" + OLD + b"/bin/python -E\nPK\3\4\xff\0" + OLD + b"/share\0"
    expected = b"#!" + NEW + b"/bin/python -E\nPK\3\4\xff\0" + OLD + b"/share\0"
    assert relocated(data, scanner.unknown(data, b"bin/app"), scanner) == expected


LONG = b"/" + b"x" * 130
BLANK = b"/scratch/my folder/env"


@pytest.mark.parametrize(
    ("line", "new", "expected"),
    [
        (b"#!/home/u/env/bin/python", NEW, b"#!" + NEW + b"/bin/python"),
        (b"#! /home/u/env/bin/python3 -E -s", NEW, b"#! " + NEW + b"/bin/python3 -E -s"),
        (b"#!/home/u/env/bin/perl", LONG, b"#!/usr/bin/env perl"),
        (b"#!/home/u/env/bin/perl -w", LONG, b"#!/usr/bin/env -S perl -w"),
        (
            b"#!/home/u/env/bin/python3.11 -E",
            LONG,
            b"#!/bin/sh\n'''exec' \"" + LONG + b'/bin/python3.11" -E "$0" "$@"\n\' \'\'\'',
        ),
        (
            b"#!/home/u/env/bin/python",
            BLANK,
            b"#!/bin/sh\n'''exec' \"" + BLANK + b'/bin/python" "$0" "$@"\n\' \'\'\'',
        ),
    ],
)
def test_first_lines(line: bytes, new: bytes, expected: bytes) -> None:
    assert shebang(line, [(OLD, new)]) == expected
    scanner = Scanner([OLD])
    for end in (b"\nimport sys\n", b"\n# " + OLD + b"/share\n", b""):
        after = end.replace(OLD, new)
        assert (
            relocated(line + end, scanner.unknown(line + end, b"bin/tool"), scanner, new) == expected + after
        )


@pytest.mark.parametrize("name", ["a b", "quo'te", 'dou"ble', "dollar$HOME`", "n" * 140])
def test_a_script_runs_from_a_folder_with_any_name(name: str, tmp_path: Path) -> None:
    prefix = tmp_path / name
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").symlink_to(sys.executable)
    line = shebang(b"#!/home/u/env/bin/python", [(OLD, os.fsencode(prefix))])
    script = prefix / "bin" / "tool"
    script.write_bytes(line + b"\nimport sys\nprint(sys.argv[1:])\n")
    script.chmod(0o755)
    done = subprocess.run([script, "1", "two words"], capture_output=True, text=True, check=True)
    assert done.stdout == "['1', 'two words']\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", True), (b"abc", True), (b"\xe9", True), (b"a\0b", True), (b"\xe9\0", False)],
)
def test_is_text(data: bytes, expected: bool) -> None:
    assert is_text(data) is expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (OLD, NEW),
        (OLD + b"/lib/x", NEW + b"/lib/x"),
        (OLD + b"2/lib", None),
        (b"../lib", None),
        (b"/usr/bin/python3", None),
    ],
)
def test_symlinks(target: bytes, expected: bytes | None) -> None:
    scanner = Scanner([OLD])
    record = scanner.link(target)
    if expected is None:
        assert record is None
        return
    assert record is not None
    index = index_of(b"", record, scanner)
    index.links = {0: target}
    assert Relocation(index, os.fsdecode(NEW)).links == {0: expected}
