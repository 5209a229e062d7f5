"""Fit the models of attention, MoE and collectives that the package ships, into a model folder.

    python benchmarks/ship_operators.py --out DIR [--data DIR] [--jobs N] [--pooled OP ...]
    python benchmarks/ship_operators.py --out DIR --package [--only FAMILY ...]

DIR is a model folder (a copy of src/ridgecast/predict/trained, or one that `ridgecast train` or
ship_models.py made). Each measured device gives a model per operation and collection, scored on
whole groups held out; --pooled fits the models for devices without measurements too. --package
fits those that rest on tables of the installed aiconfigurator-core instead: latent attention,
engines' own all-reduces, and devices that DIR lacks.
Run again, it goes on where it was. Takes about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from ridgecast.hardware import get
from ridgecast.predict.operator_model import operator_rows
from ridgecast.predict.operator_train import train_operator, train_pooled, write_index
from ridgecast.store import import_files, select
from ridgecast.store.importers import aiconfigurator_core as core

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "silicon"
FOLDERS = {"attention": "attention", "moe": "moe", "collective": "comm"}
# Tables of the installed package, device/family/framework/version/file. Latent attention is of the
# one stack whose tables are complete on all devices, in 16 bits and fp8; on Hopper it is the
# fastest by far, on Blackwell within a tenth of SGLang, which runs the same kernels there. Its
# attention over keys and values ("dense") takes 0.44 to 0.66 of vLLM's time with an fp8 cache on
# Hopper (medians of the tables by batch). SGLang's all-reduce was made faster between 0.5.10 and
# 0.5.14 (1.4 to 1.8 times on B200); services state which they ran.
PACKAGE = {
    "latent": ("*/mla/trtllm/1.3.0rc20/context_mla_perf.parquet",
               "*/mla/trtllm/1.3.0rc20/generation_mla_perf.parquet"),
    "dense": tuple(f"{device}/attention/trtllm/1.3.0rc20/{kind}_attention_perf.parquet"
                   for device in ("h?00_sxm", "b?00_sxm", "gb?00")
                   for kind in ("context", "generation")),
    "delta": ("*00*/linear_attention/vllm/0.24.0/gdn_perf.parquet",),
    "w4a8": ("*b?00*/moe/sglang/0.5.14/moe_perf.parquet",),
    "fp8": ("h?00*/moe/trtllm/1.3.0rc20/moe_perf.parquet",),
    "moe": ("gb300/moe/vllm/0.24.0/moe_perf.parquet",),
    "collective": ("*b300*/comm/nccl/2.29.2/nccl_perf.parquet",
                   "*b300*/comm/vllm/0.24.0/custom_allreduce_perf.parquet"),
    "engine": (*(f"{device}/comm/{stack}/custom_allreduce_perf.parquet"
                 for device in ("gb?00", "b?00_sxm", "h?00_sxm")
                 for stack in ("trtllm/1.3.0rc20", "sglang/0.5.14")),
               *(f"{device}/comm/sglang/0.5.10/custom_allreduce_perf.parquet"
                 for device in ("b?00_sxm", "h?00_sxm")),  # on GB200 and GB300 of 2 and 4 devices
               "gb200/comm/vllm/0.24.0/custom_allreduce_perf.parquet",
               "gb300/comm/vllm/0.27.0/custom_allreduce_perf.parquet"),
    "fp8_block": ("gb?00/moe/trtllm/1.3.0rc20/moe_perf.parquet",),
    "exchange": ("gb200/comm/trtllm/1.3.0rc10/trtllm_alltoall_perf.parquet",
                 "gb?00/comm/sglang/0.5.12/wideep_deepep_ll_perf.parquet",
                 "gb?00/comm/sglang/0.5.12/wideep_deepep_normal_perf.parquet"),
}  # fmt: skip
# A device's rows answered by another's model: all-reduces of a GB200 were measured up to 4 devices,
# those of a GB300 in the same NVLink domain up to 16; TensorRT-LLM's exchange on a GB200 alone.
LENT = {"gb200": ("gb300", (8, 16, 32, 64, 72))}
LENT_EXCHANGE = {"gb300": "gb200"}


def files_of(data: Path, op: str) -> dict[str, list[str]]:
    """Tables of an operation by the folder of their device."""
    found = {
        d.name: sorted(map(str, (d / FOLDERS[op]).glob("*.parquet")))
        for d in sorted(data.iterdir())
    }
    return {name: paths for name, paths in found.items() if paths}


# Rows that are taken of a family, where not all. vLLM measured fp8 on MXFP4 weights for networks
# other than gpt-oss alone, and what was learned of them is 1.2 to 1.6 times too slow for it. Its
# fp8 kernels with one scale a tensor take 3 to 5 times the time of TensorRT-LLM's on Hopper, for
# all networks alike, and longer than in 16 bits; on Grace Blackwell, those of blocks take
# 1.3 to 2.6 times TensorRT-LLM's. Engines replay graphs; TensorRT-LLM's table does
# not say how it launched.
KEPT = {
    "w4a8": {"dtype": ("fp8_e4m3",), "weight_dtype": ("mxfp4",)},
    "fp8": {"dtype": ("fp8_e4m3",), "weight_dtype": ("fp8_e4m3",)},
    "fp8_block": {"dtype": ("fp8_block",)},
    "engine": {"launch": ("graph", "")},
}

# Families whose collections are named after them: experts of one format alone never stand in for
# those of all, nor TensorRT-LLM's attention over keys and values for its latent attention.
MARKED = ("fp8_block", "dense")


def files_of_package(family: str) -> dict[str, list[str]]:
    """Tables of one of PACKAGE in the installed package, by the folder of their device."""
    found: dict[str, list[str]] = {}
    for pattern in PACKAGE[family]:
        for path in core.files(pattern):
            found.setdefault(path.parts[-5], []).append(str(path))
    return found


def one(paths: list[str], out: Path, told: Path, family: str = "") -> list[dict]:
    """Fit what a device's tables allow; the lines also go to a file, so that a run resumes."""
    table = import_files(paths)
    for name, values in KEPT.get(family, {}).items():
        table = select(table, np.flatnonzero(np.isin(table[name].astype(str), values)))
    if family in MARKED:
        table["collection"] = table["collection"] + f"/{family}"
    lines = train_operator(table, out, progress=lambda t: print(t, flush=True))
    draft = told.with_name(f".{told.name}")
    draft.write_text(json.dumps(lines))
    draft.replace(told)
    return lines


def lent(lines: list[dict]) -> list[dict]:
    """Lines of LENT: the other device's model of the same engine, for the counts it measured."""
    out = []
    for device, (other, counts) in LENT.items():
        for line in lines:
            engine = line["collection"].split("/")[1].split("-")[0]
            own = [e for e in lines if e["hardware"] == device and f"/{engine}-" in e["collection"]]
            if line["hardware"] == other and own:
                told = f"{own[0]['collection']}/from-{other}"
                rows = [{"kind": "all_reduce", "gpus": n, "gpus_per_node": n} for n in counts]
                out.append(line | {"hardware": device, "collection": told, "scores": [],
                                   "rows": 0, "kind": "lent", "for": rows})  # fmt: skip
    return out


def lent_exchange(lines: list[dict]) -> list[dict]:
    """Lines of LENT_EXCHANGE: the other device's models of engines that the device lacks."""
    out = []
    for device, other in LENT_EXCHANGE.items():
        have = {e["collection"].split("/")[1] for e in lines if e["hardware"] == device}
        for line in (e for e in lines if e["hardware"] == other):
            _, stack, _, phase = line["collection"].split("/")
            if stack not in have:
                told = f"aiconfigurator/{stack}/{device}/{phase}/from-{other}"
                out.append(line | {"hardware": device, "collection": told, "scores": [],
                                   "rows": 0})  # fmt: skip
    return out


def pooled(op: str, data: Path, out: Path) -> None:
    """Fit the model of other devices; custom all-reduce kernels are not NCCL's and stay out."""
    parts = {}
    for paths in files_of(data, op).values():
        table = import_files([p for p in paths if "custom" not in p])
        device = str(table["hardware"][0])
        parts[device] = operator_rows(table, op, get(device))
    for line in train_pooled(parts, op, out)["scores"]:
        print(f"pooled {op}, {line['hardware']} left out: median {100 * line['median']:.1f} %, "
              f"covered {100 * line['coverage']:.0f} %", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument(
        "--pooled",
        action="append",
        choices=FOLDERS,
        default=[],
        help="fit the model of other devices for this operation too; repeatable",
    )
    parser.add_argument(
        "--package", action="store_true", help="fit to tables of aiconfigurator-core instead"
    )
    parser.add_argument(
        "--only", action="append", choices=[*FOLDERS, *PACKAGE], default=[],
        help="fit the models of this family alone, e.g. moe; repeatable",
    )  # fmt: skip
    a = parser.parse_args()
    state = a.out / "operators"
    state.mkdir(parents=True, exist_ok=True)
    if a.package:
        sources = {family: files_of_package(family) for family in PACKAGE}
    else:
        sources = {op: files_of(a.data, op) for op in FOLDERS}
    sources = {k: v for k, v in sources.items() if not a.only or k in a.only}
    waiting = []
    for op, files in sources.items():
        for device, paths in files.items():
            told = state / f".done-{op}-{device}.json"
            if not told.exists():
                waiting.append((paths, a.out, told, op))
    with ProcessPoolExecutor(a.jobs) as workers:
        for future in as_completed([workers.submit(one, *job) for job in waiting]):
            future.result()
    engines: list[dict] = []
    exchanges: list[dict] = []
    for told in sorted(state.glob(".done-*.json")):
        lines = json.loads(told.read_text())
        write_index(a.out, lines)
        if "-engine-" in told.name:
            engines += lines
        if "-exchange-" in told.name:
            exchanges += lines
    write_index(a.out, lent(engines) + lent_exchange(exchanges))
    for op in a.pooled:
        pooled(op, a.data, a.out)


if __name__ == "__main__":
    main()
