from mpiboot.client import polling


def test_polling_is_gentle():
    assert [polling.poll_interval_s(waited_s) for waited_s in (0, 59, 60, 3600)] == [1, 1, 10, 10]
