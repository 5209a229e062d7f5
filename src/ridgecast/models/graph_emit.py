"""The steps that importers add to a trace: one function an operation, from tensors to fields.

Owns the mapping of shapes to the fields of `ops`, so that ONNX and torch graphs of one network
give equal calls. Must not know where a graph comes from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .graph_record import Step, Tensor, Trace

__all__ = ["ConvShape", "add_attention", "add_chain", "add_conv", "add_copy", "add_gather",
           "add_gemm", "add_norm", "add_pool", "add_quantise", "add_recurrent", "add_reduction",
           "add_resize", "add_scan", "add_softmax", "add_sort", "add_transpose",
           "add_unknown", "chain_cost"]  # fmt: skip

Ins = Sequence[Tensor]

# Operations of an element-wise operator on one element: (all, special ones among them). Special
# are exponentials, roots, divisions and what the special units do. sigmoid: exp, add, reciprocal;
# silu: that and a product; gelu: x 0.5 (1 + erf(x / sqrt 2)); softplus: exp, add, log; mish: x
# tanh(softplus x); elu: exp, subtract, select.
_COSTS: dict[str, tuple[int, int]] = {
    **{name: (1, 1) for name in (
        "exp", "log", "sqrt", "rsqrt", "reciprocal", "div", "sin", "cos", "tan", "tanh", "erf",
        "pow", "atan", "asin", "acos", "sinh", "cosh", "log2", "exp2", "log10", "fmod", "mod",
        "remainder", "atan2", "floor_divide")},
    "sigmoid": (3, 2), "silu": (4, 2), "swish": (4, 2), "quickgelu": (5, 2), "gelu": (5, 1),
    "fastgelu": (8, 1), "biasgelu": (6, 1), "softplus": (3, 2), "logsigmoid": (3, 2),
    "log_sigmoid_forward": (3, 2), "mish": (5, 3), "elu": (3, 1), "celu": (4, 2), "selu": (4, 1),
    "leaky_relu": (2, 0), "leakyrelu": (2, 0), "prelu": (2, 0), "_prelu_kernel": (2, 0),
    "clamp": (2, 0), "clip": (2, 0), "hardtanh": (2, 0), "hardsigmoid": (4, 0),
    "hardswish": (5, 0), "softsign": (3, 1), "log1p": (2, 1), "expm1": (2, 1),
    "addcmul": (2, 0), "addcdiv": (2, 1), "lerp": (3, 0), "native_dropout": (2, 0),
    "logaddexp": (5, 2), "glu": (4, 2), "rope": (3, 0),
}  # fmt: skip


def chain_cost(name: str) -> tuple[int, int]:
    """Operations of an element-wise operator on an element, and the special ones among them.

    >>> chain_cost("Sigmoid"), chain_cost("add_")
    ((3, 2), (1, 0))
    """
    key = name.lower()
    return _COSTS.get(key) or _COSTS.get(key.rstrip("_")) or (1, 0)


def add_chain(trace: Trace, name: str, ins: Ins, out: Tensor) -> None:
    """Add one element-wise operation, which may fuse with its neighbours."""
    ops, special = chain_cost(name)
    _chain(trace, ins, out, (ops, special, float(ops - special)), "pointwise")


def add_copy(trace: Trace, ins: Ins, out: Tensor, *, fuses: bool = True) -> None:
    """Add elements that are moved or converted, unchanged otherwise."""
    if fuses:
        return _chain(trace, ins, out, (1, 0, 0.0), "copy")
    fields = {"elements": _n(out.elements), "ops": 1, "inputs": 1, "special": 0, "vector": 0.0}
    return _add(trace, Step("pointwise", fields, tuple(ins), (out,), "copy"))


def _chain(trace: Trace, ins: Ins, out: Tensor, cost: tuple[int, int, float], part: str) -> None:
    if out.elements < 1:
        return
    fields = {"elements": _n(out.elements), "ops": cost[0], "special": cost[1], "lanes": cost[2]}
    _add(trace, Step("pointwise", fields, tuple(ins), (out,), part, chain=True))


def add_unknown(trace: Trace, name: str, ins: Ins, outs: Ins) -> None:
    """Add an operator that nobody here knows: its bytes as an element-wise call, and its name."""
    trace.unknown.append(f"{name}: counted by its bytes alone, no operations")
    out = max(outs, key=lambda t: t.elements, default=None)
    if out is None or out.elements < 1:
        return
    moved = max(1, round(sum(t.elements for t in ins) / out.elements))
    fields = {"elements": _n(out.elements), "ops": max(moved, 1), "inputs": moved, "special": 0,
              "vector": 0.0}  # fmt: skip
    _add(trace, Step("pointwise", fields, tuple(ins), tuple(outs), f"unknown:{name}"))


def add_gemm(
    trace: Trace, a: Tensor, b: Tensor, out: Tensor, size: tuple[int, int, int, int],
    *, bias: Tensor | None = None,
) -> None:  # fmt: skip
    """Add a product of size (batch, m, n, k); a bias is part of it."""
    batch, m, n, k = size
    if 0 in size:
        return
    part = trace.use(b, "linear") or trace.use(a, "linear")
    trace.use(bias, "linear")
    fields: dict[str, float] = {"m": m, "n": n, "k": k}
    if batch > 1:
        fields["batch"] = batch
    if bias is not None and not trace.is_constant(bias) and bias.elements >= out.elements:
        fields["beta"] = 1.0
    reads = (a, b) if bias is None else (a, b, bias)
    role = "linear" if part else "other"
    _add(trace, Step("gemm", fields, reads, (out,), part or "product", role))


@dataclass(frozen=True, slots=True)
class ConvShape:
    """Window of a convolution, one entry an axis; `padding` is the sum of both ends."""

    taps: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int = 1
    transposed: bool = False


def add_conv(
    trace: Trace, x: Tensor, weight: Tensor, out: Tensor, shape: ConvShape,
    *, bias: Tensor | None = None,
) -> None:  # fmt: skip
    """Add a convolution in one to three dimensions.

    A transposed one has the products, and moves the bytes, of the convolution that leads from its
    output to its input (it is that one's gradient): it stands as that.
    """
    small, large = (x, out) if shape.transposed else (out, x)
    dims = len(x.shape) - 2
    if not 1 <= dims <= 3:
        return add_unknown(trace, f"convolution in {dims} dimensions", (x, weight), (out,))
    part = trace.use(weight, "conv") or "conv"
    trace.use(bias, "conv")
    wide = {d for d, k in zip(shape.dilation, shape.taps, strict=True) if k > 1} or {1}
    dilation = wide.pop() if len(wide) == 1 else 1
    fields: dict[str, int] = {
        "in_channels": large.shape[1], "out_channels": small.shape[1], "batch": x.shape[0],
        "dilation": dilation, "groups": shape.groups, "height": 1, "kernel_h": 1, "stride_h": 1,
        "padding_h": 0,
    }  # fmt: skip
    names = (("d", "depth"), ("h", "height"), ("w", "width"))[3 - dims :]
    for i, (letter, axis) in enumerate(names):
        k, s = shape.taps[i], shape.stride[i]
        positions, pad = _axis(large.shape[2 + i], small.shape[2 + i], k, s,
                               (shape.padding[i], dilation, shape.dilation[i]))  # fmt: skip
        fields |= {axis: positions, f"kernel_{letter}": k, f"stride_{letter}": s,
                   f"padding_{letter}": pad}  # fmt: skip
    reads = (x, weight) if bias is None else (x, weight, bias)
    return _add(trace, Step("convolution", fields, reads, (out,), part, "conv"))


def _axis(
    positions: int, outputs: int, k: int, s: int, rest: tuple[int, int, int]
) -> tuple[int, int]:
    """Positions and padding an end that give the outputs.

    Uneven padding counts as one more position. Where the axes differ in their dilation, or the
    outputs were set by hand, the axis is as long as its outputs need.
    """
    padding, dilation, own = rest
    wide, pad = positions + padding % 2, padding // 2
    reach = dilation * (k - 1) + 1
    if (dilation == own or k == 1) and (wide + 2 * pad - reach) // s + 1 == outputs:
        return wide, pad
    return (outputs - 1) * s + reach, 0


def add_attention(
    trace: Trace, ins: Ins, outs: Ins, fields: dict[str, object], *, part: str = "attention"
) -> None:
    """Add attention whose fields are known."""
    _add(trace, Step("attention", fields, tuple(ins), tuple(outs), part, "attention"))


def add_norm(
    trace: Trace, ins: Ins, outs: Ins, kind: str, *, size: tuple[int, int, int],
    residual: bool = False,
) -> None:  # fmt: skip
    """Add a normalisation; `ins` are the data, then weights.

    `size` is (features or channels, positions of a channel, groups).
    """
    x, (cols, spatial, groups) = ins[0], size
    parts = [p for t in ins[1:] if (p := trace.use(t, "norm"))]
    part = parts[0] if parts else "norm"
    fields: dict[str, object] = {
        "rows": _n(x.elements / (cols * spatial)), "cols": cols, "kind": kind
    }  # fmt: skip
    if spatial > 1:
        fields["spatial"] = spatial
    if groups > 1:
        fields["groups"] = groups
    if residual:
        fields["residual"] = True
    _add(trace, Step("normalisation", fields, tuple(ins), tuple(outs), part, "norm"))


def add_softmax(trace: Trace, x: Tensor, out: Tensor, cols: int, *, part: str = "softmax") -> None:
    """Add a softmax of rows of `cols` elements."""
    fields = {"rows": _n(x.elements / cols), "cols": cols}
    _add(trace, Step("softmax", fields, (x,), (out,), part))


def add_reduction(trace: Trace, ins: Ins, outs: Ins, operation: str, *, part: str = "") -> None:
    """Add a reduction of the first input to the first output."""
    x, out = ins[0], outs[0]
    cols = _n(x.elements / max(out.elements, 1.0))
    if cols <= 1:
        return add_copy(trace, ins[:1], out)
    fields = {"rows": _n(out.elements), "cols": cols, "operation": operation}
    return _add(trace, Step("reduction", fields, tuple(ins), tuple(outs), part or "reduction"))


def add_pool(trace: Trace, x: Tensor, outs: Ins, taps: int, operation: str) -> None:
    """Add pooling: a reduction where it leaves one position, else `taps` operations an output.

    Overlapping windows find their common inputs in a cache: the input is read once.
    """
    out = outs[0]
    if math.prod(out.shape[2:]) == 1:
        return add_reduction(trace, (x,), outs, operation, part="pool")
    inputs = min(max(1, round(x.elements / out.elements)), taps + 1)
    fields = {"elements": _n(out.elements), "ops": taps, "inputs": inputs, "special": 0}
    return _add(trace, Step("pointwise", fields, (x,), tuple(outs), "pool"))


def add_resize(trace: Trace, x: Tensor, out: Tensor, mode: str) -> None:
    """Add interpolation: nearest copies; linear is 2^d - 1, cubic 5 x (4^d - 1) / 3 lerps.

    A lerp is a subtraction and a multiply-add.
    """
    axes = sum(a != b for a, b in zip(x.shape, out.shape, strict=True)) or 1
    lerps = {"nearest": 0, "linear": 2**axes - 1, "cubic": 5 * (4**axes - 1) // 3}[mode]
    if not lerps:
        return add_copy(trace, (x,), out, fuses=False)
    fields = {"elements": _n(out.elements), "ops": lerps, "inputs": 1, "special": 0, "vector": 3.0}
    return _add(trace, Step("pointwise", fields, (x,), (out,), "resize"))


def add_gather(
    trace: Trace, table: Tensor, ins: Ins, out: Tensor, *, dim: int, direction: str = "gather"
) -> None:
    """Add rows of `dim` elements that are looked up in (or written into) a table."""
    rows = max(1, _n(table.elements / max(dim, 1)))
    part = trace.use(table, "embedding", 1.0 / rows)
    moved = out if direction == "gather" else max(ins, key=lambda t: t.elements)
    if moved.elements < 1 or dim < 1:
        return
    fields: dict[str, object] = {"lookups": max(1, _n(moved.elements / dim)), "dim": dim,
                                 "table_rows": rows}  # fmt: skip
    if direction != "gather":
        fields["direction"] = direction
    role = "embedding" if part else "other"
    _add(trace, Step("embedding", fields, (table, *ins), (out,), part or direction, role))


def add_sort(trace: Trace, x: Tensor, outs: Ins, cols: int) -> None:
    """Add a sort of rows; top-k counts as one, which is its upper end."""
    fields = {"rows": _n(x.elements / cols), "cols": cols}
    _add(trace, Step("sort", fields, (x,), tuple(outs), "sort"))


def add_scan(trace: Trace, x: Tensor, out: Tensor, cols: int) -> None:
    """Add prefix sums of rows."""
    fields = {"rows": _n(x.elements / cols), "cols": cols}
    _add(trace, Step("scan", fields, (x,), (out,), "scan"))


def add_recurrent(
    trace: Trace, ins: Ins, outs: Ins, fields: dict[str, object], weights: Ins
) -> None:
    """Add recurrent layers whose fields are known."""
    for weight in weights:
        trace.use(weight, "linear")
    cell = str(fields["cell"])
    _add(trace, Step("recurrent", fields, (*ins, *weights), tuple(outs), cell, "linear"))


def add_quantise(trace: Trace, x: Tensor, out: Tensor, direction: str, scaling: str) -> None:
    """Add a conversion to or from a narrow format with given scales."""
    cols = out.shape[-1] if out.shape else 1
    fields = {"rows": _n(x.elements / cols), "cols": cols, "direction": direction,
              "scaling": scaling, "dynamic": False}  # fmt: skip
    _add(trace, Step("quantise", fields, (x,), (out,), direction))


def add_transpose(trace: Trace, x: Tensor, out: Tensor, perm: Sequence[int]) -> None:
    """Add a permutation of axes: `x` has the order in memory, `perm` as numpy's transpose.

    Axes that stay together count as one; what remains is one exchange of rows and columns.
    """
    shape = [n for n in x.shape if n != 1]
    kept = [i for i, n in enumerate(x.shape) if n != 1]
    order = [kept.index(p) for p in perm if x.shape[p] != 1]
    if order == sorted(order):
        return add_copy(trace, (x,), out, fuses=False)
    batch, inner, first = 1, 1, 0
    while order[0] == first:
        batch *= shape[order.pop(0)]
        first += 1
    while order[-1] == first + len(order) - 1:
        inner *= shape[order.pop()]
    rows = math.prod(shape[first : order[0]])
    cols = math.prod(shape[i] for i in order) // rows
    fields = {"rows": rows, "cols": cols, "batch": batch, "inner": inner}
    return _add(trace, Step("transpose", fields, (x,), (out,), "transpose"))


def _add(trace: Trace, step: Step) -> None:
    trace.steps.append(step)


def _n(value: float) -> int:
    return max(1, round(value))
