"""GPPerf's measurements on an RTX 4070: CUTLASS SIMT sgemm and a naive tiled kernel.

Source: github.com/pavlyhalim/GPPerf (no licence stated). What to beware of: the swept block size,
stages, layout and epilogue are no options of cutlass_profiler, so every row ran the 128x128_8x2
kernel that its name says, with the layout that its name says; power was sampled after the kernel
had ended. So the asked-for values are kept as req_*, kernel_config_valid tells that they had no
effect, and no power is usable. The tiled times look like process times.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ...errors import SpecError
from ..schema import add_reason, canonical, validate
from ..tables import Table, length, map_text, numeric, read_table
from .base import Importer, Request, devices

__all__ = ["CUTLASS", "CUTLASS_CSV", "TILED", "TILED_CSV"]

_POWER = "power: sampled after the kernel had ended"
_KERNEL = re.compile(r"(?P<m>\d+)x(?P<n>\d+)_(?P<k>\d+)x(?P<stages>\d+)_(?P<layout>[nt]{2})_")
# One run in the original results.csv: records span several lines and the header is glued to the
# first, so they are found by their form.
_RECORD = re.compile(
    r"(?P<ts>\d{10}),(?P<m>\d+),(?P<n>\d+),(?P<k>\d+),(?P<kernel>cutlass_\w+),(?P<layout>\w\w),"
    r"(?P<req_tb_m>\d+),(?P<req_tb_n>\d+),(?P<req_tb_k>\d+),(?P<req_stages>\d+),\w+,"
    r"(?P<alpha>[\d.]+),(?P<beta>[\d.]+),(?P<latency_ms>[\d.]+),[^,]*,\s*(?P<power_w>[^,]*),"
    r"(?:[^,]*,){5}\s*(?P<device>[^,]*),"
)


def convert_cutlass(table: Table, request: Request) -> Table:
    """Canonical rows of the CUTLASS sweep: the configuration is read from the kernel's name."""
    rows = length(table)
    hardware, notes = devices(table["device"])
    found = map_text(table["kernel"], _KERNEL.search)
    tiles = {
        ours: np.array([float(f[key]) if f else np.nan for f in found.tolist()])
        for ours, key in (("tile_m", "m"), ("tile_n", "n"), ("tile_k", "k"), ("stages", "stages"))
    }
    layout = np.array([f["layout"] if f else "" for f in found.tolist()], dtype=object)
    dtype = map_text(table["kernel"], lambda name: "fp16" if "hgemm" in name else "fp32")
    asked = {name: numeric(table, name)[0] for name in table if name.startswith("req_")}
    scalars = {name: numeric(table, name)[0] for name in ("alpha", "beta") if name in table}
    out = canonical(
        rows, op="gemm", hardware=hardware, dtype=dtype, m=table["m"], n=table["n"],
        k=table["k"], layout=layout, kernel="cutlass_simt", kernel_source=table["kernel"],
        time_s=numeric(table, "latency_ms")[0] * 1e-3, samples=10.0,
        power_w=numeric(table, "power_w")[0], cache="hot", launch="stream",
        collection="gpperf/cutlass", source_file=request.name, licence="none stated", reason=notes,
        kernel_config_valid=np.zeros(rows, dtype=bool), **tiles, **asked, **scalars,
    )  # fmt: skip
    everything = np.ones(rows, dtype=bool)
    add_reason(out, np.isfinite(out["power_w"]), _POWER)
    add_reason(out, everything, "the asked-for tile and layout (req_*) had no effect")
    return validate(out)


def convert_tiled(table: Table, request: Request) -> Table:
    """Canonical rows of the naive tiled kernel; runs without a time are not valid."""
    rows = length(table)
    time = next(name for name in ("exec_time_ms_or_s", "Execution Time") if name in table)
    tile = numeric(table, "tile" if "tile" in table else "Tile Size")[0]
    power = numeric(table, "avg_power_w")[0] if "avg_power_w" in table else np.full(rows, np.nan)
    out = canonical(
        rows, op="gemm", hardware="rtx_4070", dtype="fp32", m=table["M"], n=table["N"],
        k=table["K"], layout="nn", kernel="tiled", time_s=numeric(table, time)[0] * 1e-3,
        power_w=power, launch="stream", collection="gpperf/tiled", source_file=request.name,
        licence="none stated", tile=tile, tile_m=tile, tile_n=tile, tile_k=tile,
    )  # fmt: skip
    everything = np.ones(rows, dtype=bool)
    add_reason(out, np.isfinite(out["power_w"]), _POWER)
    add_reason(out, everything, "time looks like that of the process, not of the kernel alone")
    return validate(out)


def read_cutlass(path: Path) -> Table:
    """Read the original results.csv, or a plain table with the Parquet's columns.

    Raises SpecError when no run can be found in it.
    """
    if path.suffix.lower() != ".csv":
        return read_table(path)
    found = [m.groupdict() for m in _RECORD.finditer(path.read_text("utf-8", errors="replace"))]
    if not found:
        raise SpecError(f"{path}: no run of GPPerf's results.csv found in it")
    table: Table = {}
    for name in found[0]:
        values = np.array([record[name].strip() for record in found], dtype=object)
        number, bad = numeric({name: values}, name)
        table[name] = values if bad.any() or name in ("kernel", "layout", "device") else number
    for name in ("m", "n", "k", "ts"):
        table[name] = table[name].astype(np.int64)
    return table


def looks_like(path: Path) -> bool:
    """Whether a CSV begins as GPPerf's results.csv does."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return _RECORD.search(file.read(8192)) is not None


CUTLASS = Importer(
    name="gpperf",
    what="GPPerf's CUTLASS sweep (Parquet)",
    needs=("m", "n", "k", "kernel", "latency_ms", "power_w", "req_tb_m", "device"),
    convert=convert_cutlass,
)
CUTLASS_CSV = Importer(
    name="gpperf_csv",
    what="GPPerf's CUTLASS sweep (its original results.csv)",
    needs=("m", "n", "k", "kernel", "latency_ms", "power_w", "req_tb_m", "device"),
    convert=convert_cutlass,
    read=read_cutlass,
    suffixes=(".csv",),
    looks_like=looks_like,
)
TILED = Importer(
    name="gpperf_tiled",
    what="GPPerf's tiled kernel (Parquet)",
    needs=("M", "N", "K", "tile", "exec_time_ms_or_s"),
    convert=convert_tiled,
)
TILED_CSV = Importer(
    name="gpperf_tiled_csv",
    what="GPPerf's tiled kernel (its original CSV)",
    needs=("M", "N", "K", "Tile Size", "Execution Time"),
    convert=convert_tiled,
)
