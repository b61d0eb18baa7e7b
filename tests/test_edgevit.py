"""EdgeViT: the family contract, and what is its own."""

from __future__ import annotations

import pytest
from contract import Expected, FamilyContract, imagenet
from torch import Tensor, nn

from yolo_lightbackbones import fusion
from yolo_lightbackbones.backbones.edgevit import EdgeViTConfig, SparseAttention


class TestEdgeViT(FamilyContract):
    family = "edgevit"
    class_name = "EdgeViT"
    smallest = "xxs"
    # counted on saic-fi/edgevit df3d070
    expected = {
        "xxs": Expected(3_778_128, 0.551, (36, 72, 144, 288)),
        "xs": Expected(6_384_288, 1.1274, (48, 96, 240, 384)),
        "s": Expected(12_722_400, 1.9106, (48, 96, 240, 384)),
    }
    top1 = {"xxs": 74.4, "xs": 77.5, "s": 81.0}
    weights = dict.fromkeys(expected, "none released")
    row_tap_norm = "batch"

    @staticmethod
    def prepare(image: Tensor) -> Tensor:
        return imagenet(image)

    def test_eps_of_layer_norms(self) -> None:
        for name, module in self.build().named_modules():
            if isinstance(module, nn.LayerNorm):
                before_a_branch = name.endswith(("attn.norm", "global_attn.norm"))
                assert module.eps == (1e-6 if before_a_branch else 1e-5), name

    def test_folding_leaves_no_scale_in_attention(self) -> None:
        plain = self.build()
        for module in plain.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.constant_(module.weight, 2.0)
        fused = fusion.fuse(plain)
        blocks = [module for module in fused.modules() if isinstance(module, SparseAttention)]
        assert len(blocks) == 7
        assert all(block.scale == 1 and (block.norm.weight == 1).all() for block in blocks)
        # the norms of patch embeddings stay: position encodings with zero borders follow them
        assert sum(isinstance(m, nn.LayerNorm) and bool((m.weight == 2).all()) for m in fused.modules()) == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"embed_dims": (36, 72), "depths": (1, 1, 1), "head_dim": 36}, "one entry per stage"),
        ({"embed_dims": (36, 72, 144, 290), "depths": (1, 1, 1, 1), "head_dim": 36}, "multiples of head_dim 36"),
    ],
)
def test_config_is_checked(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EdgeViTConfig(**config)  # type: ignore[arg-type]
