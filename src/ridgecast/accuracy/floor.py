"""The label floor: how far two independent collections of the same point differ.

Owns the published floors (floor.toml) and the score against a consensus of collections. Knows no
model.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SpecError, unknown_name

__all__ = ["FLOOR_BUCKETS", "KINDS", "consensus_score", "floor_of", "power_floor"]

F64 = npt.NDArray[np.float64]
FLOOR_BUCKETS = ("<20us", "20-200us", ">200us")
_EDGES = (20e-6, 200e-6)
_OF = {"<5us": "<20us", "5-20us": "<20us"}
KINDS = ("same_framework", "other_framework", "one_vs_rest", "closest_pair")
"""Which collections are compared: the same framework in another version, another framework, one
against the median of all others, and the two that agree best."""


@cache
def _facts() -> Mapping[str, Any]:
    return tomllib.loads((Path(__file__).parent / "floor.toml").read_text(encoding="utf-8"))


def floor_of(
    hardware: str,
    dtype: str,
    bucket: str | Mapping[str, int] = "all",
    *,
    kind: str = "same_framework",
    measure: str = "mean",
) -> float | None:
    """Label floor of GEMM time as a share (0.05 = 5 %); None where nobody measured it.

    `bucket` is a size bucket of the scores or of FLOOR_BUCKETS, "all" (buckets weighted as the
    collections have them) or rows per bucket to weigh by. `measure` is mean, median or p90 of the
    differences; a weighted median or p90 is only an orientation.
    Raises SpecError for an unknown kind, measure or bucket.
    """
    if kind not in KINDS:
        raise SpecError(unknown_name("floor kind", kind, KINDS))
    if measure not in ("mean", "median", "p90"):
        raise SpecError(unknown_name("floor measure", measure, ("mean", "median", "p90")))
    table = _facts()["gemm_time"].get(dtype, {}).get(hardware)
    if table is None:
        return None
    if isinstance(bucket, str):
        name = _OF.get(bucket, bucket)
        if name != "all":
            if name not in FLOOR_BUCKETS:
                raise SpecError(unknown_name("size bucket", bucket, (*FLOOR_BUCKETS, *_OF, "all")))
            return float(table[name][kind][measure])
        weights: dict[str, int] = {name: table[name][kind]["pairs"] for name in FLOOR_BUCKETS}
    else:
        weights = dict.fromkeys(FLOOR_BUCKETS, 0)
        for name, rows in bucket.items():
            weights[_OF.get(name, name)] += rows
    total = sum(weights.values())
    if not total:
        return None
    return sum(w * float(table[name][kind][measure]) for name, w in weights.items()) / total


def power_floor() -> tuple[float, float]:
    """Least and largest median difference of two collections of the same power labels."""
    found = _facts()["power"]["median"]
    return float(found[0]), float(found[1])


def consensus_score(
    truth: F64, predicted: F64, hardware: str, *, dtype: str = "bf16", kind: str = "one_vs_rest"
) -> dict[str, Any]:
    """Error against the consensus median of several collections, divided by the label floor.

    `truth` and `predicted` are times [rows] in seconds. `floor` and `floor_median` weigh the
    buckets as these rows fill them; `error_over_floor` is MAPE over the mean floor and
    `median_over_floor` median over median. Null where the device has no floor.
    """
    error = np.abs(predicted / truth - 1.0)
    size = np.searchsorted(_EDGES, truth)
    counts = {name: int((size == i).sum()) for i, name in enumerate(FLOOR_BUCKETS)}
    out: dict[str, Any] = {
        "rows": len(truth),
        "mape": float(error.mean()),
        "median": float(np.median(error)),
        "floor": floor_of(hardware, dtype, counts, kind=kind),
        "floor_median": floor_of(hardware, dtype, counts, kind=kind, measure="median"),
        "kind": kind,
    }
    for key, over, under in (
        ("error_over_floor", "mape", "floor"), ("median_over_floor", "median", "floor_median"),
    ):  # fmt: skip
        out[key] = out[over] / out[under] if out[under] else None
    return out
