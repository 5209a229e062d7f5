"""Candidate configurations to tune over, already within each kernel's and device's rules.

Owns the grids. Which point is best is for `search` to say.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import SpecError
from ..hardware import Hardware
from .clblast import clblast_plan
from .config import ClblastConfig, SimtConfig, TensorConfig, TiledConfig
from .constants import mma_rows
from .problem import problem
from .tile import simt_plan, tensor_plan
from .tiled import tiled_plan

__all__ = ["CLBLAST_GRID", "clblast_space", "simt_space", "tensor_space", "tiled_space"]

Columns = dict[str, npt.NDArray[np.int64]]

# The published Kernel Tuner space of Xgemm (AutoTuningAssociation/benchmark_hub, gemm; its RTX
# 3090 run has all 17,956 points). Source of the parameters: Nugteren 2018, CLBlast (IWOCL).
CLBLAST_GRID: dict[str, tuple[int, ...]] = {
    "MWG": (16, 32, 64, 128), "NWG": (16, 32, 64, 128), "KWG": (32,),
    "MDIMC": (8, 16, 32), "NDIMC": (8, 16, 32), "MDIMA": (8, 16, 32), "NDIMB": (8, 16, 32),
    "KWI": (2,), "VWM": (1, 2, 4, 8), "VWN": (1, 2, 4, 8), "STRM": (0,), "STRN": (0,),
    "SA": (0, 1), "SB": (0, 1),
}  # fmt: skip


def _product(grid: dict[str, tuple[int, ...]]) -> Columns:
    mesh = np.meshgrid(*(np.asarray(v, np.int64) for v in grid.values()), indexing="ij")
    return {name: axis.ravel() for name, axis in zip(grid, mesh, strict=True)}


def _keep(columns: Columns, mask: npt.NDArray[np.bool_]) -> Columns:
    return {name: values[mask] for name, values in columns.items()}


def clblast_space(
    hardware: Hardware | None = None,
    grid: dict[str, tuple[int, ...]] | None = None,
    dtype: str = "fp32",
) -> ClblastConfig:
    """Return Xgemm's configurations that meet CLBlast's constraints (and fit `hardware`, if given).

    Raises SpecError for parameters that Xgemm does not have or a grid without a valid point.

    >>> len(clblast_space())
    17956
    """
    wanted = {**CLBLAST_GRID, **(grid or {})}
    unknown = set(wanted) - set(ClblastConfig.__dataclass_fields__)
    if unknown:
        raise SpecError(f"clblast.grid: unknown parameters {', '.join(sorted(unknown))}")
    c = _product(wanted)
    threads = c["MDIMC"] * c["NDIMC"]
    rows_a, rows_b = threads // c["MDIMA"], threads // c["NDIMB"]
    fits = (rows_a > 0) & (rows_b > 0) & (c["KWG"] % c["KWI"] == 0)
    fits &= (c["KWG"] % np.maximum(rows_a, 1) == 0) & (c["KWG"] % np.maximum(rows_b, 1) == 0)
    for tile, dims, vector in (
        ("MWG", ("MDIMC", "MDIMA"), "VWM"),
        ("NWG", ("NDIMC", "NDIMB"), "VWN"),
    ):
        for dim in dims:
            fits &= c[tile] % (c[dim] * c[vector]) == 0
    if not fits.any():
        raise SpecError("clblast.grid: no point meets CLBlast's constraints")
    config = ClblastConfig(**_keep(c, fits))
    if hardware is None:
        return config
    _, fit = clblast_plan(config, hardware, problem(1, dtype=dtype))
    return config.take(fit.blocks_per_sm >= 1)


def tiled_space(hardware: Hardware, dtype: str = "fp32") -> TiledConfig:
    """Return the tiles 1 to 32 of the naive kernel that fit on the device."""
    config = TiledConfig(np.arange(1, 33))
    _, fit = tiled_plan(config, hardware, problem(1, dtype=dtype))
    return config.take(fit.blocks_per_sm >= 1)


def simt_space(hardware: Hardware, dtype: str = "fp32") -> SimtConfig:
    """Return SIMT tiles whose registers and shared memory fit on the device.

    Warps hold 32 x 32 to 64 x 64 outputs, tile_k is 8 or 16, stages 2 (double buffering) or, with
    asynchronous copies (sm_80 and later), 3 to 5. Source: CUTLASS, cutlass_library/generator.py.
    """
    stages = (2,) if hardware.isa < "sm_80" and hardware.isa.startswith("sm_") else (2, 3, 4, 5)
    c = _product({
        "tile_m": (32, 64, 128, 256), "tile_n": (32, 64, 128, 256), "tile_k": (8, 16),
        "warps_m": (1, 2, 4), "warps_n": (1, 2, 4), "stages": stages, "split_k": (1, 2, 4, 8),
    })  # fmt: skip
    config = SimtConfig(**_warp_sized(c, 16, 64))
    _, fit = simt_plan(config, hardware, problem(1, dtype=dtype))
    return config.take(fit.blocks_per_sm >= 1)


def tensor_space(hardware: Hardware, dtype: str = "bf16") -> TensorConfig:
    """Return tensor-core tiles whose registers and shared memory fit on the device.

    tile_k spans 64 or 128 bytes of the operand; clusters of two where the architecture has them;
    splits of k and stream-K are both offered. Source: CUTLASS, cutlass_library/generator.py.
    Raises UnsupportedError where the device has no tensor unit for the format.
    """
    p = problem(1, dtype=dtype)
    per_byte = 1.0 / max(p.a_size, p.b_size)
    stages = (2,) if hardware.isa < "sm_80" and hardware.isa.startswith("sm_") else (2, 3, 4, 5)
    clusters = (1, 2) if mma_rows(hardware) else (1,)
    c = _product({
        "tile_m": (64, 128, 256), "tile_n": (32, 64, 128, 256),
        "tile_k": tuple(int(bytes_ * per_byte) for bytes_ in (64, 128)),
        "warps_m": (1, 2, 4), "warps_n": (1, 2, 4), "stages": stages,
        "split_k": (1, 2, 4, 8), "stream_k": (0, 1), "cluster_m": clusters,
    })  # fmt: skip
    c = _keep(c, (c["split_k"] == 1) | (c["stream_k"] == 0))
    config = TensorConfig(**_warp_sized(c, 16, 128))
    _, fit = tensor_plan(config, hardware, p)
    return config.take(fit.blocks_per_sm >= 1)


def _warp_sized(columns: Columns, low: int, high: int) -> Columns:
    """Keep tiles whose warps hold low..high rows and columns, no more than 4 to 1."""
    m = columns["tile_m"] // columns["warps_m"]
    n = columns["tile_n"] // columns["warps_n"]
    ok = (m >= low) & (m <= high) & (n >= low) & (n <= high)
    return _keep(columns, ok & (m <= 4 * n) & (n <= 4 * m))
