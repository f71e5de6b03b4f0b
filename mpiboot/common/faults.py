"""The words for errors of the operating system, and for an error that nobody has foreseen.

Every room may import this module. Agents do, so it imports almost nothing.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from envpack.common.places import HOME_VARIABLE, host_name
from envpack.errors import ExplainedError
from mpiboot.errors import MpibootError

CAUSES_SHOWN = 3
FRAMES_SHOWN = 6


def one_line(error: BaseException) -> str:
    """Return what an error is, what caused it, and where it happened, the innermost function last."""
    places = []
    trace = error.__traceback__
    while trace:
        code = trace.tb_frame.f_code
        path = Path(code.co_filename)
        places.append(f"{path.parent.name}/{path.name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    where = f" ({' > '.join(places[-FRAMES_SHOWN:])})" if places else ""
    causes, cause = [f"{type(error).__name__}: {error}"], error.__cause__
    while cause and len(causes) < CAUSES_SHOWN:
        causes.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__
    return " ".join(", because of ".join(causes).split()) + where


def unexpected(error: BaseException) -> str:
    """Return one line about an error that should not happen: what it is, and where, the innermost function last."""
    return f"an error that should not happen; please report it: {one_line(error)}"


@contextlib.contextmanager
def named_errors() -> Iterator[None]:
    """Turn every `OSError` of the block into an error that names host, path and remedy."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ExplainedError):  # a DeadlineError is a TimeoutError, which is an OSError
            raise
        raise system_error(error) from error


def system_error(error: OSError) -> MpibootError:
    """Return the error for a system call that failed: with its file, host, reason and remedy."""
    paths = [
        os.fsdecode(path) for path in (error.filename, error.filename2) if isinstance(path, (str, bytes))
    ]
    what = " -> ".join(paths) or "a system call"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = f"Make room there, or set {HOME_VARIABLE} to a folder with more: df -h, quota, mpiboot gc"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        remedy = f"Set {HOME_VARIABLE} to a folder on the shared file system that you can write"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        remedy = "Allow more open files: ulimit -n 4096"
    elif error.errno == errno.EFBIG:
        remedy = "Allow larger files: ulimit -f unlimited"
    elif error.errno in (errno.EAGAIN, errno.ENOMEM):
        remedy = "Allow more processes, or end some of yours there: ulimit -u"
    else:
        remedy = "Try again; if it stays so, show this to your site's support"
    return MpibootError(f"{what} on {host_name()}: {error.strerror or error}", remedy)
