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
from .engine import Engine, engine
from .queueing import Load, Phases, serve
from .solve import Points, phases_of_all

__all__ = ["MTP", "Row", "answer_rows", "rows_of"]

F64 = npt.NDArray[np.float64]
MEAN_LENGTH = 0.9
"""InferenceX draws lengths uniformly between 0.8 and 1 of what it names (random-range-ratio)."""
MTP = Speculation(verified=2.0, accepted=1.8, draft_share=1.0 / 61.0, draft_steps=1.0)
"""One drafted token: 85 to 90 % of them are accepted, 1.8 times the tokens per second
(DeepSeek-V3 report, arXiv:2412.19437, section 5.4.3); the module is one of 62 layers."""
_INFERENCEX = "inferencex"
_NVL = 72  # devices that one NVLink domain of GB200 and GB300 joins
# Decode passes that InferenceX's own scripts make a request wait for: the scheduler of SGLang looks
# for new requests every 10 (below 16 in flight) or 30 passes on Blackwell
# (--scheduler-recv-interval), TensorRT-LLM's attention groups wait for one another
# (attention_dp_config timeout_iters 60, both at the published recipes of 2025 and 2026).
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
    drafted = r["speculative"] == "mtp"
    own = Treatment(speculation=MTP) if drafted else Treatment()
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


def _scenario(
    r: Mapping[str, object], value: Mapping[str, float], side: str, t: Treatment
) -> Scenario:
    sizes = {n: max(int(value[side + n]), 1) for n in ("tp", "pp", "dp", "ep")
             if np.isfinite(value[side + n])}  # fmt: skip
    near = _NVL if str(r["hardware"]).startswith("gb") else 8
    layout = Layout(**sizes, gpus_per_node=near)
    return Scenario(
        _model(str(r["model"])), str(r["hardware"]), layout.devices, layout,
        engine=str(r["engine"]), dtype=str(r["gemm_format"]), experts=str(r["moe_format"]),
        kv_dtype=_cache(r), techniques=t,
    )  # fmt: skip


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
    return _GROUPS_WAIT if r["engine"] == "trtllm" and groups else 0.0


def answer_rows(rows: Sequence[Row | str], *, change: Engine | None = None) -> Table:
    """Predict rows: ttft_s and tpot_s with _low and _high, and a reason where there is none.

    Rows of one machine and layout are solved together. `change` replaces every engine's fitted
    constants by its own (for fitting).
    """
    n = len(rows)
    names = ("ttft_s", "ttft_low_s", "ttft_high_s", "tpot_s", "tpot_low_s", "tpot_high_s")
    out: Table = {name: np.full(n, np.nan) for name in names}
    out["reason"] = np.array([r if isinstance(r, str) else "" for r in rows], dtype=object)
    groups: dict[object, list[int]] = {}
    for i, row in enumerate(rows):
        if isinstance(row, Row):
            groups.setdefault((row.scenario, row.prefill), []).append(i)
    for members in groups.values():
        at = np.array(members)
        try:
            _fill(out, at, [r for r in (rows[i] for i in members) if isinstance(r, Row)], change)
        except RidgecastError as error:
            out["reason"][at] = str(error)
    return out


def _fill(
    out: Table, at: npt.NDArray[np.int64], rows: Sequence[Row], change: Engine | None
) -> None:
    """Answer rows of one machine."""
    first = rows[0]
    made = _made(first.scenario, change)
    batch, isl, osl = (np.array([getattr(r, n) for r in rows]) for n in ("batch", "isl", "osl"))
    share = np.array([r.workers[1] for r in rows])
    here = np.maximum(np.round(batch / share), 1.0)
    points = Points.of(here, isl, osl)  # what memory held its campaigns do not say: all of them
    cases = [(made, first.scenario, points)]
    before: Made | None = None
    if first.prefill is not None:
        before = _made(first.prefill, change)
        cases.append((before, first.prefill, Points.of(here, isl, osl)))
    phases = [p for p, _ in phases_of_all(cases)]
    wait = np.array([r.wait for r in rows])
    rounds = np.array([r.rounds for r in rows])
    load = Load(points.batch, points.running, osl, made.layout.dp, rounds)
    if before is None:
        # waits differ by row: the profile's own, and what the scripts add
        served = serve(phases[0], load, made.engine, made.treatment)
        step = made.treatment.speculation.accepted
        for i, end in enumerate(("", "_low", "_high")):
            tpot = served.tpot[i]
            out[f"tpot{end}_s"][at] = tpot
            out[f"ttft{end}_s"][at] = served.ttft[i] + wait * tpot * (step if wait.any() else 1.0)
        return
    sides = np.array([r.workers for r in rows])
    for end, values in _apart(phases, load, made, before, sides, batch, wait).items():
        out[f"ttft{end}_s"][at], out[f"tpot{end}_s"][at] = values


def _apart(
    phases: Sequence[Phases], load: Load, made: Made, before: Made, sides: F64, batch: F64,
    wait: F64,
) -> dict[str, tuple[F64, F64]]:  # fmt: skip
    """Give times of prefill and decode apart: a decode worker never stops for a prompt.

    Prompts queue at the prefill workers' groups, of which each serves one at a time; when they
    are the bottleneck, Little's law gives the wait: all requests in flight less those decoding.
    """
    decode, prefill = phases
    e, t = made.engine, made.treatment
    out = {}
    groups = sides[:, 0] * before.layout.dp
    each = batch / groups
    for end, key in (("", "time"), ("_low", "low"), ("_high", "high")):
        step = decode.decode[key] * e.decode_factor
        tpot = step * (1.0 + t.speculation.draft_share * t.speculation.draft_steps)
        tpot = tpot / t.speculation.accepted
        launch = e.prefill_launch * prefill.launches
        own = (prefill.prefill[key] + launch) * prefill.rounds
        packed = (prefill.packed[key] + launch) * prefill.rounds / prefill.together
        first = 1.0 / load.rounds
        ttft = (1.0 - first) * own + first * np.maximum((each + 1.0) / 2.0 * packed, own)
        ttft = ttft + (e.pass_wait + wait) * tpot + e.request_host
        queue = np.maximum(each * packed - load.osl * tpot, 0.0)
        out[end] = (ttft + queue, tpot)
    return out


def _made(s: Scenario, change: Engine | None) -> Made:
    made = s.made()
    if change is None:
        return made
    own = engine(str(s.engine))
    fitted = ("decode_factor", "prefill_launch", "pass_wait", "stall")
    return replace(made, engine=replace(own, **{n: getattr(change, n) for n in fitted}))
