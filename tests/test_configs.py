"""Every model YAML at every scale: what is written there is what is built, and models train, save, load and fold."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from contract import randomise
from meta_models import Numbers, shape_of
from operations import operations
from places import REPOSITORY
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.utils.torch_utils import get_flops

from yolo_lightbackbones import registry
from yolo_lightbackbones.configs import finding
from yolo_lightbackbones.configs.timm_series import SERIES

CFG = REPOSITORY / "cfg"
TWO_BACKBONES = "yolo11_repvit-rgbir.yaml"
"""Its images have 6 channels; `test_two_backbones.py` is about it."""
YAMLS = {p.name: yaml.safe_load(p.read_text()) for p in sorted(CFG.glob("*.yaml")) if p.name != TWO_BACKBONES}
FEW = {"parc"}
"""Families of comparison models, see `tools/make_cfg.py`."""
NECKS = ("yolov5", "yolov5-p6", "yolov8", "yolov8-p2", "yolo11", "yolo26")
TASKS = ("yolo11-seg", "yolo11-pose", "yolo11-obb", "yolo26-seg", "yolo26-pose", "yolo26-obb", "yolo26-cls")
OTHERS = ("yolov9t", "yolov9s", "yolov10", "yolov10m", "yolo12", "yolo26-p2", "yolo26-p6", "yolo26-sem", "yolo26-depth")
OTHERS += ("yolov8-worldv2", "yoloe-26", "yoloe-26-seg", "rtdetr")
"""Necks and heads whose models are counted here, from shapes; `tests/test_heads.py` runs each head once."""
LARGER = dict.fromkeys(("yolov10l", "yolov10x"), ("repvit", "conv2former"))
"""Necks that not every family has, for lack of so large a variant."""
START = {name: name.partition("_")[0] for name in YAMLS}
MODELS = [(name, letter) for name in YAMLS if START[name] in {*NECKS, *TASKS} for letter in YAMLS[name]["scales"]]
SHAPES = [(name, next(iter(YAMLS[name]["scales"]))) for name in YAMLS if START[name] in {*OTHERS, *LARGER}]
SHAPES += [(f"{start}_repvit.yaml", "x") for start in OTHERS if "x" in YAMLS[f"{start}_repvit.yaml"]["scales"]]
CLASSIFIERS = [name for name in YAMLS if name.endswith("-cls.yaml")]
RECIPES = sorted(path.name for path in (CFG / "recipes").glob("*.yaml"))
STRIDES = {"-p2": [4, 8, 16, 32], "-p6": [8, 16, 32, 64], "-cls": [1]}  # a classifier has none in Ultralytics
BUILDERS = {"": "Detection", "-seg": "Segmentation", "-pose": "Pose", "-obb": "OBB", "-cls": "Classification"}


def scaled(name: str, letter: str) -> str:
    """`yolov5_repvit.yaml` as `yolov5n_repvit.yaml`."""
    return re.sub(r"^(yolo(?:e-)?v?\d+)(?=[-_])", rf"\g<1>{letter}", name)


def suffix(name: str) -> str:
    """`-seg` of `yolo11-seg_repvit.yaml`."""
    return (re.search(r"-(?:seg|pose|obb|cls)(?=_)", name) or [""])[0]


def flat(value: Any) -> list[Tensor]:
    """All tensors of a head's output."""
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in values for tensor in flat(item)]


def raw(model: nn.Module, image: Tensor) -> list[Tensor]:
    """What a head computes before it decodes; of an end-to-end head what it computes in the branch without NMS."""
    with torch.no_grad():
        maps = model.eval()(image)[1]
    return flat(maps.get("one2one", maps) if isinstance(maps, dict) else maps)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def operations_at(model: nn.Module, size: int) -> int:
    """FLOPs of convolutions and matrix products, attention included."""
    tensors = [*model.parameters(), *model.buffers()]
    shapes = copy.deepcopy(model, {id(tensor): tensor.to("meta") for tensor in tensors}).eval()
    return operations(shapes, torch.zeros(1, 3, size, size, device="meta"))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """tools/make_cfg.py."""
    spec = importlib.util.spec_from_file_location("make_cfg", REPOSITORY / "tools" / "make_cfg.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_cfg"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_family_is_on_every_neck_and_in_every_task() -> None:
    for family in (cls.family for cls in registry.built_in() if cls.card.letters):
        necks = ("yolov5", "yolo11") if family in FEW else NECKS
        wanted = {f"{neck}_{family}.yaml" for neck in necks} | {f"{family}-cls.yaml", f"yolo26-cls_{family}.yaml"}
        if family not in FEW:
            wanted |= {f"{start}_{family}.yaml" for start in (*TASKS, *OTHERS)}
            wanted |= {f"{start}_{family}.yaml" for start, families in LARGER.items() if family in families}
            assert {f"{family}_{start}.yaml" for start in ("scratch", "pretrained")} <= set(RECIPES)
        assert wanted <= set(YAMLS)
        assert family not in FEW or {name for name in YAMLS if family in re.split(r"[-_.]", name)} == wanted
    assert {f"yolo11_{series}.yaml" for series in SERIES} <= set(YAMLS)
    assert {config["backbone"][0][2] for config in YAMLS.values()} == {
        *(cls.__name__ for cls in registry.built_in() if cls.card.letters),
        "Timm",
    }


def test_the_files_are_what_the_generator_writes(generator: ModuleType) -> None:
    """Apart from their figures, which are compared with the built models below."""
    generated = {model.name: model.text() for model in generator.all_models()}
    for name, text in generated.items():
        committed = generator.FIGURES.sub("", (CFG / name).read_text())
        assert committed == text, f"{name} is out of date: python tools/make_cfg.py {name}"
    assert {*YAMLS, TWO_BACKBONES} - set(generated) == set(generator.BY_HAND)


def build(name: str, letter: str) -> Any:
    """The model of Ultralytics' for this YAML at this scale; one that is not run whole has shapes and no memory.

    Only the smallest scale gets its random start: drawing up to 100 million numbers takes longer than all else, and the
    checks below either do not see the weights or replace them first.
    """
    with contextlib.ExitStack() as stack:
        if letter != next(iter(YAMLS[name]["scales"])):
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for draw in ("kaiming_uniform_", "xavier_uniform_", "uniform_", "normal_", "trunc_normal_"):
                patch.setattr(nn.init, draw, lambda tensor, *_args, **_options: tensor)
        if not runs_whole(name, letter):
            stack.enter_context(torch.device("meta"))
            stack.enter_context(Numbers())
        model = getattr(tasks, f"{BUILDERS[suffix(name)]}Model")
        return model(tasks.yaml_model_load(str(CFG / scaled(name, letter))), verbose=False)


def runs_whole(name: str, letter: str) -> bool:
    """Whether this model is trained, saved and folded, too: every YAML at its smallest scale, and every variant once.

    A larger scale of another neck or task joins two parts that both have been. timm's layers have tests of their own.
    """
    return letter == next(iter(YAMLS[name]["scales"])) or (name.startswith("yolo11_") and not is_of_timm(name))


def is_of_timm(name: str) -> bool:
    """Whether timm must be installed for this YAML."""
    return bool(YAMLS[name]["backbone"][0][2] == "Timm")


@pytest.mark.parametrize(("name", "letter"), MODELS)
def test_a_model(name: str, letter: str, tmp_path: Path) -> None:
    """One model, from its name to its folded form."""
    if is_of_timm(name):
        pytest.importorskip("timm", reason="Timm rows are built by timm: pip install timm")
    torch.manual_seed(0)
    task, config = suffix(name), YAMLS[name]
    model = build(name, letter)
    backbone = model.model[0]

    # What is written there is what is built.
    variant = config["backbone"][0][3][0][letter]
    with torch.device("meta"):
        expected = type(backbone)(variant, taps=backbone.taps)
    assert count(backbone) - count(backbone.tap_norms) == count(expected)
    normed = type(backbone).default_tap_norm(variant) == "batch"
    strides = next((strides for extra, strides in STRIDES.items() if extra in name), [8, 16, 32])
    assert model.stride.tolist() == strides
    taps = tuple(tap for tap in ("P2", "P3", "P4", "P5") if [0, 1, "Tap", [tap]] in config["backbone"])
    assert backbone.taps[-1] == taps[-1]
    assert tuple(backbone.tap_norms) == (taps if normed else ())
    figures = rf"^  {letter}: \[.*\] # (\S+), ([\d,]+) parameters, ([\d.]+) GFLOPs$"
    comment = re.search(figures, (CFG / name).read_text(), re.MULTILINE)
    assert comment
    assert comment[1].split("-")[-1].lower().replace(".", "_") == variant
    assert int(comment[2].replace(",", "")) == count(model)

    # Ultralytics' own count of operations, at the size of its summary line.
    side = 224 if task == "-cls" else 640
    gflops = get_flops(model, side)
    if letter == next(iter(config["scales"])):  # the others have the same operations, only larger
        assert gflops == pytest.approx(operations_at(model, side) / 1e9, rel=0.03)
    assert float(comment[3]) == pytest.approx(gflops, abs=0.051)

    if not runs_whole(name, letter):
        return

    # Every parameter that should train gets a gradient.
    unit = 64
    outputs = flat(model.train()(torch.rand(2, 3, unit, unit)))
    sum((output * torch.randn_like(output)).mean() for output in outputs).backward()
    silent = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all("flow_model" in key for key in silent)  # of Pose26: its loss alone trains it
    assert all("dfl" in key for key, p in model.named_parameters() if not p.requires_grad)
    model.zero_grad()

    # Saved as Ultralytics saves and loaded as it loads, it is the same model.
    randomise(model)
    image = torch.rand(1, 3, 2 * unit, unit)
    before = raw(model, image)
    assert all(torch.isfinite(tensor).all() for tensor in before)
    torch.save({"model": model, "ema": None, "train_args": {}}, checkpoint := tmp_path / "model.pt")
    loaded, _ = tasks.load_checkpoint(checkpoint)
    checkpoint.unlink()  # up to 1 GB
    for actual, wanted in zip(raw(loaded, image), before, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0)

    # Folded, it still is.
    if "yolo26" in name and task != "-cls":
        loaded.end2end = True  # as `nms=False` does; the other branch is then left out
    fused = loaded.fuse(verbose=False)
    assert fused.is_fused()
    for actual, wanted in zip(raw(fused, image), before, strict=True):
        size = wanted.square().mean().sqrt()
        torch.testing.assert_close(actual / size, wanted / size, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "letter"), SHAPES)
def test_what_is_written_about_other_necks_and_heads(name: str, letter: str) -> None:
    config = YAMLS[name]
    figures = rf"^  {letter}: \[.*\] # (\S+), ([\d,]+) parameters, ([\d.]+) GFLOPs$"
    comment = re.search(figures, (CFG / name).read_text(), re.MULTILINE)
    assert comment
    assert comment[1].split("-")[-1].lower().replace(".", "_") == config["backbone"][0][3][0][letter]
    loaded = tasks.yaml_model_load(scaled(name, letter)) | {"scale": letter}  # rtdetr_* has no place for it
    if not name.endswith("_edgevit.yaml"):
        with torch.device("meta"), Numbers():
            model = tasks.parse_model(loaded, 3, verbose=False)[0]
    else:
        model = shape_of(scaled(name, letter))
        assert float(comment[3]) == pytest.approx(get_flops(model, 640), abs=0.051)
        if "-" not in START[name] or "-p" in START[name]:
            expected = next((strides for extra, strides in STRIDES.items() if extra in name), [8, 16, 32])
            assert model.stride.tolist() == (expected if "rtdetr" not in name else [32])
    assert int(comment[2].replace(",", "")) == count(model)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_classifier_without_a_letter_is_the_smallest(name: str) -> None:
    family = name.removesuffix("-cls.yaml")
    expected = YAMLS[f"yolo26-cls_{family}.yaml"]
    assert YAMLS[name] == expected
    assert next(iter(expected["scales"])) == "n"


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_pretrains_a_detectors_backbone(name: str, tmp_path: Path) -> None:
    """What `yolo classify train` saves, `lightbackbones convert` makes a detector of: every weight of the backbone."""
    from typer.testing import CliRunner

    from yolo_lightbackbones.cli import app

    classifier = YOLO(name)
    assert classifier.task == "classify"
    classifier.model.eval()
    with torch.no_grad():
        out = classifier.model(torch.rand(2, 3, 64, 96))
    assert (out[0] if isinstance(out, tuple) else out).shape == (2, 1000)
    classifier.save(best := tmp_path / "best.pt")
    model = f"yolov5_{name.removesuffix('-cls.yaml')}.yaml"
    arguments = ["convert", str(best), "-m", model, "-s", "n", "-o", str(tmp_path / "init.pt")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    trained = classifier.model.model[0].float().state_dict()
    converted = YOLO(tmp_path / "init.pt").model.model[0].float().state_dict()
    lacking = ("tap_norms.P3.", "tap_norms.P4.")  # a classifier has one tap, P5
    assert list(trained) == [key for key in converted if not key.startswith(lacking)]
    for key, tensor in trained.items():
        # Ultralytics saves its checkpoints in half precision.
        torch.testing.assert_close(converted[key], tensor.half().float() if tensor.is_floating_point() else tensor)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_found_by_name_and_hold_known_arguments_alone(name: str) -> None:
    from ultralytics.cfg import get_cfg
    from ultralytics.utils import YAML, checks

    recipe = YAML.load(checks.check_yaml(name))
    arguments = get_cfg(overrides=recipe)
    if name.endswith("_qat.yaml"):
        assert arguments.quantize == 8
        assert arguments.weight_decay == 0  # folded weights hold identities and norms, which do not decay
        return
    # A decay for the one is none for the other: AdamW's is decoupled, MuSGD's is part of the gradient.
    expected = ("MuSGD", 0.0005) if "_few_images" in name else ("AdamW", 0.05)
    assert (arguments.optimizer, arguments.weight_decay) == expected
    assert all(getattr(arguments, key) == value for key, value in recipe.items())


# --- names that are looked up -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["yolov5_repvit.yaml", "cfg/yolov5_repvit.yaml", "cfg/recipes/repvit_scratch.yaml"])
def test_our_files_are_found(name: str) -> None:
    assert finding.find_config(name) == (CFG / name.removeprefix("cfg/")).resolve()


def test_no_name_leads_out_of_our_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tmp_path / "ours" / "cfg"
    (ours / "recipes").mkdir(parents=True)
    (ours / "own.yaml").write_text("nc: 1")
    (outside := tmp_path / "secret.yaml").write_text("nc: 2")
    (ours / "link.yaml").symlink_to(outside)
    (ours / "folder").symlink_to(tmp_path)
    (ours / "a.yaml").mkdir()
    monkeypatch.setattr(finding, "config_dir", lambda: ours)
    assert finding.find_config("cfg/own.yaml") == finding.find_config("own.yaml") == (ours / "own.yaml").resolve()
    for name in (
        "cfg/../../secret.yaml",
        "cfg/recipes/../../../secret.yaml",
        "cfg/recipes/../own.yaml",
        "cfg/link.yaml",
        "link.yaml",
        "cfg/folder/secret.yaml",
        "secret.yaml",
        "a.yaml",
        "cfg/a.yaml",
        str(outside),
        "cfg/\0.yaml",
        f"cfg/{'a' * 5000}.yaml",
        "*.yaml",
    ):
        assert finding.find_config(name) is None, name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("yolo11n-RepViT.yaml", "There is no YAML yolo11n-RepViT.yaml. Did you mean yolo11n_repvit.yaml? All "),
        ("runs/YOLO11N_RepViT.yml", "Did you mean yolo11n_repvit.yaml?"),
        ("yolo13n_repvit.yaml", "Did you mean yolo12n_repvit.yaml or "),
        ("repvit_few_image.yaml", "Did you mean repvit_few_images.yaml"),
        ("yolov8n-edgevit.yaml", "Did you mean yolov8n_edgevit.yaml?"),
        ("yolo11_parc-net.yaml", "Did you mean yolo11_parcnet.yaml?"),
        ("repvit.yaml", "There is no YAML repvit.yaml. "),
        ("yolo11n_repvit.pt", "There is no file yolo11n_repvit.pt, and no trained model of that name is published: "),
        ("yolo11n_repvit.pt", "take its YAML, yolo11n_repvit.yaml, and put published weights of the backbone in with "),
    ],
)
def test_a_model_that_is_called_nearly_like_one_of_ours(name: str, said: str) -> None:
    assert said in str(finding.explain_missing(name))
    assert str(finding.explain_missing(name)).count(".yaml") < 5


@pytest.mark.parametrize("name", ["yolo11n.yaml", "yolo11n.pt", "best.pt", "", "repvit", "x" * 500 + "_repvit.yaml"])
def test_other_names_are_none_of_our_business(name: str) -> None:
    assert finding.explain_missing(name) is None


def test_part_of_a_familys_name_is_not_the_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "yolo11_repvit_wide.yaml").write_text("")
    monkeypatch.setattr(finding, "config_dir", lambda: tmp_path)
    assert finding.explain_missing("yolo11_widenet.yaml") is None
    assert "Did you mean yolo11n_repvit_wide.yaml?" in str(finding.explain_missing("yolo11n-repvit-wide.yaml"))
