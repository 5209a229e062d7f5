"""Building calls: whole sizes, tokens of a device, products, norms, collectives; merging of equals.

What all families share when they turn `Tokens` and a `Layout` into `Call`s. Every helper takes
numbers or arrays [points]. Knows shapes only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .network import Amount, Call, Layout, Tokens, ceil_div

__all__ = ["Seen", "act", "all_tokens", "attend", "collective", "gemm", "merged", "norm",
           "own_tokens", "phase_of", "pointwise", "present", "scaled", "seen", "total",
           "whole"]  # fmt: skip

_BYTES = 2.0  # collectives are stated for 2-byte elements
# lane operations of an activation function: (all, those that are exponentials or divisions);
# relu max; relu2 max, square; silu x / (1 + exp(-x)); gelu (tanh form, Hendrycks and Gimpel 2016,
# arXiv:1606.08415) 0.5 x (1 + tanh(c (x + d x^3))) with tanh as exp and division
_ACTIVATIONS = {"relu": (1, 0), "relu2": (2, 0), "silu": (4, 2), "gelu": (10, 2)}


def whole(amount: Amount, low: int = 1) -> Any:
    """Round up to a whole number, at least `low`: int for a number, float64 for an array."""
    if isinstance(amount, np.ndarray):
        return np.maximum(np.ceil(amount), low)
    return max(low, math.ceil(amount))


def present(amount: Amount) -> Amount:
    """1 where there is any of it, else 0; one number where that holds at all points."""
    if not isinstance(amount, np.ndarray):
        return 1.0 if amount > 0 else 0.0
    there = np.where(amount > 0, 1.0, 0.0)
    return 1.0 if bool(np.all(there)) else there


def total(amounts: Iterable[Amount]) -> Amount:
    """Sum, 0.0 of none."""
    return sum(amounts, start=0.0)


def own_tokens(groups: Sequence[Tokens], layout: Layout) -> Amount:
    """Count new tokens of one device: of its data-parallel group, its share of each sequence."""
    return total(ceil_div(ceil_div(g.batch, layout.dp) * g.q_len, layout.cp) for g in groups)


def all_tokens(groups: Sequence[Tokens]) -> Amount:
    """Count new tokens of the whole replica."""
    return total(g.count for g in groups)


def gemm(
    part: str, m: Amount, n: int, k: int, *, role: str = "linear", batch: int = 1,
    count: Amount = 1.0,
) -> Call:  # fmt: skip
    """Product of `m` rows with weights [k, n]; `batch` of them (heads) at once."""
    fields: dict[str, Any] = {"m": whole(m), "n": n, "k": k}
    if batch > 1:
        fields["batch"] = batch
    return Call(part, "gemm", fields, count * present(m), role)


def norm(
    rows: Amount, cols: int, kind: str = "rms", *, residual: bool = False, part: str = "norm"
) -> Call:
    """One normalisation of `rows` rows, with the residual sum fused where said."""
    fields = {"rows": whole(rows), "cols": cols, "kind": kind, "residual": residual}
    return Call(part, "normalisation", fields, present(rows), "norm")


def pointwise(
    part: str, elements: Amount, *, ops: int = 1, inputs: int = 1, special: int = 0,
    role: str = "other",
) -> Call:  # fmt: skip
    """One fused element-wise kernel over `elements` elements."""
    fields = {"elements": whole(elements), "ops": ops, "inputs": inputs, "special": special}
    return Call(part, "pointwise", fields, present(elements), role)


def act(elements: Amount, name: str, gated: bool, part: str = "activation") -> Call:
    """Activation function, times the other branch where `gated`; one kernel."""
    ops, special = _ACTIVATIONS[name]
    more = 1 if gated else 0
    return pointwise(part, elements, ops=ops + more, inputs=1 + more, special=special)


def collective(
    part: str, kind: str, elements: Amount, gpus: int, layout: Layout, *, stride: int = 1
) -> list[Call]:
    """One collective of 2-byte elements over `gpus` devices; nothing where that is one device.

    `elements` are those of the whole buffer (see ops/collective.py). Members are `stride` devices
    apart, so that a node holds fewer of them. Uneven nodes count by the largest divisor that fits.
    """
    if gpus < 2:
        return []
    near = min(gpus, max(1, layout.gpus_per_node // stride))
    near = max(d for d in range(1, near + 1) if gpus % d == 0)
    size = elements * _BYTES
    floor = np.maximum(size, 1.0) if isinstance(size, np.ndarray) else max(1.0, float(size))
    fields = {"kind": kind, "bytes": floor, "gpus": gpus, "gpus_per_node": near}
    return [Call(part, "collective", fields, present(elements))]


@dataclass(frozen=True, slots=True)
class Seen:
    """A group as one device's attention sees it; `there` is 0 at points without the group."""

    batch: Any
    q_len: Any
    kv_len: Any
    there: Amount


def seen(group: Tokens, layout: Layout) -> Seen:
    """Sequences, queries and keys of one device.

    With `cp` > 1, queries of long passes are dealt out in balanced pieces: q / cp of them, as many
    pairs as an equal share of the triangle. Passes with fewer queries than devices (decode) deal
    out keys instead.
    """
    batch, q, kv = ceil_div(group.batch, layout.dp), group.q_len, group.kv_len
    there = present(batch * q)
    if layout.cp > 1:
        mine = ceil_div(q, layout.cp)
        long = np.greater_equal(q, layout.cp)
        keys = np.where(long, kv - (q - mine) / 2.0, ceil_div(kv, layout.cp))
        q = np.where(long, mine, q)
        kv = np.asarray(keys)
        if not any(isinstance(x, np.ndarray) for x in (group.q_len, group.kv_len)):
            q, kv = float(q), float(kv)
    q = whole(q)
    kv = whole(kv)
    either = isinstance(q, np.ndarray) or isinstance(kv, np.ndarray)
    return Seen(whole(batch), q, np.maximum(kv, q) if either else max(kv, q), there)


def attend(part: str, of: Seen, phase: str, fields: dict[str, Any], window: int = 0) -> Call:
    """Attention of a group; `window` > 0 is cut to the keys that there are."""
    full: dict[str, Any] = {"batch": of.batch, "q_len": of.q_len, "kv_len": of.kv_len}
    if window:
        held = isinstance(of.kv_len, np.ndarray)
        full["window"] = np.minimum(window, of.kv_len) if held else min(window, of.kv_len)
    return Call(part, "attention", full | fields, of.there, "attention", phase)


def phase_of(group: Tokens) -> str:
    """Say "decode" where all points have one query, "prefill" where all have more, else ""."""
    q = np.asarray(group.q_len)
    if np.all(q <= 1):
        return "decode"
    return "prefill" if np.all(q > 1) else ""


def scaled(calls: Iterable[Call], times: float) -> list[Call]:
    """Repeat all calls `times` times (layers alike)."""
    return [replace(c, count=c.count * times) for c in calls]


def merged(calls: Iterable[Call]) -> list[Call]:
    """Merge calls that are alike in everything but their count, first ones first."""
    found: dict[Any, Call] = {}
    for call in calls:
        fields = tuple((k, _key(v)) for k, v in call.fields.items())
        key = (call.part, call.op, call.role, call.phase, fields)
        known = found.get(key)
        found[key] = call if known is None else replace(known, count=known.count + call.count)
    return list(found.values())


def _key(value: Any) -> Any:
    return (value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
