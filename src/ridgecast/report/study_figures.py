"""The figures of a study, as data: built from a `StudyResult`, drawn by `render`.

Owns which numbers stand in which figure and what their captions say. Draws nothing.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..accuracy.conclusions import config_names, shape_codes
from ..accuracy.study import StudyResult
from ..hardware import Hardware
from ..predict.sweep_features import column, device_of, kernel_cost, tiles_of
from ..store.tables import Table, length, select
from ..units import format_quantity
from .figures import Axis, Figure, Heat, Panel, Series

__all__ = ["study_figures"]

F64 = npt.NDArray[np.float64]
_HONEST = "unseen_shape"
_NAMES = {"original": "original's recipe", "tuned": "tuned forest", "ridgecast": "ridgecast"}
_MOST_SIZES = 8
_MOST_BARS = 12


def study_figures(result: StudyResult, hardware: Hardware | None = None) -> tuple[Figure, ...]:
    """Every figure of a study, in the order in which a report shows them."""
    return (
        _predicted_measured(result),
        _error_by_size(result),
        _error_by_split(result),
        _tile_curves(result),
        _occupancy(result, hardware),
        _roofline(result, hardware),
        _fastest_cheapest(result),
        _importance(result),
        _correlation(result),
    )


# ------------------------------------------------------------------------ how well predicted


def _flops(table: Table) -> F64:
    m, n, k, batch = (column(table, name, 1.0) for name in ("m", "n", "k", "batch"))
    return 2.0 * batch * m * n * k


def _size_bins(work: F64, count: int = 4) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Bin of each row by operations, equally full, and the bins' names."""
    edges = np.unique(np.quantile(work, np.arange(1, count) / count))
    ends = [work.min(), *edges, work.max()]
    names = [
        f"{format_quantity(a, 'flops').removesuffix('flop').strip()} to "
        f"{format_quantity(b, 'flops')}"
        for a, b in pairwise(ends)
    ]
    return np.searchsorted(edges, work, side="left").astype(np.int64), names


def _predicted_measured(result: StudyResult) -> Figure:
    panels: list[Panel] = []
    for model in ("ridgecast", "original"):
        held = result.held.get((_HONEST, model))
        title = _NAMES[model]
        if held is None:
            panels.append(Panel(title, reason="no shape could be held out"))
            continue
        truth, guess = held["time_s"], held["predicted_s"]
        bins, names = _size_bins(_flops(held))
        series = [
            Series(name, truth[bins == i], guess[bins == i], group="size")
            for i, name in enumerate(names)
            if (bins == i).any()
        ]
        ends = [float(min(truth.min(), guess.min())), float(max(truth.max(), guess.max()))]
        series.append(Series("equal", ends, ends, style="guide"))
        x, y = Axis("measured time", "s", "log"), Axis("predicted time", "s", "log")
        panels.append(Panel(title, x, y, tuple(series)))
    caption = (
        "Every point was predicted by a fit that never saw its (n, k) pair (split unseen_shape). "
        "Colours are sizes by operations."
    )
    return Figure("predicted_measured", "Predicted against measured", caption, tuple(panels))


def _error_by_size(result: StudyResult) -> Figure:
    tables = {m: result.held[_HONEST, m] for m in _NAMES if (_HONEST, m) in result.held}
    if not tables:
        return _empty("error_by_size", "Error by size", "no shape could be held out")
    work = _flops(next(iter(tables.values())))
    _, names = _size_bins(work)
    edges = np.unique(np.quantile(work, np.arange(1, 4) / 4))
    series: list[Series] = []
    for model, held in tables.items():
        bins = np.searchsorted(edges, _flops(held), side="left")
        error = 100.0 * np.abs(held["predicted_s"] / held["time_s"] - 1.0)
        parts = [error[bins == i] for i in range(len(names))]
        middle = [float(np.median(p)) if len(p) else np.nan for p in parts]
        high = [float(np.quantile(p, 0.9)) if len(p) else np.nan for p in parts]
        series.append(Series(_NAMES[model], range(len(names)), middle, style="bars", high=high))
    series += _floor_guide(result, len(names))
    panel = Panel(
        "split unseen_shape", Axis("operations", "", "category", tuple(names)),
        Axis("error of time", "%"), tuple(series),
    )  # fmt: skip
    caption = "Bars are median errors, their whiskers reach the 90th percentile."
    return Figure("error_by_size", "Error by size", caption + _floor_text(result), (panel,))


def _error_by_split(result: StudyResult) -> Figure:
    splits = list(dict.fromkeys(s["split"] for s in result.scores))
    series: list[Series] = []
    for model, name in _NAMES.items():
        own = [s for s in result.scores if s["model"] == model and s["target"] == "time"]
        found = {s["split"]: s for s in own if s["status"] == "ok"}
        if found:
            y = [100.0 * found[s]["mape"] if s in found else np.nan for s in splits]
            series.append(Series(name, range(len(splits)), y, style="bars"))
    if not series:
        return _empty("error_by_split", "Error by split", "no split could be scored")
    series += _floor_guide(result, len(splits))
    panel = Panel(
        "all splits", Axis("split", "", "category", tuple(splits)),
        Axis("mean error of time", "%"), tuple(series),
    )  # fmt: skip
    caption = "The same models, the same rows: only what was held out differs."
    return Figure("error_by_split", "Error by split", caption + _floor_text(result), (panel,))


def _floor_guide(result: StudyResult, count: int) -> list[Series]:
    mean = result.floor["mean"]
    if mean is None:
        return []
    return [Series("repeat floor", [-0.5, count - 0.5], [100.0 * mean] * 2, style="guide")]


def _floor_text(result: StudyResult) -> str:
    mean = result.floor["mean"]
    if mean is None:
        return " No point was repeated, so there is no floor."
    return f" The dashed line is how far two labels of one point differ ({100.0 * mean:.1f} %)."


def _importance(result: StudyResult) -> Figure:
    panels: list[Panel] = []
    for model in ("ridgecast", "original"):
        if model not in result.fitted:
            continue
        ranked = sorted(result.fitted[model].importance.items(), key=lambda item: -item[1])
        ranked = [(name, share) for name, share in ranked[:_MOST_BARS] if share > 0]
        names, shares = tuple(n for n, _ in ranked), [100.0 * s for _, s in ranked]
        series = (Series("", range(len(names)), shares, style="bars"),)
        panels.append(
            Panel(_NAMES[model], Axis("share", "%"), Axis("", "", "category", names), series,
                  horizontal=True, reason="" if ranked else "nothing was learned")
        )  # fmt: skip
    caption = (
        "Share of the trees' gain. ridgecast's inputs are what is left to learn after its physical "
        "terms (log of measured over analytic time); the recipe's are raw columns."
    )
    return Figure("feature_importance", "What the models look at", caption, tuple(panels))


_CORRELATED = (
    ("m", "m"), ("n", "n"), ("k", "k"), ("tile", "tile side"), ("operations", "operations"),
    ("bytes", "bytes"), ("intensity", "intensity"), ("time_s", "time"), ("rate", "rate"),
    ("power_w", "power"), ("energy_j", "energy"),
)  # fmt: skip


def _correlation(result: StudyResult) -> Figure:
    points = result.points
    m, n, k = (column(points, name, 1.0) for name in "mnk")
    moved = 4.0 * (m * k + k * n + m * n)
    derived = {"operations": _flops(points), "bytes": moved,
               "intensity": _flops(points) / moved, "rate": points["rate_flops_per_s"],
               "tile": tiles_of(points)[0]}  # fmt: skip
    columns: dict[str, F64] = {}
    for key, name in _CORRELATED:
        values = derived.get(key, column(points, key))
        known = values[np.isfinite(values)]
        if len(known) >= 3 and np.ptp(known) > 0:
            columns[name] = values
    names = tuple(columns)
    values = [[_rank_correlation(columns[a], columns[b]) for b in names] for a in names]
    caption = (
        "Spearman's rank correlation over all points: 1 where two columns rise together, whatever "
        "their scale. Correlation in a sweep is partly its design."
    )
    panel = Panel("rank correlation", heat=Heat(names, names, values))
    return Figure("correlation", "Correlation of inputs and results", caption, (panel,))


def _rank_correlation(a: F64, b: F64) -> float:
    """Spearman's rho: Pearson's correlation of mid-ranks; NaN for fewer than three pairs."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return float("nan")
    ranks = [_mid_ranks(x[both]) for x in (a, b)]
    if min(np.ptp(r) for r in ranks) == 0:
        return float("nan")
    return round(float(np.corrcoef(ranks[0], ranks[1])[0, 1]), 4)


def _mid_ranks(x: F64) -> F64:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2.0)[inverse]


# ------------------------------------------------------------------------- what was measured


def _tiled(points: Table) -> Table:
    """Rows of kernels with one tile side."""
    tile = column(points, "tile")
    return select(points, np.isfinite(tile))


def _shapes_shown(table: Table, least: int = 3) -> list[npt.NDArray[np.int64]]:
    """Rows of the shapes to draw: cubes first, those with most tiles, ordered by operations."""
    codes, work = shape_codes(table), _flops(table)
    groups = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    groups = [at for at in groups if len(at) >= least]
    cube = [len({int(table[s][at[0]]) for s in "mnk"}) == 1 for at in groups]
    order = sorted(
        range(len(groups)), key=lambda i: (not cube[i], -len(groups[i]), -work[groups[i][0]])
    )
    shown = [groups[i] for i in order[:_MOST_SIZES]]
    return sorted(shown, key=lambda at: float(work[at[0]]))


def _shape_name(table: Table, row: int) -> str:
    m, n, k = (int(table[name][row]) for name in "mnk")
    return f"{m}³" if m == n == k else f"{m}×{n}×{k}"


def _tile_curves(result: StudyResult) -> Figure:
    table = _tiled(result.swept)
    groups = _shapes_shown(table) if length(table) else []
    title = "Runtime and power against tile side"
    if not groups:
        return _empty("tile_curves", title, "no shape has three tile sides")
    x = Axis("tile side", "", "log2")
    tile, time, power = column(table, "tile"), column(table, "time_s"), column(table, "power_w")
    curves: list[Series] = []
    watts: list[Series] = []
    for at in groups:
        at = at[np.argsort(tile[at])]  # noqa: PLW2901
        name = _shape_name(table, int(at[0]))
        curves.append(Series(name, tile[at], time[at], style="both", group="size"))
        known = at[np.isfinite(power[at])]
        if len(known) >= 2:
            watts.append(Series(name, tile[known], power[known], style="both", group="size"))
    panels = (
        Panel("runtime", x, Axis("time", "s", "log"), tuple(curves)),
        Panel("power", x, Axis("mean power", "W"), tuple(watts),
              reason="" if watts else result.meta.get("no_power") or "no power was measured"),
    )  # fmt: skip
    caption = "Each line is one size. " + _power_text(panels[1])
    return Figure("tile_curves", title, caption, panels)


def _power_text(panel: Panel) -> str:
    return f"Power is not shown: {panel.reason}." if panel.reason else ""


def _occupancy(result: StudyResult, hardware: Hardware | None) -> Figure:
    title = "Occupancy and shared memory against tile side"
    x = Axis("tile side", "", "log2")
    sides = np.array([1, 2, 4, 8, 16, 32], np.float64)
    memory_axis = Axis("shared memory of a block", "KiB", "log2")
    if hardware is not None and hardware.kind == "gpu":
        rows: Table = {"tile": sides, "kernel": np.full(6, "tiled", dtype=object),
                       **{name: np.full(6, 1024.0) for name in "mnk"}}  # fmt: skip
        cost = kernel_cost(rows, hardware)
        if cost is not None:
            held = Series("occupancy", sides, cost.occupancy, style="both")
            shared = Series("tiles of A and B", sides, cost.shared_bytes / 1024.0, style="both")
            limit = hardware.sm.max_shared_per_block / 1024.0
            guide = Series("most of a block", [1, 32], [limit, limit], style="guide")
            panels = (
                Panel("occupancy", x, Axis("resident warps over the most"), (held,)),
                Panel("shared memory", x, memory_axis, (shared, guide)),
            )
            caption = f"By the CUDA occupancy rules for {hardware.title or hardware.name}, fp32."
            return Figure("occupancy", title, caption, panels)
    table = _tiled(result.swept)
    found = column(table, "shared_bytes") if length(table) else np.empty(0)
    known = np.isfinite(found) & (found > 0) if len(found) else np.zeros(0, bool)
    if not known.any():
        return _empty("occupancy", title, "the rows hold no shared-memory figures")
    tiles, first = np.unique(column(table, "tile")[known], return_index=True)
    series = [Series("tiles of A and B", tiles, found[known][first] / 1024.0, style="both")]
    level1 = result.meta.get("facts", {}).get("l1_core_bytes")
    if level1:
        ends = [float(tiles.min()), float(tiles.max())]
        series.append(Series("level 1 cache", ends, [level1 / 1024.0] * 2, style="guide"))
    reason = "a CPU core holds one block at a time: occupancy is a GPU's"
    panels = (
        Panel("occupancy", reason=reason),
        Panel("buffers of a block", x, Axis("size", "KiB", "log2"), tuple(series)),
    )
    caption = f"Occupancy is not shown: {reason}. The buffers stand in for shared memory."
    return Figure("occupancy", title, caption, panels)


def _roofline(result: StudyResult, hardware: Hardware | None) -> Figure:
    points = result.points
    m, n, k, batch = (column(points, name, 1.0) for name in ("m", "n", "k", "batch"))
    work = _flops(points)
    intensity = work / (4.0 * batch * (m * k + k * n + m * n))
    rate = points["rate_flops_per_s"]
    names = np.asarray(config_names(points), dtype=object)
    order = sorted(set(names.tolist()), key=_natural)
    series = [
        Series(name, intensity[names == name], rate[names == name] / 1e9, group="configuration")
        for name in order[:_MOST_SIZES]
    ]
    dtype = str(points["dtype"][0]) if "dtype" in points else "fp32"
    device = device_of(hardware, dtype, float(rate.max()))
    x = np.array([intensity.min(), intensity.max()])
    if hardware is not None:
        ridge = device.rate / device.bandwidth
        x = np.unique(np.array([*x, ridge]))
        top = np.minimum(device.rate, x * device.bandwidth) / 1e9
        series.append(Series("roofline", x, top, style="guide"))
        caption = "The dashed line is the device's: memory bandwidth, then peak rate."
    else:
        series.append(Series("best measured", x, [device.rate / 1e9] * 2, style="guide"))
        caption = "No ceilings of this device are known; the dashed line is the best measured rate."
    panel = Panel(
        "measured points", Axis("arithmetic intensity", "flop/B", "log"),
        Axis("rate", "Gflop/s", "log"), tuple(series),
    )  # fmt: skip
    return Figure("roofline", "Roofline with measured points", caption, (panel,))


def _natural(name: str) -> tuple[Any, ...]:
    return tuple((0, float(p), "") if p.replace(".", "").isdigit() else (1, 0.0, p)
                 for p in name.split())  # fmt: skip


def _fastest_cheapest(result: StudyResult) -> Figure:
    title = "Fastest against cheapest in joules"
    shapes = [s for s in result.conclusions["shapes"] if s["fastest_is_cheapest"] is not None]
    if not shapes:
        reason = result.meta.get("no_power") or "no shape has the energy of two configurations"
        return _empty("fastest_cheapest", title, reason)
    names = tuple(_label(s) for s in shapes[:_MOST_BARS])
    rows = shapes[:_MOST_BARS]
    slower = [100.0 * (s["cheapest_time_s"] / s["best_time_s"] - 1.0) for s in rows]
    saved = [100.0 * (1.0 - s["cheapest_energy_j"] / s["best_energy_j"]) for s in rows]
    x = Axis("size", "", "category", names)
    panel = Panel(
        "the cheapest configuration against the fastest", x, Axis("difference", "%"),
        (Series("more time", range(len(rows)), slower, style="bars"),
         Series("less energy", range(len(rows)), saved, style="bars")),
    )  # fmt: skip
    caption = "Zero twice: the fastest configuration is the cheapest too."
    return Figure("fastest_cheapest", title, caption, (panel,))


def _label(shape: Any) -> str:
    m, n, k = shape["m"], shape["n"], shape["k"]
    return f"{m}³" if m == n == k else f"{m}×{n}×{k}"


def _empty(name: str, title: str, reason: str) -> Figure:
    return Figure(name, title, "", (Panel(title, reason=reason),))
