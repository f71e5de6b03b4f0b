import pytest

from mpiboot.batch.local.submission import Local


@pytest.mark.parametrize(
    ("key", "job_id"),
    [
        ("local-login-12-345", "login-12-345"),
        ("local-login-2-12-345", None),  # of the host login-2, which may share this home
        ("slurm-login-12-345", None),
        ("local-login", None),
    ],
)
def test_only_this_hosts_local_jobs_can_be_asked(key, job_id, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "login")
    assert Local().job_id_of_key(key) == job_id
