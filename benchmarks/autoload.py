"""What the autoload adds to an interpreter start: runs with and without it, interleaved.

    python benchmarks/autoload.py [--runs 100]

No test runs this: it measures time, which a busy machine cannot.

Prints the median of both, their difference and their ratio, and writes them to benchmarks/autoload.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from yolo_lightbackbones.measure import timing
from yolo_lightbackbones.writing import write_text

SWITCH = "YOLO_LIGHTBACKBONES_AUTOLOAD"


def start(switch: str) -> None:
    """Start `python -c pass` and wait for its end."""
    subprocess.run([sys.executable, "-c", "pass"], env={**os.environ, SWITCH: switch}, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=100)
    runs = parser.parse_args().runs
    on, off = timing.interleaved([lambda: start("1"), lambda: start("0")], runs, warm_up=1)  # which writes the bytecode
    result = {
        "python": sys.version.split()[0],
        "runs": runs,
        "with_ms": round(on.median, 3),
        "without_ms": round(off.median, 3),
        "added_ms": round(statistics.median(a - b for a, b in zip(on.rounds, off.rounds, strict=True)), 3),
        "ratio": round(timing.ratio(on, off), 3),
    }
    print(json.dumps(result, indent=2))
    write_text(Path(__file__).with_suffix(".json"), json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
