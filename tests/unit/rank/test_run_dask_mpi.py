"""mpiboot's preloads and defaults are added to the user's Dask configuration, whatever that comes from."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mpiboot.preloads.nanny import forget_own_preloads
from mpiboot.protocol.rank_environment import dask_settings

SHOW = """
import json, dask.config
from mpiboot.rank.run_dask_mpi import add_settings
add_settings(json.loads('SETTINGS'))
keys = [f"distributed.{role}.{name}" for role in ("scheduler", "nanny", "worker") for name in ("preload", "preload-argv")]
keys += ["distributed.scheduler.allowed-failures", "distributed.scheduler.worker-ttl", "distributed.comm.timeouts.tcp"]
print(json.dumps([dask.config.get(key) for key in keys]))
""".replace("SETTINGS", json.dumps(dask_settings(encrypted=True)))
CHECKOUT = Path(__file__).resolve().parents[3]
GUARD, SCHEDULER, NANNY = (f"mpiboot.preloads.{name}" for name in ("secure", "scheduler", "nanny"))


def configured(tmp_path, text="", **variables):
    (tmp_path / "user.yaml").write_text(text)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DASK_")}
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        env={**environ, "DASK_CONFIG": str(tmp_path), **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("text", "variables", "theirs", "arguments"),
    [
        ("", {}, [], []),
        ("distributed: {worker: {preload: [mine]}}", {}, ["mine"], [[]]),
        ("distributed: {worker: {preload: mine.py}}", {}, ["mine.py"], [[]]),
        ("", {"DASK_DISTRIBUTED__WORKER__PRELOAD": "mine.py"}, ["mine.py"], [[]]),
        ("", {"DASK_distributed__worker__preload": "['a', 'b']"}, ["a", "b"], [[], []]),
        (
            "distributed: {worker: {preload: [a, b], preload-argv: [--x, '1']}}",
            {},
            ["a", "b"],
            [["--x", "1"], ["--x", "1"]],
        ),
        (
            "distributed: {worker: {preload: [a, b], preload-argv: [[--x], []]}}",
            {},
            ["a", "b"],
            [["--x"], []],
        ),
    ],
)
def test_preloads_come_before_the_users(tmp_path, text, variables, theirs, arguments):
    *preloads, _, _, _ = configured(tmp_path, text, **variables)
    assert preloads == [
        *([GUARD, SCHEDULER], [[], []]),
        *([GUARD, NANNY], [[], []]),
        *([GUARD, *theirs], [[], *arguments]),
    ]


@pytest.mark.parametrize(
    ("text", "variables", "expected"),
    [
        ("", {}, [10, "60s", "50s"]),
        ("distributed: {scheduler: {worker-ttl: 9 minutes}}", {}, [10, "9 minutes", "50s"]),
        ("distributed: {scheduler: {worker-ttl: null}}", {}, [10, None, "50s"]),
        ("distributed: {comm: {timeouts: {tcp: 99s}}}", {}, [10, "60s", "99s"]),
        ("", {"DASK_DISTRIBUTED__scheduler__ALLOWED_FAILURES": "1"}, [1, "60s", "50s"]),
    ],
)
def test_defaults_give_way_to_the_users(tmp_path, text, variables, expected):
    assert configured(tmp_path, text, **variables)[-3:] == expected


def test_a_cluster_that_a_task_makes_has_only_the_users():
    argv = [[], [], ["--x"]]
    config = {
        "distributed": {
            "scheduler": {"preload": [GUARD, SCHEDULER, "mine"], "preload-argv": argv},
            "nanny": {"preload": [GUARD, NANNY], "preload-argv": [[], []]},
            "worker": {"preload": ["mine"], "preload-argv": ["--x"]},
        }
    }
    expected = {
        "distributed": {
            "scheduler": {"preload": ["mine"], "preload-argv": [["--x"]]},
            "nanny": {"preload": [], "preload-argv": []},
            "worker": {"preload": ["mine"], "preload-argv": ["--x"]},
        }
    }
    for _ in range(2):
        forget_own_preloads(config)
        assert config == expected


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
