"""The command `lightbackbones-edge`, which is `python -m lightbackbones_edge` as well."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; without OpenCV or numpy it says so in one sentence."""
    try:
        from lightbackbones_edge import command
    except ImportError as error:
        sys.exit(f"error: {error}")
    command.main()


if __name__ == "__main__":
    main()
