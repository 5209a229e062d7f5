"""The solver: a scenario's phases, batch that fits, latency, throughput, power, energy and cost.

Owns the composition of passes into requests. Points (batch, isl, osl) are arrays: one table is
predicted for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InfeasibleError
from ..models.network import Tokens
from ..predict.observe import told
from ..techniques.treatment import Treatment
from .advice import cautions, need_text, offered
from .case import Answer, Made, Scenario
from .formats import told_of
from .memory import Memory, Room, memory_of
from .passes import Job, Machine, Pass, idle_power, run_passes, unscheduled
from .queueing import Load, Phases, Served, serve

__all__ = ["Points", "evaluate", "holds", "largest_batch", "memory_at", "phases_of", "solve_points"]

F64 = npt.NDArray[np.float64]
SETS = 4  # passes of every point: decode, prefill, packed, mixed
MOST = 1 << 20  # sequences; no engine runs more on one replica


@dataclass(frozen=True, slots=True)
class Points:
    """Requests in flight on a replica, prompt and output tokens: arrays [points]."""

    batch: F64
    isl: F64
    osl: F64
    most: F64
    """Sequences that memory holds at once; those beyond wait."""

    @classmethod
    def of(cls, batch: Any, isl: Any, osl: Any, most: Any = np.inf) -> Points:
        """Broadcast numbers and arrays against each other."""
        arrays = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (batch, isl, osl, most)))
        return cls(*(np.atleast_1d(a).astype(np.float64) for a in arrays))

    @property
    def running(self) -> F64:
        """Sequences that run at once."""
        return np.minimum(self.batch, self.most)


def machine_of(made: Made, s: Scenario) -> Machine:
    """Gather what passes run on."""
    pinned = None
    place = made.treatment.placement
    if place.device_share is None or place.spill:
        room = made.hardware.memory.capacity * made.engine.memory_share
        probe = memory_of(made.network, made.formats, made.layout, made.engine,
                          Room(1, s.traffic.isl + s.traffic.osl, _pass_tokens(made, s)),
                          made.treatment, pinned=0.0)  # fmt: skip
        pinned = max(room - probe.total, 0.0)
    return Machine(made.hardware, made.layout, made.formats, made.engine, s.host, s.trained,
                   s.level, pinned)  # fmt: skip


def _pass_tokens(made: Made, s: Scenario) -> float:
    """Tokens of the largest pass: a chunk of prefill, or a whole prompt of every sequence."""
    chunk = _chunk(made)
    batch = 1 if s.traffic.batch == "max" else int(s.traffic.batch)
    decode = batch * made.treatment.speculation.verified
    if chunk:
        return max(min(float(chunk), batch * s.traffic.isl * 1.0), decode, 1.0)
    return max(batch * s.traffic.isl * 1.0, decode)


def _static(made: Made) -> bool:
    return made.treatment.batching.mode == "static" or not made.engine.continuous


def _chunk(made: Made) -> int:
    asked = made.treatment.batching.chunk
    return made.engine.chunk if asked is None else asked


def memory_at(made: Made, s: Scenario, batch: int, pinned: float | None = None) -> Memory:
    """Memory of the fullest device with `batch` sequences on the replica, at their full length."""
    told("memory", s, batch)
    return _memory_at(made, s, batch, pinned)


def _memory_at(made: Made, s: Scenario, batch: int, pinned: float | None) -> Memory:
    traffic = replace(s.traffic, batch=batch)
    room = Room(batch, s.traffic.isl + s.traffic.osl,
                _pass_tokens(made, replace(s, traffic=traffic)), s.traffic.isl)  # fmt: skip
    return memory_of(made.network, made.formats, made.layout, made.engine, room,
                     _with_prefix(made.treatment, s), pinned)  # fmt: skip


def _with_prefix(t: Treatment, s: Scenario) -> Treatment:
    if s.traffic.prefix <= t.kv.shared:
        return t
    return replace(t, kv=replace(t.kv, shared=s.traffic.prefix))


def holds(made: Made, s: Scenario, batch: int, pinned: float | None = None) -> bool:
    """Whether a replica, its host and its storage hold `batch` sequences of full length at once."""
    memory = _memory_at(made, s, batch, pinned)
    limit = made.hardware.memory.capacity * made.engine.memory_share
    beside = memory.host <= s.host.memory_capacity
    return memory.total <= limit and beside and memory.storage <= s.host.storage_capacity


def largest_batch(made: Made, s: Scenario, pinned: float | None = None) -> int:
    """Most sequences of full length that fit on a replica, its host and its storage.

    0 where not even one does.
    """
    told("memory", s, "max")
    if not holds(made, s, 1, pinned):
        return 0
    low, high = 1, 2
    while high < MOST and holds(made, s, high, pinned):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(made, s, middle, pinned) else (low, middle)
    return low


def phases_of(made: Made, s: Scenario, at: Points) -> tuple[Phases, Pass]:
    """Run the passes of one scenario; see `phases_of_all`."""
    return phases_of_all([(made, s, at)])[0]


def phases_of_all(cases: Sequence[tuple[Made, Scenario, Points]]) -> list[tuple[Phases, Pass]]:
    """Run passes of decode, of prefill, and of both together, for every point of every case.

    One table is predicted for all of them.
    """
    for _, s, at in cases:
        told("serve", s, at)
    planned = [_planned(*case) for case in cases]
    runs = iter(run_passes([job for plan in planned for job in plan.jobs]))
    return [plan.phases([next(runs) for _ in plan.jobs]) for plan in planned]


@dataclass(frozen=True, slots=True)
class _Planned:
    """Passes that a scenario needs, and how they become its phases."""

    jobs: list[Job]
    together: F64
    rounds: F64
    after: float
    drafts: bool = False

    def phases(self, runs: list[Pass]) -> tuple[Phases, Pass]:
        """Phases of the passes that were run: all of the prompt, then less of it where cut."""
        n, run = len(self.together), runs[0]
        draft = _slice(runs.pop(), 0, n) if self.drafts else None
        if len(runs) > 1:
            run = _mixed(run, runs[1], self.after, n)
        decode, prefill, packed, mixed = (_slice(run, i * n, n) for i in range(SETS))
        launches = run.launches[n : 2 * n]
        return Phases(decode, prefill, packed, mixed, self.together, self.rounds, launches,
                      draft), run  # fmt: skip


def _planned(made: Made, s: Scenario, at: Points) -> _Planned:
    """Plan a scenario's passes.

    Decode sees the mean length over a request's life, isl + osl / 2. A prefill pass holds whole
    prompts up to a chunk of tokens (or a part of one prompt, with its mean context). Together they
    make one table, SETS times the points: decode, one prompt, as many prompts as a chunk holds, and
    those beside a decode pass.
    """
    t, network = _with_prefix(made.treatment, s), made.network
    n = len(at.running)
    running = np.ceil(at.running / _stages(made, at))  # of one pass
    fresh = np.maximum(np.ceil(at.isl * (1.0 - t.kv.shared)), 1.0)
    chunk = np.full(n, float(_chunk(made)) or np.inf)
    if t.batching.chunk:  # the decodes that a chunk carries count among its tokens
        chunk = np.maximum(chunk - running * t.speculation.verified, 16.0)
    together = np.clip(np.floor(chunk / fresh), 1.0, np.maximum(running, 1.0))
    part = np.minimum(fresh, chunk)
    rounds = np.ceil(fresh / part)
    context = np.where(rounds > 1, at.isl - (fresh - part) / 2.0, at.isl)
    kv = np.ceil(at.isl + at.osl / 2.0)
    if t.batching.prefix_groups:  # what the sequences of a pass share is read once, not by each
        kv = np.ceil(kv - at.isl * t.kv.shared * (1.0 - 1.0 / np.maximum(running, 1.0)))
    spec = t.speculation
    zero = np.zeros(n)
    verified = np.maximum(np.round(spec.verified), 1.0)
    decode = Tokens(np.concatenate([running, zero, zero, running]), verified,
                    np.tile(kv, SETS) + verified - 1.0, verified)  # fmt: skip
    share, after = t.reduction.prompt, t.reduction.prompt_after
    prefill = Tokens(np.concatenate([zero, zero + 1.0, together, together]),
                     np.tile(part, SETS), np.tile(context, SETS))  # fmt: skip
    groups = [decode, prefill]
    if t.batching.ride > 0:
        rides = np.concatenate([zero + 1.0, zero, zero, zero + 1.0])
        groups.append(Tokens(rides, t.batching.ride, t.batching.ride, 0.0))
    layers = np.concatenate([np.full(n, t.reduction.layers), np.ones((SETS - 1) * n)])
    machine = machine_of(made, s)
    jobs = [Job(network, machine, groups, t, layers)]
    if share < 1.0:  # after some layers only part of the prompt goes on
        less = np.maximum(np.ceil(part * share), 1.0)
        reach = np.maximum(np.ceil(context * share), less)
        fewer = Tokens(prefill.batch, np.tile(less, SETS), np.tile(reach, SETS))
        jobs.append(Job(network, machine, [decode, fewer], t, layers))
    if spec.draft_cache:
        near = np.minimum(kv, spec.draft_cache)
        own = replace(t, kv=replace(t.kv, place="device"))
        jobs.append(Job(network, unscheduled(machine), [Tokens(running, 1.0, near)], own,
                        t.reduction.layers))  # fmt: skip
    return _Planned(jobs, together, rounds, after, spec.draft_cache > 0)


def _load(made: Made, s: Scenario, at: Points) -> Load:
    stages = _stages(made, at)
    idle = (made.layout.pp - stages) * made.layout.stage_devices * idle_power(made.hardware)
    groups = made.layout.dp * stages
    arrivals = (s.traffic.request_rate or 0.0) / made.replicas
    rounds = np.inf if arrivals else s.traffic.rounds  # no first round: requests come at random
    return Load(at.batch, at.running, at.osl, groups, rounds, stages, idle, arrivals)


def _stages(made: Made, at: Points) -> F64:
    """Pipeline stages that work at a time: sequences are dealt out to as many groups of passes.

    Static engines send one batch through one stage after another.
    """
    most = np.ones_like(at.running) if _static(made) else np.maximum(at.running, 1.0)
    return np.minimum(float(made.layout.pp), most)


def _slice(run: Pass, start: int, n: int) -> dict[str, F64]:
    at = slice(start, start + n)
    return {"time": run.time[at], "low": run.low[at], "high": run.high[at],
            "energy": run.energy[at]}  # fmt: skip


def _mixed(full: Pass, less: Pass, after: float, n: int) -> Pass:
    """Prefill passes of which a share of the layers sees the full prompt, the others less of it."""
    weight = np.concatenate([np.ones(n), np.full((SETS - 1) * n, after)])
    both = {
        name: weight * getattr(full, name) + (1 - weight) * getattr(less, name)
        for name in ("time", "low", "high", "energy")
    }
    parts = {k: weight * v + (1 - weight) * less.parts.get(k, 0.0) for k, v in full.parts.items()}
    return replace(full, parts=parts, **both)


def solve_points(s: Scenario, at: Points, made: Made | None = None) -> dict[str, F64]:
    """Latency, throughput and energy of every point: arrays [points] under `Served`'s names."""
    return solve_all([(made or s.made(), s, at)])[0]


def solve_all(cases: Sequence[tuple[Made, Scenario, Points]]) -> list[dict[str, F64]]:
    """Solve the points of many scenarios with one table of predictions.

    Besides what `Served` has, `decode` (with its ends) is the time per output token of a worker
    that never stops for a prompt.
    """
    out = []
    for (made, s, at), (phases, _) in zip(cases, phases_of_all(cases), strict=True):
        load = _load(made, s, at)
        found = serve(phases, load, made.engine, made.treatment).columns()
        apart = serve(phases, load, replace(made.engine, stall=0.0), made.treatment).tpot
        names = ("decode", "decode_low", "decode_high")
        out.append(found | dict(zip(names, apart, strict=True)))
    return out


def evaluate(s: Scenario) -> Answer:
    """Answer a scenario.

    Raises SpecError for unknown names and impossible values, InfeasibleError for a layout or a
    format that cannot be, NoDataError where a kernel cannot be answered, UnsupportedError for a
    network that writes no text. A model that does not fit is an answer, with `fits` False and what
    would make it fit among the reasons.
    """
    made = s.made()
    need_text(made.network)
    machine = machine_of(made, s)
    most = largest_batch(made, s, machine.pinned)
    batch = most if s.traffic.batch == "max" else int(s.traffic.batch)
    if s.traffic.request_rate is not None and most > 0:
        batch = _batch_for_rate(s, made, most)
    running = min(batch, most) if most and not _static(made) else batch
    memory = memory_at(made, s, max(running, 1), machine.pinned)
    capacity = made.hardware.memory.capacity
    limit = capacity * made.engine.memory_share
    common: dict[str, Any] = dict(
        batch=batch, replicas=made.replicas, devices=made.replicas * made.layout.devices,
        memory_total=memory.total, memory_capacity=capacity,
        out_of_memory_probability=memory.risk(limit), max_batch=most,
        memory={**memory.parts(), "host": memory.host, "storage": memory.storage},
        layout={n: getattr(made.layout, n) for n in ("tp", "pp", "dp", "ep", "cp")},
        formats={"linear": told_of(made.formats.linear, made.formats.linear_storage),
                 "experts": told_of(made.formats.expert, made.formats.expert_storage),
                 "kv": f"{made.formats.kv.bits_each:g} bits"},
        techniques=made.treatment.techniques,
    )  # fmt: skip
    if memory.total > limit or memory.host > s.host.memory_capacity or batch < 1:
        return Answer(fits=False, **common, interval={"memory_total": (memory.low, memory.high)},
                      reasons=_what_would_fit(s, made, memory, limit))  # fmt: skip
    at = Points.of(batch, s.traffic.isl, s.traffic.osl, running)
    phases, run = phases_of(made, s, at)
    served = serve(phases, _load(made, s, at), made.engine, made.treatment)
    return _answer(s, made, served, run, common, memory)


def _answer(
    s: Scenario, made: Made, served: Served, run: Pass, common: dict[str, Any], memory: Memory
) -> Answer:
    first = {k: float(v[0]) for k, v in served.columns().items()}
    devices = made.layout.devices
    interval = {
        name: (first[f"{name}_low"], first[f"{name}_high"]) for name in ("ttft", "tpot", "e2e")
    }
    first |= offered(s, made, first)
    rate = first["output_tokens_per_s"]
    ends = (first["output_tokens_per_s_low"], first["output_tokens_per_s_high"])
    interval["output_tokens_per_s_per_gpu"] = (ends[0] / devices, ends[1] / devices)
    interval["memory_total"] = (memory.low, memory.high)
    power = first["power"] / devices if np.isfinite(first["power"]) else None
    energy = first["power"] / rate
    price = s.price_per_h if s.price_per_h is not None else made.hardware.price_per_h
    cost = price * devices / 3600.0 / rate * 1e6 if price is not None else None
    reasons = cautions(s, made) + list(run.timed.reasons)
    if common["batch"] > common["max_batch"]:
        reasons.insert(0, f"{common['max_batch']} of {common['batch']} requests run at once, the "
                          "others wait: memory holds no more")  # fmt: skip
    if price is None:
        reasons.append(f"cost: no price per hour is known for {made.hardware.name}; give one")
    if power is None:
        reasons.append(f"power: not known for {made.hardware.name}")
    if cost is not None:
        interval["cost_per_million_tokens"] = (cost * rate / ends[1], cost * rate / ends[0])
    if power is not None:
        interval |= _power_ends(power, energy, interval["tpot"], first["tpot"], made)
    weakest, _ = run.timed.weakest()
    return Answer(
        fits=True, **common, ttft=first["ttft"], tpot=first["tpot"], e2e=first["e2e"],
        output_tokens_per_s_per_gpu=rate / devices, power=power,
        energy_per_token=energy if power is not None else None, cost_per_million_tokens=cost,
        limiter=_limiter(run), basis=weakest, interval=interval, shares=run.timed.shares(),
        breakdown=_breakdown(run, made),
        reasons=tuple(reasons),
    )  # fmt: skip


def _breakdown(run: Pass, made: Made) -> dict[str, dict[str, float]]:
    """Seconds by part of a decode and a prefill pass, as the engine runs them."""
    engine = made.engine
    scales = {"decode": engine.decode_factor, "prefill": engine.prefill_factor}
    found = {
        phase: {k: float(v[i]) * scale for k, v in run.parts.items() if v[i] != 0}
        for i, (phase, scale) in enumerate(scales.items())
    }
    launch = 0.0 if _static(made) else engine.prefill_launch * float(run.launches[1])
    if launch:
        found["prefill"]["launch"] = found["prefill"].get("launch", 0.0) + launch
    return found


# Power of work other than the GEMMs that it was fitted on: factor of the 90 % interval (assumed;
# the widest that crossed devices and formats needed, docs/theory/energy.md)
_POWER_FACTOR = 1.35


def _power_ends(
    power: float, energy: float, tpot: tuple[float, float], middle: float, made: Made
) -> dict[str, tuple[float, float]]:
    board = made.hardware.board_power
    ends = (power / _POWER_FACTOR, min(power * _POWER_FACTOR, 1.1 * board))
    wide = np.hypot(np.log(_POWER_FACTOR), np.log(tpot[1] / middle))
    thin = np.hypot(np.log(_POWER_FACTOR), np.log(middle / tpot[0]))
    return {"power": ends, "energy_per_token": (energy * np.exp(-thin), energy * np.exp(wide))}


def _limiter(run: Pass) -> str:
    """Name what most of the time of a decode pass goes to: a resource, or what waits beside it."""
    shares: dict[str, float] = {}
    for i in range(len(run.timed.calls)):
        kind = str(run.timed.limiter[i, 0])
        shares[kind] = shares.get(kind, 0.0) + float(run.timed.time[i, 0])
    for name in ("host", "launch", "fetch"):
        if name in run.parts:
            shares[name] = shares.get(name, 0.0) + float(run.parts[name][0])
    return max(shares, key=lambda k: shares[k]) if shares else ""


def _batch_for_rate(s: Scenario, made: Made, most: int) -> int:
    """Find the requests in flight at an arrival rate by Little's law: rate * latency(batch)."""
    rate = float(s.traffic.request_rate or 0.0) / made.replicas
    grid = np.unique(np.round(np.geomspace(1, most, 48)))
    out = solve_points(s, Points.of(grid, s.traffic.isl, s.traffic.osl), made)
    carried = grid / out["e2e"]
    if carried.max() < rate:
        raise InfeasibleError(
            f"traffic.request_rate: {rate * made.replicas:g} requests/s asked, "
            f"{made.replicas} replica(s) carry at most {carried.max() * made.replicas:.3g}; add "
            f"devices (about {int(np.ceil(rate / carried.max() * made.replicas))} replicas)"
        )
    return int(grid[np.flatnonzero(carried >= rate)[0]])


def _what_would_fit(s: Scenario, made: Made, memory: Memory, limit: float) -> tuple[str, ...]:
    """Say by how much a case is over, and which single changes bring it under."""
    gb = 1e9
    told = [
        f"needs {memory.total / gb:.1f} GB on a device ({memory.weights / gb:.1f} weights, "
        f"{memory.kv / gb:.1f} cache), {limit / gb:.1f} of "
        f"{made.hardware.memory.capacity / gb:.0f} GB may be used"
    ]
    if memory.total <= limit:
        told.clear()
    if memory.host > s.host.memory_capacity:
        told.append(f"needs {memory.host / gb:.1f} GB of host memory a device, there are "
                    f"{s.host.memory_capacity / gb:.0f}")  # fmt: skip
    first = len(told)
    tries: list[tuple[str, Mapping[str, Any]]] = []
    for name in ("fp8", "int8_wo", "int4_wo"):
        tries.append((f"dtype {name}", {"dtype": name}))
    counts = [made.layout.devices * more for more in (2, 4, 8, 16, 32, 64)]
    tries += [(f"{n} devices", {"devices": n, "layout": None}) for n in counts]
    if memory.kv > memory.weights * 0.1:
        tries.append(("kv_dtype fp8", {"kv_dtype": "fp8"}))
    fewest = {"dtype": "int4_wo", "layout": None}
    tries += [(f"dtype int4_wo on {n} devices", {**fewest, "devices": n}) for n in counts]
    batch = 1 if s.traffic.batch == "max" else s.traffic.batch
    for what, change in tries:
        try:
            other = replace(s, traffic=replace(s.traffic, batch=batch), **change)
            again = other.made()
            if what.startswith("dtype int4_wo on") and len(told) > first:
                break  # one change is enough
            found = memory_at(again, other, int(batch), machine_of(again, other).pinned)
            if found.total <= limit and found.host <= s.host.memory_capacity:
                told.append(f"fits with {what}")
        except (InfeasibleError, ValueError):
            continue
        if len(told) > first + 2:
            break
    most = largest_batch(made, s, machine_of(made, s).pinned)
    if most and s.traffic.batch != "max":
        told.append(f"fits with batch {most}")
    return tuple(told)
