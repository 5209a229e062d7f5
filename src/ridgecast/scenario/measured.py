"""Answers for measured serving points: one scenario a row, many rows at once.

Owns how a row of `store.importers.aiconfigurator_serving` becomes scenarios, aggregated or with
prefill and decode apart, and what is known of how the points were measured. Fits nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..errors import RidgecastError, SpecError
from ..models.network import Layout
from ..models.registry import shipped
from ..store.tables import Table
from ..techniques.treatment import Speculation, Treatment
from .apart import Apart, Clients, apart_of, balance
from .case import Made, Scenario
from .engine import engine
from .queueing import Load, Phases, serve
from .solve import Points, phases_of_all

__all__ = ["Prepared", "Row", "answer", "answer_rows", "prepare", "rows_of"]

F64 = npt.NDArray[np.float64]
MEAN_LENGTH = 0.9
"""InferenceX draws lengths uniformly between 0.8 and 1 of what it names (random-range-ratio)."""
# Tokens that a pass of DeepSeek-V3 adds when its one module drafts 1, 2 or 3. One: 1.8 times the
# tokens per second (DeepSeek-V3 report, arXiv:2412.19437, section 5.4.3). More: the module drafts
# on what it drafted; 2.18 and 2.44 with windows of 3 and 4 tokens in SGLang (LMSYS, "Accelerating
# SGLang with Multiple Token Prediction", 17 July 2025).
_ACCEPTED = {1.0: 1.8, 2.0: 2.18, 3.0: 2.44}
_NEWEST = {"sglang": "0.5.10"}  # releases when the campaigns ended (April 2026), if of consequence
_PUBLISHED = {"nvfp4": "-nvfp4", "fp8_e4m3": "-fp8"}  # how checkpoints in a format are named
_ALIKE = {"deepseek-v3": "deepseek-r1"}  # exports name R1's runs so, too
_MODULE = 1.0 / 61.0  # one of 62 layers
_INFERENCEX = "inferencex"
_NVL = 72  # devices that one NVLink domain of GB200 and GB300 joins
# Decode passes that InferenceX's own scripts make a request wait for (published recipes of 2025
# and 2026): the scheduler of SGLang looks for new requests every 10 (below 16 in flight) or 30
# passes on Blackwell (--scheduler-recv-interval), half of it on average; TensorRT-LLM's attention
# groups wait for one another in the scripts of DeepSeek (attention_dp_config timeout_iters 60).
_RECEIVE = (5.0, 15.0)
_GROUPS_WAIT = 60.0
# Points of other campaigns have fixed lengths. TensorRT-LLM's of the largest of them ("local") kept
# one request more in flight than it ran, which waits for a slot: this share of osl / batch passes
# (fitted on Llama-3.1-8B and Qwen3-32B). SGLang's sequences end together, so that every wave starts
# with all prompts at once (Qwen3-32B: one round), but those of 8B models are out of step
# (Llama-3.1-8B: endless rounds).
_SLOT = 0.8
# Seconds of the host a pass on the machines of other campaigns, whichever engine (fitted like the
# profiles' pass_host, on the same networks; 1.1 to 1.2 ms with one left out)
_OTHER_HOST = 1.0e-3
# Where the workers of a row are those of the nearest recipe: half of what holds 90 % of log(time
# predicted with the nearest / with the true recipe), tpot and ttft, of 381 rows whose recipe is
# known and was hidden with all of its concurrency (benchmarks/serving_doubt.py; no measured time)
_NEAREST = (0.48, 1.92)
# SGLang and vLLM apart: a decode worker sends nothing before its stream interval is full (50
# passes, 20 at low latency); TensorRT-LLM sends the first token at once (py_executor.py)
_STREAM = (50.0, 20.0)
# TensorRT-LLM's attention groups wait for one another, up to attention_dp_time_out_iters passes
# (_torch/pyexecutor/config.py, where a recipe says nothing): half of it on average
_BALANCE = 50.0
# TensorRT-LLM's batch_wait_timeout_iters: prompts are held back for so many passes, so that they
# share one (InferenceMAX, 70b_fp8_*_trt scripts: 1k/1k on fewer than 8 devices)
_TOGETHER = 20.0


@dataclass(frozen=True, slots=True)
class Row:
    """One measured point as scenarios: the part that decodes, the part that prefills, its load.

    `scenario` is that of one aggregated replica or decode worker, `prefill` that of a prefill
    worker (None: aggregated). `batch` requests are in flight on the replica (all decode workers
    together where apart), `workers` (prefill, decode) there are; `wait` decode passes are waited
    for besides what the engine's profile says; `rounds` requests each client sends; `slots`
    sequences a decode worker holds at once. `doubt`: half of the 90 % intervals of log tpot and log
    ttft for what the row does not say.
    """

    scenario: Scenario
    prefill: Scenario | None
    batch: float
    isl: float
    osl: float
    workers: tuple[float, float]
    wait: float
    rounds: float
    slots: float
    doubt: tuple[float, float]


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
    own = Treatment(speculation=_drafting(r, value, apart and fast))
    side = "decode_" if apart else ""
    if not np.isfinite(value[side + "tp"]):
        raise ValueError("its layout is not known")
    decode = _scenario(r, value, side, own)
    prefill = _scenario(r, value, "prefill_", Treatment()) if apart else None
    replicas = value["replicas"] if np.isfinite(value.get("replicas", np.nan)) else 1.0
    workers = (value["prefill_workers"], value["decode_workers"]) if apart else (1.0, 1.0)
    batch = value["concurrency"] / (1.0 if apart else max(replicas, 1.0))
    waves = r["engine"] == "sglang" and not fast and not apart
    steady = "8b" in str(r["model"]).lower()
    rounds = (np.inf if steady else 1.0) if waves else 10.0
    slots = value.get("decode_slots", np.nan)
    slots = slots if np.isfinite(slots) else np.inf
    wait = _wait_apart(r, value) if apart else _wait(r, value, batch, fast)
    doubt = _doubt(r, own)
    return Row(decode, prefill, batch, isl, osl, workers, wait, rounds, slots, doubt)


def _drafting(r: Mapping[str, object], value: Mapping[str, float], unsaid: bool) -> Speculation:
    """Drafting of a row; where either may have been, DeepSeek's module counts half.

    InferenceX's scripts draft 3 tokens a pass, 1 with data-parallel attention, where a recipe does
    not say. Disaggregated recipes of DeepSeek exist with drafting and without, for most loads.
    """
    drafted = value.get("drafted", np.nan)
    groups = np.fmax(value.get("dp", 1.0), value.get("decode_dp", 1.0))  # NaN: not this side
    drafted = drafted if drafted in _ACCEPTED else (1.0 if groups > 1 else 3.0)
    if r["speculative"] == "mtp":
        return Speculation(1.0 + drafted, _ACCEPTED[drafted], _MODULE, drafted)
    unsaid = (unsaid and not r["speculative"]) or r["speculative"] == "either"
    if unsaid and "deepseek" in str(r["model"]).lower():
        share = 0.5 * drafted * _MODULE
        return Speculation((1.0 + drafted) ** 0.5, _ACCEPTED[drafted] ** 0.5, share, 1.0)
    return Speculation()


def _doubt(r: Mapping[str, object], own: Treatment) -> tuple[float, float]:
    """Half widths for unstated drafting (from all to none) and unstated workers, as independent."""
    unsaid = r["speculative"] in ("", "either") and own.speculation.accepted > 1.0
    drafting = float(np.log(own.speculation.accepted)) if unsaid else 0.0
    near = _NEAREST if r.get("layout_source") == "nearest" else (0.0, 0.0)
    return float(np.hypot(drafting, near[0])), float(np.hypot(drafting, near[1]))


def _scenario(
    r: Mapping[str, object], value: Mapping[str, float], side: str, t: Treatment
) -> Scenario:
    sizes = {n: max(int(value[side + n]), 1) for n in ("tp", "pp", "dp", "ep")
             if np.isfinite(value[side + n])}  # fmt: skip
    near = _NVL if str(r["hardware"]).startswith("gb") else 8
    layout = Layout(**sizes, gpus_per_node=near)
    model, linear, experts = _checkpoint(r)
    software = engine(str(r["engine"]))
    software = replace(software, release=_release(software.name, str(r["engine_version"])))
    if not str(r["collection"]).startswith(_INFERENCEX):
        software = replace(software, pass_host=_OTHER_HOST)
    return Scenario(
        model, str(r["hardware"]), layout.devices, layout, engine=software, dtype=linear,
        experts=experts, kv_dtype=_cache(r), techniques=t,
    )  # fmt: skip


def _release(name: str, stated: str) -> str:
    """Release of a row's software; builds without a number are not newer than the campaigns."""
    return stated if re.match(r"\d+\.\d", stated) else _NEWEST.get(name, "")


def _checkpoint(r: Mapping[str, object]) -> tuple[str, str, str]:
    """Network of a row, formats of its linear layers and of its experts ("": as published).

    A format that the network is published in means that checkpoint: most in nvfp4 leave attention
    in 16 bits.
    """
    model = _model(str(r["model"]))
    tail = _PUBLISHED.get(str(r["gemm_format"]))
    try:
        if tail:
            name = shipped(model).removesuffix(tail)
            return shipped(_ALIKE.get(name, name) + tail), "", ""
    except SpecError:
        pass  # this network has no such checkpoint of its own
    return model, _linear(r), str(r["moe_format"])


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


def _wait_apart(r: Mapping[str, object], value: Mapping[str, float]) -> float:
    """Decode passes that a request waits for at a decode worker."""
    shared = value.get("decode_dp", 1.0) > 1
    if r["engine"] == "trtllm":
        return 0.5 * _BALANCE if shared else 0.0
    return _STREAM[0] if shared else _STREAM[1]


def _wait(r: Mapping[str, object], value: Mapping[str, float], batch: float, fast: bool) -> float:
    """Decode passes that a request waits for by the measuring scripts' own settings."""
    groups = value.get("dp", 1.0) > 1
    if not fast:
        late = r["engine"] == "trtllm" and r["collection"] == "local"
        return _SLOT * value["osl"] / batch if late else 0.0
    blackwell = str(r["hardware"]) in ("b200_sxm", "b300_sxm")
    if r["engine"] == "sglang" and blackwell and "glm" not in str(r["model"]).lower():
        return _RECEIVE[0] if batch < 16 else _RECEIVE[1]
    if r["engine"] != "trtllm":
        return 0.0
    model, arrivals = str(r["model"]).lower(), batch / (value["osl"] * MEAN_LENGTH)
    short = value["isl"] == value["osl"] == 1024
    if short and value["tp"] < 8 and "llama" in model:
        return _held(_TOGETHER, arrivals)
    return _GROUPS_WAIT if groups and "deepseek" in model else 0.0


def _held(passes: float, arrivals: float) -> float:
    """Mean passes that prompts are held back: the first for all, those that join it for half."""
    more = passes * arrivals
    return passes * (1.0 + 0.5 * more) / (1.0 + more)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows of one machine with their passes timed; `answer` makes requests of them."""

    at: npt.NDArray[np.int64]
    made: Made
    phases: Phases | tuple[Apart, Clients]
    load: Load
    wait: F64
    doubt: F64


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
    batch, isl, osl, wait, rounds, slots = (
        np.array([getattr(r, n) for r in rows])
        for n in ("batch", "isl", "osl", "wait", "rounds", "slots")
    )
    # what memory held its campaigns do not say: all of them
    points = Points.of(np.maximum(np.round(batch), 1.0), isl, osl)
    load = Load(points.batch, points.running, osl, made.layout.dp, rounds)
    doubt = np.array([r.doubt for r in rows]).T
    if first.prefill is None:
        ((phases, _),) = phases_of_all([(made, first.scenario, points)])
        return Prepared(at, made, phases, load, wait, doubt)
    before = first.prefill.made()
    sides = np.array([r.workers for r in rows]).T
    clients = Clients(batch, sides[0] * before.layout.dp, sides[1], slots, osl)
    found = apart_of((made, first.scenario), (before, first.prefill), points, clients)
    return Prepared(at, made, (found, clients), load, wait, doubt)


def answer(
    prepared: Sequence[Prepared],
    reasons: Sequence[str],
    constants: Mapping[str, float] | None = None,
) -> Table:
    """Make times of prepared rows; `constants` replace those of every engine (for fitting).

    Host time of passes is as prepared; a constant shifts those of aggregated rows.
    """
    names = ("ttft_s", "ttft_low_s", "ttft_high_s", "tpot_s", "tpot_low_s", "tpot_high_s")
    out: Table = {name: np.full(len(reasons), np.nan) for name in names}
    out["reason"] = np.array(list(reasons), dtype=object)
    for one in prepared:
        made = one.made
        phases = one.phases
        if constants:
            more = constants.get("pass_host", made.engine.pass_host) - made.engine.pass_host
            made = replace(made, engine=replace(made.engine, **constants))
            phases = phases if isinstance(phases, tuple) else _later(phases, more)
        if isinstance(phases, tuple):  # prefill and decode apart
            found = _apart(one, made, *phases)
        else:
            served = serve(phases, one.load, made.engine, made.treatment)
            ends = zip(("", "_low", "_high"), served.ttft, served.tpot, strict=True)
            found = {e: (t + one.wait * tpot * made.treatment.speculation.accepted, tpot)
                     for e, t, tpot in ends}  # fmt: skip
        for end, values in found.items():
            out[f"ttft{end}_s"][one.at], out[f"tpot{end}_s"][one.at] = values
    return out


def _later(p: Phases, more: float) -> Phases:
    """Give passes more seconds of the host each."""
    ends = ("time", "low", "high")
    moved = {
        name: {**getattr(p, name), **{end: getattr(p, name)[end] + more for end in ends}}
        for name in ("decode", "prefill", "packed", "mixed")
    }
    return replace(p, **moved)


def _apart(one: Prepared, made: Made, passes: Apart, c: Clients) -> dict[str, tuple[F64, F64]]:
    """Give times of prefill and decode apart: a decode worker never stops for a prompt.

    In the first round, in which all clients start at once, a prompt waits for half of all others.
    """
    e, spec = made.engine, made.treatment.speculation
    out = {}
    for end, key in (("", "time"), ("_low", "low"), ("_high", "high")):
        t = balance(passes, c, key, made)
        each = c.requests / c.groups
        first = 1.0 / c.rounds
        burst = np.maximum((each + 1.0) / 2.0 * t.full, t.prefill)
        prefill = (1.0 - first) * (t.prefill + t.queue) + first * np.maximum(burst, t.queue)
        ttft = prefill + t.slot + e.request_host
        ttft = ttft + (e.pass_wait * spec.accepted + one.wait) * t.tpot
        out[end] = (ttft, t.tpot)
    (ttft, tpot), (first_low, low), (first_high, high) = (out[x] for x in ("", "_low", "_high"))
    each, begin = one.doubt
    out["_low"] = (np.minimum(first_low, ttft * _wider(e.ttft_low, begin)),
                   np.minimum(low, tpot * _wider(e.tpot_low, each)))  # fmt: skip
    out["_high"] = (np.maximum(first_high, ttft * _wider(e.ttft_high, begin)),
                    np.maximum(high, tpot * _wider(e.tpot_high, each)))  # fmt: skip
    return out


def _wider(factor: float, doubt: F64) -> F64:
    """Factor of an interval's end with a doubt besides that is independent of it."""
    end = np.log(factor)
    return np.exp(np.sign(end) * np.hypot(end, doubt))
