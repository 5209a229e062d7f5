"""Keep held-out points beside the shipped models: parity.json, without changing model or card.

    python benchmarks/ship_parity.py [--minutes 75] [--only TEXT ...] [--model DIR] [--check]

Runs the very splits and fits again that made the cards' scores, with their seeds, on the tables of
the installed aiconfigurator-core (Apache-2.0) and those under shared/data (Apache-2.0, and the
Kernel Tuner hub's, MIT), and keeps a sample of each split. Every recomputed mean error is compared
with the card's and both are printed; where they differ by more than CLOSE of it, nothing is kept.
What is there is skipped, so that a run stopped early goes on where it was. --check only compares
the scores that the kept files hold with the cards.

Order: power and energy; library GEMMs in bf16, and on devices that nobody measured; unseen groups
of attention, MoE and collectives; CLBlast; other formats; operations on devices that nobody
measured; other splits of operations. Takes about three hours on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from ship_models import SHIPPED, shipped_jobs, taught
from ship_operators import DATA, FOLDERS, KEPT, MARKED, PACKAGE, files_of, files_of_package

from ridgecast.hardware import get
from ridgecast.predict.config_train import train_config_model
from ridgecast.predict.device_spread import SPLIT_OF
from ridgecast.predict.mlp import MlpOptions
from ridgecast.predict.operator_model import operator_rows
from ridgecast.predict.operator_train import (
    SPLITS,
    collections_of,
    held_out,
    pool,
    pooled_held_out,
)
from ridgecast.predict.parity import FILE, agrees, sample, save_parity
from ridgecast.predict.power_fit import fit_power
from ridgecast.predict.prior import fit_prior
from ridgecast.predict.scores import scored_splits
from ridgecast.predict.time_model import cross_validate
from ridgecast.predict.train import _THREADS
from ridgecast.predict.utilisation import FitOptions
from ridgecast.store import import_files, select

AICONFIGURATOR = "AIConfigurator measured tables (ai-dynamo/aiconfigurator)"
HUB = "Kernel Tuner benchmark hub (KernelTuner/benchmark_hub)"
CLOSE = 0.05
FORMATS = ("bf16", "fp8_e4m3", "nvfp4", "fp8_block")  # what is fitted first
# kept from the recipe before (see ship_models): folds were fitted with a shorter training
BEFORE = FitOptions(network=MlpOptions(epochs=30, decay=1e-4))
OLD = ("arc-b60-bf16-", "b300-sxm-nvfp4-")
Samples = list[dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """One model: folder, the card's scores by sample, where from, and how to make the points."""

    folder: str
    scores: list[dict[str, Any]]
    source: str
    licence: str
    files: list[str]
    make: Callable[..., Samples]
    arguments: tuple[Any, ...]


def label(line: dict[str, Any]) -> tuple[str, ...]:
    """Tell samples of one folder apart."""
    names = ("target", "hardware", "dtype")
    return (line["split"], *(line.get(name, "") for name in names))


def gemm(job: Any, options: FitOptions) -> Samples:
    """Held-out points of a library GEMM model."""
    device = get(job.hardware)
    _, _, held = cross_validate(job.shapes, job.time, job.dtype, device, options)
    return [sample(part, split=name) for name, part in scored_splits(held)]


def operator(paths: list[str], family: str, keys: tuple[str, str, str], split: str) -> Samples:
    """Held-out points of one split of an operation's model."""
    table = import_files(paths)
    for name, values in KEPT.get(family, {}).items():
        table = select(table, np.flatnonzero(np.isin(table[name].astype(str), values)))
    if family in MARKED:
        table["collection"] = table["collection"] + f"/{family}"
    own = next(part for found, part in collections_of(table) if found == keys)
    rows = operator_rows(own, keys[0], get(keys[1]))
    return [sample(held_out(rows, keys[0], get(keys[1]), split=split), split=split)]


def clblast(path: Path) -> Samples:
    """Held-out points of the CLBlast models of all devices."""
    with tempfile.TemporaryDirectory(prefix="ridgecast-parity-") as folder:
        train_config_model(import_files([str(path)]), folder)
        return json.loads((Path(folder) / FILE).read_text())["samples"]


def pooled(op: str) -> Samples:
    """Held-out points of devices that an operation's model for all devices did not know."""
    parts = {}
    for paths in files_of(DATA, op).values():
        table = import_files([p for p in paths if "custom" not in p])
        device = str(table["hardware"][0])
        parts[device] = operator_rows(table, op, get(device))
    rows, device_of = pool(list(parts.values()), 0)
    return [
        sample(pooled_held_out(rows, device_of == i, op, 0), split="unseen_device", hardware=name)
        for i, name in enumerate(parts)
    ]


def prior(tables: list[tuple[Any, ...]]) -> Samples:
    """Held-out points of devices that the GEMM prior did not know."""
    return list(fit_prior(tables).samples)


def power(labels: list[str], bursts: list[str]) -> Samples:
    """Held-out points of the power model."""
    return list(fit_power(import_files(labels), burst=import_files(bursts)).samples)


def gemm_works(index: dict[str, Any], jobs: list[Any]) -> Iterator[Work]:
    """Models of library GEMMs in the order of FORMATS."""
    lines = {line["folder"]: line for line in index["models"]}
    for job in sorted(jobs, key=lambda j: ((*FORMATS, j.dtype).index(j.dtype), j.slug)):
        line = lines.get(f"time/{job.slug}")
        if line is None or line["rows"] != len(job.time):
            print(f"left out {job.slug}: the shipped folder has no model of these rows")
            continue
        scores = [{"split": name, **found} for name, found in line["scores"].items()]
        options = BEFORE if job.slug.startswith(OLD) else FitOptions()
        yield Work(line["folder"], scores, f"{AICONFIGURATOR}: {line['collection']}",
                   line["licence"], line["files"], gemm, (job, options))  # fmt: skip


def operator_works(index: dict[str, Any], root: Path, number: int) -> Iterator[Work]:
    """Models of operations that have scores of the first or second split of their kind."""
    families = {op: files_of(DATA, op) for op in FOLDERS}
    families |= {f"package {name}": files_of_package(name) for name in PACKAGE}
    lines = [line for line in index["operators"] if line["scores"] and line["rows"]]
    for line in sorted(lines, key=lambda e: (tuple(FOLDERS).index(e["op"]), e["folder"])):
        scores = [s for s in line["scores"] if s["split"] == SPLITS[line["op"]][number]]
        card = json.loads((root / line["folder"] / "card.json").read_text())
        found = tables_of(card["sources"], line, families)
        if scores and found:
            keys = (line["op"], line["hardware"], line["collection"])
            arguments = (found[0], found[1], keys, scores[0]["split"])
            yield Work(line["folder"], scores, f"{AICONFIGURATOR}: {line['collection']}",
                       card["licence"], card["sources"], operator, arguments)  # fmt: skip
        elif scores:
            print(f"left out {line['folder']}: no tables like {card['sources']}")


def tables_of(
    sources: list[str], line: dict[str, Any], families: dict[str, dict[str, list[str]]]
) -> tuple[list[str], str] | None:
    """Files that a card names, of the family that it was trained with."""
    for family, devices in families.items():
        for device, paths in devices.items():
            same = device in ("b60", "rtx_pro_6000_server") or device == line["hardware"]
            own = [p for p in paths if any(p.endswith(f"/{s}") for s in sources)]
            kind = family.removeprefix("package ")
            if not same or len(own) < len(sources) or get(device).name != line["hardware"]:
                continue
            if any((kind == name) != (f"/{name}" in line["collection"]) for name in MARKED):
                continue
            if kind in ("w4a8", "fp8") and line.get("kind") != kind:
                continue
            return own, kind
    return None


def works(root: Path) -> Iterator[Work]:
    """All models in order of how much they are looked at."""
    index = json.loads((root / "card.json").read_text())
    scores = scores_of(root)
    jobs, _ = shipped_jobs()
    paths = [DATA / name / "gemm" for name in ("h200_sxm", "b200_sxm")]  # the order of the fit
    found = [[str(path / f"gemm-vllm-{version}.parquet") for path in paths]
             for version in ("0.22.0", "0.24.0")]  # fmt: skip
    if all(Path(path).exists() for part in found for path in part):
        files = [str(Path(path).relative_to(DATA)) for part in found for path in part]
        yield Work("power", scores["power"], AICONFIGURATOR, "Apache-2.0", files, power,
                   tuple(found))  # fmt: skip
    gemms = list(gemm_works(index, jobs))
    yield from (w for w in gemms if "-bf16-" in w.folder)
    files = sorted({name for job in jobs if job.dtype == "bf16" for name in job.files})
    yield Work("prior", scores["prior"], AICONFIGURATOR, "Apache-2.0", files, prior,
               (taught(jobs),))  # fmt: skip
    yield from operator_works(index, root, 0)
    path = DATA.parent / "kernel_tuner" / "gemm.parquet"
    if path.exists():
        yield Work("clblast_sgemm", scores["clblast_sgemm"], HUB, "MIT",
                   ["kernel_tuner/gemm.parquet"], clblast, (path,))  # fmt: skip
    yield from (w for w in gemms if "-bf16-" not in w.folder)
    for folder in (f for f in scores if "/pooled-" in f):
        op = folder.rsplit("-", 1)[-1]
        files = [str(Path(p).relative_to(DATA)) for paths in files_of(DATA, op).values()
                 for p in paths if "custom" not in p]  # fmt: skip
        yield Work(folder, scores[folder], AICONFIGURATOR, "Apache-2.0", files, pooled, (op,))
    yield from operator_works(index, root, 1)


def scores_of(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Scores of every card of a folder that held-out points could be kept for."""
    index = json.loads((root / "card.json").read_text())
    found: dict[str, list[dict[str, Any]]] = {}
    for line in index["models"]:
        found[line["folder"]] = [{"split": n, **s} for n, s in line["scores"].items()]
    found |= {line["folder"]: line["scores"] for line in index["operators"] if line["scores"]}
    for path in sorted(root.glob("operators/pooled-*/card.json")):
        found[f"operators/{path.parent.name}"] = json.loads(path.read_text())["scores"]
    for name in ("prior", "siblings"):
        card = json.loads((root / name / "card.json").read_text())
        found[name] = [{**s, "split": SPLIT_OF[s["kept"]]} for s in card["scores"]]
    found["power"] = list(power_scores(json.loads((root / "power" / "card.json").read_text())))
    card = json.loads((root / "clblast_sgemm" / "card.json").read_text())
    found["clblast_sgemm"] = [{"split": "unseen_config", "hardware": name, **s}
                              for name, s in card["scores_unseen_kernel"].items()]  # fmt: skip
    return found


def power_scores(card: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Scores of power and energy over all sizes, as the accuracy table has them."""
    parts = (("power", "unseen_shape", "scores_crossed"),
             ("power", "unseen_device", "scores_transferred"),
             ("energy", "unseen_shape", "scores"))  # fmt: skip
    for target, split, key in parts:
        for name, score in card[key].items():
            hardware, _, dtype = name.partition("/")
            if " " in name:  # one size, or the mean over devices
                continue
            found = (
                {n: score[f"energy_{n}"] for n in ("rows", "mape")} if key == "scores" else score
            )
            yield {**found, "target": target, "split": split, "hardware": hardware, "dtype": dtype}


def kept(folder: Path) -> Samples:
    """Return the samples that a folder holds."""
    path = folder / FILE
    return json.loads(path.read_text())["samples"] if path.exists() else []


def compare(samples: Samples, scores: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Each sample with how its recomputed score stands to the card's."""
    cards = {label(s): s for s in scores}
    for one in samples:
        card = cards.get(label(one))
        if card is None:
            yield one, "no score in the card"
            continue
        off = abs(one["mape"] - card["mape"])
        alike = card.get("rows", one["rows"]) == one["rows"] and off <= CLOSE * card["mape"]
        same = agrees(one["mape"], card["mape"])
        word = "agrees" if alike and same else "close" if alike else "differs"
        told = f"{one['mape']:.5f} recomputed, {card['mape']:.5f} in the card"
        yield one, f"{word}: {told}"


def ship(work: Work, found: Samples, root: Path, tell: Callable[[str], None]) -> None:
    """Keep what agrees with the card, beside what the folder holds already."""
    good = kept(root / work.folder)
    for one, verdict in compare(found, work.scores):
        name = " ".join(filter(None, label(one)))
        tell(f"{work.folder} {name}: {verdict}")
        if verdict.startswith(("agrees", "close")):
            good.append(one)
    save_parity(root / work.folder, good, source=work.source, licence=work.licence,
                files=work.files)  # fmt: skip


def check(root: Path) -> None:
    """Compare the scores in the kept files with the cards; print what is missing."""
    told: dict[str, int] = {}
    for folder, scores in scores_of(root).items():
        samples = kept(root / folder)
        for one, verdict in compare(samples, scores):
            word = verdict.split(":")[0]
            told[word] = told.get(word, 0) + 1
            if word != "agrees":
                print(f"{folder} {' '.join(filter(None, label(one)))}: {verdict}")
        have = {label(one) for one in samples}
        for one in scores:
            if label(one) not in have:
                told["missing"] = told.get("missing", 0) + 1
                print(f"{folder} {' '.join(filter(None, label(one)))}: no points kept")
    size = sum(path.stat().st_size for path in root.rglob(FILE))
    print(f"{told}; {len(list(root.rglob(FILE)))} files, {size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--minutes", type=float, default=1e9, help="start no model after these")
    parser.add_argument("--only", action="append", default=[], help="patterns of folder names")
    parser.add_argument("--check", action="store_true")
    a = parser.parse_args()
    if a.check:
        return check(a.model)
    began = time.monotonic()
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # as in training; for the worker

    def tell(text: str) -> None:
        print(f"{(time.monotonic() - began) / 60:6.1f} min  {text}", flush=True)

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for work in works(a.model):
            if a.only and not any(re.search(pattern, work.folder) for pattern in a.only):
                continue
            have = {label(one) for one in kept(a.model / work.folder)}
            left = [s for s in work.scores if label(s) not in have]
            if not left or time.monotonic() - began > 60 * a.minutes:
                continue
            found = pool.submit(work.make, *work.arguments).result()
            ship(replace(work, scores=left), [f for f in found if label(f) not in have],
                 a.model, tell)  # fmt: skip
    return None


if __name__ == "__main__":
    main()
