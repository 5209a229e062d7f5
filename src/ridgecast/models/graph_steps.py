"""From the steps of a traced graph to a `GraphNetwork`: fusion, lifetimes, growth with the batch.

Owns how a recorded `Trace` is condensed into calls, weights and the peak of live tensors. Must not
know where a graph comes from.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import SpecError
from .graph import GraphNetwork, PerBatch
from .graph_fuse import fused
from .graph_record import Step, Trace
from .network import Call, Weights

__all__ = ["BATCHES", "Origin", "network_of"]

BATCHES = (2, 3, 5)
"""Batches at which an open graph is traced: two give the line, the third checks it.

None of them is 1, at which operators treat dimensions as absent.
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a graph comes from, and how to call it."""

    name: str
    source: str
    native_dtype: str = "fp32"
    cure: str = field(default="", kw_only=True)
    """What to do where the graph does not grow linearly with its batch."""


@dataclass(frozen=True, slots=True)
class _Condensed:
    """A trace after fusion: one call a step, and the elements that live at it."""

    calls: list[Call]
    live: list[float]


def network_of(traces: Sequence[Trace], origin: Origin) -> GraphNetwork:
    """Build the network from one trace (fixed shapes), or from traces at `BATCHES`.

    Raises SpecError where operators or shapes do not grow linearly with the batch.
    """
    done = [_condensed(trace) for trace in traces]
    first = traces[0]
    batched = len(traces) > 1
    calls, live = done[0].calls, [PerBatch(x) for x in done[0].live]
    if batched:
        calls = _grown_calls([d.calls for d in done], origin)
        live = [_grown(values, origin, "memory") for values in _zipped(d.live for d in done)]
    return GraphNetwork(
        origin.name,
        source=origin.source,
        native_dtype=origin.native_dtype,
        plan=tuple(_merged(calls)),
        parts=_weights(first),
        live=_peaks(live),
        batched=batched,
        unknown=tuple(f"{what} (x{n})" if n > 1 else what
                      for what, n in Counter(first.unknown).items()),
    )  # fmt: skip


def _condensed(trace: Trace) -> _Condensed:
    steps = fused(trace)
    calls = [Call(s.part, s.op, s.final_fields(), 1.0, s.role) for s in steps]
    return _Condensed(calls, _live(steps, trace))


def _live(steps: Sequence[Step], trace: Trace) -> list[float]:
    """Elements alive at each step: written at or before it, read at or after it."""
    born: dict[str, int] = {root: 0 for root in trace.input_roots()}
    dies: dict[str, int] = dict(born)
    for i, step in enumerate(steps):
        for tensor in (*step.reads, *step.writes):
            root = trace.storage_of(tensor.name)
            if root in trace.constants:
                continue
            born.setdefault(root, i)
            dies[root] = i
    for root in trace.output_roots():
        if root in dies:
            dies[root] = len(steps) - 1
    change = [0.0] * (len(steps) + 1)
    for root, start in born.items():
        change[start] += trace.sizes.get(root, 0.0)
        change[dies[root] + 1 if steps else 0] -= trace.sizes.get(root, 0.0)
    total, out = 0.0, list[float]()
    for i, step in enumerate(steps):
        total += change[i]
        out.append(total + step.scratch)
    return out


def _peaks(live: Iterable[PerBatch]) -> tuple[PerBatch, ...]:
    """Those that can be the largest at some batch of at least 1, by growing slope."""
    best: dict[float, float] = {}
    for p in live:
        best[p.each] = max(best.get(p.each, -math.inf), p.fixed)
    kept: list[PerBatch] = []
    at_one = -math.inf
    for each in sorted(best, reverse=True):  # a steeper line that is higher at 1 is so everywhere
        if best[each] + each > at_one:
            at_one = best[each] + each
            kept.append(PerBatch(best[each], each))
    return tuple(kept)


def _zipped(columns: Iterable[Sequence[Any]]) -> list[tuple[Any, ...]]:
    return list(zip(*columns, strict=True))


def _grown_calls(runs: Sequence[Sequence[Call]], origin: Origin) -> list[Call]:
    names = [[c.op for c in run] for run in runs]
    if any(other != names[0] for other in names[1:]):
        raise SpecError(f"{origin.name}: its operators change with the batch; {origin.cure}")
    out: list[Call] = []
    for same in _zipped(runs):
        fields: dict[str, Any] = {}
        for key, value in same[0].fields.items():
            values = [c.fields.get(key) for c in same]
            if all(v == value for v in values):
                fields[key] = value
            else:
                fields[key] = _grown(values, origin, f"{same[0].op}.{key}")
        out.append(replace(same[0], fields=fields))
    return out


def _grown(values: Sequence[Any], origin: Origin, what: str) -> PerBatch:
    """Line through the values at `BATCHES`."""
    (b0, b1, b2), (v0, v1, v2) = BATCHES, values
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        each = (v1 - v0) / (b1 - b0)
        line = PerBatch(float(v0 - each * b0), float(each))
        if abs(float(line.at(b2)) - v2) <= 1e-9 * abs(v2):
            return line
    got = ", ".join(f"{v} at {b}" for b, v in zip(BATCHES, values, strict=True))
    raise SpecError(
        f"{origin.name}: {what} does not grow linearly with the batch ({got}); {origin.cure}"
    )


def _merged(calls: Iterable[Call]) -> list[Call]:
    """Equal calls as one with a count, in the order of their first."""
    counts: dict[Any, float] = {}
    firsts: dict[Any, Call] = {}
    for call in calls:
        key = (call.part, call.op, call.role, tuple(sorted(call.fields.items(), key=_first)))
        counts[key] = counts.get(key, 0.0) + float(call.count)
        firsts.setdefault(key, call)
    return [replace(firsts[key], count=n) for key, n in counts.items()]


def _first(pair: tuple[str, Any]) -> str:
    return pair[0]


def _weights(trace: Trace) -> tuple[Weights, ...]:
    counts: Counter[tuple[str, str, float, float]] = Counter()
    for weight in trace.weights.values():
        counts[weight.part, weight.role, weight.elements, weight.per_token] += 1
    return tuple(
        Weights(part, role, elements, float(n), "none", per_token)
        for (part, role, elements, per_token), n in counts.items()
    )
