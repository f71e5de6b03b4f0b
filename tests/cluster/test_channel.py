"""Whatever a launcher or a site prints, labels or blocks, a job does not notice it; nor many interfaces."""

import contextlib

import pytest
from disturb import more_interfaces, pids, slurm_settings, stopped
from faults import boot
from undisturbed import STALL_S, TWO, assert_undisturbed, stops_in_time, submitted
from waiting import wait_until
from workload import Workload

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("leaves_nothing")]


# ---- what launchers print, cut and block ------------------------------------------------------------------


def printed(job, workload):
    """Return how many of the tasks' lines are in the ranks' log."""
    return (job.folder / "ranks.log").read_text(errors="replace").count(workload.mark)


def runs_well(job, n_workers=4, **options):
    """Compute for some rounds, and stop; all as if nothing had happened."""
    workload = Workload(job, n_workers, **options)
    workload.goes_on(20)
    figures = workload.ends_well()
    assert figures["worst_s"] < STALL_S
    wait_until(lambda: printed(job, workload) >= options.get("lines", 0) * n_workers * 20, "all lines", 20)
    assert_undisturbed(job)
    stops_in_time(job)


LABELS = {
    "in the environment of submit": ((), {"SLURM_LABELIO": "1"}),
    "by sbatch": (("--batch-arg=--export=ALL,SLURM_LABELIO=1",), {}),
}


@pytest.mark.parametrize("how", LABELS)
def test_labelled_output(alice, how):
    options, variables = LABELS[how]
    job = submitted(alice, *TWO, *options, **variables)
    job.wait_for("ready", timeout_s=120)
    runs_well(job, lines=1)


# slurm.conf(5): what a TaskProlog prints after the word print comes on the task's stdout, and before all else.
PROLOG = """#!/bin/bash
echo "print Welcome to the cluster. Maintenance is on Monday."
echo "print $(head -c 40000 /dev/zero | tr '\\0' x)"
echo 'print {"node": "node1", "error": "no"}'
printf 'print no end of a line'
"""


def test_a_site_that_prints_a_banner_in_every_task(minicluster, alice):
    """Also in every shell, and with lines longer than srun keeps together."""
    prolog = minicluster.folder / "etc/slurm/banner.sh"
    prolog.write_text(PROLOG)
    prolog.chmod(0o755)
    rc = alice.writes(".bashrc", "echo Welcome to your shell; echo Welcome to your shell >&2\n")
    try:
        with slurm_settings(minicluster, TaskProlog="/etc/slurm/banner.sh"):
            banner = alice.types("srun", "--nodes=2", "cat", "/etc/hostname").stdout
            assert banner.count("Maintenance is on Monday") == 2  # so that it is seen in this test
            job = submitted(alice, *TWO, BASH_ENV=f"/home/alice/{rc}")
            job.wait_for("ready", timeout_s=120)
            runs_well(job, lines=3, line_bytes=100_000)
    finally:
        alice.types("rm", rc)


def test_a_launcher_that_stands_still(minicluster, alice):
    """All of srun, longer than a silence that ends anything; the tasks print more than any pipe holds."""
    job = boot(alice, *TWO)
    workload = Workload(job, 4, lines=50, line_bytes=1000, pause_s=0.5)
    launchers = "^srun|/prterun|/prted"
    with contextlib.ExitStack() as still:
        still.enter_context(stopped(minicluster, 1, launchers))
        if pids(minicluster, 2, launchers):
            still.enter_context(stopped(minicluster, 2, launchers))
        before = workload.last()["rounds"]
        workload.goes_on_for(60)
        rounds = workload.last()["rounds"]
        assert (rounds - before) * 4 * 50 * 1000 > 4_000_000
        # What they print is there although nothing of the launcher moves.
        wait_until(lambda: printed(job, workload) >= rounds * 4 * 50, "all lines", 20)
    figures = workload.ends_well()
    assert figures["worst_s"] < STALL_S
    assert_undisturbed(job)
    stops_in_time(job)


def test_fourteen_interfaces(minicluster, alice):
    """Most of their addresses answer nobody, and half of them are the same on every node."""
    with more_interfaces(minicluster, 12):
        shown = alice.types("ip", "-4", "-o", "addr", node=2).stdout
        assert shown.count("inet ") == 1 + 14
        job = boot(alice, "--nodes", "3", "--workers-per-node", "1")
        runs_well(job, 3)
        # The interface that all nodes share is found among them.
        job = submitted(alice, "--nodes", "3", "--workers-per-node", "1", "--interface", "auto")
        job.wait_for("ready", timeout_s=120)
        job.stop()
