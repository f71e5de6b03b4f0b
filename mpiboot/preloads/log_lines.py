"""One line in `ranks.log`, instead of a traceback, where a connection has ended: each does when a cluster closes.

`preloads.secure` installs this in scheduler, worker and nanny; it imports no other module of mpiboot.
"""

import logging
from asyncio import CancelledError


def shorten(record: logging.LogRecord) -> bool:
    """Replace the traceback of a lost connection, or of what waited for one, by its message; keep the record."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (OSError, CancelledError)):  # distributed's CommClosedError is an OSError
        if record.levelno > logging.INFO:
            record.msg, record.args = f"{record.getMessage()}: {type(error).__name__}: {error}", ()
        record.exc_info = record.exc_text = None
    return True


def install() -> None:
    """Shorten what distributed's handlers write; a filter of a logger would miss the loggers below it."""
    for handler in logging.getLogger("distributed").handlers:
        handler.addFilter(shorten)
