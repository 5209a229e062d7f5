"""What the learned parts see of library GEMMs: dimensionless numbers from shape and device.

Owns the feature list and its baseline, the physical time of `device_physics` under a device's
constants. Vectorised over shapes for one device; fits nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..dtypes import dtype as find_dtype
from ..hardware import Hardware
from ..kernels.constants import mma_rows
from ..kernels.problem import Problem
from .device_physics import (
    PHYSICAL_NAMES,
    Device,
    Shapes,
    physical_features,
    physical_time,
)

__all__ = ["NAMES", "TREE_ONLY", "Features", "device_of", "gemm_features", "shape_features"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

LAUNCH = 2e-6
"""Seconds that sizes are measured in: one for all devices, so that they stay comparable."""

_SHOWN = ((256, 128), (128, 256), (128, 128), (64, 128), (128, 64), (64, 64), (16, 64))
_ROUND = (16, 32, 64, 128, 256)

SHAPE_NAMES: tuple[str, ...] = (
    "log_m", "log_n", "log_k", "log_flops", "log_bytes", "intensity_over_ridge",
    "all_over_l2", "b_over_l2", "a_over_l2", "out_over_l2",
    "log_mn", "m_over_k", "n_over_k", "m_over_n",
    *(f"{what}_{a}x{b}" for a, b in _SHOWN for what in ("waves", "tail", "last_wave")),
    *(f"waste_{side}{t}" for t in _ROUND for side in "mn"),
    "m_even", "m_by_8", "log_batch",
)  # fmt: skip
NAMES: tuple[str, ...] = (*PHYSICAL_NAMES, *SHAPE_NAMES)
TREE_ONLY: tuple[str, ...] = ("log_split", "tile_m", "tile_n")
"""Columns that jump: trees cut on them, a smooth network is better off without."""


@dataclass(frozen=True, slots=True)
class Features:
    """`values` [rows, len(NAMES)] float32, and the `analytic` time [rows] in seconds."""

    values: F32
    analytic: F64


def device_of(hardware: Hardware, dtype: str) -> Device:
    """Spec values that the physical time needs, for one format.

    Raises UnsupportedError when the device lacks the format.
    """
    compute = find_dtype(find_dtype(dtype).compute)
    return Device(
        hardware.sm_count,
        hardware.clock,
        hardware.rate(compute),
        hardware.memory.bandwidth,
        hardware.l2.capacity,
        hardware.board_power,
        mma_rows(hardware) > 0,
        max(1.0, 16.0 / compute.bits),
    )


def gemm_features(p: Problem, hardware: Hardware, constants: F64) -> Features:
    """Features and physical time of GEMMs (one format) on one device.

    `p` holds float64 arrays [rows], `constants` are the device's, as log of
    `device_physics.CONSTANTS`. Raises UnsupportedError when the device lacks the format.
    """
    device = device_of(hardware, p.dtype)
    shapes = Shapes(p.m, p.n, p.k, 0.5 * (p.a_size + p.b_size), p.batch)
    time, parts = physical_time(shapes, device, constants)
    values = np.empty((len(p.m), len(NAMES)), np.float32)
    physical = len(PHYSICAL_NAMES)
    values[:, :physical] = physical_features(device, time, parts)
    values[:, physical:] = shape_features(p, hardware)
    return Features(values, time)


def shape_features(p: Problem, hardware: Hardware) -> F32:
    """Columns [rows, len(SHAPE_NAMES)] that need no fitted constant."""
    rate, bandwidth = hardware.rate(p.dtype), hardware.memory.bandwidth
    lm, ln, lk, log_batch = (np.log2(x.astype(np.float32)) for x in (p.m, p.n, p.k, p.batch))
    lf, lb = (np.log2(x.astype(np.float32)) for x in (p.flops, p.bytes))
    l2 = np.float32(np.log2(hardware.l2.capacity))
    size = [np.float32(np.log2(x)) for x in (p.a_size, p.b_size, p.out_size)]
    columns: list[F32] = [
        lm, ln, lk,
        lf - np.float32(np.log2(rate * LAUNCH)),
        lb - np.float32(np.log2(bandwidth * LAUNCH)),
        lf - lb - np.float32(np.log2(rate / bandwidth)),
        lb - l2,
        lk + ln + log_batch + size[1] - l2,
        lm + lk + log_batch + size[0] - l2,
        lm + ln + log_batch + size[2] - l2,
        lm + ln, lm - lk, ln - lk, lm - ln,
    ]  # fmt: skip
    sms = np.float32(hardware.sm_count)
    for a, b in _SHOWN:
        w = (p.batch * np.ceil(p.m / a) * np.ceil(p.n / b)).astype(np.float32) / sms
        columns += [np.log2(w), np.log2(np.ceil(w) / w), w - np.floor(w)]
    for t in _ROUND:
        columns += [(np.ceil(x / t) * t / x).astype(np.float32) for x in (p.m, p.n)]
    columns += [(p.m % 2 == 0).astype(np.float32), (p.m % 8 == 0).astype(np.float32), log_batch]
    out = np.empty((len(columns), len(p.m)), np.float32)
    for row, column in zip(out, columns, strict=True):
        row[:] = column
    return out.T
