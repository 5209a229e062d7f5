"""Fusion of recorded steps: attention patterns into one call, element-wise neighbours into one.

Owns the two patterns. Must not know where a graph comes from.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from .graph_norms import spelt_norms
from .graph_record import Step, Tensor, Trace

__all__ = ["WHOLE", "fused"]

WHOLE = "whole_attention"
"""Part of a softmax that was one attention function, taken apart only because tensors are meta."""


def fused(trace: Trace) -> list[Step]:
    """Return the steps of a trace: attention, element-wise chains and spelt-out norms fused."""
    steps = _fuse_bias(trace.steps, trace)
    return spelt_norms(_fuse_chains(_fuse_attention(steps, trace), trace), trace)


class _Flow:
    """Who writes and who reads each tensor."""

    def __init__(self, steps: list[Step], trace: Trace) -> None:
        self.steps = steps
        self.writer: dict[str, int] = {}
        self.readers: defaultdict[str, set[int]] = defaultdict(set)
        for i, step in enumerate(steps):
            for t in step.reads:
                self.readers[t.name].add(i)
            for t in step.writes:
                self.writer[t.name] = i
        for name in trace.outputs:
            self.readers[name].add(-1)

    def only_reader(self, step: Step) -> int | None:
        """Return the one step that reads the result; None where several do, or it is returned."""
        found = self.readers[step.writes[0].name] if len(step.writes) == 1 else set[int]()
        return next(iter(found)) if len(found) == 1 and -1 not in found else None


def _fuse_bias(steps: list[Step], trace: Trace) -> list[Step]:
    """Join a product with a weight and the addition of one number a column, as libraries do."""
    flow = _Flow(steps, trace)
    out: list[Step | None] = list(steps)
    for i, step in enumerate(steps):
        after = flow.only_reader(step) if step.op == "gemm" and step.role == "linear" else None
        if after is None:
            continue
        add, n = steps[after], step.fields["n"]
        others = [t for t in add.reads if t.name != step.writes[0].name]
        one = len(others) == 1 and trace.is_constant(others[0]) and others[0].elements == n
        if add.chain and one and (add.fields["ops"], add.fields["special"]) == (1, 0):
            trace.use(others[0], "linear")
            out[after] = replace(step, reads=(*step.reads, others[0]), writes=add.writes)
            out[i] = None
    return [s for s in out if s is not None]


def _fuse_attention(steps: list[Step], trace: Trace) -> list[Step]:
    """Q K^T, softmax, product with V: one attention call that keeps scores in memory.

    A scale between them is part of it; masks and whatever else reads a further tensor stay calls
    of their own. A softmax of the part `WHOLE` says that it was one fused function: flash.
    """
    flow = _Flow(steps, trace)
    new: dict[int, Step] = {}
    gone: set[int] = set()
    for i, step in enumerate(steps):
        if step.op != "softmax":
            continue
        back, ahead = _scores(i, flow), _values(i, flow)
        if back is None or ahead is None:
            continue
        one, two = steps[back[0]], steps[ahead[0]]
        if not _fit(one, two):
            continue
        between = [*back[1:], *ahead[1:]]
        gone.update((back[0], i, *between))
        if step.part == WHOLE:
            one = _unscaled(one, back[0], flow, gone)
        else:
            new.update(_masks(between, {back[0], i, *between}, flow))
        new[ahead[0]] = _attention(one, step, two)
    return [new.get(i, s) for i, s in enumerate(steps) if i in new or i not in gone]


def _masks(between: list[int], inside: set[int], flow: _Flow) -> dict[int, Step]:
    """Keep steps on the scores that read something from elsewhere, as calls of their own."""
    out: dict[int, Step] = {}
    for j in between:
        step = flow.steps[j]
        others = tuple(t for t in step.reads
                       if t.elements > 1 and flow.writer.get(t.name) not in inside)  # fmt: skip
        if others:
            out[j] = replace(step, fields=step.final_fields(), reads=others, writes=(),
                             part="attention_mask", chain=False)  # fmt: skip
    return out


def _unscaled(one: Step, at: int, flow: _Flow, gone: set[int]) -> Step:
    """Return the product of queries and keys without the scaling of either that leads to it."""
    reads: list[Tensor] = []
    for t in one.reads:
        w = flow.writer.get(t.name)
        step = flow.steps[w] if w is not None else None
        scales = step is not None and step.chain and step.fields["ops"] == 1
        if step is not None and scales and len(step.reads) == 1 and flow.only_reader(step) == at:
            gone.add(flow.writer[t.name])
            reads.append(step.reads[0])
        else:
            reads.append(t)
    return replace(one, reads=tuple(reads))


def _scores(start: int, flow: _Flow) -> list[int] | None:
    """Step of the product that a softmax reads, and the element-wise steps between."""
    path: list[int] = []
    at = start
    while True:
        step = flow.steps[at]
        size = step.reads[0].elements if at == start else step.fields["elements"]
        writers = [flow.writer[t.name] for t in step.reads
                   if t.name in flow.writer and t.elements == size]  # fmt: skip
        writers = [w for w in writers if flow.only_reader(flow.steps[w]) == at]
        product = [w for w in writers if _is_product(flow.steps[w])]
        if product:
            return [product[0], *path]
        chains = [w for w in writers if flow.steps[w].chain]
        if not chains:
            return None
        at = chains[0]
        path.append(at)


def _values(start: int, flow: _Flow) -> list[int] | None:
    """Step of the product that reads the probabilities first, and element-wise steps between."""
    path: list[int] = []
    at = start
    while True:
        after = flow.only_reader(flow.steps[at])
        if after is None:
            return None
        step = flow.steps[after]
        if _is_product(step):
            first = bool(step.reads) and step.reads[0].name == flow.steps[at].writes[0].name
            return [after, *path] if first else None
        if not step.chain:
            return None
        at = after
        path.append(at)


def _is_product(step: Step) -> bool:
    return step.op == "gemm" and step.role == "other"


def _fit(one: Step, two: Step) -> bool:
    a, b = one.fields, two.fields
    return (a.get("batch", 1), a["m"], a["n"]) == (b.get("batch", 1), b["m"], b["k"])


def _attention(one: Step, softmax: Step, two: Step) -> Step:
    a = one.fields
    count, shape = a.get("batch", 1), softmax.shape
    rank_with_heads = 4
    split = len(shape) == rank_with_heads and shape[0] * shape[1] == count
    batch, heads = (shape[0], shape[1]) if split else (count, 1)
    fields = {"batch": batch, "q_heads": heads, "q_len": a["m"], "kv_len": a["n"],
              "head_dim": a["k"], "v_head_dim": two.fields["n"], "causal": False,
              "variant": "standard"}  # fmt: skip
    scratch = 2.0 * float(count) * a["m"] * a["n"]  # scores and probabilities
    if softmax.part == WHOLE:
        fields["variant"], scratch = "flash", 0.0
    return Step("attention", fields, (*one.reads, *two.reads[1:]), two.writes, "attention",
                "attention", scratch=scratch)  # fmt: skip


def _fuse_chains(steps: list[Step], trace: Trace) -> list[Step]:
    """Element-wise steps of one size, each read by the next alone, as one."""
    flow = _Flow(steps, trace)
    out: list[Step | None] = list(steps)
    for j, step in enumerate(steps):
        if not step.chain:
            continue
        merged = step
        for t in step.reads:
            i = flow.writer.get(t.name, -1)
            before = out[i] if 0 <= i < j else None
            if (before is None or not before.chain or flow.readers[t.name] != {j}
                    or before.fields["elements"] != merged.fields["elements"]):  # fmt: skip
                continue
            merged = _joined(before, merged, t)
            out[i] = None
            for read in before.reads:
                flow.readers[read.name] = {j if r == i else r for r in flow.readers[read.name]}
        out[j] = merged
    return [s for s in out if s is not None]


def _joined(a: Step, b: Step, between: Tensor) -> Step:
    fields = {"elements": b.fields["elements"]}
    for key in ("ops", "special", "lanes"):
        fields[key] = a.fields[key] + b.fields[key]
    reads = (*a.reads, *(t for t in b.reads if t.name != between.name))
    part = b.part if a.part == b.part else "pointwise"
    return replace(b, fields=fields, reads=tuple(dict.fromkeys(reads)), part=part)
