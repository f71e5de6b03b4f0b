"""A second user scans all ports of all nodes of a job, and holds what answers: nothing ends, and nothing is delayed."""

import time

import pytest
from faults import boot
from scanners import hold_all, listening, strangers, tell
from undisturbed import STALL_S, TWO, assert_undisturbed, stops_in_time, submitted
from waiting import wait_until
from workload import Workload

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("leaves_nothing")]


def options_of(mpi, request):
    """Return the options of a job whose ranks are started by this MPI's mpirun, or by srun."""
    if mpi == "openmpi":
        return ()
    return ("--env", request.getfixturevalue("mpich_env"), "--mpi", mpi)


@pytest.mark.parametrize(("mpi", "seconds"), [("openmpi", 120), ("mpich", 20), ("srun", 20)])
def test_a_port_scan_that_holds(alice, second, mpi, seconds, request):
    """From the login node and from the job's nodes, on all ports, old and new, while tasks run."""
    job = boot(alice, *TWO, *options_of(mpi, request))
    workload = Workload(job, 4)
    with strangers(second) as scans:
        began = time.monotonic()
        if seconds > 100:
            wait_until(lambda: scans[0].last()["full_scans"] > 0, "full scan", 100, scans[0].last)
        hold_all(scans)
        workload.goes_on_for(seconds - (time.monotonic() - began))
        # A newcomer is not kept waiting either.
        began = time.monotonic()
        alice.types("mpiboot", "connect", job.job_id)
        assert time.monotonic() - began < STALL_S
        hold_all(scans)
        tell(scans)
    # All that they held ends at once, and what waited for it goes on.
    workload.goes_on_for(10)
    figures = workload.ends_well()
    print(figures)
    assert figures["worst_s"] < STALL_S
    assert figures["workers"] == 4
    assert_undisturbed(job)
    stops_in_time(job)


# The length of a message of Slurm's: srun 22.05 crashes on it, and its second process then ends the agents' step.
WORDS = """
import contextlib, socket, sys
for place in sys.argv[1:]:
    host, _, port = place.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, port), 5) as connection:
        connection.sendall(b"\\xff" * 8 + bytes(4000))
"""


@pytest.mark.parametrize("mpi", ["openmpi", "mpich", "srun"])
def test_words_that_end_srun(alice, second, mpi, request):
    """They come to every port of the first node, and nobody holds any: what reads them reads on."""
    job = boot(alice, *TWO, *options_of(mpi, request))
    workload = Workload(job, 4)
    for node in (1, 2):
        places = [place for place in listening(alice.cluster, node) if not place.startswith("127.")]
        second.types("/usr/bin/python3", "-c", WORDS, *places)
    workload.goes_on_for(10)
    figures = workload.ends_well()
    assert (figures["workers"], figures["worst_s"] < STALL_S) == (4, True)
    assert_undisturbed(job)
    stops_in_time(job)


# Not srun: strangers' words end its start of the ranks (README.md, Security).
@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
def test_strangers_who_wait_for_the_job(alice, second, mpi, request):
    """They hold each port from the first second of the boot."""
    options = options_of(mpi, request)
    with strangers(second) as scans:
        for scan in scans[1:]:
            wait_until(lambda scan=scan: scan.last()["held"] > 0, "hold on slurmd", 20, scan.last)
        began = time.monotonic()
        job = submitted(alice, *TWO, *options)
        job.wait_for("ready", timeout_s=120)
        print(f"ready after {time.monotonic() - began:.1f} s")
        workload = Workload(job, 4)
        hold_all(scans)
        workload.goes_on(50)
        figures = workload.ends_well()
        tell(scans)
        print(figures)
        assert figures["worst_s"] < STALL_S
        assert_undisturbed(job)
        stops_in_time(job)
