"""What another power cap does to time: clocks give way where work wants more than the cap.

With y the demand of the power model (1 is all that a cap leaves above the idle power) under the
usual cap and y' under the other, clocks fall by s = (max(1, y') / max(1, y))**ELASTICITY: a cubic
law of power would give a third, what is measured is less (voltage falls with the clock). Only the
part of the time that follows the clocks is stretched; it and the rest overlap as the root of the
sum of squares,

    time' / time = sqrt(1 + share**2 (s**2 - 1)),  share = min(1, u_f / REACHABLE)

with u_f the utilisation of the rate. Bytes keep their joules: where those of memory and L2 alone
want more than the cap leaves, the time grows by as much. `benchmarks/throttle.py` derives
ELASTICITY. Knows no kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InfeasibleError
from ..hardware import Hardware, origin_of
from .power import MOST_IDLE, PowerModel, utilisations

__all__ = [
    "ELASTICITY", "NOTE", "REACHABLE", "recapped", "stretch", "throttling", "under_another_cap",
]  # fmt: skip

F64 = npt.NDArray[np.float64]
ELASTICITY = (0.2, 0.1, 0.4)
"""Exponent of the clocks in the demand: likely, least, most. Derived: medians of sustained over
short runs of bf16 and nvfp4 GEMMs on H200 and B200 are 0.13 to 0.21, the middle 80 % of bf16 rows
0.0 to 0.37 (AIConfigurator, Apache-2.0)."""
REACHABLE = 0.8
"""Share of the rate that large GEMMs reach: 0.78 to 0.87 of the best bf16 GEMMs of A100, H100, B200
and B300 (S. Bekman, Machine Learning Engineering, table of maximum achievable matmul FLOPS)."""


NOTE = (
    "another power cap: clocks give way by a law that sustained runs of two devices gave (H200, "
    "B200), so intervals are wide where the cap is far from the usual one"
)


def stretch(demand: F64, before: F64, used: F64, elasticity: float) -> F64:
    """Time under a demand over that under the demand before; `used` is u_f [rows]."""
    slower = (np.maximum(demand, 1.0) / np.maximum(before, 1.0)) ** elasticity
    share = np.minimum(used / REACHABLE, 1.0)
    return np.sqrt(1.0 + share**2 * (slower**2 - 1.0))


def recapped(hardware: Hardware) -> Hardware | None:
    """Device of which this one is a copy under another power cap, None of others."""
    reference = origin_of(hardware)
    return None if hardware.board_power == reference.board_power else reference


def under_another_cap(
    model: PowerModel, hardware: Hardware, cap: float, dtype: str, work: Sequence[Any], time: F64
) -> F64:
    """Likely time [s] on a device, of times that it would take under a cap of `cap` W.

    `work` is (operations, memory bytes, L2 bytes) [rows]. Raises UnsupportedError for a format that
    the device lacks.
    """
    new = model.basis_of(hardware)
    old = new.capped(cap / hardware.board_power)
    used = utilisations(hardware, dtype, work, time)
    now, before = (basis.demand(used, basis.coefficient(dtype)) for basis in (new, old))
    return time * stretch(now, before, used[0], ELASTICITY[0])


def throttling(
    model: PowerModel, hardware: Hardware, dtype: str, work: Sequence[Any], time: F64
) -> F64:
    """Factors [likely, low, high; rows] on the time [s] that work takes under the usual cap.

    `work` is (operations, memory bytes, L2 bytes) [rows]. All 1 where no cap was changed.
    Raises UnsupportedError for a format that the device lacks, InfeasibleError for a cap below what
    the device draws whatever it does.
    """
    out = np.ones((3, len(time)))
    reference = recapped(hardware)
    if reference is None:
        return out
    old, new = model.basis_of(reference), model.basis_of(hardware)
    if new.idle >= MOST_IDLE * new.ceiling:
        raise InfeasibleError(
            f"board_power: {hardware.board_power:.4g} W cannot be held: {hardware.base_name} draws "
            "about as much when it does next to nothing; give more"
        )
    used = utilisations(hardware, dtype, work, time)
    now, before = (basis.demand(used, basis.coefficient(dtype)) for basis in (new, old))
    found = np.array([stretch(now, before, used[0], e) for e in ELASTICITY])
    # bytes keep their joules: more of them a second than the cap pays for cannot be moved
    moving, moved = (b.memory * used[1] + b.l2 * used[2] for b in (new, old))
    paid = np.maximum(moving, 1.0) / np.maximum(moved, 1.0)
    # nobody measured what a cap does to work that hardly computes: at most as if all followed
    whole = stretch(now, before, np.ones(len(time)), max(ELASTICITY))
    out[1] = found.min(axis=0)
    out[0] = np.maximum(found[0], np.where(paid > 1.0, paid, 0.0))
    out[2] = np.maximum(found.max(axis=0), np.where(now > before, np.maximum(whole, paid), 1.0))
    return out
