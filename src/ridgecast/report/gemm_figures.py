"""Figures and tables of an explained multiplication and of ranked configurations.

Built from results (`Explanation`, `TuneResult`), whoever asked for them: the pages of the web, the
pictures of the command line. Owns what stands in which figure; computes nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..predict.explain import Explanation
from ..predict.tune import TuneResult
from ..units import format_quantity
from .figures import Axis, Figure, Panel, Series
from .scaled import scaled
from .view import Block, Rows

__all__ = ["UNITS", "devices_blocks", "explanation_tables", "fastest_cheapest_figure",
           "parts_figure", "ranking_figure", "roofline_figure", "what_if_figure"]  # fmt: skip

UNITS = (("time", "s"), ("power", "w"), ("energy", "j"))  # quantity and the suffix of its columns
_MOST_POINTS = 400  # of a ranking in its figure
_RANKED = 12  # configurations with a bar of their own


def roofline_figure(told: Explanation, row: Mapping[str, Any] | None) -> Figure:
    """Roof of each memory level, and the work under it; sharp at the ridge points."""
    p, rows = told.prediction, told.roofline
    at = [r["arithmetic_intensity"] for r in rows] + [r["ridge_point"] for r in rows]
    ends = (min(at) / 8.0, max(at) * 8.0)
    series = []
    for level in rows:
        if level["level"] == "unique bytes" and any(r["level"] == "memory" for r in rows):
            continue  # they cross the same memory
        x = [ends[0], level["ridge_point"], ends[1]]
        under = min(level["arithmetic_intensity"], level["ridge_point"])
        bandwidth = level["attainable_flops_per_s"] / under
        y = [min(v, level["ridge_point"]) * bandwidth / 1e12 for v in x]
        name = f"{level['level']}, {format_quantity(bandwidth, 'bytes_per_s')}"
        series.append(Series(name, x, y, "line"))
    factor = p.time / float(row["time_s"]) if row and row.get("time_s") else 1.0
    rates = [r["achieved_flops_per_s"] * factor / 1e12 for r in rows]
    labels = _apart([(str(r["level"]), r["arithmetic_intensity"]) for r in rows])
    hover = [f"{r['level']}: {100 * r['utilisation']:.1f} % of its roof, "
             f"{format_quantity(r['moved_bytes'], 'bytes')} moved" for r in rows]  # fmt: skip
    work = Series(
        "this work", [r["arithmetic_intensity"] for r in rows], rates, "points",
        labels=labels, hover=hover,
    )  # fmt: skip
    panel = Panel("", Axis("arithmetic intensity", "flop/B", "log"),
                  Axis("rate", "Tflop/s", "log"), (*series, work))  # fmt: skip
    caption = ("A point a memory level: operations per byte that cross it, at the predicted rate. "
               f"Roofs: {p.hardware.title}.")  # fmt: skip
    return Figure("roofline", "Roofline per memory level", caption, (panel,))


def _apart(named: Sequence[tuple[str, float]]) -> list[str]:
    """Labels of points at these places of a log axis, joined where they would overlap."""
    out = [""] * len(named)
    for i, (name, at) in enumerate(named):
        near = next((j for j in range(i) if out[j] and at < 2 * named[j][1] < 4 * at), None)
        if near is None:
            out[i] = name
        else:
            out[near] += f", {name}"
    return out


def parts_figure(told: Explanation) -> Figure:
    """Where the time and the energy go."""
    panels = []
    for title, parts, dimension in (
        ("Time", told.time, "time"), ("Energy", told.energy, "energy"),
    ):  # fmt: skip
        if not parts:
            panels.append(Panel(title, reason="the energy is not known"))
            continue
        values, unit = scaled([p.value for p in parts], dimension)
        names = tuple(p.name.replace("_", " ") for p in parts)
        hover = [f"{100 * p.share:.1f} %: {p.why}" for p in parts]
        bars = Series("", range(len(parts)), values, "bars", hover=hover)
        panels.append(Panel(title, Axis("", unit), Axis("", "", "category", names), (bars,),
                            horizontal=True))  # fmt: skip
    caption = "Parts sum to the prediction; what each means is in the table below."
    return Figure("parts", "Where the time and the joules go", caption, tuple(panels))


def what_if_figure(told: Explanation) -> Figure:
    """Time as it is and with each change, with intervals."""
    p = told.prediction
    good = [r for r in told.what_if if r["time_s"] is not None]
    low, high = p.interval("time")
    times = [p.time, *(r["time_s"] for r in good)]
    values, unit = scaled(times, "time")
    factor = values[0] / p.time
    lows = [v * factor for v in (low, *(r["time_low_s"] for r in good))]
    highs = [v * factor for v in (high, *(r["time_high_s"] for r in good))]
    names = ("as it is", *(str(r["change"]) for r in good))
    bars = Series("", range(len(values)), values, "bars", lows, highs)
    panel = Panel("Time", Axis("time", unit), Axis("", "", "category", names), (bars,),
                  horizontal=True)  # fmt: skip
    return Figure("what_if", "What if", "Each change is predicted again; whiskers are intervals.",
                  (panel,))  # fmt: skip


def devices_blocks(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Compare the same work on several devices."""
    good = [r for r in rows if r["time_s"] is not None]
    panels = []
    for name, unit in (UNITS[0], UNITS[2]):
        known = [r for r in good if r[f"{name}_{unit}"] is not None]
        if not known:
            panels.append(Panel(name, reason=f"{name} is not known on any of them"))
            continue
        middle, shown = scaled([r[f"{name}_{unit}"] for r in known], name)
        factor = middle[0] / known[0][f"{name}_{unit}"]
        low, high = ([r[f"{name}_{end}_{unit}"] * factor for r in known] for end in ("low", "high"))
        names = tuple(r["device"] for r in known)
        bars = Series("", range(len(known)), middle, "bars", low, high)
        panels.append(Panel(name.capitalize(), Axis("", shown), Axis("", "", "category", names),
                            (bars,), horizontal=True))  # fmt: skip
    figure = Figure("devices", "Beside other devices",
                    "Bars are predictions, whiskers their intervals.", tuple(panels))  # fmt: skip
    keys = ("device", "time_s", "time_low_s", "time_high_s", "power_w", "energy_j", "bound_s",
            "limiter", "basis", "status", "reason")  # fmt: skip
    return [figure, Rows("devices", "Beside other devices", rows, keys)]


def explanation_tables(told: Explanation) -> list[Block]:
    """Every number behind the figures, and what would help."""
    nearest = [{**r, "address": _collection(told, r)} for r in told.nearest]
    blocks = [
        Rows("parts", "Parts of the time and the energy", told.rows, group="of"),
        Rows("roofline", "Roofline position", told.roofline),
        Rows("advice", "What would make it better, predicted again", told.advice),
        Rows("nearest", "Nearest measured points", nearest, links={"collection": "address"},
             caption="The collection opens its scores on held-out groups."),
        Rows("kernel", "The analytic kernel behind the parts", [told.kernel], open=False),
    ]  # fmt: skip
    return [b for b in blocks if b.rows]


def _collection(told: Explanation, row: Mapping[str, Any]) -> str:
    p = told.prediction
    dtype = getattr(p.op, "dtype", "")
    return f"/accuracy?hardware={p.hardware.base_name}&dtype={dtype}" if row["collection"] else ""


def ranking_figure(found: TuneResult) -> Figure:
    """Show the times of the best configurations with their intervals."""
    best = found.top(_RANKED)
    values, unit = scaled([r["time_s"] for r in best], "time")
    factor = values[0] / best[0]["time_s"]
    lows, highs = ([r[f"time_{end}_s"] * factor for r in best] for end in ("low", "high"))
    names = tuple(f"{r['rank']}: {_told_apart(r, best)}" for r in best)
    bars = Series("", range(len(best)), values, "bars", lows, highs)
    panel = Panel(f"the best {len(best)} by {found.objective}", Axis("time", unit),
                  Axis("", "", "category", names), (bars,), horizontal=True)  # fmt: skip
    caption = (f"{found.ties} of {len(found)} configurations cannot be told from the best; "
               "whiskers are intervals.")  # fmt: skip
    return Figure("ranking", "Ranking", caption, (panel,))


def _told_apart(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Parameters in which a configuration differs from others of the ranking."""
    from ..store import CONFIG_COLUMNS

    names = [n for n in row if n in CONFIG_COLUMNS and len({r[n] for r in rows}) > 1]
    return ", ".join(f"{n.replace('_', ' ')} {row[n]}" for n in names) or "the only one"


def fastest_cheapest_figure(found: Any) -> Figure:
    """Time against energy of the leading configurations, the fastest and the cheapest named."""
    title = "Fastest against cheapest in joules"
    table = found.table
    time, energy = (np.asarray(table[n], float) for n in ("time_s", "energy_j"))
    good = np.flatnonzero(np.isfinite(time) & np.isfinite(energy))
    if not len(good):
        reason = "the energy of no configuration is known on this device"
        return Figure("fastest_cheapest", title, f"Not shown: {reason}.",
                      (Panel(title, reason=reason),))  # fmt: skip
    fastest, cheapest = good[np.argmin(time[good])], good[np.argmin(energy[good])]
    shown = np.unique(np.concatenate([good[:_MOST_POINTS], [fastest, cheapest]]))
    x, x_unit = scaled(time[shown], "time")
    y, y_unit = scaled(energy[shown], "energy")
    rows = [{k: c[i] for k, c in table.items()} for i in shown]
    hover = [_words(r, found.fixed) for r in rows]
    named = [("fastest", fastest), ("cheapest", cheapest)]
    if fastest == cheapest:
        named = [("fastest and cheapest", fastest)]
    marks = [
        Series(name, [x[int(np.searchsorted(shown, at))]], [y[int(np.searchsorted(shown, at))]],
               labels=[name], hover=[hover[int(np.searchsorted(shown, at))]])
        for name, at in named
    ]  # fmt: skip
    panel = Panel(f"{len(shown)} of {len(found)} configurations", Axis("time", x_unit),
                  Axis("energy", y_unit),
                  (Series("configurations", x, y, hover=hover), *marks))  # fmt: skip
    return Figure("fastest_cheapest", title, "Lower left is better in both.", (panel,))


def _words(row: Mapping[str, Any], fixed: Mapping[str, Any]) -> str:
    from ..store import CONFIG_COLUMNS

    return ", ".join(f"{k} {v}" for k, v in {**row, **fixed}.items() if k in CONFIG_COLUMNS)
