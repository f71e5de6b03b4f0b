"""Paths as people type them, in options, variables and files: one rule for all of them.

`~`, `~user`, `$NAME` and `${NAME}` are replaced. A relative path starts from the working directory on a command line and
in Python. In a variable or a file, which hold for every working directory, it is refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.errors import MalformedValueError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envpack.common.places import StrPath

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)


def expand(path: StrPath, environ: Mapping[str, str] = os.environ) -> str:
    """Return a path with `~`, `~user`, `$NAME` and `${NAME}` replaced, as a shell does.

    `os.path.expanduser` and `os.path.expandvars` keep the names that they do not know.

    Raises
    ------
    MalformedValueError
        There is no such user, or the variable is not set.
    """
    text = os.fspath(path)
    rest = text

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in environ:
            raise MalformedValueError(
                f"{text!r}: the variable {name} is not set", "Write the path without it"
            )
        return environ[name]

    home = ""
    if text.startswith("~"):
        user, slash, rest = text[1:].partition("/")
        home = _home_of(user, text, environ).rstrip("/") + slash
    return home + _VARIABLE.sub(value, rest)


def _home_of(user: str, text: str, environ: Mapping[str, str]) -> str:
    import pwd

    if not user and environ.get("HOME"):
        return environ["HOME"]
    try:
        return (pwd.getpwnam(user) if user else pwd.getpwuid(os.getuid())).pw_dir
    except (KeyError, ValueError):  # ValueError: getpwnam takes no NUL and no lone surrogate
        problem = (
            f"there is no user {user!r}" if user else "HOME is not set, and your user id has no home folder"
        )
        raise MalformedValueError(f"{text!r}: {problem}", "Write an absolute path") from None


def check_absolute(path: str) -> str:
    """Return an absolute path, without superfluous slashes.

    Raises
    ------
    MalformedValueError
        The path is relative.
    """
    if not path.startswith("/"):
        raise MalformedValueError(
            f"{path!r} is a relative path, which means another file in each working directory",
            "Write an absolute path, or one that begins with ~/",
        )
    return str(Path(path))


def path_of_variable(variable: str, environ: Mapping[str, str]) -> str | None:
    """Return the path in an environment variable; None if it is unset or empty.

    Raises
    ------
    MalformedValueError
        The variable holds no absolute path.
    """
    text = environ.get(variable)
    try:
        return check_absolute(expand(text, environ)) if text else None
    except MalformedValueError as error:
        raise MalformedValueError(f"{variable}: {error.problem}", error.remedy) from error


def typed_path(text: str) -> str:
    """Return the absolute path that a command line or a Python call means.

    Raises
    ------
    MalformedValueError
        The path is empty, holds a NUL character, or cannot be expanded; or it is relative, and the working directory was
        removed.
    """
    if not text or "\0" in text:
        raise MalformedValueError(f"{text!r} is not a path", "Write the path of a file or a folder")
    try:
        return str(
            Path(expand(text)).absolute()
        )  # a link in it is the user's name for it, `..` after one too
    except FileNotFoundError as error:
        raise MalformedValueError(
            f"{text!r} is a relative path, and the working directory no longer exists",
            "Write an absolute path",
        ) from error
