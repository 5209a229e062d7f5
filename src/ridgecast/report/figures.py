"""Figures as pure data: axes, series, panels; JSON-able, drawn by `render` or by anyone else.

Owns the values and nothing of how they look. Numbers are in the unit that the axis names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SpecError

__all__ = ["Axis", "Figure", "Heat", "Panel", "Series"]

SCALES = ("linear", "log", "log2", "category")
Values = Sequence[Any] | npt.NDArray[Any]
STYLES = ("points", "line", "both", "guide", "bars", "stack")
HEAT_SCALES = ("signed", "linear", "log")


def _plain(values: Values) -> list[Any]:
    """Plain Python values; a number that is not finite becomes None."""
    out: list[Any] = []
    for item in values.tolist() if isinstance(values, np.ndarray) else values:
        out.append(None if isinstance(item, float) and not math.isfinite(item) else item)
    return out


@dataclass(frozen=True, slots=True)
class Axis:
    """Label, unit ("" for shares and counts), scale, and the names of a category axis."""

    label: str
    unit: str = ""
    scale: str = "linear"
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise SpecError(f"axis.scale: got {self.scale!r}, allowed: {', '.join(SCALES)}")

    @property
    def text(self) -> str:
        """Label with its unit."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Named x and y of one length, with optional ends of error bars and labels of points.

    `style`: points, line, both, guide (a thin line that is no data), bars (side by side; x are the
    positions of the axis' categories), stack (bars at one place, each from `base` to base + y). A
    missing y is None or NaN. `labels` stand beside their points, `hover` is shown on request.
    `group` colours series of one kind alike and in order, such as sizes.
    """

    name: str
    x: Values
    y: Values
    style: str = "points"
    low: Values = ()
    high: Values = ()
    labels: Sequence[str] = ()
    group: str = ""
    base: Values = ()
    hover: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise SpecError(f"series.style: got {self.style!r}, allowed: {', '.join(STYLES)}")
        sizes = {len(getattr(self, name)) for name in _COLUMNS if len(getattr(self, name))}
        if len(sizes) > 1:
            raise SpecError(f"series {self.name!r}: columns of {sorted(sizes)} values, need one")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        out: dict[str, Any] = {"name": self.name, "style": self.style}
        if self.group:
            out["group"] = self.group
        for name in _COLUMNS:
            values = getattr(self, name)
            if len(values):
                out[name] = _plain(values)
        return out


_COLUMNS = ("x", "y", "low", "high", "labels", "base", "hover")


@dataclass(frozen=True, slots=True)
class Heat:
    """A matrix with named rows and columns, first row on top; a missing value is None or NaN.

    `scale`: signed (from -1 to 1 about 0), linear or log (from least to most). `label` and `unit`
    say what the values are; `mark` is (row, column) of a cell to point out.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Sequence[Sequence[float | None]]
    label: str = ""
    unit: str = ""
    scale: str = "signed"
    mark: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.scale not in HEAT_SCALES:
            raise SpecError(f"heat.scale: got {self.scale!r}, allowed: {', '.join(HEAT_SCALES)}")


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes with its series, or a heat map; `reason` says why there is nothing."""

    title: str
    x: Axis = field(default_factory=lambda: Axis(""))
    y: Axis = field(default_factory=lambda: Axis(""))
    series: tuple[Series, ...] = ()
    heat: Heat | None = None
    reason: str = ""
    horizontal: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        out: dict[str, Any] = {"title": self.title, "reason": self.reason}
        if self.heat is not None:
            values = [_plain(row) for row in self.heat.values]
            heat = self.heat
            return out | {
                "x": {"label": self.x.label, "unit": self.x.unit},
                "y": {"label": self.y.label, "unit": self.y.unit},
                "rows": list(heat.rows), "columns": list(heat.columns), "values": values,
                "label": heat.label, "unit": heat.unit, "scale": heat.scale,
                "mark": None if heat.mark is None else list(heat.mark),
            }  # fmt: skip
        for name, axis in (("x", self.x), ("y", self.y)):
            out[name] = {"label": axis.label, "unit": axis.unit, "scale": axis.scale}
            if axis.categories:
                out[name]["categories"] = list(axis.categories)
        out["horizontal"] = self.horizontal
        return out | {"series": [s.to_dict() for s in self.series]}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure: file name, title, caption and panels side by side.

    `to_dict` is the data that stands beside a report as JSON.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]

    @property
    def reason(self) -> str:
        """Why nothing is shown; "" when at least one panel has data."""
        if any(not panel.reason for panel in self.panels):
            return ""
        return "; ".join(dict.fromkeys(panel.reason for panel in self.panels))

    def _repr_html_(self) -> str:
        """Rich display in a notebook: a picture where matplotlib is there, else its numbers."""
        from ..errors import MissingExtraError
        from ..richtext import block, line, picture, table

        told = (line(self.title, strong=True), line(self.caption))
        try:
            from .render import svg_text

            return block(told[0], picture(svg_text(self), self.title), told[1])
        except MissingExtraError:
            rows = [{"panel": p.title, "series": s.name, p.x.text or "x": x, p.y.text or "y": y}
                    for p in self.panels for s in p.series
                    for x, y in zip(_plain(s.x), _plain(s.y), strict=True)]  # fmt: skip
            return block(told[0], table(rows), told[1])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "schema_version": 1, "name": self.name, "title": self.title, "caption": self.caption,
            "reason": self.reason, "panels": [panel.to_dict() for panel in self.panels],
        }  # fmt: skip
