"""Finds truncated exported files, for converters that do not notice a full disk.

A file is read with the package that wrote it, if that package is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path


def unreadable_mnn(folder: Path) -> Iterator[Path]:
    """Find the MNN files in a folder that MNN cannot read."""
    if mnn := sys.modules.get("MNN"):
        for file in folder.glob("*.mnn"):
            try:
                mnn.Interpreter(str(file))
            except Exception:  # MNN has no error class of its own
                yield file


def unreadable_ncnn(folder: Path) -> Iterator[Path]:
    """Find the weights of NCNN models in a folder that NCNN cannot read."""
    if ncnn := sys.modules.get("ncnn"):
        for file in folder.glob("*_ncnn_model/*.ncnn.param"):
            net = ncnn.Net()
            net.opt.num_threads, net.opt.use_winograd_convolution = 1, False  # otherwise, loading transforms weights
            weights = file.with_suffix(".bin")
            if net.load_param(str(file)) or net.load_model(str(weights)):
                yield weights
