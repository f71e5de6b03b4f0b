"""Events to phases to text and picture: pure functions, no cluster."""

import json
import sys

import pytest

from mpiboot.client.timeline import Phase, phases, plot_phases, render_text
from mpiboot.errors import EnvironmentUnfitError
from mpiboot.protocol.events import parse_events


def phase(time, name):
    return {"time": time, "event": "phase", "phase": name, "seconds": None}


BOOT = [
    phase(100.0, "pending"),
    phase(130.0, "stage"),
    {"time": 134.0, "event": "staged", "host": "node2", "seconds": 3.5, "size_bytes": 9, "reused": False},
    {"time": 134.0, "event": "staged", "host": "node1", "seconds": 1.0, "size_bytes": 9, "reused": False},
    phase(134.0, "launch"),
    phase(135.0, "workers"),
    {"time": 136.0, "event": "worker", "host": "node1", "address": "tls://a:1", "n": 1},
    {"time": 136.5, "event": "worker", "host": "node1", "address": "tls://a:2", "n": 2},
    {"time": 138.0, "event": "worker", "host": "node2", "address": "tls://b:1", "n": 3},
    phase(138.0, "ready"),
    {"time": 500.0, "event": "lost-worker", "host": "node2", "address": "tls://b:1"},
    {"time": 510.0, "event": "worker", "host": "node2", "address": "tls://b:2", "n": 3},
    phase(600.0, "closing"),
    {"time": 602.0, "event": "closed", "reason": "stop", "exit_status": 0},
]
PHASES = [
    Phase("pending", 0, 30),
    Phase("stage", 30, 4),
    Phase("launch", 34, 1),
    Phase("workers", 35, 3),
    Phase("ready", 38, 462),
    Phase("closing", 500, 2),
    Phase("stage", 30, 1, "node1"),
    Phase("workers", 34, 2.5, "node1"),
    Phase("stage", 30, 3.5, "node2"),
    Phase("workers", 34, 4, "node2"),
]
TEXT = """\
phase             start s    took s
pending              0.00     30.00
stage               30.00      4.00  ######################
launch              34.00      1.00                        #####
workers             35.00      3.00                             ################
ready               38.00    462.00
closing            500.00      2.00
  node1 stage       30.00      1.00  #####
  node1 workers     34.00      2.50                        #############
  node2 stage       30.00      3.50  ###################
  node2 workers     34.00      4.00                        #####################"""


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (BOOT, PHASES),
        # Still staging: the phase lasts as long as the last event says.
        (BOOT[:3], [Phase("pending", 0, 30), Phase("stage", 30, 4), Phase("stage", 30, 3.5, "node2")]),
        # Requeued: the first boot is history, whichever phase the second one starts with.
        ([phase(0.0, "pending"), phase(1.0, "stage"), phase(2.0, "launch"), *BOOT], PHASES),
        (
            [*BOOT, phase(700.0, "stage"), phase(702.0, "launch")],
            [Phase("stage", 0, 2), Phase("launch", 2, 0)],
        ),
        (
            [phase(0.0, "stage"), phase(9.0, "stage"), phase(9.5, "launch")],
            [Phase("stage", 0, 0.5), Phase("launch", 0.5, 0)],
        ),
        ([{"event": "phase", "phase": "stage"}, phase(5.0, "launch")], [Phase("launch", 0, 0)]),
        ([], []),
    ],
)
def test_phases(events, expected):
    assert phases(events) == expected


def test_a_half_written_last_line_is_passed_over():
    first, second = (json.dumps(phase(*it)).encode() + b"\n" for it in ((1.0, "stage"), (3.0, "launch")))
    whole = [Phase("stage", 0, 2), Phase("launch", 2, 0)]
    for cut in range(len(second) - 1):
        assert phases(parse_events(first + second[:cut])) == [Phase("stage", 0, 0)]
    assert phases(parse_events(first + second)) == whole


def test_render_text():
    assert render_text(PHASES) == TEXT
    assert max(map(len, TEXT.splitlines())) == 80


@pytest.mark.parametrize("width", [40, 60, 80, 132])
def test_render_text_keeps_to_the_width(width):
    long = [Phase("stage", 0, 2), Phase("stage", 0, 2, "node-0123456789.rack-17.cluster.example.org")]
    lines = render_text(long, width).splitlines()
    assert max(map(len, lines)) == width
    assert all(line.rstrip().endswith("#") for line in lines[1:])


def test_render_text_of_nothing():
    assert render_text([]) == "no phase recorded"


def test_plot_has_a_row_per_node_and_a_bar_per_phase(tmp_path):
    pytest.importorskip("matplotlib", reason="pip install 'mpiboot[plot]'")
    plot_phases(PHASES, tmp_path / "boot.svg")
    plot_phases(PHASES, tmp_path / "boot.png")
    assert (tmp_path / "boot.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "boot.svg").read_text()
    for text in ("job", "node1", "node2", "stage", "launch", "workers"):
        assert f"<!-- {text} -->" in svg
    assert "<!-- pending 30.0 s, ready 462.0 s, closing 2.0 s -->" in svg


def test_plot_of_nothing(tmp_path):
    pytest.importorskip("matplotlib", reason="pip install 'mpiboot[plot]'")
    plot_phases([], tmp_path / "boot.png")
    assert (tmp_path / "boot.png").is_file()


def test_plot_without_matplotlib_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EnvironmentUnfitError, match=r"\. Type: pip install 'mpiboot\[plot\]'$"):
        plot_phases(PHASES, tmp_path / "boot.png")
