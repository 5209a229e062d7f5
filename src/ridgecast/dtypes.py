"""Number formats: bits per element, scale overhead, and the unit that multiplies them.

Owns the one lower-case list of formats. Scales are counted apart from elements, so that
`bytes_of` is exact for block formats. Must not import any other room but `errors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import SpecError, unknown_name

__all__ = ["DTYPES", "DType", "dtype"]

Kind = Literal["float", "int", "block_float", "block_int"]


@dataclass(frozen=True, slots=True)
class DType:
    """One number format.

    `bits` is the size of an element, `scale_bits` the size of one scale shared by `scale_block`
    elements (0 = no scales). `rate_as` names the format whose peak rate a dense multiplier of
    this format runs at (fp8_block runs on the fp8 unit; int4 weight-only dequantises to bf16).
    `compute` is the format that the multiplier sees. `weight_only` formats hold one operand.
    """

    name: str
    bits: float
    kind: Kind = "float"
    scale_bits: float = 0.0
    scale_block: int = 0
    rate_as: str = ""
    weight_only: bool = False

    @property
    def compute(self) -> str:
        """Name of the format whose multiplier does the work."""
        return self.rate_as or self.name

    @property
    def bits_with_scales(self) -> float:
        """Bits per element, the shared scales included."""
        return self.bits + (self.scale_bits / self.scale_block if self.scale_block else 0.0)

    def bytes_of(self, elements: float) -> float:
        """Bytes of `elements` values, their scales included.

        >>> dtype("nvfp4").bytes_of(32)
        18.0
        """
        return elements * self.bits_with_scales / 8.0


# Sources: IEEE 754-2019; NVIDIA TF32 (19 bits used, stored in 32); OCP 8-bit Floating Point
# Specification 1.0; OCP Microscaling Formats 1.0 (mxfp4: 32 elements share an 8-bit scale);
# NVIDIA NVFP4 (16 elements share an e4m3 scale); DeepSeek-V3 report (fp8 blocks of 128 x 128
# weights or 1 x 128 activations share an fp32 scale: the activation rule is counted).
DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        DType("fp64", 64),
        DType("fp32", 32),
        DType("tf32", 32),
        DType("bf16", 16),
        DType("fp16", 16),
        DType("fp8_e4m3", 8),
        DType("fp8_e5m2", 8),
        DType("fp8_block", 8, "block_float", 32, 128, rate_as="fp8_e4m3"),
        DType("nvfp4", 4, "block_float", 8, 16),
        DType("mxfp4", 4, "block_float", 8, 32),
        DType("int8", 8, "int"),
        DType("int4", 4, "int"),
        DType("int8_wo", 8, "block_int", 16, 128, rate_as="bf16", weight_only=True),
        DType("int4_wo", 4, "block_int", 16, 128, rate_as="bf16", weight_only=True),
    )
}

_ALIASES = {
    "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32",
    "float64": "fp64", "double": "fp64", "fp8": "fp8_e4m3", "e4m3": "fp8_e4m3", "e5m2": "fp8_e5m2",
    "float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2", "fp4": "nvfp4", "w4a16": "int4_wo",
    "w8a16": "int8_wo", "sgemm": "fp32", "dgemm": "fp64", "hgemm": "fp16",
}  # fmt: skip


def dtype(name: str | DType) -> DType:
    """Look up a format by name or by a common other spelling.

    Raises SpecError with the nearest three names.

    >>> dtype("bfloat16").name
    'bf16'
    """
    if isinstance(name, DType):
        return name
    key = str(name).lower().strip()
    key = _ALIASES.get(key, key)
    try:
        return DTYPES[key]
    except KeyError:
        raise SpecError(unknown_name("dtype", str(name), [*DTYPES, *_ALIASES])) from None
