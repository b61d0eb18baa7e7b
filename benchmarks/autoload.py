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
import time
from pathlib import Path

from yolo_lightbackbones.writing import write_text

SWITCH = "YOLO_LIGHTBACKBONES_AUTOLOAD"


def start_ms(switch: str) -> float:
    """Milliseconds from starting `python -c pass` to its end."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], env={**os.environ, SWITCH: switch}, check=True)
    return (time.perf_counter() - begin) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=100)
    runs = parser.parse_args().runs
    start_ms("1")  # writes the bytecode
    on, off = zip(*[(start_ms("1"), start_ms("0")) for _ in range(runs)], strict=True)
    result = {
        "python": sys.version.split()[0],
        "runs": runs,
        "with_ms": round(statistics.median(on), 3),
        "without_ms": round(statistics.median(off), 3),
        "added_ms": round(statistics.median(a - b for a, b in zip(on, off, strict=True)), 3),
        "ratio": round(statistics.median(a / b for a, b in zip(on, off, strict=True)), 3),
    }
    print(json.dumps(result, indent=2))
    write_text(Path(__file__).with_suffix(".json"), json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
