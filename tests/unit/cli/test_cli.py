import pytest
from click.testing import CliRunner

from mpiboot.cli import main as cli
from mpiboot.errors import DeadlineError, JobEndedError


def run(capsys, *arguments):
    status = cli.main(arguments)
    return status, *capsys.readouterr()


# The job script alone calls boot.
@pytest.mark.parametrize("name", [None, *sorted(cli.command_line.commands.keys() - {"boot"})])
def test_help_has_an_example_and_fits_80_columns(capsys, name):
    status, out, err = run(capsys, *([name] if name else []), "--help")
    assert (status, err) == (0, "")
    assert [line for line in out.splitlines() if len(line) > 80] == []
    assert (f"Example:\n  mpiboot {name}" in out) == (name is not None)


def test_version(capsys):
    status, out, err = run(capsys, "--version")
    assert (status, err) == (0, "") and out.startswith("mpiboot, version ")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (JobEndedError("job 1 has ended"), 1, "mpiboot: job 1 has ended\n"),
        (DeadlineError("too late"), 124, "mpiboot: too late\n"),
        (KeyboardInterrupt("job 1 goes on"), 130, "\nmpiboot: job 1 goes on\n"),
        (KeyboardInterrupt(), 130, "\nmpiboot: interrupted\n"),
    ],
)
def test_errors_become_exit_statuses(capsys, monkeypatch, error, status, said):
    def fail(*_):
        raise error

    monkeypatch.setattr("mpiboot.client.find.find_job", fail)
    assert run(capsys, "stop", "1") == (status, "", said)


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "--nodes", "0"],
        ["submit", "--nodez"],
        ["nonsense"],
        ["connect", "7", "--timeout", "abc"],
        ["connect", "7", "--queue-timeout", "abc"],
    ],
)
def test_bad_usage_is_status_2(capsys, arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "") and err


def test_no_job_is_no_output_for_programs(capsys, monkeypatch):
    monkeypatch.setattr("mpiboot.client.find.live_jobs", list)
    assert run(capsys, "list", "--json") == (0, "[]\n", "")
    assert run(capsys, "list") == (0, "", "no job of mpiboot's is pending or running\n")


def test_the_job_script_is_printed(capsys):
    status, out, err = run(capsys, "jobscript", "slurm")
    assert (
        (status, err) == (0, "")
        and out.startswith("#!/bin/bash\n")
        and "#SBATCH --signal=B:USR1@120\n" in out
    )
    assert run(capsys, "jobscript", "lsf") == (
        2,
        "",
        "mpiboot: no job script for 'lsf'; there are slurm and local\n",
    )


def test_insecure_is_said_in_red(monkeypatch):
    monkeypatch.setattr("mpiboot.client.find.live_jobs", lambda: [])
    shown = CliRunner().invoke(cli.command_line, ["connect", "--insecure"], color=True).output
    assert shown == "\x1b[31m--insecure: anyone who reaches the job's nodes can run code as you\x1b[0m\n"
