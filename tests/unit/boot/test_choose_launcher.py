from pathlib import Path
from types import SimpleNamespace

import pytest

from mpiboot.batch.allocation import Placement, system
from mpiboot.boot import choose_launcher
from mpiboot.errors import LaunchError, UsageError

PLACE = Placement(("n1", "n2"), (5, 4))
RANK = ["/s/bin/python", "-I", "-S", "/s/rank.py", "/home/a b/job"]
HOSTS = Path("/j/hosts")


def test_a_path_mpirun_of_another_mpi_than_mpi4pys_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(choose_launcher, "run", lambda command, **_: "")
    scripts = {
        "site/mpirun": "HYDRA build details:",
        "e/bin/python": "MPICH Version: 5.0.2",
        "srun/srun": "",
    }
    for name, text in scripts.items():
        script = tmp_path / name
        script.parent.mkdir(parents=True)
        script.write_text(f"#!/bin/sh\necho '{text}'\n")
        script.chmod(0o755)
    context = SimpleNamespace(
        config=SimpleNamespace(mpi="auto"),
        allocation=SimpleNamespace(batch_system="slurm"),
        directory=SimpleNamespace(host_file=HOSTS),
        system=system("slurm"),
    )

    def chosen(*folders):
        path = ":".join(str(tmp_path / folder) for folder in folders)
        return Path(
            choose_launcher.choose_launcher(
                context, tmp_path / "e", {"PATH": path}, PLACE, "ib0", RANK
            ).command[0]
        ).name

    assert chosen("site", "srun") == "mpirun"
    (tmp_path / "e/bin/python").write_text("#!/bin/sh\necho Open MPI v5.0.11\n")
    assert chosen("site", "srun") == "srun"
    with pytest.raises(LaunchError, match=r"PATH that fits \(.*/site/mpirun is the mpirun of mpich"):
        chosen("site")
    context.config.mpi = "mpich"  # whoever names it is believed
    assert chosen("site", "srun") == "mpirun"


def test_the_launcher_of_another_batch_system_is_refused():
    context = SimpleNamespace(
        config=SimpleNamespace(mpi="srun"), allocation=SimpleNamespace(batch_system="local")
    )
    with pytest.raises(UsageError, match="--mpi srun: a job of this machine cannot use it"):
        choose_launcher.native_launcher(context)
