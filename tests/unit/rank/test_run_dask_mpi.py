"""A rank that fails says so in one line, and where."""

import os
import re
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]


def test_a_rank_that_fails():
    """One rank alone is too few for dask-mpi."""
    script = CHECKOUT / "mpiboot/rank/run_dask_mpi.py"
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | root | {"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    host = re.escape(os.uname().nodename)
    assert re.fullmatch(
        rf"mpiboot: a rank on {host} has failed: \w+: .*dask_mpi/\w+\.py:\d+ \w+\)\n", done.stderr
    )
