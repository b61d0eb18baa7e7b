"""Each head that is not a plain YOLO detector's trains, saves, loads, folds and exports, once, with one backbone.

`tests/test_configs.py` and `tests/test_necks.py` compare all of them with what they should be; this runs them.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import onnxruntime
import pytest
import standins
import torch
from contract import randomise
from meta_models import shape_of
from torch import Tensor, nn
from typer.testing import CliRunner
from ultralytics import RTDETR, YOLO, YOLOE, YOLOWorld
from ultralytics.cfg import entrypoint

from yolo_lightbackbones import create_backbone, fusion
from yolo_lightbackbones.cli import app

HEADS = {
    "yolov10n": ("detect", YOLO, "v10Detect"),
    "yolo26n-sem": ("semantic", YOLO, "SemanticSegment"),
    "yolo26n-depth": ("depth", YOLO, "Depth"),
    "rtdetr": ("detect", RTDETR, "RTDETRDecoder"),
    "yolov8n-worldv2": ("detect", YOLOWorld, "WorldDetect"),
    "yoloe-26n": ("detect", YOLOE, "YOLOEDetect"),
    "yoloe-26n-seg": ("segment", YOLOE, "YOLOESegment26"),
}
"""Name before the backbone's -> task, class of the Python API, head."""


class Encoder:
    """In the place of CLIP, which comes with no package index: a class name's letters decide about its direction."""

    def tokenize(self, texts: list[str]) -> Tensor:
        return torch.tensor([[sum(map(ord, text))] for text in texts])

    def encode_text(self, tokens: Tensor) -> Tensor:
        directions = [torch.randn(512, generator=torch.Generator().manual_seed(int(token))) for token in tokens]
        return nn.functional.normalize(torch.stack(directions), dim=-1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Task -> data set YAML."""
    folder = tmp_path_factory.mktemp("data")
    for write, name in ((standins.write_semantic_set, "sem"), (standins.write_depth_set, "depth")):
        write(folder / f"{name}.yaml")
    for name in ("boxes", "masks"):
        root = folder / name
        for split in ("train", "val"):
            for number in range(4):
                standins.write_picture(root / "images" / split / f"{number}.png", number)
                label = root / "labels" / split / f"{number}.txt"
                label.parent.mkdir(parents=True, exist_ok=True)
                shape = "0.5 0.5 0.4 0.3" if name == "boxes" else "0.3 0.3 0.7 0.3 0.7 0.7"
                label.write_text(f"{number % 3} {shape}\n")
        (folder / f"{name}.yaml").write_text(
            f"path: {root}\ntrain: images/train\nval: images/val\nnames: {{0: a, 1: b, 2: c}}\n"
        )
    files = {"detect": "boxes", "segment": "masks", "semantic": "sem", "depth": "depth"}
    return {task: folder / f"{name}.yaml" for task, name in files.items()}


one_process = pytest.mark.xdist_group("trained-heads")
"""For tests that take the trained heads: a process trains all of them."""


@pytest.fixture(scope="module")
def trained(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Name -> best.pt of one epoch by the command, which chooses class and task by name and head."""
    runs = tmp_path_factory.mktemp("runs")
    text_model = ModuleType("ultralytics.nn.text_model")
    text_model.build_text_model = lambda *_args, **_options: Encoder()  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ultralytics.nn.text_model", text_model)
        patch.chdir(runs)
        for name, (task, _, _) in HEADS.items():
            entrypoint(
                f"train model={name}_edgevit.yaml data={data[task]} imgsz=64 epochs=1 batch=4 workers=0 plots=False "
                f"project={runs} name={name} device=cpu seed=1 amp=False"
            )
        yield {name: runs / name / "weights" / "best.pt" for name in HEADS}


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in values for tensor in flat(item)]


def raw(output: Any) -> list[Tensor]:
    """What a head computes before it decodes; of an end-to-end head what it computes in the branch without NMS."""
    maps = output[1] if isinstance(output, tuple) else output
    return flat(maps.get("one2one", maps) if isinstance(maps, dict) else maps)


def choose_end_to_end(model: Any) -> bool:
    """Choose the branch without NMS, as `nms=False` does, if the head has one."""
    has_one = hasattr(model.model[-1], "one2one_cv2")
    if has_one:
        model.end2end = True
    return has_one


@pytest.fixture(params=HEADS)
def checkpoint(request: pytest.FixtureRequest, trained: dict[str, Path]) -> tuple[str, Any]:
    """Name and loaded model of each head."""
    return request.param, YOLO(trained[request.param])


@one_process
def test_a_head_trains_loads_and_folds(checkpoint: tuple[str, Any]) -> None:
    name, loaded = checkpoint
    task, api, head = HEADS[name]
    assert (type(loaded), loaded.task) == (api, task)
    model = loaded.model.float().eval()
    assert (type(model.model[0]).__name__, type(model.model[-1]).__name__) == ("EdgeViT", head)

    randomise(model)
    choose_end_to_end(model)
    image = torch.rand(1, 3, 128, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = raw(model(image))
        fused = copy.deepcopy(model).fuse(verbose=False)
        after = raw(fused(image))
    assert fusion.is_fused(fused)
    for ours, wanted in zip(after, before, strict=True):
        size = wanted.square().mean().sqrt()
        assert size > 1e-3, "a dead output proves nothing"
        torch.testing.assert_close(ours / size, wanted / size, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["yolov10n_edgevit", "yolo26n_parcnet", "rtdetr_repvit"])
def test_heads_without_nms_export(name: str, tmp_path: Path) -> None:
    built = (RTDETR if name.startswith("rtdetr") else YOLO)(f"{name}.yaml")
    randomise(built.model)
    built.save(file := tmp_path / f"{name}.pt")
    image = torch.rand(1, 3, 128, 64, generator=torch.Generator().manual_seed(0))
    model = YOLO(file).model.float().eval()
    end_to_end = choose_end_to_end(model)
    with torch.no_grad():
        wanted = model(image)[0]
    options = {"nms": False} if end_to_end else {}
    exported = YOLO(file).export(format="onnx", imgsz=(128, 64), simplify=False, verbose=False, **options)
    out = torch.from_numpy(onnxruntime.InferenceSession(exported).run(None, {"images": image.numpy()})[0])
    assert out.shape == wanted.shape
    assert out.shape[2] == 6  # box, score and class: no NMS is left to do
    assert wanted[..., 4].std() > 1e-4
    torch.testing.assert_close(out[..., 4], wanted[..., 4], rtol=1e-4, atol=1e-5)
    # Scores that are nearly the same may come in another order; the last ones may be others.
    scale = torch.tensor([1, 1, 1, 1, 0, 1e3])
    found = torch.cdist(wanted[0] * scale, out[0] * scale, compute_mode="donot_use_mm_for_euclid_dist").amin(1) < 1e-2
    assert found.float().mean() > 0.97
    assert not [node.name for node in onnx.load(exported).graph.node if node.op_type == "BatchNormalization"]


@one_process
def test_a_fresh_process_loads_them_from_known_classes_only(trained: dict[str, Path], tmp_path: Path) -> None:
    standins.write_picture(tmp_path / "picture.png")
    code = """
import sys
from ultralytics import YOLO
for path in sys.argv[1:]:
    loaded = YOLO(path)
    result = loaded.predict("picture.png", imgsz=64, verbose=False, save=False)[0]
    print(type(loaded).__name__, type(result).__name__)
"""
    environment = {**os.environ, "ULTRALYTICS_SAFE_LOAD": "1"}
    command = [sys.executable, "-c", code, *map(str, trained.values())]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    said = [line.split() for line in result.stdout.splitlines() if line.endswith(" Results")]
    assert [name for name, _ in said] == [api.__name__ for _, api, _ in HEADS.values()]


def test_a_world_model_keeps_the_scale_that_convert_gave_it(tmp_path: Path) -> None:
    """Its trainer builds the model again from the name of its file."""
    weights, output = tmp_path / "backbone.pth", tmp_path / "init.pt"
    torch.save(create_backbone("edgevit_xs").state_dict(), weights)
    arguments = ["convert", str(weights), "--model", "yolov8-worldv2_edgevit.yaml", "--scale", "s", "-o", str(output)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    converted = YOLO(output)
    assert type(converted) is YOLOWorld
    again = shape_of(converted.model.yaml["yaml_file"])
    assert type(again) is type(converted.model)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (again, converted.model)]
    assert shapes[0] == shapes[1]
