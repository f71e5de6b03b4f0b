def test_no_job_is_no_output_for_programs(run, monkeypatch):
    monkeypatch.setattr("mpiboot.client.find.live_jobs", list)
    assert run("list", "--json") == (0, "[]\n", "")
    assert run("list") == (0, "", "no mpiboot job is pending or running\n")
