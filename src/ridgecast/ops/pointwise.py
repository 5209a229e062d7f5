"""Element-wise operations: chains over one or several tensors, fused or each a kernel of its own.

Owns their operations, bytes and launches. Knows no device, no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import Op, Rule, Work, flag, fmt, number, plain, size

__all__ = ["Pointwise"]


@dataclass(frozen=True)
class Pointwise(Op):
    """A chain of `ops` element-wise operations over tensors of `elements` elements.

    The first operation reads one input, each further one the result before it; every further
    input enters at one of them. `outputs` of the results are wanted. `tensors` independent
    tensors of this size are treated alike.

    `fused` (vertical): one kernel reads the inputs, keeps results in registers, writes the wanted
    ones; otherwise each operation is a kernel that reads and writes memory (Wang, Lin, Yi 2010,
    GreenCom, "Kernel fusion"). `horizontal`: one launch serves all tensors, which saves launches
    and no bytes (Li et al. 2022, CGO, arXiv:2007.01277).

    >>> Pointwise(elements=1000, ops=4, dtype="fp32", fused=False).bytes  # 4 x (read + write)
    32000.0
    >>> Pointwise(elements=1000, ops=4, dtype="fp32").bytes
    8000.0
    """

    name: ClassVar[str] = "pointwise"
    what: ClassVar[str] = "element-wise chains, fused vertically and horizontally or not"
    example: ClassVar[str] = "elements=16777216 ops=5 inputs=2 fused=true"
    streams: ClassVar[bool] = True

    elements: int = size("elements of a tensor", high=2**48)
    ops: int = size("operations of the chain", 1)
    inputs: int = size("tensors that are read", 1)
    outputs: int = size("results that are kept", 1)
    tensors: int = size("independent tensors treated alike", 1)
    special: int = size("operations of the chain that are exponentials, roots, divisions", 0, low=0)
    vector: float = number("adds and multiplies of each other operation, an element", 1.0)
    dtype: str = fmt("format of inputs and of results between")
    out_dtype: str = fmt("format of what is kept", like="dtype")
    fused: bool = flag("one kernel for the chain", True)
    horizontal: bool = flag("one launch for all tensors")

    def rules(self) -> Iterator[Rule]:
        """Check that each input enters somewhere and each output is some operation's result."""
        yield Rule("inputs", np.greater(self.inputs, np.add(self.ops, 1)), "at most ops + 1")
        yield Rule("outputs", np.greater(self.outputs, self.ops), "at most ops")
        yield Rule("special", np.greater(self.special, self.ops), "at most ops")

    def work(self) -> Work:
        """Operations and bytes, with every intermediate result through memory unless fused."""
        e, n = np.asarray(self.elements, np.float64), np.asarray(self.ops, np.float64)
        one = dtype(self.dtype).bytes_of(1.0) * e  # bytes of a tensor
        kept = dtype(self.out_dtype).bytes_of(1.0) * e * self.outputs
        all_tensors = np.asarray(self.tensors, np.float64)
        flops = {"vector": plain(all_tensors * e * (n - self.special) * self.vector),
                 "special": plain(all_tensors * e * self.special)}  # fmt: skip
        between = 0.0 if self.fused else 1.0
        read = one * (self.inputs + between * (n - 1.0))
        written = kept + between * one * (n - self.outputs)
        live = between * one * np.minimum(n - self.outputs, 2.0)  # read while the next is written
        live = live * (all_tensors if self.horizontal else 1.0)
        resident = plain(all_tensors * (one * self.inputs + kept) + live)
        launches = np.where(self.fused, 1.0, n) * (1.0 if self.horizontal else all_tensors)
        return Work(flops, plain(all_tensors * read), plain(all_tensors * written),
                    footprint=resident, resident=resident, launches=plain(launches))  # fmt: skip
