"""Where the tests' material lies."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
"""The checkout, or the unpacked source archive."""

EDGE = REPOSITORY / "edge" / "src"
"""What `lightbackbones_edge` is imported from; `conftest.py` puts it on the path."""

SHARED = REPOSITORY.parent / "shared"
"""Data that is in no repository and may lie beside the checkout. Tests that want it skip themselves without it."""

COCO = SHARED / "data" / "coco"
"""33 images of COCO's val2017 with their annotations."""
