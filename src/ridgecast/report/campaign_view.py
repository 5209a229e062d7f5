"""A campaign of measurements as a view: what was measured, what could not be, and how far off.

Owns which numbers are shown and what is said beside. Measured rows are shown as they are, with
predictions of the same points beside them; reading them is `campaign_rows`' work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..store import Table, length
from ..units import format_field
from .campaign_figures import (
    against_prediction,
    configuration_text,
    families,
    power_by_size,
    rate_by_size,
    shape_text,
    status_figure,
    time_by_size,
)
from .campaign_rows import Campaign, column, devices_of, is_campaign, read_campaign, texts
from .reports import is_study, reports_in
from .view import Block, Fact, Facts, Heading, Rows, View, Words

__all__ = ["campaign_view", "is_campaign", "is_study", "reports_in"]

MOST_ROWS = 500
_MOST_REASONS = 50
_BUSY = 0.5  # load per core from which on a machine counts as busy (assumed)


_SCORED = (
    "Errors are |predicted / measured - 1| of valid times; coverage is the share inside the 90 % "
    "interval. The basis of each prediction stands among the results."
)


def campaign_view(folder: Path) -> View:
    """Show what a campaign measured, what it could not, and how far predictions are off.

    Raises NoDataError for a folder without measured rows.
    """
    found = read_campaign(folder)
    counts = Counter(found.status)
    reasons = _reasons(found)
    rows = _rows(found)
    blocks: list[Block] = [_facts(found, counts)]
    warnings = _warnings(found, counts)
    if warnings:
        blocks.append(Words(tuple(warnings), tone="warning", listed=len(warnings) > 1))
    figures = [status_figure(found), against_prediction(found), time_by_size(found),
               rate_by_size(found)]  # fmt: skip
    if _asked_energy(found.table):
        figures.append(power_by_size(found))
    blocks += [f for f in figures if f.name != "status" or not f.reason]
    told = (
        ("agreement", "Predicted against measured", _agreement(found), _SCORED),
        ("reasons", "Why points are missing or flagged", reasons, ""),
    )
    blocks += [Rows(name, title, held, caption=text) for name, title, held, text in told if held]
    caption = f"{len(rows)} of {length(found.table):,} points, evenly spread over the plan; the " \
              "shards hold all." if len(rows) < length(found.table) else ""  # fmt: skip
    blocks.append(Rows("results", "Results", rows, caption=caption, headings=_HEADINGS))
    blocks.append(Heading("Where and how it was measured"))
    for record in found.records:
        blocks.append(_environment(record))
    commands = [str(r.get("command", "")) for r in found.records]
    devices = devices_of(found.records) or sorted(set(texts(found.table, "device")))
    return View(
        "campaign", f"{folder.name}: {', '.join(devices)}", tuple(blocks),
        lead=f"{length(found.table):,} points of {_kernels(found.table)}, measured.",
        answer=_answer(found, counts, reasons),
        command=next((c for c in commands if c.startswith("ridgecast ")), ""),
    )  # fmt: skip


def _answer(
    found: Campaign, counts: Mapping[str, int], reasons: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "folder": found.folder.name, "asked": found.asked,
        **{name: counts.get(name, 0) for name in _STATUS},
        "waiting": found.asked - length(found.table), "skipped": list(found.skipped),
        "reasons": list(reasons), "agreement": _agreement(found),
        "environments": [record.get("environment") for record in found.records],
    }  # fmt: skip


def _kernels(table: Table) -> str:
    names = sorted(set(texts(table, "kernel")))
    return f"kernel{'s' if len(names) > 1 else ''} {', '.join(names)}"


_STATUS = {
    "ok": "measured, no rule broken", "invalid": "measured, but a rule of the protocol was broken",
    "failed": "did not build, run or compute the right result",
    "refused": "the provider cannot run them",
}  # fmt: skip


def _facts(found: Campaign, counts: Mapping[str, int]) -> Facts:
    waiting = found.asked - length(found.table)
    items = [Fact("points", f"{found.asked:,}", "asked by the plan")]
    items += [Fact(name, f"{counts.get(name, 0):,}", note) for name, note in _STATUS.items()]
    if waiting:
        items.append(Fact("waiting", f"{waiting:,}", "not measured yet: the same command goes on"))
    spent = float(np.nansum(column(found.table, "elapsed_s", 0.0)))
    if spent:
        items.append(Fact("spent", format_field("spent_s", spent), "measuring"))
    return Facts(tuple(items))


def _warnings(found: Campaign, counts: Mapping[str, int]) -> list[str]:
    told = [f"not measured at all: {reason}" for reason in found.skipped]
    ids = sorted(set(texts(found.table, "environment")) - {""})
    if len(ids) > 1:
        told.append(f"rows of {len(ids)} environments ({', '.join(ids)}): compare only rows of one")
    throttled = int(np.nansum(column(found.table, "throttled_samples", 0.0)))
    if throttled:
        told.append(f"{throttled:,} samples were dropped because the device was throttled")
    if counts.get("invalid"):
        told.append(f"{counts['invalid']:,} rows broke a rule and are in no figure and no score")
    for record in found.records:
        load_average, cores = record.get("load_average"), record.get("cpu_count") or 1
        if load_average and load_average[0] > _BUSY * cores and _is_cpu(record):
            told.append(f"the machine was busy when it began: load {load_average[0]:.1f} on "
                        f"{cores} cores (environment {record.get('environment')})")  # fmt: skip
        if record.get("gpu_processes"):
            told.append(f"{len(record['gpu_processes'])} other processes were on the GPU")
        if record.get("meter_reason") and _asked_energy(found.table):
            told.append(f"no energy: {record['meter_reason']}")
    return told


def _is_cpu(record: Mapping[str, Any]) -> bool:
    return record["must_agree"]["device"].get("kind") == "cpu"


def _asked_energy(table: Table) -> bool:
    return "energy" in table and bool(np.asarray(table["energy"], bool).any())


def _reasons(found: Campaign) -> list[dict[str, Any]]:
    """Reasons of rows that are not ok, and notes of those that are, most frequent first."""
    pairs = Counter(zip(found.status, texts(found.table, "reason"), strict=True))
    told = [(key, n) for key, n in pairs.most_common() if key[1]]
    return [{"status": status, "points": n, "reason": reason}
            for (status, reason), n in told[:_MOST_REASONS]]  # fmt: skip


# ------------------------------------------------------------------------------------ results

_HEADINGS = {"time_error": "predicted − measured", "spread_share": "spread (10 to 90)",
             "predicted_s": "predicted", "rate_flops_per_s": "rate"}  # fmt: skip


def _rows(found: Campaign) -> list[dict[str, Any]]:
    """Rows for eyes, at most MOST_ROWS, evenly spread."""
    table, rows = found.table, length(found.table)
    guess, bound = found.prediction(), found.prediction("bound_s")
    time, status, work = column(table, "time_s"), found.status, found.flops
    ends = [column(table, name) for name in ("time_p10_s", "time_p90_s")]
    bases = texts(found.predicted, "basis")
    out: list[dict[str, Any]] = []
    at = range(rows) if rows <= MOST_ROWS else np.linspace(0, rows - 1, MOST_ROWS).astype(int)
    several = {n: len(set(texts(table, n))) > 1
               for n in ("batch", "layout", "cache", "pattern", "hardware", "repeat")}  # fmt: skip
    for i in map(int, at):
        shown = {name: table[name][i] for name in several if name in table and several[name]}
        out.append({
            "kernel": table["kernel"][i], "shape": shape_text(table, i), "dtype": table["dtype"][i],
            **shown, "configuration": configuration_text(table, i), "status": status[i],
            "time_s": time[i], "spread_share": (ends[1][i] - ends[0][i]) / time[i],
            "rate_flops_per_s": work[i] / time[i], "power_w": column(table, "power_w")[i],
            "energy_j": column(table, "energy_j")[i], "predicted_s": guess[i],
            "time_error": guess[i] / time[i] - 1.0, "bound_s": bound[i],
            "basis": bases[i] if np.isfinite(guess[i]) else "", "reason": table["reason"][i],
        })  # fmt: skip
    return out


def _agreement(found: Campaign) -> list[dict[str, Any]]:
    time, guess = found.time, found.prediction()
    low, high = (found.prediction(f"time_{end}_s") for end in ("low", "high"))
    rows: list[dict[str, Any]] = []
    for name, own in families(found.table).items():
        at = own[np.isfinite(time[own]) & np.isfinite(guess[own])]
        if not len(at):
            continue
        error = np.abs(guess[at] / time[at] - 1.0)
        inside = (low[at] <= time[at]) & (time[at] <= high[at])
        kernel, _, dtype = name.rpartition(" ")
        rows.append({"kernel": kernel, "dtype": dtype, "points": len(at),
                     "mape": float(error.mean()), "median_error": float(np.median(error)),
                     "p90_error": float(np.quantile(error, 0.9)),
                     "coverage": float(inside.mean())})  # fmt: skip
    return rows


# ------------------------------------------------------------------------------------ environment


def _environment(record: Mapping[str, Any]) -> Rows:
    """Everything that was recorded of an environment, as recorded."""
    rows = [{"what": path, "value": text} for path, text in _flat(record)]
    ident = str(record.get("environment", ""))
    return Rows(f"environment_{ident}", f"Environment {ident}", rows, open=False)


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for key, item in value.items()
                for pair in _flat(item, f"{path}: {key}" if path else str(key))]  # fmt: skip
    if isinstance(value, list):
        value = "; ".join(map(_item, value))
    return [] if value is None or value == "" else [(path.replace("_", " "), str(value))]


def _item(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)
