"""Pictures and clips: time, memory, energy and rate of a pipeline's stages on a machine.

Owns how the stages of a generator follow each other: passes of each, weights that stay on the
device or come over the link, what lives beside a running stage. Times of kernels come from
`passes`; many cases are predicted with one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, isfinite, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from ..dtypes import dtype
from ..errors import InfeasibleError, SpecError
from ..hardware import Hardware, resolve
from ..models.image import Canvas
from ..models.network import Layout, Network, Tokens
from ..models.pipeline import Pipeline, Stage
from ..predict.observe import told
from ..predict.power import PowerModel
from ..techniques import Treatment, treatment_of
from ..techniques.treatment import Placement
from .engine import Engine, engine
from .formats import Formats, formats_of
from .host import Host, fetch_bandwidth
from .memory import kv_bytes, weight_bytes
from .passes import Job, Machine, Pass, run_passes

__all__ = ["Generated", "Generation", "StageRun", "generate", "generate_all", "stage_memory"]

_SCORE_COPIES = 2.0  # standard attention: softmax reads one matrix of scores and writes another


@dataclass(frozen=True, slots=True)
class Generation:
    """A pipeline on hardware, and how it is run.

    `canvas` None takes the one that the pipeline is published for. `dtype` is the format of all
    stages, or of each by name ({"decoder": "fp32"}). `treatment` (or techniques as on the command
    line) acts on the stages in `treated`; its placement acts on all. A stage of `on_host` (text
    encoders only) runs on the host's processor. `layout`: how one picture or batch is spread;
    stages that cannot be cut that way run on one of the devices. `decode_frames` are what a
    decoder of single frames takes at a time (0: all; coders of clips have chunks of their own).
    """

    pipeline: Pipeline | str
    hardware: Hardware | str
    canvas: Canvas | None = None
    engine: Engine | str = "hf"
    dtype: str | Mapping[str, str] = ""
    treatment: Treatment | str = field(default_factory=Treatment)
    layout: Layout = field(default_factory=Layout)
    host: Host = field(default_factory=Host)
    on_host: tuple[str, ...] = ()
    treated: tuple[str, ...] = ("denoiser",)
    decode_frames: int = 0
    trained: str | Path | None = None


@dataclass(frozen=True, slots=True)
class StageRun:
    """One stage: seconds of all its passes, bytes on the fullest device while it runs.

    `fetch` is what of `time` goes to weights that come over the link. `energy` [J] of all devices
    is None where the power is not known. `memory` by component: weights (all that are resident
    then), activations, scores, kv, context, workspace, communication.
    """

    name: str
    passes: float
    time: float
    low: float
    high: float
    fetch: float
    energy: float | None
    memory: Mapping[str, float]
    basis: str
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def memory_total(self) -> float:
        """Bytes on the fullest device while the stage runs."""
        return sum(self.memory.values())


@dataclass(frozen=True, slots=True)
class Generated:
    """What one batch of pictures or clips takes; SI units, None where not known.

    `time` [s] is between batches, `latency` [s] from prompt to picture: longer where steps of
    pictures that follow each other share a batch. `memory_peak` [B] is of the fullest device in
    stage `peak_stage`, `host_bytes` what waits in host memory. `per_s` are pictures or clips a
    second, `frames_per_s` their frames.
    """

    fits: bool
    devices: int
    time: float
    low: float
    high: float
    latency: float
    per_s: float
    frames_per_s: float
    stages: tuple[StageRun, ...]
    memory_peak: float
    memory_low: float
    memory_high: float
    memory_capacity: float
    peak_stage: str
    host_bytes: float
    energy: float | None = None
    power: float | None = None
    reasons: tuple[str, ...] = ()

    def stage(self, name: str) -> StageRun:
        """Return a stage by name. Raises SpecError for one that it does not have."""
        for s in self.stages:
            if s.name == name:
                return s
        raise SpecError(f"stage: got {name!r}, need one of {[s.name for s in self.stages]}")


def generate(pipeline: Pipeline | str, hardware: Hardware | str, **options: Any) -> Generated:
    """Answer one case; `options` are the fields of `Generation`.

    Raises SpecError for unknown names and sizes, InfeasibleError for a layout or format that
    cannot be, NoDataError where a kernel cannot be answered. A pipeline that does not fit is an
    answer, with `fits` False.
    """
    return generate_all([Generation(pipeline, hardware, **options)])[0]


def generate_all(cases: Sequence[Generation]) -> list[Generated]:
    """Answer many cases with one table of predictions; all share the first's trained models."""
    for case in cases:
        told("generate", case)
    made = [_made(case) for case in cases]
    runs = iter(run_passes([one.job for m in made for one in m.steps if not one.on_host]))
    return [m.answer([None if one.on_host else next(runs) for one in m.steps]) for m in made]


def stage_memory(case: Generation) -> dict[str, dict[str, float]]:
    """Bytes on the fullest device while each stage runs, by component; nothing is timed."""
    made = _made(case)
    return {s.name: _memory(made, s) for s in made.steps}


@dataclass(frozen=True, slots=True)
class _Step:
    """A stage with what it runs on: passes over a group, bytes of its weights by place."""

    stage: Stage
    job: Job
    passes: float
    weights: float
    kept: float
    on_host: bool

    @property
    def name(self) -> str:
        return self.stage.name


@dataclass(frozen=True, slots=True)
class _Made:
    case: Generation
    hardware: Hardware
    engine: Engine
    treatment: Treatment
    canvas: Canvas
    steps: tuple[_Step, ...]

    def answer(self, runs: Sequence[Pass | None]) -> Generated:
        """Put the stages one after another."""
        stages = tuple(_ran(self, s, r) for s, r in zip(self.steps, runs, strict=True))
        t = self.treatment
        drawn = t.reduction.pictures
        time, low, high = (drawn * sum(getattr(s, n) for s in stages)
                           for n in ("time", "low", "high"))  # fmt: skip
        energies = [s.energy for s in stages]
        energy = None if None in energies else drawn * sum(e for e in energies if e is not None)
        peak = max(stages, key=lambda s: s.memory_total)
        spread = _spread(self.engine, peak.memory)
        capacity = self.hardware.memory.capacity
        batch = float(self.canvas.batch)
        shared = {id(s.job.network): s for s in self.steps if s.on_host or s.kept < s.weights}
        away = sum(s.weights if s.on_host else s.weights - s.kept for s in shared.values())
        return Generated(
            fits=peak.memory_total <= capacity * self.engine.memory_share,
            devices=self.case.layout.devices, time=time, low=low, high=high,
            latency=time / max(drawn, 1e-9) * max(t.batching.steps, 1.0), per_s=batch / time,
            frames_per_s=batch * float(self.canvas.frames) / time, stages=stages,
            memory_peak=peak.memory_total, memory_low=peak.memory_total - 1.645 * spread,
            memory_high=peak.memory_total + 1.645 * spread, memory_capacity=capacity,
            peak_stage=peak.name, host_bytes=away, energy=energy,
            power=None if energy is None else energy / time,
            reasons=_reasons(self, [r for r in runs if r is not None], energy, peak),
        )  # fmt: skip


def _made(case: Generation) -> _Made:
    """Look everything up and plan each stage."""
    pipeline = case.pipeline
    if isinstance(pipeline, str):
        from ..models import get

        found = get(pipeline)
        if not isinstance(found, Pipeline):
            raise SpecError(f"pipeline: {found.name} is one network, need a pipeline of stages")
        pipeline = found
    hardware = resolve(case.hardware) if isinstance(case.hardware, str) else case.hardware
    made = engine(case.engine) if isinstance(case.engine, str) else case.engine
    t = treatment_of(case.treatment) if isinstance(case.treatment, str) else case.treatment
    canvas = case.canvas or pipeline.canvas
    if any(np.ndim(getattr(canvas, n)) for n in ("height", "width", "frames", "batch")):
        raise SpecError("canvas: got arrays, need numbers; give one case each to generate_all")
    for name in (*case.on_host, *(case.dtype if isinstance(case.dtype, Mapping) else ())):
        pipeline.stage(name)
    steps = [_step(case, s, hardware, made, t, canvas) for s in pipeline.stages]
    planned = _Made(case, hardware, made, t, canvas, tuple(steps))
    if t.placement.device_share is None or t.placement.spill:
        planned = replace(planned, steps=_filled(planned))
    return planned


def _formats(case: Generation, stage: Stage, hardware: Hardware, t: Treatment) -> Formats:
    asked = case.dtype if isinstance(case.dtype, str) else case.dtype.get(stage.name, "")
    made = formats_of(stage.network, hardware, asked, treatment=t)
    wide = asked and not t.weights and dtype(asked).bits == 32
    return replace(made, wide=dtype(asked).name) if wide else made


def _step(
    case: Generation, stage: Stage, hardware: Hardware, made: Engine, t: Treatment, canvas: Canvas
) -> _Step:
    treated = stage.name in case.treated
    place = t.placement if stage.offloadable else Placement()
    here = replace(t if treated else Treatment(), placement=place)
    if not stage.network.caches():
        here = replace(here, kv=Treatment().kv)
    if stage.name == "denoiser":
        stage = _fewer(stage, t)
    formats = _formats(case, stage, hardware, here)
    layout = _layout(stage.network, case.layout, stage.name == "denoiser")
    layers = here.reduction.layers
    weights = weight_bytes(stage.network, formats, layout, here) * layers
    on_host = stage.name in case.on_host
    stage, canvas = _sliced(stage, canvas, case.decode_frames)
    group = stage.group(canvas)
    if on_host and not isinstance(group, Tokens):
        raise InfeasibleError(f"on_host: {stage.name} draws pictures; only text encoders run there")
    share = 1.0 if place.device_share is None else place.device_share
    # a stage that is fetched whole is on the device while it runs
    total = weights / layers
    pinned = total if place.unit == "stage" or on_host else total - weights * (1.0 - share)
    machine = Machine(hardware, layout, formats, made, case.host, case.trained, pinned=pinned)
    kept = 0.0 if on_host else weights * share
    job = Job(stage.network, machine, [group], here, layers)
    return _Step(stage, job, stage.passes, weights, kept, on_host)


def _fewer(stage: Stage, t: Treatment) -> Stage:
    """Denoiser's passes after what is left out: fewer steps, fewer calls, steps that share a batch.

    Calls that are left out are halves of guidance: what remains runs one sample at a time.
    """
    r, together = t.reduction, max(t.batching.steps, 1.0)
    evaluations = stage.passes * stage.samples * r.steps * r.calls
    samples = stage.samples if r.calls == 1.0 else 1
    samples = max(1, round(samples * together))
    return replace(stage, samples=samples, passes=max(evaluations, 1.0) / samples)


def _sliced(stage: Stage, canvas: Canvas, frames: int) -> tuple[Stage, Canvas]:
    """Decode some frames at a time."""
    own = getattr(stage.network, "time", 1) > 1  # a coder of clips
    if stage.name != "decoder" or not frames or own or float(canvas.frames) <= frames:
        return stage, canvas
    times = ceil(float(canvas.frames) / frames)
    return replace(stage, passes=stage.passes * times), replace(canvas, frames=frames)


def _layout(network: Network, asked: Layout, must: bool) -> Layout:
    """Layout of a stage; one device for what cannot be cut so. The denoiser has to be."""
    if asked.pp > 1:
        raise InfeasibleError("layout.pp: stages of a picture are not pipelined; use tp, cp or dp")
    try:
        network.calls((), asked)
    except InfeasibleError:
        if must:
            raise
        return Layout(gpus_per_node=asked.gpus_per_node)
    return asked


def _filled(made: _Made) -> tuple[_Step, ...]:
    """Keep as large a share of every stage's weights on the device as its memory allows."""
    limit = made.hardware.memory.capacity * made.engine.memory_share
    movable = [s for s in made.steps if s.stage.offloadable and not s.on_host]
    share = 1.0
    for running in made.steps:

        def total(kept: float, running: _Step = running) -> float:
            steps = tuple(_held(s, kept) if s in movable else s for s in made.steps)
            at = next(s for s in steps if s.name == running.name)
            return sum(_memory(replace(made, steps=steps), at).values())

        none, all_of_it = total(0.0), total(1.0)
        if all_of_it > limit:
            grows = max(all_of_it - none, 1e-9)
            share = min(share, max((limit - none) / grows, 0.0))
    return tuple(_held(s, share) if s in movable else s for s in made.steps)


def _held(step: _Step, share: float) -> _Step:
    kept = step.weights * share
    whole = step.job.treatment.placement.unit == "stage"
    total = step.weights / float(step.job.layer_share)
    pinned = total if whole else total - (step.weights - kept)
    machine = replace(step.job.machine, pinned=pinned)
    return replace(step, kept=kept, job=replace(step.job, machine=machine))


def _memory(made: _Made, running: _Step) -> dict[str, float]:
    """Bytes on the fullest device while one stage runs, by component."""
    seen: list[Network] = []
    weights = 0.0
    for s in made.steps:  # a network that serves two stages is held once
        if s.job.network not in seen:
            seen.append(s.job.network)
            weights += s.kept
    base = {"weights": weights, "activations": 0.0, "scores": 0.0, "kv": 0.0,
            "context": made.engine.context, "workspace": made.engine.workspace,
            "communication": made.engine.communication if made.case.layout.devices > 1 else 0.0,
            }  # fmt: skip
    if running.on_host:
        return base
    job, t = running.job, running.job.treatment
    away = running.weights - running.kept
    if t.placement.unit == "layer":  # one layer of what is fetched, two where that overlaps
        layers = max(float(getattr(job.network, "layers", 0) or 1), 1.0)
        away *= min((2.0 if t.placement.overlap else 1.0) / layers, 1.0)
    group, layout, formats = job.groups[0], job.machine.layout, job.machine.formats
    each = dtype(formats.wide).bytes_of(1.0)
    seen_by = group.count if isinstance(group, Tokens) else group
    base["weights"] += away
    base["activations"] = float(job.network.activations(seen_by, layout)) * each
    if t.attention == "standard":
        base["scores"] = _SCORE_COPIES * each * _scores(job)
    base["kv"] = _cached(job, made.canvas)
    if formats.kv.rebuild and base["kv"]:  # a layer's keys and values in full precision
        layers = max(sum(c.layers for c in job.network.caches()), 1.0)
        base["kv"] += base["kv"] / formats.kv.bytes_each * 2.0 / layers
    return base


def _scores(job: Job) -> float:
    """Elements of the largest matrix of scores that a pass makes on a device."""
    calls = job.network.calls(job.groups, job.machine.layout)
    sizes = (c.fields for c in calls if c.op == "attention")
    return max((float(f["batch"] * f["q_heads"] * f["q_len"] * f["kv_len"]) for f in sizes),
               default=0.0)  # fmt: skip


def _cached(job: Job, canvas: Canvas) -> float:
    """Bytes of keys and values kept between chunks or scales, whole batch, one device."""
    network, machine = job.network, job.machine
    grids = getattr(network, "grids", None)
    if not network.caches() or grids is None:
        return 0.0
    tokens = sum(float(g.t * g.h * g.w) * float(n) for g, n in grids(job.groups[0]))
    t = replace(job.treatment, kv=replace(job.treatment.kv, page=0))
    each = float(kv_bytes(network, machine.formats, machine.layout, t, tokens))
    return each * ceil(float(job.groups[0].batch) / machine.layout.dp)


def _spread(made: Engine, memory: Mapping[str, float]) -> float:
    """Return the standard deviation of the peak: activations and fixed parts are uncertain."""
    live = made.activation_spread * (memory["activations"] + memory["scores"])
    fixed = sum(memory[n] for n in ("context", "workspace", "communication"))
    return sqrt(live**2 + (made.fixed_spread * fixed) ** 2)


def _ran(made: _Made, step: _Step, run: Pass | None) -> StageRun:
    memory = _memory(made, step)
    if run is None:
        time = step.passes * _host_seconds(step, made.case.host)
        idle = PowerModel.load().basis_of(made.hardware).idle * made.hardware.board_power
        return StageRun(step.name, step.passes, time, time, time, 0.0,
                        idle * time * made.case.layout.devices, memory, "bound")  # fmt: skip
    n, place = step.passes, step.job.treatment.placement
    busy, low, high = (n * float(x[0]) for x in (run.time, run.low, run.high))
    inside = n * float(np.asarray(run.parts.get("fetch", 0.0)).ravel()[0])
    fetch = 0.0
    if place.unit == "stage" and step.kept < step.weights:
        speed = fetch_bandwidth(made.hardware, made.case.host, place.tier)
        fetch = (step.weights - step.kept) / speed
        fetch = max(fetch - busy, 0.0) if place.overlap else fetch
    joules = n * float(run.energy[0])
    devices = made.case.layout.devices
    idle = PowerModel.load().basis_of(made.hardware).idle * made.hardware.board_power
    waiting = idle * (fetch * devices + busy * (devices - step.job.machine.layout.devices))
    energy = joules + waiting if isfinite(joules) else None
    parts = {k: n * float(v[0]) for k, v in run.parts.items() if v[0] != 0}
    return StageRun(step.name, n, busy + fetch, low + fetch, high + fetch, fetch + inside, energy,
                    memory, run.timed.weakest()[0], parts)  # fmt: skip


def _host_seconds(step: _Step, host: Host) -> float:
    """Seconds of one pass on the host: weights read once, two operations a weight and token."""
    tokens = float(step.job.groups[0].count)
    work = 2.0 * step.job.network.active_parameters * tokens
    return max(step.weights / host.memory_bandwidth, work / host.flops_per_s)


def _reasons(
    made: _Made, runs: Sequence[Pass], energy: float | None, peak: StageRun
) -> tuple[str, ...]:
    limit = made.hardware.memory.capacity * made.engine.memory_share
    told = []
    if peak.memory_total > limit:
        told.append(
            f"stage {peak.name} needs {peak.memory_total / 1e9:.1f} GB, {limit / 1e9:.1f} may be "
            f"used; try weights in fewer bits, offload, or more devices (cp)"
        )
    told += [f"{s.name} on the host: a bound from its bandwidth and rate"
             for s in made.steps if s.on_host]  # fmt: skip
    if energy is None:
        told.append(f"power: not known for {made.hardware.name}")
    for run in runs:
        told += [r for r in run.timed.reasons if r not in told]
    return tuple(told)
