import math

import pytest

from mpiboot.common.units import parse_walltime_s, show_duration, show_size


# The six forms of sbatch(1), --time.
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(
            ("30", 1800),
            ("1:30", 90),
            ("1:02:03", 3723),
            ("1-1", 90000),
            ("1-1:30", 91800),
            ("1-1:30:15", 91815),
        ),
        *(
            (" 30\n", 1800),
            ("0", math.inf),
            ("0:00", math.inf),
            ("UNLIMITED", math.inf),
            ("infinite", math.inf),
        ),
    ],
)
def test_walltime(text, seconds):
    assert parse_walltime_s(text) == seconds


@pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "-5", "1-", "1.5", "٣", "9" * 10, "NONE"])
def test_no_walltime(text):
    with pytest.raises(ValueError, match="is not a walltime"):
        parse_walltime_s(text)


def test_shown():
    assert [show_duration(s) for s in (4.23, 60, 200, 7500)] == ["4.2 s", "1 min", "3 min 20 s", "2 h 5 min"]
    assert [show_size(b) for b in (999, 271_581_184, 5 << 40)] == ["999 B", "259 MiB", "5 TiB"]
