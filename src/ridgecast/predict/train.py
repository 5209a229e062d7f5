"""From raw measured tables to a model folder.

Owns which rows train which model, the folder's index, and the scores on held-out folds that every
card carries. The fits themselves are the models' own.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import dtype as find_dtype
from ..errors import NoDataError, RidgecastError, SpecError
from ..hardware import get
from ..store import Table, import_report, select
from ..store.tables import factorize
from .bundle import FORMAT
from .parity import sample, save_parity
from .scores import score_rows, scored_splits
from .time_model import (
    LEAST_ROWS,
    Shapes,
    fit_time_model,
    load_time_model,
    save_time_model,
)
from .utilisation import FitOptions

__all__ = ["train"]

_SLUG = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class _Job:
    """Rows of one device, format and collection, ready to fit."""

    hardware: str
    dtype: str
    collection: str
    launch: str
    sustained: bool
    licence: str
    files: tuple[str, ...]
    shapes: Shapes
    time: npt.NDArray[np.float64]

    @property
    def slug(self) -> str:
        name = f"{self.hardware} {self.dtype} {self.collection.replace(self.hardware, '')}"
        return _SLUG.sub("-", name.lower()).strip("-")


def train(  # noqa: PLR0913 - one option a decision of the caller
    data: Sequence[str | Path],
    out: str | Path,
    *,
    seed: int = 0,
    jobs: int | None = None,
    importer: str = "auto",
    keep_points: bool = True,
    options: FitOptions | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Fit every model that the raw tables allow and write them to a folder.

    `data` are files of any importer. Library GEMMs give one time model for each device, format and
    collection, and with two or more devices a prior for devices without measurements; CLBlast
    rows give a configuration model, rows with usable power a power model; attention, MoE and
    collectives a model for each device and collection. `keep_points` stores the
    training points beside each model, so that the very points are answered as `measured`; a sample
    of the held-out predictions behind each score (parity.json) is kept always.
    `jobs` processes fit at once (default: one for each core). `progress` is told of each table.

    Returns the folder's card. The folder appears whole or not at all.
    Raises NoDataError when no model could be fitted, SpecError when `out` exists and is no model
    folder.
    """
    target = Path(out)
    if target.exists() and any(target.iterdir()) and not (target / "card.json").exists():
        raise SpecError(f"--out: {target} exists and is not a model folder; name another")
    report = import_report([str(path) for path in data], importer=importer)
    table = report.table
    notes = [f"{f.path}: {f.reason}" for f in report.files if f.status != "ok"]
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        base = replace(options or FitOptions(), seed=seed)
        jobs_list, refused = _jobs(table)
        card: dict[str, Any] = {
            "format": FORMAT,
            "ridgecast": _version(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": " ".join([*sys.argv[:1], "train"]) if sys.argv else "train",
            "seed": seed,
            "notes": notes + refused,
            "models": _fit_all(jobs_list, work, base, jobs, keep_points, progress),
        }
        card["dtype_transfer"] = dtype_transfer(card["models"], jobs_list, work, seed)
        sibling_transfer(card["models"], jobs_list, work, seed)
        card |= _fit_others(table, jobs_list, work, seed)
        card["operators"] = _fit_operators(table, work, seed, progress, card["notes"])
        if not card["models"] and not card["others"] and not card["operators"]:
            raise NoDataError(
                "no model could be fitted: " + ("; ".join(card["notes"]) or "no usable rows")
            )
        (work / "card.json").write_text(json.dumps(card, indent=1))
        _replace(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return card


def _fit_operators(
    table: Table, work: Path, seed: int, progress: Callable[[str], None] | None, notes: list[str]
) -> list[dict[str, Any]]:
    """Fit attention, MoE and collectives where the tables hold them; lines of the index."""
    from .operator_train import OPERATORS, train_operator

    rows = np.isin(np.asarray(table["op"]).astype(str), OPERATORS)
    if not rows.any():
        return []

    def told(text: str) -> None:
        if text.startswith("left out"):
            notes.append(text)
        if progress:
            progress(text)

    return train_operator(select(table, np.flatnonzero(rows)), work, seed=seed, progress=told)


def dtype_transfer(
    lines: Sequence[dict[str, Any]], jobs: Sequence[_Job], folder: Path, seed: int
) -> dict[str, dict[str, float]]:
    """Factors on the time that hold 90 % of transfers between formats of one device.

    Each time model predicts the measured points of the device's other formats; the 5 % and 95 %
    quantiles of measured / predicted, over all pairs of formats that share a width or do not.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[npt.NDArray[np.float64]]] = {}
    by_key = {(j.hardware, j.dtype, j.collection): j for j in jobs}
    own = [line for line in lines if line["launch"] != "stream" and not line["sustained"]]
    models = [(line, load_time_model(folder / line["folder"])) for line in own]
    for line, model in models:
        for (hardware, dtype, _), job in by_key.items():
            if hardware != line["hardware"] or dtype == line["dtype"]:
                continue
            if job.launch == "stream" or job.sustained:  # host time, or a power limit, moves these
                continue
            some = rng.permutation(len(job.time))[:1000]
            time, *_ = model.predict(job.shapes.take(some), dtype, get(hardware))
            bits = (find_dtype(dtype).bits, find_dtype(line["dtype"]).bits)
            kind = "same_width" if bits[0] == bits[1] else "other_width"
            found.setdefault(kind, []).append(job.time[some] / time)
    spread: dict[str, dict[str, float]] = {}
    for kind, parts in found.items():
        ratios = np.concatenate(parts)
        low, high = np.quantile(ratios, (0.05, 0.95))
        spread[kind] = {"low": float(low), "high": float(high), "pairs": float(len(parts))}
    return spread


def sibling_transfer(
    lines: Sequence[dict[str, Any]], jobs: Sequence[_Job], folder: Path, seed: int
) -> None:
    """Calibrate transfers between devices of a chip family, where there are any: siblings/.

    Host time and a power limit move with the machine, so that such tables calibrate nothing.
    """
    from .siblings import Relative, fit_siblings, save_siblings

    own = {(e["hardware"], e["dtype"], e["collection"]): e["folder"] for e in lines}
    quiet = [j for j in jobs if j.launch != "stream" and not j.sustained]
    relatives = [
        Relative(j.hardware, j.dtype, j.collection, j.shapes, j.time,
                 load_time_model(folder / own[j.hardware, j.dtype, j.collection]))
        for j in quiet
    ]  # fmt: skip
    siblings = fit_siblings(relatives, seed=seed)
    if siblings is not None:
        (folder / "siblings").mkdir(exist_ok=True)
        files = sorted({file for j in quiet for file in j.files})
        licences = ", ".join(sorted({j.licence for j in quiet}))
        save_siblings(siblings, folder / "siblings", licence=licences, files=files)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ridgecast")
    except PackageNotFoundError:
        return "unknown"


def _replace(work: Path, target: Path) -> None:
    work.chmod(0o755)
    if target.exists():
        old = target.with_name(f".{target.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        work.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        work.rename(target)


def _usable(table: Table) -> npt.NDArray[np.bool_]:
    """Rows of library GEMMs with a valid time."""
    is_gemm = np.asarray(table["op"]) == "gemm"
    library = np.isin(np.asarray(table["kernel"]).astype(str), ("library", ""))
    return is_gemm & library & np.asarray(table["valid"], bool) & (table["time_s"] > 0)


def _jobs(table: Table) -> tuple[list[_Job], list[str]]:
    """Split usable rows by device, format and collection; repeats of a point give their median."""
    table = select(table, np.flatnonzero(_usable(table)))
    found: list[_Job] = []
    refused: list[str] = []
    rows = len(table["m"])
    if not rows:
        return found, refused
    code = np.zeros(rows, np.int64)
    for name in ("hardware", "dtype", "collection"):
        codes, values = factorize(table[name])
        code = code * len(values) + codes
    for one in np.unique(code):
        at = np.flatnonzero(code == one)
        first = at[0]
        label = f"{table['hardware'][first]} {table['dtype'][first]}"
        try:
            device = get(str(table["hardware"][first]))
            device.rate(find_dtype(str(table["dtype"][first])))
        except RidgecastError as error:
            refused.append(f"{label}: {error}")
            continue
        shapes, time = _median(table, at)
        if len(time) < LEAST_ROWS:
            refused.append(f"{label}: {len(time)} points, need {LEAST_ROWS} to hold any out")
            continue
        found.append(
            _Job(
                device.name,
                str(table["dtype"][first]),
                str(table["collection"][first]),
                str(table["launch"][first]),
                bool(table["sustained"][first]),
                str(table["licence"][first]),
                tuple(sorted({Path(str(f)).name for f in set(table["source_file"][at].tolist())})),
                shapes,
                time,
            )
        )
    return found, refused


def _median(table: Table, at: npt.NDArray[np.int64]) -> tuple[Shapes, npt.NDArray[np.float64]]:
    sizes = np.stack([np.asarray(table[c][at], float) for c in ("m", "n", "k", "batch")], axis=1)
    unique, inverse, counts = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
    time = np.asarray(table["time_s"][at], float)
    inverse = inverse.ravel()
    order = np.lexsort((time, inverse))
    start = np.concatenate([[0], np.cumsum(counts)[:-1]])
    ranked = time[order]
    middle = 0.5 * (ranked[start + (counts - 1) // 2] + ranked[start + counts // 2])
    return Shapes(*(unique[:, i] for i in range(4))), middle


def _fit_all(
    jobs_list: list[_Job],
    work: Path,
    options: FitOptions,
    jobs: int | None,
    keep: bool,
    progress: Callable[[str], None] | None,
) -> list[dict[str, Any]]:
    """Fit every job, in processes when there are several."""
    count = min(len(jobs_list), jobs or os.cpu_count() or 1)
    if count > 1:
        try:
            return _in_processes(jobs_list, work, options, count, keep, progress)
        except BrokenProcessPool:  # a caller's script without a main guard cannot be spawned again
            shutil.rmtree(work / "time", ignore_errors=True)
    return [_told(_fit_one(job, work, options, keep), progress) for job in jobs_list]


def _in_processes(
    jobs_list: list[_Job],
    work: Path,
    options: FitOptions,
    count: int,
    keep: bool,
    progress: Callable[[str], None] | None,
) -> list[dict[str, Any]]:
    from multiprocessing import get_context

    # one BLAS thread a process, or the processes fight for the cores
    previous = {key: os.environ.get(key) for key in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            futures: list[Future[dict[str, Any]]] = [
                pool.submit(_fit_one, job, work, options, keep) for job in jobs_list
            ]
            return [_told(future.result(), progress) for future in futures]
    finally:
        for key, value in previous.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def _told(line: dict[str, Any], progress: Callable[[str], None] | None) -> dict[str, Any]:
    if progress is not None:
        progress(f"fitted {line['hardware']} {line['dtype']} ({line['rows']} rows)")
    return line


def _fit_one(job: _Job, work: Path, options: FitOptions, keep: bool) -> dict[str, Any]:
    model, held = fit_time_model(job.shapes, job.time, job.dtype, get(job.hardware), options)
    scores = score_rows(held)
    line = {
        "folder": f"time/{job.slug}",
        "hardware": job.hardware,
        "dtype": job.dtype,
        "collection": job.collection,
        "launch": job.launch,
        "sustained": job.sustained,
        "rows": len(job.time),
        "licence": job.licence,
        "files": list(job.files),
        "scores": scores,
    }
    model.card.update(line)
    folder = work / line["folder"]
    folder.mkdir(parents=True)
    save_time_model(model, folder)
    save_parity(
        folder, [sample(part, split=name) for name, part in scored_splits(held)],
        source=job.collection, licence=job.licence, files=job.files,
    )  # fmt: skip
    if keep:
        s = job.shapes
        one = s.batch == 1
        np.savez_compressed(
            folder / "measured.npz",
            m=s.m[one].astype(np.int64),
            n=s.n[one].astype(np.int64),
            k=s.k[one].astype(np.int64),
            time_s=job.time[one],
        )
    return line


def _fit_others(table: Table, jobs: list[_Job], work: Path, seed: int) -> dict[str, Any]:
    """Fit the prior, the configuration model and the power model, where the rows allow."""
    others: list[str] = []
    notes: dict[str, str] = {}
    valid = np.asarray(table["valid"], bool)
    clblast = valid & (np.asarray(table["kernel"]).astype(str) == "clblast")
    if clblast.sum() >= LEAST_ROWS:
        from .config_train import train_config_model

        try:
            train_config_model(
                select(table, np.flatnonzero(clblast)), work / "clblast_sgemm", seed=seed
            )
            others.append("clblast_sgemm")
        except RidgecastError as error:
            notes["clblast_sgemm"] = str(error)
    if (np.asarray(table["power_valid"], bool) & _usable(table)).sum() >= 100:
        from .power_fit import fit_power, save_power

        try:
            # the table stays in file order: the fit needs to know what ran before each row
            power = fit_power(select(table, np.flatnonzero(_usable(table))), seed=seed)
            save_power(power, work / "power")
            others.append("power")
        except RidgecastError as error:
            notes["power"] = str(error)
    bursts = [job for job in jobs if not job.sustained and job.launch != "stream"]
    # a collection that says it replays graphs has no host time in it
    bursts = [job for job in bursts if job.launch == "graph"] or bursts
    if len({job.hardware for job in bursts}) > 1:
        from .prior import fit_prior, save_prior

        prior = fit_prior(
            [(job.hardware, job.dtype, job.shapes, job.time) for job in bursts], seed=seed
        )
        (work / "prior").mkdir()
        save_prior(prior, work / "prior")
        others.append("prior")
    return {"others": others, "other_notes": notes}
