"""Dimensionless features of CLBlast's Xgemm configurations, the same on every device.

Owns what a learned configuration model may look at: the shape of the work of a thread, a warp and
a workgroup, how its loads fall on sectors and banks, how much of it one SM holds, each over the
time that the multiplications alone would take. Knows no measurement.

Sources: CLBlast 1.6 `src/kernels/level3/xgemm_part1.opencl` and `xgemm_part3.opencl` for the index
of every load (written here as formulas), CUDA C++ Programming Guide for sectors and banks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from ..hardware import Hardware
from ..kernels.occupancy import occupancy

__all__ = ["CONFIG", "FEATURES", "canonical_config", "config_bound", "config_features", "fits"]

FloatArray = npt.NDArray[np.float64]
Params = Mapping[str, npt.NDArray[np.int64]]

CONFIG = ("mwg", "nwg", "kwg", "mdimc", "ndimc", "mdima", "ndimb", "kwi", "vwm", "vwn", "strm",
          "strn", "sa", "sb")  # fmt: skip
"""CLBlast's parameters of Xgemm's kernel 0, in lower case."""

_LANES = 32  # threads that issue together: a warp, or RDNA's wave32
_ELEMENT = 4  # bytes of fp32
_FIXED_REGISTERS = 24  # addresses, counters (assumed; only the order of configurations matters)
_BLOCK_RESERVE = 1024  # shared memory that the CUDA runtime keeps per block (spec, from sm_80)


def fits(p: Params) -> npt.NDArray[np.bool_]:
    """Whether the kernel can be built: its tiles divide as CLBlast's tuner demands.

    Source: CLBlast `src/tuning/kernels/xgemm.hpp`, XgemmSetConstraints.
    """
    positive = np.ones(len(p["mwg"]), bool)
    for name in CONFIG:
        positive &= p[name] >= (0 if name in ("strm", "strn", "sa", "sb") else 1)
    q = {name: np.maximum(p[name], 1) for name in CONFIG}
    threads = q["mdimc"] * q["ndimc"]
    flags = np.logical_and.reduce([p[name] <= 1 for name in ("strm", "strn", "sa", "sb")])
    return (
        positive
        & flags
        & (q["kwg"] % q["kwi"] == 0)
        & (q["mwg"] % (q["mdimc"] * q["vwm"]) == 0)
        & (q["nwg"] % (q["ndimc"] * q["vwn"]) == 0)
        & (q["mwg"] % (q["mdima"] * q["vwm"]) == 0)
        & (q["nwg"] % (q["ndimb"] * q["vwn"]) == 0)
        & (threads % q["mdima"] == 0)
        & (threads % q["ndimb"] == 0)
        & (q["kwg"] % np.maximum(threads // q["mdima"], 1) == 0)
        & (q["kwg"] % np.maximum(threads // q["ndimb"], 1) == 0)
    )


def canonical_config(p: Params) -> dict[str, npt.NDArray[np.int64]]:
    """Return the configuration that stands for all that compile to the same kernel.

    Without shared memory for A (sa = 0) `mdima` is not read; a stride flag does nothing where each
    thread has one vector. Measured: such twins differ by 0.02-0.03 % (median) on the NVIDIA
    devices of Kernel Tuner's tables. A split that ignores this tests on what was fitted.
    """
    out = {name: np.asarray(p[name], np.int64).copy() for name in CONFIG}
    for side, wg, dim_c, dim_l, vw, stride in (
        ("sa", "mwg", "mdimc", "mdima", "vwm", "strm"),
        ("sb", "nwg", "ndimc", "ndimb", "vwn", "strn"),
    ):
        unused = out[side] == 0
        out[dim_l] = np.where(unused, out[dim_c], out[dim_l])
        one = out[wg] == out[dim_c] * out[vw]
        one_load = unused | (out[wg] == out[dim_l] * out[vw])
        out[stride] = np.where(one & one_load, 0, out[stride])
    return out


def config_bound(
    hardware: Hardware, p: Params, m: FloatArray, n: FloatArray, k: FloatArray
) -> FloatArray:
    """Time [s] of the multiplications of the padded problem at the device's fp32 rate.

    CLBlast pads every size to whole tiles: 2 ceil(m/mwg) mwg ceil(n/nwg) nwg ceil(k/kwg) kwg.
    """
    padded = [np.ceil(size / p[tile]) * p[tile] for size, tile in ((m, "mwg"), (n, "nwg"))]
    depth = np.ceil(k / p["kwg"]) * p["kwg"]
    return np.asarray(2.0 * padded[0] * padded[1] * depth / _rate(hardware), np.float64)


def _rate(hardware: Hardware) -> float:
    unit = "simt" if hardware.unit("fp32") != "simt" and "fp32" in hardware.other_rates else None
    return hardware.rate("fp32", unit=unit)


@functools.lru_cache(maxsize=8192)
def _wavefronts(threads_m: int, dim: int, work: int, vector: int, stride: int, side: int) -> int:
    """Shared-memory cycles of one warp that reads its fragment of one k.

    A word is 4 bytes, a bank serves one word a cycle, equal words are broadcast; loads of 8 and 16
    bytes go by half and by quarter warp. `side` 0: threads run along m, 1: along n.
    """
    lane = np.arange(_LANES)
    t = lane % threads_m if side == 0 else lane // threads_m
    width = min(vector, 4)
    group = _LANES // width
    total = 0
    for i in range(work // vector):
        base = (t + i * dim) * vector if stride else t * work + i * vector
        for piece in range(max(1, vector // 4)):
            words = base[:, None] + piece * 4 + np.arange(width)
            for g in range(0, _LANES, group):
                total += int(np.bincount(np.unique(words[g : g + group]) % 32).max())
    return total


@functools.lru_cache(maxsize=8192)
def _sectors(
    threads: int, dim: int, work: int, vector: int, stride: int, side: int
) -> tuple[int, int, int]:
    """(sectors of 32 B, lines of 128 B, requests) of one warp that loads `work` per thread.

    `side` 0: threads along m, lanes of other rows read the same k; 1: along n; 2: a tile load,
    where lanes beyond `threads` belong to another k.
    """
    lane = np.arange(_LANES)
    t = lane // threads if side == 1 else lane % threads
    row = lane // threads if side == 2 else np.zeros_like(lane)
    sectors = lines = requests = 0
    for i in range(work // vector):
        base = (t + i * dim) * vector if stride else t * work + i * vector
        for piece in range(max(1, vector // 4)):
            words = (base + piece * 4)[:, None] + np.arange(min(vector, 4)) + row[:, None] * 2**20
            sectors += len(np.unique(words // 8))
            lines += len(np.unique(words // 32))
            requests += 1
    return sectors, lines, requests


def _per_distinct(function: Callable[..., object], *columns: npt.ArrayLike) -> FloatArray:
    """Call `function` once for each distinct row of the columns; shape (rows, results)."""
    stacked = [np.asarray(column, np.int64) for column in columns]
    code = stacked[0]
    for column in stacked[1:]:
        code = code * 4096 + column
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    values = [function(*(int(c[i]) for c in stacked)) for i in first.tolist()]
    table = np.array(values, np.float64).reshape(len(values), -1)
    return table[inverse]


def config_features(
    hardware: Hardware, params: Params, m: FloatArray, n: FloatArray, k: FloatArray
) -> FloatArray:
    """Features, shape (rows, len(FEATURES)), of canonical configurations on one device.

    Sizes are arrays of the same length as the parameters. The caller keeps only configurations
    that `fits` accepts, in the form that `canonical_config` gives.
    """
    f = _features(hardware, params, m, n, k)
    return np.stack([f[name] for name in FEATURES], axis=1)


def _features(
    hw: Hardware, p: Params, m: FloatArray, n: FloatArray, k: FloatArray
) -> dict[str, FloatArray]:
    f: dict[str, FloatArray] = {}
    q = {name: p[name].astype(np.float64) for name in CONFIG}
    threads = q["mdimc"] * q["ndimc"]
    warps = threads / _LANES
    mwi, nwi = q["mwg"] / q["mdimc"], q["nwg"] / q["ndimc"]
    tile = q["mwg"] * q["nwg"]
    log = np.log2
    for name in CONFIG:
        flag = name in ("strm", "strn", "sa", "sb")
        f[name] = q[name] if flag else log(q[name])
    f["threads"], f["mwi"], f["nwi"] = log(threads), log(mwi), log(nwi)
    f["accumulators"] = log(mwi * nwi)
    f["tile"], f["tile_aspect"] = log(tile), log(q["mwg"] / q["nwg"])
    f["thread_aspect"] = log(mwi / nwi)
    f["vectors_a"], f["vectors_b"] = log(mwi / q["vwm"]), log(nwi / q["vwn"])
    f["tile_intensity"] = log(tile / (q["mwg"] + q["nwg"]))
    f["thread_intensity"] = log(mwi * nwi / (mwi + nwi))
    shared = _ELEMENT * q["kwg"] * (q["mwg"] * q["sa"] + q["nwg"] * q["sb"])
    f["shared_kib"] = shared / 1024.0
    resident = _residency(hw, f, q, threads, shared)
    _waves(hw, f, p, m, n, resident)
    fma = tile / (_rate(hw) / (2.0 * hw.sm_count * hw.clock))  # cycles per k of one block
    loads = _load_shapes(f, p, q)
    _ratios(hw, f, q, fma, warps, loads)
    free = np.maximum(1024.0, hw.sm.shared_memory - resident * shared)
    direct = _ELEMENT * q["kwg"] * (q["mwg"] * (1 - q["sa"]) + q["nwg"] * (1 - q["sb"]))
    f["direct_over_l1"] = log((direct * resident + 1.0) / free)
    traffic = _ELEMENT * k * m * n * (1.0 / q["mwg"] + 1.0 / q["nwg"])
    f["traffic_over_flops"] = log(traffic / hw.memory.bandwidth / config_bound(hw, p, m, n, k))
    barrier = np.maximum(q["sa"], q["sb"])
    f["barriers"] = log(barrier / q["kwg"] / (mwi * nwi) + 1e-5)
    return f


def _residency(
    hw: Hardware, f: dict[str, FloatArray], q: dict[str, FloatArray], threads: FloatArray,
    shared: FloatArray,
) -> FloatArray:  # fmt: skip
    """Blocks on one SM, at least 1; registers are accumulators plus fragments (estimated)."""
    mwi, nwi = q["mwg"] / q["mdimc"], q["nwg"] / q["ndimc"]
    need = mwi * nwi + (3 - q["sa"]) * mwi + (3 - q["sb"]) * nwi + _FIXED_REGISTERS
    limit = float(hw.sm.max_registers_per_thread)
    registers = np.clip(need, 32.0, limit)
    held = np.where(shared > 0, shared + _BLOCK_RESERVE, 0.0)
    held = np.minimum(held, hw.sm.max_shared_per_block)
    got = occupancy(hw.sm, threads=threads, registers=registers, shared_bytes=held)
    blocks = np.maximum(1.0, got.blocks_per_sm.astype(np.float64))
    f["registers"] = registers
    f["spilled"] = np.maximum(0.0, need - mwi - nwi - limit)
    f["blocks_per_sm"] = blocks
    f["occupancy"] = blocks * threads / hw.sm.max_threads
    f["limited_threads"] = np.floor(hw.sm.max_threads / threads)
    f["limited_registers"] = np.floor(hw.sm.registers / (registers * threads))
    f["limited_shared"] = np.where(
        held > 0, np.floor(hw.sm.shared_memory / np.maximum(held, 1.0)), 99.0
    )
    f["warps_per_sm"] = np.log2(blocks * threads / _LANES)
    f["work_in_flight"] = f["warps_per_sm"] + f["accumulators"]
    return blocks


def _waves(
    hw: Hardware, f: dict[str, FloatArray], p: Params, m: FloatArray, n: FloatArray,
    resident: FloatArray,
) -> None:  # fmt: skip
    blocks = np.ceil(m / p["mwg"]) * np.ceil(n / p["nwg"])
    waves = blocks / (resident * hw.sm_count)
    f["waves"], f["tail"] = np.log2(waves), np.ceil(waves) / waves
    per_sm = blocks / hw.sm_count
    f["imbalance"] = np.ceil(per_sm) / per_sm


def _load_shapes(
    f: dict[str, FloatArray], p: Params, q: dict[str, FloatArray]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Per warp and k: shared-memory wavefronts, global (sectors, lines, requests) of A and B."""
    threads = q["mdimc"] * q["ndimc"]
    wavefronts = np.zeros(len(threads))
    traffic: list[FloatArray] = []
    for side, (letter, wg, dim_c, dim_l, vw, stride, on) in enumerate(
        (
            ("a", "mwg", "mdimc", "mdima", "vwm", "strm", "sa"),
            ("b", "nwg", "ndimc", "ndimb", "vwn", "strn", "sb"),
        )
    ):
        staged = p[on] > 0
        work = p[wg] // p[dim_c]
        flat = np.full_like(work, side)
        cycles = _per_distinct(_wavefronts, p["mdimc"], p[dim_c], work, p[vw], p[stride], flat)[
            :, 0
        ]
        per_load = p[wg] // p[dim_l]
        rows = q["kwg"] * q[dim_l] / threads  # k rows that each thread loads
        tile_load = _per_distinct(
            _sectors, p[dim_l], p[dim_l], per_load, p[vw], p[stride], np.full_like(work, 2)
        )
        direct = _per_distinct(_sectors, p["mdimc"], p[dim_c], work, p[vw], p[stride], flat)
        traffic.append(np.where(staged[:, None], tile_load * (rows / q["kwg"])[:, None], direct))
        wavefronts = wavefronts + np.where(staged, cycles, 0.0)
        f[f"wavefronts_{letter}"] = np.where(staged, np.log2(cycles), -1.0)
        f[f"load_rows_{letter}"] = np.where(staged, np.log2(rows), -1.0)
        f[f"load_width_{letter}"] = np.where(staged, np.log2(per_load), -1.0)
        f[f"load_waste_{letter}"] = np.where(
            staged, tile_load[:, 0] * 8.0 / (np.minimum(_LANES, threads) * per_load), -1.0
        )
    return wavefronts, traffic[0], traffic[1]


def _ratios(
    hw: Hardware, f: dict[str, FloatArray], q: dict[str, FloatArray], fma: FloatArray,
    warps: FloatArray, loads: tuple[FloatArray, FloatArray, FloatArray],
) -> None:  # fmt: skip
    """Cycles or counts of everything else over the cycles of the multiplications."""
    log = np.log2
    wavefronts, a, b = loads
    mwi, nwi = q["mwg"] / q["mdimc"], q["nwg"] / q["ndimc"]
    shared = warps * wavefronts
    f["shared_over_fma"] = log((shared + 0.01 * fma) / fma)
    stores = (q["sa"] * q["mwg"] + q["sb"] * q["nwg"]) / _LANES
    f["stores_over_fma"] = log((stores + 1e-3) / fma)
    both = a + b
    f["sectors_over_fma"] = log(warps * both[:, 0] / fma)
    f["lines_over_fma"] = log(warps * both[:, 1] / fma)
    f["requests_over_fma"] = log(warps * both[:, 2] / fma)
    f["lines_a"], f["lines_b"] = log(warps * a[:, 1] / fma), log(warps * b[:, 1] / fma)
    f["sectors_a"], f["sectors_b"] = log(warps * a[:, 0] / fma), log(warps * b[:, 0] / fma)
    vectors = mwi / np.minimum(q["vwm"], 4.0) + nwi / np.minimum(q["vwn"], 4.0)
    lanes = _rate(hw) / (2.0 * hw.sm_count * hw.clock)
    issue = warps * (mwi * nwi + vectors) / (lanes / _LANES)
    f["issue_over_fma"] = log(issue / fma)
    lines = warps * both[:, 1]
    f["largest_over_fma"] = log(np.maximum.reduce([fma, shared, lines, issue]) / fma)
    f["sum_over_fma"] = log((fma + shared + lines) / fma)


FEATURES = (
    *CONFIG, "threads", "mwi", "nwi", "accumulators", "tile", "tile_aspect", "thread_aspect",
    "vectors_a", "vectors_b", "tile_intensity", "thread_intensity", "shared_kib", "registers",
    "spilled", "blocks_per_sm", "occupancy", "limited_threads", "limited_registers",
    "limited_shared", "warps_per_sm", "work_in_flight", "waves", "tail", "imbalance",
    "wavefronts_a", "wavefronts_b", "load_rows_a", "load_rows_b", "load_width_a", "load_width_b",
    "load_waste_a", "load_waste_b", "shared_over_fma", "stores_over_fma", "sectors_over_fma",
    "lines_over_fma", "requests_over_fma", "lines_a", "lines_b", "sectors_a", "sectors_b",
    "issue_over_fma", "largest_over_fma", "sum_over_fma", "direct_over_l1", "traffic_over_flops",
    "barriers",
)  # fmt: skip
"""Names of the columns of `config_features`, in order."""
