"""Loads published checkpoints into our backbones: one engine, and one file of rules (plain data) per family."""
