"""The dashboard from home: the ssh line that `mpiboot dashboard` prints, typed, and the link opened in a real browser."""

import asyncio
import os
import re
import shlex
import shutil
import socket
import subprocess

import pytest
from browser import COLOURED_PIXELS, becomes_true, browse, chromium
from faults import boot
from waiting import wait_until

pytestmark = pytest.mark.cluster
__all__ = ["chromium"]

WORK = """
import sys, time, mpiboot
with mpiboot.connect(sys.argv[1], n_workers=2) as client:
    client.gather(client.map(lambda x: time.sleep(0.05), range(40), pure=False))
"""


@pytest.fixture
def ssh(alice, tmp_path):
    """An ssh that knows the login node; home is this host, which has no other way to the cluster."""
    dropbear = shutil.which("dropbear", path=f"{os.environ['PATH']}:/usr/sbin")
    if dropbear is None or shutil.which("ssh") is None:
        reason = (
            "there is no ssh server here: apt-get install --no-install-recommends dropbear-bin openssh-client"
        )
        (pytest.fail if os.environ.get("MPIBOOT_REQUIRE_CLUSTER") == "1" else pytest.skip)(reason)
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    allow = (
        'umask 077; mkdir -p .ssh; echo "$0" > .ssh/authorized_keys; dropbearkey -t ed25519 -f .ssh/host >&2'
    )
    alice.types("sh", "-c", allow, key.with_suffix(".pub").read_text().strip())
    port = "2222"
    serve = [dropbear, "-F", "-E", "-s", "-p", f"127.0.0.1:{port}", "-r", "/home/alice/.ssh/host"]
    with (tmp_path / "dropbear.log").open("w") as log:
        server = alice.begins(*serve, stdin=subprocess.DEVNULL, stderr=log)
    way = alice.cluster.login_argv(["socat", "-", f"TCP:127.0.0.1:{port},retry=20,interval=0.2"])
    config = tmp_path / "config"
    config.write_text(
        f"Host login\n  ProxyCommand {shlex.join(way)}\n  IdentityFile {key}\n  IdentitiesOnly yes\n"
        f"  StrictHostKeyChecking accept-new\n  UserKnownHostsFile {tmp_path / 'known'}\n  BatchMode yes\n"
        "  ExitOnForwardFailure yes\n"
    )
    yield ["ssh", "-F", str(config)]
    server.terminate()
    server.wait(30)


def test_from_home(alice, ssh, chromium, tmp_path):
    job = boot(alice, "--nodes", "2", "--workers-per-node", "1")
    shown = alice.types("mpiboot", "dashboard", job.job_id)
    said = " ".join((shown.stdout + shown.stderr).split())
    line = re.search(r"ssh (-N -L (\d+):[\d.]+:\d+ alice@login)", said)
    token = re.search(r"\?token=\S+", said)
    assert line and token, said
    errors = tmp_path / "ssh.log"
    with errors.open("w") as log:
        tunnel = subprocess.Popen([*ssh, *line[1].split()], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: tunnel.poll() is None and answers(int(line[2])), "tunnel", 30, errors.read_text)

        async def main():
            async with browse(chromium) as browser:
                page = await browser.new_page()
                await page.goto(f"http://localhost:{line[2]}/status{token[0]}")
                assert page.url == f"http://localhost:{line[2]}/status"
                await becomes_true(page, "window.Bokeh?.documents?.length > 0")
                before = await page.evaluate(COLOURED_PIXELS)
                await asyncio.to_thread(alice.runs_python, WORK, job.job_id)
                await becomes_true(page, f"{COLOURED_PIXELS.strip()} > {before} + 500")

        asyncio.run(main())
    finally:
        tunnel.terminate()
        tunnel.wait(30)
        alice.stops(job.job_id)


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True
