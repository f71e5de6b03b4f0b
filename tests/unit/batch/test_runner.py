import os
import socket
import sys

import pytest

from mpiboot.batch.runner import run
from mpiboot.errors import BatchAwayError, BatchError


def sh(lines):
    return ["sh", "-c", lines]


def test_standard_output_is_returned_and_nothing_is_read():
    assert run(sh("cat; echo answer; echo warning >&2")) == "answer\n"


def test_the_environment_is_the_given_one():
    command = sh("echo ${MPIBOOT_TEST-unset}")
    assert run(command, environ={**os.environ, "MPIBOOT_TEST": "set"}) == "set\n"
    assert run(command, environ={"PATH": os.environ["PATH"]}) == "unset\n"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("echo 'no such queue' >&2; exit 3", "sh: no such queue. See the queues: toyq"),
        ("echo 'sh: no such queue' >&2; exit 3", "sh: no such queue. See the queues: toyq"),
        ("exit 3", "sh: exit status 3. See the queues: toyq"),
        (  # a site's wrapper around the command
            f"{sys.executable} -c 'raise KeyError(1)'",
            "sh: KeyError: 1. See the queues: toyq",
        ),
    ],
)
def test_a_failure_has_the_commands_own_words(lines, message):
    with pytest.raises(BatchError) as error:
        run(sh(lines), is_away=lambda text: "away" in text, remedy="See the queues: toyq")
    assert (type(error.value), str(error.value)) == (BatchError, message)


def test_a_batch_system_that_is_away_is_told_from_one_that_refuses():
    with pytest.raises(BatchAwayError, match="sh: controller away"):
        run(sh("echo 'controller away' >&2; exit 1"), is_away=lambda text: "away" in text)


def test_a_command_that_is_not_installed():
    with pytest.raises(
        BatchError,
        match=rf"^no-such-command cannot be run on {socket.gethostname()}: No such file.*\. Type this where",
    ) as error:
        run(["no-such-command"])
    assert type(error.value) is BatchError


def test_a_command_that_does_not_answer():
    with pytest.raises(BatchAwayError) as error:
        run(["sleep", "60"], timeout_s=0.05)
    assert str(error.value) == (
        f"sleep did not answer within 0 s on {socket.gethostname()}. Type it by hand: sleep 60"
    )
    with pytest.raises(BatchError) as error:
        run(
            sh("echo 'no configuration' >&2; exec sleep 60"),
            timeout_s=0.3,
            is_away=lambda text: "no configuration" not in text,
        )
    assert type(error.value) is BatchError and "(no configuration)" in str(error.value)
