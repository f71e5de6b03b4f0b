import socket

import pytest

from mpiboot.common import ports
from mpiboot.common.ports import PortPlan
from mpiboot.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "40000:40100",
            PortPlan(
                nannies=range(40000, 40020),
                workers=range(40020, 40040),
                pages=range(40040, 40060),
                ranks=range(40060, 40080),
                others=range(40080, 40101),
            ),
        ),
        (
            "2000:2029",
            PortPlan(
                range(2000, 2006), range(2006, 2012), range(2012, 2018), range(2018, 2024), range(2024, 2030)
            ),
        ),
    ],
)
def test_five_equal_parts(text, expected):
    assert ports.divide(text) == expected
    assert ports.other_ports(text) == expected.others


def test_any_port_if_none_is_named():
    assert list(ports.other_ports(None)) == [0]


@pytest.mark.parametrize(
    ("text", "n_workers", "needed"),
    [("40000:40100", 19, None), ("40000:40100", 20, 105), ("40000:40029", 5, None), ("40000:40028", 1, 30)],
)
def test_a_range_that_is_too_narrow_is_refused(text, n_workers, needed):
    if needed is None:
        ports.check_ports(text, n_workers, "n1")
        return
    with pytest.raises(UsageError) as refusal:
        ports.check_ports(text, n_workers, "n1")
    n_ports = len(ports.port_range(text))
    assert str(refusal.value) == (
        f"--worker-port {text} has {n_ports} ports; {n_workers} worker(s) on n1 need {needed}. "
        "Name a wider range that is open between the nodes, or ask for fewer workers with --workers-per-node"
    )


def test_taken_ports_are_not_chosen():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not ports.is_free(port)
        with pytest.raises(UsageError, match=rf"too few free ports between {port} and {port}\. Name a wider"):
            ports.choose_free([port], 1)
    assert ports.is_free(port)
    assert ports.choose_free([port], 1) == [port]
    with pytest.raises(UsageError):
        ports.choose_free([port], 1, but=[port])
