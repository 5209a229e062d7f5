"""Batch tables of CLBlast configurations as arrays: parameters, sizes, features, identity.

Owns the reading of a configuration table, and which rows are the same kernel. Fits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError
from ..hardware import Hardware
from ..store.tables import Table, length, numeric, require_columns, select
from .config_features import CONFIG, canonical_config, config_bound, config_features, fits

__all__ = ["Rows", "kernel_ids", "keys", "prepare", "read_params", "take", "usable_rows"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Configurations on one device in canonical form, sizes (rows, 3), bound [s]."""

    hardware: Hardware
    params: dict[str, IntArray]
    sizes: FloatArray
    bound: FloatArray
    features: FloatArray


def read_params(table: Table) -> tuple[dict[str, IntArray], FloatArray, npt.NDArray[np.bool_]]:
    """Parameters, sizes (rows, 3) and whether each row can be run, of a batch table."""
    require_columns(table, ["hardware", "m", "n", "k", *CONFIG], what="configuration table")
    good = np.ones(length(table), bool)
    params: dict[str, IntArray] = {}
    for name in CONFIG:
        values, _ = numeric(table, name)
        good &= (values >= 0) & (values <= 4095) & (values == np.floor(values))
        params[name] = np.where(good, values, 1).astype(np.int64)
    sizes = np.stack([numeric(table, name)[0] for name in "mnk"], axis=1)
    good &= ((sizes >= 1) & (sizes <= 2**31 - 1) & (sizes == np.floor(sizes))).all(axis=1)
    good &= fits(params)
    return params, np.where(good[:, None], sizes, 1.0), good


def prepare(hardware: Hardware, params: dict[str, IntArray], sizes: FloatArray) -> Rows:
    """Features and bound of configurations that `fits` accepts."""
    canonical = canonical_config(params)
    m, n, k = sizes.T
    return Rows(
        hardware, canonical, sizes, config_bound(hardware, canonical, m, n, k),
        config_features(hardware, canonical, m, n, k),
    )  # fmt: skip


def kernel_ids(table: Table) -> IntArray:
    """Return the number of the kernel that each row compiles to (see `canonical_config`).

    Rows of one number differ in parameters that the kernel never reads. Raises SpecError when a
    column is missing.
    """
    params, sizes, _ = read_params(table)
    columns = [*canonical_config(params).values(), *sizes.astype(np.int64).T]
    code = np.zeros(length(table), np.int64)
    for column in columns:
        _, value = np.unique(column, return_inverse=True)
        _, code = np.unique(code * (value.max(initial=0) + 1) + value, return_inverse=True)
    return code.astype(np.int64)


def usable_rows(table: Table) -> Table:
    """Rows to train on: valid CLBlast fp32 timings, the largest collection of each device.

    Two collections of one device are never mixed: their clocks and drivers differ. Raises
    NoDataError when nothing is left.
    """
    _, _, good = read_params(table)
    time, _ = numeric(table, "time_s")
    good &= np.isfinite(time) & (time > 0)
    if "valid" in table:
        good &= table["valid"].astype(bool)
    for name, value in (("kernel", "clblast"), ("dtype", "fp32")):
        if name in table:
            good &= table[name] == value
    if "gemmk" in table:
        good &= ~(numeric(table, "gemmk")[0] > 0)
    table = select(table, good)
    if not good.any():
        raise NoDataError("no valid CLBlast fp32 row with a time, sizes and all of its parameters")
    if "collection" not in table:
        return table
    keep = np.zeros(length(table), bool)
    for device in np.unique(table["hardware"].astype(str)):
        own = table["hardware"] == device
        names, counts = np.unique(table["collection"][own].astype(str), return_counts=True)
        keep |= own & (table["collection"] == names[np.argmax(counts)])
    return select(table, keep)


def take(rows: Rows, at: IntArray) -> Rows:
    """Return some of the rows."""
    return Rows(
        rows.hardware, {p: v[at] for p, v in rows.params.items()}, rows.sizes[at],
        rows.bound[at], rows.features[at],
    )  # fmt: skip


def keys(params: Mapping[str, IntArray], sizes: FloatArray) -> list[tuple[int, ...]]:
    """Hashable identity of each canonical configuration and its sizes."""
    table = np.column_stack([*(params[name] for name in CONFIG), sizes.astype(np.int64)])
    return [tuple(row) for row in table.tolist()]
