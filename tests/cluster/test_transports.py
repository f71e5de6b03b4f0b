"""The archive reaches all nodes of a real job by each transport; nothing of it is left but the stage."""

import pytest
from faults import boot
from waiting import wait_until

pytestmark = pytest.mark.cluster


# Ids of their own: pytest-mpi would take a test whose id is "mpi" for one of its own.
@pytest.mark.parametrize("transport", ["direct", "sbcast", "mpi"], ids="by-{}".format)
def test_cold_stage_of_three_nodes(alice, transport):
    stages = f"/tmp/mpiboot-{alice.uid}"
    for node in (1, 2, 3):
        alice.types("sh", "-c", f"rm -rf {stages}/env-*", node=node)
    nodes = ("--nodes", "3", "--workers-per-node", "1")
    job = boot(alice, *nodes, "--transport", transport, staged=True, ready=False)
    wait_until(lambda: job.named("closed") or job.named("launch"), "launch", 120, job.events)
    staged = {event["host"]: event for event in job.named("staged")}
    assert sorted(staged) == ["node1", "node2", "node3"], job.events()
    for event in staged.values():
        assert (event["transport"], event["reused"]) == (transport, False)
        assert event["size_bytes"] > event["bytes_read"] > 0
        assert event["mb_per_s"] > 0
    for node in (1, 2, 3):
        alice.types("envpack", "verify", staged["node1"]["prefix"], node=node)
        # sbcast's copy of the archive is gone.
        assert alice.types("find", stages, "-name", "archive", "-type", "f", node=node).stdout == ""
    alice.stops(job.job_id)
