"""Finds the model and dataset YAMLs that come with the package, and the YAMLs of packages that add a family.

Such a package announces its folder of YAMLs as an entry point: `[project.entry-points."yolo_lightbackbones.configs"]`,
`mynet = "mynet_package.cfg"`. The folder is found without an import of the package, so a look-up never imports torch.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import warnings
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path, PurePath

from yolo_lightbackbones.messages import flow, quoted

CONFIG_GROUP = "yolo_lightbackbones.configs"
"""Entry point group in which other packages name their folders of YAMLs."""

_PACKAGE = Path(__file__).resolve().parent.parent


def config_dir() -> Path:
    """The folder of our YAMLs: inside an installed package, or at the top of a checkout for an editable install."""
    installed = _PACKAGE / "cfg"
    return installed if installed.is_dir() else _PACKAGE.parent / "cfg"


def config_dirs() -> list[Path]:
    """Our folder of YAMLs, then those of other packages."""
    return [config_dir(), *other_dirs()]


def other_dirs() -> list[Path]:
    """The folders of YAMLs that other packages announce; one that does not exist is a warning."""
    found = (_announced(entry_point) for entry_point in entry_points(group=CONFIG_GROUP))
    return list(dict.fromkeys(folder for folder in found if folder is not None))


def _announced(entry_point: EntryPoint) -> Path | None:
    """The folder that an entry point names as `package.folder`; the package is located, but not imported."""
    package, *inside = entry_point.value.strip().split(".")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # somebody else's broken package must not take the look-up down
        spec = None
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    folder = next((folder for place in places if (folder := Path(place, *inside).resolve()).is_dir()), None)
    if folder is None:
        warnings.warn(
            f"The folder of YAMLs {quoted(entry_point.value)}, entry point {quoted(entry_point.name)} of the group "
            f"{CONFIG_GROUP}, does not exist; it must be a folder inside an installed package: 'package.folder'.",
            stacklevel=2,
        )
    return folder


def model_yamls() -> list[Path]:
    """All model YAMLs that are found by name: ours, then those of other packages."""
    return [path for folder in config_dirs() for path in sorted(folder.glob("*.yaml"))]


def find_config(name: str | PurePath) -> Path | None:
    """Find one of our YAMLs, or of another package, by name; None if there is none.

    A bare file name is looked for in all of our folders, and then in those of other packages; None if two of them have
    it (`explain_missing` says so). A name with folders must be a path of ours from `cfg/` on, so that a mistyped path
    of the user's never gives a file of ours.
    """
    path = PurePath(str(name))
    if path.suffix not in {".yaml", ".yml"} or path.is_absolute():
        return None
    root = config_dir().resolve()
    # Compared with existing files, never joined to the folder: neither `cfg/../../x.yaml` nor links lead out of it.
    ours = _files(root)
    if path.parts[0] == "cfg" and len(path.parts) > 1:
        return next((found for found in ours if found.relative_to(root).parts == path.parts[1:]), None)
    if len(path.parts) > 1:
        return None
    own = next((found for found in ours if found.name == path.name), None)
    others = _of_others(path.name)
    if own is not None and others:
        warnings.warn(f"{flow(path.name)} is {own}; give its path if you mean {others[0]}.", stacklevel=2)
    return own or (others[0] if len(others) == 1 else None)


def _files(root: Path) -> list[Path]:
    return sorted(found for found in root.rglob("*") if found.is_file() and not found.is_symlink())


def _of_others(name: str) -> list[Path]:
    """The files of other packages with this name, one per folder."""
    files = (next((found for found in _files(folder) if found.name == name), None) for folder in other_dirs())
    return [found for found in files if found is not None]


def explain_missing(name: str | PurePath) -> str | None:
    """Explain why a model or recipe is missing whose name contains a family of ours; None for other names.

    For example, `yolo11n-RepViT.yaml` is misspelt, the neck of `yolo12n_repvit.yaml` does not exist, and of
    `yolo11n_repvit.pt` only the YAML is published. A name that two packages have names no file.
    """
    path = PurePath(str(name))
    if path.suffix.lower() not in {".yaml", ".yml", ".pt"} or len(path.name) > _LONGEST_NAME:
        return None
    if len(path.parts) == 1 and len(both := _of_others(path.name)) > 1:
        return f"Several packages have a YAML {flow(path.name)}: {', '.join(map(str, both))}. Give the path of one."
    models = list(dict.fromkeys(found.name for found in model_yamls() if found.match("*_*.yaml")))
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
    folders = ", ".join(map(str, config_dirs()))
    return f"There is no YAML {flow(str(name))}.{hint} All that are found by name are in {folders}."


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
