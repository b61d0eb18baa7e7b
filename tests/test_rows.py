"""Row translation: what Ultralytics' parser gets to see, and what a mistake in a YAML says."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from yolo_lightbackbones import rows
from yolo_lightbackbones.blocks import BLOCKS
from yolo_lightbackbones.registry import families

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
        [-1, 1, "EdgeViT", ["edgevit_xxs", 3, ("P2", "P3", "P4", "P5"), None, "auto", "published", USED]],
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
    assert out["backbone"][0][3][:5] == ["edgevit_xs", 4, ("P2", "P3", "P4", "P5"), 0.2, "none"]


@pytest.mark.parametrize(
    ("row", "others"),
    [
        ("RepViT, [m0_9]", ["scratch"]),
        ("RepViT, [m0_9, {init: published}]", []),
        ("RepViT, [m0_9, {init: published, tap_norm: batch}]", ["published", USED]),
        ("Conv2Former, [n]", ["scratch", USED]),
        ("Conv2Former, [n, {tap_norm: none}]", ["scratch"]),
        ("ParCNet, [xs]", ["scratch"]),
        ("EdgeViT, [xs]", ["published", USED]),
        ("EdgeViT, [xs, {tap_norm: none}]", []),
        ("EdgeViT, [xs, {init: scratch}]", ["scratch", USED]),
    ],
)
def test_how_weights_start_and_what_is_behind_taps(row: str, others: list[str]) -> None:
    assert translate(model(row0=f"[-1, 1, {row}]"))["backbone"][0][3][3:] == [None, "auto", *others]


def test_index_rows_with_the_right_channels_pass() -> None:
    out = translate(model(row1="[0, 1, Index, [72, 1]]", row2="[-2, 1, Index, [144, -2]]"))
    assert out["backbone"][1] == [0, 1, "Index", [72, 1]]
    assert out["backbone"][2] == [-2, 1, "Index", [144, 2]]


def test_stages_behind_the_deepest_used_tap_are_not_built() -> None:
    out = translate(model(row3="[0, 1, Tap, [P4]]"))
    assert out["backbone"][0][3][2] == ("P2", "P3", "P4")


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
        ({"row0": "[-1, 1, Conv, [64, 3, 2]]", "row1": "[-1, 1, EdgeViT, [xxs]]"}, r"row 1.*EdgeViT takes the image, so it must be the first row"),
        ({"row4": "[-1, 1, EdgeViT, [xxs]]"}, r"row 4.*must be the first row"),
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
    with pytest.raises(rows.ConfigError, match=message):
        translate(model(**changes))


def test_a_scale_letter_that_the_model_lacks() -> None:
    with pytest.raises(rows.ConfigError, match=r"no scale 'x' in this model's 'scales'. Allowed: n, s"):
        translate({**model(), "scale": "x"})


@pytest.mark.parametrize("scales", [["n"], {"n": None}, {"n": [0.33, 0.25]}, {"n": [0.33, 0.25, "many"]}, "n"])
def test_scales_that_are_none(scales: Any) -> None:
    with pytest.raises(rows.ConfigError, match=r"row 0.*'scales' is .*must map letters to \[depth, width, largest"):
        translate({**model(), "scales": scales})


def test_a_mapping_of_variants_without_scales() -> None:
    config = {key: value for key, value in model().items() if key not in ("scale", "scales")}
    with pytest.raises(rows.ConfigError, match=r"depends on the scale letter \(n, s\), and this model has no 'scales'"):
        translate(config)


def test_scales_by_number() -> None:
    config = {**model(row0="[-1, 1, EdgeViT, [{1: xxs}]]"), "scales": {1: [0.33, 0.25, 1024]}, "scale": ""}
    assert translate(config)["backbone"][0][3][0] == "edgevit_xxs"


@pytest.mark.parametrize("head", ["Detect", {"a": 1}, None])
def test_a_head_that_is_no_list_of_rows(head: Any) -> None:
    with pytest.raises(rows.ConfigError, match=r"my\.yaml, 'head' is .*; it must be a list of rows"):
        translate({**model(), "head": head})
    with pytest.raises(rows.ConfigError, match="'head' is None"):
        translate({key: value for key, value in model().items() if key != "head"})


def test_rows_may_be_tuples() -> None:
    config = model()
    as_tuples = {**config, **{part: tuple(map(tuple, config[part])) for part in ("backbone", "head")}}
    assert rows.names_backbone(as_tuples, families())
    assert translate(as_tuples) == translate(config)


def test_a_backbone_that_nothing_uses() -> None:
    config = model()
    config["backbone"], config["head"] = config["backbone"][:1], []
    with pytest.raises(
        rows.ConfigError, match=r"row 0.*nothing uses this backbone. Add rows such as \[0, 1, Tap, \[P5\]\]"
    ):
        translate(config)


# --- rows of blocks: in the place of row 4 above, or of row 0 --------------------------------------------------------


def check(config: dict[str, Any]) -> rows.Row:
    return rows.check_blocks(config, BLOCKS)


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
    assert not rows.names_block(model(), BLOCKS)
    assert not rows.names_block({"backbone": "nonsense", "head": [[], None, [0, 1, ["RepViTBlock"], []]]}, BLOCKS)
    only = {"backbone": [[-1, 1, "RepViTBlock", [64]]], "head": [[[0], 1, "Detect", ["nc"]]]}
    assert rows.names_block(only, BLOCKS)
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
    with pytest.raises(rows.ConfigError, match=message):
        check(model(row4=row))


def test_every_row_of_blocks_is_checked() -> None:
    with pytest.raises(rows.ConfigError, match=r"row 4.*the output channels are 0"):
        check(model(row3="[-1, 1, LGLBlock, [64]]", row4="[-1, 1, LGLBlock, [0]]"))


OURS = ["EdgeViT", "ParCNet", "RepViT", "Conv2Former", "Tap", "RepViTBlock", "LGLBlock", "ParCBlock", "ConvModBlock"]


@pytest.mark.parametrize(
    ("module", "meant"),
    [("RepVitBlock", "RepViTBlock"), ("LGLBlocks", "LGLBlock"), ("tap", "Tap"), ("Conv2former", "Conv2Former")],
)
def test_a_misspelt_module_of_ours(module: str, meant: str) -> None:
    expected = rf"my\.yaml, row 4 .*: unknown module '{module}'\. Did you mean '{meant}'\?"
    with pytest.raises(rows.ConfigError, match=expected):
        rows.explain_unknown(model(row4=[-1, 1, module, [64]]), module, OURS)


@pytest.mark.parametrize(("row", "unknown"), [("[-1, 1, C9, [64]]", "C9"), ("[-1, 1, SPPF, [64, 5]]", "RepVitBlock")])
def test_what_nobody_knows_and_nothing_resembles_is_left_to_ultralytics(row: str, unknown: str) -> None:
    rows.explain_unknown(model(row4=row), unknown, OURS)
    rows.explain_unknown({"backbone": [[], None, [0, 1, 3]], "head": "nonsense"}, "RepVitBlock", OURS)


def test_a_row_of_blocks_takes_no_list_of_maps() -> None:
    with pytest.raises(
        rows.ConfigError, match=r"row 4.*LGLBlock takes its input from the backbone \(row 0\), which gives a list"
    ):
        translate(model(row4="[0, 1, LGLBlock, [64]]"))


def test_a_scale_letter_that_a_model_of_blocks_lacks() -> None:
    config = {**model(row0="[-1, 1, RepViTBlock, [64]]"), "scale": "x"}
    with pytest.raises(rows.ConfigError, match=r"row 0.*no scale 'x' in this model's 'scales'. Allowed: n, s"):
        check(config)
