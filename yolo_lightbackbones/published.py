"""What was published about the variants. Data alone, each with its source; nothing here is computed or measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """Of the published classifier.

    Args:
        top1: accuracy on ImageNet-1k, in percent.
        source: who says so.
        parameters: in millions, with the classifier.
        gmacs: billions of multiply-adds at `image_size`.
        image_size: side of the images, in pixels.
        note: what else belongs to the accuracy.
    """

    top1: float
    source: str
    parameters: float | None = None
    gmacs: float | None = None
    image_size: int = 224
    note: str = ""


_EDGEVIT = "arXiv 2205.03436"
_PARCNET = "arXiv 2203.03952"
_REPVIT = "github.com/THU-MIG/RepViT"
_CONV2FORMER = "github.com/HVision-NKU/Conv2Former"
_DISTILLED = "450 epochs, distilled"

FIGURES = {
    "edgevit_xxs": Figures(74.4, _EDGEVIT, 4.1, 0.56),
    "edgevit_xs": Figures(77.5, _EDGEVIT, 6.7, 1.1),
    "edgevit_s": Figures(81.0, _EDGEVIT, 11.1, 1.9, note="the published code has 13.1 M parameters"),
    "parcnet_s": Figures(78.6, _PARCNET, 5.0, 1.74, image_size=256),
    "repvit_m0_6": Figures(74.1, _REPVIT),
    "repvit_m0_9": Figures(79.1, _REPVIT, 5.1, 0.8, note=_DISTILLED),
    "repvit_m1_0": Figures(80.3, _REPVIT, 6.8, 1.1, note=_DISTILLED),
    "repvit_m1_1": Figures(81.2, _REPVIT, 8.2, 1.3, note=_DISTILLED),
    "repvit_m1_5": Figures(82.5, _REPVIT, 14.0, 2.3, note=_DISTILLED),
    "repvit_m2_3": Figures(83.7, _REPVIT, 22.9, 4.5, note=_DISTILLED),
    "conv2former_n": Figures(81.5, _CONV2FORMER, 15, 2.2),
    "conv2former_t": Figures(83.2, _CONV2FORMER, 27, 4.4),
    "conv2former_s": Figures(84.1, _CONV2FORMER, 50, 8.7),
    "conv2former_b": Figures(84.4, _CONV2FORMER, 90, 15.9),
    "conv2former_l": Figures(87.0, _CONV2FORMER, 199, 36.0, note="pretrained on ImageNet-22k"),
}
"""Full name of a variant -> its figures. Variants that are not here have none that we know of."""

WEIGHTS = {
    **dict.fromkeys(("edgevit_xxs", "edgevit_xs", "edgevit_s"), "none released"),
    **dict.fromkeys(("parcnet_xs", "parcnet_h"), "none listed"),
    "parcnet_s": "by hand",
    **dict.fromkeys([f"repvit_{short}" for short in ("m0_6", "m0_9", "m1_0", "m1_1", "m1_5", "m2_3")], "download"),
    **dict.fromkeys([f"conv2former_{short}" for short in ("n", "t", "s", "b", "l", "b_k7")], "by hand"),
}
"""Full name of a variant -> whether there are weights; `checkpoints.sources` knows the way to them."""
