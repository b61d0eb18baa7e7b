"""A detector whose YAML has rows of blocks in four places."""

from __future__ import annotations

from pathlib import Path

NAMES = ["RepViTBlock", "LGLBlock", "ParCBlock", "ConvModBlock"]

MODEL = """
nc: 3
scales: {{n: [0.50, 0.25, 1024], m: [1.00, 0.50, 384]}}
backbone:
  - [-1, 1, Conv, [64, 3, 2]]                 # 0-P1/2
  - [-1, 1, Conv, [128, 3, 2]]                # 1-P2/4
  - [-1, 1, Conv, [128, 3, 2]]                # 2-P3/8
  - [-1, 3, {0}, [256]]                       # 3
  - [-1, 1, Conv, [256, 3, 2]]                # 4-P4/16
  - [-1, 2, {1}, [256]]                       # 5
  - [-1, 1, Conv, [512, 3, 2]]                # 6-P5/32
head:
  - [-1, 1, {2}, [512]]                       # 7
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 5], 1, Concat, [1]]
  - [-1, 6, {3}, [200]]                       # 10
  - [[3, 10, 7], 1, Detect, [nc]]
"""
"""No backbone of ours. Four rows of blocks, in the backbone and in the neck, some changing the width, some not."""
BLOCK_ROWS = (3, 5, 7, 10)


def model_yaml(folder: Path, *names: str) -> Path:
    """The model above with these modules in its four places, or with one in all of them."""
    path = folder / "yolo11n_blocks.yaml"
    path.write_text(MODEL.format(*(names if len(names) == 4 else names * 4)))
    return path
