import io
import sys
import types

import pytest

from mpiboot.cli import output
from mpiboot.client import progress

LINES = ["job 7 is PENDING (Resources)", "1 of 8 workers", "1 of 8 workers", "2 of 8 workers"]


def tell(lines=LINES, given=None):
    with progress.choose_display(given) as show:
        for line in lines:
            show(line)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_that_repeats_is_told_once():
    told = []
    tell(given=told.append)
    assert told == [LINES[0], LINES[1], LINES[3]]


def test_standard_error_may_be_closed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    tell()
    assert output.progress_here() is output.echo_stderr


def test_quiet_where_nobody_looks(capfd):
    tell()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("colour", [True, False])
def test_one_moving_line_in_a_terminal(monkeypatch, colour):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    tell(["job 7 is [red]PENDING[/red]"])
    shown = terminal.getvalue()
    assert "job 7 is [red]PENDING[/red]" in shown
    assert ("\x1b[3" in shown) is colour


def test_the_steps_so_far_in_a_notebook(monkeypatch):
    outputs = []

    class Handle:
        def update(self, output):
            outputs[-1] = output

    def display(output, display_id):
        outputs.append(output)
        return Handle()

    shell = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.HTML, ipython.display.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    tell([*LINES, "<script>"])
    [shown] = outputs
    assert shown.count("PENDING") == 1 and "1 of 8" not in shown and "2 of 8 workers" in shown
    assert "<script>" not in shown and "&lt;script&gt;" in shown
