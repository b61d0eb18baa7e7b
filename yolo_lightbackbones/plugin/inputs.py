"""What the rows of a model give to a backbone behind them: the image, some of its channels, or feature maps.

`[0, 1, Channels, [3, 6]]` takes channels 3, 4 and 5 of row 0. It becomes a row `Index` of Ultralytics' parser, which
takes the channel number from the YAML, and the built layer is replaced by `Channels` (`parse_model.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from yolo_lightbackbones.bounds import is_whole
from yolo_lightbackbones.messages import flow, quoted
from yolo_lightbackbones.plugin.row import INDEX, Row

CHANNELS = "Channels"

SAME = ("nn.Identity", "Silence")
"""Modules that pass on their input, as a first row, so that later rows can take the image."""


@dataclass(frozen=True)
class Range:
    """The argument of a translated `Channels` row; shown in Ultralytics' table of layers."""

    start: int
    stop: int

    def __repr__(self) -> str:
        return f"channels {self.start} to {self.stop - 1}"


@dataclass(frozen=True)
class Given:
    """What a row gives.

    Args:
        channels: number of channels.
        is_image: whether they are channels of the image, with the image's own values.
    """

    channels: int
    is_image: bool


def check_source(row: Row) -> None:
    """Refuse a row that takes anything but the output of one earlier row, or the image if it is the first.

    Raises:
        ConfigError: with the row, the value and what is allowed.
    """
    if isinstance(row.source, list):
        raise row.error(f"'from' is {flow(row.source)}; {row.module} takes one map: put a row Concat before it.")
    if row.number == 0 and (not is_whole(row.source) or row.source != -1):
        what = f"{row.module} takes" if row.module == CHANNELS else "a backbone takes"
        raise row.error(f"'from' is {quoted(row.source)}; {what} the image: write -1.")
    if not is_whole(row.source) or not -max(row.number, 1) <= row.source < row.number:
        raise row.error(
            f"'from' is {quoted(row.source)}; it must be the number of an earlier row, or -1 for the one before."
        )


class Inputs:
    """What the rows of a model give, as far as it was asked for or is known from the rows.

    Args:
        rows: all rows of the model.
        image_channels: channels of the image.
        count: takes the number of a row and returns its channels, after building the rows up to it; None if nothing can
            be built.
    """

    def __init__(self, rows: Sequence[Row], image_channels: int, count: Callable[[int], int] | None) -> None:
        self._rows = rows
        self._count = count
        self._known = {-1: Given(image_channels, is_image=True)}

    def of(self, row: Row) -> Given:
        """What a row takes, which is checked to be one map.

        Raises:
            ConfigError: for a source that is not an earlier row, and if its channels cannot be found out.
        """
        check_source(row)
        return self._of_row(row.sources[0], row)

    def set_channels(self, number: int, channels: int) -> None:
        """Note that a row gives feature maps of so many channels."""
        self._known[number] = Given(channels, is_image=False)

    def select(self, row: Row) -> list[Any]:
        """Check a row `[from, 1, Channels, [start, stop]]`, and translate it.

        Raises:
            ConfigError: with the row, the value, what is allowed and what to do.
        """
        if not is_whole(row.repeats) or row.repeats != 1:
            raise row.error(f"repeats is {quoted(row.repeats)}; {CHANNELS} cannot be repeated: write 1.")
        given = self.of(row)
        start, stop = row.args if len(row.args) == 2 else (None, None)
        if not is_whole(start) or not is_whole(stop) or not 0 <= start < stop:
            raise row.error(
                f"the arguments are {flow(row.args)}; {CHANNELS} takes the first channel and the one behind the last, "
                "counted from 0: [0, 3] are the first three."
            )
        if stop > given.channels:
            what = "the image" if given.is_image else f"row {row.sources[0]}"
            advice = " Set `channels` in the data YAML, or in the model YAML." if given.is_image else ""
            raise row.error(f"it takes channels {start} to {stop - 1} of {what}, which has {given.channels}.{advice}")
        self._known[row.number] = Given(int(stop - start), given.is_image)
        return [row.source, 1, INDEX, [int(stop - start), Range(int(start), int(stop))]]

    def _of_row(self, number: int, asking: Row) -> Given:
        chain = []
        while number not in self._known and self._passes_on(number):
            chain.append(number)
            number = self._rows[number].sources[0]
        if number not in self._known:
            if self._count is None:
                raise asking.error(f"the channels of row {number} are not known before it is built.")
            try:
                channels = self._count(number)
            except Exception as error:  # from Ultralytics or torch; the parser would stop at it, too
                if type(error).__module__.partition(".")[0] == __name__.partition(".")[0]:
                    raise  # ours, for example of a command that limits what a YAML may build
                raise asking.error(
                    f"row {number} {flow(self._rows[number].module, 80)}, which it takes its input from, cannot be "
                    f"built: {flow(str(error), 300)}"
                ) from error
            self.set_channels(number, channels)
        for passed in chain:
            self._known[passed] = self._known[number]
        return self._known[number]

    def _passes_on(self, number: int) -> bool:
        row = self._rows[number]
        earliest = -max(number, 1)
        return row.module in SAME and is_whole(row.source) and earliest <= row.source < number and row.repeats == 1
