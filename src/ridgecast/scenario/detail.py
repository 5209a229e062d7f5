"""The calls of a pass one by one, in the order in which they run: what a trace shows.

Owns the order of calls by layer, what of a pass is beside its kernels, and what the answer to a
scenario was made of. Predicts nothing: times are those of `passes`, each repeated call sharing the
time of all its repetitions evenly, so that pieces sum to the pass. Knows no picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..models.network import Call, Layout
from ..models.pieces import norm, own_tokens
from ..models.transformer import Block, Decoder
from .case import Answer, Made, Scenario
from .lower import BASES, Timed
from .passes import _COMM, Job, Pass, idle_power, run_passes
from .queueing import Phases, Served, serve
from .solve import Points, _load, _planned, evaluate

__all__ = ["Piece", "Workings", "pieces_of", "workings_of"]

KINDS = ("kernel", "communication", "host", "transfer")
# what `passes` adds to the kernels: kind, and why it takes time
_BESIDE = {
    "host": ("host", "host time of a pass that no device work hides"),
    "launch": ("host", "the device waits for kernels to be launched"),
    "fetch": ("transfer", "waiting for weights or cache from another tier"),
    "pipeline": ("communication", "activations go to the next pipeline stage"),
    "adapters": ("kernel", "low-rank products of the adapters"),
}


@dataclass(frozen=True, slots=True)
class Piece:
    """One call of one layer, or (`layer` None) of none; alike ones that follow count as one.

    `time` [s] is of all `count` runs on one device, of which `beside` runs beside other pieces;
    `power` [W] is of one device (None: not known), `layer` and `stage` count from 0. `fields` are
    those of the operation; `note` says what `limiter` and `basis` do not.
    """

    name: str
    op: str
    kind: str
    time: float
    beside: float = 0.0
    count: float = 1.0
    layer: int | None = None
    stage: int = 0
    power: float | None = None
    limiter: str = ""
    basis: str = ""
    fields: Mapping[str, Any] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Workings:
    """What an answer was made of: its objects, the pass behind each phase, how it is served.

    Points of `run` are SETS phases: decode, prefill, packed, mixed; `job` says what ran.
    """

    answer: Answer
    made: Made
    at: Points
    job: Job
    run: Pass
    phases: Phases
    served: Served


def workings_of(s: Scenario, answer: Answer | None = None) -> Workings:
    """Answer a scenario and keep what the answer was made of. Raises what `evaluate` raises.

    An answer that is at hand is not computed again. Needs one that fits.
    """
    answer = answer or evaluate(s)
    made = s.made()
    static = made.treatment.batching.mode == "static" or not made.engine.continuous
    running = answer.batch if static else min(answer.batch, answer.max_batch)
    at = Points.of(answer.batch, s.traffic.isl, s.traffic.osl, running)
    plan = _planned(made, s, at)
    phases, run = plan.phases(list(run_passes(plan.jobs)))
    served = serve(phases, _load(made, s, at), made.engine, made.treatment)
    return Workings(answer, made, at, plan.jobs[0], run, phases, served)


# ------------------------------------------------------------------------------- pieces of a pass


@dataclass(frozen=True, slots=True)
class _Share:
    """A share of a timed call, by its index, in a layer."""

    index: int
    share: float
    layer: int | None = None


def pieces_of(job: Job, run: Pass, point: int = 0) -> list[Piece]:
    """Pieces of one point of a pass, in order: those before the layers, each layer's, those after.

    Their times less what runs beside others sum to the pass. Where the order of layers is not
    known (a network that is no decoder), a call is one piece with its count.
    """
    layers, shares = _order(job, run.timed, point)
    pp = job.machine.layout.pp
    beside = _beside(job, run, point)
    mean = _mean_power(run.timed, point)
    pieces: list[Piece] = []
    for one in shares:
        time = float(run.timed.time[one.index, point]) * one.share
        if time <= 0.0:
            continue
        stage = _stage(one, layers, pp, after=bool(pieces) and _in_layers(pieces))
        pieces.append(
            _piece(run.timed, one, point, (time, beside.get(one.index, 0.0), mean), stage)
        )
    pieces = _around(pieces, run, point, job)
    return _fitted(pieces, float(run.time[point]))


def _in_layers(pieces: Sequence[Piece]) -> bool:
    return any(p.layer is not None for p in pieces)


def _stage(one: _Share, layers: int, pp: int, *, after: bool) -> int:
    """Pipeline stage of a layer: as many layers each; what comes after them is in the last."""
    if one.layer is not None and layers:
        return one.layer * pp // layers
    return pp - 1 if after else 0


def _piece(
    timed: Timed, one: _Share, point: int, numbers: tuple[float, float, float | None], stage: int
) -> Piece:
    call, (time, share, mean) = timed.calls[one.index], numbers
    whole, energy = (float(x[one.index, point]) for x in (timed.time, timed.energy))
    return Piece(
        call.part, call.op, "communication" if call.op in _COMM else "kernel", time,
        time * share, round(float(timed.count[one.index, point]) * one.share, 9), one.layer, stage,
        energy / whole if np.isfinite(energy) else mean,
        str(timed.limiter[one.index, point]), BASES[int(timed.basis[one.index, point])],
        {k: _at(v, point) for k, v in call.fields.items()},
        "" if np.isfinite(energy) else "power of this call is not known: the mean of the others",
    )  # fmt: skip


def _mean_power(timed: Timed, point: int) -> float | None:
    """Watts of a device over the calls whose energy is known."""
    known = np.isfinite(timed.energy[:, point])
    lasted = float(timed.time[known, point].sum())
    return float(timed.energy[known, point].sum()) / lasted if lasted > 0.0 else None


def _beside(job: Job, run: Pass, point: int) -> dict[int, float]:
    """Share of each timed call that hides behind others; which of them it is, is not modelled.

    What an engine runs on a second stream hides first. Of the rest collectives hide alike; with
    kernels side by side, all kinds but the longest (compute, memory, links) do.
    """
    timed, second = run.timed, float(run.beside[point])
    found = {i: 0.0 for i, c in enumerate(timed.calls) if c.part in job.machine.engine.beside}
    theirs = sum(float(timed.time[i, point]) for i in found)
    found = {i: min(second / theirs, 1.0) for i in found} if theirs > 0.0 else {}
    hidden = -float(run.parts.get("overlapped", np.zeros(point + 1))[point]) - second
    if hidden <= 1e-12 * float(run.time[point]):
        return found if second > 0.0 else {}
    comm = np.array([c.op in _COMM for c in timed.calls])
    kinds = np.where(comm, 2, np.where(timed.limiter[:, point] == "compute", 0, 1))
    left = timed.time[:, point] * np.array([1.0 - found.get(i, 0.0) for i in range(len(comm))])
    taken = [float(left[kinds == k].sum()) for k in range(3)]
    sideways = job.treatment.batching.unit_overlap
    able = [k for k in range(3) if k != int(np.argmax(taken))] if sideways else [2]
    share = min(hidden / max(sum(taken[k] for k in able), 1e-300), 1.0)
    for i in np.flatnonzero(np.isin(kinds, able)):
        own = found.get(int(i), 0.0)
        found[int(i)] = own + (1.0 - own) * share
    return found


def _around(pieces: list[Piece], run: Pass, point: int, job: Job) -> list[Piece]:
    """Put what happens around the kernels to them: the host first, messages between stages."""
    idle = idle_power(job.machine.hardware)

    def extra(name: str, share: float = 1.0, stage: int = 0) -> list[Piece]:
        time = float(run.parts[name][point]) * share if name in run.parts else 0.0
        kind, why = _BESIDE[name]
        if time <= 0.0:
            return []
        return [Piece(name, "", kind, time, stage=stage, power=idle, note=why)]

    last = job.machine.layout.pp - 1
    found = extra("host")
    for i, piece in enumerate(pieces):
        found.append(piece)
        following = pieces[i + 1].stage if i + 1 < len(pieces) else last
        for stage in range(piece.stage, following):
            found += extra("pipeline", 1.0 / last, stage)
    for name in ("adapters", "fetch", "launch"):
        found += extra(name, stage=last)
    return found


def _fitted(pieces: list[Piece], time: float) -> list[Piece]:
    """Stretch pieces of a pass that is a mean of two (part of a prompt leaves half-way)."""
    total = sum(p.time - p.beside for p in pieces)
    if total <= 0.0 or abs(total / time - 1.0) < 1e-9:
        return pieces
    factor, why = time / total, "scaled to a pass of which some layers see less of the prompt"
    return [replace(p, time=p.time * factor, beside=p.beside * factor, note=why) for p in pieces]


# ------------------------------------------------------------------------------- order by layer


def _order(job: Job, timed: Timed, point: int) -> tuple[int, list[_Share]]:
    """How many layers there are, and shares of timed calls in the order in which they run."""
    network = getattr(job.network, "decoder", job.network)
    everything = [_Share(i, 1.0) for i in range(len(timed.calls))]
    if not isinstance(network, Decoder):
        return 0, everything
    layout = job.machine.layout
    raw = job.network.calls(job.groups, layout)
    index = _matched(raw, timed.calls)
    layers = _layers(network, job.groups, layout, raw)
    used = np.zeros(len(raw))
    for block, calls in layers:
        for i, call in calls:
            used[i] += block.count * _at(call.count, point)
    own = np.array([float(_at(c.count, point)) for c in raw])
    good = {i for i in index if own[i] > 0.0 and used[i] <= own[i] * (1.0 + 1e-9)}
    inside = {i for i in good if used[i] > 0.0}
    if not inside:
        return 0, everything
    before = _products(timed)
    found: list[_Share] = []
    layer = 0
    count = sum(b.count for b in network.blocks)
    loose = _loose(timed, index, before, point, count)
    for block, calls in layers:
        for _ in range(block.count):
            found += [_Share(i, 1.0 / count, layer) for i in loose]
            for i, call in calls:
                if i in inside:
                    share = float(_at(call.count, point)) / own[i]
                    found += _with(index[i], share, layer, before)
            layer += 1
    rest = {i: 1.0 - used[i] / own[i] for i in good if used[i] < own[i] * (1.0 - 1e-9)}
    start = min(inside)
    ahead = [s for i in sorted(rest) if i < start for s in _with(index[i], rest[i], None, before)]
    behind = sorted((i for i in rest if i >= start), key=lambda i: (i not in inside, i))
    after = [s for i in behind for s in _with(index[i], rest[i], None, before)]
    shown = {s.index for s in (*ahead, *found, *after)}
    first = min(shown)
    lost = [s for s in everything if s.index not in shown]
    early, late = ([s for s in lost if (s.index < first) is side] for side in (True, False))
    return count, [*early, *ahead, *found, *after, *late]


def _with(index: int, share: float, layer: int | None, before: Mapping[int, int]) -> list[_Share]:
    """Give a call, with the kernel that quantises its inputs ahead of it where there is one."""
    own = [_Share(index, share, layer)]
    return [_Share(before[index], share, layer), *own] if index in before else own


def _matched(raw: Sequence[Call], timed: Sequence[Call]) -> dict[int, int]:
    """Index of the timed call of each call of the network.

    Passes change fields and counts, not part, operation and phase; calls that share these keep
    their order. Where their number differs, they are left out.
    """

    def grouped(calls: Sequence[Call]) -> dict[Any, list[int]]:
        out: dict[Any, list[int]] = {}
        for i, c in enumerate(calls):
            if np.any(np.asarray(c.count) > 0):
                out.setdefault((c.part, c.op, c.phase), []).append(i)
        return out

    there = grouped(timed)
    pairs = ((own, there.get(key, [])) for key, own in grouped(raw).items())
    return {i: j for own, its in pairs if len(own) == len(its)
            for i, j in zip(own, its, strict=True)}  # fmt: skip


def _products(timed: Timed) -> dict[int, int]:
    """Index of the kernel that quantises a product's inputs, by that of the product (`rows`)."""
    last = [i for i, c in enumerate(timed.calls) if c.part == "quantise" and c.op == "quantise"]
    own = [i for i, c in enumerate(timed.calls) if c.op == "gemm" and c.role == "linear"]
    return dict(zip(own, last, strict=True)) if len(own) == len(last) else {}


def _loose(
    timed: Timed, index: Mapping[int, int], before: Mapping[int, int], point: int, layers: int
) -> list[int]:
    """Find calls that treatments add to every layer (selection, keys made again)."""
    known = {*index.values(), *before.values()}
    return [i for i in range(len(timed.calls))
            if i not in known and timed.count[i, point] >= layers]  # fmt: skip


def _layers(
    network: Decoder, groups: Sequence[Any], layout: Layout, raw: Sequence[Call]
) -> list[tuple[Block, list[tuple[int, Call]]]]:
    """List the calls of one layer of each block with their index in the network's, in order.

    Norms stand where models that norm inputs have them: before the mixer and before the
    feed-forward part; of four, two more behind each. Blocks follow one another as listed.
    """
    one = norm(own_tokens(groups, layout), network.hidden, network.norm, residual=True)
    found = []
    for block in network.blocks:
        calls = block.calls(groups, layout, network.hidden)
        second = len(block.ffn.calls(groups, layout, network.hidden)) if block.ffn else 0
        parts = [p for p in (calls[: len(calls) - second], calls[len(calls) - second :]) if p]
        ordered: list[Call] = []
        left = block.norms
        for i, part in enumerate(parts):
            ahead = 1 if left > 0 else 0
            behind = 1 if left - ahead > len(parts) - 1 - i else 0
            ordered += [one] * ahead + part + [one] * behind
            left -= ahead + behind
        ordered += [one] * left
        known = [(_find(c, raw), c) for c in ordered]
        found.append((block, [(i, c) for i, c in known if i is not None]))
    return found


def _find(call: Call, raw: Sequence[Call]) -> int | None:
    for i, other in enumerate(raw):
        if (other.part, other.op, other.phase) == (call.part, call.op, call.phase) and _same(
            other.fields, call.fields
        ):
            return i
    return None


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def _at(value: Any, point: int) -> Any:
    """Value of one point of a number or an array [points], plain."""
    if not isinstance(value, np.ndarray):
        return value
    return (value[point] if value.ndim and value.size > 1 else value.ravel()[0]).item()
