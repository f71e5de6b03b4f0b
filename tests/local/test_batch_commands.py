"""Batch mode on this machine: whatever the command does to the cluster, it ends by itself, and its status counts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUBMIT = "mpiboot submit --batch-system local --workers-per-node 1 --cpus-per-worker 1 --no-stage --mem 1G --wait --"
CONNECT = (
    "import os, sys\nfrom distributed import Client\nif __name__ == '__main__':\n    client = Client()\n"
)


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("client.shutdown()\n    print('re' + 'sults')\n    sys.exit(5)", 5),
        ("client.retire_workers()\n    print('re' + 'sults')", 0),
        (
            "try:\n        client.run_on_scheduler(os._exit, 1)\n    except Exception:\n        pass\n"
            "    print('re' + 'sults', flush=True)\n    os._exit(6)",
            6,
        ),
        ("print('re' + 'sults', flush=True)\n    os.kill(os.getpid(), 9)", 137),
    ],
    ids=["shutdown", "retires all workers", "kills the scheduler", "dies"],
)
def test_a_command_ends_by_itself(tmp_path, monkeypatch, script, status):
    (tmp_path / "script.py").write_text(f"{CONNECT}    {script}\n")
    done, output = runs(tmp_path, monkeypatch, "python", "script.py")
    assert done.returncode == status, output
    assert "results" in output
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("command", "status"), [("no-such-program", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_started(tmp_path, monkeypatch, command, status):
    done, output = runs(tmp_path, monkeypatch, command)
    assert done.returncode == status
    assert f"mpiboot: {command} could not be started: " in output
    assert "Traceback" not in output


def runs(home, monkeypatch, *command):
    """Run a command in batch mode; return what `submit --wait` did, and the job's output."""
    monkeypatch.setenv("MPIBOOT_HOME", str(home))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    argv = [*SUBMIT.split(), *command]
    done = subprocess.run(argv, cwd=home, capture_output=True, text=True, timeout=120)
    return done, (home / f"logs/local-{done.stdout.strip()}.out").read_text()
