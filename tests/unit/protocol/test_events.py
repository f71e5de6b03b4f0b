from mpiboot.protocol.events import EventLog, last_event, parse_events


def test_events_are_read_as_written_and_a_half_written_one_waits(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.phase("stage", nodes=["n1"], time=1.0)
    log.close()
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("a") as file:
        file.write('[]\n{"time": 1, "event": "wor')
    assert list(parse_events(path.read_bytes())) == [
        {"time": 1.0, "event": "phase", "phase": "stage", "nodes": ["n1"]}
    ]


def test_the_first_end_of_the_last_boot_is_the_jobs():
    boot = {"event": "phase", "phase": "stage"}
    lost, stopped = {"event": "closed", "reason": "lost"}, {"event": "closed", "reason": "stopped"}
    worker = {"event": "lost-worker"}
    assert last_event([]) == {"event": ""}
    assert last_event([boot, worker]) == worker
    assert last_event([boot, lost, worker, stopped]) == lost
    assert last_event([boot, lost, boot]) == boot
    assert last_event([boot, lost, boot, worker, stopped]) == stopped
