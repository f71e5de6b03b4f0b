from pathlib import Path

import pytest

from mpiboot.errors import SecurityError
from mpiboot.protocol.job_directory import JobDirectory


@pytest.fixture
def directory(tmp_path):
    return JobDirectory.create(tmp_path / "home", "slurm-c-1")


def test_what_is_published_is_read(directory, endpoint):
    assert directory.read_endpoint() is None
    directory.publish(endpoint)
    assert directory.read_endpoint() == endpoint
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.path.iterdir()}
    assert modes == dict.fromkeys(("endpoint.json", "heartbeat", "hosts", "ranks.log", "unreached"), 0o600)
    assert directory.endpoint.stat().st_mode & 0o777 == 0o600


def test_a_job_that_starts_again_withdraws_what_it_had_published(directory, endpoint):
    directory.publish(endpoint)
    directory.scheduler_file.write_text("{}")
    again = JobDirectory.create(directory.path.parent.parent, "slurm-c-1")
    assert again.read_endpoint() is None
    assert not again.scheduler_file.exists()


def test_an_endpoint_that_others_could_write_is_refused(directory, endpoint):
    directory.publish(endpoint)
    directory.endpoint.chmod(0o666)
    with pytest.raises(SecurityError, match=r"endpoint\.json"):
        directory.read_endpoint()


def test_it_is_clear_when_nothing_leads_to_the_cluster(directory):
    directory.clear()
    directory.events.touch()
    assert directory.is_clear()
    directory.tls.mkdir()
    assert not directory.is_clear()
    directory.clear()
    directory.heartbeat.touch()
    assert not directory.is_clear()
    assert JobDirectory(directory.path / "missing").is_clear()


def test_to_see_whether_it_is_clear_is_one_request(directory, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(
            Path, "stat", lambda *_, **__: pytest.fail("another request to the shared file system")
        )
        assert not directory.is_clear()
