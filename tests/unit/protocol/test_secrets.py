"""What Dask is told of a job's secrets, and a rank that lacks some of them."""

import os
from pathlib import Path

import pytest

from mpiboot.boot.certificates import make_job_secrets
from mpiboot.errors import SecurityError
from mpiboot.protocol import secrets as security


def make_job(parent: Path, name: str = "slurm-a-1") -> Path:
    job = parent / name
    job.mkdir(mode=0o700)
    make_job_secrets(job, valid_for_s=600.0)
    return job


@pytest.fixture
def job(tmp_path):
    return make_job(tmp_path)


def test_what_dask_is_told():
    job = Path("/home/a b/$HOME/'job'")
    tls = "/home/a b/$HOME/'job'/tls"
    assert security.dask_tls_environment(job) == {
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
        "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": f"{tls}/ca.pem",
        "DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__CERT": f"{tls}/scheduler.pem",
        "DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__KEY": f"{tls}/scheduler-key.pem",
        "DASK_DISTRIBUTED__COMM__TLS__WORKER__CERT": f"{tls}/worker.pem",
        "DASK_DISTRIBUTED__COMM__TLS__WORKER__KEY": f"{tls}/worker-key.pem",
        "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT": f"{tls}/client.pem",
        "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": f"{tls}/client-key.pem",
    }
    assert security.client_security_arguments(job) == {
        "tls_ca_file": f"{tls}/ca.pem",
        "tls_client_cert": f"{tls}/client.pem",
        "tls_client_key": f"{tls}/client-key.pem",
        "require_encryption": True,
    }
    assert security.guard_environment(job) == {"MPIBOOT_JOB_DIRECTORY": str(job)}
    assert security.guard_environment(job, "https://a http://b") == {
        "MPIBOOT_JOB_DIRECTORY": str(job),
        "MPIBOOT_DASHBOARD_ORIGINS": "https://a http://b",
    }
    assert security.dashboard_tls_environment(job) == {
        "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__TLS__CA_FILE": f"{tls}/ca.pem",
        "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__TLS__CERT": f"{tls}/scheduler.pem",
        "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__TLS__KEY": f"{tls}/scheduler-key.pem",
    }


def test_dask_reads_the_same_files_back(tmp_path):
    from dask.config import collect_env
    from distributed import Security

    (tmp_path / "a b").mkdir(mode=0o700)
    job = make_job(tmp_path / "a b", "$HOME 'x' \"1\"")
    assert collect_env(security.dask_tls_environment(job))["distributed"]["comm"] == {
        "require_encryption": True,
        "tls": {
            "ca_file": str(job / "tls/ca.pem"),
            **{
                role: {"cert": str(job / f"tls/{role}.pem"), "key": str(job / f"tls/{role}-key.pem")}
                for role in ("scheduler", "worker", "client")
            },
        },
    }
    assert Security(**security.client_security_arguments(job)).get_connection_args("client")["ssl_context"]


def test_a_line_break_in_the_path_is_refused():
    with pytest.raises(SecurityError, match=r"'/home/a\\nb/job' has a line break .* Set MPIBOOT_HOME"):
        security.dask_tls_environment("/home/a\nb/job")


def test_cookies_differ_by_job_and_by_token():
    assert security.dashboard_cookie("slurm-a-1_[2]", "t") == (
        "mpiboot-slurm-a-1_%5B2%5D",
        # printf 'mpiboot dashboard cookie\\0slurm-a-1_[2]' | openssl dgst -sha256 -hmac t
        "7e3f5367735d662d251b09906a9ec964d8d5078e2146352535f0ae78591980d9",
    )
    names_and_values = {
        security.dashboard_cookie(job, token) for job in ("a.b", "a-b") for token in ("s", "t")
    }
    assert len({value for _, value in names_and_values}) == 4
    assert len({name for name, _ in names_and_values}) == 2


def test_no_secret_is_in_what_travels(job):
    told = {
        **security.dask_tls_environment(job),
        **security.guard_environment(job),
        **security.dashboard_tls_environment(job),
        **security.client_security_arguments(job),
    }
    assert not [
        value for value in told.values() if security.read_token(job) in str(value) or "BEGIN" in str(value)
    ]


def test_a_rank_with_its_secrets(job):
    security.check_rank_secrets(job)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda tls: (tls / "worker-key.pem").unlink(), "worker-key.pem: there is no such file"),
        (lambda tls: (tls / "ca.pem").write_text(""), "ca.pem: it is empty or damaged"),
        (lambda tls: (tls / "token").write_text(""), "token: it is empty or damaged"),
        (
            lambda tls: (tls / "client.pem").chmod(0o644),
            "client.pem cannot be trusted: it is open to others (mode 0644)",
        ),
        (
            lambda tls: (tls / "ca.pem").write_bytes(b"-" * 70_000),
            "ca.pem cannot be trusted: it has more than 65536 bytes",
        ),
        (lambda tls: tls.rename(tls.with_name("gone")), "tls: there is no such directory"),
        (lambda tls: tls.chmod(0o755), "tls cannot be trusted: it is open to others (mode 0755)"),
    ],
)
def test_a_rank_without_one_refuses(job, break_it, says):
    break_it(job / "tls")
    with pytest.raises(SecurityError) as refusal:
        security.check_rank_secrets(job)
    assert "this rank lacks its TLS files and refuses to start:\n" in str(refusal.value)
    assert os.uname().nodename in str(refusal.value)
    assert says in str(refusal.value)


def test_a_rank_names_all_that_it_lacks(job):
    (job / "tls/worker.pem").unlink()
    (job / "tls/token").unlink()
    with pytest.raises(
        SecurityError, match=r"worker\.pem: there is no.*\n.*token: there is no.*\nIf the job still"
    ):
        security.check_rank_secrets(job)
