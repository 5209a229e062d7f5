"""What torch's aten operators are in terms of our operations: one small function a family.

Owns the table of operators. Source: the signatures in torch's native_functions.yaml; operators
with the tag "pointwise" there are element-wise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from . import graph_emit as emit
from .graph_fuse import WHOLE
from .graph_record import Tensor

__all__ = ["FREE", "handle", "handle_function"]

FREE = frozenset(
    """empty empty_like empty_strided new_empty new_empty_strided zeros zeros_like
    new_zeros ones ones_like new_ones full full_like new_full arange linspace eye scalar_tensor
    zero_ fill_ lift_fresh lift_fresh_copy detach alias _local_scalar_dense
    tril_indices triu_indices as_strided_ squeeze_ unsqueeze_ transpose_ t_ swapaxes_ resize_ set_
    detach_""".split()
)
"""Makers of constants and placeholders, too small or too rare to count; views in place."""


class _Called:
    """An operator's arguments by name and its results, as tensors of the trace."""

    def __init__(self, recorder: Any, func: Any, given: tuple[Any, Any], results: list[Any]):
        args, kwargs = given
        names = [a.name for a in func._schema.arguments]
        self.func, self.recorder, self.trace = func, recorder, recorder.trace
        self.given: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
        self.ins = [recorder.tensor(t) for v in self.given.values() for t in _flat(v)]
        self.raw = results
        self.outs = [recorder.written(t) for t in results]

    def __getitem__(self, name: str) -> Tensor:
        return self.recorder_view(self.given[name])

    def recorder_view(self, t: Any) -> Tensor:
        """Return a tensor argument as it was read."""
        return next(x for x, raw in zip(self.ins, self._raw_ins, strict=True) if raw is t)

    @property
    def _raw_ins(self) -> list[Any]:
        return [t for v in self.given.values() for t in _flat(v)]

    def maybe(self, name: str) -> Tensor | None:
        """Return an optional tensor argument."""
        return self[name] if self.given.get(name) is not None else None

    @property
    def out(self) -> Tensor:
        """The first result."""
        return self.outs[0]


def _flat(value: Any) -> list[Any]:
    if hasattr(value, "untyped_storage"):
        return [value]
    if isinstance(value, list | tuple):
        return [t for v in value for t in _flat(v)]
    return []


Handler = Callable[[_Called], None]


def handle(recorder: Any, func: Any, given: tuple[Any, Any], results: list[Any]) -> None:
    """Record one aten operator."""
    name = func._schema.name.partition("::")[2]
    handler = _HANDLERS.get(name) or _HANDLERS.get(name.rstrip("_"))
    called = _Called(recorder, func, given, results)
    if handler is not None:
        return handler(called)
    if any(str(tag).endswith("pointwise") for tag in func.tags):
        return emit.add_chain(called.trace, name, called.ins, called.out)
    return emit.add_unknown(called.trace, func._schema.name, called.ins, called.outs)


def _mm(c: _Called) -> None:
    a, b = ("mat1", "mat2") if "mat1" in c.given else ("self", "mat2")
    x, y = c[a], c[b]
    bias = c["self"] if "mat1" in c.given else None
    emit.add_gemm(c.trace, x, y, c.out, (1, x.shape[0], y.shape[1], x.shape[1]), bias=bias)


def _bmm(c: _Called) -> None:
    """Batched product; one matrix that is repeated for each of the batch makes one tall product."""
    a, b = ("batch1", "batch2") if "batch1" in c.given else ("self", "mat2")
    x, y = c[a], c[b]
    batch, m, k = x.shape
    n = y.shape[2]
    size = (batch, m, n, k)
    if c.given[b].stride(0) == 0:
        size = (1, batch * m, n, k)
    bias = c["self"] if "batch1" in c.given else None
    emit.add_gemm(c.trace, x, y, c.out, size, bias=bias)


def _mv(c: _Called) -> None:
    vector = c.maybe("vec") or c["tensor"]
    matrix = c["mat"] if "mat" in c.given else c["self"]
    m = matrix.shape[0] if len(matrix.shape) > 1 else 1
    emit.add_gemm(c.trace, vector, matrix, c.out, (1, m, 1, vector.shape[0]))


def _convolution(c: _Called) -> None:
    x, weight = c["input"], c["weight"]
    dims = len(weight.shape) - 2

    def axes(name: str) -> list[int]:
        value = c.given[name]
        found = list(value) if isinstance(value, Sequence) else [value]
        return found * dims if len(found) == 1 else found

    padding = [2 * p for p in axes("padding")]
    shape = emit.ConvShape(weight.shape[2:], axes("stride"), padding, axes("dilation"),
                           c.given["groups"], bool(c.given.get("transposed")))  # fmt: skip
    emit.add_conv(c.trace, x, weight, c.out, shape, bias=c.maybe("bias"))


def _with_params(c: _Called, x: str) -> list[Tensor]:
    return [c[x], *(t for name in ("weight", "bias") if (t := c.maybe(name)) is not None)]


def _layer_norm(c: _Called) -> None:
    cols = math.prod(c.given["normalized_shape"])
    kind = "rms" if "rms" in c.func._schema.name else "layer"
    emit.add_norm(c.trace, _with_params(c, "input"), c.outs[:1], kind, size=(cols, 1, 1))


def _group_norm(c: _Called) -> None:
    groups = c.given.get("group") or c.given.get("num_groups") or 1
    x = c["input"]
    emit.add_norm(c.trace, _with_params(c, "input"), c.outs[:1], "group",
                  size=(x.shape[1], math.prod(x.shape[2:]), groups))  # fmt: skip


def _batch_norm(c: _Called) -> None:
    x = c["input"]
    emit.add_norm(c.trace, _with_params(c, "input"), c.outs[:1], "batch",
                  size=(x.shape[1], math.prod(x.shape[2:]), 1))  # fmt: skip


def _softmax(c: _Called) -> None:
    """Softmax; the one named safe comes from torch's attention function alone."""
    x = c["self"]
    part = WHOLE if "_safe_softmax" in c.func._schema.name else "softmax"
    emit.add_softmax(c.trace, x, c.out, x.shape[c.given["dim"]] if x.shape else 1, part=part)


def _sdpa(c: _Called) -> None:
    """One of torch's attention kernels, called by its own name."""
    q, k, v = c["query"], c["key"], c["value"]
    fields = _attention_fields(q, k, v, bool(c.given.get("is_causal")))
    emit.add_attention(c.trace, c.ins, c.outs[:1], fields)


def _attention_fields(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> dict[str, object]:
    heads = len(q.shape) > 3
    lead = q.shape[:-3] if heads else q.shape[:-2]
    q_len, kv_len = q.shape[-2], k.shape[-2]
    return {"batch": math.prod(lead), "q_heads": q.shape[-3] if heads else 1,
            "kv_heads": k.shape[-3] if heads else 1, "q_len": q_len, "kv_len": kv_len,
            "head_dim": q.shape[-1], "v_head_dim": v.shape[-1],
            "causal": causal and q_len <= kv_len, "variant": "flash"}  # fmt: skip


def _embedding(c: _Called) -> None:
    table = c["weight"]
    emit.add_gather(c.trace, table, (c["indices"],), c.out, dim=table.shape[-1])


def _index(c: _Called) -> None:
    """Rows, or single elements, that an index names."""
    x = c["self"]
    index = c.given.get("indices", c.given.get("index"))
    named = [i for i, t in enumerate(index) if t is not None] if isinstance(index, list) else []
    if named:
        dim = math.prod(x.shape[named[-1] + 1 :])
    elif "gather" in c.func._schema.name:
        dim = 1
    else:
        dim = math.prod(x.shape[c.given.get("dim", 0) :][1:])
    others = [t for t in c.ins if t.name != x.name]
    emit.add_gather(c.trace, x, others, c.out, dim=dim)


def _scatter(c: _Called) -> None:
    x = c["self"]
    others = [t for t in c.ins if t.name != x.name] or c.ins[1:]
    name = c.func._schema.name
    added = "add" in name or "reduce" in name or bool(c.given.get("accumulate"))
    index = c.given.get("indices", c.given.get("index"))
    named = [i for i, t in enumerate(index) if t is not None] if isinstance(index, list) else []
    dim = math.prod(x.shape[named[-1] + 1 :]) if named else 1
    if "index_add" in name or "index_copy" in name:
        dim = math.prod(x.shape[c.given.get("dim", 0) :][1:])
    if others:
        emit.add_gather(c.trace, x, others, c.out, dim=dim,
                        direction="scatter_add" if added else "scatter")  # fmt: skip


_REDUCE = {"mean": "mean", "amax": "max", "amin": "max", "max": "max", "min": "max",
           "aminmax": "max", "argmax": "argmax", "argmin": "argmax", "var": "variance",
           "std": "variance", "var_mean": "variance", "norm": "norm",
           "linalg_vector_norm": "norm"}  # fmt: skip


def _reduce(c: _Called) -> None:
    name = c.func._schema.name.partition("::")[2]
    if name in ("max", "min") and len(c.ins) > 1:
        return emit.add_chain(c.trace, name, c.ins, c.out)
    return emit.add_reduction(c.trace, c.ins[:1], c.outs, _REDUCE.get(name, "sum"))


def _pool(c: _Called) -> None:
    x, name = c.ins[0], c.func._schema.name
    size = c.given.get("kernel_size")
    if size is None:  # adaptive: windows tile the input
        taps = max(1, round(x.elements / c.out.elements))
    else:
        found = list(size) if isinstance(size, Sequence) else [size]
        dims = 3 if "3d" in name else 1 if "1d" in name else 2
        taps = math.prod(found * dims if len(found) == 1 else found)
    emit.add_pool(c.trace, x, c.outs, taps, "max" if "max" in name else "mean")


def _resize(c: _Called) -> None:
    name = c.func._schema.name
    mode = "nearest" if "nearest" in name else "cubic" if "cubic" in name else "linear"
    emit.add_resize(c.trace, c.ins[0], c.out, mode)


def _copy(c: _Called) -> None:
    """Concatenations, pads, repeats: moved."""
    emit.add_copy(c.trace, c.ins, c.out, fuses=False)


def _cast(c: _Called) -> None:
    source: Any = c.given.get("src", c.given.get("self"))
    x = c.recorder_view(source)
    if source.dtype != c.raw[0].dtype or "copy_" in c.func._schema.name:
        return emit.add_copy(c.trace, (x,), c.out, fuses=tuple(x.shape) == c.out.shape)
    return _clone(c)


def _clone(c: _Called) -> None:
    """Make a copy in the order of its shape: a transpose where the source lies in another order."""
    source = c.given["self"]
    x = c["self"]
    steps = [abs(s) if n > 1 else 0 for s, n in zip(source.stride(), x.shape, strict=True)]
    order = sorted(range(len(x.shape)), key=lambda i: (-steps[i], i))
    strides = c.raw[0].stride()
    same = tuple(strides) == tuple(source.stride()) or any(
        s == 0 and n > 1 for s, n in zip(source.stride(), x.shape, strict=True)
    )
    if same or order == sorted(order):
        return emit.add_copy(c.trace, (x,), c.out, fuses=False)
    memory = Tensor(x.name, tuple(x.shape[i] for i in order), x.view)
    perm = [order.index(i) for i in range(len(order))]
    return emit.add_transpose(c.trace, memory, c.out, perm)


def _sort(c: _Called) -> None:
    x = c["self"]
    dim = c.given.get("dim", -1)
    emit.add_sort(c.trace, x, c.outs, x.shape[dim] if x.shape else 1)


def _scan(c: _Called) -> None:
    x = c["self"]
    emit.add_scan(c.trace, x, c.out, x.shape[c.given["dim"]] if x.shape else 1)


def _chain(c: _Called) -> None:
    emit.add_chain(c.trace, c.func._schema.name.partition("::")[2], c.ins, c.out)


def _table(handler: Handler, words: str) -> dict[str, Handler]:
    return {word: handler for word in words.split()}


_HANDLERS: dict[str, Handler] = {
    **_table(_mm, "mm addmm _addmm_activation _scaled_mm _int_mm"),
    **_table(_bmm, "bmm baddbmm"),
    **_table(_mv, "mv dot vdot"),
    **_table(_convolution, "convolution _convolution convolution_overrideable"),
    **_table(_layer_norm, "native_layer_norm _fused_rms_norm"),
    **_table(_group_norm, "native_group_norm"),
    **_table(_batch_norm, """native_batch_norm _native_batch_norm_legit
        _native_batch_norm_legit_no_training cudnn_batch_norm _batch_norm_with_update
        _batch_norm_no_update"""),
    **_table(_softmax, "_softmax _log_softmax _safe_softmax softmax log_softmax"),
    **_table(_sdpa, """_scaled_dot_product_flash_attention
        _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention
        _scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable"""),
    **_table(_embedding, "embedding"),
    **_table(_index, "index index_select gather _unsafe_index take"),
    **_table(_scatter, """scatter scatter_add scatter_reduce index_put _index_put_impl
        _unsafe_index_put index_add index_copy masked_scatter"""),
    **_table(_reduce, """sum mean amax amin max min aminmax argmax argmin var std var_mean norm
        linalg_vector_norm prod any all nansum logsumexp"""),
    **_table(_pool, """max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d
        avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d
        adaptive_max_pool3d"""),
    **_table(_resize, """upsample_nearest1d upsample_nearest2d upsample_nearest3d
        _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
        upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d
        upsample_bicubic2d _upsample_bicubic2d_aa"""),
    **_table(_copy, """cat stack constant_pad_nd repeat roll flip pixel_shuffle pixel_unshuffle
        reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
        replication_pad3d repeat_interleave slice_scatter select_scatter im2col col2im
        split_with_sizes_copy"""),
    **_table(_cast, "_to_copy copy_ copy"),
    **_table(_clone, "clone contiguous"),
    **_table(_sort, "sort topk argsort kthvalue median mode"),
    **_table(_scan, "cumsum cumprod logcumsumexp cummax cummin"),
    **_table(_chain, """native_dropout bernoulli bernoulli_ tril triu glu where masked_fill
        _prelu_kernel log_sigmoid_forward rand_like randn_like normal_ uniform_ hardtanh"""),
}  # fmt: skip


Whole = Callable[[Any], None]


def handle_function(
    recorder: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]
) -> Whole | None:
    """Return what records a function as one operation, to be called with its result; or None."""
    maker = _FUNCTIONS.get(name)
    return maker(recorder, args, kwargs) if maker is not None else None


def _whole_attention(recorder: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Whole:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    ins = [recorder.tensor(given[n]) for n in names[:4] if given.get(n) is not None]
    fields = _attention_fields(ins[0], ins[1], ins[2], bool(given.get("is_causal")))

    def record(out: Any) -> None:
        emit.add_attention(recorder.trace, ins, (recorder.written(out),), fields)

    return record


def _whole_rms(recorder: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Whole:
    names = ("input", "normalized_shape", "weight")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    ins = [recorder.tensor(given[n]) for n in ("input", "weight") if given.get(n) is not None]

    def record(out: Any) -> None:
        cols = math.prod(given["normalized_shape"])
        emit.add_norm(recorder.trace, ins, (recorder.written(out),), "rms", size=(cols, 1, 1))

    return record


def _whole_recurrent(cell: str) -> Callable[..., Whole | None]:
    def make(recorder: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Whole | None:
        plain = (
            9  # input, state, weights, has_biases, layers, dropout, train, both ways, batch_first
        )
        if len(args) < plain or not isinstance(args[2], list | tuple):
            return None  # packed sequences: step by step
        x, weights = args[0], [recorder.tensor(t) for t in args[2]]
        layers, both, first = args[4], args[7], args[8]
        shape = tuple(x.shape)
        fields: dict[str, object] = {
            "cell": cell, "steps": shape[1] if first else shape[0],
            "batch": shape[0] if first else shape[1], "input": shape[2],
            "hidden": weights[1].shape[1], "layers": layers, "bidirectional": bool(both),
        }  # fmt: skip
        ins = [recorder.tensor(x)]

        def record(out: Any) -> None:
            outs = [recorder.written(t) for t in _flat(out)]
            emit.add_recurrent(recorder.trace, ins, outs, fields, weights)

        return record

    return make


_FUNCTIONS: dict[str, Callable[..., Whole | None]] = {
    "scaled_dot_product_attention": _whole_attention,
    "rms_norm": _whole_rms,
    "lstm": _whole_recurrent("lstm"),
    "gru": _whole_recurrent("gru"),
}
