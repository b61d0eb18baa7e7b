"""The registry: finds the family and the variant that a name stands for.

A name stands for exactly one thing. Registering a family twice is an error, and so is registering a family that would
give a name a second meaning.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, TypeGuard, TypeVar

from yolo_lightbackbones import backbones
from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.messages import did_you_mean, listed, quoted
from yolo_lightbackbones.options import TAPS, InitMode, InputNormMode, Options, PyramidMode

ENTRY_POINT_GROUP = "yolo_lightbackbones"

_FIRST = ("edgevit", "parcnet", "repvit", "conv2former")
"""Modules of `backbones/` whose families are listed first; those of others follow in the order of their names."""

_families: dict[str, type[Backbone]] = {}
_loaded = False
_lock = threading.RLock()

BackboneT = TypeVar("BackboneT", bound=type[Backbone])


def register_backbone(cls: BackboneT) -> BackboneT:
    """Add a family: its variants become names of `create_backbone`, its class name a module of model YAMLs.

    Use it as a class decorator, or announce the class as an entry point in the group `yolo_lightbackbones`, which makes
    it known to every process without an import.

    Raises:
        TypeError: if `cls` is no `Backbone` with the class attributes `family` and `variants`.
        ValueError: if the family or the class name is taken, if a name would stand for two variants, or if the card
            names variants that the family does not have.
    """
    if not (isinstance(cls, type) and issubclass(cls, Backbone)):
        given = cls.__name__ if isinstance(cls, type) else quoted(cls)
        raise TypeError(f"register_backbone takes a subclass of Backbone, not {given}.")
    for attribute in ("family",) if cls.is_open else ("family", "variants"):
        if not getattr(cls, attribute, None):
            raise TypeError(f"{cls.__name__} needs the class attribute {attribute!r} to be registered.")
    _load_families()
    _add(cls)
    return cls


def families() -> dict[str, type[Backbone]]:
    """All registered families, the built-in ones first: class name, as written in model YAMLs -> class."""
    _load_families()
    return dict(_families)


def block_rows() -> dict[str, type[BlockRow]]:
    """Rows of blocks of all families: name, as written in model YAMLs -> class."""
    return {name: row for cls in families().values() for name, row in cls.block_rows.items()}


def list_backbones(family: str | None = None) -> list[str]:
    """Full names of all variants (`"edgevit_xxs"`), or of one family's (`family="edgevit"`).

    Variants of open families (`timm/resnet18`) are not listed, because another library lists them.

    Raises:
        ValueError: for an unknown family.
    """
    by_family = {cls.family: cls for cls in families().values()}
    if family is not None and family not in by_family:
        hint = did_you_mean(family, by_family)
        raise ValueError(f"Unknown family {quoted(family)}.{hint} Allowed: {', '.join(by_family)}.")
    chosen = by_family.values() if family is None else [by_family[family]]
    return [name for cls in chosen for name in _names(cls)]


def create_backbone(
    name: str,
    *,
    in_channels: int = 3,
    taps: Sequence[str] | None = TAPS,
    drop_path_rate: float | None = None,
    input_norm: InputNormMode = "auto",
    init: InitMode = "published",
    normed_taps: Sequence[str] = (),
    pretrained: bool | str = False,
    imgsz: int | Sequence[int] | None = None,
    pyramid: PyramidMode = "none",
    checkpoint: bool = False,
) -> Backbone:
    """Build a backbone by its full name, with random weights: `create_backbone("edgevit_xxs", taps=("P3", "P5"))`.

    The arguments are those of `Options`.

    Raises:
        ValueError: for an unknown name, with the closest match, and for whatever `Backbone` refuses.
    """
    found = find(name)
    if found is None:
        names = list_backbones()
        meant, variant = recognise(name, families()) or (None, None)
        hint = (
            f" Did you mean '{meant.full_name(variant)}'?" if meant and variant else did_you_mean(_spelt(name), names)
        )
        others = "".join(f", or {cls.full_name(cls.choices())}" for cls in families().values() if cls.is_open)
        raise ValueError(f"Unknown backbone {quoted(name)}.{hint} Allowed: {listed(names, 100)}{others}.")
    cls, variant = found
    further: dict[str, Any] = {"pretrained": pretrained, "imgsz": imgsz, "pyramid": pyramid, "checkpoint": checkpoint}
    return cls(variant, Options(in_channels, taps, drop_path_rate, input_norm, init, normed_taps, **further))


def find(name: str) -> tuple[type[Backbone], str] | None:
    """Find the family and the short name of a variant by its full name; None if that begins with no family's name.

    Raises:
        ValueError: for an unknown variant of a family, with the closest match.
    """
    wanted = _spelt(name)
    for cls in families().values():
        if short := _names(cls).get(wanted):
            return cls, short
    family = family_in(name)
    if family is None or wanted == family.family:
        return None
    return family, family.resolve_variant(name)


def family_in(name: str) -> type[Backbone] | None:
    """The family whose name is at the start of `name`, `repvit` in `repvit_m0_9`; of several, the longest name wins."""
    wanted = _spelt(name)
    begun = [cls for cls in families().values() if wanted == cls.family or wanted.startswith(cls.full_name(""))]
    return max(begun, key=lambda cls: len(cls.family), default=None)


def recognise(name: str, families: Mapping[str, type[Backbone]]) -> tuple[type[Backbone], str | None] | None:
    """Guess the family and the variant that a name from another project stands for; None if it resembles no family.

    `RepViTM0_9` and `RepViT-M0.9` are other spellings, `edgeformer_s` is ParC-Net's former name, and timm puts the
    training after the variant: `repvit_m0_9.dist_450e_in1k`. The variant is None if the name gives only the family.
    """
    words = [word for word in re.split(r"[\W_]+", name[:200].lower()) if word]
    for count in range(len(words), 0, -1):
        start = "".join(words[:count])
        for cls in families.values():
            for called in (cls.family, cls.__name__.lower(), *cls.card.former_names):
                variants = {called.replace("_", "") + variant.replace("_", ""): variant for variant in cls.variants}
                if start in variants:
                    return cls, variants[start]
                if start == called.replace("_", ""):
                    return cls, None
    return None


def built_in() -> list[type[Backbone]]:
    """The families that come with the package: every `Backbone` that a module of `backbones/` gives a `family`."""
    found = sorted(module.name for module in pkgutil.iter_modules(backbones.__path__))
    modules = [
        importlib.import_module(f"{backbones.__name__}.{name}")
        for name in [*_FIRST, *(name for name in found if name not in _FIRST)]
    ]
    return [cls for module in modules for cls in vars(module).values() if _is_family_of(cls, module)]


def _is_family_of(cls: Any, module: ModuleType) -> TypeGuard[type[Backbone]]:
    """Whether `cls` is a family that this module defines, not one that it imports."""
    is_own = isinstance(cls, type) and issubclass(cls, Backbone) and cls.__module__ == module.__name__
    return is_own and "family" in vars(cls)


def _spelt(name: str) -> str:
    """A name in the spelling of the registry: `RepViT_M0.9` -> `repvit_m0_9`."""
    return name.strip().lower().replace(".", "_")


def _names(cls: type[Backbone]) -> dict[str, str]:
    """Full name -> short name of each variant of a family."""
    return {cls.full_name(variant): variant for variant in cls.variants}


def _load_families() -> None:
    """Import the built-in families and the entry points on the first call; later calls do nothing."""
    global _loaded
    if _loaded:
        return
    own = built_in()
    with _lock:
        if _loaded:
            return
        for cls in own:
            _add(cls)
        _loaded = True  # before the entry points: a family may register itself when its module is imported
    # Not under the lock: an import waits for other threads that import the same module, and they may wait for the lock.
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            cls = entry_point.load()
            if cls not in _families.values():
                register_backbone(cls)
        except (Exception, SystemExit) as error:  # somebody else's package must not take the others down with it
            dist = getattr(entry_point, "dist", None)
            package = f" of the package {dist.name} {dist.version}" if dist is not None else ""
            warnings.warn(
                f"Backbone {entry_point.value!r}{package} could not be registered: {error or type(error).__name__}. "
                "All others are there.",
                stacklevel=2,
            )


def _add(cls: type[Backbone]) -> None:
    cls.card.check_variants(cls.variants)
    with _lock:
        for other in _families.values():
            if cls.family == other.family:
                raise ValueError(
                    f"The family {cls.family!r} is registered already, by {other.__module__}.{other.__name__}."
                )
            # A family that derives from another one may have the same rows.
            modules = {**other.block_rows, other.__name__: other}
            if taken := [name for name, row in cls.block_rows.items() if modules.get(name, row) is not row]:
                raise ValueError(f"Rows of {taken[0]} are registered already, by {other.__module__}.{other.__name__}.")
            if cls.__name__ in other.block_rows:
                raise ValueError(
                    f"{cls.__name__} is a row of blocks of {other.__module__}.{other.__name__} already. Rename it."
                )
        if cls.__name__ in _families:
            raise ValueError(f"A backbone class called {cls.__name__} is registered already.")
        _check_meanings(cls)
        _families[cls.__name__] = cls


def _check_meanings(cls: type[Backbone]) -> None:
    """Refuse a family that would give a name a second meaning."""
    taken = {name: meaning for other in _families.values() for name, meaning in _meanings(other)}
    taken |= {short: f"the variant {short!r} of {cls.__name__}" for short in cls.variants if short in _names(cls)}
    for name, meaning in _meanings(cls):
        if name in taken:
            raise ValueError(f"The name {name!r} would stand for {taken[name]} and for {meaning}. Rename the latter.")
        taken[name] = meaning


def _meanings(cls: type[Backbone]) -> Iterator[tuple[str, str]]:
    """Yield every name that a family adds, and what the name stands for."""
    yield cls.family, f"the family of {cls.__name__}"
    for name, variant in _names(cls).items():
        yield name, f"the variant {variant!r} of {cls.__name__}"
    for release in cls.card.releases:
        # A file may have the name of the variant that it is downloaded for.
        if _names(cls).get(release.name) is None or release != cls.card.release_of(_names(cls)[release.name]):
            yield release.name, f"a file of weights on the card of {cls.__name__}"
