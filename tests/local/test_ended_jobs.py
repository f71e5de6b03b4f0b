"""What a user types about several jobs, and about those that have ended: stop, list --all, logs --tail, gc."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SUBMIT = "mpiboot submit --batch-system local --workers-per-node 1 --cpus-per-worker 1 --no-stage --mem 1G"


@pytest.fixture
def types(tmp_path, monkeypatch):
    """Type a command, as a user whose home is empty; returns status, stdout and stderr."""
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.delenv("COLUMNS", raising=False)

    def types(line):
        done = subprocess.run(line.split(), cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stdout + done.stderr
        return done.returncode, done.stdout, done.stderr

    yield types
    live = types("mpiboot list")[1].splitlines()[1:]
    types(" ".join(["mpiboot stop", *(line.split()[0] for line in live)]))


def test_several_jobs_and_what_they_leave(types, tmp_path):
    status, printed, said = types(f"{SUBMIT} --wait -- true")
    first = printed.strip()
    assert status == 0
    output = f"{tmp_path}/logs/local-{first}.out"
    assert re.search(rf"^job {first} is RUNNING: .*; its output: {output}$", said, re.MULTILINE)
    assert said.splitlines()[-2:] == [
        f"job {first}: COMPLETED (command ended with status 0)",
        f"its output: {output}",
    ]
    second, third, kept = (types(SUBMIT)[1].strip() for _ in range(3))

    status, _, said = types(f"mpiboot stop {second} no-such-job {third}")
    assert status == 1
    # Slurm's commands, if they are here, have their own words.
    assert re.search(
        rf"^mpiboot: no-such-job: [\s\S]*\njob {second}: .*\njob {third}: .*\n\Z", said, re.MULTILINE
    ), said

    listed = types("mpiboot list --all")[1].splitlines()
    assert sorted(line.split()[0] for line in listed[1:]) == sorted([first, second, third, kept])
    assert re.search(
        rf"^{first}  mpiboot +COMPLETED  .* s ago +command ended", "\n".join(listed), re.MULTILINE
    )

    assert types(f"mpiboot logs {first} --tail 1")[1].count("==> ") == 2
    assert "closed: command ended with status 0 (status 0)\n" in types(f"mpiboot logs {first} --tail 1")[1]

    would = types("mpiboot gc --dry-run")
    assert len(list((tmp_path / "jobs").iterdir())) == 4
    assert types("mpiboot gc --older-than 1h")[1] == ""
    removed = types("mpiboot gc")
    # An agent of a job that was stopped at once may end after it: in which order the two ended is not certain.
    paths, shown = (
        sorted(line.partition(", ended ")[0] for line in said.splitlines()) for said in (removed[1], would[1])
    )
    assert removed[0] == 0 and paths == shown
    assert re.search(r"^ +\d.* \S+/jobs/local-\S+ \(job \S+, ended .* ago\)$", removed[1], re.MULTILINE)
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == [f"local-{kept}"]
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [f"local-{kept}.out"]
    assert types("mpiboot stop")[2].splitlines()[-1].startswith(f"job {kept}: ")
