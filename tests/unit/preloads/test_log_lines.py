"""An error that distributed logs takes one line."""

import io
import logging
import re
from asyncio import CancelledError

import pytest
from distributed.comm.core import CommClosedError

from mpiboot.preloads import log_lines


@pytest.mark.parametrize(
    ("level", "error", "expected"),
    [
        (logging.INFO, CommClosedError("in <TLS>: Stream is closed"), "Batched Comm Closed <TLS>\n"),
        (logging.ERROR, TimeoutError("no answer"), "Batched Comm Closed <TLS>: TimeoutError: no answer\n"),
        (logging.WARNING, CancelledError(), "Batched Comm Closed <TLS>: CancelledError: \n"),
    ],
)
def test_lost_connections(monkeypatch, level, error, expected):
    assert logged(monkeypatch, level, error) == expected


def test_a_fault_names_its_place(monkeypatch):
    text = logged(monkeypatch, logging.ERROR, ValueError("wrong"))
    assert re.fullmatch(
        r"Batched Comm Closed <TLS>: ValueError: wrong \(preloads/test_log_lines\.py:\d+ logged\)\n", text
    )


def test_the_ordinary_end_of_a_worker_is_no_error(monkeypatch):
    assert logged(monkeypatch, logging.ERROR, TypeError("NoneType"), "distributed.nanny") == ""


def logged(monkeypatch, level, error, logger="distributed.batched"):
    """Return what a handler of distributed writes of `error`, logged by one of its modules."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    monkeypatch.setattr(logging.getLogger("distributed"), "handlers", [handler])
    log_lines.install()
    try:
        raise error
    except BaseException:
        logging.getLogger(logger).log(level, "Batched Comm Closed %r", TLS(), exc_info=True)
    return stream.getvalue()


class TLS:
    def __repr__(self):
        return "<TLS>"
