import pytest

from mpiboot.agent.finding import ASKED_MAX, first_node_is_lost, to_be_asked


@pytest.mark.parametrize(
    ("sightings", "sign_has_changed", "lost"),
    [
        # The other agents hear boot: this node is cut off, from whatever.
        ([True, True], False, False),
        ([False, True], None, False),
        # So does the shared file system say, though nobody else can be asked.
        ([None, None], True, False),
        ([], True, False),
        ([False, False], True, False),
        # All that can be asked agree, and are more than half.
        ([False, False], None, True),
        ([False, None], None, True),
        ([False], None, True),
        # Too few agree: they may be cut off together.
        ([None, None], None, False),
        ([False, None, None, None], None, False),
        ([None], None, False),
        ([], None, False),
        # But boot has left no sign of life on a file system that can be read.
        ([None, None], False, True),
        ([], False, True),
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
