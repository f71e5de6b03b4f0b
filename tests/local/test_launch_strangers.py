"""Strangers who connect to Open MPI's launcher while it starts the ranks do not hold it up."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

from mpiboot.agent.launch_guard import guarded_processes, parse_sockets, sockets_of

LISTEN = 0x0A
NOBODY = 65534
READY_S = 60.0
SUBMIT = "mpiboot submit --batch-system local --workers-per-node 1 --cpus-per-worker 1 --no-stage --mem 1G"
# As another user, opens three connections to each port that it is told, and holds them. On one it sends nothing,
# on the others less than the launcher waits for.
STRANGER = """
import os, socket, sys
os.setgid(65534)
os.setuid(65534)
held = []
for line in sys.stdin:
    for sent in (b"", b"x", bytes((22, 3, 1)) + bytes(200)):
        held.append(socket.socket())
        held[-1].connect(("127.0.0.1", int(line)))
        held[-1].send(sent)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_they_do_not_hold_up_the_launch(tmp_path, monkeypatch):
    binaries = Path(sys.executable).parent
    if not shutil.which("prterun", path=str(binaries)):
        pytest.skip("no Open MPI 5 in this environment")
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    stranger = subprocess.Popen([sys.executable, "-c", STRANGER], stdin=subprocess.PIPE, text=True)
    submitted = subprocess.run(SUBMIT.split(), capture_output=True, text=True, check=True)
    job_id = submitted.stdout.split()[-1]
    directory = tmp_path / "jobs" / f"local-{job_id}"
    try:
        ports = set()
        while len(ports) < 2:  # of PRRTE and of PMIx; both are there before the ranks start
            assert stranger.poll() is None
            inodes = {
                inode for pid in guarded_processes(directory.name) for inode in sockets_of(pid).values()
            }
            for each in parse_sockets(Path("/proc/net/tcp").read_text()):
                if each.state == LISTEN and each.inode in inodes and each.local[1] not in ports:
                    ports.add(each.local[1])
                    print(each.local[1], file=stranger.stdin, flush=True)
        wait_until((directory / "endpoint.json").exists, "cluster", READY_S)
        log = directory / "ranks.log"
        wait_until(
            lambda: "connections of strangers" in log.read_text(), "word of the guard", 10, log.read_text
        )
        assert " were shut down" in log.read_text()
        assert " could not be shut down" not in log.read_text()
        assert stranger.poll() is None
    finally:
        subprocess.run(["mpiboot", "stop", job_id], capture_output=True, check=True)
        stranger.kill()
        stranger.communicate()
