"""Power labels made ready to fit: shares of the board power, utilisations, folds of whole shapes.

Owns which rows of a measured table teach power, and which (n, k) pairs are held out together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError, SpecError, UnsupportedError
from ..hardware import Hardware, get
from ..store import Table, length, make_split, require_columns, select
from .power import gemm_work

__all__ = ["FOLDS", "FloatArray", "Mask", "PowerRows", "power_rows", "shape_folds", "shape_pairs"]

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
FOLDS = 5


@dataclass(frozen=True, slots=True)
class PowerRows:
    """Labels of one or more devices, in the order in which they were taken; columns [rows]."""

    hardware: tuple[Hardware, ...]
    device: npt.NDArray[np.intp]  # which of `hardware`
    dtype: npt.NDArray[Any]
    work: FloatArray  # [rows, 3] operations over rate, bytes over bandwidth, bytes over L2's: s
    label: FloatArray  # power / board power
    before: FloatArray  # the label before it in the same collection
    time: FloatArray
    burst: FloatArray  # time of the same point in a short run; the same where not known
    usable: Mask
    pair: npt.NDArray[np.intp]  # which (n, k)
    fold: npt.NDArray[np.intp]  # of the pair; -1 is held out

    def take(self, rows: npt.NDArray[Any]) -> PowerRows:
        """Return the rows of a mask or of indices."""
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self)[1:]}
        return replace(self, **columns)

    def groups(self) -> Iterator[tuple[Hardware, str, Mask]]:
        """Device, format and rows of each pair that has any."""
        for i, h in enumerate(self.hardware):
            own = self.device == i
            for name in sorted(set(self.dtype[own].tolist())):
                yield h, name, own & (self.dtype == name)

    def board(self) -> FloatArray:
        """Board power [W] of each row's device."""
        return np.array([h.board_power for h in self.hardware])[self.device]


def power_rows(table: Table, burst: Table | None, seed: int, holdout: float) -> PowerRows:
    """Rows of a measured table that tell of power, as `power_fit.fit_power` wants them.

    Raises SpecError for a missing column, NoDataError when no row has a usable power.
    """
    need = ("hardware", "dtype", "m", "n", "k", "time_s", "power_w", "power_valid")
    require_columns(table, need, what="power")
    before = _before(table)
    with np.errstate(invalid="ignore"):
        keep = (table["power_w"] > 0) & (table["time_s"] > 0)
    rated = np.zeros(length(table), dtype=bool)
    hardware: dict[str, Hardware] = {}
    scale = np.full((length(table), 3), np.nan)
    for name, fmt in sorted(set(zip(table["hardware"].tolist(), table["dtype"].tolist()))):  # noqa: B905
        here = (table["hardware"] == name) & (table["dtype"] == fmt)
        try:
            h = get(name)
            rate = h.rate(fmt)
        except (SpecError, UnsupportedError):
            continue
        if not (here & keep & table["power_valid"]).any():
            continue
        hardware[name] = h
        rated |= here
        scale[here] = rate, h.memory.bandwidth, h.l2.bandwidth
    keep &= rated
    if not (keep & table["power_valid"]).any():
        raise NoDataError("power: no row with a usable power_w (power_valid) on a known device")
    before, scale, table = before[keep], scale[keep], select(table, keep)
    flops, unique = gemm_work(table)
    work = [flops, table.get("memory_bytes", unique), table.get("l2_bytes", np.zeros(len(flops)))]
    names = list(hardware)
    device = np.array([names.index(h) for h in table["hardware"].tolist()], dtype=np.intp)
    board = np.array([h.board_power for h in hardware.values()])[device]
    time = table["time_s"].astype(np.float64)
    pair = shape_pairs(table)
    return PowerRows(
        hardware=tuple(hardware.values()),
        device=device,
        dtype=table["dtype"],
        work=np.stack(work, axis=1) / scale,
        label=table["power_w"] / board,
        before=before / board,
        time=time,
        burst=time if burst is None else _match(table, burst),
        usable=table["power_valid"].astype(bool),
        pair=pair,
        fold=shape_folds(table, pair, seed, holdout),
    )


def _before(table: Table) -> FloatArray:
    """Power of the row before in the same collection; the row's own for the first."""
    source = table["collection"] if "collection" in table else table["hardware"]
    power = table["power_w"].astype(np.float64)
    before = power.copy()
    before[1:][source[1:] == source[:-1]] = power[:-1][source[1:] == source[:-1]]
    return np.where(before > 0, before, power)


def shape_pairs(table: Table) -> npt.NDArray[np.intp]:
    """Which (n, k) pair each row is of."""
    shape = np.stack([table["n"], table["k"]], axis=1)
    return np.unique(shape, axis=0, return_inverse=True)[1].reshape(-1)


def shape_folds(
    table: Table, pair: npt.NDArray[np.intp], seed: int, holdout: float
) -> npt.NDArray[np.intp]:
    """Fold of each row, whole pairs together; -1 for the share `holdout` of pairs held out."""
    order = np.random.default_rng(seed).permutation(pair.max() + 1)
    fold = (order % FOLDS)[pair]
    if holdout:
        fold[make_split("unseen_shape", table, seed=seed, fraction=holdout).test] = -1
    return fold


def _match(table: Table, burst: Table) -> FloatArray:
    """Time of each row's point in the short runs, NaN where it is not there."""
    columns = ("hardware", "dtype", "m", "n", "k")
    keys = zip(*(burst[c].tolist() for c in columns), strict=True)
    times = dict(zip(keys, burst["time_s"].tolist(), strict=True))
    wanted = zip(*(table[c].tolist() for c in columns), strict=True)
    return np.array([times.get(key, np.nan) for key in wanted])
