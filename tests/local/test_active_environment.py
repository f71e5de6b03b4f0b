"""All commands mean the same environment: a real venv over a real conda environment whose Python runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from envpack.archive.encoding import read_index

CHECKOUT = Path(__file__).resolve().parents[2]
CONDA = "export CONDA_PREFIX={conda} PATH={conda}/bin:$PATH"
VENV = ". {venv}/bin/activate"


@pytest.mark.parametrize(
    ("activated", "expected"),
    [([], "conda"), ([CONDA], "conda"), ([CONDA, VENV], "venv"), ([VENV, CONDA], "conda")],
    ids=["none", "conda", "venv over conda", "conda over venv"],
)
def test_pack_and_submit_agree(
    activated: list[str], expected: str, conda_env_small: Path, tmp_path: Path
) -> None:
    prefixes = {"conda": conda_env_small, "venv": tmp_path / "venv"}
    venv.create(prefixes["venv"], symlinks=True)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *packages])}

    def types(command: str) -> subprocess.CompletedProcess[str]:
        lines = [line.format_map(prefixes) for line in (*activated, "{conda}/bin/python -m " + command)]
        return subprocess.run(
            ["bash", "-c", "\n".join(lines)], env=environ, cwd=tmp_path, capture_output=True, text=True
        )

    packed = types("envpack pack --level 1 --output archive")
    assert packed.returncode == 0, packed.stderr
    assert read_index(tmp_path / "archive").prefix == str(prefixes[expected])
    # Neither has mpiboot: the refusal names the environment.
    refused = types("mpiboot submit --batch-system local --dry-run").stderr
    assert re.findall(r"the environment (\S+) lacks mpiboot", refused) == [str(prefixes[expected])]
