"""The comparison as a picture: a bar per contender, in its phases, one panel per shared file system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import median

COLOURS = {
    "queue": "lightgrey",
    "stage": "tab:blue",
    "workers": "tab:green",
    "connect": "tab:purple",
    "result": "tab:red",
}


def draw(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Write the picture; its bars end at the median time to the first result."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = 0.42 * max(len(result["runs"]) for result in results) + 1.2
    figure, panels = pyplot.subplots(
        len(results), 1, figsize=(9, height * len(results)), squeeze=False, layout="constrained"
    )
    for result, (panel,) in zip(results, panels, strict=True):
        names = list(result["runs"])
        for row, name in enumerate(names):
            left = 0.0
            for phase, colour in COLOURS.items():
                width = median([run.get(f"phase_{phase}_s") for run in result["runs"][name]]) or 0.0
                panel.barh(row, width, left=left, color=colour, label=phase if row == 0 else None)
                left += width
            for run in result["runs"][name]:
                panel.plot(run["result_s"], row, "k|", markersize=8)
            panel.text(left, row, f" {left:.1f} s", va="center")
        panel.set_yticks(range(len(names)), names)
        panel.invert_yaxis()
        panel.set_xlabel("seconds after sbatch")
        panel.set_title(
            f"{result['shared_fs']}: {result['nodes']} nodes, {result['n_workers']} workers", loc="left"
        )
        panel.spines[["top", "right"]].set_visible(False)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    panels[0][0].legend(handles, COLOURS, loc="lower right", fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
