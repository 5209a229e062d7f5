"""Fit the models that the package ships, from the measured tables, into a folder.

    python benchmarks/ship_models.py --out DIR [--prior DIR] [--jobs N]

The tables come from the installed package aiconfigurator-core: for each device and format the
newest vLLM collection, or another engine's where vLLM's holds host time only (fp8_block) or
nothing (int8, weight-only). The prior is fitted too, unless --prior names one that is done; power
and CLBlast models are taken over from the shipped folder: other files teach them (`ridgecast
train --data` rebuilds each). Run again with the same --out, it goes on where it was. Copy DIR
over src/ridgecast/predict/trained to ship it, but keep the shipped arc_b60 bf16 and b300_sxm
nvfp4: fitted anew, their off_grid error is above benchmarks/thresholds.json. Takes about 40
minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
from pathlib import Path

import numpy as np

from ridgecast.predict.prior import fit_prior, save_prior
from ridgecast.predict.train import _fit_all, _jobs, _version, dtype_transfer, sibling_transfer
from ridgecast.predict.utilisation import FitOptions
from ridgecast.store import Table, concat, import_files, map_text, read_table, select
from ridgecast.store.importers import aiconfigurator_core as core

SHIPPED = Path(__file__).resolve().parents[1] / "src" / "ridgecast" / "predict" / "trained"
_ALL = ("bf16", "fp8_e4m3", "nvfp4")
ENGINES = ("b200_sxm", "b300_sxm", "gb200", "gb300", "h100_sxm", "h200_sxm")
# (collection, formats, devices); the prior learns from what is graph-replayed bf16 of PRIOR
COLLECTIONS = (
    ("vllm-0.24.0", _ALL, ("b200_sxm", "b300_sxm", "gb200", "gb300", "h100_sxm", "h200_sxm", "l40s",
                           "rtx_pro_6000")),
    ("vllm-0.24.0", ("fp8_block",), ("h100_sxm", "h200_sxm")),  # host time, beside the graph's
    ("sglang-0.5.14", ("fp8_block",), ("b200_sxm", "b300_sxm", "gb200", "gb300", "h100_sxm")),
    ("trtllm-1.3.0rc20", ("fp8_block",), ("h200_sxm", "l40s", "rtx_pro_6000")),
    ("trtllm-1.3.0rc20", ("fp8_e4m3",), ENGINES),  # with stated scales, see `static`
    ("sglang-0.5.10", ("bf16",), ("a100_sxm",)),
    ("trtllm-1.0.0", ("int8", "int8_wo", "int4_wo"), ("a100_sxm",)),
    ("sglang-0.5.6.post2", ("int8_wo",), ("h100_sxm",)),
    ("vllm-0.20.1", _ALL, ("arc_b60",)),
)  # fmt: skip
PRIOR = (
    "h200_sxm",
    "h100_sxm",
    "b200_sxm",
    "b300_sxm",
    "gb200",
    "l40s",
    "rtx_pro_6000",
    "a100_sxm",
)  # the order decides the draws, so it stays; fmt: skip


def wanted(table: Table) -> np.ndarray:
    """Rows of the collections that ship."""
    keep = np.zeros(len(table["m"]), bool)
    for collection, dtypes, devices in COLLECTIONS:
        named = map_text(table["collection"], lambda text, c=collection: f"/{c}" in text)
        keep |= (
            named.astype(bool)
            & np.isin(table["dtype"].astype(str), dtypes)
            & np.isin(table["hardware"].astype(str), devices)
        )
    return keep


def static(table: Table) -> Table:
    """TensorRT-LLM's fp8 layers with scales that the checkpoint states.

    Its table times layers that find the scale of their inputs first (7 us and more, while vLLM's
    takes 1 us); what finding it takes was measured apart and is taken off here. The checkpoints
    that it serves (ModelOpt's) state scales. Rows of which it is more than 0.9 are left out.
    """
    mine = map_text(table["collection"], lambda text: "/trtllm-" in text).astype(bool)
    mine &= table["dtype"].astype(str) == "fp8_e4m3"
    parts = [select(table, np.flatnonzero(~mine))]
    for device in np.unique(table["hardware"][mine].astype(str)):
        own = select(table, np.flatnonzero(mine & (table["hardware"].astype(str) == device)))
        (path,) = core.files(f"{device}/quantize/trtllm/1.3.0rc20/computescale_perf.parquet")
        costs = read_table(path)
        costs = select(costs, np.flatnonzero(costs["quant_dtype"].astype(str) == "fp8"))
        found: dict[tuple[int, int], float] = {}
        for m, k, ms in zip(costs["m"], costs["k"], costs["latency"], strict=True):
            found[int(m), int(k)] = min(ms * 1e-3, found.get((int(m), int(k)), np.inf))
        pairs = zip(own["m"].astype(int), own["k"].astype(int), strict=True)
        scale = np.array([found.get(pair, np.nan) for pair in pairs])
        good = np.flatnonzero(scale < 0.9 * own["time_s"])
        own = {**own, "time_s": own["time_s"] - scale,
               "collection": map_text(own["collection"], lambda t: f"{t}/static")}  # fmt: skip
        parts.append(select(own, good))
    return concat(parts)


def shipped_jobs() -> tuple[list, list[str]]:
    """Give the tables that the shipped models are fitted to, and what was refused."""
    table = import_files("aiconfigurator-core")
    return _jobs(static(select(table, np.flatnonzero(wanted(table)))))


def taught(jobs: list) -> list[tuple]:
    """Tables that teach the prior, in the order of PRIOR."""
    own = [j for j in jobs if j.dtype == "bf16" and j.launch == "graph" and j.hardware in PRIOR]
    own.sort(key=lambda j: PRIOR.index(j.hardware))
    return [(j.hardware, j.dtype, j.shapes, j.time) for j in own]


def done(folder: Path, jobs: list) -> list[dict]:
    """Index lines of the models that an earlier run fitted."""
    cards = [folder / "time" / job.slug / "card.json" for job in jobs]
    state = [json.loads(card.read_text()) for card in cards if card.exists()]
    fields = ("folder", "hardware", "dtype", "collection", "launch", "sustained", "rows", "licence",
              "files", "scores")  # fmt: skip
    return [{key: card[key] for key in fields} for card in state]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prior", type=Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    jobs, notes = shipped_jobs()
    lines = done(a.out, jobs)
    finished = {line["folder"] for line in lines}
    waiting = [job for job in jobs if f"time/{job.slug}" not in finished]
    print(f"{len(lines)} time models are there, {len(waiting)} to fit", flush=True)
    lines += _fit_all(waiting, a.out, FitOptions(), a.jobs, False, lambda t: print(t, flush=True))
    lines.sort(key=lambda line: line["folder"])
    for name in ("prior", "power", "clblast_sgemm"):
        shutil.rmtree(a.out / name, ignore_errors=True)
    if a.prior:
        shutil.copytree(a.prior, a.out / "prior")
    else:
        (a.out / "prior").mkdir()
        save_prior(fit_prior(taught(jobs)), a.out / "prior")
    for name in ("power", "clblast_sgemm"):
        shutil.copytree(SHIPPED / name, a.out / name)
    card = {
        "format": 1,
        "ridgecast": _version(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/ship_models.py --out DIR",
        "seed": 0,
        "data": "AIConfigurator measured GEMM tables (ai-dynamo/aiconfigurator), Apache-2.0",
        "notes": notes,
        "models": lines,
        "dtype_transfer": dtype_transfer(lines, jobs, a.out, 0),
        "others": ["clblast_sgemm", "power", "prior"],
        "other_notes": {},
    }
    sibling_transfer(lines, jobs, a.out, 0)
    (a.out / "card.json").write_text(json.dumps(card, indent=1))
    print(f"{len(lines)} time models in {a.out}")


if __name__ == "__main__":
    main()
