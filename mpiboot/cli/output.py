"""Output that several commands share."""

import click


def echo_stderr(line: str) -> None:
    """Print a line to stderr; only a command's results go to stdout."""
    click.echo(line, err=True)


def warn_insecure() -> None:
    click.secho("--insecure: anyone who reaches the job's nodes can run code as you", fg="red", err=True)
