"""Scores of the power model on held-out labels, and what its card says of the labels.

Owns what power is scored on, and the held-out points kept behind each score. Fits nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..store import Table
from .parity import sample
from .power import LEVELS, Basis, PowerModel, cell_of
from .power_calibrate import (
    PredictedShares,
    energy_misses,
    predicted_energy,
    predicted_power,
    quantiles,
    shares,
)
from .power_rows import FOLDS, FloatArray, Mask, PowerRows

__all__ = ["crossed_scores", "describe", "held_out_scores", "sensor_memory",
           "transferred_scores"]  # fmt: skip

_SETTLED = 0.1  # a label is settled where the one before lies within this log distance of ours
_SCORE_ROWS = 50  # fewer rows give no score
_SCORE_BUCKETS = ((0.0, 20e-6), (20e-6, 200e-6), (200e-6, np.inf))  # s, as the time scores have

Scores = dict[str, dict[str, float]]
Samples = list[dict[str, Any]]


def describe(
    table: Table, burst: Table | None, rows: PowerRows, split: tuple[int, float]
) -> dict[str, Any]:
    """Where the labels come from, how many there are, and what was held out (seed, share)."""
    keep = np.isin(table["hardware"], [h.name for h in rows.hardware])
    counts = {
        f"{h.name}/{name}": {
            "fitted": int((here & rows.usable & (rows.fold >= 0)).sum()),
            "held_out": int((here & rows.usable & (rows.fold < 0)).sum()),
            "too_short": int((here & ~rows.usable).sum()),
        }
        for h, name, here in rows.groups()
    }
    return {
        "kind": "fitted",
        "data": sorted(_texts(table, "collection", keep)),
        "licence": sorted(_texts(table, "licence", keep)),
        "labels": "sensor means over windows of 0.3-1 s; they lag and do not repeat: two "
        "collections of the same points are reported to differ by 27-63 % (median) at equal time",
        "split": f"unseen_shape: {split[1]:.0%} of (n, k) pairs held out of fit and calibration",
        "seed": split[0],
        "counts": counts,
        "burst_data": sorted(_texts(burst or {}, "collection", ...)),
    }


def _texts(table: Table, column: str, keep: Any) -> set[str]:
    if column not in table:
        return set()
    return {str(v) for v in table[column][keep].tolist() if v}


def sensor_memory(rows: PowerRows, devices: Mapping[str, Basis]) -> dict[str, dict[str, float]]:
    """Share of the row before in each label, fitted on top of the basis; and what it explains.

    label = (1 - memory) predicted + memory before, least absolute log error over a grid.
    """
    out: dict[str, dict[str, float]] = {}
    for h, name, here in rows.groups():
        part = rows.take(here)
        share = shares(devices[h.name], part).share
        errors = {
            memory: np.abs(np.log(((1 - memory) * share + memory * part.before) / part.label))
            for memory in np.arange(0.0, 1.0, 0.05).round(2).tolist()
        }
        best = min(errors, key=lambda memory: float(errors[memory].mean()))
        out[f"{h.name}/{name}"] = {
            "memory": best,
            "mean_log_error_without": round(float(errors[0.0].mean()), 4),
            "mean_log_error_with": round(float(errors[best].mean()), 4),
        }
    return out


def _score(label: FloatArray, predicted: FloatArray) -> dict[str, float]:
    error = np.abs(predicted / label - 1.0)
    return {
        "rows": len(label),
        "mape": round(float(error.mean()), 4),
        "median": round(float(np.median(error)), 4),
        "p90": round(float(np.quantile(error, 0.9)), 4),
        "bias": round(float(np.median(predicted / label) - 1.0), 4),
    }


def _buckets(rows: PowerRows) -> Iterator[tuple[str, Mask, Mask]]:
    """Name, rows to score and whole group of each device and format, then by time."""
    for h, name, here in rows.groups():
        group = here & rows.usable
        yield f"{h.name}/{name}", group, group
        for low, high in _SCORE_BUCKETS:
            part = group & (rows.time > low) & (rows.time <= high)
            yield f"{h.name}/{name} {low * 1e6:g}-{high * 1e6:g} us", part, group


def held_out_scores(model: PowerModel, rows: PowerRows, seed: int) -> tuple[Scores, Samples]:
    """Scores on the held-out pairs, by device and format and by time, beside plain baselines.

    Returns held-out points of energy too: at burst times that a time model mispredicts.
    """
    watts = rows.label * rows.board()
    got = predicted_power(model, rows, rows.time)
    burst = predicted_power(model, rows, rows.burst)
    covered, covered_burst = (
        (answer["power_low_w"] <= watts) & (watts <= answer["power_high_w"])
        for answer in (got, burst)
    )
    energy = predicted_energy(model, rows, seed + 1)
    miss = energy_misses(energy)
    settled = np.abs(np.log(rows.before * rows.board() / got["power_w"])) < _SETTLED
    out: Scores = {}
    samples: Samples = []
    for name, bucket, group in _buckets(rows):
        here = bucket & (rows.fold < 0)
        if here.sum() < _SCORE_ROWS:
            continue
        label = rows.label[here]
        median = float(np.median(rows.label[group & (rows.fold >= 0)]))
        calm = here & settled
        width = got["power_high_w"][here] / got["power_low_w"][here]
        score = _score(watts[here], got["power_w"][here]) | {
            "mape_constant_median": _score(label, np.full(len(label), median))["mape"],
            "mape_board_power": _score(label, np.ones(len(label)))["mape"],
            "rows_settled": int(calm.sum()),
            "covered_90": round(float(covered[here].mean()), 4),
            "median_high_over_low": round(float(np.median(width)), 3),
        }
        if calm.any():
            score["mape_settled"] = _score(watts[calm], got["power_w"][calm])["mape"]
        known = here & np.isfinite(miss)
        if known.any():
            score["covered_90_at_burst_time"] = round(float(covered_burst[known].mean()), 4)
            score["energy_covered_90"] = round(float((miss[known] <= 1.0).mean()), 4)
            errors = _score(energy["truth_j"][known], energy["energy_j"][known])
            score |= {f"energy_{key}": value for key, value in errors.items()}
            if bucket is group:
                samples.append(_sample(energy, known, name, "energy", "unseen_shape"))
        out[name] = score
    return out, samples


def crossed_scores(rows: PowerRows, own: PredictedShares) -> tuple[Scores, Samples]:
    """Scores with every (n, k) pair held out once: fit and calibrated on the other folds.

    One split holds few pairs, and labels of a pair err together, so its coverage scatters.
    Returns held-out points of each device and format too.
    """
    known = rows.fold >= 0
    low, high = (np.full(len(rows.label), np.nan) for _ in range(2))
    for _, group, whole in _buckets(rows):
        if group is not whole:
            continue
        for fold in range(FOLDS):
            test = group & (rows.fold == fold)
            others = group & known & (rows.fold != fold)
            if test.any() and others.any():
                table = quantiles(rows, own, others, energy=False)
                low[test], high[test] = _ninety(table, rows.time[test], own.demand[test])
    return _scored(rows, own, (low, high), known, "unseen_shape")


def _ninety(table: FloatArray, time: FloatArray, demand: FloatArray) -> tuple[FloatArray, ...]:
    at = table[:, :, LEVELS.index(0.9)].reshape(-1, 2)[cell_of(time, demand)]
    return np.minimum(at[:, 0], 0.0), np.maximum(at[:, 1], 0.0)


def transferred_scores(
    model: PowerModel, rows: PowerRows, other: PredictedShares
) -> tuple[Scores, Samples]:
    """Scores of each device, predicted from the other devices alone; held-out points of them.

    Their intervals were calibrated on these very devices, all alike: no further one has labels.
    """
    limits = _ninety(model.residuals["transferred"], rows.time, other.demand)
    found, samples = _scored(rows, other, limits, rows.fold < 0, "unseen_device")
    out = {name: score for name, score in found.items() if " " not in name}
    if out:
        mean = float(np.mean([score["covered_90"] for score in out.values()]))
        out["mean over devices and formats"] = {"covered_90": round(mean, 4)}
    return out, samples


def _scored(
    rows: PowerRows, predicted: PredictedShares, limits: tuple[FloatArray, ...], chosen: Mask,
    split: str,
) -> tuple[Scores, Samples]:  # fmt: skip
    """Scores and points of the chosen rows; `limits` are log residuals that the interval holds."""
    low, high = limits
    chosen = chosen & np.isfinite(predicted.share)
    residual = np.log(rows.label / predicted.share)
    covered = (low <= residual) & (residual <= high)
    board = rows.board()
    held = {
        "truth_w": rows.label * board, "power_w": predicted.share * board,
        "power_low_w": predicted.share * np.exp(low) * board,
        "power_high_w": predicted.share * np.exp(high) * board,
    }  # fmt: skip
    out: Scores = {}
    samples: Samples = []
    for name, bucket, group in _buckets(rows):
        here = bucket & chosen
        if here.sum() < _SCORE_ROWS:
            continue
        score = _score(rows.label[here], predicted.share[here])
        out[name] = score | {"covered_90": round(float(covered[here].mean()), 4)}
        if bucket is group:
            samples.append(_sample(held, here, name, "power", split))
    return out, samples


def _sample(
    held: Mapping[str, FloatArray], rows: Mask, name: str, target: str, split: str
) -> dict[str, Any]:
    hardware, _, dtype = name.partition("/")
    part = {key: column[rows] for key, column in held.items()}
    return sample(part, target=target, hardware=hardware, dtype=dtype, split=split)
