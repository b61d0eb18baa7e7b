"""`lightbackbones convert`: converts published weights to a checkpoint that Ultralytics trains from."""

from __future__ import annotations

import dataclasses
import io
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from yolo_lightbackbones.cli import completion, models
from yolo_lightbackbones.cli.common import UserError, check_new_file, errors_for_users, messages, print_json
from yolo_lightbackbones.messages import listed
from yolo_lightbackbones.writing import written_whole


def convert(
    weights: Annotated[
        str,
        typer.Argument(
            help="A .pth, .pt or .safetensors file, an Ultralytics checkpoint with a backbone of ours, or the name of "
            "published weights to download, such as repvit_m0_9 or repvit_m0_9.dist_450e_in1k.",
            autocompletion=completion.published_weights,
        ),
    ],
    *,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="Model YAML, a file or one of ours.", autocompletion=completion.model_yamls),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The checkpoint to write, *.pt.")],
    scale: Annotated[str | None, typer.Option("--scale", "-s", help="Scale letter, if the YAML has scales.")] = None,
    channels: Annotated[int, typer.Option("--channels", min=1, help="Channels of the images to train on.")] = 3,
    partial: Annotated[bool, typer.Option("--partial", help="Load what fits, and say what did not.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite an existing output.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")
    ] = False,
) -> None:
    """Write an Ultralytics checkpoint whose backbone holds pretrained weights.

    Train from it with `yolo train model=init.pt data=...`, or with `pretrained=init.pt` and a model YAML.
    """
    with errors_for_users():
        from yolo_lightbackbones.configs import finding

        _check_output(output, force)
        with models.quiet_ultralytics():
            config = models.read_yaml(model, scale)
            net = models.build(config, model, channels)
            if scale is not None:  # the trainers of World and YOLOE read the file again, and the scale off its name
                file = Path(net.yaml["yaml_file"])
                net.yaml["yaml_file"] = str(file.with_name(finding.scaled_name(file.name, scale)))
            backbone = models.backbone_of(net, model)
            report = _load(backbone, weights, strict=not partial)
            backbone.load_settings({})  # a model built from a YAML, as by every training, has the authors' taps
            report = dataclasses.replace(report, loaded=tuple(k for k in report.loaded if k in backbone.state_dict()))
            _write_checkpoint(net, output)
    if as_json:
        print_json({"file": str(output), "family": backbone.family, **dataclasses.asdict(report)})
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{type(backbone).__name__}: {report}", markup=False)
    if report.missing or report.unexpected:
        for title, keys in (("missing", report.missing), ("unexpected", report.unexpected)):
            console.print(f"{title}: {listed(keys, 50) or 'none'}", markup=False)
    console.print(f"Wrote {output}. Train from it: yolo train model={shlex.quote(str(output))} data=...", markup=False)


def _check_output(output: Path, force: bool) -> None:
    """Refuse, before any work is done, an output that could not be written after it."""
    if output.suffix != ".pt":
        raise UserError(f"The output is {output}; Ultralytics reads checkpoints by their suffix .pt. Name it *.pt.")
    check_new_file(output, force)


def _load(backbone: Any, weights: str, *, strict: bool) -> Any:
    """Fill the backbone from a file, from published weights by name, or from the backbone of an Ultralytics model."""
    from yolo_lightbackbones import fusion
    from yolo_lightbackbones.checkpoints import engine, releases, sources
    from yolo_lightbackbones.checkpoints.errors import UltralyticsCheckpointError
    from yolo_lightbackbones.configs import finding

    path = Path(weights)
    if not path.exists():
        if path.name != weights or path.suffix in {".pt", ".pth", ".safetensors"}:
            raise UserError(finding.explain_missing(weights) or f"There is no weights file {weights}.")
        release = releases.find(weights)
        messages().print(f"{release.name}: {sources.assurance(release)}.", markup=False)
        path = sources.fetch(release)
    try:
        return engine.load_weights(backbone, path, strict=strict)
    except UltralyticsCheckpointError:
        source = models.backbone_of(models.read_checkpoint(path), str(path))
        if fusion.has_folded(source):
            raise UserError(
                f"The backbone in {path} is fused: its weights are products of those in training. Give the checkpoint "
                "from before, the best.pt of the run."
            ) from None
        state = source.float().state_dict()
        return engine.load_tensors(backbone, state, source=f"the backbone in {path}", strict=strict)


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
    content = io.BytesIO()  # not a file: if it cannot be written, torch has errors of its own
    torch.save(checkpoint, content)
    with written_whole(output) as temporary:
        temporary.write_bytes(content.getbuffer())
