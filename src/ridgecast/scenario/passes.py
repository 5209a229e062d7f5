"""One forward pass of one replica, with everything that happens around its kernels.

Owns the composition of a pass: sequential kernels, collectives that overlap or not, fetches from
other tiers, work on the host, launches, pipeline stages. Times of kernels come from `lower`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..hardware import Hardware
from ..kernels.operator import analytic_time, link_of
from ..models.network import Amount, Call, Layout, Network, Tokens
from ..ops.base import Work
from ..predict.bundle import open_bundle
from ..predict.observe import told
from ..predict.power import PowerModel
from ..techniques.treatment import Treatment
from .engine import Engine
from .exchange import own_exchange
from .floor import STEP
from .formats import Formats
from .host import Host
from .lower import Timed, time_cases
from .rows import Case
from .tiers import Place, away, new_tokens

__all__ = ["Job", "Machine", "Pass", "idle_power", "run_pass", "run_passes", "unscheduled"]

F64 = npt.NDArray[np.float64]
_COMM = ("collective", "transfer")
_INDEX = 128.0  # elements of an entry of an index: a product with the query gives its score
# Kernels of a call, where not one. Experts (vLLM's fused_experts): top-k, aligning of blocks,
# quantise, product, activation, quantise, product, weighted sum. Gated delta rule (chunks of flash
# linear attention): two norms, cumulated gates, products of keys, triangular solve, two recomputed
# operands, states, outputs.
_LAUNCHES = {"moe": 8.0}
_DELTA_LAUNCHES = 9.0
_ROUTED = ("router", "routing", "experts")  # what experts that see every token run beside


@dataclass(frozen=True, slots=True)
class Machine:
    """What a network runs on and how: a device, its host, a layout, formats and an engine.

    `skew` is how tokens spread over experts, `model` a folder of trained models.
    """

    hardware: Hardware
    layout: Layout
    formats: Formats
    engine: Engine
    host: Host = field(default_factory=Host)
    model: str | Path | None = None
    level: float = 0.9
    pinned: float | None = None
    """Bytes of weights that stay on the device; None: as the treatment says."""


def unscheduled(machine: Machine) -> Machine:
    """Return a machine whose passes wait for no scheduler: those that draft between two steps."""
    return replace(machine, engine=replace(machine.engine, pass_host=0.0))


@dataclass(frozen=True, slots=True)
class Pass:
    """Seconds [points] of a pass, with interval, energy [J] of all devices, and what it is of."""

    time: F64
    low: F64
    high: F64
    energy: F64
    parts: dict[str, F64]
    timed: Timed
    launches: F64
    beside: F64
    """Seconds of parts on a second stream that hide behind a layer's experts."""


@dataclass(frozen=True, slots=True)
class Job:
    """One pass to be timed: a network on a machine over groups of tokens, treated.

    Networks of pictures take a `Canvas` for a group. Fields of the groups may be arrays [points].
    `layer_share` is the share of the layers that run (embedding and head always do).
    """

    network: Network
    machine: Machine
    groups: Sequence[Any]
    treatment: Treatment = field(default_factory=Treatment)
    layer_share: Amount = 1.0


def run_pass(
    network: Network,
    machine: Machine,
    groups: Sequence[Any],
    treatment: Treatment | None = None,
    layer_share: Amount = 1.0,
) -> Pass:
    """Time one pass; see `run_passes`."""
    return run_passes([Job(network, machine, groups, treatment or Treatment(), layer_share)])[0]


def run_passes(jobs: Sequence[Job]) -> list[Pass]:
    """Time many passes with one table of predictions.

    Kernels run one after another, but for what an engine runs on a second stream; collectives hide
    behind compute as far as the treatment says; fetched weights and cache take the link (beside the
    compute where overlapped); host work adds.
    All jobs share the trained models and the level of the first. Raises NoDataError where a kernel
    cannot be answered, InfeasibleError for an impossible layout.
    """
    if not jobs:
        return []
    for job in jobs:
        told("pass", job)
    first = jobs[0].machine
    timed = time_cases([_case(j) for j in jobs], model=first.model, level=first.level)
    return [_around(job, one) for job, one in zip(jobs, timed, strict=True)]


def _case(job: Job) -> Case:
    calls = [
        c if c.role in ("head", "embedding")
        else replace(c, count=c.count * np.asarray(job.layer_share))
        for c in job.network.calls(job.groups, job.machine.layout)
        if not _fused(c, job.machine)
    ]  # fmt: skip
    calls += _projected_again(job) + _selected(job)
    calls = [_parted(c, job.treatment.batching.parts) for c in calls]
    machine = job.machine
    place = (machine.hardware, machine.engine.name, machine.formats)
    calls = own_exchange(calls, machine.layout, place, open_bundle(machine.model))
    calls = [_exchanged(_elsewhere(c, job.treatment), job.treatment) for c in calls]
    exponent = job.machine.engine.expert_skew
    skew = ("power_law", exponent) if exponent > 0 else ("balanced", 1.0)
    made = Case(calls, job.machine.hardware, job.machine.formats, job.treatment, skew)
    engine = job.machine.engine
    return replace(made, engine=engine.name, release=engine.release)


def _fused(call: Call, machine: Machine) -> bool:
    """Whether an engine does a call inside another kernel."""
    sums = machine.layout.tp > 1 and call.part in machine.engine.fused_sums
    return sums or call.part in machine.engine.fused


def _projected_again(job: Job) -> list[Call]:
    """Products that make keys and values of what is kept instead, in every decode pass.

    Each cached token is multiplied by the matrices of keys and values: of one stored tensor both,
    else each of its own half.
    """
    t, layout = job.treatment, job.machine.layout
    if not t.kv.recompute:
        return []
    found = []
    for g in job.groups:
        decode = np.asarray(g.q_len) * 4 <= np.asarray(g.kv_len)
        for cache in job.network.caches():
            if cache.kind != "kv":
                continue
            tokens = np.maximum(np.ceil(np.asarray(g.batch) / layout.dp) * g.kv_len, 1.0)
            depth = cache.per_token * t.kv.elements * (1.0 if t.kv.elements <= 0.5 else 0.5)
            fields = {"m": tokens, "n": np.ceil(cache.per_token / layout.tp),
                      "k": np.maximum(np.round(depth), 1.0)}  # fmt: skip
            count = np.where(decode & (np.asarray(g.batch) > 0), cache.layers, 0.0)
            found.append(Call("rematerialise", "gemm", fields, count * job.layer_share, "linear"))
    return found


def _decoding(g: Tokens) -> npt.NDArray[np.bool_]:
    """Where a group decodes: few new positions before a longer cache."""
    few = np.asarray(g.q_len) <= STEP
    return few & (np.asarray(g.q_len) * 4 <= np.asarray(g.kv_len))


def _selected(job: Job) -> list[Call]:
    """Kernels that choose which entries a decode step reads, and make their keys again.

    The index of all kept tokens is read; of the chosen ones, keys come from their low-rank form.
    """
    kv, layout = job.treatment.kv, job.machine.layout
    if not (kv.index_bytes or kv.score_launch or kv.rank):
        return []
    found = []
    for g in job.groups:
        decode = _decoding(g) & (np.asarray(g.batch) > 0)
        here = np.ceil(np.asarray(g.batch) / layout.dp)
        kept = np.asarray(g.kv_len) * kv.keep
        kept = np.minimum(kept, kv.budget) if kv.budget else kept
        for cache in job.network.caches():
            if cache.kind not in ("kv", "latent"):
                continue
            count = np.where(decode, cache.layers, 0.0) * job.layer_share
            heads = max(1, cache.heads // layout.tp)
            rows = np.ceil(here * kept * heads * kv.index_bytes / (2.0 * _INDEX))
            fields = {"rows": np.maximum(rows, 1.0), "cols": _INDEX}
            often = count * min(kv.score_launch or 1.0, 1.0)
            found.append(Call("select", "reduction", fields, often, "other"))
            if kv.score_launch > 1.0:
                more = count * (kv.score_launch - 1.0)
                small = {"rows": 1.0, "cols": _INDEX}
                found.append(Call("select", "reduction", small, more, "other"))
            if kv.rank:
                chosen = np.maximum(np.ceil(here * kept * kv.read), 1.0)
                keys = np.ceil(cache.per_token / 2.0 / layout.tp)
                fields = {"m": chosen, "n": keys, "k": float(kv.rank)}
                found.append(Call("rematerialise", "gemm", fields, count, "other"))
    return found


def _parted(call: Call, parts: int) -> Call:
    """Cut a product's rows into parts that run one after another, weights read by each."""
    rows = {"gemm": "m", "moe": "num_tokens"}.get(call.op)
    if parts == 1 or rows is None:
        return call
    fewer = np.ceil(np.asarray(call.fields[rows], np.float64) / parts)
    return replace(call, fields={**call.fields, rows: fewer}, count=np.asarray(call.count) * parts)


def _elsewhere(call: Call, t: Treatment) -> Call:
    """Leave to the device the share of decoding sequences whose cache lies there."""
    if call.op != "attention" or "device" in (t.kv.place, t.kv.attend):
        return call
    q, batch = np.asarray(call.fields["q_len"]), np.asarray(call.fields["batch"], np.float64)
    decode = (q <= STEP) & (q * 4 <= np.asarray(call.fields["kv_len"]))
    here = np.where(decode, np.maximum(np.ceil(batch * t.kv.near), 1.0), batch)
    count = np.where(decode & (t.kv.near == 0.0), 0.0, np.asarray(call.count, np.float64))
    return replace(call, fields={**call.fields, "batch": here}, count=count)


def _exchanged(call: Call, t: Treatment) -> Call:
    """Leave out exchanges between experts' devices, and the tokens that stay where they are."""
    if call.op != "collective" or call.fields["kind"] != "all_to_all":
        return call
    size = np.maximum(np.asarray(call.fields["bytes"]) * t.exchange_bytes, 1.0)
    count = np.asarray(call.count) * t.exchanges
    return replace(call, fields={**call.fields, "bytes": size}, count=count)


def _around(job: Job, timed: Timed) -> Pass:
    """Put what happens around the kernels to their times."""
    network, machine, groups, t = job.network, job.machine, job.groups, job.treatment
    comm = np.array([c.op in _COMM for c in timed.calls])
    parts = timed.by_part()
    gpu = timed.time[~comm].sum(axis=0)
    sent = timed.time[comm].sum(axis=0)
    beside = _beside(timed, machine, groups)
    hidden = beside + np.minimum(sent * t.comm_overlap, gpu - beside)
    hidden = np.maximum(hidden, _side_by_side(timed, comm, t))
    launches = _launches(timed) * t.launches
    host = _host_time(machine.engine, t, launches, network)
    graph = machine.engine.graph if t.graph is None else t.graph
    busy = gpu + sent - hidden
    if not graph:  # the host launches one kernel after another: the slower of the two sets the pace
        waiting = np.maximum(
            launches * machine.engine.unfused * machine.engine.eager_launch - busy, 0.0
        )
        parts["launch"] = waiting
        host = host + waiting
    place = Place(machine.hardware, machine.host, machine.layout, machine.formats, machine.pinned)
    fetch = away(network, place, groups, t).waited(busy)
    stages = _stages(machine, groups)
    adapted = _adapted(network, machine, groups, t)
    extra = host + fetch + stages + adapted
    time = busy + extra
    low = (timed.low.sum(axis=0) - hidden) + extra
    high = (timed.high.sum(axis=0) - hidden) + extra
    for name, value in (("host", host - parts.get("launch", 0.0)), ("fetch", fetch),
                        ("pipeline", stages), ("adapters", adapted),
                        ("overlapped", -hidden)):  # fmt: skip
        if np.any(value != 0.0):
            parts[name] = np.broadcast_to(value, time.shape)
    energy = _energy(timed, machine, busy + beside, np.maximum(time - busy, 0.0))
    ends = (np.minimum(low, time), np.maximum(high, time))
    return Pass(time, *ends, energy, parts, timed, launches, np.minimum(beside, hidden))


def _beside(timed: Timed, machine: Machine, groups: Sequence[Any]) -> F64:
    """Seconds that hide where an engine runs parts on a second stream while a layer's experts run.

    The shorter of the two hides in steps of few tokens a device, but for what it takes from memory,
    which the routed experts are taken to keep busy.
    """
    engine = machine.engine
    second = np.array([c.part in engine.beside for c in timed.calls])
    if not second.any():
        return np.zeros(timed.time.shape[1])
    first = np.array([c.part in _ROUTED for c in timed.calls])
    one, other = (timed.time[k].sum(axis=0) for k in (first, second))
    hidden = np.minimum(one, np.maximum(other - timed.least[second].sum(axis=0), 0.0))
    steps = [_decoding(g) | (np.asarray(g.batch) == 0) for g in groups]  # as graphs are captured
    few = new_tokens(groups) / machine.layout.dp <= engine.beside_tokens
    return np.where(few & reduce(np.logical_and, steps), hidden, 0.0)


def _side_by_side(timed: Timed, comm: npt.NDArray[np.bool_], t: Treatment) -> F64:
    """Seconds that hide where kernels of different limits run at once: at best all but the longest.

    Kernels wait for compute, for memory, or (collectives) for links; parts of a batch are
    independent, so that each kind can run beside the others.
    """
    if not t.batching.unit_overlap:
        return np.zeros(timed.time.shape[1])
    compute = (timed.limiter == "compute") & ~comm[:, None]
    memory = ~compute & ~comm[:, None]
    kinds = np.stack([(timed.time * k).sum(axis=0) for k in (compute, memory, comm[:, None])])
    return t.batching.unit_overlap * (kinds.sum(axis=0) - kinds.max(axis=0))


def _adapted(
    network: Network, machine: Machine, groups: Sequence[Any], t: Treatment
) -> F64 | float:
    """Seconds of low-rank products: each sequence's adapter is read and multiplied by its tokens.

    Two kernels a group of equal layers' matrices (down and up), gathered over all adapters.
    """
    if not t.adapters:
        return 0.0
    kinds = [w for w in network.weights() if w.role == "linear"]
    each = sum(2.0 * t.adapter_rank * np.sqrt(w.elements) * w.count for w in kinds)
    tokens = new_tokens(groups)
    sequences = sum((np.asarray(g.batch, np.float64) for g in groups), start=np.zeros(()))
    shards = machine.layout.devices
    work = Work({machine.formats.wide: 2.0 * each * tokens / shards},
                2.0 * each * np.minimum(sequences, t.adapters) / shards,
                launches=2.0 * sum(w.count for w in kinds))  # fmt: skip
    return analytic_time(work, machine.hardware, "cold")


def _launches(timed: Timed) -> F64:
    each = np.array([
        _DELTA_LAUNCHES if c.fields.get("variant") == "linear" and c.op == "attention"
        else _LAUNCHES.get(c.op, 1.0)
        for c in timed.calls
    ])  # fmt: skip
    return (timed.count * each[:, None]).sum(axis=0)


def _host_time(engine: Engine, t: Treatment, launches: F64, network: Network) -> F64:
    """Host time that no device work hides, a pass."""
    named = getattr(network, "layers", 0.0)  # convolutional networks list theirs
    layers = float(named) if isinstance(named, int | float) else 0.0
    fixed = engine.pass_host + engine.layer_host * layers
    return np.full(launches.shape, fixed * t.host_overhead)


def _stages(machine: Machine, groups: Sequence[Any]) -> float | F64:
    """Seconds that activations take between pipeline stages: one message a boundary."""
    pp = machine.layout.pp
    if pp == 1:
        return 0.0
    inside = machine.layout.devices <= machine.layout.gpus_per_node
    link = link_of(machine.hardware, "peer" if inside else "network")
    tokens = new_tokens(groups)
    width = 16384.0  # elements of a wide residual stream at 16 bits: below the latency's share
    return (pp - 1) * ((link.latency or 5e-6) + tokens * width * 2.0 / link.bandwidth)


def idle_power(hardware: Hardware) -> float:
    """Watts of a device that waits."""
    return PowerModel.load().basis_of(hardware).idle * hardware.board_power


def _energy(timed: Timed, machine: Machine, worked: F64, idle: F64) -> F64:
    """Joules of all devices of the replica in `worked` s of kernels and `idle` s of waiting.

    Kernels whose power is not known draw the mean of those that are; NaN where none is.
    """
    known = np.isfinite(timed.energy)
    spent = np.where(known, timed.energy, 0.0).sum(axis=0)
    lasted = np.where(known, timed.time, 0.0).sum(axis=0)
    power = np.where(lasted > 0, spent / np.where(lasted > 0, lasted, 1.0), np.nan)
    waiting = idle_power(machine.hardware)
    devices = machine.layout.stage_devices  # other stages work on other passes meanwhile
    return (power * worked + waiting * idle) * devices
