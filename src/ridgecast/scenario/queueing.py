"""From passes to requests: what a request waits for when others share the replica.

Owns the closed forms of continuous and static batching. Knows no network and no device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..techniques.treatment import Treatment
from .engine import Engine

__all__ = ["Load", "Phases", "Served", "serve"]

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Phases:
    """Passes of a replica: time, low, high [s] and energy [J], arrays [points] each.

    `decode`: one step of all sequences; `prefill`: one prompt (or one of `rounds` parts of it);
    `packed`: the `together` prompts that a chunk holds; `mixed`: those and a decode step in one
    pass. `launches` are the kernels of a prefill.
    """

    decode: Mapping[str, F64]
    prefill: Mapping[str, F64]
    packed: Mapping[str, F64]
    mixed: Mapping[str, F64]
    together: F64
    rounds: F64
    launches: F64
    draft: Mapping[str, F64] | None = None
    """One pass in which the model drafts for itself, where it does."""


@dataclass(frozen=True, slots=True)
class Served:
    """Seconds of a request and output tokens/s of a replica: (time, low, high) [points] each."""

    ttft: tuple[F64, F64, F64]
    tpot: tuple[F64, F64, F64]
    e2e: tuple[F64, F64, F64]
    output_tokens_per_s: tuple[F64, F64, F64]
    power: F64
    """Watts of all devices of the replica."""

    def columns(self) -> dict[str, F64]:
        """Flat arrays: name, name_low, name_high."""
        out: dict[str, F64] = {}
        for name in ("ttft", "tpot", "e2e", "output_tokens_per_s"):
            out[name], out[f"{name}_low"], out[f"{name}_high"] = getattr(self, name)
        return out | {"power": self.power}


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in flight on a replica, how many of them it holds at once, groups, and output.

    `batch` and `osl` are arrays [points]; `running` the sequences that run at once where memory
    holds fewer; `groups` groups of sequences that prefill side by side (attention groups, and
    pipeline stages, each of which has a pass of its own); `rounds` as of `Traffic`. `stages` passes
    are under way at a time, `idle` W go to stages that have none. `arrivals` requests/s come at
    random (0: clients send the next when one ends).
    """

    batch: F64
    running: F64
    osl: F64
    groups: int | F64 = 1
    rounds: float | F64 = 10.0
    stages: float | F64 = 1.0
    idle: float | F64 = 0.0
    arrivals: float = 0.0


def serve(p: Phases, load: Load, engine: Engine, t: Treatment) -> Served:
    """Latency and throughput of requests in flight, each replaced when it ends.

    Continuous batching: while one request decodes osl tokens, each of the other batch - 1 slots
    ends one request and prefills the next, so every request is delayed by batch - 1 prefills (in
    the first round, in which all clients start at once, by half of them on average):

        tpot = decode pass / accepted + (1 - 1 / (2 rounds)) (batch - 1) / osl * marginal prefill

    The marginal prefill is (mixed - decode) / prompts together where the engine mixes both in one
    pass (as far as there are decode passes to ride on), else the prefill pass itself. A new request
    waits for passes under way and for its own prefill; in the first round for half of all prompts.
    Where more requests are in flight than run at once, the
    others wait for whole generations:

        ttft = host + waits * step + (1 - 1/rounds) own
               + (1/rounds) (batch + 1) / 2 prompts + (batch / running - 1) osl tpot

    Requests that arrive at random wait for those before them: busy / (2 (1 - busy)) of a prefill
    (Pollaczek-Khinchine, equal service). A prefill is not replayed from a graph: each of its
    kernels costs the host a launch besides. Static batching: all prompts first, then all decode
    steps.
    """
    batch, osl = load.batch, load.osl
    parts = {k: _one(p, k, load, engine, t) for k in ("time", "low", "high")}
    (ttft, tpot, _), low, high = (parts[k] for k in ("time", "low", "high"))
    rest = np.maximum(osl - 1.0, 0.0)
    first = (ttft, np.minimum(low[0], ttft * engine.ttft_low),
             np.maximum(high[0], ttft * engine.ttft_high))  # fmt: skip
    each = (tpot, np.minimum(low[1], tpot * engine.tpot_low),
            np.maximum(high[1], tpot * engine.tpot_high))  # fmt: skip
    e2e = tuple(a + rest * b for a, b in zip(first, each, strict=True))
    rate = tuple(batch * osl / e2e[i] for i in (0, 2, 1))
    return Served(first, each, e2e, rate, _power(p, load, t))  # type: ignore[arg-type]


def _power(p: Phases, load: Load, t: Treatment) -> F64:
    """Mean power [W] of a replica that is never idle: energy of all its passes over their time.

    Of a pipeline's passes, one a stage runs at a time.
    """
    steps = np.maximum(load.osl - 1.0, 1.0) / t.speculation.accepted * (1.0 + _draft(t))
    prompts = load.batch * p.rounds / p.together / load.stages
    spent, lasted = (steps * p.decode[k] + prompts * p.packed[k] for k in ("energy", "time"))
    if p.draft is not None:
        spent, lasted = (
            was + steps * _drafting(p.draft[k], t)
            for was, k in ((spent, "energy"), (lasted, "time"))
        )
    return spent / lasted * load.stages + load.idle


def _drafting(draft: F64, t: Treatment) -> F64:
    """Time or energy of all self-drafting passes before one that verifies."""
    return t.speculation.draft_steps * draft * (1.0 + t.speculation.draft_share)


def _draft(t: Treatment) -> float:
    """Drafting's time as a share of a decode pass."""
    s = t.speculation
    return 0.0 if s.parallel or s.draft_cache else s.draft_share * s.draft_steps


def _one(p: Phases, key: str, load: Load, engine: Engine, t: Treatment) -> tuple[F64, F64, F64]:
    batch, running, osl = load.batch, load.running, load.osl
    decode = p.decode[key] * engine.decode_factor
    launch = engine.prefill_launch * p.launches  # prefill is not replayed from a graph
    prefill = p.prefill[key] * engine.prefill_factor
    packed, mixed = (x[key] * engine.prefill_factor for x in (p.packed, p.mixed))
    step = decode * (1.0 + _draft(t)) / t.speculation.accepted
    if p.draft is not None:
        step = (decode + _drafting(p.draft[key], t) * engine.decode_factor) / t.speculation.accepted
    rest = np.maximum(osl - 1.0, 0.0)
    if t.batching.mode == "static" or not engine.continuous:
        ttft = engine.request_host + packed * p.rounds * np.ceil(batch / p.together)
        return ttft, step, ttft + rest * step
    beside = t.batching.overlap  # share of the units on which prefills run beside decodes
    rides = (engine.mixed or bool(t.batching.chunk)) and not beside
    here = np.ceil(running / load.groups)  # prompts that share one attention group
    passes = np.maximum(here - 1.0, 1.0) * p.rounds / p.together
    pairs = np.minimum(osl / passes, 1.0) if rides else 0.0  # passes of decode to ride on are osl
    marginal = (pairs * (mixed - decode) + (1.0 - pairs) * packed) * p.rounds / p.together
    marginal = np.maximum(marginal, 0.0) * engine.stall
    marginal = marginal - np.minimum(marginal, beside * step * osl / np.maximum(here - 1.0, 1.0))
    first = 1.0 / load.rounds
    tpot = step + (here - 1.0) / osl * marginal * (1.0 - 0.5 * first)
    alone = prefill / beside if beside else prefill
    own = (alone + launch) * p.rounds
    ttft = (
        engine.request_host
        + engine.pass_wait * np.where(batch > 1, tpot * t.speculation.accepted, 0.0)
        + (1.0 - first) * own
        + first * np.where(batch > 1, (here + 1.0) / 2.0 * (packed + launch) * p.rounds
                           / p.together, own)
        + (batch / running - 1.0) * osl * tpot
    )  # fmt: skip
    if load.arrivals:  # prompts that come at random queue before the prefills (M/D/1)
        each = (packed + launch) * p.rounds / p.together
        busy = np.minimum(load.arrivals / load.groups * each, 0.99)
        ttft = ttft + busy / (2.0 * (1.0 - busy)) * own
    ttft = np.maximum(ttft, own)
    return ttft, tpot, ttft + rest * tpot
