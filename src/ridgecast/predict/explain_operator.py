"""Why the prediction of an operation other than GEMM is what it is.

Owns the split of its time into what physics names (the busiest resource, what does not hide
behind it, launches, dependent steps, messages) and what is left; counterfactuals and advice are
predicted again through `predict_table`. Parts sum to the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..dtypes import DTYPES
from ..hardware import Hardware
from ..kernels.operator import fixed_parts
from ..ops import Op
from ..units import format_quantity
from .breakdown import BEYOND, DUST, Part
from .bundle import open_bundle
from .explain import LEAST_GAIN, Explanation, Row, _answer, _Asker, _what_if
from .operator_features import Known, known
from .prediction import Prediction, predict

__all__ = ["explain_operator"]

_FORMATS = ("bf16", "fp8_e4m3", "nvfp4")  # one a width
_WHAT = {
    "compute": "matrix products at the peak rate", "vector": "arithmetic on the lanes",
    "special": "exponentials, roots and quotients", "integer": "integer arithmetic",
    "memory": "bytes to and from memory", "l2": "bytes through the L2",
    "peer": "bytes to devices of the node", "network": "bytes to other nodes",
    "host": "bytes over the link to the host", "launch": "starting its kernels",
    "steps": "steps that wait for one another", "hops": "messages that wait for one another",
    "overlap": "resources that do not hide behind the busiest one",
    BEYOND: "what real runs lose beyond physics, as seen on measured operations",
}  # fmt: skip


def explain_operator(
    op: Op,
    device: Hardware,
    devices: Sequence[tuple[str, Hardware]],
    *,
    model: str | Path | None = None,
    level: float = 0.9,
) -> Explanation:
    """Explain one operation on one device; `devices` are the counterfactuals, by their change."""
    prediction = predict(op, on=device, model=model, level=level)
    k = known(op, 1, device)
    time, scale = _time_parts(prediction, k, device)
    ask = _Asker(None, model, level)
    return Explanation(
        prediction=prediction,
        time=time,
        scale=scale,
        energy=_energy_parts(prediction, device),
        power={},
        roofline=tuple(_roofline(prediction, k, device)),
        kernel={
            "kernel": op.name,
            **{name: float(np.ravel(v)[0]) for name, v in op.counts().items()},
        },
        sentence=_sentence(prediction, time),
        nearest=(),
        what_if=tuple(_what_if(op, prediction, devices, ask)),
        advice=tuple(_advice(op, device, prediction, ask)),
        notes=_notes(
            prediction, scale, open_bundle(model).operators(op, 1, device.base_name)[0][0]
        ),
    )


def _time_parts(p: Prediction, k: Known, device: Hardware) -> tuple[tuple[Part, ...], float]:
    """Bound, overlap, fixed costs and the rest; where physics is slower, all but the bound shrink.

    Returns the parts and the factor on them.
    """
    busiest = max(k.parts, key=lambda name: float(k.parts[name][0]))
    bound = float(k.bound[0])
    fixed = {name: float(np.ravel(v)[0]) for name, v in fixed_parts(k.work, device).items()}
    overlap = max(float(k.analytic[0]) - bound - sum(fixed.values()), 0.0)
    added = {"overlap": overlap, **fixed}
    left, extra = p.time - bound, sum(added.values())
    scale = min(left / extra, 1.0) if extra > 0.0 else 1.0
    found = {busiest: bound, **{name: value * scale for name, value in added.items()}}
    found[BEYOND] = max(left - extra * scale, 0.0)
    parts = [
        Part(name, value, value / p.time, _WHAT[name])
        for name, value in found.items()
        if value > DUST * p.time
    ]
    return tuple(parts), scale


def _energy_parts(p: Prediction, device: Hardware) -> tuple[Part, ...]:
    """Idle power times time, and the work."""
    if p.energy is None:
        return ()
    if device.idle_power is None:
        why = "idle power of the device is not known, so the whole is not split"
        return (Part("board", p.energy, 1.0, why),)
    idle = min(device.idle_power * p.time, p.energy)
    rows = [("idle", idle, "the device switched on"), ("work", p.energy - idle, "the work itself")]
    return tuple(Part(n, v, v / p.energy, why) for n, v, why in rows if v > DUST * p.energy)


def _roofline(p: Prediction, k: Known, device: Hardware) -> list[Row]:
    """Position under the roof of memory, by useful operations over bytes moved."""
    flops, moved = float(np.ravel(k.work.all_flops)[0]), float(np.ravel(k.work.moved)[0])
    compute = sum(float(v[0]) for n, v in k.parts.items() if n in ("compute", "vector"))
    if moved <= 0.0 or compute <= 0.0:
        return []
    rate = flops / compute
    intensity = flops / moved
    roof = min(rate, intensity * device.memory.bandwidth)
    return [{
        "level": "memory", "moved_bytes": moved, "arithmetic_intensity": intensity,
        "ridge_point": rate / device.memory.bandwidth, "attainable_flops_per_s": roof,
        "achieved_flops_per_s": flops / p.time, "utilisation": flops / p.time / roof,
    }]  # fmt: skip


def _advice(op: Op, device: Hardware, base: Prediction, ask: _Asker) -> list[Row]:
    """List other variants and narrower formats that a fresh prediction says gain, best first."""
    tried: list[tuple[str, Op]] = []
    for name, info in op.infos().items():
        now = getattr(op, name)
        if name == "variant":
            others = [v for v in info.options if v != now and v not in op.inexact]
            tried += [(f"variant {v}", o) for v in others for o in _changed(op, name, v)]
        if info.kind == "format":
            narrower = [w for w in _FORMATS if DTYPES[w].bits < DTYPES[now].bits]
            tried += [(f"{name} {w}, where the accuracy allows", o) for w in narrower
                      if device.supports(w) for o in _changed(op, name, w)]  # fmt: skip
    rows: list[Row] = []
    for text, other in tried:
        row = ask([(other, device)])[0]
        if row["status"] == "ok" and 1.0 - row["time_s"] / base.time > LEAST_GAIN:
            rows.append({"advice": text, "gain_share": 1.0 - row["time_s"] / base.time,
                         **_answer(row)})  # fmt: skip
    return sorted(rows, key=lambda row: -row["gain_share"])[:5]


def _changed(op: Op, name: str, value: str) -> list[Op]:
    """Return the operation with one word changed; nothing where that cannot be."""
    try:
        return [replace(op, **{name: value})]
    except ValueError:
        return []


def _sentence(p: Prediction, parts: Sequence[Part]) -> str:
    ranked = sorted(parts, key=lambda part: -part.value)
    return (
        f"{100 * p.utilisation:.3g} % of the speed of light; the largest part of the time, "
        f"{100 * ranked[0].share:.1f} %, is {ranked[0].name.replace('_', ' ')}: {ranked[0].why}."
    )


def _notes(p: Prediction, scale: float, model: Any) -> tuple[str, ...]:
    notes: list[str] = []
    if scale < 1.0:
        notes.append(f"faster than the physics: what it adds to the bound is shown x {scale:.3g}")
    notes.append(f"{p.basis}: {p.reason}")
    scores: list[Mapping[str, Any]] = [] if model is None else list(model.card.get("scores", []))
    for s in scores[:1]:
        notes.append(
            f"that model's error on held-out rows ({s['split']}): {100 * s['mape']:.1f} %, "
            f"{100 * s['coverage']:.0f} % inside the 90 % interval; "
            f"{format_quantity(p.time, 'time')} here"
        )
    return tuple(notes)
