"""What a sweep says: best configuration per size, what it gains, what it saves, what limits it.

Owns conclusions that are computed from measured rows, and the repeat floor under which two
configurations count as equal. Nothing here is predicted and nothing is written by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..hardware import Hardware
from ..predict.sweep_features import Device, column, kernel_cost, tiles_of
from ..predict.sweep_model import point_codes
from ..predict.sweep_parts import codes_of
from ..store.schema import CONFIG_COLUMNS
from ..store.tables import Table, length, numeric, select

__all__ = ["DEFAULT_TILE", "conclude", "config_names", "limits", "ranking", "repeat_floor",
           "shape_codes"]  # fmt: skip

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
DEFAULT_TILE = 16
"""Tile side that a gain is told against: the one of NVIDIA's own example of the kernel."""
_SHAPE = ("kernel", "m", "n", "k", "batch", "dtype", "layout", "cache", "pattern")
_NEAR = 0.5  # share of a ceiling from which on it is named as the limit (assumed)


def repeat_floor(table: Table) -> dict[str, Any]:
    """How far two independent labels of one point differ: |a / b - 1|.

    A label is the median of a point's repeats, so each point's repeats (in the order of the rows)
    are dealt into two halves, and their medians are compared; both halves have half the repeats
    of the label itself, which therefore repeats better than the floor says.
    Keys: points with repeats, pairs (rows compared), mean, median, p90 (shares, null without a
    repeat), single (mean difference of two successive repeats, as measured).
    """
    time, _ = numeric(table, "time_s")
    codes = point_codes(table)
    order = np.argsort(codes, kind="stable")
    parts = np.split(time[order], np.flatnonzero(np.diff(codes[order])) + 1)
    repeated = [part for part in parts if len(part) > 1]
    if not repeated:
        return {"points": 0, "pairs": 0} | dict.fromkeys(("mean", "median", "p90", "single"))
    apart = np.abs([np.median(part[1::2]) / np.median(part[::2]) - 1.0 for part in repeated])
    single = np.concatenate([np.abs(part[1:] / part[:-1] - 1.0) for part in repeated])
    return {
        "points": len(repeated),
        "pairs": len(single),
        "mean": round(float(apart.mean()), 5),
        "median": round(float(np.median(apart)), 5),
        "p90": round(float(np.quantile(apart, 0.9)), 5),
        "single": round(float(single.mean()), 5),
    }


def shape_codes(table: Table) -> I64:
    """Code per row, equal for rows that differ in their configuration alone."""
    return codes_of([table[name] for name in _SHAPE if name in table])


def config_names(table: Table) -> list[str]:
    """Name of each row's configuration: "tile 16", or the columns that vary in the table."""
    rows = length(table)
    present = {name: column(table, name) for name in CONFIG_COLUMNS if name in table}
    if "tile" in present:
        present = {"tile": present["tile"]}
    varying = {k: v for k, v in present.items() if len(np.unique(v[np.isfinite(v)])) > 1}
    shown = varying or dict(list(present.items())[:3])
    return [
        " ".join(f"{k} {v[i]:g}" for k, v in shown.items() if np.isfinite(v[i])) or "library"
        for i in range(rows)
    ]


def limits(table: Table, device: Device, hardware: Hardware | None) -> list[dict[str, Any]]:
    """Name what holds each row back: the nearest ceiling, with the share of it that is reached.

    On a device with a kernel model the model's own limiter is named. Else the shares of the peak
    rate (useful and with the padding of ragged tiles) and of the memory bandwidth tell; where
    none reaches half, the kernel's own instructions and latency are what is left.
    """
    time, _ = numeric(table, "time_s")
    m, n, k, batch = (column(table, name, 1.0) for name in ("m", "n", "k", "batch"))
    flops = 2.0 * batch * m * n * k
    padding = np.ones(len(time))
    for size, tile in zip((m, n, k), tiles_of(table), strict=True):
        padding *= np.where(np.isnan(tile), 1.0, np.ceil(size / tile) * tile / size)
    compute = flops / time / device.rate
    memory = 4.0 * batch * (m * k + k * n + m * n) / time / device.bandwidth
    cost = kernel_cost(table, hardware) if hardware is not None else None
    out: list[dict[str, Any]] = []
    for i in range(len(time)):
        shares = {"compute": float(compute[i]), "memory": float(memory[i])}
        known = {name: v for name, v in shares.items() if np.isfinite(v)}
        nearest = max(known, key=lambda name: known[name])
        limiter = nearest if known[nearest] >= _NEAR else "instructions and latency"
        if cost is not None:
            limiter = str(cost.limiter[i])
        elif limiter != nearest and padding[i] * known[nearest] >= _NEAR:
            limiter = "padding of ragged tiles"
        out.append({
            "limiter": limiter, "compute_share": _number(compute[i]),
            "memory_share": _number(memory[i]), "padding": _number(padding[i]),
        })  # fmt: skip
    return out


def _limits_by_kernel(
    table: Table, device: Device, hardware: Hardware | None
) -> list[dict[str, Any]]:
    """Limits of rows of several kernels, each family by its own model."""
    families = codes_of([table["kernel"]]) if "kernel" in table else np.zeros(length(table), int)
    out: list[dict[str, Any]] = [{} for _ in range(length(table))]
    for family in np.unique(families):
        at = np.flatnonzero(families == family)
        for i, told in zip(at, limits(select(table, at), device, hardware), strict=True):
            out[i] = told
    return out


def _number(value: float, digits: int = 5) -> float | None:
    return round(float(value), digits) if np.isfinite(value) else None


def conclude(
    table: Table,
    floor: Mapping[str, Any],
    device: Device,
    *,
    hardware: Hardware | None = None,
    default_tile: int = DEFAULT_TILE,
    no_power: str = "",
) -> dict[str, Any]:
    """Conclusions of points (one row each) per shape, and over all shapes.

    `floor` is that of `repeat_floor`: a winner within it of the runner-up is a tie. `no_power`
    says why there is no power. Keys: `shapes` (list of dicts), `summary`, `sentences`.
    """
    codes = shape_codes(table)
    names = config_names(table)
    found = _limits_by_kernel(table, device, hardware)
    shapes: list[dict[str, Any]] = []
    for code in np.unique(codes):
        at = np.flatnonzero(codes == code)
        if len(at) >= 2:
            rows = select(table, at)
            labels = [names[i] for i in at]
            shapes.append(_shape(rows, labels, [found[i] for i in at], floor, default_tile))
    shapes.sort(key=lambda s: (s["kernel"], s["flops"]))
    summary = _summary(shapes, no_power)
    return {
        "default_tile": default_tile, "floor": dict(floor), "shapes": shapes, "summary": summary,
        "sentences": _sentences(summary, floor, default_tile),
    }  # fmt: skip


def _shape(
    rows: Table, names: Sequence[str], found: Sequence[Mapping[str, Any]],
    floor: Mapping[str, Any], default_tile: int,
) -> dict[str, Any]:  # fmt: skip
    """Conclusions of one shape's configurations."""
    time, _ = numeric(rows, "time_s")
    order = np.argsort(time, kind="stable")
    best, second, worst = int(order[0]), int(order[1]), int(order[-1])
    margin = float(time[second] / time[best] - 1.0)
    tied = None if floor["mean"] is None else margin <= floor["mean"]
    ties = [
        names[i] for i in order if floor["mean"] and time[i] <= time[best] * (1 + floor["mean"])
    ]
    m, n, k = (int(rows[name][0]) for name in "mnk")
    flops = 2.0 * m * n * k * float(column(rows, "batch", 1.0)[0])
    tile = column(rows, "tile")
    usual = np.flatnonzero(tile == default_tile)
    out: dict[str, Any] = {
        "kernel": str(rows["kernel"][0]) if "kernel" in rows else "", "m": m, "n": n, "k": k,
        "flops": flops, "configs": len(time),
        "best": names[best], "best_tile": _number(tile[best]), "best_time_s": float(time[best]),
        "best_rate_flops_per_s": flops / float(time[best]),
        "runner_up": names[second], "margin": round(margin, 5), "tie": tied,
        "tied_with_best": ties[1:] if ties else [],
        "worst": names[worst], "worst_time_s": float(time[worst]),
        "gain_over_worst": round(float(time[worst] / time[best]), 4),
        "default": f"tile {default_tile}" if len(usual) else None,
        "gain_over_default": (
            round(float(time[usual[0]] / time[best]), 4) if len(usual) else None
        ),
        **found[best],
    }  # fmt: skip
    return out | _power(rows, names, best, int(usual[0]) if len(usual) else None)


def _power(rows: Table, names: Sequence[str], best: int, usual: int | None) -> dict[str, Any]:
    """Power and energy of the fastest, and the configuration that is cheapest in joules."""
    energy, power = column(rows, "energy_j"), column(rows, "power_w")
    known = np.isfinite(energy) & (energy > 0)
    out: dict[str, Any] = {
        "best_power_w": _number(power[best]), "best_energy_j": None, "cheapest": None,
        "cheapest_energy_j": None, "cheapest_time_s": None, "fastest_is_cheapest": None,
        "power_saved_w": None, "energy_saved_share": None,
    }  # fmt: skip
    if known[best]:
        out["best_energy_j"] = float(energy[best])
    if known.sum() >= 2:
        cheap = int(np.flatnonzero(known)[np.argmin(energy[known])])
        time, _ = numeric(rows, "time_s")
        out |= {
            "cheapest": names[cheap], "cheapest_energy_j": float(energy[cheap]),
            "cheapest_time_s": float(time[cheap]),
            "fastest_is_cheapest": bool(cheap == best) if known[best] else None,
        }  # fmt: skip
    if usual is not None and known[usual] and known[best]:
        out["power_saved_w"] = _number(power[usual] - power[best])
        out["energy_saved_share"] = _number(1.0 - energy[best] / energy[usual])
    return out


def _summary(shapes: Sequence[Mapping[str, Any]], no_power: str) -> dict[str, Any]:
    """Count and take medians over the shapes."""
    wins: dict[str, int] = {}
    for shape in shapes:
        wins[shape["best"]] = wins.get(shape["best"], 0) + 1
    ranked = dict(sorted(wins.items(), key=lambda item: -item[1]))
    with_energy = [s for s in shapes if s["fastest_is_cheapest"] is not None]
    saved = [s["energy_saved_share"] for s in shapes if s["energy_saved_share"] is not None]
    watts = [s["power_saved_w"] for s in shapes if s["power_saved_w"] is not None]
    reason = "" if saved else no_power or "no shape has energy of both the fastest and the default"
    return {
        "shapes": len(shapes),
        "wins": ranked,
        "ties": sum(s["tie"] is True for s in shapes),
        "gain_over_worst": _median([s["gain_over_worst"] for s in shapes]),
        "largest_gain_over_worst": max((s["gain_over_worst"] for s in shapes), default=None),
        "gain_over_default": _median([s["gain_over_default"] for s in shapes]),
        "limiters": _counts([s["limiter"] for s in shapes]),
        "energy_shapes": len(with_energy),
        "fastest_is_cheapest": sum(s["fastest_is_cheapest"] for s in with_energy) or (
            0 if with_energy else None
        ),
        "energy_saved_share": _median(saved),
        "power_saved_w": _median(watts),
        "power_reason": reason,
    }  # fmt: skip


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return round(float(np.median(known)), 4) if known else None


def _counts(values: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _sentences(s: Mapping[str, Any], floor: Mapping[str, Any], default_tile: int) -> list[str]:
    """Put the summary into words, every number from it."""
    if not s["shapes"]:
        return ["No shape was measured with two configurations: there is nothing to compare."]
    out: list[str] = []
    name, wins = next(iter(s["wins"].items()))
    text = f"{name} is fastest at {wins} of {s['shapes']} sizes"
    others = [f"{other} at {count}" for other, count in list(s["wins"].items())[1:4]]
    out.append(text + (f" ({', '.join(others)})." if others else "."))
    if floor["mean"] is None:
        out.append("No point was repeated, so it is not known which winners are ties.")
    else:
        told = f"within the repeat floor of {100 * floor['mean']:.1f} %"
        out.append(f"{s['ties']} of {s['shapes']} winners are ties: the runner-up is {told}.")
    gain = f"The best configuration is {s['gain_over_worst']:.3g} times as fast as the worst"
    usual = s["gain_over_default"]
    tail = f" and {usual:.3g} times as fast as tile {default_tile}" if usual is not None else ""
    out.append(f"{gain}{tail} (medians); at most {s['largest_gain_over_worst']:.3g} times.")
    limiter, count = next(iter(s["limiters"].items()))
    out.append(f"What limits the best configuration: {limiter} at {count} of {s['shapes']} sizes.")
    if s["energy_saved_share"] is None:
        out.append(f"Power and energy saved: unknown ({s['power_reason']}).")
    else:
        watts = "" if s["power_saved_w"] is None else f" ({s['power_saved_w']:+.3g} W less)"
        saved = 100 * s["energy_saved_share"]
        out.append(
            f"Against tile {default_tile} the fastest needs {saved:.1f} % less energy{watts} "
            "(medians over the sizes with both)."
        )
    if s["energy_shapes"]:
        share = f"{s['fastest_is_cheapest']} of {s['energy_shapes']}"
        out.append(f"The fastest configuration is also the cheapest in joules at {share} sizes.")
    return out


def ranking(
    table: Table, predicted: F64, *, least: int = 3, within: float = 0.05
) -> dict[str, Any]:
    """How good the configuration is that a model picks: measured time of the pick over the best.

    `table` holds held-out points (one row each) and `predicted` their times [s]. Only shapes with
    `least` measured configurations count. Keys: shapes, within (share of picks that cost at most
    5 % more than the best), mean_loss, worst_loss, and `always`: the one configuration that would
    be best everywhere, with the same figures, as a baseline.
    """
    time, _ = numeric(table, "time_s")
    codes, names = shape_codes(table), np.asarray(config_names(table), dtype=object)
    groups = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    groups = [at for at in groups if len(set(names[at])) >= least]
    groups = [at for at in groups if np.isfinite(predicted[at]).all()]
    if not groups:
        reason = f"no held-out shape has {least} measured configurations"
        return {"shapes": 0, "reason": reason}
    losses = [time[at[np.argmin(predicted[at])]] / time[at].min() - 1.0 for at in groups]
    out: dict[str, Any] = {"shapes": len(groups), **_losses(losses, within)}
    fixed: dict[str, list[float]] = {}
    for at in groups:
        for i in at:
            fixed.setdefault(str(names[i]), []).append(time[i] / time[at].min() - 1.0)
    # a configuration too slow to be measured at the largest sizes is no choice for everything
    complete = {name: v for name, v in fixed.items() if len(v) >= 0.9 * len(groups)}
    if complete:
        name = min(complete, key=lambda key: float(np.mean(complete[key])))
        out["always"] = {"config": name, **_losses(complete[name], within)}
    return out


def _losses(losses: Sequence[float], within: float) -> dict[str, float]:
    values = np.asarray(losses)
    return {
        "within": round(float((values <= within).mean()), 5),
        "mean_loss": round(float(values.mean()), 5),
        "worst_loss": round(float(values.max()), 5),
    }
