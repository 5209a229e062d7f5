"""Operations that nothing here was fitted on, against published measurements.

    python benchmarks/published_ops.py [--write]

published_ops.csv is a table for `ridgecast predict --table`, with a column measured_s. It holds
figures of two public collections, rounded to four digits:

- NeuSight (Georgia Institute of Technology and Microsoft, MIT): batched GEMM on an A100 PCIe 40 GB,
  V100 PCIe, T4 and P100 PCIe, softmax on the first, convolution on an A100 PCIe 80 GB; PyTorch 2.1
  in fp32 without TF32. Only work above 0.05 ms: below, their clock reads 0.03 ms whatever runs. The
  variant of a convolution is the one that cuDNN's kernel names tell (winograd_2x2 where they only
  say winograd).
- Liger-Kernel (LinkedIn, BSD-2-Clause), medians of benchmark/data of January 2025: forward RMS norm
  in bf16 by its own kernel on H100 NVL and A100 PCIe 80 GB, layer norm in fp32 on H100 NVL by its
  own, torch's and torch.compile's; the cache is flushed before each run.

No model saw any of them, and none of these devices was measured for the shipped models. One
constant was chosen for some of them: how wide intervals are in fp32 on V100, T4 and P100. --write
puts the table on the accuracy page.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ridgecast import predict_table
from ridgecast.store.tables import read_table

HERE = Path(__file__).resolve().parent
TABLE = HERE / "published_ops.csv"
BEGIN, END = "<!-- published:begin -->", "<!-- published:end -->"


def scores() -> Iterator[dict[str, Any]]:
    """One line for each operation, variant, device and source: errors and coverage as shares."""
    table = read_table(TABLE)
    done = predict_table(table)
    words = ("op", "kind", "variant", "hardware", "source")
    shown = [np.asarray(done[c]).astype(str) for c in words]
    names = np.array([" ".join(w for w in (o, k, v) if w not in ("", "None", "nan"))
                      for o, k, v in zip(*shown[:3], strict=True)])  # fmt: skip
    groups = np.stack([names, *shown[3:]])
    for group in dict.fromkeys(map(tuple, groups.T)):
        at = (groups.T == group).all(axis=1)
        truth, time, low, high, bound = (
            np.asarray(done[c], float)[at]
            for c in ("measured_s", "time_s", "time_low_s", "time_high_s", "bound_s")
        )
        error = np.abs(time / truth - 1.0)
        yield {
            "op": group[0], "hardware": group[1], "source": group[2], "rows": int(at.sum()),
            "mape": float(error.mean()), "median": float(np.median(error)),
            "bias": float(np.median(np.log(time / truth))),
            "coverage": float(((low <= truth) & (truth <= high)).mean()),
            "roofline": float(np.abs(bound / truth - 1.0).mean()),
            "basis": str(done["basis"][at][0]),
        }  # fmt: skip


def to_markdown() -> str:
    """Return the table of the accuracy page."""
    text = (
        "**Operations that nothing was fitted on.** Published measurements of devices and kernels "
        "that taught no model: NeuSight (MIT; fp32) and Liger-Kernel (BSD-2-Clause; `bf16` RMS "
        "norm, `fp32` layer norm), see `benchmarks/published_ops.py`. Errors as above; the spread "
        "of `analytic` answers was derived from other operations and is wider than these need. How "
        "wide intervals of fp32 are on V100, T4 and P100 was chosen for these very points.\n\n"
        "| operation | device | source | rows | MAPE | median | 90 % interval holds | "
        "plain roofline | basis |\n|---|---|---|--:|--:|--:|--:|--:|---|\n"
    )
    for s in scores():
        cells = (s["op"], s["hardware"], s["source"], s["rows"], f"{100 * s['mape']:.1f} %",
                 f"{100 * s['median']:.1f} %", f"{100 * s['coverage']:.0f} %",
                 f"{100 * s['roofline']:.1f} %", s["basis"])  # fmt: skip
        text += f"| {' | '.join(map(str, cells))} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    table = to_markdown()
    print(table)
    if parser.parse_args().write:
        path = HERE.parent / "docs" / "accuracy.md"
        head, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        tail = rest.partition(END)[2]
        path.write_text(f"{head}{BEGIN}\n\n{table}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
