"""Scores of predictions against truth: what every accuracy table prints.

Owns the error measures, the size buckets they are published in, and the two baselines that stand
beside them: a plain roofline, and a roofline derated by one fitted factor. Knows nothing of models
or devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .conformal import SIZE_EDGES

__all__ = ["BUCKETS", "LEAST_BUCKET", "buckets", "derating", "score", "score_columns", "score_rows",
           "scored_splits"]  # fmt: skip

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Held = Mapping[str, npt.NDArray[Any]]
BUCKETS = ("<5us", "5-20us", "20-200us", ">200us")
"""Size buckets by predicted time, parted at `conformal.SIZE_EDGES`."""
LEAST_BUCKET = 100
"""Rows under which a bucket is not published: its coverage would scatter by 3 points or more."""


def score(
    truth: F64, predicted: F64, low: F64 | None = None, high: F64 | None = None
) -> dict[str, Any]:
    """Errors of `predicted` against `truth` [rows], as shares (0.03 = 3 %).

    mape and median and p90 of |predicted / truth - 1|, the five worst, bias (median of
    predicted / truth - 1), r2_log (R2 of log time) and, with an interval, the share of truths
    that it holds and its median width high / low.
    """
    ratio = predicted / truth
    error = np.abs(ratio - 1.0)
    log_truth = np.log(truth)
    total = float(((log_truth - log_truth.mean()) ** 2).sum())
    out: dict[str, Any] = {
        "rows": len(truth),
        "mape": float(error.mean()),
        "median": float(np.median(error)),
        "p90": float(np.quantile(error, 0.9)),
        "worst": [round(float(e), 5) for e in np.sort(error)[::-1][:5]],
        "bias": float(np.median(ratio) - 1.0),
        "r2_log": 1.0 - float((np.log(ratio) ** 2).sum()) / total if total > 0 else None,
    }
    if low is not None and high is not None:
        out["coverage"] = float(((truth >= low) & (truth <= high)).mean())
        out["width"] = float(np.median(high / low))
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in out.items()}


def derating(truth: F64, roofline: F64) -> float:
    """Return the one factor c for which c * roofline has the least MAPE against `truth` [rows].

    sum |c r / t - 1| is least at the median of t / r weighted by r / t: the strongest roofline
    that one utilisation factor gives.
    """
    ratio = truth / roofline
    order = np.argsort(ratio)
    weight = np.cumsum(1.0 / ratio[order])
    return float(ratio[order][np.searchsorted(weight, 0.5 * weight[-1])])


def buckets(time: F64) -> Iterator[tuple[str, Mask]]:
    """Name and rows of each size bucket, by predicted time [s]."""
    size = np.searchsorted(SIZE_EDGES, time)
    for index, name in enumerate(BUCKETS):
        yield name, size == index


def score_columns(held: Held) -> dict[str, Any]:
    """Scores of a table with truth_s, time_s and, where it has them, an interval and baselines.

    Columns time_low_s and time_high_s add coverage and width, roofline_s and derated_s the errors
    of those two baselines on the same rows; `buckets` holds the same for each size bucket with at
    least LEAST_BUCKET rows, and its row count for the others.
    """
    out = _with_baselines(held)
    out["buckets"] = {}
    for name, here in buckets(held["time_s"]):
        if here.sum() >= LEAST_BUCKET:
            out["buckets"][name] = _with_baselines({key: v[here] for key, v in held.items()})
        elif here.any():
            out["buckets"][name] = {"rows": int(here.sum())}
    return out


def _with_baselines(held: Held) -> dict[str, Any]:
    out = score(held["truth_s"], held["time_s"], held.get("time_low_s"), held.get("time_high_s"))
    for name in ("roofline", "derated"):
        if f"{name}_s" in held:
            error = np.abs(held[f"{name}_s"] / held["truth_s"] - 1.0)
            out[f"{name}_mape"] = round(float(error.mean()), 5)
            out[f"{name}_median"] = round(float(np.median(error)), 5)
    return out


def scored_splits(held: Held) -> Iterator[tuple[str, Held]]:
    """Name and rows of each split of the held-out table that `fit_time_model` returns.

    `off_grid` counts only rows whose n and k are both new; fewer than five rows are no split.
    """
    for name in ("random", "unseen_shape", "off_grid", "frontier"):
        rows = held["split"] == name
        if name == "off_grid":
            rows &= held["both_new"]
        if rows.sum() >= 5:
            yield name, {key: column[rows] for key, column in held.items()}


def score_rows(held: Held) -> dict[str, Any]:
    """Scores per split of the held-out table that `fit_time_model` returns."""
    return {name: score_columns(part) for name, part in scored_splits(held)}
