"""How a kernel is run: its parameters as frozen values, one configuration or many at once.

Every field is a whole number or an array of them, so that one value can hold a whole space.
Knows no device, no shape and no time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self, cast

import numpy as np
import numpy.typing as npt

from ..errors import SpecError

__all__ = ["ClblastConfig", "LibraryConfig", "SimtConfig", "TensorConfig", "TiledConfig"]

Ints = int | npt.NDArray[np.int64]


def _refuse(owner: str, field: str, values: Ints, bad: npt.NDArray[np.bool_], need: str) -> None:
    if bool(np.any(bad)):
        got = np.broadcast_to(np.asarray(values), bad.shape)[bad].flat[0]
        raise SpecError(f"{owner}.{field}: got {got}, need {need}")


class _Config:
    """What all configurations share: checks, length, rows and columns."""

    __slots__ = ()
    kernel = ""

    def _values(self) -> dict[str, Ints]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    def _check(self, field: str, low: int, high: int) -> None:
        value = np.asarray(getattr(self, field))
        if not np.issubdtype(value.dtype, np.integer):
            raise SpecError(f"{self.kernel}.{field}: got {value.dtype}, need whole numbers")
        need = f"a whole number from {low} to {high}"
        _refuse(self.kernel, field, getattr(self, field), (value < low) | (value > high), need)

    def _check_multiple(self, field: str, *factors: str) -> None:
        product = np.prod([np.asarray(getattr(self, f), np.int64) for f in factors], axis=0)
        value = np.asarray(getattr(self, field))
        need = f"a multiple of {' * '.join(factors)}"
        _refuse(self.kernel, field, getattr(self, field), value % product != 0, need)

    def __len__(self) -> int:
        """Return how many configurations this value holds."""
        return int(np.broadcast(*self._values().values()).size)

    def row(self, index: int) -> Self:
        """Return one of the configurations with plain integers."""
        arrays = np.broadcast_arrays(*self._values().values())
        one = (int(a.reshape(-1)[index]) for a in arrays)
        return type(self)(**dict(zip(self._values(), one, strict=True)))

    def take(self, rows: npt.ArrayLike) -> Self:
        """Return the configurations of a mask or of indices, in a new value."""
        keep = np.asarray(rows)
        names, arrays = self._values(), np.broadcast_arrays(*self._values().values())
        kept = (np.atleast_1d(a)[keep] for a in arrays)
        return type(self)(**dict(zip(names, kept, strict=True)))

    def as_table(self) -> dict[str, npt.NDArray[np.int64]]:
        """Return the parameters as equally long columns, names in lower case."""
        names, arrays = self._values(), np.broadcast_arrays(*self._values().values())
        return {n.lower(): np.atleast_1d(a) for n, a in zip(names, arrays, strict=True)}


@dataclass(frozen=True, slots=True, eq=False)
class TiledConfig(_Config):
    """The naive kernel: square tiles staged in shared memory, one thread per output element.

    Source: CUDA C++ Programming Guide, "Shared Memory" (its matrix-multiplication example).
    """

    tile: Ints = 16
    kernel = "tiled"

    def __post_init__(self) -> None:
        self._check("tile", 1, 32)


@dataclass(frozen=True, slots=True, eq=False)
class _TileConfig(_Config):
    tile_m: Ints = 128
    tile_n: Ints = 128
    tile_k: Ints = 8
    warps_m: Ints = 4
    warps_n: Ints = 2
    stages: Ints = 2
    split_k: Ints = 1
    stream_k: Ints = 0
    cluster_m: Ints = 1
    cluster_n: Ints = 1
    swizzle: Ints = 1

    def __post_init__(self) -> None:
        for name, high in (
            ("tile_m", 1024), ("tile_n", 1024), ("tile_k", 512), ("warps_m", 32), ("warps_n", 32),
            ("stages", 32), ("split_k", 4096), ("cluster_m", 16), ("cluster_n", 16),
            ("swizzle", 65536),
        ):  # fmt: skip
            self._check(name, 1, high)
        object.__setattr__(self, "stream_k", np.asarray(self.stream_k, np.int64)[()])
        self._check("stream_k", 0, 1)
        self._check_multiple("tile_m", "warps_m")
        self._check_multiple("tile_n", "warps_n")
        split = np.asarray(self.split_k)
        both = (split > 1) & (np.asarray(self.stream_k) == 1)
        _refuse(self.kernel, "split_k", self.split_k, both, "1 where stream_k is set")


@dataclass(frozen=True, slots=True, eq=False)
class SimtConfig(_TileConfig):
    """A CUTLASS-like SIMT kernel: block tile, warps along m and n, stages, split-K or stream-K.

    `swizzle` is the number of tile rows that are walked together. The default is CUTLASS's
    128x128_8x2 SGEMM. Source: NVIDIA CUTLASS, "Efficient GEMM in CUDA".
    """

    kernel = "cutlass_simt"


@dataclass(frozen=True, slots=True, eq=False)
class TensorConfig(_TileConfig):
    """A CUTLASS-like tensor-core kernel; parameters as in SimtConfig, clusters multicast tiles."""

    tile_k: Ints = 32
    warps_m: Ints = 2
    warps_n: Ints = 2
    stages: Ints = 3
    kernel = "cutlass_tensor"


@dataclass(frozen=True, slots=True, eq=False)
class ClblastConfig(_Config):
    """Parameters of CLBlast's Xgemm kernel, under CLBlast's own names.

    MWG x NWG x KWG is the block tile, MDIMC x NDIMC the threads, MDIMA and NDIMB the thread
    layouts that load A and B, KWI the unrolling, VWM and VWN the vector widths, STRM and STRN
    strided access, SA and SB staging of A and B in shared memory; GEMMK and KREG choose the
    register-tiled variant. Raises SpecError where CLBlast's constraints do not hold.
    Source: Nugteren 2018, CLBlast (IWOCL), and its tuner `src/tuning/kernels/xgemm`.
    """

    MWG: Ints = 64
    NWG: Ints = 64
    KWG: Ints = 32
    MDIMC: Ints = 8
    NDIMC: Ints = 8
    MDIMA: Ints = 8
    NDIMB: Ints = 8
    KWI: Ints = 2
    VWM: Ints = 1
    VWN: Ints = 1
    STRM: Ints = 0
    STRN: Ints = 0
    SA: Ints = 0
    SB: Ints = 0
    GEMMK: Ints = 0
    KREG: Ints = 1
    kernel = "clblast"

    def __post_init__(self) -> None:
        for name in ("MWG", "NWG", "KWG", "MDIMC", "NDIMC", "MDIMA", "NDIMB", "KWI", "KREG"):
            self._check(name, 1, 1024)
        for name in ("STRM", "STRN", "SA", "SB", "GEMMK"):
            self._check(name, 0, 1)
        for name in ("VWM", "VWN"):
            self._check(name, 1, 16)
        self._check_multiple("KWG", "KWI")
        self._check_multiple("MWG", "MDIMC", "VWM")
        self._check_multiple("NWG", "NDIMC", "VWN")
        self._check_multiple("MWG", "MDIMA", "VWM")
        self._check_multiple("NWG", "NDIMB", "VWN")
        threads = np.asarray(self.MDIMC) * np.asarray(self.NDIMC)
        for name in ("MDIMA", "NDIMB"):
            rows = threads // np.asarray(getattr(self, name))
            bad = (rows < 1) | (np.asarray(self.KWG) % np.maximum(rows, 1) != 0)
            need = f"KWG to be a multiple of MDIMC * NDIMC / {name}"
            _refuse(self.kernel, name, getattr(self, name), bad, need)


@dataclass(frozen=True, slots=True, eq=False)
class LibraryConfig(_Config):
    """A vendor library that picks its own tile; `split` 0 forbids splitting the k loop."""

    split: Ints = 1
    kernel = "library"

    def __post_init__(self) -> None:
        self._check("split", 0, 1)

    @property
    def may_split(self) -> bool:
        """Whether the library may divide the k loop among blocks."""
        return bool(cast("int", self.split))
