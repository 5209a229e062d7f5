"""Recurrent layers: LSTM, GRU and sLSTM, weights re-read each step or held on chip.

Owns operation and byte counts from shapes and formats. Knows no device, no time: how many bytes of
weights a chip can hold is a field.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import Amount, Op, Rule, Work, choice, flag, fmt, number, plain, size

__all__ = ["Recurrent"]

# cell -> gates; lane and special operations for a hidden unit and step, past the products:
# lstm: 4 x (input part, state part, bias) 8, c = f c + i g 3, h = o tanh(c) 1; 5 activations
# gru: 3 x 2, the bias inside the reset product 1, r (..) 1, h = n + z (h - n) 3; 3 activations
# slstm: 4 x 2, m' = max(log f + m, i) 2, i - m' and (log f + m) - m' 2, c = f c + i z 3,
#   n = f n + i 2, h = o (c / n) 1; 3 activations, then exp(..), exp(..) and the division
# an activation is an exp and a reciprocal (or logarithm), and an add
_GATES = {"lstm": 4.0, "gru": 3.0, "slstm": 4.0}
_LANES = {"lstm": 12.0 + 5.0, "gru": 11.0 + 3.0, "slstm": 18.0 + 3.0}
_SPECIAL = {"lstm": 10.0, "gru": 6.0, "slstm": 6.0 + 3.0}
_STATES = {"lstm": 1.0, "gru": 0.0, "slstm": 3.0}  # kept beside h, fp32


@dataclass(frozen=True)
class Recurrent(Op):
    """`steps` dependent steps of a cell over a batch: gates of W x_t + R h_(t-1), then the state.

    lstm (Hochreiter and Schmidhuber 1997), gru (Cho et al. 2014, arXiv:1406.1078) or slstm (Beck
    et al. 2024, arXiv:2405.04517: exponential gates, R block-diagonal by `heads`). The products
    with x of all steps are one matrix product ahead of the steps (Appleyard et al. 2016,
    arXiv:1604.01946); R is multiplied step by step. Forward pass.

    variant:
    - unfused: each step is a product and a kernel for the gates, R re-read.
    - streamed: each step is one kernel, R re-read, gates on chip.
    - persistent: one kernel for all steps; as much of R as `on_chip` bytes hold is read once, the
      rest each step; h goes through memory, a barrier a step (Diamos et al. 2016, "Persistent
      RNNs", ICML).

    Layers run one after the other; the two directions side by side.

    >>> Recurrent(batch=1, steps=10, input=512, hidden=512).flops  # 10 x 2 x 4 x 512 x 1024
    41943040.0
    """

    name: ClassVar[str] = "recurrent"
    not_monotone: ClassVar[tuple[str, ...]] = ("heads",)
    what: ClassVar[str] = "recurrent layer: LSTM, GRU, sLSTM; weights streamed or held on chip"
    example: ClassVar[str] = "cell=lstm batch=32 steps=128 input=1024 hidden=1024"

    steps: int = size("time steps")
    hidden: int = size("hidden units")
    input: int = size("inputs a step", like="hidden")
    batch: int = size("sequences", 1)
    cell: str = choice("the cell", ("lstm", "gru", "slstm"), "lstm")
    heads: int = size("slstm: heads, blocks on R's diagonal", 1)
    layers: int = size("layers, one on top of the other", 1)
    bidirectional: bool = flag("also backwards in time, results side by side")
    dtype: str = fmt("format of weights, inputs and h, and of the products")
    variant: str = choice("how R is kept", ("unfused", "streamed", "persistent"), "streamed")
    on_chip: float = number(
        "persistent: bytes of R that registers and shared memory hold", 33554432.0
    )

    def rules(self) -> Iterator[Rule]:
        """Relate heads to hidden units."""
        yield Rule("heads", np.mod(self.hidden, self.heads) != 0, "a divisor of hidden")
        if self.cell != "slstm":
            yield Rule("heads", np.not_equal(self.heads, 1), "1 where cell is not slstm")

    def work(self) -> Work:
        """Operations and bytes of all layers and directions."""
        b, t, h, layers = (np.asarray(x, np.float64)
                           for x in (self.batch, self.steps, self.hidden, self.layers))  # fmt: skip
        ways, gates = 2.0 if self.bidirectional else 1.0, _GATES[self.cell]
        inputs = self.input + (layers - 1.0) * ways * h  # of all layers, a direction
        units = layers * ways * b * t * h  # hidden units, steps and sequences
        fed, fed_back = ways * gates * h * inputs, self.recurrent_weights
        e = dtype(self.dtype).bytes_of(1.0)
        biases = e * layers * ways * gates * h * (1.0 if self.cell == "slstm" else 2.0)
        held = e * fed_back * self._held_share
        streamed = e * fed_back - held
        flops: dict[str, Amount] = {
            self.dtype: plain(2.0 * b * t * (fed + fed_back)),
            "vector": plain(units * _LANES[self.cell]),
            "special": plain(units * _SPECIAL[self.cell]),
        }
        x = e * b * t * inputs * ways  # each direction reads it
        parts = e * gates * units  # W x of all steps, written and read
        again = parts if self.variant == "unfused" else 0.0  # R h, written and read
        state = 4.0 * _STATES[self.cell] * units / t
        passed = e * units + (state if self.variant == "persistent" else state * t)
        weights = e * fed + biases + held
        read = x + weights + parts + again + streamed * t + passed
        written = parts + again + passed
        distinct = x + weights + streamed + parts + again / t + e * units + state
        kernels = {"unfused": 1.0 + 2.0 * t, "streamed": 1.0 + t, "persistent": 2.0}[self.variant]
        waits = t if self.variant == "persistent" else 0.0
        return Work(flops, plain(read), plain(written), footprint=plain(distinct),
                    launches=plain(layers * kernels), steps=plain(layers * waits))  # fmt: skip

    @property
    def recurrent_weights(self) -> Amount:
        """Elements of R, all layers and directions."""
        h = np.asarray(self.hidden, np.float64)
        ways = 2.0 if self.bidirectional else 1.0
        return plain(self.layers * ways * _GATES[self.cell] * h * h / self.heads)

    @property
    def _held_share(self) -> Amount:
        """Share of R that is read once; the directions of a layer share the chip."""
        if self.variant != "persistent":
            return 0.0
        of_layer = dtype(self.dtype).bytes_of(1.0) * self.recurrent_weights / self.layers
        return np.minimum(1.0, self.on_chip / of_layer)
