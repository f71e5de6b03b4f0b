"""Relocation: records made by the scanner, applied whole or in parts, give what a search would have given."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from envpack.archive.index import Index, digest
from envpack.errors import PrefixTooLongError
from envpack.pack.members import FILE, Member
from envpack.pack.scan import Scanner, is_text
from envpack.stage.relocate import Relocation, apply, apply_part, shebang

OLD = b"/home/u/env"
NEW = b"/tmp/mpiboot-1000/env-0123456789abcdef"
HOLDER = b"/opt/placeholder" + b"_" * 100


def relocated(data: bytes, record: list[object] | None, scanner: Scanner, new: bytes = NEW) -> bytes:
    """Return what a record makes of a file; in one go, and in parts of every size, which must agree."""
    if not record:
        return data
    relocation = Relocation(index_of(data, record, scanner), os.fsdecode(new))
    edits = relocation.edits[0]
    whole = apply(memoryview(data), edits)
    assert len(whole) == relocation.size(index_of(data, record, scanner), 0)
    for size in {1, 2, 3, 7, len(data) // 2 + 1, len(data)}:
        assert in_parts(data, edits, size, len(whole)) == whole
    return whole


def record_of(
    scanner: Scanner,
    data: bytes,
    relocation: str = "unknown",
    rooms: tuple[int, ...] = (),
    path: bytes = b"file",
    digests: tuple[bytes, ...] = (),
) -> list[object]:
    """Return the record of a file with this content."""
    member = Member(path, FILE, relocation=relocation, rooms=rooms, package_digests=digests)
    member.edited = bool(digests) and digest(data) not in digests
    return scanner.record(member, data)


def index_of(data: bytes, record: list[object], scanner: Scanner) -> Index:
    index = Index()
    index.paths = [b"file"]
    index.set_counts(0, 1, 0, 0)
    index.sizes.append(len(data))
    index.meta = {
        "placeholders": [[os.fsdecode(old), os.fsdecode(suffix)] for old, suffix in scanner.placeholders],
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
    scanner = Scanner([(OLD, b"")])
    assert relocated(data, record_of(scanner, data, path=b"file"), scanner) == expected


def test_all_names_of_the_source_prefix() -> None:
    scanner = Scanner([(name, b"") for name in (OLD, b"/gpfs/home/u/env", b"/home/u")])
    data = b"/gpfs/home/u/env/bin:/home/u/env/bin:/home/u/bin:/home/u2"
    expected = NEW + b"/bin:" + NEW + b"/bin:" + NEW + b"/bin:/home/u2"
    assert relocated(data, record_of(scanner, data, path=b"file"), scanner) == expected


@pytest.mark.parametrize(
    "before",
    [
        *(
            b"",
            b" ",
            b"\n",
            b"'",
            b'"',
            b"=",
            b":",
            b";",
            b",",
            b"(",
            b"[",
            b"{",
            b"<",
            b">",
            b"|",
            b"&",
            b"@",
            b"`",
            b"#",
        ),
        *(
            b"#!",
            b"-I",
            b"-L",
            b" -isystem",
            b"-Wl,-rpath,",
            b"-Wl,-R",
            b"PATH=/usr/bin:",
            b"file://",
            b"a=1;F=",
        ),
        *(b"\\n", b"\\\\\\t", b"\\x00", b"\\0", b"$DESTDIR", b"$(DESTDIR)", b"${DESTDIR}", b"${X:-", b"\0"),
        "\u201c".encode(),
        "\u00a0".encode(),
    ],
)
@pytest.mark.parametrize("after", [b"", b"/lib", b"/", b"\n", b"'", b":", b".", b". ", b"\\n", b"\0"])
def test_where_a_path_begins_and_ends(before: bytes, after: bytes) -> None:
    scanner = Scanner([(b"/env", b"")])
    for lead in (b"", b"x" * 30 + b"\n"):
        data = lead + before + b"/env" + after
        assert relocated(data, record_of(scanner, data), scanner) == lead + before + NEW + after


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"#!/usr/bin/env python\n",
            b"/usr/bin/env",
            b"./env",
            b"../env/x",
            b"~/env",
            b"$HOME/env",
            b"${HOME}/env",
        ),
        *(
            b"$(HOME)/env",
            b"*/env",
            b"[a-z]/env",
            b"a?/env",
            b"x//env",
            b"http://host/env",
            b"%/env",
            b"\\/env",
            b"a-b/env",
        ),
        *(
            b"x-I/env",
            b"/env2",
            b"/env-x",
            b"/env_x",
            b"/env.old",
            b"/env~",
            b"/environment",
            b"\\\\n/env",
            b"a+/env",
        ),
        "\u00e9/env".encode(),
    ],
)
def test_where_no_path_begins_or_ends(data: bytes) -> None:
    scanner = Scanner([(b"/env", b"")])
    assert record_of(scanner, data) == []
    for kind in ("text", "binary", "managed"):
        assert record_of(scanner, data + b"\0", kind, (255,)) == []


def test_what_conda_has_placed() -> None:
    """In a text with a placeholder, a name of several folders counts after anything."""
    scanner = Scanner([(OLD, b""), (b"/env", b"")])
    data = b"./home/u/env/lib:lib/home/u/env ./env /home/u/env2"
    expected = b"." + NEW + b"/lib:lib" + NEW + b" ./env /home/u/env2"
    assert relocated(data, record_of(scanner, data, "text"), scanner) == expected
    assert record_of(scanner, data) == []


def test_names_of_the_base_interpreter() -> None:
    """The prefix lies in the base interpreter's folder, as pyenv-virtualenv makes it."""
    scanner = Scanner([(OLD, b""), (b"/home/u", b"/.envpack-base")])
    for name in (
        b"/bin",
        b"/bin/",
        b"/bin/python3.11",
        b"/bin/pypy",
        b"/lib",
        b"/lib/",
        b"/lib64/x.so",
        b"/ssl/cert.pem",
    ):
        data = b"/home/u/env/lib:/home/u" + name + b":/usr/bin"
        expected = NEW + b"/lib:" + NEW + b"/.envpack-base" + name + b":/usr/bin"
        assert relocated(data, record_of(scanner, data), scanner) == expected
    # The base interpreter's folder is somebody's home: the rest of it is not packed.
    for data in (
        b"/home/u",
        b"/home/u/",
        b"/home/u/project/src",
        b"/home/u/bin/tool",
        b"/home/u/library",
        b"/home/u/env2",
    ):
        assert record_of(scanner, data) == []
        expected = NEW + b"/.envpack-base" + data.removeprefix(b"/home/u")
        in_base = record_of(scanner, data, path=b".envpack-base/lib/x.py")
        assert relocated(data, in_base, scanner) == expected


def test_settings() -> None:
    """What a `pyvenv.cfg` says of the base interpreter counts there alone."""
    base = b"/.envpack-base"
    scanner = Scanner(
        [(OLD, b"")], [(b"/usr/bin", base + b"/bin"), (b"/usr/bin/python3.11", base + b"/bin/python3.11")]
    )
    data = (
        b"home = /usr/bin\nimplementation = CPython\nBase-Executable=/usr/bin/python3.11\r\n"
        b"command = /usr/bin/python3 -m venv /home/u/env\nprompt = /usr/bin\n"
    )
    expected = (
        b"home = " + NEW + b"/.envpack-base/bin\nimplementation = CPython\nBase-Executable=" + NEW
        + b"/.envpack-base/bin/python3.11\r\ncommand = /usr/bin/python3 -m venv " + NEW + b"\nprompt = /usr/bin\n"
    )  # fmt: skip
    assert relocated(data, record_of(scanner, data, "settings"), scanner) == expected
    assert record_of(scanner, b"#!/usr/bin/python3\n") == []


def test_an_unchanged_file_of_a_package() -> None:
    """The prefix stands in it by chance: a package's default, which is no placeholder."""
    scanner = Scanner([(OLD, b"")])
    data = b"default: /home/u/env\n"
    assert record_of(scanner, data, "managed", digests=(digest(b"another"), digest(data))) == []
    assert relocated(data, record_of(scanner, data, "managed", digests=(digest(b"another"),)), scanner) == (
        b"default: " + NEW + b"\n"
    )


def installed(data: bytes, prefix: bytes = OLD) -> bytes:
    """Return a binary as conda installs it."""
    from conda_pack.prefixes import binary_replace

    replaced: bytes = binary_replace(data, HOLDER, prefix)
    return replaced


BINARIES = [
    HOLDER + b"\0",
    b"\1" + HOLDER + b"/lib\0\0\2" + HOLDER + b"\0",
    HOLDER + b"/a:" + HOLDER + b"/b\0after\0",
    HOLDER + b" without its end",
    b"\0" + HOLDER + b"/lib\0" + HOLDER + b" without its end",
    b"\n" + HOLDER + b"\n\0",
    # The length of a string, before it; no end between two strings.
    b"A" + HOLDER + b"more text\0" + b"z" + HOLDER + b"\0",
]


@pytest.mark.parametrize("new", [NEW, b"/n", OLD, b"/" + b"x" * (len(HOLDER) - 1)])
@pytest.mark.parametrize("data", BINARIES)
def test_binaries_become_what_conda_makes_of_them(data: bytes, new: bytes) -> None:
    scanner = Scanner([(OLD, b"")])
    record = record_of(scanner, installed(data), "binary", (50, len(HOLDER), 255))
    assert relocated(installed(data), record, scanner, new) == installed(data, new)


def test_random_binaries_become_what_conda_makes_of_them() -> None:
    random.seed(5)
    for _ in range(200):
        pieces = [HOLDER, b"\0", b"\0\0", b"lib", b"/", b":", b"\n", b"\xff", os.urandom(9)]
        data = b"".join(random.choices(pieces, k=random.randrange(1, 30)))
        scanner = Scanner([(OLD, b"")])
        record = record_of(scanner, installed(data), "binary", (len(HOLDER),))
        assert relocated(installed(data), record, scanner) == installed(data, NEW)


def test_what_only_ends_like_the_prefix_in_a_binary() -> None:
    scanner = Scanner([(b"/env", b"")])
    data = b"/usr/bin/env\0" + HOLDER + b"/lib:/usr/bin/env:\0\xff"
    record = record_of(scanner, installed(data, b"/env"), "binary", (len(HOLDER),))
    assert relocated(installed(data, b"/env"), record, scanner) == installed(data, NEW)


def test_a_binary_that_conda_has_not_written() -> None:
    """No NUL bytes prove that a string may grow: pip has overwritten the file."""
    scanner = Scanner([(OLD, b"")])
    data = b"\xff\0" + OLD + b"/lib\0next\0"
    assert record_of(scanner, data, "binary", (len(HOLDER),)) == []
    text = b"#!" + OLD + b"/bin/python\n"
    assert relocated(text, record_of(scanner, text, "binary", (len(HOLDER),)), scanner) == (
        b"#!" + NEW + b"/bin/python\n"
    )


def test_the_room_that_is_proven() -> None:
    """Two packages own the path, with placeholders of different lengths."""
    scanner = Scanner([(OLD, b"")])
    for room in (5, 100):
        data = b"\xff\0" + OLD + b"/lib" + bytes(1 + room) + b"next\0"
        rooms = (len(OLD) + 5, len(OLD) + 100)
        assert record_of(scanner, data, "binary", rooms) == ["binary", 0, room, [17, 2]]


def test_a_binary_without_room() -> None:
    scanner = Scanner([(OLD, b"")])
    data = installed(HOLDER + b"\0")
    index = index_of(data, record_of(scanner, data, "binary", (len(HOLDER),)), scanner)
    Relocation(index, "/" + "x" * (len(HOLDER) - 1))
    with pytest.raises(PrefixTooLongError, match=f"has {len(HOLDER) + 1} bytes, .* room for {len(HOLDER)}"):
        Relocation(index, "/" + "x" * len(HOLDER))


def test_a_zip_application_gets_the_first_line_only() -> None:
    scanner = Scanner([(OLD, b"")])
    data = b"#!" + OLD + b"/bin/python -E\nPK\3\4\xff\0" + OLD + b"/share\0"
    expected = b"#!" + NEW + b"/bin/python -E\nPK\3\4\xff\0" + OLD + b"/share\0"
    assert relocated(data, record_of(scanner, data, path=b"bin/app"), scanner) == expected


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
    scanner = Scanner([(OLD, b"")])
    for end in (b"\nimport sys\n", b"\n# " + OLD + b"/share\n", b""):
        after = end.replace(OLD, new)
        assert (
            relocated(line + end, record_of(scanner, line + end, path=b"bin/tool"), scanner, new)
            == expected + after
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
    scanner = Scanner([(OLD, b"")])
    record = scanner.link(target)
    if expected is None:
        assert record is None
        return
    assert record is not None
    index = index_of(b"", record, scanner)
    index.links = {0: target}
    assert Relocation(index, os.fsdecode(NEW)).links == {0: expected}
