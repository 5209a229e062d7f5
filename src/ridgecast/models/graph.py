"""A network whose operations are a fixed list, read from a graph: `GraphNetwork`.

Owns the list, its growth with the batch, and the peak of what lives between its operations. How a
graph becomes such a list is for `graph_steps`, `onnx_import` and `torch_import`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import InfeasibleError
from .network import Amount, Call, Layout, Network, Tokens, Weights, ceil_div

__all__ = ["GraphNetwork", "PerBatch"]


@dataclass(frozen=True, slots=True)
class PerBatch:
    """A number that grows with the batch: `fixed + each * batch`."""

    fixed: float
    each: float = 0.0

    def at(self, batch: Amount) -> Amount:
        """Return the number at a batch, or at each of an array of batches."""
        return self.fixed + self.each * batch


@dataclass(frozen=True, slots=True)
class GraphNetwork(Network):
    """A fixed list of operations and weights.

    With `batched`, the first dimension of the inputs is open, fields of `plan` may be `PerBatch`,
    and the batch of the groups fills it. Otherwise shapes are fixed, and a group of batch 4 is
    four passes of the graph. Query and context lengths of groups are not used: they are part of
    the shapes. `live` holds the elements that live at those steps that can be the peak (inputs,
    outputs, what is kept between, scratch; no weights). `unknown` lists operators that are only
    counted by their bytes, or not at all, with the reason.
    """

    plan: tuple[Call, ...] = field(kw_only=True)
    parts: tuple[Weights, ...] = field(kw_only=True)
    live: tuple[PerBatch, ...] = field(default=(), kw_only=True)
    batched: bool = field(default=False, kw_only=True)
    unknown: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of results must know; one line an operator that is not understood."""
        return tuple(f"{self.name}: unknown operator {what}" for what in self.unknown)

    def weights(self) -> tuple[Weights, ...]:
        """List all parameters, by kind; every device holds all of them."""
        return self.parts

    def calls(self, groups: Sequence[Tokens], layout: Layout) -> list[Call]:
        """Operations of one pass over the batch of all groups, on one device of each stage.

        Raises InfeasibleError for a layout that cuts layers: a graph does not say how.
        """
        batch = self._share(sum((g.batch for g in groups), start=0.0), layout)
        if not self.batched:
            return [_with(call, call.count * batch, dict(call.fields)) for call in self.plan]
        some = np.maximum(batch, 1.0) if isinstance(batch, np.ndarray) else max(batch, 1.0)
        out: list[Call] = []
        for call in self.plan:
            fields = {
                k: np.maximum(v.at(some), 1.0) if isinstance(v, PerBatch) else v
                for k, v in call.fields.items()
            }
            fields = {k: _number(v) for k, v in fields.items()}
            out.append(_with(call, call.count * np.greater(batch, 0.0), fields))
        return out

    def activations(self, tokens: Amount, layout: Layout) -> Amount:
        """Elements that live at the peak of a pass over `tokens` samples (not words) of the batch.

        Every tensor lives from the operation that writes it to the last that reads it; views are
        free, inputs live until their last use, outputs to the end. A graph of fixed shapes runs
        one pass after the other, so that its peak does not grow.
        """
        if not self.live:
            return 0.0
        batch = self._share(tokens, layout) if self.batched else 1.0
        peaks = np.stack([np.asarray(p.at(batch), np.float64) for p in self.live])
        peak = peaks.max(axis=0)
        return peak if peak.ndim else float(peak)

    def _share(self, batch: Amount, layout: Layout) -> Amount:
        if layout.tp * layout.cp > 1:
            raise InfeasibleError(
                f"layout: {self.name} is an imported graph that cannot be cut into tp {layout.tp} "
                f"x cp {layout.cp} shards; use tp=1 and cp=1, with dp or pp for more devices"
            )
        return ceil_div(batch, layout.dp) if layout.dp > 1 else batch


def _with(call: Call, count: Amount, fields: dict[str, object]) -> Call:
    plain = float(count) if np.ndim(count) == 0 else count
    return Call(call.part, call.op, fields, plain, call.role, call.phase)


def _number(value: object) -> object:
    """Whole numbers as int, so that operations accept them; arrays and words as they are."""
    if isinstance(value, float | np.floating):
        return int(value) if float(value).is_integer() else float(value)
    return value
