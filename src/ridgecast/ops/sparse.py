"""Matrix products whose weights are partly zero: 2:4, in blocks, or anywhere.

Owns operation and byte counts from shapes and density. Knows no device, no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import DType, dtype
from ..errors import SpecError
from .base import Amount, Op, Rule, Work, choice, fmt, number, plain, share, size

__all__ = ["SparseGemm"]

VARIANTS = ("2:4", "block", "unstructured")
POINTER = 4.0  # bytes of a row's start


@dataclass(frozen=True)
class SparseGemm(Op):
    """Activations [m, k] times weights [k, n] of which the share `density` is not zero.

    variant:
    - 2:4: two of four weights along k are kept, with two bits each that say which; the matrix unit
      does half the operations, so never more than twice as fast (Mishra et al. 2021,
      arXiv:2104.08378). density is 0.5.
    - block: blocks of `block` x `block` weights are kept or not, an index each; blocks at the
      border are stored in full (Gray et al. 2017, "GPU kernels for block-sparse weights").
    - unstructured: any weights are kept, index = offset (`index_bits` each) or bitmap (one bit for
      every weight). compute = dense: weights are scattered on chip, `unpack_ops` integer operations
      a kept weight, and the matrix unit multiplies zeros too ("load as sparse, compute as dense",
      Flash-LLM: Xia et al. 2023, arXiv:2309.10285); again for each `tile_m` rows. compute = sparse:
      the lanes multiply what is kept, no matrix unit (Sputnik: Gale et al. 2020, arXiv:2006.10901).

    >>> SparseGemm(m=1, n=4096, k=4096).work().read  # 8 KiB of x, 16 MiB of weights, 2 MiB of bits
    18882560.0
    """

    name: ClassVar[str] = "sparse_gemm"
    what: ClassVar[str] = "GEMM with sparse weights: 2:4, blocks, unstructured"
    example: ClassVar[str] = "m=16 n=4096 k=4096 variant=unstructured density=0.2"
    not_monotone: ClassVar[tuple[str, ...]] = ("block", "tile_m")

    m: int = size("rows of activations")
    n: int = size("columns of weights")
    k: int = size("depth of the product")
    dtype: str = fmt("format of activations and weights")
    out_dtype: str = fmt("format of the result")
    density: float = share("share of weights, or of blocks, that is kept", 0.5)
    variant: str = choice("where the kept weights may stand", VARIANTS, "2:4")
    block: int = size("block: side of a block", 64)
    compute: str = choice("unstructured: which unit multiplies", ("dense", "sparse"), "dense")
    index: str = choice("unstructured: how places are kept", ("offset", "bitmap"), "offset")
    index_bits: float = number("bits of index a kept weight or block", 16.0)
    tile_m: int = size("unstructured: rows of activations that share one decompression", 128)
    unpack_ops: float = number("integer operations to place a kept weight", 2.0)

    def rules(self) -> Iterator[Rule]:
        """2:4 keeps half of fours."""
        if self.variant == "2:4":
            yield Rule("density", np.not_equal(self.density, 0.5), "0.5 where variant is 2:4")
            yield Rule("k", np.mod(self.k, 4) != 0, "a multiple of 4 where variant is 2:4")
            if self._format.scale_block:
                raise SpecError(f"sparse_gemm.dtype: got {self.dtype!r}, need a format without "
                                f"block scales where variant is 2:4")  # fmt: skip

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        m, n, k = (np.asarray(x, np.float64) for x in (self.m, self.n, self.k))
        out = dtype(self.out_dtype).bytes_of(1.0) * m * n
        act = dtype(self._format.compute) if self._format.weight_only else self._format
        read = act.bytes_of(1.0) * m * k + self.weight_bytes
        flops = {unit: plain(count) for unit, count in self._operations(m, n, k).items()}
        return Work(flops, plain(read), plain(out))

    @property
    def kept(self) -> Amount:
        """Weights that are stored; an average where blocks or density do not divide."""
        n, k = np.asarray(self.n, np.float64), np.asarray(self.k, np.float64)
        if self.variant == "block":
            return plain(self._blocks * np.square(np.asarray(self.block, np.float64)))
        return plain(n * k * self.density)

    @property
    def weight_bytes(self) -> Amount:
        """Bytes of the kept weights and of what says where they stand."""
        n, k = np.asarray(self.n, np.float64), np.asarray(self.k, np.float64)
        values = self._format.bytes_of(1.0) * self.kept
        if self.variant == "2:4":
            return plain(values + self.kept * 2.0 / 8.0)
        if self.variant == "block":
            rows = np.ceil(n / self.block)
            return plain(values + self._blocks * self.index_bits / 8.0 + POINTER * (rows + 1.0))
        places = n * k if self.index == "bitmap" else self.kept * self.index_bits
        return plain(values + places / 8.0 + POINTER * (n + 1.0))

    @property
    def _format(self) -> DType:
        return dtype(self.dtype)

    @property
    def _blocks(self) -> Amount:
        """Kept blocks."""
        n, k = np.asarray(self.n, np.float64), np.asarray(self.k, np.float64)
        return np.ceil(n / self.block) * np.ceil(k / self.block) * self.density

    def _operations(self, m: Amount, n: Amount, k: Amount) -> dict[str, Amount]:
        unit = self._format.compute
        if self.variant == "2:4":
            return {unit: m * n * k}
        if self.variant == "block":
            return {unit: 2.0 * m * self.kept, "integer": self._blocks * self.unpack_ops}
        placed = self.kept * np.ceil(np.divide(m, self.tile_m)) * self.unpack_ops
        if self.compute == "dense":
            return {unit: 2.0 * m * n * k, "integer": placed}
        return {"vector": 2.0 * m * self.kept, "integer": placed}
