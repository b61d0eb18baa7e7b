"""Names of EdgeViT's parameters in the authors' implementation (saic-fi/edgevit, commit df3d070).

The authors never released weights: files of this layout come from training their code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from yolo_lightbackbones.checkpoints.rules import Drop, Layout, Rename, Transform, linear_to_conv1x1


def _sections(keys: Collection[str]) -> Mapping[str, str]:
    sections = {"patch_embed1": "stem"}
    for stage in range(1, 5):
        sections[f"blocks{stage}"] = f"stages.{stage - 1}.blocks"
        sections.setdefault(f"patch_embed{stage}", f"stages.{stage - 1}.downsample")
    return sections


OFFICIAL = Layout(
    "official",
    sections=_sections,
    rules=(
        # Local aggregation: the published "attn" is its depthwise 5x5 convolution.
        Rename(
            r"(.+)\.LocalAgg\.pos_embed\.(\w+)",
            r"\1.local_agg.pos_embed.conv.\2",
            example="stages.0.blocks.0.LocalAgg.pos_embed.weight",
        ),
        Rename(
            r"(.+)\.LocalAgg\.attn\.(\w+)",
            r"\1.local_agg.conv_dw.\2",
            example="stages.0.blocks.0.LocalAgg.attn.weight",
        ),
        Rename(
            r"(.+)\.LocalAgg\.((?:norm|conv|mlp).+)",
            r"\1.local_agg.\2",
            example="stages.0.blocks.0.LocalAgg.norm1.running_mean",
        ),
        # Sparse attention: we apply its norm inside it, only to the sampled tokens.
        Rename(
            r"(.+)\.SelfAttn\.pos_embed\.(\w+)",
            r"\1.global_attn.pos_embed.conv.\2",
            example="stages.3.blocks.0.SelfAttn.pos_embed.weight",
        ),
        Rename(
            r"(.+)\.SelfAttn\.norm1\.(\w+)",
            r"\1.global_attn.attn.norm.\2",
            example="stages.3.blocks.0.SelfAttn.norm1.weight",
        ),
        Rename(
            r"(.+)\.SelfAttn\.norm2\.(\w+)",
            r"\1.global_attn.norm.\2",
            example="stages.3.blocks.0.SelfAttn.norm2.weight",
        ),
        Rename(
            r"(.+)\.SelfAttn\.attn\.LocalProp\.(\w+)",
            r"\1.global_attn.attn.propagation.conv.\2",
            example="stages.0.blocks.0.SelfAttn.attn.LocalProp.weight",
        ),
        Rename(
            r"(.+)\.SelfAttn\.attn\.norm\.(\w+)",
            r"\1.global_attn.attn.propagation.norm.\2",
            example="stages.0.blocks.0.SelfAttn.attn.norm.weight",
        ),
        Rename(
            r"(.+)\.SelfAttn\.((?:attn\.(?:qkv|proj)|mlp)\..+)",
            r"\1.global_attn.\2",
            example="stages.0.blocks.0.SelfAttn.attn.qkv.weight",
        ),
        Transform(
            r".+\.SelfAttn\.(?:attn\.proj|mlp\.fc[12])\.weight",
            linear_to_conv1x1,
            example="stages.0.blocks.0.SelfAttn.mlp.fc1.weight",
        ),
        Drop(r"(?:norm|head)\..+", example="norm.running_mean"),
    ),
)

LAYOUTS = (OFFICIAL,)
