"""One row of a model YAML as data, and the error for a mistake in a model YAML.

A row is `[from, repeats, module, args]`. The rows of a model are those of its `backbone`, then those of its `head`,
counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yolo_lightbackbones.messages import flow

TAP = "Tap"
INDEX = "Index"


class ConfigError(ValueError):
    """A mistake in a model YAML. The message says where it is, what was given, what is allowed and what to do."""


class UnknownModuleError(ConfigError, KeyError):
    """An unknown module whose name is close to one of ours; a `KeyError`, as Ultralytics raises."""

    __str__ = ValueError.__str__  # a KeyError would put its message in quotation marks


@dataclass(frozen=True)
class Row:
    """One row of a model YAML, with its number and the file that error messages name."""

    where: str
    number: int
    source: Any
    repeats: Any
    module: Any
    args: list[Any]

    @property
    def sources(self) -> list[int]:
        """Absolute numbers of the rows that this row takes its input from; -1 is the image."""
        sources = self.source if isinstance(self.source, list) else [self.source]
        return [self.number + s if isinstance(s, int) and s < 0 else s for s in sources]

    def error(self, message: str) -> ConfigError:
        row = [self.source, self.repeats, self.module, self.args]
        return ConfigError(f"{self.where}row {self.number} {flow(row)}: {message}")


def parse(config: Mapping[str, Any]) -> list[Row]:
    """Read all rows of a model config, those of the backbone first.

    Raises:
        ConfigError: for a backbone or a head that is not a list, and for an entry in them that is not a row.
    """
    where = where_of(config)
    for part in ("backbone", "head"):
        if not isinstance(config.get(part), list | tuple):
            raise ConfigError(f"{where}{part!r} is {flow(config.get(part))}; it must be a list of rows.")
    rows = []
    for number, row in enumerate([*as_list(config.get("backbone")), *as_list(config.get("head"))]):
        well_formed = isinstance(row, list | tuple) and len(row) == 4
        if not well_formed or not isinstance(row[2], str) or not isinstance(row[3], list):
            raise ConfigError(f"{where}row {number} {flow(row)}: a row is [from, repeats, module, [arguments]].")
        rows.append(Row(where, number, *row))
    return rows


def modules(config: Mapping[str, Any]) -> list[str]:
    """Names of the modules in a model config; entries that are not rows are skipped."""
    rows = [row for part in ("backbone", "head") for row in as_list(config.get(part))]
    return [row[2] for row in rows if isinstance(row, list | tuple) and len(row) > 2 and isinstance(row[2], str)]


def where_of(config: Mapping[str, Any]) -> str:
    """Start of an error message: the file, if the model comes from one."""
    return f"{flow(config['yaml_file'], 400)}, " if config.get("yaml_file") else ""


def as_list(rows: Any) -> list[Any]:
    """Rows of the backbone or head of a model, as a list; empty for a value that is not a list."""
    return list(rows) if isinstance(rows, list | tuple) else []
