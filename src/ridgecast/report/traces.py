"""Timelines of predictions: a pass call by call, a request, an explanation, a training step.

Owns which spans stand on which track and what is said in their arguments. Every time comes from
the functions that the command line answers with; spans sum to what these predict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..predict.explain import Explanation
from ..scenario.case import Answer, Scenario
from ..scenario.detail import Piece, Workings, pieces_of, workings_of
from ..scenario.passes import Job, Pass
from ..training.memory import Plan
from ..training.step import Step
from .timeline import Counter, Span, Timeline, Track, beside

__all__ = ["explanation_timeline", "pass_timeline", "request_timeline", "scenario_timeline",
           "step_timeline"]  # fmt: skip

_TRACKS = {"kernel": "compute", "communication": "communication", "host": "host",
           "transfer": "transfers"}  # fmt: skip
_BESIDE = "beside other work"
_MOST_TOKENS = 512  # spans of output tokens; longer outputs share spans
PHASES = {"decode": 0, "prefill": 1, "packed": 2, "mixed": 3}


# ----------------------------------------------------------------------------------- one operation


def explanation_timeline(told: Explanation) -> Timeline:
    """Parts of the time one after another (they need not run in this order), and the bound."""
    p = told.prediction
    work = f"{p.op.name} on {p.hardware.name}"
    at, parts = 0.0, []
    for part in told.time:
        parts.append(Span(part.name.replace("_", " "), at, part.value,
                          {"kind": "part", "share": part.share, "why": part.why}))  # fmt: skip
        at += part.value
    ends = p.interval("time")
    whole = Span(work, 0.0, p.time, {
        "kind": "prediction", "basis": p.basis, "limiter": p.limiter, "reason": p.reason,
        "time_low_s": ends[0], "time_high_s": ends[1], "level": p.level, "power_w": p.power,
        "energy_j": p.energy, "order": "parts are stacked; they need not run in this order",
    }, tuple(parts))  # fmt: skip
    bound = Span("speed of light", 0.0, p.bound, {"kind": "bound", "utilisation": p.utilisation})
    tracks = [Track(work, "parts of the time", (whole,)), Track(work, "bound", (bound,))]
    for row in told.what_if:
        if row["time_s"] is not None:
            span = Span(f"{row['change']}", 0.0, row["time_s"], {"kind": "what if", **row})
            tracks.append(Track(work, f"what if {row['change']}", (span,)))
    counters = () if p.power is None else (
        Counter(work, "power", "W", (0.0, p.time), (p.power, 0.0)),)  # fmt: skip
    about = {"op": p.op.name, "hardware": p.hardware.name, "basis": p.basis, "limiter": p.limiter}
    return Timeline(work, tuple(tracks), counters, about)


# ------------------------------------------------------------------------------------------ a pass


def pass_timeline(
    job: Job, run: Pass, point: int = 0, *, name: str = "pass", factor: float = 1.0,
    launch: float = 0.0,
) -> Timeline:  # fmt: skip
    """One pass: a span a call, inside its layer, inside the pass; pipeline stages are processes.

    `factor` is how an engine runs kernels that were timed alone, `launch` seconds that its host
    takes to launch them besides. Exposed communication leaves a gap in the compute track; what is
    predicted to run beside other work lies on a track of its own, at a place that no model knows.
    """
    pieces = pieces_of(job, run, point)
    if launch > 0.0:
        idle = next((p.power for p in reversed(pieces) if p.power), None)
        pieces.append(Piece("launch", "", "host", launch / factor, stage=pieces[-1].stage,
                            power=idle, note="launches that no graph replays"))  # fmt: skip
    labels = _processes(job)
    rows: dict[tuple[str, str], list[Span]] = {}
    waiting: dict[str, list[tuple[float, Piece]]] = {}
    power: list[tuple[str, float, float, float]] = []
    at = 0.0
    for piece in pieces:
        process = labels[piece.stage]
        exposed = (piece.time - piece.beside) * factor
        if exposed > 0.0:
            span = Span(piece.name, at, exposed, _args(piece, factor))
            rows.setdefault((process, _TRACKS[piece.kind]), []).append(span)
            if piece.power is not None:
                power.append((process, at, at + exposed, piece.power))
            at += exposed
        if piece.beside > 0.0:
            waiting.setdefault(process, []).append((at, piece))
    tracks = [
        Track(process, track, _nested(spans, name, run, point) if track == "compute" else
              tuple(spans))
        for (process, track), spans in sorted(rows.items(), key=_row_order)
    ]  # fmt: skip
    for process, queue in waiting.items():
        tracks.append(Track(process, _BESIDE, _queued(queue, at, factor)))
    about = {"basis": run.timed.weakest()[0], "low_s": float(run.low[point]) * factor + launch,
             "high_s": float(run.high[point]) * factor + launch}  # fmt: skip
    if factor != 1.0:
        about["engine_factor"] = factor
    return Timeline(name, tuple(tracks), _counters(power), about)


def _row_order(item: tuple[tuple[str, str], list[Span]]) -> tuple[str, int]:
    (process, track), _ = item
    return process, list(_TRACKS.values()).index(track)


def _processes(job: Job) -> list[str]:
    """Names of the pipeline stages."""
    layout = job.machine.layout
    sizes = " ".join(f"{n}{getattr(layout, n)}" for n in ("tp", "dp", "cp", "ep")
                     if getattr(layout, n) > 1)  # fmt: skip
    device = job.machine.hardware.name
    alike = f"{layout.stage_devices} x {device} ({sizes})" if sizes else device
    if layout.pp == 1:
        return [alike]
    return [f"stage {i} of {layout.pp}: {alike}" for i in range(layout.pp)]


def _args(piece: Piece, factor: float) -> dict[str, Any]:
    """Gather what is known of a piece; names that hold nothing are left out."""
    args: dict[str, Any] = {
        "kind": piece.kind, "op": piece.op, "count": piece.count, "layer": piece.layer,
        "limiter": piece.limiter, "basis": piece.basis, "power_w": piece.power, "note": piece.note,
    }  # fmt: skip
    if piece.beside:
        args["alone_s"], args["beside_s"] = piece.time * factor, piece.beside * factor
    if piece.count != 1.0:
        args["each_s"] = piece.time * factor / max(piece.count, 1e-300)
    args |= {k: v for k, v in (piece.fields or {}).items() if k not in args}
    return {k: v for k, v in args.items() if v is not None and v != ""}


def _nested(spans: Sequence[Span], name: str, run: Pass, point: int) -> tuple[Span, ...]:
    """Put the spans of a layer under one that holds them, and all under the pass."""
    found: list[Span] = []
    layer: list[Span] = []

    def close() -> None:
        if layer:
            start, end = layer[0].start, layer[-1].end
            number = layer[0].args["layer"]
            found.append(Span(f"layer {number}", start, end - start,
                              {"kind": "layer", "layer": number}, tuple(layer)))  # fmt: skip
            layer.clear()

    for span in spans:
        if layer and layer[0].args["layer"] != span.args.get("layer"):
            close()
        (found if span.args.get("layer") is None else layer).append(span)
    close()
    start, end = found[0].start, found[-1].end
    args = {"kind": "pass", "basis": run.timed.weakest()[0], "pass_s": float(run.time[point])}
    return (Span(name, start, end - start, args, tuple(found)),)


def _queued(queue: Sequence[tuple[float, Piece]], end: float, factor: float) -> tuple[Span, ...]:
    """Hidden pieces one after another: none before it is due, unless the pass ends too soon."""
    lasts = np.array([piece.beside * factor for _, piece in queue])
    starts = np.zeros(len(queue))
    free = 0.0
    for i, (due, _) in enumerate(queue):
        starts[i] = max(due, free)
        free = starts[i] + lasts[i]
    for i in reversed(range(len(queue))):  # nothing reaches beyond the pass
        starts[i] = max(min(starts[i], end - lasts[i]), 0.0)
        end = starts[i]
    return tuple(
        Span(piece.name, float(start), float(last), _args(piece, factor) | {"kind": "beside"})
        for (_, piece), start, last in zip(queue, starts, lasts, strict=True)
    )


def _counters(power: Sequence[tuple[str, float, float, float]]) -> tuple[Counter, ...]:
    """Watts of one device of each process by what runs on it; then the mean of that."""
    found = []
    for process in dict.fromkeys(p for p, *_ in power):
        own = [(at, end, watts) for p, at, end, watts in power if p == process]
        times, ends, values = (tuple(x) for x in zip(*own, strict=True))
        one = Counter(process, "power of a device", "W", times, values)
        mean = one.integral(ends[-1]) / (ends[-1] - times[0])
        found.append(replace(one, times=(*times, ends[-1]), values=(*values, mean)))
    return tuple(found)


# --------------------------------------------------------------------------------------- a request


def scenario_timeline(s: Scenario, answer: Answer | None = None) -> Timeline:
    """Trace a scenario's request; see `request_timeline`. Raises what `evaluate` raises."""
    return request_timeline(workings_of(s, answer))


def request_timeline(w: Workings) -> Timeline:
    """One request among those in flight, end to end, and the passes behind it call by call.

    The request waits, is prefilled and writes its tokens, all as the answer says; its spans sum to
    the end-to-end latency. On the devices one prefill pass and one decode pass are drawn, each
    where the request's first one is: all others of their kind are predicted alike.
    """
    engine, static = w.made.engine, _static(w)
    ttft, tpot, e2e = (float(x[0][0]) for x in (w.served.ttft, w.served.tpot, w.served.e2e))
    phase = "packed" if static else "prefill"
    prefill = pass_timeline(
        w.job, w.run, PHASES[phase], name=f"{phase} pass", factor=engine.prefill_factor,
        launch=0.0 if static else engine.prefill_launch * float(w.phases.launches[0]),
    )  # fmt: skip
    decode = pass_timeline(w.job, w.run, PHASES["decode"], name="decode pass",
                           factor=engine.decode_factor)  # fmt: skip
    rounds = float(w.phases.rounds[0])
    if static:
        rounds *= float(np.ceil(w.at.batch[0] / w.phases.together[0]))
    own = min(prefill.duration * rounds, ttft)
    host = min(engine.request_host, ttft - own)
    first = _first_token(host, ttft - own - host, own, rounds)
    accepted = w.made.treatment.speculation.accepted
    step = min(decode.duration / accepted, tpot)
    tokens = _tokens(ttft, float(w.at.osl[0]), tpot, step, accepted)
    args = {"kind": "request", "ttft_s": ttft, "tpot_s": tpot, "batch": w.answer.batch,
            "basis": w.answer.basis, "limiter": w.answer.limiter}  # fmt: skip
    request = Span("request", 0.0, e2e, args, (*first, *tokens))
    rows = Timeline("request", (Track("a request", "request", (request,)),))
    title = f"{w.made.network.name} on {w.answer.devices} x {w.made.hardware.name}"
    return beside(
        title, rows, prefill.shifted(ttft - own), decode.shifted(ttft),
        about={
            "model": w.made.network.name, "hardware": w.made.hardware.name,
            "basis": w.answer.basis, "layout": dict(w.answer.layout), "batch": w.answer.batch,
            "isl": float(w.at.isl[0]), "osl": float(w.at.osl[0]), "engine": engine.name,
            "techniques": list(w.answer.techniques), "intervals": dict(w.answer.interval),
            "drawn": "one pass of each kind call by call; the others are predicted alike",
        },
    )  # fmt: skip


def _static(w: Workings) -> bool:
    return w.made.treatment.batching.mode == "static" or not w.made.engine.continuous


def _first_token(host: float, wait: float, own: float, rounds: float) -> list[Span]:
    """Spans up to the first token: host, waiting, the prompt's passes."""
    found: list[Span] = []
    at = 0.0
    kinds = (("engine", host, "host time of a request before its first pass"),
             ("waiting", wait, "for passes under way and prompts of other requests"))  # fmt: skip
    for name, lasts, why in kinds:
        if lasts > 0.0:
            found.append(Span(name, at, lasts, {"kind": "waiting", "why": why}))
            at += lasts
    parts = round(rounds)
    inner = tuple(Span(f"part {i + 1} of {parts}", at + i * own / parts, own / parts,
                       {"kind": "prefill"}) for i in range(parts))  # fmt: skip
    args = {"kind": "prefill", "passes": parts}
    return [*found, Span("prefill", at, own, args, inner if parts > 1 else ())]


def _tokens(start: float, osl: float, tpot: float, step: float, accepted: float) -> list[Span]:
    """Output tokens after the first: each a share of a decode pass, and other requests' prompts."""
    rest = max(int(osl) - 1, 0)
    group = max(1, -(-rest // _MOST_TOKENS))
    found: list[Span] = []
    for first in range(0, rest, group):
        count = min(group, rest - first)
        at = start + first * tpot
        args: dict[str, Any] = {"kind": "decode", "tokens": count, "each_s": tpot}
        if accepted != 1.0:
            args["passes"] = count / accepted
        inner = [Span("decode pass", at, count * step, {"kind": "decode", "count": count})]
        if tpot > step:
            inner.append(Span("other requests' prompts", at + count * step, count * (tpot - step),
                              {"kind": "waiting"}))  # fmt: skip
        name = f"token {first + 2}" if count == 1 else f"tokens {first + 2} to {first + 1 + count}"
        found.append(Span(name, at, count * tpot, args, tuple(inner)))
    return found


# --------------------------------------------------------------------------------- a training step


def step_timeline(step: Step, plan: Plan, *, interleave: int = 1) -> Timeline:
    """One training step: micro-batches on every pipeline stage, then what follows them.

    `interleave` as given to `step_time`. Stages take turns by one-forward-one-backward (Narayanan
    et al. 2021, arXiv:2104.04473, section 2.2); with interleaved chunks, whose order the step's
    model does not hold, each stage's micro-batches follow one another. Spans of the track `step`
    sum to the predicted step.
    """
    pp, micro = plan.layout.pp, plan.accumulate
    each = step.compute / micro
    forward = min(sum(step.parts.values()) / pp, each)
    length = step.compute + step.bubble
    kinds = [("compute", length, "forward, backward, recomputation; stages wait for one another"),
             ("waiting", step.waiting, "transfers to and from the host that compute does not hide"),
             ("exchange", step.exchange, "gradients and weights between replicas, activations "
              "between stages"),
             ("optimiser", step.optimiser, "update of the weights")]  # fmt: skip
    at, spans = 0.0, []
    for name, lasts, why in kinds:
        if lasts > 0.0:
            spans.append(Span(name, at, lasts, {"kind": name, "why": why}))
            at += lasts
    whole = Span("training step", 0.0, at, {
        "kind": "step", "tokens": step.tokens, "devices": step.devices, "flops": step.flops,
        "flops_per_s": step.flops_per_s, "bubble_s": step.bubble,
    }, tuple(spans))  # fmt: skip
    tracks = [Track("step", "step", (whole,))]
    chunks = _interleaved if interleave > 1 else _alternating
    for stage, runs in enumerate(chunks(pp, micro, forward, each - forward, step.bubble)):
        inner = [_run(kind, i, start, lasts, step.parts if kind == "forward" else {})
                 for kind, i, start, lasts in runs]  # fmt: skip
        tracks.append(Track(f"stage {stage} of {pp}" if pp > 1 else "device", "compute",
                            tuple(s for s in inner if s.duration > 0.0)))  # fmt: skip
    about = {"replicas": plan.data, "pp": pp, "tp": plan.layout.tp, "micro_batches": micro,
             "zero": plan.zero, "recompute": plan.recompute}  # fmt: skip
    return Timeline("training step", tuple(tracks), (), about)


_Run = tuple[str, int, float, float]  # kind, micro-batch, start, seconds


def _run(kind: str, micro: int, start: float, lasts: float, parts: Mapping[str, float]) -> Span:
    """One micro-batch on one stage; a forward pass by the parts of its layers."""
    total = sum(parts.values())
    inner: list[Span] = []
    at = start
    for name, seconds in parts.items():
        taken = seconds / total * lasts if total else 0.0
        if taken > 0.0:
            inner.append(Span(name, at, taken, {"kind": "part", "all_layers": True}))
            at += taken
    return Span(f"{kind} {micro}", start, lasts, {"kind": kind, "micro_batch": micro}, tuple(inner))


def _alternating(
    pp: int, micro: int, forward: float, backward: float, bubble: float
) -> list[list[_Run]]:
    """List the runs of each stage in the order one forward, one backward."""
    orders: list[list[tuple[str, int]]] = []
    for stage in range(pp):
        ahead = min(pp - stage - 1, micro)
        order = [("forward", i) for i in range(ahead)]
        for i in range(micro - ahead):
            order += [("forward", ahead + i), ("backward", i)]
        orders.append(order + [("backward", i) for i in range(micro - ahead, micro)])
    lasts = {"forward": forward, "backward": backward}
    ends: dict[tuple[int, str, int], float] = {}
    out: list[list[_Run]] = [[] for _ in range(pp)]
    free, place = [0.0] * pp, [0] * pp
    while any(place[s] < len(orders[s]) for s in range(pp)):
        for s in range(pp):
            while place[s] < len(orders[s]):
                kind, i = orders[s][place[s]]
                needs = [(s - 1, "forward", i)] if kind == "forward" else [
                    (s + 1, "backward", i), (s, "forward", i)]  # fmt: skip
                needs = [n for n in needs if 0 <= n[0] < pp]
                if any(n not in ends for n in needs):
                    break
                start = max([free[s], *(ends[n] for n in needs)])
                free[s] = ends[s, kind, i] = start + lasts[kind]
                out[s].append((kind, i, start, lasts[kind]))
                place[s] += 1
    return out


def _interleaved(
    pp: int, micro: int, forward: float, backward: float, bubble: float
) -> list[list[_Run]]:
    """List the runs of each stage one after another, after its share of the bubble."""
    each = forward + backward
    out: list[list[_Run]] = []
    for stage in range(pp):
        at = bubble * stage / max(pp - 1, 1)
        runs: list[_Run] = []
        for i in range(micro):
            runs += [("forward", i, at + i * each, forward),
                     ("backward", i, at + i * each + forward, backward)]  # fmt: skip
        out.append(runs)
    return out
