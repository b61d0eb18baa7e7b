"""Finds the model and dataset YAMLs that come with the package."""

from __future__ import annotations

import difflib
import re
from pathlib import Path, PurePath

from yolo_lightbackbones.messages import flow

_PACKAGE = Path(__file__).resolve().parent.parent


def config_dir() -> Path:
    """The folder of our YAMLs: inside an installed package, or at the top of a checkout for an editable install."""
    installed = _PACKAGE / "cfg"
    return installed if installed.is_dir() else _PACKAGE.parent / "cfg"


def find_config(name: str | PurePath) -> Path | None:
    """Find one of our YAMLs by name; None if there is none.

    A bare file name is looked for in all of our folders. A name with folders must be a path of ours from `cfg/` on, so
    that a mistyped path of the user's never gives a file of ours.
    """
    path = PurePath(str(name))
    if path.suffix not in {".yaml", ".yml"} or path.is_absolute():
        return None
    root = config_dir().resolve()
    # Compared with existing files, never joined to the folder: neither `cfg/../../x.yaml` nor links lead out of it.
    ours = sorted(found for found in root.rglob("*") if found.is_file() and not found.is_symlink())
    if path.parts[0] == "cfg" and len(path.parts) > 1:
        return next((found for found in ours if found.relative_to(root).parts == path.parts[1:]), None)
    if len(path.parts) > 1:
        return None
    return next((found for found in ours if found.name == path.name), None)


def explain_missing(name: str | PurePath) -> str | None:
    """Explain why a model or recipe is missing whose name contains a family of ours; None for other names.

    For example, `yolo11n-RepViT.yaml` is misspelt, the neck of `yolo12n_repvit.yaml` does not exist, and of
    `yolo11n_repvit.pt` only the YAML is published.
    """
    path = PurePath(str(name))
    if path.suffix.lower() not in {".yaml", ".yml", ".pt"} or len(path.name) > _LONGEST_NAME:
        return None
    models = sorted(found.name for found in config_dir().glob("*_*.yaml"))
    recipes = sorted(found.name for found in (config_dir() / "recipes").glob("*.yaml"))
    names = models if path.suffix.lower() == ".pt" else [*models, *recipes]
    wanted = _letters(path.stem)
    families = {_letters(PurePath(known).stem.partition("_")[2]) for known in models}
    if not any(family in wanted for family in families):
        return None
    spellings = {_letters(PurePath(one).stem): one for known in names for one in (known, *_scaled_names(known))}
    close = [wanted] if wanted in spellings else difflib.get_close_matches(wanted, spellings, n=3, cutoff=0.7)
    meant = " or ".join(spellings[one] for one in close)
    if path.suffix.lower() == ".pt":
        start = f"take its YAML, {meant}" if meant else f"take one of the YAMLs in {config_dir()}"
        return (
            f"There is no file {flow(str(name))}, and no trained model of that name is published: {start}, and put "
            "published weights of the backbone in with `lightbackbones convert`."
        )
    hint = f" Did you mean {meant}?" if meant else ""
    return f"There is no YAML {flow(str(name))}.{hint} All of ours are in {config_dir()}."


def scaled_name(name: str, letter: str) -> str:
    """The name that asks Ultralytics for a YAML at a scale: `yolov5n_repvit.yaml` for `yolov5_repvit.yaml` and n.

    A name that does not begin like Ultralytics' own, or has a letter there, is not changed: `rtdetr_repvit.yaml`,
    `yolov9t_repvit.yaml`.
    """
    return re.sub(r"^(yolo(?:e-)?v?\d+)(?![a-z\d])", rf"\g<1>{letter}", name)


_LONGEST_NAME = 100


def _scaled_names(name: str) -> list[str]:
    return [scaled_name(name, letter) for letter in "nsmlx"]


def _letters(name: str) -> str:
    """The letters and digits of a name in lower case, to compare spellings: `yolo11n-RepViT` -> `yolo11nrepvit`."""
    return re.sub(r"[\W_]+", "", name.lower())
