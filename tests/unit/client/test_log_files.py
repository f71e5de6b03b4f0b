import pytest

from mpiboot.client import log_files
from mpiboot.client.log_files import LogFollower, start_of_end


def test_logs_that_grow(tmp_path):
    follower, (a, b) = LogFollower(), (tmp_path / "a", tmp_path / "b")
    a.write_text("1\n")
    b.write_text("2\n")
    assert list(follower.read([a, b])) == [f"==> {a} <==\n1\n", f"==> {b} <==\n2\n"]
    assert list(follower.read([a, b])) == []
    with b.open("a") as file:
        file.write("3\n")
    assert list(follower.read([a, b])) == ["3\n"]
    with a.open("a") as file:
        file.write("4\n")
    assert list(follower.read([a, b])) == [f"==> {a} <==\n4\n"]


@pytest.mark.parametrize("block_bytes", [1, 3, 1000])
@pytest.mark.parametrize(
    ("content", "lines", "size_bytes", "expected"),
    [
        ("one\ntwo\nthree\n", None, 100, "one\ntwo\nthree\n"),
        ("one\ntwo\nthree\n", 2, 100, "two\nthree\n"),
        ("one\ntwo\nthree", 2, 100, "two\nthree"),
        ("one\ntwo\nthree\n", 9, 100, "one\ntwo\nthree\n"),
        ("one\n\n\n", 2, 100, "\n\n"),
        ("one\ntwo\nthree\n", 0, 100, ""),
        ("one\ntwo\nthree\n", None, 8, "three\n"),
        ("one\ntwo\nthree\n", 2, 8, "three\n"),
        ("one\ntwo\nthree\n", None, 3, "ee\n"),
        ("", 2, 100, ""),
    ],
)
def test_where_the_end_of_a_log_begins(
    tmp_path, monkeypatch, content, lines, size_bytes, expected, block_bytes
):
    monkeypatch.setattr(log_files, "BLOCK_BYTES", block_bytes)
    log = tmp_path / "log"
    log.write_text(content)
    assert content[start_of_end(log, size_bytes=size_bytes, lines=lines) :] == expected


def test_where_the_end_of_a_huge_log_begins(tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(8 * 1024**4)
        file.seek(0, 2)
        file.write(b"\nthe last\n")
    assert start_of_end(log, size_bytes=1024, lines=1) == 8 * 1024**4 + 1
    assert start_of_end(tmp_path / "none", size_bytes=1024) == 0
    assert list(LogFollower(lambda path: start_of_end(path, size_bytes=1024, lines=1)).read([log])) == [
        f"==> {log} <==\nthe last\n"
    ]


def test_a_character_that_is_written_in_two_parts(tmp_path):
    follower, log = LogFollower(), tmp_path / "log"
    log.write_bytes("é".encode()[:1])
    assert list(follower.read([log])) == []
    with log.open("ab") as file:
        file.write("é\n".encode()[1:])
    assert list(follower.read([log])) == [f"==> {log} <==\né\n"]
    log.unlink()
    assert list(follower.read([log])) == []
