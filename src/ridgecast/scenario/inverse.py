"""Inverse questions: the longest context that fits, the largest batch that keeps time limits.

Owns searches over the solver's answers. Counts no bytes and times nothing itself.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import InfeasibleError, SpecError
from .advice import need_text
from .case import Made, Scenario
from .solve import Points, holds, largest_batch, machine_of, solve_points

__all__ = ["LONGEST", "largest_batch_within", "longest_context"]

LONGEST = 10_000_000  # prompt tokens; the search for the longest context stops there
_NODES = 16  # batches that are solved at once


def longest_context(made: Made, s: Scenario) -> int:
    """Longest prompt [tokens] with which the scenario's batch fits at once, its output included.

    0 where not even one token does, LONGEST at most. What the network was made for is not asked.
    Raises SpecError for a batch of "max", which depends on the prompt itself, UnsupportedError for
    a network that writes no text.
    """
    need_text(made.network)
    batch = s.traffic.batch
    if isinstance(batch, str):
        raise SpecError(f"traffic.batch: got {batch!r}, need a whole number to find the longest "
                        "context that fits")  # fmt: skip

    def ok(isl: int) -> bool:
        at = replace(s, traffic=replace(s.traffic, isl=isl))
        return holds(made, at, batch, machine_of(made, at).pinned)

    # a cache that is cut down after the prompt may peak lower as that grows: not the first power
    powers = [*(1 << i for i in range(LONGEST.bit_length())), LONGEST]
    low = next((isl for isl in reversed(powers) if ok(isl)), 0)
    if low in (0, LONGEST):
        return low
    high = min(isl for isl in powers if isl > low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if ok(middle) else (low, middle)
    return low


def largest_batch_within(
    made: Made, s: Scenario, *, tpot: float | None = None, ttft: float | None = None
) -> int:
    """Most requests in flight that fit and keep median times [s] per token and to the first one.

    0 where not even one fits. Raises InfeasibleError where one alone breaks a limit,
    UnsupportedError for a network that writes no text.
    """
    need_text(made.network)
    limits = {name: limit for name, limit in (("tpot", tpot), ("ttft", ttft)) if limit is not None}
    most = largest_batch(made, s, machine_of(made, s).pinned)
    if not limits or most < 1:
        return most
    low, high = 1, most
    while True:
        batches = np.unique(np.round(np.geomspace(low, high, _NODES)))
        found = solve_points(s, Points.of(batches, s.traffic.isl, s.traffic.osl), made)
        kept = np.all([found[name] <= limit for name, limit in limits.items()], axis=0)
        if not kept.any():
            over = [f"{name} {found[name][0]:.4g} s > {limit:.4g} s"
                    for name, limit in limits.items() if found[name][0] > limit]  # fmt: skip
            raise InfeasibleError(f"batch: one request in flight already takes {', '.join(over)}; "
                                  "relax the limit, or take more or faster devices")  # fmt: skip
        last = int(np.flatnonzero(kept)[-1])
        low = int(batches[last])
        if last + 1 == len(batches) or batches[last + 1] - low <= 1:
            return low
        high = int(batches[last + 1])
