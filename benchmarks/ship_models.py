"""Fit the models that the package ships, from the measured tables, into a folder.

    python benchmarks/ship_models.py --data ../shared/data/silicon --out DIR [--prior DIR]

One collection for each device and format: the newest vLLM table, and where that holds host time
only (fp8_block) a graph-replayed collection of another engine beside it. Time models and the
spread between formats are fitted here; the prior is too, unless --prior names one that is done.
Power and CLBlast models are taken over from the shipped folder: other files teach them
(`ridgecast train --data` rebuilds each). Copy DIR over src/ridgecast/predict/trained to ship it.
Takes about half an hour on two idle cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from ridgecast.predict.prior import fit_prior, save_prior
from ridgecast.predict.train import _fit_all, _jobs, _version, dtype_transfer
from ridgecast.predict.utilisation import FitOptions
from ridgecast.store import import_files, select

SHIPPED = Path(__file__).resolve().parents[1] / "src" / "ridgecast" / "predict" / "trained"
# device folder -> table; the prior learns from the bf16 rows of all but the B60 (no graph replay)
TABLES = {
    "a100_sxm": "gemm-sglang-0.5.10", "b200_sxm": "gemm-vllm-0.24.0",
    "b300_sxm": "gemm-vllm-0.24.0", "b60": "gemm-vllm-0.20.0", "gb200": "gemm-vllm-0.24.0",
    "h100_sxm": "gemm-vllm-0.24.0", "h200_sxm": "gemm-vllm-0.24.0", "l40s": "gemm-vllm-0.24.0",
    "rtx_pro_6000_server": "gemm-vllm-0.24.0",
}  # fmt: skip
BLOCK_SCALED = {"h100_sxm": "gemm-sglang-0.5.14", "h200_sxm": "gemm-trtllm-1.3.0rc20"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prior", type=Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    a = parser.parse_args()
    a.out.mkdir(parents=True)
    options = FitOptions()
    files = [a.data / device / "gemm" / f"{name}.parquet" for device, name in TABLES.items()]
    jobs, notes = _jobs(import_files(files))
    others = [a.data / device / "gemm" / f"{name}.parquet" for device, name in BLOCK_SCALED.items()]
    more = import_files(others)
    jobs += _jobs(select(more, np.flatnonzero(more["dtype"] == "fp8_block")))[0]
    lines = _fit_all(jobs, a.out, replace(options, seed=0), a.jobs, False, print)
    lines.sort(key=lambda line: line["folder"])
    if a.prior:
        shutil.copytree(a.prior, a.out / "prior")
    else:
        taught = [j for j in jobs if j.dtype == "bf16" and j.launch == "graph" and not j.sustained]
        (a.out / "prior").mkdir()
        save_prior(
            fit_prior([(j.hardware, j.dtype, j.shapes, j.time) for j in taught]), a.out / "prior"
        )
    for name in ("power", "clblast_sgemm"):
        shutil.copytree(SHIPPED / name, a.out / name)
    card = {
        "format": 1,
        "ridgecast": _version(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/ship_models.py --data DIR --out DIR",
        "seed": 0,
        "data": "AIConfigurator measured GEMM tables (ai-dynamo/aiconfigurator), Apache-2.0",
        "notes": notes,
        "models": lines,
        "dtype_transfer": dtype_transfer(lines, jobs, a.out, 0),
        "others": ["clblast_sgemm", "power", "prior"],
        "other_notes": {},
    }
    (a.out / "card.json").write_text(json.dumps(card, indent=1))
    print(f"{len(lines)} time models in {a.out}")


if __name__ == "__main__":
    main()
