from pathlib import Path
from types import SimpleNamespace

import pytest

from mpiboot.boot import launch


@pytest.mark.parametrize(
    ("installed_in", "found_in"),
    [
        ("env/lib/pypy3.10/site-packages", "staged/lib/pypy3.10/site-packages"),
        ("env/lib/python3.13t/site-packages", "staged/lib/python3.13t/site-packages"),
        # A venv with --system-site-packages.
        ("base/lib/python3.11/site-packages", "staged/.envpack-base/lib/python3.11/site-packages"),
        # An editable install.
        ("checkout", "checkout"),
    ],
)
def test_the_ranks_run_the_staged_files_of_mpiboot(installed_in, found_in, tmp_path, monkeypatch):
    name = "mpiboot/rank/stand_in.py"
    for folder in (installed_in, found_in):
        (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).touch()
    monkeypatch.setattr(launch, "__file__", f"{tmp_path}/{installed_in}/mpiboot/boot/launch.py")
    running = SimpleNamespace(prefix=f"{tmp_path}/env", base_prefix=f"{tmp_path}/base")
    monkeypatch.setattr(launch, "sys", running)
    assert launch.module_file(tmp_path / "staged", "rank/stand_in.py") == tmp_path / found_in / name
    # With --no-stage.
    source = tmp_path / installed_in / name
    assert launch.module_file(Path(running.prefix), "rank/stand_in.py") == source
