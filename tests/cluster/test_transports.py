"""The archive reaches all nodes of a real job by each transport; nothing of it is left but the stage."""

import json
import time

import pytest

pytestmark = pytest.mark.cluster


def events(minicluster, job_id):
    path = minicluster.home / f".mpiboot/jobs/slurm-{minicluster.name}-{job_id}/events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# Ids of their own: pytest-mpi would take a test whose id is "mpi" for one of its own.
@pytest.mark.parametrize("transport", ["direct", "sbcast", "mpi"], ids="by-{}".format)
def test_cold_stage_of_three_nodes(minicluster, transport):
    stages = f"/tmp/mpiboot-{minicluster.uid}"
    for node in (1, 2, 3):
        minicluster.node(node, ["sh", "-c", f"rm -rf {stages}/env-*"])
    mpiboot = str(minicluster.env / "bin/mpiboot")
    job_id = minicluster.login(
        [
            mpiboot,
            "submit",
            "--nodes=3",
            "--workers-per-node=1",
            f"--transport={transport}",
            "--interface=ib0",
        ],
        timeout_s=120,
    ).stdout.strip()
    try:
        deadline = time.monotonic() + 120
        while not any(
            e["event"] == "closed" or e.get("phase") == "launch" for e in events(minicluster, job_id)
        ):
            assert time.monotonic() < deadline, events(minicluster, job_id)
            time.sleep(0.2)
        staged = {e["host"]: e for e in events(minicluster, job_id) if e["event"] == "staged"}
        assert sorted(staged) == ["node1", "node2", "node3"], events(minicluster, job_id)
        for event in staged.values():
            assert (event["transport"], event["reused"]) == (transport, False)
            assert event["size_bytes"] > event["bytes_read"] > 0
            assert event["mb_per_s"] > 0
        for node in (1, 2, 3):
            minicluster.node(
                node, [str(minicluster.env / "bin/envpack"), "verify", staged["node1"]["prefix"]]
            )
            # sbcast's copy of the archive is gone.
            found = minicluster.node(node, ["find", stages, "-name", "archive", "-type", "f"]).stdout
            assert found == ""
    finally:
        minicluster.login([mpiboot, "stop", job_id], timeout_s=120)
