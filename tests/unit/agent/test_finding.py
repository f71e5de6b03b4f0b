import pytest

from mpiboot.agent.finding import ASKED_MAX, first_node_is_lost, to_be_asked


@pytest.mark.parametrize(
    ("sightings", "sign_has_changed", "lost"),
    [
        # Another agent hears boot: this node is cut off, from whatever.
        ([True, True], False, False),
        ([False, True], None, False),
        # All agree, whatever a file system of its own says.
        ([False, False], None, True),
        ([False, False], True, True),
        ([False], False, True),
        # Some do not answer, or there is nobody to ask: the sign of life decides.
        ([False, False, None], True, False),
        ([None, None], True, False),
        ([], True, False),
        ([None, None], False, True),
        ([], False, True),
        # It cannot be read: more than half.
        ([False, None], None, True),
        ([False, None, None, None], None, False),
        ([None, None], None, False),
        ([None], None, False),
        ([], None, False),
    ],
)
def test_the_first_node_is_lost_only_by_a_common_finding(sightings, sign_has_changed, lost):
    assert first_node_is_lost(sightings, sign_has_changed) is lost


def test_all_agents_of_a_small_job_are_asked_and_some_from_all_over_a_large_one():
    assert to_be_asked({"n1": [], "n2": [], "n3": [], "n4": []}, "n3", "n1") == ["n2", "n4"]
    assert to_be_asked({}, "n3", "n1") == []
    asked = to_be_asked({f"n{number}": [] for number in range(1000)}, "n500", "n0")
    assert len(asked) <= ASKED_MAX
    assert (asked[0], asked[1], asked[-1]) == ("n1", "n33", "n994")
