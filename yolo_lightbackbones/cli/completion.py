"""Values that the shell offers when the Tab key is pressed; if none of them fits, it offers files.

Names of YAMLs need no import, and timm's names are read from its source files. Names of backbones need the families,
which import torch: this takes a moment.
"""

from __future__ import annotations


def families(incomplete: str) -> list[str]:
    """Families of backbones: `edgevit`."""
    from yolo_lightbackbones import registry

    return _fitting([cls.family for cls in registry.families().values()], incomplete)


TIMM = "timm/"
"""Start of the names of timm's models."""


def timm_names(incomplete: str) -> list[str]:
    """Full names of timm's models, `timm/resnet18`, once `timm/` is there: they are more than a thousand."""
    from yolo_lightbackbones import timm_catalogue

    if not incomplete.startswith(TIMM):
        return _fitting([TIMM], incomplete) if incomplete else []
    return _fitting([f"{TIMM}{name}" for name in timm_catalogue.names_in_sources()], incomplete)


def variants(incomplete: str) -> list[str]:
    """Full names of backbones: `edgevit_xxs`, `timm/resnet18`."""
    if incomplete.startswith(TIMM):
        return timm_names(incomplete)
    from yolo_lightbackbones.registry import list_backbones

    return [*_fitting(list_backbones(), incomplete), *timm_names(incomplete)]


def backbones(incomplete: str) -> list[str]:
    """Families with scale letters, series of timm's models, and variants: `edgevit`, `swin`, `edgevit_xxs`."""
    if incomplete.startswith(TIMM):
        return timm_names(incomplete)
    from yolo_lightbackbones import registry
    from yolo_lightbackbones.configs.timm_series import SERIES

    with_letters = [cls.family for cls in registry.families().values() if cls.card.letters]
    return [*_fitting([*with_letters, *SERIES], incomplete), *variants(incomplete)]


def published_weights(incomplete: str) -> list[str]:
    """Names of weights that can be downloaded: `repvit_m0_9`."""
    from yolo_lightbackbones.checkpoints import releases

    return _fitting(list(releases.by_name()), incomplete)


def model_yamls(incomplete: str) -> list[str]:
    """Model YAMLs found by name, with and without letters: `yolov5_repvit.yaml`, `yolov5n_repvit.yaml`."""
    import yaml

    from yolo_lightbackbones.configs import finding

    names: list[str] = []
    for path in finding.model_yamls():
        try:
            scales = yaml.safe_load(path.read_text(encoding="utf-8")).get("scales") or {}
            names += [path.name, *(finding.scaled_name(path.name, letter) for letter in scales)]
        except (yaml.YAMLError, UnicodeError, AttributeError, TypeError):  # another package's, which is broken
            continue
    return _fitting(list(dict.fromkeys(names)), incomplete)


def targets(incomplete: str) -> list[str]:
    """Names that `info` and `compare` take: `edgevit_xxs`, `yolov5n_repvit.yaml`."""
    yamls = model_yamls(incomplete)
    # If a YAML fits, the names of backbones, and with them the import of torch, are not needed.
    return yamls if incomplete and yamls else [*variants(incomplete), *yamls]


def necks(incomplete: str) -> list[str]:
    """Necks of `new`: `yolo11`."""
    from yolo_lightbackbones.configs.necks import NECKS

    return _fitting(list(NECKS), incomplete)


def tasks(incomplete: str) -> list[str]:
    """Tasks of `new`: `detect`."""
    from yolo_lightbackbones.configs.necks import TASKS

    return _fitting(list(TASKS), incomplete)


def _fitting(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
