def test_logs_hold_nothing_twice(two, tmp_path, monkeypatch):
    """Boot's log is in the job's output, and stands in for it where there is none."""
    job = two[0][0]
    job.directory.path.mkdir(parents=True, mode=0o700)
    for path in (job.directory.boot_log, job.directory.ranks_log, tmp_path / "out"):
        path.touch()
    monkeypatch.setattr(type(job.batch), "output", lambda self, job_id: tmp_path / "out", raising=False)
    assert job.log_files() == [tmp_path / "out", job.directory.ranks_log]
    (tmp_path / "out").unlink()
    assert job.log_files() == [job.directory.boot_log, job.directory.ranks_log]
