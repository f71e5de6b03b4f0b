"""Output that several commands share."""

import codecs
import io
import sys

import click


def echo_stderr(line: str) -> None:
    """Print a line to stderr; only a command's results go to stdout."""
    click.echo(line, err=True)


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
