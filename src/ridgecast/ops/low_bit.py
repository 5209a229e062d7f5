"""Matrix products whose weights are stored in few bits: converted, looked up, or multiplied as is.

Owns operation and byte counts from shapes, bits and groups. Knows no device, no time: whether the
work of the conversion hides behind the memory or the matrix unit is for the predictor to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import DType, dtype
from ..errors import SpecError
from .base import Amount, Op, Rule, Work, choice, fmt, number, plain, size

__all__ = ["LowBitGemm"]

VARIANTS = ("dequant", "lut", "bit_serial", "codebook", "entropy_coded", "mixed")
REBUILT = ("dequant", "codebook", "entropy_coded")  # variants that make 16-bit weights
OUTLIER_BITS = 16.0


@dataclass(frozen=True)
class LowBitGemm(Op):
    """Activations [m, k] in `dtype` times weights [k, n] stored at `weight_bits` each.

    A `group` of weights along k shares a scale and a zero point. `outliers` is the share of weights
    kept apart in 16 bits with an index each and multiplied on the lanes (SpQR: Dettmers et al.
    2023, arXiv:2306.03078). Fractional bits are averages.

    variant:
    - dequant: weights become `dtype` on the lanes, then the matrix unit multiplies (Marlin: Frantar
      et al. 2024, arXiv:2408.11743). Each block of `tile_m` rows converts all weights again.
    - lut: tables of the 2^`lut_inputs` sums of `lut_inputs` activations, built once for
      `table_columns` outputs, then one look-up and add for `lut_inputs` weights of a bit plane; no
      matrix unit, a scale for each plane (LUT-GEMM: Park et al. 2022, arXiv:2206.09557).
    - bit_serial: planes of weights and of `act_bits`-bit activations, 32 products at once by AND,
      population count and add (Umuroglu and Jahre 2017, arXiv:1709.00299).
    - codebook: each `vector` of weights is a sum of weight_bits * vector / `index_bits` entries of
      as many codebooks (AQLM: Egiazarian et al. 2024, arXiv:2401.06118). Codebooks beyond `on_chip`
      bytes are gathered from memory or its cache: those gathers count as read, not as footprint.
    - entropy_coded: lossless codes of variable length without scales, `decode_ops` integer
      operations a weight (DFloat11: Zhang et al. 2025, arXiv:2504.11651).
    - mixed: the matrix unit multiplies in `dtype` (int8: W4A8, int4: W4A4); weights of fewer bits
      are widened first. scales_on = weights: scales and zeros are applied to weights as integers,
      in the main loop (QServe: Lin et al. 2024, arXiv:2405.04532, section 5); sums: to the partial
      sums of each group, four lane operations each (Atom: Zhao et al. 2023, arXiv:2310.19102).

    where: kernel (conversion inside the matrix kernel), buffer (a kernel rebuilds all weights in
    memory, a second one multiplies), auto (buffer for entropy_coded, else kernel). unit = lanes:
    rebuilt weights are multiplied on the lanes, as kernels for one row do. Operations a weight are
    assumed: set them for a kernel whose machine code is known. Quantising the activations is
    `quantise`, not counted here.

    >>> LowBitGemm(m=1, n=4096, k=4096).work().read  # 8 KiB of x, 8 MiB of weights, 256 KiB scales
    8658944.0
    """

    name: ClassVar[str] = "low_bit_gemm"
    what: ClassVar[str] = "GEMM with weights of few bits: dequantised, looked up, coded, mixed"
    example: ClassVar[str] = "m=16 n=4096 k=4096 weight_bits=4 group=128"
    not_monotone: ClassVar[tuple[str, ...]] = (
        "group", "tile_m", "lut_inputs", "table_columns", "vector", "index_bits",
    )  # fmt: skip

    m: int = size("rows of activations")
    n: int = size("columns of weights")
    k: int = size("depth of the product")
    dtype: str = fmt("format of the activations, and of the product")
    out_dtype: str = fmt("format of the result")
    weight_bits: float = number("bits a stored weight (average)", 4.0, low=1.0, high=16.0)
    group: int = size("weights along k that share a scale; 0: all of a column", 128, low=0)
    scale_bits: float = number("bits a scale", 16.0)
    zero_bits: float = number("bits a zero point", 0.0)
    outliers: float = number("share of weights kept apart in 16 bits", 0.0, high=1.0)
    outlier_index_bits: float = number("bits of index an outlier", 16.0)
    variant: str = choice("how the stored weights are used", VARIANTS, "dequant")
    where: str = choice("where weights are rebuilt", ("auto", "kernel", "buffer"), "auto")
    scales_on: str = choice("mixed: what scales multiply", ("weights", "sums"), "weights")
    unit: str = choice("what multiplies rebuilt weights", ("matrix", "lanes"), "matrix")
    tile_m: int = size("rows of activations that share one conversion", 128)
    unpack_ops: float = number("integer operations to unpack a weight or an index", 1.0)
    scale_ops: float = number("lane operations to turn a weight into a scaled number", 2.0)
    decode_ops: float = number("entropy_coded: integer operations to decode a weight", 16.0)
    act_bits: int = size("bit_serial: bits of an activation", 8, high=16)
    lut_inputs: int = size("lut: activations a table", 8, high=16)
    table_columns: int = size("lut: columns of weights that share a table", 2048)
    vector: int = size("codebook: weights an entry", 8)
    index_bits: int = size("codebook: bits of an index", 16, high=24)
    on_chip: float = number("codebook: bytes of codebooks that stay on chip", 131072.0)

    def rules(self) -> Iterator[Rule]:
        """Which bits, formats and places a variant takes."""
        if self.where == "buffer" and self.variant not in REBUILT:
            raise SpecError(f"low_bit_gemm.where: got 'buffer', need auto or kernel where variant "
                            f"is {self.variant}; allowed for: {', '.join(REBUILT)}")  # fmt: skip
        if self.unit == "lanes" and self.variant not in REBUILT:
            raise SpecError(f"low_bit_gemm.unit: got 'lanes', need matrix where variant is "
                            f"{self.variant}; allowed for: {', '.join(REBUILT)}")  # fmt: skip
        if self.variant == "mixed" and self._format.bits > 8:
            raise SpecError(f"low_bit_gemm.dtype: got {self.dtype!r}, need a format of at most "
                            "8 bits (int8, int4, fp8_e4m3 ...) for variant mixed")  # fmt: skip
        bits = np.asarray(self.weight_bits, np.float64)
        if self.variant == "mixed":
            yield Rule("weight_bits", bits > self._format.bits,
                       f"at most {self._format.bits:g}, the bits of dtype")  # fmt: skip
        if self.variant != "entropy_coded":
            yield Rule("weight_bits", bits > 8.0, "at most 8, or variant entropy_coded")
        if self.variant in ("lut", "bit_serial"):
            yield Rule("weight_bits", bits != np.floor(bits),
                       f"a whole number of bit planes where variant is {self.variant}")  # fmt: skip
        if self.variant == "codebook":
            books = self._codebooks
            yield Rule("weight_bits", np.logical_or(books != np.floor(books), books < 1.0),
                       "a multiple of index_bits / vector")  # fmt: skip

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        m, n, k = self._shape
        out = dtype(self.out_dtype).bytes_of(1.0) * m * n
        held = self.weight_bytes
        read, written = self.act_bytes + held + self._gathered, out
        footprint, launches = self.act_bytes + held + out, 1.0
        if self.rebuilt:
            buffer = self._format.bytes_of(1.0) * n * k
            read, written = read + buffer, written + buffer
            footprint, launches = footprint + buffer, 2.0
        return Work(self._operations(), plain(read), plain(written), footprint=plain(footprint),
                    resident=plain(footprint), launches=launches)  # fmt: skip

    @property
    def rebuilt(self) -> bool:
        """Whether all weights are rebuilt in memory before the product."""
        return self.where == "buffer" or (self.where == "auto" and self.variant == "entropy_coded")

    @property
    def weight_bytes(self) -> Amount:
        """Bytes of the stored weights: codes, scales, zero points, outliers, codebooks."""
        _, n, k = self._shape
        bits = n * k * self.weight_bits + n * self._groups * self._side_bits
        kept = n * k * np.asarray(self.outliers) * (OUTLIER_BITS + self.outlier_index_bits)
        starts = np.where(np.greater(self.outliers, 0.0), 32.0 * (n + 1.0), 0.0)
        return plain((bits + kept + starts) / 8.0 + self._book_bytes)

    @property
    def act_bytes(self) -> Amount:
        """Bytes of the activations, their scales included where the product is mixed."""
        m, _, k = self._shape
        if self.variant == "bit_serial":
            return plain(m * k * self.act_bits / 8.0 + 2.0 * m)
        scales: Amount = 0.0
        if self.variant == "mixed" and not self._format.scale_block:
            scales = 2.0 * m * (self._groups if self.scales_on == "sums" else 1.0)
        return plain(self._format.bytes_of(1.0) * m * k + scales)

    @property
    def _shape(self) -> tuple[Amount, Amount, Amount]:
        m, n, k = (np.asarray(x, np.float64) for x in (self.m, self.n, self.k))
        return m, n, k

    @property
    def _format(self) -> DType:
        """Format of the activations: the one that a weight-only format computes in."""
        d = dtype(self.dtype)
        return dtype(d.compute) if d.weight_only else d

    @property
    def _groups(self) -> Amount:
        """Groups of weights along k."""
        k = np.asarray(self.k, np.float64)
        return np.where(np.equal(self.group, 0), 1.0, np.ceil(k / np.maximum(self.group, 1)))

    @property
    def _side_bits(self) -> Amount:
        """Bits of scale and zero point a group."""
        if self.variant == "entropy_coded":
            return 0.0
        planes = self.weight_bits if self.variant == "lut" else 1.0
        return np.asarray(self.scale_bits) * planes + self.zero_bits

    @property
    def _codebooks(self) -> Amount:
        return np.asarray(self.weight_bits, np.float64) * self.vector / self.index_bits

    @property
    def _book_bytes(self) -> Amount:
        """Bytes of all codebooks, 16-bit entries."""
        if self.variant != "codebook":
            return 0.0
        return self._codebooks * np.exp2(self.index_bits) * self.vector * 2.0

    @property
    def _gathered(self) -> Amount:
        """Bytes gathered from codebooks that do not stay on chip, beyond reading them once."""
        if self.variant != "codebook":
            return 0.0
        _, n, k = self._shape
        gathers = np.ceil(k / self.vector) * n * self._codebooks * self._passes
        bytes_ = gathers * self.vector * 2.0 - self._book_bytes
        return np.where(self._book_bytes > self.on_chip, np.maximum(bytes_, 0.0), 0.0)

    @property
    def _passes(self) -> Amount:
        """Times that each weight is converted."""
        return 1.0 if self.rebuilt else np.ceil(np.asarray(self.m) / self.tile_m)

    def _operations(self) -> dict[str, Amount]:
        """Operations by unit, the outliers' included."""
        m, n, k = self._shape
        counts = {
            "lut": self._lut, "bit_serial": self._bit_serial, "codebook": self._codebook,
            "entropy_coded": self._entropy_coded, "mixed": self._mixed, "dequant": self._dequant,
        }[self.variant]()  # fmt: skip
        kept = 2.0 * m * n * k * np.asarray(self.outliers)
        if self.variant not in ("lut", "bit_serial"):
            unit = "vector" if self.unit == "lanes" else self._format.compute
            counts[unit] = counts.get(unit, 0.0) + 2.0 * m * n * k
        counts["vector"] = counts.get("vector", 0.0) + kept
        return {unit: plain(count) for unit, count in counts.items()}

    def _dequant(self) -> dict[str, Amount]:
        _, n, k = self._shape
        converted = n * k * self._passes
        return {"integer": converted * self.unpack_ops,
                "vector": converted * self.scale_ops}  # fmt: skip

    def _entropy_coded(self) -> dict[str, Amount]:
        _, n, k = self._shape
        return {"integer": n * k * self._passes * self.decode_ops}

    def _codebook(self) -> dict[str, Amount]:
        """Unpack and gather each index, add the entries of further codebooks, scale."""
        _, n, k = self._shape
        indices = np.ceil(k / self.vector) * n * self._codebooks * self._passes
        added = n * k * self._passes * (self._codebooks - 1.0 + self.scale_ops)
        return {"integer": indices * (self.unpack_ops + 1.0), "vector": added}

    def _lut(self) -> dict[str, Amount]:
        """Build 2^mu entries a table, an add each; unpack, load, add: LUT-GEMM, section 3."""
        m, n, k = self._shape
        tables = np.ceil(k / self.lut_inputs)
        built = m * tables * np.exp2(self.lut_inputs) * np.ceil(n / self.table_columns)
        found = m * n * tables * self.weight_bits
        scaled = 2.0 * m * n * self._groups * self.weight_bits
        return {"integer": found * (self.unpack_ops + 1.0), "vector": built + found + scaled}

    def _bit_serial(self) -> dict[str, Amount]:
        """AND, population count and add for each 32 products of a pair of planes."""
        m, n, k = self._shape
        pairs = np.asarray(self.weight_bits) * self.act_bits
        groups = self._groups
        words = groups * np.ceil(k / groups / 32.0)
        return {"integer": m * n * pairs * (3.0 * words + 2.0 * groups),
                "vector": 4.0 * m * n * groups}  # fmt: skip

    def _mixed(self) -> dict[str, Amount]:
        """Widen weights of fewer bits; scale weights as integers, or partial sums on the lanes.

        A partial sum takes a conversion, a product of scales and a multiply-add.
        """
        m, n, k = self._shape
        converted = n * k * self._passes
        narrow = np.less(self.weight_bits, self._format.bits)
        widened = np.where(narrow, converted * self.unpack_ops, 0.0)
        if self.scales_on == "sums":
            return {"integer": widened, "vector": 4.0 * m * n * self._groups}
        grouped = np.greater(self.group, 0)
        scaled = np.where(grouped, converted * self.scale_ops, 0.0)
        return {"integer": widened + scaled, "vector": 4.0 * m * n}
