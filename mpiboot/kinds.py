"""The kinds of options: how the values of each are read, checked and written.

`mpiboot.config` describes each option with one of these. A value is a text that a user typed, or what YAML or Python made
of it: a kind does not take a number for a text. Boot starts with this module: it imports neither click nor Dask.
"""

import os
import re
import urllib.parse
from pathlib import Path
from typing import Any

from envpack.common.paths import check_absolute, expand, typed_path
from envpack.common.places import HOME_VARIABLE, STAGE_ROOT_VARIABLE
from envpack.common.units import parse_duration_s, parse_size_bytes
from envpack.errors import MalformedValueError
from mpiboot.batch import registry
from mpiboot.common.mpi import PYPI_PACKAGES
from mpiboot.common.units import parse_walltime_s, show_duration, show_size
from mpiboot.option import BOOT, ENVIRONMENT, FILE, Kind, shown
from mpiboot.protocol.variables import (
    CONDA_PREFIX,
    DASK_OPTIONS_PREFIX,
    MPIBOOT_PREFIX,
    VIRTUAL_ENV,
)

MOST_COUNT = 1_000_000
# Ports that programs of ordinary users may open (ip(7), ip_unprivileged_port_start).
LEAST_PORT, MOST_PORT = 1024, 65535


def _text(value: Any) -> str:
    if not isinstance(value, str):
        is_scalar = value is not None and not isinstance(value, list | tuple | dict | set)
        raise MalformedValueError(
            f"{shown(value)} is not a text", "Write it in quotes" if is_scalar else "Write one text"
        )
    if not value:
        raise MalformedValueError("the text is empty", "Leave the option out for its default")
    if "\0" in value:
        raise MalformedValueError("the text holds a NUL character, which no argument can hold", "Remove it")
    return value


def _path(value: Any) -> str:
    return _text(
        value if isinstance(value, str) else os.fspath(value) if hasattr(value, "__fspath__") else value
    )


def _place_path(path: str, place: str) -> str:
    """Return the absolute path that `path` means in one of the places where options stand."""
    if place == BOOT and not path.startswith("~"):  # submit has expanded it, and a name may hold a `$`
        return str(Path(path).absolute())
    return check_absolute(expand(path)) if place in (FILE, ENVIRONMENT) else typed_path(path)


def _whole(value: Any) -> int | None:
    """Return a whole number; None if `value` is none. True and 2.0 are none."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*[0-9]{1,18}\s*", value, re.ASCII) else None
    is_whole = hasattr(value, "__index__") and not isinstance(value, bool)
    return int(value) if is_whole else None


def _count(value: Any) -> int:
    number = _whole(value)
    if number is None or number < 1:
        raise MalformedValueError(f"{value!r} is not a count", "Write a whole number of at least 1")
    if number > MOST_COUNT:
        raise MalformedValueError(f"{value!r} is too many", f"Write a whole number up to {MOST_COUNT}")
    return number


def _port(value: Any) -> int:
    number = _whole(value)
    if number is None or not LEAST_PORT <= number <= MOST_PORT:
        raise MalformedValueError(
            f"{value!r} is not a port that you may open", f"Write a number from {LEAST_PORT} to {MOST_PORT}"
        )
    return number


def _port_range(value: Any) -> str:
    """Check a range of ports, and return it in the form that Dask reads."""
    low, colon, high = str(value).partition(":")
    if not colon:
        raise MalformedValueError(f"{value!r} is not a range of ports", "Write LOW:HIGH, such as 40000:40100")
    if _port(low) > _port(high):
        raise MalformedValueError(f"{value!r} begins after its end", "Write LOW:HIGH, such as 40000:40100")
    return f"{_port(low)}:{_port(high)}"


def _walltime(value: Any) -> str:
    """Check a walltime, and return it unchanged: the batch system reads the same forms.

    A number is refused, since it may be what YAML has made of `12:00:00`, and other options count in seconds.
    """
    if not isinstance(value, str):
        raise MalformedValueError(f"{shown(value)} is not a text", "Write it in quotes, such as '12:00:00'")
    parse_walltime_s(value)
    return value.strip()


def _flag(value: Any) -> bool:
    if str(value).strip().lower() in ("true", "false"):
        return str(value).strip().lower() == "true"
    raise MalformedValueError(f"{value!r} is not a flag", "Write true or false")


def _variable(value: Any) -> str:
    text = _text(value)
    name, equals, _ = text.partition("=")
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise MalformedValueError(f"{name!r} is not the name of a variable", "Write NAME or NAME=VALUE")
    if name in (HOME_VARIABLE, STAGE_ROOT_VARIABLE) or name.startswith(DASK_OPTIONS_PREFIX):
        raise MalformedValueError(
            f"{name} is mpiboot's own, and the job gets what it is when you submit",
            f"Set it in your shell: export {name}=...",
        )
    # With another HOME, boot and client would look for the job's directory in different places.
    is_fixed = name in ("PATH", CONDA_PREFIX, VIRTUAL_ENV) or (name == "HOME" and equals)
    if is_fixed or name.startswith((MPIBOOT_PREFIX, *registry.variable_prefixes())):
        raise MalformedValueError(
            f"mpiboot or the batch system sets {name} in each job", "Leave it out, or choose another name"
        )
    return text


def _choice(*choices: str) -> Kind:
    def parse(value: Any) -> str:
        if value not in choices:
            raise MalformedValueError(f"{value!r} is unknown", f"Write one of {', '.join(choices)}")
        return str(value)

    return Kind(parse, choices=choices)


def _origins(text: Any) -> str:
    """Parse origins of web pages, a list or text with blanks or commas in between; return them with blanks in between."""
    words = text if isinstance(text, list | tuple) else _text(text).replace(",", " ").split()
    return " ".join(dict.fromkeys(_origin(word) for word in words))


def _origin(word: str) -> str:
    try:
        url = urllib.parse.urlsplit(word.strip().lower())
        port = url.port  # raises ValueError if it is no number
    except (ValueError, AttributeError):
        url, port = urllib.parse.SplitResult("", "", "", "", ""), None
    is_origin = url.scheme in ("http", "https") and url.hostname and "*" not in url.netloc
    if not is_origin or "@" in url.netloc or url.path.strip("/") or url.query or url.fragment:
        raise MalformedValueError(
            f"{word!r} is not the origin of a web page",
            "Write what the browser's address bar begins with, up to the first single slash, such as "
            "https://ondemand.example.org",
        )
    # A browser leaves out the scheme's usual port.
    usual = {"http": 80, "https": 443}[url.scheme] == port
    return f"{url.scheme}://{url.netloc.removesuffix(f':{port}') if usual else url.netloc}"


def _exact(number: float) -> str:
    """Return the shortest decimal number that equals `number` when parsed."""
    number = float(number)
    return str(int(number)) if number.is_integer() else repr(number)


TEXT = Kind(_text)
PATH = Kind(_path, _place_path)
COUNT = Kind(_count)
FLAG = Kind(_flag)
# The argument names a unit, since a number without unit means MiB.
SIZE = Kind(
    lambda value: parse_size_bytes(value, allow_zero=True),
    write=lambda size_bytes: _exact(size_bytes / 1024) + "K",
    show=show_size,
    units="In MiB, or text such as '64G'",
)
DURATION = Kind(
    parse_duration_s, write=_exact, show=show_duration, units="In seconds, or text such as '30 min'"
)
PORT = Kind(_port)
PORT_RANGE = Kind(_port_range, units="LOW:HIGH, such as '40000:40100'")
WALLTIME = Kind(_walltime, units="Text: minutes, H:MM:SS or D-HH:MM:SS")
# Every user of the machine can read the arguments of a job, so values of variables are passed in its environment.
VARIABLE = Kind(_variable, write=lambda item: item.partition("=")[0])
ORIGINS = Kind(_origins, units="Such as https://ondemand.example.org; several with blanks in between")
BATCH_SYSTEM = _choice("auto", *registry.NAMES)
MPI = _choice("auto", *PYPI_PACKAGES, *registry.launchers())
TRANSPORT = _choice("auto", "direct", "tree", *registry.transports())
