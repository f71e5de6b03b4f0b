"""Errors that distributed logs take one line of `ranks.log`, with their place, instead of a traceback.

Each end of a cluster logs lost connections. `preloads.secure` installs this in scheduler, worker and nanny.
"""

import logging
from asyncio import CancelledError

from mpiboot.common.faults import one_line


def shorten(record: logging.LogRecord) -> bool:
    """Replace a record's traceback by one line; return whether the record is to be written."""
    error = record.exc_info[1] if record.exc_info else None
    if record.name == "distributed.nanny" and isinstance(error, TypeError):
        return False  # a worker has closed the queue that its own thread still reads; it ends as it should
    if error is not None:
        ended = isinstance(error, (OSError, CancelledError))  # distributed's CommClosedError is an OSError
        if not ended:
            record.msg, record.args = f"{record.getMessage()}: {one_line(error)}", ()
        elif record.levelno > logging.INFO:
            record.msg, record.args = f"{record.getMessage()}: {type(error).__name__}: {error}", ()
        record.exc_info = record.exc_text = None
    return True


def install() -> None:
    """Shorten what distributed's handlers write; a filter of a logger would miss the loggers below it."""
    for handler in logging.getLogger("distributed").handlers:
        handler.addFilter(shorten)
