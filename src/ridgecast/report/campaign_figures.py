"""Figures of measured rows: what became of the points, times with their spread, rates, power.

Measured numbers are drawn as they are; predictions of the same points stand beside them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..measure.base import BANDWIDTH_KERNELS
from ..store import CONFIG_COLUMNS, Table
from ..units import format_field, format_number
from .campaign_rows import Campaign, column, texts
from .figures import Axis, Figure, Panel, Series
from .scaled import scaled

__all__ = ["against_prediction", "configuration_text", "families", "power_by_size", "rate_by_size",
           "shape_text", "status_figure", "time_by_size"]  # fmt: skip

F64 = npt.NDArray[np.float64]
_MOST_SERIES = 8
_MOST_REASONS = 8  # with a bar of their own
_STATUS = ("ok", "invalid", "failed", "refused")
_OPERATIONS = Axis("operations", "flop", "log")


def shape_text(table: Table, i: int) -> str:
    """Shape of a row for eyes: three sizes, or the bytes of a micro-benchmark's array."""
    if str(table["kernel"][i]) in BANDWIDTH_KERNELS:
        return format_field("m_bytes", float(table["m"][i]))
    return " × ".join(f"{int(table[name][i])}" for name in ("m", "n", "k"))


def configuration_text(table: Table, i: int) -> str:
    """Parameters of a row's kernel for eyes."""
    given = ((name, column(table, name)[i]) for name in CONFIG_COLUMNS if name in table)
    return ", ".join(f"{name} {format_number(float(v))}" for name, v in given if np.isfinite(v))


def families(table: Table) -> dict[str, npt.NDArray[np.int64]]:
    """Rows by kernel and format, the largest families first."""
    names = [f"{k} {d}" for k, d in zip(texts(table, "kernel"), texts(table, "dtype"),
                                        strict=True)]  # fmt: skip
    order = [name for name, _ in Counter(names).most_common()]
    held = np.array(names, dtype=object)
    return {name: np.flatnonzero(held == name) for name in order}


def against_prediction(found: Campaign) -> Figure:
    """Predicted over measured times, with the intervals of the predictions."""
    name, title = "predicted_measured", "Predicted against measured"
    time, guess = found.time, found.prediction()
    low, high = (found.prediction(f"time_{end}_s") for end in ("low", "high"))
    both = np.isfinite(time) & np.isfinite(guess)
    if not both.any():
        told = Counter(texts(found.predicted, "reason")).most_common(1)
        reason = told[0][0] if told and told[0][0] else "no valid time"
        return Figure(
            name, title, "", (Panel(title, reason=f"no prediction: {reason.rstrip('.')}"),)
        )
    shown, unit = _scaled("time", np.where(both, time, np.nan), guess, low, high)
    time, guess, low, high = shown
    series = [
        Series(family, time[at], guess[at], low=low[at], high=high[at], hover=_hover(found, at))
        for family, own in _largest(found)
        if len(at := own[both[own]])
    ]
    ends = [float(min(time[both].min(), guess[both].min())),
            float(max(time[both].max(), guess[both].max()))]  # fmt: skip
    series.append(Series("equal", ends, ends, style="guide"))
    x, y = Axis("measured time", unit, "log"), Axis("predicted time", unit, "log")
    caption = "Bars are the 90 % intervals of the predictions."
    return Figure(name, title, caption, (Panel("time", x, y, tuple(series)),))


def _hover(found: Campaign, at: npt.NDArray[np.int64]) -> list[str]:
    table = found.table
    return [" ".join(filter(None, (shape_text(table, i), configuration_text(table, i))))
            for i in map(int, at)]  # fmt: skip


def rate_by_size(found: Campaign) -> Figure:
    """Achieved rate by operations, and beside it the share of the speed of light."""
    name, title = "rate_by_size", "Achieved rate by size"
    time, work, bound = found.time, found.flops, found.prediction("bound_s")
    known = np.isfinite(time) & np.isfinite(work)
    (rate,), unit = _scaled("flops_per_s", work / time)
    x = _OPERATIONS
    rates: list[Series] = []
    shares: list[Series] = []
    for family, own in _largest(found):
        at = own[known[own]]
        if not len(at):
            continue
        at = at[np.argsort(work[at])]
        rates.append(Series(family, work[at], rate[at], hover=_hover(found, at)))
        lit = at[np.isfinite(bound[at])]
        if len(lit):
            shares.append(Series(family, work[lit], bound[lit] / time[lit],
                                 hover=_hover(found, lit)))  # fmt: skip
    panels = [Panel("rate", x, Axis("rate", unit, "log"), tuple(rates),
                    reason="" if rates else "no product has a valid time")]  # fmt: skip
    if shares:
        panels.append(Panel("of the speed of light", x, Axis("bound over time"), tuple(shares)))
    return Figure(name, title, "Each point is one shape and configuration.", tuple(panels))


def status_figure(found: Campaign) -> Figure:
    """Points by what became of them, and why some are missing; nothing where all are ok."""
    name, title = "status", "What became of the points"
    lost = [(s, r) for s, r in zip(found.status, texts(found.table, "reason"), strict=True)
            if s != "ok"]  # fmt: skip
    if not lost:
        return Figure(name, title, "", (Panel(title, reason="every point was measured"),))
    own = families(found.table)
    status = np.array(found.status, dtype=object)
    series, base = [], np.zeros(len(own))
    for kind in _STATUS:
        counts = np.array([int((status[at] == kind).sum()) for at in own.values()])
        if counts.any():
            series.append(Series(kind, range(len(own)), counts, "stack", base=base, group="status",
                                 hover=[f"{kind}: {n}" for n in counts]))  # fmt: skip
        base = base + counts
    points = Panel("Points by kernel and format", Axis("points"),
                   Axis("", "", "category", tuple(own)), tuple(series),
                   horizontal=True)  # fmt: skip
    reasons = Counter(f"{s}: {r}" if r else s for s, r in lost).most_common(_MOST_REASONS)
    why = Panel("Why", Axis("points"), Axis("", "", "category", tuple(text for text, _ in reasons)),
                (Series("", range(len(reasons)), [n for _, n in reasons], "bars",
                        labels=[str(n) for _, n in reasons]),), horizontal=True)  # fmt: skip
    caption = f"{len(lost):,} of {len(status):,} points are in no other figure."
    return Figure(name, title, caption, (points, why))


def time_by_size(found: Campaign) -> Figure:
    """Measured time of each point with the spread of its samples."""
    panels = []
    micro = np.isin(texts(found.table, "kernel"), BANDWIDTH_KERNELS)
    size = column(found.table, "m")
    for title, x, at in (("products", _OPERATIONS, np.where(micro, np.nan, found.flops)),
                         ("micro-benchmarks", Axis("bytes of an array", "B", "log"),
                          np.where(micro & (size > 0), size, np.nan))):  # fmt: skip
        series, unit = _spread(found, at)
        if series:
            panels.append(Panel(title, x, Axis("measured time", unit, "log"), series))
    caption = "Medians; bars span the samples from 10 to 90 %."
    if not panels:
        panels.append(Panel("Measured time", reason="no point has a valid time"))
    return Figure("time_by_size", "Measured time by size", caption, tuple(panels))


def _spread(found: Campaign, size: F64) -> tuple[tuple[Series, ...], str]:
    """Return times of the largest families over sizes, and their unit."""
    known = np.isfinite(found.time) & np.isfinite(size)
    ends = (column(found.table, name) for name in ("time_p10_s", "time_p90_s"))
    (time, low, high), unit = _scaled("time", np.where(known, found.time, np.nan), *ends)
    low, high = (np.where(np.isfinite(e), e, time) for e in (low, high))
    series = []
    for family, own in _largest(found):
        at = own[known[own]]
        at = at[np.argsort(size[at])]
        if len(at):
            series.append(Series(family, size[at], time[at], low=low[at], high=high[at],
                                 hover=_hover(found, at)))  # fmt: skip
    return tuple(series), unit


def _scaled(dimension: str, first: F64, *others: F64) -> tuple[list[F64], str]:
    """Return columns in the prefixed unit that suits the first, and that unit."""
    known = first[np.isfinite(first) & (first > 0.0)]
    values, unit = scaled(known, dimension)
    factor = 10.0 ** round(math.log10(values[0] / known[0])) if len(known) else 1.0
    return [factor * numbers for numbers in (first, *others)], unit


def power_by_size(found: Campaign) -> Figure:
    """Power of the sustained runs, and energy by operation, where a meter was read."""
    name, title = "power_by_size", "Power and energy"
    power, energy, work = (column(found.table, "power_w"), column(found.table, "energy_j"),
                           found.flops)  # fmt: skip
    sound = np.isfinite(found.time) & (column(found.table, "power_valid", 0.0) > 0)
    power, energy = np.where(sound, power, np.nan), np.where(sound, energy, np.nan)
    panels = []
    for label, unit, values in (("power", "W", power), ("energy by operation", "pJ/flop",
                                                        1e12 * energy / work)):  # fmt: skip
        known = np.isfinite(values) & np.isfinite(work)
        series = [
            Series(family, work[at], values[at], hover=_hover(found, at))
            for family, own in _largest(found)
            if len(at := own[known[own]])
        ]
        panels.append(Panel(label, _OPERATIONS, Axis(label, unit), tuple(series),
                            reason="" if series else "no valid reading of a meter"))  # fmt: skip
    return Figure(name, title, "Valid readings of sustained runs.", tuple(panels))


def _largest(found: Campaign) -> Sequence[tuple[str, npt.NDArray[np.int64]]]:
    return list(families(found.table).items())[:_MOST_SERIES]
