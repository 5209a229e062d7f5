"""Serving: what runs in one pass, on one machine, on which units of it.

Both sides of a comparison run the same model on the same engine profile; only the treatment
differs. Throughputs are of the steady state (infinitely many rounds of requests).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...models import Layout
from ...models.network import Tokens
from ...scenario import Points, Scenario, Traffic, largest_batch, run_pass, solve_points
from ...scenario.solve import machine_of
from ..verdict import Finding, Found
from .kit import reached, span

__all__ = ["case", "pass_times", "rates", "sarathi"]

F64 = npt.NDArray[np.float64]


def case(model: str, on: str, isl: int, osl: int, techniques: Any = "", **more: Any) -> Scenario:
    """Describe a steady state of requests of one length."""
    traffic = Traffic(isl, osl, rounds=1e9)
    return Scenario(model, on, traffic=traffic, techniques=techniques, **more)


def pass_times(s: Scenario, groups: Sequence[Tokens]) -> F64:
    """Seconds of one pass over groups of tokens, at each point of their fields."""
    made = s.made()
    return run_pass(made.network, machine_of(made, s), groups, made.treatment).time


def rates(s: Scenario, batch: Any, isl: Any, osl: Any) -> F64:
    """Output tokens/s of a replica at each point."""
    return solve_points(s, Points.of(batch, isl, osl))["output_tokens_per_s"]


def most_of(s: Scenario) -> int:
    """Most sequences that fit on a replica."""
    made = s.made()
    return largest_batch(made, s, machine_of(made, s).pinned)


# SARATHI ------------------------------------------------------------------------------------

_CHUNK = 256


def _piggybacked(model: str, on: str, batches: F64, context: int) -> F64:
    """Time of a decode in a batch of decodes, over its marginal time on a chunk of prefill.

    The pass holds 256 tokens: decodes, and as many of a prompt; it is compared with the same pass
    without the decodes.
    """
    s = case(model, on, context, 1)
    prompt: F64 = _CHUNK - batches
    ones, none = np.ones_like(batches), np.zeros_like(batches)
    decodes = Tokens(np.r_[batches, batches, none], 1.0, context + 1.0)
    chunk = Tokens(np.r_[none, ones, ones], np.concatenate([prompt] * 3),
                   np.concatenate([context / 2.0 + prompt] * 3))  # fmt: skip
    alone, both, bare = np.split(pass_times(s, [decodes, chunk]), 3)
    return alone / (both - bare)


def _end_to_end(model: str, on: str) -> tuple[list[float], list[str]]:
    """Throughput with chunks that carry decodes over prefills and decodes that run alone.

    Sequences of 1024 to 3072 tokens, of which 3 to 50 times as many are prompt as output; the
    largest batch that fits. Prefill and decode never share a pass in the engine profile sglang.
    """
    parts = np.array([3, 5, 10, 15, 20, 25, 30, 40, 50])
    gains: list[float] = []
    places: list[str] = []
    for length in (1024, 2048, 3072):
        isl = np.round(length * parts / (parts + 1))
        before = case(model, on, length - 16, 16, engine="sglang")
        after = case(model, on, length - 16, 16, f"sarathi:chunk={_CHUNK}", engine="sglang")
        most = most_of(before)
        gain = rates(after, most, isl, length - isl) / rates(before, most, isl, length - isl)
        gains += gain.tolist()
        places += [f"{length} tokens, P:D {p}, batch {most}" for p in parts]
    return gains, places


def _stage_times() -> tuple[F64, F64, float]:
    """Prompt tokens beside 27 decodes, seconds of a stage, and more a chunk and token before it.

    GPT-3 on 8 x 8 A100 (tp x pp).
    """
    s = case("gpt-3-175b", "a100_sxm", 2048, 205, devices=64, layout=Layout(tp=8, pp=8))
    part = _CHUNK - 27.0
    prompts: F64 = np.array([0.0, part, 1024, 2048, 4096, 8192, 16384, part])
    some: F64 = np.minimum(prompts, 1.0)
    least: F64 = np.maximum(prompts, 1.0)
    seen = np.minimum(least, 4096.0)
    seen[-1] = 4096.0
    times = pass_times(s, [Tokens(27.0, 1.0, 2150.0), Tokens(some, least, seen)]) / 8.0
    return prompts[:-1], times[:-1], float(times[-1] - times[1]) / (4096.0 - part)


def _pipeline(
    chunked: bool, stage: tuple[F64, F64, float], begun: float, requests: int = 400
) -> tuple[float, float]:
    """Seconds that requests take through eight stages, and idle seconds of the stages.

    Eight micro-batches of 27 sequences go round. Prompts are of 1024 to 4096 tokens, ten times the
    output. New prompts run whole beside decodes (Orca), or in chunks that fill 256 tokens. All
    requests begin together (`begun` 0) or are somewhere in their output (1).
    """
    rng = np.random.default_rng(1)
    queue = [256.0 * x for x in rng.integers(4, 17, requests)]
    lengths = 256.0 * rng.integers(4, 17, (8, 27))
    slots = np.ceil(begun * rng.random((8, 27)) * lengths / 10.0)  # output tokens still to come
    owed, done = np.zeros((8, 27)), np.zeros((8, 27))  # prompt tokens still to come, and seen
    free, ready, busy = np.zeros(8), np.zeros(8), 0.0
    while queue:
        at = int(np.argmin(ready))
        for i in np.flatnonzero(slots[at] == 0)[: len(queue)]:
            owed[at, i] = queue.pop()
            slots[at, i], done[at, i] = np.ceil(owed[at, i] / 10.0), 0.0
        room = _CHUNK - 27.0 if chunked else np.inf
        before = np.cumsum(owed[at]) - owed[at]
        taken = np.clip(room - before, 0.0, owed[at])
        owed[at] -= taken
        slots[at] = np.maximum(slots[at] - (owed[at] == 0), 0.0)
        took = float(np.interp(taken.sum(), *stage[:2]))
        took += stage[2] * float(done[at][taken > 0].max(initial=0.0)) * chunked
        done[at] += taken
        moment = ready[at]
        for k in range(8):
            moment = free[k] = max(moment, free[k]) + took
        ready[at], busy = moment, busy + took
    end = float(free.max())
    return end, 8.0 * (end - busy)


def sarathi() -> list[Found]:
    """Chunks of prefill that carry decodes, on one device and through a pipeline."""
    found: dict[str, tuple[F64, list[float], list[str]]] = {}
    batches = {"llama-13b": np.array([2.0, 4, 8, 16]), "llama-30b": np.array([2.0, 5, 10])}
    for model, on in (("llama-13b", "rtx_a6000"), ("llama-30b", "a100_sxm")):
        found[model] = (_piggybacked(model, on, batches[model], 1024), *_end_to_end(model, on))
    stage = _stage_times()
    runs = [(_pipeline(False, stage, b), _pipeline(True, stage, b)) for b in (0.0, 1.0)]
    idle, faster = ([old[i] / new[i] for old, new in runs] for i in (1, 0))
    starts = ("requests that begin together", "requests that began at any time")
    through = "8 micro-batches of 27 through 8 stages, prompts of 1024 to 4096 tokens, P:D 10"
    where = "1024 to 3072 tokens a request, 3 to 50 prompt tokens an output token, chunks of 256"
    small, large = found["llama-13b"], found["llama-30b"]
    at_13 = [f"batch {b:g}" for b in batches["llama-13b"]]
    at_33 = [f"batch {b:g}" for b in batches["llama-30b"]]
    return [
        Finding(0, span(small[0]), at=reached(small[0], 10.0, at_13), range="1024 tokens, batch 2 "
                "to 16, the most that fit"),
        Finding(1, span(small[1]), at=reached(small[1], 1.33, small[2]), range=where),
        Finding(2, span(large[1]), at=reached(large[1], 1.25, large[2]), range=where),
        Finding(3, span(large[0]), at=reached(large[0], 4.25, at_33), range="1024 tokens, batch 2 "
                "to 10"),
        Finding(4, span(idle), at=reached(idle, 6.29, starts), range=through,
                note="idle seconds of all stages; chunks differ here only by what is before them"),
        Finding(5, span(faster), at=reached(faster, 1.91, starts), range=through),
    ]  # fmt: skip
