"""AIConfigurator's measured tables of the exchange between the devices of experts.

Source: github.com/ai-dynamo/aiconfigurator, Apache-2.0. Rows are all-to-alls of op "collective",
dispatch (tokens to the devices of their experts) and combine (results back) each a collection of
its own. Their `bytes` are really sent and received: of the format that travels, whence dtype is
bf16 throughout (nothing is added up on the way in terms of the operation).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...dtypes import dtype
from ..schema import canonical, invalidate, validate
from ..tables import Table, map_text, numeric
from .base import Importer, Request, devices, dtypes

__all__ = ["DEEPEP_LL", "DEEPEP_NORMAL", "NVLINK"]

_SMS = 20  # of DeepEP's kernels unless told otherwise (deep_ep.Buffer.num_sms)
_MOVED = {"alltoall_dispatch": "dispatch", "alltoall_combine": "combine"}


def copies(devices_: Any, top_k: Any) -> Any:
    """Mean number of devices that hold at least one of a token's experts, drawn evenly."""
    return devices_ * (1.0 - (1.0 - 1.0 / devices_) ** top_k)


def nvlink(table: Table, request: Request) -> Table:
    """Canonical rows of TensorRT-LLM's exchange over NVLink, writing into the others' memory.

    `num_tokens` are those of each device; one copy goes to each device of a token's experts: read
    so, GB200 pass up to 598 (dispatch) and 661 GB/s (combine) a direction of 900. Dispatch sends
    the table's format with its scales, combine 16 bits. Not taken: the two-sided exchange, which
    needs a preparing kernel before and which TensorRT-LLM tries second (communication_factory.py).
    """
    tokens, hidden = numeric(table, "num_tokens")[0], numeric(table, "hidden_size")[0]
    n, top_k = numeric(table, "moe_ep_size")[0], numeric(table, "topk")[0]
    phase = map_text(table["op_name"], lambda v: _MOVED.get(v, ""))
    sent = map_text(dtypes(table["moe_dtype"]), _width).astype(np.float64)
    width = np.where(phase == "dispatch", sent, 2.0)
    size = tokens * copies(n, top_k) * hidden * width
    out = _rows(table, request, phase, size, n, numeric(table, "latency")[0] * 1e-3)
    one_sided = map_text(table["kernel_source"], str) == "NVLinkOneSided"
    invalidate(out, ~(one_sided & (phase != "")), "not of the one-sided exchange")
    return validate(out)


def low_latency(table: Table, request: Request) -> Table:
    """Canonical rows of DeepEP's low-latency kernels in SGLang (fp8 to the experts, 16 bits back).

    Bytes as the table's own bandwidths: one copy for each expert of a token, on dispatch a byte an
    element, four for 128 of them and 16 for the token. Of the nodes' devices, which the table
    leaves out, a Grace node has 4 and others 8. Rows of fewer than 128 experts or 4 a token are not
    valid: such experts get so many rows that their own copies take the time.
    """
    tokens, hidden = numeric(table, "num_token")[0], numeric(table, "hidden_size")[0]
    top_k, experts = numeric(table, "num_topk")[0], numeric(table, "num_experts")[0]
    sizes = {"dispatch": tokens * top_k * (hidden * (1.0 + 4.0 / 128.0) + 16.0),
             "combine": tokens * top_k * hidden * 2.0}  # fmt: skip
    parts = [_deepep(table, request, f"{p}-ll", size, f"{p}_avg_t_us") for p, size in sizes.items()]
    out = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    few = np.tile((experts < 128) | (top_k < 4), 2)
    invalidate(out, few, "so few experts that copies inside a device take the time")
    return validate(out)


def normal(table: Table, request: Request) -> Table:
    """Canonical rows of DeepEP's kernels for many tokens in SGLang, 16 bits either way.

    One copy goes to each device of a token's experts: read so, GB200 pass 426 GB/s on dispatch,
    251 on combine, with 20 multiprocessors. Rows of other numbers of multiprocessors are not valid.
    """
    tokens, hidden = numeric(table, "num_token")[0], numeric(table, "hidden_size")[0]
    size = tokens * copies(_near(table), numeric(table, "num_topk")[0]) * hidden * 2.0
    few = numeric(table, "num_experts")[0] < 128
    parts = []
    for phase in ("dispatch", "combine"):
        part = _deepep(table, request, f"{phase}-normal", size, f"{phase}_transmit_us")
        part["time_s"] = part["time_s"] + numeric(table, f"{phase}_notify_us")[0] * 1e-6
        other = few | (numeric(table, f"{phase}_sms")[0] != _SMS)
        invalidate(part, other, f"not {_SMS} multiprocessors, or fewer than 128 experts")
        parts.append(part)
    out = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return validate(out)


def _near(table: Table) -> Any:
    """Devices of the nodes of a row."""
    grace = map_text(table["device"], lambda v: "GB" in v.upper()).astype(bool)
    return np.where(grace, 4.0, 8.0) * numeric(table, "node_num")[0]


def _deepep(table: Table, request: Request, phase: str, size: Any, column: str) -> Table:
    phases = np.full(len(size), phase, dtype=object)
    return _rows(table, request, phases, size, _near(table), numeric(table, column)[0] * 1e-6)


def _rows(table: Table, request: Request, phase: Any, size: Any, n: Any, time: Any) -> Table:
    hardware, notes = devices(table["device"])
    stack = map_text(table["framework"], str.lower) + "-" + map_text(table["version"], str)
    return canonical(
        len(size), hardware=hardware, op="collective", kind="all_to_all", bytes=size, gpus=n,
        gpus_per_node=n, algorithm="auto", dtype="bf16", time_s=time, kernel="library",
        kernel_source=map_text(table["kernel_source"], str), cache="hot", reason=notes,
        collection="aiconfigurator/" + stack + "/" + hardware + "/" + phase,
        source_file=request.name, licence="Apache-2.0",
    )  # fmt: skip


def _width(name: str) -> float:
    """Bytes of an element with its scales; NaN for an unknown format."""
    try:
        return dtype(name).bytes_of(1.0)
    except ValueError:
        return np.nan


_STACK = ("framework", "version", "device", "op_name", "kernel_source")
NVLINK = Importer(
    name="aiconfigurator_alltoall",
    what="AIConfigurator expert exchange tables of TensorRT-LLM (Parquet)",
    needs=(*_STACK, "latency", "moe_dtype", "num_tokens", "hidden_size", "topk", "moe_ep_size"),
    convert=nvlink,
)
DEEPEP_LL = Importer(
    name="aiconfigurator_deepep_ll",
    what="AIConfigurator low-latency DeepEP tables (Parquet)",
    needs=(*_STACK, "num_token", "hidden_size", "num_topk", "num_experts", "dispatch_avg_t_us"),
    convert=low_latency,
)
DEEPEP_NORMAL = Importer(
    name="aiconfigurator_deepep",
    what="AIConfigurator DeepEP tables (Parquet)",
    needs=(*_STACK, "num_token", "hidden_size", "num_topk", "num_experts", "dispatch_sms"),
    convert=normal,
)
