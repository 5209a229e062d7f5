"""What recipes share: seconds of operations by physics, sweeps, and words for where.

Ratios between variants of an operation are taken on one rung of the ladder, by physics
(`kernels.operator.analytic_time`): a learned time of one variant over an analytic one of another
would compare two models, not two kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import SpecError
from ...hardware import Hardware, resolve
from ...kernels.bound import Cache
from ...kernels.operator import analytic_time
from ...ops import op_class
from ...ops.base import Op, Work
from ...ops.gemm import Gemm
from ...predict.observe import told
from ...units import format_number

__all__ = ["device", "gemm_work", "reached", "seconds", "span", "time_of", "work_of"]

F64 = npt.NDArray[np.float64]


def device(on: str | Hardware) -> Hardware:
    """Find a device by name; a device stands for itself."""
    return on if isinstance(on, Hardware) else resolve(on)


def work_of(op: str, **fields: Any) -> Work:
    """Work of an operation by its fields; numbers may be arrays that broadcast.

    Raises SpecError for a field that is not allowed anywhere in the sweep.
    """
    cls: type[Op] = op_class(op)
    numbers = {k: v for k, v in fields.items() if not isinstance(v, str | bool)}
    shape = np.broadcast_shapes(*(np.shape(v) for v in numbers.values()))
    if shape == ():
        return _told(op, fields, cls(**fields).work())
    flat = {
        k: np.broadcast_to(np.asarray(v, np.float64), shape).ravel() for k, v in numbers.items()
    }
    words = {k: v for k, v in fields.items() if isinstance(v, str | bool)}
    rows = int(np.prod(shape))
    made, bad, reason = cls.of_columns({**flat, **words}, rows)
    if bad.any():
        raise SpecError(f"{op}: {reason[np.flatnonzero(bad)[0]]}")
    return _told(op, fields, made.work())


def _told(op: str, fields: Mapping[str, Any], work: Work) -> Work:
    told("work", op, fields, work)
    return work


def gemm_work(m: Any, n: Any, k: Any, *, dtype: str = "fp16", out_bytes: float = 2.0) -> Work:
    """Work of a dense product, so that it is timed as the variants are that replace it."""
    one = Gemm(1, 1, 1, dtype=dtype)
    m, n, k = (np.asarray(x, np.float64) for x in (m, n, k))
    unit = one.a_format.compute
    read = one.a_bytes * m * k + one.b_bytes * k * n
    work = Work({unit: 2.0 * m * n * k}, read, out_bytes * m * n)
    return _told("gemm", {"m": m, "n": n, "k": k, "dtype": dtype}, work)


def time_of(work: Work, on: str | Hardware, cache: Cache = "cold") -> F64:
    """Analytic time [s] of work on a device; operands come from memory unless `cache` is hot."""
    found = device(on)
    told("time", work, found)
    return np.asarray(analytic_time(work, found, cache), np.float64)


def seconds(op: str, on: str | Hardware, cache: Cache = "cold", **fields: Any) -> F64:
    """Analytic time [s] of an operation on a device, at each point of the swept fields."""
    return time_of(work_of(op, **fields), on, cache)


def span(values: Any) -> tuple[float, float]:
    """Least and largest of a sweep."""
    array = np.asarray(values, np.float64)
    return float(array.min()), float(array.max())


def reached(values: Any, published: float, places: Any) -> str:
    """Say at which place of a one-dimensional sweep the values come nearest to a published one."""
    array = np.asarray(values, np.float64).ravel()
    best = int(np.argmin(np.abs(array - published)))
    return f"{format_number(array[best])} at {list(places)[best]}"
