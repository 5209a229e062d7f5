"""What recipes of served models share: a scenario in one line, its rates, its edges.

Both sides of a pair run on the same engine profile and model; only techniques, formats or the
number of devices differ.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ...models import Layout, Network
from ...scenario import (
    Points,
    Scenario,
    Traffic,
    largest_batch,
    memory_at,
    solve_points,
)
from ...scenario.memory import weight_bytes
from ...techniques import Treatment

__all__ = ["best", "bytes_of_weights", "case", "held", "longest", "most", "step", "tokens_per_s"]


def case(
    model: str | Network, on: Any, n: int = 1, *, use: str | Treatment = "",
    lengths: tuple[int, int] = (512, 512), layout: Layout | None = None, **more: Any,
) -> Scenario:  # fmt: skip
    """One scenario: `use` are techniques, `lengths` prompt and output tokens.

    The `n` devices are cut by tp unless a layout says otherwise; `more` are fields of Scenario.
    """
    return Scenario(model, on, n, layout=layout or Layout(tp=n), traffic=Traffic(*lengths),
                    techniques=use, **more)  # fmt: skip


def _at(s: Scenario, batch: Any) -> Points:
    return Points.of(batch, s.traffic.isl, s.traffic.osl)


def step(s: Scenario, batch: Any = 1) -> Any:
    """Seconds between the tokens of a request: a number, or an array of many batches."""
    found = solve_points(s, _at(s, batch))["tpot"]
    return found if np.ndim(batch) else float(found[0])


def tokens_per_s(s: Scenario, batch: Any = 1) -> Any:
    """Output tokens a second of a replica: a number, or an array of many batches."""
    found = solve_points(s, _at(s, batch))["output_tokens_per_s"]
    return found if np.ndim(batch) else float(found[0])


def most(s: Scenario) -> int:
    """Largest batch that fits."""
    return largest_batch(s.made(), s)


def best(s: Scenario) -> tuple[float, int]:
    """Largest rate over batches up to what fits (and 1024), and that batch; 0 where none fits."""
    limit = min(most(s), 1024)
    if limit < 1:
        return 0.0, 0
    batches = np.unique(np.round(np.geomspace(1, limit, 8)))
    rates = tokens_per_s(s, batches)
    return float(rates.max()), int(batches[int(rates.argmax())])


def held(s: Scenario, batch: int = 1) -> float:
    """Bytes that the fullest device holds."""
    return memory_at(s.made(), s, batch).total


def bytes_of_weights(s: Scenario) -> float:
    """Bytes of weights on the fullest device."""
    made = s.made()
    return weight_bytes(made.network, made.formats, made.layout, made.treatment)


def longest(s: Scenario, capacity: float) -> int:
    """Most tokens of one sequence that `capacity` bytes a device hold, 0 where none do.

    The prompt is short, so that the cache grows, by the same bytes a token, and activations do not.
    """
    near, far = (replace(s, traffic=Traffic(s.traffic.isl, n, 1)) for n in (4096, 65536))
    each = (held(far) - held(near)) / (65536 - 4096)
    return max(int(4096 + s.traffic.isl + (capacity - held(near)) / each), 0)
