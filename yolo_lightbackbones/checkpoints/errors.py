"""Errors about checkpoints."""

from __future__ import annotations


class CheckpointError(ValueError):
    """The file cannot be read as weights, or its weights do not fit the backbone; nothing was changed."""


class UltralyticsCheckpointError(CheckpointError):
    """The file is a checkpoint of a whole Ultralytics model, which pickles the layers and not only their weights."""
