"""One command on every node of the job, and what each answered. Standard library only."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from mpiboot.allocation import Allocation
from mpiboot.errors import StageError
from mpiboot.launchers import SRUN

Answers = dict[str, dict[str, Any]]


def command(allocation: Allocation, python: str, action: str, orders: Mapping[str, Any]) -> list[str]:
    """The command that runs `mpiboot.node ACTION` once per node."""
    mine = [python, "-m", "mpiboot.node", action, json.dumps(orders)]
    if allocation.batch_system == "local":
        return mine
    count = str(len(allocation.nodes))
    return [
        *SRUN,
        *("--nodes", count, "--ntasks", count, "--ntasks-per-node", "1", "--cpus-per-task", "1"),
        *("--cpu-bind=none", "--kill-on-bad-exit=0", "--wait=0"),
        *mine,
    ]


def on_every_node(
    allocation: Allocation,
    action: str,
    orders: Mapping[str, Any],
    *,
    timeout_s: float,
    python: str = sys.executable,
) -> Answers:
    """Run an action on all nodes at once.

    Returns
    -------
    dict
        Each node's answer.

    Raises
    ------
    StageError
        Some nodes failed or did not answer: all of them are named, each with its reason.
    """
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_EXPORT_ENV"}
    process = subprocess.Popen(
        command(allocation, python, action, orders),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        output, complaints = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, complaints = process.communicate()
        complaints += f"no answer within {timeout_s:.0f} s"
    except BaseException:
        process.terminate()
        raise
    answers = parse_answers(output)
    failures = {node: answer["error"] for node, answer in answers.items() if "error" in answer}
    silent = [node for node in allocation.nodes if node not in answers]
    if allocation.batch_system == "local" and silent and answers:
        silent = []
    if failures or silent:
        lines = [f"  {node}: {reason}" for node, reason in failures.items()]
        if silent:
            reason = complaints.strip()[-2000:] or f"exit status {process.returncode}"
            lines.append(f"  {', '.join(silent)}: no answer. {reason}")
        raise StageError(
            f"{len(failures) + len(silent)} of {len(allocation.nodes)} nodes could not {action}:\n"
            + "\n".join(lines)
        )
    return {node: answers[node] for node in allocation.nodes if node in answers} or answers


def parse_answers(output: str) -> Answers:
    """The JSON lines of `mpiboot.node`, by node; other lines (a site's banners) are passed over."""
    answers: Answers = {}
    for line in output.splitlines():
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if isinstance(answer, dict) and "node" in answer:
            answers[answer.pop("node")] = answer
    return answers
