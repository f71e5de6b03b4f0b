"""Checks whether a path can be trusted: who owns it, and who else could have made, changed or replaced it.

All rooms may import this; it imports `envpack.common.trust`, which envpack uses too, and the errors. Agents import it
from the shared file system, on all nodes at once, so it imports few modules.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from envpack.common.places import TRUSTED_FOLDERS_VARIABLE
from envpack.common.trust import ownership_fault, user_name
from mpiboot.errors import SecurityError

if TYPE_CHECKING:
    from envpack.common.places import StrPath

_LINKS_MAX = 40  # Linux's own limit, path_resolution(7)
_OTHER_FOLDER = "Use a folder that only you and root can change: set MPIBOOT_HOME (or MPIBOOT_STAGE_ROOT)"
# user_namespaces(7)
_UID_MAP = Path("/proc/self/uid_map")
_OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")


def check_trusted(path: StrPath, kind: Literal["directory", "file"]) -> None:
    """Refuse a path that another user could have made, changed or replaced.

    Parameters
    ----------
    path : str or os.PathLike
        The path. It must belong to this user, with no permissions for others.
    kind : {"directory", "file"}
        What it must be.

    Raises
    ------
    SecurityError
        Another user than this one and root could change the path, or a directory or link on the way to it; the message
        says which, and why.
    FileNotFoundError
        There is no such path.
    """
    path = Path(path).absolute()
    try:
        *passed, (last, status) = _walk(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SecurityError(
            f"{path} cannot be trusted: {error.filename}: {error.strerror}", _OTHER_FOLDER
        ) from error
    vouched_for = trusted_folders(os.environ)
    for component, component_status in passed:
        reason = _passable_fault(component_status)
        if reason and component not in vouched_for:
            raise SecurityError(
                f"{path} cannot be trusted: {component} {reason}",
                _remedy_on_the_way(component, component_status),
            )
    if reason := ownership_fault(status, kind):
        raise SecurityError(f"{last} cannot be trusted: it {reason}", _remedy_at_the_end(last, status, kind))


def open_trusted(path: StrPath, max_bytes: int, *, secret: bool = True) -> bytes:
    """Read a file that must belong to this user. The open file itself is checked, so no other can take its place.

    The directories on the way are not checked: call `check_trusted` once for the directory.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    max_bytes : int
        Its largest allowed size, in bytes.
    secret : bool, default True
        Whether to refuse a file that others can read. False: refuse only a file that others can write; others may read
        Dask's own scheduler file.

    Returns
    -------
    bytes
        The file's content.

    Raises
    ------
    SecurityError
        It is a link or no regular file, belongs to another user, is open to others, unreadable, or too large.
    FileNotFoundError
        There is no such file.
    """
    path = Path(path)
    try:
        # O_NONBLOCK: opening a FIFO that another user put there would wait for a writer.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise SecurityError(f"{path} cannot be trusted: {reason}", _remove(path)) from error
    try:
        status = os.fstat(file)
        if reason := ownership_fault(status, "file", 0o077 if secret else 0o022):
            raise SecurityError(
                f"{path} cannot be trusted: it {reason}", _remedy_at_the_end(path, status, "file")
            )
        with os.fdopen(file, "rb", closefd=False) as stream:
            content = stream.read(max_bytes + 1)
    finally:
        os.close(file)
    if len(content) > max_bytes:
        raise SecurityError(f"{path} cannot be trusted: it has more than {max_bytes} bytes", _remove(path))
    return content


def remove_files(directory: StrPath) -> None:
    """Remove a directory that holds plain files only, never through a link.

    It need not exist, and two processes may remove it at once.

    Parameters
    ----------
    directory : str or os.PathLike
        The directory.

    Raises
    ------
    OSError
        It is a link, or holds a directory.
    """
    directory = Path(directory)
    with contextlib.suppress(FileNotFoundError):
        # By descriptor, so that nobody can replace the directory meanwhile.
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with os.scandir(descriptor) as entries:
                for name in [entry.name for entry in entries]:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        directory.rmdir()


def _walk(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield every directory and link that the kernel passes on its way to `path`, and `path` itself."""
    todo = list(reversed(path.parts))
    here = Path()
    links = 0
    while todo:
        part = todo.pop()
        here = (
            here.parent if part == ".." else here / part
        )  # `here` never ends in a link: its parent is right
        status = here.lstat()
        yield here, status
        if stat.S_ISLNK(status.st_mode) and todo:
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(here))
            todo += reversed(here.readlink().parts)
            here = here.parent


def trusted_folders(environ: Mapping[str, str]) -> frozenset[Path]:
    """Return the folders that the user trusts although others can change them: `MPIBOOT_TRUSTED_FOLDERS`.

    Raises
    ------
    MalformedValueError
        A path is relative, or cannot be expanded.
    """
    listed = [folder for folder in environ.get(TRUSTED_FOLDERS_VARIABLE, "").split(":") if folder]
    if not listed:
        return frozenset()
    # Imported here, as agents start with this module and seldom need it.
    from envpack.common.paths import check_absolute, expand

    return frozenset(Path(check_absolute(expand(folder, environ))) for folder in listed)


def _owners_of_the_system() -> frozenset[int]:
    """Return root's user id and, in a user namespace such as a rootless container's, the one that stands for it.

    There, files of users that the namespace does not map, root among them, seem to belong to the overflow uid.
    """
    try:
        ranges = [tuple(map(int, line.split())) for line in _UID_MAP.read_text().splitlines()]
        overflow = int(_OVERFLOW_UID.read_text())
    except (OSError, ValueError):
        return frozenset((0,))
    is_mapped = any(first <= overflow < first + count for first, _, count in ranges)
    return frozenset((0,) if is_mapped else (0, overflow))


def _passable_fault(status: os.stat_result) -> str | None:
    """Return why a directory or link on the way is not safe; None if it is safe."""
    if status.st_uid != os.geteuid() and status.st_uid not in _owners_of_the_system():
        return f"belongs to {user_name(status.st_uid)}, who could swap what lies behind it"
    if stat.S_ISLNK(status.st_mode):
        return None  # a link's own mode means nothing; its directory's mode says who may replace it
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        return f"can be written by others (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def _remedy_on_the_way(path: Path, status: os.stat_result) -> str:
    if status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode):
        return f"If you trust what is in there: chmod go-w {shlex.quote(str(path))}"
    if stat.S_ISDIR(status.st_mode):
        return (
            f"{_OTHER_FOLDER}. Or, if you trust everyone who can write to {path}: "
            f"export {TRUSTED_FOLDERS_VARIABLE}={shlex.quote(str(path))}"
        )
    return _OTHER_FOLDER


def _remedy_at_the_end(path: Path, status: os.stat_result, kind: Literal["directory", "file"]) -> str:
    right_kind = stat.S_IFDIR if kind == "directory" else stat.S_IFREG
    if status.st_uid == os.geteuid() and stat.S_IFMT(status.st_mode) == right_kind:
        return f"If you trust its content: chmod go-rwx {shlex.quote(str(path))}"
    return "Somebody else may have put it there: remove it, or set MPIBOOT_HOME to a folder of your own"


def _remove(path: Path) -> str:
    return f"Submit the job again, once it is removed: rm {shlex.quote(str(path))}"
