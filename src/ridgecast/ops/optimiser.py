"""Optimiser steps: what they read, write and compute a parameter, fused or by operation.

Owns operations, bytes and states of the common rules. Knows no device, no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import F64, Amount, Op, Rule, Work, choice, flag, fmt, plain, size

__all__ = ["Optimiser"]


@dataclass(frozen=True, slots=True)
class _Step:
    """Counts a parameter of one rule.

    `states`: kept tensors; `live`: temporaries at once where each operation is a kernel, and
    `by_operation` what these read and write, in whole tensors: (parameter reads, writes, gradient
    reads, state reads, writes, temporary reads, writes, kernels).
    """

    states: int
    live: int
    vector: float
    special: float
    by_operation: tuple[int, int, int, int, int, int, int, int]


# Weight decay (decoupled: multiply, or multiply-add into the gradient) is always counted.
STEPS = {
    # decay 2, p - lr g 2 | g' = g + wd p ; p - lr g'
    "sgd": _Step(0, 1, 4.0, 0.0, (2, 1, 1, 0, 0, 1, 1, 2)),
    # decay 2, m = mu m + g' 2, p - lr m 2 | g' ; m mu ; m + g' ; p - lr m
    "momentum": _Step(1, 1, 6.0, 0.0, (2, 1, 1, 3, 2, 1, 1, 4)),
    # decay 1, m 3, v 4, corrections 2, eps 1, p 2; root, division
    # | decay ; m b1 + ; v b2 ; v + g g ; root ; correction ; eps ; p - lr m / d
    "adam": _Step(2, 1, 13.0, 2.0, (2, 2, 2, 5, 3, 3, 3, 8)),
    # decay 1, update 3, sign 1, p 2, m 3 | decay ; m b1 ; + g ; sign ; p ; m b2 ; + g
    "lion": _Step(1, 1, 10.0, 0.0, (2, 2, 2, 3, 2, 3, 3, 7)),
    # as adam in fp32 between two conversions: codes out 2; block maxima 4, division to codes 2
    "adam8bit": _Step(2, 3, 21.0, 2.0, (2, 2, 2, 2, 2, 10, 8, 12)),
    # g^2 + eps 2, row and column sums 2, v = r c 1, u 1, its square and sum 2, clip 1, p 2, decay 1
    # | decay ; g^2 ; row sums ; column sums ; r c ; root ; u = g / . ; u^2 ; sum ; clip ; p
    "adafactor": _Step(0, 2, 12.0, 2.0, (2, 2, 2, 0, 0, 8, 6, 11)),
}
BLOCK = 2048.0  # elements that share a scale of an 8-bit state (Dettmers et al. 2021, section 2.1)
SEARCH = 8.0  # comparisons that find one of 256 codes


@dataclass(frozen=True)
class Optimiser(Op):
    """One step over `parameters` parameters in `tensors` tensors.

    variant: sgd, momentum, adam (Kingma, Ba 2014, arXiv:1412.6980, with decoupled decay:
    Loshchilov, Hutter 2017, arXiv:1711.05101), adam8bit (states as 8-bit codes of blocks of 2048
    with an fp32 scale: Dettmers et al. 2021, arXiv:2110.02861), adafactor (second moments as sums
    of rows and columns of matrices of `cols` columns, no first moment: Shazeer, Stern 2018,
    arXiv:1804.04235, algorithm 4; statistics, clipping and update are three passes over the
    gradient), lion (one state: Chen et al. 2023, arXiv:2302.06675).

    execution: fused (a kernel for all tensors), foreach (a kernel an operation, for all tensors),
    per_operation (a kernel an operation and tensor); the latter two read and write operands of each
    operation. `master`: parameters in `state_dtype` are updated, a copy in `dtype` is written.

    >>> Optimiser(parameters=1000, dtype="fp32", grad_dtype="fp32").bytes  # 16 read, 12 written
    28000.0
    """

    name: ClassVar[str] = "optimiser"
    what: ClassVar[str] = "optimiser steps: SGD, momentum, Adam, 8-bit Adam, Adafactor, Lion"
    example: ClassVar[str] = "parameters=1000000000 variant=adam master=true"
    streams: ClassVar[bool] = True
    not_monotone: ClassVar[tuple[str, ...]] = ("cols",)

    parameters: int = size("parameters", high=2**48)
    tensors: int = size("tensors that hold them", 1)
    cols: int = size("columns of the matrices (Adafactor)", 4096)
    dtype: str = fmt("format of parameters")
    grad_dtype: str = fmt("format of gradients", like="dtype")
    state_dtype: str = fmt("format of states, temporaries and master copies", "fp32")
    master: bool = flag("keep parameters in state_dtype too")
    variant: str = choice("rule", tuple(STEPS), "adam")
    execution: str = choice("kernels", ("fused", "foreach", "per_operation"), "fused")

    def rules(self) -> Iterator[Rule]:
        """Check that no tensor is empty, and no row longer than all parameters."""
        yield Rule("tensors", np.greater(self.tensors, self.parameters), "at most parameters")
        if self.variant == "adafactor":
            yield Rule("cols", np.greater(self.cols, self.parameters), "at most parameters")

    @property
    def state_bytes(self) -> Amount:
        """Bytes of the states, master copies apart."""
        n = np.asarray(self.parameters, np.float64)
        if self.variant == "adam8bit":
            return plain(2.0 * n + 2.0 * 4.0 * np.ceil(n / BLOCK))
        one = dtype(self.state_dtype).bytes_of(1.0)
        if self.variant == "adafactor":
            rows = np.ceil(n / self.cols)
            return plain(one * (rows + np.multiply(self.cols, self.tensors)))
        return plain(one * STEPS[self.variant].states * n)

    def work(self) -> Work:
        """Operations and bytes of the rule and its execution."""
        n = np.asarray(self.parameters, np.float64)
        step, states = STEPS[self.variant], np.asarray(self.state_bytes)
        one = dtype(self.state_dtype).bytes_of(1.0)
        weights, grads = (dtype(d).bytes_of(1.0) * n for d in (self.dtype, self.grad_dtype))
        updated = one * n if self.master else weights  # what the rule reads and writes
        copy = weights if self.master else 0.0 * n
        held = updated + copy + grads + states
        flops: dict[str, Amount] = {"vector": plain(step.vector * n),
                                    "special": plain(step.special * n)}  # fmt: skip
        if self.variant == "adam8bit":
            flops["integer"] = plain(2.0 * (1.0 + SEARCH) * n)  # look-up and search of each state
        if self.execution != "fused":
            return self._by_operation(flops, updated, copy, grads, held)
        passes = 1.0
        if self.variant == "adafactor":  # v and u are computed again in the last pass
            passes = 3.0
            flops = {unit: plain(count + 2.0 * n) for unit, count in flops.items()}
        read, written = updated + passes * grads + states, updated + copy + states
        launches = passes
        return Work(flops, plain(read), plain(written), footprint=plain(held),
                    resident=plain(held), launches=launches)  # fmt: skip

    def _by_operation(
        self, flops: dict[str, Amount], updated: F64, copy: F64, grads: F64, held: F64
    ) -> Work:
        """Operands of every operation through memory, and its result in a temporary."""
        step = STEPS[self.variant]
        p_in, p_out, g_in, s_in, s_out, t_in, t_out, kernels = step.by_operation
        one = dtype(self.state_dtype).bytes_of(1.0)
        states, n = np.asarray(self.state_bytes), np.asarray(self.parameters, np.float64)
        state = states / step.states if step.states else states  # one of them
        temporary = one * n
        kept = 1.0 if self.variant == "adafactor" else 0.0  # sums of rows and columns
        read = p_in * updated + g_in * grads + (s_in + kept) * state + t_in * temporary
        written = p_out * updated + s_out * state + kept * state + t_out * temporary
        if self.master:  # the copy is a kernel of its own
            read, written, kernels = read + updated, written + copy, kernels + 1
        one_each = self.execution == "per_operation"
        live = temporary / (self.tensors if one_each else 1.0)
        held = held + step.live * live
        launches = plain(kernels * np.asarray(self.tensors if one_each else 1, np.float64))
        return Work(flops, plain(read), plain(written), footprint=plain(held),
                    resident=plain(held), launches=launches, steps=float(kernels))  # fmt: skip
