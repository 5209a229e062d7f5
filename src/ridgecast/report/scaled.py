"""Numbers of a figure in the unit that suits them: one prefix for a whole axis."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["scaled"]

_UNITS = {"time": "s", "energy": "J", "power": "W", "bytes": "B", "flops_per_s": "flop/s",
          "bytes_per_s": "B/s", "flops": "flop", "energy_delay": "J s"}  # fmt: skip
_PREFIXES = {-4: "p", -3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}


def scaled(
    values: Iterable[float | None] | npt.NDArray[np.float64], dimension: str
) -> tuple[list[float], str]:
    """Values in a prefixed unit that makes the largest 1 to 1000, and that unit.

    None becomes NaN. A dimension without a unit is left as it is.

    >>> scaled([1.5e-5, 3e-6], "time")
    ([15.0, 3.0], 'µs')
    """
    numbers = [math.nan if v is None else float(v) for v in values]
    unit = _UNITS.get(dimension, "")
    most = max((abs(v) for v in numbers if math.isfinite(v)), default=0.0)
    if not unit or most == 0.0:
        return numbers, unit
    step = min(max(math.floor(math.log10(most) / 3.0 + 1e-9), -4), 5)
    factor = 10.0 ** (-3 * step)
    return [float(f"{v * factor:.6g}") for v in numbers], _PREFIXES[step] + unit
