"""What surrounds a decode step: requests that join it."""

from __future__ import annotations

import numpy as np

from ...scenario import Points, Scenario, Traffic, engine
from ...scenario.solve import solve_all
from ..verdict import Finding, Found
from .kit import reached, span

__all__ = ["flover"]


def flover() -> list[Found]:
    """Run requests that arrive while others run one after another, or joined token by token.

    FasterTransformer runs what it was given to its end; joined, all share each read of the weights.
    """
    rates: dict[str, dict[str, float]] = {}
    for model in ("gpt-j-6b", "llama-7b"):
        s = Scenario(model, "a100_sxm", engine=engine("trtllm"), traffic=Traffic(32, 512, 1))
        counts = np.array([1, 8, 16, 24, 32])
        found = solve_all([(s.made(), s, Points.of(counts, 32, 512))])[0]
        gain = counts * found["e2e"][0] / found["e2e"]
        rates[model] = {f"{n} requests at once": float(g)
                        for n, g in zip(counts[1:], gain[1:], strict=True)}  # fmt: skip
    gpt, llama = rates["gpt-j-6b"], rates["llama-7b"]
    where = "8 to 32 requests in flight, 32 tokens in and 512 out, one A100"
    return [
        Finding(0, span(list(gpt.values())), at=reached(list(gpt.values()), 11.0, gpt),
                range="GPT-J-6B, " + where,
                note="with few requests at once there is less to share"),
        Finding(1, span(list(llama.values())), at=reached(list(llama.values()), 16.0, llama),
                range="Llama-7B, " + where),
    ]  # fmt: skip
