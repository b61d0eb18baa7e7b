"""`lightbackbones new`: writes a model YAML for a backbone, a neck, a task and levels."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from yolo_lightbackbones.cli import completion, models
from yolo_lightbackbones.cli.common import UserError, check_new_file, errors_for_users, print_json
from yolo_lightbackbones.messages import listed, quoted
from yolo_lightbackbones.writing import write_text


def new(
    *,
    backbone: Annotated[
        str,
        typer.Option(
            "--backbone",
            "-b",
            help="A variant (repvit_m1_0, timm/resnet18), or a family (repvit) or series of timm's models (convnext): "
            "the scale letter then picks the variant.",
            autocompletion=completion.backbones,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model YAML to write.")],
    neck: Annotated[
        str,
        typer.Option(
            "--neck", "-n", help="A neck of Ultralytics, such as yolo11 or rtdetr.", autocompletion=completion.necks
        ),
    ] = "yolo11",
    task: Annotated[
        str,
        typer.Option(
            "--task",
            "-t",
            help="detect, segment, pose, obb, classify, semantic, depth.",
            autocompletion=completion.tasks,
        ),
    ] = "detect",
    taps: Annotated[
        str | None,
        typer.Option(
            "--taps",
            help="Levels that the neck works on: P2 to P5, and P6, which it makes from P5.",
            show_default="P3,P4,P5",
        ),
    ] = None,
    scale: Annotated[str | None, typer.Option("--scale", "-s", help="Write only this scale letter.")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite an existing output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model YAML with a backbone, a neck of Ultralytics and a head.

    The model is built before anything is written, so the file is known to work.
    """
    with errors_for_users():
        from yolo_lightbackbones.configs import writer

        _check_name(output, neck, task)
        check_new_file(output, force)
        if task == "classify" and taps is not None:
            raise UserError("A classifier works only on P5. Leave --taps out.")
        levels = tuple(level.strip().upper() for level in (taps or "P3,P4,P5").split(",") if level.strip())
        text = writer.write(backbone, neck, levels=levels, task=task, name=output.name, scale=scale)
        with models.quiet_ultralytics():
            letter, parameters, strides = _build(text, output)
        write_text(output, text)
    if as_json:
        print_json({"file": str(output), "scale": letter, "parameters": parameters, "strides": strides})
        return
    console = Console(highlight=False, soft_wrap=True)
    at = f"at scale {letter}: {parameters:,} parameters, strides {', '.join(map(str, strides))}"
    console.print(f"Wrote {output}, {at}. What it costs: lightbackbones info {shlex.quote(str(output))}", markup=False)
    verb = "" if task == "detect" else f"{task} "
    size = f" imgsz={side}" if (side := _image_side(text)) else ""
    console.print(f"Train it: yolo {verb}train model={shlex.quote(str(output))} data=...{size}", markup=False)


def _check_name(output: Path, neck: str, task: str) -> None:
    """Refuse a name under which Ultralytics would not find the file, or would build another class of model."""
    from yolo_lightbackbones.configs.necks import NECKS

    if output.suffix not in {".yaml", ".yml"}:  # in lower case, as Ultralytics needs it
        raise UserError(f"The output is {output}; its suffix must be one of .yaml, .yml.")
    if not output.name.isprintable():
        raise UserError(
            f"The output's name {quoted(output.name)} has characters that cannot be printed. Choose another."
        )
    if re.fullmatch(r"yolov[58][nsmlx]6", output.stem):
        raise UserError(f"Ultralytics reads {output.name} as {output.stem[:-1]}-p6.yaml. Choose another name.")
    if neck not in NECKS:
        return
    part = NECKS[neck].name_part if task != "classify" else ""
    if part not in output.stem:
        raise UserError(
            f"Ultralytics takes a model for {NECKS[neck].title} only if {part!r} is in the name of its file, and the "
            f"output is {output.name}. Name it {neck}_{output.stem}.yaml, for example."
        )
    for other in sorted({known.name_part for known in NECKS.values()} - {"", part}):
        if other in output.stem.lower():
            raise UserError(
                f"Ultralytics takes a file with {other!r} in its name for another class of model than "
                f"{NECKS[neck].title}, and the output is {output.name}. Choose another name."
            )


def _image_side(text: str) -> int | None:
    """The option `imgsz` of the backbone row; None if it takes images of any size."""
    import yaml

    args = yaml.safe_load(text)["backbone"][0][3]
    return args[1].get("imgsz") if len(args) == 2 else None


def _build(text: str, output: Path) -> tuple[str, int, list[int]]:
    """Build the model that the text describes; returns its scale letter, number of parameters and strides."""
    import yaml
    from ultralytics.nn.tasks import guess_model_scale

    from yolo_lightbackbones import plugin
    from yolo_lightbackbones.measure import cost

    plugin.register()  # where autoload is off
    config = yaml.safe_load(text)
    letter = guess_model_scale(output) or next(iter(config["scales"]))
    if letter not in config["scales"]:
        raise UserError(
            f"The name {output.name} asks for scale {letter!r}, and the model has {listed(config['scales'])}. "
            "Rename it, or choose another backbone or --scale."
        )
    config |= {"scale": letter, "yaml_file": str(output)}
    net = models.build(config, str(output), 3)
    return letter, cost.parameter_count(net), [int(stride) for stride in net.stride]
