"""Stochastic depth, and the schedule of its rate over the blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, drops a residual branch per sample, with probability `rate`."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def drop_path_rates(rate: float, depths: Sequence[int]) -> Iterator[list[float]]:
    """Yield, per stage, the stochastic depth rates of its blocks: linear from 0 at the first to `rate` at the last."""
    last = max(sum(depths) - 1, 1)
    start = 0
    for depth in depths:
        yield [rate * (start + i) / last for i in range(depth)]
        start += depth
