"""What a sweep's own model sees: dimensionless numbers of configured kernels on one device.

Owns the features of a row (sizes, ragged edges, blocks and waves, intensity, working sets over the
caches, trip counts, occupancy) and the analytic time that learned ratios stand on: a sum of
physical terms with non-negative coefficients. Fits nothing but those coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import DTYPES
from ..errors import RidgecastError
from ..hardware import Hardware
from ..kernels.clblast import clblast
from ..kernels.config import ClblastConfig, SimtConfig, TensorConfig, TiledConfig
from ..kernels.cost import KernelCost
from ..kernels.problem import problem
from ..kernels.tile import simt, tensor
from ..kernels.tiled import tiled
from ..store.schema import CONFIG_COLUMNS
from ..store.tables import Table, factorize, is_text, length, numeric

__all__ = ["Device", "analytic", "column", "device_of", "fit_terms", "kernel_cost", "raw_features",
           "terms_of", "tiles_of"]  # fmt: skip

F64 = npt.NDArray[np.float64]

_TILES = (("tile_m", "tile_n", "tile_k"), ("mwg", "nwg", "kwg"), ("tile", "tile", "tile"))
_NUMBERS = (*CONFIG_COLUMNS, "alpha", "beta", "threads")  # used as they are, in log2(1 + x)
_TEXTS = ("layout", "dtype", "cache", "pattern")
_LANES = 8.0  # fp32 in one vector register of the usual CPU (AVX2: 256 bits)
_ALIGNED = 12  # powers of two beyond 4,096 elements make no further difference
_COST_KINDS = ("compute", "memory", "l2", "shared", "latency", "tail", "launch")


@dataclass(frozen=True, slots=True)
class Device:
    """What the features need of a device: units, rate [flop/s], bandwidth [B/s], caches [B].

    Without a spec (`hardware` None) the rate is the best measured one, the bandwidth and the
    caches are unknown (NaN, empty) and the features that rest on them are left out.
    """

    hardware: Hardware | None
    units: float
    rate: float
    bandwidth: float
    caches: tuple[float, ...]


def device_of(
    hardware: Hardware | None, dtype: str, best_rate: float, threads: float = 0.0
) -> Device:
    """Collect the numbers of a device.

    `best_rate` [flop/s] stands in where there is no spec; `threads` (0: not known) are those that
    share the blocks on a CPU, all of its cores or fewer.
    """
    if hardware is None:
        return Device(None, max(threads, 1.0), best_rate, float("nan"), ())
    try:
        rate = hardware.rate(dtype)
    except RidgecastError:
        rate = best_rate
    levels = [hardware.shared.capacity, hardware.l2.capacity]
    levels += [hardware.l3.capacity] if hardware.l3 else []
    units = threads if hardware.kind == "cpu" and threads else float(hardware.sm_count)
    return Device(hardware, units, rate, hardware.memory.bandwidth, tuple(map(float, levels)))


def column(table: Table, name: str, default: float = np.nan) -> F64:
    """Column as float64; `default` where it is absent or a cell is missing."""
    if name not in table:
        return np.full(length(table), default)
    values, _ = numeric(table, name)
    return np.where(np.isfinite(values), values, default)


def tiles_of(table: Table) -> tuple[F64, F64, F64]:
    """Block tile (m, n, k) in elements; NaN where a row has none (a library's own choice)."""
    out = [np.full(length(table), np.nan) for _ in range(3)]
    for names in _TILES:
        for i, name in enumerate(names):
            values = column(table, name)
            out[i] = np.where(np.isnan(out[i]) & (values >= 1), values, out[i])
    return out[0], out[1], out[2]


def _log(x: npt.ArrayLike) -> F64:
    return np.log2(np.maximum(np.asarray(x, np.float64), 1e-30))


def _power_of_two(x: F64) -> F64:
    """Exponent of the largest power of two that divides x, at most _ALIGNED."""
    whole = np.asarray(x, np.int64)
    low = (whole & -whole).astype(np.float64)
    return np.minimum(_log(np.maximum(low, 1.0)), _ALIGNED)


def _element(table: Table) -> F64:
    """Bytes per element of each row's format; 4 where it is not known."""
    if "dtype" not in table:
        return np.full(length(table), 4.0)
    codes, names = factorize(table["dtype"])
    sizes = [DTYPES[n].bits / 8.0 if n in DTYPES else 4.0 for n in map(str, names)]
    return np.asarray(sizes, np.float64)[codes]


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Counts of a blocked GEMM; arrays [rows]. Rows without a tile count as one block a row."""

    m: F64
    n: F64
    k: F64
    batch: F64
    size: F64
    tm: F64
    tn: F64
    tk: F64

    @property
    def count(self) -> F64:
        return self.batch * np.ceil(self.m / self.tm) * np.ceil(self.n / self.tn)

    @property
    def steps(self) -> F64:
        return np.ceil(self.k / self.tk)

    @property
    def staged(self) -> F64:
        """Elements copied into fast memory: both tiles, every step of every block."""
        return self.count * self.steps * self.tk * (self.tm + self.tn)

    @property
    def bytes(self) -> F64:
        return self.size * self.batch * (self.m * self.k + self.k * self.n + self.m * self.n)


def _blocks(table: Table) -> _Blocks:
    m, n, k = (column(table, name, 1.0) for name in "mnk")
    tm, tn, tk = (np.where(np.isnan(t), 1.0, t) for t in tiles_of(table))
    return _Blocks(m, n, k, column(table, "batch", 1.0), _element(table), tm, tn, tk)


# --------------------------------------------------------------------------------- features


def raw_features(table: Table, device: Device) -> dict[str, F64]:
    """Every feature of a table of one kernel family, by name; arrays [rows].

    Text columns become one column per level; a caller keeps the names of training and fills
    levels that are new with 0.
    """
    b = _blocks(table)
    f: dict[str, F64] = {}
    f["log_m"], f["log_n"], f["log_k"] = _log(b.m), _log(b.n), _log(b.k)
    f["log_mn"], f["log_batch"] = _log(b.m * b.n), _log(b.batch)
    flops = 2.0 * b.batch * b.m * b.n * b.k
    f["log_flops"] = _log(flops)
    f["m_over_n"], f["k_over_mn"] = _log(b.m / b.n), _log(b.k / np.sqrt(b.m * b.n))
    for side, size, tile in (("m", b.m, b.tm), ("n", b.n, b.tn), ("k", b.k, b.tk)):
        f[f"log_tile_{side}"] = _log(tile)
        f[f"trips_{side}"] = _log(np.ceil(size / tile))
        f[f"waste_{side}"] = _log(np.ceil(size / tile) * tile / size)
        f[f"ragged_{side}"] = (size % tile != 0).astype(np.float64)
        f[f"align_{side}"] = _power_of_two(size)
    waves = b.count / device.units
    f["waves"], f["tail"] = _log(waves), _log(np.ceil(waves) / waves)
    ridge = device.rate / device.bandwidth if np.isfinite(device.bandwidth) else 1.0
    f["intensity"] = _log(flops / b.bytes / ridge)
    f["intensity_staged"] = _log(flops / (b.staged * b.size) / ridge)
    f |= _working_sets(b, device)
    for name in _NUMBERS:
        if name in table:
            f[name] = _log(1.0 + np.maximum(column(table, name, 0.0), 0.0))
    f |= _levels(table)
    if device.hardware is not None:
        f |= _cost_features(table, device.hardware)
    return f


def _working_sets(b: _Blocks, device: Device) -> dict[str, F64]:
    """Operands over each cache: log2(1 + x), which is flat while they fit and rises beyond.

    Without known caches the plain sizes remain, and the model has to find the edges itself.
    """
    sets = {
        "a": b.size * b.batch * b.m * b.k, "b": b.size * b.batch * b.k * b.n,
        "out": b.size * b.batch * b.m * b.n, "all": b.bytes,
        "b_panel": b.size * b.k * b.tn, "a_panel": b.size * b.k * b.tm,
        "tiles": b.size * (b.tm * b.tk + b.tk * b.tn + b.tm * b.tn),
    }  # fmt: skip
    if not device.caches:
        return {f"bytes_{name}": _log(value) for name, value in sets.items()}
    out: dict[str, F64] = {}
    for level, capacity in enumerate(device.caches):
        for name, value in sets.items():
            out[f"{name}_over_cache{level}"] = _log(1.0 + value / capacity)
    return out


def _levels(table: Table) -> dict[str, F64]:
    out: dict[str, F64] = {}
    for name in _TEXTS:
        if name in table and is_text(table[name]):
            values = table[name].astype(str)
            for level in sorted(set(values.tolist())):
                out[f"{name}={level}"] = (values == level).astype(np.float64)
    return out


def _cost_features(table: Table, hardware: Hardware) -> dict[str, F64]:
    """Occupancy, residency, shared memory and shares of the kernel model, where there is one."""
    cost = kernel_cost(table, hardware)
    if cost is None:
        return {}
    time = np.where(np.isfinite(cost.time), cost.time, 1.0)
    out = {
        "occupancy": cost.occupancy, "blocks_per_sm": _log(1.0 + cost.blocks_per_sm),
        "shared_bytes": _log(1.0 + cost.shared_bytes), "registers": _log(cost.registers + 1.0),
        "model_waves": _log(cost.waves), "model_tail": cost.tail_efficiency,
        "l2_reuse": _log(cost.l2_bytes / np.maximum(cost.memory_bytes, 1.0) + 1.0),
    }  # fmt: skip
    for name in _COST_KINDS:
        out[f"share_{name}"] = np.asarray(getattr(cost, name) / time, np.float64)
    return {name: np.nan_to_num(np.asarray(value, np.float64)) for name, value in out.items()}


# ------------------------------------------------------------------------------ analytic time


def kernel_cost(table: Table, hardware: Hardware) -> KernelCost | None:
    """Cost of the kernel models of `kernels` for rows of one family; None where none applies.

    None too where the device cannot run the family (no such unit, a tile that does not divide).
    """
    rows = length(table)
    if not rows or hardware.kind != "gpu":
        return None
    family = str(table["kernel"][0]) if "kernel" in table else ""
    dtype = str(table["dtype"][0]) if "dtype" in table else "fp32"
    cold = "cache" in table and str(table["cache"][0]) == "cold"
    try:
        config = _config(family, table)
        if config is None:
            return None
        p = problem(*(column(table, name, 1.0) for name in ("m", "n", "k", "batch")), dtype=dtype)
        return _COSTS[type(config).__name__](p, config, hardware, "cold" if cold else "hot")
    except RidgecastError:
        return None


_COSTS: Mapping[str, Any] = {
    "TiledConfig": tiled, "ClblastConfig": clblast, "SimtConfig": simt, "TensorConfig": tensor,
}  # fmt: skip


def _whole(table: Table, names: Sequence[str], defaults: Mapping[str, int]) -> dict[str, Any]:
    return {
        name: column(table, name, float(defaults.get(name, 1))).astype(np.int64)
        for name in names
        if name in table
    }


def _config(family: str, table: Table) -> Any:
    if family == "tiled":
        return TiledConfig(column(table, "tile", 16.0).astype(np.int64))
    if family == "clblast" and "mwg" in table:
        names = ("MWG", "NWG", "KWG", "MDIMC", "NDIMC", "MDIMA", "NDIMB", "KWI", "VWM", "VWN",
                 "STRM", "STRN", "SA", "SB")  # fmt: skip
        return ClblastConfig(**{n: column(table, n.lower(), 0.0).astype(np.int64) for n in names})
    if family in ("cutlass_simt", "cutlass_tensor") and "tile_m" in table:
        kind = SimtConfig if family == "cutlass_simt" else TensorConfig
        base = kind()
        names = ("tile_m", "tile_n", "tile_k", "warps_m", "warps_n", "stages", "split_k",
                 "cluster_m", "cluster_n", "swizzle")  # fmt: skip
        return kind(**_whole(table, names, {n: int(np.asarray(getattr(base, n))) for n in names}))
    return None


def terms_of(table: Table, device: Device) -> dict[str, F64]:
    """Non-negative terms [rows] that a time may be a sum of.

    Counts of a blocked loop (calls, blocks, steps, rows of the inner loop, vectors, multiply-adds,
    staged and written elements, unique bytes) on the unit that has most blocks to do, and, where
    the device has a kernel model, its time. Fitted coefficients turn counts into seconds.
    """
    b = _blocks(table)
    most = np.ceil(b.count / device.units)  # blocks are dealt whole
    inner = most * b.steps * b.tm * b.tk
    terms = {
        "call": np.ones(length(table)), "block": most, "step": most * b.steps,
        "row": inner, "vector": inner * np.ceil(b.tn / _LANES), "fma": inner * b.tn,
        "useful": b.batch * b.m * b.n * b.k, "staged": most * b.steps * b.tk * (b.tm + b.tn),
        "written": most * b.tm * b.tn, "bytes": b.bytes,
    }  # fmt: skip
    if device.hardware is not None:
        compute = 2.0 * b.batch * b.m * b.n * b.k / device.rate
        terms["roofline"] = np.maximum(compute, b.bytes / device.bandwidth)
        cost = kernel_cost(table, device.hardware)
        if cost is not None:
            whole = np.where(np.isfinite(cost.time), cost.time, terms["roofline"])
            terms["model"] = np.asarray(whole, np.float64)
    return terms


def fit_terms(
    terms: Mapping[str, F64], time: F64, *, rounds: int = 3000,
    cost: Mapping[str, float] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Coefficients >= 0 with the least sum of ((sum c x - t) / t)^2, reweighted towards medians.

    A term with a `cost` must lower the loss by that share of a row's whole time, the largest row
    taken, for every row: of terms that explain the rows alike those without a cost are taken.

    Multiplicative updates c <- c * (A'w1) / (A'w A c) keep the coefficients non-negative and never
    raise the loss (Lee, Seung 2001, NIPS 13, theorem 1). Terms that end below 1e-6 of every row's
    time are dropped.
    """
    names = list(terms)
    a = np.stack([terms[name] / time for name in names], axis=1)
    a = np.nan_to_num(a, nan=0.0, posinf=0.0)
    top = np.maximum(a.max(axis=0), 1e-300)
    a = a / top
    c, w = np.full(len(names), 1.0 / len(names)), np.ones(len(time))
    dear = np.array([(cost or {}).get(name, 0.0) for name in names]) * len(time)
    for turn in range(3):
        gram, right = a.T @ (a * w[:, None]), a.T @ w
        for _ in range(rounds):
            c = c * right / np.maximum(gram @ c + dear, 1e-300)
        miss = np.abs(a @ c - 1.0)
        if turn < 2:  # one round off the mean towards the median (Huber's weights)
            w = 1.0 / np.maximum(miss, max(float(np.median(miss)), 1e-3))
            w = w / w.mean()
    kept = (a * c).max(axis=0) > 1e-6
    return {name: float(c[i] / top[i]) for i, name in enumerate(names) if kept[i]}


def analytic(terms: Mapping[str, F64], coefficients: Mapping[str, float]) -> F64:
    """Analytic time [s] per row: the fitted sum of terms."""
    return np.sum([value * terms[name] for name, value in coefficients.items()], axis=0)
