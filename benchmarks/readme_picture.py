"""Draw the README's picture from the shipped accuracy rows: docs/_static/accuracy.svg.

python benchmarks/readme_picture.py        needs matplotlib
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from ridgecast.accuracy import run

OUT = Path(__file__).resolve().parents[1] / "docs" / "_static" / "accuracy.svg"
SPLITS = ("unseen_shape", "off_grid", "frontier", "unseen_device")
COLOURS = ("#2b6cb0", "#63b3ed", "#f6ad55", "#c05621")


def main() -> None:
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "ridgecast"  # the same picture from the same rows
    import matplotlib.pyplot as plt

    rows = [
        r for r in run().rows
        if r["target"] == "time" and r["dtype"] == "bf16" and r["bucket"] == "all"
        and r["status"] == "ok"
    ]  # fmt: skip
    value = {(r["hardware"], r["split"]): r for r in rows}
    devices = sorted({r["hardware"] for r in rows})
    figure, axis = plt.subplots(figsize=(9, 3.6), constrained_layout=True)
    width = 0.2
    for i, (split, colour) in enumerate(zip(SPLITS, COLOURS, strict=True)):
        at = [j for j, d in enumerate(devices) if (d, split) in value]
        heights = [100 * value[devices[j], split]["mape"] for j in at]
        axis.bar([j + (i - 1.5) * width for j in at], heights, width, color=colour, label=split)
    for j, device in enumerate(devices):
        derated = 100 * value[device, "unseen_shape"]["derated_mape"]
        text = "roofline with one fitted factor, unseen_shape" if j == 0 else None
        axis.hlines(derated, j - 0.45, j + 0.45, color="#4a5568", ls="--", lw=1, label=text)
    axis.set_xticks(range(len(devices)), devices)
    axis.set_ylabel("mean error of time, held out (%)")
    axis.set_title("bf16 GEMM: error on groups that training never saw", loc="left", fontsize=11)
    figure.legend(loc="outside lower center", fontsize=8, ncols=5, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(OUT, metadata={"Date": None})


if __name__ == "__main__":
    main()
