"""Exchange between the devices of experts by an engine's own kernels, where they were measured.

Networks state it as collectives of a library: gathered and reduce-scattered inside a node, all to
all beyond. Engines with kernels of their own send a token only to the devices of its experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..dtypes import dtype
from ..hardware import Hardware
from ..models.network import Amount, Call, Layout
from ..predict.bundle import Bundle
from .formats import Formats

__all__ = ["own_exchange"]

_PHASES = ("dispatch", "combine")
# Most tokens of a device that DeepEP's low-latency kernels were measured with; beyond, SGLang
# takes those for many tokens (its deepep_mode auto: prefill)
_LOW_LATENCY = 1024.0


def own_exchange(
    calls: Sequence[Call], layout: Layout, place: tuple[Hardware, str, Formats], bundle: Bundle
) -> list[Call]:
    """Let an engine's kernels do the exchange: all to all, of the bytes that they send.

    `place` is the device, the engine and the formats. As they are where experts are also cut
    (TensorRT-LLM: no all-to-all with tensor-parallel experts, communication_factory.py), where
    tokens are not spread or leave the node, and where no kernel of the engine was measured.
    """
    experts = next((c for c in calls if c.op == "moe"), None)
    within = 2 <= layout.ep == layout.stage_devices <= layout.gpus_per_node
    if experts is None or not within or layout.dp * layout.cp == 1:
        return list(calls)
    out: list[Call] = []
    for call in calls:
        moves = call.op == "collective" and call.part in _PHASES
        own = _own(call, experts, place, bundle) if moves else []
        out += own or [call]
    return out


def _own(
    call: Call, experts: Call, place: tuple[Hardware, str, Formats], bundle: Bundle
) -> list[Call]:
    """Give the calls in place of one; none where the engine has no kernel that was measured."""
    device, engine, formats = place

    def named(kind: str) -> str:
        words = (f"/{engine}-", f"/{call.part}{kind}")
        return bundle.collection_of("collective", device.base_name, *words)

    f, first = experts.fields, call.part == "dispatch"
    n = int(f["ep"])
    tokens = np.ceil(np.asarray(f["num_tokens"], np.float64) / n)
    elements = tokens * f["hidden"]
    spread = n * (1.0 - (1.0 - 1.0 / n) ** f["top_k"])  # devices of a token, experts drawn evenly
    few, many = named("-ll"), named("-normal")
    if few and many:
        # a copy for each expert: a byte an element, 4 for 128 and 16 a token; 16 bits back
        narrow = tokens * (f["hidden"] * (1.0 + 4.0 / 128.0) + 16.0) if first else 2.0 * elements
        small = tokens <= _LOW_LATENCY
        one, other = np.where(small, narrow * f["top_k"], 1.0), 2.0 * elements * spread
        return [_call(call, few, one, n, small), _call(call, many, other, n, ~small)]
    width = _width(formats, device) if first else 2.0
    own = named("")
    return [_call(call, own, elements * spread * width, n)] if own else []


def _call(call: Call, collection: str, size: Amount, n: int, here: Any = 1.0) -> Call:
    """All to all of `n` devices in place of a call, at the points that are here."""
    fields = {"kind": "all_to_all", "bytes": np.maximum(size, 1.0), "gpus": n,
              "gpus_per_node": n, "collection": collection}  # fmt: skip
    return replace(call, fields=fields, count=np.asarray(call.count) * here)


def _width(formats: Formats, device: Hardware) -> float:
    """Bytes of an element on its way to experts: of the format that they multiply."""
    name = formats.expert
    if name == "mxfp4":
        name = "fp8_e4m3" if device.supports("nvfp4") else formats.wide
    return dtype(formats.wide if dtype(name).weight_only else name).bytes_of(1.0)
