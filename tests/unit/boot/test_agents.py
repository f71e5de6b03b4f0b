import pytest

from mpiboot.boot import agents
from mpiboot.errors import StageError
from mpiboot.protocol.channel import Failure, StageReport

GOOD = StageReport(1, {})


def test_answers_come_in_the_order_of_the_nodes():
    first, second = StageReport(1, {"seconds": 1.0}), StageReport(1, {"seconds": 2.0})
    answers = agents.check_answers(["n1", "n2"], StageReport, {"n2": second, "n1": first}, {}, "")
    assert list(answers.items()) == [("n1", first), ("n2", second)]


@pytest.mark.parametrize(
    ("answers", "ended", "problem"),
    [
        (
            {"n1": Failure(1, "no room"), "n2": GOOD, "n3": GOOD},
            {},
            "1 of 3 nodes could not be prepared:\n  n1: no room",
        ),
        ({"n1": GOOD}, {}, "2 of 3 nodes could not be prepared:\n  n2, n3: no answer. killed"),
        (
            {"n1": Failure(1, "no room"), "n2": GOOD},
            {},
            "2 of 3 nodes could not be prepared:\n  n1: no room\n  n3: no answer. killed",
        ),
        (
            {"n1": Failure(1, "no room"), "n2": GOOD},
            {"n3": "it was cancelled", "n2": "after its answer"},
            "2 of 3 nodes could not be prepared:\n  n1: no room\n  n3: it was cancelled",
        ),
    ],
)
def test_every_node_that_failed_is_named(answers, ended, problem):
    with pytest.raises(StageError) as error:
        agents.check_answers(["n1", "n2", "n3"], StageReport, answers, ended, "killed")
    assert str(error.value) == (
        f"{problem}\nCorrect these failures, or exclude the nodes, and submit the job again"
    )
