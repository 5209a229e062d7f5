"""Norms that a graph spells out, as one normalisation each.

Owns the pattern: the mean of the squares of a row, a root of it, and the row scaled by that; with
the mean of the row taken off first it is a layer norm. Must not know where a graph comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

from .graph_record import Step, Tensor, Trace

__all__ = ["spelt_norms"]

_MOST = 5  # operations of the last step: convert, scale, convert back, gain, shift


def spelt_norms(steps: list[Step], trace: Trace) -> list[Step]:
    """Return steps (element-wise chains fused) with spelt-out norms as normalisations."""
    flow = _Flow(steps, trace)
    new: dict[int, Step] = {}
    gone: set[int] = set()
    for i, step in enumerate(steps):
        found = _matched(i, flow) if _is_mean(step) else None
        if found is None or gone & found.steps:
            continue
        gone |= found.steps
        new[found.last] = _norm(found, flow, trace)
    return [new.get(i, s) for i, s in enumerate(steps) if i in new or i not in gone]


@dataclass(frozen=True, slots=True)
class _Norm:
    """A norm that was found: its steps, the last of them, what it reads, its kind and columns."""

    steps: frozenset[int]
    last: int
    data: Tensor
    kind: str
    cols: int


class _Flow:
    def __init__(self, steps: list[Step], trace: Trace) -> None:
        self.steps = steps
        self.writer = {t.name: i for i, s in enumerate(steps) for t in s.writes}
        self.readers: dict[str, set[int]] = {}
        for i, s in enumerate(steps):
            for t in s.reads:
                self.readers.setdefault(t.name, set()).add(i)
        for name in trace.outputs:
            self.readers.setdefault(name, set()).add(-1)

    def after(self, i: int) -> int | None:
        """Return the one reader of a step's one result."""
        step = self.steps[i]
        found = self.readers.get(step.writes[0].name, set()) if len(step.writes) == 1 else set()
        return next(iter(found)) if len(found) == 1 and -1 not in found else None


def _is_mean(step: Step) -> bool:
    return step.op == "reduction" and step.fields["operation"] == "mean"


def _matched(mean: int, flow: _Flow) -> _Norm | None:
    """Match x -> square -> mean -> root -> scaling of x around a mean."""
    steps = flow.steps
    size = steps[mean].reads[0].elements
    square = flow.writer.get(steps[mean].reads[0].name)
    root = flow.after(mean)
    if square is None or root is None or flow.after(square) != mean:
        return None
    one_read = {t.name for t in steps[square].reads if t.elements > 1}
    last = flow.after(root)
    if not steps[square].chain or not steps[root].chain or len(one_read) != 1 or last is None:
        return None
    end = steps[last]
    if not end.chain or end.fields["elements"] != size or end.fields["ops"] > _MOST:
        return None
    data = next(t for t in steps[square].reads if t.elements > 1)
    large = {t.name for t in end.reads if t.elements >= size}
    if data.elements != size or large != {data.name} or steps[root].fields["special"] < 1:
        return None
    cols = int(steps[mean].fields["cols"])
    inside = frozenset((square, mean, root, last))
    return _before(_Norm(inside, last, data, "rms", cols), square, flow)


def _before(found: _Norm, square: int, flow: _Flow) -> _Norm:
    """Include what only prepares the data: the mean taken off it, and a conversion."""
    steps = flow.steps
    for _ in range(2):
        at = flow.writer.get(found.data.name)
        if at is None or not steps[at].chain or not flow.readers[found.data.name] <= found.steps:
            return found
        step = steps[at]
        large = [t for t in step.reads if t.elements == found.data.elements]
        small = [flow.writer[t.name] for t in step.reads
                 if t.name in flow.writer and t.elements < found.data.elements]  # fmt: skip
        means = [m for m in small if _is_mean(steps[m]) and flow.after(m) == at
                 and large and steps[m].reads[0].name == large[0].name]  # fmt: skip
        taken_off = means and len(small) == 1 and step.fields["ops"] == 1
        converts = step.part == "copy" and not small
        if len(large) != 1 or not (taken_off or converts):
            return found
        kind = "layer" if taken_off else found.kind
        found = _Norm(found.steps | {at, *means}, found.last, large[0], kind, found.cols)
    return found


def _norm(found: _Norm, flow: _Flow, trace: Trace) -> Step:
    end = flow.steps[found.last]
    weights = [t for t in end.reads if trace.is_constant(t) and t.elements > 1]
    parts = [p for t in weights if (p := trace.use(t, "norm"))]
    rows = round(found.data.elements / found.cols)
    fields = {"rows": rows, "cols": found.cols, "kind": found.kind}
    return Step("normalisation", fields, (found.data, *weights), end.writes,
                parts[0] if parts else "norm", "norm")  # fmt: skip
