"""A file of the job directory that boot cannot write: one line says so, and nothing is left."""

import os
import subprocess
import sys

import pytest

BOOT = """
import errno, io, os, sys
name = sys.argv[1]
open_file, open_stream = os.open, io.open
failed = []

def fail(path):
    if isinstance(path, (str, os.PathLike)) and os.path.basename(path).startswith(name) and not failed:
        failed.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

def open_or_fail(path, flags, *rest, **options):
    if flags & (os.O_WRONLY | os.O_RDWR):
        fail(path)
    return open_file(path, flags, *rest, **options)

def open_stream_or_fail(path, mode="r", *rest, **options):
    if set(mode) & set("wxa"):
        fail(path)
    return open_stream(path, mode, *rest, **options)

os.open, io.open = open_or_fail, open_stream_or_fail
from mpiboot.boot.sequence import main
sizes = ["--workers-per-node", "1", "--cpus-per-worker", "1"]
status = main(["--batch-system", "local", "--env", sys.prefix, "--no-stage", *sizes, "--", "true"])
assert failed
sys.exit(status)
"""


@pytest.mark.parametrize(
    "name",
    [
        *("ranks.log", "hosts", "boot.log", "events.jsonl", ".job.json", "ca.pem", "token"),
        *(".channel.json", ".agent.pyc", ".rank-environment.json"),
    ],
)
def test_a_file_that_cannot_be_written(tmp_path, name):
    environ = {**os.environ, "MPIBOOT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", BOOT, name], env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "should not happen" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if "mpiboot: " in line]
    assert f"{tmp_path}/jobs/" in line and "No space left on device" in line
    assert [path.name for path in tmp_path.glob("jobs/*/tls")] == []
