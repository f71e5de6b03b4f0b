import pytest

from mpiboot.common.logs import EMPTY, end_of_ranks_log, tail


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (b"one\ntwo\nthree\n\n", {}, "one\ntwo\nthree"),
        (b"one\ntwo\nthree\n", {"lines": 2}, "two\nthree"),
        (b"one\ntwo\nthree\n", {"size_bytes": 6}, "three"),
        (b"not text: \xff\n", {}, "not text: \ufffd"),
        (b" \n\n", {}, EMPTY),
        (b"", {"lines": 2}, EMPTY),
    ],
)
def test_the_end_of_a_log(tmp_path, content, options, expected):
    log = tmp_path / "log"
    log.write_bytes(content)
    assert tail(log, **options) == expected


def test_a_log_that_is_not_there(tmp_path):
    assert tail(tmp_path / "log") == EMPTY


def test_only_the_end_of_a_large_log_is_read(tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(8 * 1024**4)  # sparse, and larger than any memory
    assert len(tail(log, size_bytes=100)) <= 100


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            'before\nTraceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\n    ^^^\n'
            "AttributeError: no g\nafter\n  indented\n",
            "before\nAttributeError: no g\nafter\n  indented",
        ),
        ('  File "x.py", line 1, in f\n    g()\nAttributeError: no g\n', "AttributeError: no g"),
        (
            "Error processing line 1 of /e/x.pth:\n\n  Traceback (most recent call last):\n"
            '    File "<frozen site>", line 201, in addpackage\n      exec(line)\n  ImportError: no x\n\n'
            "Remainder of file ignored\n",
            "Error processing line 1 of /e/x.pth:\n\n  ImportError: no x\n\nRemainder of file ignored",
        ),
        ("", EMPTY),
    ],
)
def test_an_error_shows_no_traceback(tmp_path, content, expected):
    log = tmp_path / "ranks.log"
    log.write_text(content)
    assert end_of_ranks_log(log) == expected
