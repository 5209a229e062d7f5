"""AIConfigurator's table of measured serving points: TTFT and TPOT of language models on GPUs.

Source: github.com/ai-dynamo/aiconfigurator, Apache-2.0: one CSV, a row a point. Most rows come from
InferenceX (formerly InferenceMAX) in three exports, so that many points stand there two or three
times under other names. Owns reading those rows; what the columns of each export mean was worked
out from rows that stand in several of them, as said at each function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..schema import add_reason, canonical, invalidate, validate
from ..tables import Table, length, map_text, numeric, text
from .base import Importer, Request, devices, dtypes
from .inferencex import fill

__all__ = ["SERVING"]

# an export is known by the text in silicon_data_source
_EXPORTS = (
    ("inferencex_dump", "db-dump/"), ("inferencex_0325", "2026-03-25"),
    ("inferencex_0406", "2026-04-06"), ("inferencex_gap", "gap-analysis"),
    ("aiperf", "gtl_"), ("local", "local file"),
)  # fmt: skip
_PART = ("tp", "pp", "dp", "moe_tp", "ep")
_THEIRS = {"tp": "tp_size", "pp": "pp_size", "dp": "attention_dp_size", "moe_tp": "moe_tp_size",
           "ep": "moe_ep_size"}  # fmt: skip
_SIDES = ("", "prefill_", "decode_")


def serving(table: Table, request: Request) -> Table:
    """Rows of measured serving points under our names, SI units; copies are marked, none is lost.

    `time_s` is the time per output token. Layout columns are those of one worker: devices =
    tp * dp * pp = moe_tp * ep * pp; for disaggregated rows they carry prefill_ or decode_ in front,
    and `devices` counts all workers of both sides. NaN is a number that the source does not hold.
    `concurrency` is the number of requests in flight at all `replicas` of an aggregated engine.
    `speculative` and some layouts come from the recipes of the campaign, see `inferencex`.
    Raises nothing for bad rows: they stay, with `valid` false and a reason.
    """
    table = {name.strip(): column for name, column in table.items()}
    rows = length(table)
    names, notes = devices(table["system"])
    given = _given(table)
    export = map_text(table["silicon_data_source"], _export)
    layout = _layout(table, export, given)
    ttft, tpot = (numeric(table, f"silicon_{n}_ms")[0] * 1e-3 for n in ("ttft", "tpot"))
    gemm, moe = _formats(table)
    out = canonical(
        rows, op="serving", hardware=names, dtype=gemm, time_s=tpot, cache="unknown",
        launch="unknown", source_file=request.name, licence="Apache-2.0", collection=export,
    )  # fmt: skip
    out |= {
        "id": _texts(table, "id"), "model": _texts(table, "model_path"),
        "engine": _texts(table, "backend"), "engine_version": _texts(table, "backend_version"),
        "image": _found(table, r"image=([^;]+)|; ([^;=\s]+/[^;=\s]+:[^;=\s]+)$"),
        "measured": _found(table, r"measured=(\d{4}-\d\d-\d\d)"),
        "config_id": _found(table, r"config_id=(\d+)"),
        "isl": given["isl"], "osl": given["osl"], "gemm_format": gemm, "moe_format": moe,
        "ttft_s": ttft, "tpot_s": tpot, **layout,
    }  # fmt: skip
    add_reason(out, notes != "", "device is not in the catalogue")
    out = validate(out)
    _check(out)
    return _mark_copies(fill(out))


def _given(table: Table) -> dict[str, np.ndarray]:
    """All numbers of the table by the source's names, NaN where a column or cell is missing."""
    nothing = np.full(length(table), np.nan)
    names = [f"{side}{name}" for side in _SIDES for name in _THEIRS.values()]
    names += [f"{side}{name}" for side in _SIDES for name in ("batch_size", "num_workers")]
    out = {name: numeric(table, name)[0] if name in table else nothing for name in names}
    out["isl"], out["osl"] = numeric(table, "isl")[0], numeric(table, "osl")[0]
    digits = _found(table, r"silicon_concurrency=(\d+)")
    out["concurrency"] = numeric({"c": digits}, "c")[0]
    for name in ("tp", "ep"):  # "..._tp4_0_ep1_0_37" in the row's name: as InferenceX stated it
        pattern = rf"_{name}(\d+)(?:_\d)?_"
        found = map_text(_texts(table, "id"), lambda t, p=pattern: _first(p, t))
        out[f"id_{name}"] = numeric({"c": found}, "c")[0]
    return out


def _layout(table: Table, export: np.ndarray, given: dict[str, np.ndarray]) -> Table:
    mode = _texts(table, "mode")
    from_x = map_text(export, lambda e: e.startswith("inferencex")).astype(bool)
    hidden = from_x & _is_total(table, given)
    aggregated = (mode == "agg") & ~hidden
    one = _aggregated(given, from_x)
    out: Table = {"mode": np.where(aggregated, "agg", "disagg").astype(object)}
    for name, column in one.items():
        out[name] = np.where(aggregated, column, np.nan)
    complete = np.isfinite(given["decode_num_workers"]) & ~hidden
    for side in _SIDES[1:]:
        out |= _side(given, side, complete, ~aggregated & ~hidden)
    total = sum(out[f"{s}workers"] * out[f"{s}devices"] for s in _SIDES[1:])
    total = np.where(hidden, given["id_tp"], total)
    batch, stated = given["batch_size"], given["concurrency"]
    # elsewhere than at InferenceX one endpoint may stand before several equal workers
    several = np.round(stated / (batch * out["dp"]))
    several = np.where(~from_x & (several > 1), several, 1.0)
    out["replicas"] = np.where(aggregated, several, np.nan)
    out["devices"] = np.where(aggregated, one["devices"] * several, total)
    # a dozen rows state no concurrency: what their attention groups hold, all together
    held = np.where(
        aggregated, batch * one["dp"], given["decode_batch_size"] * given["decode_num_workers"]
    )
    out["concurrency"] = np.where(np.isfinite(stated), stated, held)
    return out


def _is_total(table: Table, given: dict[str, np.ndarray]) -> np.ndarray:
    """Rows of GB200 whose one number of devices counts all workers of a disaggregated service.

    InferenceX's first results of Dynamo on GB200 gave one number (12 = 4 + 8 ... 72), which one
    export repeats for both sides and, for other rows, files as one aggregated engine.
    """
    grace = map_text(_texts(table, "system"), lambda t: t.startswith("gb")).astype(bool)
    both = given["prefill_tp_size"] == given["decode_tp_size"]
    return grace & (given["id_tp"] > 8) & (both | (_texts(table, "mode") == "agg"))


def _aggregated(given: dict[str, np.ndarray], from_x: np.ndarray) -> Table:
    """Layout of one engine.

    InferenceX states T devices, E expert groups and whether attention is data parallel. Its
    exports of April write T E into tp_size (or into attention_dp_size) and T, E into the two MoE
    sizes: the same point, to all digits of both values, is tp 8, moe 1 x 8 in the March export and
    tp 64, moe 8 x 8 in the others. T and E are taken from the row's name, or where that has none
    from the MoE sizes; data parallel rows of vLLM give tp = dp = T there. batch_size is
    concurrency / attention_dp_size, hence too small where that size is T E.
    """
    tp, dp = given["tp_size"], given["attention_dp_size"]
    moe_tp, ep = given["moe_tp_size"], given["moe_ep_size"]
    split = dp > 1
    twice = split & (tp == dp)
    t = np.where(np.isfinite(given["id_tp"]), given["id_tp"], np.where(twice, tp, moe_tp))
    e = np.where(np.isfinite(given["id_ep"]), given["id_ep"], np.where(twice, tp, ep))
    t, e = np.maximum(t, 1), np.clip(e, 1, np.maximum(t, 1))
    known = from_x & np.isfinite(t) & np.isfinite(e)
    # elsewhere the sizes are AIConfigurator's own, 0 or nothing where it does not apply; dense
    # models have 1 x 1 for experts; experts over more devices than tp mean attention groups
    own_tp, own_moe, own_ep = (np.where(v >= 1, v, 1.0) for v in (tp, moe_tp, ep))
    own_dp = np.maximum(np.where(dp >= 1, dp, 1.0), np.floor(own_moe * own_ep / own_tp))
    return {
        "tp": np.where(known, np.where(split, 1.0, t), own_tp),
        "pp": np.where(given["pp_size"] >= 1, given["pp_size"], 1.0),
        "dp": np.where(known, np.where(split, t, 1.0), own_dp),
        "moe_tp": np.where(known, t / e, own_tp * own_dp / own_ep),
        "ep": np.where(known, e, own_ep),
        "devices": np.where(known, t, own_tp * own_dp) * np.maximum(given["pp_size"], 1),
    }


def _side(given: dict[str, np.ndarray], side: str, full: np.ndarray, here: np.ndarray) -> Table:
    """Layout of one side of disaggregated rows (`here`), `full` where the row states all of it.

    Rows that state the number of workers state everything. The others are right about the devices
    of a worker only (points that stand in both show it): attention's split is always 1, the
    decode side repeats the expert groups of the prefill side, and 1 x 1 stands for unknown.
    """
    part = {name: given[side + theirs] for name, theirs in _THEIRS.items()}
    worker = part["tp"] * np.maximum(part["dp"], 1) * np.maximum(part["pp"], 1)
    blank = (given["prefill_tp_size"] == 1) & (given["decode_tp_size"] == 1)
    out = {f"{side}{n}": np.where(full & here, part[n], np.nan) for n in _PART}
    known = here & (full | ~blank)
    out[f"{side}devices"] = np.where(known, worker, np.nan)
    out[f"{side}workers"] = np.where(full & here, given[f"{side}num_workers"], np.nan)
    out[f"{side}batch"] = np.where(full & here, given[f"{side}batch_size"], np.nan)
    return out


def _formats(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Read the formats of linear layers and of experts; nothing stated means bf16.

    gpt-oss is stated as nvfp4 (or fp8): its published checkpoint, the only one served, holds the
    experts in mxfp4 and all else in bf16.
    """
    model = _texts(table, "model_path")
    oss = map_text(model, lambda m: "gpt-oss" in m.lower()).astype(bool)
    gemm, moe = (dtypes(_texts(table, f"{n}_quant_mode")) for n in ("gemm", "moe"))
    gemm = np.where(oss | (gemm == ""), "bf16", gemm).astype(object)
    return gemm, np.where(oss, "mxfp4", np.where(moe == "", "bf16", moe)).astype(object)


def _check(out: Table) -> None:
    """Rows that say how they were run, and nothing else."""
    for name in ("isl", "osl", "concurrency"):
        wrong = ~((out[name] >= 1) & np.isfinite(out[name]))
        invalidate(out, wrong, f"{name} is not a number from 1")
    invalidate(out, ~((out["ttft_s"] > 0) & np.isfinite(out["ttft_s"])), "no time to first token")
    whole = out["tp"] * out["dp"] * out["pp"]
    odd = (out["mode"] == "agg") & (whole * out["replicas"] != out["devices"])
    add_reason(out, odd, "tp * dp * pp is not the number of devices")


def _mark_copies(out: Table) -> Table:
    """Mark all but one of the rows that are one measurement.

    Rows that agree in engine, device, lengths, concurrency and to 1 us in TTFT and 0.1 us in TPOT
    are copies: a repeated measurement agrees in neither. The row with the best known layout stays.
    The rows of one export, which rounds both to 10 us, are compared so.
    """
    groups: dict[Any, list[int]] = {}
    coarse: dict[Any, Any] = {}
    rounded = out["collection"] == "inferencex_gap"  # that export rounds to 0.01 ms
    for row in sorted(range(length(out)), key=lambda row: bool(rounded[row])):
        point = tuple(out[n][row] for n in ("engine", "hardware", "isl", "osl", "concurrency"))
        ttft, tpot = float(out["ttft_s"][row]), float(out["tpot_s"][row])
        key, near = ((*point, round(ttft, 6 - i), round(tpot, 7 - 2 * i)) for i in (0, 1))
        if rounded[row]:
            key = coarse.get(near, key)
        coarse.setdefault(near, key)
        groups.setdefault(key, []).append(row)
    known = np.isfinite(out["devices"]) * 1.0 + 2.0 * out["valid"]
    known += np.isfinite(out["decode_workers"]) - 0.1 * (out["collection"] == "inferencex_dump")
    copies = np.ones(length(out))
    for members in groups.values():
        best = max(members, key=lambda row: known[row])
        copies[best] = len(members)
        for row in members:
            if row != best:
                mark = np.zeros(len(copies), dtype=bool)
                mark[row] = True
                invalidate(out, mark, f"copy of {out['id'][best]}")
    return {**out, "copies": copies}


def _export(source: str) -> str:
    return next((name for name, mark in _EXPORTS if mark in source), "other")


def _texts(table: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in table:
        return text("", length(dict(table)))
    return map_text(table[name], lambda t: "" if t.lower() == "nan" else t.strip())


def _found(table: Table, pattern: str) -> np.ndarray:
    return map_text(table["silicon_data_source"], lambda t: _first(pattern, t))


def _first(pattern: str, whole: str) -> str:
    found = re.search(pattern, whole)
    return next((g for g in found.groups() if g), "") if found else ""


SERVING = Importer(
    "aiconfigurator_serving",
    "AIConfigurator's measured serving points (CSV)",
    ("silicon_data_source", "backend", "model_path", "system", "mode", "isl", "osl", "batch_size",
     "tp_size", "silicon_ttft_ms", "silicon_tpot_ms"),
    serving,
)  # fmt: skip
