"""What an option is: `Option` holds every fact about one but its value, and a `Kind` reads and writes its values.

`mpiboot.config` describes the options of a job with these; the command lines and the Python signatures read them. Boot
starts with this module: it imports neither click nor Dask.
"""

import re
import urllib.parse
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from envpack.common.units import parse_duration_s, parse_size_bytes
from envpack.errors import MalformedValueError
from mpiboot.batch import registry
from mpiboot.common.mpi import PYPI_PACKAGES
from mpiboot.common.units import parse_walltime_s, show_duration, show_size
from mpiboot.errors import UsageError

# The places where an option may be set.
SUBMIT = "the command line of submit"
BOOT = "the command line of boot"
PYTHON = "a Python call"
FILE = "a configuration file"
ENVIRONMENT = "the environment"
EVERYWHERE = frozenset((SUBMIT, BOOT, PYTHON, FILE, ENVIRONMENT))
# Ports that programs of ordinary users may open (ip(7), ip_unprivileged_port_start).
LEAST_PORT, MOST_PORT = 1024, 65535


@dataclass(frozen=True, eq=False)
class Kind:
    """How the values of some options are read and written.

    Parameters
    ----------
    parse : callable
        Parses a value that a user typed or a file contains; raises MalformedValueError.
    write : callable
        Returns the argument of `boot` that `parse` turns into the same value.
    show : callable
        Returns a default value as text for the user.
    units : str
        A sentence about the units of a value, for the documentation.
    choices : tuple of str
        The allowed values; empty: all that `parse` accepts.
    """

    parse: Callable[[Any], Any]
    write: Callable[[Any], str] = str
    show: Callable[[Any], str] = str
    units: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """The description of one option; `Config` holds its value.

    Parameters
    ----------
    kind : Kind
        How its values are read and written.
    help : str
        Its meaning, in a few words.
    default : object
        Its default value; None if that depends on the environment or on the job.
    metavar : str
        The placeholder for the value in a command line's help.
    default_words : str
        Describes the default if it is not a fixed value.
    allowed_in : collection of str
        The places where it may be set.
    elsewhere : str
        The remedy of the error if it is set in another place.
    repeatable : bool
        Whether it may be given several times; its value is then a tuple.
    same_as : str
        The option of another program, such as dask-mpi, with the same meaning.
    variable : str
        Another environment variable that sets it, besides `DASK_MPIBOOT__NAME`.
    name : str
        Its name in Python and in files; set by `OPTIONS`.
    """

    kind: Kind
    help: str
    default: Any
    metavar: str = ""
    default_words: str = ""
    allowed_in: Collection[str] = EVERYWHERE
    elsewhere: str = ""
    repeatable: bool = False
    same_as: str = ""
    variable: str = ""
    name: str = ""

    @property
    def flag(self) -> str:
        """The option's name on a command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def full_help(self) -> str:
        """The help with the default value, for a command line."""
        default = self.default_words or ("" if self.default in (None, False, ()) else self.show_default())
        notes = [f"default: {default}"] if default else []
        notes += ["repeatable"] if self.repeatable else []
        return f"{self.help} [{'; '.join(notes)}]" if notes else self.help

    def show_default(self) -> str:
        return self.kind.show(self.default)

    def parse(self, value: Any) -> Any:
        """Parse a value that a user typed or a file contains.

        Raises
        ------
        UsageError
            `value` is not a value of this option; the message says which values are.
        """
        try:
            if self.repeatable:
                return tuple(self.kind.parse(item) for item in ([value] if isinstance(value, str) else value))
            return self.kind.parse(value)
        except MalformedValueError as error:
            raise UsageError(f"{self.flag}: {error.problem}", error.remedy) from error
        except TypeError as error:
            raise UsageError(f"{self.flag}: {value!r} is not a list", "Write a list of texts") from error


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
