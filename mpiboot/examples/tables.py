"""Tables of text, for terminals and logs. The examples use this module."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table of at most 80 columns, with numbers aligned to the right.

    Parameters
    ----------
    title : str
    columns : sequence of str
        The headings of the columns.
    rows : sequence of sequence of str
        The cells. A column contains numbers if each of its cells begins with a digit.

    Returns
    -------
    str
        The table, with colours only if stdout is a terminal.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        number = all(row[i].lstrip("-")[:1].isdigit() for row in rows)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    with console.capture() as capture:
        console.print(title, style="bold")
        console.print(table, width=min(80, console.width))
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines()) + "\n"
