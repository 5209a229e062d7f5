"""What ONNX operators are in terms of our operations: one small function a family.

Owns the table of operators, of the standard domain and of com.microsoft (ONNX Runtime's own).
Source: the operator specifications of ONNX and of ONNX Runtime's contrib operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from . import graph_emit as emit
from .graph_record import Tensor

__all__ = ["HANDLERS", "VIEWS"]

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
"""Operators whose output is the input under another shape."""

Handler = Callable[[Any, Any, dict[str, Any]], None]
_MS = "com.microsoft"


def _chain(w: Any, node: Any, at: dict[str, Any]) -> None:
    ins = w.ins(node)
    emit.add_chain(w.trace, node.op_type, ins, w.out(node, max(ins, key=_elements).shape))


def _elements(t: Tensor) -> float:
    return t.elements


def _cast(w: Any, node: Any, at: dict[str, Any]) -> None:
    emit.add_copy(w.trace, w.ins(node)[:1], w.out(node))


def _copy(w: Any, node: Any, at: dict[str, Any]) -> None:
    """Slices, concatenations, pads: moved; indices and shapes are too small to count."""
    ins = w.ins(node) if node.op_type == "Concat" else w.ins(node)[:1]
    for i, name in enumerate(node.output):
        if name:
            emit.add_copy(w.trace, ins, w.out(node, None, i), fuses=False)


def _size(a: Tensor, b: Tensor) -> tuple[int, int, int, int]:
    """(batch, m, n, k) as numpy's matmul broadcasts; one matrix B makes one tall product."""
    left = a.shape if len(a.shape) > 1 else (1, *a.shape)
    right = b.shape if len(b.shape) > 1 else (*b.shape, 1)
    m, k, n = left[-2], left[-1], right[-1]
    lead, other = left[:-2], right[:-2]
    if math.prod(other) == 1:
        return 1, math.prod(lead) * m, n, k
    size = max(len(lead), len(other))
    pairs = zip((1,) * (size - len(lead)) + lead, (1,) * (size - len(other)) + other, strict=True)
    return math.prod(max(p) for p in pairs), m, n, k


def _matmul(w: Any, node: Any, at: dict[str, Any]) -> None:
    a, b = w.tensor(node.input[0]), w.tensor(node.input[3 if _quantised(node) else 1])
    shape_a, shape_b = a.shape, b.shape
    if at.get("transA"):
        shape_a = (*a.shape[:-2], a.shape[-1], a.shape[-2])
    if at.get("transB"):
        shape_b = (*b.shape[:-2], b.shape[-1], b.shape[-2])
    size = _size(Tensor("", shape_a), Tensor("", shape_b))
    out = w.out(node, (*shape_a[:-1], shape_b[-1]))
    emit.add_gemm(w.trace, a, b, out, size)


def _quantised(node: Any) -> bool:
    return node.op_type in ("QLinearMatMul", "QLinearConv")


def _gemm(w: Any, node: Any, at: dict[str, Any]) -> None:
    a, b = w.tensor(node.input[0]), w.tensor(node.input[1])
    k, m = a.shape if at.get("transA") else a.shape[::-1]
    n = b.shape[0] if at.get("transB") else b.shape[1]
    emit.add_gemm(w.trace, a, b, w.out(node), (1, m, n, k), bias=w.maybe(node, 2))


def _matmul_bits(w: Any, node: Any, at: dict[str, Any]) -> None:
    """Weights of few bits, packed: K x N of them."""
    a, b = w.tensor(node.input[0]), w.tensor(node.input[1])
    n, k = at["N"], at["K"]
    w.trace.sizes[b.name] = float(n * k)
    out = w.out(node, (*a.shape[:-1], n))
    emit.add_gemm(w.trace, a, b, out, (1, math.prod(a.shape[:-1]), n, k))


def _einsum(w: Any, node: Any, at: dict[str, Any]) -> None:
    ins, out = w.ins(node), w.out(node)
    terms, _, result = at["equation"].replace(" ", "").partition("->")
    words = terms.split(",")
    if len(words) != 2 or "." in at["equation"] or not result:
        return emit.add_unknown(w.trace, f"Einsum {at['equation']}", ins, (out,))
    n = {c: s for word, t in zip(words, ins, strict=True)
         for c, s in zip(word, t.shape, strict=True)}  # fmt: skip
    one, two, kept = set(words[0]), set(words[1]), set(result)
    size = [math.prod(n[c] for c in group)
            for group in (one & two & kept, one - two, two - one, (one & two) - kept)]  # fmt: skip
    return emit.add_gemm(w.trace, ins[0], ins[1], out, (size[0], size[1], size[2], size[3]))


def _conv(w: Any, node: Any, at: dict[str, Any]) -> None:
    x = w.tensor(node.input[0])
    weight = w.tensor(node.input[3 if _quantised(node) else 1])
    bias = w.maybe(node, 8 if _quantised(node) else 2) if "Integer" not in node.op_type else None
    taps = list(at.get("kernel_shape", weight.shape[2:]))
    dims = len(taps)
    pads = list(at.get("pads", [0] * 2 * dims))
    stride, dilation = list(at.get("strides", [1] * dims)), list(at.get("dilations", [1] * dims))
    out = w.out(node)
    total = [pads[i] + pads[i + dims] for i in range(dims)]
    if at.get("auto_pad", "NOTSET").startswith("SAME"):
        total = [max(0, (o - 1) * s + d * (k - 1) + 1 - i) for o, s, d, k, i in
                 zip(out.shape[2:], stride, dilation, taps, x.shape[2:], strict=True)]  # fmt: skip
    shape = emit.ConvShape(taps, stride, total, dilation, at.get("group", 1),
                           node.op_type == "ConvTranspose")  # fmt: skip
    emit.add_conv(w.trace, x, weight, out, shape, bias=bias)


def _attention(w: Any, node: Any, at: dict[str, Any]) -> None:
    """Read Attention of the standard (opset 23): 4-D heads, or 3-D with their numbers."""
    q, k, v = (w.tensor(node.input[i]) for i in range(3))
    q_heads = at.get("q_num_heads") or q.shape[1]
    kv_heads = at.get("kv_num_heads") or k.shape[1]
    flat = len(q.shape) == 3
    past = w.maybe(node, 4)
    kept = past.shape[2] if past is not None else 0
    q_len, kv_len = (q.shape[1], k.shape[1]) if flat else (q.shape[2], k.shape[2])
    sizes = [t.shape[-1] // (h if flat else 1) for t, h in ((q, q_heads), (v, kv_heads))]
    fields = _fields(q.shape[0], (q_len, kv_len + kept), (q_heads, kv_heads), sizes[0])
    fields |= {"v_head_dim": sizes[1], "causal": bool(at.get("is_causal"))}
    emit.add_attention(w.trace, w.ins(node), w.outs(node), fields)


def _fields(
    batch: int, lengths: tuple[int, int], heads: tuple[int, int], size: int
) -> dict[str, Any]:
    return {"batch": batch, "q_len": lengths[0], "kv_len": lengths[1], "q_heads": heads[0],
            "kv_heads": heads[1], "head_dim": size, "v_head_dim": size, "variant": "flash",
            "causal": False}  # fmt: skip


def _ms_attention(w: Any, node: Any, at: dict[str, Any]) -> None:
    """Projection of one input to queries, keys and values, then attention."""
    x, weight = w.tensor(node.input[0]), w.tensor(node.input[1])
    batch, length, hidden = x.shape
    heads = at["num_heads"]
    sizes = at.get("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3
    packed = w.temporary(node, (batch, length, weight.shape[1]))
    emit.add_gemm(w.trace, x, weight, packed, (1, batch * length, weight.shape[1], hidden),
                  bias=w.maybe(node, 2))  # fmt: skip
    past = w.maybe(node, 4)
    kept = past.shape[3] if past is not None else 0
    fields = _fields(batch, (length, length + kept), (heads, heads), sizes[0] // heads)
    fields |= {"v_head_dim": sizes[2] // heads, "causal": bool(at.get("unidirectional"))}
    out = w.out(node, (batch, length, sizes[2]))
    emit.add_attention(w.trace, (packed,), (out,), fields)


def _ms_heads(w: Any, node: Any, at: dict[str, Any]) -> None:
    """MultiHeadAttention and GroupQueryAttention: projections are done, perhaps packed."""
    q, k, v = w.tensor(node.input[0]), w.maybe(node, 1), w.maybe(node, 2)
    heads = at["num_heads"]
    kv_heads = at.get("kv_num_heads", heads)
    batch, length = q.shape[0], q.shape[1]
    total = math.prod(q.shape[2:])
    size = total // (heads if k is not None else heads + 2 * kv_heads)
    kv_len = length if k is None else (k.shape[1] if len(k.shape) == 3 else k.shape[2])
    past = w.maybe(node, 3 if "Group" in node.op_type else 6)
    kept = past.shape[2] if past is not None else 0
    v_size = size if v is None or len(v.shape) != 3 else v.shape[2] // kv_heads
    fields = _fields(batch, (length, kv_len + kept), (heads, kv_heads), size)
    fields["v_head_dim"] = v_size
    fields["causal"] = "Group" in node.op_type or bool(at.get("unidirectional"))
    out = w.out(node, (batch, length, heads * v_size))
    for i in range(1, min(len(node.output), 3)):
        if node.output[i]:
            w.out(node, (batch, kv_heads, kv_len + kept, size), i)
    emit.add_attention(w.trace, w.ins(node), (out,), fields)


def _layer_norm(w: Any, node: Any, at: dict[str, Any]) -> None:
    ins = w.ins(node)
    x, axis = ins[0], at.get("axis", -1)
    kind = "layer" if node.op_type == "LayerNormalization" else "rms"
    out = w.out(node, x.shape)
    emit.add_norm(w.trace, ins, (out,), kind, size=(math.prod(x.shape[axis:]), 1, 1))


def _skip_norm(w: Any, node: Any, at: dict[str, Any]) -> None:
    """Add, then normalise; the sum may be returned as the last output."""
    ins = w.ins(node)
    outs = [w.out(node, ins[0].shape, i) for i, n in enumerate(node.output) if n and i in (0, 3)]
    kind = "rms" if "Simplified" in node.op_type else "layer"
    emit.add_norm(w.trace, ins, outs, kind, size=(ins[0].shape[-1], 1, 1), residual=True)


def _channel_norm(w: Any, node: Any, at: dict[str, Any]) -> None:
    ins = w.ins(node)
    x = ins[0]
    channels = x.shape[1]
    groups = {"InstanceNormalization": channels, "BatchNormalization": 1}.get(node.op_type)
    groups = groups or at.get("num_groups") or at.get("groups") or 1
    kind = "batch" if node.op_type == "BatchNormalization" else "group"
    used = ins[:3]  # the statistics of a batch norm are no weights
    emit.add_norm(w.trace, used, (w.out(node, x.shape),), kind,
                  size=(channels, math.prod(x.shape[2:]), groups))  # fmt: skip


def _softmax(w: Any, node: Any, at: dict[str, Any]) -> None:
    x = w.tensor(node.input[0])
    last = 13  # from this opset on, the axis alone; before, all axes from it on
    axis = at.get("axis", -1 if w.opset >= last else 1)
    cols = x.shape[axis] if w.opset >= last else math.prod(x.shape[axis:])
    emit.add_softmax(w.trace, x, w.out(node), cols)


_REDUCE = {"ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "max", "ReduceL1": "norm",
           "ReduceL2": "norm", "ReduceSumSquare": "norm", "ArgMax": "argmax",
           "ArgMin": "argmax"}  # fmt: skip


def _reduce(w: Any, node: Any, at: dict[str, Any]) -> None:
    operation = _REDUCE.get(node.op_type, "sum")
    emit.add_reduction(w.trace, w.ins(node)[:1], (w.out(node),), operation)


def _pool(w: Any, node: Any, at: dict[str, Any]) -> None:
    x = w.tensor(node.input[0])
    taps = math.prod(at.get("kernel_shape", x.shape[2:]))
    operation = "max" if "Max" in node.op_type else "mean"
    emit.add_pool(w.trace, x, w.outs(node), taps, operation)


def _resize(w: Any, node: Any, at: dict[str, Any]) -> None:
    mode = at.get("mode", "nearest")
    emit.add_resize(w.trace, w.tensor(node.input[0]), w.out(node), mode)


def _gather(w: Any, node: Any, at: dict[str, Any]) -> None:
    table, index = w.tensor(node.input[0]), w.tensor(node.input[1])
    out, axis = w.out(node), at.get("axis", 0)
    if node.op_type == "Gather":
        dim = math.prod(table.shape[axis:][1:])
    elif node.op_type == "GatherND":
        dim = math.prod(table.shape[index.shape[-1] + at.get("batch_dims", 0) :])
    else:
        dim = 1
    emit.add_gather(w.trace, table, (index,), out, dim=dim)


def _scatter(w: Any, node: Any, at: dict[str, Any]) -> None:
    data, index, updates = (w.tensor(n) for n in node.input[:3])
    dim = math.prod(data.shape[index.shape[-1] :]) if node.op_type == "ScatterND" else 1
    added = at.get("reduction", "none") not in ("none", "")
    direction = "scatter_add" if added else "scatter"
    emit.add_gather(w.trace, data, (index, updates), w.out(node), dim=dim, direction=direction)


def _transpose(w: Any, node: Any, at: dict[str, Any]) -> None:
    x = w.tensor(node.input[0])
    perm = at.get("perm") or list(reversed(range(len(x.shape))))
    emit.add_transpose(w.trace, x, w.out(node), perm)


def _rotary(w: Any, node: Any, at: dict[str, Any]) -> None:
    x = w.tensor(node.input[0])
    emit.add_chain(w.trace, "rope", (x,), w.out(node, x.shape))


def _recurrent(w: Any, node: Any, at: dict[str, Any]) -> None:
    x, weight, again = (w.tensor(n) for n in node.input[:3])
    steps, batch = x.shape[:2] if not at.get("layout") else (x.shape[1], x.shape[0])
    weights = [weight, again]
    bias = w.maybe(node, 3)
    if bias is not None:
        weights.append(bias)
    fields: dict[str, Any] = {
        "steps": steps, "batch": batch, "input": x.shape[2], "hidden": again.shape[2],
        "cell": node.op_type.lower(), "bidirectional": at.get("direction") == "bidirectional",
    }  # fmt: skip
    emit.add_recurrent(w.trace, (x,), w.outs(node), fields, weights)


def _quantise(w: Any, node: Any, at: dict[str, Any]) -> None:
    x = w.tensor(node.input[0])
    direction = "dequantise" if node.op_type == "DequantizeLinear" else "quantise"
    scale = w.maybe(node, 1)
    whole = scale is None or scale.elements <= 1
    emit.add_quantise(w.trace, x, w.out(node), direction, "tensor" if whole else "row")


def _sort(w: Any, node: Any, at: dict[str, Any]) -> None:
    x = w.tensor(node.input[0])
    emit.add_sort(w.trace, x, w.outs(node), x.shape[at.get("axis", -1)])


def _scan(w: Any, node: Any, at: dict[str, Any]) -> None:
    x = w.tensor(node.input[0])
    axis = w.shapes.values.get(node.input[1])
    cols = x.shape[int(axis)] if axis is not None else x.shape[-1]
    emit.add_scan(w.trace, x, w.out(node), cols)


def _table(handler: Handler, words: str, domain: str = "") -> dict[tuple[str, str], Handler]:
    return {(domain, word): handler for word in words.split()}


HANDLERS: dict[tuple[str, str], Handler] = {
    **_table(_chain, """Add Sub Mul Div Pow Mod Neg Abs Sign Exp Log Sqrt Reciprocal Floor Ceil
        Round Sin Cos Tan Sinh Cosh Asin Acos Atan Tanh Erf Sigmoid Relu LeakyRelu PRelu Elu Selu
        Celu Gelu Swish HardSigmoid HardSwish Softplus Softsign Mish ThresholdedRelu Clip Min Max
        Sum Mean Where And Or Xor Not Equal Less LessOrEqual Greater GreaterOrEqual IsNaN IsInf
        BitwiseAnd BitwiseOr BitwiseXor BitwiseNot BitShift Trilu"""),
    **_table(_chain, "Gelu FastGelu BiasGelu QuickGelu", _MS),
    **_table(_cast, "Cast CastLike"),
    **_table(_copy, "Concat Slice Split Tile Expand Pad DepthToSpace SpaceToDepth Compress "
                    "ReverseSequence"),
    **_table(_matmul, "MatMul MatMulInteger QLinearMatMul"),
    **_table(_matmul, "FusedMatMul TransposeMatMul", _MS),
    **_table(_matmul_bits, "MatMulNBits", _MS),
    **_table(_gemm, "Gemm"),
    **_table(_einsum, "Einsum"),
    **_table(_conv, "Conv ConvTranspose ConvInteger QLinearConv"),
    **_table(_attention, "Attention"),
    **_table(_ms_attention, "Attention", _MS),
    **_table(_ms_heads, "MultiHeadAttention GroupQueryAttention", _MS),
    **_table(_rotary, "RotaryEmbedding"),
    **_table(_rotary, "RotaryEmbedding", _MS),
    **_table(_layer_norm, "LayerNormalization RMSNormalization SimplifiedLayerNormalization"),
    **_table(_layer_norm, "SimplifiedLayerNormalization", _MS),
    **_table(_skip_norm, "SkipLayerNormalization SkipSimplifiedLayerNormalization", _MS),
    **_table(_channel_norm, "BatchNormalization InstanceNormalization GroupNormalization"),
    **_table(_channel_norm, "GroupNorm", _MS),
    **_table(_softmax, "Softmax LogSoftmax"),
    **_table(_reduce, """ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2
        ReduceSumSquare ReduceLogSum ReduceLogSumExp ArgMax ArgMin"""),
    **_table(_pool, "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool"),
    **_table(_resize, "Resize Upsample"),
    **_table(_gather, "Gather GatherElements GatherND"),
    **_table(_scatter, "ScatterElements ScatterND Scatter"),
    **_table(_transpose, "Transpose"),
    **_table(_recurrent, "LSTM GRU"),
    **_table(_quantise, "QuantizeLinear DequantizeLinear DynamicQuantizeLinear"),
    **_table(_sort, "TopK"),
    **_table(_scan, "CumSum"),
}  # fmt: skip
