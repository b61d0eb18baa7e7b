"""Row translation: what Ultralytics' parser gets to see, and what a mistake in a YAML says."""

from __future__ import annotations

import copy
import datetime
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from yolo_lightbackbones.backbone import Backbone, Options
from yolo_lightbackbones.options import InitMode
from yolo_lightbackbones.plugin import block_rows as rows_of_blocks
from yolo_lightbackbones.plugin import hints, rows
from yolo_lightbackbones.plugin.row import ConfigError, Row, UnknownModuleError
from yolo_lightbackbones.registry import block_rows, families
from yolo_lightbackbones.stages import Stage, StagedBackbone

MODEL = """
nc: 3
scales: {n: [0.33, 0.25, 1024], s: [0.33, 0.50, 1024]}
yaml_file: my.yaml
backbone:
  - [-1, 1, EdgeViT, [{n: xxs, s: xs}]]
  - [0, 1, Tap, [P3]]
  - [0, 1, Tap, [P4]]
  - [0, 1, Tap, [P5]]
  - [-1, 1, SPPF, [1024, 5]]
head:
  - [[1, 2, 4], 1, Detect, [nc]]
"""


def model(**rows_by_number: Any) -> dict[str, Any]:
    """The model above with some rows replaced: `model(row0=[-1, 1, EdgeViT, [xs]])`; None removes a row."""
    config: dict[str, Any] = yaml.safe_load(MODEL)
    every = [*config["backbone"], *config["head"]]
    for key, row in rows_by_number.items():
        every[int(key.removeprefix("row"))] = yaml.safe_load(row) if isinstance(row, str) else row
    config["backbone"], config["head"] = every[:-1], every[-1:]
    return config


USED = ("P3", "P4", "P5")
"""The taps of `model()`."""


def translate(config: dict[str, Any], in_channels: int = 3) -> dict[str, Any]:
    return rows.translate(config, in_channels, families())


def test_taps_become_index_rows_with_their_channels() -> None:
    config = model()
    before = copy.deepcopy(config)
    out = translate(config)
    assert out["backbone"] == [
        [-1, 1, "EdgeViT", ["edgevit_xxs", Options(taps=("P2", "P3", "P4", "P5"), normed_taps=USED)]],
        [0, 1, "Index", [72, 1]],
        [0, 1, "Index", [144, 2]],
        [0, 1, "Index", [288, 3]],
        [-1, 1, "SPPF", [1024, 5]],
    ]
    assert out["head"] == config["head"]
    assert config == before, "the model's own YAML stays as the user wrote it"


@pytest.mark.parametrize(("scale", "variant", "channels"), [("n", "edgevit_xxs", 72), ("s", "edgevit_xs", 96)])
def test_the_scale_letter_picks_the_variant(scale: str, variant: str, channels: int) -> None:
    out = translate({**model(), "scale": scale})
    assert out["backbone"][0][3][0] == variant
    assert out["backbone"][1][3] == [channels, 1]


def test_without_a_letter_the_first_scale_counts_as_in_ultralytics() -> None:
    assert translate({**model(), "scale": ""})["backbone"][0][3][0] == "edgevit_xxs"


@pytest.mark.parametrize("spelling", ["s", "edgevit_s", "EdgeViT_S"])
def test_a_plain_variant_needs_no_mapping(spelling: str) -> None:
    assert translate(model(row0=f"[-1, 1, EdgeViT, [{spelling}]]"))["backbone"][0][3][0] == "edgevit_s"


def test_options_and_image_channels_reach_the_backbone() -> None:
    out = translate(model(row0="[-1, 1, EdgeViT, [xs, {drop_path_rate: 0.2, input_norm: none}]]"), in_channels=4)
    chosen = Options(in_channels=4, drop_path_rate=0.2, input_norm="none", normed_taps=USED)
    assert out["backbone"][0][3] == ["edgevit_xs", chosen]


@pytest.mark.parametrize(
    ("row", "init", "normed_taps"),
    [
        ("RepViT, [m0_9]", "scratch", ()),
        ("RepViT, [m0_9, {init: published}]", "published", ()),
        ("RepViT, [m0_9, {init: published, tap_norm: batch}]", "published", USED),
        ("Conv2Former, [n]", "scratch", USED),
        ("Conv2Former, [n, {tap_norm: none}]", "scratch", ()),
        ("ParCNet, [xs]", "scratch", ()),
        ("EdgeViT, [xs]", "published", USED),
        ("EdgeViT, [xs, {tap_norm: none}]", "published", ()),
        ("EdgeViT, [xs, {init: scratch}]", "scratch", USED),
    ],
)
def test_how_weights_start_and_what_is_behind_taps(row: str, init: InitMode, normed_taps: tuple[str, ...]) -> None:
    options = translate(model(row0=f"[-1, 1, {row}]"))["backbone"][0][3][1]
    assert options == Options(init=init, normed_taps=normed_taps)


def test_index_rows_with_the_right_channels_pass() -> None:
    out = translate(model(row1="[0, 1, Index, [72, 1]]", row2="[-2, 1, Index, [144, -2]]"))
    assert out["backbone"][1] == [0, 1, "Index", [72, 1]]
    assert out["backbone"][2] == [-2, 1, "Index", [144, 2]]


def test_stages_behind_the_deepest_used_tap_are_not_built() -> None:
    out = translate(model(row3="[0, 1, Tap, [P4]]"))
    assert out["backbone"][0][3][1].taps == ("P2", "P3", "P4")


def test_a_model_without_our_rows_is_none_of_our_business() -> None:
    stock = {"backbone": [[-1, 1, "Conv", [64, 3, 2]]], "head": [[[0], 1, "Detect", ["nc"]]]}
    assert not rows.names_backbone(stock, families())
    assert not rows.names_backbone({"backbone": "nonsense", "head": None}, families())
    assert rows.names_backbone(model(), families())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row0": "[-1, 1, EdgeViT, [xxl]]"}, r"my\.yaml, row 0 \[-1, 1, EdgeViT, \[xxl\]\]: Unknown variant 'xxl'.*Did you mean 'xxs'\? Allowed: xxs, xs, s"),
        ({"row0": "[-1, 1, EdgeViT, [{s: xs}]]"}, r"row 0.*no variant for scale 'n'. Allowed: s\."),
        ({"row0": "[-1, 1, EdgeViT, [{n: 3}]]"}, r"row 0.*the variant is 3; it must be a name out of xxs, xs, s"),
        ({"row0": "[-1, 1, EdgeViT, []]"}, r"row 0.*0 arguments; EdgeViT takes a variant"),
        ({"row0": "[-1, 1, EdgeViT, [xxs, {}, 3]]"}, r"row 0.*3 arguments"),
        ({"row0": "[-1, 1, EdgeViT, [{drop_path_rate: 0.1}]]"}, r"row 0.*'drop_path_rate' is an option; the variant comes first"),
        ({"row0": "[-1, 1, EdgeViT, [xxs, {drop_rate: 0.1}]]"}, r"row 0.*unknown option 'drop_rate'. Allowed: drop_path_rate, input_norm"),
        ({"row0": "[-1, 1, EdgeViT, [xxs, {tap_norm: layer}]]"}, r"row 0.*tap_norm is 'layer'; it must be one of none, batch"),
        ({"row0": "[-1, 1, EdgeViT, [xxs, {init: random}]]"}, r"row 0.*init is 'random'; it must be one of published, scratch"),
        ({"row0": "[-1, 1, EdgeViT, [xxs, {drop_path_rate: high}]]"}, r"row 0.*drop_path_rate is 'high'; it must be a number"),
        ({"row0": "[-1, 1, EdgeViT, [xxs, {drop_path_rate: true}]]"}, r"drop_path_rate is True; it must be a number"),
        ({"row0": "[-1, 1, EdgeViT, [xxs, {drop_path_rate: 1.0}]]"}, r"drop_path_rate is 1\.0; .* at least 0 and below 1"),
        ({"row0": "[-1, 1, EdgeViT, [xxs, {input_norm: imagenet}]]"}, r"input_norm is 'imagenet'; it must be one of auto, none"),
        ({"row0": "[-1, 1, EdgeViT, [xxs, small]]"}, r"row 0.*second argument is 'small'; it must be a mapping of options"),
        ({"row0": "[-1, 2, EdgeViT, [xxs]]"}, r"row 0.*repeats is 2; a backbone cannot be repeated: write 1"),
        ({"row0": "[0, 1, EdgeViT, [xxs]]"}, r"row 0.*'from' is 0; a backbone takes the image: write -1"),
        ({"row0": "[-1, 1, Conv, [64, 3, 2]]", "row1": "[-1, 1, EdgeViT, [xxs]]"}, r"row 2.*Tap takes its input from row 0, which is not a backbone. Write \[1, 1, Tap, \[P4\]\]"),
        ({"row4": "[-1, 1, EdgeViT, [xxs]]"}, r"row 5.*Detect takes its input from the backbone \(row 4\), which gives a list of maps"),
        ({"row3": "[0, 1, EdgeViT, [xxs]]"}, r"row 3.*EdgeViT takes its input from the backbone \(row 0\), which gives a list of maps.*Put a row \[0, 1, Tap, \[P5\]\]"),
        ({"row0": "[-1, 1, Conv, [64, 3, 2]]"}, r"row 1.*Tap takes its input from a backbone, and this model has none. Make row 0 one of EdgeViT"),
        ({"row1": "[0, 1, Tap, [P7]]"}, r"row 1 \[0, 1, Tap, \[P7\]\]: EdgeViT has no tap P7. Allowed, one of: P2, P3, P4, P5"),
        ({"row1": "[0, 1, Tap, []]"}, r"row 1.*no tap \[\]"),
        ({"row1": "[0, 1, Tap, [[P3]]]"}, r"row 1.*no tap \[P3\]"),
        ({"row2": "[1, 1, Tap, [P4]]"}, r"row 2.*Tap takes its input from row 1, which is not a backbone. Write \[0, 1, Tap, \[P4\]\]"),
        ({"row2": "[-1, 1, Tap, [P4]]"}, r"row 2.*which is not a backbone"),
        ({"row1": "[0, 3, Tap, [P3]]"}, r"row 1.*repeats is 3; a tap cannot be repeated"),
        ({"row1": "[0, 1, Index, [64, 1]]"}, r"row 1.*the channel number is 64, but P3 has 72. Write 72, or \[0, 1, Tap, \[P3\]\]"),
        ({"row1": "[0, 1, Index, [72, 4]]"}, r"row 1.*index 4 is out of range; the backbone gives 4 maps"),
        ({"row1": "[-1, 1, Conv, [64, 1, 1]]"}, r"row 1.*Conv takes its input from the backbone \(row 0\), which gives a list.*Put a row \[0, 1, Tap"),
        ({"row5": "[[0, 4], 1, Detect, [nc]]"}, r"row 5.*Detect takes its input from the backbone"),
        ({"row0": "[-1.0, 1, EdgeViT, [xxs]]"}, r"row 0.*'from' is -1\.0; a backbone takes the image: write -1"),
        ({"row0": "[-1, 1.0, EdgeViT, [xxs]]"}, r"row 0.*repeats is 1\.0; a backbone cannot be repeated"),
        ({"row0": "[-1, 1, EdgeVit, [xxs]]"}, r"row 0.*unknown module 'EdgeVit'. Did you mean 'EdgeViT'\?"),
        ({"row1": "[0.0, 1, Tap, [P3]]"}, r"row 1.*'from' is 0\.0; write 0\."),
        ({"row1": "[[0], 1, Tap, [P3]]"}, r"row 1.*'from' is \[0\]; write 0\."),
        ({"row1": "[[0], 1, Index, [72, 1]]"}, r"row 1.*'from' is \[0\]; write 0\."),
        ({"row1": "[0, 2, Index, [72, 1]]"}, r"row 1.*repeats is 2; an index cannot be repeated: write 1"),
        ({"row1": "[0, 1, Taps, [P3]]"}, r"row 1.*unknown module 'Taps'. Did you mean 'Tap'\?"),
        ({"row4": "[-1, 1, SPPF]"}, r"row 4 \[-1, 1, SPPF\]: a row is \[from, repeats, module, \[arguments\]\]"),
    ],
)  # fmt: skip
def test_mistakes_name_the_row_the_value_and_what_is_allowed(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        translate(model(**changes))


def test_a_scale_letter_that_the_model_lacks() -> None:
    with pytest.raises(ConfigError, match=r"no scale 'x' in this model's 'scales'. Allowed: n, s"):
        translate({**model(), "scale": "x"})


@pytest.mark.parametrize("scales", [["n"], {"n": None}, {"n": [0.33, 0.25]}, {"n": [0.33, 0.25, "many"]}, "n"])
def test_scales_that_are_none(scales: Any) -> None:
    with pytest.raises(ConfigError, match=r"row 0.*'scales' is .*must map letters to \[depth, width, largest"):
        translate({**model(), "scales": scales})


def test_a_mapping_of_variants_without_scales() -> None:
    config = {key: value for key, value in model().items() if key not in ("scale", "scales")}
    with pytest.raises(ConfigError, match=r"depends on the scale letter \(n, s\), and this model has no 'scales'"):
        translate(config)


def test_scales_by_number() -> None:
    config = {**model(row0="[-1, 1, EdgeViT, [{1: xxs}]]"), "scales": {1: [0.33, 0.25, 1024]}, "scale": ""}
    assert translate(config)["backbone"][0][3][0] == "edgevit_xxs"


@pytest.mark.parametrize("head", ["Detect", {"a": 1}, None])
def test_a_head_that_is_no_list_of_rows(head: Any) -> None:
    with pytest.raises(ConfigError, match=r"my\.yaml, 'head' is .*; it must be a list of rows"):
        translate({**model(), "head": head})
    with pytest.raises(ConfigError, match="'head' is None"):
        translate({key: value for key, value in model().items() if key != "head"})


def test_rows_may_be_tuples() -> None:
    config = model()
    as_tuples = {**config, **{part: tuple(map(tuple, config[part])) for part in ("backbone", "head")}}
    assert rows.names_backbone(as_tuples, families())
    assert translate(as_tuples) == translate(config)


def test_a_backbone_that_nothing_uses() -> None:
    config = model()
    config["backbone"], config["head"] = config["backbone"][:1], []
    with pytest.raises(ConfigError, match=r"row 0.*nothing uses this backbone. Add rows such as \[0, 1, Tap, \[P5\]\]"):
        translate(config)


# --- rows of blocks: in the place of row 4 above, or of row 0 --------------------------------------------------------


def check(config: dict[str, Any]) -> Row:
    return rows_of_blocks.check_blocks(config, block_rows())


@pytest.mark.parametrize(
    "row",
    [
        "[-1, 3, RepViTBlock, [256]]",
        "[-1, 1, RepViTBlock, [256, {squeeze: false, mlp_ratio: 3, drop_path: 0.1}]]",
        "[3, 2, LGLBlock, [256, {sr_ratio: 1, head_dim: 48, mlp_ratio: 2, drop_path: 0}]]",
        "[-4, 1, ParCBlock, [256, {length: 7, mlp_ratio: 1, dropout: 0.0}]]",
        "[-1, 1, ConvModBlock, [7, {kernel_size: 11, layer_scale: 1.0e-6}]]",
        "[-1, 1, ConvModBlock, [256, {}]]",
    ],
)
def test_rows_of_blocks_pass_as_they_are(row: str) -> None:
    config = model(row4=row)
    before = copy.deepcopy(config)
    found = check(config)
    assert (found.number, [found.source, found.repeats, found.module, found.args]) == (4, yaml.safe_load(row))
    assert config == before
    config = model(row4=row, row3="[0, 1, Tap, [P5]]")
    if yaml.safe_load(row)[0] != -4:
        assert translate(config)["backbone"][4] == yaml.safe_load(row)


def test_models_with_rows_of_blocks_are_told_from_others() -> None:
    assert not rows_of_blocks.names_block(model(), block_rows())
    assert not rows_of_blocks.names_block(
        {"backbone": "nonsense", "head": [[], None, [0, 1, ["RepViTBlock"], []]]}, block_rows()
    )
    only = {"backbone": [[-1, 1, "RepViTBlock", [64]]], "head": [[[0], 1, "Detect", ["nc"]]]}
    assert rows_of_blocks.names_block(only, block_rows())
    assert not rows.names_backbone(only, families())
    assert check(only).number == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[-1, 1, RepViTBlock, []]", r"my\.yaml, row 4 \[-1, 1, RepViTBlock, \[\]\]: 0 arguments; RepViTBlock takes its output channels and then at most one mapping of options \(squeeze, mlp_ratio, drop_path\), for example \[256\]"),
        ("[-1, 1, RepViTBlock, [256, {}, 3]]", r"row 4.*3 arguments; RepViTBlock takes"),
        ("[-1, 1, RepViTBlock, [nc]]", r"row 4.*the output channels are 'nc'; they must be a whole number, at least 1"),
        ("[-1, 1, RepViTBlock, [{mlp_ratio: 2}]]", r"row 4.*the output channels are {'mlp_ratio': 2}; they must be a whole number"),
        ("[-1, 1, RepViTBlock, [0]]", r"the output channels are 0; they must be"),
        ("[-1, 1, RepViTBlock, [25.6]]", r"the output channels are 25\.6; they must be"),
        ("[-1, 1, RepViTBlock, [true]]", r"the output channels are True; they must be"),
        ("[-1, 1, RepViTBlock, [256, true]]", r"row 4.*the second argument is True; it must be a mapping of options: squeeze, mlp_ratio, drop_path"),
        ("[-1, 1, RepViTBlock, [256, null]]", r"the second argument is None; it must be a mapping"),
        ("[-1, 0, RepViTBlock, [256]]", r"row 4.*repeats is 0; it must be a whole number, at least 1"),
        ("[-1, 1.5, RepViTBlock, [256]]", r"repeats is 1\.5; it must be a whole number"),
        ("[-1, n, RepViTBlock, [256]]", r"repeats is 'n'; it must be a whole number"),
        ("[[-1, 2], 1, RepViTBlock, [256]]", r"row 4.*'from' is \[-1, 2\]; RepViTBlock takes one map: put a row Concat between them"),
        ("[4, 1, RepViTBlock, [256]]", r"row 4.*'from' is 4; it must be the number of an earlier row, or -1"),
        ("[-5, 1, RepViTBlock, [256]]", r"row 4.*'from' is -5; it must be the number of an earlier row, or -1"),
        ("[P5, 1, RepViTBlock, [256]]", r"'from' is 'P5'; it must be the number of an earlier row"),
        ("[-1, 1, RepViTBlock, [256, {mlp_ration: 2}]]", r"row 4.*unknown option 'mlp_ration'. Did you mean 'mlp_ratio'\? Allowed: squeeze, mlp_ratio, drop_path"),
        ("[-1, 1, RepViTBlock, [256, {sr_ratio: 2}]]", r"unknown option 'sr_ratio'.*Allowed: squeeze, mlp_ratio, drop_path"),
        ("[-1, 1, RepViTBlock, [256, {3: 2}]]", r"unknown option 3. Allowed: squeeze"),
        ("[-1, 1, RepViTBlock, [256, {squeeze: 1}]]", r"squeeze is 1; it must be true or false"),
        ("[-1, 1, RepViTBlock, [256, {mlp_ratio: n}]]", r"mlp_ratio is 'n'; it must be a whole number, at least 1"),
        ("[-1, 1, RepViTBlock, [256, {drop_path: 1}]]", r"drop_path is 1; it must be a number, at least 0 and below 1"),
        ("[-1, 1, RepViTBlock, [256, {drop_path: .nan}]]", r"drop_path is nan; it must be a number, at least 0"),
        ("[-1, 1, LGLBlock, [256, {sr_ratio: 0}]]", r"sr_ratio is 0; it must be a whole number, at least 1"),
        ("[-1, 1, LGLBlock, [256, {sr_ratio: 1.5}]]", r"sr_ratio is 1\.5; it must be a whole number"),
        ("[-1, 1, LGLBlock, [256, {num_heads: 4}]]", r"unknown option 'num_heads'.*Allowed: sr_ratio, head_dim, mlp_ratio, drop_path"),
        ("[-1, 1, ParCBlock, [256, {length: true}]]", r"length is True; it must be a whole number"),
        ("[-1, 1, ParCBlock, [256, {dropout: -0.1}]]", r"dropout is -0\.1; it must be a number, at least 0 and below 1"),
        ("[-1, 1, ConvModBlock, [256, {kernel_size: 6}]]", r"kernel_size is 6; it must be an odd number, at least 1"),
        ("[-1, 1, ConvModBlock, [256, {kernel_size: -3}]]", r"kernel_size is -3; it must be an odd number, at least 1"),
        ("[-1, 1, ConvModBlock, [256, {layer_scale: 1e-6}]]", r"layer_scale is '1e-6'; it must be a number above 0.*with the dot: YAML reads 1e-6 as text"),
        ("[-1, 1, ConvModBlock, [256, {layer_scale: .inf}]]", r"layer_scale is inf; it must be a number above 0"),
        ("[-1, 1, [ConvModBlock], [256]]", r"row 4 \[-1, 1, \[ConvModBlock\], \[256\]\]: a row is \[from, repeats, module"),
        ("[-1, 1, ConvModBlock]", r"row 4 \[-1, 1, ConvModBlock\]: a row is \[from, repeats, module, \[arguments\]\]"),
    ],
)  # fmt: skip
def test_mistakes_in_rows_of_blocks(row: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(model(row4=row))


def test_every_row_of_blocks_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"row 4.*the output channels are 0"):
        check(model(row3="[-1, 1, LGLBlock, [64]]", row4="[-1, 1, LGLBlock, [0]]"))


OURS = ["EdgeViT", "ParCNet", "RepViT", "Conv2Former", "Tap", "RepViTBlock", "LGLBlock", "ParCBlock", "ConvModBlock"]


@pytest.mark.parametrize(
    ("module", "meant"),
    [("RepVitBlock", "RepViTBlock"), ("LGLBlocks", "LGLBlock"), ("tap", "Tap"), ("Conv2former", "Conv2Former")],
)
def test_a_misspelt_module_of_ours(module: str, meant: str) -> None:
    expected = rf"my\.yaml, row 4 .*: unknown module '{module}'\. Did you mean '{meant}'\?"
    with pytest.raises(ConfigError, match=expected):
        hints.explain_unknown(model(row4=[-1, 1, module, [64]]), module, OURS)


@pytest.mark.parametrize(("row", "unknown"), [("[-1, 1, C9, [64]]", "C9"), ("[-1, 1, SPPF, [64, 5]]", "RepVitBlock")])
def test_what_nobody_knows_and_nothing_resembles_is_left_to_ultralytics(row: str, unknown: str) -> None:
    hints.explain_unknown(model(row4=row), unknown, OURS)
    hints.explain_unknown({"backbone": [[], None, [0, 1, 3]], "head": "nonsense"}, "RepVitBlock", OURS)


def test_a_row_of_blocks_takes_no_list_of_maps() -> None:
    with pytest.raises(
        ConfigError, match=r"row 4.*LGLBlock takes its input from the backbone \(row 0\), which gives a list"
    ):
        translate(model(row4="[0, 1, LGLBlock, [64]]"))


def test_a_scale_letter_that_a_model_of_blocks_lacks() -> None:
    config = {**model(row0="[-1, 1, RepViTBlock, [64]]"), "scale": "x"}
    with pytest.raises(ConfigError, match=r"row 0.*no scale 'x' in this model's 'scales'. Allowed: n, s"):
        check(config)


# --- names from elsewhere ---------------------------------------------------------------------------------------------

BACKBONES = {
    "repvit_m0_9": "RepViT, [m0_9]",
    "RepViT_M0_9": "RepViT, [m0_9]",
    "repvit_m1_1": "RepViT, [m1_1]",
    "RepViTM0_9": "RepViT, [m0_9]",
    "RepViT-M0.9": "RepViT, [m0_9]",
    "repvit_m0_9.dist_450e_in1k": "RepViT, [m0_9]",
    "EdgeViT_XXS": "EdgeViT, [xxs]",
    "edgevit_xxs": "EdgeViT, [xxs]",
    "EdgeVIT": "EdgeViT, [xxs]",
    "EdgeViT_small": "EdgeViT, [xxs]",
    "parcnet_xs": "ParCNet, [xs]",
    "ParC_Net": "ParCNet, [xs]",
    "edgeformer_s": "ParCNet, [s]",
    "conv2former_n": "Conv2Former, [n]",
    "Conv2Former_N": "Conv2Former, [n]",
    "Conv2Former-B-k7": "Conv2Former, [b_k7]",
}
"""What people of forks write as the module of row 0 -> what to write there."""

ROWS_OF_BLOCKS = {
    "LGL": "LGLBlock",
    "ParC": "ParCBlock",
    "RepViTblock": "RepViTBlock",
    "repvit_block": "RepViTBlock",
    "EdgeViTBlock": "LGLBlock",
    "Conv2FormerBlock": "ConvModBlock",
    "ConvMod": "ConvModBlock",
}


@pytest.mark.parametrize(("module", "meant"), BACKBONES.items())
def test_a_variant_or_a_forks_name_as_the_module(module: str, meant: str) -> None:
    start = f"my.yaml, row 0 [-1, 1, {module}, []]: unknown module '{module}'. "
    with pytest.raises(ConfigError) as error:
        translate(model(row0=[-1, 1, module, []]))
    assert str(error.value).startswith(start)
    assert str(error.value).endswith(f"Write row 0 as [-1, 1, {meant}].")
    without = [-1, 1, "SPPF", [64, 5]]
    config = model(row0=[-1, 1, module, []], row1=without, row2=without, row3=without)
    with pytest.raises(UnknownModuleError) as error:
        hints.explain_unknown(config, module, OURS)
    assert str(error.value).startswith(start)
    assert f"Write row 0 as [-1, 1, {meant}], and rows such as [0, 1, Tap, [P5]] behind it." in str(error.value)


@pytest.mark.parametrize(("module", "meant"), ROWS_OF_BLOCKS.items())
def test_a_blocks_name_from_elsewhere(module: str, meant: str) -> None:
    hint = f"unknown module '{module}'. Did you mean '{meant}'? Write [-1, 2, {meant}, [64]]"
    with pytest.raises(ConfigError) as error:
        translate(model(row0=[-1, 2, module, [64]]))
    assert str(error.value).startswith(f"my.yaml, row 0 [-1, 2, {module}, [64]]: {hint}, or for the taps a backbone: ")
    without = [-1, 1, "SPPF", [64, 5]]
    config = model(row0=[-1, 2, module, [64]], row1=without, row2=without, row3=without)
    with pytest.raises(UnknownModuleError) as error:
        hints.explain_unknown(config, module, OURS)
    assert str(error.value) == f"my.yaml, row 0 [-1, 2, {module}, [64]]: {hint}."


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("[repvit_m0_9.dist_450e_in1k]", r"Did you mean 'm0_9'\?.* Write \[-1, 1, RepViT, \[m0_9\]\]; published weights come in with `lightbackbones convert`"),
        ("[m0_9.dist_450e_in1k]", r"Write \[-1, 1, RepViT, \[m0_9\]\]; published weights"),
        ("[M09]", r"Write \[-1, 1, RepViT, \[m0_9\]\]\.$"),
        ("[edgevit_xs]", r"Unknown variant 'edgevit_xs' of RepViT.* Write \[-1, 1, EdgeViT, \[xs\]\]\.$"),
        ("[m0_9, {pretrained: true}]", r"unknown option 'pretrained'\. Published weights come in with `lightbackbones convert`\. Allowed: drop_path_rate"),
        ("[m0_9, {weights: a.pth}]", r"unknown option 'weights'\. Published weights come in with `lightbackbones convert`"),
    ],
)  # fmt: skip
def test_variants_and_options_from_elsewhere(args: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"my\.yaml, row 0 .*{message}"):
        translate(model(row0=f"[-1, 1, RepViT, {args}]"))


def test_the_variant_of_the_row_at_hand_is_kept() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'EdgeViT'\? Write row 0 as \[-1, 1, EdgeViT, \[\{n: xs\}\]\]"):
        translate(model(row0="[-1, 1, EdgeVIT, [{n: xs}]]"))


def test_a_backbone_by_another_name_in_a_later_row() -> None:
    row = "[-1, 1, repvit_m0_9, []]"
    with pytest.raises(ConfigError, match=r"row 1 .*'repvit_m0_9'\. Write row 0 as \[-1, 1, RepViT, \[m0_9\]\]"):
        translate(model(row0="[-1, 1, Conv, [64, 3, 2]]", row1=row))


# --- families of others -----------------------------------------------------------------------------------------------


def family_of(*reductions: int) -> type[Backbone]:
    """A family with taps at these reductions; it counts how often it is built."""

    class Own(StagedBackbone):
        family, variants = "own", {"a": 8}
        built = 0

        def build_stem(self, config: int, in_channels: int) -> nn.Module:
            type(self).built += 1
            return nn.Conv2d(in_channels, config, 4, 4)

        def build_stages(self, config: int, drop_path_rate: float) -> Iterator[Stage]:
            for reduction in reductions:
                yield Stage([nn.ReLU()], channels=reduction, reduction=reduction)

    return Own


def own_model(tap: str) -> dict[str, Any]:
    backbone = [[-1, 1, "Own", ["a"]], [0, 1, "Tap", [tap]]]
    return {"yaml_file": "my.yaml", "backbone": backbone, "head": [[[1], 1, "Detect", [1]]]}


def test_a_family_without_p2() -> None:
    own = family_of(8, 16, 32)
    out = rows.translate(own_model("P4"), 3, {"Own": own})
    assert out["backbone"] == [[-1, 1, "Own", ["own_a", Options(taps=("P3", "P4"))]], [0, 1, "Index", [16, 1]]]
    with pytest.raises(ConfigError, match=r"my\.yaml, row 1 .*Own has no tap P2\. Allowed, one of: P3, P4, P5"):
        rows.translate(own_model("P2"), 3, {"Own": own})


def test_a_family_with_a_tap_of_its_own() -> None:
    own = family_of(64)
    assert rows.translate(own_model("P6"), 3, {"Own": own})["backbone"][1] == [0, 1, "Index", [64, 0]]
    with pytest.raises(ConfigError, match=r"my\.yaml, row 1 .*Own has no tap P5\. Allowed, one of: P6"):
        rows.translate(own_model("P5"), 3, {"Own": own})


def test_taps_are_asked_for_once_and_anew_for_another_class() -> None:
    first, second = family_of(8, 16, 32), family_of(4, 8)
    for _ in range(3):
        assert rows.translate(own_model("P3"), 3, {"Own": first})["backbone"][1][3] == [8, 0]
        assert rows.translate(own_model("P3"), 3, {"Own": second})["backbone"][1][3] == [8, 1]
    built = first.built  # type: ignore[attr-defined]
    rows.translate(own_model("P3"), 4, {"Own": first})
    assert first.built == built  # type: ignore[attr-defined]
    first.variants = {"a": 16}
    rows.translate(own_model("P3"), 3, {"Own": first})
    assert first.built > built  # type: ignore[attr-defined]


# --- what a YAML may stand for ----------------------------------------------------------------------------------------


def bomb() -> Any:
    value: Any = "x"
    for _ in range(7):
        value = [value] * 9
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def nest(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row0": [-1, 1, "EdgeViT", [bomb()]]}, r"my\.yaml, row 0 .*with its aliases written out it has [\d,]+ values"),
        ({"row0": [-1, 1, "EdgeViT", ["xxs", {"init": bomb()}]]}, r"row 0 .*with its aliases written out"),
        ({"row4": [-1, 1, "nn.Identity", [bomb()]]}, r"row 4 .*with its aliases written out"),
        ({"row1": [0, 1, "Tap", endless()]}, r"row 1 .*it contains itself"),
        ({"row4": endless()}, r"row 4 .*it contains itself"),
        ({"row4": [-1, 1, "nn.Identity", nest(500)]}, r"row 4 .*nested deeper than 32 levels"),
        ({"row4": [-1, 2**63, "nn.Identity", []]}, r"row 4 .*the number 9223372036854775808; at most 1,000,000"),
        ({"row4": [-1, 10**5000, "nn.Identity", []]}, r"row 4 .*the number <a whole number of \d+ bits>"),
        ({"row4": [-1, 201, "nn.Identity", []]}, r"row 4 .*repeats is 201; at most 200 are allowed"),
        ({"row4": [-1, 1, "nn.Identity", ["x" * 201]]}, r"row 4 .*a text of 201 characters; at most 200"),
        ({"row4": [-1, 1, "nn.Identity", ["1" * 100]]}, r"row 4 .*it has the number"),
        ({"row0": [-1, 1, "EdgeViT", [{f"{i}": "xxs" for i in range(20_000)}]]}, r"no variant for scale 'n'\. Allowed: 0, 1, .* more\)\."),
        ({"row0": [-1, 1, "EdgeViT", ["xxs", {f"a{i}": 1 for i in range(20_000)}]]}, r"unknown option 'a0'\. Allowed"),
        ({"row0": [-1, 1, "EdgeViT", [datetime.date(2026, 1, 1)]]}, r"the variant is <date>; it must be a name"),
        ({"row0": [-1, 1, "EdgeViT", [{None: 1, 2.5: 2, b"n": "xxs"}]]}, r"no variant for scale 'n'\. Allowed: None, 2\.5, "),
        ({"row1": [0, 1, "Index", [72, 1, 3]]}, r"row 1 .*3 arguments; an Index takes a channel number and an index"),
    ],
)  # fmt: skip
def test_bombs_are_refused_at_once_in_one_line(changes: dict[str, Any], message: str) -> None:
    rows_before = {"row5": "[[1, 2], 1, Detect, [nc]]"} if "row4" in changes else {}
    start = time.process_time()
    with pytest.raises(ConfigError, match=message) as error:
        translate(model(**changes, **rows_before))
    assert time.process_time() - start < 1
    assert len(str(error.value)) < 1000
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([-1, 2**63, "RepViTBlock", [64]], r"row 4 .*the number 9223372036854775808"),
        ([-1, 300, "RepViTBlock", [64]], r"row 4 .*repeats is 300; at most 200 are allowed"),
        ([-1, 1, "RepViTBlock", [8193]], r"the output channels are 8193; they must be .*at most 8192"),
        ([-1, 1, "RepViTBlock", [64, {"mlp_ratio": 65}]], r"mlp_ratio is 65; it must be a whole number, at least 1 and at most 64"),
        ([-1, 1, "ParCBlock", [64, {"length": 999_999}]], r"length is 999999; it must be .*at most 1024"),
        ([-1, 1, "ConvModBlock", [64, {"kernel_size": 999_999}]], r"kernel_size is 999999; it must be .*at most 255"),
        ([-1, 1, "LGLBlock", [64, {"x\n\x1b[31m": 1}]], r"unknown option 'x\\n\\x1b\[31m'\."),
        ([-1, 1, "LGLBlock", [bomb()]], r"row 4 .*with its aliases written out"),
    ],
)  # fmt: skip
def test_rows_of_blocks_within_bounds(row: list[Any], message: str) -> None:
    start = time.process_time()
    with pytest.raises(ConfigError, match=message) as error:
        check(model(row4=row))
    assert time.process_time() - start < 1
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nc": 10**9}, r"my\.yaml, 'nc' is 1000000000: it has the number 1000000000; at most 1,000,000"),
        ({"names": bomb()}, r"'names' is .*with its aliases written out"),
        ({"anything": endless()}, r"'anything' is .*it contains itself"),
        ({"scales": {"n": [11, 0.25, 1024]}}, r"'scales' is .*depth and width above 0 and at most 10"),
        ({"scales": {"n": [0.33, float("nan"), 1024]}}, r"'scales' is .*depth and width above 0"),
        ({"scales": {"n": [10, 1, 9]}, "backbone": [*model()["backbone"], [-1, 30, "C2f", [64]]]}, r"row 5 .*repeats is 30 times a depth of 10; at most 200"),
        ({"depth_multiple": 1e5, "backbone": [*model()["backbone"], [-1, 3, "C2f", [64]]]}, r"row 5 .*repeats is 3 times a depth of 100000"),
        ({"scale": bomb()}, r"'scale' is .*with its aliases written out"),
        ({"scale": ["n"]}, r"row 0 .*the scale is \[n\]; it must be a letter"),
        ({"yaml_file": "x\n" * 9000}, r"^x\\nx\\n.*row 0.*unknown option"),
    ],
)  # fmt: skip
def test_the_rest_of_a_config_within_bounds(changes: dict[str, Any], message: str) -> None:
    wrong = model(row0="[-1, 1, EdgeViT, [xxs, {x: 1}]]") if "yaml_file" in changes else model()
    with pytest.raises(ConfigError, match=message) as error:
        translate({**wrong, **changes})
    assert len(str(error.value)) < 1500


def test_channels_of_the_image_within_bounds() -> None:
    for channels in (0, -1, 2**63):
        with pytest.raises(ConfigError, match=r"row 0 .*the image has -?\d+ channels; allowed are 1 to 8192"):
            translate(model(), in_channels=channels)


def test_what_people_write_is_within_bounds() -> None:
    """Aliases that are used once or twice, large heads, infinity as a bound, texts as arguments."""
    taps = [[0, 1, "Tap", ["P3"]]] * 3
    config = {**model(), "names": dict(enumerate(["class"] * 21_841)), "max_channels": float("inf")}
    config["backbone"] = [config["backbone"][0], *taps, [-1, 36, "nn.Hardtanh", ["None", "-1.5", float("inf")]]]
    with torch.device("meta"):
        assert len(translate({**config, "nc": 21_841})["backbone"]) == 5
