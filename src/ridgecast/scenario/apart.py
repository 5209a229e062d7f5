"""Prefill and decode on workers of their own: how many requests are where, and what they wait for.

Owns the closed network of clients, prefill groups and decode slots, and the passes that it needs.
Knows no measured row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..models.network import Tokens
from .case import Made, Scenario
from .passes import Job, run_passes
from .solve import Points, machine_of

__all__ = ["Apart", "Clients", "Times", "apart_of", "balance"]

F64 = npt.NDArray[np.float64]
_PARTS = 4  # decode passes of 1, 1/2, 1/4, 1/8 of the sequences that could be decoding
_STEPS = 48  # halvings until the number of decoding requests is found


@dataclass(frozen=True, slots=True)
class Clients:
    """Requests in flight, and who serves them: arrays [points].

    `groups` prompts that prefill workers serve side by side, `decoders` decode workers, `slots`
    sequences that each of them holds at once (inf: all; attention groups of a worker share its
    requests evenly). `rounds` requests each client sends.
    """

    requests: F64
    groups: F64
    decoders: F64
    slots: F64
    osl: F64
    rounds: float = 10.0

    def most(self) -> F64:
        """Count requests that decode at once where no prefill holds them up.

        Routers deal them out in turn, or at random (Dynamo's --router-mode; no row says which):
        the mean of both. At random, a worker gets a binomial number of them (as a normal one),
        and those beyond its slots wait while others have some free.
        """
        slots = np.minimum(self.slots, self.requests + 1.0)
        mean = self.requests / self.decoders
        spread = np.sqrt(np.maximum(mean * (1.0 - 1.0 / self.decoders), 1e-12))
        z = (slots - mean) / spread
        below = 0.5 * (1.0 + _erf(z / np.sqrt(2.0)))
        free = (slots - mean) * below + spread * np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)
        dealt = self.decoders * np.clip(slots - free, 0.0, np.minimum(mean, slots))
        turn = np.minimum(self.requests, self.slots * self.decoders)
        return np.where(np.isfinite(self.slots), 0.5 * (turn + dealt), self.requests)


@dataclass(frozen=True, slots=True)
class Apart:
    """Passes [points] by "time", "low" and "high", s.

    `batches` and `decode` [_PARTS, points] are sequences of a decode worker and their step; `alone`
    a prompt that has its worker for itself, `full` what a prompt takes of its group where all
    groups are busy; `launches` kernels of a prefill.
    """

    batches: F64
    decode: Mapping[str, F64]
    alone: Mapping[str, F64]
    full: Mapping[str, F64]
    launches: F64


@dataclass(frozen=True, slots=True)
class Times:
    """Where requests are: `tpot` s, `queue` s for a prefill group, `slot` s for a decode slot.

    `prefill` s is the prefill itself, beside those of other groups; `decoding` requests decode.
    """

    tpot: F64
    prefill: F64
    queue: F64
    slot: F64
    decoding: F64
    full: F64
    """Seconds that a prompt takes of its group while others wait."""


def apart_of(
    decode: tuple[Made, Scenario], prefill: tuple[Made, Scenario], at: Points, c: Clients
) -> Apart:
    """Time the passes of both sides; all points are of one machine and layout a side.

    Attention groups of a prefill worker run one pass together. How many of them have a prompt at
    a time lies between one and all: the geometric mean (assumed; no fitted network was so served).
    """
    (made, s), (before, first) = decode, prefill
    n = len(at.batch)
    most = np.maximum(c.most() / c.decoders, 1.0)
    parts = 0.5 ** np.arange(_PARTS)
    batches = np.maximum(np.ceil(most * parts[:, None] - 1e-9), 1.0)
    verified = max(round(made.treatment.speculation.verified), 1)
    kv = np.tile(np.ceil(at.isl + at.osl / 2.0), _PARTS)
    steps = Tokens(batches.ravel(), float(verified), kv + verified - 1.0, float(verified))
    chunk = float(before.engine.chunk) or np.inf
    part = np.minimum(at.isl, chunk)
    rounds = np.ceil(at.isl / part)
    context = np.where(rounds > 1, at.isl - (at.isl - part) / 2.0, at.isl)
    each = np.clip(np.floor(chunk / part), 1.0, np.maximum(c.requests / c.groups, 1.0))
    each = np.where(rounds > 1, 1.0, np.floor(each))
    prompts = np.concatenate([np.ones(n), np.ceil(each * before.layout.dp**0.5)])
    fresh = Tokens(prompts, np.tile(part, 2), np.tile(context, 2))
    step, pass_ = run_passes([
        Job(made.network, machine_of(made, s), [steps], made.treatment),
        Job(before.network, machine_of(before, first), [fresh], before.treatment),
    ])  # fmt: skip
    ends = {e: (getattr(step, e), getattr(pass_, e)) for e in ("time", "low", "high")}
    launch = pass_.launches
    return Apart(
        batches,
        {e: a.reshape(_PARTS, n) for e, (a, _) in ends.items()},
        {e: b[:n] * rounds for e, (_, b) in ends.items()},
        {e: b[n:] * rounds / each for e, (_, b) in ends.items()},
        np.stack([launch[:n] * rounds, launch[n:] * rounds / each]),
    )


def balance(p: Apart, c: Clients, end: str, made: Made) -> Times:
    """Find how many of the requests in flight decode, by halving: the others prefill or wait.

    While n requests decode, x = n / (osl tpot(n)) end a second, and as many are prefilled. Of
    their groups a share b = x full / groups is busy, and by Little's law

        requests = n + x (prefill + b^(sqrt(2 (groups + 1)) - 1) full / (2 (1 - b)))

    (Sakasegawa 1977, requests of equal length), up to the slots of the decode workers: those
    beyond wait for one. Prefill takes from `alone` to `full`, as others run beside it.
    """
    e, t = made.engine, made.treatment.speculation
    factor = e.decode_factor * (1.0 + t.draft_share * t.draft_steps) / t.accepted
    launch = e.prefill_launch * p.launches
    alone, full = p.alone[end] + launch[0], p.full[end] + launch[1]
    most = c.most()

    def state(n: F64) -> tuple[F64, F64, F64, F64]:
        tpot = _between(n / c.decoders, p.batches, p.decode[end]) * factor
        x = n / (c.osl * tpot)
        busy = x * full / c.groups
        safe = np.minimum(busy, 1.0 - 1e-9)
        own = alone + safe * np.maximum(full - alone, 0.0)
        queue = safe ** (np.sqrt(2.0 * (c.groups + 1.0)) - 1.0) * full / (2.0 * (1.0 - safe))
        return tpot, x, own, np.where(busy < 1.0, queue, np.inf)

    low, high = np.zeros_like(most), most
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        _, x, own, queue = state(middle)
        fits = middle + x * (own + queue) <= c.requests
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    tpot, x, own, queue = state(low)
    left = np.maximum(c.requests / x - c.osl * tpot - own, 0.0)  # waits, by Little's law
    queue = np.minimum(queue, left)
    return Times(tpot, own, queue, left - queue, low, full)


def _erf(x: F64) -> F64:
    """Error function to 1.2e-7 (Numerical Recipes, erfcc)."""
    t = 1.0 / (1.0 + 0.5 * np.abs(x))
    series = (-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807,
              -1.13520398, 1.48851587, -0.82215223, 0.17087277)  # fmt: skip
    tail = t * np.exp(-x * x + np.polyval(series[::-1], t))
    return np.where(x >= 0.0, 1.0 - tail, tail - 1.0)


def _between(at: F64, batches: F64, times: F64) -> F64:
    """Interpolate times [parts, points] of falling batches at one batch a point, on log scales."""
    wanted = np.log(np.clip(at, batches[-1], batches[0]))
    x, y = np.log(batches), np.log(times)
    out = y[0].copy()
    for i in range(len(x) - 1):
        width = np.maximum(x[i] - x[i + 1], 1e-12)
        inside = (wanted <= x[i]) & (x[i] > x[i + 1])
        out = np.where(inside, y[i + 1] + (y[i] - y[i + 1]) * (wanted - x[i + 1]) / width, out)
    return np.exp(out)
