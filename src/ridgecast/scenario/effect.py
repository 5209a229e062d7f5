"""What a technique does to a default case: the same case solved without it and with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import RidgecastError
from ..techniques import Technique
from .case import Scenario, Traffic
from .solve import evaluate

__all__ = ["DEFAULT", "effect_of"]

DEFAULT = Scenario("llama-3.1-8b", "h100_sxm", 1, traffic=Traffic(8192, 512, 16))
"""Llama-3.1-8B in bf16 on one H100, 8192 tokens in and 512 out, 16 requests in flight, vLLM."""
_ROWS = ("ttft", "tpot", "output_tokens_per_s_per_gpu", "energy_per_token", "memory_total",
         "max_batch")  # fmt: skip
_NAMES = {"ttft": "ttft_s", "tpot": "tpot_s", "energy_per_token": "energy_per_token_j",
          "memory_total": "memory_bytes"}  # fmt: skip


def effect_of(technique: Technique | str, case: Scenario = DEFAULT) -> list[dict[str, Any]]:
    """Solve a case without a technique and with it, at its batch and at the largest that fits.

    Returns a row a quantity: quantity, without, with, ratio, and the throughput at the largest
    batch. One row with a reason where the technique cannot be applied to the case.
    """
    name = technique if isinstance(technique, str) else technique.id
    rows: list[dict[str, Any]] = []
    try:
        for at, batch in (("", case.traffic.batch), (" at max batch", "max")):
            both = [
                evaluate(replace(case, traffic=replace(case.traffic, batch=batch), techniques=t))
                for t in ("", name)
            ]
            for field in _ROWS if not at else ("output_tokens_per_s_per_gpu",):
                one, two = (getattr(a, field) for a in both)
                ratio = two / one if one and two is not None else None
                rows.append({"quantity": _NAMES.get(field, field) + at, "without": one,
                             "with": two, "ratio": ratio})  # fmt: skip
    except RidgecastError as error:
        return [{"quantity": "none", "reason": f"not for this case: {error}"}]
    return rows
