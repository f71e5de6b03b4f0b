"""Run paths become relative to the library, in the room that they have."""

from __future__ import annotations

from pathlib import Path

import pytest

import envpack.pack.elf
from envpack.common.elf import Library
from envpack.pack.elf import relative_run_paths
from envpack.pack.members import FILE, Member
from envpack.pack.scan import Scanner

PREFIX = b"/home/user/environments/env"
BASE = b"/home/user/.pyenv/versions/3.11.7"
PLACES = [(PREFIX, b""), (BASE, b".envpack-base")]


def run_path(
    value: bytes, path: bytes, monkeypatch: pytest.MonkeyPatch, needed: list[bytes] | None = None
) -> bytes | None:
    """Return what a library's run path becomes; None if it stays, as it has no room."""
    library = Library(needed or [], [(4, value)], 0)
    monkeypatch.setattr(envpack.pack.elf, "read_library", lambda data: library)
    edits, fits = relative_run_paths(b"\x7fELF" + value + b"\0", path, PLACES)
    if not edits:
        return value if fits else None
    ((offset, old, new),) = edits
    assert fits and (offset, old, len(new)) == (4, value, len(value))
    return new


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (b"lib/libx.so", PREFIX + b"/lib", b"$ORIGIN/.." + b"/" * 17 + b"/lib"),
        (b"lib/libx.so", PREFIX, b"$ORIGIN/.." + b"/" * 17),
        (b"libx.so", PREFIX + b"/lib", b"$ORIGIN/." + b"/" * 18 + b"/lib"),
        (b"bin/python", BASE + b"/lib", b"$ORIGIN/../.envpack-base" + b"/" * 9 + b"/lib"),
        (b".envpack-base/bin/python", BASE + b"/lib", b"$ORIGIN/.." + b"/" * 23 + b"/lib"),
        (b".envpack-base/lib/p/x.so", PREFIX + b"/lib", b"$ORIGIN/../../.." + b"/" * 11 + b"/lib"),
        # What others share the end of keeps it.
        (b"lib/libx.so", PREFIX + b"/lib:/opt/lib", b"$ORIGIN/.." + b"/" * 17 + b"/lib:/opt/lib"),
        # Nothing of the prefix.
        (b"lib/libx.so", b"/opt/lib:$ORIGIN/../lib", b"/opt/lib:$ORIGIN/../lib"),
        (b"lib/libx.so", PREFIX + b"-2/lib", PREFIX + b"-2/lib"),
    ],
)
def test_relative(path: bytes, value: bytes, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_path(value, path, monkeypatch) == expected


DEEP = b"lib/python3.11/site-packages/package/x.so"


def test_what_goes_for_want_of_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that repeat, or that hold no library that is needed, as they do not exist or hold others."""
    up = b"$ORIGIN/../../../../lib"
    value = b"/opt/py/lib:/home/none/lib:/opt/py/lib"
    monkeypatch.setattr(f"{__name__}.PLACES", [(b"/opt/py", b"")])
    lexists = lambda path: path == b"/opt/py/lib/libpython3.11.so.1.0"  # noqa: E731
    monkeypatch.setattr(envpack.pack.elf.os.path, "lexists", lexists)
    new = run_path(value, DEEP, monkeypatch, [b"libpython3.11.so.1.0", b"libc.so.6"])
    assert new == up[:-4] + b"/" * 15 + b"/lib"
    # None is needed: an entry that leads nowhere keeps the end of the text.
    assert run_path(b"/opt/py/lib:/opt/py/lib", DEEP, monkeypatch) == b"$ORIGIN" + b"/" * 12 + b"/lib"


def test_no_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(f"{__name__}.PLACES", [(b"/opt/py", b"")])
    monkeypatch.setattr(envpack.pack.elf.os.path, "lexists", lambda path: True)
    assert run_path(b"/opt/py/lib", DEEP, monkeypatch, [b"libx.so"]) is None
    scanner = Scanner([(b"/opt/py", b"")])
    assert scanner.warnings() == []
    for path in (b"lib/b.so", b"lib/a.so"):
        assert scanner.record(Member(path, FILE, relocation="unknown"), b"\x7fELF/opt/py/lib\0\xff") == []
    assert scanner.warnings() == [
        "2 libraries load others from folders that are not packed, as their run paths say, so the nodes read those from "
        "there: lib/a.so, lib/b.so"
    ]


@pytest.mark.parametrize(
    ("value", "kind", "is_named"),
    [
        (b"/apps/mpi/lib", "lustre", True),
        (b"$ORIGIN:/none:/apps/mpi/lib", "nfs4", True),
        (b"/apps/mpi/lib", "ext4", False),
        (b"/apps/none/lib", "nfs4", False),
        (PREFIX + b"/lib:$ORIGIN/../lib", "nfs4", False),
    ],
)
def test_libraries_on_a_shared_file_system(
    value: bytes, kind: str, is_named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of an MPI that a module has loaded."""
    library = Library([b"libmpi.so.40"], [(4, value)], 0)
    monkeypatch.setattr(envpack.pack.elf, "read_library", lambda data: library)
    there = (b"/apps/mpi/lib/libmpi.so.40", PREFIX + b"/lib/libmpi.so.40")
    monkeypatch.setattr(envpack.pack.elf.os.path, "lexists", lambda path: path in there)
    monkeypatch.setattr("envpack.pack.scan.file_system", lambda path: (kind, "/"))
    scanner = Scanner([(PREFIX, b"")])
    member = Member(b"lib/x.so", FILE, relocation="unknown")
    scanner.record(member, b"\x7fELF" + value + b"\0\xff")
    assert scanner.rigid == ([b"lib/x.so"] if is_named else [])
