"""Displays the progress of a wait: one line in a terminal, all steps in a notebook, nothing elsewhere."""

from __future__ import annotations

import contextlib
import html
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from mpiboot.protocol.variables import NO_COLOR

Progress = Callable[[str], None]


@contextlib.contextmanager
def choose_display(progress: Progress | None) -> Iterator[Progress]:
    """Give a function that displays a line, unless it repeats the last one. `progress` replaces the display."""
    with _display(progress) as show:
        last = ""

        def tell(line: str) -> None:
            nonlocal last
            if line != last:
                last = line
                show(line)

        yield tell


@contextlib.contextmanager
def _display(progress: Progress | None) -> Iterator[Progress]:
    if progress is not None:
        yield progress
    elif in_notebook():
        yield Notebook().show
    elif in_terminal():
        with terminal() as show:
            yield show
    else:
        yield lambda line: None


def in_terminal() -> bool:
    """Whether somebody sees standard error; there is none after `2>&-`, as in some services."""
    return bool(sys.stderr and sys.stderr.isatty())


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


@contextlib.contextmanager
def terminal() -> Iterator[Progress]:
    """Show a line with a spinner and the elapsed time; it disappears when the wait ends."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, no_color=True if NO_COLOR in os.environ else None)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda line: bar.update(task, description=escape(line))


class Notebook:
    """Shows the steps so far in one output, updated in place. It shows no secrets: notebooks are saved and shared."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.steps: list[tuple[float, str]] = []
        self.handle: Any = None

    def show(self, line: str) -> None:
        from IPython.display import HTML, display  # type: ignore[import-not-found,unused-ignore]

        # "3 of 8 workers" replaces "2 of 8 workers".
        if self.steps and _kind(self.steps[-1][1]) == _kind(line):
            self.steps.pop()
        self.steps.append((time.monotonic() - self.began, line))
        rows = "".join(
            f"<div>{seconds:6.1f} s &nbsp; {html.escape(text)}</div>" for seconds, text in self.steps
        )
        shown = HTML(f'<div style="font-family: monospace">{rows}</div>')
        if self.handle is None:
            self.handle = display(shown, display_id=True)
        else:
            self.handle.update(shown)


def _kind(line: str) -> str:
    return "".join(character for character in line if not character.isdigit())
