"""Importers: turn other projects' measurement files into canonical rows.

Owns the registry, recognising a file by its columns, and importing many files so that a bad one
never stops the others. Third parties add importers through the entry points
`ridgecast.importers`.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import NoDataError, RidgecastError, SpecError, unknown_name
from ..schema import invalidate
from ..tables import Table, concat, length, read_table, require_columns
from . import aiconfigurator_core as core
from .base import Importer, Request

__all__ = ["IMPORTERS", "FileResult", "ImportReport", "Importer", "Request", "get_importer",
           "import_files", "import_report"]  # fmt: skip

# Order is the order of recognition: the most particular first.
IMPORTERS: dict[str, str] = {
    "aiconfigurator": "ridgecast.store.importers.aiconfigurator:IMPORTER",
    "aiconfigurator_attention": "ridgecast.store.importers.aiconfigurator_ops:ATTENTION",
    "aiconfigurator_mla": "ridgecast.store.importers.aiconfigurator_ops:LATENT",
    "aiconfigurator_gdn": "ridgecast.store.importers.aiconfigurator_ops:DELTA",
    "aiconfigurator_moe": "ridgecast.store.importers.aiconfigurator_ops:MOE",
    "aiconfigurator_nccl": "ridgecast.store.importers.aiconfigurator_ops:NCCL",
    "aiconfigurator_all_reduce": "ridgecast.store.importers.aiconfigurator_ops:ALL_REDUCE",
    "aiconfigurator_alltoall": "ridgecast.store.importers.aiconfigurator_exchange:NVLINK",
    "aiconfigurator_deepep_ll": "ridgecast.store.importers.aiconfigurator_exchange:DEEPEP_LL",
    "aiconfigurator_deepep": "ridgecast.store.importers.aiconfigurator_exchange:DEEPEP_NORMAL",
    "aiconfigurator_serving": "ridgecast.store.importers.aiconfigurator_serving:SERVING",
    "consensus": "ridgecast.store.importers.consensus:CONSENSUS",
    "consensus_long": "ridgecast.store.importers.consensus:LONG",
    "kernel_tuner": "ridgecast.store.importers.kernel_tuner:PARQUET",
    "kernel_tuner_json": "ridgecast.store.importers.kernel_tuner:JSON",
    "cutlass_profiler": "ridgecast.store.importers.cutlass:IMPORTER",
    "gpperf": "ridgecast.store.importers.gpperf:CUTLASS",
    "gpperf_csv": "ridgecast.store.importers.gpperf:CUTLASS_CSV",
    "gpperf_tiled": "ridgecast.store.importers.gpperf:TILED",
    "gpperf_tiled_csv": "ridgecast.store.importers.gpperf:TILED_CSV",
    "ridgecast_shards": "ridgecast.store.importers.ridgecast_shards:IMPORTER",
    "plain": "ridgecast.store.importers.plain:IMPORTER",
}


@dataclass(frozen=True, slots=True)
class FileResult:
    """What became of one file: rows read, rows that may be used, or why it was refused."""

    path: str
    importer: str
    rows: int
    valid_rows: int
    status: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """Canonical rows of all files that could be read, and one result per file."""

    table: Table
    files: tuple[FileResult, ...]


def get_importer(name: str) -> Importer:
    """Look up an importer; third parties' come from the entry points `ridgecast.importers`.

    Raises SpecError with the nearest names, or when two packages claim one name.
    """
    from importlib.metadata import entry_points

    targets = dict(IMPORTERS)
    for entry in entry_points(group="ridgecast.importers"):
        if entry.name in targets:
            raise SpecError(f"importer {entry.name!r} is registered twice: {entry.value}")
        targets[entry.name] = entry.value
    if name not in targets:
        raise SpecError(unknown_name("importer", name, targets))
    module, _, attribute = targets[name].partition(":")
    return getattr(import_module(module), attribute)


def import_files(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    importer: str = "auto",
    column_map: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Table:
    """Canonical measurement rows of files and folders (searched for tables, sorted).

    "aiconfigurator-core[:system[/framework[/version]]]" means the tables of that installed package.
    `importer` is a name of `IMPORTERS`, or "auto" to recognise each file by its columns.
    `column_map` maps our columns to theirs, with a unit: {"time_s": "latency [ms]"}.
    `defaults` are values for what a source does not hold: {"hardware": "h200_sxm"}.
    Files that cannot be imported are named in one warning. Raises NoDataError when none could.
    """
    report = import_report(paths, importer=importer, column_map=column_map, defaults=defaults)
    refused = [f for f in report.files if f.status != "ok"]
    told = "\n".join(f"  {f.path}: {f.reason}" for f in refused)
    if len(refused) == len(report.files):
        raise NoDataError(f"no file could be imported:\n{told}")
    if refused:
        warnings.warn(f"{len(refused)} file(s) were not imported:\n{told}", stacklevel=2)
    return report.table


def import_report(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    importer: str = "auto",
    column_map: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> ImportReport:
    """As `import_files`, with one result per file instead of warnings and errors.

    Raises SpecError for an unknown importer, NoDataError when a path holds no table file.
    """
    chosen = None if importer == "auto" else get_importer(importer)
    tables: list[Table] = []
    results: list[FileResult] = []
    seen: dict[str, str] = {}
    for path in _expand(paths):
        request = Request(path, column_map or {}, defaults or {})
        used = importer
        try:
            used, table = _import_one(request, chosen)
        except RidgecastError as error:
            results.append(FileResult(str(path), used, 0, 0, "refused", str(error)))
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        everything = np.ones(length(table), dtype=bool)
        if digest in seen:
            invalidate(table, everything, f"byte copy of {seen[digest]}")
        seen.setdefault(digest, request.name)
        tables.append(table)
        results.append(FileResult(str(path), used, length(table), int(table["valid"].sum()), "ok"))
    return ImportReport(concat(tables), tuple(results))


def _expand(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    found: list[Path] = []
    for item in paths:
        if str(item).startswith(core.PREFIX) and not Path(item).exists():
            found += core.expand(str(item))
            continue
        path = Path(item)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if _is_table(p.name))
            if not inside:
                raise NoDataError(f"{path}: no table file ({', '.join(_SUFFIXES)}) inside")
            found += inside
        else:
            found.append(path)
    if not found:
        raise NoDataError("no file to import was given")
    return found


def _is_table(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not _BESIDE.fullmatch(name)


# what `ridgecast measure` writes beside its shards
_BESIDE = re.compile(r"environment-[0-9a-f]+\.json|order\.json")
_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".json", ".json.gz")


def _import_one(request: Request, chosen: Importer | None) -> tuple[str, Table]:
    table: Table | None = None
    if chosen is None:
        chosen, table = _recognise(request)
    if table is None:
        table = (chosen.read or read_table)(request.path)
    if not request.column_map:
        require_columns(table, chosen.needs, what=f"{request.path} as {chosen.name}")
    return chosen.name, chosen.convert(table, request)


def _recognise(request: Request) -> tuple[Importer, Table | None]:
    """Find the importer whose columns a file has, and the table if it was read on the way."""
    if request.column_map:
        return get_importer("plain"), None
    candidates = [get_importer(name) for name in IMPORTERS]
    lower = request.path.name.lower()
    for candidate in candidates:
        if candidate.read is None or not lower.endswith(candidate.suffixes):
            continue
        if candidate.looks_like is None or candidate.looks_like(request.path):
            return candidate, None
    table = read_table(request.path)
    for candidate in candidates:
        if candidate.read is None and all(name in table for name in candidate.needs):
            return candidate, table
    raise SpecError(_unrecognised(request.path, table, candidates))


def _unrecognised(path: Path, table: Table, candidates: Sequence[Importer]) -> str:
    if "op_name" in table and "framework" in table:
        ops = sorted({str(op) for op in table["op_name"].tolist()})[:3]
        return (
            f"{path}: op {', '.join(ops)} is not imported yet (or columns are missing); of "
            "AIConfigurator's tables gemm, attention, moe, nccl and custom_allreduce are"
        )
    known = "; ".join(f"{c.name} needs {', '.join(c.needs)}" for c in candidates)
    return (
        f"{path}: no importer recognises the columns {', '.join(list(table)[:12])}. {known}. "
        "Give a column map, or rename the columns"
    )
