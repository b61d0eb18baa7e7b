"""The contract of a backbone, for every variant of the family: pip install -e . pytest, then pytest."""

from __future__ import annotations

import pytest

from yolo_lightbackbones import list_backbones, testing


@pytest.mark.parametrize("name", list_backbones("sepnet"))
def test_backbone(name: str) -> None:
    testing.check_backbone(name)


def test_rows_of_blocks() -> None:
    testing.check_rows("sepnet")


def test_layouts() -> None:
    testing.check_layouts("sepnet")
