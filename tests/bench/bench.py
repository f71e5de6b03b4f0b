"""All that the README's figures come from: `make bench`, or parts of it.

    sudo python tests/bench/bench.py [--quick] [--repeats N] [--parts envpack,boot,scale,model]

Each part prints its tables, and writes them as JSON below .cache/bench; the comparison is drawn there, too. It takes
about a quarter of an hour, with --quick a few minutes; the first time, an environment is built as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from drawing import draw

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache" / "bench"
PARTS = ("envpack", "boot", "scale", "model")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of everything")
    parser.add_argument("--repeats", type=int, help="rounds of each part that has rounds")
    parser.add_argument("--parts", default=",".join(PARTS))
    options = parser.parse_args(argv)
    shared = ["--quick"] * options.quick
    rounds = [] if options.repeats is None else ["--repeats", str(options.repeats)]
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {platform.machine()}, {os.cpu_count()} cores, load {load()}")
    failed = []
    for part in options.parts.split(","):
        if part not in PARTS:
            parser.error(f"--parts {part}: the parts are {', '.join(PARTS)}")
        began = time.monotonic()
        print(f"\n# {part}\n", flush=True)
        script = HERE / ("model.py" if part == "model" else f"{part}_bench.py")
        given = [] if part == "model" else [*shared, *(rounds if part != "scale" else [])]
        if subprocess.run([sys.executable, str(script), *given], stdin=subprocess.DEVNULL).returncode:
            failed.append(part)
        print(f"({time.monotonic() - began:.0f} s; load now {load()})", flush=True)
    if "boot" in options.parts and "boot" not in failed:
        draw(json.loads((CACHE / "boot.json").read_text()), CACHE / "boot.png")
        print(f"\ndrawn: {CACHE / 'boot.png'}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


if __name__ == "__main__":
    sys.exit(main())
