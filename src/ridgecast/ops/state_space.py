"""State-space layers: the selective scan of Mamba, and the chunked dual form of Mamba-2.

Owns operation and byte counts from shapes and formats. Knows no device, no time. The projections,
the short convolution and the norm around a layer are operations of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import Amount, Op, Rule, Work, choice, flag, fmt, plain, size

__all__ = ["SelectiveScan", "Ssd"]

COMBINE = 6.0  # lane operations an element of a work-efficient scan: two (a, b) combinations of 3
FP32 = 4.0


@dataclass(frozen=True)
class SelectiveScan(Op):
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t,  y_t = C_t h_t + D x_t, for each channel.

    Gu and Dao 2023, arXiv:2312.00752, section 3.3. x, dt, z and y are [batch, length, channels],
    B and C [batch, length, groups, state] in `dtype`; A [channels, state], D and dt's bias in fp32.
    `gated`: the result is multiplied by silu(z).

    variant:
    - fused: all that has `state` elements a channel stays on chip; a parallel scan (two
      combinations an element: Blelloch 1990) over one `chunk` after the other.
    - materialised: exp(dt A) and dt B x are written and read, and so is h, all in `state_dtype`;
      three kernels. This is what the paper's fused scan saves.
    - step: decoding; each of the `length` tokens is a kernel that reads and writes the state.

    `carry`: fused and materialised start from a state that is read. The last state is written.

    >>> SelectiveScan(batch=1, length=2048, channels=1536, gated=False).work().flops["special"]
    56623104.0
    """

    name: ClassVar[str] = "selective_scan"
    what: ClassVar[str] = "selective scan (Mamba): fused, materialised, or a decode step"
    example: ClassVar[str] = "batch=1 length=2048 channels=5120 state=16"

    length: int = size("tokens a sequence")
    channels: int = size("channels (the inner size)")
    batch: int = size("sequences", 1)
    state: int = size("states a channel", 16)
    groups: int = size("groups of channels that share B and C", 1)
    dtype: str = fmt("format of x, dt, B, C, z and y")
    state_dtype: str = fmt("format of the states in memory", "fp32")
    gated: bool = flag("multiplied by silu(z)", True)
    carry: bool = flag("starts from a state in memory")
    variant: str = choice("how it is computed", ("fused", "materialised", "step"), "fused")
    chunk: int = size("fused: tokens a block scans at once", 2048)

    def rules(self) -> Iterator[Rule]:
        """Relate groups to channels."""
        yield Rule("channels", np.mod(self.channels, self.groups) != 0, "a multiple of groups")

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        e, es = dtype(self.dtype).bytes_of(1.0), dtype(self.state_dtype).bytes_of(1.0)
        b, t, d, s = self._shape
        cells, states = b * t * d, b * d * s
        stepped = self.variant == "step"
        inputs = e * cells * (3.0 if self.gated else 2.0) + 2.0 * e * b * t * self.groups * s
        weights = FP32 * (d * s + 2.0 * d)
        first = es * states if self.carry or stepped else 0.0
        outputs, last = e * cells, es * states
        footprint = inputs + weights + outputs + last
        if stepped:  # one kernel a token: weights and state each time
            read, written = inputs + t * (weights + first), outputs + t * last
            return self._made(read, written, footprint, launches=t)
        read, written = inputs + weights + first, outputs + last
        footprint = footprint + first
        steps = np.ceil(t / self.chunk)
        if self.variant == "materialised":  # exp(dt A) and dt B x, then h; x again for D x
            big = es * cells * s
            return self._made(read + 3.0 * big + e * cells, written + 3.0 * big,
                              footprint + 3.0 * big, launches=3.0, steps=steps)  # fmt: skip
        return self._made(read, written, footprint, steps=steps)

    def _made(
        self, read: Amount, written: Amount, footprint: Amount, *, launches: Amount = 1.0,
        steps: Amount = 0.0,
    ) -> Work:  # fmt: skip
        return Work(self._operations(), plain(read), plain(written), footprint=plain(footprint),
                    launches=plain(launches), steps=plain(steps))  # fmt: skip

    @property
    def _shape(self) -> tuple[Amount, Amount, Amount, Amount]:
        fields = (self.batch, self.length, self.channels, self.state)
        b, t, d, s = (np.asarray(x, np.float64) for x in fields)
        return b, t, d, s

    def _operations(self) -> dict[str, Amount]:
        """For each state of a token: dt A, its exp, times B, the recurrence, times C and add.

        For each channel of a token: bias and softplus of dt, dt x, D x, silu(z) times y.
        """
        b, t, d, s = self._shape
        cells = b * t * d
        recurrence = 2.0 if self.variant == "step" else COMBINE
        gate, gate_special = (3.0, 2.0) if self.gated else (0.0, 0.0)
        return {
            "vector": plain(cells * (s * (1.0 + 1.0 + recurrence + 2.0) + 5.0 + gate)),
            "special": plain(cells * (s + 2.0 + gate_special)),
        }


@dataclass(frozen=True)
class Ssd(Op):
    """Mamba-2's state-space dual: products of matrices inside chunks, a recurrence between them.

    Dao and Gu 2024, arXiv:2405.21060, section 6. For each chunk of q tokens, G groups and H heads
    of size P with states of size N: C B^T (2 q q N G), its masked product with x (2 q q P H), the
    chunk's states B^T x (2 q N P H), and C times the state before the chunk (2 q N P H); products
    are counted in full, the masked half too. The last chunk may be shorter.

    variant:
    - chunked: five kernels, as in the authors' code; the sums of dt A, C B^T and the states of all
      chunks, before and after the recurrence, go through memory in `state_dtype`.
    - fused: one kernel that keeps them on chip and walks over the chunks.
    - step: decoding; each of the `length` tokens is a kernel that reads and writes the state and
      works on the lanes.

    >>> Ssd(length=256, heads=1, head_dim=64, state=128, chunk=256).flops == 2 * 256 * (
    ...     256 * 128 + 256 * 64 + 2 * 128 * 64)
    True
    """

    name: ClassVar[str] = "ssd"
    what: ClassVar[str] = "state-space dual (Mamba-2): chunked, fused, or a decode step"
    example: ClassVar[str] = "batch=1 length=4096 heads=80 head_dim=64 state=128"
    not_monotone: ClassVar[tuple[str, ...]] = ("chunk",)

    length: int = size("tokens a sequence")
    heads: int = size("heads")
    batch: int = size("sequences", 1)
    head_dim: int = size("size of a head", 64)
    state: int = size("states a channel", 128)
    groups: int = size("groups of heads that share B and C", 1)
    chunk: int = size("tokens a chunk", 256)
    dtype: str = fmt("format of x, dt, B, C and y, and of the products")
    state_dtype: str = fmt("format of what goes through memory in between", "fp32")
    carry: bool = flag("starts from a state in memory")
    variant: str = choice("how it is computed", ("chunked", "fused", "step"), "chunked")

    def rules(self) -> Iterator[Rule]:
        """Relate groups to heads."""
        yield Rule("heads", np.mod(self.heads, self.groups) != 0, "a multiple of groups")

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        e, es = dtype(self.dtype).bytes_of(1.0), dtype(self.state_dtype).bytes_of(1.0)
        b, t, h, p, n, g = self._shape
        x, dt, bc = e * b * t * h * p, e * b * t * h, e * b * t * g * n
        weights = FP32 * 3.0 * h  # A, D and dt's bias
        state = es * b * h * p * n
        stepped = self.variant == "step"
        first = state if self.carry or stepped else 0.0
        inputs = x + dt + 2.0 * bc
        if stepped:
            read, written = inputs + t * (weights + state), x + t * state
            footprint = inputs + weights + x + state
            return Work(self._stepped(), plain(read), plain(written), footprint=plain(footprint),
                        launches=plain(t))  # fmt: skip
        read, written = inputs + weights + first, x + state
        footprint, launches = read + written, 1.0
        if self.variant == "chunked":
            sums, scores = 2.0 * es * b * t * h, es * b * g * self._squares
            between = self._chunks * state  # states of all chunks, before and after the recurrence
            # sums are read by the kernels of states and of outputs, their ends by the recurrence
            ends = es * b * h * self._chunks
            read = read + 2.0 * sums + ends + scores + 2.0 * between + x + 2.0 * bc
            written = written + sums + scores + 2.0 * between
            footprint = footprint + sums + scores + 2.0 * between
            launches = 5.0
        return Work(self._chunked(), plain(read), plain(written), footprint=plain(footprint),
                    launches=launches, steps=plain(self._chunks))  # fmt: skip

    @property
    def _shape(self) -> tuple[Amount, Amount, Amount, Amount, Amount, Amount]:
        fields = (self.batch, self.length, self.heads, self.head_dim, self.state, self.groups)
        b, t, h, p, n, g = (np.asarray(x, np.float64) for x in fields)
        return b, t, h, p, n, g

    @property
    def _chunks(self) -> Amount:
        return np.ceil(np.divide(self.length, self.chunk))

    @property
    def _squares(self) -> Amount:
        """Sum over chunks of their tokens squared."""
        q = np.asarray(self.chunk, np.float64)
        whole, rest = np.floor(np.divide(self.length, q)), np.mod(self.length, q)
        return whole * q * q + rest * rest

    def _chunked(self) -> dict[str, Amount]:
        """Products; on the lanes the decay mask, its use, the recurrence, softplus, sums, D x."""
        b, t, h, p, n, g = self._shape
        squares, states = self._squares, b * h * self._chunks * p * n
        matrix = 2.0 * b * (squares * (n * g + p * h) + 2.0 * t * n * p * h)
        mask = 3.0 * b * h * squares  # difference of sums, times C B^T, times dt
        # a token and head: softplus and bias 2, dt A and its sum 2, decay and dt of B 2 + n,
        # decay, add and D x of y 4 p
        tokens = b * t * h * (6.0 + n + 4.0 * p)
        special = b * h * (squares + 4.0 * t + self._chunks)
        return {self.dtype: plain(matrix), "vector": plain(mask + tokens + 2.0 * states),
                "special": plain(special)}  # fmt: skip

    def _stepped(self) -> dict[str, Amount]:
        """Decode: h = decay h + (dt x) B and y = C h + D x; softplus and exp a token and head."""
        b, t, h, p, n, _ = self._shape
        tokens = b * t * h
        return {"vector": plain(tokens * (5.0 * p * n + 3.0 * p + 3.0)),
                "special": plain(tokens * 3.0)}  # fmt: skip
