"""The command of batch mode, as boot starts it."""

from types import SimpleNamespace

import pytest

from mpiboot.boot.command import start_command
from mpiboot.errors import UsageError
from mpiboot.protocol.variables import MPI_ONLY_VARIABLE


def start(folder, *command):
    context = SimpleNamespace(
        config=SimpleNamespace(command=command),
        directory=SimpleNamespace(scheduler_file=folder / "scheduler.json"),
    )
    variables = {"PATH": "/usr/bin:/bin", MPI_ONLY_VARIABLE: ""}
    return start_command(context, variables, {"address": "tls://10.0.0.1:9"})


def test_a_command_inherits_the_schedulers_address(tmp_path):
    out = tmp_path / "out"
    script = f'echo "$DASK_SCHEDULER_ADDRESS $MPIBOOT_SCHEDULER_FILE" > {out}; exit 3'
    assert start(tmp_path, "sh", "-c", script).wait(30) == 3
    assert out.read_text() == f"tls://10.0.0.1:9 {tmp_path}/scheduler.json\n"


FULL_PATH = "Write the full path of an executable file after --"


@pytest.mark.parametrize(
    ("command", "status", "cause", "remedy"),
    [
        ("/no/such/program", 127, "No such file or directory", FULL_PATH),
        ("/etc/passwd", 126, "Permission denied", "Make it executable: chmod +x /etc/passwd"),
        ("/", 126, "Permission denied", FULL_PATH),
        ("python\0", 126, "embedded null byte", FULL_PATH),
    ],
)
def test_a_command_that_cannot_be_started_has_a_shells_exit_status(tmp_path, command, status, cause, remedy):
    with pytest.raises(UsageError) as error:
        start(tmp_path, command)
    assert error.value.exit_status == status
    assert str(error.value) == f"{command} could not be started: {cause}. {remedy}"
