import pytest

from mpiboot.client import connect as connecting
from mpiboot.errors import UsageError


@pytest.mark.parametrize("name", ["timeout", "queue_timeout"])
def test_a_malformed_time_is_refused_before_the_batch_system_is_asked(name, monkeypatch):
    monkeypatch.setattr(connecting, "find_job", lambda job: pytest.fail("the batch system was asked"))
    with pytest.raises(UsageError, match=f"{name}: 'soon' is not"):
        connecting.connect("1", **{name: "soon"})
