import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from envpack.common.places import host_name
from envpack.errors import EnvpackError
from mpiboot.cli.main import COMMANDS, commands
from mpiboot.config import options_in
from mpiboot.errors import DeadlineError, JobEndedError
from mpiboot.option import GROUPS, SUBMIT


# The job script alone calls boot.
@pytest.mark.parametrize("name", [None, *sorted(commands.commands.keys() - {"boot"})])
def test_help_has_an_example_and_fits_80_columns(run, name):
    status, out, err = run(*([name] if name else []), "--help")
    assert (status, err) == (0, "")
    assert [line for line in out.splitlines() if len(line) > 80] == []
    assert (f"Example:\n  mpiboot {name}" in out) == (name is not None)


def test_version(run):
    status, out, err = run("--version")
    assert (status, err) == (0, "") and out.startswith("mpiboot, version ")


def test_the_help_has_every_option_under_a_heading(run):
    _, out, _ = run("submit", "--help")
    headings = {}
    for line in out.splitlines():
        if re.match(r"\S.*:$", line):
            heading = headings.setdefault(line[:-1], [])
        elif flag := re.match(r"  (?:-\w, )?(--[\w-]+)", line):
            heading.append(flag[1])
    assert list(headings) == [*GROUPS, "Options", "Example"]
    for group in GROUPS:
        assert headings[group] == [option.flag for option in options_in(SUBMIT) if option.group == group]
    assert headings["Options"] == ["--dry-run", "--wait", "--help"]


def test_the_help_has_every_command_under_a_heading(run):
    _, out, _ = run("--help")
    assert sorted(re.findall(r"^  (\w+)  ", out, re.MULTILINE)) == sorted(commands.commands)
    assert re.findall(r"^(\S.*):$", out, re.MULTILINE)[1:] == list(COMMANDS)


def test_without_a_command_there_is_help(run):
    status, out, err = run()
    assert (status, out) == (2, "") and err.startswith("Usage: mpiboot [OPTIONS] ")


def test_boot_gets_its_arguments_as_typed(run, monkeypatch):
    got = []
    monkeypatch.setattr("mpiboot.boot.sequence.main", lambda arguments: got.append(arguments) or 7)
    assert run("boot", "--env", "x", "--", "python", "--", "-c")[0] == 7
    assert got == [("--env", "x", "--", "python", "--", "-c")]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (
            JobEndedError("job 1 has ended\nIt left no log.", "Submit it again: mpiboot submit"),
            1,
            "mpiboot: job 1 has ended\nIt left no log.\nSubmit it again: mpiboot submit\n",
        ),
        (EnvpackError("/e cannot be packed", "Repair it"), 1, "mpiboot: /e cannot be packed. Repair it\n"),
        (DeadlineError("too late", "Wait longer"), 124, "mpiboot: too late. Wait longer\n"),
        (
            PermissionError(13, "Permission denied", "/x"),
            1,
            f"mpiboot: /x on {host_name()}: Permission denied. "
            "Set MPIBOOT_HOME to a folder on the shared file system that you can write\n",
        ),
        (KeyboardInterrupt("job 1 goes on"), 130, "\nmpiboot: job 1 goes on\n"),
        (KeyboardInterrupt(), 130, "\nmpiboot: interrupted\n"),
    ],
)
def test_errors_become_messages_and_exit_statuses(run, monkeypatch, error, status, message):
    def fail(*_):
        raise error

    monkeypatch.setattr("mpiboot.client.find.find_job", fail)
    assert run("stop", "1") == (status, "", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "--nodes", "0"], r"--nodes: '0' is not a count\. Write a whole number of at least 1"),
        (
            ["submit", "--nodez"],
            r"there is no option --nodez \(did you mean --nodes\?\)\. See: mpiboot submit --help",
        ),
        (
            ["submit", "--ntasks-per-node", "4"],
            r"there is no option --ntasks-per-node \(did you mean --workers-per-node",
        ),
        (
            ["submit", "--qos=a"],
            r"there is no option --qos\. One of the batch system's: --batch-arg=--qos; ours: mpib",
        ),
        (
            ["submit", "-n", "4"],
            r"there is no option -n\. One of the batch system's: --batch-arg=-n; ours: mpiboot su",
        ),
        (["sumbit"], r"No such command 'sumbit'\. Did you mean 'submit'\? See: mpiboot --help"),
        (["submit", "--nodes"], r"Option '--nodes' requires an argument\. See: mpiboot submit --help"),
        (["submit", "--env", ""], r"--env: the text is empty\. Leave the option out for its default"),
        (["list", "x"], r"Got unexpected extra argument \(x\)\. See: mpiboot list --help"),
        (["nonsense"], r"No such command 'nonsense'\. See: mpiboot --help"),
        (["--nonsense"], r".*--nonsense.*\. See: mpiboot --help"),
        (["connect", "7", "--timeout", "abc"], "--timeout: 'abc' is not a time"),
        (["connect", "7", "--queue-timeout", "abc"], "--queue-timeout: 'abc' is not a time"),
    ],
)
def test_wrong_usage_is_status_2(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.match(f"mpiboot: {message}", err)


def test_insecure_is_a_red_warning(monkeypatch):
    monkeypatch.setattr("mpiboot.client.find.live_jobs", lambda: [])
    shown = CliRunner().invoke(commands, ["connect", "--insecure"], color=True).output
    assert shown == "\x1b[31m--insecure: anyone who reaches the job's nodes can run code as you\x1b[0m\n"


def test_the_command_starts_without_distributed():
    code = (
        "import sys, mpiboot.cli.main; print(*{'dask', 'distributed', 'pandas', 'rich'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "\n"
