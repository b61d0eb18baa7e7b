"""`lightbackbones convert`: published weights into a checkpoint that Ultralytics trains from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from yolo_lightbackbones.cli.common import UserError, errors_for_users

MODELS = {
    "detect": "DetectionModel",
    "segment": "SegmentationModel",
    "classify": "ClassificationModel",
    "pose": "PoseModel",
    "obb": "OBBModel",
}
"""Task -> class in `ultralytics.nn.tasks` that builds its models."""


def convert(
    weights: Annotated[
        str,
        typer.Argument(
            help="A .pth, .pt or .safetensors file, an Ultralytics checkpoint with a backbone of ours, or the name of "
            "published weights to download, such as repvit_m0_9 or repvit_m0_9.dist_450e_in1k.",
        ),
    ],
    *,
    model: Annotated[str, typer.Option("--model", "-m", help="Model YAML, a file or one of ours.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The checkpoint to write, *.pt.")],
    scale: Annotated[str | None, typer.Option("--scale", "-s", help="Scale letter, if the YAML has scales.")] = None,
    channels: Annotated[int, typer.Option("--channels", min=1, help="Channels of the images to train on.")] = 3,
    partial: Annotated[bool, typer.Option("--partial", help="Load what fits, and say what did not.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite an existing output.")] = False,
) -> None:
    """Write an Ultralytics checkpoint whose backbone holds pretrained weights.

    Train from it with `yolo train model=init.pt data=...`, or with `pretrained=init.pt` and a model YAML.
    """
    with errors_for_users():
        _check_output(output, force)
        config = _read_model_yaml(model, scale)
        net = _build(config, model, channels)
        backbone = _backbone_of(net, model)
        report = _load(backbone, weights, strict=not partial)
        _write_checkpoint(net, output)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{type(backbone).__name__}: {report}", markup=False)
    if report.missing or report.unexpected:
        for title, keys in (("missing", report.missing), ("unexpected", report.unexpected)):
            console.print(f"{title}: {', '.join(keys) or 'none'}", markup=False)
    console.print(f"Wrote {output}. Train from it: yolo train model={output} data=...", markup=False)


def _check_output(output: Path, force: bool) -> None:
    """Refuse before any work what could not be written after it."""
    if output.suffix != ".pt":
        raise UserError(f"The output is {output}; Ultralytics reads checkpoints by their suffix .pt. Name it *.pt.")
    if not output.parent.is_dir():
        raise UserError(f"There is no folder {output.parent} to write {output.name} into. Create it first.")
    if output.is_dir():
        raise UserError(f"{output} is a folder. Give the name of a file.")
    if output.exists() and not force:
        raise UserError(f"{output} exists already. Add --force to overwrite it, or choose another name.")


def _read_model_yaml(model: str, scale: str | None) -> dict[str, Any]:
    """The model's configuration with its scale, as Ultralytics' own loader gives it."""
    import yaml
    from ultralytics.nn.tasks import guess_model_scale, yaml_model_load

    from yolo_lightbackbones import configs, plugin

    if Path(model).suffix not in {".yaml", ".yml"}:
        raise UserError(f"The model is {model}; give a model YAML, one of ours ({_our_models()}) or a file of yours.")
    plugin.register()  # where autoload is off
    # `yolov5n_repvit.yaml` names the file `yolov5_repvit.yaml` at scale n; Ultralytics' loader knows that.
    path = Path(model)
    found = path if path.is_file() else configs.find_config(model)
    try:
        config: dict[str, Any] = yaml_model_load(str(found or model))
    except FileNotFoundError as error:
        raise UserError(f"There is no model YAML {model}. Give a path, or one of ours: {_our_models()}.") from error
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise UserError(f"{model} is not a YAML file: {where}") from error
    if not isinstance(config, dict) or "backbone" not in config:
        raise UserError(f"{model} is not a model YAML: it has no backbone.")
    scales = config.get("scales")
    if scale is not None:
        if not isinstance(scales, Mapping) or scale not in scales:
            allowed = ", ".join(map(str, scales)) if isinstance(scales, Mapping) else "none"
            raise UserError(f"{model} has no scale {scale!r}. Allowed: {allowed}.")
        config["scale"] = scale
    elif isinstance(scales, Mapping) and not guess_model_scale(model):
        raise UserError(f"{model} has the scales {', '.join(map(str, scales))}. Choose one with --scale.")
    return config


def _our_models() -> str:
    from yolo_lightbackbones import configs

    return ", ".join(sorted(path.name for path in configs.config_dir().glob("*.yaml")))


def _build(config: dict[str, Any], model: str, channels: int) -> Any:
    """A freshly initialised model of the task that the head is for."""
    from ultralytics.nn import tasks

    task = tasks.guess_model_task(config)
    if task not in MODELS:
        raise UserError(
            f"The last row of {model} is no head for any of {', '.join(MODELS)}. End it with Detect, Segment, "
            "Classify, Pose or OBB."
        )
    try:
        net = getattr(tasks, MODELS[task])(config, ch=channels, verbose=False)
    except KeyError as error:  # what Ultralytics' parser makes of a module that it does not know
        raise UserError(
            f"{model} names a module that neither Ultralytics nor this plugin has: {error.args[0]}"
        ) from error
    except (TypeError, IndexError, AttributeError, SyntaxError, AssertionError, RuntimeError) as error:
        raise UserError(f"Ultralytics cannot build {model}: {error}") from error
    net.task = task
    return net


def _backbone_of(net: Any, what: str) -> Any:
    """The backbone of ours in a model of Ultralytics."""
    from yolo_lightbackbones import registry
    from yolo_lightbackbones.backbone import Backbone

    found = next((module for module in net.modules() if isinstance(module, Backbone)), None)
    if found is None:
        raise UserError(f"{what} has no backbone of ours, none of {', '.join(registry.families())}.")
    return found


def _load(backbone: Any, weights: str, *, strict: bool) -> Any:
    """Fill the backbone from a file, from published weights by name, or from the backbone of an Ultralytics model."""
    from yolo_lightbackbones.checkpoints import engine, sources
    from yolo_lightbackbones.checkpoints.errors import UltralyticsCheckpointError

    path = Path(weights)
    if not path.exists():
        if path.name != weights or path.suffix in {".pt", ".pth", ".safetensors"}:
            raise UserError(f"There is no weights file {weights}.")
        path = sources.fetch(sources.find_release(weights))
    try:
        report = engine.load_weights(backbone, path, strict=strict)
        for stage in backbone.stages:
            stage.blocks_behind_tap = 0  # a model built from a YAML, as by every training, has the authors' taps
        return report
    except UltralyticsCheckpointError:
        state = _backbone_of(_read_ultralytics_checkpoint(path), str(path)).float().state_dict()
        return engine.load_tensors(backbone, state, source=f"the backbone in {path}", strict=strict)


def _read_ultralytics_checkpoint(path: Path) -> Any:
    """The model in an Ultralytics checkpoint, read with Ultralytics' restricted loader: classes it knows, and ours."""
    from ultralytics.nn.tasks import torch_safe_load

    try:
        checkpoint, _ = torch_safe_load(str(path), safe_only=True)
    except Exception as error:  # its own kinds for its own reasons; the message says which
        raise UserError(f"{path} is an Ultralytics checkpoint that cannot be read safely: {error}") from error
    net = checkpoint.get("ema") or checkpoint.get("model")
    if not hasattr(net, "modules"):
        raise UserError(f"{path} is an Ultralytics checkpoint without a model.")
    return net


def _write_checkpoint(net: Any, output: Path) -> None:
    """Write what Ultralytics' own `save` writes, in float32 so that the weights are exactly those of the file."""
    from datetime import datetime

    import torch
    from ultralytics import __version__ as ultralytics_version

    checkpoint = {
        "epoch": -1,
        "best_fitness": None,
        "model": net,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "train_args": {"task": net.task},
        "date": datetime.now().astimezone().isoformat(),
        "version": ultralytics_version,
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
    }
    # Complete or not there at all: a reader, or an interruption, never meets half a file.
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        torch.save(checkpoint, temporary)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
