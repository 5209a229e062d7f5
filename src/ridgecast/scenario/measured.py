"""Answers for measured serving points: one scenario a row, many rows at once.

Owns how a row of `store.importers.aiconfigurator_serving` becomes scenarios, aggregated or with
prefill and decode apart, and what is known of how the points were measured. Fits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..errors import RidgecastError
from ..models.network import Layout
from ..store.tables import Table
from ..techniques.treatment import Speculation, Treatment
from .case import Made, Scenario
from .queueing import Load, Phases, serve
from .solve import Points, phases_of_all

__all__ = ["MTP", "Prepared", "Row", "answer", "answer_rows", "prepare", "rows_of"]

F64 = npt.NDArray[np.float64]
MEAN_LENGTH = 0.9
"""InferenceX draws lengths uniformly between 0.8 and 1 of what it names (random-range-ratio)."""
MTP = Speculation(verified=2.0, accepted=1.8, draft_share=1.0 / 61.0, draft_steps=1.0)
"""One drafted token: 85 to 90 % of them are accepted, 1.8 times the tokens per second
(DeepSeek-V3 report, arXiv:2412.19437, section 5.4.3); the module is one of 62 layers."""
_EITHER = Speculation(verified=1.0, accepted=1.8**0.5, draft_share=0.5 / 61.0, draft_steps=1.0)
"""Between drafting and not: the geometric mean of what a pass gives."""
_INFERENCEX = "inferencex"
_NVL = 72  # devices that one NVLink domain of GB200 and GB300 joins
# Decode passes that InferenceX's own scripts make a request wait for (published recipes of 2025
# and 2026): the scheduler of SGLang looks for new requests every 10 (below 16 in flight) or 30
# passes on Blackwell (--scheduler-recv-interval), TensorRT-LLM's attention groups wait for one
# another in the scripts of DeepSeek (attention_dp_config timeout_iters 60).
_RECEIVE = (10.0, 30.0)
_GROUPS_WAIT = 60.0
# Points of other campaigns have fixed lengths. TensorRT-LLM's kept one request more in flight than
# it ran, which waits for a slot: this share of osl / batch passes (fitted on Llama-3.1-8B and
# Qwen3-32B). SGLang's sequences end together, so that every wave starts with all prompts at once;
# taken as every second request, as sequences of 8B models fall out of step (Llama-3.1-8B).
_SLOT = 0.8
_WAVES = 2.0
# Disaggregated: nothing is sent before the stream interval is full (50 passes, 20 at low latency)
_STREAM = (50.0, 20.0)


@dataclass(frozen=True, slots=True)
class Row:
    """One measured point as scenarios: the part that decodes, the part that prefills, its load.

    `scenario` is that of one aggregated replica or decode worker, `prefill` that of a prefill
    worker (None: aggregated). `batch` requests are in flight on the replica (all decode workers
    together where apart), `workers` (prefill, decode) there are; `wait` decode passes are waited
    for besides what the engine's profile says; `rounds` requests each client sends.
    """

    scenario: Scenario
    prefill: Scenario | None
    batch: float
    isl: float
    osl: float
    workers: tuple[float, float]
    wait: float
    rounds: float


def rows_of(table: Table) -> list[Row | str]:
    """Scenarios of every row of an imported table; a text says why a row has none."""
    out: list[Row | str] = []
    for i in range(len(table["model"])):
        try:
            out.append(_row({k: v[i] for k, v in table.items()}))
        except (RidgecastError, ValueError) as error:
            out.append(str(error))
    return out


def _row(r: Mapping[str, object]) -> Row:
    value = {k: float(v) for k, v in r.items() if isinstance(v, float | int | np.floating)}
    apart = r["mode"] == "disagg"
    fast = str(r["collection"]).startswith(_INFERENCEX)
    mean = MEAN_LENGTH if fast else 1.0
    isl, osl = round(value["isl"] * mean), max(round(value["osl"] * mean), 1)
    own = Treatment(speculation=_drafting(r, apart and fast))
    side = "decode_" if apart else ""
    if not np.isfinite(value[side + "tp"]):
        raise ValueError("its layout is not known")
    decode = _scenario(r, value, side, own)
    prefill = _scenario(r, value, "prefill_", Treatment()) if apart else None
    replicas = value["replicas"] if np.isfinite(value.get("replicas", np.nan)) else 1.0
    workers = (value["prefill_workers"], value["decode_workers"]) if apart else (1.0, 1.0)
    batch = value["concurrency"] / (1.0 if apart else max(replicas, 1.0))
    rounds = _WAVES if r["engine"] == "sglang" and not fast and not apart else 10.0
    return Row(decode, prefill, batch, isl, osl, workers, _wait(r, value, batch, apart, fast),
               rounds)  # fmt: skip


def _drafting(r: Mapping[str, object], unsaid: bool) -> Speculation:
    """Drafting of a row; where either may have been, DeepSeek's module counts half.

    Disaggregated recipes of DeepSeek exist with it and without, for most loads alike.
    """
    if r["speculative"] == "mtp":
        return MTP
    if unsaid and not r["speculative"] and "deepseek" in str(r["model"]).lower():
        return _EITHER
    return Speculation()


def _scenario(
    r: Mapping[str, object], value: Mapping[str, float], side: str, t: Treatment
) -> Scenario:
    sizes = {n: max(int(value[side + n]), 1) for n in ("tp", "pp", "dp", "ep")
             if np.isfinite(value[side + n])}  # fmt: skip
    near = _NVL if str(r["hardware"]).startswith("gb") else 8
    layout = Layout(**sizes, gpus_per_node=near)
    return Scenario(
        _model(str(r["model"])), str(r["hardware"]), layout.devices, layout,
        engine=str(r["engine"]), dtype=_linear(r), experts=str(r["moe_format"]),
        kv_dtype=_cache(r), techniques=t,
    )  # fmt: skip


def _linear(r: Mapping[str, object]) -> str:
    """Format of linear layers: a checkpoint whose experts have block scales has them throughout."""
    block = r["moe_format"] == "fp8_block" and r["gemm_format"] == "fp8_e4m3"
    return "fp8_block" if block else str(r["gemm_format"])


def _cache(r: Mapping[str, object]) -> str:
    """Format of the cache: quantised checkpoints that TensorRT-LLM serves state fp8 caches."""
    quantised = r["engine"] == "trtllm" and r["gemm_format"] not in ("bf16", "fp16")
    return "fp8" if quantised else ""


def _model(spelling: str) -> str:
    """Name of the network: points name owners that moved."""
    return spelling.replace("zhipuai/", "zai-org/")


def _wait(
    r: Mapping[str, object], value: Mapping[str, float], batch: float, apart: bool, fast: bool
) -> float:
    """Decode passes that a request waits for by the measuring scripts' own settings."""
    side = "decode_" if apart else ""
    groups = value.get(side + "dp", 1.0) > 1
    if apart:
        return _STREAM[0] if groups else _STREAM[1]
    if not fast:
        return _SLOT * value["osl"] / batch if r["engine"] == "trtllm" else 0.0
    blackwell = str(r["hardware"]) in ("b200_sxm", "b300_sxm")
    if r["engine"] == "sglang" and blackwell and "glm" not in str(r["model"]).lower():
        return _RECEIVE[0] if batch < 16 else _RECEIVE[1]
    waits = r["engine"] == "trtllm" and groups and "deepseek" in str(r["model"]).lower()
    return _GROUPS_WAIT if waits else 0.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows of one machine with their passes timed; `answer` makes requests of them."""

    at: npt.NDArray[np.int64]
    made: Made
    before: Made | None
    phases: tuple[Phases, ...]
    load: Load
    batch: F64
    wait: F64
    sides: F64


def answer_rows(rows: Sequence[Row | str]) -> Table:
    """Predict rows: ttft_s and tpot_s with _low and _high, and a reason where there is none."""
    prepared, reasons = prepare(rows)
    return answer(prepared, reasons)


def prepare(rows: Sequence[Row | str]) -> tuple[list[Prepared], list[str]]:
    """Time the passes of all rows, those of one machine and layout together; reasons [rows]."""
    reasons = [r if isinstance(r, str) else "" for r in rows]
    groups: dict[object, list[int]] = {}
    for i, row in enumerate(rows):
        if isinstance(row, Row):
            groups.setdefault((row.scenario, row.prefill), []).append(i)
    out = []
    for members in groups.values():
        mine = [r for r in (rows[i] for i in members) if isinstance(r, Row)]
        try:
            out.append(_prepared(np.array(members), mine))
        except RidgecastError as error:
            for i in members:
                reasons[i] = str(error)
    return out, reasons


def _prepared(at: npt.NDArray[np.int64], rows: Sequence[Row]) -> Prepared:
    first = rows[0]
    made = first.scenario.made()
    batch, isl, osl, wait, rounds = (
        np.array([getattr(r, n) for r in rows]) for n in ("batch", "isl", "osl", "wait", "rounds")
    )
    sides = np.array([r.workers for r in rows])
    here = np.maximum(np.round(batch / sides[:, 1]), 1.0)
    points = Points.of(here, isl, osl)  # what memory held its campaigns do not say: all of them
    cases = [(made, first.scenario, points)]
    before: Made | None = None
    if first.prefill is not None:
        before = first.prefill.made()
        cases.append((before, first.prefill, points))
    phases = tuple(p for p, _ in phases_of_all(cases))
    load = Load(points.batch, points.running, osl, made.layout.dp, rounds)
    return Prepared(at, made, before, phases, load, batch, wait, sides)


def answer(
    prepared: Sequence[Prepared],
    reasons: Sequence[str],
    constants: Mapping[str, float] | None = None,
) -> Table:
    """Make times of prepared rows; `constants` replace those of every engine (for fitting)."""
    names = ("ttft_s", "ttft_low_s", "ttft_high_s", "tpot_s", "tpot_low_s", "tpot_high_s")
    out: Table = {name: np.full(len(reasons), np.nan) for name in names}
    out["reason"] = np.array(list(reasons), dtype=object)
    for one in prepared:
        made = one.made
        if constants:
            made = replace(made, engine=replace(made.engine, **constants))
        if one.before is not None:
            found = _apart(one, made)
        else:
            served = serve(one.phases[0], one.load, made.engine, made.treatment)
            ends = zip(("", "_low", "_high"), served.ttft, served.tpot, strict=True)
            found = {e: (t + one.wait * tpot * made.treatment.speculation.accepted, tpot)
                     for e, t, tpot in ends}  # fmt: skip
        for end, values in found.items():
            out[f"ttft{end}_s"][one.at], out[f"tpot{end}_s"][one.at] = values
    return out


def _apart(one: Prepared, made: Made) -> dict[str, tuple[F64, F64]]:
    """Give times of prefill and decode apart: a decode worker never stops for a prompt.

    Prompts queue at the prefill workers' groups, of which each serves one at a time; when they
    are the bottleneck, Little's law gives the wait: all requests in flight less those decoding.
    """
    decode, prefill = one.phases
    e, t, load = made.engine, made.treatment, one.load
    out = {}
    groups = one.sides[:, 0] * (one.before.layout.dp if one.before else 1)
    each = one.batch / groups
    for end, key in (("", "time"), ("_low", "low"), ("_high", "high")):
        drafting = t.speculation.draft_share * t.speculation.draft_steps
        tpot = decode.decode[key] * e.decode_factor * (1.0 + drafting) / t.speculation.accepted
        launch = e.prefill_launch * prefill.launches
        own = (prefill.prefill[key] + launch) * prefill.rounds
        packed = (prefill.packed[key] + launch) * prefill.rounds / prefill.together
        first = 1.0 / load.rounds
        ttft = (1.0 - first) * own + first * np.maximum((each + 1.0) / 2.0 * packed, own)
        step = tpot * (t.speculation.accepted if e.name == "trtllm" else 1.0)  # it counts passes
        ttft = ttft + e.pass_wait * tpot + one.wait * step + e.request_host
        queue = np.maximum(each * packed - load.osl * tpot, 0.0)
        out[end] = (ttft + queue, tpot)
    (ttft, tpot), (first_low, low), (first_high, high) = (out[x] for x in ("", "_low", "_high"))
    out["_low"] = (np.minimum(first_low, ttft * e.ttft_low), np.minimum(low, tpot * e.tpot_low))
    out["_high"] = (np.maximum(first_high, ttft * e.ttft_high),
                    np.maximum(high, tpot * e.tpot_high))  # fmt: skip
    return out
