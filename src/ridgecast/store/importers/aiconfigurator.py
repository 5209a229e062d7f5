"""AIConfigurator's measured GEMM tables (Parquet, one file a device, framework and version).

Source: github.com/ai-dynamo/aiconfigurator, Apache-2.0. Each row is torch's linear layer as one
serving framework runs it, timed hot: CUDA-graph replay after warm-up over a few rotating copies
of the weights, by CUDA events; `latency` is in ms. What to beware of is flagged, never repaired.
"""

from __future__ import annotations

import re

import numpy as np

from ...errors import UnsupportedError
from ..schema import add_reason, canonical, invalidate, validate
from ..tables import Table, length, map_text, numeric
from .base import Importer, Request, device_name, devices, dtypes

__all__ = ["IMPORTER", "POWER_FLOOR"]

# TensorRT-LLM's smooth-quant GEMM multiplies int8 weights with int8 activations.
_DTYPES = {"sq": "int8"}

# Shortest kernel (s) whose sensor mean was found usable by comparing independent collections of
# the same points: below it the averaged sensor still shows the previous kernel. Kind: measured.
POWER_FLOOR = {"h200_sxm": 56e-6, "b200_sxm": 200e-6, "gb200": 200e-6}

# Collections that were run long enough to hit the power limit: 4-20 % slower above 200 us.
_SUSTAINED = {
    ("h200_sxm", "vllm", "0.22.0"), ("b200_sxm", "vllm", "0.22.0"),
    ("b200_sxm", "trtllm", "1.3.0rc15"), ("gb200", "vllm", "0.22.0"),
    ("gb200", "trtllm", "1.3.0rc17"),
}  # fmt: skip
# 9-20 % slower than every other collection of the same device for small shapes.
_SLOW = {("gb200", "vllm", "0.14.0"), ("gb300", "vllm", "0.14.0")}


def _version(text: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def convert(table: Table, request: Request) -> Table:
    """Canonical rows of one AIConfigurator GEMM table.

    Raises UnsupportedError for the tables of other ops.
    """
    if "op_name" in table:
        other = sorted({str(o) for o in set(table["op_name"].tolist()) if o != "gemm"})
        if other:
            raise UnsupportedError(f"op {', '.join(other)} is not imported yet; only gemm is")
    rows = length(table)
    latency, bad = numeric(table, "latency")
    hardware, notes = devices(table["device"])
    framework = map_text(table["framework"], str.lower)
    dtype = dtypes(table["gemm_dtype"], _DTYPES)
    out = canonical(
        rows, op="gemm", hardware=hardware, dtype=dtype, m=table["m"], n=table["n"],
        k=table["k"], layout="tn", kernel="library", kernel_source=table["kernel_source"],
        time_s=latency * 1e-3, cache="hot", source_file=request.name, licence="Apache-2.0",
        reason=notes,
    )  # fmt: skip
    add_reason(out, bad, "latency is not a number")
    # a source has one framework, version and device in a file: handle the few combinations
    keys = zip(hardware.tolist(), framework.tolist(), table["version"].tolist(), strict=True)
    distinct: dict[tuple[str, str, str], int] = {}
    codes = np.fromiter((distinct.setdefault(k, len(distinct)) for k in keys), np.int64, rows)
    collection = np.empty(rows, dtype=object)
    launch = np.empty(rows, dtype=object)
    block = dtype == "fp8_block"
    for key, code in distinct.items():
        device, frame, version = key[0], key[1], str(key[2])
        here = codes == code
        collection[here] = f"aiconfigurator/{frame}-{version}/{device}"
        # B60 tables come from Intel's stack, whose launch path the source does not state
        launch[here] = "" if device.startswith("arc_") else "graph"
        if frame == "vllm" and _version(version) >= (0, 22):
            launch[here & block] = "stream"
        if (device, frame, version) in _SUSTAINED:
            out["sustained"] = out["sustained"] | here
        if (device, frame, version) in _SLOW:
            add_reason(out, here, "collection is 9-20 % slower than others for small shapes")
    out["collection"], out["launch"] = collection, launch
    note = "not graph-captured: the floor of 0.05-0.3 ms is launch time"
    add_reason(out, launch == "stream", note)
    if "power" in table:
        _add_power(out, table)
    _flag_misplaced(out, request)
    return validate(out)


def _flag_misplaced(out: Table, request: Request) -> None:
    """In the package's folders the device of the rows must be that of the folder.

    A table of one device was once shipped as that of another, byte by byte.
    """
    parts = request.path.parts
    if len(parts) < 5 or parts[-4] != "gemm" or parts[-6:-5] != ("data",):
        return
    folder, note = device_name(parts[-5])
    if not note:
        misplaced = out["hardware"] != folder
        invalidate(out, misplaced, f"lies in the folder of {folder}: a copy of another device's")


def _add_power(out: Table, table: Table) -> None:
    power, _ = numeric(table, "power")
    out["power_w"] = power
    if "power_limit" in table:
        out["power_limit_w"] = numeric(table, "power_limit")[0]
    out["sustained"] = out["sustained"] | (power > 0)  # power was only collected in long windows
    present = np.isfinite(power)
    floor = map_text(out["hardware"], lambda h: POWER_FLOOR.get(h, np.inf)).astype(float)
    enough = present & (out["time_s"] > floor)
    out["power_valid"] = enough
    add_reason(
        out, present & ~enough,
        "power: the kernel is too short for the averaged sensor, which shows the previous one",
    )  # fmt: skip


IMPORTER = Importer(
    name="aiconfigurator",
    what="AIConfigurator GEMM tables (Parquet)",
    needs=("framework", "version", "device", "gemm_dtype", "m", "n", "k", "latency"),
    convert=convert,
)
