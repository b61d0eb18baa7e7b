"""Training: the time of a step, and the bytes that the forward pass keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from harness import DifferentResultsError, Row, in_turns
from torch import Tensor, nn

TOLERANCE = 1e-3
"""Largest difference of all outputs, or of all gradients, as a share of their norm: batch statistics are sensitive."""


def saved_bytes(model: nn.Module, image: Tensor) -> int:
    """Bytes of the tensors that one forward pass saves for backward, without parameters; shared memory counts once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor  # which keeps its memory until the graph goes, so no other tensor gets this address

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = model(image)
    del features
    return sum(saved.values())


def _loss(features: list[Tensor]) -> Tensor:
    return torch.stack([feature.square().mean() for feature in features]).sum()


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, images: list[Tensor]) -> Callable[[], None]:
    number = 0

    def run() -> None:
        nonlocal number
        optimizer.zero_grad()
        _loss(model(images[number % len(images)])).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        number += 1

    return run


def _values(model: nn.Module, image: Tensor) -> Mapping[str, Tensor]:
    """All outputs, and all gradients, as one vector each."""
    torch.manual_seed(0)  # dropout
    features = model(image)
    _loss(features).backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for _, parameter in sorted(model.named_parameters()) if parameter.grad is not None]
    model.zero_grad()
    return {
        "outputs": torch.cat([feature.detach().flatten() for feature in features]),
        "gradients": torch.cat([gradient.flatten() for gradient in gradients]),
    }


def check(models: Mapping[str, nn.Module], image: Tensor) -> dict[str, float]:
    """Compare outputs and gradients in training mode with those of the first model.

    Raises:
        DifferentResultsError: if they differ.
    """
    first, *others = (_values(model, image) for model in models.values())
    errors = {}
    for name, found in zip(list(models)[1:], others, strict=True):
        for what, values in found.items():
            same = values.shape == first[what].shape
            error = float((values - first[what]).norm() / first[what].norm()) if same else float("inf")
            if not error <= TOLERANCE:
                raise DifferentResultsError(
                    f"The {what} of {name} differ from those of {next(iter(models))} by {error:.1e} of their norm; at "
                    f"most {TOLERANCE:.0e} is allowed. Different results are not timed."
                )
            errors[f"{name}, {what}"] = error
    return errors


def measure(
    models: Mapping[str, nn.Module], size: int, batch: int, rounds: int, seconds: float, *, clock: Callable[[], float]
) -> Row:
    """Compare training steps (forward, backward, SGD) of models in training mode on images (batch, 3, size, size)."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(batch, 3, size, size, generator=generator) for _ in range(4)]
    errors = check(models, images[0])
    memory = {name: saved_bytes(model, images[0]) for name, model in models.items()}
    runs: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
        runs[name] = _step(model, optimizer, images)
    return {"errors": errors, "bytes": memory, **in_turns(runs, rounds, seconds, clock)}
