"""CSV output of CUTLASS's cutlass_profiler (`--output=file`), GEMM rows.

Source of the columns: cutlass tools/profiler/src/performance_report.cpp. `Runtime` is in ms. The
file does not name the device: give it as a default. Operand layouts are written as
`type:column` (BLAS n) or `type:row` (t), as the kernel names' nn, nt, tn, tt.
"""

from __future__ import annotations

import numpy as np

from ...errors import UnsupportedError
from ..schema import add_reason, canonical, invalidate, validate
from ..tables import Table, length, map_text, numeric, text
from .base import Importer, Request, device_column

__all__ = ["IMPORTER"]

_TYPES = {
    "f64": "fp64", "f32": "fp32", "tf32": "tf32", "f16": "fp16", "bf16": "bf16", "s8": "int8",
    "s4": "int4", "e4m3": "fp8_e4m3", "e5m2": "fp8_e5m2",
}  # fmt: skip
_CONFIG = {
    "cta_m": "tile_m", "cta_n": "tile_n", "cta_k": "tile_k", "split_k_slices": "split_k",
    **{name: name for name in (
        "stages", "warps_m", "warps_n", "warps_k", "inst_m", "inst_n", "inst_k",
        "cluster_m", "cluster_n", "cluster_k", "alpha", "beta")},
}  # fmt: skip


def convert(table: Table, request: Request) -> Table:
    """Canonical rows of a cutlass_profiler CSV; failed runs stay, with valid = False.

    Raises UnsupportedError when the file holds no GEMM.
    """
    kinds = {str(kind) for kind in table["OperationKind"].tolist()}
    if not any("gemm" in kind for kind in kinds):
        raise UnsupportedError(f"op {', '.join(sorted(kinds))} is not imported yet; only gemm is")
    rows = length(table)
    runtime = next(name for name in ("Runtime", "Runtime (ms)") if name in table)
    time, bad = numeric(table, runtime)
    hardware, notes = device_column(table, request, rows)
    a = [str(v).partition(":") for v in table["A"].tolist()]
    b = [str(v).partition(":") for v in table["B"].tolist()]
    operation = [str(v) for v in table["Operation"].tolist()]
    simt = np.array([str(v) == "simt" for v in table["op_class"].tolist()], dtype=bool)
    provider = table.get("Provider", text("CUTLASS", rows))
    library = np.array([str(p).lower() != "cutlass" for p in provider.tolist()], dtype=bool)
    kernel = np.where(library, "library", np.where(simt, "cutlass_simt", "cutlass_tensor"))
    layout = [("n" if x[2] == "column" else "t") + ("n" if y[2] == "column" else "t")
              for x, y in zip(a, b, strict=True)]  # fmt: skip
    config = {
        ours: numeric(table, theirs)[0] for theirs, ours in _CONFIG.items() if theirs in table
    }
    batch = numeric(table, "batch_count")[0] if "batch_count" in table else np.ones(rows)
    out = canonical(
        rows, op="gemm", hardware=hardware,
        dtype=np.array([_dtype(x[0], o, s) for x, o, s in zip(a, operation, simt, strict=True)],
                       dtype=object),
        m=table["m"], n=table["n"], k=table["k"], batch=batch,
        layout=np.array(layout, dtype=object), kernel=kernel.astype(object),
        kernel_source=table["Operation"], time_s=time * 1e-3, launch="stream",
        collection=np.array([f"cutlass_profiler/{h}" for h in hardware.tolist()], dtype=object),
        source_file=request.name, reason=notes, **config,
    )  # fmt: skip
    invalidate(out, bad, f"{runtime} is not a number")
    _flag(out, table, a, b)
    return validate(out)


def _dtype(operand: str, operation: str, simt: bool) -> str:
    """Format that the multiplier sees; tensor-core kernels round fp32 operands down."""
    if operand == "f32" and not simt:
        for mark, name in (("bf16gemm", "bf16"), ("f16gemm", "fp16")):
            if mark in operation and f"t{mark}" not in operation:
                return name
        return "tf32"
    return _TYPES.get(operand, operand)


def _flag(out: Table, table: Table, a: list, b: list) -> None:
    rows = length(out)
    status = map_text(table.get("Status", text("success", rows)), str.lower)
    for state in set(status.tolist()) - {"success"}:
        invalidate(out, status == state, f"status {state or 'missing'}")
    disposition = map_text(table.get("Disposition", text("passed", rows)), str.lower)
    for state in set(disposition.tolist()) & {"failed", "incorrect"}:
        invalidate(out, disposition == state, f"result was {state}")
    dense = np.array(["gemm" in str(kind) and "spgemm" not in str(kind)
                      for kind in table["OperationKind"].tolist()], dtype=bool)  # fmt: skip
    invalidate(out, ~dense, "not a dense GEMM")
    mixed = np.array([x[0] != y[0] for x, y in zip(a, b, strict=True)], dtype=bool)
    add_reason(out, mixed, "operands differ in format: dtype is that of A")
    rounded = np.array([x[0] == "f32" for x in a], dtype=bool) & (out["dtype"] != "fp32")
    add_reason(out, rounded, "operands are stored as fp32 and rounded by the kernel")


IMPORTER = Importer(
    name="cutlass_profiler",
    what="cutlass_profiler CSV",
    needs=("OperationKind", "Operation", "m", "n", "k", "A", "B", "op_class", "Runtime"),
    convert=convert,
)
