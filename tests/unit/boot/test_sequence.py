"""`mpiboot boot` as a whole: whatever fails before there is a job directory is one line in the job's output."""

from mpiboot.boot import sequence


def test_an_error_that_nobody_has_foreseen_is_one_line(monkeypatch, caplog):
    def broken(config):
        raise KeyError("no such thing")

    monkeypatch.setattr(sequence, "boot", broken)
    assert sequence.main(["--env", "/e"]) == 1
    [line] = caplog.messages
    assert line.startswith(
        "mpiboot: an error that should not happen; please report it: KeyError: 'no such thing' ("
    )
