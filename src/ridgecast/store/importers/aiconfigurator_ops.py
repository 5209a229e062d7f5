"""AIConfigurator's measured tables of attention (also latent), experts and collectives.

Source: github.com/ai-dynamo/aiconfigurator, Apache-2.0: Parquet, one file a device, framework and
version, `latency` in ms. Rows come out under the field names of our operations. What their columns
mean was checked against what a device can do, as said at each function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...dtypes import dtype
from ...errors import UnsupportedError
from ..schema import add_reason, canonical, invalidate, validate
from ..tables import Table, length, map_text, numeric
from .base import Importer, Request, devices, dtypes

__all__ = ["ALL_REDUCE", "ATTENTION", "DELTA", "LATENT", "MOE", "NCCL"]

_PHASES = {"context_attention": "context", "generation_attention": "generation"}
_LATENT = {"mla_context": "context", "mla_generation": "generation"}
# DeepSeek-V3 and Kimi-K2: latent, rotated part, and a head's unrotated part and value
_RANK, _ROPE, _NOPE, _VALUE = 512, 64, 128, 128
# format of a table -> formats of the products and of the weights
_MOE_DTYPES = {
    "w4a16_mxfp4": ("bf16", "mxfp4"),
    "w4a8_mxfp4_mxfp8": ("fp8_e4m3", "mxfp4"),
}
# hidden, inter, top_k and experts of networks whose experts have two matrices (Nemotron 3)
_NOT_GATED = {(2688, 1856, 6, 128), (2048, 5120, 22, 512), (1024, 2688, 22, 512)}
_ALWAYS_GATED = tuple(f"0.{minor}." for minor in range(10, 20))
_KINDS = {
    "all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all", "all_to_all": "all_to_all",
}  # fmt: skip


def attention(table: Table, request: Request) -> Table:
    """Canonical rows of context (prefill) and generation (decode) attention.

    Context: `isl` queries over isl + step keys, causal. Generation: `isl` is 1 and `step` counts
    the cached keys, so kv_len = step + 1 (the powers of two); read so, the fastest rows move 95 %
    of an H100's memory bandwidth. A window beyond kv_len becomes kv_len: it restricts
    nothing, and still is no 0, since kernels with a window take another path.
    Where `kv_cache_dtype` is fp8 some kernels multiply in fp8 too, which the tables do not tell:
    dtype is the one of the queries.
    """
    phase = _known(table, "op_name", _PHASES)
    step, isl = numeric(table, "step")[0], numeric(table, "isl")[0]
    kv_len = isl + step
    window = numeric(table, "window_size")[0] if "window_size" in table else np.zeros(len(isl))
    bounded = np.minimum(window, kv_len)
    out = _rows(
        table, request, op="attention", phase=phase, dtype=dtypes(table["attn_dtype"]),
        batch=table["batch_size"], q_len=isl, kv_len=kv_len,
        q_heads=numeric(table, "num_heads")[0], kv_heads=numeric(table, "num_key_value_heads")[0],
        head_dim=numeric(table, "head_dim")[0], window=bounded,
        kv_dtype=dtypes(table["kv_cache_dtype"]), causal=np.ones(len(isl), dtype=bool),
    )  # fmt: skip
    _need_sizes(out, ("q_len", "kv_len", "q_heads", "kv_heads", "head_dim"))
    return validate(out)


def latent(table: Table, request: Request) -> Table:
    """Canonical rows of latent attention (MLA) of the sizes of DeepSeek-V3 and Kimi-K2.

    Attention alone, with its rotation and the write to the cache; the projections on either side
    are other tables. Generation: absorbed, `num_heads` queries of 576 share one latent, of
    which 512 are the value, over step + 1 keys; read so, the fastest rows move 95 % of the memory
    bandwidth of an H100 and an H200, 89 % of a GB200's. Context: expanded, heads of 192 and
    values of 128, causal; read so, the fastest reach 62 % of an H200's bf16 rate and 70 % of a
    B300's. `num_heads` are those of one device: time is linear in it, whatever `tp_size`.

    TensorRT-LLM from 1.3 and its kernels inside SGLang multiply in fp8 where the cache is fp8: on
    Blackwell such rows reach 1.3 times the bf16 rate, on an H200 more than any bf16 row. Their
    dtype is fp8. SGLang's own kernels on Hopper turn fp8 into bf16 (a tenth of the rate).

    Not taken: context rows of SGLang on Hopper and of its Triton kernels, which attend in the
    latent space at three to eight times the time of the expanded form; `mla_context_module` and
    `mla_generation_module`, which time the projections of the layer together with attention, and
    the `wideep` tables, which do so too; `mla_bmm`, which is batched GEMM.
    """
    phase = _known(table, "op_name", _LATENT)
    step, isl = numeric(table, "step")[0], numeric(table, "isl")[0]
    decode, heads = phase == "generation", numeric(table, "num_heads")[0]
    kv_dtype = dtypes(table["kv_cache_dtype"])
    source = map_text(table["kernel_source"], str)
    own = map_text(table["framework"], str.upper) == "TRTLLM"
    new = ~map_text(table["version"], lambda v: v.startswith("1.0.")).astype(bool)
    narrow = (kv_dtype == "fp8_e4m3") & ((own & new) | (source == "trtllm_mla"))
    computed = np.where(narrow, kv_dtype, dtypes(table["mla_dtype"])).astype(object)
    out = _rows(
        table, request, op="attention", phase=phase, dtype=computed, kv_dtype=kv_dtype,
        batch=table["batch_size"], q_len=isl, kv_len=isl + step, q_heads=heads,
        kv_heads=np.where(decode, 1.0, heads),
        head_dim=np.where(decode, _RANK + _ROPE, _NOPE + _ROPE),
        v_head_dim=np.where(decode, _RANK, _VALUE), shared_kv=decode,
        causal=np.ones(len(isl), dtype=bool),
    )  # fmt: skip
    _need_sizes(out, ("q_len", "kv_len", "q_heads"))
    slow = ~decode & np.isin(source.astype(str), ("flash_attention", "triton"))
    invalidate(out, slow, "attends in the latent space, many times slower than expanded")
    return validate(out)


def delta(table: Table, request: Request) -> Table:
    """Canonical rows of the gated delta rule (Qwen3-Next, Qwen3.5): linear attention, chunks of 64.

    The recurrence alone; the short convolution, which the table holds too, is another operation
    and its rows are not valid. A decode step reads and writes an fp32 state of 128 x 128 for each
    value head: read so, the fastest rows move 82 to 90 % of the memory bandwidth from H100 to
    GB300. q_heads and kv_heads are the value heads: keys of fewer heads are repeated, which our
    operation cannot say. Not taken: TensorRT-LLM, whose decode would pass the bandwidth 1.2 times
    (its state may have 16 bits) and whose convolution would five times.
    """
    _known(table, "op_name", {"gdn": "gdn"})
    length, heads = numeric(table, "seq_len")[0], numeric(table, "num_v_heads")[0]
    out = _rows(
        table, request, op="attention", phase=map_text(table["phase"], str), dtype="bf16",
        kv_dtype="bf16", batch=table["batch_size"], q_len=length, kv_len=length, q_heads=heads,
        kv_heads=heads, head_dim=numeric(table, "head_k_dim")[0], block=np.full(len(length), 64),
        v_head_dim=numeric(table, "head_v_dim")[0], variant="linear",
        causal=np.ones(len(length), dtype=bool),
    )  # fmt: skip
    out["collection"] = out["collection"] + "/delta"
    _need_sizes(out, ("q_len", "q_heads", "head_dim"))
    source = out["kernel_source"].astype(str)
    invalidate(out, np.char.find(source, "conv1d") >= 0, "a convolution, not the recurrence")
    chunked = (out["phase"] == "context") & (length == 1)
    invalidate(out, chunked, "one token through the kernel of prompts: decode has its own")
    other = map_text(table["framework"], str.upper) == "TRTLLM"
    invalidate(out, other, "would pass the memory's bandwidth")
    return validate(out)


def moe(table: Table, request: Request) -> Table:
    """Canonical rows of expert layers: all that one device of `tp` x `ep` does, without router.

    `inter` and `experts` are those of the whole layer, of which a device holds 1/tp and 1/ep;
    `num_tokens` are the tokens that are routed, all present on the device. "power_law_1.2" becomes
    distribution power_law with exponent 1.2. Tables do not say whether experts are gated: they are,
    but for the shapes of Nemotron from vLLM 0.20 on (read as gated, those would run 1.5 times
    faster than all others on an H100, B200 and RTX PRO 6000 alike). Balanced rows of DeepSeek-V3's
    shape run up to 1.8 times faster than all of their experts' weights could be read: its router
    first picks half of the groups of experts. They are noted, not repaired.
    """
    _known(table, "op_name", {"moe": "moe"})
    formats = table["moe_dtype"]
    compute = map_text(formats, lambda f: _MOE_DTYPES.get(f, (f, f))[0])
    weights = map_text(formats, lambda f: _MOE_DTYPES.get(f, (f, f))[1])
    names = {"num_tokens": "num_tokens", "hidden": "hidden_size", "inter": "inter_size",
             "experts": "num_experts", "top_k": "topk", "tp": "moe_tp_size",
             "ep": "moe_ep_size"}  # fmt: skip
    split = map_text(table["distribution"], _distribution)
    out = _rows(
        table, request, op="moe", dtype=dtypes(compute), weight_dtype=dtypes(weights),
        distribution=map_text(table["distribution"], lambda d: _distribution(d)[0]),
        exponent=np.array([s[1] for s in split.tolist()], dtype=np.float64),
        **{ours: numeric(table, theirs)[0] for ours, theirs in names.items()},
    )  # fmt: skip
    _need_sizes(out, names)
    new = map_text(table["version"], lambda v: not v.startswith(_ALWAYS_GATED)).astype(bool)
    shape = zip(*(out[c].tolist() for c in ("hidden", "inter", "top_k", "experts")), strict=True)
    plain = np.array([s in _NOT_GATED for s in shape], dtype=bool) & new
    out["gated"], out["router"] = ~plain, np.zeros(len(plain), dtype=bool)
    add_reason(out, plain, "taken as not gated, which the table does not say")
    grouped = (out["experts"] == 256) & (out["top_k"] == 8) & (out["hidden"] == 7168)
    add_reason(
        out, grouped & (out["distribution"] == "balanced") & new,
        "balanced logits through a router of expert groups reach about half of the experts",
    )  # fmt: skip
    return validate(out)


def _distribution(text: str) -> tuple[str, float]:
    """Name and exponent: "power_law_1.2" -> ("power_law", 1.2)."""
    name, _, exponent = text.rpartition("_")
    try:
        return name, float(exponent)
    except ValueError:
        return text, 0.0


def collectives(table: Table, request: Request) -> Table:
    """Canonical rows of collectives inside one node.

    `message_size` counts elements of the whole buffer (for all_gather and reduce_scatter the
    gathered one): as bytes, int8 would pass twice the bandwidth of half over the same links; as
    elements of one device's share, all_gather would pass six times an NVLink. The largest bus
    bandwidth read so is 445 GB/s for NCCL on an H100 (450 GB/s a direction). All-reduces may
    exceed a direction's rate where the switch adds up (470 GB/s of an H200's custom all-reduce).
    Engines' own all-reduces tell how they were launched where they were measured both ways;
    TensorRT-LLM's take 4 to 6 us, as only a replayed graph does.
    """
    kind = _known(table, "op_name", _KINDS)
    own = "nccl_dtype" if "nccl_dtype" in table else "allreduce_dtype"
    formats = dtypes(table[own])
    elements = numeric(table, "message_size")[0]
    width = map_text(formats, _width).astype(np.float64)
    gpus = numeric(table, "num_gpus")[0]
    out = _rows(
        table, request, op="collective", kind=kind, dtype=formats, bytes=elements * width,
        gpus=gpus, gpus_per_node=gpus, algorithm="auto",
    )  # fmt: skip
    if "backend" in table:  # an engine's all-reduce, launched one by one or replayed from a graph
        launch = map_text(table["backend"], lambda b: "graph" if b.endswith("graph") else "stream")
        out["launch"] = launch
        suffix = map_text(table["backend"], lambda b: "/" + b.rpartition("_")[2])
        out["collection"] = out["collection"] + suffix
    _need_sizes(out, ("bytes", "gpus"))
    return validate(out)


def _width(name: str) -> float:
    """Bytes of an element; NaN for an unknown format, which `validate` tells."""
    try:
        return dtype(name).bytes_of(1.0)
    except ValueError:
        return np.nan


def _rows(table: Table, request: Request, **given: Any) -> Table:
    """Canonical rows with what all of these tables share."""
    rows = length(table)
    latency, bad = numeric(table, "latency")
    hardware, notes = devices(table["device"])
    source = map_text(table["kernel_source"], str)
    stack = table["framework"]
    if "nccl_dtype" in table:  # the framework is who measured, the version that of the library
        stack = source
    parts = (map_text(stack, str.lower), map_text(table["version"], str), hardware)
    collection = "aiconfigurator/" + parts[0] + "-" + parts[1] + "/" + parts[2]
    out = canonical(
        rows, hardware=hardware, kernel="library", kernel_source=source, time_s=latency * 1e-3,
        cache="hot", collection=collection, source_file=request.name, licence="Apache-2.0",
        reason=notes, **given,
    )  # fmt: skip
    add_reason(out, bad, "latency is not a number")
    return out


def _known(table: Table, column: str, names: Mapping[str, str]) -> np.ndarray:
    """Our words for a column of theirs. Raises UnsupportedError for others."""
    other = sorted({str(v) for v in set(table[column].tolist())} - set(names))
    if other:
        raise UnsupportedError(
            f"op {', '.join(other)} is not imported yet; of this kind are {', '.join(names)}"
        )
    return map_text(table[column], lambda v: names[v])


def _need_sizes(out: Table, names: Any) -> None:
    """Mark rows whose sizes are no whole numbers from 1."""
    for name in names:
        values = out[name]
        invalidate(out, ~((values >= 1) & (values == np.floor(values))),
                   f"{name} is not a whole number from 1")  # fmt: skip


def _importer(name: str, what: str, needs: str, convert: Callable[[Table, Request], Table]) -> Any:
    shared = ("framework", "version", "device", "op_name", "kernel_source", "latency")
    return Importer(name=name, what=what, needs=(*shared, *needs.split()), convert=convert)


ATTENTION = _importer(
    "aiconfigurator_attention",
    "AIConfigurator attention tables (Parquet)",
    "batch_size isl step num_heads num_key_value_heads head_dim attn_dtype kv_cache_dtype",
    attention,
)
LATENT = _importer(
    "aiconfigurator_mla",
    "AIConfigurator latent attention (MLA) tables (Parquet)",
    "batch_size isl step num_heads mla_dtype kv_cache_dtype",
    latent,
)
DELTA = _importer(
    "aiconfigurator_gdn",
    "AIConfigurator gated delta rule tables (Parquet)",
    "phase batch_size seq_len num_v_heads head_k_dim head_v_dim",
    delta,
)
MOE = _importer(
    "aiconfigurator_moe",
    "AIConfigurator mixture-of-experts tables (Parquet)",
    "moe_dtype num_tokens hidden_size inter_size topk num_experts moe_tp_size moe_ep_size "
    "distribution",
    moe,
)
NCCL = _importer(
    "aiconfigurator_nccl",
    "AIConfigurator NCCL tables (Parquet)",
    "nccl_dtype num_gpus message_size",
    collectives,
)
ALL_REDUCE = _importer(
    "aiconfigurator_all_reduce",
    "AIConfigurator custom all-reduce tables (Parquet)",
    "allreduce_dtype num_gpus message_size",
    collectives,
)
