"""`mpiboot boot` as a whole: whatever fails before there is a job directory is one line in the job's output."""

import pytest

from mpiboot.boot import sequence
from mpiboot.boot.signals import JobStop


def test_an_error_that_nobody_has_foreseen_is_one_line(monkeypatch, caplog):
    def broken(config):
        raise KeyError("no such thing")

    monkeypatch.setattr(sequence, "boot", broken)
    assert sequence.main(["--env", "/e"]) == 1
    [line] = caplog.messages
    assert line.startswith(
        "mpiboot: an error that should not happen; please report it: KeyError: 'no such thing' ("
    )


@pytest.mark.parametrize(
    ("command", "reason", "status"),
    [
        ([], "stopped", 0),
        (["--", "true"], "stopped", 143),
        ([], "walltime", 124),
        (["--", "true"], "walltime", 124),
    ],
)
def test_a_command_that_was_stopped_has_not_succeeded(monkeypatch, command, reason, status):
    """The batch system stops a job, too: it is preempted, or the prolog fails on a node."""

    def stopped(config):
        raise JobStop(reason)

    monkeypatch.setattr(sequence, "boot", stopped)
    assert sequence.main(["--env", "/e", *command]) == status
