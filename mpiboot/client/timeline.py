"""The timeline of a boot: phases from a job's `events.jsonl`, drawn as text and as a picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpiboot.errors import EnvironmentUnfitError, UsageError

if TYPE_CHECKING:
    from os import PathLike

ORDER = ("pending", "stage", "launch", "workers", "ready", "closing")
# The phases drawn as bars. The queue and the use of the cluster can take hours, and would make these too small to see.
BOOT = ("stage", "launch", "workers")
COLOURS = {"stage": "tab:blue", "launch": "tab:orange", "workers": "tab:green"}


@dataclass(frozen=True)
class Phase:
    """One phase of the whole job, or of one node.

    Attributes
    ----------
    name : str
        One of `ORDER`.
    start_s : float
        Seconds from the boot's first event.
    seconds : float
        Duration in seconds.
    host : str or None
        The node; None: the whole job.
    """

    name: str
    start_s: float
    seconds: float
    host: str | None = None

    @property
    def end_s(self) -> float:
        return self.start_s + self.seconds


def phases(events: Iterable[dict[str, Any]]) -> list[Phase]:
    """Turn a job's events into phases.

    Parameters
    ----------
    events : iterable of dict
        The lines of `events.jsonl`; those without a time are skipped. For a requeued job, only the last boot counts.

    Returns
    -------
    list[Phase]
        First the phases of the job: each ends where the next one starts, the last one at the last event. Then each
        node's `stage` and `workers` (from the launch to the node's last worker), sorted by host.
    """
    events = _last_boot([e for e in events if isinstance(e.get("time"), (int, float))])
    if not events:
        return []
    zero_s = events[0]["time"]
    starts = [(e["phase"], e["time"] - zero_s) for e in events if e["event"] == "phase"]
    ends = [start_s for _, start_s in starts[1:]] + [max(e["time"] for e in events) - zero_s]
    job = [Phase(name, start_s, end_s - start_s) for (name, start_s), end_s in zip(starts, ends, strict=True)]

    began_s = dict(starts)
    launch_s = began_s.get("launch", 0.0)
    nodes: dict[tuple[str, int], Phase] = {}
    for e in events:
        if e["event"] == "staged":
            # The time of the event does not count: boot may write the reports of all nodes together, after the slowest.
            nodes[e["host"], 0] = Phase("stage", began_s.get("stage", 0.0), e["seconds"], e["host"])
        elif e["event"] == "worker" and e["time"] - zero_s <= began_s.get("ready", float("inf")):
            # Workers that are replaced after the job is ready do not belong to the boot.
            nodes[e["host"], 1] = Phase("workers", launch_s, e["time"] - zero_s - launch_s, e["host"])
    return job + [nodes[key] for key in sorted(nodes)]


def _last_boot(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    start, reached = 0, -1
    for i, event in enumerate(events):
        if event["event"] == "phase" and event.get("phase") in ORDER:
            rank = ORDER.index(event["phase"])
            if rank <= reached:
                start = i
            reached = rank
    return events[start:]


def _boot_span(timeline: list[Phase]) -> tuple[float, float]:
    """Return the start and end, in seconds, of the phases that are drawn as bars."""
    boot = [p for p in timeline if p.name in BOOT] or timeline
    return min(p.start_s for p in boot), max(p.end_s for p in boot)


def render_text(phases: list[Phase], width: int = 80) -> str:
    """Draw phases as plain text.

    Parameters
    ----------
    phases : list[Phase]
    width : int, default 80
        Width in columns, 40 at least.

    Returns
    -------
    str
        One line per phase: name, or host and name; start and duration in seconds; a bar, where the phase is
        part of the boot. No newline at the end.
    """
    if not phases:
        return "no phase recorded"
    labels = [f"  {p.host} {p.name}" if p.host else p.name for p in phases]
    # Node names can be long domain names; the bar keeps a third of the line.
    label_width = min(max(map(len, labels)), max(width - width // 3 - 22, 10))
    bar_width = max(width, 40) - label_width - 22
    start_s, end_s = _boot_span(phases)
    per_s = bar_width / ((end_s - start_s) or 1.0)
    lines = [f"{'phase':<{label_width}}  {'start s':>8}  {'took s':>8}"]
    for phase, label in zip(phases, labels, strict=True):
        line = f"{label[-label_width:]:<{label_width}}  {phase.start_s:>8.2f}  {phase.seconds:>8.2f}"
        if phase.name in BOOT:
            left = min(round((phase.start_s - start_s) * per_s), bar_width - 1)
            length = max(round((phase.end_s - start_s) * per_s) - left, 1)
            line += "  " + " " * left + "#" * length
        lines.append(line)
    return "\n".join(lines)


def plot_phases(phases: list[Phase], file: str | PathLike[str]) -> None:
    """Draw the boot: one row for the job and one per node, one bar per phase, so that a slow node stands out.

    Parameters
    ----------
    phases : list[Phase]
    file : path
        The file to write; its suffix sets the format: png, svg or pdf.

    Raises
    ------
    EnvironmentUnfitError
        matplotlib is not installed.
    """
    figure_class = figure_type()
    rows = ["job", *dict.fromkeys(p.host for p in phases if p.host)]
    figure = figure_class(figsize=(9, 1.6 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    bars = [p for p in phases if p.name in BOOT]
    start_s, _ = _boot_span(phases) if phases else (0.0, 0.0)
    for name in BOOT:
        mine = [p for p in bars if p.name == name]
        axes.barh(
            [rows.index(p.host or "job") for p in mine],
            [p.seconds for p in mine],
            left=[p.start_s - start_s for p in mine],
            color=COLOURS[name],
            label=name,
            height=0.7,
        )
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlabel("seconds since staging began")
    others = [f"{p.name} {p.seconds:.1f} s" for p in phases if p.name not in BOOT and p.host is None]
    axes.set_title(", ".join(others), fontsize="small")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    try:
        figure.savefig(file)
    except ValueError as error:
        raise UsageError(
            f"--plot {file}: {error}", "Name a file that ends with .png, .svg or .pdf"
        ) from error


def figure_type() -> Any:
    """Return matplotlib's Figure: used without pyplot, it needs no display and leaves no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentUnfitError(f"no plot: {error}", "Type: pip install 'mpiboot[plot]'") from error
    return Figure
