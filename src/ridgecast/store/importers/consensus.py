"""Consensus tables: bf16 GEMM medians over several independent collections of one device.

Source: derived from AIConfigurator's tables (Apache-2.0): per shape the median, smallest and
largest latency in microseconds over up to nine collections; the long table has one row per
collection. Times are hot, as in the tables that they come from.
"""

from __future__ import annotations

import numpy as np

from ..schema import add_reason, canonical, validate
from ..tables import Table, length, numeric
from .base import Importer, Request, devices

__all__ = ["CONSENSUS", "LONG"]


def convert_consensus(table: Table, request: Request) -> Table:
    """Canonical rows: time_s is the median, time_low_s and time_high_s the collections' range."""
    rows = length(table)
    hardware, notes = devices(table["device"])
    time = {key: numeric(table, f"latency_us_{key}")[0] * 1e-6 for key in ("median", "min", "max")}
    out = canonical(
        rows, op="gemm", hardware=hardware, dtype="bf16", m=table["m"], n=table["n"],
        k=table["k"], layout="tn", kernel="library", time_s=time["median"],
        time_low_s=time["min"], time_high_s=time["max"], samples=numeric(table, "n_sources")[0],
        cache="hot", launch="graph", collection=_prefixed("consensus/", hardware),
        source_file=request.name, licence="Apache-2.0", reason=notes,
    )  # fmt: skip
    return validate(out)


def convert_long(table: Table, request: Request) -> Table:
    """Canonical rows, one per collection; outlying collections are noted, sustained ones marked."""
    rows = length(table)
    hardware, notes = devices(table["device"])
    collection = _prefixed("aiconfigurator/", table["src"]) + _prefixed("/", hardware)
    out = canonical(
        rows, op="gemm", hardware=hardware, dtype="bf16", m=table["m"], n=table["n"],
        k=table["k"], layout="tn", kernel="library", kernel_source=table["src"],
        time_s=numeric(table, "latency_us")[0] * 1e-6, cache="hot", launch="graph",
        collection=collection, source_file=request.name, licence="Apache-2.0", reason=notes,
        sustained=numeric(table, "sustained")[0] == 1.0,
    )  # fmt: skip
    outlier = numeric(table, "outlier_src")[0] == 1.0
    add_reason(out, outlier, "collection is 9-20 % slower than others for small shapes")
    return validate(out)


def _prefixed(prefix: str, column: np.ndarray) -> np.ndarray:
    return np.array([f"{prefix}{value}" for value in column.tolist()], dtype=object)


CONSENSUS = Importer(
    name="consensus",
    what="bf16 consensus over collections (Parquet)",
    needs=("device", "m", "n", "k", "n_sources", "latency_us_median", "latency_us_min",
           "latency_us_max"),
    convert=convert_consensus,
)  # fmt: skip
LONG = Importer(
    name="consensus_long",
    what="bf16 collections side by side (Parquet)",
    needs=("device", "src", "m", "n", "k", "latency_us", "sustained", "outlier_src"),
    convert=convert_long,
)
