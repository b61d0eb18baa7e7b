"""ParC-Net's circular convolution, recorded as a depthwise convolution and as a matrix product, in every runtime here.

    python benchmarks/circular.py

No test runs this: it measures time, which a busy machine cannot.

Prints the time of the matrix product as a share of the convolution's, and the size of both files, for the maps of a
parcnet_s that sees 640 x 640 pixels; the `matrix_from` of `plugin/formats.py` is set by it. Runtimes that are not
installed are left out. A pair of convolutions, along the height and then along the width; median of interleaved runs,
one image, batch 1, two threads.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import harness
import torch
from backends import RUNTIMES, is_installed
from torch import Tensor, nn

from yolo_lightbackbones.layers import Axis, CircularConv, FixedConv
from yolo_lightbackbones.layers.circular import circulant, resize

MAPS = ((192, 80), (256, 40), (320, 20))  # channels, length
ROUNDS = 60
THREADS = 2


class Pair(nn.Module):
    """Two circular convolutions at a fixed size."""

    def __init__(self, channels: int, length: int, as_matrix: bool) -> None:
        super().__init__()
        self.convs = [self._fixed(channels, length, axis) for axis in (2, 3)]
        self.as_matrix = as_matrix

    @staticmethod
    def _fixed(channels: int, length: int, axis: Axis) -> FixedConv:
        generator = torch.Generator().manual_seed(axis)
        weight = torch.randn(CircularConv(channels, length, axis).weight.shape, generator=generator) / length
        kernel = resize(weight, axis, length)
        matrix = circulant(kernel) if axis == 2 else circulant(kernel).transpose(1, 2).contiguous()
        return FixedConv(axis, kernel, matrix, None)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, self.as_matrix)
        return x


def main() -> None:
    print("| runtime | map | convolution, ms | matrix / convolution, time | worst difference | sizes, MB |")
    print("|---|---|---|---|---|---|")
    for name, runtime in RUNTIMES.items():
        if not runtime.form:
            continue
        if not is_installed(runtime):
            print(f"{runtime.package} is not installed", file=sys.stderr)
            continue
        for channels, length in MAPS:
            x = torch.randn(1, channels, length, length, generator=torch.Generator().manual_seed(0))
            with tempfile.TemporaryDirectory() as folder:
                built = {}
                for form in ("matrix", "convolution"):
                    (place := Path(folder, form)).mkdir()
                    model = Pair(channels, length, form == "matrix").eval()
                    built[form] = runtime.build(model, x, place, THREADS)
                files = [built[form].file for form in ("convolution", "matrix")]
                sizes = " / ".join(f"{file.stat().st_size / 1e6:.1f}" for file in files if file)
                runs = {form: one.run for form, one in built.items()}
                expected = [[array.copy() for array in runs["convolution"](x.numpy())]]
                row = harness.race(runs, [x.numpy()], expected, tolerance=runtime.tolerance, rounds=ROUNDS)
            times = (f"{row['ms']['convolution']:.2f}", f"{row['ratio'][1]:.2f}", f"{row['errors']['matrix']:.1e}")
            print("|", " | ".join((name, f"{channels} x {length} x {length}", *times, sizes)), "|", flush=True)


if __name__ == "__main__":
    main()
