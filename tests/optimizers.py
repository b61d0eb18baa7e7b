"""Optimizers as Ultralytics' trainer builds them, and which parameters are in which of their groups."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from ultralytics.engine.trainer import BaseTrainer


def stock_optimizer(model: nn.Module, name: str) -> torch.optim.Optimizer:
    trainer = SimpleNamespace(args=SimpleNamespace(lr0=0.01), data={"nc": 80})
    return BaseTrainer.build_optimizer(trainer, model, name=name, lr=0.01, decay=0.05)


def membership(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, str]:
    """Parameter name -> kind of its group; every parameter in exactly one."""
    kinds = {id(p): group["param_group"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(kinds)
    return {name: kinds[id(param)] for name, param in model.named_parameters()}
