"""The kinds of options: how the values of each are read, checked and written.

`mpiboot.config` describes each option with one of these. Boot starts with this module: it imports neither click nor Dask.
"""

import re
import urllib.parse
from collections.abc import Sequence

from envpack.common.units import parse_duration_s, parse_size_bytes
from envpack.errors import MalformedValueError
from mpiboot.batch import registry
from mpiboot.common.mpi import PYPI_PACKAGES
from mpiboot.common.units import parse_walltime_s, show_duration, show_size
from mpiboot.option import Kind

# Ports that programs of ordinary users may open (ip(7), ip_unprivileged_port_start).
LEAST_PORT, MOST_PORT = 1024, 65535


def _count(text: str | int) -> int:
    try:
        number = int(text)
    except (ValueError, TypeError):
        number = 0
    if number < 1:
        raise MalformedValueError(f"{text!r} is not a count", "Write a whole number of at least 1")
    return number


def _port(text: str | int) -> int:
    number = int(text) if re.fullmatch("[0-9]{1,5}", str(text)) else 0
    if not LEAST_PORT <= number <= MOST_PORT:
        raise MalformedValueError(
            f"{text!r} is not a port that you may open", f"Write a number from {LEAST_PORT} to {MOST_PORT}"
        )
    return number


def _port_range(text: str) -> str:
    """Check a range of ports, and return it unchanged: Dask reads the same form."""
    low, colon, high = str(text).partition(":")
    if not colon:
        raise MalformedValueError(f"{text!r} is not a range of ports", "Write LOW:HIGH, such as 40000:40100")
    if _port(low) > _port(high):
        raise MalformedValueError(f"{text!r} begins after its end", "Write LOW:HIGH, such as 40000:40100")
    return str(text)


def _walltime(text: str | int) -> str:
    """Check a walltime, and return it unchanged: the batch system reads the same forms."""
    parse_walltime_s(str(text))
    return str(text)


def _flag(value: str | bool) -> bool:
    if isinstance(value, bool) or str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    raise MalformedValueError(f"{value!r} is not a flag", "Write true or false")


def _choice(*choices: str) -> Kind:
    def parse(text: str) -> str:
        if text not in choices:
            raise MalformedValueError(f"{text!r} is unknown", f"Write one of {', '.join(choices)}")
        return text

    return Kind(parse, choices=choices)


def _origins(text: str | Sequence[str]) -> str:
    """Parse origins of web pages, a list or text with blanks or commas in between; return them with blanks in between."""
    words = text.replace(",", " ").split() if isinstance(text, str) else text
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
    return str(int(number)) if number.is_integer() else repr(number)


TEXT = Kind(str)
PATH = Kind(str)
COUNT = Kind(_count)
FLAG = Kind(_flag)
# The argument names a unit, since a number without unit means MiB.
SIZE = Kind(
    parse_size_bytes,
    lambda size_bytes: _exact(size_bytes / 1024) + "K",
    show_size,
    "In MiB, or text such as '64G'",
)
DURATION = Kind(parse_duration_s, _exact, show_duration, "In seconds, or text such as '30 min'")
PORT = Kind(_port)
PORT_RANGE = Kind(_port_range, units="LOW:HIGH, such as '40000:40100'")
WALLTIME = Kind(_walltime, units="Minutes, H:MM:SS or D-HH:MM:SS")
# Every user of the machine can read the arguments of a job, so values of variables are passed in its environment.
VARIABLE = Kind(str, lambda item: item.partition("=")[0])
ORIGINS = Kind(_origins, units="Such as https://ondemand.example.org; several with blanks in between")
BATCH_SYSTEM = _choice("auto", *registry.NAMES)
MPI = _choice("auto", *PYPI_PACKAGES, *registry.launchers())
TRANSPORT = _choice("auto", "direct", "tree", *registry.transports())
