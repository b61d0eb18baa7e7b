"""`lightbackbones convert`: converts published weights to a checkpoint that Ultralytics trains from."""

from __future__ import annotations

import dataclasses
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from yolo_lightbackbones.cli import completion, heads, models, targets
from yolo_lightbackbones.cli.common import UserError, check_new_file, errors_for_users, messages, print_json
from yolo_lightbackbones.messages import listed
from yolo_lightbackbones.writing import written_whole


def convert(
    weights: Annotated[
        str,
        typer.Argument(
            help="A .pth, .pt or .safetensors file, an Ultralytics checkpoint, or the name of published weights to "
            "download, such as repvit_m0_9 or repvit_m0_9.dist_450e_in1k. Of a stock checkpoint such as yolo11n.pt, "
            "neck and head are taken.",
            autocompletion=completion.published_weights,
        ),
    ],
    *,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="Model YAML, a file or one of ours.", autocompletion=completion.model_yamls),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The checkpoint to write, *.pt.")],
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            "-b",
            help="Weights of the backbone, a file or a name; of WEIGHTS, neck and head are taken then.",
            autocompletion=completion.published_weights,
        ),
    ] = None,
    row: Annotated[
        list[int] | None,
        typer.Option("--row", min=0, help="Row of the backbone to fill, if the model has several; may be repeated."),
    ] = None,
    scale: Annotated[str | None, typer.Option("--scale", "-s", help="Scale letter, if the YAML has scales.")] = None,
    channels: Annotated[
        int | None, typer.Option("--channels", min=1, help="Channels of the images; default: the YAML's, or 3.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Load what fits, and say what did not.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite an existing output.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")
    ] = False,
) -> None:
    """Write an Ultralytics checkpoint whose backbone, or neck and head, hold pretrained weights.

    Train from it with `yolo train model=init.pt data=...`, or with `pretrained=init.pt` and a model YAML.
    """
    with errors_for_users():
        from yolo_lightbackbones.configs import finding

        _check_output(output, force)
        from yolo_lightbackbones.plugin.correspondence import takes_image

        with models.quiet_ultralytics():
            config = models.read_yaml(model, scale)
            net = models.build(config, model, targets.channels_of(config, model) if channels is None else channels)
            if scale is not None:  # the trainers of World and YOLOE read the file again, and the scale off its name
                file = Path(net.yaml["yaml_file"])
                net.yaml["yaml_file"] = str(file.with_name(finding.scaled_name(file.name, scale)))
            backbones = models.backbones_of(net, model)
            rest = None
            source = _read(weights if backbone is None else backbone)
            if backbone is not None:
                rest = heads.take(net, _read(weights), weights)
            elif not isinstance(source, Path) and not heads.has_backbone(source):
                rest, source = heads.take(net, source, weights), None
            filled: dict[int, Any] = {}
            if source is not None:
                for number, chosen in _chosen(backbones, row, model).items():
                    report = _fill(chosen, source, weights if backbone is None else backbone, strict=not partial)
                    if report.adapted and not takes_image(net, number):
                        raise UserError(_no_image(model, number, chosen, report.adapted[0]))
                    chosen.load_settings({})  # a model built from a YAML, as by every training, has the authors' taps
                    present = chosen.state_dict().keys()
                    loaded = tuple(key for key in report.loaded if key in present)
                    filled[number] = dataclasses.replace(report, loaded=loaded)
            elif row:
                raise UserError(f"{weights} has no backbone of ours, so --row has no meaning. Leave it out.")
            _write_checkpoint(net, output)
    if as_json:
        print_json(_document(output, backbones, filled, rest))
        return
    console = Console(highlight=False, soft_wrap=True)
    for number, report in filled.items():
        where = f" in row {number}" if len(backbones) > 1 else ""
        console.print(f"{type(backbones[number]).__name__}{where}: {report}", markup=False)
        if report.missing or report.unexpected:
            for title, keys in (("missing", report.missing), ("unexpected", report.unexpected)):
                console.print(f"{title}: {listed(keys, 50) or 'none'}", markup=False)
    if rest is not None:
        console.print(str(rest), markup=False)
    console.print(f"Wrote {output}. Train from it: yolo train model={shlex.quote(str(output))} data=...", markup=False)


def _document(
    output: Path, backbones: Mapping[int, Any], filled: Mapping[int, Any], rest: Any | None
) -> dict[str, Any]:
    reports = [
        {"row": number, "family": backbones[number].family, **dataclasses.asdict(report)}
        for number, report in filled.items()
    ]
    first = reports[0] if reports else {}
    return {"file": str(output), **first, "backbones": reports, "neck_and_head": rest and dataclasses.asdict(rest)}


def _check_output(output: Path, force: bool) -> None:
    """Refuse, before any work is done, an output that could not be written after it."""
    if output.suffix != ".pt":
        raise UserError(f"The output is {output}; Ultralytics reads checkpoints by their suffix .pt. Name it *.pt.")
    check_new_file(output, force)


def _chosen(backbones: Mapping[int, Any], rows: Sequence[int] | None, model: str) -> dict[int, Any]:
    """The backbones to fill: the only one, or those in the rows that the user named."""
    if not rows and len(backbones) > 1:
        raise UserError(
            f"{model} has several backbones: {models.listed_backbones(backbones)}. Say which one the weights are for: "
            f"--row {next(iter(backbones))}. Repeat --row to fill more than one."
        )
    if unknown := [row for row in rows or () if row not in backbones]:
        raise UserError(
            f"Row {unknown[0]} of {model} is no backbone of ours. Backbones: {models.listed_backbones(backbones)}."
        )
    return {row: backbones[row] for row in rows or backbones}


def _no_image(model: str, number: int, backbone: Any, key: str) -> str:
    return (
        f"Row {number} of {model}, {type(backbone).__name__}, takes feature maps, not the image, so {key} of weights "
        "for images has no meaning there. Let the backbone take the image, or train it from scratch."
    )


def _read(weights: str) -> Any:
    """Find a file of weights, or fetch published weights by name; of a checkpoint of Ultralytics, return the model."""
    from yolo_lightbackbones.checkpoints import files, releases, sources
    from yolo_lightbackbones.checkpoints.errors import CheckpointError, UltralyticsCheckpointError
    from yolo_lightbackbones.configs import finding

    path = Path(weights)
    if not path.exists():
        if path.name != weights or path.suffix in {".pt", ".pth", ".safetensors"}:
            raise UserError(finding.explain_missing(weights) or f"There is no weights file {weights}.")
        release = releases.find(weights)
        messages().print(f"{release.name}: {sources.assurance(release)}.", markup=False)
        return sources.fetch(release)
    try:
        files.read_tensors(path)
    except UltralyticsCheckpointError:
        return models.read_checkpoint(path)
    except CheckpointError:  # it comes again, with what is around it, when the backbone is filled
        pass
    return path


def _fill(backbone: Any, source: Any, weights: str, *, strict: bool) -> Any:
    """Fill a backbone from a file of weights, or from the backbone of a model of Ultralytics."""
    from yolo_lightbackbones import fusion
    from yolo_lightbackbones.checkpoints import engine

    if isinstance(source, Path):
        return engine.load_weights(backbone, source, strict=strict)
    found = models.backbones_of(source, weights)
    if len(found) > 1:
        raise UserError(
            f"{weights} has several backbones: {models.listed_backbones(found)}. Save the weights of the one that you "
            "mean: torch.save(YOLO(...).model.model[ROW].state_dict(), 'weights.pth')"
        )
    (inside,) = found.values()
    if fusion.has_folded(inside):
        raise UserError(
            f"The backbone in {weights} is fused: its weights are products of those in training. Give the checkpoint "
            "from before, the best.pt of the run."
        )
    return engine.load_tensors(backbone, inside.state_dict(), source=f"the backbone in {weights}", strict=strict)


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
