"""Why a prediction is what it is: where time and energy go, what limits, what would help.

Owns `Explanation`. Every counterfactual and every piece of advice is predicted again through
`predict_table`, never scaled; the parts are `breakdown`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SpecError
from ..hardware import Hardware, resolve
from ..ops import Op
from ..ops.gemm import MAX_DIM, Gemm
from ..units import format_quantity
from .batch import predict_table
from .breakdown import BEYOND, Kernel, Part, energy_parts, kernel_of, time_parts
from .bundle import Bundle, open_bundle
from .prediction import Prediction, asked_of, predict, words_of
from .throttle import NOTE

__all__ = ["Explanation", "explain"]

Row = dict[str, Any]
LEAST_GAIN = 0.02  # advice that gains less is not given
_MULTIPLES = (8, 64, 128, 256)  # tile edges and vector widths that shapes are padded to
_MORE_WORK = 1.125  # padding beyond an eighth more work is not tried
_FORMATS = ("tf32", "bf16", "fp16", "fp8_e4m3", "int8", "nvfp4", "mxfp4")
_NEAREST = 5


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one prediction is what it is; see `explain`.

    `time` and `energy` are parts that sum to the prediction, `scale` the factor on the analytic
    parts above the bound (1 where the prediction is slower than the analytic kernel), `roofline`
    one row a memory level, `kernel` the analytic kernel's tile, waves and occupancy, `sentence`
    what limits in plain words, `nearest` the nearest measured points, `what_if` and `advice`
    predicted again, `notes` what else to know.
    """

    prediction: Prediction
    time: tuple[Part, ...]
    scale: float
    energy: tuple[Part, ...]
    power: Mapping[str, float]
    roofline: tuple[Row, ...]
    kernel: Mapping[str, Any]
    sentence: str
    nearest: tuple[Row, ...]
    what_if: tuple[Row, ...]
    advice: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> list[Row]:
        """Parts of the time, then of the energy, each with its share of its own whole."""
        keys = (("time", "time_s", self.time), ("energy", "energy_j", self.energy))
        return [
            {"of": of, "part": p.name, key: p.value, "share": p.share, "why": p.why}
            for of, key, parts in keys
            for p in parts
        ]

    @property
    def sections(self) -> dict[str, list[Row]]:
        """Tables that follow the parts, by title; empty ones left out."""
        found = {
            "roofline position": list(self.roofline),
            "nearest measured points": list(self.nearest),
            "what if (predicted again)": list(self.what_if),
            "what would make it better (predicted again)": list(self.advice),
        }
        return {title: rows for title, rows in found.items() if rows}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        p = self.prediction
        out: dict[str, Any] = {"op": p.op.name, "hardware": p.hardware.name, **asked_of(p.op)}
        for name, unit in (("time", "s"), ("power", "w"), ("energy", "j")):
            ends = p.intervals[name] or (None, None)
            out |= {f"{name}_{unit}": getattr(p, name), f"{name}_low_{unit}": ends[0],
                    f"{name}_high_{unit}": ends[1]}  # fmt: skip
        return out | {
            "bound_s": p.bound, "utilisation": p.utilisation, "limiter": p.limiter,
            "basis": p.basis, "reason": p.reason, "sentence": self.sentence, "rows": self.rows,
            "scale": self.scale, "power_limit": dict(self.power), "roofline": list(self.roofline),
            "kernel": dict(self.kernel), "nearest": list(self.nearest),
            "what_if": list(self.what_if), "advice": list(self.advice), "notes": list(self.notes),
        }  # fmt: skip

    def _repr_html_(self) -> str:
        """Rich display in a notebook."""
        from ..richtext import block, line, table

        p = self.prediction
        tables = (table(rows, caption=title) for title, rows in self.sections.items())
        parts = (table([r for r in self.rows if r["of"] == of], ("part", key, "share", "why"))
                 for of, key in (("time", "time_s"), ("energy", "energy_j")))  # fmt: skip
        title = line(f"{words_of(p.op)} on {p.hardware.name}", strong=True)
        return block(title, line(str(p)), line(self.sentence), *parts, *tables,
                     *(line(text) for text in self.notes))  # fmt: skip

    def __str__(self) -> str:
        lines = [str(self.prediction), self.sentence]
        for whole, parts, dimension in (
            ("time", self.time, "time"), ("energy", self.energy, "energy"),
        ):  # fmt: skip
            for p in parts:
                value = format_quantity(p.value, dimension)
                lines.append(f"{whole:7}{p.name:20}{value:>9} {100 * p.share:5.1f} %  {p.why}")
        for row in (*self.what_if, *self.advice):
            what = row.get("change") or row.get("advice")
            lines.append(f"{what}: {format_quantity(row['time_s'], 'time')}")
        return "\n".join([*lines, *self.notes])


def explain(
    op: Gemm | Op,
    on: str | Path | Hardware,
    *,
    config: Any = None,
    model: str | Path | None = None,
    what_if: Mapping[str, str | float] | None = None,
    level: float = 0.9,
    advice: bool = True,
) -> Explanation:
    """Explain the prediction of one op on one device (a name, a TOML file or a Hardware).

    `config` is a kernel configuration, by default the vendor's library; `what_if` maps fields of
    the device to changes ("memory.bandwidth": "+20%"), each of which is predicted alone and, when
    there are several, all together; `advice` False leaves that out, which takes most of the time.
    Raises what `predict` raises, and SpecError for an unknown field.

    >>> import ridgecast as rc
    >>> e = rc.explain(rc.Gemm(4096, 4096, 4096), "h200_sxm", what_if={"clock": "+10%"})
    >>> abs(sum(part.value for part in e.time) / e.prediction.time - 1) < 1e-9
    True
    """
    device = resolve(on)
    devices = _changed_devices(device, what_if or {})
    if isinstance(op, Op):
        if config is not None:
            raise SpecError(f"config: {op.name} takes none; its fields say how it is run")
        from .explain_operator import explain_operator

        return explain_operator(op, device, devices, model=model, level=level)
    prediction = predict(op, on=device, config=config, model=model, level=level)
    bundle = open_bundle(model)
    kernel = kernel_of(op, device, config)
    time, scale = time_parts(prediction, kernel, device)
    energy, power = energy_parts(prediction, kernel, device, bundle.power())
    nearest, note = _nearest(op, device, config, bundle)
    ask = _Asker(config, model, level)
    return Explanation(
        prediction=prediction,
        time=time,
        scale=scale,
        energy=energy,
        power=power,
        roofline=tuple(_roofline(prediction, kernel, device)),
        kernel=_facts(kernel),
        sentence=_sentence(prediction, kernel, time),
        nearest=nearest,
        what_if=tuple(_what_if(op, prediction, devices, ask)),
        advice=tuple(_advice(op, device, prediction, ask)) if advice else (),
        notes=tuple(
            text
            for text in (*_notes(prediction, scale, power), note, *_limits(prediction, what_if))
            if text
        ),
    )


def _limits(prediction: Prediction, what_if: Mapping[str, Any] | None) -> list[str]:
    """Say where an answer should be read with care: another power cap, a time at the bound."""
    told = []
    if "board_power" in (what_if or {}):
        told.append(NOTE)
    if prediction.basis == "transferred" and prediction.time < 1.01 * prediction.bound:
        told.append(
            "the utilisation carried over from other devices reaches the bound, which libraries "
            "seldom do: read the upper end of the interval"
        )
    return told


# ----------------------------------------------------------------------------- asking the predictor


@dataclass(frozen=True, slots=True)
class _Asker:
    """Predicts several (op, device) pairs in one batch, all else as in the explained one."""

    config: Any
    model: str | Path | None
    level: float

    def __call__(self, pairs: Sequence[tuple[Gemm | Op, Hardware]]) -> list[Row]:
        if not pairs:
            return []
        rows: list[Row] = []
        extra: Row = {}
        if self.config is not None:
            extra = {name: column[0] for name, column in self.config.as_table().items()}
            extra["kernel"] = self.config.kernel
        for op, device in pairs:
            row: Row = {"op": op.name, "hardware": device.name} | asked_of(op)
            rows.append(row | extra)
        table = {
            key: np.array(
                [r[key] for r in rows], object if isinstance(rows[0][key], str | bool) else None
            )
            for key in rows[0]
        }
        known = {device.name: device for _, device in pairs}
        done = predict_table(table, model=self.model, level=self.level, hardware=known)
        found = {k: v.tolist() for k, v in done.items() if k not in table}
        return [{k: _plain(v[i]) for k, v in found.items()} for i in range(len(rows))]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and np.isnan(value) else value


def _answer(row: Row) -> Row:
    """Pick the columns of a prediction that a counterfactual shows."""
    keys = ("time_s", "time_low_s", "time_high_s", "power_w", "energy_j", "limiter", "basis")
    return {key: row[key] for key in keys}


# --------------------------------------------------------------------------------------- questions


def _changed_devices(
    device: Hardware, changes: Mapping[str, str | float]
) -> list[tuple[str, Hardware]]:
    found = [(f"{k} {v}", device.what_if({k: v})) for k, v in changes.items()]
    if len(found) > 1:
        found.append(("all together", device.what_if(changes)))
    return found


def _what_if(
    op: Gemm | Op, base: Prediction, devices: Sequence[tuple[str, Hardware]], ask: _Asker
) -> list[Row]:
    """Each changed device, predicted again, next to what it is compared with."""
    done = ask([(op, device) for _, device in devices])
    rows: list[Row] = []
    for (change, _), row in zip(devices, done, strict=True):
        if row["status"] != "ok":
            rows.append({"change": change, "time_s": None, "reason": row["reason"]})
            continue
        rows.append({"change": change, "ratio": row["time_s"] / base.time, **_answer(row)})
    return rows


def _advice(op: Gemm, device: Hardware, base: Prediction, ask: _Asker) -> list[Row]:
    """List changes of the work that a fresh prediction says gain more than LEAST_GAIN, best first.

    The gain is 1 - new time / time, for the same useful work: a doubled m is counted per row of D.
    """
    tried: list[tuple[str, Gemm, float]] = []
    for name in ("m", "n", "k"):
        size = getattr(op, name)
        for multiple in _MULTIPLES:
            new = -(-size // multiple) * multiple
            if size < new <= min(size * _MORE_WORK, MAX_DIM):
                text = f"pad {name} from {size} to {new}, a multiple of {multiple}"
                tried.append((text, replace(op, **{name: new}), 1.0))
    if op.m * 2 <= MAX_DIM:
        text = f"batch twice the rows (m = {2 * op.m}); gain per row of D"
        tried.append((text, replace(op, m=2 * op.m), 2.0))
    bits = op.a_format.bits
    for name in _FORMATS if not (op.b_dtype or op.out_dtype) else ():
        if name == op.dtype or not device.supports(name):
            continue
        other = replace(op, dtype=name)
        if other.a_format.bits <= bits:
            tried.append((f"{name} operands, where the accuracy allows", other, 1.0))
    rows: list[Row] = []
    done = ask([(other, device) for _, other, _ in tried])
    for (text, _, work), row in zip(tried, done, strict=True):
        if row["status"] == "ok":
            gain = 1.0 - row["time_s"] / work / base.time
            if gain > LEAST_GAIN:
                rows.append({"advice": text, "gain_share": gain, **_answer(row)})
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda r: -r["gain_share"]):
        best.setdefault(row["advice"].split(" from ")[0], row)  # one padding a dimension
    return list(best.values())


def _nearest(
    op: Gemm, device: Hardware, config: Any, bundle: Bundle
) -> tuple[tuple[Row, ...], str]:
    """Nearest measured points, or nearest training shapes and how to get the times."""
    if config is not None and config.kernel != "library":
        return (), ""
    entry = bundle.entry(device.base_name, op.dtype)
    if entry is None:
        have = sorted({e.dtype for e in bundle.entries if e.hardware == device.base_name})
        known = f"it was measured with {', '.join(have)}" if have else "nor any other format of it"
        return (), f"no measurement of {op.dtype} on {device.base_name} behind this; {known}"
    exact = bundle.measured(entry)
    if exact is not None:
        rows = exact.nearest(op.m, op.n, op.k, _NEAREST)
        return tuple({**row, "collection": entry.collection} for row in rows), ""
    domain = bundle.time_model(entry).domain
    n, k = np.floor(domain.pairs / 2.0**31), domain.pairs % 2.0**31
    far = np.log2(n / op.n) ** 2 + np.log2(k / op.k) ** 2
    low, high = int(domain.low[0]), int(domain.high[0])
    rows = tuple(
        {"n": int(n[i]), "k": int(k[i]), "m_least": low, "m_most": high,
         "collection": entry.collection}
        for i in np.argsort(far, kind="stable")[:_NEAREST]
    )  # fmt: skip
    return rows, (
        "the model folder keeps training shapes, not their times; for measured points: "
        "`ridgecast train --data FILES --out DIR`, then `--model DIR`"
    )


# ---------------------------------------------------------------------------------------- physics


def _roofline(prediction: Prediction, kernel: Kernel, device: Hardware) -> list[Row]:
    """Position under the roof of each memory level that the kernel's traffic crosses.

    Intensity is useful flops over the bytes of the analytic kernel at that level; the row
    `unique bytes` counts each operand once, as if from memory.
    """
    flops = kernel.number("useful_flops")
    achieved = flops / prediction.time
    levels = (
        ("unique bytes", float(kernel.problem.bytes[0]), device.memory.bandwidth),
        ("memory", kernel.number("memory_bytes"), device.memory.bandwidth),
        ("l2", kernel.number("l2_bytes"), device.l2.bandwidth),
        ("shared", kernel.number("shared_traffic"), device.shared.bandwidth),
    )
    rows: list[Row] = []
    for name, moved, bandwidth in levels:
        if moved <= 0.0:
            continue
        intensity = flops / moved
        roof = min(kernel.rate, intensity * bandwidth)
        rows.append({
            "level": name, "moved_bytes": moved, "arithmetic_intensity": intensity,
            "ridge_point": kernel.rate / bandwidth, "attainable_flops_per_s": roof,
            "achieved_flops_per_s": achieved, "utilisation": achieved / roof,
        })  # fmt: skip
    return rows


def _facts(kernel: Kernel) -> Row:
    """Tile, waves and occupancy of the analytic kernel."""
    config = kernel.config
    numbers = ("blocks", "blocks_per_sm", "waves", "tail_efficiency", "tile_efficiency",
               "occupancy", "registers", "shared_bytes")  # fmt: skip
    limiter = str(np.ravel(kernel.cost.occupancy_limiter)[0])
    facts: Row = {"kernel": config.kernel}
    facts |= {name: int(column[0]) for name, column in config.as_table().items()}
    facts |= {name: kernel.number(name) for name in numbers}
    return facts | {"occupancy_limiter": limiter}


_PLAIN = {
    "ideal_compute": "the multiply-adds themselves at the peak rate",
    "ideal_memory": "bringing every operand from memory once",
    "ideal_l2": "bringing every operand through the L2 once",
    "slower_unit": "a kernel that does not use the device's fastest unit for the format",
    "tile_padding": "work on padding, because the tiles do not divide the shape",
    "issue": "issuing instructions other than multiply-adds",
    "memory_traffic": "fetching operands from memory more than once",
    "l2_traffic": "operand traffic between L2 and the SMs",
    "shared_traffic": "operand traffic of shared memory",
    "latency": "waiting for loads, because too little work is in flight to hide them",
    "tail": "SMs that idle in the last wave of blocks",
    "fixup": "joining the partial sums of a divided k",
    "prologue": "the end of the pipeline, where nothing is left to overlap",
    "launch": "the fixed cost of starting a kernel: the work itself is shorter",
    "beyond_the_physics": "what real runs lose beyond the analytic kernel, unexplained",
}


def _sentence(prediction: Prediction, kernel: Kernel, parts: Sequence[Part]) -> str:
    """Say what limits, in plain words."""
    ranked = sorted(parts, key=lambda p: -p.value)
    facts = _facts(kernel)
    text = (
        f"{100 * prediction.utilisation:.3g} % of the speed of light; the largest part of the "
        f"time, {100 * ranked[0].share:.1f} %, is {_PLAIN[ranked[0].name]}"
    )
    if ranked[0].name == BEYOND and len(ranked) > 1:
        text += f"; then, with {100 * ranked[1].share:.1f} %, {_PLAIN[ranked[1].name]}"
    if facts["waves"] < 1.0:
        text += f"; the blocks fill {100 * facts['waves']:.2g} % of one wave"
    return text + "."


def _notes(prediction: Prediction, scale: float, power: Mapping[str, float]) -> list[str]:
    notes: list[str] = []
    if scale < 1.0:
        notes.append(
            f"faster than the analytic kernel: what it adds to the bound is shown times {scale:.3g}"
        )
    if power.get("demand", 0.0) > 1.0:
        held = format_quantity(power["held_back_w"], "power")
        notes.append(
            f"at the power limit: by its demand it would draw {held} more; the clocks give way"
        )
    if prediction.reason:
        notes.append(f"{prediction.basis}: {prediction.reason}")
    return notes
