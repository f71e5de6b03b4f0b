import pytest

from mpiboot.boot import agents
from mpiboot.errors import StageError


def test_answers_and_banners():
    output = b'welcome\n{"node": "n1", "cpus": 8}\n{"node": "n2", "clean": true}\n{"node": "n1", "cl'
    assert agents.parse_answers(output) == {"n1": {"cpus": 8}}
    assert agents.cleaned_nodes(output) == {"n2"}


def test_answers_come_in_the_order_of_the_nodes():
    answers = {"n2": {"cpus": 1}, "n1": {"cpus": 8}}
    assert list(agents.check_answers(["n1", "n2"], answers, "").items()) == [
        ("n1", {"cpus": 8}),
        ("n2", {"cpus": 1}),
    ]


@pytest.mark.parametrize(
    ("answers", "error_output", "problem"),
    [
        (
            {"n1": {"error": "no room"}, "n2": {}, "n3": {}},
            "x",
            "1 of 3 nodes could not be prepared:\n  n1: no room",
        ),
        ({"n1": {}}, "", "2 of 3 nodes could not be prepared:\n  n2, n3: no answer."),
        (
            {"n1": {"error": "no room"}, "n2": {}},
            "killed",
            "2 of 3 nodes could not be prepared:\n  n1: no room\n  n3: no answer. killed",
        ),
        ({"n1": {"error": "no room"}, "n2": {}}, "", "1 of 3 nodes could not be prepared:\n  n1: no room"),
    ],
)
def test_every_node_that_failed_is_named(answers, error_output, problem):
    with pytest.raises(StageError) as error:
        agents.check_answers(["n1", "n2", "n3"], answers, error_output)
    assert str(error.value) == (
        f"{problem}\nCorrect these failures, or exclude the nodes, and submit the job again"
    )
