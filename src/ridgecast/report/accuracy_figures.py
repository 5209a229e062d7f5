"""The figures of the accuracy page: error and coverage by split, parity of held-out points.

Owns which numbers stand in which figure and what their captions say. Draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..accuracy.report import SPLIT_ORDER
from ..predict.parity import Parity, agrees, parity_of
from .figures import Axis, Figure, Panel, Series

__all__ = ["NO_POINTS", "accuracy_figures", "middle", "model_of", "parity_reader", "place",
           "scored"]  # fmt: skip

Row = Mapping[str, Any]
NO_POINTS = "no held-out points kept"
_GROUP = {"time": "dtype", "time_operator": "op"}  # what a colour says, by target; else the device
_BASES = (("derated roofline", "derated_mape"), ("label floor", "floor"))
_GUIDES = (("87 %", 87.0), ("93 %", 93.0))
_AXES = {"s": ("time", "µs", 1e6), "W": ("board power", "W", 1.0), "J": ("energy", "mJ", 1e3)}
_FEW = 8  # models, up to which each has a colour of its own and its points say more
_WITH_BARS = 2  # models, up to which points carry their intervals
_MOST_MODELS = 40  # in one figure of coverage
_MOST_POINTS = 600  # in one panel of parity


def place(split: str) -> int:
    """Order of a split, from the easiest to the hardest."""
    return SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER)


def model_of(row: Row) -> tuple[Any, ...]:
    """Tell models of one target apart; a device's scores without a collection are one."""
    return tuple(row[name] for name in ("target", "op", "hardware", "dtype", "collection"))


def _names(rows: Sequence[Row]) -> dict[tuple[Any, ...], str]:
    """Name of each model for eyes: device and format or operation, then what tells it apart."""
    short: dict[tuple[Any, ...], str] = {}
    for row in rows:
        words = [row["hardware"], row["dtype"] or "", row["op"] or ""]
        short[model_of(row)] = " ".join(w for w in words if w)
    counts: dict[str, int] = {}
    for name in short.values():
        counts[name] = counts.get(name, 0) + 1
    for key, name in short.items():
        if counts[name] > 1:
            parts = str(key[-1] or "transferred").split("/")[1:]
            kept = "/".join(p for p in parts if p != key[2])
            short[key] = f"{name} ({kept or 'transferred'})"
    return short


def scored(rows: Iterable[Row], name: str) -> list[float]:
    """Values of a column in rows that have a score."""
    return [float(r[name]) for r in rows if r["status"] == "ok" and r[name] is not None]


def middle(values: Sequence[float]) -> float | None:
    """Median; None of nothing."""
    return median(values) if values else None


def accuracy_figures(
    target: str, title: str, rows: Sequence[Row], kept: Callable[[Row], Parity | None]
) -> list[Figure]:
    """Figures of one target's scores over all sizes; `kept` reads the points behind a row."""
    found = [_error_by_split(target, title, rows), _coverage(target, title, rows)]
    return [f for f in [*found, _parity(target, title, rows, kept)] if f is not None]


def _grouped(target: str, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what a colour says: each model where they are few, else its format or operation."""
    names = _names(rows)
    few = len(names) <= _FEW
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = names[model_of(row)] if few else str(row[_GROUP.get(target, "hardware")])
        groups.setdefault(name, []).append(row)
    return dict(sorted(groups.items()))


def _error_by_split(target: str, title: str, rows: Sequence[Row]) -> Figure | None:
    """Mean error of every model at its split, beside what it is to be compared with."""
    known = [r for r in rows if r["status"] == "ok" and r["mape"]]
    if not known:
        return None
    splits = sorted({r["split"] for r in known}, key=place)
    names, groups = _names(known), _grouped(target, known)
    series: list[Series] = []
    for i, (group, own) in enumerate(groups.items()):
        offset = 0.6 * ((i + 0.5) / len(groups) - 0.5)
        hover = [f"{names[model_of(r)]}, {r['split']}" for r in own]
        series.append(Series(group, [splits.index(r["split"]) + offset for r in own],
                             [100.0 * r["mape"] for r in own], hover=hover))  # fmt: skip
    told: list[str] = []
    for name, key in _BASES:
        values = [middle(scored([r for r in known if r["split"] == s], key)) for s in splits]
        if any(v is not None for v in values):
            y = [math.nan if v is None else 100.0 * v for v in values]
            series.append(Series(name, range(len(splits)), y, style="both"))
            told.append(name)
    panel = Panel("mean error by split", Axis("split", "", "category", tuple(splits)),
                  Axis("mean error", "%", "log"), tuple(series))  # fmt: skip
    caption = "A point is one model."
    if told:
        caption += f" {' and '.join(told).capitalize()}: the median over the models that have one."
    return Figure(f"error_{target}", f"{title}: mean error by split", caption, (panel,))


def _coverage(target: str, title: str, rows: Sequence[Row]) -> Figure | None:
    """Share of truths that each model's 90 % interval holds, by split."""
    known = [r for r in rows if r["status"] == "ok" and r["coverage"] is not None]
    if not known:
        return None
    names = _names(known)
    far = {key: max(abs(r["coverage"] - 0.9) for r in known if model_of(r) == key)
           for key in names}  # fmt: skip
    shown = sorted(sorted(names, key=lambda k: -far[k])[:_MOST_MODELS], key=lambda k: names[k])
    series: list[Series] = []
    for split in sorted({r["split"] for r in known}, key=place):
        own = [r for r in known if r["split"] == split and model_of(r) in shown]
        if own:
            hover = [f"{names[model_of(r)]}, {split}, {r['rows']} held-out rows" for r in own]
            at = [shown.index(model_of(r)) for r in own]
            series.append(Series(split, [100.0 * r["coverage"] for r in own], at, hover=hover))
    ends = [-0.5, len(shown) - 0.5]
    series += [Series(text, [at, at], ends, style="guide") for text, at in _GUIDES]
    left = len(names) - len(shown)
    caption = "Guides at 87 and 93 %: where a 90 % interval should be. With few held-out rows a "
    caption += "share scatters: hover says how many."
    if left:
        caption += f" The {len(shown)} models farthest from 90 %; {left} nearer ones are left out."
    panel = Panel(
        "by model", Axis("truths inside the 90 % interval", "%"),
        Axis("", "", "category", tuple(names[k] for k in shown)), tuple(series), horizontal=True,
    )  # fmt: skip
    return Figure(f"coverage_{target}", f"{title}: does the 90 % interval hold 90 %?", caption,
                  (panel,))  # fmt: skip


def parity_reader(model: str | Path | None) -> Callable[[Row], Parity | None]:
    """Read the kept points behind a row of the accuracy table of a folder."""

    def read(row: Row) -> Parity | None:
        texts = (str(row[n] or "") for n in ("hardware", "op", "dtype", "collection", "split"))
        return parity_of(row["target"], *texts, model=model)

    return read


def _parity(
    target: str, title: str, rows: Sequence[Row], kept: Callable[[Row], Parity | None]
) -> Figure:
    """Predicted against measured of kept held-out points, a panel for each split."""
    found = [(r, p) for r in rows if r["status"] == "ok" and (p := kept(r)) is not None]
    names = _names([r for r, _ in found])
    panels = [
        _parity_panel(target, split, [(r, p) for r, p in found if r["split"] == split], names)
        for split in sorted({r["split"] for r in rows}, key=place)
    ]
    stands = sum(p.rows for _, p in found)
    points = sum(len(p.measured) for _, p in found)
    caption = NO_POINTS.capitalize() + "."
    if found:
        caption = (
            f"{points:,} points, a sample of {stands:,} held-out rows of {len(found)} of "
            f"{len(rows)} scores, drawn evenly over measured values; the line is where both agree."
        )
        if len(names) <= _WITH_BARS:
            caption += " Bars are the 90 % intervals."
        caption += _recomputed(found, names)
        sources = sorted({f"{_project(p.source)}, {p.licence}" for _, p in found})
        caption += f" Measured by {'; '.join(sources)}."
    return Figure(f"parity_{target}", f"{title}: predicted against measured", caption,
                  tuple(panels))  # fmt: skip


def _project(source: str) -> str:
    """Name of a source without its collection."""
    return source.partition(": ")[0]


def _recomputed(found: Sequence[tuple[Row, Parity]], names: Mapping[tuple[Any, ...], str]) -> str:
    """Name the samples whose rows scored otherwise than the card when they were drawn again."""
    off = [
        f"{names[model_of(r)]} {p.split} {100 * p.mape:.2f} % (card {100 * r['mape']:.2f} %)"
        for r, p in found if not agrees(p.mape, r["mape"])
    ]  # fmt: skip
    return f" Fitted anew, these scored otherwise than their card: {'; '.join(off)}." if off else ""


def _parity_panel(
    target: str, split: str, found: Sequence[tuple[Row, Parity]],
    names: Mapping[tuple[Any, ...], str],
) -> Panel:  # fmt: skip
    if not found:
        return Panel(split, reason=NO_POINTS)
    step = math.ceil(sum(len(p.measured) for _, p in found) / _MOST_POINTS)
    of = {model_of(r): p for r, p in found}
    quantity, unit, factor = _AXES[found[0][1].unit]
    series: list[Series] = []
    for group, rows in _grouped(target, [r for r, _ in found]).items():
        parts = [(names[model_of(r)], of[model_of(r)]) for r in rows]
        x = [v for _, p in parts for v in _scaled(p.measured[::step], factor)]
        y = [v for _, p in parts for v in _scaled(p.predicted[::step], factor)]
        hover = [text for name, p in parts for text in [name] * len(p.measured[::step])]
        ends: dict[str, Any] = {}
        if len(names) <= _WITH_BARS and all(p.low for _, p in parts):
            ends = {end: [v for _, p in parts for v in _scaled(getattr(p, end)[::step], factor)]
                    for end in ("low", "high")}  # fmt: skip
        series.append(Series(group, x, y, hover=hover, **ends))
    every = [v for s in series for v in (*s.x, *s.y)]
    line = [min(every), max(every)]
    series.append(Series("equal", line, line, style="guide"))
    stands = sum(p.rows for _, p in found)
    shown = sum(len(s.x) for s in series[:-1])
    return Panel(
        f"{split}: {shown} of {stands:,} rows", Axis(f"measured {quantity}", unit, "log"),
        Axis(f"predicted {quantity}", unit, "log"), tuple(series),
    )  # fmt: skip


def _scaled(values: Sequence[float], factor: float) -> list[float]:
    return [float(f"{factor * v:.4g}") for v in values]
