import subprocess
import sys
from types import SimpleNamespace

import pytest

from mpiboot.batch.job_state import JobState


def test_the_job_script_is_printed(run):
    status, out, err = run("jobscript", "slurm")
    assert (status, err) == (0, "")
    assert out.startswith("#!/bin/bash\n") and "#SBATCH --signal=B:USR1@120\n" in out
    status, out, err = run("jobscript", "nonsense")
    assert (status, out) == (2, "") and err.startswith(
        "mpiboot: there is no batch system 'nonsense'. Use one of: slurm, "
    )


COME_BACK = "job 7 goes on. Come back: mpiboot connect 7; end it: mpiboot stop 7"


class Job:
    job_id = "7"

    def how_to_come_back(self, insecure):
        return COME_BACK


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("arguments", "interrupted", "out", "hint"),
    [
        (["connect"], "client.find.find_job", "", "interrupted. Come back: mpiboot connect"),
        (["connect", "7"], "client.find.find_job", "", "interrupted. Come back: mpiboot connect 7"),
        (["connect", "7"], "cli.connecting.wait_and_show", "", COME_BACK),
        (
            ["submit"],
            "client.submit.submit_config",
            "",
            "interrupted. See whether a job was submitted: mpiboot list",
        ),
        (["submit", "--wait"], "cli.submitting.wait_and_show", "7\n", COME_BACK),
        (["submit", "--wait", "true"], "client.batch_mode.wait_for_command", "7\n", COME_BACK),
    ],
)
def test_ctrl_c_says_how_to_come_back_from_the_first_second_on(
    run, monkeypatch, tmp_path, arguments, interrupted, out, hint
):
    monkeypatch.setattr("mpiboot.client.find.find_job", lambda name: Job())
    monkeypatch.setattr("mpiboot.client.submit.submit_config", lambda config, say: Job())
    monkeypatch.setattr(f"mpiboot.{interrupted}", interrupt)
    assert run(*arguments) == (130, out, f"\nmpiboot: {hint}\n")


def test_ctrl_c_while_the_command_is_imported():
    code = """
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "mpiboot.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from mpiboot.cli.start import start
sys.exit(start())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (
        130,
        "",
        "\nmpiboot: interrupted. Jobs go on; see them: mpiboot list\n",
    )


class FailedJob(Job):
    def log_files(self):
        return []

    def exit_status(self):
        return 1

    def why_no_log(self, state):
        return "It left no log. Perhaps the node could not write /tmp/x/slurm-7.out", "Submit it elsewhere"


def test_a_command_without_output_is_explained(run, monkeypatch):
    state = JobState("7", "", "ended", "FAILED", "JobLaunchFailure", nodes="node1")
    monkeypatch.setattr("mpiboot.client.settings.load_config", lambda *_: SimpleNamespace(insecure=False))
    monkeypatch.setattr("mpiboot.client.submit.submit_config", lambda *_, **__: FailedJob())
    monkeypatch.setattr("mpiboot.client.batch_mode.wait_for_command", lambda *_: state)
    assert run("submit", "--wait", "true") == (
        1,
        "7\n",
        "job 7: FAILED (JobLaunchFailure)\n"
        "It left no log. Perhaps the node could not write /tmp/x/slurm-7.out\nSubmit it elsewhere\n",
    )
