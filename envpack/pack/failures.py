"""What a failed system call of a pack means: an error that names host, path and remedy.

Only `envpack.pack.packing` imports this module.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from envpack.common.places import HOME_VARIABLE, host_name
from envpack.errors import BrokenEnvironmentError, EnvpackError, NoSpaceError, PackFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def named_errors(prefix: Path, folder: Path) -> Iterator[None]:
    """Turn every `OSError` of a pack into an error that names host, path and remedy.

    Parameters
    ----------
    prefix : Path
        The environment's root folder.
    folder : Path
        The folder of the archive. An `OSError` that names no file comes from writing the archive.
    """
    try:
        yield
    except RuntimeError as exc:
        if "can't start new thread" not in str(exc):
            raise
        raise _no_process(exc) from exc
    except BlockingIOError as exc:
        raise _no_process(exc) from exc
    except OSError as exc:
        path = Path(os.fsdecode(exc.filename)) if exc.filename else folder
        if exc.errno in (errno.EMFILE, errno.ENFILE):
            raise PackFailedError(
                f"cannot open {path} on {host_name()}: {exc.strerror}",
                "Allow more open files, or use fewer threads: ulimit -n 4096; envpack pack --jobs 1",
            ) from exc
        if not path.is_relative_to(prefix) and (path.is_relative_to(folder) or path in folder.parents):
            raise _write_error(path, exc) from exc
        raise _read_error(path, prefix, exc) from exc


def _no_process(exc: Exception) -> EnvpackError:
    return PackFailedError(
        f"cannot start another thread or process on {host_name()}: {exc}",
        "Use fewer, or end some of your processes there: envpack pack --jobs 1",
    )


def _read_error(path: Path, prefix: Path, exc: OSError) -> EnvpackError:
    if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
        remedy = "Pack again when nothing installs into the environment, or removes files from it"
    elif path.is_relative_to(prefix) and path != prefix:
        pattern = glob.escape(os.fspath(path.relative_to(prefix)))
        remedy = (
            "Make it readable, or leave it out: "
            f"envpack pack --prefix {quote(os.fspath(prefix))} --exclude {quote(pattern)}"
        )
    else:
        remedy = f"Make it readable: ls -ld {quote(os.fspath(path))}"
    return BrokenEnvironmentError(f"cannot read {path} on {host_name()}: {exc.strerror}", remedy)


def _write_error(path: Path, exc: OSError) -> EnvpackError:
    problem = f"cannot write {path} on {host_name()}: {exc.strerror}"
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(
            problem, "Choose another place with --output, or remove old archives: envpack gc --packs"
        )
    if exc.errno == errno.EFBIG:
        return PackFailedError(problem, "Allow larger files: ulimit -f unlimited")
    if exc.errno in (errno.ENOENT, errno.ESTALE):
        return PackFailedError(problem, "Something has removed it meanwhile; pack again")
    return PackFailedError(
        problem, f"Set {HOME_VARIABLE} to a folder on the shared file system that you can write, or --output"
    )
