"""Quantisation-aware training: our rows are folded before the quantisers come in, and stay ordinary models of ours."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contract import random_image
from detectors import awake_detector
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.utils import torch_utils

from yolo_lightbackbones import fusion
from yolo_lightbackbones.datasets.digits import build_digits
from yolo_lightbackbones.plugin import quantising
from yolo_lightbackbones.plugin.quantising import MissingPackageError, QuantisingError

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

needs_modelopt = pytest.mark.skipif(
    importlib.util.find_spec("modelopt") is None, reason="nvidia-modelopt is not installed (extra `qat`)"
)

NAMES = ["yolov5n_repvit", "yolov5n_edgevit", "yolov5n_parcnet", "yolov5n_conv2former", "yolo11n_repvit-neck"]


def prepare(net: Any, *images: Tensor) -> Any:
    """Let Ultralytics insert its quantisers, with ranges measured on these images."""
    batches = [{"img": image} for image in (images or [random_image(64, 64, batch=2)])]
    return torch_utils.prepare_qat(net, [batch["img"] for batch in batches], lambda image: image)


def ours(net: Any) -> dict[int, nn.Module]:
    return dict(quantising._ours(net))


def switch_quantisers(net: nn.Module, *, on: bool) -> None:
    for module in net.modules():
        if type(module).__name__ == "TensorQuantizer":
            if on:
                module.enable()
            else:
                module.disable()


def outputs(net: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = net.eval()(image)[0]
    return out


@pytest.fixture(params=NAMES)
def detector(request: pytest.FixtureRequest) -> Any:
    return awake_detector(f"{request.param}.yaml").model


@needs_modelopt
def test_what_is_trained_is_what_runs(detector: Any) -> None:
    image = random_image(64, 64, batch=2)
    floats = outputs(detector, image)
    net = prepare(detector.train())
    assert net.training
    assert torch_utils.is_qat(net)
    for row in ours(net).values():
        assert not [module for module in row.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        assert fusion.is_folded(row)
        layers = [module for module in row.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        assert layers
        assert all(layer.weight_quantizer.is_enabled and layer.input_quantizer.is_enabled for layer in layers)
    quantised = outputs(net, image)
    switch_quantisers(net, on=False)
    torch.testing.assert_close(outputs(net, image), floats, rtol=1e-3, atol=2e-3)
    assert (quantised - floats)[:, 4:].abs().max() > 1e-4, "the quantisers do nothing"


@needs_modelopt
def test_folded_rows_learn(detector: Any) -> None:
    net = prepare(detector).train()
    rows = ours(net)
    net.model[-1].eval()  # of the same form in every head
    raw = net(random_image(64, 64, batch=2))[1]
    sum(value.square().mean() for value in raw.values() if isinstance(value, Tensor)).backward()
    still = [name for row in rows.values() for name, p in row.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
    image, before = random_image(64, 64), outputs(net, random_image(64, 64))
    with torch.no_grad():
        for row in rows.values():
            for parameter in row.parameters():
                parameter.mul_(1.05)
    assert not torch.equal(outputs(net, image), before), "an update is seen after a run without gradients"


@needs_modelopt
def test_norms_that_are_left_fold_with_the_ranges_of_the_weights(detector: Any) -> None:
    net, image = prepare(detector).eval(), random_image(64, 64)
    wanted = {}
    for name, module in net.named_modules():
        if type(module).__name__ == "Conv" and hasattr(module, "bn"):
            norm, ranges = module.bn, module.conv.weight_quantizer.amax.flatten().double()
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps) ** 0.5
            wanted[name] = (ranges * scale.abs(), module.conv.weight.double() * scale.view(-1, 1, 1, 1))
    assert wanted
    expected = outputs(net, image)
    fused = copy.deepcopy(net).fuse(verbose=False)
    assert fused.is_fused()
    assert not [module for module in fused.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for name, (ranges, weight) in wanted.items():
        conv = fused.get_submodule(name).conv
        torch.testing.assert_close(conv.weight_quantizer.amax.flatten().double(), ranges, rtol=1e-5, atol=0)
        torch.testing.assert_close(conv.weight.double(), weight, rtol=1e-5, atol=1e-7)
    # sums in another order may round to a neighbouring step
    assert (outputs(fused, image) - expected)[:, 4:].abs().mean() < 0.02 * expected[:, 4:].std()


LOADS = """
import sys, torch
torch.set_num_threads(1)  # sums in another order may round to a neighbouring step
from ultralytics import YOLO
model, image = YOLO(sys.argv[1]).model, torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(model.eval()(image)[0], sys.argv[3])
"""


@needs_modelopt
@pytest.mark.parametrize("name", ["yolov5n_parcnet", "yolo11n_repvit-neck"])
def test_a_checkpoint_loads_in_another_process_under_restricted_loading(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = awake_detector(f"{name}.yaml")
    detector.model = prepare(detector.model).half().float()  # checkpoints have half precision
    image = random_image(64, 64)
    expected = outputs(detector.model, image)
    detector.ckpt = {}
    detector.save(tmp_path / "qat.pt")
    torch.save(image, tmp_path / "image.pt")
    monkeypatch.setenv("ULTRALYTICS_SAFE_LOAD", "1")
    files = [str(tmp_path / file) for file in ("qat.pt", "image.pt", "seen.pt")]
    subprocess.run([sys.executable, "-c", LOADS, *files], check=True, timeout=300)
    torch.testing.assert_close(torch.load(files[2]), expected, rtol=1e-4, atol=1e-4)


@needs_modelopt
@pytest.mark.parametrize("name", ["yolov5n_repvit", "yolov5n_parcnet"])
def test_weights_of_such_a_training_go_into_a_new_model(name: str) -> None:
    """What a resumed training does: a model of the YAML takes the weights, then the ranges."""
    source, image = prepare(awake_detector(f"{name}.yaml").model), random_image(64, 64)
    expected = outputs(source, image)
    state = torch_utils.qat_state(source)
    target = YOLO(f"{name}.yaml").model.train()
    target.load(source, verbose=False)
    assert torch_utils.is_qat(source)
    assert not torch_utils.is_qat(target)
    assert all(fusion.is_folded(row) and row.training for row in ours(target).values())
    assert all(parameter.requires_grad for row in ours(target).values() for parameter in row.parameters())
    torch_utils.restore_qat(target, state)
    torch.testing.assert_close(outputs(target, image), expected, rtol=1e-4, atol=1e-4)


@needs_modelopt
@pytest.mark.parametrize("variant", ["m1_0", "m1_1"])  # wider; deeper
def test_rows_of_another_variant_are_not_folded_for_weights_that_do_not_fit(variant: str) -> None:
    source = prepare(awake_detector("yolov5n_repvit.yaml").model)
    target = YOLO("yolov5n_repvit.yaml").model
    config = copy.deepcopy(target.yaml)
    config["backbone"][0][3] = [variant]
    other = type(target)(config, verbose=False)
    for model in (target, other):
        quantising.take_form(model, source)
    assert all(fusion.is_folded(row) for row in ours(target).values())
    assert not any(fusion.is_folded(row) for row in ours(other).values())


@needs_modelopt
def test_the_onnx_file_has_quantised_convolutions_and_no_norms(tmp_path: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    detector, image = awake_detector("yolov5n_repvit.yaml"), random_image(64, 64)
    detector.model = prepare(detector.model).half().float()
    detector.ckpt = {}
    detector.save(tmp_path / "qat.pt")
    expected = outputs(copy.deepcopy(detector.model).fuse(verbose=False), image)
    file = YOLO(tmp_path / "qat.pt").export(format="onnx", imgsz=64, simplify=False, verbose=False)
    graph = onnx.load(file).graph
    maker = {output: node for node in graph.node for output in node.output}
    convs = [node for node in graph.node if node.op_type == "Conv"]
    dequantised = [[maker[i].op_type == "DequantizeLinear" for i in conv.input[:2] if i in maker] for conv in convs]
    assert Counter(map(tuple, dequantised))[(True, True)] >= len(convs) - 7  # the head's output layers, and DFL
    assert not [node for node in graph.node if node.op_type == "BatchNormalization"]
    seen = onnxruntime.InferenceSession(file).run(None, {"images": image.numpy()})[0]
    # random weights amplify steps that round to a neighbour; a wrong scale gives 1
    assert (torch.from_numpy(seen) - expected)[:, 4:].abs().mean() < 0.1 * expected[:, 4:].std()


@needs_modelopt
def test_timm_rows_are_folded_as_well(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    detector, image = awake_detector("yolo11n_mobilenetv4.yaml"), random_image(64, 64)
    floats = outputs(detector.model, image)
    net = detector.model = prepare(detector.model).half().float()
    expected = outputs(net, image)
    assert not [m for m in ours(net)[0].modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    detector.ckpt = {}
    detector.save(tmp_path / "qat.pt")
    torch.testing.assert_close(outputs(YOLO(tmp_path / "qat.pt").model, image), expected, rtol=1e-4, atol=1e-4)
    switch_quantisers(net, on=False)
    assert (outputs(net, image) - floats)[:, 4:].abs().max() < 0.01  # half precision
    assert (expected - floats)[:, 4:].abs().max() > 0.01, "the quantisers do nothing"


@needs_modelopt
@pytest.mark.slow
def test_a_training_is_interrupted_and_resumed(tmp_path: Path) -> None:
    def interrupt(trainer: Any) -> None:
        if trainer.epoch == 0:
            raise KeyboardInterrupt

    awake = awake_detector("yolov5n_parcnet.yaml")
    awake.ckpt = {}
    awake.save(tmp_path / "trained.pt")
    digits = build_digits(tmp_path / "digits", train_images=8, val_images=2)
    (data := tmp_path / "data.yaml").write_text(f"path: {digits}\ntrain: images/train\nval: images/val\nnc: 10\n")
    options = {"imgsz": 64, "batch": 4, "workers": 0, "amp": False, "plots": False, "lr0": 1e-4, "optimizer": "AdamW"}
    run = YOLO(tmp_path / "trained.pt")
    run.add_callback("on_model_save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.train(data=str(data), project=str(tmp_path), name="run", epochs=2, quantize=8, **options)
    last = tmp_path / "run" / "weights" / "last.pt"
    again, seen = YOLO(last), []
    saved = {name: value.clone() for name, value in again.model.state_dict().items()}
    again.add_callback("on_train_start", seen.append)
    again.train(resume=True)
    (trainer,) = seen
    assert trainer.start_epoch == 1
    assert {name: value.shape for name, value in trainer.model.state_dict().items()} == {
        name: value.shape for name, value in saved.items()
    }
    final = YOLO(last).model
    assert torch_utils.is_qat(final)
    assert all(fusion.is_folded(row) for row in ours(final).values())
    ranges = [name for name in saved if name.endswith("input_quantizer._amax")]
    assert ranges
    for name in ranges:
        torch.testing.assert_close(final.state_dict()[name].float(), saved[name].float(), rtol=1e-3, atol=0)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repvit() -> Any:
    return awake_detector("yolov5n_repvit.yaml").model


def untouched(net: Any) -> Iterator[bool]:
    return (not fusion.is_folded(row) for row in ours(net).values())


def test_a_model_that_was_not_trained_is_refused() -> None:
    net = YOLO("yolov5n_parcnet.yaml").model
    with pytest.raises(QuantisingError, match=r"a norm in row 0, ParCNet, has seen no batch.*then give model=best\.pt"):
        prepare(net)
    assert all(untouched(net))


def test_a_norm_behind_a_norm_may_have_a_mean_of_0(repvit: Any) -> None:
    net = copy.deepcopy(repvit)
    nn.init.zeros_(net.get_submodule("model.4.cv1.bn").get_buffer("running_mean"))
    quantising._refuse_untrained(net)


@pytest.mark.parametrize("installed", [None, "0.43.1"])
def test_missing_packages_are_named(repvit: Any, installed: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name != "nvidia-modelopt":
            return real(name) if name != "huggingface-hub" else "1.0"
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(quantising.PACKAGES, "omegaconf", (0,))
    remedy = r'nvidia-modelopt is not installed. Run: pip install "nvidia-modelopt>=0\.44"'
    with pytest.raises(MissingPackageError, match=rf"^quantize=8 trains with fake quantisers.*{remedy}$"):
        prepare(repvit)
    with pytest.raises(MissingPackageError, match=rf"^This checkpoint comes from a training with quantize=8.*{remedy}"):
        torch_utils.restore_qat(repvit, {})
    assert all(untouched(repvit))


def test_the_packages_are_those_of_the_extra(repository: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    extra = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]["qat"]
    assert sorted(extra) == sorted(
        f"{name}>={'.'.join(map(str, release))}" for name, release in quantising.PACKAGES.items()
    )


def test_stock_models_are_left_to_ultralytics(monkeypatch: pytest.MonkeyPatch) -> None:
    net, given = YOLO("yolov5n.yaml").model, []
    replacement = quantising.prepare_qat(lambda model, dataloader, preprocess: given.append((model, dataloader)))
    monkeypatch.setattr(quantising, "_require_packages", pytest.fail)
    replacement(net, "batches", None)
    assert given == [(net, "batches")]


@pytest.fixture
def preparing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The replacement of `prepare_qat` around one that inserts no quantisers."""
    monkeypatch.setattr(quantising, "_require_packages", lambda why: None)
    seam = quantising.prepare_qat(lambda model, dataloader, preprocess: model)
    return lambda net: seam(net, [random_image(64, 64)], lambda image: image)


def test_a_wrong_fold_is_refused(repvit: Any, preparing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "add_identity", lambda conv: conv)
    with pytest.raises(QuantisingError, match=r"row 0, RepViT, before .* folded form computes something else"):
        preparing(repvit)
    assert all(untouched(repvit))


def test_what_folding_would_lose_is_refused(repvit: Any, preparing: Any) -> None:
    net = copy.deepcopy(repvit)
    net.get_submodule("model.0.stages.0.blocks.0").register_forward_hook(lambda *_: None)
    with pytest.raises(QuantisingError, match=r"row 0, RepViT, before the training, and it has hooks"):
        preparing(net)
    assert all(untouched(net))


def test_broken_weights_are_refused(repvit: Any, preparing: Any) -> None:
    net = copy.deepcopy(repvit)
    nn.init.constant_(net.get_submodule("model.0.stem.conv1.conv").get_parameter("weight"), torch.nan)
    with pytest.raises(QuantisingError, match=r"output of row 0, RepViT, is not finite before"):
        preparing(net)


def test_a_training_of_folded_rows_without_quantisers_is_told(repvit: Any) -> None:
    folded, trainer = copy.deepcopy(repvit), SimpleNamespace(model=repvit, args=SimpleNamespace(quantize=None))
    folded.model[0] = quantising.merged(folded.model[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantising.on_training(trainer)
        quantising.on_training(SimpleNamespace(model=folded, args=SimpleNamespace(quantize=8)))
    trainer.model = SimpleNamespace(module=folded)  # of a distributed training
    with pytest.warns(UserWarning, match="weights of row 0, RepViT, come from a training with quantize=8"):
        quantising.on_training(trainer)


def test_a_training_stops_when_weights_are_not_finite(repvit: Any) -> None:
    net = copy.deepcopy(repvit)
    trainer = SimpleNamespace(model=net, epoch=2, loss=torch.tensor(1.0), args=SimpleNamespace(quantize=8, lr0=0.1))
    quantising.on_train_batch_end(trainer)
    quantising.on_train_epoch_end(trainer)
    trainer.loss = torch.tensor(torch.nan)  # of a step that mixed precision leaves out
    quantising.on_train_batch_end(trainer)
    nn.init.constant_(net.get_submodule("model.0.stages.1.blocks.0.squeeze.fc1").get_parameter("bias"), torch.inf)
    said = r"stops in epoch 3: row 0, RepViT, has weights that are not finite \(stages\.1\..*fc1\.bias\).*lr0=0\.1"
    with pytest.raises(QuantisingError, match=said):
        quantising.on_train_batch_end(trainer)
    with pytest.raises(QuantisingError, match=said):
        quantising.on_train_epoch_end(trainer)
    trainer.args.quantize = None
    quantising.on_train_epoch_end(trainer)
