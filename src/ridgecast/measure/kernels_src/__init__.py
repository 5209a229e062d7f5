"""Kernel sources that run as OpenCL C and as CUDA C++ alike, and how a point launches them.

    plan = plan_of(point)                      defines, groups, threads, arrays; no device needed
    text = source(plan, "opencl")              one translation unit: defines, prelude, kernel
    refusal(point, Limits(...))                why a device cannot run the point, or ""

Every kernel takes (m, n, k, a, b, c); `Plan.sizes` are the three numbers. Owns the sources
(package data beside this file), their parameters and their launch geometry. Knows no runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...dtypes import dtype as find_dtype
from ...errors import RidgecastError, SpecError
from ...kernels.config import ClblastConfig, TiledConfig
from ..base import BANDWIDTH_KERNELS, Point

__all__ = ["KERNELS", "MICRO_TOLERANCE", "Limits", "Plan", "array_elements", "micro_arrays",
           "micro_error", "plan_of", "read", "refusal", "source"]  # fmt: skip

KERNELS = ("tiled", "clblast", *BANDWIDTH_KERNELS)

_FOLDER = Path(__file__).parent
_FILES = {"tiled": "tiled.h", "clblast": "register_blocked.h"}  # the others: micro.h
_FUNCTIONS = {"clblast": "register_blocked"}  # the others are called as their kernel
# format -> (stored type by language, sum's type); fp16 is multiplied and summed in fp32
_TYPES = {
    "fp32": ({"opencl": "float", "cuda": "float"}, "float"),
    "fp64": ({"opencl": "double", "cuda": "double"}, "double"),
    "fp16": ({"opencl": "half", "cuda": "__half"}, "float"),
}
_VECTORS = (1, 2, 4, 8, 16)
_MOST_OUTPUTS = 512  # of one thread: more take minutes to compile and live in memory anyway
_WORD = 16  # bytes that a micro-benchmark moves at once
_GROUP_THREADS, _PER_THREAD = 256, 4  # of copy, triad and l2_read
_L2_GROUPS, _L2_PASSES = 1024, 16  # at most that many groups; whole passes over the array
_INT_MAX = 2**31 - 1

MICRO_TOLERANCE = 1e-5  # triad rounds twice in fp32; l2_read sums some thousand positive numbers


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device allows; sizes in bytes, 0 = not known."""

    threads: int = 1024  # of one group
    shared_bytes: int = 48 << 10  # static shared memory of one group
    groups_y: int = 65535
    memory: int = 0
    array_bytes: int = 0  # largest single array
    dtypes: tuple[str, ...] = ("fp32",)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a point is launched.

    `groups` x `threads` are launched with the arguments `sizes`, a, b, c. `columns_first` says
    that c is stored as (batch, n, m). `shared_bytes` is what the source declares; `moved_bytes`
    what a micro-benchmark reads and writes, 0 for a GEMM.
    """

    kernel: str
    function: str
    defines: Mapping[str, int | str]
    groups: tuple[int, int, int]
    threads: tuple[int, int]
    sizes: tuple[int, int, int]
    dtype: str = "fp32"
    columns_first: bool = False
    shared_bytes: int = 0
    moved_bytes: int = 0


def plan_of(point: Point) -> Plan:
    """Parameters and launch geometry of a point.

    Raises SpecError for a kernel, format, layout or configuration that these sources do not have.
    """
    if point.kernel not in KERNELS:
        raise SpecError(f"kernel: got {point.kernel!r}, need one of {', '.join(KERNELS)}")
    name = find_dtype(point.dtype).name
    if name not in _TYPES:
        raise SpecError(f"dtype of {point.kernel}: got {point.dtype}, need {', '.join(_TYPES)}")
    if point.layout not in ("nn", "nt", "tn", "tt"):
        raise SpecError(f"layout: got {point.layout!r}, need one of nn, nt, tn, tt")
    if point.kernel in BANDWIDTH_KERNELS:
        return _micro(point, name)
    largest = max(point.m * point.n, point.m * point.k, point.n * point.k)
    if largest > _INT_MAX:
        raise SpecError(f"{point.kernel}: a matrix has {largest} elements, need at most {_INT_MAX}")
    common: dict[str, int | str] = {
        "TRANS_A": int(point.layout[0] == "t"),
        "TRANS_B": int(point.layout[1] == "t"),
    }
    return (_tiled if point.kernel == "tiled" else _register_blocked)(point, name, common)


def _own(point: Point, allowed: tuple[str, ...]) -> dict[str, int]:
    unknown = sorted(set(point.config) - set(allowed))
    if unknown:
        takes = ", ".join(allowed) or "no configuration"
        raise SpecError(f"{point.kernel} takes {takes}; got {', '.join(unknown)}")
    return {name: int(value) for name, value in point.config.items()}


def _tiled(point: Point, dtype: str, common: Mapping[str, int | str]) -> Plan:
    tile = int(np.asarray(TiledConfig(**_own(point, ("tile",))).tile))
    rows = 2 * tile + int(common["TRANS_A"]) + int(common["TRANS_B"])
    return Plan(
        "tiled",
        "tiled",
        {**common, "TILE": tile},
        (-(-point.n // tile), -(-point.m // tile), point.batch),
        (tile, tile),
        (point.m, point.n, point.k),
        dtype,
        shared_bytes=rows * tile * _size(dtype),
    )


def _register_blocked(point: Point, dtype: str, common: Mapping[str, int | str]) -> Plan:
    names = tuple(field.name.lower() for field in fields(ClblastConfig))
    given = {name.upper(): value for name, value in _own(point, names).items()}
    config = ClblastConfig(**given)
    c = {name.upper(): int(column[0]) for name, column in config.as_table().items()}
    if c["GEMMK"] != 0 or c["KREG"] != 1:
        got = f"gemmk {c['GEMMK']}, kreg {c['KREG']}"
        raise SpecError(f"clblast: only gemmk 0 with kreg 1 is written here; got {got}")
    for name in ("VWM", "VWN"):
        if c[name] not in _VECTORS:
            raise SpecError(f"clblast.{name}: got {c[name]}, need one of {_VECTORS}")
    threads = c["MDIMC"] * c["NDIMC"]
    for name in ("MDIMA", "NDIMB"):
        if threads % c[name]:
            got = f"{c[name]} for {threads} threads"
            raise SpecError(f"clblast.{name}: got {got}, need a divisor of MDIMC * NDIMC")
    outputs = c["MWG"] * c["NWG"] // threads
    if outputs > _MOST_OUTPUTS:
        raise SpecError(
            f"clblast: {outputs} outputs a thread, need at most {_MOST_OUTPUTS} (MWG * NWG over "
            "MDIMC * NDIMC)"
        )
    edges: dict[str, int | str] = {
        f"EDGE_{axis}": int(size % c[f"{axis}WG"] != 0)
        for axis, size in (("M", point.m), ("N", point.n), ("K", point.k))
    }
    whole = {"WHOLE_M": int(point.m % c["VWM"] == 0), "WHOLE_N": int(point.n % c["VWN"] == 0)}
    del c["GEMMK"], c["KREG"]
    return Plan(
        "clblast",
        "register_blocked",
        {**common, **edges, **whole, **c},
        (-(-point.m // c["MWG"]), -(-point.n // c["NWG"]), point.batch),
        (c["MDIMC"], c["NDIMC"]),
        (point.m, point.n, point.k),
        dtype,
        columns_first=True,
        shared_bytes=c["KWG"] * (c["SA"] * c["MWG"] + c["SB"] * c["NWG"]) * _size(dtype),
    )


def _micro(point: Point, dtype: str) -> Plan:
    """Launch of a micro-benchmark; point.m is the bytes of one array."""
    _own(point, ())
    if dtype != "fp32":
        raise SpecError(f"dtype of {point.kernel}: got {point.dtype}, need fp32")
    if point.n != 1 or point.k != 1 or point.batch != 1:
        raise SpecError(f"{point.kernel}: m is the bytes of one array; n, k and batch must be 1")
    words = point.m // _WORD
    common: dict[str, int | str] = {"TRANS_A": 0, "TRANS_B": 0}
    common |= {"GROUP_THREADS": _GROUP_THREADS, "PER_THREAD": _PER_THREAD}
    if point.kernel == "launch":
        return Plan("launch", "launch", common, (1, 1, 1), (1, 1), (1, 1, 1))
    if point.m % _WORD or not 1 <= words <= _INT_MAX // 2:
        need = f"a multiple of {_WORD} up to {_INT_MAX // 2 * _WORD} bytes"
        raise SpecError(f"{point.kernel}: m is {point.m} bytes, need {need}")
    groups = -(-words // (_GROUP_THREADS * _PER_THREAD))
    sizes, moved = (words, 1, 1), point.m * (2 if point.kernel == "copy" else 3)
    if point.kernel == "l2_read":
        groups = min(groups, _L2_GROUPS)
        # an odd number of groups further on: another multiprocessor's words
        sizes = (words, _L2_PASSES, _GROUP_THREADS * 37 % words)
        moved = point.m * _L2_PASSES
    threads = (_GROUP_THREADS, 1)
    return Plan(point.kernel, point.kernel, common, (groups, 1, 1), threads, sizes,
                moved_bytes=moved)  # fmt: skip


def _size(dtype: str) -> int:
    return int(find_dtype(dtype).bytes_of(1))


def refusal(point: Point, limits: Limits) -> str:
    """Why a device with these limits cannot run the point, or ""."""
    try:
        plan = plan_of(point)
    except RidgecastError as error:
        return str(error)
    threads = plan.threads[0] * plan.threads[1]
    wanted = (
        ("threads in a group", threads, limits.threads),
        ("bytes of shared memory in a group", plan.shared_bytes, limits.shared_bytes),
        ("groups along the second axis", plan.groups[1], limits.groups_y),
        ("independent multiplications", plan.groups[2], limits.groups_y),
    )
    for what, got, most in wanted:
        if got > most:
            return f"{point.kernel} wants {got} {what}, this device allows {most}"
    if plan.dtype not in limits.dtypes:
        return f"this device has no {plan.dtype} here; it has {', '.join(limits.dtypes)}"
    arrays = [elements * _size(plan.dtype) for elements in array_elements(point, plan)]
    if limits.array_bytes and max(arrays) > limits.array_bytes:
        return f"{point.kernel} needs an array of {max(arrays)} bytes, {limits.array_bytes} allowed"
    needed = sum(arrays)
    if limits.memory and needed > 0.9 * limits.memory:
        return f"{point.kernel} needs {needed} bytes, the device has {limits.memory}"
    return ""


def array_elements(point: Point, plan: Plan) -> tuple[int, int, int]:
    """Elements of a, b and c (a micro-benchmark's are fp32); an array that is not used has 1."""
    if plan.kernel == "launch":
        return 1, 1, 1
    if plan.kernel in BANDWIDTH_KERNELS:
        count = point.m // 4
        reads = plan.kernel == "l2_read"
        return (
            count,
            count if plan.kernel == "triad" else 1,
            (plan.groups[0] * plan.threads[0] if reads else count),
        )
    m, n, k, batch = point.m, point.n, point.k, point.batch
    return batch * m * k, batch * k * n, batch * m * n


def micro_arrays(
    point: Point, plan: Plan, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays a, b, c of a micro-benchmark as float32; a and b hold the point's input pattern.

    l2_read takes absolute values, so that its sums are not small differences of large numbers.
    """
    arrays: list[np.ndarray] = []
    for count in array_elements(point, plan):
        values = np.zeros(count, np.float32)
        if point.pattern != "zeros":
            values = rng.standard_normal(count, dtype=np.float32)
        if point.pattern == "sparse":
            values[rng.random(count, dtype=np.float32) < 0.5] = 0
        arrays.append(np.abs(values) if plan.kernel == "l2_read" else values)
    a, b, c = arrays
    return a, b, c


def micro_error(plan: Plan, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    """Relative error of a micro-benchmark's output in float64; inf where c is not finite.

    copy and triad: Frobenius norm; l2_read: its grand total against the passes' sum of a.
    """
    if not np.isfinite(c).all():
        return float("inf")
    wide = c.astype(np.float64)
    if plan.kernel == "launch":
        return float(abs(wide[0] - 1.0))
    if plan.kernel == "l2_read":
        expected = np.array([plan.sizes[1] * float(a.sum(dtype=np.float64))])
        wide = np.array([wide.sum()])
    elif plan.kernel == "copy":
        expected = a.astype(np.float64)
    else:
        expected = 3.0 * a.astype(np.float64) + b.astype(np.float64)
    size, error = float(np.linalg.norm(expected)), float(np.linalg.norm(wide - expected))
    if size == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / size


def source(plan: Plan, language: str) -> str:
    """Text of one translation unit; `language` is "opencl" or "cuda" (the kernel alone)."""
    if language not in ("opencl", "cuda"):
        raise SpecError(f"language: got {language!r}, need opencl or cuda")
    stored, accumulated = _TYPES[plan.dtype]
    defines: dict[str, int | str] = {
        "REAL": stored[language],
        "ACC": accumulated,
        "REAL_BITS": 8 * _size(plan.dtype),
        "FUNCTION": plan.function,
        **plan.defines,
    }
    lines = [f"#define {name} {value}" for name, value in sorted(defines.items())]
    kernel = _FILES.get(plan.kernel, "micro.h")
    parts = (f"prelude_{language}.h", "operands.h", kernel)
    return "\n".join([*lines, *(read(part) for part in parts)])


@lru_cache(maxsize=16)
def read(name: str) -> str:
    """Text of one of the files beside this module."""
    return (_FOLDER / name).read_text(encoding="utf-8")
