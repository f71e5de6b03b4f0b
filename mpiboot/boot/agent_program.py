"""Writes the agents' program. (For now a script that imports the agent from where boot did.)"""

from pathlib import Path


def write_agent_program(path: Path) -> None:
    """Write the program."""
    root = Path(__file__).parents[2]
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(root)!r})\n"
        "if sys.argv[1] == '--stage':\n    from mpiboot.agent.stage_child import main\n"
        "else:\n    from mpiboot.agent.agent import main\nsys.exit(main())\n"
    )
