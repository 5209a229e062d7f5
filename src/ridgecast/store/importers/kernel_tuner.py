"""Kernel Tuner results: the flattened Parquet of benchmark_hub, cache JSON and T4 JSON.

Sources: github.com/AutoTuningAssociation/benchmark_hub (MIT), CLBlast's Xgemm at 4096^3, 32 runs a
configuration by device events; kernel_tuner's cache schema and T4 results schema 1.0.0. Times are
in ms. Failed configurations stay, with valid = False. A rate that the source reports is not read:
for the Radeon PRO W7800 it is twice the truth.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import NoDataError, SpecError, UnsupportedError
from ..schema import add_reason, canonical, invalidate, validate
from ..tables import Table, length, map_text, numeric, text
from .base import Importer, Request, device_column, devices

__all__ = ["JSON", "PARQUET"]

_CLBLAST = ("MWG", "NWG", "KWG", "MDIMC", "NDIMC", "MDIMA", "NDIMB", "KWI", "VWM", "VWN", "STRM",
            "STRN", "SA", "SB", "GEMMK", "KREG")  # fmt: skip
_PRECISION = {16: "fp16", 32: "fp32", 64: "fp64"}
_FAILED = 1e20  # value that Kernel Tuner records for a configuration that did not run


def _problem(problem: Any) -> tuple[float, float, float, str]:
    """Sizes (m, n, k) of a problem_size; a square one with two entries has k = m (assumed)."""
    if isinstance(problem, str):
        try:
            problem = json.loads(problem)
        except json.JSONDecodeError:
            problem = []
    if not isinstance(problem, list | tuple):
        problem = [problem]
    try:
        sizes = [float(size) for size in problem]
    except (TypeError, ValueError):
        sizes = []
    if len(sizes) >= 3:
        return sizes[0], sizes[1], sizes[2], ""
    if len(sizes) == 2 and sizes[0] == sizes[1]:
        return sizes[0], sizes[1], sizes[0], ""
    return np.nan, np.nan, np.nan, f"problem size {problem!r} does not give m, n and k"


def _check_kernel(name: str) -> None:
    if "gemm" not in name.lower():
        raise UnsupportedError(f"kernel {name} is not imported yet; only gemm is")


def convert_parquet(table: Table, request: Request) -> Table:
    """Canonical rows of the flattened Parquet; time_s is the median of the runs."""
    for name in sorted(set(map(str, table["kernel"].tolist()))):
        _check_kernel(name)
    rows = length(table)
    hardware, notes = devices(table["device"])
    sizes = map_text(table["problem_size"], _problem)
    m, n, k = (np.array([size[i] for size in sizes.tolist()], dtype=float) for i in range(3))
    config = {name.lower(): numeric(table, name)[0] for name in _CLBLAST if name in table}
    collection = map_text(table["gpu_label"], lambda label: f"kernel_tuner/benchmark_hub/{label}")
    out = canonical(
        rows, op="gemm", hardware=hardware, dtype=_precision(table, rows), m=m, n=n, k=k,
        layout="nt", kernel="clblast", kernel_source=table["kernel"],
        time_s=numeric(table, "time_ms_median")[0] * 1e-3,
        time_std_s=numeric(table, "time_ms_std")[0] * 1e-3,
        time_low_s=numeric(table, "time_ms_min")[0] * 1e-3, samples=numeric(table, "n_runs")[0],
        cache="hot", collection=collection, source_file=request.name, licence="MIT",
        reason=notes, **config,
    )  # fmt: skip
    status = map_text(table["status"], str)
    for state in sorted(set(status.tolist()) - {"ok"}):
        invalidate(out, status == state, f"status {state}")
    return validate(out)


def _precision(table: Table, rows: int) -> np.ndarray:
    """Format by CLBlast's PRECISION; fp32 where a space does not vary it."""
    if "PRECISION" not in table:
        return text("fp32", rows)
    values = numeric(table, "PRECISION")[0]
    return np.array([_PRECISION.get(v, "fp32" if np.isnan(v) else str(v)) for v in values.tolist()],
                    dtype=object)  # fmt: skip


# --------------------------------------------------------------------------------------- JSON


def read_json(path: Path) -> Table:
    """Read cache or T4 JSON (.json, .json.gz) as a table: one row per configuration.

    A cache file that was cut off (its run still open) is closed first. Raises NoDataError or
    SpecError.
    """
    if not path.exists():
        raise NoDataError(f"{path}: no such file")
    data = path.read_bytes()
    try:
        raw = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
        document = _parse(raw)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as JSON: {error}") from None
    if isinstance(document, dict) and isinstance(document.get("cache"), dict):
        entries = [_cache_entry(entry) for entry in document["cache"].values()]
    elif isinstance(document, dict) and isinstance(document.get("results"), list):
        entries = [_t4_entry(entry) for entry in document["results"]]
    else:
        raise SpecError(f"{path}: neither Kernel Tuner's cache ('cache') nor T4 ('results') JSON")
    if not entries:
        raise NoDataError(f"{path}: holds no configuration")
    shared = {"kernel_name": document.get("kernel_name", ""),
              "device_name": document.get("device_name", ""),
              "problem_size": json.dumps(document.get("problem_size", []))}  # fmt: skip
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    table: Table = {}
    for name, value in shared.items():
        table[name] = text(str(value), len(entries))
    for name in names:
        column = np.empty(len(entries), dtype=object)
        column[:] = [entry.get(name, "") for entry in entries]
        table[name] = column
    return table


def _parse(raw: str) -> Any:
    try:
        return json.loads(raw)
    except json.JSONDecodeError:  # Kernel Tuner leaves a cache open until its run has ended
        return json.loads(raw.rstrip().rstrip(",") + "}\n}")


def _cache_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {key: value for key, value in entry.items() if key.isupper()}
    time, status = entry.get("time"), "ok"
    if isinstance(time, dict):
        status, time = str(time.get("__error__") or time), None
    elif isinstance(time, str):
        status, time = time, None
    elif time is None or not float(time) < _FAILED:
        status, time = "failed", None
    times, note = _samples(entry.get("times"))
    return {**parameters, **_statistics(time, times), "status": status, "note": note,
            "power_w": entry.get("nvml_power", ""),
            "energy_j": entry.get("nvml_energy", "")}  # fmt: skip


def _t4_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    measured = {str(x.get("name")): x for x in entry.get("measurements") or [] if "value" in x}
    time, status = None, str(entry.get("invalidity") or "correct")
    status = "ok" if status == "correct" else status
    found = measured.get("time")
    if found is not None and not isinstance(found["value"], str) and found["value"] < _FAILED:
        scale = {"": 1.0, "ms": 1.0, "s": 1e3, "us": 1e-3, "ns": 1e-6}.get(found.get("unit", ""))
        time = found["value"] * scale if scale else None
        status = status if scale else f"unknown unit {found['unit']}"
    elif status == "ok":
        status = "failed"
    times, note = _samples((entry.get("times") or {}).get("runtimes"))
    configuration = {k: v for k, v in (entry.get("configuration") or {}).items() if k.isupper()}
    return {**configuration, **_statistics(time, times), "status": status, "note": note}


def _samples(times: Any) -> tuple[list[float], str]:
    """Run times in ms. Some old files store pairs [0, t]: the zeros are dropped, and said so."""
    flat: list[float] = []
    for item in times or []:
        flat += [float(x) for x in (item if isinstance(item, list) else [item])]
    kept = [x for x in flat if x > 0]
    paired = bool(flat) and len(kept) * 2 == len(flat)
    return kept, "runs were stored as pairs with 0: zeros dropped" if paired else ""


def _statistics(time: Any, times: list[float]) -> dict[str, Any]:
    if time is None:
        return {"time_ms": np.nan, "std_ms": np.nan, "min_ms": np.nan, "runs": np.nan}
    if not times:
        return {"time_ms": time, "std_ms": np.nan, "min_ms": np.nan, "runs": np.nan}
    values = np.array(times)
    return {"time_ms": float(np.median(values)), "std_ms": float(values.std()),
            "min_ms": float(values.min()), "runs": float(len(values))}  # fmt: skip


def convert_json(table: Table, request: Request) -> Table:
    """Canonical rows of cache or T4 JSON. T4 names no device, kernel or size: give defaults."""
    rows = length(table)
    name = str(table["kernel_name"][0])
    if name or "MWG" not in table:
        _check_kernel(name or "without a name")
    hardware, notes = device_column(
        {"device": table["device_name"]} if str(table["device_name"][0]) else {}, request, rows
    )
    m, n, k, problem = _problem(str(table["problem_size"][0]))
    sizes = [request.defaults.get(key, value) for key, value in zip("mnk", (m, n, k), strict=True)]
    config = {key.lower(): numeric(table, key)[0] for key in _CLBLAST if key in table}
    values = {key: numeric(table, key)[0] * 1e-3 for key in ("time_ms", "std_ms", "min_ms")}
    extra = {key: numeric(table, key)[0] for key in ("power_w", "energy_j") if key in table}
    out = canonical(
        rows, op="gemm", hardware=hardware, dtype=_precision(table, rows),
        m=np.full(rows, float(sizes[0])), n=np.full(rows, float(sizes[1])),
        k=np.full(rows, float(sizes[2])), layout="nt" if "MWG" in table else "",
        kernel="clblast" if "MWG" in table else "", kernel_source=name, time_s=values["time_ms"],
        time_std_s=values["std_ms"], time_low_s=values["min_ms"],
        samples=numeric(table, "runs")[0], cache="hot",
        collection=np.array([f"kernel_tuner/{h}" for h in hardware.tolist()], dtype=object),
        source_file=request.name, reason=notes, **config, **extra,
    )  # fmt: skip
    everything = np.ones(rows, dtype=bool)
    if problem and np.isnan(np.array(sizes, dtype=float)).any():
        invalidate(out, everything, problem)
    for note in sorted(set(map(str, table["note"].tolist())) - {""}):
        add_reason(out, table["note"] == note, note)
    status = map_text(table["status"], str)
    for state in sorted(set(status.tolist()) - {"ok"}):
        invalidate(out, status == state, f"status {state}")
    add_reason(out, np.isfinite(out["power_w"]), "power: its sampling window is not stated")
    return validate(out)


PARQUET = Importer(
    name="kernel_tuner",
    what="Kernel Tuner spaces flattened to Parquet",
    needs=("kernel", "problem_size", "gpu_label", "device", "status", "time_ms_median",
           "time_ms_std", "time_ms_min", "n_runs"),
    convert=convert_parquet,
)  # fmt: skip
JSON = Importer(
    name="kernel_tuner_json",
    what="Kernel Tuner cache JSON or T4 JSON",
    needs=("kernel_name", "device_name", "problem_size", "time_ms", "status"),
    convert=convert_json,
    read=read_json,
    suffixes=(".json", ".json.gz"),
)
