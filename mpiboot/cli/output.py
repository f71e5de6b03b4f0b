"""Output that several commands share."""

import codecs
import contextlib
import io
import sys
from collections.abc import Callable, Iterator

import click

from mpiboot.client.progress import in_terminal


def echo_stderr(line: str) -> None:
    """Print a line to stderr; only a command's results go to stdout."""
    click.echo(line, err=True)


def progress_here() -> Callable[[str], None] | None:
    """Return what takes the lines of progress: None for the display of a terminal."""
    return None if in_terminal() else echo_stderr


@contextlib.contextmanager
def interrupted_with(hint: str) -> Iterator[None]:
    """Let a Ctrl-C end the command with this hint, unless it has one already."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(str(error) or hint) from None


def warn_insecure() -> None:
    click.secho("--insecure: anyone who reaches the job's nodes can run code as you", fg="red", err=True)


def encode_everything() -> None:
    """Make stdout take every text: bytes of paths as they are, and escapes for what the locale cannot encode."""
    codecs.register_error("mpiboot", _bytes_or_escape)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="mpiboot")


def _bytes_or_escape(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)
