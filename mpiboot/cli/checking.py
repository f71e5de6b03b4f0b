"""`mpiboot doctor`: the command that checks a site."""

from __future__ import annotations

from typing import Any

import click

from mpiboot.cli.options import CommandWithExample, job_options, typed_options
from mpiboot.option import SUBMIT


@click.command(cls=CommandWithExample, epilog="mpiboot doctor --env ~/envs/analysis --job-test")
@job_options(
    *("env", "partition", "account", "interface", "time", "nodes", "batch_system", "mpi", "batch_arg"),
    *("mem", "scheduler_port", "worker_port", "dashboard_port"),
)
@click.option("--job-test", is_flag=True, help="make the same checks on two nodes, in a job")
def doctor(job_test: bool, **options: Any) -> int:
    """Check this site; each failed check names its remedy."""
    from mpiboot.client import doctor as checks
    from mpiboot.client.settings import load_config

    return checks.run_checks(load_config(typed_options(options), SUBMIT), job_test=job_test, out=click.echo)
