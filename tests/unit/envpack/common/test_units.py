import pytest

from envpack.common.units import parse_duration_s, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90 s", 90),
        ("30 min", 1800),
        ("2h", 7200),
        ("1.5 hours", 5400),
        ("500ms", 0.5),
        (7, 7),
        ("0", 0),
        ("7d", 604800),
        ("2 weeks", 1209600),
        ("1e3", 1000),
    ],
)
def test_duration(text, seconds):
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "-1", "1 fortnight", "0 fortnights", "1:30", "1e400", "inf", "1e10", "٣", True, None]
)
def test_no_duration(text):
    with pytest.raises(ValueError, match="is not a time"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("64G", 64 << 30),
        ("64GB", 64 << 30),
        ("64GiB", 64 << 30),
        ("512", 512 << 20),
        ("1.5T", 1536 << 30),
        ("8k", 8192),
        ("512B", 512),
        (1.5, 3 << 19),
    ],
)
def test_size(text, size_bytes):
    assert parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "0", "-8G", "8X", "8iB", "G", "1e400", "9999999T", "0.1B", "٣", True, None, [8]]
)
def test_no_size(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size_bytes(text)


def test_zero_is_a_size_where_it_is_allowed():
    assert parse_size_bytes("0", allow_zero=True) == 0
    with pytest.raises(ValueError, match="is not a size"):
        parse_size_bytes("-1", allow_zero=True)
