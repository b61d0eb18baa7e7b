"""What goes wrong with a checkpoint."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file that cannot be read as weights, or whose weights do not fit the backbone; nothing was changed."""


class UltralyticsCheckpointError(CheckpointError):
    """A checkpoint of a whole Ultralytics model, which pickles its layers and not their weights alone."""
