"""CUTLASS instances as text: a configuration in, a name and C++ out, many instances a source file.

Columns of a point and what they mean:

    kernel                 cutlass_simt (fp32 lanes) or cutlass_tensor
    tile_m tile_n tile_k   block tile in elements
    warps_m warps_n        mma.sync and SIMT: warps of a block along m and n.
                           warp groups: 4 = pingpong (two groups, a tile each), 8 = cooperative
                           (both on one tile); warps_n is 1
    inst_m                 16: mma.sync (sm_80 and later); 64: warp-group instructions (sm_90a)
    stages                 depth of the pipeline
    cluster_m cluster_n    blocks of a cluster, warp groups only
    split_k, stream_k      parts of the k loop, or stream-K's own division
    swizzle                tiles walked together: threadblock swizzle, or the scheduler's largest

Reading the headers is most of the compile time, so instances are compiled in bundles. Touches no
file but the templates of kernels_src and no device.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from ...dtypes import dtype as find_dtype
from ...errors import UnsupportedError
from ..base import Point

__all__ = ["Instance", "bundle_source", "complaint", "driver_version", "instance_of"]

_TYPES = {
    "fp32": "float", "tf32": "cutlass::tfloat32_t", "fp16": "cutlass::half_t",
    "bf16": "cutlass::bfloat16_t", "fp8_e4m3": "cutlass::float_e4m3_t", "int8": "int8_t",
}  # fmt: skip
_OUT = {"tf32": "float", "fp8_e4m3": "cutlass::bfloat16_t", "int8": "int32_t"}
_INSTRUCTIONS = {"fp16": (16, 8, 16), "bf16": (16, 8, 16), "tf32": (16, 8, 8), "int8": (16, 8, 32)}
_GROUPED = ("fp16", "bf16", "fp8_e4m3", "tf32")
_ONE_LAYOUT = {16: ("int8",), 64: ("fp8_e4m3", "tf32")}  # formats that want layout nt
_LAYOUTS = {"n": "cutlass::layout::RowMajor", "t": "cutlass::layout::ColumnMajor"}
_TEMPLATES = {"sm80": "cutlass_sm80.cu", "sm90": "cutlass_sm90.cu"}
_COLUMNS = ("tile_m", "tile_n", "tile_k", "warps_m", "warps_n", "stages", "split_k", "stream_k",
            "cluster_m", "cluster_n", "swizzle", "inst_m")  # fmt: skip
_REQUIRED = ("tile_m", "tile_n", "tile_k", "warps_m", "stages")
_DEFAULTS = {"warps_n": 1, "split_k": 1, "stream_k": 0, "cluster_m": 1, "cluster_n": 1,
             "swizzle": 1}  # fmt: skip
_MOST_SHARED = 232448  # bytes that a block may have on sm_90 (CUDA C++ Programming Guide)
_EPILOGUE_SHARED = 16384  # bytes that the epilogue of a grouped product takes at least (observed)
_SWIZZLES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Instance:
    """One compiled product: its symbol, template family and C++ type; run-time columns are not in.

    `family` is "sm80" or "sm90", whose machine code is sm_90a.
    """

    symbol: str
    family: str
    type_text: str

    def arch(self, capability: str) -> str:
        """Machine code for a device of compute capability "9.0"."""
        return "sm_90a" if self.family == "sm90" else f"sm_{capability.replace('.', '')}"


def complaint(point: Point) -> str:
    """Why no CUTLASS product of ours runs a point, or ""."""
    return next(_complaints(point), "")


def _complaints(point: Point) -> Iterator[str]:
    name = find_dtype(point.dtype).name
    if point.kernel not in ("cutlass_simt", "cutlass_tensor"):
        yield f"provider cutlass has no kernel {point.kernel!r}; cutlass_simt or cutlass_tensor"
    if point.batch != 1:
        yield f"cutlass: one product at a time, got batch {point.batch}"
    if len(point.layout) != 2 or set(point.layout) - {"n", "t"}:
        yield f"cutlass: layout {point.layout!r} is none of nn, nt, tn, tt"
    missing = [column for column in _REQUIRED if column not in point.config]
    unknown = sorted(set(point.config) - {*_COLUMNS, "inst_n", "inst_k"})
    if missing or unknown:
        yield (
            f"cutlass: configuration lacks {', '.join(missing) or 'nothing'}, has unknown "
            f"{', '.join(unknown) or 'nothing'}; columns are {', '.join(_COLUMNS)}"
        )
    c = _config(point)
    if c["split_k"] > 1 and c["stream_k"]:
        yield "cutlass: split_k and stream_k exclude each other"
    if c["swizzle"] not in _SWIZZLES:
        yield f"cutlass: swizzle {c['swizzle']}; need one of {', '.join(map(str, _SWIZZLES))}"
    if point.kernel == "cutlass_simt":
        if name != "fp32":
            yield f"cutlass_simt: fp32 only, got {name}"
        yield from _warp_complaints(c, "fp32", simt=True)
        return
    if c["inst_m"] == 64:
        yield from _group_complaints(point, c, name)
    elif c["inst_m"] == 16:
        if name not in _INSTRUCTIONS:
            yield f"cutlass_tensor, inst_m 16: no {name}; one of {', '.join(_INSTRUCTIONS)}"
        yield from _warp_complaints(c, name, simt=False)
    else:
        yield f"cutlass_tensor: inst_m {c['inst_m']}; 16 (mma.sync) or 64 (warp groups)"
    yield from _operand_complaints(point, c, name)


def _warp_complaints(c: dict[str, int], name: str, *, simt: bool) -> Iterator[str]:
    # SIMT: a warp's threads need 16 x 16 elements of a warp tile
    inst_m, inst_n, inst_k = (16, 16, 1) if simt else _INSTRUCTIONS.get(name, (16, 8, 8))
    least, align = (2, 1) if simt else (3, int(128 // find_dtype(name).bits))
    for side, inst in (("m", inst_m), ("n", inst_n)):
        tile, warps = c[f"tile_{side}"], c[f"warps_{side}"]
        if warps < 1 or tile % (warps * inst):
            yield f"cutlass: tile_{side} {tile} is no multiple of warps_{side} {warps} x {inst}"
    if c["tile_k"] < 1 or c["tile_k"] % inst_k:
        yield f"cutlass: tile_k {c['tile_k']} is no multiple of {inst_k}"
    threads = 32 * c["warps_m"] * c["warps_n"]
    for side in ("m", "n"):
        copies = c[f"tile_{side}"] * c["tile_k"] // align
        if copies % threads:
            yield f"cutlass: {threads} threads cannot share the {copies} copies of tile_{side}"
    if c["stages"] < least:
        yield f"cutlass: stages {c['stages']}; need {least} or more"
    if c["cluster_m"] * c["cluster_n"] != 1:
        yield "cutlass: clusters need warp groups (inst_m 64)"
    if shared_bytes(c, name) > _MOST_SHARED:
        yield f"cutlass: {shared_bytes(c, name)} bytes of shared memory, {_MOST_SHARED} at most"


def _group_complaints(point: Point, c: dict[str, int], name: str) -> Iterator[str]:
    if name not in _GROUPED:
        yield f"cutlass_tensor, inst_m 64: no {name}; one of {', '.join(_GROUPED)}"
    if c["warps_m"] not in (4, 8) or c["warps_n"] != 1:
        yield "cutlass_tensor: warps_m 4 (pingpong) or 8 (cooperative) and warps_n 1"
    if c["tile_m"] % (16 * c["warps_m"]) or c["tile_n"] % 16 or c["tile_n"] > 256:
        yield (
            f"cutlass_tensor: tile {c['tile_m']}x{c['tile_n']}; tile_m a multiple of 16 warps_m, "
            "tile_n a multiple of 16 up to 256"
        )
    if c["tile_k"] * find_dtype(name).bits % 512:
        yield f"cutlass_tensor: tile_k {c['tile_k']} is no multiple of 64 bytes"
    if c["warps_m"] == 4 and (c["split_k"] > 1 or c["stream_k"]):
        yield "cutlass_tensor: a divided k loop needs the cooperative schedule (warps_m 8)"
    if c["cluster_m"] not in (1, 2, 4) or c["cluster_n"] not in (1, 2, 4):
        yield f"cutlass_tensor: cluster {c['cluster_m']}x{c['cluster_n']}; sides are 1, 2 or 4"
    if c["stages"] < 2:
        yield f"cutlass_tensor: stages {c['stages']}; need 2 or more"
    need = shared_bytes(c, name) + _EPILOGUE_SHARED
    if need > _MOST_SHARED:
        yield f"cutlass_tensor: {need} bytes of shared memory, {_MOST_SHARED} at most"
    del point


def _operand_complaints(point: Point, c: dict[str, int], name: str) -> Iterator[str]:
    """Layouts that the instructions read, and rows that start at 16 bytes."""
    if name in _ONE_LAYOUT.get(c["inst_m"], ()) and point.layout != "nt":
        yield f"cutlass_tensor: {name} in layout nt only, got {point.layout}"
    align = int(128 // find_dtype(name).bits)
    contiguous = {
        point.k if point.layout[0] == "n" else point.m,
        point.n if point.layout[1] == "n" else point.k,
    }
    if any(extent % align for extent in contiguous) or point.n % (8 if align == 16 else align):
        yield f"cutlass_tensor: {name} rows must be multiples of {align} elements (16 bytes)"


def shared_bytes(config: dict[str, int], name: str) -> int:
    """Shared memory [bytes] of the pipeline of a block."""
    elements = (config["tile_m"] + config["tile_n"]) * config["tile_k"] * config["stages"]
    return int(elements * find_dtype(name).bits / 8)


def _config(point: Point) -> dict[str, int]:
    given = {name: int(value) for name, value in point.config.items()}
    return {**_DEFAULTS, "inst_m": 1 if point.kernel == "cutlass_simt" else 16, **given}


def instance_of(point: Point) -> Instance:
    """Return the instance that runs a point; raises UnsupportedError when none does."""
    reason = complaint(point)
    if reason:
        raise UnsupportedError(reason)
    c, name = _config(point), find_dtype(point.dtype).name
    grouped = c["inst_m"] == 64
    divided = c["split_k"] > 1 or bool(c["stream_k"])
    parts = ["simt" if point.kernel == "cutlass_simt" else f"inst{c['inst_m']}", name, point.layout]
    parts.append(f"{c['tile_m']}x{c['tile_n']}x{c['tile_k']}")
    parts += [f"w{c['warps_m']}x{c['warps_n']}", f"s{c['stages']}"]
    if grouped:
        parts += [f"c{c['cluster_m']}x{c['cluster_n']}", "streamk" if divided else "persistent"]
        text = _grouped_text(c, name, point.layout, divided)
    else:
        parts.append("streamk" if c["stream_k"] else f"z{c['swizzle']}")
        text = _warp_text(c, name, point.layout, simt=point.kernel == "cutlass_simt")
    return Instance("ridgecast_" + "_".join(parts), "sm90" if grouped else "sm80", text)


def _grouped_text(c: dict[str, int], name: str, layout: str, divided: bool) -> str:
    schedule = "Pingpong" if c["warps_m"] == 4 else "Cooperative"
    fast = "FP8FastAccum" if name == "fp8_e4m3" else ""
    epilogue = "" if schedule == "Pingpong" else "Cooperative"
    scheduler = "StreamKScheduler" if divided else "PersistentScheduler"
    arguments = (
        _TYPES[name], _LAYOUTS[layout[0]], _LAYOUTS[layout[1]], _OUT.get(name, _TYPES[name]),
        c["tile_m"], c["tile_n"], c["tile_k"], c["cluster_m"], c["cluster_n"], c["stages"],
        f"cutlass::gemm::KernelTmaWarpSpecialized{schedule}{fast}",
        f"cutlass::epilogue::TmaWarpSpecialized{epilogue}",
        f"cutlass::gemm::{scheduler}",
    )  # fmt: skip
    return f"ridgecast::Sm90<{', '.join(map(str, arguments))}>"


def _warp_text(c: dict[str, int], name: str, layout: str, *, simt: bool) -> str:
    out = _OUT.get(name, _TYPES[name])
    align = 1 if simt else int(128 // find_dtype(name).bits)
    swizzle = f"GemmIdentityThreadblockSwizzle<{c['swizzle']}>"
    if c["stream_k"]:
        swizzle = "ThreadblockSwizzleStreamK"
    warp = (c["tile_m"] // c["warps_m"], c["tile_n"] // c["warps_n"], c["tile_k"])
    arguments = (
        _TYPES[name], _LAYOUTS[layout[0]], _LAYOUTS[layout[1]], out,
        "int32_t" if name == "int8" else "float",
        f"cutlass::arch::OpClass{'Simt' if simt else 'TensorOp'}",
        _shape(c["tile_m"], c["tile_n"], c["tile_k"]), _shape(*warp),
        _shape(*((1, 1, 1) if simt else _INSTRUCTIONS[name])), c["stages"],
        align, 1 if simt else 4 if out in ("int32_t", "float") else 8,
        f"cutlass::gemm::threadblock::{swizzle}",
        f"cutlass::arch::OpMultiplyAdd{'Saturate' if name == 'int8' else ''}",
    )  # fmt: skip
    return f"ridgecast::Sm80<{', '.join(map(str, arguments))}>"


def _shape(m: int, n: int, k: int) -> str:
    return f"cutlass::gemm::GemmShape<{m}, {n}, {k}>"


@functools.cache
def _template(name: str) -> str:
    return (resources.files("ridgecast.measure.kernels_src") / name).read_text(encoding="utf-8")


@functools.cache
def driver_version() -> str:
    """Short name of the templates' text: a library built from others is not used."""
    names = ("cutlass_common.cu", *sorted(_TEMPLATES.values()))
    return hashlib.sha256("".join(map(_template, names)).encode()).hexdigest()[:12]


def bundle_source(instances: Sequence[Instance], version: str) -> str:
    """CUDA source of instances of one family; their symbols start its C functions.

    `version` of the headers goes into a comment, so that a cache by source tells them apart.
    """
    (family,) = {instance.family for instance in instances}
    lines = [f"RIDGECAST_PRODUCT({each.symbol}, {each.type_text})" for each in instances]
    return "\n".join(
        [
            f"// CUTLASS {version}",
            _template("cutlass_common.cu"),
            _template(_TEMPLATES[family]),
            *lines,
            "",
        ]
    )
