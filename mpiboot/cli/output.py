"""What several commands print."""

import click


def echo_stderr(line: str) -> None:
    """Print what is not a result of the command: results alone go to stdout."""
    click.echo(line, err=True)


def warn_insecure() -> None:
    click.secho("--insecure: anyone who reaches the job's nodes can run code as you", fg="red", err=True)
