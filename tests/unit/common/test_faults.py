import errno
import os

import pytest

from mpiboot.common.faults import one_line, system_error, unexpected


def test_an_error_and_where_it_came_from_are_one_line():
    def inner():
        raise KeyError("two\nlines")

    with pytest.raises(KeyError) as caught:
        inner()
    first = test_an_error_and_where_it_came_from_are_one_line.__code__.co_firstlineno
    assert unexpected(caught.value) == (
        "an error that should not happen; please report it: KeyError: 'two\\nlines' "
        f"(common/test_faults.py:{first + 5} test_an_error_and_where_it_came_from_are_one_line "
        f"> common/test_faults.py:{first + 2} inner)"
    )


def test_what_caused_an_error_is_in_its_line():
    with pytest.raises(RuntimeError) as caught:
        try:
            raise ValueError("Could not start Nanny\non host None")
        except ValueError as error:
            raise RuntimeError("Nanny failed to start.") from error
    line = "RuntimeError: Nanny failed to start., because of ValueError: Could not start Nanny on host None ("
    assert one_line(caught.value).startswith(line)


def test_an_error_that_was_not_raised():
    assert (
        unexpected(ValueError("a\nb")) == "an error that should not happen; please report it: ValueError: a b"
    )


def test_a_file_that_may_not_grow():
    error = system_error(OSError(errno.EFBIG, os.strerror(errno.EFBIG), "/h/boot.log"))
    assert error.problem.startswith("/h/boot.log on ") and error.problem.endswith(": File too large")
    assert error.remedy == "Allow larger files: ulimit -f unlimited"
