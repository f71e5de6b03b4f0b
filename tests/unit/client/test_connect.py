import pytest

from mpiboot.client import connect as connecting
from mpiboot.client import find
from mpiboot.errors import BatchError, UsageError


@pytest.mark.parametrize("name", ["timeout", "queue_timeout"])
def test_a_malformed_time_is_refused_before_the_batch_system_is_asked(name, monkeypatch):
    monkeypatch.setattr(connecting, "find_job", lambda job: pytest.fail("the batch system was asked"))
    with pytest.raises(UsageError, match=f"{name}: 'soon' is not"):
        connecting.connect("1", **{name: "soon"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_workers": "two"}, "n_workers: 'two' is not a count. Write a whole number of at least 1"),
        ({"n_workers": True}, "n_workers: True is not a count. Write a whole number of at least 1"),
        ({"timeout": "soon"}, "timeout: 'soon' is not a time. Write 90, '90 s', '30 min', '2 h' or '7 d'"),
        ({"timeout": float("inf")}, "timeout: inf is not a time. Write 90, '90 s', '30 min', '2 h' or '7 d'"),
        ({"scheduler_file": 3}, "scheduler_file: 3 is not a text. Write it in quotes"),
        (
            {"scheduler_file": "~no-such-user/s.json"},
            "scheduler_file: '~no-such-user/s.json': there is no user ",
        ),
        (
            {"scheduler_file": "$NONE"},
            "scheduler_file: '$NONE': the variable NONE is not set. Write the path",
        ),
        ({"job": "1", "scheduler_file": "/s"}, "both a job and a scheduler_file are given. Give one of them"),
        ({"job": 1.0}, "1.0 is neither a job id nor a name. Give a text, such as '1234', or a Job"),
        ({"job": ["1"]}, "['1'] is neither a job id nor a name. Give a text, such as '1234', or a Job"),
    ],
)
def test_an_argument_of_the_wrong_type_is_named(arguments, message):
    with pytest.raises(UsageError) as error:
        connecting.connect(**arguments)
    assert str(error.value).startswith(message)


def test_a_job_id_may_be_a_number(monkeypatch):
    monkeypatch.setattr(find, "_by_id", lambda text: pytest.fail(text) if text != "1234" else ([], []))
    monkeypatch.setattr(find, "live_jobs", list)
    with pytest.raises(BatchError, match="'1234' is neither a job id nor the name of a live job"):
        find.find_job(1234)
